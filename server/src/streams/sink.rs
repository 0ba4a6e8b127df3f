//! Effects to items: latest values, window results.
//!
//! A node that is alone writes to its stores at once. Otherwise writes go through the replication
//! core, in waves: one at a time per shard, so that two writes of a key keep their order. A write
//! that nobody could carry out is kept, and tried again, until it is done or a later one of the same
//! key takes its place; there is room for [`UNWRITTEN_MAX`] of them, and before it is full the
//! shard takes no more readings. Of several writes of a key that wait together only the last is done:
//! requests of a wave may be carried out in any order.
//!
//! Latest values wait a moment while more readings do: the next batch brings most sensors another, and
//! a write on several nodes costs more than all readings of its sensor do. Window results never wait.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln_cluster::{effect, node::Reply};
use kiln_engine::{Store, Value};
use kiln_protocol::command::{self, Command, Delete, ItemMeta, Outcome, Ttl};

use super::render;
use crate::{
    caches::Cache,
    cluster::{self, Asked, Cluster, PATIENCE_MS},
    execute::{Sink as Answer, execute},
    node::Node,
};

/// Writes that wait to be tried again, per shard.
const UNWRITTEN_MAX: usize = 65_536;
/// Latest values that wait for later ones, per shard.
const LATEST_WAITING_MAX: usize = 32_768;
/// How long they do.
const LATEST_WAIT_MAX: Duration = Duration::from_millis(500);
/// Requests of one wave.
const WAVE_LEN_MAX: usize = 1_024;
/// Writes tried again in one look.
const RETRIES_MAX: usize = 2_048;

/// The writes of one shard.
pub(super) struct Sink {
    node: Arc<Node>,
    pending: Vec<Write>,
    /// Where in `pending` a key is.
    places: HashMap<(u32, Bytes), usize>,
    /// Latest values that may wait for later ones, by cache and key.
    latest: HashMap<u32, HashMap<Bytes, Latest>>,
    latest_len: usize,
    /// Since when the first of them waits.
    latest_since: Option<Instant>,
    /// Memory used again from value to value.
    text: String,
    /// The partition whose results are just written.
    of: (u64, u32),
    unwritten: BTreeMap<(u32, Bytes), Write>,
    lost: u64,
}

/// A write that could not be done at once.
struct Write {
    cache: Arc<Cache>,
    key: Bytes,
    /// `None` deletes.
    value: Option<Bytes>,
    ttl: Ttl,
    /// The partition of a stream that it follows from.
    of: (u64, u32),
}

/// A latest value that may wait for a later one.
struct Latest {
    cache: Arc<Cache>,
    value: f64,
    /// The partition of a stream that it follows from.
    of: (u64, u32),
}

impl Sink {
    /// Nothing to write yet.
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            pending: Vec::new(),
            places: HashMap::new(),
            latest: HashMap::new(),
            latest_len: 0,
            latest_since: None,
            text: String::new(),
            of: (0, 0),
            unwritten: BTreeMap::new(),
            lost: 0,
        }
    }

    /// What is written next follows from records of this partition of a stream.
    pub(super) fn now_of(&mut self, stream: u64, partition: u32) {
        self.of = (stream, partition);
    }

    /// Partitions of a stream are another node's: it writes what waits of them, and may already have
    /// written what comes after it.
    pub(super) fn forget(&mut self, stream: u64, partitions: &[u32]) {
        if !partitions.is_empty() {
            let gone = |of: (u64, u32)| of.0 == stream && partitions.contains(&of.1);
            self.unwritten.retain(|_, write| !gone(write.of));
            self.take_latest(gone);
        }
    }

    /// Takes a write in for the next wave.
    fn wait(&mut self, write: Write) {
        match self.places.entry((write.cache.id, write.key.clone())) {
            Entry::Occupied(place) => self.pending[*place.get()] = write,
            Entry::Vacant(place) => {
                place.insert(self.pending.len());
                self.pending.push(write);
            }
        }
    }

    /// Whether more readings may come: what follows from them must have room to wait.
    pub(super) fn has_room(&self) -> bool {
        self.unwritten.len() < UNWRITTEN_MAX / 2
    }

    /// Writes that wait.
    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten.len() as u64
    }

    /// Writes given up since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Writes an item; at once with `directly`, when the stores are this node's alone.
    pub(super) fn set(
        &mut self,
        directly: bool,
        cache: &Arc<Cache>,
        key: &[u8],
        value: &[u8],
        ttl: Ttl,
        now_ms: u64,
    ) {
        if directly && may_be_direct(&self.node, cache) {
            let command = Command::Store(command::Store { ttl, ..command::Store::set(key, value) });
            let done = here(cache, &command, key, now_ms);
            if done == Done::Yes && self.unwritten.is_empty() {
                return;
            }
            let of = self.of;
            self.note(done, || Write {
                cache: Arc::clone(cache),
                key: Bytes::copy_from_slice(key),
                value: Some(Bytes::copy_from_slice(value)),
                ttl,
                of,
            });
            return;
        }
        self.wait(Write {
            cache: Arc::clone(cache),
            key: Bytes::copy_from_slice(key),
            value: Some(Bytes::copy_from_slice(value)),
            ttl,
            of: self.of,
        });
    }

    /// Writes the latest value of a sensor; on one node of several it may wait for a later one, see
    /// [`Sink::flush_while`].
    pub(super) fn set_latest(
        &mut self,
        directly: bool,
        cache: &Arc<Cache>,
        sensor: &[u8],
        value: f64,
        now_ms: u64,
    ) {
        if directly && may_be_direct(&self.node, cache) {
            let mut text = std::mem::take(&mut self.text);
            text.clear();
            render::number(&mut text, value);
            self.set(directly, cache, sensor, text.as_bytes(), Ttl::Default, now_ms);
            self.text = text;
            return;
        }
        let of_cache = self.latest.entry(cache.id).or_default();
        if let Some(latest) = of_cache.get_mut(sensor) {
            (latest.value, latest.of) = (value, self.of);
            return;
        }
        let latest = Latest { cache: Arc::clone(cache), value, of: self.of };
        of_cache.insert(Bytes::copy_from_slice(sensor), latest);
        self.latest_len += 1;
        self.latest_since.get_or_insert_with(Instant::now);
    }

    /// Latest values that wait, out of the waiting.
    fn take_latest(&mut self, which: impl Fn((u64, u32)) -> bool) -> Vec<Write> {
        let mut taken = Vec::new();
        for of_cache in self.latest.values_mut() {
            for (key, latest) in of_cache.extract_if(|_, latest| which(latest.of)) {
                self.text.clear();
                render::number(&mut self.text, latest.value);
                let value = Some(Bytes::copy_from_slice(self.text.as_bytes()));
                let Latest { cache, of, .. } = latest;
                taken.push(Write { cache, key, value, ttl: Ttl::Default, of });
            }
        }
        self.latest.retain(|_, of_cache| !of_cache.is_empty());
        self.latest_len -= taken.len();
        if self.latest_len == 0 {
            self.latest_since = None;
        }
        taken
    }

    /// Deletes an item.
    pub(super) fn delete(&mut self, directly: bool, cache: &Arc<Cache>, key: &[u8], now_ms: u64) {
        let write = Write {
            cache: Arc::clone(cache),
            key: Bytes::copy_from_slice(key),
            value: None,
            ttl: Ttl::Default,
            of: self.of,
        };
        if directly && may_be_direct(&self.node, cache) {
            let done = here(cache, &Command::Delete(Delete::plain(key)), key, now_ms);
            self.note(done, || write);
        } else {
            self.wait(write);
        }
    }

    /// A result had no cache to go to.
    pub(super) fn lose(&mut self) {
        self.lost += 1;
    }

    /// What came of a write: a later one takes the place of one that waits.
    fn note(&mut self, done: Done, write: impl FnOnce() -> Write) {
        let write = write();
        let name = (write.cache.id, write.key.clone());
        match done {
            Done::Yes => drop(self.unwritten.remove(&name)),
            Done::Never => {
                self.unwritten.remove(&name);
                self.lost += 1;
            }
            Done::Later if self.unwritten.len() < UNWRITTEN_MAX => {
                self.unwritten.insert(name, write);
            }
            // Readings were refused long before; only what was under way can come to this.
            Done::Later => self.lost += 1,
        }
    }

    /// Carries out what has to go through the replication core. While more readings wait, latest
    /// values that have not waited for long wait for them.
    pub(super) async fn flush_while(&mut self, more_come: bool) {
        let waited = self.latest_since.is_some_and(|since| since.elapsed() >= LATEST_WAIT_MAX);
        if more_come && !waited && self.latest_len < LATEST_WAITING_MAX {
            self.flush_pending().await;
        } else {
            self.flush().await;
        }
    }

    /// Carries out what waits of partitions of a stream.
    pub(super) async fn flush_of(&mut self, stream: u64, partitions: &[u32]) {
        let wanted = |of: (u64, u32)| of.0 == stream && partitions.contains(&of.1);
        for write in self.take_latest(wanted) {
            self.wait(write);
        }
        self.flush_pending().await;
    }

    /// Carries out all that waits.
    pub(super) async fn flush(&mut self) {
        for write in self.take_latest(|_| true) {
            self.wait(write);
        }
        self.flush_pending().await;
    }

    async fn flush_pending(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        self.places.clear();
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(WAVE_LEN_MAX));
            let dones = carry_out(&self.node, &pending).await;
            for (write, done) in pending.into_iter().zip(dones) {
                self.note(done, || write);
            }
            pending = rest;
        }
    }

    /// Tries writes that wait again.
    pub(super) async fn retry(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let names: Vec<_> = self.unwritten.keys().take(RETRIES_MAX).cloned().collect();
        let writes: Vec<_> = names.iter().filter_map(|name| self.unwritten.remove(name)).collect();
        writes.into_iter().for_each(|write| self.wait(write));
        self.flush().await;
    }
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Yes,
    /// Another try may do it.
    Later,
    /// It will fail the same way.
    Never,
}

/// Whether the store of a cache may be written by this node alone, if the gate lets it in.
fn may_be_direct(node: &Node, cache: &Cache) -> bool {
    node.cluster.get().is_none() || cache.is_direct_alone()
}

/// Writes to the store of this node.
fn here(cache: &Cache, command: &Command<'_>, key: &[u8], now_ms: u64) -> Done {
    let mut done = Done::Later;
    execute(cache, command, Store::hash(key), now_ms, Take(&mut done));
    done
}

struct Take<'a>(&'a mut Done);

impl Answer for Take<'_> {
    fn hit(self, _: &ItemMeta, _: Value<'_>) {}

    fn outcome(self, outcome: &Outcome) {
        *self.0 = match outcome {
            Outcome::Stored(_) | Outcome::Deleted | Outcome::NotFound => Done::Yes,
            Outcome::TooLarge => Done::Never,
            _ => Done::Later,
        };
    }
}

/// Carries out writes and waits for all of them.
async fn carry_out(node: &Node, writes: &[Write]) -> Vec<Done> {
    let now_ms = node.clock.now_ms();
    let cluster = node.cluster.get();
    let mut dones = vec![Done::Later; writes.len()];
    let mut asked = Vec::new();
    let mut places = Vec::new();
    for (place, write) in writes.iter().enumerate() {
        let command = match &write.value {
            Some(value) => Command::Store(command::Store {
                ttl: write.ttl,
                ..command::Store::set(&write.key, value)
            }),
            None => Command::Delete(Delete::plain(&write.key)),
        };
        let Some(cluster) = cluster else {
            dones[place] = here(&write.cache, &command, &write.key, now_ms);
            continue;
        };
        // A retry of a node that is still alone.
        if write.cache.is_direct_alone()
            && let Some(_inside) = cluster.gate().enter_as_guest()
        {
            dones[place] = here(&write.cache, &command, &write.key, now_ms);
            continue;
        }
        match ask(cluster, write, &command, now_ms) {
            Some(one) => {
                asked.push(one);
                places.push(place);
            }
            None if is_dropped(node, &write.cache) => dones[place] = Done::Never,
            None => {}
        }
    }
    if let Some(cluster) = cluster.filter(|_| !asked.is_empty()) {
        let wave = cluster.submit(asked);
        poll_fn(|task| wave.poll(task)).await;
        for (place, reply) in places.into_iter().zip(wave.take()) {
            dones[place] = match reply {
                Reply::Done(
                    effect::Outcome::Stored(_)
                    | effect::Outcome::Deleted
                    | effect::Outcome::NotFound
                    | effect::Outcome::Lost(_),
                ) => Done::Yes,
                Reply::Done(effect::Outcome::TooLarge) => Done::Never,
                _ if is_dropped(node, &writes[place].cache) => Done::Never,
                _ => Done::Later,
            };
        }
    }
    dones
}

fn is_dropped(node: &Node, cache: &Cache) -> bool {
    !node.caches.load().iter().any(|one| one.id == cache.id)
}

fn ask(cluster: &Cluster, write: &Write, command: &Command<'_>, now_ms: u64) -> Option<Asked> {
    let known = write.cache.cluster()?;
    let operation = cluster::operation(command).ok()?;
    let place = known.place(cluster, Store::hash(&write.key));
    let seen = cluster.generation_at(place, now_ms);
    Some(Asked::new(known, write.key.clone(), operation, seen, PATIENCE_MS))
}
