//! What people and programs want to know of the cluster, gathered by the driver now and then.

use std::collections::BTreeMap;

use kiln_cluster::ids::{Member, NodeId, Place};

/// Something that happened, in plain words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// What.
    pub(crate) text: String,
}

/// The cluster as this node sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overview {
    /// What other nodes said of themselves, and when.
    pub(crate) nodes: BTreeMap<NodeId, NodeOverview>,
    /// Copies that this node is filling.
    pub(crate) transfers: Vec<Transfer>,
    /// Who leads the controller group, as far as is known here.
    pub(crate) controller: Option<NodeId>,
    /// Requests that wait for the core.
    pub(crate) waiting: usize,
    /// What happened since the node started.
    pub(crate) counts: Counts,
}

/// What happened since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Copies that this node filled.
    pub(crate) filled: u64,
    /// Bytes of them.
    pub(crate) filled_bytes: u64,
    /// Partitions that it began to lead.
    pub(crate) takeovers: u64,
    /// Messages of other lives or clusters that were dropped.
    pub(crate) foreign: u64,
}

/// Another node, or this one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct NodeOverview {
    /// Milliseconds since it was heard.
    pub(crate) heard_ms_ago: u64,
    /// Operations in the last second.
    pub(crate) operations_per_s: u32,
    /// Of its processors, in thousandths.
    pub(crate) busy_milli: u32,
    /// Bytes in use for items.
    pub(crate) memory_used: u64,
    /// Bytes that items may use.
    pub(crate) memory_limit: u64,
}

/// A copy that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Of which partition.
    pub(crate) place: Place,
    /// On which node.
    pub(crate) to: Member,
    /// Bytes confirmed.
    pub(crate) bytes: u64,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
}
