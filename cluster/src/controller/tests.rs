//! The controller beside nodes that only beat and are filled: everything that it decides shows in
//! the table. The protocol between the copies is the simulator's business.

use std::collections::BTreeMap;

use super::*;
use crate::heartbeat::{Heartbeat, HeartbeatConfig, LocalFacts};
use crate::ids::{ClusterId, Generation, GroupKey, Mode, PartitionId, Place};
use crate::topology::tests::{cache, join, member};
use crate::topology::{CacheSpec, PartitionState, ReadMode};

const PARTITIONS: u32 = 32;
const STEP_MS: u64 = 10;
const BEAT_MS: u64 = 150;

/// A cluster of which only the decisions are real.
struct World {
    now_ms: u64,
    topology: Topology,
    /// Lives that run and beat, and what they say.
    alive: BTreeMap<u64, (Member, Readiness)>,
    controllers: Vec<(Controller, Membership)>,
    /// Since when a learner is being filled.
    filling: BTreeMap<(Place, Member), u64>,
    fill_ms: u64,
    hottest: Vec<(Place, u32)>,
    committed: Vec<TopologyCommand>,
    /// Checked after each command.
    in_sync_min: usize,
}

impl World {
    /// Nodes that have joined and one leader, node 1.
    fn new(nodes: u64) -> Self {
        let mut world = Self {
            now_ms: 0,
            topology: Topology::new(ClusterId(7), PARTITIONS),
            alive: BTreeMap::new(),
            controllers: Vec::new(),
            filling: BTreeMap::new(),
            fill_ms: 20,
            hottest: Vec::new(),
            committed: Vec::new(),
            in_sync_min: 0,
        };
        for node in 1..=nodes {
            world.join(node, 1);
        }
        world.lead(1);
        world
    }

    fn now(&self) -> Now {
        Now { mono: Mono::default().after_ms(self.now_ms), wall_ms: 0 }
    }

    fn join(&mut self, node: u64, life: u64) {
        let replaces = self.topology.member(NodeId(node)).map(|member| member.incarnation.0);
        self.commit(&join(node, life, replaces));
        self.alive.insert(node, (member(node, life), Readiness::Ready));
    }

    /// Another node leads, with nothing remembered.
    fn lead(&mut self, node: u64) {
        let me = self.alive[&node].0;
        let mut controller = Controller::new(ControllerConfig::default(), me);
        controller.lead(self.now(), true);
        let mut membership = Membership::new(HeartbeatConfig::default(), me);
        membership.lead(true);
        self.controllers.push((controller, membership));
    }

    fn create(&mut self, spec: CacheSpec) -> GroupKey {
        let group = spec.group();
        let name = format!("cache-{}", self.topology.caches.len());
        self.commit(&TopologyCommand::CreateCache { name, spec });
        group
    }

    fn commit(&mut self, command: &TopologyCommand) {
        let before = self.topology.clone();
        if self.topology.apply(command).is_err() {
            return;
        }
        assert_eq!(self.topology.check(), Ok(()), "after {command:?}");
        for (place, state) in self.topology.places() {
            let had = before.partition(place).map_or(0, |state| state.in_sync.len());
            let enough = state.in_sync.len() >= self.in_sync_min.min(had);
            assert!(enough, "{place} fell to {:?} by {command:?}", state.in_sync);
        }
        match command {
            TopologyCommand::Batch(commands) => self.committed.extend(commands.iter().cloned()),
            single => self.committed.push(single.clone()),
        }
        self.controllers.iter_mut().for_each(|(controller, _)| controller.on_topology());
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now = self.now();
        let mut proposals = Vec::new();
        for (controller, membership) in &mut self.controllers {
            let me = membership_owner(controller);
            if !self.alive.values().any(|(alive, _)| *alive == me) {
                continue;
            }
            let facts = LocalFacts {
                readiness: self.alive[&me.node.0].1,
                hottest: self.hottest.clone(),
                ..LocalFacts::default()
            };
            membership.beats(now, &self.topology, &facts);
            if self.now_ms.is_multiple_of(BEAT_MS) {
                for (from, readiness) in self.alive.values().filter(|(from, _)| *from != me) {
                    let (count, readiness) = (self.now_ms, *readiness);
                    let beat = Heartbeat { count, readiness, ..Heartbeat::default() };
                    if self.topology.is_present(*from) {
                        membership.on_heartbeat(now, *from, &beat);
                    }
                }
            }
            controller.tick(now, &self.topology, membership, &mut proposals);
        }
        self.promote(&mut proposals);
        proposals.iter().for_each(|command| self.commit(command));
    }

    /// What primaries do: they fill learners and ask for their promotion.
    fn promote(&mut self, proposals: &mut Vec<TopologyCommand>) {
        let mut filling = BTreeMap::new();
        let runs = |m: Member| self.alive.values().any(|(alive, _)| *alive == m);
        for (place, state) in self.topology.places() {
            for learner in &state.learners {
                let (version, term, member) = (state.version, state.term, *learner);
                if !runs(member) || !state.primary.is_some_and(runs) {
                    continue;
                }
                let key = (place, member);
                let since = self.filling.get(&key).copied().unwrap_or(self.now_ms);
                filling.insert(key, since);
                if self.now_ms - since >= self.fill_ms {
                    proposals.push(TopologyCommand::Promote { place, version, term, member });
                }
            }
        }
        self.filling = filling;
    }

    fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.step();
        }
    }

    fn run_until(&mut self, within_ms: u64, done: impl Fn(&Topology) -> bool) -> u64 {
        let start = self.now_ms;
        while !done(&self.topology) {
            assert!(self.now_ms - start < within_ms, "not within {within_ms} ms");
            self.step();
        }
        self.now_ms - start
    }

    fn states(&self) -> impl Iterator<Item = &PartitionState> {
        self.topology.places().map(|(_, state)| state)
    }

    fn held(&self, node: u64) -> usize {
        self.topology.drain_progress(NodeId(node)).held
    }
}

fn membership_owner(controller: &Controller) -> Member {
    controller.me
}

fn is_settled(topology: &Topology) -> bool {
    topology.places().all(|(_, state)| {
        let holders: Vec<NodeId> = state.in_sync.iter().map(|copy| copy.node).collect();
        !state.target.is_empty()
            && state.learners.is_empty()
            && holders.len() == state.target.len()
            && state.target.iter().all(|node| holders.contains(node))
            && state.primary.map(|primary| primary.node) == state.target.first().copied()
    })
}

/// A cluster that holds a cache of so many copies, all in sync.
fn settled(nodes: u64, copies: u8) -> World {
    let mut world = World::new(nodes);
    world.run(500);
    world.create(cache(copies));
    world.run_until(1_000, is_settled);
    world.committed.clear();
    world
}

fn learners_added(world: &World) -> Vec<(Place, u64)> {
    let added = |command: &TopologyCommand| match command {
        TopologyCommand::AddLearner { place, member, .. } => Some((*place, member.node.0)),
        _ => None,
    };
    world.committed.iter().filter_map(added).collect()
}

#[test]
fn a_new_cache_is_given_out_to_the_nodes_that_are_ready() {
    let world = settled(3, 2);
    assert!(world.states().all(|state| state.in_sync.len() == 2 && state.term.0 == 1));
    assert!((1..=3).all(|node| world.held(node) > 0));
}

#[test]
fn a_settled_cluster_proposes_nothing() {
    let mut world = settled(5, 3);
    world.run(30_000);
    assert_eq!(world.committed, []);
}

#[test]
fn a_dead_primary_is_replaced_soon_after_it_is_suspected() {
    let mut world = settled(3, 2);
    let dead = world.alive.remove(&2).expect("runs").0;
    let took = world.run_until(1_500, |topology| {
        topology.places().all(|(_, state)| !state.in_sync.contains(&dead))
    });
    assert!((850..=1_300).contains(&took), "took {took} ms");
    assert!(world.states().all(|state| state.primary.is_some_and(|p| p != dead)));
}

#[test]
fn copies_are_rebuilt_after_the_grace_and_not_before() {
    let mut world = settled(4, 2);
    world.alive.remove(&3);
    world.run(5_500);
    assert_eq!(learners_added(&world), [], "within the grace");
    world.run_until(5_000, is_settled);
    assert!(world.states().all(|state| state.in_sync.len() == 2));
    assert_eq!(world.held(3), 0);
}

#[test]
fn a_quick_restart_moves_nothing_but_what_the_node_lost() {
    let mut world = settled(4, 2);
    let targets: Vec<_> = world.states().map(|state| state.target.clone()).collect();
    let held = world.held(3);
    world.alive.remove(&3);
    world.run(2_500);
    world.join(3, 2);
    world.run_until(5_000, is_settled);
    world.run(20_000);
    assert!(learners_added(&world).iter().all(|(_, node)| *node == 3));
    assert_eq!(learners_added(&world).len(), held);
    assert!(world.states().map(|state| &state.target).eq(&targets));
}

#[test]
fn a_restart_before_it_is_missed_loses_no_data_and_no_order() {
    let mut world = settled(3, 2);
    world.join(2, 2);
    assert!(world.states().all(|state| state.primary.is_some() && state.generation.0 == 0));
    world.run_until(5_000, is_settled);
}

#[test]
fn the_last_copy_is_waited_for_and_never_given_up_on_suspicion() {
    let mut world = settled(2, 2);
    world.alive.remove(&2);
    world.run(2_000);
    world.lead(1);
    let (sole, _) = world.alive.remove(&1).expect("runs");
    world.join(3, 1);
    world.lead(3);
    world.run(60_000);
    assert!(world.states().all(|state| state.in_sync == [sole] && state.primary == Some(sole)));
    assert!(world.states().all(|state| state.generation == Generation(0)));
    // It was only paused.
    world.alive.insert(1, (sole, Readiness::Ready));
    world.run_until(10_000, is_settled);
    assert!(world.states().all(|state| state.generation == Generation(0)));
}

#[test]
fn after_a_loss_one_node_begins_and_the_others_are_filled_from_it() {
    let mut world = settled(3, 2);
    world.controllers.clear();
    world.lead(3);
    world.join(1, 2);
    world.join(2, 2);
    let lost = world.states().filter(|state| state.generation == Generation(1)).count();
    assert!(lost > 0, "what only these two held");
    world.run_until(10_000, is_settled);
    let given_out: Vec<usize> = world
        .committed
        .iter()
        .filter_map(|command| match command {
            TopologyCommand::Assign { members, .. } => Some(members.len()),
            _ => None,
        })
        .collect();
    assert_eq!(given_out, vec![1; lost], "though both were ready");
    assert!(world.states().all(|state| state.in_sync.len() == 2));
}

#[test]
fn a_node_that_joins_takes_its_share_and_no_copy_is_missing_meanwhile() {
    let mut world = settled(3, 2);
    world.in_sync_min = 2;
    world.join(4, 1);
    world.run_until(30_000, |topology| {
        is_settled(topology) && topology.drain_progress(NodeId(4)).held > 0
    });
    assert!((14..=17).contains(&world.held(4)), "holds {}", world.held(4));
    assert!(learners_added(&world).iter().all(|(_, node)| *node == 4));
    assert!(world.topology.drain_progress(NodeId(4)).led >= 6);
}

#[test]
fn no_node_is_filled_with_more_than_the_limit_at_once() {
    let mut world = settled(3, 2);
    world.fill_ms = 300;
    world.join(4, 1);
    let limit = ControllerConfig::default().learners_per_node;
    let mut most = 0;
    while !(is_settled(&world.topology) && world.held(4) > 0) {
        world.step();
        let filled = world.states().filter(|s| s.learners.contains(&member(4, 1))).count();
        most = most.max(filled);
        assert!(world.now_ms < 60_000);
    }
    assert_eq!(most, limit);
}

/// As if clients were at work.
fn be_busy(world: &mut World) {
    let place = Place { group: cache(2).group(), partition: PartitionId(0) };
    world.hottest = vec![(place, 1)];
}

#[test]
fn while_clients_are_at_work_a_rebalance_comes_in_rounds() {
    let mut world = settled(3, 2);
    be_busy(&mut world);
    world.in_sync_min = 2;
    world.join(4, 1);
    let is_step = |command: &TopologyCommand| {
        use TopologyCommand as C;
        matches!(command, C::AddLearner { .. } | C::Shrink { .. } | C::ChangePrimary { .. })
    };
    let mut rounds = Vec::new();
    while !(is_settled(&world.topology) && world.held(4) > 0) {
        let before = world.committed.len();
        world.step();
        if world.committed[before..].iter().any(is_step) {
            rounds.push(world.now_ms);
        }
        assert!(world.now_ms < 60_000);
    }
    let least = ControllerConfig::default().round_every_ms;
    assert!(rounds.len() > 4, "{rounds:?}");
    assert!(rounds.windows(2).all(|two| two[1] - two[0] >= least), "{rounds:?}");
}

#[test]
fn a_lost_copy_does_not_wait_for_rounds() {
    let rebuilt_after = |busy: bool| {
        let mut world = settled(4, 2);
        if busy {
            be_busy(&mut world);
        }
        let dead = world.alive.remove(&3).expect("runs").0;
        world.run_until(20_000, |topology| {
            topology
                .places()
                .all(|(_, state)| state.in_sync.len() == 2 && !state.in_sync.contains(&dead))
        })
    };
    assert_eq!(rebuilt_after(true), rebuilt_after(false));
}

#[test]
fn the_hottest_partitions_are_moved_last() {
    let mut world = settled(3, 2);
    let group = cache(2).group();
    let hot = |partition| (Place { group, partition: PartitionId(partition) }, 1_000 - partition);
    world.hottest = (0..HOT).map(hot).collect();
    const HOT: u32 = 16;
    world.join(4, 1);
    world.run_until(30_000, |topology| {
        is_settled(topology) && topology.drain_progress(NodeId(4)).held > 0
    });
    let moved: Vec<u32> = learners_added(&world).iter().map(|(p, _)| p.partition.0).collect();
    let first_hot = moved.iter().position(|p| *p < HOT).expect("some are hot");
    assert!(first_hot > 0);
    assert!(moved[first_hot..].iter().all(|p| *p < HOT), "{moved:?}");
    let hot_in_order = moved[first_hot..].is_sorted_by(|a, b| a > b);
    assert!(hot_in_order, "the coldest of the hot first: {moved:?}");
}

#[test]
fn a_node_that_leaves_hands_over_first_and_is_then_forgotten() {
    let mut world = settled(3, 2);
    world.in_sync_min = 2;
    let leaving = world.alive.get_mut(&2).expect("runs");
    leaving.1 = Readiness::Leaving;
    world.run_until(30_000, |topology| topology.drain_progress(NodeId(2)).is_done());
    assert!(world.states().all(|state| state.in_sync.len() == 2));
    assert_eq!(world.topology.nodes[&NodeId(2)].state, NodeState::Draining);
    world.alive.remove(&2);
    world.run_until(3_000, |topology| !topology.nodes.contains_key(&NodeId(2)));
    assert!(world.states().all(|state| state.generation == Generation(0)));
}

#[test]
fn an_operator_can_drain_a_node_that_does_not_know_of_it() {
    let mut world = settled(3, 2);
    world.in_sync_min = 2;
    let state = NodeState::Draining;
    world.commit(&TopologyCommand::SetNodeState { member: member(3, 1), state });
    world.run_until(30_000, |topology| topology.drain_progress(NodeId(3)).is_done());
    world.run(5_000);
    assert_eq!(world.held(3), 0, "it is not given anything back");
}

#[test]
fn a_new_leader_finishes_what_another_began() {
    let mut world = settled(3, 2);
    world.join(4, 1);
    world.run(700);
    assert!(!is_settled(&world.topology), "it is in the middle");
    world.controllers.clear();
    world.lead(2);
    world.run_until(30_000, |topology| {
        is_settled(topology) && topology.drain_progress(NodeId(4)).held > 0
    });
    assert!(learners_added(&world).iter().all(|(_, node)| *node == 4));
}

#[test]
fn a_wish_of_an_earlier_leader_that_is_committed_late_does_not_stay() {
    let mut world = settled(2, 2);
    let group = cache(2).group();
    let targets = (0..PARTITIONS).map(|p| (PartitionId(p), vec![NodeId(2)])).collect();
    world.commit(&TopologyCommand::SetTargets { group, targets });
    world.run(5_000);
    assert!(is_settled(&world.topology));
    assert!(world.states().all(|state| state.in_sync.len() == 2));
}

#[test]
fn a_new_leader_gives_everyone_time_to_report() {
    let mut world = settled(3, 2);
    world.run(5_000);
    world.controllers.clear();
    world.lead(2);
    world.run(10_000);
    assert_eq!(world.committed, []);
}

#[test]
fn two_leaders_at_once_do_no_harm() {
    let mut world = settled(4, 2);
    world.in_sync_min = 1;
    world.lead(2);
    world.alive.remove(&3);
    world.join(5, 1);
    world.run_until(60_000, |topology| {
        is_settled(topology) && topology.drain_progress(NodeId(5)).held > 0
    });
    assert!(world.states().all(|state| state.generation == Generation(0)));
}

#[test]
fn a_node_believed_dead_must_be_heard_steadily_before_it_counts_again() {
    let mut world = settled(3, 2);
    let paused = world.alive.remove(&3).expect("runs");
    let is_down = |t: &Topology| t.nodes[&NodeId(3)].state == NodeState::Down;
    world.run_until(2_000, is_down);
    world.alive.insert(3, paused);
    world.run(290);
    assert!(is_down(&world.topology), "after a single beat");
    world.run_until(1_000, |topology| !is_down(topology));
    world.run_until(5_000, is_settled);
}

#[test]
fn an_owner_of_an_eventual_cache_stays_one_while_it_is_away() {
    let mut world = World::new(4);
    world.run(500);
    world.create(CacheSpec { mode: Mode::Eventual, read: ReadMode::Any, ..cache(2) });
    world.run_until(1_000, is_settled);
    let away = world.alive.remove(&3).expect("runs").0;
    let held = world.held(3);
    world.run(4_000);
    assert_eq!(world.held(3), held, "it may be serving the other side of a cut");
    assert!(world.states().all(|state| state.primary.is_some_and(|primary| primary != away)));
    world.run_until(20_000, is_settled);
    assert_eq!(world.held(3), 0, "others have taken its place");
}

#[test]
fn a_learner_that_never_gets_there_makes_room_for_others() {
    let mut world = settled(3, 2);
    world.fill_ms = u64::MAX;
    world.join(4, 1);
    world.run(310_000);
    let tried: BTreeMap<Place, usize> =
        learners_added(&world).into_iter().fold(BTreeMap::new(), |mut tried, (place, _)| {
            *tried.entry(place).or_insert(0) += 1;
            tried
        });
    assert!(tried.len() > ControllerConfig::default().learners_per_node, "{tried:?}");
    assert!(tried.values().all(|times| *times == 1), "none is tried again at once: {tried:?}");
}

#[test]
fn weight_zero_empties_a_node_and_keeps_it() {
    let mut world = settled(3, 2);
    world.in_sync_min = 2;
    world.commit(&TopologyCommand::SetWeight { node: NodeId(1), weight: 0 });
    world.run_until(30_000, |topology| topology.drain_progress(NodeId(1)).is_done());
    world.run(2_000);
    assert!(world.topology.nodes.contains_key(&NodeId(1)));
}

#[test]
fn with_everyone_leaving_the_copies_stay_where_they_are() {
    let mut world = settled(2, 2);
    world.alive.values_mut().for_each(|(_, readiness)| *readiness = Readiness::Leaving);
    world.run(20_000);
    assert_eq!((world.held(1), world.held(2)), (32, 32));
}

#[test]
fn a_controller_that_does_not_lead_decides_nothing() {
    let world = settled(3, 2);
    let mut controller = Controller::new(ControllerConfig::default(), member(1, 1));
    let membership = Membership::new(HeartbeatConfig::default(), member(1, 1));
    let mut proposals: Vec<TopologyCommand> = Vec::new();
    let far = Now { mono: Mono::default().after_ms(1_000_000), wall_ms: 0 };
    controller.tick(far, &world.topology, &membership, &mut proposals);
    assert!(proposals.is_empty());
    assert_eq!(controller.next_wakeup(), None);
    controller.lead(far, true);
    assert_eq!(controller.next_wakeup(), Some(far.mono));
    controller.lead(far, false);
    assert!(!controller.leads());
}

#[test]
fn readiness_and_heartbeats_decide_when_a_node_that_joined_holds_items() {
    let mut world = settled(2, 2);
    world.join(3, 1);
    world.alive.insert(3, (member(3, 1), Readiness::Starting));
    world.run(3_000);
    assert_eq!(world.topology.nodes[&NodeId(3)].state, NodeState::Joining);
    assert_eq!(learners_added(&world), []);
    world.alive.insert(3, (member(3, 1), Readiness::Ready));
    world.run_until(20_000, |topology| {
        is_settled(topology) && topology.drain_progress(NodeId(3)).held > 0
    });
}
