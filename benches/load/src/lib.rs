//! A load generator for memcached-text and RESP servers.
//!
//! It exists because a comparison is only as fair as its generator: every server here is driven by
//! the same code, the same key streams and the same values, and what is reported first is the
//! server's processor time per operation, the one figure that survives a noisy machine.
//!
//! ```text
//!   run ── stage: preload -> warm-up -> measure -> drain ──> worker threads (one epoll each)
//!    |                                                          |
//!    | processor time of the server, before and after           | connections: draw, encode,
//!    v                                                          v write, read, parse, record
//!  Report <──────────────── tallies and histograms ──────────────
//! ```
//!
//! What always holds:
//! - each connection draws its own key stream from the seed; no two are alike;
//! - a value is a function of its key, so any reply can be checked, also one of an earlier run;
//! - at a fixed rate, latency counts from when a request was due, not from when it could be sent;
//! - nothing grows with the run: requests under way are bounded by the pipeline depth, buffers by
//!   the largest value, latencies are histogrammed.
//!
//! Cost: one read, one write and two clock readings per batch of replies; no allocation per
//! request.

mod args;
mod connection;
mod cpu;
mod keys;
mod report;
mod run;
mod tally;
mod values;
mod wire;
mod worker;

pub use args::{Args, ArgsError};
pub use cpu::CpuTime;
pub use keys::{KeyDist, KeyPicker, KeyShape};
pub use report::{CpuPerOperation, Errors, Latency, Preload, Quantiles, Report};
pub use run::{Length, Plan, Progress, Ratio, RunError, Target, run};
pub use values::{SizeDist, SizeDistError, Values};
pub use wire::{Asked, Parsed, Protocol, Reply, WireError, parse_reply, write_get, write_set};
