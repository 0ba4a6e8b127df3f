//! The effects of a partition that are not on every copy yet, in order.
//!
//! Entries are numbered without gaps. A follower keeps those above what it applied; a primary also
//! keeps those that a learner has not confirmed.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::brief::Brief;
use crate::effect::{Change, Effect};
use crate::ids::{RequestId, Seq, Version};
use crate::warm::fetch;

/// One step of a partition's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place.
    pub seq: Seq,
    /// Unique among the entries that were ever proposed for a partition: tells whether the entry
    /// that came to stand at a place is the one that was meant.
    pub version: Version,
    /// The primary's hybrid clock when it evaluated the operation.
    pub clock_ms: u64,
    /// What changes; nothing for a barrier and for operations whose condition was not met.
    pub effect: Option<Effect>,
    /// Who asked for it under which name, and what came of it.
    pub answer: Option<(RequestId, Brief)>,
}

impl Entry {
    /// Roughly what it costs to keep or send.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const HEAD: usize = 64;
        let effect = self.effect.as_ref().map_or(0, |effect| {
            effect.key.key.len()
                + match &effect.change {
                    Change::Put(item) => item.value.len(),
                    Change::Remove(_) | Change::Touch { .. } | Change::Clear(_) => 0,
                }
        });
        HEAD + effect
    }
}

/// An entry, as the log and all messages that carry it have it: one piece of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedEntry(Arc<Entry>);

impl From<Entry> for SharedEntry {
    fn from(entry: Entry) -> Self {
        Self(Arc::new(entry))
    }
}

impl Deref for SharedEntry {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.0
    }
}

impl Serialize for SharedEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Entry::deserialize(deserializer).map(Self::from)
    }
}

/// A run of entries without gaps.
#[derive(Clone, Debug, Default)]
pub struct Log {
    base: Seq,
    entries: VecDeque<SharedEntry>,
    bytes: usize,
}

impl Log {
    /// An empty log whose first entry will be the one after `base`.
    #[must_use]
    pub fn after(base: Seq) -> Self {
        Self { base, ..Self::default() }
    }

    /// The entry before the first.
    #[must_use]
    pub fn base(&self) -> Seq {
        self.base
    }

    /// The last entry's place; `base` when empty.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.base.0 + self.entries.len() as u64)
    }

    /// Bytes of all entries.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Asks for the place that is written next.
    pub(crate) fn warm(&self) {
        self.entries.back().into_iter().for_each(fetch);
    }

    /// Asks for the entry at a place.
    pub(crate) fn warm_entry(&self, seq: Seq) {
        if let Some(entry) = self.get(seq) {
            fetch(&**entry);
        }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at a place, if it is kept.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&SharedEntry> {
        let index = seq.0.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Adds an entry. `false`, and nothing changes, if it is not the next one.
    pub fn push(&mut self, entry: impl Into<SharedEntry>) -> bool {
        let entry = entry.into();
        if entry.seq != self.last().next() {
            return false;
        }
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        true
    }

    /// Forgets entries up to and including `seq`.
    pub fn trim(&mut self, seq: Seq) {
        while self.base < seq {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry.bytes();
            self.base = entry.seq;
        }
    }

    /// Forgets entries above `seq`.
    pub fn truncate(&mut self, seq: Seq) {
        while self.last() > seq {
            let Some(entry) = self.entries.pop_back() else { return };
            self.bytes -= entry.bytes();
        }
    }

    /// Entries from `seq` on.
    pub fn from(&self, seq: Seq) -> impl Iterator<Item = &SharedEntry> {
        let skip = seq.0.saturating_sub(self.base.0 + 1);
        self.entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    /// Copies entries from `seq` on, at least one if there is any, up to about `bytes_max`.
    #[must_use]
    pub fn batch(&self, seq: Seq, bytes_max: usize) -> Vec<SharedEntry> {
        let mut bytes = 0;
        self.from(seq)
            .take_while(|entry| {
                let fits = bytes == 0 || bytes + entry.bytes() <= bytes_max;
                bytes += entry.bytes();
                fits
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        Entry { seq: Seq(seq), version: Version(seq), clock_ms: 0, effect: None, answer: None }
    }

    #[test]
    fn only_the_next_entry_is_taken() {
        let mut log = Log::after(Seq(4));
        assert!(!log.push(entry(4)));
        assert!(!log.push(entry(6)));
        assert!(log.push(entry(5)));
        assert!(log.push(entry(6)));
        assert_eq!((log.base(), log.last(), log.len()), (Seq(4), Seq(6), 2));
    }

    #[test]
    fn bytes_follow_trimming_and_truncation() {
        let mut log = Log::after(Seq(0));
        for seq in 1..=10 {
            assert!(log.push(entry(seq)));
        }
        log.trim(Seq(3));
        log.truncate(Seq(7));
        assert_eq!((log.base(), log.last()), (Seq(3), Seq(7)));
        assert_eq!(log.bytes(), log.from(Seq(0)).map(|entry| entry.bytes()).sum::<usize>());
        assert_eq!(log.get(Seq(3)), None);
        assert_eq!(log.get(Seq(4)).map(|entry| entry.seq), Some(Seq(4)));
        assert_eq!(log.get(Seq(8)), None);
    }

    #[test]
    fn a_batch_holds_at_least_one_entry_and_stops_at_the_bound() {
        let mut log = Log::after(Seq(0));
        for seq in 1..=10 {
            assert!(log.push(entry(seq)));
        }
        assert_eq!(log.batch(Seq(2), 1).len(), 1);
        assert_eq!(log.batch(Seq(2), entry(1).bytes() * 3).len(), 3);
        assert_eq!(log.batch(Seq(11), 1_000).len(), 0);
    }
}
