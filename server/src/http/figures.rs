//! What HTTP counts, for metrics and the dashboard.
//!
//! Several threads serve HTTP and any of them may carry any request, so counters are added to with
//! one locked instruction. Times are kept by each thread for itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::{
    latency::{self, Latencies},
    listen::Protocol,
    op_times::{KindCounts, OpTimes},
};

/// Counters and times of HTTP.
#[derive(Debug)]
pub(crate) struct Figures {
    operations: AtomicU64,
    /// By the first digit of the status.
    answers: [AtomicU64; 6],
    connections: AtomicUsize,
    accepted: AtomicU64,
    rejected: AtomicU64,
    /// One for each thread. They know no HTTP, and have a place for one protocol to spare.
    times: Box<[Latencies]>,
    /// The same by kind of operation on an item, for metrics.
    op_times: Box<[OpTimes]>,
}

/// The place of HTTP in [`Latencies`].
const PLACE: Protocol = Protocol::Native;

impl Figures {
    /// Nothing counted yet, for so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            operations: AtomicU64::new(0),
            answers: Default::default(),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            times: (0..threads).map(|_| Latencies::default()).collect(),
            op_times: (0..threads).map(|_| OpTimes::default()).collect(),
        }
    }

    /// Threads that serve HTTP.
    pub(crate) fn threads(&self) -> usize {
        self.times.len()
    }

    /// Operations on items since the start.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Relaxed)
    }

    /// Answers since the start whose status begins with `digit`.
    pub(crate) fn answers(&self, digit: usize) -> u64 {
        self.answers.get(digit).map_or(0, |count| count.load(Relaxed))
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Connections served since the start.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Connections turned away since the start.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Time of requests over the last seconds, in microseconds: p50, p99, p99.9 and the greatest.
    /// Nothing when there was none.
    pub(crate) fn quantiles(&self) -> Vec<f64> {
        latency::quantiles(self.times.iter(), PLACE)
    }

    /// Counts operations on items.
    pub(super) fn count_operations(&self, count: u64) {
        self.operations.fetch_add(count, Relaxed);
    }

    /// Counts an answer and the time it took. Only `thread` itself calls this with its number.
    pub(super) fn count_answer(&self, thread: usize, status: u16, took: Duration) {
        if let Some(count) = self.answers.get(usize::from(status / 100)) {
            count.fetch_add(1, Relaxed);
        }
        if let Some(times) = self.times.get(thread) {
            times.count(PLACE, took);
        }
    }

    /// Counts the time of an operation on an item, of a kind of [`crate::op_times::KINDS`]. Only
    /// `thread` itself calls this with its number.
    pub(super) fn count_time(&self, thread: usize, kind: usize, took: Duration) {
        let mut kinds = KindCounts::default();
        if let (Some(count), Some(times)) = (kinds.get_mut(kind), self.op_times.get(thread)) {
            *count = 1;
            times.count(&kinds, took, 1);
        }
    }

    /// Times of operations, by thread.
    pub(super) fn op_times(&self) -> &[OpTimes] {
        &self.op_times
    }

    /// Lets old times go. Each thread calls it every second with its number.
    pub(super) fn turn_over(&self, thread: usize, now_ms: u64) {
        if let Some(times) = self.times.get(thread) {
            times.turn_over(now_ms);
        }
    }

    /// Takes a place under the limit, or counts a rejection.
    pub(super) fn enter(&self, max: usize) -> bool {
        if self.connections.fetch_add(1, Relaxed) < max {
            self.accepted.fetch_add(1, Relaxed);
            return true;
        }
        self.connections.fetch_sub(1, Relaxed);
        false
    }

    /// Counts a connection that was turned away.
    pub(super) fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// Gives a place back.
    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_connections_than_the_limit() {
        let figures = Figures::new(1);
        assert!(figures.enter(2) && figures.enter(2) && !figures.enter(2));
        figures.leave();
        assert!(figures.enter(2));
        assert_eq!((figures.connections(), figures.accepted()), (2, 3));
    }

    #[test]
    fn answers_are_counted_by_class_and_timed() {
        let figures = Figures::new(2);
        assert!(figures.quantiles().is_empty());
        figures.count_answer(0, 204, Duration::from_micros(100));
        figures.count_answer(1, 201, Duration::from_micros(100));
        figures.count_answer(1, 404, Duration::from_micros(100));
        assert_eq!((figures.answers(2), figures.answers(4), figures.answers(9)), (2, 1, 0));
        assert_eq!(figures.quantiles().len(), 4);
    }
}
