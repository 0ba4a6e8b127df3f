//! Many operations in one request: `POST /v1/caches/{cache}/batch`.
//!
//! They are carried out in order, one after the other, and each has its own result: a batch is not
//! a transaction. Requests are JSON, with base64 where bytes are no text, or MessagePack, with bytes
//! as they are; the answer is of the same kind.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use kiln_protocol::command::{
    Arithmetic, Command, Direction, Get, ItemMeta, Outcome, Store, StoreMode, Touch, Ttl,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};
use utoipa::ToSchema;

use super::{
    etag::Condition,
    gateway::Gateway,
    items::{self, Target, check_key, refusal},
    media::{self, Kept},
    object::{Object, whole},
    problem::{Document, Kind, Problem},
    query::{Query, bad_ttl, decimal, ttl},
    upload, value,
};
use crate::{
    caches::Cache,
    http::value::BUSY_RETRY_MS,
    node::Node,
    perform::{OwnedValue, Performed, is_there, perform},
};

/// Operations in one batch.
pub(super) const OPERATIONS_MAX: usize = 1_024;

/// Operations after which others get their turn.
const TURN: usize = 64;

/// Room for a batch beside its longest value, in bytes.
const OVERHEAD_MAX: usize = 256 << 10;

/// Several operations.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    /// What to do, in order.
    #[schema(min_items = 1, max_items = 1024)]
    #[serde(deserialize_with = "operations")]
    pub(super) operations: Vec<Operation>,
}

/// What one operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Op {
    /// Read the item.
    Get,
    /// Read the item and give it a new end.
    GetAndTouch,
    /// Write the value.
    Set,
    /// Write the value if there is no item.
    Add,
    /// Write the value if there is an item.
    Replace,
    /// Put the value behind that of the item.
    Append,
    /// Remove the item.
    Delete,
    /// Give the item a new end.
    Touch,
    /// Add to a number.
    Increment,
    /// Subtract from a number.
    Decrement,
}

/// One operation on one item. Of `key` and `key_base64` there is one, and so of `value` and
/// `value_base64` where a value is needed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    /// What to do.
    op: Op,
    /// The key, as text; in MessagePack also as bytes.
    #[schema(value_type = Option<String>, example = "greeting")]
    key: Option<Octets>,
    /// The key, in base64.
    #[schema(value_type = Option<String>, format = "byte")]
    key_base64: Option<String>,
    /// The value, as text; in MessagePack also as bytes.
    #[schema(value_type = Option<String>, example = "hello")]
    value: Option<Octets>,
    /// The value, in base64.
    #[schema(value_type = Option<String>, format = "byte")]
    value_base64: Option<String>,
    /// How long the item is to stay: `30s`, `5m`, `never`. Without it, as the cache has it.
    #[schema(example = "30s")]
    ttl: Option<String>,
    /// Flag bits, in place of a content type.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    flags: Option<u32>,
    /// The value's content type.
    #[schema(example = "text/plain")]
    content_type: Option<String>,
    /// Only if the item has this version.
    #[schema(example = "17")]
    if_version: Option<String>,
    /// By how much a number changes; 1 without it.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    by: Option<u64>,
    /// The number, if there is none yet.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    initial: Option<u64>,
}

/// Bytes that were given as text or as bytes.
#[derive(Debug)]
struct Octets(Vec<u8>);

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Octets;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text or bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Octets, E> {
                Ok(Octets(text.as_bytes().to_vec()))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Octets, E> {
                Ok(Octets(bytes.to_vec()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Reads no more operations than a batch may have: few bytes can announce many.
fn operations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Operation>, D::Error> {
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<Operation>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "1 to {OPERATIONS_MAX} operations")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut operations = Vec::new();
            while let Some(Object(operation)) = list.next_element()? {
                if operations.len() == OPERATIONS_MAX {
                    let what = format!("a batch has at most {OPERATIONS_MAX} operations");
                    return Err(de::Error::custom(what));
                }
                operations.push(operation);
            }
            if operations.is_empty() {
                return Err(de::Error::custom("a batch has at least one operation"));
            }
            Ok(operations)
        }
    }

    deserializer.deserialize_seq(Bounded)
}

/// What became of the operations.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Results {
    /// One for each operation, in the same order.
    results: Vec<OperationResult>,
}

/// What became of one operation.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct OperationResult {
    /// The status that a request of its own would have had.
    #[schema(minimum = 200, maximum = 599, example = 200)]
    status: u16,
    /// The value, in MessagePack.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "raw")]
    #[schema(ignore)]
    value: Option<Bytes>,
    /// The value, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "byte")]
    value_base64: Option<String>,
    /// The value's content type.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// The item's flag bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    flags: Option<u32>,
    /// The item's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "17")]
    version: Option<String>,
    /// Milliseconds until the item ends, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    ttl_ms: Option<u64>,
    /// The number after it was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    number: Option<u64>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Document>,
}

fn raw<S: serde::Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(value.as_deref().unwrap_or_default())
}

/// How a batch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    MessagePack,
}

impl Format {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let name = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
        let essence = name.map(|name| name.split(';').next().unwrap_or_default().trim());
        match essence.map(str::to_ascii_lowercase).as_deref() {
            None | Some("application/json") => Ok(Self::Json),
            Some("application/msgpack" | "application/vnd.msgpack" | "application/x-msgpack") => {
                Ok(Self::MessagePack)
            }
            Some(_) => Err(Problem::new(
                Kind::UnsupportedMediaType,
                "a batch is application/json or application/msgpack",
            )),
        }
    }
}

/// `POST …/batch`.
pub(super) async fn run(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    Query::parse(parts.uri.query(), &[])?;
    let node = &gateway.node;
    let segment = parts.uri.path().split('/').nth(3).unwrap_or_default();
    let cache = items::open_cache_of(node, segment)?;
    let format = Format::of(&parts.headers)?;
    // In base64 a value takes a third more.
    let len_max = 2 * cache.store.value_len_max() + OVERHEAD_MAX;
    let upload = upload::receive(node, body, len_max, "").await?;
    let Object(batch): Object<Batch> = match format {
        Format::Json => serde_json::from_slice(&upload.bytes)
            .map_err(|error| Problem::bad_request(format!("the batch is wrong: {error}")))?,
        Format::MessagePack => rmp_serde::from_slice(&upload.bytes)
            .map_err(|error| Problem::bad_request(format!("the batch is wrong: {error}")))?,
    };
    drop(upload);

    let room = node.budget.gathered_len_max().max(OVERHEAD_MAX);
    let mut share = node.budget.buffers();
    if !share.resize(room) {
        let detail = "there is no room for the answer to a batch now";
        return Err(Problem::new(Kind::Unavailable, detail).retry_after_ms(BUSY_RETRY_MS));
    }
    node.http.count_operations(batch.operations.len() as u64);
    let mut answer = Answer { format, room };
    let mut results = Vec::with_capacity(batch.operations.len());
    for (number, operation) in batch.operations.into_iter().enumerate() {
        if number % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let result = match operation.run(node, &cache, &mut answer).await {
            Ok(result) => result,
            Err(problem) => OperationResult {
                status: problem.kind().status().as_u16(),
                problem: Some(problem.document()),
                ..OperationResult::default()
            },
        };
        results.push(result);
    }
    let results = Results { results };
    let (bytes, content_type) = match format {
        Format::Json => (serde_json::to_vec(&results).map_err(drop), "application/json"),
        Format::MessagePack => {
            (rmp_serde::to_vec_named(&results).map_err(drop), "application/msgpack")
        }
    };
    let bytes = bytes.map_err(|()| Problem::new(Kind::Internal, "the results have no form"))?;
    let body = value::held(bytes.into(), share);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, content_type)], body).into_response())
}

/// An answer being gathered.
struct Answer {
    format: Format,
    /// Bytes that values may still take.
    room: usize,
}

impl Operation {
    async fn run(
        self,
        node: &Node,
        cache: &Arc<Cache>,
        answer: &mut Answer,
    ) -> Result<OperationResult, Problem> {
        self.check()?;
        let key = bytes("key", self.key, self.key_base64.as_deref())?;
        let key = key.ok_or_else(|| Problem::bad_request("`key` or `key_base64` is needed"))?;
        check_key(&key)?;
        let target = Target { cache: Arc::clone(cache), key };
        let ttl = match self.ttl.as_deref() {
            Some(text) => Some(ttl(text).ok_or_else(|| bad_ttl("ttl"))?),
            None => None,
        };
        let compare = match self.if_version.as_deref() {
            Some(text) => Some(decimal(text).ok_or_else(|| {
                Problem::bad_request("`if_version` must be the digits of a version")
            })?),
            None => None,
        };
        let condition = compare.map(|version| Condition::OneOf(vec![version]));
        let need_ttl = || ttl.ok_or_else(|| Problem::bad_request("`ttl` is needed"));
        match self.op {
            Op::Get => answer.read(node, &target, None).await,
            Op::GetAndTouch => answer.read(node, &target, Some(need_ttl()?)).await,
            Op::Set | Op::Add | Op::Replace => {
                let kept = match (self.flags, self.content_type.as_deref()) {
                    (Some(_), Some(_)) => {
                        let detail = "of `flags` and `content_type` only one can be kept";
                        return Err(Problem::bad_request(detail));
                    }
                    (Some(flags), None) => Kept { flags, spelled: "" },
                    (None, None) => Kept { flags: 0, spelled: "" },
                    (None, Some(text)) => media::keep(text).ok_or_else(|| {
                        Problem::new(Kind::UnsupportedMediaType, "`content_type` is not one")
                    })?,
                };
                let given = value(self.value, self.value_base64.as_deref())?;
                let value = match kept.spelled {
                    "" => given,
                    spelled => [spelled.as_bytes(), &given].concat(),
                };
                check_len(cache, value.len())?;
                let condition = match self.op {
                    Op::Add => Some(Condition::Absent),
                    Op::Replace => Some(condition.unwrap_or(Condition::Exists)),
                    _ => condition,
                };
                let existed = match condition {
                    None => is_there(node, cache, &target.key).await,
                    Some(Condition::Absent) => false,
                    Some(_) => true,
                };
                let ttl = ttl.unwrap_or(Ttl::Default);
                let store = Store { flags: kept.flags, ttl, ..Store::set(&target.key, &value) };
                match items::store_if(node, &target, store, condition.as_ref()).await? {
                    Outcome::Stored(item) if existed => Ok(done(StatusCode::NO_CONTENT, &item)),
                    Outcome::Stored(item) => Ok(done(StatusCode::CREATED, &item)),
                    outcome => Err(refusal(&outcome)),
                }
            }
            Op::Append => {
                let value = value(self.value, self.value_base64.as_deref())?;
                check_len(cache, value.len())?;
                let store = Store {
                    mode: StoreMode::Append,
                    compare,
                    ttl: Ttl::Default,
                    ..Store::set(&target.key, &value)
                };
                match perform(node, cache, Command::Store(store)).await.outcome {
                    Outcome::Stored(item) => Ok(done(StatusCode::NO_CONTENT, &item)),
                    Outcome::NotStored if is_there(node, cache, &target.key).await => {
                        Err(refusal(&Outcome::TooLarge))
                    }
                    Outcome::NotStored => Err(refusal(&Outcome::NotFound)),
                    outcome => Err(compared(compare, &outcome)),
                }
            }
            Op::Delete => match items::delete_if(node, &target, condition.as_ref()).await? {
                Outcome::Deleted => Ok(OperationResult {
                    status: StatusCode::NO_CONTENT.as_u16(),
                    ..OperationResult::default()
                }),
                outcome => Err(refusal(&outcome)),
            },
            Op::Touch => {
                let command = Command::Touch(Touch { key: &target.key, ttl: need_ttl()? });
                match perform(node, cache, command).await.outcome {
                    Outcome::Touched(item) => Ok(done(StatusCode::NO_CONTENT, &item)),
                    outcome => Err(refusal(&outcome)),
                }
            }
            Op::Increment | Op::Decrement => {
                let command = Command::Arithmetic(Arithmetic {
                    key: &target.key,
                    direction: match self.op {
                        Op::Increment => Direction::Increment,
                        _ => Direction::Decrement,
                    },
                    delta: self.by.unwrap_or(1),
                    compare,
                    version: None,
                    create: self.initial.map(|initial| (ttl.unwrap_or(Ttl::Default), initial)),
                    touch: ttl,
                });
                match perform(node, cache, command).await.outcome {
                    Outcome::Number(number, item) => {
                        Ok(OperationResult { number: Some(number), ..done(StatusCode::OK, &item) })
                    }
                    outcome => Err(compared(compare, &outcome)),
                }
            }
        }
    }

    /// Refuses what an operation has no use for: it was meant for something.
    fn check(&self) -> Result<(), Problem> {
        let writes = matches!(self.op, Op::Set | Op::Add | Op::Replace);
        let counts = matches!(self.op, Op::Increment | Op::Decrement);
        let takes_ttl = writes || counts || matches!(self.op, Op::Touch | Op::GetAndTouch);
        let takes_version =
            counts || matches!(self.op, Op::Set | Op::Replace | Op::Append | Op::Delete);
        let takes_value = writes || self.op == Op::Append;
        for (name, is_there, is_taken) in [
            ("value", self.value.is_some() || self.value_base64.is_some(), takes_value),
            ("ttl", self.ttl.is_some(), takes_ttl),
            ("flags", self.flags.is_some(), writes),
            ("content_type", self.content_type.is_some(), writes),
            ("if_version", self.if_version.is_some(), takes_version),
            ("by", self.by.is_some(), counts),
            ("initial", self.initial.is_some(), counts),
        ] {
            if is_there && !is_taken {
                return Err(Problem::bad_request(format!("this operation takes no `{name}`")));
            }
        }
        Ok(())
    }
}

impl Answer {
    async fn read(
        &mut self,
        node: &Node,
        target: &Target,
        touch: Option<Ttl>,
    ) -> Result<OperationResult, Problem> {
        let get = Get { touch, ..Get::plain(&target.key) };
        let Performed { outcome, value } = perform(node, &target.cache, Command::Get(get)).await;
        let (Outcome::Hit(item), Some(value)) = (outcome, value) else {
            return Err(refusal(&outcome));
        };
        let taken = match self.format {
            Format::Json => item.value_len.div_ceil(3) * 4,
            Format::MessagePack => item.value_len,
        };
        self.room = self.room.checked_sub(taken).ok_or_else(|| {
            let detail = "the answer to the batch is full; ask for this item alone";
            Problem::new(Kind::TooLarge, detail)
        })?;
        Ok(self.hit(&item, &value))
    }

    fn hit(&self, item: &ItemMeta, value: &OwnedValue) -> OperationResult {
        let (content_type, start) = items::content(item, value);
        let bytes = value.copy(start..item.value_len);
        let (value, value_base64) = match self.format {
            Format::Json => (None, Some(BASE64.encode(&bytes))),
            Format::MessagePack => (Some(bytes), None),
        };
        OperationResult {
            value,
            value_base64,
            content_type: content_type.to_str().ok().map(str::to_owned),
            flags: Some(item.flags),
            ..done(StatusCode::OK, item)
        }
    }
}

fn done(status: StatusCode, item: &ItemMeta) -> OperationResult {
    OperationResult {
        status: status.as_u16(),
        version: Some(item.version.to_string()),
        ttl_ms: item.ttl_ms,
        ..OperationResult::default()
    }
}

/// Nothing to compare with is as good as another version.
fn compared(compare: Option<u64>, outcome: &Outcome) -> Problem {
    match outcome {
        Outcome::NotFound if compare.is_some() => refusal(&Outcome::Exists),
        outcome => refusal(outcome),
    }
}

fn check_len(cache: &Cache, len: usize) -> Result<(), Problem> {
    let max = cache.store.value_len_max();
    if len > max {
        let detail = format!("the value is longer than the {max} bytes that the cache takes");
        return Err(Problem::new(Kind::TooLarge, detail));
    }
    Ok(())
}

fn value(plain: Option<Octets>, encoded: Option<&str>) -> Result<Vec<u8>, Problem> {
    let value = bytes("value", plain, encoded)?;
    value.ok_or_else(|| Problem::bad_request("`value` or `value_base64` is needed"))
}

fn bytes(
    name: &str,
    plain: Option<Octets>,
    encoded: Option<&str>,
) -> Result<Option<Vec<u8>>, Problem> {
    match (plain, encoded) {
        (Some(_), Some(_)) => {
            Err(Problem::bad_request(format!("of `{name}` and `{name}_base64` give one")))
        }
        (Some(plain), None) => Ok(Some(plain.0)),
        (None, Some(encoded)) => match BASE64.decode(encoded) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(Problem::bad_request(format!("`{name}_base64` is wrong: {error}"))),
        },
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_as_text_in_base64_or_as_they_are() {
        let batch: Batch = serde_json::from_str(
            r#"{"operations":[{"op":"set","key":"a","value_base64":"/w=="},{"op":"get-and-touch","key_base64":"YQ==","ttl":"1s"}]}"#,
        )
        .unwrap();
        assert_eq!(batch.operations[0].op, Op::Set);
        assert_eq!(batch.operations[1].key_base64.as_deref(), Some("YQ=="));

        #[derive(Serialize)]
        struct Raw<'a> {
            op: &'a str,
            #[serde(serialize_with = "bin")]
            key: &'a [u8],
        }
        fn bin<S: serde::Serializer>(bytes: &&[u8], s: S) -> Result<S::Ok, S::Error> {
            s.serialize_bytes(bytes)
        }
        let raw = std::collections::BTreeMap::from([(
            "operations",
            vec![Raw { op: "get", key: b"\xFF" }],
        )]);
        let packed = rmp_serde::to_vec_named(&raw).unwrap();
        let batch: Batch = rmp_serde::from_slice(&packed).unwrap();
        assert_eq!(batch.operations[0].key.as_ref().unwrap().0, b"\xFF");
    }

    #[test]
    fn a_batch_has_a_bound_that_is_held_while_it_is_read() {
        let batch = |count: usize| {
            let operations = vec![r#"{"op":"get","key":"a"}"#; count].join(",");
            serde_json::from_str::<Batch>(&format!(r#"{{"operations":[{operations}]}}"#))
        };
        assert_eq!(batch(OPERATIONS_MAX).unwrap().operations.len(), OPERATIONS_MAX);
        assert!(batch(OPERATIONS_MAX + 1).unwrap_err().to_string().contains("at most 1024"));
        assert!(batch(0).is_err());
    }

    #[test]
    fn what_is_misspelt_or_has_no_use_is_refused() {
        let read = |text: &str| serde_json::from_str::<Operation>(text);
        assert!(read(r#"{"op":"get","key":"a","tll":"1s"}"#).is_err());
        assert!(read(r#"{"op":"got","key":"a"}"#).is_err());
        for useless in [
            r#"{"op":"get","key":"a","ttl":"1s"}"#,
            r#"{"op":"delete","key":"a","value":"x"}"#,
            r#"{"op":"add","key":"a","value":"x","if_version":"1"}"#,
            r#"{"op":"append","key":"a","value":"x","flags":1}"#,
            r#"{"op":"set","key":"a","value":"x","by":1}"#,
        ] {
            assert!(read(useless).unwrap().check().is_err(), "{useless}");
        }
        assert!(
            read(r#"{"op":"set","key":"a","value":"x","if_version":"1"}"#).unwrap().check().is_ok()
        );
    }
}
