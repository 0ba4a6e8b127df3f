//! What workers see of the cluster: read on every request, written by the driver.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use kiln_cluster::{
    effect::Operation,
    ids::{ClusterId, Epoch, Generation, Member, NodeId, Place},
    node::Refusal,
    placement::keys_of_all,
    time::{Mono, Now},
    topology::{CacheSpec, NodeInfo, NodeState, Rejected, Topology, TopologyCommand},
};
use kiln_protocol::native::ErrorCode;
use parking_lot::Mutex;
use tokio::{sync::watch, time};

use super::{
    PATIENCE_MS,
    gate::Gate,
    rights::Rights,
    status::{Event, Overview},
    turns::Turns,
    wave::{Asked, Submission, Wave},
};
use crate::{
    caches::ClusterCache,
    clock::Clock,
    control::{CommitError, Control},
    op_times::Histogram,
    peer::{Hosting, LinkStats, Links},
};

/// How long a client waits for the controller group.
const DECIDE_MAX: Duration = Duration::from_secs(10);

/// Delayed clears that wait on this node.
const CLEARS_MAX: usize = 64;

/// Events kept for people.
const EVENTS_MAX: usize = 256;

/// What the controller group makes of a wish: an error has a code and words for people.
pub(crate) type Decided = Result<(), (ErrorCode, String)>;

/// A decision that is waited for.
pub(crate) type Decision = Pin<Box<dyn Future<Output = Decided> + Send>>;

/// The cluster, as the rest of the node knows it.
pub(crate) struct Cluster {
    /// Which life of this node.
    pub(crate) me: Member,
    pub(super) gate: Gate,
    pub(super) rights: Rights,
    pub(super) start: Instant,
    pub(super) clock: Clock,
    /// What the stores may have ended, in milliseconds: see `kiln_cluster::store_engine`.
    pub(super) ended_ms: AtomicU64,
    pub(super) topology: ArcSwap<Topology>,
    /// The same, for those who wait for a change.
    pub(super) followed: watch::Sender<Arc<Topology>>,
    /// What clients that follow the table are told, and of which one: see [`told`](Self::told).
    told: Mutex<Option<(Epoch, Arc<[u8]>)>>,
    pub(super) overview: ArcSwap<Overview>,
    /// Partitions that lost data: how often, and when this node learnt of the last time.
    pub(super) losses: ArcSwap<BTreeMap<Place, (Generation, u64)>>,
    pub(super) events: Mutex<VecDeque<Event>>,
    pub(super) turns: Arc<Turns>,
    /// Written by whoever runs a turn: one at a time.
    pub(crate) turn_times: Histogram,
    control: OnceLock<Control>,
    links: OnceLock<Links>,
    /// Some key of each partition.
    keys: OnceLock<Vec<[u8; 4]>>,
    /// Caches that are to be cleared after a time.
    clears: AtomicUsize,
    /// Clients may be served: see `Driver::open`.
    pub(super) open: AtomicBool,
    /// The node is to hand over what it holds.
    pub(super) leaving: AtomicBool,
}

impl Cluster {
    pub(super) fn new(me: Member, workers: usize, clock: Clock, turns: Arc<Turns>) -> Self {
        Self {
            me,
            gate: Gate::new(workers),
            rights: Rights::default(),
            start: Instant::now(),
            clock,
            ended_ms: AtomicU64::new(0),
            topology: ArcSwap::from_pointee(Topology::new(ClusterId(0), 1)),
            followed: watch::Sender::new(Arc::new(Topology::new(ClusterId(0), 1))),
            told: Mutex::default(),
            overview: ArcSwap::from_pointee(Overview::default()),
            losses: ArcSwap::default(),
            events: Mutex::new(VecDeque::new()),
            turns,
            turn_times: Histogram::default(),
            control: OnceLock::new(),
            links: OnceLock::new(),
            keys: OnceLock::new(),
            clears: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        }
    }

    pub(super) fn set_control(&self, control: Control, links: Links) {
        // Set once, at start.
        let _ = self.control.set(control);
        let _ = self.links.set(links);
    }

    /// The connections with other nodes, and how many were turned away.
    pub(crate) fn links(&self) -> (Vec<LinkStats>, u64) {
        self.links.get().map_or((Vec::new(), 0), |links| (links.stats(), links.turned_away()))
    }

    /// Asks another node something that is not for its replication core.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, String> {
        let Some(links) = self.links.get().cloned() else {
            return Err("the node is starting".to_owned());
        };
        links.call(to, kind, body, within).await.map_err(|error| error.to_string())
    }

    /// The controller group.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.control.get()
    }

    /// The gate between workers and stores.
    #[inline]
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The newest table.
    #[inline]
    pub(crate) fn topology(&self) -> Guard<Arc<Topology>> {
        self.topology.load()
    }

    /// What was seen of the cluster lately.
    pub(crate) fn overview(&self) -> Arc<Overview> {
        self.overview.load_full()
    }

    /// Whether any data were lost.
    pub(crate) fn has_losses(&self) -> bool {
        !self.losses.load().is_empty()
    }

    /// How often a partition had lost data at a time.
    pub(crate) fn generation_at(&self, place: Place, at_ms: u64) -> Generation {
        match self.losses.load().get(&place) {
            Some(&(generation, since_ms)) if since_ms <= at_ms => generation,
            Some(&(generation, _)) => Generation(generation.0.saturating_sub(1)),
            None => Generation(0),
        }
    }

    /// Notes the losses that a table tells of.
    pub(super) fn note_losses(&self, topology: &Topology) {
        let known = self.losses.load();
        let new = topology.places().filter(|(place, state)| {
            state.generation > known.get(place).map_or(Generation(0), |(generation, _)| *generation)
        });
        let new: Vec<_> = new.map(|(place, state)| (place, state.generation)).collect();
        if !new.is_empty() {
            let now_ms = self.clock.now_ms();
            let mut losses = BTreeMap::clone(&known);
            losses.extend(new.into_iter().map(|(place, generation)| (place, (generation, now_ms))));
            self.losses.store(Arc::new(losses));
        }
    }

    /// Brings a command before the controller group; done when this node's table shows it.
    pub(crate) fn decide(
        &self,
        command: TopologyCommand,
        shows: impl Fn(&Topology) -> bool + Send + Sync + 'static,
    ) -> Decision {
        let Some(control) = self.control.get().cloned() else {
            let text = "the node is starting; try again".to_owned();
            return Box::pin(async { Err((ErrorCode::Busy, text)) });
        };
        let mut followed = self.followed.subscribe();
        Box::pin(async move {
            let decided = time::timeout(DECIDE_MAX, control.commit(command)).await;
            let late = || {
                let text = "the controller group did not decide in time; it may yet: is a majority \
                            of its voters running?";
                (ErrorCode::DeadlineExceeded, text.to_owned())
            };
            decided.map_err(|_| late())?.map_err(|error| (code_of(&error), error.to_string()))?;
            let shown = time::timeout(DECIDE_MAX, followed.wait_for(|table| shows(table))).await;
            shown.map(|_| ()).map_err(|_| late())
        })
    }

    /// What happened lately, newest last.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().iter().cloned().collect()
    }

    /// A table in the words of those who are told of it; `write` does that for the first of them.
    pub(crate) fn told(&self, table: &Topology, write: impl FnOnce() -> Vec<u8>) -> Arc<[u8]> {
        let mut told = self.told.lock();
        if let Some((epoch, words)) = &*told
            && *epoch == table.epoch
        {
            return Arc::clone(words);
        }
        let words: Arc<[u8]> = write().into();
        *told = Some((table.epoch, Arc::clone(&words)));
        words
    }

    /// Something that people should know.
    pub(super) fn note(&self, text: String) {
        tracing::info!("{text}");
        let mut events = self.events.lock();
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { at_ms: self.clock.now_ms(), text });
    }

    /// The time of now, for the core.
    #[inline]
    pub(crate) fn now(&self) -> Now {
        Now { mono: self.mono(), wall_ms: self.clock.now_ms() }
    }

    /// The monotonic clock of the core.
    #[inline]
    pub(crate) fn mono(&self) -> Mono {
        Mono(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// What the stores may have ended.
    pub(crate) fn ended_ms(&self) -> u64 {
        self.ended_ms.load(Relaxed)
    }

    /// Hands requests to the core. Never waits: when too many do, these are refused.
    pub(crate) fn submit(&self, asked: Vec<Asked>) -> Arc<Wave> {
        let wave = Wave::new(asked.len());
        let submission = Submission { wave: Arc::clone(&wave), asked };
        if !self.turns.submit(submission) {
            wave.refuse_all(Refusal::Busy);
        }
        wave
    }

    /// Runs what requests of this thread, a runtime of one thread, ask of the core, without waking
    /// another thread. Without it, the cluster thread does.
    pub(crate) fn attend(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.turns).attend()
    }

    /// Reads on the current runtime, a worker's, what some other nodes say: a confirmation is then
    /// read where a request waits for it, or by a thread that is awake as often.
    pub(crate) fn host_links(&self) -> Option<Hosting> {
        self.links.get().map(Links::host)
    }

    /// Removes all items of a cache, in every partition. Those that were there when this is called
    /// are gone when all answers are there.
    pub(crate) fn clear(&self, cache: &ClusterCache) -> Arc<Wave> {
        let keys = self.keys.get_or_init(|| keys_of_all(self.topology.load().partitions));
        let seen = Generation(u64::MAX);
        let asked = keys.iter().map(|key| {
            let key = Bytes::copy_from_slice(key);
            Asked::new(cache, key, Operation::Clear, seen, PATIENCE_MS)
        });
        self.submit(asked.collect())
    }

    /// The same after a time. False when too many such wishes wait already.
    pub(crate) fn clear_later(self: &Arc<Self>, cache: &ClusterCache, after: Duration) -> bool {
        if self.clears.fetch_add(1, Relaxed) >= CLEARS_MAX {
            self.clears.fetch_sub(1, Relaxed);
            return false;
        }
        let (cluster, cache) = (Arc::clone(self), cache.clone());
        tokio::spawn(async move {
            time::sleep(after).await;
            let wave = cluster.clear(&cache);
            poll_fn(|task| wave.poll(task)).await;
            cluster.clears.fetch_sub(1, Relaxed);
        });
        true
    }

    /// Where this node stands in the table.
    pub(crate) fn state(&self) -> Option<NodeState> {
        let topology = self.topology.load();
        let info = topology.nodes.get(&self.me.node)?;
        (info.incarnation == self.me.incarnation).then_some(info.state)
    }

    /// Whether clients may be served.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Acquire)
    }

    /// What makes a cache. A node that is alone takes its partitions in the same step, so that the
    /// first write finds a primary.
    pub(crate) fn make_cache(&self, name: String, spec: CacheSpec) -> TopologyCommand {
        let group = spec.group();
        let create = TopologyCommand::CreateCache { name, spec };
        let topology = self.topology.load();
        let alone = topology.nodes.keys().all(|node| *node == self.me.node);
        let holds = topology.nodes.get(&self.me.node).is_some_and(NodeInfo::holds_items);
        if !alone || !holds || topology.groups.contains_key(&group) {
            return create;
        }
        let claim = TopologyCommand::claim(group, topology.partitions, self.me);
        TopologyCommand::Batch(std::iter::once(create).chain(claim).collect())
    }

    /// Asks for the node's data to be handed over.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Release);
        self.turns.wake();
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Acquire)
    }

    /// Whether other nodes need this one for nothing any more.
    pub(crate) fn has_left(&self) -> bool {
        let topology = self.topology.load();
        !topology.nodes_in_use().contains(&self.me.node)
    }

    /// The name of a node.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        let topology = self.topology.load();
        topology.nodes.get(&node).map_or_else(|| node.to_string(), |info| info.name.clone())
    }
}

/// What a client is told of a command without a good outcome.
fn code_of(error: &CommitError) -> ErrorCode {
    match error {
        CommitError::Rejected(Rejected::CacheExists) => ErrorCode::CacheExists,
        CommitError::Rejected(Rejected::UnknownCache) => ErrorCode::NoSuchCache,
        CommitError::Rejected(Rejected::StreamExists) => ErrorCode::CacheExists,
        CommitError::Rejected(Rejected::UnknownStream) => ErrorCode::NoSuchCache,
        CommitError::Rejected(Rejected::TooMany { .. }) => ErrorCode::LimitReached,
        CommitError::Rejected(_) => ErrorCode::BadArgument,
        CommitError::NoLeader(_) | CommitError::NoCluster | CommitError::Busy => ErrorCode::Busy,
        CommitError::Indeterminate | CommitError::Stopped(_) => ErrorCode::DeadlineExceeded,
    }
}
