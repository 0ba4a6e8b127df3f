//! What every request passes.

use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{
    client::Http,
    common::{Node, eventually},
};

const ITEM: &str = "/v1/caches/default/keys/k";

#[test]
fn a_request_keeps_its_name_or_gets_one() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let id = |headers: &[(&str, &str)]| {
        http.send("GET", ITEM, headers, b"").header("x-request-id").to_owned()
    };
    assert_eq!(id(&[("x-request-id", "mine-1")]), "mine-1");
    let made = id(&[]);
    assert!(!made.is_empty() && made != id(&[]));
    assert_ne!(id(&[("x-request-id", &"x".repeat(129))]).len(), 129);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    assert_eq!(id(&[("traceparent", &parent)]), trace);
    assert_eq!(id(&[("traceparent", &parent), ("x-request-id", "mine")]), "mine");
}

#[test]
fn a_node_with_users_asks_who_is_there_but_answers_probes() {
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "ann:sec:ret\n").unwrap();
    std::fs::set_permissions(users.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let node = Node::start(&["--auth-file", users.path().to_str().unwrap()]);
    let http = Http::of(&node);
    assert_eq!((http.get("/livez").status, http.get("/readyz").status), (200, 200));
    for target in [ITEM, "/metrics", "/v1/caches", "/openapi.json", "/docs", "/", "/nothing"] {
        let answer = http.get(target);
        answer.assert_problem(401, "unauthenticated");
        assert!(answer.header("www-authenticate").starts_with("Basic "), "{target}");
    }
    let get = |credentials: &str| {
        let value = format!("Basic {}", BASE64.encode(credentials));
        http.send("GET", "/v1/caches", &[("authorization", &value)], b"")
    };
    assert_eq!(get("ann:sec:ret").status, 200);
    for wrong in ["ann:sec", "ann", "bob:sec:ret", "ann sec:ret", ":", ""] {
        get(wrong).assert_problem(401, "unauthenticated");
    }
    let put = [("authorization", "Basic YW5uOng=")];
    http.send("PUT", ITEM, &put, b"x").assert_problem(401, "unauthenticated");
}

#[test]
fn one_connection_carries_many_requests_one_after_the_other() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(ITEM, b"hello");
    let mut stream = http.connect();
    let get = format!("GET {ITEM} HTTP/1.1\r\nhost: k\r\n\r\n");
    stream.write_all(get.repeat(50).as_bytes()).unwrap();
    let mut seen = String::new();
    while seen.matches("\r\n\r\nhello").count() < 50 {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    // An error does not end the connection.
    stream.write_all(b"GET /nothing HTTP/1.1\r\nhost: k\r\n\r\n").unwrap();
    stream.write_all(get.replace("host: k", "host: k\r\nconnection: close").as_bytes()).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 404") && rest.ends_with("hello"), "{rest}");
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let mut stream = http.connect();
    let head = format!(
        "PUT {ITEM} HTTP/1.1\r\nhost: k\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

#[test]
fn connections_at_rest_give_way_when_there_are_too_many() {
    let node = Node::start(&["--max-http-connections", "10"]);
    let http = Http::of(&node);
    let mut resting: Vec<_> = (0..10).map(|_| http.connect()).collect();
    eventually("all are open", || node.metric("kiln_http_connections") >= 9.0);
    for _ in 0..5 {
        assert_eq!(http.get("/livez").status, 200);
    }
    // Some of them are closed now.
    let closed = resting.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.read(&mut [0]).ok()
    });
    assert!(closed.count() >= 1);
    drop(resting);
    eventually("they are gone", || node.metric("kiln_http_connections") <= 1.0);
}

#[test]
fn a_node_whose_connections_are_all_at_work_says_so() {
    let node = Node::start(&["--max-http-connections", "3"]);
    let http = Http::of(&node);
    let working: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = http.connect();
            let head = format!(
                "PUT {ITEM} HTTP/1.1\r\nhost: k\r\nexpect: 100-continue\r\n\
                 content-length: 10\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            // Told to go on, it is at work for certain.
            let mut go_on = [0; 25];
            stream.read_exact(&mut go_on).unwrap();
            stream
        })
        .collect();
    let mut answer = http.get("/livez");
    for _ in 0..100 {
        if answer.status == 503 {
            break;
        }
        answer = http.get("/livez");
    }
    answer.assert_problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "1");
    drop(working);
    eventually("there is room again", || http.get("/livez").status == 200);
    assert!(node.metric("kiln_http_connections_rejected_total") >= 1.0);
}

#[test]
fn requests_and_operations_are_counted() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(ITEM, b"x");
    http.get(ITEM);
    http.get("/nothing");
    let operations = node.metric("kiln_operations_total{protocol=\"http\"}");
    assert_eq!(operations, 2.0);
    assert_eq!(node.metric("kiln_http_requests_total{status=\"4xx\"}"), 1.0);
    assert!(node.metric("kiln_http_requests_total{status=\"2xx\"}") >= 3.0);
}

#[test]
fn no_other_site_may_read_answers() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(ITEM, b"x");
    let headers = [("origin", "https://example.org"), ("access-control-request-method", "GET")];
    for method in ["GET", "OPTIONS"] {
        let answer = http.send(method, ITEM, &headers, b"");
        assert_eq!(answer.find("access-control-allow-origin"), None, "{method}");
    }
}

#[test]
fn http_2_without_tls_carries_requests_side_by_side() {
    let node = Node::start(&["--memory", "256MiB"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use axum::body::Body;
        use hyper_util::rt::{TokioExecutor, TokioIo};
        let stream = tokio::net::TcpStream::connect(node.address("http")).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake::<_, _, Body>(
            TokioExecutor::new(),
            TokioIo::new(stream),
        );
        let (client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let send = |method: &str, key: usize, body: Body| {
            let uri = format!("http://kiln/v1/caches/default/keys/{key}");
            let request = axum::http::Request::builder().method(method).uri(uri).body(body);
            let mut client = client.clone();
            async move {
                let answer = client.send_request(request.unwrap()).await.unwrap();
                let status = answer.status().as_u16();
                let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await;
                (status, body.unwrap())
            }
        };
        let large = vec![7_u8; 300_000];
        let puts = (0..50).map(|key| send("PUT", key, Body::from(large.clone())));
        for (status, _) in futures_util::future::join_all(puts).await {
            assert_eq!(status, 201);
        }
        let gets = (0..50).map(|key| send("GET", key, Body::empty()));
        for (status, body) in futures_util::future::join_all(gets).await {
            assert_eq!((status, body.len()), (200, large.len()));
        }
        assert_eq!(send("GET", 99, Body::empty()).await.0, 404);
    });
}
