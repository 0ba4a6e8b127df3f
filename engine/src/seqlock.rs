//! Whether anything changed while a reader looked: the sequence of a shard.
//!
//! Writers have the shard's lock, so there is one at a time. It makes the number odd before it
//! changes anything and even again when it is done. A reader takes no lock: it notes an even
//! number, looks, and looks at the number again; if that is the same, nobody wrote meanwhile and
//! what it saw was whole. If not, it throws away what it saw.
//!
//! Readers write nothing, so they neither wait for each other nor take each other's cache lines,
//! and have no instruction that waits for all earlier loads: the processor begins the next
//! lookup while the cache misses of this one are under way.
//!
//! A flush that waits for its time is marked in the number, too, so that a reader who has no other reason
//! to look for one needs not look: there is none.
//!
//! Cost: a reader, two loads of a line that only writers change; a writer, two stores.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Set while a change is under way.
const CHANGING: u64 = 1;
/// Set while a flush waits for its time.
const FLUSH_WAITS: u64 = 2;
/// What changes are counted by.
const CHANGE: u64 = 4;

/// Counts changes, above two marks.
pub(crate) struct Sequence {
    number: AtomicU64,
}

/// A moment at which nobody was writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u64);

impl Sequence {
    pub(crate) fn new() -> Self {
        Self { number: AtomicU64::new(0) }
    }

    /// A change begins. For the holder of the lock only.
    #[inline]
    pub(crate) fn begin_write(&self) {
        let number = self.number.load(Ordering::Relaxed);
        debug_assert!(number & CHANGING == 0, "one writer at a time");
        self.number.store(number | CHANGING, Ordering::Relaxed);
        // Whoever sees a byte written from here on sees the odd number, too.
        fence(Ordering::Release);
    }

    /// The change is done.
    #[inline]
    pub(crate) fn end_write(&self) {
        let number = self.number.load(Ordering::Relaxed);
        debug_assert!(number & CHANGING != 0, "a change was under way");
        self.number.store(number.wrapping_add(CHANGE - CHANGING), Ordering::Release);
    }

    /// Marks whether a flush waits for its time. Within a change only.
    #[inline]
    pub(crate) fn mark_flush(&self, waits: bool) {
        let number = self.number.load(Ordering::Relaxed);
        debug_assert!(number & CHANGING != 0, "a change is under way");
        let marked = number & !FLUSH_WAITS | if waits { FLUSH_WAITS } else { 0 };
        self.number.store(marked, Ordering::Relaxed);
    }

    /// Whether the change under way is the first since `then`. For the holder of the lock only.
    #[inline]
    pub(crate) fn is_first_since(&self, then: Moment) -> bool {
        self.number.load(Ordering::Relaxed) == then.0 | CHANGING
    }

    /// Now, unless a change is under way.
    #[inline(always)]
    pub(crate) fn now(&self) -> Option<Moment> {
        let number = self.number.load(Ordering::Acquire);
        (number & CHANGING == 0).then_some(Moment(number))
    }

    /// Now, unless a change is under way or a flush waits for its time.
    #[inline(always)]
    pub(crate) fn now_without_flush(&self) -> Option<Moment> {
        let number = self.number.load(Ordering::Acquire);
        (number & (CHANGING | FLUSH_WAITS) == 0).then_some(Moment(number))
    }

    /// Whether all that was read since `then` is of one piece.
    #[inline(always)]
    pub(crate) fn is_still(&self, then: Moment) -> bool {
        fence(Ordering::Acquire);
        self.number.load(Ordering::Relaxed) == then.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_lasts_until_the_next_change_and_the_next_writer_knows_it() {
        let sequence = Sequence::new();
        let then = sequence.now().unwrap();
        assert!(sequence.is_still(then));

        sequence.begin_write();
        assert_eq!(sequence.now(), None);
        assert!(!sequence.is_still(then));
        assert!(sequence.is_first_since(then));
        sequence.end_write();

        assert!(!sequence.is_still(then));
        sequence.begin_write();
        assert!(!sequence.is_first_since(then));
        sequence.end_write();
        assert_ne!(sequence.now(), Some(then));
    }

    #[test]
    fn a_mark_of_a_waiting_flush_lasts_over_changes_until_it_is_taken_off() {
        let sequence = Sequence::new();
        let mark = |waits| {
            sequence.begin_write();
            sequence.mark_flush(waits);
            sequence.end_write();
        };
        let then = sequence.now_without_flush().unwrap();
        mark(true);
        assert!(!sequence.is_still(then));
        for _ in 0..3 {
            assert_eq!(sequence.now_without_flush(), None);
            assert!(sequence.is_still(sequence.now().unwrap()));
            sequence.begin_write();
            assert_eq!(sequence.now(), None);
            sequence.end_write();
        }
        mark(false);
        assert_eq!(sequence.now_without_flush(), sequence.now());
        assert!(sequence.now().is_some_and(|now| now != then));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::{Arc, Mutex};

    /// Two words that are always equal between changes, and who may change them.
    struct Pair {
        sequence: Sequence,
        lock: Mutex<()>,
        words: [AtomicU64; 2],
    }

    impl Pair {
        fn new() -> Arc<Self> {
            let words = [AtomicU64::new(0), AtomicU64::new(0)];
            Arc::new(Self { sequence: Sequence::new(), lock: Mutex::new(()), words })
        }

        fn write(&self, by: u64) {
            let _lock = self.lock.lock().unwrap();
            self.sequence.begin_write();
            for word in &self.words {
                let old = word.load(Ordering::Relaxed);
                word.store(old + by, Ordering::Relaxed);
            }
            self.sequence.end_write();
        }

        fn read(&self) -> Option<[u64; 2]> {
            let moment = self.sequence.now()?;
            let words = [0, 1].map(|at| self.words[at].load(Ordering::Relaxed));
            self.sequence.is_still(moment).then_some(words)
        }
    }

    #[test]
    fn a_reader_never_believes_half_a_change() {
        loom::model(|| {
            let pair = Pair::new();
            let writer = {
                let pair = Arc::clone(&pair);
                loom::thread::spawn(move || {
                    pair.write(1);
                    pair.write(1);
                })
            };
            if let Some([first, second]) = pair.read() {
                assert_eq!(first, second);
            }
            writer.join().unwrap();
            assert_eq!(pair.read(), Some([2, 2]));
        });
    }

    #[test]
    fn a_reader_never_believes_half_a_change_of_either_of_two_writers() {
        loom::model(|| {
            let pair = Pair::new();
            let writers = [1, 10].map(|by| {
                let pair = Arc::clone(&pair);
                loom::thread::spawn(move || pair.write(by))
            });
            if let Some([first, second]) = pair.read() {
                assert_eq!(first, second);
            }
            for writer in writers {
                writer.join().unwrap();
            }
            assert_eq!(pair.read(), Some([11, 11]));
        });
    }

    /// A page goes from one shard to another, who writes to it under another sequence: a reader of
    /// the first shard who sees those words sees that its own shard changed.
    #[test]
    fn words_that_went_to_another_shard_are_not_believed_by_readers_of_the_first() {
        loom::model(|| {
            let first = Arc::new(Sequence::new());
            let second = Arc::new(Sequence::new());
            let pool = Arc::new(Mutex::new(false));
            let word = Arc::new(AtomicU64::new(1));
            let giver = {
                let (first, pool) = (Arc::clone(&first), Arc::clone(&pool));
                loom::thread::spawn(move || {
                    first.begin_write();
                    *pool.lock().unwrap() = true;
                    first.end_write();
                })
            };
            let taker = {
                let (second, pool, word) =
                    (Arc::clone(&second), Arc::clone(&pool), Arc::clone(&word));
                loom::thread::spawn(move || {
                    second.begin_write();
                    let taken = *pool.lock().unwrap();
                    // As in `Region::take`.
                    fence(Ordering::Release);
                    if taken {
                        word.store(2, Ordering::Relaxed);
                    }
                    second.end_write();
                })
            };
            let before = *pool.lock().unwrap();
            if let (false, Some(moment)) = (before, first.now()) {
                let seen = word.load(Ordering::Relaxed);
                if first.is_still(moment) && moment == Moment(0) {
                    assert_eq!(seen, 1);
                }
            }
            giver.join().unwrap();
            taker.join().unwrap();
        });
    }
}
