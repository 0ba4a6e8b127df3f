//! Binary keys: base64 on the wire, bytes in the store.
//!
//! A decoded key is not in the receive buffer, so it needs memory that lives as long as the batch.
//! Decoding in place would need the buffer exclusively while earlier ops of the batch borrow from
//! it, and would spoil a request that is parsed again when the rest of its value has come; a
//! buffer inside each op would triple the size of all for the sake of few. So the caller lends a
//! [`KeyScratch`], one per worker: only base64 keys touch it.

use std::cell::{Cell, OnceCell};

use crate::memcached::KEY_LEN_MAX;

/// Room for the decoded keys of one batch.
pub struct KeyScratch {
    slots: Box<[OnceCell<DecodedKey>]>,
    used: Cell<usize>,
}

impl KeyScratch {
    /// Room for `keys` decoded keys, 192 bytes each: as many as a batch has ops.
    pub fn new(keys: usize) -> Self {
        Self { slots: (0..keys.max(1)).map(|_| OnceCell::new()).collect(), used: Cell::new(0) }
    }

    /// Forgets all keys; no op may borrow from them any more. Costs what was used.
    pub fn clear(&mut self) {
        for slot in &mut self.slots[..self.used.get()] {
            slot.take();
        }
        self.used.set(0);
    }

    /// Decodes a key that [`is_valid`]. `None` when there is no room.
    pub(super) fn decode(&self, encoded: &[u8]) -> Option<&[u8]> {
        let index = self.used.get();
        let key = self.slots.get(index)?.get_or_init(|| DecodedKey::decode(encoded));
        self.used.set(index + 1);
        Some(&key.bytes[..usize::from(key.len)])
    }
}

impl std::fmt::Debug for KeyScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyScratch")
            .field("used", &self.used.get())
            .field("capacity", &self.slots.len())
            .finish()
    }
}

/// Whether `encoded` is base64 of at least one byte, padded, and no longer than a key may be.
pub(super) fn is_valid(encoded: &[u8]) -> bool {
    if encoded.is_empty() || encoded.len() > KEY_LEN_MAX || !encoded.len().is_multiple_of(4) {
        return false;
    }
    let digits = encoded.strip_suffix(b"==").or(encoded.strip_suffix(b"=")).unwrap_or(encoded);
    digits.iter().all(|&byte| DIGITS[usize::from(byte)] != NO_DIGIT)
}

struct DecodedKey {
    len: u8,
    bytes: [u8; DECODED_LEN_MAX],
}

impl DecodedKey {
    fn decode(encoded: &[u8]) -> Self {
        let mut key = Self { len: 0, bytes: [0; DECODED_LEN_MAX] };
        let mut len = 0;
        for (quad, bytes) in encoded.chunks_exact(4).zip(key.bytes.chunks_exact_mut(3)) {
            // Padding reads as zero bits; the bytes it stands for are not counted below.
            let bits = quad
                .iter()
                .fold(0u32, |bits, &byte| bits << 6 | u32::from(DIGITS[usize::from(byte)] & 0x3f));
            bytes.copy_from_slice(&bits.to_be_bytes()[1..]);
            len += 3;
        }
        let padding = encoded.iter().rev().take_while(|&&byte| byte == b'=').count();
        key.len = (len - padding.min(len)) as u8;
        key
    }
}

/// A key of full length is 248 digits (a multiple of four) that stand for 186 bytes.
const DECODED_LEN_MAX: usize = KEY_LEN_MAX / 4 * 3;
const _: () = assert!(DECODED_LEN_MAX <= u8::MAX as usize);

const NO_DIGIT: u8 = 0x80;

/// The value of each base64 digit.
static DIGITS: [u8; 256] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < alphabet.len() {
        digits[alphabet[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoded: &[u8]) -> Option<Vec<u8>> {
        is_valid(encoded)
            .then(|| DecodedKey::decode(encoded))
            .map(|key| key.bytes[..usize::from(key.len)].to_vec())
    }

    #[test]
    fn base64_decodes_to_the_bytes_it_stands_for() {
        assert_eq!(decoded(b"44OG44K544OI").as_deref(), Some("テスト".as_bytes()));
        assert_eq!(decoded(b"Zg==").as_deref(), Some(&b"f"[..]));
        assert_eq!(decoded(b"Zm8=").as_deref(), Some(&b"fo"[..]));
        assert_eq!(decoded(b"AAECAw==").as_deref(), Some(&[0, 1, 2, 3][..]));
        assert_eq!(decoded(b"//79").as_deref(), Some(&[255, 254, 253][..]));
        assert_eq!(decoded(&[b'/'; 248]).as_deref(), Some(&[255; 186][..]));
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for wrong in [
            &b""[..],
            b"=",
            b"====",
            b"A===",
            b"Zg=",
            b"Zg",
            b"Zg==Zg==",
            b"Z_8=",
            b"Zm 8",
            b"Z\xff8=",
        ] {
            assert_eq!(decoded(wrong), None, "{wrong:?}");
        }
        assert_eq!(decoded(&[b'A'; 252]), None);
    }

    #[test]
    fn the_scratch_holds_as_many_keys_as_it_was_made_for_and_can_be_cleared() {
        let mut scratch = KeyScratch::new(2);
        let first = scratch.decode(b"Zg==");
        let second = scratch.decode(b"Zm8=");
        assert_eq!((first, second), (Some(&b"f"[..]), Some(&b"fo"[..])));
        assert_eq!(scratch.decode(b"Zm9v"), None);

        scratch.clear();
        assert_eq!(scratch.decode(b"Zm9v"), Some(&b"foo"[..]));
    }
}
