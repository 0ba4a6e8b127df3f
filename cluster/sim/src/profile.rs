//! Kinds of runs: which cluster, which load, which faults. A seed draws one [`Plan`] from a profile.

use kiln_cluster::config::{NodeConfig, StrongConfig};
use kiln_cluster::controller::ControllerConfig;
use kiln_cluster::ids::{CacheId, Mode};
use kiln_cluster::topology::{Acks, CacheSpec, Eviction, OnLoss, ReadMode};

use crate::history::Rules;
use crate::network::{Weather, draw_weather};
use crate::queue::{MS, SECOND, Time};
use crate::rng::Rng;

/// A kind of run.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// What commands call it.
    pub name: &'static str,
    /// Which cache: one per run, so that a seed is about one promise.
    pub cache: CacheKind,
    /// Fewest and most nodes at the start.
    pub nodes: (u64, u64),
    /// Fewest and most copies.
    pub copies: (u64, u64),
    /// The longest usual one-way delay.
    pub delay_max: Time,
    /// Mean time between faults.
    pub fault_every: Time,
    /// How often each fault is drawn, against the others.
    pub faults: FaultWeights,
    /// How long faults go on: shortest and longest.
    pub safety: (Time, Time),
    /// The memory of a node.
    pub memory: Memory,
    /// Fewest and most keys in use at one time.
    pub keys: (u64, u64),
    /// The longest padding of a value.
    pub padding: usize,
    /// Share of writes with an end of their own.
    pub ttl_share: f64,
    /// How far wall clocks are wrong at most.
    pub clock_offset_ms: u64,
}

/// What the cache of a run promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Strong, evicts, serves with one copy left.
    StrongEvicting,
    /// Strong, nothing disappears, two copies confirm each write.
    StrongRecord,
    /// Strong, nothing disappears, leased reads.
    StrongLeased,
    /// Eventual.
    Eventual,
}

/// The memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// An ordered map of so many bytes.
    Map(usize),
    /// The store of `kiln-engine`, of so many bytes.
    Engine(usize),
}

/// How often each fault is drawn.
#[derive(Clone, Copy, Debug)]
pub struct FaultWeights {
    /// A node dies and comes back empty.
    pub kill: u32,
    /// A node stands still.
    pub pause: u32,
    /// A link is cut, one way or both.
    pub cut: u32,
    /// A node, or half of them, is cut off.
    pub isolate: u32,
    /// A wall clock is set wrong anew.
    pub clock: u32,
    /// A healthy node is taken for dead.
    pub suspicion: u32,
    /// The controller moves, or cannot be reached.
    pub controller: u32,
    /// The network changes its mind.
    pub weather: u32,
    /// A new node joins.
    pub join: u32,
    /// A node hands over and leaves.
    pub drain: u32,
}

const EVERYTHING: FaultWeights = FaultWeights {
    kill: 4,
    pause: 2,
    cut: 4,
    isolate: 2,
    clock: 1,
    suspicion: 2,
    controller: 1,
    weather: 2,
    join: 1,
    drain: 1,
};

const STRONG_EVICTING: Profile = Profile {
    name: "strong-evicting",
    cache: CacheKind::StrongEvicting,
    nodes: (3, 5),
    copies: (2, 3),
    delay_max: 5 * MS,
    fault_every: 1_500 * MS,
    faults: EVERYTHING,
    safety: (4 * SECOND, 20 * SECOND),
    memory: Memory::Map(64 << 20),
    keys: (2, 5),
    padding: 24,
    ttl_share: 0.15,
    clock_offset_ms: 400,
};

const STRONG_RECORD: Profile = Profile {
    name: "strong-record",
    cache: CacheKind::StrongRecord,
    nodes: (3, 5),
    copies: (2, 3),
    ..STRONG_EVICTING
};

/// All profiles, by the order in which a mixed run takes them.
pub const PROFILES: &[Profile] = &[
    STRONG_RECORD,
    STRONG_EVICTING,
    Profile { name: "eventual", cache: CacheKind::Eventual, nodes: (2, 5), ..STRONG_EVICTING },
    Profile { name: "strong-leased", cache: CacheKind::StrongLeased, ..STRONG_EVICTING },
    Profile { name: "strong-two-nodes", nodes: (2, 2), copies: (2, 2), ..STRONG_RECORD },
    Profile {
        name: "strong-churn",
        nodes: (3, 7),
        fault_every: 800 * MS,
        faults: FaultWeights { kill: 6, join: 6, drain: 6, ..EVERYTHING },
        ..STRONG_RECORD
    },
    Profile { name: "strong-slow-network", delay_max: 80 * MS, ..STRONG_RECORD },
    Profile {
        name: "strong-tight-memory",
        memory: Memory::Map(3_000),
        keys: (6, 12),
        padding: 240,
        ..STRONG_RECORD
    },
    Profile { name: "strong-expiry", ttl_share: 0.7, clock_offset_ms: 3_000, ..STRONG_RECORD },
    Profile {
        name: "strong-engine",
        memory: Memory::Engine(4 << 20),
        ttl_share: 0.4,
        ..STRONG_RECORD
    },
    Profile {
        name: "strong-engine-evicting",
        memory: Memory::Engine(4 << 20),
        keys: (60, 120),
        padding: 60_000,
        ..STRONG_EVICTING
    },
    Profile {
        name: "strong-failovers",
        fault_every: 400 * MS,
        faults: FaultWeights { kill: 1, pause: 4, suspicion: 12, ..EVERYTHING },
        ..STRONG_RECORD
    },
    Profile {
        name: "eventual-churn",
        cache: CacheKind::Eventual,
        nodes: (3, 7),
        fault_every: 800 * MS,
        faults: FaultWeights { kill: 4, join: 6, drain: 6, ..EVERYTHING },
        ..STRONG_EVICTING
    },
    Profile {
        name: "eventual-engine",
        cache: CacheKind::Eventual,
        memory: Memory::Engine(4 << 20),
        ..STRONG_EVICTING
    },
];

impl Profile {
    /// The profile with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PROFILES.iter().find(|profile| profile.name == name)
    }

    /// Whether memory is short.
    pub fn is_tight(&self) -> bool {
        matches!(self.memory, Memory::Map(bytes) if bytes < 1 << 16)
    }

    /// Whether its cache is a strong one.
    pub fn is_strong(&self) -> bool {
        self.cache != CacheKind::Eventual
    }
}

/// What a seed makes of a profile.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes at the start.
    pub nodes: u64,
    /// Partitions.
    pub partitions: u32,
    /// The cache.
    pub cache: CacheSpec,
    /// Clients.
    pub clients: u32,
    /// Keys in use at one time.
    pub keys: u32,
    /// Mean pause of a client between two calls.
    pub think: Time,
    /// When all faults end.
    pub heal_at: Time,
    /// The network at the start.
    pub weather: Weather,
    /// Whether links keep the order of messages.
    pub ordered_links: bool,
    /// How wrong clocks run.
    pub drift_ppm: u64,
    /// Settings of the nodes.
    pub config: NodeConfig,
}

/// The number of the one cache.
pub const CACHE: CacheId = CacheId(1);
/// The name of the one cache.
pub const CACHE_NAME: &str = "default";

impl Plan {
    /// Draws the plan of a run.
    pub fn draw(profile: &Profile, rng: &mut Rng) -> Self {
        let nodes = rng.between(profile.nodes.0, profile.nodes.1);
        let copies = rng.between(profile.copies.0, profile.copies.1.min(nodes)) as u8;
        let drift_ppm = 500;
        Self {
            nodes,
            partitions: *rng.pick(&[1, 1, 2, 3]),
            cache: cache(profile.cache, copies, rng),
            clients: rng.between(2, 5) as u32,
            keys: rng.between(profile.keys.0, profile.keys.1) as u32,
            think: rng.between(10, 80) * MS,
            heal_at: rng.between(profile.safety.0, profile.safety.1),
            weather: draw_weather(rng, profile.delay_max),
            ordered_links: rng.chance(0.5),
            drift_ppm,
            config: config(drift_ppm, profile.memory, rng),
        }
    }
}

impl Plan {
    /// What the judges may take for granted.
    pub fn rules(&self, profile: &Profile) -> Rules {
        Rules {
            evicts: self.cache.eviction == Eviction::Evict,
            default_ttl_ms: self.cache.default_ttl_ms,
            // Runs last two minutes at most; the drift of that time is far below this.
            clock_error_ms: profile.clock_offset_ms + 200,
            min_in_sync: self.cache.min_in_sync,
        }
    }
}

fn cache(kind: CacheKind, copies: u8, rng: &mut Rng) -> CacheSpec {
    let strong = kind != CacheKind::Eventual;
    let evicts = matches!(kind, CacheKind::StrongEvicting | CacheKind::Eventual);
    CacheSpec {
        id: CACHE,
        mode: if strong { Mode::Strong } else { Mode::Eventual },
        copies,
        min_in_sync: if evicts { 1 } else { 2 },
        read: match kind {
            CacheKind::StrongLeased => ReadMode::Lease,
            CacheKind::Eventual => *rng.pick(&[ReadMode::Any, ReadMode::Quorum]),
            _ => ReadMode::Confirm,
        },
        acks: *rng.pick(&[Acks::One, Acks::Quorum, Acks::All]),
        eviction: if evicts { Eviction::Evict } else { Eviction::Refuse },
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: String::new(),
        memory: 0,
    }
}

/// Small limits, so that short runs reach them.
fn config(drift_ppm: u64, memory: Memory, rng: &mut Rng) -> NodeConfig {
    let strong = StrongConfig {
        request_timeout_ms: *rng.pick(&[500, 2_000]),
        pending_writes_max: *rng.pick(&[4, 64]),
        shrink_after_ms: *rng.pick(&[300, 1_000]),
        clock_drift_ppm: 2 * drift_ppm,
        // A small memory would otherwise be all reserve, and refuse every write.
        room_reserve_bytes: match memory {
            Memory::Map(bytes) => bytes / 8,
            Memory::Engine(_) => StrongConfig::default().room_reserve_bytes,
        }
        .min(StrongConfig::default().room_reserve_bytes),
        chunk_items: *rng.pick(&[1, 2, 64]),
        chunks_in_flight: *rng.pick(&[1, 4]),
        ..StrongConfig::default()
    };
    let controller = ControllerConfig {
        rebuild_grace_ms: *rng.pick(&[500, 5_000]),
        learners_per_node: *rng.pick(&[1, 4]),
        ..ControllerConfig::default()
    };
    NodeConfig { strong, controller, ..NodeConfig::default() }
}
