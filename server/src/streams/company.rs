//! From alone to one of several.
//!
//! On a node that is alone the state of streams is in its operators only: nobody else could go on
//! with it, and writing it down would cost more than the readings do. Before another node is let near
//! the caches, all of it must be in the changelogs, so that it moves with its partitions. The driver
//! of the cluster asks here before it takes up a table with other nodes in it; the shards write what
//! they have, and from then on every record before it is applied.

use std::{
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Acquire, SeqCst},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// How long the other node waits. What cannot be written in this time (the caches are full) is
/// written later, and lost if its partition moves before.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Whether changelogs are written, and what is not in them.
#[derive(Debug, Default)]
pub(crate) struct Company {
    /// Records are written before they are applied.
    expected: AtomicBool,
    /// Partitions whose state is only here, and shards that are just changing some.
    volatile: AtomicUsize,
    since: Mutex<Option<Instant>>,
}

impl Company {
    /// Whether every record is to be written before it is applied.
    pub(super) fn is_expected(&self) -> bool {
        self.expected.load(Acquire)
    }

    /// Begins to change state that is only here. False when that may not be any more.
    pub(super) fn enter_alone(&self) -> bool {
        // Said before the look, in one order for all: who is told after it waits for this one.
        self.volatile.fetch_add(1, SeqCst);
        if self.expected.load(SeqCst) {
            self.volatile.fetch_sub(1, SeqCst);
            return false;
        }
        true
    }

    /// Something more is only here. Only while entered.
    pub(super) fn add(&self, count: usize) {
        self.volatile.fetch_add(count, SeqCst);
    }

    /// Something is so no longer.
    pub(super) fn done(&self, count: usize) {
        self.volatile.fetch_sub(count, SeqCst);
    }

    /// Another node is to come. True when it may; to be asked again until then.
    pub(crate) fn may_come(&self) -> bool {
        self.expected.store(true, SeqCst);
        let volatile = self.volatile.load(SeqCst);
        let mut since = self.since.lock();
        let waits = since.get_or_insert_with(Instant::now).elapsed();
        if volatile > 0 && waits >= WAIT_MAX {
            tracing::error!(
                partitions = volatile,
                "the state of streams could not be written before another node came"
            );
        }
        volatile == 0 || waits >= WAIT_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_node_waits_for_what_is_only_here() {
        let company = Company::default();
        assert!(company.enter_alone());
        company.add(2);
        assert!(!company.may_come());
        // The shard leaves; its two partitions are still only here.
        company.done(1);
        assert!(!company.may_come() && !company.enter_alone() && company.is_expected());
        company.done(2);
        assert!(company.may_come());
    }
}
