//! The one door to items for front ends that can wait: HTTP, and what is built on it.
//!
//! [`perform`] takes the same [`Command`] as `execute` and gives back what it finds as a value of
//! its own: a future may be suspended between the answer and its last byte, so nothing can be
//! borrowed from the store. A small value is copied once; a large one stays pinned where it is.
//!
//! A node alone answers at once. Where other nodes have a say, the answer may take a while, and may
//! be one of the three that only a cluster gives: [`Outcome::NotApplied`],
//! [`Outcome::Indeterminate`] and [`Outcome::Lost`].

use std::{future::poll_fn, ops::Range, sync::Arc};

use bytes::Bytes;
use kiln_cluster::node::Reply;
use kiln_engine::{ItemInfo, PinnedValue, Store, Value};
use kiln_protocol::{
    command::{Command, Get, ItemMeta, Outcome, Reason},
    native,
};

use crate::{
    caches::Cache,
    cluster::{self, Asked, Cluster, PATIENCE_MS},
    execute::{Sink, execute, meta, read_directly},
    native::scan::{self, Lens, Page},
    node::Node,
};

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Performed {
    /// The answer.
    pub(crate) outcome: Outcome,
    /// The value, with [`Outcome::Hit`] only.
    pub(crate) value: Option<OwnedValue>,
}

/// A value that outlives the look into the store.
#[derive(Debug)]
pub(crate) enum OwnedValue {
    /// Copied.
    Copied(Bytes),
    /// Where it is in the store, which cannot give its memory to others meanwhile.
    Pinned(PinnedValue),
}

impl OwnedValue {
    /// The bytes of a range, which must lie within the value.
    pub(crate) fn copy(&self, range: Range<usize>) -> Bytes {
        match self {
            Self::Copied(bytes) => bytes.slice(range),
            Self::Pinned(pinned) => {
                let mut copy = Vec::with_capacity(range.len());
                let mut at = 0;
                for piece in pinned.slices() {
                    let (from, to) = (range.start.max(at), range.end.min(at + piece.len()));
                    if from < to {
                        copy.extend_from_slice(&piece[from - at..to - at]);
                    }
                    at += piece.len();
                    if at >= range.end {
                        break;
                    }
                }
                copy.into()
            }
        }
    }
}

/// Carries out a command on a cache of this cluster. Dropped while it waits, a write may still
/// happen.
pub(crate) async fn perform(node: &Node, cache: &Arc<Cache>, command: Command<'_>) -> Performed {
    let hash = Store::hash(command.key());
    if matches!(command, Command::Get(get) if !get.no_bump) {
        cache.curve.count(1);
        cache.curve.read(hash);
    }
    if let Some(cluster) = node.cluster.get() {
        let performed = at_once(node, cluster, cache, &command, hash);
        return match performed {
            Some(performed) => performed,
            None => together(node, cluster, cache, &command, hash).await,
        };
    }
    here(node, cache, &command, hash)
}

/// In the store of this node.
fn here(node: &Node, cache: &Cache, command: &Command<'_>, hash: u64) -> Performed {
    let mut performed = None;
    execute(cache, command, hash, node.clock.now_ms(), Take(&mut performed));
    // The sink is called exactly once; should it ever not be, nothing is known.
    performed.unwrap_or(Performed { outcome: Outcome::Indeterminate, value: None })
}

/// In the store of this node, if it may do so alone.
fn at_once(
    node: &Node,
    cluster: &Cluster,
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
) -> Option<Performed> {
    if cache.is_direct_alone()
        && let Some(_inside) = cluster.gate().enter_as_guest()
    {
        return Some(here(node, cache, command, hash));
    }
    let mut performed = None;
    let misses = !cluster.has_losses();
    let sink = Take(&mut performed);
    read_directly(cluster, cache, command, hash, node.clock.now_ms(), misses, sink);
    performed
}

/// By the replication core.
async fn together(
    node: &Node,
    cluster: &Cluster,
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
) -> Performed {
    let refused = |reason| Performed { outcome: Outcome::NotApplied(reason), value: None };
    let Some(known) = cache.cluster() else { return refused(Reason::NotReady) };
    let operation = match cluster::operation(command) {
        Ok(operation) => operation,
        Err(reason) => return refused(reason),
    };
    let place = known.place(cluster, hash);
    // A request that stands alone has not heard of any loss but those before it.
    let seen = cluster.generation_at(place, node.clock.now_ms());
    let key = Bytes::copy_from_slice(command.key());
    let asked = Asked::new(known, key, operation, seen, PATIENCE_MS);
    let wave = cluster.submit(vec![asked]);
    poll_fn(|task| wave.poll(task)).await;
    let reply = wave.take().pop().unwrap_or(Reply::Indeterminate);
    let answer = cluster::answer(reply, command, node.clock.now_ms());
    let value = matches!(answer.outcome, Outcome::Hit(_)).then_some(answer.value);
    Performed { outcome: answer.outcome, value: value.map(OwnedValue::Copied) }
}

/// Whether there is an item, without counting as a use of it. An answer to a question asked a
/// moment ago: by now it may be another.
pub(crate) async fn is_there(node: &Node, cache: &Arc<Cache>, key: &[u8]) -> bool {
    let peek = || cache.store.peek(key, Store::hash(key), node.clock.now_ms()).is_some();
    match node.cluster.get() {
        None => return peek(),
        Some(cluster) if cache.is_direct_alone() => {
            if let Some(_inside) = cluster.gate().enter_as_guest() {
                return peek();
            }
        }
        Some(_) => {}
    }
    let get = Command::Get(Get { no_bump: true, ..Get::plain(key) });
    matches!(perform(node, cache, get).await.outcome, Outcome::Hit(_))
}

/// A sink that keeps what it is given.
struct Take<'a>(&'a mut Option<Performed>);

impl Sink for Take<'_> {
    fn hit(self, item: &ItemMeta, value: Value<'_>) {
        let value = match value {
            Value::Inline(bytes) => OwnedValue::Copied(Bytes::copy_from_slice(bytes)),
            Value::Large(pinned) => OwnedValue::Pinned(pinned),
        };
        *self.0 = Some(Performed { outcome: Outcome::Hit(*item), value: Some(value) });
    }

    fn outcome(self, outcome: &Outcome) {
        *self.0 = Some(Performed { outcome: *outcome, value: None });
    }
}

/// What a step through a cache asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanStep<'a> {
    /// Where the step before ended.
    pub(crate) cursor: Option<&'a [u8]>,
    /// Only keys that begin so.
    pub(crate) prefix: &'a [u8],
    /// About so many items.
    pub(crate) limit: usize,
    /// With their values, as far as there is room.
    pub(crate) values: bool,
    /// Bytes of keys and values together.
    pub(crate) room: usize,
}

/// What a step found.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// The items, in no order.
    pub(crate) items: Vec<ScannedItem>,
    /// Where to go on; `None` at the end.
    pub(crate) cursor: Option<Vec<u8>>,
}

/// An item that a step found.
#[derive(Debug)]
pub(crate) struct ScannedItem {
    /// Its key.
    pub(crate) key: Bytes,
    /// What is known of it.
    pub(crate) meta: ItemMeta,
    /// Its value, when that was asked for and there was room.
    pub(crate) value: Option<Bytes>,
}

/// The cursor is of another cache, or of one that was dropped, or none of ours.
#[derive(Debug)]
pub(crate) struct BadCursor;

/// Makes a step through a cache. What is there from the first step to the last is told at least
/// once.
pub(crate) async fn scan(
    node: &Node,
    cache: &Arc<Cache>,
    step: &ScanStep<'_>,
) -> Result<Scanned, BadCursor> {
    let now_ms = node.clock.now_ms();
    let scan = native::Scan {
        cache: native::CacheRef::Handle(native::DEFAULT_CACHE),
        cursor: step.cursor,
        limit: u32::try_from(step.limit).unwrap_or(u32::MAX),
        prefix: step.prefix,
        values: step.values,
    };
    let mut page = Page::default();
    let lens = Lens::of(node, cache, now_ms);
    let cursor = scan::step(cache, &scan, &mut page, step.room, &lens).ok_or(BadCursor)?;
    let (bytes, found) = page.into_items();
    let bytes = Bytes::from(bytes);
    let item = |(key, info, value): (Range<usize>, ItemInfo, Option<Range<usize>>)| ScannedItem {
        key: bytes.slice(key),
        meta: meta(&info, now_ms),
        value: value.map(|value| bytes.slice(value)),
    };
    let cursor = cursor.map(|cursor| cursor.to_vec());
    Ok(Scanned { items: found.map(item).collect(), cursor })
}
