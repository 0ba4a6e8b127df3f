//! Time as an argument: read once per turn by whoever drives the node, and nothing else is time.

use serde::{Deserialize, Serialize};

/// Nanoseconds since an arbitrary start of this process; never runs backwards.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// The far end: never.
    pub const MAX: Self = Self(u64::MAX);

    /// So many milliseconds later.
    #[must_use]
    pub const fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// So many microseconds later.
    #[must_use]
    pub const fn after_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us.saturating_mul(1_000)))
    }

    /// So many nanoseconds later.
    #[must_use]
    pub const fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`; 0 if that is later.
    #[must_use]
    pub const fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole milliseconds since `earlier`; 0 if that is later.
    #[must_use]
    pub const fn since_ms(self, earlier: Self) -> u64 {
        self.since_ns(earlier) / 1_000_000
    }
}

/// One reading of the clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers and deadlines within this node.
    pub mono: Mono,
    /// Milliseconds since 1970-01-01 UTC as this node believes; may be wrong and may jump.
    pub wall_ms: u64,
}

/// The hybrid clock that expiry is judged against: milliseconds that travel with every message, so
/// that an item once seen past its end stays so on whichever copy serves next.
///
/// It goes on at the pace of the monotonic clock, is lifted to the wall clock and to the clocks of
/// others, and never runs backwards. A wall clock set back, or that of a node that took over from
/// one whose clock was ahead, therefore does not stop it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TravellingClock {
    base_ms: u64,
    base_at: Mono,
}

impl TravellingClock {
    /// Its reading.
    #[must_use]
    pub fn read(&self, now: Now) -> u64 {
        now.wall_ms.max(self.base_ms.saturating_add(now.mono.since_ms(self.base_at)))
    }

    /// Takes a reading that no later one will be below.
    pub fn advance(&mut self, now: Now) -> u64 {
        let reading = self.read(now);
        self.lift(now, reading);
        reading
    }

    /// Takes in the clock of another.
    pub fn merge(&mut self, now: Now, other_ms: u64) {
        if other_ms > self.read(now) {
            self.lift(now, other_ms);
        }
    }

    fn lift(&mut self, now: Now, reading: u64) {
        // Lifting at each reading would lose the fraction of a millisecond every time and so run
        // slow; only readings that are not explained by the base move it.
        if reading > self.base_ms.saturating_add(now.mono.since_ms(self.base_at)) {
            self.base_ms = reading;
            self.base_at = now.mono;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64, wall_ms: u64) -> Now {
        Now { mono: Mono::default().after_ms(mono_ms), wall_ms }
    }

    #[test]
    fn the_travelling_clock_goes_on_when_the_wall_clock_is_set_back() {
        let mut clock = TravellingClock::default();
        assert_eq!(clock.advance(at(0, 1_000_000)), 1_000_000);
        assert_eq!(clock.advance(at(500, 900_000)), 1_000_500);
        assert_eq!(clock.advance(at(600, 2_000_000)), 2_000_000);
    }

    #[test]
    fn a_clock_that_was_told_of_a_later_one_never_reads_less() {
        let mut clock = TravellingClock::default();
        clock.advance(at(0, 1_000));
        clock.merge(at(10, 1_010), 5_000);
        assert_eq!(clock.advance(at(20, 1_020)), 5_010);
        clock.merge(at(30, 1_030), 2_000);
        assert_eq!(clock.advance(at(40, 1_040)), 5_030);
    }

    #[test]
    fn readings_taken_often_do_not_make_the_clock_slow() {
        let mut clock = TravellingClock::default();
        clock.merge(at(0, 0), 10_000);
        for step in 0..10_000u64 {
            clock.advance(Now { mono: Mono(step * 100_000), wall_ms: 0 });
        }
        assert_eq!(clock.read(at(1_000, 0)), 11_000);
    }
}
