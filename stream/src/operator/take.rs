//! A batch into the state: every reading to its sensor, and there to everything that wants it.
//!
//! The readings are looked up in blocks, in three passes (hash and index word, sensor, update), so
//! that the waits for memory of a block overlap. A reading in order then costs one accumulator; what
//! is rarer (a new sensor, a new slice, a late reading) is in functions of its own.

use xxhash_rust::xxh3::xxh3_64;

use super::{Clock, Operator, Scratch, table_step};
use crate::definition::LatestBy;
use crate::effects::{Alarm, Effects, LateReading, LatestValue, Retraction, WindowAt};
use crate::prefetch;
use crate::reading::{Part, Reading};
use crate::sensor::Sensor;

/// How many readings are looked up together.
const BLOCK: usize = 32;
/// The cache lines of a sensor that a reading in order touches.
const HOT_LINES: usize = 3;

impl Operator {
    /// Takes the readings of a batch, in order.
    pub(super) fn take(&mut self, batch: &Part, effects: &mut Effects) {
        self.batch_number += 1;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.hashes.clear();
        scratch.hashes.extend((0..batch.len()).map(|i| xxh3_64(batch.sensor(i))));
        let clock = self.clock();
        let mut slice_cache = SliceCache::default();
        let mut guesses = [None; BLOCK];
        let ahead = scratch.hashes.len().min(BLOCK);
        scratch.hashes[..ahead].iter().for_each(|hash| self.index.prefetch(*hash));
        for start in (0..batch.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(batch.len());
            let next = end..(end + BLOCK).min(batch.len());
            for (guess, hash) in guesses.iter_mut().zip(&scratch.hashes[start..end]) {
                *guess = self.index.guess(*hash);
                if let Some(place) = guess {
                    prefetch::lines(&self.sensors, *place as usize, HOT_LINES);
                }
            }
            scratch.hashes[next].iter().for_each(|hash| self.index.prefetch(*hash));
            for i in start..end {
                let reading = batch.get(i);
                let guess = guesses[i - start]
                    .filter(|place| self.sensors[*place as usize].id.as_bytes() == reading.sensor);
                let place = match guess {
                    Some(place) => place,
                    None => self.reach(reading.sensor, scratch.hashes[i]),
                };
                self.take_one(place, reading, &clock, &mut slice_cache, &mut scratch, effects);
                if std::mem::take(&mut scratch.is_late) {
                    effects.late += 1;
                    if self.plan.definition().keep_late {
                        let Reading { time, value, .. } = reading;
                        effects.late_readings.push(LateReading { sensor: place, time, value });
                    }
                }
            }
        }
        effects.accepted += batch.len() as u64;
        for place in scratch.latest.drain(..) {
            let (time, value) = self.sensors[place as usize].latest;
            effects.latest.push(LatestValue { sensor: place, time, value });
        }
        self.scratch = scratch;
    }

    /// The place of a sensor, made if it is new.
    #[cold]
    fn reach(&mut self, id: &[u8], hash: u64) -> u32 {
        let sensors = &self.sensors;
        let is_it = |place: u32| sensors[place as usize].id.as_bytes() == id;
        if let Some(place) = self.index.find(hash, is_it) {
            return place;
        }
        // `admit` keeps the number of sensors far below 2^32.
        let place = self.sensors.len() as u32;
        let sensor = Sensor::new(id, &self.plan);
        self.heap += sensor.heap_bytes();
        if self.sensors.len() == self.sensors.capacity() {
            let step = table_step(self.sensors.len());
            self.sensors.reserve_exact(step);
            self.due.reserve_exact(step);
        }
        self.sensors.push(sensor);
        self.due.push(i64::MAX);
        if self.missing_after().is_some() {
            self.heard.push(self.now);
        }
        let sensors = &self.sensors;
        self.index.insert(hash, place, |place| xxh3_64(sensors[place as usize].id.as_bytes()));
        place
    }

    #[inline]
    fn take_one(
        &mut self,
        place: u32,
        reading: Reading<'_>,
        clock: &Clock,
        slice_cache: &mut SliceCache,
        scratch: &mut Scratch,
        effects: &mut Effects,
    ) {
        let plan = &*self.plan;
        let sensor = &mut self.sensors[place as usize];
        let Reading { time, value, .. } = reading;
        let in_order = time >= sensor.latest.0;
        if in_order || plan.definition().latest.by() == LatestBy::Arrival {
            sensor.latest = (time, value);
            if sensor.mark != self.batch_number {
                sensor.mark = self.batch_number;
                scratch.latest.push(place);
            }
        }
        if !self.heard.is_empty() {
            self.heard_again(place, effects);
        }
        let plan = &*self.plan;
        if !plan.time_windows.is_empty() {
            let slice = slice_cache.slice_of(time, plan.base, plan.slice);
            let sensor = &mut self.sensors[place as usize];
            match sensor.slices.newest_mut(slice) {
                Some(accumulator) if slice >= clock.closed_slices && !plan.shape.has_extras() => {
                    accumulator.add(time, value, plan.shape);
                }
                _ => self.take_into_slice(place, slice, time, value, clock, scratch),
            }
        }
        if self.plan.has_more_than_slices() {
            self.take_into_rest(place, time, value, in_order, clock, scratch, effects);
        }
    }

    /// A reading that opens a slice, comes late, or has more to keep than moments.
    #[allow(clippy::too_many_arguments, reason = "one call site, all of it needed")]
    fn take_into_slice(
        &mut self,
        place: u32,
        slice: i64,
        time: i64,
        value: f64,
        clock: &Clock,
        scratch: &mut Scratch,
    ) {
        let plan = &*self.plan;
        let sensor = &mut self.sensors[place as usize];
        if slice >= clock.closed_slices
            && let Some(accumulator) = sensor.slices.newest_mut(slice)
        {
            let before = accumulator.heap_bytes();
            accumulator.add(time, value, plan.shape);
            self.heap = self.heap + accumulator.heap_bytes() - before;
            return;
        }
        let (mut is_taken, mut is_late) = (false, false);
        for (at, window) in plan.time_windows.iter().enumerate() {
            if window.last_end(slice) <= clock.over_slices {
                is_late = true;
                self.totals.late_dropped[usize::from(window.window)] += 1;
                continue;
            }
            is_taken = true;
            if slice >= clock.closed_slices {
                continue;
            }
            let mut end = window.next_end(slice, clock.over_slices);
            while let Some(passed) = end.filter(|end| *end <= clock.closed_slices) {
                scratch.dirty.push((place, at as u16, passed));
                end = window.next_end(slice, passed);
            }
        }
        scratch.is_late |= is_late;
        if is_taken {
            let before = sensor.slices.heap_bytes();
            sensor.slices.reach(slice).add(time, value, plan.shape);
            self.heap = self.heap + sensor.slices.heap_bytes() - before;
            self.look_again(place, clock);
        }
    }

    /// Count windows, sessions and detectors.
    #[allow(clippy::too_many_arguments, reason = "one call site, all of it needed")]
    fn take_into_rest(
        &mut self,
        place: u32,
        time: i64,
        value: f64,
        in_order: bool,
        clock: &Clock,
        scratch: &mut Scratch,
        effects: &mut Effects,
    ) {
        let plan = &*self.plan;
        let sensor = &mut self.sensors[place as usize];
        let aggregates = &plan.definition().aggregates;
        for (window, state) in plan.count_windows.iter().zip(&mut sensor.counts) {
            let before = state.accumulator.heap_bytes();
            state.stretch(time);
            state.accumulator.add(time, value, plan.shape);
            self.heap = self.heap + state.accumulator.heap_bytes() - before;
            if state.accumulator.count() < window.len {
                continue;
            }
            let (ordinal, (start, last), accumulator) = state.next();
            self.heap -= accumulator.heap_bytes();
            let at = WindowAt {
                sensor: place,
                window: window.window,
                revision: 0,
                start,
                end: last + 1,
                ordinal,
            };
            effects.push_window(at, &accumulator, aggregates);
        }
        if !plan.session_windows.is_empty() {
            for (window, sessions) in plan.session_windows.iter().zip(&mut sensor.sessions) {
                let before = sessions.heap_bytes();
                let retracted = |start| {
                    let window = window.window;
                    effects.retractions.push(Retraction { sensor: place, window, start });
                };
                match sessions.add(time, value, window.gap, clock.over, plan.shape, retracted) {
                    None => {
                        self.totals.late_dropped[usize::from(window.window)] += 1;
                        scratch.is_late = true;
                    }
                    Some(end) if end <= clock.watermark => scratch.dirty_sessions.push(place),
                    Some(_) => {}
                }
                self.heap = self.heap + sessions.heap_bytes() - before;
            }
            self.look_again(place, clock);
        }
        if in_order {
            let plan = &*self.plan;
            let sensor = &mut self.sensors[place as usize];
            let detectors = plan.definition().detectors.iter().zip(&mut sensor.detectors);
            for (detector, (spec, state)) in detectors.enumerate() {
                if let Some(seen) = state.see(spec, time, value) {
                    effects.alarms.push(Alarm {
                        sensor: place,
                        detector: detector as u16,
                        kind: seen.kind,
                        time,
                        value,
                        expected: seen.expected,
                        score: seen.score,
                    });
                }
            }
        }
    }
}

/// The slice of the last reading: the next is nearly always in it, and a comparison is cheaper than
/// a division.
#[derive(Default)]
struct SliceCache {
    start: i64,
    /// Equal to `start` when empty.
    end: i64,
    slice: i64,
}

impl SliceCache {
    #[inline]
    fn slice_of(&mut self, time: i64, base: i64, len: i64) -> i64 {
        if time < self.start || time >= self.end {
            self.slice = (time - base).div_euclid(len);
            self.start = self.slice * len + base;
            self.end = self.start + len;
        }
        self.slice
    }
}
