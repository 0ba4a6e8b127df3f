//! The next step of each partition towards its targets.
//!
//! One command at a time for a partition: each rests on the version that the one before left. What
//! restores service comes first and without limit; what rebuilds copies comes before what only
//! improves balance, the coldest partitions before the hottest, and both within limits. While
//! clients keep the nodes busy, what can wait is proposed in rounds, few steps at a time: each
//! version of the table costs all nodes some work, and requests wait behind it.

use std::collections::BTreeMap;

use super::{ControllerConfig, View};
use crate::ids::{Generation, Member, Mode, NodeId, Place};
use crate::time::Mono;
use crate::topology::{PartitionState, TopologyCommand};

/// What was begun and what to leave alone for now. At most one entry for each partition, or for
/// each learner in the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    /// The version that something was proposed on, and when.
    proposed: BTreeMap<Place, (u64, Mono)>,
    /// Since when a learner is being filled.
    learning: BTreeMap<(Place, Member), Mono>,
    /// Nodes that did not become a copy in time, and until when others are tried.
    avoided: BTreeMap<(Place, NodeId), Mono>,
    /// Of planned moves of primaries.
    moves: Pace,
    /// Of copies for the sake of balance.
    balance: Pace,
    /// When what can wait is proposed again.
    next_round: Mono,
}

/// So many a second and no more.
#[derive(Clone, Debug, Default)]
struct Pace {
    next: Mono,
}

impl Pace {
    /// Takes one of those that are allowed now. What was not used for longer than `burst_ms` is lost:
    /// they come evenly, not all at once.
    fn take(&mut self, per_s: u32, burst_ms: u64, now: Mono) -> bool {
        if self.next > now || per_s == 0 {
            return false;
        }
        let earliest = Mono(now.0.saturating_sub(burst_ms.saturating_mul(1_000_000)));
        let between_ns = 1_000_000_000 / u64::from(per_s);
        self.next = self.next.max(earliest).after_ns(between_ns.max(1));
        true
    }
}

/// What a partition needs.
enum Need {
    /// At once.
    Urgent(TopologyCommand),
    /// A copy that is missing, or one that takes the place of another.
    Copy { member: Member, source: NodeId, urgency: Urgency, version: u64 },
    /// A planned change of the primary.
    Move(TopologyCommand),
    /// Everything is there, and something too much.
    Drop(TopologyCommand),
}

/// Why there is to be a copy, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// There are too few.
    Missing,
    /// Another one is to leave with its node.
    Leaving,
    /// It would be better placed there.
    Balance,
}

impl Steps {
    pub(super) fn decide(
        &mut self,
        config: &ControllerConfig,
        view: &View<'_>,
        commands: &mut Vec<TopologyCommand>,
    ) {
        self.remember(config, view);
        let (mut filled, mut feeding) = (BTreeMap::new(), BTreeMap::new());
        for (_, state) in view.topology.places() {
            for learner in &state.learners {
                *filled.entry(learner.node).or_insert(0) += 1;
                if let Some(primary) = state.primary {
                    *feeding.entry(primary.node).or_insert(0) += 1;
                }
            }
        }
        let heat = heat(view);
        let heat_of = |place: &Place| heat.get(place).copied().unwrap_or(0);
        let (mut copies, mut moves) = (Vec::new(), Vec::new());
        let now = view.now.mono;
        let is_busy = heat.values().any(|operations| *operations > 0);
        let is_round = !is_busy || self.next_round <= now;
        let round_ms = if is_busy { config.round_every_ms } else { 0 };
        let burst_ms = config.tick_ms.max(round_ms);
        let before = commands.len();
        let mut hurried = 0;
        for (place, state) in view.topology.places() {
            if self.proposed.get(&place).is_some_and(|(version, _)| *version == state.version) {
                continue;
            }
            match self.need(config, view, place, state) {
                Some(Need::Urgent(command)) => {
                    hurried += 1;
                    self.propose(view, place, state.version, command, commands);
                }
                Some(Need::Copy { member, source, urgency, version })
                    if is_round || urgency == Urgency::Missing =>
                {
                    copies.push((urgency, heat_of(&place), place, member, source, version));
                }
                Some(Need::Drop(command)) if is_round => {
                    self.propose(view, place, state.version, command, commands);
                }
                Some(Need::Move(command)) if is_round => {
                    moves.push((heat_of(&place), place, state.version, command));
                }
                _ => {}
            }
        }
        copies.sort_by_key(|(urgency, heat, place, ..)| (*urgency, *heat, *place));
        for (urgency, _, place, member, source, version) in copies {
            let filled = filled.entry(member.node).or_insert(0);
            let feeding = feeding.entry(source).or_insert(0);
            if *filled < config.learners_per_node && *feeding < config.learners_per_source {
                let is_paced = is_busy && urgency == Urgency::Balance;
                if is_paced && !self.balance.take(config.balance_copies_per_s, burst_ms, now) {
                    // All that follow are no more urgent.
                    break;
                }
                hurried += usize::from(urgency == Urgency::Missing);
                *filled += 1;
                *feeding += 1;
                let command = TopologyCommand::AddLearner { place, version, member };
                self.propose(view, place, version, command, commands);
            }
        }
        moves.sort_by_key(|(heat, place, ..)| (*heat, *place));
        for (_, place, version, command) in moves {
            if !self.moves.take(config.primary_moves_per_s, burst_ms, now) {
                break;
            }
            self.propose(view, place, version, command, commands);
        }
        if commands.len() - before > hurried {
            self.next_round = now.after_ms(round_ms);
        }
    }

    /// What this partition needs next, most urgent first.
    fn need(
        &self,
        config: &ControllerConfig,
        view: &View<'_>,
        place: Place,
        state: &PartitionState,
    ) -> Option<Need> {
        let version = state.version;
        let Some(primary) = state.primary else {
            return assign(view, place, state).map(Need::Urgent);
        };
        let rank = |member: &Member| {
            let wish = state.target.iter().position(|target| *target == member.node);
            (wish.unwrap_or(usize::MAX), *member)
        };
        let alive = || state.in_sync.iter().filter(|copy| !view.is_down(**copy));
        // In eventual mode an owner that is away stays one: it may be serving the other side of a
        // cut. It leaves when another has taken its place.
        let is_strong = place.group.mode == Mode::Strong;
        let gone = |copy: &Member| is_strong && view.is_down(*copy);
        if view.is_down(primary) {
            // If no copy in sync is left to follow, the partition waits for one to come back:
            // anyone else would serve without what was acknowledged.
            let to = *alive().min_by_key(|copy| rank(copy))?;
            let remove = state.in_sync.iter().copied().filter(gone).collect();
            return Some(Need::Urgent(TopologyCommand::ChangePrimary {
                place,
                version,
                to,
                remove,
            }));
        }
        if let Some(member) = state.in_sync.iter().copied().find(gone) {
            return Some(Need::Urgent(TopologyCommand::Shrink { place, version, member }));
        }
        let is_late = |learner: &Member| {
            self.learning
                .get(&(place, *learner))
                .is_some_and(|since| view.now.mono.since_ms(*since) >= config.learner_timeout_ms)
        };
        let given_up = state.learners.iter().copied().find(|learner| {
            view.is_down(*learner) || !state.target.contains(&learner.node) || is_late(learner)
        });
        if let Some(member) = given_up {
            return Some(Need::Urgent(TopologyCommand::RemoveLearner { place, version, member }));
        }
        let is_there = |node: NodeId| state.members().any(|member| member.node == node);
        let missing = state
            .target
            .iter()
            .filter(|node| !is_there(**node) && !self.avoided.contains_key(&(place, **node)))
            .find_map(|node| view.is_ready(*node));
        if let Some(member) = missing {
            let coming = state.in_sync.len() + state.learners.len();
            let stays = |copy: &Member| {
                state.target.contains(&copy.node) || view.is_ready(copy.node) == Some(*copy)
            };
            let urgency = if coming < state.target.len() {
                Urgency::Missing
            } else if state.in_sync.iter().all(stays) {
                Urgency::Balance
            } else {
                Urgency::Leaving
            };
            return Some(Need::Copy { member, source: primary.node, urgency, version });
        }
        let in_sync = |node: &NodeId| state.in_sync.iter().find(|copy| copy.node == *node);
        let owners: Vec<Member> = state.target.iter().filter_map(in_sync).copied().collect();
        if owners.is_empty() || owners.len() < state.target.len() {
            return None;
        }
        // All that shall hold it do: add before remove, and the primary moves last.
        let surplus = |copy: &Member| !state.target.contains(&copy.node);
        if let Some(member) = state.in_sync.iter().find(|copy| surplus(copy) && **copy != primary) {
            return Some(Need::Drop(TopologyCommand::Shrink { place, version, member: *member }));
        }
        (owners[0] != primary && !view.is_down(owners[0])).then(|| {
            let (to, remove) = (owners[0], Vec::new());
            Need::Move(TopologyCommand::ChangePrimary { place, version, to, remove })
        })
    }

    fn propose(
        &mut self,
        view: &View<'_>,
        place: Place,
        version: u64,
        command: TopologyCommand,
        commands: &mut Vec<TopologyCommand>,
    ) {
        self.proposed.insert(place, (version, view.now.mono));
        commands.push(command);
    }

    /// Takes from the table what is being filled, and forgets what has passed.
    fn remember(&mut self, config: &ControllerConfig, view: &View<'_>) {
        let now = view.now.mono;
        self.proposed.retain(|_, (_, at)| now.since_ms(*at) < config.retry_ms);
        self.avoided.retain(|_, until| *until > now);
        let mut learning = BTreeMap::new();
        for (place, state) in view.topology.places() {
            for learner in &state.learners {
                let key = (place, *learner);
                let since = self.learning.get(&key).copied().unwrap_or(now);
                if now.since_ms(since) >= config.learner_timeout_ms {
                    let until = now.after_ms(config.learner_timeout_ms);
                    self.avoided.insert((place, learner.node), until);
                }
                learning.insert(key, since);
            }
        }
        self.learning = learning;
    }
}

/// Gives out a partition that nobody holds. A new one is empty everywhere, so all its owners begin
/// in sync; after a loss one begins and the others are filled from it, because what they still hold
/// of former times must not count.
fn assign(view: &View<'_>, place: Place, state: &PartitionState) -> Option<TopologyCommand> {
    let mut members: Vec<Member> =
        state.target.iter().filter_map(|node| view.is_ready(*node)).collect();
    if state.generation != Generation(0) {
        members.truncate(1);
    }
    let version = state.version;
    (!members.is_empty()).then_some(TopologyCommand::Assign { place, version, members })
}

/// Operations per second of the partitions that nodes named as hot.
fn heat(view: &View<'_>) -> BTreeMap<Place, u32> {
    let mut heat = BTreeMap::new();
    let said = view.membership.peers().map(|peer| &peer.said).chain(view.membership.own());
    for (place, operations) in said.flat_map(|beat| &beat.hottest) {
        let known = heat.entry(*place).or_insert(0);
        *known = (*known).max(*operations);
    }
    heat
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pace: &mut Pace, at_ms: u64) -> usize {
        let now = Mono::default().after_ms(at_ms);
        (0..1_000).filter(|_| pace.take(50, 200, now)).count()
    }

    #[test]
    fn steps_come_at_their_rate_and_what_was_not_used_for_long_is_lost() {
        let mut pace = Pace::default();
        assert_eq!(taken(&mut pace, 10_000), 11);
        assert_eq!(taken(&mut pace, 10_000), 0);
        assert_eq!(taken(&mut pace, 10_100), 5);
        assert_eq!(taken(&mut pace, 10_300), 10);
        assert_eq!(taken(&mut pace, 60_000), 11, "not those of fifty seconds");
        assert!(!Pace::default().take(0, 200, Mono::default().after_ms(1)));
    }
}
