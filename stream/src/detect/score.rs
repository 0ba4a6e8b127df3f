//! From distances to alarms: how far is far, when to speak, when to be quiet.
//!
//! A distance is measured in decayed standard deviations of the distances before it. What an outlier
//! teaches is clipped, so that one wild reading neither hides the next nor widens normal for hours.

use serde::{Deserialize, Serialize};

use super::{AlarmKind, Seen};

/// What the scoring detectors have in common.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scoring {
    /// Alarm beyond so many standard deviations. Above 1.
    pub threshold: f64,
    /// No alarm within so many first readings: until then "normal" is not known.
    pub warm_up: u32,
    /// No further alarm within so many readings after one.
    pub suppress: u32,
}

impl Default for Scoring {
    fn default() -> Self {
        Self { threshold: 5.0, warm_up: 200, suppress: 200 }
    }
}

impl Scoring {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.threshold > 1.0 && self.threshold.is_finite() {
            Ok(())
        } else {
            Err(("threshold", "a number above 1"))
        }
    }
}

/// The scoring state of one sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scores {
    seen: u64,
    variance: f64,
    /// Readings left in which no alarm is given.
    quiet: u32,
    alarmed: bool,
    last: f64,
}

/// What an outlier teaches at most, in thresholds. With one, a sensor whose normal becomes another is
/// alarmed about again and again, because it is learned too slowly.
const TEACHES_MAX: f64 = 4.0;
/// Distances below this part of the value's size are rounding, not news.
const RELATIVE_FLOOR: f64 = 1e-9;

impl Scores {
    /// Judges a distance from normal; returns what to say, and the distance to learn from.
    pub fn judge(
        &mut self,
        scoring: &Scoring,
        alpha: f64,
        distance: f64,
        size: f64,
    ) -> (Option<(AlarmKind, f64)>, f64) {
        if !distance.is_finite() {
            // Values near the greatest double: nothing can be learned from their difference.
            return (None, 0.0);
        }
        self.seen += 1;
        let deviation =
            self.variance.sqrt().max(size.abs() * RELATIVE_FLOOR).max(f64::MIN_POSITIVE);
        let score = distance / deviation;
        let warm = self.seen > u64::from(scoring.warm_up);
        self.last = if warm { score } else { 0.0 };
        let said = self.decide(scoring, warm, score);
        // While warm, an outlier teaches no more than a few times what is just short of an alarm;
        // before, everything teaches, with equal weights until there are enough for the decay.
        let most = TEACHES_MAX * scoring.threshold * deviation;
        let learned = if warm { distance.clamp(-most, most) } else { distance };
        let weight = alpha.max(1.0 / self.seen as f64);
        let variance = self.variance + weight * (learned * learned - self.variance);
        self.variance = if variance.is_finite() { variance } else { self.variance };
        (said, learned)
    }

    /// The score of the last reading, 0 during warm-up.
    pub fn last(&self) -> f64 {
        self.last
    }

    fn decide(&mut self, scoring: &Scoring, warm: bool, score: f64) -> Option<(AlarmKind, f64)> {
        let far = score.abs() > scoring.threshold;
        let was_quiet = self.quiet > 0;
        self.quiet = self.quiet.saturating_sub(1);
        if warm && far && !was_quiet && !self.alarmed {
            self.alarmed = true;
            self.quiet = scoring.suppress;
            return Some((AlarmKind::Raised, score));
        }
        if self.alarmed && score.abs() < scoring.threshold / 2.0 {
            self.alarmed = false;
            return Some((AlarmKind::Cleared, score));
        }
        None
    }
}

pub(super) fn seen(said: Option<(AlarmKind, f64)>, expected: Option<f64>) -> Option<Seen> {
    said.map(|(kind, score)| Seen { kind, expected, score })
}

/// Refuses a share outside of 0 (exclusive) to 1.
pub(super) fn check_share(
    name: &'static str,
    share: f64,
) -> Result<(), (&'static str, &'static str)> {
    if share > 0.0 && share <= 1.0 { Ok(()) } else { Err((name, "a number above 0 and at most 1")) }
}
