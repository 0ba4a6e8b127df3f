//! Parameters and headers, each described once.

use kiln_stream::record::PRODUCER_LEN_MAX;
use serde_json::{Value, json};

use super::{
    super::{query::TTL_PATTERN, replays, scan},
    stream_schemas::time,
};
use crate::streams;

/// All parameters, by the names under which operations refer to them.
pub(super) fn parameters() -> Value {
    let mut all = of_items_and_nodes();
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), of_streams()) {
        all.extend(more);
    }
    all
}

fn of_items_and_nodes() -> Value {
    let header = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "header", "description": description, "schema": schema });
    let ttl = json!({ "type": "string", "pattern": TTL_PATTERN });
    let name = json!({
        "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "maxLength": 64,
    });
    let tag = "(W/)?\"[!#-~]+\"";
    // A list may be empty: nothing is one of its tags.
    let tags = format!("^(\\*|[ ,]*({tag}( *,[ ,]*{tag}){{0,31}}[ ,]*)?)$");
    let strong = "^[ ,]*(\"[!#-~]+\"[ ,]*)?$";
    let new_ttl = needed(query(
        "ttl",
        "The item's new end: `1500ms`, `30s`, `5m`, `12h`, `7d` or `never`.",
        ttl.clone(),
    ));
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
        "scope": query(
            "scope",
            "`node`: only what the node that is asked answers for.",
            json!({ "type": "string", "pattern": "^(cluster|node)$", "default": "cluster" }),
        ),
        "place": query(
            "cursor",
            "Where the page before ended.",
            json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }),
        ),
        "verbose": query("verbose", "Say what was checked.", json!({ "type": "string" })),
        "ifMatchMany": header(
            "If-Match",
            "Only if the item has one of these entity tags, or, with `*`, if there is an item.",
            json!({ "type": "string", "pattern": tags, "examples": ["\"17\"", "*"] }),
        ),
        "ifMatch": header(
            "If-Match",
            "Only if the item has this entity tag.",
            json!({ "type": "string", "pattern": strong, "examples": ["\"17\""] }),
        ),
        "ifNoneMatch": header(
            "If-None-Match",
            "Only if the item has none of these entity tags, or, with `*`, if there is no item.",
            json!({ "type": "string", "pattern": tags, "examples": ["\"17\"", "*"] }),
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

fn of_streams() -> Value {
    let stream = json!({
        "type": "string",
        "pattern": format!("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}$", streams::NAME_LEN_MAX - 1),
        "maxLength": streams::NAME_LEN_MAX,
    });
    let any_number = || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    let any_text = || json!({ "type": "string" });
    json!({
        "stream": path("stream", "The stream's name.", stream.clone(), json!("plant")),
        "newStream": path("stream", "The stream's name.", stream, json!("line-4")),
        "sensor": path(
            "sensor",
            "The sensor's id, percent-encoded: 1 to 250 bytes.",
            json!({ "type": "string", "minLength": 1 }),
            json!("sensor1"),
        ),
        "producer": query(
            "producer",
            "Who sends: an id of 1 to 128 bytes without control characters.",
            json!({ "type": "string", "pattern": "^[!-~]{1,128}$", "maxLength": PRODUCER_LEN_MAX }),
        ),
        "epoch": query("epoch", "Which life of the producer; with `producer` only.", any_number()),
        "sequence": query(
            "sequence",
            "The number of the batch; with `producer` only.",
            any_number(),
        ),
        "window": query("window", "The window's name; without it the stream's first.", any_text()),
        "from": query("from", "Windows that start here or later: milliseconds since 1970.", time()),
        "to": query("to", "Windows that start before: milliseconds since 1970.", time()),
        "fill": query(
            "fill",
            "What stands in place of windows without readings. Not for count and session windows.",
            json!({
                "type": "string", "pattern": "^(none|null|previous|linear)$", "default": "none",
            }),
        ),
        "step": query(
            "step",
            "Windows of this length, made of the stored ones: a multiple of the length of a tumbling window.",
            json!({ "type": "string", "pattern": "^([0-9]{1,6}(ms|s|m|h|d))+$", "maxLength": 24 }),
        ),
        "forecast": query(
            "forecast",
            "So many windows that are expected after the last, from a model of those of the answer.",
            json!({ "type": "integer", "minimum": 0, "maximum": kiln_stream::fit::STEPS_MAX }),
        ),
        "figure": query(
            "figure",
            "Of which aggregate the forecast is; with `forecast` only. The mean without it.",
            any_text(),
        ),
        "windowLimit": query(
            "limit",
            "At most so many.",
            json!({
                "type": "integer", "minimum": 1, "maximum": streams::LIMIT_MAX,
                "default": streams::LIMIT_DEFAULT,
            }),
        ),
        "ofSensor": query("sensor", "Only of this sensor.", any_text()),
        "eventKind": query(
            "kind",
            "Only events of this kind.",
            json!({ "type": "string", "pattern": "^(window|alarm|fit|late)$" }),
        ),
        "influxDatabase": needed(query("db", "The stream.", any_text())),
        "influxBucket": needed(query("bucket", "The stream.", any_text())),
        "influxPrecision": query(
            "precision",
            "The unit of the times; nanoseconds without it.",
            json!({ "type": "string", "pattern": "^(ns?|us?|µ|ms|s|m|h|)$" }),
        ),
    })
}

fn path(name: &str, description: &str, schema: Value, example: Value) -> Value {
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": schema, "example": example,
    })
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn needed(mut parameter: Value) -> Value {
    parameter["required"] = true.into();
    parameter
}

pub(super) fn known_headers() -> Value {
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
        "X-Influxdb-Error": header("The error, shortened.", json!({ "type": "string" })),
        "X-Influxdb-Version": header("What senders hold this for.", json!({ "type": "string" })),
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
