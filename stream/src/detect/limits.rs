//! Detectors that know what is normal beforehand: limits, no change, no reading.

use serde::{Deserialize, Serialize};

use super::{AlarmKind, Seen};
use crate::span::Span;

/// Parameters of `threshold`; at least one limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Alarm above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// Alarm below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// How far back inside of the limit a value must be before the alarm ends.
    #[serde(default)]
    pub hysteresis: f64,
}

impl Threshold {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let finite = |limit: Option<f64>| limit.is_none_or(f64::is_finite);
        match (self.above, self.below) {
            (None, None) => Err(("above", "give above, below or both")),
            (above, below) if !finite(above) || !finite(below) => Err(("above", "finite numbers")),
            (Some(above), Some(below)) if below > above => Err(("below", "at most above")),
            _ if self.hysteresis >= 0.0 && self.hysteresis.is_finite() => Ok(()),
            _ => Err(("hysteresis", "a number from 0")),
        }
    }
}

/// Whether a sensor is outside of its limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outside(bool);

impl Outside {
    pub(super) fn see(&mut self, of: &Threshold, value: f64) -> Option<Seen> {
        let margin = if self.0 { of.hysteresis } else { 0.0 };
        let over = of.above.map_or(f64::NEG_INFINITY, |above| value - (above - margin));
        let under = of.below.map_or(f64::NEG_INFINITY, |below| (below + margin) - value);
        let score = over.max(under);
        let outside = score > 0.0;
        let changed = outside != self.0;
        self.0 = outside;
        let kind = if outside { AlarmKind::Raised } else { AlarmKind::Cleared };
        changed.then_some(Seen { kind, expected: None, score })
    }
}

/// Parameters of `flatline`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flatline {
    /// Alarm when a value stays for so long, by event time.
    pub after: Span,
    /// How far it may move and count as unchanged.
    pub tolerance: f64,
}

impl Default for Flatline {
    fn default() -> Self {
        Self { after: Span::from_millis(600_000), tolerance: 0.0 }
    }
}

impl Flatline {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.after.millis() == 0 {
            return Err(("after", "above zero"));
        }
        if self.tolerance >= 0.0 && self.tolerance.is_finite() {
            Ok(())
        } else {
            Err(("tolerance", "a number from 0"))
        }
    }
}

/// Since when a sensor shows the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flat {
    /// The value it stays at, and since when.
    since: Option<(f64, i64)>,
    alarmed: bool,
}

impl Flat {
    pub(super) fn see(&mut self, of: &Flatline, time: i64, value: f64) -> Option<Seen> {
        let unchanged = self.since.filter(|(stays, _)| (value - stays).abs() <= of.tolerance);
        let Some((expected, since)) = unchanged else {
            self.since = Some((value, time));
            let cleared = std::mem::take(&mut self.alarmed);
            return cleared.then_some(Seen {
                kind: AlarmKind::Cleared,
                expected: None,
                score: 0.0,
            });
        };
        let score = (time - since) as f64 / of.after.millis() as f64;
        if score < 1.0 || self.alarmed {
            return None;
        }
        self.alarmed = true;
        Some(Seen { kind: AlarmKind::Raised, expected: Some(expected), score })
    }
}

/// Parameters of `missing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Missing {
    /// Alarm when nothing came for so long, by the clock of the records.
    pub after: Span,
}

impl Default for Missing {
    fn default() -> Self {
        Self { after: Span::from_millis(300_000) }
    }
}

impl Missing {
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.after.millis() == 0 { Err(("after", "above zero")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_crossed_once_and_left_with_hysteresis() {
        let of = Threshold { above: Some(80.0), below: Some(10.0), hysteresis: 2.0 };
        let mut state = Outside::default();
        let values = [50.0, 80.0, 81.0, 90.0, 79.0, 77.9, 9.0, 11.0, 12.1];
        let found: Vec<_> = values.map(|v| state.see(&of, v).map(|s| s.kind)).to_vec();
        let (raised, cleared) = (Some(AlarmKind::Raised), Some(AlarmKind::Cleared));
        assert_eq!(found, [None, None, raised, None, None, cleared, raised, None, cleared]);
    }

    #[test]
    fn no_change_for_long_enough_is_a_flatline_until_it_changes() {
        let of = Flatline { after: Span::from_millis(100), tolerance: 0.5 };
        let mut state = Flat::default();
        let readings = [(0, 5.0), (50, 5.4), (99, 5.0), (100, 4.6), (150, 5.0), (160, 7.0)];
        let found: Vec<_> = readings.map(|(t, v)| state.see(&of, t, v).map(|s| s.kind)).to_vec();
        let (raised, cleared) = (Some(AlarmKind::Raised), Some(AlarmKind::Cleared));
        assert_eq!(found, [None, None, None, raised, None, cleared]);
    }
}
