//! `kiln-load`: the load generator on the command line.
//!
//! The result goes to standard output, progress and errors to standard error. Exit code 0 when
//! every request was answered well, 1 when not, 2 for a command line that cannot be meant.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use kiln_load::{Progress, Report, RunError, run};

/// Loads a memcached-text or RESP server with gets and sets and measures it.
///
/// Values are a function of their key, so any server filled by this program can be checked with
/// --verify, in this run or a later one with the same sizes.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 all requests answered well, 1 errors, 2 usage.")]
struct Cli {
    #[command(flatten)]
    load: kiln_load::Args,
    /// Print the result as JSON.
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Show no progress.
    #[arg(long, help_heading = "Output")]
    no_progress: bool,
    /// Print the whole latency distribution as well.
    #[arg(long, help_heading = "Output")]
    print_percentiles: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let progress = if cli.no_progress { Progress::Silent } else { Progress::Terminal };
    let outcome = cancel_on_signal()
        .map_err(RunError::from)
        .and_then(|cancel| run(&cli.load.clone().into(), progress, &cancel));
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            eprintln!("kiln-load: {error}");
            let usage = matches!(error, RunError::Plan { .. });
            return ExitCode::from(if usage { 2 } else { 1 });
        }
    };
    if let Err(error) = print(&cli, &report) {
        eprintln!("kiln-load: cannot write the result: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(report.errors.total() > 0))
}

/// The first SIGINT or SIGTERM ends the run with what was measured, the second at once.
fn cancel_on_signal() -> io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&cancel))?;
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

fn print(cli: &Cli, report: &Report) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if cli.json {
        serde_json::to_writer_pretty(&mut stdout, report)?;
        return writeln!(stdout);
    }
    writeln!(stdout, "{report}")?;
    if cli.print_percentiles {
        writeln!(stdout, "percentile        us")?;
        for (percentile, microseconds) in &report.latency.percentiles {
            writeln!(stdout, "{percentile:>10.5} {microseconds:>9.1}")?;
        }
    }
    stdout.flush()
}
