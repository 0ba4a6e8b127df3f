//! What one copy of a partition knows: for each key which write it has, and which are dead.
//!
//! The items lie in the store; here is what must be known to merge, to compare copies and to remember
//! deletes. Kept apart from the store because the store may drop an item by itself, and a copy must
//! then still know what it had.
//!
//! Invariants:
//! - the digest is that of the entries, tombstones included;
//! - each live entry with an end stands in `ends`, each dead one among the tombstones of its class;
//! - a key that is absent and whose floor is at or above a write has lost that write for good.
//!
//! Cost: two ordered-map steps per write, which is 1 to 2 microseconds when they miss the processor's
//! caches, and [`KEY_OVERHEAD_BYTES`] per key beside the key. This is the price of being able to compare
//! copies whatever the store dropped; a store that tells versions by bucket could make it smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::{Class, Digest, Floors, KeyHash};
use crate::effect::ItemKey;
use crate::ids::{CacheId, Version};
use crate::time::Mono;
use crate::tombstone::{Grave, Tombstones};
use crate::version::Write;

/// Bytes that knowing a key takes beside the key itself: measured over a million keys.
pub const KEY_OVERHEAD_BYTES: usize = 168;

/// Where a key stands in the order of the catalog: bucket first, so that a bucket is one range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The key's bucket.
    pub bucket: u8,
    /// The key.
    pub key: ItemKey,
}

impl Position {
    /// The position of a key.
    pub fn of(key: &ItemKey) -> Self {
        Self { bucket: KeyHash::of(key).bucket(), key: key.clone() }
    }

    /// At or before all keys of a bucket.
    fn first(bucket: u8) -> Self {
        Self { bucket, key: ItemKey { cache: CacheId(0), key: Bytes::new() } }
    }
}

/// Whether a key's latest write can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The item is in the store.
    Live {
        /// Its end.
        deadline_ms: Option<u64>,
    },
    /// Deleted, or its end has come: remembered so that nothing older comes back.
    Dead {
        /// Whose tombstones it is among.
        class: Class,
        /// Its place there.
        grave: Grave,
    },
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The greatest write seen.
    pub write: Write,
    /// What became of it.
    pub state: State,
}

impl Entry {
    /// Whether there is an item.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }
}

/// How an incoming write stands to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It wins.
    Newer,
    /// It is here.
    Same,
    /// Something newer is here.
    Older,
    /// Nothing is here and the floor is above it: it is dead.
    Dead,
}

/// The catalog of one copy of one partition.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: BTreeMap<Position, Entry>,
    digest: Digest,
    ends: BTreeSet<(u64, ItemKey)>,
    keep: Tombstones,
    evict: Tombstones,
    key_bytes: usize,
}

impl Catalog {
    /// What is known of a key.
    pub fn get(&self, key: &ItemKey) -> Option<&Entry> {
        self.entries.get(&Position::of(key))
    }

    /// The digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The floors of a key's bucket.
    pub fn floors(&self, key: &ItemKey) -> Floors {
        self.digest.floor(KeyHash::of(key).bucket())
    }

    /// How a write of a key stands to what is known.
    pub fn judge(&self, key: &ItemKey, class: Class, write: Write) -> Verdict {
        match self.get(key) {
            Some(entry) if write > entry.write => Verdict::Newer,
            Some(entry) if write == entry.write => Verdict::Same,
            Some(_) => Verdict::Older,
            None if write.version <= self.floors(key).of(class) => Verdict::Dead,
            None => Verdict::Newer,
        }
    }

    /// The key has an item by this write.
    pub fn put_live(&mut self, key: &ItemKey, write: Write, deadline_ms: Option<u64>) {
        let position = self.take(key);
        if let Some(deadline_ms) = deadline_ms {
            self.ends.insert((deadline_ms, position.key.clone()));
        }
        self.insert(position, Entry { write, state: State::Live { deadline_ms } });
    }

    /// The key's latest write is this one and there is no item: deleted or over.
    pub fn put_dead(&mut self, key: &ItemKey, class: Class, write: Write, since: Mono) {
        let position = self.take(key);
        let grave = self.tombstones_mut(class).bury(position.key.clone(), since);
        self.insert(position, Entry { write, state: State::Dead { class, grave } });
    }

    /// Forgets a key, but for the floor: nothing up to its write will come back. A write ahead of
    /// `reading`, this node's clock, must not raise a floor, which would refuse writes still to
    /// come: it becomes a tombstone, the youngest one. Returns whether the key is forgotten.
    pub fn sink(&mut self, key: &ItemKey, class: Class, reading: Version, now: Mono) -> bool {
        let position = Position::of(key);
        let Some(entry) = self.entries.get(&position).copied() else { return true };
        if entry.write.version > reading {
            self.put_dead(key, class, entry.write, now);
            return false;
        }
        self.remove(&position);
        self.digest.raise_floor(position.bucket, class, entry.write.version);
        true
    }

    /// Raises the floors of a bucket to those of a copy that it was compared with completely.
    pub fn adopt_floors(&mut self, bucket: u8, floors: Floors) {
        self.digest.raise_floor(bucket, Class::Keep, floors.keep);
        self.digest.raise_floor(bucket, Class::Evict, floors.evict);
    }

    /// Forgets a key without any trace: for keys of dropped caches, and for copies that are still
    /// being filled and so cannot claim to know a bucket.
    pub fn erase(&mut self, key: &ItemKey) {
        self.remove(&Position::of(key));
    }

    /// The end that comes first.
    pub fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|(deadline, _)| *deadline)
    }

    /// A key whose end has come by `clock_ms`.
    pub fn next_over(&self, clock_ms: u64) -> Option<ItemKey> {
        self.ends.first().filter(|(deadline, _)| *deadline <= clock_ms).map(|(_, key)| key.clone())
    }

    /// The tombstones of a class.
    pub fn tombstones(&self, class: Class) -> &Tombstones {
        match class {
            Class::Keep => &self.keep,
            Class::Evict => &self.evict,
        }
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Position, &Entry)> {
        self.entries.iter()
    }

    /// Entries of a bucket in order, behind `after` and up to `through`. Both come from peers: a
    /// range that ends before it begins is empty.
    pub fn bucket<'a>(
        &'a self,
        bucket: u8,
        after: Option<&Position>,
        through: Option<&Position>,
    ) -> impl Iterator<Item = (&'a Position, &'a Entry)> + use<'a> {
        let from = match after {
            Some(after) if after.bucket >= bucket => Excluded(after.clone()),
            _ => Included(Position::first(bucket)),
        };
        let to = match (through, bucket.checked_add(1)) {
            (Some(through), _) if through.bucket <= bucket => Included(through.clone()),
            (_, Some(next)) => Excluded(Position::first(next)),
            (_, None) => Unbounded,
        };
        let begin = match &from {
            Included(at) | Excluded(at) => Some(at),
            Unbounded => None,
        };
        let sound = match &to {
            Included(end) | Excluded(end) => begin.is_none_or(|begin| begin < end),
            Unbounded => true,
        };
        sound.then(|| self.entries.range((from, to))).into_iter().flatten()
    }

    /// Entries behind a position, in order.
    pub fn behind(&self, after: Option<&Position>) -> impl Iterator<Item = (&Position, &Entry)> {
        let from = after.map_or(Unbounded, |at| Excluded(at.clone()));
        self.entries.range((from, Unbounded))
    }

    /// Memory that all this takes, about.
    pub fn bytes(&self) -> usize {
        self.len() * KEY_OVERHEAD_BYTES + self.key_bytes
    }

    /// Keys known, dead ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a key out. The key in the position is one of its own bytes: what comes with a message
    /// would keep the whole message in memory.
    fn take(&mut self, key: &ItemKey) -> Position {
        let position = Position::of(key);
        if let Some((position, entry)) = self.entries.remove_entry(&position) {
            self.unlist(&position.key, entry);
            return position;
        }
        let key = ItemKey { cache: key.cache, key: Bytes::copy_from_slice(&key.key) };
        Position { bucket: position.bucket, key }
    }

    fn remove(&mut self, position: &Position) -> Option<Entry> {
        let entry = self.entries.remove(position)?;
        self.unlist(&position.key, entry);
        Some(entry)
    }

    fn unlist(&mut self, key: &ItemKey, entry: Entry) {
        self.key_bytes -= key.key.len();
        self.digest.remove(KeyHash::of(key), entry.write);
        match entry.state {
            State::Live { deadline_ms: Some(deadline_ms) } => {
                self.ends.remove(&(deadline_ms, key.clone()));
            }
            State::Live { deadline_ms: None } => {}
            State::Dead { class, grave } => {
                self.tombstones_mut(class).remove(grave);
            }
        }
    }

    fn insert(&mut self, position: Position, entry: Entry) {
        self.key_bytes += position.key.key.len();
        self.digest.add(KeyHash::of(&position.key), entry.write);
        self.entries.insert(position, entry);
    }

    fn tombstones_mut(&mut self, class: Class) -> &mut Tombstones {
        match class {
            Class::Keep => &mut self.keep,
            Class::Evict => &mut self.evict,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &[u8]) -> ItemKey {
        ItemKey { cache: CacheId(0), key: Bytes::copy_from_slice(name) }
    }

    fn value(version: u64) -> Write {
        Write { version: Version(version), deleted: false, check: version ^ 0xabc }
    }

    fn delete(version: u64) -> Write {
        Write::delete(Version(version))
    }

    #[test]
    fn a_dropped_tombstone_still_refuses_what_is_older_than_the_delete() {
        let mut catalog = Catalog::default();
        catalog.put_live(&key(b"k"), value(3), None);
        catalog.put_dead(&key(b"k"), Class::Keep, delete(5), Mono(0));
        assert_eq!(catalog.judge(&key(b"k"), Class::Keep, value(3)), Verdict::Older);

        assert!(catalog.sink(&key(b"k"), Class::Keep, Version(100), Mono(1)));
        assert!(catalog.is_empty());
        assert_eq!(catalog.judge(&key(b"k"), Class::Keep, value(3)), Verdict::Dead);
        assert_eq!(catalog.judge(&key(b"k"), Class::Keep, value(6)), Verdict::Newer);
    }

    #[test]
    fn a_tombstone_from_the_future_raises_no_floor_and_stays() {
        let mut catalog = Catalog::default();
        catalog.put_dead(&key(b"k"), Class::Keep, delete(500), Mono(0));
        assert!(!catalog.sink(&key(b"k"), Class::Keep, Version(100), Mono(9)));
        assert_eq!(
            catalog.tombstones(Class::Keep).oldest().map(|(.., since)| since),
            Some(Mono(9))
        );
        assert_eq!(catalog.floors(&key(b"k")), Floors::default());
        assert_eq!(catalog.judge(&key(b"k"), Class::Keep, value(400)), Verdict::Older);
    }

    #[test]
    fn what_evicting_caches_forget_does_not_touch_those_that_keep() {
        let mut catalog = Catalog::default();
        catalog.put_live(&key(b"k"), value(50), None);
        catalog.sink(&key(b"k"), Class::Evict, Version(100), Mono(0));
        assert_eq!(catalog.judge(&key(b"k"), Class::Evict, value(50)), Verdict::Dead);
        assert_eq!(catalog.judge(&key(b"k"), Class::Keep, value(50)), Verdict::Newer);
    }

    #[test]
    fn a_range_whose_ends_are_swapped_is_empty() {
        let mut catalog = Catalog::default();
        let mut name = 0u32;
        while catalog.len() < 3 {
            let key = key(&name.to_le_bytes());
            if Position::of(&key).bucket == 255 {
                catalog.put_live(&key, value(1), None);
            }
            name += 1;
        }
        let at: Vec<Position> = catalog.iter().map(|(at, _)| at.clone()).collect();
        let count = |after: Option<&Position>, through: Option<&Position>| {
            catalog.bucket(255, after, through).count()
        };
        assert_eq!(count(None, None), 3);
        assert_eq!(count(Some(&at[0]), None), 2);
        assert_eq!(count(Some(&at[0]), Some(&at[1])), 1);
        assert_eq!(count(Some(&at[0]), Some(&at[0])), 0);
        assert_eq!(count(Some(&at[1]), Some(&at[0])), 0);
        assert_eq!(catalog.bucket(3, Some(&at[1]), Some(&at[0])).count(), 0);
        assert_eq!(catalog.behind(Some(&at[1])).count(), 1);
    }

    proptest! {
        #[test]
        fn the_digest_ends_and_tombstones_are_those_of_the_entries(
            steps in proptest::collection::vec((0u8..12, 0u8..5, 1u64..50), 1..200)
        ) {
            let mut catalog = Catalog::default();
            for (name, what, number) in steps {
                let key = key(&[name]);
                match what {
                    0 => catalog.put_live(&key, value(number), None),
                    1 => catalog.put_live(&key, value(number), Some(number)),
                    2 => catalog.put_dead(&key, Class::Keep, delete(number), Mono(number)),
                    3 => catalog.erase(&key),
                    _ => { catalog.sink(&key, Class::Keep, Version(25), Mono(number)); }
                }
            }
            let mut digest = Digest::default();
            let (mut ends, mut dead) = (0, 0);
            for (position, entry) in catalog.iter() {
                digest.add(KeyHash::of(&position.key), entry.write);
                match entry.state {
                    State::Live { deadline_ms: Some(end) } => {
                        ends += 1;
                        prop_assert!(catalog.ends.contains(&(end, position.key.clone())));
                    }
                    State::Live { deadline_ms: None } => {}
                    State::Dead { .. } => dead += 1,
                }
            }
            prop_assert_eq!(digest.sums(), catalog.digest.sums());
            prop_assert_eq!(catalog.bytes(), catalog.len() * (KEY_OVERHEAD_BYTES + 1));
            prop_assert_eq!(ends, catalog.ends.len());
            prop_assert_eq!(dead, catalog.keep.len());
            let bytes: usize = dead * (crate::tombstone::TOMBSTONE_OVERHEAD_BYTES + 1);
            prop_assert_eq!(bytes, catalog.keep.bytes());
        }
    }
}
