//! The Rust client of Kiln, a distributed in-memory key-value cache.
#![deny(missing_docs)]

mod address;
mod answer;
mod backoff;
pub mod blocking;
mod builder;
mod bulk;
mod cache;
mod call;
mod client;
mod compute;
mod connection;
mod core;
mod error;
mod events;
mod flight;
mod freshness;
mod item;
mod link;
mod loader;
mod metrics;
mod near;
mod operations;
mod retry;
mod router;
mod scan;
mod transport;
mod typed;

pub use address::{Address, AddressError};
pub use backoff::Backoff;
pub use builder::Builder;
pub use bulk::Put;
pub use cache::Cache;
pub use client::{Client, ConnectError};
pub use compute::ComputeError;
pub use error::{Error, Reason, WaitingFor};
pub use events::{Event, Events};
pub use item::{Counted, Deleted, Expiry, Item, Look, Refill, Written};
pub use kiln_protocol::native::{
    ErrorCode,
    admin::{
        CacheInfo, CacheSpec, CacheView, GroupView, KeyInfo, NodeInfo, NodeView, ProtocolInfo,
        TopologyView,
    },
};
pub use loader::{LoadReport, Loader};
pub use metrics::{Counters, Metrics, Operation};
pub use near::NearCacheConfig;
pub use retry::RetryPolicy;
pub use scan::{Entry, Pages, Scan};
pub use transport::{Connecting, Connector, TcpConnector, Transport};
#[cfg(feature = "json")]
pub use typed::Json;
pub use typed::{Codec, CodecError, MessagePack, Typed};

/// Builders of operations, as [`Cache`]'s methods return them.
pub mod operation {
    pub use crate::operations::{
        CallFuture, Count, Delete, Look, Replaced, ReturningOld, Write, write_mode,
    };
}
