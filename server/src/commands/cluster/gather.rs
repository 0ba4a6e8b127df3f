//! One picture of what every node tells.
//!
//! All nodes have the same table; beside it each knows best what itself does: the copies that it
//! fills, its own load, what it noted. A node that does not answer soon is left out, so that one
//! that hangs does not hold up the picture.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use kiln_client::{Client, ClusterStatus, EventView, NodeStatus};
use tokio::time::timeout;

use super::super::{CommandError, connect::explain};

/// How long a node may take to tell what it knows.
const NODE_PATIENCE: Duration = Duration::from_millis(1_500);

/// Events that are kept of all nodes together.
const EVENTS_MAX: usize = 64;

/// The same words of several nodes within so many milliseconds are one event.
const SAME_EVENT_MS: u64 = 5_000;

/// Asks all nodes.
pub(crate) async fn status(client: &Client) -> Result<ClusterStatus, CommandError> {
    let first = client.cluster_status().await.map_err(|error| explain(&error))?;
    let others = first
        .nodes
        .iter()
        .filter(|node| node.id != first.node_id && node.state != "down" && !node.native.is_empty());
    let asked = others.map(async |node| {
        let told = timeout(NODE_PATIENCE, client.cluster_status_of(node.id)).await;
        told.ok().flatten().and_then(Result::ok)
    });
    let others: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    Ok(merge(first, others))
}

fn merge(first: ClusterStatus, others: Vec<ClusterStatus>) -> ClusterStatus {
    let cluster_id = first.cluster_id.clone();
    let mut all: Vec<ClusterStatus> = vec![first];
    // A node that was started anew elsewhere under an old address may be of another cluster.
    all.extend(others.into_iter().filter(|status| status.cluster_id == cluster_id));
    let own: BTreeMap<u64, NodeStatus> = all
        .iter()
        .filter_map(|status| {
            let own = status.nodes.iter().find(|node| node.id == status.node_id)?;
            Some((own.id, own.clone()))
        })
        .collect();
    let transfers = all.iter().flat_map(|status| status.transfers.iter().cloned()).collect();
    let events = events(all.iter().flat_map(|status| status.events.iter().cloned()).collect());
    // The newest table; of several the controller's, which hears of every node.
    let is_leader = |status: &ClusterStatus| status.node_id == status.control.leader;
    let newest = (0..all.len()).max_by_key(|&at| (all[at].epoch, is_leader(&all[at])));
    let mut merged = all.swap_remove(newest.unwrap_or(0));
    for node in &mut merged.nodes {
        if let Some(own) = own.get(&node.id) {
            node.operations_per_s = own.operations_per_s;
            node.busy = own.busy;
            node.memory_used = own.memory_used;
            node.memory_limit = own.memory_limit;
            // It has just answered.
            node.heard_ms_ago = Some(node.heard_ms_ago.unwrap_or(0));
        }
    }
    ClusterStatus { transfers, events, ..merged }
}

fn events(mut all: Vec<EventView>) -> Vec<EventView> {
    all.sort_by_key(|event| event.at_ms);
    let mut kept: Vec<EventView> = Vec::new();
    for event in all {
        let is_told = kept.iter().rev().any(|told| {
            told.text == event.text && event.at_ms.saturating_sub(told.at_ms) <= SAME_EVENT_MS
        });
        if !is_told {
            kept.push(event);
        }
    }
    kept.split_off(kept.len().saturating_sub(EVENTS_MAX))
}

/// A node by its name, by its id, or by the beginning of its id, if only one has it.
pub(crate) fn find_node<'a>(
    status: &'a ClusterStatus,
    text: &str,
) -> Result<&'a NodeStatus, CommandError> {
    let by_name: Vec<&NodeStatus> = status.nodes.iter().filter(|node| node.name == text).collect();
    let by_id = || {
        let starts = |node: &&NodeStatus| id(node.id).starts_with(&text.to_lowercase());
        status.nodes.iter().filter(starts).collect::<Vec<_>>()
    };
    let found = if by_name.is_empty() { by_id() } else { by_name };
    match found.as_slice() {
        [node] => Ok(node),
        [] => {
            let names: Vec<&str> = status.nodes.iter().map(|node| &*node.name).collect();
            Err(CommandError::Failed(format!(
                "there is no node {text}\n  The cluster has: {}.",
                names.join(", ")
            )))
        }
        several => {
            let ids: Vec<String> =
                several.iter().map(|node| format!("{} ({})", node.name, id(node.id))).collect();
            Err(CommandError::Usage(format!(
                "{text} could be several nodes\n  Name one by its id: {}.",
                ids.join(", ")
            )))
        }
    }
}

/// A node's id as people write it.
pub(crate) fn id(number: u64) -> String {
    format!("{number:016x}")
}

/// A node's name, or its id when it has left.
pub(crate) fn name(status: &ClusterStatus, number: u64) -> String {
    let node = status.nodes.iter().find(|node| node.id == number);
    node.map_or_else(|| id(number)[..8].to_owned(), |node| node.name.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use kiln_client::{ControlView, TransferView};

    use super::*;

    pub(in super::super) fn node(id: u64, name: &str) -> NodeStatus {
        NodeStatus {
            id,
            name: name.to_owned(),
            state: "ready".to_owned(),
            weight: 1.0,
            ..NodeStatus::default()
        }
    }

    fn told_by(node_id: u64, epoch: u64) -> ClusterStatus {
        ClusterStatus {
            cluster_id: "c".to_owned(),
            node_id,
            epoch,
            control: ControlView { leader: 2, ..ControlView::default() },
            nodes: vec![node(1, "n1"), node(2, "n2"), node(0x2f, "n3")],
            transfers: vec![TransferView { from: node_id, ..TransferView::default() }],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn the_newest_table_counts_and_each_nodes_own_figures() {
        let mut one = told_by(1, 7);
        one.nodes[0].operations_per_s = 11;
        one.nodes[1].operations_per_s = 99;
        let mut two = told_by(2, 8);
        two.nodes[1].operations_per_s = 22;
        two.nodes[1].state = "draining".to_owned();
        let other = ClusterStatus { cluster_id: "other".to_owned(), ..told_by(3, 100) };

        let merged = merge(one, vec![two, other]);

        assert_eq!((merged.epoch, merged.node_id), (8, 2));
        let operations: Vec<_> = merged.nodes.iter().map(|node| node.operations_per_s).collect();
        assert_eq!(operations, [11, 22, 0]);
        assert_eq!(merged.nodes[1].state, "draining");
        assert_eq!(merged.transfers.len(), 2);
        assert_eq!(merge(told_by(1, 7), vec![told_by(2, 7)]).node_id, 2, "the controller's view");
    }

    #[test]
    fn what_several_nodes_noted_at_the_same_time_is_one_event() {
        let event = |at_ms, text: &str| EventView { at_ms, text: text.to_owned() };
        let all = vec![
            event(5_000, "node b is ready"),
            event(1_000, "node b joined"),
            event(1_200, "node b joined"),
            event(20_000, "node b joined"),
        ];
        assert_eq!(
            events(all),
            [
                event(1_000, "node b joined"),
                event(5_000, "node b is ready"),
                event(20_000, "node b joined")
            ]
        );
        let many = (0..200).map(|at| event(at * 10_000, "x")).collect();
        assert_eq!(events(many).len(), EVENTS_MAX);
    }

    #[test]
    fn a_node_is_found_by_name_or_by_the_beginning_of_its_id() {
        let status = told_by(1, 1);
        assert_eq!(find_node(&status, "n2").unwrap().id, 2);
        assert_eq!(find_node(&status, &id(0x2f)).unwrap().name, "n3");
        assert!(matches!(find_node(&status, "0000"), Err(CommandError::Usage(_))));
        assert!(matches!(find_node(&status, "nowhere"), Err(CommandError::Failed(_))));
        let mut twice = status;
        twice.nodes[2].name = "n1".to_owned();
        assert!(matches!(find_node(&twice, "n1"), Err(CommandError::Usage(_))));
        assert_eq!(find_node(&twice, "000000000000002F").unwrap().id, 0x2f);
    }
}
