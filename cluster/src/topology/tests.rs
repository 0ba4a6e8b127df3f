use proptest::prelude::*;

use super::*;

pub(crate) fn cache(copies: u8) -> CacheSpec {
    CacheSpec {
        id: CacheId(0),
        mode: Mode::Strong,
        copies,
        min_in_sync: 1,
        read: ReadMode::Confirm,
        acks: Acks::All,
        eviction: Eviction::Evict,
        on_loss: OnLoss::Reset,
        value_len_max: 1 << 20,
        default_ttl_ms: None,
        policy: String::new(),
        memory: 0,
    }
}

pub(crate) fn member(node: u64, life: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(life) }
}

pub(crate) fn join(node: u64, life: u64, replaces: Option<u64>) -> TopologyCommand {
    TopologyCommand::Join {
        node: NodeId(node),
        incarnation: Incarnation(life),
        replaces: replaces.map(Incarnation),
        profile: NodeProfile { weight: 1_000, ..NodeProfile::default() },
    }
}

fn place(partition: u32) -> Place {
    Place { group: cache(2).group(), partition: PartitionId(partition) }
}

/// Nodes 1, 2 and 3 in their first life, a cache of two copies, and partition 0 on 1 and 2.
fn three_nodes() -> Topology {
    let mut topology = Topology::new(ClusterId(7), 4);
    for node in 1..=3 {
        topology.apply(&join(node, 1, None)).expect("joins");
    }
    let create = TopologyCommand::CreateCache { name: "c".into(), spec: cache(2) };
    topology.apply(&create).expect("made");
    let (place, members) = (place(0), vec![member(1, 1), member(2, 1)]);
    topology.apply(&TopologyCommand::Assign { place, version: 0, members }).expect("assigned");
    topology
}

fn state(topology: &Topology) -> &PartitionState {
    topology.partition(place(0)).expect("exists")
}

fn refused(topology: &mut Topology, command: &TopologyCommand) -> Rejected {
    let before = topology.clone();
    let refusal = topology.apply(command).expect_err("refused");
    assert_eq!(*topology, before, "a refused command leaves no trace");
    refusal
}

#[test]
fn a_new_partition_is_given_out_once() {
    let mut topology = three_nodes();
    assert_eq!(state(&topology).term, Term(1));
    assert_eq!(state(&topology).primary, Some(member(1, 1)));
    let again =
        TopologyCommand::Assign { place: place(0), version: 1, members: vec![member(3, 1)] };
    assert_eq!(refused(&mut topology, &again), Rejected::Held);
}

#[test]
fn a_decision_on_an_older_version_is_refused() {
    let mut topology = three_nodes();
    let shrink = TopologyCommand::Shrink { place: place(0), version: 0, member: member(2, 1) };
    let refusal = refused(&mut topology, &shrink);
    assert_eq!(refusal, Rejected::Outdated { expected: 0, found: 1 });
}

#[test]
fn a_learner_is_promoted_only_for_the_primary_of_the_present_term() {
    let mut topology = three_nodes();
    let place = place(0);
    let learner = TopologyCommand::AddLearner { place, version: 1, member: member(3, 1) };
    topology.apply(&learner).expect("added");
    let promote = |version, term| TopologyCommand::Promote {
        place,
        version,
        term: Term(term),
        member: member(3, 1),
    };
    let to = member(2, 1);
    let moved = TopologyCommand::ChangePrimary { place, version: 2, to, remove: vec![] };
    topology.apply(&moved).expect("moved");
    let refusal = refused(&mut topology, &promote(3, 1));
    assert_eq!(refusal, Rejected::OutdatedTerm { expected: Term(1), found: Term(2) });
    topology.apply(&promote(3, 2)).expect("promoted");
    assert_eq!(state(&topology).in_sync, [member(1, 1), member(2, 1), member(3, 1)]);
    assert!(state(&topology).learners.is_empty());
}

#[test]
fn nobody_becomes_a_copy_without_having_been_a_learner() {
    let mut topology = three_nodes();
    let promote = TopologyCommand::Promote {
        place: place(0),
        version: 1,
        term: Term(1),
        member: member(3, 1),
    };
    assert_eq!(refused(&mut topology, &promote), Rejected::NotLearner(member(3, 1)));
}

#[test]
fn only_a_copy_in_sync_becomes_the_primary() {
    let mut topology = three_nodes();
    let place = place(0);
    topology
        .apply(&TopologyCommand::AddLearner { place, version: 1, member: member(3, 1) })
        .expect("added");
    for to in [member(3, 1), member(2, 9)] {
        let failover =
            TopologyCommand::ChangePrimary { place, version: 2, to, remove: vec![member(1, 1)] };
        assert_eq!(refused(&mut topology, &failover), Rejected::NotInSync(to));
    }
}

#[test]
fn a_failover_names_the_new_primary_and_removes_the_old_in_one_step() {
    let mut topology = three_nodes();
    let (to, remove) = (member(2, 1), vec![member(1, 1)]);
    topology
        .apply(&TopologyCommand::ChangePrimary { place: place(0), version: 1, to, remove })
        .expect("moved");
    assert_eq!(state(&topology).primary, Some(to));
    assert_eq!(state(&topology).in_sync, [to]);
    assert_eq!((state(&topology).term, state(&topology).version), (Term(2), 2));
}

#[test]
fn the_primary_is_never_shrunk_away() {
    let mut topology = three_nodes();
    let shrink = TopologyCommand::Shrink { place: place(0), version: 1, member: member(1, 1) };
    assert_eq!(refused(&mut topology, &shrink), Rejected::IsPrimary(member(1, 1)));
}

#[test]
fn a_restart_ends_the_former_life_everywhere_at_once() {
    let mut topology = three_nodes();
    let applied = topology.apply(&join(1, 2, Some(1))).expect("joins");
    assert_eq!(applied.changed, [place(0)]);
    assert_eq!(applied.lost, []);
    assert_eq!(state(&topology).primary, Some(member(2, 1)));
    assert_eq!(state(&topology).in_sync, [member(2, 1)]);
    assert_eq!(state(&topology).term, Term(2));
    assert_eq!(topology.nodes[&NodeId(1)].state, NodeState::Joining);
}

#[test]
fn the_new_life_of_a_node_is_not_the_copy_that_the_former_one_was() {
    let mut topology = three_nodes();
    topology.apply(&join(1, 2, Some(1))).expect("joins");
    let to = member(1, 2);
    let version = state(&topology).version;
    let place = place(0);
    let failover = TopologyCommand::ChangePrimary { place, version, to, remove: vec![] };
    assert_eq!(refused(&mut topology, &failover), Rejected::NotInSync(to));
    let former = TopologyCommand::AddLearner { place, version, member: member(1, 1) };
    assert_eq!(refused(&mut topology, &former), Rejected::NotPresent(member(1, 1)));
}

#[test]
fn a_join_that_was_overtaken_does_not_end_the_later_life() {
    let mut topology = three_nodes();
    topology.apply(&join(1, 3, Some(1))).expect("joins");
    // The node had restarted twice; the join of the life between arrives last.
    let late = refused(&mut topology, &join(1, 2, Some(1)));
    assert_eq!(late, Rejected::NotPresent(member(1, 2)));
    assert_eq!(refused(&mut topology, &join(1, 9, None)), Rejected::NotPresent(member(1, 9)));
    assert_eq!(refused(&mut topology, &join(1, 3, Some(1))), Rejected::NoChange);
}

#[test]
fn the_restart_of_the_last_copy_is_a_loss_and_is_told() {
    let mut topology = three_nodes();
    topology.apply(&join(1, 2, Some(1))).expect("joins");
    let applied = topology.apply(&join(2, 2, Some(1))).expect("joins");
    assert_eq!(applied.lost, [place(0)]);
    assert_eq!(state(&topology).generation, Generation(1));
    assert_eq!(state(&topology).primary, None);
    assert!(state(&topology).in_sync.is_empty());
    assert!(state(&topology).has_unacknowledged_loss());

    let version = state(&topology).version;
    let assign = TopologyCommand::Assign { place: place(0), version, members: vec![member(1, 2)] };
    topology.apply(&assign).expect("assigned");
    assert_eq!(state(&topology).term, Term(4));
    let group = place(0).group;
    let seen = TopologyCommand::AcknowledgeLoss { group, partition: None };
    topology.apply(&seen).expect("acknowledged");
    assert!(!state(&topology).has_unacknowledged_loss());
    assert_eq!(refused(&mut topology, &seen), Rejected::NoChange);
}

#[test]
fn a_node_that_is_down_keeps_its_copies_until_someone_decides_otherwise() {
    let mut topology = three_nodes();
    let down = TopologyCommand::SetNodeState { member: member(1, 1), state: NodeState::Down };
    topology.apply(&down).expect("set");
    assert_eq!(state(&topology).primary, Some(member(1, 1)));
    let former = TopologyCommand::SetNodeState { member: member(1, 0), state: NodeState::Ready };
    assert_eq!(refused(&mut topology, &former), Rejected::NotPresent(member(1, 0)));
}

#[test]
fn a_removed_node_is_gone_from_copies_and_targets() {
    let mut topology = three_nodes();
    let targets = vec![(PartitionId(0), vec![NodeId(1), NodeId(2)])];
    let group = place(0).group;
    topology.apply(&TopologyCommand::SetTargets { group, targets }).expect("set");
    topology.apply(&TopologyCommand::RemoveNode { member: member(1, 1) }).expect("removed");
    assert_eq!(state(&topology).target, [NodeId(2)]);
    assert_eq!(state(&topology).in_sync, [member(2, 1)]);
    assert_eq!(topology.member(NodeId(1)), None);
}

#[test]
fn a_witness_holds_nothing() {
    let mut topology = three_nodes();
    let profile = NodeProfile { witness: true, weight: 1_000, ..NodeProfile::default() };
    let (node, incarnation) = (NodeId(9), Incarnation(1));
    topology
        .apply(&TopologyCommand::Join { node, incarnation, replaces: None, profile })
        .expect("joins");
    let group = place(0).group;
    let targets = vec![(PartitionId(0), vec![node])];
    let wish = TopologyCommand::SetTargets { group, targets };
    assert_eq!(refused(&mut topology, &wish), Rejected::HoldsNothing(node));
    let learner = TopologyCommand::AddLearner { place: place(0), version: 1, member: member(9, 1) };
    assert_eq!(refused(&mut topology, &learner), Rejected::HoldsNothing(node));
}

#[test]
fn a_batch_carries_out_what_it_can() {
    let mut topology = three_nodes();
    let epoch = topology.epoch;
    let shrink =
        |version| TopologyCommand::Shrink { place: place(0), version, member: member(2, 1) };
    let batch = TopologyCommand::Batch(vec![shrink(77), shrink(1), shrink(1)]);
    assert_eq!(topology.apply(&batch).expect("one of them").changed, [place(0)]);
    assert_eq!(topology.epoch, epoch.next());
    assert_eq!(refused(&mut topology, &TopologyCommand::Batch(vec![])), Rejected::NoChange);
    let nested = TopologyCommand::Batch(vec![TopologyCommand::Batch(vec![])]);
    assert_eq!(refused(&mut topology, &nested), Rejected::Nested);
}

#[test]
fn caches_are_checked_and_their_numbers_never_used_again() {
    let mut topology = three_nodes();
    let mut create = |name: &str, spec: CacheSpec| {
        topology.apply(&TopologyCommand::CreateCache { name: name.into(), spec })
    };
    assert_eq!(create("c", cache(2)), Err(Rejected::CacheExists));
    assert_eq!(create("a b", cache(2)), Err(CacheFault::Name.into()));
    assert_eq!(create("", cache(2)), Err(CacheFault::Name.into()));
    assert_eq!(create("x", cache(0)), Err(CacheFault::Copies.into()));
    assert_eq!(create("x", cache(9)), Err(CacheFault::Copies.into()));
    let too_many = CacheSpec { min_in_sync: 3, ..cache(2) };
    assert_eq!(create("x", too_many), Err(CacheFault::MinInSync.into()));
    let quorum = CacheSpec { read: ReadMode::Quorum, ..cache(2) };
    assert_eq!(create("x", quorum), Err(CacheFault::Read.into()));
    create("x", cache(3)).expect("made");
    let first = topology.caches["x"].id;
    topology.apply(&TopologyCommand::DropCache { name: "x".into() }).expect("dropped");
    let again = TopologyCommand::CreateCache { name: "x".into(), spec: cache(3) };
    topology.apply(&again).expect("made again");
    let second = topology.caches["x"].id;
    assert!(second > first);
    assert_eq!(topology.cache(second).map(|spec| spec.copies), Some(3));
    assert_eq!(topology.cache(first), None);
    assert_eq!(topology.check(), Ok(()));
    assert_eq!(topology.groups.len(), 2, "a group is made on demand and stays");
}

#[test]
fn settings_of_a_cache_change_but_not_what_it_promises() {
    let mut topology = three_nodes();
    let settings = CacheSettings {
        min_in_sync: 2,
        read: ReadMode::Lease,
        acks: Acks::All,
        eviction: Eviction::Refuse,
        on_loss: OnLoss::Block,
        value_len_max: 9,
        default_ttl_ms: Some(5),
        policy: "lru".into(),
        memory: 1 << 20,
    };
    let change = |settings| TopologyCommand::ChangeCache { name: "c".into(), settings };
    topology.apply(&change(settings.clone())).expect("changed");
    let spec = &topology.caches["c"];
    assert_eq!((spec.min_in_sync, spec.on_loss, spec.copies), (2, OnLoss::Block, 2));
    assert_eq!((spec.policy.as_str(), spec.memory), ("lru", 1 << 20));
    let wrong = change(CacheSettings { min_in_sync: 3, ..settings });
    assert_eq!(refused(&mut topology, &wrong), CacheFault::MinInSync.into());
}

#[test]
fn draining_is_done_when_no_copy_is_left() {
    let mut topology = three_nodes();
    let progress = topology.drain_progress(NodeId(1));
    assert_eq!(progress, DrainProgress { led: 1, held: 1, last_copies: 0 });
    let (to, remove) = (member(2, 1), vec![member(1, 1)]);
    topology
        .apply(&TopologyCommand::ChangePrimary { place: place(0), version: 1, to, remove })
        .expect("moved");
    assert!(topology.drain_progress(NodeId(1)).is_done());
    assert_eq!(topology.drain_progress(NodeId(2)).last_copies, 1);
}

/// A command that may or may not fit: small numbers, so that it often does.
#[derive(Clone, Debug)]
struct Draft {
    kind: u8,
    node: u64,
    life: u64,
    other: u64,
    partition: u32,
    behind: u64,
    flag: bool,
}

fn draft() -> impl Strategy<Value = Draft> {
    (0..16u8, 1..=4u64, 0..3u64, 1..=4u64, 0..3u32, 0..8u64, any::<bool>()).prop_map(
        |(kind, node, life, other, partition, behind, flag)| Draft {
            kind,
            node,
            life,
            other,
            partition,
            // Mostly decided on the present version.
            behind: behind.saturating_sub(6),
            flag,
        },
    )
}

/// Fills in the version and the lives that the table has, give or take.
fn command(topology: &Topology, draft: &Draft) -> TopologyCommand {
    let place = place(draft.partition);
    let known = topology.partition(place).cloned().unwrap_or_default();
    let version = known.version.saturating_sub(draft.behind);
    let present = |node: u64| {
        let life = topology.member(NodeId(node)).map_or(0, |member| member.incarnation.0);
        member(node, life.saturating_sub(draft.life.saturating_sub(1)))
    };
    let (one, two) = (present(draft.node), present(draft.other));
    match draft.kind {
        0 | 1 => {
            let life = topology.nodes.get(&NodeId(draft.node)).map(|info| info.incarnation.0);
            join(draft.node, life.unwrap_or(0) + draft.life, life)
        }
        2 => {
            let states =
                [NodeState::Down, NodeState::Ready, NodeState::Draining, NodeState::Joining];
            let state = states[draft.other as usize % states.len()];
            TopologyCommand::SetNodeState { member: one, state }
        }
        3 if draft.flag => TopologyCommand::RemoveNode { member: one },
        4 => {
            let nodes = vec![one.node, two.node];
            let targets = vec![(PartitionId(draft.partition), nodes)];
            TopologyCommand::SetTargets { group: place.group, targets }
        }
        5 | 6 => TopologyCommand::Assign { place, version, members: vec![one, two] },
        7 | 8 => TopologyCommand::AddLearner { place, version, member: one },
        9 => TopologyCommand::RemoveLearner { place, version, member: one },
        10 | 11 => {
            let term = Term(known.term.0.saturating_sub(u64::from(draft.other == 1)));
            let member = known.learners.first().copied().unwrap_or(one);
            TopologyCommand::Promote { place, version, term, member }
        }
        12 => TopologyCommand::Shrink { place, version, member: one },
        13 | 14 => {
            let remove = if draft.flag { known.primary.into_iter().collect() } else { vec![] };
            TopologyCommand::ChangePrimary { place, version, to: one, remove }
        }
        15 => TopologyCommand::AcknowledgeLoss { group: place.group, partition: None },
        _ => TopologyCommand::SetWeight { node: one.node, weight: draft.life as u32 * 500 },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_commands_keeps_the_rules(drafts in prop::collection::vec(draft(), 1..120)) {
        let mut topology = three_nodes();
        let mut twin = topology.clone();
        for draft in drafts {
            let before = topology.clone();
            let command = command(&topology, &draft);
            let result = topology.apply(&command);
            prop_assert_eq!(&twin.apply(&command), &result);
            prop_assert_eq!(&twin, &topology, "the same command gives the same table");
            prop_assert_eq!(topology.check(), Ok(()), "after {:?}", command);
            let Ok(applied) = result else {
                prop_assert_eq!(&topology, &before, "a refused command leaves no trace");
                continue;
            };
            prop_assert_eq!(topology.epoch, before.epoch.next());
            for (place, after) in topology.places() {
                let before = before.partition(place).expect("groups stay");
                let changed = before != after;
                prop_assert_eq!(changed, applied.changed.contains(&place));
                prop_assert_eq!(after.version, before.version + u64::from(changed));
                let moved = before.primary != after.primary;
                prop_assert_eq!(after.term.0, before.term.0 + u64::from(moved));
                let lost = !before.in_sync.is_empty() && after.in_sync.is_empty();
                prop_assert_eq!(after.generation.0, before.generation.0 + u64::from(lost));
                prop_assert_eq!(lost, applied.lost.contains(&place));
                for copy in after.in_sync.iter().filter(|copy| !before.in_sync.contains(copy)) {
                    let promoted = matches!(command, TopologyCommand::Promote { .. })
                        && before.learners.contains(copy);
                    prop_assert!(promoted || before.in_sync.is_empty(), "{:?} joined", copy);
                }
            }
        }
    }

    #[test]
    fn a_table_survives_the_way_to_disk_and_back(
        drafts in prop::collection::vec(draft(), 1..40),
    ) {
        let mut topology = three_nodes();
        for draft in drafts {
            let command = command(&topology, &draft);
            let _ = topology.apply(&command);
        }
        let bytes = rmp_serde::to_vec_named(&topology).expect("written");
        let read: Topology = rmp_serde::from_slice(&bytes).expect("read");
        prop_assert_eq!(read, topology);
    }
}

#[test]
fn the_first_node_takes_a_new_group_whole_and_at_once() {
    let mut topology = Topology::new(ClusterId(7), 4);
    topology.apply(&join(1, 1, None)).expect("joins");
    let me = member(1, 1);
    let spec = cache(3);
    let group = spec.group();
    let create = TopologyCommand::CreateCache { name: "new".to_owned(), spec };
    let claim = TopologyCommand::claim(group, topology.partitions, me);
    let all: Vec<_> = std::iter::once(create).chain(claim).collect();
    topology.apply(&TopologyCommand::Batch(all)).expect("made");
    let states = &topology.groups[&group];
    assert!(states.iter().all(|state| state.primary == Some(me) && state.target == [me.node]));
    // A group that somebody holds is not claimed.
    let again = TopologyCommand::claim(group, topology.partitions, me).collect();
    refused(&mut topology, &TopologyCommand::Batch(again));
}

#[test]
fn a_stream_is_made_once_is_bounded_and_is_absent_from_tables_of_before() {
    let mut topology = Topology::new(ClusterId(1), 4);
    let create = |name: &str, definition: &str| TopologyCommand::CreateStream {
        name: name.to_owned(),
        definition: definition.to_owned(),
    };
    let before = rmp_serde::to_vec(&topology).expect("encoded");
    topology.apply(&create("plant", "{}")).expect("made");
    assert_eq!(topology.apply(&create("plant", "{}")), Err(Rejected::NoChange));
    assert_eq!(topology.apply(&create("plant", "{ }")), Err(Rejected::StreamExists));
    for (name, definition) in
        [("", ""), ("a b", ""), (&*"x".repeat(57), ""), ("y", &"x".repeat(16 * 1024 + 1))]
    {
        assert_eq!(topology.apply(&create(name, definition)), Err(Rejected::Stream));
    }
    let bytes = rmp_serde::to_vec(&topology).expect("encoded");
    assert_eq!(rmp_serde::from_slice::<Topology>(&bytes).expect("decoded"), topology);
    // A table without the last field, as it was written before.
    let mut old = before;
    assert_eq!((old[0], old.pop()), (0x9a, Some(0x80)));
    old[0] = 0x99;
    assert!(rmp_serde::from_slice::<Topology>(&old).expect("decoded").streams.is_empty());
    let drop = TopologyCommand::DropStream { name: "plant".to_owned() };
    topology.apply(&drop).expect("dropped");
    assert_eq!(topology.apply(&drop), Err(Rejected::UnknownStream));
}
