//! Items, caches, and the cluster.

use std::fs;

use serde_json::Value;

use crate::{cluster::Cluster, common};

#[test]
fn a_value_that_was_set_is_got_and_deleted() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "greeting", "hello"]);
    assert_eq!(cluster.ok(&["get", "greeting"]), "hello");
    assert_eq!(cluster.ok(&["get", "greeting", "-o", "raw"]), "hello");
    cluster.ok(&["del", "greeting"]);
    let error = cluster.fails(1, &["get", "greeting"]);
    assert!(error.contains("greeting") && error.contains("default"), "{error}");
    cluster.fails(1, &["del", "greeting"]);
    cluster.node.stop();
}

#[test]
fn values_come_from_arguments_files_and_standard_input() {
    let cluster = Cluster::start(&[]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"from \0 file\xff").unwrap();
    let path = file.path().to_str().unwrap();
    let raw = |key: &str| cluster.command(&["get", key, "-o", "raw"]).output().unwrap().stdout;

    cluster.ok(&["set", "a", &format!("@{path}")]);
    assert_eq!(raw("a"), b"from \0 file\xff");
    cluster.ok(&["set", "b", "--file", path]);
    assert_eq!(raw("b"), b"from \0 file\xff");
    let finished = cluster.with_input(&["set", "c", "-"], b"from\nstdin");
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    assert_eq!(raw("c"), b"from\nstdin");
    cluster.ok(&["set", "d", "@@literally"]);
    assert_eq!(raw("d"), b"@literally");
    assert_eq!(cluster.json(&["get", "a", "-o", "json"])["value_base64"], "ZnJvbSAAIGZpbGX/");

    cluster.fails(1, &["set", "e", "@/nowhere"]);
    cluster.fails(2, &["set", "e"]);
    cluster.fails(2, &["set", "e", "value", "--file", path]);
    cluster.node.stop();
}

#[test]
fn conditions_that_are_not_met_fail_and_change_nothing() {
    let cluster = Cluster::start(&[]);
    cluster.fails(1, &["set", "k", "v", "--if-present"]);
    cluster.ok(&["set", "k", "first", "--if-absent"]);
    cluster.fails(1, &["set", "k", "second", "--if-absent"]);
    let version = cluster.json(&["get", "k", "-o", "json"])["version"].as_u64().unwrap();
    let stored =
        cluster.json(&["set", "k", "third", "--if-version", &version.to_string(), "-o", "json"]);
    assert!(stored["version"].as_u64().unwrap() > version, "{stored}");
    let error = cluster.fails(1, &["set", "k", "fourth", "--if-version", &version.to_string()]);
    assert!(error.contains("version"), "{error}");
    cluster.fails(1, &["del", "k", "--if-version", &version.to_string()]);
    assert_eq!(cluster.ok(&["get", "k"]), "third");
    cluster.ok(&["set", "k", "+", "--append"]);
    cluster.ok(&["set", "k", "=", "--prepend"]);
    assert_eq!(cluster.ok(&["get", "k"]), "=third+");
    cluster.fails(2, &["set", "k", "v", "--if-absent", "--if-version", "1"]);
    cluster.node.stop();
}

#[test]
fn numbers_count_up_and_down_and_stop_at_zero() {
    let cluster = Cluster::start(&[]);
    cluster.fails(1, &["incr", "visits"]);
    assert_eq!(cluster.ok(&["incr", "visits", "--initial", "5"]), "5\n");
    assert_eq!(cluster.ok(&["incr", "visits"]), "6\n");
    assert_eq!(cluster.ok(&["incr", "visits", "10"]), "16\n");
    assert_eq!(cluster.ok(&["incr", "visits", "-6"]), "10\n");
    assert_eq!(cluster.ok(&["incr", "visits", "-100"]), "0\n");
    cluster.ok(&["set", "word", "abc"]);
    let error = cluster.fails(1, &["incr", "word"]);
    assert!(error.contains("number"), "{error}");
    cluster.node.stop();
}

#[test]
fn ends_and_flags_are_kept_and_shown() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "k", "v", "--ttl", "1h", "--flags", "7"]);
    let item = cluster.json(&["get", "k", "-o", "json"]);
    let ttl_ms = item["ttl_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&ttl_ms), "{item}");
    assert_eq!(
        (&item["flags"], &item["key"], &item["value"]),
        (&7.into(), &"k".into(), &"v".into())
    );
    cluster.ok(&["touch", "k", "--ttl", "never"]);
    assert_eq!(cluster.json(&["get", "k", "-o", "json"]).get("ttl_ms"), None);
    cluster.fails(1, &["touch", "missing", "--ttl", "1s"]);
    cluster.fails(2, &["set", "k", "v", "--ttl", "soon"]);
    cluster.ok(&["set", "short", "v", "--ttl", "1ms"]);
    common::eventually("the item ends", || cluster.run(&["get", "short"]).code == Some(1));
    cluster.node.stop();
}

#[test]
fn several_keys_are_got_and_listed_at_once() {
    let cluster = Cluster::start(&[]);
    for key in ["a:1", "a:2", "b:1"] {
        cluster.ok(&["set", key, &format!("value of {key}")]);
    }
    let found = cluster.json(&["mget", "a:1", "b:1", "-o", "json"]);
    assert_eq!(found[1]["value"], "value of b:1");
    let partly = cluster.run(&["mget", "a:1", "nothing", "-o", "raw"]);
    assert_eq!((partly.code, &*partly.out), (Some(1), "value of a:1\n"));
    assert!(partly.err.contains("nothing"), "{}", partly.err);

    let mut keys: Vec<_> = cluster.ok(&["scan"]).lines().map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, ["a:1", "a:2", "b:1"]);
    assert_eq!(cluster.ok(&["scan", "--prefix", "b"]), "b:1\n");
    assert_eq!(cluster.ok(&["scan", "--limit", "2"]).lines().count(), 2);
    let lines = cluster.ok(&["scan", "--prefix", "b", "--values", "-o", "json"]);
    let item: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!((&item["key"], &item["value"]), (&"b:1".into(), &"value of b:1".into()));
    assert!(cluster.ok(&["scan", "-o", "table"]).starts_with("KEY"));
    cluster.ok(&["del", "a:1", "a:2"]);
    cluster.fails(1, &["del", "a:1", "b:1"]);
    assert_eq!(cluster.ok(&["scan"]), "");
    cluster.node.stop();
}

#[test]
fn caches_are_made_listed_used_and_dropped() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    cluster.ok(&["cache", "create", "sessions", "--memory", "8MiB", "--eviction", "lru"]);
    let list = cluster.json(&["cache", "list", "-o", "json"]);
    let names: Vec<_> =
        list["caches"].as_array().unwrap().iter().map(|cache| &cache["name"]).collect();
    assert_eq!(names, ["default", "sessions"]);
    let shown = cluster.json(&["cache", "show", "sessions", "-o", "json"]);
    assert_eq!((&shown["eviction"], &shown["mode"]), (&"lru".into(), &"strong".into()));

    cluster.ok(&["set", "k", "here", "--cache", "sessions"]);
    cluster.fails(1, &["get", "k"]);
    assert_eq!(cluster.ok(&["get", "k", "--cache", "sessions"]), "here");
    let address = format!("{}/sessions", cluster.address);
    assert_eq!(cluster.ok(&["get", "k", "--address", &address]), "here");

    let error = cluster.fails(1, &["get", "k", "--cache", "other"]);
    assert!(error.contains("kiln cache list"), "{error}");
    cluster.fails(1, &["cache", "show", "other"]);
    cluster.fails(1, &["cache", "create", "sessions", "--eviction", "lfu"]);
    cluster.fails(2, &["cache", "create", "bad name"]);
    cluster.fails(2, &["cache", "create", "x", "--eviction", "random"]);

    // Nobody can be asked: nothing is dropped.
    let error = cluster.fails(2, &["cache", "drop", "sessions"]);
    assert!(error.contains("--yes"), "{error}");
    assert_eq!(cluster.ok(&["get", "k", "--cache", "sessions"]), "here");
    cluster.ok(&["cache", "drop", "sessions", "--yes"]);
    cluster.fails(1, &["cache", "show", "sessions"]);
    cluster.fails(1, &["cache", "drop", "sessions", "--yes"]);
    cluster.node.stop();
}

#[test]
fn a_cluster_of_one_shows_its_node_and_who_owns_a_key() {
    let cluster = Cluster::start(&[]);
    let status = cluster.json(&["cluster", "status", "-o", "json"]);
    let node = &status["nodes"][0];
    assert_eq!((&node["name"], &node["state"]), (&"test".into(), &"ready".into()));
    assert_eq!(node["native"], cluster.node.field("native"));
    assert_eq!(node["primary_partitions"], status["partitions"]);
    let table = cluster.ok(&["cluster", "status"]);
    assert!(table.contains("test") && table.contains("ready"), "{table}");

    let owners = cluster.json(&["cluster", "owners", "some-key", "-o", "json"]);
    assert_eq!(owners["owners"][0]["name"], "test");
    let partitions = status["partitions"].as_u64().unwrap();
    assert!(owners["partition"].as_u64().unwrap() < partitions, "{owners}");
    cluster.node.stop();
}
