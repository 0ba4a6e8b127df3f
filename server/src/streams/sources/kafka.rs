//! Readings from Kafka, each counted once.
//!
//! A partition of a topic is a producer with batches of its own: messages from one offset up to another,
//! numbered by where they end. Before a batch is sent on its way, its offsets are noted in the state of
//! the stream (see `offsets`). Whoever goes on, after whatever happened, first sends that last batch
//! again: the same messages with the same number, which every partition of the stream counts once. Kafka
//! itself is told nothing; there is no consumer group.
//!
//! ```text
//!   note [from, to) --> readings of [from, to) as batch number `to` --> taken in --> note [to, …) --> …
//! ```
//!
//! A line without a time has that of its message, so that it is the same each time it is read.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use kiln_stream::{
    reading::Batch,
    source::{Host, SourceDefinition, Start},
};
use rskafka::{
    BackoffConfig,
    client::{
        Client, ClientBuilder,
        error::{Error, ProtocolError},
        partition::{OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::RecordAndOffset,
};
use tokio::{task::JoinHandle, time};

use super::{
    feed::{Feed, Gone, Number, term_at_home},
    offsets::{self, Begun},
};
use crate::{
    node::Node,
    streams::{IngestError, Stream},
};

/// Bytes of one fetch, about; a single larger message comes all the same, up to [`MESSAGE_LEN_MAX`].
const FETCH_BYTES: i32 = 1 << 20;
/// How long a broker waits for new messages.
const FETCH_WAIT_MS: i32 = 500;
const MESSAGE_LEN_MAX: usize = 16 << 20;
/// Partitions of one topic.
const PARTITIONS_MAX: usize = 1_024;
/// How often it is looked which partitions there are …
const TOPIC_EVERY: Duration = Duration::from_secs(30);
/// … and which are this node's.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long one request is tried by the client itself.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Pauses after failures.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A topic, as far as this node reads it.
struct Topic {
    node: Arc<Node>,
    stream: Arc<Stream>,
    index: usize,
    brokers: Vec<Host>,
    definition: SourceDefinition,
}

/// Reads those partitions of a topic that are this node's.
pub(super) async fn run(
    node: Arc<Node>,
    stream: Arc<Stream>,
    index: usize,
    brokers: Vec<Host>,
    definition: SourceDefinition,
) {
    let topic = Arc::new(Topic { node, stream, index, brokers, definition });
    let mut pause = PAUSE_FIRST;
    loop {
        let error = match topic.connect().await {
            Ok(client) => match topic.read(&Arc::new(client), &mut pause).await {
                Ok(()) => continue,
                Err(error) => error,
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            stream = %topic.stream.name, source = %topic.definition.name(), error,
            "no connection to Kafka"
        );
        topic.state().is_connecting(NO_PART, Some(error));
        wait(&mut pause).await;
    }
}

/// Stands for the topic as a whole.
const NO_PART: i32 = -1;

async fn wait(pause: &mut Duration) {
    time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    *pause = (*pause * 2).min(PAUSE_MAX);
}

/// Tasks that end with what holds them.
#[derive(Default)]
struct Tasks(HashMap<i32, (u64, JoinHandle<()>)>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.values().for_each(|(_, task)| task.abort());
    }
}

impl Topic {
    fn state(&self) -> &super::SourceState {
        &self.stream.sources[self.index]
    }

    async fn connect(&self) -> Result<Client, Error> {
        let brokers = self.brokers.iter().map(ToString::to_string).collect();
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
            deadline: Some(REQUEST_MAX),
        };
        ClientBuilder::new(brokers)
            .client_id(format!("kiln-{}", self.stream.name))
            .max_message_size(MESSAGE_LEN_MAX)
            .backoff_config(backoff)
            .build()
            .await
    }

    /// Reads until the topic cannot be looked at any more.
    async fn read(
        self: &Arc<Self>,
        client: &Arc<Client>,
        pause: &mut Duration,
    ) -> Result<(), String> {
        let mut tasks = Tasks::default();
        loop {
            let parts = self.partitions(client).await?;
            *pause = PAUSE_FIRST;
            self.state().leave(NO_PART);
            let looked = time::Instant::now();
            while looked.elapsed() < TOPIC_EVERY {
                self.look(client, &parts, &mut tasks);
                time::sleep(LOOK_EVERY).await;
            }
        }
    }

    async fn partitions(&self, client: &Client) -> Result<BTreeSet<i32>, String> {
        let topics = client.list_topics().await.map_err(|error| error.to_string())?;
        let topic = topics.into_iter().find(|topic| topic.name == self.definition.topic);
        let parts = topic.map(|topic| topic.partitions).unwrap_or_default();
        if parts.is_empty() {
            return Err(format!("there is no topic {}", self.definition.topic));
        }
        if parts.len() > PARTITIONS_MAX {
            return Err(format!("the topic has more than {PARTITIONS_MAX} partitions"));
        }
        Ok(parts)
    }

    /// Begins to read partitions that are this node's, and leaves the others.
    fn look(self: &Arc<Self>, client: &Arc<Client>, parts: &BTreeSet<i32>, tasks: &mut Tasks) {
        for &part in parts {
            let name = self.name_of(part);
            let term = term_at_home(&self.node, &self.stream, &name);
            let runs = tasks.0.get(&part).filter(|(_, task)| !task.is_finished());
            if runs.map(|(of, _)| *of) == term {
                continue;
            }
            if let Some((_, task)) = tasks.0.remove(&part) {
                task.abort();
                self.state().leave(part);
            }
            if let Some(term) = term {
                let feed = Feed::new(&self.node, &self.stream, self.index, name, part);
                let (topic, client) = (Arc::clone(self), Arc::clone(client));
                tasks.0.insert(part, (term, tokio::spawn(topic.follow(client, feed))));
            }
        }
    }

    fn name_of(&self, part: i32) -> String {
        format!("{}/{part}", self.definition.name())
    }

    /// Reads one partition for as long as it is this node's.
    async fn follow(self: Arc<Self>, client: Arc<Client>, mut feed: Feed) {
        let mut pause = PAUSE_FIRST;
        self.state().is_connecting(feed.part, None);
        loop {
            match self.go_on(&client, &mut feed, &mut pause).await {
                Err(Stopped::Gone) => return self.state().leave(feed.part),
                Err(Stopped::Trouble(error)) => {
                    tracing::warn!(
                        stream = %self.stream.name, source = %feed.name, error,
                        "cannot read from Kafka"
                    );
                    self.state().is_connecting(feed.part, Some(error));
                    wait(&mut pause).await;
                }
                Ok(never) => match never {},
            }
        }
    }

    /// Goes on where the last batch began.
    async fn go_on(
        &self,
        client: &Client,
        feed: &mut Feed,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, Stopped> {
        let topic = &self.definition.topic;
        let part = client
            .partition_client(topic, feed.part, UnknownTopicHandling::Error)
            .await
            .map_err(trouble)?;
        // From here on the state of the partition that has the offsets is here, and says how far.
        self.note(feed, None).await?;
        let last = offsets::last(&self.node, &self.stream, &feed.name).await;
        let mut next = match last.ok_or(Stopped::Gone)? {
            Some(begun) => {
                if begun.from < begun.to {
                    self.again(&part, feed, begun).await?;
                }
                begun.to
            }
            None => {
                let at = match self.definition.start.unwrap_or_default() {
                    Start::Earliest => OffsetAt::Earliest,
                    Start::Latest => OffsetAt::Latest,
                };
                let start = part.get_offset(at).await.map_err(trouble)?;
                self.note(feed, Some(Begun { from: start, to: start })).await?;
                start
            }
        };
        feed.state().is_running(feed.part);
        // Whether the last batch is noted as begun only.
        let mut is_open = true;
        loop {
            let (messages, end) = match self.fetch(&part, next).await? {
                Fetched::Messages(messages, end) => (messages, end),
                Fetched::Deleted { earliest } => {
                    tracing::error!(
                        stream = %self.stream.name, source = %feed.name,
                        messages = earliest - next,
                        "messages were deleted by Kafka before they were read"
                    );
                    next = earliest;
                    continue;
                }
            };
            *pause = PAUSE_FIRST;
            if messages.is_empty() {
                if is_open {
                    // Else it would be sent again when its number may long be forgotten.
                    self.note(feed, Some(Begun { from: next, to: next })).await?;
                    is_open = false;
                }
                if end > next {
                    // What is there is no message: a mark of a transaction. It is given at once.
                    time::sleep(LOOK_EVERY).await;
                }
            }
            let mut rest = &messages[..];
            while !rest.is_empty() {
                let mut batch = Batch::new();
                let count = add(feed, rest, &mut batch);
                let to = rest[count - 1].offset + 1;
                self.note(feed, Some(Begun { from: next, to })).await?;
                is_open = true;
                feed.deliver(number(to), &batch).await?;
                next = to;
                rest = &rest[count..];
            }
            feed.state().set_lag(feed.part, u64::try_from(end - next).unwrap_or(0));
        }
    }

    /// Sends a batch that was begun, and perhaps taken in, again.
    async fn again(
        &self,
        part: &PartitionClient,
        feed: &mut Feed,
        begun: Begun,
    ) -> Result<(), Stopped> {
        let mut batch = Batch::new();
        let mut next = begun.from;
        while next < begun.to {
            match self.fetch(part, next).await? {
                Fetched::Messages(messages, end) => {
                    let upto = messages.partition_point(|message| message.offset < begun.to);
                    let count = add(feed, &messages[..upto], &mut batch);
                    if count < upto {
                        // It had room before, of the same messages.
                        break;
                    }
                    next = match messages.get(upto) {
                        Some(_) => begun.to,
                        // What is not there any more was compacted away.
                        None if messages.is_empty() && end >= begun.to => begun.to,
                        None => messages.last().map_or(next, |message| message.offset + 1),
                    };
                }
                Fetched::Deleted { earliest } => {
                    tracing::error!(
                        stream = %self.stream.name, source = %feed.name,
                        "messages were deleted by Kafka before it was certain that they count"
                    );
                    next = earliest;
                }
            }
        }
        Ok(feed.deliver(number(begun.to), &batch).await?)
    }

    async fn note(&self, feed: &Feed, begun: Option<Begun>) -> Result<(), Stopped> {
        let mut pause = PAUSE_FIRST;
        loop {
            match offsets::note(&self.node, &self.stream, &feed.name, begun).await {
                Ok(()) => return Ok(()),
                Err(IngestError::Busy(reason)) => {
                    if term_at_home(&self.node, &self.stream, &feed.name).is_none() {
                        return Err(Stopped::Gone);
                    }
                    feed.state().is_waiting(feed.part, reason);
                    wait(&mut pause).await;
                    feed.state().is_running(feed.part);
                }
                Err(IngestError::Refused(reason)) => return Err(Stopped::Trouble(reason)),
                Err(IngestError::Stopping) => return Err(Stopped::Gone),
            }
        }
    }

    async fn fetch(&self, part: &PartitionClient, next: i64) -> Result<Fetched, Stopped> {
        let fetched = part.fetch_records(next, 1..FETCH_BYTES, FETCH_WAIT_MS).await;
        let error = match fetched {
            Ok((messages, end)) => return Ok(Fetched::Messages(messages, end)),
            Err(error) => error,
        };
        let is_out = matches!(
            &error,
            Error::ServerError { protocol_error: ProtocolError::OffsetOutOfRange, .. }
        );
        if !is_out {
            return Err(trouble(error));
        }
        let earliest = part.get_offset(OffsetAt::Earliest).await.map_err(trouble)?;
        if next < earliest {
            return Ok(Fetched::Deleted { earliest });
        }
        Err(Stopped::Trouble(format!(
            "the topic ends before offset {next}, where the stream is: if it was made anew, give \
             the source another name"
        )))
    }
}

/// Adds messages to a batch; returns how many had room, at least one.
fn add(feed: &mut Feed, messages: &[RecordAndOffset], batch: &mut Batch) -> usize {
    let mut count = 0;
    for RecordAndOffset { record, .. } in messages {
        let payload = record.value.as_deref().unwrap_or_default();
        if !feed.add(payload, record.timestamp.timestamp_millis(), None, batch) {
            break;
        }
        count += 1;
    }
    count
}

/// A batch is numbered by where it ends.
fn number(to: i64) -> Number {
    Number { epoch: 0, sequence: to.unsigned_abs() }
}

enum Fetched {
    /// And the offset behind the last message that is there.
    Messages(Vec<RecordAndOffset>, i64),
    Deleted {
        earliest: i64,
    },
}

/// Why a partition is not read any more, or not now.
enum Stopped {
    Gone,
    Trouble(String),
}

impl From<Gone> for Stopped {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

fn trouble(error: Error) -> Stopped {
    Stopped::Trouble(error.to_string())
}
