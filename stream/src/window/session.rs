//! Session windows: readings of a sensor with no gap between them.
//!
//! A reading at `t` is a session from `t` to `t + gap`; sessions that overlap or touch are one. So
//! the result does not depend on the order of arrival, unless a session was already over for good.

use serde::{Deserialize, Serialize};

use crate::aggregate::{Accumulator, Shape};
use crate::snapshot::is_time;

/// The sessions of one sensor and one window definition, by start; they neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sessions(Vec<Session>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Session {
    start: i64,
    /// The last reading plus the gap.
    end: i64,
    accumulator: Accumulator,
    /// The revision and the number of readings with which it fired last.
    fired: Option<(u32, u64)>,
}

/// A session that fires.
pub(crate) struct FiredSession<'a> {
    pub start: i64,
    pub end: i64,
    pub revision: u32,
    pub accumulator: &'a Accumulator,
}

impl Sessions {
    /// Takes a reading, unless its session ended at or before `over`. Results that were given under
    /// another start go to `retracted`. Returns the end of the session that took it.
    pub fn add(
        &mut self,
        time: i64,
        value: f64,
        gap: i64,
        over: i64,
        shape: Shape,
        mut retracted: impl FnMut(i64),
    ) -> Option<i64> {
        let (mut start, mut end) = (time, time + gap);
        let from = self.0.partition_point(|s| s.end < start);
        let touching = self.0[from..].iter().take_while(|s| s.start <= end).count();
        let joined = from..from + touching;
        for session in &self.0[joined.clone()] {
            start = start.min(session.start);
            end = end.max(session.end);
        }
        if end <= over {
            return None;
        }
        let mut all = Session { start, end, accumulator: Accumulator::default(), fired: None };
        for session in self.0.drain(joined) {
            all.accumulator.merge(&session.accumulator, shape);
            if let Some((revision, count)) = session.fired {
                if session.start != start {
                    retracted(session.start);
                }
                let (highest, counted) = all.fired.unwrap_or((0, 0));
                all.fired = Some((highest.max(revision), counted + count));
            }
        }
        all.accumulator.add(time, value, shape);
        self.0.insert(from, all);
        Some(end)
    }

    /// Fires the sessions that ended at or before `until` and have readings they did not fire with.
    pub fn fire(&mut self, until: i64, mut fire: impl FnMut(FiredSession<'_>)) {
        for session in self.0.iter_mut().filter(|s| s.end <= until) {
            let count = session.accumulator.count();
            let revision = match session.fired {
                Some((_, fired)) if fired == count => continue,
                Some((revision, _)) => revision + 1,
                None => 0,
            };
            session.fired = Some((revision, count));
            let Session { start, end, accumulator, .. } = session;
            fire(FiredSession { start: *start, end: *end, revision, accumulator });
        }
    }

    /// Drops the sessions that ended at or before `over`.
    pub fn drop_until(&mut self, over: i64) {
        self.0.retain(|session| session.end > over);
    }

    /// The least end.
    pub fn next_end(&self) -> Option<i64> {
        self.0.first().map(|session| session.end)
    }

    /// The least end after `after`.
    pub fn next_end_after(&self, after: i64) -> Option<i64> {
        self.0.iter().map(|session| session.end).find(|end| *end > after)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn heap_bytes(&self) -> usize {
        self.0.iter().map(|s| size_of::<Session>() + s.accumulator.heap_bytes()).sum()
    }

    /// Whether the order that everything here relies on holds (a snapshot comes from a peer).
    pub fn is_sound(&self) -> bool {
        self.0.iter().all(|s| is_time(s.start) && is_time(s.end) && s.start < s.end)
            && self.0.is_sorted_by(|a, b| a.end < b.start)
    }
}
