//! Models fitted to the readings of a window when it closes: moving averages and ARMA, by the
//! Hannan-Rissanen method.
//!
//! Three least-squares steps and no search: a long autoregression gives estimates of the shocks, the
//! series is then regressed on its own past and on the past shocks, and once more with the shocks of
//! that result. The readings are taken as evenly spaced.
//!
//! Cost: some (p + q + m)^2 multiplications per reading of the window, once.

mod ahead;

use serde::{Deserialize, Serialize};

pub use self::ahead::{Ahead, STEPS_MAX, ahead};

/// The highest order of either part.
pub const ORDER_MAX: u8 = 8;
/// The most readings that are looked at: the last of the window.
pub const POINTS_MAX: usize = 4096;

/// Which model to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// `{"ma": q}`: the last q shocks.
    Ma(u8),
    /// `{"arma": [p, q]}`: the last p readings and the last q shocks.
    Arma(u8, u8),
}

/// A fitted model: `x[t] = mean + sum ar[i] (x[t-1-i] - mean) + e[t] + sum ma[j] e[t-1-j]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The mean of the readings.
    pub mean: f64,
    /// The weights of past readings, the last first.
    pub ar: Vec<f64>,
    /// The weights of past shocks, the last first.
    pub ma: Vec<f64>,
    /// The variance of the shocks.
    pub variance: f64,
    /// What it expects next.
    pub forecast: f64,
}

impl Fit {
    fn orders(self) -> (usize, usize) {
        match self {
            Self::Ma(q) => (0, usize::from(q)),
            Self::Arma(p, q) => (usize::from(p), usize::from(q)),
        }
    }

    pub(crate) fn check(self) -> Result<(), &'static str> {
        let (p, q) = self.orders();
        let max = usize::from(ORDER_MAX);
        if p > max || q > max || p + q == 0 {
            return Err("orders from 0 to 8, not both 0");
        }
        Ok(())
    }

    /// Fits the model to readings in order of time. `None` where they are too few or do not
    /// determine it (a constant).
    pub fn fit(self, points: &[(i64, f64)]) -> Option<Model> {
        let last = &points[points.len().saturating_sub(POINTS_MAX)..];
        self.fit_values(last.iter().map(|(_, value)| *value).collect()).map(|fitted| fitted.model)
    }

    fn fit_values(self, values: Vec<f64>) -> Option<Fitted> {
        let (p, q) = self.orders();
        let n = values.len();
        // Long enough that the shocks are white, short enough that it is determined.
        let long = (p.max(q) + 4).max((n as f64).ln().powi(2) as usize).min(32).min(n / 8);
        if n < 10 * (p + q + 1) || long <= p.max(q) {
            return None;
        }
        let mean = values.iter().map(|v| v / n as f64).sum::<f64>();
        let series: Vec<f64> = values.iter().map(|v| v - mean).collect();
        let first = regress(&series, &[], long, 0, long)?;
        let mut shocks = residuals(&series, &first, long, 0);
        let mut weights = regress(&series, &shocks, p, q, long + q)?;
        let refined = residuals(&series, &weights, p, q);
        // The second pass, where its shocks did not run away (a moving average beyond inversion).
        let energy = |e: &[f64]| e.iter().map(|v| v * v).sum::<f64>();
        if energy(&refined) <= 1.5 * energy(&shocks) {
            if let Some(again) = regress(&series, &refined, p, q, long + q) {
                weights = again;
            }
            shocks = refined;
        }
        let after = residuals(&series, &weights, p, q);
        if energy(&after) <= 1.5 * energy(&shocks) {
            shocks = after;
        }
        let forecast = mean + predict(&weights, p, &series, &shocks, n);
        let variance = energy(&shocks[long..]) / (n - long) as f64;
        let sound = forecast.is_finite() && variance.is_finite();
        let (ar, ma) = (weights[..p].to_vec(), weights[p..].to_vec());
        sound.then_some(Fitted {
            model: Model { mean, ar, ma, variance, forecast },
            series,
            shocks,
        })
    }
}

/// A model with what it was fitted to, less its mean, and the shocks that it sees there.
struct Fitted {
    model: Model,
    series: Vec<f64>,
    shocks: Vec<f64>,
}

/// What the weights say about place `t` from the places before it.
fn predict(weights: &[f64], p: usize, series: &[f64], shocks: &[f64], t: usize) -> f64 {
    let past = |of: &[f64], lag: usize| if lag <= t { of[t - lag] } else { 0.0 };
    let ar = weights[..p].iter().enumerate().map(|(i, w)| w * past(series, i + 1));
    let ma = weights[p..].iter().enumerate().map(|(j, w)| w * past(shocks, j + 1));
    ar.sum::<f64>() + ma.sum::<f64>()
}

fn residuals(series: &[f64], weights: &[f64], p: usize, q: usize) -> Vec<f64> {
    debug_assert_eq!(weights.len(), p + q);
    let mut shocks = Vec::with_capacity(series.len());
    for t in 0..series.len() {
        let expected = predict(weights, p, series, &shocks, t);
        shocks.push(series[t] - expected);
    }
    shocks
}

/// Least squares of the series on p of its own lags and q lags of the shocks, from place `from`.
fn regress(series: &[f64], shocks: &[f64], p: usize, q: usize, from: usize) -> Option<Vec<f64>> {
    let width = p + q;
    let mut normal = vec![0.0; width * width];
    let mut right = vec![0.0; width];
    let mut row = vec![0.0; width];
    for t in from..series.len() {
        (0..p).for_each(|i| row[i] = series[t - 1 - i]);
        (0..q).for_each(|j| row[p + j] = shocks[t - 1 - j]);
        for a in 0..width {
            right[a] += row[a] * series[t];
            for b in 0..=a {
                normal[a * width + b] += row[a] * row[b];
            }
        }
    }
    solve(&mut normal, &mut right, width)?;
    Some(right)
}

/// Solves a symmetric positive system by Cholesky's decomposition, in place; only the lower triangle
/// is read. `None` when it is singular.
fn solve(matrix: &mut [f64], right: &mut [f64], width: usize) -> Option<()> {
    let scale = (0..width).map(|i| matrix[i * width + i]).fold(0.0, f64::max);
    for a in 0..width {
        for b in 0..=a {
            let known: f64 = (0..b).map(|k| matrix[a * width + k] * matrix[b * width + k]).sum();
            let left = matrix[a * width + b] - known;
            if a == b {
                let positive = left > scale * 1e-12 && left.is_finite();
                matrix[a * width + a] = positive.then(|| left.sqrt())?;
            } else {
                matrix[a * width + b] = left / matrix[b * width + b];
            }
        }
    }
    for a in 0..width {
        let known: f64 = (0..a).map(|k| matrix[a * width + k] * right[k]).sum();
        right[a] = (right[a] - known) / matrix[a * width + a];
    }
    for a in (0..width).rev() {
        let known: f64 = (a + 1..width).map(|k| matrix[k * width + a] * right[k]).sum();
        right[a] = (right[a] - known) / matrix[a * width + a];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shocks that look random: sums of hashed uniforms, variance 1.
    fn shock(i: u64) -> f64 {
        let uniform = |k: u64| {
            let mixed = (i * 12 + k).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(uniform).sum::<f64>() - 6.0
    }

    pub(super) fn simulate(mean: f64, ar: &[f64], ma: &[f64], n: usize) -> Vec<(i64, f64)> {
        let (mut series, mut shocks) = (Vec::new(), Vec::new());
        let weights: Vec<f64> = ar.iter().chain(ma).copied().collect();
        for t in 0..n {
            let value = predict(&weights, ar.len(), &series, &shocks, t) + shock(t as u64);
            series.push(value);
            shocks.push(shock(t as u64));
        }
        series.iter().enumerate().map(|(t, v)| (t as i64, v + mean)).collect()
    }

    fn close(found: &[f64], expected: &[f64], within: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < within, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn the_weights_of_a_simulated_model_are_found_again() {
        let model = Fit::Arma(2, 1).fit(&simulate(100.0, &[0.6, -0.3], &[0.4], 4000)).unwrap();
        close(&model.ar, &[0.6, -0.3], 0.08);
        close(&model.ma, &[0.4], 0.08);
        close(&[model.variance], &[1.0], 0.08);
        let model = Fit::Ma(2).fit(&simulate(-5.0, &[], &[0.5, 0.3], 4000)).unwrap();
        close(&model.ma, &[0.5, 0.3], 0.06);
        close(&[model.mean], &[-5.0], 0.15);
    }

    #[test]
    fn too_few_readings_or_a_constant_determine_no_model() {
        assert_eq!(Fit::Arma(1, 1).fit(&simulate(0.0, &[0.5], &[], 20)), None);
        let constant: Vec<_> = (0..500).map(|t| (t, 7.0)).collect();
        assert_eq!(Fit::Arma(1, 1).fit(&constant), None);
        assert_eq!(Fit::Ma(1).fit(&[]), None);
    }

    #[test]
    fn the_forecast_beats_the_mean_on_a_persistent_series() {
        let points = simulate(50.0, &[0.9], &[], 3000);
        let (mut by_model, mut by_mean) = (0.0, 0.0);
        for n in 2800..2999 {
            let model = Fit::Arma(1, 0).fit(&points[n - 500..n]).unwrap();
            by_model += (points[n].1 - model.forecast).powi(2);
            by_mean += (points[n].1 - model.mean).powi(2);
        }
        assert!(by_model < by_mean * 0.5, "{by_model} {by_mean}");
    }
}
