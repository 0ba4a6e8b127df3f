//! What a viewer is sent: all of it at first, then what changed.
//!
//! The page draws whatever is in here and knows nothing of where it comes from. A list that has
//! one entry on a node that is alone (nodes), or none (transfers, streams), has more in a cluster,
//! in the same form. What rarely changes (names, settings, owners) is apart from what changes every
//! second (figures), which comes as short rows: a thousand caches are told in 60 KB.

use std::{collections::BTreeMap, sync::Arc};

use kiln_protocol::native::admin::{ClusterStatus, GroupStatus, TopologyView, Warning};
use serde::Serialize;

use super::{
    events::Event,
    history::{Figure, History, Sample},
    reading::CacheFigures,
};
use crate::{caches::Table, native::cluster_view, node::Node};

/// Everything, for a viewer that comes.
#[derive(Serialize)]
pub(super) struct Snapshot<'a> {
    /// Rises with each tick; ticks up to this one are contained.
    pub(super) seq: u64,
    pub(super) now_ms: u64,
    pub(super) node: SelfView,
    pub(super) history: &'a History,
    pub(super) topology: &'a Topology,
    pub(super) figures: &'a [NodeFigures],
    pub(super) caches: &'a [CacheFigures],
    pub(super) state: &'a ClusterState,
    pub(super) streams: &'a [Stream],
    pub(super) hottest: &'a [HotKey],
    pub(super) events: Vec<Event>,
}

/// What changed within a second. What is left out is as it was.
#[derive(Serialize)]
pub(super) struct Tick<'a> {
    pub(super) seq: u64,
    pub(super) now_ms: u64,
    pub(super) row: &'a Sample,
    pub(super) events: Vec<Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topology: Option<&'a Topology>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) figures: Option<&'a [NodeFigures]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caches: Option<&'a [CacheFigures]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hottest: Option<&'a [HotKey]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) streams: Option<&'a [Stream]>,
    pub(super) state: &'a ClusterState,
}

/// The node that is asked.
#[derive(Serialize)]
pub(super) struct SelfView {
    pub(super) name: String,
    pub(super) version: &'static str,
    pub(super) pid: u32,
    pub(super) started_ms: u64,
    pub(super) threads: usize,
    pub(super) connections_max: usize,
    /// Whether keys may be looked through.
    pub(super) keys: bool,
}

impl SelfView {
    pub(super) fn of(node: &Node) -> Self {
        Self {
            name: node.config.name.to_string(),
            version: env!("BUILD_VERSION"),
            pid: std::process::id(),
            started_ms: node.clock.start_ms(),
            threads: node.workers.len(),
            connections_max: node.config.max_connections.0,
            keys: node.config.dashboard_keys.0,
        }
    }
}

/// Who is there, who owns what, and which caches there are.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Topology {
    pub(super) epoch: u64,
    pub(super) cluster_id: String,
    pub(super) partitions: u32,
    pub(super) nodes: Vec<NodeRow>,
    pub(super) groups: Vec<GroupRow>,
    pub(super) caches: Vec<CacheRow>,
}

/// A node as others know it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct NodeRow {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) zone: String,
    pub(super) weight: f64,
    pub(super) is_self: bool,
    pub(super) native: String,
    pub(super) memcached: String,
    pub(super) http: String,
    /// Partitions, over all groups, of which it is the primary.
    pub(super) primaries: u32,
    /// Partitions of which it has another copy.
    pub(super) copies: u32,
}

/// Who owns the partitions of some caches.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct GroupRow {
    pub(super) mode: String,
    pub(super) copies: u32,
    /// For each partition the places in the list of nodes, primary first; empty when lost.
    pub(super) owners: Vec<Vec<u32>>,
}

/// How a cache was made.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CacheRow {
    /// As in [`CacheFigures`].
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) copies: u32,
    pub(super) eviction: String,
    pub(super) read: &'static str,
    pub(super) group: u32,
    pub(super) default_ttl_ms: Option<u64>,
    pub(super) value_len_max: usize,
}

impl Topology {
    /// Puts together what clients are told of the cluster and how this node's caches were made.
    pub(super) fn of(node: &Node, view: &TopologyView, table: &Table) -> Self {
        let self_id = cluster_view::node_id(node);
        let mut nodes: Vec<NodeRow> = view
            .nodes
            .iter()
            .map(|known| NodeRow {
                id: known.id,
                name: known.name.clone(),
                state: known.state.clone(),
                zone: known.zone.clone(),
                weight: known.weight,
                is_self: known.id == self_id,
                native: known.native.clone(),
                memcached: known.memcached.clone(),
                http: known.http.clone(),
                primaries: 0,
                copies: 0,
            })
            .collect();
        count_partitions(view, &mut nodes);
        let groups: BTreeMap<&str, u32> =
            view.caches.iter().map(|cache| (cache.name.as_str(), cache.group)).collect();
        let caches = table.iter().map(|cache| {
            let settings = &cache.settings_now();
            let group = groups.get(&*settings.name).copied().unwrap_or(0);
            // What the cluster agreed on; the settings say what this node was asked for.
            let agreed = view.groups.get(group as usize);
            CacheRow {
                id: cache.id,
                name: settings.name.as_ref().into(),
                mode: agreed
                    .map_or_else(|| settings.mode.name().to_owned(), |agreed| agreed.mode.clone()),
                copies: agreed.map_or(settings.copies, |agreed| agreed.copies),
                eviction: settings.eviction.name().to_owned(),
                read: settings.read.name(),
                group,
                default_ttl_ms: settings.default_ttl_ms,
                value_len_max: settings.value_len_max,
            }
        });
        Self {
            epoch: view.epoch,
            cluster_id: view.cluster_id.clone(),
            partitions: view.partitions,
            nodes,
            groups: view
                .groups
                .iter()
                .map(|group| GroupRow {
                    mode: group.mode.clone(),
                    copies: group.copies,
                    owners: group.owners.clone(),
                })
                .collect(),
            caches: caches.collect(),
        }
    }
}

fn count_partitions(view: &TopologyView, nodes: &mut [NodeRow]) {
    for owners in view.groups.iter().flat_map(|group| &group.owners) {
        for (rank, place) in owners.iter().enumerate() {
            // A place that is not in the list is a fault of the sender, not ours.
            let Some(node) = nodes.get_mut(*place as usize) else { continue };
            if rank == 0 { node.primaries += 1 } else { node.copies += 1 }
        }
    }
}

/// What a node does now. A figure that is not known is `null`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeFigures {
    pub(super) id: u64,
    pub(super) ops: Figure,
    /// Of its processors, from 0 to 1.
    pub(super) busy: Figure,
    pub(super) memory: Figure,
    pub(super) memory_limit: Figure,
    /// Milliseconds since it was heard of by the node that tells this.
    pub(super) heard_ms_ago: Option<u64>,
    /// Partitions that it is being filled with.
    pub(super) filling: u64,
    /// Of the reads of the last seconds, the part that found their item. Nodes do not tell each
    /// other this, nor what follows.
    pub(super) hit_ratio: Figure,
    pub(super) items: Figure,
    pub(super) connections: Figure,
    pub(super) uptime_ms: Option<u64>,
}

impl NodeFigures {
    /// Figures of all nodes as the node that tells the status has them.
    pub(super) fn of(status: &ClusterStatus) -> Vec<Self> {
        let nodes = status.nodes.iter().map(|node| {
            let if_heard =
                |value: f64| Figure(if node.heard_ms_ago.is_some() { value } else { f64::NAN });
            Self {
                id: node.id,
                ops: if_heard(node.operations_per_s as f64),
                busy: if_heard(node.busy),
                memory: if_heard(node.memory_used as f64),
                memory_limit: if_heard(node.memory_limit as f64),
                heard_ms_ago: node.heard_ms_ago,
                filling: node.filling,
                hit_ratio: Figure(f64::NAN),
                items: Figure(f64::NAN),
                connections: Figure(f64::NAN),
                uptime_ms: None,
            }
        });
        nodes.collect()
    }
}

/// Planned moves told for each group; the rest is in their number.
const MOVES_MAX: usize = 50;

/// How the cluster is at the moment.
#[derive(Debug, Default, Serialize)]
pub(super) struct ClusterState {
    /// What an operator should know, worst first.
    pub(super) warnings: Vec<Warning>,
    /// How many copies there are of those wanted, and what is still to be moved.
    pub(super) groups: Vec<GroupStatus>,
    pub(super) transfers: Vec<Transfer>,
}

impl ClusterState {
    /// Takes what the page shows of a status. Groups are numbered as in `topology`.
    pub(super) fn of(mut status: ClusterStatus, topology: &Topology) -> Self {
        let place = |mode: &str, copies| {
            topology.groups.iter().position(|group| group.mode == mode && group.copies == copies)
        };
        let transfers = status.transfers.iter().filter_map(|transfer| {
            Some(Transfer {
                group: place(&transfer.mode, transfer.copies)? as u32,
                partition: transfer.partition,
                from: transfer.from,
                to: transfer.to,
                bytes: transfer.bytes,
                since_ms: transfer.since_ms,
            })
        });
        let transfers = transfers.collect();
        status.groups.iter_mut().for_each(|group| {
            group.moves.truncate(MOVES_MAX);
            // The page knows them from the topology.
            group.caches.clear();
        });
        Self { warnings: status.warnings, groups: status.groups, transfers }
    }
}

/// A copy of a partition that is being filled.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Transfer {
    /// The place of its group in the topology.
    pub(super) group: u32,
    pub(super) partition: u32,
    /// Ids of nodes.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Bytes that arrived. How many will is not known: writes go on.
    pub(super) bytes: u64,
    pub(super) since_ms: u64,
}

/// A stream of readings, as this node sees it. Values and windows of its sensors are asked for at
/// `/v1/streams` by a page that shows them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Stream {
    pub(super) name: String,
    pub(super) latest_cache: String,
    /// The names of its windows.
    pub(super) windows: Vec<String>,
    pub(super) sensors: u64,
    pub(super) state_bytes: u64,
    /// How far the watermark is behind the clock; `null` until readings came.
    pub(super) lag_ms: Option<i64>,
    pub(super) readings_per_s: Figure,
    pub(super) results_per_s: Figure,
    pub(super) late_per_s: Figure,
    pub(super) rejected_per_s: Figure,
    /// Since the node started, as the next two.
    pub(super) late: u64,
    pub(super) rejected: u64,
    pub(super) alarms: u64,
}

/// A key that is asked for often.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct HotKey {
    pub(super) cache: String,
    /// For reading, not for asking: bytes that are no text are escaped, long ones cut.
    pub(super) key: String,
    /// Operations a second, roughly.
    pub(super) ops: Figure,
}

/// The topology in both forms.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) view: Arc<TopologyView>,
    pub(super) told: Topology,
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_protocol::native::admin::GroupView;

    #[test]
    fn partitions_are_counted_by_primary_and_copy_over_all_groups() {
        let group = |owners: Vec<Vec<u32>>| GroupView { owners, ..GroupView::default() };
        let groups =
            vec![group(vec![vec![0, 1], vec![1, 0], vec![]]), group(vec![vec![1], vec![9]])];
        let view = TopologyView { groups, ..TopologyView::default() };
        let mut nodes = vec![NodeRow::default(); 2];
        count_partitions(&view, &mut nodes);
        let counts: Vec<_> = nodes.iter().map(|node| (node.primaries, node.copies)).collect();
        assert_eq!(counts, [(1, 1), (2, 1)]);
    }

    #[test]
    fn what_a_node_that_was_never_heard_does_is_not_known() {
        use kiln_protocol::native::admin::NodeStatus;
        let node = |id, heard_ms_ago| NodeStatus {
            id,
            heard_ms_ago,
            operations_per_s: 7,
            ..NodeStatus::default()
        };
        let status = ClusterStatus {
            nodes: vec![node(1, Some(3)), node(2, None)],
            ..ClusterStatus::default()
        };
        let json = serde_json::to_value(NodeFigures::of(&status)).unwrap();
        assert_eq!((&json[0]["ops"], &json[1]["ops"]), (&7.into(), &serde_json::Value::Null));
    }

    #[test]
    fn a_transfer_is_told_with_the_place_of_its_group() {
        use kiln_protocol::native::admin::TransferView;
        let group = |mode: &str| GroupRow { mode: mode.to_owned(), copies: 2, owners: Vec::new() };
        let topology =
            Topology { groups: vec![group("eventual"), group("strong")], ..Topology::default() };
        let transfer = |mode: &str, copies| TransferView {
            mode: mode.to_owned(),
            copies,
            partition: 9,
            ..TransferView::default()
        };
        let status = ClusterStatus {
            // The last is of a group that the topology does not have yet, or no longer.
            transfers: vec![transfer("strong", 2), transfer("strong", 3)],
            ..ClusterStatus::default()
        };
        let state = ClusterState::of(status, &topology);
        assert_eq!(state.transfers.len(), 1);
        assert_eq!((state.transfers[0].group, state.transfers[0].partition), (1, 9));
    }
}
