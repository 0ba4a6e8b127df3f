//! Whole runs against small servers in this process, each on a free port.

// The lint spares test functions by itself, but not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use kiln_load::{
    Contestant, Echo, KeyDist, Length, Plan, Progress, Protocol, Ratio, Report, RunError, Target,
    compare, run,
};
use kiln_protocol::command::{Command, ItemMeta, Outcome};
use kiln_protocol::native::{Body, HitHead, MAGIC, Request, admin, respond};

fn plan(server: SocketAddr) -> Plan {
    Plan {
        target: Target::Tcp(server.to_string()),
        connections: 4,
        pipeline: 8,
        keys: 1000,
        length: Length::Requests(20_000),
        ..Plan::default()
    }
}

fn run_to_end(plan: &Plan) -> Report {
    run(plan, Progress::Silent, &AtomicBool::new(false)).unwrap()
}

/// Serves until the test process ends.
fn null_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            kiln_null_server::serve(listener).await
        })
    });
    address
}

/// Gives each connection to `serve` on a thread of its own.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// A map behind the memcached text protocol, one request at a time.
fn map_server() -> SocketAddr {
    let map = std::sync::Mutex::new(HashMap::<String, Vec<u8>>::new());
    server(move |stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut output = stream;
        let mut line = String::new();
        while input.read_line(&mut line).unwrap_or(0) > 0 {
            let words: Vec<_> = line.split_whitespace().collect();
            let reply = match words[..] {
                ["get", key] => match map.lock().unwrap().get(key) {
                    None => b"END\r\n".to_vec(),
                    Some(data) => {
                        let head = format!("VALUE {key} 0 {}\r\n", data.len());
                        [head.as_bytes(), data, b"\r\nEND\r\n"].concat()
                    }
                },
                ["set", key, _, _, len] => {
                    let mut data = vec![0; len.parse::<usize>().unwrap() + 2];
                    input.read_exact(&mut data).unwrap();
                    data.truncate(data.len() - 2);
                    map.lock().unwrap().insert(key.to_owned(), data);
                    b"STORED\r\n".to_vec()
                }
                _ => b"ERROR\r\n".to_vec(),
            };
            if output.write_all(&reply).is_err() {
                return;
            }
            line.clear();
        }
    })
}

#[test]
fn every_request_of_a_run_is_answered_and_counted_once() {
    let report = run_to_end(&plan(null_server()));

    assert_eq!((report.operations, report.errors.total()), (20_000, 0), "{report}");
    assert_eq!(report.latency.all.count, 20_000);
    assert_eq!(report.hit_percent, Some(100.0));
    let sets = report.latency.set.unwrap().count;
    assert!((1_600..2_040).contains(&sets), "{sets} sets are not one in eleven");
    assert!(report.latency.all.p50_us > 0.0 && report.operations_per_second > 0.0);
}

#[test]
fn a_run_of_a_given_time_measures_that_time() {
    let length = Length::Duration(Duration::from_millis(300));
    let warmup = Duration::from_millis(100);
    let report = run_to_end(&Plan { length, warmup, threads: 2, ..plan(null_server()) });

    assert!((0.3..5.0).contains(&report.elapsed_seconds), "{report}");
    assert!(report.operations > 100 && report.errors.total() == 0, "{report}");
}

#[test]
fn what_was_preloaded_is_found_and_verified() {
    let report = run_to_end(&Plan {
        preload: true,
        verify: true,
        key_dist: KeyDist::Zipf { exponent: 0.99 },
        sizes: "0-40:8,1000:1,70000:1".parse().unwrap(),
        length: Length::Requests(5_000),
        ..plan(map_server())
    });

    assert_eq!(report.preload.unwrap().keys, 1000);
    assert_eq!((report.errors.total(), report.hit_percent), (0, Some(100.0)), "{report}");
}

#[test]
fn without_preload_reads_of_an_empty_server_miss() {
    let ratio = Ratio { sets: 0, gets: 1 };
    let report = run_to_end(&Plan { ratio, ..plan(map_server()) });

    assert_eq!((report.hits, report.misses, report.errors.total()), (0, 20_000, 0));
}

#[test]
fn a_wrong_value_is_an_error_when_values_are_verified() {
    let ratio = Ratio { sets: 0, gets: 1 };
    let report = run_to_end(&Plan { verify: true, ratio, ..plan(null_server()) });

    assert_eq!(report.errors.mismatched, 20_000);
    assert!(report.first_error.unwrap().contains("wrong bytes"));
}

#[test]
fn the_generator_keeps_to_the_rate_it_was_given() {
    let report = run_to_end(&Plan {
        rate: Some(2_000.0),
        length: Length::Duration(Duration::from_secs(1)),
        ..plan(null_server())
    });

    let per_second = report.operations as f64 / report.elapsed_seconds;
    assert!((1_700.0..2_100.0).contains(&per_second), "{report}");
}

#[test]
fn at_a_fixed_rate_a_stall_is_charged_to_every_request_that_was_due() {
    let stalling = server(|mut stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        for count in 0.. {
            line.clear();
            if input.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if count == 100 {
                thread::sleep(Duration::from_millis(400));
            }
            if stream.write_all(b"END\r\n").is_err() {
                return;
            }
        }
    });
    let report = run_to_end(&Plan {
        rate: Some(500.0),
        connections: 1,
        pipeline: 1,
        ratio: Ratio { sets: 0, gets: 1 },
        length: Length::Requests(500),
        ..plan(stalling)
    });

    // 200 of 500 requests fell due in the stall; their waits run evenly from 400 ms down.
    assert!(report.latency.all.p90_us > 150_000.0, "{report}");
    assert!(report.latency.all.max_us >= 390_000.0, "{report}");
}

#[test]
fn a_server_that_hangs_up_is_an_error_and_not_a_hang() {
    let report = run_to_end(&plan(server(|mut stream| {
        let _ = stream.read(&mut [0; 10]);
    })));

    assert!(report.errors.lost >= 4, "{report}");
    assert_eq!(report.operations, 0);
}

#[test]
fn a_server_that_refuses_is_an_error() {
    let refusing = server(|mut stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while input.read_line(&mut line).unwrap_or(0) > 0 {
            if stream.write_all(b"SERVER_ERROR out of memory\r\n").is_err() {
                return;
            }
            line.clear();
        }
    });
    let ratio = Ratio { sets: 0, gets: 1 };
    let report = run_to_end(&Plan { ratio, ..plan(refusing) });

    assert_eq!(report.errors.refused, 20_000);
    assert!(report.first_error.unwrap().contains("out of memory"));
}

#[test]
fn a_server_that_never_answers_ends_the_run() {
    let silent = server(|mut stream| {
        let mut sink = [0; 4096];
        while stream.read(&mut sink).unwrap_or(0) > 0 {}
    });
    let stall_timeout = Duration::from_millis(200);
    let plan = Plan { stall_timeout, ..plan(silent) };
    let outcome = run(&plan, Progress::Silent, &AtomicBool::new(false));

    assert!(matches!(outcome, Err(RunError::Stalled { outstanding: 32, stage: "measure", .. })));
}

#[test]
fn a_cancelled_run_reports_what_it_has() {
    let plan = Plan { length: Length::Duration(Duration::from_secs(60)), ..plan(null_server()) };
    let report = run(&plan, Progress::Silent, &AtomicBool::new(true)).unwrap();

    assert!(report.interrupted && report.elapsed_seconds < 10.0);
}

#[test]
fn a_plan_that_contradicts_itself_sends_nothing() {
    let address = null_server();
    let wrong = [
        Plan { threads: 8, ..plan(address) },
        Plan { pipeline: 0, ..plan(address) },
        Plan { keys: 0, ..plan(address) },
        Plan { key_len: 5, ..plan(address) },
        Plan { ratio: Ratio { sets: 0, gets: 0 }, ..plan(address) },
        Plan { rate: Some(0.0), ..plan(address) },
        Plan { key_prefix: "a b".to_owned(), ..plan(address) },
    ];
    for plan in wrong {
        let outcome = run(&plan, Progress::Silent, &AtomicBool::new(false));
        assert!(matches!(outcome, Err(RunError::Plan { .. })), "{plan:?}");
    }
}

#[test]
fn meta_commands_find_what_they_stored() {
    let map = std::sync::Mutex::new(HashMap::<String, Vec<u8>>::new());
    let address = server(move |stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut output = stream;
        let mut line = String::new();
        while input.read_line(&mut line).unwrap_or(0) > 0 {
            let words: Vec<_> = line.split_whitespace().collect();
            let reply = match words[..] {
                ["mg", key, "v"] => match map.lock().unwrap().get(key) {
                    None => b"EN\r\n".to_vec(),
                    Some(data) => {
                        [format!("VA {}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
                    }
                },
                ["ms", key, len] => {
                    let mut data = vec![0; len.parse::<usize>().unwrap() + 2];
                    input.read_exact(&mut data).unwrap();
                    data.truncate(data.len() - 2);
                    map.lock().unwrap().insert(key.to_owned(), data);
                    b"HD\r\n".to_vec()
                }
                _ => b"ERROR\r\n".to_vec(),
            };
            if output.write_all(&reply).is_err() {
                return;
            }
            line.clear();
        }
    });
    let report = run_to_end(&Plan {
        protocol: Protocol::Meta,
        preload: true,
        verify: true,
        length: Length::Requests(5_000),
        ..plan(address)
    });

    assert_eq!((report.errors.total(), report.hit_percent), (0, Some(100.0)), "{report}");
}

/// Native answers to gets and sets, each pair of requests answered in the opposite order.
fn native_server() -> SocketAddr {
    let map = std::sync::Mutex::new(HashMap::<Vec<u8>, Vec<u8>>::new());
    server(move |mut stream| {
        let mut held: Option<Vec<u8>> = None;
        loop {
            let mut head = [0; 4];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let mut body = vec![0; u32::from_be_bytes(head) as usize];
            stream.read_exact(&mut body).unwrap();
            let request = Request::decode(&body).unwrap();
            let mut answer = Vec::new();
            match request.body {
                Body::Hello(hello) => {
                    assert_eq!(hello.magic, MAGIC);
                    let welcome = admin::Welcome { server: "kiln/9".into(), ..Default::default() };
                    respond::structure(&mut answer, request.id, &welcome);
                    stream.write_all(&answer).unwrap();
                    continue;
                }
                Body::Data(data) => match data.item.command {
                    Command::Store(store) => {
                        map.lock().unwrap().insert(store.key.to_vec(), store.value.to_vec());
                        let stored = Outcome::Stored(ItemMeta::default());
                        respond::outcome(&mut answer, request.id, &stored, None);
                    }
                    Command::Get(get) => match map.lock().unwrap().get(get.key) {
                        None => {
                            respond::outcome(&mut answer, request.id, &Outcome::NotFound, None);
                        }
                        Some(value) => {
                            let item = ItemMeta { value_len: value.len(), ..Default::default() };
                            let head = HitHead { item: &item, with_value: true };
                            respond::hit_head(&mut answer, request.id, head);
                            answer.extend_from_slice(value);
                        }
                    },
                    other => panic!("{other:?} was not asked for"),
                },
                other => panic!("{other:?} was not asked for"),
            }
            match held.take() {
                None => held = Some(answer),
                Some(first) => {
                    answer.extend_from_slice(&first);
                    if stream.write_all(&answer).is_err() {
                        return;
                    }
                }
            }
        }
    })
}

#[test]
fn native_answers_are_matched_to_their_requests_in_any_order() {
    let report = run_to_end(&Plan {
        protocol: Protocol::Native,
        preload: true,
        verify: true,
        connections: 1,
        keys: 1000,
        length: Length::Requests(4_000),
        ..plan(native_server())
    });

    assert_eq!((report.errors.total(), report.hit_percent), (0, Some(100.0)), "{report}");
    assert_eq!(report.server_version.as_deref(), Some("kiln/9"));
    assert_eq!(report.operations, 4_000);
}

#[test]
fn a_server_of_another_protocol_is_refused_before_anything_is_measured() {
    let memcached = server(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(b"ERROR\r\n");
    });
    let plan = Plan { protocol: Protocol::Native, ..plan(memcached) };
    let outcome = run(&plan, Progress::Silent, &AtomicBool::new(false));

    let error = outcome.unwrap_err();
    assert!(matches!(error, RunError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("native protocol"), "{error}");
}

#[test]
fn http_keys_and_pages_are_read_and_written() {
    let map = std::sync::Mutex::new(HashMap::<String, Vec<u8>>::new());
    let address = server(move |stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut output = stream;
        loop {
            let (mut first, mut len) = (String::new(), 0);
            if input.read_line(&mut first).unwrap_or(0) == 0 {
                return;
            }
            loop {
                let mut header = String::new();
                input.read_line(&mut header).unwrap();
                if let Some(value) = header.strip_prefix("Content-Length: ") {
                    len = value.trim().parse().unwrap();
                }
                if header == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; len];
            input.read_exact(&mut body).unwrap();
            let words: Vec<_> = first.split_whitespace().collect();
            let (status, body) = match words[..] {
                ["PUT", path, _] => {
                    assert!(path.starts_with("/v1/caches/default/keys/key:"), "{path}");
                    map.lock().unwrap().insert(path.to_owned(), body);
                    ("204 No Content", Vec::new())
                }
                ["GET", "/page", _] => ("200 OK", b"page".to_vec()),
                ["GET", path, _] => match map.lock().unwrap().get(path) {
                    Some(value) => ("200 OK", value.clone()),
                    None => ("404 Not Found", b"{}".to_vec()),
                },
                _ => ("400 Bad Request", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            if output.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                return;
            }
        }
    });
    let keys = Plan { protocol: Protocol::Http, ..plan(address) };
    let keys = Plan { keys: 200, length: Length::Requests(2_000), ..keys };
    let cold = run_to_end(&Plan { ratio: Ratio { sets: 0, gets: 1 }, ..keys.clone() });
    assert_eq!((cold.misses, cold.errors.total()), (2_000, 0), "{cold}");
    let warm = run_to_end(&Plan { preload: true, verify: true, ..keys.clone() });
    assert_eq!((warm.hit_percent, warm.errors.total()), (Some(100.0), 0), "{warm}");
    let page = run_to_end(&Plan { http_path: Some("/page".to_owned()), ..keys });
    assert_eq!((page.hits, page.errors.total()), (2_000, 0), "{page}");
}

#[test]
fn contestants_take_turns_and_are_compared_by_medians() {
    let short = Plan { length: Length::Requests(1_000), ..plan(null_server()) };
    let echo = Echo::start().unwrap();
    let sides = [
        Contestant { name: "null".to_owned(), plan: short.clone() },
        Contestant {
            name: "echo".to_owned(),
            plan: Plan {
                protocol: Protocol::Echo,
                target: Target::Tcp(echo.address().to_string()),
                ..short
            },
        },
    ];
    let outcome = compare(&sides, 3, Progress::Silent, &AtomicBool::new(false)).unwrap();

    assert_eq!(outcome.errors(), 0, "{outcome}");
    assert!(outcome.contestants.iter().all(|side| side.reports.len() == 3));
    assert!((outcome.contestants[0].p50_ratio - 1.0).abs() < 1e-9);
    assert!(outcome.contestants[1].p50_ratio > 0.0);
    assert!(outcome.to_string().contains("ratios are to null"), "{outcome}");
}

#[test]
fn the_distribution_file_ends_at_the_slowest_request() {
    let report = run_to_end(&plan(null_server()));
    let mut text = Vec::new();
    report.write_distribution(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();

    assert!(text.trim_start().starts_with("Value"), "{text}");
    let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
    let fields: Vec<f64> = last.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields[1], fields[2]), (1.0, 20_000.0), "{last}");
}
