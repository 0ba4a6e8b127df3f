//! The commands as people and scripts use them: the real binary against a real node.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use common::{Finished, Node, kiln, run};
use serde_json::{Value, json};

/// A node with room for some items, and the address for `--address`.
struct Cluster {
    node: Node,
    address: String,
}

impl Cluster {
    fn start(flags: &[&str]) -> Self {
        let node = Node::start(flags);
        let address = format!("kiln://{}", node.address("native"));
        Self { node, address }
    }

    /// A command against this cluster.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = kiln(arguments);
        command.env("KILN_ADDRESS", &self.address);
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    /// Runs a command that must succeed, and returns what it printed.
    fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.err);
        finished.out
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Runs a command that must fail with this code, and returns what it said.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(code), "{arguments:?}: {}{}", finished.out, finished.err);
        finished.err
    }

    fn with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that stops reading early closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        Finished::from(child.wait_with_output().unwrap())
    }
}

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
fn a_cluster_that_is_not_there_is_exit_code_three_and_says_what_to_do() {
    // Bound and let go at once: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = format!("kiln://{free}");
    let commands: &[&[&str]] = &[
        &["get", "k"],
        &["set", "k", "v"],
        &["scan"],
        &["cache", "list"],
        &["cluster", "status"],
        &["dump", "-"],
        &["top", "--once"],
    ];
    for arguments in commands {
        let mut command = kiln(arguments);
        command.args(["--address", &address, "--timeout", "2s"]);
        let finished = Finished::from(command.output().unwrap());
        assert_eq!(finished.code, Some(3), "{arguments:?}: {}", finished.err);
        assert!(finished.err.contains("kiln serve"), "{arguments:?}: {}", finished.err);
        assert!(finished.err.contains(&free.to_string()), "{arguments:?}: {}", finished.err);
    }
    assert_eq!(run(&["bench", "--address", &free.to_string(), "-n", "1"]).code, Some(3));
}

#[test]
fn credentials_are_asked_for_and_a_password_that_others_may_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let users = file("users", "ada:secret\n", 0o600);
    let (good, open) = (file("good", "secret\n", 0o600), file("open", "secret\n", 0o644));
    let wrong = file("wrong", "guess\n", 0o600);
    let cluster = Cluster::start(&["--auth-file", &users]);
    let asked =
        |file: &str| cluster.run(&["set", "k", "v", "--user", "ada", "--password-file", file]);

    let error = cluster.fails(4, &["set", "k", "v"]);
    assert!(error.contains("--password-file"), "{error}");
    assert_eq!(asked(&wrong).code, Some(4));
    let refused = asked(&open);
    assert_eq!(refused.code, Some(4));
    assert!(refused.err.contains("chmod 600"), "{}", refused.err);
    assert_eq!(asked(&good).code, Some(0), "{}", asked(&good).err);
    cluster.fails(2, &["get", "k", "--user", "ada"]);

    let native = cluster.node.field("native").to_owned();
    let bench = |file: &str| {
        let command =
            ["bench", "--protocol", "native", "--address", &native, "-n", "100", "-c", "1"];
        run(&[&command[..], &["--user", "ada", "--password-file", file, "--json"]].concat())
    };
    assert_eq!(bench(&good).code, Some(0), "{}", bench(&good).err);
    assert_eq!(bench(&wrong).code, Some(4));
    cluster.node.stop();
}

#[test]
fn bench_measures_each_protocol_and_finds_the_process_by_itself() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    for (protocol, listener) in
        [("memcached", "memcached"), ("meta", "memcached"), ("native", "native")]
    {
        let address = cluster.node.field(listener);
        let report = cluster.json(&[
            "bench",
            "--protocol",
            protocol,
            "--address",
            address,
            "-n",
            "20000",
            "-c",
            "4",
            "-P",
            "8",
            "-k",
            "1000",
            "--preload",
            "--verify",
            "--json",
        ]);
        assert_eq!(report["operations"], 20_000, "{protocol}");
        assert_eq!(report["hit_percent"], 100.0, "{protocol}");
        assert_eq!(report["server_pid"], cluster.node.pid(), "{protocol}");
        assert!(report["server_cpu"]["total_us"].as_f64().unwrap() > 0.0);
        let version = report["server_version"].as_str().unwrap();
        assert!(version.starts_with("kiln/"), "{protocol}: {version}");
        assert_eq!(report["config"]["key_dist"], "uniform");
    }
    let http = cluster.node.field("http");
    let page = ["bench", "--protocol", "http", "--http-path", "/livez", "--address", http];
    let report = cluster.json(&[&page[..], &["-n", "1000", "-c", "2", "--json"]].concat());
    assert_eq!((&report["operations"], &report["errors"]["refused"]), (&1000.into(), &0.into()));
    cluster.node.stop();
}

#[test]
fn bench_compares_protocols_and_an_echo_in_turns() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    let sides = format!(
        "memcached@{},native@{}",
        cluster.node.field("memcached"),
        cluster.node.field("native")
    );
    let compared = cluster.json(&[
        "bench",
        "--compare",
        &sides,
        "--echo",
        "--rounds",
        "3",
        "-n",
        "30000",
        "-c",
        "4",
        "-P",
        "8",
        "-k",
        "1000",
        "--preload",
        "--json",
    ]);
    let sides = compared["contestants"].as_array().unwrap();
    let names: Vec<_> = sides.iter().map(|side| side["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["memcached", "native", "echo"]);
    assert!(sides.iter().all(|side| side["reports"].as_array().unwrap().len() == 3));
    assert!(sides[1]["server_cpu_ratio"].as_f64().unwrap() > 0.0);
    assert!(sides.iter().all(|side| side["errors"] == 0));
    cluster.node.stop();
}

#[test]
fn a_bench_with_failed_requests_is_exit_code_one() {
    let cluster = Cluster::start(&[]);
    let native = cluster.node.field("memcached");
    let wrong = ["bench", "--address", native, "-n", "100", "-k", "100", "--verify"];
    for number in 0..100 {
        cluster.ok(&["set", &format!("key:{number:026}"), "not what a bench stores"]);
    }
    let finished = cluster.run(&[&wrong[..], &["--ratio", "0:1"]].concat());
    assert_eq!(finished.code, Some(1), "{}", finished.err);
    assert!(finished.out.contains("wrong bytes"), "{}", finished.out);
    cluster.fails(2, &["bench", "--connections", "0"]);
    cluster.fails(2, &["bench", "--compare", "memcached,unknown"]);
    cluster.node.stop();
}

#[test]
fn top_prints_one_look_for_programs_and_wants_a_terminal_otherwise() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    cluster.ok(&["set", "k", "v"]);
    let look = cluster.json(&["top", "--once", "--json", "--interval", "100ms"]);
    assert_eq!(look["nodes"][0]["name"], "test");
    assert_eq!(look["caches"][0]["name"], "default");
    assert_eq!(look["total"]["items"], 1);
    assert!(look["interval_seconds"].as_f64().unwrap() >= 0.1);
    let members = ["caches", "hottest", "interval_seconds", "largest", "nodes", "total"];
    assert_eq!(look.as_object().unwrap().keys().collect::<Vec<_>>(), members);
    let table = cluster.ok(&["top", "--once", "--interval", "100ms"]);
    assert!(table.contains("NODE") && table.contains("default"), "{table}");
    let error = cluster.fails(2, &["top"]);
    assert!(error.contains("--once"), "{error}");
    cluster.node.stop();
}

#[test]
fn members_of_json_output_stay_as_scripts_know_them() {
    let cluster = Cluster::start(&[]);
    let members = |value: &Value| {
        value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    let stored = cluster.json(&["set", "k", "v", "--ttl", "1h", "-o", "json"]);
    assert_eq!(members(&stored), "key version");
    let item = cluster.json(&["get", "k", "-o", "json"]);
    assert_eq!(members(&item), "flags key ttl_ms value version");
    assert_eq!(
        members(&cluster.json(&["incr", "n", "--initial", "1", "-o", "json"])),
        "key number version"
    );
    assert_eq!(members(&cluster.json(&["touch", "k", "--ttl", "1s", "-o", "json"])), "key touched");
    let deleted = cluster.json(&["del", "k", "-o", "json"]);
    assert_eq!(deleted, json!({"deleted": ["k"], "missing": []}));
    let cache = cluster.json(&["cache", "show", "default", "-o", "json"]);
    assert_eq!(
        members(&cache),
        "bytes copies default_ttl_ms deletes eviction evictions expirations hits items \
         max_item_size memory min_in_sync misses mode name read stores"
    );
    let status = cluster.json(&["cluster", "status", "-o", "json"]);
    assert_eq!(members(&status), "caches cluster_id epoch nodes partitions");
    assert_eq!(
        members(&status["nodes"][0]),
        "copies_partitions http id memcached name native primary_partitions state weight zone"
    );
    let owners = cluster.json(&["cluster", "owners", "k", "-o", "json"]);
    assert_eq!(members(&owners), "cache key owners partition");
    cluster.node.stop();
}

#[test]
fn completions_know_commands_options_and_their_values() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completion", shell]).out;
        for part in ["cluster", "if-absent", "ndjson", "adaptive", "native", "json"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_command_and_tell_the_exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("man");
    assert_eq!(run(&["man", path.to_str().unwrap()]).code, Some(0));
    let page = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    let names = ["get", "set", "cache-create", "cluster-status", "load", "dump", "bench", "top"];
    for name in names {
        let text = page(&format!("kiln-{name}.1"));
        assert!(text.contains("Exit codes"), "{name}");
        assert!(text.starts_with(".ie") || text.contains(".TH"), "{name}");
    }
    assert!(page("kiln.1").contains("cluster"));
    assert_eq!(run(&["man", "/proc/nowhere"]).code, Some(1));
}

#[test]
fn habits_from_memcached_are_answered_with_what_it_is_called_here() {
    for (arguments, hint) in [
        (&["-m", "64"][..], "--memory"),
        (&["-p", "11211"], "--listen-memcached"),
        (&["serve", "-m", "64"], "--memory"),
        (&["serve", "-c", "100"], "--max-connections"),
    ] {
        let finished = run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}");
        assert!(
            finished.err.contains("memcached") && finished.err.contains(hint),
            "{}",
            finished.err
        );
    }
    assert!(run(&["gte", "k"]).err.contains("get"), "a misspelt command is corrected");
}

#[test]
fn nothing_is_coloured_and_nothing_else_goes_to_standard_output() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "k", "v"]);
    for arguments in [
        &["scan", "-o", "table"][..],
        &["cache", "list"],
        &["cluster", "status"],
        &["top", "--once", "--interval", "100ms"],
        &["dump", "-"],
    ] {
        let finished = cluster.run(arguments);
        assert!(!finished.out.contains('\x1b'), "{arguments:?}");
        assert!(!finished.err.contains('\x1b'), "{arguments:?}");
    }
    let missing = cluster.run(&["get", "missing"]);
    assert_eq!(missing.out, "");
    cluster.node.stop();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    let text: String =
        (0..20_000).map(|n| format!("{{\"key\":\"key:{n}\",\"value\":\"v\"}}\n")).collect();
    assert_eq!(cluster.with_input(&["load", "-"], text.as_bytes()).code, Some(0));
    for arguments in [&["scan"][..], &["dump", "-"], &["scan", "-o", "json"]] {
        let mut command = cluster.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let finished = Finished::from(child.wait_with_output().unwrap());
        assert_eq!((finished.code, &*finished.err), (Some(0), ""), "{arguments:?}");
    }
    cluster.node.stop();
}

#[test]
fn the_variables_of_the_command_line_do_not_keep_a_node_from_starting() {
    let mut command = kiln(&common::serve(&[]));
    command.env("KILN_ADDRESS", "kiln://elsewhere").env("KILN_USER", "ada");
    command.env("KILN_PASSWORD_FILE", "/nowhere");
    Node::start_command(command).stop();
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

/// A command with a terminal for all its streams.
struct OnTerminal {
    child: std::process::Child,
    screen: std::sync::mpsc::Receiver<u8>,
    keyboard: fs::File,
    seen: Vec<u8>,
}

impl OnTerminal {
    fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        use rustix::{pty, termios};
        let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
        let master = pty::openpt(flags).unwrap();
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let size = termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&master, size).unwrap();
        let open = || {
            let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
            fs::File::options().read(true).write(true).open(path).unwrap()
        };
        command.env("TERM", "xterm").stdin(open()).stdout(open()).stderr(open());
        let child = command.spawn().unwrap();
        let keyboard = fs::File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while output.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        Self { child, screen, keyboard, seen: Vec::new() }
    }

    /// Waits until the terminal was sent this text.
    fn await_text(&mut self, text: &str) {
        common::eventually(text, || {
            self.seen.extend(self.screen.try_iter());
            self.seen.windows(text.len()).any(|window| window == text.as_bytes())
        });
    }

    fn press(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        common::eventually("the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SECOND_SCREEN: &str = "\x1b[?1049h";
const FIRST_SCREEN_AGAIN: &str = "\x1b[?1049l";

#[test]
fn top_gives_the_terminal_back_when_it_is_quit_or_told_to_stop() {
    let cluster = Cluster::start(&[]);
    for by_signal in [false, true] {
        let mut top = OnTerminal::start(cluster.command(&["top"]), 80, 24);
        top.await_text(SECOND_SCREEN);
        top.await_text("LARGEST");
        if by_signal {
            let pid = rustix::process::Pid::from_child(&top.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        } else {
            top.press("q");
        }
        top.await_text(FIRST_SCREEN_AGAIN);
        assert_eq!(top.ended(), Some(0), "by signal: {by_signal}");
    }
    cluster.node.stop();
}

#[test]
fn top_draws_on_terminals_without_a_size_and_says_when_its_node_is_gone() {
    let mut cluster = Cluster::start(&[]);
    for (columns, rows) in [(0, 0), (1, 1), (7, 2)] {
        let mut top = OnTerminal::start(cluster.command(&["top"]), columns, rows);
        top.await_text(SECOND_SCREEN);
        top.press("s?q");
        top.await_text(FIRST_SCREEN_AGAIN);
        assert_eq!(top.ended(), Some(0));
    }
    let command = cluster.command(&["top", "--interval", "100ms", "--timeout", "1s"]);
    let mut top = OnTerminal::start(command, 80, 24);
    top.await_text("LARGEST");
    cluster.node.signal(rustix::process::Signal::KILL);
    cluster.node.wait();
    top.await_text("not answering");
    top.press("q");
    top.await_text(FIRST_SCREEN_AGAIN);
    assert_eq!(top.ended(), Some(0));
}

#[test]
fn a_drop_asks_on_a_terminal_and_keeps_the_cache_unless_told_yes() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    cluster.ok(&["cache", "create", "temporary", "--memory", "8MiB"]);
    cluster.ok(&["set", "k", "v", "--cache", "temporary"]);
    let ask = |answer: &str| {
        let mut drop = OnTerminal::start(cluster.command(&["cache", "drop", "temporary"]), 80, 24);
        drop.await_text("loses 1 items");
        drop.press(answer);
        drop.ended()
    };
    assert_eq!(ask("\n"), Some(1));
    assert_eq!(ask("n\n"), Some(1));
    assert_eq!(cluster.ok(&["get", "k", "--cache", "temporary"]), "v");
    assert_eq!(ask("y\n"), Some(0));
    cluster.fails(1, &["cache", "show", "temporary"]);
    cluster.node.stop();
}

#[test]
fn a_value_on_a_terminal_ends_its_line_and_cannot_disturb_it() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "k", "a\x1b[2Jb"]);
    let mut get = OnTerminal::start(cluster.command(&["get", "k"]), 80, 24);
    get.await_text("a\\u{1b}[2Jb\r\n");
    assert_eq!(get.ended(), Some(0));
    assert!(!get.seen.contains(&0x1b));
    cluster.node.stop();
}
