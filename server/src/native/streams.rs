//! Streams over the native protocol: readings in, latest values and windows out, results followed.
//!
//! ```text
//!   request --> a task on the worker --> the streams, perhaps other nodes
//!                        |
//!   connection <-- mailbox woken <-- the answer, or what a follower is told
//! ```
//!
//! Such a request takes as long as its readings wait for room and for copies on other nodes, and those
//! behind it on the connection need not wait with it: answers come in whatever order they are ready.
//! What is under way for one connection is bounded, in number and, by the node's budget of buffers,
//! in bytes; beyond it a client is told to come again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use kiln_protocol::{
    command::Outcome,
    native::{
        Body, Effect, ErrorCode, Failure, Ingest, Live, respond,
        streams::{BadReading, Follow, Ingested, LatestQuery, LatestReading, WindowsQuery},
    },
};
use kiln_stream::{
    parse::BAD_LINES_KEPT,
    reading::{Batch, Reading, SENSOR_LEN_MAX},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

use super::{RETRY_AFTER_MS, session::Native};
use crate::{
    connection::budget::Share,
    mailbox::Mailbox,
    node::Node,
    streams::{
        self, Fill, IngestError, LIMIT_DEFAULT, LIMIT_MAX, LiveEvent, Range, RangeError, Source,
        Stream, check_producer,
    },
};

/// Requests about streams that are under way for one connection.
const UNDER_WAY_MAX: usize = 32;
/// Streams that one connection follows.
const FOLLOWS_MAX: usize = 16;
/// Bytes of events that wait for a connection; more than the longest one has.
const EVENTS_LEN_MAX: usize = 256 << 10;
/// What can be followed alone.
const KINDS: [&str; 4] = ["window", "alarm", "fit", "late"];

/// What is under way for one connection, and what came of it.
pub(super) struct Deferred {
    shared: Arc<Shared>,
    follows: Vec<Following>,
}

struct Following {
    number: u32,
    ends: Arc<Notify>,
}

struct Shared {
    mailbox: Arc<Mailbox>,
    /// Frames that are to be sent, whole.
    out: Mutex<Vec<u8>>,
    under_way: AtomicUsize,
    /// Bytes of events in `out`.
    events: AtomicUsize,
    /// There is room for events again.
    drained: Notify,
    is_closed: AtomicBool,
    /// Of the node's memory, what is in `out`.
    share: Mutex<Share>,
}

impl Deferred {
    pub(super) fn new(node: &Node, mailbox: &Arc<Mailbox>) -> Self {
        let shared = Shared {
            mailbox: Arc::clone(mailbox),
            out: Mutex::default(),
            under_way: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
            drained: Notify::new(),
            is_closed: AtomicBool::new(false),
            share: Mutex::new(node.budget.buffers()),
        };
        Self { shared: Arc::new(shared), follows: Vec::new() }
    }

    /// Hands over what is to be sent.
    pub(super) fn take(&self, replies: &mut Vec<u8>) {
        {
            let mut out = self.shared.out.lock();
            replies.append(&mut out);
            *out = Vec::new();
            self.shared.events.store(0, Relaxed);
            self.shared.share.lock().resize(0);
        }
        self.shared.drained.notify_waiters();
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Relaxed);
        self.follows.iter().for_each(|following| following.ends.notify_one());
        self.shared.drained.notify_waiters();
    }
}

impl Shared {
    /// An answer is ready.
    fn answer(&self, frame: &[u8]) {
        if self.is_closed.load(Relaxed) {
            return;
        }
        {
            let mut out = self.out.lock();
            out.extend_from_slice(frame);
            // Answers were asked for, and few: they are sent also when the budget is used up.
            self.share.lock().resize(out.len());
        }
        self.mailbox.answers_are_ready();
    }

    /// Puts an event in, once there is room for it. False when nobody is there any more.
    async fn tell(&self, frame: &[u8]) -> bool {
        loop {
            let drained = self.drained.notified();
            let mut drained = std::pin::pin!(drained);
            // From here on it is told of.
            drained.as_mut().enable();
            if self.is_closed.load(Relaxed) {
                return false;
            }
            let events = self.events.load(Relaxed);
            if events == 0 || events + frame.len() <= EVENTS_LEN_MAX {
                self.events.fetch_add(frame.len(), Relaxed);
                self.answer(frame);
                return true;
            }
            drained.await;
        }
    }
}

/// A request under way: counted until it is answered.
struct UnderWay {
    shared: Arc<Shared>,
    id: u32,
}

impl UnderWay {
    fn answer(self, write: impl FnOnce(&mut Vec<u8>, u32)) {
        let mut frame = Vec::new();
        write(&mut frame, self.id);
        self.shared.answer(&frame);
    }

    fn fail(self, failure: &Failure<'_>) {
        self.answer(|out, id| respond::failure(out, id, failure));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.under_way.fetch_sub(1, Relaxed);
    }
}

/// Begins a request about a stream; the answer comes when it is there, or at once when the request
/// is wrong.
pub(super) fn run(
    session: &mut Native,
    node: &Arc<Node>,
    id: u32,
    body: &Body<'_>,
    replies: &mut Vec<u8>,
) {
    let name = match body {
        Body::Ingest(ingest) => ingest.stream,
        Body::Latest(query) => &query.stream,
        Body::Windows(query) => &query.stream,
        Body::Follow(follow) if follow.ends => return end_follow(session, id, follow, replies),
        Body::Follow(follow) => &follow.stream,
        _ => "",
    };
    let Some(stream) = node.streams.registry.get(name) else {
        let text = "there is no stream of this name";
        return respond::failure(replies, id, &Failure::refused(ErrorCode::NoSuchStream, text));
    };
    let deferred =
        session.deferred.get_or_insert_with(|| Box::new(Deferred::new(node, &session.mailbox)));
    if let Body::Follow(follow) = body {
        return begin_follow(deferred, &stream, id, follow, replies);
    }
    let shared = &deferred.shared;
    if shared.under_way.fetch_add(1, Relaxed) >= UNDER_WAY_MAX {
        shared.under_way.fetch_sub(1, Relaxed);
        let text = "this connection has too many requests about streams under way";
        return respond::failure(replies, id, &super::busy(text));
    }
    let under_way = UnderWay { shared: Arc::clone(shared), id };
    let node = Arc::clone(node);
    match body {
        Body::Ingest(ingest) => take_in(node, stream, ingest, under_way),
        Body::Latest(query) => {
            let query = query.clone();
            tokio::spawn(async move { latest(node, stream, &query, under_way).await });
        }
        Body::Windows(query) => {
            let query = query.clone();
            tokio::spawn(async move { windows(node, stream, &query, under_way).await });
        }
        _ => {}
    }
}

/// Readings: copied into columns now, taken in by a task.
fn take_in(node: Arc<Node>, stream: Arc<Stream>, ingest: &Ingest<'_>, under_way: UnderWay) {
    let refuse = |under_way: UnderWay, text: &str| {
        under_way.fail(&Failure::refused(ErrorCode::BadArgument, text));
    };
    if let Some(producer) = ingest.producer
        && let Err(error) = check_producer(producer.id)
    {
        return refuse(under_way, &error.to_string());
    }
    if ingest.readings.len() > Batch::LEN_MAX {
        return refuse(under_way, &format!("a batch has at most {} readings", Batch::LEN_MAX));
    }
    let mut ingested = Ingested::default();
    let batch = columns(&node, &stream, ingest, &mut ingested);
    stream.count(|f| &f.rejected, ingested.rejected);
    let mut share = node.budget.buffers();
    if !share.resize(batch.bytes()) {
        return under_way.fail(&super::busy("too many readings are on their way already"));
    }
    let own = format!("native-{:x}", node.incarnation);
    let producer = ingest.producer.map(|known| (known.id.to_owned(), known.epoch, known.sequence));
    tokio::spawn(async move {
        let source = match &producer {
            Some((id, epoch, sequence)) => {
                Source { producer: id, epoch: *epoch, sequence: Some(*sequence) }
            }
            None => Source { producer: &own, epoch: 0, sequence: None },
        };
        let receipt = node.streams.ingest(&node, &stream, source, batch).await;
        drop(share);
        if let Some(error) = &receipt.refused {
            let text = error.to_string();
            // Other parts of the batch may have been taken in.
            let failed = |code, retry_after_ms| Failure {
                code,
                text: &text,
                effect: Effect::Indeterminate,
                retry_after_ms,
            };
            return under_way.fail(&match error {
                IngestError::Busy(_) => failed(ErrorCode::Busy, Some(streams::RETRY_AFTER_MS)),
                IngestError::Refused(_) => failed(ErrorCode::BadArgument, None),
                IngestError::Stopping => failed(ErrorCode::ShuttingDown, None),
            });
        }
        if receipt.stale > 0 {
            let text = format!(
                "{} readings are of an earlier epoch, or of a number too far back, and were not \
                 taken in",
                receipt.stale
            );
            return under_way.fail(&Failure::refused(ErrorCode::StaleProducer, &text));
        }
        ingested.accepted = receipt.accepted;
        ingested.duplicate = receipt.duplicate;
        ingested.late = receipt.late;
        ingested.filtered = receipt.filtered;
        under_way.answer(|out, id| respond::structure(out, id, &ingested));
    });
}

/// Readings in columns; those that are wrong are counted and left out.
fn columns(node: &Node, stream: &Stream, ingest: &Ingest<'_>, ingested: &mut Ingested) -> Batch {
    let arrival = node.clock.now_ms() as i64;
    let ahead_max = stream.plan.layout(None).ahead_max;
    let mut batch = Batch::new();
    for (index, reading) in (0..).zip(ingest.readings) {
        let time = reading.time_ms.unwrap_or(arrival);
        let ahead = time.saturating_sub(arrival);
        let pushed = match ahead_max.filter(|limit| ahead > *limit) {
            Some(limit) => {
                Err(format!("the time is {ahead} ms ahead of the arrival, the limit is {limit}"))
            }
            None => batch
                .push(Reading { sensor: reading.sensor, time, value: reading.value })
                .map_err(|error| error.to_string()),
        };
        if let Err(reason) = pushed {
            ingested.rejected += 1;
            if ingested.first_bad.len() < BAD_LINES_KEPT {
                ingested.first_bad.push(BadReading { index, reason });
            }
        }
    }
    batch
}

/// The latest reading of a sensor, as `GET /v1/streams/{stream}/sensors/{sensor}` finds it.
async fn latest(node: Arc<Node>, stream: Arc<Stream>, query: &LatestQuery, under_way: UnderWay) {
    match streams::latest_reading(&node, &stream, &query.sensor).await {
        Some((time_ms, value)) => {
            let latest = LatestReading { value, time_ms };
            under_way.answer(|out, id| respond::structure(out, id, &latest));
        }
        None => under_way.answer(|out, id| respond::outcome(out, id, &Outcome::NotFound, None)),
    }
}

/// A range of windows.
async fn windows(node: Arc<Node>, stream: Arc<Stream>, query: &WindowsQuery, under_way: UnderWay) {
    let refuse = |under_way: UnderWay, text: &str| {
        under_way.fail(&Failure::refused(ErrorCode::BadArgument, text));
    };
    let fill = if query.fill.is_empty() { Some(Fill::None) } else { Fill::of(&query.fill) };
    let Some(fill) = fill else {
        return refuse(under_way, "`fill` must be none, null, previous or linear");
    };
    let known = kiln_stream::reading::TIME_MIN..=kiln_stream::reading::TIME_MAX;
    if [query.from, query.to].into_iter().flatten().any(|time| !known.contains(&time)) {
        return refuse(under_way, "`from` and `to` must be milliseconds since 1970");
    }
    if query.sensor.len() > SENSOR_LEN_MAX {
        return refuse(under_way, "a sensor's id has at most 250 bytes");
    }
    let limit = if query.limit == 0 { LIMIT_DEFAULT } else { query.limit as usize };
    let range = Range {
        window: query.window.clone(),
        from: query.from,
        to: query.to,
        fill,
        limit: limit.min(LIMIT_MAX),
        step: (query.step_ms > 0).then(|| i64::try_from(query.step_ms).unwrap_or(i64::MAX)),
        forecast: None,
    };
    let found = match streams::range(&node, &stream, &query.sensor, &range).await {
        Ok(found) => found,
        Err(error) => {
            let text = error.to_string();
            let later = matches!(error, RangeError::Unreadable);
            let code = if later { ErrorCode::Busy } else { ErrorCode::BadArgument };
            let retry_after_ms = later.then_some(RETRY_AFTER_MS);
            return under_way.fail(&Failure { retry_after_ms, ..Failure::refused(code, &text) });
        }
    };
    // Made by this node, so it can be read.
    let value: serde_json::Value = serde_json::from_str(&found).unwrap_or_default();
    let mut frame = Vec::new();
    respond::structure(&mut frame, under_way.id, &value);
    if frame.len() > super::gathered_len_max(&node) {
        let text = "the windows are longer than a frame: ask for fewer at a time";
        return under_way.fail(&Failure::refused(ErrorCode::LimitReached, text));
    }
    under_way.answer(|out, _| out.append(&mut frame));
}

fn begin_follow(
    deferred: &mut Deferred,
    stream: &Arc<Stream>,
    id: u32,
    follow: &Follow,
    replies: &mut Vec<u8>,
) {
    let refuse = |replies: &mut Vec<u8>, code, text: &str| {
        respond::failure(replies, id, &Failure::refused(code, text));
    };
    if !follow.kind.is_empty() && !KINDS.contains(&&*follow.kind) {
        let text = format!("`kind` must be one of {}", KINDS.join(", "));
        return refuse(replies, ErrorCode::BadArgument, &text);
    }
    deferred.end(follow.number);
    if deferred.follows.len() >= FOLLOWS_MAX {
        let text = "this connection follows as many streams as it may";
        return refuse(replies, ErrorCode::LimitReached, text);
    }
    let Some(place) = streams::follower_place() else {
        let text = "too many clients follow streams of this node already";
        return refuse(replies, ErrorCode::LimitReached, text);
    };
    let ends = Arc::new(Notify::new());
    deferred.follows.push(Following { number: follow.number, ends: Arc::clone(&ends) });
    let (events, follow) = (stream.follow(), follow.clone());
    let shared = Arc::clone(&deferred.shared);
    // Before the first event: that comes by the mailbox.
    respond::ok(replies, id);
    tokio::spawn(async move {
        tokio::select! {
            () = pass_on(&shared, events, &follow) => {}
            () = ends.notified() => {}
        }
        drop(place);
    });
}

fn end_follow(session: &mut Native, id: u32, follow: &Follow, replies: &mut Vec<u8>) {
    if let Some(deferred) = &mut session.deferred {
        deferred.end(follow.number);
    }
    respond::ok(replies, id);
}

impl Deferred {
    fn end(&mut self, number: u32) {
        self.follows.retain(|following| {
            let stays = following.number != number;
            if !stays {
                following.ends.notify_one();
            }
            stays
        });
    }
}

/// Tells a follower until it leaves or the stream is dropped. One that is too slow is told how many
/// events it missed.
async fn pass_on(
    shared: &Shared,
    mut events: broadcast::Receiver<Arc<LiveEvent>>,
    follow: &Follow,
) {
    let mut frame = Vec::new();
    let number = follow.number;
    loop {
        frame.clear();
        match events.recv().await {
            Ok(event) => {
                let wanted = follow.sensor.as_ref().is_none_or(|sensor| **sensor == *event.sensor)
                    && (follow.kind.is_empty() || follow.kind == event.kind);
                if !wanted {
                    continue;
                }
                let (kind, sensor) = (event.kind, &*event.sensor);
                respond::live(&mut frame, &Live { number, kind, sensor, event: &event.text });
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let event = format!("{{\"events\":{missed}}}");
                let live = Live { number, kind: "missed", sensor: b"", event: &event };
                respond::live(&mut frame, &live);
            }
            Err(broadcast::error::RecvError::Closed) => {
                let live = Live { number, kind: "ended", sensor: b"", event: "{}" };
                respond::live(&mut frame, &live);
                shared.tell(&frame).await;
                return;
            }
        }
        if !shared.tell(&frame).await {
            return;
        }
    }
}
