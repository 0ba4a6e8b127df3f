//! The caches of a node, and who of them has how much of its memory.
//!
//! A request names its cache by number and finds it in a table that never changes: whoever makes
//! or drops a cache puts a new table in the place of the old one. So the way of a request takes no
//! lock, and an array index is all it costs.
//!
//! The cache `default` is always there and has the memory that no other cache was given. A new
//! cache takes its memory from it, a dropped one leaves it. Memory moves in two steps: the giver's
//! ceiling falls at once, the taker's rises as the giver's pages really come back (see
//! [`Caches::settle`]), so that the sum stays within the node's ceiling all the time.
//!
//! Always true: the ceilings wanted and the memory for tracking add up to the node's share for
//! stores; slot 0 is `default`.

mod largest;
mod live;
mod settings;
mod tracking;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use kiln_engine::{MEMORY_MIN, Stats, Store, StoreConfig, StoreError, Upkeep, policy::PolicyKind};
use parking_lot::Mutex;

use self::{largest::Largest, live::Live};

pub(crate) use settings::{CacheSettings, Mode, Read, SettingsError};
pub(crate) use tracking::{TrackError, Tracker, Trackers};

use kiln_cluster::{
    ids::{CacheId, GroupKey, Place},
    placement::partition_of_hash,
    time::Mono,
};

use crate::{
    cluster::{Cluster, GroupRights, Ticket},
    curve::Tracked,
    mailbox::Mailbox,
};

/// Caches on one node.
pub(crate) const CACHES_MAX: usize = 1_000;

/// The cache that is always there.
pub(crate) const DEFAULT: &str = "default";

/// A cache without a wish gets this part of what `default` has.
const SHARE_OF_DEFAULT: usize = 8;

/// The memory ceiling of a running node can be raised up to so many times the configured one.
const MEMORY_GROWTH_MAX: usize = 4;

/// How long a new cache is waited for while `default` gives pages: the worker's other clients wait
/// too. And steps of eviction in each shard between looks at the clock.
const MAKE_ROOM_MAX: Duration = Duration::from_millis(50);
const MAKE_ROOM_STEPS: usize = 256;

/// One cache.
pub(crate) struct Cache {
    /// Unique over the life of the node.
    pub(crate) id: u32,
    /// The items.
    pub(crate) store: Store,
    /// Who is to be told of writes.
    pub(crate) trackers: Arc<Trackers>,
    /// How it was made. The memory here is what was asked for; see also [`Caches::settle`].
    pub(crate) settings: CacheSettings,
    /// What of that may have changed since.
    pub(crate) live: Live,
    /// What its hit ratio would be with other sizes.
    pub(crate) curve: Tracked,
    /// The largest items met so far.
    pub(crate) largest: Mutex<Largest>,
    /// When all items will be gone by a delayed flush, in milliseconds; `u64::MAX` for never.
    flush_at_ms: AtomicU64,
    /// What the cache is to the cluster, from the time it is known there.
    cluster: OnceLock<ClusterCache>,
    /// A stream keeps its state in it.
    reserved: AtomicBool,
}

/// What clients are told of a cache that is [reserved](Cache::is_reserved).
pub(crate) const RESERVED: &str =
    "a stream keeps its state in this cache; drop the stream, and it goes, too";

/// What a cache is to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterCache {
    /// Its number there.
    pub(crate) id: CacheId,
    /// Where its items are placed.
    pub(crate) group: GroupKey,
    /// Which of them this node may read by itself.
    pub(crate) rights: Arc<GroupRights>,
    /// A lease is enough for that.
    pub(crate) leased: Arc<AtomicBool>,
}

impl Cache {
    /// The cluster knows the cache from now on. Only the first time counts: a number is not given
    /// twice.
    pub(crate) fn join_cluster(&self, cluster: ClusterCache) {
        let _ = self.cluster.set(cluster);
    }

    /// Says whether a stream keeps its state in the cache.
    pub(crate) fn reserve(&self, reserved: bool) {
        self.reserved.store(reserved, Relaxed);
    }

    /// Whether it is a stream's own: clients neither touch its items, nor empty, change or drop it.
    #[inline]
    pub(crate) fn is_reserved(&self) -> bool {
        self.reserved.load(Relaxed)
    }

    /// What the cache is to the cluster.
    #[inline]
    pub(crate) fn cluster(&self) -> Option<&ClusterCache> {
        self.cluster.get()
    }

    /// Whether workers may use the store by themselves as long as the node is alone. Not where
    /// more than one memory is promised, nor where every write carries the clock of its cluster,
    /// nor where the partitions are not this node's.
    #[inline]
    pub(crate) fn is_direct_alone(&self) -> bool {
        self.settings.mode == Mode::Strong
            && self.live.needs_no_others()
            && self.cluster.get().is_none_or(|known| known.rights.is_whole())
    }

    /// The clock by which items may be ended: where copies have to agree, no later than they do.
    pub(crate) fn clock_ms(&self, now_ms: u64, cluster: Option<&Cluster>) -> u64 {
        match cluster {
            None => now_ms,
            Some(_) if self.settings.mode == Mode::Eventual => 0,
            Some(cluster) if cluster.gate().is_closed() || !self.is_direct_alone() => {
                cluster.ended_ms()
            }
            Some(_) => now_ms,
        }
    }

    /// Removes all items, now or later, and tells those who track any.
    pub(crate) fn flush(&self, at_ms: Option<u64>, now_ms: u64) {
        self.store.flush(at_ms, now_ms);
        match at_ms.filter(|&at| at > now_ms) {
            Some(at) => self.flush_at_ms.store(at, Relaxed),
            None => {
                self.flush_at_ms.store(u64::MAX, Relaxed);
                self.trackers.all_changed();
            }
        }
    }

    /// Its settings now.
    pub(crate) fn settings_now(&self) -> CacheSettings {
        self.live.over(&self.settings)
    }

    /// Bytes that the store holds: within its ceiling, unless that fell just now.
    fn held(&self) -> usize {
        held(&self.store)
    }
}

fn held(store: &Store) -> usize {
    let stats = store.stats();
    (stats.page_bytes + stats.heap_bytes) as usize
}

impl ClusterCache {
    /// The right to read a key of this hash without asking anyone, if this node has it.
    #[inline]
    pub(crate) fn ticket(&self, hash: u64, now: Mono) -> Option<Ticket<'_>> {
        self.rights.ticket(hash, self.leased.load(Relaxed), now)
    }

    /// Where a key of this hash lies.
    pub(crate) fn place(&self, cluster: &Cluster, hash: u64) -> Place {
        let partition = partition_of_hash(hash, cluster.topology().partitions);
        Place { group: self.group, partition }
    }
}

/// All caches at one moment.
pub(crate) struct Table {
    slots: Vec<Option<Arc<Cache>>>,
    names: BTreeMap<Box<str>, u32>,
}

/// Where a cache is, as a connection keeps it: the place, and whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    slot: u32,
    id: u32,
}

impl CacheKey {
    /// The cache's id.
    pub(crate) fn id(self) -> u32 {
        self.id
    }

    /// The cache `default`.
    pub(crate) const DEFAULT: Self = Self { slot: 0, id: 0 };
}

impl Table {
    /// The cache of a key; `None` when it was dropped.
    #[inline]
    pub(crate) fn get(&self, key: CacheKey) -> Option<&Arc<Cache>> {
        self.slots.get(key.slot as usize)?.as_ref().filter(|cache| cache.id == key.id)
    }

    /// The cache of a name, and its key.
    pub(crate) fn by_name(&self, name: &str) -> Option<(CacheKey, &Arc<Cache>)> {
        let slot = *self.names.get(name)?;
        let cache = self.slots.get(slot as usize)?.as_ref()?;
        Some((CacheKey { slot, id: cache.id }, cache))
    }

    /// Whether the cache is one of these.
    fn has(&self, cache: &Cache) -> bool {
        self.slots.iter().flatten().any(|one| one.id == cache.id)
    }

    /// All caches, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Cache>> {
        self.names.values().filter_map(|slot| self.slots.get(*slot as usize)?.as_ref())
    }
}

/// Why a cache was not made or dropped. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("there is a cache `{0}` with other settings")]
    Exists(Box<str>),
    #[error("there is no such cache")]
    NoSuchCache,
    #[error("the cache `default` is always there")]
    Default,
    #[error("the cache `default` has the memory that no other cache was given")]
    DefaultMemory,
    #[error("a cache can grow to {limit} bytes, {MEMORY_GROWTH_MAX} times what it was made with")]
    Growth { limit: usize },
    #[error("the cache evicts nothing and holds {held} bytes; free some first")]
    Full { held: usize },
    #[error("a node has at most {CACHES_MAX} caches")]
    TooMany,
    #[error("a cache needs at least {} bytes of memory", MEMORY_MIN)]
    TooLittle,
    #[error("a value of {value} bytes needs a cache of {} bytes at least, not {memory}", value * 2)]
    ValueTooLarge { value: usize, memory: usize },
    #[error(
        "the memory comes from the cache `default`, which can spare {spare} bytes, not {wanted}: \
         raise --memory or drop a cache"
    )]
    NoMemory { wanted: usize, spare: usize },
    #[error("the cache `default` holds what may not be evicted: {held} bytes; free some first")]
    DefaultFull { held: usize },
    #[error("memory is still being freed; try again")]
    Busy,
    #[error("cannot make the store: {0}")]
    Store(#[from] StoreError),
}

/// What of the node's memory is promised to whom.
struct Ledger {
    /// For all stores and for tracking together.
    total: usize,
    /// What of it the tracking of caches in the table takes.
    tracking: usize,
    /// The ceiling each cache is to have, by slot.
    wanted: Vec<usize>,
    /// Dropped caches that a batch or a reply may still be at.
    leaving: Vec<Leaving>,
    /// The next cache's.
    next_id: u32,
}

/// What is left of a dropped cache. Its memory is free when this was the last handle of the store.
struct Leaving {
    cache: Weak<Cache>,
    store: Store,
}

impl Leaving {
    fn is_gone(&self) -> bool {
        // Zombies are values that are still being sent.
        self.cache.strong_count() == 0 && self.store.stats().zombies == 0
    }
}

/// All caches of a node.
pub(crate) struct Caches {
    table: ArcSwap<Table>,
    default: Arc<Cache>,
    /// Held by whoever changes the table or a ceiling.
    ledger: Mutex<Ledger>,
    /// Whether some cache has not yet the ceiling that it is to have.
    unsettled: AtomicBool,
    /// For shards of new stores.
    threads: usize,
}

impl Caches {
    /// The cache `default` with all the memory there is for stores.
    pub(crate) fn new(
        settings: CacheSettings,
        total: usize,
        threads: usize,
        start_ms: u64,
    ) -> Result<Self, StoreError> {
        let store = new_store(&settings, total, threads, start_ms)?;
        let default = Arc::new(Cache::new(0, store, settings));
        let table = Table {
            slots: vec![Some(Arc::clone(&default))],
            names: BTreeMap::from([(DEFAULT.into(), 0)]),
        };
        let ledger =
            Ledger { total, tracking: 0, wanted: vec![total], leaving: Vec::new(), next_id: 1 };
        Ok(Self {
            table: ArcSwap::from_pointee(table),
            default,
            ledger: Mutex::new(ledger),
            unsettled: AtomicBool::new(false),
            threads,
        })
    }

    /// The caches now. Hold it for a batch, not for longer: it keeps dropped caches.
    #[inline]
    pub(crate) fn load(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// The caches now, for whoever waits while it holds them.
    pub(crate) fn load_full(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The cache `default`.
    #[inline]
    pub(crate) fn default_cache(&self) -> &Arc<Cache> {
        &self.default
    }

    /// Makes a cache, or finds it: one that exists with the same settings is as good as made. True
    /// when it is new.
    pub(crate) fn create(
        &self,
        mut settings: CacheSettings,
        now_ms: u64,
    ) -> Result<(Arc<Cache>, bool), CacheError> {
        let mut ledger = self.ledger.lock();
        let table = self.table.load_full();
        if let Some((_, cache)) = table.by_name(&settings.name) {
            return if cache.settings_now().serves_as(&settings) {
                Ok((Arc::clone(cache), false))
            } else {
                Err(CacheError::Exists(settings.name))
            };
        }
        if table.names.len() >= CACHES_MAX {
            return Err(CacheError::TooMany);
        }
        if settings.memory == 0 {
            settings.memory = default_share(ledger.wanted[0]).max(2 * settings.value_len_max);
        }
        let memory = settings.memory;
        if memory < MEMORY_MIN {
            return Err(CacheError::TooLittle);
        }
        let value = settings.value_len_max;
        if value > memory / 2 {
            return Err(CacheError::ValueTooLarge { value, memory });
        }
        let keeps = MEMORY_MIN.max(2 * self.default.store.value_len_max());
        let spare = ledger.wanted[0].saturating_sub(keeps);
        if memory > spare {
            return Err(CacheError::NoMemory { wanted: memory, spare });
        }
        let left = ledger.wanted[0] - memory;
        let default_held = self.default.held();
        if self.default.store.policy() == PolicyKind::None && default_held > left {
            return Err(CacheError::DefaultFull { held: default_held });
        }
        let store = new_store(&settings, memory, self.threads, now_ms)?;
        // The rest comes by `settle`, as `default` gives it.
        store.set_memory(MEMORY_MIN);
        let before = self.default.store.memory();
        self.default.store.set_memory(before.min(left));
        // No write may be refused because the cache is new: neither a value within the limit, nor
        // any that fits where nothing is evicted.
        let needs = match store.policy() {
            PolicyKind::None => memory,
            _ => MEMORY_MIN.max(2 * value),
        };
        if !self.make_room(&ledger, &table, needs, now_ms) {
            self.default.store.set_memory(before);
            return Err(CacheError::Busy);
        }
        store.set_memory(needs);
        let cache = Arc::new(Cache::new(ledger.next_id, store, settings));
        ledger.next_id = ledger.next_id.wrapping_add(1).max(1);
        ledger.wanted[0] = left;

        let mut slots = table.slots.clone();
        let slot = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        slots[slot] = Some(Arc::clone(&cache));
        ledger.wanted.resize(slots.len(), 0);
        ledger.wanted[slot] = memory;
        let mut names = table.names.clone();
        names.insert(cache.settings.name.clone(), slot as u32);
        self.table.store(Arc::new(Table { slots, names }));
        self.raise(&mut ledger);
        tracing::info!(cache = %cache.settings.name, bytes = memory, "cache made");
        Ok((cache, true))
    }

    /// Has `default` give pages until so many bytes are free. False when that would take long; it
    /// can be asked for again.
    fn make_room(&self, ledger: &Ledger, table: &Table, needs: usize, now_ms: u64) -> bool {
        let begun = Instant::now();
        while ledger.free(table) < needs {
            let more = self.default.store.maintain(now_ms, MAKE_ROOM_STEPS).more;
            if !more || begun.elapsed() >= MAKE_ROOM_MAX {
                return ledger.free(table) >= needs;
            }
        }
        true
    }

    /// Drops a cache and all its items.
    pub(crate) fn drop_cache(&self, name: &str, now_ms: u64) -> Result<(), CacheError> {
        if name == DEFAULT {
            return Err(CacheError::Default);
        }
        let mut ledger = self.ledger.lock();
        let table = self.table.load_full();
        let Some((key, cache)) = table.by_name(name) else {
            return Err(CacheError::NoSuchCache);
        };
        let slot = key.slot as usize;
        let mut slots = table.slots.clone();
        slots[slot] = None;
        let mut names = table.names.clone();
        names.remove(name);
        self.table.store(Arc::new(Table { slots, names }));
        // Some batches may be at it yet. What they write goes into the little that is left to it,
        // and is gone when the last of them is through.
        cache.store.set_memory(MEMORY_MIN);
        cache.flush(None, now_ms);
        let leaving = Leaving { cache: Arc::downgrade(cache), store: cache.store.clone() };
        ledger.leaving.push(leaving);
        let memory = std::mem::take(&mut ledger.wanted[slot]);
        ledger.wanted[0] += memory;
        if cache.trackers.is_enabled() {
            ledger.wanted[0] += Trackers::MEMORY;
            ledger.tracking -= Trackers::MEMORY;
        }
        self.unsettled.store(true, Release);
        tracing::info!(cache = name, "cache dropped");
        Ok(())
    }

    /// Gives a cache other settings: those that can change are taken from `to`. All or nothing.
    pub(crate) fn change(&self, to: &CacheSettings, now_ms: u64) -> Result<Arc<Cache>, CacheError> {
        let mut ledger = self.ledger.lock();
        let table = self.table.load_full();
        let Some((key, cache)) = table.by_name(&to.name) else {
            return Err(CacheError::NoSuchCache);
        };
        self.resize(&mut ledger, key.slot as usize, cache, to.memory, now_ms)?;
        cache.live.set(to);
        tracing::info!(cache = %to.name, "cache changed");
        Ok(Arc::clone(cache))
    }

    /// Whether a cache could have another ceiling on this node now. True when it has it already.
    pub(crate) fn check_memory(&self, name: &str, memory: usize) -> Result<bool, CacheError> {
        let ledger = self.ledger.lock();
        let table = self.table.load_full();
        let (key, cache) = table.by_name(name).ok_or(CacheError::NoSuchCache)?;
        self.check_resize(&ledger, key.slot as usize, cache, memory)?;
        Ok(memory == cache.live.memory())
    }

    /// Gives a cache another ceiling. What it has more, `default` has less.
    fn resize(
        &self,
        ledger: &mut Ledger,
        slot: usize,
        cache: &Cache,
        memory: usize,
        now_ms: u64,
    ) -> Result<(), CacheError> {
        self.check_resize(ledger, slot, cache, memory)?;
        if memory == cache.live.memory() {
            return Ok(());
        }
        let left = ledger.wanted[0] + ledger.wanted[slot] - memory;
        let more = memory.saturating_sub(ledger.wanted[slot]);
        let before = self.default.store.memory();
        self.default.store.set_memory(before.min(left));
        // Where nothing is evicted, no write may be refused because the room is on its way.
        if !self.make_room(ledger, &self.table.load_full(), more, now_ms)
            && cache.store.policy() == PolicyKind::None
        {
            self.default.store.set_memory(before);
            return Err(CacheError::Busy);
        }
        ledger.wanted[0] = left;
        ledger.wanted[slot] = memory;
        cache.live.set_memory(memory);
        self.raise(ledger);
        Ok(())
    }

    fn check_resize(
        &self,
        ledger: &Ledger,
        slot: usize,
        cache: &Cache,
        memory: usize,
    ) -> Result<(), CacheError> {
        if memory == cache.live.memory() {
            return Ok(());
        }
        if slot == 0 {
            return Err(CacheError::DefaultMemory);
        }
        if memory < MEMORY_MIN {
            return Err(CacheError::TooLittle);
        }
        let value = cache.settings.value_len_max;
        if value > memory / 2 {
            return Err(CacheError::ValueTooLarge { value, memory });
        }
        let limit = cache.settings.memory.saturating_mul(MEMORY_GROWTH_MAX);
        if memory > limit {
            return Err(CacheError::Growth { limit });
        }
        let before = ledger.wanted[slot];
        let held = cache.held();
        if memory < before && cache.store.policy() == PolicyKind::None && held > memory {
            return Err(CacheError::Full { held });
        }
        let keeps = MEMORY_MIN.max(2 * self.default.store.value_len_max());
        let spare = ledger.wanted[0].saturating_sub(keeps);
        let more = memory.saturating_sub(before);
        if more > spare {
            return Err(CacheError::NoMemory { wanted: more, spare });
        }
        let held = self.default.held();
        let is_tight = held > (ledger.wanted[0] + before).saturating_sub(memory);
        if more > 0 && self.default.store.policy() == PolicyKind::None && is_tight {
            return Err(CacheError::DefaultFull { held });
        }
        Ok(())
    }

    /// Moves the sum of all ceilings; `default` gains or loses the difference. False when that
    /// cannot be had, and then nothing changes.
    pub(crate) fn set_total(&self, total: usize) -> bool {
        let mut ledger = self.ledger.lock();
        let others = ledger.wanted[1..].iter().sum::<usize>() + ledger.tracking;
        let least = MEMORY_MIN.max(2 * self.default.store.value_len_max());
        let Some(wanted) = total.checked_sub(others).filter(|&wanted| wanted >= least) else {
            return false;
        };
        let before = self.default.store.memory();
        // Whether it can be had at all; `settle` then moves it there as far as there is room.
        if self.default.store.set_memory(wanted) != wanted {
            self.default.store.set_memory(before);
            return false;
        }
        self.default.store.set_memory(before.min(wanted));
        ledger.total = total;
        ledger.wanted[0] = wanted;
        self.raise(&mut ledger);
        true
    }

    /// Brings every cache nearer to the ceiling that it is to have, as pages become free. Cheap
    /// when all have theirs.
    pub(crate) fn settle(&self) {
        if self.unsettled.load(Acquire) {
            self.raise(&mut self.ledger.lock());
        }
    }

    fn raise(&self, ledger: &mut Ledger) {
        let table = self.table.load_full();
        ledger.leaving.retain(|leaving| !leaving.is_gone());
        let mut free = ledger.free(&table);
        let mut settled = ledger.leaving.is_empty();
        for (slot, cache) in table.slots.iter().enumerate() {
            let Some(cache) = cache else { continue };
            let (has, wanted) = (cache.store.memory(), ledger.wanted[slot]);
            if has > wanted {
                cache.store.set_memory(wanted);
            } else if has < wanted {
                let more = free.min(wanted - has);
                free -= more;
                if more > 0 {
                    cache.store.set_memory(has + more);
                }
                settled &= has + more == wanted;
            }
        }
        self.unsettled.store(!settled, Release);
    }

    /// Lets a connection track reads of a cache.
    pub(crate) fn join_trackers(
        &self,
        cache: &Cache,
        mailbox: &Arc<Mailbox>,
    ) -> Result<Tracker, TrackError> {
        self.enable_tracking(cache)?;
        let tracker = cache.trackers.join(mailbox, || {
            // Summing up passes through the lock of every shard: writes that were under way, and
            // had looked for trackers before there was one, are done.
            let _ = cache.store.stats();
        })?;
        // Dropped after this look, the cache tells this connection, too.
        if self.load().has(cache) { Ok(tracker) } else { Err(TrackError::Dropped) }
    }

    /// Sets memory aside for the tracking of a cache, once. The cache `default` gives it.
    fn enable_tracking(&self, cache: &Cache) -> Result<(), TrackError> {
        if cache.trackers.is_enabled() {
            return Ok(());
        }
        let mut ledger = self.ledger.lock();
        if cache.trackers.is_enabled() {
            return Ok(());
        }
        // A batch may still be at a cache whose memory was taken back.
        if !self.load().has(cache) {
            return Err(TrackError::Dropped);
        }
        let least = MEMORY_MIN.max(2 * self.default.store.value_len_max());
        let wanted = ledger.wanted[0].checked_sub(Trackers::MEMORY);
        let wanted = wanted.filter(|&wanted| wanted >= least).ok_or(TrackError::NoMemory)?;
        ledger.wanted[0] = wanted;
        ledger.tracking += Trackers::MEMORY;
        self.raise(&mut ledger);
        cache.trackers.enable();
        Ok(())
    }

    /// Upkeep of every cache, in bounded steps.
    pub(crate) fn maintain(&self, now_ms: u64, steps: usize, cluster: Option<&Cluster>) -> Upkeep {
        let mut sum = Upkeep::default();
        let table = self.table.load_full();
        for cache in table.iter() {
            let found = cache.store.maintain(cache.clock_ms(now_ms, cluster), steps);
            sum.more |= found.more;
            sum.next_due_ms = [sum.next_due_ms, found.next_due_ms].into_iter().flatten().min();
            let flush_at = cache.flush_at_ms.load(Relaxed);
            if flush_at <= now_ms {
                // The store has flushed itself by now, whoever touched it first.
                let _ = cache.flush_at_ms.compare_exchange(flush_at, u64::MAX, Relaxed, Relaxed);
                cache.trackers.all_changed();
            }
        }
        if self.unsettled.load(Relaxed) {
            for leaving in &self.ledger.lock().leaving {
                leaving.store.maintain(now_ms, steps);
            }
            self.settle();
            if self.unsettled.load(Relaxed) {
                // Soon, but no more than that: it may be a slow client who is waited for.
                sum.next_due_ms = Some(now_ms);
            }
        }
        sum
    }

    /// Counters and gauges over all caches.
    pub(crate) fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        self.load().iter().for_each(|cache| sum.add(&cache.store.stats()));
        sum
    }
}

fn default_share(of: usize) -> usize {
    let whole_mib = (of / SHARE_OF_DEFAULT) >> 20 << 20;
    whole_mib.max(MEMORY_MIN)
}

/// Shards of a store: four for each thread, so that they seldom meet, but none so small that
/// half-filled pages would take much of it.
fn shards(threads: usize, memory: usize) -> usize {
    let most = (memory / (16 << 20)).max(1).ilog2();
    (threads * 4).next_power_of_two().clamp(2, 256).min(1 << most).max(2)
}

fn new_store(
    settings: &CacheSettings,
    memory: usize,
    threads: usize,
    start_ms: u64,
) -> Result<Store, StoreError> {
    Store::new(StoreConfig {
        memory,
        memory_max: memory.saturating_mul(MEMORY_GROWTH_MAX),
        policy: settings.eviction,
        shards: shards(threads, memory),
        value_len_max: settings.value_len_max,
        start_ms,
    })
}

impl Ledger {
    /// Bytes that no store holds or may take as it is now.
    fn free(&self, table: &Table) -> usize {
        let caches = table.slots.iter().flatten();
        let taken: usize = caches.map(|cache| cache.held().max(cache.store.memory())).sum();
        let leaving: usize = self.leaving.iter().map(|leaving| held(&leaving.store)).sum();
        self.total.saturating_sub(self.tracking + taken + leaving)
    }
}

impl Cache {
    fn new(id: u32, store: Store, settings: CacheSettings) -> Self {
        Self {
            id,
            store,
            trackers: Arc::new(Trackers::new(id)),
            live: Live::new(&settings),
            curve: Tracked::default(),
            settings,
            largest: Mutex::default(),
            flush_at_ms: AtomicU64::new(u64::MAX),
            cluster: OnceLock::new(),
            reserved: AtomicBool::new(false),
        }
    }
}
