//! Readings over HTTP: what is counted, what is refused, and that a retry counts once.

use std::io::Write;

use super::{client::Http, make, node, send};

const READINGS: &str = "/v1/streams/s/readings";

#[test]
fn the_answer_counts_and_names_the_first_bad_lines() {
    let node = node();
    let http = make(&node, "s", r#"{"filter": "value >= 0.0"}"#);
    let answer = send(&http, READINGS, "a, 1\nb 2\na, -3\na, 2\n");
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&2.into(), &1.into()));
    assert_eq!((&answer["filtered"], &answer["duplicate"]), (&1.into(), &0.into()));
    assert_eq!(answer["errors"][0]["line"], 2);
    assert_eq!(answer["guarantee"], "at-least-once");
    http.post("/v1/streams/none/readings", b"a, 1\n").assert_problem(404, "no-such-stream");
    http.post("/v1/streams/s/readings?sequence=1", b"a, 1\n").assert_problem(400, "bad-request");
}

#[test]
fn every_format_is_taken_in() {
    let node = node();
    for (name, definition, text) in [
        ("l", r#"{"format": "line"}"#, "a, 1, 1700000000000\n"),
        ("c", r#"{"format": "csv"}"#, "time,sensor,value\n1700000000000,a,1\n"),
        ("n", r#"{"format": "ndjson"}"#, "{\"sensor\":\"a\",\"value\":1,\"time\":1700000000000}\n"),
        (
            "i",
            r#"{"format": "influx", "sensor": "id", "value": "v"}"#,
            "m,id=a v=1 1700000000000000000\n",
        ),
    ] {
        let http = make(&node, name, definition);
        let answer = send(&http, &format!("/v1/streams/{name}/readings"), text);
        assert_eq!(answer["accepted"], 1, "{name}: {answer}");
        let latest = http.get(&format!("/v1/streams/{name}/sensors/a")).json();
        assert_eq!(
            (&latest["value"], &latest["time"]),
            (&1.0.into(), &1_700_000_000_000_i64.into())
        );
    }
}

#[test]
fn compressed_bodies_are_inflated_within_a_bound() {
    let node = node();
    let http = make(&node, "s", "{}");
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let post =
        |coding, body: &[u8]| http.send("POST", READINGS, &[("content-encoding", coding)], body);
    let text = b"a, 1\n".repeat(1_000);
    for (coding, body) in [("gzip", gzip(&text)), ("zstd", zstd::encode_all(&*text, 1).unwrap())] {
        assert_eq!(post(coding, &body).json()["accepted"], 1_000, "{coding}");
    }
    let bomb = gzip(&vec![b'\n'; 65 << 20]);
    post("gzip", &bomb).assert_problem(413, "too-large");
    post("gzip", b"not gzip").assert_problem(400, "bad-request");
    post("br", b"x").assert_problem(415, "unsupported-media-type");
}

#[test]
fn what_is_acknowledged_to_a_producer_with_an_id_counts_once_when_it_retries() {
    let node = node();
    let http =
        make(&node, "s", r#"{"windows": [{"tumbling": "10s"}], "aggregates": ["count", "sum"]}"#);
    let batch = |number: i64| -> String {
        let line =
            |i: i64| format!("sensor{}, {i}, {}\n", i % 50, 1_700_000_000_000 + number * 1_000);
        (0..500).map(line).collect()
    };
    let target = |number: i64| format!("{READINGS}?producer=p&epoch=1&sequence={number}");
    let mut accepted = 0;
    for number in 0..10 {
        // Each is sent two or three times, the way a client does that lost an answer.
        for time in 0..2 + number % 2 {
            let answer = send(&http, &target(number), &batch(number));
            assert_eq!(answer["guarantee"], "effectively-once");
            let of = |name: &str| answer[name].as_i64().unwrap();
            assert_eq!(
                (of("accepted"), of("duplicate")),
                if time == 0 { (500, 0) } else { (0, 500) }
            );
            accepted += of("accepted");
        }
    }
    // An old one among new ones still counts once.
    assert_eq!(send(&http, &target(3), &batch(3))["duplicate"], 500);
    assert_eq!(accepted, 5_000);
    // The window of all of them: closed by one reading far ahead.
    send(&http, &target(100), "closing, 0, 1700000030000\n");
    let mut count = 0.0;
    let mut sum = 0.0;
    super::common::eventually("all windows are there", || {
        (count, sum) = (0.0, 0.0);
        for sensor in 0..50 {
            let range = format!(
                "/v1/streams/s/sensors/sensor{sensor}/windows?from=1700000000000&to=1700000010000"
            );
            let found = http.get(&range).json();
            for window in found["windows"].as_array().unwrap() {
                count += window["count"].as_f64().unwrap();
                sum += window["sum"].as_f64().unwrap();
            }
        }
        count == 5_000.0
    });
    assert_eq!(sum, 10.0 * (0..500).sum::<i64>() as f64);
    // An earlier life of the producer is told so.
    let fenced = http.post(&format!("{READINGS}?producer=p&epoch=0&sequence=1"), b"sensor1, 1\n");
    fenced.assert_problem(409, "conflict");
}

#[test]
fn beyond_the_room_for_state_readings_are_refused_for_later_and_nothing_breaks() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "1h"}], "aggregates": ["mean", "p99"]}"#;
    let http = make(&node, "s", definition);
    let mut refused = None;
    for round in 0..200 {
        let text: String = (0..5_000).map(|i| format!("sensor-{round}-{i}, 1\n")).collect();
        let answer = http.post(READINGS, text.as_bytes());
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a node takes in a million sensors in 12 MiB");
    refused.assert_problem(429, "busy");
    assert!(!refused.header("retry-after").is_empty());
    let figures = http.get("/v1/streams/s").json()["figures"].clone();
    assert!(figures["refused"].as_u64().unwrap() > 0, "{figures}");
    // What is known goes on.
    assert_eq!(http.get("/v1/streams/s/sensors/sensor-0-0").status, 200);
    // A dropped stream gives its room back.
    assert_eq!(http.delete("/v1/streams/s").status, 204);
    super::common::eventually("the room is there again", || {
        http.put("/v1/streams/s", definition.as_bytes()).status < 300
            && http.post(READINGS, b"new, 1\n").status == 200
    });
}

#[test]
fn streams_are_made_once_listed_and_dropped() {
    let node = node();
    let http = make(&node, "s", r#"{"windows": [{"count": 3}]}"#);
    let put = |body: &[u8]| http.put("/v1/streams/s", body);
    assert_eq!(put(br#"{"windows": [{"count": 3}], "format": "line"}"#).status, 200);
    put(b"{}").assert_problem(409, "conflict");
    http.put("/v1/streams/a%20b", b"{}").assert_problem(400, "bad-request");
    http.put("/v1/streams/t", br#"{"window": []}"#).assert_problem(400, "bad-request");
    http.put("/v1/streams/t", br#"{"windows": [{}]}"#).assert_problem(422, "unfit");
    let list = http.get("/v1/streams").json();
    assert_eq!(list["streams"][0]["name"], "s");
    assert_eq!(list["streams"][0]["windows"][0], "count-3");
    assert_eq!(http.delete("/v1/streams/s").status, 204);
    http.delete("/v1/streams/s").assert_problem(404, "no-such-stream");
    http.get("/v1/caches/s.windows").assert_problem(404, "no-such-cache");
    assert_eq!(http.get("/v1/caches/s").status, 200, "the latest values stay");
}

#[test]
fn a_node_of_a_cluster_keeps_streams_in_the_table() {
    let node = super::Node::start(&[
        "--memory",
        "96MiB",
        "--listen-peer",
        "127.0.0.1:0",
        "--listen-ingest",
        "off",
    ]);
    let http = make(&node, "s", r#"{"windows": [{"tumbling": "1s"}]}"#);
    let text: String =
        (0..100).map(|i| format!("a, {i}, {}\n", 1_700_000_000_000_i64 + i * 100)).collect();
    assert_eq!(send(&http, READINGS, &text)["accepted"], 100);
    assert_eq!(http.get("/v1/caches/s/keys/a").body, b"99");
    let range = "/v1/streams/s/sensors/a/windows?from=1700000000000&to=1700000002000";
    assert_eq!(http.get(range).json()["windows"].as_array().unwrap().len(), 2);
    assert_eq!(Http::of(&node).delete("/v1/streams/s").status, 204);
    http.get("/v1/streams/s").assert_problem(404, "no-such-stream");
}
