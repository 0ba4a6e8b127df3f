//! The detectors on labelled series, scored by the rules of the Numenta Anomaly Benchmark, standard
//! profile.
//!
//! In each labelled window the first alarm counts, the more the earlier; an alarm outside costs, the
//! more the further it lies behind the window before it; a window without an alarm costs one. The
//! sum is scaled so that no alarm at all gives 0 and perfect alarms give 100. Alarms in the first
//! 15 % of a series (at most of 750 readings) are not counted, for anyone.
//!
//! All detectors run with one set of parameters on all series. The defaults were chosen by hand among
//! some 450 sets tried on these same series, so a score on them is not one on unseen data. The
//! baseline is a plain z-score against a decayed mean and variance, with the same parameters and the
//! same suppression of alarms that follow an alarm. Exit code 1 when no detector reaches it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kiln_stream::definition::Definition;
use kiln_stream::detect::{AlarmKind, Detector};
use kiln_stream::operator::Operator;
use kiln_stream::parse::Intake;
use kiln_stream::plan::Plan;
use kiln_stream::reading::Batch;
use kiln_stream::record::{Producer, Record};

const WEIGHT_FOUND: f64 = 1.0;
const WEIGHT_FALSE: f64 = 0.11;
const WEIGHT_MISSED: f64 = 1.0;

const DETECTORS: [&str; 3] = ["ewma_z", "ar", "holt_winters"];

struct Series {
    name: String,
    times: Vec<i64>,
    values: Vec<f64>,
    /// First and last place of each labelled window.
    windows: Vec<(usize, usize)>,
}

pub fn run(dir: Option<&Path>, detectors: &[String], each: bool) -> ExitCode {
    let Some(dir) = dir else {
        println!("skipped: no series; give --dir or KILN_NAB_DIR");
        return ExitCode::SUCCESS;
    };
    let series = match read_all(dir) {
        Ok(series) => series,
        Err(reason) => {
            eprintln!("{}: {reason}", dir.display());
            return ExitCode::FAILURE;
        }
    };
    let readings: usize = series.iter().map(|s| s.values.len()).sum();
    let windows: usize = series.iter().map(|s| s.windows.len()).sum();
    println!("{} series, {readings} readings, {windows} labelled windows", series.len());
    println!("{:<24} {:>7} {:>7} {:>7} {:>7}", "detector", "score", "found", "missed", "false");
    let baseline = print_scores("plain EWMA z-score", &series, each, plain_z_score);
    let mut best = f64::NEG_INFINITY;
    let by_default = DETECTORS.map(|name| format!("\"{name}\""));
    for text in if detectors.is_empty() { &by_default[..] } else { detectors } {
        let detector: Detector = match serde_json::from_str(text) {
            Ok(detector) => detector,
            Err(reason) => {
                eprintln!("{text}: {reason}");
                return ExitCode::FAILURE;
            }
        };
        let name = text.trim_matches('"');
        best = best.max(print_scores(name, &series, each, |series| alarms(&detector, series)));
    }
    if best < baseline {
        println!("MISSED: no detector scores as much as the baseline");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn print_scores(
    name: &str,
    all: &[Series],
    each: bool,
    alarms: impl Fn(&Series) -> Vec<usize>,
) -> f64 {
    let mut total = Score::default();
    let mut rows = Vec::new();
    for series in all {
        let score = score(series, &alarms(series));
        rows.push((series.name.as_str(), score));
        total.add(score);
    }
    println!(
        "{name:<24} {:>7.1} {:>7} {:>7} {:>7}",
        total.scaled(),
        total.found,
        total.missed,
        total.false_alarms
    );
    if each {
        for (name, score) in rows {
            println!(
                "    {name:<60} {:>7.2} found {} missed {} false {}",
                score.sum, score.found, score.missed, score.false_alarms
            );
        }
    }
    total.scaled()
}

#[derive(Clone, Copy, Default)]
struct Score {
    sum: f64,
    found: u32,
    missed: u32,
    false_alarms: u32,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.found += other.found;
        self.missed += other.missed;
        self.false_alarms += other.false_alarms;
    }

    /// 0 for silence, 100 for perfect.
    fn scaled(self) -> f64 {
        let windows = f64::from(self.found + self.missed);
        let (silence, perfect) = (-WEIGHT_MISSED * windows, WEIGHT_FOUND * windows);
        100.0 * (self.sum - silence) / (perfect - silence)
    }
}

/// Alarms by place, ascending.
fn score(series: &Series, alarms: &[usize]) -> Score {
    let probation = (series.values.len().min(5000) as f64 * 0.15) as usize;
    let alarms: Vec<usize> = alarms.iter().copied().filter(|at| *at >= probation).collect();
    let mut score = Score::default();
    for &(first, last) in &series.windows {
        let len = (last - first + 1) as f64;
        match alarms.iter().find(|at| (first..=last).contains(at)) {
            Some(at) => {
                score.found += 1;
                let position = -((last - at + 1) as f64) / len;
                score.sum += WEIGHT_FOUND * falling(position) / falling(-1.0);
            }
            None => {
                score.missed += 1;
                score.sum -= WEIGHT_MISSED;
            }
        }
    }
    let inside = |at: usize| series.windows.iter().any(|(a, b)| (*a..=*b).contains(&at));
    for at in alarms.into_iter().filter(|at| !inside(*at)) {
        score.false_alarms += 1;
        let before = series.windows.iter().rfind(|(_, last)| *last < at);
        let cost = before.map_or(-1.0, |(first, last)| {
            falling((at - last) as f64 / ((last - first) as f64).max(1.0))
        });
        score.sum += WEIGHT_FALSE * cost;
    }
    score
}

/// From near 1 at the start of a window (-1) through 0 at its end (0) to -1 far behind it.
fn falling(position: f64) -> f64 {
    if position > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

/// Where a detector of the operator raised alarms.
fn alarms(detector: &Detector, series: &Series) -> Vec<usize> {
    let definition = Definition { detectors: vec![detector.clone()], ..Definition::default() };
    let plan = Arc::new(Plan::new(definition).expect("a plain plan"));
    let mut operator = Operator::new(plan);
    let mut found = Vec::new();
    for (at, (time, value)) in series.times.iter().zip(&series.values).enumerate() {
        let mut batch = Batch::new();
        let reading = kiln_stream::reading::Reading { sensor: b"s", time: *time, value: *value };
        batch.push(reading).expect("checked when it was read");
        let producer = Some(Arc::new(Producer { id: "nab".to_owned(), ..Producer::default() }));
        let effects = operator.apply(&Record {
            now: *time,
            producer,
            batch: batch.into(),
            ..Record::default()
        });
        if effects.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Raised) {
            found.push(at);
        }
    }
    found
}

/// The baseline: no clipping of what outliers teach, otherwise the same numbers.
fn plain_z_score(series: &Series) -> Vec<usize> {
    let of = kiln_stream::detect::EwmaZ::default();
    let (mut mean, mut variance, mut quiet) = (series.values[0], 0.0f64, 0u32);
    let mut found = Vec::new();
    for (at, value) in series.values.iter().enumerate().skip(1) {
        let apart = value - mean;
        let far = apart.abs() > of.scoring.threshold * variance.sqrt();
        if at as u64 > u64::from(of.scoring.warm_up) && far && quiet == 0 {
            found.push(at);
            quiet = of.scoring.suppress;
        } else {
            quiet = quiet.saturating_sub(1);
        }
        mean += of.alpha * apart;
        variance = (1.0 - of.alpha) * (variance + of.alpha * apart * apart);
    }
    found
}

fn read_all(dir: &Path) -> Result<Vec<Series>, String> {
    let labels =
        std::fs::read(dir.join("windows.json")).map_err(|e| format!("windows.json: {e}"))?;
    let labels: BTreeMap<String, Vec<[String; 2]>> =
        serde_json::from_slice(&labels).map_err(|e| format!("windows.json: {e}"))?;
    labels.into_iter().map(|(name, windows)| read(dir, name, &windows)).collect()
}

/// A series through Kiln's own CSV intake.
fn read(dir: &Path, name: String, windows: &[[String; 2]]) -> Result<Series, String> {
    let text = std::fs::read_to_string(dir.join(&name)).map_err(|e| format!("{name}: {e}"))?;
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    let lines: String = body.lines().map(|line| format!("s,{line}\n")).collect();
    let definition = r#"{"format": "csv", "columns": ["sensor", "time", "value"],
        "timestamp": {"field": "time", "unit": "iso"}}"#;
    let definition = serde_json::from_str(definition).expect("a plain definition");
    let plan = Plan::new(definition).expect("a plain plan");
    let mut batch = Batch::new();
    let mut intake = Intake::new(plan.layout(None));
    let consumed = intake.feed(lines.as_bytes(), i64::MAX / 2, &mut batch);
    if consumed != lines.len() || intake.report().rejected > 0 {
        return Err(format!("{name}: {:?}", intake.report()));
    }
    let times = batch.times().to_vec();
    let place = |text: &str| -> Result<usize, String> {
        // The labels have fractions of a second, which the series do not.
        let mut batch = Batch::new();
        let line = format!("s,{text},0\n");
        Intake::new(plan.layout(None)).feed(line.as_bytes(), i64::MAX / 2, &mut batch);
        let time = batch.times().first().ok_or_else(|| format!("{name}: no time: {text}"))?;
        Ok(times.partition_point(|t| t < time))
    };
    let mut places = Vec::new();
    for [from, to] in windows {
        places.push((place(from)?, place(to)?.min(times.len() - 1)));
    }
    Ok(Series { name, values: batch.values().to_vec(), times, windows: places })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(windows: &[(usize, usize)]) -> Series {
        let windows = windows.to_vec();
        Series { name: String::new(), times: vec![0; 1000], values: vec![0.0; 1000], windows }
    }

    #[test]
    fn silence_scores_0_and_an_alarm_at_each_start_scores_100() {
        let series = series(&[(300, 399), (600, 649)]);
        assert!(score(&series, &[]).scaled().abs() < 1e-9);
        assert!((score(&series, &[300, 600]).scaled() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn an_alarm_counts_less_the_later_and_costs_more_the_further_outside() {
        let series = series(&[(300, 399)]);
        let of = |alarms: &[usize]| score(&series, alarms).sum;
        assert!(of(&[310]) > of(&[390]) && of(&[390]) > of(&[]));
        assert!(of(&[300, 402]) > of(&[300, 450]) && of(&[300, 450]) > of(&[300, 900]));
        // Before every window: the whole cost. In the first 15 %: none.
        assert!((of(&[200, 300]) - (1.0 - WEIGHT_FALSE)).abs() < 1e-9);
        assert!((of(&[149, 300]) - 1.0).abs() < 1e-9);
        // Only the first alarm of a window counts.
        assert_eq!(of(&[300, 350]), of(&[300]));
    }
}
