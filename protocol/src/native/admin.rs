//! What is asked and told rarely: hello, caches, topology, figures of a node.
//!
//! Maps with the names of the fields as keys. A field that is missing has its default, one that is
//! not known is passed over, so both sides can grow on their own.

mod cluster;

use serde::{Deserialize, Serialize};

pub use cluster::{
    ClusterChange, ClusterStatus, ControlView, DIGEST_ITEM_PARTITIONS_MAX, DIGEST_KEY_LEN_MAX,
    DigestRequest, Digests, EventView, GroupStatus, ItemDigest, MoveView, NodeStatus,
    PartitionDigest, TransferView, Warning, change,
};

/// Appends a structure as a MessagePack map.
pub fn put<T: Serialize>(out: &mut Vec<u8>, structure: &T) {
    // Writing to memory cannot fail, and these structures have no values that the format lacks.
    let written = rmp_serde::encode::write_named(out, structure);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Reads a structure from a MessagePack map, as [`put`] writes it.
pub fn get<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

/// First word of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// [`MAGIC`](super::MAGIC).
    pub magic: String,
    /// Oldest version that the client speaks.
    pub version_min: u32,
    /// Newest version that the client speaks.
    pub version_max: u32,
    /// What the client is, for logs: `name/version`.
    pub client: String,
    /// Unique for the client's life, chosen at random: retries are known by it. 0 has none.
    pub client_id: u64,
    /// Only a node of this cluster should answer; empty takes any.
    pub cluster_id: String,
    /// Credentials, when the node asks for some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Credentials>,
    /// What the client can do, of [`capability`].
    pub capabilities: Vec<String>,
}

/// A user and the proof.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Names of capabilities. One is used on a connection when both sides named it.
pub mod capability {
    /// Large values may travel compressed.
    pub const LZ4: &str = "lz4";
    /// Reads can be tracked, and invalidations are pushed.
    pub const INVALIDATION: &str = "invalidation";
    /// The topology can be subscribed to.
    pub const TOPOLOGY: &str = "topology";
    /// A retried write with the same `retry` number is answered, not applied again.
    pub const RETRY_WINDOW: &str = "retry_window";
    /// Streams take readings.
    pub const INGEST: &str = "ingest";
}

/// Answer to [`Hello`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// The version spoken from now on.
    pub version: u32,
    /// The node's software: `kiln/version`.
    pub server: String,
    /// The node's name.
    pub node: String,
    /// The node's id in the topology.
    pub node_id: u64,
    /// Changes with each start of the node.
    pub incarnation: u64,
    /// The cluster.
    pub cluster_id: String,
    /// How keys become partitions: 1 is XXH3-64 with seed 0, modulo the number of partitions.
    pub hash_id: u32,
    /// What both sides can do.
    pub capabilities: Vec<String>,
    /// What the node accepts.
    pub limits: Limits,
}

/// What a node accepts from a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Longest frame body, in bytes.
    pub frame_max: u64,
    /// Longest key, in bytes.
    pub key_max: u64,
    /// Longest value, in bytes, inflated.
    pub value_max: u64,
    /// Most operations in one batch.
    pub batch_max: u64,
    /// Most items in one page of a scan.
    pub scan_max: u64,
    /// Most caches that one connection may have open.
    pub handles_max: u64,
    /// Values from this length on are sent compressed where that was agreed, in bytes.
    pub compress_min: u64,
}

/// What a client wants to be told without asking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribe {
    /// The topology, now and whenever it changes.
    pub topology: bool,
}

/// How a cache is, or should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheSpec {
    /// 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit.
    pub name: String,
    /// `strong` or `eventual`.
    pub mode: String,
    /// Copies of each item, on distinct nodes.
    pub copies: u32,
    /// Copies that must be in sync for a write to be accepted.
    pub min_in_sync: u32,
    /// Where reads go: `primary`, `leased` or `any`.
    pub read: String,
    /// What leaves when the cache is full: `adaptive`, `lru`, `lfu` or `none`.
    pub eviction: String,
    /// Memory of the cache on each node, in bytes; 0 lets the node choose.
    pub memory: u64,
    /// Milliseconds that items live when a write names no end; 0 is for ever.
    pub default_ttl_ms: u64,
    /// Longest value, in bytes; 0 is the node's limit.
    pub max_item_size: u64,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            mode: "strong".to_owned(),
            copies: 1,
            min_in_sync: 1,
            read: "leased".to_owned(),
            eviction: "adaptive".to_owned(),
            memory: 0,
            default_ttl_ms: 0,
            max_item_size: 0,
        }
    }
}

/// A cache and its figures on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheInfo {
    /// Its settings.
    pub spec: CacheSpec,
    /// Items now.
    pub items: u64,
    /// Memory used, in bytes.
    pub bytes: u64,
    /// Memory ceiling, in bytes.
    pub memory: u64,
    /// Reads that found their item, since the node started.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Values written.
    pub stores: u64,
    /// Items deleted by request.
    pub deletes: u64,
    /// Items that left for want of room.
    pub evictions: u64,
    /// Items that ended.
    pub expirations: u64,
}

/// Answer to open-cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Opened {
    /// The handle, valid on this connection.
    pub handle: u32,
    /// The cache's settings.
    pub spec: CacheSpec,
}

/// Answer to list-caches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheList {
    /// All caches, by name.
    pub caches: Vec<CacheInfo>,
}

/// Who owns which partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopologyView {
    /// Rises with each change.
    pub epoch: u64,
    /// The cluster.
    pub cluster_id: String,
    /// See [`Welcome::hash_id`].
    pub hash_id: u32,
    /// Number of partitions.
    pub partitions: u32,
    /// The nodes, by id.
    pub nodes: Vec<NodeView>,
    /// Tables of owners; each cache names one.
    pub groups: Vec<GroupView>,
    /// The caches, and which table is theirs.
    pub caches: Vec<CacheView>,
}

/// Which topology it is: of a [`TopologyView`] what tells whether the rest is worth reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TopologyStamp {
    /// Rises with each change.
    pub epoch: u64,
    /// The cluster.
    pub cluster_id: String,
}

/// A node as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `joining`, `ready`, `draining` or `down`.
    pub state: String,
    /// Its zone, or empty.
    pub zone: String,
    /// Its share of the keys, relative to others.
    pub weight: f64,
    /// Where native clients connect, as `host:port`; empty for nowhere.
    pub native: String,
    /// Where memcached clients connect.
    pub memcached: String,
    /// Where HTTP clients connect.
    pub http: String,
}

/// Owners of the partitions of a group of caches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupView {
    /// `strong` or `eventual`.
    pub mode: String,
    /// Copies of each partition.
    pub copies: u32,
    /// For each partition the places in [`TopologyView::nodes`], primary first; empty when lost.
    pub owners: Vec<Vec<u32>>,
}

/// A cache in the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheView {
    /// Its name.
    pub name: String,
    /// Its place in [`TopologyView::groups`].
    pub group: u32,
    /// Where reads go: `primary`, `leased` or `any`.
    pub read: String,
}

/// Figures of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The software: version and commit.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Worker threads.
    pub threads: u32,
    /// Memory ceiling, in bytes.
    pub memory: u64,
    /// Memory the process has resident, in bytes.
    pub resident: u64,
    /// CPU time used so far, user and system, in microseconds.
    pub cpu_us: u64,
    /// Connections open now.
    pub connections: u64,
    /// Connections since the start.
    pub connections_total: u64,
    /// Most connections allowed.
    pub connections_max: u64,
    /// Bytes read from clients.
    pub bytes_read: u64,
    /// Bytes written to clients.
    pub bytes_written: u64,
    /// Operations on items by protocol.
    pub operations: Vec<ProtocolInfo>,
    /// Caches with their figures.
    pub caches: Vec<CacheInfo>,
    /// Keys read most, of late, by estimate; empty when not watched.
    pub hottest: Vec<KeyInfo>,
    /// Keys with the largest values seen in a sample.
    pub largest: Vec<KeyInfo>,
}

/// Operations of one protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProtocolInfo {
    /// `memcached`, `native` or `http`.
    pub protocol: String,
    /// Operations since the start.
    pub operations: u64,
    /// Time from a batch's first byte read to its last reply written, in microseconds, as
    /// quantiles over the last seconds: `[p50, p99, p999, max]`; empty when not measured.
    pub latency_us: Vec<f64>,
}

/// A key that stands out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyInfo {
    /// The cache.
    pub cache: String,
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Reads by estimate, or bytes.
    pub amount: u64,
}
