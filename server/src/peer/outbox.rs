//! What waits to be written to one connection.
//!
//! ```text
//!   message --> open batch --(256 KiB, or flush)--> sealed --+--> one vectored write
//!   call, answer ------------------------------------------->+
//! ```
//!
//! What always holds: frames leave in the order in which they were sealed; the bytes that wait are
//! bounded for messages and for calls each, by the limit and at most one frame more, so that the
//! largest frame always fits an empty queue; after a failed append the box is as before.
//!
//! Transfers are compressed, and calls that are long. Requests and their effects are not: clients wait
//! for them, and between nodes of one data centre bytes are cheaper than the time it takes.
//!
//! Cost: a message is encoded where it is written from. Buffers are used again.

use std::{collections::VecDeque, io, io::IoSlice, time::Instant};

use kiln_cluster::{
    message::{Body, Message},
    strong::StrongMessage,
};
use kiln_protocol::peer::{
    FrameError, FrameKind, HEAD_LEN, Label, Packer, Unwritable, begin, seal,
};
use tokio::net::tcp::OwnedWriteHalf;

use super::{
    kind,
    wire::{self, MessageHead},
};

/// A batch of messages is closed when it is so long.
const BATCH_LEN: usize = 256 << 10;
/// Frames are put into one buffer until it is so long.
const JOIN_LEN: usize = 16 << 10;
/// Pieces in one write.
const PIECES_MAX: usize = 32;
/// Buffers kept for use again, and the longest of them.
const SPARE_MAX: usize = 4;
const SPARE_LEN_MAX: usize = 2 * BATCH_LEN;

/// What a buffer counts towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Messages of the core.
    Messages = 0,
    /// Calls and answers, and what the link itself says.
    Calls = 1,
}

/// Bounds of a box, in bytes of each class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) calls: usize,
}

#[derive(Debug)]
struct Buffer {
    class: Class,
    bytes: Vec<u8>,
}

/// What waits to be written to one connection.
#[derive(Debug)]
pub(super) struct Outbox {
    room: Room,
    sealed: VecDeque<Buffer>,
    /// How much of the first buffer is written.
    written: usize,
    /// The batch that messages are added to; empty if none.
    open: Vec<u8>,
    /// Bytes that wait, by class, `open` included.
    waiting: [usize; 2],
    /// Since when the socket takes nothing, while something waits.
    stuck_since: Option<Instant>,
    spare: Vec<Vec<u8>>,
    /// The open batch carries a part of a transfer.
    bulk: bool,
    packer: Packer,
    frames: u64,
}

/// Why something was not put into the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// Too much waits.
    Full,
    /// It is longer than a frame.
    TooLarge { size: usize, limit: usize },
    /// It cannot be encoded.
    Unencodable,
}

impl From<FrameError> for Rejected {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge { len, limit } => Self::TooLarge { size: len, limit },
            _ => Self::Unencodable,
        }
    }
}

/// Whether a body is a part of a transfer, or may be.
fn is_bulk(body: &Body) -> bool {
    use StrongMessage as S;
    match body {
        Body::Strong(_, message) => {
            matches!(message, S::Chunk { .. } | S::Start { .. } | S::Sealed { .. })
        }
        Body::Eventual(..) => true,
        _ => false,
    }
}

impl Outbox {
    pub(super) fn new(room: Room, compress_from: usize) -> Self {
        Self {
            room,
            sealed: VecDeque::new(),
            written: 0,
            open: Vec::new(),
            waiting: [0; 2],
            stuck_since: None,
            spare: Vec::new(),
            bulk: false,
            packer: Packer::new(compress_from),
            frames: 0,
        }
    }

    /// Adds a message to the open batch.
    pub(super) fn message(&mut self, message: &Message) -> Result<(), Rejected> {
        if self.waiting[Class::Messages as usize] >= self.room.messages {
            return Err(Rejected::Full);
        }
        let head = MessageHead::of(message);
        self.put_head(&head)?;
        for body in &message.bodies {
            if self.open.len() >= BATCH_LEN {
                self.seal_batch()?;
                self.put_head(&head)?;
            }
            self.grow_open(|open| wire::put_body(open, body))?;
            self.bulk |= is_bulk(body);
        }
        if self.open.len() >= BATCH_LEN {
            self.seal_batch()?;
        }
        Ok(())
    }

    fn put_head(&mut self, head: &MessageHead) -> Result<(), Rejected> {
        let first = self.open.is_empty();
        if first {
            self.open = self.spare.pop().unwrap_or_default();
            begin(&mut self.open);
            self.waiting[Class::Messages as usize] += HEAD_LEN;
        }
        self.grow_open(|open| wire::put_head(open, head, first))
    }

    fn grow_open(
        &mut self,
        put: impl FnOnce(&mut Vec<u8>) -> Result<(), Unwritable>,
    ) -> Result<(), Rejected> {
        let before = self.open.len();
        if put(&mut self.open).is_err() {
            self.open.truncate(before);
            return Err(Rejected::Unencodable);
        }
        self.waiting[Class::Messages as usize] += self.open.len() - before;
        Ok(())
    }

    fn seal_batch(&mut self) -> Result<(), Rejected> {
        if self.open.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.open);
        self.waiting[Class::Messages as usize] -= bytes.len();
        let label = Label { kind: FrameKind::Batch, detail: 0, number: 0 };
        let packer = std::mem::take(&mut self.bulk).then_some(&mut self.packer);
        seal(&mut bytes, 0, label, packer)?;
        self.frames += 1;
        self.push(Buffer { class: Class::Messages, bytes });
        Ok(())
    }

    /// Adds a frame whose body is `parts` one after the other.
    pub(super) fn frame(&mut self, label: Label, parts: &[&[u8]]) -> Result<(), Rejected> {
        if self.waiting[Class::Calls as usize] >= self.room.calls {
            return Err(Rejected::Full);
        }
        // What came before in time leaves before.
        self.seal_batch()?;
        let joined = self
            .sealed
            .pop_back_if(|last| last.class == Class::Calls && last.bytes.len() < JOIN_LEN)
            .map(|last| last.bytes);
        let mut bytes = joined.unwrap_or_else(|| self.spare.pop().unwrap_or_default());
        self.waiting[Class::Calls as usize] -= self.unwritten(&bytes);
        let start = begin(&mut bytes);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        let is_packed = label.kind == FrameKind::Call && label.detail == kind::READINGS;
        let sealed = seal(&mut bytes, start, label, (!is_packed).then_some(&mut self.packer));
        if !bytes.is_empty() {
            self.push(Buffer { class: Class::Calls, bytes });
        }
        self.frames += u64::from(sealed.is_ok());
        Ok(sealed?)
    }

    /// Bytes of what was taken from the back that count as waiting.
    fn unwritten(&self, bytes: &[u8]) -> usize {
        bytes.len() - if self.sealed.is_empty() { self.written.min(bytes.len()) } else { 0 }
    }

    fn push(&mut self, buffer: Buffer) {
        self.waiting[buffer.class as usize] += self.unwritten(&buffer.bytes);
        self.sealed.push_back(buffer);
    }

    /// Closes the batch and writes as much as the socket takes. Returns the bytes written.
    pub(super) fn write(&mut self, socket: &OwnedWriteHalf) -> io::Result<usize> {
        // Fails only for a batch that is longer than a frame, which is then gone.
        let _ = self.seal_batch();
        let mut total = 0;
        while !self.sealed.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            let mut len = 0;
            for (piece, buffer) in pieces.iter_mut().zip(&self.sealed) {
                let from = if count == 0 { self.written } else { 0 };
                *piece = IoSlice::new(&buffer.bytes[from..]);
                count += 1;
                len += piece.len();
            }
            match socket.try_write_vectored(&pieces[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.took(written);
                    self.stuck_since = None;
                    total += written;
                    if written < len {
                        // The socket is full; asking again would only tell so.
                        self.stuck_since = Some(Instant::now());
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck_since.get_or_insert_with(Instant::now);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn took(&mut self, mut bytes: usize) {
        while let Some(first) = self.sealed.front() {
            let left = first.bytes.len() - self.written;
            let class = first.class as usize;
            if bytes < left {
                self.written += bytes;
                self.waiting[class] -= bytes;
                return;
            }
            bytes -= left;
            self.waiting[class] -= left;
            self.written = 0;
            if let Some(Buffer { bytes: mut buffer, .. }) = self.sealed.pop_front()
                && self.spare.len() < SPARE_MAX
                && buffer.capacity() <= SPARE_LEN_MAX
            {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
    }

    /// Whether there is something to write, the open batch included.
    pub(super) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.open.is_empty()
    }

    /// Since when the socket takes nothing, while something waits for it.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.stuck_since
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().sum()
    }

    /// Frames sealed since the last time this was asked.
    pub(super) fn take_frames(&mut self) -> u64 {
        std::mem::take(&mut self.frames)
    }
}
