//! `kiln-compare`: Kiln beside Debian's memcached, Debian's Redis and a server that does nothing.
//!
//! All are driven by the same generator, one server process pinned to one core and the generator
//! to another, in rounds that take every server in turn: on a shared machine only figures of the
//! same minutes can be set beside each other. Two more modes look at memory.
//!
//! What always holds: every server started here listens on the loopback only and is ended when the
//! comparison ends, however it ends; a server that is not installed is named and left out.

mod churn;
mod memory;
mod server;
mod speed;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use kiln_load::RunError;

use crate::server::{Kind, Launch, StartError};

/// Compares Kiln with other servers on this machine and prints markdown.
///
/// Without a mode: processor time, throughput and latency at several pipeline depths.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 all requirements met, 1 one is not met or something failed, 2 usage."
)]
struct Cli {
    /// Measure memory per item instead of speed.
    #[arg(long, conflicts_with = "churn", help_heading = "Mode")]
    memory: bool,
    /// Measure whether Kiln keeps its memory ceiling while value sizes change.
    #[arg(long, help_heading = "Mode")]
    churn: bool,

    /// Servers to compare [default: all; with --churn: kiln].
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAME,…",
        help_heading = "Servers"
    )]
    servers: Vec<Kind>,
    /// Kiln's binary.
    #[arg(
        long,
        default_value = "target/release/kiln",
        value_name = "PATH",
        help_heading = "Servers"
    )]
    kiln: PathBuf,
    /// The do-nothing server's binary [default: kiln-null-server beside this program].
    #[arg(long, value_name = "PATH", help_heading = "Servers")]
    null: Option<PathBuf>,
    /// Core that each server is pinned to.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Servers")]
    server_core: usize,
    /// Core that the load generator is pinned to.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Servers")]
    load_core: usize,

    #[command(flatten)]
    speed: speed::Options,
    #[command(flatten)]
    fill: memory::Options,
    #[command(flatten)]
    churning: churn::Options,

    /// Write everything measured as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// Why the comparison could not be finished. Servers are ended by then.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{server}: {source}")]
    Load { server: Kind, source: RunError },
    #[error("{server}: {count} requests failed, first: {first}")]
    Failed { server: Kind, count: u64, first: String },
    #[error("{server} ended while it was measured")]
    Died { server: Kind },
    #[error("cannot pin to core {core}: {source}")]
    Pin { core: usize, source: io::Error },
    #[error("none of the servers can be started")]
    NoServer,
    #[error("ended early")]
    Interrupted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a mode hands back: text for people, data for machines, and the verdict.
struct Outcome {
    markdown: String,
    json: serde_json::Value,
    passed: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match compare(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(cli: &Cli) -> Result<bool, CompareError> {
    let cancel = cancel_on_signal()?;
    let launch = Launch {
        kiln: cli.kiln.clone(),
        null: cli.null.clone().unwrap_or_else(null_beside_this_program),
        server_core: cli.server_core,
        load_core: cli.load_core,
    };
    server::pin(cli.load_core)?;
    let chosen = |default: &[Kind]| {
        let named = if cli.servers.is_empty() { default } else { &cli.servers };
        let mut kinds: Vec<Kind> = Vec::new();
        for kind in named {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    };
    let outcome = if cli.churn {
        churn::run(&chosen(&[Kind::Kiln]), &launch, &cli.churning, &cancel)?
    } else if cli.memory {
        memory::run(&chosen(&Kind::STORING), &launch, &cli.fill, &cancel)?
    } else {
        speed::run(&chosen(&Kind::ALL), &launch, &cli.speed, &cancel)?
    };
    if cancel.load(Ordering::Relaxed) {
        return Err(CompareError::Interrupted);
    }
    io::stdout().write_all(outcome.markdown.as_bytes())?;
    if let Some(path) = &cli.json {
        serde_json::to_writer_pretty(File::create(path)?, &outcome.json)
            .map_err(io::Error::from)?;
    }
    Ok(outcome.passed)
}

fn null_beside_this_program() -> PathBuf {
    let beside = std::env::current_exe().ok();
    beside.unwrap_or_default().with_file_name("kiln-null-server")
}

/// A signal sets the flag; whoever waits looks at it, and the servers end on the way out.
fn cancel_on_signal() -> io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}
