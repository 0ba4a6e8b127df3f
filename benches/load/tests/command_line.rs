//! The binary as scripts use it: exit codes, and JSON on standard output.

// The lint spares test functions by itself, but not what they call.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread;

fn kiln_load(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln-load")).args(arguments).output().unwrap()
}

/// Answers every line with `reply`, until the test process ends.
fn answering(reply: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                lines.map_while(Result::ok).all(|_| stream.write_all(reply).is_ok())
            });
        }
    });
    address
}

#[test]
fn a_good_run_exits_with_zero_and_prints_json_when_asked() {
    let address = answering(b"END\r\n");
    let output =
        kiln_load(&["--address", &address, "-n", "500", "-c", "2", "--ratio", "0:1", "--json"]);

    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["operations"], &report["misses"]), (&500.into(), &500.into()));
    assert!(report["latency"]["all"]["p99_us"].as_f64().unwrap() > 0.0);
}

#[test]
fn errors_of_the_server_exit_with_one_and_are_told() {
    let address = answering(b"SERVER_ERROR busy\r\n");
    let output = kiln_load(&["--address", &address, "-n", "50", "-c", "1", "--ratio", "0:1"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("SERVER_ERROR busy"));
}

#[test]
fn a_server_that_is_not_there_exits_with_one() {
    // Bound and let go at once: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = kiln_load(&["--address", &address]);

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot connect"));
}

#[test]
fn a_command_line_that_cannot_be_meant_exits_with_two() {
    for arguments in [
        &["--connections", "0"][..],
        &["--key-dist", "gauss"],
        &["--value-size", "1:2:3"],
        &["--ratio", "1"],
        &["--duration", "soon"],
        &["--requests", "1", "--duration", "1s"],
    ] {
        assert_eq!(kiln_load(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
