//! One shard: an index, the items, their order and their deadlines, changed together.
//!
//! All that happens to an item happens here, under the shard's lock, which the store holds. The
//! parts (index, policy, wheel, heap) do not know each other; this file keeps them in step.
//!
//! Invariants, between operations:
//! - an item in the index is tracked by the policy, and is on the wheel if it has a deadline;
//! - an item out of the index is nowhere, or a zombie: removed while a reader still holds it;
//! - no operation leaves an item half written: room is made first, then words and bytes change.

use crate::heap::{CHUNK_LEN, ClassId, Heap, NIL, PageKind, SLOT_LEN_MAX, Slot};
use crate::index::{Index, prefetch, prefetch_item};
use crate::item::{Items, Mark, Shape};
use crate::ops::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction, Expiry,
    GetOptions, ItemInfo, Refill, Stats, TouchOutcome, WriteMode, WriteOptions, WriteOutcome,
};
use crate::policy::{EvictionPolicy, Nodes, Policy};
use crate::wheel::Wheel;

/// High bit of an item's pins: it is out of the index and goes with its last reader.
const ZOMBIE: u32 = 1 << 31;

/// Work done for expiry on the way of another operation.
const EXPIRY_STEPS: usize = 32;

/// The shard could not make room by itself; the store may be able to, from another.
#[derive(Debug)]
pub(crate) struct Full;

/// Where the bytes of a new value come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// All of it, to be copied into the slot.
    Inline(&'a [u8]),
    /// Chunks already filled, in order, and what remains.
    Chunks { chunks: &'a [Slot], tail: &'a [u8] },
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Chunks { chunks, tail } => chunks.len() * CHUNK_LEN + tail.len(),
        }
    }
}

/// The clock of one operation.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) ms: u64,
    /// Seconds since the start of the store.
    pub(crate) s: u32,
}

pub(crate) struct Shard {
    pub(crate) items: Items,
    pub(crate) index: Index,
    policy: Policy,
    wheel: Wheel,
    version: u64,
    /// Versions of one store are unique: each shard counts in its own residue class.
    version_step: u64,
    item_bytes: u64,
    zombies: u64,
    /// Items pinned by readers, zombies included.
    pinned: u64,
    /// Chunks being filled outside the lock.
    drafted: usize,
    stats: Stats,
    number: Vec<u8>,
    /// Heap memory last reported to the region.
    heap_reported: usize,
    /// A fair part of the region, in pages: below three quarters of it, others make room first.
    fair_pages: u32,
}

impl Shard {
    pub(crate) fn new(
        heap: Heap,
        policy: Policy,
        hash: fn(&[u8]) -> u64,
        base_ms: u64,
        version_start: u64,
        version_step: u64,
    ) -> Self {
        let kind = policy.kind();
        let links = kind != crate::policy::PolicyKind::None;
        Self {
            items: Items::new(heap, links, kind.needs_extra(), hash),
            index: Index::new(),
            policy,
            wheel: Wheel::new(base_ms),
            version: version_start,
            version_step,
            item_bytes: 0,
            zombies: 0,
            pinned: 0,
            drafted: 0,
            stats: Stats::default(),
            number: Vec::new(),
            heap_reported: 0,
            fair_pages: 0,
        }
    }

    pub(crate) fn set_fair_pages(&mut self, pages: u32) {
        self.fair_pages = pages;
    }

    // ---- reading -------------------------------------------------------------------------

    /// The item with this key, if its end has not come. An item found past its end is removed.
    fn live(&mut self, hash: u64, key: &[u8], now: Now) -> Option<Slot> {
        let slot = self.index.find(&self.items, hash, key)?;
        if self.items.deadline(slot) <= now.ms {
            self.expire(slot, now);
            return None;
        }
        Some(slot)
    }

    /// Finds an item for a read and does to it what the read entails. `Ok(None)` is a miss.
    pub(crate) fn get(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &GetOptions,
        now: Now,
    ) -> Result<Option<(Slot, ItemInfo)>, Full> {
        let Some(mut slot) = self.index.find(&self.items, hash, key) else {
            return self.miss(hash, key, options, now);
        };
        if self.items.deadline(slot) <= now.ms {
            self.expire(slot, now);
            self.stats.get_expired += 1;
            return self.miss(hash, key, options, now);
        }
        if let Some(expiry) = options.touch {
            slot = self.retime(hash, key, slot, expiry, now)?;
            self.stats.touch_hits += 1;
        }
        let mut info = self.info(slot, now);
        let granted = self.items.has(slot, Mark::GRANTED);
        let wants = info.stale
            || options.recache_below_ms.is_some_and(|below| {
                info.deadline_ms.is_some_and(|deadline| deadline - now.ms < below)
            });
        if granted {
            info.refill = Refill::Taken;
        } else if wants {
            info.refill = Refill::Won;
            self.items.set_mark(slot, Mark::GRANTED, true);
        }
        if !options.no_bump {
            self.items.note_read(slot, now.s);
            self.policy.on_hit(&mut self.items, slot, hash);
        }
        self.stats.get_hits += 1;
        Ok(Some((slot, info)))
    }

    fn miss(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &GetOptions,
        now: Now,
    ) -> Result<Option<(Slot, ItemInfo)>, Full> {
        let mut found = None;
        if let Some(expiry) = options.vivify {
            let shape = Shape {
                key_len: key.len(),
                value_len: 0,
                flags: 0,
                deadline: expiry.deadline(),
                version: self.next_version(options.version),
                stale: false,
                granted: true,
            };
            let slot = self.place(hash, key, &shape, now)?;
            let info = ItemInfo { refill: Refill::Won, ..self.info(slot, now) };
            found = Some((slot, info));
        }
        self.policy.on_miss(hash);
        self.stats.get_misses += 1;
        if options.touch.is_some() {
            self.stats.touch_misses += 1;
        }
        Ok(found)
    }

    fn info(&self, slot: Slot, now: Now) -> ItemInfo {
        let deadline = self.items.deadline(slot);
        ItemInfo {
            value_len: self.items.value_len(slot),
            flags: self.items.flags(slot),
            version: self.items.version(slot),
            deadline_ms: (deadline != u64::MAX).then_some(deadline),
            idle_s: self.items.idle_s(slot, now.s),
            fetched: self.items.has(slot, Mark::FETCHED),
            stale: self.items.has(slot, Mark::STALE),
            refill: Refill::None,
        }
    }

    /// Looks without counting or changing anything.
    pub(crate) fn peek(&self, hash: u64, key: &[u8], now: Now) -> Option<(Slot, ItemInfo)> {
        let slot = self.index.find(&self.items, hash, key)?;
        (self.items.deadline(slot) > now.ms).then(|| (slot, self.info(slot, now)))
    }

    // ---- writing -------------------------------------------------------------------------

    fn next_version(&mut self, given: Option<u64>) -> u64 {
        given.unwrap_or_else(|| {
            self.version += self.version_step;
            self.version
        })
    }

    /// Whether a write that is not append or prepend would go through, and what it would meet.
    fn admit(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &WriteOptions,
        now: Now,
    ) -> Result<(Option<Slot>, bool), WriteOutcome> {
        let found = self.live(hash, key, now);
        let mut stale = false;
        if let Some(compare) = options.compare {
            let Some(slot) = found else {
                self.stats.cas_misses += 1;
                return Err(WriteOutcome::NotFound);
            };
            let version = self.items.version(slot);
            if version == compare {
                self.stats.cas_hits += 1;
            } else if options.invalidate && compare < version {
                stale = true;
            } else {
                self.stats.cas_badval += 1;
                return Err(WriteOutcome::Exists);
            }
        }
        match (options.mode, found) {
            (WriteMode::Add, Some(slot)) => {
                // The client asked for it: that keeps it, as in memcached.
                self.items.note_read(slot, now.s);
                self.policy.on_hit(&mut self.items, slot, hash);
                Err(WriteOutcome::NotStored)
            }
            (WriteMode::Replace | WriteMode::Append | WriteMode::Prepend, None) => {
                Err(WriteOutcome::NotStored)
            }
            _ => Ok((found, stale)),
        }
    }

    /// Writes a whole value (set, add, replace).
    pub(crate) fn write(
        &mut self,
        hash: u64,
        key: &[u8],
        source: Source<'_>,
        options: &WriteOptions,
        now: Now,
    ) -> Result<WriteOutcome, Full> {
        self.stats.writes += 1;
        let (found, stale) = match self.admit(hash, key, options, now) {
            Ok(admitted) => admitted,
            Err(outcome) => return Ok(outcome),
        };
        if options.expiry.is_over(now.ms) && !stale {
            if let Some(slot) = found {
                self.remove(hash, slot);
            }
            let version = self.next_version(options.version);
            let value_len = source.len();
            if let Source::Chunks { chunks, .. } = source {
                self.drop_chunks(chunks);
            }
            return Ok(WriteOutcome::Stored(ItemInfo {
                value_len,
                version,
                flags: options.flags,
                ..ItemInfo::default()
            }));
        }
        let mut shape = Shape {
            key_len: key.len(),
            value_len: source.len(),
            flags: options.flags,
            deadline: options.expiry.deadline(),
            version: self.next_version(options.version),
            stale: false,
            granted: false,
        };
        if let (true, Some(slot)) = (stale, found) {
            let deadline = self.items.deadline(slot);
            shape.deadline = (deadline != u64::MAX).then_some(deadline);
            shape.stale = true;
            shape.granted = self.items.has(slot, Mark::GRANTED);
        }
        let slot = self.place(hash, key, &shape, now)?;
        self.fill(slot, source);
        self.stats.total_items += 1;
        Ok(WriteOutcome::Stored(self.info(slot, now)))
    }

    /// Appends or prepends where the whole fits in one slot. `Ok(None)` when it does not: the
    /// store then goes the way of large values.
    pub(crate) fn extend(
        &mut self,
        hash: u64,
        key: &[u8],
        value: &[u8],
        options: &WriteOptions,
        inline_len_max: usize,
        now: Now,
    ) -> Result<Option<WriteOutcome>, Full> {
        self.stats.writes += 1;
        let slot = match self.admit(hash, key, options, now) {
            Ok((Some(slot), _)) => slot,
            Ok((None, _)) => return Ok(Some(WriteOutcome::NotStored)),
            Err(outcome) => return Ok(Some(outcome)),
        };
        let old_len = self.items.value_len(slot);
        if old_len + value.len() > inline_len_max {
            self.stats.writes -= 1;
            return Ok(None);
        }
        let old = self.items.value_to_vec(slot);
        let shape = Shape {
            value_len: old_len + value.len(),
            version: self.next_version(options.version),
            ..self.items.shape(slot)
        };
        let fetched = self.items.has(slot, Mark::FETCHED);
        let slot = self.place(hash, key, &shape, now)?;
        self.items.set_mark(slot, Mark::FETCHED, fetched);
        let (first, second): (&[u8], &[u8]) =
            if options.mode == WriteMode::Append { (&old, value) } else { (value, &old) };
        let target = self.items.tail_mut(slot);
        target[..first.len()].copy_from_slice(first);
        target[first.len()..].copy_from_slice(second);
        Ok(Some(WriteOutcome::Stored(self.info(slot, now))))
    }

    /// Increments or decrements.
    pub(crate) fn arithmetic(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &ArithmeticOptions,
        now: Now,
    ) -> Result<ArithmeticOutcome, Full> {
        let found = self.live(hash, key, now);
        match (options.direction, found.is_some()) {
            (Direction::Increment, true) => self.stats.incr_hits += 1,
            (Direction::Increment, false) => self.stats.incr_misses += 1,
            (Direction::Decrement, true) => self.stats.decr_hits += 1,
            (Direction::Decrement, false) => self.stats.decr_misses += 1,
        }
        let Some(slot) = found else {
            let Some((expiry, initial)) = options.create else {
                return Ok(ArithmeticOutcome::NotFound);
            };
            let mut number = std::mem::take(&mut self.number);
            decimal(initial, &mut number);
            let write = WriteOptions { expiry, version: options.version, ..Default::default() };
            let written = self.write(hash, key, Source::Inline(&number), &write, now);
            self.number = number;
            return written.map(|outcome| match outcome {
                WriteOutcome::Stored(info) => ArithmeticOutcome::Number(initial, info),
                _ => ArithmeticOutcome::OutOfMemory,
            });
        };
        if options.compare.is_some_and(|compare| compare != self.items.version(slot)) {
            return Ok(ArithmeticOutcome::Exists);
        }
        let Some(number) = self.number_in(slot) else {
            return Ok(ArithmeticOutcome::NotANumber);
        };
        let number = match options.direction {
            Direction::Increment => number.wrapping_add(options.delta),
            Direction::Decrement => number.saturating_sub(options.delta),
        };
        let mut digits = std::mem::take(&mut self.number);
        decimal(number, &mut digits);
        let mut shape = Shape {
            value_len: digits.len(),
            version: self.next_version(options.version),
            ..self.items.shape(slot)
        };
        if let Some(expiry) = options.touch {
            shape.deadline = expiry.deadline();
        }
        let fetched = self.items.has(slot, Mark::FETCHED);
        let placed = self.place(hash, key, &shape, now);
        if let Ok(slot) = placed {
            self.items.set_mark(slot, Mark::FETCHED, fetched);
            self.items.tail_mut(slot).copy_from_slice(&digits);
        }
        self.number = digits;
        Ok(ArithmeticOutcome::Number(number, self.info(placed?, now)))
    }

    fn number_in(&self, slot: Slot) -> Option<u64> {
        if self.items.has(slot, Mark::CHUNKED) {
            return None;
        }
        // Older memcached servers padded shorter numbers with blanks; such values come in by dumps.
        let digits = self.items.tail(slot).trim_ascii_end();
        if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Gives an item a new end.
    pub(crate) fn touch(
        &mut self,
        hash: u64,
        key: &[u8],
        expiry: Expiry,
        now: Now,
    ) -> Result<TouchOutcome, Full> {
        let Some(slot) = self.live(hash, key, now) else {
            self.stats.touch_misses += 1;
            return Ok(TouchOutcome::NotFound);
        };
        let slot = self.retime(hash, key, slot, expiry, now)?;
        self.stats.touch_hits += 1;
        let info = self.info(slot, now);
        self.policy.on_hit(&mut self.items, slot, hash);
        Ok(TouchOutcome::Touched(info))
    }

    /// Sets the deadline of an item, moving it to a slot with room for one if need be. An end
    /// already over is set all the same: the next look at the item finds it gone.
    fn retime(
        &mut self,
        hash: u64,
        key: &[u8],
        slot: Slot,
        expiry: Expiry,
        now: Now,
    ) -> Result<Slot, Full> {
        let deadline = expiry.deadline();
        if self.items.has(slot, Mark::TTL) {
            self.wheel.remove(&mut self.items, slot);
            self.items.set_deadline(slot, deadline.unwrap_or(u64::MAX));
            self.wheel.insert(&mut self.items, slot);
            return Ok(slot);
        }
        if deadline.is_none() {
            return Ok(slot);
        }
        // Large items always have room for an end, so this one's value is in its slot.
        let shape = Shape { deadline, ..self.items.shape(slot) };
        self.rewrite(hash, key, slot, &shape, now)
    }

    /// Rewrites an inline item with other optional parts and the same value.
    fn rewrite(
        &mut self,
        hash: u64,
        key: &[u8],
        slot: Slot,
        shape: &Shape,
        now: Now,
    ) -> Result<Slot, Full> {
        debug_assert!(!shape.chunked());
        let fetched = self.items.has(slot, Mark::FETCHED);
        let value = self.items.value_to_vec(slot);
        let slot = self.place(hash, key, shape, now)?;
        self.items.tail_mut(slot).copy_from_slice(&value);
        self.items.set_mark(slot, Mark::FETCHED, fetched);
        Ok(slot)
    }

    /// Removes an item, or marks it.
    pub(crate) fn delete(
        &mut self,
        hash: u64,
        key: &[u8],
        options: &DeleteOptions,
        now: Now,
    ) -> Result<DeleteOutcome, Full> {
        let Some(slot) = self.live(hash, key, now) else {
            self.stats.delete_misses += 1;
            return Ok(DeleteOutcome::NotFound);
        };
        self.stats.delete_hits += 1;
        if options.compare.is_some_and(|compare| compare != self.items.version(slot)) {
            return Ok(DeleteOutcome::Exists);
        }
        if !options.invalidate && !options.keep_empty {
            self.remove(hash, slot);
            return Ok(DeleteOutcome::Deleted);
        }
        let version = self.next_version(options.version);
        if self.items.has(slot, Mark::CHUNKED) && !options.keep_empty {
            // All that changes has its place in a large item already.
            let settable = self.items.set_version(slot, version);
            debug_assert!(settable);
            self.items.set_mark(slot, Mark::STALE, true);
            self.items.set_mark(slot, Mark::GRANTED, false);
            if let Some(expiry) = options.expiry {
                self.retime(hash, key, slot, expiry, now)?;
            }
            return Ok(DeleteOutcome::Deleted);
        }
        let mut shape = Shape { version, ..self.items.shape(slot) };
        if options.invalidate {
            shape.stale = true;
            // The next reader is to win.
            shape.granted = false;
            if let Some(expiry) = options.expiry {
                shape.deadline = expiry.deadline();
            }
        }
        if options.keep_empty {
            shape.flags = 0;
            shape.value_len = 0;
            self.place(hash, key, &shape, now)?;
        } else {
            self.rewrite(hash, key, slot, &shape, now)?;
        }
        Ok(DeleteOutcome::Deleted)
    }

    /// A write over the size limit, or without room: the older value must not survive it.
    pub(crate) fn forget(&mut self, hash: u64, key: &[u8]) {
        if let Some(slot) = self.index.find(&self.items, hash, key) {
            self.remove(hash, slot);
        }
    }

    // ---- counters that the store knows better ----------------------------------------------

    pub(crate) fn count(&mut self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats);
    }

    // ---- placing and removing ------------------------------------------------------------

    /// Finds a slot for the item of this key in this shape and writes its head and key, with the
    /// old one replaced and index, policy and wheel in step. Value bytes are the caller's to write.
    fn place(&mut self, hash: u64, key: &[u8], shape: &Shape, now: Now) -> Result<Slot, Full> {
        debug_assert!(!key.is_empty());
        // Before anything is found or placed: it may evict any item.
        self.tend_index(now);
        let class = self.items.heap.class_for(self.items.slot_len(shape));
        if let Some(slot) = self.index.find(&self.items, hash, key)
            && !shape.chunked()
            && !self.items.has(slot, Mark::CHUNKED)
            && self.items.heap.class_of(slot) == class
        {
            self.wheel_remove(slot);
            self.items.write_head(slot, shape, now.s);
            self.items.write_key(slot, key);
            self.wheel_insert(slot);
            self.policy.on_hit(&mut self.items, slot, hash);
            return Ok(slot);
        }
        let new = self.allocate(class, now)?;
        self.link(hash, key, new, shape, now)?;
        Ok(new)
    }

    /// Makes a fresh slot the item of this key. Frees the slot when there is no room in the index.
    fn link(
        &mut self,
        hash: u64,
        key: &[u8],
        new: Slot,
        shape: &Shape,
        now: Now,
    ) -> Result<(), Full> {
        // Found again: making room may have moved or evicted it.
        if let Some(old) = self.index.find(&self.items, hash, key) {
            self.items.write_head(new, shape, now.s);
            self.items.write_key(new, key);
            if !matches!(self.policy, Policy::None(_)) {
                self.copy_policy_words(old, new);
            }
            self.policy.on_move(&mut self.items, old, new);
            self.policy.on_hit(&mut self.items, new, hash);
            let replaced = self.index.replace(&mut self.items, hash, old, new);
            debug_assert!(replaced);
            self.wheel_remove(old);
            self.release(old);
        } else {
            while !self.index.is_open() || self.index.insert(&mut self.items, hash, new).is_err() {
                if !self.index.is_open() && self.index.open(&mut self.items).is_ok() {
                    continue;
                }
                if !self.make_room(None, now) {
                    self.items.heap.free_slot(new);
                    return Err(Full);
                }
            }
            self.items.write_head(new, shape, now.s);
            self.items.write_key(new, key);
            self.policy.on_insert(&mut self.items, new, hash);
        }
        self.item_bytes += self.items.footprint(new) as u64;
        self.wheel_insert(new);
        Ok(())
    }

    fn copy_policy_words(&mut self, old: Slot, new: Slot) {
        let (prev, next, bits) = (self.items.prev(old), self.items.next(old), self.items.bits(old));
        self.items.set_prev(new, prev);
        self.items.set_next(new, next);
        self.items.set_bits(new, bits);
        if self.policy.kind().needs_extra() {
            let extra = self.items.extra(old);
            self.items.set_extra(new, extra);
        }
    }

    /// Writes the value of an item just placed.
    fn fill(&mut self, slot: Slot, source: Source<'_>) {
        match source {
            Source::Inline(bytes) => self.items.tail_mut(slot).copy_from_slice(bytes),
            Source::Chunks { chunks, tail } => {
                self.drafted -= chunks.len();
                for (index, &chunk) in chunks.iter().enumerate() {
                    self.items.set_chunk(slot, index, chunk);
                    self.items.heap.set_chunk_owner(chunk, slot);
                }
                self.items.tail_mut(slot).copy_from_slice(tail);
            }
        }
    }

    fn wheel_insert(&mut self, slot: Slot) {
        if self.items.has(slot, Mark::TTL) {
            self.wheel.insert(&mut self.items, slot);
        }
    }

    fn wheel_remove(&mut self, slot: Slot) {
        if self.items.has(slot, Mark::TTL) {
            self.wheel.remove(&mut self.items, slot);
        }
    }

    /// Takes an item out of everything.
    fn remove(&mut self, hash: u64, slot: Slot) {
        self.policy.on_remove(&mut self.items, slot);
        self.unindex(hash, slot);
    }

    /// Takes an item that the policy no longer tracks out of the rest.
    fn unindex(&mut self, hash: u64, slot: Slot) {
        let removed = self.index.remove(&mut self.items, hash, slot);
        debug_assert!(removed);
        self.wheel_remove(slot);
        self.release(slot);
    }

    /// Frees an item's memory, or leaves that to its last reader.
    fn release(&mut self, slot: Slot) {
        self.item_bytes -= self.items.footprint(slot) as u64;
        if self.items.has(slot, Mark::CHUNKED) {
            let pins = self.items.pins(slot);
            if pins > 0 {
                self.items.set_pins(slot, pins | ZOMBIE);
                self.zombies += 1;
                return;
            }
        }
        self.free(slot);
    }

    fn free(&mut self, slot: Slot) {
        for index in 0..self.items.chunk_count(slot) {
            let chunk = self.items.chunk(slot, index);
            self.items.heap.free_slot(chunk);
        }
        self.items.heap.free_slot(slot);
    }

    fn expire(&mut self, slot: Slot, now: Now) {
        let lag = now.ms.saturating_sub(self.items.deadline(slot));
        self.count_expired(slot, lag);
        let hash = self.items.key_hash(slot);
        self.remove(hash, slot);
    }

    fn count_expired(&mut self, slot: Slot, lag_ms: u64) {
        self.stats.expirations += 1;
        self.stats.expired_unfetched += u64::from(!self.items.has(slot, Mark::FETCHED));
        self.stats.expiry_lag_ms_sum += lag_ms;
        self.stats.expiry_lag_ms_max = self.stats.expiry_lag_ms_max.max(lag_ms);
    }

    // ---- room ----------------------------------------------------------------------------

    /// A free slot of the class, making room as it must. What it evicts may be any item.
    fn allocate(&mut self, class: ClassId, now: Now) -> Result<Slot, Full> {
        loop {
            if let Some(slot) = self.items.heap.take_slot(class) {
                return Ok(slot);
            }
            if self.items.heap.add_page(class) {
                continue;
            }
            if self.is_poor() || !self.make_room(Some(class), now) {
                return Err(Full);
            }
        }
    }

    /// Whether other shards hold so much more that they should make room first.
    fn is_poor(&self) -> bool {
        self.items.heap.pages() < self.fair_pages / 4 * 3
    }

    /// Runs an operation that makes its room here, however little the shard holds.
    pub(crate) fn without_waiting<T>(&mut self, operation: impl FnOnce(&mut Self) -> T) -> T {
        let fair_pages = std::mem::replace(&mut self.fair_pages, 0);
        let outcome = operation(self);
        self.fair_pages = fair_pages;
        outcome
    }

    /// One step towards room: expired items, then a page that is mostly empty, then the policy's
    /// victim. False when there is nothing more to give.
    fn make_room(&mut self, wanted: Option<ClassId>, now: Now) -> bool {
        if self.expire_some(now, EXPIRY_STEPS) > 0 {
            return true;
        }
        if let Some((page, kind)) = self.items.heap.sparsest_page(wanted)
            && self.empty_page(page, kind)
        {
            return true;
        }
        let Some(victim) = self.policy.evict(&mut self.items) else { return false };
        self.stats.evictions += 1;
        self.stats.evicted_unfetched += u64::from(!self.items.has(victim, Mark::FETCHED));
        self.stats.evicted_idle_s = u64::from(self.items.idle_s(victim, now.s));
        let hash = self.items.key_hash(victim);
        self.unindex(hash, victim);
        true
    }

    /// Makes room until a page is in the pool for another shard, or `steps` are used up.
    pub(crate) fn give_page(&mut self, now: Now, mut steps: usize) -> bool {
        let before = self.items.heap.pages();
        while self.items.heap.pages() >= before {
            if steps == 0 || !self.make_room(None, now) {
                return false;
            }
            steps -= 1;
        }
        true
    }

    /// Moves the entries of a page elsewhere, so that the page returns to the pool. False when
    /// something in it had to stay: a slot or chunk that is only just being filled.
    fn empty_page(&mut self, page: u32, kind: PageKind) -> bool {
        let (class, slots) = self.items.heap.begin_emptying(page);
        let len = self.items.heap.slot_len(class);
        for old in slots {
            let movable = match kind {
                PageKind::Items => self.items.is_live(old),
                PageKind::Chunks => self.items.heap.chunk_owner(old) != NIL,
                PageKind::Buckets => false,
            };
            if !movable {
                continue;
            }
            let Some(new) = self.items.heap.take_slot_near(class) else { break };
            let (from, to) = (self.items.heap.offset(old), self.items.heap.offset(new));
            self.items.heap.copy(from, to, len);
            match kind {
                PageKind::Chunks => self.chunk_moved(old, new),
                _ => self.item_moved(old, new),
            }
            self.items.heap.free_slot(old);
            self.stats.moved += 1;
        }
        self.items.heap.end_emptying()
    }

    fn item_moved(&mut self, old: Slot, new: Slot) {
        let hash = self.items.key_hash(new);
        let replaced = self.index.replace(&mut self.items, hash, old, new);
        debug_assert!(replaced);
        self.policy.on_move(&mut self.items, old, new);
        self.item_bytes += self.items.footprint(new) as u64;
        self.item_bytes -= self.items.footprint(old) as u64;
        if self.items.has(new, Mark::TTL) {
            self.wheel.moved(&mut self.items, new);
        }
        for index in 0..self.items.chunk_count(new) {
            let chunk = self.items.chunk(new, index);
            self.items.heap.set_chunk_owner(chunk, new);
        }
    }

    fn chunk_moved(&mut self, old: Slot, new: Slot) {
        let owner = self.items.heap.chunk_owner(old);
        self.items.heap.set_chunk_owner(new, owner);
        if let Some(index) =
            (0..self.items.chunk_count(owner)).find(|&index| self.items.chunk(owner, index) == old)
        {
            self.items.set_chunk(owner, index, new);
        }
    }

    /// Keeps buckets in proportion to items: a step or two per write, never a rebuild.
    fn tend_index(&mut self, now: Now) {
        for _ in 0..2 {
            if self.index.wants_growth() {
                if self.index.grow(&mut self.items).is_err() && !self.is_poor() {
                    // Buckets come before items: long chains would slow every lookup.
                    self.make_room(None, now);
                }
            } else if self.index.wants_shrinking() && self.index.shrink(&mut self.items).is_err() {
                return;
            }
        }
    }

    // ---- large values --------------------------------------------------------------------

    /// A chunk for a value being written outside the lock. It has no owner yet, so it is never
    /// moved. It ends in an item's hands or with [`drop_chunks`](Self::drop_chunks).
    pub(crate) fn draft_chunk(&mut self, now: Now) -> Result<(Slot, *mut u8), Full> {
        let class = self.items.heap.chunk_class();
        let chunk = self.allocate(class, now)?;
        self.drafted += 1;
        Ok((chunk, self.items.heap.pointer(self.items.heap.offset(chunk))))
    }

    /// Frees chunks that belong to no item.
    pub(crate) fn drop_chunks(&mut self, chunks: &[Slot]) {
        self.drafted -= chunks.len();
        for &chunk in chunks {
            self.items.heap.free_slot(chunk);
        }
    }

    /// Keeps a chunked item's memory where it is for a reader. Pairs with [`unpin`](Self::unpin).
    pub(crate) fn pin(&mut self, slot: Slot) {
        let pins = self.items.pins(slot);
        if pins == 0 {
            self.hold_pages(slot, 1);
            self.pinned += 1;
        }
        self.items.set_pins(slot, pins + 1);
    }

    pub(crate) fn unpin(&mut self, slot: Slot) {
        let pins = self.items.pins(slot) - 1;
        self.items.set_pins(slot, pins);
        if pins & !ZOMBIE > 0 {
            return;
        }
        self.hold_pages(slot, -1);
        self.pinned -= 1;
        if pins & ZOMBIE != 0 {
            self.zombies -= 1;
            self.free(slot);
        }
    }

    fn hold_pages(&mut self, slot: Slot, by: i16) {
        self.items.heap.pin_page(slot, by);
        for index in 0..self.items.chunk_count(slot) {
            let chunk = self.items.chunk(slot, index);
            self.items.heap.pin_page(chunk, by);
        }
    }

    // ---- upkeep --------------------------------------------------------------------------

    /// Removes items whose end has come; returns how many. `steps` bounds the work.
    pub(crate) fn expire_some(&mut self, now: Now, mut steps: usize) -> usize {
        let mut expired = 0;
        while let Some(slot) = self.wheel.pop_due(&mut self.items, now.ms, &mut steps) {
            let lag = now.ms.saturating_sub(self.items.deadline(slot));
            self.count_expired(slot, lag);
            // Off the wheel already.
            self.items.set_deadline(slot, u64::MAX);
            let hash = self.items.key_hash(slot);
            self.remove(hash, slot);
            expired += 1;
        }
        expired
    }

    /// When the wheel wants to be looked at next.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.wheel.next_due_ms()
    }

    /// Bounded upkeep: expiry, pages over a lowered ceiling, index size, heap accounting. Returns
    /// whether more is to be done now.
    pub(crate) fn maintain(&mut self, now: Now, steps: usize, excess_pages: u32) -> bool {
        let expired = self.expire_some(now, steps);
        if excess_pages > 0 {
            self.give_page(now, steps);
        }
        for _ in 0..steps {
            if !self.index.wants_shrinking() || self.index.shrink(&mut self.items).is_err() {
                break;
            }
        }
        self.wheel.next_due_ms().is_some_and(|due| due <= now.ms) && expired > 0
    }

    /// Heap bytes before and after, when they changed noticeably since the last call.
    pub(crate) fn heap_change(&mut self) -> Option<(usize, usize)> {
        const NOTICEABLE: usize = 4096;
        let bytes =
            self.policy.heap_bytes() + self.index.table_bytes() + self.items.heap.table_bytes();
        if bytes.abs_diff(self.heap_reported) < NOTICEABLE {
            return None;
        }
        Some((std::mem::replace(&mut self.heap_reported, bytes), bytes))
    }

    /// Removes everything, if no reader or writer is at a large value: O(pages). False otherwise.
    pub(crate) fn clear(&mut self) -> bool {
        if self.pinned > 0 || self.drafted > 0 {
            return false;
        }
        let kind = self.policy.kind();
        self.policy = Policy::new(kind);
        self.wheel.clear();
        let pages = self.index.clear();
        self.items.heap.clear(&pages);
        self.item_bytes = 0;
        true
    }

    /// Removes the items of one bucket; returns the cursor of the next. For clearing in steps.
    pub(crate) fn clear_bucket(&mut self, cursor: u32, slots: &mut Vec<Slot>) -> Option<u32> {
        slots.clear();
        let next = self.index.walk(&self.items, cursor, |slot| slots.push(slot));
        for &slot in slots.iter() {
            let hash = self.items.key_hash(slot);
            self.remove(hash, slot);
        }
        next
    }

    pub(crate) fn info_of(&self, slot: Slot, now: Now) -> Option<ItemInfo> {
        (self.items.deadline(slot) > now.ms).then(|| self.info(slot, now))
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            items: self.index.len() as u64,
            items_with_ttl: self.wheel.len() as u64,
            item_bytes: self.item_bytes,
            index_bytes: (self.index.pages() * crate::region::PAGE_LEN) as u64,
            page_bytes: u64::from(self.items.heap.pages()) * crate::region::PAGE_LEN as u64,
            heap_bytes: self.heap_reported as u64,
            zombies: self.zombies,
            ..self.stats
        }
    }

    /// Asks for the index bucket of a hash.
    pub(crate) fn prefetch_bucket(&self, hash: u64) {
        prefetch(self.items.heap.pointer(self.index.bucket_at(hash)));
    }

    /// Asks for the item that a lookup of this hash will most likely read.
    pub(crate) fn prefetch_item(&self, hash: u64) {
        if let Some(slot) = self.index.guess(&self.items, hash) {
            prefetch_item(&self.items, slot);
        }
    }
}

fn decimal(number: u64, into: &mut Vec<u8>) {
    into.clear();
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[at..]);
}

const _: () = assert!(SLOT_LEN_MAX >= crate::item::KEY_LEN_MAX + CHUNK_LEN);
