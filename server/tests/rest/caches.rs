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
    let refused =
        patch("default", r#"{"copies":2,"min_in_sync":2,"eviction":"lru","memory":4194304}"#);
    refused.assert_problem(409, "conflict");
    let fields: Vec<_> =
        refused.json()["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect();
    assert_eq!(fields, ["copies", "eviction", "memory"]);
}

#[test]
fn what_can_change_of_a_cache_changes_at_once_and_all_or_nothing() {
    for peer in ["off", "127.0.0.1:0"] {
        let node = Node::start(&["--memory", "128MiB", "--listen-peer", peer]);
        let http = Http::of(&node);
        let patch = |body: &str| http.send("PATCH", "/v1/caches/s", &[], body.as_bytes());
        let made = r#"{"memory":8388608,"eviction":"none"}"#;
        assert_eq!(http.put("/v1/caches/s", made.as_bytes()).status, 201);
        assert!(http.put("/v1/caches/s/keys/before", b"x").find("kiln-ttl-ms").is_none());

        let changed = patch(r#"{"memory":16777216,"default_ttl_ms":60000,"read":"primary"}"#);
        assert_eq!(changed.status, 200, "{}", String::from_utf8_lossy(&changed.body));
        let shown = http.get("/v1/caches/s").json();
        assert_eq!(changed.json()["memory"], 16_777_216);
        assert_eq!((&shown["memory"], &shown["read"]), (&16_777_216.into(), &"primary".into()));
        http.put("/v1/caches/s/keys/after", b"x");
        let ttl = |key: &str| {
            let read = http.get(&format!("/v1/caches/s/keys/{key}"));
            read.find("kiln-ttl-ms").map(|text| text.parse::<u64>().unwrap())
        };
        assert!(ttl("after").is_some_and(|ms| ms <= 60_000) && ttl("before").is_none());
        // More than 8 MiB are there now, and cannot be taken away from what may not be evicted.
        for number in 0..12 {
            let path = format!("/v1/caches/s/keys/large{number}");
            assert_eq!(http.put(&path, &vec![b'x'; 1_000_000]).status, 201, "{number}");
        }
        patch(r#"{"memory":8388608,"default_ttl_ms":1}"#).assert_problem(507, "no-room");
        patch(r#"{"memory":1000}"#).assert_problem(422, "unfit");
        patch(r#"{"memory":999999999}"#).assert_problem(422, "unfit");
        patch(r#"{"memory":0}"#).assert_problem(409, "conflict");
        patch(r#"{"on_loss":"never"}"#).assert_problem(400, "bad-request");
        patch(r#"{"min_in_sync":2}"#).assert_problem(422, "unfit");
        assert_eq!(http.get("/v1/caches/s").json()["default_ttl_ms"], 60_000, "nothing changed");
        let forever = patch(r#"{"default_ttl_ms":0}"#);
        assert_eq!((forever.status, &forever.json()["default_ttl_ms"]), (200, &0.into()));
        match peer {
            "off" => patch(r#"{"on_loss":"block"}"#).assert_problem(422, "unfit"),
            _ => assert_eq!(patch(r#"{"on_loss":"block"}"#).json()["on_loss"], "block"),
        }
    }
}

#[test]
fn emptying_a_cache_can_be_turned_off() {
    let node = Node::start(&["--disable-flush"]);
    let http = Http::of(&node);
    http.put("/v1/caches/default/keys/k", b"x");
    http.delete("/v1/caches/default/keys").assert_problem(403, "forbidden");
    assert_eq!(http.get("/v1/caches/default/keys/k").status, 200);
}
