//! Sensor streams on this node: readings in, latest values and windows out as items of caches.
//!
//! ```text
//!   HTTP, TCP lines, native --text--> kiln_stream::parse --Batch--> ingest: filter, split by partition
//!                                                                     |
//!             shards, one thread each: operators of partitions <--- bounded queues
//!                  |
//!                  +--> journal: what happened, in changelogs, before it counts (not alone)
//!                  +--> sink: latest values, window results, as items by the common door
//!                  +--> live: followers; rings of the last alarms
//!
//!   stream    one stream: plan, caches, counters, followers
//!   registry  which streams there are: by the table of the cluster, or by this node alone
//!   ingest    a batch on its way to the shards, and what came of it
//!   forward   partitions on other nodes
//!   shard     a thread and the operators it owns
//!   parts     the partitions of a stream on a shard
//!   commit    records into changelogs, and partitions out of them
//!   journal   changelogs of many partitions at once
//!   items     the items of changelogs
//!   company   from alone to one of several
//!   emit      effects to items and followers
//!   sink      items of results, written
//!   render    results as text
//!   query     results of a sensor, as a range
//!   coarse    stored windows made into longer ones
//!   ahead     what is expected after the last window
//!   lines     the door for lines over TCP
//!   inflate   compressed bodies
//!   sources   what streams fetch by themselves: MQTT, Kafka
//! ```
//!
//! Always true: a partition of a stream is changed by one thread, in the order of its queue; what
//! an ingest answers as accepted has changed the state and been written to the caches, or waits in
//! a bounded list to be written; on one node of several it stood before in the partition's
//! changelog, on all copies in sync; what cannot be taken is refused, never dropped unseen.

mod ahead;
mod coarse;
mod commit;
mod company;
mod emit;
mod forward;
mod inflate;
mod ingest;
mod items;
mod journal;
mod lines;
mod parts;
mod query;
mod registry;
mod render;
mod shard;
mod sink;
mod sources;
mod stream;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};

use self::{
    company::Company,
    items::Keys,
    shard::{Job, Shard},
};
use crate::node::Node;

pub(crate) use forward::{CALL, answer};
pub(crate) use inflate::{Coding, InflateError, inflate};
pub(crate) use ingest::{IngestError, RETRY_AFTER_MS, Receipt, Source, check_producer, read_text};
pub(crate) use lines::Door;
pub(crate) use query::{
    Fill, Forecast, LIMIT_DEFAULT, LIMIT_MAX, Range, RangeError, latest_reading, range,
};
pub(crate) use registry::{Registry, StreamError, Table};
pub(crate) use sources::{Reading as Sources, SourceFigures};
pub(crate) use stream::{
    FOLLOWERS_MAX, FigureValues, LiveEvent, NAME_LEN_MAX, Stream, follower_place, stream_of_state,
};

/// Partitions on a node that is in no cluster; as many as a new cluster gets.
const PARTITIONS: u32 = 1_024;
/// Shards at most; each is a thread.
const SHARDS_MAX: usize = 8;
/// Jobs that wait for a shard.
const QUEUE_LEN_MAX: usize = 256;
/// Bytes of readings on their way to the shards, in units of [`QUEUE_UNIT`].
const QUEUE_BYTES_MAX: usize = 32 << 20;
const QUEUE_UNIT: usize = 1 << 10;
/// Of the node's memory, what stream state may take once there is a stream.
const STATE_SHARE: usize = 8;

/// The streams of a node.
pub(crate) struct Streams {
    /// Which there are.
    pub(crate) registry: Registry,
    shards: Box<[mpsc::Sender<Job>]>,
    /// Where the threads find their jobs when they start.
    inboxes: Mutex<Vec<mpsc::Receiver<Job>>>,
    queue: Arc<Semaphore>,
    pub(crate) state: StateRoom,
    /// Whether the stores give the memory for state.
    reserved: AtomicBool,
    /// Whether others may go on with what is here.
    pub(crate) company: Company,
    keys: Keys,
}

/// The memory that operators may take together.
#[derive(Debug)]
pub(crate) struct StateRoom {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl StateRoom {
    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.limit.load(Relaxed).saturating_sub(self.used.load(Relaxed))
    }

    /// Bytes that operators keep.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that they may keep.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Notes that an operator keeps another amount.
    fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Relaxed);
        } else {
            self.used.fetch_sub(before - after, Relaxed);
        }
    }

    /// The node's memory is another.
    pub(crate) fn set_memory(&self, memory: usize) {
        self.limit.store(memory / STATE_SHARE, Relaxed);
    }
}

impl Streams {
    /// No streams yet. Starts no thread.
    pub(crate) fn new(memory: usize, threads: usize) -> Self {
        let count = threads.clamp(1, SHARDS_MAX);
        let (shards, inboxes): (Vec<_>, Vec<_>) =
            (0..count).map(|_| mpsc::channel(QUEUE_LEN_MAX)).unzip();
        let state =
            StateRoom { limit: AtomicUsize::new(memory / STATE_SHARE), used: AtomicUsize::new(0) };
        Self {
            registry: Registry::default(),
            shards: shards.into(),
            inboxes: Mutex::new(inboxes),
            queue: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / QUEUE_UNIT)),
            state,
            reserved: AtomicBool::new(false),
            company: Company::default(),
            keys: Keys::default(),
        }
    }

    /// True the first time: the stores are to give the memory for state.
    pub(crate) fn begin_reserving(&self) -> bool {
        !self.reserved.swap(true, Relaxed)
    }

    /// What of a node's memory the stores leave to state.
    pub(crate) fn share_of(&self, memory: usize) -> usize {
        if self.reserved.load(Relaxed) { memory / STATE_SHARE } else { 0 }
    }

    /// Partitions of a stream: those of the cluster.
    fn partitions(&self, node: &Node) -> u32 {
        node.cluster.get().map_or(PARTITIONS, |cluster| cluster.topology().partitions)
    }

    /// How many threads share the partitions.
    fn shard_count(&self) -> usize {
        self.shards.len()
    }
}

/// The running threads.
pub(crate) struct Running {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts the threads of a node's streams, once.
    pub(crate) fn start(node: &Arc<Node>) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let inboxes = std::mem::take(&mut *node.streams.inboxes.lock());
        let mut threads = Vec::new();
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let shard = Shard::new(Arc::clone(node), index);
            let stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let work = move || runtime.block_on(shard.run(inbox, stopped));
            let name = format!("kiln-stream-{index}");
            threads.push(thread::Builder::new().name(name).spawn(work)?);
        }
        Ok(Self { stop, threads })
    }

    /// Lets the threads finish what waits for them, and ends them.
    pub(crate) fn stop(self) {
        // An error is a thread that ended before, by a panic that the log has.
        let _ = self.stop.send(true);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
