//! Requests that may come again: what became of them the first time.
//!
//! A client that lost the answer to an increment cannot know whether to send it again. With an
//! `Idempotency-Key` it can: the same key with the same request is answered from here, and not
//! carried out again. The same key with another request is a mistake, and is refused.
//!
//! The window: the last [`KEYS_MAX`] keys of each cache, for [`KEEP_MS`], and no more than
//! [`KEYS_IN_ALL_MAX`] on a node, where the cache with most gives way. It is this node's alone; `once`
//! keeps what others must know. A request that was not applied leaves no trace;
//! one whose outcome is unknown keeps its key, so that a retry cannot apply it twice.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use parking_lot::Mutex;

use super::problem::{Kind, Problem};

/// Carries the key.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is an earlier one.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Keys of one cache.
pub(super) const KEYS_MAX: usize = 1_024;
/// Keys of all caches.
pub(super) const KEYS_IN_ALL_MAX: usize = 16_384;
/// How long a key is known.
pub(super) const KEEP_MS: u64 = 10 * 60_000;
/// Longest key in bytes.
pub(super) const KEY_LEN_MAX: usize = 128;

/// Who waits for the first try may ask again so soon.
const UNDER_WAY_RETRY_MS: u64 = 100;

/// An answer that can be given again.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its status.
    pub(super) status: StatusCode,
    /// Its headers.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body: a few bytes.
    pub(super) body: Bytes,
}

impl IntoResponse for Kept {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body).into_response();
        let headers = response.headers_mut();
        headers.remove(axum::http::header::CONTENT_TYPE);
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

#[derive(Clone, Debug)]
enum State {
    UnderWay,
    Answered(Kept),
    Unknown,
}

#[derive(Debug)]
struct Entry {
    /// Of the request, so that another one is told apart.
    fingerprint: u64,
    begun_ms: u64,
    state: State,
}

#[derive(Debug, Default)]
struct Window {
    entries: HashMap<Arc<str>, Entry>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
}

impl Window {
    fn drop_oldest(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.entries.remove(&key);
        }
    }

    fn age(&mut self, now_ms: u64) {
        while let Some(key) = self.order.front()
            && self.entries.get(key).is_none_or(|e| now_ms.saturating_sub(e.begun_ms) > KEEP_MS)
        {
            self.drop_oldest();
        }
    }
}

/// The windows of all caches, by the cache's id.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<BTreeMap<u32, Window>>);

/// What to do with a request that has a key.
#[derive(Debug)]
pub(super) enum First<'a> {
    /// Carry it out, and say what became of it.
    Try(Try<'a>),
    /// It was carried out before; this was the answer.
    Again(Box<Kept>),
}

/// The first try of a request. When it is dropped without a word, the outcome counts as unknown.
#[derive(Debug)]
pub(super) struct Try<'a> {
    replays: &'a Replays,
    cache: u32,
    key: Arc<str>,
    told: bool,
}

/// The key that a request has.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let bytes = value.as_bytes();
    let is_good =
        (1..=KEY_LEN_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    let text = value.to_str().ok().filter(|_| is_good);
    let bad = || {
        let what = format!("Idempotency-Key must be 1 to {KEY_LEN_MAX} printable characters");
        Problem::bad_request(what)
    };
    text.map(Some).ok_or_else(bad)
}

impl Replays {
    /// Looks a request up, and notes it when it is the first of its key.
    pub(super) fn begin(
        &self,
        cache: u32,
        key: &str,
        fingerprint: u64,
        now_ms: u64,
    ) -> Result<First<'_>, Problem> {
        let mut windows = self.0.lock();
        let window = windows.entry(cache).or_default();
        window.age(now_ms);
        if let Some(entry) = window.entries.get(key) {
            if entry.fingerprint != fingerprint {
                let detail = "the idempotency key came before, with another request";
                return Err(Problem::new(Kind::KeyReused, detail));
            }
            return match &entry.state {
                State::Answered(kept) => Ok(First::Again(Box::new(kept.clone()))),
                State::UnderWay => {
                    let detail = "the first request with this idempotency key is under way";
                    Err(Problem::new(Kind::Conflict, detail).retry_after_ms(UNDER_WAY_RETRY_MS))
                }
                State::Unknown => {
                    let detail = "the first request with this idempotency key may have been \
                                  carried out or not; read before you send another";
                    Err(Problem::new(Kind::Indeterminate, detail))
                }
            };
        }
        if window.order.len() >= KEYS_MAX {
            window.drop_oldest();
        }
        let key: Arc<str> = key.into();
        let entry = Entry { fingerprint, begun_ms: now_ms, state: State::UnderWay };
        window.entries.insert(Arc::clone(&key), entry);
        window.order.push_back(Arc::clone(&key));
        let total: usize = windows.values().map(|window| window.order.len()).sum();
        if total > KEYS_IN_ALL_MAX
            && let Some(fullest) = windows.values_mut().max_by_key(|window| window.order.len())
        {
            fullest.drop_oldest();
        }
        // Caches come and go; what is left of them goes with their last key.
        windows.retain(|id, window| {
            if *id != cache {
                window.age(now_ms);
            }
            !window.order.is_empty()
        });
        Ok(First::Try(Try { replays: self, cache, key, told: false }))
    }

    fn settle(&self, cache: u32, key: &Arc<str>, state: Option<State>) {
        let mut windows = self.0.lock();
        let Some(window) = windows.get_mut(&cache) else { return };
        match state {
            Some(state) => {
                if let Some(entry) = window.entries.get_mut(key) {
                    entry.state = state;
                }
            }
            None => {
                window.entries.remove(key);
                window.order.retain(|other| other != key);
            }
        }
    }
}

impl Try<'_> {
    /// This is the answer, now and when the request comes again.
    pub(super) fn answered(mut self, kept: Kept) {
        self.told = true;
        self.replays.settle(self.cache, &self.key, Some(State::Answered(kept)));
    }

    /// The request was not carried out: the next one with the key is the first.
    pub(super) fn forget(mut self) {
        self.told = true;
        self.replays.settle(self.cache, &self.key, None);
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.replays.settle(self.cache, &self.key, Some(State::Unknown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &'static str) -> Kept {
        Kept { status: StatusCode::OK, headers: vec![], body: Bytes::from_static(text.as_bytes()) }
    }

    fn first<'a>(replays: &'a Replays, key: &str, now_ms: u64) -> Try<'a> {
        match replays.begin(1, key, 7, now_ms).unwrap() {
            First::Try(first) => first,
            First::Again(kept) => panic!("{kept:?}"),
        }
    }

    #[test]
    fn a_request_that_comes_again_is_answered_and_not_carried_out() {
        let replays = Replays::default();
        let under_way = first(&replays, "a", 0);
        assert_eq!(replays.begin(1, "a", 7, 1).unwrap_err().kind(), Kind::Conflict);
        under_way.answered(kept("5"));
        let First::Again(again) = replays.begin(1, "a", 7, 2).unwrap() else { panic!() };
        assert_eq!(again.body, "5");
        assert_eq!(replays.begin(1, "a", 8, 3).unwrap_err().kind(), Kind::KeyReused);
        // In another cache it is another key.
        assert!(matches!(replays.begin(2, "a", 8, 3), Ok(First::Try(_))));
    }

    #[test]
    fn what_was_not_applied_may_be_tried_again_and_what_is_unknown_may_not() {
        let replays = Replays::default();
        first(&replays, "a", 0).forget();
        drop(first(&replays, "a", 1));
        assert_eq!(replays.begin(1, "a", 7, 2).unwrap_err().kind(), Kind::Indeterminate);
    }

    #[test]
    fn keys_are_forgotten_by_number_and_by_age() {
        let replays = Replays::default();
        for number in 0..=KEYS_MAX {
            first(&replays, &number.to_string(), 10).answered(kept("x"));
        }
        first(&replays, "0", 10).answered(kept("y"));
        assert!(matches!(replays.begin(1, "2", 7, 10), Ok(First::Again(_))));
        assert!(matches!(replays.begin(1, "2", 7, 11 + KEEP_MS), Ok(First::Try(_))));
    }

    #[test]
    fn all_caches_together_have_a_bound() {
        let replays = Replays::default();
        for cache in 0..40 {
            for number in 0..600 {
                if let Ok(First::Try(first)) = replays.begin(cache, &number.to_string(), 7, 0) {
                    first.answered(kept("x"));
                }
            }
        }
        let windows = replays.0.lock();
        let total: usize = windows.values().map(|window| window.order.len()).sum();
        assert_eq!(total, KEYS_IN_ALL_MAX);
        assert!(windows.values().all(|w| w.order.len() == w.entries.len() && w.order.len() > 300));
    }
}
