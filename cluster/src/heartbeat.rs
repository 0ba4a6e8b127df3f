//! What nodes tell each other regularly, and how often.
//!
//! A heartbeat says who is alive; it also carries what others need to choose well: readiness, load,
//! memory, the epoch of the sender's table and its hottest partitions. Nothing that must be right
//! rests on it: a heartbeat that is late, lost or wrong costs time or balance, never data.
//!
//! The cluster and the lives of sender and addressee are in the message around it.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Place};

/// Most partitions that a heartbeat names as hot.
pub const HOTTEST_MAX: usize = 16;

/// Alive, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises by one with each beat of this life: tells a late beat from a new one.
    pub count: u64,
    /// The sender's table. Who sees a lower one than its own knows that the other lags.
    pub epoch: Epoch,
    /// Whether the sender leads the controller group, as far as it knows. The others learn from
    /// this where to report to.
    pub leads: bool,
    /// Whether it can serve.
    pub readiness: Readiness,
    /// How busy it is.
    pub load: Load,
    /// Bytes in use for items.
    pub memory_used: u64,
    /// Bytes that items may use.
    pub memory_limit: u64,
    /// Its hottest partitions with operations per second, hottest first, at most [`HOTTEST_MAX`].
    /// They are moved last.
    pub hottest: Vec<(Place, u32)>,
}

/// Whether a node can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// Not yet.
    #[default]
    Starting,
    /// Yes.
    Ready,
    /// It wants to leave: it serves what it holds and asks for nothing new.
    Leaving,
}

/// How busy a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Operations it answered in the last second.
    pub operations_per_s: u32,
    /// Requests it has taken and not answered.
    pub in_flight: u32,
    /// How much of its processors it uses, in thousandths of all of them.
    pub busy_milli: u32,
}

/// What the driver of a node knows and the core does not. Brought with each turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalFacts {
    /// Whether it can serve.
    pub readiness: Readiness,
    /// How busy it is.
    pub load: Load,
    /// Bytes in use for items.
    pub memory_used: u64,
    /// Bytes that items may use.
    pub memory_limit: u64,
    /// Hottest partitions with operations per second; the first [`HOTTEST_MAX`] are told.
    pub hottest: Vec<(Place, u32)>,
}

/// How often nodes say that they are alive, and when silence is taken for death.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// How often this node tells the controller and the nodes that it shares partitions with that
    /// it is alive. Less notices failures sooner and costs more messages; 100 to 200 is sensible.
    pub interval_ms: u64,
    /// Silence after which a node is suspected: its partitions fail over and no reads are sent to
    /// it. It is most of the time that a failover takes. Must exceed three intervals, so that two
    /// lost beats are no failure; a lower value is taken for that.
    pub suspect_after_ms: u64,
    /// Beats that a node believed dead must be heard for, without a gap, before it counts as alive
    /// again. Keeps a node that comes and goes from moving partitions each time.
    pub beats_to_recover: u32,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self { interval_ms: 150, suspect_after_ms: 1_000, beats_to_recover: 3 }
    }
}

impl HeartbeatConfig {
    /// The interval, never zero.
    #[must_use]
    pub fn interval(&self) -> u64 {
        self.interval_ms.max(1)
    }

    /// The silence that suspects, never below three intervals.
    #[must_use]
    pub fn suspect_after(&self) -> u64 {
        self.suspect_after_ms.max(self.interval().saturating_mul(3) + 1)
    }
}
