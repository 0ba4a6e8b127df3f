//! The doubly linked queue that every policy is made of, its links inside the entries.
//!
//! The head is the newest end, the tail the oldest. A queue knows the weight and the number of
//! its entries, so that shares are told without a walk.
//!
//! Invariants: `head == NIL` exactly when `tail == NIL` exactly when `len == 0`; the head has no
//! `prev`, the tail no `next`.
//!
//! Cost: O(1) each; a change in the middle writes the words of two neighbours, each of which is a
//! cache miss in a large store.

use super::{NIL, Nodes, Slot};

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    head: Slot,
    tail: Slot,
    len: u32,
    weight: u64,
}

impl Queue {
    /// The oldest entry, or [`NIL`].
    pub(super) fn oldest(&self) -> Slot {
        self.tail
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tail == NIL
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Sum of the weights of the entries.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn push_newest<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        nodes.set_prev(slot, NIL);
        nodes.set_next(slot, self.head);
        if self.head == NIL {
            self.tail = slot;
        } else {
            nodes.set_prev(self.head, slot);
        }
        self.head = slot;
        self.len += 1;
        self.weight += u64::from(nodes.weight(slot));
    }

    pub(super) fn remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        self.unlink(nodes, slot);
        self.len -= 1;
        self.weight -= u64::from(nodes.weight(slot));
    }

    /// Takes the oldest entry out.
    pub(super) fn pop_oldest<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot> {
        let slot = self.tail;
        if slot == NIL {
            return None;
        }
        self.remove(nodes, slot);
        Some(slot)
    }

    /// Makes an entry the newest; it must be in this queue.
    pub(super) fn renew<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        if slot == self.head {
            return;
        }
        self.unlink(nodes, slot);
        // Not empty: the head was another entry.
        nodes.set_prev(slot, NIL);
        nodes.set_next(slot, self.head);
        nodes.set_prev(self.head, slot);
        self.head = slot;
    }

    /// `new` carries the words of `old` and stands in its place from now on.
    pub(super) fn replace<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot) {
        let (prev, next) = (nodes.prev(old), nodes.next(old));
        if prev == NIL {
            self.head = new;
        } else {
            nodes.set_next(prev, new);
        }
        if next == NIL {
            self.tail = new;
        } else {
            nodes.set_prev(next, new);
        }
        self.weight -= u64::from(nodes.weight(old));
        self.weight += u64::from(nodes.weight(new));
    }

    fn unlink<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        let (prev, next) = (nodes.prev(slot), nodes.next(slot));
        if prev == NIL {
            self.head = next;
        } else {
            nodes.set_next(prev, next);
        }
        if next == NIL {
            self.tail = prev;
        } else {
            nodes.set_prev(next, prev);
        }
    }
}
