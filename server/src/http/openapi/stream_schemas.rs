//! What definitions, figures and results of streams look like.
//!
//! Written by hand, as the crate that reads definitions knows nothing of HTTP; names that both must
//! have are taken from its types where it lists them, and a test holds the others against them.

use kiln_stream::{
    aggregate::Aggregate,
    fit,
    plan::{DETECTORS_MAX, FITS_MAX, WINDOW_NAME_LEN_MAX, WINDOWS_MAX},
    reading::{TIME_MAX, TIME_MIN},
    source::{SOURCES_MAX, TOPIC_LEN_MAX},
};
use serde_json::{Map, Value, json};

use super::parts::schema;
use crate::streams::FigureValues;

/// Lengths of time of at most ten years, whichever parts a text has.
const SPAN_PATTERN: &str = "^([0-9]{1,8}ms|[0-9]{1,6}s|[0-9]{1,5}m|[0-9]{1,4}h|[0-9]{1,3}d){1,3}$";

/// All schemas, by name.
pub(super) fn schemas() -> Map<String, Value> {
    let all = json!({
        "StreamDefinition": definition(),
        "WindowDefinition": window_definition(),
        "Detector": detector(),
        "Fit": fit(),
        "Span": {
            "type": "string",
            "description": "A length of time: `500ms`, `10s`, `1h30m`, `7d`.",
            "pattern": SPAN_PATTERN,
        },
        "Stream": stream(),
        "StreamList": object(&[("streams", list(schema("Stream")))], &["streams"]),
        "StreamFigures": figures(),
        "SourceDefinition": source_definition(),
        "Source": source(),
        "Ingested": ingested(),
        "Latest": object(
            &[
                ("sensor", json!({ "type": "string" })),
                ("value", json!({ "type": "number" })),
                ("time", told(time(), "Milliseconds since 1970; missing where only the value is known.")),
            ],
            &["sensor", "value"],
        ),
        "Window": window(),
        "WindowList": object(
            &[
                ("sensor", json!({ "type": "string" })),
                ("window", told(json!({ "type": "string" }), "The window's name.")),
                ("windows", list(schema("Window"))),
                ("forecast", forecast()),
            ],
            &["sensor", "window", "windows"],
        ),
        "Alarm": alarm(),
        "AlarmList": object(&[("alarms", list(schema("Alarm")))], &["alarms"]),
        "Reading": object(
            &[
                ("sensor", json!({ "type": "string" })),
                ("time", time()),
                ("value", json!({ "type": "number" })),
            ],
            &["sensor", "time", "value"],
        ),
        "LateList": object(&[("late", list(schema("Reading")))], &["late"]),
        "InfluxError": object(&[("error", json!({ "type": "string" }))], &["error"]),
        "InfluxErrorV2": object(
            &[("code", json!({ "type": "string" })), ("message", json!({ "type": "string" }))],
            &["code", "message"],
        ),
    });
    match all {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Figures of a stream that has done something.
pub(super) fn figures_example() -> Value {
    let mut example = serde_json::to_value(FigureValues::default()).unwrap_or_default();
    for (name, value) in [
        ("accepted", 4_998),
        ("rejected", 2),
        ("results", 120),
        ("state_bytes", 20_480),
        ("sensors", 8),
    ] {
        example[name] = value.into();
    }
    example
}

/// Milliseconds since 1970, in the years 1 to 9999.
pub(super) fn time() -> Value {
    json!({ "type": "integer", "minimum": TIME_MIN, "maximum": TIME_MAX })
}

/// The names of all aggregates.
fn aggregates() -> Vec<&'static str> {
    Aggregate::ALL.iter().map(|aggregate| aggregate.name()).collect()
}

fn definition() -> Value {
    let text = || json!({ "type": ["string", "null"] });
    let span = |default: &str, meaning: &str| json!({ "$ref": "#/components/schemas/Span", "description": meaning, "default": default });
    let mut schema = object(
        &[
            (
                "format",
                json!({
                    "type": "string", "enum": ["line", "csv", "ndjson", "influx"],
                    "description": "How the text of its sources is laid out.", "default": "line",
                }),
            ),
            ("timestamp", timestamp()),
            (
                "sensor",
                told(
                    text(),
                    "The field (`csv`, `ndjson`) or tag (`influx`) that names the sensor.",
                ),
            ),
            ("value", told(text(), "The field with the value.")),
            (
                "columns",
                told(
                    list(json!({ "type": "string" })),
                    "The columns of `csv`; without them the first line names them.",
                ),
            ),
            (
                "sources",
                json!({
                    "type": "array", "items": schema("SourceDefinition"), "maxItems": SOURCES_MAX,
                    "description": "Where the stream fetches readings by itself.",
                }),
            ),
            (
                "filter",
                told(
                    text(),
                    "Only readings for which this holds: `value > -40.0 && sensor != \"test\"`.",
                ),
            ),
            ("map", told(text(), "What becomes of the value: `(value - 32.0) / 1.8`.")),
            ("latest", latest()),
            (
                "windows",
                json!({
                    "type": "array", "items": super::parts::schema("WindowDefinition"),
                    "maxItems": WINDOWS_MAX,
                }),
            ),
            (
                "aggregates",
                json!({
                    "type": "array", "items": { "type": "string", "enum": aggregates() },
                    "description": "What is computed over each window.",
                    "default": ["count", "mean", "var", "std", "min", "max"],
                }),
            ),
            ("ewma_half_life", span("1m", "The age at which a reading counts half in `ewma`.")),
            ("watermark_delay", span("5s", "How much disorder is waited for.")),
            (
                "allowed_lateness",
                span(
                    "0s",
                    "How long after its end a window still takes readings, and fires again.",
                ),
            ),
            (
                "idle_timeout",
                span("30s", "Silence after which a producer no longer holds windows back."),
            ),
            ("retention", span("1d", "How long results and silent sensors are kept.")),
            ("ahead_max", span("1d", "How far ahead of the clock a time may be.")),
            (
                "keep_late",
                json!({
                    "type": "boolean", "default": false,
                    "description": "Keeps the last readings that came too late.",
                }),
            ),
            (
                "detectors",
                json!({
                    "type": "array", "items": super::parts::schema("Detector"),
                    "maxItems": DETECTORS_MAX,
                }),
            ),
            (
                "fits",
                json!({ "type": "array", "items": super::parts::schema("Fit"), "maxItems": FITS_MAX }),
            ),
        ],
        &[],
    );
    schema["description"] = "What a stream is. Every field may be left out.".into();
    closed(schema)
}

fn timestamp() -> Value {
    let units = json!({ "type": ["string", "null"], "enum": ["ns", "us", "ms", "s", "m", "h", "iso", null] });
    json!({
        "description": "Where the time of a reading comes from.",
        "oneOf": [
            { "type": "string", "enum": ["arrival"] },
            closed(object(&[("field", json!({ "type": ["string", "null"] })), ("unit", units)], &[])),
        ],
    })
}

fn latest() -> Value {
    let by = json!({ "type": "string", "enum": ["time", "arrival"], "default": "time" });
    json!({
        "description": "The cache of the latest values: its name, `arrival`, or both in an object. \
                        `memcached` puts them into `default` too.",
        "oneOf": [
            { "type": "string" },
            closed(object(
                &[
                    ("cache", json!({ "type": ["string", "null"] })),
                    ("by", by),
                    ("memcached", json!({ "type": "boolean", "default": false })),
                ],
                &[],
            )),
        ],
    })
}

fn window_definition() -> Value {
    let span = || json!({ "oneOf": [schema("Span"), { "type": "null" }] });
    let mut form = object(
        &[
            ("name", json!({ "type": ["string", "null"], "maxLength": WINDOW_NAME_LEN_MAX })),
            ("tumbling", told(span(), "Windows of this length, one behind the other.")),
            ("hopping", told(span(), "Windows of this length, one starting `every` so often.")),
            ("every", told(span(), "How often a hopping window starts.")),
            ("offset", told(span(), "Moves the starts of time windows away from the epoch.")),
            (
                "count",
                json!({
                    "type": ["integer", "null"], "minimum": 0, "maximum": u32::MAX,
                    "description": "So many readings of a sensor, in order of arrival.",
                }),
            ),
            ("session", told(span(), "Readings of a sensor without a gap longer than this.")),
        ],
        &[],
    );
    form["description"] =
        "One window; exactly one of `tumbling`, `hopping`, `count` and `session` is there.".into();
    closed(form)
}

fn detector() -> Value {
    let number = || json!({ "type": "number" });
    let share = || json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 });
    let whole = |max: u64| json!({ "type": "integer", "minimum": 0, "maximum": max });
    let scoring = || {
        closed(object(
            &[
                ("threshold", json!({ "type": "number", "exclusiveMinimum": 1, "default": 5.0 })),
                ("warm_up", whole(u64::from(u32::MAX))),
                ("suppress", whole(u64::from(u32::MAX))),
            ],
            &[],
        ))
    };
    let of = |name: &str, fields: &[(&str, Value)]| {
        closed(object(&[(name, closed(object(fields, &[])))], &[name]))
    };
    let optional = || json!({ "type": ["number", "null"] });
    json!({
        "description": "What watches each sensor: a name alone, or with its parameters.",
        "oneOf": [
            { "type": "string", "enum": ["ewma_z", "ar", "holt_winters", "flatline", "missing"] },
            of("ewma_z", &[("alpha", share()), ("scoring", scoring())]),
            of(
                "ar",
                &[
                    ("order", whole(8)),
                    ("forgetting", number()),
                    ("alpha", share()),
                    ("scoring", scoring()),
                ],
            ),
            of(
                "holt_winters",
                &[
                    ("level", share()),
                    ("trend", share()),
                    ("season", share()),
                    ("season_len", whole(2_016)),
                    ("alpha", share()),
                    ("scoring", scoring()),
                ],
            ),
            of(
                "threshold",
                &[("above", optional()), ("below", optional()), ("hysteresis", number())],
            ),
            of("flatline", &[("after", schema("Span")), ("tolerance", number())]),
            of("missing", &[("after", schema("Span"))]),
        ],
    })
}

fn fit() -> Value {
    let order = || json!({ "type": "integer", "minimum": 0, "maximum": fit::ORDER_MAX });
    let orders = json!({ "type": "array", "items": order(), "minItems": 2, "maxItems": 2 });
    json!({
        "description": "A model fitted to the readings of each time window when it closes: \
                        `{\"ma\": q}` or `{\"arma\": [p, q]}`.",
        "oneOf": [
            closed(object(&[("ma", order())], &["ma"])),
            closed(object(&[("arma", orders)], &["arma"])),
        ],
    })
}

fn stream() -> Value {
    let name = || json!({ "type": "string" });
    object(
        &[
            ("name", name()),
            ("definition", schema("StreamDefinition")),
            ("windows", told(list(name()), "The names under which its windows are asked for.")),
            ("latest_cache", name()),
            ("windows_cache", name()),
            (
                "watermark",
                json!({
                    "type": ["integer", "null"],
                    "description": "Milliseconds since 1970; null until readings came.",
                }),
            ),
            ("figures", schema("StreamFigures")),
            ("sources", told(list(schema("Source")), "What it fetches by itself, if anything.")),
        ],
        &["name", "definition", "windows", "latest_cache", "windows_cache", "watermark", "figures"],
    )
}

fn source_definition() -> Value {
    let text = || json!({ "type": ["string", "null"] });
    let whole = |least: u8, most: u8, meaning: &str| {
        json!({
            "type": ["integer", "null"], "minimum": least, "maximum": most, "description": meaning,
        })
    };
    let mut form = object(
        &[
            ("mqtt", told(text(), "An MQTT broker: `mqtt://USER:PASSWORD@HOST:1883`.")),
            ("kafka", told(text(), "Kafka brokers: `HOST:9092`, several with commas between.")),
            (
                "topic",
                json!({
                    "type": "string", "minLength": 1, "maxLength": TOPIC_LEN_MAX,
                    "description": "What to subscribe to.",
                }),
            ),
            ("name", told(text(), "Its name in figures; by default kind and topic.")),
            ("qos", whole(0, 1, "MQTT: the quality of service; 1 by default.")),
            ("sensor_level", whole(1, 255, "MQTT: the level of the topic that is the sensor.")),
            (
                "start",
                json!({
                    "oneOf": [
                        { "type": "string", "enum": ["earliest", "latest"] }, { "type": "null" },
                    ],
                    "description": "Kafka: where to begin when nothing was read yet; `earliest` by default.",
                }),
            ),
        ],
        &["topic"],
    );
    form["description"] = "One source; exactly one of `mqtt` and `kafka` is there.".into();
    closed(form)
}

fn source() -> Value {
    let name = || json!({ "type": "string" });
    object(
        &[
            ("name", name()),
            ("kind", json!({ "type": "string", "enum": ["mqtt", "kafka"] })),
            (
                "state",
                json!({
                    "type": "string", "enum": ["running", "waiting", "connecting", "elsewhere"],
                    "description": "`elsewhere`: another node reads it.",
                }),
            ),
            ("messages", told(count(), "Messages that came to this node.")),
            ("readings", told(count(), "Readings taken in.")),
            ("rejected", told(count(), "Lines that gave no reading.")),
            ("skipped", told(count(), "Messages left out: those that a broker had retained.")),
            ("reconnects", told(count(), "Connections lost or not made.")),
            ("lag", told(count(), "Messages that were not fetched yet; only of Kafka.")),
            ("error", told(name(), "What is wrong now.")),
        ],
        &["name", "kind", "state", "messages", "readings", "rejected", "skipped", "reconnects"],
    )
}

fn figures() -> Value {
    let example = serde_json::to_value(FigureValues::default()).unwrap_or_default();
    let names: Vec<&str> =
        example.as_object().into_iter().flatten().map(|(name, _)| &**name).collect();
    let fields: Vec<_> = names.iter().map(|name| (*name, count())).collect();
    told(object(&fields, &names), "What is counted of a stream on this node since it started.")
}

fn ingested() -> Value {
    let guarantee = json!({
        "type": "string", "enum": ["at-least-once", "effectively-once"],
        "description": "The latter when the request named a producer and a sequence.",
    });
    let bad = object(
        &[("line", count()), ("column", count()), ("reason", json!({ "type": "string" }))],
        &["line", "column", "reason"],
    );
    object(
        &[
            ("accepted", told(count(), "Readings taken in.")),
            ("duplicate", told(count(), "Readings that were taken in before.")),
            (
                "late",
                told(count(), "Readings taken in that were too late for at least one window."),
            ),
            ("rejected", told(count(), "Lines that gave no reading.")),
            ("filtered", told(count(), "Readings that the filter left out.")),
            ("guarantee", guarantee),
            ("errors", told(list(bad), "The first lines that are wrong.")),
        ],
        &["accepted", "duplicate", "late", "rejected", "filtered", "guarantee"],
    )
}

fn window() -> Value {
    let mut fields = vec![
        ("start", told(time(), "Inclusive.")),
        ("end", told(time(), "Exclusive.")),
        ("revision", told(count(), "How often it fired again since.")),
        (
            "filled",
            json!({ "type": "boolean", "description": "There were no readings; `fill` made it." }),
        ),
    ];
    fields.push(("merged", told(count(), "Stored windows in it; with `step`.")));
    let figure = || json!({ "type": ["number", "null"] });
    fields.extend(aggregates().into_iter().map(|name| (name, figure())));
    told(object(&fields, &["start", "end"]), "A window, with the aggregates of its stream.")
}

fn forecast() -> Value {
    let number = || json!({ "type": "number" });
    let model = object(
        &[
            ("mean", number()),
            ("ar", told(list(number()), "Weights of past values, the last first.")),
            ("ma", told(list(number()), "Weights of past shocks, the last first.")),
            ("variance", told(number(), "Of the shocks.")),
            ("forecast", number()),
        ],
        &["mean", "ar", "ma", "variance", "forecast"],
    );
    let window = object(
        &[
            ("start", time()),
            ("end", time()),
            ("value", number()),
            ("low", number()),
            ("high", told(number(), "95 of 100 values are expected between `low` and `high`.")),
        ],
        &["start", "end", "value", "low", "high"],
    );
    let mut form = object(
        &[
            ("figure", json!({ "type": "string", "enum": aggregates() })),
            ("model", model),
            ("windows", list(window)),
        ],
        &["figure", "model", "windows"],
    );
    form["type"] = json!(["object", "null"]);
    told(form, "What is expected; null where there are too few windows, or all are the same.")
}

fn alarm() -> Value {
    object(
        &[
            ("sensor", json!({ "type": "string" })),
            ("detector", json!({ "type": "string" })),
            ("kind", json!({ "type": "string", "enum": ["raised", "cleared"] })),
            ("time", time()),
            ("value", json!({ "type": "number" })),
            ("expected", json!({ "type": ["number", "null"] })),
            ("score", json!({ "type": ["number", "null"] })),
        ],
        &["sensor", "detector", "kind", "time", "value", "expected", "score"],
    )
}

fn object(fields: &[(&str, Value)], required: &[&str]) -> Value {
    let fields: Map<String, Value> =
        fields.iter().map(|(name, form)| ((*name).to_owned(), form.clone())).collect();
    let mut schema = json!({ "type": "object", "properties": fields });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

/// Other fields are refused.
fn closed(mut schema: Value) -> Value {
    schema["additionalProperties"] = false.into();
    schema
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn told(mut schema: Value, meaning: &str) -> Value {
    schema["description"] = meaning.into();
    schema
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kiln_stream::{
        definition::{Definition, WindowDefinition},
        detect::Detector,
        source::SourceDefinition,
    };

    use super::*;

    /// The names that a type would have read in place of one that it does not know.
    fn expected_by<T: serde::de::DeserializeOwned>(text: &str) -> BTreeSet<String> {
        let error = serde_json::from_str::<T>(text).err().map(|error| error.to_string()).unwrap();
        let (_, names) = error.split_once("expected").unwrap_or_else(|| panic!("{error}"));
        names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn described(schema: &Value) -> BTreeSet<String> {
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn a_definition_is_described_with_the_fields_that_it_has() {
        assert_eq!(described(&definition()), expected_by::<Definition>("{\"no\":1}"));
        assert_eq!(described(&window_definition()), expected_by::<WindowDefinition>("{\"no\":1}"));
        assert_eq!(described(&source_definition()), expected_by::<SourceDefinition>("{\"no\":1}"));
        let detector = detector();
        let kinds = detector["oneOf"].as_array().unwrap();
        assert_eq!(kinds.len(), 7);
        for kind in &kinds[1..] {
            let (name, form) = kind["properties"].as_object().unwrap().iter().next().unwrap();
            let expected = expected_by::<Detector>(&format!("{{\"{name}\":{{\"no\":1}}}}"));
            assert_eq!(described(form), expected, "{name}");
        }
    }

    #[test]
    fn defaults_are_described_as_they_are() {
        let real = serde_json::to_value(Definition::default()).unwrap();
        let described = definition();
        for name in [
            "format",
            "aggregates",
            "keep_late",
            "ewma_half_life",
            "watermark_delay",
            "allowed_lateness",
            "idle_timeout",
            "retention",
            "ahead_max",
        ] {
            assert_eq!(described["properties"][name]["default"], real[name], "{name}");
        }
    }
}
