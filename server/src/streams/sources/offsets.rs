//! How far a source was read, kept where the stream keeps its state.
//!
//! Offsets stand in the partition that the source's name falls into, in its changelog like readings: on
//! all copies in sync before they count, and written only by the node that owns the partition. An owner
//! that was deposed and does not know it cannot write them, so of two nodes that both believe to read a
//! source only one gets past its last batch.

use std::sync::Arc;

use kiln_stream::{
    reading::Part,
    record::{Producer, SourceOffset},
};
use tokio::sync::oneshot;

use super::feed::home_of;
use crate::{
    node::Node,
    streams::{
        IngestError, Stream,
        shard::{Apply, Job},
    },
};

/// The last batch of a source that was begun: messages from one offset up to another. Those before
/// are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Notes that a batch begins; `None` only makes sure that the partition is here.
pub(super) async fn note(
    node: &Node,
    stream: &Arc<Stream>,
    name: &str,
    begun: Option<Begun>,
) -> Result<(), IngestError> {
    let partition = home_of(node, name);
    let offsets = begun.map_or_else(Vec::new, |Begun { from, to }| {
        vec![
            SourceOffset { source: from_of(name), offset: from },
            SourceOffset { source: name.to_owned(), offset: to },
        ]
    });
    let streams = &node.streams;
    let busy = || IngestError::Busy("too many readings are on their way already".to_owned());
    let room = Arc::clone(&streams.queue).try_acquire_owned().map_err(|_| busy())?;
    let (reply, answer) = oneshot::channel();
    let job = Job::Apply(Apply {
        stream: Arc::clone(stream),
        producer: Arc::new(Producer { id: name.to_owned(), ..Producer::default() }),
        parts: vec![(partition, Part::default())],
        offsets,
        reply,
        _room: Arc::new(room),
    });
    let shard = partition as usize % streams.shard_count();
    streams.shards[shard].send(job).await.map_err(|_| IngestError::Stopping)?;
    let receipt = answer.await.map_err(|_| IngestError::Stopping)?;
    receipt.refused.map_or(Ok(()), Err)
}

/// The last batch that was begun. The outer `None`: the partition is not here.
pub(super) async fn last(node: &Node, stream: &Arc<Stream>, name: &str) -> Option<Option<Begun>> {
    let partition = home_of(node, name);
    let (reply, answer) = oneshot::channel();
    let sources = [from_of(name), name.to_owned()];
    let job = Job::Offsets { partition, stream: Arc::clone(stream), sources, reply };
    let shard = partition as usize % node.streams.shard_count();
    node.streams.shards[shard].send(job).await.ok()?;
    let [from, to] = answer.await.ok()??;
    Some(from.zip(to).map(|(from, to)| Begun { from, to }))
}

fn from_of(name: &str) -> String {
    format!("{name} from")
}
