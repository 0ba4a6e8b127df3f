//! Results of several windows made into that of the longer one that they fill.
//!
//! A stored result has figures only, no longer the readings. What can be computed from the figures
//! of the parts as exactly as from the readings is (variances by Chan's merge, never by sums of
//! squares); anything else is null rather than a guess: the percentiles, the averages by time, and the
//! rate, for which the times of the first and last reading would be needed.
//!
//! Cost: some ten multiplications a part.

use crate::aggregate::Aggregate;

/// The figures of the windows `parts`, which follow each other in time without overlap, taken together,
/// in the order of `aggregates`. Each part has its figures in that order too; `None` is null.
///
/// A figure is null where the parts do not determine it: means need `count`, variances need `count`,
/// `mean` and a figure of their own kind, `range` needs `min` and `max`, `delta` needs `first` and `last`.
pub fn merged(aggregates: &[Aggregate], parts: &[Vec<Option<f64>>]) -> Vec<Option<f64>> {
    let of = |part: &[Option<f64>], wanted: Aggregate| {
        let place = aggregates.iter().position(|aggregate| *aggregate == wanted)?;
        part.get(place).copied().flatten()
    };
    // A sum over all parts, null if one of them is.
    let all = |wanted: Aggregate, merge: fn(f64, f64) -> f64| {
        let mut figures = parts.iter().map(|part| of(part, wanted));
        let first = figures.next()??;
        figures.try_fold(first, |so_far, figure| Some(merge(so_far, figure?)))
    };
    let at = |place: Option<&Vec<Option<f64>>>, wanted| of(place?, wanted);
    let moments = Moments::of(parts, &of);
    let sample =
        |moments: Moments| (moments.count > 1.0).then(|| moments.m2 / (moments.count - 1.0));
    let figure = |aggregate: &Aggregate| match aggregate {
        Aggregate::Count | Aggregate::Sum => all(*aggregate, |a, b| a + b),
        Aggregate::Min => all(Aggregate::Min, f64::min),
        Aggregate::Max => all(Aggregate::Max, f64::max),
        Aggregate::Range => Some(all(Aggregate::Max, f64::max)? - all(Aggregate::Min, f64::min)?),
        Aggregate::First => at(parts.first(), Aggregate::First),
        Aggregate::Last => at(parts.last(), Aggregate::Last),
        Aggregate::Delta => {
            Some(at(parts.last(), Aggregate::Last)? - at(parts.first(), Aggregate::First)?)
        }
        Aggregate::Mean => mean(parts, &of),
        Aggregate::Var => sample(moments?),
        Aggregate::Std => sample(moments?).map(f64::sqrt),
        Aggregate::VarPop => moments.map(|moments| moments.m2 / moments.count),
        Aggregate::StdPop => moments.map(|moments| (moments.m2 / moments.count).sqrt()),
        Aggregate::Rate
        | Aggregate::Ewma
        | Aggregate::Twa
        | Aggregate::P50
        | Aggregate::P95
        | Aggregate::P99 => None,
    };
    aggregates.iter().map(|aggregate| figure(aggregate).filter(|value| value.is_finite())).collect()
}

/// Reads a figure of a part.
type Of<'a> = dyn Fn(&[Option<f64>], Aggregate) -> Option<f64> + 'a;

fn mean(parts: &[Vec<Option<f64>>], of: &Of<'_>) -> Option<f64> {
    let (mut count, mut mean) = (0.0, 0.0);
    for part in parts {
        let more = of(part, Aggregate::Count)?;
        count += more;
        mean += (of(part, Aggregate::Mean)? - mean) * (more / count);
    }
    (count > 0.0).then_some(mean)
}

/// How many readings, and the sum of their squared distances from the mean.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    m2: f64,
}

impl Moments {
    fn of(parts: &[Vec<Option<f64>>], of: &Of<'_>) -> Option<Self> {
        let (mut count, mut mean, mut m2) = (0.0, 0.0, 0.0);
        for part in parts {
            let more = of(part, Aggregate::Count)?;
            let between = of(part, Aggregate::Mean)? - mean;
            let both = count + more;
            m2 += spread(part, more, of)? + between * between * (count * more / both);
            mean += between * (more / both);
            count = both;
        }
        (count > 0.0).then_some(Self { count, m2 })
    }
}

/// The squared distances within a part, from whichever figure tells them.
fn spread(part: &[Option<f64>], count: f64, of: &Of<'_>) -> Option<f64> {
    if count <= 1.0 {
        return Some(0.0);
    }
    let sample = || {
        let var = of(part, Aggregate::Var);
        var.or_else(|| of(part, Aggregate::Std).map(|std| std * std)).map(|var| var * (count - 1.0))
    };
    let population = || {
        let var = of(part, Aggregate::VarPop);
        var.or_else(|| of(part, Aggregate::StdPop).map(|std| std * std)).map(|var| var * count)
    };
    sample().or_else(population)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregate::{Accumulator, Shape};

    /// What windows over the readings tell, one row each.
    fn rows(aggregates: &[Aggregate], windows: &[&[f64]]) -> Vec<Vec<Option<f64>>> {
        let shape = Shape::of(aggregates, 1000);
        let row = |values: &&[f64]| {
            let mut accumulator = Accumulator::default();
            for (place, value) in values.iter().enumerate() {
                accumulator.add(place as i64, *value, shape);
            }
            aggregates.iter().map(|aggregate| accumulator.get(*aggregate, 1 << 20)).collect()
        };
        windows.iter().map(row).collect()
    }

    const MERGEABLE: [Aggregate; 12] = [
        Aggregate::Count,
        Aggregate::Sum,
        Aggregate::Min,
        Aggregate::Max,
        Aggregate::Range,
        Aggregate::First,
        Aggregate::Last,
        Aggregate::Delta,
        Aggregate::Mean,
        Aggregate::Var,
        Aggregate::Std,
        Aggregate::VarPop,
    ];

    proptest! {
        #[test]
        fn parts_merged_tell_what_one_window_over_all_readings_would(
            windows in prop::collection::vec(prop::collection::vec(-1e3f64..1e3, 1..20), 1..8)
        ) {
            let windows: Vec<&[f64]> = windows.iter().map(Vec::as_slice).collect();
            let all: Vec<f64> = windows.concat();
            let expected = &rows(&MERGEABLE, &[&all])[0];
            let found = merged(&MERGEABLE, &rows(&MERGEABLE, &windows));
            for ((aggregate, found), expected) in MERGEABLE.iter().zip(&found).zip(expected) {
                match (found, expected) {
                    (Some(found), Some(expected)) => prop_assert!(
                        (found - expected).abs() <= 1e-9 * expected.abs().max(1e3),
                        "{aggregate:?}: {found} {expected}"
                    ),
                    _ => prop_assert_eq!(found, expected, "{:?}", aggregate),
                }
            }
        }
    }

    #[test]
    fn a_figure_that_the_parts_do_not_determine_is_null() {
        let aggregates = [Aggregate::Mean, Aggregate::P95, Aggregate::Range, Aggregate::Max];
        let parts = rows(&aggregates, &[&[1.0, 2.0], &[3.0]]);
        // No counts to weigh the means with, no minimum; the greatest is known all the same.
        assert_eq!(merged(&aggregates, &parts), [None, None, None, Some(3.0)]);
        assert_eq!(merged(&aggregates, &[]), [None; 4]);
    }

    #[test]
    fn variances_come_from_deviations_too_and_one_reading_has_none() {
        let aggregates = [Aggregate::Count, Aggregate::Mean, Aggregate::StdPop, Aggregate::Std];
        let found = merged(&aggregates, &rows(&aggregates, &[&[2.0], &[4.0]]));
        assert_eq!(found, [Some(2.0), Some(3.0), Some(1.0), Some(2f64.sqrt())]);
        let found = merged(&aggregates, &rows(&aggregates, &[&[2.0]]));
        assert_eq!(found, [Some(1.0), Some(2.0), Some(0.0), None]);
    }
}
