//! A few nodes, a table that commits at once, and a network that does what the test says.

use std::cell::RefCell;
pub(super) use std::collections::{BTreeMap, BTreeSet};
pub(super) use std::sync::Arc;

pub(super) use bytes::Bytes;

pub(super) use super::super::*;
pub(super) use crate::config::Mutant;
pub(super) use crate::effect::{Direction, Item, StoreMode, Ttl};
pub(super) use crate::heartbeat::Readiness;
pub(super) use crate::ids::{CacheId, ClientId, GroupKey, Incarnation};
pub(super) use crate::store::MapStore;
pub(super) use crate::strong::PartitionRole;
pub(super) use crate::topology::{
    Acks, CacheSpec, Eviction, NodeProfile, OnLoss, ReadMode, TopologyCommand as Command,
};

pub(super) const CLUSTER: ClusterId = ClusterId(7);
pub(super) const CACHE: CacheId = CacheId(1);
pub(super) const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 3 };
pub(super) const PLACE: Place = Place { group: GROUP, partition: PartitionId(0) };
pub(super) const HOP_US: u64 = 500;

pub(super) type Filter = Box<dyn Fn(NodeId, NodeId, &Body) -> bool>;

/// Nodes, a table that commits at once, and a network without faults but those asked for.
pub(super) struct World {
    pub(super) now: Mono,
    pub(super) wall_ms: BTreeMap<NodeId, u64>,
    pub(super) nodes: BTreeMap<NodeId, Node<MapStore>>,
    pub(super) paused: BTreeSet<NodeId>,
    pub(super) topology: Topology,
    pub(super) flying: BTreeMap<(Mono, u64), Message>,
    pub(super) sent: u64,
    /// Messages that are lost.
    pub(super) lost: Option<Filter>,
    /// Messages that are kept back until released.
    pub(super) kept: Vec<Message>,
    pub(super) keep: Option<Filter>,
    pub(super) replies: BTreeMap<Token, Reply>,
    pub(super) reports: Vec<(NodeId, Report)>,
    /// Whether proposals are committed.
    pub(super) agrees: bool,
    pub(super) proposed: Vec<Command>,
    pub(super) lives: u64,
    pub(super) config: NodeConfig,
}

pub(super) fn node(number: u64) -> NodeId {
    NodeId(number)
}

pub(super) fn spec() -> CacheSpec {
    CacheSpec {
        id: CACHE,
        mode: Mode::Strong,
        copies: 3,
        min_in_sync: 1,
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

impl World {
    pub(super) fn new(nodes: u64, spec: CacheSpec) -> Self {
        Self::with(nodes, spec, NodeConfig::default(), 1 << 20)
    }

    pub(super) fn with(nodes: u64, spec: CacheSpec, config: NodeConfig, bytes: usize) -> Self {
        let mut world = Self {
            now: Mono(0),
            wall_ms: BTreeMap::new(),
            nodes: BTreeMap::new(),
            paused: BTreeSet::new(),
            topology: Topology::new(CLUSTER, 1),
            flying: BTreeMap::new(),
            sent: 0,
            lost: None,
            kept: Vec::new(),
            keep: None,
            replies: BTreeMap::new(),
            reports: Vec::new(),
            agrees: true,
            proposed: Vec::new(),
            lives: 0,
            config,
        };
        for number in 1..=nodes {
            world.start(node(number), bytes);
        }
        world.commit(Command::CreateCache { name: "default".into(), spec });
        world
    }

    pub(super) fn start(&mut self, node: NodeId, bytes: usize) {
        self.lives += 1;
        let replaces = self.topology.nodes.get(&node).map(|info| info.incarnation);
        let me = Member { node, incarnation: Incarnation(100 + self.lives) };
        self.wall_ms.entry(node).or_insert(1_000_000);
        let store = MapStore::new(bytes);
        let now = self.now(node);
        let fresh = Node::new(CLUSTER, self.config.clone(), me, store, self.lives, now);
        self.nodes.insert(node, fresh);
        let facts = LocalFacts { readiness: Readiness::Ready, ..LocalFacts::default() };
        self.give(node, Event::Facts(facts));
        let profile = NodeProfile {
            name: format!("n{node}"),
            addresses: BTreeMap::new(),
            weight: 1_000,
            zone: String::new(),
            witness: false,
        };
        let incarnation = me.incarnation;
        self.commit(Command::Join { node, incarnation, replaces, profile });
    }

    pub(super) fn now(&self, node: NodeId) -> Now {
        Now { mono: self.now, wall_ms: self.wall_ms[&node] + self.now.0 / 1_000_000 }
    }

    pub(super) fn member(&self, number: u64) -> Member {
        self.topology.member(node(number)).expect("a node of the table")
    }

    pub(super) fn state(&self) -> &crate::topology::PartitionState {
        self.topology.partition(PLACE).expect("the partition")
    }

    pub(super) fn commit(&mut self, command: Command) {
        if let Err(refused) = self.topology.apply(&command) {
            panic!("{command:?} was refused: {refused}");
        }
        self.push_table();
    }

    pub(super) fn push_table(&mut self) {
        let table = Arc::new(self.topology.clone());
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            if !self.paused.contains(&node) {
                self.give(node, Event::Topology(Arc::clone(&table)));
            }
        }
    }

    /// Gives the partition to these nodes, the first as primary, and waits until it serves.
    pub(super) fn assign(&mut self, members: &[u64]) {
        let members = members.iter().map(|&number| self.member(number)).collect();
        let version = self.state().version;
        self.commit(Command::Assign { place: PLACE, version, members });
        self.run_ms(5);
    }

    pub(super) fn give(&mut self, node: NodeId, event: Event) {
        let now = self.now(node);
        let mut actions = Actions::new();
        let Some(target) = self.nodes.get_mut(&node) else { return };
        target.handle(now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { to, message } => self.send(node, to, message),
                Action::Reply { token, reply } => {
                    assert!(self.replies.insert(token, reply).is_none(), "two replies");
                }
                Action::Propose(command) => self.propose(command),
                Action::Report(report) => self.reports.push((node, report)),
            }
        }
    }

    pub(super) fn propose(&mut self, command: Command) {
        self.proposed.push(command.clone());
        if self.agrees && self.topology.apply(&command).is_ok() {
            self.push_table();
        }
    }

    pub(super) fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let mut passing = message.clone();
        let mut held = message.clone();
        let keep = |body: &Body| self.keep.as_ref().is_some_and(|keep| keep(from, to, body));
        let lost = |body: &Body| self.lost.as_ref().is_some_and(|lost| lost(from, to, body));
        held.bodies.retain(keep);
        passing.bodies.retain(|body| !keep(body) && !lost(body));
        if !held.bodies.is_empty() {
            self.kept.push(held);
        }
        if !passing.bodies.is_empty() {
            self.sent += 1;
            self.flying.insert((self.now.after_us(HOP_US), self.sent), passing);
        }
    }

    /// Lets go of what was kept back.
    pub(super) fn release(&mut self) {
        self.keep = None;
        for message in std::mem::take(&mut self.kept) {
            self.sent += 1;
            self.flying.insert((self.now, self.sent), message);
        }
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        let end = self.now.after_ms(ms);
        loop {
            let arrival = self.flying.first_key_value().map(|(&(at, _), _)| at);
            let wakeup = self
                .nodes
                .iter()
                .filter(|(node, _)| !self.paused.contains(node))
                .filter_map(|(&node, state)| Some((state.next_wakeup()?, node)))
                .min();
            let next = [arrival, wakeup.map(|(at, _)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let Some((_, message)) = self.flying.pop_first() else { break };
                let to = message.to.node;
                if self.paused.contains(&to) {
                    self.kept.push(message);
                } else {
                    self.give(to, Event::Message(message));
                }
            } else if let Some((_, node)) = wakeup {
                self.give(node, Event::Wakeup);
            }
        }
        self.now = end;
    }

    pub(super) fn ask_as(
        &mut self,
        at: u64,
        id: Option<RequestId>,
        key: &str,
        operation: Operation,
    ) -> Token {
        thread_local!(static NEXT: RefCell<u64> = const { RefCell::new(0) });
        let token = Token(NEXT.with_borrow_mut(|next| {
            *next += 1;
            *next
        }));
        let key = ItemKey { cache: CACHE, key: Bytes::copy_from_slice(key.as_bytes()) };
        let request = Request { id, key, operation, seen: Generation(0) };
        self.give(node(at), Event::Request { token, request });
        token
    }

    pub(super) fn ask(&mut self, at: u64, key: &str, operation: Operation) -> Token {
        self.ask_as(at, None, key, operation)
    }

    pub(super) fn reply(&self, token: Token) -> Option<&Reply> {
        self.replies.get(&token)
    }

    pub(super) fn done(&mut self, at: u64, key: &str, operation: Operation) -> Outcome {
        let token = self.ask(at, key, operation);
        self.run_ms(20);
        match self.reply(token) {
            Some(Reply::Done(outcome)) => outcome.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn get(&mut self, at: u64, key: &str) -> Option<Bytes> {
        match self.done(at, key, GET) {
            Outcome::Hit(item) => Some(item.value),
            Outcome::NotFound => None,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn view(&self, at: u64) -> crate::strong::PartitionView {
        self.nodes[&node(at)].view(PLACE).expect("a partition known there")
    }

    pub(super) fn held(&self, at: u64, key: &str) -> Option<Item> {
        let key = ItemKey { cache: CACHE, key: Bytes::copy_from_slice(key.as_bytes()) };
        self.nodes[&node(at)].held(&key).and_then(|held| held.item)
    }

    pub(super) fn fail_over(&mut self, to: u64, without: &[u64]) {
        let to = self.member(to);
        let remove = without.iter().map(|&number| self.member(number)).collect();
        let version = self.state().version;
        self.commit(Command::ChangePrimary { place: PLACE, version, to, remove });
    }

    pub(super) fn cut(&mut self, apart: &'static [u64]) {
        self.lost =
            Some(Box::new(move |from, to, _| apart.contains(&from.0) != apart.contains(&to.0)));
    }

    pub(super) fn kill(&mut self, number: u64) {
        self.nodes.remove(&node(number));
    }
}

pub(super) const GET: Operation = Operation::Get { touch: None };

pub(super) fn set(value: &str) -> Operation {
    set_for(value, Ttl::Never)
}

pub(super) fn set_for(value: &str, ttl: Ttl) -> Operation {
    store(StoreMode::Set, value, ttl)
}

pub(super) fn store(mode: StoreMode, value: &str, ttl: Ttl) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Operation::Store { mode, value, flags: 0, ttl, compare: None }
}

pub(super) fn increment() -> Operation {
    Operation::Arithmetic {
        direction: Direction::Increment,
        delta: 1,
        compare: None,
        create: Some((Ttl::Never, 1)),
        touch: None,
    }
}

pub(super) fn delete() -> Operation {
    Operation::Delete { compare: None }
}

pub(super) fn is_strong(
    body: &Body,
    wanted: impl Fn(&crate::strong::StrongMessage) -> bool,
) -> bool {
    matches!(body, Body::Strong(_, message) if wanted(message))
}

pub(super) fn is_append(body: &Body) -> bool {
    use crate::strong::StrongMessage::Append;
    is_strong(body, |message| matches!(message, Append { entries, .. } if !entries.is_empty()))
}
