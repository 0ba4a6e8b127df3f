//! How long operations take, by protocol and kind: histograms for Prometheus.
//!
//! A client waits for an operation as long as the batch takes that it came in, so all operations of
//! a timed batch count with the time of the batch. One batch in some is timed (see `latency`), and
//! counts for that many; where other nodes are waited for, each wait is. Kinds are counted by the
//! batch itself, in a few bytes of the worker's own memory.
//!
//! Always true: each histogram has one writer, so counting is a plain load, add and store; the
//! buckets are fixed, 10 µs to 1 s.

use std::{array, time::Duration};

use kiln_protocol::command::Command;

use crate::counters::Counter;

/// Upper ends of the buckets, in nanoseconds. What is longer is in none but the last, `+Inf`.
const BOUNDS_NS: [u64; 16] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
];

/// Kinds of operations, as labels have them.
pub(crate) const KINDS: [&str; 5] = ["get", "store", "delete", "arithmetic", "touch"];

/// How many operations of each kind a batch had.
pub(crate) type KindCounts = [u32; KINDS.len()];

/// The place of a command's kind.
#[inline]
pub(crate) fn kind(command: &Command<'_>) -> usize {
    match command {
        Command::Get(_) => 0,
        Command::Store(_) => 1,
        Command::Delete(_) => 2,
        Command::Arithmetic(_) => 3,
        Command::Touch(_) => 4,
    }
}

/// Histograms of one writer, by kind.
#[derive(Debug, Default)]
pub(crate) struct OpTimes([Histogram; KINDS.len()]);

/// A histogram of one writer.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [Counter; BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl OpTimes {
    /// Counts operations that took so long, each for `weight`. Only the owner may call this.
    pub(crate) fn count(&self, kinds: &KindCounts, took: Duration, weight: u64) {
        for (histogram, count) in self.0.iter().zip(kinds).filter(|(_, count)| **count > 0) {
            histogram.count(took, u64::from(*count) * weight);
        }
    }
}

impl Histogram {
    /// Counts so many that took so long. Only the owner may call this.
    pub(crate) fn count(&self, took: Duration, count: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].add(count);
        self.sum_ns.add(ns.saturating_mul(count));
    }

    /// As Prometheus wants it.
    pub(crate) fn summed(&self) -> Summed {
        sum_of(std::iter::once(self))
    }
}

/// A histogram as Prometheus wants it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Summed {
    /// Upper end in seconds, and how many took no longer.
    pub(crate) buckets: Vec<(f64, u64)>,
    /// All of them.
    pub(crate) count: u64,
    /// Their times together, in seconds.
    pub(crate) sum: f64,
}

/// The histograms of one kind over all writers.
pub(crate) fn sum<'a>(times: impl Iterator<Item = &'a OpTimes>, kind: usize) -> Summed {
    sum_of(times.filter_map(|times| times.0.get(kind)))
}

fn sum_of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Summed {
    let mut counts = [0_u64; BOUNDS_NS.len() + 1];
    let mut sum_ns = 0_u64;
    for histogram in histograms {
        for (count, bucket) in counts.iter_mut().zip(&histogram.buckets) {
            *count += bucket.get();
        }
        sum_ns = sum_ns.wrapping_add(histogram.sum_ns.get());
    }
    let mut count = 0;
    let buckets = BOUNDS_NS.iter().zip(&counts).map(|(bound, here)| {
        count += here;
        (*bound as f64 / 1e9, count)
    });
    let buckets = buckets.collect();
    Summed { buckets, count: counts.iter().sum(), sum: sum_ns as f64 / 1e9 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_of_a_batch_counts_with_the_time_of_the_batch() {
        let (a, b) = (OpTimes::default(), OpTimes::default());
        a.count(&[2, 1, 0, 0, 0], Duration::from_micros(15), 32);
        b.count(&[1, 0, 0, 0, 0], Duration::from_secs(3), 1);
        let gets = sum([&a, &b].into_iter(), 0);
        assert_eq!((gets.buckets[0].1, gets.buckets[1].1), (0, 64));
        assert_eq!((gets.buckets.last().unwrap().1, gets.count), (64, 65));
        assert!((gets.sum - (64.0 * 15e-6 + 3.0)).abs() < 1e-9);
        assert_eq!(sum([&a, &b].into_iter(), 1).count, 32);
        assert_eq!(sum([&a, &b].into_iter(), 2).count, 0);
    }

    #[test]
    fn what_takes_as_long_as_a_bound_is_within_it() {
        let times = OpTimes::default();
        times.count(&[1, 0, 0, 0, 0], Duration::from_micros(10), 1);
        assert_eq!(sum([&times].into_iter(), 0).buckets[0], (10e-6, 1));
    }
}
