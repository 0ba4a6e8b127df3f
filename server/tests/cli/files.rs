//! Items in files: load and dump.

use std::{fs, io::Write, path::Path, process::Stdio};

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    common::{self, Finished},
};

#[test]
fn a_hundred_thousand_items_are_equal_after_dump_and_load() {
    let cluster = Cluster::start(&["--memory", "128MiB"]);
    cluster.ok(&["cache", "create", "copy", "--memory", "48MiB"]);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut text = String::new();
    for number in 0..100_000u32 {
        let line = match number % 4 {
            0 => json!({"key": format!("key:{number}"), "value": format!("value {number}")}),
            1 => json!({"key": format!("ключ:{number}"), "value": "\"quoted\"\n", "flags": number}),
            2 => json!({"key": format!("ttl:{number}"), "value": "", "ttl_ms": 86_400_000}),
            _ => {
                use base64::{Engine, prelude::BASE64_STANDARD};
                let bytes = [&number.to_be_bytes()[..], &[0xff; 20]].concat();
                let coded = BASE64_STANDARD.encode(&bytes);
                json!({"key_base64": coded.clone(), "value_base64": coded})
            }
        };
        text.push_str(&line.to_string());
        text.push('\n');
    }
    fs::write(at("in.ndjson"), &text).unwrap();

    let summary = cluster.json(&["load", &at("in.ndjson"), "-o", "json"]);
    assert_eq!((&summary["stored"], &summary["bad_lines"]), (&100_000.into(), &0.into()));
    for (format, file) in [("ndjson", "out.ndjson"), ("csv", "out.csv")] {
        cluster.ok(&["dump", &at(file)]);
        cluster.ok(&["load", &at(file), "--cache", "copy", "--format", format]);
        cluster.ok(&["dump", &at("again.ndjson"), "--cache", "copy"]);
        assert_eq!(items(&at("again.ndjson")), items_of(&text), "{format}");
    }
    let first = fs::read_to_string(at("out.csv")).unwrap();
    assert!(first.starts_with("key,value,ttl_ms,flags,encoding\n"));
    let some = cluster.ok(&["dump", "-", "--prefix", "ttl:1000"]);
    assert!(some.lines().count() > 1 && some.lines().all(|line| line.contains("ttl:1000")));
    cluster.node.stop();
}

fn items(path: &str) -> Vec<String> {
    items_of(&fs::read_to_string(path).unwrap())
}

/// Lines without what passes with time, in one order.
fn items_of(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| {
            let mut item: Value = serde_json::from_str(line).unwrap();
            if let Some(ttl_ms) = item.get_mut("ttl_ms") {
                assert!(ttl_ms.as_u64().unwrap() <= 86_400_000);
                *ttl_ms = true.into();
            }
            item.to_string()
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn lines_that_hold_no_item_are_told_and_the_others_stored() {
    let cluster = Cluster::start(&[]);
    let text = b"{\"key\":\"a\",\"value\":\"1\"}\nnonsense\n{\"key\":\"b\",\"value\":\"2\"}\n";
    let finished = cluster.with_input(&["load", "-"], text);
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.contains("line 2:"), "{}", finished.err);
    assert_eq!(cluster.ok(&["get", "b"]), "2");

    cluster.ok(&["del", "b"]);
    let finished = cluster.with_input(&["load", "-", "--strict"], text);
    assert_eq!(finished.code, Some(1));
    assert_eq!(cluster.run(&["get", "b"]).code, Some(1), "nothing behind the bad line");

    let many = "nonsense\n".repeat(1000);
    let finished = cluster.with_input(&["load", "-", "--errors-max", "10"], many.as_bytes());
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.lines().count() < 20, "{}", finished.err);
    let finished = cluster.with_input(&["load", "-", "--format", "csv"], b"k,v\nother,w,5000\n");
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    assert_eq!(cluster.ok(&["get", "other"]), "w");
    cluster.fails(1, &["load", "/nowhere.ndjson"]);
    cluster.node.stop();
}

#[test]
fn a_dump_that_cannot_be_written_fails() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "k", "v"]);
    cluster.fails(1, &["dump", "/nowhere/items.ndjson"]);
    assert!(!Path::new("/nowhere").exists());
    cluster.node.stop();
}

#[test]
fn a_node_that_dies_amid_a_load_is_exit_code_three_and_not_a_hang() {
    let mut cluster = Cluster::start(&[]);
    let mut command = cluster.command(&["load", "-", "--timeout", "2s", "-o", "json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // Enough for several batches, so that some of it is stored before the end.
    for number in 0..2000 {
        writeln!(input, "{{\"key\":\"before:{number}\",\"value\":\"v\"}}").unwrap();
    }
    input.flush().unwrap();
    common::eventually("some items are stored", || {
        cluster.run(&["scan", "--limit", "1"]).out.lines().count() == 1
    });
    cluster.node.signal(rustix::process::Signal::KILL);
    cluster.node.wait();
    for number in 0..2000 {
        // The command may have ended already.
        if writeln!(input, "{{\"key\":\"after:{number}\",\"value\":\"v\"}}").is_err() {
            break;
        }
    }
    drop(input);
    let finished = Finished::from(child.wait_with_output().unwrap());
    assert_eq!(finished.code, Some(3), "{}", finished.err);
    let summary: Value = serde_json::from_str(&finished.out).unwrap();
    assert_eq!(summary["complete"], false);
    assert!(summary["stored"].as_u64().unwrap() < 4000, "{summary}");
}

#[test]
fn items_that_the_cluster_does_not_take_are_told_and_the_others_stored() {
    let cluster = Cluster::start(&["--max-item-size", "64KiB"]);
    let large = "x".repeat(100_000);
    let text = format!(
        "{{\"key\":\"a\",\"value\":\"1\"}}\n{{\"key\":\"large\",\"value\":\"{large}\"}}\n\
         {{\"key\":\"b\",\"value\":\"2\"}}\n"
    );
    let finished = cluster.with_input(&["load", "-", "-o", "json"], text.as_bytes());
    assert_eq!(finished.code, Some(1), "{}", finished.err);
    assert!(finished.err.contains("`large` is not stored"), "{}", finished.err);
    let summary: Value = serde_json::from_str(&finished.out).unwrap();
    assert_eq!((&summary["stored"], &summary["refused"]), (&2.into(), &1.into()));
    assert_eq!(cluster.ok(&["get", "b"]), "2");
    let finished = cluster.with_input(&["set", "large", "-"], large.as_bytes());
    assert_eq!(finished.code, Some(4), "{}", finished.err);
    cluster.node.stop();
}
