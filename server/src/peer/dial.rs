//! The connection that this node keeps to a peer.
//!
//! One task for each peer: look the name up, connect, say who is who, exchange until it breaks,
//! wait a little, again. A changed address or life is tried at once. Nothing is sent again by the
//! link: what was lost with a connection, the core and the callers know best.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Incarnation, Member, NodeId},
    message::Message,
};
use kiln_protocol::peer::BODY_LEN_MAX;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{Notify, watch},
    time::{sleep, timeout, timeout_at},
};

use super::{
    Shared,
    connection::{Asking, Connection},
    error::{CallError, DialError, Refusal, Step},
    handshake::{self, HELLO_LEN_MAX, Hello, Other, Purpose},
    reader::FrameReader,
    settings::LinkSettings,
    stats::{Counters, LinkStats, count},
};

/// A connection that stood so long was a good one: the next attempts begin without a long wait.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// A node that this one keeps a connection to.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    target: Mutex<Target>,
    /// The target changed, or the peer is to be let go.
    changed: Notify,
    /// Let go for good. Written under the lock of `target`, as `live` is, so that no connection
    /// slips in behind it.
    gone: AtomicBool,
    phase: watch::Sender<Phase>,
    /// The connection, while it stands: what `phase` says, without a lock.
    live: ArcSwapOption<Connection>,
    /// Another life answers than the one that messages are for.
    withhold: AtomicBool,
    counters: Arc<Counters>,
}

/// Where a peer is, and which of its lives the core speaks to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    incarnation: Incarnation,
    address: String,
}

#[derive(Clone, Debug)]
enum Phase {
    /// An attempt is under way, or about to begin.
    Connecting,
    Connected(Arc<Connection>),
    /// The last attempt failed; the next one comes after a while.
    Waiting(DialError),
    /// There will be no more attempts.
    Gone,
}

impl Peer {
    pub(super) fn new(member: Member, address: String, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            node: member.node,
            target: Mutex::new(Target { incarnation: member.incarnation, address }),
            changed: Notify::new(),
            gone: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Connecting),
            live: ArcSwapOption::empty(),
            withhold: AtomicBool::new(true),
            counters,
        })
    }

    /// It is to be found there from now on, in this life.
    pub(super) fn retarget(&self, incarnation: Incarnation, address: String) {
        let mut target = self.target.lock();
        let new = Target { incarnation, address };
        if *target == new {
            return;
        }
        *target = new;
        // The life that answers may be the one looked for already.
        let live = self.live.load();
        match &*live {
            Some(connection) if connection.other.member.incarnation == incarnation => {
                self.withhold.store(false, Relaxed);
            }
            Some(connection) => {
                self.withhold.store(true, Relaxed);
                connection.close();
            }
            None => {}
        }
        drop(target);
        self.changed.notify_one();
    }

    /// Ends the connection; a new one is made if the peer is still wanted.
    pub(super) fn reset(&self) {
        let target = self.target.lock();
        if let Some(connection) = &*self.live.load() {
            connection.close();
        }
        drop(target);
        self.changed.notify_one();
    }

    /// Lets the peer go for good.
    pub(super) fn let_go(&self) {
        let target = self.target.lock();
        self.gone.store(true, Relaxed);
        drop(target);
        self.reset();
    }

    /// Queues a message, or counts that it was not.
    #[inline]
    pub(super) fn send(&self, message: &Message) {
        let live = self.live.load();
        let Some(connection) = &*live else { return count(&self.counters.dropped, 1) };
        if self.withhold.load(Relaxed) {
            return count(&self.counters.withheld, 1);
        }
        if connection.message(message).is_err() {
            count(&self.counters.dropped, 1);
        }
    }

    /// Writes what is queued.
    pub(super) fn flush(&self) {
        if let Some(connection) = &*self.live.load() {
            connection.flush();
        }
    }

    pub(super) async fn call(
        &self,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + within;
        let connection = self.connected(deadline).await?;
        connection.call(kind, &body, deadline.saturating_duration_since(Instant::now())).await
    }

    /// The connection, once an attempt that is under way has come to something.
    async fn connected(&self, deadline: Instant) -> Result<Arc<Connection>, CallError> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Connected(connection) => return Ok(Arc::clone(connection)),
                Phase::Waiting(error) => return Err(CallError::NotConnected(error.clone())),
                Phase::Gone => return Err(CallError::UnknownPeer(self.node)),
                Phase::Connecting => {}
            }
            let late = DialError::TimedOut(Step::Connect);
            match timeout_at(deadline.into(), phase.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(CallError::UnknownPeer(self.node)),
                Err(_) => return Err(CallError::NotConnected(late)),
            }
        }
    }

    pub(super) fn stats(&self) -> LinkStats {
        let mut stats = self.counters.snapshot(self.node);
        stats.address = Some(self.target.lock().address.clone());
        match &*self.phase.borrow() {
            Phase::Connecting | Phase::Gone => {}
            Phase::Waiting(error) => stats.trouble = Some(error.to_string()),
            Phase::Connected(connection) => {
                stats.member = Some(connection.other.member);
                stats.name = Some(Arc::clone(&connection.other.name));
                stats.queued_bytes = connection.waiting();
            }
        }
        stats
    }

    /// Keeps the connection until the peer is let go.
    pub(super) async fn keep(self: Arc<Self>, shared: Arc<Shared>) {
        self.reconnect(&shared).await;
        self.phase.send_replace(Phase::Gone);
    }

    async fn reconnect(&self, shared: &Shared) {
        let settings = &shared.settings;
        let mut backoff = Backoff::new(settings);
        let mut told = None;
        let mut cluster_changes = shared.cluster.subscribe();
        while !self.gone.load(Relaxed) {
            let cluster = *cluster_changes.borrow_and_update();
            if cluster == ClusterId(0) {
                self.phase.send_replace(Phase::Waiting(DialError::NoCluster));
                tokio::select! {
                    changed = cluster_changes.changed() => if changed.is_err() { return },
                    () = self.changed.notified() => {}
                }
                continue;
            }
            self.phase.send_replace(Phase::Connecting);
            let address = self.target.lock().address.clone();
            let dialled = tokio::select! {
                dialled = self.dial(shared, &address, cluster) => dialled,
                () = self.changed.notified() => continue,
            };
            match dialled {
                Ok((connection, mut reader)) => {
                    told = None;
                    self.publish(&connection, shared.cluster() == cluster);
                    let since = Instant::now();
                    let ended = connection.run(&mut reader, &mut Asking::default(), settings).await;
                    self.unpublish();
                    let name = &connection.other.name;
                    if !self.gone.load(Relaxed) && !shared.is_stopped() {
                        tracing::warn!(node = %self.node, name = %name, %address, "link lost: {ended}");
                    }
                    if since.elapsed() >= GOOD_AFTER {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if told.as_ref() != Some(&text) {
                        tracing::warn!(node = %self.node, %address, "no link: {text}");
                        told = Some(text);
                    }
                    self.phase.send_replace(Phase::Waiting(error));
                }
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                () = self.changed.notified() => backoff.reset(),
            }
        }
    }

    async fn dial(
        &self,
        shared: &Shared,
        address: &str,
        cluster: ClusterId,
    ) -> Result<(Arc<Connection>, FrameReader), DialError> {
        let hello = shared.hello(cluster, self.node, Purpose::Link);
        let Dialled { other, remote, reader, writer } =
            dial(address, &hello, &shared.settings).await?;
        let counters = Arc::clone(&self.counters);
        Ok((Connection::new(other, remote, writer, counters, &shared.settings), reader))
    }

    fn publish(&self, connection: &Arc<Connection>, still_fellow: bool) {
        let target = self.target.lock();
        if self.gone.load(Relaxed) || !still_fellow {
            // Let go, or of another cluster, while it was made.
            return connection.close();
        }
        let answered = connection.other.member.incarnation;
        let expected = target.incarnation;
        self.withhold.store(answered != expected, Relaxed);
        self.live.store(Some(Arc::clone(connection)));
        drop(target);
        self.counters.connected();
        self.phase.send_replace(Phase::Connected(Arc::clone(connection)));
        let name = &connection.other.name;
        tracing::info!(node = %self.node, %name, remote = %connection.remote, "linked");
        if answered != expected && expected != Incarnation(0) {
            tracing::warn!(
                node = %self.node, %name,
                "the node was started anew and is not yet taken in again; until it is, it gets \
                 calls but no data"
            );
        }
    }

    fn unpublish(&self) {
        self.live.store(None);
        self.withhold.store(true, Relaxed);
        self.counters.disconnected();
        self.phase.send_replace(Phase::Connecting);
    }
}

/// A connection whose ends know each other.
pub(super) struct Dialled {
    pub(super) other: Other,
    pub(super) remote: SocketAddr,
    pub(super) reader: FrameReader,
    pub(super) writer: OwnedWriteHalf,
}

/// Connects to an address, HOST:PORT, and says hello.
pub(super) async fn dial(
    address: &str,
    hello: &Hello,
    settings: &LinkSettings,
) -> Result<Dialled, DialError> {
    let socket = connect(address, settings.step_timeout).await?;
    let remote = socket.peer_addr().map_err(|error| DialError::Connect(error.into()))?;
    prepare(&socket, settings).map_err(|error| DialError::Connect(error.into()))?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = FrameReader::new(reader, HELLO_LEN_MAX);
    let other = handshake::dialled(&mut reader, &mut writer, hello, settings.step_timeout).await?;
    if other.member.node == hello.from.node {
        return Err(DialError::Refused(Refusal::OwnId));
    }
    if hello.to != NodeId(0) && other.member.node != hello.to {
        let (node, name) = (other.member.node.0, other.name.to_string());
        return Err(DialError::Refused(Refusal::OtherNode { node, name }));
    }
    reader.allow(BODY_LEN_MAX);
    Ok(Dialled { other, remote, reader, writer })
}

async fn connect(address: &str, limit: Duration) -> Result<TcpStream, DialError> {
    let found = timeout(limit, tokio::net::lookup_host(address))
        .await
        .map_err(|_| DialError::TimedOut(Step::Lookup))?
        .map_err(|error| DialError::Resolve(error.into()))?;
    let none = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut last = DialError::Resolve(none.into());
    // A name has few addresses; one that has many is tried again anyway.
    for address in found.take(ADDRESSES_MAX) {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = DialError::Connect(error.into()),
            Err(_) => last = DialError::TimedOut(Step::Connect),
        }
    }
    Err(last)
}

/// Addresses of one name that are tried in one attempt.
const ADDRESSES_MAX: usize = 8;

/// Sets what both ends of a connection need: no waiting for more to send, and an end of waiting
/// for a host that is gone without a word.
pub(super) fn prepare(socket: &TcpStream, settings: &LinkSettings) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(settings.stall))?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&keepalive)
}

/// An end that only listens finds out by probes that the other is gone. Together with the user
/// timeout: after about ten seconds.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);

/// Waits that double, each shortened by chance so that nodes do not all come at once.
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(settings: &LinkSettings) -> Self {
        Self { min: settings.backoff_min, max: settings.backoff_max, next: settings.backoff_min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (2 * wait).min(self.max);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_never_shorter_than_half() {
        let mut backoff = Backoff::new(&LinkSettings::default());
        for expected_ms in [20, 40, 80, 160, 320, 640, 1_000, 1_000] {
            let wait = backoff.next();
            let expected = Duration::from_millis(expected_ms);
            assert!(expected / 2 <= wait && wait <= expected, "{wait:?} of {expected:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(20));
    }
}
