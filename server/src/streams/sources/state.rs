//! What is seen of a source on this node: whether it is read, what came of it, how far behind it is.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use kiln_stream::source::SourceDefinition;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// A source of a stream, seen from this node.
#[derive(Debug)]
pub(crate) struct SourceState {
    /// As in its definition.
    pub(crate) name: Box<str>,
    kind: &'static str,
    /// By number: a Kafka partition; 0 where there are none.
    parts: Mutex<BTreeMap<i32, Part>>,
    messages: AtomicU64,
    readings: AtomicU64,
    rejected: AtomicU64,
    skipped: AtomicU64,
    reconnects: AtomicU64,
}

/// One connection's worth of a source.
#[derive(Clone, Debug)]
struct Part {
    phase: Phase,
    /// Messages that are there and not fetched.
    lag: Option<u64>,
    /// What went wrong last, while it is so.
    error: Option<String>,
}

/// How a source is, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Connecting,
    Waiting,
    Running,
}

/// The same, read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SourceFigures {
    pub(crate) name: String,
    /// `mqtt` or `kafka`.
    pub(crate) kind: String,
    /// `running`, `waiting` for room or for an owner, `connecting`, or `elsewhere`: another node
    /// reads it.
    pub(crate) state: String,
    /// Messages that came.
    pub(crate) messages: u64,
    /// Readings taken in.
    pub(crate) readings: u64,
    /// Lines that gave no reading.
    pub(crate) rejected: u64,
    /// Messages left out: those that a broker had retained.
    pub(crate) skipped: u64,
    /// Times that a connection was lost or not made.
    pub(crate) reconnects: u64,
    /// Messages that are there and were not fetched yet; not known for MQTT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag: Option<u64>,
    /// What is wrong now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl SourceState {
    /// A source that nobody looked at yet.
    pub(crate) fn new(definition: &SourceDefinition) -> Self {
        Self {
            name: definition.name().into(),
            kind: if definition.mqtt.is_some() { "mqtt" } else { "kafka" },
            parts: Mutex::default(),
            messages: AtomicU64::new(0),
            readings: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
        }
    }

    /// Reads all.
    pub(crate) fn read(&self) -> SourceFigures {
        let parts = self.parts.lock();
        let state = match parts.values().map(|part| part.phase).min() {
            None => "elsewhere",
            Some(Phase::Connecting) => "connecting",
            Some(Phase::Waiting) => "waiting",
            Some(Phase::Running) => "running",
        };
        let lags = parts.values().filter_map(|part| part.lag);
        SourceFigures {
            name: self.name.to_string(),
            kind: self.kind.to_owned(),
            state: state.to_owned(),
            messages: self.messages.load(Relaxed),
            readings: self.readings.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            lag: lags.reduce(u64::saturating_add),
            error: parts.values().find_map(|part| part.error.clone()),
        }
    }

    /// Another node reads all of it.
    pub(super) fn is_elsewhere(&self) {
        self.parts.lock().clear();
    }

    /// Another node reads this part, or nobody.
    #[cfg(any(test, feature = "kafka"))]
    pub(super) fn leave(&self, part: i32) {
        self.parts.lock().remove(&part);
    }

    /// There is no connection, perhaps because of an error.
    pub(super) fn is_connecting(&self, part: i32, error: Option<String>) {
        if error.is_some() {
            self.reconnects.fetch_add(1, Relaxed);
        }
        self.set(part, Phase::Connecting, error);
    }

    /// Readings wait, for what the error says.
    pub(super) fn is_waiting(&self, part: i32, error: String) {
        self.set(part, Phase::Waiting, Some(error));
    }

    /// All is well.
    pub(super) fn is_running(&self, part: i32) {
        self.set(part, Phase::Running, None);
    }

    /// It is connected, and something is wrong all the same.
    pub(super) fn is_running_but(&self, part: i32, error: String) {
        self.set(part, Phase::Running, Some(error));
    }

    fn set(&self, part: i32, phase: Phase, error: Option<String>) {
        let mut parts = self.parts.lock();
        let part = parts.entry(part).or_insert(Part { phase, lag: None, error: None });
        part.phase = phase;
        part.error = error;
    }

    /// Messages that are there and not fetched.
    #[cfg(any(test, feature = "kafka"))]
    pub(super) fn set_lag(&self, part: i32, lag: u64) {
        if let Some(part) = self.parts.lock().get_mut(&part) {
            part.lag = Some(lag);
        }
    }

    pub(super) fn count_messages(&self, messages: u64) {
        self.messages.fetch_add(messages, Relaxed);
    }

    pub(super) fn count_readings(&self, readings: u64) {
        self.readings.fetch_add(readings, Relaxed);
    }

    pub(super) fn count_rejected(&self, lines: u64) {
        self.rejected.fetch_add(lines, Relaxed);
    }

    pub(super) fn count_skipped(&self, messages: u64) {
        self.skipped.fetch_add(messages, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_as_well_as_the_worst_of_its_parts() {
        let definition = SourceDefinition {
            kafka: Some("b".to_owned()),
            topic: "t".to_owned(),
            ..SourceDefinition::default()
        };
        let state = SourceState::new(&definition);
        assert_eq!(state.read().state, "elsewhere");
        state.is_running(0);
        state.is_connecting(1, Some("no route".to_owned()));
        state.set_lag(0, 5);
        state.set_lag(1, 7);
        let read = state.read();
        assert_eq!((&*read.state, read.reconnects, read.lag), ("connecting", 1, Some(12)));
        assert_eq!(read.error.as_deref(), Some("no route"));
        state.is_running(1);
        assert_eq!((&*state.read().state, state.read().error), ("running", None));
        state.leave(1);
        state.is_waiting(0, "no room".to_owned());
        assert_eq!((&*state.read().state, state.read().lag), ("waiting", Some(5)));
        state.is_elsewhere();
        assert_eq!(state.read().state, "elsewhere");
    }
}
