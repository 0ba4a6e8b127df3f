//! Hits and misses of reads that take no lock.
//!
//! One counter for all threads would bring back what such reads avoid: a cache line that they take
//! from each other. So each thread has a counter of its own, in every store at the same place, and
//! adds to it without a locked instruction; who wants the sum reads them all. Threads beyond those
//! places share the last one.
//!
//! Invariant: a place but the last belongs to one living thread at most.
//!
//! Cost: a load and a store of the thread's own line; 8 KiB a store.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a store.
pub(crate) struct Tally {
    places: [Place; PLACES],
    /// Sums at the last reset.
    zero: Counters,
}

/// Sums over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Apart by two cache lines, as processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Place(Counters);

impl Tally {
    pub(crate) fn new() -> Self {
        Self { places: std::array::from_fn(|_| Place::default()), zero: Counters::default() }
    }

    #[inline(always)]
    pub(crate) fn hit(&self) {
        self.add(1, 0);
    }

    #[inline(always)]
    pub(crate) fn miss(&self) {
        self.add(0, 1);
    }

    /// Counts so many.
    #[inline(always)]
    pub(crate) fn add(&self, hits: u64, misses: u64) {
        let distance = OWN.get();
        if distance >= SHARED * PLACE_LEN {
            return self.add_without_place(hits, misses);
        }
        // SAFETY: it is a multiple of a place's length, and below that of the last.
        let Place(own) = unsafe { &*self.places.as_ptr().byte_add(distance) };
        let add = |counter: &AtomicU64, more: u64| {
            // Nobody else adds to it.
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        if hits > 0 {
            add(&own.hits, hits);
        }
        if misses > 0 {
            add(&own.misses, misses);
        }
    }

    /// For a thread that has not asked for a place yet, or got none.
    #[cold]
    #[inline(never)]
    fn add_without_place(&self, hits: u64, misses: u64) {
        if OWN.get() == UNKNOWN * PLACE_LEN {
            // A thread that is being torn down has no lease any more: it shares.
            OWN.set(LEASE.try_with(|lease| lease.place).unwrap_or(SHARED) * PLACE_LEN);
        }
        let Place(own) = &self.places[OWN.get() / PLACE_LEN];
        own.hits.fetch_add(hits, Ordering::Relaxed);
        own.misses.fetch_add(misses, Ordering::Relaxed);
    }

    /// What was counted since the last reset.
    pub(crate) fn sums(&self) -> Sums {
        let all = self.all();
        Sums {
            hits: all.hits.wrapping_sub(self.zero.hits.load(Ordering::Relaxed)),
            misses: all.misses.wrapping_sub(self.zero.misses.load(Ordering::Relaxed)),
        }
    }

    /// Begins to count anew. The counters go on: setting them is their threads' alone.
    pub(crate) fn reset(&self) {
        let all = self.all();
        self.zero.hits.store(all.hits, Ordering::Relaxed);
        self.zero.misses.store(all.misses, Ordering::Relaxed);
    }

    fn all(&self) -> Sums {
        self.places.iter().fold(Sums::default(), |sums, Place(counters)| Sums {
            hits: sums.hits.wrapping_add(counters.hits.load(Ordering::Relaxed)),
            misses: sums.misses.wrapping_add(counters.misses.load(Ordering::Relaxed)),
        })
    }
}

const PLACES: usize = 64;

const PLACE_LEN: usize = size_of::<Place>();

/// The place of threads that have none of their own.
const SHARED: usize = PLACES - 1;

/// Of a thread that does not know its place yet.
const UNKNOWN: usize = PLACES;

/// Bit i is set while place i belongs to a thread.
static TAKEN: AtomicU64 = AtomicU64::new(1 << SHARED);

thread_local! {
    /// This thread's place, by its distance from the first in bytes.
    static OWN: Cell<usize> = const { Cell::new(UNKNOWN * PLACE_LEN) };
    static LEASE: Lease = Lease::take();
}

/// A thread's right to its place.
struct Lease {
    place: usize,
}

impl Lease {
    fn take() -> Self {
        let mut taken = TAKEN.load(Ordering::Relaxed);
        loop {
            let place = taken.trailing_ones() as usize;
            if place >= PLACES {
                return Self { place: SHARED };
            }
            // Acquires what the thread before left in the counters.
            let with = taken | 1 << place;
            match TAKEN.compare_exchange_weak(taken, with, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Self { place },
                Err(now) => taken = now,
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        OWN.set(SHARED * PLACE_LEN);
        if self.place != SHARED {
            TAKEN.fetch_and(!(1 << self.place), Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn no_count_is_lost_with_more_threads_than_places_whoever_comes_and_goes() {
        const THREADS: usize = PLACES + 20;
        const EACH: u64 = 1000;
        let tally = Tally::new();
        for round in 1..=3 {
            let all_there = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        tally.miss();
                        all_there.wait();
                        (0..EACH).for_each(|_| tally.hit());
                    });
                }
            });
            let threads = round * THREADS as u64;
            assert_eq!(tally.sums(), Sums { hits: threads * EACH, misses: threads });
        }
        tally.reset();
        tally.hit();
        assert_eq!(tally.sums(), Sums { hits: 1, misses: 0 });
    }
}
