//! Quantiles with a bound on the relative error (DDSketch).
//!
//! A value v > 0 falls into bucket ceil(log_gamma v), gamma = (1 + a) / (1 - a); a bucket's middle
//! is within a of all its values. Merging adds bucket counts, so it is exact: the sketch of a union
//! is the union of the sketches, in whatever order. Negative values have buckets of their own; what
//! is closer to zero than [`SMALLEST`] counts as zero.
//!
//! Cost: one logarithm and a search per reading; 16 bytes per bucket that has a count, so a reading
//! never adds more, at most [`BUCKETS_MAX`] per sign. Beyond that the buckets nearest to zero become
//! one, and only quantiles that fall there lose their bound.

use serde::{Deserialize, Serialize};

/// The relative error of a quantile.
pub const RELATIVE_ERROR: f64 = 0.01;
/// The most buckets per sign: every value over 17 orders of magnitude.
pub const BUCKETS_MAX: usize = 2048;
/// Magnitudes below this count as zero.
pub const SMALLEST: f64 = 1e-12;

/// A mergeable summary of the distribution of values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sketch {
    positive: Buckets,
    negative: Buckets,
    zeros: u64,
}

/// Bucket numbers and counts, ascending; only buckets that have a count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Buckets(Vec<(i32, u64)>);

impl Sketch {
    /// Counts a value.
    pub fn add(&mut self, value: f64) {
        if value > SMALLEST {
            self.positive.add(bucket_of(value));
        } else if value < -SMALLEST {
            self.negative.add(bucket_of(-value));
        } else {
            self.zeros += 1;
        }
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        self.positive.merge(&other.positive);
        self.negative.merge(&other.negative);
        self.zeros += other.zeros;
    }

    /// How many values it counted.
    pub fn len(&self) -> u64 {
        self.positive.len() + self.negative.len() + self.zeros
    }

    /// Whether it counted none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at rank floor(q (n - 1)); `None` without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let len = self.len();
        if len == 0 {
            return None;
        }
        let mut rank = (q.clamp(0.0, 1.0) * (len - 1) as f64) as u64;
        let negative = self.negative.len();
        if rank < negative {
            // Ascending values are descending magnitudes.
            return self.negative.at_rank(negative - 1 - rank).map(|b| -middle_of(b));
        }
        rank -= negative;
        if rank < self.zeros {
            return Some(0.0);
        }
        self.positive.at_rank(rank - self.zeros).map(middle_of)
    }

    /// The heap memory of its buckets.
    pub fn bytes(&self) -> usize {
        (self.positive.0.len() + self.negative.0.len()) * size_of::<(i32, u64)>()
    }
}

impl Buckets {
    fn add(&mut self, bucket: i32) {
        // Values of a sensor lie close together: the bucket is often the one before the greatest.
        match self.0.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => {
                self.0.insert(at, (bucket, 1));
                self.fold();
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        if other.0.is_empty() {
            return;
        }
        let mut merged = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut here, mut there) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let next = match (here.peek(), there.peek()) {
                (Some((a, n)), Some((b, m))) if a == b => {
                    let both = (*a, n + m);
                    here.next();
                    there.next();
                    both
                }
                (Some((a, _)), Some((b, _))) if a > b => *there.next().unwrap_or(&(0, 0)),
                (Some(next), _) => {
                    let next = **next;
                    here.next();
                    next
                }
                (None, Some(next)) => {
                    let next = **next;
                    there.next();
                    next
                }
                (None, None) => break,
            };
            merged.push(next);
        }
        self.0 = merged;
        self.fold();
    }

    /// Makes one of the buckets nearest to zero while there are too many.
    fn fold(&mut self) {
        let surplus = self.0.len().saturating_sub(BUCKETS_MAX);
        if surplus > 0 {
            let folded: u64 = self.0.drain(..surplus).map(|(_, count)| count).sum();
            self.0[0].1 += folded;
        }
    }

    fn len(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn at_rank(&self, rank: u64) -> Option<i32> {
        let mut below = 0;
        let found = self.0.iter().find(|(_, count)| {
            below += count;
            below > rank
        })?;
        Some(found.0)
    }
}

const GAMMA: f64 = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR);

fn bucket_of(magnitude: f64) -> i32 {
    // Magnitudes are finite and above SMALLEST: bucket numbers stay within +-40,000.
    (magnitude.ln() / GAMMA.ln()).ceil() as i32
}

fn middle_of(bucket: i32) -> f64 {
    2.0 * GAMMA.powi(bucket) / (GAMMA + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|v| sketch.add(*v));
        sketch
    }

    #[test]
    fn an_empty_sketch_has_no_quantile() {
        assert_eq!(Sketch::default().quantile(0.5), None);
    }

    #[test]
    fn the_range_of_buckets_is_bounded_and_the_upper_quantiles_keep_their_error() {
        let values: Vec<f64> = (0..9000).map(|i| 1e-11 * 1.08f64.powi(i)).collect();
        let sketch = of(&values);
        assert!(sketch.bytes() <= BUCKETS_MAX * 16, "{}", sketch.bytes());
        assert_eq!(sketch.len(), 9000);
        assert!(
            (sketch.quantile(1.0).unwrap() / values[8999] - 1.0).abs() <= RELATIVE_ERROR + 1e-9
        );
        let backwards: Vec<f64> = values.iter().rev().copied().collect();
        assert_eq!(of(&backwards).quantile(0.99), sketch.quantile(0.99));
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_its_relative_error(
            mut values in prop::collection::vec(-1e6..1e6f64, 1..200),
            q in 0.0..1.0f64,
        ) {
            let found = of(&values).quantile(q).unwrap();
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            let bound = exact.abs() * (RELATIVE_ERROR + 1e-9) + SMALLEST;
            prop_assert!((found - exact).abs() <= bound, "{found} {exact}");
        }

        #[test]
        fn merged_sketches_equal_the_sketch_of_all(
            left in prop::collection::vec(-1e6..1e6f64, 0..50),
            right in prop::collection::vec(-1e3..1e3f64, 0..50),
        ) {
            let mut merged = of(&left);
            merged.merge(&of(&right));
            let all: Vec<f64> = left.iter().chain(&right).copied().collect();
            for q in [0.0, 0.5, 0.95, 0.99, 1.0] {
                prop_assert_eq!(merged.quantile(q), of(&all).quantile(q));
            }
        }
    }
}
