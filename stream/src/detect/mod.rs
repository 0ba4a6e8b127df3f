//! What watches a sensor: constant state, constant work per reading.
//!
//! ```text
//!   ewma_z        distance from a decayed mean, in decayed standard deviations
//!   ar            distance from what the last p readings forecast (recursive least squares)
//!   holt_winters  distance from level + trend + season
//!   threshold     outside of fixed limits
//!   flatline      no change for too long
//!   missing       no reading for too long, by the clock of the records
//! ```
//!
//! The first three share one scorer: warm-up, clipping of what an outlier teaches, and suppression
//! of the alarms that follow an alarm. Readings older than the latest of their sensor are not seen.

mod ar;
mod ewma;
mod holt_winters;
mod limits;
mod score;

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use self::ar::Ar;
pub use self::ewma::EwmaZ;
pub use self::holt_winters::HoltWinters;
pub use self::limits::{Flatline, Missing, Threshold};
pub use self::score::Scoring;

/// A detector as the definition asks for it: its name alone, or `{"name": {parameters}}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Distance from the decayed mean.
    EwmaZ(EwmaZ),
    /// Distance from an autoregressive forecast.
    Ar(Ar),
    /// Distance from level, trend and season.
    HoltWinters(HoltWinters),
    /// Fixed limits.
    Threshold(Threshold),
    /// No change.
    Flatline(Flatline),
    /// No reading.
    Missing(Missing),
}

/// Whether an alarm begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlarmKind {
    /// It begins.
    Raised,
    /// The sensor is normal again.
    Cleared,
}

/// What a detector says about a reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Whether an alarm begins or ends.
    pub kind: AlarmKind,
    /// What was expected instead, if it forecasts.
    pub expected: Option<f64>,
    /// How far from normal, in the detector's own measure.
    pub score: f64,
}

/// The state of one detector of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DetectorState {
    /// Of [`EwmaZ`].
    EwmaZ(ewma::State),
    /// Of [`Ar`].
    Ar(Box<ar::State>),
    /// Of [`HoltWinters`].
    HoltWinters(Box<holt_winters::State>),
    /// Of [`Threshold`].
    Threshold(limits::Outside),
    /// Of [`Flatline`].
    Flatline(limits::Flat),
    /// Of [`Missing`]: whether it is.
    Missing(bool),
}

impl Detector {
    /// Its name in definitions.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EwmaZ(_) => "ewma_z",
            Self::Ar(_) => "ar",
            Self::HoltWinters(_) => "holt_winters",
            Self::Threshold(_) => "threshold",
            Self::Flatline(_) => "flatline",
            Self::Missing(_) => "missing",
        }
    }

    /// The parameter that is out of range, and what it may be.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        match self {
            Self::EwmaZ(of) => of.check(),
            Self::Ar(of) => of.check(),
            Self::HoltWinters(of) => of.check(),
            Self::Threshold(of) => of.check(),
            Self::Flatline(of) => of.check(),
            Self::Missing(of) => of.check(),
        }
    }

    /// The silence after which a sensor is missing, if this detector watches for that.
    pub(crate) fn missing_after(&self) -> Option<i64> {
        match self {
            Self::Missing(of) => Some(of.after.millis()),
            _ => None,
        }
    }

    /// The memory of its state.
    pub(crate) fn state_bytes(&self) -> usize {
        DetectorState::new(self).bytes()
    }
}

impl DetectorState {
    /// The state before the first reading.
    pub fn new(detector: &Detector) -> Self {
        match detector {
            Detector::EwmaZ(_) => Self::EwmaZ(ewma::State::default()),
            Detector::Ar(of) => Self::Ar(Box::new(ar::State::new(of))),
            Detector::HoltWinters(of) => Self::HoltWinters(Box::new(holt_winters::State::new(of))),
            Detector::Threshold(_) => Self::Threshold(limits::Outside::default()),
            Detector::Flatline(_) => Self::Flatline(limits::Flat::default()),
            Detector::Missing(_) => Self::Missing(false),
        }
    }

    /// Looks at the next reading.
    pub fn see(&mut self, detector: &Detector, time: i64, value: f64) -> Option<Seen> {
        match (self, detector) {
            (Self::EwmaZ(state), Detector::EwmaZ(of)) => state.see(of, value),
            (Self::Ar(state), Detector::Ar(of)) => state.see(of, value),
            (Self::HoltWinters(state), Detector::HoltWinters(of)) => state.see(of, value),
            (Self::Threshold(state), Detector::Threshold(of)) => state.see(of, value),
            (Self::Flatline(state), Detector::Flatline(of)) => state.see(of, time, value),
            _ => None,
        }
    }

    /// How far the last reading was from normal, for detectors that score each reading.
    pub fn last_score(&self) -> Option<f64> {
        match self {
            Self::EwmaZ(state) => Some(state.last_score()),
            Self::Ar(state) => Some(state.last_score()),
            Self::HoltWinters(state) => Some(state.last_score()),
            _ => None,
        }
    }

    /// A reading came: whether the sensor was missing until now.
    pub(crate) fn is_back(&mut self) -> bool {
        match self {
            Self::Missing(missing) => std::mem::take(missing),
            _ => false,
        }
    }

    /// Nothing came for too long: whether that is new.
    pub(crate) fn is_gone(&mut self) -> bool {
        match self {
            Self::Missing(missing) => !std::mem::replace(missing, true),
            _ => false,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Ar(state) => state.bytes(),
                Self::HoltWinters(state) => state.bytes(),
                _ => 0,
            }
    }

    /// Whether it is a state of this detector (a snapshot comes from a peer).
    pub(crate) fn is_of(&self, detector: &Detector) -> bool {
        match (self, detector) {
            (Self::Ar(state), Detector::Ar(of)) => state.is_of(of),
            (Self::HoltWinters(state), Detector::HoltWinters(of)) => state.is_of(of),
            (Self::EwmaZ(_), Detector::EwmaZ(_))
            | (Self::Threshold(_), Detector::Threshold(_))
            | (Self::Flatline(_), Detector::Flatline(_))
            | (Self::Missing(_), Detector::Missing(_)) => true,
            _ => false,
        }
    }
}

const NAMES: [&str; 6] = ["ewma_z", "ar", "holt_winters", "threshold", "flatline", "missing"];

impl<'de> Deserialize<'de> for Detector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrMap;
        impl<'de> Visitor<'de> for NameOrMap {
            type Value = Detector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "the name of a detector ({}) or {{NAME: {{parameters}}}}",
                    NAMES.join(", ")
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Detector, E> {
                match name {
                    "ewma_z" => Ok(Detector::EwmaZ(EwmaZ::default())),
                    "ar" => Ok(Detector::Ar(Ar::default())),
                    "holt_winters" => Ok(Detector::HoltWinters(HoltWinters::default())),
                    "flatline" => Ok(Detector::Flatline(Flatline::default())),
                    "missing" => Ok(Detector::Missing(Missing::default())),
                    "threshold" => Err(E::custom(
                        "threshold needs a limit: {\"threshold\": {\"above\": 80.0}}, below or both",
                    )),
                    _ => Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Detector, A::Error> {
                let Some(name) = map.next_key::<String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let detector = match name.as_str() {
                    "ewma_z" => Detector::EwmaZ(map.next_value()?),
                    "ar" => Detector::Ar(map.next_value()?),
                    "holt_winters" => Detector::HoltWinters(map.next_value()?),
                    "threshold" => Detector::Threshold(map.next_value()?),
                    "flatline" => Detector::Flatline(map.next_value()?),
                    "missing" => Detector::Missing(map.next_value()?),
                    _ => return Err(de::Error::invalid_value(de::Unexpected::Str(&name), &self)),
                };
                match map.next_key::<String>()? {
                    None => Ok(detector),
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }
        deserializer.deserialize_any(NameOrMap)
    }
}
