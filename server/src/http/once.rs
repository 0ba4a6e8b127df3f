//! Requests that come again at another node.
//!
//! `replays` knows what this node answered. In a cluster a load balancer may send a retry anywhere,
//! so the key of a request is also an item of the same cache, kept as safely as the cache keeps its
//! items: written before the request is carried out, filled with the answer afterwards, gone after
//! [`KEEP_MS`]. Whoever finds it carries nothing out. One that was never filled is a request whose
//! node failed on the way: once nobody can be at it any more, its outcome counts as unknown.
//!
//! Such items are not shown in scans. They cost two writes a request; on a node that is alone there
//! are none. In an eventual cache two nodes that do not see each other may both carry it out: that
//! is what the mode gives up.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use kiln_protocol::command::{Command, Delete, Get, Outcome, Store, StoreMode, Ttl};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    across,
    items::refusal,
    problem::{Kind, Problem},
    replays::{KEEP_MS, Kept},
};
use crate::{caches::Cache, cluster::PATIENCE_MS, node::Node, perform::perform};

/// Keys that begin so are those of requests.
const PREFIX: &[u8] = b"\0kiln.once\0";

/// A request that is not answered after so long is carried out by nobody any more: twice the time
/// that the cluster is given, for clocks that differ.
const UNDER_WAY_MS: u64 = 2 * PATIENCE_MS as u64;

/// Who waits for the first try may ask again so soon.
const RETRY_MS: u64 = 100;

/// Whether an item is one of these and none of a client.
pub(super) fn is_of_request(key: &[u8]) -> bool {
    key.starts_with(PREFIX)
}

/// What to do with a request.
pub(super) enum Begun<'a> {
    /// It is the first of its key.
    First(Noted<'a>),
    /// It was carried out, perhaps by another node; this was the answer.
    Again(Kept),
}

/// The note of a request that is being carried out. Dropped without a word, it stays as it is.
pub(super) struct Noted<'a> {
    node: &'a Node,
    cache: &'a Arc<Cache>,
    key: Vec<u8>,
    record: Record,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    fingerprint: u64,
    begun_ms: u64,
    /// Who noted it: a note may be written although the answer to writing it was lost.
    by: (u64, u64),
    answer: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// Notes a request, or finds it noted. Nothing to do on a node that is alone.
pub(super) async fn begin<'a>(
    node: &'a Node,
    cache: &'a Arc<Cache>,
    key: &str,
    fingerprint: u64,
) -> Result<Option<Begun<'a>>, Problem> {
    if across::table(node).is_none() {
        return Ok(None);
    }
    let key = [PREFIX, &xxh3_128(key.as_bytes()).to_be_bytes()].concat();
    let now_ms = node.clock.now_ms();
    let by = (node.incarnation, crate::node::random());
    let record = Record { fingerprint, begun_ms: now_ms, by, answer: None };
    let noted = Noted { node, cache, key, record };
    match noted.write(StoreMode::Add).await {
        Outcome::Stored(_) => Ok(Some(Begun::First(noted))),
        // It may be there all the same: then it is found to be this one.
        Outcome::NotStored | Outcome::Indeterminate => noted.found(now_ms).await.map(Some),
        // The cache has no room for an answer: nothing was carried out.
        outcome => Err(refusal(&outcome)),
    }
}

impl<'a> Noted<'a> {
    async fn write(&self, mode: StoreMode) -> Outcome {
        let value = serde_json::to_vec(&self.record).unwrap_or_default();
        let ttl = Ttl::After(KEEP_MS);
        let store = Store { mode, ttl, ..Store::set(&self.key, &value) };
        perform(self.node, self.cache, Command::Store(store)).await.outcome
    }

    /// What the note that is there says.
    async fn found(self, now_ms: u64) -> Result<Begun<'a>, Problem> {
        let get = Command::Get(Get { no_bump: true, ..Get::plain(&self.key) });
        let performed = perform(self.node, self.cache, get).await;
        let value = match (performed.outcome, performed.value) {
            (Outcome::Hit(item), Some(value)) => value.copy(0..item.value_len),
            // It ended just now, or was never written.
            (Outcome::NotFound, _) => return Err(under_way()),
            (outcome, _) => return Err(refusal(&outcome)),
        };
        let Ok(record) = serde_json::from_slice::<Record>(&value) else {
            let detail = "what is kept under the idempotency key cannot be read";
            return Err(Problem::new(Kind::Conflict, detail));
        };
        if record.by == self.record.by {
            return Ok(Begun::First(self));
        }
        if record.fingerprint != self.record.fingerprint {
            let detail = "the idempotency key came before, with another request";
            return Err(Problem::new(Kind::KeyReused, detail));
        }
        match record.answer {
            Some(answer) => answer.kept().map(Begun::Again).ok_or_else(under_way),
            None if now_ms.saturating_sub(record.begun_ms) < UNDER_WAY_MS => Err(under_way()),
            None => {
                let detail = "the first request with this idempotency key may have been carried \
                              out or not; read before you send another";
                Err(Problem::new(Kind::Indeterminate, detail))
            }
        }
    }

    /// This is the answer, now and when the request comes again.
    pub(super) async fn answered(mut self, kept: &Kept) {
        let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
        self.record.answer = Some(Answer {
            status: kept.status.as_u16(),
            headers: kept
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body: String::from_utf8_lossy(&kept.body).into_owned(),
        });
        // When it cannot be written the note stays open, and a retry elsewhere counts as unknown.
        let outcome = self.write(StoreMode::Set).await;
        if !matches!(outcome, Outcome::Stored(_)) {
            tracing::debug!(?outcome, "an answer is kept on this node only");
        }
    }

    /// The request was not carried out: the next one with the key is the first.
    pub(super) async fn forget(self) {
        let delete = Command::Delete(Delete::plain(&self.key));
        perform(self.node, self.cache, delete).await;
    }
}

impl Answer {
    fn kept(self) -> Option<Kept> {
        let header = |(name, value): (String, String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        Some(Kept {
            status: StatusCode::from_u16(self.status).ok()?,
            headers: self.headers.into_iter().map(header).collect::<Option<_>>()?,
            body: self.body.into(),
        })
    }
}

fn under_way() -> Problem {
    let detail = "the first request with this idempotency key is under way";
    Problem::new(Kind::Conflict, detail).retry_after_ms(RETRY_MS)
}

const _: () = assert!(Duration::from_millis(KEEP_MS).as_secs() > 2 * UNDER_WAY_MS / 1_000);
