//! The table of owners, as clients route by it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use kiln_cluster::{
    ids::GroupKey,
    placement::HASH_ID,
    topology::{PartitionState, ReadMode, Topology},
};
use kiln_protocol::native::{
    admin::{CacheView, GroupView, NodeView, TopologyView},
    respond,
};

use super::{LONE_NODE_ID, groups_in_use, known, lone_state, mode_name};
use crate::node::Node;

/// Partitions of a node that is its whole cluster.
const LONE_PARTITIONS: u32 = 1024;

/// Who owns which partition.
pub(crate) fn topology(node: &Node) -> TopologyView {
    match node.cluster.get() {
        Some(cluster) => {
            TopologyView { cluster_id: node.cluster_id(), ..of_table(&cluster.topology()) }
        }
        None => of_lone(node),
    }
}

/// Tells a client that follows the table. It is written down once for all of them.
pub(crate) fn push(node: &Node, out: &mut Vec<u8>) {
    let Some(cluster) = node.cluster.get() else { return respond::topology(out, &of_lone(node)) };
    let table = Arc::clone(&cluster.topology());
    let frame = cluster.told(&table, || {
        let mut frame = Vec::new();
        let view = TopologyView { cluster_id: node.cluster_id(), ..of_table(&table) };
        respond::topology(&mut frame, &view);
        frame
    });
    out.extend_from_slice(&frame);
}

fn of_table(topology: &Topology) -> TopologyView {
    let places: BTreeMap<_, _> = topology.nodes.keys().copied().zip(0_u32..).collect();
    let owners = |state: &PartitionState| {
        let primary = state.primary.into_iter();
        let others = state.in_sync.iter().copied().filter(|member| state.primary != Some(*member));
        let owners = primary.chain(others);
        owners.filter_map(|member| places.get(&member.node).copied()).collect()
    };
    let groups: Vec<GroupKey> = groups_in_use(topology).into_iter().collect();
    let group_view = |group: &GroupKey| GroupView {
        mode: mode_name(group.mode).to_owned(),
        copies: group.copies.into(),
        owners: topology.groups.get(group).into_iter().flatten().map(owners).collect(),
    };
    TopologyView {
        epoch: topology.epoch.0,
        cluster_id: String::new(),
        hash_id: topology.hash_id,
        partitions: topology.partitions,
        nodes: topology
            .nodes
            .iter()
            .map(|(id, info)| {
                let known = known(*id, info);
                NodeView {
                    id: known.id,
                    name: known.name,
                    state: known.state,
                    zone: known.zone,
                    weight: known.weight,
                    native: known.native,
                    memcached: known.memcached,
                    http: known.http,
                }
            })
            .collect(),
        groups: groups.iter().map(group_view).collect(),
        caches: topology
            .caches
            .iter()
            .map(|(name, spec)| CacheView {
                name: name.clone(),
                // The groups are those of the caches.
                group: groups.binary_search(&spec.group()).unwrap_or(0) as u32,
                read: read_name(spec.read).to_owned(),
            })
            .collect(),
    }
}

fn read_name(read: ReadMode) -> &'static str {
    match read {
        ReadMode::Confirm => "primary",
        ReadMode::Lease => "leased",
        ReadMode::Any => "any",
        ReadMode::Quorum => "quorum",
    }
}

/// This node owns every partition.
fn of_lone(node: &Node) -> TopologyView {
    let address = |address: Option<SocketAddr>| address.map_or(String::new(), |a| a.to_string());
    // Before the table: what is told must be as new as its epoch says, and may be newer.
    let epoch = node.epoch();
    let table = node.caches.load();
    TopologyView {
        epoch,
        cluster_id: node.cluster_id(),
        hash_id: HASH_ID,
        partitions: LONE_PARTITIONS,
        nodes: vec![NodeView {
            id: LONE_NODE_ID,
            name: node.config.name.to_string(),
            state: lone_state(node).to_owned(),
            zone: node.config.zone.to_string(),
            weight: 1.0,
            native: address(node.endpoints.native),
            memcached: address(node.endpoints.memcached_tcp()),
            http: address(node.endpoints.http),
        }],
        groups: vec![GroupView {
            mode: "strong".to_owned(),
            copies: 1,
            owners: vec![vec![0]; LONE_PARTITIONS as usize],
        }],
        caches: table
            .iter()
            .map(|cache| CacheView {
                name: cache.settings.name.as_ref().into(),
                group: 0,
                read: cache.settings_now().read.name().to_owned(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::shares::tests::table, *};

    #[test]
    fn owners_are_places_of_nodes_with_the_primary_first() {
        let (topology, [a, b, c]) = table();
        let view = of_table(&topology);
        assert_eq!(
            view.nodes.iter().map(|node| node.id).collect::<Vec<_>>(),
            [a, b, c].map(|n| n.0)
        );
        // Partition 0 is led by the second node, and the first has the other copy.
        assert_eq!(view.groups[0].owners[0], [1, 0]);
        // The third is being filled with partition 1 and does not own it yet.
        assert_eq!(view.groups[0].owners[1], [0]);
        assert!(view.groups[0].owners[3].is_empty());
        assert_eq!((view.caches[0].group, &*view.caches[0].read), (0, "leased"));
        assert_eq!(view.nodes[0].native, "a:7311");
    }
}
