//! Being filled: the learner's side of a transfer.
//!
//! Chunks and the live stream come independently: a chunk may have been read before an effect that
//! is already here. What is newer wins, by version; deletes, which leave no item behind, and
//! touches of items that are not here yet, leave a note until the snapshot is complete.
//!
//! Memory: one note per key deleted or touched during the transfer; the primary starts a transfer
//! anew when the learner lags by more than it keeps.

use std::collections::BTreeMap;

use crate::config::mutant;
use crate::context::Context;
use crate::effect::{Change, Effect, Item, ItemKey, Marks};
use crate::ids::{CacheId, Generation, Member, Seq, Term, TransferId, Version};
use crate::log::Log;
use crate::message::Body;
use crate::store::{Store, Stored};

use super::{Replica, StrongMessage};

/// What is remembered of a key for chunks to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Items of this version and older must not come back.
    removed: Version,
    /// The item of this version, when it comes, ends then.
    touched: Option<(Version, Option<u64>, Marks)>,
}

/// How much of the data is here.
#[derive(Debug)]
pub(super) enum Intake {
    /// All.
    Complete {
        /// Effects up to here may be contained already: they are applied by version.
        horizon: Seq,
        /// The chunk after the last of the transfer that brought it.
        next: u64,
    },
    /// Some.
    Filling {
        /// The next chunk.
        next: u64,
        notes: BTreeMap<ItemKey, Note>,
        /// Items of these caches, of this version and older, must not come back.
        cleared: BTreeMap<CacheId, Version>,
    },
}

impl Intake {
    pub(super) const EMPTY: Self = Self::Complete { horizon: Seq(0), next: 0 };

    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::Complete { .. })
    }

    /// Nothing came by a transfer, or all that came was dropped again.
    fn is_unfilled(&self) -> bool {
        matches!(self, Self::Complete { next: 0, .. })
    }
}

impl Replica {
    /// A primary begins to fill this copy.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_fill<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        version: u64,
        generation: Generation,
        transfer: TransferId,
        base: Seq,
    ) {
        if !self.follow(cx, from, term) {
            return;
        }
        if self.transfer == (term, transfer) {
            if self.wiping {
                return;
            }
            let answer = if self.intake.is_unfilled() {
                StrongMessage::Unstarted { term }
            } else {
                StrongMessage::Ready { term, transfer }
            };
            return self.send(cx, from, answer);
        }
        // Only learners are filled. A message that is older than what is known here may speak of a
        // time before this copy was promoted: obeying it would destroy acknowledged data.
        let newer = version > self.state.version;
        let learns = self.state.learners.contains(&cx.me);
        if !(newer || learns) || self.transfer > (term, transfer) {
            return;
        }
        self.transfer = (term, transfer);
        self.filler = Some(from);
        self.wipe(cx);
        self.intake = Intake::Filling { next: 0, notes: BTreeMap::new(), cleared: BTreeMap::new() };
        self.log = Log::after(base);
        self.applied = base;
        self.log_term = term;
        self.generation = generation;
        self.hold_version = self.hold_version.max(version);
        self.holds = true;
        if !self.wiping {
            // There was nothing to be dropped.
            self.ready_for_chunks(cx);
        }
    }

    /// Everything older is dropped: chunks may come.
    pub(super) fn ready_for_chunks<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        if let (Intake::Filling { .. }, Some(primary)) = (&self.intake, self.filler) {
            let (term, transfer) = self.transfer;
            self.send(cx, primary, StrongMessage::Ready { term, transfer });
        }
    }

    /// A chunk: index, whether it is the last, and what it holds.
    pub(super) fn on_chunk<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        message: StrongMessage,
    ) {
        let StrongMessage::Chunk { term, transfer, index, last, answers, items } = message else {
            return;
        };
        if !self.follow(cx, from, term) || self.transfer != (term, transfer) || self.wiping {
            return;
        }
        // This copy was removed and emptied since the transfer began, and added again so soon that
        // its primary may never hear of it: only another transfer can fill it.
        if self.intake.is_unfilled() {
            return self.send(cx, from, StrongMessage::Unstarted { term });
        }
        if let Intake::Filling { next, .. } = &self.intake
            && *next == index
        {
            for (client, window) in answers {
                self.answers.merge(client, window);
            }
            // One that does not fit whole is not confirmed: it comes again, and there may be room
            // by then. Without it this copy is never complete, so it is never counted.
            for (key, item) in items {
                if !self.take_in(cx, key, item) {
                    return;
                }
            }
            if let Intake::Filling { next, .. } = &mut self.intake {
                *next += 1;
            }
            if let Some(horizon) = last {
                self.intake = Intake::Complete { horizon, next: index + 1 };
            }
        }
        let next = match &self.intake {
            Intake::Filling { next, .. } | Intake::Complete { next, .. } => *next,
        };
        self.send(cx, from, StrongMessage::Taken { term, transfer, next });
    }

    /// An item of a chunk: the live stream may have brought something newer. `false` when there is
    /// no room where nothing may be missing.
    fn take_in<S: Store>(&mut self, cx: &mut Context<'_, S>, key: ItemKey, mut item: Item) -> bool {
        let Intake::Filling { notes, cleared, .. } = &self.intake else { return true };
        if cleared.get(&key.cache).is_some_and(|version| *version >= item.version) {
            return true;
        }
        if let Some(note) = notes.get(&key) {
            if note.removed >= item.version {
                return true;
            }
            if let Some((version, deadline_ms, marks)) = note.touched
                && version == item.version
            {
                item.deadline_ms = deadline_ms;
                item.marks = marks;
            }
        }
        let held = cx.store.read(self.place, &key, false, 0);
        let newer = held.is_some_and(|held| held.version >= item.version);
        let newer = newer && !mutant!(cx.config, ChunkOverwrites);
        if newer || self.is_dropped(cx, key.cache) {
            return true;
        }
        self.stored = true;
        let may_evict = self.may_evict(cx, key.cache);
        let effect = Effect { key, change: Change::Put(item) };
        cx.store.apply(self.place, &effect, may_evict, 0) == Stored::Done || may_evict
    }

    /// What a live effect leaves behind for chunks to come.
    pub(super) fn note<S: Store>(&mut self, cx: &Context<'_, S>, effect: &Effect) {
        if self.intake.is_complete() {
            return;
        }
        let may_evict = self.may_evict(cx, effect.key.cache);
        let Intake::Filling { notes, cleared, .. } = &mut self.intake else { return };
        match &effect.change {
            // The item itself guards against older ones, unless it may be evicted.
            Change::Put(item) if may_evict => {
                let removed = Version(item.version.0.saturating_sub(1));
                notes.insert(effect.key.clone(), Note { removed, touched: None });
            }
            Change::Put(_) => {
                notes.remove(&effect.key);
            }
            Change::Remove(_) if mutant!(cx.config, TombstoneEarly) => {}
            Change::Remove(version) => {
                notes.insert(effect.key.clone(), Note { removed: *version, touched: None });
            }
            Change::Touch { version, deadline_ms, marks } => {
                notes.entry(effect.key.clone()).or_default().touched =
                    Some((*version, *deadline_ms, *marks));
            }
            Change::Clear(version) => {
                let known = cleared.entry(effect.key.cache).or_default();
                *known = (*known).max(*version);
            }
        }
    }

    /// Sends about this partition.
    pub(super) fn send<S>(&self, cx: &mut Context<'_, S>, to: Member, message: StrongMessage) {
        cx.send(to, Body::Strong(self.place, message));
    }
}
