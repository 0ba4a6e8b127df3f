//! Sensor readings in, and what became of them: structures of the operations on streams.

use serde::{Deserialize, Serialize};

/// What came of a batch of readings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ingested {
    /// Readings taken in.
    pub accepted: u64,
    /// Readings that were taken in before, with an earlier try of the same batch.
    pub duplicate: u64,
    /// Readings taken in that were too late for at least one window.
    pub late: u64,
    /// Readings that the stream's filter left out.
    pub filtered: u64,
    /// Readings that are wrong, and were left out.
    pub rejected: u64,
    /// The first of those.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first_bad: Vec<BadReading>,
}

/// A reading that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BadReading {
    /// Its place in the batch, from 0.
    pub index: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Which sensor of which stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatestQuery {
    /// The stream.
    pub stream: String,
    /// The sensor.
    #[serde(with = "serde_bytes")]
    pub sensor: Vec<u8>,
}

/// A sensor's latest reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatestReading {
    /// What it measured.
    pub value: f64,
    /// When, in milliseconds since 1970; `None` where only the value is left.
    pub time_ms: Option<i64>,
}

/// Which windows of a sensor are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowsQuery {
    /// The stream.
    pub stream: String,
    /// The sensor.
    #[serde(with = "serde_bytes")]
    pub sensor: Vec<u8>,
    /// The window by its name; the stream's first one without.
    pub window: Option<String>,
    /// Windows that start here or later, in milliseconds since 1970; without it the last ones.
    pub from: Option<i64>,
    /// Windows that start before; without it those until now.
    pub to: Option<i64>,
    /// What stands for windows without readings: `none`, `null`, `previous` or `linear`; empty is
    /// `none`.
    pub fill: String,
    /// The most windows; 0 leaves it to the node.
    pub limit: u32,
    /// Milliseconds: windows of this length, made of the stored ones that fill them; 0 leaves them
    /// as they are.
    pub step_ms: u64,
}

/// What is to be told as it happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Follow {
    /// The stream.
    pub stream: String,
    /// Of this sensor only.
    pub sensor: Option<serde_bytes::ByteBuf>,
    /// Of this kind only: `window`, `alarm`, `fit` or `late`; empty is all of them.
    pub kind: String,
    /// Chosen by the client, and named in every push; one that is in use already is replaced.
    pub number: u32,
    /// No more of this number; the other fields mean nothing then.
    pub ends: bool,
}
