//! What is compared: Kiln's policies, two libraries, and the best that anybody could do.
//!
//! Hashers are fixed, so that a figure is the same in every run.

use kiln_engine::policy::PolicyKind;
use kiln_engine::policy::simulation::{self, Simulation};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::traces::Trace;

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// A policy of Kiln.
    Kiln(PolicyKind),
    /// The library `quick_cache`: CLOCK-Pro.
    QuickCache,
    /// The library `moka`: W-TinyLFU.
    Moka,
    /// Belady's: drops whichever is asked for latest from now on. It stores every key it is
    /// asked for, as the others do; `none`, which does not, may find more in a loop.
    Optimum,
}

impl Contender {
    /// All columns, in order.
    pub const ALL: [Self; 7] = [
        Self::Kiln(PolicyKind::Adaptive),
        Self::Kiln(PolicyKind::Lru),
        Self::Kiln(PolicyKind::Lfu),
        Self::Kiln(PolicyKind::None),
        Self::QuickCache,
        Self::Moka,
        Self::Optimum,
    ];

    /// The head of the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kiln(kind) => kind.name(),
            Self::QuickCache => "quick_cache",
            Self::Moka => "moka",
            Self::Optimum => "optimum",
        }
    }

    /// Hits by accesses, with room for `fraction` of the keys, in `shards` parts where the
    /// contender has such.
    pub fn hit_ratio(self, trace: &Trace, fraction: f64, shards: usize) -> f64 {
        let capacity = trace.capacity(fraction);
        let accesses = trace.accesses.iter().copied();
        let hits = match self {
            Self::Kiln(kind) => {
                let mut cache = Sharded::new(kind, capacity, shards);
                accesses.filter(|&key| cache.access(key)).count()
            }
            Self::QuickCache => quick_cache(accesses, capacity, shards),
            Self::Moka => moka(accesses, capacity),
            Self::Optimum => optimum(trace, capacity),
        };
        hits as f64 / trace.accesses.len() as f64
    }
}

/// Simulations that divide the keys as the store's shards do: by the top bits of the hash.
struct Sharded(Vec<Simulation>);

impl Sharded {
    fn new(kind: PolicyKind, capacity: usize, shards: usize) -> Self {
        let part = |shard| capacity * (shard + 1) / shards - capacity * shard / shards;
        Self((0..shards).map(|shard| Simulation::new(kind, part(shard) as u64)).collect())
    }

    fn access(&mut self, key: u32) -> bool {
        let shards = self.0.len() as u64;
        let shard = ((simulation::hash(key) >> 32) * shards) >> 32;
        self.0[shard as usize].access(key)
    }
}

fn quick_cache(accesses: impl Iterator<Item = u32>, capacity: usize, shards: usize) -> usize {
    use quick_cache::sync::{Cache, DefaultLifecycle};
    use quick_cache::{OptionsBuilder, UnitWeighter};

    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity(capacity)
        .weight_capacity(capacity as u64)
        .build()
        .expect("both capacities are given");
    let cache: Cache<u32, (), _, _, _> = Cache::with_options(
        options,
        UnitWeighter,
        Xxh3DefaultBuilder::new(),
        DefaultLifecycle::default(),
    );
    let get = |key: &u32| {
        let found = cache.get(key).is_some();
        if !found {
            cache.insert(*key, ());
        }
        found
    };
    accesses.filter(get).count()
}

/// Its housekeeping is run every 64 accesses, as its own threads would see to it.
fn moka(accesses: impl Iterator<Item = u32>, capacity: usize) -> usize {
    let cache = moka::sync::Cache::builder()
        .max_capacity(capacity as u64)
        .build_with_hasher(Xxh3DefaultBuilder::new());
    let get = |(at, key): &(usize, u32)| {
        if at % 64 == 0 {
            cache.run_pending_tasks();
        }
        let found = cache.get(key).is_some();
        if !found {
            cache.insert(*key, ());
        }
        found
    };
    accesses.enumerate().filter(get).count()
}

fn optimum(trace: &Trace, capacity: usize) -> usize {
    use std::collections::BinaryHeap;

    const NEVER: u32 = u32::MAX;
    // When each access's key is asked for again.
    let mut seen_next = vec![NEVER; trace.distinct as usize];
    let mut again = vec![NEVER; trace.accesses.len()];
    for (at, &key) in trace.accesses.iter().enumerate().rev() {
        again[at] = std::mem::replace(&mut seen_next[key as usize], at as u32);
    }

    // What is stored, by key: when it is asked for next. The heap also holds what was true
    // before; such entries are passed over when they come up.
    let mut stored = vec![None; trace.distinct as usize];
    let mut latest = BinaryHeap::new();
    let (mut hits, mut len) = (0, 0);
    for (&key, &next) in trace.accesses.iter().zip(&again) {
        if stored[key as usize].is_some() {
            hits += 1;
        } else {
            while len >= capacity {
                let Some((next, victim)) = latest.pop() else { break };
                if stored[victim as usize] == Some(next) {
                    stored[victim as usize] = None;
                    len -= 1;
                }
            }
            len += 1;
        }
        stored[key as usize] = Some(next);
        latest.push((next, key));
    }
    hits
}
