//! Metrics in Prometheus' text format, version 0.0.4.
//!
//! Nothing is counted here: each scrape sums what workers and store count anyway. A figure thus
//! has one home, and a node that nobody scrapes spends nothing on metrics.

use kiln_engine::Stats;
use prometheus::{
    Encoder, TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{node::Node, process::Usage};

/// All metrics, now.
pub(super) fn render(node: &Node) -> prometheus::Result<String> {
    let mut families = Families::default();
    about_node(&mut families, node);
    let stats = node.caches.stats();
    about_commands(&mut families, node, &stats);
    about_items(&mut families, node, &stats);
    about_caches(&mut families, node);
    if let Some(usage) = Usage::read() {
        about_process(&mut families, node, usage);
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families.0, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
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

    fn add(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: &[(Labels<'_>, f64)],
        set: impl Fn(&mut Metric, f64),
    ) {
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
