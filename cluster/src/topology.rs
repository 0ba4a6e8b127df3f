//! The one table that all nodes agree on.
//!
//! The controller group replicates commands; each of its members applies them to this object in
//! the same order and so holds the same table. Everything that nodes do to each other's data rests
//! on it: who may order writes, who must confirm them, who may take over.
//!
//! Always true, after every command:
//! - the copies of a partition are distinct, its primary is one of those in sync, and a learner is
//!   not in sync;
//! - every copy in sync and every learner is the present life of a node in the table: a life that
//!   ended is nowhere in it;
//! - `term` rises with each change of the primary, `version` with each change of the partition,
//!   `generation` when the last copy in sync is gone for certain. None of them ever falls.
//! - a copy joins those in sync only by [`TopologyCommand::Promote`], or when there were none.

mod apply;
mod command;
mod view;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{
    CacheId, ClusterId, Epoch, Generation, GroupKey, Incarnation, Member, Mode, NodeId,
    PartitionId, Place, Term,
};
use crate::placement::{HASH_ID, PARTITIONS_MAX, partition_of};

pub use self::command::{
    Applied, COMMANDS_PER_BATCH_MAX, CacheFault, CacheSettings, NodeProfile, Rejected,
    TopologyCommand,
};
pub use self::view::DrainProgress;

/// Most nodes in a table.
pub const NODES_MAX: usize = 1_024;

/// Most caches in a table.
pub const CACHES_MAX: usize = 1_024;

/// Most streams in a table.
pub const STREAMS_MAX: usize = 256;

/// Longest name of a stream, in bytes: its caches are named after it.
pub const STREAM_NAME_LEN_MAX: usize = 56;

/// Longest definition of a stream, in bytes.
pub const STREAM_DEFINITION_LEN_MAX: usize = 16 << 10;

/// Longest name of a cache, in bytes.
pub const CACHE_NAME_LEN_MAX: usize = 64;

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Known, holds nothing yet.
    Joining,
    /// Serves.
    Ready,
    /// Hands over what it holds and takes nothing new.
    Draining,
    /// Believed dead. May be wrong, and nothing that must be right rests on it.
    Down,
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The operator's name of the node.
    pub name: String,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Listener name to address.
    pub addresses: BTreeMap<String, String>,
    /// Share relative to others, in thousandths. 0 holds nothing.
    pub weight: u32,
    /// Failure zone, empty when not named.
    pub zone: String,
    /// Where it stands.
    pub state: NodeState,
    /// Votes, but holds no items.
    pub witness: bool,
}

/// How reads of a strong cache are made sure, or which copies of an eventual one are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadMode {
    /// Strong: a round to the in-sync copies before each answer.
    Confirm,
    /// Strong: by the primary alone while its lease runs. Assumes bounded clock rate drift.
    Lease,
    /// Any copy, perhaps stale.
    Any,
    /// Eventual: a majority of the copies.
    Quorum,
}

/// What happens when memory is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Eviction {
    /// The store drops what its policy names.
    Evict,
    /// Nothing disappears but by delete or expiry; writes are refused.
    Refuse,
}

/// What happens when every copy of a partition is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnLoss {
    /// Serve on, empty; reads tell it once.
    Reset,
    /// Refuse until an operator acknowledged the loss.
    Block,
}

/// After how many copies an eventual write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acks {
    /// The one that took it.
    One,
    /// A majority of the copies.
    Quorum,
    /// All copies.
    All,
}

/// A named cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSpec {
    /// Its number, given when it is created.
    pub id: CacheId,
    /// What it promises.
    pub mode: Mode,
    /// Copies.
    pub copies: u8,
    /// Strong: writes are refused when fewer copies are in sync.
    pub min_in_sync: u8,
    /// How reads are made.
    pub read: ReadMode,
    /// Eventual: when writes are acknowledged.
    pub acks: Acks,
    /// What happens when memory is full.
    pub eviction: Eviction,
    /// What happens when every copy is gone.
    pub on_loss: OnLoss,
    /// Longest value in bytes.
    pub value_len_max: u32,
    /// End of items that are written without one, in milliseconds from the write.
    pub default_ttl_ms: Option<u64>,
    /// Which of its policies the store follows, by name; nothing here depends on it.
    pub policy: String,
    /// Bytes on every node, 0 to let each choose; nothing here depends on it.
    pub memory: u64,
}

impl CacheSpec {
    /// The placement group it belongs to.
    #[must_use]
    pub fn group(&self) -> GroupKey {
        GroupKey { mode: self.mode, copies: self.copies }
    }
}

/// Who holds a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// Rises with each change of the primary.
    pub term: Term,
    /// Rises with each change: what commands compare.
    pub version: u64,
    /// Who orders writes. `None` until the partition is given out, or while none can.
    pub primary: Option<Member>,
    /// Who holds every acknowledged write; the primary is one of them.
    pub in_sync: Vec<Member>,
    /// Who is being filled.
    pub learners: Vec<Member>,
    /// Who shall hold it, the future primary first.
    pub target: Vec<NodeId>,
    /// How often its data were lost.
    pub generation: Generation,
    /// The last loss that an operator acknowledged.
    pub loss_acknowledged: Generation,
}

/// The agreed table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Whose table this is.
    pub cluster_id: ClusterId,
    /// Rises with each change of the table.
    pub epoch: Epoch,
    /// Which hash places keys and partitions.
    pub hash_id: u32,
    /// Partitions of each group.
    pub partitions: u32,
    /// All nodes.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// All caches by name.
    pub caches: BTreeMap<String, CacheSpec>,
    /// Their names by number: each request asks for its cache by that.
    pub cache_names: BTreeMap<CacheId, String>,
    /// The number of the next cache: a number is never used again.
    pub next_cache: CacheId,
    /// Who holds what.
    pub groups: BTreeMap<GroupKey, Vec<PartitionState>>,
    /// All streams of sensor readings: name to definition, in JSON. Nothing here depends on what
    /// it says. Tables written before there were streams have none.
    #[serde(default)]
    pub streams: BTreeMap<String, String>,
}

impl Topology {
    /// An empty table. The number of partitions is fixed for the life of the cluster.
    #[must_use]
    pub fn new(cluster_id: ClusterId, partitions: u32) -> Self {
        Self {
            cluster_id,
            epoch: Epoch(0),
            hash_id: HASH_ID,
            partitions: partitions.clamp(1, PARTITIONS_MAX),
            nodes: BTreeMap::new(),
            caches: BTreeMap::new(),
            cache_names: BTreeMap::new(),
            next_cache: CacheId(1),
            groups: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// The state of a partition.
    #[must_use]
    pub fn partition(&self, place: Place) -> Option<&PartitionState> {
        self.groups.get(&place.group)?.get(place.partition.0 as usize)
    }

    /// The partition of a key.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> PartitionId {
        partition_of(key, self.partitions)
    }

    /// The cache with this number.
    #[must_use]
    pub fn cache(&self, id: CacheId) -> Option<&CacheSpec> {
        // Asked several times for each request, and few clusters have many.
        const FEW: usize = 8;
        if self.caches.len() <= FEW {
            return self.caches.values().find(|spec| spec.id == id);
        }
        self.caches.get(self.cache_names.get(&id)?)
    }

    /// The present life of a node.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.nodes.get(&node).map(|info| Member { node, incarnation: info.incarnation })
    }
}

#[cfg(test)]
pub(crate) mod tests;
