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
    topology::{self, OnLoss, Topology, TopologyCommand},
};
use kiln_protocol::native::{ErrorCode, admin::CacheSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    gateway::Gateway,
    items::{cache_name, cache_of, no_such_cache, open_cache_of},
    object::{Object, whole},
    problem::{FieldError, Kind, Problem},
    query::Query,
    upload,
};
use crate::{
    caches::{Cache, CacheError, CacheSettings, DEFAULT, RESERVED, SettingsError},
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
    /// What happens when every copy of a partition is gone: the cache goes on without it, or
    /// refuses its keys until an operator has seen it.
    #[schema(pattern = "^(reset|block)$", example = "reset")]
    on_loss: Option<String>,
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
    /// What happens when every copy of a partition is gone: `reset` or `block`.
    on_loss: &'static str,
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
    Ok(fresh(Json(List { caches: table.iter().map(|cache| info(&gateway.node, cache)).collect() })))
}

/// `GET /v1/caches/{cache}`.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let cache = cache_of(&gateway.node, last_segment(request.uri().path()))?;
    Ok(fresh(Json(info(&gateway.node, &cache))))
}

/// `PUT /v1/caches/{cache}`.
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (name, wish) = wish(&gateway.node, request).await?;
    let node = &gateway.node;
    let on_loss = wish.on_loss()?.unwrap_or(OnLoss::Reset);
    check_on_loss(node, on_loss)?;
    let spec = wish.over(CacheSpec { name, ..CacheSpec::default() });
    let settings = CacheSettings::from_spec(&spec, node.value_len_max()).map_err(unfit)?;
    let (cache, is_new) = make(node, settings, on_loss).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, fresh(Json(info(node, &cache)))).into_response())
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
    if cache.is_reserved() {
        return Err(Problem::new(Kind::Forbidden, RESERVED));
    }
    let before = settings_of(node, &cache);
    let mut wish = wish;
    // As it is shown, which for `default` is what is left to it at the moment.
    wish.memory = wish.memory.filter(|&memory| memory != memory_of(&cache));
    let loses = on_loss_of(node, &name);
    let on_loss = wish.on_loss()?.unwrap_or(loses);
    check_on_loss(node, on_loss)?;
    let wanted = CacheSettings::from_spec(&wish.over(before.spec()), node.value_len_max());
    let wanted = wanted.map_err(unfit)?;
    check_change(&before, &wanted)?;
    if wanted != before || on_loss != loses {
        bring_about(node, wanted, on_loss).await?;
    }
    Ok(fresh(Json(info(node, &cache))))
}

/// Refuses a change of what a cache keeps for its life, field by field.
fn check_change(before: &CacheSettings, wanted: &CacheSettings) -> Result<(), Problem> {
    const PLACE: &str = "says where the items lie";
    const STORE: &str = "says how the memory is organised";
    let mut fixed = Vec::new();
    let mut check = |same: bool, field, why| {
        if !same {
            fixed.push(FieldError::new(field, format!("cannot be changed: it {why}")));
        }
    };
    check(before.mode == wanted.mode, "mode", PLACE);
    check(before.copies == wanted.copies, "copies", PLACE);
    check(before.eviction == wanted.eviction, "eviction", STORE);
    check(before.value_len_max == wanted.value_len_max, "max_item_size", STORE);
    if wanted.memory != before.memory {
        if before.name.as_ref() == DEFAULT {
            let why = "cannot be changed: `default` has what no other cache was given";
            fixed.push(FieldError::new("memory", why));
        } else if wanted.memory == 0 {
            fixed.push(FieldError::new("memory", "must be named, in bytes, to be changed"));
        }
    }
    if fixed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = fixed.iter().map(FieldError::field).collect();
    let detail = format!(
        "nothing was changed, because of {}; drop the cache and make it anew for other settings",
        names.join(", ")
    );
    Err(Problem::new(Kind::Conflict, detail).errors(fixed))
}

/// Gives a cache other settings, on all nodes.
async fn bring_about(node: &Node, wanted: CacheSettings, on_loss: OnLoss) -> Result<(), Problem> {
    let Some(cluster) = node.cluster.get() else {
        node.caches.change(&wanted, node.clock.now_ms()).map_err(refused)?;
        node.topology_changed();
        return Ok(());
    };
    let name = wanted.name.to_string();
    // What this node cannot give, it does not ask of others.
    let is_same = node.caches.check_memory(&name, wanted.memory).map_err(refused)?;
    let known = cluster.topology().caches.get(&name).map_or(0, |spec| spec.memory);
    let spec = spec_of(&wanted);
    let settings = topology::CacheSettings {
        min_in_sync: spec.min_in_sync,
        read: spec.read,
        acks: spec.acks,
        eviction: spec.eviction,
        on_loss,
        value_len_max: spec.value_len_max,
        default_ttl_ms: spec.default_ttl_ms,
        policy: spec.policy,
        memory: if is_same { known } else { spec.memory },
    };
    let shown = settings.clone();
    let command = TopologyCommand::ChangeCache { name: name.clone(), settings };
    let shows = move |topology: &Topology| {
        let spec = topology.caches.get(&name);
        spec.is_none_or(|spec| {
            (spec.min_in_sync, spec.read, spec.on_loss, spec.default_ttl_ms, spec.memory)
                == (
                    shown.min_in_sync,
                    shown.read,
                    shown.on_loss,
                    shown.default_ttl_ms,
                    shown.memory,
                )
        })
    };
    cluster.decide(command, shows).await.map_err(undecided)
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
    open_cache_of(node, last_segment(request.uri().path()))?;
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
    let segment = request.uri().path().split('/').nth(3).unwrap_or_default();
    let cache = open_cache_of(node, segment)?;
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
async fn make(
    node: &Node,
    settings: CacheSettings,
    on_loss: OnLoss,
) -> Result<(Arc<Cache>, bool), Problem> {
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
        let here = settings_of(node, cache);
        return if here.serves_as(&settings) && on_loss_of(node, &name) == on_loss {
            Ok((Arc::clone(cache), false))
        } else {
            Err(refused(CacheError::Exists(settings.name)))
        };
    }
    let spec = topology::CacheSpec { on_loss, ..spec_of(&settings) };
    let command = cluster.make_cache(name.clone(), spec);
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
    fn on_loss(&self) -> Result<Option<OnLoss>, Problem> {
        self.on_loss.as_deref().map_or(Ok(None), |word| match word {
            "reset" => Ok(Some(OnLoss::Reset)),
            "block" => Ok(Some(OnLoss::Block)),
            _ => Err(Problem::bad_request("on_loss must be reset or block")),
        })
    }

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

/// The settings of a cache: of the table, where there is one; the memory is that of this node.
fn settings_of(node: &Node, cache: &Cache) -> CacheSettings {
    let here = cache.settings_now();
    let topology = node.cluster.get().map(|cluster| cluster.topology());
    let spec = topology.as_ref().and_then(|topology| topology.caches.get(&*here.name));
    spec.map_or_else(
        || here.clone(),
        |spec| CacheSettings {
            memory: here.memory,
            value_len_max: here.value_len_max,
            eviction: here.eviction,
            ..CacheSettings::of_table(&here.name, spec, node.value_len_max())
        },
    )
}

/// The ceiling of a cache: what was asked for, or for `default` what is left to it.
fn memory_of(cache: &Cache) -> u64 {
    let is_default = cache.settings.name.as_ref() == DEFAULT;
    let memory = if is_default { cache.store.memory() } else { cache.settings_now().memory };
    memory as u64
}

/// What happens to a cache when every copy of a partition is gone.
fn on_loss_of(node: &Node, name: &str) -> OnLoss {
    let topology = node.cluster.get().map(|cluster| cluster.topology());
    let spec = topology.as_ref().and_then(|topology| topology.caches.get(name));
    spec.map_or(OnLoss::Reset, |spec| spec.on_loss)
}

fn check_on_loss(node: &Node, on_loss: OnLoss) -> Result<(), Problem> {
    if on_loss == OnLoss::Block && node.cluster.get().is_none() {
        let detail = "this node takes no other nodes (listen_peer is off): on_loss must be reset";
        return Err(Problem::new(Kind::Unfit, detail));
    }
    Ok(())
}

fn info(node: &Node, cache: &Cache) -> Info {
    let stats = cache.store.stats();
    let spec = settings_of(node, cache).spec();
    let on_loss = match on_loss_of(node, &spec.name) {
        OnLoss::Reset => "reset",
        OnLoss::Block => "block",
    };
    Info {
        name: spec.name,
        mode: spec.mode,
        copies: spec.copies,
        min_in_sync: spec.min_in_sync,
        read: spec.read,
        eviction: spec.eviction,
        memory: memory_of(cache),
        on_loss,
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
        CacheError::Default | CacheError::DefaultMemory => Kind::Forbidden,
        CacheError::TooMany
        | CacheError::NoMemory { .. }
        | CacheError::DefaultFull { .. }
        | CacheError::Full { .. } => Kind::NoRoom,
        CacheError::TooLittle | CacheError::ValueTooLarge { .. } | CacheError::Growth { .. } => {
            Kind::Unfit
        }
        CacheError::Busy => Kind::Unavailable,
        CacheError::Store(_) => Kind::Internal,
    };
    let problem = Problem::new(kind, error.to_string());
    if kind == Kind::Unavailable { problem.retry_after_ms(BUSY_RETRY_MS) } else { problem }
}

/// An answer that is true now only.
pub(super) fn fresh(answer: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
}

fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
