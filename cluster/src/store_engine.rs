//! The store of `kiln-engine` behind the [`Store`] trait: what serves.
//!
//! Each cache is an engine store of its own, with its own memory and policy, shared with the threads
//! that read it directly ([`EngineCache`]). A partition is not a thing of the engine's: its items are
//! found by the hash of their keys; the engine's index passes by nearly all that are not of the
//! partition walked over.
//!
//! Ends of items are judged by whoever asks, with the clock of the partition. The engine is therefore
//! run on a clock of its own that never passes what all partitions agree has ended
//! ([`Store::maintain`]); for eventual caches it stands still, because there every end is an effect.
//! Whoever shares a store must not bring it a later clock than [`EngineStore::clock_ms`]: an item
//! that is about to live longer would be gone on this copy alone.
//!
//! Items that are there when a cache is added, written while the node was alone, count as they are.
//! Their versions were given by the engine, which counts them from one, and so lie below those of
//! the first term.
//!
//! What the engine evicts by itself is not named to the core: copies of an evicting cache then keep
//! within their budgets each by itself, under the same policy.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_engine::{
    DeleteOptions, Expiry, GetOptions, ItemInfo, Refill, TouchOutcome, Value, WriteMode,
    WriteOptions, WriteOutcome,
};

use crate::effect::{Change, Effect, Item, ItemKey, Marks};
use crate::ids::{CacheId, GroupKey, Mode, PartitionId, Place, Version};
use crate::placement::partition_of_hash;
use crate::store::{Cursor, ITEM_OVERHEAD_BYTES, Store, Stored};

/// Items that the engine looks at in one step of upkeep, for each cache.
const UPKEEP_STEPS: usize = 1_024;
/// Index buckets of a walk over a partition after which one step has seen enough.
const BUCKETS_PER_STEP: usize = 4_096;
/// Bytes written after which the room left is worked out again.
const ROOM_AGAIN_BYTES: usize = 16 << 10;
/// The part of the memory that pages half filled may cost, as a divisor.
const SLACK_DIVISOR: usize = 8;

/// A cache of the engine that others use as well.
pub trait EngineCache {
    /// Its memory.
    fn store(&self) -> &kiln_engine::Store;

    /// An item of this hash changed in this memory. Called after the change, for each effect that
    /// may have changed something and for each item dropped; not for what the engine evicts.
    fn changed(&self, hash: u64);

    /// All items of a partition were removed at once. Those are not named one by one now, only when
    /// their memory is freed.
    fn cleared(&self) {}
}

/// A store that nobody else watches.
impl EngineCache for kiln_engine::Store {
    fn store(&self) -> &kiln_engine::Store {
        self
    }

    fn changed(&self, _hash: u64) {}
}

struct Cache<C> {
    handle: C,
    group: GroupKey,
    /// The room at the last look, and bytes written since.
    room: Cell<(usize, usize)>,
    /// Items of these partitions, of this version and older, count as absent until they are dropped.
    floors: BTreeMap<PartitionId, Floor>,
    sweep: Sweep,
}

/// What a removal of all items leaves behind until they are dropped.
#[derive(Clone, Copy)]
struct Floor {
    version: Version,
    /// The first pass that begins after it.
    pass: u64,
}

/// A walk over the items of a cache that drops what lies below the floors.
#[derive(Default)]
struct Sweep {
    pass: u64,
    /// Where it goes on; at the beginning, the pass has not begun.
    position: u64,
    found: bool,
}

/// The caches of one node.
pub struct EngineStore<C = kiln_engine::Store> {
    caches: BTreeMap<CacheId, Cache<C>>,
    partitions: u32,
    clock_ms: u64,
    /// Where dropping a partition goes on, cache and place in it, and whether this pass has found
    /// anything.
    dropping: BTreeMap<Place, (CacheId, u64, bool)>,
}

impl<C: EngineCache> EngineStore<C> {
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

    /// Says how many partitions the cluster has: before anything is stored.
    pub fn set_partitions(&mut self, partitions: u32) {
        self.partitions = partitions.max(1);
    }

    /// Adds a cache, with what it holds. Its store must refuse where the cache is to keep that.
    pub fn add_cache(&mut self, id: CacheId, group: GroupKey, handle: C) {
        let room = Cell::new((0, ROOM_AGAIN_BYTES));
        let (floors, sweep) = (BTreeMap::new(), Sweep::default());
        self.caches.insert(id, Cache { handle, group, room, floors, sweep });
    }

    /// A cache.
    #[must_use]
    pub fn cache(&self, id: CacheId) -> Option<&C> {
        self.caches.get(&id).map(|cache| &cache.handle)
    }

    /// The clock that the stores of strong caches are run on: what all partitions agree has ended.
    /// Those of eventual caches are run on 0.
    #[must_use]
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Which hashes are those of a partition.
    fn residue(&self, place: Place) -> (u64, u64) {
        (u64::from(self.partitions), u64::from(place.partition.0))
    }
}

impl<C: EngineCache> Cache<C> {
    fn clock_ms(&self, clock_ms: u64) -> u64 {
        match self.group.mode {
            Mode::Strong => clock_ms,
            Mode::Eventual => 0,
        }
    }

    fn read(&self, key: &[u8], hash: u64, used: bool, clock_ms: u64) -> Option<Item> {
        let options = GetOptions { no_bump: !used, ..GetOptions::default() };
        self.handle.store().get(key, hash, &options, clock_ms, |info, value| item(info, &value))
    }

    fn put(&self, key: &[u8], hash: u64, item: &Item, may_evict: bool, clock_ms: u64) -> Stored {
        let store = self.handle.store();
        // A set that finds no room takes the older value with it; these do not.
        let mode = if may_evict {
            WriteMode::Set
        } else if store.peek(key, hash, clock_ms).is_some() {
            WriteMode::Replace
        } else {
            WriteMode::Add
        };
        let options = WriteOptions {
            mode,
            flags: item.flags,
            expiry: item.deadline_ms.map_or(Expiry::Never, Expiry::At),
            version: Some(item.version.0),
            stale: item.marks.has(Marks::STALE),
            granted: item.marks.has(Marks::TAKEN),
            ..WriteOptions::default()
        };
        let (room, written) = self.room.get();
        self.room.set((room, written + key.len() + item.value.len() + ITEM_OVERHEAD_BYTES));
        match store.write(key, hash, &item.value, &options, clock_ms) {
            WriteOutcome::Stored(_) => Stored::Done,
            _ => Stored::Full,
        }
    }

    fn touch(
        &self,
        key: &[u8],
        hash: u64,
        version: Version,
        (deadline_ms, marks): (Option<u64>, Marks),
        may_evict: bool,
        clock_ms: u64,
    ) -> Stored {
        let store = self.handle.store();
        let Some(info) = store.peek(key, hash, clock_ms) else { return Stored::Done };
        if info.version != version.0 {
            return Stored::Done;
        }
        let (stale, granted) = (marks.has(Marks::STALE), marks.has(Marks::TAKEN));
        if marks != marks_of(&info) {
            store.mark(key, hash, stale, granted, clock_ms);
        }
        if info.deadline_ms == deadline_ms {
            return Stored::Done;
        }
        let expiry = deadline_ms.map_or(Expiry::Never, Expiry::At);
        if store.touch(key, hash, expiry, clock_ms) != TouchOutcome::OutOfMemory {
            return Stored::Done;
        }
        if may_evict {
            // Kept with its old end it could be seen after its new one.
            store.delete(key, hash, &DeleteOptions::default(), clock_ms);
        }
        Stored::Full
    }

    fn room(&self) -> usize {
        let (room, written) = self.room.get();
        if written < ROOM_AGAIN_BYTES {
            return room.saturating_sub(written);
        }
        let store = self.handle.store();
        let (memory, stats) = (store.memory(), store.stats());
        let used = stats.item_bytes + stats.index_bytes + stats.heap_bytes;
        let used = usize::try_from(used).unwrap_or(usize::MAX);
        let room = (memory - memory / SLACK_DIVISOR).saturating_sub(used);
        self.room.set((room, 0));
        room
    }
}

impl<C: EngineCache> Cache<C> {
    /// Whether an item of this version is above the floor of its partition.
    fn keeps(&self, partition: PartitionId, version: Version) -> bool {
        self.floors.is_empty()
            || self.floors.get(&partition).is_none_or(|floor| version > floor.version)
    }

    /// Has all items of a partition, up to this version, count as absent.
    fn clear(&mut self, partition: PartitionId, version: Version) {
        let under_way = self.sweep.position > 0;
        let pass = self.sweep.pass + u64::from(under_way);
        let floor = self.floors.entry(partition).or_insert(Floor { version, pass });
        *floor = Floor { version: floor.version.max(version), pass };
        self.handle.cleared();
    }

    /// Goes on with the present pass, and names the partitions without items below their floors.
    fn sweep(
        &mut self,
        items_max: usize,
        partitions: u32,
        clock_ms: u64,
        done: &mut Vec<PartitionId>,
    ) {
        let mut doomed: Vec<(Bytes, u64)> = Vec::new();
        let store = self.handle.store();
        let floors = &self.floors;
        let page = store.scan(self.sweep.position, items_max, clock_ms, |entry| {
            let hash = kiln_engine::Store::hash(entry.key);
            let partition = partition_of_hash(hash, partitions);
            let version = Version(entry.info.version);
            if floors.get(&partition).is_some_and(|floor| version <= floor.version) {
                doomed.push((Bytes::copy_from_slice(entry.key), hash));
            }
        });
        for (key, hash) in &doomed {
            store.delete(key, *hash, &DeleteOptions::default(), clock_ms);
            self.handle.changed(*hash);
        }
        self.sweep.found |= !doomed.is_empty();
        self.sweep.position = page.next.unwrap_or(0);
        if page.next.is_some() {
            return;
        }
        // Removing items may move others behind the walk: a pass that finds none is the last.
        if !std::mem::take(&mut self.sweep.found) {
            let pass = self.sweep.pass;
            self.floors.retain(|&partition, floor| {
                let swept = floor.pass <= pass;
                if swept {
                    done.push(partition);
                }
                !swept
            });
        }
        self.sweep.pass += 1;
    }
}

fn item(info: &ItemInfo, value: &Value<'_>) -> Item {
    let value = match value {
        Value::Inline(bytes) => Bytes::copy_from_slice(bytes),
        Value::Large(pinned) => Bytes::from(pinned.slices().concat()),
    };
    Item {
        value,
        flags: info.flags,
        version: Version(info.version),
        deadline_ms: info.deadline_ms,
        marks: marks_of(info),
    }
}

fn marks_of(info: &ItemInfo) -> Marks {
    Marks::STALE.when(info.stale).with(Marks::TAKEN.when(info.refill == Refill::Taken))
}

impl<C: EngineCache> Store for EngineStore<C> {
    fn read(&self, place: Place, key: &ItemKey, used: bool, _clock_ms: u64) -> Option<Item> {
        let cache = self.caches.get(&key.cache)?;
        let hash = kiln_engine::Store::hash(&key.key);
        let item = cache.read(&key.key, hash, used, cache.clock_ms(self.clock_ms))?;
        cache.keeps(place.partition, item.version).then_some(item)
    }

    fn apply(&mut self, place: Place, effect: &Effect, may_evict: bool, _clock_ms: u64) -> Stored {
        let Some(cache) = self.caches.get_mut(&effect.key.cache) else { return Stored::Full };
        let clock_ms = cache.clock_ms(self.clock_ms);
        let key = &effect.key.key;
        let hash = kiln_engine::Store::hash(key);
        let stored = match &effect.change {
            Change::Put(item) => cache.put(key, hash, item, may_evict, clock_ms),
            Change::Remove(_) => {
                cache.handle.store().delete(key, hash, &DeleteOptions::default(), clock_ms);
                Stored::Done
            }
            Change::Touch { version, deadline_ms, marks } => {
                cache.touch(key, hash, *version, (*deadline_ms, *marks), may_evict, clock_ms)
            }
            Change::Clear(version) => {
                cache.clear(place.partition, *version);
                return Stored::Done;
            }
        };
        // Also what found no room may have taken the older value with it.
        cache.handle.changed(hash);
        stored
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
        let (mut items, mut bytes, mut buckets) = (0, 0, 0);
        for (&id, cache) in self.caches.range(from..) {
            if cache.group != place.group {
                continue;
            }
            let start = if id == from { position } else { 0 };
            position = start;
            let clock_ms = cache.clock_ms(self.clock_ms);
            loop {
                let mut found = Vec::new();
                let residue = self.residue(place);
                let store = cache.handle.store();
                let page = store.scan_part(position, residue, 1, clock_ms, |hash, entry| {
                    let value = entry.value.map(|value| item(&entry.info, &Value::Inline(value)));
                    found.push((Bytes::copy_from_slice(entry.key), hash, value));
                });
                for (key, hash, small) in found {
                    let whole = small.or_else(|| cache.read(&key, hash, false, clock_ms));
                    let kept = |item: &Item| cache.keeps(place.partition, item.version);
                    let Some(item) = whole.filter(kept) else { continue };
                    items += 1;
                    bytes += key.len() + item.value.len() + ITEM_OVERHEAD_BYTES;
                    visit(&ItemKey { cache: id, key }, item);
                }
                let Some(next) = page.next else { break };
                position = next;
                buckets += page.buckets;
                if items >= items_max || bytes >= bytes_max || buckets >= BUCKETS_PER_STEP {
                    return Some(Cursor::At { cache: id, position });
                }
            }
        }
        None
    }

    fn drop_partition(&mut self, place: Place, items_max: usize) -> bool {
        let residue = self.residue(place);
        // Removing items may move others behind the cursor: a pass that finds none is the last.
        let (from, mut position, mut found) = self.dropping.remove(&place).unwrap_or_default();
        let (mut dropped, mut buckets) = (0, 0);
        for (&id, cache) in self.caches.range_mut(from..) {
            if cache.group != place.group {
                continue;
            }
            // All of it goes: nothing needs to be held back any longer.
            cache.floors.remove(&place.partition);
            if id != from {
                position = 0;
            }
            let clock_ms = cache.clock_ms(self.clock_ms);
            loop {
                let store = cache.handle.store();
                let mut doomed: Vec<(Bytes, u64)> = Vec::new();
                let page = store.scan_part(position, residue, 1, clock_ms, |hash, entry| {
                    doomed.push((Bytes::copy_from_slice(entry.key), hash));
                });
                for (key, hash) in &doomed {
                    store.delete(key, *hash, &DeleteOptions::default(), clock_ms);
                    cache.handle.changed(*hash);
                }
                found |= !doomed.is_empty();
                dropped += doomed.len();
                let Some(next) = page.next else { break };
                position = next;
                buckets += page.buckets;
                if dropped >= items_max || buckets >= BUCKETS_PER_STEP {
                    self.dropping.insert(place, (id, position, found));
                    return true;
                }
            }
        }
        found
    }

    fn maintain(&mut self, clock_ms: u64) {
        self.clock_ms = self.clock_ms.max(clock_ms);
        for cache in self.caches.values() {
            cache.handle.store().maintain(cache.clock_ms(self.clock_ms), UPKEEP_STEPS);
            cache.room.set((0, ROOM_AGAIN_BYTES));
        }
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.caches.remove(&cache);
    }

    fn room(&self, cache: CacheId) -> usize {
        self.caches.get(&cache).map_or(0, Cache::room)
    }

    fn is_sweeping(&self, place: Place) -> bool {
        let of_group = |cache: &&Cache<C>| cache.group == place.group;
        self.caches
            .values()
            .filter(of_group)
            .any(|cache| cache.floors.contains_key(&place.partition))
    }

    fn sweep(&mut self, items_max: usize, done: &mut Vec<Place>) -> bool {
        let (partitions, clock_ms) = (self.partitions, self.clock_ms);
        for cache in self.caches.values_mut().filter(|cache| !cache.floors.is_empty()) {
            let clock_ms = cache.clock_ms(clock_ms);
            let (from, group) = (done.len(), cache.group);
            let mut swept = Vec::new();
            cache.sweep(items_max, partitions, clock_ms, &mut swept);
            done.extend(swept.into_iter().map(|partition| Place { group, partition }));
            done[from..].sort_unstable();
            if !cache.floors.is_empty() {
                return true;
            }
        }
        self.caches.values().any(|cache| !cache.floors.is_empty())
    }

    fn evicted(&mut self, _max: usize, _out: &mut Vec<(Place, ItemKey, Version)>) {}
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
