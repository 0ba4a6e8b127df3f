//! How long batches take on the server, from read to written.
//!
//! One turn in some is timed: two readings of the clock would cost each batch of one request a
//! hundredth. Times fall into buckets of a quarter of an octave; two sets are kept, the one being
//! filled and the one before, so that the quantiles are about the last ten to twenty seconds.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::listen::Protocol;

/// Turns between two that are timed.
pub(crate) const STRIDE: u32 = 32;

/// Buckets: four an octave of nanoseconds, up to beyond an hour.
const BUCKETS: usize = 42 * 4;

/// A set is filled for so long.
const WINDOW_MS: u64 = 10_000;

/// The times of one worker. It alone writes them.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    memcached: Windows,
    native: Windows,
    turn: AtomicU32,
    turned_ms: AtomicU64,
}

#[derive(Debug)]
struct Windows([[AtomicU32; BUCKETS]; 2]);

impl Default for Windows {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))))
    }
}

/// Counts turns, and says which to time.
#[derive(Debug, Default)]
pub(crate) struct TurnCount(u32);

impl TurnCount {
    /// Whether to time this one.
    #[inline]
    pub(crate) fn is_due(&mut self) -> bool {
        self.0 = self.0.wrapping_add(1);
        self.0.is_multiple_of(STRIDE)
    }
}

impl Latencies {
    fn of(&self, protocol: Protocol) -> &Windows {
        match protocol {
            Protocol::Memcached => &self.memcached,
            Protocol::Native => &self.native,
        }
    }

    /// Counts a turn that took so long.
    pub(crate) fn count(&self, protocol: Protocol, took: Duration) {
        let window = &self.of(protocol).0[self.turn.load(Relaxed) as usize % 2];
        let bucket = &window[bucket(took.as_nanos() as u64)];
        bucket.store(bucket.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Begins a new window when it is time. Call it every second or so, on the worker's thread.
    pub(crate) fn turn_over(&self, now_ms: u64) {
        if now_ms.saturating_sub(self.turned_ms.load(Relaxed)) < WINDOW_MS {
            return;
        }
        self.turned_ms.store(now_ms, Relaxed);
        let next = self.turn.load(Relaxed).wrapping_add(1);
        for windows in [&self.memcached, &self.native] {
            windows.0[next as usize % 2].iter().for_each(|bucket| bucket.store(0, Relaxed));
        }
        self.turn.store(next, Relaxed);
    }
}

/// Quantiles over several workers, in microseconds: p50, p99, p99.9 and the greatest. Nothing when
/// no turn was timed.
pub(crate) fn quantiles<'a>(
    workers: impl Iterator<Item = &'a Latencies>,
    protocol: Protocol,
) -> Vec<f64> {
    let mut counts = [0_u64; BUCKETS];
    for window in workers.flat_map(|worker| &worker.of(protocol).0) {
        for (count, bucket) in counts.iter_mut().zip(window) {
            *count += u64::from(bucket.load(Relaxed));
        }
    }
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Vec::new();
    }
    let at = |quantile: f64| {
        let wanted = (total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        ceiling_ns(bucket.unwrap_or(BUCKETS - 1)) / 1_000.0
    };
    vec![at(0.5), at(0.99), at(0.999), at(1.0)]
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(4);
    let octave = ns.ilog2();
    let quarter = (ns >> (octave - 2)) & 3;
    ((octave as usize - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The upper end of a bucket.
fn ceiling_ns(bucket: usize) -> f64 {
    let (octave, quarter) = (bucket / 4 + 2, bucket % 4);
    (4.0 + quarter as f64 + 1.0) * 2_f64.powi(octave as i32 - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_within_its_bucket_and_a_quarter_octave() {
        for ns in (4..10_000_u64).chain([1 << 20, (1 << 30) + 7, 1 << 40]) {
            let (ceiling, ns) = (ceiling_ns(bucket(ns)), ns as f64);
            assert!(ceiling > ns && ceiling <= ns * 1.25 + 1.0, "{ns} in {ceiling}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_over_workers_and_forget_what_is_long_past() {
        let workers = [Latencies::default(), Latencies::default()];
        assert!(quantiles(workers.iter(), Protocol::Native).is_empty());
        for micros in 1..=1_000 {
            let worker = &workers[micros as usize % 2];
            worker.count(Protocol::Native, Duration::from_micros(micros));
        }
        let found = quantiles(workers.iter(), Protocol::Native);
        for (found, exact) in found.iter().zip([500.0, 990.0, 999.0, 1_000.0]) {
            assert!(*found >= exact && *found <= exact * 1.25, "{found} for {exact}");
        }
        assert!(quantiles(workers.iter(), Protocol::Memcached).is_empty());
        for turn in 1..=2 {
            workers.iter().for_each(|worker| worker.turn_over(turn * WINDOW_MS));
        }
        assert!(quantiles(workers.iter(), Protocol::Native).is_empty());
    }
}
