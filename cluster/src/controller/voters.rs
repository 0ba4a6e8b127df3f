//! Which nodes vote in the controller group.
//!
//! A group of `n` voters goes on while more than half of them can talk. Two therefore tolerate
//! nothing, and are twice as likely to stop as one: the number is always odd. With two nodes that
//! hold items a witness makes the third; without one exactly one node votes.

use std::collections::BTreeMap;

use crate::ids::NodeId;

/// Most voters. More make every decision slower and tolerate more failures than come together.
pub const VOTERS_MAX: usize = 5;

/// A node that may vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterCandidate<'a> {
    /// Who it is.
    pub node: NodeId,
    /// Where it stands; empty when not named.
    pub zone: &'a str,
    /// Whether it was started only to vote.
    pub witness: bool,
}

/// The voters among these nodes: one, three or five.
///
/// `present` are the voters as they are. Those still among the candidates stay, because each change
/// of voters is a risk of its own; then witnesses, then nodes of zones that have the fewest voters,
/// the lowest number first. Candidates are nodes that are expected to stay: neither those that
/// leave nor those that are gone for good.
#[must_use]
pub fn choose_voters(candidates: &[VoterCandidate<'_>], present: &[NodeId]) -> Vec<NodeId> {
    let candidates: BTreeMap<NodeId, &VoterCandidate<'_>> =
        candidates.iter().map(|candidate| (candidate.node, candidate)).collect();
    let count = match candidates.len() {
        0 => return Vec::new(),
        1 | 2 => 1,
        3 | 4 => 3,
        _ => VOTERS_MAX,
    };
    let mut chosen: Vec<NodeId> = Vec::with_capacity(count);
    while chosen.len() < count {
        let in_zone =
            |zone: &str| chosen.iter().filter(|voter| candidates[*voter].zone == zone).count();
        let next = candidates
            .values()
            .filter(|candidate| !chosen.contains(&candidate.node))
            .min_by_key(|candidate| {
                // A single vote decides alone: it belongs to a node that also holds items.
                let alone = count == 1 && candidate.witness;
                let stays = present.contains(&candidate.node);
                (alone, !stays, !candidate.witness, in_zone(candidate.zone), candidate.node)
            });
        match next {
            Some(candidate) => chosen.push(candidate.node),
            None => break,
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<'a>(list: &[(u64, &'a str, bool)]) -> Vec<VoterCandidate<'a>> {
        list.iter()
            .map(|&(node, zone, witness)| VoterCandidate { node: NodeId(node), zone, witness })
            .collect()
    }

    fn voters(list: &[(u64, &str, bool)], present: &[u64]) -> Vec<u64> {
        let present: Vec<NodeId> = present.iter().map(|node| NodeId(*node)).collect();
        choose_voters(&nodes(list), &present).into_iter().map(|node| node.0).collect()
    }

    #[test]
    fn the_number_of_voters_is_odd_and_at_most_five() {
        for count in 0..20u64 {
            let list: Vec<_> = (0..count).map(|node| (node, "", false)).collect();
            let voters = voters(&list, &[]);
            let expected = [0, 1, 1, 3, 3, 5];
            assert_eq!(voters.len(), expected[usize::try_from(count.min(5)).unwrap()]);
        }
    }

    #[test]
    fn two_nodes_have_one_voter_and_a_witness_makes_three() {
        assert_eq!(voters(&[(1, "", false), (2, "", false)], &[]), [1]);
        assert_eq!(voters(&[(1, "", false), (2, "", false), (9, "", true)], &[1]), [1, 2, 9]);
    }

    #[test]
    fn a_witness_never_votes_alone_while_a_node_with_items_could() {
        assert_eq!(voters(&[(1, "", true), (2, "", false)], &[1]), [2]);
    }

    #[test]
    fn voters_stay_when_others_come() {
        let list: Vec<_> = (1..=9).map(|node| (node, "", false)).collect();
        assert_eq!(voters(&list, &[5, 7, 9]), [1, 2, 5, 7, 9]);
    }

    #[test]
    fn voters_are_spread_over_zones() {
        let list = [(1, "a", false), (2, "a", false), (3, "b", false), (4, "c", false)];
        assert_eq!(voters(&list, &[]), [1, 3, 4]);
    }

    #[test]
    fn a_voter_that_left_is_replaced_and_the_others_stay() {
        let list: Vec<_> = (2..=4).map(|node| (node, "", false)).collect();
        assert_eq!(voters(&list, &[1, 2, 3]), [2, 3, 4]);
    }
}
