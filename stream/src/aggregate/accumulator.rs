//! The running figures of one slice, session or count window.
//!
//! Mean and variance by Welford's update, merged by Chan's formula: stable for values that lie far
//! from zero and close to each other, where sums of squares lose every digit. The sum is kept apart,
//! compensated (Neumaier), because mean times count would round.
//!
//! Cost: 104 bytes; one division per reading. What only some streams ask for is in a box.

use serde::{Deserialize, Serialize};

use super::{Aggregate, Shape, Sketch};

/// Figures over a set of readings; takes one more reading, or the readings of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accumulator {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    m2: f64,
    sum: f64,
    /// What rounding took from `sum`.
    sum_lost: f64,
    min: f64,
    max: f64,
    first: (i64, f64),
    last: (i64, f64),
    extra: Option<Box<Extra>>,
}

/// What one reading adds at most to [`Accumulator::heap_bytes`].
pub(crate) const EXTRA_LEN_MAX: usize =
    size_of::<Extra>() + size_of::<(i64, f64)>() + size_of::<(i32, u64)>();

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Extra {
    /// Values and weights, both as they are at the time `decay_at`.
    decayed_sum: f64,
    decayed_weight: f64,
    decay_at: i64,
    /// By event time, equal times by arrival.
    points: Vec<(i64, f64)>,
    sketch: Sketch,
}

impl Default for Accumulator {
    fn default() -> Self {
        Self {
            count: 0,
            mean: 0.0,
            m2: 0.0,
            sum: 0.0,
            sum_lost: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            first: (i64::MAX, 0.0),
            last: (i64::MIN, 0.0),
            extra: None,
        }
    }
}

impl Accumulator {
    /// Takes one reading.
    #[inline]
    pub fn add(&mut self, time: i64, value: f64, shape: Shape) {
        self.count += 1;
        let from_mean = value - self.mean;
        self.mean += from_mean / self.count as f64;
        self.m2 += from_mean * (value - self.mean);
        self.add_to_sum(value);
        self.min = if value < self.min { value } else { self.min };
        self.max = if value > self.max { value } else { self.max };
        if time < self.first.0 {
            self.first = (time, value);
        }
        if time >= self.last.0 {
            self.last = (time, value);
        }
        if shape.has_extras() {
            self.extra.get_or_insert_default().add(time, value, shape);
        }
    }

    #[inline]
    fn add_to_sum(&mut self, value: f64) {
        let sum = self.sum + value;
        // Without a branch on the data: which of the two lost digits is decided by a select.
        let (large, small) =
            if self.sum.abs() >= value.abs() { (self.sum, value) } else { (value, self.sum) };
        self.sum_lost += (large - sum) + small;
        self.sum = sum;
    }

    /// Takes all readings of another, which arrived later where times are equal.
    pub fn merge(&mut self, other: &Self, shape: Shape) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        let (here, there) = (self.count as f64, other.count as f64);
        let all = here + there;
        let apart = other.mean - self.mean;
        self.mean += apart * (there / all);
        self.m2 += other.m2 + apart * apart * (here * there / all);
        self.count += other.count;
        self.add_to_sum(other.sum);
        self.sum_lost += other.sum_lost;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.first.0 < self.first.0 {
            self.first = other.first;
        }
        if other.last.0 >= self.last.0 {
            self.last = other.last;
        }
        if let Some(theirs) = &other.extra {
            self.extra.get_or_insert_default().merge(theirs, shape);
        }
    }

    /// How many readings it took.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The heap memory behind it.
    #[inline]
    pub fn heap_bytes(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| {
            size_of::<Extra>() + extra.points.len() * size_of::<(i64, f64)>() + extra.sketch.bytes()
        })
    }

    /// The readings in order of event time, if the shape keeps them.
    pub fn points(&self) -> &[(i64, f64)] {
        self.extra.as_ref().map_or(&[], |extra| &extra.points)
    }

    /// One figure of the window that ends at `end`; `None` where it has no meaning or no finite value.
    pub fn get(&self, aggregate: Aggregate, end: i64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let sample = |value: f64| (self.count > 1).then_some(value);
        let n = self.count as f64;
        let delta = self.last.1 - self.first.1;
        let value = match aggregate {
            Aggregate::Count => Some(n),
            Aggregate::Sum => Some(self.sum + self.sum_lost),
            Aggregate::Min => Some(self.min),
            Aggregate::Max => Some(self.max),
            Aggregate::Range => Some(self.max - self.min),
            Aggregate::First => Some(self.first.1),
            Aggregate::Last => Some(self.last.1),
            Aggregate::Mean => Some(self.mean),
            Aggregate::Var => sample(self.m2 / (n - 1.0)),
            Aggregate::Std => sample((self.m2 / (n - 1.0)).sqrt()),
            Aggregate::VarPop => Some(self.m2 / n),
            Aggregate::StdPop => Some((self.m2 / n).sqrt()),
            Aggregate::Delta => Some(delta),
            Aggregate::Rate => {
                let millis = self.last.0 - self.first.0;
                (millis > 0).then(|| delta / (millis as f64 / 1000.0))
            }
            Aggregate::Ewma => {
                self.extra.as_ref().map(|extra| extra.decayed_sum / extra.decayed_weight)
            }
            Aggregate::Twa => time_weighted(self.points(), end),
            Aggregate::P50 => self.quantile(0.50),
            Aggregate::P95 => self.quantile(0.95),
            Aggregate::P99 => self.quantile(0.99),
        };
        // Values near the greatest double can overflow; that is "no figure", not infinity.
        value.filter(|v| v.is_finite())
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        let found = self.extra.as_ref()?.sketch.quantile(q)?;
        // A bucket's middle may lie outside of what was measured.
        Some(found.clamp(self.min, self.max))
    }
}

impl Extra {
    fn add(&mut self, time: i64, value: f64, shape: Shape) {
        if let Some(decay) = shape.decay {
            self.decay_merge(value, 1.0, time, decay);
        }
        if shape.points {
            let at = self.points.partition_point(|(t, _)| *t <= time);
            self.points.insert(at, (time, value));
        }
        if shape.sketch {
            self.sketch.add(value);
        }
    }

    fn merge(&mut self, other: &Self, shape: Shape) {
        if let Some(decay) = shape.decay {
            self.decay_merge(other.decayed_sum, other.decayed_weight, other.decay_at, decay);
        }
        if shape.points {
            let in_order = match (self.points.last(), other.points.first()) {
                (Some(here), Some(there)) => here.0 <= there.0,
                _ => true,
            };
            self.points.extend_from_slice(&other.points);
            if !in_order {
                self.points.sort_by_key(|(time, _)| *time);
            }
        }
        self.sketch.merge(&other.sketch);
    }

    /// Brings both sides to the later of the two times, then adds.
    fn decay_merge(&mut self, sum: f64, weight: f64, at: i64, decay: f64) {
        if self.decayed_weight == 0.0 {
            (self.decayed_sum, self.decayed_weight, self.decay_at) = (sum, weight, at);
            return;
        }
        let fade = (-decay * self.decay_at.abs_diff(at) as f64).exp();
        if at >= self.decay_at {
            self.decayed_sum = self.decayed_sum * fade + sum;
            self.decayed_weight = self.decayed_weight * fade + weight;
            self.decay_at = at;
        } else {
            self.decayed_sum += sum * fade;
            self.decayed_weight += weight * fade;
        }
    }
}

fn time_weighted(points: &[(i64, f64)], end: i64) -> Option<f64> {
    let (start, _) = *points.first()?;
    let total = (end - start) as f64;
    if total <= 0.0 {
        return None;
    }
    let ends = points[1..].iter().map(|p| p.0).chain([end]);
    // Shares of the whole, so that large values do not overflow before the division.
    Some(points.iter().zip(ends).map(|((t, v), until)| v * ((until - t) as f64 / total)).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Shape = Shape { decay: Some(0.001), points: true, sketch: true };

    fn of(readings: &[(i64, f64)]) -> Accumulator {
        let mut acc = Accumulator::default();
        readings.iter().for_each(|(t, v)| acc.add(*t, *v, ALL));
        acc
    }

    fn all(acc: &Accumulator) -> Vec<Option<f64>> {
        Aggregate::ALL.iter().map(|a| acc.get(*a, 100_000)).collect()
    }

    #[test]
    fn no_readings_give_no_figures() {
        assert_eq!(all(&Accumulator::default()), [None; 19]);
    }

    #[test]
    fn variance_and_deviation_of_one_reading_are_absent() {
        let one = of(&[(5, 42.0)]);
        assert_eq!(one.get(Aggregate::Var, 10), None);
        assert_eq!(one.get(Aggregate::Std, 10), None);
        assert_eq!(one.get(Aggregate::VarPop, 10), Some(0.0));
        assert_eq!(one.get(Aggregate::Mean, 10), Some(42.0));
        assert_eq!(one.get(Aggregate::Rate, 10), None);
        assert_eq!(one.get(Aggregate::Twa, 10), Some(42.0));
    }

    #[test]
    fn a_large_offset_costs_no_digits() {
        // 1e9 + {4, 7, 13, 16}: mean 1e9 + 10, sample variance 30.
        let far = of(&[(1, 1e9 + 4.0), (2, 1e9 + 7.0), (3, 1e9 + 13.0), (4, 1e9 + 16.0)]);
        assert_eq!(far.get(Aggregate::Mean, 10), Some(1e9 + 10.0));
        assert_eq!(far.get(Aggregate::Var, 10), Some(30.0));
        let mut merged = of(&[(1, 1e15 + 4.0), (2, 1e15 + 7.0)]);
        merged.merge(&of(&[(3, 1e15 + 13.0), (4, 1e15 + 16.0)]), ALL);
        assert!((merged.get(Aggregate::Var, 10).unwrap() - 30.0).abs() < 0.5);
    }

    #[test]
    fn small_terms_survive_in_a_large_sum() {
        let mut readings = vec![(0, 1e16)];
        readings.extend((0..1000).map(|i| (i, 1.0)));
        readings.push((2000, -1e16));
        assert_eq!(of(&readings).get(Aggregate::Sum, 5000), Some(1000.0));
    }

    #[test]
    fn first_and_last_go_by_event_time_and_ties_by_arrival() {
        let acc = of(&[(5, 1.0), (3, 2.0), (3, 3.0), (9, 4.0), (9, 5.0), (7, 6.0)]);
        assert_eq!(acc.get(Aggregate::First, 10), Some(2.0));
        assert_eq!(acc.get(Aggregate::Last, 10), Some(5.0));
        assert_eq!(acc.get(Aggregate::Delta, 10), Some(3.0));
        assert_eq!(acc.get(Aggregate::Rate, 10), Some(500.0));
    }

    #[test]
    fn the_time_weighted_average_holds_each_value_until_the_next() {
        // 10 for 2 s, 20 for 8 s.
        let acc = of(&[(2000, 20.0), (0, 10.0)]);
        assert_eq!(acc.get(Aggregate::Twa, 10_000), Some(18.0));
    }

    #[test]
    fn figures_that_overflow_are_absent() {
        let acc = of(&[(0, f64::MAX), (1, f64::MIN), (2, f64::MAX)]);
        assert_eq!(acc.get(Aggregate::Range, 10), None);
        assert_eq!(acc.get(Aggregate::Var, 10), None);
        assert_eq!(acc.get(Aggregate::Max, 10), Some(f64::MAX));
    }

    proptest! {
        #[test]
        fn merged_parts_give_the_figures_of_the_whole(
            readings in prop::collection::vec((0i64..90_000, -1e3..1e3f64), 2..80),
            cut in any::<prop::sample::Index>(),
        ) {
            let (left, right) = readings.split_at(cut.index(readings.len()));
            let mut merged = of(left);
            merged.merge(&of(right), ALL);
            for (found, expected) in all(&merged).iter().zip(all(&of(&readings))) {
                let (found, expected) = (found.unwrap_or(-9e9), expected.unwrap_or(-9e9));
                let scale = expected.abs().max(1.0);
                prop_assert!((found - expected).abs() <= 1e-9 * scale, "{found} {expected}");
            }
        }

        #[test]
        fn the_moments_equal_the_two_pass_formulas(
            readings in prop::collection::vec((0i64..1000, 1e6..1e6 + 1.0f64), 2..200),
        ) {
            let n = readings.len() as f64;
            let mean = readings.iter().map(|r| r.1 - 1e6).sum::<f64>() / n;
            let var = readings.iter().map(|r| (r.1 - 1e6 - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let acc = of(&readings);
            prop_assert!((acc.get(Aggregate::Mean, 1).unwrap() - 1e6 - mean).abs() < 1e-9);
            prop_assert!((acc.get(Aggregate::Var, 1).unwrap() - var).abs() < 1e-9);
        }
    }
}
