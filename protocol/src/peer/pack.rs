//! Bodies made smaller where that pays.
//!
//! Small bodies go as they are: a link carries them for less than the compressor asks. So do very
//! large ones, because whoever writes does nothing else meanwhile.

use super::frame::FrameError;

/// The longest body that is compressed, and so the most that a frame can inflate to.
pub const INFLATED_LEN_MAX: usize = 1 << 20;

/// What stands before a compressed block: the length of the plain body.
const LEN_LEN: usize = 4;

/// Bodies that are sent plain after one that could not be made smaller: values that are already
/// compressed come in runs.
const SKIP_AFTER_MISS: u32 = 15;

/// LZ4 cannot do better than this, so a claim beyond it is a lie.
const RATIO_MAX: usize = 255;

/// Compresses bodies, with memory of its own for it.
#[derive(Debug)]
pub struct Packer {
    from: usize,
    scratch: Vec<u8>,
    skip: u32,
}

impl Packer {
    /// The shortest body worth the attempt, by default.
    pub const FROM_DEFAULT: usize = 16 << 10;

    /// Compresses bodies from `from` bytes on; none if that is `usize::MAX`.
    #[must_use]
    pub fn new(from: usize) -> Self {
        Self { from, scratch: Vec::new(), skip: 0 }
    }

    /// Replaces the bytes of `out` behind `start` by a shorter form, if that saves an eighth.
    pub(super) fn pack(&mut self, out: &mut Vec<u8>, start: usize) -> bool {
        let plain = &out[start..];
        if plain.len() < self.from || plain.len() > INFLATED_LEN_MAX {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.scratch.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
        let block_len = match lz4_flex::block::compress_into(plain, &mut self.scratch) {
            Ok(len) if len + len / 8 + LEN_LEN < plain.len() => len,
            _ => {
                self.skip = SKIP_AFTER_MISS;
                return false;
            }
        };
        // Not above INFLATED_LEN_MAX, so it fits.
        let plain_len = plain.len() as u32;
        out.truncate(start);
        out.extend_from_slice(&plain_len.to_be_bytes());
        out.extend_from_slice(&self.scratch[..block_len]);
        true
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self::new(Self::FROM_DEFAULT)
    }
}

/// Writes the plain form of a packed body to `scratch`.
pub(super) fn unpack(packed: &[u8], scratch: &mut Vec<u8>) -> Result<(), FrameError> {
    let (len, block) = packed.split_first_chunk::<LEN_LEN>().ok_or(FrameError::Inflate)?;
    let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| FrameError::Inflate)?;
    if len > INFLATED_LEN_MAX || len > block.len().saturating_mul(RATIO_MAX) {
        return Err(FrameError::Inflate);
    }
    scratch.clear();
    scratch.resize(len, 0);
    match lz4_flex::block::decompress_into(block, scratch) {
        Ok(written) if written == len => Ok(()),
        _ => Err(FrameError::Inflate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_smaller_goes_plain_and_so_does_what_follows_it() {
        let mut seed = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(32 << 10)
        .collect();
        let mut packer = Packer::default();
        let mut out = noise.clone();
        assert!(!packer.pack(&mut out, 0));
        assert_eq!(out, noise);

        for round in 0..=SKIP_AFTER_MISS {
            let mut zeros = vec![0; 32 << 10];
            assert_eq!(packer.pack(&mut zeros, 0), round == SKIP_AFTER_MISS);
        }
    }

    #[test]
    fn a_claimed_length_is_judged_before_it_is_allocated() {
        let mut scratch = Vec::new();
        for claim in [u32::MAX, INFLATED_LEN_MAX as u32 + 1, 4 * 255 + 1] {
            let mut packed = claim.to_be_bytes().to_vec();
            packed.extend_from_slice(&[0; 4]);
            assert_eq!(unpack(&packed, &mut scratch), Err(FrameError::Inflate));
            assert_eq!(scratch.capacity(), 0);
        }
    }
}
