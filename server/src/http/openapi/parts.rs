//! What descriptions of operations are made of: bodies, answers and examples.

use serde_json::{Map, Value, json};

pub(super) const ITEM_HEADERS: &[&str] = &["ETag", "Kiln-Ttl-Ms"];
pub(super) const ONCE_HEADERS: &[&str] = &["ETag", "Kiln-Ttl-Ms", "Idempotency-Replayed"];
pub(super) const VALUE_HEADERS: &[&str] =
    &["ETag", "Kiln-Ttl-Ms", "Kiln-Flags", "Kiln-Idle-Seconds", "Kiln-Stale", "Vary"];

pub(super) fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

pub(super) fn headers(names: &[&str]) -> Value {
    let all = names.iter().chain(&["X-Request-Id"]);
    let refer = |name: &&str| json!({ "$ref": format!("#/components/headers/{name}") });
    all.map(|name| ((*name).to_owned(), refer(name))).collect::<Map<_, _>>().into()
}

pub(super) fn empty(description: &str, names: &[&str]) -> Value {
    json!({ "description": description, "headers": headers(names) })
}

/// A value. Any content type may come, that of the item; generators of clients want to know some.
pub(super) fn value(description: &str) -> Value {
    json!({
        "description": description,
        "headers": headers(VALUE_HEADERS),
        "content": {
            "application/octet-stream": { "schema": { "type": "string", "format": "binary" } },
            "text/plain": { "schema": { "type": "string" } },
        },
    })
}

pub(super) fn partial() -> Value {
    let mut partial = value("The bytes that `Range` asks for.");
    partial["headers"]["Content-Range"] = json!({ "$ref": "#/components/headers/Content-Range" });
    partial
}

pub(super) fn json_of(description: &str, name: &str, example: Option<Value>) -> Value {
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

pub(super) fn number() -> Value {
    json!({ "200": {
        "description": "The number after it was changed.",
        "headers": headers(ONCE_HEADERS),
        "content": {
            "application/json": { "schema": schema("Number"), "example": { "number": 42 } },
        },
    } })
}

pub(super) fn probe() -> Value {
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

pub(super) fn octets() -> Value {
    // No body at all is a value of no bytes.
    json!({ "required": false, "content": {
        "application/octet-stream": { "schema": { "type": "string", "format": "binary" } },
        "text/plain": { "schema": { "type": "string" }, "example": "hello" },
    } })
}

pub(super) fn settings() -> Value {
    let example = json!({ "memory": 8_388_608, "eviction": "lru", "default_ttl_ms": 60_000 });
    json!({ "required": false, "content": {
        "application/json": { "schema": schema("CacheSettings"), "example": example },
    } })
}

pub(super) fn cache_example() -> Value {
    json!({
        "name": "sessions", "mode": "strong", "copies": 1, "min_in_sync": 1, "read": "leased",
        "eviction": "lru", "memory": 8_388_608, "on_loss": "reset", "default_ttl_ms": 60_000,
        "max_item_size": 1_048_576,
        "figures": {
            "items": 2, "bytes": 1_180, "hits": 10, "misses": 3, "stores": 4, "deletes": 1,
            "evictions": 0, "expirations": 1,
        },
    })
}
