//! Writes that this owner took: stamping them, telling the others, and when the client is answered.
//!
//! Operations are evaluated here, against the item as it is on this copy; the whole resulting item is
//! sent, so that a copy needs nothing else to merge it. A compare-and-set or an increment therefore
//! promises nothing against one that another owner takes at the same time: the last write wins.
//!
//! A write goes on being sent to those who did not confirm it until its deadline; after that repair
//! takes over. A client that waited for more copies than confirmed is told *indeterminate*: the write
//! is in this memory and will spread.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Asker;
use crate::effect::{Change, Item, Outcome};
use crate::evaluate::{Rules, evaluate};
use crate::ids::{Member, RequestId, Version};
use crate::node::{Refusal, Reply, Request};
use crate::time::Mono;
use crate::topology::{Acks, CacheSpec};
use crate::version::Write;

use super::context::Context;
use super::message::{Content, Record, Say};
use super::replica::EventualReplica;
use super::window::{Answered, Lookup};

/// Retries of one request that wait with it.
const ASKERS_MAX: usize = 4;

struct Pending {
    record: Record,
    acks: Acks,
    /// Who waits for the answer; empty once it was given.
    askers: Vec<Asker>,
    outcome: Outcome,
    id: Option<RequestId>,
    waiting: BTreeSet<Member>,
    confirmed: BTreeSet<Member>,
    deadline: Mono,
    resend: Mono,
}

impl Pending {
    fn due(&self) -> Mono {
        self.resend.min(self.deadline)
    }

    /// Whether enough of the present owners hold it, this one included.
    fn is_enough(&self, owners: &[Member]) -> bool {
        let confirmed = owners.iter().filter(|owner| self.confirmed.contains(owner)).count();
        match self.acks {
            Acks::One => true,
            // This copy and half of the others make a majority.
            Acks::Quorum => confirmed >= owners.len().div_ceil(2),
            Acks::All => confirmed == owners.len(),
        }
    }
}

/// The writes of one copy that others did not confirm yet.
#[derive(Default)]
pub struct Writes {
    pending: BTreeMap<u64, Pending>,
    due: BTreeSet<(Mono, u64)>,
    begun: u64,
}

impl Writes {
    /// When one is to be sent again, or ends.
    pub fn next_due(&self) -> Mono {
        self.due.first().map_or(Mono::MAX, |(due, _)| *due)
    }

    /// How many are under way.
    fn count(&self) -> usize {
        self.pending.len()
    }

    /// Gives all up; returns who waits.
    pub fn take_all(&mut self) -> Vec<Asker> {
        self.due.clear();
        std::mem::take(&mut self.pending).into_values().flat_map(|write| write.askers).collect()
    }

    fn insert(&mut self, id: u64, write: Pending) {
        self.due.insert((write.due(), id));
        self.pending.insert(id, write);
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let write = self.pending.remove(&id)?;
        self.due.remove(&(write.due(), id));
        Some(write)
    }
}

impl EventualReplica {
    /// A client's operation that may change something.
    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        asker: Asker,
        request: &Request,
        cache: &CacheSpec,
    ) {
        if let Some(id) = request.id {
            match self.window.lookup(id) {
                Lookup::New => {}
                Lookup::Forgotten => return cx.reply(asker, Reply::Indeterminate),
                Lookup::Answered(answered) => {
                    let answered = answered.clone();
                    return self.answer_retry(cx, asker, id, answered, cache.acks);
                }
            }
        }
        if self.writes.count() >= cx.config.pending_writes_max {
            return cx.reply(asker, Reply::NotApplied(Refusal::Busy));
        }
        let key = &request.key;
        let current = self.current(cx, key, true);
        let above = self.catalog.get(key).map_or(Version(0), |entry| entry.write.version);
        let next = cx.shared.clock.stamp_above(cx.now, above);
        let clock_ms = cx.clock_ms();
        // Another owner may hold what is not here, so a delete is passed on in any case.
        let rules = Rules {
            value_len_max: cache.value_len_max as usize,
            default_ttl_ms: cache.default_ttl_ms,
            evicts: true,
        };
        let evaluated = evaluate(current.as_ref(), &request.operation, next, clock_ms, &rules);
        let (content, outcome) = whole(evaluated.change, evaluated.outcome, current, next);
        let Some(content) = content else {
            self.remember(cx, request, &outcome, None);
            return cx.reply(asker, Reply::Done(outcome));
        };
        let fits = matches!(content, Content::Item(_)) || self.has_tombstone_room(cx, key);
        if !fits || !self.apply(cx, key, &content) {
            return cx.reply(asker, Reply::NotApplied(Refusal::OutOfMemory));
        }
        cx.shared.stats.writes += 1;
        let mut record = Record { key: key.clone(), content };
        let mut outcome = outcome;
        let kept = self.catalog.get(key).is_some_and(|entry| entry.is_live());
        if let Content::Item(item) = &record.content
            && !kept
            && !item.is_over(clock_ms)
        {
            // The store had no room and dropped it. An older value must not stay on the others.
            record.content = Content::Gone(Write::delete(next));
            outcome = Outcome::OutOfMemory;
        }
        self.remember(cx, request, &outcome, Some(record.write()));
        self.spread_write(cx, asker, request.id, record, outcome, cache.acks);
    }

    /// A write of this node that an owner is to spread, whose client needs no answer from here.
    fn spread_write(
        &mut self,
        cx: &mut Context<'_>,
        asker: Asker,
        id: Option<RequestId>,
        record: Record,
        outcome: Outcome,
        acks: Acks,
    ) {
        let now = cx.now.mono;
        self.writes.begun += 1;
        let number = self.writes.begun;
        let waiting = self.audience();
        for member in &waiting {
            let say = Say::Write { id: number, record: record.clone() };
            cx.send(*member, self.place, say);
        }
        let write = Pending {
            record,
            acks,
            askers: vec![asker],
            outcome,
            id,
            waiting,
            confirmed: BTreeSet::new(),
            deadline: now.after_ms(cx.config.request_timeout_ms),
            resend: now.after_ms(cx.config.resend_ms),
        };
        self.writes.insert(number, write);
        self.settle_write(cx, number);
    }

    fn remember(
        &mut self,
        cx: &Context<'_>,
        request: &Request,
        outcome: &Outcome,
        write: Option<Write>,
    ) {
        if let Some(id) = request.id {
            let answered = Answered { outcome: outcome.clone(), key: request.key.clone(), write };
            self.window.remember(id, answered, cx.now.mono);
        }
    }

    /// The request was carried out before: its copies are asked for again, not its effect.
    fn answer_retry(
        &mut self,
        cx: &mut Context<'_>,
        asker: Asker,
        id: RequestId,
        answered: Answered,
        acks: Acks,
    ) {
        let under_way = self.writes.pending.values_mut().find(|write| write.id == Some(id));
        if let Some(write) = under_way
            && !write.askers.is_empty()
        {
            if write.askers.len() < ASKERS_MAX {
                write.askers.push(asker);
            } else {
                cx.reply(asker, Reply::Indeterminate);
            }
            return;
        }
        // What a newer write replaced needs no copies any more.
        let entry = self.catalog.get(&answered.key).copied();
        let latest = entry.filter(|entry| Some(entry.write) == answered.write);
        let (Some(entry), true) = (latest, acks != Acks::One) else {
            return cx.reply(asker, Reply::Done(answered.outcome));
        };
        if self.writes.count() >= cx.config.pending_writes_max {
            return cx.reply(asker, Reply::Indeterminate);
        }
        let content = match self.current(cx, &answered.key, false) {
            Some(item) => Content::Item(item),
            None => Content::Gone(entry.write),
        };
        let record = Record { key: answered.key, content };
        self.spread_write(cx, asker, Some(id), record, answered.outcome, acks);
    }

    /// A member confirmed a write, or did not take it.
    pub(super) fn on_ack(&mut self, cx: &mut Context<'_>, from: Member, id: u64, held: bool) {
        let Some(write) = self.writes.pending.get_mut(&id) else { return };
        // One that refused may have room later; repair will see to it.
        if !write.waiting.remove(&from) {
            return;
        }
        if held {
            write.confirmed.insert(from);
        } else {
            self.sync.suspect(cx, from);
        }
        self.settle_write(cx, id);
    }

    /// The owners changed: those gone are not waited for.
    pub(super) fn settle_writes(&mut self, cx: &mut Context<'_>) {
        let audience = self.audience();
        let ids: Vec<u64> = self.writes.pending.keys().copied().collect();
        for id in ids {
            if let Some(write) = self.writes.pending.get_mut(&id) {
                write.waiting.retain(|member| audience.contains(member));
            }
            self.settle_write(cx, id);
        }
    }

    /// Answers a write that has enough copies; forgets one that nobody is waited for.
    fn settle_write(&mut self, cx: &mut Context<'_>, id: u64) {
        let Some(write) = self.writes.pending.get_mut(&id) else { return };
        if write.is_enough(&self.owners) {
            for asker in std::mem::take(&mut write.askers) {
                cx.reply(asker, Reply::Done(write.outcome.clone()));
            }
        }
        if write.waiting.is_empty()
            && let Some(write) = self.writes.remove(id)
        {
            for asker in write.askers {
                cx.reply(asker, Reply::Indeterminate);
            }
        }
    }

    /// Sends again what was not confirmed, and ends what waited too long.
    pub(super) fn resend_writes(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        while let Some((due, id)) = self.writes.due.first().copied()
            && due <= now
        {
            let Some(mut write) = self.writes.remove(id) else {
                self.writes.due.pop_first();
                continue;
            };
            if now >= write.deadline {
                for member in &write.waiting {
                    self.sync.suspect(cx, *member);
                }
                for asker in write.askers {
                    cx.reply(asker, Reply::Indeterminate);
                }
                continue;
            }
            for member in &write.waiting {
                let say = Say::Write { id, record: write.record.clone() };
                cx.send(*member, self.place, say);
            }
            // Twice as long each time: the first repeat is for a lost packet, later ones for a cut.
            let waited_ms = now.since_ms(write.deadline_begin(cx.config.request_timeout_ms));
            write.resend = now.after_ms(waited_ms.max(cx.config.resend_ms).max(1));
            self.writes.insert(id, write);
        }
    }
}

impl Pending {
    fn deadline_begin(&self, timeout_ms: u64) -> Mono {
        Mono(self.deadline.0.saturating_sub(timeout_ms.saturating_mul(1_000_000)))
    }
}

/// Turns a change into what copies get: the whole item under a version of its own. A touch is a
/// write like any other here, since copies that missed it could not merge it.
pub(super) fn whole(
    change: Option<Change>,
    outcome: Outcome,
    current: Option<Item>,
    next: Version,
) -> (Option<Content>, Outcome) {
    match (change, current) {
        (None, _) => (None, outcome),
        (Some(Change::Put(item)), _) => (Some(Content::Item(item)), outcome),
        (Some(Change::Remove(version) | Change::Clear(version)), _) => {
            (Some(Content::Gone(Write::delete(version))), outcome)
        }
        (Some(Change::Touch { deadline_ms, marks, .. }), Some(item)) => {
            let item = Item { deadline_ms, marks, version: next, ..item };
            let outcome = match outcome {
                Outcome::Touched(_) => Outcome::Touched(next),
                Outcome::Hit(_) => Outcome::Hit(item.clone()),
                Outcome::Won(_) => Outcome::Won(item.clone()),
                other => other,
            };
            (Some(Content::Item(item)), outcome)
        }
        (Some(Change::Touch { .. }), None) => (None, outcome),
    }
}
