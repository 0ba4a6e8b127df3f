//! The memory of a simulated node: an ordered map, or the engine that serves for real.

use kiln_cluster::effect::{Effect, Item, ItemKey};
use kiln_cluster::ids::{CacheId, Place, Version};
use kiln_cluster::store::{Cursor, MapStore, Store, Stored};
use kiln_cluster::store_engine::EngineStore;
use kiln_cluster::topology::{CacheSpec, Eviction};
use kiln_engine::StoreConfig;
use kiln_engine::policy::PolicyKind;

use crate::clock::WALL_START_MS;
use crate::profile::Memory;

/// A store that may be told to misbehave.
pub struct SimStore {
    inner: Inner,
    /// Evicts whatever the cache says.
    evicts_anyway: bool,
}

enum Inner {
    Map(MapStore),
    Engine(EngineStore),
}

impl SimStore {
    /// An empty memory for one cache. Nodes are not all of one size: an ordered map has
    /// `size_percent` of the bytes of the profile.
    pub fn new(
        memory: Memory,
        size_percent: usize,
        cache: &CacheSpec,
        partitions: u32,
        evicts_anyway: bool,
    ) -> Self {
        let inner = match memory {
            Memory::Map(bytes) => Inner::Map(MapStore::new(bytes / 100 * size_percent)),
            Memory::Engine(bytes) => Inner::Engine(engine(bytes, cache, partitions)),
        };
        Self { inner, evicts_anyway }
    }
}

/// The engine as a node would run it. Simulated clocks begin at [`WALL_START_MS`], wrong by some.
fn engine(bytes: usize, cache: &CacheSpec, partitions: u32) -> EngineStore {
    let policy = match cache.eviction {
        Eviction::Evict => PolicyKind::DEFAULT,
        Eviction::Refuse => PolicyKind::None,
    };
    let start_ms = WALL_START_MS - 60_000;
    let config =
        StoreConfig { memory: bytes, policy, shards: 2, start_ms, ..StoreConfig::default() };
    let mut store = EngineStore::new(partitions);
    match kiln_engine::Store::new(config) {
        Ok(engine) => store.add_cache(cache.id, cache.group(), engine),
        // A simulation that cannot map its memory has nothing to say about the cluster.
        Err(error) => panic!("no memory for a simulated node: {error}"),
    }
    store
}

macro_rules! each {
    ($self:ident, $store:ident => $body:expr) => {
        match &$self.inner {
            Inner::Map($store) => $body,
            Inner::Engine($store) => $body,
        }
    };
    (mut $self:ident, $store:ident => $body:expr) => {
        match &mut $self.inner {
            Inner::Map($store) => $body,
            Inner::Engine($store) => $body,
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
        // A store that evicts always finds room.
        if self.evicts_anyway {
            return usize::MAX >> 1;
        }
        each!(self, store => store.room(cache))
    }

    fn is_sweeping(&self, place: Place) -> bool {
        each!(self, store => store.is_sweeping(place))
    }

    fn sweep(&mut self, items_max: usize, done: &mut Vec<Place>) -> bool {
        each!(mut self, store => store.sweep(items_max, done))
    }

    fn evicted(&mut self, max: usize, out: &mut Vec<(Place, ItemKey, Version)>) {
        each!(mut self, store => store.evicted(max, out));
    }
}
