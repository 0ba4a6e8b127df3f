//! Who may connect, for how long, and to which worker.

mod common;

use std::time::{Duration, Instant};

use common::{Client, Node, eventually, kiln, serve};

const TOO_MANY: &str = "ERROR Too many open connections\r\n";

#[test]
fn a_connection_beyond_the_limit_is_told_so_and_closed() {
    let node = Node::start(&["--max-connections", "3", "--threads", "2"]);
    let mut clients: Vec<_> = (0..3).map(|_| node.connect()).collect();
    for client in &mut clients {
        assert!(client.ask("version\r\n").starts_with("VERSION "));
    }

    let mut surplus = node.connect();
    assert_eq!(surplus.line(), TOO_MANY);
    surplus.assert_closed();
    assert_eq!(node.metric("kiln_connections_rejected_total"), 1.0);
    assert_eq!(node.metric("kiln_connections"), 3.0);

    // Those inside do not notice, and a place that becomes free is given away again.
    assert!(clients[0].ask("version\r\n").starts_with("VERSION "));
    clients.pop();
    eventually("a place is free", || node.connect().ask("version\r\n").starts_with("VERSION "));
}

#[test]
fn the_limit_holds_over_all_listeners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.sock");
    let socket = path.to_str().unwrap();
    let node = Node::start(&["--max-connections", "1", "--listen-memcached-unix", socket]);
    let mut inside = Client::connect_unix(&path);
    assert!(inside.ask("version\r\n").starts_with("VERSION "));
    assert_eq!(node.connect().line(), TOO_MANY);
    assert_eq!(Client::connect_unix(&path).line(), TOO_MANY);
}

#[test]
fn a_client_that_asks_nothing_for_too_long_is_closed() {
    let node = Node::start(&["--idle-timeout", "1s"]);
    let (mut idle, mut busy) = (node.connect(), node.connect());
    assert!(idle.ask("version\r\n").starts_with("VERSION "));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert!(busy.ask("version\r\n").starts_with("VERSION "));
        std::thread::sleep(Duration::from_millis(100));
    }
    idle.assert_closed();
    assert_eq!(node.metric("kiln_connections_idle_closed_total"), 1.0);
    assert!(busy.ask("version\r\n").starts_with("VERSION "));
}

#[test]
fn without_an_idle_timeout_a_silent_client_stays() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(client.ask("version\r\n").starts_with("VERSION "));
}

#[test]
fn few_connections_are_spread_evenly_over_the_workers() {
    let node = Node::start(&["--threads", "4"]);
    let mut clients: Vec<_> = (0..10).map(|_| node.connect()).collect();
    for client in &mut clients {
        assert!(client.ask("version\r\n").starts_with("VERSION "));
    }
    let metric = |worker| node.metric(&format!("kiln_worker_connections{{worker=\"{worker}\"}}"));
    let open: Vec<f64> = (0..4).map(metric).collect();
    assert_eq!(open.iter().sum::<f64>(), 10.0);
    assert!(open.iter().all(|n| (2.0..=3.0).contains(n)), "{open:?}");
}

#[test]
fn a_burst_of_connections_is_served_whole() {
    let node = Node::start(&["--threads", "3"]);
    let mut clients: Vec<_> = (0..300).map(|_| node.connect()).collect();
    for client in &mut clients {
        client.send("version\r\n");
    }
    for client in &mut clients {
        assert!(client.line().starts_with("VERSION "));
    }
    assert_eq!(node.metric("kiln_connections"), 300.0);
    drop(clients);
    eventually("all are gone", || node.metric("kiln_connections") == 0.0);
}

#[test]
fn without_file_descriptors_the_node_waits_for_some_and_does_not_spin() {
    let mut command = std::process::Command::new("sh");
    let arguments = serve(&["--max-connections", "1000", "--listen-http", "off"]);
    let node = kiln(&arguments);
    command.args(["-c", "ulimit -n 48 && exec \"$0\" \"$@\""]);
    command.arg(node.get_program()).args(node.get_args());
    let mut node = Node::start_command(command);

    // More than there are descriptors: the kernel completes these, the node cannot take them all.
    let clients: Vec<_> = (0..100).map(|_| node.connect()).collect();
    let cpu_ticks = |node: &Node| {
        let stat = procfs::process::Process::new(node.pid() as i32).unwrap().stat().unwrap();
        stat.utime + stat.stime
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_ticks(&node);
    std::thread::sleep(Duration::from_secs(1));
    // A spinning thread would use some 100 ticks in a second.
    assert!(cpu_ticks(&node) - before < 30);

    drop(clients);
    assert!(node.connect().ask("version\r\n").starts_with("VERSION "));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    let log = node.log().join("\n");
    assert!(log.contains("too low for max_connections") && log.contains("cannot accept"), "{log}");
}
