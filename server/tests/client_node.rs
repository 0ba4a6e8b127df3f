//! The client library against a real node.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{Node, SOON};
use kiln_client::{
    Builder, CacheSpec, Client, Counters, ErrorCode, Event, NearCacheConfig, Put, Written,
};
use rustix::process::Signal;
use tokio::{runtime::Runtime, task::JoinSet, time::timeout};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn builder(node: &Node) -> Builder {
    let address = format!("kiln://{}", node.address("native"));
    Client::builder().address(address.parse().unwrap()).timeout(SOON)
}

async fn client(node: &Node) -> Client {
    builder(node).connect().await.unwrap()
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    NotApplied,
    Indeterminate,
}

#[test]
fn killing_the_node_amid_writes_leaves_no_call_hanging_and_none_untold() {
    const TASKS: u64 = 16;
    let limit = Duration::from_millis(500);
    for round in 0..3 {
        let node = Node::start(&[]);
        let pid = node.pid();
        runtime().block_on(async {
            let client = builder(&node).timeout(limit).connect().await.unwrap();
            let stored = Arc::new(AtomicU64::new(0));
            let mut tasks = JoinSet::new();
            for task in 0..TASKS {
                let (client, stored) = (client.clone(), stored.clone());
                tasks.spawn(async move {
                    let mut fates = Vec::new();
                    let mut failures = 0;
                    // On for a while after the end, so that calls of each kind are seen.
                    for number in 0.. {
                        let begun = Instant::now();
                        let key = format!("{task}-{number}");
                        let fate = match client.set(&key, &vec![b'v'; 2000]).await {
                            Ok(_) => Fate::Stored,
                            Err(error) if error.is_not_applied() => Fate::NotApplied,
                            Err(error) => {
                                assert!(error.is_indeterminate());
                                Fate::Indeterminate
                            }
                        };
                        fates.push((fate, begun.elapsed()));
                        stored.fetch_add(u64::from(fate == Fate::Stored), Ordering::Relaxed);
                        failures += usize::from(fate != Fate::Stored);
                        if failures == 10 {
                            return fates;
                        }
                    }
                    fates
                });
            }
            while stored.load(Ordering::Relaxed) < 500 * (round + 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            node.signal(Signal::KILL);

            let mut counts = BTreeMap::new();
            let mut longest = Duration::ZERO;
            let all = async {
                while let Some(fates) = tasks.join_next().await {
                    for (fate, took) in fates.unwrap() {
                        *counts.entry(format!("{fate:?}")).or_insert(0) += 1;
                        longest = longest.max(took);
                    }
                }
            };
            timeout(SOON, all).await.expect("a call hangs");
            // The clock of a busy machine, not the client's.
            let tolerance = Duration::from_millis(500);
            assert!(longest < limit + tolerance, "{longest:?}, {counts:?}");
            assert!(counts["Stored"] >= 500, "{counts:?}");
            assert!(counts["NotApplied"] > 0, "{counts:?}");
        });
        drop(node);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}

#[test]
fn what_is_said_to_be_not_applied_is_not_there_after_a_stop_in_good_order() {
    let mut node = Node::start(&[]);
    runtime().block_on(async {
        let client = client(&node).await;
        client.set("k", "1").await.unwrap();
        node.signal(Signal::TERM);
        let closed = async {
            let impatient = client.with_timeout(Duration::from_millis(300));
            loop {
                if let Err(error) = impatient.set("k", "2").await {
                    return error;
                }
            }
        };
        let error = timeout(SOON, closed).await.unwrap();
        assert!(error.is_not_applied(), "nothing was in flight when it closed: {error}");
    });
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn a_near_cached_read_is_never_older_than_its_bound() {
    let bound = Duration::from_millis(100);
    let node = Node::start(&[]);
    let counters = Arc::new(Counters::default());
    let reader = runtime().block_on(async {
        let config = NearCacheConfig { staleness_max: bound, ..NearCacheConfig::default() };
        let keys = ["a", "b", "c"];
        let writer = client(&node).await;
        let reader = builder(&node)
            .near_cache("default", config)
            .metrics(counters.clone())
            .connect()
            .await
            .unwrap();
        // For each key when each of its writes was acknowledged.
        let acknowledged: Arc<Vec<Mutex<Vec<Instant>>>> =
            Arc::new(keys.iter().map(|_| Mutex::default()).collect());
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (index, key) in keys.into_iter().enumerate() {
            writer.set(key, "0").await.unwrap();
            acknowledged[index].lock().unwrap().push(Instant::now());
            let (writer, over) = (writer.clone(), over.clone());
            let acknowledged = acknowledged.clone();
            tasks.spawn(async move {
                for number in 1_u64.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    writer.set(key, &number.to_string()).await.unwrap();
                    acknowledged[index].lock().unwrap().push(Instant::now());
                    tokio::time::sleep(Duration::from_millis(3 + 20 * index as u64)).await;
                }
            });
        }
        let start = Instant::now();
        let (mut reads, mut oldest) = (0_u64, Duration::ZERO);
        while start.elapsed() < Duration::from_secs(3) {
            for (index, key) in keys.into_iter().enumerate() {
                let asked_at = Instant::now();
                let value = reader.get(key).await.unwrap().unwrap();
                let seen: usize = std::str::from_utf8(&value).unwrap().parse().unwrap();
                reads += 1;
                // How long before the question the first write that is not seen was acknowledged.
                if let Some(missed) = acknowledged[index].lock().unwrap().get(seen + 1) {
                    let age = asked_at.saturating_duration_since(*missed);
                    oldest = oldest.max(age);
                    assert!(age < bound, "{key}: write {} is not seen {age:?} later", seen + 1);
                }
            }
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Relaxed);
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        eprintln!("{reads} reads, {} near, oldest {oldest:?} of {bound:?}", counters.near_hits());
        reader
    });
    assert!(counters.near_hits() > 1000, "{} hits show nothing", counters.near_hits());
    drop(reader);
}

#[test]
fn the_own_write_is_read_at_once_also_from_near() {
    let node = Node::start(&[]);
    runtime().block_on(async {
        let client = builder(&node)
            .near_cache("default", NearCacheConfig::default())
            .connect()
            .await
            .unwrap();
        for number in 0..500 {
            let value = number.to_string();
            client.set("k", &value).await.unwrap();
            for _ in 0..3 {
                assert_eq!(client.get("k").await.unwrap().unwrap(), value);
            }
        }
    });
}

#[test]
fn writes_of_memcached_clients_reach_near_caches() {
    let node = Node::start(&[]);
    runtime().block_on(async {
        let bound = Duration::from_millis(100);
        let config = NearCacheConfig { staleness_max: bound, ..NearCacheConfig::default() };
        let client = builder(&node).near_cache("default", config).connect().await.unwrap();
        let mut memcached = node.connect();
        for number in 0..50 {
            let value = number.to_string();
            let request = format!("set k 0 0 {}\r\n{value}\r\n", value.len());
            assert_eq!(memcached.ask(&request), "STORED\r\n");
            tokio::time::sleep(bound).await;
            assert_eq!(client.get("k").await.unwrap().unwrap(), value);
        }
    });
}

#[test]
fn a_thousand_callers_compute_once() {
    let node = Node::start(&[]);
    let computed = Arc::new(AtomicUsize::new(0));
    runtime().block_on(async {
        let client = client(&node).await;
        let mut tasks = JoinSet::new();
        for _ in 0..1000 {
            let (client, computed) = (client.clone(), computed.clone());
            tasks.spawn(async move {
                let compute = || async {
                    computed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok::<_, std::io::Error>("value")
                };
                client.get_or_compute("k", Duration::from_secs(60), compute).await.unwrap()
            });
        }
        while let Some(value) = tasks.join_next().await {
            assert_eq!(value.unwrap(), "value");
        }
    });
    assert_eq!(computed.load(Ordering::Relaxed), 1);
}

#[test]
fn a_client_survives_a_restart_of_its_node() {
    let node = Node::start(&[]);
    let address = node.address("native").to_string();
    runtime().block_on(async {
        let client = client(&node).await;
        let mut events = client.events();
        client.set("k", "v").await.unwrap();
        drop(node);
        let error = client.with_timeout(Duration::from_millis(200)).get("k").await.unwrap_err();
        assert!(error.is_not_applied(), "{error}");

        let node = Node::start(&["--listen-native", &address]);
        loop {
            let event = timeout(SOON, events.next()).await.unwrap().unwrap();
            if matches!(event, Event::Connected { .. }) {
                break;
            }
        }
        assert_eq!(client.get("k").await.unwrap(), None);
        client.set("k", "w").await.unwrap();
        assert_eq!(client.get("k").await.unwrap().unwrap(), "w");
        drop(node);
    });
}

#[test]
fn many_tasks_and_threads_share_a_client() {
    let node = Node::start(&["--memory", "64MiB"]);
    let client = kiln_client::blocking::Client::build(builder(&node)).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let client = client.clone();
            thread::spawn(move || {
                for number in 0..200 {
                    let key = format!("{thread}-{number}");
                    client.set(&key, &key).unwrap();
                    assert_eq!(client.get(&key).unwrap().unwrap(), key);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(client.scan(|scan| scan).count(), 1600);
}

#[test]
fn what_was_loaded_is_scanned_with_values_of_all_sizes() {
    let node = Node::start(&["--memory", "128MiB"]);
    runtime().block_on(async {
        let client = client(&node).await;
        let mut expected = BTreeMap::new();
        let mut loader = client.loader();
        for number in 0..3000_usize {
            let key = format!("key-{number}");
            // Most are small; some are compressed, some fill a page alone.
            let len = match number % 100 {
                0 => 200_000,
                1..10 => 10_000,
                _ => number % 50,
            };
            let value: Vec<u8> = (0..len).map(|n| (n * number) as u8).collect();
            loader.push(Put::new(&key, &value).flags(number as u32)).await;
            expected.insert(key.into_bytes(), value);
        }
        let report = loader.finish().await;
        assert_eq!((report.stored, report.failed), (3000, 0));

        let mut pages = client.scan().prefix("key-").values().pages();
        while let Some(page) = pages.next().await.unwrap() {
            for entry in page {
                let value = expected.remove(entry.key.as_ref());
                assert!(value.is_some_and(|value| entry.value.unwrap() == value));
            }
        }
        assert!(expected.is_empty(), "{} are missing", expected.len());
    });
}

#[test]
fn named_caches_are_made_used_and_dropped() {
    let node = Node::start(&["--memory", "64MiB"]);
    runtime().block_on(async {
        let client = client(&node).await;
        let spec = CacheSpec { name: "sessions".into(), ..CacheSpec::default() };
        let cache = client.cache("sessions");
        let error = cache.get("k").await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NoSuchCache));

        client.create_cache(&spec).await.unwrap();
        cache.set("k", "v").await.unwrap();
        assert_eq!(client.get("k").await.unwrap(), None);
        let info = client.cache_info("sessions").await.unwrap().unwrap();
        assert_eq!((info.spec.name.as_str(), info.items), ("sessions", 1));
        let names: Vec<_> =
            client.caches().await.unwrap().into_iter().map(|cache| cache.spec.name).collect();
        assert_eq!(names, ["default", "sessions"]);

        assert!(client.drop_cache("sessions").await.unwrap());
        assert!(!client.drop_cache("sessions").await.unwrap());
        client.create_cache(&spec).await.unwrap();
        assert_eq!(cache.get("k").await.unwrap(), None);
    });
}

#[test]
fn conditions_hold_against_other_front_ends() {
    let node = Node::start(&[]);
    runtime().block_on(async {
        let client = client(&node).await;
        let mut memcached = node.connect();
        assert_eq!(memcached.ask("set n 5 0 2\r\n41\r\n"), "STORED\r\n");

        let item = client.get_item("n").await.unwrap().unwrap();
        assert_eq!((item.value.as_ref(), item.flags), (b"41".as_slice(), 5));
        assert_eq!(client.increment("n", 1).await.unwrap().number(), Some(42));
        let stale = client.set("n", "0").if_version(item.version).await.unwrap();
        assert_eq!(stale, Written::Conflict);

        let version = client.get_item("n").await.unwrap().unwrap().version;
        memcached.send("gets n\r\n");
        assert_eq!(memcached.line(), format!("VALUE n 5 2 {version}\r\n"));
        assert_eq!(memcached.line(), "42\r\n");
    });
}

#[test]
fn users_and_passwords_are_checked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "ada:right\n").unwrap();
    let path = file.path().to_str().unwrap();
    let node = Node::start(&["--auth-file", path]);
    runtime().block_on(async {
        let error = builder(&node).connect().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}");
        let error = builder(&node).credentials("ada", "wrong").connect().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}");

        let client = builder(&node).credentials("ada", "right").connect().await.unwrap();
        client.set("k", "v").await.unwrap();
    });
}
