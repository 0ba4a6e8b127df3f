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

use super::{Batch, BatchError, Part, Reading, ReadingError};

/// The first byte.
const LAYOUT: u8 = 1;
/// More sensors than this are written reading by reading.
const IDS_MAX: usize = 16;
/// Decimals that are tried, and what stands for "as 8 bytes".
const DECIMALS: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];
const AS_BYTES: u8 = u8::MAX;
/// Whole numbers up to here are exact as doubles.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Appends the readings of a part.
pub(super) fn encode(part: &Part, out: &mut Vec<u8>) {
    let len = part.len();
    out.reserve(16 + len * 10);
    out.push(LAYOUT);
    put(out, len as u64);
    put_ids(part, out);
    let mut before = 0i64;
    for time in part.times() {
        // Both are within the years 1 to 9999.
        put(out, fold(time - before));
        before = *time;
    }
    // As decimals, until one does not come back the same: then with more, or as they are.
    let at = out.len();
    for (decimals, by) in (0..).zip(DECIMALS) {
        out.push(decimals);
        let all = part.values().iter().all(|value| match scaled(*value, by) {
            Some(whole) => {
                put(out, fold(whole));
                true
            }
            None => false,
        });
        if all {
            return;
        }
        out.truncate(at);
    }
    out.push(AS_BYTES);
    part.values().iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// The ids of a part: each once, if there are few, and then where in them that of each reading is.
fn put_ids(part: &Part, out: &mut Vec<u8>) {
    let (len, at) = (part.len(), out.len());
    // Where each known id is first.
    let mut firsts = [0; IDS_MAX];
    let mut ids = 0;
    for i in 0..len {
        let id = part.sensor(i);
        let known = firsts[..ids].iter().position(|first| part.sensor(*first) == id);
        let place = known.unwrap_or(ids);
        if place == IDS_MAX {
            ids = len;
            break;
        }
        if known.is_none() {
            firsts[ids] = i;
            ids += 1;
        }
        out.push(place as u8);
    }
    if ids == len {
        out.truncate(at);
        put(out, len as u64);
        (0..len).for_each(|i| put_bytes(out, part.sensor(i)));
        return;
    }
    // They were found before what stands before them was known.
    put(out, ids as u64);
    firsts[..ids].iter().for_each(|first| put_bytes(out, part.sensor(*first)));
    out[at..].rotate_left(len);
}

/// Appends the readings to a batch. Refuses what breaks an invariant of it, and takes no more memory
/// than it may have; what was appended then is not to be used.
pub(super) fn decode(bytes: &[u8], batch: &mut Batch) -> Result<(), BatchError> {
    read(bytes, batch)?.ok_or(BatchError::Columns)
}

/// `Ok(None)` where bytes are missing or left over.
fn read(bytes: &[u8], batch: &mut Batch) -> Result<Option<()>, BatchError> {
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
    // With an id for each reading they are read beside the readings, else they are few.
    let mut each = rest;
    let mut few: [&[u8]; IDS_MAX] = [&[]; IDS_MAX];
    for i in 0..count {
        let id = some!(take_bytes(&mut rest));
        if let Some(place) = few.get_mut(i) {
            *place = id;
        }
    }
    let places = if count < len { some!(take(&mut rest, len)) } else { &[] };
    let mut times = rest;
    for _ in 0..len {
        some!(number(&mut rest));
    }
    let decimals = some!(take(&mut rest, 1))[0];
    let by = DECIMALS.get(usize::from(decimals));
    if by.is_none() && decimals != AS_BYTES {
        return Ok(None);
    }
    let mut time = 0i64;
    for i in 0..len {
        time = time.wrapping_add(unfold(some!(number(&mut times))));
        let value = match by {
            Some(by) => unfold(some!(number(&mut rest))) as f64 / by,
            None => {
                let bytes = some!(take(&mut rest, 8).and_then(|bytes| bytes.first_chunk()));
                f64::from_le_bytes(*bytes)
            }
        };
        let sensor = match places.get(i) {
            Some(place) => some!(few[..count].get(usize::from(*place))),
            None => some!(take_bytes(&mut each)),
        };
        batch.push(Reading { sensor, time, value })?;
    }
    Ok(rest.is_empty().then_some(()))
}

/// The whole number that comes back as the value when it is divided.
fn scaled(value: f64, by: f64) -> Option<i64> {
    // The cast cuts off; what it makes of numbers that are no whole ones is not the value again.
    let near = value * by;
    let whole = (near + 0.5f64.copysign(near)) as i64;
    (near.abs() <= WHOLE_MAX && (whole as f64 / by).to_bits() == value.to_bits()).then_some(whole)
}

fn fold(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unfold(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

/// What [`put_bytes`] wrote.
fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(rest)? as usize;
    take(rest, len)
}

pub(super) fn number(rest: &mut &[u8]) -> Option<u64> {
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
        let mut bytes = Vec::new();
        encode(&Part::from(batch.clone()), &mut bytes);
        let mut back = Batch::new();
        decode(&bytes, &mut back).unwrap();
        assert_eq!(back, *batch);
        let bits = |batch: &Batch| batch.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(batch));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], &mut Batch::new()).is_err(), "cut at {len}");
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
        let mut whole = Vec::new();
        encode(&batch(&[("a", 1, 1.5), ("b", 2, 2.5), ("a", 3, 1e300)]).into(), &mut whole);
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                let mut decoded = Batch::new();
                if decode(&damaged, &mut decoded).is_ok() {
                    decoded.iter().try_for_each(|reading| reading.check()).unwrap();
                }
            }
        }
        // Says that it has more than it can.
        let refused = |bytes: &[u8]| decode(bytes, &mut Batch::new()).is_err();
        assert!(refused(&[LAYOUT, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 1, b'a']));
        assert!(refused(&[LAYOUT, 0x80, 0x80, 4, 1, 1, b'a']));
    }
}
