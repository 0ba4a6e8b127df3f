use super::*;
use crate::heartbeat::{Load, Readiness};
use crate::ids::{ClusterId, Incarnation};
use crate::topology::{NodeProfile, NodeState, TopologyCommand};

fn at(ms: u64) -> Now {
    Now { mono: Mono::default().after_ms(ms), wall_ms: 0 }
}

fn member(node: u64, life: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(life) }
}

fn topology(nodes: u64) -> Topology {
    let mut topology = Topology::new(ClusterId(7), 4);
    for node in 1..=nodes {
        let profile = NodeProfile { weight: 1_000, ..NodeProfile::default() };
        let join = TopologyCommand::Join {
            node: NodeId(node),
            incarnation: Incarnation(1),
            replaces: None,
            profile,
        };
        topology.apply(&join).expect("joins");
    }
    topology
}

fn beat(count: u64) -> Heartbeat {
    Heartbeat { count, readiness: Readiness::Ready, ..Heartbeat::default() }
}

fn membership() -> Membership {
    Membership::new(HeartbeatConfig::default(), member(1, 1))
}

#[test]
fn silence_beyond_the_limit_suspects_and_a_beat_clears_it() {
    let mut seen = membership();
    seen.on_heartbeat(at(0), member(2, 1), &beat(1));
    assert!(seen.is_heard(at(999), member(2, 1)));
    assert!(!seen.is_heard(at(1_000), member(2, 1)));
    seen.on_heartbeat(at(1_500), member(2, 1), &beat(2));
    assert!(seen.is_heard(at(1_501), member(2, 1)));
}

#[test]
fn a_late_or_repeated_beat_proves_nothing() {
    let mut seen = membership();
    assert!(seen.on_heartbeat(at(0), member(2, 1), &beat(5)));
    assert!(!seen.on_heartbeat(at(900), member(2, 1), &beat(5)));
    assert!(!seen.on_heartbeat(at(950), member(2, 1), &beat(4)));
    assert!(!seen.is_heard(at(1_000), member(2, 1)));
}

#[test]
fn a_former_life_is_not_heard_through_the_present_one() {
    let mut seen = membership();
    seen.on_heartbeat(at(0), member(2, 1), &beat(900));
    assert!(seen.on_heartbeat(at(10), member(2, 2), &beat(1)), "a new life counts from one");
    assert!(seen.is_heard(at(20), member(2, 2)));
    assert!(!seen.is_heard(at(20), member(2, 1)));
}

#[test]
fn beats_without_a_gap_are_counted_and_a_gap_begins_again() {
    let mut seen = membership();
    for count in 1..=3 {
        seen.on_heartbeat(at(count * 150), member(2, 1), &beat(count));
    }
    assert_eq!(seen.peer(NodeId(2)).expect("known").beats, 3);
    seen.on_heartbeat(at(5_000), member(2, 1), &beat(4));
    assert_eq!(seen.peer(NodeId(2)).expect("known").beats, 1);
}

#[test]
fn a_node_beats_to_all_until_it_knows_who_leads_then_to_the_leader_and_its_neighbours() {
    let mut topology = topology(5);
    let spec = crate::topology::tests::cache(2);
    let name = "c".to_owned();
    topology.apply(&TopologyCommand::CreateCache { name, spec: spec.clone() }).expect("made");
    let targets = vec![(crate::ids::PartitionId(0), vec![NodeId(1), NodeId(3)])];
    let group = spec.group();
    topology.apply(&TopologyCommand::SetTargets { group, targets }).expect("set");
    let to = |beats: Vec<(Member, Heartbeat)>| -> Vec<u64> {
        beats.into_iter().map(|(to, _)| to.node.0).collect()
    };

    let mut seen = membership();
    let facts = LocalFacts::default();
    assert_eq!(to(seen.beats(at(0), &topology, &facts)), [2, 3, 4, 5]);
    assert!(seen.beats(at(149), &topology, &facts).is_empty(), "not due yet");
    seen.on_heartbeat(at(149), member(5, 1), &Heartbeat { leads: true, ..beat(1) });
    assert_eq!(to(seen.beats(at(150), &topology, &facts)), [3, 5]);
    assert_eq!(to(seen.beats(at(2_000), &topology, &facts)), [2, 3, 4, 5], "the leader is silent");
}

#[test]
fn who_leads_beats_to_all_at_once() {
    let topology = topology(4);
    let mut seen = membership();
    seen.beats(at(0), &topology, &LocalFacts::default());
    seen.lead(true);
    let beats = seen.beats(at(1), &topology, &LocalFacts::default());
    assert_eq!(beats.len(), 3);
    assert!(beats.iter().all(|(_, beat)| beat.leads));
}

#[test]
fn nodes_that_left_the_table_are_forgotten() {
    let mut topology = topology(2);
    let mut seen = membership();
    seen.on_heartbeat(at(0), member(2, 1), &beat(1));
    topology.apply(&TopologyCommand::RemoveNode { member: member(2, 1) }).expect("removed");
    seen.on_topology(&topology);
    assert_eq!(seen.peer(NodeId(2)), None);
}

#[test]
fn a_beat_carries_what_the_driver_knows_within_bounds() {
    let topology = topology(2);
    let place = crate::ids::Place {
        group: crate::topology::tests::cache(2).group(),
        partition: crate::ids::PartitionId(0),
    };
    let facts = LocalFacts {
        readiness: Readiness::Leaving,
        load: Load { operations_per_s: 5, in_flight: 6, busy_milli: 7 },
        memory_used: 8,
        memory_limit: 9,
        hottest: vec![(place, 1); HOTTEST_MAX + 5],
    };
    let beats = membership().beats(at(0), &topology, &facts);
    let (to, beat) = &beats[0];
    assert_eq!((*to, beat.epoch, beat.readiness), (member(2, 1), Epoch(2), Readiness::Leaving));
    assert_eq!((beat.load, beat.memory_used, beat.memory_limit), (facts.load, 8, 9));
    assert_eq!(beat.hottest.len(), HOTTEST_MAX);
    assert_eq!(topology.nodes[&NodeId(1)].state, NodeState::Joining);
}

#[test]
fn reliability_is_observed_from_the_beats() {
    let topology = topology(2);
    let mut seen = membership();
    for count in 1..=100 {
        seen.on_heartbeat(at(count * 100), member(2, 1), &beat(count));
    }
    seen.beats(at(12_000), &topology, &LocalFacts::default());
    seen.on_heartbeat(at(20_000), member(2, 1), &beat(101));
    let record = seen.availability(NodeId(2)).expect("known");
    assert_eq!((record.mttf_ms(Mono(0)), record.mttr_ms()), (Some(9_900.0), Some(10_000.0)));
}
