//! Who shall hold what, decided anew when the nodes that count change.

use std::collections::BTreeMap;

use super::{ControllerConfig, View, Watched};
use crate::ids::{GroupKey, NodeId, PartitionId};
use crate::placement::{Candidate, place};
use crate::time::Mono;
use crate::topology::{NodeInfo, NodeState, PartitionState, TopologyCommand};

/// Everything about the nodes that placement depends on: a node's number, weight and zone.
type Shape = Vec<(NodeId, u32, String)>;

/// What was decided, and for which nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    /// The nodes that count and since when they are these.
    shape: Option<(Shape, Mono)>,
    decided: BTreeMap<GroupKey, Decision>,
}

/// The owners that were computed for a group. They are not computed again for the same nodes, since
/// a second computation could find another way, and they are proposed whenever the table shows
/// others: a proposal may be lost, and one of an earlier leader may be committed late.
#[derive(Clone, Debug)]
struct Decision {
    shape: Shape,
    owners: Vec<Vec<NodeId>>,
    proposed: Option<Mono>,
}

impl Targets {
    /// Wishes for other owners where the nodes that count are not those that a group was computed
    /// for.
    pub(super) fn decide(
        &mut self,
        config: &ControllerConfig,
        view: &View<'_>,
        nodes: &BTreeMap<NodeId, Watched>,
        commands: &mut Vec<TopologyCommand>,
    ) {
        let shape = shape(config, view, nodes);
        let now = view.now.mono;
        let since = match &self.shape {
            Some((known, since)) if *known == shape => *since,
            _ => now,
        };
        self.shape = Some((shape.clone(), since));
        let is_settled = now.since_ms(since) >= config.settle_ms;
        self.decided.retain(|group, _| view.topology.groups.contains_key(group));
        if shape.is_empty() {
            // Nobody to move to: the wishes stay as they were.
            return;
        }
        for (group, states) in &view.topology.groups {
            let is_new = states.iter().all(|state| state.target.is_empty());
            if self.decided.get(group).is_none_or(|decision| decision.shape != shape) {
                if !is_new && !is_settled {
                    continue;
                }
                let Some(owners) = owners(&shape, *group, states) else { continue };
                let decision = Decision { shape: shape.clone(), owners, proposed: None };
                self.decided.insert(*group, decision);
            }
            let Some(decision) = self.decided.get_mut(group) else { continue };
            let targets: Vec<(PartitionId, Vec<NodeId>)> = (0..)
                .map(PartitionId)
                .zip(decision.owners.iter().zip(states))
                .filter(|(_, (wanted, state))| state.target != **wanted)
                .map(|(partition, (wanted, _))| (partition, wanted.clone()))
                .collect();
            let waits = decision.proposed.is_some_and(|at| now.since_ms(at) < config.retry_ms);
            if !targets.is_empty() && !waits {
                decision.proposed = Some(now);
                commands.push(TopologyCommand::SetTargets { group: *group, targets });
            }
        }
    }
}

/// The nodes that count: those that are ready, and those that are away for a short time only, as
/// far as they held something before. A node that leaves does not count.
fn shape(config: &ControllerConfig, view: &View<'_>, nodes: &BTreeMap<NodeId, Watched>) -> Shape {
    let held = view.topology.nodes_in_targets();
    let counts = |node: &NodeId, info: &NodeInfo| match info.state {
        NodeState::Ready => true,
        NodeState::Draining => false,
        NodeState::Down | NodeState::Joining => {
            let away_since = nodes.get(node).and_then(|watched| watched.away_since);
            let is_short = away_since
                .is_none_or(|since| view.now.mono.since_ms(since) < config.rebuild_grace_ms);
            is_short && held.contains(node)
        }
    };
    view.topology
        .nodes
        .iter()
        .filter(|(node, info)| info.holds_items() && counts(node, info))
        .map(|(node, info)| (*node, info.weight, info.zone.clone()))
        .collect()
}

/// Who should hold each partition of a group.
fn owners(shape: &Shape, group: GroupKey, states: &[PartitionState]) -> Option<Vec<Vec<NodeId>>> {
    let candidates: Vec<Candidate<'_>> = shape
        .iter()
        .map(|(node, weight_milli, zone)| Candidate {
            node: *node,
            weight_milli: *weight_milli,
            zone,
        })
        .collect();
    let is_new = states.iter().all(|state| state.target.is_empty());
    let present: Vec<Vec<NodeId>> =
        if is_new { Vec::new() } else { states.iter().map(|state| state.target.clone()).collect() };
    let partitions = u32::try_from(states.len()).ok()?;
    place(&candidates, partitions, usize::from(group.copies), &present).ok()
}
