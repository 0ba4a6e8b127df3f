//! A node from its first line to its exit code.

mod common;

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    time::{Duration, Instant},
};

use common::{Client, Node, SOON, eventually, kiln, run, serve};
use rustix::process::Signal;

#[test]
fn one_line_on_standard_output_says_that_the_node_can_serve() {
    let mut node = Node::start(&["--name", "first"]);
    let [memcached, native, http] = ["memcached", "native", "http"].map(|name| node.address(name));
    assert_eq!(
        node.ready,
        format!(
            "ready name=first memcached={memcached} native={native} http={http} peer=off ingest=off"
        )
    );
    for address in [memcached, native, http] {
        assert!(address.port() != 0 && address.ip().is_loopback());
    }
    assert!(node.connect().ask("version\r\n").starts_with("VERSION "));

    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    assert_eq!(node.rest_of_output(), [""; 0]);
    let banner = node.log().join("\n");
    for part in
        ["node first", &memcached.to_string(), "memory     16MiB", "threads    2", "nc 127.0.0.1"]
    {
        assert!(banner.contains(part), "{part} in {banner}");
    }
}

#[test]
fn each_signal_that_asks_to_stop_ends_the_node_in_good_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let mut node = Node::start(&[]);
        let mut idle = node.connect();
        assert!(idle.ask("version\r\n").starts_with("VERSION "));
        let begun = Instant::now();
        node.signal(signal);
        assert_eq!(node.wait().code(), Some(0), "{signal:?}");
        // An idle client does not use up the grace of 25 s.
        assert!(begun.elapsed() < Duration::from_secs(10), "{signal:?}");
        idle.assert_closed();
    }
}

#[test]
fn the_process_id_is_in_its_file_while_the_node_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.pid");
    let node = Node::start(&["--pid-file", path.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", node.pid()));
    node.stop();
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_serves_and_its_file_goes_with_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.sock");
    let flags = ["--listen-memcached", "off", "--listen-memcached-unix", path.to_str().unwrap()];
    let node = Node::start(&flags);
    assert_eq!(node.field("memcached"), "off");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(Client::connect_unix(&path).ask("version\r\n").starts_with("VERSION "));
    node.stop();
    assert!(!path.exists());
}

#[test]
fn the_socket_file_that_a_killed_node_left_does_not_keep_the_next_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.sock");
    let flags = ["--listen-memcached-unix", path.to_str().unwrap()];
    // Dropping kills without a chance to clean up.
    drop(Node::start(&flags));
    assert!(path.exists());
    let node = Node::start(&flags);
    assert!(Client::connect_unix(&path).ask("version\r\n").starts_with("VERSION "));
    node.stop();
}

#[test]
fn a_port_in_use_is_one_clear_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen-memcached", "--listen-native", "--listen-http"] {
        let finished = run(&serve(&[flag, &address]));
        assert_eq!(finished.code, Some(1));
        assert_eq!(finished.out, "");
        assert_eq!(finished.err.lines().count(), 1, "{}", finished.err);
        for part in ["kiln: cannot listen on", &address, "in use", flag] {
            assert!(finished.err.contains(part), "{part} in {}", finished.err);
        }
    }
}

#[test]
fn a_second_node_on_the_same_port_does_not_share_it() {
    let node = Node::start(&[]);
    let finished = run(&serve(&["--listen-memcached", &node.address("memcached").to_string()]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.contains("in use"), "{}", finished.err);
}

#[test]
fn a_file_of_users_that_everyone_may_read_keeps_the_node_from_starting() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann:secret\n").unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let finished = run(&serve(&["--auth-file", file.path().to_str().unwrap()]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.err.contains("chmod 600"), "{}", finished.err);
}

#[test]
fn a_service_manager_is_told_when_the_node_is_ready_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let receive = || {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).trim().to_owned()
    };
    let mut command = kiln(&serve(&[]));
    command.env("NOTIFY_SOCKET", &path);
    let node = Node::start_command(command);
    assert_eq!(receive(), "READY=1");
    node.stop();
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
fn in_the_json_format_every_line_of_the_log_is_an_object() {
    let mut node = Node::start(&["--log-format", "json", "--log-level", "debug"]);
    assert!(node.connect().ask("version\r\n").starts_with("VERSION "));
    node.signal(Signal::TERM);
    node.wait();
    let log = node.log();
    assert!(!log.is_empty());
    for line in log {
        let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn a_node_that_drains_is_not_ready_finishes_what_is_in_flight_and_exits_0() {
    let mut node = Node::start(&[]);
    let mut client = node.connect();
    client.send("set key 0 0 5\r\nhe");
    eventually("the half request has arrived", || node.metric("kiln_received_bytes_total") >= 17.0);

    node.signal(Signal::TERM);
    eventually("the node is not ready", || node.http("GET", "/readyz").status == 503);
    assert!(node.http("GET", "/readyz").body.contains("[-] phase stopping"));
    assert_eq!(node.http("GET", "/livez").status, 200);

    assert_eq!(client.ask("llo\r\n"), "STORED\r\n");
    client.assert_closed();
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn what_is_not_finished_within_the_grace_is_cut() {
    let mut node = Node::start(&["--shutdown-grace", "300ms"]);
    let mut client = node.connect();
    client.send("set key 0 0 5\r\nhe");
    eventually("the half request has arrived", || node.metric("kiln_received_bytes_total") >= 17.0);
    let begun = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    client.assert_closed();
}

#[test]
fn a_second_interrupt_does_not_wait() {
    let mut node = Node::start(&[]);
    let mut client = node.connect();
    client.send("set key 0 0 5\r\nhe");
    eventually("the half request has arrived", || node.metric("kiln_received_bytes_total") >= 17.0);
    let begun = Instant::now();
    node.signal(Signal::INT);
    eventually("the node is not ready", || node.http("GET", "/readyz").status == 503);
    node.signal(Signal::INT);
    assert_eq!(node.wait().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(15));
}
