//! Serves memcached clients, from the cache named `default`.
//!
//! ```text
//!   batch        the requests of one read: parsed, prefetched, executed in order
//!   clustered    the same where other nodes have a say
//!   stats        what `stats` answers
//! ```

mod batch;
mod clustered;
mod stats;

use std::task::{self, Poll};

use kiln_protocol::memcached::{Limits, Parser};

use crate::{
    connection::{Context, Session, Then, WorkerMemory},
    listen::Protocol,
    node::Node,
};

pub(crate) use batch::BatchMemory;

/// The version that clients are told: that of the memcached release whose protocol Kiln speaks.
/// Clients switch features on by it.
const PROTOCOL_VERSION: &str = "1.6.45";

/// Said, and the connection closed, when the budget has no room for a request.
const OUT_OF_MEMORY_READING: &[u8] = b"SERVER_ERROR out of memory reading request\r\n";

/// Told to a client that is one too many.
pub(crate) const TOO_MANY: &[u8] = b"ERROR Too many open connections\r\n";

/// A memcached client.
pub(crate) struct Memcached {
    parser: Parser,
    /// Requests that wait for other nodes.
    pending: Option<clustered::Pending>,
}

impl Memcached {
    pub(crate) fn new(node: &Node) -> Self {
        Self {
            pending: None,
            parser: Parser::new(Limits {
                value_len_max: node.default_cache().store.value_len_max(),
                auth_required: node.auth.is_some(),
                shutdown_enabled: node.config.enable_shutdown.0,
                flush_enabled: !node.config.disable_flush.0,
            }),
        }
    }
}

impl Session for Memcached {
    const PROTOCOL: Protocol = Protocol::Memcached;

    fn run(
        &mut self,
        context: &mut Context<'_>,
        input: &[u8],
        memory: &mut WorkerMemory,
    ) -> (usize, Then) {
        let Some(cluster) = context.node.cluster.get() else {
            return batch::run(&mut self.parser, context, input, memory);
        };
        let inside = cluster.gate().enter(context.worker.index);
        match inside.filter(|_| context.node.default_cache().is_direct_alone()) {
            Some(_inside) => batch::run(&mut self.parser, context, input, memory),
            None => clustered::run(self, cluster, context, input, memory),
        }
    }

    fn poll_waiting(&mut self, task: &mut task::Context<'_>) -> Poll<()> {
        match &self.pending {
            Some(pending) => pending.poll(task),
            None => Poll::Ready(()),
        }
    }

    fn refuse(&mut self, replies: &mut Vec<u8>) {
        replies.extend_from_slice(OUT_OF_MEMORY_READING);
    }

    #[inline]
    fn poll_unasked(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn say_unasked(&mut self, _: &mut Context<'_>, _: &mut WorkerMemory) -> Then {
        Then::Write
    }
}
