//! Holds all clients between two requests, so that what they did can be looked at.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::TrialError;

/// Clients pass one by one before each request; closed at first.
#[derive(Debug)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
    over: AtomicBool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            closed: Mutex::new(true),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// For a client: waits while it is held. False when there is nothing more to do.
    pub(crate) fn pass(&self) -> bool {
        let mut closed = self.closed.lock();
        if *closed && !self.is_over() {
            self.waiting.fetch_add(1, Relaxed);
            while *closed && !self.is_over() {
                self.changed.wait(&mut closed);
            }
            self.waiting.fetch_sub(1, Relaxed);
        }
        !self.is_over()
    }

    pub(crate) fn open(&self) {
        *self.closed.lock() = false;
        self.changed.notify_all();
    }

    /// Returns when all clients are held, none with a request under way.
    pub(crate) fn hold(&self, clients: usize) -> Result<(), TrialError> {
        *self.closed.lock() = true;
        let deadline = Instant::now() + HOLD_MAX;
        while self.waiting.load(Relaxed) < clients {
            if Instant::now() >= deadline {
                return Err(TrialError::ClientsHang { seconds: HOLD_MAX.as_secs() });
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Sends all clients home.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
        self.open();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}

/// Longest wait for clients to finish what they are at.
const HOLD_MAX: Duration = Duration::from_secs(90);
