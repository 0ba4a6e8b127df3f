//! What a program can learn of its calls: a hook, and a ready-made set of counters.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::Error;

/// Kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A read of one item.
    Get,
    /// A write of one item.
    Store,
    /// A delete of one item.
    Delete,
    /// An increment or decrement.
    Arithmetic,
    /// A new end for one item.
    Touch,
    /// Many items at once; counted once for each node.
    Batch,
    /// A step of a scan.
    Scan,
    /// Administration and figures.
    Administration,
}

/// Is told of calls, for whatever metrics library the program uses.
///
/// Called on the task that makes the call, for each call: it must be quick and never block.
pub trait Metrics: Send + Sync + 'static {
    /// A call is over, with all its attempts.
    fn on_call(&self, operation: Operation, took: Duration, error: Option<&Error>);

    /// An attempt failed and the call is going to be tried again.
    fn on_retry(&self, operation: Operation, error: &Error) {
        let _ = (operation, error);
    }

    /// A read of a cache that has a near cache: whether the value was near.
    fn on_near_read(&self, hit: bool) {
        let _ = hit;
    }

    /// A get-or-compute found nothing. `computes` is false for those who wait for another.
    fn on_compute(&self, computes: bool) {
        let _ = computes;
    }
}

/// Counters since the client was made.
///
/// ```
/// use std::sync::Arc;
/// use kiln_client::{Client, Counters};
///
/// let counters = Arc::new(Counters::default());
/// let builder = Client::builder().metrics(counters.clone());
/// assert_eq!(counters.calls(), 0);
/// # drop(builder);
/// ```
#[derive(Debug, Default)]
pub struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
    near_hits: AtomicU64,
    near_misses: AtomicU64,
    computations: AtomicU64,
    shared_computations: AtomicU64,
}

impl Counters {
    /// Calls that are over.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Those of them that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Attempts after the first.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Reads served from a near cache.
    pub fn near_hits(&self) -> u64 {
        self.near_hits.load(Ordering::Relaxed)
    }

    /// Reads that a near cache could not serve.
    pub fn near_misses(&self) -> u64 {
        self.near_misses.load(Ordering::Relaxed)
    }

    /// Values computed by get-or-compute.
    pub fn computations(&self) -> u64 {
        self.computations.load(Ordering::Relaxed)
    }

    /// Calls of get-or-compute that waited for the value of another.
    pub fn shared_computations(&self) -> u64 {
        self.shared_computations.load(Ordering::Relaxed)
    }
}

impl Metrics for Counters {
    fn on_call(&self, _: Operation, _: Duration, error: Option<&Error>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if error.is_some() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn on_retry(&self, _: Operation, _: &Error) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn on_near_read(&self, hit: bool) {
        let counter = if hit { &self.near_hits } else { &self.near_misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn on_compute(&self, computes: bool) {
        let counter = if computes { &self.computations } else { &self.shared_computations };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
