//! Who sends to a partition: how far each is, what of it was applied, and the watermark of all.
//!
//! Invariants:
//! - a sequence is applied at most once per (producer, epoch);
//! - only active producers hold the watermark back: those heard within the idle timeout;
//! - there are at most [`PRODUCERS_MAX`]; the one silent for longest makes room.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reading::{TIME_MAX, TIME_MIN};
use crate::record::Producer;

/// The most producers a partition remembers.
pub const PRODUCERS_MAX: usize = 4096;
/// How far behind the highest sequence of a producer another may arrive: how many batches it may
/// have in flight at once.
pub const SEQUENCES_IN_FLIGHT_MAX: u64 = 128;

/// All producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Producers {
    by_id: BTreeMap<String, State>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    sequences: Option<Sequences>,
    time_max: Option<i64>,
    /// The time of its last record.
    heard: i64,
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
    /// What a record is, before anything changes.
    pub fn standing(&self, producer: &Producer) -> Standing {
        let Some(state) = self.by_id.get(&producer.id) else { return Standing::Fresh };
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

    /// Notes a fresh record with readings up to a time, heard at `now`.
    pub fn note(&mut self, producer: &Producer, time_max: Option<i64>, now: i64) {
        // Nearly always it is known, and its id is not copied.
        if !self.by_id.contains_key(&producer.id) {
            if self.by_id.len() >= PRODUCERS_MAX {
                self.drop_most_silent();
            }
            self.by_id.insert(producer.id.clone(), State::default());
        }
        let Some(state) = self.by_id.get_mut(&producer.id) else { return };
        if producer.epoch > state.epoch {
            *state = State { epoch: producer.epoch, time_max: state.time_max, ..State::default() };
        }
        state.heard = now;
        state.time_max = state.time_max.max(producer.time_max).max(time_max);
        if let Some(sequence) = producer.sequence {
            match &mut state.sequences {
                Some(sequences) => sequences.note(sequence),
                none => *none = Some(Sequences { highest: sequence, seen: (1, 0) }),
            }
        }
    }

    /// Whether one more producer would push out one that is still active.
    pub fn is_full_for(&self, producer: &Producer, now: i64, idle_timeout: i64) -> bool {
        self.by_id.len() >= PRODUCERS_MAX
            && !self.by_id.contains_key(&producer.id)
            && self.by_id.values().all(|state| state.heard.saturating_add(idle_timeout) > now)
    }

    /// The least of the greatest event times of the active producers that sent one.
    pub fn time_min(&self, now: i64, idle_timeout: i64) -> Option<i64> {
        let active =
            self.by_id.values().filter(|state| state.heard.saturating_add(idle_timeout) > now);
        // A peer's number, and windows are computed from it.
        active.filter_map(|state| state.time_max).min().map(|time| time.clamp(TIME_MIN, TIME_MAX))
    }

    /// The same once these were heard too, by id and greatest event time.
    pub fn time_min_with(
        &self,
        heard: &BTreeMap<&str, i64>,
        now: i64,
        idle_timeout: i64,
    ) -> Option<i64> {
        let known = self.by_id.iter().filter_map(|(id, state)| match heard.get(&**id) {
            Some(time) => state.time_max.max(Some(*time)),
            None if state.heard.saturating_add(idle_timeout) > now => state.time_max,
            None => None,
        });
        let fresh = heard.iter().filter(|(id, _)| !self.by_id.contains_key(**id));
        let times = known.chain(fresh.map(|(_, time)| *time));
        times.min().map(|time| time.clamp(TIME_MIN, TIME_MAX))
    }

    /// Whether nobody is active.
    pub fn all_silent(&self, now: i64, idle_timeout: i64) -> bool {
        self.by_id.values().all(|state| state.heard.saturating_add(idle_timeout) <= now)
    }

    /// When the next active producer falls silent, if nothing comes.
    pub fn next_silence(&self, now: i64, idle_timeout: i64) -> Option<i64> {
        self.by_id
            .values()
            .map(|state| state.heard.saturating_add(idle_timeout))
            .filter(|at| *at > now)
            .min()
    }

    /// Forgets who is silent: at once those without sequences, the others after `retention`.
    pub fn forget_silent(&mut self, now: i64, idle_timeout: i64, retention: i64) {
        self.by_id.retain(|_, state| {
            let kept = if state.sequences.is_some() { retention } else { 0 };
            state.heard.saturating_add(idle_timeout.max(kept)) > now
        });
    }

    /// The epoch and the highest sequence applied of a producer: where it goes on after a restart.
    pub fn position(&self, id: &str) -> Option<(u64, Option<u64>)> {
        let state = self.by_id.get(id)?;
        Some((state.epoch, state.sequences.as_ref().map(|sequences| sequences.highest)))
    }

    pub fn bytes(&self) -> usize {
        self.by_id.len() * (size_of::<(String, State)>() + crate::record::PRODUCER_LEN_MAX)
    }

    fn drop_most_silent(&mut self) {
        let most = self.by_id.iter().min_by_key(|(_, state)| state.heard);
        if let Some(id) = most.map(|(id, _)| id.clone()) {
            self.by_id.remove(&id);
        }
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
        assert_eq!(producers.by_id.len(), PRODUCERS_MAX);
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
