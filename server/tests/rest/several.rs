//! Several nodes: any of them is a way in, and all tell the same.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{client::Http, common::Node};

/// Longest wait for a cluster to be as it should. Machines of tests are busy.
const SETTLES: Duration = Duration::from_secs(90);

/// Polls until something is true, and fails with its name when it does not come about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SETTLES;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nodes that are to keep two copies of everything. Primaries may still move.
fn cluster(count: usize) -> (Vec<Node>, tempfile::TempDir) {
    let dirs = tempfile::TempDir::new().unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=count {
        let (name, dir) = (format!("n{number}"), dirs.path().join(format!("n{number}")));
        let mut flags = vec!["--name", &name, "--listen-peer", "127.0.0.1:0", "--memory", "48MiB"];
        flags.extend(["--replicas", "2", "--data-dir", dir.to_str().unwrap()]);
        let seed = nodes.first().map(|node| node.address("peer").to_string());
        if let Some(seed) = &seed {
            flags.extend(["--join", seed]);
        }
        nodes.push(Node::start(&flags));
    }
    for node in &nodes {
        let http = Http::of(node);
        until("every node is ready and every partition served", || {
            let seen = http.get("/v1/cluster").json();
            let groups = seen["groups"].as_array().unwrap();
            let served = groups.iter().all(|g| g["without_primary"] == 0);
            served && seen["nodes_ready"] == count
        });
    }
    (nodes, dirs)
}

/// All keys that a walk from one node finds, in pages of at most so many.
fn walk(http: &Http, path: &str, limit: usize) -> Vec<String> {
    let (mut keys, mut cursor) = (Vec::new(), None::<String>);
    for _ in 0..10_000 {
        let mut target = format!("{path}?limit={limit}");
        if let Some(cursor) = &cursor {
            target += &format!("&cursor={cursor}");
        }
        let page = http.get(&target);
        assert_eq!(page.status, 200, "{}", String::from_utf8_lossy(&page.body));
        let page = page.json();
        let found = page["items"].as_array().unwrap().iter();
        keys.extend(found.map(|item| item["key"].as_str().unwrap().to_owned()));
        match page["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return keys,
        }
    }
    panic!("the walk does not end");
}

#[test]
fn every_node_shows_the_whole_cluster_and_all_of_its_items() {
    let (nodes, _dirs) = cluster(2);
    let https: Vec<Http> = nodes.iter().map(Http::of).collect();
    let mut written = BTreeSet::new();
    for number in 0..300 {
        let key = format!("user:{number}");
        let path = format!("/v1/caches/default/keys/{key}");
        assert_eq!(https[number % 2].put(&path, b"v").status, 201, "{key}");
        written.insert(key);
    }
    for http in &https {
        // While partitions move, a walk may miss some.
        until("a walk finds every item once", || {
            let told = walk(http, "/v1/caches/default/keys", 50);
            told.len() == 300 && told.into_iter().collect::<BTreeSet<_>>() == written
        });
        until("the node answers for some of them", || {
            let own = http.get("/v1/caches/default/keys?scope=node&limit=1000").json();
            (1..300).contains(&own["items"].as_array().unwrap().len())
        });
    }
    // What a walk begun at one node left off, another takes up.
    let page = https[0].get("/v1/caches/default/keys?limit=50").json();
    let cursor = page["cursor"].as_str().unwrap();
    let next = https[1].get(&format!("/v1/caches/default/keys?cursor={cursor}"));
    assert_eq!(next.status, 200);
    https[0].get("/v1/caches/default/keys?cursor=zz~").assert_problem(409, "conflict");

    let seen = https[1].get("/v1/cluster").json();
    assert_eq!((&seen["nodes"], &seen["node"]), (&2.into(), &"n2".into()));
    assert!(!seen["voters"].as_array().unwrap().is_empty());
    let first = https[0].get("/v1/cluster/nodes?limit=1").json();
    let cursor = first["cursor"].as_str().unwrap();
    let rest = https[1].get(&format!("/v1/cluster/nodes?limit=1&cursor={cursor}")).json();
    let of = |page: &serde_json::Value| -> Vec<serde_json::Value> {
        page["nodes"].as_array().unwrap().iter().map(|node| node["name"].clone()).collect()
    };
    let names: BTreeSet<_> =
        [of(&first), of(&rest)].concat().iter().map(|n| n.to_string()).collect();
    assert_eq!(names.len(), 2);
    assert!(rest.get("cursor").is_none());

    let mut places = 0;
    let mut target = "/v1/cluster/partitions?limit=1000".to_owned();
    loop {
        let page = https[0].get(&target).json();
        let partitions = page["partitions"].as_array().unwrap();
        assert!(partitions.iter().all(|p| p["owners"].as_array().unwrap().len() <= 2));
        places += partitions.len() as u64;
        let Some(cursor) = page["cursor"].as_str() else { break };
        target = format!("/v1/cluster/partitions?limit=1000&cursor={cursor}");
    }
    assert_eq!(places, seen["partitions"].as_u64().unwrap());
}

#[test]
fn an_increment_that_is_sent_again_to_any_node_counts_once() {
    let (nodes, _dirs) = cluster(2);
    let https: Vec<Http> = nodes.iter().map(Http::of).collect();
    let increment = |http: &Http, by: u32, key: &str| {
        let target = format!("/v1/caches/default/keys/n/increment?initial=1&by={by}");
        http.send("POST", &target, &[("idempotency-key", key)], b"")
    };
    for round in 0..20 {
        let key = format!("round-{round}");
        let first = increment(&https[round % 2], 1, &key);
        assert_eq!((first.status, first.find("idempotency-replayed")), (200, None));
        for http in &https {
            let again = increment(http, 1, &key);
            assert_eq!(again.header("idempotency-replayed"), "true");
            assert_eq!((again.json(), again.header("etag")), (first.json(), first.header("etag")));
        }
    }
    assert_eq!(https[0].get("/v1/caches/default/keys/n").body, b"20");
    increment(&https[1], 2, "round-0").assert_problem(422, "idempotency-key-reused");
    // What was not carried out may be tried again, anywhere.
    let missing = |http: &Http| {
        let target = "/v1/caches/default/keys/absent/increment";
        http.send("POST", target, &[("idempotency-key", "absent")], b"")
    };
    missing(&https[0]).assert_problem(404, "miss");
    missing(&https[1]).assert_problem(404, "miss");
    // The notes are nobody's items.
    until("a walk finds the number and nothing else", || {
        walk(&https[1], "/v1/caches/default/keys", 100) == ["n"]
    });
}

#[test]
fn a_cache_that_is_changed_on_one_node_is_changed_on_all() {
    let (nodes, _dirs) = cluster(2);
    let https: Vec<Http> = nodes.iter().map(Http::of).collect();
    let made =
        https[0].put("/v1/caches/s", br#"{"memory":4194304,"copies":2,"max_item_size":65536}"#);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    until("the other node follows", || https[1].get("/v1/caches/s").status == 200);
    let wish = br#"{"default_ttl_ms":60000,"min_in_sync":2,"on_loss":"block","memory":8388608}"#;
    let changed = https[1].send("PATCH", "/v1/caches/s", &[], wish);
    assert_eq!(changed.status, 200, "{}", String::from_utf8_lossy(&changed.body));
    for http in &https {
        until("the other node follows", || {
            let shown = http.get("/v1/caches/s").json();
            let is = |name: &str, value: serde_json::Value| shown[name] == value;
            is("default_ttl_ms", 60_000.into())
                && is("min_in_sync", 2.into())
                && is("on_loss", "block".into())
                && is("memory", 8_388_608.into())
        });
    }
    // A copy that is slow to come is not what this is about.
    assert_eq!(https[0].send("PATCH", "/v1/caches/s", &[], br#"{"min_in_sync":1}"#).status, 200);
    for http in &https {
        until("an item that is written has the new end", || {
            let written = http.put("/v1/caches/s/keys/k", b"v").status < 300;
            written && http.get("/v1/caches/s/keys/k").find("kiln-ttl-ms").is_some()
        });
    }
    let wish = br#"{"copies":1,"mode":"eventual"}"#;
    https[0].send("PATCH", "/v1/caches/s", &[], wish).assert_problem(409, "conflict");
}
