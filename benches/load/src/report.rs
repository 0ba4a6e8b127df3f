//! What a run found, as a structure, as JSON and as text.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use std::io;

use crate::cpu::CpuSpent;
use crate::run::{Length, Plan};
use crate::tally::Tally;
use crate::target::Identity;
use crate::wire::Protocol;

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub config: Config,
    /// What the server says it is; none when it does not.
    pub server_version: Option<String>,
    /// The process whose time was measured.
    pub server_pid: Option<u32>,
    /// How long was measured.
    pub elapsed_seconds: f64,
    /// Requests answered while measuring.
    pub operations: u64,
    /// The same per second.
    pub operations_per_second: f64,
    /// Reads that found the key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Hits in a hundred reads; none without reads.
    pub hit_percent: Option<f64>,
    /// What went wrong, over the whole run.
    pub errors: Errors,
    /// The first thing that went wrong.
    pub first_error: Option<String>,
    /// Requests that were due at the fixed rate and never sent: the server did not keep up.
    pub unsent: u64,
    /// How long answers took.
    pub latency: Latency,
    /// The server's processor time; none when its process was not named.
    pub server_cpu: Option<CpuPerOperation>,
    /// The generator's own processor time.
    pub generator_cpu: CpuPerOperation,
    /// Filling the server, when asked for.
    pub preload: Option<Preload>,
    /// Whether the run was ended early.
    pub interrupted: bool,
    #[serde(skip)]
    histogram: Histogram<u64>,
}

/// What a run was asked to do, as far as it decides the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// What was spoken.
    pub protocol: Protocol,
    /// The server.
    pub target: String,
    /// The cache, where the protocol knows several.
    pub cache: String,
    /// How many connections there were.
    pub connections: usize,
    /// How many threads drove them.
    pub threads: usize,
    /// Requests under way per connection.
    pub pipeline: usize,
    /// The rate asked for; none in a closed loop.
    pub rate: Option<f64>,
    /// Writes to reads.
    pub ratio: String,
    /// How many different keys.
    pub keys: u32,
    /// How long each is.
    pub key_len: usize,
    /// Which of them how often.
    pub key_dist: String,
    /// How long their values are.
    pub value_size: String,
    /// Seconds before measuring.
    pub warmup_seconds: f64,
    /// Where the key streams started.
    pub seed: u64,
    /// Whether values were checked.
    pub verify: bool,
}

/// Requests that failed, by how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Errors {
    /// The server answered with an error.
    pub refused: u64,
    /// The value was not the one that belongs to the key.
    pub mismatched: u64,
    /// The connection ended, or its replies could not be read.
    pub lost: u64,
    /// No answer came before the run was over.
    pub unanswered: u64,
}

/// Latencies of all requests, and of each kind that occurred.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Reads and writes together.
    pub all: Quantiles,
    /// Reads.
    pub get: Option<Quantiles>,
    /// Writes.
    pub set: Option<Quantiles>,
    /// Percentile and microseconds of all requests, ever finer towards the slowest.
    pub percentiles: Vec<(f64, f64)>,
}

/// Latency quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Half took no longer.
    pub p50_us: f64,
    /// 90 in a hundred took no longer.
    pub p90_us: f64,
    /// 99 in a hundred took no longer.
    pub p99_us: f64,
    /// 999 in a thousand took no longer.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
}

/// Processor time of a process while measuring.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CpuPerOperation {
    /// Microseconds per operation.
    pub total_us: f64,
    /// In the process's own code. From ticks: only as fine as 10 ms over the whole run.
    pub user_us: f64,
    /// In the kernel. From ticks as well.
    pub system_us: f64,
    /// Share of one core in percent.
    pub busy_percent: f64,
    /// Share of the time in percent that a thread was ready and something else had the core: when
    /// this is not small, others were at work and latencies are theirs too.
    pub waited_percent: f64,
}

/// Storing every key once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Preload {
    /// How many were stored.
    pub keys: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What the director saw between the two ends of the measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) elapsed: Duration,
    pub(crate) done: u64,
    pub(crate) server: Option<CpuSpent>,
    pub(crate) own: CpuSpent,
}

impl Errors {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.refused + self.mismatched + self.lost + self.unanswered
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.refused += other.refused;
        self.mismatched += other.mismatched;
        self.lost += other.lost;
        self.unanswered += other.unanswered;
    }
}

impl Report {
    pub(crate) fn new(
        plan: &Plan,
        server: &Identity,
        tally: Tally,
        window: &Window,
        preload: Option<Preload>,
        interrupted: bool,
    ) -> Self {
        let mut all = tally.gets.clone();
        all.add(&tally.sets).expect("both histograms have the same bounds");
        // Under a quota every request is counted; within a time, those answered in it.
        let operations = match plan.length {
            Length::Duration(_) => window.done,
            Length::Requests(_) => all.len(),
        };
        let reads = tally.hits + tally.misses;
        let per_operation =
            |spent: CpuSpent| CpuPerOperation::new(spent, operations, window.elapsed);
        Self {
            config: Config::new(plan),
            server_version: server.version.clone(),
            server_pid: server.pid,
            elapsed_seconds: window.elapsed.as_secs_f64(),
            operations,
            operations_per_second: ratio(operations as f64, window.elapsed.as_secs_f64()),
            hits: tally.hits,
            misses: tally.misses,
            hit_percent: (reads > 0).then(|| 100.0 * tally.hits as f64 / reads as f64),
            errors: tally.errors,
            first_error: tally.first_error,
            unsent: tally.unsent,
            latency: Latency {
                percentiles: percentiles(&all),
                all: Quantiles::of(&all),
                get: (!tally.gets.is_empty()).then(|| Quantiles::of(&tally.gets)),
                set: (!tally.sets.is_empty()).then(|| Quantiles::of(&tally.sets)),
            },
            server_cpu: window.server.map(per_operation),
            generator_cpu: per_operation(window.own),
            preload,
            interrupted,
            histogram: all,
        }
    }

    /// Writes the whole latency distribution as HdrHistogram's plotter reads it, in microseconds.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_distribution(&self, out: &mut impl io::Write) -> io::Result<()> {
        let all = &self.histogram;
        writeln!(
            out,
            "{:>12} {:>14} {:>10} {:>14}",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        writeln!(out)?;
        for step in all.iter_quantiles(DISTRIBUTION_STEPS).take(DISTRIBUTION_LEN_MAX) {
            let value = step.value_iterated_to() as f64 / 1e3;
            let (quantile, count) =
                (step.quantile_iterated_to(), all.count_between(0, step.value_iterated_to()));
            write!(out, "{value:>12.3} {quantile:>2.12} {count:>10}")?;
            if quantile < 1.0 {
                writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
            } else {
                writeln!(out)?;
            }
        }
        let (mean, deviation) = (all.mean() / 1e3, all.stdev() / 1e3);
        writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
        let (max, count) = (all.max() as f64 / 1e3, all.len());
        writeln!(out, "#[Max     = {max:>12.3}, Total count    = {count:>12}]")
    }
}

impl Config {
    fn new(plan: &Plan) -> Self {
        Self {
            protocol: plan.protocol,
            target: plan.target.to_string(),
            cache: plan.cache.clone(),
            connections: plan.connections,
            threads: plan.threads,
            pipeline: plan.pipeline,
            rate: plan.rate,
            ratio: format!("{}:{}", plan.ratio.sets, plan.ratio.gets),
            keys: plan.keys,
            key_len: plan.key_len,
            key_dist: plan.key_dist.to_string(),
            value_size: plan.sizes.to_string(),
            warmup_seconds: plan.warmup.as_secs_f64(),
            seed: plan.seed,
            verify: plan.verify,
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, target, connections, threads, pipeline, .. } = self;
        writeln!(f, "target        {} {target}, cache {}", protocol.name(), self.cache)?;
        let rate = self.rate.map_or("closed loop".to_owned(), |rate| format!("{rate} ops/s"));
        writeln!(
            f,
            "load          {connections} connections, {threads} threads, pipeline {pipeline}, \
             SET:GET {}, {rate}",
            self.ratio
        )?;
        write!(
            f,
            "data          {} keys of {} bytes, {}, values of {} bytes, seed {}{}",
            self.keys,
            self.key_len,
            self.key_dist,
            self.value_size,
            self.seed,
            if self.verify { ", verified" } else { "" }
        )
    }
}

impl Quantiles {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

impl CpuPerOperation {
    fn new(spent: CpuSpent, operations: u64, elapsed: Duration) -> Self {
        let per_operation = |time: Duration| ratio(time.as_secs_f64() * 1e6, operations as f64);
        Self {
            total_us: per_operation(spent.total),
            user_us: per_operation(spent.user),
            system_us: per_operation(spent.system),
            busy_percent: 100.0 * ratio(spent.total.as_secs_f64(), elapsed.as_secs_f64()),
            waited_percent: 100.0 * ratio(spent.waited.as_secs_f64(), elapsed.as_secs_f64()),
        }
    }
}

/// Zero rather than infinite when nothing was done: JSON has no infinity.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    histogram
        .iter_quantiles(1)
        .take(PERCENTILES_MAX)
        .map(|step| (step.percentile(), step.value_iterated_to() as f64 / 1e3))
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.config)?;
        if let Some(version) = &self.server_version {
            write!(f, "server        {version}")?;
            match self.server_pid {
                Some(pid) => writeln!(f, ", process {pid}")?,
                None => writeln!(f)?,
            }
        }
        if let Some(preload) = self.preload {
            writeln!(f, "preload       {} keys in {:.2} s", preload.keys, preload.seconds)?;
        }
        let interrupted = if self.interrupted { " (ended early)" } else { "" };
        writeln!(f, "measured      {:.2} s{interrupted}", self.elapsed_seconds)?;
        writeln!(f, "operations    {}", self.operations)?;
        writeln!(f, "throughput    {:.0} ops/s", self.operations_per_second)?;
        if let Some(percent) = self.hit_percent {
            writeln!(f, "hits          {percent:.2} %")?;
        }
        for (name, cpu) in
            [("server cpu", self.server_cpu), ("generator cpu", Some(self.generator_cpu))]
        {
            if let Some(cpu) = cpu {
                writeln!(
                    f,
                    "{name:<13} {:.3} us/op (user {:.3}, system {:.3}), {:.0} % busy, waited {:.0} %",
                    cpu.total_us, cpu.user_us, cpu.system_us, cpu.busy_percent, cpu.waited_percent
                )?;
            }
        }
        writeln!(f, "latency us         p50        p90        p99      p99.9        max")?;
        for (name, quantiles) in
            [("all", Some(self.latency.all)), ("get", self.latency.get), ("set", self.latency.set)]
        {
            if let Some(q) = quantiles {
                writeln!(
                    f,
                    "  {name:<9} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
                    q.p50_us, q.p90_us, q.p99_us, q.p999_us, q.max_us
                )?;
            }
        }
        if self.unsent > 0 {
            writeln!(f, "rate missed   {} requests were due and never sent", self.unsent)?;
        }
        let Errors { refused, mismatched, lost, unanswered } = self.errors;
        write!(f, "errors        {}", self.errors.total())?;
        if self.errors.total() > 0 {
            write!(
                f,
                " (refused {refused}, mismatched {mismatched}, lost {lost}, unanswered {unanswered})"
            )?;
        }
        if let Some(first) = &self.first_error {
            write!(f, "\nfirst error   {first}")?;
        }
        Ok(())
    }
}

/// One tick per halving of what is left: a histogram of 2^64 samples has no more.
const PERCENTILES_MAX: usize = 200;

/// Steps of the distribution per halving of what is left.
const DISTRIBUTION_STEPS: u32 = 5;

const DISTRIBUTION_LEN_MAX: usize = 1000;
