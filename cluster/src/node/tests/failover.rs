//! Another primary, or none: what stays, what is refused, what is told.

use super::world::*;

#[test]
fn a_request_at_any_node_reaches_the_primary() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    assert!(matches!(world.done(3, "k", set("v")), Outcome::Stored(_)));
    assert_eq!(world.get(2, "k"), Some("v".into()));
}

#[test]
fn a_deposed_primary_answers_no_reads() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    // The old primary hears neither from the others nor of the new table.
    world.paused.insert(node(1));
    world.fail_over(2, &[1]);
    world.run_ms(10);
    world.done(2, "k", set("new"));
    world.paused.remove(&node(1));
    world.cut(&[1]);
    let read = world.ask(1, "k", GET);
    world.run_ms(1_000);
    assert_eq!(world.reply(read), None);
    world.lost = None;
    world.run_ms(1_500);
    assert!(
        !matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(item))) if item.value == "old")
    );
}

#[test]
fn a_new_primary_serves_what_was_acknowledged_and_what_any_copy_holds() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.done(1, "a", set("1"));
    // The next write reaches one copy only.
    world.keep = Some(Box::new(|_, to, body| to == node(2) && is_append(body)));
    let write = world.ask(1, "b", set("2"));
    world.run_ms(2);
    world.kept.clear();
    world.keep = None;
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.reply(write), None);
    assert_eq!(world.get(2, "a"), Some("1".into()));
    assert_eq!(world.get(2, "b"), Some("2".into()));
    assert!(world.reports.contains(&(node(2), Report::Serving { place: PLACE, term: Term(2) })));
}

#[test]
fn copies_refuse_a_lower_term() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.keep = Some(Box::new(|from, _, body| from == node(1) && is_append(body)));
    let write = world.ask(1, "k", set("late"));
    world.run_ms(2);
    world.paused.insert(node(1));
    world.keep = None;
    world.fail_over(2, &[]);
    let (member, version) = (world.member(1), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    world.run_ms(20);
    world.done(2, "k", set("new"));
    world.paused.clear();
    world.release();
    world.run_ms(2_500);
    assert_eq!(world.get(2, "k"), Some("new".into()));
    assert_eq!(world.get(3, "k"), Some("new".into()));
    assert!(!matches!(world.reply(write), Some(Reply::Done(_))));
}

#[test]
fn a_planned_move_acknowledges_what_was_on_its_way_and_refuses_nothing() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let writes: Vec<Token> =
        (0..20).map(|number| world.ask(1, &format!("k{number}"), set("v"))).collect();
    world.fail_over(2, &[]);
    let later: Vec<Token> =
        (0..20).map(|number| world.ask(2, &format!("l{number}"), set("v"))).collect();
    world.run_ms(50);
    for token in writes.into_iter().chain(later) {
        assert!(matches!(world.reply(token), Some(Reply::Done(_))), "{:?}", world.reply(token));
    }
}

#[test]
fn who_waits_at_a_copy_that_leaves_is_told_at_once() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.keep = Some(Box::new(|_, _, body| is_append(body)));
    let write = world.ask(1, "k", set("v"));
    world.run_ms(2);
    world.keep = None;
    world.fail_over(2, &[]);
    let (member, version) = (world.member(1), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    world.run_ms(50);
    // Asked again under its own name it is answered by the one that serves now.
    assert_eq!(world.reply(write), Some(&Reply::Indeterminate));
}

#[test]
fn a_retry_finds_its_answer_before_and_after_a_failover_and_through_a_snapshot() {
    let mut world = World::new(3, spec());
    world.assign(&[1, 2]);
    let id = Some(RequestId { client: ClientId(9), counter: 1 });
    let first = world.ask_as(1, id, "n", increment());
    let twin = world.ask_as(1, id, "n", increment());
    world.run_ms(5);
    assert!(matches!(world.reply(first), Some(Reply::Done(Outcome::Number(1, _)))));
    assert_eq!(world.reply(first), world.reply(twin));
    let (member, version) = (world.member(3), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(200);
    world.kill(1);
    world.fail_over(3, &[1, 2]);
    world.run_ms(20);
    let retry = world.ask_as(3, id, "n", increment());
    world.run_ms(5);
    assert_eq!(world.reply(first), world.reply(retry));
    assert_eq!(world.get(3, "n"), Some("1".into()));
}

#[test]
fn the_loss_of_every_copy_is_told_once_apart_from_a_miss() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.start(node(1), 1 << 20);
    assert_eq!(world.state().generation, Generation(1));
    assert_eq!(world.state().primary, None);
    world.assign(&[1]);
    let token = Token(u64::MAX);
    let key = ItemKey { cache: CACHE, key: "k".into() };
    let asked = |seen| Request { id: None, key: key.clone(), operation: GET, seen };
    world.give(node(1), Event::Request { token, request: asked(Generation(0)) });
    world.run_ms(5);
    let lost = Reply::Done(Outcome::Lost(Generation(1)));
    assert_eq!(world.replies.remove(&token), Some(lost));
    world.give(node(1), Event::Request { token, request: asked(Generation(1)) });
    world.run_ms(5);
    assert_eq!(world.replies.remove(&token), Some(Reply::Done(Outcome::NotFound)));
}

#[test]
fn a_cache_that_blocks_on_loss_refuses_until_it_is_acknowledged() {
    let mut world = World::new(1, CacheSpec { on_loss: OnLoss::Block, ..spec() });
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.start(node(1), 1 << 20);
    world.assign(&[1]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(5);
    assert_eq!(world.reply(write), Some(&Reply::NotApplied(Refusal::Blocked(Generation(1)))));
    world.commit(Command::AcknowledgeLoss { group: GROUP, partition: None });
    assert!(matches!(world.done(1, "k", set("v")), Outcome::Stored(_)));
}

#[test]
fn versions_rise_over_failovers_and_losses() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let mut versions = Vec::new();
    let mut write = |world: &mut World, at: u64| {
        let Outcome::Stored(version) = world.done(at, "k", set("v")) else { panic!("not stored") };
        versions.push(version);
    };
    write(&mut world, 1);
    write(&mut world, 1);
    world.fail_over(2, &[]);
    world.run_ms(20);
    write(&mut world, 2);
    let (member, version) = (world.member(1), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    write(&mut world, 2);
    world.start(node(2), 1 << 20);
    world.assign(&[2]);
    write(&mut world, 2);
    assert!(versions.is_sorted_by(|one, other| one < other), "{versions:?}");
}

#[test]
fn under_a_lease_the_primary_answers_alone_and_nobody_else_serves_until_it_ends() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Lease, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("old"));
    assert_eq!(world.get(1, "k"), Some("old".into()));
    let read = world.ask(1, "k", GET);
    assert!(
        matches!(world.reply(read), Some(Reply::Done(Outcome::Hit(_)))),
        "not answered at once"
    );
    // Cut off, the old primary goes on answering under its lease, which the new one waits for.
    world.paused.insert(node(1));
    world.fail_over(2, &[1]);
    world.paused.remove(&node(1));
    world.cut(&[1]);
    let asked_at = world.now;
    let write = world.ask(2, "k", set("new"));
    while world.reply(write).is_none() {
        let read = world.ask(1, "k", GET);
        let stale = matches!(world.reply(read), Some(Reply::Done(_)));
        assert!(!stale || world.view(2).term == Term(2) && !world.view(2).serving);
        world.run_ms(10);
        assert!(world.now.since_ms(asked_at) < 2_000, "never served");
    }
    assert!(world.now.since_ms(asked_at) > 400, "did not wait for the lease");
    let read = world.ask(1, "k", GET);
    assert!(!matches!(world.reply(read), Some(Reply::Done(_))), "answered after the lease");
}

#[test]
fn messages_of_another_cluster_or_another_life_are_dropped() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    let (from, to) = (world.member(1), world.member(2));
    let seal = crate::strong::StrongMessage::Seal { term: Term(99) };
    let sound = Message {
        cluster: CLUSTER,
        from,
        to,
        clock_ms: u64::MAX / 2,
        bodies: vec![Body::Strong(PLACE, seal)],
    };
    let other_life = |member: Member| Member { incarnation: Incarnation(1), ..member };
    for bad in [
        Message { cluster: ClusterId(8), ..sound.clone() },
        Message { from: other_life(from), ..sound.clone() },
        Message { to: other_life(to), ..sound.clone() },
    ] {
        world.give(node(2), Event::Message(bad));
        assert_eq!(world.view(2).term, Term(1));
    }
    world.give(node(2), Event::Message(sound));
    assert_eq!(world.view(2).term, Term(99));
}
