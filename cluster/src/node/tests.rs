//! The rules of strong mode, each as one story, on a network that does what the test says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::*;
use crate::config::Mutant;
use crate::effect::{Direction, Item, StoreMode, Ttl};
use crate::heartbeat::Readiness;
use crate::ids::{CacheId, ClientId, GroupKey, Incarnation};
use crate::store::MapStore;
use crate::strong::PartitionRole;
use crate::topology::{
    Acks, CacheSpec, Eviction, NodeProfile, OnLoss, ReadMode, TopologyCommand as Command,
};

const CLUSTER: ClusterId = ClusterId(7);
const CACHE: CacheId = CacheId(1);
const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 3 };
const PLACE: Place = Place { group: GROUP, partition: PartitionId(0) };
const HOP_US: u64 = 500;

type Filter = Box<dyn Fn(NodeId, NodeId, &Body) -> bool>;

/// Nodes, a table that commits at once, and a network without faults but those asked for.
struct World {
    now: Mono,
    wall_ms: BTreeMap<NodeId, u64>,
    nodes: BTreeMap<NodeId, Node<MapStore>>,
    paused: BTreeSet<NodeId>,
    topology: Topology,
    flying: BTreeMap<(Mono, u64), Message>,
    sent: u64,
    /// Messages that are lost.
    lost: Option<Filter>,
    /// Messages that are kept back until released.
    kept: Vec<Message>,
    keep: Option<Filter>,
    replies: BTreeMap<Token, Reply>,
    reports: Vec<(NodeId, Report)>,
    /// Whether proposals are committed.
    agrees: bool,
    proposed: Vec<Command>,
    lives: u64,
    config: NodeConfig,
}

fn node(number: u64) -> NodeId {
    NodeId(number)
}

fn spec() -> CacheSpec {
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
    }
}

impl World {
    fn new(nodes: u64, spec: CacheSpec) -> Self {
        Self::with(nodes, spec, NodeConfig::default(), 1 << 20)
    }

    fn with(nodes: u64, spec: CacheSpec, config: NodeConfig, bytes: usize) -> Self {
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

    fn start(&mut self, node: NodeId, bytes: usize) {
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
            addresses: BTreeMap::new(),
            weight: 1_000,
            zone: String::new(),
            witness: false,
        };
        let incarnation = me.incarnation;
        self.commit(Command::Join { node, incarnation, replaces, profile });
    }

    fn now(&self, node: NodeId) -> Now {
        Now { mono: self.now, wall_ms: self.wall_ms[&node] + self.now.0 / 1_000_000 }
    }

    fn member(&self, number: u64) -> Member {
        self.topology.member(node(number)).expect("a node of the table")
    }

    fn state(&self) -> &crate::topology::PartitionState {
        self.topology.partition(PLACE).expect("the partition")
    }

    fn commit(&mut self, command: Command) {
        if let Err(refused) = self.topology.apply(&command) {
            panic!("{command:?} was refused: {refused}");
        }
        self.push_table();
    }

    fn push_table(&mut self) {
        let table = Arc::new(self.topology.clone());
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            if !self.paused.contains(&node) {
                self.give(node, Event::Topology(Arc::clone(&table)));
            }
        }
    }

    /// Gives the partition to these nodes, the first as primary, and waits until it serves.
    fn assign(&mut self, members: &[u64]) {
        let members = members.iter().map(|&number| self.member(number)).collect();
        let version = self.state().version;
        self.commit(Command::Assign { place: PLACE, version, members });
        self.run_ms(5);
    }

    fn give(&mut self, node: NodeId, event: Event) {
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

    fn propose(&mut self, command: Command) {
        self.proposed.push(command.clone());
        if self.agrees && self.topology.apply(&command).is_ok() {
            self.push_table();
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
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
    fn release(&mut self) {
        self.keep = None;
        for message in std::mem::take(&mut self.kept) {
            self.sent += 1;
            self.flying.insert((self.now, self.sent), message);
        }
    }

    fn run_ms(&mut self, ms: u64) {
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

    fn ask_as(&mut self, at: u64, id: Option<RequestId>, key: &str, operation: Operation) -> Token {
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

    fn ask(&mut self, at: u64, key: &str, operation: Operation) -> Token {
        self.ask_as(at, None, key, operation)
    }

    fn reply(&self, token: Token) -> Option<&Reply> {
        self.replies.get(&token)
    }

    fn done(&mut self, at: u64, key: &str, operation: Operation) -> Outcome {
        let token = self.ask(at, key, operation);
        self.run_ms(20);
        match self.reply(token) {
            Some(Reply::Done(outcome)) => outcome.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn get(&mut self, at: u64, key: &str) -> Option<Bytes> {
        match self.done(at, key, GET) {
            Outcome::Hit(item) => Some(item.value),
            Outcome::NotFound => None,
            other => panic!("{other:?}"),
        }
    }

    fn view(&self, at: u64) -> crate::strong::PartitionView {
        self.nodes[&node(at)].view(PLACE).expect("a partition known there")
    }

    fn held(&self, at: u64, key: &str) -> Option<Item> {
        let key = ItemKey { cache: CACHE, key: Bytes::copy_from_slice(key.as_bytes()) };
        self.nodes[&node(at)].held(&key).and_then(|held| held.item)
    }

    fn fail_over(&mut self, to: u64, without: &[u64]) {
        let to = self.member(to);
        let remove = without.iter().map(|&number| self.member(number)).collect();
        let version = self.state().version;
        self.commit(Command::ChangePrimary { place: PLACE, version, to, remove });
    }

    fn cut(&mut self, apart: &'static [u64]) {
        self.lost =
            Some(Box::new(move |from, to, _| apart.contains(&from.0) != apart.contains(&to.0)));
    }

    fn kill(&mut self, number: u64) {
        self.nodes.remove(&node(number));
    }
}

const GET: Operation = Operation::Get { touch: None };

fn set(value: &str) -> Operation {
    set_for(value, Ttl::Never)
}

fn set_for(value: &str, ttl: Ttl) -> Operation {
    store(StoreMode::Set, value, ttl)
}

fn store(mode: StoreMode, value: &str, ttl: Ttl) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Operation::Store { mode, value, flags: 0, ttl, compare: None }
}

fn increment() -> Operation {
    Operation::Arithmetic {
        direction: Direction::Increment,
        delta: 1,
        compare: None,
        create: Some((Ttl::Never, 1)),
        touch: None,
    }
}

fn delete() -> Operation {
    Operation::Delete { compare: None }
}

fn is_strong(body: &Body, wanted: impl Fn(&crate::strong::StrongMessage) -> bool) -> bool {
    matches!(body, Body::Strong(_, message) if wanted(message))
}

fn is_append(body: &Body) -> bool {
    use crate::strong::StrongMessage::Append;
    is_strong(body, |message| matches!(message, Append { entries, .. } if !entries.is_empty()))
}

#[test]
fn an_acknowledged_write_is_in_every_memory_that_counts() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    assert!(matches!(world.done(1, "k", set("v")), Outcome::Stored(_)));
    for at in 1..=3 {
        assert_eq!(world.held(at, "k").map(|item| item.value), Some("v".into()), "node {at}");
    }
    assert_eq!(world.get(1, "k"), Some("v".into()));
}

#[test]
fn a_request_at_any_node_reaches_the_primary() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    assert!(matches!(world.done(3, "k", set("v")), Outcome::Stored(_)));
    assert_eq!(world.get(2, "k"), Some("v".into()));
}

#[test]
fn a_write_is_invisible_until_every_copy_that_counts_confirmed_it() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let write = world.ask(1, "k", set("new"));
    world.run_ms(20);
    assert_eq!(world.reply(write), None);
    assert_eq!(world.get(1, "k"), Some("old".into()));
    world.release();
    world.run_ms(20);
    assert!(matches!(world.reply(write), Some(Reply::Done(Outcome::Stored(_)))));
    assert_eq!(world.get(1, "k"), Some("new".into()));
}

#[test]
fn a_silent_copy_is_waited_for_until_its_removal_is_committed() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.agrees = false;
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(1_500);
    assert_eq!(world.reply(write), None, "acknowledged with one copy missing");
    let asked = world.proposed.iter().any(|command| matches!(command, Command::Shrink { .. }));
    assert!(asked, "nobody asked for the removal");
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    world.run_ms(5);
    assert!(matches!(world.reply(write), Some(Reply::Done(Outcome::Stored(_)))));
}

#[test]
fn a_write_that_is_not_confirmed_in_time_is_indeterminate() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.agrees = false;
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    let read = world.ask(1, "k", GET);
    world.run_ms(2_100);
    assert_eq!(world.reply(write), Some(&Reply::Indeterminate));
    assert_eq!(world.reply(read), Some(&Reply::NotApplied(Refusal::TimedOut)));
}

#[test]
fn with_too_few_copies_in_sync_a_write_is_refused_before_it_takes_a_place() {
    let mut world = World::new(2, CacheSpec { min_in_sync: 2, ..spec() });
    world.assign(&[1]);
    let before = world.view(1).last;
    let write = world.ask(1, "k", set("v"));
    world.run_ms(5);
    let refused = Reply::NotApplied(Refusal::TooFewInSync { have: 1, need: 2 });
    assert_eq!(world.reply(write), Some(&refused));
    assert_eq!(world.view(1).last, before);
}

#[test]
fn a_write_that_lost_a_copy_on_its_way_is_not_acknowledged_as_safe() {
    let mut world = World::new(2, CacheSpec { min_in_sync: 2, ..spec() });
    world.assign(&[1, 2]);
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(1_500);
    assert_eq!(world.state().in_sync, [world.member(1)]);
    assert_eq!(world.reply(write), Some(&Reply::Indeterminate));
}

#[test]
fn a_deposed_primary_answers_no_reads() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    // The old primary hears neither from the others nor of the new table.
    world.paused.insert(node(1));
    world.fail_over(2, &[1]);
    world.run_ms(10);
    world.done(2, "k", set("new"));
    world.paused.remove(&node(1));
    world.cut(&[1]);
    let read = world.ask(1, "k", GET);
    world.run_ms(1_000);
    assert_eq!(world.reply(read), None);
    world.lost = None;
    world.run_ms(1_500);
    assert!(
        !matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(item))) if item.value == "old")
    );
}

#[test]
fn a_new_primary_serves_what_was_acknowledged_and_what_any_copy_holds() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.done(1, "a", set("1"));
    // The next write reaches one copy only.
    world.keep = Some(Box::new(|_, to, body| to == node(2) && is_append(body)));
    let write = world.ask(1, "b", set("2"));
    world.run_ms(2);
    world.kept.clear();
    world.keep = None;
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.reply(write), None);
    assert_eq!(world.get(2, "a"), Some("1".into()));
    assert_eq!(world.get(2, "b"), Some("2".into()));
    assert!(world.reports.contains(&(node(2), Report::Serving { place: PLACE, term: Term(2) })));
}

#[test]
fn copies_refuse_a_lower_term() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.keep = Some(Box::new(|from, _, body| from == node(1) && is_append(body)));
    let write = world.ask(1, "k", set("late"));
    world.run_ms(2);
    world.paused.insert(node(1));
    world.keep = None;
    world.fail_over(2, &[]);
    let (member, version) = (world.member(1), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    world.run_ms(20);
    world.done(2, "k", set("new"));
    world.paused.clear();
    world.release();
    world.run_ms(2_500);
    assert_eq!(world.get(2, "k"), Some("new".into()));
    assert_eq!(world.get(3, "k"), Some("new".into()));
    assert!(!matches!(world.reply(write), Some(Reply::Done(_))));
}

#[test]
fn a_planned_move_acknowledges_what_was_on_its_way_and_refuses_nothing() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let writes: Vec<Token> =
        (0..20).map(|number| world.ask(1, &format!("k{number}"), set("v"))).collect();
    world.fail_over(2, &[]);
    let later: Vec<Token> =
        (0..20).map(|number| world.ask(2, &format!("l{number}"), set("v"))).collect();
    world.run_ms(50);
    for token in writes.into_iter().chain(later) {
        assert!(matches!(world.reply(token), Some(Reply::Done(_))), "{:?}", world.reply(token));
    }
}

#[test]
fn a_learner_is_filled_promoted_and_then_counted() {
    let mut world = World::new(3, spec());
    world.assign(&[1]);
    for number in 0..2_000 {
        world.ask(1, &format!("key{number}"), set(&format!("value{number}")));
    }
    world.run_ms(5);
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(500);
    assert_eq!(world.state().in_sync, [world.member(1), world.member(2)]);
    assert_eq!(world.view(2).role, PartitionRole::Backup);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert_eq!(copies[0].len(), 2_000);
    assert_eq!(copies[0], copies[1]);
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "key1999"), Some("value1999".into()));
}

#[test]
fn a_learner_counts_from_the_moment_its_promotion_is_proposed() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.agrees = false;
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(200);
    let promoted = |command: &Command| matches!(command, Command::Promote { .. });
    let promote = world.proposed.iter().find(|command| promoted(command)).cloned();
    let promote = promote.expect("the promotion is proposed");
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(100);
    assert_eq!(world.reply(write), None, "the promotion may be committed at any time");
    // It is, and the old primary dies before it hears of it.
    world.kill(1);
    world.lost = None;
    world.commit(promote);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "k"), None);
}

#[test]
fn a_snapshot_chunk_does_not_undo_what_came_since() {
    for (mutant, undone) in [
        (None, [false, false]),
        (Some(Mutant::ChunkOverwrites), [true, false]),
        (Some(Mutant::TombstoneEarly), [false, true]),
    ] {
        let config = NodeConfig { mutant, ..NodeConfig::default() };
        let mut world = World::with(2, spec(), config, 1 << 20);
        world.assign(&[1]);
        world.done(1, "changed", set("old"));
        world.done(1, "deleted", set("old"));
        world.keep = Some(Box::new(|_, _, body| {
            use crate::strong::StrongMessage::Chunk;
            is_strong(body, |message| matches!(message, Chunk { .. }))
        }));
        let (member, version) = (world.member(2), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
        world.run_ms(20);
        world.done(1, "changed", set("new"));
        world.done(1, "deleted", delete());
        world.run_ms(20);
        world.release();
        world.run_ms(100);
        let found = [
            world.held(2, "changed").is_none_or(|item| item.value != "new"),
            world.held(2, "deleted").is_some(),
        ];
        assert_eq!(found, undone, "{mutant:?}");
    }
}

#[test]
fn a_retry_finds_its_answer_before_and_after_a_failover_and_through_a_snapshot() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    let id = Some(RequestId { client: ClientId(9), counter: 1 });
    let first = world.ask_as(1, id, "n", increment());
    let twin = world.ask_as(1, id, "n", increment());
    world.run_ms(5);
    assert!(matches!(world.reply(first), Some(Reply::Done(Outcome::Number(1, _)))));
    assert_eq!(world.reply(first), world.reply(twin));
    let (member, version) = (world.member(3), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(200);
    world.kill(1);
    world.fail_over(3, &[1, 2]);
    world.run_ms(20);
    let retry = world.ask_as(3, id, "n", increment());
    world.run_ms(5);
    assert_eq!(world.reply(first), world.reply(retry));
    assert_eq!(world.get(3, "n"), Some("1".into()));
}

#[test]
fn an_operation_whose_condition_failed_is_not_carried_out_by_a_late_twin() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    let id = Some(RequestId { client: ClientId(9), counter: 1 });
    let add = store(StoreMode::Add, "w", Ttl::Never);
    let first = world.ask_as(1, id, "k", add.clone());
    world.run_ms(5);
    assert_eq!(world.reply(first), Some(&Reply::Done(Outcome::NotStored)));
    world.done(1, "k", delete());
    let twin = world.ask_as(1, id, "k", add);
    world.run_ms(5);
    assert_eq!(world.reply(twin), Some(&Reply::Done(Outcome::NotStored)));
    assert_eq!(world.get(1, "k"), None);
}

#[test]
fn what_was_seen_ended_stays_ended_on_a_copy_whose_clock_is_behind() {
    for mutant in [None, Some(Mutant::ClockNotMerged)] {
        let config = NodeConfig { mutant, ..NodeConfig::default() };
        let mut world = World::with(2, spec(), config, 1 << 20);
        world.wall_ms.insert(node(1), 1_000_000 + 60_000);
        world.assign(&[1, 2]);
        world.done(1, "k", set_for("v", Ttl::After(500)));
        world.run_ms(600);
        assert_eq!(world.get(1, "k"), None);
        world.kill(1);
        world.fail_over(2, &[1]);
        world.run_ms(20);
        let back = world.get(2, "k").is_some();
        assert_eq!(back, mutant.is_some(), "{mutant:?}");
    }
}

#[test]
fn the_loss_of_every_copy_is_told_once_apart_from_a_miss() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.start(node(1), 1 << 20);
    assert_eq!(world.state().generation, Generation(1));
    assert_eq!(world.state().primary, None);
    world.assign(&[1]);
    let token = Token(u64::MAX);
    let key = ItemKey { cache: CACHE, key: "k".into() };
    let asked = |seen| Request { id: None, key: key.clone(), operation: GET, seen };
    world.give(node(1), Event::Request { token, request: asked(Generation(0)) });
    world.run_ms(5);
    let lost = Reply::Done(Outcome::Lost(Generation(1)));
    assert_eq!(world.replies.remove(&token), Some(lost));
    world.give(node(1), Event::Request { token, request: asked(Generation(1)) });
    world.run_ms(5);
    assert_eq!(world.replies.remove(&token), Some(Reply::Done(Outcome::NotFound)));
}

#[test]
fn a_cache_that_blocks_on_loss_refuses_until_it_is_acknowledged() {
    let mut world = World::new(1, CacheSpec { on_loss: OnLoss::Block, ..spec() });
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.start(node(1), 1 << 20);
    world.assign(&[1]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(5);
    assert_eq!(world.reply(write), Some(&Reply::NotApplied(Refusal::Blocked(Generation(1)))));
    world.commit(Command::AcknowledgeLoss { group: GROUP, partition: None });
    assert!(matches!(world.done(1, "k", set("v")), Outcome::Stored(_)));
}

#[test]
fn versions_rise_over_failovers_and_losses() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let mut versions = Vec::new();
    let mut write = |world: &mut World, at: u64| {
        let Outcome::Stored(version) = world.done(at, "k", set("v")) else { panic!("not stored") };
        versions.push(version);
    };
    write(&mut world, 1);
    write(&mut world, 1);
    world.fail_over(2, &[]);
    world.run_ms(20);
    write(&mut world, 2);
    let (member, version) = (world.member(1), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    write(&mut world, 2);
    world.start(node(2), 1 << 20);
    world.assign(&[2]);
    write(&mut world, 2);
    assert!(versions.is_sorted_by(|one, other| one < other), "{versions:?}");
}

#[test]
fn under_a_lease_the_primary_answers_alone_and_nobody_else_serves_until_it_ends() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Lease, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    assert_eq!(world.get(1, "k"), Some("old".into()));
    let read = world.ask(1, "k", GET);
    assert!(
        matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))),
        "not answered at once"
    );
    // Cut off, the old primary goes on answering under its lease, which the new one waits for.
    world.paused.insert(node(1));
    world.fail_over(2, &[1]);
    world.paused.remove(&node(1));
    world.cut(&[1]);
    let asked_at = world.now;
    let write = world.ask(2, "k", set("new"));
    while world.reply(write).is_none() {
        let read = world.ask(1, "k", GET);
        let stale = matches!(world.reply(read), Some(Reply::Done(_)));
        assert!(!stale || world.view(2).term == Term(2) && !world.view(2).serving);
        world.run_ms(10);
        assert!(world.now.since_ms(asked_at) < 2_000, "never served");
    }
    assert!(world.now.since_ms(asked_at) > 400, "did not wait for the lease");
    let read = world.ask(1, "k", GET);
    assert!(!matches!(world.reply(read), Some(Reply::Done(_))), "answered after the lease");
}

#[test]
fn any_copy_answers_where_the_cache_allows_it() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Any, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.run_ms(50);
    let read = world.ask(2, "k", GET);
    assert!(matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))));
}

#[test]
fn a_cache_that_evicts_tells_its_copies_and_never_shows_an_older_value() {
    let spec = CacheSpec { eviction: Eviction::Evict, ..spec() };
    let mut world = World::with(2, spec, NodeConfig::default(), 20_000);
    world.assign(&[1, 2]);
    for number in 0..400 {
        world.ask(1, &format!("key{number}"), set(&format!("{number:0>50}")));
        world.run_ms(1);
    }
    world.run_ms(50);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert!(copies[0].len() < 400, "nothing was evicted");
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn a_full_copy_of_a_cache_that_keeps_refuses_the_write_and_drops_nothing() {
    let config = NodeConfig::default();
    let reserve = config.strong.room_reserve_bytes;
    let mut world = World::with(2, spec(), config, reserve + 10_000);
    world.assign(&[1, 2]);
    let (mut stored, mut refused) = (Vec::new(), 0);
    for number in 0..200 {
        let key = format!("key{number}");
        let token = world.ask(1, &key, set(&format!("{number:0>100}")));
        world.run_ms(5);
        match world.reply(token) {
            Some(Reply::Done(Outcome::Stored(_))) => stored.push(key),
            Some(Reply::NotApplied(Refusal::OutOfMemory)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0 && stored.len() > 10, "{} stored, {refused} refused", stored.len());
    for key in &stored {
        assert!(world.held(1, key).is_some() && world.held(2, key).is_some(), "{key}");
    }
    // A delete makes room again.
    for key in stored.iter().take(20) {
        world.done(1, key, delete());
    }
    world.run_ms(100);
    assert!(matches!(world.done(1, "again", set("v")), Outcome::Stored(_)));
}

#[test]
fn a_delete_of_what_was_evicted_here_reaches_the_copy_that_still_holds_it() {
    let spec = CacheSpec { eviction: Eviction::Evict, ..spec() };
    let mut world = World::new(2, spec);
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.run_ms(50);
    let key = ItemKey { cache: CACHE, key: "k".into() };
    let effect =
        crate::effect::Effect { key, change: crate::effect::Change::Remove(Version(u64::MAX)) };
    // As if the store had evicted it, and the note to the copy had been lost.
    world.nodes.get_mut(&node(1)).expect("alive").base.store.apply(PLACE, &effect, true, 0);
    assert_eq!(world.done(1, "k", delete()), Outcome::NotFound);
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "k"), None);
}

#[test]
fn messages_of_another_cluster_or_another_life_are_dropped() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let (from, to) = (world.member(1), world.member(2));
    let seal = crate::strong::StrongMessage::Seal { term: Term(99) };
    let sound = Message {
        cluster: CLUSTER,
        from,
        to,
        clock_ms: u64::MAX / 2,
        bodies: vec![Body::Strong(PLACE, seal)],
    };
    let other_life = |member: Member| Member { incarnation: Incarnation(1), ..member };
    for bad in [
        Message { cluster: ClusterId(8), ..sound.clone() },
        Message { from: other_life(from), ..sound.clone() },
        Message { to: other_life(to), ..sound.clone() },
    ] {
        world.give(node(2), Event::Message(bad));
        assert_eq!(world.view(2).term, Term(1));
    }
    world.give(node(2), Event::Message(sound));
    assert_eq!(world.view(2).term, Term(99));
}

#[test]
fn a_learner_that_was_removed_and_added_again_is_filled_again() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.agrees = false;
    let add = |world: &mut World| {
        let (member, version) = (world.member(2), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
    };
    add(&mut world);
    world.run_ms(100);
    // The primary sees both changes at once, the learner only the first for now.
    world.paused.insert(node(1));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::RemoveLearner { place: PLACE, version, member });
    assert_eq!(world.held(2, "k"), None);
    add(&mut world);
    world.paused.clear();
    world.agrees = true;
    world.push_table();
    let kept = std::mem::take(&mut world.kept);
    for message in kept {
        world.give(message.to.node, Event::Message(message));
    }
    world.run_ms(1_000);
    assert_eq!(world.state().in_sync.len(), 2);
    assert!(world.held(2, "k").is_some());
}

#[test]
fn the_same_events_give_the_same_actions() {
    let run = || {
        let mut world = World::new(3, spec());
        world.assign(&[1, 2]);
        let (member, version) = (world.member(3), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
        for number in 0..50 {
            world.ask(1, &format!("k{}", number % 7), increment());
            world.run_ms(1);
        }
        world.fail_over(2, &[1]);
        world.run_ms(300);
        (world.sent, world.reports, world.topology)
    };
    assert_eq!(run(), run());
}

#[test]
fn what_ended_is_dropped_on_every_copy_without_further_writes() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(100)));
    world.done(1, "stays", set("v"));
    world.run_ms(3_000);
    for at in [1, 2] {
        assert_eq!(world.nodes[&node(at)].copy_of(PLACE).len(), 1, "node {at}");
    }
}

#[test]
fn an_item_that_is_prolonged_in_time_is_not_dropped_by_a_copy_whose_clock_is_ahead() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(5_000)));
    world.wall_ms.insert(node(2), 2_000_000);
    world.agrees = false;
    world.keep = Some(Box::new(|from, _, _| from == node(2)));
    world.run_ms(40);
    let touch = world.ask(1, "k", Operation::Touch { ttl: Ttl::Never });
    world.run_ms(1_900);
    world.release();
    world.run_ms(1_500);
    assert!(matches!(world.reply(touch), Some(Reply::Done(Outcome::Touched(_)))));
    assert_eq!(world.held(2, "k").map(|item| item.deadline_ms), Some(None));
}

#[test]
fn a_dropped_cache_leaves_no_items_behind() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.commit(Command::DropCache { name: "default".into() });
    world.run_ms(50);
    for at in [1, 2] {
        assert_eq!(world.nodes[&node(at)].copy_of(PLACE).len(), 0, "node {at}");
    }
    let write = world.ask(1, "k", set("v"));
    assert_eq!(world.reply(write), Some(&Reply::NotApplied(Refusal::NoSuchCache)));
}

#[test]
fn an_item_that_is_being_prolonged_is_not_seen_to_end_and_come_back() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(300)));
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let touch = world.ask(1, "k", Operation::Touch { ttl: Ttl::After(5_000) });
    world.run_ms(400);
    let read = world.ask(1, "k", GET);
    world.run_ms(50);
    assert_eq!(world.reply(read), None);
    world.release();
    world.run_ms(50);
    assert!(matches!(world.reply(touch), Some(Reply::Done(Outcome::Touched(_)))));
    assert!(matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))));
}

#[test]
fn a_copy_that_was_removed_and_comes_back_is_filled_and_promoted() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    // The primary hears of both changes at once.
    world.paused.insert(node(1));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    let version = world.state().version;
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.paused.clear();
    world.push_table();
    world.run_ms(500);
    assert_eq!(world.state().in_sync.len(), 2);
    assert!(world.held(2, "k").is_some());
}

#[test]
fn a_confirmation_given_before_a_copy_was_emptied_does_not_count_for_what_it_holds_now() {
    use crate::strong::StrongMessage::Ack;
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.agrees = false;
    // Node 3 is slow, so that nothing is confirmed; what node 2 confirms is late.
    world.keep = Some(Box::new(|from, to, body| {
        let late = from == node(2) && is_strong(body, |message| matches!(message, Ack { .. }));
        late || (to == node(3) && is_append(body))
    }));
    world.ask(1, "k", set("v"));
    world.run_ms(3);
    let late: Vec<Message> = std::mem::take(&mut world.kept)
        .into_iter()
        .filter(|message| message.from.node == node(2))
        .collect();
    assert_eq!(late.len(), 1);
    world.keep = Some(Box::new(|_, to, body| to == node(3) && is_append(body)));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    let version = world.state().version;
    // Entries of the live stream to node 2 are lost after it was emptied.
    world.lost = Some(Box::new(|_, to, body| to == node(2) && is_append(body)));
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(20);
    for message in late {
        world.give(node(1), Event::Message(message));
    }
    world.run_ms(20);
    assert!(world.held(2, "k").is_none());
    world.lost = None;
    world.run_ms(200);
    assert!(world.held(2, "k").is_some(), "taken for sent");
}

#[test]
fn a_learner_that_lags_too_far_behind_is_filled_anew() {
    let mut config = NodeConfig::default();
    config.strong.retain_bytes_max = 10_000;
    config.strong.pending_bytes_max = 10_000;
    let mut world = World::with(2, spec(), config, 1 << 20);
    world.assign(&[1]);
    world.lost = Some(Box::new(|_, to, body| {
        use crate::strong::StrongMessage::Chunk;
        let chunk = is_strong(body, |message| matches!(message, Chunk { .. }));
        to == node(2) && (chunk || is_append(body))
    }));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    for number in 0..300 {
        world.done(1, &format!("k{number}"), set(&format!("{number:0>100}")));
    }
    world.lost = None;
    world.run_ms(500);
    assert_eq!(world.state().in_sync.len(), 2);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert_eq!(copies[0].len(), 300);
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn transfers_keep_to_the_bandwidth_and_do_not_hold_up_writes() {
    let mut config = NodeConfig::default();
    config.strong.transfer_bytes_per_s = 200_000;
    let mut world = World::with(2, spec(), config, 4 << 20);
    world.assign(&[1]);
    for number in 0..1_000 {
        world.done(1, &format!("k{number}"), set(&format!("{number:0>1000}")));
    }
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    let begun = world.now;
    while world.state().in_sync.len() < 2 {
        let write = world.ask(1, "live", increment());
        world.run_ms(5);
        assert!(world.reply(write).is_some(), "held up");
        assert!(world.now.since_ms(begun) < 20_000, "never promoted");
    }
    let bytes = 1_000 * (1_000 + 3 + crate::store::ITEM_OVERHEAD_BYTES as u64);
    let least_ms = (bytes - 200_000) * 1_000 / 200_000;
    let took_ms = world.now.since_ms(begun);
    assert!(took_ms >= least_ms && took_ms < least_ms * 3 / 2, "{took_ms} ms, {least_ms} expected");
}
