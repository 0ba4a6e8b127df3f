//! How members of the group reach each other: a request, an answer, a deadline.
//!
//! The links between nodes are one such wire; tests have another that cuts where they say.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use kiln_cluster::ids::NodeId;

/// A future that may move between threads.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What this module asks of others. All are among the kinds that a node may ask before it knows
/// its cluster: each request names the cluster, and who is in another one refuses it.
pub(super) mod kind {
    /// A node wants to be in the table.
    pub(in crate::control) const JOIN: u8 = 0x01;
    /// Commands, fire and forget.
    pub(in crate::control) const PROPOSE: u8 = 0x02;
    /// A command, with its outcome.
    pub(in crate::control) const COMMIT: u8 = 0x03;
    /// Whether the node is there.
    pub(in crate::control) const PING: u8 = 0x04;
    /// Raft: entries, or the leader's sign of life.
    pub(in crate::control) const APPEND: u8 = 0x10;
    /// Raft: a candidate asks.
    pub(in crate::control) const VOTE: u8 = 0x11;
    /// Raft: the whole table.
    pub(in crate::control) const SNAPSHOT: u8 = 0x12;
}

/// Carries requests to other nodes.
pub(crate) trait Wire: Send + Sync + 'static {
    /// These nodes are members, by what this one remembers. For a wire that keeps connections, and
    /// for the time until the table says whom to keep them to.
    fn remember(&self, _members: Vec<(NodeId, String)>) {}

    /// To a node. `address` is where it was last known to listen, for a wire that has no
    /// connection to it yet.
    fn call(
        &self,
        to: NodeId,
        address: Option<&str>,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>>;

    /// To whoever listens at an address.
    fn call_at(
        &self,
        address: &str,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>>;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// Not sent, or refused: nothing was done.
    #[error("{0}")]
    NotDone(String),
    /// Sent, and no answer came: it may have been done, or may yet be.
    #[error("{0}")]
    Unknown(String),
}

/// Why this node does not answer. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// No such request.
    UnknownKind,
    /// It cannot be read.
    Malformed,
    /// Too much is under way.
    Busy,
    /// Not in a cluster yet, or the group does not run.
    NotReady,
    /// The request is of another cluster.
    OtherCluster,
    /// The group stops.
    Stopping,
}
