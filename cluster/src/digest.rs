//! Bucket digests: how two copies of a partition find where they differ without sending keys.
//!
//! A partition is cut into [`BUCKETS`] buckets by key hash. Each keeps the sum of the hashes of its
//! `(key, write)` pairs, changed with every write in constant time; equal sums mean equal buckets (up
//! to 2^-64). Beside the sum stand the bucket's *floors*: this copy knows all there was in the bucket
//! up to that version, so a write at or below it that this copy does not hold is dead: deleted,
//! expired or evicted. Floors are what is left of tombstones that were dropped. Caches that evict
//! have a floor of their own, because theirs rises with every eviction: see [`Class`].
//!
//! ```text
//!   root equal?  -- yes --> same                          16 bytes
//!      | no
//!   256 sums and floors: which buckets differ             6 KiB
//!      | only those
//!   keys and writes, in key order, in bounded chunks      ~40 bytes an item
//!      | only what differs
//!   items
//! ```
//!
//! Cost: one hash of 24 bytes per change; 6 KiB per partition.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::effect::ItemKey;
use crate::ids::Version;
use crate::version::Write;

/// Buckets of a partition.
pub const BUCKETS: usize = 256;

/// What a cache does when memory is full, as far as floors are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// Nothing disappears but by delete or expiry. Its floors rise only with tombstones that were
    /// remembered for their whole life.
    Keep,
    /// A miss is always a legal answer, so its floors may rise at any time.
    Evict,
}

/// The floors of one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floors {
    /// Of caches that keep.
    pub keep: Version,
    /// Of caches that evict.
    pub evict: Version,
}

impl Floors {
    /// The floor that counts for a class. That of caches that keep counts for all, so that a cache
    /// may be told to evict from now on; the other way round its past evictions are not remembered.
    pub fn of(self, class: Class) -> Version {
        match class {
            Class::Keep => self.keep,
            Class::Evict => self.evict.max(self.keep),
        }
    }
}

/// What fits in a packet of every round: equal roots mean that the copies are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Hash of all sums.
    pub sums: u64,
    /// Hash of all floors.
    pub floors: u64,
}

/// The digest of one copy of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    sums: Box<[u64; BUCKETS]>,
    floors: Box<[Floors; BUCKETS]>,
    root: Root,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            sums: Box::new([0; BUCKETS]),
            floors: Box::new([Floors::default(); BUCKETS]),
            root: Root { sums: 0, floors: 0 },
        }
    }
}

impl Digest {
    /// A key now has this write.
    pub fn add(&mut self, key: KeyHash, write: Write) {
        self.change(key.bucket(), element(key, write));
    }

    /// A key no longer has this write.
    pub fn remove(&mut self, key: KeyHash, write: Write) {
        self.change(key.bucket(), element(key, write).wrapping_neg());
    }

    /// The version up to which this copy knows everything about the bucket, per class.
    pub fn floor(&self, bucket: u8) -> Floors {
        self.floors[usize::from(bucket)]
    }

    /// Raises a floor of a bucket; it never sinks.
    pub fn raise_floor(&mut self, bucket: u8, class: Class, to: Version) {
        let floors = &mut self.floors[usize::from(bucket)];
        let (floor, row) = match class {
            Class::Keep => (&mut floors.keep, 0),
            Class::Evict => (&mut floors.evict, 1),
        };
        if to > *floor {
            let (old, new) = (part(bucket, row, floor.0), part(bucket, row, to.0));
            self.root.floors = self.root.floors.wrapping_sub(old).wrapping_add(new);
            *floor = to;
        }
    }

    /// The root, to compare whole partitions.
    pub fn root(&self) -> Root {
        self.root
    }

    /// All sums, to send.
    pub fn sums(&self) -> &[u64; BUCKETS] {
        &self.sums
    }

    /// All floors, to send.
    pub fn floors(&self) -> &[Floors; BUCKETS] {
        &self.floors
    }

    fn change(&mut self, bucket: u8, by: u64) {
        let sum = &mut self.sums[usize::from(bucket)];
        let new = sum.wrapping_add(by);
        self.root.sums =
            self.root.sums.wrapping_sub(part(bucket, 2, *sum)).wrapping_add(part(bucket, 2, new));
        *sum = new;
    }
}

/// The hash of a key and its cache; not the one that chooses the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &ItemKey) -> Self {
        Self(xxh3_64_with_seed(&key.key, u64::from(key.cache.0) + 1))
    }

    /// The bucket the key falls into.
    pub fn bucket(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

fn element(key: KeyHash, write: Write) -> u64 {
    let mut bytes = [0; 25];
    bytes[..8].copy_from_slice(&key.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&write.version.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&write.check.to_le_bytes());
    bytes[24] = u8::from(write.deleted);
    xxh3_64(&bytes)
}

/// What a bucket's number adds to a root. Zero adds nothing, so that an empty digest needs no work.
fn part(bucket: u8, row: u8, number: u64) -> u64 {
    if number == 0 {
        return 0;
    }
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8] = bucket;
    bytes[9] = row;
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::CacheId;

    fn key(name: &'static [u8]) -> KeyHash {
        KeyHash::of(&ItemKey { cache: CacheId(0), key: name.into() })
    }

    fn value(version: u64, check: u64) -> Write {
        Write { version: Version(version), deleted: false, check }
    }

    #[test]
    fn removing_what_was_added_leaves_an_empty_digest() {
        let mut digest = Digest::default();
        let key = key(b"k");
        digest.add(key, value(1, 7));
        assert_ne!(digest.root(), Digest::default().root());
        digest.remove(key, value(1, 7));
        assert_eq!(digest, Digest::default());
    }

    #[test]
    fn a_delete_and_a_value_of_one_version_differ() {
        let key = key(b"k");
        let (mut left, mut right) = (Digest::default(), Digest::default());
        left.add(key, Write::delete(Version(1)));
        right.add(key, value(1, 0));
        assert_ne!(left.root().sums, right.root().sums);
    }

    #[test]
    fn a_floor_rises_and_never_sinks() {
        let mut digest = Digest::default();
        digest.raise_floor(7, Class::Keep, Version(10));
        digest.raise_floor(7, Class::Keep, Version(9));
        assert_eq!(digest.floor(7), Floors { keep: Version(10), evict: Version(0) });
        let mut same = Digest::default();
        same.raise_floor(7, Class::Keep, Version(3));
        same.raise_floor(7, Class::Keep, Version(10));
        assert_eq!(same.root(), digest.root());
        let mut other = Digest::default();
        other.raise_floor(7, Class::Evict, Version(10));
        assert_ne!(other.root(), digest.root());
    }

    proptest! {
        #[test]
        fn the_digest_depends_on_what_is_held_and_not_on_the_way_there(
            steps in proptest::collection::vec((0u8..20, 1u64..6), 1..80)
        ) {
            let hash = |key: u8| {
                KeyHash::of(&ItemKey { cache: CacheId(0), key: vec![key].into() })
            };
            let mut digest = Digest::default();
            let mut held = std::collections::BTreeMap::new();
            for (key, version) in steps {
                let write = value(version, u64::from(key));
                let hash = hash(key);
                if let Some(old) = held.insert(key, write) {
                    digest.remove(hash, old);
                }
                digest.add(hash, write);
            }
            let mut fresh = Digest::default();
            for (key, write) in &held {
                fresh.add(hash(*key), *write);
            }
            prop_assert_eq!(fresh.root(), digest.root());
            prop_assert_eq!(fresh, digest);
        }
    }
}
