//! The bounds and waits of the links between nodes.

use std::time::Duration;

use kiln_protocol::peer::{BODY_LEN_MAX, Packer};

/// Bounds and waits of the links. The defaults fit a data centre as well as one machine.
#[derive(Clone, Debug)]
pub(crate) struct LinkSettings {
    /// Bytes of core messages that wait for one peer. While so many wait, further messages are
    /// dropped: the core sends again what matters, and a queue beyond this is out of date anyway.
    pub(crate) message_bytes_max: usize,
    /// Bytes of calls that wait for one peer, or of answers. At least one of the largest.
    pub(crate) call_bytes_max: usize,
    /// Calls to one peer without an answer yet, and calls of one peer that are worked on.
    pub(crate) calls_max: usize,
    /// Bodies from this length on are compressed where that saves; `usize::MAX`: never.
    pub(crate) compress_from: usize,
    /// A peer that takes no byte for so long, while bytes wait, is cut off.
    pub(crate) stall: Duration,
    /// How long name lookup, connecting and the handshake may take, each.
    pub(crate) step_timeout: Duration,
    /// The wait after a first failed attempt. Doubles up to `backoff_max`.
    pub(crate) backoff_min: Duration,
    /// The longest wait between two attempts.
    pub(crate) backoff_max: Duration,
    /// How often the round trip is measured and a stall looked for.
    pub(crate) ping_every: Duration,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            message_bytes_max: 64 << 20,
            call_bytes_max: BODY_LEN_MAX,
            calls_max: 1_024,
            compress_from: Packer::FROM_DEFAULT,
            stall: Duration::from_secs(5),
            step_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            ping_every: Duration::from_secs(1),
        }
    }
}
