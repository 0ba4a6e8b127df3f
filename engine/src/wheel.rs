//! Which items end when: a hierarchical timing wheel in the items' own words.
//!
//! Seven levels of 64 lists, one millisecond at the lowest (Varghese and Lauck, 1987, scheme 7;
//! the level is where the deadline first differs from the wheel's time, in groups of six bits). An
//! item with a deadline is on one list; items without one cost nothing here. Advancing visits only
//! lists that have something on them, found by a bit map per level, so an idle wheel costs nothing
//! whatever its span.
//!
//! Invariants:
//! - an item's list follows from the wheel's time and its deadline when it was put there, and the
//!   first item of a list names the list in its back link, so unlinking needs no search;
//! - `elapsed` never moves past a list that is not empty, nor backwards.
//!
//! Cost: insert and remove O(1); an item is moved to a lower level at most six times in its life.

use crate::heap::{NIL, Slot};
use crate::item::Items;

const LEVELS: usize = 7;
const LISTS: usize = LEVELS * 64 + 1;
/// The list that is being taken apart, step by step.
const PENDING: usize = LEVELS * 64;
/// Back links from here up name lists rather than items; the heap leaves these addresses out.
const LIST_BASE: u32 = u32::MAX - LISTS as u32;
/// Ends beyond this from the start are kept at the far end and looked at again then.
const SPAN: u64 = (1 << (6 * LEVELS)) - 1;

/// The deadlines of one shard.
pub(crate) struct Wheel {
    heads: [Slot; LISTS],
    occupied: [u64; LEVELS],
    /// Unix milliseconds of wheel time 0.
    base_ms: u64,
    /// Wheel time: all earlier lists are empty.
    elapsed: u64,
    len: usize,
}

impl Wheel {
    pub(crate) fn new(base_ms: u64) -> Self {
        Self { heads: [NIL; LISTS], occupied: [0; LEVELS], base_ms, elapsed: 0, len: 0 }
    }

    /// Forgets all items.
    pub(crate) fn clear(&mut self) {
        self.heads = [NIL; LISTS];
        self.occupied = [0; LEVELS];
        self.len = 0;
    }

    /// Items with a deadline.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts an item with the TTL mark on the list of its deadline. `u64::MAX` is on none.
    pub(crate) fn insert(&mut self, items: &mut Items, slot: Slot) {
        let deadline = items.deadline(slot);
        if deadline == u64::MAX {
            return;
        }
        let list = self.list_for(deadline);
        self.push(items, list, slot);
        self.len += 1;
    }

    /// Takes an item off its list; nothing when it is on none.
    pub(crate) fn remove(&mut self, items: &mut Items, slot: Slot) {
        if items.deadline(slot) == u64::MAX {
            return;
        }
        self.unlink(items, slot);
        self.len -= 1;
    }

    /// An item was copied to another address: its neighbours are told.
    pub(crate) fn moved(&mut self, items: &mut Items, new: Slot) {
        if items.deadline(new) == u64::MAX {
            return;
        }
        let (prev, next) = items.wheel_links(new);
        match list_of(prev) {
            Some(list) => self.heads[list] = new,
            None => items.set_wheel_next(prev, new),
        }
        if next != NIL {
            items.set_wheel_prev(next, new);
        }
    }

    /// The next item whose deadline has come, taken off the wheel; `None` when there is none by
    /// `now_ms`. `steps` bounds the work: it is reduced by one for each item touched and each list
    /// opened, and `None` comes early when it reaches 0.
    pub(crate) fn pop_due(
        &mut self,
        items: &mut Items,
        now_ms: u64,
        steps: &mut usize,
    ) -> Option<Slot> {
        let now = now_ms.saturating_sub(self.base_ms).min(SPAN);
        while *steps > 0 {
            *steps -= 1;
            let slot = self.heads[PENDING];
            if slot != NIL {
                self.unlink(items, slot);
                let deadline = items.deadline(slot);
                if deadline.saturating_sub(self.base_ms) <= now {
                    self.len -= 1;
                    return Some(slot);
                }
                let list = self.list_for(deadline);
                self.push(items, list, slot);
                continue;
            }
            let Some((list, start)) = self.next_list() else {
                self.elapsed = self.elapsed.max(now);
                return None;
            };
            if start > now {
                self.elapsed = self.elapsed.max(now);
                return None;
            }
            self.elapsed = self.elapsed.max(start);
            self.open(items, list);
        }
        None
    }

    /// Unix milliseconds by which something may be due, at the earliest.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        if self.heads[PENDING] != NIL {
            return Some(self.base_ms + self.elapsed);
        }
        self.next_list().map(|(_, start)| self.base_ms + start)
    }

    /// The earliest list that is not empty, and the wheel time at which its span begins.
    fn next_list(&self) -> Option<(usize, u64)> {
        (0..LEVELS).find_map(|level| {
            if self.occupied[level] == 0 {
                return None;
            }
            // Lists behind the wheel's own place in a level belong to no item: a lower level's
            // items all come before the next list of a higher one.
            let here = (self.elapsed >> (6 * level)) & 63;
            let ahead = self.occupied[level].rotate_right(here as u32).trailing_zeros();
            let place = (here + u64::from(ahead)) & 63;
            let round = self.elapsed & !((64 << (6 * level)) - 1);
            Some((level * 64 + place as usize, round + (place << (6 * level))))
        })
    }

    fn list_for(&self, deadline_ms: u64) -> usize {
        let when = deadline_ms.saturating_sub(self.base_ms).clamp(self.elapsed, SPAN);
        let differ = (when ^ self.elapsed) | 63;
        let level = ((63 - differ.leading_zeros() as usize) / 6).min(LEVELS - 1);
        level * 64 + ((when >> (6 * level)) & 63) as usize
    }

    fn push(&mut self, items: &mut Items, list: usize, slot: Slot) {
        let next = std::mem::replace(&mut self.heads[list], slot);
        items.set_wheel_prev(slot, LIST_BASE + list as u32);
        items.set_wheel_next(slot, next);
        if next != NIL {
            items.set_wheel_prev(next, slot);
        }
        if list != PENDING {
            self.occupied[list / 64] |= 1 << (list % 64);
        }
    }

    fn unlink(&mut self, items: &mut Items, slot: Slot) {
        let (prev, next) = items.wheel_links(slot);
        match list_of(prev) {
            Some(list) => {
                self.heads[list] = next;
                if next == NIL && list != PENDING {
                    self.occupied[list / 64] &= !(1 << (list % 64));
                }
            }
            None => items.set_wheel_next(prev, next),
        }
        if next != NIL {
            items.set_wheel_prev(next, prev);
        }
    }

    /// Makes a list the pending one.
    fn open(&mut self, items: &mut Items, list: usize) {
        debug_assert!(self.heads[PENDING] == NIL);
        let head = std::mem::replace(&mut self.heads[list], NIL);
        self.occupied[list / 64] &= !(1 << (list % 64));
        self.heads[PENDING] = head;
        if head != NIL {
            items.set_wheel_prev(head, LIST_BASE + PENDING as u32);
        }
    }
}

fn list_of(link: u32) -> Option<usize> {
    link.checked_sub(LIST_BASE).map(|list| list as usize).filter(|&list| list < LISTS)
}
