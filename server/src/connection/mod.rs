//! One client's connection, whatever it speaks.
//!
//! ```text
//!   shell    reads, has the session run what came, writes; holds what does not fit in one go
//!   output   replies on their way: bytes, and large values straight from the store
//!   budget   what all clients together may have in flight
//!   Session  one protocol: bytes in, replies out, nothing of sockets
//! ```
//!
//! Sessions are type parameters, not objects: each protocol has its own copy of the shell, so a
//! request costs no indirect call. Scratch memory is one per worker and used by its connections in
//! turn: a connection that waits holds none of it.

pub(crate) mod budget;
mod output;
mod shell;

use std::sync::Arc;
use std::task::{self, Poll};

use crate::{
    connection::budget::Share,
    hottest::Sampler,
    latency::TurnCount,
    listen::Protocol,
    node::{Node, WorkerState},
    op_times::KindCounts,
};

pub(crate) use output::Output;
pub(crate) use shell::serve;

/// What a connection speaks. Called by the shell between reads and writes; must not block.
pub(crate) trait Session {
    /// For the statistics.
    const PROTOCOL: Protocol;

    /// Runs all complete requests in `input` and appends the answers to `memory.replies`, or, with
    /// large values between them, to the output. Returns how many bytes are done with, and what
    /// next.
    fn run(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        memory: &mut WorkerMemory,
    ) -> (usize, Then);

    /// There is no room to receive a request: appends what tells the client so. The connection
    /// then ends.
    fn refuse(&mut self, replies: &mut Vec<u8>);

    /// Ready when everything is there that requests wait for; else has `task` woken then. Called
    /// after [`Then::Wait`].
    fn poll_waiting(&mut self, task: &mut task::Context<'_>) -> Poll<()>;

    /// Whether there is something to say that the client did not ask for; else has `task` woken
    /// when there is.
    fn poll_unasked(&mut self, task: &mut task::Context<'_>) -> Poll<()>;

    /// Says it. Called when `poll_unasked` was ready.
    fn say_unasked(&mut self, context: &mut Context<'_>, memory: &mut WorkerMemory) -> Then;
}

/// What a connection does after its batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The rest of the input is an incomplete request: read on until there are this many bytes.
    Read {
        /// Bytes the request needs at least.
        at_least: usize,
    },
    /// Replies have piled up: write before going on with the rest of the input.
    Write,
    /// Requests at the start of the rest wait for other nodes: nothing is run before
    /// [`Session::poll_waiting`] is ready.
    Wait,
    /// Write the replies, then close.
    Close,
}

/// Everything a session works with.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) worker: &'a WorkerState,
    pub(crate) output: &'a mut Output,
    /// What the connection's replies keep pinned.
    pub(crate) pinned: &'a mut Share,
    /// Replies above this are written before more requests are run.
    pub(crate) replies_max: usize,
    pub(crate) now_ms: u64,
}

/// Memory for one batch at a time: one per worker.
#[derive(Default)]
pub(crate) struct WorkerMemory {
    /// Where replies are gathered. Empty between turns.
    pub(crate) replies: Vec<u8>,
    pub(crate) sampler: Sampler,
    pub(crate) turns: TurnCount,
    /// Operations run in this turn.
    pub(crate) kinds: KindCounts,
    /// Operations that this turn handed to other nodes, and waits for.
    pub(crate) waits: KindCounts,
    pub(crate) memcached: crate::memcached::BatchMemory,
    pub(crate) native: crate::native::BatchMemory,
}
