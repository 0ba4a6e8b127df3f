//! Rights to read the memory without the core.

use super::world::*;
use crate::node::DirectRight;

fn right(world: &World, at: u64) -> DirectRight {
    let rights: BTreeMap<Place, DirectRight> = world.nodes[&node(at)].direct_reads().collect();
    rights.get(&PLACE).copied().unwrap_or_default()
}

const NONE: DirectRight =
    DirectRight { alone_until: Mono(0), leased_until: Mono(0), generation: Generation(0) };

#[test]
fn who_needs_nobodys_confirmation_may_read_directly_until_another_copy_counts() {
    let mut world = World::new(2, spec());
    world.assign(&[1]);
    assert_eq!(right(&world, 1).alone_until, Mono::MAX);
    assert_eq!(right(&world, 2), NONE);
    world.agrees = false;
    let (version, member) = (world.state().version, world.member(2));
    world.commit(Command::AddLearner { place: PLACE, version, member });
    assert_eq!(right(&world, 1).alone_until, Mono::MAX);
    world.run_ms(500);
    let promotes = |command: &Command| matches!(command, Command::Promote { .. });
    assert!(world.proposed.iter().any(promotes), "never counted");
    assert_eq!(right(&world, 1), NONE);
}

#[test]
fn caches_that_confirm_each_read_give_no_right_while_copies_count() {
    let mut world = World::new(2, spec());
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.get(1, "k");
    assert_eq!(right(&world, 1), NONE);
}

#[test]
fn a_lease_gives_the_right_while_it_is_used_and_no_longer() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Lease, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    assert_eq!(right(&world, 1), NONE, "nobody has read yet");
    world.get(1, "k");
    for _ in 0..20 {
        let until = right(&world, 1).leased_until;
        assert!(until > world.now && until <= world.now.after_ms(600), "{until:?}");
        assert_eq!(right(&world, 1).alone_until, Mono(0));
        world.run_ms(250);
        if let Some(node) = world.nodes.get_mut(&node(1)) {
            node.used(PLACE);
        }
        world.run_ms(5);
    }
    world.run_ms(700);
    assert!(right(&world, 1).leased_until <= world.now, "renewed without being used");
}

#[test]
fn a_right_is_gone_with_the_turn_that_ends_the_service() {
    let mut world = World::new(3, CacheSpec { read: ReadMode::Lease, ..spec() });
    world.assign(&[1, 2]);
    world.done(1, "k", set("v"));
    world.get(1, "k");
    let before: Vec<_> = world.nodes.get_mut(&node(1)).expect("there").direct_changes().collect();
    assert_eq!(before.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [PLACE]);
    assert!(before[0].1.leased_until > world.now);
    world.fail_over(2, &[]);
    let after: Vec<_> = world.nodes.get_mut(&node(1)).expect("there").direct_changes().collect();
    assert_eq!(after, [(PLACE, NONE)]);
    let again = world.nodes.get_mut(&node(1)).expect("there").direct_changes().count();
    assert_eq!(again, 0);
}

#[test]
fn a_cache_that_blocks_on_loss_gives_no_right_until_the_loss_is_acknowledged() {
    let mut world = World::new(2, CacheSpec { on_loss: OnLoss::Block, ..spec() });
    world.assign(&[1]);
    world.start(node(1), 1 << 20);
    world.assign(&[2]);
    assert!(world.view(2).serving);
    assert_eq!(right(&world, 2), NONE);
    world.commit(Command::AcknowledgeLoss { group: GROUP, partition: None });
    let right = right(&world, 2);
    assert_eq!((right.alone_until, right.generation), (Mono::MAX, Generation(1)));
}
