//! The slices of one sensor: what its tumbling and hopping windows are made of.
//!
//! The newest slice lies in the sensor itself, because nearly every reading belongs to it; the
//! others are in a list, ascending. Slices live until the last window that holds them can no longer
//! fire.
//!
//! Cost: a reading in order touches one accumulator. A window that fires merges its slices.

use serde::{Deserialize, Serialize};

use super::TimeWindow;
use crate::aggregate::{Accumulator, Shape};
use crate::snapshot::is_time;

/// The slices of a sensor, and which of its windows fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct Slices {
    /// The index of the newest slice, [`NONE`] without one.
    newest: i64,
    accumulator: Accumulator,
    /// Before the newest, ascending.
    older: Vec<(i64, Accumulator)>,
    /// Windows that fired and may fire again.
    fired: Vec<Fired>,
}

/// A window that fired.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Fired {
    window: u16,
    end: i64,
    revision: u32,
    /// How many readings it had: it fires again only with more.
    count: u64,
}

const NONE: i64 = i64::MIN;

impl Default for Slices {
    fn default() -> Self {
        Self {
            newest: NONE,
            accumulator: Accumulator::default(),
            older: Vec::new(),
            fired: Vec::new(),
        }
    }
}

impl Slices {
    /// The accumulator of a slice if it is the newest.
    #[inline]
    pub fn newest_mut(&mut self, slice: i64) -> Option<&mut Accumulator> {
        (self.newest == slice).then_some(&mut self.accumulator)
    }

    /// The accumulator of a slice, made if it is new.
    pub fn reach(&mut self, slice: i64) -> &mut Accumulator {
        if slice > self.newest {
            if self.newest != NONE {
                self.reserve_one();
                self.older.push((self.newest, std::mem::take(&mut self.accumulator)));
            }
            self.newest = slice;
        }
        if slice == self.newest {
            return &mut self.accumulator;
        }
        let at = match self.older.binary_search_by_key(&slice, |(index, _)| *index) {
            Ok(at) => at,
            Err(at) => {
                self.reserve_one();
                self.older.insert(at, (slice, Accumulator::default()));
                at
            }
        };
        &mut self.older[at].1
    }

    /// Room for one more; doubling would waste half of what most sensors need.
    fn reserve_one(&mut self) {
        if self.older.len() == self.older.capacity() {
            self.older.reserve_exact(1 + self.older.len() / 4);
        }
    }

    /// Whether it holds no slice.
    pub fn is_empty(&self) -> bool {
        self.newest == NONE
    }

    /// The least end after `after` of a window that holds a slice.
    pub fn next_end(&self, window: &TimeWindow, after: i64) -> Option<i64> {
        // Ends ascend with slices, so the first that has one has the least.
        let older = self.older.iter().find_map(|(slice, _)| window.next_end(*slice, after));
        older.or_else(
            || {
                if self.newest == NONE { None } else { window.next_end(self.newest, after) }
            },
        )
    }

    /// The merge of the slices from `start` to before `end`.
    pub fn merged(&self, start: i64, end: i64, shape: Shape) -> Accumulator {
        let newest = start <= self.newest && self.newest < end;
        let first = self.older.partition_point(|(slice, _)| *slice < start);
        let mut older = self.older[first..].iter().take_while(|(slice, _)| *slice < end);
        let Some((_, accumulator)) = older.next() else {
            return if newest { self.accumulator.clone() } else { Accumulator::default() };
        };
        let mut merged = accumulator.clone();
        older.for_each(|(_, accumulator)| merged.merge(accumulator, shape));
        if newest {
            merged.merge(&self.accumulator, shape);
        }
        merged
    }

    /// Notes that a window fires with so many readings. Gives its revision, or `None` when it fired
    /// with the same readings before. `keep`: it may fire again.
    pub fn fire(&mut self, window: u16, end: i64, count: u64, keep: bool) -> Option<u32> {
        let is_it = |f: &&mut Fired| f.window == window && f.end == end;
        if let Some(fired) = self.fired.iter_mut().find(is_it) {
            if fired.count == count {
                return None;
            }
            fired.revision += 1;
            fired.count = count;
            return Some(fired.revision);
        }
        if keep {
            self.fired.push(Fired { window, end, revision: 0, count });
        }
        Some(0)
    }

    /// Drops slices whose windows are over for good, all ends up to `over` being so, and what is
    /// noted about those windows.
    pub fn drop_until(&mut self, windows: &[TimeWindow], over: i64) {
        let is_over = |slice: i64| windows.iter().all(|w| w.last_end(slice) <= over);
        if self.newest != NONE && is_over(self.newest) {
            // The older ones are over before it.
            self.older.clear();
            self.newest = NONE;
            self.accumulator = Accumulator::default();
        } else {
            let over = self.older.partition_point(|(slice, _)| is_over(*slice));
            self.older.drain(..over);
        }
        self.fired.retain(|fired| fired.end > over);
    }

    /// The least of: the end after `over` at which a slice or a note can be dropped.
    pub fn next_drop(&self, windows: &[TimeWindow], over: i64) -> Option<i64> {
        let oldest = self.older.first().map_or(self.newest, |(slice, _)| *slice);
        let slices = (oldest != NONE).then(|| windows.iter().map(|w| w.last_end(oldest)).max());
        let notes = self.fired.iter().map(|fired| fired.end).min();
        slices.flatten().into_iter().chain(notes).filter(|end| *end > over).min()
    }

    /// The heap memory behind it.
    pub fn heap_bytes(&self) -> usize {
        let slices = self.older.iter().map(|(_, acc)| acc.heap_bytes()).sum::<usize>()
            + self.accumulator.heap_bytes();
        slices
            + self.older.len() * size_of::<(i64, Accumulator)>()
            + self.fired.len() * size_of::<Fired>()
    }

    /// Whether the order that everything here relies on holds (a snapshot comes from a peer).
    pub fn is_sound(&self) -> bool {
        let slices = self.older.iter().map(|(slice, _)| *slice);
        let ends = self.fired.iter().map(|fired| fired.end);
        let newest = Some(self.newest).filter(|slice| *slice != NONE);
        slices.chain(ends).chain(newest).all(is_time)
            && self.older.is_sorted_by(|a, b| a.0 < b.0)
            && self.older.last().is_none_or(|(slice, _)| *slice < self.newest)
    }
}
