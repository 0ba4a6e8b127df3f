//! Where settings come from, as seen from outside.

// A failed unwrap fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::{Finished, Node, kiln, native::Native, run};
use kiln_protocol::native::{Op, admin::CacheInfo};

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_misspelt_key_keeps_the_node_from_starting_and_is_corrected() {
    let file = file("name = \"a\"\nmax_conections = 10\n");
    let finished = run(&["serve", "--config", name(file.path())]);
    assert_eq!(finished.code, Some(2));
    assert_eq!(
        finished.err,
        format!(
            "kiln: {}:2:1: unknown setting `max_conections`; did you mean `max_connections`?\n",
            file.path().display()
        )
    );
}

#[test]
fn a_misspelt_variable_keeps_the_node_from_starting_and_is_corrected() {
    let output = kiln(&["serve"]).env("KILN_THREDS", "1").output().unwrap();
    let finished = Finished::from(output);
    assert_eq!(finished.code, Some(2));
    assert!(
        finished.err.contains("`KILN_THREDS`; did you mean `KILN_THREADS`?"),
        "{}",
        finished.err
    );
}

#[test]
fn settings_of_the_cluster_that_do_not_fit_are_refused_with_a_reason() {
    for (flags, reason) in [
        (["--join", "somewhere"], "HOST:PORT"),
        (["--weight", "1001"], "a number from 0"),
        (["--replicas", "9"], "1 to 8"),
        (["--zone", "a b"], "A-Z a-z"),
        (["--advertise", "a b"], "host name"),
    ] {
        let finished = run(&["serve", flags[0], flags[1]]);
        assert_eq!(finished.code, Some(2), "{flags:?}");
        assert!(finished.err.contains(reason), "{flags:?}: {}", finished.err);
    }
    let finished = run(&["serve", "--listen-peer", "off", "--join", "127.0.0.1:7312"]);
    assert_eq!(finished.code, Some(2));
    assert!(finished.err.contains("join needs a peer listener"), "{}", finished.err);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file() {
    let file = file("name = \"file\"\nmax_connections = 11\nidle_timeout = \"7m\"\n");
    let mut command = kiln(&["config", "show", "--origin", "--name", "flag"]);
    command
        .env("KILN_CONFIG", file.path())
        .env("KILN_NAME", "env")
        .env("KILN_MAX_CONNECTIONS", "12");
    let finished = Finished::from(command.output().unwrap());
    assert_eq!(finished.code, Some(0), "{}", finished.err);

    let line = |key: &str| finished.out.lines().find(|line| line.starts_with(key)).unwrap();
    let words = |key: &str| line(key).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words("name"), "name = \"flag\" # flag --name");
    assert_eq!(words("max_connections"), "max_connections = 12 # env KILN_MAX_CONNECTIONS");
    let origin = format!("idle_timeout = \"420s\" # file {}:3", file.path().display());
    assert_eq!(words("idle_timeout"), origin);
    assert_eq!(words("log_format"), "log_format = \"text\" # default");
}

#[test]
fn what_config_show_prints_is_a_file_that_config_check_accepts() {
    let file = file(&run(&["config", "show", "--memory", "64m"]).out);
    let finished = run(&["config", "check", name(file.path())]);
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    assert_eq!(finished.out, format!("{}: ok\n", file.path().display()));
}

#[test]
fn config_check_reports_every_mistake_at_once() {
    let file = file("memory = \"1\"\nthreads = \"many\"\ncolour = \"red\"\n");
    let finished = run(&["config", "check", name(file.path())]);
    assert_eq!(finished.code, Some(2));
    assert_eq!(finished.err.lines().count(), 3, "{}", finished.err);
    assert_eq!(run(&["config", "check"]).code, Some(2));
    assert_eq!(run(&["config", "check", "/nowhere.toml"]).code, Some(2));
}

#[test]
fn a_node_takes_its_settings_from_the_file() {
    let file = file("name = \"from-file\"\nlisten_http = \"off\"\n");
    let node = Node::start_command(kiln(&[
        "serve",
        "--config",
        name(file.path()),
        "--listen-memcached",
        "127.0.0.1:0",
        "--listen-native",
        "127.0.0.1:0",
        "--listen-peer",
        "127.0.0.1:0",
        "--memory",
        "16m",
    ]));
    assert_eq!((node.field("name"), node.field("http")), ("from-file", "off"));
    assert!(node.connect().ask("version\r\n").starts_with("VERSION "));
    node.stop();
}

#[test]
fn a_node_makes_the_caches_that_its_file_asks_for_or_does_not_start() {
    let good = file("[caches.users]\nmemory = \"8m\"\neviction = \"lru\"\n");
    let node = Node::start(&["--config", name(good.path()), "--memory", "64m"]);
    let mut client = Native::connect(&node);
    let users: CacheInfo = client.named(Op::ShowCache, "users").structure();
    assert_eq!((users.spec.memory, users.spec.eviction.as_str()), (8 << 20, "lru"));

    let large = file("[caches.users]\nmemory = \"60m\"\n");
    let finished = run(&common::serve(&["--config", name(large.path()), "--memory", "64m"]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.contains("cache `users`"), "{}", finished.err);
}

#[test]
fn the_command_line_explains_itself() {
    // Lines are wrapped to the width of the terminal.
    let help = run(&["serve", "--help"]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["Exit codes:", "KILN_IDLE_TIMEOUT", "[default: 127.0.0.1:11211]", "Listeners:"] {
        assert!(help.contains(part), "{part}");
    }
    assert!(run(&["--version"]).out.starts_with(concat!("kiln ", env!("CARGO_PKG_VERSION"))));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(run(&["completion", shell]).out.contains("listen-memcached"), "{shell}");
    }
}
