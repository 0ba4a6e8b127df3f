//! `speed`: readings per second of processor time through the stream operator on one core.
//! `nab`: the detectors on labelled series, by the rules of the Numenta Anomaly Benchmark.

mod nab;
mod speed;

use std::path::PathBuf;

#[derive(clap::Parser)]
#[command(about)]
enum Command {
    /// Readings per second on one core.
    Speed {
        /// Measured processor time per row and run.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Runs per row; the best and the median are printed.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
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
        Command::Speed { seconds, runs } => speed::run(seconds, runs.max(1)),
        Command::Nab { dir, detector, series } => {
            return nab::run(dir.as_deref(), &detector, series);
        }
    }
    std::process::ExitCode::SUCCESS
}
