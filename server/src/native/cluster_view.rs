//! The cluster for those who look at it from outside: clients that route by the table, operators
//! that want to know how it is, and what they ask to be changed.
//!
//! ```text
//!   table     who owns which partition, as clients route by it
//!   shares    partitions counted: whole, short, lost, by node, still to be moved
//!   warnings  what an operator should know, in plain words
//!   change    what an operator asks the controller group for
//!   digests   a step through this node's own copies, so that copies can be compared
//! ```
//!
//! Everything is read from one table, so its numbers fit together; what nodes said of themselves
//! beside it is as old as its `heard_ms_ago` says. Cost: a pass over all partitions, on the worker
//! that is asked: some tens of microseconds for each thousand of them.

mod change;
mod digests;
mod shares;
mod table;
mod warnings;

use std::collections::BTreeSet;

use kiln_cluster::{
    ids::{GroupKey, Mode, NodeId},
    topology::{NodeInfo, NodeState, Topology},
};
use kiln_protocol::native::admin::{
    ClusterStatus, ControlView, EventView, GroupStatus, NodeStatus, TransferView,
};

use crate::{
    cluster::{Cluster, HTTP, MEMCACHED, NATIVE, PEER},
    node::Node,
    shutdown::Phase,
};

pub(crate) use change::change;
pub(super) use digests::step as digests;
pub(super) use table::push;
pub(crate) use table::topology;

/// The id of a node that is its whole cluster.
pub(crate) const LONE_NODE_ID: u64 = 1;

/// Transfers that are told.
const TRANSFERS_MAX: usize = 256;

/// This node's id in the table.
pub(crate) fn node_id(node: &Node) -> u64 {
    node.cluster.get().map_or(LONE_NODE_ID, |cluster| cluster.me.node.0)
}

/// The cluster, as this node sees it.
pub(crate) fn status(node: &Node) -> ClusterStatus {
    let mut status = match node.cluster.get() {
        Some(cluster) => of_cluster(node, cluster),
        None => of_lone(node),
    };
    status.warnings = warnings::of(&status);
    status
}

fn of_cluster(node: &Node, cluster: &Cluster) -> ClusterStatus {
    let topology = cluster.topology();
    let overview = cluster.overview();
    let control = cluster.control().map(crate::control::Control::status);
    let shares = shares::count(&topology);
    let nodes = topology.nodes.iter().map(|(id, info)| {
        let said = overview.nodes.get(id);
        let held = shares.nodes.get(id).copied().unwrap_or_default();
        NodeStatus {
            heard_ms_ago: said.map(|said| said.heard_ms_ago),
            operations_per_s: said.map_or(0, |said| said.operations_per_s.into()),
            busy: said.map_or(0.0, |said| f64::from(said.busy_milli) / 1_000.0),
            memory_used: said.map_or(0, |said| said.memory_used),
            memory_limit: said.map_or(0, |said| said.memory_limit),
            led: held.led,
            held: held.held,
            filling: held.filling,
            wanted: held.wanted,
            last_copies: held.last_copies,
            ..known(*id, info)
        }
    });
    let transfers = overview.transfers.iter().take(TRANSFERS_MAX).map(|transfer| TransferView {
        mode: mode_name(transfer.place.group.mode).to_owned(),
        copies: transfer.place.group.copies.into(),
        partition: transfer.place.partition.0,
        from: cluster.me.node.0,
        to: transfer.to.node.0,
        bytes: transfer.bytes,
        since_ms: transfer.since_ms,
    });
    let leader = control.as_ref().and_then(|control| control.leader).or(overview.controller);
    ClusterStatus {
        cluster_id: node.cluster_id(),
        epoch: topology.epoch.0,
        partitions: topology.partitions,
        node_id: cluster.me.node.0,
        now_ms: node.clock.now_ms(),
        control: control.map_or_else(ControlView::default, |control| ControlView {
            leader: leader.map_or(0, |leader| leader.0),
            term: control.term,
            voters: control.voters.iter().map(|voter| voter.0).collect(),
            majority_answered_ms_ago: control.majority_answered_ms_ago,
            durable: control.durable,
        }),
        nodes: nodes.collect(),
        groups: shares.groups,
        transfers: transfers.collect(),
        events: cluster
            .events()
            .into_iter()
            .map(|event| EventView { at_ms: event.at_ms, text: event.text })
            .collect(),
        warnings: Vec::new(),
    }
}

/// What the table says of a node.
fn known(id: NodeId, info: &NodeInfo) -> NodeStatus {
    let address = |name: &str| info.addresses.get(name).cloned().unwrap_or_default();
    NodeStatus {
        id: id.0,
        name: info.name.clone(),
        incarnation: info.incarnation.0,
        state: state_name(info.state).to_owned(),
        zone: info.zone.clone(),
        weight: f64::from(info.weight) / 1_000.0,
        witness: info.witness,
        native: address(NATIVE),
        memcached: address(MEMCACHED),
        http: address(HTTP),
        peer: address(PEER),
        ..NodeStatus::default()
    }
}

/// A node that takes no others.
fn of_lone(node: &Node) -> ClusterStatus {
    let table = topology(node);
    let partitions = u64::from(table.partitions);
    let stats = node.caches.stats();
    let nodes = table.nodes.into_iter().map(|view| NodeStatus {
        id: view.id,
        name: view.name,
        incarnation: node.incarnation,
        state: view.state,
        weight: view.weight,
        native: view.native,
        memcached: view.memcached,
        http: view.http,
        heard_ms_ago: Some(0),
        memory_used: stats.item_bytes + stats.index_bytes + stats.heap_bytes,
        memory_limit: node.memory() as u64,
        led: partitions,
        held: partitions,
        wanted: partitions,
        last_copies: partitions,
        ..NodeStatus::default()
    });
    ClusterStatus {
        cluster_id: table.cluster_id,
        epoch: table.epoch,
        partitions: table.partitions,
        node_id: LONE_NODE_ID,
        now_ms: node.clock.now_ms(),
        control: ControlView {
            leader: LONE_NODE_ID,
            voters: vec![LONE_NODE_ID],
            ..ControlView::default()
        },
        nodes: nodes.collect(),
        groups: vec![GroupStatus {
            mode: mode_name(Mode::Strong).to_owned(),
            copies: 1,
            copies_possible: 1,
            caches: table.caches.into_iter().map(|cache| cache.name).collect(),
            whole: partitions,
            copies_wanted: partitions,
            copies_there: partitions,
            ..GroupStatus::default()
        }],
        ..ClusterStatus::default()
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Strong => "strong",
        Mode::Eventual => "eventual",
    }
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Joining => "joining",
        NodeState::Ready => "ready",
        NodeState::Draining => "draining",
        NodeState::Down => "down",
    }
}

fn lone_state(node: &Node) -> &'static str {
    match node.shutdown.phase() {
        Phase::Starting => "joining",
        Phase::Ready => "ready",
        Phase::Leaving | Phase::Draining => "draining",
    }
}

/// Groups that hold a cache's items. Those whose caches were all dropped stay in the table, empty.
fn groups_in_use(topology: &Topology) -> BTreeSet<GroupKey> {
    topology.caches.values().map(kiln_cluster::topology::CacheSpec::group).collect()
}
