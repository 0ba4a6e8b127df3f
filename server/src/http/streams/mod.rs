//! Streams of sensor readings: `/v1/streams` and what is under it, and the write API of InfluxDB.
//!
//! ```text
//!   mod       routes; streams: make, look at, drop
//!   readings  readings in
//!   sensors   a sensor's latest value and windows, alarms
//!   live      results as they come, as server-sent events
//!   influx    /write and /api/v2/write
//! ```

mod influx;
mod live;
mod readings;
mod sensors;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kiln_stream::{definition::Definition, reading::SENSOR_LEN_MAX};
use serde::Serialize;

use super::{
    gateway::Gateway,
    object::Object,
    percent,
    problem::{Kind, Problem},
    query::Query,
    upload,
};
use crate::{
    node::Node,
    streams::{
        FigureValues, IngestError, NAME_LEN_MAX, RETRY_AFTER_MS, SourceFigures, Stream, StreamError,
    },
};

/// Bytes of a definition.
const BODY_LEN_MAX: usize = 16 << 10;

/// The routes.
pub(super) fn routes() -> Router<Arc<Gateway>> {
    let sensor = |rest: &str| format!("/v1/streams/{{stream}}/sensors/{{sensor}}{rest}");
    Router::new()
        .route("/v1/streams", get(list))
        .route("/v1/streams/{stream}", get(show).put(create).delete(drop))
        .route("/v1/streams/{stream}/readings", post(readings::take))
        .route("/v1/streams/{stream}/live", get(live::watch))
        .route("/v1/streams/{stream}/alarms", get(sensors::alarms))
        .route("/v1/streams/{stream}/late", get(sensors::late))
        .route(&sensor(""), get(sensors::show))
        .route(&sensor("/windows"), get(sensors::windows))
        .route("/write", post(influx::write))
        .route("/api/v2/write", post(influx::write_v2))
        .route("/ping", get(influx::ping))
}

/// A stream and its figures on this node.
#[derive(Serialize)]
struct Info {
    name: String,
    definition: Definition,
    /// The names under which its windows are asked for.
    windows: Vec<String>,
    latest_cache: String,
    windows_cache: String,
    /// Milliseconds since 1970; null until readings came.
    watermark: Option<i64>,
    figures: FigureValues,
    /// What it fetches by itself, as seen from this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<SourceFigures>,
}

#[derive(Serialize)]
struct List {
    streams: Vec<Info>,
}

impl Info {
    fn of(stream: &Stream) -> Self {
        Self {
            name: stream.name.to_string(),
            definition: shown(stream.plan.definition()),
            windows: stream.plan.window_names().to_vec(),
            latest_cache: stream.latest_cache.to_string(),
            windows_cache: stream.windows_cache.to_string(),
            watermark: stream.watermark(),
            figures: stream.figures.read(),
            sources: stream.sources.iter().map(|source| source.read()).collect(),
        }
    }
}

/// A definition for whoever asks: without passwords.
fn shown(definition: &Definition) -> Definition {
    let sources = definition.sources.iter().map(|source| source.without_password()).collect();
    Definition { sources, ..definition.clone() }
}

/// `GET /v1/streams`.
async fn list(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let table = gateway.node.streams.registry.load();
    let streams = table.values().map(|stream| Info::of(stream)).collect();
    Ok(fresh(Json(List { streams })))
}

/// `GET /v1/streams/{stream}`.
async fn show(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let stream = stream_of(&gateway.node, request.uri().path())?;
    Ok(fresh(Json(Info::of(&stream))))
}

/// `PUT /v1/streams/{stream}`.
async fn create(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    Query::parse(parts.uri.query(), &[])?;
    let name = name_of(parts.uri.path()).map_err(|problem| match problem.kind() {
        Kind::NoSuchStream => refused(&StreamError::Name),
        _ => problem,
    })?;
    let node = &gateway.node;
    let upload = upload::receive(node, body, BODY_LEN_MAX, "").await?;
    let text = if upload.bytes.is_empty() { b"{}" } else { &*upload.bytes };
    let definition = definition_of(text)
        .map_err(|error| Problem::bad_request(format!("the definition is wrong: {error}")))?;
    let text = serde_json::to_string(&definition)
        .map_err(|error| Problem::bad_request(format!("the definition is wrong: {error}")))?;
    let made = node.streams.registry.create(node, &name, &text).await;
    let (stream, is_new) = made.map_err(|error| refused(&error))?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, fresh(Json(Info::of(&stream)))).into_response())
}

/// Reads a definition. In JSON `8.0` is the same number as `8`: where a whole number is written so, it
/// is read again as one.
fn definition_of(text: &[u8]) -> Result<Definition, serde_json::Error> {
    let as_written = match serde_json::from_slice::<Object<Definition>>(text) {
        Ok(Object(definition)) => return Ok(definition),
        Err(error) => error,
    };
    if !as_written.to_string().starts_with("invalid type: floating point") {
        return Err(as_written);
    }
    let mut value: serde_json::Value = serde_json::from_slice(text)?;
    make_whole(&mut value);
    match serde_json::from_value::<Object<Definition>>(value) {
        Ok(Object(definition)) => Ok(definition),
        Err(_) => Err(as_written),
    }
}

/// Numbers without a fraction become whole ones, up to 2^53: from there on they stand for several.
fn make_whole(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n));
            if let (false, Some(whole)) = (number.is_u64(), whole) {
                *number = (whole as u64).into();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(make_whole),
        Value::Object(map) => map.values_mut().for_each(make_whole),
        _ => {}
    }
}

/// `DELETE /v1/streams/{stream}`.
async fn drop(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let name = name_of(request.uri().path())?;
    let node = &gateway.node;
    let dropped = node.streams.registry.drop_stream(node, &name).await;
    dropped.map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Why a stream was not made or dropped.
fn refused(error: &StreamError) -> Problem {
    use kiln_protocol::native::ErrorCode;
    let kind = match error {
        StreamError::Name => Kind::BadRequest,
        StreamError::Definition(_) | StreamError::Source { .. } => Kind::Unfit,
        StreamError::Exists(_) => Kind::Conflict,
        StreamError::NoSuchStream => return no_such_stream(),
        StreamError::TooMany | StreamError::Cache { .. } => Kind::NoRoom,
        StreamError::Undecided { code: ErrorCode::DeadlineExceeded, .. } => Kind::Indeterminate,
        StreamError::Undecided { .. } => Kind::Unavailable,
    };
    let problem = Problem::new(kind, error.to_string());
    if kind == Kind::Unavailable { problem.retry_after_ms(RETRY_AFTER_MS) } else { problem }
}

/// Why readings were not taken in.
fn not_taken(error: &IngestError) -> Problem {
    match error {
        IngestError::Busy(_) => {
            Problem::new(Kind::Busy, error.to_string()).retry_after_ms(RETRY_AFTER_MS)
        }
        IngestError::Refused(_) => Problem::bad_request(error.to_string()),
        IngestError::Stopping => {
            Problem::new(Kind::Unavailable, error.to_string()).retry_after_ms(RETRY_AFTER_MS)
        }
    }
}

fn no_such_stream() -> Problem {
    Problem::new(Kind::NoSuchStream, "there is no stream of this name")
}

/// The stream of a path that begins `/v1/streams/{stream}`.
fn stream_of(node: &Node, path: &str) -> Result<Arc<Stream>, Problem> {
    node.streams.registry.get(&name_of(path)?).ok_or_else(no_such_stream)
}

fn name_of(path: &str) -> Result<String, Problem> {
    let segment = path.split('/').nth(3).unwrap_or_default();
    let bytes = percent::decode(segment)
        .map_err(|error| Problem::bad_request(format!("the stream's name is wrong: {error}")))?;
    if bytes.len() > NAME_LEN_MAX {
        return Err(no_such_stream());
    }
    String::from_utf8(bytes.into_owned()).map_err(|_| no_such_stream())
}

/// The sensor of a path that begins `/v1/streams/{stream}/sensors/{sensor}`.
fn sensor_of(path: &str) -> Result<Vec<u8>, Problem> {
    let segment = path.split('/').nth(5).unwrap_or_default();
    let bytes = percent::decode(segment)
        .map_err(|error| Problem::bad_request(format!("the sensor is wrong: {error}")))?;
    if bytes.len() > SENSOR_LEN_MAX {
        let detail = format!("a sensor's id has at most {SENSOR_LEN_MAX} bytes");
        return Err(Problem::new(Kind::KeyTooLong, detail));
    }
    Ok(bytes.into_owned())
}

/// An answer that is true now only.
fn fresh(answer: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], answer).into_response()
}
