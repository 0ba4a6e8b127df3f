//! What clients may have in flight together: requests that have come in part, and replies not yet
//! taken.
//!
//! Each connection is bounded by itself, but thousands of them together would not be. So bytes
//! held between two turns of a connection are drawn from one budget, a fixed part of the node's
//! memory; a connection that cannot get more is refused its request, and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The least budget, so that small nodes still take their largest value.
const BYTES_MIN: usize = 8 << 20;

/// Bytes left for all connections of a node.
#[derive(Debug)]
pub(crate) struct Budget {
    free: AtomicUsize,
    total: usize,
}

impl Budget {
    /// A sixteenth of the node's memory, and room for two of its largest values.
    pub(crate) fn new(memory: usize, value_len_max: usize) -> Self {
        let total = (memory / 16).max(BYTES_MIN).max(2 * value_len_max);
        Self { free: AtomicUsize::new(total), total }
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.total - self.free.load(Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.free.fetch_add(bytes, Relaxed);
    }
}

/// What one connection drew from the budget; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// A share of nothing yet.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Makes the share `bytes`. False, and nothing changed, when the budget has no more.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            if !self.budget.take(bytes - self.bytes) {
                return false;
            }
        } else if bytes < self.bytes {
            self.budget.give(self.bytes - bytes);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_together_never_exceed_the_budget_and_return_what_they_took() {
        let budget = Arc::new(Budget::new(0, 0));
        let mut first = Share::new(Arc::clone(&budget));
        let mut second = Share::new(Arc::clone(&budget));

        assert!(first.resize(BYTES_MIN - 10));
        assert!(!second.resize(11));
        assert!(second.resize(10));
        assert!(first.resize(5));
        assert!(second.resize(100));
        assert_eq!(budget.used(), 105);
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
