//! One connection, shared by any number of tasks.
//!
//! ```text
//!   task   -- submit --> out buffer --(itself, or the driver)--> node
//!   task  <-- wake ----- slot  <------------ driver <----------- node
//! ```
//!
//! A request is encoded straight into the connection's out buffer and gets a slot, whose number is
//! its id. When nothing else is in flight the task writes the buffer itself: a lone request costs
//! one write and no switch to another task. Otherwise the driver writes, after the tasks that are
//! ready to run had their turn, so that one write carries the requests of all of them.
//!
//! What always holds:
//! - a slot is used again only when its request was answered, so that a late answer to a call that
//!   nobody waits for any more never reaches another call;
//! - each submitted request ends: by its answer, by its deadline, or with the connection;
//! - requests in flight and bytes waiting are bounded by the permits, which callers wait for.
//!
//! Cost of a call: one lock to submit, one or two to take the answer, one allocation for a value.

mod driver;
mod handshake;
mod inbox;
mod slots;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use kiln_protocol::native::{Effect, admin::Welcome};
use parking_lot::{Mutex, RwLock};
use tokio::{
    io::AsyncWrite,
    sync::Semaphore,
    time::{Instant as TokioInstant, timeout_at},
};

pub(crate) use driver::{Driver, Pushes};
pub(crate) use handshake::{Greeting, greet};
use slots::Slots;

use crate::{Error, Reason, answer::Answer, error::WaitingFor, freshness::Freshness};

/// Who is at the other end, and what was agreed.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: Arc<str>,
    pub(crate) welcome: Welcome,
    /// Longest frame taken from the node, in bytes.
    pub(crate) frame_len_max: usize,
}

impl Peer {
    pub(crate) fn unexpected(&self, what: &'static str) -> Error {
        // Something was done, but who knows what: for reads it makes no difference.
        Error::Indeterminate(Arc::new(Reason::UnexpectedAnswer {
            address: self.address.clone(),
            what,
        }))
    }

    pub(crate) fn can(&self, capability: &str) -> bool {
        self.welcome.capabilities.iter().any(|known| known == capability)
    }

    /// Longest value that is inflated, in bytes.
    pub(crate) fn value_len_max(&self) -> usize {
        let announced = usize::try_from(self.welcome.limits.value_max).unwrap_or(usize::MAX);
        announced.min(self.frame_len_max)
    }
}

/// How a connection is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Permits: requests in flight, where large ones count more.
    pub(crate) in_flight_max: u32,
    /// Silence after which the node is asked whether it lives.
    pub(crate) keepalive: Duration,
    /// How long it may take to answer that.
    pub(crate) ping_timeout: Duration,
    /// How often reads from near caches have to be confirmed; `None` without near caches.
    pub(crate) confirm_every: Option<Duration>,
}

/// See the module.
pub(crate) struct Connection {
    pub(crate) peer: Arc<Peer>,
    pub(crate) freshness: Arc<Freshness>,
    tuning: Tuning,
    /// The node asked for no more requests.
    leaving: AtomicBool,
    permits: Semaphore,
    /// Handles of opened caches by the client's number of the cache.
    handles: RwLock<Vec<Handle>>,
    state: Mutex<State>,
}

struct State {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    failed_writes_send_nothing: bool,
    /// Frames; those before `written` are on their way.
    out: Vec<u8>,
    written: usize,
    /// Bytes of the stream before `out[0]`.
    out_offset: u64,
    slots: Slots,
    driver: Option<Waker>,
    /// The driver is going to run: it need not be woken.
    awake: bool,
    /// Tasks were just given answers and may submit again: the driver writes after them.
    corked: bool,
    /// When the driver looks at deadlines next, at the latest.
    timer_at: Option<Instant>,
    /// Set once, when the connection is of no more use.
    failed: Option<Arc<io::Error>>,
}

/// How a cache is referred to on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Handle {
    /// It was not asked for.
    #[default]
    None,
    /// One call asks for it; others say the name meanwhile.
    Opening,
    Open(u32),
    /// The node has no more handles for this connection.
    Refused,
}

/// Bytes of a request that one permit stands for.
const BYTES_PER_PERMIT: usize = 16 * 1024;

/// Capacity that an idle out buffer may keep, in bytes.
const OUT_KEPT_MAX: usize = 256 * 1024;

/// A request that is about to be submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// The time the whole call had, for the error.
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) fn exceeded(&self, effect: Effect, waiting_for: WaitingFor) -> Error {
        Error::new(effect, Reason::DeadlineExceeded { limit: self.limit, waiting_for })
    }
}

impl Connection {
    pub(crate) fn new(
        peer: Arc<Peer>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        failed_writes_send_nothing: bool,
        tuning: Tuning,
        freshness: Arc<Freshness>,
    ) -> Self {
        Self {
            peer,
            freshness,
            tuning,
            leaving: AtomicBool::new(false),
            permits: Semaphore::new(tuning.in_flight_max as usize),
            handles: RwLock::new(Vec::new()),
            state: Mutex::new(State {
                writer,
                failed_writes_send_nothing,
                out: Vec::new(),
                written: 0,
                out_offset: 0,
                slots: Slots::default(),
                driver: None,
                awake: false,
                corked: false,
                timer_at: None,
                failed: None,
            }),
        }
    }

    /// Whether new requests may be sent here.
    pub(crate) fn is_usable(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed)
    }

    /// Requests in flight, about: what balances reads between nodes.
    pub(crate) fn load(&self) -> usize {
        self.tuning.in_flight_max as usize - self.permits.available_permits()
    }

    /// How a cache is referred to on this connection, by the client's number of it.
    pub(crate) fn handle(&self, cache: usize) -> Handle {
        self.handles.read().get(cache).copied().unwrap_or_default()
    }

    /// Puts down how a cache is referred to, if that was `before` until now.
    pub(crate) fn set_handle(&self, cache: usize, before: Handle, handle: Handle) -> bool {
        let mut handles = self.handles.write();
        if handles.len() <= cache {
            handles.resize(cache + 1, Handle::default());
        }
        let same = handles[cache] == before;
        if same {
            handles[cache] = handle;
        }
        same
    }

    /// Which cache the node means by a handle.
    pub(crate) fn cache_of(&self, handle: u32) -> Option<usize> {
        self.handles.read().iter().position(|known| *known == Handle::Open(handle))
    }

    /// Submits a request of about `len` bytes as soon as there is room for it.
    ///
    /// Cancel safe: dropped before it is done, nothing was sent.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        deadline: Deadline,
        len: usize,
        encode: impl FnOnce(&mut Vec<u8>, u32),
    ) -> Result<Ticket, Error> {
        let wanted = 1 + u32::try_from(len / BYTES_PER_PERMIT).unwrap_or(u32::MAX - 1);
        let permits = wanted.min(self.tuning.in_flight_max);
        let permit = match self.permits.try_acquire_many(permits) {
            Ok(permit) => permit,
            Err(_) => {
                let room = self.permits.acquire_many(permits);
                match timeout_at(TokioInstant::from_std(deadline.at), room).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(self.lost(Effect::NotApplied)),
                    Err(_) => return Err(deadline.exceeded(Effect::NotApplied, WaitingFor::Room)),
                }
            }
        };
        // Given back when the slot is.
        permit.forget();

        let mut state = self.state.lock();
        if let Some(error) = &state.failed {
            let error = self.disconnected(error.clone());
            drop(state);
            self.permits.add_permits(permits as usize);
            return Err(Error::not_applied(error));
        }
        let alone = state.slots.waiting() == 0 && state.out.is_empty() && !state.corked;
        let id = state.enqueue(deadline.at, permits, slots::Waiter::Task(None), encode);
        let mut wake = !alone;
        if alone {
            // An error shows again when the driver reads or writes; it is told there.
            wake = !matches!(state.flush(), Ok(true));
        }
        if state.timer_at.is_none_or(|at| deadline.at < at) {
            state.timer_at = Some(deadline.at);
            wake = true;
        }
        let driver = if wake { state.take_wake() } else { None };
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(Ticket { connection: self.clone(), id, deadline, over: false })
    }

    /// Sends a request that nobody answers.
    pub(crate) fn tell(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return;
        }
        encode(&mut state.out);
        let driver = state.take_wake();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Near caches are read again: see to it that they are confirmed.
    pub(crate) fn wake_driver(&self) {
        let driver = self.state.lock().take_wake();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Takes no new requests from now on.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Ends all that is in flight. Of a request of which no byte was sent it is known that it was
    /// not applied.
    pub(crate) fn fail(&self, error: Arc<io::Error>) {
        self.leave();
        self.freshness.end();
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return;
        }
        state.failed = Some(error.clone());
        let sent = state.out_offset + state.written as u64;
        let reason = Arc::new(self.disconnected(error));
        state.slots.fail_all(&mut wakers, |offset| {
            let effect = if offset >= sent { Effect::NotApplied } else { Effect::Indeterminate };
            Error::new(effect, reason.clone())
        });
        state.out = Vec::new();
        drop(state);
        // Those who wait for room are told as well.
        self.permits.close();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn disconnected(&self, error: Arc<io::Error>) -> Reason {
        Reason::Disconnected { address: self.peer.address.clone(), error }
    }

    fn lost(&self, effect: Effect) -> Error {
        let error = self.state.lock().failed.clone();
        let error = error.unwrap_or_else(|| Arc::new(io::ErrorKind::ConnectionAborted.into()));
        Error::new(effect, self.disconnected(error))
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer.address).finish_non_exhaustive()
    }
}

impl State {
    fn enqueue(
        &mut self,
        deadline: Instant,
        permits: u32,
        waiter: slots::Waiter,
        encode: impl FnOnce(&mut Vec<u8>, u32),
    ) -> u32 {
        let offset = self.out_offset + self.out.len() as u64;
        let id = self.slots.insert(waiter, deadline, offset, permits);
        encode(&mut self.out, id);
        id
    }

    /// Writes as much as the transport takes. `true` when that was all.
    ///
    /// The driver is woken when the transport takes more.
    fn flush(&mut self) -> io::Result<bool> {
        let Self { writer, out, written, driver: Some(waker), .. } = self else {
            // The driver has not run yet, and begins with this.
            return Ok(false);
        };
        let mut cx = Context::from_waker(waker);
        while *written < out.len() {
            match Pin::new(&mut *writer).poll_write(&mut cx, &out[*written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(len)) => *written += len,
                Poll::Ready(Err(error)) => {
                    if !self.failed_writes_send_nothing {
                        *written = out.len();
                    }
                    return Err(error);
                }
                Poll::Pending => return Ok(false),
            }
        }
        self.out_offset += self.out.len() as u64;
        self.written = 0;
        self.out.clear();
        self.out.shrink_to(OUT_KEPT_MAX);
        match Pin::new(&mut self.writer).poll_flush(&mut cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    /// Whether the byte at this place in the stream was sent.
    fn is_sent(&self, offset: u64) -> bool {
        offset < self.out_offset + self.written as u64
    }

    fn take_wake(&mut self) -> Option<Waker> {
        if self.awake {
            return None;
        }
        let driver = self.driver.clone()?;
        self.awake = true;
        Some(driver)
    }
}

/// A request that was submitted; a future of its answer.
///
/// Dropped, the answer is thrown away when it comes. What the request does is done all the same.
#[must_use]
pub(crate) struct Ticket {
    connection: Arc<Connection>,
    id: u32,
    deadline: Deadline,
    over: bool,
}

impl Future for Ticket {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.connection.state.lock();
        let taken = state.slots.poll(self.id, cx.waker());
        drop(state);
        let result = match taken {
            slots::Taken::Waiting => return Poll::Pending,
            slots::Taken::Answered(answer, permits) => {
                self.connection.permits.add_permits(permits as usize);
                answer
            }
            slots::Taken::Expired => {
                Err(self.deadline.exceeded(Effect::Indeterminate, WaitingFor::Answer))
            }
        };
        self.over = true;
        Poll::Ready(result)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.over {
            let permits = self.connection.state.lock().slots.abandon(self.id);
            self.connection.permits.add_permits(permits as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails each write.
    struct Broken;

    impl AsyncWrite for Broken {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_a_failed_write_was_given_counts_as_sent_unless_the_transport_knows_better() {
        for exact in [false, true] {
            let peer = Peer {
                address: "n1:7311".into(),
                welcome: Welcome::default(),
                frame_len_max: 1 << 20,
            };
            let now = Instant::now();
            let minute = Duration::from_secs(60);
            let tuning = Tuning {
                in_flight_max: 1,
                keepalive: minute,
                ping_timeout: minute,
                confirm_every: None,
            };
            let freshness = Arc::new(Freshness::new(now));
            let connection =
                Connection::new(Arc::new(peer), Box::new(Broken), exact, tuning, freshness);
            let connection = Arc::new(connection);
            connection.state.lock().driver = Some(Waker::noop().clone());
            let deadline = Deadline { at: now + minute, limit: minute };
            let ticket = connection.submit(deadline, 1, |out, _| out.push(1)).await.unwrap();

            connection.fail(Arc::new(io::ErrorKind::BrokenPipe.into()));

            assert_eq!(ticket.await.unwrap_err().is_not_applied(), exact);
        }
    }
}
