//! The description of this interface for programs: OpenAPI 3.1 at `/openapi.json`.
//!
//! Schemas come from the types that are sent and received; what a path does and which errors it
//! gives stands in the table below. The document is the same on every node of a version, and a copy
//! of it is kept as `docs/openapi.json`.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::openapi::ComponentsBuilder;

use super::{
    actions, batch, caches,
    problem::{self, Document, Kind, MEDIA_TYPE, Problem},
    query::TTL_PATTERN,
    replays, scan,
};

/// The document.
pub(super) static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

static TEXT: LazyLock<Bytes> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&*DOCUMENT).unwrap_or_default();
    text.push('\n');
    text.into()
});

/// `GET /openapi.json`.
pub(super) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// One operation of the interface.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
    parameters: &'static [&'static str],
    body: Option<fn() -> Value>,
    answers: fn() -> Value,
    problems: &'static [Kind],
}

const ITEM: &str = "/v1/caches/{cache}/keys/{key}";

/// What any request may come to.
const ALWAYS: &[Kind] = &[
    Kind::BadRequest,
    Kind::Unauthenticated,
    Kind::UriTooLong,
    Kind::HeadTooLarge,
    Kind::Internal,
    Kind::Unavailable,
];

/// What a request about an item may come to.
const OF_ITEM: &[Kind] =
    &[Kind::NoSuchCache, Kind::KeyTooLong, Kind::Busy, Kind::Unsupported, Kind::Indeterminate];

/// What a request with a body may come to.
const WITH_BODY: &[Kind] = &[Kind::TooSlow, Kind::TooLarge];

fn operations() -> Vec<Operation> {
    vec![
        Operation {
            method: "get",
            path: ITEM,
            id: "getItem",
            tag: "Items",
            summary: "Read an item",
            description: "The body is the value, of the content type that it was written with, \
                          whichever that is. Large values are compressed for clients that accept it.",
            parameters: &["cache", "key", "ifMatchMany", "ifNoneMatch", "range", "ifRange"],
            body: None,
            answers: || {
                json!({
                    "200": value("The value."),
                    "206": partial(),
                    "304": empty("The item is still the one that `If-None-Match` names.", ITEM_HEADERS),
                })
            },
            problems: &[Kind::Miss, Kind::Lost, Kind::ConditionFailed, Kind::RangeNotSatisfiable],
        },
        Operation {
            method: "head",
            path: ITEM,
            id: "headItem",
            tag: "Items",
            summary: "Look at an item",
            description: "The headers of a read, without the value.",
            parameters: &["cache", "key", "ifMatchMany", "ifNoneMatch"],
            body: None,
            answers: || {
                json!({
                    "200": empty("There is an item.", VALUE_HEADERS),
                    "304": empty("The item is still the one that `If-None-Match` names.", ITEM_HEADERS),
                })
            },
            problems: &[Kind::Miss, Kind::Lost, Kind::ConditionFailed],
        },
        Operation {
            method: "put",
            path: ITEM,
            id: "putItem",
            tag: "Items",
            summary: "Write an item",
            description: "The body is the value; its content type, whichever it is, is kept. `If-Match` with an entity \
                          tag is a compare-and-set, `If-None-Match: *` writes only where there is no \
                          item. A body that is cut off changes nothing.",
            parameters: &["cache", "key", "ttl", "flags", "ifMatchMany", "ifNoneMatch"],
            body: Some(octets),
            answers: || {
                json!({
                    "201": empty("There was no item, and now there is.", ITEM_HEADERS),
                    "204": empty("The item has the new value.", ITEM_HEADERS),
                })
            },
            problems: &[
                Kind::TooSlow,
                Kind::TooLarge,
                Kind::Conflict,
                Kind::ConditionFailed,
                Kind::UnsupportedMediaType,
                Kind::NoRoom,
                Kind::Lost,
            ],
        },
        Operation {
            method: "delete",
            path: ITEM,
            id: "deleteItem",
            tag: "Items",
            summary: "Remove an item",
            description: "",
            parameters: &["cache", "key", "ifMatchMany", "ifNoneMatch"],
            body: None,
            answers: || json!({ "204": empty("The item is gone.", &[]) }),
            problems: &[Kind::Miss, Kind::Lost, Kind::Conflict, Kind::ConditionFailed],
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/keys/{key}/increment",
            id: "incrementItem",
            tag: "Items",
            summary: "Add to a number",
            description: "The value is a decimal number below 2^64; adding wraps around there.",
            parameters: ARITHMETIC,
            body: None,
            answers: number,
            problems: ARITHMETIC_PROBLEMS,
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/keys/{key}/decrement",
            id: "decrementItem",
            tag: "Items",
            summary: "Subtract from a number",
            description: "The value is a decimal number below 2^64; subtracting stops at 0.",
            parameters: ARITHMETIC,
            body: None,
            answers: number,
            problems: ARITHMETIC_PROBLEMS,
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/keys/{key}/append",
            id: "appendToItem",
            tag: "Items",
            summary: "Put bytes behind a value",
            description: "Content type and end of the item stay. With `create=true` an item that is \
                          not there is made, with the end that `ttl` names.",
            parameters: &["cache", "key", "create", "ttl", "ifMatch", "idempotencyKey"],
            body: Some(octets),
            answers: || json!({ "204": empty("The item has the longer value.", ONCE_HEADERS) }),
            problems: &[
                Kind::Miss,
                Kind::TooSlow,
                Kind::Conflict,
                Kind::Lost,
                Kind::ConditionFailed,
                Kind::TooLarge,
                Kind::KeyReused,
                Kind::NoRoom,
            ],
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/keys/{key}/touch",
            id: "touchItem",
            tag: "Items",
            summary: "Give an item a new end",
            description: "",
            parameters: &["cache", "key", "newTtl"],
            body: None,
            answers: || json!({ "204": empty("The item has its new end.", ITEM_HEADERS) }),
            problems: &[Kind::Miss, Kind::Lost, Kind::NoRoom],
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/keys/{key}/get-and-touch",
            id: "getAndTouchItem",
            tag: "Items",
            summary: "Read an item and give it a new end",
            description: "",
            parameters: &["cache", "key", "newTtl"],
            body: None,
            answers: || json!({ "200": value("The value.") }),
            problems: &[Kind::Miss, Kind::Lost],
        },
        Operation {
            method: "post",
            path: "/v1/caches/{cache}/batch",
            id: "runBatch",
            tag: "Items",
            summary: "Carry out several operations",
            description: "In order, each with a result of its own: not a transaction. Requests and \
                          answers are JSON, with base64 where bytes are no text, or MessagePack, with \
                          bytes as they are.",
            parameters: &["cache"],
            body: Some(|| {
                let example = json!({ "operations": [
                    { "op": "set", "key": "greeting", "value": "hello", "ttl": "30s" },
                    { "op": "get", "key": "greeting" },
                    { "op": "increment", "key": "visits", "initial": 1 },
                ] });
                json!({ "required": true, "content": {
                    "application/json": { "schema": schema("Batch"), "example": example },
                    "application/msgpack": { "schema": { "contentMediaType": "application/msgpack" } },
                } })
            }),
            answers: || {
                let example = json!({ "results": [
                    { "status": 201, "version": "17", "ttl_ms": 30_000 },
                    {
                        "status": 200, "value_base64": "aGVsbG8=", "version": "17",
                        "content_type": "application/octet-stream", "flags": 0, "ttl_ms": 30_000,
                    },
                    { "status": 200, "number": 1, "version": "18" },
                ] });
                json!({ "200": {
                    "description": "The results, in the order of the operations.",
                    "headers": headers(&[]),
                    "content": {
                        "application/json": { "schema": schema("Results"), "example": example },
                        "application/msgpack": {
                            "schema": { "contentMediaType": "application/msgpack" },
                        },
                    },
                } })
            },
            problems: &[
                Kind::NoSuchCache,
                Kind::TooSlow,
                Kind::TooLarge,
                Kind::UnsupportedMediaType,
            ],
        },
        Operation {
            method: "get",
            path: "/v1/caches/{cache}/keys",
            id: "scanCache",
            tag: "Items",
            summary: "Go through a cache",
            description: "A page of items, and a cursor to go on from. What is there from the first \
                          page to the last is told at least once, in no order. A page may be empty \
                          although there are more.",
            parameters: &["cache", "prefix", "cursor", "limit", "values"],
            body: None,
            answers: || json!({ "200": json_of("A page.", "Page", None) }),
            problems: &[Kind::NoSuchCache, Kind::Conflict],
        },
        Operation {
            method: "delete",
            path: "/v1/caches/{cache}/keys",
            id: "flushCache",
            tag: "Caches",
            summary: "Remove all items of a cache",
            description: "",
            parameters: &["cache"],
            body: None,
            answers: || json!({ "204": empty("The cache is empty.", &[]) }),
            problems: &[Kind::NoSuchCache, Kind::Forbidden, Kind::Unsupported, Kind::Indeterminate],
        },
        Operation {
            method: "get",
            path: "/v1/caches",
            id: "listCaches",
            tag: "Caches",
            summary: "List the caches",
            description: "",
            parameters: &[],
            body: None,
            answers: || json!({ "200": json_of("All caches, by name.", "CacheList", None) }),
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/v1/caches/{cache}",
            id: "showCache",
            tag: "Caches",
            summary: "Show a cache",
            description: "Its settings, and what it holds on this node.",
            parameters: &["cache"],
            body: None,
            answers: || json!({ "200": json_of("The cache.", "Cache", Some(cache_example())) }),
            problems: &[Kind::NoSuchCache],
        },
        Operation {
            method: "put",
            path: "/v1/caches/{cache}",
            id: "createCache",
            tag: "Caches",
            summary: "Make a cache",
            description: "May be repeated: a cache that exists with the settings asked for is as \
                          good as made.",
            parameters: &["newCache"],
            body: Some(settings),
            answers: || {
                json!({
                    "200": json_of("The cache was there already.", "Cache", Some(cache_example())),
                    "201": json_of("The cache is made.", "Cache", Some(cache_example())),
                })
            },
            problems: &[
                Kind::TooSlow,
                Kind::TooLarge,
                Kind::Conflict,
                Kind::UnsupportedMediaType,
                Kind::Unfit,
                Kind::NoRoom,
                Kind::Unsupported,
                Kind::Indeterminate,
            ],
        },
        Operation {
            method: "patch",
            path: "/v1/caches/{cache}",
            id: "changeCache",
            tag: "Caches",
            summary: "Change a cache",
            description: "Settings that are not named stay. Those that a cache keeps for its life \
                          cannot be changed: that is a conflict, and changes nothing.",
            parameters: &["cache"],
            body: Some(settings),
            answers: || json!({ "200": json_of("The cache as it is now.", "Cache", Some(cache_example())) }),
            problems: &[
                Kind::NoSuchCache,
                Kind::TooSlow,
                Kind::TooLarge,
                Kind::Conflict,
                Kind::UnsupportedMediaType,
                Kind::Unfit,
                Kind::NoRoom,
                Kind::Unsupported,
                Kind::Indeterminate,
            ],
        },
        Operation {
            method: "delete",
            path: "/v1/caches/{cache}",
            id: "dropCache",
            tag: "Caches",
            summary: "Drop a cache and all its items",
            description: "The cache `default` is always there and cannot be dropped.",
            parameters: &["cache"],
            body: None,
            answers: || json!({ "204": empty("The cache is gone.", &[]) }),
            problems: &[Kind::NoSuchCache, Kind::Forbidden, Kind::Unsupported, Kind::Indeterminate],
        },
        Operation {
            method: "get",
            path: "/livez",
            id: "live",
            tag: "Node",
            summary: "Whether the node lives",
            description: "Asks for no credentials. With `?verbose` it says what was checked.",
            parameters: &["verbose"],
            body: None,
            answers: probe,
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/readyz",
            id: "ready",
            tag: "Node",
            summary: "Whether the node may be sent requests",
            description: "Asks for no credentials. With `?verbose` it says what was checked.",
            parameters: &["verbose"],
            body: None,
            answers: probe,
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/metrics",
            id: "metrics",
            tag: "Node",
            summary: "Metrics in Prometheus' text format",
            description: "",
            parameters: &[],
            body: None,
            answers: || {
                json!({ "200": {
                    "description": "All metrics, now.",
                    "headers": headers(&[]),
                    "content": { "text/plain": { "schema": { "type": "string" } } },
                } })
            },
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/openapi.json",
            id: "openapi",
            tag: "Node",
            summary: "This document",
            description: "",
            parameters: &[],
            body: None,
            answers: || {
                json!({ "200": {
                    "description": "The document.",
                    "headers": headers(&[]),
                    "content": { "application/json": { "schema": { "type": "object" } } },
                } })
            },
            problems: &[],
        },
    ]
}

const ARITHMETIC: &[&str] = &["cache", "key", "by", "initial", "ttl", "ifMatch", "idempotencyKey"];
const ARITHMETIC_PROBLEMS: &[Kind] =
    &[Kind::Miss, Kind::Conflict, Kind::Lost, Kind::ConditionFailed, Kind::KeyReused, Kind::NoRoom];

const ITEM_HEADERS: &[&str] = &["ETag", "Kiln-Ttl-Ms"];
const ONCE_HEADERS: &[&str] = &["ETag", "Kiln-Ttl-Ms", "Idempotency-Replayed"];
const VALUE_HEADERS: &[&str] =
    &["ETag", "Kiln-Ttl-Ms", "Kiln-Flags", "Kiln-Idle-Seconds", "Kiln-Stale", "Vary"];

fn document() -> Value {
    let mut paths = Map::new();
    for operation in operations() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    let components = ComponentsBuilder::new()
        .schema_from::<Document>()
        .schema_from::<actions::Number>()
        .schema_from::<batch::Batch>()
        .schema_from::<batch::Op>()
        .schema_from::<batch::Operation>()
        .schema_from::<batch::OperationResult>()
        .schema_from::<batch::Results>()
        .schema_from::<scan::Found>()
        .schema_from::<scan::Page>()
        .schema_from::<caches::CacheFigures>()
        .schema_from::<caches::Info>()
        .schema_from::<caches::Settings>()
        .schema_from::<caches::List>()
        .build();
    let mut components = serde_json::to_value(components).unwrap_or_default();
    bound(&mut components);
    components["parameters"] = parameters();
    components["headers"] = known_headers();
    components["securitySchemes"] = json!({ "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "Asked for by nodes that have a file of users.",
    } });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Kiln",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A distributed in-memory key-value cache. Items are resources: the body \
                            is the value, headers say what is known of it, and the entity tag is \
                            its version. Every error is a problem document (RFC 9457).",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "Items", "description": "Keys and values." },
            { "name": "Caches", "description": "Where items live, and by which rules." },
            { "name": "Node", "description": "The node that answers." },
        ],
        "security": [{}, { "basic": [] }],
        "paths": paths,
        "components": components,
    })
}

impl Operation {
    fn describe(&self) -> Value {
        let parameters: Vec<_> = self
            .parameters
            .iter()
            .map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }))
            .collect();
        let mut answers = (self.answers)();
        for (status, answer) in self.refusals() {
            // A probe that fails is an answer of its own.
            if answers.get(&status).is_none() {
                answers[status] = answer;
            }
        }
        let mut described = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "responses": answers,
        });
        if !self.description.is_empty() {
            described["description"] = self.description.into();
        }
        if !parameters.is_empty() {
            described["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            described["requestBody"] = body();
        }
        if matches!(self.id, "live" | "ready") {
            described["security"] = json!([]);
        }
        described
    }

    /// The errors that this may come to, by status.
    fn refusals(&self) -> Map<String, Value> {
        let of_item: &[Kind] = if self.parameters.contains(&"key") { OF_ITEM } else { &[] };
        let with_body: &[Kind] = if self.body.is_some() { WITH_BODY } else { &[] };
        let mut kinds: Vec<Kind> = Vec::new();
        for kind in [ALWAYS, of_item, with_body, self.problems].concat() {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let mut refusals: Map<String, Value> = Map::new();
        for kind in kinds {
            let status = kind.status().as_u16().to_string();
            let refusal = refusals.entry(status).or_insert_with(|| {
                let mut names = Vec::new();
                match kind {
                    Kind::Busy | Kind::Unavailable => names.push("Retry-After"),
                    Kind::Unauthenticated => names.push("WWW-Authenticate"),
                    Kind::RangeNotSatisfiable => names.push("Content-Range"),
                    _ => {}
                }
                json!({
                    "description": "",
                    "headers": headers(&names),
                    "content": { MEDIA_TYPE: { "schema": schema("Problem"), "examples": {} } },
                })
            });
            let before = refusal["description"].as_str().unwrap_or_default();
            let text = [before, kind.meaning().trim()].join(" ").trim().to_owned();
            refusal["description"] = text.into();
            let example = Problem::new(kind, kind.meaning().trim()).document();
            refusal["content"][MEDIA_TYPE]["examples"][kind.slug()] =
                json!({ "summary": kind.title(), "value": example });
        }
        refusals
    }
}

/// Numbers of a type that has a greatest one say so.
fn bound(value: &mut Value) {
    if let Some(format) = value.get("format").and_then(Value::as_str)
        && value.get("maximum").is_none()
    {
        let maximum = match format {
            "int32" => Some(json!(u32::MAX)),
            "int64" => Some(json!(u64::MAX)),
            _ => None,
        };
        if let Some(maximum) = maximum {
            value["maximum"] = maximum;
        }
    }
    match value {
        Value::Array(list) => list.iter_mut().for_each(bound),
        Value::Object(map) => map.values_mut().for_each(bound),
        _ => {}
    }
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn headers(names: &[&str]) -> Value {
    let all = names.iter().chain(&["X-Request-Id"]);
    let refer = |name: &&str| json!({ "$ref": format!("#/components/headers/{name}") });
    all.map(|name| ((*name).to_owned(), refer(name))).collect::<Map<_, _>>().into()
}

fn empty(description: &str, names: &[&str]) -> Value {
    json!({ "description": description, "headers": headers(names) })
}

/// A value. Any content type may come, that of the item; generators of clients want to know some.
fn value(description: &str) -> Value {
    json!({
        "description": description,
        "headers": headers(VALUE_HEADERS),
        "content": {
            "application/octet-stream": { "schema": { "type": "string", "format": "binary" } },
            "text/plain": { "schema": { "type": "string" } },
        },
    })
}

fn partial() -> Value {
    let mut partial = value("The bytes that `Range` asks for.");
    partial["headers"]["Content-Range"] = json!({ "$ref": "#/components/headers/Content-Range" });
    partial
}

fn json_of(description: &str, name: &str, example: Option<Value>) -> Value {
    let mut content = json!({ "schema": schema(name) });
    if let Some(example) = example {
        content["example"] = example;
    }
    json!({
        "description": description,
        "headers": headers(&[]),
        "content": { "application/json": content },
    })
}

fn number() -> Value {
    json!({ "200": {
        "description": "The number after it was changed.",
        "headers": headers(ONCE_HEADERS),
        "content": {
            "application/json": { "schema": schema("Number"), "example": { "number": 42 } },
        },
    } })
}

fn probe() -> Value {
    let text = json!({ "text/plain": { "schema": { "type": "string" }, "example": "ok\n" } });
    json!({
        "200": { "description": "Yes.", "headers": headers(&[]), "content": text },
        "503": {
            "description": "No; the body says why.",
            "headers": headers(&[]),
            "content": {
                "text/plain": { "schema": { "type": "string" }, "example": "[-] phase stopping\n" },
            },
        },
    })
}

fn octets() -> Value {
    json!({ "required": true, "content": {
        "application/octet-stream": { "schema": { "type": "string", "format": "binary" } },
        "text/plain": { "schema": { "type": "string" }, "example": "hello" },
    } })
}

fn settings() -> Value {
    let example = json!({ "memory": 8_388_608, "eviction": "lru", "default_ttl_ms": 60_000 });
    json!({ "required": false, "content": {
        "application/json": { "schema": schema("CacheSettings"), "example": example },
    } })
}

fn cache_example() -> Value {
    json!({
        "name": "sessions", "mode": "strong", "copies": 1, "min_in_sync": 1, "read": "leased",
        "eviction": "lru", "memory": 8_388_608, "default_ttl_ms": 60_000,
        "max_item_size": 1_048_576,
        "figures": {
            "items": 2, "bytes": 1_180, "hits": 10, "misses": 3, "stores": 4, "deletes": 1,
            "evictions": 0, "expirations": 1,
        },
    })
}

fn parameters() -> Value {
    let path = |name: &str, description: &str, schema: Value, example: Value| {
        json!({
            "name": name, "in": "path", "required": true, "description": description,
            "schema": schema, "example": example,
        })
    };
    let query = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "query", "description": description, "schema": schema });
    let header = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "header", "description": description, "schema": schema });
    let ttl = json!({ "type": "string", "pattern": TTL_PATTERN });
    let name = json!({
        "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "maxLength": 64,
    });
    let tag = "(W/)?\"[!#-~]+\"";
    let tags = format!("^(\\*|{tag}( ?, ?{tag}){{0,31}})$");
    let strong = "^\"[!#-~]+\"$";
    let mut new_ttl = query(
        "ttl",
        "The item's new end: `1500ms`, `30s`, `5m`, `12h`, `7d` or `never`.",
        ttl.clone(),
    );
    new_ttl["required"] = true.into();
    json!({
        "cache": path("cache", "The cache's name. `default` is always there.", name.clone(), json!("default")),
        "newCache": path("cache", "The cache's name.", name, json!("sessions")),
        "key": path(
            "key",
            "The key: any bytes, percent-encoded, 1 to 32,000 of them.",
            json!({ "type": "string", "minLength": 1 }),
            json!("greeting"),
        ),
        "ttl": query(
            "ttl",
            "How long the item is to stay: `1500ms`, `30s`, `5m`, `12h`, `7d` or `never`; a number \
             alone is seconds. Without it, as the cache has it.",
            ttl,
        ),
        "newTtl": new_ttl,
        "flags": query(
            "flags",
            "32 bits for clients of other protocols, kept in place of the content type.",
            json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        ),
        "by": query(
            "by",
            "By how much the number changes.",
            json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX, "default": 1 }),
        ),
        "initial": query(
            "initial",
            "The number, if there is none yet; without it that is an error.",
            json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
        ),
        "create": query(
            "create",
            "Make the item if it is not there.",
            json!({ "type": "boolean", "default": false }),
        ),
        "prefix": query("prefix", "Only keys that begin so; any bytes.", json!({ "type": "string" })),
        "cursor": query(
            "cursor",
            "Where the page before ended.",
            json!({ "type": "string", "maxLength": 64 }),
        ),
        "limit": query(
            "limit",
            "About so many items.",
            json!({
                "type": "integer", "minimum": 1, "maximum": crate::native::scan::ITEMS_MAX,
                "default": scan::LIMIT_DEFAULT,
            }),
        ),
        "values": query(
            "values",
            "With the values, as far as there is room on the page.",
            json!({ "type": "boolean", "default": false }),
        ),
        "verbose": query("verbose", "Say what was checked.", json!({ "type": "string" })),
        "ifMatchMany": header(
            "If-Match",
            "Only if the item has one of these entity tags, or, with `*`, if there is an item.",
            json!({ "type": "string", "pattern": tags }),
        ),
        "ifMatch": header(
            "If-Match",
            "Only if the item has this entity tag.",
            json!({ "type": "string", "pattern": strong }),
        ),
        "ifNoneMatch": header(
            "If-None-Match",
            "Only if the item has none of these entity tags, or, with `*`, if there is no item.",
            json!({ "type": "string", "pattern": tags }),
        ),
        "range": header(
            "Range",
            "Only these bytes of the value: `bytes=0-99`, `bytes=100-`, `bytes=-50`.",
            json!({ "type": "string" }),
        ),
        "ifRange": header(
            "If-Range",
            "Only then, if the item has this entity tag; else the whole value.",
            json!({ "type": "string" }),
        ),
        "idempotencyKey": header(
            "Idempotency-Key",
            "A name of this request, chosen at random. When it comes again it is answered as before \
             and not carried out again.",
            json!({
                "type": "string",
                "pattern": format!("^[!-~]{{1,{}}}$", replays::KEY_LEN_MAX),
                "maxLength": replays::KEY_LEN_MAX,
            }),
        ),
    })
}

fn known_headers() -> Value {
    let header =
        |description: &str, schema: Value| json!({ "description": description, "schema": schema });
    let count = || json!({ "type": "integer", "minimum": 0 });
    json!({
        "ETag": header("The item's version.", json!({ "type": "string" })),
        "Kiln-Ttl-Ms": header("Milliseconds until the item ends; not there when it does not.", count()),
        "Kiln-Flags": header("The item's flag bits, as other protocols see them.", count()),
        "Kiln-Idle-Seconds": header("Seconds since the item was last used, before this.", count()),
        "Kiln-Stale": header(
            "The item was marked stale, and waits for a new value.",
            json!({ "type": "string", "enum": ["true"] }),
        ),
        "Vary": header("What else decides about the answer.", json!({ "type": "string" })),
        "Content-Range": header("Which bytes of how many.", json!({ "type": "string" })),
        "Idempotency-Replayed": header(
            "The answer is an earlier one, to the same request.",
            json!({ "type": "string", "enum": ["true"] }),
        ),
        "Retry-After": header("Seconds after which another try makes sense.", count()),
        "WWW-Authenticate": header("Which credentials are asked for.", json!({ "type": "string" })),
        "X-Request-Id": header(
            "The name of the request: the one that it came with, the trace it is part of, or a new \
             one.",
            json!({ "type": "string" }),
        ),
    })
}

/// Where each kind of problem is described, for the documentation page.
pub(super) fn problems() -> impl Iterator<Item = (String, Kind)> {
    Kind::ALL.iter().map(|kind| (problem::type_of(*kind), *kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Array(list) => list.iter().for_each(|one| references(one, found)),
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|one| references(one, found));
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(DOCUMENT.pointer(pointer).is_some(), "{reference}");
        }
        let ids: BTreeSet<_> = operations().iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), operations().len());
    }

    #[test]
    fn every_kind_of_problem_is_an_answer_to_some_operation() {
        let text = DOCUMENT["paths"].to_string();
        for kind in Kind::ALL {
            // Not of any operation: there is none at these; and streams have a page of their own.
            if matches!(kind, Kind::NoSuchPath | Kind::MethodNotAllowed | Kind::NoSuchStream) {
                continue;
            }
            assert!(text.contains(&format!("\"{}\"", kind.slug())), "{kind:?}");
        }
    }
}
