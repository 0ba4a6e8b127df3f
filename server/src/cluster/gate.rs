//! Whether workers may use the stores by themselves.
//!
//! A node that is alone has nobody to agree with: its workers read and write the stores directly,
//! and requests cost what they cost without a cluster. From the moment that another node is in the
//! table, every write must pass the replication core. The change happens once, and no write may slip
//! through beside it: the gate is closed, and whoever closes it waits until the workers that had
//! passed are out again.
//!
//! Cost: one exchange and one store for each batch of requests, on a line of the worker's own.
//! Others, who come seldom, share a counter.

use std::{
    hint,
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Acquire, Release, SeqCst},
    },
    thread,
};

/// Looks before the waiting thread gives its time to others.
const SPINS: u32 = 64;

/// One for each worker, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(AtomicBool);

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    closed: AtomicBool,
    lanes: Box<[Lane]>,
    guests: AtomicUsize,
}

/// A worker that is at the stores. It leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a AtomicBool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

/// Someone else who is at the stores.
#[derive(Debug)]
pub(crate) struct Guest<'a>(&'a AtomicUsize);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Release);
    }
}

impl Gate {
    /// An open gate for so many workers.
    pub(crate) fn new(lanes: usize) -> Self {
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Self { closed: AtomicBool::new(false), lanes, guests: AtomicUsize::new(0) }
    }

    /// Lets a worker in, unless the gate is closed. Not to be called again before it is out.
    #[inline]
    pub(crate) fn enter(&self, lane: usize) -> Option<Inside<'_>> {
        let inside = &self.lanes.get(lane)?.0;
        // Said before the look at the gate, in one order for all: whoever closes it after this look
        // finds the worker inside.
        inside.swap(true, SeqCst);
        let inside = Inside(inside);
        (!self.closed.load(SeqCst)).then_some(inside)
    }

    /// The same for whoever has no lane.
    pub(crate) fn enter_as_guest(&self) -> Option<Guest<'_>> {
        self.guests.fetch_add(1, SeqCst);
        let guest = Guest(&self.guests);
        (!self.closed.load(SeqCst)).then_some(guest)
    }

    /// Whether it is closed.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// Closes it for good and waits until everyone is out: for as long as a batch takes.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        for lane in &self.lanes {
            wait_while(|| lane.0.load(SeqCst));
        }
        wait_while(|| self.guests.load(SeqCst) > 0);
    }
}

fn wait_while(busy: impl Fn() -> bool) {
    let mut spins = 0;
    while busy() {
        spins += 1;
        if spins < SPINS { hint::spin_loop() } else { thread::yield_now() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use super::*;

    #[test]
    fn nobody_is_inside_once_the_gate_is_closed() {
        let gate = Arc::new(Gate::new(3));
        let writes = Arc::new(AtomicU64::new(0));
        let workers: Vec<_> = (0..3)
            .map(|lane| {
                let (gate, writes) = (Arc::clone(&gate), Arc::clone(&writes));
                thread::spawn(move || {
                    while let Some(_inside) = gate.enter(lane) {
                        writes.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        while writes.load(Relaxed) < 1_000 {
            thread::yield_now();
        }
        gate.close();
        let seen = writes.load(Relaxed);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(writes.load(Relaxed), seen);
        assert!(gate.is_closed() && gate.enter(1).is_none() && gate.enter_as_guest().is_none());
    }
}
