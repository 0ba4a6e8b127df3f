//! The table of operations: what each path does, which answers it gives and which errors.

use serde_json::{Value, json};

use super::{
    super::problem::Kind,
    parts::{
        ITEM_HEADERS, ONCE_HEADERS, VALUE_HEADERS, cache_example, empty, headers, json_of, number,
        octets, partial, probe, schema, settings, value,
    },
};

/// One operation of the interface.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) parameters: &'static [&'static str],
    pub(super) body: Option<fn() -> Value>,
    pub(super) answers: fn() -> Value,
    pub(super) problems: &'static [Kind],
}

const ITEM: &str = "/v1/caches/{cache}/keys/{key}";

/// All operations.
pub(super) fn operations() -> Vec<Operation> {
    let mut all = of_items_and_nodes();
    all.extend(super::streams::operations());
    all
}

fn of_items_and_nodes() -> Vec<Operation> {
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
                Kind::Unfit,
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
                Kind::Forbidden,
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
                          although there are more. In a cluster the cursor leads from node to node; \
                          while partitions move, an item may be told twice or not at all.",
            parameters: &["cache", "prefix", "cursor", "limit", "values", "scope"],
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
            problems: OF_SETTINGS,
        },
        Operation {
            method: "patch",
            path: "/v1/caches/{cache}",
            id: "changeCache",
            tag: "Caches",
            summary: "Change a cache",
            description: "Settings that are not named stay. `memory`, `default_ttl_ms`, `min_in_sync`, \
                          `read` and `on_loss` can be changed; the others stay for the life of the cache: \
                          that is a conflict, names each field in `errors`, and changes nothing.",
            parameters: &["cache"],
            body: Some(settings),
            answers: || json!({ "200": json_of("The cache as it is now.", "Cache", Some(cache_example())) }),
            problems: OF_CHANGE,
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
            path: "/v1/cluster",
            id: "showCluster",
            tag: "Cluster",
            summary: "Show the cluster",
            description: "As the node that answers sees it: groups, transfers, warnings and events.",
            parameters: &[],
            body: None,
            answers: || json!({ "200": json_of("The cluster.", "Cluster", None) }),
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/v1/cluster/nodes",
            id: "listNodes",
            tag: "Cluster",
            summary: "List the nodes",
            description: "By id, and what each holds.",
            parameters: &["limit", "place"],
            body: None,
            answers: || json!({ "200": json_of("A page.", "NodePage", None) }),
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/v1/cluster/partitions",
            id: "listPartitions",
            tag: "Cluster",
            summary: "List the partitions",
            description: "Who holds each partition of each group.",
            parameters: &["limit", "place"],
            body: None,
            answers: || json!({ "200": json_of("A page.", "PartitionPage", None) }),
            problems: &[],
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
            description: "In that of OpenMetrics for who accepts it.",
            parameters: &[],
            body: None,
            answers: || {
                json!({ "200": {
                    "description": "All metrics, now.",
                    "headers": headers(&[]),
                    "content": {
                        "text/plain": { "schema": { "type": "string" } },
                        "application/openmetrics-text": { "schema": { "type": "string" } },
                    },
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

/// What making a cache may come to.
const OF_SETTINGS: &[Kind] = &[
    Kind::TooSlow,
    Kind::TooLarge,
    Kind::Conflict,
    Kind::UnsupportedMediaType,
    Kind::Unfit,
    Kind::NoRoom,
    Kind::Unsupported,
    Kind::Indeterminate,
];

/// What changing a cache may come to.
const OF_CHANGE: &[Kind] = &[
    Kind::NoSuchCache,
    Kind::Forbidden,
    Kind::TooSlow,
    Kind::TooLarge,
    Kind::Conflict,
    Kind::UnsupportedMediaType,
    Kind::Unfit,
    Kind::NoRoom,
    Kind::Unsupported,
    Kind::Indeterminate,
];
