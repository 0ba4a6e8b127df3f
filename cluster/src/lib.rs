//! Who owns what, who is alive, what must be replicated: decisions only.
//!
//! ```text
//!   Node                 routes events to the parts below, gathers their actions, one message per peer
//!     strong::Replica    one per partition of strong groups: replication, failover, handoff
//!     EventualReplica    eventual mode, one per partition
//!     Controller         acts on the node that leads the controller group: who holds what
//!     Membership         heartbeats, suspicion
//!   Topology             the agreed table: a state machine of commands
//!   Store                the memory of one node, behind a trait
//! ```
//!
//! The crate is pure. Whoever drives a [`node::Node`] brings the time, once per turn, and the
//! randomness, once at the start; it carries out the [`node::Action`]s. The same events in the same
//! order give the same actions, so that a failing run is a seed.

pub mod answers;
pub mod balance;
pub mod brief;
pub mod clock;
pub mod config;
pub mod context;
pub mod controller;
pub mod digest;
pub mod effect;
pub mod evaluate;
pub mod eventual;
mod few;
pub mod heartbeat;
pub mod hints;
pub mod ids;
pub mod log;
pub mod membership;
pub mod message;
pub mod node;
pub mod placement;
pub mod repair;
pub mod rounds;
pub mod store;
#[cfg(feature = "engine")]
pub mod store_engine;
pub mod strong;
pub mod time;
pub mod tombstone;
pub mod topology;
pub mod version;
mod warm;

pub(crate) use config::mutant;
