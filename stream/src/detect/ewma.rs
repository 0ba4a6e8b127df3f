//! Distance from a decayed mean.

use serde::{Deserialize, Serialize};

use super::Seen;
use super::score::{Scores, Scoring, check_share, seen};

/// Parameters of `ewma_z`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EwmaZ {
    /// The share of the newest reading in mean and variance. Smaller remembers longer.
    pub alpha: f64,
    /// When to speak.
    pub scoring: Scoring,
}

impl Default for EwmaZ {
    fn default() -> Self {
        Self { alpha: 0.01, scoring: Scoring::default() }
    }
}

impl EwmaZ {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        check_share("alpha", self.alpha)?;
        self.scoring.check()
    }
}

/// The state of one sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    mean: f64,
    readings: u64,
    scores: Scores,
}

impl State {
    pub(super) fn see(&mut self, of: &EwmaZ, value: f64) -> Option<Seen> {
        self.readings += 1;
        if self.readings == 1 {
            self.mean = value;
            return None;
        }
        let expected = self.mean;
        let (said, learned) = self.scores.judge(&of.scoring, of.alpha, value - expected, expected);
        self.mean += of.alpha.max(1.0 / self.readings as f64) * learned;
        seen(said, Some(expected))
    }

    pub(super) fn last_score(&self) -> f64 {
        self.scores.last()
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlarmKind;
    use super::*;

    fn noise(i: u64) -> f64 {
        // A fixed sequence that looks random: the top bits of a multiplicative hash.
        (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    }

    fn alarms(of: &EwmaZ, values: impl Iterator<Item = f64>) -> Vec<(usize, AlarmKind)> {
        let mut state = State::default();
        let seen = values.map(|v| state.see(of, v)).collect::<Vec<_>>();
        seen.iter().enumerate().filter_map(|(i, s)| s.map(|s| (i, s.kind))).collect()
    }

    #[test]
    fn a_spike_raises_one_alarm_and_normal_readings_clear_it() {
        let values = (0..1000).map(|i| if i == 500 { 60.0 } else { 50.0 + noise(i) });
        let found = alarms(&EwmaZ::default(), values);
        assert_eq!(found, [(500, AlarmKind::Raised), (501, AlarmKind::Cleared)]);
    }

    #[test]
    fn nothing_is_said_during_warm_up() {
        let values = (0..150).map(|i| if i == 100 { 60.0 } else { 50.0 + noise(i) });
        assert_eq!(alarms(&EwmaZ::default(), values), []);
    }

    #[test]
    fn alarms_that_follow_an_alarm_are_suppressed() {
        let spikes = |i: u64| (500..590).contains(&i) && i.is_multiple_of(10);
        let values = (0..1000).map(|i| if spikes(i) { 60.0 } else { 50.0 + noise(i) });
        let raised = |found: &[(usize, AlarmKind)]| {
            found.iter().filter(|(_, kind)| *kind == AlarmKind::Raised).count()
        };
        assert_eq!(raised(&alarms(&EwmaZ::default(), values.clone())), 1);
        let mut of = EwmaZ::default();
        of.scoring.suppress = 0;
        assert!(raised(&alarms(&of, values)) > 5);
    }

    #[test]
    fn a_constant_sensor_that_rounds_is_normal_and_one_that_jumps_is_not() {
        let steady = (0..500).map(|i| 0.1 * 3.0 + if i % 2 == 0 { 1e-17 } else { 0.0 });
        assert_eq!(alarms(&EwmaZ::default(), steady), []);
        let jump = (0..500).map(|i| if i < 400 { 7.0 } else { 8.0 });
        assert_eq!(alarms(&EwmaZ::default(), jump)[0], (400, AlarmKind::Raised));
    }
}
