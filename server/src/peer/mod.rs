//! The connections between nodes.
//!
//! ```text
//!   driver --send, flush--> Links --> Peer (one task: dial, exchange, wait) ==TCP==> other node
//!   any thread --call-----/                                       <==answers==
//!   Inbound <--messages, calls-- Answering (one task for each connection) <==TCP== other node
//! ```
//!
//! One connection for each pair and direction: a node dials whom it has something to say to, and
//! gets the answers to its calls there. What always holds:
//! - messages between two lives arrive in the order in which they were sent, each at most once, or
//!   not at all; the link never sends anything again;
//! - a damaged frame costs its connection and nothing of it is applied;
//! - nodes of different clusters exchange nothing but who they are;
//! - every queue, wait and number of calls is bounded by [`LinkSettings`] or a constant.
//!
//! Cost: a message is encoded once, into the buffer that it is written from; all that one turn says
//! to a peer is one frame and one system call.

mod accept;
mod connection;
mod dial;
mod error;
mod handshake;
mod outbox;
mod reader;
mod settings;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Member, NodeId},
    message::Message,
};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use self::{
    accept::Accepted,
    connection::{Asking, Connection},
    dial::{Dialled, Peer},
    handshake::{Hello, Purpose},
    stats::Counters,
};
pub(crate) use self::{
    error::{CallError, DialError, Refused},
    settings::LinkSettings,
    stats::LinkStats,
};

/// Kinds of calls.
pub(crate) mod kind {
    use std::ops::RangeInclusive;

    /// Calls that are answered while one of the two ends belongs to no cluster yet. All others ask
    /// for the same cluster at both ends.
    pub(crate) const JOINING: RangeInclusive<u8> = 0x00..=0x3f;

    /// Readings on their way to their owners: packed by whoever sends them, and not compressed here.
    pub(crate) const READINGS: u8 = 0x50;
}

/// Calls under way to addresses whose node is not known.
const CALLS_AT_MAX: usize = 64;

/// Who this node is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The node and which of its lives.
    pub(crate) member: Member,
    /// Its name, for people.
    pub(crate) name: String,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The node and which of its lives.
    pub(crate) member: Member,
    /// Its name, for people.
    pub(crate) name: Arc<str>,
}

/// What comes from other nodes.
pub(crate) trait Inbound: Send + Sync {
    /// A message of the core came. Called on the links' thread or that of a host ([`Links::host`]),
    /// those of one connection never on two at a time; must not block. `more` says that
    /// further messages of the same read follow.
    fn message(&self, message: Message, more: bool);

    /// Another node asks. The future is dropped when its caller's deadline passes.
    fn call(
        &self,
        from: Caller,
        kind: u8,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send>>;
}

/// A handle on the connections between this node and others.
#[derive(Clone)]
pub(crate) struct Links {
    shared: Arc<Shared>,
}

/// What the tasks of the links share.
struct Shared {
    settings: LinkSettings,
    me: Identity,
    cluster: watch::Sender<ClusterId>,
    inbound: Arc<dyn Inbound>,
    runtime: Handle,
    peers: ArcSwap<HashMap<NodeId, Arc<Peer>>>,
    /// The lives that the peers are known in.
    lives: ArcSwap<HashMap<NodeId, Member>>,
    /// Of all nodes that a connection stands or is wanted with. Its lock also keeps two changes of
    /// the list of peers apart.
    counters: Mutex<HashMap<NodeId, Arc<Counters>>>,
    accepted: Accepted,
    calls_at: Arc<Semaphore>,
    stopped: watch::Sender<bool>,
    /// Where links of other nodes are read; on `runtime` while there are none.
    hosts: watch::Sender<Vec<Handle>>,
}

impl Links {
    /// Starts listening and dialling on the current tokio runtime. Cluster 0: not known yet; until
    /// it is, nobody is dialled but by [`Links::call_at`].
    pub(crate) fn start(
        settings: LinkSettings,
        listener: std::net::TcpListener,
        me: Identity,
        cluster: ClusterId,
        inbound: Arc<dyn Inbound>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let shared = Arc::new(Shared {
            settings,
            me,
            cluster: watch::Sender::new(cluster),
            inbound,
            runtime: Handle::current(),
            peers: ArcSwap::default(),
            lives: ArcSwap::default(),
            counters: Mutex::default(),
            accepted: Accepted::new(),
            calls_at: Arc::new(Semaphore::new(CALLS_AT_MAX)),
            stopped: watch::Sender::new(false),
            hosts: watch::Sender::new(Vec::new()),
        });
        tokio::spawn(accept::accept(Arc::clone(&shared), listener));
        Ok(Self { shared })
    }

    /// This node belongs to that cluster from now on. Connections made as a node of another one are
    /// made anew.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        let shared = &self.shared;
        if shared.cluster.send_replace(cluster) == cluster {
            return;
        }
        for peer in shared.peers.load().values() {
            peer.reset();
        }
        shared.accepted.close(|other| other.cluster != cluster && other.cluster != ClusterId(0));
    }

    /// To whom connections are kept: replaces the former list; gone ones are closed. Addresses are
    /// HOST:PORT, resolved anew at each attempt. Incarnation 0: whichever life answers, for calls
    /// only.
    pub(crate) fn set_peers(&self, peers: Vec<(Member, String)>) {
        let shared = &self.shared;
        let mut counters = shared.counters.lock();
        if shared.is_stopped() {
            return;
        }
        let former = shared.peers.load_full();
        let mut lives = HashMap::with_capacity(peers.len());
        let mut next = HashMap::with_capacity(peers.len());
        let mut new = Vec::new();
        for (member, address) in peers {
            if member.node == shared.me.member.node || next.contains_key(&member.node) {
                continue;
            }
            lives.insert(member.node, member);
            let peer = match former.get(&member.node) {
                Some(peer) => {
                    peer.retarget(member.incarnation, address);
                    Arc::clone(peer)
                }
                None => {
                    let counters = counters.entry(member.node).or_default();
                    let peer = Peer::new(member, address, Arc::clone(counters));
                    new.push(Arc::clone(&peer));
                    peer
                }
            };
            next.insert(member.node, peer);
        }
        let gone = former.iter().filter(|(node, _)| !next.contains_key(node));
        let gone: Vec<_> = gone.map(|(_, peer)| Arc::clone(peer)).collect();
        shared.lives.store(Arc::new(lives));
        shared.peers.store(Arc::new(next));
        drop(counters);
        for peer in gone {
            peer.let_go();
        }
        for peer in new {
            shared.runtime.spawn(peer.keep(Arc::clone(shared)));
        }
        shared.forget_counters();
    }

    /// Queues a message of the core; never blocks. It is encoded into the peer's output at once.
    /// Without a connection or with too much waiting it is dropped and counted: the core resends.
    pub(crate) fn send(&self, to: NodeId, message: &Message) {
        if let Some(peer) = self.shared.peers.load().get(&to) {
            peer.send(message);
        }
    }

    /// Writes what `send` queued: one system call for each peer. Once per turn of the driver, on
    /// the links' own thread.
    pub(crate) fn flush(&self) {
        for peer in self.shared.peers.load().values() {
            peer.flush();
        }
    }

    /// Asks a peer and waits for its answer. From any thread that has a tokio runtime with time.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let peer = self.shared.peers.load().get(&to).map(Arc::clone);
        peer.ok_or(CallError::UnknownPeer(to))?.call(kind, body, within).await
    }

    /// The same to an address, HOST:PORT, whose node is not known yet, over a connection of its
    /// own.
    pub(crate) async fn call_at(
        &self,
        address: &str,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let shared = Arc::clone(&self.shared);
        let permit = Arc::clone(&shared.calls_at).try_acquire_owned();
        let permit = permit.map_err(|_| CallError::Busy)?;
        let address = address.to_owned();
        // On the links' runtime, whatever runtime the caller has.
        let call = self.shared.runtime.spawn(async move {
            let _permit = permit;
            shared.call_at(&address, kind, body, within).await
        });
        call.await.unwrap_or(Err(CallError::Disconnected))
    }

    /// The links with all nodes that a connection stands or is wanted with.
    pub(crate) fn stats(&self) -> Vec<LinkStats> {
        self.shared.forget_counters();
        let peers = self.shared.peers.load();
        let counters = self.shared.counters.lock();
        let mut stats: Vec<_> = counters
            .iter()
            .map(|(node, counters)| {
                peers.get(node).map_or_else(|| counters.snapshot(*node), |peer| peer.stats())
            })
            .collect();
        stats.sort_by_key(|link| link.node);
        stats
    }

    /// Connections to this node's port for nodes that did not come through the handshake.
    pub(crate) fn turned_away(&self) -> u64 {
        self.shared.accepted.turned_away.load(Relaxed)
    }

    /// Has what other nodes say read on the current runtime, one of those that called this, until the
    /// guard is dropped: their messages are then handed on where requests wait for them.
    pub(crate) fn host(&self) -> Hosting {
        let runtime = Handle::current();
        self.shared.hosts.send_modify(|hosts| hosts.push(runtime.clone()));
        Hosting { shared: Arc::clone(&self.shared), runtime }
    }

    /// Closes all connections and the listener, for good.
    pub(crate) fn close(&self) {
        self.shared.stopped.send_replace(true);
        // Under the lock that a change of the peers takes, so that none slips in behind this.
        let counters = self.shared.counters.lock();
        let peers = self.shared.peers.swap(Arc::default());
        drop(counters);
        for peer in peers.values() {
            peer.let_go();
        }
        self.shared.accepted.stop();
    }
}

/// A runtime reads links; dropped, they go elsewhere.
pub(crate) struct Hosting {
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Drop for Hosting {
    fn drop(&mut self) {
        let gone = self.runtime.id();
        self.shared.hosts.send_modify(|hosts| hosts.retain(|host| host.id() != gone));
    }
}

impl Shared {
    fn cluster(&self) -> ClusterId {
        *self.cluster.borrow()
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    fn hello(&self, cluster: ClusterId, to: NodeId, purpose: Purpose) -> Hello {
        Hello { cluster, from: self.me.member, name: self.me.name.clone(), to, purpose }
    }

    /// Whether that may be the life that its node is in, as far as is known here.
    fn may_be_alive(&self, member: Member) -> bool {
        let listed = self.lives.load().get(&member.node).map(|listed| listed.incarnation);
        accept::lives_agree(listed, member.incarnation)
    }

    fn counters(&self, node: NodeId) -> Arc<Counters> {
        Arc::clone(self.counters.lock().entry(node).or_default())
    }

    /// Forgets the counters of nodes that no connection stands or is wanted with. Those that a call
    /// still holds stay until the next time.
    fn forget_counters(&self) {
        self.counters.lock().retain(|_, counters| Arc::strong_count(counters) > 1);
    }

    async fn call_at(
        &self,
        address: &str,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + within;
        let hello = self.hello(self.cluster(), NodeId(0), Purpose::Call);
        let dialled = dial::dial(address, &hello, &self.settings);
        let Dialled { other, remote, mut reader, writer } =
            match tokio::time::timeout_at(deadline.into(), dialled).await {
                Ok(dialled) => dialled.map_err(CallError::NotConnected)?,
                Err(_) => {
                    let late = DialError::TimedOut(error::Step::Connect);
                    return Err(CallError::NotConnected(late));
                }
            };
        let connection = Connection::new(other, remote, writer, Arc::default(), &self.settings);
        let left = deadline.saturating_duration_since(Instant::now());
        let mut asking = Asking::default();
        let answer = tokio::select! {
            // Asked before it is listened to.
            biased;
            answer = connection.call(kind, &body, left) => answer,
            _ = connection.run(&mut reader, &mut asking, &self.settings) => {
                Err(CallError::Disconnected)
            }
        };
        connection.close();
        answer
    }
}
