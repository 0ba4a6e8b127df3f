//! Taking over: seal, longest tail, barrier.
//!
//! ```text
//!   committed: I am primary of term T
//!     wait      until a lease that I granted has run out, or its holder says that it stopped serving
//!     Seal      the other in-sync copies follow T and say what they hold
//!     choose    the log of the latest term, then the longest: nothing confirmed is missing from it
//!     Start     that log, and a barrier in T, to all of them
//!     serve     when all of them hold the barrier
//! ```
//!
//! Everything acknowledged is on every in-sync copy, so any of their logs would do for safety; the
//! longest saves writes that were on their way. A copy that does not answer is not waited for once
//! its removal is committed.

use std::collections::BTreeMap;

use crate::context::Context;
use crate::ids::{Generation, Member, Seq, Term};
use crate::log::{Entry, SharedEntry};
use crate::node::Report;
use crate::store::Store;

use super::primary::{Phase, Primary, Sealed};
use super::replication::barrier_version;
use super::{Replica, StrongMessage};

impl Replica {
    /// This copy was made primary of the term that it follows.
    pub(super) fn take_over<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        if !self.intake.is_complete() || self.stuck {
            // Cannot be: only whole copies are in sync. Serving would lose data.
            return;
        }
        self.primary = Some(Box::new(Primary::new(Phase::Leased)));
        self.refresh_peers(cx);
    }

    /// Goes on with taking over as far as it can.
    pub(super) fn go_on_taking_over<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        let others = self.state.in_sync.iter().filter(|member| **member != cx.me);
        match &primary.phase {
            Phase::Starting { .. } => self.advance(cx),
            // Copies that count may have become fewer.
            Phase::Serving => self.advance(cx),
            Phase::Leased => {
                if cx.now.mono < self.granted.until || self.wiping {
                    return;
                }
                // What the predecessor judged under its lease stays judged.
                cx.clock.merge(cx.now, std::mem::take(&mut self.granted.clock_ms));
                primary.phase = Phase::Sealing(BTreeMap::new());
                let others: Vec<Member> = others.copied().collect();
                for member in others {
                    if let Some(primary) = &mut self.primary
                        && let Some(peer) = primary.peers.get_mut(&member)
                    {
                        peer.owe(cx.now.mono, cx.config.strong.resend_after_ms);
                    }
                    self.send(cx, member, StrongMessage::Seal { term: self.term });
                }
                self.choose_log(cx);
            }
            Phase::Sealing(_) => self.choose_log(cx),
        }
    }

    /// A new primary asks this copy to follow it.
    pub(super) fn on_seal<S: Store>(&mut self, cx: &mut Context<'_, S>, from: Member, term: Term) {
        if !self.follow(cx, from, term) || self.wiping || !self.intake.is_complete() {
            return;
        }
        let message = StrongMessage::Sealed {
            term,
            log_term: self.log_term,
            applied: self.applied,
            entries: self.log.from(self.applied.next()).cloned().collect(),
        };
        self.send(cx, from, message);
    }

    /// A copy follows, and says what it holds.
    pub(super) fn on_sealed<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        log_term: Term,
        applied: Seq,
        entries: Vec<SharedEntry>,
    ) {
        if term > self.term {
            self.adopt(cx, term);
        }
        if term != self.term {
            return;
        }
        let Some(primary) = &mut self.primary else { return };
        let Phase::Sealing(sealed) = &mut primary.phase else { return };
        let consecutive = (applied.0 + 1..).zip(&entries).all(|(seq, entry)| entry.seq.0 == seq);
        if let Some(peer) = primary.peers.get_mut(&from)
            && consecutive
        {
            peer.resend_at = None;
            peer.owes_since = cx.now.mono;
            sealed.insert(from, Sealed { log_term, applied, entries });
        }
    }

    /// When all have answered: takes the best log and sends it out.
    fn choose_log<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        let Phase::Sealing(sealed) = &mut primary.phase else { return };
        let mut others = self.state.in_sync.iter().filter(|member| **member != cx.me);
        if !others.all(|member| sealed.contains_key(member)) {
            return;
        }
        let in_sync = &self.state.in_sync;
        let best = std::mem::take(sealed)
            .into_iter()
            .filter(|(member, _)| in_sync.contains(member))
            .map(|(_, sealed)| sealed)
            .max_by_key(|sealed| (sealed.log_term, sealed.last()));
        if let Some(best) = best
            && (best.log_term, best.last()) > (self.log_term, self.log.last())
        {
            // Up to what the other applied, this copy's log is the same: it was confirmed here too.
            self.log.truncate(self.applied.max(best.applied));
            for entry in best.entries {
                if entry.seq > self.log.last() && !self.log.push(entry) {
                    // The other lacks what this copy confirmed with it: neither may be trusted
                    // alone, and serving on would lose writes.
                    self.stuck = true;
                    self.primary = None;
                    return;
                }
            }
        }
        self.log_term = self.term;
        let pending: Vec<SharedEntry> = self.log.from(self.applied.next()).cloned().collect();
        for entry in &pending {
            self.index(cx, entry);
        }
        let clock_ms = cx.clock_ms();
        let barrier = self.log.last().next();
        let Some(primary) = &mut self.primary else { return };
        let version = barrier_version(self.term, &mut primary.counter);
        primary.phase = Phase::Starting { barrier };
        self.push(cx, Entry { seq: barrier, version, clock_ms, effect: None, answer: None });
        let others: Vec<Member> =
            self.state.in_sync.iter().copied().filter(|member| *member != cx.me).collect();
        for member in others {
            self.send_start(cx, member);
        }
        self.advance(cx);
    }

    /// Sends the whole log beyond what every in-sync copy holds. It goes in one piece: a copy with
    /// part of a later log must not be taken for one with all of it.
    pub(super) fn send_start<S: Store>(&mut self, cx: &mut Context<'_, S>, to: Member) {
        let base = self.log.base();
        let entries: Vec<SharedEntry> = self.log.from(base.next()).cloned().collect();
        let last = self.log.last();
        if let Some(primary) = &mut self.primary
            && let Some(peer) = primary.peers.get_mut(&to)
        {
            peer.sent = last;
            peer.owe(cx.now.mono, cx.config.strong.resend_after_ms);
        }
        let (term, version, generation) = (self.term, self.state.version, self.generation);
        self.send(cx, to, StrongMessage::Start { term, version, generation, base, entries });
    }

    /// The new primary's log.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_start<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        term: Term,
        version: u64,
        generation: Generation,
        base: Seq,
        entries: Vec<SharedEntry>,
    ) {
        if !self.follow(cx, from, term) {
            return;
        }
        if generation > self.generation {
            self.begin_generation(cx, generation);
        }
        let unfit = self.wiping
            || self.stuck
            || generation < self.generation
            || !self.intake.is_complete()
            || base > self.log.last();
        if unfit {
            return;
        }
        if self.log_term != term {
            // What was applied here is confirmed, so it is the same in the new log.
            self.log.truncate(self.applied.max(base));
            for entry in entries {
                if entry.seq > self.log.last() && !self.log.push(entry) {
                    return;
                }
            }
            self.log_term = term;
        }
        self.holds = true;
        self.hold_version = self.hold_version.max(version);
        self.acknowledge(cx, from, false);
    }

    /// The barrier is on every copy.
    pub(super) fn begin_to_serve<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        primary.phase = Phase::Serving;
        cx.report(Report::Serving { place: self.place, term: self.term });
        for (asker, request, deadline) in std::mem::take(&mut self.held) {
            self.admit(cx, asker, request, deadline);
        }
    }
}
