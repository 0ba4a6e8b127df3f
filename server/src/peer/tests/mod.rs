//! Nodes on loopback that only have links: what the rest of the server builds on.

mod exchange;
mod handshake;
mod speed;
mod trouble;

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::Arc,
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kiln_cluster::{
    effect::{Change, Effect, Item, ItemKey, Marks},
    ids::{
        CacheId, ClusterId, GroupKey, Incarnation, Member, Mode, NodeId, PartitionId, Place, Seq,
        Term, TransferId, Version,
    },
    log::Entry,
    message::{Body, Message},
    strong::StrongMessage,
};
use parking_lot::Mutex;

use super::{Caller, Identity, Inbound, LinkSettings, LinkStats, Links, Refused};

/// Answers with what it was asked.
const ECHO: u8 = 0x40;
/// Never answers.
const SILENCE: u8 = 0x41;
/// Answers with the caller's name; allowed before the cluster is known.
const WHO: u8 = 0x01;
/// Answers with so many bytes as the body says.
const LONG: u8 = 0x42;

const CLUSTER: ClusterId = ClusterId(0xc1);
/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that notes what comes.
struct TestNode {
    links: Links,
    inbox: Arc<Inbox>,
    member: Member,
    address: SocketAddr,
}

#[derive(Default)]
struct Inbox {
    messages: Mutex<Vec<(Message, bool)>>,
    /// Where the last one was handed on.
    thread: Mutex<Option<ThreadId>>,
    /// Futures of calls that were dropped before they answered.
    given_up: Arc<Mutex<u32>>,
}

impl Inbound for Inbox {
    fn message(&self, message: Message, more: bool) {
        *self.thread.lock() = Some(thread::current().id());
        self.messages.lock().push((message, more));
    }

    fn call(
        &self,
        from: Caller,
        kind: u8,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send>> {
        struct GivenUp(Arc<Mutex<u32>>);
        impl Drop for GivenUp {
            fn drop(&mut self) {
                *self.0.lock() += 1;
            }
        }
        let given_up = Arc::clone(&self.given_up);
        Box::pin(async move {
            match kind {
                ECHO => Ok(body),
                WHO => Ok(Bytes::from(from.name.to_string())),
                LONG => {
                    let len = u32::from_be_bytes(*body.first_chunk().ok_or(Refused::Malformed)?);
                    Ok(vec![b'l'; len as usize].into())
                }
                SILENCE => {
                    let _noted = GivenUp(given_up);
                    std::future::pending().await
                }
                _ => Err(Refused::UnknownKind),
            }
        })
    }
}

impl TestNode {
    fn start(node: u64, life: u64, cluster: ClusterId) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_on(listener, node, life, cluster, LinkSettings::default())
    }

    fn start_on(
        listener: TcpListener,
        node: u64,
        life: u64,
        cluster: ClusterId,
        settings: LinkSettings,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let member = member(node, life);
        let me = Identity { member, name: format!("node-{node}") };
        let inbox = Arc::new(Inbox::default());
        let inbound = Arc::clone(&inbox) as Arc<dyn Inbound>;
        let links = Links::start(settings, listener, me, cluster, inbound).unwrap();
        Self { links, inbox, member, address }
    }

    /// Two nodes of one cluster; the first one is linked to the second.
    async fn pair() -> (Self, Self) {
        let (a, b) = (Self::start(1, 11, CLUSTER), Self::start(2, 22, CLUSTER));
        a.link_to(&b);
        a.linked(b.member.node).await;
        (a, b)
    }

    fn link_to(&self, other: &Self) {
        self.links.set_peers(vec![(other.member, other.address.to_string())]);
    }

    async fn linked(&self, node: NodeId) {
        until("the link stands", || self.stats(node).connected_since_ms.is_some()).await;
    }

    fn stats(&self, node: NodeId) -> LinkStats {
        self.links.stats().into_iter().find(|stats| stats.node == node).expect("a known node")
    }

    fn send(&self, to: &Self, bodies: Vec<Body>) {
        self.links.send(to.member.node, &self.message(to.member, bodies));
    }

    fn message(&self, to: Member, bodies: Vec<Body>) -> Message {
        Message { cluster: CLUSTER, from: self.member, to, clock_ms: 1_700_000_000_000, bodies }
    }

    fn received(&self) -> Vec<Body> {
        self.inbox.messages.lock().iter().flat_map(|(message, _)| message.bodies.clone()).collect()
    }

    async fn receives(&self, expected: &[Body]) {
        until("all has come", || self.received().len() >= expected.len()).await;
        assert!(self.received() == expected, "something else came, or in another order");
    }

    async fn call(&self, to: &Self, kind: u8, body: &[u8]) -> Result<Bytes, super::CallError> {
        let body = Bytes::copy_from_slice(body);
        self.links.call(to.member.node, kind, body, PATIENCE).await
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.links.close();
    }
}

fn member(node: u64, life: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(life) }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn place() -> Place {
    let group = GroupKey { mode: Mode::Strong, copies: 2 };
    Place { group, partition: PartitionId(700) }
}

/// A small thing to say, told apart from others by its number.
fn small(number: u64) -> Body {
    Body::Settled(vec![(place(), Term(5), Seq(number))])
}

/// One replicated write.
fn append(number: u64, value: Bytes) -> Body {
    let item = Item {
        value,
        flags: 7,
        version: Version(number << 20),
        deadline_ms: None,
        marks: Marks::default(),
    };
    let key = Bytes::from(format!("key:{number:012}"));
    let key = ItemKey { cache: CacheId(1), key };
    let entry = Entry {
        seq: Seq(number),
        version: Version(number << 20),
        clock_ms: 1_700_000_000_000,
        effect: Some(Effect { key, change: Change::Put(item) }),
        answer: None,
    };
    let entries = vec![entry.into()];
    let (term, stable) = (Term(5), Seq(number));
    Body::Strong(place(), StrongMessage::Append { term, stable, version: 9, probe: false, entries })
}

/// Bytes that no compressor makes smaller.
fn noise(len: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(len as u64);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect::<Vec<_>>().into()
}
