//! Making room, and what has to be done from time to time.
//!
//! Room comes, in this order, from a free slot of the right size, from the pool of pages, from
//! items whose end has come, from pages that are mostly empty, and last from the policy's victim.

use super::{Full, Now, Shard};
use crate::heap::{ClassId, NIL, PageKind, Slot};
use crate::item::Mark;
use crate::policy::{EvictionPolicy, Policy};

/// Work done for expiry on the way of another operation.
const EXPIRY_STEPS: usize = 32;

impl Shard {
    /// A free slot of the class, making room as it must. What it evicts may be any item.
    pub(super) fn allocate(&mut self, class: ClassId, now: Now) -> Result<Slot, Full> {
        let pages = self.items.heap.pages();
        loop {
            if let Some(slot) = self.items.heap.take_slot(class) {
                return Ok(slot);
            }
            if self.items.heap.add_page(class) || self.items.heap.add_page_in_exchange(class, pages)
            {
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
    pub(super) fn make_room(&mut self, wanted: Option<ClassId>, now: Now) -> bool {
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
            self.stats.moved += 1;
            if self.items.heap.free_slot(old) {
                return true;
            }
        }
        self.items.heap.end_emptying();
        false
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
    pub(super) fn tend_index(&mut self, now: Now) {
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
        let mut giving = false;
        if excess_pages > 0 {
            // A round may end between pages; then the next goes on, as long as items can leave.
            let evicts = !matches!(self.policy, Policy::None(_)) && self.index.len() > 0;
            giving = self.give_page(now, steps) || evicts;
        }
        for _ in 0..steps {
            if !self.index.wants_shrinking() || self.index.shrink(&mut self.items).is_err() {
                break;
            }
        }
        let due = self.wheel.next_due_ms().is_some_and(|due| due <= now.ms);
        (due && expired > 0) || giving
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
}
