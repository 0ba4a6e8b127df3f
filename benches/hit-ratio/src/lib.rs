//! Which policy finds most: hit ratios on real and synthetic traces.
//!
//! A policy is judged on what it will meet, so the traces are recorded ones where they are to be
//! had (`KILN_TRACE_DIR`), and synthetic ones that single out a habit: a skewed popularity, scans
//! across it, a popularity that moves. Kiln's policies run in the engine's own simulation, which
//! runs the store's own code; others run as their libraries are.
//!
//! Every entry weighs one, and a cache holds a fixed part of the distinct keys of its trace.

pub mod contenders;
pub mod table;
pub mod traces;
