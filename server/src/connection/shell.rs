//! One client: reads, has its session run what came, writes.
//!
//! A turn has no await point: it reads into memory that the worker's connections share, runs all
//! complete requests, and writes the replies, with one system call each. Only what does not fit,
//! the start of a request or replies that the socket does not take, is kept with the connection,
//! and drawn from the node's budget. An idle connection holds no buffer.
//!
//! What bounds what: requests kept are at most one value and a line; replies at most
//! `output_buffer_max` and one value more, then the client is not read from until it has taken
//! some, and is cut if it takes nothing for [`STALL_MAX`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use memmap2::MmapMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use crate::connection::budget::Share;
use crate::connection::{Context, Output, Session, Then, WorkerMemory};
use crate::connections::Peer;
use crate::latency::STRIDE;
use crate::node::{Node, WorkerState};
use crate::op_times::KindCounts;
use crate::stream::Stream;

/// Read at once, of a client that sends small requests.
const READ_LEN: usize = 64 * 1024;

/// Requests longer than this are received into memory of their own, set aside for them.
const LONG_MIN: usize = 16 * 1024;

/// A client that takes nothing of its replies, or sends nothing of a request it has begun, for
/// this long is cut.
const STALL_MAX: Duration = Duration::from_secs(60);

/// The same for a long request, whose memory others may be waiting for.
const LONG_STALL_MAX: Duration = Duration::from_secs(10);

/// A long request that comes more slowly than this, in bytes a second, is cut as well.
const LONG_RATE_MIN: usize = 16 * 1024;

/// The reply buffer of a worker does not stay larger than this.
const REPLIES_KEPT_MAX: usize = 1 << 20;

/// What the connections of a worker use in turn.
struct Shared {
    input: Box<[u8]>,
    memory: WorkerMemory,
}

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::new(Shared {
        input: vec![0; READ_LEN].into(),
        memory: WorkerMemory::default(),
    });
}

/// Serves one connection to its end.
pub(crate) async fn serve<S: Session>(
    stream: Stream,
    session: S,
    peer: Arc<Peer>,
    node: Arc<Node>,
    worker: usize,
) {
    let connection = Connection {
        stream,
        session,
        worker: &node.workers[worker],
        peer: &peer,
        held: Vec::new(),
        wanted: 0,
        held_share: node.budget.buffers(),
        output: Output::default(),
        output_share: node.budget.buffers(),
        pinned_share: node.budget.pinned(),
        waiting: false,
        waited_for: KindCounts::default(),
        closing: false,
        node: &node,
    };
    if let Err(error) = connection.run().await {
        tracing::debug!(connection = peer.id, %error, "connection lost");
    }
}

struct Connection<'a, S> {
    node: &'a Arc<Node>,
    worker: &'a WorkerState,
    peer: &'a Peer,
    stream: Stream,
    session: S,
    /// The start of a request whose rest has not come, or requests that wait for replies to leave.
    held: Vec<u8>,
    /// Bytes that `held` must have before parsing can get further.
    wanted: usize,
    held_share: Share,
    output: Output,
    /// For the bytes of `output` …
    output_share: Share,
    /// … and for the large values in it.
    pinned_share: Share,
    /// What is held waits for other nodes.
    waiting: bool,
    /// Operations that other nodes are waited for with.
    waited_for: KindCounts,
    /// Nothing is read any more; the connection ends when its replies are out.
    closing: bool,
}

/// What came of a read.
enum Turn {
    End,
    /// Bytes came.
    More,
    /// Nothing came; something was said unasked.
    Spoke,
}

impl<S: Session> Connection<'_, S> {
    async fn run(mut self) -> io::Result<()> {
        // When a client that has begun a request is cut, unless more of it comes.
        let mut stalls_at: Option<Instant> = None;
        loop {
            if !self.output.is_empty() {
                self.drain().await?;
            }
            if self.closing {
                return Ok(());
            }
            if self.waiting {
                self.wait().await;
            }
            if self.held.len() >= self.wanted.max(1) {
                // Requests that waited for the replies before them, or for other nodes.
                self.run_held()?;
                continue;
            }
            if self.held.is_empty() {
                self.peer.rest();
            } else if self.wanted > LONG_MIN && self.wanted > self.held.len() + 1 {
                // One byte more is what the parser wants of a line, which may end anywhere.
                if !self.receive_long().await? {
                    return Ok(());
                }
                continue;
            }
            let begun = !self.held.is_empty();
            let turn = poll_fn(|task| self.poll_turn(task));
            let turn = if begun {
                let until = *stalls_at.get_or_insert_with(|| Instant::now() + STALL_MAX);
                tokio::time::timeout_at(until, turn).await?
            } else {
                turn.await
            };
            match turn? {
                Turn::More => stalls_at = None,
                // However much there is to tell, it does not prolong the wait.
                Turn::Spoke if stalls_at.is_some_and(|until| Instant::now() >= until) => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Turn::Spoke => {}
                Turn::End => return Ok(()),
            }
        }
    }

    /// Waits for other nodes. They answer, or are answered for, within a bounded time.
    async fn wait(&mut self) {
        let begun = Instant::now();
        let session = &mut self.session;
        poll_fn(|task| session.poll_waiting(task)).await;
        self.waiting = false;
        self.peer.busy(self.node.clock.now_ms());
        let took = begun.elapsed();
        self.worker.latencies.count(S::PROTOCOL, took);
        let kinds = std::mem::take(&mut self.waited_for);
        self.worker.op_times[S::PROTOCOL as usize].count(&kinds, took, 1);
    }

    /// Writes until all replies are out.
    async fn drain(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.output.write(&self.stream) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.worker.counters.bytes_written.add(written as u64);
                    self.peer.busy(self.node.clock.now_ms());
                    self.output_share.resize(self.output.bytes_len());
                    self.pinned_share.resize(self.output.large_len());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::timeout(STALL_MAX, self.stream.writable())
                        .await
                        .map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says what is to be said unasked, then reads once and runs what that completes. Polls through
    /// [`AsyncRead`]: after a read that does not fill the buffer it knows the socket to be empty,
    /// without a second system call.
    fn poll_turn(&mut self, task: &mut TaskContext<'_>) -> Poll<io::Result<Turn>> {
        let speaks = self.session.poll_unasked(task).is_ready();
        if speaks {
            SHARED.with_borrow_mut(|shared| self.speak(&mut shared.memory))?;
            if self.closing || !self.output.is_empty() {
                return Poll::Ready(Ok(Turn::Spoke));
            }
            // However much there is to tell, requests get their turn.
        }
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(&mut shared.input);
            match poll_read(&mut self.stream, task, &mut buffer) {
                Poll::Pending if speaks => return Poll::Ready(Ok(Turn::Spoke)),
                read => ready!(read)?,
            }
            let len = buffer.filled().len();
            if len == 0 {
                return Poll::Ready(Ok(Turn::End));
            }
            self.worker.counters.bytes_read.add(len as u64);
            let now_ms = self.node.clock.now_ms();
            self.peer.busy(now_ms);
            let mut left = &shared.input[..len];
            if self.held.is_empty() {
                let done = self.run_batches(left, now_ms, &mut shared.memory)?;
                left = &left[done..];
            }
            if !left.is_empty() && !self.closing {
                if self.held_share.resize(self.held.len() + left.len()) {
                    self.held.extend_from_slice(left);
                } else {
                    self.refuse(&mut shared.memory);
                }
            }
            // What is held now may be complete: `run` looks.
            Poll::Ready(Ok(Turn::More))
        })
    }

    /// Receives the rest of a long request, once there is memory for it, and runs it. False when
    /// the client closed meanwhile.
    ///
    /// The memory is a mapping of its own: resident as far as bytes have come, whatever length the
    /// client claims, and gone when the request is done. The allocator would keep it.
    async fn receive_long(&mut self) -> io::Result<bool> {
        let Some(_admission) = self.node.budget.admit(self.wanted).await else {
            SHARED.with_borrow_mut(|shared| self.refuse(&mut shared.memory));
            return Ok(true);
        };
        let mut request = MmapMut::map_anon(self.wanted)?;
        let mut len = self.held.len();
        request[..len].copy_from_slice(&self.held);
        self.held = Vec::new();
        self.held_share.resize(0);
        let slowest = LONG_STALL_MAX + Duration::from_secs((self.wanted / LONG_RATE_MIN) as u64);
        let deadline = Instant::now() + slowest;
        while len < self.wanted {
            let stream = &mut self.stream;
            let read = poll_fn(|task| {
                let mut buffer = ReadBuf::new(&mut request[len..]);
                ready!(poll_read(stream, task, &mut buffer))?;
                Poll::Ready(io::Result::Ok(buffer.filled().len()))
            });
            let until = deadline.min(Instant::now() + LONG_STALL_MAX);
            let read = tokio::time::timeout_at(until, read).await??;
            if read == 0 {
                return Ok(false);
            }
            len += read;
            self.worker.counters.bytes_read.add(read as u64);
            self.peer.busy(self.node.clock.now_ms());
        }
        self.run_kept(&request)?;
        Ok(true)
    }

    /// Runs the requests held from earlier turns.
    fn run_held(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        self.run_kept(&held)
    }

    /// Runs requests that were not read in this turn, and holds what is left of them.
    fn run_kept(&mut self, input: &[u8]) -> io::Result<()> {
        let now_ms = self.node.clock.now_ms();
        let done =
            SHARED.with_borrow_mut(|shared| self.run_batches(input, now_ms, &mut shared.memory))?;
        let left = if self.closing { &[] } else { &input[done..] };
        if self.held_share.resize(left.len()) {
            self.held = left.to_vec();
        } else {
            SHARED.with_borrow_mut(|shared| self.refuse(&mut shared.memory));
        }
        Ok(())
    }

    /// Runs all complete requests in `input` and writes the replies as far as the socket takes
    /// them. Returns how much of the input is done with.
    fn run_batches(
        &mut self,
        input: &[u8],
        now_ms: u64,
        memory: &mut WorkerMemory,
    ) -> io::Result<usize> {
        let begun = memory.turns.is_due().then(std::time::Instant::now);
        let (session, mut context) = self.parts(now_ms);
        let (done, then) = session.run(&mut context, input, memory);
        self.settle(then);
        let sent = self.send(&mut memory.replies);
        let kinds = std::mem::take(&mut memory.kinds);
        if let Some(begun) = begun {
            let took = begun.elapsed();
            self.worker.latencies.count(S::PROTOCOL, took);
            self.worker.op_times[S::PROTOCOL as usize].count(&kinds, took, STRIDE.into());
        }
        if self.waiting {
            self.waited_for = std::mem::take(&mut memory.waits);
        }
        sent?;
        Ok(done)
    }

    /// Says what the client did not ask for.
    fn speak(&mut self, memory: &mut WorkerMemory) -> io::Result<()> {
        self.peer.speak();
        let (session, mut context) = self.parts(self.node.clock.now_ms());
        // It neither completes what is held nor asks for more of it.
        if session.say_unasked(&mut context, memory) == Then::Close {
            self.closing = true;
        }
        self.send(&mut memory.replies)
    }

    #[inline]
    fn parts(&mut self, now_ms: u64) -> (&mut S, Context<'_>) {
        let context = Context {
            node: self.node,
            worker: self.worker,
            output: &mut self.output,
            pinned: &mut self.pinned_share,
            replies_max: self.node.config.output_buffer_max.0 as usize,
            now_ms,
        };
        (&mut self.session, context)
    }

    #[inline]
    fn settle(&mut self, then: Then) {
        // Shrinking cannot fail.
        self.pinned_share.resize(self.output.large_len());
        match then {
            Then::Read { at_least } => self.wanted = at_least,
            Then::Write => self.wanted = 0,
            Then::Wait => {
                self.wanted = 0;
                self.waiting = true;
            }
            Then::Close => self.closing = true,
        }
    }

    /// Writes the replies gathered, behind those still waiting; keeps what the socket does not take.
    fn send(&mut self, replies: &mut Vec<u8>) -> io::Result<()> {
        if self.output.is_empty() {
            let mut sent = 0;
            while sent < replies.len() {
                match self.stream.try_write(&replies[sent..]) {
                    Ok(written) => {
                        sent += written;
                        self.worker.counters.bytes_written.add(written as u64);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        replies.clear();
                        return Err(error);
                    }
                }
            }
            replies.drain(..sent);
        }
        self.output.push_bytes(replies);
        if replies.capacity() > REPLIES_KEPT_MAX {
            *replies = Vec::new();
        }
        if !self.output_share.resize(self.output.bytes_len()) {
            // Replies cannot be left out of their order: the client has to come again.
            replies.clear();
            return Err(io::Error::other("no room for the replies of a client that does not read"));
        }
        Ok(())
    }

    /// There is no room for what this client sends: says so and ends the connection.
    fn refuse(&mut self, memory: &mut WorkerMemory) {
        self.held = Vec::new();
        self.held_share.resize(0);
        self.session.refuse(&mut memory.replies);
        self.closing = true;
        if let Err(error) = self.send(&mut memory.replies) {
            tracing::debug!(connection = self.peer.id, %error, "refusal not delivered");
        }
    }
}

fn poll_read(
    stream: &mut Stream,
    task: &mut TaskContext<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    match stream {
        Stream::Tcp(stream) => Pin::new(stream).poll_read(task, buffer),
        Stream::Unix(stream) => Pin::new(stream).poll_read(task, buffer),
    }
}
