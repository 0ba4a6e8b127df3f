//! Metrics in Prometheus' text format, version 0.0.4, or in OpenMetrics' for who asks for that.
//!
//! Nothing is counted here: each scrape sums what workers and store count anyway. A figure thus
//! has one home, and a node that nobody scrapes spends nothing on metrics.

use axum::http::{HeaderMap, header};
use kiln_engine::Stats;
use prometheus::{
    Encoder, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{
    caches::Cache,
    cluster::Figures,
    listen::Protocol,
    node::Node,
    op_times::{self, KINDS, Summed},
    peer::LinkStats,
    process::Usage,
};

/// All metrics, now.
pub(super) fn render(node: &Node) -> prometheus::Result<String> {
    let mut families = Families::default();
    about_node(&mut families, node);
    let stats = node.caches.stats();
    about_commands(&mut families, node, &stats);
    about_http(&mut families, node);
    about_times(&mut families, node);
    about_items(&mut families, node, &stats);
    about_caches(&mut families, node);
    about_cluster(&mut families, node);
    about_links(&mut families, node);
    about_streams(&mut families, node);
    if let Some(usage) = Usage::read() {
        about_process(&mut families, node, usage);
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.0, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The media type of OpenMetrics.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a client takes OpenMetrics, as Prometheus does.
pub(super) fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let is_it =
            parts.next().is_some_and(|t| t.eq_ignore_ascii_case("application/openmetrics-text"));
        is_it && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
    })
}

/// The same metrics as OpenMetrics writes them: a counter's family has its name without `_total`,
/// and the text has an end.
pub(super) fn as_open_metrics(text: &str) -> String {
    let mut open = String::with_capacity(text.len() + 16);
    let mut counters =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let mut counter = counters.next();
    for line in text.lines() {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
            let rest = line.strip_prefix(start)?;
            let rest = rest.strip_prefix(counter?)?.strip_prefix(' ')?;
            Some((start, counter?.strip_suffix("_total")?, rest))
        });
        match described {
            Some((start, family, rest)) => {
                open.extend([start, family, " ", rest]);
                // Its help stands before its type.
                if start == "# TYPE " {
                    counter = counters.next();
                }
            }
            None => open.push_str(line),
        }
        open.push('\n');
    }
    open.push_str("# EOF\n");
    open
}

fn about_node(families: &mut Families, node: &Node) {
    let config = &node.config;
    let totals = node.totals();
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("commit", env!("BUILD_COMMIT")),
        ("name", &config.name.to_string()),
    ];
    families.gauge("kiln_build_info", "What runs; the value is always 1.", &[(&build, 1.0)]);
    families.one_gauge(
        "kiln_uptime_seconds",
        "Time since the node started.",
        node.clock.uptime().as_secs_f64(),
    );
    families.one_gauge(
        "kiln_worker_threads",
        "Threads that serve connections.",
        config.threads.0 as f64,
    );

    let per_worker: Vec<_> = node
        .workers
        .iter()
        .enumerate()
        .map(|(index, worker)| (index.to_string(), worker.register.open() as f64))
        .collect();
    let labels: Vec<_> = per_worker.iter().map(|(index, _)| [("worker", index.as_str())]).collect();
    let values: Vec<_> = labels
        .iter()
        .zip(&per_worker)
        .map(|(labels, (_, open))| (labels.as_slice(), *open))
        .collect();
    families.gauge("kiln_worker_connections", "Client connections open now, by worker.", &values);

    let open = &node.connections;
    families.one_gauge("kiln_connections", "Client connections open now.", open.open() as f64);
    families.one_gauge(
        "kiln_connections_max",
        "Client connections that may be open.",
        config.max_connections.0 as f64,
    );
    families.one_counter(
        "kiln_connections_accepted_total",
        "Client connections served since the start.",
        totals.total_connections as f64,
    );
    families.one_counter(
        "kiln_connections_rejected_total",
        "Client connections turned away because there were too many.",
        open.rejected() as f64,
    );
    families.one_counter(
        "kiln_connections_idle_closed_total",
        "Client connections closed for being idle.",
        totals.idle_kicks as f64,
    );
    families.one_counter(
        "kiln_connection_yields_total",
        "Times a client connection had to let others pass.",
        totals.conn_yields as f64,
    );
    families.one_counter(
        "kiln_received_bytes_total",
        "Bytes read from clients.",
        totals.bytes_read as f64,
    );
    families.one_counter(
        "kiln_sent_bytes_total",
        "Bytes written to clients.",
        totals.bytes_written as f64,
    );
    families.one_counter(
        "kiln_protocol_errors_total",
        "Requests of clients that were not understood.",
        totals.protocol_errors as f64,
    );
}

fn about_cluster(families: &mut Families, node: &Node) {
    let Some(cluster) = node.cluster.get() else { return };
    let topology = cluster.topology();
    let figures = Figures::of(&topology, cluster.me.node);
    let states = ["joining", "ready", "draining", "down"].map(|state| [("state", state)]);
    let nodes: Vec<_> = states
        .iter()
        .zip(figures.nodes)
        .map(|(labels, count)| (labels.as_slice(), count as f64))
        .collect();
    families.gauge("kiln_cluster_nodes", "Nodes in the table, by state.", &nodes);
    families.histogram(
        "kiln_cluster_turn_seconds",
        "Time of turns of the replication core: requests and messages wait meanwhile.",
        &[([], cluster.turn_times.summed())],
    );
    for (name, help, value) in [
        ("kiln_cluster_epoch", "Version of the agreed table.", topology.epoch.0 as f64),
        ("kiln_cluster_partitions", "Partitions of all groups.", figures.partitions as f64),
        (
            "kiln_cluster_partitions_short",
            "Partitions with fewer copies in sync than promised.",
            figures.short as f64,
        ),
        (
            "kiln_cluster_partitions_headless",
            "Partitions that nobody orders writes for.",
            figures.headless as f64,
        ),
        (
            "kiln_cluster_partitions_misplaced",
            "Partitions whose copies are yet to move, or are moving.",
            figures.misplaced as f64,
        ),
        ("kiln_cluster_copies_filling", "Copies being filled.", figures.filling as f64),
        ("kiln_cluster_partitions_led", "Partitions that this node leads.", figures.led as f64),
        ("kiln_cluster_partitions_held", "Copies in sync on this node.", figures.held as f64),
    ] {
        families.one_gauge(name, help, value);
    }
    families.one_counter(
        "kiln_cluster_losses_total",
        "Times that all copies of a partition were lost.",
        figures.losses as f64,
    );
    let overview = cluster.overview();
    families.one_gauge(
        "kiln_cluster_requests_waiting",
        "Requests that wait for other nodes.",
        overview.waiting as f64,
    );
    families.one_gauge(
        "kiln_cluster_leads",
        "Whether this node leads the controller group.",
        f64::from(u8::from(overview.controller == Some(cluster.me.node))),
    );
    for (name, help, value) in [
        ("kiln_cluster_takeovers_total", "Partitions taken over.", overview.counts.takeovers),
        ("kiln_cluster_copies_filled_total", "Copies filled.", overview.counts.filled),
        (
            "kiln_cluster_filled_bytes_total",
            "Bytes of copies filled.",
            overview.counts.filled_bytes,
        ),
        ("kiln_cluster_foreign_messages_total", "Messages dropped.", overview.counts.foreign),
    ] {
        families.one_counter(name, help, value as f64);
    }
}

/// Name, help, and value of a figure that each link has.
type Figure<'a> = (&'a str, &'a str, &'a dyn Fn(&LinkStats) -> f64);

fn about_links(families: &mut Families, node: &Node) {
    let Some(cluster) = node.cluster.get() else { return };
    let (links, turned_away) = cluster.links();
    families.one_counter(
        "kiln_links_turned_away_total",
        "Connections of other nodes that were refused.",
        turned_away as f64,
    );
    if links.is_empty() {
        // A family without a value is an error to the encoder.
        return;
    }
    let names: Vec<String> = links.iter().map(|link| cluster.name_of(link.node)).collect();
    let of_each = |value: &dyn Fn(&LinkStats) -> f64| -> Vec<([(&str, &str); 1], f64)> {
        let named = names.iter().zip(&links);
        named.map(|(name, link)| ([("peer", name.as_str())], value(link))).collect()
    };
    let gauges: [Figure<'_>; 3] = [
        ("kiln_link_connected", "Whether this node is connected to the other.", &|link| {
            f64::from(u8::from(link.connected_since_ms.is_some()))
        }),
        ("kiln_link_queued_bytes", "Bytes that wait to be written.", &|link| {
            link.queued_bytes as f64
        }),
        ("kiln_link_round_trip_seconds", "There and back, as last measured.", &|link| {
            link.round_trip.map_or(0.0, |time| time.as_secs_f64())
        }),
    ];
    for (name, help, value) in gauges {
        let values = of_each(value);
        let values: Vec<_> = values.iter().map(|(label, value)| (&label[..], *value)).collect();
        families.gauge(name, help, &values);
    }
    let counters: [Figure<'_>; 10] = [
        ("kiln_link_sent_bytes_total", "Bytes written.", &|link| link.bytes_out as f64),
        ("kiln_link_received_bytes_total", "Bytes read.", &|link| link.bytes_in as f64),
        ("kiln_link_sent_frames_total", "Frames written.", &|link| link.frames_out as f64),
        ("kiln_link_received_frames_total", "Frames read.", &|link| link.frames_in as f64),
        ("kiln_link_sent_messages_total", "Messages sent.", &|link| link.messages_out as f64),
        ("kiln_link_received_messages_total", "Messages received.", &|link| {
            link.messages_in as f64
        }),
        ("kiln_link_dropped_messages_total", "Messages not sent.", &|link| link.dropped as f64),
        ("kiln_link_withheld_messages_total", "Messages for another life.", &|link| {
            link.withheld as f64
        }),
        ("kiln_link_corrupt_frames_total", "Damaged frames.", &|link| link.corrupt as f64),
        ("kiln_link_reconnects_total", "Connections after the first.", &|link| {
            link.reconnects as f64
        }),
    ];
    for (name, help, value) in counters {
        let values = of_each(value);
        let values: Vec<_> = values.iter().map(|(label, value)| (&label[..], *value)).collect();
        families.counter(name, help, &values);
    }
}

fn about_streams(families: &mut Families, node: &Node) {
    let table = node.streams.registry.load();
    families.one_gauge("kiln_streams", "Sensor streams.", table.len() as f64);
    families.one_gauge(
        "kiln_stream_state_limit_bytes",
        "Memory that the state of all streams may take.",
        node.streams.state.limit() as f64,
    );
    families.one_gauge(
        "kiln_stream_state_used_bytes",
        "Memory that the state of all streams takes.",
        node.streams.state.used() as f64,
    );
    if table.is_empty() {
        return;
    }
    let read: Vec<_> = table.values().map(|stream| (stream, stream.figures.read())).collect();
    let labels: Vec<_> = read.iter().map(|(stream, _)| [("stream", &*stream.name)]).collect();
    type Of = fn(&crate::streams::FigureValues) -> u64;
    let counters: [(&str, &str, Of); 17] = [
        ("readings_total", "Readings taken in.", |f| f.accepted),
        ("duplicates_total", "Readings of batches that were applied before.", |f| f.duplicates),
        ("late_total", "Readings too late for at least one window.", |f| f.late),
        ("rejected_total", "Lines that gave no reading.", |f| f.rejected),
        ("filtered_total", "Readings that the filter left out.", |f| f.filtered),
        ("stale_total", "Readings of an earlier life of their producer.", |f| f.stale),
        ("refused_total", "Readings refused for want of room.", |f| f.refused),
        ("results_total", "Window results given.", |f| f.results),
        ("results_lost_total", "Results that could not be written to their cache.", |f| f.lost),
        ("alarms_total", "Alarms raised or cleared.", |f| f.alarms),
        ("flushes_total", "Partitions flushed because all producers were silent.", |f| f.flushes),
        ("log_records_total", "Entries written to logs of partitions.", |f| f.log_records),
        ("log_bytes_total", "Bytes of entries written to logs.", |f| f.log_bytes),
        ("snapshots_total", "Snapshots of partitions published.", |f| f.snapshots),
        ("recoveries_total", "Partitions found in their logs.", |f| f.recoveries),
        ("recovery_milliseconds_total", "Time that finding them took.", |f| f.recovery_ms),
        ("states_lost_total", "Partitions whose state was not found whole.", |f| f.states_lost),
    ];
    let gauges: [(&str, &str, Of); 3] = [
        ("late_dropped", "Readings that are missing in a window they were late for.", |f| {
            f.late_dropped
        }),
        ("state_bytes", "Memory that the state takes.", |f| f.state_bytes),
        ("sensors", "Sensors known.", |f| f.sensors),
    ];
    let values = |of: Of| -> Vec<_> {
        let rows = labels.iter().zip(&read);
        rows.map(|(labels, (_, figures))| (labels.as_slice(), of(figures) as f64)).collect()
    };
    for (name, help, of) in counters {
        families.counter(&format!("kiln_stream_{name}"), help, &values(of));
    }
    for (name, help, of) in gauges {
        families.gauge(&format!("kiln_stream_{name}"), help, &values(of));
    }
    let now = node.clock.now_ms() as i64;
    let lags: Vec<_> = labels
        .iter()
        .zip(&read)
        .filter_map(|(labels, (stream, _))| {
            let lag = now.saturating_sub(stream.watermark()?) as f64 / 1_000.0;
            Some((labels.as_slice(), lag))
        })
        .collect();
    let help = "How far the least watermark is behind the clock.";
    families.gauge("kiln_stream_watermark_lag_seconds", help, &lags);
    about_sources(families, &table);
}

fn about_sources(families: &mut Families, table: &crate::streams::Table) {
    let of_stream = |stream: &std::sync::Arc<crate::streams::Stream>| {
        let name = stream.name.to_string();
        stream.sources.iter().map(move |source| (name.clone(), source.read())).collect::<Vec<_>>()
    };
    let read: Vec<_> = table.values().flat_map(of_stream).collect();
    if read.is_empty() {
        return;
    }
    let labels: Vec<_> = read
        .iter()
        .map(|(stream, source)| [("stream", &**stream), ("source", &*source.name)])
        .collect();
    type Of = fn(&crate::streams::SourceFigures) -> u64;
    let counters: [(&str, &str, Of); 5] = [
        ("messages_total", "Messages that came from a source.", |f| f.messages),
        ("readings_total", "Readings of a source taken in.", |f| f.readings),
        ("rejected_total", "Lines of a source that gave no reading.", |f| f.rejected),
        ("skipped_total", "Messages of a source left out: retained ones.", |f| f.skipped),
        ("reconnects_total", "Connections lost or not made.", |f| f.reconnects),
    ];
    for (name, help, of) in counters {
        let rows = labels.iter().zip(&read);
        let values: Vec<_> =
            rows.map(|(labels, (_, figures))| (labels.as_slice(), of(figures) as f64)).collect();
        families.counter(&format!("kiln_stream_source_{name}"), help, &values);
    }
    let rows = || labels.iter().zip(&read);
    let running: Vec<_> = rows()
        .filter(|(_, (_, figures))| figures.state != "elsewhere")
        .map(|(labels, (_, figures))| {
            (labels.as_slice(), f64::from(u8::from(figures.state == "running")))
        })
        .collect();
    let help = "Whether a source that this node reads is connected and its readings are taken in.";
    families.gauge("kiln_stream_source_up", help, &running);
    let lags: Vec<_> = rows()
        .filter_map(|(labels, (_, figures))| Some((labels.as_slice(), figures.lag? as f64)))
        .collect();
    let help = "Messages of a source that are there and were not fetched yet.";
    families.gauge("kiln_stream_source_lag", help, &lags);
}

fn about_http(families: &mut Families, node: &Node) {
    let http = &node.http;
    families.one_gauge(
        "kiln_http_connections",
        "HTTP connections open now.",
        http.connections() as f64,
    );
    families.one_gauge(
        "kiln_http_connections_max",
        "HTTP connections that may be open.",
        node.config.max_http_connections.0 as f64,
    );
    families.one_counter(
        "kiln_http_connections_accepted_total",
        "HTTP connections served since the start.",
        http.accepted() as f64,
    );
    families.one_counter(
        "kiln_http_connections_rejected_total",
        "HTTP connections turned away because there were too many.",
        http.rejected() as f64,
    );
    let classes = [("2xx", 2), ("3xx", 3), ("4xx", 4), ("5xx", 5)];
    let labels = classes.map(|(class, _)| [("status", class)]);
    let values: Vec<_> = labels
        .iter()
        .zip(&classes)
        .map(|(labels, (_, digit))| (labels.as_slice(), http.answers(*digit) as f64))
        .collect();
    families.counter("kiln_http_requests_total", "HTTP requests by class of status.", &values);
}

fn about_commands(families: &mut Families, node: &Node, stats: &Stats) {
    let totals = node.totals();
    let cases: [(&str, &str, u64); 17] = [
        ("get", "hit", stats.get_hits),
        ("get", "miss", stats.get_misses),
        ("store", "too_large", stats.too_large),
        ("store", "no_memory", stats.no_memory),
        ("cas", "hit", stats.cas_hits),
        ("cas", "miss", stats.cas_misses),
        ("cas", "badval", stats.cas_badval),
        ("delete", "hit", stats.delete_hits),
        ("delete", "miss", stats.delete_misses),
        ("increment", "hit", stats.incr_hits),
        ("increment", "miss", stats.incr_misses),
        ("decrement", "hit", stats.decr_hits),
        ("decrement", "miss", stats.decr_misses),
        ("touch", "hit", stats.touch_hits),
        ("touch", "miss", stats.touch_misses),
        ("authenticate", "ok", totals.auth_cmds.saturating_sub(totals.auth_errors)),
        ("authenticate", "refused", totals.auth_errors),
    ];
    let labels = cases.map(|(command, result, _)| [("command", command), ("result", result)]);
    let values: Vec<_> = labels
        .iter()
        .zip(&cases)
        .map(|(labels, case)| (labels.as_slice(), case.2 as f64))
        .collect();
    families.counter(
        "kiln_commands_total",
        "Commands by what they do and what became of them.",
        &values,
    );
    families.one_counter(
        "kiln_store_commands_total",
        "Commands that write a value, whatever became of them.",
        stats.writes as f64,
    );
    families.one_counter(
        "kiln_meta_commands_total",
        "Commands in the meta form; also counted by what they do.",
        totals.cmd_meta as f64,
    );
    let protocols = [
        ([("protocol", "memcached")], totals.memcached_ops as f64),
        ([("protocol", "native")], totals.native_ops as f64),
        ([("protocol", "http")], node.http.operations() as f64),
    ];
    let protocols: Vec<_> = protocols.iter().map(|(l, count)| (l.as_slice(), *count)).collect();
    families.counter(
        "kiln_operations_total",
        "Operations on items, by what the client speaks.",
        &protocols,
    );
    families.one_counter("kiln_flushes_total", "Flushes of everything.", stats.flushes as f64);
}

fn about_items(families: &mut Families, node: &Node, stats: &Stats) {
    let seconds = |ms: u64| ms as f64 / 1_000.0;
    families.one_gauge("kiln_items", "Items held now.", stats.items as f64);
    families.one_gauge(
        "kiln_items_with_ttl",
        "Items held now that will expire.",
        stats.items_with_ttl as f64,
    );
    families.one_counter("kiln_items_stored_total", "Items stored.", stats.total_items as f64);
    families.one_gauge(
        "kiln_memory_limit_bytes",
        "Ceiling of items, index and policy together.",
        node.memory() as f64,
    );
    let memory = [
        ([("use", "items")], stats.item_bytes),
        ([("use", "index")], stats.index_bytes),
        ([("use", "policy")], stats.heap_bytes),
    ];
    let memory: Vec<_> = memory.iter().map(|(l, bytes)| (l.as_slice(), *bytes as f64)).collect();
    families.gauge("kiln_memory_used_bytes", "Memory in use, by what for.", &memory);
    families.one_gauge(
        "kiln_memory_pages_bytes",
        "Memory taken in whole pages for items and index, used or free.",
        stats.page_bytes as f64,
    );
    families.one_gauge(
        "kiln_values_pinned",
        "Large values already removed but still being sent to slow readers.",
        stats.zombies as f64,
    );
    families.one_counter(
        "kiln_evictions_total",
        "Items dropped for want of room.",
        stats.evictions as f64,
    );
    families.one_counter(
        "kiln_evictions_unfetched_total",
        "Items dropped for want of room that were never read.",
        stats.evicted_unfetched as f64,
    );
    families.one_gauge(
        "kiln_evicted_idle_seconds",
        "How long the item dropped last had not been used.",
        stats.evicted_idle_s as f64,
    );
    families.one_counter(
        "kiln_expirations_total",
        "Items whose end came.",
        stats.expirations as f64,
    );
    families.one_counter(
        "kiln_expirations_unfetched_total",
        "Items whose end came that were never read.",
        stats.expired_unfetched as f64,
    );
    families.one_counter(
        "kiln_expiry_lag_seconds_total",
        "Time between the end of items and their removal, summed; divide by expirations.",
        seconds(stats.expiry_lag_ms_sum),
    );
    families.one_gauge(
        "kiln_expiry_lag_seconds_max",
        "The longest time between the end of an item and its removal.",
        seconds(stats.expiry_lag_ms_max),
    );
    families.one_counter(
        "kiln_items_moved_total",
        "Items moved to free a page for another size.",
        stats.moved as f64,
    );
}

/// For which sizes hit ratios are estimated: parts and multiples of the memory there is.
pub(super) const FACTORS: [(f64, &str); 7] = [
    (0.125, "0.125"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.0, "2"),
    (4.0, "4"),
    (8.0, "8"),
];

/// What the hit ratio would be with so many times the memory. Nothing when too little was seen.
pub(super) fn estimated(cache: &Cache) -> Option<Vec<f64>> {
    let stats = cache.store.stats();
    let used = (stats.item_bytes + stats.index_bytes + stats.heap_bytes) as f64;
    let fit = cache.store.memory() as f64 * stats.items as f64 / used.max(1.0);
    cache.curve.hit_ratios(&FACTORS.map(|(factor, _)| factor * fit))
}

/// Times of operations.
fn about_times(families: &mut Families, node: &Node) {
    let of_workers = |protocol: Protocol| {
        let times = node.workers.iter().map(move |worker| &worker.op_times[protocol as usize]);
        times.collect::<Vec<_>>()
    };
    let protocols = [
        ("memcached", of_workers(Protocol::Memcached)),
        ("native", of_workers(Protocol::Native)),
        ("http", node.http.op_times().iter().collect()),
    ];
    let mut values = Vec::new();
    for (protocol, times) in &protocols {
        for (place, kind) in KINDS.iter().enumerate() {
            let summed = op_times::sum(times.iter().copied(), place);
            values.push(([("protocol", *protocol), ("operation", *kind)], summed));
        }
    }
    families.histogram(
        "kiln_operation_duration_seconds",
        "Time of operations on the node, by protocol and kind; of one batch in some, and each for \
         that many.",
        &values,
    );
}

/// What the figures without a cache are the sums of.
fn about_caches(families: &mut Families, node: &Node) {
    let table = node.caches.load();
    let caches: Vec<_> = table
        .iter()
        .map(|cache| (&*cache.settings.name, cache.store.stats(), cache.store.memory()))
        .collect();
    let mut figures = |name: &str, help: &str, is_counter: bool, of: &dyn Fn(&Stats) -> u64| {
        let labels: Vec<_> = caches.iter().map(|(name, ..)| [("cache", *name)]).collect();
        let values: Vec<_> = labels
            .iter()
            .zip(&caches)
            .map(|(labels, (_, stats, _))| (labels.as_slice(), of(stats) as f64))
            .collect();
        if is_counter {
            families.counter(name, help, &values);
        } else {
            families.gauge(name, help, &values);
        }
    };
    figures("kiln_cache_items", "Items held now, by cache.", false, &|stats| stats.items);
    figures("kiln_cache_memory_used_bytes", "Memory in use, by cache.", false, &|stats| {
        stats.item_bytes + stats.index_bytes + stats.heap_bytes
    });
    figures("kiln_cache_hits_total", "Reads that found their item, by cache.", true, &|stats| {
        stats.get_hits
    });
    figures("kiln_cache_misses_total", "Reads that did not, by cache.", true, &|stats| {
        stats.get_misses
    });
    figures(
        "kiln_cache_evictions_total",
        "Items dropped for want of room, by cache.",
        true,
        &|stats| stats.evictions,
    );
    let labels: Vec<_> = caches.iter().map(|(name, ..)| [("cache", *name)]).collect();
    let limits: Vec<_> = labels
        .iter()
        .zip(&caches)
        .map(|(labels, (_, _, memory))| (labels.as_slice(), *memory as f64))
        .collect();
    families.gauge("kiln_cache_memory_limit_bytes", "Memory ceiling, by cache.", &limits);
    let ratios: Vec<_> = labels
        .iter()
        .zip(&caches)
        .filter(|(_, (_, stats, _))| stats.get_hits + stats.get_misses > 0)
        .map(|(labels, (_, stats, _))| {
            let reads = (stats.get_hits + stats.get_misses) as f64;
            (labels.as_slice(), stats.get_hits as f64 / reads)
        })
        .collect();
    let help = "Reads since the start that found their item, of all, by cache.";
    families.gauge("kiln_cache_hit_ratio", help, &ratios);
    let estimates: Vec<_> = table
        .iter()
        .filter_map(|cache| Some((&*cache.settings.name, estimated(cache)?)))
        .flat_map(|(name, ratios)| {
            let of_cache = move |((_, label), ratio)| ([("cache", name), ("memory", label)], ratio);
            FACTORS.into_iter().zip(ratios).map(of_cache)
        })
        .collect();
    let values: Vec<_> =
        estimates.iter().map(|(labels, ratio)| (labels.as_slice(), *ratio)).collect();
    let help = "What the hit ratio of the last minutes would have been with so many times the \
                memory, estimated for a cache that drops the least recently used item.";
    families.gauge("kiln_cache_estimated_hit_ratio", help, &values);
}

fn about_process(families: &mut Families, node: &Node, usage: Usage) {
    families.one_gauge(
        "process_resident_memory_bytes",
        "Memory in RAM.",
        usage.resident_bytes as f64,
    );
    families.one_gauge(
        "process_virtual_memory_bytes",
        "Address space.",
        usage.virtual_bytes as f64,
    );
    families.one_counter(
        "process_cpu_seconds_total",
        "Processor time in user and kernel mode.",
        usage.cpu_user_s + usage.cpu_system_s,
    );
    families.one_gauge("process_open_fds", "Open file descriptors.", usage.open_files as f64);
    if let Some(max) = usage.open_files_max {
        families.one_gauge("process_max_fds", "File descriptors that may be open.", max as f64);
    }
    families.one_gauge("process_threads", "Threads.", usage.threads as f64);
    families.one_gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        node.clock.start_ms() as f64 / 1_000.0,
    );
}

/// Pairs of label and value.
type Labels<'a> = &'a [(&'a str, &'a str)];

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn one_gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help, &[(&[], value)]);
    }

    fn one_counter(&mut self, name: &str, help: &str, value: f64) {
        self.counter(name, help, &[(&[], value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, values: &[(Labels<'_>, f64)]) {
        self.add(name, help, MetricType::GAUGE, values, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    fn counter(&mut self, name: &str, help: &str, values: &[(Labels<'_>, f64)]) {
        self.add(name, help, MetricType::COUNTER, values, |metric, value| {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        });
    }

    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: &[([(&str, &str); N], Summed)],
    ) {
        let metrics = values.iter().map(|(labels, summed)| {
            let mut histogram = Histogram::default();
            histogram.set_sample_count(summed.count);
            histogram.set_sample_sum(summed.sum);
            let buckets = summed.buckets.iter().map(|(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(*count);
                bucket
            });
            histogram.set_bucket(buckets.collect());
            let mut metric = Metric::default();
            metric.set_label(labels.iter().map(|(name, value)| label(name, value)).collect());
            metric.set_histogram(histogram);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics.collect());
        self.0.push(family);
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: &[(Labels<'_>, f64)],
        set: impl Fn(&mut Metric, f64),
    ) {
        // The format has no family without a value.
        if values.is_empty() {
            return;
        }
        let metrics = values.iter().map(|(labels, value)| {
            let mut metric = Metric::default();
            metric.set_label(labels.iter().map(|(name, value)| label(name, value)).collect());
            set(&mut metric, *value);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics.collect());
        self.0.push(family);
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn open_metrics_names_families_of_counters_without_total_and_ends() {
        let text = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"1\"} 3\n\
                    # HELP b Of b.\n# TYPE b gauge\nb 1\n\
                    # HELP c_total Of c.\n# TYPE c_total counter\nc_total 4\n";
        let open = "# HELP a Of a.\n# TYPE a counter\na_total{x=\"1\"} 3\n\
                    # HELP b Of b.\n# TYPE b gauge\nb 1\n\
                    # HELP c Of c.\n# TYPE c counter\nc_total 4\n# EOF\n";
        assert_eq!(as_open_metrics(text), open);
    }

    #[test]
    fn open_metrics_is_for_who_asks_for_it() {
        let wants = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            wants_open_metrics(&headers)
        };
        assert!(wants("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4"));
        assert!(!wants("*/*") && !wants("text/plain"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants_open_metrics(&HeaderMap::new()));
    }
}
