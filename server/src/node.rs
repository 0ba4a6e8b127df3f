//! What all threads of a node share.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use kiln_engine::{StoreError, VALUE_LEN_MAX};

use parking_lot::Mutex;

use crate::{
    auth::AuthFile,
    caches::{Cache, CacheSettings, Caches},
    clock::Clock,
    cluster::Cluster,
    config::{Config, Listen},
    connection::budget::{Budget, Shares},
    connections::{ConnectionLimit, Endpoint, Register},
    counters::{Counters, Totals},
    hottest::Hottest,
    http::{self, Figures},
    latency::Latencies,
    op_times::OpTimes,
    shutdown::Shutdown,
    streams::Streams,
};

/// One running node.
pub(crate) struct Node {
    /// The settings; they do not change while the node runs.
    pub(crate) config: Config,
    /// The items.
    pub(crate) caches: Caches,
    /// The node's time.
    pub(crate) clock: Clock,
    /// Ends the node, and knows whether it is ready.
    pub(crate) shutdown: Shutdown,
    /// How many connections there may be, and are.
    pub(crate) connections: ConnectionLimit,
    /// The ceiling, as set last.
    memory: AtomicUsize,
    /// What connections may hold of half requests and untaken replies, together.
    pub(crate) budget: Arc<Budget>,
    /// Who may use the node; `None` lets everyone.
    pub(crate) auth: Option<AuthFile>,
    /// Where clients are waited for.
    pub(crate) endpoints: Endpoints,
    /// Tells this process from any other that had or will have the node's name.
    pub(crate) incarnation: u64,
    epoch: AtomicU64,
    /// One for each worker thread.
    pub(crate) workers: Box<[WorkerState]>,
    /// Shows that items are still being ended.
    pub(crate) upkeep: Heartbeat,
    /// What HTTP counts.
    pub(crate) http: Figures,
    /// The other nodes, once this one is in a cluster. Never, when it listens for none.
    pub(crate) cluster: OnceLock<Arc<Cluster>>,
    /// Sensor readings and what is made of them.
    pub(crate) streams: Streams,
}

/// A node that stays alone was asked for copies.
#[derive(Debug, thiserror::Error)]
#[error("this node takes no other nodes (listen_peer is off): copies must be 1")]
pub(crate) struct CopiesError;

/// Where clients are waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// Memcached clients.
    pub(crate) memcached: Vec<Endpoint>,
    /// Kiln's own clients.
    pub(crate) native: Option<SocketAddr>,
    /// HTTP clients.
    pub(crate) http: Option<SocketAddr>,
    /// Other nodes.
    pub(crate) peer: Option<SocketAddr>,
    /// Sensors that send lines.
    pub(crate) ingest: Option<SocketAddr>,
}

impl Endpoints {
    /// Where memcached clients connect over the network.
    pub(crate) fn memcached_tcp(&self) -> Option<SocketAddr> {
        self.memcached.iter().find_map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => Some(*address),
            Endpoint::Unix(_) => None,
        })
    }
}

/// What one worker writes and others read.
#[derive(Debug, Default)]
pub(crate) struct WorkerState {
    /// Its number.
    pub(crate) index: usize,
    /// What its requests counted.
    pub(crate) counters: Counters,
    /// Its connections.
    pub(crate) register: Register,
    /// Shows that it is not stuck.
    pub(crate) heart: Heartbeat,
    /// Which keys it is asked for most.
    pub(crate) hottest: Mutex<Hottest>,
    /// How long its batches take.
    pub(crate) latencies: Latencies,
    /// How long operations of memcached and of native clients take.
    pub(crate) op_times: [OpTimes; 2],
}

/// When a thread last showed that it is not stuck.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat(AtomicU64);

impl Heartbeat {
    /// The thread is not stuck.
    pub(crate) fn beat(&self, now_ms: u64) {
        self.0.store(now_ms, Relaxed);
    }

    /// The last time, in milliseconds of the node's clock; 0 before the first.
    pub(crate) fn last_ms(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Node {
    /// A node that is starting, with an empty store. Opens no socket and starts no thread.
    pub(crate) fn new(
        config: Config,
        auth: Option<AuthFile>,
        endpoints: Endpoints,
    ) -> Result<Self, StoreError> {
        let clock = Clock::start();
        let memory = usize::try_from(config.memory.0).unwrap_or(usize::MAX);
        // The largest setting is one byte over the largest value.
        let value_len_max = (config.max_item_size.0 as usize).min(VALUE_LEN_MAX);
        let shares = Shares::of(memory, value_len_max);
        let settings = CacheSettings::of_default(shares.store, config.eviction.0, value_len_max);
        let caches = Caches::new(settings, shares.store, config.threads.0, clock.now_ms())?;
        Ok(Self {
            memory: AtomicUsize::new(memory),
            budget: Arc::new(Budget::new(shares)),
            caches,
            incarnation: random(),
            epoch: AtomicU64::new(1),
            clock,
            shutdown: Shutdown::new(),
            connections: ConnectionLimit::new(config.max_connections.0),
            auth,
            endpoints,
            workers: (0..config.threads.0)
                .map(|index| WorkerState { index, ..WorkerState::default() })
                .collect(),
            upkeep: Heartbeat::default(),
            http: Figures::new(http::threads(config.threads.0)),
            cluster: OnceLock::new(),
            streams: Streams::new(memory, config.threads.0),
            config,
        })
    }

    /// The memory ceiling in bytes: for the store, the connections and the process together.
    pub(crate) fn memory(&self) -> usize {
        self.memory.load(Relaxed)
    }

    /// The cache `default`.
    #[inline]
    pub(crate) fn default_cache(&self) -> &Arc<Cache> {
        self.caches.default_cache()
    }

    /// The cluster. For a node that takes no others it is this node alone, as long as it runs.
    pub(crate) fn cluster_id(&self) -> String {
        let of_table = self.cluster.get().map(|cluster| cluster.topology().cluster_id.0);
        format!("{:016x}", of_table.unwrap_or(self.incarnation))
    }

    /// Whether a cache of these settings can be had here.
    pub(crate) fn check_copies(&self, settings: &CacheSettings) -> Result<(), CopiesError> {
        let alone = self.config.listen_peer == Listen::Off;
        if alone && settings.copies > 1 { Err(CopiesError) } else { Ok(()) }
    }

    /// Rises with each change of the topology, after it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// A cache came or went: tells the clients that want to know.
    pub(crate) fn topology_changed(&self) {
        self.epoch.fetch_add(1, Release);
        for worker in &self.workers {
            worker.register.each(|peer| {
                if let Some(mailbox) = &peer.mailbox {
                    mailbox.topology_changed();
                }
            });
        }
    }

    /// Longest value that any cache of this node may take.
    pub(crate) fn value_len_max(&self) -> usize {
        self.default_cache().store.value_len_max()
    }

    /// Moves the memory ceiling; what the connections and the other caches may have stays. False
    /// when it is too low or too high to be had, and then nothing changes.
    pub(crate) fn set_memory(&self, memory: usize) -> bool {
        let shares = Shares::of(memory, self.value_len_max());
        let streams = self.streams.share_of(memory);
        let store = shares.store.saturating_sub(streams).max(kiln_engine::MEMORY_MIN);
        if memory / 2 < self.value_len_max() || !self.caches.set_total(store) {
            return false;
        }
        self.memory.store(memory, Relaxed);
        self.streams.state.set_memory(memory);
        tracing::info!(bytes = memory, "memory ceiling changed");
        true
    }

    /// There are streams from now on: their state is part of the node's memory, and the stores give
    /// what it may take.
    pub(crate) fn reserve_stream_state(&self) {
        if self.streams.begin_reserving() && !self.set_memory(self.memory()) {
            tracing::warn!("the caches cannot spare the memory that stream state may take");
        }
    }

    /// The counters of all workers, summed now.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.workers.iter().for_each(|worker| totals.add(&worker.counters));
        totals
    }
}

/// From the system's randomness, which keys the standard library's hashers.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0).max(1)
}
