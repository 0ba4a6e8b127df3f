//! Least frequently used, with ageing: LFU with dynamic aging, LFUDA.
//!
//! An entry's rank is `uses + age`, where `age` is the rank of the last victim at the time of the
//! entry's last use; the lowest rank leaves, the least recently used of equals first. Every
//! eviction so lifts what newcomers start with, and a favourite that nobody asks for any more is
//! overtaken after a bounded number of evictions: plain LFU would keep it for ever.
//!
//! ```text
//!   insert: uses = 1             rank = age + 1
//!   hit:    uses = min(+1, 255)  rank = age + uses
//!   evict:  the oldest of the lowest rank;  age = its rank
//! ```
//!
//! All ranks lie in `age..=age + 255`, since uses are bounded and age is a minimum. So a rank
//! modulo 256 says all, and one ring of 256 queues with a bitmap of those in use sorts the
//! entries: every operation is O(1) and exact. `extra` holds the rank and the uses, a byte each.
//!
//! Cost: a hit moves its entry between queues, the words of up to four entries; 6 KiB a shard.
//!
//! Sources: Arlitt, Cherkasova, Dilley, Friedrich, Jin, "Evaluating Content Management
//! Techniques for Web Proxy Caches" (1999); the ring in place of a heap follows Shah, Mitra,
//! Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme" (2010).

use super::queue::Queue;
use super::{EvictionPolicy, Nodes, Slot};

/// See the head of this file.
#[derive(Debug)]
pub struct Lfu {
    /// One queue for each rank modulo [`RANKS`]. Taken once, never grown.
    ranks: Box<[Queue; RANKS]>,
    /// Which queues hold entries, a bit each.
    used: [u64; RANKS / 64],
    /// Rank of the last victim, modulo [`RANKS`].
    age: u8,
}

impl Default for Lfu {
    fn default() -> Self {
        Self { ranks: Box::new([Queue::default(); RANKS]), used: [0; RANKS / 64], age: 0 }
    }
}

impl EvictionPolicy for Lfu {
    fn on_insert<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, _hash: u64) {
        self.place(nodes, slot, 1);
    }

    fn on_hit<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, _hash: u64) {
        let Words { rank, uses } = Words::of(nodes, slot);
        let uses = uses.saturating_add(1);
        if self.age.wrapping_add(uses) == rank {
            self.ranks[usize::from(rank)].renew(nodes, slot);
            return;
        }
        self.take(nodes, slot, rank);
        self.place(nodes, slot, uses);
    }

    fn on_remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        let rank = Words::of(nodes, slot).rank;
        self.take(nodes, slot, rank);
    }

    fn on_move<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot) {
        let rank = Words::of(nodes, old).rank;
        self.ranks[usize::from(rank)].replace(nodes, old, new);
    }

    fn evict<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot> {
        let rank = self.lowest_rank()?;
        let slot = self.ranks[usize::from(rank)].oldest();
        self.take(nodes, slot, rank);
        self.age = rank;
        Some(slot)
    }

    fn heap_bytes(&self) -> usize {
        size_of_val(&*self.ranks)
    }
}

impl Lfu {
    fn place<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, uses: u8) {
        let rank = self.age.wrapping_add(uses);
        nodes.set_extra(slot, Words { rank, uses }.packed());
        self.ranks[usize::from(rank)].push_newest(nodes, slot);
        self.used[usize::from(rank) / 64] |= 1 << (rank % 64);
    }

    fn take<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, rank: u8) {
        let queue = &mut self.ranks[usize::from(rank)];
        queue.remove(nodes, slot);
        if queue.is_empty() {
            self.used[usize::from(rank) / 64] &= !(1 << (rank % 64));
        }
    }

    /// The first rank with entries from `age` upwards, around the ring.
    fn lowest_rank(&self) -> Option<u8> {
        let (start, bit) = (usize::from(self.age) / 64, u32::from(self.age) % 64);
        let words = self.used.len();
        // The word of `age` comes twice: its upper bits first, its lower bits (the far end of the
        // ring) last.
        (0..=words).find_map(|step| {
            let at = (start + step) % words;
            let seen = match step {
                0 => self.used[at] & (u64::MAX << bit),
                _ => self.used[at],
            };
            (seen != 0).then(|| (at * 64) as u8 + seen.trailing_zeros() as u8)
        })
    }
}

/// What `extra` holds.
struct Words {
    rank: u8,
    uses: u8,
}

impl Words {
    fn of<N: Nodes>(nodes: &N, slot: Slot) -> Self {
        let [rank, uses, ..] = nodes.extra(slot).to_le_bytes();
        Self { rank, uses }
    }

    fn packed(&self) -> u32 {
        u32::from_le_bytes([self.rank, self.uses, 0, 0])
    }
}

/// Ranks in the ring: uses are counted to 255, so ranks span `age..=age + 255`.
const RANKS: usize = 256;
