//! The one signal that ends a node, and whether the node may be sent requests.
//!
//! ```text
//!   starting --ready()--> ready --leave()--> leaving --begin()--> draining
//!
//!   begin() leads to draining from everywhere
//! ```
//!
//! There is no way back: a node that drains will exit.

use tokio::sync::watch;

/// How far a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Listeners are being opened.
    Starting,
    /// Requests are served.
    Ready,
    /// Requests are served while other nodes take over; nothing new should be sent here.
    Leaving,
    /// Nothing new is accepted; what is in flight is finished.
    Draining,
}

/// The phase of this node, for all threads to read and wait for.
#[derive(Debug)]
pub(crate) struct Shutdown {
    phase: watch::Sender<Phase>,
}

impl Shutdown {
    /// A node that is starting.
    pub(crate) fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Starting) }
    }

    /// The phase now.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The node can serve, unless it was told to stop meanwhile.
    pub(crate) fn ready(&self) {
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = Phase::Ready;
            }
            starting
        });
    }

    /// The node is to hand over and then stop.
    pub(crate) fn leave(&self, reason: &str) {
        let left = self.phase.send_if_modified(|phase| {
            let ready = *phase == Phase::Ready;
            if ready {
                *phase = Phase::Leaving;
            }
            ready
        });
        if left {
            tracing::info!(reason, "leaving");
        }
    }

    /// Begins to stop; `reason` goes to the log, once.
    pub(crate) fn begin(&self, reason: &str) {
        let before = self.phase.send_replace(Phase::Draining);
        if before != Phase::Draining {
            tracing::info!(reason, "stopping");
        }
    }

    /// Returns when the node is to stop; at once when it already is.
    pub(crate) async fn begun(&self) {
        // The sender lives in `self`, so the channel cannot close before.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Draining).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_drains_never_becomes_ready_again() {
        let shutdown = Shutdown::new();
        shutdown.ready();
        assert_eq!(shutdown.phase(), Phase::Ready);
        shutdown.begin("test");
        shutdown.ready();
        assert_eq!(shutdown.phase(), Phase::Draining);
    }

    #[tokio::test]
    async fn waiting_ends_when_the_stop_came_before() {
        let shutdown = Shutdown::new();
        shutdown.begin("test");
        shutdown.begun().await;
    }
}
