//! Eventual mode on two to five nodes: whatever the network and the clocks do, copies become equal
//! after it, the last write wins, and nothing that was deleted or is over comes back.

mod chaos;
mod world;

use kiln_cluster::effect::{Outcome, Ttl};
use kiln_cluster::eventual::EventualConfig;
use kiln_cluster::ids::Generation;
use kiln_cluster::node::{Refusal, Reply};
use kiln_cluster::topology::{Acks, ReadMode, TopologyCommand};

use world::{DELETE, EVICT, GET, KEEP, Setting, World, append, increment, key, set};

/// Long enough for repair after a heal with default settings.
pub const HEAL_MS: u64 = 6_000;

fn stored(reply: &Reply) -> bool {
    matches!(reply, Reply::Done(Outcome::Stored(_)))
}

fn short_lives() -> EventualConfig {
    let mut config = EventualConfig::default();
    config.tombstones.life_ms = 2_000;
    config.tombstones.life_max_ms = 4_000;
    config.hints.life_ms = 1_500;
    config.interval_ms = 1_000;
    config
}

// ---- writes and repair ---------------------------------------------------------------------

#[test]
fn a_write_to_any_owner_reaches_all() {
    let mut world = World::new(1, Setting::default());
    for node in 0..3 {
        let key = key(KEEP, &format!("k{node}"));
        assert!(stored(&world.answer(node, &key, set("v", Ttl::Never))));
    }
    world.run(20);
    assert_eq!(world.difference(), None);
    assert_eq!(world.value(2, &key(KEEP, "k0")).as_deref(), Some("v"));
}

#[test]
fn each_side_of_a_cut_takes_writes_and_after_it_the_last_one_wins_everywhere() {
    let mut world = World::new(2, Setting::default());
    world.isolate(2);
    let shared = key(KEEP, "shared");
    assert!(stored(&world.answer(0, &shared, set("early", Ttl::Never))));
    world.run(50);
    assert!(stored(&world.answer(2, &shared, set("late", Ttl::Never))));
    assert!(stored(&world.answer(1, &key(KEEP, "left"), set("l", Ttl::Never))));
    assert!(stored(&world.answer(2, &key(KEEP, "right"), set("r", Ttl::Never))));
    world.run(20_000);
    assert!(world.difference().is_some());

    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
    assert_eq!(world.value(0, &shared).as_deref(), Some("late"));
    assert_eq!(world.value(0, &key(KEEP, "right")).as_deref(), Some("r"));
    assert_eq!(world.value(2, &key(KEEP, "left")).as_deref(), Some("l"));
}

#[test]
fn a_repair_sends_what_differs_and_little_more() {
    let mut world = World::new(3, Setting { nodes: 2, ..Setting::default() });
    for number in 0..500 {
        let key = key(KEEP, &format!("key-{number}"));
        world.answer(0, &key, set(&"x".repeat(1_000), Ttl::Never));
    }
    world.run(1_000);
    assert_eq!(world.difference(), None);
    let before: u64 = world.machines.iter().map(|m| m.eventual.stats().repair_bytes).sum();
    world.isolate(1);
    for number in 0..5 {
        let key = key(KEEP, &format!("key-{number}"));
        world.answer(0, &key, set(&"y".repeat(1_000), Ttl::Never));
    }
    world.run(5_000);
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
    let fetched: u64 = world.machines.iter().map(|m| m.eventual.stats().repair_bytes).sum();
    assert!((5_000..6_000).contains(&(fetched - before)), "{} bytes", fetched - before);
}

#[test]
fn partitions_that_wait_for_a_dead_peer_keep_no_other_repair_waiting() {
    let config = EventualConfig { sessions_max: 1, ..EventualConfig::default() };
    let mut world = World::new(23, Setting { config, partitions: 64, ..Setting::default() });
    world.run(1_000);
    world.isolate(2);
    world.cuts.extend([(0, 1), (1, 0)]);
    for number in 0..200 {
        world.answer(1, &key(KEEP, &format!("key-{number}")), set("v", Ttl::Never));
    }
    world.run(10_000);
    world.cuts.remove(&(0, 1));
    world.cuts.remove(&(1, 0));
    world.run(HEAL_MS);
    let missing = (0..200).filter(|n| world.value(0, &key(KEEP, &format!("key-{n}"))).is_none());
    assert_eq!(missing.count(), 0);
}

#[test]
fn copies_at_rest_say_little() {
    let mut world = World::new(4, Setting { nodes: 2, ..Setting::default() });
    world.answer(0, &key(KEEP, "k"), set("v", Ttl::Never));
    world.run(60_000);
    let before = world.messages;
    world.run(100_000);
    // Two partitions, two directions, three messages each, every ten seconds and a little.
    let sent = world.messages - before;
    assert!((90..=132).contains(&sent), "{sent} messages");
}

#[test]
fn acknowledgements_wait_for_as_many_copies_as_the_cache_says() {
    for (acks, cut, answered) in [
        (Acks::One, 2, true),
        (Acks::Quorum, 1, true),
        (Acks::Quorum, 2, false),
        (Acks::All, 0, true),
        (Acks::All, 1, false),
    ] {
        let mut world = World::new(5, Setting { acks, ..Setting::default() });
        for node in 3 - cut..3 {
            world.isolate(node);
        }
        let token = world.ask(0, None, &key(KEEP, "k"), set("v", Ttl::Never));
        world.run(1_000);
        assert_eq!(world.replies.contains_key(&token), answered, "{acks:?}, {cut} cut off");
        world.run(1_500);
        let expected = !answered;
        assert_eq!(world.replies[&token] == Reply::Indeterminate, expected, "{acks:?}");
        // Indeterminate means: it may be there, and here it is, on all once they can be reached.
        world.heal();
        world.run(HEAL_MS);
        assert_eq!(world.difference(), None);
        assert_eq!(world.value(2, &key(KEEP, "k")).as_deref(), Some("v"));
    }
}

#[test]
fn a_quorum_read_sees_what_a_quorum_acknowledged_and_mends_the_copy_that_was_behind() {
    let setting = Setting { acks: Acks::Quorum, read: ReadMode::Quorum, ..Setting::default() };
    let mut world = World::new(6, setting);
    let k = key(KEEP, "k");
    world.ask(0, None, &k, set("old", Ttl::Never));
    world.run(100);
    world.isolate(2);
    world.ask(0, None, &k, set("new", Ttl::Never));
    world.run(100);
    // The reader has the old value; of the other two it reaches one that has the new one.
    world.heal();
    let before = world.value(2, &k);
    assert_eq!(before.as_deref(), Some("old"));
    let token = world.ask(2, None, &k, GET);
    world.run(10);
    let Some(Reply::Done(Outcome::Hit(item))) = world.replies.get(&token) else {
        panic!("{:?}", world.replies.get(&token));
    };
    assert_eq!(&item.value[..], b"new");
    assert_eq!(world.value(2, &k).as_deref(), Some("new"));
}

#[test]
fn a_quorum_read_without_a_quorum_times_out() {
    let mut world = World::new(7, Setting { read: ReadMode::Quorum, ..Setting::default() });
    world.isolate(0);
    let token = world.ask(0, None, &key(KEEP, "k"), GET);
    world.run(3_000);
    assert_eq!(world.replies[&token], Reply::NotApplied(Refusal::TimedOut));
}

#[test]
fn a_retried_increment_is_not_applied_twice_by_the_owner_that_took_it() {
    let mut world = World::new(8, Setting { acks: Acks::All, ..Setting::default() });
    let counter = key(KEEP, "n");
    world.isolate(2);
    let first = world.ask(0, Some(1), &counter, increment());
    world.run(2_500);
    assert_eq!(world.replies[&first], Reply::Indeterminate);
    world.heal();
    // The retry asks for the copies that were missing, and tells what the first attempt came to.
    let second = world.ask(0, Some(1), &counter, increment());
    world.run(1_000);
    assert!(matches!(world.replies[&second], Reply::Done(Outcome::Number(1, _))));
    assert_eq!(world.value(2, &counter).as_deref(), Some("1"));
    let third = world.ask(0, Some(2), &counter, increment());
    world.run(1_000);
    assert!(matches!(world.replies[&third], Reply::Done(Outcome::Number(2, _))));
}

#[test]
fn two_values_of_one_version_end_as_one_on_all_copies() {
    // Both clocks show the same, so both owners stamp the same version.
    let mut world = World::new(9, Setting { nodes: 2, ..Setting::default() });
    world.isolate(0);
    let k = key(KEEP, "k");
    world.answer(0, &k, set("left", Ttl::Never));
    world.answer(1, &k, set("right", Ttl::Never));
    assert_eq!(world.held(0, &k).map(|k| k.version), world.held(1, &k).map(|k| k.version));
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
}

// ---- deletes, ends and evictions -------------------------------------------------------------

#[test]
fn a_delete_wins_over_the_older_value_of_a_copy_that_was_away() {
    let mut world = World::new(10, Setting::default());
    let k = key(KEEP, "k");
    world.answer(0, &k, set("v", Ttl::Never));
    world.run(100);
    world.isolate(2);
    assert_eq!(world.answer(0, &k, DELETE), Reply::Done(Outcome::Deleted));
    world.run(30_000);
    assert_eq!(world.value(2, &k).as_deref(), Some("v"));
    world.heal();
    world.run(HEAL_MS);
    assert_eq!((0..3).map(|node| world.value(node, &k)).collect::<Vec<_>>(), [None, None, None]);
}

/// The trap of eventual stores: the tombstone is gone when the copy comes back.
#[test]
fn a_copy_away_longer_than_tombstones_live_brings_nothing_deleted_back_and_keeps_its_new_writes() {
    let mut world = World::new(11, Setting { config: short_lives(), ..Setting::default() });
    let (deleted, over) = (key(KEEP, "deleted"), key(KEEP, "over"));
    world.answer(0, &deleted, set("v", Ttl::Never));
    world.answer(0, &over, set("older", Ttl::Never));
    world.run(100);
    world.isolate(2);
    world.answer(0, &deleted, DELETE);
    world.answer(0, &over, set("newer", Ttl::After(500)));
    world.run(20_000);
    // No trace is left but the floors.
    assert_eq!(world.held(0, &deleted), None);
    assert_eq!(world.held(0, &over), None);
    assert_eq!(world.value(2, &deleted).as_deref(), Some("v"));
    let fresh = key(KEEP, "fresh");
    world.answer(2, &fresh, set("v", Ttl::Never));
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
    for node in 0..3 {
        assert_eq!(world.value(node, &deleted), None, "on {node}");
        assert_eq!(world.value(node, &over), None, "on {node}");
        assert_eq!(world.value(node, &fresh).as_deref(), Some("v"), "on {node}");
    }
}

#[test]
fn tombstones_stay_while_an_owner_has_not_fetched_them_and_go_afterwards() {
    let mut config = short_lives();
    config.tombstones.life_max_ms = 3_600_000;
    let mut world = World::new(12, Setting { config, ..Setting::default() });
    let k = key(KEEP, "k");
    world.answer(0, &k, set("v", Ttl::Never));
    world.run(100);
    world.isolate(2);
    world.answer(0, &k, DELETE);
    world.run(30_000);
    assert!(world.held(0, &k).is_some_and(|known| !known.live));
    world.heal();
    world.run(10_000);
    assert_eq!((0..3).map(|node| world.held(node, &k)).collect::<Vec<_>>(), [None, None, None]);
    assert_eq!(world.difference(), None);
}

#[test]
fn tombstones_are_bounded_in_bytes_and_deletes_beyond_are_refused_where_nothing_may_be_forgotten() {
    let mut config = EventualConfig::default();
    config.tombstones.bytes_max = 2 * 10 * 140;
    let mut world = World::new(13, Setting { config, nodes: 1, ..Setting::default() });
    let mut refused = 0;
    for number in 0..200 {
        for cache in [KEEP, EVICT] {
            let key = key(cache, &format!("key-{number}"));
            assert!(stored(&world.answer(0, &key, set("v", Ttl::Never))));
            match world.answer(0, &key, DELETE) {
                Reply::Done(Outcome::Deleted) => {}
                Reply::NotApplied(Refusal::OutOfMemory) => {
                    assert_eq!(cache, KEEP);
                    assert!(world.value(0, &key).is_some());
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((175..=185).contains(&refused), "{refused} refused");
    let dead = world
        .places()
        .into_iter()
        .flat_map(|place| world.machines[0].eventual.keys(place))
        .filter(|(_, known)| !known.live)
        .count();
    assert!(dead <= 2 * 2 * 10, "{dead} tombstones");
    assert!(world.machines[0].eventual.stats().tombstones_forced > 100);
}

#[test]
fn an_item_ends_on_all_copies_also_where_the_wall_clock_is_behind() {
    let mut world = World::new(14, Setting::default());
    world.machines[2].clock_ahead_ms = -600;
    let k = key(KEEP, "k");
    world.answer(0, &k, set("v", Ttl::After(1_000)));
    world.run(100);
    assert!(matches!(world.answer(2, &k, GET), Reply::Done(Outcome::Hit(_))));
    world.run(1_000);
    assert_eq!(world.answer(0, &k, GET), Reply::Done(Outcome::NotFound));
    // It heard from the others, and its clock came along.
    world.answer(0, &key(KEEP, "other"), set("v", Ttl::Never));
    world.run(100);
    assert_eq!(world.answer(2, &k, GET), Reply::Done(Outcome::NotFound));
    assert_eq!(world.value(2, &k), None);
}

#[test]
fn an_eviction_is_told_to_the_others_and_brings_no_older_value_back() {
    let setting = Setting { store_bytes: 2_000, ..Setting::default() };
    let mut world = World::new(15, setting);
    let first = key(EVICT, "first");
    world.answer(0, &first, set("old", Ttl::Never));
    world.run(50);
    world.isolate(2);
    world.answer(0, &first, set("new", Ttl::Never));
    world.run(50);
    for number in 0..60 {
        world.answer(0, &key(EVICT, &format!("key-{number}")), set(&"x".repeat(50), Ttl::Never));
        world.run(5);
    }
    assert_eq!(world.value(0, &first), None, "evicted");
    assert_eq!(world.value(2, &first).as_deref(), Some("old"));
    world.run(5_000);
    world.heal();
    world.run(3 * HEAL_MS);
    for node in 0..3 {
        assert_ne!(world.value(node, &first).as_deref(), Some("old"), "on {node}");
    }
    assert_eq!(world.difference(), None);
    world.check_copies();
}

// ---- clocks --------------------------------------------------------------------------------

#[test]
fn a_node_whose_clock_is_far_ahead_takes_part_and_pulls_no_other_clock_along() {
    let mut world = World::new(16, Setting::default());
    world.machines[0].clock_ahead_ms = 3_600_000;
    let k = key(KEEP, "k");
    world.answer(0, &k, set("ahead", Ttl::Never));
    world.run(1_000);
    assert_eq!(world.difference(), None);
    assert_eq!(world.value(1, &k).as_deref(), Some("ahead"));
    // A later write by a node with the right time replaces it all the same.
    world.answer(1, &k, set("later", Ttl::Never));
    world.run(1_000);
    assert_eq!(world.value(0, &k).as_deref(), Some("later"));
    // And its other writes are stamped by the right time.
    let other = key(KEEP, "other");
    world.answer(1, &other, set("v", Ttl::Never));
    let version = world.held(1, &other).expect("stored").version;
    let ahead_ms = kiln_cluster::version::time_ms(version).saturating_sub(world.now(1).wall_ms);
    assert!(ahead_ms <= world.setting.config.clock.drift_max_ms + 1, "{ahead_ms} ms ahead");
    assert!(world.machines[1].eventual.clock().clamped() > 0);
}

#[test]
fn a_stamp_that_can_only_be_an_error_is_not_stored_by_others() {
    let mut world = World::new(17, Setting::default());
    world.machines[0].clock_ahead_ms = 10 * 24 * 3_600_000;
    world.answer(0, &key(KEEP, "k"), set("v", Ttl::Never));
    world.run(5_000);
    assert_eq!(world.value(1, &key(KEEP, "k")), None);
    assert!(world.machines[1].eventual.clock().refused() > 0);
}

// ---- hints ---------------------------------------------------------------------------------

/// A world with a fourth node that owns nothing.
fn with_stand_in(setting: Setting) -> World {
    let mut world = World::new(18, setting);
    let node = world.add_machine();
    world.push_topology();
    assert_eq!(node, 3);
    world
}

#[test]
fn a_node_that_reaches_no_owner_keeps_writes_and_hands_them_over() {
    let mut world = with_stand_in(Setting::default());
    world.isolate(3);
    let (a, b) = (key(KEEP, "a"), key(KEEP, "b"));
    world.answer(0, &b, set("to be deleted", Ttl::Never));
    world.run(100);
    assert!(stored(&world.answer(3, &a, set("v", Ttl::Never))));
    assert!(matches!(world.answer(3, &a, GET), Reply::Done(Outcome::Hit(_))));
    assert!(matches!(world.answer(3, &b, DELETE), Reply::Done(_)));
    assert_eq!(world.answer(3, &b, GET), Reply::Done(Outcome::NotFound));
    // What nothing is known of can neither be read nor changed by a condition.
    let unknown = key(KEEP, "unknown");
    assert_eq!(world.answer(3, &unknown, GET), Reply::NotApplied(Refusal::NotReady));
    assert_eq!(world.answer(3, &unknown, append("x")), Reply::NotApplied(Refusal::NotReady));
    assert_eq!(world.value(0, &a), None);

    world.run(5_000);
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
    assert_eq!(world.value(1, &a).as_deref(), Some("v"));
    assert_eq!(world.value(1, &b), None);
    assert!(world.machines[3].eventual.hints().is_empty());
    assert_eq!(world.machines[3].eventual.hints().expired(), 0);
}

#[test]
fn a_hint_older_than_what_the_owners_have_changes_nothing() {
    let mut world = with_stand_in(Setting::default());
    world.isolate(3);
    let k = key(KEEP, "k");
    world.answer(3, &k, set("hint", Ttl::Never));
    world.run(100);
    world.answer(0, &k, set("newer", Ttl::Never));
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.value(1, &k).as_deref(), Some("newer"));
    assert!(world.machines[3].eventual.hints().is_empty());
}

// ---- who holds what ------------------------------------------------------------------------

#[test]
fn a_new_owner_is_filled_before_it_serves_and_the_old_one_stays_until_then() {
    let setting = Setting { nodes: 2, loss: 5, delay_max_ms: 20, ..Setting::default() };
    let mut world = World::new(19, setting);
    for number in 0..3_000 {
        let key = key(KEEP, &format!("key-{number}"));
        world.answer(number % 2, &key, set(&format!("value-{number}"), Ttl::Never));
    }
    world.answer(0, &key(KEEP, "key-7"), DELETE);
    world.run(2_000);
    let new = world.add_machine();
    let member = world.machines[new].member;
    world.change(|state| state.learners.push(member));
    world.push_topology();
    let place = world.place(&key(KEEP, "key-1"));
    assert!(!world.machines[new].eventual.serves(place));
    world.answer(1, &key(KEEP, "while-filling"), set("v", Ttl::Never));
    world.run(20_000);
    assert_eq!(world.owners(), [0, 1, 2], "the learner asked to be promoted");
    assert_eq!(world.difference(), None);
    assert_eq!(world.value(2, &key(KEEP, "key-1")).as_deref(), Some("value-1"));
    assert_eq!(world.value(2, &key(KEEP, "key-7")), None);
    assert_eq!(world.value(2, &key(KEEP, "while-filling")).as_deref(), Some("v"));

    // The first leaves: it drops everything once an owner has what it has.
    let leaver = world.machines[0].member;
    world.change(|state| state.in_sync.retain(|member| *member != leaver));
    world.push_topology();
    world.run(5_000);
    assert_eq!(world.machines[0].eventual.role(place), None);
    assert_eq!(world.machines[0].store.items(place).count(), 0);
    assert_eq!(world.difference(), None);
}

#[test]
fn an_owner_removed_while_cut_off_hands_over_what_it_took_meanwhile() {
    let mut world = World::new(20, Setting::default());
    let (taken, deleted) = (key(KEEP, "taken"), key(KEEP, "deleted"));
    world.answer(0, &deleted, set("v", Ttl::Never));
    world.run(100);
    world.isolate(2);
    world.answer(0, &deleted, DELETE);
    let away = world.machines[2].member;
    world.change(|state| state.in_sync.retain(|member| *member != away));
    world.push_topology_to(0);
    world.push_topology_to(1);
    world.run(1_000);
    assert!(stored(&world.answer(2, &taken, set("v", Ttl::Never))));
    world.run(5_000);
    world.heal();
    world.push_topology_to(2);
    world.run(HEAL_MS);
    assert_eq!(world.value(0, &taken).as_deref(), Some("v"));
    assert_eq!(world.value(1, &taken).as_deref(), Some("v"));
    assert_eq!(world.value(0, &deleted), None);
    assert_eq!(world.machines[2].store.items(world.place(&taken)).count(), 0);
}

#[test]
fn a_learner_given_up_hands_over_what_it_took_as_an_owner() {
    let mut world = World::new(23, Setting::default());
    let k = key(KEEP, "k");
    // Owner 0 does not hear of the write, and owner 1, which took it, dies.
    world.isolate(0);
    assert!(stored(&world.answer(1, &k, set("v", Ttl::Never))));
    world.run(100);
    world.restart(1);
    let (left, away) = (world.machines[0].member, world.machines[2].member);
    world.change(|state| {
        state.in_sync = vec![left];
        state.learners = vec![away];
    });
    world.push_topology();
    world.run(100);
    world.change(|state| state.learners.clear());
    world.push_topology();
    world.run(1_000);
    world.heal();
    world.run(HEAL_MS);
    assert_eq!(world.value(0, &k).as_deref(), Some("v"));
    assert_eq!(world.value(2, &k), None, "and drops it then");
}

#[test]
fn an_empty_copy_from_before_a_loss_serves_when_it_is_made_the_owner() {
    let mut world = World::new(24, Setting::default());
    let (first, other) = (world.machines[0].member, world.machines[2].member);
    let empty = world.restart(2);
    assert_ne!(empty, other);
    world.isolate(2);
    world.change(|state| {
        state.in_sync = vec![first];
        state.learners = vec![empty];
    });
    world.push_topology_to(2);
    world.run(100);
    world.change(|state| {
        state.generation = Generation(1);
        state.in_sync = vec![empty];
        state.learners.clear();
    });
    world.push_topology_to(2);
    world.run(100);
    let k = key(KEEP, "k");
    assert!(world.machines[2].eventual.serves(world.place(&k)));
    assert!(stored(&world.answer(2, &k, set("v", Ttl::Never))));
}

#[test]
fn after_all_copies_were_lost_a_copy_of_before_brings_nothing_back() {
    let mut world = World::new(21, Setting::default());
    let k = key(KEEP, "k");
    world.answer(0, &k, set("v", Ttl::Never));
    world.run(100);
    world.isolate(2);
    world.answer(0, &k, DELETE);
    world.run(100);
    // 2 is taken out of the table while cut off; then the others restart, and with them the delete
    // is forgotten. Node 0 begins anew.
    let restarted = world.restart(0);
    world.restart(1);
    world.change(|state| {
        state.generation = Generation(1);
        state.in_sync = vec![restarted];
    });
    world.push_topology_to(0);
    world.push_topology_to(1);
    world.run(1_000);
    assert_eq!(world.answer(0, &k, GET), Reply::Done(Outcome::Lost(Generation(1))));
    world.heal();
    world.run(2_000);
    // Not even while it has not heard of the new table.
    assert_eq!(world.value(0, &k), None);
    world.push_topology_to(2);
    world.run(HEAL_MS);
    assert_eq!(world.value(0, &k), None);
    assert_eq!(world.value(2, &k), None);
}

#[test]
fn a_dropped_cache_leaves_nothing_behind() {
    let mut world = World::new(22, Setting::default());
    for number in 0..1_000 {
        world.answer(0, &key(EVICT, &format!("key-{number}")), set("v", Ttl::Never));
        world.answer(0, &key(KEEP, &format!("key-{number}")), set("v", Ttl::Never));
    }
    world.run(1_000);
    let drop = TopologyCommand::DropCache { name: "evict".into() };
    world.topology.apply(&drop).expect("dropped");
    world.change(|_| ());
    world.push_topology_to(0);
    world.run(500);
    world.push_topology();
    world.run(HEAL_MS);
    assert_eq!(world.difference(), None);
    let items: usize =
        world.places().iter().map(|place| world.machines[1].store.items(*place).count()).sum();
    assert_eq!(items, 1_000);
    world.check_copies();
}
