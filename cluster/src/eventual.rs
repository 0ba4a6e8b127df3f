//! Eventual mode on one node: its copies, its clock, and the hints it keeps for others.
//!
//! ```text
//!   request --> owner: stamp, apply, tell the others --> answered after one, a quorum or all
//!   others  --> merge: the greater write of a key stays, in whatever order they arrive
//!   repair  --> digests find what got lost, at an interval and soon after a heal
//!   no owner in reach --> hint: kept here, handed to the first owner that answers
//! ```
//!
//! What is promised: an owner, or a node that stands in, takes writes on any side of a cut; after it
//! heals all owners hold the same writes within seconds; what was deleted or is over does not come
//! back, also from a copy that was away longer than any tombstone lives. What is not: compare-and-set
//! and increments are evaluated on the copy that takes them, and of concurrent writes the last wins.
//!
//! Cost: a write sends one message to each other owner and gets one back. A partition at rest sends a
//! message of some 30 bytes per owner and repair interval. Knowing what a copy has takes 168
//! bytes and the key once more per item; see [`Eventual::bytes`].

pub mod catalog;
pub mod context;
mod merge;
pub mod message;
mod reads;
pub mod replica;
pub mod sync;
mod upkeep;
mod window;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::{ClockConfig, HybridClock};
use crate::context::Asker;
use crate::effect::{Item, ItemKey};
use crate::evaluate::{Rules, evaluate};
use crate::hints::{HintConfig, Hints};
use crate::ids::{CacheId, Generation, Member, Mode, PartitionId, Place, Version};
use crate::message::Body;
use crate::node::{Refusal, Reply, Request};
use crate::store::Store;
use crate::time::Mono;
use crate::tombstone::TombstoneConfig;
use crate::topology::Acks;

use self::catalog::State;
use self::context::{Budget, Context, Shared};
use self::message::{Record, Say};
use self::replica::{EventualReplica, Role};

pub use self::context::{EventualStats, Out, Turn};
pub use self::message::EventualMessage;

/// Partitions for which hints are sent in one turn.
const HINTED_PLACES_MAX: usize = 64;

/// Settings of eventual mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventualConfig {
    /// The clock's limits.
    pub clock: ClockConfig,
    /// How long deletes are remembered.
    pub tombstones: TombstoneConfig,
    /// What is kept for owners that are away.
    pub hints: HintConfig,
    /// How long a request may wait for other owners.
    pub request_timeout_ms: u64,
    /// Silence after which an unconfirmed write or an unanswered question is sent again.
    pub resend_ms: u64,
    /// Writes of one partition that wait for confirmations; more are refused as busy.
    pub pending_writes_max: usize,
    /// Quorum reads of one partition that wait; more are refused as busy.
    pub pending_reads_max: usize,
    /// Answers kept per client and partition, so that a retry is not carried out twice.
    pub answers_per_client: usize,
    /// Clients whose answers a partition keeps.
    pub answer_clients_max: usize,
    /// How often owners compare their copies when nothing hints at a difference.
    pub interval_ms: u64,
    /// How soon they do when something does, and the first wait for a peer that does not answer.
    pub retry_ms: u64,
    /// The longest wait for a peer that does not answer: with it, the time to notice a heal.
    pub retry_max_ms: u64,
    /// How long an answer to a repair step may take before it is sent again.
    pub step_timeout_ms: u64,
    /// Repair sessions of this node that fetch at once.
    pub sessions_max: usize,
    /// Keys or records in a repair chunk.
    pub chunk_items: usize,
    /// Bytes in a repair chunk, but at least one record.
    pub chunk_bytes: usize,
    /// Bytes a second that this node fetches for repair, all partitions together.
    pub repair_bytes_per_s: u64,
    /// How often expiry, tombstones and evictions are looked after when nothing is due.
    pub upkeep_ms: u64,
    /// How long a copy that left the table waits for all owners to fetch from it.
    pub leaving_max_ms: u64,
}

impl Default for EventualConfig {
    fn default() -> Self {
        Self {
            clock: ClockConfig::default(),
            tombstones: TombstoneConfig::default(),
            hints: HintConfig::default(),
            request_timeout_ms: 2_000,
            resend_ms: 50,
            pending_writes_max: 4_096,
            pending_reads_max: 4_096,
            answers_per_client: 64,
            answer_clients_max: 1_024,
            interval_ms: 10_000,
            retry_ms: 200,
            retry_max_ms: 2_000,
            step_timeout_ms: 500,
            sessions_max: 8,
            chunk_items: 512,
            chunk_bytes: 64 << 10,
            repair_bytes_per_s: 64 << 20,
            upkeep_ms: 1_000,
            leaving_max_ms: 10 * 60 * 1_000,
        }
    }
}

/// What this copy holds of a key, for judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The latest write.
    pub version: Version,
    /// Whether it left an item that has not ended.
    pub live: bool,
}

struct HintState {
    /// The generation that the hints are of: a later one has lost what they build on.
    generation: Generation,
    /// Which owner is tried next.
    turn: usize,
    batch: u64,
    next: Mono,
}

/// The eventual partitions of one node.
pub struct Eventual {
    config: EventualConfig,
    shared: Shared,
    replicas: BTreeMap<Place, EventualReplica>,
    /// The caches of the newest table.
    caches: BTreeSet<CacheId>,
    wakeups: BTreeSet<(Mono, Place)>,
    wakeup_of: BTreeMap<Place, Mono>,
    hints: Hints,
    hint_states: BTreeMap<Place, HintState>,
}

impl Eventual {
    /// A node that holds nothing.
    pub fn new(config: EventualConfig) -> Self {
        Self {
            shared: Shared {
                clock: HybridClock::new(config.clock),
                budget: Budget::new(config.repair_bytes_per_s),
                sessions: 0,
                stats: EventualStats::default(),
            },
            hints: Hints::new(config.hints),
            config,
            replicas: BTreeMap::new(),
            caches: BTreeSet::new(),
            wakeups: BTreeSet::new(),
            wakeup_of: BTreeMap::new(),
            hint_states: BTreeMap::new(),
        }
    }

    /// Runs `act` within a turn of the node, and hands on what it wants done.
    pub fn within<S: Store>(
        &mut self,
        cx: &mut crate::context::Context<'_, S>,
        act: impl FnOnce(&mut Self, &mut Turn<'_>),
    ) {
        let mut out = Vec::new();
        let mut turn = Turn {
            now: cx.now,
            me: cx.me,
            store: &mut *cx.store,
            topology: cx.topology,
            travelled_ms: cx.clock.read(cx.now),
            #[cfg(any(test, feature = "mutants"))]
            mutant: cx.config.mutant,
            out: &mut out,
        };
        act(self, &mut turn);
        for out in out {
            match out {
                Out::Send { to, place, message } => cx.send(to, Body::Eventual(place, message)),
                Out::Reply { asker, reply } => cx.reply(asker, reply),
                Out::Propose(command) => cx.propose(command),
                Out::Report(report) => cx.report(report),
            }
        }
    }

    // ---- events ----------------------------------------------------------------------------

    /// A newer table reached this node.
    pub fn on_topology(&mut self, turn: &mut Turn<'_>) {
        let mut places: BTreeSet<Place> = self.replicas.keys().copied().collect();
        for (group, partitions) in &turn.topology.groups {
            if group.mode == Mode::Eventual {
                let mine = partitions.iter().enumerate().filter(|(_, state)| {
                    state.in_sync.contains(&turn.me) || state.learners.contains(&turn.me)
                });
                places.extend(
                    mine.map(|(at, _)| Place { group: *group, partition: PartitionId(at as u32) }),
                );
            }
        }
        let caches: BTreeSet<CacheId> =
            turn.topology.caches.values().map(|cache| cache.id).collect();
        let dropped = !self.caches.is_subset(&caches);
        self.caches = caches;
        for place in places {
            let state = turn.topology.partition(place);
            self.run(turn, place, true, |replica, cx| {
                replica.on_topology(cx, state);
                if dropped {
                    replica.on_caches_dropped(cx);
                }
            });
        }
        let lost: Vec<Place> = self
            .hint_states
            .iter()
            .filter(|(place, state)| {
                turn.topology
                    .partition(**place)
                    .is_none_or(|now| now.generation != state.generation)
            })
            .map(|(place, _)| *place)
            .collect();
        for place in lost {
            self.hints.drop_place(place);
            self.hint_states.remove(&place);
        }
    }

    /// Another member said something about a partition.
    pub fn on_message(
        &mut self,
        turn: &mut Turn<'_>,
        from: Member,
        place: Place,
        message: EventualMessage,
    ) {
        if let Say::HintsTaken { id, taken } = &message.say
            && self.hint_states.get(&place).is_some_and(|state| state.batch == *id)
        {
            self.shared.stats.hints_delivered += taken.len() as u64;
            self.hints.taken(place, taken);
            if let Some(state) = self.hint_states.get_mut(&place) {
                state.next = turn.now.mono;
            }
            return self.send_hints(turn);
        }
        if !self.replicas.contains_key(&place) {
            if let Say::Pull { session, step: message::Pull::Compare { .. } } = message.say {
                let say = Say::Given { session, answer: message::Given::NoCopy };
                let message = EventualMessage { generation: message.generation, say };
                turn.send(from, place, message);
            }
            return;
        }
        self.run(turn, place, false, |replica, cx| replica.on_message(cx, from, message));
    }

    /// A client asks for something in a partition that this node owns.
    pub fn on_request(
        &mut self,
        turn: &mut Turn<'_>,
        asker: Asker,
        place: Place,
        request: &Request,
    ) {
        if !self.serves(place) {
            let owner = turn.topology.partition(place).and_then(|state| state.in_sync.first());
            let refusal = Refusal::NotPrimary(owner.map(|owner| owner.node));
            return turn.reply(asker, Reply::NotApplied(refusal));
        }
        self.run(turn, place, false, |replica, cx| replica.on_request(cx, asker, request));
    }

    /// A client asks for something in a partition none of whose owners this node can reach. A write
    /// is kept as a hint; what cannot be told without an owner is refused.
    pub fn stand_in(&mut self, turn: &mut Turn<'_>, asker: Asker, place: Place, request: &Request) {
        let reply = self.keep_hint(turn, place, request);
        turn.reply(asker, reply);
    }

    /// The store evicted an item.
    pub fn on_evicted(
        &mut self,
        turn: &mut Turn<'_>,
        place: Place,
        key: &ItemKey,
        version: Version,
    ) {
        self.run(turn, place, false, |replica, cx| replica.on_evicted(cx, key, version));
    }

    /// Something is due.
    pub fn on_wakeup(&mut self, turn: &mut Turn<'_>) {
        // Each partition at most once in a turn, whatever it wants next.
        let due: Vec<Place> = self
            .wakeups
            .iter()
            .take_while(|(at, _)| *at <= turn.now.mono)
            .map(|(_, place)| *place)
            .collect();
        for place in due {
            self.run(turn, place, false, EventualReplica::on_wakeup);
        }
        self.hints.expire(turn.now.mono, HINTED_PLACES_MAX);
        self.send_hints(turn);
    }

    /// When [`on_wakeup`](Self::on_wakeup) is wanted.
    pub fn next_wakeup(&self) -> Option<Mono> {
        let replicas = self.wakeups.first().map(|(at, _)| *at);
        let hints = self.hint_states.values().map(|state| state.next).min();
        let next = [replicas, hints, self.hints.next_end()].into_iter().flatten().min();
        next.filter(|at| *at < Mono::MAX)
    }

    // ---- what others ask -------------------------------------------------------------------

    /// Whether this node owns a partition and answers for it.
    pub fn serves(&self, place: Place) -> bool {
        self.replicas.get(&place).is_some_and(|replica| replica.role() == Role::Owner)
    }

    /// Where this node stands with a partition.
    pub fn role(&self, place: Place) -> Option<Role> {
        self.replicas.get(&place).map(EventualReplica::role)
    }

    /// The newest thing that this copy knows of a key.
    pub fn held(&self, place: Place, key: &ItemKey) -> Option<Known> {
        let entry = self.replicas.get(&place)?.catalog().get(key)?;
        Some(Known { version: entry.write.version, live: entry.is_live() })
    }

    /// All keys that this copy knows, tombstones included.
    pub fn keys(&self, place: Place) -> impl Iterator<Item = (&ItemKey, Known)> {
        self.replicas.get(&place).into_iter().flat_map(|replica| {
            replica.catalog().iter().map(|(position, entry)| {
                let live = matches!(entry.state, State::Live { .. });
                (&position.key, Known { version: entry.write.version, live })
            })
        })
    }

    /// The copy of a partition, for judges.
    pub fn replica(&self, place: Place) -> Option<&EventualReplica> {
        self.replicas.get(&place)
    }

    /// The hints that this node keeps.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The clock.
    pub fn clock(&self) -> &HybridClock {
        &self.shared.clock
    }

    /// Memory that the copies take beside the store, about: to be counted in the node's ceiling.
    pub fn bytes(&self) -> usize {
        let catalogs: usize = self.replicas.values().map(|replica| replica.catalog().bytes()).sum();
        catalogs + self.hints.bytes()
    }

    /// What happened since the start.
    pub fn stats(&self) -> EventualStats {
        self.shared.stats
    }

    // ---- inside ----------------------------------------------------------------------------

    /// One turn of one partition.
    fn run(
        &mut self,
        turn: &mut Turn<'_>,
        place: Place,
        make: bool,
        act: impl FnOnce(&mut EventualReplica, &mut Context<'_>),
    ) {
        self.follow_clock(turn);
        let mut cx = Context {
            now: turn.now,
            me: turn.me,
            store: &mut *turn.store,
            topology: turn.topology,
            config: &self.config,
            shared: &mut self.shared,
            tombstone_bytes_max: self.config.tombstones.bytes_max / self.replicas.len().max(1),
            generation: Generation(0),
            #[cfg(any(test, feature = "mutants"))]
            mutant: turn.mutant,
            out: &mut *turn.out,
        };
        if make && !self.replicas.contains_key(&place) {
            self.replicas.insert(place, EventualReplica::new(place, &cx));
        }
        let Some(replica) = self.replicas.get_mut(&place) else { return };
        cx.generation = replica.generation();
        act(replica, &mut cx);
        let is_gone = replica.is_gone(turn.me);
        let mut next = None;
        if is_gone {
            replica.release(&mut cx);
            self.replicas.remove(&place);
        } else {
            next = Some(replica.next_wakeup(&mut cx)).filter(|at| *at < Mono::MAX);
        }
        self.set_wakeup(place, next);
    }

    fn follow_clock(&mut self, turn: &Turn<'_>) {
        if !crate::mutant!(turn, ClockNotMerged) {
            self.shared.clock.follow(turn.travelled_ms, turn.now);
        }
    }

    fn set_wakeup(&mut self, place: Place, next: Option<Mono>) {
        let before = match next {
            Some(at) => self.wakeup_of.insert(place, at),
            None => self.wakeup_of.remove(&place),
        };
        if let Some(before) = before {
            self.wakeups.remove(&(before, place));
        }
        if let Some(at) = next {
            self.wakeups.insert((at, place));
        }
    }

    fn keep_hint(&mut self, turn: &mut Turn<'_>, place: Place, request: &Request) -> Reply {
        let refuse = |refusal| Reply::NotApplied(refusal);
        let Some(cache) = turn.topology.cache(request.key.cache) else {
            return refuse(Refusal::NoSuchCache);
        };
        let Some(state) = turn.topology.partition(place) else { return refuse(Refusal::NotReady) };
        let hint = self.hints.get(place, &request.key).cloned();
        let current: Option<&Item> = hint.as_ref().and_then(Record::item);
        if hint.is_none() && !needs_no_item(&request.operation) {
            return refuse(Refusal::NotReady);
        }
        if !request.is_plain_read() && cache.acks != Acks::One {
            return refuse(Refusal::TooFewInSync { have: 0, need: 1 });
        }
        self.follow_clock(turn);
        let above = hint.as_ref().map_or(Version(0), |hint| hint.write().version);
        let next = self.shared.clock.stamp_above(turn.now, above);
        let clock_ms = self.shared.clock.now_ms(turn.now);
        let rules = Rules {
            value_len_max: cache.value_len_max as usize,
            default_ttl_ms: cache.default_ttl_ms,
            evicts: true,
        };
        let evaluated = evaluate(current, &request.operation, next, clock_ms, &rules);
        let current = current.cloned();
        let (content, outcome) = writes::whole(evaluated.change, evaluated.outcome, current, next);
        let Some(content) = content else { return Reply::Done(outcome) };
        let record = Record { key: request.key.clone(), content };
        if self.hints.keep(place, record, turn.now.mono).is_err() {
            return refuse(Refusal::OutOfMemory);
        }
        self.shared.stats.hints_kept += 1;
        let first = turn.now.mono.after_ms(self.config.hints.retry_ms);
        self.hint_states.entry(place).or_insert(HintState {
            generation: state.generation,
            turn: 0,
            batch: 0,
            next: first,
        });
        Reply::Done(outcome)
    }

    /// Hands hints to owners: the next owner each time, until one answers.
    fn send_hints(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now.mono;
        let due: Vec<Place> = self
            .hint_states
            .iter()
            .filter(|(_, state)| state.next <= now)
            .map(|(place, _)| *place)
            .take(HINTED_PLACES_MAX)
            .collect();
        for place in due {
            let records = self.hints.batch(place);
            let owners = turn.topology.partition(place).map(|state| state.in_sync.clone());
            let (Some(owners), false) = (owners, records.is_empty()) else {
                self.hint_states.remove(&place);
                continue;
            };
            let Some(state) = self.hint_states.get_mut(&place) else { continue };
            state.next = now.after_ms(self.config.hints.retry_ms.max(1));
            state.batch += 1;
            let (id, generation) = (state.batch, state.generation);
            if owners.contains(&turn.me) {
                // This node became an owner itself.
                self.take_own_hints(turn, place, &records);
            } else if !owners.is_empty() {
                let to = owners[state.turn % owners.len()];
                state.turn = state.turn.wrapping_add(1);
                let message = EventualMessage { generation, say: Say::Hints { id, records } };
                turn.send(to, place, message);
            }
        }
    }

    fn take_own_hints(&mut self, turn: &mut Turn<'_>, place: Place, records: &[Record]) {
        let mut taken = Vec::new();
        self.run(turn, place, false, |replica, cx| taken = replica.take_hints(cx, records));
        self.shared.stats.hints_delivered += taken.len() as u64;
        self.hints.taken(place, &taken);
    }
}

/// Whether an operation has a meaning where nothing is known of the item.
fn needs_no_item(operation: &crate::effect::Operation) -> bool {
    use crate::effect::{Operation, StoreMode};
    matches!(
        operation,
        Operation::Store { mode: StoreMode::Set, compare: None, .. }
            | Operation::Delete { compare: None }
    )
}
