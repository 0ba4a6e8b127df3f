//! The pages of an index, readable while it grows.
//!
//! Readers without the shard's lock follow a pointer to the page numbers, so the array behind it
//! is never freed while they may: when it becomes too small, a larger one takes its place, and the
//! old one is kept until the index goes. Each is at least twice the one before, so all together
//! are less than twice the last.
//!
//! Invariants:
//! - the array is never empty and only ever gets longer, and its entries are offsets of pages of the
//!   region, also those beyond the end: what follows one, reads inside the region;
//! - without pages the first entry is 0: page 0 is nobody's and empty, so what is looked for there
//!   is not found.
//!
//! Cost: 8 to 32 bytes for each page of buckets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::region::{PAGE_LEN, PageId};

/// Page of each run of buckets.
pub(crate) struct Directory {
    /// Where pages begin. Not a `Box`, which would have to be the only way to what it holds.
    entries: Arc<[AtomicUsize]>,
    len: usize,
    /// Former `entries`: readers may still be at them.
    retired: Vec<Arc<[AtomicUsize]>>,
}

impl Directory {
    pub(crate) fn new() -> Self {
        let entries = (0..Self::LEN_MIN).map(|_| AtomicUsize::new(0)).collect();
        Self { entries, len: 0, retired: Vec::new() }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The page with this number. It must be below `len`.
    #[inline]
    pub(crate) fn get(&self, number: usize) -> PageId {
        debug_assert!(number < self.len);
        page_at(&self.entries[number])
    }

    pub(crate) fn push(&mut self, page: PageId) {
        if self.len == self.entries.len() {
            let copies = self.entries.iter().map(|entry| entry.load(Ordering::Relaxed));
            let zeros = std::iter::repeat_n(0, self.len);
            let entries = copies.chain(zeros).map(AtomicUsize::new).collect();
            self.retired.push(std::mem::replace(&mut self.entries, entries));
        }
        self.entries[self.len].store(page as usize * PAGE_LEN, Ordering::Relaxed);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<PageId> {
        self.len = self.len.checked_sub(1)?;
        Some(page_at(&self.entries[self.len]))
    }

    /// Takes all pages out.
    pub(crate) fn take(&mut self) -> Vec<PageId> {
        let pages = (0..self.len).map(|number| self.get(number)).collect();
        self.len = 0;
        self.entries[0].store(0, Ordering::Relaxed);
        pages
    }

    /// The first entry, for readers without the lock: valid for `len` entries, and for as many as
    /// `len` ever was before, but for one at least, until the directory goes.
    #[inline]
    pub(crate) fn entries(&self) -> *mut AtomicUsize {
        self.entries.as_ptr().cast_mut()
    }

    /// Bytes on the heap.
    pub(crate) fn table_bytes(&self) -> usize {
        let arrays = self.retired.iter().chain([&self.entries]);
        arrays.map(|array| size_of_val(&**array)).sum::<usize>()
            + self.retired.capacity() * size_of::<Arc<[AtomicUsize]>>()
    }

    const LEN_MIN: usize = 4;
}

fn page_at(entry: &AtomicUsize) -> PageId {
    (entry.load(Ordering::Relaxed) / PAGE_LEN) as PageId
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
        assert_eq!(unsafe { &*early }.load(Ordering::Relaxed), 11 * PAGE_LEN);

        assert_eq!((directory.get(0), directory.get(1000), directory.len()), (11, 1099, 1001));
        assert_eq!(directory.pop(), Some(1099));
        let longest = directory.entries();
        assert_eq!(directory.take().len(), 1000);
        directory.push(5);
        assert_eq!(directory.entries(), longest, "arrays are never exchanged for shorter ones");
        assert!(directory.table_bytes() < 2 * 16 * 1024 + 1024);
    }

    #[test]
    fn without_pages_readers_are_led_to_the_page_that_is_nobodys() {
        let first = |directory: &Directory| {
            // SAFETY: there is one entry at least, and the directory is there.
            unsafe { &*directory.entries() }.load(Ordering::Relaxed)
        };
        let mut directory = Directory::new();
        assert_eq!(first(&directory), 0);
        (1..100).for_each(|page| directory.push(page));
        assert_eq!(first(&directory), PAGE_LEN);
        directory.take();
        assert_eq!(first(&directory), 0);
    }
}
