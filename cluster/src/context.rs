//! What a partition may use during one turn: the clock, the memory, the table, and a place for what
//! it wants done.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::NodeConfig;
use crate::ids::{Member, Place, Token};
use crate::message::Body;
use crate::node::{Action, Actions, Reply, Report};
use crate::rounds::Rounds;
use crate::time::{Mono, Now, TravellingClock};
use crate::topology::{Topology, TopologyCommand};

/// Who gets the reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// Whoever drives this node.
    Local(Token),
    /// Another node, which forwarded it.
    Remote {
        /// Which.
        member: Member,
        /// Its number for it.
        ask: u64,
    },
}

/// Messages of a turn by addressee.
#[derive(Debug, Default)]
pub struct Outbox {
    bodies: BTreeMap<Member, Vec<Body>>,
}

impl Outbox {
    /// Adds one.
    pub fn push(&mut self, to: Member, body: Body) {
        self.bodies.entry(to).or_default().push(body);
    }

    /// Takes all, by addressee.
    pub fn take(&mut self) -> BTreeMap<Member, Vec<Body>> {
        std::mem::take(&mut self.bodies)
    }
}

/// A token bucket: what may be spent on transfers, fed by the monotonic clock.
#[derive(Debug)]
pub struct Bandwidth {
    bytes_per_s: u64,
    burst: u64,
    /// Below zero after a large chunk: paid back before the next.
    tokens: i64,
    fed: Mono,
}

impl Bandwidth {
    /// A full bucket.
    #[must_use]
    pub fn new(bytes_per_s: u64, now: Now) -> Self {
        // A tenth of a second's worth: long enough for steady flow, too short to stall traffic.
        let burst = (bytes_per_s / 10).max(1);
        Self {
            bytes_per_s: bytes_per_s.max(1),
            burst,
            tokens: i64::try_from(burst).unwrap_or(i64::MAX),
            fed: now.mono,
        }
    }

    /// Whether something may be sent now; if not, when to ask again.
    pub fn ready(&mut self, now: Now) -> Result<(), Mono> {
        let since_ns = now.mono.since_ns(self.fed);
        let gained = u128::from(since_ns) * u128::from(self.bytes_per_s) / 1_000_000_000;
        if gained > 0 {
            let gained = i64::try_from(gained).unwrap_or(i64::MAX);
            let full = i64::try_from(self.burst).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(gained).min(full);
            self.fed = now.mono;
        }
        if self.tokens > 0 {
            return Ok(());
        }
        let missing = u128::from(self.tokens.unsigned_abs()) + 1;
        let wait_ns = missing * 1_000_000_000 / u128::from(self.bytes_per_s) + 1;
        Err(now.mono.after_ns(u64::try_from(wait_ns).unwrap_or(u64::MAX)))
    }

    /// Spends what was sent.
    pub fn spend(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Between two steps through the store: each takes up to a quarter of that, and clients, who wait
/// meanwhile, have the rest.
const FILL_STEP_EVERY_US: u64 = 500;
const DROP_STEP_EVERY_US: u64 = 1_000;

/// How often a node looks through its store for the items of a partition.
///
/// However many partitions are filled from here or dropped, and however many turns requests cause,
/// the steps keep their distance. Those who have to wait are told to come one after the other, not
/// all at the same time to be told to wait again.
#[derive(Debug, Default)]
pub struct Walks {
    filling: Pace,
    dropping: Pace,
}

#[derive(Debug, Default)]
struct Pace {
    /// When the next step may be taken.
    next: Mono,
    /// When the last of those who wait comes again.
    queue: Mono,
}

impl Walks {
    /// Takes a step for whom another node waits, if it is time; if not, when to ask again.
    pub fn step(&mut self, now: Now) -> Result<(), Mono> {
        self.filling.step(now, FILL_STEP_EVERY_US)
    }

    /// The same to drop what nobody waits for.
    pub fn step_to_drop(&mut self, now: Now) -> Result<(), Mono> {
        self.dropping.step(now, DROP_STEP_EVERY_US)
    }
}

impl Pace {
    fn step(&mut self, now: Now, every_us: u64) -> Result<(), Mono> {
        if now.mono >= self.next {
            self.next = now.mono.after_us(every_us);
            return Ok(());
        }
        self.queue = self.queue.max(now.mono).after_us(every_us);
        Err(self.queue)
    }
}

/// The transfers that this node feeds, bounded.
#[derive(Debug, Default)]
pub struct Slots {
    taken: BTreeSet<(Place, Member)>,
    next_transfer: u64,
}

impl Slots {
    /// Takes a slot. `false` when all are taken.
    pub fn take(&mut self, place: Place, to: Member, max: usize) -> bool {
        self.taken.contains(&(place, to))
            || (self.taken.len() < max && self.taken.insert((place, to)))
    }

    /// Gives it back.
    pub fn release(&mut self, place: Place, to: Member) {
        self.taken.remove(&(place, to));
    }

    /// A number for a transfer, never given before in this incarnation.
    pub fn number(&mut self) -> u64 {
        self.next_transfer += 1;
        self.next_transfer
    }

    /// Transfers under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.taken.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

/// What a partition may use during one turn.
pub struct Context<'a, S> {
    /// The time of this turn.
    pub now: Now,
    /// This node.
    pub me: Member,
    /// Its settings.
    pub config: &'a NodeConfig,
    /// Its memory.
    pub store: &'a mut S,
    /// The newest table known here.
    pub topology: &'a Topology,
    /// Its hybrid clock for strong mode.
    pub clock: &'a mut TravellingClock,
    /// Bytes of effects that other partitions of this node hold and have not applied: room that is
    /// spoken for.
    pub staged: usize,
    /// Rounds that confirm reads.
    pub rounds: &'a mut Rounds,
    /// Bandwidth for transfers.
    pub bandwidth: &'a mut Bandwidth,
    /// What this turn may still look through.
    pub walks: &'a mut Walks,
    /// Slots for transfers.
    pub slots: &'a mut Slots,
    /// Messages of this turn.
    pub outbox: &'a mut Outbox,
    /// Everything else that is to be done.
    pub actions: &'a mut Actions,
}

impl<S> Context<'_, S> {
    /// Sends to another node, with all else of this turn that goes there.
    pub fn send(&mut self, to: Member, body: Body) {
        self.outbox.push(to, body);
    }

    /// Answers a request.
    pub fn reply(&mut self, asker: Asker, reply: Reply) {
        match asker {
            Asker::Local(token) => self.actions.push(Action::Reply { token, reply }),
            Asker::Remote { member, ask } => self.send(member, Body::Answer { ask, reply }),
        }
    }

    /// Brings a command before the controller group.
    pub fn propose(&mut self, command: TopologyCommand) {
        self.actions.push(Action::Propose(command));
    }

    /// States a fact.
    pub fn report(&mut self, report: Report) {
        self.actions.push(Action::Report(report));
    }

    /// The hybrid clock, never to read less from now on.
    pub fn clock_ms(&mut self) -> u64 {
        self.clock.advance(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Now {
        Now { mono: Mono::default().after_ms(ms), wall_ms: 0 }
    }

    #[test]
    fn a_large_chunk_is_paid_back_before_the_next() {
        let mut bandwidth = Bandwidth::new(1_000_000, at_ms(0));
        assert_eq!(bandwidth.ready(at_ms(0)), Ok(()));
        bandwidth.spend(600_000);
        let later = bandwidth.ready(at_ms(0)).expect_err("half a second of debt");
        assert!(later >= at_ms(500).mono && later <= at_ms(501).mono, "{later:?}");
        assert!(bandwidth.ready(at_ms(499)).is_err());
        assert_eq!(bandwidth.ready(at_ms(502)), Ok(()));
    }

    #[test]
    fn steps_through_the_store_keep_their_distance_however_many_turns_there_are() {
        let mut walks = Walks::default();
        let mut taken = 0;
        for turn in 0..100_000 {
            let mono = Mono::default().after_us(turn);
            taken += u64::from(walks.step(Now { mono, wall_ms: 0 }).is_ok());
        }
        assert_eq!(taken, 100_000 / FILL_STEP_EVERY_US);
    }

    #[test]
    fn those_who_wait_for_a_step_come_one_after_the_other_and_each_gets_one() {
        let mut walks = Walks::default();
        assert_eq!(walks.step_to_drop(at_ms(5)), Ok(()));
        let mut times: Vec<Mono> =
            (0..300).map(|_| walks.step_to_drop(at_ms(5)).expect_err("one at a time")).collect();
        times.dedup();
        assert_eq!(times.len(), 300);
        for mono in times {
            assert_eq!(walks.step_to_drop(Now { mono, wall_ms: 0 }), Ok(()));
        }
    }

    #[test]
    fn bandwidth_saved_up_is_bounded() {
        let mut bandwidth = Bandwidth::new(1_000_000, at_ms(0));
        assert_eq!(bandwidth.ready(at_ms(60_000)), Ok(()));
        bandwidth.spend(100_001);
        assert!(bandwidth.ready(at_ms(60_000)).is_err());
    }

    #[test]
    fn slots_are_bounded_and_given_back() {
        use crate::ids::{GroupKey, Mode, PartitionId};
        let group = GroupKey { mode: Mode::Strong, copies: 2 };
        let place = |number| Place { group, partition: PartitionId(number) };
        let mut slots = Slots::default();
        assert!(slots.take(place(1), Member::default(), 1));
        assert!(slots.take(place(1), Member::default(), 1));
        assert!(!slots.take(place(2), Member::default(), 1));
        slots.release(place(1), Member::default());
        assert!(slots.take(place(2), Member::default(), 1));
    }
}
