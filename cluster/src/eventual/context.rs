//! What a partition is lent for the length of one turn.

use crate::clock::HybridClock;
#[cfg(any(test, feature = "mutants"))]
use crate::config::Mutant;
use crate::context::Asker;
use crate::digest::Class;
use crate::effect::ItemKey;
use crate::ids::{Generation, Member, Place, Version};
use crate::node::{Reply, Report};
use crate::store::Store;
use crate::time::{Mono, Now};
use crate::topology::{CacheSpec, Eviction, Topology, TopologyCommand};

use super::EventualConfig;
use super::message::{EventualMessage, Say};

/// What a turn wants done, for the node to carry out.
#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    /// Tell another member.
    Send {
        /// Whom.
        to: Member,
        /// About which partition.
        place: Place,
        /// What.
        message: EventualMessage,
    },
    /// Answer a request.
    Reply {
        /// Who asked.
        asker: Asker,
        /// The answer.
        reply: Reply,
    },
    /// Bring this before the controller.
    Propose(TopologyCommand),
    /// A fact for logs and metrics.
    Report(Report),
}

/// What happened since the start, for metrics. All of one node's eventual partitions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventualStats {
    /// Writes taken from clients.
    pub writes: u64,
    /// Writes of other copies that won here.
    pub merged: u64,
    /// Writes of other copies that lost to a newer one here.
    pub superseded: u64,
    /// Writes refused because they lay at or below a floor: deleted, expired or evicted long ago.
    pub below_floor: u64,
    /// Items dropped because another copy had forgotten them as dead.
    pub dropped_dead: u64,
    /// Writes refused for lack of room, or because their stamp was impossible.
    pub refused: u64,
    /// Tombstones dropped at the end of their life.
    pub tombstones_dropped: u64,
    /// Tombstones dropped before it, because they outgrew their bound.
    pub tombstones_forced: u64,
    /// Copies mended because a quorum read found them behind.
    pub read_repairs: u64,
    /// Complete repair sessions that found no difference.
    pub repairs_equal: u64,
    /// Complete repair sessions that fetched something.
    pub repairs_fetched: u64,
    /// Repair sessions given up.
    pub repairs_failed: u64,
    /// Bytes fetched by repair.
    pub repair_bytes: u64,
    /// Hints taken for others.
    pub hints_kept: u64,
    /// Hints that an owner took.
    pub hints_delivered: u64,
}

/// Bytes that repair may fetch: a bucket that fills at a rate and may be overdrawn by one chunk.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    bytes_per_s: u64,
    /// When what was spent is paid for.
    paid_at: Mono,
}

impl Budget {
    /// A full bucket.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), paid_at: Mono(0) }
    }

    /// Spends bytes; returns when the next may be spent.
    pub fn spend(&mut self, bytes: u64, now: Mono) -> Mono {
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost_ns = u64::try_from(cost_ns).unwrap_or(u64::MAX);
        self.paid_at = self.paid_at.max(now).after_ns(cost_ns);
        // Up to a tenth of a second of credit, so that small repairs are not slowed at all.
        Mono(self.paid_at.0.saturating_sub(100_000_000)).max(now)
    }
}

/// What all eventual partitions of a node share.
pub struct Shared {
    /// The node's clock.
    pub clock: HybridClock,
    /// Its repair bandwidth.
    pub budget: Budget,
    /// Repair sessions that fetch.
    pub sessions: usize,
    /// What happened.
    pub stats: EventualStats,
}

/// One turn of the node, as far as its eventual partitions need it.
pub struct Turn<'a> {
    /// The time.
    pub now: Now,
    /// This node.
    pub me: Member,
    /// Its items.
    pub store: &'a mut dyn Store,
    /// The newest table known here.
    pub topology: &'a Topology,
    /// The clock that came along with messages.
    pub travelled_ms: u64,
    /// The guard left out.
    #[cfg(any(test, feature = "mutants"))]
    pub mutant: Option<Mutant>,
    /// What is to be done.
    pub out: &'a mut Vec<Out>,
}

impl Turn<'_> {
    /// Tells another member something.
    pub fn send(&mut self, to: Member, place: Place, message: EventualMessage) {
        self.out.push(Out::Send { to, place, message });
    }

    /// Answers a request.
    pub fn reply(&mut self, asker: Asker, reply: Reply) {
        self.out.push(Out::Reply { asker, reply });
    }
}

/// One turn of one partition.
pub struct Context<'a> {
    /// The time.
    pub now: Now,
    /// This node.
    pub me: Member,
    /// Its items.
    pub store: &'a mut dyn Store,
    /// Who holds what.
    pub topology: &'a Topology,
    /// Settings.
    pub config: &'a EventualConfig,
    /// What the partitions share.
    pub shared: &'a mut Shared,
    /// Bytes that the tombstones of one partition and class may take.
    pub tombstone_bytes_max: usize,
    /// The generation of the copy whose turn it is.
    pub generation: Generation,
    /// The guard left out.
    #[cfg(any(test, feature = "mutants"))]
    pub mutant: Option<Mutant>,
    /// What is to be done.
    pub out: &'a mut Vec<Out>,
}

impl Context<'_> {
    /// The time that deadlines are judged by.
    pub fn clock_ms(&mut self) -> u64 {
        self.shared.clock.now_ms(self.now)
    }

    /// The settings of a key's cache.
    pub fn cache(&self, key: &ItemKey) -> Option<&CacheSpec> {
        self.topology.cache(key.cache)
    }

    /// What a key's cache does when memory is full. One that is unknown may keep.
    pub fn class(&self, key: &ItemKey) -> Class {
        class_of(self.topology, key)
    }

    /// Tells another member something.
    pub fn send(&mut self, to: Member, place: Place, say: Say) {
        let message = EventualMessage { generation: self.generation, say };
        self.out.push(Out::Send { to, place, message });
    }

    /// Whether data stamped `version` may be stored here; the clock takes it in.
    pub fn admits(&mut self, version: Version) -> bool {
        if crate::mutant!(self, ClockNotMerged) {
            return true;
        }
        self.shared.clock.admits(version, self.now)
    }

    /// Answers a request.
    pub fn reply(&mut self, asker: Asker, reply: Reply) {
        self.out.push(Out::Reply { asker, reply });
    }
}

/// What a key's cache does when memory is full. One that is unknown may keep.
pub fn class_of(topology: &Topology, key: &ItemKey) -> Class {
    match topology.cache(key.cache).map(|cache| cache.eviction) {
        Some(Eviction::Evict) => Class::Evict,
        Some(Eviction::Refuse) | None => Class::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_lets_a_little_pass_and_then_holds_the_rate() {
        let mut budget = Budget::new(1_000_000);
        assert_eq!(budget.spend(50_000, Mono(0)), Mono(0));
        assert_eq!(budget.spend(50_000, Mono(0)), Mono(0));
        assert_eq!(budget.spend(1_000_000, Mono(0)), Mono(1_000_000_000));
        // Credit does not pile up while nothing is spent.
        let later = Mono(60_000_000_000);
        assert_eq!(budget.spend(200_000, later), later.after_ms(100));
    }
}
