//! What one worker saw: counts, the first thing that went wrong, and two latency histograms.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::Errors;
use crate::wire::Asked;

/// Everything a worker hands back at the end.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) gets: Histogram<u64>,
    pub(crate) sets: Histogram<u64>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) errors: Errors,
    pub(crate) first_error: Option<String>,
    /// Requests that were due at the fixed rate and could not be sent before the end.
    pub(crate) unsent: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, 3)
                .expect("the constants are valid bounds")
        };
        Self {
            gets: histogram(),
            sets: histogram(),
            hits: 0,
            misses: 0,
            errors: Errors::default(),
            first_error: None,
            unsent: 0,
        }
    }

    pub(crate) fn record(&mut self, asked: Asked, latency: Duration) {
        let histogram = match asked {
            Asked::Get => &mut self.gets,
            Asked::Set => &mut self.sets,
        };
        histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Keeps the first message; later ones are mostly its consequences.
    pub(crate) fn note(&mut self, message: impl FnOnce() -> String) {
        self.first_error.get_or_insert_with(message);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.gets.add(&other.gets).expect("all tallies have the same bounds");
        self.sets.add(&other.sets).expect("all tallies have the same bounds");
        self.hits += other.hits;
        self.misses += other.misses;
        self.errors.merge(other.errors);
        self.first_error = self.first_error.take().or(other.first_error);
        self.unsent += other.unsent;
    }
}

/// Latencies are told apart down to half of this.
const LATENCY_MIN_NS: u64 = 1_000;

/// Longer ones count as this long.
const LATENCY_MAX_NS: u64 = 120_000_000_000;
