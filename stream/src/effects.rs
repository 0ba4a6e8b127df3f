//! What applying a record led to: what the owner of the partition writes to caches and hands to
//! followers. A backup gets the same effects from the same record and ignores them.
//!
//! Sensors are numbers here; [`crate::operator::Operator::sensor_id`] names them until the next
//! record is applied.

use crate::aggregate::{Accumulator, Aggregate};
use crate::detect::AlarmKind;

/// Everything a record led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Whether the record was applied.
    pub outcome: Outcome,
    /// Readings that were taken in.
    pub accepted: u64,
    /// Readings that were taken in and came too late for at least one window.
    pub late: u64,
    /// The readings too late for a window, if the definition keeps them.
    pub late_readings: Vec<LateReading>,
    /// The sensors with a new latest value, each once, with the value after the whole record.
    pub latest: Vec<LatestValue>,
    /// Results under these keys no longer hold: a session grew at its start.
    pub retractions: Vec<Retraction>,
    /// What detectors saw.
    pub alarms: Vec<Alarm>,
    /// Models fitted to windows that closed.
    pub fits: Vec<FitResult>,
    /// All producers are silent and open windows were given out as they are.
    pub flushed: bool,
    windows: Vec<WindowHead>,
    values: Figures,
}

/// One row per window, one column per aggregate, NaN for null; equal where the bits are.
#[derive(Clone, Debug, Default)]
struct Figures(Vec<f64>);

impl PartialEq for Figures {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

/// What became of a record as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Applied.
    #[default]
    Applied,
    /// It was applied before; nothing changed.
    Duplicate {
        /// The readings in it.
        readings: u64,
    },
    /// So old that nobody knows whether it was applied; nothing changed.
    TooOld {
        /// The highest sequence of this producer.
        highest: u64,
    },
    /// Of an earlier life of its producer; nothing changed.
    StaleEpoch {
        /// The present life.
        current: u64,
    },
}

/// A new latest value of a sensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatestValue {
    /// Which sensor.
    pub sensor: u32,
    /// The event time.
    pub time: i64,
    /// The value.
    pub value: f64,
}

/// A reading too late for at least one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LateReading {
    /// Which sensor.
    pub sensor: u32,
    /// The event time.
    pub time: i64,
    /// The value.
    pub value: f64,
}

/// A result that was given and no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retraction {
    /// Which sensor.
    pub sensor: u32,
    /// Which window of the definition.
    pub window: u16,
    /// The start of the result.
    pub start: i64,
}

/// A detector raised or ended an alarm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alarm {
    /// Which sensor.
    pub sensor: u32,
    /// Which detector of the definition.
    pub detector: u16,
    /// Raised or cleared.
    pub kind: AlarmKind,
    /// The event time of the reading; for `missing` the time of the clock.
    pub time: i64,
    /// The value; for `missing` the last.
    pub value: f64,
    /// What was expected instead, if the detector forecasts.
    pub expected: Option<f64>,
    /// How far from normal, in the detector's own measure.
    pub score: f64,
}

/// A model fitted to the readings of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct FitResult {
    /// Which sensor.
    pub sensor: u32,
    /// Which window of the definition.
    pub window: u16,
    /// The start of the window.
    pub start: i64,
    /// Which fit of the definition.
    pub fit: u16,
    /// The model; `None` where the readings do not determine one.
    pub model: Option<crate::fit::Model>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct WindowHead {
    sensor: u32,
    window: u16,
    revision: u32,
    start: i64,
    end: i64,
    ordinal: u64,
}

/// One result of one window of one sensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowResult<'a> {
    /// Which sensor.
    pub sensor: u32,
    /// Which window of the definition.
    pub window: u16,
    /// 0 for the first result of the window, one more each time it fires again.
    pub revision: u32,
    /// The start, inclusive; for a count window its least event time.
    pub start: i64,
    /// The end, exclusive; for a count window just after its greatest event time.
    pub end: i64,
    /// Which count window of the sensor, from 0; 0 for other windows. Two count windows of a sensor
    /// can have the same times, never the same number.
    pub ordinal: u64,
    values: &'a [f64],
}

impl WindowResult<'_> {
    /// The figures in the order of the definition; `None` is null.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Option<f64>> {
        self.values.iter().map(|value| (!value.is_nan()).then_some(*value))
    }
}

impl Effects {
    /// All window results, by sensor and then by end.
    pub fn windows(&self) -> impl ExactSizeIterator<Item = WindowResult<'_>> {
        let columns =
            if self.windows.is_empty() { 0 } else { self.values.0.len() / self.windows.len() };
        self.windows.iter().enumerate().map(move |(i, head)| WindowResult {
            sensor: head.sensor,
            window: head.window,
            revision: head.revision,
            start: head.start,
            end: head.end,
            ordinal: head.ordinal,
            values: &self.values.0[i * columns..(i + 1) * columns],
        })
    }

    /// As if nothing came of a record yet; keeps the memory.
    pub(crate) fn clear(&mut self) {
        let Self { outcome, accepted, late, flushed, .. } = self;
        (*outcome, *accepted, *late, *flushed) = Default::default();
        self.late_readings.clear();
        self.latest.clear();
        self.retractions.clear();
        self.alarms.clear();
        self.fits.clear();
        self.windows.clear();
        self.values.0.clear();
    }

    /// Whether nothing came of the record but latest values.
    pub fn is_quiet(&self) -> bool {
        self.windows.is_empty()
            && self.retractions.is_empty()
            && self.alarms.is_empty()
            && self.fits.is_empty()
            && self.late_readings.is_empty()
            && !self.flushed
    }

    pub(crate) fn push_window(
        &mut self,
        at: WindowAt,
        accumulator: &Accumulator,
        aggregates: &[Aggregate],
    ) {
        let WindowAt { sensor, window, revision, start, end, ordinal } = at;
        self.windows.push(WindowHead { sensor, window, revision, start, end, ordinal });
        let figure = |a: &Aggregate| accumulator.get(*a, end).unwrap_or(f64::NAN);
        self.values.0.extend(aggregates.iter().map(figure));
    }
}

/// Where a result belongs.
#[derive(Clone, Copy)]
pub(crate) struct WindowAt {
    pub sensor: u32,
    pub window: u16,
    pub revision: u32,
    pub start: i64,
    pub end: i64,
    pub ordinal: u64,
}
