//! How fast the group reacts, and how much it keeps.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use openraft::SnapshotPolicy;

/// The settings of the controller group. All of them have defaults but the first two.
#[derive(Clone, Debug)]
pub(crate) struct ControlSettings {
    /// Where vote, log and table are kept. Without it they live in memory, and the next start is
    /// another node.
    pub(crate) data_dir: Option<PathBuf>,
    /// The operator's name of this node.
    pub(crate) name: String,
    /// How often the leader tells the others that it is there. The library gives a call with entries
    /// no longer than this, in which a follower must have them on disk.
    pub(crate) heartbeat_ms: u64,
    /// Members give a leader up after `lease + a random part of this range` of silence, where the
    /// lease is the upper end. The lower end must exceed `heartbeat_ms`.
    pub(crate) election_ms: (u64, u64),
    /// A leader that no majority has answered for so long does not count as leading any more.
    pub(crate) doubt_ms: u64,
    /// Entries between two snapshots of the table.
    pub(crate) snapshot_after: u64,
    /// Entries kept behind a snapshot, so that a member that was away for a moment is sent entries
    /// and not the whole table.
    pub(crate) entries_kept: u64,
    /// How often the leader looks whether the voters are the right ones.
    pub(crate) voters_check: Duration,
    /// How long a voter may be down before another node takes its vote.
    pub(crate) voter_grace: Duration,
    /// Within which a command must have its outcome.
    pub(crate) commit_within: Duration,
    /// How long a call to another member may take.
    pub(crate) call_within: Duration,
    /// How long joining is tried. `None` tries for as long as it takes.
    pub(crate) join_within: Option<Duration>,
}

impl ControlSettings {
    /// The defaults.
    pub(crate) fn new(data_dir: Option<&Path>, name: &str) -> Self {
        Self {
            data_dir: data_dir.map(Path::to_owned),
            name: name.to_owned(),
            heartbeat_ms: 200,
            election_ms: (220, 400),
            doubt_ms: 1_000,
            snapshot_after: 512,
            entries_kept: 64,
            voters_check: Duration::from_millis(200),
            voter_grace: Duration::from_secs(30),
            commit_within: Duration::from_secs(5),
            call_within: Duration::from_secs(2),
            join_within: None,
        }
    }

    /// As the Raft library wants them.
    pub(super) fn raft(&self) -> Result<openraft::Config, Box<openraft::ConfigError>> {
        openraft::Config {
            cluster_name: "kiln".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms.0,
            election_timeout_max: self.election_ms.1,
            install_snapshot_timeout: SNAPSHOT_WITHIN_MS,
            max_payload_entries: ENTRIES_PER_CALL_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after.max(1)),
            // More than what is kept: a member that lags by less than the log holds gets entries.
            replication_lag_threshold: self.snapshot_after.max(1) * 2,
            max_in_snapshot_log_to_keep: self.entries_kept,
            ..openraft::Config::default()
        }
        .validate()
        .map_err(Box::new)
    }
}

/// Within which a member must have taken a snapshot.
const SNAPSHOT_WITHIN_MS: u64 = 10_000;

/// Entries in one call at most; their bytes are bounded as well.
const ENTRIES_PER_CALL_MAX: u64 = 256;
