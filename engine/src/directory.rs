//! The pages of an index, readable while it grows.
//!
//! Readers without the shard's lock follow a pointer to the page numbers, so the array behind it
//! is never freed while they may: when it becomes too small, a larger one takes its place, and the
//! old one is kept until the index goes. Each is at least twice the one before, so all together
//! are less than twice the last.
//!
//! Invariant: the array only ever gets longer, and its entries are 0 or pages of the region, also
//! those beyond the end.
//!
//! Cost: 4 to 16 bytes for each page of buckets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::region::PageId;

/// Page of each run of buckets.
pub(crate) struct Directory {
    // Not a `Box`, which would have to be the only way to what it holds.
    entries: Arc<[AtomicU32]>,
    len: usize,
    /// Former `entries`: readers may still be at them.
    retired: Vec<Arc<[AtomicU32]>>,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { entries: Arc::default(), len: 0, retired: Vec::new() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The page with this number. It must be below `len`.
    #[inline]
    pub(crate) fn get(&self, number: usize) -> PageId {
        debug_assert!(number < self.len);
        self.entries[number].load(Ordering::Relaxed)
    }

    pub(crate) fn push(&mut self, page: PageId) {
        if self.len == self.entries.len() {
            let longer = (2 * self.len).max(Self::LEN_MIN);
            let entry = |at| AtomicU32::new(if at < self.len { self.get(at) } else { 0 });
            let entries = (0..longer).map(entry).collect();
            self.retired.push(std::mem::replace(&mut self.entries, entries));
        }
        self.entries[self.len].store(page, Ordering::Relaxed);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<PageId> {
        self.len = self.len.checked_sub(1)?;
        Some(self.entries[self.len].load(Ordering::Relaxed))
    }

    /// Takes all pages out.
    pub(crate) fn take(&mut self) -> Vec<PageId> {
        let pages = (0..self.len).map(|number| self.get(number)).collect();
        self.len = 0;
        pages
    }

    /// The first entry, for readers without the lock: valid for `len` entries, and for as many as
    /// `len` ever was before, until the directory goes.
    #[inline]
    pub(crate) fn entries(&self) -> *mut AtomicU32 {
        self.entries.as_ptr().cast_mut()
    }

    /// Bytes on the heap.
    pub(crate) fn table_bytes(&self) -> usize {
        let arrays = self.retired.iter().chain([&self.entries]);
        arrays.map(|array| size_of_val(&**array)).sum::<usize>()
            + self.retired.capacity() * size_of::<Arc<[AtomicU32]>>()
    }

    const LEN_MIN: usize = 4;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_array_that_readers_may_be_at_stays_readable_when_a_longer_one_follows() {
        let mut directory = Directory::new();
        directory.push(11);
        let early = directory.entries();
        (0..1000).for_each(|page| directory.push(100 + page));
        assert_ne!(directory.entries(), early);
        // SAFETY: what this test is about.
        assert_eq!(unsafe { &*early }.load(Ordering::Relaxed), 11);

        assert_eq!((directory.get(0), directory.get(1000), directory.len()), (11, 1099, 1001));
        assert_eq!(directory.pop(), Some(1099));
        let longest = directory.entries();
        assert_eq!(directory.take().len(), 1000);
        directory.push(5);
        assert_eq!(directory.entries(), longest, "arrays are never exchanged for shorter ones");
        assert!(directory.table_bytes() < 16 * 1024 + 1024);
    }
}
