//! The one block of memory behind a store, and the pool of pages cut from it.
//!
//! Everything that grows with the data (items, large values, the index) lives in 64 KiB pages of
//! one anonymous mapping. A page belongs either to the pool or to exactly one shard, so the
//! ceiling is a count of pages, and what a shard gives back another can take whatever its sizes
//! are: no general allocator stands between, whose fragmentation could break the ceiling.
//!
//! The mapping is reserved at its largest size and touched page by page from the low end, so
//! resident memory follows use. It asks for huge pages: dependent loads from a table that does not
//! fit the caches are a third cheaper with them.
//!
//! Invariants:
//! - page 0 is never handed out, so that address 0 can mean "none";
//! - `taken <= limit`, except after the limit was lowered and until shards gave pages back.
//!
//! Cost: taking and giving a page is one uncontended lock; a page serves hundreds of items.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};
use parking_lot::Mutex;

use crate::heap::PageMeta;
use crate::racy::{RacyBytes, SPAN_LEN};

/// Bytes in a page: the unit in which shards take memory.
pub(crate) const PAGE_LEN: usize = 64 * 1024;

const _: () = assert!(SPAN_LEN <= PAGE_LEN);

/// Number of a page in its region. Page 0 is reserved.
pub(crate) type PageId = u32;

/// The mapping and its page pool. Shared by the shards of a store.
pub(crate) struct Region {
    // Kept for its `Drop`: the mapping lives as long as any shard or pinned value.
    map: MmapMut,
    base: *mut u8,
    // One `PageMeta` a page, in a mapping of its own so that only those of pages in use are resident.
    metas: *mut PageMeta,
    _metas_map: MmapMut,
    /// One past the last page of the mapping.
    end: PageId,
    pool: Mutex<Pool>,
}

// SAFETY: `base` points into `map`, which the region owns. Bytes behind it are only reached
// through `Heap`, which touches pages its shard took from the pool, under that shard's lock.
unsafe impl Send for Region {}
// SAFETY: as above; the region's own state is behind a mutex.
unsafe impl Sync for Region {}

struct Pool {
    /// Pages given back, taken last-in first-out while they are warm in the caches.
    free: Vec<PageId>,
    /// First page never handed out so far.
    fresh: PageId,
    /// Pages with shards.
    taken: u32,
    /// Bytes the store may hold in pages and on the heap together.
    limit_bytes: usize,
    /// Bytes that shards hold on the heap beside their pages.
    heap_bytes: usize,
    /// Whether pages given back return to the operating system: after the limit was lowered.
    release: bool,
}

impl Pool {
    fn limit_pages(&self) -> u32 {
        let pages = self.limit_bytes.saturating_sub(self.heap_bytes) / PAGE_LEN;
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}

impl Region {
    /// Reserves address space for `reserve_bytes` and lets `limit_bytes` of it be used.
    pub(crate) fn new(limit_bytes: usize, reserve_bytes: usize) -> std::io::Result<Arc<Self>> {
        let pages = reserve_bytes.max(limit_bytes).div_ceil(PAGE_LEN) + 1;
        // Aligned by hand to 64 KiB at least: index buckets must not straddle cache lines. Behind
        // the last page lies one that nobody has: see `racy`.
        let mut map =
            MmapOptions::new().len((pages + 2) * PAGE_LEN).no_reserve_swap().map_anon()?;
        // A refusal costs speed only: the kernel may be built without huge pages.
        let _ = map.advise(Advice::HugePage);
        let start = map.as_mut_ptr();
        let base = start.wrapping_add(start.align_offset(PAGE_LEN));
        let end = PageId::try_from(pages).unwrap_or(PageId::MAX);
        let mut metas_map =
            MmapOptions::new().len(pages * size_of::<PageMeta>()).no_reserve_swap().map_anon()?;
        Ok(Arc::new(Self {
            map,
            base,
            metas: metas_map.as_mut_ptr().cast(),
            _metas_map: metas_map,
            end,
            pool: Mutex::new(Pool {
                free: Vec::new(),
                fresh: 1,
                taken: 0,
                limit_bytes,
                heap_bytes: 0,
                release: false,
            }),
        }))
    }

    /// Start of the pages. Valid for [`len`](Self::len) bytes while the region lives.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// The pages, for reading while others write to them. To be used no longer than the region is.
    pub(crate) fn racy(&self) -> RacyBytes {
        // SAFETY: the pages are mapped as long as the region lives, and a page more behind them;
        // anonymous memory is zeroed, so always initialised.
        unsafe { RacyBytes::new(self.base, self.len()) }
    }

    /// Where the heap that holds this page keeps what it knows of it. The pointer is aligned and
    /// lives as long as the region; its content is the holder's affair.
    pub(crate) fn meta(&self, page: PageId) -> *mut PageMeta {
        debug_assert!(page < self.end, "page of the region");
        self.metas.wrapping_add(page as usize)
    }

    /// Bytes from `base` to the end of the last page.
    pub(crate) fn len(&self) -> usize {
        self.end as usize * PAGE_LEN
    }

    /// Takes a page, or `None` at the ceiling.
    pub(crate) fn take(&self) -> Option<PageId> {
        let mut pool = self.pool.lock();
        // The page may have been another shard's a moment ago. Whoever sees what is written to it
        // from here on sees that the other shard changed: see `seqlock`.
        fence(Ordering::Release);
        if pool.taken >= pool.limit_pages() {
            return None;
        }
        let page = match pool.free.pop() {
            Some(page) => page,
            None if pool.fresh < self.end => {
                pool.fresh += 1;
                pool.fresh - 1
            }
            None => return None,
        };
        pool.taken += 1;
        Some(page)
    }

    /// Takes a page although the pool may be over its limit: for a shard that has just given one,
    /// so that after the ceiling was lowered writes can still make their own room.
    pub(crate) fn take_in_exchange(&self) -> Option<PageId> {
        let mut pool = self.pool.lock();
        // As in `take`.
        fence(Ordering::Release);
        let page = pool.free.pop()?;
        pool.taken += 1;
        Some(page)
    }

    /// Gives a page back. The caller must not touch it any more.
    pub(crate) fn give(&self, page: PageId) {
        let mut pool = self.pool.lock();
        pool.taken -= 1;
        pool.free.push(page);
        if pool.release && pool.taken as usize + pool.free.len() > pool.limit_pages() as usize {
            self.release_to_os(page);
        }
    }

    /// Pages held by shards beyond the limit: what has to be given back.
    pub(crate) fn excess_pages(&self) -> u32 {
        let pool = self.pool.lock();
        pool.taken.saturating_sub(pool.limit_pages())
    }

    /// Pages that can still be taken.
    pub(crate) fn spare_pages(&self) -> u32 {
        let pool = self.pool.lock();
        pool.limit_pages().saturating_sub(pool.taken)
    }

    /// Pages held by shards.
    pub(crate) fn taken_pages(&self) -> u32 {
        self.pool.lock().taken
    }

    /// Accounts for heap memory that a shard began (`old < new`) or ceased to hold.
    pub(crate) fn account_heap(&self, old: usize, new: usize) {
        let mut pool = self.pool.lock();
        pool.heap_bytes = (pool.heap_bytes + new).saturating_sub(old);
    }

    /// The ceiling in bytes.
    pub(crate) fn limit_bytes(&self) -> usize {
        self.pool.lock().limit_bytes
    }

    /// Moves the ceiling, at most up to the address space reserved. Returns the ceiling set.
    /// Memory above a lowered ceiling goes back to the operating system as shards release it.
    pub(crate) fn set_limit_bytes(&self, limit_bytes: usize) -> usize {
        let mut pool = self.pool.lock();
        let most = (self.end as usize - 1) * PAGE_LEN;
        let lowered = limit_bytes < pool.limit_bytes;
        pool.limit_bytes = limit_bytes.min(most);
        pool.release |= lowered;
        if lowered {
            for &page in &pool.free {
                self.release_to_os(page);
            }
        }
        pool.limit_bytes
    }

    fn release_to_os(&self, page: PageId) {
        let offset = self.base.addr() - self.map.as_ptr().addr() + page as usize * PAGE_LEN;
        // SAFETY: the page is in no shard's hands, so nobody reads or writes it, and its content
        // need not survive. A refusal by the kernel leaves it resident, which is only less thrifty.
        let _ =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, PAGE_LEN) };
    }
}
