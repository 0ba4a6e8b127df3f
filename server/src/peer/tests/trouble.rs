//! What a link does when the network, the other end or a stranger misbehaves.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener as AsyncListener, TcpStream},
};

use super::{
    super::{
        CallError, DialError,
        error::Refusal,
        handshake::{Hello, Purpose, Welcome},
    },
    *,
};

/// Stands between two nodes and passes bytes on, with a fault when it is told so.
#[derive(Default)]
struct Proxy {
    /// Change a byte of the next read of so many bytes and more.
    corrupt_from: AtomicUsize,
    /// Which one, counted from its end.
    corrupt_at: AtomicUsize,
    /// Pass nothing on.
    frozen: AtomicBool,
}

impl Proxy {
    async fn start(to: SocketAddr) -> (Arc<Self>, SocketAddr) {
        let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self::default());
        let handle = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(Arc::clone(&proxy).pass(near_in, far_out, true));
                tokio::spawn(Arc::clone(&proxy).pass(far_in, near_out, false));
            }
        });
        (handle, address)
    }

    async fn pass(
        self: Arc<Self>,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        faulty: bool,
    ) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            while self.frozen.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let Ok(len @ 1..) = from.read(&mut buffer).await else { return };
            let limit = self.corrupt_from.load(Relaxed);
            if faulty && limit > 0 && len >= limit {
                self.corrupt_from.store(0, Relaxed);
                buffer[(len - 1).saturating_sub(self.corrupt_at.load(Relaxed))] ^= 0x10;
            }
            if to.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_frame_is_not_applied_and_costs_its_connection() {
    let a = TestNode::start(1, 11, CLUSTER);
    let b = TestNode::start(2, 22, CLUSTER);
    let (proxy, address) = Proxy::start(b.address).await;
    a.links.set_peers(vec![(b.member, address.to_string())]);
    // What a node counts of another lasts as long as it wants a link with it.
    b.link_to(&a);
    // At the end, in the value, in front of it, and in the length of the frame.
    for (round, at) in [0, 100, 550, usize::MAX].into_iter().enumerate() {
        let round = round as u64;
        a.linked(NodeId(2)).await;
        a.send(&b, vec![append(2 * round, noise(500))]);
        a.links.flush();
        until("it came", || b.received().len() as u64 == round + 1).await;
        assert_eq!(b.received().last(), Some(&append(2 * round, noise(500))));

        proxy.corrupt_at.store(at, Relaxed);
        proxy.corrupt_from.store(500, Relaxed);
        a.send(&b, vec![append(2 * round + 1, noise(500))]);
        a.links.flush();
        until("it is linked anew", || a.stats(NodeId(2)).reconnects == round + 1).await;
        let corrupt = b.stats(NodeId(1)).corrupt;
        assert_eq!(corrupt, round + 1);
        assert_eq!(b.received().len() as u64, round + 1, "nothing of it was applied");
    }
}

#[tokio::test]
async fn a_node_that_starts_again_on_its_port_is_linked_again() {
    let (a, b) = TestNode::pair().await;
    let (address, node) = (b.address, b.member.node);
    let waiting = a.links.call(node, SILENCE, Bytes::new(), PATIENCE);
    let stop = async {
        until("the call has come", || b.stats(NodeId(1)).frames_in > 1).await;
        drop(b);
    };
    let (answer, ()) = tokio::join!(waiting, stop);
    assert!(matches!(answer, Err(CallError::Disconnected)), "{answer:?}");
    until("the node is missed", || a.stats(node).trouble.is_some()).await;
    let error = a.links.call(node, ECHO, Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(!error.may_have_been_done(), "{error:?}");

    let b =
        TestNode::start_on(listen_again(address).await, 2, 23, CLUSTER, LinkSettings::default());
    a.linked(node).await;
    a.send(&b, vec![small(1)]);
    assert_eq!(a.stats(node).withheld, 1, "the new life is not known yet");
    a.link_to(&b);
    a.send(&b, vec![small(2)]);
    a.links.flush();
    b.receives(&[small(2)]).await;
}

async fn listen_again(address: SocketAddr) -> TcpListener {
    let mut listener = None;
    until("the port is free", || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    })
    .await;
    listener.unwrap()
}

#[tokio::test]
async fn a_changed_address_is_tried_at_once() {
    let a = TestNode::start_on(
        TcpListener::bind("127.0.0.1:0").unwrap(),
        1,
        11,
        CLUSTER,
        LinkSettings { backoff_min: PATIENCE * 10, backoff_max: PATIENCE * 10, ..slow() },
    );
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    a.links.set_peers(vec![(member(2, 22), nobody.to_string())]);
    until("nobody is there", || a.stats(NodeId(2)).trouble.is_some()).await;
    let b = TestNode::start(2, 22, CLUSTER);
    a.link_to(&b);
    a.linked(NodeId(2)).await;
}

fn slow() -> LinkSettings {
    LinkSettings { step_timeout: PATIENCE, ..LinkSettings::default() }
}

#[tokio::test]
async fn a_call_waits_for_a_first_attempt_and_fails_at_once_between_attempts() {
    let a = TestNode::start(1, 11, CLUSTER);
    let b = TestNode::start(2, 22, CLUSTER);
    a.link_to(&b);
    assert_eq!(a.call(&b, ECHO, b"early").await.unwrap(), "early");

    let settings = LinkSettings { backoff_min: PATIENCE * 10, ..LinkSettings::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let c = TestNode::start_on(listener, 3, 33, CLUSTER, settings);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    c.links.set_peers(vec![(b.member, nobody.to_string())]);
    for _ in 0..2 {
        let error = c.call(&b, ECHO, b"").await.unwrap_err();
        assert!(matches!(error, CallError::NotConnected(DialError::Connect(_))), "{error:?}");
    }
}

#[tokio::test]
async fn what_waits_for_a_peer_that_does_not_read_is_bounded_and_it_is_cut_off() {
    let settings = LinkSettings {
        message_bytes_max: 4 << 20,
        stall: Duration::from_millis(400),
        ..LinkSettings::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TestNode::start_on(listener, 1, 11, CLUSTER, settings);
    let b = TestNode::start(2, 22, CLUSTER);
    let (proxy, address) = Proxy::start(b.address).await;
    a.links.set_peers(vec![(b.member, address.to_string())]);
    a.linked(NodeId(2)).await;
    proxy.frozen.store(true, Relaxed);
    let message = a.message(b.member, vec![append(1, noise(200 << 10))]);
    let mut most = 0;
    for _ in 0..200 {
        a.links.send(NodeId(2), &message);
        a.links.flush();
        most = most.max(a.stats(NodeId(2)).queued_bytes);
    }
    let stats = a.stats(NodeId(2));
    assert!(stats.dropped > 100, "{stats:?}");
    assert!(stats.queued_bytes > 3 << 20 && most < (4 << 20) + (1 << 20), "{most}: {stats:?}");
    until("it is cut off", || a.stats(NodeId(2)).connected_since_ms.is_none()).await;
    assert_eq!(a.stats(NodeId(2)).queued_bytes, 0);

    proxy.frozen.store(false, Relaxed);
    a.linked(NodeId(2)).await;
    a.send(&b, vec![small(9)]);
    a.links.flush();
    until("it is heard again", || b.received().last() == Some(&small(9))).await;
}

#[tokio::test]
async fn a_newer_connection_of_a_node_takes_the_place_of_the_older() {
    let b = TestNode::start(2, 22, CLUSTER);
    let hello = Hello {
        cluster: CLUSTER,
        from: member(1, 11),
        name: "a".to_owned(),
        to: NodeId(2),
        purpose: Purpose::Link,
    };
    let address = b.address.to_string();
    let dial = || super::super::dial::dial(&address, &hello, &b.links.shared.settings);
    let mut first = dial().await.unwrap();
    let second = dial().await.unwrap();
    assert_eq!(first.reader.fill().await.unwrap_or(0), 0, "the older one is closed");
    drop(second);
    until("both are forgotten", || b.links.stats().is_empty()).await;
}

#[tokio::test]
async fn garbage_is_turned_away_and_harms_nobody() {
    let (a, b) = TestNode::pair().await;
    let mut random = fastrand::Rng::with_seed(7);
    let preface = kiln_protocol::peer::preface();
    let mut rounds = 0;
    for round in 0..300 {
        let mut garbage: Vec<u8> = Vec::new();
        if round % 3 > 0 {
            garbage.extend_from_slice(&preface);
        }
        garbage.extend((0..random.usize(1..2_000)).map(|_| random.u8(..)));
        if round % 7 == 0 {
            garbage.truncate(random.usize(1..30));
        }
        let mut socket = TcpStream::connect(b.address).await.unwrap();
        // It may be closed before all is said.
        let _ = socket.write_all(&garbage).await;
        if round % 2 == 0 {
            let _ = socket.shutdown().await;
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await.unwrap();
            assert!(rest.len() <= 1_000);
        }
        rounds += 1;
    }
    until("all were turned away", || b.links.turned_away() == rounds).await;
    assert_eq!(a.call(&b, ECHO, b"still here").await.unwrap(), "still here");
    assert_eq!(a.stats(NodeId(2)).reconnects, 0);
}

#[tokio::test]
async fn garbage_behind_a_handshake_costs_the_connection_and_no_memory() {
    let b = TestNode::start(2, 22, CLUSTER);
    let address = b.address.to_string();
    let mut random = fastrand::Rng::with_seed(8);
    for round in 0..100_u64 {
        let hello = Hello {
            cluster: CLUSTER,
            from: member(100 + round, 1),
            name: String::new(),
            to: NodeId(2),
            purpose: Purpose::Link,
        };
        let mut dialled =
            super::super::dial::dial(&address, &hello, &b.links.shared.settings).await.unwrap();
        let garbage: Vec<u8> = (0..random.usize(24..500)).map(|_| random.u8(..)).collect();
        dialled.writer.write_all(&garbage).await.unwrap();
        let read = tokio::time::timeout(PATIENCE, dialled.reader.fill()).await.unwrap();
        assert_eq!(read.unwrap_or(0), 0, "closed");
    }
    until("all are forgotten", || b.links.stats().is_empty()).await;
    assert_eq!(b.received(), []);
}

#[tokio::test]
async fn a_whole_frame_that_makes_no_sense_costs_the_connection() {
    use kiln_protocol::peer::{FrameKind, Label, Packer, begin, seal};
    let b = TestNode::start(2, 22, CLUSTER);
    let address = b.address.to_string();
    let mut good = Vec::new();
    let kinds = [FrameKind::Batch, FrameKind::Call, FrameKind::Answer, FrameKind::Hello];
    for (round, kind) in kinds.into_iter().enumerate() {
        let hello = Hello {
            cluster: CLUSTER,
            from: member(100 + round as u64, 1),
            name: String::new(),
            to: NodeId(2),
            purpose: Purpose::Link,
        };
        let mut dialled =
            super::super::dial::dial(&address, &hello, &b.links.shared.settings).await.unwrap();
        good.clear();
        let start = begin(&mut good);
        good.extend_from_slice(&[0, 0, 1]);
        let label = Label { kind, detail: 1, number: 1 };
        seal(&mut good, start, label, Some(&mut Packer::default())).unwrap();
        dialled.writer.write_all(&good).await.unwrap();
        let read = tokio::time::timeout(PATIENCE, dialled.reader.fill()).await.unwrap();
        assert_eq!(read.unwrap_or(0), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn those_who_say_nothing_do_not_keep_others_out() {
    let settings =
        LinkSettings { step_timeout: Duration::from_millis(200), ..LinkSettings::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let b = TestNode::start_on(listener, 2, 22, CLUSTER, settings);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(b.address).await.unwrap());
    }
    until("they were turned away", || b.links.turned_away() == 100).await;
    let a = TestNode::start(1, 11, CLUSTER);
    a.link_to(&b);
    a.linked(NodeId(2)).await;
}

#[tokio::test]
async fn a_stranger_that_listens_is_not_taken_for_a_node() {
    let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers: [&[u8]; 4] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x91kilnp\x00\x63",
        &[kiln_protocol::peer::preface().as_slice(), &[7; 24]].concat(),
        b"",
    ];
    let a = TestNode::start(1, 11, CLUSTER);
    let mut texts = Vec::new();
    for answer in answers {
        let stranger = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            // Asked first, so that the answer is not lost with the connection.
            let _ = socket.read(&mut [0; 1_000]).await;
            socket.write_all(answer).await.unwrap();
            socket.shutdown().await.unwrap();
        };
        let address = address.to_string();
        let call = a.links.call_at(&address, WHO, Bytes::new(), PATIENCE);
        let (error, ()) = tokio::join!(call, stranger);
        let CallError::NotConnected(error) = error.unwrap_err() else { panic!() };
        texts.push(match error {
            DialError::NotKiln => "not Kiln",
            DialError::Version { theirs: 99, .. } => "version",
            DialError::Damaged(_) => "damaged",
            DialError::Closed => "closed",
            _ => "else",
        });
    }
    assert_eq!(texts, ["not Kiln", "version", "damaged", "closed"]);
}

#[test]
fn what_the_handshake_says_is_readable_after_a_turn_over_the_wire() {
    fn turn<T: serde::Serialize + for<'a> serde::Deserialize<'a>>(value: &T) -> T {
        rmp_serde::from_slice(&rmp_serde::to_vec(value).unwrap()).unwrap()
    }
    let refusal = Refusal::OtherNode { node: u64::MAX, name: "x".to_owned() };
    assert_eq!(turn(&refusal), refusal);
    let welcome = Welcome { cluster: CLUSTER, member: member(1, 2), name: "y".to_owned() };
    assert_eq!(turn(&welcome), welcome);
}
