//! The state of one partition of a stream, changed by records alone.
//!
//! ```text
//!   record -> seen before?  -> take each reading: latest, slice, sessions, counts, detectors
//!          -> revise windows that late readings changed
//!          -> watermark: fire what it reached, drop what is over
//! ```
//!
//! Always true:
//! - `apply` is a function of state and record: no clock, no order of hash maps, no other input;
//! - `apply` never fails. What a primary may refuse it refuses before, in [`Operator::admit`];
//! - readings of a record are judged by the watermark before it; the watermark never falls;
//! - `due[i]` is at or before the time at which sensor i needs a look.
//!
//! Cost: one hash, one lookup and one accumulator per reading in order, with the waits for memory of
//! a block of readings overlapped. When the watermark passes the least due time, one pass over 8
//! bytes per sensor, and the merges of the windows that fire.

mod fire;
mod take;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::aggregate::{Accumulator, EXTRA_LEN_MAX};
use crate::detect::Detector;
use crate::effects::{Effects, Outcome};
use crate::index::Index;
use crate::plan::Plan;
use crate::producers::{Producers, Standing};
use crate::reading::{TIME_MAX, TIME_MIN};
use crate::record::{OFFSETS_PER_RECORD_MAX, PRODUCER_LEN_MAX, Producer, Record};
use crate::sensor::Sensor;
use crate::window::{CountState, Sessions};

/// The most sensors of one partition of a stream.
pub const SENSORS_MAX: usize = 1 << 24;
/// The most sources whose offsets one partition keeps.
pub const OFFSETS_MAX: usize = 4096;
/// Before any watermark; far below every event time and far from overflow.
pub(crate) const NEVER: i64 = i64::MIN / 4;

/// Why a primary refuses a record. Nothing changed; the record was not replicated.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The state could outgrow its room. Retry later, when windows have closed.
    #[error("the stream's state may need {needed} bytes more and has room for {room}")]
    TooMuchState {
        /// What the record may add at most.
        needed: usize,
        /// What is left.
        room: usize,
    },
    /// As many producers as a partition remembers are active. Retry when some are silent.
    #[error("too many producers are active at once")]
    TooManyProducers,
    /// The record itself breaks a bound; it will be refused again.
    #[error("the record's {field} is beyond its bound of {limit}")]
    TooLarge {
        /// What of it.
        field: &'static str,
        /// What is allowed.
        limit: usize,
    },
}

/// Counts since the partition was made; equal on all copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Readings taken in.
    pub accepted: u64,
    /// Readings of records that were applied before.
    pub duplicates: u64,
    /// Readings of records that were too old or of an earlier life of their producer.
    pub refused: u64,
    /// Readings that came too late for at least one window.
    pub late: u64,
    /// Per window of the definition: readings that came too late for it.
    pub late_dropped: Vec<u64>,
    /// Window results given.
    pub results: u64,
    /// Times that open windows were given out because all producers were silent.
    pub flushes: u64,
    /// Sensors forgotten after the retention.
    pub forgotten: u64,
}

/// The state of one partition of a stream.
#[derive(Clone, Debug)]
pub struct Operator {
    pub(crate) plan: Arc<Plan>,
    pub(crate) producers: Producers,
    pub(crate) offsets: BTreeMap<String, i64>,
    pub(crate) sensors: Vec<Sensor>,
    /// When each sensor needs a look, in event time.
    due: Vec<i64>,
    /// When each sensor was heard last, by the records' clock; only if a detector asks.
    pub(crate) heard: Vec<i64>,
    index: Index,
    pub(crate) watermark: i64,
    pub(crate) now: i64,
    /// Open windows were given out; not again until a reading comes.
    pub(crate) flushed: bool,
    pub(crate) totals: Totals,
    /// At or before the least of `due`.
    next_due: i64,
    /// At or before the time at which a sensor is missing.
    next_missing: i64,
    /// When sensors out of retention are looked for next, in event time.
    pub(crate) next_forget: i64,
    /// The heap memory of all sensors.
    heap: usize,
    batch_number: u64,
    scratch: Scratch,
}

/// Memory used again from record to record.
#[derive(Clone, Debug, Default)]
struct Scratch {
    hashes: Vec<u64>,
    latest: Vec<u32>,
    /// Windows that late readings changed: sensor, index of the time window, end.
    dirty: Vec<(u32, u16, i64)>,
    /// Sensors with a session that a late reading changed.
    dirty_sessions: Vec<u32>,
    /// The reading at hand came too late for a window.
    is_late: bool,
}

/// What time it is, in the units of the plan.
#[derive(Clone, Copy)]
struct Clock {
    watermark: i64,
    /// The watermark less the lateness: windows that ended at or before it are over for good.
    over: i64,
    /// Both in slices: ends up to here have passed.
    closed_slices: i64,
    over_slices: i64,
}

impl Operator {
    /// An empty partition.
    pub fn new(plan: Arc<Plan>) -> Self {
        let windows = plan.window_names().len();
        Self {
            plan,
            producers: Producers::default(),
            offsets: BTreeMap::new(),
            sensors: Vec::new(),
            due: Vec::new(),
            heard: Vec::new(),
            index: Index::with_capacity(0),
            watermark: NEVER,
            now: TIME_MIN,
            flushed: false,
            totals: Totals { late_dropped: vec![0; windows], ..Totals::default() },
            next_due: i64::MAX,
            next_missing: i64::MAX,
            next_forget: NEVER,
            heap: 0,
            batch_number: 0,
            scratch: Scratch::default(),
        }
    }

    /// Whether a primary may make this record, with `room` bytes left for stream state. Copies do
    /// not ask: they apply what the primary applied.
    pub fn admit(&self, record: &Record, room: usize) -> Result<(), Refused> {
        let too_large = |field, limit| Err(Refused::TooLarge { field, limit });
        if record.offsets.len() > OFFSETS_PER_RECORD_MAX {
            return too_large("offsets", OFFSETS_PER_RECORD_MAX);
        }
        let ids = record.offsets.iter().map(|offset| &offset.source);
        if ids.chain(record.producer.iter().map(|p| &p.id)).any(|id| id.len() > PRODUCER_LEN_MAX) {
            return too_large("producer or source id", PRODUCER_LEN_MAX);
        }
        let fresh = |o: &&crate::record::SourceOffset| !self.offsets.contains_key(&o.source);
        if self.offsets.len() + record.offsets.iter().filter(fresh).count() > OFFSETS_MAX {
            return too_large("number of sources", OFFSETS_MAX);
        }
        if let Some(producer) = &record.producer
            && self.producers.is_full_for(producer, record.now.max(self.now), self.idle_timeout())
        {
            return Err(Refused::TooManyProducers);
        }
        let readings = record.batch.len();
        let mut needed = readings * self.reading_growth_max() + self.sensor_growth_max(readings);
        if needed > room {
            // That took every sensor for a new one; look who is.
            let fresh = record.batch.iter().filter(|r| self.place_of(r.sensor).is_none()).count();
            needed = readings * self.reading_growth_max() + self.sensor_growth_max(fresh);
        }
        if needed > room {
            return Err(Refused::TooMuchState { needed, room });
        }
        if self.sensors.len() + record.batch.len() > SENSORS_MAX {
            return too_large("number of sensors", SENSORS_MAX);
        }
        Ok(())
    }

    /// What so many readings can add to [`Operator::bytes`] at most, if their sensors are known.
    pub fn growth_max(&self, readings: usize) -> usize {
        readings * self.reading_growth_max()
    }

    /// What would become of a batch: who asks before a record is made need not make one for nothing.
    pub fn judge(&self, producer: &Producer, readings: u64) -> Outcome {
        outcome_of(self.producers.standing(producer), readings)
    }

    /// Whether anything but counts would come of a record without readings: producers that were
    /// heard elsewhere, by id and greatest event time, and the time.
    pub fn needs_record(&self, now: i64, heard: &BTreeMap<&str, i64>) -> bool {
        if now >= self.next_missing {
            return true;
        }
        if !self.is_waiting() {
            return false;
        }
        let now = self.now.max(now);
        let definition = self.plan.definition();
        let idle_timeout = definition.idle_timeout.millis();
        if heard.is_empty() && !self.flushed && self.producers.all_silent(now, idle_timeout) {
            return true;
        }
        let time = self.producers.time_min_with(heard, now, idle_timeout);
        let watermark = time.map(|time| time - definition.watermark_delay.millis());
        watermark.is_some_and(|at| at > self.watermark && at >= self.next_due)
    }

    /// Applies a record.
    pub fn apply(&mut self, record: &Record) -> Effects {
        let mut effects = Effects::default();
        self.apply_into(record, &mut effects);
        effects
    }

    /// Applies a record. What was in the effects before is forgotten, their memory used again.
    pub fn apply_into(&mut self, record: &Record, effects: &mut Effects) {
        effects.clear();
        self.now = self.now.max(record.now.min(TIME_MAX));
        if let Some(producer) = &record.producer {
            let readings = record.batch.len() as u64;
            let standing = self.producers.note(producer, record.batch.time_max(), self.now);
            effects.outcome = outcome_of(standing, readings);
            match effects.outcome {
                Outcome::Applied => {}
                Outcome::Duplicate { .. } => {
                    self.totals.duplicates += readings;
                    return;
                }
                Outcome::TooOld { .. } | Outcome::StaleEpoch { .. } => {
                    self.totals.refused += readings;
                    return;
                }
            }
        }
        for offset in &record.offsets {
            if self.offsets.len() < OFFSETS_MAX || self.offsets.contains_key(&offset.source) {
                self.offsets.insert(offset.source.clone(), offset.offset);
            }
        }
        // Before readings come in: the places of this record's sensors stay as they are.
        self.forget();
        if !record.batch.is_empty() {
            self.flushed = false;
            self.take(&record.batch, effects);
            self.revise(effects);
        }
        self.advance(effects);
        if record.producer.is_none() {
            self.tick(effects);
        }
        self.look_for_missing(effects);
        self.totals.accepted += effects.accepted;
        self.totals.late += effects.late;
        self.totals.results += effects.windows().len() as u64;
    }

    /// When a [`Record::tick`] should come if nothing else does, on the records' clock: a producer
    /// falls silent, or a sensor is missing.
    pub fn next_tick(&self) -> Option<i64> {
        let waiting = self.next_due != i64::MAX && !self.flushed;
        let silence = if waiting {
            self.producers.next_silence(self.now, self.idle_timeout()).or(Some(self.now))
        } else {
            None
        };
        let missing = (self.next_missing != i64::MAX).then_some(self.next_missing);
        silence.into_iter().chain(missing).min()
    }

    /// Whether windows are open: whether it matters to it how far event time is.
    pub fn is_waiting(&self) -> bool {
        self.next_due != i64::MAX
    }

    /// The plan it works by.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The id of a sensor in the effects of the last record.
    pub fn sensor_id(&self, sensor: u32) -> &[u8] {
        self.sensors[sensor as usize].id.as_bytes()
    }

    /// Time and value of the latest reading of a sensor.
    pub fn latest(&self, id: &[u8]) -> Option<(i64, f64)> {
        self.place_of(id).map(|place| self.sensors[place as usize].latest)
    }

    /// How many sensors it knows.
    pub fn sensor_count(&self) -> usize {
        self.sensors.len()
    }

    /// The watermark; `None` until a producer gave one.
    pub fn watermark(&self) -> Option<i64> {
        (self.watermark != NEVER).then_some(self.watermark)
    }

    /// Counts since the partition was made.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The epoch of a producer and the highest sequence applied of it.
    pub fn producer_position(&self, id: &str) -> Option<(u64, Option<u64>)> {
        self.producers.position(id)
    }

    /// Where a source stands.
    pub fn offset(&self, source: &str) -> Option<i64> {
        self.offsets.get(source).copied()
    }

    /// The memory it keeps.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.sensors.capacity() * (size_of::<Sensor>() + 16)
            + self.heap
            + self.index.bytes()
            + self.producers.bytes()
            + self.offsets.len() * (size_of::<(String, i64)>() + PRODUCER_LEN_MAX)
    }

    fn idle_timeout(&self) -> i64 {
        self.plan.definition().idle_timeout.millis()
    }

    /// What one reading of a known sensor can add to [`Operator::bytes`] at most. What is noted
    /// about windows that fired, 32 bytes each, comes when they fire.
    fn reading_growth_max(&self) -> usize {
        let plan = &self.plan;
        let timed = usize::from(!plan.time_windows.is_empty());
        let parts = timed + plan.count_windows.len() + plan.session_windows.len();
        let extra = if plan.shape.has_extras() { EXTRA_LEN_MAX } else { 0 };
        parts * (size_of::<Accumulator>() + 64 + extra)
    }

    /// What so many new sensors can add, beyond their readings.
    fn sensor_growth_max(&self, fresh: usize) -> usize {
        let plan = &self.plan;
        let detectors: usize = plan.definition().detectors.iter().map(Detector::state_bytes).sum();
        let parts = plan.count_windows.len() * size_of::<CountState>()
            + plan.session_windows.len() * size_of::<Sessions>();
        let heap = crate::reading::SENSOR_LEN_MAX + detectors + parts;
        let free = self.sensors.capacity() - self.sensors.len();
        let table = if fresh > free { fresh.max(table_step(self.sensors.len())) } else { 0 };
        fresh * heap + table * (size_of::<Sensor>() + 16) + self.index.growth(fresh)
    }

    fn place_of(&self, id: &[u8]) -> Option<u32> {
        self.index.find(xxh3_64(id), |place| self.sensors[place as usize].id.as_bytes() == id)
    }

    fn clock(&self) -> Clock {
        let lateness = self.plan.definition().allowed_lateness.millis();
        let slices = |time: i64| (time - self.plan.base).div_euclid(self.plan.slice);
        let over = self.watermark - lateness;
        Clock {
            watermark: self.watermark,
            over,
            closed_slices: slices(self.watermark),
            over_slices: slices(over),
        }
    }

    /// Forgets sensors that are out of retention and wait for nothing.
    fn forget(&mut self) {
        if self.watermark < self.next_forget || self.sensors.is_empty() {
            return;
        }
        let retention = self.plan.definition().retention.millis();
        self.next_forget = self.watermark + (retention / 8).max(1);
        let oldest = self.watermark - retention;
        let is_kept = |sensor: &Sensor| sensor.latest.0 >= oldest || !sensor.is_at_rest();
        let kept: Vec<bool> = self.sensors.iter().map(is_kept).collect();
        let gone = kept.iter().filter(|kept| !**kept).count();
        if gone == 0 {
            return;
        }
        self.totals.forgotten += gone as u64;
        retain(&mut self.sensors, &kept);
        retain(&mut self.due, &kept);
        retain(&mut self.heard, &kept);
        self.rebuild();
    }

    /// Works out what follows from the sensors: index, due times, memory.
    pub(crate) fn rebuild(&mut self) {
        let clock = self.clock();
        self.index = Index::with_capacity(self.sensors.len());
        for (place, sensor) in self.sensors.iter().enumerate() {
            self.index.insert(xxh3_64(sensor.id.as_bytes()), place as u32, |_| 0);
        }
        self.due = (0..self.sensors.len() as u32).map(|place| self.due_of(place, &clock)).collect();
        self.next_due = self.due.iter().copied().min().unwrap_or(i64::MAX);
        self.heap = self.heap_counted();
        // Looked for at the next record, which finds the true time.
        self.next_missing = if self.heard.is_empty() { i64::MAX } else { i64::MIN };
    }

    fn heap_counted(&self) -> usize {
        self.sensors.iter().map(Sensor::heap_bytes).sum()
    }

    /// What must always hold between the parts; for tests.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        assert_eq!(self.heap, self.heap_counted(), "heap bytes");
        let clock = self.clock();
        for place in 0..self.sensors.len() {
            assert!(self.due[place] <= self.due_of(place as u32, &clock), "due of {place}");
            assert!(self.next_due <= self.due[place], "next due");
            let id = self.sensors[place].id.as_bytes();
            assert_eq!(self.place_of(id), Some(place as u32), "index");
        }
    }
}

fn outcome_of(standing: Standing, readings: u64) -> Outcome {
    match standing {
        Standing::Fresh => Outcome::Applied,
        Standing::Duplicate => Outcome::Duplicate { readings },
        Standing::TooOld { highest } => Outcome::TooOld { highest },
        Standing::StaleEpoch { current } => Outcome::StaleEpoch { current },
    }
}

/// By how many sensors the table grows: an eighth, since doubling would leave half of it empty.
fn table_step(len: usize) -> usize {
    16 + len / 8
}

fn retain<T>(items: &mut Vec<T>, kept: &[bool]) {
    let mut flags = kept.iter();
    items.retain(|_| flags.next().copied().unwrap_or(true));
}
