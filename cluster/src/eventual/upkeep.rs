//! What a copy does by itself from time to time: items that ended, tombstones that may go, evictions
//! to tell, caches that were dropped, and at last dropping itself.
//!
//! Every turn takes a bounded number of steps and asks for another one when there is more to do.

use crate::digest::Class;
use crate::effect::ItemKey;
use crate::ids::Version;
use crate::time::Mono;
use crate::tombstone;

use super::catalog::Position;
use super::context::Context;
use super::message::Say;
use super::replica::{EventualReplica, Role};

/// Entries touched by one turn of upkeep.
const UPKEEP_STEPS: usize = 256;

impl EventualReplica {
    /// The store evicted this.
    pub fn on_evicted(&mut self, cx: &mut Context<'_>, key: &ItemKey, version: Version) {
        if self.catalog.get(key).is_some_and(|entry| entry.write.version == version) {
            self.forget(cx, key);
        }
    }

    /// The time has come for something.
    pub fn on_wakeup(&mut self, cx: &mut Context<'_>) {
        if self.role == Role::Gone {
            return self.drop_all(cx);
        }
        self.resend_writes(cx);
        self.resend_asks(cx);
        self.repair(cx);
        if self.next_upkeep(cx) <= cx.now.mono {
            self.upkeep(cx);
        }
    }

    /// When [`on_wakeup`](Self::on_wakeup) is wanted.
    pub fn next_wakeup(&self, cx: &mut Context<'_>) -> Mono {
        if self.role == Role::Gone {
            return if self.is_gone(cx.me) { Mono::MAX } else { cx.now.mono };
        }
        self.next_upkeep(cx)
            .min(self.writes.next_due())
            .min(self.reads.next_due())
            .min(self.sync.next_due())
    }

    pub(super) fn next_upkeep(&self, cx: &mut Context<'_>) -> Mono {
        if self.upkeep_again {
            return cx.now.mono;
        }
        let clock_ms = cx.clock_ms();
        let end = self
            .catalog
            .next_end_ms()
            .map_or(Mono::MAX, |end_ms| cx.now.mono.after_ms(end_ms.saturating_sub(clock_ms)));
        self.upkeep_at.min(end)
    }

    pub(super) fn upkeep(&mut self, cx: &mut Context<'_>) {
        self.upkeep_again = false;
        self.upkeep_at = cx.now.mono.after_ms(cx.config.upkeep_ms);
        let clock_ms = cx.clock_ms();
        for _ in 0..UPKEEP_STEPS {
            let Some(key) = self.catalog.next_over(clock_ms) else { break };
            self.end(cx, &key);
        }
        for class in [Class::Keep, Class::Evict] {
            self.bound_tombstones(cx, class);
            for _ in 0..UPKEEP_STEPS {
                if !self.drop_ripe_tombstone(cx, class) {
                    break;
                }
            }
        }
        if !self.parked.is_empty() && !self.sync.someone_is_behind() {
            self.sink_parked(cx);
        }
        self.sweep_dropped_caches(cx);
        if !self.forgets.is_empty() {
            let keys = std::mem::take(&mut self.forgets);
            for owner in self.owners.iter().chain(&self.learners) {
                cx.send(*owner, self.place, Say::Forget(keys.clone()));
            }
        }
        self.upkeep_again |= self.catalog.next_over(clock_ms).is_some();
        if let Role::Leaving { since } = self.role {
            // All of them: one that has it may die before the others have it from there.
            let fetched = !self.owners.is_empty()
                && self.owners.iter().all(|owner| self.sync.fetched_since(*owner, since));
            let too_long = cx.now.mono.since_ms(since) >= cx.config.leaving_max_ms;
            if fetched || too_long {
                self.role = Role::Gone;
            }
        }
    }

    /// All owners are back: what was evicted meanwhile leaves its floor.
    pub(super) fn sink_parked(&mut self, cx: &mut Context<'_>) {
        for _ in 0..UPKEEP_STEPS {
            let Some(key) = self.parked.pop_first() else { return };
            let class = cx.class(&key);
            if self.catalog.get(&key).is_some_and(|entry| !entry.is_live()) {
                self.sink(cx, &key, class);
            }
        }
        self.upkeep_again = !self.parked.is_empty();
    }

    pub(super) fn drop_ripe_tombstone(&mut self, cx: &mut Context<'_>, class: Class) -> bool {
        let Some((_, key, since)) = self.catalog.tombstones(class).oldest() else { return false };
        let age_ms = cx.now.mono.since_ms(since);
        let config = &cx.config.tombstones;
        let fetched = || self.owners.iter().all(|owner| self.sync.fetched_since(*owner, since));
        if age_ms < config.life_ms || (age_ms < config.life_max_ms && !fetched()) {
            return false;
        }
        let key = key.clone();
        cx.shared.stats.tombstones_dropped += 1;
        self.sink(cx, &key, class)
    }

    /// Keeps the tombstones within their bytes. Those that cannot go because they lie in the future
    /// go to the back, so a turn ends after a few.
    pub(super) fn bound_tombstones(&mut self, cx: &mut Context<'_>, class: Class) {
        /// Tombstones dropped for one that is added.
        const DROPS_MAX: usize = 4;
        for _ in 0..DROPS_MAX {
            let tombstones = self.catalog.tombstones(class);
            if tombstones.bytes() <= cx.tombstone_bytes_max {
                return;
            }
            let Some((_, key, _)) = tombstones.oldest() else { return };
            let key = key.clone();
            if self.sink(cx, &key, class) {
                cx.shared.stats.tombstones_forced += 1;
            }
        }
    }

    /// Whether a client's delete of the key can be remembered.
    pub(super) fn has_tombstone_room(&mut self, cx: &mut Context<'_>, key: &ItemKey) -> bool {
        let class = cx.class(key);
        if class == Class::Evict {
            return true;
        }
        let needed = tombstone::cost(key);
        let fits = |replica: &Self| {
            replica.catalog.tombstones(class).bytes() + needed <= cx.tombstone_bytes_max
        };
        fits(self)
            || (self.drop_ripe_tombstone(cx, class) && {
                self.catalog.tombstones(class).bytes() + needed <= cx.tombstone_bytes_max
            })
    }

    /// One step of the walk that drops what belongs to caches that are no more.
    pub(super) fn sweep_dropped_caches(&mut self, cx: &mut Context<'_>) {
        let Some(after) = self.sweep.take() else { return };
        let step: Vec<Position> = self
            .catalog
            .behind(after.as_ref())
            .take(UPKEEP_STEPS)
            .map(|(position, _)| position.clone())
            .collect();
        for position in &step {
            if cx.cache(&position.key).is_none() {
                self.remove_item(cx, &position.key, Version(0));
                self.catalog.erase(&position.key);
            }
        }
        if step.len() == UPKEEP_STEPS {
            self.sweep = Some(step.last().cloned());
            self.upkeep_again = true;
        }
    }

    /// Drops a bounded number of items. When none is left the copy begins anew, should the table
    /// want one here.
    pub(super) fn drop_all(&mut self, cx: &mut Context<'_>) {
        if cx.store.drop_partition(self.place, UPKEEP_STEPS) {
            return;
        }
        self.release(cx);
        let wanted = self.is_wanted(cx.me);
        let state = std::mem::take(&mut self.state);
        *self = Self::new(self.place, cx);
        if wanted {
            self.on_topology(cx, Some(&state));
        }
    }
}
