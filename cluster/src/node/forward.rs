//! Requests that another node has to answer.
//!
//! A request goes to its partition's primary, or to a copy where any may answer, and the reply comes
//! back to whoever asked here. A message that the network repeats is carried out once: each node
//! remembers the numbers of the last [`WINDOW`] requests of each other life. A request that gets no
//! answer in time is answered as what it is: not applied if it only looked, else indeterminate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Actions, Node, Refusal, Reply, Request};
use crate::balance::ReadCopy;
use crate::context::Asker;
use crate::effect::Operation;
use crate::ids::{Member, Mode, Place, Token};
use crate::message::Body;
use crate::store::Store;
use crate::time::{Mono, Now};
use crate::topology::{CacheSpec, ReadMode};

/// Numbers of requests remembered for each life of another node.
const WINDOW: usize = 4_096;
/// Lives of other nodes for which numbers are remembered.
const LIVES_MAX: usize = 1_024;

/// A request that another node has.
#[derive(Debug)]
struct Asked {
    token: Token,
    to: Member,
    request: Request,
    deadline: Mono,
    hops: u32,
}

/// Numbers of requests that came from one life of another node.
#[derive(Debug, Default)]
struct Seen {
    /// All up to here count as seen.
    floor: u64,
    above: BTreeSet<u64>,
}

/// Requests passed on, and those passed to this node.
#[derive(Debug)]
pub(super) struct Forwarded {
    last: u64,
    random: u64,
    asked: BTreeMap<u64, Asked>,
    /// In order: all have the same time.
    deadlines: VecDeque<(Mono, u64)>,
    seen: BTreeMap<Member, Seen>,
}

impl Forwarded {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            last: 0,
            random: seed,
            asked: BTreeMap::new(),
            deadlines: VecDeque::new(),
            seen: BTreeMap::new(),
        }
    }

    pub(super) fn next_wakeup(&self) -> Option<Mono> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// Whether a request of another node came for the first time.
    pub(super) fn is_new(&mut self, from: Member, ask: u64) -> bool {
        if self.seen.len() >= LIVES_MAX && !self.seen.contains_key(&from) {
            self.seen.pop_first();
        }
        let seen = self.seen.entry(from).or_default();
        if ask <= seen.floor || !seen.above.insert(ask) {
            return false;
        }
        while seen.above.len() > WINDOW {
            if let Some(least) = seen.above.pop_first() {
                seen.floor = least;
            }
        }
        true
    }

    /// A pseudo-random number: splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl<S: Store> Node<S> {
    /// Someone asks: a client here, or another node on behalf of one.
    pub(super) fn on_request(
        &mut self,
        now: Now,
        asker: Asker,
        request: Request,
        hops: u32,
        actions: &mut Actions,
    ) {
        let topology = std::sync::Arc::clone(&self.base.topology);
        let Some(spec) = topology.cache(request.key.cache) else {
            return self.reply(now, asker, Refusal::NoSuchCache, actions);
        };
        let partition = topology.partition_of(&request.key.key);
        let place = Place { group: spec.group(), partition };
        // Owners that merge by version, key by key, have no common moment for all keys.
        if place.group.mode == Mode::Eventual && request.operation == Operation::Clear {
            return self.reply(now, asker, Refusal::Unsupported, actions);
        }
        if self.answers_itself(place, spec, &request) {
            return match place.group.mode {
                Mode::Strong => self.run(now, place, actions, |replica, cx| {
                    replica.on_request(cx, asker, request);
                }),
                Mode::Eventual => {
                    let Self { base, eventual, .. } = self;
                    eventual.within(&mut base.context(now, actions), |eventual, turn| {
                        eventual.on_request(turn, asker, place, &request);
                    });
                }
            };
        }
        let other = self.choose(now, place, spec, &request);
        match (asker, other) {
            (Asker::Local(token), Some(other)) => {
                self.forward(now, token, other, request, hops, actions);
            }
            (Asker::Local(_), None) if place.group.mode == Mode::Eventual => {
                let Self { base, eventual, .. } = self;
                eventual.within(&mut base.context(now, actions), |eventual, turn| {
                    eventual.stand_in(turn, asker, place, &request);
                });
            }
            (Asker::Local(_), None) => self.reply(now, asker, Refusal::NotReady, actions),
            (Asker::Remote { .. }, other) => {
                let hint = other.map(|member| member.node);
                self.reply(now, asker, Refusal::NotPrimary(hint), actions);
            }
        }
    }

    fn reply(&mut self, now: Now, asker: Asker, refusal: Refusal, actions: &mut Actions) {
        self.base.context(now, actions).reply(asker, Reply::NotApplied(refusal));
    }

    fn answers_itself(&self, place: Place, spec: &CacheSpec, request: &Request) -> bool {
        let me = Some(self.base.me);
        match place.group.mode {
            Mode::Eventual => self.eventual.serves(place),
            Mode::Strong => {
                let state = self.base.topology.partition(place);
                let any = spec.read == ReadMode::Any && request.is_plain_read();
                state.is_some_and(|state| {
                    state.primary == me || (any && state.in_sync.contains(&self.base.me))
                })
            }
        }
    }

    /// The other node to ask.
    fn choose(
        &mut self,
        now: Now,
        place: Place,
        spec: &CacheSpec,
        request: &Request,
    ) -> Option<Member> {
        let topology = &self.base.topology;
        let state = topology.partition(place)?;
        let any = match place.group.mode {
            Mode::Eventual => true,
            Mode::Strong => spec.read == ReadMode::Any && request.is_plain_read(),
        };
        if !any {
            return state.primary.filter(|primary| *primary != self.base.me);
        }
        let reachable =
            |member: &&Member| **member != self.base.me && self.membership.is_heard(now, **member);
        let copies: Vec<ReadCopy> = state
            .in_sync
            .iter()
            .filter(reachable)
            .map(|member| ReadCopy {
                node: member.node,
                weight: topology.nodes.get(&member.node).map_or(0, |info| info.weight),
                load: self.membership.load(member.node).map_or(0, |load| load.in_flight),
            })
            .collect();
        let node = self.base.config.read_balance.choose(&copies, self.forwarded.random())?;
        self.base.topology.member(node)
    }

    fn forward(
        &mut self,
        now: Now,
        token: Token,
        to: Member,
        request: Request,
        hops: u32,
        actions: &mut Actions,
    ) {
        let config = &self.base.config.forward;
        let forwarded = &mut self.forwarded;
        if forwarded.asked.len() >= config.waiting_max {
            return self.reply(now, Asker::Local(token), Refusal::Busy, actions);
        }
        forwarded.last += 1;
        let ask = forwarded.last;
        let deadline = now.mono.after_ms(config.timeout_ms);
        forwarded.deadlines.push_back((deadline, ask));
        let kept = request.clone();
        forwarded.asked.insert(ask, Asked { token, to, request: kept, deadline, hops });
        self.base.outbox.push(to, Body::Ask { ask, request });
    }

    /// Another node answered a request passed to it.
    pub(super) fn on_answer(
        &mut self,
        now: Now,
        from: Member,
        ask: u64,
        reply: Reply,
        actions: &mut Actions,
    ) {
        if self.forwarded.asked.get(&ask).is_none_or(|asked| asked.to != from) {
            return;
        }
        let Some(asked) = self.forwarded.asked.remove(&ask) else { return };
        let asker = Asker::Local(asked.token);
        // A hint is worth following: nothing was applied. Hints may go round in circles, so not for
        // ever.
        if let Reply::NotApplied(Refusal::NotPrimary(hint)) = reply
            && asked.hops < self.base.config.forward.hops_max
            && hint != Some(from.node)
            && self.points_on(&asked)
        {
            return self.on_request(now, asker, asked.request, asked.hops + 1, actions);
        }
        self.base.context(now, actions).reply(asker, reply);
    }

    /// Whether this node's table, by now, names another node to ask than the one that refused.
    fn points_on(&self, asked: &Asked) -> bool {
        let topology = &self.base.topology;
        let Some(spec) = topology.cache(asked.request.key.cache) else { return false };
        let partition = topology.partition_of(&asked.request.key.key);
        let primary = topology
            .partition(Place { group: spec.group(), partition })
            .and_then(|state| state.primary);
        primary.is_some_and(|primary| primary != asked.to)
    }

    pub(super) fn give_up_forwarded(&mut self, now: Now, actions: &mut Actions) {
        while let Some(&(at, ask)) = self.forwarded.deadlines.front() {
            let waits = self.forwarded.asked.get(&ask).is_some_and(|asked| asked.deadline == at);
            if waits && at > now.mono {
                return;
            }
            self.forwarded.deadlines.pop_front();
            if !waits {
                continue;
            }
            let Some(asked) = self.forwarded.asked.remove(&ask) else { continue };
            let reply = if asked.request.is_plain_read() {
                Reply::NotApplied(Refusal::TimedOut)
            } else {
                Reply::Indeterminate
            };
            self.base.context(now, actions).reply(Asker::Local(asked.token), reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, NodeId};

    #[test]
    fn a_request_that_the_network_repeats_is_new_once() {
        let mut forwarded = Forwarded::new(1);
        let from = Member { node: NodeId(1), incarnation: Incarnation(1) };
        assert!(forwarded.is_new(from, 2));
        assert!(forwarded.is_new(from, 1));
        assert!(!forwarded.is_new(from, 2));
        for ask in 3..10_000 {
            assert!(forwarded.is_new(from, ask));
        }
        assert!(!forwarded.is_new(from, 1));
        assert!(!forwarded.is_new(from, 9_999));
    }
}
