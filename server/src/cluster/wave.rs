//! Requests that wait for the replication core together.
//!
//! A connection hands in a *wave*: requests of one batch, for different keys. The driver fills in
//! their answers as they come, in any order; the connection's task is woken once, when all are
//! there, and answers its client in the order of the requests. One wave per connection at a time,
//! so that what a client sent first is done first.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{self, Poll},
};

use bytes::Bytes;
use kiln_cluster::{
    effect::{ItemKey, Operation},
    ids::{Generation, Mode},
    node::{Refusal, Reply, Request},
};
use parking_lot::Mutex;

use super::near::Sleeper;
use crate::caches::ClusterCache;

/// Answers that a connection waits for.
#[derive(Debug)]
pub(crate) struct Wave {
    done: AtomicBool,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    answers: Vec<Option<Reply>>,
    left: usize,
    sleeper: Option<Sleeper>,
}

/// A request on its way to the driver.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What is asked. The driver names it, where it may be repeated.
    pub(crate) request: Request,
    /// What its cache promises.
    pub(crate) mode: Mode,
    /// How long it may take before the client is told that nobody could do it.
    pub(crate) within_ms: u32,
}

impl Asked {
    /// A request for an item of a cache. `seen` is the generation whose losses the client was told
    /// of.
    pub(crate) fn new(
        cache: &ClusterCache,
        key: Bytes,
        operation: Operation,
        seen: Generation,
        within_ms: u32,
    ) -> Self {
        let key = ItemKey { cache: cache.id, key };
        let request = Request { id: None, key, operation, seen };
        Self { request, mode: cache.group.mode, within_ms }
    }
}

/// A wave on its way to the driver.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Where the answers go, one for each request.
    pub(crate) wave: Arc<Wave>,
    /// In order.
    pub(crate) asked: Vec<Asked>,
}

impl Wave {
    /// A wave of so many requests.
    pub(crate) fn new(len: usize) -> Arc<Self> {
        let inside = Inside { answers: vec![None; len], left: len, sleeper: None };
        Arc::new(Self { done: AtomicBool::new(len == 0), inside: Mutex::new(inside) })
    }

    /// The answer to one of its requests. When it is the last one, returns whom to wake; the
    /// driver does that at the end of its turn.
    pub(crate) fn answer(&self, slot: usize, reply: Reply) -> Option<Sleeper> {
        let mut inside = self.inside.lock();
        let place = inside.answers.get_mut(slot).filter(|place| place.is_none())?;
        *place = Some(reply);
        inside.left -= 1;
        if inside.left > 0 {
            return None;
        }
        self.done.store(true, Release);
        inside.sleeper.take()
    }

    /// Nobody will look at these requests.
    pub(crate) fn refuse_all(&self, refusal: Refusal) {
        let len = self.inside.lock().answers.len();
        for slot in 0..len {
            if let Some(sleeper) = self.answer(slot, Reply::NotApplied(refusal)) {
                sleeper.wake();
            }
        }
    }

    /// Whether all answers are there.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Acquire)
    }

    /// Ready when all answers are there; else `task` is woken then.
    pub(crate) fn poll(&self, task: &task::Context<'_>) -> Poll<()> {
        if self.is_done() {
            return Poll::Ready(());
        }
        let mut inside = self.inside.lock();
        if inside.left == 0 {
            return Poll::Ready(());
        }
        inside.sleeper = Some(Sleeper::of(task));
        Poll::Pending
    }

    /// Takes the answers, in the order of the requests. What has none counts as not known.
    pub(crate) fn take(&self) -> Vec<Reply> {
        let answers = std::mem::take(&mut self.inside.lock().answers);
        answers.into_iter().map(|answer| answer.unwrap_or(Reply::Indeterminate)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use kiln_cluster::effect::Outcome;

    use super::*;

    #[test]
    fn the_last_answer_wakes_whoever_waits_and_answers_keep_the_order_of_requests() {
        let wave = Wave::new(2);
        let task = task::Context::from_waker(Waker::noop());
        assert!(wave.poll(&task).is_pending());
        assert!(wave.answer(1, Reply::Done(Outcome::Deleted)).is_none());
        // Told twice, the first answer stands.
        assert!(wave.answer(1, Reply::Indeterminate).is_none());
        assert!(wave.answer(0, Reply::Done(Outcome::NotFound)).is_some());
        assert!(wave.poll(&task).is_ready());
        let answers = [Reply::Done(Outcome::NotFound), Reply::Done(Outcome::Deleted)];
        assert_eq!(wave.take(), answers);
    }

    #[test]
    fn a_refused_wave_is_done() {
        let wave = Wave::new(3);
        wave.refuse_all(Refusal::Busy);
        assert!(wave.is_done());
        assert_eq!(wave.take(), vec![Reply::NotApplied(Refusal::Busy); 3]);
    }
}
