//! Named caches: their settings, their memory, and what they have to do with each other: nothing.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    Node, eventually,
    native::{Native, data, get, set, spec},
};
use kiln_protocol::{
    command::{Command, Delete, Store, Ttl},
    native::{
        CacheRef, Op, Response, Want,
        admin::{CacheInfo, CacheList, CacheSpec, Opened},
        encode,
    },
};

const MIB: u64 = 1 << 20;

fn show(client: &mut Native, name: &str) -> CacheInfo {
    client.named(Op::ShowCache, name).structure()
}

/// Writes `count` items of 1,000 bytes without waiting for each.
fn fill(client: &mut Native, handle: u32, prefix: &str, count: usize) -> usize {
    let value = vec![b'x'; 1_000];
    let mut stored = 0;
    for batch in 0..count.div_ceil(500) {
        let mut out = Vec::new();
        for number in 0..500 {
            let key = format!("{prefix}{batch}:{number}");
            encode::data(&mut out, 1, &data(handle, set(key.as_bytes(), &value), Want::default()));
        }
        client.send(&out);
        for _ in 0..500 {
            let answer = client.receive().unwrap();
            stored += usize::from(matches!(answer.response(), Response::Stored { .. }));
        }
    }
    stored
}

#[test]
fn a_cache_is_made_listed_shown_and_dropped() {
    let node = Node::start(&["--memory", "64MiB", "--max-item-size", "512KiB"]);
    let mut client = Native::connect(&node);
    let wish = CacheSpec {
        eviction: "lru".to_owned(),
        mode: "eventual".to_owned(),
        read: "any".to_owned(),
        memory: 8 * MIB,
        default_ttl_ms: 5_000,
        max_item_size: 100_000,
        ..spec("users")
    };
    let made: CacheInfo = client.create(&wish).structure();
    assert_eq!(made.spec, wish);
    assert_eq!(show(&mut client, "users").spec, wish);
    let list: CacheList = client.bare(Op::ListCaches).structure();
    let names: Vec<_> = list.caches.iter().map(|cache| cache.spec.name.as_str()).collect();
    assert_eq!(names, ["default", "users"]);

    // Once more is as good as once; with other settings it is not.
    assert!(matches!(client.create(&wish).response(), Response::Ok(_)));
    let any_memory = CacheSpec { memory: 0, ..wish.clone() };
    assert!(matches!(client.create(&any_memory).response(), Response::Ok(_)));
    let other = CacheSpec { eviction: "lfu".to_owned(), ..wish };
    assert_eq!(client.create(&other).error(), "cache-exists");

    assert_eq!(client.named(Op::DropCache, "users").response(), Response::Ok(b""));
    assert_eq!(client.named(Op::DropCache, "users").error(), "no-such-cache");
    assert_eq!(client.named(Op::ShowCache, "users").error(), "no-such-cache");
    assert_eq!(client.named(Op::DropCache, "default").error(), "forbidden");
}

#[test]
fn settings_that_cannot_be_had_are_refused_with_a_reason() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    for (wish, error) in [
        (spec(""), "bad-argument"),
        (spec("a b"), "bad-argument"),
        (CacheSpec { copies: 2, ..spec("c") }, "bad-argument"),
        (CacheSpec { mode: "weak".to_owned(), ..spec("c") }, "bad-argument"),
        (CacheSpec { memory: MIB, ..spec("c") }, "bad-argument"),
        (CacheSpec { memory: 4 * MIB, max_item_size: 1 << 30, ..spec("c") }, "bad-argument"),
        (CacheSpec { memory: 60 * MIB, ..spec("c") }, "limit-reached"),
        (CacheSpec { memory: u64::MAX, ..spec("c") }, "bad-argument"),
    ] {
        assert_eq!(client.create(&wish).error(), error, "{wish:?}");
    }
    // Memory for values of 1 MiB is 2 MiB at least; nothing of the above took any.
    assert!(matches!(
        client.create(&CacheSpec { memory: 32 * MIB, ..spec("c") }).response(),
        Response::Ok(_)
    ));
    let list: CacheList = client.bare(Op::ListCaches).structure();
    assert_eq!(list.caches.len(), 2);
}

#[test]
fn caches_share_no_keys_and_are_found_by_handle_and_by_name() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    client.create(&spec("a"));
    client.create(&spec("b"));
    let (a, b) = (client.open("a"), client.open("b"));
    assert!(a != 0 && b != 0 && a != b && client.open("a") == a && client.open("default") == 0);
    for (handle, value) in [(0, "default"), (a, "a"), (b, "b")] {
        client.run_in(handle, set(b"k", value.as_bytes()), Want::default());
    }
    for (handle, value) in [(0, "default"), (a, "a"), (b, "b")] {
        assert_eq!(client.run_in(handle, get(b"k"), Want::default()).value(), value.as_bytes());
    }
    let by_name = |name| kiln_protocol::native::Data {
        cache: CacheRef::Name(name),
        ..data(0, get(b"k"), Want::default())
    };
    assert_eq!(client.call(|out, id| encode::data(out, id, &by_name("b"))).value(), b"b");
    let missing = client.call(|out, id| encode::data(out, id, &by_name("c")));
    assert_eq!(missing.error(), "no-such-cache");
    // Memcached serves `default`.
    assert_eq!(node.connect().ask("mg k v\r\n"), "VA 7\r\n");

    client.call(|out, id| encode::flush(out, id, CacheRef::Handle(a)));
    let gone = client.run_in(a, get(b"k"), Want::default());
    assert_eq!(gone.response(), Response::NotFound);
    assert_eq!(client.run_in(b, get(b"k"), Want::default()).value(), b"b");
    // A handle is of one connection.
    let mut other = Native::connect(&node);
    assert_eq!(other.run_in(a, get(b"k"), Want::default()).error(), "no-such-cache");
}

#[test]
fn one_batch_of_requests_may_open_a_cache_and_use_several() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    let mut out = Vec::new();
    encode::create_cache(&mut out, 1, &spec("a"));
    encode::named(&mut out, 2, Op::OpenCache, "a");
    for round in 0..20 {
        let value = [round];
        for handle in [1, 0] {
            let want = Want::default();
            encode::data(&mut out, 3, &data(handle, set(&[handle as u8], &value), want));
            encode::data(&mut out, 4, &data(handle, get(&[handle as u8]), want));
        }
    }
    client.send(&out);
    assert!(matches!(client.receive().unwrap().response(), Response::Ok(_)));
    assert!(matches!(client.receive().unwrap().response(), Response::Ok(_)));
    for round in 0..20 {
        for _ in 0..2 {
            assert!(matches!(client.receive().unwrap().response(), Response::Stored { .. }));
            assert_eq!(client.receive().unwrap().value(), [round]);
        }
    }
}

#[test]
fn a_handle_of_a_dropped_cache_never_means_another() {
    let node = Node::start(&["--memory", "64MiB"]);
    let (mut client, mut admin) = (Native::connect(&node), Native::connect(&node));
    admin.create(&spec("a"));
    let handle = client.open("a");
    client.run_in(handle, set(b"k", b"v"), Want::default());
    admin.named(Op::DropCache, "a");
    assert_eq!(client.run_in(handle, get(b"k"), Want::default()).error(), "no-such-cache");
    admin.create(&spec("a"));
    assert_eq!(client.run_in(handle, get(b"k"), Want::default()).error(), "no-such-cache");
    // Requests under way may still name the old one, so its number is not given to another.
    let again = client.open("a");
    assert_ne!(again, handle);
    assert_eq!(client.run_in(again, get(b"k"), Want::default()).response(), Response::NotFound);
}

#[test]
fn the_number_of_open_caches_is_bounded_and_places_of_dropped_ones_are_used_again() {
    let node = Node::start(&["--memory", "1GiB", "--max-item-size", "1MiB"]);
    let mut client = Native::silent(&node);
    let most = client.hello(&common::native::hello(&[])).limits.handles_max as usize;
    for number in 1..=most {
        let wish = CacheSpec { memory: 4 * MIB, ..spec(&format!("c{number}")) };
        assert!(matches!(client.create(&wish).response(), Response::Ok(_)), "{number}");
    }
    for number in 1..most {
        client.open(&format!("c{number}"));
    }
    let last = format!("c{most}");
    assert_eq!(client.named(Op::OpenCache, &last).error(), "limit-reached");
    client.named(Op::DropCache, "c1");
    client.open(&last);
}

#[test]
fn the_default_ttl_holds_for_writes_that_name_no_end() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    client.create(&CacheSpec { default_ttl_ms: 400, ..spec("short") });
    let handle = client.open("short");
    let with = |ttl| Command::Store(Store { ttl, ..Store::set(b"explicit", b"v") });
    client.run_in(handle, set(b"k", b"v"), Want::default());
    client.run_in(handle, with(Ttl::Never), Want::default());
    let left = |frame: common::native::Frame| match frame.response() {
        Response::Value { ttl_ms, .. } => ttl_ms,
        other => panic!("{other:?}"),
    };
    assert!(left(client.run_in(handle, get(b"k"), Want::default())).is_some_and(|ms| ms <= 400));
    assert_eq!(left(client.run_in(handle, get(b"explicit"), Want::default())), None);
    eventually("the item ends", || {
        client.run_in(handle, get(b"k"), Want::default()).response() == Response::NotFound
    });
    // And its memory is given back without anyone asking for it.
    eventually("it is removed", || show(&mut client, "short").items == 1);
}

#[test]
fn a_cache_that_does_not_evict_refuses_when_it_is_full_and_others_go_on() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = Native::connect(&node);
    client.create(&CacheSpec {
        eviction: "none".to_owned(),
        memory: 8 * MIB,
        max_item_size: 100_000,
        ..spec("ledger")
    });
    let handle = client.open("ledger");
    let stored = fill(&mut client, handle, "k", 20_000);
    assert!((4_000..9_000).contains(&stored), "{stored} of 20,000 fit into 8 MiB");
    let full = client.run_in(handle, set(b"more", &[b'x'; 1_000]), Want::default());
    assert_eq!(full.error(), "out-of-memory");
    let ledger = show(&mut client, "ledger");
    assert_eq!((ledger.items, ledger.evictions), (stored as u64, 0));
    assert!(client.set("k", vec![b'x'; 1_000]).version() > 0);
    let delete = Command::Delete(Delete::plain(b"k0:0"));
    client.run_in(handle, delete, Want::default());
    let after = client.run_in(handle, set(b"more", &[b'x'; 1_000]), Want::default());
    assert!(after.version() > 0);
}

#[test]
fn all_caches_together_stay_within_the_ceiling_and_a_dropped_one_gives_back_what_it_had() {
    let node = Node::start(&["--memory", "128MiB", "--threads", "2"]);
    let resident = || node.metric("process_resident_memory_bytes") / MIB as f64;
    let mut client = Native::connect(&node);
    let before = show(&mut client, "default").memory;
    // Full first: what the new caches get has to come from what is in use.
    fill(&mut client, 0, "d", 150_000);
    let full = resident();
    let mut highest = full;
    for name in ["a", "b", "c"] {
        let wish = CacheSpec { memory: 24 * MIB, ..spec(name) };
        assert!(matches!(client.create(&wish).response(), Response::Ok(_)), "{name}");
        let handle = client.open(name);
        fill(&mut client, handle, "n", 40_000);
        fill(&mut client, 0, "more", 20_000);
        highest = highest.max(resident());
    }
    println!("RSS full {full:.1} MiB, with three more caches {highest:.1} MiB of 128");
    // Ceilings rise as pages come back: never beyond the sum, and up to it in the end.
    eventually("all caches have what they are to have", || {
        let list: CacheList = client.bare(Op::ListCaches).structure();
        let ceilings: u64 = list.caches.iter().map(|cache| cache.memory).sum();
        assert!(ceilings <= before, "{ceilings} of {before}");
        ceilings == before
    });
    let list: CacheList = client.bare(Op::ListCaches).structure();
    assert!(list.caches.iter().all(|cache| cache.bytes <= cache.memory && cache.items > 1_000));
    assert!(highest < 128.0 * 1.05 + 16.0, "{highest:.1} MiB");

    for name in ["a", "b", "c"] {
        client.named(Op::DropCache, name);
    }
    eventually("default has it all again", || show(&mut client, "default").memory == before);
    let low = resident();
    fill(&mut client, 0, "again", 150_000);
    println!("RSS after dropping them {low:.1} MiB, full again {:.1} MiB", resident());
    assert!(low < full - 40.0, "{low:.1} MiB after, {full:.1} MiB before");
    assert!(resident() < 128.0 * 1.05 + 16.0);
    assert!(show(&mut client, "default").items > 80_000);
}

#[test]
fn caches_that_come_and_go_under_load_lose_no_memory_and_harm_nobody() {
    let node = Node::start(&["--memory", "64MiB", "--threads", "2"]);
    let mut admin = Native::connect(&node);
    let before = show(&mut admin, "default").memory;
    let stop = AtomicBool::new(false);
    let address = node.address("native");
    thread::scope(|scope| {
        for number in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                let mut client = Native::connect_at(address);
                let mut round = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let open = client.named(Op::OpenCache, "flicker");
                    let Response::Ok(_) = open.response() else { continue };
                    let handle = open.structure::<Opened>().handle;
                    for _ in 0..50 {
                        let value = vec![number; 20_000];
                        let answer = client.run_in(
                            handle,
                            set(&round.to_be_bytes(), &value),
                            Want::default(),
                        );
                        match answer.response() {
                            Response::Stored { .. } => {}
                            Response::Error(failure) => {
                                let code = failure.code.name();
                                assert!(
                                    ["no-such-cache", "out-of-memory"].contains(&code),
                                    "{code}"
                                );
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(3);
        let mut rounds = 0;
        while Instant::now() < end {
            match admin.create(&CacheSpec { memory: 12 * MIB, ..spec("flicker") }).response() {
                Response::Ok(_) => rounds += 1,
                Response::Error(failure) => assert_eq!(failure.code.name(), "busy"),
                other => panic!("{other:?}"),
            }
            assert!(admin.set("good", "value").version() > 0);
            thread::sleep(Duration::from_millis(10));
            let dropped = admin.named(Op::DropCache, "flicker");
            assert!(matches!(dropped.response(), Response::Ok(_) | Response::Error(_)));
        }
        println!("{rounds} caches came and went");
        assert!(rounds > 20, "{rounds}");
        stop.store(true, Ordering::Relaxed);
    });
    eventually("default has it all again", || show(&mut admin, "default").memory == before);
    let resident = node.metric("process_resident_memory_bytes") / MIB as f64;
    assert!(resident < 64.0 + 24.0, "{resident:.1} MiB");
}

#[test]
fn memcached_lowers_and_raises_the_ceiling_of_default_only() {
    let node = Node::start(&["--memory", "128MiB"]);
    let mut client = Native::connect(&node);
    client.create(&CacheSpec { memory: 32 * MIB, ..spec("a") });
    eventually("it has its memory", || show(&mut client, "a").memory == 32 * MIB);
    let mut memcached = node.connect();
    assert_eq!(memcached.ask("cache_memlimit 64\r\n"), "OK\r\n");
    assert_eq!(show(&mut client, "a").memory, 32 * MIB);
    assert!(show(&mut client, "default").memory < 32 * MIB);
    // Less than the others have and `default` needs.
    assert!(memcached.ask("cache_memlimit 36\r\n").starts_with("MEMLIMIT"));
    assert_eq!(memcached.ask("cache_memlimit 256\r\n"), "OK\r\n");
    eventually("it is raised", || show(&mut client, "default").memory > 150 * MIB);
}

#[test]
fn tracking_and_a_new_ceiling_together_create_no_memory() {
    let node = Node::start(&["--memory", "128MiB"]);
    let mut client = Native::connect(&node);
    let before = show(&mut client, "default").memory;
    let mut memcached = node.connect();
    for _ in 0..3 {
        client.create(&CacheSpec { memory: 8 * MIB, ..spec("a") });
        // It may be told once more of the drop before.
        let (_, opened) =
            client.call_and_pushes(|out, id| encode::named(out, id, Op::OpenCache, "a"));
        let handle = opened.structure::<Opened>().handle;
        let track = Want { track: true, ..Want::default() };
        assert_eq!(client.run_in(handle, get(b"k"), track).response(), Response::NotFound);
        assert_eq!(memcached.ask("cache_memlimit 128\r\n"), "OK\r\n");
        let tracked = show(&mut client, "default").memory;
        assert!(tracked < before - 8 * MIB, "{tracked} of {before}");
        // The connection is told of the drop.
        client.call_and_pushes(|out, id| encode::named(out, id, Op::DropCache, "a"));
        eventually("default has it again", || {
            let (_, answer) =
                client.call_and_pushes(|out, id| encode::named(out, id, Op::ShowCache, "default"));
            answer.structure::<CacheInfo>().memory == before
        });
    }
}

#[test]
fn a_new_cache_takes_the_longest_values_at_once_though_memory_is_full() {
    let node = Node::start(&["--memory", "128MiB", "--max-item-size", "8MiB"]);
    let mut client = Native::connect(&node);
    fill(&mut client, 0, "d", 130_000);
    for round in 0..3 {
        let name = format!("c{round}");
        client.create(&CacheSpec { memory: 20 * MIB, ..spec(&name) });
        let handle = client.open(&name);
        let value = vec![b'x'; 8 << 20];
        assert!(client.run_in(handle, set(b"k", &value), Want::default()).version() > 0);
    }
}
