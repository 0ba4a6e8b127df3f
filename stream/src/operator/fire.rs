//! What time makes due: windows that the watermark reached, revisions, flushes, missing sensors.

use std::sync::Arc;

use super::{Clock, Operator};
use crate::detect::{AlarmKind, Detector};
use crate::effects::{Alarm, Effects, FitResult, WindowAt};

impl Operator {
    /// Notes when a sensor whose windows changed needs a look.
    pub(super) fn look_again(&mut self, place: u32, clock: &Clock) {
        let due = self.due_of(place, clock);
        self.due[place as usize] = due;
        self.next_due = self.next_due.min(due);
    }

    pub(super) fn due_of(&self, place: u32, clock: &Clock) -> i64 {
        let plan = &*self.plan;
        let sensor = &self.sensors[place as usize];
        let lateness = clock.watermark - clock.over;
        let time_of = |end: i64| end * plan.slice + plan.base;
        let mut due = i64::MAX;
        for window in &plan.time_windows {
            if let Some(end) = sensor.slices.next_end(window, clock.closed_slices) {
                due = due.min(time_of(end));
            }
        }
        if let Some(end) = sensor.slices.next_drop(&plan.time_windows, clock.over_slices) {
            due = due.min(time_of(end) + lateness);
        }
        for sessions in &sensor.sessions {
            if let Some(end) = sessions.next_end_after(clock.watermark) {
                due = due.min(end);
            }
            if let Some(end) = sessions.next_end() {
                due = due.min(end + lateness);
            }
        }
        due
    }

    /// Fires again what late readings of this record changed: once per window, whatever their number.
    pub(super) fn revise(&mut self, effects: &mut Effects) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let clock = self.clock();
        scratch.dirty.sort_unstable();
        scratch.dirty.dedup();
        for (place, window, end) in scratch.dirty.drain(..) {
            self.fire_window(place, usize::from(window), end, true, effects);
            // What is noted about the window must be dropped in time.
            self.look_again(place, &clock);
        }
        scratch.dirty_sessions.sort_unstable();
        scratch.dirty_sessions.dedup();
        for place in scratch.dirty_sessions.drain(..) {
            self.fire_sessions(place, clock.watermark, effects);
        }
        self.scratch = scratch;
    }

    /// Moves the watermark and does what it makes due.
    pub(super) fn advance(&mut self, effects: &mut Effects) {
        let definition = self.plan.definition();
        let Some(time) = self.producers.time_min(self.now, definition.idle_timeout.millis()) else {
            return;
        };
        let watermark = time - definition.watermark_delay.millis();
        if watermark <= self.watermark {
            return;
        }
        let before = self.clock();
        self.watermark = watermark;
        if self.next_due > watermark {
            return;
        }
        let after = self.clock();
        let mut next_due = i64::MAX;
        for place in 0..self.due.len() {
            if self.due[place] <= watermark {
                self.fire_sensor(place as u32, &before, &after, effects);
                self.due[place] = self.due_of(place as u32, &after);
            }
            next_due = next_due.min(self.due[place]);
        }
        self.next_due = next_due;
    }

    /// Fires the windows of a sensor that ended since `before`, and drops what is over.
    fn fire_sensor(&mut self, place: u32, before: &Clock, after: &Clock, effects: &mut Effects) {
        let plan = Arc::clone(&self.plan);
        let keep = after.over < after.watermark;
        let mut ends = [None; crate::plan::WINDOWS_MAX];
        let slices = &self.sensors[place as usize].slices;
        for (end, window) in ends.iter_mut().zip(&plan.time_windows) {
            *end = slices.next_end(window, before.closed_slices);
        }
        loop {
            let due = ends[..plan.time_windows.len()].iter().enumerate();
            let due = due.filter_map(|(at, end)| end.map(|end| (end, at))).min();
            let Some((end, at)) = due.filter(|(end, _)| *end <= after.closed_slices) else { break };
            self.fire_window(place, at, end, keep, effects);
            ends[at] = self.sensors[place as usize].slices.next_end(&plan.time_windows[at], end);
        }
        if !plan.session_windows.is_empty() {
            self.fire_sessions(place, after.watermark, effects);
        }
        let sensor = &mut self.sensors[place as usize];
        let bytes = sensor.slices.heap_bytes()
            + sensor.sessions.iter().map(|s| s.heap_bytes()).sum::<usize>();
        sensor.slices.drop_until(&plan.time_windows, after.over_slices);
        sensor.sessions.iter_mut().for_each(|sessions| sessions.drop_until(after.over));
        let left = sensor.slices.heap_bytes()
            + sensor.sessions.iter().map(|s| s.heap_bytes()).sum::<usize>();
        self.heap = self.heap + left - bytes;
    }

    fn fire_window(&mut self, place: u32, at: usize, end: i64, keep: bool, effects: &mut Effects) {
        let plan = &*self.plan;
        let window = &plan.time_windows[at];
        let slices = &mut self.sensors[place as usize].slices;
        let merged = slices.merged(end - window.size, end, plan.shape);
        let before = slices.heap_bytes();
        let revision = slices.fire(window.window, end, merged.count(), keep);
        self.heap = self.heap + slices.heap_bytes() - before;
        let Some(revision) = revision else { return };
        let start = (end - window.size) * plan.slice + plan.base;
        let at = WindowAt {
            sensor: place,
            window: window.window,
            revision,
            start,
            end: end * plan.slice + plan.base,
            ordinal: 0,
        };
        effects.push_window(at, &merged, &plan.definition().aggregates);
        for (fit, spec) in plan.definition().fits.iter().enumerate() {
            effects.fits.push(FitResult {
                sensor: place,
                window: window.window,
                start,
                fit: fit as u16,
                model: spec.fit(merged.points()),
            });
        }
    }

    fn fire_sessions(&mut self, place: u32, until: i64, effects: &mut Effects) {
        let plan = &*self.plan;
        let sensor = &mut self.sensors[place as usize];
        for (window, sessions) in plan.session_windows.iter().zip(&mut sensor.sessions) {
            sessions.fire(until, |fired| {
                let at = WindowAt {
                    sensor: place,
                    window: window.window,
                    revision: fired.revision,
                    start: fired.start,
                    end: fired.end,
                    ordinal: 0,
                };
                effects.push_window(at, fired.accumulator, &plan.definition().aggregates);
            });
        }
    }

    /// Processing time passed without data: forgets silent producers, and when all are silent gives
    /// open windows out as they are. The watermark stays, so that what comes after the silence is
    /// not late; it makes the windows fire again, one revision higher.
    pub(super) fn tick(&mut self, effects: &mut Effects) {
        let idle_timeout = self.idle_timeout();
        let retention = self.plan.definition().retention.millis();
        let all_silent = self.producers.all_silent(self.now, idle_timeout);
        self.producers.forget_silent(self.now, idle_timeout, retention);
        if !all_silent || self.flushed || self.next_due == i64::MAX {
            return;
        }
        self.flushed = true;
        self.totals.flushes += 1;
        effects.flushed = true;
        let plan = Arc::clone(&self.plan);
        let clock = self.clock();
        for place in 0..self.sensors.len() as u32 {
            for (at, window) in plan.time_windows.iter().enumerate() {
                let next =
                    |op: &Self, after| op.sensors[place as usize].slices.next_end(window, after);
                let mut end = next(self, clock.closed_slices);
                while let Some(open) = end {
                    self.fire_window(place, at, open, true, effects);
                    end = next(self, open);
                }
            }
            self.fire_sessions(place, i64::MAX, effects);
        }
    }

    /// The shortest silence that makes a sensor missing.
    pub(super) fn missing_after(&self) -> Option<i64> {
        self.plan.definition().detectors.iter().filter_map(Detector::missing_after).min()
    }

    pub(super) fn heard_again(&mut self, place: u32, effects: &mut Effects) {
        let now = self.now;
        self.heard[place as usize] = now;
        let sensor = &mut self.sensors[place as usize];
        let plan = &*self.plan;
        for (at, (spec, state)) in
            plan.definition().detectors.iter().zip(&mut sensor.detectors).enumerate()
        {
            let Some(after) = spec.missing_after() else { continue };
            self.next_missing = self.next_missing.min(now.saturating_add(after));
            if state.is_back() {
                effects.alarms.push(Alarm {
                    sensor: place,
                    detector: at as u16,
                    kind: AlarmKind::Cleared,
                    time: now,
                    value: sensor.latest.1,
                    expected: None,
                    score: 0.0,
                });
            }
        }
    }

    pub(super) fn look_for_missing(&mut self, effects: &mut Effects) {
        if self.now < self.next_missing {
            return;
        }
        let plan = Arc::clone(&self.plan);
        self.next_missing = i64::MAX;
        for (place, sensor) in self.sensors.iter_mut().enumerate() {
            let heard = self.heard[place];
            for (at, (spec, state)) in
                plan.definition().detectors.iter().zip(&mut sensor.detectors).enumerate()
            {
                let Some(after) = spec.missing_after() else { continue };
                if heard.saturating_add(after) > self.now {
                    self.next_missing = self.next_missing.min(heard.saturating_add(after));
                } else if state.is_gone() {
                    effects.alarms.push(Alarm {
                        sensor: place as u32,
                        detector: at as u16,
                        kind: AlarmKind::Raised,
                        time: self.now,
                        value: sensor.latest.1,
                        expected: None,
                        score: (self.now - heard) as f64 / after as f64,
                    });
                }
            }
        }
    }
}
