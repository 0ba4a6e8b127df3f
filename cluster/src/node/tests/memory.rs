//! What ends, what is evicted, and what does not fit.

use super::world::*;

#[test]
fn what_was_seen_ended_stays_ended_on_a_copy_whose_clock_is_behind() {
    for mutant in [None, Some(Mutant::ClockNotMerged)] {
        let config = NodeConfig { mutant, ..NodeConfig::default() };
        let mut world = World::with(2, spec(), config, 1 << 20);
        world.wall_ms.insert(node(1), 1_000_000 + 60_000);
        world.assign(&[1, 2]);
        world.done(1, "k", set_for("v", Ttl::After(500)));
        world.run_ms(600);
        assert_eq!(world.get(1, "k"), None);
        world.kill(1);
        world.fail_over(2, &[1]);
        world.run_ms(20);
        let back = world.get(2, "k").is_some();
        assert_eq!(back, mutant.is_some(), "{mutant:?}");
    }
}

#[test]
fn a_cache_that_evicts_tells_its_copies_and_never_shows_an_older_value() {
    let spec = CacheSpec { eviction: Eviction::Evict, ..spec() };
    let mut world = World::with(2, spec, NodeConfig::default(), 20_000);
    world.assign(&[1, 2]);
    for number in 0..400 {
        world.ask(1, &format!("key{number}"), set(&format!("{number:0>50}")));
        world.run_ms(1);
    }
    world.run_ms(50);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert!(copies[0].len() < 400, "nothing was evicted");
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn a_full_copy_of_a_cache_that_keeps_refuses_the_write_and_drops_nothing() {
    let config = NodeConfig::default();
    let reserve = config.strong.room_reserve_bytes;
    let mut world = World::with(2, spec(), config, reserve + 10_000);
    world.assign(&[1, 2]);
    let (mut stored, mut refused) = (Vec::new(), 0);
    for number in 0..200 {
        let key = format!("key{number}");
        let token = world.ask(1, &key, set(&format!("{number:0>100}")));
        world.run_ms(5);
        match world.reply(token) {
            Some(Reply::Done(Outcome::Stored(_))) => stored.push(key),
            Some(Reply::NotApplied(Refusal::OutOfMemory)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0 && stored.len() > 10, "{} stored, {refused} refused", stored.len());
    for key in &stored {
        assert!(world.held(1, key).is_some() && world.held(2, key).is_some(), "{key}");
    }
    // A delete makes room again.
    for key in stored.iter().take(20) {
        world.done(1, key, delete());
    }
    world.run_ms(100);
    assert!(matches!(world.done(1, "again", set("v")), Outcome::Stored(_)));
}

#[test]
fn a_delete_of_what_was_evicted_here_reaches_the_copy_that_still_holds_it() {
    let spec = CacheSpec { eviction: Eviction::Evict, ..spec() };
    let mut world = World::new(2, spec);
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.run_ms(50);
    let key = ItemKey { cache: CACHE, key: "k".into() };
    let effect =
        crate::effect::Effect { key, change: crate::effect::Change::Remove(Version(u64::MAX)) };
    // As if the store had evicted it, and the note to the copy had been lost.
    world.nodes.get_mut(&node(1)).expect("alive").base.store.apply(PLACE, &effect, true, 0);
    assert_eq!(world.done(1, "k", delete()), Outcome::NotFound);
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "k"), None);
}

#[test]
fn what_ended_is_dropped_on_every_copy_without_further_writes() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(100)));
    world.done(1, "stays", set("v"));
    world.run_ms(3_000);
    for at in [1, 2] {
        assert_eq!(world.nodes[&node(at)].copy_of(PLACE).len(), 1, "node {at}");
    }
}

#[test]
fn what_only_the_primary_s_clock_holds_for_ended_is_not_dropped_under_a_lease() {
    let mut world = World::new(2, CacheSpec { read: ReadMode::Lease, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(20_000)));
    // Just before the primary looks after ends it renews its lease; then its clock leaps, and
    // nobody hears of that.
    let upkeep_in_ms = world.nodes[&node(1)].upkeep_at.since_ms(world.now);
    world.run_ms(upkeep_in_ms.saturating_sub(100));
    assert_eq!(world.get(1, "k"), Some("v".into()));
    world.lost = Some(Box::new(|from, _, _| from == node(1)));
    *world.wall_ms.get_mut(&node(1)).expect("its clock") += 60_000;
    world.run_ms(200);
    let read = world.ask(1, "k", GET);
    let missed = matches!(world.reply(read), Some(Reply::Done(Outcome::NotFound)));
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(1_000);
    let back = world.get(2, "k").is_some();
    assert!(back, "its end is far away by the clock of the copy that is left");
    assert!(!missed, "what was missed came back");
}

#[test]
fn an_item_that_is_prolonged_in_time_is_not_dropped_by_a_copy_whose_clock_is_ahead() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(5_000)));
    world.wall_ms.insert(node(2), 2_000_000);
    world.agrees = false;
    world.keep = Some(Box::new(|from, _, _| from == node(2)));
    world.run_ms(40);
    let touch = world.ask(1, "k", Operation::Touch { ttl: Ttl::Never });
    world.run_ms(1_900);
    world.release();
    world.run_ms(1_500);
    assert!(matches!(world.reply(touch), Some(Reply::Done(Outcome::Touched(_)))));
    assert_eq!(world.held(2, "k").map(|item| item.deadline_ms), Some(None));
}

#[test]
fn a_dropped_cache_leaves_no_items_behind() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.commit(Command::DropCache { name: "default".into() });
    world.run_ms(50);
    for at in [1, 2] {
        assert_eq!(world.nodes[&node(at)].copy_of(PLACE).len(), 0, "node {at}");
    }
    let write = world.ask(1, "k", set("v"));
    assert_eq!(world.reply(write), Some(&Reply::NotApplied(Refusal::NoSuchCache)));
}

#[test]
fn an_item_that_is_being_prolonged_is_not_seen_to_end_and_come_back() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set_for("v", Ttl::After(300)));
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let touch = world.ask(1, "k", Operation::Touch { ttl: Ttl::After(5_000) });
    world.run_ms(400);
    let read = world.ask(1, "k", GET);
    world.run_ms(50);
    assert_eq!(world.reply(read), None);
    world.release();
    world.run_ms(50);
    assert!(matches!(world.reply(touch), Some(Reply::Done(Outcome::Touched(_)))));
    assert!(matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))));
}

#[test]
fn a_learner_without_room_for_the_snapshot_is_never_promoted() {
    let mut config = NodeConfig::default();
    config.strong.room_reserve_bytes = 0;
    let mut world = World::with(1, spec(), config, 20_000);
    world.assign(&[1]);
    for number in 0..100 {
        world.done(1, &format!("k{number}"), set(&format!("{number:0>100}")));
    }
    world.start(node(2), 10_000);
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    for round in 0..50 {
        world.done(1, "live", set(&format!("{round}")));
    }
    world.run_ms(2_000);
    assert_eq!(world.state().in_sync, [world.member(1)]);
    // With room it is.
    for number in 0..60 {
        world.done(1, &format!("k{number}"), delete());
    }
    world.run_ms(2_000);
    assert_eq!(world.state().in_sync.len(), 2);
    for number in 60..100 {
        assert!(world.held(2, &format!("k{number}")).is_some(), "k{number}");
    }
}
