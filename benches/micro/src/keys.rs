//! Keys, values, and the orders in which keys are asked for.
//!
//! Requests are drawn before anything is timed and lie one behind the other, as they would in a
//! connection's buffer: reading the next key costs no cache miss, finding its item may.

use rand::SeedableRng;
use rand::distr::{Distribution, Uniform};
use rand::seq::SliceRandom;
use rand_distr::Zipf;
use rand_xoshiro::Xoshiro256PlusPlus;

/// A key.
pub type Key = [u8; KEY_LEN];

/// Bytes of a key.
pub const KEY_LEN: usize = 30;

/// Bytes of a value.
pub const VALUE_LEN: usize = 100;

/// The key with this number.
#[must_use]
pub fn key(number: u32) -> Key {
    // An odd factor makes the digits differ all over, one to one.
    let spread = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = *b"profile:....................:v";
    let mut rest = spread;
    for digit in key[8..28].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// The value of a key: begins with the key, so that a mix-up shows.
#[must_use]
pub fn value(key: &Key) -> [u8; VALUE_LEN] {
    let mut value = [b'.'; VALUE_LEN];
    value[..KEY_LEN].copy_from_slice(key);
    value
}

/// Keys in the order in which they are asked for. Begins anew at its end.
#[derive(Debug)]
pub struct Stream {
    keys: Vec<Key>,
}

impl Stream {
    /// `len` draws, each of `items` keys as likely as the others.
    ///
    /// # Panics
    /// Without items, or without draws.
    #[must_use]
    pub fn uniform(items: u32, len: usize) -> Self {
        assert!(items > 0 && len > 0, "something to draw");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let law = Uniform::new(0, items).expect("there are items");
        Self { keys: (0..len).map(|_| key(law.sample(&mut random))).collect() }
    }

    /// `len` draws by Zipf's law with exponent 0.99. Which keys are popular has nothing to do with
    /// the order of their numbers, so popular items are no neighbours in memory.
    ///
    /// # Panics
    /// Without items, or without draws.
    #[must_use]
    pub fn zipf(items: u32, len: usize) -> Self {
        assert!(items > 0 && len > 0, "something to draw");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut numbers: Vec<u32> = (0..items).collect();
        numbers.shuffle(&mut random);
        let law = Zipf::new(f64::from(items), 0.99).expect("there are items");
        let rank = |random: &mut _| (law.sample(random) as usize - 1).min(numbers.len() - 1);
        Self { keys: (0..len).map(|_| key(numbers[rank(&mut random)])).collect() }
    }

    /// `len` keys from place `start` on, in pieces that end where the stream does.
    pub fn pieces(&self, start: usize, len: usize) -> impl Iterator<Item = &[Key]> {
        let mut start = start % self.keys.len();
        let mut left = len;
        std::iter::from_fn(move || {
            let piece = &self.keys[start..self.keys.len().min(start + left)];
            left -= piece.len();
            start = 0;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Draws until the stream begins anew.
    #[must_use]
    pub fn period(&self) -> usize {
        self.keys.len()
    }
}

const SEED: u64 = 0x6b69_6c6e;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn keys_of_different_numbers_differ() {
        let keys: HashSet<Key> = (0..100_000).map(key).collect();
        assert_eq!(keys.len(), 100_000);
    }

    #[test]
    fn pieces_go_on_at_the_beginning_when_the_stream_ends() {
        let stream = Stream { keys: (0..5).map(key).collect() };
        let taken: Vec<Key> = stream.pieces(8, 9).flatten().copied().collect();
        assert_eq!(taken, [3, 4, 0, 1, 2, 3, 4, 0, 1].map(key));
    }

    #[test]
    fn the_most_popular_key_of_a_zipf_stream_takes_the_part_that_the_law_gives_it() {
        let (items, len) = (1000, 200_000);
        let mut counts: HashMap<Key, usize> = HashMap::new();
        for key in Stream::zipf(items, len).pieces(0, len).flatten() {
            *counts.entry(*key).or_default() += 1;
        }
        let most = counts.into_values().max().unwrap() as f64 / len as f64;
        let sum: f64 = (1..=items).map(|rank| f64::from(rank).powf(-0.99)).sum();
        assert!((most * sum - 1.0).abs() < 0.03, "{most} of the draws, law says {}", 1.0 / sum);
    }

    #[test]
    fn a_uniform_stream_asks_for_nearly_all_keys() {
        let len = 100_000;
        let keys: HashSet<Key> =
            Stream::uniform(10_000, len).pieces(0, len).flatten().copied().collect();
        assert!(keys.len() > 9_980, "{}", keys.len());
    }
}
