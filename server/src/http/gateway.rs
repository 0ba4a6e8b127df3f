//! What every request passes, whatever it asks for: it gets a name, shows its credentials, is
//! measured, and what goes wrong on the way becomes a problem document.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::{
    links::Link,
    problem::{Kind, Problem},
    replays::Replays,
    value::ENCODERS_MAX,
};
use crate::{node::Node, op_times::KINDS};

/// Echoed, and made up when there is none.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Of W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest request id that is echoed.
const REQUEST_ID_LEN_MAX: usize = 128;

/// What all routes share.
pub(super) struct Gateway {
    /// The node.
    pub(super) node: Arc<Node>,
    /// Answers to requests that may come again.
    pub(super) replays: Replays,
    /// Answers that may be compressed at the same time.
    pub(super) encoders: Arc<Semaphore>,
    requests: AtomicU64,
}

/// An answer, measured to its last byte.
pub(super) type Answered = Response<Measured>;

impl Gateway {
    /// The gateway of a node.
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            replays: Replays::default(),
            encoders: Arc::new(Semaphore::new(ENCODERS_MAX)),
            requests: AtomicU64::new(0),
        }
    }

    /// Answers a request.
    pub(super) async fn answer(
        self: &Arc<Self>,
        router: Router,
        request: Request<Incoming>,
        link: Arc<Link>,
        thread: usize,
    ) -> Answered {
        let mut measure = Measure::begin(Arc::clone(self), link, thread);
        measure.kind = kind_of(&request);
        let id = self.request_id(request.headers());
        let log = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            let trace = trace_id(request.headers()).map(str::to_owned);
            (request.method().clone(), request.uri().clone(), trace)
        });
        let response = match self.refuse(&request) {
            Some(problem) => problem.into_response(),
            // The router cannot fail.
            None => router.oneshot(request.map(Body::new)).await.into_response(),
        };
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(REQUEST_ID, id);
        if let Some((method, uri, trace)) = log {
            let (status, id) = (parts.status.as_u16(), &parts.headers[REQUEST_ID]);
            let path = uri.path();
            tracing::debug!(%method, path, status, request = ?id, trace, "HTTP request");
        }
        let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            measure.never_ends();
        }
        measure.status = parts.status.as_u16();
        Response::from_parts(parts, Measured { body, _measure: measure })
    }

    /// What keeps a request from its route.
    fn refuse(&self, request: &Request<Incoming>) -> Option<Problem> {
        // Probes have no credentials.
        let auth = self.node.auth.as_ref()?;
        if matches!(request.uri().path(), "/livez" | "/readyz") {
            return None;
        }
        let given = request.headers().get(header::AUTHORIZATION);
        if given.and_then(credentials).is_some_and(|given| auth.check(&given)) {
            return None;
        }
        let detail = match given {
            None => "this node asks for user and password",
            Some(_) => "user or password is wrong",
        };
        let challenge = HeaderValue::from_static("Basic realm=\"kiln\", charset=\"UTF-8\"");
        let problem = Problem::new(Kind::Unauthenticated, detail);
        Some(problem.header(header::WWW_AUTHENTICATE, challenge))
    }

    /// The name of a request: the client's own, that of the trace it is part of, or a new one.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(id) = headers.get(&REQUEST_ID) {
            let bytes = id.as_bytes();
            let is_good = (1..=REQUEST_ID_LEN_MAX).contains(&bytes.len())
                && bytes.iter().all(u8::is_ascii_graphic);
            if is_good {
                return id.clone();
            }
        }
        let made = match trace_id(headers) {
            Some(trace) => HeaderValue::from_str(trace),
            None => {
                let number = self.requests.fetch_add(1, Relaxed);
                HeaderValue::try_from(format!("{:08x}-{number:x}", self.node.incarnation as u32))
            }
        };
        // Hexadecimal digits and a dash.
        made.unwrap_or(HeaderValue::from_static("0"))
    }
}

/// The trace that a request is part of, if its header is well-formed.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(&TRACEPARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let mut next = |len: usize| {
        let part = parts.next()?;
        let is_hex = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (part.len() == len && is_hex).then_some(part)
    };
    let (version, trace, parent, _flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
    // Later versions may have more behind these four.
    let is_good = version != "ff" && !is_zero(trace) && !is_zero(parent);
    (is_good && (version != "00" || parts.next().is_none())).then_some(trace)
}

/// User and password of HTTP Basic, as the file of users is asked for them.
fn credentials(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let mut given = BASE64.decode(encoded.trim()).ok()?;
    let colon = given.iter().position(|b| *b == b':')?;
    // A space in the user would make two pairs look the same.
    if given[..colon].contains(&b' ') {
        return None;
    }
    given[colon] = b' ';
    Some(given)
}

/// One request, from its head to the last byte of its answer.
struct Measure {
    gateway: Arc<Gateway>,
    link: Arc<Link>,
    thread: usize,
    begun: Instant,
    /// 0 until there is one: the client left before.
    status: u16,
    endless: bool,
    /// Of operation on an item.
    kind: Option<usize>,
}

impl Measure {
    fn begin(gateway: Arc<Gateway>, link: Arc<Link>, thread: usize) -> Self {
        link.begin(gateway.node.clock.now_ms());
        Self { gateway, link, thread, begun: Instant::now(), status: 0, endless: false, kind: None }
    }

    fn never_ends(&mut self) {
        self.endless = true;
        self.link.never_ends();
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        let node = &self.gateway.node;
        self.link.end(self.endless, node.clock.now_ms());
        if !self.endless {
            let took = self.begun.elapsed();
            node.http.count_answer(self.thread, self.status, took);
            if let Some(kind) = self.kind {
                node.http.count_time(self.thread, kind, took);
            }
        }
    }
}

/// Which kind of operation on an item a request is, by its place in [`KINDS`].
fn kind_of(request: &Request<Incoming>) -> Option<usize> {
    let mut segments = request.uri().path().strip_prefix("/v1/caches/")?.split('/').skip(1);
    if segments.next() != Some("keys") {
        return None;
    }
    segments.next()?;
    let name = match (request.method(), segments.next()) {
        (&Method::GET | &Method::HEAD, None) => "get",
        (&Method::PUT, None) | (&Method::POST, Some("append")) => "store",
        (&Method::DELETE, None) => "delete",
        (&Method::POST, Some("increment" | "decrement")) => "arithmetic",
        (&Method::POST, Some("touch" | "get-and-touch")) => "touch",
        _ => return None,
    };
    KINDS.iter().position(|kind| *kind == name)
}

/// A body that knows when it was handed over.
pub(super) struct Measured {
    body: Body,
    _measure: Measure,
}

impl http_body::Body for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_user_and_password_with_the_first_colon_between() {
        let given = |text: &str| {
            let value = format!("Basic {}", BASE64.encode(text));
            credentials(&HeaderValue::from_str(&value).unwrap())
        };
        assert_eq!(given("ann:secret").unwrap(), b"ann secret");
        assert_eq!(given("bob:a:b c").unwrap(), b"bob a:b c");
        assert_eq!(given("ann"), None);
        assert_eq!(given("a nn:x"), None);
        for bad in ["Bearer YTpi", "Basic", "Basic !!", "basic"] {
            assert_eq!(credentials(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }

    #[test]
    fn only_a_well_formed_traceparent_names_a_trace() {
        let trace = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_str(text).unwrap());
            trace_id(&headers).map(str::to_owned)
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert!(trace(&format!("{}-more", good.replacen("00", "01", 1))).is_some());
        for bad in [
            "",
            "00-4bf9-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace(bad), None, "{bad}");
        }
        assert_eq!(trace(&format!("{good}-more")), None);
    }
}
