//! Until when what was read over a connection is known to be good.
//!
//! A node pushes an invalidation before it answers anything that it read later, so the answer to
//! a ping confirms all reads as of the moment when the ping was *sent*. A connection that ended
//! confirms nothing any more.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What is known of one connection. Shared by the connection and the values read over it.
#[derive(Debug)]
pub(crate) struct Freshness {
    origin: Instant,
    /// Microseconds from `origin` to when the last answered ping was sent, and 1; 0 before that.
    confirmed_us: AtomicU64,
    ended: AtomicBool,
    /// A read asked since the last ping.
    wanted: AtomicBool,
    /// Microseconds from `origin` until which the node is not asked again to track reads.
    untracked_us: AtomicU64,
}

/// How long a node that tracks no more connections is not asked again to do so.
const UNTRACKED: Duration = Duration::from_secs(5);

impl Freshness {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            origin: now,
            confirmed_us: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            untracked_us: AtomicU64::new(0),
        }
    }

    /// A ping that was sent at `sent` was answered.
    pub(crate) fn confirm(&self, sent: Instant) {
        let us = sent.saturating_duration_since(self.origin).as_micros();
        let us = u64::try_from(us).unwrap_or(u64::MAX - 1) + 1;
        // Ordered behind the invalidations that came before the pong: whoever sees this
        // confirmation sees them.
        self.confirmed_us.fetch_max(us, Ordering::Release);
    }

    /// The node tracks no more connections.
    pub(crate) fn tracking_refused(&self, now: Instant) {
        let until = now.saturating_duration_since(self.origin) + UNTRACKED;
        let us = u64::try_from(until.as_micros()).unwrap_or(u64::MAX);
        self.untracked_us.store(us, Ordering::Relaxed);
    }

    /// Whether the node may be asked to track a read.
    pub(crate) fn may_track(&self, now: Instant) -> bool {
        let until = Duration::from_micros(self.untracked_us.load(Ordering::Relaxed));
        now.saturating_duration_since(self.origin) >= until
    }

    /// Nothing read over this connection is good any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether all invalidations of writes up to `bound` before `now` are here.
    pub(crate) fn holds(&self, now: Instant, bound: Duration) -> bool {
        let confirmed = self.confirmed_us.load(Ordering::Acquire);
        if confirmed == 0 || self.ended.load(Ordering::Acquire) {
            return false;
        }
        let confirmed = self.origin + Duration::from_micros(confirmed - 1);
        now.saturating_duration_since(confirmed) < bound
    }

    /// Somebody wants this confirmed. `true` for the first since the last ping.
    pub(crate) fn want(&self) -> bool {
        // A read first: this is asked on each read of a near cache.
        !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_confirms_as_of_when_its_ping_was_sent() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let bound = Duration::from_millis(100);
        let freshness = Freshness::new(start);
        assert!(!freshness.holds(at(0), bound));

        freshness.confirm(at(50));

        assert!(freshness.holds(at(149), bound));
        assert!(!freshness.holds(at(150), bound));
        freshness.confirm(at(40));
        assert!(freshness.holds(at(149), bound), "a late pong takes nothing back");
    }

    #[test]
    fn a_connection_that_ended_confirms_nothing() {
        let now = Instant::now();
        let freshness = Freshness::new(now);
        freshness.confirm(now);

        freshness.end();

        assert!(!freshness.holds(now, Duration::from_secs(1)));
    }

    #[test]
    fn a_node_that_refused_to_track_is_asked_again_later() {
        let now = Instant::now();
        let freshness = Freshness::new(now);
        assert!(freshness.may_track(now));

        freshness.tracking_refused(now);

        assert!(!freshness.may_track(now + UNTRACKED - Duration::from_millis(1)));
        assert!(freshness.may_track(now + UNTRACKED));
    }

    #[test]
    fn only_the_first_who_wants_a_confirmation_wakes_the_driver() {
        let freshness = Freshness::new(Instant::now());

        assert!(freshness.want());
        assert!(!freshness.want());
        assert!(freshness.take_wanted());
        assert!(freshness.want());
    }
}
