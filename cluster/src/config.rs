//! Settings of the replication core, with the limits that bound every queue and wait.

use serde::{Deserialize, Serialize};

use crate::balance::ReadBalance;
use crate::controller::ControllerConfig;
use crate::eventual::EventualConfig;
use crate::heartbeat::HeartbeatConfig;

/// Settings of strong mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StrongConfig {
    /// How long a request may wait for other nodes before it is answered as not made sure.
    pub request_timeout_ms: u64,
    /// Writes of one partition that wait for confirmations; more are refused as busy.
    pub pending_writes_max: usize,
    /// Bytes of those writes; more are refused as busy. Also bounds what a new primary sends at once.
    pub pending_bytes_max: usize,
    /// Bytes of effects in one message; a larger effect goes alone.
    pub append_bytes_max: usize,
    /// Confirmed effects kept for learners that lag; one that lags more starts anew.
    pub retain_bytes_max: usize,
    /// A copy of a cache that refuses when full asks for no more when less than this is free.
    pub room_reserve_bytes: usize,
    /// How long a quiet primary waits before it tells what it evicted, and what is confirmed if that
    /// matters: if it has just taken over, or copies answer reads, are being filled, or hold more than
    /// `untold_bytes_max` for it. Else they hear of it with the next write, or within a second with that of
    /// all partitions.
    pub tell_after_ms: u64,
    /// Bytes that copies may hold and not apply for want of a word that they are confirmed.
    pub untold_bytes_max: usize,
    /// Evictions that wait to be told; more are not told.
    pub evictions_max: usize,
    /// Items dropped in one turn when a partition is given up.
    pub drop_items: usize,
    /// Reads of one partition that wait for a confirm round; more are refused as busy.
    pub pending_reads_max: usize,
    /// Silence after which unconfirmed effects are sent again.
    pub resend_after_ms: u64,
    /// How long reads are gathered for one confirm round.
    pub confirm_batch_us: u64,
    /// A primary whose copy does not confirm for so long asks for its removal.
    pub shrink_after_ms: u64,
    /// Length of a read lease. Must exceed twice `lease_renew_ms`.
    pub lease_ms: u64,
    /// How often leases are renewed while reads use them.
    pub lease_renew_ms: u64,
    /// How much faster one monotonic clock may run than another, in parts per million.
    pub clock_drift_ppm: u64,
    /// Answers kept per client and partition.
    pub answers_per_client: usize,
    /// Clients whose answers a partition keeps.
    pub answer_clients_max: usize,
    /// A client silent for so long may be forgotten; a retry later than this is not recognised.
    pub answer_window_ms: u64,
    /// Bytes of a snapshot chunk.
    pub chunk_bytes: usize,
    /// Items of a snapshot chunk.
    pub chunk_items: usize,
    /// Chunks on their way to one learner.
    pub chunks_in_flight: usize,
    /// Transfers that this node feeds at once.
    pub transfers_max: usize,
    /// Bytes a second that this node spends on transfers, all together.
    pub transfer_bytes_per_s: u64,
}

impl Default for StrongConfig {
    fn default() -> Self {
        Self {
            request_timeout_ms: 2_000,
            pending_writes_max: 4_096,
            pending_bytes_max: 8 << 20,
            append_bytes_max: 256 << 10,
            retain_bytes_max: 32 << 20,
            room_reserve_bytes: 64 << 10,
            tell_after_ms: 40,
            untold_bytes_max: 4 << 10,
            evictions_max: 4_096,
            drop_items: 4_096,
            pending_reads_max: 16_384,
            resend_after_ms: 50,
            confirm_batch_us: 100,
            shrink_after_ms: 1_000,
            lease_ms: 600,
            lease_renew_ms: 150,
            clock_drift_ppm: 1_000,
            answers_per_client: 64,
            answer_clients_max: 1_024,
            answer_window_ms: 60_000,
            chunk_bytes: 64 << 10,
            chunk_items: 512,
            chunks_in_flight: 4,
            transfers_max: 4,
            transfer_bytes_per_s: 64 << 20,
        }
    }
}

/// A guard of the protocol that is left out, to show that the simulator notices.
#[cfg(any(test, feature = "mutants"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A write is acknowledged when the removal of a silent copy is only requested.
    ShrinkOnRequest,
    /// A learner whose promotion was requested is not waited for.
    PromotedNotCounted,
    /// Copies accept effects of lower terms.
    LowerTermAccepted,
    /// A restarted node is taken for the one it was. (The driver keeps the incarnation.)
    IncarnationKept,
    /// The primary answers reads without a confirm round.
    ReadUnconfirmed,
    /// Reads see effects that are not confirmed.
    ReadUnstable,
    /// A copy of a cache that refuses evicts when it is full. (The store evicts.)
    BackupEvicts,
    /// A snapshot chunk overwrites what the live stream brought.
    ChunkOverwrites,
    /// A learner forgets deletes before its snapshot is complete.
    TombstoneEarly,
    /// Retries are not looked up in the window of answers.
    NoAnswerWindow,
    /// The clocks of others are not taken in.
    ClockNotMerged,
}

/// Limits on requests that are passed on to other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardConfig {
    /// How long the other node may take. Should exceed the timeouts of the modes, so that its own
    /// answer, which knows more, comes first.
    pub timeout_ms: u64,
    /// Requests waiting for other nodes; more are refused as busy.
    pub waiting_max: usize,
    /// How often a request follows hints to yet another node.
    pub hops_max: u32,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self { timeout_ms: 2_500, waiting_max: 65_536, hops_max: 3 }
    }
}

/// All settings of a node's core.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeConfig {
    /// Strong mode.
    pub strong: StrongConfig,
    /// Eventual mode.
    pub eventual: EventualConfig,
    /// Heartbeats and suspicion.
    pub heartbeat: HeartbeatConfig,
    /// What the leader of the controller group decides, and when.
    pub controller: ControllerConfig,
    /// Which copy answers reads that any copy may answer.
    pub read_balance: ReadBalance,
    /// Requests and reads passed on to other nodes.
    pub forward: ForwardConfig,
    /// The guard left out.
    #[cfg(any(test, feature = "mutants"))]
    pub mutant: Option<Mutant>,
}

/// Whether a guard is left out. Always `false`, and gone, in a build without `mutants`.
macro_rules! mutant {
    ($config:expr, $name:ident) => {{
        #[cfg(any(test, feature = "mutants"))]
        {
            $config.mutant == Some($crate::config::Mutant::$name)
        }
        #[cfg(not(any(test, feature = "mutants")))]
        {
            let _ = &$config;
            false
        }
    }};
}
pub(crate) use mutant;
