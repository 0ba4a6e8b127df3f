//! What the node has counted, and what two such counts a second apart say.
//!
//! Counters belong to workers and stores; here they are only read. Rates are summed over caches
//! from differences, so that a cache that comes or goes, or counters that were reset, cannot make
//! a rate negative or huge.
//!
//! Cost: the statistics of each cache are read once a second, under the lock of one shard after
//! the other: about a microsecond for each shard.

use std::collections::{BTreeMap, BTreeSet};

use kiln_engine::Stats;
use serde::{Serialize, Serializer, ser::SerializeTuple};

use super::history::{Field, Figure, Sample};
use crate::{caches::Table, counters::Totals, latency, listen::Protocol, node::Node};

/// Reads count towards a recent hit ratio for about so many seconds.
const RECENT_S: f64 = 30.0;

/// Counters at one moment.
pub(super) struct Reading {
    /// When it was taken, in milliseconds of the node's clock.
    pub(super) at_ms: u64,
    totals: Totals,
    http_ops: u64,
    caches: Vec<CacheReading>,
    cpu_s: Option<f64>,
    resident: Option<u64>,
    connections: usize,
}

struct CacheReading {
    id: u32,
    stats: Stats,
    memory: usize,
}

impl Reading {
    /// Reads all counters.
    pub(super) fn take(node: &Node, table: &Table) -> Self {
        let process = procfs::process::Process::myself().and_then(|process| process.stat()).ok();
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let caches = table.iter().map(|cache| CacheReading {
            id: cache.id,
            stats: cache.store.stats(),
            memory: cache.store.memory(),
        });
        Self {
            at_ms: node.clock.now_ms(),
            totals: node.totals(),
            http_ops: node.http.operations(),
            caches: caches.collect(),
            cpu_s: process.as_ref().map(|stat| (stat.utime + stat.stime) as f64 / ticks_per_s),
            resident: process.map(|stat| stat.rss * rustix::param::page_size() as u64),
            connections: node.connections.open(),
        }
    }

    /// The sum of a counter over all caches.
    pub(super) fn sum(&self, of: impl Fn(&Stats) -> u64) -> u64 {
        self.caches.iter().map(|cache| of(&cache.stats)).sum()
    }

    /// What happened since an earlier reading. `caches` has their figures by id, and is brought up
    /// to date.
    pub(super) fn since(&self, before: &Self, caches: &mut BTreeMap<u32, CacheFigures>) -> Sample {
        let seconds = self.at_ms.saturating_sub(before.at_ms).max(1) as f64 / 1_000.0;
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let mut sample = Sample::new(self.at_ms);
        let (now, was) = (&self.totals, &before.totals);
        sample.set(Field::OpsMemcached, rate(now.memcached_ops, was.memcached_ops));
        sample.set(Field::OpsNative, rate(now.native_ops, was.native_ops));
        sample.set(Field::OpsHttp, rate(self.http_ops, before.http_ops));
        sample.set(Field::BytesIn, rate(now.bytes_read, was.bytes_read));
        sample.set(Field::BytesOut, rate(now.bytes_written, was.bytes_written));
        sample.set(Field::Connections, self.connections as f64);
        sample.set(Field::Items, self.sum(|stats| stats.items) as f64);
        sample.set(Field::Memory, self.sum(used) as f64);
        if let Some(resident) = self.resident {
            sample.set(Field::Resident, resident as f64);
        }
        if let (Some(now), Some(was)) = (self.cpu_s, before.cpu_s) {
            sample.set(Field::Cpu, (now - was).max(0.0) / seconds);
        }

        let known: BTreeMap<u32, &Stats> =
            before.caches.iter().map(|cache| (cache.id, &cache.stats)).collect();
        let present: BTreeSet<u32> = self.caches.iter().map(|cache| cache.id).collect();
        caches.retain(|id, _| present.contains(id));
        let (mut hits, mut misses, mut evictions, mut expirations) = (0.0, 0.0, 0.0, 0.0);
        for CacheReading { id, stats, memory } in &self.caches {
            let nothing = Stats::default();
            let was = known.get(id).copied().unwrap_or(&nothing);
            let figures = caches.entry(*id).or_insert_with(|| CacheFigures::new(*id));
            figures.update(stats, was, *memory, seconds);
            hits += rate(stats.get_hits, was.get_hits);
            misses += rate(stats.get_misses, was.get_misses);
            evictions += figures.evictions_per_s;
            expirations += figures.expirations_per_s;
        }
        sample.set(Field::Hits, hits);
        sample.set(Field::Misses, misses);
        sample.set(Field::Evictions, evictions);
        sample.set(Field::Expirations, expirations);
        sample
    }
}

/// Adds how long batches took lately, as the workers timed them.
pub(super) fn add_latencies(sample: &mut Sample, node: &Node) {
    let of_workers = |protocol| {
        latency::quantiles(node.workers.iter().map(|worker| &worker.latencies), protocol)
    };
    for (fields, quantiles) in [
        (
            [Field::P50Memcached, Field::P99Memcached, Field::P999Memcached],
            of_workers(Protocol::Memcached),
        ),
        ([Field::P50Native, Field::P99Native, Field::P999Native], of_workers(Protocol::Native)),
        ([Field::P50Http, Field::P99Http, Field::P999Http], node.http.quantiles()),
    ] {
        // No quantiles come when nothing was timed: a gap in the chart.
        for (field, micros) in fields.into_iter().zip(quantiles) {
            sample.set(field, micros);
        }
    }
}

fn used(stats: &Stats) -> u64 {
    stats.item_bytes + stats.index_bytes + stats.heap_bytes
}

/// What a cache holds and does now.
#[derive(Clone, Debug)]
pub(super) struct CacheFigures {
    id: u32,
    items: u64,
    bytes: u64,
    memory: usize,
    hits: u64,
    misses: u64,
    /// Reads of late, fading with time.
    recent_hits: f64,
    recent_misses: f64,
    ops_per_s: f64,
    evictions_per_s: f64,
    expirations_per_s: f64,
    /// Hit ratios with parts and multiples of the memory, where enough was seen to estimate them.
    curve: Option<Vec<f64>>,
}

impl CacheFigures {
    /// What the hit ratio would be with other sizes: see `metrics::FACTORS`.
    pub(super) fn set_curve(&mut self, curve: Option<Vec<f64>>) {
        self.curve = curve;
    }

    fn new(id: u32) -> Self {
        Self {
            id,
            items: 0,
            bytes: 0,
            memory: 0,
            hits: 0,
            misses: 0,
            recent_hits: 0.0,
            recent_misses: 0.0,
            ops_per_s: 0.0,
            evictions_per_s: 0.0,
            expirations_per_s: 0.0,
            curve: None,
        }
    }

    fn update(&mut self, now: &Stats, was: &Stats, memory: usize, seconds: f64) {
        let since = |of: fn(&Stats) -> u64| of(now).saturating_sub(of(was)) as f64;
        let (hits, misses) = (since(|stats| stats.get_hits), since(|stats| stats.get_misses));
        let fade = (-seconds / RECENT_S).exp();
        self.recent_hits = self.recent_hits * fade + hits;
        self.recent_misses = self.recent_misses * fade + misses;
        self.ops_per_s = (hits + misses + since(other_operations)) / seconds;
        self.evictions_per_s = since(|stats| stats.evictions) / seconds;
        self.expirations_per_s = since(|stats| stats.expirations) / seconds;
        (self.items, self.bytes, self.memory) = (now.items, used(now), memory);
        (self.hits, self.misses) = (now.get_hits, now.get_misses);
    }

    /// Of the reads of about the last half minute, the part that found their item; NaN when there
    /// were hardly any.
    fn recent_ratio(&self) -> f64 {
        let reads = self.recent_hits + self.recent_misses;
        if reads < 0.5 { f64::NAN } else { self.recent_hits / reads }
    }
}

/// The hit ratio of late over all caches; NaN when there were hardly any reads.
pub(super) fn recent_ratio<'a>(caches: impl Iterator<Item = &'a CacheFigures>) -> f64 {
    let mut all = CacheFigures::new(0);
    for figures in caches {
        all.recent_hits += figures.recent_hits;
        all.recent_misses += figures.recent_misses;
    }
    all.recent_ratio()
}

fn other_operations(stats: &Stats) -> u64 {
    stats.writes
        + stats.touch_hits
        + stats.touch_misses
        + stats.delete_hits
        + stats.delete_misses
        + stats.incr_hits
        + stats.incr_misses
        + stats.decr_hits
        + stats.decr_misses
}

/// As a short row: id, items, bytes, memory, hits, misses, recent hit ratio, operations, evictions
/// and expirations a second, and the estimated hit ratios if there are any.
impl Serialize for CacheFigures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_tuple(10 + usize::from(self.curve.is_some()))?;
        row.serialize_element(&self.id)?;
        row.serialize_element(&self.items)?;
        row.serialize_element(&self.bytes)?;
        row.serialize_element(&self.memory)?;
        row.serialize_element(&self.hits)?;
        row.serialize_element(&self.misses)?;
        for figure in
            [self.recent_ratio(), self.ops_per_s, self.evictions_per_s, self.expirations_per_s]
        {
            row.serialize_element(&Figure(figure))?;
        }
        if let Some(curve) = &self.curve {
            let figures: Vec<_> = curve.iter().copied().map(Figure).collect();
            row.serialize_element(&figures)?;
        }
        row.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ms: u64, caches: &[(u32, Stats)]) -> Reading {
        let memory = 1 << 20;
        let caches =
            caches.iter().map(|(id, stats)| CacheReading { id: *id, stats: *stats, memory });
        Reading {
            at_ms,
            totals: Totals::default(),
            http_ops: 0,
            caches: caches.collect(),
            cpu_s: None,
            resident: None,
            connections: 3,
        }
    }

    fn reads(get_hits: u64, get_misses: u64) -> Stats {
        Stats { get_hits, get_misses, ..Stats::default() }
    }

    #[test]
    fn rates_are_over_the_time_that_really_passed() {
        let before = reading(1_000, &[(0, reads(100, 0))]);
        let now = reading(3_000, &[(0, reads(400, 100))]);
        let mut caches = BTreeMap::new();
        let sample = now.since(&before, &mut caches);
        assert_eq!(sample.get(Field::Hits), Some(150.0));
        assert_eq!(sample.get(Field::Misses), Some(50.0));
        assert_eq!(sample.get(Field::Connections), Some(3.0));
        assert_eq!(sample.get(Field::Cpu), None);
        assert_eq!(caches[&0].ops_per_s, 200.0);
        assert!((recent_ratio(caches.values()) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn a_dropped_cache_and_counters_that_were_reset_make_no_rate_negative() {
        let before = reading(1_000, &[(0, reads(100, 0)), (1, reads(900, 900))]);
        let now = reading(2_000, &[(0, reads(40, 0)), (2, reads(7, 0))]);
        let mut caches = BTreeMap::from([(1, CacheFigures::new(1))]);
        let sample = now.since(&before, &mut caches);
        assert_eq!(sample.get(Field::Hits), Some(7.0));
        assert_eq!(caches.keys().copied().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_hit_ratio_is_about_the_last_half_minute() {
        let mut caches = BTreeMap::new();
        let mut before = reading(0, &[(0, reads(0, 0))]);
        assert!(recent_ratio(caches.values()).is_nan());
        for second in 1..=300 {
            // Misses only at first, then hits only.
            let stats = if second <= 150 {
                reads(0, second * 10)
            } else {
                reads((second - 150) * 10, 1_500)
            };
            let now = reading(second * 1_000, &[(0, stats)]);
            now.since(&before, &mut caches);
            before = now;
        }
        assert!(recent_ratio(caches.values()) > 0.98);
        assert!(caches[&0].hits == caches[&0].misses);
    }

    #[test]
    fn a_cache_is_told_in_ten_numbers_and_its_curve() {
        let json = serde_json::to_string(&CacheFigures::new(3)).unwrap();
        assert_eq!(json, "[3,0,0,0,0,0,null,0,0,0]");
        let mut figures = CacheFigures::new(3);
        figures.set_curve(Some(vec![0.25, 0.5]));
        let json = serde_json::to_string(&figures).unwrap();
        assert_eq!(json, "[3,0,0,0,0,0,null,0,0,0,[0.25,0.5]]");
    }
}
