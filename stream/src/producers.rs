//! Who sends to a partition: how far each is, what of it was applied, and the watermark of all.
//!
//! Invariants:
//! - a sequence is applied at most once per (producer, epoch);
//! - only active producers hold the watermark back: those heard within the idle timeout;
//! - there are at most [`PRODUCERS_MAX`]; the one silent for longest makes room.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use crate::reading::{TIME_MAX, TIME_MIN};
use crate::record::Producer;

/// The most producers a partition remembers.
pub const PRODUCERS_MAX: usize = 4096;
/// How far behind the highest sequence of a producer another may arrive: how many batches it may
/// have in flight at once.
pub const SEQUENCES_IN_FLIGHT_MAX: u64 = 128;

/// All producers of a partition, by the hash of their id: in columns, since every record looks for one
/// and asks all how far they are, and a partition has its turn when its memory is no longer near.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Producers {
    /// Ascending; those with the same hash, by id.
    hashes: Vec<u64>,
    clocks: Vec<Clock>,
    states: Vec<State>,
}

/// How far a producer is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Clock {
    /// The greatest event time it sent; [`NO_TIME`] before it sent one.
    time_max: i64,
    /// The time of its last record.
    heard: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    id: String,
    epoch: u64,
    sequences: Option<Sequences>,
}

/// What stands for no event time: before all of them.
const NO_TIME: i64 = i64::MIN;

/// A producer as snapshots have it, under its id.
#[derive(Serialize, Deserialize)]
struct Saved {
    epoch: u64,
    sequences: Option<Sequences>,
    time_max: Option<i64>,
    heard: i64,
}

impl Clock {
    fn is_active(&self, now: i64, idle_timeout: i64) -> bool {
        self.heard.saturating_add(idle_timeout) > now
    }

    fn time_max(&self) -> Option<i64> {
        (self.time_max != NO_TIME).then_some(self.time_max)
    }
}

/// The highest sequence applied, and which of those just below it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sequences {
    highest: u64,
    /// Bit i: `highest - i` was applied.
    seen: (u64, u64),
}

/// What a record of a producer is, judged by those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// To be applied.
    Fresh,
    /// Applied before.
    Duplicate,
    /// So far behind the highest sequence that nobody knows; not applied.
    TooOld { highest: u64 },
    /// Of an earlier life of the producer; not applied.
    StaleEpoch { current: u64 },
}

impl Producers {
    /// Where a producer is, or would be.
    fn place(&self, id: &str) -> Result<usize, usize> {
        let hash = xxh3_64(id.as_bytes());
        let mut place = self.hashes.partition_point(|other| *other < hash);
        while self.hashes.get(place) == Some(&hash) {
            match self.states[place].id.as_str().cmp(id) {
                std::cmp::Ordering::Less => place += 1,
                std::cmp::Ordering::Equal => return Ok(place),
                std::cmp::Ordering::Greater => break,
            }
        }
        Err(place)
    }

    fn insert(&mut self, place: usize, state: State, clock: Clock) {
        self.hashes.insert(place, xxh3_64(state.id.as_bytes()));
        self.clocks.insert(place, clock);
        self.states.insert(place, state);
    }

    fn remove(&mut self, place: usize) {
        self.hashes.remove(place);
        self.clocks.remove(place);
        self.states.remove(place);
    }

    /// What a record is, before anything changes.
    pub fn standing(&self, producer: &Producer) -> Standing {
        self.place(&producer.id).map_or(Standing::Fresh, |place| self.standing_of(place, producer))
    }

    fn standing_of(&self, place: usize, producer: &Producer) -> Standing {
        let state = &self.states[place];
        if producer.epoch < state.epoch {
            return Standing::StaleEpoch { current: state.epoch };
        }
        match (producer.sequence, &state.sequences) {
            (Some(sequence), Some(sequences)) if producer.epoch == state.epoch => {
                sequences.standing(sequence)
            }
            _ => Standing::Fresh,
        }
    }

    /// What a record is; a fresh one with readings up to a time, heard at `now`, is noted.
    pub fn note(&mut self, producer: &Producer, time_max: Option<i64>, now: i64) -> Standing {
        let place = match self.place(&producer.id) {
            Ok(place) => match self.standing_of(place, producer) {
                Standing::Fresh => place,
                other => return other,
            },
            Err(mut place) => {
                if self.states.len() >= PRODUCERS_MAX {
                    place -= usize::from(self.drop_most_silent() < place);
                }
                let state = State { id: producer.id.clone(), ..State::default() };
                self.insert(place, state, Clock { time_max: NO_TIME, heard: now });
                place
            }
        };
        let (state, clock) = (&mut self.states[place], &mut self.clocks[place]);
        if producer.epoch > state.epoch {
            (state.epoch, state.sequences) = (producer.epoch, None);
        }
        clock.heard = now;
        let times = [producer.time_max, time_max].into_iter().flatten();
        clock.time_max = times.map(|time| time.max(NO_TIME + 1)).fold(clock.time_max, i64::max);
        if let Some(sequence) = producer.sequence {
            match &mut state.sequences {
                Some(sequences) => sequences.note(sequence),
                none => *none = Some(Sequences { highest: sequence, seen: (1, 0) }),
            }
        }
        Standing::Fresh
    }

    /// Whether one more producer would push out one that is still active.
    pub fn is_full_for(&self, producer: &Producer, now: i64, idle_timeout: i64) -> bool {
        self.states.len() >= PRODUCERS_MAX
            && self.place(&producer.id).is_err()
            && self.clocks.iter().all(|clock| clock.is_active(now, idle_timeout))
    }

    /// The least of the greatest event times of the active producers that sent one.
    pub fn time_min(&self, now: i64, idle_timeout: i64) -> Option<i64> {
        let active = self.clocks.iter().filter(|clock| clock.is_active(now, idle_timeout));
        // A peer's number, and windows are computed from it.
        active.filter_map(Clock::time_max).min().map(|time| time.clamp(TIME_MIN, TIME_MAX))
    }

    /// The same once these were heard too, by id and greatest event time.
    pub fn time_min_with(
        &self,
        heard: &BTreeMap<&str, i64>,
        now: i64,
        idle_timeout: i64,
    ) -> Option<i64> {
        let known = self.states.iter().zip(&self.clocks).filter_map(|(state, clock)| {
            match heard.get(&*state.id) {
                Some(time) => clock.time_max().max(Some(*time)),
                None if clock.is_active(now, idle_timeout) => clock.time_max(),
                None => None,
            }
        });
        let fresh = heard.iter().filter(|(id, _)| self.place(id).is_err());
        let times = known.chain(fresh.map(|(_, time)| *time));
        times.min().map(|time| time.clamp(TIME_MIN, TIME_MAX))
    }

    /// Whether nobody is active.
    pub fn all_silent(&self, now: i64, idle_timeout: i64) -> bool {
        !self.clocks.iter().any(|clock| clock.is_active(now, idle_timeout))
    }

    /// When the next active producer falls silent, if nothing comes.
    pub fn next_silence(&self, now: i64, idle_timeout: i64) -> Option<i64> {
        let silences = self.clocks.iter().map(|clock| clock.heard.saturating_add(idle_timeout));
        silences.filter(|at| *at > now).min()
    }

    /// Forgets who is silent: at once those without sequences, the others after `retention`.
    pub fn forget_silent(&mut self, now: i64, idle_timeout: i64, retention: i64) {
        for place in (0..self.states.len()).rev() {
            let kept = if self.states[place].sequences.is_some() { retention } else { 0 };
            if !self.clocks[place].is_active(now, idle_timeout.max(kept)) {
                self.remove(place);
            }
        }
    }

    /// The epoch and the highest sequence applied of a producer: where it goes on after a restart.
    pub fn position(&self, id: &str) -> Option<(u64, Option<u64>)> {
        let state = &self.states[self.place(id).ok()?];
        Some((state.epoch, state.sequences.as_ref().map(|sequences| sequences.highest)))
    }

    pub fn bytes(&self) -> usize {
        let each = size_of::<(u64, Clock, State)>() + crate::record::PRODUCER_LEN_MAX;
        self.states.len() * each
    }

    /// Makes room. Returns where there was one.
    fn drop_most_silent(&mut self) -> usize {
        let places = 0..self.states.len();
        let most = places.min_by_key(|place| (self.clocks[*place].heard, &self.states[*place].id));
        most.map_or(usize::MAX, |place| {
            self.remove(place);
            place
        })
    }
}

/// As a map by id.
impl Serialize for Producers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let states = self.states.iter().zip(&self.clocks).map(|(state, clock)| {
            let State { id, epoch, sequences } = state.clone();
            (id, Saved { epoch, sequences, time_max: clock.time_max(), heard: clock.heard })
        });
        states.collect::<BTreeMap<String, Saved>>().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Producers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let saved = BTreeMap::<String, Saved>::deserialize(deserializer)?;
        let mut producers = Self::default();
        for (id, Saved { epoch, sequences, time_max, heard }) in saved {
            if let Err(place) = producers.place(&id) {
                let clock = Clock { time_max: time_max.unwrap_or(NO_TIME), heard };
                producers.insert(place, State { id, epoch, sequences }, clock);
            }
        }
        Ok(producers)
    }
}

impl Sequences {
    fn standing(&self, sequence: u64) -> Standing {
        let Some(behind) = self.highest.checked_sub(sequence) else { return Standing::Fresh };
        if behind >= SEQUENCES_IN_FLIGHT_MAX {
            return Standing::TooOld { highest: self.highest };
        }
        if self.bits() >> behind & 1 == 1 { Standing::Duplicate } else { Standing::Fresh }
    }

    fn note(&mut self, sequence: u64) {
        let mut bits = self.bits();
        if sequence > self.highest {
            let ahead = sequence - self.highest;
            bits = if ahead >= SEQUENCES_IN_FLIGHT_MAX { 0 } else { bits << ahead };
            self.highest = sequence;
        }
        bits |= 1 << (self.highest - sequence).min(SEQUENCES_IN_FLIGHT_MAX - 1);
        self.seen = (bits as u64, (bits >> 64) as u64);
    }

    fn bits(&self) -> u128 {
        u128::from(self.seen.1) << 64 | u128::from(self.seen.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, epoch: u64, sequence: u64, time: i64) -> Producer {
        Producer { id: id.to_owned(), epoch, sequence: Some(sequence), time_max: Some(time) }
    }

    #[test]
    fn a_sequence_is_fresh_once_in_whatever_order_they_come() {
        let mut producers = Producers::default();
        for sequence in [5, 3, 200, 199, 100] {
            let record = record("p", 1, sequence, 0);
            assert_eq!(producers.standing(&record), Standing::Fresh, "{sequence}");
            producers.note(&record, None, 0);
            assert_eq!(producers.standing(&record), Standing::Duplicate, "{sequence}");
        }
        let old = record("p", 1, 72, 0);
        assert_eq!(producers.standing(&old), Standing::TooOld { highest: 200 });
        assert_eq!(producers.position("p"), Some((1, Some(200))));
    }

    #[test]
    fn a_new_epoch_counts_anew_and_fences_the_old() {
        let mut producers = Producers::default();
        producers.note(&record("p", 1, 9, 0), None, 0);
        producers.note(&record("p", 2, 1, 0), None, 0);
        assert_eq!(producers.standing(&record("p", 2, 1, 0)), Standing::Duplicate);
        assert_eq!(producers.standing(&record("p", 2, 9, 0)), Standing::Fresh);
        let stale = Standing::StaleEpoch { current: 2 };
        assert_eq!(producers.standing(&record("p", 1, 10, 0)), stale);
    }

    #[test]
    fn a_silent_producer_does_not_hold_the_watermark_back() {
        let mut producers = Producers::default();
        producers.note(&record("slow", 0, 1, 100), None, 0);
        producers.note(&record("fast", 0, 1, 900), None, 20);
        assert_eq!(producers.time_min(29, 30), Some(100));
        assert_eq!(producers.next_silence(29, 30), Some(30));
        assert_eq!(producers.time_min(30, 30), Some(900));
        assert!(!producers.all_silent(49, 30));
        assert!(producers.all_silent(50, 30));
    }

    #[test]
    fn the_number_of_producers_is_bounded_and_the_most_silent_makes_room() {
        let mut producers = Producers::default();
        for i in 0..PRODUCERS_MAX as u64 + 10 {
            producers.note(&record(&format!("p{i}"), 0, 0, 0), None, i as i64);
        }
        assert_eq!(producers.states.len(), PRODUCERS_MAX);
        assert_eq!(producers.position("p9"), None);
        assert!(producers.position("p10").is_some());
        assert!(producers.is_full_for(&record("new", 0, 0, 0), 5000, 100_000));
        assert!(!producers.is_full_for(&record("new", 0, 0, 0), 5000, 100));
    }

    #[test]
    fn who_has_sequences_is_remembered_for_the_retention() {
        let mut producers = Producers::default();
        producers.note(&record("kept", 0, 1, 0), None, 0);
        producers.note(&Producer { id: "conn".to_owned(), ..Producer::default() }, None, 0);
        producers.forget_silent(50, 30, 100);
        assert_eq!(
            (producers.position("kept"), producers.position("conn")),
            (Some((0, Some(1))), None)
        );
        producers.forget_silent(100, 30, 100);
        assert_eq!(producers.position("kept"), None);
    }
}
