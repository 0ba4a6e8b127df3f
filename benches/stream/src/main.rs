//! `speed`: readings per second of processor time through the stream operator on one core.
//! `feed`: readings to running nodes over HTTP.
//! `nab`: the detectors on labelled series, by the rules of the Numenta Anomaly Benchmark.

mod feed;
mod nab;
mod speed;

use std::path::PathBuf;

#[derive(clap::Parser)]
#[command(about)]
enum Command {
    /// Readings per second on one core. Exits with 1 when a target is missed.
    Speed {
        /// Measured processor time per row and run.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Runs per row; the best and the median are printed.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Writes what was measured as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Readings to running nodes over HTTP.
    Feed(feed::Options),
    /// The score of each detector on labelled series.
    Nab {
        /// The folder with the series and `windows.json`.
        #[arg(long, env = "KILN_NAB_DIR")]
        dir: Option<PathBuf>,
        /// A detector as in a definition, with parameters; by default each that scores readings.
        #[arg(long)]
        detector: Vec<String>,
        /// Prints the score of each series too.
        #[arg(long)]
        series: bool,
    },
}

fn main() -> std::process::ExitCode {
    match clap::Parser::parse() {
        Command::Speed { seconds, runs, json } => speed::run(seconds, runs.max(1), json.as_deref()),
        Command::Feed(options) => feed::run(options),
        Command::Nab { dir, detector, series } => nab::run(dir.as_deref(), &detector, series),
    }
}
