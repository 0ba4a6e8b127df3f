//! What a link does while all is well.

use kiln_cluster::{
    effect::{Operation, Ttl},
    ids::{ClientId, Generation, RequestId},
    node::{Refusal, Reply, Request},
};

use super::{
    super::{CallError, Refused, outbox::*, wire},
    *,
};

#[tokio::test]
async fn what_is_sent_arrives_in_order_and_whole() {
    let (a, b) = TestNode::pair().await;
    let bodies: Vec<_> = (0..1_000)
        .map(|number| match number % 3 {
            0 => append(number, noise(number as usize)),
            _ => small(number),
        })
        .collect();
    for turn in bodies.chunks(7) {
        a.send(&b, turn.to_vec());
        a.links.flush();
    }
    b.receives(&bodies).await;
    let heads = b.inbox.messages.lock();
    assert!(heads.iter().all(|(message, _)| message.from == a.member && message.to == b.member));
    assert!(heads.iter().all(|(message, _)| message.cluster == CLUSTER));
    assert!(heads.iter().all(|(message, _)| message.clock_ms == 1_700_000_000_000));
    drop(heads);
    let (sent, got) = (a.stats(b.member.node), b.stats(a.member.node));
    assert_eq!((sent.messages_out, got.messages_in), (143, 143));
    assert_eq!((sent.dropped, sent.withheld, got.withheld, got.corrupt), (0, 0, 0, 0));
}

#[tokio::test]
async fn all_of_one_turn_is_one_frame_and_says_what_follows() {
    let (a, b) = TestNode::pair().await;
    let before = a.stats(b.member.node).frames_out;
    for number in 0..50 {
        a.send(&b, vec![small(number)]);
    }
    assert_eq!(b.received(), [], "nothing leaves before the flush");
    a.links.flush();
    assert_eq!(a.stats(b.member.node).frames_out, before + 1);
    b.receives(&(0..50).map(small).collect::<Vec<_>>()).await;
    let more: Vec<_> = b.inbox.messages.lock().iter().map(|(_, more)| *more).collect();
    assert_eq!(more, [vec![true; 49], vec![false]].concat());
}

#[tokio::test]
async fn transfers_are_compressed_and_what_clients_wait_for_is_not() {
    const LEN: usize = 100 << 10;
    let (a, b) = TestNode::pair().await;
    let chunk = |number, value: Bytes| {
        let Body::Strong(place, StrongMessage::Append { entries, .. }) = append(number, value)
        else {
            unreachable!("an append")
        };
        let effects = entries.into_iter().filter_map(|entry| entry.effect.clone());
        let items = effects.filter_map(|effect| match effect.change {
            Change::Put(item) => Some((effect.key, item)),
            _ => None,
        });
        let (term, transfer) = (Term(5), TransferId(3));
        let (index, last, answers) = (number, None, Vec::new());
        let items = items.collect();
        Body::Strong(place, StrongMessage::Chunk { term, transfer, index, last, answers, items })
    };
    let text = Bytes::from("many words of a text ".repeat(LEN / 21));
    let mut sent = Vec::new();
    let mut bodies = Vec::new();
    for body in [append(1, text.clone()), chunk(2, text)] {
        let before = a.stats(b.member.node).bytes_out;
        a.send(&b, vec![body.clone()]);
        a.links.flush();
        bodies.push(body);
        b.receives(&bodies).await;
        sent.push((a.stats(b.member.node).bytes_out - before) as usize);
    }
    assert!(sent[0] > LEN - 100 && sent[1] < LEN / 10, "{sent:?}");
}

#[tokio::test]
async fn a_long_turn_is_cut_into_frames_of_about_256_kib() {
    let (a, b) = TestNode::pair().await;
    let before = a.stats(b.member.node).frames_out;
    let bodies: Vec<_> = (0..64).map(|number| append(number, noise(64 << 10))).collect();
    a.send(&b, bodies.clone());
    a.links.flush();
    until("all is written", || a.stats(b.member.node).queued_bytes == 0).await;
    let frames = a.stats(b.member.node).frames_out - before;
    assert!((12..=18).contains(&frames), "{frames}");
    b.receives(&bodies).await;
}

#[tokio::test]
async fn a_message_of_ten_mebibytes_arrives() {
    let (a, b) = TestNode::pair().await;
    let bodies = [small(1), append(2, noise(10 << 20)), small(3)];
    a.send(&b, bodies.to_vec());
    a.links.flush();
    b.receives(&bodies).await;
}

#[tokio::test]
async fn long_calls_that_can_be_made_smaller_are() {
    let (a, b) = TestNode::pair().await;
    let before = a.stats(b.member.node).bytes_out;
    let body = vec![b'x'; 200 << 10];
    assert_eq!(a.call(&b, ECHO, &body).await.unwrap(), body);
    let bytes = a.stats(b.member.node).bytes_out - before;
    assert!(bytes < 10 << 10, "{bytes}");
}

#[tokio::test]
async fn a_call_is_answered_whatever_its_length() {
    let (a, b) = TestNode::pair().await;
    for len in [0, 1, 100, 63 << 10, 65 << 10, 3 << 20] {
        let body = noise(len);
        assert_eq!(a.call(&b, ECHO, &body).await.unwrap(), body);
    }
    let refused = a.call(&b, 0x7f, b"").await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(Refused::UnknownKind)));
    assert!(!refused.may_have_been_done());
}

#[tokio::test]
async fn calls_are_answered_side_by_side_and_from_any_thread() {
    let (a, b) = TestNode::pair().await;
    let silent = a.links.call(b.member.node, SILENCE, Bytes::new(), PATIENCE);
    let links = a.links.clone();
    let to = b.member.node;
    let others = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async move {
            for number in 0..100_u32 {
                let body = Bytes::copy_from_slice(&number.to_be_bytes());
                assert_eq!(links.call(to, ECHO, body.clone(), PATIENCE).await.unwrap(), body);
            }
        });
    });
    tokio::select! {
        answer = silent => panic!("{answer:?}"),
        () = until("the other thread is done", || others.is_finished()) => {}
    }
    others.join().unwrap();
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_on_both_sides() {
    let (a, b) = TestNode::pair().await;
    let begin = Instant::now();
    let within = Duration::from_millis(50);
    let error = a.links.call(b.member.node, SILENCE, Bytes::new(), within).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline), "{error:?}");
    assert!(error.may_have_been_done());
    assert!(begin.elapsed() >= within);
    until("the handler was dropped", || *b.inbox.given_up.lock() == 1).await;
}

#[tokio::test]
async fn more_calls_than_the_bound_are_refused_and_its_answers_may_not_be_endless() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = LinkSettings { calls_max: 3, ..LinkSettings::default() };
    let a = TestNode::start_on(listener, 1, 11, CLUSTER, settings);
    let b = TestNode::start(2, 22, CLUSTER);
    a.link_to(&b);
    a.linked(b.member.node).await;
    let within = Duration::from_millis(300);
    let call = || a.links.call(b.member.node, SILENCE, Bytes::new(), within);
    let (first, second, third, fourth) = tokio::join!(call(), call(), call(), call());
    for waiting in [first, second, third] {
        assert!(matches!(waiting, Err(CallError::Deadline)));
    }
    assert!(matches!(fourth, Err(CallError::Busy)));

    let too_long = a.call(&b, LONG, &(66_u32 << 20).to_be_bytes()).await;
    assert!(matches!(too_long, Err(CallError::Refused(Refused::AnswerTooLarge))), "{too_long:?}");
    let body = Bytes::from(vec![0; 66 << 20]);
    let too_long = a.links.call(b.member.node, ECHO, body, within).await;
    assert!(matches!(too_long, Err(CallError::TooLarge { .. })));
}

#[tokio::test]
async fn the_round_trip_is_measured() {
    let (a, b) = TestNode::pair().await;
    until("it is known", || a.stats(b.member.node).round_trip.is_some()).await;
    let trip = a.stats(b.member.node).round_trip.unwrap();
    assert!(trip < Duration::from_secs(1), "{trip:?}");
    assert_eq!(a.stats(b.member.node).name.as_deref(), Some("node-2"));
    assert_eq!(a.stats(b.member.node).member, Some(b.member));
}

#[test]
fn a_write_of_one_kibibyte_is_little_more_on_the_wire() {
    let mut out = Vec::new();
    wire::put_body(&mut out, &append(1, noise(1_024))).unwrap();
    assert!(out.len() < 1_024 + 128, "{}", out.len());
}

#[test]
fn what_a_message_says_is_read_back_and_any_damage_is_read_as_something_else_or_refused() {
    let key = ItemKey { cache: CacheId(1), key: noise(30) };
    let id = Some(RequestId { client: ClientId(u64::MAX), counter: 1 });
    let operation = Operation::Look {
        touch: Some(Ttl::Never),
        vivify: None,
        recache_below_ms: Some(5_000),
        no_bump: false,
        may_refill: true,
    };
    let request = Request { id, key, operation, seen: Generation(3) };
    let bodies = vec![
        append(7, noise(40)),
        Body::Ask { ask: 300, request },
        Body::Answer { ask: 1, reply: Reply::NotApplied(Refusal::NotPrimary(Some(NodeId(2)))) },
        small(9),
    ];
    let message = Message {
        cluster: CLUSTER,
        from: member(1, 11),
        to: member(2, 22),
        clock_ms: 1_700_000_000_000,
        bodies,
    };
    let mut out = Vec::new();
    wire::put_head(&mut out, &wire::MessageHead::of(&message), true).unwrap();
    message.bodies.iter().for_each(|body| wire::put_body(&mut out, body).unwrap());
    let read = |bytes: &[u8]| {
        let mut messages = Vec::new();
        wire::read(bytes, |message| messages.push(message)).map(|()| messages)
    };
    assert_eq!(read(&out), Ok(vec![message]));
    // Frames have checksums; this is what a mistaken or hostile node could say.
    for at in 0..out.len() {
        for other in [0, 1, 0x7f, 0x80, 0xff, out[at] ^ 1] {
            let mut damaged = out.clone();
            damaged[at] = other;
            let _ = read(&damaged);
        }
        let _ = read(&out[..at]);
    }
}

#[test]
fn what_waits_is_bounded_and_one_message_always_fits() {
    let room = Room { messages: 100_000, calls: 1_000 };
    let mut out = Outbox::new(room, usize::MAX);
    let message = |len| Message {
        cluster: CLUSTER,
        from: member(1, 1),
        to: member(2, 2),
        clock_ms: 1,
        bodies: vec![append(1, noise(len))],
    };
    assert_eq!(out.message(&message(1 << 20)), Ok(()));
    assert_eq!(out.message(&message(1)), Err(Rejected::Full));
    assert!(out.waiting() > 1 << 20);

    let label = kiln_protocol::peer::Label {
        kind: kiln_protocol::peer::FrameKind::Call,
        detail: 0,
        number: 1,
    };
    assert_eq!(out.frame(label, &[&noise(999)]), Ok(()), "calls have room of their own");
    assert_eq!(out.frame(label, &[b""]), Err(Rejected::Full));
}

#[test]
fn a_message_longer_than_a_frame_is_refused_and_leaves_nothing_behind() {
    let mut out = Outbox::new(Room { messages: 1 << 30, calls: 0 }, usize::MAX);
    let message = Message {
        cluster: CLUSTER,
        from: member(1, 1),
        to: member(2, 2),
        clock_ms: 1,
        bodies: vec![append(1, Bytes::from(vec![0; 66 << 20]))],
    };
    assert!(matches!(out.message(&message), Err(Rejected::TooLarge { .. })));
    assert_eq!((out.waiting(), out.is_empty()), (0, true));
}

#[tokio::test]
async fn a_link_moves_between_runtimes_and_nothing_is_lost_or_overtaken() {
    let (a, b) = TestNode::pair().await;
    let mut sent = 0;
    let mut expected = Vec::new();
    let mut send_until_read_on = async |thread: thread::ThreadId| {
        until("it is read there", || {
            sent += 1;
            expected.push(small(sent));
            a.send(&b, vec![small(sent)]);
            a.links.flush();
            *b.inbox.thread.lock() == Some(thread)
        })
        .await;
    };
    send_until_read_on(thread::current().id()).await;
    for _ in 0..3 {
        let links = b.links.clone();
        let (let_go, told) = tokio::sync::oneshot::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let host = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let hosting = links.host();
                told.await.unwrap();
                drop(hosting);
                ended.await.unwrap();
            });
        });
        send_until_read_on(host.thread().id()).await;
        let_go.send(()).unwrap();
        send_until_read_on(thread::current().id()).await;
        end.send(()).unwrap();
        host.join().unwrap();
    }
    b.receives(&expected).await;
    assert_eq!(a.call(&b, ECHO, b"still there").await.unwrap(), "still there");
}
