//! Serves Kiln's own clients.
//!
//! ```text
//!   session   one client: hello, what it opened, what it is told unasked
//!   batch     the requests of one read: parsed, prefetched, executed in order
//!   item      one operation on one item, with all that can be wanted of it
//!   clustered the same where other nodes have a say
//!   replace   writes that hand back what they replaced
//!   scan      a step through a cache
//!   admin     caches, figures
//!   streams   readings, and what came of them
//!   cluster_view  the cluster: its table, how it is, changes of it, digests of copies
//! ```

mod admin;
mod batch;
pub(crate) mod cluster_view;
mod clustered;
mod item;
mod replace;
pub(crate) mod scan;
mod session;
mod streams;

use kiln_protocol::native::{ErrorCode, Failure, KEY_LEN_MAX, admin::Limits, respond};

use crate::node::Node;

pub(crate) use batch::BatchMemory;
pub(crate) use cluster_view::topology;
pub(crate) use session::Native;

/// Operations in one batch, at most.
const BATCH_OPS_MAX: usize = 1_024;

/// Frames are at least so long, whatever values may be: batches and pages live in them.
const FRAME_MAX_LEAST: usize = 256 * 1024;

/// Caches that one connection may have open, `default` included.
const HANDLES_MAX: usize = 64;

/// Values from here on are sent compressed to clients that agreed …
const COMPRESS_MIN: usize = 4 * 1024;
/// … up to here: compressing longer ones would hold up the worker's other clients.
const COMPRESS_MAX: usize = 512 * 1024;

/// Told, with the error `busy`, as the time after which to try again.
const RETRY_AFTER_MS: u64 = 20;

/// What a node accepts from its clients.
fn limits(node: &Node) -> Limits {
    let value_max = node.value_len_max();
    Limits {
        frame_max: frame_len_max(node) as u64,
        key_max: KEY_LEN_MAX as u64,
        value_max: value_max as u64,
        batch_max: BATCH_OPS_MAX as u64,
        scan_max: scan::ITEMS_MAX as u64,
        handles_max: HANDLES_MAX as u64,
        compress_min: COMPRESS_MIN as u64,
    }
}

/// The longest frame, either way.
fn frame_len_max(node: &Node) -> usize {
    use kiln_protocol::native::FRAME_OVERHEAD_MAX;
    (node.value_len_max() + FRAME_OVERHEAD_MAX).max(FRAME_MAX_LEAST)
}

/// The longest answer to a batch or a scan: a frame, but not more than the node can hold for some
/// clients that do not read.
fn gathered_len_max(node: &Node) -> usize {
    frame_len_max(node).min(node.budget.gathered_len_max().max(FRAME_MAX_LEAST))
}

/// Told to a client that is one too many.
pub(crate) fn too_many() -> Vec<u8> {
    let mut out = Vec::new();
    respond::failure_of_connection(&mut out, &busy("this node has its most connections"));
    out
}

/// Try again soon; nothing was done.
const fn busy(text: &str) -> Failure<'_> {
    Failure { retry_after_ms: Some(RETRY_AFTER_MS), ..Failure::refused(ErrorCode::Busy, text) }
}
