//! Settings of the controller.

use serde::{Deserialize, Serialize};

/// How the leader of the controller group goes about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// How often it looks at everything. Adds half of itself to the time a failover takes.
    pub tick_ms: u64,
    /// How soon it looks again when the table has changed, so that a rebalance of many small
    /// partitions does not wait for ticks.
    pub tick_min_ms: u64,
    /// Least time between two rounds of steps that nobody waits for, while clients keep the nodes
    /// busy: copies and primaries that move, and surplus copies that are dropped. Every version of
    /// the table costs every node and every client some work, so what can wait goes together. What
    /// restores service or a lost copy does not wait.
    pub round_every_ms: u64,
    /// Copies a second that are begun only for the sake of balance, all together, while clients keep
    /// the nodes busy: not those that are missing, nor those of a node that is leaving. Each costs
    /// some messages and looks through a store, which requests wait behind.
    pub balance_copies_per_s: u32,
    /// How long a proposal may take before it is made again. Must exceed what the group needs to
    /// commit.
    pub retry_ms: u64,
    /// How long a node may be away before its copies are rebuilt on others. Longer than a restart
    /// takes, so that a restart moves nothing but what the node itself lost; until then partitions
    /// that it held have a copy less.
    pub rebuild_grace_ms: u64,
    /// How long the set of nodes must be stable before partitions are moved for it. Nodes that join
    /// together then cause one rebalance and not several.
    pub settle_ms: u64,
    /// Partitions that one node is filled with at once. More rebuild faster and cost its clients
    /// more.
    pub learners_per_node: usize,
    /// Partitions that one node feeds to others at once. Should not exceed `transfers_max`.
    pub learners_per_source: usize,
    /// Planned moves of primaries in a second, all together. Each refuses writes to its partition
    /// for about a round trip.
    pub primary_moves_per_s: u32,
    /// How long a learner may take before another is tried. Must exceed what the largest partition
    /// needs at the allowed bandwidth.
    pub learner_timeout_ms: u64,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            tick_ms: 50,
            tick_min_ms: 5,
            round_every_ms: 200,
            balance_copies_per_s: 50,
            retry_ms: 500,
            rebuild_grace_ms: 5_000,
            settle_ms: 500,
            learners_per_node: 4,
            learners_per_source: 4,
            primary_moves_per_s: 50,
            learner_timeout_ms: 300_000,
        }
    }
}
