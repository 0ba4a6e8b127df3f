//! How a batch travels and is logged: as few bytes as a pass over it can make them.
//!
//! What a log entry costs grows with its bytes: it is copied, sent and kept on every copy. A batch of
//! one partition has few sensors, times that are close to each other and values with few decimals:
//!
//! ```text
//!   layout | readings | ids | each id: length, bytes | place of each reading's id, if there are fewer ids
//!   than readings | each time less the one before | decimals | each value times 10^decimals, or 8 bytes
//! ```
//!
//! Numbers are variable-length, signed ones folded. Values stay as they are to the last bit: they are
//! only written as decimals when each of them comes back the same.

use super::{Batch, BatchError, Reading, ReadingError};

/// The first byte.
const LAYOUT: u8 = 1;
/// More sensors than this are written reading by reading.
const IDS_MAX: usize = 16;
/// Decimals that are tried, and what stands for "as 8 bytes".
const DECIMALS: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];
const AS_BYTES: u8 = u8::MAX;
/// Whole numbers up to here are exact as doubles.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

pub(super) fn encode(batch: &Batch) -> Vec<u8> {
    let len = batch.len();
    let mut out = Vec::with_capacity(16 + len * 10);
    out.push(LAYOUT);
    put(&mut out, len as u64);
    let mut ids: Vec<&[u8]> = Vec::with_capacity(IDS_MAX);
    let mut places = Vec::with_capacity(len);
    for i in 0..len {
        let id = batch.sensor(i);
        let place = ids.iter().position(|known| *known == id);
        if place.is_none() {
            if ids.len() == IDS_MAX {
                break;
            }
            ids.push(id);
        }
        places.push(place.unwrap_or(ids.len() - 1) as u8);
    }
    if places.len() == len && ids.len() < len {
        put(&mut out, ids.len() as u64);
        ids.iter().for_each(|id| put_bytes(&mut out, id));
        out.extend_from_slice(&places);
    } else {
        put(&mut out, len as u64);
        (0..len).for_each(|i| put_bytes(&mut out, batch.sensor(i)));
    }
    let mut before = 0i64;
    for time in &batch.times {
        // Both are within the years 1 to 9999.
        put(&mut out, fold(time - before));
        before = *time;
    }
    let decimals =
        DECIMALS.iter().position(|by| batch.values.iter().all(|v| scaled(*v, *by).is_some()));
    match decimals {
        Some(decimals) => {
            out.push(decimals as u8);
            let by = DECIMALS[decimals];
            batch.values.iter().filter_map(|v| scaled(*v, by)).for_each(|v| put(&mut out, fold(v)));
        }
        None => {
            out.push(AS_BYTES);
            batch.values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        }
    }
    out
}

/// Refuses what breaks an invariant of a batch, and takes no more memory than a batch may have.
pub(super) fn decode(bytes: &[u8]) -> Result<Batch, BatchError> {
    read(bytes)?.ok_or(BatchError::Columns)
}

/// `Ok(None)` where bytes are missing or left over.
fn read(bytes: &[u8]) -> Result<Option<Batch>, BatchError> {
    let mut rest = bytes;
    macro_rules! some {
        ($found:expr) => {
            match $found {
                Some(found) => found,
                None => return Ok(None),
            }
        };
    }
    if some!(take(&mut rest, 1)) != [LAYOUT] {
        return Ok(None);
    }
    let len = some!(number(&mut rest)) as usize;
    if len > Batch::LEN_MAX {
        return Err(ReadingError::Full.into());
    }
    let count = some!(number(&mut rest)) as usize;
    // Every reading and every id takes a byte at least.
    if len > rest.len()
        || count > len
        || (count == 0) != (len == 0)
        || (count < len && count > IDS_MAX)
    {
        return Ok(None);
    }
    let mut ids: Vec<&[u8]> = Vec::with_capacity(count);
    for _ in 0..count {
        let id_len = some!(number(&mut rest)) as usize;
        ids.push(some!(take(&mut rest, id_len)));
    }
    let places = if count < len { some!(take(&mut rest, len)) } else { &[] };
    let mut times = Vec::with_capacity(len);
    let mut time = 0i64;
    for _ in 0..len {
        time = time.wrapping_add(unfold(some!(number(&mut rest))));
        times.push(time);
    }
    let decimals = some!(take(&mut rest, 1))[0];
    let mut batch = Batch::new();
    for (i, time) in times.into_iter().enumerate() {
        let value = if decimals == AS_BYTES {
            let bytes = some!(take(&mut rest, 8).and_then(|bytes| bytes.first_chunk()));
            f64::from_le_bytes(*bytes)
        } else {
            let by = some!(DECIMALS.get(usize::from(decimals)));
            unfold(some!(number(&mut rest))) as f64 / by
        };
        let place = places.get(i).map_or(i, |place| usize::from(*place));
        let sensor = some!(ids.get(place));
        batch.push(Reading { sensor, time, value })?;
    }
    Ok(rest.is_empty().then_some(batch))
}

/// The whole number that comes back as the value when it is divided.
fn scaled(value: f64, by: f64) -> Option<i64> {
    let whole = (value * by).round();
    (whole.abs() <= WHOLE_MAX && ((whole as i64) as f64 / by).to_bits() == value.to_bits())
        .then_some(whole as i64)
}

fn fold(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unfold(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{SENSOR_LEN_MAX, TIME_MAX, TIME_MIN};

    fn batch(readings: &[(&str, i64, f64)]) -> Batch {
        let mut batch = Batch::new();
        for (sensor, time, value) in readings {
            batch.push(Reading { sensor: sensor.as_bytes(), time: *time, value: *value }).unwrap();
        }
        batch
    }

    #[track_caller]
    fn comes_back(batch: &Batch) -> usize {
        let bytes = encode(batch);
        let back = decode(&bytes).unwrap();
        assert_eq!(back, *batch);
        let bits = |batch: &Batch| batch.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(batch));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "cut at {len}");
        }
        bytes.len()
    }

    #[test]
    fn every_batch_comes_back_to_the_last_bit() {
        comes_back(&Batch::new());
        comes_back(&batch(&[("a", 0, 0.0)]));
        comes_back(&batch(&[("a", 5, -0.0), ("a", 5, 0.1 + 0.2), ("b", TIME_MIN, f64::MAX)]));
        comes_back(&batch(&[("a", TIME_MAX, 1e-300), ("bb", TIME_MIN, -12.125), ("a", 7, 3.0)]));
        comes_back(&batch(&[
            ("a", 1, 9_007_199_254_740_993.0),
            ("a", 1, 9.25e15),
            ("a", 0, -0.07),
        ]));
        let long = "x".repeat(SENSOR_LEN_MAX);
        comes_back(&batch(&[(&long, 1, 1.0), (&long, 2, 2.0), ("y", 3, 3.0)]));
        for sensors in [1, 15, 16, 17, 40] {
            let ids: Vec<String> = (0..sensors).map(|i| format!("sensor{i}")).collect();
            let of =
                |i: usize| (&*ids[i % sensors], 1_700_000_000_000 + i as i64, i as f64 / 100.0);
            comes_back(&batch(&(0..60).map(of).collect::<Vec<_>>()));
        }
    }

    #[test]
    fn readings_of_few_sensors_with_few_decimals_take_a_few_bytes() {
        let of =
            |i: i64| ("sensor123", 1_700_000_000_000 + i * 20, (i * 37 % 10_000) as f64 / 100.0);
        let bytes = comes_back(&batch(&(0..100).map(of).collect::<Vec<_>>()));
        assert!(bytes < 600, "{bytes}");
    }

    #[test]
    fn damaged_bytes_break_no_invariant() {
        let whole = encode(&batch(&[("a", 1, 1.5), ("b", 2, 2.5), ("a", 3, 1e300)]));
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                if let Ok(decoded) = decode(&damaged) {
                    decoded.iter().try_for_each(|reading| reading.check()).unwrap();
                }
            }
        }
        // Says that it has more than it can.
        assert!(decode(&[LAYOUT, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 1, b'a']).is_err());
        assert!(decode(&[LAYOUT, 0x80, 0x80, 4, 1, 1, b'a']).is_err());
    }
}
