//! Waking the tasks of another worker, all of them with one system call.
//!
//! A turn answers requests of several workers. To wake a task of another thread's runtime is a system
//! call each time, also when that thread is awake or has just been woken. So each worker has a list:
//! whoever has answers for its tasks puts their wakers there, and wakes the worker if the list was empty;
//! the worker wakes its tasks itself, which is no system call. What always holds: of what is in a list the
//! worker has been told and has not looked since; when the worker ends, nothing is left in it.
//!
//! Bounds: a list has a waker at most for each request that waits.

use std::{
    cell::RefCell,
    sync::Arc,
    task::{Context, Waker},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

thread_local! {
    static NEAR: RefCell<Option<Arc<Near>>> = const { RefCell::new(None) };
}

/// A worker, as others reach it.
#[derive(Debug)]
pub(super) struct Near {
    arrived: Notify,
    /// Tasks of the worker that are to be woken; none any more when it has ended.
    answered: Mutex<Option<Vec<Waker>>>,
}

impl Near {
    /// Makes this thread one that others reach, until the guard is dropped.
    pub(super) fn here() -> Here {
        let near = Self { arrived: Notify::new(), answered: Mutex::new(Some(Vec::new())) };
        let near = Arc::new(near);
        NEAR.set(Some(Arc::clone(&near)));
        Here(near)
    }

    /// Has this thread look, if it is one that others reach. Else false.
    pub(super) fn wake_this() -> bool {
        of_this(|near| near.arrived.notify_one()).is_some()
    }
}

/// What is said of how others reach this thread, if they do; nor do they while it ends.
fn of_this<R>(say: impl FnOnce(&Arc<Near>) -> R) -> Option<R> {
    NEAR.try_with(|near| near.borrow().as_ref().map(say)).ok().flatten()
}

/// This thread is one that others reach.
#[derive(Debug)]
pub(super) struct Here(Arc<Near>);

impl Here {
    /// Waits until this thread is to look, and wakes those of its tasks that were answered.
    pub(super) async fn called(&self) {
        self.0.arrived.notified().await;
        let answered = self.0.answered.lock().as_mut().map(std::mem::take);
        answered.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let _ = NEAR.try_with(|near| near.take());
        let left = self.0.answered.lock().take();
        left.into_iter().flatten().for_each(Waker::wake);
    }
}

/// A task that waits for answers.
#[derive(Debug)]
pub(crate) struct Sleeper {
    waker: Waker,
    /// The worker it belongs to, if it belongs to one.
    near: Option<Arc<Near>>,
}

impl Sleeper {
    /// The task that is polled now, on this thread.
    pub(super) fn of(task: &Context<'_>) -> Self {
        Self { waker: task.waker().clone(), near: of_this(Arc::clone) }
    }

    /// Wakes it.
    pub(crate) fn wake(self) {
        let Self { waker, near } = self;
        let is_this = |near: &Arc<Near>| of_this(|this| Arc::ptr_eq(this, near)) == Some(true);
        let Some(near) = near.filter(|near| !is_this(near)) else { return waker.wake() };
        let mut answered = near.answered.lock();
        match &mut *answered {
            Some(list) => {
                let first = list.is_empty();
                list.push(waker);
                drop(answered);
                if first {
                    near.arrived.notify_one();
                }
            }
            None => {
                drop(answered);
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::Wake,
        thread,
        time::Duration,
    };

    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn sleeper(counting: &Arc<Counting>) -> Sleeper {
        let waker = Waker::from(Arc::clone(counting));
        Sleeper::of(&Context::from_waker(&waker))
    }

    fn from_elsewhere(sleepers: Vec<Sleeper>) {
        thread::spawn(|| sleepers.into_iter().for_each(Sleeper::wake)).join().unwrap();
    }

    #[test]
    fn tasks_that_others_answer_are_woken_by_their_own_thread_and_own_ones_at_once() {
        let counting = Arc::new(Counting::default());
        let woken = || counting.0.load(Relaxed);
        let here = Near::here();
        sleeper(&counting).wake();
        assert_eq!(woken(), 1);
        from_elsewhere(vec![sleeper(&counting), sleeper(&counting)]);
        assert_eq!(woken(), 1, "not on the other thread");
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let called =
            || runtime.block_on(async { timeout(Duration::from_secs(5), here.called()).await });
        called().unwrap();
        assert_eq!(woken(), 3);
        // The list is empty again: the next one calls again.
        from_elsewhere(vec![sleeper(&counting)]);
        called().unwrap();
        assert_eq!(woken(), 4);
    }

    #[test]
    fn when_a_worker_ends_all_its_tasks_have_been_woken_and_later_ones_are_woken_directly() {
        let counting = Arc::new(Counting::default());
        let here = Near::here();
        let late = sleeper(&counting);
        from_elsewhere(vec![sleeper(&counting), sleeper(&counting)]);
        drop(here);
        assert_eq!(counting.0.load(Relaxed), 2);
        from_elsewhere(vec![late, sleeper(&counting)]);
        assert_eq!(counting.0.load(Relaxed), 4);
        assert!(!Near::wake_this());
    }
}
