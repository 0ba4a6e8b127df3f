//! The cluster in figures, worked out from the table when someone asks.

use kiln_cluster::{
    ids::{Mode, NodeId},
    topology::{NodeState, Topology},
};

/// What the table says, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Nodes by state: joining, ready, draining, down.
    pub(crate) nodes: [usize; 4],
    /// Partitions of all groups.
    pub(crate) partitions: usize,
    /// Partitions with fewer copies than are promised, as far as there are nodes for them.
    pub(crate) short: usize,
    /// Strong partitions that nobody orders writes for.
    pub(crate) headless: usize,
    /// Copies that are being filled.
    pub(crate) filling: usize,
    /// Times that data of a partition were lost.
    pub(crate) losses: u64,
    /// Partitions that a node leads.
    pub(crate) led: usize,
    /// Copies in sync that it holds.
    pub(crate) held: usize,
}

impl Figures {
    /// Those of a table, with what `me` has of it. Cost: one pass over all partitions.
    pub(crate) fn of(topology: &Topology, me: NodeId) -> Self {
        let mut figures = Self::default();
        let mut holders = 0;
        for info in topology.nodes.values() {
            figures.nodes[info.state as usize] += 1;
            let stays = matches!(info.state, NodeState::Joining | NodeState::Ready);
            holders += usize::from(stays && info.holds_items());
        }
        for (place, state) in topology.places() {
            figures.partitions += 1;
            let wanted = usize::from(place.group.copies).min(holders.max(1));
            figures.short += usize::from(state.in_sync.len() < wanted);
            let headless = place.group.mode == Mode::Strong && state.primary.is_none();
            figures.headless += usize::from(headless);
            figures.filling += state.learners.len();
            figures.losses += state.generation.0;
            let leads = state.primary.is_some_and(|primary| primary.node == me);
            figures.led += usize::from(leads);
            figures.held += usize::from(state.in_sync.iter().any(|member| member.node == me));
        }
        figures
    }

    /// Why this node should not be sent requests, if it should not.
    pub(crate) fn trouble(&self, state: Option<NodeState>) -> Option<String> {
        match state {
            None => return Some("not in the cluster's table".to_owned()),
            Some(NodeState::Joining) => return Some("joining".to_owned()),
            Some(NodeState::Draining) => return Some("handing over".to_owned()),
            Some(NodeState::Down) => return Some("not heard by the controller".to_owned()),
            Some(NodeState::Ready) => {}
        }
        (self.headless > 0).then(|| format!("{} partitions cannot be written", self.headless))
    }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::ids::ClusterId;

    use super::*;

    #[test]
    fn a_node_that_is_not_in_the_table_is_in_trouble() {
        let figures = Figures::of(&Topology::new(ClusterId(1), 4), NodeId(1));
        assert_eq!(figures, Figures::default());
        assert!(
            figures.trouble(None).is_some() && figures.trouble(Some(NodeState::Down)).is_some()
        );
        assert_eq!(figures.trouble(Some(NodeState::Ready)), None);
        let headless = Figures { headless: 3, ..figures };
        assert!(headless.trouble(Some(NodeState::Ready)).unwrap().starts_with("3 partitions"));
    }
}
