//! What passes with time, and what is known of the store as a whole.

use std::sync::atomic::Ordering;

use crate::ops::Stats;
use crate::region::PAGE_LEN;
use crate::store::Store;
use crate::tally::Sums;

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
