//! The connections of one HTTP thread: which are at rest, and which have been at it for too long.
//!
//! A connection that says nothing may stay while there is room, and for a while. When there is none,
//! the one at rest for longest gives way to whoever knocks, so that clients which are kept open for
//! nothing keep nobody out.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::AbortHandle};

/// A connection at rest is closed after so long.
const REST_TIME_MAX_MS: u64 = 60_000;

/// Time for one answer, however slowly its client takes it.
const ANSWER_TIME_MAX_MS: u64 = 600_000;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Requests whose answer is not all handed over yet.
    under_way: AtomicUsize,
    /// Of those, answers that have no end of their own.
    endless: AtomicUsize,
    /// When it last came to rest, or began to work.
    since_ms: AtomicU64,
    /// Asks it to close when nothing is under way.
    close: Notify,
}

impl Link {
    /// A request has come.
    pub(super) fn begin(&self, now_ms: u64) {
        if self.under_way.fetch_add(1, AcqRel) == 0 {
            self.since_ms.store(now_ms, Relaxed);
        }
    }

    /// The answer that is under way will not end by itself.
    pub(super) fn never_ends(&self) {
        self.endless.fetch_add(1, Relaxed);
    }

    /// An answer is handed over.
    pub(super) fn end(&self, was_endless: bool, now_ms: u64) {
        if was_endless {
            self.endless.fetch_sub(1, Relaxed);
        }
        self.since_ms.store(now_ms, Relaxed);
        self.under_way.fetch_sub(1, AcqRel);
    }

    /// Waits until someone wants the connection closed.
    pub(super) async fn closing(&self) {
        self.close.notified().await;
    }

    fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.since_ms.load(Relaxed))
    }

    fn rests(&self) -> bool {
        self.under_way.load(Acquire) == 0
    }
}

/// All connections of a thread.
#[derive(Debug, Default)]
pub(super) struct Links {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

/// A connection and, once that is known, its task.
type Open = (Arc<Link>, Option<AbortHandle>);

impl Links {
    /// Adds a connection; the number stands for it.
    pub(super) fn add(&self, now_ms: u64) -> (u64, Arc<Link>) {
        let link = Arc::new(Link { since_ms: AtomicU64::new(now_ms), ..Link::default() });
        let number = self.next.fetch_add(1, Relaxed);
        self.open.lock().insert(number, (Arc::clone(&link), None));
        (number, link)
    }

    /// Says which task a connection is, unless it has ended already.
    pub(super) fn is_task(&self, number: u64, task: AbortHandle) {
        if let Some((_, slot)) = self.open.lock().get_mut(&number) {
            *slot = Some(task);
        }
    }

    /// A connection has ended.
    pub(super) fn remove(&self, number: u64) {
        self.open.lock().remove(&number);
    }

    /// Asks the connection to close that has been at rest for longest. False when none is at rest.
    pub(super) fn make_room(&self, now_ms: u64) -> bool {
        let mut open = self.open.lock();
        let resting = open.iter().filter(|(_, (link, _))| link.rests());
        let Some((number, link)) = resting
            .max_by_key(|(_, (link, _))| link.age_ms(now_ms))
            .map(|(number, (link, _))| (*number, Arc::clone(link)))
        else {
            return false;
        };
        // Not asked twice: it is as good as gone.
        open.remove(&number);
        link.close.notify_one();
        true
    }

    /// Closes what has been at rest, and cuts what has been at work, for too long.
    pub(super) fn sweep(&self, now_ms: u64) {
        let mut late = Vec::new();
        for (link, task) in self.open.lock().values() {
            let age_ms = link.age_ms(now_ms);
            if link.rests() {
                if age_ms > REST_TIME_MAX_MS {
                    link.close.notify_one();
                }
            } else if age_ms > ANSWER_TIME_MAX_MS && link.endless.load(Relaxed) == 0 {
                late.extend(task.clone());
            }
        }
        // A task that ends takes itself off, so the lock must be free.
        late.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn is_asked(link: &Link) -> bool {
        link.closing().now_or_never().is_some()
    }

    #[test]
    fn the_connection_at_rest_for_longest_gives_way() {
        let links = Links::default();
        let (_, busy) = links.add(0);
        busy.begin(1);
        assert!(!links.make_room(5));
        let (_, younger) = links.add(3);
        let (_, elder) = links.add(2);
        assert!(links.make_room(5));
        assert!(is_asked(&elder) && !is_asked(&younger) && !is_asked(&busy));
        assert!(links.make_room(5) && is_asked(&younger));
        assert!(!links.make_room(5));
    }

    #[test]
    fn rest_begins_when_the_last_answer_is_handed_over_and_ends_the_connection_at_last() {
        let links = Links::default();
        let (_, link) = links.add(0);
        link.begin(10);
        link.begin(20);
        link.end(false, 30);
        links.sweep(30 + REST_TIME_MAX_MS + 1);
        assert!(!is_asked(&link));
        link.end(false, 40);
        links.sweep(40 + REST_TIME_MAX_MS);
        assert!(!is_asked(&link));
        links.sweep(41 + REST_TIME_MAX_MS);
        assert!(is_asked(&link));
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_cut_unless_it_has_no_end() {
        let links = Links::default();
        let mut tasks = Vec::new();
        for endless in [false, true] {
            let (number, link) = links.add(0);
            link.begin(0);
            if endless {
                link.never_ends();
            }
            let task = tokio::spawn(std::future::pending::<()>());
            links.is_task(number, task.abort_handle());
            tasks.push(task);
        }
        links.sweep(ANSWER_TIME_MAX_MS + 1);
        assert!((&mut tasks[0]).await.unwrap_err().is_cancelled());
        assert!(!tasks[1].is_finished());
        tasks[1].abort();
    }
}
