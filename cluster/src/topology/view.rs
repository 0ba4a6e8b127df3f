//! Questions that others ask of the table.

use std::collections::BTreeSet;

use super::{NodeInfo, NodeState, PartitionState, Topology};
use crate::ids::{Member, NodeId, PartitionId, Place};

/// How far a node is with handing over what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// Partitions that it orders writes for.
    pub led: usize,
    /// Partitions of which it holds a copy in sync.
    pub held: usize,
    /// Of those, how many have no other copy in sync: they would be lost if it left now.
    pub last_copies: usize,
}

impl DrainProgress {
    /// Whether the node can leave without a miss.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.held == 0
    }
}

impl NodeInfo {
    /// Whether it may hold items at all.
    #[must_use]
    pub fn holds_items(&self) -> bool {
        !self.witness && self.weight > 0
    }
}

impl PartitionState {
    /// Whether this member is in sync or being filled.
    #[must_use]
    pub fn involves(&self, member: Member) -> bool {
        self.in_sync.contains(&member) || self.learners.contains(&member)
    }

    /// All members that hold or are being filled with it, those in sync first.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.in_sync.iter().chain(&self.learners).copied()
    }

    /// Whether data were lost that no operator has acknowledged yet.
    #[must_use]
    pub fn has_unacknowledged_loss(&self) -> bool {
        self.generation > self.loss_acknowledged
    }
}

impl Topology {
    /// All partitions of all groups, in a fixed order.
    pub fn places(&self) -> impl Iterator<Item = (Place, &PartitionState)> + '_ {
        self.groups.iter().flat_map(|(group, states)| {
            (0..).zip(states).map(|(partition, state)| {
                (Place { group: *group, partition: PartitionId(partition) }, state)
            })
        })
    }

    /// Whether this is the present life of a node in the table.
    #[must_use]
    pub fn is_present(&self, member: Member) -> bool {
        self.member(member.node) == Some(member)
    }

    /// Nodes that share a partition with this one: copies, learners and future owners.
    #[must_use]
    pub fn neighbours(&self, node: NodeId) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        for (_, state) in self.places() {
            let all = || state.members().map(|m| m.node).chain(state.target.iter().copied());
            if all().any(|n| n == node) {
                found.extend(all());
            }
        }
        found.remove(&node);
        found.retain(|n| self.nodes.contains_key(n));
        found
    }

    /// Nodes that shall hold something.
    #[must_use]
    pub fn nodes_in_targets(&self) -> BTreeSet<NodeId> {
        self.places().flat_map(|(_, state)| state.target.iter().copied()).collect()
    }

    /// Nodes that hold something, are being filled, or shall hold something.
    #[must_use]
    pub fn nodes_in_use(&self) -> BTreeSet<NodeId> {
        let held = self.places().flat_map(|(_, state)| state.members().map(|member| member.node));
        held.chain(self.nodes_in_targets()).collect()
    }

    /// How far a node is with handing over. A node that is not in the table has nothing left.
    #[must_use]
    pub fn drain_progress(&self, node: NodeId) -> DrainProgress {
        let mut progress = DrainProgress::default();
        let Some(member) = self.member(node) else { return progress };
        for (_, state) in self.places() {
            progress.led += usize::from(state.primary == Some(member));
            if state.in_sync.contains(&member) {
                progress.held += 1;
                progress.last_copies += usize::from(state.in_sync.len() == 1);
            }
        }
        progress
    }

    /// Whether a node is in the table and not believed dead.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|info| info.state != NodeState::Down)
    }

    /// What the table must always be; the broken rule if it is not. For tests and for a node that
    /// reads a table from disk.
    pub fn check(&self) -> Result<(), &'static str> {
        for states in self.groups.values() {
            if states.len() != self.partitions as usize {
                return Err("a group has an entry for each partition");
            }
        }
        let named = |(name, spec): (&String, &super::CacheSpec)| {
            self.cache_names.get(&spec.id) == Some(name)
        };
        if self.cache_names.len() != self.caches.len() || !self.caches.iter().all(named) {
            return Err("each cache is found by its number");
        }
        for (_, state) in self.places() {
            let distinct: BTreeSet<Member> = state.members().collect();
            if distinct.len() != state.in_sync.len() + state.learners.len() {
                return Err("the copies and learners of a partition are distinct");
            }
            if !distinct.iter().all(|member| self.is_present(*member)) {
                return Err("only present lives hold copies");
            }
            match state.primary {
                Some(primary) if !state.in_sync.contains(&primary) => {
                    return Err("the primary is in sync");
                }
                None if !state.in_sync.is_empty() => return Err("a held partition has a primary"),
                _ => {}
            }
            if state.in_sync.is_empty() && !state.learners.is_empty() {
                return Err("learners are filled from a copy in sync");
            }
            let targets: BTreeSet<NodeId> = state.target.iter().copied().collect();
            if targets.len() != state.target.len() {
                return Err("targets are distinct");
            }
            if state.loss_acknowledged > state.generation {
                return Err("only what was lost is acknowledged");
            }
        }
        Ok(())
    }
}
