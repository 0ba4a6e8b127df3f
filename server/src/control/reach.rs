//! Who is where, and in which cluster: what each request to another member needs.
//!
//! Each request names the cluster and is refused by members of another one, so that reused
//! addresses never merge two clusters. The table knows where a node listens; what a node that
//! restarted elsewhere said of itself goes before that, because the table cannot change before its
//! voters have found each other.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Member, NodeId},
    topology::{NODES_MAX, Topology},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    machine::Board,
    record::parse,
    wire::{Unanswered, Wire, WireError},
};

/// The name under which the address of a node's links stands in the table.
pub(super) const PEER: &str = "peer";

/// Around each request.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    /// 0 while the node that asks is in none.
    cluster: ClusterId,
    asked: T,
}

/// The way to other members.
pub(super) struct Reach {
    wire: Arc<dyn Wire>,
    board: Board,
    me: Member,
    cluster: AtomicU64,
    /// Where nodes said that they are, until the table says the same.
    said: Mutex<BTreeMap<NodeId, String>>,
}

impl Reach {
    pub(super) fn new(
        wire: Arc<dyn Wire>,
        board: Board,
        me: Member,
        cluster: Option<ClusterId>,
    ) -> Self {
        let cluster = AtomicU64::new(cluster.map_or(0, |cluster| cluster.0));
        Self { wire, board, me, cluster, said: Mutex::default() }
    }

    /// The cluster of this node, once it is in one.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        match self.cluster.load(Ordering::Acquire) {
            0 => None,
            cluster => Some(ClusterId(cluster)),
        }
    }

    pub(super) fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.store(cluster.0, Ordering::Release);
    }

    /// A node says where it is now. Only nodes that the table or the group knows are remembered.
    pub(super) fn note(&self, node: NodeId, address: &str) {
        let mut said = self.said.lock();
        if said.len() < NODES_MAX || said.contains_key(&node) {
            said.insert(node, address.to_owned());
        }
    }

    /// Where a node listens, as far as it is known.
    pub(super) fn address(&self, node: NodeId, seat: Option<&str>) -> Option<String> {
        let table = self.board.table();
        self.news(&table, node)
            .or_else(|| peer_address(&table, node).map(str::to_owned))
            .or_else(|| seat.map(str::to_owned))
    }

    /// Where it said that it is, if the table says otherwise.
    fn news(&self, table: &Topology, node: NodeId) -> Option<String> {
        let mut said = self.said.lock();
        let address = said.get(&node)?;
        if peer_address(table, node) == Some(address) {
            said.remove(&node);
            return None;
        }
        Some(address.clone())
    }

    /// Tells the wire which members this node remembers.
    pub(super) fn remember(&self, members: Vec<(NodeId, String)>) {
        self.wire.remember(members);
    }

    /// Asks a member.
    pub(super) async fn ask<A: DeserializeOwned>(
        &self,
        to: NodeId,
        seat: Option<&str>,
        kind: u8,
        asked: &impl Serialize,
        within: Duration,
    ) -> Result<A, WireError> {
        debug_assert_ne!(to, self.me.node, "nobody asks itself");
        let body = self.envelope(asked)?;
        let table = self.board.table();
        let answer = match self.news(&table, to) {
            Some(address) => self.wire.call_at(&address, kind, body, within),
            None => {
                let address = peer_address(&table, to).or(seat);
                self.wire.call(to, address, kind, body, within)
            }
        };
        read(&answer.await?)
    }

    /// Asks whoever listens there.
    pub(super) async fn ask_at<A: DeserializeOwned>(
        &self,
        address: &str,
        kind: u8,
        asked: &impl Serialize,
        within: Duration,
    ) -> Result<A, WireError> {
        let body = self.envelope(asked)?;
        read(&self.wire.call_at(address, kind, body, within).await?)
    }

    fn envelope(&self, asked: &impl Serialize) -> Result<Bytes, WireError> {
        let cluster = self.cluster().unwrap_or_default();
        pack(&Envelope { cluster, asked }).map_err(WireError::NotDone)
    }

    /// What another node asks of a member of the cluster.
    pub(super) fn open<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Unanswered> {
        let (cluster, asked) = open_any(body)?;
        match self.cluster() {
            None => Err(Unanswered::NotReady),
            Some(ours) if cluster != ours => Err(Unanswered::OtherCluster),
            Some(_) => Ok(asked),
        }
    }
}

/// What anybody asks, and the cluster that is named in it.
pub(super) fn open_any<T: DeserializeOwned>(body: &[u8]) -> Result<(ClusterId, T), Unanswered> {
    let Envelope { cluster, asked } = parse(body).map_err(|_| Unanswered::Malformed)?;
    Ok((cluster, asked))
}

/// An answer in bytes.
pub(super) fn pack(value: &impl Serialize) -> Result<Bytes, String> {
    rmp_serde::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}

fn read<A: DeserializeOwned>(answer: &[u8]) -> Result<A, WireError> {
    // It was done, whatever the answer means.
    parse(answer).map_err(|error| WireError::Unknown(format!("the answer cannot be read: {error}")))
}

/// Where a node's links listen, by the table.
pub(super) fn peer_address(table: &Topology, node: NodeId) -> Option<&str> {
    table.nodes.get(&node)?.addresses.get(PEER).map(String::as_str)
}
