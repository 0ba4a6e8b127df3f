//! The cluster: what `kiln cluster status` tells, for programs that speak HTTP.
//!
//! All of it is this node's own view, read from one table, so its numbers fit together; what other
//! nodes said of themselves is as old as `heard_ms_ago` says. Lists come in pages: a cluster may
//! have a thousand nodes, and each group a thousand partitions and more.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use kiln_protocol::native::admin::{ClusterStatus, GroupStatus, NodeStatus, Warning as Told};
use serde::Serialize;
use utoipa::ToSchema;

use super::{caches::fresh, gateway::Gateway, problem::Problem, query::Query};
use crate::native::cluster_view;

/// Entries of a page at most, and when nobody says how many.
pub(super) const LIMIT_MAX: u64 = 1_000;
pub(super) const LIMIT_DEFAULT: u64 = 100;

/// The cluster as the node that answers sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(super) struct Overview {
    /// Which cluster it is.
    #[schema(example = "5f0c6d1f0a3b9c27")]
    id: String,
    /// Rises with each change of the table that all this is read from.
    #[schema(minimum = 0)]
    epoch: u64,
    /// Partitions of each group.
    #[schema(minimum = 1)]
    partitions: u32,
    /// The node that answers.
    node: String,
    /// Its clock, in milliseconds since 1970.
    #[schema(minimum = 0)]
    now_ms: u64,
    /// The node that decides about the table, if one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
    /// Rises with each election of it.
    #[schema(minimum = 0)]
    term: u64,
    /// Who votes for it.
    voters: Vec<String>,
    /// How many nodes there are, and how many of them are ready.
    #[schema(minimum = 1)]
    nodes: usize,
    /// Those that are ready.
    #[schema(minimum = 0)]
    nodes_ready: usize,
    /// Whether every partition is served, and any node could end now without losing data.
    safe: bool,
    /// The groups that hold the caches' items.
    groups: Vec<Group>,
    /// Copies that this node is filling on others.
    transfers: Vec<Transfer>,
    /// What an operator should know, worst first.
    warnings: Vec<Warning>,
    /// What happened lately, oldest first.
    events: Vec<Event>,
}

/// Caches of one mode and as many copies, whose items lie on the same nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Group {
    /// Its name in addresses.
    #[schema(example = "strong-2")]
    name: String,
    /// `strong` or `eventual`.
    mode: String,
    /// Copies that are promised.
    #[schema(minimum = 1)]
    copies: u32,
    /// Copies that the present nodes can have.
    #[schema(minimum = 0)]
    copies_possible: u32,
    /// Its caches.
    caches: Vec<String>,
    /// Partitions with all copies that are promised.
    #[schema(minimum = 0)]
    whole: u64,
    /// Partitions that are served with fewer.
    #[schema(minimum = 0)]
    short: u64,
    /// Partitions that nobody serves at the moment.
    #[schema(minimum = 0)]
    without_primary: u64,
    /// Partitions that lost all copies, which no operator has acknowledged.
    #[schema(minimum = 0)]
    lost: u64,
}

/// A copy that is being filled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Transfer {
    /// Of which group.
    group: String,
    /// Of which partition.
    #[schema(minimum = 0)]
    partition: u32,
    /// From this node.
    from: String,
    /// To this node.
    to: String,
    /// Bytes confirmed.
    #[schema(minimum = 0)]
    bytes: u64,
    /// Since when, in milliseconds since 1970.
    #[schema(minimum = 0)]
    since_ms: u64,
}

/// What an operator should know.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Warning {
    /// `error`: data or service are lost now; `warning`: the next failure would cost some; `note`.
    level: String,
    /// What is so.
    text: String,
    /// What to do.
    advice: String,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Event {
    /// When, in milliseconds since 1970.
    #[schema(minimum = 0)]
    at_ms: u64,
    /// What.
    text: String,
}

/// Some of the nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodePage {
    /// By id.
    nodes: Vec<Member>,
    /// Send it with the next request to go on; not there at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// A node, and what it holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub(super) struct Member {
    /// Its id.
    #[schema(example = "8f3a00c1d2e4b596")]
    id: String,
    /// Its name.
    name: String,
    /// `joining`, `ready`, `draining` or `down`.
    state: String,
    /// Its zone, or empty.
    zone: String,
    /// Its share of the keys, relative to others; 0 holds none.
    weight: f64,
    /// It votes and holds no keys.
    witness: bool,
    /// Where native clients connect; empty for nowhere.
    native: String,
    /// Where memcached clients connect.
    memcached: String,
    /// Where HTTP clients connect.
    http: String,
    /// Milliseconds since it was heard; not there when it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    heard_ms_ago: Option<u64>,
    /// Operations in the last second.
    #[schema(minimum = 0)]
    operations_per_s: u64,
    /// Of its processors, 0 to 1.
    busy: f64,
    /// Bytes in use for items.
    #[schema(minimum = 0)]
    memory_used: u64,
    /// Bytes that items may use.
    #[schema(minimum = 0)]
    memory_limit: u64,
    /// Partitions that it orders writes for, of all groups.
    #[schema(minimum = 0)]
    led: u64,
    /// Partitions of which it has a full copy.
    #[schema(minimum = 0)]
    held: u64,
    /// Partitions that it is being filled with.
    #[schema(minimum = 0)]
    filling: u64,
    /// Partitions that it shall have.
    #[schema(minimum = 0)]
    wanted: u64,
    /// Of its full copies, those that are the only one there is.
    #[schema(minimum = 0)]
    last_copies: u64,
}

/// Some of the partitions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PartitionPage {
    /// Group by group, in order.
    partitions: Vec<Partition>,
    /// Send it with the next request to go on; not there at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// Who holds a partition.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Partition {
    /// Its group.
    #[schema(example = "strong-2")]
    group: String,
    /// Its number in the group.
    #[schema(minimum = 0)]
    partition: u32,
    /// Who has a copy in sync, the primary first if there is one; ids.
    owners: Vec<String>,
}

/// `GET /v1/cluster`.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    Ok(fresh(Json(overview(cluster_view::status(&gateway.node)))))
}

/// `GET /v1/cluster/nodes`.
pub(super) async fn nodes(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["limit", "cursor"])?;
    let (start, limit) = page(&query)?;
    // By id, so that a page goes on behind the node it ended with, whoever comes or goes.
    let status = cluster_view::status(&gateway.node);
    let mut rest = status.nodes.into_iter().filter(|node| node.id >= start).peekable();
    let nodes: Vec<_> = rest.by_ref().take(limit).map(member).collect();
    let cursor = rest.peek().map(|node| node.id.to_string());
    Ok(fresh(Json(NodePage { nodes, cursor })))
}

/// `GET /v1/cluster/partitions`.
pub(super) async fn partitions(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["limit", "cursor"])?;
    let (start, limit) = page(&query)?;
    let table = cluster_view::topology(&gateway.node);
    let all = table.groups.iter().flat_map(|group| {
        let name = group_name(&group.mode, group.copies);
        (0..).zip(&group.owners).map(move |(partition, owners)| (name.clone(), partition, owners))
    });
    let mut rest = all.skip(usize::try_from(start).unwrap_or(usize::MAX)).peekable();
    let id = |place: &u32| table.nodes.get(*place as usize).map(|node| hex(node.id));
    let partitions: Vec<_> = rest
        .by_ref()
        .take(limit)
        .map(|(group, partition, owners)| {
            let owners = owners.iter().filter_map(id).collect();
            Partition { group, partition, owners }
        })
        .collect();
    let next = start.saturating_add(partitions.len() as u64);
    let cursor = rest.peek().map(|_| next.to_string());
    Ok(fresh(Json(PartitionPage { partitions, cursor })))
}

fn page(query: &Query<'_>) -> Result<(u64, usize), Problem> {
    let limit = query.number("limit", LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
    if limit == 0 {
        return Err(Problem::bad_request("`limit` must be above 0"));
    }
    Ok((query.number("cursor", u64::MAX)?.unwrap_or(0), limit as usize))
}

fn overview(status: ClusterStatus) -> Overview {
    let name = |id: u64| {
        let node = status.nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| hex(id), |node| node.name.clone())
    };
    let transfers = status.transfers.iter().map(|transfer| Transfer {
        group: group_name(&transfer.mode, transfer.copies),
        partition: transfer.partition,
        from: name(transfer.from),
        to: name(transfer.to),
        bytes: transfer.bytes,
        since_ms: transfer.since_ms,
    });
    let served = status.groups.iter().all(|group| group.without_primary == 0 && group.lost == 0);
    let lonely = status.nodes.iter().any(|node| node.last_copies > 0);
    Overview {
        node: name(status.node_id),
        controller: Some(status.control.leader).filter(|id| *id != 0).map(name),
        term: status.control.term,
        voters: status.control.voters.iter().copied().map(name).collect(),
        nodes: status.nodes.len(),
        nodes_ready: status.nodes.iter().filter(|node| node.state == "ready").count(),
        safe: served && !lonely,
        transfers: transfers.collect(),
        id: status.cluster_id,
        epoch: status.epoch,
        partitions: status.partitions,
        now_ms: status.now_ms,
        groups: status.groups.into_iter().map(group).collect(),
        warnings: status
            .warnings
            .into_iter()
            .map(|Told { level, text, advice }| Warning { level, text, advice })
            .collect(),
        events: status
            .events
            .into_iter()
            .map(|event| Event { at_ms: event.at_ms, text: event.text })
            .collect(),
    }
}

fn group(group: GroupStatus) -> Group {
    Group {
        name: group_name(&group.mode, group.copies),
        mode: group.mode,
        copies: group.copies,
        copies_possible: group.copies_possible,
        caches: group.caches,
        whole: group.whole,
        short: group.short,
        without_primary: group.without_primary,
        lost: group.lost,
    }
}

fn member(node: NodeStatus) -> Member {
    Member {
        id: hex(node.id),
        name: node.name,
        state: node.state,
        zone: node.zone,
        weight: node.weight,
        witness: node.witness,
        native: node.native,
        memcached: node.memcached,
        http: node.http,
        heard_ms_ago: node.heard_ms_ago,
        operations_per_s: node.operations_per_s,
        busy: node.busy,
        memory_used: node.memory_used,
        memory_limit: node.memory_limit,
        led: node.led,
        held: node.held,
        filling: node.filling,
        wanted: node.wanted,
        last_copies: node.last_copies,
    }
}

fn group_name(mode: &str, copies: u32) -> String {
    format!("{mode}-{copies}")
}

/// An id as people write it; JavaScript's numbers end at 2^53.
fn hex(id: u64) -> String {
    format!("{id:016x}")
}
