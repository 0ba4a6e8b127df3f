//! The hybrid logical clock: one number that orders the writes of nodes whose clocks disagree.
//!
//! A reading is a [`Version`]: 48 bits of Unix milliseconds above a 16-bit counter, so that plain
//! integer order is the order of writes, and the time part is good enough to judge deadlines. A
//! node stamps above everything it has stamped or seen; a write that was caused by another is
//! therefore always newer, whatever the wall clocks say.
//!
//! What always holds:
//! - a reading is never below an earlier one, also when the wall clock is set back;
//! - no two stamps of one clock are equal; a counter that overflows carries into the milliseconds;
//! - it goes on at the pace of the monotonic clock when the wall clock is set back, so that items
//!   still end in time;
//! - a peer can pull this clock at most `drift_max_ms` ahead of the local time. A stamp
//!   further ahead is *clamped*: its data still merges, so that copies become equal, but the clock
//!   does not follow. One more than `ahead_refuse_ms` ahead is *refused*: no clock is that wrong by
//!   drift, and accepting it would leave a key that hardly any later write could replace.
//!
//! Cost: a few compares; one clock for the node.

use serde::{Deserialize, Serialize};

use crate::ids::Version;
use crate::time::{Now, TravellingClock};
use crate::version;

/// How much the clocks of peers are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClockConfig {
    /// How far ahead of the local wall clock a peer may pull this clock. Above what the time
    /// service lets clocks differ, below the shortest time to live that matters.
    pub drift_max_ms: u64,
    /// A stamp further ahead than this is not taken at all. Must exceed `drift_max_ms`.
    pub ahead_refuse_ms: u64,
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self { drift_max_ms: 1_000, ahead_refuse_ms: 24 * 60 * 60 * 1_000 }
    }
}

/// What became of a stamp that a peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The clock is now at or past it.
    Merged,
    /// Too far ahead to follow: the data counts, the clock stayed behind.
    Clamped,
    /// So far ahead that it can only be an error: its data must not be stored.
    Refused,
}

/// The clock of one node.
#[derive(Clone, Debug)]
pub struct HybridClock {
    config: ClockConfig,
    local: TravellingClock,
    last: Version,
    clamped: u64,
    refused: u64,
}

impl HybridClock {
    /// A clock that has seen nothing yet.
    pub fn new(config: ClockConfig) -> Self {
        Self { config, local: TravellingClock::default(), last: Version(0), clamped: 0, refused: 0 }
    }

    /// A new stamp, above every earlier one and every one merged.
    pub fn stamp(&mut self, now: Now) -> Version {
        let local = version::pack(self.local.advance(now), 0);
        self.last = Version(self.last.0.saturating_add(1)).max(local);
        self.last
    }

    /// A new stamp that is also above `existing`, the version it is to replace. The clock itself
    /// does not follow a version it was not allowed to follow: only that key is written ahead.
    pub fn stamp_above(&mut self, now: Now, existing: Version) -> Version {
        self.stamp(now).max(Version(existing.0.saturating_add(1)))
    }

    /// The time for deadlines, in Unix milliseconds. Never runs backwards.
    pub fn now_ms(&mut self, now: Now) -> u64 {
        self.last = self.last.max(version::pack(self.local.advance(now), 0));
        version::time_ms(self.last)
    }

    /// The latest reading, to send along with every message.
    pub fn reading(&self) -> Version {
        self.last
    }

    /// Merges what a peer's message carried.
    pub fn observe(&mut self, remote: Version, now: Now) -> Observed {
        let local_ms = self.local.advance(now);
        let ahead_ms = version::time_ms(remote).saturating_sub(local_ms);
        if ahead_ms > self.config.ahead_refuse_ms {
            self.refused += 1;
            Observed::Refused
        } else if ahead_ms > self.config.drift_max_ms {
            self.clamped += 1;
            let limit = version::pack(local_ms.saturating_add(self.config.drift_max_ms), 0);
            self.last = self.last.max(limit);
            Observed::Clamped
        } else {
            self.last = self.last.max(remote);
            Observed::Merged
        }
    }

    /// Goes along with the clock that travels with every message, within the drift limit.
    pub fn follow(&mut self, travelled_ms: u64, now: Now) {
        let limit = self.local.advance(now).saturating_add(self.config.drift_max_ms);
        self.last = self.last.max(version::pack(travelled_ms.min(limit), 0));
    }

    /// Whether data stamped `version` may be stored; counts those that may not.
    pub fn admits(&mut self, version: Version, now: Now) -> bool {
        self.observe(version, now) != Observed::Refused
    }

    /// Stamps that were ahead by more than `drift_max_ms`, since the start.
    pub fn clamped(&self) -> u64 {
        self.clamped
    }

    /// Stamps that were refused, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(wall_ms: u64) -> Now {
        Now { wall_ms, ..Now::default() }
    }

    fn clock() -> HybridClock {
        HybridClock::new(ClockConfig { drift_max_ms: 100, ahead_refuse_ms: 10_000 })
    }

    #[test]
    fn stamps_rise_within_a_millisecond_and_when_the_wall_clock_is_set_back() {
        let mut clock = clock();
        let first = clock.stamp(at(1_000));
        let second = clock.stamp(at(1_000));
        let third = clock.stamp(at(400));
        assert_eq!(first, version::pack(1_000, 0));
        assert!(first < second && second < third);
        assert_eq!(clock.now_ms(at(400)), 1_000);
    }

    #[test]
    fn a_full_counter_carries_into_the_milliseconds() {
        let mut clock = clock();
        clock.observe(version::pack(1_000, u16::MAX), at(1_000));
        assert_eq!(clock.stamp(at(1_000)), version::pack(1_001, 0));
    }

    #[test]
    fn a_write_after_a_seen_one_is_newer_though_the_wall_clock_is_behind() {
        let mut clock = clock();
        let seen = version::pack(1_090, 7);
        assert_eq!(clock.observe(seen, at(1_000)), Observed::Merged);
        assert!(clock.stamp(at(1_000)) > seen);
    }

    #[test]
    fn a_peer_far_ahead_pulls_the_clock_only_to_the_drift_limit() {
        let mut clock = clock();
        let seen = version::pack(6_000, 0);
        assert_eq!(clock.observe(seen, at(1_000)), Observed::Clamped);
        assert_eq!(clock.now_ms(at(1_000)), 1_100);
        assert_eq!((clock.clamped(), clock.refused()), (1, 0));
        // A write that replaces the far one is still newer, without taking the clock there.
        assert!(clock.stamp_above(at(1_000), seen) > seen);
        assert_eq!(clock.now_ms(at(1_000)), 1_100);
    }

    #[test]
    fn a_stamp_no_drift_explains_is_refused_and_moves_nothing() {
        let mut clock = clock();
        assert_eq!(clock.observe(Version(u64::MAX), at(1_000)), Observed::Refused);
        assert!(!clock.admits(Version(u64::MAX), at(1_000)));
        assert_eq!(clock.refused(), 2);
        assert_eq!(clock.now_ms(at(1_000)), 1_000);
    }

    #[test]
    fn the_clock_goes_on_while_the_wall_clock_stands_in_the_past() {
        let mut clock = clock();
        clock.stamp(at(5_000));
        let later = Now { mono: Now::default().mono.after_ms(700), wall_ms: 100 };
        assert_eq!(clock.now_ms(later), 5_700);
    }

    proptest! {
        #[test]
        fn no_sequence_of_walls_and_peers_makes_the_clock_run_back_or_ahead(
            steps in proptest::collection::vec((0u64..5_000, any::<bool>(), 0u64..20_000, any::<u16>()), 1..200)
        ) {
            let mut clock = clock();
            let (mut last, mut wall_max) = (Version(0), 0);
            for (wall, stamps, peer_ms, counter) in steps {
                wall_max = wall_max.max(wall);
                if stamps {
                    let stamp = clock.stamp(at(wall));
                    prop_assert!(stamp > last);
                } else {
                    clock.observe(version::pack(peer_ms, counter), at(wall));
                }
                prop_assert!(clock.reading() >= last);
                last = clock.reading();
                prop_assert!(version::time_ms(last) <= wall_max + 101);
            }
        }
    }
}
