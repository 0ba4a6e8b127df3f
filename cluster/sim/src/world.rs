//! One run: nodes, network, clients, controller group and faults on one queue of events.
//!
//! The world is single-threaded and knows one clock. Nodes see their own clocks only. Every choice
//! comes from the seed, so that a run is its seed; the judges look after every step that a client
//! could learn from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_cluster::config::NodeConfig;
use kiln_cluster::effect::ItemKey;
use kiln_cluster::heartbeat::{LocalFacts, Readiness};
use kiln_cluster::ids::{
    ClusterId, Incarnation, Member, NodeId, PartitionId, Place as Partition, Token, Version,
};
use kiln_cluster::message::{Body, Message};
use kiln_cluster::node::{Action, Event as NodeEvent, Node, Reply, Report};
use kiln_cluster::time::{Mono, Now};
use kiln_cluster::topology::{NodeProfile, Topology, TopologyCommand};

use crate::agreement::Agreement;
use crate::clients::Clients;
use crate::clock::Clock;
use crate::history::{Call, Rules};
use crate::judge::Violation;
use crate::judge::eventual::Eventual;
use crate::judge::order::Order;
use crate::judge::primaries::Primaries;
use crate::memory::SimStore;
use crate::network::{Network, Place};
use crate::profile::{CACHE_NAME, Plan, Profile};
use crate::queue::{MS, Queue, SECOND, Time};
use crate::rng::Rng;
use crate::run::Options;
use crate::stats::Stats;
use crate::trace::Trace;

/// The cluster of all runs.
pub const CLUSTER: ClusterId = ClusterId(0x6b69_6c6e);

/// How often the committed table is sent again to everybody.
const PUSH_EVERY: Time = 300 * MS;
/// How often a process that is not in the table asks to be.
const JOIN_EVERY: Time = 150 * MS;
/// How often the controller group looks after its leader.
const ELECTION_EVERY: Time = 400 * MS;
/// How often all keys are judged on all copies.
const AUDIT_EVERY: Time = 200 * MS;
/// What a paused node's buffers hold; more is lost.
const BACKLOG_MAX: usize = 20_000;
/// Events after which a run is stopped as running away.
const EVENTS_MAX: u64 = 3_000_000;

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver { to: NodeId, message: Box<Message>, heard: Version },
    Ask { to: NodeId, token: Token },
    Tell { token: Token, reply: Reply },
    Impatient { token: Token },
    Retry { client: u32, call: usize, wanted: u32 },
    NextCall { client: u32 },
    Wake { node: NodeId, life: u64, at: Time },
    Propose { from: NodeId, command: Box<TopologyCommand> },
    Learn { to: NodeId, topology: Arc<Topology> },
    Lead { node: NodeId, life: u64, leading: bool },
    Join { node: NodeId, life: u64 },
    Push,
    Election,
    Audit,
    Fault,
    Restart { node: NodeId },
    Resume { node: NodeId },
    Heal,
    CheckHealed,
}

/// A machine, over all lives of its process.
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) process: Option<Process>,
    pub(crate) paused_until: Time,
    /// What reached it while it stood still.
    pub(crate) backlog: Vec<Event>,
    /// Its memory, against that of the profile.
    size_percent: usize,
    /// Asked to hand over and go; it does not come back.
    pub(crate) leaving: bool,
    incarnation: Incarnation,
}

pub(crate) struct Process {
    pub(crate) node: Node<SimStore>,
    pub(crate) member: Member,
    pub(crate) life: u64,
    /// The newest version stamped anywhere that this process can have heard of (eventual mode).
    pub(crate) heard: Version,
    wake_at: Time,
}

/// One attempt of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) client: u32,
    pub(crate) call: usize,
    pub(crate) node: NodeId,
}

/// The time between which a partition lost its data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub(crate) place: Partition,
    pub(crate) from: Time,
    pub(crate) until: Time,
}

/// What the first node that a call reached knew when it was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldBefore {
    /// How often nodes were asked since.
    pub(crate) asked: u32,
    /// What it held of the key, if it is an owner.
    pub(crate) held: Option<Version>,
    /// The newest version that it can have heard of, of any key, if it is an owner.
    pub(crate) heard: Option<Version>,
}

/// A copy that confirmed writes and cannot be asked any longer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure {
    pub(crate) at: Time,
    pub(crate) who: Member,
    /// The partition whose in-sync set it left; all of them for a death.
    pub(crate) place: Option<Partition>,
}

/// One run.
pub struct World<'p> {
    pub(crate) profile: &'p Profile,
    pub(crate) plan: Plan,
    pub(crate) options: Options,
    pub(crate) now: Time,
    pub(crate) queue: Queue<Event>,
    pub(crate) network: Network,
    pub(crate) faults: Rng,
    pub(crate) births: Rng,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    lives: u64,
    pub(crate) agreement: Agreement,
    pub(crate) clients: Clients,
    pub(crate) attempts: BTreeMap<Token, Attempt>,
    pub(crate) tokens: u64,
    pub(crate) history: Vec<Call>,
    pub(crate) rules: Rules,
    pub(crate) order: Order,
    pub(crate) eventual: Eventual,
    pub(crate) primaries: Primaries,
    /// What a call found when it first reached a node (eventual mode).
    pub(crate) held_before: BTreeMap<usize, HeldBefore>,
    /// What ended calls had asked: late attempts of theirs still reach nodes.
    pub(crate) ended: BTreeMap<usize, kiln_cluster::node::Request>,
    /// Calls acknowledged by an owner whose copy was already given up with the loss of all others.
    pub(crate) outdated: BTreeSet<usize>,
    /// Whether the node whose actions are carried out now made an effect stable in this turn.
    pub(crate) made_stable: bool,
    pub(crate) losses: Vec<Loss>,
    pub(crate) departures: Vec<Departure>,
    pub(crate) healing: bool,
    pub(crate) quiet: bool,
    pub(crate) probes: Vec<ItemKey>,
    pub(crate) probes_drawn: bool,
    pub(crate) healed_at: Option<Time>,
    pub(crate) unhealed: Option<Violation>,
    pub(crate) violation: Option<Violation>,
    /// The record of the run.
    pub trace: Trace,
    /// What happened, in figures.
    pub stats: Stats,
}

impl<'p> World<'p> {
    /// A cluster that is about to start.
    pub fn new(profile: &'p Profile, seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(profile, &mut rng.fork(1));
        let mut world = Self {
            profile,
            options,
            now: 0,
            queue: Queue::default(),
            network: Network::new(rng.fork(2), plan.weather, plan.ordered_links),
            faults: rng.fork(3),
            births: rng.fork(4),
            machines: BTreeMap::new(),
            lives: 0,
            agreement: Agreement::new(CLUSTER, plan.partitions),
            clients: Clients::new(
                rng.fork(5),
                plan.clients,
                plan.keys,
                profile.ttl_share,
                profile.padding,
            ),
            attempts: BTreeMap::new(),
            tokens: 0,
            history: Vec::new(),
            rules: plan.rules(profile),
            order: Order::default(),
            eventual: Eventual::default(),
            primaries: Primaries::default(),
            held_before: BTreeMap::new(),
            ended: BTreeMap::new(),
            outdated: BTreeSet::new(),
            made_stable: false,
            losses: Vec::new(),
            departures: Vec::new(),
            healing: false,
            quiet: false,
            probes: Vec::new(),
            probes_drawn: false,
            healed_at: None,
            unhealed: None,
            violation: None,
            trace: Trace::new(options.lines_max),
            stats: Stats::default(),
            plan,
        };
        world.boot();
        world
    }

    /// Runs to the end or to the first violation.
    pub fn run(&mut self) {
        while self.violation.is_none() && self.healed_at.is_none() {
            let Some((at, event)) = self.queue.pop() else { break };
            self.now = at;
            if self.trace.events() > EVENTS_MAX {
                let finding = format!("{EVENTS_MAX} events by {}s", self.now / SECOND);
                self.break_promise(Violation::new("a run ends", "world", finding));
                break;
            }
            self.step(event);
        }
        if self.violation.is_none() {
            self.judge_histories();
        }
        self.stats.close(self.now, &self.network, &self.agreement, &self.trace);
        self.stats.terms = self.primaries.terms_served() as u64;
    }

    /// The promise that was broken, if one was.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    fn boot(&mut self) {
        let spec = self.plan.cache.clone();
        let create = TopologyCommand::CreateCache { name: CACHE_NAME.into(), spec };
        self.trace.say(0, || format!("profile {} plan {:?}", self.profile.name, self.plan));
        self.commit(NodeId(0), &create);
        for number in 1..=self.plan.nodes {
            self.start(NodeId(number));
        }
        self.queue.push(0, Event::Election);
        self.queue.push(PUSH_EVERY, Event::Push);
        self.queue.push(AUDIT_EVERY, Event::Audit);
        for client in 0..self.plan.clients {
            let at = self.clients.think(SECOND);
            self.queue.push(at, Event::NextCall { client });
        }
        let first = 2 * SECOND + self.faults.below(SECOND);
        self.queue.push(first, Event::Fault);
        self.queue.push(self.plan.heal_at, Event::Heal);
    }

    fn step(&mut self, event: Event) {
        self.count(&event);
        match event {
            Event::Deliver { to, message, heard } => {
                let again = |to, message| Event::Deliver { to, message, heard };
                if let Some(message) = self.unless_paused(to, message, again) {
                    self.pass_on_heard(to, &message, heard);
                    if says_something(&message) {
                        self.trace.say(self.now, || describe(to, &message));
                    }
                    self.drive(to, NodeEvent::Message(*message));
                }
            }
            Event::Ask { to, token } => self.on_ask(to, token),
            Event::Tell { token, reply } => self.on_told(token, reply),
            Event::Impatient { token } => self.on_impatient(token),
            Event::Retry { client, call, wanted } => self.on_retry(client, call, wanted),
            Event::NextCall { client } => self.on_next_call(client),
            Event::Wake { node, life, at } => self.on_wake(node, life, at),
            Event::Propose { from, command } => self.commit(from, &command),
            Event::Learn { to, topology } => {
                if let Some(topology) =
                    self.unless_paused(to, topology, |to, topology| Event::Learn { to, topology })
                {
                    self.note_learned(to, &topology);
                    self.drive(to, NodeEvent::Topology(topology));
                    self.leave_if_drained(to);
                }
            }
            Event::Lead { node, life, leading } => {
                let leads = self.agreement.leader == Some((node, life));
                if leads == leading
                    && self.process(node).is_some_and(|process| process.life == life)
                    && let Some(leading) = self.unless_paused(node, leading, |node, leading| {
                        Event::Lead { node, life, leading }
                    })
                {
                    self.trace.say(self.now, || format!("n{node} leading: {leading}"));
                    self.drive(node, NodeEvent::Leading(leading));
                }
            }
            Event::Join { node, life } => self.on_join(node, life),
            Event::Push => {
                self.push_topology();
                self.queue.push(self.now + PUSH_EVERY, Event::Push);
            }
            Event::Election => {
                self.elect_if_needed();
                self.queue.push(self.now + ELECTION_EVERY, Event::Election);
            }
            Event::Audit => {
                self.audit();
                // Looking at many large items costs more than the run.
                let every = AUDIT_EVERY * (1 + Time::from(self.plan.keys) / 10);
                self.queue.push(self.now + every, Event::Audit);
            }
            Event::Fault => self.on_fault(),
            Event::Restart { node } => self.restart(node),
            Event::Resume { node } => self.on_resume(node),
            Event::Heal => self.heal(),
            Event::CheckHealed => self.check_healed(),
        }
    }

    /// The events that a paused node does not see come when it goes on.
    pub(crate) fn unless_paused<T>(
        &mut self,
        node: NodeId,
        what: T,
        again: impl FnOnce(NodeId, T) -> Event,
    ) -> Option<T> {
        let machine = self.machines.get_mut(&node)?;
        if self.now >= machine.paused_until {
            return Some(what);
        }
        if machine.backlog.len() < BACKLOG_MAX {
            machine.backlog.push(again(node, what));
        }
        None
    }

    /// A node goes on: what reached it meanwhile comes at once, in order.
    fn on_resume(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if self.now < machine.paused_until {
            return;
        }
        for event in std::mem::take(&mut machine.backlog) {
            self.queue.push(self.now, event);
        }
    }

    /// Starts a process on a machine: a new life.
    pub(crate) fn start(&mut self, id: NodeId) {
        let fresh = Incarnation(self.births.next() >> 1);
        let (drift, offset) = (self.plan.drift_ppm, self.profile.clock_offset_ms);
        let births = &mut self.births;
        let machine = self.machines.entry(id).or_insert_with(|| Machine {
            clock: Clock::new(births, drift, offset),
            process: None,
            paused_until: 0,
            backlog: Vec::new(),
            size_percent: births.between(50, 150) as usize,
            leaving: false,
            incarnation: fresh,
        });
        if !self.options.keeps_incarnation() {
            machine.incarnation = fresh;
        }
        let member = Member { node: id, incarnation: machine.incarnation };
        self.lives += 1;
        let life = self.lives;
        let store = SimStore::new(
            self.profile.memory,
            machine.size_percent,
            &self.plan.cache,
            self.plan.partitions,
            self.options.store_evicts(),
        );
        let config: NodeConfig = self.options.apply(self.plan.config.clone());
        let now = reading(&machine.clock, self.now);
        let node = Node::new(CLUSTER, config, member, store, births.next(), now);
        machine.process =
            Some(Process { node, member, life, heard: Version(0), wake_at: Time::MAX });
        machine.paused_until = 0;
        self.stats.starts += 1;
        self.trace.say(self.now, || format!("n{id} starts as {member}"));
        self.queue.push(self.now + self.births.below(5 * MS), Event::Join { node: id, life });
        // With clients known to be at work the controller goes about a rebalance in another way.
        let group = self.plan.cache.group();
        let hot = (Partition { group, partition: PartitionId(0) }, 1);
        let is_busy = self.plan.clients.is_multiple_of(2);
        let hottest = is_busy.then_some(hot).into_iter().collect();
        let facts = LocalFacts { readiness: Readiness::Ready, hottest, ..LocalFacts::default() };
        self.drive(id, NodeEvent::Facts(facts));
    }

    /// A process that the table does not know asks to be taken in, and goes on asking.
    fn on_join(&mut self, id: NodeId, life: u64) {
        let Some(process) = self.process(id).filter(|process| process.life == life) else { return };
        let member = process.member;
        let known = self.agreement.topology().member(id);
        self.queue.push(self.now + JOIN_EVERY, Event::Join { node: id, life });
        if known == Some(member) || self.machines[&id].leaving || self.is_paused(id) {
            return;
        }
        let command = TopologyCommand::Join {
            node: id,
            incarnation: member.incarnation,
            replaces: known.map(|member| member.incarnation),
            profile: NodeProfile { weight: 1_000, ..NodeProfile::default() },
        };
        self.propose(id, command);
    }

    /// Hands an event to a node and carries out what it wants done.
    pub(crate) fn drive(&mut self, id: NodeId, event: NodeEvent) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(process) = machine.process.as_mut() else { return };
        let mut actions = Vec::new();
        process.node.handle(reading(&machine.clock, self.now), event, &mut actions);
        let member = process.member;
        let is_stable = |action: &Action| matches!(action, Action::Report(Report::Stable { .. }));
        self.made_stable = actions.iter().any(is_stable);
        for action in actions {
            self.act(member, action);
        }
        self.schedule_wake(id);
    }

    fn act(&mut self, who: Member, action: Action) {
        match action {
            Action::Send { to, message } => self.send(who.node, to, message),
            Action::Reply { token, reply } => self.on_reply(who, token, reply),
            Action::Propose(command) => self.propose(who.node, command),
            Action::Report(report) => self.on_report(who, report),
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        self.stats.count_message(&message);
        let heard = self.process(from).map_or(Version(0), |process| process.heard);
        let arrivals = self.network.fate(Place::Node(from.0), Place::Node(to.0), self.now);
        if let Some(at) = arrivals.second {
            let message = Box::new(message.clone());
            self.queue.push(at, Event::Deliver { to, message, heard });
        }
        match arrivals.first {
            Some(at) => {
                let message = Box::new(message);
                self.queue.push(at, Event::Deliver { to, message, heard });
            }
            None if says_something(&message) => {
                self.trace.say(self.now, || format!("lost: {}", describe(to, &message)));
            }
            None => {}
        }
    }

    pub(crate) fn propose(&mut self, from: NodeId, command: TopologyCommand) {
        let arrivals = self.network.fate(Place::Node(from.0), Place::Agreement, self.now);
        for at in [arrivals.first, arrivals.second].into_iter().flatten() {
            // A commit takes a round among the voters.
            let at = at + 2 * self.plan.weather.delay;
            self.queue.push(at, Event::Propose { from, command: Box::new(command.clone()) });
        }
    }

    pub(crate) fn commit(&mut self, from: NodeId, command: &TopologyCommand) {
        let before = Arc::clone(self.agreement.topology());
        let outcome = self.agreement.commit(command, self.now);
        self.trace.say(self.now, || format!("commit from n{from}: {command:?}: {outcome:?}"));
        if let Some(Ok(applied)) = outcome {
            self.judge_commit(&before, &applied);
            self.push_topology();
        }
    }

    /// Sends the committed table to every process; it may be lost, it may be overtaken.
    fn push_topology(&mut self) {
        let topology = Arc::clone(self.agreement.topology());
        let live: Vec<NodeId> = self.live().map(|process| process.member.node).collect();
        for to in live {
            let arrivals = self.network.fate(Place::Agreement, Place::Node(to.0), self.now);
            for at in [arrivals.first, arrivals.second].into_iter().flatten() {
                self.queue.push(at, Event::Learn { to, topology: Arc::clone(&topology) });
            }
        }
    }

    fn elect_if_needed(&mut self) {
        let fit = |id: NodeId| {
            let place = Place::Node(id.0);
            self.process(id).is_some()
                && !self.is_paused(id)
                && !self.network.is_cut(place, Place::Agreement, self.now)
                && !self.network.is_cut(Place::Agreement, place, self.now)
        };
        let leads = |(node, life): (NodeId, u64)| {
            fit(node) && self.process(node).is_some_and(|process| process.life == life)
        };
        if self.now < self.agreement.out_until || self.agreement.leader.is_some_and(leads) {
            return;
        }
        let candidates: Vec<NodeId> = self.machines.keys().copied().filter(|&id| fit(id)).collect();
        if candidates.is_empty() {
            return;
        }
        let leader = *self.births.pick(&candidates);
        self.make_leader(leader);
    }

    /// Moves the lead of the controller group. The old leader learns of it later, or never.
    pub(crate) fn make_leader(&mut self, leader: NodeId) {
        let Some(life) = self.process(leader).map(|process| process.life) else { return };
        let old = self.agreement.leader.replace((leader, life));
        self.stats.elections += 1;
        if let Some((node, life)) = old {
            let delay = self.births.below(2 * SECOND);
            self.queue.push(self.now + delay, Event::Lead { node, life, leading: false });
        }
        let delay = self.births.below(50 * MS);
        self.queue.push(self.now + delay, Event::Lead { node: leader, life, leading: true });
    }

    fn on_wake(&mut self, id: NodeId, life: u64, at: Time) {
        let paused_until = self.machines.get(&id).map_or(0, |machine| machine.paused_until);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(process) = machine.process.as_mut() else { return };
        if process.life != life || process.wake_at != at {
            return;
        }
        if self.now < paused_until {
            if machine.backlog.len() < BACKLOG_MAX {
                machine.backlog.push(Event::Wake { node: id, life, at });
            }
            return;
        }
        process.wake_at = Time::MAX;
        self.drive(id, NodeEvent::Wakeup);
    }

    fn schedule_wake(&mut self, id: NodeId) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(process) = machine.process.as_mut() else { return };
        let Some(wanted) = process.node.next_wakeup() else { return };
        let at = machine.clock.true_time_of(wanted.0).max(self.now + 1);
        if at != process.wake_at {
            process.wake_at = at;
            let life = process.life;
            self.queue.push(at, Event::Wake { node: id, life, at });
        }
    }

    fn on_report(&mut self, who: Member, report: Report) {
        self.trace.say(self.now, || format!("{who} reports {report:?}"));
        self.stats.count_report(&report);
        match report {
            Report::Serving { place, term } => {
                for loss in self.losses.iter_mut().filter(|loss| loss.place == place) {
                    let committed = self.agreement.topology().partition(place);
                    if loss.until == Time::MAX && committed.is_some_and(|state| state.term == term)
                    {
                        loss.until = self.now;
                    }
                }
                let verdict = self.primaries.on_serving(place, term, who);
                self.take(verdict);
            }
            Report::Stable { place, term, .. } => {
                let verdict = self.primaries.on_serving(place, term, who);
                self.take(verdict);
            }
            _ => {}
        }
    }

    /// The living processes, in order.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Process> {
        self.machines.values().filter_map(|machine| machine.process.as_ref())
    }

    /// The process of a node.
    pub(crate) fn process(&self, id: NodeId) -> Option<&Process> {
        self.machines.get(&id)?.process.as_ref()
    }

    /// The process of a member, if that life goes on.
    pub(crate) fn process_of(&self, member: Member) -> Option<&Process> {
        self.process(member.node).filter(|process| process.member == member)
    }

    pub(crate) fn is_paused(&self, id: NodeId) -> bool {
        self.machines.get(&id).is_some_and(|machine| self.now < machine.paused_until)
    }

    /// Notes a verdict; the first violation counts.
    pub(crate) fn take(&mut self, verdict: Result<(), Violation>) {
        if let Err(violation) = verdict {
            self.break_promise(violation);
        }
    }

    pub(crate) fn break_promise(&mut self, violation: Violation) {
        self.trace.say(self.now, || format!("VIOLATION {violation}"));
        self.violation.get_or_insert(violation);
    }

    fn count(&mut self, event: &Event) {
        let words: [u64; 3] = match event {
            Event::Deliver { to, message, .. } => {
                if self.options.deep_trace {
                    self.trace.bytes(format!("{message:?}").as_bytes());
                }
                [1, to.0, message.from.node.0 << 8 | message.bodies.len() as u64]
            }
            Event::Ask { to, token } => [2, to.0, token.0],
            Event::Tell { token, reply } => {
                if self.options.deep_trace {
                    self.trace.bytes(format!("{reply:?}").as_bytes());
                }
                [3, token.0, matches!(reply, Reply::Done(_)) as u64]
            }
            Event::Impatient { token } => [4, token.0, 0],
            Event::Retry { client, .. } => [5, u64::from(*client), 0],
            Event::NextCall { client } => [6, u64::from(*client), 0],
            Event::Wake { node, life, .. } => [7, node.0, *life],
            Event::Propose { from, .. } => [8, from.0, 0],
            Event::Learn { to, topology } => [9, to.0, topology.epoch.0],
            Event::Lead { node, leading, .. } => [10, node.0, u64::from(*leading)],
            Event::Join { node, life } => [11, node.0, *life],
            Event::Restart { node } => [12, node.0, 0],
            Event::Push | Event::Election | Event::Audit | Event::Fault => [13, 0, 0],
            Event::Resume { .. } | Event::Heal | Event::CheckHealed => [14, 0, 0],
        };
        self.trace.count(self.now, &words);
    }
}

fn reading(clock: &Clock, at: Time) -> Now {
    Now { mono: Mono(clock.mono(at)), wall_ms: clock.wall_ms(at) }
}

/// Whether a message is worth a line: heartbeats would hide the rest.
fn says_something(message: &Message) -> bool {
    message.bodies.iter().any(|body| !matches!(body, Body::Heartbeat(_)))
}

fn describe(to: NodeId, message: &Message) -> String {
    format!("{} -> n{to} ({}): {:?}", message.from, message.to, message.bodies)
}
