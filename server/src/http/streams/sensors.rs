//! What is known of a sensor: its latest value, its windows; and the last alarms of a stream.

use std::{fmt::Write, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use kiln_stream::{aggregate::Aggregate, fit, span::Span};
use serde::Serialize;

use super::{fresh, sensor_of, stream_of};
use crate::{
    http::{
        gateway::Gateway,
        problem::{Kind, Problem},
        query::Query,
    },
    streams::{self, Fill, Forecast, LIMIT_DEFAULT, LIMIT_MAX, Range, RangeError},
};

/// A sensor's latest value.
#[derive(Serialize)]
struct Latest {
    sensor: String,
    value: f64,
    /// Milliseconds since 1970; left out by a node that only has the value.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<i64>,
}

/// `GET /v1/streams/{stream}/sensors/{sensor}`.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    Query::parse(request.uri().query(), &[])?;
    let node = &gateway.node;
    let stream = stream_of(node, request.uri().path())?;
    let sensor = sensor_of(request.uri().path())?;
    let name = String::from_utf8_lossy(&sensor).into_owned();
    if let Some((time, value)) = streams::latest_reading(node, &stream, &sensor).await {
        return Ok(fresh(Json(Latest { sensor: name, value, time })));
    }
    Err(Problem::new(Kind::Miss, "the stream has no readings of this sensor"))
}

/// `GET /v1/streams/{stream}/sensors/{sensor}/windows`.
pub(super) async fn windows(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let uri = request.uri();
    let known = ["window", "from", "to", "fill", "limit", "step", "forecast", "figure"];
    let query = Query::parse(uri.query(), &known)?;
    let node = &gateway.node;
    let stream = stream_of(node, uri.path())?;
    let sensor = sensor_of(uri.path())?;
    let fill = match query.text("fill")? {
        None => Fill::None,
        Some(name) => Fill::of(name)
            .ok_or_else(|| Problem::bad_request("`fill` must be none, null, previous or linear"))?,
    };
    let limit = query.number("limit", LIMIT_MAX as u64)?;
    if limit == Some(0) {
        return Err(Problem::bad_request(format!("`limit` must be a number of 1 to {LIMIT_MAX}")));
    }
    let range = Range {
        window: query.text("window")?.map(str::to_owned),
        from: time(&query, "from")?,
        to: time(&query, "to")?,
        fill,
        limit: limit.map_or(LIMIT_DEFAULT, |limit| limit as usize),
        step: step(&query)?,
        forecast: forecast(&query)?,
    };
    let found = streams::range(node, &stream, &sensor, &range).await.map_err(|error| {
        let detail = error.to_string();
        match error {
            RangeError::Unreadable => {
                Problem::new(Kind::Unavailable, detail).retry_after_ms(streams::RETRY_AFTER_MS)
            }
            _ => Problem::bad_request(detail),
        }
    })?;
    Ok(fresh(([(header::CONTENT_TYPE, "application/json")], found).into_response()))
}

/// The length of the windows of an answer, if it is not that of the stored ones.
fn step(query: &Query<'_>) -> Result<Option<i64>, Problem> {
    let Some(text) = query.text("step")? else { return Ok(None) };
    let span = Span::parse(text)
        .map_err(|error| Problem::bad_request(format!("`step` is wrong: {error}")))?;
    Ok(Some(span.millis()))
}

/// What to expect, for how many windows.
fn forecast(query: &Query<'_>) -> Result<Option<Forecast>, Problem> {
    let windows = query.number("forecast", fit::STEPS_MAX as u64)?;
    let name = query.text("figure")?;
    let Some(windows) = windows else {
        let lonely = "`figure` says of what the forecast is: it goes with `forecast`";
        return if name.is_some() { Err(Problem::bad_request(lonely)) } else { Ok(None) };
    };
    let name = name.unwrap_or(Aggregate::Mean.name());
    let figure = Aggregate::ALL.into_iter().find(|aggregate| aggregate.name() == name);
    let figure =
        figure.ok_or_else(|| Problem::bad_request("`figure` is none of the aggregates"))?;
    Ok(Some(Forecast { figure, windows: windows as usize }))
}

/// A time in milliseconds since 1970.
fn time(query: &Query<'_>, name: &str) -> Result<Option<i64>, Problem> {
    let Some(text) = query.text(name)? else { return Ok(None) };
    let wrong = || Problem::bad_request(format!("`{name}` must be milliseconds since 1970"));
    let time: i64 = text.parse().map_err(|_| wrong())?;
    let known = kiln_stream::reading::TIME_MIN..=kiln_stream::reading::TIME_MAX;
    if known.contains(&time) { Ok(Some(time)) } else { Err(wrong()) }
}

/// `GET /v1/streams/{stream}/alarms`.
pub(super) async fn alarms(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = stream_of(&gateway.node, request.uri().path())?;
    last(&request, "alarms", stream.alarms())
}

/// `GET /v1/streams/{stream}/late`.
pub(super) async fn late(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = stream_of(&gateway.node, request.uri().path())?;
    last(&request, "late", stream.late())
}

fn last(
    request: &Request,
    name: &str,
    events: Vec<Arc<streams::LiveEvent>>,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["sensor"])?;
    let sensor = query.bytes("sensor");
    let wanted = events.iter().filter(|event| sensor.is_none_or(|sensor| *event.sensor == *sensor));
    let mut text = String::new();
    for event in wanted {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{}", if text.is_empty() { "" } else { "," }, event.text);
    }
    let text = format!("{{\"{name}\":[{text}]}}");
    Ok(fresh(([(header::CONTENT_TYPE, "application/json")], text).into_response()))
}
