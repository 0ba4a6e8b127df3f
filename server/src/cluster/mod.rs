//! This node among others: the replication core, driven by real time and real sockets.
//!
//! ```text
//!   workers --- wave ----> driver --- events ---> kiln_cluster::node::Node
//!      |                     |  <-- actions ---
//!      |                     +--- peer::Links --- other nodes
//!      |                     +--- control::Control --- the agreed table
//!      +--- gate, rights: what workers may do at the stores by themselves
//!
//!   start       from the settings to a node that is in the table, and out of it again
//!   driver      a turn: what happened, what the core decides, what is done about it
//!   turns       which thread runs it
//!   shared      what workers see
//!   wave        requests that wait together
//!   gate        alone, or one of several
//!   rights      reads without asking anyone
//!   translate   commands and outcomes, there and back
//!   catalog     the caches of the table, made here
//!   figures     the table, counted
//!   facts       what heartbeats say of this node
//!   watcher     what people want to know
//! ```

mod catalog;
mod driver;
mod facts;
mod figures;
mod gate;
mod near;
mod rights;
mod shared;
mod start;
pub(crate) mod status;
mod translate;
mod turns;
mod watcher;
mod wave;

pub(crate) use catalog::spec_of;
pub(crate) use figures::Figures;
pub(crate) use rights::{GroupRights, Ticket};
pub(crate) use shared::{Cluster, Decided, Decision};
pub(crate) use start::{Running, start};
pub(crate) use translate::{answer, operation};
pub(crate) use wave::{Asked, Wave};

/// The names under which a node's addresses stand in the table.
pub(crate) const PEER: &str = "peer";
/// Kiln's own clients.
pub(crate) const NATIVE: &str = "native";
/// Memcached clients.
pub(crate) const MEMCACHED: &str = "memcached";
/// HTTP clients.
pub(crate) const HTTP: &str = "http";

/// How long a request is tried before the client is told that nobody could carry it out.
pub(crate) const PATIENCE_MS: u32 = 5_000;
