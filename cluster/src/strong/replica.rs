//! One partition of a strong group on one node: its role, what reaches it, its timers.
//!
//! Always true:
//! - `term` never falls, and nothing of a lower term is obeyed;
//! - `log` holds every entry after `applied` that this copy confirmed, without gaps;
//! - a copy that holds no more than part of the data confirms nothing that could make it count.

use std::collections::{BTreeMap, VecDeque};

use crate::answers::Answers;
use crate::context::{Asker, Context};
use crate::effect::{Change, Effect, Item, ItemKey, Outcome};
use crate::ids::{CacheId, Generation, Member, NodeId, Place, Seq, Term, TransferId, Version};
use crate::log::Log;
use crate::node::{Refusal, Reply, Report, Request};
use crate::store::Store;
use crate::time::Mono;
use crate::topology::{Eviction, OnLoss, PartitionState, TopologyCommand};
use crate::warm::fetch;

use super::StrongMessage;
use super::intake::Intake;
use super::primary::{Held, Peer, Phase, Primary, Transfer};

/// What this node is to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionRole {
    /// Orders writes, or is about to.
    Primary,
    /// Holds every acknowledged write.
    Backup,
    /// Is being filled, or was and is not counted yet.
    Learner,
    /// Holds nothing.
    None,
}

/// A look at a partition, for metrics and judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// What this node is to it.
    pub role: PartitionRole,
    /// The term followed.
    pub term: Term,
    /// A primary past its barrier.
    pub serving: bool,
    /// Applied up to here.
    pub stable: Seq,
    /// In memory up to here.
    pub last: Seq,
    /// The generation of the data.
    pub generation: Generation,
}

/// Those who wait for an entry to be confirmed.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The entry meant.
    pub(super) version: Version,
    pub(super) outcome: Outcome,
    pub(super) cache: CacheId,
    pub(super) askers: Vec<(Asker, Mono)>,
}

/// What a copy promised its primary: to let nobody else serve until then.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    /// The latest term that was promised anything.
    pub(super) term: Term,
    pub(super) until: Mono,
    /// What the primary may have judged ends by until then.
    pub(super) clock_ms: u64,
}

/// One partition of a strong group on one node.
#[derive(Debug)]
pub struct Replica {
    pub(super) place: Place,
    /// The newest committed state known here.
    pub(super) state: PartitionState,
    pub(super) term: Term,
    pub(super) log: Log,
    /// The term in which the log was last made equal to a primary's.
    pub(super) log_term: Term,
    pub(super) applied: Seq,
    pub(super) generation: Generation,
    /// The partition's version under which the data are held.
    pub(super) hold_version: u64,
    pub(super) holds: bool,
    /// Older data are being dropped.
    pub(super) wiping: bool,
    /// When to go on dropping.
    wipe_at: Mono,
    /// Items of this partition may be in the store.
    pub(super) stored: bool,
    pub(super) intake: Intake,
    /// The latest transfer taken part in, and who feeds it.
    pub(super) transfer: (Term, TransferId),
    pub(super) filler: Option<Member>,
    pub(super) answers: Answers,
    pub(super) granted: Granted,
    /// A term that this copy served and serves no longer: its successor is to be told.
    yielded: Option<Term>,
    pub(super) primary: Option<Box<Primary>>,
    pub(super) waiting: BTreeMap<Seq, Waiting>,
    /// When those who wait give up, in order.
    pub(super) deadlines: VecDeque<(Mono, Seq)>,
    /// Requests that came before this primary served.
    pub(super) held: VecDeque<(Asker, Request, Mono)>,
    /// This copy confirms nothing more: what follows in its log cannot be applied.
    pub(super) stuck: bool,
    /// That is because an effect found no room where none may be missing. The other copies are whole.
    pub(super) no_room: bool,
    /// The version at which it asked for another primary for that reason, and when it asks again.
    handing_back: Option<(u64, Mono)>,
    /// Effects applied up to here were evaluated by this clock: what ended before may be dropped.
    pub(super) expired_ms: u64,
}

impl Replica {
    /// A partition of which nothing is known.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self {
            place,
            state: PartitionState::default(),
            term: Term(0),
            log: Log::default(),
            log_term: Term(0),
            applied: Seq(0),
            generation: Generation(0),
            hold_version: 0,
            holds: false,
            wiping: false,
            wipe_at: Mono::default(),
            stored: false,
            intake: Intake::EMPTY,
            transfer: (Term(0), TransferId(0)),
            filler: None,
            answers: Answers::default(),
            granted: Granted::default(),
            yielded: None,
            primary: None,
            waiting: BTreeMap::new(),
            deadlines: VecDeque::new(),
            held: VecDeque::new(),
            stuck: false,
            no_room: false,
            handing_back: None,
            expired_ms: 0,
        }
    }

    /// Which partition.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether data were lost that no operator has acknowledged, as far as is known here.
    #[must_use]
    pub fn has_unacknowledged_loss(&self) -> bool {
        self.state.has_unacknowledged_loss()
    }

    /// The highest term heard of.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term.max(self.state.term)
    }

    // ---- what reaches it ---------------------------------------------------------------------

    /// A newer state was committed.
    pub fn on_topology<S: Store>(&mut self, cx: &mut Context<'_, S>, state: &PartitionState) {
        if state.version <= self.state.version && self.state.version > 0 {
            // Nothing of this partition changed; settings of caches may have.
            self.work(cx);
            return;
        }
        self.state = state.clone();
        if state.term > self.term {
            self.adopt(cx, state.term);
        }
        let counts = state.in_sync.contains(&cx.me);
        if counts || state.learners.contains(&cx.me) {
            self.hold_version = self.hold_version.max(state.version);
            self.holds = true;
            // What a lone node took in before there was a table counts as well.
            self.stored |= counts;
            if counts && state.generation > self.generation {
                self.begin_generation(cx, state.generation);
            }
        } else if self.holds && state.version > self.hold_version {
            self.leave(cx);
        }
        if self.primary.is_some() {
            self.refresh_peers(cx);
        } else if state.primary == Some(cx.me) && counts && state.term == self.term {
            self.take_over(cx);
        }
        self.tell_successor(cx);
        self.work(cx);
    }

    /// The successor need not wait for leases that this copy holds and will not use. Sent once: if it
    /// is lost, they run out.
    fn tell_successor<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(term) = self.yielded.filter(|term| *term < self.state.term) else { return };
        self.yielded = None;
        if let Some(successor) = self.state.primary.filter(|primary| *primary != cx.me) {
            self.send(cx, successor, StrongMessage::Yielded { term });
        }
    }

    /// The group that this partition belonged to is gone.
    pub fn on_dropped<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        if self.holds {
            self.leave(cx);
        }
        self.work(cx);
    }

    /// A copy of this partition on another node says something.
    pub fn on_message<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        clock_ms: u64,
        message: StrongMessage,
    ) {
        match message {
            StrongMessage::Append { term, stable, version, probe, entries } => {
                self.on_append(cx, from, term, stable, version, probe, entries);
            }
            StrongMessage::Ack { term, transfer, have, version, full } => {
                if term > self.term {
                    self.adopt(cx, term);
                }
                self.on_ack(cx, from, Held { term, transfer, have, version, full, clock_ms });
            }
            StrongMessage::Refused { term } => {
                if term > self.term {
                    self.adopt(cx, term);
                }
            }
            StrongMessage::Unstarted { term } => self.on_unstarted(cx, from, term),
            StrongMessage::Seal { term } => self.on_seal(cx, from, term),
            StrongMessage::Sealed { term, log_term, applied, entries } => {
                self.on_sealed(cx, from, term, log_term, applied, entries);
            }
            StrongMessage::Start { term, version, generation, base, entries } => {
                self.on_start(cx, from, term, version, generation, base, entries);
            }
            StrongMessage::Fill { term, version, generation, transfer, base } => {
                self.on_fill(cx, from, term, version, generation, transfer, base);
            }
            StrongMessage::Ready { term, transfer } => self.on_ready(cx, from, term, transfer),
            message @ StrongMessage::Chunk { .. } => self.on_chunk(cx, from, message),
            StrongMessage::Taken { term, transfer, next } => {
                self.on_taken(cx, from, term, transfer, next);
            }
            StrongMessage::Yielded { term } => self.on_yielded(cx, term, clock_ms),
            StrongMessage::Evicted { term, keys } => {
                if term == self.term && self.primary.is_none() && !self.wiping {
                    self.forget_evicted(cx, &keys);
                }
            }
        }
        self.work(cx);
    }

    /// A client asks. Every request gets exactly one reply.
    pub fn on_request<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: Request,
    ) {
        let deadline = cx.now.mono.after_ms(cx.config.strong.request_timeout_ms);
        self.admit(cx, asker, request, deadline);
        self.work(cx);
    }

    pub(super) fn admit<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: Request,
        deadline: Mono,
    ) {
        let Some(spec) = cx.topology.cache(request.key.cache) else {
            return cx.reply(asker, Reply::NotApplied(Refusal::NoSuchCache));
        };
        if spec.on_loss == OnLoss::Block && self.state.generation > self.state.loss_acknowledged {
            let refusal = Refusal::Blocked(self.state.generation);
            return cx.reply(asker, Reply::NotApplied(refusal));
        }
        if request.is_plain_read() && self.reads_any_copy(cx, spec.read) {
            return self.answer_read(cx, asker, &request, None);
        }
        let Some(primary) = &self.primary else {
            return cx.reply(asker, Reply::NotApplied(Refusal::NotPrimary(self.hint(cx.me))));
        };
        if !primary.serves() {
            if self.held.len() >= cx.config.strong.pending_reads_max {
                return cx.reply(asker, Reply::NotApplied(Refusal::Busy));
            }
            self.held.push_back((asker, request, deadline));
            return;
        }
        if request.is_plain_read() || self.only_looks(cx, &request, spec) {
            self.read(cx, asker, request, deadline, spec.read);
        } else {
            self.write(cx, asker, request, deadline, spec);
        }
    }

    fn hint(&self, me: Member) -> Option<NodeId> {
        self.state.primary.filter(|primary| *primary != me).map(|primary| primary.node)
    }

    // ---- roles ------------------------------------------------------------------------------

    /// Whether a message of this term is to be obeyed. Says so to a sender of a lower one.
    pub(super) fn follow<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
    ) -> bool {
        if term < self.term {
            self.send(cx, from, StrongMessage::Refused { term: self.term });
            return false;
        }
        if term > self.term {
            self.adopt(cx, term);
        }
        // The primary of a term hears only from itself.
        self.primary.is_none()
    }

    /// Follows a later term.
    pub(super) fn adopt<S: Store>(&mut self, cx: &mut Context<'_, S>, term: Term) {
        debug_assert!(term > self.term);
        self.step_down(cx);
        self.term = term;
    }

    fn step_down<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = self.primary.take() else { return };
        for &peer in primary.peers.keys() {
            cx.slots.release(self.place, peer);
        }
        if primary.serves() {
            self.yielded = Some(self.term);
            cx.report(Report::SteppedDown { place: self.place, term: self.term });
        }
        let refusal = Reply::NotApplied(Refusal::NotPrimary(self.hint(cx.me)));
        let blocked = primary.blocked.into_values().flatten().map(|(read, _)| read);
        for read in primary.reads.into_iter().chain(blocked) {
            cx.reply(read.asker, refusal.clone());
        }
        for (asker, _, _) in std::mem::take(&mut self.held) {
            cx.reply(asker, refusal.clone());
        }
        // Those who wait for an entry go on waiting: the next primary will most likely confirm it.
        self.log.trim(self.applied);
    }

    /// All former data were lost; this copy starts with nothing.
    pub(super) fn begin_generation<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        generation: Generation,
    ) {
        cx.report(Report::Lost { place: self.place, generation });
        self.wipe(cx);
        self.generation = generation;
    }

    /// This copy is no longer wanted.
    fn leave<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        self.step_down(cx);
        self.wipe(cx);
        self.holds = false;
    }

    /// Forgets all data; the store is emptied in steps. Who waits for an entry is told at once: no
    /// confirmation of what is forgotten reaches this copy, and another one knows the answer.
    pub(super) fn wipe<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        self.deadlines.clear();
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            for (asker, _) in waiting.askers {
                cx.reply(asker, Reply::Indeterminate);
            }
        }
        self.wiping = self.stored;
        self.log = Log::default();
        self.log_term = Term(0);
        self.applied = Seq(0);
        self.intake = Intake::EMPTY;
        self.answers = Answers::default();
        self.stuck = false;
        self.no_room = false;
        self.expired_ms = 0;
    }

    /// Brings the list of peers in line with the committed state.
    pub(super) fn refresh_peers<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        let state = &self.state;
        // A proposal decided on an older version can no longer be committed: whoever is not in sync
        // by now will not be by that proposal.
        primary.promoting.retain(|member, promotion| {
            promotion.proposed = promotion.proposed.filter(|version| *version >= state.version);
            state.learners.contains(member) && !state.in_sync.contains(member)
        });
        let promoting = &primary.promoting;
        let place = self.place;
        primary.peers.retain(|member, _| {
            let keep = state.in_sync.contains(member)
                || state.learners.contains(member)
                || promoting.contains_key(member);
            if !keep {
                cx.slots.release(place, *member);
            }
            keep
        });
        for member in state.in_sync.iter().filter(|member| **member != cx.me) {
            let peer = primary.peers.get_or_insert_with(*member, || Peer::new(cx.now.mono));
            peer.transfer = None;
            cx.slots.release(place, *member);
        }
        for member in &state.learners {
            // One without a transfer was in sync: it has been removed and added again meanwhile.
            if primary.peers.get(member).is_none_or(|peer| peer.transfer.is_none()) {
                let mut peer = Peer::new(cx.now.mono);
                peer.transfer = Some(Transfer::waiting(cx.now.mono));
                primary.peers.insert(*member, peer);
            }
        }
    }

    // ---- time --------------------------------------------------------------------------------

    /// The time named by [`next_wakeup`](Self::next_wakeup) has come.
    pub fn on_wakeup<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        self.give_up_waiting(cx);
        self.work(cx);
    }

    /// What is due after any event.
    pub(super) fn work<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        self.go_on_wiping(cx);
        self.go_on_taking_over(cx);
        self.hand_back(cx);
        self.resend(cx);
        self.feed_learners(cx);
        self.propose_promotions(cx);
        self.retry_rounds(cx);
        self.tell(cx);
    }

    /// Goes on dropping what a copy that is to be filled held before.
    fn go_on_wiping<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        if !self.wiping || self.wipe_at > cx.now.mono {
            return;
        }
        // Of a copy that is to be filled others wait; what was given up takes its time.
        let filled = !self.intake.is_complete();
        let step = if filled { cx.walks.step(cx.now) } else { cx.walks.step_to_drop(cx.now) };
        if let Err(later) = step {
            self.wipe_at = later;
            return;
        }
        if !cx.store.drop_partition(self.place, cx.config.strong.drop_items) {
            self.wiping = false;
            self.stored = false;
            self.ready_for_chunks(cx);
        }
    }

    /// Made primary, but without room for what is confirmed: another copy has to serve, and this one
    /// to be filled again when it can be.
    fn hand_back<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let me = cx.me;
        let cannot = self.no_room && self.primary.is_none() && self.state.primary == Some(me);
        let other = self.state.in_sync.iter().copied().find(|member| *member != me);
        let Some(to) = other.filter(|_| cannot && self.state.term == self.term) else {
            self.handing_back = None;
            return;
        };
        let (place, version, now) = (self.place, self.state.version, cx.now.mono);
        if self.handing_back.is_some_and(|(asked, again)| asked == version && again > now) {
            return;
        }
        self.handing_back = Some((version, now.after_ms(cx.config.strong.shrink_after_ms)));
        cx.propose(TopologyCommand::ChangePrimary { place, version, to, remove: vec![me] });
    }

    fn give_up_waiting<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let now = cx.now.mono;
        while let Some(&(deadline, seq)) = self.deadlines.front() {
            let waits = self.waiting.contains_key(&seq);
            if waits && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            let Some(waiting) = self.waiting.get_mut(&seq) else { continue };
            let (over, left) = waiting.askers.drain(..).partition(|(_, at)| *at <= now);
            waiting.askers = left;
            let over: Vec<(Asker, Mono)> = over;
            if waiting.askers.is_empty() {
                self.waiting.remove(&seq);
            }
            for (asker, _) in over {
                cx.reply(asker, Reply::Indeterminate);
            }
        }
        while self.held.front().is_some_and(|(_, _, deadline)| *deadline <= now) {
            if let Some((asker, _, _)) = self.held.pop_front() {
                cx.reply(asker, Reply::NotApplied(Refusal::TimedOut));
            }
        }
        if let Some(primary) = &mut self.primary {
            primary.blocked.retain(|_, reads| {
                reads.retain(|(read, _)| {
                    if read.deadline <= now {
                        cx.reply(read.asker, Reply::NotApplied(Refusal::TimedOut));
                    }
                    read.deadline > now
                });
                !reads.is_empty()
            });
            while primary.reads.front().is_some_and(|read| read.deadline <= now) {
                if let Some(read) = primary.reads.pop_front() {
                    cx.reply(read.asker, Reply::NotApplied(Refusal::TimedOut));
                }
            }
        }
    }

    /// When this partition wants to be woken.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Mono> {
        let mut next = Mono::MAX;
        let mut at = |time: Mono| next = next.min(time);
        if self.wiping {
            at(self.wipe_at);
        }
        if let Some((deadline, _)) = self.deadlines.front() {
            at(*deadline);
        }
        if let Some((_, _, deadline)) = self.held.front() {
            at(*deadline);
        }
        if let Some((_, again)) = self.handing_back {
            at(again);
        }
        if let Some(primary) = &self.primary {
            if matches!(primary.phase, Phase::Leased) {
                at(self.granted.until);
            }
            if let Some(read) = primary.reads.front() {
                at(read.deadline);
            }
            primary.blocked.values().flatten().for_each(|(read, _)| at(read.deadline));
            primary.round_retry.into_iter().for_each(&mut at);
            primary.tell_at.into_iter().for_each(&mut at);
            for peer in primary.peers.values() {
                peer.resend_at.into_iter().for_each(&mut at);
                if let Some(transfer) = &peer.transfer
                    && primary.serves()
                {
                    at(transfer.act_at);
                }
            }
            primary.promoting.values().for_each(|promotion| at(promotion.again_at));
        }
        (next < Mono::MAX).then_some(next)
    }

    /// Asks for the memory that nearly every event reads, when the replica itself is here.
    pub(crate) fn warm(&self) {
        if let Some(primary) = self.primary.as_deref() {
            fetch(primary);
        }
        self.state.in_sync.first().into_iter().for_each(fetch);
        self.log.warm();
        self.answers.warm();
    }

    /// The same for what is found from there.
    pub(crate) fn warm_further(&self) {
        if let Some(primary) = &self.primary {
            primary.peers.values().take(1).for_each(fetch);
        }
        self.log.warm_entry(self.applied.next());
        self.answers.warm_places();
    }

    // ---- looks ---------------------------------------------------------------------------------

    /// Whether the cache lets copies drop items by themselves.
    pub(super) fn may_evict<S>(&self, cx: &Context<'_, S>, cache: CacheId) -> bool {
        // One that is not known here yet may be one that keeps.
        cx.topology.cache(cache).is_some_and(|spec| spec.eviction == Eviction::Evict)
    }

    /// Whether a cache was dropped. One that is not known may also not have been heard of yet.
    pub(super) fn is_dropped<S>(&self, cx: &Context<'_, S>, cache: CacheId) -> bool {
        cache < cx.topology.next_cache && cx.topology.cache(cache).is_none()
    }

    /// A look at this partition.
    #[must_use]
    pub fn view(&self, me: Member) -> PartitionView {
        let role = match &self.primary {
            Some(_) => PartitionRole::Primary,
            None if self.state.in_sync.contains(&me) && self.holds => PartitionRole::Backup,
            None if self.holds => PartitionRole::Learner,
            None => PartitionRole::None,
        };
        PartitionView {
            role,
            term: self.term,
            serving: self.primary.as_ref().is_some_and(|primary| primary.serves()),
            stable: self.applied,
            last: self.log.last(),
            generation: self.generation,
        }
    }

    /// The clock by which items may be dropped as ended: no effect that may still come to be
    /// applied here was evaluated before it. A copy that dropped them by its own clock could miss
    /// an item that the primary prolongs in time.
    #[must_use]
    pub fn expired_ms(&self) -> u64 {
        self.expired_ms
    }

    /// For whoever is in sync with this primary: who, in which term, and what must be applied for
    /// the clock of the message to count. Nothing unless all is confirmed.
    ///
    /// This copy itself drops nothing that a successor could still hold for alive: a miss told here
    /// would come back. So it goes by the clock that every copy that counts was heard to have
    /// reached, as `heard_ms` tells.
    pub(crate) fn settled(
        &mut self,
        me: Member,
        clock_ms: u64,
        heard_ms: impl Fn(Member) -> u64,
    ) -> Option<(Vec<Member>, Term, Seq)> {
        let primary = self.primary.as_ref().filter(|primary| primary.serves())?;
        if self.applied < self.log.last() {
            return None;
        }
        let counted = self.state.in_sync.iter().filter(|member| **member != me);
        let counted = counted.chain(primary.promoting.keys());
        let reached_ms = counted.map(|member| heard_ms(*member)).min().unwrap_or(clock_ms);
        self.expired_ms = self.expired_ms.max(clock_ms.min(reached_ms));
        let peers = primary.peers.iter().filter(|(_, peer)| peer.started && peer.is_filled());
        Some((peers.map(|(&member, _)| member).collect(), self.term, self.applied))
    }

    /// The primary of `term` had confirmed all up to `stable` when its clock was `clock_ms`: what a
    /// copy may have missed of that while all was quiet.
    pub(crate) fn on_settled<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        term: Term,
        stable: Seq,
        clock_ms: u64,
    ) {
        if self.primary.is_some() || self.log_term != term || self.term != term || self.wiping {
            return;
        }
        self.apply_confirmed(cx, stable);
        if self.intake.is_complete() && !self.stuck && self.applied >= stable {
            self.expired_ms = self.expired_ms.max(clock_ms);
        }
    }

    /// Whether any data are here.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// The newest state of a key in this memory, confirmed or not.
    pub fn newest<S: Store>(&self, store: &S, key: &ItemKey) -> (Version, Option<Item>) {
        let mut item = if self.wiping { None } else { store.read(self.place, key, false, 0) };
        let mut version = item.as_ref().map_or(Version(0), |item| item.version);
        for entry in self.log.from(self.applied.next()) {
            let concerns = |effect: &&Effect| match effect.change {
                Change::Clear(_) => effect.key.cache == key.cache,
                _ => effect.key == *key,
            };
            let Some(Effect { change, .. }) = entry.effect.as_ref().filter(concerns) else {
                continue;
            };
            version = version.max(change.version());
            match change {
                Change::Put(put) => item = Some(put.clone()),
                Change::Remove(_) | Change::Clear(_) => item = None,
                Change::Touch { version, deadline_ms, marks } => {
                    if let Some(item) = &mut item
                        && item.version == *version
                    {
                        item.deadline_ms = *deadline_ms;
                        item.marks = *marks;
                    }
                }
            }
        }
        (version, item)
    }
}
