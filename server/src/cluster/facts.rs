//! What the core tells others of this node with its heartbeats.

use std::{cmp::Reverse, collections::BTreeMap, time::Instant};

use kiln_cluster::{
    heartbeat::{HOTTEST_MAX, Load, LocalFacts, Readiness},
    ids::Place,
};
use kiln_engine::Store;

use super::shared::Cluster;
use crate::{hottest, node::Node, process::Usage};

/// Figures of the last look, to make rates of.
#[derive(Default)]
pub(super) struct Facts {
    last: Option<Look>,
    load: Load,
    hottest: Vec<(Place, u32)>,
}

struct Look {
    at: Instant,
    operations: u64,
    cpu_s: f64,
}

/// Rates are worked out over at least so long.
const RATE_MS: u128 = 900;

impl Facts {
    pub(super) fn gather(
        &mut self,
        node: &Node,
        cluster: &Cluster,
        ready: bool,
        waiting: usize,
    ) -> LocalFacts {
        let totals = node.totals();
        let operations = totals.memcached_ops + totals.native_ops;
        let due = self.last.as_ref().is_none_or(|last| last.at.elapsed().as_millis() >= RATE_MS);
        if due {
            let at = Instant::now();
            let cpu_s = Usage::read().map_or(0.0, |usage| usage.cpu_user_s + usage.cpu_system_s);
            if let Some(last) = &self.last {
                let seconds = last.at.elapsed().as_secs_f64();
                let rate = (operations.saturating_sub(last.operations)) as f64 / seconds;
                let busy = (cpu_s - last.cpu_s).max(0.0) / seconds / node.workers.len() as f64;
                self.load.operations_per_s = rate as u32;
                self.load.busy_milli = (busy * 1_000.0) as u32;
            }
            self.last = Some(Look { at, operations, cpu_s });
            self.hottest = hottest_partitions(node, cluster);
        }
        self.load.in_flight = u32::try_from(waiting).unwrap_or(u32::MAX);
        let stats = node.caches.stats();
        LocalFacts {
            readiness: match (cluster.is_leaving(), ready) {
                (true, _) => Readiness::Leaving,
                (false, true) => Readiness::Ready,
                (false, false) => Readiness::Starting,
            },
            load: self.load,
            memory_used: stats.item_bytes + stats.index_bytes + stats.heap_bytes,
            memory_limit: node.memory() as u64,
            hottest: self.hottest.clone(),
        }
    }
}

/// The partitions of the keys that are asked for most here: moved last, because whoever moves a
/// partition holds up its clients for a moment.
fn hottest_partitions(node: &Node, cluster: &Cluster) -> Vec<(Place, u32)> {
    let sketches: Vec<_> = node.workers.iter().map(|worker| worker.hottest.lock()).collect();
    let most = hottest::ENTRIES_MAX * sketches.len();
    let found = hottest::merge(sketches.iter().map(|sketch| &**sketch), most);
    drop(sketches);
    let table = node.caches.load();
    let groups: BTreeMap<u32, _> =
        table.iter().filter_map(|cache| Some((cache.id, cache.cluster()?))).collect();
    let mut rates: BTreeMap<Place, f64> = BTreeMap::new();
    for (cache, key, count) in found {
        if let Some(known) = groups.get(&cache) {
            let place = known.place(cluster, Store::hash(&key));
            *rates.entry(place).or_default() += hottest::per_second(count);
        }
    }
    let mut rates: Vec<_> = rates.into_iter().map(|(place, rate)| (place, rate as u32)).collect();
    rates.sort_by_key(|(place, rate)| (Reverse(*rate), *place));
    rates.truncate(HOTTEST_MAX);
    rates
}
