//! A walk through the items of several nodes, from any one of them.
//!
//! Each node tells of the items that it answers for; a walk visits the nodes by their ids. The node
//! that is asked passes a step on to the one whose turn it is, as an HTTP request with the caller's
//! own credentials, and holds nothing between steps: which node, and where on it, is in the cursor,
//! `NODE~PLACE`. While partitions move, an item may be told twice or not at all.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use bytes::Bytes;
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use kiln_cluster::topology::{NodeState, Topology};
use tokio::{net::TcpStream, time::timeout};

use super::problem::{Document, Kind, Problem};
use crate::{cluster::HTTP, node::Node};

/// How long another node may take for a step.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);

/// Bytes of its answer.
const ANSWER_LEN_MAX: usize = 4 << 20;

/// Who could not be answered because of another node may ask again so soon.
const RETRY_MS: u64 = 500;

/// Where a walk is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// The node whose turn it is.
    pub(super) node: u64,
    /// Where it serves HTTP; `None` when it is this one.
    pub(super) address: Option<String>,
    /// The place on it; `None` for its beginning.
    pub(super) place: Option<String>,
}

/// The cursor is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadCursor;

/// The end of a walk, or its next step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nobody else has items: the cursor is that of this node.
    Here(Option<String>),
    /// One of several nodes.
    At(Stop),
    /// The node of the cursor has left, and none comes behind it.
    End,
}

/// The table, when other nodes are in it.
pub(super) fn table(node: &Node) -> Option<(Arc<Topology>, u64)> {
    let cluster = node.cluster.get()?;
    let topology = Arc::clone(&cluster.topology());
    (topology.nodes.len() > 1).then_some((topology, cluster.me.node.0))
}

/// The step that a cursor leads to.
pub(super) fn step(
    table: Option<&(Arc<Topology>, u64)>,
    cursor: Option<&str>,
) -> Result<Step, BadCursor> {
    let at = cursor.and_then(|cursor| cursor.split_once('~'));
    let Some((table, me)) = table else {
        // Begun while there were others, it goes on with what is here.
        let place = match at {
            Some((_, place)) => Some(place).filter(|place| !place.is_empty()),
            None => cursor,
        };
        return Ok(Step::Here(place.map(str::to_owned)));
    };
    let (first, place) = match (at, cursor) {
        (Some((node, place)), _) => {
            (u64::from_str_radix(node, 16).map_err(|_| BadCursor)?, Some(place))
        }
        // Begun while there were no others.
        (None, Some(place)) => (*me, Some(place)),
        (None, None) => (0, None),
    };
    let Some((node, http)) = holders(table).find(|(node, _)| *node >= first) else {
        return Ok(Step::End);
    };
    let place = place.filter(|place| node == first && !place.is_empty()).map(str::to_owned);
    let address = (node != *me).then(|| http.to_owned());
    Ok(Step::At(Stop { node, address, place }))
}

/// The cursor behind a step that ended at `place` of a node; `None` at the end of the walk.
pub(super) fn cursor(table: &Topology, node: u64, place: Option<&str>) -> Option<String> {
    match place {
        Some(place) => Some(format!("{node:016x}~{place}")),
        None => {
            holders(table).find(|(next, _)| *next > node).map(|(next, _)| format!("{next:016x}~"))
        }
    }
}

/// Nodes that may answer for items, by id, and where they serve HTTP.
fn holders(table: &Topology) -> impl Iterator<Item = (u64, &str)> {
    let up = table.nodes.iter().filter(|(_, info)| info.state != NodeState::Down && !info.witness);
    up.map(|(node, info)| (node.0, info.addresses.get(HTTP).map_or("", String::as_str)))
}

/// Asks another node. Its problems are passed on.
pub(super) async fn ask(
    address: &str,
    target: &str,
    headers: &HeaderMap,
) -> Result<Bytes, Problem> {
    let unavailable = |why: &str| {
        let detail = format!("the node at {address} has the next items, and {why}");
        Problem::new(Kind::Unavailable, detail).retry_after_ms(RETRY_MS)
    };
    if address.is_empty() {
        return Err(Problem::new(
            Kind::Unavailable,
            "a node that has some of the items does not serve HTTP (listen_http is off)",
        )
        .retry_after_ms(RETRY_MS));
    }
    let answered = timeout(ASK_TIME_MAX, exchange(address, target, headers)).await;
    let answered = answered.map_err(|_| unavailable("did not answer in time"))?;
    let (status, body) = answered.map_err(|error| unavailable(&format!("failed: {error}")))?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    let told: Option<Document> = serde_json::from_slice(&body).ok();
    let detail = told.as_ref().map_or("gave no reason", |told| &*told.detail).to_owned();
    let kind = told.and_then(|told| Kind::of_type(&told.kind)).unwrap_or(Kind::Unavailable);
    match kind {
        // Known here, and there in a moment.
        Kind::NoSuchCache => Err(unavailable("does not know the cache yet")),
        Kind::Unavailable | Kind::Busy | Kind::Internal | Kind::Unauthenticated => {
            Err(unavailable(&format!("answered {status}: {detail}")))
        }
        kind => Err(Problem::new(kind, detail)),
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] axum::http::Error),
    #[error("its answer is longer than {ANSWER_LEN_MAX} bytes")]
    TooLong,
}

async fn exchange(
    address: &str,
    target: &str,
    headers: &HeaderMap,
) -> Result<(StatusCode, Bytes), AskError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or when the other side closes.
    let running = tokio::spawn(connection);
    let mut request = Request::get(target).header(header::HOST, address);
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let response = send.send_request(request.body(Body::empty())?).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|task| std::pin::Pin::new(&mut body).poll_frame(task)).await
    {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > ANSWER_LEN_MAX {
                running.abort();
                return Err(AskError::TooLong);
            }
            bytes.extend_from_slice(&data);
        }
    }
    running.abort();
    Ok((status, bytes.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_cluster::{
        ids::{ClusterId, Incarnation, NodeId},
        topology::NodeInfo,
    };

    use super::*;

    fn table(nodes: &[(u64, NodeState)]) -> (Arc<Topology>, u64) {
        let mut topology = Topology::new(ClusterId(1), 4);
        for (id, state) in nodes {
            let info = NodeInfo {
                name: id.to_string(),
                incarnation: Incarnation(1),
                addresses: BTreeMap::from([(HTTP.to_owned(), format!("h:{id}"))]),
                weight: 1_000,
                zone: String::new(),
                state: *state,
                witness: false,
            };
            topology.nodes.insert(NodeId(*id), info);
        }
        (Arc::new(topology), 2)
    }

    #[test]
    fn a_walk_visits_every_node_that_is_up_by_its_id_and_ends() {
        use NodeState::{Down, Draining, Ready};
        let table = table(&[(1, Ready), (2, Ready), (3, Down), (0xA, Draining)]);
        let (mut visited, mut at) = (Vec::new(), None::<String>);
        for places in [Some("x"), None, None, None] {
            let Step::At(stop) = step(Some(&table), at.as_deref()).unwrap() else { panic!() };
            visited.push((stop.node, stop.address, stop.place));
            at = cursor(&table.0, stop.node, places);
            if at.is_none() {
                break;
            }
        }
        let there = |id: u64| Some(format!("h:{id}"));
        assert_eq!(
            visited,
            [
                (1, there(1), None),
                (1, there(1), Some("x".to_owned())),
                (2, None, None),
                (0xA, there(0xA), None),
            ]
        );
        assert_eq!(at, None);
    }

    #[test]
    fn a_walk_goes_on_when_nodes_came_or_left_meanwhile() {
        let several = table(&[(1, NodeState::Ready), (2, NodeState::Ready)]);
        let begun_alone = step(Some(&several), Some("place")).unwrap();
        assert!(matches!(begun_alone, Step::At(Stop { node: 2, address: None, .. })));
        let left = step(Some(&several), Some("0000000000000001~p")).unwrap();
        assert!(matches!(left, Step::At(Stop { node: 1, place: Some(_), .. })));
        assert_eq!(step(Some(&several), Some("0000000000000009~p")), Ok(Step::End));
        assert_eq!(step(None, Some("0000000000000002~p")), Ok(Step::Here(Some("p".to_owned()))));
        assert_eq!(step(Some(&several), Some("zz~p")), Err(BadCursor));
    }
}
