//! Connections that other nodes make to this one.
//!
//! What always holds: what comes before the handshake is bounded in number, bytes and time; a
//! message is handed on only if its frame was whole, both ends are in one cluster, and it speaks in
//! the name of the node that the handshake named; a call that is worked on is counted until it is
//! done, and is dropped when its caller has given up.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use kiln_cluster::{
    ids::{ClusterId, Incarnation, NodeId},
    message::Message,
};
use kiln_protocol::peer::{BODY_LEN_MAX, FrameKind, Label};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    Caller, Shared,
    connection::{CALL_HEAD_LEN, Connection, Ended, Role},
    dial,
    error::{DialError, Refusal, Refused},
    handshake::{self, HELLO_LEN_MAX, Other, Purpose},
    kind,
    outbox::Rejected,
    reader::{FrameReader, Received},
    stats::count,
    wire,
};

/// Connections that have not said yet who they are; more are closed at once.
const HANDSHAKES_MAX: usize = 64;
/// Connections of nodes; more are refused. A node has one, and one more for each call without a
/// link.
const CONNECTIONS_MAX: usize = 1_024;
/// The wait after a connection could not be accepted, mostly for want of file handles.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// The longest that a call is worked on, whatever its caller would wait.
const CALL_TIME_MAX: Duration = Duration::from_secs(600);
/// Bodies of calls from this length on are views of the read buffer; keeping a shorter one would
/// keep much more memory than it is long.
const SHARE_LEN: usize = 64 << 10;
/// Refusals that are remembered so that each is logged once.
const TOLD_MAX: usize = 64;

/// The connections that other nodes made.
#[derive(Debug)]
pub(super) struct Accepted {
    open: Mutex<Open>,
    handshakes: Arc<Semaphore>,
    /// Connections that did not come through the handshake.
    pub(super) turned_away: AtomicU64,
    told: Mutex<VecDeque<String>>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    connections: HashMap<u64, (Purpose, Arc<Connection>)>,
    stopped: bool,
}

impl Accepted {
    pub(super) fn new() -> Self {
        Self {
            open: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            turned_away: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// Closes those that `which` says.
    pub(super) fn close(&self, which: impl Fn(&Other) -> bool) {
        for (_, connection) in self.open.lock().connections.values() {
            if which(&connection.other) {
                connection.close();
            }
        }
    }

    /// Closes all and takes no more.
    pub(super) fn stop(&self) {
        self.open.lock().stopped = true;
        self.close(|_| true);
    }

    fn is_full(&self) -> bool {
        self.open.lock().connections.len() >= CONNECTIONS_MAX
    }

    /// Takes a connection in. A node has one link: the older one, which it gave up or which broke
    /// without a word, is closed.
    fn add(&self, purpose: Purpose, connection: &Arc<Connection>) -> Option<u64> {
        let mut open = self.open.lock();
        if open.stopped {
            return None;
        }
        if purpose == Purpose::Link {
            for (others, older) in open.connections.values() {
                if *others == Purpose::Link
                    && older.other.member.node == connection.other.member.node
                {
                    older.close();
                }
            }
        }
        open.last += 1;
        let id = open.last;
        open.connections.insert(id, (purpose, Arc::clone(connection)));
        Some(id)
    }

    fn remove(&self, id: u64) {
        self.open.lock().connections.remove(&id);
    }

    fn turn_away(&self, remote: SocketAddr, error: &DialError) {
        count(&self.turned_away, 1);
        let text = match error {
            // Port scanners and health checks of load balancers do just this.
            DialError::Closed | DialError::TimedOut(_) => return,
            _ => format!("{} was turned away: {error}", remote.ip()),
        };
        let mut told = self.told.lock();
        if !told.contains(&text) {
            tracing::warn!("a connection between nodes from {text}");
            if told.len() == TOLD_MAX {
                told.pop_front();
            }
            told.push_back(text);
        }
    }
}

/// Accepts connections until the links stop.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut stopped = shared.stopped.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok((socket, remote)) => {
                let handshakes = Arc::clone(&shared.accepted.handshakes);
                let Ok(permit) = handshakes.try_acquire_owned() else {
                    count(&shared.accepted.turned_away, 1);
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let welcomed = welcome(&shared, socket, remote).await;
                    drop(permit);
                    match welcomed {
                        Ok((connection, purpose, reader)) => {
                            serve(shared, connection, purpose, reader).await;
                        }
                        Err(error) => shared.accepted.turn_away(remote, &error),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection between nodes");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn welcome(
    shared: &Shared,
    socket: TcpStream,
    remote: SocketAddr,
) -> Result<(Arc<Connection>, Purpose, FrameReader), DialError> {
    dial::prepare(&socket, &shared.settings).map_err(|error| DialError::Connect(error.into()))?;
    let (reader, mut writer) = socket.into_split();
    let mut reader = FrameReader::new(reader, HELLO_LEN_MAX);
    let full = shared.accepted.is_full();
    let (other, purpose) = handshake::accepted(
        &mut reader,
        &mut writer,
        &shared.me,
        shared.cluster(),
        |_, _| if full { Err(Refusal::Full) } else { Ok(()) },
        shared.settings.step_timeout,
    )
    .await?;
    reader.allow(BODY_LEN_MAX);
    let counters = shared.counters(other.member.node);
    let connection = Connection::new(other, remote, writer, counters, &shared.settings);
    Ok((connection, purpose, reader))
}

async fn serve(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    purpose: Purpose,
    reader: FrameReader,
) {
    let Some(id) = shared.accepted.add(purpose, &connection) else { return };
    let role = Answering {
        shared: Arc::clone(&shared),
        connection: Arc::clone(&connection),
        work: Arc::default(),
        batch: Vec::new(),
        held: None,
    };
    let listed = Listed { shared: Arc::clone(&shared), connection: Arc::clone(&connection), id };
    answer(shared, connection, Serving { listed, purpose, reader, role }).await;
}

/// A connection that is served, wherever it is.
struct Serving {
    listed: Listed,
    purpose: Purpose,
    reader: FrameReader,
    role: Answering,
}

/// A connection in the list of those that stand. It ends with whoever serves it, also when that is
/// because a runtime ended.
struct Listed {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connection.close();
        self.shared.accepted.remove(self.id);
    }
}

/// Answers until the connection ends, or goes on with that on another runtime.
fn answer(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    mut serving: Serving,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut hosts = shared.hosts.subscribe();
        loop {
            let node = connection.other.member.node;
            let home = match serving.purpose {
                Purpose::Link => host_of(node, &hosts.borrow_and_update()),
                Purpose::Call => None,
            };
            let home = home.unwrap_or_else(|| shared.runtime.clone());
            if home.id() != Handle::current().id() {
                match connection.move_to(&mut serving.reader, &home) {
                    Ok(()) => {
                        home.spawn(answer(shared, connection, serving));
                        return;
                    }
                    Err(error) => tracing::debug!(%node, %error, "a link stays where it is"),
                }
            }
            let Serving { reader, role, .. } = &mut serving;
            tokio::select! {
                ended = connection.run(reader, role, &shared.settings) => {
                    return end(&shared, connection, serving, &ended);
                }
                changed = hosts.changed() => if changed.is_err() { return },
            }
        }
    })
}

/// The runtime that reads what a node says: always the same one while the same ones are there.
fn host_of(node: NodeId, hosts: &[Handle]) -> Option<Handle> {
    let count = u64::try_from(hosts.len()).ok()?;
    let at = node.0.checked_rem(count)?;
    hosts.get(usize::try_from(at).ok()?).cloned()
}

fn end(shared: &Shared, connection: Arc<Connection>, serving: Serving, ended: &Ended) {
    let Other { member, name, .. } = &connection.other;
    match ended {
        Ended::Corrupt(_) | Ended::Unreadable | Ended::Impostor | Ended::Stalled => {
            let remote = connection.remote;
            tracing::warn!(node = %member.node, %name, %remote, "link of a node lost: {ended}");
        }
        _ => tracing::debug!(node = %member.node, %name, "link of a node ended: {ended}"),
    }
    drop(serving.listed);
    drop((serving.reader, serving.role, connection));
    shared.forget_counters();
}

/// The listener's end: it hands messages on and answers calls.
struct Answering {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    work: Arc<Work>,
    batch: Vec<Message>,
    /// The last message read: handed on when it is known whether more follow.
    held: Option<Message>,
}

/// The calls of one connection that are worked on.
#[derive(Debug, Default)]
struct Work {
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

impl Role for Answering {
    fn frame(&mut self, connection: &Connection, frame: Received) -> Result<(), Ended> {
        match frame.label.kind {
            FrameKind::Batch => self.messages(&frame.body),
            FrameKind::Call => self.call(frame.label, frame.body),
            FrameKind::Ping => {
                // Without room for a pong there is none; nothing depends on it.
                let _ = connection.frame(Label { kind: FrameKind::Pong, ..frame.label }, &[]);
                Ok(())
            }
            _ => Err(Ended::Unreadable),
        }
    }

    fn read_end(&mut self, connection: &Connection) {
        if let Some(last) = self.held.take() {
            count(&connection.counters.messages_in, 1);
            self.shared.inbound.message(last, false);
        }
    }
}

impl Answering {
    fn messages(&mut self, batch: &[u8]) -> Result<(), Ended> {
        let other = &self.connection.other;
        let counters = &self.connection.counters;
        if !self.is_fellow() || !self.shared.may_be_alive(other.member) {
            count(&counters.withheld, 1);
            return Ok(());
        }
        self.batch.clear();
        // All of a frame or nothing.
        wire::read(batch, |message| self.batch.push(message)).map_err(|_| Ended::Unreadable)?;
        if self.batch.iter().any(|message| message.from != other.member) {
            return Err(Ended::Impostor);
        }
        for message in self.batch.drain(..) {
            if let Some(former) = self.held.replace(message) {
                count(&counters.messages_in, 1);
                self.shared.inbound.message(former, true);
            }
        }
        Ok(())
    }

    /// Whether both ends are in the same cluster by now.
    fn is_fellow(&self) -> bool {
        let cluster = self.connection.other.cluster;
        cluster != ClusterId(0) && cluster == self.shared.cluster()
    }

    fn call(&mut self, label: Label, body: Bytes) -> Result<(), Ended> {
        let Some(limit_ms) = body.first_chunk::<CALL_HEAD_LEN>() else {
            return Err(Ended::Unreadable);
        };
        let within = Duration::from_millis(u32::from_be_bytes(*limit_ms).into());
        let kind = label.detail;
        if !kind::JOINING.contains(&kind) && !self.is_fellow() {
            refuse(&self.connection, label, Refused::NotMember);
            return Ok(());
        }
        let settings = &self.shared.settings;
        let Some(working) =
            Working::begin(&self.work, body.len(), settings.calls_max, settings.call_bytes_max)
        else {
            refuse(&self.connection, label, Refused::Busy);
            return Ok(());
        };
        let body = match &body[CALL_HEAD_LEN..] {
            short if short.len() < SHARE_LEN => Bytes::copy_from_slice(short),
            _ => body.slice(CALL_HEAD_LEN..),
        };
        let Other { member, name, .. } = &self.connection.other;
        let caller = Caller { member: *member, name: Arc::clone(name) };
        let answer = self.shared.inbound.call(caller, kind, body);
        let connection = Arc::clone(&self.connection);
        // Not where it is read: an answer may take a while, and outlives that place.
        self.shared.runtime.spawn(async move {
            // A caller that has given up is told nothing.
            if let Ok(answer) = timeout(within.min(CALL_TIME_MAX), answer).await {
                reply(&connection, label, answer);
            }
            drop(working);
        });
        Ok(())
    }
}

fn reply(connection: &Connection, label: Label, answer: Result<Bytes, Refused>) {
    let refused = match answer {
        Err(refused) => refused,
        Ok(answer) => {
            let label = Label { kind: FrameKind::Answer, ..label };
            match connection.frame(label, &[&answer]) {
                Ok(()) => return connection.flush(),
                Err(Rejected::TooLarge { .. }) => Refused::AnswerTooLarge,
                // The caller reads nothing; its deadline tells it.
                Err(Rejected::Full | Rejected::Unencodable) => return,
            }
        }
    };
    refuse(connection, label, refused);
    connection.flush();
}

fn refuse(connection: &Connection, label: Label, why: Refused) {
    let label = Label { kind: FrameKind::Failure, detail: why as u8, ..label };
    let _ = connection.frame(label, &[]);
}

/// A call that is worked on; counted until it is dropped.
struct Working {
    work: Arc<Work>,
    bytes: usize,
}

impl Working {
    /// `None` when there is enough to do. One call always fits, however long.
    fn begin(work: &Arc<Work>, bytes: usize, calls_max: usize, bytes_max: usize) -> Option<Self> {
        // Only the connection's own task adds.
        let (calls, held) = (work.calls.load(Relaxed), work.bytes.load(Relaxed));
        if calls >= calls_max || (calls > 0 && held + bytes > bytes_max) {
            return None;
        }
        work.calls.fetch_add(1, Relaxed);
        work.bytes.fetch_add(bytes, Relaxed);
        Some(Self { work: Arc::clone(work), bytes })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.work.calls.fetch_sub(1, Relaxed);
        self.work.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// Whether a listed life leaves room for this one.
pub(super) fn lives_agree(listed: Option<Incarnation>, says: Incarnation) -> bool {
    listed.is_none_or(|listed| listed == says || listed == Incarnation(0))
}
