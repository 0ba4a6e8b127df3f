//! A worker thread: accepts connections, and runs each as a task of its own.
//!
//! All workers wait on the same listening sockets, so the one that is awake first accepts. It
//! keeps the connection only if no other worker has fewer; else it hands the socket over before
//! anything is read. With any number of connections each worker thus has its fair share, give or
//! take one, and a connection stays with its worker for life: no locks, no task ever moves.
//!
//! What bounds what: the node's connection limit bounds tasks, a hand-over queue is bounded and
//! when it is full the accepting worker serves by itself.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
    runtime,
    sync::mpsc,
    task,
    time::{self, MissedTickBehavior},
};

use crate::{
    connection,
    connections::{self, Admission, Endpoint},
    listen::{Accepted, Listener, Protocol},
    memcached::{self, Memcached},
    native::{self, Native},
    node::Node,
    stream::Stream,
};

/// Connections that wait to be taken over by one worker.
const HANDOVER_MAX: usize = 1024;

/// Accepted in a row before requests get their turn.
const ACCEPT_BURST: usize = 64;

/// Waits after a failure to accept: the first, doubled each time, and the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Between two warnings about failures to accept.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How often a worker shows that it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// How often a draining worker looks whether its connections are done.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// Native clients are told that the node stops, and have so long to send nothing new and close:
/// what they sent before the word reached them is still served.
const GOODBYE_TIME: Duration = Duration::from_millis(200);

/// An accepted connection on its way to the worker that will serve it.
pub(crate) struct Handover {
    accepted: Accepted,
    protocol: Protocol,
    local: Endpoint,
    admission: Admission,
}

/// The way to each worker, for all workers.
#[derive(Clone)]
pub(crate) struct Handovers(Arc<[mpsc::Sender<Handover>]>);

/// The receiving end of one worker.
pub(crate) type Inbox = mpsc::Receiver<Handover>;

impl Handovers {
    /// Ways to `workers` workers, and their ends.
    pub(crate) fn new(workers: usize) -> (Self, Vec<Inbox>) {
        let (senders, inboxes): (Vec<_>, _) =
            (0..workers).map(|_| mpsc::channel(HANDOVER_MAX)).unzip();
        (Self(senders.into()), inboxes)
    }
}

/// Runs worker `index` until the node stops and its connections are done. Blocks the thread.
///
/// Says so on `started` when it accepts connections.
pub(crate) fn run(
    node: Arc<Node>,
    index: usize,
    listeners: Vec<Listener>,
    handovers: Handovers,
    inbox: Inbox,
    started: mpsc::Sender<()>,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut background = Vec::new();
        for listener in listeners {
            let local = listener.endpoint()?;
            let protocol = listener.protocol;
            // SAFETY: the listener owns its descriptor and never replaces it, so the descriptor
            // stays open and the same as long as the `AsyncFd` that owns the listener.
            let listener =
                unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE)? };
            let (node, handovers) = (Arc::clone(&node), handovers.clone());
            background.push(task::spawn(accept(
                node,
                index,
                (listener, protocol),
                local,
                handovers,
            )));
        }
        background.push(task::spawn(take_over(Arc::clone(&node), index, inbox)));
        background.push(task::spawn(watch(Arc::clone(&node), index)));
        background.extend(node.cluster.get().map(|cluster| task::spawn(cluster.attend())));
        let hosting = node.cluster.get().and_then(|cluster| cluster.host_links());

        // Nobody listens when the node is already on its way down.
        let _ = started.try_send(());

        node.shutdown.begun().await;
        // Stops accepting. Connections on their way here are dropped unread.
        background.iter().for_each(task::JoinHandle::abort);
        drain(&node, index).await;
        if hosting.is_some() {
            drop(hosting);
            // The links move on.
            time::sleep(DRAIN_STEP).await;
        }
        Ok(())
    })
}

async fn accept(
    node: Arc<Node>,
    index: usize,
    (listener, protocol): (AsyncFd<Listener>, Protocol),
    local: Endpoint,
    handovers: Handovers,
) {
    let mut backoff = BACKOFF_MIN;
    let mut warned: Option<Instant> = None;
    let mut burst = 0;
    loop {
        match listener.async_io(Interest::READABLE, Listener::accept).await {
            Ok(accepted) => {
                backoff = BACKOFF_MIN;
                admit(&node, index, (accepted, protocol), &local, &handovers);
            }
            // The client changed its mind between knocking and being let in.
            Err(error) if is_of_one_connection(&error) => {}
            // Mostly: no more file descriptors. Nothing helps but waiting for some to be closed.
            Err(error) => {
                // Not each time: when descriptors come and go, so do failures.
                if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    warned = Some(Instant::now());
                    tracing::warn!(listener = %local, %error, "cannot accept connections");
                }
                time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        burst += 1;
        if burst == ACCEPT_BURST {
            burst = 0;
            task::yield_now().await;
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

fn admit(
    node: &Arc<Node>,
    index: usize,
    (accepted, protocol): (Accepted, Protocol),
    local: &Endpoint,
    handovers: &Handovers,
) {
    let Some(admission) = Admission::request(node, index) else {
        return reject(accepted, protocol);
    };
    let target = admission.worker();
    let handover = Handover { accepted, protocol, local: local.clone(), admission };
    if target == index {
        return serve(node, index, handover);
    }
    if let Err(refused) = handovers.0[target].try_send(handover) {
        let mut handover = refused.into_inner();
        handover.admission = handover.admission.moved_to(index);
        serve(node, index, handover);
    }
}

/// Tells the client why, as far as that is possible without waiting.
fn reject(accepted: Accepted, protocol: Protocol) {
    fn tell(word: &[u8], mut stream: impl Read + Write, close: impl FnOnce()) {
        let _ = stream.write(word);
        close();
        // Unread bytes at close would reset the connection, and the reset may overtake the words.
        let _ = stream.read(&mut [0; 4096]);
    }
    let word: &[u8] = match protocol {
        Protocol::Memcached => memcached::TOO_MANY,
        Protocol::Native => &native::too_many(),
    };
    match accepted {
        Accepted::Tcp(stream, _) => {
            tell(word, &stream, || drop(stream.shutdown(std::net::Shutdown::Write)));
        }
        Accepted::Unix(stream) => {
            tell(word, &stream, || drop(stream.shutdown(std::net::Shutdown::Write)));
        }
    }
}

async fn take_over(node: Arc<Node>, index: usize, mut inbox: Inbox) {
    while let Some(handover) = inbox.recv().await {
        serve(&node, index, handover);
    }
}

/// Starts the task of a connection.
fn serve(node: &Arc<Node>, index: usize, handover: Handover) {
    let Handover { accepted, protocol, local, admission } = handover;
    let (stream, fd, remote) = match accepted {
        Accepted::Tcp(stream, address) => {
            let fd = stream.as_raw_fd();
            (TcpStream::from_std(stream).map(Stream::Tcp), fd, Endpoint::Tcp(address))
        }
        Accepted::Unix(stream) => {
            let fd = stream.as_raw_fd();
            (UnixStream::from_std(stream).map(Stream::Unix), fd, local.clone())
        }
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%remote, %error, "cannot serve a connection");
            return;
        }
    };
    node.workers[index].counters.total_connections.add(1);
    let mailbox = (protocol == Protocol::Native).then(Arc::default);
    let peer = admission.peer(fd, remote, local, mailbox);
    tracing::debug!(connection = peer.id, remote = %peer.remote, "connected");
    let connection = {
        let (node, peer) = (Arc::clone(node), Arc::clone(&peer));
        task::spawn(async move {
            // Given back also when the task is dropped in the middle, or panics.
            let _admission = admission;
            match &peer.mailbox {
                None => {
                    let session = Memcached::new(&node);
                    connection::serve(stream, session, peer, node, index).await;
                }
                Some(mailbox) => {
                    let session = Native::new(&node, Arc::clone(mailbox));
                    connection::serve(stream, session, peer, node, index).await;
                }
            }
        })
    };
    connections::register(node, index, peer, connection.abort_handle());
}

/// Reads so long ago count half in the miss-ratio curves of caches.
const CURVES_HALF_LIFE_MS: u64 = 300_000;

/// Shows that the worker is alive, and closes connections that are idle for too long. One timer
/// for all of them: a timer per connection would have to be moved with every request.
async fn watch(node: Arc<Node>, index: usize) {
    let idle_ms = node.config.idle_timeout.0.as_millis() as u64;
    // A connection is closed at most a tenth late.
    let step =
        if idle_ms == 0 { BEAT } else { Duration::from_millis((idle_ms / 10).clamp(10, 1_000)) };
    let mut ticks = time::interval(step);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let worker = &node.workers[index];
    let mut curves_ms = node.clock.now_ms();
    loop {
        ticks.tick().await;
        let now_ms = node.clock.now_ms();
        if index == 0 && now_ms.saturating_sub(curves_ms) >= CURVES_HALF_LIFE_MS {
            curves_ms = now_ms;
            node.caches.load().iter().for_each(|cache| cache.curve.age());
        }
        worker.heart.beat(now_ms);
        worker.hottest.lock().age(now_ms);
        worker.latencies.turn_over(now_ms);
        if idle_ms > 0 {
            // Also one that is not at rest: it has half a request, or replies nobody reads.
            let idle =
                worker.register.cut(|peer| now_ms.saturating_sub(peer.active_ms()) >= idle_ms);
            worker.counters.idle_kicks.add(idle as u64);
        }
    }
}

/// Ends connections as they come to rest, and after the grace all others.
async fn drain(node: &Node, index: usize) {
    let worker = &node.workers[index];
    let begun = Instant::now();
    let deadline = begun + node.config.shutdown_grace.0;
    worker.register.each(|peer| {
        if let Some(mailbox) = &peer.mailbox {
            mailbox.goodbye();
        }
    });
    loop {
        // Before the first look as well: what the sockets hold already was sent before we stopped,
        // and is served meanwhile.
        time::sleep(DRAIN_STEP).await;
        let patient = begun.elapsed() < GOODBYE_TIME;
        worker.register.cut(|peer| peer.is_resting() && !(patient && peer.mailbox.is_some()));
        // Tasks that were cut are dropped when they would run next.
        task::yield_now().await;
        if worker.register.open() == 0 {
            return;
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    let cut = worker.register.cut(|_| true);
    tracing::warn!(
        worker = index,
        connections = cut,
        "cut connections that did not finish in time"
    );
    time::sleep(DRAIN_STEP).await;
}
