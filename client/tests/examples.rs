//! The examples run, and say what they promise.
//!
//! Against the double always, and against a real node as well where its binary is found: by
//! `KILN_BIN`, or beside the examples where the whole workspace was built.
#![allow(clippy::unwrap_used)]

mod double;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use double::Double;

/// Where cargo puts binaries; tests lie one level below.
fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_owned()
}

/// A real node, ended when dropped.
struct Kiln(Child);

impl Kiln {
    fn start(more: &[&str]) -> Option<(Self, String)> {
        let binary = match std::env::var_os("KILN_BIN") {
            Some(binary) => PathBuf::from(binary),
            None => target().join("kiln"),
        };
        if !Path::new(&binary).exists() {
            return None;
        }
        let mut child = Command::new(binary)
            .args(["serve", "--memory", "32MiB", "--listen-memcached", "off"])
            .args(["--listen-http", "off", "--listen-native", "127.0.0.1:0"])
            .args(["--listen-peer", "off"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.split_whitespace().find_map(|field| field.strip_prefix("native="));
        let address = format!("kiln://{}", address.unwrap());
        Some((Self(child), address))
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an example prints.
async fn run(example: &'static str, arguments: Vec<String>) -> String {
    let path = target().join("examples").join(example);
    assert!(path.exists(), "no {path:?}: build it with `cargo build -p kiln-client --examples`");
    let run = move || {
        let output = Command::new(path).args(&arguments).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{example}: {text}\n{output:?}");
        text
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn all(address: &str) {
    let arguments = || vec![address.to_owned()];
    let text = run("quick_start", arguments()).await;
    for line in ["b\"hello\", version", "written: true", "visits: Some(1)", "delete: None"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let text = run("pipeline", arguments()).await;
    assert!(text.contains("64000 calls of 64 tasks"), "{text}");
    assert!(text.contains("500 of 500 items found"), "{text}");
    let text = run("cache_aside", arguments()).await;
    let sources: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("user:7: from the ")).collect();
    assert_eq!(sources, ["database", "cache", "database"]);
    let text = run("get_or_compute", arguments()).await;
    assert_eq!(text, "1000 reports, computed 1 times\n");
    let text = run("blocking", arguments()).await;
    assert!(text.contains("20 bytes of values found by a scan"), "{text}");
    let text = run("latency", vec![address.to_owned(), "1".to_owned()]).await;
    assert!(text.contains("p50 ratio"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_run() {
    let node = Double::start().await;
    all(&format!("kiln://{}", node.host())).await;
}

#[tokio::test]
async fn the_examples_run_against_a_real_node() {
    match Kiln::start(&[]) {
        Some((_kiln, address)) => all(&address).await,
        None => eprintln!("no kiln binary: set KILN_BIN"),
    }
}

#[tokio::test]
async fn the_example_with_sensors_runs_against_a_real_node() {
    let settings = target().join(format!("sensors-{}.toml", std::process::id()));
    let stream = r#"
        [[streams]]
        name = "plant"
        windows = [{ tumbling = "1s" }]
        aggregates = ["count", "mean", "std"]
        watermark_delay = "1s"
    "#;
    std::fs::write(&settings, stream).unwrap();
    let flags = ["--config", settings.to_str().unwrap(), "--listen-ingest", "off"];
    let kiln = Kiln::start(&flags);
    std::fs::remove_file(&settings).unwrap();
    let Some((_kiln, address)) = kiln else { return eprintln!("no kiln binary: set KILN_BIN") };
    let text = run("sensors", vec![address]).await;
    assert!(text.contains("4000 readings accepted in "), "{text}");
    assert!(text.contains(": 100 readings, mean 2"), "{text}");
}
