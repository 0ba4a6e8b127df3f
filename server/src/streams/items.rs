//! Items of changelogs: under which keys they are, and how they are read and written.
//!
//! All items of a partition's changelog are in that partition of the stream's state cache: each key
//! ends in a number that makes it fall there, the smallest that does, so that every node finds the
//! same. To find one takes as many hashes as there are partitions, and those of all partitions not ten
//! times as many: those of slots are found together, and kept.

use std::{
    future::poll_fn,
    io::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use kiln_cluster::{
    effect::{self, Operation, StoreMode},
    ids::{Generation, Version},
    node::{Refusal, Reply},
    placement::partition_of,
};
use kiln_engine::{Store, Value};
use kiln_protocol::command::{self, Command, Delete, Get, ItemMeta, Outcome, Ttl};
use kiln_stream::changelog::{Expected, Name, RING};

use crate::{
    caches::Cache,
    cluster::{Asked, PATIENCE_MS},
    execute::{Sink, execute},
    node::Node,
};

/// Requests of one wave, and how many bytes they may carry about.
const WAVE_LEN_MAX: usize = 1_024;
const WAVE_BYTES_MAX: usize = 8 << 20;
/// Names whose numbers are kept: slots, head and marker.
const KEPT: usize = RING as usize + 2;

/// The numbers at the end of keys.
#[derive(Debug, Default)]
pub(super) struct Keys(OnceLock<Box<[AtomicU32]>>);

/// What is asked of an item.
#[derive(Debug)]
pub(super) enum Ask {
    Read,
    Write(Expected, Vec<u8>),
    Delete,
}

/// A request to an item of a changelog.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) partition: u32,
    pub(super) name: Name,
    pub(super) ask: Ask,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// Version and value.
    Found(u64, Vec<u8>),
    /// There is no such item; also: it was deleted.
    Missing,
    /// Under this version.
    Written(u64),
    /// The item is not as expected; nothing was written.
    Changed,
    /// Nothing was written: the cache is full.
    NoRoom,
    /// Nothing was done, and may be later.
    NotNow,
    /// Perhaps written.
    Unknown,
}

impl Keys {
    /// The key of an item of a partition.
    fn key(&self, partition: u32, partitions: u32, name: Name) -> Vec<u8> {
        let mut key = Vec::with_capacity(32);
        // Writing to a vector cannot fail.
        let place = match name {
            Name::Head => {
                key.push(b'h');
                Some(RING as usize)
            }
            Name::Marker => {
                key.push(b'm');
                Some(RING as usize + 1)
            }
            Name::Slot(slot) => {
                let _ = write!(key, "l{slot}");
                Some(usize::from(slot))
            }
            Name::Chunk { set, index } => {
                let _ = write!(key, "c{set:x}-{index}");
                None
            }
        };
        key.push(b'.');
        let len = key.len();
        let width = partitions as usize;
        let kept = self.0.get_or_init(|| (0..KEPT * width).map(|_| AtomicU32::new(0)).collect());
        let column = place.and_then(|place| kept.get(place * width..(place + 1) * width));
        let known = column.and_then(|column| column.get(partition as usize));
        if let (Some(column), Some(known)) = (column, known)
            && known.load(Relaxed) == 0
        {
            fill(column, &mut key, partitions);
        }
        let first = known.map_or(0, |known| known.load(Relaxed).saturating_sub(1));
        for number in first..u32::MAX {
            key.truncate(len);
            let _ = write!(key, "{number}");
            if partition_of(&key, partitions).0 == partition {
                break;
            }
        }
        key
    }
}

/// Finds the numbers of a name for all partitions at once; each is kept plus one.
fn fill(column: &[AtomicU32], key: &mut Vec<u8>, partitions: u32) {
    let len = key.len();
    let mut found = vec![0; column.len()];
    let mut missing = column.len();
    for number in 0..u32::MAX - 1 {
        if missing == 0 {
            break;
        }
        key.truncate(len);
        // Writing to a vector cannot fail.
        let _ = write!(key, "{number}");
        let place = partition_of(key, partitions).0 as usize;
        if let Some(place) = found.get_mut(place).filter(|place| **place == 0) {
            *place = number + 1;
            missing -= 1;
        }
    }
    // Another shard that is at it finds the same.
    for (place, number) in column.iter().zip(found) {
        place.store(number, Relaxed);
    }
    key.truncate(len);
}

/// Carries requests out and waits for all answers, which are in their order. Requests are of
/// different items.
pub(super) async fn carry_out(
    node: &Node,
    cache: &Arc<Cache>,
    requests: Vec<Request>,
) -> Vec<Answer> {
    let partitions = node.streams.partitions(node);
    let key =
        |request: &Request| node.streams.keys.key(request.partition, partitions, request.name);
    let Some(cluster) = node.cluster.get() else {
        return requests
            .iter()
            .map(|request| here(node, cache, &key(request), &request.ask))
            .collect();
    };
    if cache.is_direct_alone()
        && let Some(_inside) = cluster.gate().enter_as_guest()
    {
        return requests
            .iter()
            .map(|request| here(node, cache, &key(request), &request.ask))
            .collect();
    }
    let Some(known) = cache.cluster() else {
        return requests.iter().map(|_| Answer::NotNow).collect();
    };
    let mut waves = Vec::new();
    let (mut asked, mut bytes) = (Vec::new(), 0);
    for request in requests {
        let key = Bytes::from(key(&request));
        let operation = match request.ask {
            Ask::Read => Operation::Get { touch: None },
            Ask::Delete => Operation::Delete { compare: None },
            Ask::Write(expected, value) => {
                bytes += value.len();
                let (mode, compare) = match expected {
                    Expected::Absent => (StoreMode::Add, None),
                    Expected::Any => (StoreMode::Set, None),
                    Expected::Version(version) => (StoreMode::Set, Some(Version(version))),
                };
                Operation::Store { mode, value: value.into(), flags: 0, ttl: Ttl::Never, compare }
            }
        };
        // A loss is seen in what is missing.
        asked.push(Asked::new(known, key, operation, Generation(u64::MAX), PATIENCE_MS));
        if asked.len() >= WAVE_LEN_MAX || bytes >= WAVE_BYTES_MAX {
            waves.push(cluster.submit(std::mem::take(&mut asked)));
            bytes = 0;
        }
    }
    waves.push(cluster.submit(asked));
    let mut answers = Vec::new();
    for wave in waves {
        poll_fn(|task| wave.poll(task)).await;
        answers.extend(wave.take().into_iter().map(answer));
    }
    answers
}

fn answer(reply: Reply) -> Answer {
    use effect::Outcome;
    match reply {
        Reply::Done(outcome) => match outcome {
            Outcome::Hit(item) => Answer::Found(item.version.0, item.value.into()),
            Outcome::Stored(version) => Answer::Written(version.0),
            Outcome::NotStored | Outcome::Exists => Answer::Changed,
            Outcome::NotFound | Outcome::Lost(_) | Outcome::Deleted => Answer::Missing,
            Outcome::OutOfMemory => Answer::NoRoom,
            _ => Answer::NotNow,
        },
        Reply::NotApplied(Refusal::OutOfMemory) => Answer::NoRoom,
        Reply::NotApplied(_) => Answer::NotNow,
        Reply::Indeterminate => Answer::Unknown,
    }
}

/// In the store of this node.
fn here(node: &Node, cache: &Cache, key: &[u8], ask: &Ask) -> Answer {
    let command = match ask {
        Ask::Read => Command::Get(Get { no_bump: true, ..Get::plain(key) }),
        Ask::Delete => Command::Delete(Delete::plain(key)),
        Ask::Write(expected, value) => {
            let (mode, compare) = match *expected {
                Expected::Absent => (command::StoreMode::Add, None),
                Expected::Any => (command::StoreMode::Set, None),
                Expected::Version(version) => (command::StoreMode::Set, Some(version)),
            };
            let set = command::Store::set(key, value);
            Command::Store(command::Store { mode, compare, ..set })
        }
    };
    let mut answer = Answer::NotNow;
    execute(cache, &command, Store::hash(key), node.clock.now_ms(), Take(&mut answer));
    answer
}

struct Take<'a>(&'a mut Answer);

impl Sink for Take<'_> {
    fn hit(self, item: &ItemMeta, value: Value<'_>) {
        let value = match value {
            Value::Inline(bytes) => bytes.to_vec(),
            Value::Large(pinned) => {
                let mut bytes = Vec::with_capacity(item.value_len);
                for piece in pinned.slices() {
                    bytes.extend_from_slice(piece);
                }
                bytes
            }
        };
        *self.0 = Answer::Found(item.version, value);
    }

    fn outcome(self, outcome: &Outcome) {
        *self.0 = match outcome {
            Outcome::Stored(item) => Answer::Written(item.version),
            Outcome::NotStored | Outcome::Exists => Answer::Changed,
            Outcome::NotFound | Outcome::Lost | Outcome::Deleted => Answer::Missing,
            Outcome::OutOfMemory => Answer::NoRoom,
            _ => Answer::NotNow,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_changelog_fall_in_its_partition_and_differ() {
        let keys = Keys::default();
        for partition in [0, 5, 1_023] {
            let names = (0..RING as u16).map(Name::Slot).chain([Name::Head, Name::Marker]);
            let names = names.chain((0..3).map(|index| Name::Chunk { set: 77, index }));
            let mut all: Vec<_> = names.map(|name| keys.key(partition, 1_024, name)).collect();
            assert!(all.iter().all(|key| partition_of(key, 1_024).0 == partition));
            // Found again by what is kept, and by a node that knows nothing.
            assert_eq!(keys.key(partition, 1_024, Name::Slot(3)), all[3]);
            assert_eq!(Keys::default().key(partition, 1_024, Name::Slot(3)), all[3]);
            let len = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), len);
        }
    }
}
