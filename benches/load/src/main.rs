//! `kiln-load`: the load generator on the command line.
//!
//! The result goes to standard output, progress and errors to standard error. Exit code 0 when
//! every request was answered well, 1 when not, 2 for a command line that cannot be meant.

use std::process::ExitCode;

use clap::Parser;
use kiln_load::{BenchArgs, BenchError, RunError, cancel_on_signal};

/// Loads a server with gets and sets and measures it: memcached, Kiln's own protocol, HTTP, Redis.
///
/// Values are a function of their key, so any server filled by this program can be checked with
/// --verify, in this run or a later one with the same sizes.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 all requests answered well, 1 errors, 2 usage.")]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

fn main() -> ExitCode {
    let Cli { bench } = Cli::parse();
    let outcome = cancel_on_signal()
        .map_err(|error| BenchError::Run(RunError::from(error)))
        .and_then(|cancel| bench.run(None, &cancel))
        .and_then(|finding| bench.print(&finding).map(|()| finding));
    match outcome {
        Ok(finding) => ExitCode::from(u8::from(finding.errors() > 0)),
        Err(error) => {
            eprintln!("kiln-load: {error}");
            let usage = matches!(error, BenchError::Run(RunError::Plan { .. }));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
