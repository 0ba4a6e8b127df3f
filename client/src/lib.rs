//! The Rust client of Kiln, a distributed in-memory key-value cache.
//!
//! ```no_run
//! use std::time::Duration;
//! use kiln_client::Client;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::connect("kiln://127.0.0.1:7311").await?;
//!
//!     client.set("greeting", "hello").expires(Duration::from_secs(60)).await?;
//!     if let Some(value) = client.get("greeting").await? {
//!         println!("{value:?}");
//!     }
//!     Ok(())
//! }
//! ```
//!
//! `examples/` has more that runs: quick start, pipeline, cache-aside, get-or-compute, blocking.
//!
//! # Connecting
//!
//! An address names one or more nodes and perhaps a cache: `kiln://host:port,host:port/cache`. The
//! nodes are a way in; the client learns of the others and sends each request straight to a node
//! that owns its key. A [`Client`] is cheap to clone, and one serves a whole program.
//! [`Client::builder`] has all settings, with their defaults.
//!
//! # Many calls at once
//!
//! There is no pipeline to build. Calls of any number of tasks share one connection for each node
//! and worker thread; those that wait travel together in one packet, and answers come in whatever
//! order they are ready. One task that knows its keys beforehand uses [`Cache::get_many`],
//! [`Cache::set_many`], [`Cache::delete_many`], or [`Cache::loader`] for as many as there are.
//! Requests in flight are bounded, and callers wait for room.
//!
//! # What an error means
//!
//! [`Error`] says first whether the write may have happened: [`Error::NotApplied`] or
//! [`Error::Indeterminate`]. No call takes longer than its timeout. Calls are made again by
//! themselves when that is safe: reads always, writes when it is certain that they did not happen,
//! or when the node knows a repeated write again. [`Cache::with_repeated_writes`] repeats more.
//!
//! # Reading less
//!
//! [`Cache::get_or_compute`] computes a missing value once, however many tasks want it.
//! [`Builder::near_cache`] keeps values in this process: a read is then at most
//! [`NearCacheConfig::staleness_max`] behind the last acknowledged write of whichever client, and
//! never behind this client's own.
//!
//! # Sensor readings
//!
//! [`Client::stream`] sends readings in batches that count once each ([`Producer`]), asks for latest
//! values and windows, and follows results as they come.
//!
//! # Dropping calls
//!
//! Each future may be dropped at any moment: the client and other calls go on. What a dropped
//! write asked for may or may not happen. Each method says what is particular to it.
//!
//! # Without async
//!
//! [`blocking`] has the same for threads.
//!
//! # Other transports
//!
//! A [`Connector`] makes the connections: TLS, or a network for tests.
//!
//! # Features
//!
//! - `json`: `Json` beside [`MessagePack`] for [typed values](Cache::typed_with).
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
mod stream;
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
        CacheInfo, CacheSpec, CacheView, ClusterChange, ClusterStatus, ControlView, DigestRequest,
        Digests, EventView, GroupStatus, GroupView, ItemDigest, KeyInfo, MoveView, NodeInfo,
        NodeStatus, NodeView, PartitionDigest, ProtocolInfo, TopologyView, TransferView, Warning,
        change,
    },
    streams::{BadReading, LatestReading},
};
pub use loader::{LoadReport, Loader};
pub use metrics::{Counters, Metrics, Operation};
pub use near::NearCacheConfig;
pub use retry::RetryPolicy;
pub use scan::{Entry, Pages, Scan};
pub use stream::{
    Fill, Follow, Follower, LiveEvent, LiveKind, Producer, ProducerBuilder, ProducerError, Reading,
    Stream, Totals, Window, Windows, WindowsRequest,
};
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
