//! Bytes to readings, whatever pieces the bytes come in.
//!
//! ```text
//!   chunk --> framing (one line at a time, bounded) --> line | csv | ndjson | influx --> Batch
//!                                                            `--> Report: counts, the first bad lines
//! ```
//!
//! A bad line is counted and reported with its number, column and reason; the lines around it are
//! kept. A line gives all of its readings or none. Complete lines are parsed where they lie; only a
//! line cut by the end of a chunk is copied, at most [`LINE_LEN_MAX`] bytes of it.

mod csv;
mod influx;
mod line;
mod ndjson;
mod time;

use serde::{Deserialize, Serialize};

pub use self::time::Unit;
use crate::reading::{Batch, Reading, ReadingError, SENSOR_LEN_MAX};

/// The longest line in bytes, its end not counted.
pub const LINE_LEN_MAX: usize = 64 * 1024;
/// The most readings of one line (fields of the InfluxDB line protocol).
pub const READINGS_PER_LINE_MAX: usize = 1024;
/// How many bad lines a report names; it counts all.
pub const BAD_LINES_KEPT: usize = 10;

/// How the text of a stream is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `sensor1, 12` or `sensor1, 12, 1700000000000`.
    #[default]
    Line,
    /// Comma-separated columns, named by the first line or by the definition.
    Csv,
    /// One JSON object per line.
    Ndjson,
    /// The InfluxDB line protocol.
    Influx,
}

/// Where in a line the parts of a reading are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How the text is laid out.
    pub format: Format,
    /// The unit of the time in the text; `None` takes the time of arrival.
    pub unit: Option<Unit>,
    /// The field that names the sensor. For `influx` the tag, or `None` for the whole series.
    pub sensor: Option<String>,
    /// The field with the value. For `influx` `None` takes every numeric field.
    pub value: Option<String>,
    /// The field with the time, for `csv` and `ndjson`.
    pub time: String,
    /// Whether a line without that field is wrong; otherwise it gets the time of arrival.
    pub time_required: bool,
    /// The columns of `csv` in order; empty when the first line names them.
    pub columns: Vec<String>,
    /// How far ahead of the arrival an event time may be, in milliseconds.
    pub ahead_max: Option<i64>,
}

/// What was wrong with a line.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Longer than the bound; its rest was skipped.
    #[error("the line is longer than {LINE_LEN_MAX} bytes")]
    TooLong,
    /// Something else was expected here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A named field is not there.
    #[error("there is no field \"{0}\"")]
    FieldMissing(String),
    /// One line with more fields than a batch has room kept for.
    #[error("more than {READINGS_PER_LINE_MAX} fields")]
    TooManyFields,
    /// Not JSON, in the words of the JSON parser.
    #[error("{0}")]
    Json(String),
    /// The event time is too far ahead of the arrival.
    #[error("the time is {ahead_ms} ms ahead of the arrival, the limit is {limit_ms}")]
    TooFarAhead {
        /// How far.
        ahead_ms: i64,
        /// How far it may be.
        limit_ms: i64,
    },
    /// The parts are there and the reading is refused.
    #[error("{0}")]
    Reading(#[from] ReadingError),
}

/// A line that gave no reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// The byte in it where parsing stopped, from 1.
    pub column: usize,
    /// What was wrong.
    pub reason: Reason,
}

/// What became of the lines so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Readings added to batches.
    pub accepted: u64,
    /// Lines that gave none because they are wrong.
    pub rejected: u64,
    /// Fields that are well formed and no number (strings).
    pub skipped_fields: u64,
    /// The first [`BAD_LINES_KEPT`] rejected lines.
    pub first_bad: Vec<BadLine>,
}

/// Turns the bytes of one source (a connection, a request body) into readings.
#[derive(Debug)]
pub struct Intake {
    layout: Layout,
    header: csv::Header,
    scratch: influx::Scratch,
    /// The beginning of a line whose end has not come yet.
    pending: Vec<u8>,
    /// Skipping the rest of a line that is too long.
    discarding: bool,
    line: u64,
    report: Report,
}

/// A reason and the place, before the line's number is known.
#[derive(Debug, PartialEq)]
pub(crate) struct LineError {
    /// Byte offset, from 0.
    pub at: usize,
    pub reason: Reason,
}

impl LineError {
    fn expected(at: usize, what: &'static str) -> Self {
        Self { at, reason: Reason::Expected(what) }
    }
}

impl Intake {
    /// An intake for one source of text in this layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            header: csv::Header::new(&layout),
            layout,
            scratch: influx::Scratch::default(),
            pending: Vec::new(),
            discarding: false,
            line: 0,
            report: Report::default(),
        }
    }

    /// Takes the next bytes; `arrival` is the time for readings that bring none.
    ///
    /// Returns how many bytes it consumed: fewer than all when the batch is full. The caller then
    /// sends the batch on and calls again with the rest.
    pub fn feed(&mut self, bytes: &[u8], arrival: i64, batch: &mut Batch) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if !has_room(batch) {
                return at;
            }
            let rest = &bytes[at..];
            let Some(end) = memchr::memchr(b'\n', rest) else {
                self.keep_tail(rest);
                return bytes.len();
            };
            if self.discarding {
                self.discarding = false;
            } else if self.pending.is_empty() {
                self.line(&rest[..end], arrival, batch);
            } else {
                self.keep_tail(&rest[..end]);
                if self.discarding {
                    self.discarding = false;
                } else {
                    let line = std::mem::take(&mut self.pending);
                    self.line(&line, arrival, batch);
                    self.pending = line;
                    self.pending.clear();
                }
            }
            at += end + 1;
        }
        at
    }

    /// The source has ended: takes a last line that has no line end. `false` when the batch is full
    /// and must be sent on first.
    pub fn finish(&mut self, arrival: i64, batch: &mut Batch) -> bool {
        if self.pending.is_empty() {
            self.discarding = false;
            return true;
        }
        if !has_room(batch) {
            return false;
        }
        let line = std::mem::take(&mut self.pending);
        self.line(&line, arrival, batch);
        true
    }

    /// What became of the lines so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Hands the report over and begins a new one; line numbers go on.
    pub fn take_report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }

    fn keep_tail(&mut self, tail: &[u8]) {
        if self.discarding {
            return;
        }
        if self.pending.len() + tail.len() > LINE_LEN_MAX {
            self.pending = Vec::new();
            self.discarding = true;
            self.line += 1;
            self.reject(LineError { at: LINE_LEN_MAX, reason: Reason::TooLong });
            return;
        }
        self.pending.extend_from_slice(tail);
    }

    #[inline]
    fn line(&mut self, line: &[u8], arrival: i64, batch: &mut Batch) {
        self.line += 1;
        if line.len() > LINE_LEN_MAX {
            return self.reject(LineError { at: LINE_LEN_MAX, reason: Reason::TooLong });
        }
        let before = batch.len();
        let mut out = Output { layout: &self.layout, arrival, batch, skipped: 0 };
        let parsed = match self.layout.format {
            Format::Line => line::parse(line, &mut out),
            Format::Csv => csv::parse(line, &mut self.header, &mut out),
            Format::Ndjson => ndjson::parse(line, &mut out),
            Format::Influx => influx::parse(line, &mut self.scratch, &mut out),
        };
        let skipped = out.skipped;
        match parsed {
            Ok(()) => {
                self.report.accepted += (batch.len() - before) as u64;
                self.report.skipped_fields += skipped;
            }
            Err(error) => {
                batch.truncate(before);
                self.reject(error);
            }
        }
    }

    #[cold]
    fn reject(&mut self, error: LineError) {
        self.report.rejected += 1;
        if self.report.first_bad.len() < BAD_LINES_KEPT {
            let LineError { at, reason } = error;
            self.report.first_bad.push(BadLine { line: self.line, column: at + 1, reason });
        }
    }
}

fn has_room(batch: &Batch) -> bool {
    batch.len() + READINGS_PER_LINE_MAX <= Batch::LEN_MAX
}

/// Where a line's readings go.
struct Output<'a> {
    layout: &'a Layout,
    arrival: i64,
    batch: &'a mut Batch,
    skipped: u64,
}

impl Output<'_> {
    /// The event time of a text, in the unit of the layout.
    #[inline]
    fn time(&self, text: &[u8], at: usize) -> Result<i64, LineError> {
        match self.layout.unit {
            None => Ok(self.arrival),
            Some(unit) => unit.millis(text).ok_or(LineError::expected(at, unit.expectation())),
        }
    }

    #[inline]
    fn push(&mut self, sensor: &[u8], time: i64, value: f64, at: usize) -> Result<(), LineError> {
        if let Some(limit_ms) = self.layout.ahead_max {
            let ahead_ms = time.saturating_sub(self.arrival);
            if ahead_ms > limit_ms {
                return Err(LineError { at, reason: Reason::TooFarAhead { ahead_ms, limit_ms } });
            }
        }
        self.batch
            .push(Reading { sensor, time, value })
            .map_err(|reason| LineError { at, reason: reason.into() })
    }
}

/// Cuts spaces, tabs and carriage returns; returns the offset of what is left.
#[inline]
fn trim(text: &[u8]) -> (usize, &[u8]) {
    let is_space = |b: &u8| matches!(b, b' ' | b'\t' | b'\r');
    let start = text.iter().position(|b| !is_space(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !is_space(b)).map_or(start, |last| last + 1);
    (start, &text[start..end])
}

const _: () = assert!(READINGS_PER_LINE_MAX < Batch::LEN_MAX);
const _: () = assert!(SENSOR_LEN_MAX < LINE_LEN_MAX);

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn layout(format: Format) -> Layout {
        Layout {
            format,
            unit: Some(Unit::Ms),
            sensor: (format != Format::Influx).then(|| "sensor".to_owned()),
            value: (format != Format::Influx).then(|| "value".to_owned()),
            time: "time".to_owned(),
            time_required: false,
            columns: Vec::new(),
            ahead_max: None,
        }
    }

    /// Everything of a text in one piece: `sensor@time=value`, and the report.
    pub(crate) fn read(layout: Layout, text: &str) -> (Vec<String>, Report) {
        let mut intake = Intake::new(layout);
        let mut batch = Batch::new();
        assert_eq!(intake.feed(text.as_bytes(), 7, &mut batch), text.len());
        assert!(intake.finish(7, &mut batch));
        (shown(&batch), intake.take_report())
    }

    fn shown(batch: &Batch) -> Vec<String> {
        batch
            .iter()
            .map(|r| format!("{}@{}={}", String::from_utf8_lossy(r.sensor), r.time, r.value))
            .collect()
    }

    const SAMPLES: [(Format, &str); 4] = [
        (Format::Line, "s1, 12, 5\nbad\n\ns2,-3.5,6\r\ns3, 1e3, 8\n, 4\ns4 , 5"),
        (Format::Csv, "time,sensor,value\n1,a,2\n3,\"b,\"\"c\",4\nx,a,1\n5,a\n6,d,7"),
        (
            Format::Ndjson,
            "{\"sensor\":\"a\",\"value\":1,\"time\":2}\n{\"value\":1}\n{]\n{\"sensor\":\"b\\n\",\"value\":3}\n{\"sensor\":7,\"value\":3.5,\"x\":[{}],\"time\":9}",
        ),
        (
            Format::Influx,
            "cpu,host=a\\ b usage=1.5,n=3i,up=t,s=\"x, y\" 1000\nbroken\n# no\nm value=2 \ncpu,=b v=1\n",
        ),
    ];

    #[test]
    fn a_line_longer_than_the_bound_is_counted_and_the_next_is_read() {
        let text = format!("s1, 1\n{}\ns2, 2\n", "x".repeat(LINE_LEN_MAX + 5));
        for chunk in [1000, 65_537, text.len()] {
            let mut intake = Intake::new(layout(Format::Line));
            let mut batch = Batch::new();
            for piece in text.as_bytes().chunks(chunk) {
                intake.feed(piece, 7, &mut batch);
            }
            assert_eq!(shown(&batch), ["s1@7=1", "s2@7=2"]);
            let bad = &intake.report().first_bad;
            assert_eq!((bad.len(), bad[0].line, &bad[0].reason), (1, 2, &Reason::TooLong));
        }
    }

    #[test]
    fn a_full_batch_stops_the_intake_and_nothing_is_lost() {
        let text = "s, 1\n".repeat(Batch::LEN_MAX + 10);
        let mut intake = Intake::new(layout(Format::Line));
        let (mut batch, mut rest, mut total) = (Batch::new(), text.as_bytes(), 0);
        while !rest.is_empty() {
            let consumed = intake.feed(rest, 7, &mut batch);
            rest = &rest[consumed..];
            total += batch.len();
            batch.clear();
        }
        assert_eq!(total, Batch::LEN_MAX + 10);
        assert_eq!(intake.report().accepted, total as u64);
    }

    #[test]
    fn a_time_too_far_ahead_of_the_arrival_is_refused() {
        let layout = Layout { ahead_max: Some(1000), ..layout(Format::Line) };
        let (kept, report) = read(layout, "s, 1, 1007\ns, 1, 1008\n");
        assert_eq!(kept, ["s@1007=1"]);
        let reason = Reason::TooFarAhead { ahead_ms: 1001, limit_ms: 1000 };
        assert_eq!(report.first_bad, [BadLine { line: 2, column: 1, reason }]);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_readings(cuts in prop::collection::vec(0usize..200, 0..8)) {
            for (format, text) in SAMPLES {
                let whole = read(layout(format), text);
                prop_assert!(whole.1.rejected > 0 && whole.1.accepted > 1);
                let mut cuts: Vec<_> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
                cuts.sort_unstable();
                cuts.push(text.len());
                let mut intake = Intake::new(layout(format));
                let (mut batch, mut from) = (Batch::new(), 0);
                for cut in cuts {
                    let piece = &text.as_bytes()[from..cut];
                    prop_assert_eq!(intake.feed(piece, 7, &mut batch), piece.len());
                    from = cut;
                }
                prop_assert!(intake.finish(7, &mut batch));
                prop_assert_eq!((shown(&batch), intake.take_report()), whole);
            }
        }

        #[test]
        fn random_bytes_never_panic_and_every_line_is_accounted_for(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            pick in 0usize..4,
            at in any::<prop::sample::Index>(),
        ) {
            let (format, text) = SAMPLES[pick];
            let mut damaged = text.as_bytes().to_vec();
            let at = at.index(damaged.len());
            damaged.splice(at..at, bytes.iter().copied());
            for input in [&bytes, &damaged] {
                let mut intake = Intake::new(layout(format));
                let mut batch = Batch::new();
                prop_assert_eq!(intake.feed(input, 7, &mut batch), input.len());
                prop_assert!(intake.finish(7, &mut batch));
                prop_assert_eq!(intake.report().accepted, batch.len() as u64);
                let lines = input.split(|b| *b == b'\n').count() as u64;
                prop_assert!(intake.report().rejected <= lines);
            }
        }
    }
}
