//! The sample configuration does what its comments say.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use super::{
    client::Http,
    common::{Node, SOON, eventually},
};

fn start() -> Node {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/sensors.toml");
    Node::start(&["--config", path, "--memory", "96MiB", "--listen-ingest", "127.0.0.1:0"])
}

/// Sends lines as `nc -N` does, and returns what comes back.
fn lines(node: &Node, text: &str) -> String {
    let mut socket = TcpStream::connect(node.address("ingest")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(text.as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_line_becomes_the_latest_value_that_memcached_clients_and_rest_read() {
    let node = start();
    assert_eq!(lines(&node, "sensor1, 12\nsensor2,7.5"), "");
    let mut memcached = node.connect();
    assert_eq!(memcached.ask("get sensor1\r\n"), "VALUE sensor1 0 2\r\n");
    assert_eq!((memcached.line(), memcached.line()), ("12\r\n".into(), "END\r\n".into()));
    let http = Http::of(&node);
    assert_eq!(http.get("/v1/caches/sensorDataCache/keys/sensor2").body, b"7.5");
    let latest = http.get("/v1/streams/plant/sensors/sensor2").json();
    assert_eq!((&latest["value"], latest["time"].is_i64()), (&7.5.into(), true));
    http.get("/v1/streams/plant/sensors/sensor3").assert_problem(404, "miss");
}

#[test]
fn windows_are_items_and_a_range() {
    let node = start();
    // 1, 2, 3, … one a second, for a minute; the last closes the first five windows.
    let text: String =
        (0..60).map(|i| format!("sensor1, {i}, {}\n", 1_700_000_000_000_i64 + i * 1_000)).collect();
    assert_eq!(lines(&node, &text), "");
    let http = Http::of(&node);
    let key = "/v1/caches/plant.windows/keys/sensor1%2F10s%2F1700000000000";
    let mut item = http.get(key);
    eventually("the first window is an item", || {
        item = http.get(key);
        item.status == 200
    });
    let item = item.json();
    assert_eq!(item["count"], 10);
    assert_eq!(item["mean"], 4.5);
    // Of 0 to 9, by n - 1.
    assert!((item["var"].as_f64().unwrap() - 82.5 / 9.0).abs() < 1e-12);
    let range =
        "/v1/streams/plant/sensors/sensor1/windows?window=10s&from=1700000000000&to=1700000060000";
    let found = http.get(range).json();
    assert_eq!((&found["sensor"], &found["window"]), (&"sensor1".into(), &"10s".into()));
    let starts: Vec<_> =
        found["windows"].as_array().unwrap().iter().map(|w| w["start"].as_i64().unwrap()).collect();
    let expected: Vec<i64> = (0..5).map(|i| 1_700_000_000_000 + i * 10_000).collect();
    assert_eq!(starts, expected);
}

#[test]
fn a_bad_line_is_told_and_the_rest_is_kept() {
    let node = start();
    let told = lines(&node, "sensor1, 1\nnonsense\nsensor1, x\nsensor2, 2\n");
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("bad 2 ") && told[1].starts_with("bad 3 "), "{told:?}");
    let shown = Http::of(&node).get("/v1/streams/plant").json();
    assert_eq!(shown["figures"]["accepted"], 2);
    assert_eq!(shown["figures"]["rejected"], 2);
}

#[test]
fn metrics_tell_of_the_stream() {
    let node = start();
    lines(&node, "sensor1, 1\nsensor1, 2\nbad\n");
    let label = "{stream=\"plant\"}";
    assert_eq!(node.metric(&format!("kiln_stream_readings_total{label}")), 2.0);
    assert_eq!(node.metric(&format!("kiln_stream_rejected_total{label}")), 1.0);
    eventually("the state is counted", || {
        node.metric(&format!("kiln_stream_state_bytes{label}")) > 0.0
            && node.metric(&format!("kiln_stream_sensors{label}")) == 1.0
    });
}
