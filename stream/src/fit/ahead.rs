//! What comes next, some steps ahead: for a chart, or an alarm before its time.
//!
//! A few small ARMA models are fitted and the one that explains most for its size (Akaike's criterion)
//! is run on with shocks of 0. The deviation of a step comes from the model's weights of past shocks
//! (Box and Jenkins): it grows with the distance, and says how little a far forecast is worth.
//!
//! Cost: that of some fits, once a call.

use super::{Fit, Fitted, Model, POINTS_MAX, predict};

/// The most steps that are told.
pub const STEPS_MAX: usize = 200;

/// What is expected at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    /// The expected value.
    pub value: f64,
    /// The standard deviation of what comes from what is expected, if the model is right.
    pub deviation: f64,
}

/// The models that are tried, all of a kind that follows what is there.
const TRIED: [Fit; 4] = [Fit::Arma(1, 0), Fit::Arma(2, 0), Fit::Arma(1, 1), Fit::Arma(2, 1)];

/// The best of some small models of `values`, in order of time and evenly spaced, and the next `steps`
/// that it expects, at most [`STEPS_MAX`]. `None` where they are too few (20 at least) or determine no
/// model, as a constant does not.
pub fn ahead(values: &[f64], steps: usize) -> Option<(Model, Vec<Ahead>)> {
    let last = &values[values.len().saturating_sub(POINTS_MAX)..];
    let tried = TRIED.into_iter().filter_map(|fit| {
        let fitted = fit.fit_values(last.to_vec())?;
        let (p, q) = fit.orders();
        let criterion = last.len() as f64 * fitted.model.variance.ln() + 2.0 * (p + q) as f64;
        // A perfect fit has no variance, and the least criterion there is.
        (!criterion.is_nan()).then_some((criterion, fitted))
    });
    let (_, best) = tried.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let expected = run_on(&best, steps.min(STEPS_MAX));
    let sound = expected.iter().all(|step| step.value.is_finite() && step.deviation.is_finite());
    sound.then_some((best.model, expected))
}

fn run_on(fitted: &Fitted, steps: usize) -> Vec<Ahead> {
    let Fitted { model, series, shocks } = fitted;
    let weights: Vec<f64> = model.ar.iter().chain(&model.ma).copied().collect();
    let (mut series, mut shocks) = (series.clone(), shocks.clone());
    // What a shock now still weighs so many steps later.
    let mut lasting: Vec<f64> = Vec::with_capacity(steps);
    let mut variance = 0.0;
    let mut expected = Vec::with_capacity(steps);
    for step in 0..steps {
        let value = predict(&weights, model.ar.len(), &series, &shocks, series.len());
        series.push(value);
        shocks.push(0.0);
        let weight = if step == 0 {
            1.0
        } else {
            let past = |(i, weight): (usize, &f64)| {
                lasting.get(step.wrapping_sub(i + 1)).map(|w| w * weight)
            };
            let ar: f64 = model.ar.iter().enumerate().filter_map(past).sum();
            ar + model.ma.get(step - 1).copied().unwrap_or(0.0)
        };
        lasting.push(weight);
        variance += model.variance * weight * weight;
        expected.push(Ahead { value: model.mean + value, deviation: variance.sqrt() });
    }
    expected
}

#[cfg(test)]
mod tests {
    use super::super::tests::simulate;
    use super::*;

    fn values(ar: &[f64], ma: &[f64], n: usize) -> Vec<f64> {
        simulate(20.0, ar, ma, n).into_iter().map(|(_, value)| value).collect()
    }

    #[test]
    fn forecasts_go_back_to_the_mean_and_deviate_more_with_every_step_up_to_that_of_the_series() {
        let values = values(&[0.8], &[], 3000);
        let (model, expected) = ahead(&values, 60).unwrap();
        assert_eq!(expected.len(), 60);
        let last = *values.last().unwrap();
        assert!((expected[0].value - model.mean).abs() < (last - model.mean).abs());
        assert!((expected[59].value - model.mean).abs() < 0.05);
        assert!(expected.is_sorted_by(|a, b| a.deviation <= b.deviation));
        assert!((expected[0].deviation - 1.0).abs() < 0.1);
        // The variance of the process: 1 / (1 - 0.8^2).
        assert!((expected[59].deviation - (1.0 / (1.0 - 0.64f64)).sqrt()).abs() < 0.25);
    }

    #[test]
    fn what_comes_lies_within_two_deviations_as_often_as_it_should() {
        let values = values(&[0.6, -0.3], &[0.4], 4000);
        let (mut inside, mut all) = (0, 0);
        for end in (1000..3990).step_by(10) {
            let (_, expected) = ahead(&values[end - 500..end], 5).unwrap();
            for (step, expected) in expected.iter().enumerate() {
                let off = (values[end + step] - expected.value).abs();
                inside += usize::from(off <= 1.96 * expected.deviation);
                all += 1;
            }
        }
        let part = inside as f64 / all as f64;
        assert!((0.92..0.98).contains(&part), "{part}");
    }

    #[test]
    fn too_few_values_and_constants_have_no_forecast() {
        assert_eq!(ahead(&[1.0, 2.0, 3.0], 5), None);
        assert_eq!(ahead(&[7.0; 500], 5), None);
        assert_eq!(ahead(&[], 5), None);
        let (_, none) = ahead(&values(&[0.5], &[], 200), 0).unwrap();
        assert!(none.is_empty());
    }
}
