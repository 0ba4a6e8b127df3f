//! Results of a sensor, as a range.
//!
//! Results are items, so any node can read them: the starts of time windows follow from their
//! definition, and each is looked up by its key. Count and session windows have no such grid; where
//! they lie is kept in mind by the shard that gave them, for the last of them.

use std::{fmt::Write, sync::Arc};

use futures_util::future::join_all;
use kiln_cluster::placement::partition_of;
use kiln_protocol::command::{Command, Get, Outcome};
use kiln_stream::aggregate::Aggregate;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::{
    Stream, ahead, coarse,
    forward::{Owner, latest_there, owner, recent_there},
    parts::Recent,
    render,
    shard::Job,
};
use crate::{caches::Cache, node::Node, perform::perform};

/// Windows of one answer.
pub(crate) const LIMIT_MAX: usize = 10_000;
/// Windows of an answer that asks for no number.
pub(crate) const LIMIT_DEFAULT: usize = 1_000;
/// Stored windows that are merged into one.
pub(crate) const STEP_PARTS_MAX: i64 = 100_000;
/// Stored windows that are read for one answer.
const READ_MAX: usize = 100_000;
/// Looks at a time.
const LOOKS_AT_ONCE: usize = 64;

/// What stands in place of windows without readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Nothing.
    #[default]
    None,
    /// The window, with null for each figure.
    Null,
    /// The figures of the window before.
    Previous,
    /// Figures on the line between the windows around.
    Linear,
}

impl Fill {
    /// Reads its name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "null" => Self::Null,
            "previous" => Self::Previous,
            "linear" => Self::Linear,
            _ => return None,
        })
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Range {
    /// The window by name; the first of the stream without one.
    pub(crate) window: Option<String>,
    /// Windows that start here or later.
    pub(crate) from: Option<i64>,
    /// Windows that start before.
    pub(crate) to: Option<i64>,
    pub(crate) fill: Fill,
    /// At most so many: the first from `from`, or the last without one.
    pub(crate) limit: usize,
    /// Milliseconds: windows of this length, made of the stored ones that fill them.
    pub(crate) step: Option<i64>,
    /// What is expected in the windows after the last.
    pub(crate) forecast: Option<Forecast>,
}

/// A forecast that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forecast {
    /// Of this figure.
    pub(crate) figure: Aggregate,
    /// For so many windows.
    pub(crate) windows: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RangeError {
    #[error("the stream has no window `{given}`; it has: {known}")]
    NoSuchWindow { given: String, known: String },
    #[error("the stream has no windows")]
    NoWindows,
    #[error("`from` must be before `to`")]
    Order,
    #[error("a count or session window cannot be filled, merged or forecast: there is no grid")]
    NoGrid,
    #[error(
        "`step` must be a multiple of the length of a tumbling window, at most {STEP_PARTS_MAX} of them"
    )]
    Step,
    #[error("the stream does not compute `{0}`")]
    NoSuchFigure(&'static str),
    #[error("the results could not be read now")]
    Unreadable,
}

/// Time and value of a sensor's latest reading, from the node that keeps its state.
async fn latest_of(node: &Node, stream: &Arc<Stream>, sensor: &[u8]) -> Option<(i64, f64)> {
    match owner(node, stream, place_of(node, sensor).0) {
        Owner::Here(_) => latest_here(node, stream, sensor).await,
        Owner::There(to) => latest_there(node, stream, to, sensor).await,
        Owner::Nobody => None,
    }
}

/// Value of a sensor's latest reading, and its time where that is known: another node may keep the
/// state, or it may be out of retention, and the value still be there.
pub(crate) async fn latest_reading(
    node: &Node,
    stream: &Arc<Stream>,
    sensor: &[u8],
) -> Option<(Option<i64>, f64)> {
    if let Some((time, value)) = latest_of(node, stream, sensor).await {
        return Some((Some(time), value));
    }
    let table = node.caches.load_full();
    let cache = table.by_name(&stream.latest_cache).map(|(_, cache)| Arc::clone(cache))?;
    let performed = perform(node, &cache, Command::Get(Get::plain(sensor))).await;
    let (Outcome::Hit(item), Some(value)) = (performed.outcome, performed.value) else {
        return None;
    };
    let bytes = value.copy(0..item.value_len);
    Some((None, std::str::from_utf8(&bytes).ok()?.parse().ok()?))
}

/// The same on this node.
pub(super) async fn latest_here(
    node: &Node,
    stream: &Arc<Stream>,
    sensor: &[u8],
) -> Option<(i64, f64)> {
    let (reply, answer) = oneshot::channel();
    let (partition, shard) = place_of(node, sensor);
    let job = Job::Latest { partition, stream: Arc::clone(stream), sensor: sensor.into(), reply };
    node.streams.shards[shard].send(job).await.ok()?;
    answer.await.ok()?
}

async fn recent_of(
    node: &Node,
    stream: &Arc<Stream>,
    sensor: &[u8],
    window: u16,
) -> Result<Vec<Recent>, RangeError> {
    match owner(node, stream, place_of(node, sensor).0) {
        Owner::Here(_) => Ok(recent_here(node, stream, sensor, window).await),
        Owner::There(to) => {
            recent_there(node, stream, to, sensor, window).await.map_err(|_| RangeError::Unreadable)
        }
        Owner::Nobody => Err(RangeError::Unreadable),
    }
}

pub(super) async fn recent_here(
    node: &Node,
    stream: &Arc<Stream>,
    sensor: &[u8],
    window: u16,
) -> Vec<Recent> {
    let (reply, answer) = oneshot::channel();
    let (partition, shard) = place_of(node, sensor);
    let stream = Arc::clone(stream);
    let job = Job::Recent { partition, stream, sensor: sensor.into(), window, reply };
    if node.streams.shards[shard].send(job).await.is_err() {
        return Vec::new();
    }
    answer.await.unwrap_or_default()
}

fn place_of(node: &Node, sensor: &[u8]) -> (u32, usize) {
    let partitions = node.streams.partitions(node);
    let partition = partition_of(sensor, partitions).0;
    (partition, partition as usize % node.streams.shard_count())
}

/// A result, or the place of one that is not there.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) text: Option<String>,
}

impl Row {
    /// The result, read.
    pub(super) fn figures(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(self.text.as_deref()?).ok()
    }
}

/// The results of a sensor in a range, as a JSON document.
pub(crate) async fn range(
    node: &Node,
    stream: &Arc<Stream>,
    sensor: &[u8],
    range: &Range,
) -> Result<String, RangeError> {
    let names = stream.plan.window_names();
    let index = match &range.window {
        Some(given) => stream.plan.window_named(given).ok_or_else(|| RangeError::NoSuchWindow {
            given: given.chars().take(60).collect(),
            known: names.join(", "),
        })?,
        None if names.is_empty() => return Err(RangeError::NoWindows),
        None => 0,
    };
    if let (Some(from), Some(to)) = (range.from, range.to)
        && from >= to
    {
        return Err(RangeError::Order);
    }
    if let Some(Forecast { figure, .. }) = range.forecast
        && !stream.plan.definition().aggregates.contains(&figure)
    {
        return Err(RangeError::NoSuchFigure(figure.name()));
    }
    let definition = &stream.plan.definition().windows[index];
    let size = definition.tumbling.or(definition.hopping).map(|span| span.millis());
    let slide = definition.every.map(|span| span.millis()).or(size);
    let offset = definition.offset.map_or(0, |span| span.millis());
    let mut rows = Vec::new();
    let mut keys = Vec::new();
    let mut add = |start: i64, end: i64, name: i64| {
        let mut key = Vec::new();
        render::key(&mut key, sensor, &names[index], name);
        keys.push(key);
        rows.push(Row { start, end, text: None });
    };
    let limit = range.limit.clamp(1, LIMIT_MAX);
    let mut parts = 1;
    if let (Some(size), Some(slide)) = (size, slide) {
        if let Some(step) = range.step {
            parts = step / size;
            if size != slide || step % size != 0 || !(1..=STEP_PARTS_MAX).contains(&parts) {
                return Err(RangeError::Step);
            }
        }
        let limit = limit.min(READ_MAX / parts as usize);
        let (first, count) = grid(node, range, slide.saturating_mul(parts), offset, limit);
        for i in 0..count * parts {
            let start = first.saturating_add(slide.saturating_mul(i));
            add(start, start.saturating_add(size), start);
        }
    } else {
        if range.fill != Fill::None || range.step.is_some() || range.forecast.is_some() {
            return Err(RangeError::NoGrid);
        }
        let known = recent_of(node, stream, sensor, index as u16).await?;
        let within = |one: &&Recent| {
            range.from.is_none_or(|from| one.start >= from)
                && range.to.is_none_or(|to| one.start < to)
        };
        let found: Vec<_> = known.iter().filter(within).collect();
        let skipped = if range.from.is_none() { found.len().saturating_sub(limit) } else { 0 };
        for one in found.into_iter().skip(skipped).take(limit) {
            add(one.start, one.end, one.name);
        }
    }
    look_up(node, stream, &keys, &mut rows).await?;
    if parts > 1 {
        let aggregates = &stream.plan.definition().aggregates;
        rows = rows.chunks(parts as usize).map(|parts| coarse::merged(aggregates, parts)).collect();
    }
    let forecast =
        range.forecast.map(|asked| ahead::forecast(&rows, asked, slide.unwrap_or(1) * parts));
    Ok(document(stream, sensor, &names[index], rows, range.fill, forecast))
}

/// The first start on the grid, and how many from there.
fn grid(node: &Node, range: &Range, slide: i64, offset: i64, limit: usize) -> (i64, i64) {
    let up = |time: i64| {
        let past = time.saturating_sub(offset).rem_euclid(slide);
        if past == 0 { time } else { time.saturating_add(slide - past) }
    };
    let limit = limit as i64;
    let to = range.to.unwrap_or(node.clock.now_ms() as i64);
    // The first start that is out.
    let end = up(to);
    match range.from {
        Some(from) => {
            let first = up(from);
            (first, end.saturating_sub(first).div_euclid(slide).clamp(0, limit))
        }
        None => (end.saturating_sub(slide.saturating_mul(limit)), limit),
    }
}

async fn look_up(
    node: &Node,
    stream: &Stream,
    keys: &[Vec<u8>],
    rows: &mut [Row],
) -> Result<(), RangeError> {
    let table = node.caches.load_full();
    let cache = table.by_name(&stream.windows_cache).map(|(_, cache)| Arc::clone(cache));
    let Some(cache) = cache else { return Err(RangeError::Unreadable) };
    for (keys, rows) in keys.chunks(LOOKS_AT_ONCE).zip(rows.chunks_mut(LOOKS_AT_ONCE)) {
        let looks: Vec<_> = keys.iter().map(|key| look(node, &cache, key)).collect();
        for (row, found) in rows.iter_mut().zip(join_all(looks).await) {
            row.text = found?;
        }
    }
    Ok(())
}

async fn look(node: &Node, cache: &Arc<Cache>, key: &[u8]) -> Result<Option<String>, RangeError> {
    let get = Command::Get(Get { no_bump: true, ..Get::plain(key) });
    let performed = perform(node, cache, get).await;
    match (performed.outcome, performed.value) {
        (Outcome::Hit(item), Some(value)) => {
            let bytes = value.copy(0..item.value_len);
            Ok(String::from_utf8(bytes.into()).ok())
        }
        (Outcome::NotFound | Outcome::Lost, _) => Ok(None),
        _ => Err(RangeError::Unreadable),
    }
}

fn document(
    stream: &Stream,
    sensor: &[u8],
    window: &str,
    rows: Vec<Row>,
    fill: Fill,
    forecast: Option<String>,
) -> String {
    let mut out = String::from("{\"sensor\":");
    render::string(&mut out, sensor);
    // Writing to a string cannot fail.
    let _ = write!(out, ",\"window\":\"{window}\",\"windows\":[");
    let mut is_first = true;
    let mut push = |out: &mut String, text: &str| {
        if !std::mem::replace(&mut is_first, false) {
            out.push(',');
        }
        out.push_str(text);
    };
    if fill == Fill::None {
        for text in rows.iter().filter_map(|row| row.text.as_deref()) {
            push(&mut out, text);
        }
    } else {
        for row in filled(stream, &rows, fill) {
            push(&mut out, &row);
        }
    }
    out.push(']');
    if let Some(forecast) = forecast {
        out.push_str(",\"forecast\":");
        out.push_str(&forecast);
    }
    out.push('}');
    out
}

/// All rows, those that are not there filled in.
fn filled(stream: &Stream, rows: &[Row], fill: Fill) -> Vec<String> {
    let names: Vec<&str> =
        stream.plan.definition().aggregates.iter().map(|aggregate| aggregate.name()).collect();
    let known: Vec<Option<Map<String, Value>>> = rows.iter().map(Row::figures).collect();
    // The next that is there, seen from each.
    let mut next: Vec<Option<usize>> = vec![None; rows.len()];
    let mut after = None;
    for i in (0..rows.len()).rev() {
        next[i] = after;
        if known[i].is_some() {
            after = Some(i);
        }
    }
    let mut before: Option<usize> = None;
    let mut out = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        if let (Some(text), true) = (&row.text, known[i].is_some()) {
            before = Some(i);
            out.push(text.clone());
            continue;
        }
        let figure = |name: &str, at: usize| known[at].as_ref()?.get(name)?.as_f64();
        let value = |name: &str| match (fill, before, next[i]) {
            // No reading is no reading, whatever the figures around say.
            _ if name == "count" => Some(0.0),
            (Fill::Previous, Some(before), _) => figure(name, before),
            (Fill::Linear, Some(before), Some(next)) => {
                let (a, b) = (figure(name, before)?, figure(name, next)?);
                let part = (i - before) as f64 / (next - before) as f64;
                Some(a + (b - a) * part)
            }
            _ => None,
        };
        let mut text = String::new();
        let _ = write!(text, "{{\"start\":{},\"end\":{},\"filled\":true", row.start, row.end);
        for name in &names {
            let _ = write!(text, ",\"{name}\":");
            match value(name) {
                Some(value) => render::number(&mut text, value),
                None => text.push_str("null"),
            }
        }
        text.push('}');
        out.push(text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[Option<f64>]) -> Vec<Row> {
        let row = |(i, value): (usize, &Option<f64>)| Row {
            start: i as i64 * 10,
            end: i as i64 * 10 + 10,
            text: value.map(|value| format!(r#"{{"start":{},"count":3,"mean":{value}}}"#, i * 10)),
        };
        values.iter().enumerate().map(row).collect()
    }

    fn means(values: &[Option<f64>], fill: Fill) -> Vec<Option<f64>> {
        let text = r#"{"aggregates": ["count", "mean"], "windows": [{"tumbling": "10ms"}]}"#;
        let stream = Stream::new(1, "s", text, Stream::plan_of(text).unwrap());
        let document = document(&stream, b"x", "10ms", rows(values), fill, None);
        let document: Value = serde_json::from_str(&document).unwrap();
        let windows = document["windows"].as_array().unwrap();
        windows.iter().map(|window| window["mean"].as_f64()).collect()
    }

    #[test]
    fn gaps_are_filled_as_asked_and_never_beyond_what_is_known() {
        let values = [None, Some(1.0), None, None, Some(4.0), None];
        assert_eq!(means(&values, Fill::None), [Some(1.0), Some(4.0)]);
        assert_eq!(means(&values, Fill::Null), [None, Some(1.0), None, None, Some(4.0), None]);
        let previous = [None, Some(1.0), Some(1.0), Some(1.0), Some(4.0), Some(4.0)];
        assert_eq!(means(&values, Fill::Previous), previous);
        let linear = [None, Some(1.0), Some(2.0), Some(3.0), Some(4.0), None];
        assert_eq!(means(&values, Fill::Linear), linear);
    }
}
