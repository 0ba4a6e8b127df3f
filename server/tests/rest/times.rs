//! What `/metrics` says of operations and their times.

use kiln_protocol::{
    command::{Command, Get},
    native::{CacheRef, Item, Response, Want, encode},
};

use super::common::{Node, native::Native};

/// Replies beyond this are written before more requests are run.
const OUTPUT: &[&str] = &["--threads", "1", "--output-buffer-max", "16KiB"];

#[test]
fn requests_that_are_read_again_after_their_replies_piled_up_count_once() {
    for flags in [OUTPUT.to_vec(), [OUTPUT, &["--listen-peer", "127.0.0.1:0"]].concat()] {
        let node = Node::start(&flags);
        let mut client = node.connect();
        assert_eq!(
            client.ask(&format!("set k 0 0 1000\r\n{}\r\n", "x".repeat(1000))),
            "STORED\r\n"
        );
        for _ in 0..10 {
            client.send("get k\r\n".repeat(200));
            for _ in 0..200 {
                assert_eq!(client.line(), "VALUE k 0 1000\r\n");
                assert_eq!(client.line().len(), 1002);
                assert_eq!(client.line(), "END\r\n");
            }
        }
        assert!(node.metric("kiln_connection_yields_total") > 10.0, "nothing was cut short");
        assert_eq!(node.metric("kiln_operations_total{protocol=\"memcached\"}"), 2001.0);
    }
}

#[test]
fn operations_in_batches_are_timed_like_others() {
    let node = Node::start(&["--threads", "1"]);
    let mut client = Native::connect(&node);
    let items =
        [(); 10].map(|()| Item { command: Command::Get(Get::plain(b"k")), want: Want::default() });
    for _ in 0..320 {
        let frame = client.call(|out, id| {
            encode::batch(out, id, CacheRef::Handle(0), items.into_iter());
        });
        let Response::Batch(results) = frame.response() else { panic!("{:?}", frame.response()) };
        assert_eq!(results.count(), 10);
    }
    // One read in 32 is timed and counts for 32: of 320 all alike, ten.
    let name = "kiln_operation_duration_seconds_count{protocol=\"native\",operation=\"get\"}";
    let timed = node.metric(name);
    assert!((2_880.0..=3_520.0).contains(&timed), "{timed}");
}
