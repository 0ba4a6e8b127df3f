//! `kiln-trial`: real nodes under real faults, with clients that are judged.
//!
//! ```text
//!   nodes  (processes)  <-- kill, pause, stop, cut ---  a mode: failover, …
//!     ^                                                       |
//!     | memcached, native                                     | cycle by cycle
//!   load   (threads)    --- what each was told --->  history, audit (the judge)
//! ```
//!
//! The simulator finds out what the protocol does under any order of events; this finds out what
//! the process does on a real machine. Both are judged by the same independent checker.
//!
//! What always holds: nodes listen on addresses of this machine only, on free ports, and end with
//! the trial; every wait has a deadline; exit code 0 only when everything that was promised was
//! seen. What failed is named together with the command that tries it again.

mod ask;
mod audit;
mod cuts;
mod eventual;
mod failover;
mod figures;
mod gate;
mod history;
mod http;
mod join;
mod load;
mod nodes;
mod producers;
mod scene;
mod streams;
mod write_cost;

use std::{
    fs, io,
    io::Write as _,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::nodes::Launch;

/// Trials of real clusters under faults.
#[derive(Debug, Parser)]
#[command(
    name = "kiln-trial",
    version,
    after_help = "Exit codes: 0 all that was promised was seen, 1 something was wrong or failed, 2 usage."
)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
    /// Kiln's binary.
    #[arg(long, global = true, default_value = "target/release/kiln", value_name = "PATH")]
    kiln: PathBuf,
    /// What faults and requests are drawn from [default: another one each time].
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// Memory of each node.
    #[arg(long, global = true, default_value = "128MiB", value_name = "SIZE")]
    memory: String,
    /// Keep the nodes' logs, and histories that no order explains, in a new directory in this one.
    /// Without it they are kept when something was wrong only, in the system's temporary directory.
    #[arg(long, global = true, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write everything measured as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Nodes are killed, paused or stopped one after the other, while clients write, count and
    /// read: nothing acknowledged is lost, nothing is done twice, all histories are linearizable.
    Failover(failover::Options),
    /// The same with an eventual cache: it is there throughout for clients of nodes that run, all
    /// copies are equal soon after, and nothing that was deleted comes back.
    Eventual(eventual::Options),
    /// A node joins under load and takes its share, then one is asked to leave: nothing is lost,
    /// nothing fails, and clients notice no more than is allowed.
    Join(join::Options),
    /// The network between nodes is cut, one way or both, in network namespaces.
    Cuts(cuts::Options),
    /// The node that owns a watched sensor is killed, again and again, while producers with ids send
    /// readings at a steady rate: each acknowledged reading counts once, copies are equal, and
    /// windows close again soon after a copy was promoted.
    Streams(streams::Options),
    /// Processor time of all servers for each replicated write, beside a lone node and Redis.
    WriteCost(write_cost::Options),
}

/// What a mode hands back.
struct Outcome {
    text: String,
    json: serde_json::Value,
    /// What was not as promised.
    failures: Vec<String>,
}

/// Why a trial could not be finished. All nodes are ended by then.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{node} did not come up; the end of its log:\n{log}")]
    NotReady { node: String, log: String },
    #[error("{node} ended by itself ({status}); the end of its log:\n{log}")]
    Ended { node: String, status: ExitStatus, log: String },
    #[error("{node} ended badly when it was asked to stop: {status}")]
    BadEnd { node: String, status: ExitStatus },
    #[error("{node} has not stopped {seconds} s after it was asked to")]
    DoesNotStop { node: String, seconds: u64 },
    #[error("{node} does not run")]
    NotRunning { node: String },
    #[error("after {seconds} s there are not {nodes} nodes with all copies: {seen}")]
    NotWhole { nodes: usize, seconds: u64, seen: String },
    #[error("clients still wait for answers after {seconds} s")]
    ClientsHang { seconds: u64 },
    #[error("ended early")]
    Interrupted,
    #[error("no client: {0}")]
    Client(String),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    match run(&cli, seed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-trial: seed {seed}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, seed: u64) -> io::Result<bool> {
    let cancel = kiln_load::cancel_on_signal()?;
    let mut directory = tempfile::Builder::new();
    let directory = directory.prefix("kiln-trial-");
    let directory = match &cli.keep {
        Some(parent) => {
            fs::create_dir_all(parent)?;
            let mut directory = directory.tempdir_in(parent)?;
            directory.disable_cleanup(true);
            directory
        }
        None => directory.tempdir()?,
    };
    let launch = Launch {
        kiln: cli.kiln.clone(),
        directory: directory.path().to_owned(),
        flags: ["--memory", &cli.memory, "--replicas", "2"].map(str::to_owned).to_vec(),
        ingest: matches!(cli.mode, Mode::Streams(_)),
    };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style());
    let result = match &cli.mode {
        Mode::Failover(options) => failover::run(options, launch, seed, &bar, &cancel),
        Mode::Eventual(options) => eventual::run(options, launch, seed, &bar, &cancel),
        Mode::Join(options) => join::run(options, launch, seed, &bar, &cancel),
        Mode::Cuts(options) => cuts::run(options, launch, seed, &bar, &cancel),
        Mode::Streams(options) => streams::run(options, launch, seed, &bar, &cancel),
        Mode::WriteCost(options) => write_cost::run(options, launch, seed, &bar, &cancel),
    };
    bar.finish_and_clear();
    let kept = directory.path().display().to_string();
    let passed = match result {
        Ok(outcome) => {
            io::stdout().write_all(outcome.text.as_bytes())?;
            for failure in &outcome.failures {
                println!("FAILED: {failure}");
            }
            if let Some(path) = &cli.json {
                fs::write(
                    path,
                    serde_json::to_vec_pretty(&outcome.json).map_err(io::Error::from)?,
                )?;
            }
            outcome.failures.is_empty()
        }
        Err(error) => {
            println!("FAILED: {error}\nseed {seed}");
            false
        }
    };
    if passed && cli.keep.is_none() {
        directory.close()?;
    } else {
        let _ = directory.keep();
        println!("logs: {kept}");
    }
    Ok(passed)
}

/// A line above the progress bar, or on its own where there is none to be seen.
fn say(bar: &ProgressBar, line: &str) {
    if bar.is_hidden() {
        eprintln!("{line}");
    } else {
        bar.println(line);
    }
}

fn style() -> ProgressStyle {
    let template = "{elapsed_precise} [{bar:30}] {pos}/{len} {msg} (left: {eta})";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
