//! What is done to an item that is neither reading nor replacing it: numbers, appending, a new end.
//!
//! Numbers and appending are not safe to repeat, so they take an `Idempotency-Key` (see `replays`).

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use kiln_protocol::command::{
    Arithmetic, Command, Direction, Get, ItemMeta, Outcome, Store, StoreMode, Touch, Ttl,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use xxhash_rust::xxh3::Xxh3;

use super::{
    etag::{self, Condition},
    gateway::Gateway,
    items::{self, Target, refusal},
    once::{self, Begun},
    problem::{Kind, Problem},
    query::Query,
    replays::{First, Kept, REPLAYED, key_of},
    upload,
};
use crate::perform::{is_there, perform};

/// A number after it was changed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Number {
    /// What it is now.
    #[schema(minimum = 0, example = 42)]
    pub(super) number: u64,
}

/// `POST …/increment`.
pub(super) async fn increment(
    state: State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    arithmetic(state, request, Direction::Increment).await
}

/// `POST …/decrement`.
pub(super) async fn decrement(
    state: State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    arithmetic(state, request, Direction::Decrement).await
}

async fn arithmetic(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    direction: Direction,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query(), &["by", "initial", "ttl"])?;
    let target = Target::of(&gateway.node, &parts.uri)?;
    let delta = query.number("by", u64::MAX)?.unwrap_or(1);
    let initial = query.number("initial", u64::MAX)?;
    let ttl = query.ttl("ttl")?;
    key_of(&parts.headers)?;
    let command = Command::Arithmetic(Arithmetic {
        key: &target.key,
        direction,
        delta,
        compare: compare(&parts.headers)?,
        version: None,
        create: initial.map(|initial| (ttl.unwrap_or(Ttl::Default), initial)),
        touch: ttl,
    });
    nothing_in(&gateway, body).await?;
    once(&gateway, &target, &parts.method, &parts.uri, &parts.headers, &[], command).await
}

/// `POST …/append`.
pub(super) async fn append(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query(), &["create", "ttl"])?;
    let target = Target::of(&gateway.node, &parts.uri)?;
    let ttl = query.ttl("ttl")?;
    let create = query.switch("create")?;
    key_of(&parts.headers)?;
    let compare = compare(&parts.headers)?;
    if ttl.is_some() && !create {
        let detail =
            "an item that is appended to keeps its end: `ttl` goes with `create=true` only";
        return Err(Problem::new(Kind::Unfit, detail));
    }
    let len_max = target.cache.store.value_len_max();
    let upload = upload::receive(&gateway.node, body, len_max, "").await?;
    let command = Command::Store(Store {
        mode: StoreMode::Append,
        compare,
        ttl: Ttl::Default,
        vivify: create.then_some(ttl.unwrap_or(Ttl::Default)),
        ..Store::set(&target.key, &upload.bytes)
    });
    let (method, uri, headers) = (&parts.method, &parts.uri, &parts.headers);
    once(&gateway, &target, method, uri, headers, &upload.bytes, command).await
}

/// `POST …/touch`.
pub(super) async fn touch(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (target, ttl) = touched(&gateway, &parts.uri)?;
    if Condition::of(&parts.headers)?.is_some() {
        return Err(Problem::bad_request("touch takes no condition"));
    }
    nothing_in(&gateway, body).await?;
    gateway.node.http.count_operations(1);
    let command = Command::Touch(Touch { key: &target.key, ttl });
    match perform(&gateway.node, &target.cache, command).await.outcome {
        Outcome::Touched(item) => {
            let mut response = StatusCode::NO_CONTENT.into_response();
            items::describe(response.headers_mut(), &item);
            Ok(response)
        }
        outcome => Err(refusal(&outcome)),
    }
}

/// `POST …/get-and-touch`.
pub(super) async fn get_and_touch(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (target, ttl) = touched(&gateway, &parts.uri)?;
    if Condition::of(&parts.headers)?.is_some() {
        return Err(Problem::bad_request("get-and-touch takes no condition"));
    }
    nothing_in(&gateway, body).await?;
    let get = Get { touch: Some(ttl), ..Get::plain(&target.key) };
    items::respond(&gateway, &target, get, &Method::POST, &parts.headers).await
}

fn touched(gateway: &Gateway, uri: &Uri) -> Result<(Target, Ttl), Problem> {
    let query = Query::parse(uri.query(), &["ttl"])?;
    let target = Target::of(&gateway.node, uri)?;
    let ttl = query.ttl("ttl")?;
    let ttl = ttl.ok_or_else(|| Problem::bad_request("`ttl` is needed: the item's new end"))?;
    Ok((target, ttl))
}

/// The version that the item must have.
fn compare(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    Condition::of(headers)?.map(|condition| condition.single()).transpose()
}

/// Requests that say all in their address have no body.
async fn nothing_in(gateway: &Gateway, body: axum::body::Body) -> Result<(), Problem> {
    match upload::receive(&gateway.node, body, 0, "").await {
        Err(problem) if problem.kind() == Kind::TooLarge => {
            Err(Problem::bad_request("this takes no body: parameters are in the address"))
        }
        other => other.map(drop),
    }
}

/// Carries out a command that must not be repeated by mistake.
async fn once(
    gateway: &Gateway,
    target: &Target,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
    command: Command<'_>,
) -> Result<Response, Problem> {
    let node = &gateway.node;
    let Some(key) = key_of(headers)? else {
        let outcome = carry_out(gateway, target, command).await;
        return answer(&outcome, headers).map(IntoResponse::into_response);
    };
    let fingerprint = fingerprint(method, uri, headers, body);
    let first = gateway.replays.begin(target.cache.id, key, fingerprint, node.clock.now_ms())?;
    let again = |kept: Kept| {
        let mut response = kept.into_response();
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        response
    };
    let first = match first {
        First::Try(first) => first,
        First::Again(kept) => return Ok(again(*kept)),
    };
    let noted = match once::begin(node, &target.cache, key, fingerprint).await {
        Ok(Some(Begun::First(noted))) => Some(noted),
        Ok(Some(Begun::Again(kept))) => {
            first.answered(kept.clone());
            return Ok(again(kept));
        }
        Ok(None) => None,
        Err(problem) => {
            first.forget();
            return Err(problem);
        }
    };
    let outcome = carry_out(gateway, target, command).await;
    match answer(&outcome, headers) {
        Ok(kept) => {
            if let Some(noted) = noted {
                noted.answered(&kept).await;
            }
            first.answered(kept.clone());
            Ok(kept.into_response())
        }
        Err(problem) => {
            // Dropped without a word, the outcome counts as unknown.
            if outcome != Outcome::Indeterminate {
                if let Some(noted) = noted {
                    noted.forget().await;
                }
                first.forget();
            }
            Err(problem)
        }
    }
}

async fn carry_out(gateway: &Gateway, target: &Target, command: Command<'_>) -> Outcome {
    let node = &gateway.node;
    node.http.count_operations(1);
    match perform(node, &target.cache, command).await.outcome {
        // Appending says only that it did not: to nothing, or to more than the cache takes?
        Outcome::NotStored if is_there(node, &target.cache, &target.key).await => Outcome::TooLarge,
        Outcome::NotStored => Outcome::NotFound,
        outcome => outcome,
    }
}

/// What tells one request from another.
fn fingerprint(method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    let compare = headers.get(header::IF_MATCH).map_or(&b""[..], HeaderValue::as_bytes);
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    for part in [method.as_str().as_bytes(), path.as_bytes(), compare, body] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// The answer to a number or to appending.
fn answer(outcome: &Outcome, headers: &HeaderMap) -> Result<Kept, Problem> {
    let kept = |item: &ItemMeta, status, body: Bytes| {
        let mut described = HeaderMap::new();
        items::describe(&mut described, item);
        let mut headers: Vec<_> =
            described.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if !body.is_empty() {
            headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        Kept { status, headers, body }
    };
    match outcome {
        Outcome::Number(number, item) => {
            let body = serde_json::to_vec(&Number { number: *number }).unwrap_or_default();
            Ok(kept(item, StatusCode::OK, body.into()))
        }
        Outcome::Stored(item) => Ok(kept(item, StatusCode::NO_CONTENT, Bytes::new())),
        Outcome::NotFound if headers.contains_key(header::IF_MATCH) => Err(etag::failed()),
        outcome => Err(refusal(outcome)),
    }
}
