//! Who leaves: LRU and LFU against naive references that anybody can check by reading, and the
//! default policy against what holds for it whatever the workload.

use std::collections::HashSet;

use kiln_engine::policy::simulation::{Entries, Simulation, hash};
use kiln_engine::policy::{
    Adaptive, EvictionPolicy, Lfu, Lru, Nodes, Policy, PolicyKind, Slot, Untracked,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Insert { weight: u32 },
    Hit { pick: usize },
    Remove { pick: usize },
    Move { pick: usize, weight: u32 },
    Evict,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1..9_000_u32).prop_map(|weight| Op::Insert { weight }),
        6 => any::<usize>().prop_map(|pick| Op::Hit { pick }),
        1 => any::<usize>().prop_map(|pick| Op::Remove { pick }),
        1 => (any::<usize>(), 1..9_000_u32).prop_map(|(pick, weight)| Op::Move { pick, weight }),
        2 => Just(Op::Evict),
    ]
}

/// What a policy should do, written for reading, at O(n) a step.
trait Reference {
    fn insert(&mut self, slot: Slot);
    fn hit(&mut self, slot: Slot);
    fn remove(&mut self, slot: Slot);
    fn rename(&mut self, old: Slot, new: Slot);
    fn victim(&mut self) -> Option<Slot>;
}

/// The least recently used first.
#[derive(Default)]
struct NaiveLru(Vec<Slot>);

impl Reference for NaiveLru {
    fn insert(&mut self, slot: Slot) {
        self.0.push(slot);
    }

    fn hit(&mut self, slot: Slot) {
        self.remove(slot);
        self.insert(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.0.retain(|&other| other != slot);
    }

    fn rename(&mut self, old: Slot, new: Slot) {
        self.0.iter_mut().filter(|slot| **slot == old).for_each(|slot| *slot = new);
    }

    fn victim(&mut self) -> Option<Slot> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }
}

/// LFUDA as its paper says: rank = uses + age of the cache at the last use; the lowest leaves,
/// the least recently used of equals first, and its rank is the new age.
#[derive(Default)]
struct NaiveLfu {
    entries: Vec<Counted>,
    age: u64,
    clock: u64,
}

struct Counted {
    slot: Slot,
    uses: u64,
    rank: u64,
    used_at: u64,
}

impl NaiveLfu {
    fn position(&self, slot: Slot) -> usize {
        self.entries.iter().position(|entry| entry.slot == slot).expect("it was inserted")
    }
}

impl Reference for NaiveLfu {
    fn insert(&mut self, slot: Slot) {
        self.clock += 1;
        let (rank, used_at) = (self.age + 1, self.clock);
        self.entries.push(Counted { slot, uses: 1, rank, used_at });
    }

    fn hit(&mut self, slot: Slot) {
        self.clock += 1;
        let at = self.position(slot);
        let entry = &mut self.entries[at];
        entry.uses = (entry.uses + 1).min(255);
        entry.rank = self.age + entry.uses;
        entry.used_at = self.clock;
    }

    fn remove(&mut self, slot: Slot) {
        let at = self.position(slot);
        self.entries.swap_remove(at);
    }

    fn rename(&mut self, old: Slot, new: Slot) {
        let at = self.position(old);
        self.entries[at].slot = new;
    }

    fn victim(&mut self) -> Option<Slot> {
        let lowest = self.entries.iter().min_by_key(|entry| (entry.rank, entry.used_at))?;
        let (slot, rank) = (lowest.slot, lowest.rank);
        self.age = rank;
        self.remove(slot);
        Some(slot)
    }
}

/// Runs a policy beside its reference. Slots are taken again as a store takes memory again.
struct Pair<P, R> {
    policy: P,
    reference: R,
    entries: Entries,
    live: Vec<Slot>,
    free: Vec<Slot>,
    slots: Slot,
}

impl<P: EvictionPolicy, R: Reference> Pair<P, R> {
    fn new(policy: P, reference: R) -> Self {
        let entries = Entries::default();
        Self { policy, reference, entries, live: Vec::new(), free: Vec::new(), slots: 0 }
    }

    fn put(&mut self, key: u32, weight: u32) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots
        });
        self.entries.put(slot, hash(key), weight);
        slot
    }

    fn drop_slot(&mut self, slot: Slot) {
        self.entries.take(slot);
        self.live.retain(|&other| other != slot);
        self.free.push(slot);
    }

    fn pick(&self, pick: usize) -> Option<Slot> {
        (!self.live.is_empty()).then(|| self.live[pick % self.live.len()])
    }

    fn evict(&mut self) -> Option<Slot> {
        let victim = self.policy.evict(&mut self.entries);
        assert_eq!(victim, self.reference.victim());
        if let Some(victim) = victim {
            self.drop_slot(victim);
        }
        victim
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Insert { weight } => {
                let slot = self.put(self.slots, weight);
                let hash = self.entries.hash(slot);
                self.policy.on_insert(&mut self.entries, slot, hash);
                self.reference.insert(slot);
                self.live.push(slot);
            }
            Op::Hit { pick } => {
                let Some(slot) = self.pick(pick) else { return };
                let hash = self.entries.hash(slot);
                self.policy.on_hit(&mut self.entries, slot, hash);
                self.reference.hit(slot);
            }
            Op::Remove { pick } => {
                let Some(slot) = self.pick(pick) else { return };
                self.policy.on_remove(&mut self.entries, slot);
                self.reference.remove(slot);
                self.drop_slot(slot);
            }
            Op::Move { pick, weight } => {
                let Some(old) = self.pick(pick) else { return };
                let new = self.put(self.slots, weight);
                self.entries.copy_words(old, new);
                self.policy.on_move(&mut self.entries, old, new);
                self.reference.rename(old, new);
                self.live.push(new);
                self.drop_slot(old);
            }
            Op::Evict => {
                self.evict();
            }
        }
    }

    fn run(mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.step(op));
        while self.evict().is_some() {}
        assert_eq!(self.live, []);
    }
}

/// Like [`Pair::run`] for a policy whose order is its own: what leaves was there, once, and all
/// leave in the end.
fn runs_soundly<P: EvictionPolicy>(mut policy: P, ops: &[Op]) -> P {
    let (mut entries, mut seen, mut live) = (Entries::default(), HashSet::new(), Vec::new());
    let mut slots = 0;
    for op in ops {
        match *op {
            Op::Insert { weight } => {
                slots += 1;
                // Keys come back, so that ghosts are met.
                let hash = hash(slots % 97);
                entries.put(slots, hash, weight);
                policy.on_insert(&mut entries, slots, hash);
                seen.insert(slots);
                live.push(slots);
            }
            Op::Hit { pick } if !live.is_empty() => {
                let slot = live[pick % live.len()];
                let hash = entries.hash(slot);
                policy.on_hit(&mut entries, slot, hash);
            }
            Op::Remove { pick } if !live.is_empty() => {
                let slot = live.swap_remove(pick % live.len());
                policy.on_remove(&mut entries, slot);
                seen.remove(&slot);
                entries.take(slot);
            }
            Op::Move { pick, weight } if !live.is_empty() => {
                let at = pick % live.len();
                let old = live[at];
                slots += 1;
                let hash = entries.hash(old);
                entries.put(slots, hash, weight);
                entries.copy_words(old, slots);
                policy.on_move(&mut entries, old, slots);
                entries.take(old);
                seen.remove(&old);
                seen.insert(slots);
                live[at] = slots;
            }
            Op::Evict => {
                let victim = policy.evict(&mut entries);
                assert_eq!(victim.is_none(), live.is_empty());
                if let Some(victim) = victim {
                    assert!(seen.remove(&victim), "a victim is live, and leaves once");
                    live.retain(|&slot| slot != victim);
                    entries.take(victim);
                }
            }
            _ => {}
        }
    }
    while let Some(victim) = policy.evict(&mut entries) {
        assert!(seen.remove(&victim));
    }
    assert!(seen.is_empty(), "nothing is forgotten");
    policy
}

proptest! {
    #[test]
    fn lru_drops_exactly_whom_the_reference_drops(ops in prop::collection::vec(op(), 1..600)) {
        Pair::new(Lru::default(), NaiveLru::default()).run(&ops);
    }

    #[test]
    fn lfu_drops_exactly_whom_the_reference_drops(ops in prop::collection::vec(op(), 1..600)) {
        Pair::new(Lfu::default(), NaiveLfu::default()).run(&ops);
    }

    #[test]
    fn adaptive_drops_each_entry_once_and_forgets_none(
        ops in prop::collection::vec(op(), 1..600),
    ) {
        let policy = runs_soundly(Adaptive::default(), &ops);
        prop_assert!((0.01..=0.9).contains(&policy.probation_share()));
    }
}

/// Long enough for counters to reach their bound and for ranks to go around the ring many times.
#[test]
fn lfu_agrees_with_the_reference_when_counters_are_full_and_ranks_wrap() {
    let mut pair = Pair::new(Lfu::default(), NaiveLfu::default());
    let mut next = random();
    for _ in 0..400_000 {
        let op = match next() % 64 {
            0 => Op::Evict,
            1 => Op::Insert { weight: 1 },
            2 if next().is_multiple_of(50) => Op::Remove { pick: next() },
            3 if next().is_multiple_of(50) => Op::Move { pick: next(), weight: 2 },
            // A few favourites take most hits.
            4..40 => Op::Hit { pick: next() % 3 },
            _ => Op::Hit { pick: next() },
        };
        pair.step(&op);
    }
    assert!(pair.reference.age > 3 * 256, "ranks wrapped: {}", pair.reference.age);
    assert!(pair.reference.entries.iter().any(|entry| entry.uses == 255), "counters are full");
}

#[test]
fn a_favourite_nobody_asks_for_any_more_leaves_an_lfu() {
    let mut store = Simulation::new(PolicyKind::Lfu, 10);
    for _ in 0..1_000_000 {
        store.access(0);
    }
    for key in 1..=3_000 {
        store.access(key);
    }
    assert!(!store.access(0));
}

#[test]
fn none_tracks_nothing_and_drops_nothing() {
    let mut store = Simulation::new(PolicyKind::None, 10);
    for key in 0..20 {
        store.access(key);
    }
    assert_eq!(store.weight(), 10);
    assert!((0..10).all(|key| store.access(key)));
    assert!((10..20).all(|key| !store.access(key)));
    assert_eq!(Untracked.evict(&mut Entries::default()), None);
}

#[test]
fn a_scan_does_not_drive_out_what_is_used() {
    let used = |store: &mut Simulation| (0..500).filter(|&key| store.access(key)).count();
    let after_scan = |kind| {
        let mut store = Simulation::new(kind, 1_000);
        for _ in 0..5 {
            used(&mut store);
        }
        for key in 1_000..100_000 {
            store.access(key);
        }
        used(&mut store)
    };
    assert_eq!(after_scan(PolicyKind::Lru), 0);
    // A scan of 99 times the cache; some of its keys are taken for ghosts by their fingerprint.
    let found = after_scan(PolicyKind::Adaptive);
    assert!(found >= 475, "{found} of 500");
}

#[test]
fn a_loop_longer_than_the_cache_still_finds_most_of_what_fits() {
    let mut store = Simulation::new(PolicyKind::Adaptive, 1_000);
    let mut round = || (0..10_000).filter(|&key| store.access(key)).count();
    round();
    for _ in 0..20 {
        assert!(round() > 950);
    }
}

#[test]
fn what_was_popular_makes_room_for_what_is_popular() {
    let mut store = Simulation::new(PolicyKind::Adaptive, 1_000);
    for base in [0, 10_000, 20_000, 30_000] {
        for _ in 0..10 {
            for key in base..base + 900 {
                store.access(key);
            }
        }
        let found = (base..base + 900).filter(|&key| store.access(key)).count();
        assert!(found > 880, "{found} of 900 after ten rounds");
    }
}

#[test]
fn a_cache_refilled_after_a_flush_resists_loops_as_at_first() {
    let mut store = Simulation::new(PolicyKind::Adaptive, 1_000);
    for key in 0..50_000 {
        store.access(key);
    }
    for key in 0..50_000 {
        store.remove(key);
    }
    assert_eq!(store.weight(), 0);
    for round in 0..5 {
        let found = (60_000..70_000).filter(|&key| store.access(key)).count();
        assert!(round == 0 || found > 800, "{found} in round {round}");
    }
}

#[test]
fn room_is_shared_by_weight_not_by_number() {
    // Newcomers are a hundred times as heavy as what is used: counted by number, probation
    // would hold the whole cache.
    let mut store = Simulation::new(PolicyKind::Adaptive, 100_000);
    for _ in 0..5 {
        for key in 0..50_000 {
            store.access_weighted(key, 1);
        }
    }
    for key in 100_000..110_000 {
        store.access_weighted(key, 100);
    }
    assert!(store.weight() <= 100_000);
    let found = (0..50_000).filter(|&key| store.access(key)).count();
    // What they get is their share, 2 % of the weight at first.
    assert!(found > 47_500, "{found} of 50000");
}

#[test]
fn probation_grows_where_keys_come_back_soon_and_shrinks_where_some_are_always_popular() {
    let mut store = Simulation::new(PolicyKind::Adaptive, 1_000);
    let share = |store: &Simulation| match store.policy() {
        Policy::Adaptive(policy) => policy.probation_share(),
        other => panic!("{other:?}"),
    };
    let first = share(&store);

    // Each key comes twice, 100 others between: more than probation holds at first.
    let mut twice = |key: u32| [store.access(key), store.access(key - 100)][1];
    (100..20_000).for_each(|key| _ = twice(key));
    let found = (20_000..21_000).filter(|&key| twice(key)).count();
    assert!(found > 900, "{found} of 1000");
    let recent = share(&store);
    assert!(recent > first + 0.05, "from {first} to {recent}");

    // The lower the number, the more popular: about Zipf's law with exponent 0.9.
    let mut random = random();
    for _ in 0..400_000 {
        let part = random() as f64 / f64::from(1_u32 << 31);
        store.access(50_000 + (part.powi(10) * 20_000.0) as u32);
    }
    let popular = share(&store);
    assert!(popular < recent / 2.0, "from {recent} to {popular}");
}

#[test]
fn weights_all_alike_change_nothing() {
    let mut light = Simulation::new(PolicyKind::Adaptive, 500);
    let mut heavy = Simulation::new(PolicyKind::Adaptive, 500 * 1_000);
    let mut random = random();
    for _ in 0..100_000 {
        let key = (random() % 3_000 * (random() % 3_000) / 3_000) as u32;
        assert_eq!(light.access(key), heavy.access_weighted(key, 1_000));
    }
}

#[test]
fn the_memory_for_ghosts_is_bounded_by_the_residents() {
    for capacity in [1_u64, 10, 1_000, 100_000] {
        let mut store = Simulation::new(PolicyKind::Adaptive, capacity);
        for key in 0..4 * capacity as u32 {
            store.access(key);
        }
        let bytes = store.policy().heap_bytes() as u64;
        assert!(bytes <= 4 * capacity + 192, "{bytes} bytes for {capacity} residents");
        assert!(bytes >= 2 * capacity, "{bytes} bytes for {capacity} residents remember little");
    }
}

#[test]
fn one_eviction_does_bounded_work_when_every_entry_was_used() {
    let (mut policy, mut entries) = (Adaptive::default(), Counting::default());
    for slot in 1..=10_000 {
        entries.inner.put(slot, hash(slot), 1);
        policy.on_insert(&mut entries, slot, hash(slot));
        policy.on_hit(&mut entries, slot, hash(slot));
        policy.on_hit(&mut entries, slot, hash(slot));
    }
    entries.writes = 0;
    assert!(policy.evict(&mut entries).is_some());
    assert!(entries.writes <= 33 * 8, "{} writes", entries.writes);
}

#[test]
fn a_hit_touches_no_neighbour_and_from_the_third_on_nothing() {
    let (mut policy, mut entries) = (Adaptive::default(), Counting::default());
    for slot in 1..=3 {
        entries.inner.put(slot, hash(slot), 1);
        policy.on_insert(&mut entries, slot, hash(slot));
    }
    let mut writes_of_hit = || {
        entries.writes = 0;
        policy.on_hit(&mut entries, 2, hash(2));
        entries.writes
    };
    assert_eq!([writes_of_hit(), writes_of_hit(), writes_of_hit()], [1, 1, 0]);
}

#[test]
fn names_are_read_as_they_are_written() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(Policy::new(kind).kind(), kind);
    }
    assert_eq!(PolicyKind::default(), PolicyKind::DEFAULT);
    let error = "LRU".parse::<PolicyKind>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown eviction policy `LRU`: use `adaptive`, `lru`, `lfu` or `none`"
    );
}

/// Numbers that are the same in every run.
fn random() -> impl FnMut() -> usize {
    let mut state = 7_u64;
    move || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 33) as usize
    }
}

/// Counts writes to entries.
#[derive(Default)]
struct Counting {
    inner: Entries,
    writes: usize,
}

impl Nodes for Counting {
    fn prev(&self, slot: Slot) -> Slot {
        self.inner.prev(slot)
    }

    fn next(&self, slot: Slot) -> Slot {
        self.inner.next(slot)
    }

    fn set_prev(&mut self, slot: Slot, to: Slot) {
        self.writes += 1;
        self.inner.set_prev(slot, to);
    }

    fn set_next(&mut self, slot: Slot, to: Slot) {
        self.writes += 1;
        self.inner.set_next(slot, to);
    }

    fn bits(&self, slot: Slot) -> u8 {
        self.inner.bits(slot)
    }

    fn set_bits(&mut self, slot: Slot, bits: u8) {
        self.writes += 1;
        self.inner.set_bits(slot, bits);
    }

    fn extra(&self, slot: Slot) -> u32 {
        self.inner.extra(slot)
    }

    fn set_extra(&mut self, slot: Slot, extra: u32) {
        self.writes += 1;
        self.inner.set_extra(slot, extra);
    }

    fn weight(&self, slot: Slot) -> u32 {
        self.inner.weight(slot)
    }

    fn hash(&self, slot: Slot) -> u64 {
        self.inner.hash(slot)
    }
}
