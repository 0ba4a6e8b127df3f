//! Readings in: `POST /v1/streams/{stream}/readings`.
//!
//! The body is text in the stream's format, compressed or not. Lines that are wrong are counted and
//! the first are named; the others are taken in. With `producer`, `epoch` and `sequence` in the query
//! the request can be repeated as it is after any error, and counts once.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::Response,
};
use kiln_stream::parse::Report;
use serde::Serialize;

use super::{fresh, not_taken, stream_of};
use crate::{
    http::{
        gateway::Gateway,
        problem::{Kind, Problem},
        query::Query,
        upload::{self, Upload},
    },
    node::Node,
    streams::{Coding, InflateError, Receipt, Source, check_producer, inflate, read_text},
};

/// Bytes of a body, as it comes.
const BODY_LEN_MAX: usize = 16 << 20;
/// Bytes of a body, inflated.
const INFLATED_LEN_MAX: usize = 64 << 20;

/// What came of a body.
#[derive(Debug, Serialize)]
struct Answer {
    accepted: u64,
    duplicate: u64,
    late: u64,
    rejected: u64,
    filtered: u64,
    /// `effectively-once` when the request said who sends it and as which number.
    guarantee: &'static str,
    /// The first lines that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<BadLine>,
}

#[derive(Debug, Serialize)]
struct BadLine {
    line: u64,
    column: usize,
    reason: String,
}

/// `POST /v1/streams/{stream}/readings`.
pub(super) async fn take(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query(), &["producer", "epoch", "sequence"])?;
    let node = &gateway.node;
    let stream = stream_of(node, parts.uri.path())?;
    let own = anonymous(node);
    let (epoch, sequence) = (query.number("epoch", u64::MAX)?, query.number("sequence", u64::MAX)?);
    let source = match query.text("producer")? {
        Some(producer) => {
            check_producer(producer).map_err(|error| not_taken(&error))?;
            Source { producer, epoch: epoch.unwrap_or(0), sequence }
        }
        None if epoch.is_some() || sequence.is_some() => {
            let detail = "`epoch` and `sequence` are of a `producer`, and none is named";
            return Err(Problem::bad_request(detail));
        }
        None => Source { producer: &own, epoch: 0, sequence: None },
    };
    let upload = upload::receive(node, body, BODY_LEN_MAX, "").await?;
    let (text, _upload) = inflated(&parts.headers, upload)?;
    let (receipt, report) = read_text(node, &stream, source, &text, None).await;
    answer(source, receipt, report)
}

/// The body as text. The upload's share of the node's budget is held with it.
pub(super) fn inflated(
    headers: &HeaderMap,
    mut upload: Upload,
) -> Result<(Vec<u8>, Upload), Problem> {
    let coding = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], |value| value.as_bytes());
    let Some(coding) = Coding::of(coding) else {
        let detail = "a body is encoded as gzip, zstd or lz4, or not at all";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    };
    let bytes = std::mem::take(&mut upload.bytes);
    match inflate(coding, bytes, INFLATED_LEN_MAX) {
        Ok(text) => Ok((text, upload)),
        Err(error @ InflateError::TooLong { .. }) => {
            Err(Problem::new(Kind::TooLarge, error.to_string()))
        }
        Err(error) => Err(Problem::bad_request(error.to_string())),
    }
}

/// The producer of readings of which nobody said who sends them.
pub(super) fn anonymous(node: &Node) -> String {
    format!("http-{:x}", node.incarnation)
}

fn answer(source: Source<'_>, receipt: Receipt, report: Report) -> Result<Response, Problem> {
    if let Some(error) = &receipt.refused {
        let mut problem = not_taken(error);
        if receipt.accepted > 0 {
            let again = if source.sequence.is_some() {
                "send it again as it is: what was taken in will not count twice"
            } else {
                "those will count twice if it is sent again"
            };
            let detail = format!("{error}; {} readings were taken in: {again}", receipt.accepted);
            problem = problem.detail(detail);
        }
        return Err(problem);
    }
    if receipt.stale > 0 {
        let detail = format!(
            "{} readings are of an earlier epoch of their producer, or of a sequence so far back \
             that nobody knows whether they were taken in",
            receipt.stale
        );
        return Err(Problem::new(Kind::Conflict, detail));
    }
    let errors = report.first_bad.into_iter().map(|bad| BadLine {
        line: bad.line,
        column: bad.column,
        reason: bad.reason.to_string(),
    });
    let once = source.sequence.is_some();
    Ok(fresh(Json(Answer {
        accepted: receipt.accepted,
        duplicate: receipt.duplicate,
        late: receipt.late,
        rejected: report.rejected,
        filtered: receipt.filtered,
        guarantee: if once { "effectively-once" } else { "at-least-once" },
        errors: errors.collect(),
    })))
}
