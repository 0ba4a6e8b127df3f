//! One frame: how it is made, and how it is found in a stream.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::pack::{self, Packer};
use crate::Parsed;

/// Bytes of a frame before its body.
pub const HEAD_LEN: usize = 24;

/// The longest body: the largest item there can be, with room for what stands around it.
pub const BODY_LEN_MAX: usize = (64 << 20) + (1 << 20);

/// The part of the head that the head check covers.
const CHECKED_LEN: usize = 12;
const FLAG_LZ4: u8 = 1;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Who dials, and whom.
    Hello = 1,
    /// Who was reached, and that it will listen.
    Welcome = 2,
    /// Why not.
    Refusal = 3,
    /// Messages of the replication core, as records.
    Batch = 4,
    /// A request; `number` names it, `detail` says which.
    Call = 5,
    /// The answer to the call of that number.
    Answer = 6,
    /// There is no answer to the call of that number; `detail` says why.
    Failure = 7,
    /// To be sent back as a pong of the same number.
    Ping = 8,
    /// The answer.
    Pong = 9,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refusal,
            4 => Self::Batch,
            5 => Self::Call,
            6 => Self::Answer,
            7 => Self::Failure,
            8 => Self::Ping,
            9 => Self::Pong,
            _ => return None,
        })
    }
}

/// What a frame's head says of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// What it is.
    pub kind: FrameKind,
    /// Which of its kind.
    pub detail: u8,
    /// Pairs a frame with its answer.
    pub number: u32,
}

/// A whole frame whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub label: Label,
    /// Whether `body` is compressed.
    pub packed: bool,
    /// The body as it was sent: the last bytes of the frame.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The body as it was meant; `scratch` is overwritten if it was compressed.
    pub fn plain<'b>(&self, scratch: &'b mut Vec<u8>) -> Result<&'b [u8], FrameError>
    where
        'a: 'b,
    {
        if !self.packed {
            return Ok(self.body);
        }
        pack::unpack(self.body, scratch)?;
        Ok(scratch)
    }
}

/// Begins a frame at the end of `out`; append the body, then [`seal`] with what this returned.
pub fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    start
}

/// Completes the frame begun at `start`, whose body is all behind its head, and compresses it where
/// `packer`, if there is one, finds that worth it. A body that is too long is taken away again.
pub fn seal(
    out: &mut Vec<u8>,
    start: usize,
    label: Label,
    packer: Option<&mut Packer>,
) -> Result<(), FrameError> {
    let body = start + HEAD_LEN;
    let len = out.len() - body;
    if len > BODY_LEN_MAX {
        out.truncate(start);
        return Err(FrameError::TooLarge { len, limit: BODY_LEN_MAX });
    }
    let packed = packer.is_some_and(|packer| packer.pack(out, body));
    // Not above BODY_LEN_MAX, so it fits.
    let len = (out.len() - body) as u32;
    let flags = if packed { FLAG_LZ4 } else { 0 };

    let (head, body) = out[start..].split_at_mut(HEAD_LEN);
    head[..4].copy_from_slice(&len.to_be_bytes());
    head[4..8].copy_from_slice(&[label.kind as u8, label.detail, flags, 0]);
    head[8..CHECKED_LEN].copy_from_slice(&label.number.to_be_bytes());
    let hash = xxh3_64(&head[..CHECKED_LEN]);
    head[CHECKED_LEN..16].copy_from_slice(&head_check(hash).to_be_bytes());
    head[16..].copy_from_slice(&xxh3_64_with_seed(body, hash).to_be_bytes());
    Ok(())
}

fn head_check(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Finds frames in a stream.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The longest body that is accepted, in bytes; at most [`BODY_LEN_MAX`] is ever sent.
    pub body_len_max: usize,
}

impl Frames {
    /// The frame that `input` begins with. After an error the stream cannot be read on.
    pub fn next<'a>(&self, input: &'a [u8]) -> Result<Parsed<Frame<'a>>, FrameError> {
        let Some((head, rest)) = input.split_first_chunk::<HEAD_LEN>() else {
            return Ok(Parsed::NeedMore { at_least: HEAD_LEN, consumed: 0 });
        };
        let [l0, l1, l2, l3, kind, detail, flags, zero, n0, n1, n2, n3, checks @ ..] = *head;
        let hash = xxh3_64(&head[..CHECKED_LEN]);
        let [h0, h1, h2, h3, body_check @ ..] = checks;
        if u32::from_be_bytes([h0, h1, h2, h3]) != head_check(hash) {
            return Err(FrameError::Head);
        }
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::Unknown)?;
        if flags & !FLAG_LZ4 != 0 || zero != 0 {
            return Err(FrameError::Unknown);
        }
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if len > self.body_len_max {
            return Err(FrameError::TooLarge { len, limit: self.body_len_max });
        }
        let Some(body) = rest.get(..len) else {
            return Ok(Parsed::NeedMore { at_least: HEAD_LEN + len, consumed: 0 });
        };
        if u64::from_be_bytes(body_check) != xxh3_64_with_seed(body, hash) {
            return Err(FrameError::Checksum);
        }
        let label = Label { kind, detail, number: u32::from_be_bytes([n0, n1, n2, n3]) };
        let frame = Frame { label, packed: flags & FLAG_LZ4 != 0, body };
        Ok(Parsed::Complete { message: frame, consumed: HEAD_LEN + len })
    }
}

/// Why a frame cannot be made, or a stream not be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The head was damaged on its way, or what came is no frame.
    #[error("a damaged frame head")]
    Head,
    /// A whole head of a kind, or with flags, that this version does not have.
    #[error("a frame of an unknown kind")]
    Unknown,
    /// Longer than is allowed.
    #[error("a frame body of {len} bytes, the limit is {limit}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The body was damaged on its way.
    #[error("a frame with a wrong checksum")]
    Checksum,
    /// The body is not what a compressor makes.
    #[error("a compressed frame that does not inflate to what it says")]
    Inflate,
}

impl FrameError {
    /// Whether bytes were changed on their way, as opposed to sent wrong.
    #[must_use]
    pub fn is_damage(self) -> bool {
        matches!(self, Self::Head | Self::Checksum)
    }
}
