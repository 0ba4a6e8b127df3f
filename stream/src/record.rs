//! One replication record: everything that changes the state of a stream's partition.
//!
//! The batch, who sent it, where its source stands and what time it is travel together, so that
//! data, duplicate detection, source offsets and the watermark can never disagree, on any copy.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::reading::Part;

/// The longest id of a producer or source, in bytes.
pub const PRODUCER_LEN_MAX: usize = 128;
/// The most source offsets of one record.
pub const OFFSETS_PER_RECORD_MAX: usize = 64;

/// What a primary replicates and every copy applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The primary's clock when it made the record, in milliseconds since 1970. The operator keeps
    /// the greatest it has seen, so that a clock that is set back does no harm.
    pub now: i64,
    /// Who sent the batch; `None` in a tick.
    #[serde(with = "shared")]
    pub producer: Option<Arc<Producer>>,
    /// Where the sources stand once this record is applied.
    pub offsets: Vec<SourceOffset>,
    /// The readings of this partition, in order of arrival.
    pub batch: Part,
}

/// Who sent a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    /// Its id: what it calls itself, or what the door made up for one connection.
    pub id: String,
    /// Which life of the producer; a lower one than seen before is refused.
    pub epoch: u64,
    /// The number of the batch within the epoch, from any start, rising. `None`: at least once.
    pub sequence: Option<u64>,
    /// The greatest event time this producer has sent to the whole stream, all partitions: so that
    /// windows close in partitions that get few of its readings too.
    pub time_max: Option<i64>,
}

/// Where a source stands: a Kafka partition, a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOffset {
    /// Which source.
    pub source: String,
    /// What to read next.
    pub offset: i64,
}

impl Record {
    /// A record without data: time passes. See [`crate::operator::Operator::next_tick`].
    pub fn tick(now: i64) -> Self {
        Self { now, ..Self::default() }
    }

    /// The bytes it keeps in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.batch.bytes()
    }
}

/// Serde's own way for what is shared is a feature of it that nothing else needs.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Producer;

    pub(super) fn serialize<S: Serializer>(
        producer: &Option<Arc<Producer>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        producer.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<Producer>>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(Arc::new))
    }
}
