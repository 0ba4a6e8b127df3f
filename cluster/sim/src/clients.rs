//! The load: a few clients, each with one call at a time, on a few keys, with retries.
//!
//! A call keeps its request id over all attempts and ends with an answer, with the certainty that
//! nothing happened, or without certainty. Clients guess the primary from the agreed table, follow
//! hints, and now and then ask somebody else.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_cluster::effect::{Direction, ItemKey, Operation, Outcome, StoreMode, Ttl};
use kiln_cluster::ids::{ClientId, Generation, NodeId, Place, RequestId, Version};
use kiln_cluster::node::Request;

use crate::history::CallId;
use crate::profile::CACHE;
use crate::queue::{MS, SECOND, Time};
use crate::rng::Rng;

/// Calls on one key before it is retired: what the independent checker takes, less the few that are
/// open at that moment.
const CALLS_PER_KEY_MAX: u32 = 280;

/// What keys of counters begin with.
const COUNTER_PREFIX: &[u8] = b"count-";

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub number: u32,
    /// Its next request counter.
    counter: u64,
    /// The call it waits for.
    pub open: Option<OpenCall>,
    /// Versions it saw, for compare-and-set.
    seen: BTreeMap<ItemKey, Version>,
    /// Generations it was told.
    pub generations: BTreeMap<Place, Generation>,
}

/// A call under way.
#[derive(Debug)]
pub struct OpenCall {
    /// Its place in the history.
    pub id: CallId,
    /// What is sent, the same at each attempt.
    pub request: Request,
    /// Attempts so far.
    pub attempts: u32,
    /// An attempt may have taken effect without an answer.
    pub uncertain: bool,
    /// Whom to ask next, as the last refusal said.
    pub hint: Option<NodeId>,
    /// Numbers the retries, so that an overtaken one is not made.
    pub retries_wanted: u32,
    /// No attempt begins after this.
    pub give_up_at: Time,
}

/// All clients, and the keys in use.
#[derive(Debug)]
pub struct Clients {
    rng: Rng,
    /// The clients, by number.
    pub all: Vec<Client>,
    keys: Vec<KeyInUse>,
    keys_made: u32,
    ttl_share: f64,
    padding: usize,
}

#[derive(Debug)]
struct KeyInUse {
    key: ItemKey,
    counter: bool,
    calls: u32,
}

impl Clients {
    /// So many clients on so many keys.
    pub fn new(rng: Rng, clients: u32, keys: u32, ttl_share: f64, padding: usize) -> Self {
        let all = (0..clients)
            .map(|number| Client {
                number,
                counter: 0,
                open: None,
                seen: BTreeMap::new(),
                generations: BTreeMap::new(),
            })
            .collect();
        let mut clients = Self { rng, all, keys: Vec::new(), keys_made: 0, ttl_share, padding };
        for number in 0..keys {
            let counter = number % 3 == 2;
            let key = clients.new_key(counter);
            clients.keys.push(key);
        }
        clients
    }

    /// Draws the next operation of a client: its key and what is asked.
    pub fn draw(&mut self, client: u32) -> (ItemKey, Operation) {
        let slot = self.rng.below(self.keys.len() as u64) as usize;
        if self.keys[slot].calls >= CALLS_PER_KEY_MAX {
            self.keys[slot] = self.new_key(self.keys[slot].counter);
        }
        self.keys[slot].calls += 1;
        let (key, counter) = (self.keys[slot].key.clone(), self.keys[slot].counter);
        let operation = if counter { self.draw_count() } else { self.draw_value(client, &key) };
        (key, operation)
    }

    /// One write to each key in use: what must succeed after the heal.
    pub fn probes(&mut self) -> Vec<ItemKey> {
        self.keys.iter().map(|key| key.key.clone()).collect()
    }

    /// The operation of a probe.
    pub fn probe(&mut self, key: &ItemKey) -> Operation {
        let value = match key.key.starts_with(COUNTER_PREFIX) {
            true => Bytes::from_static(b"1000"),
            false => self.value(0),
        };
        let (mode, ttl) = (StoreMode::Set, Ttl::Never);
        Operation::Store { mode, value, flags: 0, ttl, compare: None }
    }

    /// The request for an operation of a client, with an id if it may change something.
    pub fn request(
        &mut self,
        client: u32,
        key: ItemKey,
        place: Place,
        operation: Operation,
    ) -> Request {
        let client = &mut self.all[client as usize];
        client.counter += 1;
        let reads = operation == Operation::Get { touch: None };
        let id =
            RequestId { client: ClientId(u64::from(client.number) + 1), counter: client.counter };
        let seen = client.generations.get(&place).copied().unwrap_or_default();
        Request { id: (!reads).then_some(id), key, operation, seen }
    }

    /// A client learns from an answer.
    pub fn learn(&mut self, client: u32, key: &ItemKey, place: Place, outcome: &Outcome) {
        let client = &mut self.all[client as usize];
        match outcome {
            Outcome::Hit(item) => {
                client.seen.insert(key.clone(), item.version);
            }
            Outcome::Stored(version) | Outcome::Number(_, version) => {
                client.seen.insert(key.clone(), *version);
            }
            Outcome::Lost(generation) => {
                client.generations.insert(place, *generation);
            }
            _ => {}
        }
    }

    /// How long a client waits before its next call.
    pub fn think(&mut self, mean: Time) -> Time {
        self.rng.wait(mean as f64) as Time
    }

    /// How long a client waits for an attempt.
    pub fn patience(&mut self) -> Time {
        *self.rng.pick(&[50 * MS, 300 * MS, SECOND, 3 * SECOND])
    }

    /// How long a call goes on with attempts.
    pub fn give_up_after(&mut self) -> Time {
        *self.rng.pick(&[SECOND, 4 * SECOND, 10 * SECOND])
    }

    /// A draw with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.rng.chance(probability)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        self.rng.pick(items)
    }

    /// Pads a value, as [`draw`](Self::draw) does: the mark is unique within the run.
    fn value(&mut self, client: u32) -> Bytes {
        let counter = self.all[client as usize].counter;
        let padding = self.rng.below(self.padding as u64 + 1) as usize;
        Bytes::from(format!("{client}.{counter}{:x>padding$};", ""))
    }

    fn new_key(&mut self, counter: bool) -> KeyInUse {
        let number = self.keys_made;
        self.keys_made += 1;
        let name = if counter {
            format!("{}{number}", String::from_utf8_lossy(COUNTER_PREFIX))
        } else {
            format!("key-{number}")
        };
        KeyInUse { key: ItemKey { cache: CACHE, key: Bytes::from(name) }, counter, calls: 0 }
    }

    fn draw_count(&mut self) -> Operation {
        let arithmetic = |direction, delta, create| Operation::Arithmetic {
            direction,
            delta,
            compare: None,
            create,
            touch: None,
        };
        match self.rng.weighted(&[60, 25, 6, 2]) {
            0 => arithmetic(Direction::Increment, 1, Some((Ttl::Never, 1))),
            1 => Operation::Get { touch: None },
            2 => arithmetic(Direction::Decrement, 1, None),
            _ => Operation::Delete { compare: None },
        }
    }

    fn draw_value(&mut self, client: u32, key: &ItemKey) -> Operation {
        let value = self.value(client);
        let seen = self.all[client as usize].seen.get(key).copied();
        let ttl = self.draw_ttl();
        let store = |mode, compare| Operation::Store {
            mode,
            value: value.clone(),
            flags: value.len() as u32,
            ttl,
            compare,
        };
        match (self.rng.weighted(&[32, 3, 20, 6, 6, 6, 3, 14, 8, 4]), seen) {
            (1, _) => Operation::Get { touch: Some(ttl) },
            (2, _) => store(StoreMode::Set, None),
            (3, _) => store(StoreMode::Add, None),
            (4, _) => store(StoreMode::Replace, None),
            (5, _) => store(StoreMode::Append, None),
            (6, _) => store(StoreMode::Prepend, None),
            (7, Some(version)) => store(StoreMode::Set, Some(version)),
            (8, _) => Operation::Delete { compare: None },
            (9, _) => Operation::Touch { ttl },
            _ => Operation::Get { touch: None },
        }
    }

    fn draw_ttl(&mut self) -> Ttl {
        if !self.rng.chance(self.ttl_share) {
            return Ttl::Never;
        }
        match self.rng.weighted(&[20, 1]) {
            0 => Ttl::After(*self.rng.pick(&[20, 200, 1_000, 3_000, 10_000])),
            _ => Ttl::Expired,
        }
    }
}
