//! The door for lines over TCP, with acknowledgements.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use super::{
    common::{Node, SOON},
    make, node,
};

struct Producer(BufReader<TcpStream>);

impl Producer {
    fn connect(node: &Node) -> Self {
        let socket = TcpStream::connect(node.address("ingest")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self(BufReader::new(socket))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.line()
    }
}

#[test]
fn a_batch_is_acknowledged_and_counts_once_also_on_another_connection() {
    let node = node();
    let http = make(&node, "s", "{}");
    let mut one = Producer::connect(&node);
    assert_eq!(one.ask("hello press-7 1\n"), "hello\n");
    one.send("a, 1\nb, 2\n");
    one.send("a, 3\nbad\n");
    assert!(one.ask("commit 1\n").starts_with("bad 4 "));
    assert_eq!(one.line(), "ack 1 accepted=3 duplicate=0 late=0 rejected=1\n");
    // The connection breaks in the middle of the next batch: nothing of it was taken in.
    one.send("a, 9\n");
    drop(one);
    let mut two = Producer::connect(&node);
    assert_eq!(two.ask("stream s\nhello press-7 1\n"), "hello\n");
    assert_eq!(
        two.ask("a, 1\nb, 2\na, 3\ncommit 1\n"),
        "ack 1 accepted=0 duplicate=3 late=0 rejected=0\n"
    );
    assert_eq!(two.ask("a, 4\ncommit 2\n"), "ack 2 accepted=1 duplicate=0 late=0 rejected=0\n");
    assert_eq!(http.get("/v1/streams/s").json()["figures"]["accepted"], 4);
    assert_eq!(http.get("/v1/caches/s/keys/a").body, b"4");
}

#[test]
fn an_earlier_life_of_a_producer_is_turned_away() {
    let node = node();
    make(&node, "s", "{}");
    let mut new = Producer::connect(&node);
    new.send("hello p 2\na, 1\ncommit 1\n");
    assert_eq!((new.line(), new.line().starts_with("ack 1 ")), ("hello\n".to_owned(), true));
    let mut old = Producer::connect(&node);
    old.send("hello p 1\na, 5\ncommit 9\n");
    assert_eq!(old.line(), "hello\n");
    assert!(old.line().starts_with("error 1 readings are of an earlier epoch"));
    assert_eq!(old.line(), "");
}

#[test]
fn a_client_that_says_what_cannot_be_is_told_and_let_go() {
    let node = node();
    assert_eq!(Producer::connect(&node).ask("a, 1\n"), "error this node has no stream\n");
    make(&node, "s", "{}");
    make(&node, "t", r#"{"latest": "s"}"#);
    let several = Producer::connect(&node).ask("a, 1\n");
    assert_eq!(several, "error there are several streams; begin with: stream NAME\n");
    assert_eq!(Producer::connect(&node).ask("stream x\n"), "error there is no such stream\n");
    assert!(
        Producer::connect(&node).ask("stream s\nhello p x\n").starts_with("error expected: hello")
    );
    let mut producer = Producer::connect(&node);
    assert_eq!(producer.ask("stream s\nhello p 1\n"), "hello\n");
    assert_eq!(producer.ask("a, 1\ncommit x\n"), "error expected: commit NUMBER\n");
}

#[test]
fn a_batch_without_end_and_a_line_without_end_are_bounded() {
    let node = node();
    let http = make(&node, "s", "{}");
    let mut producer = Producer::connect(&node);
    assert_eq!(producer.ask("hello p 1\n"), "hello\n");
    producer.send(&"a, 1\n".repeat(70_000));
    assert!(producer.ask("commit 1\n").starts_with("error the batch has too many readings"));
    let mut endless = Producer::connect(&node);
    endless.send(&format!("a, 1\n{}\nb, 2\n", "x".repeat(300_000)));
    // Closed before it had read what it is told, the connection would break with lines unread.
    super::common::eventually("what is around the long line is kept", || {
        let figures = http.get("/v1/streams/s").json()["figures"].clone();
        figures["accepted"] == 2 && figures["rejected"].as_u64() >= Some(1)
    });
    drop(endless);
}
