//! A flush that waits for its time.
//!
//! The one place in the engine where threads meet without a lock: every operation looks whether a
//! delayed flush is due, and one of those that find it so takes it on. The loom test below goes
//! through all interleavings.
//!
//! Cost: a relaxed load of a line that hardly ever changes.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

const NONE: u64 = u64::MAX;

/// When the next flush is due, if one is.
pub(crate) struct FlushTimer {
    at_ms: AtomicU64,
}

impl FlushTimer {
    pub(crate) fn new() -> Self {
        Self { at_ms: AtomicU64::new(NONE) }
    }

    /// Sets the time, or none; replaces an earlier one.
    pub(crate) fn set(&self, at_ms: Option<u64>) {
        // A swap rather than a store, so that it and a taking have one order.
        self.at_ms.swap(at_ms.unwrap_or(NONE), Ordering::AcqRel);
    }

    /// The time that is set.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        Some(self.at_ms.load(Ordering::Relaxed)).filter(|&at| at != NONE)
    }

    /// Whether a flush is due, for whoever leaves it to others.
    #[inline(always)]
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.at_ms.load(Ordering::Relaxed)
    }

    /// Whether the caller must flush now: true for exactly one caller for each time set. The
    /// others may go on before that one has flushed, as if they had come a moment earlier.
    #[inline]
    pub(crate) fn take_due(&self, now_ms: u64) -> bool {
        let due = self.at_ms.load(Ordering::Relaxed);
        // The clock never reaches `NONE`.
        now_ms >= due && self.take(due)
    }

    #[cold]
    fn take(&self, due: u64) -> bool {
        self.at_ms.compare_exchange(due, NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    #[test]
    fn a_due_flush_is_taken_by_exactly_one_of_several() {
        loom::model(|| {
            let timer = Arc::new(FlushTimer::new());
            let taken = Arc::new(AtomicUsize::new(0));
            timer.set(Some(10));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (timer, taken) = (Arc::clone(&timer), Arc::clone(&taken));
                    loom::thread::spawn(move || {
                        if timer.take_due(10) {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(taken.load(Ordering::Relaxed), 1);
            assert_eq!(timer.due_ms(), None);
        });
    }

    #[test]
    fn a_time_set_while_another_is_taken_is_not_lost() {
        loom::model(|| {
            let timer = Arc::new(FlushTimer::new());
            timer.set(Some(10));
            let other = {
                let timer = Arc::clone(&timer);
                loom::thread::spawn(move || timer.take_due(10))
            };
            timer.set(Some(20));
            let early = other.join().unwrap();
            // Either the first was taken before it was replaced, or it never was; the second stays.
            assert_eq!(timer.due_ms(), Some(20), "taken early: {early}");
            assert!(timer.take_due(20));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_due_once_and_from_its_time_on() {
        let timer = FlushTimer::new();
        assert!(!timer.take_due(u64::MAX - 1));
        timer.set(Some(10));
        assert!(!timer.take_due(9));
        assert!(timer.take_due(11));
        assert!(!timer.take_due(12));
    }
}
