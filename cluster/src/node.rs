//! One node: takes events, routes them to the parts, gathers their actions.

mod direct;
mod forward;
mod looks;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::direct::DirectRight;
use self::forward::Forwarded;
pub use self::looks::Held;
use self::places::{Known, Places};
use crate::config::{NodeConfig, mutant};
use crate::context::{Asker, Bandwidth, Context, Outbox, Slots, Walks};
use crate::controller::Controller;
use crate::effect::{ItemKey, Operation, Outcome};
use crate::eventual::Eventual;
use crate::heartbeat::LocalFacts;
use crate::ids::{
    ClusterId, Generation, Member, Mode, NodeId, PartitionId, Place, RequestId, Seq, Term, Token,
    Version,
};
use crate::membership::Membership;
use crate::message::{Body, Message};
use crate::rounds::{ConfirmReply, ConfirmRound, Rounds};
use crate::store::Store;
use crate::strong::Replica;
use crate::time::{Mono, Now, TravellingClock};
use crate::topology::{Topology, TopologyCommand};
use crate::warm::{AHEAD, fetch};

/// An operation on a key of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Names it across retries. Requests that change something and may be retried carry one.
    pub id: Option<RequestId>,
    /// The key.
    pub key: ItemKey,
    /// The operation.
    pub operation: Operation,
    /// The generation of the partition that the asker knows: a loss since is told to it.
    pub seen: Generation,
}

impl Request {
    /// Whether it only looks.
    #[must_use]
    pub fn is_plain_read(&self) -> bool {
        self.operation.is_plain_read()
    }
}

/// What the asker may take for granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Carried out; this came of it.
    Done(Outcome),
    /// Not applied, now or later, on any copy.
    NotApplied(Refusal),
    /// Perhaps applied, perhaps later, perhaps never. A retry with the same request id finds out.
    Indeterminate,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// Ask this node, if one is known.
    NotPrimary(Option<NodeId>),
    /// The primary is taking over, or waits for the controller. Ask again soon.
    NotReady,
    /// Too many requests wait already.
    Busy,
    /// Too few copies are in sync.
    TooFewInSync {
        /// In sync.
        have: u8,
        /// Needed.
        need: u8,
    },
    /// The data were lost and the cache blocks until an operator acknowledges it.
    Blocked(Generation),
    /// No room on one of the copies, and the policy is to refuse.
    OutOfMemory,
    /// There is no such cache.
    NoSuchCache,
    /// It waited for other nodes until the time was over. Nothing was changed.
    TimedOut,
    /// Caches of this kind cannot do this.
    Unsupported,
}

/// What happens to a node.
#[derive(Clone, Debug)]
pub enum Event {
    /// Another node said something.
    Message(Message),
    /// A client asks; `token` comes back with the reply.
    Request {
        /// Names the request between node and driver.
        token: Token,
        /// What is asked.
        request: Request,
    },
    /// A newly committed topology reached this node. Older ones than already known are ignored.
    Topology(Arc<Topology>),
    /// This node leads the controller group, or no longer.
    Leading(bool),
    /// What the driver knows of this node: readiness, load, memory. Told with its heartbeats.
    Facts(LocalFacts),
    /// The time named by [`Node::next_wakeup`] has come.
    Wakeup,
}

/// What a node wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send; may be lost, repeated, late.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Answer a request. Exactly once per request.
    Reply {
        /// Which.
        token: Token,
        /// The answer.
        reply: Reply,
    },
    /// Bring this before the controller group; may be lost, repeated, late.
    Propose(TopologyCommand),
    /// A fact for logs, metrics and judges.
    Report(Report),
}

/// Facts, for logs, metrics and judges. Nothing depends on them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// This node serves a partition as its primary from now on.
    Serving {
        /// Which partition.
        place: Place,
        /// In which term.
        term: Term,
    },
    /// It does no longer.
    SteppedDown {
        /// Which partition.
        place: Place,
        /// The term in which it served.
        term: Term,
    },
    /// An effect is on every copy that counts, and was applied and acknowledged here.
    Stable {
        /// Which partition.
        place: Place,
        /// In which term.
        term: Term,
        /// Up to here.
        seq: Seq,
    },
    /// A message was dropped: another cluster, or another life of either end.
    Foreign {
        /// Who said it was sending.
        from: Member,
    },
    /// A transfer moved on.
    Transfer {
        /// Which partition.
        place: Place,
        /// To whom.
        to: Member,
        /// Bytes confirmed so far.
        bytes: u64,
        /// All of it.
        done: bool,
    },
    /// The data of a partition were lost.
    Lost {
        /// Which partition.
        place: Place,
        /// The generation that begins.
        generation: Generation,
    },
}

/// The actions of a turn, in order.
pub type Actions = Vec<Action>;

/// How often the store is asked to drop what has ended.
const UPKEEP_MS: u64 = 1_000;
/// Items looked at in one step of freeing what was cleared, and the time between steps: a million are
/// gone within a second or two, and no turn gets longer by more than a fraction of a millisecond.
const SWEEP_ITEMS: usize = 1_024;
const SWEEP_GAP_US: u64 = 1_000;
/// Evictions taken from the store in one turn.
const EVICTIONS_PER_TURN: usize = 1_024;
/// A partition that wants to be woken at once again waits this long: others have their turn.
const WAKEUP_GAP_US: u64 = 10;

/// Partitions that want to be woken later than so are woken together, at most so much too late: one
/// turn for what was written within a while instead of one for each write.
const GATHER_FROM_US: u64 = 20_000;
const GATHER_US: u64 = 10_000;

/// When a partition that wants to be woken `at` is woken.
fn gathered(now: Mono, at: Mono) -> Mono {
    if at < now.after_us(GATHER_FROM_US) {
        return at;
    }
    let gather_ns = GATHER_US * 1_000;
    Mono(at.0.checked_next_multiple_of(gather_ns).unwrap_or(at.0))
}

/// One node.
pub struct Node<S> {
    base: Base<S>,
    replicas: Places,
    /// When which partition is to be woken: never later than it wants, perhaps earlier.
    wakeups: BTreeSet<(Mono, Place)>,
    eventual: Eventual,
    membership: Membership,
    controller: Controller,
    facts: LocalFacts,
    forwarded: Forwarded,
    upkeep_at: Mono,
    /// The latest clock heard from each member of the table: what it has reached.
    heard_ms: BTreeMap<Member, u64>,
    /// When the store goes on freeing what was removed with a whole partition.
    sweep_at: Option<Mono>,
    /// Where what may be read directly changed since it was last asked for.
    direct_changed: BTreeSet<Place>,
}

/// What partitions share during a turn.
struct Base<S> {
    cluster: ClusterId,
    me: Member,
    config: NodeConfig,
    store: S,
    topology: Arc<Topology>,
    clock: TravellingClock,
    /// Bytes of effects that partitions hold and have not applied.
    staged: usize,
    rounds: Rounds,
    bandwidth: Bandwidth,
    walks: Walks,
    slots: Slots,
    outbox: Outbox,
}

impl<S: Store> Base<S> {
    fn context<'a>(&'a mut self, now: Now, actions: &'a mut Actions) -> Context<'a, S> {
        Context {
            now,
            me: self.me,
            config: &self.config,
            store: &mut self.store,
            topology: &self.topology,
            clock: &mut self.clock,
            staged: self.staged,
            rounds: &mut self.rounds,
            bandwidth: &mut self.bandwidth,
            walks: &mut self.walks,
            slots: &mut self.slots,
            outbox: &mut self.outbox,
            actions,
        }
    }
}

impl<S: Store> Node<S> {
    /// A node that has just started: it holds nothing. `me` carries an incarnation never used
    /// before; `seed` is random.
    pub fn new(
        cluster: ClusterId,
        config: NodeConfig,
        me: Member,
        store: S,
        seed: u64,
        now: Now,
    ) -> Self {
        Self {
            replicas: Places::default(),
            wakeups: BTreeSet::new(),
            eventual: Eventual::new(config.eventual.clone()),
            membership: Membership::new(config.heartbeat.clone(), me),
            controller: Controller::new(config.controller.clone(), me),
            facts: LocalFacts::default(),
            forwarded: Forwarded::new(seed),
            upkeep_at: now.mono.after_ms(UPKEEP_MS),
            heard_ms: BTreeMap::new(),
            sweep_at: None,
            direct_changed: BTreeSet::new(),
            base: Base {
                cluster,
                me,
                store,
                topology: Arc::new(Topology::new(cluster, 1)),
                clock: TravellingClock::default(),
                staged: 0,
                rounds: Rounds::default(),
                bandwidth: Bandwidth::new(config.strong.transfer_bytes_per_s, now),
                walks: Walks::default(),
                slots: Slots::default(),
                outbox: Outbox::default(),
                config,
            },
        }
    }

    /// Takes in one event and appends what is to be done.
    pub fn handle(&mut self, now: Now, event: Event, actions: &mut Actions) {
        self.take_in(now, event, actions);
        self.finish(now, actions);
    }

    /// Takes in several events of one moment: what they cause for one peer goes in one message.
    pub fn handle_all(&mut self, now: Now, events: &mut Vec<Event>, actions: &mut Actions) {
        let mut events = events.drain(..);
        while !events.as_slice().is_empty() {
            let ahead = events.as_slice().iter().take(AHEAD);
            self.warm(ahead.filter_map(|event| self.place_of_event(event)));
            for event in events.by_ref().take(AHEAD) {
                self.take_in(now, event, actions);
            }
        }
        drop(events);
        self.finish(now, actions);
    }

    /// Asks for the memory of these partitions.
    fn warm(&self, places: impl Iterator<Item = Place>) {
        let mut known: [Option<&Known>; AHEAD] = [None; AHEAD];
        for (at, place) in known.iter_mut().zip(places) {
            *at = self.replicas.known(place);
            at.iter().for_each(|known| fetch(*known));
        }
        known.iter().flatten().for_each(|known| known.replica.warm());
        known.iter().flatten().for_each(|known| known.replica.warm_further());
    }

    fn place_of_event(&self, event: &Event) -> Option<Place> {
        let Event::Request { request, .. } = event else { return None };
        self.place_of(&request.key)
    }

    fn place_of_body(body: &Body) -> Option<Place> {
        let Body::Strong(place, _) = body else { return None };
        Some(*place)
    }

    fn take_in(&mut self, now: Now, event: Event, actions: &mut Actions) {
        match event {
            Event::Message(message) => self.on_message(now, message, actions),
            Event::Request { token, request } => {
                self.on_request(now, Asker::Local(token), request, 0, actions);
            }
            Event::Topology(topology) => self.on_topology(now, topology, actions),
            Event::Leading(leads) => {
                self.membership.lead(leads);
                self.controller.lead(now, leads);
                self.lead(now, actions);
            }
            Event::Facts(facts) => self.facts = facts,
            Event::Wakeup => self.on_wakeup(now, actions),
        }
    }

    /// When [`Event::Wakeup`] is due.
    pub fn next_wakeup(&self) -> Option<Mono> {
        let known = self.knows_table();
        [
            self.wakeups.first().map(|(at, _)| *at),
            self.base.rounds.due(),
            self.forwarded.next_wakeup(),
            self.eventual.next_wakeup(),
            self.membership.next_wakeup().filter(|_| known),
            self.controller.next_wakeup().filter(|_| known),
            Some(self.upkeep_at),
            self.sweep_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn knows_table(&self) -> bool {
        self.base.topology.epoch.0 > 0
    }

    // ---- events ----------------------------------------------------------------------------

    fn on_message(&mut self, now: Now, message: Message, actions: &mut Actions) {
        let Message { cluster, from, to, clock_ms, bodies } = message;
        let known = self.base.topology.member(from.node) == Some(from);
        if cluster != self.base.cluster || to != self.base.me || !known {
            actions.push(Action::Report(Report::Foreign { from }));
            return;
        }
        if !mutant!(self.base.config, ClockNotMerged) {
            self.base.clock.merge(now, clock_ms);
        }
        let heard_ms = self.heard_ms.entry(from).or_default();
        *heard_ms = clock_ms.max(*heard_ms);
        let mut bodies = bodies.into_iter();
        while !bodies.as_slice().is_empty() {
            self.warm(bodies.as_slice().iter().take(AHEAD).filter_map(Self::place_of_body));
            for body in bodies.by_ref().take(AHEAD) {
                self.on_body(now, from, clock_ms, body, actions);
            }
        }
    }

    fn on_body(
        &mut self,
        now: Now,
        from: Member,
        clock_ms: u64,
        body: Body,
        actions: &mut Actions,
    ) {
        match body {
            Body::Heartbeat(beat) => {
                self.membership.on_heartbeat(now, from, &beat);
            }
            Body::Ask { ask, request } => {
                let late = self.is_late(now, clock_ms, &request);
                if self.forwarded.is_new(from, ask) && !late {
                    let asker = Asker::Remote { member: from, ask };
                    self.on_request(now, asker, request, 0, actions);
                }
            }
            Body::Answer { ask, reply } => self.on_answer(now, from, ask, reply, actions),
            Body::Strong(place, message) => {
                if place.group.mode == Mode::Strong {
                    self.run(now, place, actions, |replica, cx| {
                        replica.on_message(cx, from, clock_ms, message);
                    });
                }
            }
            Body::Confirm(round) => self.on_confirm(now, from, clock_ms, &round),
            Body::Confirmed(reply) => {
                for (place, met) in self.base.rounds.on_reply(from, &reply) {
                    self.run(now, place, actions, |replica, cx| {
                        replica.on_confirmed(cx, from, met);
                    });
                }
            }
            Body::Settled(places) => {
                for (place, term, applied) in places {
                    if self.replicas.contains_key(&place) {
                        self.run(now, place, actions, |replica, cx| {
                            replica.on_settled(cx, term, applied, clock_ms);
                        });
                    }
                }
            }
            Body::Eventual(place, message) => {
                if place.group.mode == Mode::Eventual {
                    let Self { base, eventual, .. } = self;
                    eventual.within(&mut base.context(now, actions), |eventual, turn| {
                        eventual.on_message(turn, from, place, message);
                    });
                }
            }
        }
    }

    /// A primary asks whether it is still followed.
    fn on_confirm(&mut self, now: Now, from: Member, clock_ms: u64, round: &ConfirmRound) {
        let drift_ppm = self.base.config.strong.clock_drift_ppm;
        let mut refused = Vec::new();
        for &(place, term, lease) in &round.places {
            let committed = self.base.topology.partition(place).map_or(Term(0), |state| state.term);
            let followed = self.replicas.get(&place).map_or(Term(0), Replica::term).max(committed);
            if followed > term {
                refused.push((place, followed));
            } else if lease && place.group.mode == Mode::Strong {
                let Some(known) = self.replicas.meet(place) else { continue };
                known.replica.grant(now, term, round.lease_ms, clock_ms, drift_ppm);
            }
        }
        let reply = ConfirmReply { round: round.round, refused };
        self.base.outbox.push(from, Body::Confirmed(reply));
    }

    /// Whether a request for an eventual cache was on its way for so long that its asker gives it
    /// up, and may ask another owner: no name tells there that it is the same request, and carried
    /// out now, after a pause of this node, it would win over what was written since.
    fn is_late(&self, now: Now, sent_ms: u64, request: &Request) -> bool {
        // Half of the wait: clocks that travel with messages differ by less.
        let late_ms = self.base.config.forward.timeout_ms / 2;
        if self.base.clock.read(now).saturating_sub(sent_ms) <= late_ms {
            return false;
        }
        let spec = self.base.topology.cache(request.key.cache);
        spec.is_some_and(|spec| spec.mode == Mode::Eventual)
    }

    fn on_topology(&mut self, now: Now, topology: Arc<Topology>, actions: &mut Actions) {
        let foreign = topology.cluster_id != self.base.cluster;
        if foreign || topology.epoch <= self.base.topology.epoch {
            return;
        }
        let old = std::mem::replace(&mut self.base.topology, Arc::clone(&topology));
        for spec in old.caches.values().filter(|spec| topology.cache(spec.id).is_none()) {
            self.base.store.drop_cache(spec.id);
        }
        self.membership.on_topology(&topology);
        self.heard_ms.retain(|member, _| topology.is_present(*member));
        self.controller.on_topology();
        let me = self.base.me;
        // Most tables change few partitions, and while a node joins many tables come. Replicas know
        // of the table only their partition and the caches.
        let caches_changed = old.next_cache != topology.next_cache || old.caches != topology.caches;
        let version_in =
            |table: &Topology, place| table.partition(place).map(|state| state.version);
        let changed = |place: &Place| {
            caches_changed || version_in(&old, *place) != version_in(&topology, *place)
        };
        let mut places: BTreeSet<Place> = self.replicas.keys().filter(&changed).collect();
        for (&group, partitions) in &topology.groups {
            if group.mode == Mode::Strong {
                let mine = partitions.iter().enumerate().filter(|(_, state)| {
                    state.in_sync.contains(&me) || state.learners.contains(&me)
                });
                let mine = mine.map(|(at, _)| Place { group, partition: PartitionId(at as u32) });
                places.extend(mine.filter(&changed));
            }
        }
        for place in places {
            let state = topology.partition(place);
            self.run(now, place, actions, |replica, cx| match state {
                Some(state) => replica.on_topology(cx, state),
                None => replica.on_dropped(cx),
            });
        }
        let Self { base, eventual, .. } = self;
        eventual.within(&mut base.context(now, actions), Eventual::on_topology);
    }

    fn on_wakeup(&mut self, now: Now, actions: &mut Actions) {
        let mut due = Vec::new();
        while self.wakeups.first().is_some_and(|(at, _)| *at <= now.mono) {
            let Some((_, place)) = self.wakeups.pop_first() else { break };
            let Some(known) = self.replicas.known_mut(place) else { continue };
            // What it was to be woken for has mostly been done meanwhile: then it is left alone.
            known.wake_at = known.due.filter(|due| *due > now.mono);
            match known.wake_at {
                Some(later) => {
                    self.wakeups.insert((later, place));
                }
                None if known.due.is_some() => due.push(place),
                None => {}
            }
        }
        for place in due {
            self.run(now, place, actions, |replica, cx| replica.on_wakeup(cx));
        }
        if self.eventual.next_wakeup().is_some_and(|at| at <= now.mono) {
            let Self { base, eventual, .. } = self;
            eventual.within(&mut base.context(now, actions), Eventual::on_wakeup);
        }
        self.give_up_forwarded(now, actions);
        self.lead(now, actions);
        if self.upkeep_at <= now.mono {
            self.keep_up(now);
        }
        if self.sweep_at.is_some_and(|at| at <= now.mono) {
            self.sweep(now);
        }
    }

    /// Frees items of partitions that were cleared; when all are gone, memory may be read directly.
    fn sweep(&mut self, now: Now) {
        let mut done = Vec::new();
        let more = self.base.store.sweep(SWEEP_ITEMS, &mut done);
        self.sweep_at = more.then(|| now.mono.after_us(SWEEP_GAP_US));
        let Self { base, replicas, direct_changed, .. } = self;
        for place in done {
            if let Some(known) = replicas.known_mut(place) {
                base.note_right(known, direct_changed);
            }
        }
    }

    /// Has the store drop what has ended, and the copies that this node leads do the same.
    fn keep_up(&mut self, now: Now) {
        self.upkeep_at = now.mono.after_ms(UPKEEP_MS);
        let clock_ms = self.base.clock.advance(now);
        let mut settled: BTreeMap<Member, Vec<(Place, Term, Seq)>> = BTreeMap::new();
        for (place, replica) in self.replicas.iter_mut() {
            let heard_ms = |member| self.heard_ms.get(&member).copied().unwrap_or(0);
            let settled_here = replica.settled(self.base.me, clock_ms, heard_ms);
            if let Some((peers, term, applied)) = settled_here {
                for peer in peers {
                    settled.entry(peer).or_default().push((place, term, applied));
                }
            }
        }
        for (peer, places) in settled {
            self.base.outbox.push(peer, Body::Settled(places));
        }
        // The store has one clock for all partitions: the slowest decides.
        let holding = self.replicas.values().filter(|replica| replica.holds());
        let clock_ms = holding.map(Replica::expired_ms).min();
        self.base.store.maintain(clock_ms.unwrap_or(0));
    }

    /// Beats, and the controller's decisions.
    fn lead(&mut self, now: Now, actions: &mut Actions) {
        if !self.knows_table() {
            return;
        }
        let Self { base, membership, controller, facts, .. } = self;
        for (to, beat) in membership.beats(now, &base.topology, facts) {
            base.outbox.push(to, Body::Heartbeat(beat));
        }
        let mut commands: Vec<TopologyCommand> = Vec::new();
        controller.tick(now, &base.topology, membership, &mut commands);
        actions.extend(commands.into_iter().map(Action::Propose));
    }

    // ---- inside ----------------------------------------------------------------------------

    /// One turn of one partition.
    fn run(
        &mut self,
        now: Now,
        place: Place,
        actions: &mut Actions,
        act: impl FnOnce(&mut Replica, &mut Context<'_, S>),
    ) {
        let Self { base, replicas, wakeups, direct_changed, sweep_at, .. } = self;
        let Some(known) = replicas.meet(place) else { return };
        base.staged -= known.replica.staged_bytes();
        act(&mut known.replica, &mut base.context(now, actions));
        base.staged += known.replica.staged_bytes();
        let soonest = now.mono.after_us(WAKEUP_GAP_US);
        let next = known.replica.next_wakeup().map(|at| gathered(now.mono, at.max(soonest)));
        known.due = next;
        // Most events put off what is due. Noted anew only when it comes earlier, so that few do.
        if let Some(next) = next
            && known.wake_at.is_none_or(|at| next < at)
        {
            if let Some(old) = known.wake_at.replace(next) {
                wakeups.remove(&(old, place));
            }
            wakeups.insert((next, place));
        }
        base.note_right(known, direct_changed);
        if sweep_at.is_none() && base.store.is_sweeping(place) {
            *sweep_at = Some(now.mono.after_us(SWEEP_GAP_US));
        }
    }

    /// The end of a turn: evictions, confirm rounds, one message for each peer.
    fn finish(&mut self, now: Now, actions: &mut Actions) {
        self.pass_evictions_on(now, actions);
        let Base { rounds, clock, outbox, config, .. } = &mut self.base;
        if rounds.due().is_some_and(|due| due <= now.mono) {
            let clock_ms = clock.advance(now);
            for (to, round) in rounds.send(now.mono, clock_ms, config.strong.lease_ms) {
                outbox.push(to, Body::Confirm(round));
            }
        }
        let clock_ms = clock.advance(now);
        let (cluster, from) = (self.base.cluster, self.base.me);
        for (to, bodies) in self.base.outbox.take() {
            let message = Message { cluster, from, to, clock_ms, bodies };
            actions.push(Action::Send { to: to.node, message });
        }
    }

    fn pass_evictions_on(&mut self, now: Now, actions: &mut Actions) {
        let mut evicted = Vec::new();
        self.base.store.evicted(EVICTIONS_PER_TURN, &mut evicted);
        let mut strong: BTreeMap<Place, Vec<(ItemKey, Version)>> = BTreeMap::new();
        for (place, key, version) in evicted {
            match place.group.mode {
                Mode::Strong => strong.entry(place).or_default().push((key, version)),
                Mode::Eventual => {
                    let Self { base, eventual, .. } = self;
                    eventual.within(&mut base.context(now, actions), |eventual, turn| {
                        eventual.on_evicted(turn, place, &key, version);
                    });
                }
            }
        }
        for (place, keys) in strong {
            self.run(now, place, actions, |replica, cx| replica.on_evicted(cx, keys));
        }
    }
}

#[cfg(test)]
mod tests;
