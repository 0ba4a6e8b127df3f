//! Serves memcached clients.
//!
//! ```text
//!   connection   one client: reads, runs batches, writes; holds what does not fit in one go
//!   batch        the requests of one read: parsed, prefetched, executed in order
//!   output       replies on their way: bytes, and large values straight from the store
//!   budget       what all clients together may have in flight
//!   stats        what `stats` answers
//! ```

mod batch;
pub(crate) mod budget;
mod connection;
mod output;
mod stats;

pub(crate) use connection::serve;

/// The version that clients are told: that of the memcached release whose protocol Kiln speaks.
/// Clients switch features on by it.
const PROTOCOL_VERSION: &str = "1.6.45";
