//! When a copy fetches from which other, and what a complete session allows.
//!
//! - An owner fetches from every other owner: at an interval, and soon after a sign that they differ
//!   (a write not confirmed, a peer that was silent and speaks again, a nudge).
//! - A learner fetches from the owners, and asks to become one when it has everything.
//! - One who leaves nudges the owners until all of them have fetched everything from it.
//!
//! One session at a time per partition, a bounded number per node that fetch; a peer that does not answer is
//! tried again at growing intervals, up to a bound that keeps a heal within seconds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::digest::BUCKETS;
use crate::ids::{Member, Place};
use crate::repair::{self, ChunkLimits, Next, Session};
use crate::time::Mono;
use crate::topology::TopologyCommand;

use super::context::Context;
use super::message::{Given, Pull, Say};
use super::replica::{EventualReplica, Role};

/// Members that leave and are fetched from, at most.
const LEAVERS_MAX: usize = 8;
/// Times a step is sent before the session is given up.
const TRIES_MAX: u32 = 3;
/// How often a peer's pull interval is doubled.
const DOUBLINGS_MAX: u32 = 4;

struct Peer {
    /// A member that leaves: fetched from once, then dropped from here.
    leaves: bool,
    next_pull: Mono,
    /// Sessions given up in a row.
    fails: u32,
    /// There may well be differences.
    behind: bool,
    /// Start of the last session in which everything was fetched from this peer.
    pulled: Option<Mono>,
    /// The session of this peer fetching from here, and when it began.
    giving: Option<(u64, Mono)>,
    /// Start of the last session in which this peer fetched everything from here.
    given: Option<Mono>,
}

/// The repair schedule of one copy.
#[derive(Default)]
pub struct Sync {
    peers: BTreeMap<Member, Peer>,
    session: Option<Session>,
    sessions_begun: u64,
    /// Everything was fetched from some owner since this copy became a learner.
    caught_up: bool,
    propose_at: Mono,
    nudge_at: Mono,
    is_leaving: bool,
}

impl Sync {
    /// A learner begins.
    pub fn begin_catching_up(&mut self) {
        self.caught_up = false;
    }

    /// The members changed.
    pub fn on_members(
        &mut self,
        cx: &mut Context<'_>,
        place: Place,
        owners: &[Member],
        role: Role,
    ) {
        let now = cx.now.mono;
        self.is_leaving = matches!(role, Role::Leaving { .. });
        let serves = matches!(role, Role::Owner | Role::Learner);
        self.peers.retain(|member, peer| owners.contains(member) || (peer.leaves && serves));
        for owner in owners {
            let peer = self.peers.entry(*owner).or_insert_with(|| Peer::new(now, true));
            peer.leaves = false;
            if role == Role::Learner {
                peer.pulled = None;
                peer.next_pull = now;
            }
        }
        if let Some(session) = &self.session
            && (!self.peers.contains_key(&session.peer) || !serves)
        {
            self.end_session(cx);
        }
        if self.is_leaving {
            self.nudge_at = now.after_ms(EventualReplica::spread(place, cx.me, 1, 20));
        }
        self.propose_at = now;
    }

    /// A peer spoke: if it had been silent, it is back.
    pub fn heard(&mut self, cx: &Context<'_>, from: Member) {
        if let Some(peer) = self.peers.get_mut(&from)
            && peer.fails > 0
        {
            peer.fails = 0;
            peer.next_pull = peer.next_pull.min(cx.now.mono.after_ms(cx.config.retry_ms / 4));
        }
    }

    /// A peer may lack something, or have something that this copy lacks.
    pub fn suspect(&mut self, cx: &Context<'_>, peer: Member) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.behind = true;
            peer.next_pull = peer.next_pull.min(cx.now.mono.after_ms(cx.config.retry_ms));
        }
    }

    /// A member asks to be fetched from.
    pub fn on_nudge(&mut self, cx: &Context<'_>, from: Member) {
        let leavers = self.peers.values().filter(|peer| peer.leaves).count();
        match self.peers.entry(from) {
            Entry::Occupied(mut peer) => {
                let peer = peer.get_mut();
                peer.next_pull = peer.next_pull.min(cx.now.mono);
            }
            Entry::Vacant(place) if leavers < LEAVERS_MAX => {
                place.insert(Peer { leaves: true, ..Peer::new(cx.now.mono, false) });
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Whether a peer has fetched everything that was here at `since`.
    pub fn fetched_since(&self, peer: Member, since: Mono) -> bool {
        self.peers.get(&peer).and_then(|peer| peer.given).is_some_and(|given| given >= since)
    }

    /// Whether some owner was not heard of, or may have writes that are not here.
    pub fn someone_is_behind(&self) -> bool {
        self.peers.values().any(|peer| peer.behind || peer.fails > 0)
    }

    /// Whether a session runs.
    pub fn is_active(&self) -> bool {
        self.session.is_some()
    }

    /// When something is to be sent.
    pub fn next_due(&self) -> Mono {
        if self.is_leaving {
            return self.nudge_at;
        }
        let next = match &self.session {
            Some(session) => session.due,
            None => self.peers.values().map(|peer| peer.next_pull).min().unwrap_or(Mono::MAX),
        };
        if self.caught_up { next.min(self.propose_at) } else { next }
    }

    fn end_session(&mut self, cx: &mut Context<'_>) -> Option<Session> {
        let session = self.session.take()?;
        if session.admitted {
            cx.shared.sessions = cx.shared.sessions.saturating_sub(1);
        }
        Some(session)
    }
}

impl Peer {
    fn new(now: Mono, behind: bool) -> Self {
        Self {
            leaves: false,
            next_pull: now,
            fails: 0,
            behind,
            pulled: None,
            giving: None,
            given: None,
        }
    }
}

impl EventualReplica {
    /// Whatever of repair is due.
    pub(super) fn repair(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        match self.role {
            Role::Gone => {}
            Role::Leaving { .. } => self.nudge(cx),
            Role::Owner | Role::Learner => {
                if self.sync.session.is_none() {
                    self.begin_session(cx);
                }
                if self.sync.session.as_ref().is_some_and(|session| session.due <= now) {
                    self.send_step(cx);
                }
                self.propose_promotion(cx);
            }
        }
    }

    /// Ends what is shared with other partitions, before this copy is dropped.
    pub fn release(&mut self, cx: &mut Context<'_>) {
        self.sync.end_session(cx);
    }

    fn nudge(&mut self, cx: &mut Context<'_>) {
        if cx.now.mono >= self.sync.nudge_at {
            self.sync.nudge_at = cx.now.mono.after_ms(cx.config.retry_ms);
            let Role::Leaving { since } = self.role else { return };
            for owner in &self.owners {
                if !self.sync.fetched_since(*owner, since) {
                    cx.send(*owner, self.place, Say::Nudge);
                }
            }
        }
    }

    fn begin_session(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        let due = self.sync.peers.iter().min_by_key(|(_, peer)| peer.next_pull);
        let Some((member, peer)) = due.filter(|(_, peer)| peer.next_pull <= now) else { return };
        let (member, behind) = (*member, peer.behind);
        self.sync.sessions_begun += 1;
        let soon = behind && self.role == Role::Owner;
        self.sync.session = Some(Session::new(self.sync.sessions_begun, member, soon, now));
    }

    fn send_step(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        let limits = chunk_limits(cx);
        let Some(session) = &mut self.sync.session else { return };
        if session.tries >= TRIES_MAX {
            return self.fail_session(cx);
        }
        // Comparing costs next to nothing and takes no place: else partitions whose peer is dead
        // would keep the others waiting.
        if session.is_fetching() && !session.admitted {
            if cx.shared.sessions >= cx.config.sessions_max {
                let wait_ms = 5 + Self::spread(self.place, session.peer, now.0, 20);
                session.due = now.after_ms(wait_ms);
                return;
            }
            cx.shared.sessions += 1;
            session.admitted = true;
        }
        session.tries += 1;
        session.due = now.after_ms(cx.config.step_timeout_ms);
        let step = session.step(&self.catalog, limits);
        let (to, session) = (session.peer, session.id);
        cx.send(to, self.place, Say::Pull { session, step });
    }

    fn fail_session(&mut self, cx: &mut Context<'_>) {
        let Some(session) = self.sync.end_session(cx) else { return };
        cx.shared.stats.repairs_failed += 1;
        let now = cx.now.mono;
        let jitter_ms = Self::spread(self.place, session.peer, now.0, cx.config.retry_ms / 2);
        let gives_up = self.sync.peers.get(&session.peer).is_some_and(|peer| peer.leaves);
        if gives_up {
            self.sync.peers.remove(&session.peer);
        } else if let Some(peer) = self.sync.peers.get_mut(&session.peer) {
            let wait_ms = cx.config.retry_ms << peer.fails.min(DOUBLINGS_MAX);
            peer.fails += 1;
            peer.behind = true;
            peer.next_pull = now.after_ms(wait_ms.min(cx.config.retry_max_ms) + jitter_ms);
        }
    }

    /// A peer fetches from here.
    pub(super) fn on_pull(
        &mut self,
        cx: &mut Context<'_>,
        from: Member,
        session: u64,
        step: &Pull,
    ) {
        let now = cx.now.mono;
        let holds = matches!(self.role, Role::Owner | Role::Leaving { .. });
        if !holds {
            let answer = Given::NoCopy;
            return cx.send(from, self.place, Say::Given { session, answer });
        }
        let limits = chunk_limits(cx);
        let clock_ms = cx.clock_ms();
        let mut lost = Vec::new();
        let Context { store, topology, .. } = cx;
        let answer = repair::answer(
            &self.catalog,
            step,
            limits,
            &|key| super::context::class_of(topology, key),
            &mut |key| store.read(self.place, key, false, clock_ms),
            &mut lost,
        );
        for key in &lost {
            self.forget(cx, key);
        }
        let is_owner = self.role == Role::Owner;
        if let Some(peer) = self.sync.peers.get_mut(&from) {
            match (step, &answer) {
                // The asker holds the same: it has everything, and so has this copy.
                (Pull::Compare { .. }, Some(Given::Same)) => {
                    peer.given = Some(now);
                    peer.behind = false;
                }
                (Pull::Compare { soon, .. }, _) => {
                    peer.giving = Some((session, now));
                    if *soon && is_owner {
                        peer.next_pull = peer.next_pull.min(now.after_ms(cx.config.retry_ms / 8));
                    }
                }
                (Pull::Done, _) => {
                    if let Some((_, since)) = peer.giving.take_if(|(giving, _)| *giving == session)
                    {
                        peer.given = Some(since);
                        self.upkeep_soon(cx);
                    }
                }
                (Pull::Keys { .. }, _) => {}
            }
        }
        if let Some(answer) = answer {
            cx.send(from, self.place, Say::Given { session, answer });
        }
    }

    /// A peer answered a step.
    pub(super) fn on_given(&mut self, cx: &mut Context<'_>, from: Member, id: u64, answer: Given) {
        let Some(session) = &mut self.sync.session else { return };
        if session.peer != from || session.id != id {
            return;
        }
        let before = session.bytes;
        match session.on_given(&self.catalog, answer) {
            Next::Ignore => {}
            Next::NoCopy => self.fail_session(cx),
            Next::Complete => self.complete_session(cx),
            Next::Merge { records, dead, last } => {
                session.tries = 0;
                let fetched = session.bytes - before;
                session.due = cx.shared.budget.spend(fetched, cx.now.mono);
                cx.shared.stats.repair_bytes += fetched;
                for record in &records {
                    self.merge(cx, record);
                }
                self.drop_dead(cx, &dead);
                if last {
                    self.complete_session(cx);
                } else if self.sync.session.as_ref().is_some_and(|s| s.due <= cx.now.mono) {
                    self.send_step(cx);
                }
            }
        }
    }

    fn complete_session(&mut self, cx: &mut Context<'_>) {
        let Some(session) = self.sync.end_session(cx) else { return };
        let now = cx.now.mono;
        let found_equal = session.bytes == 0;
        match found_equal {
            true => cx.shared.stats.repairs_equal += 1,
            false => cx.shared.stats.repairs_fetched += 1,
        }
        // The giver's claim of what is dead now is a claim of this copy, too. One about the future
        // of this node's clock waits until that is past.
        let reading = cx.shared.clock.reading();
        for (bucket, floors) in (0..BUCKETS).zip(session.floors()) {
            if floors.keep <= reading && floors.evict <= reading {
                self.catalog.adopt_floors(bucket as u8, *floors);
            }
        }
        let done = Say::Pull { session: session.id, step: Pull::Done };
        cx.send(session.peer, self.place, done);
        let interval_ms = cx.config.interval_ms;
        let jitter_ms = Self::spread(self.place, session.peer, now.0, interval_ms / 4);
        if let Some(peer) = self.sync.peers.get_mut(&session.peer) {
            peer.fails = 0;
            peer.behind = false;
            peer.pulled = Some(session.started);
            peer.next_pull = now.after_ms(interval_ms + jitter_ms);
            if session.was_same() {
                peer.given = Some(session.started);
            }
            if peer.leaves {
                self.sync.peers.remove(&session.peer);
            }
        }
        if self.role == Role::Learner && self.owners.contains(&session.peer) {
            self.complete = true;
            self.sync.caught_up = true;
            self.sync.propose_at = now;
        }
    }

    /// A learner that has everything asks to become an owner: once it has fetched from every owner,
    /// or from one while the others do not answer.
    fn propose_promotion(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.mono;
        if self.role != Role::Learner || !self.sync.caught_up {
            self.sync.propose_at = Mono::MAX;
            return;
        }
        if now < self.sync.propose_at {
            return;
        }
        self.sync.propose_at = now.after_ms(cx.config.retry_ms);
        let tried = |owner: &Member| {
            self.sync.peers.get(owner).is_some_and(|peer| peer.pulled.is_some() || peer.fails > 0)
        };
        if self.owners.iter().all(tried) {
            cx.out.push(super::context::Out::Propose(TopologyCommand::Promote {
                place: self.place,
                version: self.state.version,
                term: self.state.term,
                member: cx.me,
            }));
        }
    }
}

fn chunk_limits(cx: &Context<'_>) -> ChunkLimits {
    ChunkLimits { items: cx.config.chunk_items, bytes: cx.config.chunk_bytes }
}
