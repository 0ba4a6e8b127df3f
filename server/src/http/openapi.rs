//! The description of this interface for programs: OpenAPI 3.1 at `/openapi.json`.
//!
//! Schemas come from the types that are sent and received; what a path does and which errors it
//! gives stands in the table of `operations`. The document is the same on every node of a version, and a copy
//! of it is kept as `docs/openapi.json`.

mod operations;
mod parameters;
mod parts;
mod stream_schemas;
mod streams;

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::openapi::ComponentsBuilder;

use self::{
    operations::{Operation, operations},
    parameters::{known_headers, parameters},
    parts::{headers, schema},
};
use super::{
    actions, batch, caches, cluster,
    problem::{self, Document, Kind, MEDIA_TYPE, Problem},
    scan,
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
const OF_ITEM: &[Kind] = &[
    Kind::NoSuchCache,
    Kind::Forbidden,
    Kind::KeyTooLong,
    Kind::Busy,
    Kind::Unsupported,
    Kind::Indeterminate,
];

/// What a request with a body may come to.
const WITH_BODY: &[Kind] = &[Kind::TooSlow, Kind::TooLarge];

fn document() -> Value {
    let mut paths = Map::new();
    for operation in operations() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    let components = ComponentsBuilder::new()
        .schema_from::<Document>()
        .schema_from::<problem::FieldError>()
        .schema_from::<actions::Number>()
        .schema_from::<batch::Batch>()
        .schema_from::<batch::Op>()
        .schema_from::<batch::Operation>()
        .schema_from::<batch::OperationResult>()
        .schema_from::<batch::Results>()
        .schema_from::<scan::Found>()
        .schema_from::<scan::Page>()
        .schema_from::<cluster::Event>()
        .schema_from::<cluster::Group>()
        .schema_from::<cluster::Member>()
        .schema_from::<cluster::NodePage>()
        .schema_from::<cluster::Overview>()
        .schema_from::<cluster::Partition>()
        .schema_from::<cluster::PartitionPage>()
        .schema_from::<cluster::Transfer>()
        .schema_from::<cluster::Warning>()
        .schema_from::<caches::CacheFigures>()
        .schema_from::<caches::Info>()
        .schema_from::<caches::Settings>()
        .schema_from::<caches::List>()
        .build();
    let mut components = serde_json::to_value(components).unwrap_or_default();
    bound(&mut components);
    for (name, schema) in stream_schemas::schemas() {
        components["schemas"][name] = schema;
    }
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
            { "name": "Streams", "description": "Readings in, windows and alarms out." },
            { "name": "Cluster", "description": "All nodes together." },
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

/// Numbers of a type that has a greatest one say so. All are unsigned here: the formats that the
/// derived schemas name them by would end at half of what is taken.
fn bound(value: &mut Value) {
    let (format, maximum) = match value.get("format").and_then(Value::as_str) {
        Some("int32") => ("uint32", json!(u32::MAX)),
        Some("int64") => ("uint64", json!(u64::MAX)),
        _ => ("", Value::Null),
    };
    if !maximum.is_null() {
        value["format"] = format.into();
        if value.get("maximum").is_none() {
            value["maximum"] = maximum;
        }
    }
    match value {
        Value::Array(list) => list.iter_mut().for_each(bound),
        Value::Object(map) => map.values_mut().for_each(bound),
        _ => {}
    }
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
            // Not of any operation: there is none at these.
            if matches!(kind, Kind::NoSuchPath | Kind::MethodNotAllowed) {
                continue;
            }
            assert!(text.contains(&format!("\"{}\"", kind.slug())), "{kind:?}");
        }
    }
}
