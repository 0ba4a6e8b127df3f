//! How a copy takes in writes, and how it forgets.
//!
//! One rule for all: the greatest write of a key stays. What is forgotten leaves a tombstone or a
//! floor, unless this copy does not know everything yet.

use bytes::Bytes;

use crate::digest::Class;
use crate::effect::{Change, Effect, ItemKey};
use crate::ids::Version;
use crate::store::Stored;
use crate::version::Write;

use super::catalog::{State, Verdict};
use super::context::Context;
use super::message::{Content, Record};
use super::replica::{EventualReplica, Role};

/// Evictions told in one message.
const FORGETS_MAX: usize = 256;

/// What merging a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It won and is applied.
    Taken,
    /// It, or a newer one, was here.
    Had,
    /// It is at or below the floor: dead.
    Dead,
    /// There is no room for it now.
    Full,
    /// It must not be taken: its stamp is impossible, or it does not belong here.
    Refused,
}

impl EventualReplica {
    /// Takes in a write of another copy.
    pub(super) fn merge(&mut self, cx: &mut Context<'_>, record: &Record) -> Merged {
        let key = &record.key;
        let write = record.write();
        let known =
            cx.cache(key).is_some() && cx.topology.partition_of(&key.key) == self.place.partition;
        if !known || self.role == Role::Gone || !cx.admits(write.version) {
            cx.shared.stats.refused += 1;
            return Merged::Refused;
        }
        match self.catalog.judge(key, cx.class(key), write) {
            Verdict::Newer => {}
            Verdict::Same => return Merged::Had,
            Verdict::Older => {
                cx.shared.stats.superseded += 1;
                return Merged::Had;
            }
            Verdict::Dead => {
                cx.shared.stats.below_floor += 1;
                return Merged::Dead;
            }
        }
        if !self.apply(cx, key, &record.content) {
            cx.shared.stats.refused += 1;
            return Merged::Full;
        }
        cx.shared.stats.merged += 1;
        Merged::Taken
    }

    /// Makes a write the latest of its key. `false`, and nothing changed, when the cache keeps
    /// everything and there is no room. In one that evicts the write may be dropped again at once.
    pub(super) fn apply(&mut self, cx: &mut Context<'_>, key: &ItemKey, content: &Content) -> bool {
        let clock_ms = cx.clock_ms();
        let class = cx.class(key);
        let item = match content {
            Content::Item(item) if !item.is_over(clock_ms) => item,
            Content::Item(item) => {
                self.bury(cx, key, class, Write::of(item));
                return true;
            }
            Content::Gone(write) => {
                self.bury(cx, key, class, *write);
                return true;
            }
        };
        let effect = Effect { key: key.clone(), change: Change::Put(item.clone()) };
        let may_evict = class == Class::Evict;
        let stored = cx.store.apply(self.place, &effect, may_evict, clock_ms);
        if stored == Stored::Full && !may_evict {
            return false;
        }
        self.catalog.put_live(key, Write::of(item), item.deadline_ms);
        if stored == Stored::Full {
            self.forget(cx, key);
        }
        true
    }

    /// The key is dead by this write: a delete, or an item that is over.
    pub(super) fn bury(&mut self, cx: &mut Context<'_>, key: &ItemKey, class: Class, write: Write) {
        self.remove_item(cx, key, write.version);
        if crate::mutant!(cx, TombstoneEarly) {
            self.catalog.erase(key);
            return;
        }
        self.catalog.put_dead(key, class, write, cx.now.mono);
        self.bound_tombstones(cx, class);
    }

    /// The key's item is over.
    pub(super) fn end(&mut self, cx: &mut Context<'_>, key: &ItemKey) {
        if let Some(entry) = self.catalog.get(key).copied()
            && entry.is_live()
        {
            let class = cx.class(key);
            self.bury(cx, key, class, entry.write);
        }
    }

    /// The store no longer has the key's item: it made room, or judged by its clock that the item
    /// is over.
    pub(super) fn forget(&mut self, cx: &mut Context<'_>, key: &ItemKey) {
        let Some(entry) = self.catalog.get(key).copied() else { return };
        let State::Live { deadline_ms } = entry.state else { return };
        let class = cx.class(key);
        if class == Class::Keep && deadline_ms.is_some() {
            return self.bury(cx, key, class, entry.write);
        }
        if class == Class::Keep || !self.complete {
            // A cache that keeps drops nothing else; if its store errs all the same, repair brings
            // the item back. And a copy that is being filled cannot claim to know anything.
            self.catalog.erase(key);
            return;
        }
        self.sink(cx, key, class);
        if self.forgets.len() < FORGETS_MAX {
            self.forgets.push((key.clone(), entry.write));
            self.upkeep_again = true;
        }
    }

    /// Another copy forgot these as dead or evicted: so does this one, if it has the same writes.
    pub(super) fn drop_dead(&mut self, cx: &mut Context<'_>, dead: &[(ItemKey, Write)]) {
        for (key, write) in dead {
            if let Some(entry) = self.catalog.get(key).copied()
                && entry.write == *write
            {
                if entry.is_live() {
                    cx.shared.stats.dropped_dead += 1;
                }
                self.remove_item(cx, key, write.version);
                let class = cx.class(key);
                self.sink(cx, key, class);
            }
        }
    }

    pub(super) fn sink(&mut self, cx: &mut Context<'_>, key: &ItemKey, class: Class) -> bool {
        if !self.complete {
            self.catalog.erase(key);
            return true;
        }
        // While an owner is away, floors that rise would refuse what it wrote meanwhile.
        let roomy = self.catalog.tombstones(class).bytes() < cx.tombstone_bytes_max;
        if class == Class::Evict
            && roomy
            && self.sync.someone_is_behind()
            && let Some(entry) = self.catalog.get(key).copied().filter(|entry| entry.is_live())
        {
            self.catalog.put_dead(key, class, entry.write, cx.now.mono);
            let own = Bytes::copy_from_slice(&key.key);
            self.parked.insert(ItemKey { cache: key.cache, key: own });
            return false;
        }
        self.parked.remove(key);
        self.catalog.sink(key, class, cx.shared.clock.reading(), cx.now.mono)
    }

    pub(super) fn remove_item(&mut self, cx: &mut Context<'_>, key: &ItemKey, version: Version) {
        if self.catalog.get(key).is_some_and(|entry| entry.is_live()) {
            let clock_ms = cx.clock_ms();
            let effect = Effect { key: key.clone(), change: Change::Remove(version) };
            cx.store.apply(self.place, &effect, false, clock_ms);
        }
    }
}
