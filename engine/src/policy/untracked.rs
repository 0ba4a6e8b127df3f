//! The policy `none`: nothing is tracked and nothing leaves to make room.
//!
//! For caches that must refuse a write when full rather than lose an item unasked.
//!
//! Cost: none.

use super::{EvictionPolicy, Nodes, Slot};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Untracked;

impl EvictionPolicy for Untracked {
    fn on_insert<N: Nodes>(&mut self, _nodes: &mut N, _slot: Slot, _hash: u64) {}

    fn on_hit<N: Nodes>(&mut self, _nodes: &mut N, _slot: Slot, _hash: u64) {}

    #[inline]
    fn hit_bits(bits: u8) -> Option<u8> {
        Some(bits)
    }

    fn on_remove<N: Nodes>(&mut self, _nodes: &mut N, _slot: Slot) {}

    fn on_move<N: Nodes>(&mut self, _nodes: &mut N, _old: Slot, _new: Slot) {}

    fn evict<N: Nodes>(&mut self, _nodes: &mut N) -> Option<Slot> {
        None
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
