//! The hash that places a key: xxh3, 64 bits.
//!
//! Keys of 17 to 32 bytes are hashed here, where the caller is: in the library that is a call, and a choice
//! between more lengths.
//!
//! Invariant: the hash is the library's, whatever the length.

/// The hash of a key.
#[inline(always)]
pub(crate) fn hash(key: &[u8]) -> u64 {
    match (key.len(), key.first_chunk(), key.last_chunk()) {
        (17..=32, Some(first), Some(last)) => hash_of_ends(key.len(), first, last),
        _ => xxhash_rust::xxh3::xxh3_64(key),
    }
}

/// The hash of a key of 17 to 32 bytes, by its first and last sixteen.
#[inline(always)]
fn hash_of_ends(len: usize, first: &[u8; 16], last: &[u8; 16]) -> u64 {
    let sum = (len as u64)
        .wrapping_mul(PRIME)
        .wrapping_add(folded(first, WITH_FIRST))
        .wrapping_add(folded(last, WITH_LAST));
    let sum = (sum ^ sum >> 37).wrapping_mul(FACTOR);
    sum ^ sum >> 32
}

/// The two halves of a product, one over the other.
#[inline(always)]
fn folded(bytes: &[u8; 16], with: [u64; 2]) -> u64 {
    let words = u128::from_le_bytes(*bytes);
    let product = u128::from(words as u64 ^ with[0]) * u128::from((words >> 64) as u64 ^ with[1]);
    product as u64 ^ (product >> 64) as u64
}

// What keys are mixed with, as xxh3 says: the start of its secret, and the factor at the end.
const WITH_FIRST: [u64; 2] = [0xbe4b_a423_396c_feb8, 0x1cad_21f7_2c81_017c];
const WITH_LAST: [u64; 2] = [0xdb97_9083_e96d_d4de, 0x1f67_b3b7_a4a4_4072];
const FACTOR: u64 = 0x1656_6791_9e37_79f9;
const PRIME: u64 = 0x9e37_79b1_85eb_ca87;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_xxh3_s_at_every_length() {
        let bytes: Vec<u8> = (0..600_u32).map(|n| ((n * n) >> 3) as u8).collect();
        for len in 0..300 {
            for start in [0, 1, 77, 300] {
                let key = &bytes[start..start + len];
                assert_eq!(hash(key), xxhash_rust::xxh3::xxh3_64(key), "{len} bytes");
            }
        }
    }
}
