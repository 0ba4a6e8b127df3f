//! A few nodes with eventual partitions on a network that loses, repeats, delays and cuts. Everything
//! follows from the seed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kiln_cluster::context::Asker;
use kiln_cluster::effect::{Direction, Item, ItemKey, Operation, StoreMode, Ttl};
use kiln_cluster::eventual::{Eventual, EventualConfig, EventualMessage, Known, Out, Turn};
use kiln_cluster::ids::{
    CacheId, ClientId, ClusterId, Epoch, Generation, GroupKey, Incarnation, Member, Mode, NodeId,
    PartitionId, Place, RequestId, Term, Token, Version,
};
use kiln_cluster::node::{Reply, Request};
use kiln_cluster::store::{MapStore, Store};
use kiln_cluster::time::{Mono, Now};
use kiln_cluster::topology::{
    Acks, CacheSpec, Eviction, NodeInfo, NodeState, OnLoss, PartitionState, ReadMode, Topology,
    TopologyCommand,
};

#[cfg(feature = "mutants")]
use kiln_cluster::config::Mutant;

/// A cache in which nothing disappears by itself.
pub const KEEP: CacheId = CacheId(1);
/// One that evicts.
pub const EVICT: CacheId = CacheId(2);

/// Random numbers of the test; SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, range: u64) -> u64 {
        self.next() % range
    }

    pub fn one_in(&mut self, range: u64) -> bool {
        self.below(range) == 0
    }
}

pub struct Machine {
    pub member: Member,
    pub eventual: Eventual,
    pub store: MapStore,
    pub topology: Topology,
    /// What its wall clock shows too much, in milliseconds.
    pub clock_ahead_ms: i64,
}

/// How the network and the nodes behave.
#[derive(Clone)]
pub struct Setting {
    pub nodes: usize,
    pub partitions: u32,
    pub config: EventualConfig,
    pub store_bytes: usize,
    /// One message in so many is lost; 0 for none.
    pub loss: u64,
    pub delay_max_ms: u64,
    pub acks: Acks,
    pub read: ReadMode,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            nodes: 3,
            partitions: 2,
            config: EventualConfig::default(),
            store_bytes: 1 << 20,
            loss: 0,
            delay_max_ms: 2,
            acks: Acks::One,
            read: ReadMode::Any,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// What a write left: a value and its end, or nothing.
pub type Left = Option<(Bytes, Option<u64>)>;

struct Flight {
    from: usize,
    to: usize,
    place: Place,
    message: EventualMessage,
}

pub struct World {
    pub setting: Setting,
    pub random: Random,
    pub machines: Vec<Machine>,
    /// The table of the controller; machines know it when it is pushed to them.
    pub topology: Topology,
    pub mono: Mono,
    pub cuts: BTreeSet<(usize, usize)>,
    pub replies: BTreeMap<Token, Reply>,
    pub messages: u64,
    flights: BTreeMap<(Mono, u64), Flight>,
    sent: u64,
    tokens: u64,
    /// Every write that some owner took: its version, and what it left.
    pub history: BTreeMap<ItemKey, BTreeMap<Version, BTreeSet<Left>>>,
    /// Changes with everything that happens.
    pub trace: u64,
}

/// The wall clock at the start.
const START_MS: u64 = 1_000_000;

pub fn group() -> GroupKey {
    GroupKey { mode: Mode::Eventual, copies: 3 }
}

pub fn key(cache: CacheId, name: &str) -> ItemKey {
    ItemKey { cache, key: Bytes::copy_from_slice(name.as_bytes()) }
}

pub fn set(value: &str, ttl: Ttl) -> Operation {
    Operation::Store {
        mode: StoreMode::Set,
        value: Bytes::copy_from_slice(value.as_bytes()),
        flags: 0,
        ttl,
        compare: None,
    }
}

pub fn append(value: &str) -> Operation {
    Operation::Store {
        mode: StoreMode::Append,
        value: Bytes::copy_from_slice(value.as_bytes()),
        flags: 0,
        ttl: Ttl::Never,
        compare: None,
    }
}

pub fn increment() -> Operation {
    Operation::Arithmetic {
        direction: Direction::Increment,
        delta: 1,
        compare: None,
        create: Some((Ttl::Never, 1)),
        touch: None,
    }
}

pub const GET: Operation = Operation::Get { touch: None };
pub const DELETE: Operation = Operation::Delete { compare: None };

impl World {
    /// All nodes are owners of all partitions.
    pub fn new(seed: u64, setting: Setting) -> Self {
        let mut topology = Topology::new(ClusterId(1), setting.partitions);
        let members: Vec<Member> = (0..setting.nodes)
            .map(|node| Member { node: NodeId(node as u64), incarnation: Incarnation(100) })
            .collect();
        for member in &members {
            topology.nodes.insert(member.node, info(member.incarnation));
        }
        for (name, id, eviction) in
            [("keep", KEEP, Eviction::Refuse), ("evict", EVICT, Eviction::Evict)]
        {
            let spec = spec(id, eviction, &setting);
            let create = TopologyCommand::CreateCache { name: name.into(), spec };
            topology.apply(&create).expect("made");
            assert!(topology.cache(id).is_some_and(|cache| cache.eviction == eviction));
        }
        let state = PartitionState {
            term: Term(1),
            version: 1,
            primary: members.first().copied(),
            in_sync: members.clone(),
            ..PartitionState::default()
        };
        topology.groups.insert(group(), vec![state; setting.partitions as usize]);
        let mut world = Self {
            random: Random(seed),
            machines: members
                .into_iter()
                .map(|member| machine(member, &setting, &topology))
                .collect(),
            topology,
            mono: Mono(1),
            cuts: BTreeSet::new(),
            replies: BTreeMap::new(),
            messages: 0,
            flights: BTreeMap::new(),
            sent: 0,
            tokens: 0,
            history: BTreeMap::new(),
            trace: seed,
            setting,
        };
        world.push_topology();
        world
    }

    // ---- time ------------------------------------------------------------------------------

    pub fn now(&self, node: usize) -> Now {
        let wall_ms = START_MS + self.mono.0 / 1_000_000;
        Now {
            mono: self.mono,
            wall_ms: wall_ms.saturating_add_signed(self.machines[node].clock_ahead_ms),
        }
    }

    /// Lets everything happen that happens within so many milliseconds.
    pub fn run(&mut self, ms: u64) {
        let end = self.mono.after_ms(ms);
        loop {
            let flight = self.flights.first_key_value().map(|((at, _), _)| *at);
            let wakeup = (0..self.machines.len())
                .filter_map(|node| Some((self.machines[node].eventual.next_wakeup()?, node)))
                .min();
            let next = flight.into_iter().chain(wakeup.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.mono = self.mono.max(next);
            if flight == Some(next) {
                let (_, flight) = self.flights.pop_first().expect("seen above");
                if !self.cuts.contains(&(flight.from, flight.to)) {
                    let from = self.machines[flight.from].member;
                    self.turn(flight.to, |eventual, turn| {
                        eventual.on_message(turn, from, flight.place, flight.message);
                    });
                }
            } else if let Some((_, node)) = wakeup {
                self.turn(node, Eventual::on_wakeup);
            }
        }
        self.mono = end;
    }

    fn turn(&mut self, node: usize, act: impl FnOnce(&mut Eventual, &mut Turn<'_>)) {
        let now = self.now(node);
        let mut out = Vec::new();
        let machine = &mut self.machines[node];
        let mut turn = Turn {
            now,
            me: machine.member,
            store: &mut machine.store,
            topology: &machine.topology,
            travelled_ms: 0,
            #[cfg(feature = "mutants")]
            mutant: self.setting.mutant,
            out: &mut out,
        };
        act(&mut machine.eventual, &mut turn);
        let mut evicted = Vec::new();
        loop {
            turn.store.evicted(64, &mut evicted);
            if evicted.is_empty() {
                break;
            }
            for (place, key, version) in evicted.drain(..) {
                machine.eventual.on_evicted(&mut turn, place, &key, version);
            }
        }
        for out in out {
            self.carry_out(node, out);
        }
    }

    fn carry_out(&mut self, node: usize, out: Out) {
        match out {
            Out::Send { to, place, message } => {
                // What is sent is what arrives: the wire format is part of the test.
                let bytes = rmp_serde::to_vec_named(&message).expect("written");
                self.trace = (self.trace.rotate_left(5) ^ bytes.len() as u64 ^ self.mono.0)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                self.messages += 1;
                let Some(to) = self.machines.iter().position(|machine| machine.member == to) else {
                    return;
                };
                let lost = self.setting.loss > 0 && self.random.one_in(self.setting.loss);
                let copies = if lost { 0 } else { 1 + u64::from(self.random.one_in(20)) };
                for _ in 0..copies {
                    let message = rmp_serde::from_slice(&bytes).expect("read");
                    let delay_us = 100 + self.random.below(self.setting.delay_max_ms * 1_000);
                    self.sent += 1;
                    let at = self.mono.after_us(delay_us);
                    self.flights.insert((at, self.sent), Flight { from: node, to, place, message });
                }
            }
            Out::Reply { asker: Asker::Local(token), reply } => {
                assert!(self.replies.insert(token, reply).is_none(), "{token} is answered twice");
            }
            Out::Reply { asker, .. } => panic!("nobody asked as {asker:?}"),
            Out::Propose(TopologyCommand::Promote { place, version, term, member }) => {
                self.promote(place, version, term, member);
            }
            Out::Propose(other) => panic!("not for a copy to propose: {other:?}"),
            Out::Report(_) => {}
        }
    }

    // ---- requests --------------------------------------------------------------------------

    /// Asks a node; the answer comes in `replies`, perhaps later.
    pub fn ask(
        &mut self,
        node: usize,
        id: Option<u64>,
        key: &ItemKey,
        operation: Operation,
    ) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let place = self.place(key);
        let id = id.map(|counter| RequestId { client: ClientId(7), counter });
        let request = Request { id, key: key.clone(), operation, seen: Generation(0) };
        let before = self.held(node, key);
        self.turn(node, |eventual, turn| {
            if eventual.serves(place) {
                eventual.on_request(turn, Asker::Local(token), place, &request);
            } else {
                eventual.stand_in(turn, Asker::Local(token), place, &request);
            }
        });
        let after = self.held(node, key);
        if let Some(after) = after.filter(|after| before.as_ref() != Some(after)) {
            self.record(node, key, &after);
        }
        token
    }

    /// Asks and expects the answer at once.
    pub fn answer(&mut self, node: usize, key: &ItemKey, operation: Operation) -> Reply {
        let token = self.ask(node, None, key, operation);
        self.replies[&token].clone()
    }

    fn record(&mut self, node: usize, key: &ItemKey, known: &Known) {
        let item = self.item(node, key).filter(|_| known.live);
        let left = item.map(|item| (item.value, item.deadline_ms));
        let writes = self.history.entry(key.clone()).or_default();
        writes.entry(known.version).or_default().insert(left);
    }

    // ---- who holds what --------------------------------------------------------------------

    pub fn place(&self, key: &ItemKey) -> Place {
        Place { group: group(), partition: self.topology.partition_of(&key.key) }
    }

    pub fn places(&self) -> Vec<Place> {
        let place = |partition| Place { group: group(), partition: PartitionId(partition) };
        (0..self.setting.partitions).map(place).collect()
    }

    /// Tells every node the table.
    pub fn push_topology(&mut self) {
        for node in 0..self.machines.len() {
            self.push_topology_to(node);
        }
    }

    pub fn push_topology_to(&mut self, node: usize) {
        self.machines[node].topology = self.topology.clone();
        self.turn(node, Eventual::on_topology);
    }

    /// Changes all partitions in the controller's table.
    pub fn change(&mut self, mut change: impl FnMut(&mut PartitionState)) {
        self.topology.epoch = Epoch(self.topology.epoch.0 + 1);
        for state in self.topology.groups.get_mut(&group()).into_iter().flatten() {
            state.version += 1;
            change(state);
        }
    }

    fn promote(&mut self, place: Place, version: u64, term: Term, member: Member) {
        let states = self.topology.groups.get_mut(&place.group).expect("made at the start");
        let state = &mut states[place.partition.0 as usize];
        if state.version != version || state.term != term || !state.learners.contains(&member) {
            return;
        }
        state.version += 1;
        state.learners.retain(|learner| *learner != member);
        state.in_sync.push(member);
        self.topology.epoch = Epoch(self.topology.epoch.0 + 1);
        for node in 0..self.machines.len() {
            // Whoever is cut off from the first node hears of nothing.
            if !self.cuts.contains(&(0, node)) {
                self.push_topology_to(node);
            }
        }
    }

    /// A node more, which holds nothing; it is not in any partition yet.
    pub fn add_machine(&mut self) -> usize {
        let node = self.machines.len();
        let member = Member { node: NodeId(node as u64), incarnation: Incarnation(100) };
        self.topology.nodes.insert(member.node, info(member.incarnation));
        self.machines.push(machine(member, &self.setting, &self.topology));
        node
    }

    /// A node starts anew: its memory is gone and it is another member.
    pub fn restart(&mut self, node: usize) -> Member {
        let mut member = self.machines[node].member;
        member.incarnation = Incarnation(member.incarnation.0 + 1);
        self.topology.nodes.insert(member.node, info(member.incarnation));
        self.machines[node] = machine(member, &self.setting, &self.topology);
        member
    }

    // ---- faults ----------------------------------------------------------------------------

    /// Nothing passes between a node and all others.
    pub fn isolate(&mut self, node: usize) {
        for other in (0..self.machines.len()).filter(|other| *other != node) {
            self.cuts.insert((node, other));
            self.cuts.insert((other, node));
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    // ---- judges ----------------------------------------------------------------------------

    pub fn held(&self, node: usize, key: &ItemKey) -> Option<Known> {
        self.machines[node].eventual.held(self.place(key), key)
    }

    pub fn item(&self, node: usize, key: &ItemKey) -> Option<Item> {
        self.machines[node].store.read(self.place(key), key, false, 0)
    }

    pub fn value(&self, node: usize, key: &ItemKey) -> Option<String> {
        self.item(node, key).map(|item| String::from_utf8_lossy(&item.value).into_owned())
    }

    /// Nodes that own all partitions.
    pub fn owners(&self) -> Vec<usize> {
        let states = &self.topology.groups[&group()];
        (0..self.machines.len())
            .filter(|node| {
                let member = self.machines[*node].member;
                states.iter().all(|state| state.in_sync.contains(&member))
            })
            .collect()
    }

    /// Whether all owners hold the same items; else what differs.
    pub fn difference(&self) -> Option<String> {
        let owners = self.owners();
        let Some(first) = owners.first().copied() else { return Some("no owner".into()) };
        for place in self.places() {
            let items =
                |node: usize| -> Vec<_> { self.machines[node].store.items(place).collect() };
            for node in &owners[1..] {
                let (left, right) = (items(first), items(*node));
                if left != right {
                    return Some(format!("{place} on {first}: {left:?}\non {node}: {right:?}"));
                }
            }
        }
        None
    }

    /// What every copy must know of itself: the catalog's live keys are the items of the store.
    pub fn check_copies(&self) {
        for machine in &self.machines {
            for place in self.places() {
                let live: Vec<_> = machine
                    .eventual
                    .keys(place)
                    .filter(|(_, known)| known.live)
                    .map(|(key, known)| (key.clone(), known.version))
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect();
                let items: Vec<_> = machine
                    .store
                    .items(place)
                    .map(|(key, item)| (key.clone(), item.version))
                    .collect();
                assert_eq!(live, items, "{} {place}", machine.member);
            }
        }
    }
}

fn info(incarnation: Incarnation) -> NodeInfo {
    NodeInfo {
        name: String::new(),
        incarnation,
        addresses: BTreeMap::new(),
        weight: 1_000,
        zone: String::new(),
        state: NodeState::Ready,
        witness: false,
    }
}

fn machine(member: Member, setting: &Setting, topology: &Topology) -> Machine {
    Machine {
        member,
        eventual: Eventual::new(setting.config.clone()),
        store: MapStore::new(setting.store_bytes),
        topology: topology.clone(),
        clock_ahead_ms: 0,
    }
}

fn spec(id: CacheId, eviction: Eviction, setting: &Setting) -> CacheSpec {
    CacheSpec {
        id,
        mode: Mode::Eventual,
        copies: 3,
        min_in_sync: 1,
        read: setting.read,
        acks: setting.acks,
        eviction,
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: String::new(),
        memory: 0,
    }
}
