//! One copy of one partition of an eventual group: what it holds and how it merges.
//!
//! Any owner takes writes: it stamps them with the hybrid clock, applies them, and tells the other
//! owners and learners. All copies keep the greatest write of each key, so the order of arrival does
//! not matter, and what got lost is found by repair.
//!
//! ```text
//!   learner --fetched everything from an owner--> owner --no longer in the table--> leaving
//!                                                                                      |
//!                                  all owners fetched everything from it, or too long --> gone
//! ```
//!
//! What always holds: the catalog and the store agree on which items are live, but for items that
//! the store evicted and has not told of yet; the store never holds an item that the catalog does
//! not know.

use std::collections::BTreeSet;

use crate::context::Asker;
use crate::digest::Class;
use crate::effect::{Item, ItemKey, Outcome};
use crate::ids::{Generation, Member, Place};
use crate::node::{Refusal, Reply, Request};
use crate::time::Mono;
use crate::topology::{OnLoss, PartitionState};
use crate::version::Write;

use super::catalog::{Catalog, Position, State};
use super::context::Context;
use super::merge::Merged;
use super::message::{Content, EventualMessage, Found, Record, Say};
use super::reads::Reads;
use super::sync::Sync;
use super::window::Window;
use super::writes::Writes;

/// Where a copy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves.
    Owner,
    /// Is being filled.
    Learner,
    /// Serves no more, and stays until an owner has what it has.
    Leaving {
        /// Since when.
        since: Mono,
    },
    /// Drops its items in steps.
    Gone,
}

/// One copy.
pub struct EventualReplica {
    pub(super) place: Place,
    /// The generation of what it holds.
    generation: Generation,
    pub(super) role: Role,
    pub(super) state: PartitionState,
    /// The other owners.
    pub(super) owners: Vec<Member>,
    /// The other learners.
    pub(super) learners: Vec<Member>,
    pub(super) catalog: Catalog,
    pub(super) writes: Writes,
    pub(super) reads: Reads,
    pub(super) sync: Sync,
    pub(super) window: Window,
    /// Whether this copy ever held everything: only then it may raise floors.
    pub(super) complete: bool,
    pub(super) forgets: Vec<(ItemKey, Write)>,
    /// Evicted while an owner was away: tombstones only until it is back.
    pub(super) parked: BTreeSet<ItemKey>,
    /// Where the walk that drops items of dropped caches stands.
    pub(super) sweep: Option<Option<Position>>,
    pub(super) upkeep_at: Mono,
    pub(super) upkeep_again: bool,
}

impl EventualReplica {
    /// A copy that holds nothing.
    pub fn new(place: Place, cx: &Context<'_>) -> Self {
        Self {
            place,
            generation: Generation(0),
            role: Role::Gone,
            state: PartitionState::default(),
            owners: Vec::new(),
            learners: Vec::new(),
            catalog: Catalog::default(),
            writes: Writes::default(),
            reads: Reads::default(),
            sync: Sync::default(),
            window: Window::new(cx.config.answers_per_client, cx.config.answer_clients_max),
            complete: false,
            forgets: Vec::new(),
            parked: BTreeSet::new(),
            sweep: None,
            upkeep_at: cx.now.mono,
            upkeep_again: false,
        }
    }

    // ---- who holds it ----------------------------------------------------------------------

    /// A new table: the state of this partition in it, if it is still there.
    pub fn on_topology(&mut self, cx: &mut Context<'_>, state: Option<&PartitionState>) {
        if state == Some(&self.state) {
            return;
        }
        let others = |members: &[Member]| -> Vec<Member> {
            members.iter().copied().filter(|member| *member != cx.me).collect()
        };
        let is_new = self.state == PartitionState::default();
        self.state = state.cloned().unwrap_or_default();
        self.owners = others(&self.state.in_sync);
        self.learners = others(&self.state.learners);
        let before = self.role;
        let is_fresh = before == Role::Gone && self.catalog.is_empty() && is_new;
        let is_outdated = self.state.generation > self.generation && !is_fresh;
        self.role = if is_outdated || (before == Role::Gone && !is_fresh) {
            // What is here must go first: see `drop_all`.
            Role::Gone
        } else if self.state.in_sync.contains(&cx.me) {
            // An owner from the start holds everything: there is nothing yet.
            self.complete = true;
            Role::Owner
        } else if self.state.learners.contains(&cx.me) {
            Role::Learner
        } else {
            match before {
                // A learner may have been an owner before, or hold what an owner that died since
                // told nobody else.
                Role::Owner | Role::Learner if state.is_some() => {
                    Role::Leaving { since: cx.now.mono }
                }
                Role::Leaving { .. } if state.is_some() => before,
                _ => Role::Gone,
            }
        };
        if is_fresh && self.role != Role::Gone {
            self.generation = self.state.generation;
            cx.generation = self.generation;
        }
        if self.role == Role::Learner && before != Role::Learner {
            self.sync.begin_catching_up();
        }
        if self.role != Role::Owner {
            self.refuse_waiting(cx);
        }
        self.sync.on_members(cx, self.place, &self.owners, self.role);
        self.settle_writes(cx);
    }

    /// Caches were dropped: so are their items, in steps.
    pub fn on_caches_dropped(&mut self, cx: &mut Context<'_>) {
        self.sweep = Some(None);
        self.upkeep_soon(cx);
    }

    /// The generation of what this copy holds.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Where this copy stands.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether everything was dropped and nothing is left to do. A copy that is to begin anew is not
    /// gone, even if what it drops first is nothing: see `drop_all`.
    pub fn is_gone(&self, me: Member) -> bool {
        self.role == Role::Gone && self.catalog.is_empty() && !self.is_wanted(me)
    }

    /// Whether the table wants a copy here.
    pub(super) fn is_wanted(&self, me: Member) -> bool {
        self.state.in_sync.contains(&me) || self.state.learners.contains(&me)
    }

    /// What this copy knows, for judges and metrics.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn refuse_waiting(&mut self, cx: &mut Context<'_>) {
        for asker in self.writes.take_all() {
            cx.reply(asker, Reply::Indeterminate);
        }
        let instead = self.owners.first().map(|owner| owner.node);
        for asker in self.reads.take_all() {
            cx.reply(asker, Reply::NotApplied(Refusal::NotPrimary(instead)));
        }
    }

    // ---- requests --------------------------------------------------------------------------

    /// A client asks.
    pub fn on_request(&mut self, cx: &mut Context<'_>, asker: Asker, request: &Request) {
        if self.role != Role::Owner {
            let instead = self.owners.first().map(|owner| owner.node);
            return cx.reply(asker, Reply::NotApplied(Refusal::NotPrimary(instead)));
        }
        let Some(cache) = cx.cache(&request.key).cloned() else {
            return cx.reply(asker, Reply::NotApplied(Refusal::NoSuchCache));
        };
        let generation = self.state.generation;
        if cache.on_loss == OnLoss::Block && generation > self.state.loss_acknowledged {
            return cx.reply(asker, Reply::NotApplied(Refusal::Blocked(generation)));
        }
        if request.is_plain_read() {
            self.read(cx, asker, request, &cache);
        } else {
            self.write(cx, asker, request, &cache);
        }
    }

    /// What a reader of this copy is told now.
    pub(super) fn read_here(&mut self, cx: &mut Context<'_>, request: &Request) -> Reply {
        let outcome = match self.current(cx, &request.key, true) {
            Some(item) => Outcome::Hit(item),
            None if self.state.generation > request.seen => Outcome::Lost(self.state.generation),
            None => Outcome::NotFound,
        };
        Reply::Done(outcome)
    }

    /// The item as it is here, its end judged by the clock.
    pub(super) fn current(
        &mut self,
        cx: &mut Context<'_>,
        key: &ItemKey,
        used: bool,
    ) -> Option<Item> {
        let State::Live { deadline_ms } = self.catalog.get(key)?.state else { return None };
        let clock_ms = cx.clock_ms();
        if deadline_ms.is_some_and(|deadline| deadline <= clock_ms) {
            self.end(cx, key);
            return None;
        }
        let item = cx.store.read(self.place, key, used, clock_ms);
        if item.is_none() {
            self.forget(cx, key);
        }
        item
    }

    // ---- messages --------------------------------------------------------------------------

    /// Another member said something about this partition.
    pub fn on_message(&mut self, cx: &mut Context<'_>, from: Member, message: EventualMessage) {
        if message.generation != self.generation {
            return;
        }
        self.sync.heard(cx, from);
        match message.say {
            Say::Write { id, record } => {
                let merged = self.merge(cx, &record);
                if id != 0 {
                    let held = matches!(merged, Merged::Taken | Merged::Had);
                    cx.send(from, self.place, Say::Ack { id, held });
                }
            }
            Say::Ack { id, held } => self.on_ack(cx, from, id, held),
            Say::Forget(keys) => {
                let evicts = |cx: &Context<'_>, key: &ItemKey| cx.class(key) == Class::Evict;
                let dead: Vec<_> = keys.into_iter().filter(|(key, _)| evicts(cx, key)).collect();
                self.drop_dead(cx, &dead);
            }
            Say::Ask { id, key, have } => {
                let found = self.found(cx, &key, have);
                cx.send(from, self.place, Say::Answer { id, found });
            }
            Say::Answer { id, found } => self.on_answer(cx, from, id, found),
            Say::Pull { session, step } => self.on_pull(cx, from, session, &step),
            Say::Given { session, answer } => self.on_given(cx, from, session, answer),
            Say::Nudge => self.sync.on_nudge(cx, from),
            Say::Hints { id, records } => self.on_hints(cx, from, id, &records),
            Say::HintsTaken { .. } => {}
        }
    }

    fn found(&mut self, cx: &mut Context<'_>, key: &ItemKey, have: Option<Write>) -> Found {
        // An item that is over must not be told as one that is there.
        let item = self.current(cx, key, false);
        match (self.catalog.get(key), have) {
            (None, _) => Found::Nothing(self.catalog.floors(key)),
            (Some(entry), Some(have)) if entry.write == have => Found::Same,
            (Some(entry), Some(have)) if entry.write < have => Found::Older,
            (Some(entry), _) => {
                let content = item.map_or(Content::Gone(entry.write), Content::Item);
                Found::Newer(Record { key: key.clone(), content })
            }
        }
    }

    fn on_hints(&mut self, cx: &mut Context<'_>, from: Member, id: u64, records: &[Record]) {
        if self.role != Role::Owner {
            return;
        }
        let taken = self.take_hints(cx, records);
        cx.send(from, self.place, Say::HintsTaken { id, taken });
    }

    /// Merges hints and passes them on; returns those that need not be kept any longer.
    pub(super) fn take_hints(
        &mut self,
        cx: &mut Context<'_>,
        records: &[Record],
    ) -> Vec<(ItemKey, Write)> {
        let mut taken = Vec::with_capacity(records.len());
        for record in records {
            let merged = self.merge(cx, record);
            if merged == Merged::Taken {
                // The other owners shall not have to wait for repair.
                for owner in self.owners.iter().chain(&self.learners) {
                    let message = Say::Write { id: 0, record: record.clone() };
                    cx.send(*owner, self.place, message);
                }
            }
            if !matches!(merged, Merged::Refused | Merged::Full) {
                taken.push((record.key.clone(), record.write()));
            }
        }
        taken
    }

    /// Upkeep has something to do now.
    pub(super) fn upkeep_soon(&mut self, cx: &Context<'_>) {
        self.upkeep_at = cx.now.mono;
    }

    /// Members that a write is told to.
    pub(super) fn audience(&self) -> BTreeSet<Member> {
        self.owners.iter().chain(&self.learners).copied().collect()
    }

    /// A number below `range` that differs between partitions and peers, so that not all do the same
    /// thing at once.
    pub(super) fn spread(place: Place, peer: Member, salt: u64, range: u64) -> u64 {
        let name = [
            u64::from(place.partition.0),
            u64::from(place.group.copies),
            peer.node.0,
            peer.incarnation.0,
            salt,
        ];
        let bytes: Vec<u8> = name.iter().flat_map(|number| number.to_le_bytes()).collect();
        xxhash_rust::xxh3::xxh3_64(&bytes) % range.max(1)
    }
}
