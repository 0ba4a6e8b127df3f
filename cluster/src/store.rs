//! The memory of one node, as the core sees it.
//!
//! Two implementations: [`MapStore`], an ordered map, for tests and as the definition of what is
//! meant; and that of `kiln-engine`, which serves.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::effect::{Change, Effect, Item, ItemKey};
use crate::ids::{CacheId, Mode, Place, Version};

/// What became of applying an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The item is as the effect says.
    Done,
    /// There was no room. Where it may evict, the item is gone instead; else nothing changed.
    Full,
}

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// At the first item.
    Start,
    /// Behind this key.
    Behind(ItemKey),
    /// At this place of the store's own order.
    At {
        /// In which cache.
        cache: CacheId,
        /// Where in it.
        position: u64,
    },
}

/// Items by partition. Calls are per node: the core never calls it from two places at once.
pub trait Store {
    /// The item, whether or not its end has come (the caller judges that by `clock_ms`).
    /// Counts as a use when `used`.
    fn read(&self, place: Place, key: &ItemKey, used: bool, clock_ms: u64) -> Option<Item>;

    /// Does what the effect says, whatever is there. A touch of an item that is not there, or is of
    /// another version, does nothing. Only where `may_evict` may other items of the cache be
    /// dropped to make room.
    fn apply(&mut self, place: Place, effect: &Effect, may_evict: bool, clock_ms: u64) -> Stored;

    /// Visits items of a partition from `cursor` in a bounded step, which may find none: until about
    /// `items_max` items or `bytes_max` bytes. Items present throughout a whole walk are visited at
    /// least once. Returns where to go on, `None` at the end.
    fn scan(
        &self,
        place: Place,
        cursor: Cursor,
        items_max: usize,
        bytes_max: usize,
        visit: &mut dyn FnMut(&ItemKey, Item),
    ) -> Option<Cursor>;

    /// Drops items of a partition in a bounded step, about `items_max` of them at most. `true` while
    /// there may be more.
    fn drop_partition(&mut self, place: Place, items_max: usize) -> bool;

    /// Items of strong groups whose end had come by `clock_ms` may be dropped from now on, in
    /// bounded steps. Items of eventual groups are only dropped by effects.
    fn maintain(&mut self, clock_ms: u64);

    /// Drops all items of a cache. Nothing of it comes back.
    fn drop_cache(&mut self, cache: CacheId);

    /// Bytes that a cache that refuses when full will still take.
    fn room(&self, cache: CacheId) -> usize;

    /// Whether items that [`Change::Clear`] removed from a partition still take memory. They count as
    /// absent for every call of this trait, but not for whoever reads the memory beside it.
    fn is_sweeping(&self, place: Place) -> bool;

    /// Frees such items in a bounded step over about `items_max` items, and names the partitions that
    /// are done. `true` while there is more to do.
    fn sweep(&mut self, items_max: usize, done: &mut Vec<Place>) -> bool;

    /// Hands over what the store evicted by itself since the last call, at most `max`.
    fn evicted(&mut self, max: usize, out: &mut Vec<(Place, ItemKey, Version)>);
}

/// Bytes that an item counts for beside key and value.
pub const ITEM_OVERHEAD_BYTES: usize = 64;

/// A store in an ordered map, with a bound in bytes.
#[derive(Clone, Debug, Default)]
pub struct MapStore {
    partitions: BTreeMap<Place, BTreeMap<ItemKey, Item>>,
    bytes: usize,
    bytes_max: usize,
    evicted: Vec<(Place, ItemKey, Version)>,
}

impl MapStore {
    /// An empty store that holds up to `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// All items of a partition, in order.
    pub fn items(&self, place: Place) -> impl Iterator<Item = (&ItemKey, &Item)> {
        self.partitions.get(&place).into_iter().flatten()
    }

    fn cost(key: &ItemKey, value: &Bytes) -> usize {
        key.key.len() + value.len() + ITEM_OVERHEAD_BYTES
    }

    fn retain(&mut self, keep: impl Fn(Place, &ItemKey, &Item) -> bool) {
        let mut freed = 0;
        for (&place, items) in &mut self.partitions {
            items.retain(|key, item| {
                let keep = keep(place, key, item);
                freed += if keep { 0 } else { Self::cost(key, &item.value) };
                keep
            });
        }
        self.bytes -= freed;
    }

    fn remove(&mut self, place: Place, key: &ItemKey) -> Option<Item> {
        let item = self.partitions.get_mut(&place)?.remove(key)?;
        self.bytes -= Self::cost(key, &item.value);
        Some(item)
    }

    /// Drops the oldest write of a cache other than that of `keep`.
    fn evict_one(&mut self, keep: &ItemKey) -> bool {
        let victim = self
            .partitions
            .iter()
            .flat_map(|(&place, items)| items.iter().map(move |(key, item)| (place, key, item)))
            .filter(|(_, key, _)| key.cache == keep.cache && *key != keep)
            .min_by_key(|(_, _, item)| item.version)
            .map(|(place, key, _)| (place, key.clone()));
        let Some((place, key)) = victim else { return false };
        if let Some(item) = self.remove(place, &key) {
            self.evicted.push((place, key, item.version));
        }
        true
    }
}

impl Store for MapStore {
    fn read(&self, place: Place, key: &ItemKey, _used: bool, _clock_ms: u64) -> Option<Item> {
        self.partitions.get(&place)?.get(key).cloned()
    }

    fn apply(&mut self, place: Place, effect: &Effect, may_evict: bool, _clock_ms: u64) -> Stored {
        let key = &effect.key;
        match &effect.change {
            Change::Put(item) => {
                let cost = Self::cost(key, &item.value);
                let old = self.read(place, key, false, 0);
                let freed = old.map_or(0, |old| Self::cost(key, &old.value));
                if !may_evict && self.bytes - freed + cost > self.bytes_max {
                    return Stored::Full;
                }
                self.remove(place, key);
                while self.bytes + cost > self.bytes_max {
                    if !self.evict_one(key) {
                        return Stored::Full;
                    }
                }
                self.bytes += cost;
                self.partitions.entry(place).or_default().insert(key.clone(), item.clone());
            }
            Change::Remove(_) => {
                self.remove(place, key);
            }
            Change::Touch { version, deadline_ms, marks } => {
                let item = self.partitions.get_mut(&place).and_then(|items| items.get_mut(key));
                if let Some(item) = item
                    && item.version == *version
                {
                    item.deadline_ms = *deadline_ms;
                    item.marks = *marks;
                }
            }
            Change::Clear(version) => self.retain(|at, other, item| {
                at != place || other.cache != key.cache || item.version > *version
            }),
        }
        Stored::Done
    }

    fn scan(
        &self,
        place: Place,
        cursor: Cursor,
        items_max: usize,
        bytes_max: usize,
        visit: &mut dyn FnMut(&ItemKey, Item),
    ) -> Option<Cursor> {
        use std::ops::Bound::{Excluded, Unbounded};
        let items = self.partitions.get(&place)?;
        let from = match &cursor {
            Cursor::Start | Cursor::At { .. } => Unbounded,
            Cursor::Behind(key) => Excluded(key),
        };
        let (mut count, mut bytes) = (0, 0);
        for (key, item) in items.range::<ItemKey, _>((from, Unbounded)) {
            visit(key, item.clone());
            count += 1;
            bytes += Self::cost(key, &item.value);
            if count >= items_max || bytes >= bytes_max {
                return Some(Cursor::Behind(key.clone()));
            }
        }
        None
    }

    fn drop_partition(&mut self, place: Place, items_max: usize) -> bool {
        for _ in 0..items_max {
            let Some(items) = self.partitions.get_mut(&place) else { return false };
            match items.pop_first() {
                Some((key, item)) => self.bytes -= Self::cost(&key, &item.value),
                None => {
                    self.partitions.remove(&place);
                    return false;
                }
            }
        }
        self.partitions.get(&place).is_some_and(|items| !items.is_empty())
    }

    fn maintain(&mut self, clock_ms: u64) {
        self.retain(|place, _, item| place.group.mode == Mode::Eventual || !item.is_over(clock_ms));
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.retain(|_, key, _| key.cache != cache);
    }

    fn room(&self, _cache: CacheId) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    fn is_sweeping(&self, _place: Place) -> bool {
        false
    }

    fn sweep(&mut self, _items_max: usize, _done: &mut Vec<Place>) -> bool {
        false
    }

    fn evicted(&mut self, max: usize, out: &mut Vec<(Place, ItemKey, Version)>) {
        let count = self.evicted.len().min(max);
        out.extend(self.evicted.drain(..count));
    }
}
