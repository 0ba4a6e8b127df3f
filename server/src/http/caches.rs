//! Caches: `/v1/caches` and `/v1/caches/{cache}`.
//!
//! Making a cache is a `PUT`, so that it can be repeated: a cache that exists with the settings
//! asked for is as good as made. Settings that are not named have their defaults when a cache is
//! made, and stay as they are when one is changed.

use std::{future::poll_fn, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use kiln_cluster::{
    node::{Refusal, Reply},
    topology::{Topology, TopologyCommand},
};
use kiln_protocol::native::{ErrorCode, admin::CacheSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    gateway::Gateway,
    items::{cache_name, cache_of, no_such_cache},
    object::{Object, whole},
    problem::{Kind, Problem},
    query::Query,
    upload,
};
use crate::{
    caches::{Cache, CacheError, CacheSettings, DEFAULT, SettingsError},
    cluster::spec_of,
    node::Node,
};

/// Bytes of a cache's settings.
const BODY_LEN_MAX: usize = 16 << 10;

/// Who is told that memory is being freed may ask again so soon.
const BUSY_RETRY_MS: u64 = 100;

/// Settings of a cache. Those that are not named are the defaults.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = CacheSettings)]
pub(super) struct Settings {
    /// Whether copies agree before a write is answered.
    #[schema(pattern = "^(strong|eventual)$", example = "strong")]
    mode: Option<String>,
    /// Copies of each item, on as many nodes.
    #[schema(minimum = 1, maximum = 8, example = 1)]
    #[serde(deserialize_with = "whole")]
    copies: Option<u32>,
    /// Copies that must be in sync for a write.
    #[schema(minimum = 1, maximum = 8, example = 1)]
    #[serde(deserialize_with = "whole")]
    min_in_sync: Option<u32>,
    /// Where reads go.
    #[schema(pattern = "^(primary|leased|any)$", example = "leased")]
    read: Option<String>,
    /// What leaves when the cache is full.
    #[schema(pattern = "^(adaptive|lru|lfu|none)$", example = "adaptive")]
    eviction: Option<String>,
    /// Memory on each node, in bytes; 0 lets the node choose.
    #[schema(minimum = 0, example = 8_388_608)]
    #[serde(deserialize_with = "whole")]
    memory: Option<u64>,
    /// Milliseconds that items live when a write names no end; 0 is for ever.
    #[schema(minimum = 0, example = 60_000)]
    #[serde(deserialize_with = "whole")]
    default_ttl_ms: Option<u64>,
    /// Longest value, in bytes; 0 is the node's limit.
    #[schema(minimum = 0, example = 1_048_576)]
    #[serde(deserialize_with = "whole")]
    max_item_size: Option<u64>,
}

/// A cache and its figures on this node.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Cache)]
pub(super) struct Info {
    /// Its name.
    #[schema(example = "default")]
    name: String,
    /// Whether copies agree before a write is answered: `strong` or `eventual`.
    mode: String,
    /// Copies of each item.
    #[schema(minimum = 1)]
    copies: u32,
    /// Copies that must be in sync for a write.
    #[schema(minimum = 1)]
    min_in_sync: u32,
    /// Where reads go: `primary`, `leased` or `any`.
    read: String,
    /// What leaves when the cache is full: `adaptive`, `lru`, `lfu` or `none`.
    eviction: String,
    /// Memory ceiling on this node now, in bytes.
    #[schema(minimum = 0)]
    memory: u64,
    /// Milliseconds that items live when a write names no end; 0 is for ever.
    #[schema(minimum = 0)]
    default_ttl_ms: u64,
    /// Longest value, in bytes.
    #[schema(minimum = 0)]
    max_item_size: u64,
    /// What it holds, and what happened to it.
    figures: CacheFigures,
}

/// What a cache holds on this node, and what happened to it since the node started.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct CacheFigures {
    /// Items now.
    #[schema(minimum = 0)]
    items: u64,
    /// Memory used now, in bytes.
    #[schema(minimum = 0)]
    bytes: u64,
    /// Reads that found their item.
    #[schema(minimum = 0)]
    hits: u64,
    /// Reads that did not.
    #[schema(minimum = 0)]
    misses: u64,
    /// Values written.
    #[schema(minimum = 0)]
    stores: u64,
    /// Items deleted by request.
    #[schema(minimum = 0)]
    deletes: u64,
    /// Items that left for want of room.
    #[schema(minimum = 0)]
    evictions: u64,
    /// Items whose end came.
    #[schema(minimum = 0)]
    expirations: u64,
}

/// All caches.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CacheList)]
pub(super) struct List {
    /// By name.
    caches: Vec<Info>,
}

/// `GET /v1/caches`.
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let table = gateway.node.caches.load();
    Ok(fresh(Json(List { caches: table.iter().map(|cache| info(cache)).collect() })))
}

/// `GET /v1/caches/{cache}`.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let cache = cache_of(&gateway.node, last_segment(request.uri().path()))?;
    Ok(fresh(Json(info(&cache))))
}

/// `PUT /v1/caches/{cache}`.
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (name, wish) = wish(&gateway.node, request).await?;
    let node = &gateway.node;
    let spec = wish.over(CacheSpec { name, ..CacheSpec::default() });
    let settings = CacheSettings::from_spec(&spec, node.value_len_max()).map_err(unfit)?;
    let (cache, is_new) = make(node, settings).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, fresh(Json(info(&cache)))).into_response())
}

/// `PATCH /v1/caches/{cache}`.
pub(super) async fn change(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (name, wish) = wish(&gateway.node, request).await?;
    let node = &gateway.node;
    let cache = {
        let table = node.caches.load();
        let found = table.by_name(&name).map(|(_, cache)| Arc::clone(cache));
        found.ok_or_else(no_such_cache)?
    };
    let settings =
        CacheSettings::from_spec(&wish.over(cache.settings.spec()), node.value_len_max())
            .map_err(unfit)?;
    if !cache.settings.serves_as(&settings) {
        let detail = "the settings of a cache stay as they were when it was made; drop it and make \
                      it anew";
        return Err(Problem::new(Kind::Conflict, detail));
    }
    Ok(fresh(Json(info(&cache))))
}

/// `DELETE /v1/caches/{cache}`.
pub(super) async fn drop(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let node = &gateway.node;
    let name = cache_name(last_segment(request.uri().path()))?;
    let Some(cluster) = node.cluster.get() else {
        node.caches.drop_cache(&name, node.clock.now_ms()).map_err(refused)?;
        node.topology_changed();
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    if node.caches.load().by_name(&name).is_none() {
        return Err(no_such_cache());
    }
    if name == DEFAULT {
        return Err(refused(CacheError::Default));
    }
    let command = TopologyCommand::DropCache { name: name.clone() };
    let gone = move |topology: &Topology| !topology.caches.contains_key(&name);
    cluster.decide(command, gone).await.map_err(undecided)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /v1/caches/{cache}/keys`.
pub(super) async fn flush(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let node = &gateway.node;
    let cache = cache_of(node, request.uri().path().split('/').nth(3).unwrap_or_default())?;
    if node.config.disable_flush.0 {
        return Err(Problem::new(Kind::Forbidden, "flush is turned off on this node"));
    }
    match (node.cluster.get(), cache.cluster()) {
        (None, _) => cache.flush(None, node.clock.now_ms()),
        (Some(cluster), Some(known)) => {
            let wave = cluster.clear(known);
            poll_fn(|task| wave.poll(task)).await;
            let replies = wave.take();
            if replies.contains(&Reply::NotApplied(Refusal::Unsupported)) {
                let detail = "an eventual cache cannot be emptied; drop it and make it anew";
                return Err(Problem::new(Kind::Unsupported, detail));
            }
            if replies.iter().any(|reply| !matches!(reply, Reply::Done(_))) {
                let problem = Problem::new(
                    Kind::Unavailable,
                    "not all of the cache could be emptied; try again",
                );
                return Err(problem.retry_after_ms(BUSY_RETRY_MS));
            }
        }
        (Some(_), None) => {
            let problem =
                Problem::new(Kind::Unavailable, "the cluster does not know the cache yet");
            return Err(problem.retry_after_ms(BUSY_RETRY_MS));
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Makes a cache, or finds it. True when it is new.
async fn make(node: &Node, settings: CacheSettings) -> Result<(Arc<Cache>, bool), Problem> {
    node.check_copies(&settings).map_err(|error| Problem::new(Kind::Unfit, error.to_string()))?;
    let Some(cluster) = node.cluster.get() else {
        let made = node.caches.create(settings, node.clock.now_ms()).map_err(refused)?;
        if made.1 {
            node.topology_changed();
        }
        return Ok(made);
    };
    let name = settings.name.to_string();
    if let Some((_, cache)) = node.caches.load().by_name(&name) {
        return if cache.settings.serves_as(&settings) {
            Ok((Arc::clone(cache), false))
        } else {
            Err(refused(CacheError::Exists(settings.name)))
        };
    }
    let command = cluster.make_cache(name.clone(), spec_of(&settings));
    let wanted = name.clone();
    let made = move |topology: &Topology| topology.caches.contains_key(&wanted);
    cluster.decide(command, made).await.map_err(undecided)?;
    let table = node.caches.load();
    let found = table.by_name(&name).map(|(_, cache)| (Arc::clone(cache), true));
    found.ok_or_else(|| {
        let detail = "the cache was made, but this node could not make room for it; see its log";
        Problem::new(Kind::NoRoom, detail)
    })
}

/// Why the controller group did not do what was asked.
fn undecided((code, text): (ErrorCode, String)) -> Problem {
    let kind = match code {
        ErrorCode::BadArgument => Kind::Unfit,
        ErrorCode::Forbidden => Kind::Forbidden,
        ErrorCode::NoSuchCache => return no_such_cache(),
        ErrorCode::CacheExists => Kind::Conflict,
        ErrorCode::OutOfMemory | ErrorCode::LimitReached => Kind::NoRoom,
        ErrorCode::DeadlineExceeded => Kind::Indeterminate,
        ErrorCode::Unsupported => Kind::Unsupported,
        ErrorCode::Internal => Kind::Internal,
        _ => Kind::Unavailable,
    };
    let problem = Problem::new(kind, text);
    if kind == Kind::Unavailable { problem.retry_after_ms(BUSY_RETRY_MS) } else { problem }
}

/// The cache that a request names, and the settings in its body.
async fn wish(node: &Node, request: Request) -> Result<(String, Settings), Problem> {
    let (parts, body) = request.into_parts();
    Query::parse(parts.uri.query(), &[])?;
    let name = cache_name(last_segment(parts.uri.path()))?;
    let upload = upload::receive(node, body, BODY_LEN_MAX, "").await?;
    if upload.bytes.is_empty() {
        return Ok((name, Settings::default()));
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_json = content_type.is_none_or(|text| {
        let essence = text.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"application/json")
            || essence.eq_ignore_ascii_case(b"application/merge-patch+json")
    });
    if !is_json {
        let detail = "the settings of a cache are application/json";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    let Object(settings) = serde_json::from_slice(&upload.bytes)
        .map_err(|error| Problem::bad_request(format!("the settings are wrong: {error}")))?;
    Ok((name, settings))
}

impl Settings {
    /// What is named here, and the rest from `base`.
    fn over(self, base: CacheSpec) -> CacheSpec {
        CacheSpec {
            name: base.name,
            mode: self.mode.unwrap_or(base.mode),
            copies: self.copies.unwrap_or(base.copies),
            min_in_sync: self.min_in_sync.unwrap_or(base.min_in_sync),
            read: self.read.unwrap_or(base.read),
            eviction: self.eviction.unwrap_or(base.eviction),
            memory: self.memory.unwrap_or(base.memory),
            default_ttl_ms: self.default_ttl_ms.unwrap_or(base.default_ttl_ms),
            max_item_size: self.max_item_size.unwrap_or(base.max_item_size),
        }
    }
}

fn info(cache: &Cache) -> Info {
    let stats = cache.store.stats();
    let spec = cache.settings.spec();
    Info {
        name: spec.name,
        mode: spec.mode,
        copies: spec.copies,
        min_in_sync: spec.min_in_sync,
        read: spec.read,
        eviction: spec.eviction,
        memory: cache.store.memory() as u64,
        default_ttl_ms: spec.default_ttl_ms,
        max_item_size: spec.max_item_size,
        figures: CacheFigures {
            items: stats.items,
            bytes: stats.item_bytes + stats.index_bytes + stats.heap_bytes,
            hits: stats.get_hits,
            misses: stats.get_misses,
            stores: stats.total_items,
            deletes: stats.delete_hits,
            evictions: stats.evictions,
            expirations: stats.expirations,
        },
    }
}

/// Why there can be no cache of these settings.
fn unfit(error: SettingsError) -> Problem {
    let kind = match error {
        SettingsError::Name | SettingsError::Word { .. } => Kind::BadRequest,
        _ => Kind::Unfit,
    };
    Problem::new(kind, error.to_string())
}

/// Why a cache was not made or dropped.
fn refused(error: CacheError) -> Problem {
    let kind = match &error {
        CacheError::Exists(_) => Kind::Conflict,
        CacheError::NoSuchCache => return no_such_cache(),
        CacheError::Default => Kind::Forbidden,
        CacheError::TooMany | CacheError::NoMemory { .. } | CacheError::DefaultFull { .. } => {
            Kind::NoRoom
        }
        CacheError::TooLittle | CacheError::ValueTooLarge { .. } => Kind::Unfit,
        CacheError::Busy => Kind::Unavailable,
        CacheError::Store(_) => Kind::Internal,
    };
    let problem = Problem::new(kind, error.to_string());
    if kind == Kind::Unavailable { problem.retry_after_ms(BUSY_RETRY_MS) } else { problem }
}

/// An answer that is true now only.
fn fresh(answer: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
}

fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
