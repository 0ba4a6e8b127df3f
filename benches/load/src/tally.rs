//! What one worker saw: counts, the first thing that went wrong, and two latency histograms.
//!
//! A worker records into one tally and adds it to its total now and then; what it adds is also
//! what the progress line shows of the last moments. So nothing is recorded twice.

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

    /// Adds what `recent` holds, and empties it.
    pub(crate) fn absorb(&mut self, recent: &mut Self) {
        self.gets.add(&recent.gets).expect("all tallies have the same bounds");
        self.sets.add(&recent.sets).expect("all tallies have the same bounds");
        self.hits += std::mem::take(&mut recent.hits);
        self.misses += std::mem::take(&mut recent.misses);
        self.errors.merge(std::mem::take(&mut recent.errors));
        if self.first_error.is_none() {
            self.first_error = recent.first_error.take();
        }
        self.unsent += std::mem::take(&mut recent.unsent);
        recent.gets.reset();
        recent.sets.reset();
    }

    /// Keeps the first message; later ones are mostly its consequences.
    pub(crate) fn note(&mut self, message: impl FnOnce() -> String) {
        self.first_error.get_or_insert_with(message);
    }
}

/// What the progress line shows: the requests since it was drawn last.
#[derive(Debug)]
pub(crate) struct Recent {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Recent {
    pub(crate) fn new() -> Self {
        Self { latencies: histogram(), hits: 0, misses: 0 }
    }

    pub(crate) fn note(&mut self, tally: &Tally) {
        self.latencies.add(&tally.gets).expect("all tallies have the same bounds");
        self.latencies.add(&tally.sets).expect("all tallies have the same bounds");
        self.hits += tally.hits;
        self.misses += tally.misses;
    }

    /// Moves all of it to `sum`.
    pub(crate) fn drain_into(&mut self, sum: &mut Self) {
        sum.latencies.add(&self.latencies).expect("all tallies have the same bounds");
        sum.hits += std::mem::take(&mut self.hits);
        sum.misses += std::mem::take(&mut self.misses);
        self.latencies.reset();
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, 3)
        .expect("the constants are valid bounds")
}

/// Latencies are told apart down to half of this.
const LATENCY_MIN_NS: u64 = 1_000;

/// Longer ones count as this long.
const LATENCY_MAX_NS: u64 = 120_000_000_000;
