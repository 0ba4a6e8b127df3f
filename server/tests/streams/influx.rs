//! The write API of InfluxDB: the answers that its senders act on.

use super::{common::Node, make, node};

const INFLUX: &str = r#"{"format": "influx", "windows": [{"tumbling": "10s"}]}"#;

fn start() -> (Node, super::Http) {
    let node = node();
    let http = make(&node, "tele", INFLUX);
    (node, http)
}

#[test]
fn good_lines_are_answered_with_204_on_both_paths() {
    let (_node, http) = start();
    let line = b"cpu,host=a usage=12.5 1700000000000000000\n";
    assert_eq!(http.post("/write?db=tele", line).status, 204);
    assert_eq!(http.post("/api/v2/write?org=o&bucket=tele&precision=ns", line).status, 204);
    let seconds = b"cpu,host=b usage=1 1700000001\n";
    assert_eq!(http.post("/write?db=tele&precision=s", seconds).status, 204);
    let ping = http.get("/ping");
    assert_eq!((ping.status, ping.header("x-influxdb-version").is_empty()), (204, false));
    assert_eq!(http.get("/v1/streams/tele").json()["figures"]["accepted"], 3);
}

#[test]
fn a_bad_line_is_400_and_the_good_ones_are_kept() {
    let (_node, http) = start();
    let body = b"cpu,host=a usage=1 1700000000000000000\ncpu usage=\ncpu,host=c usage=2 1700000000000000000\n";
    let answer = http.post("/write?db=tele", body);
    assert_eq!(answer.status, 400);
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("partial write: unable to parse line 2"), "{error}");
    assert!(error.ends_with("dropped=1"), "{error}");
    assert!(!answer.header("x-influxdb-error").is_empty());
    assert_eq!(http.get("/v1/streams/tele").json()["figures"]["accepted"], 2);
    let v2 = http.post("/api/v2/write?bucket=tele", b"nonsense\n").json();
    assert_eq!(v2["code"], "invalid");
}

#[test]
fn whoever_names_no_database_or_an_unknown_one_is_told() {
    let (node, http) = start();
    assert_eq!(http.post("/write", b"cpu v=1\n").status, 400);
    let unknown = http.post("/write?db=none", b"cpu v=1\n");
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"], "database not found: \"none\"");
    assert_eq!(http.post("/write?db=tele&precision=weeks", b"cpu v=1\n").status, 400);
    make(&node, "lines", r#"{"latest": "tele"}"#);
    assert_eq!(http.post("/write?db=lines", b"cpu v=1\n").status, 400);
}

#[test]
fn a_body_that_is_too_large_is_413_so_that_it_is_halved() {
    let (_node, http) = start();
    let answer = http.post("/write?db=tele", &vec![b'x'; (16 << 20) + 1]);
    assert_eq!(answer.status, 413);
    assert!(answer.json()["error"].is_string());
}
