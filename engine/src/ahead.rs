//! Running ahead of a batch, so that its cache misses overlap.
//!
//! A lookup is two misses that depend on each other: bucket, then item. In a batch those of many
//! lookups can be under way at once. They are asked for some places ahead of the operation at work
//! rather than all at the start: a processor has only so many misses in flight, and while it waits
//! for them it could be working.
//!
//! ```text
//!   operations:   done | at work | ......  item asked for | ......  bucket asked for | ...
//! ```
//!
//! Cost: some instructions a key. Prefetches are hints: that a bucket has moved meanwhile, or its
//! shard is being written to, costs a miss at most.

use crate::store::Store;
use crate::view::BucketAt;

/// Hashes in turn, with memory asked for ahead: see [`Store::ahead`].
pub struct Ahead<'a> {
    store: &'a Store,
    hashes: &'a [u64],
    next: usize,
    /// Bit i, counted from `next`, is set where the item was not in the first bucket.
    chained: u64,
    /// Where the buckets asked for are, at the place modulo their number.
    buckets: [BucketAt; PLACES],
}

impl<'a> Ahead<'a> {
    #[inline]
    pub(crate) fn new(store: &'a Store, hashes: &'a [u64]) -> Self {
        let buckets = [BucketAt::default(); PLACES];
        let mut ahead = Self { store, hashes, next: 0, chained: 0, buckets };
        // One alone waits as long either way.
        if hashes.len() > 1 {
            for (place, &hash) in hashes.iter().enumerate().take(BUCKETS_AHEAD) {
                ahead.prefetch_bucket(hash, place);
            }
            for (place, &hash) in hashes.iter().enumerate().take(ITEMS_AHEAD) {
                ahead.prefetch_item(hash, place);
            }
        }
        ahead
    }

    #[inline(always)]
    fn prefetch_bucket(&mut self, hash: u64, place: usize) {
        self.buckets[place % PLACES] = self.store.prefetch_bucket(hash);
    }

    #[inline(always)]
    fn prefetch_item(&mut self, hash: u64, place: usize) {
        let chained = self.store.prefetch_item(hash, self.buckets[place % PLACES]);
        self.chained |= u64::from(chained) << (place - self.next);
    }
}

impl Iterator for Ahead<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let at = self.next;
        let &hash = self.hashes.get(at)?;
        if let Some(&later) = self.hashes.get(at + ITEMS_AHEAD) {
            if let Some(&latest) = self.hashes.get(at + BUCKETS_AHEAD) {
                self.prefetch_bucket(latest, at + BUCKETS_AHEAD);
            }
            self.prefetch_item(later, at + ITEMS_AHEAD);
        }
        if self.chained >> CHAINED_AHEAD & 1 != 0
            && let Some(&later) = self.hashes.get(at + CHAINED_AHEAD)
        {
            self.store.prefetch_chained(later);
        }
        self.chained >>= 1;
        self.next += 1;
        Some(hash)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.hashes.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Ahead<'_> {}

impl std::fmt::Debug for Ahead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("left", &self.len()).finish_non_exhaustive()
    }
}

/// How many places ahead items are asked for: an item takes three or four misses, each of which
/// takes as long as the work on one or two others.
const ITEMS_AHEAD: usize = 12;

/// How many places ahead buckets are asked for: long enough for them to come before the item is
/// asked for.
const BUCKETS_AHEAD: usize = 2 * ITEMS_AHEAD;

/// How many places ahead items in the second bucket are asked for.
const CHAINED_AHEAD: usize = ITEMS_AHEAD / 2;

/// Places for buckets on their way.
const PLACES: usize = 32;

const _: () = assert!(ITEMS_AHEAD < u64::BITS as usize && BUCKETS_AHEAD < PLACES);
