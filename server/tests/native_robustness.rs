//! Native clients that send garbage, stop half way, do not read or are flooded do no harm to
//! others, and get what they are due.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    Node, SOON, eventually,
    native::{Native, data, get, hello, set},
};
use kiln_protocol::native::{CacheRef, Item, Op, Push, Response, Want, encode};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

/// A good client is answered within this, which is far more than it takes.
const PATIENCE: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;

fn resident_mib(node: &Node) -> f64 {
    node.metric("process_resident_memory_bytes") / MIB
}

/// Asks small questions while `harm` goes on, and again afterwards.
fn while_others_are_served(node: &Node, harm: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let address = node.address("native");
    thread::scope(|scope| {
        let good = scope.spawn(|| {
            let (mut slowest, mut asked) = (Duration::ZERO, 0_u64);
            while !stop.load(Ordering::Relaxed) || asked < 10 {
                let begun = Instant::now();
                let mut client = Native::connect_at(address);
                client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
                for _ in 0..20 {
                    let value = asked.to_string();
                    assert!(client.set("good", &value).version() > 0);
                    assert_eq!(client.get("good").value(), value.as_bytes());
                    asked += 1;
                }
                slowest = slowest.max(begun.elapsed());
                thread::sleep(Duration::from_millis(5));
            }
            (slowest, asked)
        });
        // The good client must be let go whatever becomes of this.
        let harmed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(harm));
        stop.store(true, Ordering::Relaxed);
        let (slowest, asked) = good.join().unwrap();
        println!("a good client asked {asked} times meanwhile, slowest 20 answers {slowest:?}");
        assert!(slowest < PATIENCE, "{slowest:?}");
        if let Err(panic) = harmed {
            std::panic::resume_unwind(panic);
        }
    });
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Requests of every kind, as a client might send them.
fn some_requests() -> Vec<u8> {
    let mut out = Vec::new();
    let track = Want { track: true, return_old: true, ..Want::default() };
    encode::data(&mut out, 2, &data(0, set(b"key", b"value"), track));
    encode::data(&mut out, 3, &data(0, get(b"key"), track));
    let items = [get(b"a"), set(b"b", b"c")].map(|command| Item { command, want: track });
    encode::batch(&mut out, 4, CacheRef::Handle(0), items.into_iter());
    encode::bare(&mut out, 5, Op::Info);
    encode::bare(&mut out, 6, Op::Topology);
    encode::named(&mut out, 7, Op::OpenCache, "default");
    encode::create_cache(&mut out, 8, &common::native::spec("default"));
    out
}

#[test]
fn clients_that_send_garbage_do_no_harm() {
    let node = Node::start(&["--memory", "32MiB"]);
    let requests = some_requests();
    while_others_are_served(&node, || {
        for seed in 0..120 {
            let mut state = seed;
            let mut garbage = Vec::new();
            if seed % 4 > 0 {
                encode::hello(&mut garbage, 1, &hello(&["lz4", "invalidation", "topology"]));
            }
            while garbage.len() < 20_000 {
                if seed % 2 == 0 {
                    // Frames of a good length around bytes that mean nothing.
                    let len = next(&mut state) % 60;
                    garbage.extend(u32::to_be_bytes(len as u32));
                    garbage.extend((0..len).map(|_| next(&mut state) as u8));
                } else {
                    // Good requests with some bytes changed.
                    let start = garbage.len();
                    garbage.extend_from_slice(&requests);
                    for _ in 0..1 + next(&mut state) % 3 {
                        let at = start + (next(&mut state) as usize) % requests.len();
                        // Lengths stay as they are, mostly.
                        if garbage[at] != 0 || seed % 8 == 1 {
                            garbage[at] = next(&mut state) as u8;
                        }
                    }
                }
            }
            let mut stream = TcpStream::connect(node.address("native")).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut reader = stream.try_clone().unwrap();
            let answers = thread::spawn(move || {
                let mut answers = Vec::new();
                let _ = reader.read_to_end(&mut answers);
                answers.len()
            });
            let _ = stream.write_all(&garbage);
            let _ = stream.shutdown(Shutdown::Write);
            answers.join().unwrap();
        }
    });
    assert!(node.metric("kiln_protocol_errors_total") > 100.0);
    eventually("all are gone", || node.metric("kiln_connections") == 0.0);
}

#[test]
fn clients_that_do_not_read_their_answers_cannot_grow_memory() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    client.set("small", vec![b'x'; 4_000]);
    client.set("large", vec![b'x'; 1 << 20]);
    let before = resident_mib(&node);
    while_others_are_served(&node, || {
        let mut greedy = Vec::new();
        for number in 0..60 {
            let mut client = Native::connect(&node);
            let mut requests = Vec::new();
            for id in 1..500 {
                match number % 3 {
                    0 => encode::data(&mut requests, id, &data(0, get(b"large"), Want::default())),
                    1 => encode::data(&mut requests, id, &data(0, get(b"small"), Want::default())),
                    _ => {
                        let items = [get(b"small"); 100];
                        let items = items.map(|command| Item { command, want: Want::default() });
                        encode::batch(&mut requests, id, CacheRef::Handle(0), items.into_iter());
                    }
                }
            }
            client.stream.set_nonblocking(true).unwrap();
            let (mut sent, begun) = (0, Instant::now());
            while sent < requests.len() && begun.elapsed() < Duration::from_millis(100) {
                match client.stream.write(&requests[sent..]) {
                    Ok(len) => sent += len,
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
            greedy.push(client);
        }
        thread::sleep(Duration::from_millis(500));
        let after = resident_mib(&node);
        println!("RSS {before:.1} MiB, with 60 clients that do not read {after:.1} MiB");
        assert!(after < before + 40.0, "{before:.1} MiB before, {after:.1} MiB now");
    });
    eventually("all are gone", || node.metric("kiln_connections") <= 1.0);
    assert_eq!(node.metric("kiln_values_pinned"), 0.0);
}

#[test]
fn clients_that_never_finish_their_frames_do_no_harm() {
    let node = Node::start(&["--memory", "64MiB"]);
    let before = resident_mib(&node);
    while_others_are_served(&node, || {
        let mut unfinished = Vec::new();
        for number in 0..200 {
            let mut client =
                if number % 5 == 0 { Native::silent(&node) } else { Native::connect(&node) };
            client.stream.set_nonblocking(true).unwrap();
            let mut request = Vec::new();
            match number % 4 {
                0 => request.extend_from_slice(b"\0"),
                1 => request.extend_from_slice(b"\0\0\x3f\xff\x95"),
                2 => request.extend_from_slice(&(1_u32 << 20).to_be_bytes()),
                _ => {
                    request.extend_from_slice(&(1_u32 << 20).to_be_bytes());
                    request.resize(600_000, 0xc0);
                }
            }
            // What the node does not take now stays with the client.
            let _ = client.stream.write(&request);
            unfinished.push(client);
        }
        thread::sleep(Duration::from_millis(500));
        let after = resident_mib(&node);
        println!("RSS {before:.1} MiB, with 200 unfinished frames {after:.1} MiB");
        assert!(after < before + 40.0, "{before:.1} MiB before, {after:.1} MiB now");
    });
    eventually("all are gone", || node.metric("kiln_connections") == 0.0);
    let mut client = Native::connect(&node);
    let value = vec![b'x'; 1_000_000];
    assert!(client.set("k", &value).version() > 0);
    assert!(client.get("k").value() == value);
}

#[test]
fn a_flood_of_news_does_not_grow_memory_or_slow_the_writers() {
    let node = Node::start(&["--memory", "64MiB", "--threads", "2"]);
    let keys: Vec<[u8; 4]> = (0..20_000_u32).map(u32::to_be_bytes).collect();
    let before = resident_mib(&node);
    let track = Want { track: true, ..Want::default() };
    let mut deaf: Vec<_> = (0..30).map(|_| Native::connect(&node)).collect();
    let mut writer = Native::connect(&node);
    let begun = Instant::now();
    let mut writes = 0_u64;
    while_others_are_served(&node, || {
        for _ in 0..3 {
            // They track everything and read no pushes but those before their own answers.
            for client in &mut deaf {
                for batch in keys.chunks(1_000) {
                    let items = batch.iter().map(|key| Item { command: get(key), want: track });
                    let cache = CacheRef::Handle(0);
                    client.call_and_pushes(|out, id| encode::batch(out, id, cache, items));
                }
            }
            for batch in keys.chunks(1_000) {
                let items =
                    batch.iter().map(|key| Item { command: set(key, b"v"), want: Want::default() });
                writer.call(|out, id| encode::batch(out, id, CacheRef::Handle(0), items));
                writes += batch.len() as u64;
            }
        }
    });
    let after = resident_mib(&node);
    println!("{writes} writes in {:?}, RSS {before:.1} MiB, then {after:.1} MiB", begun.elapsed());
    assert!(after < before + 40.0, "{before:.1} MiB before, {after:.1} MiB now");
    for client in &mut deaf {
        let (pushes, pong) = client.call_and_pushes(|out, id| encode::bare(out, id, Op::Ping));
        assert_eq!(pong.response(), Response::Ok(b""));
        assert!(!pushes.is_empty());
        let is_news = |push: &common::native::Frame| {
            matches!(push.response(), Response::Push(Push::Invalidate(_)))
        };
        assert!(pushes.iter().all(is_news));
    }
}

#[test]
fn a_client_that_half_closes_still_gets_its_answers() {
    let node = Node::start(&["--memory", "64MiB"]);
    for round in 0..30 {
        let mut client = Native::connect(&node);
        let value = vec![b'v'; 200_000];
        let key = format!("half{round}");
        let mut out = Vec::new();
        encode::data(&mut out, 1, &data(0, set(key.as_bytes(), &value), Want::default()));
        encode::data(&mut out, 2, &data(0, get(key.as_bytes()), Want::default()));
        out.extend_from_slice(b"\0\0");
        client.send(&out);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.receive().unwrap().version() > 0);
        assert!(client.receive().unwrap().value() == value);
        client.assert_closed();
    }
}

#[test]
fn a_stop_under_load_leaves_no_request_half_answered() {
    let mut node = Node::start(&["--memory", "64MiB", "--threads", "2"]);
    let address = node.address("native");
    thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Native::connect_at(address);
                    let (mut answered, mut goodbye) = (0_u32, false);
                    loop {
                        let mut out = Vec::new();
                        for id in 1..=50_u32 {
                            let key = [number, id as u8];
                            encode::data(&mut out, id, &data(0, set(&key, b"v"), Want::default()));
                        }
                        // A client that was told goodbye sends nothing new.
                        if goodbye || client.stream.write_all(&out).is_err() {
                            return (answered, goodbye);
                        }
                        let mut expected = 1;
                        while expected <= 50 {
                            let Some(frame) = client.receive() else {
                                assert_eq!(expected, 1, "a batch is answered whole or not at all");
                                return (answered, goodbye);
                            };
                            if matches!(frame.response(), Response::Push(Push::Goodbye { .. })) {
                                goodbye = true;
                                continue;
                            }
                            assert_eq!(frame.id(), expected);
                            expected += 1;
                            answered += 1;
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        node.signal(Signal::TERM);
        for client in clients {
            let (answered, goodbye) = client.join().unwrap();
            assert!(answered > 0 && goodbye, "{answered} answers, goodbye: {goodbye}");
        }
    });
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn idle_native_connections_cost_little_memory() {
    const CONNECTIONS: usize = 2_000;
    // Two ends of each connection, in two processes: the node inherits this limit.
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < 2 * CONNECTIONS as u64) {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
    let node = Node::start(&["--memory", "32MiB"]);
    // What the node allocates once for all, it has by then.
    let mut warm: Vec<_> = (0..500).map(|_| Native::connect(&node)).collect();
    warm.iter_mut().for_each(|client| drop(client.set("k", "v")));
    let before = node.metric("process_resident_memory_bytes");
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Native::connect(&node)).collect();
    clients.iter_mut().for_each(|client| drop(client.get("k")));
    let grown = node.metric("process_resident_memory_bytes") - before;
    // A young node grows by some MiB of its own.
    let each = (grown - 6.0 * 1_048_576.0) / CONNECTIONS as f64;
    println!("{grown:.0} bytes of RSS for {CONNECTIONS} idle connections");
    assert!(each < 4_096.0, "{each:.0} bytes for each");
}
