//! Drives the replication core: gathers what happened, lets the core decide, carries it out.
//!
//! A turn takes all that waits, requests, messages, a new table, the time, and gives it to the core
//! as events of one moment; what that causes for a peer leaves with one system call. Requests that
//! nobody could carry out are asked again for a while: a client sees a failover as a delay, not as
//! an error. Which thread runs a turn is not decided here: see [`super::turns`].
//!
//! What bounds what: requests waiting for answers (more are refused as busy), and the time each may
//! be asked again.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release},
    },
    time::Duration,
};

use kiln_cluster::{
    ids::{ClientId, Mode, RequestId, Token},
    node::{Action, Event, Node as Core, Refusal, Reply, Report, Request},
    store_engine::EngineStore,
    time::{Mono, Now},
    topology::{NodeState, Topology},
};
use slab::Slab;

use super::{
    catalog::{Catalog, StoreHandle},
    facts::Facts,
    near::Sleeper,
    shared::Cluster,
    turns::Turns,
    watcher::Watcher,
    wave::{Asked, Submission, Wave},
};
use crate::{control::Control, node::Node, peer::Links};

/// Requests that wait for answers. More are refused as busy.
const WAITING_MAX: usize = 65_536;

/// Until a request that nobody could carry out is asked again, the first time; doubled each time
/// after that. A planned move of a primary is over within a few milliseconds.
const RETRY_FIRST_MS: u64 = 2;

/// The longest such wait: a failover takes longer than any move.
const RETRY_MAX_MS: u64 = 25;

/// How often clients that follow the table are told of changes: while a node joins, many come. A
/// request that goes to a former owner meanwhile is passed on.
const TELL_EVERY_MS: u64 = 250;

/// How often a table with other nodes is looked at again, until streams have kept their state.
const COMPANY_EVERY_MS: u64 = 10;

/// How often what the core knows is gathered for others.
const LOOK_EVERY_MS: u64 = 250;

/// A request that waits for its answer.
struct Waiting {
    wave: Arc<Wave>,
    slot: usize,
    /// To ask again.
    request: Request,
    /// How often it was asked again.
    retries: u32,
    give_up: Mono,
}

/// What turns work with.
pub(super) struct Driver {
    pub(super) node: Arc<Node>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) core: Core<EngineStore<StoreHandle>>,
    pub(super) links: Links,
    pub(super) control: Control,
    pub(super) catalog: Catalog,
    pub(super) watcher: Watcher,
    pub(super) facts: Facts,
    /// Names the requests of this node's clients, so that they can be asked again.
    pub(super) client: ClientId,
    /// Whether this node leads the controller group.
    pub(super) leads: bool,
    /// The cluster thread runs a turn then, if nothing happens before.
    pub(super) sleeps_until: Mono,
    pub(super) turn: Turn,
}

/// What lives from turn to turn.
#[derive(Default)]
pub(super) struct Turn {
    waiting: Slab<Waiting>,
    counter: u64,
    /// What is to be asked again, the earliest first.
    retries: BinaryHeap<Reverse<(Mono, usize)>>,
    events: Vec<Event>,
    actions: Vec<Action>,
    sleepers: Vec<Sleeper>,
    look_at: Mono,
    /// When clients were told of the table last, and when they are to be told again.
    told_at: Mono,
    tell_at: Option<Mono>,
    /// When a table with other nodes is looked at again.
    company_at: Option<Mono>,
}

impl Driver {
    /// When a turn is needed even if nothing happens.
    pub(super) fn due(&self) -> Mono {
        let due = [
            self.core.next_wakeup(),
            self.turn.retries.peek().map(|Reverse((at, _))| *at),
            Some(self.turn.look_at),
            self.turn.tell_at,
            self.turn.company_at,
        ];
        due.into_iter().flatten().min().unwrap_or(Mono::MAX)
    }

    /// How long that is from now.
    pub(super) fn until_due(&self) -> Duration {
        Duration::from_nanos(self.due().since_ns(self.cluster.mono()))
    }

    /// Whether this node leads the controller group now.
    pub(super) fn take_leading(&mut self, leads: bool) {
        if leads != self.leads {
            self.leads = leads;
            self.turn.events.push(Event::Leading(leads));
        }
    }

    /// Everything that waits, in one moment.
    pub(super) fn turn(&mut self, turns: &Turns) {
        let now = self.cluster.now();
        let (submissions, messages) = turns.take();
        if self.turn.look_at <= now.mono {
            self.turn.look_at = now.mono.after_ms(LOOK_EVERY_MS);
            self.look(now);
        }
        if self.turn.tell_at.is_some_and(|at| at <= now.mono) {
            self.turn.tell_at = None;
            self.turn.told_at = now.mono;
            self.node.topology_changed();
        }
        for submission in submissions {
            self.take_in(now, submission);
        }
        self.ask_again(now);
        self.turn.events.extend(messages.into_iter().map(Event::Message));
        if self.core.next_wakeup().is_some_and(|at| at <= now.mono) {
            self.turn.events.push(Event::Wakeup);
        }
        if self.turn.events.is_empty() {
            return;
        }
        let mut actions = std::mem::take(&mut self.turn.actions);
        self.core.handle_all(now, &mut self.turn.events, &mut actions);
        self.publish();
        for action in actions.drain(..) {
            self.carry_out(now, action);
        }
        self.turn.actions = actions;
        self.links.flush();
        self.turn.sleepers.drain(..).for_each(Sleeper::wake);
        let took = self.cluster.mono().since_ns(now.mono);
        self.cluster.turn_times.count(Duration::from_nanos(took), 1);
    }

    /// Rights of the workers and the clock of the stores: before anything of the turn is seen.
    fn publish(&mut self) {
        for (place, right) in self.core.direct_changes() {
            self.cluster.rights.set(place, right.alone_until, right.leased_until);
        }
        self.cluster.ended_ms.store(self.core.store().clock_ms(), Relaxed);
        if !self.cluster.is_open() && self.may_open() {
            self.cluster.open.store(true, Release);
        }
    }

    /// Whether clients may be served: the core knows the table that names this node, and if there
    /// are no others, everything in it is this node's. Until a partition has a primary, a write to
    /// it would be lost when another node is given it.
    fn may_open(&self) -> bool {
        let (topology, me) = (self.core.topology(), self.cluster.me);
        let Some(info) = topology.nodes.get(&me.node) else { return false };
        let alone = topology.nodes.len() == 1;
        info.incarnation == me.incarnation
            && (!alone
                || !info.holds_items()
                || topology.places().all(|(_, state)| state.primary == Some(me)))
    }

    fn take_in(&mut self, now: Now, submission: Submission) {
        let Submission { wave, asked } = submission;
        for (slot, Asked { mut request, mode, within_ms }) in asked.into_iter().enumerate() {
            if self.turn.waiting.len() >= WAITING_MAX {
                let busy = Reply::NotApplied(Refusal::Busy);
                self.turn.sleepers.extend(wave.answer(slot, busy));
                continue;
            }
            // Eventual requests are not repeated by name: a second owner would not know the name.
            if mode == Mode::Strong && !request.is_plain_read() && request.id.is_none() {
                self.turn.counter += 1;
                let counter = self.turn.counter;
                request.id = Some(RequestId { client: self.client, counter });
            }
            let waiting = Waiting {
                wave: Arc::clone(&wave),
                slot,
                request: request.clone(),
                retries: 0,
                give_up: now.mono.after_ms(u64::from(within_ms)),
            };
            let token = Token(self.turn.waiting.insert(waiting) as u64);
            self.turn.events.push(Event::Request { token, request });
        }
    }

    fn ask_again(&mut self, now: Now) {
        while let Some(&Reverse((at, key))) = self.turn.retries.peek() {
            if at > now.mono {
                return;
            }
            self.turn.retries.pop();
            let Some(waiting) = self.turn.waiting.get(key) else { continue };
            let request = waiting.request.clone();
            self.turn.events.push(Event::Request { token: Token(key as u64), request });
        }
    }

    fn carry_out(&mut self, now: Now, action: Action) {
        match action {
            Action::Send { to, message } => self.links.send(to, &message),
            Action::Reply { token, reply } => self.reply(now, token, reply),
            Action::Propose(command) => self.control.propose(command),
            Action::Report(report) => self.report(report),
        }
    }

    fn reply(&mut self, now: Now, token: Token, reply: Reply) {
        let key = token.0 as usize;
        let Some(waiting) = self.turn.waiting.get_mut(key) else { return };
        let again = now.mono.after_ms(retry_after_ms(waiting.retries));
        if can_be_asked_again(&waiting.request, &reply) && again < waiting.give_up {
            waiting.retries += 1;
            return self.turn.retries.push(Reverse((again, key)));
        }
        let waiting = self.turn.waiting.remove(key);
        self.turn.sleepers.extend(waiting.wave.answer(waiting.slot, reply));
    }

    fn report(&mut self, report: Report) {
        self.watcher.on_report(&self.cluster, &report);
    }

    /// A new table: caches are made, peers connected and the gate closed before the core sees it.
    pub(super) fn take_topology(&mut self, topology: &Arc<Topology>) {
        if topology.epoch <= self.core.topology().epoch {
            return;
        }
        let me = self.cluster.me;
        self.turn.company_at = None;
        if topology.nodes.keys().any(|node| *node != me.node) && !self.cluster.gate.is_closed() {
            if !self.node.streams.company.may_come() {
                // Streams write their state to the stores first, so that others find it there.
                self.turn.company_at = Some(self.cluster.mono().after_ms(COMPANY_EVERY_MS));
                return;
            }
            self.cluster.gate.close();
            tracing::debug!("another node is in the table: all requests pass the core from now on");
        }
        let made = self.catalog.follow(&self.node, topology, &self.cluster, self.core.store_mut());
        for text in made {
            self.cluster.note(text);
        }
        self.watcher.on_topology(&self.cluster, topology);
        let peers = topology.nodes.iter().filter(|(node, _)| **node != me.node);
        let peers = peers.filter_map(|(node, info)| {
            let member = topology.member(*node)?;
            Some((member, info.addresses.get(super::PEER)?.clone()))
        });
        self.links.set_peers(peers.collect());
        self.cluster.note_losses(topology);
        self.cluster.topology.store(Arc::clone(topology));
        self.cluster.followed.send_replace(Arc::clone(topology));
        self.turn.tell_at.get_or_insert(self.turn.told_at.after_ms(TELL_EVERY_MS));
        self.turn.events.push(Event::Topology(Arc::clone(topology)));
    }

    /// What the core knows, for others; and what others know, for the core.
    fn look(&mut self, now: Now) {
        self.watcher.tell(&self.cluster);
        let ready = matches!(
            self.cluster.state(),
            Some(NodeState::Joining | NodeState::Ready | NodeState::Draining)
        );
        let waiting = self.turn.waiting.len();
        let facts = self.facts.gather(&self.node, &self.cluster, ready, waiting);
        self.turn.events.push(Event::Facts(facts));
        self.cluster.rights.take_used(|place| self.core.used(place));
        let overview = self.watcher.overview(&self.core, now, self.leads, waiting);
        self.cluster.overview.store(Arc::new(overview));
    }
}

/// How long a request waits that was asked again so often.
fn retry_after_ms(retries: u32) -> u64 {
    RETRY_MAX_MS.min(RETRY_FIRST_MS << retries.min(RETRY_MAX_MS.ilog2()))
}

/// Whether another attempt does no harm and may do better.
fn can_be_asked_again(request: &Request, reply: &Reply) -> bool {
    match reply {
        Reply::Done(_) => false,
        Reply::NotApplied(refusal) => {
            matches!(refusal, Refusal::NotPrimary(_) | Refusal::NotReady | Refusal::TimedOut)
        }
        // The name tells the copies that it is the same request. Eventual caches know no names:
        // there the last write wins, also over itself.
        Reply::Indeterminate => request.id.is_some() || request.operation.is_idempotent(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_asked_again_ever_later_up_to_the_longest_wait() {
        let waits: Vec<_> = [0, 1, 2, 3, 4, u32::MAX].map(retry_after_ms).into();
        assert_eq!(waits, [2, 4, 8, 16, 25, 25]);
    }
}
