//! Distance from level, trend and season (additive Holt-Winters with a damped trend).

use serde::{Deserialize, Serialize};

use super::Seen;
use super::score::{Scores, Scoring, check_share, seen};

/// The longest season in readings: a week of five-minute steps.
pub const SEASON_MAX: usize = 2016;

/// Parameters of `holt_winters`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoltWinters {
    /// How fast the level follows.
    pub level: f64,
    /// How fast the trend follows.
    pub trend: f64,
    /// How fast the season follows.
    pub season: f64,
    /// The length of a season in readings, up to 2016; 0 for none.
    pub season_len: usize,
    /// The share of the newest reading in the deviation.
    pub alpha: f64,
    /// When to speak.
    pub scoring: Scoring,
}

impl Default for HoltWinters {
    fn default() -> Self {
        Self {
            level: 0.2,
            trend: 0.01,
            season: 0.1,
            season_len: 0,
            alpha: 0.01,
            scoring: Scoring::default(),
        }
    }
}

impl HoltWinters {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.season_len > SEASON_MAX || self.season_len == 1 {
            return Err(("season_len", "0, or 2 to 2016"));
        }
        check_share("level", self.level)?;
        check_share("trend", self.trend)?;
        check_share("season", self.season)?;
        check_share("alpha", self.alpha)?;
        self.scoring.check()
    }
}

/// What of the trend is left after a step: a straight line for ever is never a forecast.
const DAMPING: f64 = 0.98;

/// The state of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    readings: u64,
    level: f64,
    trend: f64,
    season: Vec<f64>,
    scores: Scores,
}

impl State {
    pub(super) fn new(of: &HoltWinters) -> Self {
        Self {
            readings: 0,
            level: 0.0,
            trend: 0.0,
            season: vec![0.0; of.season_len],
            scores: Scores::default(),
        }
    }

    pub(super) fn see(&mut self, of: &HoltWinters, value: f64) -> Option<Seen> {
        let at = self.readings;
        self.readings += 1;
        if at == 0 {
            self.level = value;
        }
        let len = of.season_len as u64;
        if at < len {
            return self.first_season(at as usize, value);
        }
        let place = if len == 0 { 0 } else { (at % len) as usize };
        let season = self.season.get(place).copied().unwrap_or(0.0);
        let trend = DAMPING * self.trend;
        let forecast = self.level + trend + season;
        let (said, learned) = self.scores.judge(&of.scoring, of.alpha, value - forecast, value);
        self.level += trend + of.level * learned;
        self.trend = trend + of.level * of.trend * learned;
        if let Some(season) = self.season.get_mut(place) {
            *season += of.season * (1.0 - of.level) * learned;
        }
        if !(self.level.is_finite() && self.trend.is_finite()) {
            (self.level, self.trend) = (value, 0.0);
        }
        seen(said, forecast.is_finite().then_some(forecast))
    }

    pub(super) fn last_score(&self) -> f64 {
        self.scores.last()
    }

    /// The level is the mean of the first season, the season what is above and below it.
    fn first_season(&mut self, at: usize, value: f64) -> Option<Seen> {
        self.season[at] = value;
        if at + 1 == self.season.len() {
            let len = self.season.len() as f64;
            self.level = self.season.iter().map(|v| v / len).sum();
            self.season.iter_mut().for_each(|v| *v -= self.level);
        }
        None
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.season.len() * 8
    }

    pub(super) fn is_of(&self, of: &HoltWinters) -> bool {
        self.season.len() == of.season_len
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlarmKind;
    use super::*;

    #[test]
    fn a_season_is_learned_and_a_value_of_the_wrong_hour_is_seen() {
        let of = HoltWinters { season_len: 24, ..HoltWinters::default() };
        let mut state = State::new(&of);
        let mut raised = Vec::new();
        for i in 0..24 * 40u64 {
            let hour = i % 24;
            let jitter = ((i * 7919) % 101) as f64 / 101.0;
            let day = if (8..18).contains(&hour) { 100.0 } else { 10.0 };
            // Night value by day, on day 30.
            let value = if i == 24 * 30 + 12 { 10.0 } else { day + jitter };
            if state.see(&of, value).is_some_and(|s| s.kind == AlarmKind::Raised) {
                raised.push(i);
            }
        }
        assert_eq!(raised, [24 * 30 + 12]);
    }

    #[test]
    fn a_steady_climb_is_normal_and_a_step_in_it_is_not() {
        let of = HoltWinters::default();
        let mut state = State::new(&of);
        let mut raised = Vec::new();
        for i in 0..2000u64 {
            let jitter = ((i * 7919) % 101) as f64 / 101.0;
            let step = if i >= 1500 { 20.0 } else { 0.0 };
            if state
                .see(&of, i as f64 * 0.1 + jitter + step)
                .is_some_and(|s| s.kind == AlarmKind::Raised)
            {
                raised.push(i);
            }
        }
        assert_eq!(raised, [1500]);
    }
}
