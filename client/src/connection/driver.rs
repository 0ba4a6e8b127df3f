//! The task behind a connection: reads answers, writes what the calls left to it, and watches the
//! time.
//!
//! It ends with the connection, and by then every request has been told. If the task itself is
//! dropped, with its runtime for example, the requests are told all the same.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use kiln_protocol::native::{FrameError, Op, Push, Response, encode};
use tokio::{
    io::AsyncRead,
    time::{Instant as TokioInstant, Sleep, sleep_until},
};

use super::{
    Connection,
    inbox::Inbox,
    slots::{Delivered, Waiter},
};
use crate::answer::Answer;

/// Takes what a node says without being asked.
///
/// Called by the driver between two answers, in the order of the stream; must not block.
pub(crate) trait Pushes: Send + Sync {
    fn on_push(&self, connection: &Connection, push: Push<'_>);
}

/// Most pings under way: while so many are not answered, near caches are not confirmed.
const PINGS_MAX: usize = 64;

/// How long past its deadline a request may stay unanswered before the node is given up.
const STALL_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Driver {
    connection: Arc<Connection>,
    reader: Box<dyn AsyncRead + Send + Unpin>,
    inbox: Inbox,
    pushes: Arc<dyn Pushes>,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to.
    timer_at: Instant,
    /// When something was last read, as far as it was looked at the clock.
    read_at: Instant,
    /// Something was read since.
    heard: bool,
    /// Where in the stream of bytes the last ping begins.
    ping_offset: u64,
    /// Since when the node has all pings, owes an answer, and says nothing at all.
    owed_since: Option<Instant>,
    /// When near caches were last confirmed.
    confirmed_at: Option<Instant>,
    /// Near caches were read before that, so it is looked again whether they still are.
    confirming: bool,
    /// The last turn left the writing to the next.
    corked: bool,
    /// Used again and again: answers of one read, and the calls that they wake.
    answers: Vec<(u32, Answer)>,
    wakers: Vec<Waker>,
}

impl Driver {
    pub(crate) fn new(
        connection: Arc<Connection>,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        pushes: Arc<dyn Pushes>,
    ) -> Self {
        let now = Instant::now();
        let timer_at = now + connection.tuning.keepalive;
        Self {
            inbox: Inbox::new(connection.peer.frame_len_max),
            connection,
            reader,
            pushes,
            timer: Box::pin(sleep_until(TokioInstant::from_std(timer_at))),
            timer_at,
            read_at: now,
            heard: false,
            ping_offset: 0,
            owed_since: None,
            confirmed_at: None,
            confirming: false,
            corked: false,
            answers: Vec::new(),
            wakers: Vec::new(),
        }
    }

    /// Runs until the connection ends; returns why.
    pub(crate) async fn run(mut self) -> Arc<io::Error> {
        let error = poll_fn(|cx| self.poll(cx)).await;
        let error = Arc::new(error);
        self.connection.fail(error.clone());
        error
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.progress(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    fn progress(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut woken = 0;
        while self.read(cx)?.is_ready() {
            woken += self.deliver()?;
        }
        // Several tasks were given answers and are about to ask again: write after their turn. But
        // never put it off twice, or those that have asked already wait for ever.
        self.corked = woken > 1 && !self.corked;
        self.write_and_watch(cx)
    }

    /// One read.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let mut room = self.inbox.room();
        match Pin::new(&mut self.reader).poll_read(cx, &mut room) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => match room.filled().len() {
                0 => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the node closed the connection",
                )),
                len => {
                    self.inbox.advance(len);
                    Ok(Poll::Ready(()))
                }
            },
        }
    }

    /// Hands out all whole answers of the buffer. Returns how many calls were woken.
    fn deliver(&mut self) -> io::Result<usize> {
        let Self { inbox, answers, pushes, connection, .. } = self;
        // An error frame that belongs to no request: the node's last words.
        let mut last_words = None;
        let read: Result<(), Broken> = inbox.drain(|body| {
            let (id, response) =
                Response::decode(body).map_err(|malformed| Broken(malformed.what.to_owned()))?;
            match response {
                // Before the answers behind it are handed out; those before it may be handed out
                // later, as whoever uses them compares with what was pushed meanwhile.
                Response::Push(push) => pushes.on_push(connection, push),
                Response::Error(failure) if id == 0 => {
                    last_words = Some(format!("{} ({})", failure.text, failure.code.name()));
                }
                response => answers.push((id, Answer::copied(&response, body, &connection.peer))),
            }
            Ok(())
        });

        self.heard = true;
        let mut freed = 0;
        let mut unknown = None;
        let mut state = self.connection.state.lock();
        for (id, answer) in self.answers.drain(..) {
            match state.slots.deliver(id, answer, &mut self.wakers) {
                Delivered::Call => {}
                Delivered::Nobody(permits) => freed += permits as usize,
                Delivered::Ping(sent) => self.connection.freshness.confirm(sent),
                Delivered::Unknown => unknown = Some(id),
            }
        }
        let woken = self.wakers.len();
        // Until this task's own turn comes: see `progress`.
        state.corked |= woken > 1;
        drop(state);
        if freed > 0 {
            self.connection.permits.add_permits(freed);
        }
        self.wakers.drain(..).for_each(Waker::wake);

        if let Some(words) = last_words {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, words));
        }
        if let Some(id) = unknown {
            return Err(invalid(format!("an answer to request {id}, which does not wait for one")));
        }
        read.map_err(|Broken(what)| invalid(what))?;
        Ok(woken)
    }

    /// Writes what is left to this task, and looks at deadlines, pings and keepalive.
    fn write_and_watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let tuning = self.connection.tuning;
        let mut now = Instant::now();
        if std::mem::take(&mut self.heard) {
            self.read_at = now;
            self.owed_since = None;
        }
        let mut first = true;
        loop {
            let mut state = self.connection.state.lock();
            if std::mem::take(&mut first) {
                if state.failed.is_some() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                match &state.driver {
                    Some(waker) if waker.will_wake(cx.waker()) => {}
                    _ => state.driver = Some(cx.waker().clone()),
                }
                state.corked = self.corked;
                state.awake = self.corked;
                if self.corked {
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
                state.flush()?;
            }

            // The time of a ping begins when it is sent: before that, it is the line that is slow.
            let pings = state.slots.pings();
            if pings > 0 && self.owed_since.is_none() && state.is_sent(self.ping_offset) {
                self.owed_since = Some(now);
            }
            let silent_until = self.owed_since.map(|since| since + tuning.ping_timeout);
            if silent_until.is_some_and(|at| at <= now) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, SILENT));
            }

            let confirm_at = match tuning.confirm_every {
                Some(_) if pings >= PINGS_MAX => None,
                Some(every) if self.confirming || self.connection.freshness.is_wanted() => {
                    Some(self.confirmed_at.map_or(now, |at| at + every))
                }
                _ => None,
            };
            let due = confirm_at.is_some_and(|at| at <= now);
            let confirm = due && self.connection.freshness.take_wanted();
            if due && !confirm {
                self.confirming = false;
                continue;
            }
            let silent_at = self.read_at + tuning.keepalive;
            if confirm || (silent_at <= now && pings == 0) {
                if confirm {
                    self.confirming = true;
                    self.confirmed_at = Some(now);
                }
                let deadline = now + tuning.ping_timeout;
                self.ping_offset = state.out_offset + state.out.len() as u64;
                state.enqueue(deadline, 0, Waiter::Ping(now), |out, id| {
                    encode::bare(out, id, Op::Ping);
                });
                state.timer_at = Some(state.timer_at.map_or(deadline, |at| at.min(deadline)));
                state.flush()?;
                if silent_at <= now {
                    self.read_at = now;
                }
                continue;
            }

            if state.timer_at.is_some_and(|at| at <= now) {
                let (next, oldest) = state.slots.expire(now, &mut self.wakers);
                let stall_at = oldest.map(|oldest| oldest + STALL_MAX);
                state.timer_at = next.into_iter().chain(stall_at).min();
                let stalled = stall_at.is_some_and(|at| at <= now);
                drop(state);
                self.wakers.drain(..).for_each(Waker::wake);
                if stalled {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, SILENT));
                }
                continue;
            }

            let silent_at = silent_at.max(now + MIN_SLEEP);
            let wake_at = [state.timer_at, confirm_at, silent_until].into_iter().flatten();
            let wake_at = wake_at.fold(silent_at, Instant::min);
            drop(state);
            if wake_at < self.timer_at || self.timer.is_elapsed() {
                self.timer.as_mut().reset(TokioInstant::from_std(wake_at));
                self.timer_at = wake_at;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            now = Instant::now();
        }
    }
}

const SILENT: &str = "the node does not answer any more";

/// Least time until the timer looks again whether the node is silent.
const MIN_SLEEP: Duration = Duration::from_millis(10);

impl Drop for Driver {
    fn drop(&mut self) {
        // Nothing to do after a proper end.
        self.connection.fail(Arc::new(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the client's runtime has ended",
        )));
    }
}

/// Why the stream cannot be followed.
struct Broken(String);

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Self(error.to_string())
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
