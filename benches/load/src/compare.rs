//! Several runs beside each other: which costs the server less, which answers sooner.
//!
//! A shared machine drifts by more than the differences worth knowing, so contestants take turns
//! for short rounds and their medians are compared, never two runs of different minutes.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::report::Report;
use crate::run::{Plan, Progress, RunError, run};

/// One side of a comparison.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// How it is called in the table.
    pub name: String,
    /// What one of its rounds is.
    pub plan: Plan,
}

/// The outcome: medians over the rounds, the first contestant being the measure.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// In the order given.
    pub contestants: Vec<Medians>,
    /// Rounds that each had.
    pub rounds: usize,
    /// Whether it was ended early.
    pub interrupted: bool,
}

/// One contestant's medians.
#[derive(Clone, Debug, Serialize)]
pub struct Medians {
    /// Its name.
    pub name: String,
    /// The server's processor time in microseconds per operation.
    pub server_cpu_us: Option<f64>,
    /// The same as a multiple of the first contestant's.
    pub server_cpu_ratio: Option<f64>,
    /// Operations per second.
    pub operations_per_second: f64,
    /// Latency of half of the requests, in microseconds.
    pub p50_us: f64,
    /// The same as a multiple of the first contestant's.
    pub p50_ratio: f64,
    /// Latency of 99 in a hundred.
    pub p99_us: f64,
    /// Latency of 999 in a thousand.
    pub p999_us: f64,
    /// Hits in a hundred reads.
    pub hit_percent: Option<f64>,
    /// Errors over all rounds.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// Share of the time in percent that server or generator stood ready without a core, at worst:
    /// when this is not small, others were at work.
    pub waited_percent: f64,
    /// Each round.
    pub reports: Vec<Report>,
}

impl Comparison {
    /// Errors of all contestants.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.contestants.iter().map(|contestant| contestant.errors).sum()
    }
}

/// Runs `rounds` rounds; in each every contestant once. Only the first round preloads.
///
/// # Errors
/// As [`run`]: when nothing could be measured.
pub fn compare(
    contestants: &[Contestant],
    rounds: usize,
    progress: Progress,
    cancel: &AtomicBool,
) -> Result<Comparison, RunError> {
    if contestants.is_empty() || rounds == 0 {
        return Err(RunError::Plan { reason: "a comparison needs contestants and rounds" });
    }
    let mut reports: Vec<Vec<Report>> = contestants.iter().map(|_| Vec::new()).collect();
    'rounds: for round in 0..rounds {
        for turn in 0..contestants.len() {
            // Every other round runs backwards, so that a drift favours nobody.
            let turn = if round % 2 == 0 { turn } else { contestants.len() - 1 - turn };
            let plan = &contestants[turn].plan;
            let plan = Plan { preload: plan.preload && round == 0, ..plan.clone() };
            reports[turn].push(run(&plan, progress, cancel)?);
            if cancel.load(Ordering::Relaxed) {
                break 'rounds;
            }
        }
    }
    let interrupted = reports.iter().flatten().any(|report| report.interrupted);
    let mut medians: Vec<Medians> = Vec::new();
    for (contestant, reports) in contestants.iter().zip(reports) {
        let next = Medians::new(contestant.name.clone(), reports, medians.first());
        medians.push(next);
    }
    Ok(Comparison { contestants: medians, rounds, interrupted })
}

impl Medians {
    fn new(name: String, reports: Vec<Report>, first: Option<&Self>) -> Self {
        let of = |figure: &dyn Fn(&Report) -> Option<f64>| {
            median(reports.iter().filter_map(figure).collect())
        };
        let server_cpu_us = of(&|report| report.server_cpu.map(|cpu| cpu.total_us));
        let p50_us = of(&|report| Some(report.latency.all.p50_us)).unwrap_or(0.0);
        let relative = |own: f64, first: Option<f64>| {
            let first = first.unwrap_or(own);
            if first > 0.0 { own / first } else { 1.0 }
        };
        let waited = reports.iter().map(|report| {
            let server = report.server_cpu.map_or(0.0, |cpu| cpu.waited_percent);
            server.max(report.generator_cpu.waited_percent)
        });
        Self {
            server_cpu_ratio: match first {
                None => server_cpu_us.map(|_| 1.0),
                Some(first) => server_cpu_us
                    .zip(first.server_cpu_us)
                    .map(|(own, first)| relative(own, Some(first))),
            },
            server_cpu_us,
            operations_per_second: of(&|report| Some(report.operations_per_second)).unwrap_or(0.0),
            p50_ratio: relative(p50_us, first.map(|first| first.p50_us)),
            p50_us,
            p99_us: of(&|report| Some(report.latency.all.p99_us)).unwrap_or(0.0),
            p999_us: of(&|report| Some(report.latency.all.p999_us)).unwrap_or(0.0),
            hit_percent: of(&|report| report.hit_percent),
            errors: reports.iter().map(|report| report.errors.total()).sum(),
            first_error: reports.iter().find_map(|report| report.first_error.clone()),
            waited_percent: waited.fold(0.0, f64::max),
            name,
            reports,
        }
    }
}

/// The middle, or the mean of the two in the middle.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        len if len % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.contestants.first().and_then(|first| first.reports.first()) {
            writeln!(f, "{}", first.config)?;
        }
        let versions = self.contestants.iter().filter_map(|contestant| {
            let report = contestant.reports.first()?;
            Some((contestant, report.server_version.as_ref()?))
        });
        for (contestant, version) in versions {
            writeln!(f, "server        {}: {version}", contestant.name)?;
        }
        writeln!(f, "rounds        {}, medians", self.rounds)?;
        writeln!(
            f,
            "{:<10} {:>9} {:>6} {:>9} {:>8} {:>6} {:>8} {:>8} {:>6} {:>7}",
            "", "cpu us/op", "ratio", "ops/s", "p50 us", "ratio", "p99", "p99.9", "hit %", "waited"
        )?;
        for contestant in &self.contestants {
            let some = |figure: Option<f64>, digits| {
                figure.map_or("-".to_owned(), |figure| format!("{figure:.digits$}"))
            };
            writeln!(
                f,
                "{:<10} {:>9} {:>6} {:>9.0} {:>8.1} {:>6.2} {:>8.1} {:>8.1} {:>6} {:>6.0}%",
                contestant.name,
                some(contestant.server_cpu_us, 3),
                some(contestant.server_cpu_ratio, 2),
                contestant.operations_per_second,
                contestant.p50_us,
                contestant.p50_ratio,
                contestant.p99_us,
                contestant.p999_us,
                some(contestant.hit_percent, 1),
                contestant.waited_percent,
            )?;
        }
        writeln!(f, "errors        {}", self.errors())?;
        for contestant in &self.contestants {
            if let Some(first) = &contestant.first_error {
                writeln!(f, "first error   {}: {first}", contestant.name)?;
            }
        }
        let interrupted = if self.interrupted { "ended early; " } else { "" };
        write!(f, "{interrupted}ratios are to {}", self.contestants[0].name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_of_its_figures() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
