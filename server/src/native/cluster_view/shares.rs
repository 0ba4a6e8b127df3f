//! Partitions counted: by how well they are kept, by who keeps them, by what is still to be moved.

use std::collections::BTreeMap;

use kiln_cluster::{
    ids::{GroupKey, NodeId},
    topology::{PartitionState, Topology},
};
use kiln_protocol::native::admin::{GroupStatus, MoveView};

use super::{groups_in_use, mode_name};

/// What a node has of all groups together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) led: u64,
    pub(super) held: u64,
    pub(super) filling: u64,
    pub(super) wanted: u64,
    pub(super) last_copies: u64,
}

/// The counts.
pub(super) struct Shares {
    pub(super) groups: Vec<GroupStatus>,
    pub(super) nodes: BTreeMap<NodeId, Held>,
}

pub(super) fn count(topology: &Topology) -> Shares {
    let mut nodes: BTreeMap<NodeId, Held> = BTreeMap::new();
    let holders = topology
        .nodes
        .iter()
        .filter(|(id, info)| info.holds_items() && topology.is_up(**id))
        .count();
    let groups = groups_in_use(topology).into_iter().map(|key| {
        let mut group = GroupStatus {
            mode: mode_name(key.mode).to_owned(),
            copies: key.copies.into(),
            copies_possible: u32::try_from(holders.min(key.copies.into())).unwrap_or(u32::MAX),
            caches: caches_of(topology, key),
            ..GroupStatus::default()
        };
        let mut moves = BTreeMap::new();
        for state in topology.groups.get(&key).into_iter().flatten() {
            judge(topology, key, state, &mut group);
            hold(state, &mut nodes);
            find_moves(state, &mut moves);
        }
        group.moves = moves
            .into_iter()
            .map(|((what, from, to), partitions)| MoveView {
                from: from.map_or(0, |node: NodeId| node.0),
                to: to.map_or(0, |node: NodeId| node.0),
                what: what.to_owned(),
                partitions,
            })
            .collect();
        group
    });
    Shares { groups: groups.collect(), nodes }
}

fn caches_of(topology: &Topology, group: GroupKey) -> Vec<String> {
    let caches = topology.caches.iter().filter(|(_, spec)| spec.group() == group);
    caches.map(|(name, _)| name.clone()).collect()
}

fn judge(topology: &Topology, key: GroupKey, state: &PartitionState, group: &mut GroupStatus) {
    let is_served = state.primary.is_some_and(|primary| topology.is_up(primary.node));
    let copies = state.in_sync.iter().filter(|member| topology.is_up(member.node)).count();
    if !is_served {
        group.without_primary += 1;
    } else if copies >= usize::from(key.copies) {
        group.whole += 1;
    } else {
        group.short += 1;
    }
    group.lost += u64::from(state.has_unacknowledged_loss());
    group.copies_wanted += state.target.len() as u64;
    let there = state.target.iter().filter(|node| holds(state, **node));
    group.copies_there += there.count() as u64;
}

fn hold(state: &PartitionState, nodes: &mut BTreeMap<NodeId, Held>) {
    for member in &state.in_sync {
        let held = nodes.entry(member.node).or_default();
        held.held += 1;
        held.led += u64::from(state.primary == Some(*member));
        held.last_copies += u64::from(state.in_sync.len() == 1);
    }
    for member in &state.learners {
        nodes.entry(member.node).or_default().filling += 1;
    }
    for node in &state.target {
        nodes.entry(*node).or_default().wanted += 1;
    }
}

fn holds(state: &PartitionState, node: NodeId) -> bool {
    state.in_sync.iter().any(|member| member.node == node)
}

/// A kind of move, from where and to where.
type Move = (&'static str, Option<NodeId>, Option<NodeId>);

/// What lies between the copies that there are and those that are wanted. Which copy goes where
/// does not matter to anyone; nodes that lose one are set beside nodes that gain one.
fn find_moves(state: &PartitionState, moves: &mut BTreeMap<Move, u64>) {
    let Some(first) = state.target.first() else { return };
    let mut lose =
        state.in_sync.iter().map(|member| member.node).filter(|node| !state.target.contains(node));
    let gain: Vec<NodeId> =
        state.target.iter().copied().filter(|node| !holds(state, *node)).collect();
    for to in &gain {
        *moves.entry(("copy", lose.next(), Some(*to))).or_default() += 1;
    }
    for from in lose {
        *moves.entry(("copy", Some(from), None)).or_default() += 1;
    }
    if let Some(primary) = state.primary
        && primary.node != *first
        && state.target.contains(&primary.node)
        && holds(state, *first)
    {
        *moves.entry(("primary", Some(primary.node), Some(*first))).or_default() += 1;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kiln_cluster::{
        ids::{CacheId, ClusterId, Incarnation, Member, Mode, PartitionId, Place},
        topology::{
            Acks, CacheSpec, Eviction, NodeProfile, NodeState, OnLoss, ReadMode, TopologyCommand,
        },
    };

    use super::*;

    pub(in super::super) fn member(node: NodeId) -> Member {
        Member { node, incarnation: Incarnation(node.0 * 10) }
    }

    /// Three nodes, four partitions with two copies: one is whole and led by the wrong node, one
    /// has a copy that is being made, one a copy too many in the wrong place, one is not given out.
    pub(in super::super) fn table() -> (Topology, [NodeId; 3]) {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let mut topology = Topology::new(ClusterId(7), 4);
        let mut apply = |command: TopologyCommand| {
            topology.apply(&command).unwrap();
        };
        for (node, name) in nodes.into_iter().zip(["a", "b", "c"]) {
            let addresses = [("native".to_owned(), format!("{name}:7311"))];
            apply(TopologyCommand::Join {
                node,
                incarnation: member(node).incarnation,
                replaces: None,
                profile: NodeProfile {
                    name: name.to_owned(),
                    addresses: addresses.into_iter().collect(),
                    weight: 1_000,
                    ..NodeProfile::default()
                },
            });
            let state = NodeState::Ready;
            apply(TopologyCommand::SetNodeState { member: member(node), state });
        }
        let spec = CacheSpec {
            id: CacheId(0),
            mode: Mode::Strong,
            copies: 2,
            min_in_sync: 1,
            read: ReadMode::Lease,
            acks: Acks::One,
            eviction: Eviction::Evict,
            on_loss: OnLoss::Reset,
            value_len_max: 1_024,
            default_ttl_ms: None,
            policy: "lru".to_owned(),
            memory: 0,
        };
        let group = spec.group();
        apply(TopologyCommand::CreateCache { name: "default".to_owned(), spec });
        let [a, b, c] = nodes;
        let targets = [vec![a, b], vec![a, c], vec![a, b]];
        let targets = (0..).map(PartitionId).zip(targets).collect();
        apply(TopologyCommand::SetTargets { group, targets });
        let place = |partition| Place { group, partition: PartitionId(partition) };
        for (partition, members) in [(0, vec![b, a]), (1, vec![a]), (2, vec![a, c])] {
            let members = members.into_iter().map(member).collect();
            let version = 1;
            apply(TopologyCommand::Assign { place: place(partition), version, members });
        }
        let version = 2;
        apply(TopologyCommand::AddLearner { place: place(1), version, member: member(c) });
        (topology, nodes)
    }

    #[test]
    fn partitions_are_whole_short_or_not_served() {
        let (mut topology, [a, ..]) = table();
        let group = &count(&topology).groups[0];
        assert_eq!((group.whole, group.short, group.without_primary, group.lost), (2, 1, 1, 0));
        assert_eq!((group.copies, group.copies_possible), (2, 2));
        assert_eq!((group.copies_wanted, group.copies_there), (6, 4));
        assert_eq!(group.caches, ["default"]);

        // A node that is not heard serves nothing, and its copies do not count.
        let state = NodeState::Down;
        topology.apply(&TopologyCommand::SetNodeState { member: member(a), state }).unwrap();
        let group = &count(&topology).groups[0];
        assert_eq!((group.whole, group.short, group.without_primary), (0, 1, 3));
    }

    #[test]
    fn nodes_have_what_they_lead_hold_and_are_filled_with() {
        let (topology, [a, b, c]) = table();
        let nodes = count(&topology).nodes;
        let held = |led, held, filling, wanted, last_copies| Held {
            led,
            held,
            filling,
            wanted,
            last_copies,
        };
        assert_eq!(nodes[&a], held(2, 3, 0, 3, 1));
        assert_eq!(nodes[&b], held(1, 1, 0, 2, 0));
        assert_eq!(nodes[&c], held(0, 1, 1, 1, 0));
    }

    #[test]
    fn what_is_still_to_be_moved_is_the_difference_of_copies_and_targets() {
        let (topology, [a, b, c]) = table();
        let moves = &count(&topology).groups[0].moves;
        let moved = |from: u64, to: u64, what: &str| MoveView {
            from,
            to,
            what: what.to_owned(),
            partitions: 1,
        };
        assert_eq!(
            *moves,
            [moved(0, c.0, "copy"), moved(c.0, b.0, "copy"), moved(b.0, a.0, "primary")]
        );
    }
}
