//! Why a node cannot be reached, or a call has no answer.

use std::{fmt, io, sync::Arc};

use kiln_cluster::ids::NodeId;
use kiln_protocol::peer::FrameError;
use serde::{Deserialize, Serialize};

/// Why a call has no answer. Says whether it may have been carried out all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Not sent: no such node among the peers.
    #[error("node {0} is not among the peers")]
    UnknownPeer(NodeId),
    /// Not sent: there is no connection. Later it may go through.
    #[error("not connected: {0}")]
    NotConnected(DialError),
    /// Not sent: too many calls wait for the peer already. Later it may go through.
    #[error("too many calls wait for that node")]
    Busy,
    /// Not sent: no frame holds it.
    #[error("a call of {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Not carried out: the peer says so, and why.
    #[error("refused by the node: {0}")]
    Refused(#[from] Refused),
    /// The connection broke. It may have been carried out.
    #[error("the connection broke before the answer")]
    Disconnected,
    /// No answer in time. It may have been carried out, now or later.
    #[error("no answer in time")]
    Deadline,
}

impl CallError {
    /// Whether the peer may have carried it out, or may yet.
    pub(crate) fn may_have_been_done(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Deadline)
    }
}

/// Why a node does not answer a call. It was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub(crate) enum Refused {
    /// No such call here.
    #[error("it does not know this kind of call")]
    UnknownKind = 1,
    /// The body cannot be read.
    #[error("it cannot read the call")]
    Malformed = 2,
    /// Too much is worked on already.
    #[error("it is busy")]
    Busy = 3,
    /// The node cannot do this yet.
    #[error("it is not ready for this yet")]
    NotReady = 4,
    /// Only members of the cluster may ask this, and one of the two ends is none yet.
    #[error("only members of the same cluster may ask this")]
    NotMember = 5,
    /// The node stops.
    #[error("it is stopping")]
    Stopping = 6,
    /// The answer is longer than a frame.
    #[error("the answer is too long for a frame")]
    AnswerTooLarge = 7,
}

impl Refused {
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::UnknownKind,
            2 => Self::Malformed,
            4 => Self::NotReady,
            5 => Self::NotMember,
            6 => Self::Stopping,
            7 => Self::AnswerTooLarge,
            // Also what a later version may say: try again later is never wrong.
            _ => Self::Busy,
        }
    }
}

/// Why there is no connection to a node.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Peers are dialled only by members of a cluster.
    #[error("this node belongs to no cluster yet")]
    NoCluster,
    /// The address names no host that is known.
    #[error("the host name cannot be resolved: {0}")]
    Resolve(Arc<io::Error>),
    /// Nothing answers at the address.
    #[error("cannot connect: {0}")]
    Connect(Arc<io::Error>),
    /// The other end was too slow.
    #[error("no answer to {0} in time")]
    TimedOut(Step),
    /// The other end closed the connection before it said who it is.
    #[error("the other end closed the connection before it said who it is")]
    Closed,
    /// Something else listens there.
    #[error(
        "what listens there is not a node of Kiln; give the port that its `ready` line names as peer="
    )]
    NotKiln,
    /// A node of another version.
    #[error(
        "the node there speaks version {theirs} between nodes, this one {ours}; run the same release"
    )]
    Version {
        /// Theirs.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// Bytes were damaged on their way, or are not what a node says.
    #[error("the handshake was damaged: {0}")]
    Damaged(FrameError),
    /// The other end said something else than who it is.
    #[error("the other end did not say who it is")]
    Malformed,
    /// The two do not belong together.
    #[error("{0}")]
    Refused(Refusal),
}

/// A step of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Looking the name up.
    Lookup,
    /// Opening the connection.
    Connect,
    /// Saying who is who.
    Handshake,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lookup => "the name lookup",
            Self::Connect => "the connection attempt",
            Self::Handshake => "the handshake",
        })
    }
}

/// Why two nodes do not connect: what they say of each other in the handshake. Goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The two are in different clusters.
    #[error(
        "the node that was dialled is in cluster {listener:x}, the one that dialled in cluster \
         {dialler:x}; if the address is right and this node is to change over, give it an empty \
         data directory, else correct the address"
    )]
    OtherCluster {
        /// That of the node that was dialled.
        listener: u64,
        /// That of the node that dialled.
        dialler: u64,
    },
    /// A node dialled itself, or another node with its id.
    #[error(
        "the node there has the id of this one: it is this node itself, or one that was started \
         with a copy of its data directory; leave its own address out, or empty the copy"
    )]
    OwnId,
    /// Another node than was looked for has the address now.
    #[error(
        "node {node} ({name}) has this address, not the node that was looked for; the link goes on \
         when that node tells its new address"
    )]
    OtherNode {
        /// Who is there.
        node: u64,
        /// Its name.
        name: String,
    },
    /// So many connections are open that no more are taken.
    #[error("the node there has no room for more connections between nodes")]
    Full,
}
