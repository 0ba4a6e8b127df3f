//! Windows of a sensor, as a range.

use std::{
    collections::BTreeMap,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use kiln_protocol::native::{encode, streams::WindowsQuery};
use serde::Deserialize;

use super::Stream;
use crate::Error;

/// What stands for windows without readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    #[default]
    None,
    /// The window, without figures.
    Null,
    /// The figures of the window before.
    Previous,
    /// Figures on the line between the windows around.
    Linear,
}

/// Windows of a sensor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Windows {
    /// The sensor; what in it is no UTF-8 is replaced.
    pub sensor: String,
    /// The window's name.
    pub window: String,
    /// Those that are there, oldest first.
    pub windows: Vec<Window>,
}

/// One window of a sensor.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Window {
    /// When it starts, in milliseconds since 1970, inclusive.
    pub start: i64,
    /// When it ends, exclusive.
    pub end: i64,
    /// How often it was given anew because of late readings.
    pub revision: u64,
    /// Of so many stored windows it was made, where [`WindowsRequest::step`] asked for longer ones.
    pub merged: u64,
    /// There were no readings: the figures are made up as [`Fill`] says.
    pub filled: bool,
    /// The aggregates of the stream by name; `None` has no value, as the variance of one reading.
    #[serde(flatten)]
    pub figures: BTreeMap<String, Option<f64>>,
}

impl Window {
    /// A figure by its name, `mean` for example.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied().flatten()
    }
}

/// A question for windows of a sensor: await it.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before it is awaited"]
pub struct WindowsRequest {
    stream: Stream,
    query: WindowsQuery,
}

impl WindowsRequest {
    pub(super) fn new(stream: Stream, sensor: Vec<u8>) -> Self {
        let query = WindowsQuery { stream: stream.name.to_string(), sensor, ..Default::default() };
        Self { stream, query }
    }

    /// Which window, by name: `10s`, `10m-1m`, `count-100`. Default: the stream's first.
    pub fn window(mut self, name: impl Into<String>) -> Self {
        self.query.window = Some(name.into());
        self
    }

    /// Windows that start at this time or later, in milliseconds since 1970.
    pub fn from(mut self, time_ms: i64) -> Self {
        self.query.from = Some(time_ms);
        self
    }

    /// Windows that start before this time. Default: now.
    pub fn to(mut self, time_ms: i64) -> Self {
        self.query.to = Some(time_ms);
        self
    }

    /// The last so many, or with [`from`](Self::from) the first. Default 1,000, at most 10,000.
    pub fn last(mut self, windows: u32) -> Self {
        self.query.limit = windows.max(1);
        self
    }

    /// Windows of this length, made of the stored ones that fill them: a multiple of the length of a
    /// tumbling window.
    pub fn step(mut self, length: Duration) -> Self {
        self.query.step_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1);
        self
    }

    /// What stands for windows without readings. Default: nothing.
    pub fn fill(mut self, fill: Fill) -> Self {
        let name = match fill {
            Fill::None => "none",
            Fill::Null => "null",
            Fill::Previous => "previous",
            Fill::Linear => "linear",
        };
        self.query.fill = name.to_owned();
        self
    }
}

impl IntoFuture for WindowsRequest {
    type Output = Result<Windows, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let ask = |out: &mut Vec<u8>, id| encode::windows(out, id, &self.query);
            self.stream.client.ask_for(ask).await
        })
    }
}
