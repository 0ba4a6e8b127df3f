//! `kiln stream …` against a real node.

use std::io::Write;

use super::{
    client::Http,
    common::{eventually, run},
    node,
};

#[test]
fn a_stream_is_made_fed_from_a_file_drawn_and_dropped() {
    let node = node();
    let at = node.address("http").to_string();
    let kiln = |arguments: &[&str]| {
        let mut all = vec!["stream"];
        all.extend(arguments);
        all.extend(["--http", &at]);
        run(&all)
    };
    let made = kiln(&["create", "plant", "--window", "10s", "--aggregates", "count,mean"]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    assert!(made.out.contains("windows 10s in the cache plant.windows"), "{}", made.out);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for i in 0..12_000_i64 {
        writeln!(file, "press, {}, {}", i % 100, 1_700_000_000_000 + i * 100).unwrap();
    }
    file.write_all(b"no reading").unwrap();
    let path = file.path().to_str().unwrap();
    let feed = ["ingest", "plant", path, "--producer", "file", "-o", "json"];
    let first: serde_json::Value = serde_json::from_str(&kiln(&feed).out).unwrap();
    assert_eq!((&first["accepted"], &first["rejected"]), (&12_000.into(), &1.into()));
    assert_eq!(first["batches"], 3);
    // The same file by the same producer counts once.
    let again: serde_json::Value = serde_json::from_str(&kiln(&feed).out).unwrap();
    assert_eq!((&again["accepted"], &again["duplicate"]), (&0.into(), &12_000.into()));
    let plot = ["plot", "plant", "press", "--to", "1700001200000", "--last", "100"];
    eventually("the windows are drawn", || kiln(&plot).out.matches('●').count() >= 99);
    assert_eq!(kiln(&["list", "-o", "raw"]).out, "plant\n");
    assert!(kiln(&["show", "plant"]).out.contains("\"accepted\": 12000"));
    assert_eq!(kiln(&["drop", "plant"]).code, Some(2));
    assert_eq!(kiln(&["drop", "plant", "--yes"]).code, Some(0));
    assert_eq!(Http::of(&node).get("/v1/streams/plant").status, 404);
    assert_eq!(kiln(&["show", "plant"]).code, Some(1));
    assert_eq!(kiln(&["create", "x", "--window", "soon"]).code, Some(2));
}

#[test]
fn a_file_is_replayed_at_the_pace_of_its_times() {
    let node = node();
    let http =
        super::make(&node, "s", r#"{"format": "csv", "timestamp": {"field": "at", "unit": "s"}}"#);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"at,sensor,value\n").unwrap();
    for i in 0..30 {
        writeln!(file, "{},a,{i}", 1_700_000_000 + i).unwrap();
    }
    let begun = std::time::Instant::now();
    let at = node.address("http").to_string();
    let path = file.path().to_str().unwrap();
    let done = run(&["stream", "ingest", "s", path, "--pace", "20x", "--http", &at]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    // 29 seconds, twenty times faster; the last lines may go up to 0.2 s early.
    assert!(begun.elapsed().as_millis() >= 1_200, "{:?}", begun.elapsed());
    assert_eq!(http.get("/v1/streams/s").json()["figures"]["accepted"], 30);
}
