//! What holds for all commands: exit codes, output, credentials, help.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    common::{self, Finished, Node, kiln, run},
};

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
    assert_eq!(
        members(&status),
        "caches cluster_id controller epoch events groups nodes now_ms partitions term transfers \
         voters warnings"
    );
    assert_eq!(
        members(&status["nodes"][0]),
        "busy copies_partitions filling_partitions heard_ms_ago http id last_copies memcached \
         memory_limit memory_used name native operations_per_second peer primary_partitions state \
         voter wanted_partitions weight witness zone"
    );
    assert_eq!(
        members(&status["groups"][0]),
        "caches copies copies_in_place copies_possible copies_wanted copy_missing lost mode \
         not_served whole"
    );
    let verified = cluster.json(&["cluster", "verify", "-o", "json"]);
    assert_eq!(members(&verified), "caches differences equal unreachable");
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
