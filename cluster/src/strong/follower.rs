//! A copy's part in a write: hold it, say so, and apply it when every copy that counts holds it.
//!
//! The primary applies through the same [`Replica::apply`]: copies that apply the same entries end
//! up the same.

use crate::config::mutant;
use crate::context::Context;
use crate::effect::{Change, Effect, ItemKey};
use crate::ids::{Member, Seq, Term, TransferId, Version};
use crate::log::{Entry, SharedEntry};
use crate::node::Reply;
use crate::store::{Store, Stored};
use crate::topology::{CacheSpec, Eviction};

use super::intake::Intake;
use super::{Replica, StrongMessage};

impl Replica {
    /// The primary evicted these. What was written later stays.
    pub(super) fn forget_evicted<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        keys: &[(ItemKey, Version)],
    ) {
        for (key, version) in keys {
            let held = cx.store.read(self.place, key, false, 0);
            if self.may_evict(cx, key.cache) && held.is_some_and(|held| held.version <= *version) {
                let effect = Effect { key: key.clone(), change: Change::Remove(*version) };
                cx.store.apply(self.place, &effect, true, 0);
            }
        }
    }

    /// The primary sends effects, or how far they are confirmed.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_append<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        stable: Seq,
        version: u64,
        probe: bool,
        entries: Vec<SharedEntry>,
    ) {
        let lower =
            mutant!(cx.config, LowerTermAccepted) && term < self.term && self.primary.is_none();
        if !(lower || self.follow(cx, from, term)) || self.wiping {
            return;
        }
        if self.log_term != term && !lower {
            return self.send(cx, from, StrongMessage::Unstarted { term });
        }
        // Whoever counts this copy by that version keeps earlier removals from concerning it.
        self.hold_version = self.hold_version.max(version);
        let answer = probe || !entries.is_empty();
        for entry in entries {
            if entry.seq <= self.log.last() {
                continue;
            }
            if self.stuck || !self.can_hold(cx, &entry) || !self.log.push(entry) {
                break;
            }
        }
        self.apply_confirmed(cx, stable);
        if answer {
            let full = self.is_full(cx);
            self.acknowledge_in(cx, from, term, full);
        }
    }

    /// Tells the primary what is held here.
    pub(super) fn acknowledge<S>(&self, cx: &mut Context<'_, S>, to: Member, full: bool) {
        self.acknowledge_in(cx, to, self.term, full);
    }

    fn acknowledge_in<S>(&self, cx: &mut Context<'_, S>, to: Member, term: Term, full: bool) {
        let (of, id) = self.transfer;
        let transfer = if of == term { id } else { TransferId(0) };
        let (have, version) = (self.log.last(), self.hold_version);
        self.send(cx, to, StrongMessage::Ack { term, transfer, have, version, full });
    }

    /// Applies what the primary says is confirmed, as far as it is here.
    pub(super) fn apply_confirmed<S: Store>(&mut self, cx: &mut Context<'_, S>, stable: Seq) {
        let confirmed = stable.min(self.log.last());
        while self.applied < confirmed {
            let Some(entry) = self.log.get(self.applied.next()).cloned() else { break };
            if !self.apply(cx, &entry) {
                break;
            }
        }
        self.log.trim(self.applied);
    }

    /// Whether an entry's item will fit when it is confirmed: what is held must not vanish then.
    fn can_hold<S: Store>(&self, cx: &Context<'_, S>, entry: &Entry) -> bool {
        match &entry.effect {
            Some(Effect { key, change: Change::Put(_) }) => {
                self.may_evict(cx, key.cache)
                    || mutant!(cx.config, BackupEvicts)
                    || cx.store.room(key.cache) >= cx.staged + self.staged_bytes() + entry.bytes()
            }
            _ => true,
        }
    }

    fn is_full<S: Store>(&self, cx: &Context<'_, S>) -> bool {
        if mutant!(cx.config, BackupEvicts) {
            return false;
        }
        let staged = cx.staged + self.staged_bytes();
        let wanted = staged + cx.config.strong.room_reserve_bytes;
        let refuses = |spec: &&CacheSpec| {
            spec.group() == self.place.group && spec.eviction == Eviction::Refuse
        };
        cx.topology.caches.values().filter(refuses).any(|spec| cx.store.room(spec.id) < wanted)
    }

    /// Applies the next entry. `false` when there is no room for it where none may be missing.
    pub(super) fn apply<S: Store>(&mut self, cx: &mut Context<'_, S>, entry: &Entry) -> bool {
        debug_assert_eq!(entry.seq, self.applied.next());
        if let Some(effect) = &entry.effect {
            self.stored = true;
            let may_evict = self.may_evict(cx, effect.key.cache)
                || (mutant!(cx.config, BackupEvicts) && self.primary.is_none());
            if !self.is_dropped(cx, effect.key.cache)
                && !self.holds_newer(cx, entry, effect)
                && cx.store.apply(self.place, effect, may_evict, entry.clock_ms) == Stored::Full
                && !may_evict
            {
                self.stuck = true;
                self.no_room = true;
                return false;
            }
            self.note(cx, effect);
        }
        self.stuck = false;
        self.no_room = false;
        self.applied = entry.seq;
        self.expired_ms = self.expired_ms.max(entry.clock_ms);
        if let Some((id, outcome)) = &entry.answer {
            self.answers.record(*id, *outcome, entry.clock_ms, &cx.config.strong);
        }
        if let Some(primary) = &mut self.primary {
            primary.judged_ms = primary.judged_ms.max(entry.clock_ms);
            if let Some(effect) = &entry.effect
                && primary.latest.get(&effect.key).is_some_and(|(seq, _)| *seq == entry.seq)
            {
                primary.latest.remove(&effect.key);
            }
            if let Some(effect) = &entry.effect
                && primary.cleared.get(&effect.key.cache).is_some_and(|(seq, _)| *seq == entry.seq)
            {
                primary.cleared.remove(&effect.key.cache);
            }
            if let Some((id, _)) = &entry.answer
                && primary.pending_ids.get(id) == Some(&entry.seq)
            {
                primary.pending_ids.remove(id);
            }
        }
        if let Some(waiting) = self.waiting.remove(&entry.seq) {
            let reply = if waiting.version == entry.version {
                self.settle(cx, waiting.cache, waiting.outcome)
            } else {
                Reply::Indeterminate
            };
            for (asker, _) in waiting.askers {
                cx.reply(asker, reply.clone());
            }
        }
        true
    }

    /// Whether a snapshot brought something newer than a live effect.
    fn holds_newer<S: Store>(&self, cx: &Context<'_, S>, entry: &Entry, effect: &Effect) -> bool {
        let doubtful = match &self.intake {
            Intake::Filling { .. } => true,
            Intake::Complete { horizon, .. } => entry.seq <= *horizon,
        };
        // What is newer than a removal of all survives it by its version.
        doubtful
            && !matches!(effect.change, Change::Clear(_))
            && cx
                .store
                .read(self.place, &effect.key, false, 0)
                .is_some_and(|held| held.version > effect.change.version())
    }
}
