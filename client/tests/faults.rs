//! What calls say, and how long they take, when nodes and connections fail.
#![allow(clippy::unwrap_used)]

mod double;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use double::{Act, Double, SOON};
use futures_util::{FutureExt, future::join_all};
use kiln_client::{
    Backoff, Client, Counters, Error, ErrorCode, Event, NearCacheConfig, Put, Reason, RetryPolicy,
    WaitingFor,
};
use kiln_protocol::native::{Effect, admin::capability, respond};
use tokio::time::timeout;

const SHORT: Duration = Duration::from_millis(100);

/// The first request of a kind gets `act`, everything else is answered.
fn first(what: &'static str, act: Act) -> impl FnMut(&double::Seen) -> Act + Send {
    let mut act = Some(act);
    move |seen| if seen.what == what { act.take().unwrap_or(Act::Answer) } else { Act::Answer }
}

async fn soon<F: IntoFuture>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("in vain")
}

#[tokio::test]
async fn a_write_whose_connection_is_lost_may_have_happened_and_is_not_repeated() {
    let node = Double::start().await;
    let client = node.client().await;
    node.script(first("set", Act::Close));

    let error = client.set("k", "v").await.unwrap_err();

    assert!(error.is_indeterminate(), "{error}");
    assert!(matches!(error.reason(), Reason::Disconnected { .. }));
    assert_eq!(node.count("set"), 1);
    assert_eq!(node.value("default", "k").as_deref(), Some("v"), "it did happen");
}

#[tokio::test]
async fn a_write_whose_connection_is_lost_is_repeated_where_that_was_asked_for() {
    let node = Double::start().await;
    let client = node.client().await;
    node.script(first("set", Act::Close));

    client.with_repeated_writes().set("k", "v").await.unwrap();

    assert_eq!(node.count("set"), 2);
}

#[tokio::test]
async fn what_is_not_the_same_twice_is_not_repeated_even_then() {
    let node = Double::start().await;
    let cache = node.client().await.with_repeated_writes();
    node.script(first("count", Act::Close));

    let error = cache.increment("n", 1).or_create(0).await.unwrap_err();
    assert!(error.is_indeterminate());
    assert_eq!(node.count("count"), 1);

    node.script(first("set", Act::Close));
    assert!(cache.append("k", "v").await.unwrap_err().is_indeterminate());
    node.script(first("set", Act::Close));
    assert!(cache.set("k", "v").if_version(1).await.unwrap_err().is_indeterminate());
    assert_eq!(node.count("set"), 2);
}

#[tokio::test]
async fn a_node_that_knows_repeated_writes_again_is_asked_again_with_the_same_number() {
    let node = Double::start().await;
    node.change_welcome(|welcome| {
        welcome.capabilities.push(capability::RETRY_WINDOW.to_owned());
    });
    let client = node.client().await;
    node.script(first("count", Act::Close));

    client.increment("n", 1).or_create(0).await.unwrap();
    client.increment("n", 1).await.unwrap();

    let numbers: Vec<_> = node
        .seen()
        .into_iter()
        .filter(|seen| seen.what == "count")
        .map(|seen| seen.retry.unwrap())
        .collect();
    assert_eq!(numbers.len(), 3);
    assert_eq!(numbers[0], numbers[1]);
    assert_ne!(numbers[1], numbers[2]);
}

#[tokio::test]
async fn a_read_whose_connection_is_lost_is_made_again() {
    let node = Double::start().await;
    let client = node.client().await;
    node.put("default", "k", "v");
    node.script(first("get", Act::Close));

    assert_eq!(client.get("k").await.unwrap().as_deref(), Some(b"v".as_slice()));
    assert_eq!(node.count("get"), 2);
    assert_eq!(node.connected(), 2);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let node = Double::start().await;
    let cache = node.client().await.with_timeout(SHORT);
    node.script(|_| Act::Swallow);

    let begun = Instant::now();
    let read = cache.get("k").await.unwrap_err();
    let write = cache.set("k", "v").await.unwrap_err();
    let took = begun.elapsed();

    assert!(read.is_deadline_exceeded() && read.is_not_applied(), "{read}");
    assert!(write.is_deadline_exceeded() && write.is_indeterminate(), "{write}");
    assert!(took >= 2 * SHORT && took < 20 * SHORT, "{took:?}");
}

#[tokio::test]
async fn a_shorter_deadline_is_kept_while_a_longer_one_is_waited_for() {
    let node = Double::start().await;
    let client = node.client().await;
    node.script(|_| Act::Hold);
    let long = tokio::spawn({
        let client = client.clone();
        async move { client.get("long").await }
    });
    node.until("the long call is seen", |node| node.count("get") == 1).await;

    let begun = Instant::now();
    let error = client.with_timeout(SHORT).get("short").await.unwrap_err();

    assert!(error.is_deadline_exceeded());
    assert!(begun.elapsed() < 20 * SHORT);
    node.release(false);
    assert_eq!(soon(long).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_late_answer_reaches_no_other_call() {
    let node = Double::start().await;
    let client = node.client().await;
    node.put("default", "late", "late");
    node.put("default", "other", "other");
    node.script(first("get", Act::Hold));

    let error = client.with_timeout(SHORT).get("late").await.unwrap_err();
    assert!(error.is_deadline_exceeded());
    node.release(false);

    for _ in 0..10 {
        assert_eq!(client.get("other").await.unwrap().unwrap(), "other");
    }
    assert_eq!(node.connected(), 1, "the connection goes on");
}

#[tokio::test]
async fn answers_in_any_order_reach_their_calls() {
    let node = Double::start().await;
    let client = node.client().await;
    for n in 0..50 {
        node.put("default", &n.to_string(), &n.to_string());
    }
    node.script(|seen| if seen.what == "get" { Act::Hold } else { Act::Answer });
    let calls = (0..50).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.get(&n.to_string()).await.unwrap().unwrap() })
    });
    let calls: Vec<_> = calls.collect();
    node.until("all are seen", |node| node.count("get") == 50).await;

    node.release(true);

    for (n, value) in soon(join_all(calls)).await.into_iter().enumerate() {
        assert_eq!(value.unwrap(), n.to_string());
    }
}

#[tokio::test]
async fn garbage_ends_the_connection_and_the_next_one_is_good() {
    let unknown_id = {
        let mut frame = Vec::new();
        respond::ok(&mut frame, 0x7777_7777);
        frame
    };
    let garbage: [&[u8]; 6] = [
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xff, 1, 2, 3],
        &[0, 0, 0, 1, 0xc1],
        &[0, 0, 0, 2, 0x91, 0x00],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &unknown_id,
    ];
    for bytes in garbage {
        let node = Double::start().await;
        let client = node.client().await;
        node.script(first("set", Act::Send(bytes.to_vec())));

        let error = soon(client.set("k", "v")).await.unwrap_err();

        assert!(error.is_indeterminate(), "{bytes:?}: {error}");
        assert!(matches!(error.reason(), Reason::Disconnected { .. }), "{bytes:?}: {error}");
        soon(client.set("k", "v")).await.unwrap();
        assert_eq!(node.connected(), 2);
    }
}

#[tokio::test]
async fn the_last_words_of_a_node_are_in_the_error() {
    let node = Double::start().await;
    let client = node.client().await;
    let mut words = Vec::new();
    let failure = kiln_protocol::native::Failure::refused(ErrorCode::FrameTooLarge, "too long");
    respond::failure_of_connection(&mut words, &failure);
    node.script(first("set", Act::Send(words)));

    let error = client.set("k", "v").await.unwrap_err();

    assert!(error.to_string().contains("too long (frame-too-large)"), "{error}");
}

#[tokio::test]
async fn refusals_are_told_with_code_and_effect_and_repeated_only_if_that_can_help() {
    let node = Double::start().await;
    let counters = Arc::new(Counters::default());
    let client = node.builder().metrics(counters.clone()).connect().await.unwrap();
    node.script(first("set", Act::Fail(ErrorCode::Busy, Effect::NotApplied)));
    client.set("k", "v").await.unwrap();
    assert_eq!((node.count("set"), counters.retries()), (2, 1));

    node.script(|_| Act::Fail(ErrorCode::Busy, Effect::Indeterminate));
    let error = client.set("k", "v").await.unwrap_err();
    assert!(error.is_indeterminate());
    assert_eq!(node.count("set"), 3);

    node.script(|_| Act::Fail(ErrorCode::NotANumber, Effect::NotApplied));
    let error = client.increment("k", 1).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotANumber));
    assert!(error.is_not_applied());
    assert_eq!(node.count("count"), 1);
    assert_eq!(counters.failures(), 2);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let node = Double::start().await;
    let backoff = Backoff { first: Duration::from_millis(1), most: Duration::from_millis(2) };
    let retry = RetryPolicy { attempts_max: 3, backoff };
    let client = node.builder().retry(retry).connect().await.unwrap();
    node.script(|_| Act::Fail(ErrorCode::Busy, Effect::NotApplied));

    let error = client.get("k").await.unwrap_err();

    assert_eq!(error.code(), Some(ErrorCode::Busy));
    assert_eq!(node.count("get"), 3);
}

#[tokio::test]
async fn nobody_there_is_told_at_once_with_the_cause() {
    let mut node = Double::start().await;
    node.stop();
    tokio::task::yield_now().await;

    let begun = Instant::now();
    let error = node.builder().connect().await.unwrap_err();

    assert!(error.is_unreachable() && error.is_not_applied(), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn something_else_that_listens_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(b"ERROR\r\nERROR\r\n").await;
            std::mem::forget(stream);
        }
    });

    let builder = Client::builder().address(format!("kiln://{address}").parse().unwrap());
    let error = soon(builder.connect()).await.unwrap_err();

    assert!(matches!(error.reason(), Reason::UnexpectedAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_node_that_says_nothing_is_given_up_at_the_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();

    let builder = Client::builder()
        .address(format!("kiln://{address}").parse().unwrap())
        .timeout(SHORT)
        .connect_timeout(Duration::from_secs(60));
    let begun = Instant::now();
    let error = builder.connect().await.unwrap_err();

    let waiting_for = match error.reason() {
        Reason::DeadlineExceeded { waiting_for, .. } => *waiting_for,
        other => panic!("{other}"),
    };
    assert_eq!(waiting_for, WaitingFor::Connection);
    assert!(begun.elapsed() < 20 * SHORT);
}

#[tokio::test]
async fn a_client_connects_again_by_itself_and_tells_of_it() {
    let mut node = Double::start().await;
    let client = node.client().await;
    let mut events = client.events();

    node.stop();
    let lost = soon(events.next()).await.unwrap();
    assert!(matches!(lost, Event::Disconnected { .. }), "{lost:?}");
    let failed = soon(events.next()).await.unwrap();
    assert!(matches!(failed, Event::ConnectFailed { .. }), "{failed:?}");
    let error = client.with_retry(RetryPolicy::NEVER).set("k", "v").await.unwrap_err();
    assert!(error.is_unreachable() && error.is_not_applied(), "{error}");

    node.restart().await;
    loop {
        if let Event::Connected { address, node: name } = soon(events.next()).await.unwrap() {
            assert_eq!((&*address, &*name), (node.host().as_str(), "double"));
            break;
        }
    }
    client.set("k", "v").await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_tried_again() {
    let node = Double::start().await;
    // The script is not asked about hello, so the refusal comes from a listener of its own.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut frame = Vec::new();
            let failure =
                kiln_protocol::native::Failure::refused(ErrorCode::Unauthenticated, "who?");
            respond::failure_of_connection(&mut frame, &failure);
            let _ = stream.write_all(&frame).await;
        }
    });
    drop(node);

    let builder = Client::builder()
        .address(format!("kiln://{address}").parse().unwrap())
        .credentials("user", "wrong");
    let error = soon(builder.connect()).await.unwrap_err();

    assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}");
    assert!(error.is_not_applied());
}

#[tokio::test]
async fn requests_in_flight_are_bounded_and_the_rest_waits() {
    let node = Double::start().await;
    let client = node.builder().in_flight_max(4).connect().await.unwrap();
    node.script(|seen| if seen.what == "get" { Act::Hold } else { Act::Answer });
    let calls: Vec<_> = (0..10)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.get(&n.to_string()).await })
        })
        .collect();
    node.until("four are seen", |node| node.count("get") == 4).await;
    let error = client.with_timeout(SHORT).set("k", "v").await.unwrap_err();
    assert!(error.is_not_applied() && error.is_deadline_exceeded(), "{error}");
    assert!(matches!(
        error.reason(),
        Reason::DeadlineExceeded { waiting_for: WaitingFor::Room, .. }
    ));
    assert_eq!((node.count("get"), node.count("set")), (4, 0));

    node.release(false);
    node.until("eight are seen", |node| node.count("get") == 8).await;
    node.answer_all();
    node.release(false);
    for call in soon(join_all(calls)).await {
        assert_eq!(call.unwrap().unwrap(), None);
    }
}

#[tokio::test]
async fn calls_that_were_dropped_give_their_room_back_when_they_are_answered() {
    let node = Double::start().await;
    let client = node.builder().in_flight_max(4).connect().await.unwrap();
    node.script(|seen| if seen.what == "get" { Act::Hold } else { Act::Answer });
    let calls: Vec<_> = (0..4)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.get(&n.to_string()).await })
        })
        .collect();
    node.until("four are seen", |node| node.count("get") == 4).await;
    for call in &calls {
        call.abort();
    }
    join_all(calls).await;
    assert!(client.with_timeout(SHORT).set("k", "v").await.is_err());

    node.release(false);

    soon(client.set("k", "v")).await.unwrap();
}

#[tokio::test]
async fn many_tasks_share_a_connection_and_their_requests_share_packets() {
    let node = Double::start().await;
    let client = node.client().await;
    let before = node.reads();
    let tasks: Vec<_> = (0..64)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move {
                let key = format!("key-{n}");
                for round in 0..50 {
                    let value = format!("{n}-{round}");
                    client.set(&key, &value).await.unwrap();
                    assert_eq!(client.get(&key).await.unwrap().unwrap(), value);
                }
            })
        })
        .collect();
    for task in soon(join_all(tasks)).await {
        task.unwrap();
    }

    let requests = node.count("set") + node.count("get");
    let reads = node.reads() - before;
    assert_eq!(requests, 64 * 50 * 2);
    assert_eq!(node.connected(), 1);
    assert!(reads * 4 < requests, "{reads} reads for {requests} requests");
}

#[tokio::test]
async fn a_node_that_says_goodbye_gets_nothing_new_and_finishes_the_rest() {
    let node = Double::start().await;
    let client = node.client().await;
    node.put("default", "k", "v");
    node.script(|seen| match (seen.what, seen.connection) {
        ("get", 0) => Act::Hold,
        _ => Act::Answer,
    });
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.get("k").await }
    });
    node.until("it is seen", |node| node.count("get") == 1).await;
    let mut goodbye = Vec::new();
    respond::goodbye(&mut goodbye, "shutting down");
    node.push(&goodbye);
    // Behind the goodbye on the same connection.
    node.release(false);
    assert_eq!(soon(held).await.unwrap().unwrap().unwrap(), "v");

    let late = tokio::spawn({
        let client = client.clone();
        async move { client.get("k").await }
    });
    tokio::time::sleep(SHORT).await;
    assert_eq!(node.count("get"), 1, "nothing new is sent");
    node.disconnect();
    assert_eq!(soon(late).await.unwrap().unwrap().unwrap(), "v");
    assert_eq!(node.connected(), 2);
}

#[tokio::test]
async fn a_silent_connection_is_asked_whether_it_lives() {
    let node = Double::start().await;
    let client = node.builder().keepalive(Duration::from_millis(100)).connect().await.unwrap();

    node.until("two pings", |node| node.count("ping") >= 2).await;

    client.get("k").await.unwrap();
    assert_eq!(node.connected(), 1);
}

#[tokio::test]
async fn a_node_that_does_not_answer_the_ping_is_left() {
    let node = Double::start().await;
    let _client = node.builder().keepalive(Duration::from_millis(100)).connect().await.unwrap();
    node.script(|seen| match seen.connection {
        0 => Act::Swallow,
        _ => Act::Answer,
    });

    node.until("a second connection", |node| node.connected() == 2).await;
}

#[tokio::test]
async fn a_closed_client_says_so() {
    let node = Double::start().await;
    let client = node.client().await;

    client.close();

    let error = soon(client.get("k")).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Closed | Reason::Disconnected { .. }), "{error}");
    let error: Error = soon(client.set("k", "v")).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Closed), "{error}");
}

#[tokio::test]
async fn connections_end_with_the_last_handle() {
    let node = Double::start().await;
    let client = node.client().await;
    let cache = client.cache("default");
    drop(client);
    cache.set("k", "v").await.unwrap();

    drop(cache);

    node.until("no connection is left", |node| node.open() == 0).await;
}

#[test]
fn calls_end_when_the_runtime_of_their_connection_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (node, client) = runtime.block_on(async {
        let node = Double::start().await;
        let client = node.client().await;
        node.script(|_| Act::Swallow);
        (node, client)
    });
    let caller = std::thread::spawn(move || {
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        own.block_on(async { client.set("k", "v").await })
    });
    runtime.block_on(node.until("it is seen", |node| node.count("set") == 1));

    runtime.shutdown_background();

    let begun = Instant::now();
    let error = caller.join().unwrap().unwrap_err();
    assert!(error.is_indeterminate(), "{error}");
    assert!(begun.elapsed() < SOON);
    drop(node);
}

#[tokio::test]
async fn many_items_that_are_refused_have_one_timeout_together() {
    let node = Double::start().await;
    let cache = node.client().await.with_timeout(SHORT);
    node.script(|seen| match seen.what {
        "batch" => Act::FailItems(ErrorCode::Busy),
        _ => Act::Swallow,
    });
    let keys: Vec<_> = (0..400).map(|n| n.to_string()).collect();
    let puts: Vec<_> = keys.iter().map(|key| Put::new(key, "v")).collect();

    let begun = Instant::now();
    let results = soon(cache.set_many(&puts)).await;
    let took = begun.elapsed();

    // They are asked for again 16 at a time.
    assert!(took < 10 * SHORT, "{took:?}");
    assert_eq!(results.len(), 400);
    for (n, result) in results.into_iter().enumerate() {
        let error = result.unwrap_err();
        match error.code() {
            Some(ErrorCode::Busy) => assert!(error.is_not_applied()),
            _ => assert!(error.is_deadline_exceeded() && n < 16, "{n}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_call_waits_no_longer_than_it_may_for_anothers_look_at_the_topology() {
    let node = Double::start().await;
    let client = node.client().await;
    let looks = Arc::new(AtomicUsize::new(0));
    node.script({
        let looks = looks.clone();
        move |seen| match seen.what {
            "set" => Act::Fail(ErrorCode::NotOwner, Effect::NotApplied),
            "topology" => {
                looks.fetch_add(1, Ordering::Relaxed);
                Act::Swallow
            }
            _ => Act::Answer,
        }
    });
    let patient = tokio::spawn({
        let client = client.clone();
        async move { client.set("k", "v").await }
    });
    node.until("one looks", |_| looks.load(Ordering::Relaxed) == 1).await;

    let begun = Instant::now();
    let error = soon(client.with_timeout(SHORT).set("k", "v")).await.unwrap_err();

    assert!(error.is_not_applied(), "{error}");
    assert!(begun.elapsed() < 20 * SHORT);
    assert!(!patient.is_finished());
    patient.abort();
}

#[tokio::test]
async fn a_node_that_says_nothing_holds_up_nobody_while_another_answers() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Double::start().await;
    let address = format!("kiln://{},{}", silent.local_addr().unwrap(), node.host());
    for _ in 0..8 {
        let builder = node.builder().address(address.parse().unwrap());
        let builder = builder.connect_timeout(SOON).timeout(SOON / 4);
        builder.connect().await.unwrap().ping().await.unwrap();
    }
}

#[tokio::test]
async fn times_without_end_are_allowed() {
    let node = Double::start().await;
    let near = NearCacheConfig { staleness_max: Duration::MAX, ..NearCacheConfig::default() };
    let builder = node.builder().timeout(Duration::MAX).connect_timeout(Duration::MAX);
    let builder = builder.keepalive(Duration::MAX).near_cache("default", near);
    let client = soon(builder.connect()).await.unwrap();

    soon(client.set("k", "v")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(soon(client.get("k")).await.unwrap().unwrap(), "v");
    }
    assert_eq!(node.connected(), 1);
}

#[tokio::test]
async fn a_client_that_is_closed_before_it_has_connected_stays_closed() {
    let node = Double::start().await;
    let client = node.builder().connect_lazily();
    // Begins to connect, and has not got anywhere.
    assert!(client.get("k").now_or_never().is_none());

    client.close();
    tokio::time::sleep(SHORT).await;

    let error = timeout(SOON / 4, client.get("k")).await.expect("at once").unwrap_err();
    assert!(matches!(error.reason(), Reason::Closed), "{error}");
}
