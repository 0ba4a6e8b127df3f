//! `kiln serve`: from the settings to a running node, and back down.
//!
//! Everything that can fail is done before the ready line, on the main thread, so that a node
//! either says `ready` or says in one line why not. After that the main thread only waits for a
//! reason to stop.
//!
//! ```text
//!   kiln-main    signals, start and stop
//!   kiln-work-N  connections (see `worker`)
//!   kiln-http    HTTP: items, caches, health, metrics
//!   kiln-stream-N  sensor streams: one for some of the partitions each (see `streams`)
//!   kiln-lines   readings as lines
//!   kiln-sources readings that streams fetch: MQTT, Kafka
//!   kiln-upkeep  ends items whose time is over
//!   kiln-cluster other nodes: links and the replication core (see `cluster`)
//!   kiln-control the controller group (see `control`)
//! ```

use std::{
    net::TcpListener,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{
    announce,
    auth::AuthFile,
    caches::CacheSettings,
    cluster,
    config::{Config, Loaded, LogFormat},
    connections::Endpoint,
    failure::Failure,
    http,
    listen::{self, Listener, ListenerSocket, Protocol, SocketFile},
    logging,
    node::{Endpoints, Node},
    pid_file::PidFile,
    process, streams,
    upkeep::Upkeep,
    worker::{self, Handovers},
};

/// Runs a node until it is told to stop.
pub(crate) fn run(loaded: Loaded) -> Result<(), Failure> {
    let config = &loaded.config;
    logging::init(config.log_format, &config.log_level);
    process::raise_file_limit(config.max_connections.0 + config.max_http_connections.0);
    let auth = load_users(config)?;
    let sockets = Sockets::open(config)?;
    let _pid_file = match config.pid_file.get() {
        None => None,
        Some(path) => Some(PidFile::write(path).map_err(|error| {
            Failure::Failed(format!("cannot write {} (pid_file): {error}", path.display()))
        })?),
    };
    let node = Node::new(config.clone(), auth, sockets.endpoints()?);
    let node =
        Arc::new(node.map_err(|error| Failure::Failed(format!("cannot make the store: {error}")))?);

    if config.join.addresses().is_empty() {
        make_caches(&node, &loaded)?;
    } else if !loaded.caches.is_empty() {
        tracing::info!("the caches of the file are not made: the cluster to join has its own");
    }

    // From here on a signal stops the node in good order, also while it is starting.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
    let mut signals = {
        let _context = runtime.enter();
        Signals::install()
            .map_err(|error| Failure::Failed(format!("cannot watch signals: {error}")))?
    };

    let upkeep = Upkeep::start(Arc::clone(&node)).map_err(thread_failure)?;
    let mut clustered = None;
    if let Some(listener) = sockets.peer {
        // Until the cluster has taken the node up, clients wait in the listeners' queues.
        clustered = runtime.block_on(async {
            tokio::select! {
                running = cluster::start(&node, listener) => running.map(Some),
                reason = signals.first() => {
                    tracing::info!(reason, "stopped before the node was in a cluster");
                    Ok(None)
                }
            }
        })?;
        if clustered.is_none() {
            upkeep.stop();
            return Ok(());
        }
    }
    let streams = streams::Running::start(&node).map_err(thread_failure)?;
    if config.join.addresses().is_empty() {
        runtime.block_on(make_streams(&node, &loaded))?;
    } else if !loaded.streams.is_empty() {
        tracing::info!("the streams of the file are not made: the cluster to join has its own");
    }
    let lines = match sockets.ingest {
        Some(listener) => {
            Some(streams::Door::start(Arc::clone(&node), listener).map_err(thread_failure)?)
        }
        None => None,
    };
    let sources = streams::Sources::start(Arc::clone(&node)).map_err(thread_failure)?;
    let mut workers = Workers::start(&node, &sockets.clients)?;
    let http = match sockets.http {
        Some(listener) => {
            Some(http::Server::start(Arc::clone(&node), listener).map_err(thread_failure)?)
        }
        None => None,
    };
    runtime.block_on(workers.started())?;

    node.shutdown.ready();
    let ready = announce::ReadyLine { node: &node };
    match config.log_format {
        LogFormat::Text => eprintln!("{}", announce::banner(&node, &loaded)),
        LogFormat::Json => tracing::info!(version = env!("BUILD_VERSION"), "{ready}"),
    }
    ready.print();
    notify_manager(sd_notify::NotifyState::Ready);

    let ended = runtime.block_on(async {
        tokio::select! {
            reason = signals.first() => {
                if let Some(running) = &clustered {
                    node.shutdown.leave(reason);
                    tokio::select! {
                        _ = running.leave(config.shutdown_grace.0) => {}
                        () = signals.interrupt() => {}
                        () = node.shutdown.begun() => {}
                    }
                }
                node.shutdown.begin(reason);
            }
            () = node.shutdown.begun() => {}
            reason = cluster_failure(clustered.as_ref()) => {
                node.shutdown.begin("the controller group's storage failed");
                return Err(Failure::Failed(reason));
            }
            // A worker ends by itself only when something is badly wrong.
            failure = workers.ended() => {
                node.shutdown.begin("a worker failed");
                failure?;
            }
        }
        notify_manager(sd_notify::NotifyState::Stopping);
        tokio::select! {
            ended = workers.ended() => ended,
            () = signals.interrupt() => {
                Err(Failure::Failed("interrupted again: stopped without waiting".to_owned()))
            }
        }
    });
    if let Some(door) = lines {
        door.stop();
    }
    if let Some(server) = http {
        server.stop();
    }
    sources.stop();
    streams.stop();
    upkeep.stop();
    if let Some(running) = clustered {
        runtime.block_on(running.stop());
    }
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    ended
}

/// Returns when the node cannot be part of its cluster any longer.
async fn cluster_failure(running: Option<&cluster::Running>) -> String {
    match running {
        Some(running) => running.failed().await,
        None => std::future::pending().await,
    }
}

/// Makes the caches that the file asks for.
fn make_caches(node: &Node, loaded: &Loaded) -> Result<(), Failure> {
    for spec in &loaded.caches {
        let fail = |reason: String| {
            Failure::Failed(format!("cannot make the cache `{}` (caches): {reason}", spec.name))
        };
        let settings = CacheSettings::from_spec(spec, node.value_len_max());
        let settings = settings.map_err(|error| fail(error.to_string()))?;
        node.check_copies(&settings).map_err(|error| fail(error.to_string()))?;
        let made = node.caches.create(settings, node.clock.now_ms());
        made.map_err(|error| fail(error.to_string()))?;
    }
    Ok(())
}

/// Makes the streams that the file asks for.
async fn make_streams(node: &Node, loaded: &Loaded) -> Result<(), Failure> {
    for (name, text) in &loaded.streams {
        let made = node.streams.registry.create(node, name, text).await;
        made.map_err(|error| {
            Failure::Failed(format!("cannot make the stream `{name}` (streams): {error}"))
        })?;
    }
    Ok(())
}

fn load_users(config: &Config) -> Result<Option<AuthFile>, Failure> {
    let Some(path) = config.auth_file.get() else { return Ok(None) };
    let users = AuthFile::load(path);
    let fail = |error| Failure::Failed(format!("{} (auth_file): {error}", path.display()));
    users.map(Some).map_err(fail)
}

/// All listening sockets of a node.
struct Sockets {
    /// Of clients that the workers serve.
    clients: Vec<Listener>,
    http: Option<TcpListener>,
    peer: Option<TcpListener>,
    ingest: Option<TcpListener>,
    _socket_file: Option<SocketFile>,
}

impl Sockets {
    fn open(config: &Config) -> Result<Self, Failure> {
        let mut clients = Vec::new();
        for (key, listen, protocol) in [
            ("listen_memcached", &config.listen_memcached, Protocol::Memcached),
            ("listen_native", &config.listen_native, Protocol::Native),
        ] {
            if let Some(listener) = listen::tcp(key, listen)? {
                clients.push(Listener { protocol, socket: ListenerSocket::Tcp(listener) });
            }
        }
        let mut socket_file = None;
        if let Some(path) = config.listen_memcached_unix.get() {
            let (listener, file) = listen::unix(path, config.unix_socket_mode)?;
            let socket = ListenerSocket::Unix(listener);
            clients.push(Listener { protocol: Protocol::Memcached, socket });
            socket_file = Some(file);
        }
        let http = listen::tcp("listen_http", &config.listen_http)?;
        let peer = listen::tcp("listen_peer", &config.listen_peer)?;
        let ingest = listen::tcp("listen_ingest", &config.listen_ingest)?;
        Ok(Self { clients, http, peer, ingest, _socket_file: socket_file })
    }

    fn endpoints(&self) -> Result<Endpoints, Failure> {
        let mut endpoints = Endpoints::default();
        for listener in &self.clients {
            match (listener.protocol, listener.endpoint().map_err(socket_failure)?) {
                (Protocol::Memcached, endpoint) => endpoints.memcached.push(endpoint),
                (Protocol::Native, Endpoint::Tcp(address)) => endpoints.native = Some(address),
                (Protocol::Native, Endpoint::Unix(_)) => {}
            }
        }
        if let Some(listener) = &self.http {
            endpoints.http = Some(listener.local_addr().map_err(socket_failure)?);
        }
        if let Some(listener) = &self.peer {
            endpoints.peer = Some(listener.local_addr().map_err(socket_failure)?);
        }
        if let Some(listener) = &self.ingest {
            endpoints.ingest = Some(listener.local_addr().map_err(socket_failure)?);
        }
        Ok(endpoints)
    }
}

/// The worker threads, seen from the main thread.
struct Workers {
    running: usize,
    started: mpsc::Receiver<()>,
    ended: mpsc::Receiver<Result<(), Failure>>,
}

impl Workers {
    fn start(node: &Arc<Node>, listeners: &[Listener]) -> Result<Self, Failure> {
        let count = node.workers.len();
        let (started_sender, started) = mpsc::channel(count);
        let (ended_sender, ended) = mpsc::channel(count);
        let (handovers, inboxes) = Handovers::new(count);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let listeners =
                listeners.iter().map(Listener::try_clone).collect::<Result<Vec<_>, _>>();
            let listeners = listeners.map_err(socket_failure)?;
            let (node, handovers) = (Arc::clone(node), handovers.clone());
            let (started, ended) = (started_sender.clone(), ended_sender.clone());
            let work = move || {
                let run = AssertUnwindSafe(|| {
                    worker::run(node, index, listeners, handovers, inbox, started)
                });
                let result = match panic::catch_unwind(run) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => {
                        Err(Failure::Failed(format!("worker {index} failed: {error}")))
                    }
                    Err(_) => Err(Failure::Failed(format!("worker {index} panicked; see the log"))),
                };
                // Room for one word of each worker, so this never fails while someone listens.
                let _ = ended.try_send(result);
            };
            let name = format!("kiln-work-{index}");
            thread::Builder::new().name(name).spawn(work).map_err(thread_failure)?;
        }
        Ok(Self { running: count, started, ended })
    }

    /// Waits until all workers accept connections.
    async fn started(&mut self) -> Result<(), Failure> {
        for _ in 0..self.running {
            tokio::select! {
                Some(()) = self.started.recv() => {}
                Some(result) = self.ended.recv() => {
                    self.running -= 1;
                    result?;
                }
            }
        }
        Ok(())
    }

    /// Waits until all workers have ended, or one has failed. May be called again.
    async fn ended(&mut self) -> Result<(), Failure> {
        while self.running > 0 {
            let Some(result) = self.ended.recv().await else { break };
            self.running -= 1;
            result?;
        }
        Ok(())
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    /// The first signal that asks to stop, by name.
    async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.user.recv() => "SIGUSR1",
        }
    }

    /// Someone at the keyboard who will not wait.
    async fn interrupt(&mut self) {
        self.interrupt.recv().await;
    }
}

/// Tells systemd, where it is listening; elsewhere does nothing.
fn notify_manager(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn socket_failure(error: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot prepare a listening socket: {error}"))
}

fn thread_failure(error: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot start a thread: {error}"))
}
