//! Values kept beside the program that reads them, and never older than a bound.
//!
//! ```text
//!   read        stamp := counter[slot] -> ask the node (track) -> keep value with its stamp
//!   node        someone writes the key -> pushes the key's slot
//!   push        counter[slot] += 1
//!   hit         only if stamp == counter[slot], and the connection answered a ping that was sent
//!               less than the bound ago
//! ```
//!
//! A node remembers which of 65,536 slots of keys a connection has read, so a write of one key
//! takes the values of all keys of its slot: rarely more than that one.
//!
//! What always holds:
//! - a value served at some moment was current at some moment less than
//!   [`staleness_max`](NearCacheConfig::staleness_max) before, whoever wrote it since: pushes come
//!   before the pong, so an answered ping confirms every write up to when it was sent;
//! - an answer that was on its way while its key was written is never served from here: its stamp
//!   was taken before the question was sent;
//! - a lost connection takes all values read over it;
//! - a write of this client's own is seen by its next read, at once.
//!
//! Cost of a hit: one hash, one uncontended lock, one look at the clock.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use kiln_protocol::native::INVALIDATION_SLOTS;
use lru::LruCache;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Item, freshness::Freshness};

/// What a near cache may hold, and how old it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearCacheConfig {
    /// Most items.
    pub items_max: usize,
    /// Most bytes of keys and values.
    pub bytes_max: usize,
    /// How old a value may be when it is served: writes that were acknowledged longer ago than
    /// this are always seen. Pings go to the nodes four times as often while values are read, so
    /// it should be well above the round trip; at least 10 ms.
    pub staleness_max: Duration,
}

impl Default for NearCacheConfig {
    /// 10,000 items in 64 MiB, at most 500 ms old.
    fn default() -> Self {
        Self { items_max: 10_000, bytes_max: 64 << 20, staleness_max: Duration::from_millis(500) }
    }
}

/// Least bound of staleness.
pub(crate) const STALENESS_LEAST: Duration = Duration::from_millis(10);

/// Locks that the values are spread over.
const SHARDS: usize = 8;

/// Bytes that an entry costs beside key and value, about.
const ENTRY_OVERHEAD: usize = 160;

/// The near cache of one cache.
pub(crate) struct NearCache {
    staleness_max: Duration,
    bytes_max_of_shard: usize,
    counters: Box<[AtomicU32]>,
    /// Goes up with each invalidation of everything.
    era: AtomicU32,
    shards: [Mutex<Shard>; SHARDS],
}

struct Shard {
    entries: LruCache<Box<[u8]>, Entry>,
    bytes: usize,
}

struct Entry {
    item: Item,
    stamp: Stamp,
    freshness: Arc<Freshness>,
    /// When the item ends, at the latest.
    until: Option<Instant>,
}

/// A key's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    slot: u32,
    shard: usize,
}

/// What the counters were when a question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    slot: u32,
    era: u32,
}

/// What a look into the near cache found.
pub(crate) enum Found {
    Hit(Item),
    /// The value is there, but it is not confirmed: over this connection a ping is due.
    Unconfirmed,
    Miss,
}

impl NearCache {
    pub(crate) fn new(config: NearCacheConfig) -> Self {
        let items =
            NonZeroUsize::new(config.items_max.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        Self {
            staleness_max: config.staleness_max.max(STALENESS_LEAST),
            bytes_max_of_shard: config.bytes_max / SHARDS,
            counters: (0..INVALIDATION_SLOTS).map(|_| AtomicU32::new(0)).collect(),
            era: AtomicU32::new(0),
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard { entries: LruCache::new(items), bytes: 0 })
            }),
        }
    }

    pub(crate) fn staleness_max(&self) -> Duration {
        self.staleness_max
    }

    pub(crate) fn place(key: &[u8]) -> Place {
        let hash = xxh3_64(key);
        // The slot is what the protocol says: the low bits. Others choose the shard.
        Place {
            slot: (hash & u64::from(INVALIDATION_SLOTS - 1)) as u32,
            shard: (hash >> 32) as usize % SHARDS,
        }
    }

    /// To be taken before the question is sent.
    pub(crate) fn stamp(&self, place: Place) -> Stamp {
        Stamp {
            slot: self.counters[place.slot as usize].load(Ordering::Acquire),
            era: self.era.load(Ordering::Acquire),
        }
    }

    pub(crate) fn get(&self, key: &[u8], place: Place, now: Instant) -> Found {
        let mut shard = self.shards[place.shard].lock();
        let Some(entry) = shard.entries.get(key) else {
            return Found::Miss;
        };
        // Confirmed first, stamp second: the pushes that a confirmation stands for are counted
        // before it is.
        let confirmed = entry.freshness.holds(now, self.staleness_max);
        let over = entry.until.is_some_and(|until| until <= now);
        if over || entry.freshness.has_ended() || entry.stamp != self.stamp(place) {
            shard.remove(key);
            return Found::Miss;
        }
        if !confirmed {
            return Found::Unconfirmed;
        }
        entry.freshness.want();
        Found::Hit(entry.item.clone())
    }

    /// Keeps what was read.
    pub(crate) fn put(
        &self,
        key: &[u8],
        place: Place,
        item: &Item,
        stamp: Stamp,
        freshness: &Arc<Freshness>,
        until: Option<Instant>,
    ) {
        let cost = key.len() + item.value.len() + ENTRY_OVERHEAD;
        if cost > self.bytes_max_of_shard || stamp != self.stamp(place) {
            return;
        }
        let entry = Entry { item: item.clone(), stamp, freshness: freshness.clone(), until };
        let mut shard = self.shards[place.shard].lock();
        shard.remove(key);
        if let Some((key, entry)) = shard.entries.push(key.into(), entry) {
            shard.bytes -= entry.cost(&key);
        }
        shard.bytes += cost;
        while shard.bytes > self.bytes_max_of_shard {
            let Some((key, entry)) = shard.entries.pop_lru() else { break };
            shard.bytes -= entry.cost(&key);
        }
    }

    /// Keys of a slot were written.
    pub(crate) fn invalidate(&self, slot: u32) {
        if let Some(counter) = self.counters.get(slot as usize) {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A key is being written by this client.
    pub(crate) fn invalidate_place(&self, place: Place) {
        self.invalidate(place.slot);
    }

    /// Any key may have been written.
    pub(crate) fn invalidate_all(&self) {
        self.era.fetch_add(1, Ordering::AcqRel);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.entries.clear();
            shard.bytes = 0;
        }
    }

    /// Items held now, valid or not.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }
}

impl Entry {
    fn cost(&self, key: &[u8]) -> usize {
        key.len() + self.item.value.len() + ENTRY_OVERHEAD
    }
}

impl Shard {
    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.pop(key) {
            self.bytes -= entry.cost(key);
        }
    }
}

impl std::fmt::Debug for NearCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NearCache").field("items", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    struct Fixture {
        near: NearCache,
        freshness: Arc<Freshness>,
        start: Instant,
    }

    const BOUND: Duration = Duration::from_millis(100);

    impl Fixture {
        fn new(items_max: usize, bytes_max: usize) -> Self {
            let start = Instant::now();
            let config = NearCacheConfig { items_max, bytes_max, staleness_max: BOUND };
            let freshness = Arc::new(Freshness::new(start));
            freshness.confirm(start);
            Self { near: NearCache::new(config), freshness, start }
        }

        fn put(&self, key: &str, value: &str) {
            let place = NearCache::place(key.as_bytes());
            self.put_stamped(key, value, self.near.stamp(place), None);
        }

        fn put_stamped(&self, key: &str, value: &str, stamp: Stamp, until: Option<Instant>) {
            let item = Item {
                value: Bytes::copy_from_slice(value.as_bytes()),
                version: 1,
                flags: 0,
                ttl: None,
                stale: false,
            };
            let place = NearCache::place(key.as_bytes());
            self.near.put(key.as_bytes(), place, &item, stamp, &self.freshness, until);
        }

        fn get_after(&self, key: &str, ms: u64) -> Option<Bytes> {
            let now = self.start + Duration::from_millis(ms);
            match self.near.get(key.as_bytes(), NearCache::place(key.as_bytes()), now) {
                Found::Hit(item) => Some(item.value),
                _ => None,
            }
        }
    }

    #[test]
    fn what_was_read_is_served_until_the_bound() {
        let f = Fixture::new(10, 1 << 20);
        f.put("k", "v");

        assert_eq!(f.get_after("k", 99).as_deref(), Some(b"v".as_slice()));
        assert_eq!(f.get_after("k", 100), None);
        f.freshness.confirm(f.start + Duration::from_millis(100));
        assert_eq!(f.get_after("k", 199).as_deref(), Some(b"v".as_slice()));
    }

    #[test]
    fn an_invalidation_takes_the_keys_of_its_slot_only() {
        let f = Fixture::new(100, 1 << 20);
        f.put("written", "old");
        f.put("other", "good");

        f.near.invalidate(NearCache::place(b"written").slot);

        assert_eq!(f.get_after("written", 1), None);
        assert_eq!(f.get_after("other", 1).as_deref(), Some(b"good".as_slice()));
    }

    #[test]
    fn an_answer_overtaken_by_an_invalidation_is_not_kept() {
        let f = Fixture::new(10, 1 << 20);
        let place = NearCache::place(b"k");
        let asked = f.near.stamp(place);
        f.near.invalidate(place.slot);

        f.put_stamped("k", "old", asked, None);

        assert_eq!(f.get_after("k", 1), None);
        assert_eq!(f.near.len(), 0);
    }

    #[test]
    fn an_answer_overtaken_by_an_invalidation_of_everything_is_not_kept() {
        let f = Fixture::new(10, 1 << 20);
        f.put("before", "old");
        let asked = f.near.stamp(NearCache::place(b"k"));
        f.near.invalidate_all();

        f.put_stamped("k", "old", asked, None);

        assert_eq!((f.get_after("before", 1), f.get_after("k", 1)), (None, None));
        assert_eq!(f.near.len(), 0);
    }

    #[test]
    fn a_lost_connection_takes_what_was_read_over_it() {
        let f = Fixture::new(10, 1 << 20);
        f.put("k", "v");

        f.freshness.end();

        assert_eq!(f.get_after("k", 1), None);
        assert_eq!(f.near.len(), 0);
    }

    #[test]
    fn an_item_is_not_served_beyond_its_end() {
        let f = Fixture::new(10, 1 << 20);
        let until = f.start + Duration::from_millis(10);
        f.put_stamped("k", "v", f.near.stamp(NearCache::place(b"k")), Some(until));

        assert!(f.get_after("k", 9).is_some());
        assert_eq!(f.get_after("k", 10), None);
    }

    #[test]
    fn items_and_bytes_are_bounded() {
        let f = Fixture::new(80, 1 << 20);
        for n in 0..1_000 {
            f.put(&n.to_string(), "v");
        }
        assert!(f.near.len() <= 80, "{}", f.near.len());

        let bytes_max = 64 * 1024;
        let f = Fixture::new(10_000, bytes_max);
        for n in 0..1_000 {
            f.put(&n.to_string(), &"v".repeat(n));
        }
        let bytes: usize = f.near.shards.iter().map(|shard| shard.lock().bytes).sum();
        assert!(bytes <= bytes_max, "{bytes}");
        let counted: usize = f
            .near
            .shards
            .iter()
            .map(|shard| shard.lock().entries.iter().map(|(k, e)| e.cost(k)).sum::<usize>())
            .sum();
        assert_eq!(bytes, counted);
    }

    #[test]
    fn a_value_too_large_for_the_whole_is_not_kept() {
        let f = Fixture::new(10, 8 * 1024);

        f.put("k", &"v".repeat(2048));

        assert_eq!(f.near.len(), 0);
    }
}
