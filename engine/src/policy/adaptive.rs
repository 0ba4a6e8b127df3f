//! The default policy, `adaptive`: scan resistant, and it learns the two numbers that others fix.
//!
//! ```text
//!            new key                                           key of a ghost in the window
//!               |                                                        |
//!               v                                                        v
//!        [  probation: FIFO  ] -- used twice while there --> [  main: CLOCK, counter 0..=2  ]
//!               |                                                        |
//!               v  fingerprint                                           v  fingerprint
//!        [ ghosts of probation: 1.5 x residents ]      [ ghosts of main: 3/16 x residents ]
//!               |                                                        |
//!        a young one asked for: probation grows       one asked for: probation shrinks
//! ```
//!
//! Most keys of a scan or of a long tail are never asked for again. They pass through a small
//! probation queue and leave, whatever the main queue holds. A key that comes back soon after it
//! left probation was judged too early and enters the main queue at once.
//!
//! **How small is small?** Where use is recent rather than frequent, 1 % is too little; where
//! most keys come once, 10 % is wasted. The share is learnt from misses that another share would
//! have spared. A key that *just* fell out of probation would be a hit if probation were a little
//! longer: the share grows by one entry. A key that *just* fell out of main would be a hit if
//! main were: it shrinks by one. Only young ghosts say what a small step changes, so only they
//! count, and equally many on both sides.
//!
//! **How soon is soon?** Where keys have lasting popularity, a late return is chance, and to admit
//! it drives out better ones; in long cycles it is all there is. So those that return late, in
//! the older half of the window, are marked, and the hand of the main queue looks at them when it
//! first comes by: used again, the window grows; not used, it shrinks. It settles where one in
//! two proves worth its place.
//!
//! While there is room all go to main. A loop longer than the cache then finds, round after
//! round, a part of what came first, where LRU and plain FIFO queues find nothing.
//!
//! Shares are of weight, capacity is what is resident when room is wanted: there is nothing to
//! configure. The constants below are no tuning: halving or doubling a step, or a third more or
//! fewer ghosts, moves the mean over the recorded traces at 10 % by less than 0.002
//! (`benches/hit-ratio`).
//!
//! Invariants:
//! - an entry is in exactly one queue, the one its bits name;
//! - a call of `evict` moves at most [`MOVES_MAX`] entries before it settles for the next one.
//!
//! Cost: a hit is one write to the entry's own bits, and none from the third on; no neighbour is
//! touched. A miss reads up to two ghost buckets. An eviction moves little more than one entry on
//! average. Ghosts take 3.4 to 3.8 bytes for each resident.
//!
//! Sources: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction"
//! (S3-FIFO, 2023) for the queues; Johnson, Shasha, "2Q" (1994) for ghosts that admit; Megiddo,
//! Modha, "ARC" (2003) for ghosts that set the share, there without regard to age; Jiang, Zhang,
//! "LIRS" (2002) for a main queue filled first, that newcomers do not displace.

use super::ghosts::{Ghosts, WAYS};
use super::queue::Queue;
use super::{EvictionPolicy, Nodes, Slot};

/// See the head of this file.
#[derive(Debug)]
pub struct Adaptive {
    probation: Queue,
    main: Queue,
    probation_ghosts: Ghosts,
    main_ghosts: Ghosts,
    /// Part of the weight that probation may hold.
    share: f64,
    /// Part of the ghosts of probation, the younger ones, that enter the main queue on return.
    window: f64,
    /// Weight of all residents when room was last wanted.
    weight_full: u64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            probation: Queue::default(),
            main: Queue::default(),
            probation_ghosts: Ghosts::new(PROBATION_GHOSTS_PER_16),
            main_ghosts: Ghosts::new(MAIN_GHOSTS_PER_16),
            share: SHARE_FIRST,
            window: 1.0,
            weight_full: u64::MAX,
        }
    }
}

impl EvictionPolicy for Adaptive {
    fn on_insert<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, hash: u64) {
        let residents = self.len() + 1;
        let bits = match self.probation_ghosts.recall(hash) {
            Some(younger) => self.judge_return(younger, residents),
            None => {
                // Main has judged this one itself: it may try again on probation.
                if self.main_ghosts.recall(hash).is_some() {
                    self.share = (self.share - 1.0 / residents as f64).max(SHARE_MIN);
                }
                0
            }
        };
        if bits & IN_MAIN != 0 || self.has_room() {
            nodes.set_bits(slot, bits | IN_MAIN);
            self.main.push_newest(nodes, slot);
        } else {
            nodes.set_bits(slot, 0);
            self.probation.push_newest(nodes, slot);
        }
    }

    #[inline]
    fn on_hit<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, _hash: u64) {
        let bits = nodes.bits(slot);
        let after = bits_after_use(bits);
        if after != bits {
            nodes.set_bits(slot, after);
        }
    }

    #[inline]
    fn hit_bits(bits: u8) -> Option<u8> {
        Some(bits_after_use(bits))
    }

    fn on_remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        self.queue_of(nodes, slot).remove(nodes, slot);
    }

    fn on_move<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot) {
        self.queue_of(nodes, old).replace(nodes, old, new);
    }

    fn evict<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot> {
        self.weight_full = self.weight();
        // Here rather than where entries come in: a store that never fills remembers nobody.
        let residents = self.len();
        self.probation_ghosts.fit(residents);
        self.main_ghosts.fit(residents);
        let probation_max = (self.share * self.weight_full as f64) as u64;
        let mut moves = 0;
        loop {
            let may_move = moves < MOVES_MAX;
            moves += 1;
            if self.probation.weight() > probation_max || self.main.is_empty() {
                let slot = self.probation.pop_oldest(nodes)?;
                if nodes.bits(slot) & USES < USES_MAX || !may_move {
                    self.probation_ghosts.remember(nodes.hash(slot));
                    return Some(slot);
                }
                nodes.set_bits(slot, IN_MAIN);
                self.main.push_newest(nodes, slot);
            } else {
                let slot = self.main.pop_oldest(nodes)?;
                let bits = nodes.bits(slot);
                let used = bits & USES != 0;
                if bits & LATE != 0 {
                    self.judge_window(used);
                }
                if !used || !may_move {
                    self.main_ghosts.remember(nodes.hash(slot));
                    return Some(slot);
                }
                nodes.set_bits(slot, (bits & !LATE) - 1);
                self.main.push_newest(nodes, slot);
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        self.probation_ghosts.heap_bytes() + self.main_ghosts.heap_bytes()
    }
}

impl Adaptive {
    /// Part of the weight that probation may hold now, learnt from the misses so far.
    pub fn probation_share(&self) -> f64 {
        self.share
    }

    fn len(&self) -> usize {
        self.probation.len() as usize + self.main.len() as usize
    }

    fn weight(&self) -> u64 {
        self.probation.weight() + self.main.weight()
    }

    /// A ghost of probation is asked for, `younger` of its bucket left after it. The bits for it.
    fn judge_return(&mut self, younger: usize, residents: usize) -> u8 {
        if younger < YOUNG {
            self.share = (self.share + 1.0 / residents as f64).min(SHARE_MAX);
        }
        let age = (younger as f64 + 0.5) / WAYS as f64;
        match age {
            age if age > self.window => 0,
            age if age > self.window / 2.0 => IN_MAIN | LATE,
            _ => IN_MAIN,
        }
    }

    /// One that returned late has had its time in the main queue.
    fn judge_window(&mut self, used: bool) {
        let step = WINDOW_STEP / self.len().max(1) as f64;
        let step = if used { step } else { -step };
        self.window = (self.window + step).clamp(WINDOW_MIN, 1.0);
    }

    /// The store fills: at first, or again after many entries left by themselves. The margin
    /// keeps single removals in a full store from opening main to everyone.
    fn has_room(&self) -> bool {
        self.weight() < self.weight_full - self.weight_full / 8
    }

    fn queue_of<N: Nodes>(&mut self, nodes: &N, slot: Slot) -> &mut Queue {
        if nodes.bits(slot) & IN_MAIN != 0 { &mut self.main } else { &mut self.probation }
    }
}

/// Bits of an entry: how often it was used of late, up to [`USES_MAX`]; its queue.
const USES: u8 = 0b011;
const IN_MAIN: u8 = 0b100;
/// It returned late and has not met the hand of the main queue since.
const LATE: u8 = 0b1000;

/// Uses are counted up to here; as many on probation open the main queue.
const USES_MAX: u8 = 2;

/// Entries that one call of `evict` may move before it takes the next one, used or not: without
/// it, the first call in a store where all were used would walk the whole of it.
const MOVES_MAX: u32 = 32;

/// Ghosts of probation for each 16 residents: the widest window.
const PROBATION_GHOSTS_PER_16: usize = 24;

/// Ghosts of probation are young in the first places of their bucket: the youngest eighth, which
/// is 3/16 of the residents.
const YOUNG: usize = WAYS / 8;

/// Ghosts of main for each 16 residents: just as many as are young among the others.
const MAIN_GHOSTS_PER_16: usize = PROBATION_GHOSTS_PER_16 / 8;

/// Where the share of probation starts and what it stays between. It moves fast enough for the
/// start not to matter, but a loop gives it nothing to learn from: each percent costs one there.
const SHARE_FIRST: f64 = 0.02;
const SHARE_MIN: f64 = 0.01;
const SHARE_MAX: f64 = 0.9;

/// How much one late return moves the window, times the residents; the window is never narrower
/// than a sixth of the ghosts, a quarter of the residents.
const WINDOW_STEP: f64 = 3.0;
const WINDOW_MIN: f64 = 1.0 / 6.0;

#[inline]
fn bits_after_use(bits: u8) -> u8 {
    bits + u8::from(bits & USES < USES_MAX)
}
