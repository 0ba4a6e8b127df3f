//! How many buckets an index has, and which of them is a hash's.
//!
//! Linear hashing: in a round of splits a bucket is numbered by all bits of the round if there is one
//! with that number yet, else by one bit fewer. Both numbers are kept where their bits lie in the
//! hash, so that a lookup shifts nothing.
//!
//! Invariant: readers without the lock may see the fields of two extents mixed, and still get a page
//! that the directory has: each number is below `buckets`, or within `narrow`, of an extent that was
//! published after the directory had room for it.
//!
//! Cost: no branch, which would be taken as often as not.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::heap::BUCKET_LEN;
use crate::index::BUCKETS_PER_PAGE;
use crate::racy::racy;

/// Buckets are numbered by the hash from this bit on.
const SHIFT: u32 = 16;

/// How many buckets there are, and the hash bits that number them in the round of splits under way,
/// each by 2^[`SHIFT`]. Addresses are of 32 bits, so there are fewer buckets than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    buckets: u64,
    wide: u64,
    narrow: u64,
}

impl Extent {
    /// Of an index without buckets. Any hash is in page 0.
    pub(crate) const CLOSED: Self = Self { buckets: 0, wide: 0, narrow: 0 };

    /// Of an index with `1 << level` buckets before the round under way, and `split` of them split.
    #[inline]
    pub(crate) fn new(level: u32, split: usize) -> Self {
        let before = 1_u64 << level;
        Self {
            buckets: (before + split as u64) << SHIFT,
            wide: (2 * before - 1) << SHIFT,
            narrow: (before - 1) << SHIFT,
        }
    }

    #[inline(always)]
    fn scaled(self, hash: u64) -> u64 {
        let (wide, narrow) = (hash & self.wide, hash & self.narrow);
        if wide < self.buckets { wide } else { narrow }
    }

    /// The bucket of a hash.
    #[inline(always)]
    pub(crate) fn number(self, hash: u64) -> usize {
        (self.scaled(hash) >> SHIFT) as usize
    }

    /// Which of the pages has the bucket of a hash.
    #[inline(always)]
    pub(crate) fn page(self, hash: u64) -> usize {
        (self.scaled(hash) >> (SHIFT + BUCKETS_PER_PAGE.trailing_zeros())) as usize
    }

    /// Where the bucket of a hash is in its page: by bits that number buckets in every round.
    #[inline(always)]
    pub(crate) fn in_page(hash: u64) -> usize {
        const MASK: usize = (BUCKETS_PER_PAGE - 1) * BUCKET_LEN;
        (hash >> (SHIFT - BUCKET_LEN.trailing_zeros())) as usize & MASK
    }
}

/// The extent as readers without the lock see it.
pub(crate) struct RacyExtent {
    buckets: AtomicU64,
    wide: AtomicU64,
    narrow: AtomicU64,
}

impl RacyExtent {
    pub(crate) fn new(extent: Extent) -> Self {
        let Extent { buckets, wide, narrow } = extent;
        Self { buckets: buckets.into(), wide: wide.into(), narrow: narrow.into() }
    }

    /// To be called when the directory has room for it.
    #[inline]
    pub(crate) fn set(&self, extent: Extent) {
        self.buckets.store(extent.buckets, Ordering::Release);
        self.wide.store(extent.wide, Ordering::Release);
        self.narrow.store(extent.narrow, Ordering::Release);
    }

    /// An extent, or a mixture of several. The directory read after it has room for it.
    #[inline(always)]
    pub(crate) fn get(&self) -> Extent {
        let Self { buckets, wide, narrow } = self;
        let extent = Extent { wide: racy(wide), narrow: racy(narrow), buckets: racy(buckets) };
        fence(Ordering::Acquire);
        extent
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LEVEL_MIN: u32 = BUCKETS_PER_PAGE.trailing_zeros();

    #[test]
    fn page_and_place_in_it_are_those_of_the_bucket_s_number() {
        for (level, split) in [(LEVEL_MIN, 0), (LEVEL_MIN, 7), (12, 4_095), (20, 12_345)] {
            let extent = Extent::new(level, split);
            for n in 0..100_000_u64 {
                let hash = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let number = extent.number(hash);
                assert!(number < (1 << level) + split);
                assert_eq!(extent.page(hash), number / BUCKETS_PER_PAGE);
                assert_eq!(Extent::in_page(hash), number % BUCKETS_PER_PAGE * BUCKET_LEN);
            }
        }
        assert_eq!((Extent::CLOSED.number(u64::MAX), Extent::CLOSED.page(u64::MAX)), (0, 0));
    }

    #[test]
    fn a_mixture_of_extents_leads_to_no_page_that_neither_has() {
        let both = [Extent::new(12, 4_095), Extent::new(13, 0)];
        let pages = 8192 / BUCKETS_PER_PAGE;
        for choice in 0..8 {
            let [buckets, wide, narrow] = [0, 1, 2].map(|field| both[choice >> field & 1]);
            let mixed = Extent { buckets: buckets.buckets, wide: wide.wide, narrow: narrow.narrow };
            for hash in (0..1_u64 << 16).map(|n| n << SHIFT) {
                assert!(mixed.page(hash) < pages);
            }
        }
    }
}
