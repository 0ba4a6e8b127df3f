//! What the core tells others of this node with its heartbeats.

use std::time::Instant;

use kiln_cluster::heartbeat::{Load, LocalFacts, Readiness};

use crate::{node::Node, process::Usage};

/// Figures of the last look, to make rates of.
#[derive(Default)]
pub(super) struct Facts {
    last: Option<Look>,
    load: Load,
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
        ready: bool,
        leaving: bool,
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
        }
        self.load.in_flight = u32::try_from(waiting).unwrap_or(u32::MAX);
        let stats = node.caches.stats();
        LocalFacts {
            readiness: match (leaving, ready) {
                (true, _) => Readiness::Leaving,
                (false, true) => Readiness::Ready,
                (false, false) => Readiness::Starting,
            },
            load: self.load,
            memory_used: stats.item_bytes + stats.index_bytes + stats.heap_bytes,
            memory_limit: node.memory() as u64,
            hottest: Vec::new(),
        }
    }
}
