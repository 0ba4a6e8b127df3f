//! Values on the wire, plain or compressed.
//!
//! Both sides agree on LZ4 in hello; then either may send a value as an extension of type 1: its
//! plain length, four bytes big-endian, and one LZ4 block. Nodes keep values plain, so that every
//! front end reads the same bytes.

use super::wire::{Malformed, Reader, malformed, put_bin, put_extension};

/// The extension type of a compressed value.
pub(super) const EXTENSION_LZ4: i8 = 1;

/// Bytes of a value as they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// The value itself.
    Plain(&'a [u8]),
    /// One LZ4 block.
    Lz4 {
        /// Length of the value once inflated, as the sender claims it.
        len: u32,
        /// The block.
        block: &'a [u8],
    },
}

impl<'a> Value<'a> {
    #[inline]
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        match reader.extension()? {
            None => reader.bytes().map(Self::Plain),
            Some((EXTENSION_LZ4, bytes)) => match bytes.split_first_chunk() {
                Some((len, block)) => Ok(Self::Lz4 { len: u32::from_be_bytes(*len), block }),
                None => malformed("a compressed value without its length"),
            },
            Some(_) => malformed("a value of an unknown extension type"),
        }
    }

    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Plain(bytes) => put_bin(out, bytes),
            Self::Lz4 { len, block } => {
                put_extension(out, EXTENSION_LZ4, [&len.to_be_bytes(), block]);
            }
        }
    }

    /// Length of the value once inflated, in bytes.
    pub const fn len(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Lz4 { len, .. } => *len as usize,
        }
    }

    /// Whether the value has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a compressed value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// It would be longer than a value may be.
    #[error("the value inflates to {len} bytes, the limit is {limit}")]
    TooLarge {
        /// The claimed length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The block is damaged, or not as long as claimed.
    #[error("the compressed value is damaged")]
    Damaged,
}

/// Compresses `plain` behind what is in `scratch`. `None`, and `scratch` as before, when that
/// would save less than an eighth.
pub fn compress<'a>(plain: &[u8], scratch: &'a mut Vec<u8>) -> Option<Value<'a>> {
    let len = u32::try_from(plain.len()).ok()?;
    let start = scratch.len();
    scratch.resize(start + lz4_flex::block::get_maximum_output_size(plain.len()), 0);
    let written = lz4_flex::block::compress_into(plain, &mut scratch[start..]);
    match written {
        Ok(written) if written + written / 8 < plain.len() => {
            scratch.truncate(start + written);
            Some(Value::Lz4 { len, block: &scratch[start..] })
        }
        _ => {
            scratch.truncate(start);
            None
        }
    }
}

/// Inflates a block to `len` bytes behind what is in `out`. Allocates `len` bytes, so never more
/// than `limit`.
pub fn inflate(
    block: &[u8],
    len: usize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressError> {
    if len > limit {
        return Err(CompressError::TooLarge { len, limit });
    }
    let start = out.len();
    out.resize(start + len, 0);
    match lz4_flex::block::decompress_into(block, &mut out[start..]) {
        Ok(written) if written == len => Ok(()),
        _ => {
            out.truncate(start);
            Err(CompressError::Damaged)
        }
    }
}
