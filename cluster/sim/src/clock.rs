//! The clocks of one node: a monotonic one that runs a little fast or slow, and a wall clock that is
//! wrong by an offset and may be set.
//!
//! Always holds: the monotonic clock never runs backwards. The wall clock may.

use crate::queue::{MS, Time};
use crate::rng::Rng;

/// What the wall clocks show at the start of a run, in milliseconds since 1970.
pub const WALL_START_MS: u64 = 1_700_000_000_000;

/// The clocks of one node.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Where the monotonic clock started: processes do not share an origin.
    mono_origin: u64,
    /// Rate against true time, in parts per million.
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl Clock {
    /// Clocks within these limits.
    pub fn new(rng: &mut Rng, drift_ppm_max: u64, wall_offset_ms_max: u64) -> Self {
        Self {
            mono_origin: rng.below(1 << 40),
            drift_ppm: symmetric(rng, drift_ppm_max),
            wall_offset_ms: symmetric(rng, wall_offset_ms_max),
        }
    }

    /// Nanoseconds of the monotonic clock at true time `at`.
    pub fn mono(&self, at: Time) -> u64 {
        self.mono_origin + self.stretched(at)
    }

    /// The true time at which the monotonic clock will have reached `mono`.
    pub fn true_time_of(&self, mono: u64) -> Time {
        let elapsed = i128::from(mono.saturating_sub(self.mono_origin));
        let at = (elapsed * 1_000_000) / i128::from(1_000_000 + self.drift_ppm);
        // Rounding must not wake a node a nanosecond too early for ever.
        (at as u64).saturating_add(1)
    }

    /// Milliseconds of the wall clock at true time `at`.
    pub fn wall_ms(&self, at: Time) -> u64 {
        (WALL_START_MS + self.stretched(at) / MS).saturating_add_signed(self.wall_offset_ms)
    }

    /// Sets the wall clock wrong by something new within the limit.
    pub fn step_wall(&mut self, rng: &mut Rng, wall_offset_ms_max: u64) {
        self.wall_offset_ms = symmetric(rng, wall_offset_ms_max);
    }

    fn stretched(&self, at: Time) -> u64 {
        let at = i128::from(at);
        (at + at * i128::from(self.drift_ppm) / 1_000_000) as u64
    }
}

fn symmetric(rng: &mut Rng, max: u64) -> i64 {
    rng.between(0, 2 * max) as i64 - max as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::SECOND;

    #[test]
    fn a_wakeup_computed_from_the_monotonic_clock_is_never_too_early() {
        let mut rng = Rng::new(3);
        for _ in 0..200 {
            let clock = Clock::new(&mut rng, 500, 100);
            let now = rng.below(1_000 * SECOND);
            let wanted = clock.mono(now) + rng.below(10 * SECOND);
            let at = clock.true_time_of(wanted);
            assert!(clock.mono(at) >= wanted);
            assert!(clock.mono(at) - wanted < 10);
        }
    }
}
