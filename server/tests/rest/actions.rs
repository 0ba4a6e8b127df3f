//! Numbers, appending, new ends; and requests that come again.

use std::thread;

use super::{client::Http, common::Node};

const KEYS: &str = "/v1/caches/default/keys";

#[test]
fn numbers_go_up_and_down() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let post = |action: &str| http.post(&format!("{KEYS}/n/{action}"), b"");
    post("increment").assert_problem(404, "miss");
    let made = post("increment?initial=10&by=5");
    assert_eq!((made.status, made.json()["number"].as_u64()), (200, Some(10)));
    assert_eq!(made.header("content-type"), "application/json");
    assert_eq!(post("increment").json()["number"], 11);
    assert_eq!(post("increment?by=31").json()["number"], 42);
    assert_eq!(post("decrement?by=2").json()["number"], 40);
    assert_eq!(post("decrement?by=100").json()["number"], 0);
    assert_eq!(http.get(&format!("{KEYS}/n")).body, b"0");

    let last = post("increment?ttl=60s");
    assert!(last.header("kiln-ttl-ms").parse::<u64>().unwrap() <= 60_000);
    let compare =
        |tag: &str| http.send("POST", &format!("{KEYS}/n/increment"), &[("if-match", tag)], b"");
    assert_eq!(compare(last.header("etag")).status, 200);
    compare(last.header("etag")).assert_problem(412, "condition-failed");
    compare("*").assert_problem(400, "bad-request");

    http.put(&format!("{KEYS}/n"), b"many");
    post("increment").assert_problem(409, "conflict");
}

#[test]
fn bytes_are_put_behind_a_value_that_keeps_its_type_and_end() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/log");
    let append = |query: &str, body: &[u8]| http.post(&format!("{item}/append{query}"), body);
    append("", b"x").assert_problem(404, "miss");
    append("?ttl=5s", b"x").assert_problem(422, "unfit");
    for content_type in ["text/plain", "application/vnd.acme.log"] {
        let headers = [("content-type", content_type)];
        http.send("PUT", &format!("{item}?ttl=60s"), &headers, b"one\n");
        let longer = append("", b"two\n");
        assert_eq!(longer.status, 204);
        let read = http.get(item);
        assert_eq!(
            (&read.body[..], read.header("content-type")),
            (&b"one\ntwo\n"[..], content_type)
        );
        assert!(read.find("kiln-ttl-ms").is_some());
        assert_eq!(read.header("etag"), longer.header("etag"));
    }
    assert_eq!(http.post(&format!("{KEYS}/new/append?create=true"), b"x").status, 204);
    assert_eq!(http.get(&format!("{KEYS}/new")).body, b"x");
    let long = vec![b'x'; 1 << 20];
    append("", &long).assert_problem(413, "too-large");
    assert_eq!(http.get(item).body, b"one\ntwo\n");
}

#[test]
fn an_item_gets_a_new_end_with_or_without_being_read() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    http.post(&format!("{item}/touch?ttl=1s"), b"").assert_problem(404, "miss");
    http.put(item, b"hello");
    let touched = http.post(&format!("{item}/touch?ttl=60s"), b"");
    assert_eq!((touched.status, touched.body.len()), (204, 0));
    assert!(http.get(item).find("kiln-ttl-ms").is_some());
    let read = http.post(&format!("{item}/get-and-touch?ttl=never"), b"");
    assert_eq!((read.status, &read.body[..], read.find("kiln-ttl-ms")), (200, &b"hello"[..], None));
    http.post(&format!("{item}/touch"), b"").assert_problem(400, "bad-request");
    http.post(&format!("{item}/touch?ttl=1s"), b"body").assert_problem(400, "bad-request");
}

#[test]
fn a_request_that_comes_again_with_its_key_is_not_carried_out_again() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let send = |action: &str, key: &str, body: &[u8]| {
        http.send("POST", &format!("{KEYS}/n/{action}"), &[("idempotency-key", key)], body)
    };
    send("increment", "first", b"").assert_problem(404, "miss");
    http.put(&format!("{KEYS}/n"), b"0");
    // It was not carried out, so this is the first.
    let first = send("increment", "first", b"");
    assert_eq!(first.json()["number"], 1);
    for _ in 0..3 {
        let again = send("increment", "first", b"");
        assert_eq!(
            (again.json()["number"].as_u64(), again.header("etag")),
            (Some(1), first.header("etag"))
        );
        assert_eq!(again.header("idempotency-replayed"), "true");
    }
    assert_eq!(send("increment", "second", b"").json()["number"], 2);
    send("increment?by=2", "second", b"").assert_problem(422, "idempotency-key-reused");
    assert_eq!(send("append", "third", b"7").status, 204);
    assert_eq!(send("append", "third", b"7").header("idempotency-replayed"), "true");
    send("append", "third", b"8").assert_problem(422, "idempotency-key-reused");
    assert_eq!(http.get(&format!("{KEYS}/n")).body, b"27");
    send("increment", &"k".repeat(129), b"").assert_problem(400, "bad-request");
}

#[test]
fn increments_by_many_clients_at_once_are_all_counted() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(&format!("{KEYS}/n"), b"0");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(http.post(&format!("{KEYS}/n/increment"), b"").status, 200);
                }
            });
        }
    });
    assert_eq!(http.get(&format!("{KEYS}/n")).body, b"400");
}
