//! One connection after its handshake, seen from either end.
//!
//! The dialler sends messages and calls, the listener answers. Writing happens where something is
//! said: by the driver's flush, by the thread that calls, by the task that answers. Only when the
//! socket is full does the connection's own task take over, until it is empty again.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use kiln_cluster::message::Message;
use kiln_protocol::peer::{BODY_LEN_MAX, FrameError, FrameKind, Label};
use parking_lot::Mutex;
use tokio::{
    net::{TcpStream, tcp::OwnedWriteHalf},
    runtime::Handle,
    sync::{Notify, oneshot},
    task::yield_now,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    error::{CallError, Refused},
    handshake::Other,
    outbox::{Outbox, Rejected, Room},
    reader::{FrameReader, Received},
    settings::LinkSettings,
    stats::{Counters, count},
};

/// What stands before the body of a call: how long its caller waits, in milliseconds.
pub(super) const CALL_HEAD_LEN: usize = 4;

/// The longest body of a call.
pub(super) const CALL_LEN_MAX: usize = BODY_LEN_MAX - CALL_HEAD_LEN;

/// Bytes read from one connection before others, and the driver, get their turn.
const YIELD_AFTER: usize = 256 << 10;

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) other: Other,
    pub(super) remote: SocketAddr,
    pub(super) counters: Arc<Counters>,
    /// Another handle when the connection moves to another runtime.
    socket: ArcSwap<Socket>,
    out: Mutex<Outbox>,
    /// Something was put into the box since it was last written.
    dirty: AtomicBool,
    /// The socket is full: the task waits for room.
    blocked: AtomicBool,
    closed: AtomicBool,
    /// Why writing failed.
    failure: Mutex<Option<io::Error>>,
    wake: Notify,
    calls: Mutex<Calls>,
    calls_max: usize,
}

/// The writing end. Dropped, it leaves the socket as it is: [`Connection::close`] ends it.
#[derive(Debug)]
struct Socket(Option<OwnedWriteHalf>);

impl Socket {
    fn get(&self) -> io::Result<&OwnedWriteHalf> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            half.forget();
        }
    }
}

/// Calls without an answer yet.
#[derive(Debug, Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<Result<Bytes, CallError>>>,
    over: bool,
}

impl Connection {
    pub(super) fn new(
        other: Other,
        remote: SocketAddr,
        socket: OwnedWriteHalf,
        counters: Arc<Counters>,
        settings: &LinkSettings,
    ) -> Arc<Self> {
        let room = Room { messages: settings.message_bytes_max, calls: settings.call_bytes_max };
        Arc::new(Self {
            other,
            remote,
            counters,
            socket: ArcSwap::from_pointee(Socket(Some(socket))),
            out: Mutex::new(Outbox::new(room, settings.compress_from)),
            dirty: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: Mutex::default(),
            wake: Notify::new(),
            calls: Mutex::default(),
            calls_max: settings.calls_max,
        })
    }

    /// Puts a message into the open batch.
    pub(super) fn message(&self, message: &Message) -> Result<(), Rejected> {
        let mut out = self.out.lock();
        let result = out.message(message);
        // Under the lock: whoever sees the mark writes what was put in before it.
        self.dirty.store(true, Relaxed);
        drop(out);
        if result.is_ok() {
            count(&self.counters.messages_out, 1);
        }
        result
    }

    /// Puts a frame into the box; [`Connection::flush`] writes it.
    pub(super) fn frame(&self, label: Label, parts: &[&[u8]]) -> Result<(), Rejected> {
        let mut out = self.out.lock();
        let result = out.frame(label, parts);
        self.dirty.store(true, Relaxed);
        result
    }

    /// Writes what was put into the box, if the socket takes it.
    pub(super) fn flush(&self) {
        if self.dirty.swap(false, Relaxed) && !self.blocked.load(Relaxed) {
            self.write();
        }
    }

    fn write(&self) {
        let mut out = self.out.lock();
        let result = self.socket.load().get().and_then(|socket| out.write(socket));
        let blocked = !out.is_empty();
        // Under the lock, so that the last writer has the last word.
        let was_blocked = self.blocked.swap(blocked, Relaxed);
        count(&self.counters.frames_out, out.take_frames());
        drop(out);
        match result {
            Ok(written) => count(&self.counters.bytes_out, written as u64),
            Err(error) => {
                *self.failure.lock() = Some(error);
                self.close();
            }
        }
        if blocked && !was_blocked {
            self.wake.notify_one();
        }
    }

    /// Ends the connection; its task notices.
    pub(super) fn close(&self) {
        if !self.closed.swap(true, Relaxed) {
            // Not by dropping the socket: handlers of calls may hold on to it for a while.
            if let Ok(socket) = self.socket.load().get() {
                let socket = socket2::SockRef::from(socket.as_ref());
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            self.wake.notify_one();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.out.lock().waiting()
    }

    /// Asks the other end and waits for its answer.
    pub(super) async fn call(
        &self,
        kind: u8,
        body: &[u8],
        within: Duration,
    ) -> Result<Bytes, CallError> {
        if body.len() > CALL_LEN_MAX {
            return Err(CallError::TooLarge { size: body.len(), limit: CALL_LEN_MAX });
        }
        let (answer, number) = self.expect_answer()?;
        let _forget = Forget { connection: self, number };
        let limit_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let label = Label { kind: FrameKind::Call, detail: kind, number };
        self.frame(label, &[&limit_ms.to_be_bytes(), body]).map_err(|rejected| match rejected {
            Rejected::TooLarge { size, limit } => CallError::TooLarge { size, limit },
            Rejected::Full | Rejected::Unencodable => CallError::Busy,
        })?;
        self.flush();
        match timeout(within, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::Disconnected),
            Err(_) => Err(CallError::Deadline),
        }
    }

    fn expect_answer(
        &self,
    ) -> Result<(oneshot::Receiver<Result<Bytes, CallError>>, u32), CallError> {
        let mut calls = self.calls.lock();
        if calls.over {
            return Err(CallError::Disconnected);
        }
        if calls.waiting.len() >= self.calls_max {
            return Err(CallError::Busy);
        }
        // A number that wrapped around may still wait; there are far fewer calls than numbers.
        let mut number = calls.last.wrapping_add(1);
        while calls.waiting.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        calls.last = number;
        let (sender, receiver) = oneshot::channel();
        calls.waiting.insert(number, sender);
        Ok((receiver, number))
    }

    /// Hands an answer to whoever waits for it. Late ones are for nobody.
    pub(super) fn answered(&self, number: u32, answer: Result<Bytes, CallError>) {
        let waiting = self.calls.lock().waiting.remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    /// Has the connection read on another runtime from now on: nobody may be at
    /// [`run`](Self::run) meanwhile. After an error it is as before.
    pub(super) fn move_to(&self, reader: &mut FrameReader, runtime: &Handle) -> io::Result<()> {
        // A second handle on the socket: the first is let go by all who still write to it, and with
        // it its place in the former runtime.
        let socket = reader.socket().as_ref().as_fd().try_clone_to_owned()?;
        let _context = runtime.enter();
        let (read, write) = TcpStream::from_std(socket.into())?.into_split();
        reader.go_on_with(read);
        self.socket.store(Arc::new(Socket(Some(write))));
        Ok(())
    }

    /// Reads and writes until the connection ends. Dropping the future loses nothing: it may be
    /// called again.
    pub(super) async fn run(
        &self,
        reader: &mut FrameReader,
        role: &mut impl Role,
        settings: &LinkSettings,
    ) -> Ended {
        let ended = self.exchange(reader, role, settings).await;
        self.close();
        // Those who wait are told by the end of their channels.
        let mut calls = self.calls.lock();
        calls.over = true;
        calls.waiting.clear();
        ended
    }

    async fn exchange(
        &self,
        reader: &mut FrameReader,
        role: &mut impl Role,
        settings: &LinkSettings,
    ) -> Ended {
        let mut tick = interval(settings.ping_every.min(settings.stall / 4));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unyielded = 0;
        let socket = self.socket.load_full();
        let writable = match socket.get() {
            Ok(socket) => socket,
            Err(error) => return Ended::Broken(error),
        };
        loop {
            // First, for the handshake may have read more than its own.
            if let Err(ended) = self.handle(reader, role) {
                return ended;
            }
            if unyielded >= YIELD_AFTER {
                unyielded = 0;
                yield_now().await;
            }
            tokio::select! {
                read = reader.fill() => match read {
                    Ok(0) => return Ended::ByOther,
                    Ok(len) => {
                        count(&self.counters.bytes_in, len as u64);
                        unyielded += len;
                    }
                    Err(error) => return Ended::Broken(error),
                },
                ready = writable.writable(), if self.blocked.load(Relaxed) => match ready {
                    Ok(()) => self.write(),
                    Err(error) => return Ended::Broken(error),
                },
                () = self.wake.notified() => {}
                _ = tick.tick() => {
                    let stuck = self.out.lock().stuck_since();
                    if stuck.is_some_and(|since| since.elapsed() >= settings.stall) {
                        return Ended::Stalled;
                    }
                    role.tick(self);
                    self.flush();
                }
            }
            if self.is_closed() {
                return self.failure.lock().take().map_or(Ended::Here, Ended::Broken);
            }
        }
    }

    fn handle(&self, reader: &mut FrameReader, role: &mut impl Role) -> Result<(), Ended> {
        let result = loop {
            match reader.next() {
                Ok(Some(frame)) => {
                    count(&self.counters.frames_in, 1);
                    if let Err(ended) = role.frame(self, frame) {
                        break Err(ended);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(Ended::Corrupt(error)),
            }
        };
        role.read_end(self);
        self.flush();
        if matches!(result, Err(Ended::Corrupt(_) | Ended::Unreadable)) {
            count(&self.counters.corrupt, 1);
        }
        result
    }
}

/// What one end of a connection does with what comes.
pub(super) trait Role: Send {
    /// A frame came.
    fn frame(&mut self, connection: &Connection, frame: Received) -> Result<(), Ended>;
    /// That was all of one read.
    fn read_end(&mut self, _connection: &Connection) {}
    /// Now and then.
    fn tick(&mut self, _connection: &Connection) {}
}

/// The dialler's end: it gets answers.
#[derive(Debug, Default)]
pub(super) struct Asking {
    ping: u32,
    pinged: Option<Instant>,
}

impl Role for Asking {
    fn frame(&mut self, connection: &Connection, frame: Received) -> Result<(), Ended> {
        let Label { kind, detail, number } = frame.label;
        match kind {
            FrameKind::Answer => connection.answered(number, Ok(frame.body)),
            FrameKind::Failure => {
                connection.answered(number, Err(CallError::Refused(Refused::from_byte(detail))));
            }
            FrameKind::Pong if number == self.ping => {
                if let Some(since) = self.pinged.take() {
                    let trip = since.elapsed().as_nanos() as u64;
                    connection.counters.round_trip_ns.store(trip.max(1), Relaxed);
                }
            }
            FrameKind::Pong => {}
            _ => return Err(Ended::Unreadable),
        }
        Ok(())
    }

    fn tick(&mut self, connection: &Connection) {
        if self.pinged.is_none() {
            self.ping = self.ping.wrapping_add(1);
            let label = Label { kind: FrameKind::Ping, detail: 0, number: self.ping };
            // When even a ping finds no room, the trip is not worth measuring.
            if connection.frame(label, &[]).is_ok() {
                self.pinged = Some(Instant::now());
            }
        }
    }
}

/// Forgets a call whose caller does not wait any more.
struct Forget<'a> {
    connection: &'a Connection,
    number: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.calls.lock().waiting.remove(&self.number);
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The other end closed it.
    #[error("the other end closed it")]
    ByOther,
    /// This end closed it.
    #[error("closed by this node")]
    Here,
    /// The network broke it.
    #[error("it broke: {0}")]
    Broken(io::Error),
    /// The other end took nothing for too long.
    #[error("the other end took no bytes for too long; it or the network is overloaded or stopped")]
    Stalled,
    /// Damaged bytes came.
    #[error("damaged bytes came: {0}; nothing of them was applied")]
    Corrupt(FrameError),
    /// Undamaged bytes came that make no sense.
    #[error("the other end said what this version does not understand")]
    Unreadable,
    /// The other end spoke in another node's name.
    #[error("the other end spoke in the name of another node")]
    Impostor,
}
