//! What can go wrong with the group, told to whom it concerns.

use std::{path::PathBuf, time::Duration};

use kiln_cluster::{
    ids::{ClusterId, Epoch},
    topology::{Applied, Rejected},
};

/// Why the group's storage cannot be opened or its thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Two processes must not be one node.
    #[error(
        "another process uses the data directory {}: stop it, or give this node a directory of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// What is in the file cannot be trusted.
    #[error(
        "{} is damaged ({what}): move it away and start again; this node then joins as a new node \
         (give --join), and the others keep the table. Only if no other node has it is the cluster's \
         table lost with it",
        .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a later release.
    #[error(
        "{} was written by a later release (format {found}, this one knows {known}): start that \
         release, or move the file away to join as a new node",
        .path.display()
    )]
    Later {
        /// Which file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The last one known here.
        known: u32,
    },
    /// The disk or the permissions.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The settings contradict each other.
    #[error("the timing of the controller group: {0}")]
    Settings(#[from] Box<openraft::ConfigError>),
    /// The thread, or the group in it.
    #[error("the controller group did not start: {0}")]
    Start(String),
}

/// A command that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The table's epoch since then. This node's own table is at least as new.
    pub(crate) epoch: Epoch,
    /// What changed.
    pub(crate) applied: Applied,
}

/// Why a command has no good outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitError {
    /// The table does not take it. Nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Nothing changed.
    #[error(
        "the controller group has no leader (tried for {0:?}): is a majority of its voters running?"
    )]
    NoLeader(Duration),
    /// Nothing changed: this node is in no cluster.
    #[error("this node is in no cluster yet")]
    NoCluster,
    /// Nothing changed: too many commands wait.
    #[error("too many commands wait already")]
    Busy,
    /// It may have taken effect, or may yet: look at the table before trying again.
    #[error("no outcome in time: the command may have taken effect, look before trying again")]
    Indeterminate,
    /// It may have taken effect.
    #[error("the controller group of this node has stopped: {0}")]
    Stopped(String),
}

/// Why a node is not in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    /// The nodes it was told to join, or that it remembers, are in another cluster than itself.
    #[error(
        "{at} is in cluster {theirs:016x}, this node's data directory belongs to cluster \
         {ours:016x}: correct the address, or empty the data directory to join as a new node"
    )]
    OtherCluster {
        /// Who said so.
        at: String,
        /// Its cluster.
        theirs: u64,
        /// That of this node's data directory.
        ours: u64,
    },
    /// The table does not take it.
    #[error("the cluster does not take this node: {0}")]
    Rejected(Rejected),
    /// Nobody answered as hoped.
    #[error("not in the cluster after {after:?}; last: {last}")]
    GaveUp {
        /// How long it was tried.
        after: Duration,
        /// The last thing that was in the way.
        last: String,
    },
    /// There is nobody to ask.
    #[error("no address to join is given, and none is remembered")]
    Nobody,
    /// This node is in a cluster already.
    #[error("this node's data directory belongs to cluster {0:016x} already")]
    AlreadyIn(u64),
    /// The cluster id could not be kept.
    #[error("cannot keep the id of the cluster: {0}")]
    NotKept(String),
    /// The thread of the group has ended.
    #[error("the controller group of this node has stopped: {0}")]
    Stopped(String),
}

/// Why a cluster could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BootstrapError {
    /// There is one.
    #[error("this node's data directory belongs to cluster {:016x} already", .0.0)]
    AlreadyIn(ClusterId),
    /// The group did not come to a decision.
    #[error("the new controller group decided nothing in time")]
    Timeout,
    /// What this node keeps could not be written.
    #[error("cannot keep the id of the cluster: {0}")]
    NotKept(String),
    /// The thread of the group has ended.
    #[error("the controller group of this node has stopped: {0}")]
    Stopped(String),
}
