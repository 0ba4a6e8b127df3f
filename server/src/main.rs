//! The `kiln` binary: a node of the cache, and the commands around it.
//!
//! Nothing is decided here. `cli` reads the command line, `config` the settings, and `serve` runs
//! the node from its first socket to its last connection.

mod announce;
mod auth;
mod caches;
mod cli;
mod clock;
mod cluster;
mod commands;
mod config;
mod connection;
mod connections;
mod control;
mod counters;
mod curve;
mod execute;
mod failure;
mod hottest;
mod http;
mod latency;
mod listen;
mod logging;
mod mailbox;
mod memcached;
mod native;
mod node;
mod op_times;
mod peer;
mod perform;
mod pid_file;
mod process;
mod serve;
mod shutdown;
mod stream;
mod streams;
mod upkeep;
mod worker;

use std::process::ExitCode;

// Receive buffers and large replies come and go with the clients; items live in a region of their
// own. The system's allocator keeps what threads freed for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
