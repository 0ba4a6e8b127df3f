//! What people want to know of the group.

use std::{collections::BTreeMap, fmt};

use kiln_cluster::ids::{ClusterId, NodeId};
use openraft::ServerState;

use super::running::Running;

/// What a node does in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Decides.
    Leader,
    /// Votes.
    Follower,
    /// Wants to lead.
    Candidate,
    /// Learns what is decided.
    Learner,
    /// Does not take part any more.
    Stopped,
}

/// The group, as this node sees it.
#[derive(Clone, Debug)]
pub(crate) struct ControlStatus {
    /// This node.
    pub(crate) node: NodeId,
    /// The cluster it is in.
    pub(crate) cluster: Option<ClusterId>,
    /// What it does.
    pub(crate) role: Role,
    /// Who leads, as far as it knows.
    pub(crate) leader: Option<NodeId>,
    /// Whether it leads and its table is current.
    pub(crate) leading: bool,
    /// Rises with each election.
    pub(crate) term: u64,
    /// Entries of the log, from the first one ever on.
    pub(crate) last_log: u64,
    /// Entries that are in the table.
    pub(crate) applied: u64,
    /// Entries that are in the last snapshot.
    pub(crate) snapshot: u64,
    /// Entries that are only in the snapshot.
    pub(crate) purged: u64,
    /// Leader: milliseconds since a majority has answered.
    pub(crate) majority_answered_ms_ago: Option<u64>,
    /// Who votes.
    pub(crate) voters: Vec<NodeId>,
    /// Whether that is being changed.
    pub(crate) changing: bool,
    /// Who learns.
    pub(crate) learners: Vec<NodeId>,
    /// Leader: entries that members lack.
    pub(crate) lacking: BTreeMap<NodeId, u64>,
    /// Whether vote, log and table outlive the process.
    pub(crate) durable: bool,
    /// Bytes that they take on disk.
    pub(crate) file_len: u64,
    /// Commands that nobody waited for and that were dropped.
    pub(crate) dropped: u64,
    /// Why the group of this node stopped.
    pub(crate) fault: Option<String>,
}

/// One line, for the log.
impl fmt::Display for ControlStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, role, leading, term, last_log, applied, snapshot, purged, .. } = self;
        let cluster = self.cluster.unwrap_or_default().0;
        write!(f, "node {node} of {cluster:016x}: {role:?}, leading {leading}, term {term}, ")?;
        write!(f, "log {last_log} applied {applied} snapshot {snapshot} purged {purged}, ")?;
        let Self { voters, learners, changing, lacking, file_len, dropped, fault, .. } = self;
        write!(f, "voters {voters:?} learners {learners:?} changing {changing}, ")?;
        write!(f, "lacking {lacking:?}, file {file_len} bytes, dropped {dropped}")?;
        fault.iter().try_for_each(|fault| write!(f, ", stopped: {fault}"))
    }
}

impl Running {
    /// The group, as this node sees it.
    pub(super) fn status(&self) -> ControlStatus {
        let metrics = self.metrics();
        let fault = self.fault.borrow().clone();
        let index = |id: Option<openraft::LogId<u64>>| id.map_or(0, |id| id.index + 1);
        let membership = metrics.membership_config.membership();
        let last_log = metrics.last_log_index.map_or(0, |last| last + 1);
        let (durable, file_len) = match &*self.store.lock() {
            Some(store) => (store.is_durable(), store.file_len()),
            None => (false, 0),
        };
        let lacking = metrics.replication.iter().flatten();
        ControlStatus {
            node: self.me.node,
            cluster: self.reach.cluster(),
            role: match metrics.state {
                _ if fault.is_some() => Role::Stopped,
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            leader: metrics.current_leader.map(NodeId),
            leading: *self.leading.borrow(),
            term: metrics.current_term,
            last_log,
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            purged: index(metrics.purged),
            majority_answered_ms_ago: metrics.millis_since_quorum_ack,
            voters: membership.voter_ids().map(NodeId).collect(),
            changing: membership.get_joint_config().len() > 1
                || *metrics.membership_config.log_id() > metrics.last_applied,
            learners: membership.learner_ids().map(NodeId).collect(),
            lacking: lacking
                .map(|(node, id)| (NodeId(*node), last_log.saturating_sub(index(*id))))
                .collect(),
            durable,
            file_len,
            dropped: self.dropped(),
            fault,
        }
    }
}
