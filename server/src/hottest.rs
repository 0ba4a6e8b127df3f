//! The keys that are asked for most.
//!
//! A worker looks at one operation in some hundred and counts its key in a sketch of fixed size
//! (space-saving: a key that is not in it takes the place of the least one, and its count). A key
//! that makes up more than a hundredth of the operations is surely in it, and counts are too high
//! by at most the least. Counts are halved now and then, so that they are about the last seconds.
//!
//! Cost: a subtraction for each batch; for the operation looked at, a pass over a kilobyte.

use std::collections::BTreeMap;

/// Keys in a sketch.
pub(crate) const ENTRIES_MAX: usize = 128;

/// Longer keys are not looked at: their bytes would be copied.
const KEY_LEN_MAX: usize = 256;

/// Operations between two that are looked at: half as many to one and a half times as many, so
/// that no pattern of requests goes in step with the looking.
pub(crate) const STRIDE: u64 = 128;

/// Counts are halved so often.
const HALF_LIFE_MS: u64 = 10_000;

/// Chooses the operations to look at. One for each worker.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// Operations still to pass by.
    left: u32,
    state: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { left: STRIDE as u32, state: 0x9E37_79B9_7F4A_7C15 }
    }
}

impl Sampler {
    /// Of a batch of `len` operations, the one to look at, if any.
    #[inline]
    pub(crate) fn pick(&mut self, len: usize) -> Option<usize> {
        let left = self.left as usize;
        if len <= left {
            self.left = (left - len) as u32;
            return None;
        }
        // The rest of the batch is passed by: batches are shorter than strides.
        self.left = self.stride();
        Some(left)
    }

    #[cold]
    fn stride(&mut self) -> u32 {
        // Xorshift64.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (STRIDE / 2 + self.state % STRIDE) as u32
    }
}

#[derive(Clone, Debug)]
struct Entry {
    cache: u32,
    key: Box<[u8]>,
    count: u64,
}

/// The sketch of one worker.
#[derive(Debug, Default)]
pub(crate) struct Hottest {
    /// Hashes of the entries, in their order: what a lookup goes through.
    hashes: Vec<u64>,
    entries: Vec<Entry>,
    aged_ms: u64,
}

impl Hottest {
    /// Counts an operation on a key.
    pub(crate) fn count(&mut self, cache: u32, key: &[u8], hash: u64) {
        if key.len() > KEY_LEN_MAX {
            return;
        }
        let mut same = self.hashes.iter().zip(&mut self.entries);
        let same = same
            .find(|(known, entry)| **known == hash && entry.cache == cache && *entry.key == *key);
        if let Some((_, entry)) = same {
            entry.count += 1;
            return;
        }
        if self.entries.len() < ENTRIES_MAX {
            self.hashes.push(hash);
            self.entries.push(Entry { cache, key: key.into(), count: 1 });
            return;
        }
        let least = (0..self.entries.len()).min_by_key(|&place| self.entries[place].count);
        if let Some(place) = least {
            self.hashes[place] = hash;
            let count = self.entries[place].count + 1;
            self.entries[place] = Entry { cache, key: key.into(), count };
        }
    }

    /// Lets counts fade with time. Call it every second or so.
    pub(crate) fn age(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.aged_ms) < HALF_LIFE_MS {
            return;
        }
        self.aged_ms = now_ms;
        self.entries.iter_mut().for_each(|entry| entry.count /= 2);
        let mut keep = self.entries.iter().map(|entry| entry.count > 0);
        self.hashes.retain(|_| keep.next().unwrap_or(false));
        self.entries.retain(|entry| entry.count > 0);
    }
}

/// Operations per second that a count stands for: counts are about the time between two halvings
/// of them, and half a time more.
pub(crate) fn per_second(count: u64) -> f64 {
    (count * STRIDE) as f64 * 1_000.0 / (1.5 * HALF_LIFE_MS as f64)
}

/// The hottest keys over several sketches, hottest first: cache, key and count.
pub(crate) fn merge<'a>(
    sketches: impl Iterator<Item = &'a Hottest>,
    most: usize,
) -> Vec<(u32, Box<[u8]>, u64)> {
    let mut counts: BTreeMap<(u32, &[u8]), u64> = BTreeMap::new();
    for entry in sketches.flat_map(|sketch| &sketch.entries) {
        *counts.entry((entry.cache, &entry.key)).or_default() += entry.count;
    }
    let mut all: Vec<_> =
        counts.into_iter().map(|((cache, key), count)| (cache, key.into(), count)).collect();
    all.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
    all.truncate(most);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_key_is_found_among_many_that_come_once() {
        let mut sketch = Hottest::default();
        for number in 0..100_000_u64 {
            if number % 20 == 0 {
                sketch.count(1, b"hot", 7);
            }
            if number % 50 == 0 {
                sketch.count(2, b"hot", 7);
            }
            sketch.count(1, &number.to_be_bytes(), number.wrapping_mul(0x9E37_79B9));
        }
        let found = merge([&sketch].into_iter(), 2);
        assert_eq!((found[0].0, &*found[0].1), (1, &b"hot"[..]));
        assert_eq!((found[1].0, &*found[1].1), (2, &b"hot"[..]));
        assert!(found[0].2 >= 5_000 && found[0].2 < 7_000, "{found:?}");
    }

    #[test]
    fn what_was_hot_long_ago_fades() {
        let mut sketch = Hottest::default();
        (0..1_000).for_each(|_| sketch.count(1, b"old", 1));
        for minute in 1..=20 {
            sketch.age(minute * 60_000);
        }
        sketch.count(1, b"new", 2);
        let found = merge([&sketch].into_iter(), 10);
        assert_eq!(found, [(1, b"new"[..].into(), 1)]);
    }

    #[test]
    fn one_in_a_stride_of_operations_is_looked_at_however_they_are_batched() {
        for len in [1, 7, 16, 64] {
            let mut sampler = Sampler::default();
            let batches = 1_000_000 / len;
            let picked = (0..batches).filter_map(|_| sampler.pick(len));
            let picked: Vec<usize> = picked.collect();
            assert!(picked.iter().all(|place| *place < len));
            let expected = 1_000_000 / STRIDE as usize;
            let (low, high) = (expected * 7 / 10, expected * 13 / 10);
            assert!((low..high).contains(&picked.len()), "{len}: {}", picked.len());
        }
    }
}
