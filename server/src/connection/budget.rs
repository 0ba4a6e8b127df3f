//! What clients may have in flight together: values still coming in, and bytes that wait.
//!
//! Each connection is bounded by itself, but thousands of them together would not be. So what is
//! held between two turns of a connection is drawn from budgets that are part of the node's
//! memory:
//!
//! - *uploads*: a long value is admitted whole before it is received, in the order of asking, so
//!   that those admitted can always finish; the others wait a while without being read from;
//! - *buffers*: starts of short requests, and replies that a client has not taken;
//! - *pinned*: large values that are being sent, which the store cannot evict meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Uploads are admitted in units of this many bytes.
const UPLOAD_UNIT: usize = 1024;

/// How long an upload waits to be admitted.
const ADMISSION_WAIT: Duration = Duration::from_secs(30);

/// The least of the budgets, so that small nodes still serve.
const BUFFERS_MIN: usize = 1 << 20;

/// How the memory of a node is shared out between its store and its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// For items and index.
    pub(crate) store: usize,
    uploads: usize,
    buffers: usize,
}

impl Shares {
    /// Two values at least may come in at once; the process itself has its part.
    pub(crate) fn of(memory: usize, value_len_max: usize) -> Self {
        /// Code, stacks, tables and the allocator's own, measured.
        const PROCESS: usize = 16 << 20;
        let uploads = (memory / 32).max(2 * value_len_max).min(memory / 4);
        let buffers = (memory / 32).max(BUFFERS_MIN);
        let process = PROCESS.min(memory / 8);
        let store = memory.saturating_sub(uploads + buffers + process);
        Self { store: store.max(kiln_engine::MEMORY_MIN), uploads, buffers }
    }
}

/// The budgets of a node.
#[derive(Debug)]
pub(crate) struct Budget {
    uploads: Arc<Semaphore>,
    uploads_total: usize,
    buffers: Pool,
    pinned: Pool,
}

impl Budget {
    pub(crate) fn new(shares: Shares) -> Self {
        let units = (shares.uploads / UPLOAD_UNIT).min(Semaphore::MAX_PERMITS);
        Self {
            uploads: Arc::new(Semaphore::new(units)),
            uploads_total: units,
            buffers: Pool::new(shares.buffers),
            pinned: Pool::new(shares.store / 4),
        }
    }

    /// Admits a long value; `None` when there was no room for too long.
    pub(crate) async fn admit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // The largest value fits always, also with its line and where shares are rounded.
        let units = bytes.div_ceil(UPLOAD_UNIT).min(self.uploads_total);
        let permits = Arc::clone(&self.uploads).acquire_many_owned(u32::try_from(units).ok()?);
        tokio::time::timeout(ADMISSION_WAIT, permits).await.ok()?.ok()
    }

    /// Bytes held now, pinned values aside.
    pub(crate) fn used(&self) -> usize {
        let uploads = self.uploads_total - self.uploads.available_permits();
        uploads * UPLOAD_UNIT + self.buffers.used()
    }

    /// The longest reply that a protocol should gather of many items: so long that some clients
    /// that do not read can be waited for at a time.
    pub(crate) fn gathered_len_max(&self) -> usize {
        self.buffers.total / 4
    }

    /// A share of the buffers, of nothing yet.
    pub(crate) fn buffers(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), pool: |budget| &budget.buffers, bytes: 0 }
    }

    /// A share of what may be pinned, of nothing yet.
    pub(crate) fn pinned(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), pool: |budget| &budget.pinned, bytes: 0 }
    }
}

#[derive(Debug)]
struct Pool {
    free: AtomicUsize,
    total: usize,
}

impl Pool {
    fn new(total: usize) -> Self {
        Self { free: AtomicUsize::new(total), total }
    }

    fn used(&self) -> usize {
        self.total - self.free.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.free.fetch_add(bytes, Relaxed);
    }
}

/// What one connection drew from a pool; given back when it is dropped.
pub(crate) struct Share {
    budget: Arc<Budget>,
    pool: fn(&Budget) -> &Pool,
    bytes: usize,
}

impl Share {
    /// Makes the share `bytes`. False, and nothing changed, when the pool has no more; making it
    /// smaller always succeeds.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        let pool = (self.pool)(&self.budget);
        if bytes > self.bytes {
            if !pool.take(bytes - self.bytes) {
                return false;
            }
        } else if bytes < self.bytes {
            pool.give(self.bytes - bytes);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_never_exceed_a_pool_and_return_what_they_took() {
        let budget = Arc::new(Budget::new(Shares::of(32 << 20, 1 << 20)));
        let (mut first, mut second) = (budget.buffers(), budget.buffers());

        assert!(first.resize(BUFFERS_MIN - 10));
        assert!(!second.resize(11));
        assert!(second.resize(10));
        assert!(first.resize(5));
        assert!(second.resize(100));
        assert_eq!(budget.used(), 105);
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_store_gets_most_of_the_memory_and_all_shares_fit_in_it() {
        for mebibytes in [8, 64, 512, 4096, 65536] {
            let memory = mebibytes << 20;
            let shares = Shares::of(memory, 1 << 20);
            assert!(shares.store + shares.uploads + shares.buffers <= memory, "{shares:?}");
            assert!(shares.store >= memory / 2, "{shares:?}");
        }
    }

    #[tokio::test]
    async fn the_largest_value_is_admitted_when_nothing_else_is() {
        let budget = Budget::new(Shares::of(8 << 20, 4 << 20));
        let permit = budget.admit((4 << 20) + 300).await;
        assert!(permit.is_some());
        drop(permit);
        assert_eq!(budget.used(), 0);
    }
}
