//! What the connections count. What happens to items, the store counts itself.
//!
//! Each worker has its own set and is the only one to write it, so counting is a plain load, add
//! and store: no locked instruction, no cache line shared between cores. Readers sum over workers
//! when someone asks; such a sum is exact once the workers rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only rises, written by one thread and read by all.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the worker that owns the counter may call this: two writers lose counts.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one worker.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct Counters {
            $($(#[doc = $doc])+ pub(crate) $name: Counter,)+
        }

        /// The counters of all workers, summed.
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct Totals {
            $($(#[doc = $doc])+ pub(crate) $name: u64,)+
        }

        impl Totals {
            /// Adds what one worker counted.
            pub(crate) fn add(&mut self, worker: &Counters) {
                $(self.$name += worker.$name.get();)+
            }
        }
    };
}

counters! {
    /// Operations on items by memcached clients.
    memcached_ops,
    /// Operations on items by native clients.
    native_ops,
    /// Commands in the meta form.
    cmd_meta,
    /// Attempts to authenticate.
    auth_cmds,
    /// Attempts to authenticate that failed.
    auth_errors,
    /// Requests that were not understood.
    protocol_errors,
    /// Bytes read from clients.
    bytes_read,
    /// Bytes written to clients.
    bytes_written,
    /// Times that a connection had to let others pass although it had more to do.
    conn_yields,
    /// Connections accepted and served.
    total_connections,
    /// Connections closed for being idle.
    idle_kicks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_the_sum_over_the_workers() {
        let workers = [Counters::default(), Counters::default()];
        workers[0].cmd_meta.add(3);
        workers[1].cmd_meta.add(4);
        workers[1].bytes_read.add(5);

        let mut totals = Totals::default();
        workers.iter().for_each(|worker| totals.add(worker));

        assert_eq!((totals.cmd_meta, totals.bytes_read, totals.idle_kicks), (7, 5, 0));
    }
}
