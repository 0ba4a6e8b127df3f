//! The cluster's commands against three real nodes.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Finished, Node, kiln};

/// Longest wait for copies to be made: the machine may be busy with other tests.
const LONG: Duration = Duration::from_secs(120);

/// Nodes that are one cluster.
struct Several {
    nodes: Vec<Node>,
}

impl Several {
    fn start(count: usize) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for number in 1..=count {
            let name = format!("n{number}");
            let mut flags = vec!["--name", &name, "--listen-peer", "127.0.0.1:0", "--threads", "1"];
            let seed = nodes.first().map(|node| node.field("peer").to_owned());
            if let Some(seed) = &seed {
                flags.extend(["--join", seed]);
            }
            nodes.push(Node::start(&flags));
        }
        Self { nodes }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let natives: Vec<&str> = self.nodes.iter().map(|node| node.field("native")).collect();
        let mut command = kiln(arguments);
        command.env("KILN_ADDRESS", format!("kiln://{}", natives.join(",")));
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}{}", finished.out, finished.err);
        finished.out
    }

    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {}{}", finished.out, finished.err);
        finished.err
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["cluster", "status", "-o", "json"])).unwrap()
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "in vain: {what}: {status:#}");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

fn warnings(status: &Value) -> Vec<&str> {
    let warnings = status["warnings"].as_array().unwrap();
    warnings.iter().map(|warning| warning["text"].as_str().unwrap()).collect()
}

/// Every node has its share, and every copy that is wanted is there.
fn is_whole(status: &Value) -> bool {
    let groups = status["groups"].as_array().unwrap();
    let mut nodes = status["nodes"].as_array().unwrap().iter();
    let has_share =
        |node: &Value| node["state"] != "ready" || node["wanted_partitions"].as_u64() > Some(0);
    nodes.all(has_share)
        && groups.iter().all(|group| {
            group["whole"] == status["partitions"]
                && group["copies_in_place"] == group["copies_wanted"]
        })
}

fn are_ready(status: &Value, count: usize) -> bool {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().filter(|node| node["state"] == "ready").count() == count
}

#[test]
fn one_node_says_what_it_cannot_promise_and_two_what_they_hang_on() {
    let one = Several::start(1);
    let status = one.until("ready", |status| are_ready(status, 1));
    assert!(
        warnings(&status).contains(&"2 copies are promised, but there is one node"),
        "{status:#}"
    );
    assert_eq!(status["groups"][0]["copies_possible"], 1);
    let refused = one.fails(1, &["cluster", "drain", "n1"]);
    assert!(refused.contains("no other node"), "{refused}");
    let refused = one.fails(4, &["cluster", "remove", "n1", "--yes"]);
    assert!(refused.contains("kiln cluster drain n1"), "{refused}");
    let text = one.ok(&["cluster", "status"]);
    assert!(text.contains("start another: kiln serve --join 127.0.0.1:"), "{text}");

    let two = Several::start(2);
    let status = two.until("both are ready", |status| are_ready(status, 2));
    let hangs = |text: &&str| text.starts_with("two nodes and no witness");
    assert!(warnings(&status).iter().any(hangs), "{status:#}");
}

#[test]
fn operators_see_drain_weigh_compare_and_remove_nodes() {
    let mut cluster = Several::start(3);
    cluster.until("all copies are made", |status| are_ready(status, 3) && is_whole(status));
    for number in 0..50 {
        cluster.ok(&["set", &format!("key{number}"), "value"]);
    }

    // What is left is moved by itself: copies too many, and who orders writes.
    cluster.until("all is in place", |_| {
        cluster.ok(&["cluster", "rebalance", "--dry-run", "-o", "raw"]) == "0\n"
    });

    // Owners are those of the table, and there are as many as promised.
    let owners: Value =
        serde_json::from_str(&cluster.ok(&["cluster", "owners", "key7", "-o", "json"])).unwrap();
    assert_eq!(owners["owners"].as_array().unwrap().len(), 2, "{owners:#}");
    assert_eq!(owners["owners"][0]["role"], "primary");
    let moves = cluster.ok(&["cluster", "rebalance", "--dry-run"]);
    assert_eq!(moves, "everything is where it should be\n");
    cluster.fails(2, &["cluster", "rebalance"]);

    // All copies are there, and equal.
    let verified: Value =
        serde_json::from_str(&cluster.ok(&["cluster", "verify", "-o", "json", "--strict"]))
            .unwrap();
    let cache = &verified["caches"][0];
    assert_eq!((&cache["items"], &cache["single"]), (&50.into(), &0.into()), "{verified:#}");
    assert_eq!(cache["equal"], cache["partitions"], "{verified:#}");

    // A drained node holds nothing, and nothing is missing.
    cluster.fails(1, &["cluster", "drain", "nowhere"]);
    cluster.ok(&["cluster", "drain", "n3", "--wait", "--within", "120s"]);
    let status = cluster.status();
    let drained = node(&status, "n3");
    assert_eq!(drained["state"], "draining");
    assert_eq!(drained["primary_partitions"], 0, "{status:#}");
    assert_eq!(drained["copies_partitions"], 0, "{status:#}");
    for number in 0..50 {
        assert_eq!(cluster.ok(&["get", &format!("key{number}")]), "value");
    }
    cluster.ok(&["cluster", "drain", "n3", "--undo"]);
    cluster.until("it is used again", |status| node(status, "n3")["state"] == "ready");

    cluster.ok(&["cluster", "weight", "n3", "0.5"]);
    assert_eq!(node(&cluster.status(), "n3")["weight"], 0.5);
    cluster.fails(2, &["cluster", "weight", "n3", "1001"]);
    cluster.until("all copies are made", is_whole);

    // A node that is up is not removed by mistake; one that is gone is, and said to be.
    let refused = cluster.fails(4, &["cluster", "remove", "n3", "--yes"]);
    assert!(refused.contains("kiln cluster drain n3 --wait"), "{refused}");
    let gone = cluster.nodes.pop().unwrap();
    gone.signal(Signal::KILL);
    drop(gone);
    cluster.until("it is missed", |status| node(status, "n3")["state"] == "down");
    let asked = cluster.fails(2, &["cluster", "remove", "n3"]);
    assert!(asked.contains("--yes"), "{asked}");
    cluster.ok(&["cluster", "remove", "n3", "--yes"]);
    assert_eq!(*node(&cluster.status(), "n3"), Value::Null);
    cluster.until("copies are made again", is_whole);
    for number in 0..50 {
        assert_eq!(cluster.ok(&["get", &format!("key{number}")]), "value");
    }
    let nothing = cluster.run(&["cluster", "acknowledge-loss"]);
    assert_eq!(nothing.code, Some(0));
    assert!(nothing.err.contains("no partition has lost data"), "{}", nothing.err);
}

#[test]
fn a_demonstration_kills_a_node_and_loses_nothing() {
    let finished = Finished::from(
        kiln(&["demo", "--no-tui", "--clients", "4", "-o", "json"]).output().unwrap(),
    );
    assert_eq!(finished.code, Some(0), "{}{}", finished.out, finished.err);
    let tally: Value = serde_json::from_str(&finished.out).unwrap();
    assert_eq!((&tally["lost"], &tally["doubled"]), (&0.into(), &0.into()), "{tally:#}");
    assert_eq!((&tally["kills"], &tally["restarts"]), (&1.into(), &1.into()), "{tally:#}");
    assert!(tally["writes"].as_u64().unwrap() > 100, "{tally:#}");
    assert_eq!(tally["is_checked"], true);
}

#[test]
fn a_demonstration_that_is_ended_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::HUP, Signal::KILL] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = kiln(&["demo", "--no-tui", "--nodes", "2", "--seconds", "600"]);
        command.env("TMPDIR", directory.path());
        let mut child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let nodes = || nodes_of(directory.path().to_str().unwrap());
        crate::common::eventually("its nodes run", || nodes().len() == 2);

        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        crate::common::eventually("it ends", || child.try_wait().unwrap().is_some());

        crate::common::eventually("its nodes end", || nodes().is_empty());
        if signal != Signal::KILL {
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }
}

/// Processes whose command line names this directory.
fn nodes_of(directory: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(directory)
    })
    .collect()
}
