//! Clients that send garbage, do not read, half close or never finish do no harm to others; load,
//! signals and changes of memory lose nothing that was acknowledged.
//!
//! While the bad ones are at it, a good client asks small questions and must be answered within
//! [`PATIENCE`], which is far more than it takes and far less than a node that is stuck needs.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, Node, SOON, eventually};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(5);
const MIB: f64 = (1 << 20) as f64;

/// Asks small questions while `harm` goes on, and again afterwards.
fn while_others_are_served(node: &Node, harm: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let address = node.address("memcached");
    thread::scope(|scope| {
        let good = scope.spawn(|| {
            let (mut slowest, mut asked) = (Duration::ZERO, 0_u64);
            let mut client = patient(address);
            while !stop.load(Ordering::Relaxed) || asked < 10 {
                let begun = Instant::now();
                // Every now and then as someone new.
                if asked.is_multiple_of(20) {
                    client = patient(address);
                }
                let value = asked.to_string();
                let reply = client.ask(&format!("set good 0 0 {}\r\n{value}\r\n", value.len()));
                assert_eq!(reply, "STORED\r\n");
                assert_eq!(client.ask("mg good v\r\n"), format!("VA {}\r\n", value.len()));
                assert_eq!(client.line(), format!("{value}\r\n"));
                slowest = slowest.max(begun.elapsed());
                asked += 1;
                thread::sleep(Duration::from_millis(5));
            }
            (slowest, asked)
        });
        // The good client must be let go whatever becomes of this.
        let harmed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(harm));
        stop.store(true, Ordering::Relaxed);
        let (slowest, asked) = good.join().unwrap();
        println!("a good client asked {asked} times meanwhile, slowest answer {slowest:?}");
        assert!(slowest < PATIENCE, "{slowest:?}");
        if let Err(panic) = harmed {
            std::panic::resume_unwind(panic);
        }
    });
}

fn patient(address: SocketAddr) -> Client<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client(BufReader::new(stream))
}

fn connect(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.address("memcached")).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn resident_mib(node: &Node) -> f64 {
    node.metric("process_resident_memory_bytes") / MIB
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[test]
fn clients_that_send_garbage_do_no_harm() {
    let node = Node::start(&["--memory", "32MiB"]);
    let words = [
        "get ",
        "gets ",
        "set ",
        "cas ",
        "mg ",
        "ms ",
        "ma ",
        "md ",
        "me ",
        "mn",
        "incr ",
        "gat ",
        "stats ",
        "k",
        " ",
        "0 ",
        "1 ",
        "-1 ",
        "99999999999999999999 ",
        "2147483647 ",
        "\r\n",
        "\n",
        "\r",
        "noreply",
        "b ",
        "v ",
        "q ",
        "Ofoo ",
        "T-1 ",
        "\0",
        "\u{7f}",
        "verbosity ",
        "VALUE ",
    ];
    while_others_are_served(&node, || {
        for seed in 0..60 {
            let mut state = seed;
            let mut garbage = Vec::new();
            while garbage.len() < 30_000 {
                match next(&mut state) % 3 {
                    // Bytes that mean nothing, and words that nearly do.
                    0 if seed % 2 == 0 => garbage.extend(next(&mut state).to_le_bytes()),
                    _ => {
                        let word = words[(next(&mut state) % words.len() as u64) as usize];
                        garbage.extend_from_slice(word.as_bytes());
                    }
                }
            }
            let mut stream = connect(&node);
            // Replies are read so that it is the garbage that is tested; an end is an answer too.
            let mut reader = stream.try_clone().unwrap();
            let replies = thread::spawn(move || {
                let mut replies = Vec::new();
                let _ = reader.read_to_end(&mut replies);
                replies.len()
            });
            let _ = stream.write_all(&garbage);
            let _ = stream.shutdown(Shutdown::Write);
            replies.join().unwrap();
        }
    });
    assert!(node.metric("kiln_protocol_errors_total") > 100.0);
    eventually("all are gone", || node.metric("kiln_connections") == 0.0);
}

#[test]
fn clients_that_do_not_read_their_replies_cannot_grow_memory() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut client = node.connect();
    // A mix: values that are copied into the replies, and those that are pinned in the store.
    for (key, len) in [("small", 4_000), ("large", 1 << 20)] {
        let reply = client.ask(&format!("set {key} 0 0 {len}\r\n{}\r\n", "x".repeat(len)));
        assert_eq!(reply, "STORED\r\n");
    }
    let before = resident_mib(&node);
    while_others_are_served(&node, || {
        let mut greedy = Vec::new();
        for number in 0..60 {
            let mut stream = connect(&node);
            stream.set_nonblocking(true).unwrap();
            let request = if number % 2 == 0 { "get large\r\n" } else { "get small\r\n" };
            // Answers of 500 MiB and more for each of the first kind.
            let requests = request.repeat(500);
            let mut sent = 0;
            let begun = Instant::now();
            while sent < requests.len() && begun.elapsed() < Duration::from_millis(100) {
                match stream.write(&requests.as_bytes()[sent..]) {
                    Ok(len) => sent += len,
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
            greedy.push(stream);
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
fn a_client_that_reads_late_gets_every_byte_in_order() {
    let node = Node::start(&["--memory", "64MiB"]);
    let mut stream = connect(&node);
    let values: Vec<Vec<u8>> =
        [10, 5_000, 300_000].iter().map(|len| (0..*len).map(|i| (i * 7) as u8).collect()).collect();
    for (number, value) in values.iter().enumerate() {
        write!(stream, "set k{number} 0 0 {} noreply\r\n", value.len()).unwrap();
        stream.write_all(value).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    let asked: Vec<usize> = (0..150).map(|i| [0, 1, 2, 1, 0][i % 5]).collect();
    let requests: String = asked.iter().map(|number| format!("mg k{number} v k\r\n")).collect();
    stream.write_all(requests.as_bytes()).unwrap();
    // Far more than the sockets hold: the node has to wait, and to go on.
    thread::sleep(Duration::from_millis(300));
    let mut reader = BufReader::new(stream);
    for number in asked {
        let value = &values[number];
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("VA {} kk{number}\r\n", value.len()));
        let mut got = vec![0; value.len() + 2];
        reader.read_exact(&mut got).unwrap();
        assert!(got.strip_suffix(b"\r\n") == Some(value.as_slice()), "k{number}");
    }
}

#[test]
fn a_client_that_half_closes_still_gets_its_replies() {
    let node = Node::start(&["--memory", "64MiB"]);
    while_others_are_served(&node, || {
        for round in 0..50 {
            let mut stream = connect(&node);
            let value = "v".repeat(200_000);
            let request =
                format!("set half{round} 0 0 200000\r\n{value}\r\nget half{round}\r\nget");
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            let expected = format!("STORED\r\nVALUE half{round} 0 200000\r\n{value}\r\nEND\r\n");
            assert!(reply == expected, "{} bytes", reply.len());
        }
    });
}

#[test]
fn clients_that_never_finish_their_requests_do_no_harm() {
    let node = Node::start(&["--memory", "64MiB"]);
    let before = resident_mib(&node);
    while_others_are_served(&node, || {
        let mut unfinished = Vec::new();
        for number in 0..200 {
            let mut stream = connect(&node);
            stream.set_nonblocking(true).unwrap();
            let request = match number % 4 {
                0 => "get".to_owned(),
                1 => format!("get {}", "key ".repeat(1_000)),
                2 => "set k 0 0 1048576\r\n".to_owned(),
                _ => format!("set k 0 0 1048576\r\n{}", "x".repeat(600_000)),
            };
            // What the node does not take now stays with the client.
            let _ = stream.write(request.as_bytes());
            unfinished.push(stream);
        }
        thread::sleep(Duration::from_millis(500));
        let after = resident_mib(&node);
        println!("RSS {before:.1} MiB, with 200 unfinished requests {after:.1} MiB");
        assert!(after < before + 40.0, "{before:.1} MiB before, {after:.1} MiB now");
    });
    eventually("all are gone", || node.metric("kiln_connections") == 0.0);
    let mut client = node.connect();
    assert_eq!(client.ask("get k\r\n"), "END\r\n");
    let large = format!("set k 0 0 1000000\r\n{}\r\n", "x".repeat(1_000_000));
    assert_eq!(client.ask(&large), "STORED\r\n");
}

#[test]
fn an_idle_timeout_ends_also_a_client_with_half_a_request() {
    let node = Node::start(&["--idle-timeout", "500ms"]);
    let mut client = node.connect();
    client.send("set k 0 0 5\r\nhe");
    client.assert_closed();
    assert_eq!(node.metric("kiln_connections_idle_closed_total"), 1.0);
}

#[test]
fn values_far_over_the_limit_are_skipped_without_being_held() {
    let node = Node::start(&["--memory", "32MiB"]);
    let before = resident_mib(&node);
    let mut stream = connect(&node);
    let len = 200 << 20;
    write!(stream, "set k 0 0 {len}\r\n").unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut highest: f64 = 0.0;
    for number in 0..200 {
        stream.write_all(&piece).unwrap();
        if number % 20 == 0 {
            highest = highest.max(resident_mib(&node));
        }
    }
    stream.write_all(b"\r\nget k\r\n").unwrap();
    let mut client = Client(BufReader::new(stream));
    assert_eq!(client.line(), "SERVER_ERROR object too large for cache\r\n");
    assert_eq!(client.line(), "END\r\n");
    // A young node grows by some MiB of its own; 200 would be seen.
    assert!(highest < before + 16.0, "{before:.1} MiB before, {highest:.1} MiB meanwhile");
}

#[test]
fn two_thousand_idle_connections_cost_little_memory() {
    const CONNECTIONS: usize = 2_000;
    // Two ends of each connection, in two processes: the node inherits this limit.
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < 2 * CONNECTIONS as u64) {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
    let node = Node::start(&["--memory", "32MiB"]);
    let speak = |client: &mut Client<TcpStream>| {
        assert!(client.ask("version\r\n").starts_with("VERSION "));
    };
    // What the node allocates once for all, it has by then.
    let mut warm: Vec<_> = (0..500).map(|_| node.connect()).collect();
    warm.iter_mut().for_each(speak);
    let before = node.metric("process_resident_memory_bytes");

    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| node.connect()).collect();
    // Each has been served, so what it used then is what must not stay.
    for client in &mut clients {
        speak(client);
    }
    assert_eq!(node.metric("kiln_connections"), (CONNECTIONS + warm.len()) as f64);
    let grown = node.metric("process_resident_memory_bytes") - before;
    // A young node grows by some MiB of its own.
    let each = (grown - 6.0 * 1_048_576.0) / CONNECTIONS as f64;
    println!("{grown:.0} bytes of RSS for {CONNECTIONS} idle connections");
    assert!(each < 4_096.0, "{each:.0} bytes for each");
    drop(clients);
    eventually("all are gone", || node.metric("kiln_connections") == warm.len() as f64);
    speak(&mut warm[0]);
}

#[test]
fn a_stop_under_load_leaves_no_batch_half_answered() {
    const BATCH: usize = 100;
    let mut node = Node::start(&["--memory", "64MiB", "--threads", "2"]);
    let (batches, started) = (AtomicU64::new(0), AtomicU64::new(0));
    let address = node.address("memcached");
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let (batches, started) = (&batches, &started);
                scope.spawn(move || {
                    let stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(SOON)).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut writer = stream;
                    let batch: String = (0..BATCH)
                        .map(|i| format!("set k{number}:{i} 0 0 10\r\n0123456789\r\n"))
                        .collect();
                    loop {
                        // In one write, so that it is on its way as a whole.
                        if writer.write_all(batch.as_bytes()).is_err() {
                            return;
                        }
                        let mut answered = 0;
                        let mut line = String::new();
                        while answered < BATCH {
                            line.clear();
                            match reader.read_line(&mut line) {
                                Ok(0) | Err(_) => break,
                                Ok(_) => assert_eq!(line, "STORED\r\n"),
                            }
                            answered += 1;
                        }
                        match answered {
                            BATCH => batches.fetch_add(1, Ordering::Relaxed),
                            0 => return,
                            part => panic!("{part} of {BATCH} writes were answered"),
                        };
                        started.fetch_or(1 << number, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        eventually("all clients are at it", || started.load(Ordering::Relaxed) == 0xFF);
        thread::sleep(Duration::from_millis(200));
        node.signal(Signal::TERM);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(node.wait().code(), Some(0));
    let batches = batches.into_inner();
    println!("{batches} batches were answered, each as a whole");
    assert!(batches > 50);
}

#[test]
fn a_delayed_flush_comes_in_time_and_takes_only_what_was_there() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    assert_eq!(client.ask("set old 0 0 1\r\n1\r\n"), "STORED\r\n");
    let begun = Instant::now();
    assert_eq!(client.ask("flush_all 1\r\n"), "OK\r\n");
    assert_eq!(client.ask("mg old\r\n"), "HD\r\n");
    let gone = loop {
        if client.ask("mg old\r\n") == "EN\r\n" {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < SOON);
        thread::sleep(Duration::from_millis(2));
    };
    assert!(gone >= Duration::from_millis(900) && gone < Duration::from_secs(3), "{gone:?}");
    assert_eq!(client.ask("set new 0 0 1\r\n1\r\n"), "STORED\r\n");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(client.ask("mg new\r\n"), "HD\r\n");
}

#[test]
fn a_lowered_memory_limit_gives_memory_back_and_keeps_serving() {
    let node = Node::start(&["--memory", "128MiB"]);
    let mut client = node.connect();
    for batch in 0..120 {
        let value = "x".repeat(1_000);
        let sets: String = (0..1_000)
            .map(|i| format!("set k{batch}:{i} 0 0 1000 noreply\r\n{value}\r\n"))
            .collect();
        client.send(sets);
    }
    assert_eq!(client.ask("mn\r\n"), "MN\r\n");
    let full = resident_mib(&node);
    assert_eq!(client.ask("cache_memlimit 32\r\n"), "OK\r\n");
    let mut now = full;
    eventually("memory is given back", || {
        now = resident_mib(&node);
        // The program itself stands beside so small a ceiling.
        now < 32.0 * 1.1 + 36.0
    });
    println!("RSS {full:.1} MiB, after cache_memlimit 32 {now:.1} MiB");
    assert!(full > 90.0, "{full:.1}");
    // Until it is below the new limit, the node may refuse what would need a new page.
    eventually("it stores again", || client.ask("set after 0 0 1\r\n1\r\n") == "STORED\r\n");
    assert_eq!(client.ask("mg after\r\n"), "HD\r\n");
    assert!(node.metric("kiln_items") > 1_000.0);
}
