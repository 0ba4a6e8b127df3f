//! The native protocol against a real node: every operation, every refusal, and order.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use common::{
    Node, eventually,
    native::{Native, data, get, hello, set, spec, store},
};
use kiln_protocol::{
    command::{Arithmetic, Command, Delete, Direction, Get, Store, StoreMode, Touch, Ttl},
    native::{
        CacheRef, Effect, Item, Op, Push, Response, Scan, Value, Want,
        admin::{self, Credentials, Hello, NodeInfo, Subscribe, TopologyView, Welcome},
        compress, encode, inflate,
    },
};
use rustix::process::Signal;

fn increment(key: &[u8], delta: u64, create: Option<(Ttl, u64)>) -> Command<'_> {
    let direction = Direction::Increment;
    Command::Arithmetic(Arithmetic {
        key,
        direction,
        delta,
        compare: None,
        version: None,
        create,
        touch: None,
    })
}

// ---- hello ---------------------------------------------------------------------------------

#[test]
fn hello_agrees_on_a_version_and_announces_what_the_node_is_and_takes() {
    let node = Node::start(&["--name", "n1", "--max-item-size", "2MiB", "--memory", "32MiB"]);
    let mut client = Native::silent(&node);
    let theirs = Hello { version_max: 9, ..hello(&["lz4", "invalidation", "levitation"]) };
    let welcome: Welcome = client.hello(&theirs);
    assert_eq!((welcome.version, welcome.node.as_str(), welcome.hash_id), (1, "n1", 1));
    assert!(welcome.server.starts_with("kiln/") && !welcome.cluster_id.is_empty());
    assert_eq!(welcome.capabilities, ["lz4", "invalidation"]);
    let limits = welcome.limits;
    assert_eq!((limits.value_max, limits.key_max), (2 << 20, 32_000));
    assert!(limits.frame_max >= limits.value_max + limits.key_max);
    assert!(limits.batch_max >= 100 && limits.scan_max >= 100 && limits.handles_max >= 8);
    // Whoever names the cluster is let in, too.
    let named = Hello { cluster_id: welcome.cluster_id, ..hello(&[]) };
    Native::silent(&node).hello(&named);
}

#[test]
fn a_hello_that_does_not_fit_is_refused_with_a_reason_and_the_connection_closes() {
    let node = Node::start(&[]);
    for bad in [
        Hello { magic: "klin".to_owned(), ..hello(&[]) },
        Hello { version_min: 2, version_max: 3, ..hello(&[]) },
        Hello { version_min: 0, version_max: 0, ..hello(&[]) },
        Hello { cluster_id: "another".to_owned(), ..hello(&[]) },
    ] {
        let mut client = Native::silent(&node);
        assert_eq!(client.call(|out, id| encode::hello(out, id, &bad)).error(), "bad-hello");
        client.assert_closed();
    }
    let mut client = Native::connect(&node);
    let again = hello(&[]);
    assert_eq!(client.call(|out, id| encode::hello(out, id, &again)).error(), "bad-hello");
    client.assert_closed();
}

#[test]
fn nothing_is_done_before_hello() {
    let node = Node::start(&[]);
    let requests: [fn(&mut Vec<u8>); 4] = [
        |out| encode::data(out, 1, &data(0, set(b"k", b"v"), Want::default())),
        |out| encode::bare(out, 1, Op::Ping),
        |out| encode::create_cache(out, 1, &spec("c")),
        |out| out.extend_from_slice(b"\0\0\0\x03\x92\x63\x01"),
    ];
    for request in requests {
        let mut client = Native::silent(&node);
        let mut out = Vec::new();
        request(&mut out);
        client.send(&out);
        let refusal = client.receive().unwrap();
        assert_eq!((refusal.id(), refusal.error()), (0, "bad-hello"));
        client.assert_closed();
    }
    let mut client = Native::connect(&node);
    assert_eq!(client.get("k").response(), Response::NotFound);
    assert_eq!(client.named(Op::ShowCache, "c").error(), "no-such-cache");
}

#[test]
fn a_node_with_users_lets_only_them_in() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann:se cret\n").unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let node = Node::start(&["--auth-file", file.path().to_str().unwrap()]);
    let with = |user: &str, password: &str| Hello {
        auth: Some(Credentials { user: user.to_owned(), password: password.to_owned() }),
        ..hello(&[])
    };
    for bad in [hello(&[]), with("ann", "secret"), with("ann se", "cret"), with("", "")] {
        let mut client = Native::silent(&node);
        let refusal = client.call(|out, id| encode::hello(out, id, &bad));
        assert_eq!(refusal.error(), "unauthenticated");
        client.assert_closed();
    }
    let mut client = Native::silent(&node);
    client.hello(&with("ann", "se cret"));
    assert!(client.set("k", "v").version() > 0);
    let refused = "kiln_commands_total{command=\"authenticate\",result=\"refused\"}";
    // ann:se cret
    assert_eq!(node.metric_for("YW5uOnNlIGNyZXQ=", refused), 4.0);
}

// ---- operations on items -------------------------------------------------------------------

#[test]
fn an_item_is_written_read_and_removed() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    assert_eq!(client.get("k").response(), Response::NotFound);
    let version = client
        .run(Command::Store(Store { flags: 7, ttl: Ttl::After(60_000), ..Store::set(b"k", b"v") }))
        .version();
    let hit = client.get("k");
    let Response::Value { version: read, flags, ttl_ms, value, .. } = hit.response() else {
        panic!("{:?}", hit.response())
    };
    assert_eq!((read, flags, value), (version, 7, Some(Value::Plain(b"v"))));
    assert!(ttl_ms.is_some_and(|ms| ms > 50_000 && ms <= 60_000));
    assert_eq!(client.delete("k").response(), Response::Deleted { old: None });
    assert_eq!(client.delete("k").response(), Response::NotFound);
}

#[test]
fn each_manner_of_writing_keeps_its_condition() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let mut write =
        |mode, value: &str| match client.run(store(mode, b"k", value.as_bytes())).response() {
            Response::Stored { .. } => true,
            Response::NotStored => false,
            other => panic!("{other:?}"),
        };
    assert!(!write(StoreMode::Replace, "0"));
    assert!(!write(StoreMode::Append, "0"));
    assert!(write(StoreMode::Add, "b"));
    assert!(!write(StoreMode::Add, "0"));
    assert!(write(StoreMode::Append, "c") && write(StoreMode::Prepend, "a"));
    assert_eq!(client.get("k").value(), b"abc");
}

#[test]
fn a_compared_version_decides_over_writes_deletes_and_numbers() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let compared =
        |compare| Command::Store(Store { compare: Some(compare), ..Store::set(b"k", b"new") });
    assert_eq!(client.run(compared(1)).response(), Response::NotFound);
    let version = client.set("k", "1").version();
    assert_eq!(client.run(compared(version + 1)).response(), Response::Exists);
    let delete = |compare| Command::Delete(Delete { compare, ..Delete::plain(b"k") });
    assert_eq!(client.run(delete(Some(version + 1))).response(), Response::Exists);
    let newer = client.run(compared(version)).version();
    assert!(newer > version);
    assert_eq!(client.get("k").value(), b"new");
    assert_eq!(client.run(delete(Some(newer))).response(), Response::Deleted { old: None });
}

#[test]
fn numbers_count_create_and_refuse_what_is_none() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let number = |frame: &common::native::Frame| match frame.response() {
        Response::Number { number, .. } => number,
        other => panic!("{other:?}"),
    };
    assert_eq!(client.run(increment(b"n", 1, None)).response(), Response::NotFound);
    assert_eq!(number(&client.run(increment(b"n", 1, Some((Ttl::Default, 40))))), 40);
    assert_eq!(number(&client.run(increment(b"n", 2, None))), 42);
    let Command::Arithmetic(up) = increment(b"n", 50, None) else { unreachable!() };
    let down = Command::Arithmetic(Arithmetic { direction: Direction::Decrement, ..up });
    assert_eq!(number(&client.run(down)), 0);
    client.set("n", "word");
    assert_eq!(client.run(increment(b"n", 1, None)).error(), "not-a-number");
    assert_eq!(client.get("n").value(), b"word");
}

#[test]
fn what_else_can_be_wanted_of_a_read_is_given() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    client.set("k", "12345");
    let want = Want { no_value: true, ..Want::default() };
    let head = client.run_in(0, get(b"k"), want);
    let Response::Value { value: None, extra, .. } = head.response() else {
        panic!("{:?}", head.response())
    };
    assert_eq!(extra.value_len, Some(5));
    let touching = Command::Get(Get { touch: Some(Ttl::After(9_000)), ..Get::plain(b"k") });
    client.run(touching);
    let left = |frame: common::native::Frame| match frame.response() {
        Response::Value { ttl_ms, .. } => ttl_ms,
        other => panic!("{other:?}"),
    };
    assert!(left(client.get("k")).is_some_and(|ms| ms <= 9_000));
    let touch = Command::Touch(Touch { key: b"k", ttl: Ttl::Never });
    assert!(matches!(client.run(touch).response(), Response::Touched { .. }));
    assert_eq!(left(client.get("k")), None);
    let late = Want { deadline_ms: Some(0), ..Want::default() };
    assert_eq!(client.run_in(0, set(b"k", b"late"), late).error(), "deadline-exceeded");
    assert_eq!(client.get("k").value(), b"12345");
}

#[test]
fn a_missing_item_is_refilled_by_one_reader() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let vivify = || Command::Get(Get { vivify: Some(Ttl::After(30_000)), ..Get::plain(b"k") });
    let mut refill = || match client.run(vivify()).response() {
        Response::Value { extra, .. } => extra.refill,
        other => panic!("{other:?}"),
    };
    use kiln_protocol::command::RefillRight;
    assert_eq!([refill(), refill()], [RefillRight::Won, RefillRight::Taken]);
}

#[test]
fn a_write_hands_back_what_it_replaced() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let want = Want { return_old: true, ..Want::default() };
    let old = |frame: &common::native::Frame| match frame.response() {
        Response::Stored { old, .. } | Response::Deleted { old } => old.map(|old| {
            let Value::Plain(value) = old.value else { panic!("{old:?}") };
            (old.version, old.flags, value.to_vec())
        }),
        other => panic!("{other:?}"),
    };
    assert_eq!(old(&client.run_in(0, set(b"k", b"first"), want)), None);
    let first = client.get("k").version();
    let second =
        client.run_in(0, Command::Store(Store { flags: 3, ..Store::set(b"k", b"second") }), want);
    assert_eq!(old(&second), Some((first, 0, b"first".to_vec())));
    let appended = client.run_in(0, store(StoreMode::Append, b"k", b"!"), want);
    assert_eq!(old(&appended), Some((second.version(), 3, b"second".to_vec())));
    let large = vec![b'x'; 100_000];
    client.run_in(0, set(b"k", &large), want);
    let deleted = client.run_in(0, Command::Delete(Delete::plain(b"k")), want);
    assert_eq!(old(&deleted).unwrap().2, large);
    let gone = client.run_in(0, Command::Delete(Delete::plain(b"k")), want);
    assert_eq!(gone.response(), Response::NotFound);
}

#[test]
fn what_changes_nothing_hands_back_nothing() {
    let node = Node::start(&["--max-item-size", "64KiB"]);
    let mut client = Native::connect(&node);
    let want = Want { return_old: true, ..Want::default() };
    for mode in [StoreMode::Replace, StoreMode::Append, StoreMode::Prepend] {
        let answer = client.run_in(0, store(mode, b"k", b"v"), want);
        assert_eq!(answer.response(), Response::NotStored);
    }
    let value = vec![b'x'; 64 << 10];
    client.set("k", &value);
    for mode in [StoreMode::Add, StoreMode::Append] {
        let answer = client.run_in(0, store(mode, b"k", b"v"), want);
        assert_eq!(answer.response(), Response::NotStored);
    }
    let other = Command::Store(Store { compare: Some(1), ..Store::set(b"k", b"v") });
    assert_eq!(client.run_in(0, other, want).response(), Response::Exists);
    assert_eq!(client.get("k").value(), value);
}

#[test]
fn old_values_handed_back_under_contention_form_one_history() {
    let node = Node::start(&["--threads", "2"]);
    let want = Want { return_old: true, ..Want::default() };
    let mut seen: Vec<(u64, Option<u64>)> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let address = node.address("native");
                scope.spawn(move || {
                    let mut client = Native::connect_at(address);
                    let mut seen = Vec::new();
                    while seen.len() < 300 {
                        let value = format!("{writer}:{}", seen.len());
                        let frame = client.run_in(0, set(b"k", value.as_bytes()), want);
                        match frame.response() {
                            Response::Stored { version, old } => {
                                seen.push((version, old.map(|old| old.version)));
                            }
                            Response::Error(failure) => {
                                assert_eq!(failure.effect, Effect::NotApplied);
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                    seen
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    seen.sort_unstable();
    assert_eq!(seen[0].1, None);
    for pair in seen.windows(2) {
        assert_eq!(pair[1].1, Some(pair[0].0), "each write replaced the one before it");
    }
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_older_one_stays() {
    let node = Node::start(&["--max-item-size", "64KiB"]);
    let mut client = Native::connect(&node);
    client.set("k", "old");
    let refused = client.set("k", vec![b'x'; (64 << 10) + 1]);
    assert_eq!(refused.error(), "value-too-large");
    assert_eq!(client.get("k").value(), b"old");
    assert!(client.set("k", vec![b'x'; 64 << 10]).version() > 0);
}

#[test]
fn keys_are_any_bytes_up_to_the_limit() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    for key in [&b"\0"[..], b"a b\r\n", &[0xff; 32_000], "schl\u{fc}ssel".as_bytes()] {
        assert!(client.set(key, "v").version() > 0);
        assert_eq!(client.get(key).value(), b"v");
    }
    for key in [&b""[..], &[b'k'; 32_001]] {
        assert_eq!(client.set(key, "v").error(), "bad-key");
    }
}

// ---- many at once --------------------------------------------------------------------------

#[test]
fn requests_split_at_any_byte_are_answered_alike() {
    let node = Node::start(&[]);
    let mut requests = Vec::new();
    let hello = hello(&[]);
    encode::hello(&mut requests, 1, &hello);
    encode::data(&mut requests, 2, &data(0, set(b"k", b"value"), Want::default()));
    encode::data(&mut requests, 3, &data(0, get(b"k"), Want::default()));
    let items = [get(b"k"), get(b"none")].map(|command| Item { command, want: Want::default() });
    encode::batch(&mut requests, 4, CacheRef::Handle(0), items.into_iter());
    encode::bare(&mut requests, 5, Op::Ping);
    encode::data(&mut requests, 6, &data(0, Command::Delete(Delete::plain(b"k")), Want::default()));
    for at in 1..requests.len() {
        let mut client = Native::silent(&node);
        client.send(&requests[..at]);
        thread::sleep(Duration::from_micros(200));
        client.send(&requests[at..]);
        let frames: Vec<_> = (0..6).map(|_| client.receive().unwrap()).collect();
        let ids: Vec<_> = frames.iter().map(common::native::Frame::id).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6], "split at {at}");
        assert_eq!(frames[2].value(), b"value");
        let Response::Batch(mut results) = frames[3].response() else { panic!("split at {at}") };
        assert!(matches!(results.next(), Some(Response::Value { .. })));
        assert_eq!(results.next(), Some(Response::NotFound));
        assert_eq!(frames[5].response(), Response::Deleted { old: None });
    }
}

#[test]
fn thousands_of_requests_in_flight_are_each_answered_once() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    const COUNT: u32 = 20_000;
    let mut writer = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut out = Vec::new();
        for id in 1..=COUNT {
            let key = (id % 100).to_be_bytes();
            let value = id.to_be_bytes();
            let command = if id % 3 == 0 { set(&key, &value) } else { get(&key) };
            encode::data(&mut out, id, &data(0, command, Want::default()));
        }
        writer.write_all(&out).unwrap();
    });
    let mut last = [0; 100];
    for id in 1..=COUNT {
        let frame = client.receive().unwrap();
        assert_eq!(frame.id(), id);
        let key = (id % 100) as usize;
        if id % 3 == 0 {
            assert!(matches!(frame.response(), Response::Stored { .. }));
            last[key] = id;
        } else if last[key] == 0 {
            assert_eq!(frame.response(), Response::NotFound);
        } else {
            assert_eq!(frame.value(), last[key].to_be_bytes());
        }
    }
    sender.join().unwrap();
}

#[test]
fn a_one_way_request_takes_effect_and_has_no_answer() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let mut out = Vec::new();
    encode::data(&mut out, 0, &data(0, set(b"k", b"v"), Want::default()));
    encode::data(&mut out, 0, &data(0, get(b"k"), Want::default()));
    encode::data(&mut out, 0, &data(0, increment(b"k", 1, None), Want::default()));
    encode::data(&mut out, 0, &data(9, get(b"k"), Want::default()));
    let items = [set(b"b", b"w")].map(|command| Item { command, want: Want::default() });
    encode::batch(&mut out, 0, CacheRef::Handle(0), items.into_iter());
    encode::bare(&mut out, 0, Op::Ping);
    client.send(&out);
    assert_eq!(client.get("k").value(), b"v");
    assert_eq!(client.get("b").value(), b"w");
}

#[test]
fn a_batch_answers_each_operation_in_its_place() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let plain = |command| Item { command, want: Want::default() };
    let items = [
        plain(set(b"a", b"1")),
        plain(get(b"a")),
        plain(get(b"none")),
        plain(increment(b"a", 1, None)),
        plain(store(StoreMode::Add, b"a", b"x")),
        Item { command: get(b"a"), want: Want { no_value: true, ..Want::default() } },
        Item { command: set(b"a", b"y"), want: Want { return_old: true, ..Want::default() } },
        plain(Command::Delete(Delete::plain(b"a"))),
    ];
    let batch = |out: &mut Vec<u8>, id| {
        encode::batch(out, id, CacheRef::Handle(0), items.into_iter());
    };
    let frame = client.call(batch);
    let Response::Batch(results) = frame.response() else { panic!("{:?}", frame.response()) };
    let results: Vec<_> = results.collect();
    assert!(matches!(results[0], Response::Stored { old: None, .. }));
    assert!(matches!(results[1], Response::Value { value: Some(Value::Plain(b"1")), .. }));
    assert_eq!(results[2], Response::NotFound);
    assert!(matches!(results[3], Response::Number { number: 2, .. }));
    assert_eq!(results[4], Response::NotStored);
    assert!(matches!(results[5], Response::Value { value: None, .. }));
    assert!(matches!(
        results[6],
        Response::Stored { old: Some(old), .. } if old.value == Value::Plain(b"2")
    ));
    assert_eq!(results[7], Response::Deleted { old: None });
}

#[test]
fn a_batch_over_its_limits_is_refused_or_answered_as_far_as_a_frame_goes() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::silent(&node);
    let limits = client.hello(&hello(&[])).limits;
    let many = |count: u64, key: &'static [u8]| {
        move |out: &mut Vec<u8>, id| {
            let items: Vec<_> =
                (0..count).map(|_| Item { command: get(key), want: Want::default() }).collect();
            encode::batch(out, id, CacheRef::Handle(0), items.into_iter());
        }
    };
    assert_eq!(client.call(many(limits.batch_max + 1, b"k")).error(), "bad-argument");

    client.set("k", vec![b'v'; 10_000]);
    let frame = client.call(many(limits.batch_max, b"k"));
    assert!(frame.0.len() as u64 <= limits.frame_max, "{} bytes", frame.0.len());
    let Response::Batch(results) = frame.response() else { panic!("{:?}", frame.response()) };
    assert_eq!(results.len() as u64, limits.batch_max);
    let (mut hits, mut busy) = (0, 0);
    for result in results {
        match result {
            Response::Value { value: Some(value), .. } if value.len() == 10_000 => hits += 1,
            Response::Error(failure) if failure.code.name() == "busy" => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(hits >= 20 && busy > 0, "{hits} hits, {busy} refused");
}

#[test]
fn large_values_come_whole_and_in_order_among_small_ones() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    let values: Vec<Vec<u8>> =
        [10, 5_000, 300_000, 1 << 20].map(|len| (0..len).map(|i| (i * 7) as u8).collect()).into();
    for (number, value) in values.iter().enumerate() {
        client.set(format!("k{number}"), value);
    }
    let asked: Vec<usize> = (0..80).map(|i| [0, 1, 3, 2, 1, 0][i % 6]).collect();
    let mut out = Vec::new();
    for (id, number) in (1..).zip(&asked) {
        let key = format!("k{number}");
        encode::data(&mut out, id, &data(0, get(key.as_bytes()), Want::default()));
    }
    client.send(&out);
    // Far more than the sockets hold: the node has to wait, and to go on.
    thread::sleep(Duration::from_millis(200));
    for (id, number) in (1..).zip(&asked) {
        let frame = client.receive().unwrap();
        assert_eq!(frame.id(), id);
        assert!(frame.value() == values[*number], "k{number}");
    }
    assert_eq!(node.metric("kiln_values_pinned"), 0.0);
}

// ---- compression ---------------------------------------------------------------------------

#[test]
fn values_travel_compressed_both_ways_and_are_kept_plain() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::silent(&node);
    let limits = client.hello(&hello(&["lz4"])).limits;
    for len in [1_000, limits.compress_min as usize, 40_000, 300_000] {
        let text: Vec<u8> = (0..len).map(|i| b"abcdefgh"[i / 64 % 8]).collect();
        let mut scratch = Vec::new();
        let Some(Value::Lz4 { len: inflated, block }) = compress(&text, &mut scratch) else {
            panic!("this compresses well")
        };
        let want = Want { inflated_len: Some(inflated), ..Want::default() };
        assert!(client.run_in(0, set(b"k", block), want).version() > 0);
        // Other front ends read the value itself.
        let reply = node.connect().ask("mg k s\r\n");
        assert_eq!(reply, format!("HD s{len}\r\n"));
        let frame = client.get("k");
        match frame.response() {
            Response::Value { value: Some(Value::Lz4 { len: inflated, block }), .. } => {
                assert!(len >= limits.compress_min as usize);
                let mut plain = Vec::new();
                inflate(block, inflated as usize, len, &mut plain).unwrap();
                assert!(plain == text);
            }
            Response::Value { value: Some(Value::Plain(plain)), .. } => {
                assert!(len < limits.compress_min as usize && plain == text);
            }
            other => panic!("{other:?}"),
        }
        // Who did not agree gets it plain.
        assert!(Native::connect(&node).get("k").value() == text);
    }
    // What does not compress is sent as it is.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(50_000)
    .collect();
    client.set("noise", &noise);
    assert!(client.get("noise").value() == noise);
}

#[test]
fn a_compressed_value_that_lies_is_refused() {
    let node = Node::start(&["--max-item-size", "64KiB"]);
    let mut client = Native::silent(&node);
    client.hello(&hello(&["lz4"]));
    client.set("k", "old");
    let mut scratch = Vec::new();
    let Some(Value::Lz4 { block, .. }) = compress(&[b'x'; 10_000], &mut scratch) else { panic!() };
    let claim = |len| Want { inflated_len: Some(len), ..Want::default() };
    assert_eq!(client.run_in(0, set(b"k", block), claim(9_999)).error(), "bad-argument");
    assert_eq!(client.run_in(0, set(b"k", block), claim(10_001)).error(), "bad-argument");
    assert_eq!(client.run_in(0, set(b"k", b"\xff\xff"), claim(10)).error(), "bad-argument");
    assert_eq!(client.run_in(0, set(b"k", block), claim(65_537)).error(), "value-too-large");
    assert_eq!(client.run_in(0, set(b"k", block), claim(u32::MAX)).error(), "value-too-large");
    assert_eq!(client.get("k").value(), b"old");
    let mut other = Native::connect(&node);
    assert_eq!(other.run_in(0, set(b"k", block), claim(10_000)).error(), "bad-argument");
}

// ---- scans ---------------------------------------------------------------------------------

#[test]
fn a_scan_tells_every_item_with_its_value() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    for number in 0..2_000 {
        let len = if number % 100 == 0 { 30_000 } else { number % 50 };
        client.set(format!("user:{number}"), vec![b'u'; len]);
        client.set(format!("order:{number}"), "x");
    }
    for limit in [1, 10, 1_000, u32::MAX] {
        let mut found: Vec<_> = client
            .scan_all(0, limit, b"user:")
            .into_iter()
            .map(|item| {
                let value = item.value.map_or(item.value_len, |value| value.len() as u64);
                (String::from_utf8(item.key).unwrap(), value)
            })
            .collect();
        found.sort();
        found.dedup();
        let mut expected: Vec<_> = (0..2_000_u64)
            .map(|number| {
                let len = if number % 100 == 0 { 30_000 } else { number % 50 };
                (format!("user:{number}"), len)
            })
            .collect();
        expected.sort();
        assert!(found == expected, "limit {limit}: {} of {}", found.len(), expected.len());
    }
    assert_eq!(client.scan_all(0, 100, b"nobody").len(), 0);
    assert!(client.scan_all(0, 1_000, b"").len() >= 4_000);
}

#[test]
fn pages_of_a_scan_stay_within_a_frame_also_with_long_keys_and_values() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::silent(&node);
    let limits = client.hello(&hello(&[])).limits;
    for number in 0..60_u8 {
        let mut key = vec![number; 30_000];
        key[0] = b'k';
        client.set(&key, vec![b'v'; 200_000]);
        client.set([b's', number], vec![b'v'; 10_000]);
    }
    let (mut cursor, mut keys, mut values) = (None::<Vec<u8>>, Vec::new(), 0);
    loop {
        let cache = CacheRef::Handle(0);
        let scan =
            Scan { cache, cursor: cursor.as_deref(), limit: 1_000, prefix: b"", values: true };
        let frame = client.call(|out, id| encode::scan(out, id, &scan));
        assert!(frame.0.len() as u64 <= limits.frame_max, "{} bytes", frame.0.len());
        let Response::Page { cursor: next, entries } = frame.response() else { panic!() };
        for entry in entries {
            keys.push(entry.key.to_vec());
            values += usize::from(entry.value.is_some());
        }
        match next {
            Some(next) => cursor = Some(next.to_vec()),
            None => break,
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 120);
    assert!(values > 60, "{values} with values");
}

#[test]
fn a_cursor_of_another_cache_is_refused() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    client.create(&spec("other"));
    for cursor in [&b""[..], b"x", &[0xff; 14], &[0; 13], &[0; 64]] {
        let scan = Scan {
            cache: CacheRef::Name("other"),
            cursor: Some(cursor),
            limit: 10,
            prefix: b"",
            values: false,
        };
        let frame = client.call(|out, id| encode::scan(out, id, &scan));
        assert_eq!(frame.error(), "bad-argument", "{cursor:?}");
    }
}

// ---- what goes wrong -----------------------------------------------------------------------

#[test]
fn a_request_that_cannot_be_read_is_answered_and_the_connection_goes_on() {
    let node = Node::start(&[]);
    let mut client = Native::connect(&node);
    for (body, error) in [
        (&b"\x92\x63\x07"[..], "unknown-operation"),
        (b"\x92\x01\x07", "malformed"),
        (b"\x94\x01\x07\x00\x2a", "malformed"),
        (b"\x93\x01\x07\x00", "malformed"),
        (b"\x93\x20\x07\x05", "bad-argument"),
        (b"\x93\x20\x07\x80", "bad-argument"),
        (b"\x94\x01\x07\x00\xc4\x00", "malformed"),
    ] {
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        client.send(&frame);
        let answer = client.receive().unwrap();
        assert_eq!(answer.id(), 7, "{body:x?}");
        let Response::Error(failure) = answer.response() else { panic!("{body:x?}") };
        assert_eq!(failure.effect, Effect::NotApplied);
        assert!(
            failure.code.name() == error || failure.code.name() == "bad-key",
            "{body:x?}: {failure:?}"
        );
    }
    assert_eq!(client.bare(Op::Ping).response(), Response::Ok(b""));
    assert!(node.metric("kiln_protocol_errors_total") >= 6.0);
}

#[test]
fn a_stream_that_cannot_be_followed_ends_with_a_reason() {
    let node = Node::start(&[]);
    let limits = Native::silent(&node).hello(&hello(&[])).limits;
    let over = (limits.frame_max as u32 + 1).to_be_bytes();
    for (bytes, error) in [
        (&over[..], "frame-too-large"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame-too-large"),
        (b"\0\0\0\0", "malformed"),
        (b"\0\0\0\x01\xc0", "malformed"),
        (b"\0\0\0\x05hello", "malformed"),
    ] {
        let mut client = Native::connect(&node);
        client.set("k", "v");
        client.send(bytes);
        let refusal = client.receive().unwrap();
        assert_eq!((refusal.id(), refusal.error()), (0, error), "{bytes:x?}");
        client.assert_closed();
    }
    // Before hello much less is believed.
    let mut client = Native::silent(&node);
    client.send(&100_000_u32.to_be_bytes());
    assert_eq!(client.receive().unwrap().error(), "frame-too-large");
    client.assert_closed();
}

#[test]
fn what_is_turned_off_or_not_there_is_refused_by_name() {
    let node = Node::start(&["--disable-flush"]);
    let mut client = Native::connect(&node);
    let flush = client.call(|out, id| encode::flush(out, id, CacheRef::Handle(0)));
    assert_eq!(flush.error(), "forbidden");
    let unknown = client.run_in(5, get(b"k"), Want::default());
    assert_eq!(unknown.error(), "no-such-cache");
}

#[test]
fn limits_of_connections_and_idleness_hold_for_native_clients_too() {
    let node = Node::start(&["--max-connections", "2", "--idle-timeout", "2s"]);
    let begun = Instant::now();
    let mut first = Native::connect(&node);
    let _second = node.connect();
    let mut third = Native::silent(&node);
    assert_eq!(third.receive().unwrap().error(), "busy");
    third.assert_closed();
    first.assert_closed();
    assert!(begun.elapsed() >= Duration::from_millis(1_900));
    eventually("there is room again", || node.metric("kiln_connections") == 0.0);
    let mut conns = node.connect();
    let _native = Native::connect(&node);
    conns.send("stats conns\r\n");
    let mut listed = String::new();
    loop {
        let line = conns.line();
        listed.push_str(&line);
        if line == "END\r\n" || line.is_empty() {
            break;
        }
    }
    assert!(listed.contains(&format!("listen_addr tcp:{}", node.address("native"))), "{listed}");
}

// ---- the node ------------------------------------------------------------------------------

#[test]
fn the_topology_of_one_node_owns_everything_and_is_pushed_when_it_changes() {
    let node = Node::start(&["--name", "n1", "--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    let view: TopologyView = client.bare(Op::Topology).structure();
    assert_eq!((view.partitions, view.hash_id, view.nodes.len()), (1024, 1, 1));
    assert_eq!(view.nodes[0].native, node.field("native"));
    assert_eq!(view.nodes[0].memcached, node.field("memcached"));
    assert_eq!((view.nodes[0].name.as_str(), view.nodes[0].state.as_str()), ("n1", "ready"));
    let group = &view.groups[view.caches[0].group as usize];
    assert!(group.owners.len() == 1024 && group.owners.iter().all(|owners| *owners == [0]));

    let pushed = |frame: &common::native::Frame| match frame.response() {
        Response::Push(Push::Topology(bytes)) => admin::get::<TopologyView>(bytes).unwrap(),
        other => panic!("{other:?}"),
    };
    let subscribe = Subscribe { topology: true };
    client.call(|out, id| encode::subscribe(out, id, &subscribe));
    assert_eq!(pushed(&client.receive().unwrap()).epoch, view.epoch);
    let mut other = Native::connect(&node);
    other.create(&spec("users"));
    // Made once, it is no news again.
    other.create(&spec("users"));
    let with = pushed(&client.receive().unwrap());
    assert!(with.epoch > view.epoch && with.caches.iter().any(|cache| cache.name == "users"));
    other.named(Op::DropCache, "users");
    let without = pushed(&client.receive().unwrap());
    assert!(without.epoch == with.epoch + 1 && without.caches.len() == 1);
    client.call(|out, id| encode::subscribe(out, id, &Subscribe { topology: false }));
    other.create(&spec("users"));
    assert_eq!(client.bare(Op::Ping).response(), Response::Ok(b""));
}

#[test]
fn figures_of_the_node_tell_what_was_done_and_which_keys_stand_out() {
    let node = Node::start(&["--name", "n1", "--memory", "64MiB", "--threads", "1"]);
    let mut client = Native::connect(&node);
    client.set("large", vec![b'x'; 200_000]);
    for number in 0..3_000_u32 {
        client.set(number.to_be_bytes(), "x");
        client.get("hot");
    }
    let mut memcached = node.connect();
    assert_eq!(memcached.ask("get hot\r\n"), "END\r\n");
    let info: NodeInfo = client.bare(Op::Info).structure();
    assert_eq!((info.name.as_str(), info.pid, info.threads), ("n1", node.pid(), 1));
    assert_eq!((info.memory, info.connections, info.connections_total), (64 << 20, 2, 2));
    assert!(info.uptime_ms > 0 && info.resident > 1 << 20);
    assert!(info.bytes_read > 60_000 && info.bytes_written > 60_000);
    let operations: Vec<_> =
        info.operations.iter().map(|of| (of.protocol.as_str(), of.operations)).collect();
    assert_eq!(operations, [("memcached", 1), ("native", 6_001)]);
    let latency = &info.operations[1].latency_us;
    assert!(latency.len() == 4 && latency.is_sorted() && latency[0] > 0.0, "{latency:?}");
    let default = &info.caches[0];
    assert_eq!((default.spec.name.as_str(), default.items), ("default", 3_001));
    assert_eq!((default.hits, default.misses, default.stores), (0, 3_001, 3_001));
    assert_eq!(info.largest[0].key, b"large");
    assert_eq!((info.largest[0].cache.as_str(), info.largest[0].amount), ("default", 200_000));
    assert_eq!(info.hottest[0].key, b"hot");
    let hot = info.hottest[0].amount;
    assert!((1_000..9_000).contains(&hot), "{hot} of 3,000");
}

#[test]
fn a_node_that_stops_says_goodbye_and_finishes_what_is_in_flight() {
    let mut node = Node::start(&[]);
    let mut client = Native::connect(&node);
    let mut busy = Native::connect(&node);
    let mut request = Vec::new();
    encode::data(&mut request, 1, &data(0, set(b"k", b"value"), Want::default()));
    busy.send(&request[..10]);
    eventually("the half request is there", || node.metric("kiln_received_bytes_total") > 0.0);
    node.signal(Signal::TERM);
    let goodbye = client.receive().unwrap();
    assert!(matches!(goodbye.response(), Response::Push(Push::Goodbye { .. })));
    // What was on its way is still served.
    assert!(client.set("last", "word").version() > 0);
    client.assert_closed();
    assert!(matches!(busy.receive().unwrap().response(), Response::Push(Push::Goodbye { .. })));
    busy.send(&request[10..]);
    assert!(matches!(busy.receive().unwrap().response(), Response::Stored { .. }));
    busy.assert_closed();
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn an_idle_native_client_does_not_use_up_the_grace() {
    let mut node = Node::start(&[]);
    let mut silent = Native::silent(&node);
    let mut idle = Native::connect(&node);
    let begun = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    silent.assert_closed();
    assert!(matches!(idle.receive().unwrap().response(), Response::Push(Push::Goodbye { .. })));
    idle.assert_closed();
}
