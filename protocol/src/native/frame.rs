//! Frames in a stream of bytes.
//!
//! A frame is the length of its body, four bytes big-endian, and the body. Nothing is set aside
//! for a length that is only claimed: the caller is told how long its buffer must become, and the
//! limit is checked before that.

use crate::Parsed;

/// Bytes before a body.
pub const FRAME_HEAD_LEN: usize = 4;

/// Why a stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame is longer than agreed.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// The claimed length of the body.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A frame without a body.
    #[error("a frame without a body")]
    Empty,
}

/// Cuts a stream into frames.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The longest body accepted, in bytes.
    pub body_len_max: usize,
}

impl Frames {
    /// The first frame of `input`: its body. Costs a comparison.
    #[inline]
    pub fn next<'a>(&self, input: &'a [u8]) -> Result<Parsed<&'a [u8]>, FrameError> {
        let Some((head, rest)) = input.split_first_chunk::<FRAME_HEAD_LEN>() else {
            return Ok(Parsed::NeedMore { at_least: FRAME_HEAD_LEN, consumed: 0 });
        };
        let len = u32::from_be_bytes(*head) as usize;
        if len > self.body_len_max {
            return Err(FrameError::TooLarge { len, limit: self.body_len_max });
        }
        if len == 0 {
            return Err(FrameError::Empty);
        }
        match rest.get(..len) {
            Some(body) => Ok(Parsed::Complete { message: body, consumed: FRAME_HEAD_LEN + len }),
            None => Ok(Parsed::NeedMore { at_least: FRAME_HEAD_LEN + len, consumed: 0 }),
        }
    }
}

/// Makes room for the head of a frame. Give what this returns to [`end_frame`].
#[inline]
#[must_use]
pub fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD_LEN]);
    start
}

/// Ends the frame begun at `start`: everything behind its head is its body.
#[inline]
pub fn end_frame(out: &mut [u8], start: usize) {
    end_frame_before(out, start, 0);
}

/// Ends a frame whose last `missing` bytes are sent from elsewhere, behind `out`.
#[inline]
pub fn end_frame_before(out: &mut [u8], start: usize, missing: usize) {
    let len = out.len() - start - FRAME_HEAD_LEN + missing;
    debug_assert!(u32::try_from(len).is_ok(), "bodies are bounded far below 4 GiB");
    out[start..start + FRAME_HEAD_LEN].copy_from_slice(&(len as u32).to_be_bytes());
}
