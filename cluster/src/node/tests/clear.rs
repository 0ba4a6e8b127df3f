//! Removing all items of a cache in one partition, and marks: what every copy and every reader sees.

use super::world::*;
use crate::effect::Marks;

const CLEAR: Operation = Operation::Clear;

fn look() -> Operation {
    Operation::Look {
        touch: None,
        vivify: None,
        recache_below_ms: None,
        no_bump: false,
        may_refill: true,
    }
}

const INVALIDATE: Operation =
    Operation::Mark { compare: None, invalidate: true, ttl: None, keep_empty: false };

#[test]
fn a_clear_removes_what_was_written_before_it_on_every_copy_and_nothing_after_it() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    for key in ["a", "b", "c"] {
        world.done(1, key, set("old"));
    }
    // In one turn: what is asked behind the clear is evaluated on what it leaves.
    let [clear, add, replace] = [
        world.ask(1, "any", CLEAR),
        world.ask(1, "a", store(StoreMode::Add, "new", Ttl::Never)),
        world.ask(1, "b", store(StoreMode::Replace, "new", Ttl::Never)),
    ];
    world.run_ms(100);
    assert_eq!(world.reply(clear), Some(&Reply::Done(Outcome::Deleted)));
    assert!(matches!(world.reply(add), Some(Reply::Done(Outcome::Stored(_)))));
    assert_eq!(world.reply(replace), Some(&Reply::Done(Outcome::NotStored)));
    for at in 1..=3 {
        assert_eq!(world.held(at, "a").map(|item| item.value), Some("new".into()));
        assert_eq!((world.held(at, "b"), world.held(at, "c")), (None, None));
    }
    assert_eq!(world.get(1, "c"), None);
}

#[test]
fn a_clear_is_invisible_until_it_is_confirmed_and_then_survives_a_failover() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    world.done(1, "a", set("old"));
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let clear = world.ask(1, "any", CLEAR);
    world.run_ms(5);
    assert_eq!(world.get(1, "a"), Some("old".into()));
    world.release();
    world.run_ms(100);
    assert_eq!(world.reply(clear), Some(&Reply::Done(Outcome::Deleted)));
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(1_000);
    assert_eq!(world.get(2, "a"), None);
}

#[test]
fn a_learner_takes_nothing_in_that_was_cleared_while_it_was_filled() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    for number in 0..100 {
        world.done(1, &format!("k{number}"), set("old"));
    }
    // Chunks read before the clear arrive after it.
    let is_chunk = |body: &Body| {
        is_strong(body, |message| matches!(message, crate::strong::StrongMessage::Chunk { .. }))
    };
    world.keep = Some(Box::new(move |_, _, body| is_chunk(body)));
    let (version, member) = (world.state().version, world.member(3));
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(20);
    assert!(!world.kept.is_empty(), "no chunk was on its way");
    let clear = world.ask(1, "any", CLEAR);
    world.run_ms(20);
    assert_eq!(world.reply(clear), Some(&Reply::Done(Outcome::Deleted)));
    world.done(1, "k7", set("new"));
    world.release();
    world.run_ms(1_000);
    assert!(world.state().in_sync.contains(&world.member(3)), "never promoted");
    let copy: Vec<_> = world.nodes[&node(3)].copy_of(PLACE);
    assert_eq!(copy, world.nodes[&node(1)].copy_of(PLACE));
    assert_eq!(copy.len(), 1);
}

#[test]
fn one_reader_wins_the_right_to_refill_and_a_retry_is_told_so_again() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    assert_eq!(world.done(1, "k", INVALIDATE), Outcome::Deleted);
    let stale = world.done(1, "k", GET);
    assert!(matches!(stale, Outcome::Hit(item) if item.marks == Marks::STALE));
    let id = RequestId { client: ClientId(5), counter: 1 };
    let ask = |world: &mut World, id, at| {
        let token = world.ask_as(at, id, "k", look());
        world.run_ms(20);
        world.reply(token).cloned()
    };
    let won = ask(&mut world, Some(id), 1);
    assert!(matches!(&won, Some(Reply::Done(Outcome::Won(item))) if item.value == "old"));
    let other = ask(&mut world, None, 2);
    let both = Marks::STALE.with(Marks::TAKEN);
    assert!(matches!(other, Some(Reply::Done(Outcome::Hit(item))) if item.marks == both));
    assert_eq!(ask(&mut world, Some(id), 1), won);
    // The right was given on every copy: the next primary gives it to nobody else.
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(1_000);
    assert_eq!(ask(&mut world, Some(id), 2), won);
    let after = ask(&mut world, None, 2);
    assert!(matches!(after, Some(Reply::Done(Outcome::Hit(item))) if item.marks == both));
    world.done(2, "k", set("new"));
    assert!(matches!(world.done(2, "k", GET), Outcome::Hit(item) if item.marks == Marks::NONE));
}

#[test]
fn a_look_that_changes_nothing_leaves_no_entry() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    let last = world.view(1).last;
    assert!(matches!(world.done(1, "k", look()), Outcome::Hit(_)));
    assert_eq!(world.done(1, "absent", look()), Outcome::NotFound);
    assert_eq!(world.view(1).last, last);
    let vivify = Operation::Look {
        touch: None,
        vivify: Some(Ttl::Never),
        recache_below_ms: None,
        no_bump: false,
        may_refill: true,
    };
    assert!(matches!(world.done(1, "absent", vivify), Outcome::Won(item) if item.value.is_empty()));
    assert_eq!(world.view(1).last, last.next());
}
