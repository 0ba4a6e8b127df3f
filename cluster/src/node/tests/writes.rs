//! Writes, reads and retries while nothing fails, or no more than messages.

use super::world::*;

#[test]
fn an_acknowledged_write_is_in_every_memory_that_counts() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    assert!(matches!(world.done(1, "k", set("v")), Outcome::Stored(_)));
    for at in 1..=3 {
        assert_eq!(world.held(at, "k").map(|item| item.value), Some("v".into()), "node {at}");
    }
    assert_eq!(world.get(1, "k"), Some("v".into()));
}

#[test]
fn a_write_is_invisible_until_every_copy_that_counts_confirmed_it() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let write = world.ask(1, "k", set("new"));
    world.run_ms(20);
    assert_eq!(world.reply(write), None);
    assert_eq!(world.get(1, "k"), Some("old".into()));
    world.release();
    world.run_ms(20);
    assert!(matches!(world.reply(write), Some(Reply::Done(Outcome::Stored(_)))));
    assert_eq!(world.get(1, "k"), Some("new".into()));
}

#[test]
fn a_copy_hears_within_a_second_that_a_write_is_confirmed_and_soon_if_it_is_read_or_holds_much() {
    let long = "v".repeat(8 << 10);
    let confirm = spec();
    let any = CacheSpec { read: ReadMode::Any, ..spec() };
    for (spec, value, soon) in [(&confirm, "v", false), (&any, "v", true), (&confirm, &long, true)]
    {
        let mut world = World::new(2, spec.clone());
        world.assign(&[1, 2]);
        // Until what is told after a takeover was told.
        world.run_ms(100);
        world.done(1, "k", set(value));
        world.run_ms(60);
        let has_heard = |world: &World| world.view(2).stable == world.view(2).last;
        assert_eq!(has_heard(&world), soon, "{:?}, {} bytes", spec.read, value.len());
        world.run_ms(1_100);
        assert!(has_heard(&world), "{:?}, {} bytes", spec.read, value.len());
    }
}

#[test]
fn a_write_that_was_on_its_way_when_its_primary_moved_is_answered_soon_after() {
    use crate::strong::StrongMessage::Ack;
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    world.keep =
        Some(Box::new(|_, _, body| is_strong(body, |message| matches!(message, Ack { .. }))));
    let write = world.ask(1, "k", set("new"));
    world.run_ms(5);
    let (to, version) = (world.member(2), world.state().version);
    world.commit(Command::ChangePrimary { place: PLACE, version, to, remove: Vec::new() });
    world.keep = None;
    world.run_ms(120);
    assert!(matches!(world.reply(write), Some(Reply::Done(Outcome::Stored(_)))));
}

#[test]
fn a_silent_copy_is_waited_for_until_its_removal_is_committed() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.agrees = false;
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(1_500);
    assert_eq!(world.reply(write), None, "acknowledged with one copy missing");
    let asked = world.proposed.iter().any(|command| matches!(command, Command::Shrink { .. }));
    assert!(asked, "nobody asked for the removal");
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    world.run_ms(5);
    assert!(matches!(world.reply(write), Some(Reply::Done(Outcome::Stored(_)))));
}

#[test]
fn a_write_that_is_not_confirmed_in_time_is_indeterminate() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.agrees = false;
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    let read = world.ask(1, "k", GET);
    world.run_ms(2_100);
    assert_eq!(world.reply(write), Some(&Reply::Indeterminate));
    assert_eq!(world.reply(read), Some(&Reply::NotApplied(Refusal::TimedOut)));
}

#[test]
fn with_too_few_copies_in_sync_a_write_is_refused_before_it_takes_a_place() {
    let mut world = World::new(2, CacheSpec { min_in_sync: 2, ..spec() });
    world.assign(&[1]);
    let before = world.view(1).last;
    let write = world.ask(1, "k", set("v"));
    world.run_ms(5);
    let refused = Reply::NotApplied(Refusal::TooFewInSync { have: 1, need: 2 });
    assert_eq!(world.reply(write), Some(&refused));
    assert_eq!(world.view(1).last, before);
}

#[test]
fn a_write_that_lost_a_copy_on_its_way_is_not_acknowledged_as_safe() {
    let mut world = World::new(2, CacheSpec { min_in_sync: 2, ..spec() });
    world.assign(&[1, 2]);
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(1_500);
    assert_eq!(world.state().in_sync, [world.member(1)]);
    assert_eq!(world.reply(write), Some(&Reply::Indeterminate));
}

#[test]
fn an_operation_whose_condition_failed_is_not_carried_out_by_a_late_twin() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    let id = Some(RequestId { client: ClientId(9), counter: 1 });
    let add = store(StoreMode::Add, "w", Ttl::Never);
    let first = world.ask_as(1, id, "k", add.clone());
    world.run_ms(5);
    assert_eq!(world.reply(first), Some(&Reply::Done(Outcome::NotStored)));
    world.done(1, "k", delete());
    let twin = world.ask_as(1, id, "k", add);
    world.run_ms(5);
    assert_eq!(world.reply(twin), Some(&Reply::Done(Outcome::NotStored)));
    assert_eq!(world.get(1, "k"), None);
}

#[test]
fn any_copy_answers_where_the_cache_allows_it() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Any, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.run_ms(50);
    let read = world.ask(2, "k", GET);
    assert!(matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))));
}

#[test]
fn the_same_events_give_the_same_actions() {
    let run = || {
        let mut world = World::new(3, spec());
        world.assign(&[1, 2]);
        let (member, version) = (world.member(3), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
        for number in 0..50 {
            world.ask(1, &format!("k{}", number % 7), increment());
            world.run_ms(1);
        }
        world.fail_over(2, &[1]);
        world.run_ms(300);
        (world.sent, world.reports, world.topology)
    };
    assert_eq!(run(), run());
}
