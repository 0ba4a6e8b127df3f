//! A write's way: evaluate, send, confirm, apply, acknowledge.
//!
//! ```text
//!   request --> evaluate against the newest state, confirmed or not
//!           --> entry (term, seq) to every copy that counts; invisible to reads
//!           --> all of them hold it: apply, acknowledge, tell
//! ```
//!
//! The copies that count are the committed in-sync set and every learner whose promotion was
//! decided on. The set grows before the growth is proposed and shrinks only after the removal is
//! committed, so at any moment it contains every copy that the controller may make primary.
//!
//! Operations whose condition fails become entries too, without an effect: their answer is then as
//! sure as that of a write, and a late repetition finds it.

use crate::answers::Lookup;
use crate::brief::Brief;
use crate::config::{NodeConfig, mutant};
use crate::context::{Asker, Context};
use crate::effect::{Change, Effect, Item, ItemKey, Operation, Outcome};
use crate::evaluate::{Rules, evaluate, is_blind};
use crate::ids::{CacheId, Member, Seq, Term, Version};
use crate::log::Entry;
use crate::node::{Refusal, Reply, Report, Request};
use crate::store::{ITEM_OVERHEAD_BYTES, Store};
use crate::time::Mono;
use crate::topology::{CacheSpec, Eviction, TopologyCommand};

use super::primary::{Held, Phase, Stage};
use super::replica::Waiting;
use super::{Replica, StrongMessage};

/// Bits of a version that count within a term; the term stands above them, so that versions rise
/// over failovers and losses without anyone remembering the last one.
///
/// The engine keeps versions of up to 48 bits in the head of an item, and longer ones beside it at a
/// cost for every read: 255 terms go by before that, and a term has versions for a trillion writes.
const COUNTER_BITS: u32 = 40;
/// Entries on their way to one copy.
const FLYING_MAX: u64 = 4_096;

impl Replica {
    // ---- the primary ---------------------------------------------------------------------------

    /// The other copies that must confirm.
    pub(super) fn required<S>(&self, cx: &Context<'_, S>) -> Vec<Member> {
        self.counted(cx.config, cx.me).collect()
    }

    fn counted(&self, config: &NodeConfig, me: Member) -> impl Iterator<Item = Member> + '_ {
        let promoted = !mutant!(config, PromotedNotCounted);
        let requested = mutant!(config, ShrinkOnRequest);
        self.primary.iter().flat_map(move |primary| {
            let in_sync = &self.state.in_sync;
            let others = in_sync.iter().filter(move |member| **member != me);
            let promoting = primary.promoting.keys();
            let promoting = promoting.filter(move |member| promoted && !in_sync.contains(member));
            others.chain(promoting).copied().filter(move |member| {
                let removed = || primary.peers.get(member).is_some_and(|p| p.removal.is_some());
                !(requested && removed())
            })
        })
    }

    /// A request that may change something.
    pub(super) fn write<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: Request,
        deadline: Mono,
        spec: &CacheSpec,
    ) {
        if let Some(reply) = self.refuse_or_repeat(cx, asker, &request, deadline, spec) {
            if let Some(reply) = reply {
                cx.reply(asker, reply);
            }
            return;
        }
        let clock_ms = cx.clock_ms();
        let Some(primary) = &mut self.primary else { return };
        let Some(version) = next_version(self.term, &mut primary.counter) else {
            return cx.reply(asker, Reply::NotApplied(Refusal::NotReady));
        };
        let rules = Rules::of(spec);
        let blind = is_blind(&request.operation, clock_ms, &rules);
        let current = if blind { None } else { self.unconfirmed(cx, &request.key, clock_ms) };
        let mut evaluated =
            evaluate(current.as_ref(), &request.operation, version, clock_ms, &rules);
        let absent = current.is_none_or(|item| item.is_over(clock_ms));
        if absent
            && matches!(evaluated.outcome, Outcome::NotFound | Outcome::NotStored)
            && self.state.generation > request.seen
        {
            // Whether there was an item is unknown.
            evaluated.outcome = Outcome::Lost(self.state.generation);
        }
        if let Some(Change::Put(item)) = &evaluated.change
            && spec.eviction == Eviction::Refuse
            && !self.has_room(cx, &request.key, item)
        {
            return cx.reply(asker, Reply::NotApplied(Refusal::OutOfMemory));
        }
        let seq = self.log.last().next();
        let effect = evaluated.change.map(|change| Effect { key: request.key.clone(), change });
        let entry = Entry {
            seq,
            version,
            clock_ms,
            effect,
            answer: request.id.map(|id| (id, Brief::from(&evaluated.outcome))),
        };
        let waiting = Waiting {
            version,
            outcome: evaluated.outcome,
            cache: request.key.cache,
            askers: vec![(asker, deadline)],
        };
        self.set_waiting(cx, seq, waiting);
        self.deadlines.push_back((deadline, seq));
        self.push(cx, entry);
        self.ship(cx);
        self.advance(cx);
    }

    /// `Some` when the request goes no further: with the reply, or `None` when it now waits for an
    /// entry that is on its way.
    #[expect(clippy::option_option, reason = "stop or go on, and with which reply")]
    fn refuse_or_repeat<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: &Request,
        deadline: Mono,
        spec: &CacheSpec,
    ) -> Option<Option<Reply>> {
        let config = &cx.config.strong;
        let clock_ms = cx.clock.advance(cx.now);
        let primary = self.primary.as_ref()?;
        if let Some(id) = request.id
            && !mutant!(cx.config, NoAnswerWindow)
        {
            if let Some(&seq) = primary.pending_ids.get(&id) {
                return Some(self.wait_for(cx, seq, asker, deadline, request));
            }
            match self.answers.look_up(id, primary.pending_ids.len(), clock_ms, config) {
                Lookup::New => {}
                Lookup::Answered(outcome) => {
                    let outcome = self.full_answer(cx, request, outcome.into());
                    return Some(Some(match outcome {
                        Some(outcome) => self.settle(cx, spec.id, outcome),
                        None => Reply::Indeterminate,
                    }));
                }
                Lookup::Forgotten => return Some(Some(Reply::Indeterminate)),
                Lookup::Full => return Some(Some(Reply::NotApplied(Refusal::Busy))),
            }
        }
        let have = u8::try_from(self.state.in_sync.len()).unwrap_or(u8::MAX);
        if have < spec.min_in_sync {
            let refusal = Refusal::TooFewInSync { have, need: spec.min_in_sync };
            return Some(Some(Reply::NotApplied(refusal)));
        }
        let pending = self.log.last().0 - self.applied.0;
        let full = pending >= config.pending_writes_max as u64
            || self.log.bytes() >= config.pending_bytes_max + config.retain_bytes_max
            || self.staged_bytes() >= config.pending_bytes_max;
        if full || self.stuck {
            return Some(Some(Reply::NotApplied(Refusal::Busy)));
        }
        None
    }

    /// Bytes of entries that are not applied: cheap but at a primary with a learner that lags.
    pub(crate) fn staged_bytes(&self) -> usize {
        if self.log.base() == self.applied {
            return self.log.bytes();
        }
        self.log.from(self.applied.next()).map(|entry| entry.bytes()).sum()
    }

    /// One who waits at a place since an earlier term waits for an entry that never came to be.
    fn set_waiting<S>(&mut self, cx: &mut Context<'_, S>, seq: Seq, waiting: Waiting) {
        if let Some(old) = self.waiting.insert(seq, waiting) {
            for (asker, _) in old.askers {
                cx.reply(asker, Reply::Indeterminate);
            }
        }
    }

    /// Has someone wait for an entry that is on its way. `Some` with the reply if that cannot be.
    fn wait_for<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        seq: Seq,
        asker: Asker,
        deadline: Mono,
        request: &Request,
    ) -> Option<Reply> {
        let Some(entry) = self.log.get(seq) else { return Some(Reply::Indeterminate) };
        let version = entry.version;
        if self.waiting.get(&seq).is_none_or(|waiting| waiting.version != version) {
            // Nobody waits any longer, or the entry came from an earlier primary.
            let answer = entry.answer.map(|(_, outcome)| outcome);
            let Some(outcome) =
                answer.and_then(|outcome| self.full_answer(cx, request, outcome.into()))
            else {
                return Some(Reply::Indeterminate);
            };
            let waiting =
                Waiting { version, outcome, cache: request.key.cache, askers: Vec::new() };
            self.set_waiting(cx, seq, waiting);
        }
        if let Some(waiting) = self.waiting.get_mut(&seq) {
            waiting.askers.push((asker, deadline));
        }
        self.deadlines.push_back((deadline, seq));
        None
    }

    /// The answer to a repeated request. Answers are kept without values: a read that touched gives
    /// the value of the version that it saw, if that is still here.
    fn full_answer<S: Store>(
        &self,
        cx: &Context<'_, S>,
        request: &Request,
        outcome: Outcome,
    ) -> Option<Outcome> {
        match (&request.operation, outcome) {
            (Operation::Get { .. } | Operation::Look { .. }, Outcome::Touched(version)) => {
                let item = self.unconfirmed(cx, &request.key, 0);
                item.filter(|item| item.version == version).map(Outcome::Hit)
            }
            (Operation::Look { .. }, Outcome::Won(seen)) => {
                let item = self.unconfirmed(cx, &request.key, 0);
                item.filter(|item| item.version == seen.version).map(Outcome::Won)
            }
            (_, outcome) => Some(outcome),
        }
    }

    /// What to say of something that is confirmed by every copy that counts.
    pub(super) fn settle<S>(&self, cx: &Context<'_, S>, cache: CacheId, outcome: Outcome) -> Reply {
        let need = cx.topology.cache(cache).map_or(1, |spec| usize::from(spec.min_in_sync));
        // Copies may have been lost since the write was let in: it is applied, but not as safe as
        // an acknowledgement promises.
        if self.state.in_sync.len() < need { Reply::Indeterminate } else { Reply::Done(outcome) }
    }

    /// Whether every copy has room for one more item in a cache that refuses when full.
    fn has_room<S: Store>(&self, cx: &Context<'_, S>, key: &ItemKey, item: &Item) -> bool {
        let cost = key.key.len() + item.value.len() + ITEM_OVERHEAD_BYTES;
        let staged = cx.staged + self.staged_bytes();
        let wanted = staged + cost + cx.config.strong.room_reserve_bytes;
        let full = self.primary.as_ref().is_some_and(|primary| {
            primary.peers.iter().any(|(member, peer)| {
                peer.full && (self.state.in_sync.contains(member) || peer.is_filled())
            })
        });
        !full && cx.store.room(key.cache) >= wanted
    }

    /// Puts an entry at the end of the primary's log.
    pub(super) fn push<S: Store>(&mut self, cx: &Context<'_, S>, entry: Entry) {
        self.index(cx, &entry);
        let pushed = self.log.push(entry);
        debug_assert!(pushed);
    }

    /// Notes what an unconfirmed entry means for the operations after it.
    pub(super) fn index<S: Store>(&mut self, cx: &Context<'_, S>, entry: &Entry) {
        let Some(primary) = &mut self.primary else { return };
        if let Some((id, _)) = &entry.answer {
            primary.pending_ids.insert(*id, entry.seq);
        }
        let Some(Effect { key, change }) = &entry.effect else { return };
        if let Change::Clear(version) = change {
            primary.cleared.insert(key.cache, (entry.seq, *version));
            let of_cache = primary.latest.iter_mut().filter(|(other, _)| other.cache == key.cache);
            of_cache.for_each(|(_, (_, item))| *item = None);
            return;
        }
        let item = match change {
            Change::Put(item) => Some(item.clone()),
            Change::Remove(_) | Change::Clear(_) => None,
            Change::Touch { version, deadline_ms, marks } => {
                match self.unconfirmed(cx, key, entry.clock_ms) {
                    Some(item) if item.version == *version => {
                        Some(Item { deadline_ms: *deadline_ms, marks: *marks, ..item })
                    }
                    other => other,
                }
            }
        };
        let Some(primary) = &mut self.primary else { return };
        primary.latest.insert(key.clone(), (entry.seq, item));
    }

    /// The newest state of a key at its primary, confirmed or not.
    pub(super) fn unconfirmed<S: Store>(
        &self,
        cx: &Context<'_, S>,
        key: &ItemKey,
        clock_ms: u64,
    ) -> Option<Item> {
        let primary = self.primary.as_ref();
        if let Some((_, item)) = primary.and_then(|primary| primary.latest.get(key)) {
            return item.clone();
        }
        let item = cx.store.read(self.place, key, false, clock_ms)?;
        let cleared = primary.and_then(|primary| primary.cleared.get(&key.cache));
        cleared.is_none_or(|(_, version)| item.version > *version).then_some(item)
    }

    /// Sends each copy what it was not sent yet.
    pub(super) fn ship<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let mut place = 0;
        // To send may start a transfer anew, but adds and removes no peer.
        while let Some(primary) = &self.primary
            && let Some((&peer, _)) = primary.peers.at(place)
        {
            self.send_entries(cx, peer);
            place += 1;
        }
    }

    pub(super) fn send_entries<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let config = &cx.config.strong;
        loop {
            let last = self.log.last();
            let Some(primary) = &mut self.primary else { return };
            let Some(peer) = primary.peers.get_mut(&to) else { return };
            let flying = peer.sent.0.saturating_sub(peer.acked.0);
            if !peer.started || peer.sent >= last || flying >= FLYING_MAX {
                return;
            }
            if peer.sent < self.log.base() {
                // It lags behind what is kept.
                return self.restart_transfer(cx, to);
            }
            let entries = self.log.batch(peer.sent.next(), config.append_bytes_max);
            peer.sent = Seq(peer.sent.0 + entries.len() as u64);
            peer.told = self.applied;
            primary.untold_bytes = 0;
            peer.owe(cx.now.mono, config.resend_after_ms);
            let message = StrongMessage::Append {
                term: self.term,
                stable: self.applied,
                version: self.state.version,
                probe: false,
                entries,
            };
            self.send(cx, to, message);
        }
    }

    /// Asks a copy for a sign of life.
    pub(super) fn probe<S>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        peer.told = self.applied;
        peer.owe(cx.now.mono, cx.config.strong.resend_after_ms);
        let message = StrongMessage::Append {
            term: self.term,
            stable: self.applied,
            version: self.state.version,
            probe: true,
            entries: Vec::new(),
        };
        self.send(cx, to, message);
    }

    /// A copy confirms.
    pub(super) fn on_ack<S: Store>(&mut self, cx: &mut Context<'_, S>, from: Member, held: Held) {
        if held.term != self.term || held.have > self.log.last() {
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        let starting = matches!(primary.phase, Phase::Starting { .. } | Phase::Serving);
        let Some(peer) = primary.peers.get_mut(&from) else { return };
        let early = !peer.started && (peer.transfer.is_some() || !starting);
        if early || peer.source != held.transfer {
            return;
        }
        let gets_on = !peer.started || held.have > peer.acked || held.have >= peer.sent;
        peer.started = true;
        peer.acked = peer.acked.max(held.have);
        peer.sent = peer.sent.max(peer.acked);
        peer.version = peer.version.max(held.version);
        peer.clock_ms = peer.clock_ms.max(held.clock_ms);
        peer.full = held.full;
        // One that answers but has no room for more gets on no better than one that is silent.
        if gets_on {
            peer.owes_since = cx.now.mono;
        }
        let owes = peer.acked < peer.sent || peer.full;
        peer.resend_at = owes.then(|| cx.now.mono.after_ms(cx.config.strong.resend_after_ms));
        self.advance(cx);
        self.send_entries(cx, from);
    }

    /// Applies and acknowledges what every copy that counts has confirmed.
    pub(super) fn advance<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &self.primary else { return };
        if primary.serves() && self.applied == self.log.last() {
            return;
        }
        let barrier = match primary.phase {
            Phase::Leased | Phase::Sealing(_) => return,
            Phase::Starting { barrier } => Some(barrier),
            Phase::Serving => None,
        };
        let confirmed = self
            .counted(cx.config, cx.me)
            .map(|member| {
                primary
                    .peers
                    .get(&member)
                    .filter(|peer| peer.started)
                    .map_or(Seq(0), |peer| peer.acked)
            })
            .min()
            .unwrap_or(self.log.last())
            .min(self.log.last());
        let before = self.applied;
        let mut bytes = 0;
        while self.applied < confirmed {
            let Some(entry) = self.log.get(self.applied.next()).cloned() else { break };
            if !self.apply(cx, &entry) {
                break;
            }
            bytes += entry.bytes();
        }
        if self.applied == before && barrier.is_none() {
            return;
        }
        while self.deadlines.front().is_some_and(|(_, seq)| *seq <= self.applied) {
            self.deadlines.pop_front();
        }
        if self.applied > before {
            let (place, term, seq) = (self.place, self.term, self.applied);
            cx.report(Report::Stable { place, term, seq });
            self.trim();
            let config = &cx.config.strong;
            let is_read = self.is_read_at_copies(cx);
            if let Some(primary) = &mut self.primary {
                primary.untold_bytes = primary.untold_bytes.saturating_add(bytes);
                let fills = primary.peers.values().any(|peer| !peer.is_filled());
                let much = primary.untold_bytes > config.untold_bytes_max;
                // Clients of the predecessor wait there for what was on its way.
                let starts = barrier.is_some();
                if is_read || fills || much || starts {
                    primary.tell_by(cx.now.mono.after_ms(config.tell_after_ms));
                }
            }
            self.answer_blocked(cx);
        }
        if barrier.is_some_and(|barrier| self.applied >= barrier) {
            self.begin_to_serve(cx);
        }
    }

    /// Forgets entries that nobody will ask for.
    pub(super) fn trim(&mut self) {
        let Some(primary) = &self.primary else { return };
        let wanted = primary.peers.values().filter_map(|peer| match &peer.transfer {
            _ if peer.started => Some(peer.acked),
            Some(transfer) if transfer.stage == Stage::Asked => Some(transfer.base),
            _ => None,
        });
        let keep = wanted.min().unwrap_or(self.applied);
        self.log.trim(keep.min(self.applied));
    }

    /// Proposes removals, and sends again what was not confirmed in time.
    pub(super) fn resend<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let now = cx.now.mono;
        let config = &cx.config.strong;
        let Some(primary) = &mut self.primary else { return };
        if matches!(primary.phase, Phase::Leased) {
            return;
        }
        let mut due = Vec::new();
        let mut removals = Vec::new();
        for (&member, peer) in primary.peers.iter_mut() {
            if peer.resend_at.is_none_or(|at| at > now) {
                continue;
            }
            peer.resend_at = Some(now.after_ms(config.resend_after_ms));
            due.push(member);
            let silent = now.since_ms(peer.owes_since) >= config.shrink_after_ms;
            let version = self.state.version;
            let asked = peer.removal.is_some_and(|(at, again)| at == version && again > now);
            if silent && !asked && self.state.in_sync.contains(&member) {
                peer.removal = Some((version, now.after_ms(config.shrink_after_ms)));
                removals.push(member);
            }
        }
        for member in removals {
            let version = self.state.version;
            cx.propose(TopologyCommand::Shrink { place: self.place, version, member });
        }
        for member in due {
            self.send_again(cx, member);
        }
    }

    fn send_again<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let last = self.log.last();
        let Some(primary) = &mut self.primary else { return };
        let Some(peer) = primary.peers.get_mut(&to) else { return };
        match &primary.phase {
            Phase::Leased => {}
            Phase::Sealing(sealed) => {
                if !sealed.contains_key(&to) {
                    self.send(cx, to, StrongMessage::Seal { term: self.term });
                }
            }
            Phase::Starting { .. } | Phase::Serving if !peer.started => {
                if peer.transfer.is_none() {
                    self.send_start(cx, to);
                }
            }
            Phase::Starting { .. } | Phase::Serving => {
                peer.sent = peer.acked;
                if peer.sent < last { self.send_entries(cx, to) } else { self.probe(cx, to) }
            }
        }
    }

    /// Tells quiet copies what is confirmed, and what was evicted here.
    pub(super) fn tell<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        if primary.tell_at.is_none_or(|at| at > cx.now.mono) {
            return;
        }
        primary.tell_at = None;
        primary.untold_bytes = 0;
        let keys = std::mem::take(&mut primary.evictions);
        let (term, stable, version) = (self.term, self.applied, self.state.version);
        let mut told = Vec::new();
        for (&member, peer) in primary.peers.iter_mut().filter(|(_, peer)| peer.started) {
            told.push((member, peer.told < stable));
            peer.told = peer.told.max(stable);
        }
        for (member, behind) in told {
            if !keys.is_empty() {
                self.send(cx, member, StrongMessage::Evicted { term, keys: keys.clone() });
            }
            if behind {
                let entries = Vec::new();
                let message =
                    StrongMessage::Append { term, stable, version, probe: false, entries };
                self.send(cx, member, message);
            }
        }
    }

    /// The store dropped these by itself.
    pub fn on_evicted<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        keys: impl IntoIterator<Item = (ItemKey, Version)>,
    ) {
        let Some(primary) = &mut self.primary else { return };
        let room = cx.config.strong.evictions_max.saturating_sub(primary.evictions.len());
        primary.evictions.extend(keys.into_iter().take(room));
        primary.tell_by(cx.now.mono.after_ms(cx.config.strong.tell_after_ms));
    }
}

/// The next version of a term, `None` when there is none left.
fn next_version(term: Term, counter: &mut u64) -> Option<Version> {
    let next = *counter + 1;
    if term.0 >= 1 << (u64::BITS - COUNTER_BITS) || next >= 1 << COUNTER_BITS {
        return None;
    }
    *counter = next;
    Some(Version(term.0 << COUNTER_BITS | next))
}

/// A version for a barrier.
pub(super) fn barrier_version(term: Term, counter: &mut u64) -> Version {
    // A term without versions left serves nothing, but its barrier still needs to differ.
    next_version(term, counter).unwrap_or(Version(u64::MAX))
}
