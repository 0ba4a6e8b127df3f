//! The state of streams survives the loss of nodes and moves with its partitions: producers send at a
//! steady rate, each batch until it is acknowledged, and in the end the sums of all windows are those
//! of what was acknowledged: each reading once.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    client::Http,
    common::{eventually, kiln},
    harness::{Cluster, settles},
};

const BASE: i64 = 1_700_000_000_000;
const SENSORS: i64 = 48;
/// Event time of one batch of a producer, and the clock's time.
const STEP_MS: i64 = 100;
const WINDOW_MS: i64 = 1_000;
const DEFINITION: &[u8] = br#"{"windows": [{"tumbling": "1s"}], "aggregates": ["count", "sum"],
    "watermark_delay": "1s", "idle_timeout": "2m"}"#;
/// How long one batch may be tried before the test fails.
const TRIES_MAX: Duration = Duration::from_secs(60);

/// By sensor and start of the window: count and sum.
type Sums = BTreeMap<(i64, i64), (i64, i64)>;

/// Where nodes take readings: HTTP and lines. Empty while a node is down.
type Doors = Arc<Mutex<Vec<Option<(SocketAddr, SocketAddr)>>>>;

/// A producer with an id, on a thread of its own.
struct Producer {
    thread: JoinHandle<(i64, Sums)>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
}

impl Producer {
    fn start(name: &'static str, doors: &Doors, over_lines: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicI64::new(-1));
        let work = {
            let (doors, stop) = (Arc::clone(doors), Arc::clone(&stop));
            let acknowledged = Arc::clone(&acknowledged);
            move || {
                let mut sums = Sums::new();
                let mut number = 0;
                let mut line = None;
                while !stop.load(Relaxed) {
                    let text = batch(number, &mut sums);
                    let give_up = Instant::now() + TRIES_MAX;
                    let mut at = number as usize;
                    while !(if over_lines {
                        send_line(&mut line, &doors, at, name, number, &text)
                    } else {
                        send_http(&doors, at, name, number, &text)
                    }) {
                        assert!(Instant::now() < give_up, "{name}: batch {number} never arrives");
                        at += 1;
                        thread::sleep(Duration::from_millis(20));
                    }
                    acknowledged.store(number, Relaxed);
                    number += 1;
                    thread::sleep(Duration::from_millis(STEP_MS as u64 / 2));
                }
                (number, sums)
            }
        };
        Self { thread: thread::spawn(work), stop, acknowledged }
    }

    /// Ends it. Returns its next number and what it was acknowledged.
    fn stop(self) -> (i64, Sums) {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

fn time_of(number: i64) -> i64 {
    BASE + number * STEP_MS
}

fn batch(number: i64, sums: &mut Sums) -> String {
    let time = time_of(number);
    let start = time.div_euclid(WINDOW_MS) * WINDOW_MS;
    let mut text = String::new();
    for sensor in 0..SENSORS {
        let value = number * SENSORS + sensor;
        text.push_str(&format!("s{sensor}, {value}, {time}\n"));
        let sum = sums.entry((sensor, start)).or_default();
        *sum = (sum.0 + 1, sum.1 + value);
    }
    text
}

/// Sends a numbered batch to the node at `at`; true when it is acknowledged.
fn send_http(doors: &Doors, at: usize, name: &str, number: i64, text: &str) -> bool {
    let door = {
        let doors = doors.lock().unwrap();
        doors[at % doors.len()]
    };
    let Some((http, _)) = door else { return false };
    let head = format!(
        "POST /v1/streams/s/readings?producer={name}&epoch=1&sequence={number} HTTP/1.1\r\n\
         host: kiln\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let Ok(mut socket) = TcpStream::connect(http) else { return false };
    let _ = socket.set_read_timeout(Some(Duration::from_secs(15)));
    let mut answer = String::new();
    let sent = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(text.as_bytes()));
    if sent.is_err() || socket.read_to_string(&mut answer).is_err() {
        return false;
    }
    if answer.starts_with("HTTP/1.1 200 ") {
        return true;
    }
    let code = answer.split(' ').nth(1).unwrap_or("cut");
    // Come again; or a node that is just starting, or ends.
    assert!(["429", "503", "404", "cut"].contains(&code), "{name} {number}: {answer}");
    false
}

/// The same by lines, over a connection that is kept while it lasts.
fn send_line(
    line: &mut Option<BufReader<TcpStream>>,
    doors: &Doors,
    at: usize,
    name: &str,
    number: i64,
    text: &str,
) -> bool {
    if line.is_none() {
        let door = {
            let doors = doors.lock().unwrap();
            doors[at % doors.len()]
        };
        let Some((_, ingest)) = door else { return false };
        let Ok(mut socket) = TcpStream::connect(ingest) else { return false };
        let _ = socket.set_read_timeout(Some(Duration::from_secs(15)));
        if socket.write_all(format!("stream s\nhello {name} 1\n").as_bytes()).is_err() {
            return false;
        }
        let mut reader = BufReader::new(socket);
        let mut hello = String::new();
        if reader.read_line(&mut hello).is_err() || hello != "hello\n" {
            return false;
        }
        *line = Some(reader);
    }
    let Some(reader) = line else { return false };
    let mut answer = String::new();
    let sent = reader.get_mut().write_all(format!("{text}commit {number}\n").as_bytes());
    if sent.is_ok()
        && reader.read_line(&mut answer).is_ok()
        && answer.starts_with(&format!("ack {number} "))
    {
        return true;
    }
    assert!(answer.is_empty() || !answer.starts_with("bad"), "{name} {number}: {answer}");
    *line = None;
    false
}

fn doors_of(cluster: &Cluster, count: usize) -> Doors {
    let door = |number| {
        let member = cluster.member(number);
        Some((member.address("http"), member.address("ingest")))
    };
    Arc::new(Mutex::new((0..count).map(door).collect()))
}

fn make(cluster: &Cluster, nodes: usize) {
    let http = Http::of(cluster.member(0));
    let made = http.put("/v1/streams/s", DEFINITION);
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    for number in 0..nodes {
        let http = Http::of(cluster.member(number));
        eventually("every node knows the stream", || http.get("/v1/streams/s").status == 200);
    }
}

/// The start of the newest window of a sensor.
fn newest(http: &Http) -> i64 {
    let to = BASE + 10_000_000;
    let range = format!("/v1/streams/s/sensors/s7/windows?from={BASE}&to={to}&limit=10000");
    let found = http.get(&range);
    if found.status != 200 {
        return 0;
    }
    let found = found.json();
    found["windows"].as_array().unwrap().last().map_or(0, |last| last["start"].as_i64().unwrap())
}

/// Ends the producers, closes all windows and compares them with what was acknowledged.
fn prove(cluster: &Cluster, ask: usize, doors: &Doors, producers: Vec<(&str, Producer)>) {
    let mut expected = Sums::new();
    let mut last = 0;
    let mut numbers = Vec::new();
    for (name, producer) in producers {
        let (number, sums) = producer.stop();
        for (key, (count, sum)) in sums {
            let all = expected.entry(key).or_default();
            *all = (all.0 + count, all.1 + sum);
        }
        last = last.max(number);
        numbers.push((name, number));
    }
    let end = time_of(last) + 600_000;
    for (name, number) in numbers {
        let text: String = (0..SENSORS).map(|sensor| format!("s{sensor}, 0, {end}\n")).collect();
        let mut at = ask;
        settles("the end is acknowledged", || {
            at += 1;
            send_http(doors, at, name, number, &text)
        });
    }
    let http = Http::of(cluster.member(ask));
    let mut readings = 0;
    for sensor in 0..SENSORS {
        let range = format!(
            "/v1/streams/s/sensors/s{sensor}/windows?from={BASE}&to={}&limit=10000",
            time_of(last) + WINDOW_MS
        );
        let wanted: Vec<_> = expected
            .iter()
            .filter(|((of, _), _)| *of == sensor)
            .map(|((_, start), (count, sum))| (*start, *count, *sum))
            .collect();
        let mut found = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while found != wanted {
            assert!(Instant::now() < deadline, "s{sensor}: {found:?} and not {wanted:?}");
            let answer = http.get(&range);
            if answer.status != 200 {
                continue;
            }
            let answer = answer.json();
            let windows = answer["windows"].as_array().unwrap().iter();
            found = windows
                .map(|window| {
                    let figure = |name: &str| window[name].as_f64().unwrap() as i64;
                    (figure("start"), figure("count"), figure("sum"))
                })
                .collect();
        }
        readings += wanted.iter().map(|(_, count, _)| count).sum::<i64>();
    }
    println!("{readings} readings, each counted once, in {} windows", expected.len());
}

/// All copies of all partitions of the caches are equal.
fn copies_are_equal(cluster: &Cluster, ask: usize) {
    let address = format!("kiln://{}", cluster.member(ask).address("native"));
    let mut verify = kiln(&["cluster", "verify", "--strict"]);
    verify.env("KILN_ADDRESS", address);
    settles("all copies are equal", || {
        let output = verify.output().unwrap();
        let equal = output.status.success();
        if !equal {
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
        equal
    });
}

fn lost(cluster: &Cluster, nodes: impl Iterator<Item = usize>) -> f64 {
    nodes.map(|number| cluster.metric(number, "kiln_stream_states_lost_total{stream=\"s\"}")).sum()
}

#[test]
fn nodes_that_are_killed_take_no_acknowledged_reading_with_them_and_none_counts_twice() {
    let flags = ["--listen-ingest", "127.0.0.1:0"];
    let mut cluster = Cluster::start(3, &flags);
    cluster.until_whole(3);
    make(&cluster, 3);
    cluster.until_whole(3);
    let doors = doors_of(&cluster, 3);
    let producers = vec![
        ("one", Producer::start("one", &doors, false)),
        ("two", Producer::start("two", &doors, true)),
    ];
    let acknowledged = |producers: &[(&str, Producer)]| -> Vec<i64> {
        producers.iter().map(|(_, producer)| producer.acknowledged.load(Relaxed)).collect()
    };
    for round in 0..3 {
        let before = acknowledged(&producers);
        settles("readings flow", || {
            acknowledged(&producers).iter().zip(&before).all(|(now, then)| *now > then + 20)
        });
        // Not the same node each time, and the one that all met first among them.
        let victim = [1, 0, 2][round];
        let other = (victim + 1) % 3;
        let http = Http::of(cluster.member(other));
        let seen = newest(&http);
        doors.lock().unwrap()[victim] = None;
        let killed = Instant::now();
        cluster.kill(victim);
        settles("windows close again", || newest(&http) > seen);
        println!("round {round}: the next window after {:?}", killed.elapsed());
        let before = acknowledged(&producers);
        settles("readings flow without it", || {
            acknowledged(&producers).iter().zip(&before).all(|(now, then)| *now > then + 20)
        });
        cluster.restart(victim);
        let member = cluster.member(victim);
        doors.lock().unwrap()[victim] = Some((member.address("http"), member.address("ingest")));
        cluster.until_whole(3);
    }
    prove(&cluster, 0, &doors, producers);
    assert_eq!(lost(&cluster, 0..3), 0.0);
    copies_are_equal(&cluster, 1);
}

#[test]
fn a_node_that_joins_or_leaves_takes_its_share_of_the_state_over_and_back() {
    let flags = ["--listen-ingest", "127.0.0.1:0"];
    let mut cluster = Cluster::start(1, &flags);
    make(&cluster, 1);
    let doors = doors_of(&cluster, 1);
    let producers = vec![("one", Producer::start("one", &doors, false))];
    let flows = |what: &str| {
        let before = producers[0].1.acknowledged.load(Relaxed);
        settles(what, || producers[0].1.acknowledged.load(Relaxed) > before + 20);
    };
    flows("readings flow on one node");
    cluster.add(&flags);
    let member = cluster.member(1);
    let door = (member.address("http"), member.address("ingest"));
    doors.lock().unwrap().push(Some(door));
    cluster.until_whole(2);
    flows("readings flow on two nodes");
    let http = Http::of(cluster.member(1));
    settles("the second node has sensors", || {
        http.get("/v1/streams/s").json()["figures"]["sensors"].as_u64() > Some(5)
    });
    flows("readings flow on both");
    // The node that was first hands over what it has, and goes.
    doors.lock().unwrap()[0] = None;
    assert_eq!(cluster.stop(0), Some(0));
    flows("readings flow on the second node");
    prove(&cluster, 1, &doors, producers);
    assert_eq!(lost(&cluster, 1..2), 0.0);
}
