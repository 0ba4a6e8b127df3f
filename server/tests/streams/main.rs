//! Sensor streams against the real binary: every promise of `docs/streams.md`.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../rest/client.rs"]
#[allow(dead_code)]
mod client;
#[path = "../common/mod.rs"]
mod common;
#[path = "../cluster/harness.rs"]
#[allow(dead_code)]
mod harness;

mod cluster;
mod commands;
mod failover;
mod influx;
mod ingest;
mod lines;
mod mqtt;
mod native;
mod sample;
mod windows;

use client::Http;
use common::Node;

/// A node with room for streams.
fn node() -> Node {
    Node::start(&["--memory", "96MiB", "--listen-ingest", "127.0.0.1:0"])
}

/// Makes a stream.
#[track_caller]
fn make(node: &Node, name: &str, definition: &str) -> Http {
    let http = Http::of(node);
    let made = http.put(&format!("/v1/streams/{name}"), definition.as_bytes());
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    http
}

/// What came of a text of readings.
#[track_caller]
fn send(http: &Http, target: &str, text: &str) -> serde_json::Value {
    let answer = http.post(target, text.as_bytes());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}
