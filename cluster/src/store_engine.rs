//! The store of `kiln-engine` behind the [`Store`] trait: what serves.
//!
//! Each cache is an engine store of its own, with its own memory and policy. A partition is not a
//! thing of the engine's: its items are found by the hash of their keys, so walking one partition
//! passes over all items of its caches.
//!
//! Ends of items are judged by whoever asks, with the clock of the partition. The engine is therefore
//! run on a clock of its own that never passes what all partitions agree has ended
//! ([`Store::maintain`]); for eventual caches it stands still, because there every end is an effect.
//!
//! What the engine evicts by itself is not named to the core: copies of an evicting cache then keep
//! within their budgets each by itself, under the same policy.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_engine::{
    DeleteOptions, Expiry, GetOptions, ItemInfo, TouchOutcome, Value, WriteMode, WriteOptions,
    WriteOutcome,
};

use crate::effect::{Change, Effect, Item, ItemKey};
use crate::ids::{CacheId, GroupKey, Mode, PartitionId, Place, Version};
use crate::store::{Cursor, ITEM_OVERHEAD_BYTES, Store, Stored};

/// Items that the engine looks at in one step of upkeep, for each cache.
const UPKEEP_STEPS: usize = 1_024;
/// Bytes written after which the room left is worked out again.
const ROOM_AGAIN_BYTES: usize = 16 << 10;
/// The part of the memory that pages half filled may cost, as a divisor.
const SLACK_DIVISOR: usize = 8;

struct Cache {
    store: kiln_engine::Store,
    group: GroupKey,
    /// The room at the last look, and bytes written since.
    room: Cell<(usize, usize)>,
}

/// The caches of one node.
pub struct EngineStore {
    caches: BTreeMap<CacheId, Cache>,
    partitions: u32,
    clock_ms: u64,
    /// Where dropping a partition goes on, and whether this pass has found anything.
    dropping: BTreeMap<Place, (Cursor, bool)>,
}

impl EngineStore {
    /// A node without caches, in a cluster of so many partitions.
    #[must_use]
    pub fn new(partitions: u32) -> Self {
        Self {
            caches: BTreeMap::new(),
            partitions: partitions.max(1),
            clock_ms: 0,
            dropping: BTreeMap::new(),
        }
    }

    /// Adds a cache. Its store must refuse where the cache is to keep what it holds.
    pub fn add_cache(&mut self, id: CacheId, group: GroupKey, store: kiln_engine::Store) {
        let room = Cell::new((0, ROOM_AGAIN_BYTES));
        self.caches.insert(id, Cache { store, group, room });
    }

    /// The store of a cache.
    #[must_use]
    pub fn cache(&self, id: CacheId) -> Option<&kiln_engine::Store> {
        self.caches.get(&id).map(|cache| &cache.store)
    }

    fn partition_of(&self, hash: u64) -> PartitionId {
        PartitionId((hash % u64::from(self.partitions)) as u32)
    }
}

impl Cache {
    fn clock_ms(&self, clock_ms: u64) -> u64 {
        match self.group.mode {
            Mode::Strong => clock_ms,
            Mode::Eventual => 0,
        }
    }

    fn read(&self, key: &[u8], hash: u64, used: bool, clock_ms: u64) -> Option<Item> {
        let options = GetOptions { no_bump: !used, ..GetOptions::default() };
        self.store.get(key, hash, &options, clock_ms, |info, value| item(info, &value))
    }

    fn put(&self, key: &[u8], hash: u64, item: &Item, may_evict: bool, clock_ms: u64) -> Stored {
        // A set that finds no room takes the older value with it; these do not.
        let mode = match self.store.peek(key, hash, clock_ms) {
            _ if may_evict => WriteMode::Set,
            Some(_) => WriteMode::Replace,
            None => WriteMode::Add,
        };
        let options = WriteOptions {
            mode,
            flags: item.flags,
            expiry: item.deadline_ms.map_or(Expiry::Never, Expiry::At),
            version: Some(item.version.0),
            ..WriteOptions::default()
        };
        let (room, written) = self.room.get();
        self.room.set((room, written + key.len() + item.value.len() + ITEM_OVERHEAD_BYTES));
        match self.store.write(key, hash, &item.value, &options, clock_ms) {
            WriteOutcome::Stored(_) => Stored::Done,
            _ => Stored::Full,
        }
    }

    fn touch(
        &self,
        key: &[u8],
        hash: u64,
        version: Version,
        deadline_ms: Option<u64>,
        may_evict: bool,
        clock_ms: u64,
    ) -> Stored {
        if self.store.peek(key, hash, clock_ms).is_none_or(|info| info.version != version.0) {
            return Stored::Done;
        }
        let expiry = deadline_ms.map_or(Expiry::Never, Expiry::At);
        if self.store.touch(key, hash, expiry, clock_ms) != TouchOutcome::OutOfMemory {
            return Stored::Done;
        }
        if may_evict {
            // Kept with its old end it could be seen after its new one.
            self.store.delete(key, hash, &DeleteOptions::default(), clock_ms);
        }
        Stored::Full
    }

    fn room(&self) -> usize {
        let (room, written) = self.room.get();
        if written < ROOM_AGAIN_BYTES {
            return room.saturating_sub(written);
        }
        let memory = self.store.memory();
        let stats = self.store.stats();
        let used = stats.item_bytes + stats.index_bytes + stats.heap_bytes;
        let used = usize::try_from(used).unwrap_or(usize::MAX);
        let room = (memory - memory / SLACK_DIVISOR).saturating_sub(used);
        self.room.set((room, 0));
        room
    }
}

fn item(info: &ItemInfo, value: &Value<'_>) -> Item {
    let value = match value {
        Value::Inline(bytes) => Bytes::copy_from_slice(bytes),
        Value::Large(pinned) => Bytes::from(pinned.slices().concat()),
    };
    Item { value, flags: info.flags, version: Version(info.version), deadline_ms: info.deadline_ms }
}

impl Store for EngineStore {
    fn read(&self, _place: Place, key: &ItemKey, used: bool, _clock_ms: u64) -> Option<Item> {
        let cache = self.caches.get(&key.cache)?;
        let hash = kiln_engine::Store::hash(&key.key);
        cache.read(&key.key, hash, used, cache.clock_ms(self.clock_ms))
    }

    fn apply(&mut self, _place: Place, effect: &Effect, may_evict: bool, _clock_ms: u64) -> Stored {
        let Some(cache) = self.caches.get(&effect.key.cache) else { return Stored::Full };
        let clock_ms = cache.clock_ms(self.clock_ms);
        let key = &effect.key.key;
        let hash = kiln_engine::Store::hash(key);
        match &effect.change {
            Change::Put(item) => cache.put(key, hash, item, may_evict, clock_ms),
            Change::Remove(_) => {
                cache.store.delete(key, hash, &DeleteOptions::default(), clock_ms);
                Stored::Done
            }
            Change::Touch { version, deadline_ms } => {
                cache.touch(key, hash, *version, *deadline_ms, may_evict, clock_ms)
            }
        }
    }

    fn scan(
        &self,
        place: Place,
        cursor: Cursor,
        items_max: usize,
        bytes_max: usize,
        visit: &mut dyn FnMut(&ItemKey, Item),
    ) -> Option<Cursor> {
        let (from, mut position) = match cursor {
            Cursor::At { cache, position } => (cache, position),
            Cursor::Start | Cursor::Behind(_) => (CacheId(0), 0),
        };
        let (mut items, mut bytes) = (0, 0);
        for (&id, cache) in self.caches.range(from..) {
            if cache.group != place.group {
                continue;
            }
            let start = if id == from { position } else { 0 };
            position = start;
            let clock_ms = cache.clock_ms(self.clock_ms);
            loop {
                let mut found = Vec::new();
                let page = cache.store.scan(position, 1, clock_ms, |entry| {
                    let hash = kiln_engine::Store::hash(entry.key);
                    if self.partition_of(hash) == place.partition {
                        let value =
                            entry.value.map(|value| item(&entry.info, &Value::Inline(value)));
                        found.push((Bytes::copy_from_slice(entry.key), hash, value));
                    }
                });
                for (key, hash, small) in found {
                    let whole = small.or_else(|| cache.read(&key, hash, false, clock_ms));
                    let Some(item) = whole else { continue };
                    items += 1;
                    bytes += key.len() + item.value.len() + ITEM_OVERHEAD_BYTES;
                    visit(&ItemKey { cache: id, key }, item);
                }
                let Some(next) = page.next else { break };
                position = next;
                if items >= items_max || bytes >= bytes_max {
                    return Some(Cursor::At { cache: id, position });
                }
            }
        }
        None
    }

    fn drop_partition(&mut self, place: Place, items_max: usize) -> bool {
        // Removing items may move others behind the cursor: a pass that finds none is the last.
        let (cursor, found) = self.dropping.remove(&place).unwrap_or((Cursor::Start, false));
        let mut doomed = Vec::new();
        let next = self.scan(place, cursor, items_max, usize::MAX, &mut |key, _| {
            doomed.push(key.clone());
        });
        let found = found || !doomed.is_empty();
        for key in doomed {
            if let Some(cache) = self.caches.get(&key.cache) {
                let hash = kiln_engine::Store::hash(&key.key);
                let clock_ms = cache.clock_ms(self.clock_ms);
                cache.store.delete(&key.key, hash, &DeleteOptions::default(), clock_ms);
            }
        }
        match next {
            Some(next) => {
                self.dropping.insert(place, (next, found));
                true
            }
            None => found,
        }
    }

    fn maintain(&mut self, clock_ms: u64) {
        self.clock_ms = self.clock_ms.max(clock_ms);
        for cache in self.caches.values() {
            cache.store.maintain(cache.clock_ms(self.clock_ms), UPKEEP_STEPS);
            cache.room.set((0, ROOM_AGAIN_BYTES));
        }
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.caches.remove(&cache);
    }

    fn room(&self, cache: CacheId) -> usize {
        self.caches.get(&cache).map_or(0, Cache::room)
    }

    fn evicted(&mut self, _max: usize, _out: &mut Vec<(Place, ItemKey, Version)>) {}
}

#[cfg(test)]
mod tests {
    use kiln_engine::StoreConfig;
    use kiln_engine::policy::PolicyKind;

    use super::*;

    const CACHE: CacheId = CacheId(1);
    const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 2 };

    fn engine(policy: PolicyKind) -> EngineStore {
        let config = StoreConfig { memory: 8 << 20, policy, ..StoreConfig::default() };
        let mut store = EngineStore::new(4);
        store.add_cache(CACHE, GROUP, kiln_engine::Store::new(config).expect("8 MiB"));
        store
    }

    fn key(name: &str) -> ItemKey {
        ItemKey { cache: CACHE, key: Bytes::copy_from_slice(name.as_bytes()) }
    }

    fn place_of(store: &EngineStore, key: &ItemKey) -> Place {
        let partition = store.partition_of(kiln_engine::Store::hash(&key.key));
        Place { group: GROUP, partition }
    }

    fn put(store: &mut EngineStore, name: &str, value: Bytes, version: u64) -> Stored {
        let key = key(name);
        let place = place_of(store, &key);
        let item = Item { value, flags: 5, version: Version(version), deadline_ms: None };
        store.apply(place, &Effect { key, change: Change::Put(item) }, false, 0)
    }

    fn all(store: &EngineStore, place: Place) -> BTreeMap<ItemKey, Item> {
        let mut items = BTreeMap::new();
        let mut cursor = Some(Cursor::Start);
        while let Some(at) = cursor {
            cursor = store.scan(place, at, 10, 1 << 20, &mut |key, item| {
                items.insert(key.clone(), item);
            });
        }
        items
    }

    #[test]
    fn a_partition_is_walked_and_dropped_without_touching_others() {
        let mut store = engine(PolicyKind::None);
        let value = |number: usize| Bytes::from(vec![number as u8; 40_000 * (number % 2) + 10]);
        for number in 0..100 {
            assert_eq!(put(&mut store, &format!("k{number}"), value(number), 3), Stored::Done);
        }
        let places =
            (0..4).map(|partition| Place { group: GROUP, partition: PartitionId(partition) });
        let before: Vec<_> = places.clone().map(|place| all(&store, place)).collect();
        assert_eq!(before.iter().map(BTreeMap::len).sum::<usize>(), 100);
        for number in 0..100 {
            let key = key(&format!("k{number}"));
            let place = place_of(&store, &key);
            let item = &before[place.partition.0 as usize][&key];
            assert_eq!(
                (item.value.clone(), item.flags, item.version),
                (value(number), 5, Version(3))
            );
        }
        let first = Place { group: GROUP, partition: PartitionId(0) };
        let mut steps = 0;
        while store.drop_partition(first, 7) {
            steps += 1;
            assert!(steps < 100);
        }
        assert_eq!(all(&store, first).len(), 0);
        assert_eq!(all(&store, Place { partition: PartitionId(1), ..first }), before[1]);
    }

    #[test]
    fn a_store_that_keeps_refuses_when_full_and_keeps_the_older_value() {
        let mut store = engine(PolicyKind::None);
        let big = |byte: u8| Bytes::from(vec![byte; 10_000]);
        let mut stored = 0;
        while store.room(CACHE) > 64 << 10 {
            assert_eq!(put(&mut store, &format!("k{stored}"), big(1), 1), Stored::Done, "{stored}");
            stored += 1;
        }
        assert!(stored > 500, "only {stored} of some 700");
        while put(&mut store, &format!("k{stored}"), big(1), 1) == Stored::Done {
            stored += 1;
        }
        let longer = Bytes::from(vec![2; 16_000]);
        assert_eq!(put(&mut store, "k7", longer, 2), Stored::Full);
        let key = key("k7");
        let place = place_of(&store, &key);
        assert_eq!(store.read(place, &key, false, 0).map(|item| item.value), Some(big(1)));
    }

    #[test]
    fn what_has_ended_stays_until_all_partitions_agree() {
        let mut store = engine(PolicyKind::None);
        let key = key("k");
        let place = place_of(&store, &key);
        let item =
            Item { value: "v".into(), flags: 0, version: Version(1), deadline_ms: Some(5_000) };
        let effect = Effect { key: key.clone(), change: Change::Put(item) };
        assert_eq!(store.apply(place, &effect, false, 1_000), Stored::Done);
        assert!(store.read(place, &key, false, 9_000).is_some());
        let touch = Change::Touch { version: Version(1), deadline_ms: Some(20_000) };
        store.apply(place, &Effect { key: key.clone(), change: touch }, false, 4_999);
        store.maintain(6_000);
        assert_eq!(
            store.read(place, &key, false, 9_000).map(|item| item.deadline_ms),
            Some(Some(20_000))
        );
        store.maintain(20_000);
        assert_eq!(store.read(place, &key, false, 0), None);
    }
}
