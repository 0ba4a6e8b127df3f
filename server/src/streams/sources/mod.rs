//! Readings that a stream fetches by itself: from MQTT brokers, from Kafka.
//!
//! ```text
//!   each node: which sources are mine?  --> a task for each of them
//!                                             |  connect, fetch, parse
//!                                             v
//!                                           feed: a numbered batch, until it is taken in --> ingest
//! ```
//!
//! Of all nodes exactly one reads a source: the owner of the partition of the stream that the source's
//! name falls into. The source goes where the partition goes, when a node dies too.
//!
//!   state    what is seen of a source
//!   feed     messages to batches, and batches into the stream
//!   mqtt     subscriptions
//!   kafka    partitions of topics (with the cargo feature `kafka`)
//!   offsets  how far a source was read, kept in the state of the stream
//!
//! Always true: a message is acknowledged, or gone past, only when what was in it is taken in on all
//! copies in sync or was wrong, which is counted; what waits in a source's task is bounded.

mod feed;
#[cfg(feature = "kafka")]
mod kafka;
mod mqtt;
#[cfg(feature = "kafka")]
mod offsets;
mod state;

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use kiln_stream::{
    definition::Definition,
    parse::Format,
    source::{Kind, SourceDefinition},
};
use tokio::{
    runtime,
    sync::watch,
    task::JoinHandle as Task,
    time::{self, Instant},
};

pub(crate) use state::{SourceFigures, SourceState};

use self::feed::Feed;
use super::{Stream, StreamError};
use crate::node::Node;

/// How often it is looked which sources are this node's.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a source that ended by itself is left alone.
const REST: Duration = Duration::from_secs(5);

/// The thread that reads sources.
pub(crate) struct Reading {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Reading {
    /// Reads the sources that are this node's, now and whenever some come.
    pub(crate) fn start(node: Arc<Node>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let work = move || runtime.block_on(watch(&node, stopped));
        let thread = thread::Builder::new().name("kiln-sources".to_owned()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Leaves all sources. What was fetched and not taken in is fetched again by who is next.
    pub(crate) fn stop(self) {
        // An error is a thread that ended before, by a panic that the log has.
        let _ = self.stop.send(true);
        let _ = self.thread.join();
    }
}

/// Whether this build can read the sources of a definition.
pub(super) fn check(definition: &Definition) -> Result<(), StreamError> {
    let is_kafka = |source: &SourceDefinition| source.kafka.is_some();
    match definition.sources.iter().position(is_kafka) {
        Some(at) if cfg!(not(feature = "kafka")) => {
            Err(StreamError::Source { at, reason: NO_KAFKA })
        }
        _ => Ok(()),
    }
}

const NO_KAFKA: &str = "this node is built without Kafka (cargo feature `kafka`)";

/// A source that is read.
struct Running {
    task: Task<()>,
    /// What was true when it was begun; another is a reason to begin anew.
    claim: Claim,
    ended: Option<Instant>,
}

/// By what right this node reads a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It owns the source's partition, in this term.
    Owner(u64),
    /// Parts of the source may be its own.
    Parts,
}

async fn watch(node: &Arc<Node>, mut stopped: watch::Receiver<bool>) {
    let mut running: HashMap<(u64, usize), Running> = HashMap::new();
    loop {
        look(node, &mut running);
        tokio::select! {
            () = time::sleep(LOOK_EVERY) => {}
            _ = stopped.changed() => break,
        }
    }
    // Tasks end with the runtime.
}

fn look(node: &Arc<Node>, running: &mut HashMap<(u64, usize), Running>) {
    let mut wanted = HashMap::new();
    let table = node.streams.registry.load_full();
    for stream in table.values() {
        let definition = stream.plan.definition();
        for (index, source) in definition.sources.iter().enumerate() {
            // Checked when the plan was made.
            let Ok(kind) = source.check(definition.format) else { continue };
            let claim = match kind {
                Kind::Mqtt(_) => feed::term_at_home(node, stream, &source.name()).map(Claim::Owner),
                Kind::Kafka(_) => Some(Claim::Parts),
            };
            match claim {
                Some(claim) => drop(wanted.insert((stream.id, index), (stream, kind, claim))),
                None => stream.sources[index].is_elsewhere(),
            }
        }
    }
    running.retain(|key, one| {
        let stays = wanted.get(key).is_some_and(|(_, _, claim)| *claim == one.claim);
        if !stays {
            one.task.abort();
        } else if one.task.is_finished() {
            return one.ended.get_or_insert_with(Instant::now).elapsed() < REST;
        }
        stays
    });
    for ((id, index), (stream, kind, claim)) in wanted {
        running.entry((id, index)).or_insert_with(|| Running {
            task: begin(node, stream, index, kind, claim),
            claim,
            ended: None,
        });
    }
}

fn begin(
    node: &Arc<Node>,
    stream: &Arc<Stream>,
    index: usize,
    kind: Kind,
    claim: Claim,
) -> Task<()> {
    let definition = stream.plan.definition().sources[index].clone();
    let term = match claim {
        Claim::Owner(term) => term,
        Claim::Parts => 0,
    };
    match kind {
        Kind::Mqtt(broker) => {
            let feed = Feed::new(node, stream, index, definition.name(), 0);
            tokio::spawn(mqtt::run(feed, broker, definition, term))
        }
        #[cfg(feature = "kafka")]
        Kind::Kafka(brokers) => {
            let (node, stream) = (Arc::clone(node), Arc::clone(stream));
            tokio::spawn(kafka::run(node, stream, index, brokers, definition))
        }
        #[cfg(not(feature = "kafka"))]
        Kind::Kafka(_) => {
            stream.sources[index].is_connecting(0, Some(NO_KAFKA.to_owned()));
            tokio::spawn(std::future::pending())
        }
    }
}

/// Whether each message of a format begins with a line that names its columns.
fn names_columns(stream: &Stream) -> bool {
    let definition = stream.plan.definition();
    definition.format == Format::Csv && definition.columns.is_empty()
}
