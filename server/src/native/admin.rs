//! What is asked rarely: caches, topology, figures.

use kiln_protocol::native::{
    Body, ErrorCode, Failure,
    admin::{CacheInfo, CacheList, KeyInfo, NodeInfo, Opened, ProtocolInfo},
    respond,
};

use crate::{
    caches::{Cache, CacheError, CacheSettings, RESERVED, Table},
    connection::Context,
    hottest, latency,
    listen::Protocol,
    native::{RETRY_AFTER_MS, batch::no_such_cache, cluster_view, session::Native, streams},
    node::Node,
    process::Usage,
};

/// Hottest and largest keys that are told.
const KEYS_MAX: usize = 16;

/// Items looked at, over all caches, for the largest ones: a worker does it between two requests.
const SAMPLE_ITEMS: usize = 2_048;

/// Runs a request and answers it.
pub(super) fn run(
    session: &mut Native,
    context: &mut Context<'_>,
    table: &Table,
    id: u32,
    body: &Body<'_>,
    replies: &mut Vec<u8>,
) {
    let node = context.node;
    let refuse = |replies: &mut Vec<u8>, code, text: &str| {
        respond::failure(replies, id, &Failure::refused(code, text));
    };
    match body {
        Body::OpenCache { name } => {
            let Some((key, cache)) = table.by_name(name) else { return no_such_cache(replies, id) };
            if cache.is_reserved() {
                return refuse(replies, ErrorCode::Forbidden, RESERVED);
            }
            match session.open(table, key, replies) {
                Some(handle) => {
                    let spec = cache.settings_now().spec();
                    respond::structure(replies, id, &Opened { handle, spec });
                }
                None => refuse(
                    replies,
                    ErrorCode::LimitReached,
                    "this connection has as many caches open as hello announced",
                ),
            }
        }
        Body::CreateCache(spec) => {
            let settings = match CacheSettings::from_spec(spec, node.value_len_max()) {
                Ok(settings) => settings,
                Err(error) => {
                    return refuse(replies, ErrorCode::BadArgument, &error.to_string());
                }
            };
            if let Err(error) = node.check_copies(&settings) {
                return refuse(replies, ErrorCode::BadArgument, &error.to_string());
            }
            match node.caches.create(settings, context.now_ms) {
                Ok((cache, is_new)) => {
                    if is_new {
                        node.topology_changed();
                    }
                    respond::structure(replies, id, &describe(&cache));
                }
                Err(error) => fail(replies, id, &error),
            }
        }
        Body::DropCache { name } => match node.caches.drop_cache(name, context.now_ms) {
            Ok(()) => {
                node.topology_changed();
                respond::ok(replies, id);
            }
            Err(error) => fail(replies, id, &error),
        },
        Body::ListCaches => {
            let caches = table.iter().map(|cache| describe(cache)).collect();
            respond::structure(replies, id, &CacheList { caches });
        }
        Body::ShowCache { name } => match table.by_name(name) {
            Some((_, cache)) => respond::structure(replies, id, &describe(cache)),
            None => no_such_cache(replies, id),
        },
        Body::Flush { cache } => match session.find(table, *cache) {
            Some(_) if node.config.disable_flush.0 => {
                refuse(replies, ErrorCode::Forbidden, "flush is turned off on this node");
            }
            Some(found) => {
                found.cache.flush(None, context.now_ms);
                respond::ok(replies, id);
            }
            None => no_such_cache(replies, id),
        },
        Body::Topology => respond::structure(replies, id, &cluster_view::topology(node)),
        Body::Subscribe(subscribe) => {
            session.mailbox.want_topology(subscribe.topology);
            respond::ok(replies, id);
        }
        Body::Info => respond::structure(replies, id, &info(node, context.now_ms)),
        Body::ClusterStatus => {
            respond::structure(replies, id, &cluster_view::status(node));
        }
        Body::ChangeCluster(_) => {
            let text = "this node takes no other nodes: listen_peer is off";
            refuse(replies, ErrorCode::Unsupported, text);
        }
        Body::Digests(request) => match table.by_name(&request.cache) {
            Some((_, cache)) => match cluster_view::digests(node, cache, request) {
                Ok(digests) => respond::structure(replies, id, &digests),
                Err(text) => refuse(replies, ErrorCode::BadArgument, text),
            },
            None => no_such_cache(replies, id),
        },
        body @ (Body::Ingest(_) | Body::Latest(_) | Body::Windows(_) | Body::Follow(_)) => {
            streams::run(session, node, id, body, replies);
        }
        Body::Unknown { op } => {
            context.worker.counters.protocol_errors.add(1);
            let text = format!("this node knows no operation {op}");
            refuse(replies, ErrorCode::UnknownOperation, &text);
        }
        // These are run elsewhere; should one ever come here, its client must not wait for ever.
        Body::Hello(_) | Body::Data(_) | Body::Batch { .. } | Body::Scan(_) | Body::Ping => {
            refuse(replies, ErrorCode::Internal, "the node lost its way with this request");
        }
    }
}

/// Answers what the controller group was asked for.
pub(super) fn decided(
    context: &Context<'_>,
    id: u32,
    body: &Body<'_>,
    decided: Result<(), (ErrorCode, String)>,
    replies: &mut Vec<u8>,
) {
    if let Err((code, text)) = decided {
        return respond::failure(replies, id, &Failure::refused(code, &text));
    }
    match body {
        // Anew: the table has it now.
        Body::CreateCache(spec) => match context.node.caches.load().by_name(&spec.name) {
            Some((_, cache)) => respond::structure(replies, id, &describe(cache)),
            None => {
                let text =
                    "the cache was made, but this node could not make room for it; see its log";
                respond::failure(replies, id, &Failure::refused(ErrorCode::LimitReached, text));
            }
        },
        _ => respond::ok(replies, id),
    }
}

fn fail(replies: &mut Vec<u8>, id: u32, error: &CacheError) {
    let code = match error {
        CacheError::Exists(_) => ErrorCode::CacheExists,
        CacheError::NoSuchCache => ErrorCode::NoSuchCache,
        CacheError::Default | CacheError::DefaultMemory => ErrorCode::Forbidden,
        CacheError::TooMany | CacheError::NoMemory { .. } => ErrorCode::LimitReached,
        CacheError::TooLittle | CacheError::ValueTooLarge { .. } | CacheError::Growth { .. } => {
            ErrorCode::BadArgument
        }
        CacheError::DefaultFull { .. } | CacheError::Full { .. } => ErrorCode::OutOfMemory,
        CacheError::Busy => ErrorCode::Busy,
        CacheError::Store(_) => ErrorCode::Internal,
    };
    let retry_after_ms = (code == ErrorCode::Busy).then_some(RETRY_AFTER_MS);
    let text = error.to_string();
    respond::failure(replies, id, &Failure { retry_after_ms, ..Failure::refused(code, &text) });
}

fn describe(cache: &Cache) -> CacheInfo {
    let stats = cache.store.stats();
    CacheInfo {
        spec: cache.settings_now().spec(),
        items: stats.items,
        bytes: stats.item_bytes + stats.index_bytes + stats.heap_bytes,
        memory: cache.store.memory() as u64,
        hits: stats.get_hits,
        misses: stats.get_misses,
        stores: stats.total_items,
        deletes: stats.delete_hits,
        evictions: stats.evictions,
        expirations: stats.expirations,
    }
}

fn info(node: &Node, now_ms: u64) -> NodeInfo {
    let totals = node.totals();
    let usage = Usage::read();
    let protocol = |name: &str, protocol, operations| ProtocolInfo {
        protocol: name.to_owned(),
        operations,
        latency_us: latency::quantiles(
            node.workers.iter().map(|worker| &worker.latencies),
            protocol,
        ),
    };
    let table = node.caches.load();
    let mut largest: Vec<KeyInfo> = Vec::new();
    let items = SAMPLE_ITEMS / table.iter().count().max(1);
    for cache in table.iter() {
        let mut sample = cache.largest.lock();
        let clock_ms = cache.clock_ms(now_ms, node.cluster.get().map(|c| &**c));
        largest.extend(sample.sample(&cache.store, items, clock_ms).iter().map(|(key, len)| {
            KeyInfo { cache: cache.settings.name.as_ref().into(), key: key.to_vec(), amount: *len }
        }));
    }
    largest.sort_by_key(|key| std::cmp::Reverse(key.amount));
    largest.truncate(KEYS_MAX);
    NodeInfo {
        name: node.config.name.to_string(),
        version: env!("BUILD_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: node.clock.uptime().as_millis() as u64,
        threads: u32::try_from(node.workers.len()).unwrap_or(u32::MAX),
        memory: node.memory() as u64,
        resident: usage.map_or(0, |usage| usage.resident_bytes),
        cpu_us: usage.map_or(0, |usage| {
            ((usage.cpu_user_s + usage.cpu_system_s) * 1_000_000.0).round() as u64
        }),
        connections: node.connections.open() as u64,
        connections_total: totals.total_connections,
        connections_max: node.config.max_connections.0 as u64,
        bytes_read: totals.bytes_read,
        bytes_written: totals.bytes_written,
        operations: vec![
            protocol("memcached", Protocol::Memcached, totals.memcached_ops),
            protocol("native", Protocol::Native, totals.native_ops),
        ],
        caches: table.iter().map(|cache| describe(cache)).collect(),
        hottest: hottest(node, &table),
        largest,
    }
}

fn hottest(node: &Node, table: &Table) -> Vec<KeyInfo> {
    let sketches: Vec<_> = node.workers.iter().map(|worker| worker.hottest.lock()).collect();
    let found = hottest::merge(sketches.iter().map(|sketch| &**sketch), KEYS_MAX);
    drop(sketches);
    let name = |id| table.iter().find(|cache| cache.id == id).map(|cache| &cache.settings.name);
    // Keys of dropped caches are still in the sketches for a while.
    let known = found.into_iter().filter_map(|(cache, key, count)| {
        let cache = name(cache)?.as_ref().into();
        Some(KeyInfo { cache, key: key.into_vec(), amount: count * hottest::STRIDE })
    });
    known.collect()
}
