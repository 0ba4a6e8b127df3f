//! Deletes that are remembered, and when they may be forgotten.
//!
//! A delete that were simply carried out would be undone by the next copy that has not heard of it.
//! So the key stays as a *tombstone*, and copies merge it like a value. It may go when it has been
//! kept for its life *and* every present owner has fetched everything from this copy since it was
//! made; or at once when all tombstones together outgrow their bound. In each case it leaves a trace:
//! the floor of its bucket rises to it (see [`crate::digest`]), and a value at or below the floor that
//! this copy does not hold is refused for ever. That is what keeps deleted items from coming back
//! from a copy that was away longer than any tombstone lives. What the floor may cost is a write that
//! reached no other owner for longer than the life; never a delete.
//!
//! Age is counted by the local monotonic clock from when the tombstone came to this copy, so no wall
//! clock can shorten it.
//!
//! This file keeps the order and the bytes; the entries themselves lie in the catalog.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::effect::ItemKey;
use crate::time::Mono;

/// Bytes that a tombstone counts for beside its key.
pub const TOMBSTONE_OVERHEAD_BYTES: usize = 128;

/// How long deletes are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TombstoneConfig {
    /// For at least so long. Must exceed the life of hints and the longest absence after which a
    /// copy's own writes shall still be merged.
    pub life_ms: u64,
    /// For at most so long, though an owner has not fetched them. Must exceed `life_ms`.
    pub life_max_ms: u64,
    /// Bytes that all tombstones of a node may take, keys included, those of caches that evict and
    /// of caches that keep each; divided evenly among its partitions. Above it the oldest go before
    /// their time, and where nothing may be evicted clients' deletes are refused instead.
    pub bytes_max: usize,
}

impl Default for TombstoneConfig {
    fn default() -> Self {
        Self { life_ms: 15 * 60 * 1_000, life_max_ms: 24 * 60 * 60 * 1_000, bytes_max: 64 << 20 }
    }
}

/// A tombstone's place in the order of age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grave(u64);

/// The tombstones of one class in one partition, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Tombstones {
    graves: BTreeMap<Grave, (ItemKey, Mono)>,
    next: u64,
    bytes: usize,
}

impl Tombstones {
    /// A key died.
    pub fn bury(&mut self, key: ItemKey, since: Mono) -> Grave {
        let grave = Grave(self.next);
        self.next += 1;
        self.bytes += cost(&key);
        self.graves.insert(grave, (key, since));
        grave
    }

    /// The key lives again, or the tombstone is dropped.
    pub fn remove(&mut self, grave: Grave) -> Option<ItemKey> {
        let (key, _) = self.graves.remove(&grave)?;
        self.bytes -= cost(&key);
        Some(key)
    }

    /// The oldest one and since when it is here.
    pub fn oldest(&self) -> Option<(Grave, &ItemKey, Mono)> {
        self.graves.first_key_value().map(|(grave, (key, since))| (*grave, key, *since))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.graves.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.graves.is_empty()
    }

    /// What they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes that the tombstone of a key counts for.
pub fn cost(key: &ItemKey) -> usize {
    key.key.len() + TOMBSTONE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CacheId;

    fn key(name: &'static [u8]) -> ItemKey {
        ItemKey { cache: CacheId(0), key: name.into() }
    }

    #[test]
    fn tombstones_leave_in_the_order_they_came_and_give_their_bytes_back() {
        let mut tombstones = Tombstones::default();
        let first = tombstones.bury(key(b"long-key"), Mono(5));
        let second = tombstones.bury(key(b"k"), Mono(6));
        assert_eq!(tombstones.bytes(), 2 * TOMBSTONE_OVERHEAD_BYTES + 9);
        assert_eq!(
            tombstones.oldest().map(|(grave, _, since)| (grave, since)),
            Some((first, Mono(5)))
        );
        assert_eq!(tombstones.remove(first), Some(key(b"long-key")));
        assert_eq!(tombstones.remove(first), None);
        assert_eq!(tombstones.oldest().map(|(grave, ..)| grave), Some(second));
        assert_eq!(tombstones.bytes(), TOMBSTONE_OVERHEAD_BYTES + 1);
    }
}
