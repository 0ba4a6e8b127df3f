//! Replies on their way to a client.
//!
//! Small replies of a batch are gathered in one buffer and leave with one system call. A large
//! value is not copied: it stays pinned in the store and is written from there, with the bytes
//! before and behind it, in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use kiln_engine::PinnedValue;

use crate::stream::Stream;

/// Pieces given to one vectored write; the system takes at most 1024.
const PIECES_MAX: usize = 256;

enum Part {
    Bytes(Vec<u8>),
    Large(PinnedValue, usize),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Large(_, len) => *len,
        }
    }
}

/// What a connection has still to write. Empty, it holds no memory.
#[derive(Default)]
pub(crate) struct Output {
    parts: VecDeque<Part>,
    /// Bytes of the first part already written.
    written: usize,
    /// Bytes of all parts still to write, roughly: a part counts until it is written whole.
    bytes_len: usize,
    /// The same for large values.
    large_len: usize,
}

impl Output {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes that wait, large values included.
    pub(crate) fn len(&self) -> usize {
        self.bytes_len + self.large_len
    }

    /// Bytes that wait in memory of their own.
    pub(crate) fn bytes_len(&self) -> usize {
        self.bytes_len
    }

    /// Bytes of large values that wait.
    pub(crate) fn large_len(&self) -> usize {
        self.large_len
    }

    /// Adds the bytes gathered so far; they are taken out of `bytes`.
    pub(crate) fn push_bytes(&mut self, bytes: &mut Vec<u8>) {
        if !bytes.is_empty() {
            self.bytes_len += bytes.len();
            self.parts.push_back(Part::Bytes(bytes.split_off(0)));
        }
    }

    /// Adds a large value behind all that was added before.
    pub(crate) fn push_large(&mut self, value: PinnedValue, len: usize) {
        self.large_len += len;
        self.parts.push_back(Part::Large(value, len));
    }

    /// Writes what the socket takes now. `WouldBlock` when it takes nothing; the bytes written
    /// otherwise.
    pub(crate) fn write(&mut self, stream: &Stream) -> io::Result<usize> {
        let written = {
            let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(16);
            let mut skip = self.written;
            for part in &self.parts {
                if pieces.len() >= PIECES_MAX {
                    break;
                }
                match part {
                    Part::Bytes(bytes) => pieces.push(IoSlice::new(&bytes[skip..])),
                    Part::Large(value, _) => {
                        for slice in value.slices() {
                            let passed = skip.min(slice.len());
                            skip -= passed;
                            if passed < slice.len() && pieces.len() < PIECES_MAX {
                                pieces.push(IoSlice::new(&slice[passed..]));
                            }
                        }
                    }
                }
                skip = 0;
            }
            stream.try_write_vectored(&pieces)?
        };
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.parts.front() {
            let left = first.len() - self.written;
            if written < left {
                self.written += written;
                return;
            }
            written -= left;
            self.written = 0;
            match self.parts.pop_front() {
                Some(Part::Bytes(bytes)) => self.bytes_len -= bytes.len(),
                Some(Part::Large(_, len)) => self.large_len -= len,
                None => {}
            }
        }
        // A connection at rest holds no buffer.
        self.parts = VecDeque::new();
    }
}
