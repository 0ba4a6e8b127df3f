//! What an operator asks the controller group for.
//!
//! Asking for what is so already succeeds, so that scripts can be run again. What would lose data
//! is refused unless it is forced, and a node that restarted since the operator looked is not hit
//! if the operator named its life.

use std::pin::Pin;

use kiln_cluster::{
    ids::{Member, NodeId},
    topology::{NodeState, Topology, TopologyCommand},
};
use kiln_protocol::native::{
    ErrorCode,
    admin::{ClusterChange, change as action},
};

use crate::cluster::Cluster;

/// The largest weight, in thousandths.
const WEIGHT_MILLI_MAX: f64 = 1_000_000.0;

type Answer = Result<(), (ErrorCode, String)>;

/// What is to be decided, and what the table shows when it was.
struct Wish {
    command: TopologyCommand,
    shows: Box<dyn Fn(&Topology) -> bool + Send + Sync>,
}

/// Brings a change before the controller group.
pub(crate) fn change(
    cluster: &Cluster,
    change: &ClusterChange,
) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    let wish = wish(&cluster.topology(), change);
    match wish {
        Ok(Some(Wish { command, shows })) => cluster.decide(command, shows),
        Ok(None) => Box::pin(async { Ok(()) }),
        Err(refusal) => Box::pin(async { Err(refusal) }),
    }
}

/// `None` when it is so already.
fn wish(topology: &Topology, change: &ClusterChange) -> Result<Option<Wish>, (ErrorCode, String)> {
    let bad = |text: String| Err((ErrorCode::BadArgument, text));
    if change.action == action::ACKNOWLEDGE_LOSS {
        return Ok(acknowledge_loss(topology));
    }
    let node = NodeId(change.node);
    let Some(info) = topology.nodes.get(&node) else {
        if change.action == action::REMOVE {
            return Ok(None);
        }
        return bad(format!("there is no node {node} in the cluster"));
    };
    let member = Member { node, incarnation: info.incarnation };
    if change.incarnation != 0 && change.incarnation != member.incarnation.0 {
        return bad(format!("{} was restarted meanwhile; look again", info.name));
    }
    match &*change.action {
        action::DRAIN => match info.state {
            NodeState::Draining => Ok(None),
            NodeState::Down => bad(format!(
                "{} is down and cannot hand anything over; start it, or remove it",
                info.name
            )),
            NodeState::Joining | NodeState::Ready => {
                if topology.drain_progress(node).held > 0 && !has_heirs(topology, node) {
                    let text = format!("there is no other node to take what {} holds", info.name);
                    return bad(text);
                }
                Ok(Some(set_state(member, NodeState::Draining)))
            }
        },
        action::UNDO_DRAIN => match info.state {
            NodeState::Draining => Ok(Some(set_state(member, NodeState::Ready))),
            _ => Ok(None),
        },
        action::REMOVE => {
            let held = topology.drain_progress(node).held;
            if info.state != NodeState::Down && held > 0 && !change.force {
                let text = format!(
                    "{} is up and holds {held} partitions; drain it first, or stop it",
                    info.name
                );
                return Err((ErrorCode::Forbidden, text));
            }
            let shows = move |table: &Topology| !table.is_present(member);
            let command = TopologyCommand::RemoveNode { member };
            Ok(Some(Wish { command, shows: Box::new(shows) }))
        }
        action::WEIGHT => {
            let milli = (change.weight * 1_000.0).round();
            if !(0.0..=WEIGHT_MILLI_MAX).contains(&milli) {
                return bad("a weight is a number from 0 to 1000".to_owned());
            }
            // Within the bounds of both.
            let weight = milli as u32;
            if info.weight == weight {
                return Ok(None);
            }
            if weight == 0 && topology.drain_progress(node).held > 0 && !has_heirs(topology, node) {
                return bad(format!("there is no other node to take what {} holds", info.name));
            }
            let shows = move |table: &Topology| {
                table.nodes.get(&node).is_none_or(|info| info.weight == weight)
            };
            let command = TopologyCommand::SetWeight { node, weight };
            Ok(Some(Wish { command, shows: Box::new(shows) }))
        }
        other => bad(format!("this node knows no change `{other}`")),
    }
}

/// Whether other nodes can take what this one holds.
fn has_heirs(topology: &Topology, node: NodeId) -> bool {
    topology
        .nodes
        .iter()
        .any(|(other, info)| *other != node && info.holds_items() && info.state == NodeState::Ready)
}

fn set_state(member: Member, state: NodeState) -> Wish {
    let shows = move |table: &Topology| {
        !table.is_present(member)
            || table.nodes.get(&member.node).is_some_and(|info| info.state == state)
    };
    let command = TopologyCommand::SetNodeState { member, state };
    Wish { command, shows: Box::new(shows) }
}

fn acknowledge_loss(topology: &Topology) -> Option<Wish> {
    let lost = |states: &[kiln_cluster::topology::PartitionState]| {
        states.iter().any(kiln_cluster::topology::PartitionState::has_unacknowledged_loss)
    };
    let groups = topology.groups.iter().filter(|(_, states)| lost(states));
    let mut commands: Vec<TopologyCommand> = groups
        .map(|(group, _)| TopologyCommand::AcknowledgeLoss { group: *group, partition: None })
        .collect();
    let command = match commands.len() {
        0 => return None,
        1 => commands.remove(0),
        _ => TopologyCommand::Batch(commands),
    };
    // Losses that come after this are not its matter.
    let known: Vec<_> = topology
        .places()
        .filter(|(_, state)| state.has_unacknowledged_loss())
        .map(|(place, state)| (place, state.generation))
        .collect();
    let shows = move |table: &Topology| {
        known.iter().all(|(place, generation)| {
            table.partition(*place).is_none_or(|state| state.loss_acknowledged >= *generation)
        })
    };
    Some(Wish { command, shows: Box::new(shows) })
}

#[cfg(test)]
mod tests {
    use super::{super::shares::tests::table, *};

    fn ask(topology: &Topology, action: &str, node: NodeId) -> Result<Option<Wish>, ErrorCode> {
        let change = ClusterChange {
            action: action.to_owned(),
            node: node.0,
            weight: 2.5,
            ..ClusterChange::default()
        };
        wish(topology, &change).map_err(|(code, _)| code)
    }

    /// Asks, applies what comes of it, and says whether the table then shows it.
    fn do_it(topology: &mut Topology, action: &str, node: NodeId) {
        let wish = ask(topology, action, node).unwrap().unwrap();
        assert!(!(wish.shows)(topology), "{action}");
        topology.apply(&wish.command).unwrap();
        assert!((wish.shows)(topology), "{action}");
    }

    #[test]
    fn a_change_is_done_when_the_table_shows_it_and_asking_again_changes_nothing() {
        let (mut topology, [a, b, c]) = table();
        for (action, node) in
            [(action::DRAIN, a), (action::UNDO_DRAIN, a), (action::WEIGHT, b), (action::DRAIN, c)]
        {
            do_it(&mut topology, action, node);
            assert!(ask(&topology, action, node).unwrap().is_none(), "{action}");
        }
    }

    #[test]
    fn a_node_that_is_up_and_holds_something_is_removed_by_force_only() {
        let (mut topology, [a, ..]) = table();
        assert_eq!(ask(&topology, action::REMOVE, a).err(), Some(ErrorCode::Forbidden));
        let force = ClusterChange {
            action: action::REMOVE.to_owned(),
            node: a.0,
            force: true,
            ..ClusterChange::default()
        };
        assert!(wish(&topology, &force).unwrap().is_some());

        let member = topology.member(a).unwrap();
        let state = NodeState::Down;
        topology.apply(&TopologyCommand::SetNodeState { member, state }).unwrap();
        do_it(&mut topology, action::REMOVE, a);
        assert!(ask(&topology, action::REMOVE, a).unwrap().is_none());
        // Partition 1 had its last copy there.
        do_it(&mut topology, action::ACKNOWLEDGE_LOSS, a);
        assert!(ask(&topology, action::ACKNOWLEDGE_LOSS, a).unwrap().is_none());
    }

    #[test]
    fn the_last_node_that_could_hold_anything_is_not_drained() {
        let (mut topology, [a, b, c]) = table();
        do_it(&mut topology, action::DRAIN, b);
        do_it(&mut topology, action::DRAIN, c);
        assert_eq!(ask(&topology, action::DRAIN, a).err(), Some(ErrorCode::BadArgument));
        let nothing = ClusterChange {
            action: action::WEIGHT.to_owned(),
            node: a.0,
            ..ClusterChange::default()
        };
        assert!(wish(&topology, &nothing).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (topology, [a, ..]) = table();
        assert!(ask(&topology, "explode", a).is_err());
        assert!(ask(&topology, action::DRAIN, NodeId(99)).is_err());
        assert!(ask(&topology, action::REMOVE, NodeId(99)).unwrap().is_none());
        for weight in [-1.0, 1_000.1, f64::NAN, f64::INFINITY] {
            let change = ClusterChange {
                action: action::WEIGHT.to_owned(),
                node: a.0,
                weight,
                ..ClusterChange::default()
            };
            assert!(wish(&topology, &change).is_err(), "{weight}");
        }
        let of_a_former_life = ClusterChange {
            action: action::DRAIN.to_owned(),
            node: a.0,
            incarnation: 999,
            ..ClusterChange::default()
        };
        assert!(wish(&topology, &of_a_former_life).is_err());
    }
}
