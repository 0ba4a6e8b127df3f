//! A benchmark as a command: one run, or several that take turns, and what is printed of them.
//!
//! Both `kiln-load` and `kiln bench` are this; they differ in where the arguments come from.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;
use serde::Serialize;

use crate::args::Args;
use crate::compare::{Comparison, Contestant, compare};
use crate::echo::Echo;
use crate::report::Report;
use crate::run::{Length, Plan, Progress, RunError, run};
use crate::target::{Credentials, Target};
use crate::wire::Protocol;

/// What to measure, and how to tell it.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    load: Args,
    /// Measure these beside each other, in turns, and print ratios to the first: PROTOCOL or
    /// PROTOCOL@HOST:PORT, as in `memcached,native`. --duration or --requests is divided among the
    /// rounds.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with_all = ["address", "unix", "protocol", "hdr", "server_pid"],
        help_heading = "Comparison"
    )]
    compare: Vec<Side>,
    /// Measure a bare echo over the loopback beside it, in turns: the floor of a round trip.
    #[arg(long, conflicts_with = "hdr", help_heading = "Comparison")]
    echo: bool,
    /// Rounds of a comparison.
    #[arg(
        long,
        default_value_t = ROUNDS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        value_name = "N",
        help_heading = "Comparison"
    )]
    rounds: u32,
    /// Print the result as JSON.
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the whole latency distribution to a file, as HdrHistogram's plotter reads it.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Output")]
    hdr: Option<PathBuf>,
    /// Print the whole latency distribution as well.
    #[arg(long, help_heading = "Output")]
    print_percentiles: bool,
    /// Show no progress.
    #[arg(long, help_heading = "Output")]
    no_progress: bool,
}

/// A protocol, and where it is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    protocol: Protocol,
    address: String,
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, address) = text.split_once('@').unwrap_or((text, ""));
        let protocol = Protocol::from_str(name, false).map_err(|_| {
            let names: Vec<_> = Protocol::value_variants()
                .iter()
                .filter_map(|protocol| protocol.to_possible_value())
                .map(|value| value.get_name().to_owned())
                .collect();
            format!("no protocol is called `{name}`; there are {}", names.join(", "))
        })?;
        let address = if address.is_empty() { protocol.address_default() } else { address };
        Ok(Self { protocol, address: address.to_owned() })
    }
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant)] // there is one of it in a process
pub enum Finding {
    /// Of one run.
    Single(Report),
    /// Of several in turns.
    Compared(Comparison),
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The run itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The file for the distribution; the run was not begun.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Standard output. A reader that has seen enough is no failure.
    #[error("cannot write the result: {0}")]
    Output(io::Error),
}

impl BenchArgs {
    /// Measures. Setting the flag of [`cancel_on_signal`] ends it early.
    ///
    /// # Errors
    /// When nothing could be measured; failed requests are in the finding.
    pub fn run(
        &self,
        credentials: Option<Credentials>,
        cancel: &AtomicBool,
    ) -> Result<Finding, BenchError> {
        let plan = Plan { credentials, ..self.load.clone().into() };
        let progress = if self.no_progress { Progress::Silent } else { Progress::Terminal };
        if self.echo || !self.compare.is_empty() {
            return Ok(Finding::Compared(self.compare(&plan, progress, cancel)?));
        }
        // Before the run: a path that cannot be written should not cost a measurement.
        let fail = |path: &PathBuf, source| BenchError::File { path: path.clone(), source };
        let file = match &self.hdr {
            None => None,
            Some(path) => Some((path, File::create(path).map_err(|source| fail(path, source))?)),
        };
        let report = run(&plan, progress, cancel)?;
        if let Some((path, file)) = file {
            let mut file = BufWriter::new(file);
            let written = report.write_distribution(&mut file).and_then(|()| file.flush());
            written.map_err(|source| fail(path, source))?;
        }
        Ok(Finding::Single(report))
    }

    fn compare(
        &self,
        plan: &Plan,
        progress: Progress,
        cancel: &AtomicBool,
    ) -> Result<Comparison, RunError> {
        let rounds = self.rounds as usize;
        let plan = Plan {
            length: match plan.length {
                Length::Duration(duration) => Length::Duration(duration / self.rounds),
                Length::Requests(requests) => {
                    Length::Requests((requests / u64::from(self.rounds)).max(1))
                }
            },
            ..plan.clone()
        };
        let named = |plan: Plan| Contestant { name: plan.protocol.name().to_owned(), plan };
        let mut sides: Vec<Contestant> = self
            .compare
            .iter()
            .map(|side| {
                let target = Target::Tcp(side.address.clone());
                named(Plan { protocol: side.protocol, target, ..plan.clone() })
            })
            .collect();
        for index in 1..sides.len() {
            let name = sides[index].name.clone();
            if sides[..index].iter().any(|side| side.name == name) {
                sides[index].name = format!("{name}-{}", index + 1);
            }
        }
        let echo = if self.echo { Some(Echo::start()?) } else { None };
        if let Some(echo) = &echo {
            let echo = named(Plan {
                protocol: Protocol::Echo,
                target: Target::Tcp(echo.address().to_string()),
                preload: false,
                verify: false,
                ..plan.clone()
            });
            if sides.is_empty() {
                // The echo is the measure.
                sides = vec![echo, named(plan)];
            } else {
                sides.push(echo);
            }
        }
        compare(&sides, rounds, progress, cancel)
    }

    /// Writes the finding to standard output, as the arguments want it.
    ///
    /// # Errors
    /// When standard output fails otherwise than by being closed.
    pub fn print(&self, finding: &Finding) -> Result<(), BenchError> {
        match self.write(finding, &mut io::stdout().lock()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(BenchError::Output(error))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, finding: &Finding, out: &mut impl Write) -> io::Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut *out, finding)?;
            return writeln!(out);
        }
        writeln!(out, "{finding}")?;
        if self.print_percentiles {
            for (name, report) in finding.reports() {
                writeln!(out, "percentile        us  {name}")?;
                for (percentile, microseconds) in &report.latency.percentiles {
                    writeln!(out, "{percentile:>10.5} {microseconds:>9.1}")?;
                }
            }
        }
        out.flush()
    }
}

impl Finding {
    /// Requests that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        match self {
            Self::Single(report) => report.errors.total(),
            Self::Compared(comparison) => comparison.errors(),
        }
    }

    fn reports(&self) -> Vec<(&str, &Report)> {
        match self {
            Self::Single(report) => vec![(report.config.protocol.name(), report)],
            Self::Compared(comparison) => comparison
                .contestants
                .iter()
                .flat_map(|side| side.reports.iter().map(|report| (side.name.as_str(), report)))
                .collect(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(report) => report.fmt(f),
            Self::Compared(comparison) => comparison.fmt(f),
        }
    }
}

/// The first SIGINT or SIGTERM ends the run with what was measured, the second at once.
///
/// # Errors
/// When the signals cannot be watched.
pub fn cancel_on_signal() -> io::Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&cancel))?;
        signal_hook::flag::register(signal, Arc::clone(&cancel))?;
    }
    Ok(cancel)
}

const ROUNDS_DEFAULT: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_protocol_with_its_usual_address_or_another() {
        let side = |text: &str| text.parse::<Side>().map(|side| (side.protocol, side.address));
        assert_eq!(side("native"), Ok((Protocol::Native, "127.0.0.1:7311".to_owned())));
        assert_eq!(side("meta@[::1]:9"), Ok((Protocol::Meta, "[::1]:9".to_owned())));
        assert!(side("nativ").unwrap_err().contains("memcached, meta, native, http, redis"));
        assert!(side("echo").is_err());
    }
}
