//! Who runs the driver's turns.
//!
//! The cluster thread runs them when the time or the table asks for it. A worker that hands in requests,
//! or reads what another node says, runs the turn itself, after the other connections that are ready,
//! unless somebody is at it: what it asks leaves for the other nodes, and what they answer is told,
//! without another thread being woken first. What always holds:
//! whoever ran a turn looks once more after it let the driver go, so that nothing that was put in
//! meanwhile is left lying; only the cluster thread ever waits for the driver.

use std::{sync::Arc, time::Duration};

use kiln_cluster::{message::Message, node::Refusal, topology::Topology};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{driver::Driver, near::Near, wave::Submission};

/// Waves that wait for a turn. More are refused as busy.
const SUBMISSIONS_MAX: usize = 4_096;

/// Waves taken in one turn.
const SUBMISSIONS_PER_TURN: usize = 256;

/// Turns that a worker runs in a row before it leaves them to the cluster thread.
const TURNS_MAX: usize = 4;

/// The driver, and what waits for it.
#[derive(Default)]
pub(super) struct Turns {
    waiting: Mutex<Waiting>,
    /// For the cluster thread: there is something to do.
    arrived: Notify,
    /// None before the node is in a cluster and after it stopped.
    driver: Mutex<Option<Driver>>,
}

/// What the next turn takes.
#[derive(Default)]
struct Waiting {
    messages: Vec<Message>,
    submissions: Vec<Submission>,
    stopped: bool,
}

impl Turns {
    /// The driver that runs the turns from now on.
    pub(super) fn begin(&self, driver: Driver) {
        *self.driver.lock() = Some(driver);
    }

    /// No more turns.
    pub(super) fn stop(&self) {
        let left = {
            let mut waiting = self.waiting.lock();
            waiting.stopped = true;
            std::mem::take(&mut waiting.submissions)
        };
        left.iter().for_each(|submission| submission.wave.refuse_all(Refusal::Busy));
        let driver = self.driver.lock().take();
        drop(driver);
        self.wake();
    }

    /// Has the cluster thread look what there is to do.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// A message of another node came; `more` of the same read follow.
    pub(super) fn put(&self, message: Message, more: bool) {
        self.waiting.lock().messages.push(message);
        if !more {
            self.wake_near();
        }
    }

    /// Requests for the next turn. False when too many wait.
    pub(super) fn submit(&self, submission: Submission) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.stopped || waiting.submissions.len() >= SUBMISSIONS_MAX {
            return false;
        }
        waiting.submissions.push(submission);
        drop(waiting);
        self.wake_near();
        true
    }

    /// Has this thread look, if it runs turns; else the cluster thread.
    fn wake_near(&self) {
        if !Near::wake_this() {
            self.arrived.notify_one();
        }
    }

    /// What the turn that begins takes: waves up to a limit, and all messages.
    pub(super) fn take(&self) -> (Vec<Submission>, Vec<Message>) {
        let mut waiting = self.waiting.lock();
        let messages = std::mem::take(&mut waiting.messages);
        if waiting.submissions.len() <= SUBMISSIONS_PER_TURN {
            return (std::mem::take(&mut waiting.submissions), messages);
        }
        (waiting.submissions.drain(..SUBMISSIONS_PER_TURN).collect(), messages)
    }

    fn is_empty(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.messages.is_empty() && waiting.submissions.is_empty()
    }

    /// Runs the turns for requests of this thread, one current-thread runtime, for as long as it is
    /// polled. After that the cluster thread does.
    pub(super) async fn attend(self: Arc<Self>) {
        let _gone = Gone(Arc::clone(&self));
        let here = Near::here();
        loop {
            here.called().await;
            // Often it was called for answers only.
            if !self.is_empty() {
                self.run_here();
            }
        }
    }

    fn run_here(&self) {
        let turn = |driver: &mut Driver| {
            driver.turn(self);
            let due = driver.due();
            if due < driver.sleeps_until {
                driver.sleeps_until = due;
                self.wake();
            }
        };
        if while_free(&self.driver, || self.is_empty(), turn) {
            self.wake();
        }
    }

    /// The cluster thread: runs turns until the node stops.
    pub(super) async fn run(
        &self,
        mut topology: watch::Receiver<Arc<Topology>>,
        mut leading: watch::Receiver<bool>,
    ) {
        loop {
            let Some(wait) = self.run_on_time(&mut topology, &mut leading) else { return };
            if !self.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.arrived.notified() => {}
                changed = topology.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                () = sleep_until(Instant::now() + wait) => {}
            }
        }
    }

    /// One turn, and how long there is nothing to do after it if nothing happens.
    fn run_on_time(
        &self,
        topology: &mut watch::Receiver<Arc<Topology>>,
        leading: &mut watch::Receiver<bool>,
    ) -> Option<Duration> {
        let mut place = self.driver.lock();
        let driver = place.as_mut()?;
        let table = Arc::clone(&topology.borrow_and_update());
        driver.take_topology(&table);
        driver.take_leading(*leading.borrow_and_update());
        driver.turn(self);
        driver.sleeps_until = driver.due();
        Some(driver.until_due())
    }
}

/// Takes turns with what `place` holds, unless another thread is at it: that one looks for what is
/// waiting when it lets go. True when there is more to do than turns for one to take in a row.
fn while_free<D>(
    place: &Mutex<Option<D>>,
    is_empty: impl Fn() -> bool,
    mut turn: impl FnMut(&mut D),
) -> bool {
    for _ in 0..TURNS_MAX {
        let Some(mut held) = place.try_lock() else { return false };
        let Some(driver) = held.as_mut() else { return false };
        turn(driver);
        drop(held);
        if is_empty() {
            return false;
        }
    }
    true
}

/// The thread that ran turns for its own requests does not any more.
struct Gone(Arc<Turns>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn nothing_that_is_put_in_is_left_lying_whoever_takes_the_turns() {
        const THREADS: usize = 3;
        const ROUNDS: usize = 3_000;
        let waiting = Mutex::new(Vec::new());
        let place = Mutex::new(Some(Vec::new()));
        let barrier = Barrier::new(THREADS);
        let turn = |taken: &mut Vec<usize>| {
            let new = std::mem::take(&mut *waiting.lock());
            taken.extend(new);
        };
        let is_empty = || waiting.lock().is_empty();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (barrier, waiting, place) = (&barrier, &waiting, &place);
                let (turn, is_empty) = (&turn, &is_empty);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        barrier.wait();
                        waiting.lock().push(round * THREADS + thread);
                        if while_free(place, is_empty, turn) {
                            // What the cluster thread does, which waits for its turn.
                            place.lock().as_mut().into_iter().for_each(turn);
                        }
                        barrier.wait();
                        // All have done what they do of themselves.
                        assert!(is_empty(), "round {round}");
                    }
                });
            }
        });
        let mut taken = place.into_inner().unwrap();
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..THREADS * ROUNDS));
    }

    #[test]
    fn turns_in_a_row_end_and_leave_the_rest_to_be_asked_for() {
        let place = Mutex::new(Some(0));
        assert!(while_free(&place, || false, |turns| *turns += 1));
        assert_eq!(*place.lock(), Some(TURNS_MAX));
        let held = place.lock();
        assert!(!while_free(&place, || false, |_| unreachable!("another one has it")));
        drop(held);
        *place.lock() = None;
        assert!(!while_free(&place, || false, |_| unreachable!("there is none")));
    }
}
