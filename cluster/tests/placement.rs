//! The promises of placement, over many clusters: owners, shares, zones, movement, speed.

use std::collections::{BTreeMap, BTreeSet};

use kiln_cluster::{
    ids::NodeId,
    placement::{Candidate, StableNodeHasher, partition_of, place, shares},
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rendezvous_hash::NodeHasher as _;

const PARTITIONS: u32 = 1_024;

/// Copies that may change places between other nodes in a cluster of very unequal ones: 3 % of
/// the partitions.
const FORCED_MAX: usize = 32;

type Table = Vec<Vec<NodeId>>;

#[derive(Clone, Debug)]
struct Node {
    id: u64,
    weight_milli: u32,
    zone: String,
}

fn candidates(nodes: &[Node]) -> Vec<Candidate<'_>> {
    nodes
        .iter()
        .map(|node| Candidate {
            node: NodeId(node.id),
            weight_milli: node.weight_milli,
            zone: &node.zone,
        })
        .collect()
}

fn equal_nodes(count: u64) -> Vec<Node> {
    (1..=count).map(|id| Node { id, weight_milli: 1_000, zone: String::new() }).collect()
}

fn table(nodes: &[Node], partitions: u32, copies: usize, present: &Table) -> Table {
    place(&candidates(nodes), partitions, copies, present).expect("a table")
}

fn held(table: &Table) -> BTreeMap<NodeId, u32> {
    let mut held = BTreeMap::new();
    for owner in table.iter().flatten() {
        *held.entry(*owner).or_insert(0) += 1;
    }
    held
}

fn led(table: &Table) -> BTreeMap<NodeId, u32> {
    let mut led = BTreeMap::new();
    for owners in table {
        *led.entry(owners[0]).or_insert(0) += 1;
    }
    led
}

/// For each node the copies that it was given and did not hold before.
fn gained(before: &Table, after: &Table) -> BTreeMap<NodeId, u32> {
    let mut gained = BTreeMap::new();
    for (before, after) in before.iter().zip(after) {
        for owner in after.iter().filter(|owner| !before.contains(owner)) {
            *gained.entry(*owner).or_insert(0) += 1;
        }
    }
    gained
}

/// What the documentation promises: 5 % above the share, and one copy for the rounding.
fn cap(share: f64) -> u32 {
    (share * 1.05 + 1.0).floor() as u32
}

fn check(nodes: &[Node], partitions: u32, copies: usize, table: &Table) {
    let zone: BTreeMap<u64, &str> = nodes.iter().map(|n| (n.id, n.zone.as_str())).collect();
    let usable: Vec<&Node> = nodes.iter().filter(|node| node.weight_milli > 0).collect();
    let zones: BTreeSet<&str> = usable.iter().map(|n| n.zone.as_str()).collect();
    let copies = copies.min(usable.len());

    assert_eq!(table.len(), partitions as usize);
    for owners in table {
        assert_eq!(owners.len(), copies);
        let distinct: BTreeSet<_> = owners.iter().collect();
        assert_eq!(distinct.len(), owners.len(), "owners are distinct: {owners:?}");
        if zones.len() >= copies {
            let apart: BTreeSet<_> = owners.iter().map(|owner| zone[&owner.0]).collect();
            assert_eq!(apart.len(), owners.len(), "zones are distinct: {owners:?}");
        }
    }
    let shares = shares(&candidates(nodes), partitions, copies);
    for (node, held) in held(table) {
        assert!(
            held <= cap(shares[&node]),
            "{node:?} holds {held}, its share is {}",
            shares[&node]
        );
    }
}

fn node_weights() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1_000), 250..4_000u32]
}

fn clusters(most: usize) -> impl Strategy<Value = Vec<Node>> {
    let equal = prop_oneof![Just(true), Just(false)];
    (2..=most, 1..=6usize, equal)
        .prop_flat_map(|(count, zones, equal)| {
            let weight = if equal { Just(1_000).boxed() } else { node_weights().boxed() };
            proptest::collection::btree_map(any::<u64>(), (weight, 0..zones), count..=count)
        })
        .prop_map(|nodes| {
            nodes
                .into_iter()
                .map(|(id, (weight_milli, zone))| Node {
                    id,
                    weight_milli,
                    zone: format!("zone-{zone}"),
                })
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        // Always the same cases: a run that fails must be a change's doing. More: PROPTEST_CASES
        // and PROPTEST_RNG_SEED.
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn owners_and_zones_are_distinct_and_no_node_exceeds_its_share_by_more_than_the_cap(
        nodes in clusters(200),
        copies in 1..=3usize,
    ) {
        let first = table(&nodes, PARTITIONS, copies, &Vec::new());
        check(&nodes, PARTITIONS, copies, &first);
    }

    #[test]
    fn a_table_that_is_within_its_bounds_does_not_move(
        nodes in clusters(60),
        copies in 1..=3usize,
    ) {
        let first = table(&nodes, PARTITIONS, copies, &Vec::new());
        prop_assert_eq!(&table(&nodes, PARTITIONS, copies, &first), &first);
    }

    #[test]
    fn neither_the_order_nor_the_repetition_of_nodes_matters(
        nodes in clusters(40),
        copies in 1..=3usize,
    ) {
        let mut shuffled = nodes.clone();
        shuffled.reverse();
        shuffled.extend(nodes.iter().take(3).cloned());
        prop_assert_eq!(
            table(&nodes, PARTITIONS, copies, &Vec::new()),
            table(&shuffled, PARTITIONS, copies, &Vec::new())
        );
    }

    #[test]
    fn a_lost_node_moves_only_what_it_held(
        mut nodes in clusters(200),
        copies in 1..=3usize,
        lost in any::<prop::sample::Index>(),
    ) {
        // Without zones: with them, the loss of a whole zone may change what the rule asks for.
        nodes.iter_mut().for_each(|node| node.zone.clear());
        let before = table(&nodes, PARTITIONS, copies, &Vec::new());
        let lost = nodes.remove(lost.index(nodes.len()));
        let after = table(&nodes, PARTITIONS, copies, &before);

        check(&nodes, PARTITIONS, copies, &after);
        let moved = before
            .iter()
            .zip(&after)
            .flat_map(|(before, after)| before.iter().filter(|owner| !after.contains(owner)))
            .filter(|owner| owner.0 != lost.id)
            .count();
        // As below: exact for equal nodes, few copies for very unequal ones.
        let is_equal = nodes.iter().all(|node| node.weight_milli == 1_000);
        prop_assert!(moved <= if is_equal { 0 } else { FORCED_MAX }, "{} moved that it did not hold", moved);
    }

    #[test]
    fn an_added_node_takes_only_its_share(
        mut nodes in clusters(200),
        copies in 1..=3usize,
        weight_milli in node_weights(),
    ) {
        nodes.iter_mut().for_each(|node| node.zone.clear());
        let before = table(&nodes, PARTITIONS, copies.min(nodes.len()), &Vec::new());
        let id = (0..).find(|id| nodes.iter().all(|node| node.id != *id)).expect("a free id");
        let copies = copies.min(nodes.len());
        nodes.push(Node { id, weight_milli, zone: String::new() });
        let after = table(&nodes, PARTITIONS, copies, &before);

        check(&nodes, PARTITIONS, copies, &after);
        let gained = gained(&before, &after);
        let share = shares(&candidates(&nodes), PARTITIONS, copies)[&NodeId(id)];
        let others: u32 = gained.iter().filter(|(n, _)| n.0 != id).map(|(_, n)| n).sum();
        let others = others as usize;
        // Where a few nodes of very different weight hold nearly everything, the caps can demand
        // that some copies change places elsewhere.
        let is_equal = nodes.iter().all(|node| node.weight_milli == 1_000);
        prop_assert!(others <= if is_equal { 0 } else { FORCED_MAX }, "{} moved elsewhere", others);
        let taken = gained.get(&NodeId(id)).copied().unwrap_or(0);
        prop_assert!(taken <= cap(share), "took {} of a share of {}", taken, share);
        prop_assert!(f64::from(taken) >= (share * 0.9).floor(), "took {} of {}", taken, share);
    }

    #[test]
    fn a_cluster_that_changes_again_and_again_stays_within_its_bounds(
        mut nodes in clusters(24),
        copies in 1..=3usize,
        changes in prop::collection::vec((any::<u64>(), node_weights(), 0..5usize, any::<bool>()), 1..12),
    ) {
        let mut present = table(&nodes, 256, copies, &Vec::new());
        for (id, weight_milli, zone, leave) in changes {
            if leave && nodes.len() > 1 {
                nodes.remove(id as usize % nodes.len());
            } else if nodes.iter().all(|node| node.id != id) {
                nodes.push(Node { id, weight_milli, zone: format!("zone-{zone}") });
            }
            present = table(&nodes, 256, copies, &present);
            check(&nodes, 256, copies, &present);
        }
    }
}

#[test]
fn primaries_are_spread_within_five_percent_for_equal_nodes() {
    for count in [2, 3, 5, 10, 50, 200] {
        for copies in [1, 2, 3] {
            let table = table(&equal_nodes(count), PARTITIONS, copies, &Vec::new());
            let share = f64::from(PARTITIONS) / count as f64;
            for (node, led) in led(&table) {
                assert!(led <= cap(share), "{count} nodes: {node:?} leads {led} of {share:.1}");
            }
        }
    }
}

#[test]
fn primaries_follow_the_weights_where_every_node_holds_everything() {
    let mut nodes = equal_nodes(2);
    nodes[1].weight_milli = 3_000;
    let table = table(&nodes, PARTITIONS, 2, &Vec::new());
    let led = led(&table);
    assert!((243..=269).contains(&led[&NodeId(1)]), "{led:?}");
    assert!((730..=807).contains(&led[&NodeId(2)]), "{led:?}");
}

#[test]
fn the_copies_of_a_lost_node_are_rebuilt_by_all_others_together() {
    let nodes = equal_nodes(10);
    let before = table(&nodes, PARTITIONS, 2, &Vec::new());
    let after = table(&nodes[1..], PARTITIONS, 2, &before);
    let gained = gained(&before, &after);
    assert_eq!(gained.len(), 9);
    assert!(*gained.values().max().expect("nine") <= 45, "{gained:?}");
}

#[test]
fn a_node_of_weight_zero_holds_nothing() {
    let mut nodes = equal_nodes(4);
    nodes[2].weight_milli = 0;
    let table = table(&nodes, PARTITIONS, 3, &Vec::new());
    assert_eq!(held(&table).get(&NodeId(3)), None);
    check(&nodes, PARTITIONS, 3, &table);
}

#[test]
fn with_fewer_nodes_than_copies_every_node_holds_everything() {
    let table = table(&equal_nodes(2), 64, 3, &Vec::new());
    assert!(table.iter().all(|owners| owners.len() == 2));
    assert!(place(&[], 64, 2, &[]).expect("a table").iter().all(Vec::is_empty));
}

#[test]
fn a_third_zone_draws_copies_apart_that_had_to_share_a_zone() {
    let zoned = |zones: [&str; 6]| -> Vec<Node> {
        (1..).zip(zones).map(|(id, z)| Node { id, weight_milli: 1_000, zone: z.into() }).collect()
    };
    let two = zoned(["a", "a", "a", "b", "b", "b"]);
    let before = table(&two, 256, 3, &Vec::new());
    check(&two, 256, 3, &before);
    let both =
        |owners: &Vec<NodeId>| owners.iter().any(|o| o.0 <= 3) && owners.iter().any(|o| o.0 > 3);
    assert!(before.iter().all(both), "both zones hold a copy of everything");

    let three = zoned(["a", "a", "c", "b", "b", "c"]);
    let after = table(&three, 256, 3, &before);
    check(&three, 256, 3, &after);
}

#[test]
fn the_hash_of_a_node_and_a_partition_never_changes() {
    // These values are stored in clusters that run: a change of any is a new HASH_ID.
    let golden = [
        (1, 0, 0x01cc_af7f_4685_3157),
        (1, 1, 0x0e56_2df5_3b6c_1d78),
        (2, 1, 0x4069_c495_4239_b2a3),
        (u64::MAX, 1_023, 0x605b_cda8_c46c_f164),
    ];
    for (node, partition, expected) in golden {
        let hash = StableNodeHasher.hash(&node, &(partition as u64));
        assert_eq!(hash, expected, "node {node}, partition {partition}: {hash:#x}");
    }
}

#[test]
fn the_partition_of_a_key_never_changes() {
    let keys: [&[u8]; 4] = [b"", b"a", b"greeting", b"user:1000"];
    let partitions = keys.map(|key| partition_of(key, PARTITIONS).0);
    assert_eq!(partitions, [194, 543, 833, 159]);
}

#[test]
fn the_table_of_a_small_cluster_never_changes_unseen() {
    let table = table(&equal_nodes(3), 8, 2, &Vec::new());
    let ids: Vec<Vec<u64>> = table.iter().map(|o| o.iter().map(|n| n.0).collect()).collect();
    assert_eq!(ids, [[2, 3], [2, 1], [3, 2], [2, 3], [3, 1], [1, 3], [1, 2], [1, 3]]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "this one measures")]
fn the_table_of_a_hundred_nodes_is_computed_in_time() {
    let nodes = equal_nodes(100);
    let start = std::time::Instant::now();
    let first = table(&nodes, PARTITIONS, 3, &Vec::new());
    let fresh = start.elapsed();
    let start = std::time::Instant::now();
    table(&nodes[1..], PARTITIONS, 3, &first);
    let after_loss = start.elapsed();
    println!("100 nodes, 1,024 partitions, 3 copies: {fresh:?}, after a loss {after_loss:?}");
    // The promise is 20 ms in a release build; tests are built to be debugged, on busy machines.
    let bound_ms = if cfg!(debug_assertions) { 2_000 } else { 100 };
    assert!(fresh.as_millis() < bound_ms && after_loss.as_millis() < bound_ms);
}
