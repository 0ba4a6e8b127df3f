//! Loads many values, no faster than the cluster takes them.
//!
//! Values are gathered into batches; a bounded number of batches is on its way, and whoever brings
//! more values than that waits. Memory is bounded by the batches, whatever the number of values.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use crate::{Cache, Error, Expiry, Put};

/// Bytes of a batch from which it is sent.
const BATCH_BYTES: usize = 256 * 1024;

/// Items of a batch at which it is sent.
const BATCH_LEN: usize = 1000;

/// Batches on their way.
const BATCHES_MAX: usize = 8;

/// Failures that are kept for the report; all are counted.
const FAILURES_KEPT_MAX: usize = 100;

/// A bulk load under way. See [`Cache::loader`].
///
/// Dropped before [`finish`](Self::finish), what was gathered is not sent, and what is on its way
/// may or may not be stored.
#[derive(Debug)]
pub struct Loader {
    cache: Cache,
    batch: Batch,
    room: Arc<Semaphore>,
    report: Arc<Mutex<LoadReport>>,
    tasks: JoinSet<()>,
}

/// What became of a bulk load.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoadReport {
    /// Values stored.
    pub stored: u64,
    /// Values not stored, or not known to be.
    pub failed: u64,
    /// The first of them, with their keys; at most 100.
    pub failures: Vec<(Bytes, Error)>,
}

#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    values: Vec<Gathered>,
}

#[derive(Debug)]
struct Gathered {
    key_end: usize,
    value_end: usize,
    flags: u32,
    expires: Expiry,
}

impl Cache {
    /// Loads many values with as many requests at once as the cluster takes.
    ///
    /// A value whose write may have happened is written again: loading twice is as good as once.
    /// Batches overtake each other: of two values for the same key, either may be the one that stays.
    ///
    /// ```no_run
    /// # use kiln_client::Put;
    /// # async fn example(cache: kiln_client::Cache) {
    /// let mut loader = cache.loader();
    /// for n in 0..1_000_000 {
    ///     loader.push(Put::new(&format!("key-{n}"), "value")).await;
    /// }
    /// let report = loader.finish().await;
    /// println!("{} stored, {} failed", report.stored, report.failed);
    /// # }
    /// ```
    pub fn loader(&self) -> Loader {
        Loader {
            cache: self.with_repeated_writes(),
            batch: Batch::default(),
            room: Arc::new(Semaphore::new(BATCHES_MAX)),
            report: Arc::default(),
            tasks: JoinSet::new(),
        }
    }
}

impl Loader {
    /// Takes a value. Waits while too many are on their way.
    ///
    /// Cancel safe: dropped, the value was taken.
    pub async fn push(&mut self, put: Put<'_>) {
        self.batch.push(put);
        if self.batch.is_full() {
            let room = self.room().await;
            self.send(room);
        }
    }

    /// Values that are known to be stored so far.
    pub fn stored(&self) -> u64 {
        self.report.lock().stored
    }

    /// Values that have failed so far.
    pub fn failed(&self) -> u64 {
        self.report.lock().failed
    }

    /// Sends what is left and waits for all of it.
    ///
    /// Not cancel safe: dropped, what is on its way may or may not be stored.
    pub async fn finish(mut self) -> LoadReport {
        if !self.batch.values.is_empty() {
            let room = self.room().await;
            self.send(room);
        }
        while self.tasks.join_next().await.is_some() {}
        self.report.lock().clone()
    }

    async fn room(&mut self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        let room = self.room.clone().acquire_owned().await.ok();
        while self.tasks.try_join_next().is_some() {}
        room
    }

    fn send(&mut self, room: Option<OwnedSemaphorePermit>) {
        let batch = std::mem::take(&mut self.batch);
        let (cache, report) = (self.cache.clone(), self.report.clone());
        let send = async move {
            let values = batch.puts();
            let results = cache.set_many(&values).await;
            let mut report = report.lock();
            for (put, result) in values.iter().zip(results) {
                match result {
                    Ok(_) => report.stored += 1,
                    Err(error) => {
                        report.failed += 1;
                        if report.failures.len() < FAILURES_KEPT_MAX {
                            report.failures.push((Bytes::copy_from_slice(put.key), error));
                        }
                    }
                }
            }
            drop(room);
        };
        self.tasks.spawn_on(send, &self.cache.core.settings.runtime);
    }
}

impl Batch {
    fn push(&mut self, put: Put<'_>) {
        self.bytes.extend_from_slice(put.key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(put.value);
        let value_end = self.bytes.len();
        let Put { flags, expires, .. } = put;
        self.values.push(Gathered { key_end, value_end, flags, expires });
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.values.len() >= BATCH_LEN
    }

    fn puts(&self) -> Vec<Put<'_>> {
        let mut begin = 0;
        let puts = self.values.iter().map(|gathered| {
            let Gathered { key_end, value_end, flags, expires } = *gathered;
            let key = &self.bytes[begin..key_end];
            begin = value_end;
            Put { key, value: &self.bytes[key_end..value_end], flags, expires }
        });
        puts.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_gives_back_what_was_put_into_it() {
        let mut batch = Batch::default();
        batch.push(Put::new("a", "one").flags(1));
        batch.push(Put::new("bb", "").expires(Duration::from_secs(2)));
        batch.push(Put::new("c", "three"));

        let puts = batch.puts();

        let pairs: Vec<_> = puts.iter().map(|put| (put.key, put.value)).collect();
        let expected: [(&[u8], &[u8]); 3] = [(b"a", b"one"), (b"bb", b""), (b"c", b"three")];
        assert_eq!(pairs, expected);
        assert_eq!((puts[0].flags, puts[1].flags), (1, 0));
        assert_eq!(puts[1].expires, Expiry::After(Duration::from_secs(2)));
    }

    #[test]
    fn a_batch_is_full_by_bytes_or_by_items() {
        let mut few = Batch::default();
        few.push(Put::new("k", &vec![0; BATCH_BYTES]));
        assert!(few.is_full());

        let mut many = Batch::default();
        (0..BATCH_LEN - 1).for_each(|_| many.push(Put::new("k", "")));
        assert!(!many.is_full());
        many.push(Put::new("k", ""));
        assert!(many.is_full());
    }
}
