//! `kiln-replication`: what a replicated write costs the core, without sockets and clients.
//!
//! Two nodes in one thread, a strong cache of two copies, values of 100 bytes. A turn gives the
//! primary some writes at once; its messages are encoded, decoded and given to the copy as on the
//! wire, and the answers back, until every write is acknowledged. What is counted is the processor
//! time of this thread, of all of it: both nodes, encoding and decoding, and the store.
//!
//! Rounds alternate between the sizes of a turn, and the median is printed, so that what disturbs
//! the machine disturbs all alike.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use kiln_cluster::config::NodeConfig;
use kiln_cluster::effect::{ItemKey, Operation, Outcome, StoreMode, Ttl};
use kiln_cluster::ids::{
    CacheId, ClientId, ClusterId, Generation, GroupKey, Incarnation, Member, Mode, NodeId,
    PartitionId, Place, RequestId, Token,
};
use kiln_cluster::message::Message;
use kiln_cluster::node::{Action, Actions, Event, Node, Reply, Request};
use kiln_cluster::store_engine::EngineStore;
use kiln_cluster::time::{Mono, Now};
use kiln_cluster::topology::{
    Acks, CacheSpec, Eviction, NodeProfile, OnLoss, ReadMode, Topology, TopologyCommand,
};
use kiln_engine::{Entry, Store, StoreConfig, WriteOptions};
use kiln_protocol::peer::{Unreadable, Unwritable, read_record, write_record};
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLUSTER: ClusterId = ClusterId(7);
const CACHE: CacheId = CacheId(1);
const GROUP: GroupKey = GroupKey { mode: Mode::Strong, copies: 2 };
const PARTITIONS: u32 = 1_024;
const KEYS: u64 = 100_000;
const VALUE_LEN: usize = 100;
const TURN_SIZES: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 7;
const WRITES_PER_ROUND: usize = 64 * 1_000;
/// Between turns, as a busy node has them.
const TURN_US: u64 = 100;
/// Of both nodes together, at 16 writes a turn.
const TARGET_NS: u64 = 5_000;

#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("no memory for a node: {0}")]
    Memory(#[from] kiln_engine::StoreError),
    #[error("the table refused a command: {0}")]
    Table(#[from] kiln_cluster::topology::Rejected),
    #[error("a message cannot be encoded: {0}")]
    Encode(#[from] Unwritable),
    #[error("a message cannot be decoded: {0}")]
    Decode(#[from] Unreadable),
    #[error("a write was answered {0:?}")]
    Refused(Reply),
    #[error("{missing} writes were not answered")]
    Unanswered { missing: usize },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-replication: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, BenchError> {
    if std::env::args().nth(1).as_deref() == Some("walk") {
        walk()?;
        return Ok(true);
    }
    let mut pair = Pair::new()?;
    pair.write(WRITES_PER_ROUND, 64)?;
    let mut times: [Vec<u64>; TURN_SIZES.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (size, times) in TURN_SIZES.iter().zip(&mut times) {
            let began = cpu_ns();
            let writes = WRITES_PER_ROUND / if *size == 1 { 8 } else { 1 };
            pair.write(writes, *size)?;
            times.push((cpu_ns() - began) / writes as u64);
        }
    }
    println!("| writes a turn | ns of CPU per acknowledged write | bytes on the wire |");
    println!("|---:|---:|---:|");
    let mut met = true;
    for (size, mut times) in TURN_SIZES.into_iter().zip(times) {
        times.sort_unstable();
        let median = times[times.len() / 2];
        let before = (pair.bytes, pair.written);
        pair.write(WRITES_PER_ROUND / 8, size)?;
        let bytes = (pair.bytes - before.0) / (pair.written - before.1);
        println!("| {size} | {median} | {bytes} |");
        met &= size != 16 || median <= TARGET_NS;
    }
    println!(
        "\nrequired: at most {TARGET_NS} ns at 16 a turn: {}",
        if met { "met" } else { "missed" }
    );
    Ok(met)
}

/// Walks over one partition of a large store, by looking at all items and by the index.
fn walk() -> Result<(), BenchError> {
    const ITEMS: u64 = 1_000_000;
    let store = Store::new(StoreConfig { memory: 512 << 20, ..StoreConfig::default() })?;
    for number in 0..ITEMS {
        let key = format!("key:{number:012}");
        let options = WriteOptions::default();
        store.write(key.as_bytes(), Store::hash(key.as_bytes()), &[b'v'; VALUE_LEN], &options, 1);
    }
    let parts = u64::from(PARTITIONS);
    let all = |part: u64| {
        let (mut found, mut cursor) = (0, Some(0));
        while let Some(at) = cursor {
            let visit = |entry: Entry<'_>| {
                found += u64::from(Store::hash(entry.key) % parts == part);
            };
            cursor = store.scan(at, 1, 1, visit).next;
        }
        found
    };
    let by_index = |part: u64| {
        let (mut found, mut cursor) = (0, Some(0));
        while let Some(at) = cursor {
            cursor = store.scan_part(at, (parts, part), 1, 1, |_, _| found += 1).next;
        }
        found
    };
    let median = |walk: &dyn Fn(u64) -> u64| {
        let mut times = Vec::new();
        let mut items = 0;
        for round in 0..ROUNDS as u64 {
            let began = cpu_ns();
            items += walk(round * 37 % parts);
            times.push((cpu_ns() - began) / 1_000);
        }
        times.sort_unstable();
        (times[times.len() / 2], items)
    };
    for (name, (us, items)) in [("all items", median(&all)), ("the index", median(&by_index))] {
        println!("by {name}: {us} us of CPU for a partition, {items} items in {ROUNDS} of them");
    }
    Ok(())
}

fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Two nodes and what is between them.
struct Pair {
    now: Mono,
    nodes: [Node<EngineStore>; 2],
    keys: Vec<Bytes>,
    value: Bytes,
    /// Requests and bytes so far.
    written: u64,
    bytes: u64,
    unanswered: usize,
    actions: Actions,
    wire: Vec<u8>,
}

impl Pair {
    fn new() -> Result<Self, BenchError> {
        let node = |number| -> Result<_, BenchError> {
            let config = StoreConfig { memory: 256 << 20, ..StoreConfig::default() };
            let mut store = EngineStore::new(PARTITIONS);
            store.add_cache(CACHE, GROUP, Store::new(config)?);
            let now = Now { mono: Mono(0), wall_ms: 1_000_000 };
            Ok(Node::new(CLUSTER, NodeConfig::default(), member(number), store, number, now))
        };
        let keys = (0..KEYS).map(|number| Bytes::from(format!("key:{number:012}"))).collect();
        let mut pair = Self {
            now: Mono(0),
            nodes: [node(1)?, node(2)?],
            keys,
            value: Bytes::from(vec![b'v'; VALUE_LEN]),
            written: 0,
            bytes: 0,
            unanswered: 0,
            actions: Actions::new(),
            wire: Vec::new(),
        };
        let table = Arc::new(table()?);
        let heard = || vec![Event::Topology(Arc::clone(&table))];
        pair.turn([Vec::new(), heard()])?;
        pair.turn([heard(), Vec::new()])?;
        for _ in 0..100 {
            pair.turn([Vec::new(), Vec::new()])?;
        }
        Ok(pair)
    }

    /// Writes so many items, and waits until all are acknowledged.
    fn write(&mut self, count: usize, per_turn: usize) -> Result<(), BenchError> {
        for _ in 0..count / per_turn {
            let requests = (0..per_turn).map(|_| self.request()).collect();
            self.unanswered += per_turn;
            self.turn([requests, Vec::new()])?;
            if self.unanswered > 0 {
                return Err(BenchError::Unanswered { missing: self.unanswered });
            }
        }
        Ok(())
    }

    fn request(&mut self) -> Event {
        self.written += 1;
        let number = self.written.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let key = self.keys[(number % KEYS) as usize].clone();
        let operation = Operation::Store {
            mode: StoreMode::Set,
            value: self.value.clone(),
            flags: 0,
            ttl: Ttl::Never,
            compare: None,
        };
        let id = Some(RequestId { client: ClientId(1), counter: self.written });
        let request =
            Request { id, key: ItemKey { cache: CACHE, key }, operation, seen: Generation(0) };
        Event::Request { token: Token(self.written), request }
    }

    /// The nodes get these; then both take turns until nothing is on its way.
    fn turn(&mut self, mut waiting: [Vec<Event>; 2]) -> Result<(), BenchError> {
        self.now = self.now.after_us(TURN_US);
        for (node, events) in self.nodes.iter().zip(&mut waiting) {
            if node.next_wakeup().is_some_and(|at| at <= self.now) {
                events.push(Event::Wakeup);
            }
        }
        while let Some(at) = waiting.iter().position(|events| !events.is_empty()) {
            let events = std::mem::take(&mut waiting[at]);
            let messages = self.give(at, events)?;
            waiting[1 - at].extend(messages.into_iter().map(Event::Message));
        }
        Ok(())
    }

    /// What a node sends, as it arrives.
    fn give(&mut self, at: usize, mut events: Vec<Event>) -> Result<Vec<Message>, BenchError> {
        let now = Now { mono: self.now, wall_ms: 1_000_000 + self.now.0 / 1_000_000 };
        let mut actions = std::mem::take(&mut self.actions);
        self.nodes[at].handle_all(now, &mut events, &mut actions);
        let mut messages = Vec::new();
        for action in actions.drain(..) {
            match action {
                Action::Send { message, .. } => {
                    self.wire.clear();
                    write_record(&mut self.wire, &message)?;
                    self.bytes += self.wire.len() as u64;
                    messages.push(read_record(&self.wire)?);
                }
                Action::Reply { reply: Reply::Done(Outcome::Stored(_)), .. } => {
                    self.unanswered -= 1;
                }
                Action::Reply { reply, .. } => return Err(BenchError::Refused(reply)),
                Action::Propose(_) | Action::Report(_) => {}
            }
        }
        self.actions = actions;
        Ok(messages)
    }
}

fn member(number: u64) -> Member {
    Member { node: NodeId(number), incarnation: Incarnation(number) }
}

/// Both nodes in sync everywhere, the first as primary.
fn table() -> Result<Topology, BenchError> {
    let mut table = Topology::new(CLUSTER, PARTITIONS);
    for number in [1, 2] {
        table.apply(&TopologyCommand::Join {
            node: NodeId(number),
            incarnation: Incarnation(number),
            replaces: None,
            profile: NodeProfile {
                name: format!("node-{number}"),
                addresses: BTreeMap::new(),
                weight: 1_000,
                zone: String::new(),
                witness: false,
            },
        })?;
    }
    let spec = CacheSpec {
        id: CACHE,
        mode: Mode::Strong,
        copies: GROUP.copies,
        min_in_sync: 2,
        read: ReadMode::Lease,
        acks: Acks::One,
        eviction: Eviction::Evict,
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: String::new(),
        memory: 0,
    };
    table.apply(&TopologyCommand::CreateCache { name: "default".to_owned(), spec })?;
    for partition in 0..PARTITIONS {
        let place = Place { group: GROUP, partition: PartitionId(partition) };
        let version = table.partition(place).map_or(0, |state| state.version);
        let members = vec![member(1), member(2)];
        table.apply(&TopologyCommand::Assign { place, version, members })?;
    }
    Ok(table)
}
