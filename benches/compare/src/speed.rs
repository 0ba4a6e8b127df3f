//! Processor time, throughput and latency, side by side.
//!
//! All servers are started and filled first and stay up; each round then measures every server at
//! every depth, so that what the machine does meanwhile falls on all of them. The median over the
//! rounds is what counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_load::{Length, Plan, Progress, Ratio, Report, SizeDist};
use serde::Serialize;

use crate::server::{Kind, Launch, Running, start_or_skip};
use crate::{CompareError, Outcome};

/// How the speed comparison goes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Speed")]
pub(crate) struct Options {
    /// Rounds; each measures every server at every depth once.
    #[arg(
        long,
        default_value_t = 3,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100)
    )]
    rounds: u32,
    /// Pipeline depths.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_name = "N,…")]
    depths: Vec<usize>,
    /// Seconds measured each time, after one second of warm-up.
    #[arg(
        long,
        default_value_t = 4,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    seconds: u64,
    /// Reads only, instead of one write to ten reads.
    #[arg(long)]
    get_only: bool,
    /// Keys, drawn uniformly.
    #[arg(
        long,
        default_value_t = 1_000_000,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    keys: u32,
    /// Connections.
    #[arg(long, default_value_t = 50, value_name = "N")]
    connections: usize,
}

pub(crate) fn run(
    kinds: &[Kind],
    launch: &Launch,
    options: &Options,
    cancel: &AtomicBool,
) -> Result<Outcome, CompareError> {
    let mut servers = Vec::new();
    for &kind in kinds {
        servers.extend(start_or_skip(kind, launch, MEMORY_MIB)?);
    }
    if servers.is_empty() {
        return Err(CompareError::NoServer);
    }
    for server in servers.iter().filter(|server| server.kind != Kind::Null) {
        eprintln!("kiln-compare: filling {}", server.kind);
        load(
            server,
            &Plan { preload: true, length: Length::Requests(0), ..plan(server, options) },
            cancel,
        )?;
    }
    let mut samples: BTreeMap<(Kind, usize), Vec<Report>> = BTreeMap::new();
    for round in 0..options.rounds {
        for &depth in &options.depths {
            // Who goes first in one round goes last in another.
            for turn in 0..servers.len() {
                let first = round as usize;
                let place = (turn + first) % servers.len();
                let server = &mut servers[place];
                let plan = Plan {
                    pipeline: depth,
                    warmup: WARMUP,
                    length: Length::Duration(Duration::from_secs(options.seconds)),
                    seed: u64::from(round) + 1,
                    ..plan(server, options)
                };
                let report = load(server, &plan, cancel)?;
                if !server.is_alive() {
                    return Err(CompareError::Died { server: server.kind });
                }
                let cpu = report.server_cpu.map_or(0.0, |cpu| cpu.total_us);
                eprintln!(
                    "kiln-compare: round {} {:<9} depth {depth:>2}: {cpu:6.3} us/op {:9.0} ops/s",
                    round + 1,
                    server.kind.to_string(),
                    report.operations_per_second
                );
                samples.entry((server.kind, depth)).or_default().push(report);
            }
        }
    }
    let cells = samples.iter().map(|(&(kind, depth), reports)| Cell::new(kind, depth, reports));
    let cells: Vec<Cell> = cells.collect();
    let checks = checks(&cells);
    let versions = servers.iter().map(|server| (server.kind.to_string(), server.version.as_str()));
    let versions: BTreeMap<_, _> = versions.collect();
    Ok(Outcome {
        markdown: markdown(&servers, options, &cells, &checks),
        json: serde_json::json!({
            "mode": "speed",
            "versions": versions,
            "cells": cells,
            "checks": checks,
            "rounds": samples.iter().map(|((kind, depth), reports)| serde_json::json!({
                "server": kind, "depth": depth, "reports": reports,
            })).collect::<Vec<_>>(),
        }),
        passed: checks.iter().all(|check| check.passed),
    })
}

fn plan(server: &Running, options: &Options) -> Plan {
    Plan {
        connections: options.connections,
        keys: options.keys,
        sizes: SizeDist::fixed(VALUE_LEN).unwrap_or(Plan::default().sizes),
        key_len: KEY_LEN,
        ratio: Ratio { sets: u32::from(!options.get_only), gets: 10 },
        ..server.plan()
    }
}

/// Runs `plan`; anything but a run without errors is one here.
pub(crate) fn load(
    server: &Running,
    plan: &Plan,
    cancel: &AtomicBool,
) -> Result<Report, CompareError> {
    let report = kiln_load::run(plan, Progress::Terminal, cancel)
        .map_err(|source| CompareError::Load { server: server.kind, source })?;
    if report.interrupted || cancel.load(Ordering::Relaxed) {
        return Err(CompareError::Interrupted);
    }
    match report.errors.total() {
        0 => Ok(report),
        count => Err(CompareError::Failed {
            server: server.kind,
            count,
            first: report.first_error.unwrap_or_default(),
        }),
    }
}

/// Medians of one server at one depth.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cell {
    server: Kind,
    depth: usize,
    cpu_us: f64,
    user_us: f64,
    system_us: f64,
    /// How much the processor time differs between rounds: widest over median.
    spread_percent: f64,
    operations_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    hit_percent: f64,
    /// Near 100 the generator was the bottleneck: throughput and latency are then its own.
    generator_busy_percent: f64,
    /// How long server or generator stood ready while others had their core: not small means that
    /// the latencies are others' as well.
    waited_percent: f64,
}

impl Cell {
    fn new(server: Kind, depth: usize, reports: &[Report]) -> Self {
        let of = |figure: &dyn Fn(&Report) -> f64| median(reports.iter().map(figure).collect());
        let cpu = |part: fn(&kiln_load::CpuPerOperation) -> f64| {
            of(&|report| report.server_cpu.as_ref().map_or(0.0, part))
        };
        let cpu_us = cpu(|cpu| cpu.total_us);
        let all = reports.iter().filter_map(|report| report.server_cpu).map(|cpu| cpu.total_us);
        let (low, high) = all.fold((f64::MAX, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
        Self {
            server,
            depth,
            cpu_us,
            user_us: cpu(|cpu| cpu.user_us),
            system_us: cpu(|cpu| cpu.system_us),
            spread_percent: if cpu_us > 0.0 { 100.0 * (high - low) / cpu_us } else { 0.0 },
            operations_per_second: of(&|report| report.operations_per_second),
            p50_us: of(&|report| report.latency.all.p50_us),
            p99_us: of(&|report| report.latency.all.p99_us),
            hit_percent: of(&|report| report.hit_percent.unwrap_or(0.0)),
            generator_busy_percent: of(&|report| report.generator_cpu.busy_percent),
            waited_percent: of(&|report| {
                let server = report.server_cpu.map_or(0.0, |cpu| cpu.waited_percent);
                server.max(report.generator_cpu.waited_percent)
            }),
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        len if len % 2 == 1 => figures[len / 2],
        len => f64::midpoint(figures[len / 2 - 1], figures[len / 2]),
    }
}

/// One requirement and whether it is met.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    depth: usize,
    what: &'static str,
    against: Kind,
    ratio: f64,
    limit: f64,
    passed: bool,
}

/// What Kiln must reach, as far as the servers it is set against were measured.
fn checks(cells: &[Cell]) -> Vec<Check> {
    let find = |kind, depth| cells.iter().find(|c| c.server == kind && c.depth == depth);
    let check = |depth, what, figure: fn(&Cell) -> f64, against, limit| {
        let (own, other) = (figure(find(Kind::Kiln, depth)?), figure(find(against, depth)?));
        let ratio = if other > 0.0 { own / other } else { f64::MAX };
        Some(Check { depth, what, against, ratio, limit, passed: own > 0.0 && ratio <= limit })
    };
    let cpu = REQUIRED.iter().filter_map(|&(depth, against, limit)| {
        check(depth, "server CPU per operation", |cell| cell.cpu_us, against, limit)
    });
    let depths =
        REQUIRED.iter().map(|&(depth, ..)| depth).collect::<std::collections::BTreeSet<_>>();
    let p99 = depths.into_iter().flat_map(|depth| {
        [Kind::Memcached, Kind::Redis]
            .map(|against| check(depth, "p99 latency", |cell| cell.p99_us, against, TIE))
    });
    cpu.chain(p99.flatten()).collect()
}

fn markdown(servers: &[Running], options: &Options, cells: &[Cell], checks: &[Check]) -> String {
    let mut text = String::new();
    let mix = if options.get_only { "reads only" } else { "1 set to 10 gets" };
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!(
        "{} connections, {mix}, {} keys of {KEY_LEN} bytes drawn uniformly, values of {VALUE_LEN} \
         bytes, one core a server; medians of {} rounds of {} s.",
        options.connections, options.keys, options.rounds, options.seconds
    ));
    for server in servers {
        line(format!("- {}: {}", server.kind, server.version));
    }
    line(String::new());
    line(COLUMNS.join(" | ").trim().to_owned());
    line(format!("|---{}|", "|---:".repeat(COLUMNS.len() - 3)));
    for depth in &options.depths {
        for cell in cells.iter().filter(|cell| cell.depth == *depth) {
            line(format!(
                "| {} | {} | {:.3} | {:.3} | {:.3} | {:.0} % | {:.0} | {:.0} | {:.0} | {:.1} % | {:.0} % | {:.0} % |",
                cell.server,
                cell.depth,
                cell.cpu_us,
                cell.user_us,
                cell.system_us,
                cell.spread_percent,
                cell.operations_per_second,
                cell.p50_us,
                cell.p99_us,
                cell.hit_percent,
                cell.generator_busy_percent,
                cell.waited_percent
            ));
        }
    }
    line(String::new());
    if cells.iter().any(|cell| cell.waited_percent > DISTURBED_PERCENT) {
        line(DISTURBED.to_owned());
        line(String::new());
    }
    if checks.is_empty() {
        line(
            "No requirement can be checked without Kiln and the servers it is set against."
                .to_owned(),
        );
        return text;
    }
    line("| kiln against | depth | figure | ratio | must be | |".to_owned());
    line("|---|---:|---|---:|---:|---|".to_owned());
    for check in checks {
        let mark = if check.passed { "pass" } else { "**FAIL**" };
        line(format!(
            "| {} | {} | {} | {:.2} | <= {:.2} | {mark} |",
            check.against, check.depth, check.what, check.ratio, check.limit
        ));
    }
    text
}

/// Processor time per operation: at this depth, against this server, at most this ratio.
const REQUIRED: [(usize, Kind, f64); 6] = [
    (1, Kind::Memcached, 0.85),
    (1, Kind::Null, 1.25),
    (16, Kind::Redis, 0.55),
    (16, Kind::Null, 2.0),
    (64, Kind::Redis, 0.5),
    (64, Kind::Null, 5.0),
];

/// Latencies that differ by less are equal on a shared machine.
const TIE: f64 = 1.15;

/// Empty first and last, so that joining them closes the row.
const COLUMNS: [&str; 14] = [
    "",
    "server",
    "depth",
    "CPU us/op",
    "user",
    "system",
    "spread",
    "ops/s",
    "p50 us",
    "p99 us",
    "hits",
    "generator",
    "waited",
    "",
];

const DISTURBED: &str = "Other programs took the cores while this was measured: latencies and \
                         throughput are theirs too.";

/// Waiting longer than this for a core, somebody else was at work on it.
const DISTURBED_PERCENT: f64 = 10.0;

const MEMORY_MIB: u64 = 2048;
const KEY_LEN: usize = 30;
const VALUE_LEN: usize = 100;
const WARMUP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(server: Kind, depth: usize, cpu_us: f64, p99_us: f64) -> Cell {
        Cell {
            server,
            depth,
            cpu_us,
            user_us: 0.0,
            system_us: 0.0,
            spread_percent: 0.0,
            operations_per_second: 1.0,
            p50_us: 1.0,
            p99_us,
            hit_percent: 100.0,
            generator_busy_percent: 0.0,
            waited_percent: 0.0,
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 9.0, 2.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_above_its_limit_fails_and_one_at_it_passes() {
        let cells = [cell(Kind::Kiln, 1, 8.5, 100.0), cell(Kind::Memcached, 1, 10.0, 80.0)];
        let checks = checks(&cells);

        let cpu = checks.iter().find(|check| check.what.contains("CPU")).unwrap();
        let p99 = checks.iter().find(|check| check.what.contains("p99")).unwrap();
        assert!(cpu.passed && !p99.passed, "{checks:?}");
    }

    #[test]
    fn nothing_is_claimed_against_a_server_that_was_not_measured() {
        assert_eq!(checks(&[cell(Kind::Kiln, 1, 1.0, 1.0)]), []);
        assert_eq!(checks(&[cell(Kind::Null, 1, 1.0, 1.0), cell(Kind::Redis, 1, 1.0, 1.0)]), []);
    }

    #[test]
    fn a_figure_that_was_not_measured_is_no_pass() {
        let cells = [cell(Kind::Kiln, 64, 0.0, 5.0), cell(Kind::Redis, 64, 1.0, 5.0)];

        assert!(checks(&cells).iter().any(|check| !check.passed));
    }
}
