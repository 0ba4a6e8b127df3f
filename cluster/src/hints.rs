//! Writes kept for owners that are away.
//!
//! When a node finds none of a partition's owners, it stands in: it stamps the write, keeps it here
//! and hands it to the first owner that answers. A hint is not a copy: it is bounded in bytes and in
//! time, it lies in this one memory, and a write that does not fit is refused. The life of a hint is
//! shorter than that of a tombstone, so that a write kept here is not taken for one that was deleted.
//!
//! Cost: an ordered-map step per write; nothing while all owners can be reached.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::effect::ItemKey;
use crate::eventual::message::{Content, Record};
use crate::ids::Place;
use crate::time::Mono;
use crate::version::Write;

/// What a node keeps for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HintConfig {
    /// How long a write is kept for an owner that does not come back. Must be below the life of
    /// tombstones.
    pub life_ms: u64,
    /// Bytes kept for all owners together; a write that does not fit is refused.
    pub bytes_max: usize,
    /// How long an owner may take to confirm a batch before another one is tried.
    pub retry_ms: u64,
    /// Hints in a batch.
    pub batch_items: usize,
    /// Bytes in a batch, but at least one hint.
    pub batch_bytes: usize,
}

impl Default for HintConfig {
    fn default() -> Self {
        Self {
            life_ms: 10 * 60 * 1_000,
            bytes_max: 16 << 20,
            retry_ms: 500,
            batch_items: 256,
            batch_bytes: 64 << 10,
        }
    }
}

/// There is no room for the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hints kept for absent owners fill their bound")]
pub struct Full;

struct Hint {
    record: Record,
    age: u64,
}

/// The hints of one node.
#[derive(Default)]
pub struct Hints {
    config: HintConfig,
    places: BTreeMap<Place, BTreeMap<ItemKey, Hint>>,
    ages: BTreeMap<u64, (Mono, Place, ItemKey)>,
    next: u64,
    bytes: usize,
    expired: u64,
}

impl Hints {
    /// None yet.
    pub fn new(config: HintConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Keeps a write. Of two for one key the greater stays.
    pub fn keep(&mut self, place: Place, record: Record, now: Mono) -> Result<(), Full> {
        let old = self.get(place, &record.key);
        if old.is_some_and(|old| old.write() >= record.write()) {
            return Ok(());
        }
        let freed = old.map_or(0, Record::bytes);
        if self.bytes - freed + record.bytes() > self.config.bytes_max {
            return Err(Full);
        }
        let record = owned(record);
        self.remove(place, &record.key);
        self.bytes += record.bytes();
        let age = self.next;
        self.next += 1;
        self.ages.insert(age, (now, place, record.key.clone()));
        self.places.entry(place).or_default().insert(record.key.clone(), Hint { record, age });
        Ok(())
    }

    /// What is kept for a key.
    pub fn get(&self, place: Place, key: &ItemKey) -> Option<&Record> {
        Some(&self.places.get(&place)?.get(key)?.record)
    }

    /// Partitions that something is kept for.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.places.keys().copied()
    }

    /// Some of what is kept for a partition.
    pub fn batch(&self, place: Place) -> Vec<Record> {
        let mut bytes = 0;
        let mut records = Vec::new();
        for hint in self.places.get(&place).into_iter().flat_map(BTreeMap::values) {
            bytes += hint.record.bytes();
            if records.len() >= self.config.batch_items
                || bytes > self.config.batch_bytes && !records.is_empty()
            {
                break;
            }
            records.push(hint.record.clone());
        }
        records
    }

    /// An owner has these. One that was overwritten here since stays.
    pub fn taken(&mut self, place: Place, keys: &[(ItemKey, Write)]) {
        for (key, write) in keys {
            if self.get(place, key).is_some_and(|kept| kept.write() == *write) {
                self.remove(place, key);
            }
        }
    }

    /// Drops, and counts, all that is kept for a partition.
    pub fn drop_place(&mut self, place: Place) {
        for hint in self.places.remove(&place).into_iter().flat_map(BTreeMap::into_values) {
            self.bytes -= hint.record.bytes();
            self.ages.remove(&hint.age);
            self.expired += 1;
        }
    }

    /// Drops, and counts, what was kept for its whole life in vain: at most `max` of them.
    pub fn expire(&mut self, now: Mono, max: usize) {
        for _ in 0..max {
            let Some((_, (since, place, key))) = self.ages.first_key_value() else { return };
            if now.since_ms(*since) < self.config.life_ms {
                return;
            }
            let (place, key) = (*place, key.clone());
            self.remove(place, &key);
            self.expired += 1;
        }
    }

    /// When the oldest hint ends.
    pub fn next_end(&self) -> Option<Mono> {
        self.ages.first_key_value().map(|(_, (since, ..))| since.after_ms(self.config.life_ms))
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes that no owner took in time, since the start. Each is an acknowledged write lost.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    fn remove(&mut self, place: Place, key: &ItemKey) {
        let Some(hints) = self.places.get_mut(&place) else { return };
        if let Some(hint) = hints.remove(key) {
            self.bytes -= hint.record.bytes();
            self.ages.remove(&hint.age);
        }
        if hints.is_empty() {
            self.places.remove(&place);
        }
    }
}

/// A record in bytes of its own: those of a request would keep its whole receive buffer.
fn owned(mut record: Record) -> Record {
    record.key.key = Bytes::copy_from_slice(&record.key.key);
    if let Content::Item(item) = &mut record.content {
        item.value = Bytes::copy_from_slice(&item.value);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Item;
    use crate::ids::{CacheId, GroupKey, Mode, PartitionId, Version};

    fn place(partition: u32) -> Place {
        Place {
            group: GroupKey { mode: Mode::Eventual, copies: 2 },
            partition: PartitionId(partition),
        }
    }

    fn put(key: &'static [u8], version: u64, value: &'static [u8]) -> Record {
        let key = ItemKey { cache: CacheId(0), key: key.into() };
        let item = Item { value: value.into(), version: Version(version), ..Item::default() };
        Record { key, content: Content::Item(item) }
    }

    fn hints(bytes_max: usize) -> Hints {
        Hints::new(HintConfig { life_ms: 100, bytes_max, ..HintConfig::default() })
    }

    #[test]
    fn of_two_hints_for_a_key_the_greater_stays_in_whatever_order() {
        let mut hints = hints(1_000);
        hints.keep(place(0), put(b"k", 2, b"new"), Mono(0)).unwrap();
        hints.keep(place(0), put(b"k", 1, b"old"), Mono(0)).unwrap();
        assert_eq!(hints.batch(place(0)), [put(b"k", 2, b"new")]);
    }

    #[test]
    fn a_hint_that_does_not_fit_is_refused_and_what_is_taken_makes_room() {
        let record = put(b"a", 1, b"0123456789");
        let mut hints = hints(record.bytes());
        hints.keep(place(0), record.clone(), Mono(0)).unwrap();
        assert_eq!(hints.keep(place(1), put(b"b", 1, b""), Mono(0)), Err(Full));
        // The same key may still change within the bound.
        hints.keep(place(0), put(b"a", 2, b"9876543210"), Mono(0)).unwrap();

        let stale = (record.key.clone(), record.write());
        hints.taken(place(0), &[stale]);
        assert!(!hints.is_empty(), "the newer write was not handed over");
        let held: Vec<_> =
            hints.batch(place(0)).iter().map(|r| (r.key.clone(), r.write())).collect();
        hints.taken(place(0), &held);
        assert!(hints.is_empty());
        assert_eq!(hints.bytes(), 0);
        hints.keep(place(1), put(b"b", 1, b""), Mono(0)).unwrap();
    }

    #[test]
    fn a_hint_ends_after_its_life_and_is_counted() {
        let mut hints = hints(1_000);
        hints.keep(place(0), put(b"k", 1, b"v"), Mono(0)).unwrap();
        let end = hints.next_end().unwrap();
        hints.expire(Mono(end.0 - 1), 10);
        assert_eq!(hints.expired(), 0);
        hints.expire(end, 10);
        assert_eq!((hints.expired(), hints.is_empty(), hints.bytes()), (1, true, 0));
    }

    #[test]
    fn a_batch_is_bounded_but_never_empty() {
        let mut hints = Hints::new(HintConfig { batch_bytes: 1, ..HintConfig::default() });
        hints.keep(place(0), put(b"a", 1, b"v"), Mono(0)).unwrap();
        hints.keep(place(0), put(b"b", 1, b"v"), Mono(0)).unwrap();
        assert_eq!(hints.batch(place(0)).len(), 1);
        assert_eq!(hints.batch(place(7)).len(), 0);
    }
}
