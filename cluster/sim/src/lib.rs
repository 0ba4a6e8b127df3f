//! Simulates clusters of `kiln-cluster` nodes and judges what they do.
//!
//! ```text
//!   Profile + seed --> Plan --> World: machines, network, clients, agreement, faults on one Queue
//!                                 |  every answer, every commit, every death
//!                                 v
//!                               judges --> Violation, with the one command that runs it again
//! ```
//!
//! A run has two phases. First faults: loss, repeats, reorder, cuts in one or both directions,
//! kills with amnesia, pauses, wrong clocks, wrong suspicions, controllers that move, nodes that
//! join and leave. Then all faults off, and it must heal within a bound. Safety is judged all along.
//!
//! Always holds: same profile, seed and build, same trace hash.

mod agreement;
mod calls;
mod campaign;
mod checks;
mod clients;
mod clock;
mod faults;
mod history;
pub mod judge;
mod memory;
#[cfg(feature = "mutants")]
pub mod mutants;
mod network;
mod profile;
mod queue;
mod rng;
mod run;
mod stats;
pub mod sweep;
mod trace;
mod world;

pub use crate::campaign::{Campaign, Tally};
pub use crate::profile::{CacheKind, Memory, PROFILES, Profile};
pub use crate::run::{Options, RunResult, replay, report, run_seed};
pub use crate::stats::Stats;
