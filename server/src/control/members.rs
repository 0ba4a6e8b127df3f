//! Who is in the group, and who votes: brought in line with the table, one step at a time.
//!
//! Every node of the table is a member and learns what is committed; one, three or five of them
//! vote. Adding comes before voting: a node votes only after it has caught up, so that a change of
//! voters never waits for a copy of the log. A voter that is down keeps its vote for a while,
//! because each change is a risk of its own, and for good if no other node could take it: fewer
//! voters are no safer.
//!
//! What is decided here rests on the group's configuration and the table alone. It is decided anew
//! on each look, so a leader that ends between two steps costs nothing but time.

use std::collections::{BTreeMap, BTreeSet};

use kiln_cluster::{
    controller::voters::{VoterCandidate, choose_voters},
    ids::NodeId,
    topology::{NodeInfo, NodeState, Topology},
};

use super::{decree::Seat, reach::peer_address};

/// What the leader sees of the group.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The voters: one set, or two while they change.
    pub(super) voters: Vec<BTreeSet<u64>>,
    /// All members.
    pub(super) seats: BTreeMap<u64, Seat>,
    /// Members that lack next to nothing of the log.
    pub(super) caught_up: BTreeSet<u64>,
    /// Members that are down for so long that another may take their vote.
    pub(super) given_up: BTreeSet<u64>,
}

/// A change of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A node of the table begins to learn.
    Add(u64, Seat),
    /// Others vote. Also ends a change that a former leader began.
    Vote(BTreeSet<u64>),
    /// They are not in the table any more, and do not vote.
    Remove(BTreeSet<u64>),
}

/// The next step, if the group is not as it should be.
pub(super) fn next_step(table: &Topology, seen: &Seen) -> Option<Step> {
    if table.nodes.is_empty() {
        return None;
    }
    let present: BTreeSet<u64> = seen.voters.iter().flatten().copied().collect();
    if let [_, .., last] = seen.voters.as_slice() {
        return Some(Step::Vote(last.clone()));
    }
    let missing = table.nodes.iter().find(|(node, _)| !seen.seats.contains_key(&node.0));
    if let Some((node, info)) = missing {
        return Some(Step::Add(node.0, seat_of(table, *node, info)));
    }
    let wanted = wanted_voters(table, seen, &present);
    // A majority that could not answer would stop the group.
    let reachable = wanted.intersection(&seen.caught_up).count();
    if !wanted.is_empty() && wanted != present && reachable * 2 > wanted.len() {
        return Some(Step::Vote(wanted));
    }
    let gone: BTreeSet<u64> = seen
        .seats
        .keys()
        .copied()
        .filter(|node| !table.nodes.contains_key(&NodeId(*node)) && !present.contains(node))
        .collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}

fn wanted_voters(table: &Topology, seen: &Seen, present: &BTreeSet<u64>) -> BTreeSet<u64> {
    let all = choose(table, seen, present, |_| true);
    let without = choose(table, seen, present, |node| !seen.given_up.contains(&node));
    // One that is given up goes only if that does not make the voters fewer.
    if without.len() >= all.len() { without } else { all }
}

fn choose(
    table: &Topology,
    seen: &Seen,
    present: &BTreeSet<u64>,
    keep: impl Fn(u64) -> bool,
) -> BTreeSet<u64> {
    let candidates: Vec<VoterCandidate<'_>> = table
        .nodes
        .iter()
        .filter(|(node, info)| match info.state {
            NodeState::Draining => false,
            _ if present.contains(&node.0) => keep(node.0),
            NodeState::Joining | NodeState::Ready => seen.caught_up.contains(&node.0),
            NodeState::Down => false,
        })
        .map(|(node, info)| VoterCandidate { node: *node, zone: &info.zone, witness: info.witness })
        .collect();
    let present: Vec<NodeId> = present.iter().map(|node| NodeId(*node)).collect();
    choose_voters(&candidates, &present).into_iter().map(|node| node.0).collect()
}

fn seat_of(table: &Topology, node: NodeId, info: &NodeInfo) -> Seat {
    let address = peer_address(table, node).unwrap_or_default().to_owned();
    Seat { name: info.name.clone(), address }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::{
        ids::{ClusterId, Incarnation, Member},
        topology::{NodeProfile, TopologyCommand},
    };

    use super::*;

    fn table(states: &[(u64, NodeState, bool)]) -> Topology {
        let mut table = Topology::new(ClusterId(1), 8);
        for &(node, state, witness) in states {
            let (node, incarnation) = (NodeId(node), Incarnation(node.saturating_mul(10)));
            let profile = NodeProfile { witness, ..NodeProfile::default() };
            let join = TopologyCommand::Join { node, incarnation, replaces: None, profile };
            table.apply(&join).unwrap();
            let member = Member { node, incarnation };
            let _ = table.apply(&TopologyCommand::SetNodeState { member, state });
        }
        table
    }

    fn ready(nodes: &[u64]) -> Topology {
        table(&nodes.iter().map(|node| (*node, NodeState::Ready, false)).collect::<Vec<_>>())
    }

    fn seen(voters: &[u64], members: &[u64]) -> Seen {
        Seen {
            voters: vec![set(voters)],
            seats: members.iter().map(|node| (*node, Seat::default())).collect(),
            caught_up: set(members),
            given_up: BTreeSet::new(),
        }
    }

    fn set(nodes: &[u64]) -> BTreeSet<u64> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn a_node_of_the_table_learns_before_it_votes() {
        let table = ready(&[1, 2, 3]);
        assert_eq!(next_step(&table, &seen(&[1], &[1, 2])), Some(Step::Add(3, Seat::default())));

        let mut behind = seen(&[1], &[1, 2, 3]);
        behind.caught_up.remove(&3);
        assert_eq!(next_step(&table, &behind), None);

        let all = seen(&[1], &[1, 2, 3]);
        assert_eq!(next_step(&table, &all), Some(Step::Vote(set(&[1, 2, 3]))));
        assert_eq!(next_step(&table, &seen(&[1, 2, 3], &[1, 2, 3])), None);
    }

    #[test]
    fn two_nodes_have_one_voter_and_a_witness_makes_three() {
        assert_eq!(next_step(&ready(&[1, 2]), &seen(&[1], &[1, 2])), None);

        let (a, b) = ((1, NodeState::Ready, false), (2, NodeState::Ready, false));
        let with_witness = table(&[a, b, (9, NodeState::Joining, true)]);
        let step = next_step(&with_witness, &seen(&[1], &[1, 2, 9]));
        assert_eq!(step, Some(Step::Vote(set(&[1, 2, 9]))));
    }

    #[test]
    fn a_change_that_was_begun_is_ended_first() {
        let mut seen = seen(&[1], &[1, 2, 3]);
        seen.voters.push(set(&[1, 2, 3]));
        assert_eq!(next_step(&ready(&[1, 2, 3, 4]), &seen), Some(Step::Vote(set(&[1, 2, 3]))));
    }

    #[test]
    fn a_node_that_leaves_gives_its_vote_to_another_before_it_goes() {
        let (a, b) = ((1, NodeState::Draining, false), (2, NodeState::Ready, false));
        let (c, d) = ((3, NodeState::Ready, false), (4, NodeState::Ready, false));
        let step = next_step(&table(&[a, b, c, d]), &seen(&[1, 2, 3], &[1, 2, 3, 4]));
        assert_eq!(step, Some(Step::Vote(set(&[2, 3, 4]))));
    }

    #[test]
    fn a_node_that_left_the_table_loses_its_vote_and_then_its_seat() {
        let table = ready(&[1, 2, 3]);
        let step = next_step(&table, &seen(&[1, 2, 9], &[1, 2, 3, 9]));
        assert_eq!(step, Some(Step::Vote(set(&[1, 2, 3]))));
        let step = next_step(&table, &seen(&[1, 2, 3], &[1, 2, 3, 9]));
        assert_eq!(step, Some(Step::Remove(set(&[9]))));
    }

    #[test]
    fn a_voter_that_is_down_is_replaced_only_after_the_grace_and_by_another() {
        let (a, b) = ((1, NodeState::Ready, false), (2, NodeState::Ready, false));
        let (c, d) = ((3, NodeState::Down, false), (4, NodeState::Ready, false));
        let four = table(&[a, b, c, d]);
        let mut seen = seen(&[1, 2, 3], &[1, 2, 3, 4]);
        assert_eq!(next_step(&four, &seen), None);

        seen.given_up = set(&[3]);
        assert_eq!(next_step(&four, &seen), Some(Step::Vote(set(&[1, 2, 4]))));

        // Without a fourth the vote stays where it is: one voter alone would be no better.
        seen.seats.remove(&4);
        assert_eq!(next_step(&table(&[a, b, c]), &seen), None);
    }

    #[test]
    fn voters_of_whom_most_could_not_answer_are_never_chosen() {
        let mut seen = seen(&[1, 2, 3], &[1, 2, 3]);
        seen.voters = vec![set(&[1, 2, 3])];
        seen.caught_up = set(&[1]);
        let (a, b) = ((1, NodeState::Draining, false), (2, NodeState::Ready, false));
        let leaving = table(&[a, b, (3, NodeState::Ready, false)]);
        assert_eq!(next_step(&leaving, &seen), None);
    }
}
