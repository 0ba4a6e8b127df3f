//! What goes wrong, and what stays as it was.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use proptest::prelude::*;

use super::{
    client::Http,
    common::{Node, SOON, eventually},
};

const KEYS: &str = "/v1/caches/default/keys";

#[test]
fn every_error_is_a_problem_document() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(&format!("{KEYS}/k"), b"x");
    for (method, target, status, slug) in [
        ("GET", "/nothing", 404, "no-such-path"),
        ("GET", "/v1", 404, "no-such-path"),
        ("GET", "/v1/caches/", 404, "no-such-path"),
        ("GET", "/v1/caches/default/keys/", 404, "no-such-path"),
        ("GET", "/v1/caches/default/keys/a/b", 404, "no-such-path"),
        ("GET", "/v1/caches/nothing", 404, "no-such-cache"),
        ("GET", "/v1/caches/%FF", 404, "no-such-cache"),
        ("GET", "/v1/caches/nothing/keys/k", 404, "no-such-cache"),
        ("GET", "/v1/caches/default/keys/none", 404, "miss"),
        ("GET", "/v1/caches/default/keys/%4", 400, "bad-request"),
        ("GET", "/v1/caches/default/keys/%zz", 400, "bad-request"),
        ("GET", "/v1/caches/%zz/keys/k", 400, "bad-request"),
        ("GET", "/v1/caches/default/keys/k?ttl=1s", 400, "bad-request"),
        ("DELETE", "/v1/caches/default/keys/k?x", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?ttl=0", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?ttl=-1s", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?ttl=soon", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?ttl=1s&ttl=2s", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?ttl=%FF", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?flags=4294967296", 400, "bad-request"),
        ("PUT", "/v1/caches/default/keys/k?flags=-1", 400, "bad-request"),
        ("POST", "/v1/caches/default/keys/k/increment?by=x", 400, "bad-request"),
        ("POST", "/v1/caches/default/keys/k/increment?by=18446744073709551616", 400, "bad-request"),
        ("POST", "/v1/caches/default/keys/k/fly", 404, "no-such-path"),
        ("POST", "/v1/caches/default/keys/k", 405, "method-not-allowed"),
        ("PATCH", "/v1/caches/default/keys/k", 405, "method-not-allowed"),
        ("GET", "/v1/caches/default/batch", 405, "method-not-allowed"),
        ("POST", "/livez", 405, "method-not-allowed"),
        ("TRACE", "/v1/caches", 405, "method-not-allowed"),
        ("OPTIONS", "/v1/caches/default/keys/k", 405, "method-not-allowed"),
        ("FLY", "/v1/caches", 405, "method-not-allowed"),
    ] {
        let answer = http.send(method, target, &[], b"");
        answer.assert_problem(status, slug);
        assert_eq!(answer.find("allow").is_some(), status == 405, "{method} {target}");
        assert!(!answer.header("x-request-id").is_empty(), "{method} {target}");
    }
    let allow = http.send("PATCH", &format!("{KEYS}/k"), &[], b"");
    let mut methods: Vec<_> = allow.header("allow").split(',').collect();
    methods.sort_unstable();
    assert_eq!(methods, ["DELETE", "GET", "HEAD", "PUT"]);
    assert_eq!(http.get(&format!("{KEYS}/k")).body, b"x");
}

#[test]
fn what_is_no_http_gets_a_problem_document_too() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    for (request, status, slug) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "bad-request"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400, "bad-request"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400, "bad-request"),
        ("PUT / HTTP/1.1\r\ncontent-length: x\r\n\r\n".to_owned(), 400, "bad-request"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(200_000)), 431, "head-too-large"),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100)), 431, "head-too-large"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "k".repeat(70_000)), 414, "uri-too-long"),
        (
            // 10 MiB of key.
            format!("GET {KEYS}/{} HTTP/1.1\r\n\r\n", "k".repeat(10 << 20)),
            431,
            "head-too-large",
        ),
    ] {
        let answer = http.raw(request.as_bytes());
        answer.assert_problem(status, slug);
        assert_eq!(answer.header("connection"), "close");
    }
    assert_eq!(http.get("/livez").status, 200);
}

#[test]
fn a_body_that_is_cut_off_changes_nothing() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = format!("{KEYS}/k");
    http.put(&item, b"old");
    for (head, body) in [
        ("content-length: 100", &b"half of it"[..]),
        ("content-length: 500000", &[b'x'; 100_000]),
        ("transfer-encoding: chunked", b"5\r\nhello\r\n"),
        ("transfer-encoding: chunked", b"5\r\nhel"),
        ("transfer-encoding: chunked", b"zz\r\nhello"),
    ] {
        let mut stream = http.connect();
        let request = format!("PUT {item} HTTP/1.1\r\nhost: k\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert_eq!(http.get(&item).body, b"old", "{head}");
    }
}

#[test]
fn a_sender_that_is_too_slow_is_told_so_and_changes_nothing() {
    let node = Node::start(&["--http-request-timeout", "3s"]);
    let http = Http::of(&node);
    let item = format!("{KEYS}/k");
    http.put(&item, b"old");
    let begin = |text: &str| {
        let mut stream = http.connect();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let mut body =
        begin(&format!("PUT {item} HTTP/1.1\r\nhost: k\r\ncontent-length: 9\r\n\r\nhalf"));
    let mut head = begin(&format!("PUT {item} HTTP/1.1\r\nhost: k\r\ncontent-le"));
    let read = |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let told = read(&mut body);
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("#problem-too-slow"), "{told}");
    // Who has not even finished a head may just find the connection closed.
    let told = read(&mut head);
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 408 "), "{told}");
    assert_eq!(http.get(&item).body, b"old");
}

#[test]
fn bad_json_is_told_from_json_that_does_not_fit() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let json = [("content-type", "application/json")];
    for bad in [
        "",
        "{",
        "[]",
        "1",
        "\"x\"",
        "{\"operations\":[{]}",
        "{\"operations\":7}",
        "\u{0}",
        "{\"a\":1}",
    ] {
        let batch = http.send("POST", "/v1/caches/default/batch", &json, bad.as_bytes());
        batch.assert_problem(400, "bad-request");
        if !bad.is_empty() {
            let cache = http.send("PUT", "/v1/caches/new", &json, bad.as_bytes());
            cache.assert_problem(400, "bad-request");
        }
    }
    let deep = "[".repeat(10_000);
    http.send("POST", "/v1/caches/default/batch", &json, deep.as_bytes())
        .assert_problem(400, "bad-request");
    http.send("PUT", "/v1/caches/new", &json, b"{\"copies\":5}").assert_problem(422, "unfit");
    http.get("/v1/caches/new").assert_problem(404, "no-such-cache");
}

#[test]
fn memory_stays_flat_whatever_is_wrong_with_requests() {
    let node = Node::start(&["--memory", "32MiB"]);
    let http = Http::of(&node);
    let long = "k".repeat(10 << 20);
    let all_of_it = |rounds: usize| {
        for _ in 0..rounds {
            http.raw(format!("GET {KEYS}/{long} HTTP/1.1\r\n\r\n").as_bytes());
            http.raw(format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", &long[..200_000]).as_bytes());
            http.put(&format!("{KEYS}/k"), &vec![0; 2 << 20]).assert_problem(413, "too-large");
            http.get("/v1/caches/default/keys/%zz").assert_problem(400, "bad-request");
            http.put(&format!("{KEYS}/k?ttl=soon"), b"x").assert_problem(400, "bad-request");
            http.send("PATCH", &format!("{KEYS}/k"), &[], b"")
                .assert_problem(405, "method-not-allowed");
            let json = [("content-type", "application/json")];
            let bad = http.send("POST", "/v1/caches/default/batch", &json, &vec![b'['; 500_000]);
            bad.assert_problem(400, "bad-request");
            let mut cut = http.connect();
            let request =
                format!("PUT {KEYS}/k HTTP/1.1\r\nhost: k\r\ncontent-length: 900000\r\n\r\n");
            cut.write_all(request.as_bytes()).unwrap();
            cut.write_all(&vec![1; 400_000]).unwrap();
        }
    };
    // Buffers and the allocator's own memory come with the first of it.
    all_of_it(5);
    let before = node.metric("process_resident_memory_bytes");
    all_of_it(40);
    let grown = node.metric("process_resident_memory_bytes") - before;
    assert!(grown < 8e6, "{grown} bytes");
}

#[test]
fn many_slow_senders_cost_little_and_keep_nobody_out() {
    let node = Node::start(&["--memory", "32MiB"]);
    let http = Http::of(&node);
    let before = node.metric("process_resident_memory_bytes");
    let streams: Vec<_> = (0..200)
        .map(|number| {
            let mut stream = http.connect();
            let request = format!(
                "PUT {KEYS}/{number} HTTP/1.1\r\nhost: k\r\ncontent-length: 1000000\r\n\r\nx"
            );
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(http.put(&format!("{KEYS}/small"), b"x").status, 201);
    assert_eq!(http.get(&format!("{KEYS}/small")).body, b"x");
    std::thread::sleep(Duration::from_millis(200));
    let grown = node.metric("process_resident_memory_bytes") - before;
    assert!(grown < 24e6, "{grown}");
    drop(streams);
    eventually("the connections are gone", || node.metric("kiln_http_connections") <= 1.0);
    // What they had is given back.
    assert_eq!(http.put(&format!("{KEYS}/large"), &[1; 1_000_000]).status, 201);
}

#[test]
fn a_body_that_is_too_long_is_refused_however_it_comes() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(&format!("{KEYS}/k"), &vec![0; 4 << 20]).assert_problem(413, "too-large");
    http.put("/v1/caches/x", &vec![b' '; 20_000]).assert_problem(413, "too-large");
    let huge = format!(
        "PUT {KEYS}/k HTTP/1.1\r\nhost: k\r\nconnection: close\r\ncontent-length: 4611686018427387904\r\n\r\n"
    );
    http.raw(huge.as_bytes()).assert_problem(413, "too-large");
    http.get(&format!("{KEYS}/k")).assert_problem(404, "miss");
}

#[test]
fn a_full_cache_that_evicts_nothing_has_no_room() {
    let node = Node::start(&["--eviction", "none", "--memory", "16MiB"]);
    let http = Http::of(&node);
    let refused = (0..100)
        .map(|number| http.put(&format!("{KEYS}/{number}"), &[1; 500_000]))
        .find(|answer| !matches!(answer.status, 201 | 204));
    refused.unwrap().assert_problem(507, "no-room");
}

#[test]
fn no_sequence_of_bytes_brings_the_node_down() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let words = prop::sample::select(vec![
        "GET ",
        "PUT ",
        "POST ",
        "DELETE ",
        "PATCH ",
        KEYS,
        "/k",
        "/increment",
        "/append",
        "/batch",
        "/v1/caches/",
        "default",
        "?ttl=",
        "1s",
        "&",
        "%",
        "%FF",
        " HTTP/1.1",
        " HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
        "host: k",
        "content-length: ",
        "5",
        "99999",
        "transfer-encoding: chunked",
        "if-match: ",
        "*",
        "\"1\"",
        "range: bytes=",
        "-",
        "idempotency-key: a",
        "content-type: application/json",
        "{\"operations\":[",
        "expect: 100-continue",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "accept-encoding: gzip",
        "\0",
        "\u{ff}",
    ]);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        ..ProptestConfig::default()
    });
    let tested = runner.run(&prop::collection::vec(words, 1..25), |words| {
        let mut stream = http.connect();
        let _ = stream.write_all(words.concat().as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        prop_assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.") || answer[..4] != *b"HTTP",
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    });
    tested.unwrap();
    assert_eq!(http.get("/readyz").status, 200);
}
