//! Requests about streams that go wrong, and what the description says of them.

use super::{client::Http, common::Node};

#[test]
fn every_error_of_streams_is_a_problem_document() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    assert_eq!(http.put("/v1/streams/plant", br#"{"windows":[{"tumbling":"10s"}]}"#).status, 201);
    assert_eq!(http.put("/v1/streams/bare", b"").status, 201);
    let long = format!("/v1/streams/plant/sensors/{}", "x".repeat(251));
    let windows = "/v1/streams/plant/sensors/a/windows";
    for (method, target, body, status, slug) in [
        ("GET", "/v1/streams?x=1", "", 400, "bad-request"),
        ("GET", "/v1/streams/none", "", 404, "no-such-stream"),
        ("GET", "/v1/streams/%FF", "", 404, "no-such-stream"),
        ("GET", "/v1/streams/%zz", "", 400, "bad-request"),
        ("GET", "/v1/streams/", "", 404, "no-such-path"),
        ("POST", "/v1/streams/plant", "", 405, "method-not-allowed"),
        ("PUT", "/v1/streams/plant", "{}", 409, "conflict"),
        ("PUT", "/v1/streams/new", "{", 400, "bad-request"),
        ("PUT", "/v1/streams/new", "[]", 400, "bad-request"),
        ("PUT", "/v1/streams/new", r#"{"window":[]}"#, 400, "bad-request"),
        ("PUT", "/v1/streams/new", r#"{"filter":"value >"}"#, 422, "unfit"),
        ("PUT", "/v1/streams/a%20b", "{}", 400, "bad-request"),
        ("PUT", "/v1/streams/%FF", "{}", 400, "bad-request"),
        ("PUT", &format!("/v1/streams/{}", "x".repeat(57)), "{}", 400, "bad-request"),
        ("DELETE", "/v1/streams/none", "", 404, "no-such-stream"),
        ("GET", "/v1/streams/plant/readings", "", 405, "method-not-allowed"),
        ("POST", "/v1/streams/none/readings", "a, 1\n", 404, "no-such-stream"),
        ("POST", "/v1/streams/plant/readings?epoch=1", "a, 1\n", 400, "bad-request"),
        ("POST", "/v1/streams/plant/readings?producer=", "a, 1\n", 400, "bad-request"),
        ("POST", "/v1/streams/plant/readings?producer=p&epoch=-1", "a, 1\n", 400, "bad-request"),
        ("GET", "/v1/streams/plant/sensors/none", "", 404, "miss"),
        ("GET", "/v1/streams/plant/sensors/%4", "", 400, "bad-request"),
        ("GET", &long, "", 414, "key-too-long"),
        ("GET", &format!("{long}/windows"), "", 414, "key-too-long"),
        ("GET", &format!("{windows}?window=1h"), "", 400, "bad-request"),
        ("GET", &format!("{windows}?from=2&to=1"), "", 400, "bad-request"),
        ("GET", &format!("{windows}?from=soon"), "", 400, "bad-request"),
        ("GET", &format!("{windows}?fill=nothing"), "", 400, "bad-request"),
        ("GET", &format!("{windows}?limit=0"), "", 400, "bad-request"),
        ("GET", &format!("{windows}?limit=10001"), "", 400, "bad-request"),
        ("GET", "/v1/streams/bare/sensors/a/windows", "", 400, "bad-request"),
        ("GET", "/v1/streams/none/live", "", 404, "no-such-stream"),
        ("GET", "/v1/streams/plant/live?kind=storm", "", 400, "bad-request"),
        ("GET", "/v1/streams/none/alarms", "", 404, "no-such-stream"),
        ("GET", "/v1/streams/plant/alarms?kind=window", "", 400, "bad-request"),
        ("GET", "/v1/streams/none/late", "", 404, "no-such-stream"),
    ] {
        let answer = http.send(method, target, &[], body.as_bytes());
        answer.assert_problem(status, slug);
        assert_eq!(answer.find("allow").is_some(), status == 405, "{method} {target}");
    }
    let listed = http.get("/v1/streams").json();
    let names: Vec<_> = listed["streams"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["bare", "plant"]);
}

#[test]
fn a_whole_number_of_a_definition_is_one_however_it_is_written() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    let made = http.put("/v1/streams/s", br#"{"windows":[{"count":8.0}],"fits":[{"ma":2.0}]}"#);
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["definition"]["windows"][0]["count"], 8);
    http.put("/v1/streams/t", br#"{"windows":[{"count":8.5}]}"#).assert_problem(400, "bad-request");
}

#[test]
fn readings_in_a_coding_that_is_not_known_are_refused_and_nothing_is_taken_in() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    http.put("/v1/streams/plant", b"");
    let coding = [("content-encoding", "br")];
    let answer = http.send("POST", "/v1/streams/plant/readings", &coding, b"a, 1\n");
    answer.assert_problem(415, "unsupported-media-type");
    http.get("/v1/streams/plant/sensors/a").assert_problem(404, "miss");
}

/// The paths that the document describes are there: a method that it does not name is refused by the
/// path and not by its absence.
#[test]
fn every_path_of_streams_that_is_described_is_there() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    let document = http.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    let mut seen = 0;
    for (path, methods) in paths {
        if methods.as_object().unwrap().values().any(|one| one["tags"][0] == "Streams") {
            let target = path.replace("{stream}", "plant").replace("{sensor}", "a");
            let answer = http.send("TRACE", &target, &[], b"");
            answer.assert_problem(405, "method-not-allowed");
            for allowed in answer.header("allow").split(',').filter(|method| *method != "HEAD") {
                let method = allowed.to_ascii_lowercase();
                assert!(methods[&method].is_object(), "{allowed} {path} is not described");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 11);
}
