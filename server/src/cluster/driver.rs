//! Drives the replication core: gathers what happened, lets the core decide, carries it out.
//!
//! One thread owns the core and the links to other nodes, so that a message goes from socket to
//! decision to socket without a hand-over. A turn takes all that waits, requests, messages, a new
//! table, the time, and gives it to the core as events of one moment; what that causes for a peer
//! leaves with one system call. Requests that nobody could carry out are asked again for a while:
//! a client sees a failover as a delay, not as an error.
//!
//! What bounds what: requests taken in one turn, requests waiting for answers (more are refused as
//! busy), and the time each may be asked again.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release},
    },
    task::Waker,
    time::Duration,
};

use kiln_cluster::{
    ids::{ClientId, Mode, RequestId, Token},
    message::Message,
    node::{Action, Event, Node as Core, Refusal, Reply, Report, Request},
    store_engine::EngineStore,
    time::{Mono, Now},
    topology::{NodeState, Topology},
};
use parking_lot::Mutex;
use slab::Slab;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    catalog::{Catalog, StoreHandle},
    facts::Facts,
    shared::Cluster,
    watcher::Watcher,
    wave::{Asked, Submission, Wave},
};
use crate::{control::Control, node::Node, peer::Links};

/// Waves taken in one turn.
const SUBMISSIONS_PER_TURN: usize = 256;

/// Requests that wait for answers. More are refused as busy.
const WAITING_MAX: usize = 65_536;

/// Until a request that nobody could carry out is asked again.
const RETRY_AFTER_MS: u64 = 25;

/// How often a table with other nodes is looked at again, until streams have kept their state.
const COMPANY_EVERY_MS: u64 = 10;

/// How often what the core knows is gathered for others.
const LOOK_EVERY_MS: u64 = 250;

/// Messages of other nodes, on their way from the links to the driver.
#[derive(Default)]
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    arrived: Notify,
}

impl Inbox {
    /// A message came; `more` of the same read follow.
    pub(super) fn put(&self, message: Message, more: bool) {
        self.messages.lock().push(message);
        if !more {
            self.arrived.notify_one();
        }
    }
}

/// A request that waits for its answer.
struct Waiting {
    wave: Arc<Wave>,
    slot: usize,
    /// To ask again.
    request: Request,
    give_up: Mono,
}

/// What the thread works with.
pub(super) struct Driver {
    pub(super) node: Arc<Node>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) core: Core<EngineStore<StoreHandle>>,
    pub(super) links: Links,
    pub(super) control: Control,
    pub(super) inbox: Arc<Inbox>,
    pub(super) submissions: mpsc::Receiver<Submission>,
    pub(super) topology: watch::Receiver<Arc<Topology>>,
    pub(super) leading: watch::Receiver<bool>,
    pub(super) catalog: Catalog,
    pub(super) watcher: Watcher,
    pub(super) facts: Facts,
    /// Names the requests of this node's clients, so that they can be asked again.
    pub(super) client: ClientId,
    pub(super) turn: Turn,
}

/// What lives from turn to turn.
#[derive(Default)]
pub(super) struct Turn {
    waiting: Slab<Waiting>,
    counter: u64,
    retries: VecDeque<(Mono, usize)>,
    events: Vec<Event>,
    actions: Vec<Action>,
    wakers: Vec<Waker>,
    taken: Vec<Submission>,
    look_at: Mono,
    /// When a table with other nodes is looked at again.
    company_at: Option<Mono>,
}

impl Driver {
    /// Runs until the node ends.
    pub(super) async fn run(mut self) {
        self.take_topology();
        let leads = *self.leading.borrow_and_update();
        self.turn.events.push(Event::Leading(leads));
        let inbox = Arc::clone(&self.inbox);
        let cluster = Arc::clone(&self.cluster);
        loop {
            self.one_turn();
            let wake_at = self.wake_at();
            let mut timer = pin!(sleep_until(wake_at));
            tokio::select! {
                taken = self.submissions.recv_many(&mut self.turn.taken, SUBMISSIONS_PER_TURN) => {
                    if taken == 0 {
                        return;
                    }
                }
                () = inbox.arrived.notified() => {}
                changed = self.topology.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_topology();
                }
                changed = self.leading.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let leads = *self.leading.borrow_and_update();
                    self.turn.events.push(Event::Leading(leads));
                }
                () = cluster.nudge.notified() => {}
                () = &mut timer => {}
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let due = [
            self.core.next_wakeup(),
            self.turn.retries.front().map(|(at, _)| *at),
            Some(self.turn.look_at),
            self.turn.company_at,
        ];
        let due = due.into_iter().flatten().min().unwrap_or(Mono::MAX);
        let wait = due.since_ns(self.cluster.mono());
        Instant::now() + Duration::from_nanos(wait)
    }

    /// Everything that waits, in one moment.
    fn one_turn(&mut self) {
        let now = self.cluster.now();
        if self.turn.look_at <= now.mono {
            self.turn.look_at = now.mono.after_ms(LOOK_EVERY_MS);
            self.look(now);
        }
        if self.turn.company_at.is_some_and(|at| at <= now.mono) {
            self.take_topology();
        }
        for submission in std::mem::take(&mut self.turn.taken) {
            self.take_in(now, submission);
        }
        self.ask_again(now);
        let messages = std::mem::take(&mut *self.inbox.messages.lock());
        self.turn.events.extend(messages.into_iter().map(Event::Message));
        if self.core.next_wakeup().is_some_and(|at| at <= now.mono) {
            self.turn.events.push(Event::Wakeup);
        }
        if self.turn.events.is_empty() {
            return;
        }
        let mut actions = std::mem::take(&mut self.turn.actions);
        self.core.handle_all(now, self.turn.events.drain(..), &mut actions);
        self.publish();
        for action in actions.drain(..) {
            self.carry_out(now, action);
        }
        self.turn.actions = actions;
        self.links.flush();
        self.turn.wakers.drain(..).for_each(Waker::wake);
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
                self.turn.wakers.extend(wave.answer(slot, busy));
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
                give_up: now.mono.after_ms(u64::from(within_ms)),
            };
            let token = Token(self.turn.waiting.insert(waiting) as u64);
            self.turn.events.push(Event::Request { token, request });
        }
    }

    fn ask_again(&mut self, now: Now) {
        while let Some(&(at, key)) = self.turn.retries.front() {
            if at > now.mono {
                return;
            }
            self.turn.retries.pop_front();
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
        let Some(waiting) = self.turn.waiting.get(key) else { return };
        let again = now.mono.after_ms(RETRY_AFTER_MS);
        if can_be_asked_again(&waiting.request, &reply) && again < waiting.give_up {
            // All wait equally long, so the queue is in order.
            return self.turn.retries.push_back((again, key));
        }
        let waiting = self.turn.waiting.remove(key);
        self.turn.wakers.extend(waiting.wave.answer(waiting.slot, reply));
    }

    fn report(&mut self, report: Report) {
        self.watcher.on_report(&self.cluster, &report);
    }

    /// A new table: caches are made, peers connected and the gate closed before the core sees it.
    fn take_topology(&mut self) {
        let topology = Arc::clone(&self.topology.borrow_and_update());
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
        let made = self.catalog.follow(&self.node, &topology, &self.cluster, self.core.store_mut());
        for text in made {
            self.cluster.note(text);
        }
        self.watcher.on_topology(&self.cluster, &topology);
        let peers = topology.nodes.iter().filter(|(node, _)| **node != me.node);
        let peers = peers.filter_map(|(node, info)| {
            let member = topology.member(*node)?;
            Some((member, info.addresses.get(super::PEER)?.clone()))
        });
        self.links.set_peers(peers.collect());
        self.cluster.note_losses(&topology);
        self.cluster.topology.store(Arc::clone(&topology));
        self.cluster.followed.send_replace(Arc::clone(&topology));
        self.node.topology_changed();
        self.turn.events.push(Event::Topology(topology));
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
        let leads = *self.leading.borrow();
        let overview = self.watcher.overview(&self.core, now, leads, waiting);
        self.cluster.overview.store(Arc::new(overview));
    }
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
