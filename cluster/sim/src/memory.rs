//! The memory of a simulated node: an ordered map, or the engine that serves for real.

use kiln_cluster::effect::{Effect, Item, ItemKey};
use kiln_cluster::ids::{CacheId, Place, Version};
use kiln_cluster::store::{Cursor, MapStore, Store, Stored};

use crate::profile::Memory;

/// A store that may be told to misbehave.
pub struct SimStore {
    inner: Inner,
    /// Evicts whatever the cache says.
    evicts_anyway: bool,
}

enum Inner {
    Map(MapStore),
}

impl SimStore {
    /// An empty memory.
    pub fn new(memory: Memory, evicts_anyway: bool) -> Self {
        let inner = match memory {
            Memory::Map(bytes) | Memory::Engine(bytes) => Inner::Map(MapStore::new(bytes)),
        };
        Self { inner, evicts_anyway }
    }
}

macro_rules! each {
    ($self:ident, $store:ident => $body:expr) => {
        match &$self.inner {
            Inner::Map($store) => $body,
        }
    };
    (mut $self:ident, $store:ident => $body:expr) => {
        match &mut $self.inner {
            Inner::Map($store) => $body,
        }
    };
}

impl Store for SimStore {
    fn read(&self, place: Place, key: &ItemKey, used: bool, clock_ms: u64) -> Option<Item> {
        each!(self, store => store.read(place, key, used, clock_ms))
    }

    fn apply(&mut self, place: Place, effect: &Effect, may_evict: bool, clock_ms: u64) -> Stored {
        let may_evict = may_evict || self.evicts_anyway;
        each!(mut self, store => store.apply(place, effect, may_evict, clock_ms))
    }

    fn scan(
        &self,
        place: Place,
        cursor: Cursor,
        items_max: usize,
        bytes_max: usize,
        visit: &mut dyn FnMut(&ItemKey, Item),
    ) -> Option<Cursor> {
        each!(self, store => store.scan(place, cursor, items_max, bytes_max, visit))
    }

    fn drop_partition(&mut self, place: Place, items_max: usize) -> bool {
        each!(mut self, store => store.drop_partition(place, items_max))
    }

    fn maintain(&mut self, clock_ms: u64) {
        each!(mut self, store => store.maintain(clock_ms));
    }

    fn drop_cache(&mut self, cache: CacheId) {
        each!(mut self, store => store.drop_cache(cache));
    }

    fn room(&self, cache: CacheId) -> usize {
        each!(self, store => store.room(cache))
    }

    fn evicted(&mut self, max: usize, out: &mut Vec<(Place, ItemKey, Version)>) {
        each!(mut self, store => store.evicted(max, out));
    }
}
