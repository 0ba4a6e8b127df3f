//! Health and metrics.

mod common;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
};

use common::{Node, SOON};

#[test]
fn a_running_node_is_live_and_ready_and_says_what_it_checked() {
    let node = Node::start(&[]);
    for target in ["/livez", "/readyz"] {
        let reply = node.http("GET", target);
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok\n"));
        let verbose = node.http("GET", &format!("{target}?verbose")).body;
        for check in ["[+] worker-0 ok\n", "[+] worker-1 ok\n", "[+] upkeep ok\n"] {
            assert!(verbose.contains(check), "{verbose}");
        }
    }
    assert!(node.http("GET", "/readyz?verbose").body.contains("[+] phase ok\n"));
}

#[test]
fn metrics_are_in_the_text_format_with_help_and_type_for_each() {
    let node = Node::start(&["--name", "m1"]);
    let reply = node.http("GET", "/metrics");
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"));

    let (mut helped, mut typed, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut histograms = BTreeSet::new();
    for line in reply.body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.insert(rest.split(' ').next().unwrap());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(typed.insert(name), "{name} comes twice");
            if kind == "histogram" {
                histograms.insert(name);
            }
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let name = series.split('{').next().unwrap();
            // The parts of a histogram come after its type.
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| {
                name.strip_suffix(part).filter(|whole| histograms.contains(whole))
            });
            seen.insert(whole.unwrap_or(name));
        }
    }
    assert_eq!(helped, typed);
    assert_eq!(seen, typed);
    assert!(seen.iter().all(|name| name.starts_with("kiln_") || name.starts_with("process_")));

    for name in ["kiln_items", "kiln_evictions_total", "kiln_expirations_total", "process_open_fds"]
    {
        assert!(seen.contains(name), "{name}");
    }
    assert_eq!(node.metric("kiln_memory_limit_bytes"), f64::from(16 << 20));
    assert!(node.metric("process_resident_memory_bytes") > 1e6);
    assert!(reply.body.contains(",name=\"m1\"} 1\n"), "{}", reply.body);
}

#[test]
fn connections_are_counted() {
    let node = Node::start(&[]);
    assert_eq!(node.metric("kiln_connections"), 0.0);
    let mut client = node.connect();
    client.ask("version\r\n");
    assert_eq!(node.metric("kiln_connections"), 1.0);
    assert_eq!(node.metric("kiln_connections_accepted_total"), 1.0);
    assert_eq!(node.metric("kiln_received_bytes_total"), 9.0);
    drop(client);
    common::eventually("the connection is gone", || node.metric("kiln_connections") == 0.0);
    assert_eq!(node.metric("kiln_connections_accepted_total"), 1.0);
}

#[test]
fn errors_are_problem_documents() {
    let node = Node::start(&[]);
    for (method, target, status) in [("GET", "/nothing", 404), ("POST", "/metrics", 405)] {
        let reply = node.http(method, target);
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("content-type"), "application/problem+json");
        let problem: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["detail"].is_string());
    }
    let allow = node.http("DELETE", "/livez");
    assert!(allow.header("allow").contains("GET"), "{allow:?}");
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let node = Node::start(&[]);
    let long =
        format!("GET /livez HTTP/1.1\r\nHost: k\r\nX-Long: {}\r\n\r\n", "x".repeat(200 << 10));
    let many = format!("GET /livez HTTP/1.1\r\nHost: k\r\n{}\r\n", "X-Many: x\r\n".repeat(100));
    for head in [long, many] {
        assert_eq!(node.http_raw(head.as_bytes()).status, 431);
    }
    assert_eq!(node.http("GET", "/livez").status, 200);
}

#[test]
fn http_clients_that_say_nothing_do_not_keep_others_out() {
    let node = Node::start(&[]);
    let _silent: Vec<_> =
        (0..100).map(|_| TcpStream::connect(node.address("http")).unwrap()).collect();
    assert_eq!(node.http("GET", "/livez").status, 200);
}

#[test]
fn one_http_connection_carries_several_requests() {
    let node = Node::start(&[]);
    let mut stream = TcpStream::connect(node.address("http")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: kiln\r\n\r\n").unwrap();
        let mut reply = Vec::new();
        while !reply.ends_with(b"ok\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            reply.push(byte[0]);
        }
        assert!(reply.starts_with(b"HTTP/1.1 200 "));
    }
}
