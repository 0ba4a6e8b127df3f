//! Learners: filled, promoted, filled again.

use super::world::*;

#[test]
fn a_learner_is_filled_promoted_and_then_counted() {
    let mut world = World::new(3, spec());
    world.assign(&[1]);
    for number in 0..2_000 {
        world.ask(1, &format!("key{number}"), set(&format!("value{number}")));
    }
    world.run_ms(5);
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(500);
    assert_eq!(world.state().in_sync, [world.member(1), world.member(2)]);
    assert_eq!(world.view(2).role, PartitionRole::Backup);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert_eq!(copies[0].len(), 2_000);
    assert_eq!(copies[0], copies[1]);
    world.kill(1);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "key1999"), Some("value1999".into()));
}

#[test]
fn a_learner_counts_from_the_moment_its_promotion_is_proposed() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.agrees = false;
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(200);
    let promoted = |command: &Command| matches!(command, Command::Promote { .. });
    let promote = world.proposed.iter().find(|command| promoted(command)).cloned();
    let promote = promote.expect("the promotion is proposed");
    world.cut(&[2]);
    let write = world.ask(1, "k", set("v"));
    world.run_ms(100);
    assert_eq!(world.reply(write), None, "the promotion may be committed at any time");
    // It is, and the old primary dies before it hears of it.
    world.kill(1);
    world.lost = None;
    world.commit(promote);
    world.fail_over(2, &[1]);
    world.run_ms(20);
    assert_eq!(world.get(2, "k"), None);
}

#[test]
fn a_snapshot_chunk_does_not_undo_what_came_since() {
    for (mutant, undone) in [
        (None, [false, false]),
        (Some(Mutant::ChunkOverwrites), [true, false]),
        (Some(Mutant::TombstoneEarly), [false, true]),
    ] {
        let config = NodeConfig { mutant, ..NodeConfig::default() };
        let mut world = World::with(2, spec(), config, 1 << 20);
        world.assign(&[1]);
        world.done(1, "changed", set("old"));
        world.done(1, "deleted", set("old"));
        world.keep = Some(Box::new(|_, _, body| {
            use crate::strong::StrongMessage::Chunk;
            is_strong(body, |message| matches!(message, Chunk { .. }))
        }));
        let (member, version) = (world.member(2), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
        world.run_ms(20);
        world.done(1, "changed", set("new"));
        world.done(1, "deleted", delete());
        world.run_ms(20);
        world.release();
        world.run_ms(100);
        let found = [
            world.held(2, "changed").is_none_or(|item| item.value != "new"),
            world.held(2, "deleted").is_some(),
        ];
        assert_eq!(found, undone, "{mutant:?}");
    }
}

#[test]
fn a_learner_that_was_removed_and_added_again_is_filled_again() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.agrees = false;
    let add = |world: &mut World| {
        let (member, version) = (world.member(2), world.state().version);
        world.commit(Command::AddLearner { place: PLACE, version, member });
    };
    add(&mut world);
    world.run_ms(100);
    // The primary sees both changes at once, the learner only the first for now.
    world.paused.insert(node(1));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::RemoveLearner { place: PLACE, version, member });
    assert_eq!(world.held(2, "k"), None);
    add(&mut world);
    world.paused.clear();
    world.agrees = true;
    world.push_table();
    let kept = std::mem::take(&mut world.kept);
    for message in kept {
        world.give(message.to.node, Event::Message(message));
    }
    world.run_ms(1_000);
    assert_eq!(world.state().in_sync.len(), 2);
    assert!(world.held(2, "k").is_some());
}

#[test]
fn a_learner_that_was_emptied_before_the_first_chunk_is_filled_by_another_transfer() {
    use crate::strong::StrongMessage::Ready;
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    world.done(1, "k", set("v"));
    world.keep =
        Some(Box::new(|_, _, body| is_strong(body, |message| matches!(message, Ready { .. }))));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(100);
    assert!(!world.kept.is_empty(), "the learner is ready");
    // The primary sees both changes at once and goes on with the transfer that it began.
    world.paused.insert(node(1));
    let version = world.state().version;
    world.commit(Command::RemoveLearner { place: PLACE, version, member });
    let version = world.state().version;
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.paused.clear();
    world.push_table();
    world.release();
    world.run_ms(1_000);
    assert_eq!(world.state().in_sync.len(), 2);
    assert!(world.held(2, "k").is_some());
}

#[test]
fn a_copy_that_was_removed_and_comes_back_is_filled_and_promoted() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    // The primary hears of both changes at once.
    world.paused.insert(node(1));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    let version = world.state().version;
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.paused.clear();
    world.push_table();
    world.run_ms(500);
    assert_eq!(world.state().in_sync.len(), 2);
    assert!(world.held(2, "k").is_some());
}

#[test]
fn a_confirmation_given_before_a_copy_was_emptied_does_not_count_for_what_it_holds_now() {
    use crate::strong::StrongMessage::Ack;
    let mut world = World::new(3, spec());
    world.assign(&[1, 2, 3]);
    world.agrees = false;
    // Node 3 is slow, so that nothing is confirmed; what node 2 confirms is late.
    world.keep = Some(Box::new(|from, to, body| {
        let late = from == node(2) && is_strong(body, |message| matches!(message, Ack { .. }));
        late || (to == node(3) && is_append(body))
    }));
    world.ask(1, "k", set("v"));
    world.run_ms(3);
    let late: Vec<Message> = std::mem::take(&mut world.kept)
        .into_iter()
        .filter(|message| message.from.node == node(2))
        .collect();
    assert_eq!(late.len(), 1);
    world.keep = Some(Box::new(|_, to, body| to == node(3) && is_append(body)));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::Shrink { place: PLACE, version, member });
    let version = world.state().version;
    // Entries of the live stream to node 2 are lost after it was emptied.
    world.lost = Some(Box::new(|_, to, body| to == node(2) && is_append(body)));
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(20);
    for message in late {
        world.give(node(1), Event::Message(message));
    }
    world.run_ms(20);
    assert!(world.held(2, "k").is_none());
    world.lost = None;
    world.run_ms(200);
    assert!(world.held(2, "k").is_some(), "taken for sent");
}

#[test]
fn a_learner_that_lags_too_far_behind_is_filled_anew() {
    let mut config = NodeConfig::default();
    config.strong.retain_bytes_max = 10_000;
    config.strong.pending_bytes_max = 10_000;
    let mut world = World::with(2, spec(), config, 1 << 20);
    world.assign(&[1]);
    world.lost = Some(Box::new(|_, to, body| {
        use crate::strong::StrongMessage::Chunk;
        let chunk = is_strong(body, |message| matches!(message, Chunk { .. }));
        to == node(2) && (chunk || is_append(body))
    }));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    for number in 0..300 {
        world.done(1, &format!("k{number}"), set(&format!("{number:0>100}")));
    }
    world.lost = None;
    world.run_ms(500);
    assert_eq!(world.state().in_sync.len(), 2);
    let copies = [1, 2].map(|at| world.nodes[&node(at)].copy_of(PLACE));
    assert_eq!(copies[0].len(), 300);
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn transfers_keep_to_the_bandwidth_and_do_not_hold_up_writes() {
    let mut config = NodeConfig::default();
    config.strong.transfer_bytes_per_s = 200_000;
    let mut world = World::with(2, spec(), config, 4 << 20);
    world.assign(&[1]);
    for number in 0..1_000 {
        world.done(1, &format!("k{number}"), set(&format!("{number:0>1000}")));
    }
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    let begun = world.now;
    while world.state().in_sync.len() < 2 {
        let write = world.ask(1, "live", increment());
        world.run_ms(5);
        assert!(world.reply(write).is_some(), "held up");
        assert!(world.now.since_ms(begun) < 20_000, "never promoted");
    }
    let bytes = 1_000 * (1_000 + 3 + crate::store::ITEM_OVERHEAD_BYTES as u64);
    let least_ms = (bytes - 200_000) * 1_000 / 200_000;
    let took_ms = world.now.since_ms(begun);
    assert!(took_ms >= least_ms && took_ms < least_ms * 3 / 2, "{took_ms} ms, {least_ms} expected");
}

#[test]
fn a_primary_that_has_no_room_for_what_is_confirmed_hands_back() {
    let mut world = World::new(1, spec());
    world.start(node(2), 10_000);
    world.assign(&[1]);
    world.done(1, "one", set(&"x".repeat(6_000)));
    // The chunk takes the room in which the learner was to apply what it confirmed meanwhile.
    world.keep = Some(Box::new(|_, _, body| {
        is_strong(body, |message| matches!(message, crate::strong::StrongMessage::Chunk { .. }))
    }));
    let (member, version) = (world.member(2), world.state().version);
    world.commit(Command::AddLearner { place: PLACE, version, member });
    world.run_ms(20);
    world.ask(1, "two", set(&"y".repeat(6_000)));
    world.run_ms(20);
    world.release();
    world.run_ms(100);
    assert_eq!(world.state().in_sync, [world.member(1), world.member(2)]);
    let view = world.view(2);
    assert!(view.stable < view.last, "there was room for both");
    world.fail_over(2, &[]);
    world.run_ms(100);
    assert_eq!(world.state().primary, Some(world.member(1)));
    assert_eq!(world.get(1, "two"), Some("y".repeat(6_000).into()));
    assert_eq!(world.get(1, "one"), Some("x".repeat(6_000).into()));
}
