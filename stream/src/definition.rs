//! A stream as its owner writes it: JSON in `PUT /v1/streams/{stream}`, TOML in a node's file.
//!
//! Only the shape is checked here (names, types, lengths of time); what the parts mean together is
//! checked once, when a [`crate::plan::Plan`] is made of it. A misspelt name is refused.

use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
use crate::detect::Detector;
use crate::fit::Fit;
use crate::parse::{Format, Unit};
use crate::source::SourceDefinition;
use crate::span::Span;

/// Everything that is agreed about a stream except its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Definition {
    /// How the text of its sources is laid out.
    pub format: Format,
    /// Where the event time of a reading comes from.
    pub timestamp: Timestamp,
    /// The field that names the sensor (`csv`, `ndjson`; default `sensor`), or the tag (`influx`;
    /// default: measurement and all tags).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensor: Option<String>,
    /// The field with the value (`csv`, `ndjson`: default `value`; `influx`: default all fields).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The columns of `csv` in order; empty when the first line of a source names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Where the stream fetches readings by itself, at most [`crate::source::SOURCES_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceDefinition>,
    /// A reading is taken only where this expression is true: `value > -40.0 && sensor != "test"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The value becomes the result of this expression: `(value - 32.0) / 1.8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The cache of the latest values, and which reading is the latest.
    pub latest: Latest,
    /// The windows, at most [`crate::plan::WINDOWS_MAX`].
    pub windows: Vec<WindowDefinition>,
    /// What is computed over each window.
    pub aggregates: Vec<Aggregate>,
    /// The age at which a reading counts half in `ewma`.
    pub ewma_half_life: Span,
    /// How long after its end a window still takes readings and fires again.
    pub allowed_lateness: Span,
    /// How far the watermark stays behind the greatest event time of a producer. Larger tolerates
    /// more disorder and answers later.
    pub watermark_delay: Span,
    /// Silence after which a producer no longer holds the watermark back.
    pub idle_timeout: Span,
    /// How long results and silent sensors are kept.
    pub retention: Span,
    /// How far ahead of the clock an event time may be. One sensor with a wrong clock would
    /// otherwise make every other reading late.
    pub ahead_max: Span,
    /// Readings too late for a window are handed out beside the results, not only counted.
    pub keep_late: bool,
    /// What watches each sensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detectors: Vec<Detector>,
    /// Models fitted to the readings of each time window when it closes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fits: Vec<Fit>,
}

impl Default for Definition {
    fn default() -> Self {
        Self {
            format: Format::Line,
            timestamp: Timestamp::default(),
            sensor: None,
            value: None,
            columns: Vec::new(),
            sources: Vec::new(),
            filter: None,
            map: None,
            latest: Latest::default(),
            windows: Vec::new(),
            aggregates: vec![
                Aggregate::Count,
                Aggregate::Mean,
                Aggregate::Var,
                Aggregate::Std,
                Aggregate::Min,
                Aggregate::Max,
            ],
            ewma_half_life: Span::from_millis(60_000),
            allowed_lateness: Span::from_millis(0),
            watermark_delay: Span::from_millis(5_000),
            idle_timeout: Span::from_millis(30_000),
            retention: Span::from_millis(24 * 3_600_000),
            ahead_max: Span::from_millis(24 * 3_600_000),
            keep_late: false,
            detectors: Vec::new(),
            fits: Vec::new(),
        }
    }
}

/// Where event times come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected \"arrival\" or {\"field\": NAME, \"unit\": \"ns\" | \"us\" | \"ms\" | \"s\" | \"iso\"}"
)]
pub enum Timestamp {
    /// The word `arrival`: the clock of the node that takes the reading in.
    Word(ArrivalWord),
    /// From the text.
    Text {
        /// The field, for `csv` and `ndjson`. Named here, it must be there; left out, it is `time`
        /// and a reading without it gets the time of arrival.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        field: Option<String>,
        /// Its unit; by default nanoseconds for `influx`, else milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unit: Option<Unit>,
    },
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::Text { field: None, unit: None }
    }
}

/// The word `arrival`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArrivalWord {
    /// By the time of arrival.
    Arrival,
}

/// The cache of the latest values: its name, `"arrival"`, or both in an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a cache name, \"arrival\" or {\"cache\": NAME, \"by\": \"time\" | \"arrival\", \"memcached\": true}"
)]
pub enum Latest {
    /// The word `arrival`: the cache named like the stream, the last to arrive wins.
    Word(ArrivalWord),
    /// The cache; the greatest event time wins, ties by arrival.
    Cache(String),
    /// Both.
    Full {
        /// The cache; by default it is named like the stream.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache: Option<String>,
        /// Which reading is the latest.
        #[serde(default)]
        by: LatestBy,
        /// Also in the cache `default`, which memcached clients read.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        memcached: bool,
    },
}

impl Default for Latest {
    fn default() -> Self {
        Self::Full { cache: None, by: LatestBy::Time, memcached: false }
    }
}

impl Latest {
    /// The named cache; `None` for the one named like the stream.
    pub fn cache(&self) -> Option<&str> {
        match self {
            Self::Word(_) => None,
            Self::Cache(name) => Some(name),
            Self::Full { cache, .. } => cache.as_deref(),
        }
    }

    /// Whether memcached clients shall find the latest values too.
    pub fn is_for_memcached(&self) -> bool {
        matches!(self, Self::Full { memcached: true, .. })
    }

    /// Which reading is the latest.
    pub fn by(&self) -> LatestBy {
        match self {
            Self::Word(ArrivalWord::Arrival) => LatestBy::Arrival,
            Self::Cache(_) => LatestBy::Time,
            Self::Full { by, .. } => *by,
        }
    }
}

/// Which of two readings of a sensor is the later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatestBy {
    /// The one with the greater event time, ties by arrival.
    #[default]
    Time,
    /// The one that arrived last.
    Arrival,
}

/// One window; exactly one of `tumbling`, `hopping`, `count` and `session` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowDefinition {
    /// Its name in keys and queries; see [`crate::plan::Plan::window_named`] for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Windows of this length, one behind the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tumbling: Option<Span>,
    /// Windows of this length, one starting `every` so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hopping: Option<Span>,
    /// How often a hopping window starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// Moves the starts of time windows away from the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<Span>,
    /// So many readings of a sensor, in order of arrival.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Readings of a sensor without a gap longer than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Span>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = r#"{"format": "line", "latest": "sensorDataCache", "windows": [{"tumbling": "10s"}, {"hopping": "10m", "every": "1m"}],
        "aggregates": ["count", "mean", "var", "std", "min", "max"], "watermark_delay": "5s", "allowed_lateness": "0s", "idle_timeout": "30s", "retention": "24h"}"#;

    #[test]
    fn the_contracts_example_is_read_and_survives_being_written() {
        let definition: Definition = serde_json::from_str(CONTRACT).unwrap();
        assert_eq!(definition.latest.cache(), Some("sensorDataCache"));
        assert_eq!(definition.windows[1].every, Some(Span::from_millis(60_000)));
        let written = serde_json::to_string(&definition).unwrap();
        assert_eq!(serde_json::from_str::<Definition>(&written).unwrap(), definition);
        let packed = rmp_serde::to_vec_named(&definition).unwrap();
        assert_eq!(rmp_serde::from_slice::<Definition>(&packed).unwrap(), definition);
    }

    #[test]
    fn toml_has_the_same_names() {
        let text = r#"
            format = "csv"
            timestamp = { field = "when", unit = "iso" }
            latest = "arrival"
            sources = [{ mqtt = "mqtt://broker:1883", topic = "plant/+/temperature" }]
            windows = [{ count = 100 }, { session = "30s", name = "visits" }]
            detectors = ["ewma_z", { threshold = { above = 80.0 } }, "flatline"]
            fits = [{ arma = [2, 1] }]
        "#;
        let definition: Definition = toml::from_str(text).unwrap();
        assert_eq!(definition.latest.by(), LatestBy::Arrival);
        assert_eq!(definition.windows[0].count, Some(100));
        let back = toml::to_string(&definition).unwrap();
        assert_eq!(toml::from_str::<Definition>(&back).unwrap(), definition);
    }

    #[test]
    fn every_aggregate_has_the_name_of_the_contract() {
        for aggregate in Aggregate::ALL {
            let name = serde_json::to_value(aggregate).unwrap();
            assert_eq!(name, aggregate.name());
        }
    }

    #[test]
    fn an_error_names_the_field_and_what_is_allowed() {
        for (text, words) in [
            (r#"{"aggregates": ["median"]}"#, "unknown variant `median`, expected one of `count`"),
            (r#"{"window": []}"#, "unknown field `window`, expected one of"),
            (r#"{"windows": [{"tumbling": "10"}]}"#, "a length of time such as"),
            (r#"{"timestamp": "now"}"#, "expected \"arrival\" or"),
            (r#"{"latest": 3}"#, "expected a cache name"),
            (r#"{"detectors": ["threshold"]}"#, "threshold needs"),
            (
                r#"{"detectors": ["zscore"]}"#,
                "ewma_z, ar, holt_winters, threshold, flatline, missing",
            ),
        ] {
            let error = serde_json::from_str::<Definition>(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
