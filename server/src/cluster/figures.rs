//! The cluster in figures, worked out from the table when someone asks.

use kiln_cluster::{
    ids::{Mode, NodeId},
    topology::{NodeState, PartitionState, Topology},
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
    /// Partitions whose copies are not, or not only, on the nodes that shall have them, or that
    /// another of these shall lead.
    pub(crate) misplaced: usize,
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
            figures.misplaced += usize::from(!is_in_place(state));
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

/// Whether nothing is to be moved.
fn is_in_place(state: &PartitionState) -> bool {
    let Some(primary) = state.primary else { return false };
    let holds = |node: &NodeId| state.in_sync.iter().any(|member| member.node == *node);
    state.target.first() == Some(&primary.node)
        && state.in_sync.len() == state.target.len()
        && state.learners.is_empty()
        && state.target.iter().all(holds)
}

#[cfg(test)]
mod tests {
    use kiln_cluster::ids::{ClusterId, Incarnation, Member};

    use super::*;

    #[test]
    fn a_partition_is_in_place_when_those_hold_it_that_shall_and_the_first_of_them_leads_it() {
        let member = |node| Member { node: NodeId(node), incarnation: Incarnation(1) };
        let placed = PartitionState {
            primary: Some(member(1)),
            in_sync: vec![member(2), member(1)],
            target: vec![NodeId(1), NodeId(2)],
            ..PartitionState::default()
        };
        assert!(is_in_place(&placed));
        let target = vec![NodeId(2), NodeId(1)];
        assert!(!is_in_place(&PartitionState { target, ..placed.clone() }));
        let target = vec![NodeId(1), NodeId(3)];
        assert!(!is_in_place(&PartitionState { target, ..placed.clone() }));
        let in_sync = vec![member(2), member(1), member(3)];
        assert!(!is_in_place(&PartitionState { in_sync, ..placed.clone() }));
        assert!(!is_in_place(&PartitionState { learners: vec![member(3)], ..placed.clone() }));
        assert!(!is_in_place(&PartitionState { primary: None, ..placed }));
    }

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
