//! The write API of InfluxDB, versions 1 and 2: what speaks it (Telegraf, client libraries, devices)
//! sends to a stream without knowing.
//!
//! The database or bucket is the stream, which must have the format `influx`. The answers are chosen
//! for what senders do next: 204 goes on; 400 drops the batch, and is sent when some of its lines are
//! bad and the others were taken in; 413 sends smaller ones; 429 waits. A 500 would be repeated for
//! ever, so bad data never gets one.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use kiln_stream::parse::{Format, Unit};
use serde_json::json;

use super::readings::{anonymous, inflated};
use crate::{
    http::{
        gateway::Gateway,
        problem::{Kind, Problem},
        query::Query,
        upload,
    },
    streams::{IngestError, RETRY_AFTER_MS, Source, Stream, read_text},
};

/// Bytes of a body, as it comes.
const BODY_LEN_MAX: usize = 16 << 20;
/// Characters of an error that are repeated in a header.
const ERROR_LEN_MAX: usize = 200;

/// Which API speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// `GET /ping`: senders ask whether someone is there.
pub(super) async fn ping() -> Response {
    let version = (HeaderName::from_static("x-influxdb-version"), "1.8.0-kiln");
    (StatusCode::NO_CONTENT, [version]).into_response()
}

/// `POST /write`.
pub(super) async fn write(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let names = ["db", "rp", "precision", "consistency", "u", "p"];
    run(&gateway, request, &names, Version::One).await
}

/// `POST /api/v2/write`.
pub(super) async fn write_v2(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let names = ["org", "orgID", "bucket", "precision"];
    run(&gateway, request, &names, Version::Two).await
}

async fn run(
    gateway: &Arc<Gateway>,
    request: Request,
    names: &[&str],
    version: Version,
) -> Response {
    match take(gateway, request, names, version).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => refusal.into_response(version),
    }
}

/// Why not all was taken in, as these senders understand it.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, text: impl Into<String>) -> Self {
        Self { status, code, text: text.into() }
    }

    fn into_response(self, version: Version) -> Response {
        let body = match version {
            Version::One => json!({ "error": self.text }),
            Version::Two => json!({ "code": self.code, "message": self.text }),
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        let short: String =
            self.text.chars().filter(|c| !c.is_control()).take(ERROR_LEN_MAX).collect();
        if let Ok(text) = HeaderValue::from_str(&short) {
            headers.insert(HeaderName::from_static("x-influxdb-error"), text);
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::SERVICE_UNAVAILABLE
        {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_MS.div_ceil(1_000)));
        }
        response
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let document = problem.document();
        let (status, code) = match problem.kind() {
            // A node without room for the body: senders wait.
            Kind::Unavailable | Kind::Busy => (StatusCode::TOO_MANY_REQUESTS, "too many requests"),
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request too large"),
            Kind::NoSuchStream => (StatusCode::NOT_FOUND, "not found"),
            kind => (kind.status(), "invalid"),
        };
        Self::new(status, code, document.detail)
    }
}

async fn take(
    gateway: &Arc<Gateway>,
    request: Request,
    names: &[&str],
    version: Version,
) -> Result<(), Refusal> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query(), names)?;
    let node = &gateway.node;
    let name = if version == Version::One { "db" } else { "bucket" };
    let Some(wanted) = query.text(name)?.filter(|wanted| !wanted.is_empty()) else {
        let text =
            if version == Version::One { "database is required" } else { "bucket is required" };
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", text));
    };
    let stream = node.streams.registry.get(wanted).ok_or_else(|| {
        let what = if version == Version::One { "database" } else { "bucket" };
        let shown: String = wanted.chars().take(60).collect();
        Refusal::new(StatusCode::NOT_FOUND, "not found", format!("{what} not found: \"{shown}\""))
    })?;
    check_format(&stream)?;
    let unit = precision(query.text("precision")?)?;
    let upload = upload::receive(node, body, BODY_LEN_MAX, "").await?;
    let (text, _upload) = inflated(&parts.headers, upload)?;
    let own = anonymous(node);
    let source = Source { producer: &own, epoch: 0, sequence: None };
    let (receipt, report) = read_text(node, &stream, source, &text, unit).await;
    match receipt.refused {
        Some(error @ (IngestError::Busy(_) | IngestError::Stopping)) => {
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Err(Refusal::new(status, "too many requests", error.to_string()));
        }
        Some(error) => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", error.to_string()));
        }
        None => {}
    }
    if let Some(first) = report.first_bad.first() {
        let partial = if receipt.accepted > 0 { "partial write: " } else { "" };
        let text = format!(
            "{partial}unable to parse line {}, column {}: {} dropped={}",
            first.line, first.column, first.reason, report.rejected
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", text));
    }
    Ok(())
}

fn check_format(stream: &Stream) -> Result<(), Refusal> {
    if stream.plan.definition().format == Format::Influx {
        return Ok(());
    }
    let text = format!("the stream `{}` does not have the format influx", stream.name);
    Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", text))
}

/// The unit of the times in the body; nanoseconds when nobody says.
fn precision(name: Option<&str>) -> Result<Option<Unit>, Refusal> {
    Ok(match name {
        None | Some("") => None,
        Some("n" | "ns") => Some(Unit::Ns),
        Some("u" | "us" | "µ") => Some(Unit::Us),
        Some("ms") => Some(Unit::Ms),
        Some("s") => Some(Unit::S),
        Some("m") => Some(Unit::M),
        Some("h") => Some(Unit::H),
        Some(other) => {
            let shown: String = other.chars().take(20).collect();
            let text = format!("invalid precision \"{shown}\"; use ns, us, ms, s, m or h");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid", text));
        }
    })
}
