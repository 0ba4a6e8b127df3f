//! A place for a connection to one node, which is made, and made again when it was lost.
//!
//! A task of the link's own connects, runs the connection until it ends, waits and begins anew. A
//! call that finds the link down is told so at once, with when the next attempt is due: how long
//! to wait is the call's decision, not the link's.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kiln_protocol::native::Effect;
use tokio::{
    select,
    sync::watch,
    time::{Instant as TokioInstant, sleep, timeout, timeout_at},
};

use crate::{
    Error, Reason,
    connection::{Connection, Deadline, Driver, greet},
    core::{Core, Settings},
    error::WaitingFor,
    events::Event,
    freshness::Freshness,
};

/// How a link is.
#[derive(Clone, Debug)]
enum LinkState {
    Connecting {
        /// A connection was lost, or an attempt failed, since there last was one.
        again: bool,
    },
    Up(Arc<Connection>),
    /// The last attempt failed.
    Down(Arc<Reason>),
}

/// See the module. Dropped, its connection ends.
#[derive(Debug)]
pub(crate) struct Link {
    state: Arc<watch::Sender<LinkState>>,
    /// Until the link is first used.
    idle: AtomicBool,
    task: Task,
    /// Its end tells the task.
    _stop: watch::Sender<()>,
}

/// What the task needs. It must not keep the client alive.
#[derive(Clone, Debug)]
struct Task {
    address: Arc<str>,
    settings: Arc<Settings>,
    core: Weak<Core>,
    /// This is the node's link that pushes come over.
    first: bool,
    state: Arc<watch::Sender<LinkState>>,
    stop: watch::Receiver<()>,
}

/// A connection that lived so long makes earlier failures forgotten.
const STABLE_AFTER: Duration = Duration::from_secs(5);

impl Link {
    pub(crate) fn new(
        address: Arc<str>,
        settings: Arc<Settings>,
        core: Weak<Core>,
        first: bool,
    ) -> Self {
        let state = Arc::new(watch::Sender::new(LinkState::Connecting { again: false }));
        let (_stop, stop) = watch::channel(());
        let task = Task { address, settings, core, first, state: state.clone(), stop };
        Self { state, idle: AtomicBool::new(true), task, _stop }
    }

    /// Begins to connect, if that was not done.
    pub(crate) fn start(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed) {
            self.task.settings.runtime.spawn(self.task.clone().run());
        }
    }

    /// The connection, if there is a usable one right now.
    pub(crate) fn ready(&self) -> Option<Arc<Connection>> {
        match &*self.state.borrow() {
            LinkState::Up(connection) if connection.is_usable() => Some(connection.clone()),
            _ => None,
        }
    }

    /// Whether there is no connection although there should be one: it was lost, or could not be
    /// made. A call that another node can serve as well need not wait for it.
    pub(crate) fn is_troubled(&self) -> bool {
        match &*self.state.borrow() {
            LinkState::Up(connection) => !connection.is_usable(),
            LinkState::Connecting { again } => *again,
            LinkState::Down(_) => true,
        }
    }

    /// The connection, waiting for an attempt that is under way.
    ///
    /// Cancel safe.
    pub(crate) async fn connection(&self, deadline: Deadline) -> Result<Arc<Connection>, Error> {
        self.start();
        let mut states = self.state.subscribe();
        let settled = states.wait_for(|state| match state {
            LinkState::Connecting { .. } => false,
            LinkState::Up(connection) => connection.is_usable(),
            LinkState::Down(_) => true,
        });
        match timeout_at(TokioInstant::from_std(deadline.at), settled).await {
            Err(_) => Err(deadline.exceeded(Effect::NotApplied, WaitingFor::Connection)),
            Ok(Ok(state)) => match &*state {
                LinkState::Up(connection) => Ok(connection.clone()),
                LinkState::Down(reason) => Err(Error::NotApplied(reason.clone())),
                LinkState::Connecting { .. } => Err(Error::not_applied(Reason::Closed)),
            },
            // Not reached: the sender lives as long as this link.
            Ok(Err(_)) => Err(Error::not_applied(Reason::Closed)),
        }
    }

    /// Ends the connection if there is one, and the attempts to make one.
    pub(crate) fn close(&self) {
        self.idle.store(false, Ordering::Relaxed);
        self._stop.send_replace(());
        self.state.send_replace(LinkState::Down(Arc::new(Reason::Closed)));
    }
}

impl Task {
    async fn run(self) {
        self.run_until_stopped().await;
        // Last, whatever the link was told before it heard of its end.
        self.state.send_replace(LinkState::Down(Arc::new(Reason::Closed)));
    }

    async fn run_until_stopped(&self) {
        let mut stop = self.stop.clone();
        // Failures in a row.
        let mut failures = 0;
        loop {
            self.state.send_replace(LinkState::Connecting { again: failures > 0 });
            let connected = select! {
                connected = self.connect() => connected,
                _ = stop.changed() => return,
            };
            match connected {
                Ok((connection, driver)) => {
                    let connected_at = Instant::now();
                    let Some(core) = self.core.upgrade() else { return };
                    core.announce(Event::Connected {
                        address: self.address.clone(),
                        node: connection.peer.welcome.node.as_str().into(),
                    });
                    core.on_connected(&connection, self.first);
                    drop(core);
                    self.state.send_replace(LinkState::Up(connection.clone()));
                    let error = select! {
                        error = driver.run() => error,
                        _ = stop.changed() => return,
                    };
                    tracing::debug!(address = &*self.address, %error, "connection lost");
                    self.announce(Event::Disconnected { address: self.address.clone(), error });
                    if connected_at.elapsed() >= STABLE_AFTER {
                        failures = 0;
                    }
                    failures += 1;
                    self.state.send_replace(LinkState::Connecting { again: true });
                    if failures == 1 {
                        // Most connections that are lost can be made again at once.
                        continue;
                    }
                }
                Err(reason) => {
                    failures += 1;
                    let reason = Arc::new(match reason {
                        Reason::Disconnected { address, error } => Reason::Unreachable {
                            address,
                            error,
                            retry_after: self.settings.reconnect.first,
                        },
                        reason => reason,
                    });
                    tracing::debug!(address = &*self.address, %reason, "cannot connect");
                    let address = self.address.clone();
                    self.announce(Event::ConnectFailed { address, reason: reason.clone() });
                    self.state.send_replace(LinkState::Down(reason));
                }
            }
            let delay = self.settings.reconnect.delay(failures, fastrand::f64());
            select! {
                () = sleep(delay) => {}
                _ = stop.changed() => return,
            }
        }
    }

    async fn connect(&self) -> Result<(Arc<Connection>, Driver), Reason> {
        match timeout(self.settings.connect_timeout, self.try_connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(self.unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn try_connect(&self) -> Result<(Arc<Connection>, Driver), Reason> {
        let connecting = self.settings.connector.connect(self.address.clone());
        let mut transport = connecting.await.map_err(|error| self.unreachable(error))?;
        let peer = greet(&mut transport, &self.address, &self.settings.greeting).await?;
        let freshness = Arc::new(Freshness::new(Instant::now()));
        let connection = Arc::new(Connection::new(
            Arc::new(peer),
            transport.writer,
            transport.failed_writes_send_nothing,
            self.settings.tuning,
            freshness,
        ));
        let pushes = Arc::new(self.core.clone());
        let driver = Driver::new(connection.clone(), transport.reader, pushes);
        Ok((connection, driver))
    }

    fn unreachable(&self, error: io::Error) -> Reason {
        Reason::Unreachable {
            address: self.address.clone(),
            error: Arc::new(error),
            retry_after: self.settings.reconnect.first,
        }
    }

    fn announce(&self, event: Event) {
        if let Some(core) = self.core.upgrade() {
            core.announce(event);
        }
    }
}
