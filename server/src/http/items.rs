//! One item as a resource: `/v1/caches/{cache}/keys/{key}`.
//!
//! The value is the body, and what is known of it is in headers. Reading and writing are the same
//! commands as on every other protocol; the version is the entity tag, so that `If-Match` is a
//! compare-and-set, and `If-None-Match: *` an add.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use kiln_engine::KEY_LEN_MAX;
use kiln_protocol::command::{
    Command, Delete, Get, ItemMeta, Outcome, Reason, Store, StoreMode, Ttl,
};

use super::{
    etag::{self, Condition},
    gateway::Gateway,
    media::{self, Kept},
    percent,
    problem::{Kind, Problem},
    query::Query,
    upload,
    value::{Encoding, Part, Sent, is_worth_compressing, part},
};
use crate::{
    caches::{Cache, RESERVED},
    node::Node,
    perform::{OwnedValue, Performed, is_there, perform},
};

/// Milliseconds until the item ends; not there when it does not.
pub(super) const TTL: HeaderName = HeaderName::from_static("kiln-ttl-ms");
/// The item's flag bits, as other protocols see them.
pub(super) const FLAGS: HeaderName = HeaderName::from_static("kiln-flags");
/// Seconds since the item was last used, before this.
pub(super) const IDLE: HeaderName = HeaderName::from_static("kiln-idle-seconds");
/// The item was marked stale, and waits for a new value.
pub(super) const STALE: HeaderName = HeaderName::from_static("kiln-stale");

/// Tries to meet a condition on an item that others are changing.
const TRIES_MAX: usize = 4;

/// Which item a request is about.
pub(super) struct Target {
    /// Its cache.
    pub(super) cache: Arc<Cache>,
    /// Its key.
    pub(super) key: Vec<u8>,
}

impl Target {
    /// The item of a path that begins `/v1/caches/{cache}/keys/{key}`.
    pub(super) fn of(node: &Node, uri: &Uri) -> Result<Self, Problem> {
        let mut segments = uri.path().split('/').skip(3);
        let cache = segments.next().unwrap_or_default();
        let key = segments.nth(1).unwrap_or_default();
        let key = percent::decode(key)
            .map_err(|error| Problem::bad_request(format!("the key is wrong: {error}")))?;
        check_key(&key)?;
        Ok(Self { cache: open_cache_of(node, cache)?, key: key.into_owned() })
    }
}

/// A key that an item can have.
pub(super) fn check_key(key: &[u8]) -> Result<(), Problem> {
    if key.is_empty() {
        return Err(Problem::bad_request("a key has at least one byte"));
    }
    if key.len() > KEY_LEN_MAX {
        let detail = format!("a key has at most {KEY_LEN_MAX} bytes, not {}", key.len());
        return Err(Problem::new(Kind::KeyTooLong, detail));
    }
    Ok(())
}

/// The cache of a segment of a path.
pub(super) fn cache_of(node: &Node, segment: &str) -> Result<Arc<Cache>, Problem> {
    let name = cache_name(segment)?;
    let table = node.caches.load();
    let found = table.by_name(&name).map(|(_, cache)| Arc::clone(cache));
    found.ok_or_else(no_such_cache)
}

/// The cache of a segment of a path, if clients may touch its items.
pub(super) fn open_cache_of(node: &Node, segment: &str) -> Result<Arc<Cache>, Problem> {
    let cache = cache_of(node, segment)?;
    if cache.is_reserved() { Err(Problem::new(Kind::Forbidden, RESERVED)) } else { Ok(cache) }
}

/// The name of a cache in a segment of a path.
pub(super) fn cache_name(segment: &str) -> Result<String, Problem> {
    let bytes = percent::decode(segment)
        .map_err(|error| Problem::bad_request(format!("the cache's name is wrong: {error}")))?;
    // What is no text is no cache's name either.
    String::from_utf8(bytes.into_owned()).map_err(|_| no_such_cache())
}

pub(super) fn no_such_cache() -> Problem {
    Problem::new(Kind::NoSuchCache, "there is no cache of this name")
}

/// The problem that an outcome is, when it is none of those that a request hopes for.
pub(super) fn refusal(outcome: &Outcome) -> Problem {
    match outcome {
        Outcome::NotFound => Problem::new(Kind::Miss, "the cache has no item with this key"),
        Outcome::NotStored | Outcome::Exists => etag::failed(),
        Outcome::NotANumber => Problem::new(
            Kind::Conflict,
            "the value is not a decimal number of at most 20 digits below 2^64",
        ),
        Outcome::TooLarge => {
            Problem::new(Kind::TooLarge, "the value is longer than the cache takes")
        }
        Outcome::OutOfMemory => Problem::new(Kind::NoRoom, "the cache has no room for the value"),
        Outcome::NotApplied(reason) => not_applied(*reason),
        Outcome::Indeterminate => Problem::new(
            Kind::Indeterminate,
            "the node that had the request failed: it may have been carried out or not",
        ),
        Outcome::Lost => Problem::new(
            Kind::Lost,
            "every copy of the key's partition was lost: whether there was an item is unknown",
        ),
        Outcome::Hit(_)
        | Outcome::Stored(_)
        | Outcome::Deleted
        | Outcome::Touched(_)
        | Outcome::Number(..) => {
            tracing::error!(?outcome, "an outcome that does not fit its command");
            Problem::new(Kind::Internal, "the node could not answer; its log says why")
        }
    }
}

fn not_applied(reason: Reason) -> Problem {
    /// For what only an operator ends.
    const OPERATOR_MS: u64 = 30_000;
    let kind = match reason {
        Reason::Busy => Kind::Busy,
        Reason::NoSuchCache => Kind::NoSuchCache,
        Reason::Unsupported => Kind::Unsupported,
        _ => Kind::Unavailable,
    };
    let problem = Problem::new(kind, reason.text());
    match kind {
        Kind::Busy | Kind::Unavailable => {
            problem.retry_after_ms(reason.retry_after_ms().unwrap_or(OPERATOR_MS))
        }
        _ => problem,
    }
}

/// Adds what headers say of an item.
pub(super) fn describe(headers: &mut HeaderMap, item: &ItemMeta) {
    headers.insert(header::ETAG, etag::tag(item.version, None));
    if let Some(ttl_ms) = item.ttl_ms {
        headers.insert(TTL, HeaderValue::from(ttl_ms));
    }
    if item.stale {
        headers.insert(STALE, HeaderValue::from_static("true"));
    }
}

// ---- reading -------------------------------------------------------------------------------------

/// `GET` and `HEAD`.
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    Query::parse(parts.uri.query(), &[])?;
    let target = Target::of(&gateway.node, &parts.uri)?;
    let get = Get::plain(&target.key);
    respond(&gateway, &target, get, &parts.method, &parts.headers).await
}

/// Reads an item as `get` says, and answers with it.
pub(super) async fn respond(
    gateway: &Gateway,
    target: &Target,
    get: Get<'_>,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let condition = Condition::of(headers)?;
    gateway.node.http.count_operations(1);
    let Performed { outcome, value } =
        perform(&gateway.node, &target.cache, Command::Get(get)).await;
    let (Outcome::Hit(item), Some(value)) = (outcome, value) else {
        if outcome == Outcome::NotFound && condition.is_some_and(|c| !c.holds(None)) {
            return Err(etag::failed());
        }
        return Err(refusal(&outcome));
    };
    if let Some(condition) = condition
        && !condition.holds(Some(item.version))
    {
        return match condition.is_known(item.version) {
            true => Ok(not_modified(&item)),
            false => Err(etag::failed()),
        };
    }
    let (content_type, start) = content(&item, &value);
    let len = item.value_len - start;
    let wants_part = *method == Method::GET && etag::range_applies(headers, item.version);
    let (status, range) = match part(headers.get(header::RANGE).filter(|_| wants_part), len) {
        Part::Whole => (StatusCode::OK, 0..len),
        Part::Range(range) => (StatusCode::PARTIAL_CONTENT, range),
        Part::Nothing => return Err(not_satisfiable(len)),
    };
    let can_encode = is_worth_compressing(len) && !media::is_compressed(&content_type);
    let encoding = Encoding::accepted(headers).filter(|_| can_encode && status == StatusCode::OK);
    let (budget, within) = (&gateway.node.budget, start + range.start..start + range.end);
    let sent = match encoding {
        Some(encoding) => Sent::encoded(value, within, budget, encoding, &gateway.encoders)?,
        None => Sent::plain(value, within, budget)?,
    };
    let mut response = Response::new(sent.body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    describe(headers, &item);
    headers.insert(FLAGS, HeaderValue::from(item.flags));
    headers.insert(IDLE, HeaderValue::from(item.idle_s));
    // May be kept, but not used without asking whether it still is the value.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if can_encode {
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    if let Some(encoding) = sent.encoding {
        let tag = etag::tag(item.version, Some(encoding.name()));
        headers.insert(header::ETAG, tag);
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
    if let Some(len) = sent.len {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        headers.extend(HeaderValue::try_from(text).ok().map(|v| (header::CONTENT_RANGE, v)));
    }
    Ok(response)
}

/// The content type of an item, and where in its value the bytes of the client begin.
pub(super) fn content(item: &ItemMeta, value: &OwnedValue) -> (HeaderValue, usize) {
    let start = media::spelled_len(item.flags, item.value_len);
    let spelled = if start > 0 { value.copy(0..start) } else { Bytes::new() };
    match media::read(item.flags, &spelled) {
        Some(content_type) => (content_type, start),
        None => (HeaderValue::from_static(media::OCTETS), 0),
    }
}

fn not_modified(item: &ItemMeta) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    describe(response.headers_mut(), item);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn not_satisfiable(len: usize) -> Problem {
    let problem = Problem::new(
        Kind::RangeNotSatisfiable,
        format!("the value has {len} bytes, none of which is in the range"),
    );
    match HeaderValue::try_from(format!("bytes */{len}")) {
        Ok(value) => problem.header(header::CONTENT_RANGE, value),
        Err(_) => problem,
    }
}

// ---- writing -------------------------------------------------------------------------------------

/// `PUT`.
pub(super) async fn write(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let node = &gateway.node;
    let query = Query::parse(parts.uri.query(), &["ttl", "flags"])?;
    let ttl = query.ttl("ttl")?.unwrap_or(Ttl::Default);
    let flags = query.number("flags", u64::from(u32::MAX))?;
    let target = Target::of(node, &parts.uri)?;
    let condition = Condition::of(&parts.headers)?;
    let kept = content_type(&parts.headers)?;
    // Flags of the client's own making leave no room for a content type.
    let kept = match flags {
        Some(flags) => Kept { flags: flags as u32, spelled: "" },
        None => kept,
    };
    let len_max = target.cache.store.value_len_max() - kept.spelled.len();
    let upload = upload::receive(node, body, len_max, kept.spelled).await?;
    let store = Store { flags: kept.flags, ttl, ..Store::set(&target.key, &upload.bytes) };

    node.http.count_operations(1);
    // Two that create the same item at once may both be told that they did.
    let existed = match condition {
        None => is_there(node, &target.cache, &target.key).await,
        Some(Condition::Absent) => false,
        Some(Condition::Exists | Condition::OneOf(_)) => true,
        Some(Condition::NoneOf(_) | Condition::Both(_)) => {
            is_there(node, &target.cache, &target.key).await
        }
    };
    let outcome = store_if(node, &target, store, condition.as_ref()).await?;
    let Outcome::Stored(item) = outcome else { return Err(refusal(&outcome)) };
    let status = if existed { StatusCode::NO_CONTENT } else { StatusCode::CREATED };
    let mut response = status.into_response();
    describe(response.headers_mut(), &item);
    Ok(response)
}

/// Writes a value if the condition holds.
pub(super) async fn store_if(
    node: &Node,
    target: &Target,
    store: Store<'_>,
    condition: Option<&Condition>,
) -> Result<Outcome, Problem> {
    let set = |mode, compare| Command::Store(Store { mode, compare, ..store });
    let command = match condition {
        None => set(StoreMode::Set, None),
        Some(Condition::Exists) => set(StoreMode::Replace, None),
        Some(Condition::Absent) => set(StoreMode::Add, None),
        Some(Condition::OneOf(versions)) if versions.len() == 1 => {
            set(StoreMode::Set, Some(versions[0]))
        }
        Some(condition) => {
            return attempt(node, target, condition, |version| match version {
                Some(version) => set(StoreMode::Set, Some(version)),
                None => set(StoreMode::Add, None),
            })
            .await;
        }
    };
    let outcome = perform(node, &target.cache, command).await.outcome;
    match outcome {
        // Nothing to compare with is as good as another version.
        Outcome::NotFound => Err(etag::failed()),
        outcome => Ok(outcome),
    }
}

/// Looks at the item and, if the condition holds, does something on condition that it is still
/// the same.
async fn attempt<'a>(
    node: &Node,
    target: &'a Target,
    condition: &Condition,
    command: impl Fn(Option<u64>) -> Command<'a>,
) -> Result<Outcome, Problem> {
    for _ in 0..TRIES_MAX {
        let look = Get { no_bump: true, ..Get::plain(&target.key) };
        let version = match perform(node, &target.cache, Command::Get(look)).await.outcome {
            Outcome::Hit(item) => Some(item.version),
            Outcome::NotFound => None,
            outcome => return Err(refusal(&outcome)),
        };
        if !condition.holds(version) {
            return Err(etag::failed());
        }
        match perform(node, &target.cache, command(version)).await.outcome {
            Outcome::Exists | Outcome::NotStored => {}
            Outcome::NotFound if version.is_some() => {}
            outcome => return Ok(outcome),
        }
    }
    let detail = "the item changes too fast to hold the condition against it";
    Err(Problem::new(Kind::Conflict, detail))
}

/// `DELETE`.
pub(super) async fn delete(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    Query::parse(parts.uri.query(), &[])?;
    let target = Target::of(&gateway.node, &parts.uri)?;
    let condition = Condition::of(&parts.headers)?;
    gateway.node.http.count_operations(1);
    match delete_if(&gateway.node, &target, condition.as_ref()).await? {
        Outcome::Deleted => Ok(StatusCode::NO_CONTENT.into_response()),
        outcome => Err(refusal(&outcome)),
    }
}

/// Deletes an item if the condition holds.
pub(super) async fn delete_if(
    node: &Node,
    target: &Target,
    condition: Option<&Condition>,
) -> Result<Outcome, Problem> {
    let delete = |compare| Command::Delete(Delete { compare, ..Delete::plain(&target.key) });
    let command = match condition {
        None | Some(Condition::Exists) => delete(None),
        Some(Condition::OneOf(versions)) if versions.len() == 1 => delete(Some(versions[0])),
        Some(condition) => return attempt(node, target, condition, delete).await,
    };
    match perform(node, &target.cache, command).await.outcome {
        Outcome::NotFound if condition.is_some() => Err(etag::failed()),
        outcome => Ok(outcome),
    }
}

/// How the content type of a body is kept.
fn content_type(headers: &HeaderMap) -> Result<Kept<'_>, Problem> {
    let unsupported = |detail: String| Problem::new(Kind::UnsupportedMediaType, detail);
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let detail = "a Content-Encoding would not be kept; send the value as it is, or its \
                      encoded form as a type of its own such as application/gzip";
        return Err(unsupported(detail.to_owned()));
    }
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Problem::bad_request("a value is written whole: no Content-Range here"));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(Kept { flags: 0, spelled: "" });
    };
    value.to_str().ok().and_then(media::keep).ok_or_else(|| {
        unsupported(format!(
            "Content-Type must be type/subtype with parameters if any, in at most {} characters",
            media::SPELLED_LEN_MAX
        ))
    })
}
