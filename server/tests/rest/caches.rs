//! Caches.

use super::{client::Http, common::Node};

#[test]
fn a_cache_is_made_shown_listed_and_dropped() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    let put = |name: &str, body: &str| http.put(&format!("/v1/caches/{name}"), body.as_bytes());
    let settings = r#"{"memory":8388608,"eviction":"lru","default_ttl_ms":60000}"#;
    let made = put("sessions", settings);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(made.json()["eviction"], "lru");
    assert_eq!(put("sessions", settings).status, 200);
    put("sessions", r#"{"eviction":"lfu"}"#).assert_problem(409, "conflict");

    let shown = http.get("/v1/caches/sessions").json();
    assert_eq!((&shown["name"], &shown["default_ttl_ms"]), (&"sessions".into(), &60_000.into()));
    assert_eq!(http.put("/v1/caches/sessions/keys/k", b"x").status, 201);
    let read = http.get("/v1/caches/sessions/keys/k");
    assert!(read.find("kiln-ttl-ms").is_some(), "the cache's own time to live");
    http.get("/v1/caches/default/keys/k").assert_problem(404, "miss");
    assert_eq!(http.get("/v1/caches/sessions").json()["figures"]["items"], 1);

    let list = http.get("/v1/caches").json();
    let names: Vec<_> = list["caches"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["default", "sessions"]);

    assert_eq!(http.delete("/v1/caches/sessions/keys").status, 204);
    http.get("/v1/caches/sessions/keys/k").assert_problem(404, "miss");
    assert_eq!(http.delete("/v1/caches/sessions").status, 204);
    http.get("/v1/caches/sessions").assert_problem(404, "no-such-cache");
    http.delete("/v1/caches/sessions").assert_problem(404, "no-such-cache");
    http.get("/v1/caches/sessions/keys/k").assert_problem(404, "no-such-cache");
    http.delete("/v1/caches/default").assert_problem(403, "forbidden");
}

#[test]
fn settings_that_cannot_be_had_are_refused() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    for (name, body, status, slug) in [
        ("-x", "{}", 400, "bad-request"),
        ("a%20b", "{}", 400, "bad-request"),
        ("x", "{", 400, "bad-request"),
        ("x", "[]", 400, "bad-request"),
        ("x", r#"{"evict":"lru"}"#, 400, "bad-request"),
        ("x", r#"{"eviction":"fifo"}"#, 400, "bad-request"),
        ("x", r#"{"copies":0}"#, 422, "unfit"),
        ("x", r#"{"memory":1000}"#, 422, "unfit"),
        ("x", r#"{"memory":10000000000}"#, 507, "no-room"),
        ("x", r#"{"max_item_size":99999999}"#, 422, "unfit"),
    ] {
        http.put(&format!("/v1/caches/{name}"), body.as_bytes()).assert_problem(status, slug);
    }
    let typed = http.send("PUT", "/v1/caches/x", &[("content-type", "text/plain")], b"{}");
    typed.assert_problem(415, "unsupported-media-type");
    assert_eq!(http.get("/v1/caches").json()["caches"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_cache_keeps_for_its_life_cannot_be_changed() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    let patch = |name: &str, body: &str| {
        http.send("PATCH", &format!("/v1/caches/{name}"), &[], body.as_bytes())
    };
    patch("nothing", "{}").assert_problem(404, "no-such-cache");
    assert_eq!(patch("default", "{}").status, 200);
    assert_eq!(patch("default", r#"{"eviction":"adaptive"}"#).status, 200);
    patch("default", r#"{"eviction":"none"}"#).assert_problem(409, "conflict");
    assert_eq!(http.get("/v1/caches/default").json()["eviction"], "adaptive");
}

#[test]
fn emptying_a_cache_can_be_turned_off() {
    let node = Node::start(&["--disable-flush"]);
    let http = Http::of(&node);
    http.put("/v1/caches/default/keys/k", b"x");
    http.delete("/v1/caches/default/keys").assert_problem(403, "forbidden");
    assert_eq!(http.get("/v1/caches/default/keys/k").status, 200);
}
