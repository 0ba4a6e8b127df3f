//! One reading, and a batch of them in columns.
//!
//! A batch is what travels: it is parsed once, filtered, split by partition, replicated and applied.
//! Columns, because filters and hashing run over one column at a time and because a batch then is
//! four allocations whatever its length, and its [parts](Part) none.
//!
//! Invariants, checked where a reading enters and again where a batch is decoded:
//! - a sensor id is 1 to [`SENSOR_LEN_MAX`] bytes without control characters;
//! - a time is within [`TIME_MIN`]..=[`TIME_MAX`], a value is finite;
//! - a batch holds at most [`Batch::LEN_MAX`] readings.

mod packed;
mod part;

use serde::Deserialize;

pub use self::part::{Part, disjoin, join};

/// The longest sensor id in bytes: a memcached key.
pub const SENSOR_LEN_MAX: usize = 250;
/// The earliest event time in milliseconds since 1970: the year 1.
pub const TIME_MIN: i64 = -62_135_596_800_000;
/// The latest event time: the end of the year 9999. Window arithmetic on it cannot overflow.
pub const TIME_MAX: i64 = 253_402_300_799_999;

/// One value of one sensor at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// Which sensor.
    pub sensor: &'a [u8],
    /// When it was measured, in milliseconds since 1970.
    pub time: i64,
    /// What was measured.
    pub value: f64,
}

/// Why a reading cannot be taken.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadingError {
    /// The sensor id is empty.
    #[error("the sensor id is empty")]
    SensorEmpty,
    /// The sensor id is too long.
    #[error("the sensor id is longer than {SENSOR_LEN_MAX} bytes")]
    SensorTooLong,
    /// The sensor id has a control character.
    #[error("the sensor id has a control character")]
    SensorControl,
    /// The time is outside the years 1 to 9999.
    #[error("the time is outside the years 1 to 9999")]
    Time,
    /// The value is an infinity or not a number.
    #[error("the value is not a finite number")]
    Value,
    /// The batch is full.
    #[error("the batch holds {} readings already", Batch::LEN_MAX)]
    Full,
}

impl Reading<'_> {
    /// Checks the invariants above.
    #[inline]
    pub fn check(&self) -> Result<(), ReadingError> {
        check_sensor(self.sensor)?;
        if !(TIME_MIN..=TIME_MAX).contains(&self.time) {
            return Err(ReadingError::Time);
        }
        if !self.value.is_finite() {
            return Err(ReadingError::Value);
        }
        Ok(())
    }
}

#[inline]
fn check_sensor(sensor: &[u8]) -> Result<(), ReadingError> {
    if sensor.is_empty() {
        return Err(ReadingError::SensorEmpty);
    }
    if sensor.len() > SENSOR_LEN_MAX {
        return Err(ReadingError::SensorTooLong);
    }
    // Folded, not short-circuited: ids are short and this is the text path's inner loop.
    if sensor.iter().fold(false, |bad, b| bad | (*b < 0x20) | (*b == 0x7f)) {
        return Err(ReadingError::SensorControl);
    }
    Ok(())
}

/// Readings in columns, in order of arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// All ids behind each other.
    ids: Vec<u8>,
    /// Where each id ends in `ids`.
    ends: Vec<u32>,
    times: Vec<i64>,
    values: Vec<f64>,
}

impl Batch {
    /// The most readings of one batch.
    pub const LEN_MAX: usize = 65_536;

    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reading; refuses one that breaks an invariant.
    #[inline]
    pub fn push(&mut self, reading: Reading<'_>) -> Result<(), ReadingError> {
        reading.check()?;
        if self.len() == Self::LEN_MAX {
            return Err(ReadingError::Full);
        }
        self.push_checked(reading);
        Ok(())
    }

    /// Adds a reading that was checked, to a batch that has room.
    #[inline]
    fn push_checked(&mut self, reading: Reading<'_>) {
        self.ids.extend_from_slice(reading.sensor);
        // At most LEN_MAX ids of SENSOR_LEN_MAX bytes: 16 MB.
        self.ends.push(self.ids.len() as u32);
        self.times.push(reading.time);
        self.values.push(reading.value);
    }

    /// How many readings it holds.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The bytes of its columns.
    pub fn bytes(&self) -> usize {
        self.ids.len() + self.len() * (4 + 8 + 8)
    }

    /// The id of the reading at `i`.
    #[inline]
    pub fn sensor(&self, i: usize) -> &[u8] {
        &self.ids[self.id_start(i)..self.ends[i] as usize]
    }

    /// Where in `ids` the reading at `i` begins, or the one before it ended.
    #[inline]
    fn id_start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] as usize }
    }

    /// All event times.
    pub fn times(&self) -> &[i64] {
        &self.times
    }

    /// All values.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The reading at `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Reading<'_> {
        Reading { sensor: self.sensor(i), time: self.times[i], value: self.values[i] }
    }

    /// All readings, in order of arrival.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Reading<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The greatest event time.
    pub fn time_max(&self) -> Option<i64> {
        self.times.iter().copied().max()
    }

    /// Forgets the readings, keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.ends.clear();
        self.times.clear();
        self.values.clear();
    }

    /// Takes back what was pushed after the first `len` readings.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.ids.truncate(if len == 0 { 0 } else { self.ends[len - 1] as usize });
        self.ends.truncate(len);
        self.times.truncate(len);
        self.values.truncate(len);
    }

    /// Keeps the readings whose flag is set and gives them the value beside it.
    pub(crate) fn rewrite(&mut self, keep: &[bool], values: &[f64]) {
        let (mut kept, mut id_end) = (0, 0);
        let mut start = 0;
        for i in 0..self.len() {
            let end = self.ends[i] as usize;
            if keep[i] {
                self.ids.copy_within(start..end, id_end);
                id_end += end - start;
                self.ends[kept] = id_end as u32;
                self.times[kept] = self.times[i];
                self.values[kept] = values[i];
                kept += 1;
            }
            start = end;
        }
        self.ids.truncate(id_end);
        self.ends.truncate(kept);
        self.times.truncate(kept);
        self.values.truncate(kept);
    }
}

/// How a batch travelled before: columns as byte strings, numbers little-endian. Still read.
#[derive(Deserialize)]
struct Columns {
    #[serde(with = "serde_bytes")]
    ids: Vec<u8>,
    #[serde(with = "serde_bytes")]
    ends: Vec<u8>,
    #[serde(with = "serde_bytes")]
    times: Vec<u8>,
    #[serde(with = "serde_bytes")]
    values: Vec<u8>,
}

/// Why bytes from a peer are no batch.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// The columns do not have the same length, or ids do not fill their column.
    #[error("the columns of the batch do not fit each other")]
    Columns,
    /// A reading breaks an invariant.
    #[error("a reading of the batch: {0}")]
    Reading(#[from] ReadingError),
}

impl TryFrom<Columns> for Batch {
    type Error = BatchError;

    fn try_from(packed: Columns) -> Result<Self, BatchError> {
        let len = packed.times.len() / 8;
        let whole = packed.times.len() == len * 8
            && packed.values.len() == len * 8
            && packed.ends.len() == len * 4;
        if !whole {
            return Err(BatchError::Columns);
        }
        if len > Self::LEN_MAX {
            return Err(ReadingError::Full.into());
        }
        let batch = Self {
            ids: packed.ids,
            ends: packed.ends.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            times: packed.times.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            values: packed.values.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        };
        let ascending = batch.ends.is_sorted();
        if !ascending || batch.ends.last().copied().unwrap_or(0) as usize != batch.ids.len() {
            return Err(BatchError::Columns);
        }
        batch.iter().try_for_each(|reading| reading.check())?;
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(sensor: &[u8], time: i64, value: f64) -> Reading<'_> {
        Reading { sensor, time, value }
    }

    fn batch() -> Batch {
        let mut batch = Batch::new();
        for (i, id) in ["a", "bb", "a", "ccc"].iter().enumerate() {
            batch.push(reading(id.as_bytes(), i as i64, i as f64)).unwrap();
        }
        batch
    }

    #[test]
    fn a_reading_that_breaks_a_rule_is_refused() {
        let mut batch = Batch::new();
        let long = [b'x'; SENSOR_LEN_MAX + 1];
        for (bad, reason) in [
            (reading(b"", 0, 0.0), ReadingError::SensorEmpty),
            (reading(&long, 0, 0.0), ReadingError::SensorTooLong),
            (reading(b"a\tb", 0, 0.0), ReadingError::SensorControl),
            (reading(b"a", TIME_MAX + 1, 0.0), ReadingError::Time),
            (reading(b"a", i64::MIN, 0.0), ReadingError::Time),
            (reading(b"a", 0, f64::NAN), ReadingError::Value),
            (reading(b"a", 0, f64::INFINITY), ReadingError::Value),
        ] {
            assert_eq!(batch.push(bad), Err(reason));
        }
        assert!(batch.is_empty());
    }

    #[test]
    fn a_batch_survives_the_wire_and_a_damaged_one_is_refused() {
        let batch = Part::from(batch());
        let bytes = rmp_serde::to_vec(&batch).unwrap();
        assert_eq!(rmp_serde::from_slice::<Part>(&bytes).unwrap(), batch);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            // Any outcome but a panic or a broken invariant.
            if let Ok(decoded) = rmp_serde::from_slice::<Part>(&damaged) {
                decoded.iter().try_for_each(|r| r.check()).unwrap();
            }
        }
    }

    #[test]
    fn a_batch_in_columns_is_still_read() {
        let column = |bytes: &[u8]| serde_bytes::ByteBuf::from(bytes);
        let ends: Vec<u8> = [1u32, 3].iter().flat_map(|end| end.to_le_bytes()).collect();
        let times: Vec<u8> = [7i64, 9].iter().flat_map(|time| time.to_le_bytes()).collect();
        let values: Vec<u8> = [1.5f64, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let columns = [column(b"abb"), column(&ends), column(&times), column(&values)];
        let bytes = rmp_serde::to_vec(&columns).unwrap();
        let read: Part = rmp_serde::from_slice(&bytes).unwrap();
        let wanted = [reading(b"a", 7, 1.5), reading(b"bb", 9, 2.0)];
        assert_eq!(read.iter().collect::<Vec<_>>(), wanted);
        let short = [column(b"abb"), column(&ends), column(&times), column(&values[8..])];
        assert!(rmp_serde::from_slice::<Part>(&rmp_serde::to_vec(&short).unwrap()).is_err());
    }

    #[test]
    fn a_rewrite_keeps_the_flagged_and_changes_their_values() {
        let mut batch = batch();
        batch.rewrite(&[false, true, true, true], &[9.0, 8.0, 7.0, 6.0]);
        let left: Vec<_> = batch.iter().map(|r| (r.sensor.to_vec(), r.time, r.value)).collect();
        assert_eq!(
            left,
            [(b"bb".to_vec(), 1, 8.0), (b"a".to_vec(), 2, 7.0), (b"ccc".to_vec(), 3, 6.0)]
        );
    }
}
