//! A cache: its shards, and what needs more than one of them or none of their locks.
//!
//! The key's hash chooses the shard; an operation holds that one lock for as long as it takes to
//! change words and copy a small value. A read of a small value that changes nothing takes no lock
//! at all ([`ShardView`]); one that only has to be noted takes it for the note. Values above 16 KiB
//! are copied outside the lock: writes
//! fill chunks that belong to nobody yet and then link them, reads pin the item and go through it
//! at leisure ([`PinnedValue`]).
//!
//! Locks: never two shards at once. When a shard cannot make room and holds less than its part,
//! the store makes the richest shard give a page, then tries again.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::ahead::Ahead;
use crate::flush::FlushTimer;
use crate::heap::{CHUNK_LEN, Heap, Slot};
use crate::index::{Lookup, Residue};
use crate::item::{Head, INLINE_LEN_MAX, KEY_LEN_MAX, Plain, VALUE_LEN_MAX};
use crate::ops::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Expiry, GetOptions,
    ItemInfo, Stats, TouchOutcome, WriteMode, WriteOptions, WriteOutcome,
};
use crate::policy::{Policy, PolicyKind};
use crate::racy::CopyBuffer;
use crate::region::{PAGE_LEN, Region};
use crate::seqlock::Moment;
use crate::shard::{Full, Now, Shard, Source};
use crate::tally::{Sums, Tally};
use crate::view::{BucketAt, ShardView, Sighting, Views};

/// The least memory a store works with, in bytes.
pub const MEMORY_MIN: usize = 4 << 20;

/// How often room is asked of other shards before a write is refused.
const STEALS_MAX: usize = 16;
/// Steps of making room in another shard for one page.
const STEAL_STEPS: usize = 4096;
/// Attempts to append to a large value that others write to at the same time.
const APPEND_ATTEMPTS_MAX: usize = 64;
/// The top bits of a hash that may choose a shard.
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
    /// Bit i is set where a hit leaves the policy bits i of an item as they are.
    settled_bits: u64,
    region: Arc<Region>,
    value_len_max: usize,
    policy: PolicyKind,
    start_ms: u64,
    flush_timer: FlushTimer,
    flushes: AtomicU64,
}

/// An item found under the lock: with it while the value is inline, pinned otherwise.
struct LockedHit<'a> {
    info: ItemInfo,
    slot: Slot,
    shard: Option<Locked<'a>>,
    pinned: Option<PinnedValue>,
}

impl LockedHit<'_> {
    fn value(&mut self) -> Value<'_> {
        match (self.pinned.take(), &self.shard) {
            (Some(pinned), _) => Value::Large(pinned),
            (None, Some(shard)) => Value::Inline(shard.items.tail(self.slot)),
            (None, None) => Value::Inline(&[]),
        }
    }
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

/// A value as a reader sees it.
pub enum Value<'a> {
    /// In one piece, perhaps under the shard's lock: copy it and return.
    Inline(&'a [u8]),
    /// Large: keep the handle and read without the lock.
    Large(PinnedValue),
}

/// What came of a read by [`Store::get_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended<A> {
    /// The item is there. With what `begin` returned; if that is something, the value was appended.
    Hit(Option<A>),
    /// It is not.
    Miss,
    /// Nothing was appended, counted or found out: the item is large or wants more than a look, or
    /// somebody is writing to its shard. [`Store::get`] reads it.
    Undone,
}

/// What a step of [`Store::scan`] found.
#[derive(Debug, Default)]
pub struct ScanPage {
    /// Where to go on; `None` at the end.
    pub next: Option<u64>,
    /// Items seen in this step.
    pub seen: usize,
}

/// An item met by a scan: its key, what is known of it, and its value if that is in one piece.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Beside key and value.
    pub info: ItemInfo,
    /// The value, or `None` for a large one.
    pub value: Option<&'a [u8]>,
}

/// Slots of one size over all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassUsage {
    /// Bytes of a slot.
    pub slot_len: usize,
    /// Pages in use for it.
    pub pages: u64,
    /// Slots that hold an item.
    pub used: u64,
    /// Slots that do not.
    pub free: u64,
}

/// What a step of upkeep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// More is due now: call again soon.
    pub more: bool,
    /// When an item may end next, in Unix milliseconds.
    pub next_due_ms: Option<u64>,
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
        let views = shards.iter().map(|shard| ShardView::new(&shard.0.lock())).collect();
        let store = Self {
            inner: Arc::new(Inner {
                views: Views::new(views),
                tally: Tally::new(),
                settled_bits: policy.settled_bits(),
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
    pub fn hash(key: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64(key)
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
        self.inner.views.number(hash)
    }

    #[inline]
    fn shard(&self, hash: u64) -> Locked<'_> {
        self.inner.lock(self.shard_number(hash))
    }

    #[inline(always)]
    fn view(&self, hash: u64) -> &ShardView {
        self.inner.views.of(hash)
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

    // ---- reading -------------------------------------------------------------------------

    /// Reads an item. `read` may run under the shard's lock when the value is inline: it should copy
    /// what it needs and return. `None` is a miss.
    ///
    /// With a touch in `options` the item may have to move; when there is no room for that, it is
    /// read all the same and keeps its end. Without room to vivify, the read is a miss.
    ///
    /// `read` must not call the store: with an inline value it may run under the lock that this
    /// needs. With a large one no lock is held, so it may use the [`PinnedValue`], and drop it.
    #[inline(always)]
    pub fn get<R>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        read: impl FnOnce(&ItemInfo, Value<'_>) -> R,
    ) -> Option<R> {
        let now = self.begin(now_ms);
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return None;
        }
        let mut buffer = CopyBuffer::new();
        match self.find_unlocked(key, hash, options, now, &mut buffer) {
            Some(Some(item)) => Some(read(&item.info(now.s), Value::Inline(item.value))),
            Some(None) => None,
            None => {
                let mut hit = self.get_locked(key, hash, options, now)?;
                let info = hit.info;
                Some(read(&info, hit.value()))
            }
        }
    }

    /// Reads a small item straight into the caller's output, as most requests want it: its value is
    /// copied once, from where it lies, without the lock.
    ///
    /// `begin` is told of the item and appends what comes before the value; if it returns `None`, no
    /// value is wanted. It may have been in vain: what it appended is taken off again with
    /// [`Appended::Undone`], and the item is to be read by [`get`](Self::get).
    #[inline(always)]
    pub fn get_into<A>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        out: &mut Vec<u8>,
        begin: impl FnOnce(&ItemInfo, &mut Vec<u8>) -> Option<A>,
    ) -> Appended<A> {
        let now = self.begin(now_ms);
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return Appended::Miss;
        }
        let len = out.len();
        let appended = self.append_unlocked(key, hash, options, now, out, begin);
        appended.unwrap_or_else(|| {
            out.truncate(len);
            Appended::Undone
        })
    }

    /// As [`get_into`](Self::get_into) says. `None` when the lock is needed: then what was appended
    /// is void.
    #[inline(always)]
    fn append_unlocked<A>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
        out: &mut Vec<u8>,
        begin: impl FnOnce(&ItemInfo, &mut Vec<u8>) -> Option<A>,
    ) -> Option<Appended<A>> {
        if !options.is_plain() {
            return None;
        }
        let view = self.view(hash);
        let moment = view.sequence.now()?;
        let sighting = view.sight(hash, key)?;
        // Nobody outside is told of anything that was not so.
        if !view.sequence.is_still(moment) {
            return None;
        }
        let Some(Sighting { head, parts, item }) = sighting else {
            self.inner.tally.miss();
            return Some(Appended::Miss);
        };
        if parts.deadline <= now.ms {
            return None;
        }
        let begun = begin(&parts.info(head, now.s), out);
        let mut end = out.len();
        if begun.is_some() {
            let value_len = head.value_len();
            out.reserve(value_len);
            item.copy_to(parts.key_at + key.len(), value_len, out.spare_capacity_mut());
            end += value_len;
        }
        if !view.sequence.is_still(moment)
            || !self.count_hit(hash, head, options.no_bump, moment, now)
        {
            return None;
        }
        // SAFETY: the bytes behind the length so far have just been written, to spare capacity.
        unsafe { out.set_len(end) };
        Some(Appended::Hit(begun))
    }

    /// Finds an item without the lock, and takes that only to note the hit, if it has to be noted.
    /// `None` when all has to be done under the lock.
    #[inline(always)]
    fn find_unlocked<'b>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
        buffer: &'b mut CopyBuffer,
    ) -> Option<Option<Plain<'b>>> {
        if !options.is_plain() {
            return None;
        }
        let view = self.view(hash);
        let moment = view.sequence.now()?;
        let Some(item) = view.find(moment, hash, key, buffer)? else {
            self.inner.tally.miss();
            return Some(None);
        };
        if item.deadline <= now.ms {
            return None;
        }
        self.count_hit(hash, item.head, options.no_bump, moment, now).then_some(Some(item))
    }

    /// Counts a hit on an item found at `moment`, and notes it if it has to be noted. False, with
    /// nothing done, when it had to be and the shard has changed since.
    #[inline(always)]
    fn count_hit(&self, hash: u64, head: Head, no_bump: bool, moment: Moment, now: Now) -> bool {
        let bits = head.bits();
        let settled = self.inner.settled_bits >> bits & 1 != 0;
        if no_bump || settled && head.is_noted(now.s, bits) {
            self.inner.tally.hit();
            return true;
        }
        self.note_hit(hash, head, moment, now)
    }

    /// Notes a hit on an item found at `moment`. False, with nothing done, when the shard has
    /// changed since.
    #[inline(never)]
    fn note_hit(&self, hash: u64, head: Head, moment: Moment, now: Now) -> bool {
        let mut shard = self.shard(hash);
        let unchanged = shard.view.sequence.is_first_since(moment);
        if unchanged {
            shard.note_plain_hit(head, hash, false, now);
        }
        unchanged
    }

    /// Reads an item under the lock: for reads that change it, and when a writer is at the shard.
    #[inline(never)]
    fn get_locked(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
    ) -> Option<LockedHit<'_>> {
        let mut shard = self.shard(hash);
        if options.is_plain() {
            match shard.find_plain(hash, key, now) {
                Lookup::Found(item) => {
                    let (head, info) = (item.head, item.info(now.s));
                    shard.note_plain_hit(head, hash, options.no_bump, now);
                    let slot = head.slot();
                    return Some(LockedHit { info, slot, shard: Some(shard), pinned: None });
                }
                Lookup::Absent => {
                    shard.note_plain_miss();
                    return None;
                }
                Lookup::Involved => {}
            }
        }
        let mut found = None;
        let shard = self.get_involved(shard, key, hash, options, now, &mut found);
        let (slot, info) = found?;
        if info.value_len <= INLINE_LEN_MAX {
            return Some(LockedHit { info, slot, shard: Some(shard), pinned: None });
        }
        drop(shard);
        Some(LockedHit { info, slot, shard: None, pinned: Some(self.pinned(hash, slot)) })
    }

    /// Finds an item for a read that may change it, and pins it when it is large. Returns the
    /// shard, locked.
    #[cold]
    fn get_involved<'a>(
        &'a self,
        mut shard: Locked<'a>,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
        found: &mut Option<(Slot, ItemInfo)>,
    ) -> Locked<'a> {
        *found = match shard.get(hash, key, options, now) {
            Ok(found) => found,
            Err(Full) => {
                drop(shard);
                let placed = self.run(hash, now, |shard| shard.get(hash, key, options, now));
                shard = self.shard(hash);
                // Found once more, under this lock: as it is now, or else with its old end.
                let again = GetOptions { touch: None, vivify: None, ..*options };
                match placed {
                    Ok(None) => None,
                    _ => shard.get(hash, key, &again, now).unwrap_or(None),
                }
            }
        };
        if let Some((slot, info)) = found
            && info.value_len > INLINE_LEN_MAX
        {
            shard.pin(*slot);
        }
        shard
    }

    /// What is known of an item, without counting as a use and without its value.
    #[must_use]
    pub fn peek(&self, key: &[u8], hash: u64, now_ms: u64) -> Option<ItemInfo> {
        let now = self.begin(now_ms);
        self.shard(hash).peek(hash, key, now).map(|(_, info)| info)
    }

    // ---- writing -------------------------------------------------------------------------

    /// Runs an operation on a key's shard, making other shards give memory while it needs them to.
    fn run<T>(
        &self,
        hash: u64,
        now: Now,
        mut operation: impl FnMut(&mut Shard) -> Result<T, Full>,
    ) -> Result<T, Full> {
        for _ in 0..STEALS_MAX {
            let mut shard = self.shard(hash);
            if let Ok(outcome) = operation(&mut shard) {
                if let Some((old, new)) = shard.heap_change() {
                    self.inner.region.account_heap(old, new);
                }
                return Ok(outcome);
            }
            drop(shard);
            if !self.steal_page(hash, now) {
                break;
            }
        }
        // Once more as a shard that need not wait for others.
        let mut shard = self.shard(hash);
        shard.without_waiting(|shard| operation(shard))
    }

    /// Makes the shard that holds most give a page to the pool.
    fn steal_page(&self, hash: u64, now: Now) -> bool {
        if self.inner.region.spare_pages() > 0 {
            return true;
        }
        let own = self.shard_number(hash);
        let richest = (0..self.inner.shards.len())
            .filter(|&number| number != own)
            .max_by_key(|&number| self.inner.lock(number).items.heap.pages());
        let Some(richest) = richest else { return false };
        self.inner.lock(richest).give_page(now, STEAL_STEPS)
    }

    /// Writes a value as `options` say.
    pub fn write(
        &self,
        key: &[u8],
        hash: u64,
        value: &[u8],
        options: &WriteOptions,
        now_ms: u64,
    ) -> WriteOutcome {
        let now = self.begin(now_ms);
        let extends = matches!(options.mode, WriteMode::Append | WriteMode::Prepend);
        if key.is_empty() || key.len() > KEY_LEN_MAX || value.len() > self.inner.value_len_max {
            let mut shard = self.shard(hash);
            shard.count(|stats| stats.too_large += 1);
            if options.mode == WriteMode::Set {
                shard.forget(hash, key);
            }
            return WriteOutcome::TooLarge;
        }
        let outcome = if extends {
            self.extend(key, hash, value, options, now)
        } else if value.len() <= INLINE_LEN_MAX {
            self.run(hash, now, |shard| shard.write(hash, key, Source::Inline(value), options, now))
        } else {
            self.write_large(key, hash, &[value], options, now)
        };
        match outcome {
            Ok(WriteOutcome::NotStored) if extends && let Some(expiry) = options.vivify => {
                let create =
                    WriteOptions { mode: WriteMode::Add, expiry, vivify: None, ..*options };
                self.write(key, hash, value, &create, now_ms)
            }
            Ok(outcome) => outcome,
            Err(Full) => {
                let mut shard = self.shard(hash);
                shard.count(|stats| {
                    stats.writes += 1;
                    stats.no_memory += 1;
                });
                // A client that writes without a condition would rather read nothing than what it
                // meant to replace. Where nothing may leave by itself, nothing does.
                if options.mode == WriteMode::Set
                    && options.compare.is_none()
                    && self.inner.policy != PolicyKind::None
                {
                    shard.forget(hash, key);
                }
                WriteOutcome::OutOfMemory
            }
        }
    }

    /// Writes a value of several pieces, above the inline size: chunks are taken one lock at a
    /// time and filled without it.
    fn write_large(
        &self,
        key: &[u8],
        hash: u64,
        pieces: &[&[u8]],
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if len <= INLINE_LEN_MAX {
            // The value to be extended was replaced by a shorter one meanwhile.
            let value = pieces.concat();
            return self.run(hash, now, |shard| {
                shard.write(hash, key, Source::Inline(&value), options, now)
            });
        }
        // Refusals come before room is made: a large value would evict much in vain.
        if let Some(refusal) = self.shard(hash).refusal(hash, key, options, now) {
            return Ok(refusal);
        }
        if len > self.memory() / 2 {
            self.shard(hash).count(|stats| stats.too_large += 1);
            return Ok(WriteOutcome::TooLarge);
        }
        let mut draft = Draft { store: self, hash, chunks: Vec::new() };
        let mut source = Pieces { pieces, at: 0 };
        for _ in 0..len / CHUNK_LEN {
            let (chunk, pointer) = self.run(hash, now, |shard| shard.draft_chunk(now))?;
            draft.chunks.push(chunk);
            // SAFETY: the chunk is CHUNK_LEN bytes of the region, which `self` keeps alive. It has
            // no owner and is on no free list, so nothing else reads, writes or moves it.
            let target = unsafe { std::slice::from_raw_parts_mut(pointer, CHUNK_LEN) };
            source.copy_to(target);
        }
        let mut tail = vec![0; len % CHUNK_LEN];
        source.copy_to(&mut tail);
        let outcome = self.run(hash, now, |shard| {
            let source = Source::Chunks { chunks: &draft.chunks, tail: &tail };
            shard.write(hash, key, source, options, now)
        })?;
        if matches!(outcome, WriteOutcome::Stored(_)) {
            // They are the item's now.
            draft.chunks.clear();
        }
        Ok(outcome)
    }

    /// Counts a write that the caller refused as over the size limit before it came here.
    pub fn count_too_large(&self, hash: u64) {
        self.shard(hash).count(|stats| {
            stats.writes += 1;
            stats.too_large += 1;
        });
    }

    fn extend(
        &self,
        key: &[u8],
        hash: u64,
        value: &[u8],
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        for _ in 0..APPEND_ATTEMPTS_MAX {
            let small = self.run(hash, now, |shard| {
                let len_max = INLINE_LEN_MAX.min(self.inner.value_len_max);
                shard.extend(hash, key, value, options, len_max, now)
            })?;
            if let Some(outcome) = small {
                return Ok(outcome);
            }
            // Large: build the new value without the lock, then write it if the item is unchanged.
            let old = self.hold(key, hash, now);
            let Some((info, old)) = old else { continue };
            if !options.invalidate && options.compare.is_some_and(|given| given != info.version) {
                // Written to meanwhile: the next look refuses it.
                continue;
            }
            if info.value_len + value.len() > self.inner.value_len_max {
                self.shard(hash).count(|stats| stats.too_large += 1);
                return Ok(WriteOutcome::TooLarge);
            }
            let mut pieces: Vec<&[u8]> = old.slices();
            if options.mode == WriteMode::Append {
                pieces.push(value);
            } else {
                pieces.insert(0, value);
            }
            let write = WriteOptions {
                mode: WriteMode::Replace,
                flags: info.flags,
                expiry: info.deadline_ms.map_or(Expiry::Never, Expiry::At),
                compare: Some(info.version),
                version: options.version,
                ..WriteOptions::default()
            };
            let outcome = self.write_large(key, hash, &pieces, &write, now)?;
            if options.compare.is_some() || matches!(outcome, WriteOutcome::Stored(_)) {
                return Ok(outcome);
            }
        }
        Err(Full)
    }

    /// An item and its value as they are, for a rewrite: no use is counted, no right given.
    fn hold(&self, key: &[u8], hash: u64, now: Now) -> Option<(ItemInfo, Held)> {
        let mut shard = self.shard(hash);
        let (slot, info) = shard.peek(hash, key, now)?;
        if info.value_len <= INLINE_LEN_MAX {
            return Some((info, Held::Copied(shard.items.tail(slot).to_vec())));
        }
        shard.pin(slot);
        drop(shard);
        Some((info, Held::Pinned(self.pinned(hash, slot))))
    }

    fn pinned(&self, hash: u64, slot: Slot) -> PinnedValue {
        PinnedValue { inner: Arc::clone(&self.inner), shard: self.shard_number(hash), slot }
    }

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

    // ---- walking and upkeep ----------------------------------------------------------------

    /// Visits the items of a few index buckets from `cursor` (0 begins), at least one bucket and
    /// until at least `least` items were seen. Items present throughout are visited at least once,
    /// those that come, go or move meanwhile perhaps. `visit` runs under a lock.
    pub fn scan(
        &self,
        cursor: u64,
        least: usize,
        now_ms: u64,
        mut visit: impl FnMut(Entry<'_>),
    ) -> ScanPage {
        /// Empty buckets looked at in one step, so that a sparse table cannot make it long.
        const BUCKETS_MAX: usize = 1024;
        let now = self.begin(now_ms);
        let mut number = (cursor >> 32) as usize;
        let mut bucket = cursor as u32;
        let mut page = ScanPage::default();
        for _ in 0..BUCKETS_MAX {
            if number >= self.inner.shards.len() {
                return page;
            }
            let shard = self.inner.lock(number);
            let next = shard.index.walk(&shard.items, bucket, |slot| {
                if let Some(info) = shard.info_of(slot, now) {
                    page.seen += 1;
                    let inline = info.value_len <= INLINE_LEN_MAX;
                    visit(Entry {
                        key: shard.items.key(slot),
                        info,
                        value: inline.then(|| shard.items.tail(slot)),
                    });
                }
            });
            (number, bucket) = match next {
                Some(next) => (number, next),
                None => (number + 1, 0),
            };
            if page.seen >= least {
                break;
            }
        }
        if number < self.inner.shards.len() {
            page.next = Some((number as u64) << 32 | u64::from(bucket));
        }
        page
    }

    /// Visits, as [`scan`](Self::scan) does, the items whose [`hash`](Self::hash) leaves `remainder`
    /// when divided by `modulus`, with that hash. Where a power of two divides the modulus, most
    /// others are passed by without a look at them: of a million items, those of one residue of 1024
    /// take a twenty-fifth of the time that a look at all takes.
    pub fn scan_part(
        &self,
        cursor: u64,
        (modulus, remainder): (u64, u64),
        least: usize,
        now_ms: u64,
        mut visit: impl FnMut(u64, Entry<'_>),
    ) -> ScanPage {
        /// Buckets looked at under one lock, and in one step.
        const BUCKETS_LOCKED: usize = 256;
        const LOCKS_MAX: usize = 64;
        let now = self.begin(now_ms);
        let wanted = Residue::new(modulus, remainder);
        let mut number = (cursor >> 32) as usize;
        let mut bucket = cursor as u32;
        let mut page = ScanPage::default();
        let mut found = Vec::new();
        for _ in 0..LOCKS_MAX {
            if number >= self.inner.shards.len() {
                return page;
            }
            let shard = self.inner.lock(number);
            found.clear();
            let next =
                shard.index.walk_part(&shard.items, bucket, BUCKETS_LOCKED, wanted, &mut found);
            for &slot in &found {
                let hash = shard.items.key_hash(slot);
                if !wanted.holds(hash) {
                    continue;
                }
                if let Some(info) = shard.info_of(slot, now) {
                    page.seen += 1;
                    let inline = info.value_len <= INLINE_LEN_MAX;
                    let value = inline.then(|| shard.items.tail(slot));
                    visit(hash, Entry { key: shard.items.key(slot), info, value });
                }
            }
            (number, bucket) = match next {
                Some(next) => (number, next),
                None => (number + 1, 0),
            };
            if page.seen >= least {
                break;
            }
        }
        if number < self.inner.shards.len() {
            page.next = Some((number as u64) << 32 | u64::from(bucket));
        }
        page
    }

    /// Upkeep in bounded steps: removes items whose end came, and gives pages back after the
    /// ceiling was lowered or the policy's memory grew at their cost. Call it every few milliseconds while it says `more`, else when the
    /// next item is due.
    pub fn maintain(&self, now_ms: u64, steps: usize) -> Upkeep {
        let now = self.begin(now_ms);
        let mut upkeep = Upkeep::default();
        for mut shard in self.inner.each() {
            // Over the ceiling: it was lowered, or the heap grew by what the policy remembers.
            let excess = self.inner.region.excess_pages();
            upkeep.more |= shard.maintain(now, steps, excess);
            if let Some((old, new)) = shard.heap_change() {
                self.inner.region.account_heap(old, new);
            }
            upkeep.next_due_ms =
                [upkeep.next_due_ms, shard.next_due_ms()].into_iter().flatten().min();
        }
        let flush_ms = self.inner.flush_timer.due_ms();
        upkeep.next_due_ms = [upkeep.next_due_ms, flush_ms].into_iter().flatten().min();
        upkeep
    }

    /// Counters and gauges over all shards.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut total = Stats::default();
        for shard in self.inner.each() {
            total.add(&shard.stats());
        }
        let Sums { hits, misses } = self.inner.tally.sums();
        total.get_hits += hits;
        total.get_misses += misses;
        total.flushes = self.inner.flushes.load(Ordering::Relaxed);
        total.page_bytes = u64::from(self.inner.region.taken_pages()) * PAGE_LEN as u64;
        total
    }

    /// Sets all counters to zero; gauges stay.
    pub fn reset_stats(&self) {
        for mut shard in self.inner.each() {
            shard.count(|stats| *stats = Stats::default());
        }
        self.inner.tally.reset();
        self.inner.flushes.store(0, Ordering::Relaxed);
    }

    /// Slots by size, smallest first.
    #[must_use]
    pub fn classes(&self) -> Vec<ClassUsage> {
        let mut classes: Vec<ClassUsage> = Vec::new();
        for shard in self.inner.each() {
            for (slot_len, pages, used, free) in shard.items.heap.class_usage() {
                let at = classes.partition_point(|class| class.slot_len < slot_len);
                if classes.get(at).is_none_or(|class| class.slot_len != slot_len) {
                    classes.insert(at, ClassUsage { slot_len, pages: 0, used: 0, free: 0 });
                }
                classes[at].pages += u64::from(pages);
                classes[at].used += u64::from(used);
                classes[at].free += u64::from(free);
            }
        }
        classes
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

/// Chunks being filled. Those that did not become an item's are freed.
struct Draft<'a> {
    store: &'a Store,
    hash: u64,
    chunks: Vec<Slot>,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.chunks.is_empty() {
            self.store.shard(self.hash).drop_chunks(&self.chunks);
        }
    }
}

/// Reads through slices as if they were one.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    at: usize,
}

impl Pieces<'_> {
    fn copy_to(&mut self, mut target: &mut [u8]) {
        while let Some((&piece, rest)) = self.pieces.split_first() {
            let from = &piece[self.at..];
            let len = from.len().min(target.len());
            target[..len].copy_from_slice(&from[..len]);
            target = &mut target[len..];
            if len < from.len() {
                self.at += len;
                return;
            }
            self.pieces = rest;
            self.at = 0;
        }
    }
}

enum Held {
    Copied(Vec<u8>),
    Pinned(PinnedValue),
}

impl Held {
    fn slices(&self) -> Vec<&[u8]> {
        match self {
            Self::Copied(bytes) => vec![bytes],
            Self::Pinned(pinned) => pinned.slices().to_vec(),
        }
    }
}

/// A large value held for reading: its memory stays as it is until the handle is dropped, even if
/// the item is overwritten, evicted or deleted meanwhile. Holding many for long keeps memory from
/// other items, so pass them on and drop them.
pub struct PinnedValue {
    inner: Arc<Inner>,
    shard: usize,
    slot: Slot,
}

impl PinnedValue {
    /// The value's bytes, in order, in pieces of at most 16 KiB.
    #[must_use]
    #[inline(never)]
    pub fn slices(&self) -> Vec<&[u8]> {
        let shard = self.inner.lock(self.shard);
        let items = &shard.items;
        let (tail_at, tail_len) = items.tail_span(self.slot);
        let spans = (0..items.chunk_count(self.slot))
            .map(|index| (items.heap.offset(items.chunk(self.slot, index)), CHUNK_LEN))
            .chain((tail_len > 0).then_some((tail_at, tail_len)));
        spans
            .map(|(at, len)| {
                let pointer = items.heap.pointer(at);
                // SAFETY: the item is pinned, so slot and chunks are not moved, freed or written
                // while `self` lives (large items are never rewritten in place), and `self` keeps
                // the region mapped. Only the pin count changes, which lies outside these spans.
                unsafe { std::slice::from_raw_parts(pointer.cast_const(), len) }
            })
            .collect()
    }
}

impl Drop for PinnedValue {
    // Not inlined: every reader of a value has it on its way, few ever come by.
    #[inline(never)]
    fn drop(&mut self) {
        self.inner.lock(self.shard).unpin(self.slot);
    }
}

impl std::fmt::Debug for PinnedValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedValue").finish_non_exhaustive()
    }
}
