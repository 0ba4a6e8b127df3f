//! Errors as problem documents (RFC 9457): what is wrong, what is true now, and whether another try
//! can help.
//!
//! Each [`Kind`] is one `type`, with one title and one status, and is described at `/docs`, to
//! which its `type` leads. A document is written in one place, [`Problem::into_response`], so that
//! no error of this server looks different.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem document.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// Characters of a request that a document repeats.
const ECHO_LEN_MAX: usize = 200;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $slug:literal, $status:ident, $title:literal;)+) => {
        /// What kind of error it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Kind {
            /// All kinds.
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The kind that a document's `type` names.
            pub(super) fn of_type(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| type_of(*kind) == text)
            }

            /// The last part of the kind's `type`.
            pub(super) const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)+ }
            }

            /// The kind in a few words, the same each time.
            pub(super) const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)+ }
            }

            /// The status it comes with.
            pub(super) const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }

            /// What it means, for the documentation.
            pub(super) const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

kinds! {
    /// The request is not well-formed: a path, query, header or body says what cannot be read.
    BadRequest = "bad-request", BAD_REQUEST, "Bad request";
    /// The node asks for a user and a password, and these are not them.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "Unauthenticated";
    /// The node's settings do not allow this to anyone, or the cache is a stream's own.
    Forbidden = "forbidden", FORBIDDEN, "Forbidden";
    /// There is nothing at this path.
    NoSuchPath = "no-such-path", NOT_FOUND, "No such path";
    /// There is no cache of this name.
    NoSuchCache = "no-such-cache", NOT_FOUND, "No such cache";
    /// There is no stream of this name.
    NoSuchStream = "no-such-stream", NOT_FOUND, "No such stream";
    /// A miss: the cache has no item with this key.
    Miss = "miss", NOT_FOUND, "No such item";
    /// The path is there, but not for this method; `Allow` says for which.
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    /// The body did not come in time. Nothing was done.
    TooSlow = "too-slow", REQUEST_TIMEOUT, "Request too slow";
    /// What is there is at odds with the request. Nothing was changed.
    Conflict = "conflict", CONFLICT, "Conflict";
    /// Every copy of the key's partition was lost since: whether there was an item is unknown, and
    /// now there is none.
    Lost = "lost", GONE, "Lost";
    /// A condition of the request (`If-Match`, `If-None-Match`) does not hold. Nothing was changed.
    ConditionFailed = "condition-failed", PRECONDITION_FAILED, "Condition failed";
    /// The body, or the value it would make, is longer than the cache takes.
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, "Too large";
    /// The address of the request is longer than the node takes.
    UriTooLong = "uri-too-long", URI_TOO_LONG, "URI too long";
    /// The key is longer than a key may be.
    KeyTooLong = "key-too-long", URI_TOO_LONG, "Key too long";
    /// The body is of a media type that this does not take.
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "Unsupported media type";
    /// No byte of the value is in the range asked for; `Content-Range` says how long it is.
    RangeNotSatisfiable = "range-not-satisfiable", RANGE_NOT_SATISFIABLE, "Range not satisfiable";
    /// Parameters or settings are well-formed, but do not fit together, or the node cannot have them.
    Unfit = "unfit", UNPROCESSABLE_ENTITY, "Unfit";
    /// The idempotency key came before, with another request.
    KeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, "Idempotency key reused";
    /// The request's head is longer, or has more lines, than the node takes.
    HeadTooLarge = "head-too-large", REQUEST_HEADER_FIELDS_TOO_LARGE, "Head too large";
    /// Too many requests wait already. Nothing was done; try again after `Retry-After`.
    Busy = "busy", TOO_MANY_REQUESTS, "Busy";
    /// A fault of the node; its log says more.
    Internal = "internal", INTERNAL_SERVER_ERROR, "Internal error";
    /// The cache cannot do this.
    Unsupported = "unsupported", NOT_IMPLEMENTED, "Not supported";
    /// Not available now. Nothing was done; try again after `Retry-After`.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Unavailable";
    /// Whether the request was carried out is unknown: the node that had it failed, or did not answer.
    /// Read before trying again, or send the same `Idempotency-Key`.
    Indeterminate = "indeterminate", GATEWAY_TIMEOUT, "Indeterminate";
    /// There is no room for the value: the cache evicts nothing, or nothing could be evicted.
    NoRoom = "no-room", INSUFFICIENT_STORAGE, "No room";
}

/// One error.
#[derive(Clone, Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: Kind,
    detail: Cow<'static, str>,
    retry_after_ms: Option<u64>,
    errors: Vec<FieldError>,
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document {
    /// Which kind of problem; leads to its description.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", example = "/docs#problem-miss")]
    pub(super) kind: String,
    /// The kind in a few words.
    #[schema(example = "No such item")]
    pub(super) title: String,
    /// The same as the status of the answer.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    pub(super) status: u16,
    /// What is wrong this time.
    #[schema(example = "the cache has no item with this key")]
    pub(super) detail: String,
    /// With problems that pass: milliseconds after which another try makes sense. `Retry-After` says
    /// the same in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub(super) retry_after_ms: Option<u64>,
    /// Where several parts of a request can be wrong: which, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<FieldError>,
}

/// What is wrong with one part of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct FieldError {
    /// The name of the field.
    #[schema(example = "copies")]
    field: String,
    /// What is wrong with it.
    #[schema(example = "cannot be changed: it says where the items lie")]
    detail: String,
}

impl FieldError {
    /// This is wrong with a field.
    pub(super) fn new(field: &str, detail: impl Into<String>) -> Self {
        Self { field: field.to_owned(), detail: detail.into() }
    }

    /// The name of the field.
    pub(super) fn field(&self) -> &str {
        &self.field
    }
}

impl Problem {
    /// A problem, and in `detail` what is wrong this time.
    pub(super) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            kind,
            detail: detail.into(),
            retry_after_ms: None,
            errors: Vec::new(),
            headers: Vec::new(),
        }))
    }

    /// What cannot be read.
    pub(super) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    /// Another try makes sense after so long.
    pub(super) fn retry_after_ms(mut self, ms: u64) -> Self {
        self.0.retry_after_ms = Some(ms);
        self
    }

    /// Says which parts of the request are wrong.
    pub(super) fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// The same kind, with other words about this time.
    pub(super) fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Adds a header to the answer.
    pub(super) fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Its kind.
    pub(super) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// As clients get it.
    pub(super) fn document(&self) -> Document {
        Document {
            kind: type_of(self.0.kind),
            title: self.0.kind.title().to_owned(),
            status: self.0.kind.status().as_u16(),
            detail: self.0.detail.clone().into_owned(),
            retry_after_ms: self.0.retry_after_ms,
            errors: self.0.errors.clone(),
        }
    }
}

/// The `type` of a kind: where `/docs` describes it.
pub(super) fn type_of(kind: Kind) -> String {
    format!("/docs#problem-{}", kind.slug())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = self.document();
        let mut response = write(self.0.kind.status(), &document);
        let headers = response.headers_mut();
        for (name, value) in self.0.headers {
            headers.insert(name, value);
        }
        if let Some(ms) = document.retry_after_ms {
            // In whole seconds, and a second at least: so the header wants it.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000).max(1)));
        }
        response
    }
}

/// There is nothing at this path.
pub(super) async fn not_found(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(ECHO_LEN_MAX).collect();
    Problem::new(Kind::NoSuchPath, format!("there is nothing at {path}")).into_response()
}

/// The path is there, but not for this method; `Allow` says for which.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(ECHO_LEN_MAX).collect();
    let method: String = method.as_str().chars().take(20).collect();
    let detail = format!("{path} does not know the method {method}");
    Problem::new(Kind::MethodNotAllowed, detail).into_response()
}

/// A fault of ours; the log says more.
pub(super) fn internal_error() -> Response {
    Problem::new(Kind::Internal, "the node could not answer; its log says why").into_response()
}

fn write(status: StatusCode, document: &Document) -> Response {
    // A structure of strings and numbers always has a form in JSON.
    let body = serde_json::to_string(document).unwrap_or_default();
    let headers = [(header::CONTENT_TYPE, MEDIA_TYPE), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_an_error_for_its_status() {
        let slugs: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{kind:?}");
            assert!(kind.meaning().ends_with('.') && !kind.title().is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn a_time_to_wait_is_told_in_whole_seconds_and_is_never_none() {
        for (ms, seconds) in [(0, "1"), (20, "1"), (1_000, "1"), (1_001, "2")] {
            let response = Problem::new(Kind::Busy, "full").retry_after_ms(ms).into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
        }
        let response = Problem::new(Kind::Miss, "none").into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
