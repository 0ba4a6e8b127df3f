//! Frames out of a socket.
//!
//! What always holds: memory grows with the bytes that came, never with what a head claims, and
//! never beyond one frame of the largest kind and one read.
//!
//! Cost: one system call for all that has come, up to the length of the buffer, which grows while
//! reads fill it. A body is a view of that buffer, not a copy of it.

use std::io;

use bytes::{Bytes, BytesMut};
use kiln_protocol::{
    Parsed,
    peer::{FrameError, Frames, HEAD_LEN, Label},
};
use tokio::{io::AsyncReadExt, net::tcp::OwnedReadHalf};

const READ_LEN_MIN: usize = 16 << 10;
const READ_LEN_MAX: usize = 256 << 10;
/// A buffer that held a frame longer than this is not used again.
const KEEP_LEN_MAX: usize = 1 << 20;

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) label: Label,
    /// As it was meant: inflated, if it was compressed.
    pub(super) body: Bytes,
}

/// The reading end of a connection.
#[derive(Debug)]
pub(super) struct FrameReader {
    socket: OwnedReadHalf,
    frames: Frames,
    buffer: BytesMut,
    /// How much the next read asks for.
    read_len: usize,
    /// How long the buffer must be before it can hold a whole frame.
    needed: usize,
}

impl FrameReader {
    pub(super) fn new(socket: OwnedReadHalf, body_len_max: usize) -> Self {
        Self {
            socket,
            frames: Frames { body_len_max },
            buffer: BytesMut::new(),
            read_len: READ_LEN_MIN,
            needed: HEAD_LEN,
        }
    }

    /// From now on bodies may be so long.
    pub(super) fn allow(&mut self, body_len_max: usize) {
        self.frames.body_len_max = body_len_max;
    }

    /// Goes on with another handle on the same socket. What was read is kept.
    pub(super) fn go_on_with(&mut self, socket: OwnedReadHalf) {
        self.socket = socket;
    }

    pub(super) fn socket(&self) -> &OwnedReadHalf {
        &self.socket
    }

    /// Reads once; 0 at the end of the stream. Dropping the future loses nothing.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        // The buffer doubles while a large frame comes in, so that its bytes move rarely.
        let missing = self.needed.saturating_sub(self.buffer.len());
        let ask = missing.min(self.buffer.len()).max(self.read_len);
        self.buffer.reserve(ask);
        let before = self.buffer.len();
        let mut limited = bytes::BufMut::limit(&mut self.buffer, ask);
        let read = self.socket.read_buf(&mut limited).await?;
        debug_assert_eq!(before + read, self.buffer.len());
        if read == self.read_len {
            self.read_len = (2 * self.read_len).min(READ_LEN_MAX);
        }
        Ok(read)
    }

    /// The next whole frame of what was read; `None` when more must be read first.
    pub(super) fn next(&mut self) -> Result<Option<Received>, FrameError> {
        let (label, packed, consumed) = match self.frames.next(&self.buffer)? {
            Parsed::Complete { message: frame, consumed } if frame.packed => {
                let mut plain = Vec::new();
                frame.plain(&mut plain)?;
                (frame.label, Some(plain), consumed)
            }
            Parsed::Complete { message: frame, consumed } => (frame.label, None, consumed),
            Parsed::NeedMore { at_least, .. } => {
                self.needed = at_least;
                return Ok(None);
            }
            Parsed::ScratchFull => return Ok(None),
        };
        self.needed = HEAD_LEN;
        let mut whole = self.buffer.split_to(consumed);
        if consumed > KEEP_LEN_MAX {
            // Else the room that one large frame took would stay for good.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let body = match packed {
            Some(plain) => Bytes::from(plain),
            None => whole.split_off(HEAD_LEN).freeze(),
        };
        Ok(Some(Received { label, body }))
    }

    /// Takes `N` bytes that stand outside of frames.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.buffer.first_chunk::<N>()?;
        bytes::Buf::advance(&mut self.buffer, N);
        Some(bytes)
    }
}
