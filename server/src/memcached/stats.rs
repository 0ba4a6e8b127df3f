//! What `stats` and its sub-commands answer, under the names that memcached's users, clients and
//! exporters read. Nothing is counted here; figures that Kiln has no counterpart for are left out
//! rather than invented, but for those that exporters refuse to do without.

use std::io::Write;

use kiln_engine::ClassUsage;
use kiln_engine::policy::PolicyKind;
use kiln_protocol::memcached::{Stats, StatsWriter, lines};

use crate::connections::Endpoint;
use crate::memcached::PROTOCOL_VERSION;
use crate::node::Node;
use crate::process::Usage;

/// Answers all but `stats reset`.
pub(super) fn answer(node: &Node, which: Stats, now_ms: u64, out: &mut Vec<u8>) {
    match which {
        Stats::General => general(node, now_ms, StatsWriter::new(out)),
        Stats::Settings => settings(node, StatsWriter::new(out)),
        Stats::Items => items(node, StatsWriter::new(out)),
        Stats::Slabs => slabs(node, StatsWriter::new(out)),
        Stats::Sizes => sizes(node, StatsWriter::new(out)),
        Stats::Connections => connections(node, now_ms, StatsWriter::new(out)),
        Stats::Reset => out.extend_from_slice(lines::RESET),
        Stats::DetailOn | Stats::DetailOff | Stats::DetailDump => {
            out.extend_from_slice(lines::DETAIL_NOT_ALLOWED);
        }
        Stats::Cachedump { class, limit } => cachedump(node, class, limit, now_ms, out),
    }
}

fn general(node: &Node, now_ms: u64, mut out: StatsWriter<'_>) {
    let stats = node.default_cache().store.stats();
    let totals = node.totals();
    let usage = Usage::read();
    let (user, system) = usage.map_or((0.0, 0.0), |usage| (usage.cpu_user_s, usage.cpu_system_s));
    let gets = stats.get_hits + stats.get_misses;
    let touches = stats.touch_hits + stats.touch_misses;
    let connections = node.connections.open();
    out.stat("pid", std::process::id())
        .stat("uptime", node.clock.uptime().as_secs())
        .stat("time", now_ms / 1000)
        .stat("version", PROTOCOL_VERSION)
        .stat("kiln_version", env!("CARGO_PKG_VERSION"))
        .stat("pointer_size", usize::BITS)
        .stat("rusage_user", format_args!("{user:.6}"))
        .stat("rusage_system", format_args!("{system:.6}"))
        .stat("max_connections", node.config.max_connections.0)
        .stat("curr_connections", connections)
        .stat("total_connections", totals.total_connections)
        .stat("rejected_connections", node.connections.rejected())
        .stat("connection_structures", connections)
        .stat("cmd_get", gets)
        .stat("cmd_set", stats.writes)
        .stat("cmd_flush", stats.flushes)
        .stat("cmd_touch", touches)
        .stat("cmd_meta", totals.cmd_meta)
        .stat("get_hits", stats.get_hits)
        .stat("get_misses", stats.get_misses)
        .stat("get_expired", stats.get_expired)
        .stat("get_flushed", 0)
        .stat("delete_misses", stats.delete_misses)
        .stat("delete_hits", stats.delete_hits)
        .stat("incr_misses", stats.incr_misses)
        .stat("incr_hits", stats.incr_hits)
        .stat("decr_misses", stats.decr_misses)
        .stat("decr_hits", stats.decr_hits)
        .stat("cas_misses", stats.cas_misses)
        .stat("cas_hits", stats.cas_hits)
        .stat("cas_badval", stats.cas_badval)
        .stat("touch_hits", stats.touch_hits)
        .stat("touch_misses", stats.touch_misses)
        .stat("store_too_large", stats.too_large)
        .stat("store_no_memory", stats.no_memory)
        .stat("auth_cmds", totals.auth_cmds)
        .stat("auth_errors", totals.auth_errors)
        .stat("idle_kicks", totals.idle_kicks)
        .stat("bytes_read", totals.bytes_read)
        .stat("bytes_written", totals.bytes_written)
        .stat("limit_maxbytes", node.memory())
        .stat("accepting_conns", u8::from(connections < node.config.max_connections.0))
        .stat("listen_disabled_num", node.connections.rejected())
        .stat("time_in_listen_disabled_us", 0)
        .stat("threads", node.config.threads.0)
        .stat("conn_yields", totals.conn_yields)
        .stat("hash_power_level", stats.index_bytes.max(1).ilog2())
        .stat("hash_bytes", stats.index_bytes)
        .stat("hash_is_expanding", 0)
        .stat("slab_reassign_running", 0)
        .stat("slabs_moved", stats.moved)
        .stat("curr_items", stats.items)
        .stat("total_items", stats.total_items)
        .stat("bytes", stats.item_bytes)
        .stat("expired_unfetched", stats.expired_unfetched)
        .stat("evicted_unfetched", stats.evicted_unfetched)
        .stat("evictions", stats.evictions)
        .stat("reclaimed", stats.expirations)
        .stat("kiln_page_bytes", stats.page_bytes)
        .stat("kiln_expiry_lag_ms_max", stats.expiry_lag_ms_max)
        .stat("kiln_connection_bytes", node.budget.used());
    out.end();
}

fn settings(node: &Node, mut out: StatsWriter<'_>) {
    let config = &node.config;
    let mut port = 0;
    let mut inter = String::new();
    let mut unix = String::from("NULL");
    for endpoint in &node.endpoints.memcached {
        match endpoint {
            Endpoint::Tcp(address) => {
                port = address.port();
                inter = address.ip().to_string();
            }
            Endpoint::Unix(path) => unix = path.to_string(),
        }
    }
    let yes = |on: bool| if on { "yes" } else { "no" };
    out.stat("maxbytes", node.memory())
        .stat("maxconns", config.max_connections.0)
        .stat("tcpport", port)
        .stat("udpport", 0)
        .stat("inter", inter)
        .stat("verbosity", 0)
        .stat("oldest", 0)
        .stat(
            "evictions",
            if node.default_cache().store.policy() == PolicyKind::None { "off" } else { "on" },
        )
        .stat("eviction_policy", node.default_cache().store.policy())
        .stat("domain_socket", unix)
        .stat("umask", format_args!("{:o}", 0o777 & !config.unix_socket_mode.0))
        .stat("growth_factor", "1.00")
        .stat("chunk_size", 24)
        .stat("num_threads", config.threads.0)
        .stat("stat_key_prefix", ":")
        .stat("detail_enabled", "no")
        .stat("reqs_per_event", 64)
        .stat("cas_enabled", "yes")
        .stat("tcp_backlog", 1024)
        .stat("binding_protocol", "ascii")
        .stat("auth_enabled_sasl", "no")
        .stat("auth_enabled_ascii", yes(node.auth.is_some()))
        .stat("item_size_max", node.default_cache().store.value_len_max())
        .stat("maxconns_fast", "yes")
        .stat("hashpower_init", 0)
        .stat("slab_reassign", "yes")
        .stat("slab_automove", 1)
        .stat("slab_chunk_max", 16384)
        .stat("hash_algorithm", "xxh3")
        .stat("lru_crawler", "no")
        .stat("lru_maintainer_thread", "no")
        .stat("idle_timeout", config.idle_timeout.0.as_secs())
        .stat("flush_enabled", yes(!config.disable_flush.0))
        .stat("dump_enabled", "yes")
        .stat("shutdown_command", yes(config.enable_shutdown.0))
        .stat("client_flags_size", 4);
    out.end();
}

/// Kiln evicts over all sizes together, so there is one class that stands for all.
fn items(node: &Node, mut out: StatsWriter<'_>) {
    let stats = node.default_cache().store.stats();
    if stats.items > 0 {
        let mut stat = |name: &str, value: u64| {
            out.stat(format_args!("items:1:{name}"), value);
        };
        stat("number", stats.items);
        stat("mem_requested", stats.item_bytes);
        stat("evicted", stats.evictions);
        stat("evicted_nonzero", 0);
        stat("evicted_time", stats.evicted_idle_s);
        stat("evicted_unfetched", stats.evicted_unfetched);
        stat("outofmemory", stats.no_memory);
        stat("tailrepairs", 0);
        stat("reclaimed", stats.expirations);
        stat("expired_unfetched", stats.expired_unfetched);
        stat("crawler_reclaimed", 0);
        stat("crawler_items_checked", 0);
        stat("lrutail_reflocked", 0);
        stat("direct_reclaims", stats.evictions);
    }
    out.end();
}

fn slabs(node: &Node, mut out: StatsWriter<'_>) {
    const PAGE: u64 = 64 * 1024;
    let classes = node.default_cache().store.classes();
    for (number, class) in (1_u32..).zip(&classes) {
        let ClassUsage { slot_len, pages, used, free } = *class;
        let per_page = PAGE / slot_len as u64;
        let mut stat = |name: &str, value: u64| {
            out.stat(format_args!("{number}:{name}"), value);
        };
        stat("chunk_size", slot_len as u64);
        stat("chunks_per_page", per_page);
        stat("total_pages", pages);
        stat("total_chunks", used + free);
        stat("used_chunks", used);
        stat("free_chunks", free);
        stat("free_chunks_end", 0);
    }
    out.stat("active_slabs", classes.len())
        .stat("total_malloced", node.default_cache().store.stats().page_bytes);
    out.end();
}

fn sizes(node: &Node, mut out: StatsWriter<'_>) {
    for class in node.default_cache().store.classes() {
        if class.used > 0 {
            out.stat(class.slot_len, class.used);
        }
    }
    out.end();
}

/// Some of the items, of the one class that `items` shows. A look for people: it answers no more
/// than memcached does, and gives up where few items are spread over a large index.
fn cachedump(node: &Node, class: u32, limit: u32, now_ms: u64, out: &mut Vec<u8>) {
    const ANSWER_LEN_MAX: usize = 2 << 20;
    const STEPS_MAX: usize = 1024;
    const STEP_ITEMS: usize = 64;
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let end = out.len() + ANSWER_LEN_MAX - lines::END.len();
    let (mut cursor, mut shown) = (Some(0), 0);
    for _ in 0..STEPS_MAX {
        let Some(at) = cursor.filter(|_| class == 1 && shown < limit && out.len() < end) else {
            break;
        };
        cursor = node
            .default_cache()
            .store
            .scan(at, STEP_ITEMS, now_ms, |entry| {
                // A key that only the meta protocol can write, in base64, would break the lines.
                if shown == limit || entry.key.iter().any(|b| *b == b' ' || b.is_ascii_control()) {
                    return;
                }
                let start = out.len();
                let ends_s = entry.info.deadline_ms.map_or(0, |ms| ms / 1000);
                out.extend_from_slice(b"ITEM ");
                out.extend_from_slice(entry.key);
                // Writing to a vector does not fail.
                let _ = write!(out, " [{} b; {ends_s} s]\r\n", entry.info.value_len);
                if out.len() > end {
                    out.truncate(start);
                } else {
                    shown += 1;
                }
            })
            .next;
    }
    out.extend_from_slice(lines::END);
}

fn connections(node: &Node, now_ms: u64, mut out: StatsWriter<'_>) {
    for worker in &node.workers {
        worker.register.each(|peer| {
            let idle_s = now_ms.saturating_sub(peer.active_ms()) / 1000;
            let state = if peer.is_resting() { "conn_read" } else { "conn_parse_cmd" };
            out.stat(format_args!("{}:addr", peer.fd), &peer.remote)
                .stat(format_args!("{}:listen_addr", peer.fd), &peer.local)
                .stat(format_args!("{}:state", peer.fd), state)
                .stat(format_args!("{}:secs_since_last_cmd", peer.fd), idle_s);
        });
    }
    out.end();
}
