//! What the group agrees on: one decree for each entry of its log.
//!
//! The first decree founds the table and thereby the cluster; all others are commands to the table.
//! The type parameters of the Raft library are fixed here as well.

use std::io::Cursor;

use kiln_cluster::{
    ids::{ClusterId, Epoch},
    topology::{Applied, Rejected, Topology, TopologyCommand},
};
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// The controller group, to the Raft library.
    pub(super) Group:
        D = Decree,
        R = Outcome,
        NodeId = u64,
        Node = Seat,
);

pub(super) type Entry = openraft::Entry<Group>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Metrics = openraft::RaftMetrics<u64, Seat>;
pub(super) type Raft = openraft::Raft<Group>;
pub(super) type Snapshot = openraft::Snapshot<Group>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, Seat>;
pub(super) type StorageError = openraft::StorageError<u64>;
pub(super) type StorageIoError = openraft::StorageIOError<u64>;
pub(super) type StoredMembership = openraft::StoredMembership<u64, Seat>;
pub(super) type Vote = openraft::Vote<u64>;

/// A member of the group, as its configuration knows it. The table knows the present address; this
/// one finds the way when there is no table yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// The operator's name of the node.
    pub(crate) name: String,
    /// Where its links listened when it was taken up.
    pub(crate) address: String,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Decree {
    /// There is a cluster. Only the first of these has an effect.
    Found {
        /// Its id.
        cluster: ClusterId,
        /// Partitions of each placement group.
        partitions: u32,
        /// What its table begins with.
        first: Vec<TopologyCommand>,
    },
    /// The table changes.
    Change(TopologyCommand),
}

/// What became of a decree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// Nothing to tell: an entry of the library's own.
    Nothing,
    /// The table is another.
    Applied {
        /// Its epoch since then.
        epoch: Epoch,
        /// What changed.
        applied: Applied,
    },
    /// The table is as it was.
    Rejected(Rejected),
    /// There is no table yet, or there is one already.
    OutOfPlace,
}

/// Carries out a decree: the same result on every member.
pub(super) fn carry_out(table: &mut Option<Topology>, decree: &Decree) -> Outcome {
    match (decree, &mut *table) {
        (Decree::Found { cluster, partitions, first }, None) => {
            let mut new = Topology::new(*cluster, *partitions);
            let mut all = Applied::default();
            for command in first {
                // What is refused here would have been refused later; the cluster is there anyway.
                if let Ok(applied) = new.apply(command) {
                    all.changed.extend(applied.changed);
                    all.lost.extend(applied.lost);
                }
            }
            let epoch = new.epoch;
            *table = Some(new);
            Outcome::Applied { epoch, applied: all }
        }
        (Decree::Change(command), Some(present)) => match present.apply(command) {
            Ok(applied) => Outcome::Applied { epoch: present.epoch, applied },
            Err(rejected) => Outcome::Rejected(rejected),
        },
        (Decree::Found { .. }, Some(_)) | (Decree::Change(_), None) => Outcome::OutOfPlace,
    }
}
