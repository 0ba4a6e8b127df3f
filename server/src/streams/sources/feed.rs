//! Messages to batches, and batches into the stream.
//!
//! A batch has the source as its producer and a number: it is tried until it is taken in, and counts
//! once however often that takes. What will never be taken in is counted as rejected, told in the log,
//! and gone past: one message must not stop a source for good.

use std::{sync::Arc, time::Duration};

use kiln_cluster::placement::partition_of;
use kiln_stream::{
    parse::{Intake, Report},
    reading::Batch,
    source::level,
};
use tokio::time;

use super::{super::forward::Owner, SourceState, names_columns};
use crate::{
    node::Node,
    streams::{IngestError, Source, Stream, forward::owner},
};

/// Pauses between tries of a batch.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Readings of one batch, and bytes of them: the readings of one partition must fit an entry of its
/// log, whichever sensors they are of.
const BATCH_LEN_MAX: usize = 20_000;
const BATCH_BYTES_MAX: usize = 512 << 10;

/// The way of one part of a source into its stream.
pub(super) struct Feed {
    pub(super) node: Arc<Node>,
    pub(super) stream: Arc<Stream>,
    index: usize,
    /// As a producer.
    pub(super) name: String,
    pub(super) part: i32,
    intake: Intake,
}

/// This node is not to read the source any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// A batch that is taken in is of which life of the source, and which of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub(super) epoch: u64,
    pub(super) sequence: u64,
}

/// The term in which this node owns the partition that a name falls into.
pub(super) fn term_at_home(node: &Node, stream: &Stream, name: &str) -> Option<u64> {
    match owner(node, stream, home_of(node, name)) {
        Owner::Here(term) => Some(term.0),
        Owner::There(_) | Owner::Nobody => None,
    }
}

/// The partition that a name falls into.
pub(super) fn home_of(node: &Node, name: &str) -> u32 {
    partition_of(name.as_bytes(), node.streams.partitions(node)).0
}

impl Feed {
    pub(super) fn new(
        node: &Arc<Node>,
        stream: &Arc<Stream>,
        index: usize,
        name: String,
        part: i32,
    ) -> Self {
        let intake = Intake::new(stream.plan.layout(None));
        Self { node: Arc::clone(node), stream: Arc::clone(stream), index, name, part, intake }
    }

    /// Which source of the stream it is.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// What is seen of the source.
    pub(super) fn state(&self) -> &SourceState {
        &self.stream.sources[self.index]
    }

    /// Adds a message to a batch. False when the batch had no room for it: nothing was added, and it
    /// comes first into the next one. With a topic and a level of it, each line lacks its sensor.
    pub(super) fn add(
        &mut self,
        payload: &[u8],
        arrival: i64,
        sensor: Option<(&str, u8)>,
        batch: &mut Batch,
    ) -> bool {
        // So many readings it has at most: each is a line.
        let lines = memchr::memchr_iter(b'\n', payload).count() + 1;
        let full = batch.len() + lines > BATCH_LEN_MAX
            || batch.bytes() + payload.len() + lines * LINE_BYTES > BATCH_BYTES_MAX;
        if full && !batch.is_empty() {
            return false;
        }
        if names_columns(&self.stream) {
            self.report();
            self.intake = Intake::new(self.stream.plan.layout(None));
        }
        let before = self.intake.report().rejected;
        let beyond = match sensor {
            None => feed(&mut self.intake, payload, arrival, batch),
            Some((topic, number)) => {
                // A comma would end the sensor's id.
                match level(topic, number).filter(|sensor| !sensor.contains([',', '\n'])) {
                    Some(sensor) => {
                        let mut text = Vec::with_capacity(payload.len() + lines * 32);
                        let filled = |line: &&[u8]| !line.trim_ascii().is_empty();
                        for line in payload.split(|byte| *byte == b'\n').filter(filled) {
                            text.extend_from_slice(sensor.as_bytes());
                            text.extend_from_slice(b", ");
                            text.extend_from_slice(line);
                            text.push(b'\n');
                        }
                        feed(&mut self.intake, &text, arrival, batch)
                    }
                    None => lines as u64,
                }
            }
        };
        self.stream.count(|f| &f.rejected, beyond);
        self.state().count_rejected(beyond + self.intake.report().rejected - before);
        self.state().count_messages(1);
        true
    }

    /// Counts the lines that were wrong, and tells the first of them in the log.
    pub(super) fn report(&mut self) {
        let Report { rejected, first_bad, .. } = self.intake.take_report();
        self.stream.count(|f| &f.rejected, rejected);
        if let Some(bad) = first_bad.first() {
            tracing::warn!(
                stream = %self.stream.name, source = %self.name, lines = rejected,
                column = bad.column, reason = %bad.reason, "a source sent lines that are no readings"
            );
        }
    }

    /// Has a batch taken in; returns when it is, or never will be.
    pub(super) async fn deliver(&mut self, number: Number, batch: &Batch) -> Result<(), Gone> {
        self.report();
        if batch.is_empty() {
            return Ok(());
        }
        let Number { epoch, sequence } = number;
        let source = Source { producer: &self.name, epoch, sequence: Some(sequence) };
        let (node, stream) = (&self.node, &self.stream);
        let mut pause = PAUSE_FIRST;
        let mut waited = false;
        loop {
            let receipt = node.streams.ingest(node, stream, source, batch.clone()).await;
            self.state().count_readings(receipt.accepted);
            match receipt.refused {
                None => {
                    if receipt.stale > 0 {
                        let readings = receipt.stale;
                        self.give_up(readings, "another source or producer has the same name");
                    }
                    if waited {
                        self.state().is_running(self.part);
                    }
                    return Ok(());
                }
                Some(IngestError::Busy(reason)) => {
                    waited = true;
                    self.state().is_waiting(self.part, reason);
                    if term_at_home(node, stream, &self.name).is_none() {
                        return Err(Gone);
                    }
                    time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Some(IngestError::Refused(reason)) => {
                    self.give_up(batch.len() as u64, &reason);
                    return Ok(());
                }
                Some(IngestError::Stopping) => return Err(Gone),
            }
        }
    }

    fn give_up(&self, readings: u64, reason: &str) {
        tracing::error!(
            stream = %self.stream.name, source = %self.name, readings, %reason,
            "readings of a source cannot be taken in, and are left out"
        );
        self.state().count_rejected(readings);
    }
}

/// Bytes that a reading takes in a batch beside its sensor's id.
const LINE_BYTES: usize = 20;

/// Reads a whole message; returns how many lines had no room even in a batch of their own.
fn feed(intake: &mut Intake, text: &[u8], arrival: i64, batch: &mut Batch) -> u64 {
    let taken = intake.feed(text, arrival, batch);
    if taken < text.len() {
        return memchr::memchr_iter(b'\n', &text[taken..]).count() as u64 + 1;
    }
    u64::from(!intake.finish(arrival, batch))
}

#[cfg(test)]
mod tests {
    use kiln_stream::parse::{Format, Layout, Unit};

    use super::*;

    #[test]
    fn a_message_with_more_lines_than_a_batch_takes_gives_those_that_fit_and_counts_the_others() {
        let layout = Layout {
            format: Format::Line,
            unit: Some(Unit::Ms),
            sensor: None,
            value: None,
            time: "time".to_owned(),
            time_required: false,
            columns: Vec::new(),
            ahead_max: None,
        };
        let mut intake = Intake::new(layout);
        let lines = 70_000;
        let text = "s, 1\n".repeat(lines);
        let mut batch = Batch::new();
        let beyond = feed(&mut intake, text.as_bytes(), 7, &mut batch);
        assert!(batch.len() > 60_000);
        // The part behind the last line end is counted as a line.
        assert_eq!(batch.len() as u64 + beyond, lines as u64 + 1);
        // What comes next is not taken for its rest.
        let mut next = Batch::new();
        assert_eq!(feed(&mut intake, b"t, 2", 7, &mut next), 0);
        assert_eq!(next.sensor(0), b"t");
    }
}
