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

use bytes::Bytes;

use crate::context::Asker;
use crate::digest::Class;
use crate::effect::{Change, Effect, Item, ItemKey, Outcome};
use crate::ids::{Generation, Member, Place, Version};
use crate::node::{Refusal, Reply, Request};
use crate::store::Stored;
use crate::time::Mono;
use crate::tombstone;
use crate::topology::{OnLoss, PartitionState};
use crate::version::Write;

use super::catalog::{Catalog, Position, State, Verdict};
use super::context::Context;
use super::message::{Content, EventualMessage, Found, Record, Say};
use super::reads::Reads;
use super::sync::Sync;
use super::window::Window;
use super::writes::Writes;

/// Entries touched by one turn of upkeep.
const UPKEEP_STEPS: usize = 256;
/// Evictions told in one message.
const FORGETS_MAX: usize = 256;

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
    forgets: Vec<(ItemKey, Write)>,
    /// Evicted while an owner was away: tombstones only until it is back.
    parked: BTreeSet<ItemKey>,
    /// Where the walk that drops items of dropped caches stands.
    sweep: Option<Option<Position>>,
    upkeep_at: Mono,
    upkeep_again: bool,
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
        self.state = state.cloned().unwrap_or_default();
        self.owners = others(&self.state.in_sync);
        self.learners = others(&self.state.learners);
        let before = self.role;
        let is_fresh = before == Role::Gone && self.catalog.is_empty();
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
                Role::Owner if state.is_some() => Role::Leaving { since: cx.now.mono },
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

    /// Whether everything was dropped and nothing is left to do.
    pub fn is_gone(&self) -> bool {
        self.role == Role::Gone && self.catalog.is_empty()
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

    // ---- merging ---------------------------------------------------------------------------

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
    fn bury(&mut self, cx: &mut Context<'_>, key: &ItemKey, class: Class, write: Write) {
        self.remove_item(cx, key, write.version);
        if crate::mutant!(cx, TombstoneEarly) {
            self.catalog.erase(key);
            return;
        }
        self.catalog.put_dead(key, class, write, cx.now.mono);
        self.bound_tombstones(cx, class);
    }

    /// The key's item is over.
    fn end(&mut self, cx: &mut Context<'_>, key: &ItemKey) {
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

    fn sink(&mut self, cx: &mut Context<'_>, key: &ItemKey, class: Class) -> bool {
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

    fn remove_item(&mut self, cx: &mut Context<'_>, key: &ItemKey, version: Version) {
        if self.catalog.get(key).is_some_and(|entry| entry.is_live()) {
            let clock_ms = cx.clock_ms();
            let effect = Effect { key: key.clone(), change: Change::Remove(version) };
            cx.store.apply(self.place, &effect, false, clock_ms);
        }
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

    // ---- upkeep ----------------------------------------------------------------------------

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
            return if self.is_gone() { Mono::MAX } else { cx.now.mono };
        }
        self.next_upkeep(cx)
            .min(self.writes.next_due())
            .min(self.reads.next_due())
            .min(self.sync.next_due())
    }

    fn next_upkeep(&self, cx: &mut Context<'_>) -> Mono {
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

    fn upkeep(&mut self, cx: &mut Context<'_>) {
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
    fn sink_parked(&mut self, cx: &mut Context<'_>) {
        for _ in 0..UPKEEP_STEPS {
            let Some(key) = self.parked.pop_first() else { return };
            let class = cx.class(&key);
            if self.catalog.get(&key).is_some_and(|entry| !entry.is_live()) {
                self.sink(cx, &key, class);
            }
        }
        self.upkeep_again = !self.parked.is_empty();
    }

    fn drop_ripe_tombstone(&mut self, cx: &mut Context<'_>, class: Class) -> bool {
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
    fn bound_tombstones(&mut self, cx: &mut Context<'_>, class: Class) {
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
    fn sweep_dropped_caches(&mut self, cx: &mut Context<'_>) {
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
    fn drop_all(&mut self, cx: &mut Context<'_>) {
        if cx.store.drop_partition(self.place, UPKEEP_STEPS) {
            return;
        }
        self.release(cx);
        let state = std::mem::take(&mut self.state);
        *self = Self::new(self.place, cx);
        if state.in_sync.contains(&cx.me) || state.learners.contains(&cx.me) {
            self.on_topology(cx, Some(&state));
        }
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
