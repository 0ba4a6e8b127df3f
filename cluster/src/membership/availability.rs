//! How often a node fails and how long it stays away, as observed.
//!
//! `MTTF` is the mean time that it was up before a failure, `MTTR` the mean time until it was back;
//! the availability they stand for is `MTTF / (MTTF + MTTR)`. Figures for people and dashboards: no
//! decision rests on them.

use crate::time::Mono;

/// The record of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Availability {
    /// Since when it has been up or down; `None` before it was first seen.
    since: Option<(State, Mono)>,
    up_ns: u64,
    down_ns: u64,
    failures: u64,
    repairs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down,
}

impl Availability {
    /// It is up. Nothing changes if it was.
    pub fn up(&mut self, at: Mono) {
        match self.since {
            Some((State::Up, _)) => {}
            Some((State::Down, since)) => {
                self.down_ns = self.down_ns.saturating_add(at.since_ns(since));
                self.repairs += 1;
                self.since = Some((State::Up, at.max(since)));
            }
            None => self.since = Some((State::Up, at)),
        }
    }

    /// It is down. Nothing changes if it was, or if it was never seen up.
    pub fn down(&mut self, at: Mono) {
        if let Some((State::Up, since)) = self.since {
            self.up_ns = self.up_ns.saturating_add(at.since_ns(since));
            self.failures += 1;
            self.since = Some((State::Down, at.max(since)));
        }
    }

    /// Failures seen.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Mean time to failure in milliseconds; `None` before the first failure.
    #[must_use]
    pub fn mttf_ms(&self, now: Mono) -> Option<f64> {
        (self.failures > 0).then(|| self.total_up_ns(now) as f64 / self.failures as f64 / 1e6)
    }

    /// Mean time to repair in milliseconds; `None` before the first repair.
    #[must_use]
    pub fn mttr_ms(&self) -> Option<f64> {
        // A failure that still lasts is not a repair yet: its end is unknown.
        (self.repairs > 0).then(|| self.down_ns as f64 / self.repairs as f64 / 1e6)
    }

    /// The part of the time since it was first seen that it was up, from 0 to 1; `None` before it
    /// was seen.
    #[must_use]
    pub fn observed(&self, now: Mono) -> Option<f64> {
        let (up, down) = (self.total_up_ns(now), self.total_down_ns(now));
        self.since.map(|_| if up + down == 0 { 1.0 } else { up as f64 / (up + down) as f64 })
    }

    fn total_up_ns(&self, now: Mono) -> u64 {
        match self.since {
            Some((State::Up, since)) => self.up_ns.saturating_add(now.since_ns(since)),
            _ => self.up_ns,
        }
    }

    fn total_down_ns(&self, now: Mono) -> u64 {
        match self.since {
            Some((State::Down, since)) => self.down_ns.saturating_add(now.since_ns(since)),
            _ => self.down_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Mono {
        Mono::default().after_ms(s * 1_000)
    }

    #[test]
    fn availability_is_mttf_over_mttf_plus_mttr_after_whole_cycles() {
        let mut record = Availability::default();
        record.up(at(0));
        record.down(at(90));
        record.up(at(100));
        record.down(at(190));
        record.up(at(200));
        let (mttf, mttr) = (record.mttf_ms(at(200)).unwrap(), record.mttr_ms().unwrap());
        assert_eq!((mttf, mttr), (90_000.0, 10_000.0));
        assert_eq!(record.observed(at(200)), Some(mttf / (mttf + mttr)));
    }

    #[test]
    fn nothing_is_claimed_before_it_was_seen() {
        let mut record = Availability::default();
        record.down(at(5));
        assert_eq!((record.failures(), record.observed(at(9))), (0, None));
        record.up(at(10));
        assert_eq!((record.mttf_ms(at(20)), record.mttr_ms()), (None, None));
        assert_eq!(record.observed(at(20)), Some(1.0));
    }

    #[test]
    fn a_failure_that_lasts_counts_as_down_but_not_as_repaired() {
        let mut record = Availability::default();
        record.up(at(0));
        record.down(at(60));
        record.down(at(70));
        assert_eq!(record.failures(), 1);
        assert_eq!(record.mttr_ms(), None);
        assert_eq!(record.observed(at(80)), Some(0.75));
    }

    #[test]
    fn times_that_run_backwards_do_not_make_it_negative() {
        let mut record = Availability::default();
        record.up(at(10));
        record.down(at(5));
        record.up(at(3));
        assert_eq!(record.observed(at(10)), Some(1.0));
    }
}
