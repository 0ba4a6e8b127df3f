//! What all threads of a node share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use kiln_engine::{Store, StoreConfig, StoreError, VALUE_LEN_MAX};

use crate::{
    auth::AuthFile,
    clock::Clock,
    config::Config,
    connections::{ConnectionLimit, Endpoint, Register},
    counters::{Counters, Totals},
    memcached::budget::{Budget, Shares},
    shutdown::Shutdown,
};

/// One running node.
pub(crate) struct Node {
    /// The settings; they do not change while the node runs.
    pub(crate) config: Config,
    /// The items.
    pub(crate) store: Store,
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
    /// Where memcached clients are waited for.
    pub(crate) endpoints: Vec<Endpoint>,
    /// One for each worker thread.
    pub(crate) workers: Box<[WorkerState]>,
    /// Shows that items are still being ended.
    pub(crate) upkeep: Heartbeat,
}

/// What one worker writes and others read.
#[derive(Debug, Default)]
pub(crate) struct WorkerState {
    /// What its requests counted.
    pub(crate) counters: Counters,
    /// Its connections.
    pub(crate) register: Register,
    /// Shows that it is not stuck.
    pub(crate) heart: Heartbeat,
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
        endpoints: Vec<Endpoint>,
    ) -> Result<Self, StoreError> {
        let clock = Clock::start();
        let memory = usize::try_from(config.memory.0).unwrap_or(usize::MAX);
        // The largest setting is one byte over the largest value.
        let value_len_max = (config.max_item_size.0 as usize).min(VALUE_LEN_MAX);
        let shares = Shares::of(memory, value_len_max);
        let store = Store::new(StoreConfig {
            memory: shares.store,
            memory_max: shares.store.saturating_mul(MEMORY_GROWTH_MAX),
            policy: config.eviction.0,
            shards: shards(config.threads.0, shares.store),
            value_len_max,
            start_ms: clock.now_ms(),
        })?;
        Ok(Self {
            memory: AtomicUsize::new(memory),
            budget: Arc::new(Budget::new(shares)),
            store,
            clock,
            shutdown: Shutdown::new(),
            connections: ConnectionLimit::new(config.max_connections.0),
            auth,
            endpoints,
            workers: (0..config.threads.0).map(|_| WorkerState::default()).collect(),
            upkeep: Heartbeat::default(),
            config,
        })
    }

    /// The memory ceiling in bytes: for the store, the connections and the process together.
    pub(crate) fn memory(&self) -> usize {
        self.memory.load(Relaxed)
    }

    /// Moves the memory ceiling; what the connections may have stays. False when it is too low or
    /// too high to be had, and then nothing changes.
    pub(crate) fn set_memory(&self, memory: usize) -> bool {
        let shares = Shares::of(memory, self.store.value_len_max());
        let before = self.store.memory();
        if memory / 2 < self.store.value_len_max()
            || self.store.set_memory(shares.store) != shares.store
        {
            self.store.set_memory(before);
            return false;
        }
        self.memory.store(memory, Relaxed);
        tracing::info!(bytes = memory, "memory ceiling changed");
        true
    }

    /// The counters of all workers, summed now.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.workers.iter().for_each(|worker| totals.add(&worker.counters));
        totals
    }
}

/// The memory ceiling of a running node can be raised up to so many times the configured one.
const MEMORY_GROWTH_MAX: usize = 4;

/// Shards of the store: four for each thread, so that they seldom meet, but none so small that
/// half-filled pages would take much of it.
fn shards(threads: usize, memory: usize) -> usize {
    let most = (memory / (16 << 20)).max(1).ilog2();
    (threads * 4).next_power_of_two().clamp(2, 256).min(1 << most).max(2)
}
