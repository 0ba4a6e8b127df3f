//! A cache: its shards, and what needs more than one of them or none of their locks.
//!
//! The key's hash chooses the shard; an operation holds that one lock for as long as it takes to
//! change words and copy a small value. A read of a small value that changes nothing takes no lock
//! at all ([`ShardView`]); one that only has to be noted takes it for the note. Values above 16 KiB
//! are copied outside the lock: writes fill chunks that belong to nobody yet and then link them,
//! reads pin the item and go through it at leisure ([`PinnedValue`]).
//!
//! ```text
//!   mod      how a store is made; what is done to one item without its value; flushing
//!   read     get, with the lock and without
//!   write    set and its kin; room from other shards
//!   large    values held by their readers
//!   walk     scans
//!   upkeep   time passes; statistics
//! ```
//!
//! Locks: never two shards at once. When a shard cannot make room and holds less than its part,
//! the store makes the richest shard give a page, then tries again.

mod large;
mod read;
mod upkeep;
mod walk;
mod write;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

pub use large::PinnedValue;
pub use read::{Appended, Reads, Value};
pub use upkeep::{ClassUsage, Upkeep};
pub use walk::{Entry, ScanPage};

use crate::ahead::Ahead;
use crate::flush::FlushTimer;
use crate::heap::Heap;
use crate::item::{KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::ops::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Expiry, TouchOutcome,
};
use crate::policy::{Policy, PolicyKind};
use crate::region::{PAGE_LEN, Region};
use crate::shard::{Full, Now, Shard};
use crate::tally::Tally;
use crate::view::{BucketAt, ShardView, Views};

/// The least memory a store works with, in bytes.
pub const MEMORY_MIN: usize = 4 << 20;

/// As many as the eight bits of a hash tell apart that choose the shard.
const SHARDS_MAX: usize = 256;

/// How a store is made.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Ceiling in bytes for items, index and the policy's memory together. At least [`MEMORY_MIN`].
    pub memory: usize,
    /// The ceiling can be raised up to here later; costs address space only.
    pub memory_max: usize,
    /// Which items leave when there is no room.
    pub policy: PolicyKind,
    /// Shards, a power of two up to 256; 0 chooses by `memory`. More shards collide less, fewer
    /// waste less on half-filled pages.
    pub shards: usize,
    /// Longest value in bytes, at most [`VALUE_LEN_MAX`].
    pub value_len_max: usize,
    /// Unix milliseconds at the start; times before it are taken as it.
    pub start_ms: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            memory_max: 0,
            policy: PolicyKind::default(),
            shards: 0,
            value_len_max: 1 << 20,
            start_ms: 0,
        }
    }
}

/// Why a store cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Less memory than the store works with.
    #[error("{memory} bytes are too little for a store: it needs at least {MEMORY_MIN}")]
    TooSmall {
        /// What was asked.
        memory: usize,
    },
    /// The value limit is out of range.
    #[error("values of {value_len_max} bytes are not possible: at most {VALUE_LEN_MAX}")]
    ValuesTooLarge {
        /// What was asked.
        value_len_max: usize,
    },
    /// The number of shards is not a power of two, or out of range.
    #[error("{shards} shards are not possible: a power of two up to {SHARDS_MAX}")]
    Shards {
        /// What was asked.
        shards: usize,
    },
    /// The operating system refused the address space.
    #[error("cannot reserve {bytes} bytes of address space")]
    Map {
        /// What was asked of it.
        bytes: usize,
        /// Its answer.
        source: std::io::Error,
    },
}

/// A cache in memory. Cheap to clone; clones are the same cache.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Apart by two cache lines, so that locks do not disturb each other.
#[repr(align(128))]
struct Padded(Mutex<Shard>);

/// A shard, locked. Readers without the lock believe nothing they see meanwhile.
struct Locked<'a> {
    shard: MutexGuard<'a, Shard>,
    view: &'a ShardView,
}

impl Deref for Locked<'_> {
    type Target = Shard;

    #[inline]
    fn deref(&self) -> &Shard {
        &self.shard
    }
}

impl DerefMut for Locked<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }
}

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        self.view.publish(&self.shard);
        self.view.sequence.end_write();
    }
}

struct Inner {
    // Before the shards: views read what these own.
    views: Views,
    shards: Box<[Padded]>,
    tally: Tally,
    region: Arc<Region>,
    value_len_max: usize,
    policy: PolicyKind,
    start_ms: u64,
    flush_timer: FlushTimer,
    flushes: AtomicU64,
}

impl Inner {
    #[inline]
    fn lock(&self, number: usize) -> Locked<'_> {
        let view = self.views.numbered(number);
        let shard = self.shards[number].0.lock();
        view.sequence.begin_write();
        Locked { shard, view }
    }

    /// The shards in turn, each locked until the next is asked for.
    fn each(&self) -> impl Iterator<Item = Locked<'_>> {
        (0..self.shards.len()).map(|number| self.lock(number))
    }
}

impl Store {
    /// Makes an empty store. Touches little memory; pages are taken as items come.
    ///
    /// # Errors
    /// [`StoreError`] says which setting cannot be had.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        let StoreConfig { memory, memory_max, policy, shards, value_len_max, start_ms } = config;
        if memory < MEMORY_MIN {
            return Err(StoreError::TooSmall { memory });
        }
        if value_len_max > VALUE_LEN_MAX {
            return Err(StoreError::ValuesTooLarge { value_len_max });
        }
        // A shard wants some hundred pages, so that a half-filled page per size is little.
        let shards = if shards == 0 {
            (memory / (32 << 20)).next_power_of_two().clamp(2, 64)
        } else if shards.is_power_of_two() && shards <= SHARDS_MAX {
            shards
        } else {
            return Err(StoreError::Shards { shards });
        };
        let region = Region::new(memory, memory_max)
            .map_err(|source| StoreError::Map { bytes: memory.max(memory_max), source })?;
        let shards: Box<[Padded]> = (0..shards)
            .map(|number| {
                Padded(Mutex::new(Shard::new(
                    Heap::new(Arc::clone(&region), memory / shards),
                    Policy::new(policy),
                    Self::hash,
                    start_ms,
                    number as u64,
                    shards as u64,
                )))
            })
            .collect();
        let views =
            shards.iter().map(|shard| ShardView::new(&shard.0.lock(), policy, start_ms)).collect();
        let store = Self {
            inner: Arc::new(Inner {
                views: Views::new(views),
                tally: Tally::new(),
                shards,
                region,
                value_len_max,
                policy,
                start_ms,
                flush_timer: FlushTimer::new(),
                flushes: AtomicU64::new(0),
            }),
        };
        store.share_out();
        Ok(store)
    }

    /// The hash that places a key: xxh3, 64 bits. Compute it once per request.
    #[must_use]
    #[inline]
    pub fn hash(key: &[u8]) -> u64 {
        crate::hash::hash(key)
    }

    /// Longest value that is stored.
    #[must_use]
    pub fn value_len_max(&self) -> usize {
        self.inner.value_len_max
    }

    /// The eviction policy.
    #[must_use]
    pub fn policy(&self) -> PolicyKind {
        self.inner.policy
    }

    /// The memory ceiling in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.inner.region.limit_bytes()
    }

    /// Moves the memory ceiling, within `MEMORY_MIN..=memory_max` of the configuration, and
    /// returns what it is now. Lowering evicts in the steps of [`maintain`](Self::maintain).
    pub fn set_memory(&self, memory: usize) -> usize {
        let set = self.inner.region.set_limit_bytes(memory.max(MEMORY_MIN));
        self.share_out();
        set
    }

    fn share_out(&self) {
        let pages = self.inner.region.limit_bytes() / PAGE_LEN / self.inner.shards.len();
        for mut shard in self.inner.each() {
            shard.set_fair_pages(u32::try_from(pages).unwrap_or(u32::MAX));
        }
    }

    #[inline]
    fn shard_number(&self, hash: u64) -> usize {
        self.inner.views.by_hash().number(hash)
    }

    #[inline]
    fn shard(&self, hash: u64) -> Locked<'_> {
        self.inner.lock(self.shard_number(hash))
    }

    #[inline(always)]
    fn view(&self, hash: u64) -> &ShardView {
        self.inner.views.by_hash().of(hash)
    }

    #[inline]
    fn clock(&self, now_ms: u64) -> Now {
        let since = now_ms.saturating_sub(self.inner.start_ms);
        Now { ms: now_ms, s: (since / 1000) as u32 }
    }

    /// What every operation does first: the clock, and a delayed flush that is due.
    #[inline]
    fn begin(&self, now_ms: u64) -> Now {
        if self.inner.flush_timer.take_due(now_ms) {
            self.clear();
            self.mark_flush();
        }
        self.clock(now_ms)
    }

    // ---- batches -------------------------------------------------------------------------

    /// The hashes of a batch in turn, to run its operations with: while one is at work, what the
    /// next ones need is on its way from memory. The misses of a batch then overlap with each
    /// other and with the work on those before them.
    #[inline]
    pub fn ahead<'a>(&'a self, hashes: &'a [u64]) -> Ahead<'a> {
        Ahead::new(self, hashes)
    }

    /// Asks for the index bucket of a key.
    #[inline(always)]
    pub(crate) fn prefetch_bucket(&self, hash: u64) -> BucketAt {
        self.view(hash).prefetch_bucket(hash)
    }

    /// Asks for the item of a key, whose bucket was asked for a while ago. True when that is in a
    /// second bucket, now asked for: then [`prefetch_chained`](Self::prefetch_chained) goes on.
    #[inline(always)]
    pub(crate) fn prefetch_item(&self, hash: u64, bucket: BucketAt) -> bool {
        self.view(hash).prefetch_item(hash, bucket)
    }

    #[inline]
    pub(crate) fn prefetch_chained(&self, hash: u64) {
        self.view(hash).prefetch_chained(hash);
    }

    // ---- changing ------------------------------------------------------------------------

    /// Removes an item, or marks it as `options` say.
    pub fn delete(
        &self,
        key: &[u8],
        hash: u64,
        options: &DeleteOptions,
        now_ms: u64,
    ) -> DeleteOutcome {
        let now = self.begin(now_ms);
        self.run(hash, now, |shard| shard.delete(hash, key, options, now)).unwrap_or_else(|Full| {
            // No room to keep it marked: its reader refills a missing item as well as a stale one.
            let remove = DeleteOptions { compare: options.compare, ..DeleteOptions::default() };
            let removed = self.run(hash, now, |shard| shard.delete(hash, key, &remove, now));
            removed.unwrap_or(DeleteOutcome::NotFound)
        })
    }

    /// Changes a number kept as decimal text.
    pub fn arithmetic(
        &self,
        key: &[u8],
        hash: u64,
        options: &ArithmeticOptions,
        now_ms: u64,
    ) -> ArithmeticOutcome {
        let now = self.begin(now_ms);
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return ArithmeticOutcome::NotFound;
        }
        self.run(hash, now, |shard| shard.arithmetic(hash, key, options, now))
            .unwrap_or(ArithmeticOutcome::OutOfMemory)
    }

    /// Gives an item a new end.
    pub fn touch(&self, key: &[u8], hash: u64, expiry: Expiry, now_ms: u64) -> TouchOutcome {
        let now = self.begin(now_ms);
        self.run(hash, now, |shard| shard.touch(hash, key, expiry, now))
            .unwrap_or(TouchOutcome::OutOfMemory)
    }

    /// Marks an item as another copy of it is marked: as waiting for a new value, and as being
    /// refilled by a reader. False when there is none.
    pub fn mark(&self, key: &[u8], hash: u64, stale: bool, granted: bool, now_ms: u64) -> bool {
        let now = self.begin(now_ms);
        self.shard(hash).mark(hash, key, stale, granted, now)
    }

    /// Removes all items, now or when `at_ms` comes. A later call replaces an earlier delay.
    pub fn flush(&self, at_ms: Option<u64>, now_ms: u64) {
        // An earlier one that is due still counts.
        self.begin(now_ms);
        self.inner.flushes.fetch_add(1, Ordering::Relaxed);
        let later = at_ms.filter(|&at| at > now_ms);
        self.inner.flush_timer.set(later);
        if later.is_none() {
            self.clear();
        }
        self.mark_flush();
    }

    /// Tells readers whether a flush waits. Whoever set it last comes last to some shard, or finds there
    /// what has been told of it already.
    fn mark_flush(&self) {
        for shard in self.inner.each() {
            shard.view.sequence.mark_flush(self.inner.flush_timer.due_ms().is_some());
        }
    }

    fn clear(&self) {
        let mut slots = Vec::new();
        for number in 0..self.inner.shards.len() {
            if self.inner.lock(number).clear() {
                continue;
            }
            // Readers hold large values: bucket by bucket, with the lock free in between.
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                cursor = self.inner.lock(number).clear_bucket(at, &mut slots);
            }
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("memory", &self.memory())
            .field("policy", &self.inner.policy)
            .field("shards", &self.inner.shards.len())
            .finish()
    }
}
