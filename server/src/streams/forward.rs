//! Partitions of streams on other nodes: who owns them, and how they are asked.
//!
//! A partition of a stream is where its changelog is: at the primary of the same partition of that
//! cache. Whoever takes a batch in splits it by owner and asks the others
//! over the links between nodes, each once; one that is not the owner (any more) changes nothing and
//! says so, and the part is sent again by the newer table. An answer that is lost leaves open
//! whether the part counted: a batch with a number can be sent again, and counts once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use kiln_cluster::ids::{NodeId, PartitionId, Place, Term};
use kiln_stream::{
    reading::{Part, disjoin, join},
    record::Producer,
};
use serde::{Deserialize, Serialize};
use tokio::time;

use super::{
    Stream, Streams,
    ingest::{IngestError, Receipt, refuse_all},
    parts::Recent,
    query::{latest_here, recent_here},
};
use crate::{
    node::Node,
    peer::{Caller, Refused, kind},
};

/// The kind of these calls between nodes.
pub(crate) const CALL: u8 = kind::READINGS;
/// How long an owner is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a part is sent again because its owner was another, and the pause before.
const MOVES_MAX: usize = 8;
const MOVE_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of readings in one call, about: bounds what a node holds of others' batches.
const CALL_BYTES_MAX: usize = 4 << 20;

/// What an owner is asked.
#[derive(Serialize, Deserialize)]
enum Asked {
    Apply {
        stream: String,
        producer: Producer,
        /// As [`join`] makes them.
        #[serde(with = "serde_bytes")]
        parts: Vec<u8>,
    },
    Latest {
        stream: String,
        sensor: Vec<u8>,
    },
    Recent {
        stream: String,
        sensor: Vec<u8>,
        window: u16,
    },
}

/// What came of parts on another node.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    accepted: u64,
    duplicate: u64,
    late: u64,
    stale: u64,
    /// Come again later, if that helps, and why.
    refused: Option<(bool, String)>,
    /// Partitions of which nothing was taken in.
    left: Vec<u32>,
    /// Those among them that the node does not own.
    moved: Vec<u32>,
}

/// Who owns a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This node, in this term.
    Here(Term),
    There(NodeId),
    /// Nobody now.
    Nobody,
}

/// Who owns a partition of a stream.
pub(super) fn owner(node: &Node, stream: &Stream, partition: u32) -> Owner {
    let Some(cluster) = node.cluster.get() else { return Owner::Here(Term(0)) };
    let topology = cluster.topology();
    // Streams that an earlier version made have no changelog.
    let spec = topology.caches.get(&*stream.state_cache);
    let Some(spec) = spec.or_else(|| topology.caches.get(&*stream.latest_cache)) else {
        return Owner::Nobody;
    };
    let place = Place { group: spec.group(), partition: PartitionId(partition) };
    let Some(state) = topology.partition(place) else { return Owner::Nobody };
    match state.primary {
        Some(primary) if primary == cluster.me => Owner::Here(state.term),
        Some(primary) => Owner::There(primary.node),
        None => Owner::Nobody,
    }
}

impl Streams {
    /// Has parts of a batch applied by their owners.
    pub(super) async fn apply_anywhere(
        &self,
        node: &Node,
        stream: &Arc<Stream>,
        producer: Arc<Producer>,
        mut parts: Vec<(u32, Part)>,
    ) -> Receipt {
        if node.cluster.get().is_none() {
            return self.apply_here(stream, producer, parts).await;
        }
        let mut receipt = Receipt::default();
        for attempt in 0..=MOVES_MAX {
            let mut here = Vec::new();
            let mut headless = Vec::new();
            let mut there: std::collections::BTreeMap<NodeId, Vec<(u32, Part)>> =
                Default::default();
            for part in parts.drain(..) {
                match owner(node, stream, part.0) {
                    Owner::Here(_) => here.push(part),
                    Owner::There(id) => there.entry(id).or_default().push(part),
                    Owner::Nobody => headless.push(part),
                }
            }
            let asks = there.into_iter().flat_map(|(id, parts)| {
                lots(parts).into_iter().map(move |lot| (id, lot)).collect::<Vec<_>>()
            });
            let asks: Vec<_> =
                asks.map(|(id, lot)| ask(node, stream, &producer, id, lot)).collect();
            let own = async {
                if here.is_empty() {
                    Receipt::default()
                } else {
                    self.apply_here(stream, Arc::clone(&producer), here).await
                }
            };
            let (mut own, others) = futures_util::future::join(own, join_all(asks)).await;
            parts = headless;
            // What was this node's when it was handed to the shard.
            let moved = |part: &(u32, Part)| !matches!(owner(node, stream, part.0), Owner::Here(_));
            if matches!(own.refused, Some(IngestError::Busy(_))) {
                let (moved, left) = std::mem::take(&mut own.left).into_iter().partition(moved);
                parts.extend::<Vec<_>>(moved);
                own.left = left;
                own.refused = own.refused.filter(|_| !own.left.is_empty());
            }
            receipt.add(own);
            for (other, moved) in others {
                receipt.add(other);
                parts.extend(moved);
            }
            if parts.is_empty() {
                return receipt;
            }
            if attempt < MOVES_MAX {
                time::sleep(MOVE_PAUSE).await;
            }
        }
        let text = "the owner of some sensors is just changing".to_owned();
        receipt.add(refuse_all(stream, parts, IngestError::Busy(text)));
        receipt
    }
}

/// Parts in lots of a bounded size.
fn lots(parts: Vec<(u32, Part)>) -> Vec<Vec<(u32, Part)>> {
    let (mut lots, mut lot, mut bytes) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        bytes += part.1.bytes();
        lot.push(part);
        if bytes >= CALL_BYTES_MAX {
            lots.push(std::mem::take(&mut lot));
            bytes = 0;
        }
    }
    if !lot.is_empty() {
        lots.push(lot);
    }
    lots
}

/// Asks a node to apply parts. Gives back what came of them, and those that are not the node's.
async fn ask(
    node: &Node,
    stream: &Stream,
    producer: &Producer,
    to: NodeId,
    parts: Vec<(u32, Part)>,
) -> (Receipt, Vec<(u32, Part)>) {
    let (stream, producer) = (stream.name.to_string(), producer.clone());
    let asked = Asked::Apply { stream, producer, parts: join(&parts) };
    let told: Told = match call(node, to, &asked).await {
        Ok(told) => told,
        // Nothing is known of them; a number makes another try safe.
        Err(reason) => {
            let refused = IngestError::Busy(format!("the owner of some sensors: {reason}"));
            return (Receipt { refused: Some(refused), ..Receipt::default() }, Vec::new());
        }
    };
    let mut receipt = Receipt {
        accepted: told.accepted,
        duplicate: told.duplicate,
        late: told.late,
        stale: told.stale,
        refused: told.refused.map(|(later, text)| {
            if later { IngestError::Busy(text) } else { IngestError::Refused(text) }
        }),
        ..Receipt::default()
    };
    let mut moved = Vec::new();
    for part in parts {
        if told.moved.contains(&part.0) {
            moved.push(part);
        } else if told.left.contains(&part.0) {
            receipt.left.push(part);
        }
    }
    (receipt, moved)
}

async fn call<A: serde::de::DeserializeOwned>(
    node: &Node,
    to: NodeId,
    asked: &Asked,
) -> Result<A, String> {
    let Some(cluster) = node.cluster.get() else { return Err("there is no cluster".to_owned()) };
    let body = rmp_serde::to_vec(asked).map_err(|error| error.to_string())?;
    let answer = cluster.call(to, CALL, body.into(), ANSWER_MAX).await?;
    rmp_serde::from_slice(&answer).map_err(|error| error.to_string())
}

/// Time and value of a sensor's latest reading, by the node that keeps it.
pub(super) async fn latest_there(
    node: &Node,
    stream: &Stream,
    to: NodeId,
    sensor: &[u8],
) -> Option<(i64, f64)> {
    let asked = Asked::Latest { stream: stream.name.to_string(), sensor: sensor.to_vec() };
    call(node, to, &asked).await.ok()?
}

/// Where results of a count or session window are, by the node that keeps that in mind.
pub(super) async fn recent_there(
    node: &Node,
    stream: &Stream,
    to: NodeId,
    sensor: &[u8],
    window: u16,
) -> Result<Vec<Recent>, String> {
    let stream = stream.name.to_string();
    let asked = Asked::Recent { stream, sensor: sensor.to_vec(), window };
    call(node, to, &asked).await
}

/// Answers what another node asks.
pub(crate) async fn answer(node: Arc<Node>, from: Caller, body: Bytes) -> Result<Bytes, Refused> {
    let asked: Asked = rmp_serde::from_slice(&body).map_err(|_| Refused::Malformed)?;
    drop(body);
    let name = match &asked {
        Asked::Apply { stream, .. }
        | Asked::Latest { stream, .. }
        | Asked::Recent { stream, .. } => stream,
    };
    // The table that has it may not have come here yet.
    let Some(stream) = node.streams.registry.get(name) else {
        tracing::debug!(from = %from.name, stream = %name, "asked for a stream that is not known");
        return Err(Refused::NotReady);
    };
    let answer = match asked {
        Asked::Apply { producer, parts, .. } => {
            let parts = disjoin(&parts).map_err(|_| Refused::Malformed)?;
            let is_mine =
                |part: &(u32, Part)| matches!(owner(&node, &stream, part.0), Owner::Here(_));
            let (mine, mut others): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_mine);
            let receipt = if mine.is_empty() {
                Receipt::default()
            } else {
                let (id, epoch, time) = (producer.id.clone(), producer.epoch, producer.time_max);
                let mut receipt = node.streams.apply_here(&stream, Arc::new(producer), mine).await;
                if matches!(receipt.refused, Some(IngestError::Busy(_))) {
                    let left = std::mem::take(&mut receipt.left);
                    let (left, moved): (Vec<_>, Vec<_>) = left.into_iter().partition(is_mine);
                    receipt.refused = receipt.refused.filter(|_| !left.is_empty());
                    receipt.left = left;
                    others.extend(moved);
                }
                if let Some(time) = time.filter(|_| receipt.refused.is_none()) {
                    stream.heard(&id, epoch, time);
                }
                receipt
            };
            let refused = receipt.refused.map(|error| match error {
                IngestError::Busy(text) => (true, text),
                IngestError::Refused(text) => (false, text),
                IngestError::Stopping => (true, "the node is stopping".to_owned()),
            });
            let told = Told {
                accepted: receipt.accepted,
                duplicate: receipt.duplicate,
                late: receipt.late,
                stale: receipt.stale,
                refused,
                left: receipt.left.iter().map(|(partition, _)| *partition).collect(),
                moved: others.iter().map(|(partition, _)| *partition).collect(),
            };
            rmp_serde::to_vec(&told)
        }
        Asked::Latest { sensor, .. } => {
            rmp_serde::to_vec(&latest_here(&node, &stream, &sensor).await)
        }
        Asked::Recent { sensor, window, .. } => {
            rmp_serde::to_vec(&recent_here(&node, &stream, &sensor, window).await)
        }
    };
    answer.map(Bytes::from).map_err(|_| Refused::Malformed)
}

#[cfg(test)]
mod tests {
    use kiln_stream::reading::{Batch, Reading};

    use super::*;

    fn part(partition: u32, readings: usize) -> (u32, Part) {
        let mut batch = Batch::new();
        for i in 0..readings {
            batch.push(Reading { sensor: b"sensor", time: i as i64, value: 1.0 }).unwrap();
        }
        (partition, batch.into())
    }

    #[test]
    fn lots_keep_every_part_once_and_are_bounded() {
        let parts: Vec<_> = (0..9).map(|partition| part(partition, 50_000)).collect();
        let lots = lots(parts.clone());
        assert!(lots.len() > 1);
        assert_eq!(lots.concat(), parts);
    }

    #[test]
    fn what_is_asked_survives_the_way() {
        let parts = vec![part(3, 2), part(4, 1)];
        let producer = Producer { id: "p".to_owned(), epoch: 1, ..Producer::default() };
        let asked = Asked::Apply {
            stream: "s".to_owned(),
            producer: producer.clone(),
            parts: join(&parts),
        };
        let bytes = rmp_serde::to_vec(&asked).unwrap();
        let read: Asked = rmp_serde::from_slice(&bytes).unwrap();
        let Asked::Apply { producer: back, parts: same, .. } = read else { panic!("another kind") };
        assert_eq!((back, disjoin(&same).unwrap()), (producer, parts));
    }
}
