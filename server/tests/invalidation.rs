//! Clients that keep values near themselves are told when they change, whoever changes them, and
//! before anything that is answered later.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    Node,
    native::{Frame, Native, data, get, set, spec, store},
};
use kiln_protocol::{
    command::{Arithmetic, Command, Delete, Direction, Get, StoreMode, Touch, Ttl},
    native::{CacheRef, INVALIDATION_SLOTS, Item, Op, Push, Response, Want, encode},
};

const TRACK: Want = Want {
    inflated_len: None,
    return_old: false,
    no_value: false,
    track: true,
    retry: None,
    deadline_ms: None,
};

fn slot(key: &[u8]) -> u32 {
    kiln_engine::Store::hash(key) as u32 & (INVALIDATION_SLOTS - 1)
}

/// The cache and slots of an invalidation; `None` for all slots.
fn invalidated(frame: &Frame) -> (u32, Option<Vec<u32>>) {
    match frame.response() {
        Response::Push(Push::Invalidate(push)) => (push.cache, push.slots.map(Iterator::collect)),
        other => panic!("no invalidation: {other:?}"),
    }
}

/// What the node had to say before it answered a ping sent now.
fn told(client: &mut Native) -> Vec<(u32, Option<Vec<u32>>)> {
    let (pushes, pong) = client.call_and_pushes(|out, id| encode::bare(out, id, Op::Ping));
    assert_eq!(pong.response(), Response::Ok(b""));
    pushes.iter().map(invalidated).collect()
}

#[test]
fn every_kind_of_write_is_told_to_who_tracks_and_to_nobody_else() {
    let node = Node::start(&[]);
    let (mut near, mut plain) = (Native::connect(&node), Native::connect(&node));
    let mut writer = Native::connect(&node);
    let arithmetic = Command::Arithmetic(Arithmetic {
        key: b"k",
        direction: Direction::Increment,
        delta: 1,
        compare: None,
        version: None,
        create: None,
        touch: None,
    });
    let writes = [
        set(b"k", b"1"),
        arithmetic,
        store(StoreMode::Append, b"k", b"0"),
        store(StoreMode::Replace, b"k", b"5"),
        Command::Touch(Touch { key: b"k", ttl: Ttl::After(60_000) }),
        Command::Get(Get { touch: Some(Ttl::Never), ..Get::plain(b"k") }),
        Command::Delete(Delete { invalidate: true, ..Delete::plain(b"k") }),
        Command::Delete(Delete::plain(b"k")),
    ];
    for write in writes {
        near.run_in(0, get(b"k"), TRACK);
        plain.get("k");
        writer.run(write);
        let expected = (0, Some(vec![slot(b"k")]));
        assert_eq!(told(&mut near), [expected], "{write:?}");
        assert_eq!(told(&mut plain), []);
        // Once only: the next has to be asked for.
        writer.run(set(b"k", b"9"));
        assert_eq!(told(&mut near), []);
    }
    // Batches write as well.
    near.run_in(0, get(b"k"), TRACK);
    let items = [set(b"k", b"b")].map(|command| Item { command, want: Want::default() });
    writer.call(|out, id| encode::batch(out, id, CacheRef::Handle(0), items.into_iter()));
    assert_eq!(told(&mut near).len(), 1);
}

#[test]
fn writes_by_memcached_clients_are_told_too() {
    let node = Node::start(&[]);
    let mut near = Native::connect(&node);
    let mut memcached = node.connect();
    for (request, reply) in [
        ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
        ("ms k 1 T0\r\n2\r\n", "HD\r\n"),
        ("incr k 1\r\n", "3\r\n"),
        ("append k 0 0 1\r\n4\r\n", "STORED\r\n"),
        ("touch k 1000\r\n", "TOUCHED\r\n"),
        ("md k\r\n", "HD\r\n"),
    ] {
        near.run_in(0, get(b"k"), TRACK);
        assert_eq!(memcached.ask(request), reply);
        assert_eq!(told(&mut near), [(0, Some(vec![slot(b"k")]))], "{request}");
    }
    near.run_in(0, get(b"k"), TRACK);
    assert_eq!(memcached.ask("flush_all\r\n"), "OK\r\n");
    assert_eq!(told(&mut near), [(0, None)]);
}

#[test]
fn a_push_comes_by_itself_to_a_client_that_waits() {
    let node = Node::start(&["--threads", "2"]);
    let (mut near, mut writer) = (Native::connect(&node), Native::connect(&node));
    for round in 0..200 {
        near.run_in(0, get(b"k"), TRACK);
        writer.set("k", format!("{round}"));
        let push = near.receive().unwrap();
        assert_eq!(invalidated(&push), (0, Some(vec![slot(b"k")])));
    }
}

#[test]
fn a_flush_is_told_now_or_when_it_happens() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut near = Native::connect(&node);
    let mut writer = Native::connect(&node);
    near.create(&spec("other"));
    let other = near.open("other");
    near.run_in(0, get(b"k"), TRACK);
    near.run_in(other, get(b"k"), TRACK);
    writer.call(|out, id| encode::flush(out, id, CacheRef::Name("other")));
    assert_eq!(told(&mut near), [(other, None)]);
    assert_eq!(node.connect().ask("flush_all 1\r\n"), "OK\r\n");
    assert_eq!(told(&mut near), []);
    let begun = Instant::now();
    assert_eq!(invalidated(&near.receive().unwrap()), (0, None));
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_cache_that_is_dropped_is_told_though_its_handle_is_given_up_at_once() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut near = Native::connect(&node);
    for name in ["a", "b"] {
        near.create(&spec(name));
    }
    let handle = near.open("a");
    near.run_in(handle, get(b"k"), TRACK);
    let mut out = Vec::new();
    encode::named(&mut out, 11, Op::DropCache, "a");
    encode::named(&mut out, 12, Op::OpenCache, "b");
    encode::bare(&mut out, 13, Op::Ping);
    near.send(&out);
    let mut told = Vec::new();
    loop {
        let frame = near.receive().unwrap();
        match frame.id() {
            0 => told.push(invalidated(&frame)),
            13 => break,
            _ => assert!(matches!(frame.response(), Response::Ok(_))),
        }
    }
    assert_eq!(told, [(handle, None)]);
}

#[test]
fn tracking_names_the_cache_by_its_handle_and_ends_with_the_connection() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut near = Native::connect(&node);
    near.create(&spec("a"));
    let by_name =
        kiln_protocol::native::Data { cache: CacheRef::Name("a"), ..data(0, get(b"k"), TRACK) };
    let refused = near.call(|out, id| encode::data(out, id, &by_name));
    assert_eq!(refused.error(), "bad-argument");
    let handle = near.open("a");
    near.call(|out, id| encode::data(out, id, &by_name));
    let mut writer = Native::connect(&node);
    let there = writer.open("a");
    writer.run_in(there, set(b"k", b"v"), Want::default());
    // Writes to a key of the same name in another cache are no news.
    writer.set("k", "v");
    assert_eq!(told(&mut near), [(handle, Some(vec![slot(b"k")]))]);

    // Places are bounded, and free again when connections end.
    let most: Vec<_> = (0..64)
        .map(|_| {
            let mut client = Native::connect(&node);
            let answer = client.run_in(0, get(b"k"), TRACK);
            assert!(matches!(answer.response(), Response::Value { .. }));
            client
        })
        .collect();
    let mut late = Native::connect(&node);
    assert_eq!(late.run_in(0, get(b"k"), TRACK).error(), "limit-reached");
    assert_eq!(late.get("k").value(), b"v");
    drop(most);
    common::eventually("a place is free", || {
        matches!(late.run_in(0, get(b"k"), TRACK).response(), Response::Value { .. })
    });
    writer.set("k", "w");
    assert_eq!(told(&mut late).len(), 1);
}

#[test]
fn more_news_than_a_client_takes_become_one_that_says_everything() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut near = Native::connect(&node);
    let keys: Vec<[u8; 4]> = (0..30_000_u32).map(u32::to_be_bytes).collect();
    for batch in keys.chunks(1_000) {
        let items = batch.iter().map(|key| Item { command: get(key), want: TRACK });
        near.call(|out, id| encode::batch(out, id, CacheRef::Handle(0), items));
    }
    // It does not read meanwhile; sockets, output and mailbox fill up.
    let mut writer = Native::connect(&node);
    for _ in 0..3 {
        for batch in keys.chunks(1_000) {
            let items =
                batch.iter().map(|key| Item { command: set(key, b"v"), want: Want::default() });
            writer.call(|out, id| encode::batch(out, id, CacheRef::Handle(0), items));
        }
    }
    let mut missing: std::collections::HashSet<u32> = keys.iter().map(|key| slot(key)).collect();
    for (cache, slots) in told(&mut near) {
        assert_eq!(cache, 0);
        match slots {
            Some(slots) => missing.retain(|slot| !slots.contains(slot)),
            None => missing.clear(),
        }
    }
    assert!(missing.is_empty(), "{} slots were not told", missing.len());
}

/// The rule that near caches live by: what was acknowledged to a writer before a ping was sent is
/// known when that ping is answered.
#[test]
fn a_near_cache_is_never_older_than_its_last_answered_ping() {
    const KEYS: usize = 16;
    let node = Node::start(&["--threads", "2"]);
    let address = node.address("native");
    let acknowledged: [AtomicU64; KEYS] = std::array::from_fn(|_| AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let key = |number: usize| format!("key{number}").into_bytes();
    let (mut served, mut refreshed) = (0_u64, 0_u64);
    thread::scope(|scope| {
        // One writer for each key, so that its values are in order; two ways in.
        for writer in 0..2 {
            let (acknowledged, stop, key) = (&acknowledged, &stop, &key);
            scope.spawn(move || {
                let mut client = Native::connect_at(address);
                for count in 1_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    for number in (writer..KEYS).step_by(2) {
                        client.set(key(number), count.to_be_bytes());
                        acknowledged[number].store(count, Ordering::SeqCst);
                    }
                    // Pauses, so that values also stay for a while.
                    thread::sleep(Duration::from_micros(200 * (count % 4)));
                }
            });
        }
        let mut near = Native::connect_at(address);
        let mut kept: HashMap<usize, u64> = HashMap::new();
        let by_slot: HashMap<u32, usize> = (0..KEYS).map(|n| (slot(&key(n)), n)).collect();
        let forget = |kept: &mut HashMap<usize, u64>, slots: &[u32]| {
            kept.retain(|number, _| !slots.iter().any(|slot| by_slot[slot] == *number));
        };
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            let before: Vec<u64> =
                acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).collect();
            for (_, slots) in told(&mut near) {
                match slots {
                    None => kept.clear(),
                    Some(slots) => forget(&mut kept, &slots),
                }
            }
            for (number, count) in &kept {
                assert!(*count >= before[*number], "key{number}: {count} < {}", before[*number]);
                served += 1;
            }
            for number in 0..KEYS {
                if kept.contains_key(&number) {
                    continue;
                }
                let key = key(number);
                let (pushes, answer) = near
                    .call_and_pushes(|out, id| encode::data(out, id, &data(0, get(&key), TRACK)));
                refreshed += 1;
                let fresh = match answer.response() {
                    Response::NotFound => None,
                    _ => Some(u64::from_be_bytes(answer.value().try_into().unwrap())),
                };
                kept.extend(fresh.map(|fresh| (number, fresh)));
                // Pushed before the answer: perhaps about it. It may be too old to keep.
                for (_, slots) in pushes.iter().map(invalidated) {
                    forget(&mut kept, &slots.unwrap());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{served} values served near, {refreshed} read");
    assert!(served > 1_000 && refreshed > 1_000, "{served} served, {refreshed} read");
}
