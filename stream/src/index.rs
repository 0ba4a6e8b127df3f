//! From a sensor id's hash to its place in the sensor table.
//!
//! Open addressing over words of (32 bits of hash, place + 1): the ids themselves stay in the table,
//! so that a word can be fetched ahead and a batch looked up in passes. Nothing is ever removed; the
//! index is built anew when sensors are forgotten. At most half full.

/// A hash index. The caller compares ids.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    slots: Vec<u64>,
    len: usize,
}

impl Index {
    pub fn with_capacity(len: usize) -> Self {
        let slots = (len * 2).next_power_of_two().max(16);
        Self { slots: vec![0; slots], len: 0 }
    }

    /// Asks the processor for the word where the search for a hash begins.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        crate::prefetch::read(&self.slots, self.start(hash));
    }

    /// The place of the first word with the bits of this hash: nearly always the right one.
    #[inline]
    pub fn guess(&self, hash: u64) -> Option<u32> {
        let mut at = self.start(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if slot >> 32 == hash >> 32 {
                return Some(slot as u32 - 1);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// The place of the word with the bits of this hash for which `is_it` holds.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.start(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            let place = (slot as u32).wrapping_sub(1);
            if slot >> 32 == hash >> 32 && is_it(place) {
                return Some(place);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Adds a place that is not in it. `hash_of` is asked when the index grows.
    pub fn insert(&mut self, hash: u64, place: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.len + 1) * 2 > self.slots.len() {
            // Twice the slots: `with_capacity` takes places, half as many.
            let mut grown = Self::with_capacity(self.slots.len());
            for slot in self.slots.iter().filter(|slot| **slot != 0) {
                let place = *slot as u32 - 1;
                grown.put(hash_of(place), place);
            }
            *self = grown;
        }
        self.put(hash, place);
    }

    /// What so many more places add to its bytes.
    pub fn growth(&self, more: usize) -> usize {
        let mut slots = self.slots.len();
        while (self.len + more) * 2 > slots {
            slots *= 2;
        }
        (slots - self.slots.len()) * size_of::<u64>()
    }

    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    fn put(&mut self, hash: u64, place: u32) {
        let mut at = self.start(hash);
        while self.slots[at] != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = hash >> 32 << 32 | u64::from(place + 1);
        self.len += 1;
    }

    #[inline]
    fn start(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_after_growth_and_among_equal_hashes() {
        let hash = |place: u32| u64::from(place % 100).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut index = Index::with_capacity(0);
        for place in 0..1000 {
            index.insert(hash(place), place, hash);
        }
        for place in 0..1000 {
            assert_eq!(index.find(hash(place), |p| p == place), Some(place));
        }
        assert_eq!(index.find(hash(5), |p| p == 6), None);
        assert_eq!(index.guess(12345), None);
    }
}
