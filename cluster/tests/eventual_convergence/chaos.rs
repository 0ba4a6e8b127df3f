//! Everything at once: random writes, cuts, losses, clocks and restarts, and what must be true when all
//! is quiet again.

use kiln_cluster::effect::Ttl;
use kiln_cluster::node::Reply;
use kiln_cluster::topology::{Acks, ReadMode};

use crate::HEAL_MS;
use crate::world::{DELETE, EVICT, GET, KEEP, Random, Setting, World, append, key, set};

/// What a random run may do beside writing.
#[derive(Clone, Copy)]
struct Chaos {
    cache: kiln_cluster::ids::CacheId,
    /// Whether what a copy wrote alone may be lost: tombstones live shorter than cuts last.
    lossy: bool,
}

fn random_run(seed: u64, setting: Setting, chaos: Chaos) -> World {
    let mut random = Random(seed ^ 0x5eed);
    let nodes = setting.nodes as u64;
    let mut world = World::new(seed, setting);
    for node in 0..world.machines.len() {
        world.machines[node].clock_ahead_ms = random.below(800) as i64 - 400;
    }
    for step in 0..120 {
        let node = random.below(nodes) as usize;
        let key = key(chaos.cache, &format!("key-{}", random.below(8)));
        let ttl = if random.one_in(4) { Ttl::After(1 + random.below(3_000)) } else { Ttl::Never };
        let operation = match random.below(10) {
            0..=3 => set(&format!("value-{step}"), ttl),
            4..=6 => DELETE,
            7 => append("+"),
            8 => kiln_cluster::effect::Operation::Touch { ttl },
            _ => GET,
        };
        let id = random.one_in(3).then_some(step);
        world.ask(node, id, &key, operation);
        if random.one_in(8) {
            match random.below(4) {
                0 => world.isolate(node),
                // One way only.
                1 => {
                    world.cuts.insert((node, (node + 1) % nodes as usize));
                }
                _ => world.heal(),
            }
        }
        if random.one_in(20) {
            let ahead_ms = random.below(6_000) as i64 - 3_000;
            world.machines[node].clock_ahead_ms = ahead_ms;
        }
        world.run([1, 10, 100, 1_000, 3_000][random.below(5) as usize]);
        world.check_copies();
    }
    world.heal();
    world.setting.loss = 0;
    for node in 0..world.machines.len() {
        world.machines[node].clock_ahead_ms = 0;
    }
    world.run(3 * HEAL_MS);
    world
}

/// What must be true when all is quiet again.
fn verdict(world: &World, chaos: Chaos) -> Result<(), String> {
    if let Some(difference) = world.difference() {
        return Err(difference);
    }
    assert!(world.history.len() >= 4, "a run that writes nothing shows nothing");
    let clock_ms = world.now(0).wall_ms;
    for (key, writes) in &world.history {
        let Some((version, last)) = writes.last_key_value() else { continue };
        let found = world.item(0, key);
        let over = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= clock_ms);
        let found_last = match &found {
            Some(item) => {
                item.version == *version
                    && last.contains(&Some((item.value.clone(), item.deadline_ms)))
            }
            None => last.iter().any(|left| match left {
                None => true,
                Some((_, deadline)) => chaos.lossy || over(*deadline),
            }),
        };
        if !found_last {
            return Err(format!("{key:?} is {found:?}, written last was {version}: {last:?}"));
        }
    }
    Ok(())
}

/// `KILN_EVENTUAL_FROM=7 KILN_EVENTUAL_SEEDS=1` runs seed 7 alone.
#[allow(clippy::disallowed_methods, reason = "a test may be told from outside what to run")]
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let from: u64 = number("KILN_EVENTUAL_FROM").unwrap_or(0);
    from..from + number("KILN_EVENTUAL_SEEDS").unwrap_or(40)
}

/// Nodes restart with empty memories and are filled again, one at a time, while clients write. What
/// all owners acknowledged must outlive that.
fn churn_run(seed: u64, mut setting: Setting) -> World {
    setting.acks = Acks::All;
    let mut random = Random(seed ^ 0xc4a2);
    let nodes = setting.nodes as u64;
    let mut world = World::new(seed, setting);
    let mut asked = Vec::new();
    for step in 0..150 {
        let owners = world.owners();
        let node = owners[random.below(owners.len() as u64) as usize];
        let key = key(KEEP, &format!("key-{}", random.below(30)));
        let operation = match random.below(3) {
            0 => DELETE,
            _ => set(&format!("value-{step}"), Ttl::Never),
        };
        let token = world.ask(node, None, &key, operation);
        asked.push((token, key.clone(), world.held(node, &key).map(|known| known.version)));
        if random.one_in(8) {
            match random.below(3) {
                0 => world.isolate(node),
                _ => world.heal(),
            }
        }
        if random.one_in(12) && owners.len() == nodes as usize && owners.len() > 1 {
            let old = world.machines[node].member;
            let new = world.restart(node);
            world.change(|state| {
                state.in_sync.retain(|member| *member != old);
                state.learners.push(new);
            });
            world.push_topology();
        }
        world.run([1, 10, 100, 1_000, 3_000][random.below(5) as usize]);
        world.check_copies();
    }
    world.heal();
    world.setting.loss = 0;
    world.push_topology();
    world.run(3 * HEAL_MS);
    assert_eq!(world.owners().len(), nodes as usize, "seed {seed}: all are owners again");
    assert_eq!(world.difference(), None, "seed {seed}");
    let mut acknowledged = 0;
    for (token, key, version) in asked {
        if !matches!(world.replies.get(&token), Some(Reply::Done(_))) {
            continue;
        }
        acknowledged += 1;
        for node in world.owners() {
            let held = world.held(node, &key).map(|known| known.version);
            assert!(held >= version, "seed {seed}: {key:?} on {node} is {held:?}, not {version:?}");
        }
    }
    assert!(acknowledged > 20, "seed {seed}: {acknowledged} acknowledged");
    world
}

fn random_setting(seed: u64) -> Setting {
    let acks = [Acks::One, Acks::Quorum, Acks::All][seed as usize % 3];
    let read = if seed.is_multiple_of(2) { ReadMode::Any } else { ReadMode::Quorum };
    let nodes = 2 + seed as usize % 4;
    Setting { nodes, acks, read, loss: 10, delay_max_ms: 40, ..Setting::default() }
}

#[test]
fn whatever_happens_all_copies_end_with_the_last_write_of_each_key() {
    let chaos = Chaos { cache: KEEP, lossy: false };
    for seed in seeds() {
        let world = random_run(seed, random_setting(seed), chaos);
        verdict(&world, chaos).unwrap_or_else(|wrong| panic!("KILN_EVENTUAL_FROM={seed}: {wrong}"));
    }
}

#[test]
fn with_tombstones_shorter_than_cuts_nothing_older_than_the_last_write_comes_back() {
    let chaos = Chaos { cache: KEEP, lossy: true };
    for seed in seeds() {
        let mut setting = random_setting(seed);
        setting.config.tombstones.life_ms = 200;
        setting.config.tombstones.life_max_ms = 500;
        setting.config.interval_ms = 1_000;
        setting.config.upkeep_ms = 50;
        let world = random_run(seed, setting, chaos);
        verdict(&world, chaos).unwrap_or_else(|wrong| panic!("KILN_EVENTUAL_FROM={seed}: {wrong}"));
    }
}

#[test]
fn with_stores_that_evict_nothing_older_than_the_last_write_comes_back() {
    let chaos = Chaos { cache: EVICT, lossy: true };
    for seed in seeds() {
        let mut setting = random_setting(seed);
        // Room for about four of the eight keys.
        setting.store_bytes = 4 * 80;
        let world = random_run(seed, setting, chaos);
        verdict(&world, chaos).unwrap_or_else(|wrong| panic!("KILN_EVENTUAL_FROM={seed}: {wrong}"));
    }
}

#[test]
fn what_all_owners_acknowledged_outlives_restarts_one_at_a_time() {
    for seed in seeds() {
        churn_run(seed, random_setting(seed));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let chaos = Chaos { cache: KEEP, lossy: false };
    let run = |seed| random_run(seed, random_setting(seed), chaos).trace;
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[cfg(feature = "mutants")]
#[test]
fn a_tombstone_dropped_at_once_is_noticed() {
    let chaos = Chaos { cache: KEEP, lossy: false };
    let caught = seeds().find(|seed| {
        let mut setting = random_setting(*seed);
        setting.mutant = Some(kiln_cluster::config::Mutant::TombstoneEarly);
        verdict(&random_run(*seed, setting, chaos), chaos).is_err()
    });
    assert!(caught.is_some(), "not noticed");
}
