//! Readings over the native protocol and by the Rust client: counted once, also when the owner of
//! their sensors is killed; windows, latest values and results as they come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kiln_client::{Client, ErrorCode, Fill, LiveKind, ProducerError, Reading};
use kiln_protocol::native::{self, encode, streams::Ingested};

use super::{
    client::Http,
    common::{Node, eventually, native::Native},
    harness::{Cluster, settles},
    make, node,
};

const BASE: i64 = 1_700_000_000_000;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn connect(address: &str) -> Client {
    let address = format!("kiln://{address}").parse().unwrap();
    Client::builder().address(address).timeout(Duration::from_secs(20)).connect().await.unwrap()
}

async fn client(node: &Node) -> Client {
    connect(&node.address("native").to_string()).await
}

#[test]
fn a_batch_is_counted_once_and_its_wrong_readings_are_named() {
    let node = node();
    make(&node, "s", r#"{"filter": "value >= 0.0"}"#);
    let mut native = Native::connect(&node);
    let readings = [
        native::Reading { sensor: b"a", value: 1.0, time_ms: Some(BASE) },
        native::Reading { sensor: b"", value: 1.0, time_ms: None },
        native::Reading { sensor: b"a", value: f64::NAN, time_ms: None },
        native::Reading { sensor: b"b", value: -1.0, time_ms: None },
        native::Reading { sensor: b"b", value: 2.0, time_ms: Some(i64::MAX / 2) },
    ];
    let mut send = |stream: &str, producer: Option<native::Producer<'_>>| {
        native.call(|out, id| encode::ingest(out, id, stream, producer, readings.iter().copied()))
    };
    let producer = |epoch, sequence| Some(native::Producer { id: "p", epoch, sequence });
    let told: Ingested = send("s", producer(2, 7)).structure();
    assert_eq!((told.accepted, told.duplicate, told.filtered, told.rejected), (1, 0, 1, 3));
    let places: Vec<u64> = told.first_bad.iter().map(|bad| bad.index).collect();
    assert_eq!(places, [1, 2, 4], "{told:?}");
    assert!(told.first_bad[2].reason.contains("ahead of the arrival"), "{told:?}");
    let again: Ingested = send("s", producer(2, 7)).structure();
    assert_eq!((again.accepted, again.duplicate), (0, 1));
    // Without a producer nobody knows it again.
    assert_eq!(send("s", None).structure::<Ingested>().accepted, 1);
    assert_eq!(send("s", producer(1, 8)).error(), "stale-producer");
    assert_eq!(send("none", producer(2, 9)).error(), "no-such-stream");
    let nameless = native::Producer { id: "", epoch: 0, sequence: 0 };
    assert_eq!(send("s", Some(nameless)).error(), "bad-argument");
}

#[test]
fn answers_about_streams_do_not_hold_up_what_is_behind_them() {
    let node = node();
    make(&node, "s", "{}");
    let mut native = Native::connect(&node);
    let reading = native::Reading { sensor: b"a", value: 1.0, time_ms: None };
    let mut requests = Vec::new();
    // More than may be under way: those over it are told to come again, and none is left out.
    for id in 1..=100 {
        encode::ingest(&mut requests, 1_000 + id, "s", None, [reading].into_iter());
    }
    native.send(&requests);
    let mut answers = BTreeMap::new();
    for _ in 0..100 {
        let frame = native.receive().unwrap();
        let busy = matches!(frame.response(), native::Response::Error(_));
        assert!(!busy || frame.error() == "busy");
        assert!(answers.insert(frame.id(), busy).is_none());
    }
    let taken = answers.values().filter(|busy| !**busy).count();
    assert!(taken >= 32, "{taken}");
    let http = Http::of(&node);
    assert_eq!(http.get("/v1/streams/s").json()["figures"]["accepted"], taken);
    assert!(native.set("k", "v").version() > 0);
}

#[test]
fn the_client_sends_batches_and_finds_values_windows_and_events() {
    let node = node();
    let definition = r#"{"windows": [{"tumbling": "10s"}], "aggregates": ["count", "mean", "std"],
        "watermark_delay": "0s"}"#;
    make(&node, "plant", definition);
    runtime().block_on(async {
        let client = client(&node).await;
        let plant = client.stream("plant");
        let mut follower =
            plant.follow().sensor("s1").kind(LiveKind::Window).start().await.unwrap();
        let producer = plant.producer("p").batch_len_max(50).waiting_max(10).start();
        for i in 0..1_000 {
            let reading = Reading::new(format!("s{}", i % 4), i as f64).at(BASE + i * 10);
            producer.send(reading).await.unwrap();
        }
        let wrong = producer.send(Reading::new("s1", f64::INFINITY)).await;
        assert!(matches!(wrong, Err(ProducerError::BadReading(_))));
        producer.flush().await.unwrap();
        let totals = producer.totals();
        assert_eq!((totals.accepted, totals.duplicate, totals.rejected), (1_000, 0, 0));
        assert!(totals.batches >= 20 && totals.next_sequence == totals.batches, "{totals:?}");
        // One window is closed by a reading behind it, which alone goes by its age.
        let far = plant.producer("p").epoch(producer.epoch()).next_sequence(totals.next_sequence);
        let far = far.start();
        for sensor in 0..4 {
            let reading = Reading::new(format!("s{sensor}"), 0.0).at(BASE + 40_000);
            far.send(reading).await.unwrap();
        }
        far.flush().await.unwrap();
        let latest = plant.latest("s1").await.unwrap().unwrap();
        assert_eq!((latest.value, latest.time_ms), (0.0, Some(BASE + 40_000)));
        assert_eq!(plant.latest("nobody").await.unwrap(), None);

        let event = follower.next().await.unwrap();
        assert_eq!((event.kind, &*event.sensor), (LiveKind::Window, b"s1".as_slice()));
        assert!(event.json.contains("\"count\":250"), "{event:?}");

        let ask = || plant.windows("s1").from(BASE).to(BASE + 30_000);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut found = ask().await.unwrap();
        while found.windows.is_empty() {
            assert!(Instant::now() < deadline);
            found = ask().await.unwrap();
        }
        assert_eq!((&*found.sensor, &*found.window), ("s1", "10s"));
        let [window] = &found.windows[..] else { panic!("{found:?}") };
        assert_eq!((window.start, window.end, window.filled), (BASE, BASE + 10_000, false));
        assert_eq!((window.figure("count"), window.figure("mean")), (Some(250.0), Some(499.0)));
        assert!(window.figure("std").is_some_and(|std| (289.0..290.0).contains(&std)));
        let filled = ask().window("10s").fill(Fill::Previous).last(2).await.unwrap();
        assert_eq!(filled.windows.len(), 2);
        assert!(filled.windows[1].filled && filled.windows[1].figure("mean") == Some(499.0));
        let longer = plant.windows("s1").from(BASE - 20_000).to(BASE + 10_000);
        let longer = longer.step(Duration::from_secs(30)).await.unwrap();
        assert_eq!((longer.windows.len(), longer.windows[0].merged), (1, 1), "{longer:?}");
        let no_window = plant.windows("s1").window("7s").await.unwrap_err();
        assert_eq!(no_window.code(), Some(ErrorCode::BadArgument));
    });
}

#[test]
fn a_producer_that_is_refused_says_so_and_sends_no_more() {
    let node = node();
    make(&node, "s", "{}");
    runtime().block_on(async {
        let client = client(&node).await;
        let stream = client.stream("s");
        let newer = stream.producer("p").epoch(2).start();
        newer.send(Reading::new("a", 1.0)).await.unwrap();
        newer.flush().await.unwrap();
        let older = stream.producer("p").epoch(1).start();
        older.send(Reading::new("a", 1.0)).await.unwrap();
        let ProducerError::Failed { sequence: 0, unsent: 1, error } =
            older.flush().await.unwrap_err()
        else {
            panic!("another error")
        };
        assert_eq!(error.code(), Some(ErrorCode::StaleProducer));
        assert!(older.send(Reading::new("a", 1.0)).await.is_err());
        let nowhere = client.stream("none").producer("p").start();
        nowhere.send(Reading::new("a", 1.0)).await.unwrap();
        let ProducerError::Failed { error, .. } = nowhere.flush().await.unwrap_err() else {
            panic!("another error")
        };
        assert_eq!(error.code(), Some(ErrorCode::NoSuchStream));
    });
}

#[test]
fn what_a_producer_was_acknowledged_counts_once_when_nodes_are_killed_meanwhile() {
    const SENSORS: i64 = 40;
    const STEP_MS: i64 = 100;
    let mut cluster = Cluster::start(3, &[]);
    cluster.until_whole(3);
    let http = Http::of(cluster.member(0));
    let definition = br#"{"windows": [{"tumbling": "1s"}], "aggregates": ["count", "sum"],
        "watermark_delay": "1s", "idle_timeout": "2m"}"#;
    assert_eq!(http.put("/v1/streams/s", definition).status, 201);
    for number in 0..3 {
        let http = Http::of(cluster.member(number));
        eventually("every node knows the stream", || http.get("/v1/streams/s").status == 200);
    }
    cluster.until_whole(3);
    let addresses: Vec<String> =
        (0..3).map(|number| cluster.member(number).address("native").to_string()).collect();
    let runtime = runtime();
    let (client, producer, mut follower) = runtime.block_on(async {
        let client = connect(&addresses.join(",")).await;
        let stream = client.stream("s");
        let producer = stream.producer("p").batch_len_max(40).start();
        let follower = stream.follow().kind(LiveKind::Window).start().await.unwrap();
        (client, producer, follower)
    });
    let mut step = 0_i64;
    let mut sums: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
    let mut run = |steps: i64, sums: &mut BTreeMap<(i64, i64), (i64, i64)>| {
        runtime.block_on(async {
            for _ in 0..steps {
                let time = BASE + step * STEP_MS;
                for sensor in 0..SENSORS {
                    let value = step * SENSORS + sensor;
                    let reading = Reading::new(format!("s{sensor}"), value as f64).at(time);
                    producer.send(reading).await.unwrap();
                    let window = (sensor, time - time.rem_euclid(1_000));
                    let sum = sums.entry(window).or_default();
                    *sum = (sum.0 + 1, sum.1 + value);
                }
                step += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            producer.flush().await.unwrap();
        });
    };
    run(60, &mut sums);
    // One after the other, each while readings flow.
    for victim in [1, 0] {
        cluster.kill(victim);
        run(60, &mut sums);
        cluster.restart(victim);
        cluster.until_whole(3);
        run(30, &mut sums);
    }
    let totals = producer.totals();
    println!("{totals:?}");
    assert_eq!(totals.accepted + totals.duplicate, (step * SENSORS) as u64);
    assert!(totals.retries > 0, "nothing was sent again: {totals:?}");
    runtime.block_on(async {
        let stream = client.stream("s");
        let end = BASE + step * STEP_MS + 600_000;
        for sensor in 0..SENSORS {
            producer.send(Reading::new(format!("s{sensor}"), 0.0).at(end)).await.unwrap();
        }
        producer.flush().await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        for sensor in 0..SENSORS {
            let name = format!("s{sensor}");
            let wanted: Vec<_> = sums
                .iter()
                .filter(|((of, _), _)| *of == sensor)
                .map(|((_, start), (count, sum))| (*start, *count as f64, *sum as f64))
                .collect();
            loop {
                let asked = stream.windows(&name).from(BASE).to(end - 1_000).last(10_000).await;
                let found: Vec<_> = asked.map_or_else(
                    |_| Vec::new(),
                    |found| {
                        let figure = |window: &kiln_client::Window, name: &str| {
                            window.figure(name).unwrap_or(f64::NAN)
                        };
                        let windows = found.windows.iter();
                        windows
                            .map(|one| (one.start, figure(one, "count"), figure(one, "sum")))
                            .collect()
                    },
                );
                if found == wanted {
                    break;
                }
                assert!(Instant::now() < deadline, "{name}: {found:?} and not {wanted:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        // Nodes that came back tell again.
        let mut told = 0;
        let told_all = async {
            while told < SENSORS {
                let event = follower.next().await.unwrap();
                if event.kind == LiveKind::Window {
                    told += 1;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told_all).await.unwrap();
    });
    settles("no state was lost", || {
        (0..3).all(|number| {
            cluster.metric(number, "kiln_stream_states_lost_total{stream=\"s\"}") == 0.0
        })
    });
}
