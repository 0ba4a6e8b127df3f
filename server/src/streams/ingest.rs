//! A batch on its way to the shards, and what came of it.
//!
//! A batch is filtered, stamped with how far its producer is, split by partition and handed to the
//! shards that own the partitions. What all batches on their way hold is bounded; whoever finds no
//! room waits a moment and is then told to come again. A batch whose producer has an id and a
//! number for it can be sent again as it is: each partition counts it once.

use std::{sync::Arc, time::Duration};

use kiln_cluster::placement::partition_of;
use kiln_stream::{
    effects::{Effects, Outcome},
    parse::{Intake, Report, Unit},
    reading::{Batch, Part},
    record::{PRODUCER_LEN_MAX, Producer, Record},
};
use tokio::{sync::oneshot, time};

use super::{
    QUEUE_BYTES_MAX, QUEUE_UNIT, Stream, Streams,
    shard::{Apply, Job},
};
use crate::node::Node;

/// How long a batch waits for room on the way to the shards.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(2);
/// When whoever was refused for want of room may come again.
pub(crate) const RETRY_AFTER_MS: u64 = 1_000;

/// Who sends a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// What it calls itself, or what the door made up for it.
    pub(crate) producer: &'a str,
    /// Which life of it.
    pub(crate) epoch: u64,
    /// The number of the batch. `None`: it may count twice if it is sent twice.
    pub(crate) sequence: Option<u64>,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(crate) struct Receipt {
    /// Readings taken in.
    pub(crate) accepted: u64,
    /// Readings that were taken in before.
    pub(crate) duplicate: u64,
    /// Readings taken in that were too late for at least one window.
    pub(crate) late: u64,
    /// Readings that the filter left out.
    pub(crate) filtered: u64,
    /// Readings of a former life of the producer, or so old that nobody knows whether they were
    /// taken in. Not taken in now.
    pub(crate) stale: u64,
    /// Why not all of it was taken in.
    pub(crate) refused: Option<IngestError>,
    /// What was not.
    pub(crate) left: Vec<(u32, Part)>,
}

/// Why a batch, or a part of it, was not taken in.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum IngestError {
    /// Come again later.
    #[error("no room now: {0}")]
    Busy(String),
    /// It will never be taken in as it is.
    #[error("{0}")]
    Refused(String),
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

impl Receipt {
    /// Adds what came of another part.
    pub(crate) fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        self.late += other.late;
        self.filtered += other.filtered;
        self.stale += other.stale;
        self.left.extend(other.left);
        self.refused = self.refused.take().or(other.refused);
    }

    /// Readings of a partition were not taken in.
    pub(super) fn leave(&mut self, partition: u32, batch: Part, why: IngestError) {
        self.left.push((partition, batch));
        self.refused.get_or_insert(why);
    }

    /// Counts what came of a record.
    pub(super) fn add_effects(&mut self, effects: &Effects, record: &Record) {
        self.count(effects.outcome, record.batch.len() as u64);
        self.accepted += effects.accepted;
        self.late += effects.late;
    }

    /// Counts readings that were not to be applied.
    pub(super) fn count(&mut self, outcome: Outcome, readings: u64) {
        match outcome {
            Outcome::Applied => {}
            Outcome::Duplicate { readings } => self.duplicate += readings,
            Outcome::TooOld { .. } | Outcome::StaleEpoch { .. } => self.stale += readings,
        }
    }
}

/// An id that a producer may have.
pub(crate) fn check_producer(id: &str) -> Result<(), IngestError> {
    if id.is_empty() || id.len() > PRODUCER_LEN_MAX || id.chars().any(char::is_control) {
        let text = format!("a producer's id is 1 to {PRODUCER_LEN_MAX} bytes without controls");
        return Err(IngestError::Refused(text));
    }
    Ok(())
}

impl Streams {
    /// Takes a batch in, or says what of it was not.
    pub(crate) async fn ingest(
        &self,
        node: &Node,
        stream: &Arc<Stream>,
        source: Source<'_>,
        mut batch: Batch,
    ) -> Receipt {
        let filtered = stream.plan.transform(&mut batch);
        stream.count(|f| &f.filtered, filtered);
        let mut receipt = Receipt { filtered, ..Receipt::default() };
        if batch.is_empty() {
            return receipt;
        }
        let partitions = self.partitions(node);
        let time_max = batch.time_max();
        let parts = batch.split(|sensor| partition_of(sensor, partitions).0);
        drop(batch);
        let producer = Producer {
            id: source.producer.to_owned(),
            epoch: source.epoch,
            sequence: source.sequence,
            time_max: time_max.map(|time| stream.time_with(source.producer, time)),
        };
        receipt.add(self.apply_anywhere(node, stream, Arc::new(producer), parts).await);
        if let Some(time) = time_max.filter(|_| receipt.refused.is_none()) {
            stream.heard(source.producer, source.epoch, time);
        }
        receipt
    }

    /// Tries what was left of a batch without a number again: its other parts were taken in.
    pub(super) async fn again(
        &self,
        node: &Node,
        stream: &Arc<Stream>,
        source: Source<'_>,
        left: Vec<(u32, Part)>,
    ) -> Receipt {
        let time_max = left.iter().filter_map(|(_, part)| part.time_max()).max();
        let producer = Producer {
            id: source.producer.to_owned(),
            epoch: source.epoch,
            sequence: None,
            time_max,
        };
        self.apply_anywhere(node, stream, Arc::new(producer), left).await
    }

    /// Has parts of a batch that are this node's applied by the shards that own them.
    pub(super) async fn apply_here(
        &self,
        stream: &Arc<Stream>,
        producer: Arc<Producer>,
        parts: Vec<(u32, Part)>,
    ) -> Receipt {
        let count = self.shard_count();
        let mut lots: Vec<Vec<(u32, Part)>> = (0..count).map(|_| Vec::new()).collect();
        let mut bytes = 0;
        for (partition, part) in parts {
            bytes += part.bytes() + size_of::<Part>();
            lots[partition as usize % count].push((partition, part));
        }
        let units = bytes.div_ceil(QUEUE_UNIT).clamp(1, QUEUE_BYTES_MAX / QUEUE_UNIT) as u32;
        let admitted = Arc::clone(&self.queue).acquire_many_owned(units);
        let Ok(Ok(room)) = time::timeout(ROOM_WAIT_MAX, admitted).await else {
            let text = "too many readings are on their way already".to_owned();
            let left = lots.into_iter().flatten().collect();
            return refuse_all(stream, left, IngestError::Busy(text));
        };
        let room = Arc::new(room);
        let mut answers = Vec::with_capacity(count);
        let mut receipt = Receipt::default();
        for (shard, parts) in lots.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let (reply, answer) = oneshot::channel();
            let job = Job::Apply(Apply {
                stream: Arc::clone(stream),
                producer: Arc::clone(&producer),
                parts,
                offsets: Vec::new(),
                reply,
                _room: Arc::clone(&room),
            });
            match self.shards[shard].send_timeout(job, ROOM_WAIT_MAX).await {
                Ok(()) => answers.push(answer),
                Err(error) => {
                    let stopping =
                        matches!(error, tokio::sync::mpsc::error::SendTimeoutError::Closed(_));
                    let Job::Apply(apply) = error.into_inner() else { continue };
                    let refused = if stopping {
                        IngestError::Stopping
                    } else {
                        IngestError::Busy("too many batches wait already".to_owned())
                    };
                    receipt.add(refuse_all(stream, apply.parts, refused));
                }
            }
        }
        for answer in answers {
            receipt.add(answer.await.unwrap_or_else(|_| Receipt {
                refused: Some(IngestError::Stopping),
                ..Receipt::default()
            }));
        }
        receipt
    }
}

/// None of it was taken in.
pub(super) fn refuse_all(stream: &Stream, left: Vec<(u32, Part)>, refused: IngestError) -> Receipt {
    let readings = left.iter().map(|(_, part)| part.len() as u64).sum();
    stream.count(|f| &f.refused, readings);
    Receipt { refused: Some(refused), left, ..Receipt::default() }
}

/// Takes the readings of a text in, a batch after the other. With a sequence it must be one batch:
/// there is one number for it.
pub(crate) async fn read_text(
    node: &Node,
    stream: &Arc<Stream>,
    source: Source<'_>,
    text: &[u8],
    unit: Option<Unit>,
) -> (Receipt, Report) {
    let arrival = node.clock.now_ms() as i64;
    let mut intake = Intake::new(stream.plan.layout(unit));
    let mut receipt = Receipt::default();
    let mut rest = text;
    let mut is_first = true;
    loop {
        let mut batch = Batch::new();
        let taken = intake.feed(rest, arrival, &mut batch);
        rest = &rest[taken..];
        let ended = rest.is_empty() && intake.finish(arrival, &mut batch);
        if source.sequence.is_some() && (!is_first || !ended) {
            let text = format!(
                "a batch with a sequence has at most {} readings",
                Batch::LEN_MAX - kiln_stream::parse::READINGS_PER_LINE_MAX
            );
            receipt.refused = Some(IngestError::Refused(text));
            break;
        }
        is_first = false;
        if !batch.is_empty() {
            receipt.add(node.streams.ingest(node, stream, source, batch).await);
        }
        if ended || receipt.refused.is_some() {
            break;
        }
    }
    let report = intake.take_report();
    stream.count(|f| &f.rejected, report.rejected);
    (receipt, report)
}
