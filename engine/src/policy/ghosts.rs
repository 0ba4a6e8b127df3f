//! What a policy remembers of the departed: a fingerprint of each of the last victims.
//!
//! ```text
//!   hash --> bucket: [ newest | ... 16 fingerprints of 16 bits ... | oldest ]
//! ```
//!
//! A bucket is a queue by position: a new fingerprint pushes the others one place on and the
//! oldest out. So a place tells an age, without a clock: place `p` of 16 is about the `p`th
//! sixteenth of all that is remembered. No time to store, none to sweep.
//!
//! The table follows the number of residents. A table of another size starts empty, so the old
//! one is freed before the new one is taken and memory has no spike: while a store fills there
//! is nothing to lose, and later the history is back after one turnover.
//!
//! Cost: 2 bytes for each victim remembered; one bucket of 32 bytes for each question, and no
//! allocation but when residents grew by an eighth. A stranger is taken for a ghost with a
//! chance of at most 16 in 65536.

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Ghosts {
    buckets: Vec<Bucket>,
    /// Victims to remember for each 16 residents.
    per_sixteen: usize,
    /// Residents that the table is made for.
    residents: usize,
}

impl Ghosts {
    /// Remembers about `per_sixteen` victims for each 16 residents.
    pub(super) const fn new(per_sixteen: usize) -> Self {
        Self { buckets: Vec::new(), per_sixteen, residents: 0 }
    }

    /// Makes the table fit, unless it is near to it.
    #[inline]
    pub(super) fn fit(&mut self, residents: usize) {
        if residents > self.residents || residents < self.residents / 4 {
            self.resize(residents);
        }
    }

    #[cold]
    fn resize(&mut self, residents: usize) {
        self.residents = residents + residents / 8 + Self::RESIDENTS_MIN;
        self.buckets = Vec::new();
        self.buckets = vec![[0; WAYS]; (self.residents * self.per_sixteen).div_ceil(16 * WAYS)];
    }

    /// Remembers a victim.
    pub(super) fn remember(&mut self, hash: u64) {
        let Place { bucket, fingerprint } = self.place(hash);
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            bucket.copy_within(..WAYS - 1, 1);
            bucket[0] = fingerprint;
        }
    }

    /// How many of its bucket came after it, if `hash` is remembered; forgets it.
    pub(super) fn recall(&mut self, hash: u64) -> Option<usize> {
        let Place { bucket, fingerprint } = self.place(hash);
        let bucket = self.buckets.get_mut(bucket)?;
        let at = bucket.iter().position(|&known| known == fingerprint)?;
        bucket.copy_within(at + 1.., at);
        bucket[WAYS - 1] = 0;
        Some(at)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    fn place(&self, hash: u64) -> Place {
        // Mixed again, since the bits that chose the shard are the same in all keys here.
        let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Place {
            bucket: (((mixed >> 32) * self.buckets.len() as u64) >> 32) as usize,
            fingerprint: ((mixed >> 8) as u16).max(1),
        }
    }

    const RESIDENTS_MIN: usize = 16;
}

/// Fingerprints, the newest first; 0 is an empty place, all such are at the end.
type Bucket = [u16; WAYS];

struct Place {
    bucket: usize,
    fingerprint: u16,
}

/// Places in a bucket.
pub(super) const WAYS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::simulation::hash;

    /// One bucket, so that all meet.
    fn bucket() -> Ghosts {
        let mut ghosts = Ghosts::new(8);
        ghosts.fit(1);
        assert_eq!(ghosts.buckets.len(), 1);
        ghosts
    }

    #[test]
    fn a_ghost_tells_how_many_came_after_it_and_is_forgotten_when_recalled() {
        let mut ghosts = bucket();
        (0..5).for_each(|key| ghosts.remember(hash(key)));

        assert_eq!(ghosts.recall(hash(1)), Some(3));
        assert_eq!(ghosts.recall(hash(1)), None);
        assert_eq!(ghosts.recall(hash(0)), Some(3));
        assert_eq!(ghosts.recall(hash(4)), Some(0));
        assert_eq!(ghosts.recall(hash(77)), None);
    }

    #[test]
    fn the_oldest_ghost_makes_room_for_the_newest() {
        let mut ghosts = bucket();
        (0..17).for_each(|key| ghosts.remember(hash(key)));

        assert_eq!(ghosts.recall(hash(0)), None);
        assert_eq!(ghosts.recall(hash(1)), Some(15));
        assert_eq!(ghosts.recall(hash(16)), Some(0));
    }

    #[test]
    fn keys_of_one_shard_use_all_buckets() {
        let mut ghosts = Ghosts::new(16);
        ghosts.fit(10_000);
        // The shard is chosen by these bits.
        const SHARD: u64 = 0xff << 48;
        (0..10_000).for_each(|key| ghosts.remember(hash(key) & !SHARD | 5 << 48));

        let empty = ghosts.buckets.iter().filter(|bucket| bucket[0] == 0).count();
        assert!(empty * 100 < ghosts.buckets.len(), "{empty} of {}", ghosts.buckets.len());
    }
}
