//! Everything a partition keeps of one sensor.

use serde::{Deserialize, Serialize};

use crate::detect::DetectorState;
use crate::plan::Plan;
use crate::window::{CountState, Sessions, Slices};

/// One sensor. What a reading touches lies together at the front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct Sensor {
    pub id: SensorId,
    /// Time and value of the latest reading.
    pub latest: (i64, f64),
    /// The batch in which `latest` changed last; says whether effects name the sensor already.
    #[serde(skip)]
    pub mark: u64,
    pub slices: Slices,
    /// One per count window of the plan.
    pub counts: Vec<CountState>,
    /// One per session window of the plan.
    pub sessions: Vec<Sessions>,
    /// One per detector of the plan.
    pub detectors: Vec<DetectorState>,
}

impl Sensor {
    pub fn new(id: &[u8], plan: &Plan) -> Self {
        Self {
            id: SensorId::new(id),
            latest: (i64::MIN, 0.0),
            mark: 0,
            slices: Slices::default(),
            counts: vec![CountState::default(); plan.count_windows.len()],
            sessions: vec![Sessions::default(); plan.session_windows.len()],
            detectors: plan.definition().detectors.iter().map(DetectorState::new).collect(),
        }
    }

    /// The heap memory behind it.
    pub fn heap_bytes(&self) -> usize {
        self.id.heap_bytes()
            + self.slices.heap_bytes()
            + self.counts.len() * size_of::<CountState>()
            + self.counts.iter().map(|c| c.accumulator.heap_bytes()).sum::<usize>()
            + self.sessions.len() * size_of::<Sessions>()
            + self.sessions.iter().map(Sessions::heap_bytes).sum::<usize>()
            + self.detectors.iter().map(DetectorState::bytes).sum::<usize>()
    }

    /// Whether nothing of it waits for more readings or for the watermark.
    pub fn is_at_rest(&self) -> bool {
        self.slices.is_empty()
            && self.sessions.iter().all(Sessions::is_empty)
            && self.counts.iter().all(|c| c.accumulator.count() == 0)
    }

    /// Whether it fits the plan and the order inside holds (a snapshot comes from a peer).
    pub fn is_sound(&self, plan: &Plan) -> bool {
        let detectors = &plan.definition().detectors;
        self.counts.len() == plan.count_windows.len()
            && self.sessions.len() == plan.session_windows.len()
            && self.detectors.len() == detectors.len()
            && self.detectors.iter().zip(detectors).all(|(state, of)| state.is_of(of))
            && self.slices.is_sound()
            && self.sessions.iter().all(Sessions::is_sound)
            && (1..=crate::reading::SENSOR_LEN_MAX).contains(&self.id.as_bytes().len())
    }
}

/// An id; short ones lie in place, so that comparing them costs no further wait for memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SensorId {
    Short { len: u8, bytes: [u8; SHORT_LEN_MAX] },
    Long(Box<[u8]>),
}

const SHORT_LEN_MAX: usize = 22;

impl SensorId {
    pub fn new(id: &[u8]) -> Self {
        let mut bytes = [0; SHORT_LEN_MAX];
        match bytes.get_mut(..id.len()) {
            Some(place) => {
                place.copy_from_slice(id);
                Self::Short { len: id.len() as u8, bytes }
            }
            None => Self::Long(id.into()),
        }
    }

    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }

    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Short { .. } => 0,
            Self::Long(bytes) => bytes.len(),
        }
    }
}

impl Serialize for SensorId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for SensorId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Ok(Self::new(&bytes))
    }
}
