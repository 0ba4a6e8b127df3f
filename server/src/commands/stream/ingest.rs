//! A file of readings, replayed: at the pace of its own times, so many times faster, or as fast as the
//! node takes it.
//!
//! Batches carry a producer's id and number, so that what is sent again after a lost answer or a
//! "later" counts once. The file is read a batch at a time, whatever its length.

use std::{
    fs::File,
    io::{BufRead, BufReader, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use hyper::{Method, StatusCode};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_stream::{
    definition::Definition,
    parse::{Format as TextFormat, Intake, LINE_LEN_MAX},
    plan::Plan,
    reading::Batch,
};
use serde::Serialize;
use tokio::time::{self, Instant};

use super::http::{Http, HttpArgs, refusal, segment};
use crate::commands::{
    CommandError, EXIT_CODES,
    output::{self, Format, OutputArgs},
};

/// Lines of one batch at most; a line may be several readings.
const BATCH_LINES_MAX: u64 = 50_000;
/// At a pace, what comes due within this goes together.
const STEP: Duration = Duration::from_millis(200);
/// Tries of one batch when nobody answers.
const TRIES_MAX: u32 = 10;
/// Between tries when the node does not say how long.
const PAUSE: Duration = Duration::from_secs(1);

/// Feed a stream from a file, in the stream's own format.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Ingest {
    /// The stream.
    stream: String,
    /// The file; - for standard input.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// How fast: `real` by the times in the file, `10x` so many times faster, `max` as fast as it
    /// goes.
    #[arg(long, value_name = "PACE", default_value = "max", value_parser = pace)]
    pace: Pace,
    /// Lines of a batch.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=BATCH_LINES_MAX))]
    batch: u64,
    /// What the producer is called: with the same name and --epoch, a file that is fed again counts
    /// once, as far back as the stream remembers [default: a new one each time].
    #[arg(long, value_name = "ID")]
    producer: Option<String>,
    /// Which life of the producer.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "producer")]
    epoch: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    http: HttpArgs,
}

/// How fast the file is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Times(f64),
    Max,
}

fn pace(text: &str) -> Result<Pace, String> {
    let wrong = || "expected real, max, or a factor such as 10x".to_owned();
    match text {
        "real" => Ok(Pace::Times(1.0)),
        "max" => Ok(Pace::Max),
        _ => {
            let factor: f64 =
                text.strip_suffix('x').and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
            if factor > 0.0 && factor.is_finite() { Ok(Pace::Times(factor)) } else { Err(wrong()) }
        }
    }
}

/// What came of all batches.
#[derive(Debug, Default, Serialize)]
struct Sum {
    accepted: u64,
    duplicate: u64,
    late: u64,
    rejected: u64,
    filtered: u64,
    batches: u64,
    /// Times that the node asked to wait, or did not answer.
    retries: u64,
    seconds: f64,
}

impl Ingest {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let fail = |error: std::io::Error| {
            CommandError::Failed(format!("{}: {error}", self.file.display()))
        };
        let mut http = self.http.open()?;
        let base = format!("/v1/streams/{}", segment(&self.stream));
        let shown = http.must(Method::GET, &base, Vec::new()).await?;
        let definition: Definition =
            serde_json::from_value(shown["definition"].clone()).map_err(|error| {
                CommandError::Failed(format!("a stream of another version: {error}"))
            })?;
        let layout = Plan::new(definition.clone())
            .map_err(|error| CommandError::Failed(error.to_string()))?
            .layout(None);

        let (mut input, len): (Box<dyn BufRead>, u64) = if self.file.as_os_str() == "-" {
            (Box::new(BufReader::new(std::io::stdin())), 0)
        } else {
            let file = File::open(&self.file).map_err(fail)?;
            let len = file.metadata().map_err(fail)?.len();
            (Box::new(BufReader::with_capacity(1 << 20, file)), len)
        };
        let bar = progress(len);
        let begun = Instant::now();
        let mut sum = Sum::default();
        // Columns named in the file stand before each batch: every request is a text of its own.
        let mut header = Vec::new();
        if definition.format == TextFormat::Csv && definition.columns.is_empty() {
            read_line(&mut input, &mut header).map_err(fail)?;
        }
        let producer = match &self.producer {
            Some(producer) => producer.clone(),
            None => format!("ingest-{:016x}", crate::node::random()),
        };
        let mut clock = Clock { pace: self.pace, first: None, begun };
        let mut intake = Intake::new(layout);
        let mut scratch = Batch::new();
        intake.feed(&header, i64::MAX / 2, &mut scratch);
        let mut sequence = 0_u64;
        let mut carried: Option<(Vec<u8>, Option<Instant>)> = None;
        loop {
            let mut body = header.clone();
            let mut lines = 0;
            let mut due: Option<Instant> = None;
            let mut ended = false;
            while lines < self.batch {
                let (line, at) = match carried.take() {
                    Some(line) => line,
                    None => {
                        let mut line = Vec::new();
                        if read_line(&mut input, &mut line).map_err(fail)? == 0 {
                            ended = true;
                            break;
                        }
                        let at = clock.due(&mut intake, &mut scratch, &line);
                        (line, at)
                    }
                };
                // What is due later begins the next batch.
                if let (Some(first), Some(at)) = (due, at)
                    && at > first + STEP
                {
                    carried = Some((line, Some(at)));
                    break;
                }
                due = due.or(at);
                body.extend_from_slice(&line);
                lines += 1;
            }
            if lines > 0 {
                if let Some(due) = due {
                    time::sleep_until(due).await;
                }
                let target = format!(
                    "{base}/readings?producer={}&epoch={}&sequence={sequence}",
                    segment(&producer),
                    self.epoch
                );
                bar.inc((body.len() - header.len()) as u64);
                send(&mut http, &target, body, &mut sum).await?;
                sequence += 1;
            }
            if ended {
                break;
            }
        }
        bar.finish_and_clear();
        sum.seconds = begun.elapsed().as_secs_f64();
        report(&sum, self.output)
    }
}

/// When lines are to be sent.
struct Clock {
    pace: Pace,
    /// The first event time.
    first: Option<i64>,
    begun: Instant,
}

impl Clock {
    /// When a line is due; `None` for one without a time, and at full speed.
    fn due(&mut self, intake: &mut Intake, scratch: &mut Batch, line: &[u8]) -> Option<Instant> {
        let Pace::Times(factor) = self.pace else { return None };
        scratch.clear();
        // Far ahead of any time in the file, and not a time that a file would have.
        const NO_TIME: i64 = kiln_stream::reading::TIME_MAX;
        intake.feed(line, NO_TIME, scratch);
        let time = scratch.times().first().copied().filter(|time| *time != NO_TIME)?;
        let first = *self.first.get_or_insert(time);
        let after = time.saturating_sub(first).max(0) as f64 / 1_000.0 / factor;
        Some(self.begun + Duration::try_from_secs_f64(after).ok()?)
    }
}

/// A line with its end; a last one without an end gets it. A line beyond all bounds comes in pieces,
/// which the node counts as wrong.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    use std::io::Read;
    let read = input.take(LINE_LEN_MAX as u64 + 2).read_until(b'\n', line)?;
    if read > 0 && line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    Ok(read)
}

/// Sends a batch until it is taken in.
async fn send(
    http: &mut Http,
    target: &str,
    body: Vec<u8>,
    sum: &mut Sum,
) -> Result<(), CommandError> {
    let mut failures = 0;
    loop {
        match http.ask(Method::POST, target, body.clone()).await {
            Ok(answer) if answer.status.is_success() => {
                let of = |name: &str| answer.body[name].as_u64().unwrap_or(0);
                sum.accepted += of("accepted");
                sum.duplicate += of("duplicate");
                sum.late += of("late");
                sum.rejected += of("rejected");
                sum.filtered += of("filtered");
                sum.batches += 1;
                return Ok(());
            }
            Ok(answer)
                if matches!(
                    answer.status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                ) =>
            {
                sum.retries += 1;
                time::sleep(answer.retry_after.unwrap_or(PAUSE)).await;
            }
            Ok(answer) => return Err(refusal(&answer)),
            Err(error) => {
                failures += 1;
                sum.retries += 1;
                if failures >= TRIES_MAX {
                    return Err(error);
                }
                time::sleep(PAUSE).await;
            }
        }
    }
}

fn progress(len: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(10)
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target((len > 0).then_some(len), target);
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {elapsed} (left {eta})",
    );
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn report(sum: &Sum, output: OutputArgs) -> Result<(), CommandError> {
    match output.or(Format::Table) {
        Format::Json => output::print_json(sum),
        Format::Raw => output::print(format!("{}\n", sum.accepted)),
        Format::Table => output::print(format!(
            "{} readings taken in within {:.1} s, {:.0} a second; {} duplicate, {} late, {} lines \
             rejected, {} filtered, {} retries\n",
            sum.accepted,
            sum.seconds,
            sum.accepted as f64 / sum.seconds.max(1e-9),
            sum.duplicate,
            sum.late,
            sum.rejected,
            sum.filtered,
            sum.retries
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_real_max_or_a_factor() {
        assert_eq!(pace("real"), Ok(Pace::Times(1.0)));
        assert_eq!(pace("max"), Ok(Pace::Max));
        assert_eq!(pace("2.5x"), Ok(Pace::Times(2.5)));
        for bad in ["", "x", "0x", "-1x", "infx", "fast"] {
            assert!(pace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_due_as_far_apart_as_their_times_say() {
        let plan = Plan::new(Definition::default()).unwrap();
        let mut intake = Intake::new(plan.layout(None));
        let begun = Instant::now();
        let mut clock = Clock { pace: Pace::Times(10.0), first: None, begun };
        let mut scratch = Batch::new();
        let mut due = |line: &str| clock.due(&mut intake, &mut scratch, line.as_bytes());
        assert_eq!(due("a, 1, 1700000000000\n"), Some(begun));
        assert_eq!(due("a, 1, 1700000005000\n"), Some(begun + Duration::from_millis(500)));
        assert_eq!(due("a, 1\n"), None);
        assert_eq!(due("nonsense\n"), None);
    }
}
