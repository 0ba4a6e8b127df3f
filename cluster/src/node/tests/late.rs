//! Eventual mode: what comes too late to be wanted.

use super::world::*;

#[test]
fn a_request_that_its_asker_gave_up_does_not_win_over_what_was_written_since() {
    let group = GroupKey { mode: Mode::Eventual, copies: 1 };
    let place = Place { group, partition: PartitionId(0) };
    let eventual = CacheSpec { mode: Mode::Eventual, copies: 1, read: ReadMode::Any, ..spec() };
    let mut world = World::new(2, CacheSpec { eviction: Eviction::Evict, ..eventual });
    let version = world.topology.partition(place).expect("the partition").version;
    let members = vec![world.member(1)];
    world.commit(Command::Assign { place, version, members });
    world.run_ms(1_000);
    // In time, a request of another node is carried out.
    assert!(matches!(world.done(2, "k", set("old")), Outcome::Stored(_)));
    assert_eq!(world.get(1, "k"), Some("old".into()));

    world.keep = Some(Box::new(|_, _, body| matches!(body, Body::Ask { .. })));
    let given_up = world.ask(2, "k", Operation::Delete { compare: None });
    world.run_ms(10_000);
    assert_eq!(world.reply(given_up), Some(&Reply::Indeterminate));
    assert!(matches!(world.done(1, "k", set("new")), Outcome::Stored(_)));
    world.release();
    world.run_ms(1_000);
    assert_eq!(world.get(1, "k"), Some("new".into()));
}
