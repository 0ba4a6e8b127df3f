//! Windows of a number of readings: by arrival, so neither watermark nor lateness touch them.

use serde::{Deserialize, Serialize};

use crate::aggregate::Accumulator;

/// The open count window of one sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CountState {
    /// How many windows were filled before.
    pub filled: u64,
    pub accumulator: Accumulator,
    /// The least and the greatest event time in it.
    pub times: Option<(i64, i64)>,
}

impl CountState {
    /// Takes the time of a reading that the accumulator takes too.
    pub fn stretch(&mut self, time: i64) {
        let (least, greatest) = self.times.unwrap_or((time, time));
        self.times = Some((least.min(time), greatest.max(time)));
    }

    /// Begins the next window; gives the number and the times of the one that is full.
    pub fn next(&mut self) -> (u64, (i64, i64), Accumulator) {
        let number = self.filled;
        self.filled += 1;
        let times = self.times.take().unwrap_or_default();
        (number, times, std::mem::take(&mut self.accumulator))
    }
}
