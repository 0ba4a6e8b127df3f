//! A load generator for servers that speak memcached, Kiln's own protocol, HTTP or RESP.
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
mod bench;
mod compare;
mod connection;
mod cpu;
mod echo;
mod keys;
mod process;
mod report;
mod run;
mod tally;
mod target;
mod values;
mod wire;
mod worker;

pub use args::{Args, ArgsError};
pub use bench::{BenchArgs, BenchError, Finding, Side, cancel_on_signal};
pub use compare::{Comparison, Contestant, Medians, compare};
pub use cpu::CpuTime;
pub use echo::Echo;
pub use keys::{KeyDist, KeyPicker, KeyShape};
pub use process::listening_on;
pub use report::{Config, CpuPerOperation, Errors, Latency, Preload, Quantiles, Report};
pub use run::{Length, Plan, Progress, Ratio, RunError, run};
pub use target::{Credentials, Target};
pub use values::{SizeDist, SizeDistError, Values};
pub use wire::Protocol;
