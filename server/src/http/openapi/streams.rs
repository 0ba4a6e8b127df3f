//! The operations of streams, part of the table of operations.

use serde_json::{Value, json};

use super::{
    super::problem::Kind,
    operations::Operation,
    parts::{empty, headers, json_of, schema},
};

const STREAM: &str = "/v1/streams/{stream}";
const TAG: &str = "Streams";

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let mut all = definitions();
    all.extend(results());
    all.extend(influx());
    all
}

fn definitions() -> Vec<Operation> {
    vec![
        Operation {
            method: "get",
            path: "/v1/streams",
            id: "listStreams",
            tag: TAG,
            summary: "List the streams",
            description: "Their definitions, and their figures on this node.",
            parameters: &[],
            body: None,
            answers: || {
                let example = json!({ "streams": [stream_example()] });
                json!({ "200": json_of("All streams, by name.", "StreamList", Some(example)) })
            },
            problems: &[],
        },
        Operation {
            method: "get",
            path: STREAM,
            id: "showStream",
            tag: TAG,
            summary: "Show a stream",
            description: "Its definition, its watermark, and its figures on this node.",
            parameters: &["stream"],
            body: None,
            answers: || json!({ "200": json_of("The stream.", "Stream", Some(stream_example())) }),
            problems: &[Kind::NoSuchStream],
        },
        Operation {
            method: "put",
            path: STREAM,
            id: "createStream",
            tag: TAG,
            summary: "Make a stream",
            description: "May be repeated: a stream that exists with this definition is as good as \
                          made. Its caches are made with it.",
            parameters: &["newStream"],
            body: Some(|| {
                json!({ "required": false, "content": { "application/json": {
                    "schema": schema("StreamDefinition"), "example": definition_example(),
                } } })
            }),
            answers: || {
                let example = stream_example;
                json!({
                    "200": json_of("The stream was there already.", "Stream", Some(example())),
                    "201": json_of("The stream is made.", "Stream", Some(example())),
                })
            },
            problems: &[Kind::Conflict, Kind::Unfit, Kind::NoRoom, Kind::Indeterminate],
        },
        Operation {
            method: "delete",
            path: STREAM,
            id: "dropStream",
            tag: TAG,
            summary: "Drop a stream",
            description: "With the windows that it has given. The cache of the latest values stays.",
            parameters: &["newStream"],
            body: None,
            answers: || json!({ "204": empty("The stream is gone.", &[]) }),
            problems: &[Kind::NoSuchStream, Kind::NoRoom, Kind::Conflict, Kind::Indeterminate],
        },
        Operation {
            method: "post",
            path: "/v1/streams/{stream}/readings",
            id: "ingestReadings",
            tag: TAG,
            summary: "Send readings",
            description: "Text in the stream's format, as it is or with the `Content-Encoding` gzip, \
                          zstd or lz4. Lines that are wrong are counted and the first are named; the \
                          others are taken in. With `producer`, `epoch` and `sequence` the same \
                          request can be sent again after any error, and counts once.",
            parameters: &["stream", "producer", "epoch", "sequence"],
            body: Some(|| {
                let text = "sensor1, 12, 1700000000000\nsensor2, 7.5, 1700000000250\n";
                json!({ "required": false, "content": {
                    "text/plain": { "schema": { "type": "string" }, "example": text },
                } })
            }),
            answers: || {
                let example = json!({
                    "accepted": 4_998, "duplicate": 0, "late": 0, "rejected": 2, "filtered": 0,
                    "guarantee": "at-least-once",
                    "errors": [{ "line": 17, "column": 9, "reason": "expected a number" }],
                });
                json!({ "200": json_of("What came of them.", "Ingested", Some(example)) })
            },
            problems: &[Kind::NoSuchStream, Kind::Conflict, Kind::UnsupportedMediaType, Kind::Busy],
        },
    ]
}

fn results() -> Vec<Operation> {
    vec![
        Operation {
            method: "get",
            path: "/v1/streams/{stream}/sensors/{sensor}",
            id: "showSensor",
            tag: TAG,
            summary: "Read a sensor's latest value",
            description: "",
            parameters: &["stream", "sensor"],
            body: None,
            answers: || {
                let example =
                    json!({ "sensor": "sensor1", "value": 12.0, "time": 1_700_000_000_000_u64 });
                json!({ "200": json_of("The latest value.", "Latest", Some(example)) })
            },
            problems: &[Kind::NoSuchStream, Kind::Miss, Kind::KeyTooLong],
        },
        Operation {
            method: "get",
            path: "/v1/streams/{stream}/sensors/{sensor}/windows",
            id: "listWindows",
            tag: TAG,
            summary: "Read a sensor's windows",
            description: "By their starts. Without `from` the last ones, up to now. A stream without \
                          windows, or without this one, is an error, and so is a `from` that is not \
                          before `to`. With `step` stored windows are merged into longer ones; a figure \
                          that they do not determine, as a percentile, is null. With `forecast` there \
                          is a band, too, in which 95 of 100 values are expected.",
            parameters: &[
                "stream",
                "sensor",
                "window",
                "from",
                "to",
                "fill",
                "step",
                "forecast",
                "figure",
                "windowLimit",
            ],
            body: None,
            answers: || {
                let example = json!({
                    "sensor": "sensor1", "window": "10s", "windows": [window_example()],
                });
                json!({ "200": json_of("The windows.", "WindowList", Some(example)) })
            },
            problems: &[Kind::NoSuchStream, Kind::KeyTooLong],
        },
        Operation {
            method: "get",
            path: "/v1/streams/{stream}/live",
            id: "followStream",
            tag: TAG,
            summary: "Follow results as they come",
            description: "Server-sent events, until the client goes or the stream is dropped: \
                          `window`, `alarm`, `fit` and `late`, each with a JSON \
                          document; `missed` for a follower that is too slow; `goodbye` at the end. \
                          Of the partitions of this node.",
            parameters: &["stream", "ofSensor", "eventKind"],
            body: None,
            answers: || {
                let example = format!(
                    "event: alarm\ndata: {}\n\nevent: missed\ndata: {{\"events\":12}}\n\n",
                    alarm_example()
                );
                json!({ "200": {
                    "description": "The events.",
                    "headers": headers(&[]),
                    "content": { "text/event-stream": {
                        "schema": { "type": "string" }, "example": example,
                    } },
                } })
            },
            problems: &[Kind::NoSuchStream],
        },
        Operation {
            method: "get",
            path: "/v1/streams/{stream}/alarms",
            id: "listAlarms",
            tag: TAG,
            summary: "List the last alarms",
            description: "The last 1,024 that were raised or cleared on this node, oldest first.",
            parameters: &["stream", "ofSensor"],
            body: None,
            answers: || {
                let example = json!({ "alarms": [alarm_example()] });
                json!({ "200": json_of("The alarms.", "AlarmList", Some(example)) })
            },
            problems: &[Kind::NoSuchStream],
        },
        Operation {
            method: "get",
            path: "/v1/streams/{stream}/late",
            id: "listLate",
            tag: TAG,
            summary: "List the last readings that came too late",
            description: "Those of this node, oldest first, of a stream with `keep_late`.",
            parameters: &["stream", "ofSensor"],
            body: None,
            answers: || {
                let reading =
                    json!({ "sensor": "sensor1", "time": 1_700_000_000_000_u64, "value": 12 });
                let example = json!({ "late": [reading] });
                json!({ "200": json_of("The readings.", "LateList", Some(example)) })
            },
            problems: &[Kind::NoSuchStream],
        },
    ]
}

fn influx() -> Vec<Operation> {
    vec![
        Operation {
            method: "post",
            path: "/write",
            id: "influxWrite",
            tag: TAG,
            summary: "Send readings as to InfluxDB 1",
            description: "For senders that speak InfluxDB's line protocol, to a stream of the format \
                          `influx`. Of a batch with bad lines the good ones are kept. `rp`, \
                          `consistency`, `u` and `p` are taken and mean nothing.",
            parameters: &["influxDatabase", "influxPrecision"],
            body: Some(lines),
            answers: || {
                influx_answers("InfluxError", &json!({ "error": "database not found: \"tele\"" }))
            },
            problems: &[],
        },
        Operation {
            method: "post",
            path: "/api/v2/write",
            id: "influxWriteV2",
            tag: TAG,
            summary: "Send readings as to InfluxDB 2",
            description: "As `/write`, with the names and errors of the later interface. `org` and \
                          `orgID` are taken and mean nothing.",
            parameters: &["influxBucket", "influxPrecision"],
            body: Some(lines),
            answers: || {
                let example =
                    json!({ "code": "not found", "message": "bucket not found: \"tele\"" });
                influx_answers("InfluxErrorV2", &example)
            },
            problems: &[],
        },
        Operation {
            method: "get",
            path: "/ping",
            id: "influxPing",
            tag: TAG,
            summary: "Whether someone is there, as InfluxDB says it",
            description: "",
            parameters: &[],
            body: None,
            answers: || json!({ "204": empty("Yes.", &["X-Influxdb-Version"]) }),
            problems: &[],
        },
    ]
}

fn lines() -> Value {
    json!({ "required": false, "content": { "text/plain": {
        "schema": { "type": "string" },
        "example": "cpu,host=a usage=12.5 1700000000000000000\n",
    } } })
}

/// Answers in the words that these senders expect.
fn influx_answers(name: &str, example: &Value) -> Value {
    let mut answers = json!({ "204": empty("All readings were taken in.", &[]) });
    for (status, description) in [
        ("400", "The request is wrong, or some lines are; the other lines were taken in."),
        ("404", "There is no such stream."),
        ("408", "The body did not come in time. Nothing was done."),
        ("413", "The body is too long: send halves."),
        ("415", "The body is encoded in a way that this does not take."),
        ("429", "No room now: send it again after `Retry-After`."),
    ] {
        let mut names = vec!["X-Influxdb-Error"];
        if status == "429" {
            names.push("Retry-After");
        }
        answers[status] = json!({
            "description": description,
            "headers": headers(&names),
            "content": { "application/json": { "schema": schema(name), "example": example } },
        });
    }
    answers
}

fn definition_example() -> Value {
    json!({
        "format": "line", "windows": [{ "tumbling": "10s" }, { "hopping": "10m", "every": "1m" }],
        "aggregates": ["count", "mean", "std", "min", "max"], "watermark_delay": "5s",
        "detectors": ["ewma_z", { "threshold": { "above": 80.0 } }],
    })
}

fn stream_example() -> Value {
    json!({
        "name": "plant",
        "definition": {
            "format": "line", "timestamp": {}, "latest": { "by": "time" },
            "windows": [{ "tumbling": "10s" }], "aggregates": ["count", "mean", "std"],
            "ewma_half_life": "1m", "allowed_lateness": "0s", "watermark_delay": "5s",
            "idle_timeout": "30s", "retention": "1d", "ahead_max": "1d", "keep_late": false,
        },
        "windows": ["10s"], "latest_cache": "plant", "windows_cache": "plant.windows",
        "watermark": 1_700_000_000_000_u64,
        "figures": super::stream_schemas::figures_example(),
    })
}

fn window_example() -> Value {
    json!({
        "start": 1_700_000_000_000_u64, "end": 1_700_000_010_000_u64, "revision": 0, "count": 97,
        "mean": 49.2, "std": 1.7,
    })
}

fn alarm_example() -> Value {
    json!({
        "sensor": "sensor1", "detector": "ewma_z", "kind": "raised", "time": 1_700_000_000_000_u64,
        "value": 93.5, "expected": 49.8, "score": 8.2,
    })
}
