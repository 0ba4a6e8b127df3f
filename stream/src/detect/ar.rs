//! Distance from what the last readings forecast: an autoregression learned by recursive least
//! squares with forgetting.
//!
//! Cost: (p + 1)^2 multiplications per reading, p at most [`ORDER_MAX`]. Values are shifted by a
//! decayed mean before they enter, so that the squares inside stay small.

use serde::{Deserialize, Serialize};

use super::Seen;
use super::score::{Scores, Scoring, check_share, seen};

/// The most readings a forecast looks back.
pub const ORDER_MAX: usize = 8;

/// Parameters of `ar`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ar {
    /// How many readings a forecast looks back, 1 to 8.
    pub order: usize,
    /// What a reading counts after the next one, relative to it. Close below 1.
    pub forgetting: f64,
    /// The share of the newest reading in the deviation.
    pub alpha: f64,
    /// When to speak.
    pub scoring: Scoring,
}

impl Default for Ar {
    fn default() -> Self {
        Self { order: 4, forgetting: 0.999, alpha: 0.01, scoring: Scoring::default() }
    }
}

impl Ar {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if !(1..=ORDER_MAX).contains(&self.order) {
            return Err(("order", "1 to 8"));
        }
        if !(0.9..=1.0).contains(&self.forgetting) {
            return Err(("forgetting", "a number from 0.9 to 1"));
        }
        check_share("alpha", self.alpha)?;
        self.scoring.check()
    }
}

/// The state of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Of the first reading; everything else is relative to it.
    origin: f64,
    readings: u64,
    /// The last readings, newest first.
    past: Vec<f64>,
    /// One weight per past reading, and the constant.
    weights: Vec<f64>,
    /// The inverse correlation matrix, row by row.
    inverse: Vec<f64>,
    scores: Scores,
}

/// The inverse correlation before anything is known.
const INITIAL: f64 = 1e3;
/// Forgetting lets the inverse grow where nothing is learned; beyond this it starts again.
const TRACE_MAX: f64 = 1e9;

impl State {
    pub(super) fn new(of: &Ar) -> Self {
        let width = of.order + 1;
        Self {
            origin: 0.0,
            readings: 0,
            past: vec![0.0; of.order],
            // "As the last one" until it knows better.
            weights: (0..width).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect(),
            inverse: identity(width),
            scores: Scores::default(),
        }
    }

    pub(super) fn see(&mut self, of: &Ar, value: f64) -> Option<Seen> {
        self.readings += 1;
        if self.readings == 1 {
            self.origin = value;
        }
        let shifted = value - self.origin;
        let mut said = None;
        if self.readings > of.order as u64 {
            let mut inputs = [1.0; ORDER_MAX + 1];
            let width = of.order + 1;
            inputs[..of.order].copy_from_slice(&self.past);
            let inputs = &inputs[..width];
            let forecast = dot(&self.weights, inputs);
            let forecast = if forecast.is_finite() { forecast } else { self.past[0] };
            let (judged, learned) =
                self.scores.judge(&of.scoring, of.alpha, shifted - forecast, value);
            said = seen(judged, Some(forecast + self.origin));
            self.learn(of.forgetting, inputs, learned);
        }
        self.past.rotate_right(1);
        self.past[0] = shifted;
        said
    }

    pub(super) fn last_score(&self) -> f64 {
        self.scores.last()
    }

    fn learn(&mut self, forgetting: f64, inputs: &[f64], error: f64) {
        let width = inputs.len();
        let mut spread = [0.0; ORDER_MAX + 1];
        for (row, s) in spread[..width].iter_mut().enumerate() {
            *s = dot(&self.inverse[row * width..(row + 1) * width], inputs);
        }
        let spread = &spread[..width];
        let denominator = forgetting + dot(spread, inputs);
        for (weight, s) in self.weights.iter_mut().zip(spread) {
            *weight += s / denominator * error;
        }
        for row in 0..width {
            for column in 0..width {
                let cell = &mut self.inverse[row * width + column];
                *cell = (*cell - spread[row] * spread[column] / denominator) / forgetting;
            }
        }
        let trace: f64 = (0..width).map(|i| self.inverse[i * width + i]).sum();
        let sound = trace > 0.0 && trace < TRACE_MAX && self.weights.iter().all(|w| w.is_finite());
        if !sound {
            self.inverse = identity(width);
            if !self.weights.iter().all(|w| w.is_finite()) {
                self.weights.iter_mut().enumerate().for_each(|(i, w)| *w = f64::from(i == 0));
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + (self.past.len() + self.weights.len() + self.inverse.len()) * 8
    }

    pub(super) fn is_of(&self, of: &Ar) -> bool {
        let width = of.order + 1;
        self.past.len() == of.order
            && self.weights.len() == width
            && self.inverse.len() == width * width
    }
}

fn identity(width: usize) -> Vec<f64> {
    let cell = |i: usize| if i.is_multiple_of(width + 1) { INITIAL } else { 0.0 };
    (0..width * width).map(cell).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::super::AlarmKind;
    use super::*;

    #[test]
    fn a_wave_is_learned_and_a_break_in_it_is_seen() {
        let of = Ar::default();
        let mut state = State::new(&of);
        let wave = |i: u64| 1000.0 + (i as f64 * 0.3).sin() * 10.0;
        let mut raised = Vec::new();
        for i in 0..2000 {
            // Inside of what the wave reaches, so that no limit would notice.
            let value = if i == 1500 { wave(i + 5) } else { wave(i) };
            if state.see(&of, value).is_some_and(|s| s.kind == AlarmKind::Raised) {
                raised.push(i);
            }
        }
        assert_eq!(raised, [1500]);
    }

    #[test]
    fn no_values_make_it_forget_how_to_count() {
        let of = Ar::default();
        let mut state = State::new(&of);
        for i in 0..20_000u64 {
            let value = match i % 5000 {
                4990 => 1e300,
                4995 => -1e300,
                _ => 5.0,
            };
            state.see(&of, value);
            assert!(state.weights.iter().all(|w| w.is_finite()));
        }
    }
}
