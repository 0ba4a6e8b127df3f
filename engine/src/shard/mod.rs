//! One shard: an index, the items, their order and their deadlines, changed together.
//!
//! All that happens to an item happens here, under the shard's lock, which the store holds. The
//! parts (index, policy, wheel, heap) do not know each other; the shard keeps them in step.
//!
//! ```text
//!   commands   get, write, delete, ...: what each means
//!   mod        an item comes, is replaced, goes; large values change hands
//!   room       memory is wanted; time passes
//! ```
//!
//! Invariants, between operations:
//! - an item in the index is tracked by the policy, and is on the wheel if it has a deadline;
//! - an item out of the index is nowhere, or a zombie: removed while a reader still holds it;
//! - no operation leaves an item half written: room is made first, then words and bytes change.

use crate::heap::{CHUNK_LEN, Heap, SLOT_LEN_MAX, Slot};
use crate::index::Index;
use crate::item::{Items, Mark, Shape};
use crate::ops::{ItemInfo, Refill, Stats};
use crate::policy::{EvictionPolicy, Nodes, Policy};
use crate::wheel::Wheel;

mod commands;
mod room;

/// High bit of an item's pins: it is out of the index and goes with its last reader.
const ZOMBIE: u32 = 1 << 31;

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

    pub(crate) fn count(&mut self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats);
    }

    /// Finds a slot for the item of this key in this shape and writes its head and key, with the
    /// old one replaced and index, policy and wheel in step. Value bytes are the caller's to write.
    fn place(&mut self, hash: u64, key: &[u8], shape: &Shape, now: Now) -> Result<Slot, Full> {
        debug_assert!(!key.is_empty());
        // Before anything is found or placed: it may evict any item.
        self.tend_index(now);
        // The first page of the index is kept whatever becomes of this write: a shard that starts
        // when memory is full could not get two pages at once.
        while !self.index.is_open() && self.index.open(&mut self.items).is_err() {
            if !self.make_room(None, now) {
                return Err(Full);
            }
        }
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
            while self.index.insert(&mut self.items, hash, new).is_err() {
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

    // ---- what is known ------------------------------------------------------------------

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

    pub(crate) fn info_of(&self, slot: Slot, now: Now) -> Option<ItemInfo> {
        (self.items.deadline(slot) > now.ms).then(|| self.info_as_it_is(slot, now))
    }

    /// What is known of an item to one who is no reader of it: also whether a reader is at it.
    pub(crate) fn info_as_it_is(&self, slot: Slot, now: Now) -> ItemInfo {
        let granted = self.items.has(slot, Mark::GRANTED);
        let refill = if granted { Refill::Taken } else { Refill::None };
        ItemInfo { refill, ..self.info(slot, now) }
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
}

const _: () = assert!(SLOT_LEN_MAX >= crate::item::KEY_LEN_MAX + CHUNK_LEN);
