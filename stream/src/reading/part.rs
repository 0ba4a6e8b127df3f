//! A part of a batch: the readings of one partition.
//!
//! A batch falls into hundreds of parts of a few readings each. All parts of a batch share its
//! columns, put in order by partition, so that splitting, sending and applying cost a part no memory
//! of its own; and those that travel together are read into one batch again.

use std::{fmt, ops::Range, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{Batch, BatchError, Columns, Reading, ReadingError, packed};

/// Readings of one partition, in order of arrival: a range of a batch that others share.
#[derive(Clone, Default)]
pub struct Part {
    batch: Arc<Batch>,
    from: u32,
    to: u32,
}

impl Part {
    fn new(batch: &Arc<Batch>, range: Range<usize>) -> Self {
        // A batch has at most LEN_MAX readings.
        Self { batch: Arc::clone(batch), from: range.start as u32, to: range.end as u32 }
    }

    fn range(&self) -> Range<usize> {
        self.from as usize..self.to as usize
    }

    /// How many readings it holds.
    pub fn len(&self) -> usize {
        (self.to - self.from) as usize
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.to == self.from
    }

    /// The bytes of its columns.
    pub fn bytes(&self) -> usize {
        let ids = self.batch.id_start(self.to as usize) - self.batch.id_start(self.from as usize);
        ids + self.len() * (4 + 8 + 8)
    }

    /// The id of the reading at `i`.
    #[inline]
    pub fn sensor(&self, i: usize) -> &[u8] {
        self.batch.sensor(self.from as usize + i)
    }

    /// All event times.
    pub fn times(&self) -> &[i64] {
        &self.batch.times[self.range()]
    }

    /// All values.
    pub fn values(&self) -> &[f64] {
        &self.batch.values[self.range()]
    }

    /// The reading at `i`.
    #[inline]
    pub fn get(&self, i: usize) -> Reading<'_> {
        self.batch.get(self.from as usize + i)
    }

    /// All readings, in order of arrival.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Reading<'_>> {
        self.range().map(|i| self.batch.get(i))
    }

    /// The greatest event time.
    pub fn time_max(&self) -> Option<i64> {
        self.times().iter().copied().max()
    }
}

impl Part {
    /// The batch with its memory, if this is all of it and nobody else has a part.
    pub fn into_batch(self) -> Option<Batch> {
        let is_whole = self.len() == self.batch.len();
        Arc::into_inner(self.batch).filter(|_| is_whole)
    }
}

impl From<Batch> for Part {
    fn from(batch: Batch) -> Self {
        let len = batch.len();
        Self::new(&Arc::new(batch), 0..len)
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Batch {
    /// Splits by `partition_of(sensor)`, ascending; the order of arrival stays within each part.
    ///
    /// By counting: the table of counts has an entry for each partition up to the highest.
    pub fn split(&self, mut partition_of: impl FnMut(&[u8]) -> u32) -> Vec<(u32, Part)> {
        let partitions: Vec<u32> = (0..self.len()).map(|i| partition_of(self.sensor(i))).collect();
        let Some(highest) = partitions.iter().copied().max() else { return Vec::new() };
        // Readings and bytes of ids of each partition; then where the next of them goes.
        let mut places = vec![(0_u32, 0_u32); highest as usize + 1];
        for (i, partition) in partitions.iter().enumerate() {
            let size = &mut places[*partition as usize];
            size.0 += 1;
            size.1 += self.sensor(i).len() as u32;
        }
        let mut ranges = Vec::with_capacity(places.len().min(self.len()));
        let (mut reading, mut byte) = (0, 0);
        for (partition, place) in (0..).zip(&mut places) {
            let (readings, bytes) = std::mem::replace(place, (reading, byte));
            if readings > 0 {
                ranges.push((partition, reading as usize..(reading + readings) as usize));
            }
            reading += readings;
            byte += bytes;
        }
        let mut ordered = Self {
            ids: vec![0; self.ids.len()],
            ends: vec![0; self.len()],
            times: vec![0; self.len()],
            values: vec![0.0; self.len()],
        };
        for (i, partition) in partitions.iter().enumerate() {
            let (reading, byte) = &mut places[*partition as usize];
            let (at, start) = (*reading as usize, *byte as usize);
            let id = self.sensor(i);
            ordered.ids[start..start + id.len()].copy_from_slice(id);
            *reading += 1;
            *byte += id.len() as u32;
            ordered.ends[at] = *byte;
            ordered.times[at] = self.times[i];
            ordered.values[at] = self.values[i];
        }
        let ordered = Arc::new(ordered);
        let parts = ranges.into_iter();
        parts.map(|(partition, range)| (partition, Part::new(&ordered, range))).collect()
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        packed::encode(self, &mut bytes);
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Batch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a batch of readings")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Batch, E> {
                let mut batch = Batch::new();
                packed::decode(bytes, &mut batch).map_err(E::custom)?;
                Ok(batch)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Batch, A::Error> {
                let columns = Columns::deserialize(SeqAccessDeserializer::new(seq))?;
                Batch::try_from(columns).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Either).map(Self::from)
    }
}

/// Parts of one batch as they travel together: partition, length and packed readings of each, behind
/// each other.
pub fn join(parts: &[(u32, Part)]) -> Vec<u8> {
    let readings: usize = parts.iter().map(|(_, part)| part.len()).sum();
    let mut out = Vec::with_capacity(parts.len() * 24 + readings * 10);
    let mut packed = Vec::new();
    for (partition, part) in parts {
        packed.clear();
        packed::encode(part, &mut packed);
        packed::put(&mut out, u64::from(*partition));
        packed::put_bytes(&mut out, &packed);
    }
    out
}

/// Reads what [`join`] wrote. Refuses what breaks an invariant of a batch; together they may have as
/// many readings as one batch.
pub fn disjoin(bytes: &[u8]) -> Result<Vec<(u32, Part)>, BatchError> {
    let mut rest = bytes;
    let (mut batch, mut ranges) = (Batch::new(), Vec::new());
    while !rest.is_empty() {
        let partition = packed::number(&mut rest).and_then(|number| u32::try_from(number).ok());
        let len = packed::number(&mut rest).map_or(0, |len| len as usize);
        let (Some(partition), Some(packed)) = (partition, packed::take(&mut rest, len)) else {
            return Err(BatchError::Columns);
        };
        let from = batch.len();
        packed::decode(packed, &mut batch)?;
        // Parts without readings cost nothing to send, and are none that `split` makes.
        if ranges.len() > Batch::LEN_MAX {
            return Err(ReadingError::Full.into());
        }
        ranges.push((partition, from..batch.len()));
    }
    let batch = Arc::new(batch);
    let parts = ranges.into_iter();
    Ok(parts.map(|(partition, range)| (partition, Part::new(&batch, range))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::new();
        for (i, id) in ["a", "bb", "a", "ccc"].iter().enumerate() {
            let reading = Reading { sensor: id.as_bytes(), time: i as i64, value: i as f64 / 4.0 };
            batch.push(reading).unwrap();
        }
        batch
    }

    fn parts() -> Vec<(u32, Part)> {
        batch().split(|id| id.len() as u32 % 2)
    }

    #[test]
    fn a_split_keeps_the_order_within_each_part() {
        let parts = parts();
        let of = |n: usize| parts[n].1.times().to_vec();
        assert_eq!((parts[0].0, of(0)), (0, vec![1]));
        assert_eq!((parts[1].0, of(1)), (1, vec![0, 2, 3]));
        assert_eq!(parts[0].1.sensor(0), b"bb");
        assert_eq!(parts[1].1.sensor(2), b"ccc");
        assert_eq!(parts[1].1.values(), [0.0, 0.5, 0.75]);
        assert_eq!(parts[0].1.bytes() + parts[1].1.bytes(), batch().bytes());
    }

    #[test]
    fn parts_survive_the_way_together_and_one_by_one() {
        let parts = parts();
        assert_eq!(disjoin(&join(&parts)).unwrap(), parts);
        for (_, part) in &parts {
            let bytes = rmp_serde::to_vec(part).unwrap();
            assert_eq!(rmp_serde::from_slice::<Part>(&bytes).unwrap(), *part);
        }
        assert_eq!(disjoin(&[]).unwrap(), []);
    }

    #[test]
    fn damaged_parts_break_no_invariant() {
        let bytes = join(&parts());
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                for (_, part) in disjoin(&damaged).unwrap_or_default() {
                    part.iter().try_for_each(|reading| reading.check()).unwrap();
                }
            }
        }
    }

    #[test]
    fn together_they_have_no_more_readings_than_a_batch() {
        let mut batch = Batch::new();
        while batch.push(Reading { sensor: b"s", time: 1, value: 1.0 }).is_ok() {}
        let whole = Part::from(batch);
        assert_eq!(disjoin(&join(&[(1, whole.clone())])).unwrap(), [(1, whole.clone())]);
        assert!(disjoin(&join(&[(1, whole.clone()), (2, whole)])).is_err());
        assert!(disjoin(&[7, 2, 1, 0].repeat(Batch::LEN_MAX + 2)).is_err());
    }
}
