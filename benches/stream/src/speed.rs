//! The operator alone and the whole path from text, one thread.
//!
//! Time is that of the thread's processor clock, so that a busy machine does not show; only `feed`
//! and `apply` are timed, record by record, the making of the input is not. Sensors come in random
//! order; event time advances with the readings, so windows open, fire and close as they would.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kiln_stream::operator::Operator;
use kiln_stream::parse::Intake;
use kiln_stream::plan::Plan;
use kiln_stream::reading::{Batch, Reading};
use kiln_stream::record::{Producer, Record};
use rustix::time::{ClockId, clock_gettime};

/// Readings per record.
const RECORD_LEN: usize = 8192;
const START: i64 = 1_700_000_000_000;

struct Row {
    name: &'static str,
    sensors: u64,
    /// Readings per second of event time and sensor.
    rate: u64,
    windows: &'static str,
    aggregates: &'static str,
    from_text: bool,
    /// What the contract asks for, in millions per second.
    target: Option<f64>,
}

const SEVEN: &str = r#"["count", "sum", "mean", "var", "std", "min", "max"]"#;
const TUMBLING: &str = r#"[{"tumbling": "10s"}]"#;
const HOPPING: &str = r#"[{"hopping": "10s", "every": "1s"}]"#;

/// The rows whose ratio is looked at, and what it must be.
const TUMBLING_ROW: usize = 0;
const HOPPING_ROW: usize = 2;
const HOPPING_RATIO_MIN: f64 = 0.8;

const fn row(
    name: &'static str,
    sensors: u64,
    rate: u64,
    windows: &'static str,
    target: Option<f64>,
) -> Row {
    Row { name, sensors, rate, windows, aggregates: SEVEN, from_text: false, target }
}

const ROWS: [Row; 11] = [
    row("tumbling 10s", 1_000, 100, TUMBLING, Some(20.0)),
    row("tumbling 10s", 100_000, 10, TUMBLING, Some(8.0)),
    row("hopping 10s/1s", 1_000, 100, HOPPING, None),
    row("hopping 10s/1s", 1_000, 10, HOPPING, None),
    row("tumbling 10s", 1_000, 10, TUMBLING, None),
    row("hopping 10s/1s", 100_000, 10, HOPPING, None),
    row(
        "10s and 10m/1m",
        1_000,
        100,
        r#"[{"tumbling": "10s"}, {"hopping": "10m", "every": "1m"}]"#,
        None,
    ),
    row("session 5s", 1_000, 100, r#"[{"session": "5s"}]"#, None),
    row("count 100", 1_000, 100, r#"[{"count": 100}]"#, None),
    Row {
        aggregates: r#"["mean", "p50", "p95", "p99"]"#,
        ..row("percentiles 10s", 1_000, 100, TUMBLING, None)
    },
    Row { from_text: true, ..row("text to latest + 10s", 1_000, 100, TUMBLING, Some(10.0)) },
];

pub fn run(seconds: f64, runs: usize, json: Option<&Path>) -> ExitCode {
    println!("millions of readings per second of processor time, one thread, {runs} runs");
    println!(
        "{:<22} {:>8} {:>10} {:>8} {:>8} {:>8} {:>12}",
        "operator", "sensors", "per s each", "best", "median", "target", "results/s"
    );
    // Run by run over all rows: what else the machine does falls on all of them.
    let mut all: Vec<Vec<(f64, f64)>> = vec![Vec::new(); ROWS.len()];
    for _ in 0..runs {
        for (found, row) in all.iter_mut().zip(&ROWS) {
            found.push(measure(row, seconds));
        }
    }
    let mut missed = false;
    let mut medians = Vec::new();
    let mut said = Vec::new();
    for (found, row) in all.iter_mut().zip(&ROWS) {
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, results) = found[runs / 2];
        let best = found[runs - 1].0;
        let target = row.target.map_or("-".to_owned(), |t| format!("{t:.1}"));
        println!(
            "{:<22} {:>8} {:>10} {best:>8.1} {median:>8.1} {target:>8} {results:>12.0}",
            row.name, row.sensors, row.rate,
        );
        missed |= row.target.is_some_and(|target| median < target);
        medians.push(median);
        said.push(serde_json::json!({
            "name": row.name, "sensors": row.sensors, "rate": row.rate,
            "millions_per_s": median, "best": best, "target": row.target, "results_per_s": results,
        }));
    }
    let ratio = medians[HOPPING_ROW] / medians[TUMBLING_ROW];
    println!(
        "hopping 10s/1s to tumbling 10s at 1,000 sensors: {ratio:.2}x (target {HOPPING_RATIO_MIN}x)"
    );
    missed |= ratio < HOPPING_RATIO_MIN;
    let said = serde_json::json!({
        "rows": said, "hopping_to_tumbling": ratio, "hopping_to_tumbling_min": HOPPING_RATIO_MIN,
    });
    if let Some(path) = json
        && let Err(error) = std::fs::write(path, said.to_string())
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Millions of readings and single results per second.
fn measure(row: &Row, seconds: f64) -> (f64, f64) {
    let definition = format!(
        r#"{{"windows": {}, "aggregates": {}, "watermark_delay": "1s", "ahead_max": "3650d"}}"#,
        row.windows, row.aggregates
    );
    let definition = serde_json::from_str(&definition).expect("the rows are well formed");
    let plan = Arc::new(Plan::new(definition).expect("the rows are plans"));
    let mut operator = Operator::new(Arc::clone(&plan));
    let mut intake = Intake::new(plan.layout(None));
    let ids: Vec<String> = (0..row.sensors).map(|i| format!("sensor{i}")).collect();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut made, mut counted, mut results) = (0u64, 0u64, 0u64);
    let mut spent = Duration::ZERO;
    let mut text = String::new();
    let mut batch = Batch::new();
    // Every sensor known and a window behind it before the clock runs; then at least one more.
    let warm_up = row.sensors * row.rate * 12;
    let least = row.sensors * row.rate * 10;
    while spent.as_secs_f64() < seconds || counted < least {
        text.clear();
        batch.clear();
        for _ in 0..RECORD_LEN {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let id = &ids[(random % row.sensors) as usize];
            let time = START + (made * 1000 / (row.sensors * row.rate)) as i64;
            let value = (random >> 44) as f64 / 100.0;
            made += 1;
            if row.from_text {
                use std::fmt::Write;
                let _ = writeln!(text, "{id}, {value}, {time}");
            } else {
                let reading = Reading { sensor: id.as_bytes(), time, value };
                batch.push(reading).expect("a batch holds more than a record");
            }
        }
        let before = thread_time();
        if row.from_text {
            let consumed = intake.feed(text.as_bytes(), START, &mut batch);
            assert_eq!(consumed, text.len(), "a batch holds more than a record");
        }
        let producer = Producer { id: "bench".to_owned(), ..Producer::default() };
        let record = Record {
            now: START,
            producer: Some(Arc::new(producer)),
            offsets: Vec::new(),
            batch: batch.into(),
        };
        let effects = operator.apply(&record);
        let after = thread_time();
        assert_eq!(effects.accepted as usize, RECORD_LEN);
        batch = record.batch.into_batch().expect("nobody else has it");
        if made > warm_up {
            spent += after - before;
            counted += RECORD_LEN as u64;
            results += effects.windows().len() as u64;
        }
    }
    (counted as f64 / spent.as_secs_f64() / 1e6, results as f64 / spent.as_secs_f64())
}

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
