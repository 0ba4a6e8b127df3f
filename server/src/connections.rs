//! Who is connected: the limit over all workers, and each worker's register.
//!
//! The limit is one counter for the whole node. Each worker keeps a register of its own
//! connections; it is locked when a connection comes, goes or is listed, never for a request.
//!
//! A connection tells in its [`Peer`] whether it is at rest. That is how the shell ends
//! connections without asking them: one at rest holds nothing of its client's, neither half a
//! request nor an unwritten reply, so its task may be dropped where it waits.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{mailbox::Mailbox, node::Node};

/// Where a client is, or where one is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An address of the network.
    Tcp(SocketAddr),
    /// A Unix socket: the path of the listener, which is all that clients have of a name.
    Unix(Arc<str>),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// One connection, as the rest of the node sees it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Unique over the life of the node.
    pub(crate) id: u64,
    /// The socket, for `stats conns`; not to be used for anything else.
    pub(crate) fd: RawFd,
    /// Who is at the other end.
    pub(crate) remote: Endpoint,
    /// The listener that took the connection.
    pub(crate) local: Endpoint,
    /// Where notes for its client are put, when it can be told what it did not ask for.
    pub(crate) mailbox: Option<Arc<Mailbox>>,
    /// When the last request came (at first: the connection), in milliseconds of the node's clock.
    active_ms: AtomicU64,
    resting: AtomicBool,
}

impl Peer {
    /// Requests have come in and are being served. Call once per batch.
    #[inline]
    pub(crate) fn busy(&self, now_ms: u64) {
        self.active_ms.store(now_ms, Relaxed);
        self.resting.store(false, Relaxed);
    }

    /// Something is being told that nobody asked for. Not for want of this is a client idle.
    #[inline]
    pub(crate) fn speak(&self) {
        self.resting.store(false, Relaxed);
    }

    /// All requests are answered, all replies written, and no part of a request is held: the
    /// task may be dropped at its next await. Call before waiting for more.
    #[inline]
    pub(crate) fn rest(&self) {
        self.resting.store(true, Relaxed);
    }

    /// Whether the connection is at rest.
    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Relaxed)
    }

    /// When the last request came, in milliseconds of the node's clock.
    pub(crate) fn active_ms(&self) -> u64 {
        self.active_ms.load(Relaxed)
    }
}

/// What one worker knows of its connections. Padded: it sits in an array beside other workers'.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Register {
    /// Includes those that are on their way to the worker.
    open: AtomicUsize,
    entries: Mutex<HashMap<u64, (Arc<Peer>, AbortHandle)>>,
}

impl Register {
    /// Connections of this worker now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Calls `visit` for each connection. The register is locked meanwhile: be brief.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Peer)) {
        self.entries.lock().values().for_each(|(peer, _)| visit(peer));
    }

    /// Drops the tasks of those connections that `condemned` picks, and says how many.
    pub(crate) fn cut(&self, mut condemned: impl FnMut(&Peer) -> bool) -> usize {
        let entries = self.entries.lock();
        let chosen: Vec<_> = entries
            .values()
            .filter(|(peer, _)| condemned(peer))
            .map(|(_, task)| task.clone())
            .collect();
        // A task that is dropped takes itself off the register, so the lock must be free.
        drop(entries);
        chosen.iter().for_each(AbortHandle::abort);
        chosen.len()
    }

    fn insert(&self, peer: Arc<Peer>, task: AbortHandle) {
        self.entries.lock().insert(peer.id, (peer, task));
    }
}

/// The limit over all workers.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    max: usize,
    open: AtomicUsize,
    rejected: AtomicU64,
    next_id: AtomicU64,
}

impl ConnectionLimit {
    /// No connection yet, and never more than `max`.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            open: AtomicUsize::new(0),
            rejected: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Connections turned away so far.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Takes a place, or counts a rejection.
    fn enter(&self) -> bool {
        if self.open.fetch_add(1, Relaxed) < self.max {
            return true;
        }
        self.open.fetch_sub(1, Relaxed);
        self.rejected.fetch_add(1, Relaxed);
        false
    }
}

/// A place under the limit and on a worker's register; both are given back when this is dropped.
pub(crate) struct Admission {
    node: Arc<Node>,
    worker: usize,
    id: u64,
}

impl Admission {
    /// A place with the worker that has the fewest connections; `accepted_by` on a tie, so that
    /// no connection moves without need. `None` when the node is full.
    pub(crate) fn request(node: &Arc<Node>, accepted_by: usize) -> Option<Self> {
        if !node.connections.enter() {
            return None;
        }
        let load = |worker: usize| node.workers[worker].register.open();
        let worker = (0..node.workers.len())
            .min_by_key(|&worker| (load(worker), worker != accepted_by))
            .unwrap_or(accepted_by);
        node.workers[worker].register.open.fetch_add(1, Relaxed);
        let id = node.connections.next_id.fetch_add(1, Relaxed);
        Some(Self { node: Arc::clone(node), worker, id })
    }

    /// The worker that is to serve the connection.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// Describes the connection for the register.
    pub(crate) fn peer(
        &self,
        fd: RawFd,
        remote: Endpoint,
        local: Endpoint,
        mailbox: Option<Arc<Mailbox>>,
    ) -> Arc<Peer> {
        let active_ms = AtomicU64::new(self.node.clock.now_ms());
        let resting = AtomicBool::new(true);
        Arc::new(Peer { id: self.id, fd, remote, local, mailbox, active_ms, resting })
    }

    /// Moves the place to the worker that will serve after all.
    pub(crate) fn moved_to(mut self, worker: usize) -> Self {
        self.node.workers[self.worker].register.open.fetch_sub(1, Relaxed);
        self.node.workers[worker].register.open.fetch_add(1, Relaxed);
        self.worker = worker;
        self
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let register = &self.node.workers[self.worker].register;
        register.entries.lock().remove(&self.id);
        register.open.fetch_sub(1, Relaxed);
        self.node.connections.open.fetch_sub(1, Relaxed);
    }
}

/// Puts a connection's task on the register of its worker.
pub(crate) fn register(node: &Node, worker: usize, peer: Arc<Peer>, task: AbortHandle) {
    node.workers[worker].register.insert(peer, task);
}
