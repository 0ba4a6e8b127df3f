//! Ends items whose time is over, on a thread of its own.
//!
//! A read never returns an item that has ended, whether or not this thread was there first; what
//! it does is to give the memory back on time. Each step is bounded, so that no shard is locked
//! for long; between steps the workers get their turn.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::node::Node;

/// Items ended in one step, in each shard.
const STEPS: usize = 256;

/// Between steps while there is a backlog.
const PAUSE_MIN: Duration = Duration::from_micros(200);
/// Between steps while an item's end is near: how late it may be removed.
const PAUSE_BUSY: Duration = Duration::from_millis(10);
/// Between steps while nothing is near. An item that comes meanwhile and ends sooner is late by
/// as much.
const PAUSE_IDLE: Duration = Duration::from_millis(50);

/// The running thread.
#[derive(Debug)]
pub(crate) struct Upkeep {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Upkeep {
    /// Starts the thread.
    pub(crate) fn start(node: Arc<Node>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            loop {
                let now_ms = node.clock.now_ms();
                let found = node.caches.maintain(now_ms, STEPS, node.cluster.get().map(|c| &**c));
                node.upkeep.beat(now_ms);
                let pause = pause(found, node.clock.now_ms());
                if !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("kiln-upkeep".to_owned()).spawn(work)?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread after its present step.
    pub(crate) fn stop(self) {
        // Errors say that it ended before, by a panic that the log has.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn pause(found: kiln_engine::Upkeep, now_ms: u64) -> Duration {
    if found.more {
        return PAUSE_MIN;
    }
    match found.next_due_ms {
        Some(due_ms) => {
            Duration::from_millis(due_ms.saturating_sub(now_ms)).clamp(PAUSE_BUSY, PAUSE_IDLE)
        }
        None => PAUSE_IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(more: bool, next_due_ms: Option<u64>) -> kiln_engine::Upkeep {
        kiln_engine::Upkeep { more, next_due_ms }
    }

    #[test]
    fn the_pause_fits_what_is_to_come() {
        assert_eq!(pause(found(true, None), 1_000), PAUSE_MIN);
        assert_eq!(pause(found(false, Some(900)), 1_000), PAUSE_BUSY);
        assert_eq!(pause(found(false, Some(1_003)), 1_000), PAUSE_BUSY);
        assert_eq!(pause(found(false, Some(1_030)), 1_000), Duration::from_millis(30));
        assert_eq!(pause(found(false, Some(99_000)), 1_000), PAUSE_IDLE);
        assert_eq!(pause(found(false, None), 1_000), PAUSE_IDLE);
    }
}
