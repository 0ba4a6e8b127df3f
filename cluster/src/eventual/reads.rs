//! Reads: from this copy alone, or from a majority.
//!
//! A quorum read asks all other owners what they have, with the identity of what is here, so that a
//! value only travels when it is newer. It is answered when a majority, this copy included, has
//! spoken; what was newer is merged on arrival, and copies that turned out older get the newest:
//! read repair. With writes acknowledged by a majority, too, a quorum read sees every write that was
//! acknowledged before it began.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::Asker;
use crate::effect::Outcome;
use crate::ids::Member;
use crate::node::{Refusal, Reply, Request};
use crate::time::Mono;
use crate::topology::{CacheSpec, ReadMode};

use super::context::Context;
use super::merge::Merged;
use super::message::{Content, Found, Record, Say};
use super::replica::EventualReplica;

struct Pending {
    asker: Asker,
    request: Request,
    waiting: BTreeSet<Member>,
    answered: BTreeSet<Member>,
    /// Owners that had something older than the asker, or nothing.
    behind: BTreeSet<Member>,
    /// The newest that there was no room for here: the reader shall see it all the same.
    unmerged: Option<Record>,
    deadline: Mono,
    resend: Mono,
}

impl Pending {
    fn due(&self) -> Mono {
        self.resend.min(self.deadline)
    }
}

/// The quorum reads of one copy that wait for others.
#[derive(Default)]
pub struct Reads {
    pending: BTreeMap<u64, Pending>,
    due: BTreeSet<(Mono, u64)>,
    begun: u64,
}

impl Reads {
    /// When one is to be asked again, or ends.
    pub fn next_due(&self) -> Mono {
        self.due.first().map_or(Mono::MAX, |(due, _)| *due)
    }

    /// Gives all up; returns who waits.
    pub fn take_all(&mut self) -> Vec<Asker> {
        self.due.clear();
        std::mem::take(&mut self.pending).into_values().map(|read| read.asker).collect()
    }

    fn insert(&mut self, id: u64, read: Pending) {
        self.due.insert((read.due(), id));
        self.pending.insert(id, read);
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let read = self.pending.remove(&id)?;
        self.due.remove(&(read.due(), id));
        Some(read)
    }
}

impl EventualReplica {
    /// A client reads.
    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        asker: Asker,
        request: &Request,
        cache: &CacheSpec,
    ) {
        if cache.read != ReadMode::Quorum || self.owners.is_empty() {
            let reply = self.read_here(cx, request);
            return cx.reply(asker, reply);
        }
        if self.reads.pending.len() >= cx.config.pending_reads_max {
            return cx.reply(asker, Reply::NotApplied(Refusal::Busy));
        }
        let now = cx.now.mono;
        self.reads.begun += 1;
        let id = self.reads.begun;
        let read = Pending {
            asker,
            request: request.clone(),
            waiting: self.owners.iter().copied().collect(),
            answered: BTreeSet::new(),
            behind: BTreeSet::new(),
            unmerged: None,
            deadline: now.after_ms(cx.config.request_timeout_ms),
            resend: now.after_ms(cx.config.resend_ms),
        };
        self.ask(cx, id, &read);
        self.reads.insert(id, read);
    }

    fn ask(&mut self, cx: &mut Context<'_>, id: u64, read: &Pending) {
        let key = &read.request.key;
        let have = self.catalog.get(key).map(|entry| entry.write);
        for member in &read.waiting {
            cx.send(*member, self.place, Say::Ask { id, key: key.clone(), have });
        }
    }

    /// An owner says what it has.
    pub(super) fn on_answer(&mut self, cx: &mut Context<'_>, from: Member, id: u64, found: Found) {
        let Some(read) = self.reads.pending.get_mut(&id) else { return };
        if !read.waiting.remove(&from) {
            return;
        }
        read.answered.insert(from);
        let key = read.request.key.clone();
        match found {
            Found::Same => {}
            Found::Older => {
                read.behind.insert(from);
            }
            Found::Nothing(floors) => {
                let ours = self.catalog.get(&key).map(|entry| entry.write);
                match ours {
                    // Dead there means dead here: the delete was forgotten, but for the floor.
                    Some(ours) if ours.version <= floors.of(cx.class(&key)) => {
                        self.drop_dead(cx, &[(key, ours)]);
                    }
                    Some(_) => {
                        read.behind.insert(from);
                    }
                    None => {}
                }
            }
            // The key asked for, whatever the answer names.
            Found::Newer(record) if record.key == key => {
                let newest =
                    read.unmerged.as_ref().is_none_or(|best| best.write() < record.write());
                if self.merge(cx, &record) == Merged::Full
                    && newest
                    && let Some(read) = self.reads.pending.get_mut(&id)
                {
                    read.unmerged = Some(record);
                }
            }
            Found::Newer(_) => {}
        }
        self.settle_read(cx, id);
    }

    fn settle_read(&mut self, cx: &mut Context<'_>, id: u64) {
        let Some(read) = self.reads.pending.get(&id) else { return };
        let answered = self.owners.iter().filter(|owner| read.answered.contains(owner)).count();
        if answered < self.owners.len().div_ceil(2) {
            return;
        }
        let Some(read) = self.reads.remove(id) else { return };
        let here = self.catalog.get(&read.request.key).map(|entry| entry.write);
        let unmerged = read.unmerged.as_ref().filter(|record| Some(record.write()) > here);
        let clock_ms = cx.clock_ms();
        let reply = match unmerged.map(|record| record.item().filter(|i| !i.is_over(clock_ms))) {
            Some(Some(item)) => Reply::Done(Outcome::Hit(item.clone())),
            Some(None) => Reply::Done(Outcome::NotFound),
            None => self.read_here(cx, &read.request),
        };
        self.repair_read(cx, &read);
        cx.reply(read.asker, reply);
    }

    /// Sends what is here to copies that turned out to be behind.
    fn repair_read(&mut self, cx: &mut Context<'_>, read: &Pending) {
        if read.behind.is_empty() {
            return;
        }
        let key = &read.request.key;
        let item = self.current(cx, key, false);
        let Some(entry) = self.catalog.get(key) else { return };
        let content = item.map_or(Content::Gone(entry.write), Content::Item);
        let record = Record { key: key.clone(), content };
        for member in &read.behind {
            cx.shared.stats.read_repairs += 1;
            cx.send(*member, self.place, Say::Write { id: 0, record: record.clone() });
        }
    }

    /// Asks again those who did not answer, and ends what waited too long.
    pub(super) fn resend_asks(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        while let Some((due, id)) = self.reads.due.first().copied()
            && due <= now
        {
            let Some(mut read) = self.reads.remove(id) else {
                self.reads.due.pop_first();
                continue;
            };
            if now >= read.deadline {
                cx.reply(read.asker, Reply::NotApplied(Refusal::TimedOut));
                continue;
            }
            self.ask(cx, id, &read);
            read.resend = now.after_ms(cx.config.resend_ms.saturating_mul(2).max(1));
            self.reads.insert(id, read);
        }
    }
}
