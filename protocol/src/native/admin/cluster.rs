//! What operators ask of a cluster: how it is, that it changes, whether its copies are equal.
//!
//! All of it is maps with the names of the fields as keys, as in the rest of [`admin`](super); a
//! field that is missing has its default. Nodes are named by their ids, which do not change when a
//! node is restarted with its data directory.

use serde::{Deserialize, Serialize};

/// The cluster, as one of its nodes sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster_id: String,
    /// Of the table that this was read from.
    pub epoch: u64,
    /// Number of partitions of each group.
    pub partitions: u32,
    /// The node that tells this.
    pub node_id: u64,
    /// Its clock, in milliseconds since 1970: what the times below are to be compared with.
    pub now_ms: u64,
    /// Who decides about the table.
    pub control: ControlView,
    /// All nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// All placement groups that have a cache.
    pub groups: Vec<GroupStatus>,
    /// Copies that the node which tells this fills on others.
    pub transfers: Vec<TransferView>,
    /// What happened lately as that node noted it, oldest first.
    pub events: Vec<EventView>,
    /// What an operator should know, worst first; empty when all is well.
    pub warnings: Vec<Warning>,
}

/// The controller group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlView {
    /// The node that decides; 0 when none is known.
    pub leader: u64,
    /// Rises with each election.
    pub term: u64,
    /// Who votes.
    pub voters: Vec<u64>,
    /// Milliseconds since a majority answered, told by the leader only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub majority_answered_ms_ago: Option<u64>,
    /// Whether the node that tells this keeps its part on disk.
    pub durable: bool,
}

/// A node, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its present life: another one after each start.
    pub incarnation: u64,
    /// `joining`, `ready`, `draining` or `down`.
    pub state: String,
    /// Its zone, or empty.
    pub zone: String,
    /// Its share of the keys, relative to others; 0 holds none.
    pub weight: f64,
    /// It votes and holds no keys.
    pub witness: bool,
    /// Where native clients connect, as `host:port`; empty for nowhere.
    pub native: String,
    /// Where memcached clients connect.
    pub memcached: String,
    /// Where HTTP clients connect.
    pub http: String,
    /// Where other nodes connect.
    pub peer: String,
    /// Milliseconds since it was heard, by the node that tells this; nil when it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_ms_ago: Option<u64>,
    /// Operations in the last second.
    pub operations_per_s: u64,
    /// Of its processors, 0 to 1.
    pub busy: f64,
    /// Bytes in use for items.
    pub memory_used: u64,
    /// Bytes that items may use.
    pub memory_limit: u64,
    /// Partitions that it orders writes for.
    pub led: u64,
    /// Partitions of which it has a full copy.
    pub held: u64,
    /// Partitions that it is being filled with.
    pub filling: u64,
    /// Partitions that it shall have.
    pub wanted: u64,
    /// Of the full copies, how many are the only one there is.
    pub last_copies: u64,
}

/// A placement group: caches of one mode with as many copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupStatus {
    /// `strong` or `eventual`.
    pub mode: String,
    /// Copies that are promised.
    pub copies: u32,
    /// Copies that the present nodes can have: fewer when there are not enough of them.
    pub copies_possible: u32,
    /// Its caches, by name.
    pub caches: Vec<String>,
    /// Partitions with all copies that are promised.
    pub whole: u64,
    /// Partitions that are served with fewer.
    pub short: u64,
    /// Partitions that nobody serves at the moment.
    pub without_primary: u64,
    /// Partitions that lost all copies at least once, and no operator has acknowledged it.
    pub lost: u64,
    /// Copies that the targets want.
    pub copies_wanted: u64,
    /// How many of those are there.
    pub copies_there: u64,
    /// What is still to be moved so that all is where the controller wants it.
    pub moves: Vec<MoveView>,
}

/// Copies of partitions that are still to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveView {
    /// From this node; 0 when a missing copy is made again.
    pub from: u64,
    /// To this node; 0 when a copy too many is dropped.
    pub to: u64,
    /// `copy`, or `primary` when only the order of writes moves.
    pub what: String,
    /// How many partitions.
    pub partitions: u64,
}

/// A copy that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferView {
    /// Mode of its group.
    pub mode: String,
    /// Copies of its group.
    pub copies: u32,
    /// The partition.
    pub partition: u32,
    /// From this node.
    pub from: u64,
    /// To this node.
    pub to: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// When it began, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventView {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What, in plain words.
    pub text: String,
}

/// Something that an operator should know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// `error`: data or service are lost now; `warning`: the next failure would cost some; `note`.
    pub level: String,
    /// What is so, in plain words.
    pub text: String,
    /// What to do.
    pub advice: String,
}

/// A change that an operator asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterChange {
    /// One of [`change`].
    pub action: String,
    /// The node it is about.
    pub node: u64,
    /// The life of that node that is meant, so that one which has just restarted is not hit by
    /// mistake; 0 is the present one.
    pub incarnation: u64,
    /// The new weight.
    pub weight: f64,
    /// Do it although the node is in use.
    pub force: bool,
}

/// What [`ClusterChange::action`] can be.
pub mod change {
    /// The node hands over all it holds and takes nothing new.
    pub const DRAIN: &str = "drain";
    /// The node is used again.
    pub const UNDO_DRAIN: &str = "undo-drain";
    /// The node is gone for good. Refused while it is up and holds something, unless forced.
    pub const REMOVE: &str = "remove";
    /// The node is given another weight.
    pub const WEIGHT: &str = "weight";
    /// Losses of data were seen by an operator: caches that block on a loss go on.
    pub const ACKNOWLEDGE_LOSS: &str = "acknowledge-loss";
}

/// Asks a node for digests of its own copies of a cache, a step at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DigestRequest {
    /// The cache.
    pub cache: String,
    /// Where the last step ended; nil begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
    /// Items that end before this are left out, in milliseconds since 1970: copies may end them
    /// at different moments.
    pub ends_after_ms: u64,
    /// Only these partitions; empty takes all.
    pub partitions: Vec<u32>,
    /// Tell each item as well. At most [`DIGEST_ITEM_PARTITIONS_MAX`] partitions can be asked then.
    pub items: bool,
}

/// Partitions whose items can be asked for at once.
pub const DIGEST_ITEM_PARTITIONS_MAX: usize = 64;

/// Bytes of a key that are told.
pub const DIGEST_KEY_LEN_MAX: usize = 128;

/// A step through a node's copies of a cache. Sums of several steps are added up, wrapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Digests {
    /// Where to go on; nil when the step was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
    /// What was seen, by partition.
    pub partitions: Vec<PartitionDigest>,
    /// The items, if they were asked for.
    pub items: Vec<ItemDigest>,
}

/// Some items of a partition. Equal contents give equal numbers whatever their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionDigest {
    /// The partition.
    pub partition: u32,
    /// Items.
    pub items: u64,
    /// Sum of the digests of its items, modulo 2^64.
    pub sum: u64,
}

/// One item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ItemDigest {
    /// Its partition.
    pub partition: u32,
    /// Hash of its key, by which it is known.
    pub hash: u64,
    /// Its key, or as much of it as [`DIGEST_KEY_LEN_MAX`].
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Digest of key, version, flags, end and value.
    pub digest: u64,
}
