//! A store that holds no bytes: a policy, its entries' words, and a capacity.
//!
//! The hit ratio bench and the tests of the policies run on this, so what they measure and prove
//! is the very code that the store runs. Keys are small numbers, a slot each, so an access costs
//! little more than the policy itself.

use super::{EvictionPolicy, Nodes, Policy, PolicyKind, Slot};

/// See the head of this file.
#[derive(Debug)]
pub struct Simulation {
    policy: Policy,
    entries: Entries,
    capacity: u64,
    weight: u64,
}

impl Simulation {
    /// An empty store for entries of `capacity` weight together.
    pub fn new(kind: PolicyKind, capacity: u64) -> Self {
        Self { policy: Policy::new(kind), entries: Entries::default(), capacity, weight: 0 }
    }

    /// Reads `key`, and on a miss stores it with weight 1. True on a hit.
    pub fn access(&mut self, key: u32) -> bool {
        self.access_weighted(key, 1)
    }

    /// Reads `key`, and on a miss stores it if `weight` can be made room for. True on a hit, for
    /// which the weight given is ignored.
    pub fn access_weighted(&mut self, key: u32, weight: u32) -> bool {
        let slot = key + 1;
        let hash = hash(key);
        if self.entries.is_live(slot) {
            self.policy.on_hit(&mut self.entries, slot, hash);
            return true;
        }
        while self.weight + u64::from(weight) > self.capacity {
            let Some(victim) = self.policy.evict(&mut self.entries) else { return false };
            self.weight -= u64::from(self.entries.take(victim));
        }
        self.entries.put(slot, hash, weight);
        self.weight += u64::from(weight);
        self.policy.on_insert(&mut self.entries, slot, hash);
        false
    }

    /// Deletes `key`. True if it was there.
    pub fn remove(&mut self, key: u32) -> bool {
        let slot = key + 1;
        if !self.entries.is_live(slot) {
            return false;
        }
        self.policy.on_remove(&mut self.entries, slot);
        self.weight -= u64::from(self.entries.take(slot));
        true
    }

    /// The policy as it stands.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Sum of the weights of what is stored.
    pub fn weight(&self) -> u64 {
        self.weight
    }
}

/// The words of entries in plain memory, by slot.
#[derive(Debug, Default)]
pub struct Entries(Vec<Entry>);

impl Entries {
    /// Makes `slot` live. Its words are what they were, as in a store that takes memory again.
    pub fn put(&mut self, slot: Slot, hash: u64, weight: u32) {
        let at = slot as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, Entry::default());
        }
        let entry = &mut self.0[at];
        (entry.hash, entry.weight, entry.live) = (hash, weight, true);
    }

    /// Makes `slot` free and tells its weight.
    pub fn take(&mut self, slot: Slot) -> u32 {
        let entry = &mut self.0[slot as usize];
        assert!(entry.live, "a policy names live entries only");
        entry.live = false;
        entry.weight
    }

    /// Whether `slot` holds an entry.
    pub fn is_live(&self, slot: Slot) -> bool {
        self.0.get(slot as usize).is_some_and(|entry| entry.live)
    }

    /// Copies the words of `old` into the live entry `new`, which keeps its weight: what a store
    /// does before [`EvictionPolicy::on_move`].
    pub fn copy_words(&mut self, old: Slot, new: Slot) {
        let Entry { prev, next, extra, bits, .. } = self.0[old as usize];
        let entry = &mut self.0[new as usize];
        (entry.prev, entry.next, entry.extra, entry.bits) = (prev, next, extra, bits);
    }
}

impl Nodes for Entries {
    fn prev(&self, slot: Slot) -> Slot {
        self.0[slot as usize].prev
    }

    fn next(&self, slot: Slot) -> Slot {
        self.0[slot as usize].next
    }

    fn set_prev(&mut self, slot: Slot, to: Slot) {
        self.0[slot as usize].prev = to;
    }

    fn set_next(&mut self, slot: Slot, to: Slot) {
        self.0[slot as usize].next = to;
    }

    fn bits(&self, slot: Slot) -> u8 {
        self.0[slot as usize].bits
    }

    fn set_bits(&mut self, slot: Slot, bits: u8) {
        self.0[slot as usize].bits = bits & 0b11_1111;
    }

    fn extra(&self, slot: Slot) -> u32 {
        self.0[slot as usize].extra
    }

    fn set_extra(&mut self, slot: Slot, extra: u32) {
        self.0[slot as usize].extra = extra;
    }

    fn weight(&self, slot: Slot) -> u32 {
        self.0[slot as usize].weight
    }

    fn hash(&self, slot: Slot) -> u64 {
        self.0[slot as usize].hash
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u64,
    prev: Slot,
    next: Slot,
    extra: u32,
    weight: u32,
    bits: u8,
    live: bool,
}

/// Words that no policy wrote, so that reading one before writing it shows.
impl Default for Entry {
    fn default() -> Self {
        let (prev, next, extra) = (u32::MAX, u32::MAX, u32::MAX);
        Self { hash: 0, prev, next, extra, weight: 0, bits: 0b11_1111, live: false }
    }
}

/// A hash of a key number with all 64 bits mixed.
pub fn hash(key: u32) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes())
}
