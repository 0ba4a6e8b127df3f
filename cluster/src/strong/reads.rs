//! Reads that are sure: confirm rounds, and leases instead of them where a cache asks for it.
//!
//! A read is answered from what is confirmed, once every copy that counts has said, after the read
//! came, that it follows no later primary. Whoever could have served since is among them.
//!
//! Under a lease the primary answers alone. Every copy that counts promised to let nobody else serve
//! for `lease_ms` of its own clock; the primary counts from the moment it asked and takes off the
//! stated drift. This is the one place where strong mode leans on clocks: on their *rate*, never on
//! what they show.
//!
//! Ends of items are judged by a clock that the other copies have heard: that of the round, or under
//! a lease one that each grantor will have passed before it serves. What has ended stays ended.

use crate::config::mutant;
use crate::context::{Asker, Context};
use crate::effect::{Operation, Outcome};
use crate::evaluate::{Rules, evaluate};
use crate::ids::{Member, Term, Version};
use crate::node::{DirectRight, Refusal, Reply, Request};
use crate::rounds::Confirmation;
use crate::store::Store;
use crate::time::{Mono, Now};
use crate::topology::{CacheSpec, ReadMode};

use super::Replica;
use super::primary::{Lease, Primary, Read};
use super::replica::Granted;

impl Replica {
    /// Whether this copy may answer a read that may be stale.
    pub(super) fn reads_any_copy<S>(&self, cx: &Context<'_, S>, mode: ReadMode) -> bool {
        let whole = self.holds && !self.wiping && !self.stuck && self.intake.is_complete();
        mode == ReadMode::Any && whole && self.state.in_sync.contains(&cx.me)
    }

    /// Whether any copy may answer reads of a cache of this partition's group.
    pub(super) fn is_read_at_copies<S>(&self, cx: &Context<'_, S>) -> bool {
        let mut caches = cx.topology.caches.values();
        caches.any(|spec| spec.read == ReadMode::Any && spec.group() == self.place.group)
    }

    /// A plain read at the serving primary.
    pub(super) fn read<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: Request,
        deadline: Mono,
        mode: ReadMode,
    ) {
        let required = self.required(cx);
        let read = Read { asker, request, deadline, round: 0 };
        if required.is_empty() || mutant!(cx.config, ReadUnconfirmed) {
            let clock_ms = cx.clock_ms();
            return self.answer_or_wait(cx, read, clock_ms);
        }
        let config = &cx.config.strong;
        let Some(primary) = &mut self.primary else { return };
        let leases = mode == ReadMode::Lease;
        let lease = if leases { primary.lease(&required, cx.now) } else { None };
        if let Some(lease) = lease {
            let clock_ms = cx.clock.advance(cx.now).min(lease.clock_ms(cx.now));
            let clock_ms = clock_ms.max(primary.judged_ms);
            primary.judged_ms = clock_ms;
            // Renewed while it is used, well before it ends.
            let renew = lease.until.since_ms(cx.now.mono)
                < config.lease_ms.saturating_sub(config.lease_renew_ms);
            if renew && !cx.rounds.is_wanted(self.place) {
                let due = cx.now.mono.after_us(config.confirm_batch_us);
                cx.rounds.want(self.place, self.term, required, true, due);
            }
            return self.answer_or_wait(cx, read, clock_ms);
        }
        if primary.reads.len() >= config.pending_reads_max {
            return cx.reply(asker, Reply::NotApplied(Refusal::Busy));
        }
        let due = cx.now.mono.after_us(config.confirm_batch_us);
        let round = cx.rounds.want(self.place, self.term, required, leases, due);
        primary.reads.push_back(Read { round, ..read });
        let retry = due.after_ms(config.resend_after_ms);
        primary.round_retry.get_or_insert(retry);
    }

    /// Answers a read from what is confirmed, unless that has ended while an operation that found
    /// it alive is on its way: it may be about to live longer, and must not be seen to come back.
    pub(super) fn answer_or_wait<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        read: Read,
        clock_ms: u64,
    ) {
        let Some(primary) = &mut self.primary else { return };
        let key = &read.request.key;
        if let Some(&(seq, _)) = primary.latest.get(key)
            && cx.store.read(self.place, key, false, 0).is_some_and(|item| item.is_over(clock_ms))
        {
            primary.blocked.entry(seq).or_default().push((read, clock_ms));
            return;
        }
        // What looked as if it only had to be looked at may have been marked since.
        if !read.request.is_plain_read()
            && let Some(spec) = cx.topology.cache(read.request.key.cache)
            && !self.only_looks(cx, &read.request, spec)
        {
            return self.write(cx, read.asker, read.request, read.deadline, spec);
        }
        self.answer_read(cx, read.asker, &read.request, Some(clock_ms));
    }

    /// Whether a read that may change the item finds nothing to change about it.
    pub(super) fn only_looks<S: Store>(
        &self,
        cx: &Context<'_, S>,
        request: &Request,
        spec: &CacheSpec,
    ) -> bool {
        let Operation::Look { touch: None, .. } = &request.operation else { return false };
        let Some(primary) = &self.primary else { return false };
        let known = request
            .id
            .is_some_and(|id| primary.pending_ids.contains_key(&id) || self.answers.answered(id));
        let clock_ms = cx.clock.read(cx.now);
        let current = self.unconfirmed(cx, &request.key, clock_ms);
        let rules = Rules::of(spec);
        !known
            && evaluate(current.as_ref(), &request.operation, Version(0), clock_ms, &rules)
                .change
                .is_none()
    }

    /// Answers reads that waited for entries which are applied now.
    pub(super) fn answer_blocked<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let Some(primary) = &mut self.primary else { return };
        if primary.blocked.is_empty() {
            return;
        }
        let waiting = primary.blocked.split_off(&self.applied.next());
        let answered = std::mem::replace(&mut primary.blocked, waiting);
        let judged_ms = primary.judged_ms;
        for (read, clock_ms) in answered.into_values().flatten() {
            self.answer_or_wait(cx, read, clock_ms.max(judged_ms));
        }
    }

    /// Answers a read from what is confirmed here.
    pub(super) fn answer_read<S: Store>(
        &self,
        cx: &mut Context<'_, S>,
        asker: Asker,
        request: &Request,
        clock_ms: Option<u64>,
    ) {
        let clock_ms = match clock_ms {
            Some(clock_ms) => clock_ms,
            None => cx.clock_ms(),
        };
        let item = match &self.primary {
            Some(primary)
                if mutant!(cx.config, ReadUnstable)
                    && primary.latest.contains_key(&request.key) =>
            {
                primary.latest.get(&request.key).and_then(|(_, item)| item.clone())
            }
            _ => {
                cx.store.read(self.place, &request.key, request.operation.counts_as_use(), clock_ms)
            }
        };
        let outcome = match item.filter(|item| !item.is_over(clock_ms)) {
            Some(item) => Outcome::Hit(item),
            None if self.state.generation > request.seen => Outcome::Lost(self.state.generation),
            None => Outcome::NotFound,
        };
        cx.reply(asker, Reply::Done(outcome));
    }

    /// A peer answered a round.
    pub fn on_confirmed<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        met: Result<Confirmation, Term>,
    ) {
        match met {
            Err(term) => {
                if term > self.term {
                    self.adopt(cx, term);
                }
            }
            Ok(confirmation) => self.take_confirmation(cx, from, confirmation),
        }
        self.work(cx);
    }

    fn take_confirmation<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        from: Member,
        confirmation: Confirmation,
    ) {
        let config = &cx.config.strong;
        let Some(primary) = &mut self.primary else { return };
        if let Some(peer) = primary.peers.get_mut(&from)
            && confirmation.lease
            && peer.lease.sent_at <= confirmation.sent_at
        {
            // A millisecond has a million nanoseconds: a part per million each.
            let drift_ns = config.lease_ms.saturating_mul(config.clock_drift_ppm);
            let length_ns = config.lease_ms.saturating_mul(1_000_000).saturating_sub(drift_ns);
            peer.lease = Lease {
                until: confirmation.sent_at.after_ns(length_ns),
                sent_at: confirmation.sent_at,
                clock_ms: confirmation.clock_ms,
            };
        }
        if !confirmation.complete || !primary.serves() {
            return;
        }
        primary.judged_ms = primary.judged_ms.max(confirmation.clock_ms);
        let clock_ms = confirmation.clock_ms;
        let mut answered = Vec::new();
        while primary.reads.front().is_some_and(|read| read.round <= confirmation.round) {
            answered.extend(primary.reads.pop_front());
        }
        if primary.reads.is_empty() {
            primary.round_retry = None;
        }
        for read in answered {
            self.answer_or_wait(cx, read, clock_ms);
        }
    }

    /// Asks for another round when the last one was not answered in time.
    pub(super) fn retry_rounds<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        let config = &cx.config.strong;
        let due = |primary: &Primary| primary.round_retry.is_some_and(|at| at <= cx.now.mono);
        if !self.primary.as_ref().is_some_and(|primary| due(primary)) {
            return;
        }
        let required = self.required(cx);
        let Some(primary) = &mut self.primary else { return };
        if primary.reads.is_empty() {
            primary.round_retry = None;
            return;
        }
        primary.round_retry = Some(cx.now.mono.after_ms(config.resend_after_ms));
        if required.is_empty() {
            let clock_ms = cx.clock.advance(cx.now);
            for read in std::mem::take(&mut primary.reads) {
                self.answer_or_wait(cx, read, clock_ms);
            }
            return;
        }
        let lease = primary.reads.iter().any(|read| {
            let spec = cx.topology.cache(read.request.key.cache);
            spec.is_some_and(|spec| spec.read == ReadMode::Lease)
        });
        cx.rounds.want(self.place, self.term, required.iter().copied(), lease, cx.now.mono);
        // Whoever is silent is to be noticed, reads or writes.
        let silent: Vec<Member> = required
            .into_iter()
            .filter(|member| primary.peers.get(member).is_some_and(|peer| peer.resend_at.is_none()))
            .collect();
        for member in silent {
            self.probe(cx, member);
        }
    }

    /// Puts newly counted copies into the round that is about to be sent.
    pub(super) fn ask_counted_too<S: Store>(&mut self, cx: &mut Context<'_, S>) {
        if cx.rounds.is_wanted(self.place) {
            let due = cx.now.mono.after_us(cx.config.strong.confirm_batch_us);
            let required = self.required(cx);
            cx.rounds.want(self.place, self.term, required, false, due);
        }
    }

    /// What those who share the memory may read here without asking.
    pub(crate) fn direct_right(&self, me: Member) -> DirectRight {
        let none = DirectRight::default();
        let Some(primary) = self.primary.as_ref().filter(|primary| primary.serves()) else {
            return none;
        };
        if self.wiping || self.stuck || !self.intake.is_complete() {
            return none;
        }
        let counted = self.state.in_sync.iter().filter(|member| **member != me);
        let counted = counted.chain(primary.promoting.keys());
        let mut leased_until = Mono::MAX;
        let mut alone_until = Mono::MAX;
        for member in counted {
            alone_until = Mono(0);
            let until = primary.peers.get(member).map_or(Mono(0), |peer| peer.lease.until);
            leased_until = leased_until.min(until);
        }
        if leased_until == Mono(0) {
            return none;
        }
        DirectRight { alone_until, leased_until, generation: self.state.generation }
    }

    /// Where this copy serves under a lease: its term, and who is to grant it anew.
    pub(crate) fn leased_by(&self, me: Member) -> Option<(Term, Vec<Member>)> {
        let right = self.direct_right(me);
        let primary = self.primary.as_ref()?;
        if right.leased_until == Mono(0) || right.alone_until == Mono::MAX {
            return None;
        }
        let counted = self.state.in_sync.iter().filter(|member| **member != me);
        let too = primary.promoting.keys().filter(|member| !self.state.in_sync.contains(member));
        Some((self.term, counted.chain(too).copied().collect()))
    }

    /// Promises the primary of `term` that nobody else serves for so long.
    pub fn grant(&mut self, now: Now, term: Term, lease_ms: u64, clock_ms: u64, drift_ppm: u64) {
        let Granted { term: latest, until, clock_ms: heard } = self.granted;
        // The primary may have judged ends by its clock at the end of the lease.
        let drift_ms = lease_ms * drift_ppm / 1_000_000 + 1;
        self.granted = Granted {
            term: latest.max(term),
            until: until.max(now.mono.after_ms(lease_ms)),
            clock_ms: heard.max(clock_ms.saturating_add(lease_ms).saturating_add(drift_ms)),
        };
    }

    /// The primary of `term` serves no longer. It served when the leases of terms before had run out,
    /// or were given up like this one; a later promise is not its to give back. It judged nothing
    /// by a later clock than that of its message.
    pub(super) fn on_yielded<S: Store>(
        &mut self,
        cx: &mut Context<'_, S>,
        term: Term,
        clock_ms: u64,
    ) {
        if term >= self.granted.term {
            cx.clock.merge(cx.now, clock_ms);
            self.granted = Granted { term, ..Granted::default() };
        }
    }
}

impl Primary {
    /// The lease that all who count have granted: the shortest, with the earliest clock.
    fn lease(&self, required: &[Member], now: Now) -> Option<Lease> {
        let mut least: Option<Lease> = None;
        for member in required {
            let lease = self.peers.get(member)?.lease;
            if lease.until <= now.mono {
                return None;
            }
            least = Some(match least {
                None => lease,
                Some(least) => Lease {
                    until: least.until.min(lease.until),
                    ..if lease.clock_ms(now) < least.clock_ms(now) { lease } else { least }
                },
            });
        }
        least
    }
}
