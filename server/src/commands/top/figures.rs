//! From two looks at the counters of all nodes to figures per second.
//!
//! Nodes only count; what happened in a second is the difference of two answers by the time between
//! them. A node that was started anew in between counts from zero again: its rates then begin with
//! the next look rather than with nonsense.

use std::{collections::BTreeMap, time::Duration};

use kiln_protocol::native::admin::{CacheInfo, NodeInfo, ProtocolInfo};
use serde::Serialize;

use crate::commands::output::Text;

/// What all nodes said at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Since any fixed moment.
    pub(super) at: Duration,
    pub(super) nodes: Vec<NodeSample>,
}

/// What one node said, or why it said nothing.
#[derive(Clone, Debug)]
pub(super) struct NodeSample {
    pub(super) address: String,
    pub(super) info: Result<NodeInfo, String>,
}

/// Everything there is to show.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Figures {
    /// Over how long the rates were taken; 0 before the second look.
    pub(super) interval_seconds: f64,
    pub(super) total: Total,
    pub(super) nodes: Vec<NodeFigures>,
    pub(super) caches: Vec<CacheFigures>,
    /// Keys read most, of late, by estimate.
    pub(super) hottest: Vec<KeyFigure>,
    /// Keys with the largest values in a sample.
    pub(super) largest: Vec<KeyFigure>,
}

/// All nodes together.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Total {
    pub(super) operations_per_second: f64,
    /// None without reads.
    pub(super) hit_percent: Option<f64>,
    pub(super) items: u64,
    pub(super) memory_used: u64,
    pub(super) memory_limit: u64,
    pub(super) evictions_per_second: f64,
    pub(super) connections: u64,
}

/// One node.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct NodeFigures {
    pub(super) name: String,
    pub(super) address: String,
    /// Why there are no figures.
    pub(super) error: Option<String>,
    pub(super) version: String,
    pub(super) uptime_seconds: u64,
    pub(super) operations_per_second: f64,
    pub(super) hit_percent: Option<f64>,
    pub(super) items: u64,
    /// Resident memory of the process.
    pub(super) memory_used: u64,
    pub(super) memory_limit: u64,
    pub(super) evictions_per_second: f64,
    pub(super) connections: u64,
    pub(super) connections_max: u64,
    /// Share of one core in percent.
    pub(super) cpu_percent: f64,
    pub(super) bytes_read_per_second: f64,
    pub(super) bytes_written_per_second: f64,
    pub(super) protocols: Vec<ProtocolFigures>,
}

/// One protocol of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ProtocolFigures {
    pub(super) protocol: String,
    pub(super) operations_per_second: f64,
    /// None when the node does not measure it.
    pub(super) latency: Option<Latency>,
}

/// Quantiles in microseconds, over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// One cache on all nodes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CacheFigures {
    pub(super) name: String,
    pub(super) items: u64,
    pub(super) memory_used: u64,
    pub(super) memory_limit: u64,
    pub(super) reads_per_second: f64,
    pub(super) hit_percent: Option<f64>,
    pub(super) stores_per_second: f64,
    pub(super) evictions_per_second: f64,
    pub(super) expirations_per_second: f64,
}

/// One key.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyFigure {
    pub(super) cache: String,
    pub(super) key: Vec<u8>,
    /// Reads by estimate, or bytes.
    pub(super) amount: u64,
}

impl Serialize for KeyFigure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let key = Text::of(&self.key);
        let (name, text) = key.member("key");
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("cache", &self.cache)?;
        map.serialize_entry(&name, text)?;
        map.serialize_entry("amount", &self.amount)?;
        map.end()
    }
}

/// Counters of reads, for hit ratios.
#[derive(Clone, Copy, Default)]
struct Reads {
    hits: u64,
    misses: u64,
}

impl Reads {
    fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
    }

    fn hit_percent(self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0).then(|| 100.0 * self.hits as f64 / reads as f64)
    }
}

impl Figures {
    /// What happened between two samples; without an earlier one there are no rates.
    pub(super) fn between(earlier: Option<&Sample>, now: &Sample) -> Self {
        let interval = earlier.map_or(Duration::ZERO, |earlier| now.at.saturating_sub(earlier.at));
        let seconds = interval.as_secs_f64();
        let mut figures = Self { interval_seconds: seconds, ..Self::default() };
        let mut caches: BTreeMap<&str, (CacheFigures, Reads)> = BTreeMap::new();
        let mut reads_total = Reads::default();
        for node in &now.nodes {
            let info = match &node.info {
                Ok(info) => info,
                Err(error) => {
                    figures.nodes.push(NodeFigures {
                        name: node.address.clone(),
                        address: node.address.clone(),
                        error: Some(error.clone()),
                        ..NodeFigures::default()
                    });
                    continue;
                }
            };
            let before = earlier.and_then(|earlier| same_process(earlier, node, info));
            let rate = |of: fn(&NodeInfo) -> u64| {
                before.map_or(0.0, |before| per_second(of(before), of(info), seconds))
            };
            let mut reads = Reads::default();
            let mut evictions = 0.0;
            for cache in &info.caches {
                let before =
                    before.and_then(|b| b.caches.iter().find(|c| c.spec.name == cache.spec.name));
                let change = CacheChange { before, now: cache, seconds };
                reads.add(change.reads());
                evictions += change.rate(|cache| cache.evictions);
                let entry = caches.entry(&cache.spec.name).or_default();
                change.add_to(&mut entry.0);
                entry.1.add(change.reads());
            }
            reads_total.add(reads);
            figures.hottest.extend(keys(&info.hottest));
            figures.largest.extend(keys(&info.largest));
            figures.nodes.push(NodeFigures {
                name: info.name.clone(),
                address: node.address.clone(),
                error: None,
                version: info.version.clone(),
                uptime_seconds: info.uptime_ms / 1000,
                operations_per_second: rate(|info| {
                    info.operations.iter().map(|protocol| protocol.operations).sum()
                }),
                hit_percent: reads.hit_percent(),
                items: info.caches.iter().map(|cache| cache.items).sum(),
                memory_used: info.resident,
                memory_limit: info.memory,
                evictions_per_second: evictions,
                connections: info.connections,
                connections_max: info.connections_max,
                cpu_percent: rate(|info| info.cpu_us) / 1e4,
                bytes_read_per_second: rate(|info| info.bytes_read),
                bytes_written_per_second: rate(|info| info.bytes_written),
                protocols: info
                    .operations
                    .iter()
                    .map(|protocol| protocol_figures(before, protocol, seconds))
                    .collect(),
            });
        }
        figures.caches = caches
            .into_iter()
            .map(|(name, (cache, reads))| CacheFigures {
                name: name.to_owned(),
                hit_percent: reads.hit_percent(),
                ..cache
            })
            .collect();
        for keys in [&mut figures.hottest, &mut figures.largest] {
            keys.sort_by(|a, b| b.amount.cmp(&a.amount).then_with(|| a.key.cmp(&b.key)));
            keys.truncate(KEYS_MAX);
        }
        figures.total = Total::of(&figures.nodes, reads_total);
        figures
    }
}

impl Total {
    fn of(nodes: &[NodeFigures], reads: Reads) -> Self {
        Self {
            operations_per_second: nodes.iter().map(|node| node.operations_per_second).sum(),
            hit_percent: reads.hit_percent(),
            items: nodes.iter().map(|node| node.items).sum(),
            memory_used: nodes.iter().map(|node| node.memory_used).sum(),
            memory_limit: nodes.iter().map(|node| node.memory_limit).sum(),
            evictions_per_second: nodes.iter().map(|node| node.evictions_per_second).sum(),
            connections: nodes.iter().map(|node| node.connections).sum(),
        }
    }
}

/// What the same process said earlier.
fn same_process<'a>(
    earlier: &'a Sample,
    node: &NodeSample,
    now: &NodeInfo,
) -> Option<&'a NodeInfo> {
    let before = earlier.nodes.iter().find(|before| before.address == node.address)?;
    let before = before.info.as_ref().ok()?;
    (before.pid == now.pid && before.uptime_ms <= now.uptime_ms).then_some(before)
}

fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn protocol_figures(
    before: Option<&NodeInfo>,
    now: &ProtocolInfo,
    seconds: f64,
) -> ProtocolFigures {
    let before = before.and_then(|before| {
        before.operations.iter().find(|protocol| protocol.protocol == now.protocol)
    });
    ProtocolFigures {
        protocol: now.protocol.clone(),
        operations_per_second: before
            .map_or(0.0, |before| per_second(before.operations, now.operations, seconds)),
        latency: match now.latency_us[..] {
            [p50_us, p99_us, p999_us, max_us, ..] => {
                Some(Latency { p50_us, p99_us, p999_us, max_us })
            }
            _ => None,
        },
    }
}

/// A cache on one node, then and now.
struct CacheChange<'a> {
    before: Option<&'a CacheInfo>,
    now: &'a CacheInfo,
    seconds: f64,
}

impl CacheChange<'_> {
    fn rate(&self, of: fn(&CacheInfo) -> u64) -> f64 {
        self.before.map_or(0.0, |before| per_second(of(before), of(self.now), self.seconds))
    }

    /// Since the earlier look; since the start when there was none.
    fn reads(&self) -> Reads {
        let (hits, misses) = self.before.map_or((0, 0), |before| (before.hits, before.misses));
        Reads {
            hits: self.now.hits.saturating_sub(hits),
            misses: self.now.misses.saturating_sub(misses),
        }
    }

    fn add_to(&self, sum: &mut CacheFigures) {
        sum.items += self.now.items;
        sum.memory_used += self.now.bytes;
        sum.memory_limit += self.now.memory;
        sum.reads_per_second += self.rate(|cache| cache.hits + cache.misses);
        sum.stores_per_second += self.rate(|cache| cache.stores);
        sum.evictions_per_second += self.rate(|cache| cache.evictions);
        sum.expirations_per_second += self.rate(|cache| cache.expirations);
    }
}

fn keys(keys: &[kiln_protocol::native::admin::KeyInfo]) -> impl Iterator<Item = KeyFigure> {
    keys.iter().map(|key| KeyFigure {
        cache: key.cache.clone(),
        key: key.key.clone(),
        amount: key.amount,
    })
}

/// Keys kept of each list.
const KEYS_MAX: usize = 50;

#[cfg(test)]
pub(super) mod tests {
    use kiln_protocol::native::admin::{CacheSpec, KeyInfo};

    use super::*;

    /// A node that has done `times` of everything.
    pub(crate) fn node(name: &str, times: u64) -> NodeInfo {
        let cache = |name: &str| CacheInfo {
            spec: CacheSpec { name: name.to_owned(), ..CacheSpec::default() },
            items: 1000,
            bytes: 64 << 20,
            memory: 256 << 20,
            hits: 90 * times,
            misses: 10 * times,
            stores: 20 * times,
            evictions: 5 * times,
            expirations: times,
            deletes: 0,
        };
        let protocol = |name: &str| ProtocolInfo {
            protocol: name.to_owned(),
            operations: 100 * times,
            latency_us: vec![50.0, 200.0, 900.0, 12_000.0],
        };
        NodeInfo {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            pid: 7,
            uptime_ms: 1000 * times,
            memory: 512 << 20,
            resident: 100 << 20,
            cpu_us: 500_000 * times,
            connections: 50,
            connections_max: 4096,
            bytes_read: 1000 * times,
            bytes_written: 2000 * times,
            operations: vec![protocol("memcached"), protocol("native")],
            caches: vec![cache("default"), cache("sessions")],
            hottest: vec![KeyInfo { cache: "default".into(), key: b"hot".to_vec(), amount: 9 }],
            largest: vec![KeyInfo { cache: "default".into(), key: vec![0xff, 1], amount: 1 << 20 }],
            ..NodeInfo::default()
        }
    }

    pub(crate) fn sample(seconds: u64, nodes: Vec<Result<NodeInfo, String>>) -> Sample {
        let nodes = nodes.into_iter().enumerate();
        let nodes = nodes.map(|(index, info)| NodeSample { address: format!("h:{index}"), info });
        Sample { at: Duration::from_secs(seconds), nodes: nodes.collect() }
    }

    #[test]
    fn rates_are_differences_by_the_time_between_two_looks() {
        let (before, now) = (sample(1, vec![Ok(node("a", 1))]), sample(3, vec![Ok(node("a", 5))]));
        let figures = Figures::between(Some(&before), &now);

        let node = &figures.nodes[0];
        assert_eq!((node.operations_per_second, node.cpu_percent), (400.0, 100.0));
        assert_eq!((node.evictions_per_second, node.hit_percent), (20.0, Some(90.0)));
        assert_eq!(node.protocols[1].operations_per_second, 200.0);
        assert_eq!(node.protocols[1].latency.unwrap().max_us, 12_000.0);
        let cache = &figures.caches[1];
        assert_eq!((&*cache.name, cache.reads_per_second), ("sessions", 200.0));
        assert_eq!(figures.total.operations_per_second, 400.0);
    }

    #[test]
    fn a_cache_on_two_nodes_is_one_row_and_totals_cover_both() {
        let now = sample(1, vec![Ok(node("a", 1)), Ok(node("b", 3))]);
        let figures = Figures::between(None, &now);

        assert_eq!(figures.caches.len(), 2);
        assert_eq!((figures.caches[0].items, figures.total.items), (2000, 4000));
        assert_eq!(figures.total.memory_limit, 1024 << 20);
        assert_eq!(figures.total.operations_per_second, 0.0);
        assert_eq!(figures.total.hit_percent, Some(90.0));
    }

    #[test]
    fn a_node_that_was_started_anew_has_no_rates_yet() {
        let before = sample(1, vec![Ok(node("a", 100))]);
        let figures = Figures::between(Some(&before), &sample(2, vec![Ok(node("a", 1))]));

        assert_eq!(figures.nodes[0].operations_per_second, 0.0);
        assert_eq!(figures.caches[0].stores_per_second, 0.0);
    }

    #[test]
    fn a_node_that_does_not_answer_stays_in_the_list_with_the_reason() {
        let figures = Figures::between(None, &sample(1, vec![Err("gone".to_owned())]));

        assert_eq!(figures.nodes[0].error.as_deref(), Some("gone"));
        assert_eq!(figures.nodes[0].name, "h:0");
        assert!(figures.caches.is_empty());
    }

    #[test]
    fn keys_that_are_no_text_are_base64_in_json() {
        let figures = Figures::between(None, &sample(1, vec![Ok(node("a", 1))]));
        let json = serde_json::to_value(&figures).unwrap();

        assert_eq!(json["hottest"][0]["key"], "hot");
        assert_eq!(json["largest"][0]["key_base64"], "/wE=");
    }
}
