//! Least recently used: the entry that was used longest ago leaves.
//!
//! Exact: one queue, every use makes its entry the newest. That is what memcached users expect
//! of `lru`, and it is the plain choice when reuse is local; a scan longer than the cache
//! empties it.
//!
//! Cost: a hit writes the entry, its two neighbours and the newest entry, up to three cache
//! misses; no memory of its own.

use super::queue::Queue;
use super::{EvictionPolicy, Nodes, Slot};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Lru {
    queue: Queue,
}

impl EvictionPolicy for Lru {
    fn on_insert<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, _hash: u64) {
        self.queue.push_newest(nodes, slot);
    }

    fn on_hit<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, _hash: u64) {
        self.queue.renew(nodes, slot);
    }

    fn on_remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        self.queue.remove(nodes, slot);
    }

    fn on_move<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot) {
        self.queue.replace(nodes, old, new);
    }

    fn evict<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot> {
        self.queue.pop_oldest(nodes)
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}
