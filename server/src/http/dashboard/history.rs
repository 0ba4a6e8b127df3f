//! The last ten minutes of this node, one sample a second.
//!
//! One ring for all viewers, of a fixed size (60 KiB), so that a page that is loaded anew shows the
//! past at once. A sample holds rates and levels by the names in [`FIELDS`]; what was not measured
//! is NaN there and `null` in JSON, and a chart shows a gap rather than a zero.
//!
//! Invariant: times rise from the oldest sample to the newest.

use std::collections::VecDeque;

use serde::{Serialize, Serializer, ser::SerializeSeq};

/// Samples kept: ten minutes.
pub(super) const SAMPLES_MAX: usize = 600;

/// How often the node is looked at.
pub(super) const PERIOD_MS: u64 = 1_000;

macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $constant:ident = $name:literal,)+) => {
        /// Places of the fields in a sample.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field {
            $($(#[doc = $doc])+ $constant,)+
        }

        /// Their names in JSON, in their order.
        pub(super) const FIELDS: &[&str] = &[$($name),+];
    };
}

fields! {
    /// Operations a second by memcached clients.
    OpsMemcached = "ops.memcached",
    /// Operations a second by native clients.
    OpsNative = "ops.native",
    /// Operations a second over HTTP.
    OpsHttp = "ops.http",
    /// Reads a second that found their item.
    Hits = "hits",
    /// Reads a second that did not.
    Misses = "misses",
    /// Items a second dropped for want of room.
    Evictions = "evictions",
    /// Items a second whose end came.
    Expirations = "expirations",
    /// Items now.
    Items = "items",
    /// Bytes of items, index and policy.
    Memory = "memory",
    /// Bytes the process has in RAM.
    Resident = "resident",
    /// Processors in use: 1 is one of them all the time.
    Cpu = "cpu",
    /// Client connections.
    Connections = "connections",
    /// Bytes a second from clients.
    BytesIn = "bytes_in",
    /// Bytes a second to clients.
    BytesOut = "bytes_out",
    /// Half of the batches of memcached clients took no longer, in microseconds.
    P50Memcached = "p50.memcached",
    /// 99 of a hundred.
    P99Memcached = "p99.memcached",
    /// 999 of a thousand.
    P999Memcached = "p999.memcached",
    /// The same for native clients.
    P50Native = "p50.native",
    /// 99 of a hundred.
    P99Native = "p99.native",
    /// 999 of a thousand.
    P999Native = "p999.native",
    /// The same for requests over HTTP.
    P50Http = "p50.http",
    /// 99 of a hundred.
    P99Http = "p99.http",
    /// 999 of a thousand.
    P999Http = "p999.http",
}

/// One second.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When it ended, in milliseconds since 1970.
    at_ms: u64,
    values: [f32; FIELDS.len()],
}

impl Sample {
    /// A sample in which nothing was measured yet.
    pub(super) fn new(at_ms: u64) -> Self {
        Self { at_ms, values: [f32::NAN; FIELDS.len()] }
    }

    /// Sets a field.
    pub(super) fn set(&mut self, field: Field, value: f64) {
        self.values[field as usize] = value as f32;
    }

    /// A field, if it was measured.
    pub(super) fn get(&self, field: Field) -> Option<f64> {
        let value = f64::from(self.values[field as usize]);
        value.is_finite().then_some(value)
    }
}

/// As a row: seconds since 1970, then the fields in their order.
impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(Some(1 + self.values.len()))?;
        row.serialize_element(&Figure(self.at_ms as f64 / 1_000.0))?;
        for value in self.values {
            row.serialize_element(&Figure(f64::from(value)))?;
        }
        row.end()
    }
}

/// A number for people: three decimals where it is small, none where it is large, `null` where
/// there is none. Most of a snapshot is these.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure(pub(super) f64);

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value) = *self;
        if !value.is_finite() {
            return serializer.serialize_none();
        }
        let rounded = (value * 1_000.0).round() / 1_000.0;
        if rounded.fract() == 0.0 || value.abs() >= 1e10 {
            serializer.serialize_i64(value.round() as i64)
        } else {
            serializer.serialize_f64(rounded)
        }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

impl History {
    /// Adds a second, and forgets the oldest when there are enough. One that is not newer than the
    /// newest is left out.
    pub(super) fn push(&mut self, sample: Sample) {
        if self.samples.back().is_some_and(|last| last.at_ms >= sample.at_ms) {
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

impl Serialize for History {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told<'a> {
            fields: &'static [&'static str],
            period_ms: u64,
            samples_max: usize,
            rows: &'a VecDeque<Sample>,
        }
        let (period_ms, samples_max) = (PERIOD_MS, SAMPLES_MAX);
        Told { fields: FIELDS, period_ms, samples_max, rows: &self.samples }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn the_history_is_bounded_and_forgets_the_oldest_first() {
        let mut history = History::default();
        for second in 1..=SAMPLES_MAX as u64 + 5 {
            history.push(Sample::new(second * 1_000));
        }
        assert_eq!(history.samples.len(), SAMPLES_MAX);
        assert_eq!(history.samples.front().map(|sample| sample.at_ms), Some(6_000));
        assert_eq!(history.samples.back().map(|sample| sample.at_ms), Some(605_000));
    }

    #[test]
    fn time_never_runs_backwards_in_the_history() {
        let mut history = History::default();
        for at_ms in [5_000, 5_000, 4_000, 6_000] {
            history.push(Sample::new(at_ms));
        }
        let times: Vec<_> = history.samples.iter().map(|sample| sample.at_ms).collect();
        assert_eq!(times, [5_000, 6_000]);
    }

    #[test]
    fn a_row_has_the_time_and_one_number_or_null_for_each_field() {
        let mut sample = Sample::new(1_500);
        sample.set(Field::OpsNative, 12.3456);
        sample.set(Field::Items, 7.0);
        let row: Vec<Option<f64>> = serde_json::from_str(&json(&sample)).unwrap();
        assert_eq!(row.len(), 1 + FIELDS.len());
        assert_eq!(row[0], Some(1.5));
        assert_eq!(row[1 + Field::OpsMemcached as usize], None);
        assert_eq!(row[1 + Field::OpsNative as usize], Some(12.346));
        assert_eq!(row[1 + Field::Items as usize], Some(7.0));
        assert_eq!(FIELDS[Field::P999Http as usize], "p999.http");
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 2.0, 0.12345, 1e9 + 0.5, 4e12, f64::NAN, f64::INFINITY, -0.0001];
        let shown = shown.map(|value| json(&Figure(value)));
        assert_eq!(
            shown,
            ["0", "2", "0.123", "1000000000.5", "4000000000000", "null", "null", "0"]
        );
    }
}
