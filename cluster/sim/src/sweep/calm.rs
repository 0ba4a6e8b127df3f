//! A calm cluster of real nodes, for measuring.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kiln_cluster::config::NodeConfig;
use kiln_cluster::effect::{ItemKey, Operation, Outcome, StoreMode, Ttl};
use kiln_cluster::heartbeat::{LocalFacts, Readiness};
use kiln_cluster::ids::{
    Generation, GroupKey, Incarnation, Member, Mode, NodeId, Place as Partition, Token,
};
use kiln_cluster::message::{Body, Message};
use kiln_cluster::node::{Action, Event as NodeEvent, Node, Reply, Request};
use kiln_cluster::store::MapStore;
use kiln_cluster::time::{Mono, Now};
use kiln_cluster::topology::{
    Acks, CacheSpec, Eviction, NodeProfile, NodeState, OnLoss, ReadMode, Topology, TopologyCommand,
};

use kiln_protocol::peer::write_record;

use crate::agreement::Agreement;
use crate::clock::WALL_START_MS;
use crate::profile::{CACHE, CACHE_NAME};
use crate::queue::{MS, Queue, SECOND, Time};
use crate::rng::Rng;
use crate::world::CLUSTER;

use super::PARTITIONS;

/// How long the cluster may take for anything that is measured.
const PATIENCE: Time = 600 * SECOND;
/// How often the partitions of the victim are tried.
const PROBE_EVERY: Time = 5 * MS;
/// Partitions of the victim that are tried, at most.
const PROBES_MAX: usize = 32;

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Messages between nodes that carry anything but heartbeats, per write.
    pub messages_per_write: f64,
    /// Heartbeats that a node sends in a second.
    pub beats_per_second: f64,
    /// Their encoded bytes.
    pub beat_bytes_per_second: f64,
    /// Encoded bytes between nodes, heartbeats excluded, from a loss until copies are full; mean.
    pub moved_bytes: u64,
    /// From each loss until copies are full.
    pub rebuild: Vec<Time>,
    /// From the death of a primary until its partition takes writes again; one per partition tried.
    pub failover: Vec<Time>,
}

impl Measured {
    /// The mean time a partition takes no writes after its primary died.
    pub fn mean_failover(&self) -> Time {
        self.failover.iter().sum::<Time>() / self.failover.len().max(1) as u64
    }
}

enum Event {
    Deliver { to: NodeId, message: Box<Message> },
    Learn { to: NodeId, topology: Arc<Topology> },
    Wake { node: NodeId, at: Time },
    Propose(Box<TopologyCommand>),
}

struct Running {
    node: Node<MapStore>,
    wake_at: Time,
}

/// The cluster.
pub struct Calm {
    rng: Rng,
    now: Time,
    queue: Queue<Event>,
    nodes: BTreeMap<NodeId, Running>,
    agreement: Agreement,
    group: GroupKey,
    bandwidth: u64,
    /// Not among the victims: how fast the voters replace a leader is the Raft library's matter.
    leader: NodeId,
    replies: BTreeMap<Token, Reply>,
    tokens: u64,
    payload_messages: u64,
    payload_bytes: u64,
    beats: u64,
    beat_bytes: u64,
    sizes_wanted: bool,
    /// What was measured so far.
    pub measured: Measured,
}

impl Calm {
    /// Starts a cluster and waits until all copies are there.
    pub fn form(nodes: u64, copies: u8, bandwidth: u64) -> Self {
        let group = GroupKey { mode: Mode::Strong, copies };
        let mut calm = Self {
            rng: Rng::new(nodes * 100 + u64::from(copies)),
            now: 0,
            queue: Queue::default(),
            nodes: BTreeMap::new(),
            agreement: Agreement::new(CLUSTER, PARTITIONS),
            group,
            bandwidth,
            leader: NodeId(1),
            replies: BTreeMap::new(),
            tokens: 0,
            payload_messages: 0,
            payload_bytes: 0,
            beats: 0,
            beat_bytes: 0,
            sizes_wanted: false,
            measured: Measured::default(),
        };
        for number in 1..=nodes {
            calm.start(NodeId(number));
        }
        calm.drive(NodeId(1), NodeEvent::Leading(true));
        calm.wait("nodes are ready", |calm| {
            let ready = |info: &kiln_cluster::topology::NodeInfo| info.state == NodeState::Ready;
            calm.agreement.topology().nodes.values().all(ready)
        });
        calm.commit(&TopologyCommand::CreateCache { name: CACHE_NAME.into(), spec: spec(copies) });
        calm.wait("copies are full", Self::is_full);
        calm.run_for(2 * SECOND);
        calm
    }

    /// Counts heartbeats while nothing else happens.
    pub fn measure_idle(&mut self, span: Time) {
        (self.beats, self.beat_bytes, self.sizes_wanted) = (0, 0, true);
        self.run_for(span);
        let node_seconds = self.nodes.len() as f64 * span as f64 / SECOND as f64;
        self.measured.beats_per_second = self.beats as f64 / node_seconds;
        self.measured.beat_bytes_per_second = self.beat_bytes as f64 / node_seconds;
        self.sizes_wanted = false;
    }

    /// Writes every item once, one after the other, and counts messages.
    pub fn measure_writes(&mut self, items: u32, value_len: usize) {
        self.payload_messages = 0;
        let value = Bytes::from(vec![b'v'; value_len]);
        for number in 0..items {
            let key = ItemKey { cache: CACHE, key: Bytes::from(format!("item-{number}")) };
            let Some(primary) = self.primary_of(&key) else { continue };
            let token = self.ask(primary, key, value.clone());
            self.wait("a write is acknowledged", |calm| calm.replies.contains_key(&token));
            self.replies.clear();
        }
        self.measured.messages_per_write = self.payload_messages as f64 / f64::from(items);
    }

    /// Kills a node and waits until its partitions serve and copies are full again.
    pub fn measure_loss(&mut self) {
        let others: Vec<NodeId> =
            self.nodes.keys().copied().filter(|&node| node != self.leader).collect();
        if others.len() < 2 {
            return;
        }
        let victim = *self.rng.pick(&others);
        let mut open = self.keys_led_by(victim);
        (self.payload_bytes, self.sizes_wanted) = (0, true);
        let since = self.now;
        self.nodes.remove(&victim);
        let mut tokens: BTreeMap<Token, ItemKey> = BTreeMap::new();
        while !open.is_empty() && self.now < since + PATIENCE {
            for key in open.values() {
                if let Some(primary) =
                    self.primary_of(key).filter(|node| self.nodes.contains_key(node))
                {
                    let token = self.ask(primary, key.clone(), Bytes::from_static(b"probe"));
                    tokens.insert(token, key.clone());
                }
            }
            self.run_for(PROBE_EVERY);
            for (token, reply) in std::mem::take(&mut self.replies) {
                let Some(key) = tokens.remove(&token) else { continue };
                if matches!(reply, Reply::Done(Outcome::Stored(_))) {
                    let partition = self.agreement.topology().partition_of(&key.key).0;
                    if open.remove(&partition).is_some() {
                        self.measured.failover.push(self.now - since);
                    }
                }
            }
        }
        // Three nodes with three copies cannot be full with one lost: it comes back.
        if self.nodes.len() < usize::from(self.group.copies) {
            self.start(victim);
        }
        self.wait("copies are full", Self::is_full);
        self.measured.rebuild.push(self.now - since);
        let losses = self.measured.rebuild.len() as u64;
        self.measured.moved_bytes =
            (self.measured.moved_bytes * (losses - 1) + self.payload_bytes) / losses;
        self.sizes_wanted = false;
        if !self.nodes.contains_key(&victim) {
            self.start(victim);
        }
        self.run_for(5 * SECOND);
        self.wait("copies are full", Self::is_full);
    }

    fn start(&mut self, id: NodeId) {
        let member = Member { node: id, incarnation: Incarnation(self.rng.next() >> 1) };
        let mut config = NodeConfig::default();
        config.strong.transfer_bytes_per_s = self.bandwidth;
        let store = MapStore::new(1 << 40);
        let node = Node::new(CLUSTER, config, member, store, self.rng.next(), self.reading());
        self.nodes.insert(id, Running { node, wake_at: Time::MAX });
        let replaces = self.agreement.topology().member(id).map(|old| old.incarnation);
        let profile = NodeProfile { weight: 1_000, ..NodeProfile::default() };
        let incarnation = member.incarnation;
        self.commit(&TopologyCommand::Join { node: id, incarnation, replaces, profile });
        let facts = LocalFacts { readiness: Readiness::Ready, ..LocalFacts::default() };
        self.drive(id, NodeEvent::Facts(facts));
    }

    fn reading(&self) -> Now {
        Now { mono: Mono(self.now + 1), wall_ms: WALL_START_MS + self.now / MS }
    }

    fn ask(&mut self, to: NodeId, key: ItemKey, value: Bytes) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let (mode, ttl) = (StoreMode::Set, Ttl::Never);
        let operation = Operation::Store { mode, value, flags: 0, ttl, compare: None };
        let request = Request { id: None, key, operation, seen: Generation(0) };
        self.drive(to, NodeEvent::Request { token, request });
        token
    }

    fn drive(&mut self, id: NodeId, event: NodeEvent) {
        let now = self.reading();
        let Some(running) = self.nodes.get_mut(&id) else { return };
        let mut actions = Vec::new();
        running.node.handle(now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, message } => self.send(to, message),
                Action::Reply { token, reply } => {
                    self.replies.insert(token, reply);
                }
                Action::Propose(command) => {
                    let at = self.now + 4 * self.delay();
                    self.queue.push(at, Event::Propose(Box::new(command)));
                }
                Action::Report(_) => {}
            }
        }
        self.schedule_wake(id);
    }

    fn send(&mut self, to: NodeId, message: Message) {
        let only_beats = message.bodies.iter().all(|body| matches!(body, Body::Heartbeat(_)));
        let len = if self.sizes_wanted { encoded_len(&message) } else { 0 };
        if only_beats {
            self.beats += 1;
            self.beat_bytes += len;
        } else {
            self.payload_messages += 1;
            self.payload_bytes += len;
        }
        let at = self.now + self.delay();
        self.queue.push(at, Event::Deliver { to, message: Box::new(message) });
    }

    fn commit(&mut self, command: &TopologyCommand) {
        if let Some(Ok(_)) = self.agreement.commit(command, self.now) {
            let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
            for to in nodes {
                let topology = Arc::clone(self.agreement.topology());
                let at = self.now + self.delay();
                self.queue.push(at, Event::Learn { to, topology });
            }
        }
    }

    fn schedule_wake(&mut self, id: NodeId) {
        let Some(running) = self.nodes.get_mut(&id) else { return };
        let Some(wanted) = running.node.next_wakeup() else { return };
        let at = wanted.0.max(self.now + 1);
        if at != running.wake_at {
            running.wake_at = at;
            self.queue.push(at, Event::Wake { node: id, at });
        }
    }

    fn run_for(&mut self, span: Time) {
        let until = self.now + span;
        while self.queue.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = self.now + PATIENCE;
        while !done(self) {
            assert!(self.now < until, "in vain: {what}");
            self.step();
        }
    }

    fn step(&mut self) {
        let Some((at, event)) = self.queue.pop() else { return };
        self.now = at;
        match event {
            Event::Deliver { to, message } => self.drive(to, NodeEvent::Message(*message)),
            Event::Learn { to, topology } => self.drive(to, NodeEvent::Topology(topology)),
            Event::Propose(command) => self.commit(&command),
            Event::Wake { node, at } => {
                if let Some(running) = self.nodes.get_mut(&node)
                    && running.wake_at == at
                {
                    running.wake_at = Time::MAX;
                    self.drive(node, NodeEvent::Wakeup);
                }
            }
        }
    }

    /// Between 0.1 and 0.4 ms.
    fn delay(&mut self) -> Time {
        100_000 + self.rng.below(300_000)
    }

    fn primary_of(&self, key: &ItemKey) -> Option<NodeId> {
        let topology = self.agreement.topology();
        let place = Partition { group: self.group, partition: topology.partition_of(&key.key) };
        topology.partition(place)?.primary.map(|member| member.node)
    }

    /// One key for each of some partitions that a node leads.
    fn keys_led_by(&self, node: NodeId) -> BTreeMap<u32, ItemKey> {
        let mut keys = BTreeMap::new();
        for number in 0.. {
            let key = ItemKey { cache: CACHE, key: Bytes::from(format!("probe-{number}")) };
            if self.primary_of(&key) == Some(node) {
                keys.insert(self.agreement.topology().partition_of(&key.key).0, key);
            }
            if keys.len() >= PROBES_MAX || number > 100 * PARTITIONS {
                break;
            }
        }
        keys
    }

    fn is_full(&self) -> bool {
        let topology = self.agreement.topology();
        let wanted = usize::from(self.group.copies).min(self.nodes.len());
        topology.groups.contains_key(&self.group)
            && topology.places().all(|(_, state)| {
                state.in_sync.len() == wanted
                    && state.learners.is_empty()
                    && state.in_sync.iter().all(|member| {
                        self.nodes.get(&member.node).is_some_and(|r| r.node.me() == *member)
                    })
            })
    }
}

/// One loss must not stop writes.
pub fn min_in_sync(copies: u8) -> u8 {
    copies.saturating_sub(1).max(1)
}

fn spec(copies: u8) -> CacheSpec {
    CacheSpec {
        id: CACHE,
        mode: Mode::Strong,
        copies,
        min_in_sync: min_in_sync(copies),
        read: ReadMode::Confirm,
        acks: Acks::One,
        eviction: Eviction::Refuse,
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: String::new(),
        memory: 0,
    }
}

/// Bytes of a message on the wire.
fn encoded_len(message: &Message) -> u64 {
    let mut bytes = Vec::new();
    write_record(&mut bytes, message).map_or(0, |()| bytes.len() as u64)
}
