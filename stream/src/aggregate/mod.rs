//! What is computed over a window, and the accumulator that all of it comes from.
//!
//! An accumulator takes one reading at a time and merges with another; nothing is ever subtracted,
//! so no cancellation builds up over hours. A window's answer is the merge of its slices.

mod accumulator;
mod sketch;

use serde::{Deserialize, Serialize};

pub use self::accumulator::Accumulator;
pub(crate) use self::accumulator::EXTRA_LEN_MAX;
pub use self::sketch::Sketch;

/// A figure of a window. All are absent (null) when they have no meaning for the readings there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// How many readings.
    Count,
    /// Their sum, with its rounding errors compensated.
    Sum,
    /// The least value.
    Min,
    /// The greatest value.
    Max,
    /// Greatest less least.
    Range,
    /// The value with the least event time, the first to arrive among equals.
    First,
    /// The value with the greatest event time, the last to arrive among equals.
    Last,
    /// The arithmetic mean.
    Mean,
    /// Sample variance (n - 1); absent for one reading.
    Var,
    /// Sample standard deviation (n - 1); absent for one reading.
    Std,
    /// Population variance (n).
    VarPop,
    /// Population standard deviation (n).
    StdPop,
    /// `delta` per second between first and last; absent when both have the same time.
    Rate,
    /// Last less first.
    Delta,
    /// Mean with weights that halve with each `ewma_half_life` of age, independent of arrival order.
    Ewma,
    /// Time-weighted average: each value holds until the next reading, the last until the window's end.
    Twa,
    /// The median, within 1 % of a reading's value.
    P50,
    /// The 95th percentile, within 1 % of a reading's value.
    P95,
    /// The 99th percentile, within 1 % of a reading's value.
    P99,
}

impl Aggregate {
    /// All of them, in the order of the contract.
    pub const ALL: [Self; 19] = [
        Self::Count,
        Self::Sum,
        Self::Min,
        Self::Max,
        Self::Range,
        Self::First,
        Self::Last,
        Self::Mean,
        Self::Var,
        Self::Std,
        Self::VarPop,
        Self::StdPop,
        Self::Rate,
        Self::Delta,
        Self::Ewma,
        Self::Twa,
        Self::P50,
        Self::P95,
        Self::P99,
    ];

    /// Its name in definitions and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Range => "range",
            Self::First => "first",
            Self::Last => "last",
            Self::Mean => "mean",
            Self::Var => "var",
            Self::Std => "std",
            Self::VarPop => "var_pop",
            Self::StdPop => "std_pop",
            Self::Rate => "rate",
            Self::Delta => "delta",
            Self::Ewma => "ewma",
            Self::Twa => "twa",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

/// What the accumulators of a stream keep beyond the moments: each costs time and memory per slice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// `Some(rate)` keeps the decayed mean; the weight of a reading falls by e^-rate a millisecond.
    pub decay: Option<f64>,
    /// Keeps every reading, for the time-weighted average and for fits.
    pub points: bool,
    /// Keeps a quantile sketch.
    pub sketch: bool,
}

impl Shape {
    /// What these aggregates need; `half_life` is that of `ewma` in milliseconds.
    pub fn of(aggregates: &[Aggregate], half_life: i64) -> Self {
        let has = |wanted: &[Aggregate]| aggregates.iter().any(|a| wanted.contains(a));
        Self {
            decay: has(&[Aggregate::Ewma])
                .then(|| std::f64::consts::LN_2 / half_life.max(1) as f64),
            points: has(&[Aggregate::Twa]),
            sketch: has(&[Aggregate::P50, Aggregate::P95, Aggregate::P99]),
        }
    }

    /// Whether anything beyond the moments is kept.
    #[inline]
    pub fn has_extras(&self) -> bool {
        self.decay.is_some() | self.points | self.sketch
    }
}
