//! A producer: readings in batches, each of which counts once however often it is sent.
//!
//! ```text
//!   send --> bounded queue --> one task: a batch by size or age --> any node, until it is answered
//! ```
//!
//! Invariants:
//! - one batch is under way at a time, so readings arrive in the order in which they were sent;
//! - a batch that is sent again has the same number and the same readings, so nodes count it once;
//! - after a failure that trying again does not cure nothing more is sent, and everyone is told.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kiln_protocol::native::{
    self, ErrorCode, FRAME_OVERHEAD_MAX,
    admin::capability,
    encode,
    streams::{BadReading, Ingested},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant as TokioInstant, sleep, timeout_at},
};

use super::{Stream, is_no_stream};
use crate::{Backoff, Error, Reason, call::structure_of, connection::Deadline};

/// One value of one sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    sensor: Box<[u8]>,
    value: f64,
    time_ms: Option<i64>,
}

impl Reading {
    /// What a sensor measured; it counts as measured when it arrives.
    pub fn new(sensor: impl AsRef<[u8]>, value: f64) -> Self {
        Self { sensor: sensor.as_ref().into(), value, time_ms: None }
    }

    /// When it was measured, in milliseconds since 1970.
    pub fn at(mut self, time_ms: i64) -> Self {
        self.time_ms = Some(time_ms);
        self
    }

    /// Why no node would take it.
    fn fault(&self) -> Option<&'static str> {
        if self.sensor.is_empty() || self.sensor.len() > SENSOR_LEN_MAX {
            return Some("a sensor's id has 1 to 250 bytes");
        }
        if self.sensor.iter().any(u8::is_ascii_control) {
            return Some("a sensor's id has no control characters");
        }
        (!self.value.is_finite()).then_some("a value is a finite number")
    }

    /// Bytes that it takes in a frame, at most.
    fn len_max(&self) -> usize {
        self.sensor.len() + 24
    }
}

const SENSOR_LEN_MAX: usize = 250;

/// Why readings were not sent.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// This reading is wrong and was left out; others go on.
    #[error("the reading is wrong: {0}")]
    BadReading(&'static str),
    /// A batch was refused, or not answered within the delivery timeout. Nothing is sent any more;
    /// of that batch some readings may have been taken in.
    #[error("batch {sequence} was not taken in, and {unsent} readings were not sent: {error}")]
    Failed {
        /// The number of the batch.
        sequence: u64,
        /// Readings of this batch and those that waited behind it in the producer's task.
        unsent: u64,
        /// Why.
        #[source]
        error: Error,
    },
    /// The producer's task is gone: its runtime has ended.
    #[error("the producer has ended")]
    Ended,
}

/// What came of all batches so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Batches acknowledged.
    pub batches: u64,
    /// Times that a batch had to be sent again.
    pub retries: u64,
    /// Readings taken in.
    pub accepted: u64,
    /// Readings that had been taken in by an earlier try, whose answer was lost.
    pub duplicate: u64,
    /// Readings taken in that were too late for at least one window.
    pub late: u64,
    /// Readings that the stream's filter left out.
    pub filtered: u64,
    /// Readings that the node found wrong; a time too far ahead for example.
    pub rejected: u64,
    /// Of the last batch that had such, the first: place in the batch and reason.
    pub last_bad: Vec<BadReading>,
    /// The number that the next batch gets: where another life of the producer would go on.
    pub next_sequence: u64,
}

/// Settings of a [`Producer`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before it is started"]
pub struct ProducerBuilder {
    stream: Stream,
    id: String,
    epoch: Option<u64>,
    next_sequence: u64,
    batch_len_max: usize,
    linger: Duration,
    waiting_max: usize,
    attempt_timeout: Duration,
    delivery_timeout: Duration,
    backoff: Backoff,
}

/// Bytes of readings in one batch: any node takes frames of 256 KiB.
const BATCH_BYTES_MAX: usize = 192 << 10;

impl ProducerBuilder {
    pub(super) fn new(stream: Stream, id: String) -> Self {
        Self {
            stream,
            id,
            epoch: None,
            next_sequence: 0,
            batch_len_max: 5_000,
            linger: Duration::from_millis(20),
            waiting_max: 20_000,
            attempt_timeout: Duration::from_secs(15),
            delivery_timeout: Duration::from_secs(120),
            backoff: Backoff { first: Duration::from_millis(20), most: Duration::from_secs(1) },
        }
    }

    /// Which life of the producer: batches of earlier ones are refused from its first batch on.
    /// Default: the time of its start, in milliseconds since 1970.
    ///
    /// A program that keeps its readings until they are acknowledged gives an epoch that stays, and
    /// with [`next_sequence`](Self::next_sequence) goes on where it stopped.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = Some(epoch);
        self
    }

    /// The number of the first batch. Default 0.
    pub fn next_sequence(mut self, sequence: u64) -> Self {
        self.next_sequence = sequence;
        self
    }

    /// Readings in one batch, at most. Default 5,000; a batch is cut earlier when its frame would
    /// get too long.
    pub fn batch_len_max(mut self, readings: usize) -> Self {
        self.batch_len_max = readings.clamp(1, 60_000);
        self
    }

    /// How long a reading waits for others to come into its batch. Default 20 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Readings that wait to be sent; who sends more waits with them. Default 20,000.
    pub fn waiting_max(mut self, readings: usize) -> Self {
        self.waiting_max = readings.clamp(1, 10_000_000);
        self
    }

    /// How long one try of a batch may take. Default 15 s: a node waits up to 10 s for another.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }

    /// How long a batch is tried before the producer fails. Default two minutes.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Pauses between the tries of a batch, unless the node says when to come back. Default 20 ms
    /// to 1 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Starts it, on the runtime of the client.
    pub fn start(self) -> Producer {
        let (queue, inbox) = mpsc::channel(self.waiting_max);
        let shared = Arc::new(Shared::default());
        shared.totals.lock().next_sequence = self.next_sequence;
        // A clock before 1970 is no reason to fail: then lives are not told apart.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = self.epoch.unwrap_or(started.as_millis() as u64);
        let runtime = self.stream.client.runtime();
        let task = Task { settings: self, epoch, shared: Arc::clone(&shared), bytes: 0 };
        runtime.spawn(task.run(inbox));
        Producer { queue, shared, epoch }
    }
}

#[derive(Debug, Default)]
struct Shared {
    totals: Mutex<Totals>,
    failure: Mutex<Option<ProducerError>>,
}

/// Sends readings to a stream, in batches that count once each. Cheap to clone; the producer goes on
/// until its last clone is dropped, and then sends what waits.
///
/// A batch is sent again until it is acknowledged, to whichever node answers, with the same number:
/// readings count once, also when nodes die. What was handed over and not acknowledged is lost with
/// the process; [`flush`](Self::flush) tells when all is.
#[derive(Clone, Debug)]
pub struct Producer {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    epoch: u64,
}

#[derive(Debug)]
enum Message {
    Reading(Reading),
    Flush(oneshot::Sender<Result<(), ProducerError>>),
}

impl Producer {
    /// Hands a reading over; waits while too many wait already.
    ///
    /// Cancel safe: dropped, the reading was not handed over.
    pub async fn send(&self, reading: Reading) -> Result<(), ProducerError> {
        if let Some(fault) = reading.fault() {
            return Err(ProducerError::BadReading(fault));
        }
        self.check()?;
        self.queue.send(Message::Reading(reading)).await.map_err(|_| self.ended())
    }

    /// Waits until everything that was handed over before is acknowledged.
    ///
    /// Cancel safe: dropped, readings are sent all the same.
    pub async fn flush(&self) -> Result<(), ProducerError> {
        self.check()?;
        let (done, flushed) = oneshot::channel();
        self.queue.send(Message::Flush(done)).await.map_err(|_| self.ended())?;
        flushed.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// What came of all batches so far.
    pub fn totals(&self) -> Totals {
        self.shared.totals.lock().clone()
    }

    /// Which life of the producer this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn check(&self) -> Result<(), ProducerError> {
        self.shared.failure.lock().clone().map_or(Ok(()), Err)
    }

    fn ended(&self) -> ProducerError {
        self.shared.failure.lock().clone().unwrap_or(ProducerError::Ended)
    }
}

/// How long a stream that no node knows is asked for: a new one may not be everywhere yet.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(3);

struct Task {
    settings: ProducerBuilder,
    epoch: u64,
    shared: Arc<Shared>,
    /// Of the batch that is being gathered.
    bytes: usize,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut batch: Vec<Reading> = Vec::new();
        let mut due: Option<TokioInstant> = None;
        loop {
            let received = match due {
                Some(at) => timeout_at(at, inbox.recv()).await,
                None => Ok(inbox.recv().await),
            };
            let mut flushed = None;
            let (full, ended) = match received {
                Ok(Some(Message::Reading(reading))) => {
                    if due.is_none() {
                        due = Some(TokioInstant::now() + self.settings.linger);
                    }
                    self.bytes += reading.len_max();
                    batch.push(reading);
                    let full = batch.len() >= self.settings.batch_len_max
                        || self.bytes + SENSOR_LEN_MAX + 24 > BATCH_BYTES_MAX;
                    (full, false)
                }
                Ok(Some(Message::Flush(done))) => {
                    flushed = Some(done);
                    (true, false)
                }
                Ok(None) => (true, true),
                Err(_) => (true, false),
            };
            if full && !batch.is_empty() {
                if let Err(error) = self.deliver(&batch).await {
                    let sequence = self.shared.totals.lock().next_sequence;
                    let unsent = batch.len() as u64;
                    let failure = ProducerError::Failed { sequence, unsent, error };
                    self.fail(failure, flushed, inbox).await;
                    return;
                }
                batch.clear();
                self.bytes = 0;
                due = None;
            }
            if let Some(done) = flushed {
                // Whoever asked may have left.
                let _ = done.send(Ok(()));
            }
            if ended {
                return;
            }
        }
    }

    /// Tells everyone who waits that nothing is sent any more.
    async fn fail(
        self,
        mut failure: ProducerError,
        flushed: Option<oneshot::Sender<Result<(), ProducerError>>>,
        mut inbox: mpsc::Receiver<Message>,
    ) {
        // First of all: whoever finds the queue closed looks here.
        *self.shared.failure.lock() = Some(failure.clone());
        inbox.close();
        let mut waiting: Vec<_> = flushed.into_iter().collect();
        let mut behind = 0;
        while let Some(message) = inbox.recv().await {
            match message {
                Message::Reading(_) => behind += 1,
                Message::Flush(done) => waiting.push(done),
            }
        }
        if let ProducerError::Failed { unsent, .. } = &mut failure {
            *unsent += behind;
        }
        tracing::warn!(%failure, stream = &*self.settings.stream.name, "a producer failed");
        *self.shared.failure.lock() = Some(failure.clone());
        for done in waiting {
            let _ = done.send(Err(failure.clone()));
        }
    }

    /// Sends a batch until it is acknowledged.
    async fn deliver(&self, batch: &[Reading]) -> Result<(), Error> {
        let begun = Instant::now();
        let mut attempt = 0;
        loop {
            let error = match self.attempt(batch).await {
                Ok(ingested) => {
                    self.count(ingested);
                    return Ok(());
                }
                Err(error) => error,
            };
            attempt += 1;
            let patience = if is_no_stream(&error) {
                STREAM_WAIT_MAX.min(self.settings.delivery_timeout)
            } else {
                self.settings.delivery_timeout
            };
            let delay = self.settings.backoff.delay(attempt, fastrand::f64());
            let delay = error.retry_after().map_or(delay, |after| after.max(delay));
            if !can_pass(&error) || begun.elapsed() + delay > patience {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "a batch of readings is sent again");
            self.shared.totals.lock().retries += 1;
            let core = self.settings.stream.client.core();
            if matches!(error.reason(), Reason::Unreachable { .. } | Reason::Disconnected { .. }) {
                let at = Instant::now() + delay;
                core.refresh_elsewhere(Deadline { at, limit: delay }).await;
            }
            sleep(delay).await;
        }
    }

    async fn attempt(&self, batch: &[Reading]) -> Result<Ingested, Error> {
        let limit = self.settings.attempt_timeout;
        let deadline = Deadline { at: Instant::now() + limit, limit };
        let core = self.settings.stream.client.core();
        let connection = core.any_connection(deadline).await?;
        let peer = &connection.peer;
        if !peer.can(capability::INGEST) {
            let reason = Reason::Node {
                address: peer.address.clone(),
                code: ErrorCode::Unsupported,
                text: "this node takes no readings over the native protocol".into(),
                retry_after: None,
            };
            return Err(Error::not_applied(reason));
        }
        let producer = native::Producer {
            id: &self.settings.id,
            epoch: self.epoch,
            sequence: self.shared.totals.lock().next_sequence,
        };
        let len = batch.iter().map(Reading::len_max).sum();
        let submitted = connection.submit(deadline, len, |out, id| {
            let readings = batch.iter().map(|reading| native::Reading {
                sensor: &reading.sensor,
                value: reading.value,
                time_ms: reading.time_ms,
            });
            encode::ingest(out, id, &self.settings.stream.name, Some(producer), readings);
        });
        structure_of(submitted.await?.await?, peer)
    }

    fn count(&self, ingested: Ingested) {
        let mut totals = self.shared.totals.lock();
        totals.batches += 1;
        totals.accepted += ingested.accepted;
        totals.duplicate += ingested.duplicate;
        totals.late += ingested.late;
        totals.filtered += ingested.filtered;
        totals.rejected += ingested.rejected;
        if !ingested.first_bad.is_empty() {
            totals.last_bad = ingested.first_bad;
        }
        totals.next_sequence += 1;
    }
}

/// Whether another try of the same batch can have another end.
fn can_pass(error: &Error) -> bool {
    match error.reason() {
        Reason::Node { code, .. } | Reason::Refused { code, .. } => matches!(
            code,
            ErrorCode::Busy
                | ErrorCode::NotOwner
                | ErrorCode::ShuttingDown
                | ErrorCode::DeadlineExceeded
                | ErrorCode::NotEnoughCopies
                | ErrorCode::OutOfMemory
                | ErrorCode::LimitReached
                | ErrorCode::NoSuchStream
        ),
        Reason::Unreachable { .. }
        | Reason::Disconnected { .. }
        | Reason::DeadlineExceeded { .. } => true,
        _ => false,
    }
}

const _: () = assert!(BATCH_BYTES_MAX + FRAME_OVERHEAD_MAX <= 256 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_reading_is_refused_before_it_is_in_a_batch() {
        assert_eq!(Reading::new("s", 1.0).fault(), None);
        for wrong in [
            Reading::new("", 1.0),
            Reading::new("a\nb", 1.0),
            Reading::new("s".repeat(251), 1.0),
            Reading::new("s", f64::NAN),
        ] {
            assert!(wrong.fault().is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn only_what_trying_again_can_cure_is_tried_again() {
        let refused = |code| {
            let (address, text) = ("n:1".into(), "no".into());
            Error::not_applied(Reason::Node { address, code, text, retry_after: None })
        };
        assert!(can_pass(&refused(ErrorCode::Busy)));
        for code in [ErrorCode::BadArgument, ErrorCode::StaleProducer, ErrorCode::Unsupported] {
            assert!(!can_pass(&refused(code)), "{code:?}");
        }
    }
}
