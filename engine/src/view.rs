//! A shard as readers see it who do not take its lock.
//!
//! Most requests to a cache are reads that find an item and leave it as it is. For them a lock is
//! dear: taking and releasing it makes the processor finish everything before, so that each lookup
//! waits for its own cache misses alone. Here a lookup goes from the published table to bucket and
//! item with plain loads, copies the value, and then asks the [`Sequence`] whether all of that was
//! one moment. If not, or if the item is not [`Plain`](crate::item::Plain), the caller takes the lock.
//!
//! ```text
//!   sequence, extent, directory --> bucket --> item --> copy --> sequence unchanged?
//! ```
//!
//! Invariants:
//! - the extent is published after the directory that has room for it, and directories only get
//!   longer: an extent never leads beyond the directory read after it;
//! - nothing read is used before the sequence confirmed it, but to find the next address, and every
//!   address is checked.
//!
//! Cost: no store to shared memory. One cache line of the view, one for the bucket, those of the
//! item, and a second copy of the value.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::extent::{Extent, RacyExtent};
use crate::heap::{NIL, Slot};
use crate::index::{ITEM_END, ITEM_LINES, RacyBucket, prefetch_early};
use crate::item::{Head, Parts, Plain, SMALL_LEN_MAX, Unmoved, VALUE_LEN_AT};
use crate::policy::PolicyKind;
use crate::racy::{CopyBuffer, RacyBytes, RacySpan, VectorCopy, halves, in_one_register};
use crate::region::Region;
use crate::seqlock::{Moment, Sequence};
use crate::shard::Shard;

/// Overflow buckets a lookup follows. A chain that a writer is changing may seem to have no end.
const CHAIN_MAX: usize = 8;

/// See the head of this file. Pairs of cache lines apart, as processors fetch them in pairs.
#[repr(align(128))]
pub(crate) struct ShardView {
    pub(crate) sequence: Sequence,
    extent: RacyExtent,
    directory: AtomicPtr<AtomicUsize>,
    bytes: RacyBytes,
    unmoved: Unmoved,
    granule_shift: u32,
    /// Bytes of an item before its optional parts. Narrow, so that the compiler knows that keys and small
    /// values behind it end inside a span.
    fixed_len: u8,
    /// Keeps `bytes` mapped.
    _region: Arc<Region>,
}

const VIEW_LEN: usize = size_of::<ShardView>();

const _: () = assert!(VIEW_LEN.is_power_of_two() && VIEW_LEN > 1);

/// The views of a store's shards.
pub(crate) struct Views {
    views: Box<[ShardView]>,
}

impl Views {
    /// # Panics
    /// When there are not a power of two.
    pub(crate) fn new(views: Box<[ShardView]>) -> Self {
        assert!(views.len().is_power_of_two(), "so that a mask never leads beyond them");
        Self { views }
    }

    /// The views by the hashes of their keys.
    #[inline(always)]
    pub(crate) fn by_hash(&self) -> ViewsByHash<'_> {
        let mask = (self.views.len() - 1) * VIEW_LEN;
        ViewsByHash { first: self.views.as_ptr(), mask, views: PhantomData }
    }

    #[inline]
    pub(crate) fn numbered(&self, number: usize) -> &ShardView {
        &self.views[number]
    }
}

/// Which view is a hash's, found by two numbers at hand.
#[derive(Clone, Copy)]
pub(crate) struct ViewsByHash<'a> {
    first: *const ShardView,
    /// Distance of the last view from the first, in bytes: all bits of the distance of any.
    mask: usize,
    views: PhantomData<&'a [ShardView]>,
}

/// The bits of a hash from this one on choose the shard.
const SHARD_SHIFT: u32 = 48;

impl<'a> ViewsByHash<'a> {
    /// Distance of the view of a hash from the first, in bytes.
    #[inline(always)]
    fn distance(self, hash: u64) -> usize {
        (hash >> (SHARD_SHIFT - VIEW_LEN.trailing_zeros())) as usize & self.mask
    }

    /// The number of the shard of a hash.
    #[inline(always)]
    pub(crate) fn number(self, hash: u64) -> usize {
        self.distance(hash) / VIEW_LEN
    }

    #[inline(always)]
    pub(crate) fn of(self, hash: u64) -> &'a ShardView {
        // SAFETY: the distance is that of a view, as they are a power of two: see `Views::new`.
        let view = unsafe { self.first.byte_add(self.distance(hash)) };
        // SAFETY: as above.
        unsafe { &*in_one_register(view) }
    }
}

// SAFETY: the pointers lead to memory that any thread may read at any time: the region through
// volatile loads, the directory through atomics. The rest is atomics and constants.
unsafe impl Send for ShardView {}
// SAFETY: as above.
unsafe impl Sync for ShardView {}

impl ShardView {
    /// The view of a shard. Must go no later than the shard, whose directory it reads.
    pub(crate) fn new(shard: &Shard, policy: PolicyKind, start_ms: u64) -> Self {
        let (region, granule_shift) = shard.items.heap.region();
        let value_len_max =
            if VectorCopy::here().is_some() { VectorCopy::LEN_MAX } else { SMALL_LEN_MAX };
        let view = Self {
            sequence: Sequence::new(),
            extent: RacyExtent::new(Extent::CLOSED),
            directory: AtomicPtr::default(),
            bytes: region.racy(),
            unmoved: Unmoved::new(policy.settled(), start_ms, value_len_max),
            granule_shift,
            fixed_len: shard.items.fixed_len() as u8,
            _region: Arc::clone(region),
        };
        view.publish(shard);
        view
    }

    /// Tells readers where the index is now. For the holder of the shard's lock.
    #[inline]
    pub(crate) fn publish(&self, shard: &Shard) {
        let (extent, directory) = shard.index.published();
        self.directory.store(directory, Ordering::Release);
        self.extent.set(extent);
    }

    /// Offset of the first bucket of a hash; while there are no buckets, of one that is empty.
    #[inline(always)]
    fn bucket_at(&self, hash: u64) -> usize {
        // In this order: see the invariants.
        let page = self.extent.get().page(hash);
        let directory = self.directory.load(Ordering::Acquire);
        // SAFETY: the directory was published before the extent and is long enough for it, and
        // arrays of the directory live as long as the shard, which goes no sooner than this.
        let page_at = unsafe { &*directory.wrapping_add(page) }.load(Ordering::Relaxed);
        page_at + Extent::in_page(hash)
    }

    /// The first bucket of a hash.
    #[inline(always)]
    fn bucket(&self, hash: u64) -> RacyBucket {
        // SAFETY: the entries of a directory are offsets of pages of the region, whatever else they
        // are, and the bucket is in the page.
        RacyBucket::new(unsafe { self.bytes.span_inside(self.bucket_at(hash)) })
    }

    /// Copies the value of an unmoved item, `at` bytes from its start, to the start of `target`; `early` by
    /// addresses that do not wait for its length. Returns the length, of which as little is to be believed as
    /// of the value; `None` when there is no room for what is written.
    #[inline(always)]
    pub(crate) fn copy_unmoved(
        item: RacySpan,
        at: usize,
        target: &mut [MaybeUninit<u8>],
        early: Option<VectorCopy>,
    ) -> Option<usize> {
        if let Some(how) = early {
            // The lowest bits of the length are all of it: see `new`.
            let len = usize::from(item.u8(VALUE_LEN_AT));
            item.copy_vectors_to(at, len, target.first_chunk_mut()?, how);
            return Some(len);
        }
        let len = item.u64(VALUE_LEN_AT) as usize & SMALL_LEN_MAX;
        item.copy_to(at, len, target.get_mut(..len)?);
        Some(len)
    }

    #[inline(always)]
    fn offset(&self, slot: Slot) -> usize {
        (slot as usize) << self.granule_shift
    }

    /// Asks for the bucket that a lookup of this hash reads first, and says where that is now.
    #[inline(always)]
    pub(crate) fn prefetch_bucket(&self, hash: u64) -> BucketAt {
        let at = BucketAt(self.bucket_at(hash));
        prefetch_early(self.bytes.address(at.0));
        at
    }

    /// Asks for what a lookup of this hash will read behind the bucket: the item whose tag
    /// matches, or else the next bucket. True in that case:
    /// [`prefetch_chained`](Self::prefetch_chained) goes on from there.
    #[inline(always)]
    pub(crate) fn prefetch_item(&self, hash: u64, at: BucketAt) -> bool {
        let Some(bucket) = RacyBucket::at(&self.bytes, at.0) else { return false };
        let next = bucket.overflow();
        let chained = !self.prefetch_match(&bucket, hash) && next != NIL;
        if chained {
            prefetch_early(self.bytes.address(self.offset(next)));
        }
        chained
    }

    /// Asks for the item whose tag matches in the second bucket of this hash.
    #[cold]
    pub(crate) fn prefetch_chained(&self, hash: u64) {
        let second = self.offset(self.bucket(hash).overflow());
        if let Some(second) = RacyBucket::at(&self.bytes, second) {
            self.prefetch_match(&second, hash);
        }
    }

    /// Asks for the first item whose tag matches, which it is in 49 of 50 lookups. False when there
    /// is none.
    #[inline(always)]
    fn prefetch_match(&self, bucket: &RacyBucket, hash: u64) -> bool {
        let matches = bucket.matching(hash);
        if matches == 0 {
            return false;
        }
        let item = self.bytes.address(self.offset(bucket.slot(matches.trailing_zeros())));
        for line in 0..ITEM_LINES {
            prefetch_early(item.wrapping_add(line * 64));
        }
        // One line more if the item begins near the end of its first: slots begin at any granule.
        prefetch_early(item.wrapping_add(ITEM_END));
        true
    }

    /// The item with this key, as it is at `moment`, if it is plain and small; its value copied to
    /// `buffer`. `None` for other items, and when a writer came by: the caller must take the lock.
    #[inline(always)]
    pub(crate) fn find<'b>(
        &self,
        moment: Moment,
        hash: u64,
        key: &[u8],
        buffer: &'b mut CopyBuffer,
    ) -> Option<Option<Plain<'b>>> {
        let found = self.sight(hash, key)?.map(|Sighting { head, parts, item }| {
            let Parts { flags, deadline, key_at } = parts;
            let value = item.copy(key_at + key.len(), head.value_len(), buffer);
            Plain { head, flags, deadline, value }
        });
        self.sequence.is_still(moment).then_some(found)
    }

    /// Looks where the item with this key is in 19 of 20 lookups that find it: at the first tag that
    /// matches in the first bucket. All that is rare is left to [`sight`](Self::sight), and what is not
    /// quite so rare to [`sight_at`](Self::sight_at), so that little stands between the waits for bucket
    /// and item and those of the next lookups: the processor begins those that its window of some
    /// hundred instructions holds.
    #[inline(always)]
    pub(crate) fn glance(&self, hash: u64) -> Glance {
        let bucket = self.bucket(hash);
        let matches = bucket.matching_loosely(hash);
        if matches == 0 {
            return if bucket.overflow() == NIL { Glance::Absent } else { Glance::Beyond };
        }
        Glance::At(bucket.slot(matches.trailing_zeros()))
    }

    /// The item in this slot if it has this key and is [`Unmoved`].
    #[inline(always)]
    pub(crate) fn unmoved_at(&self, slot: Slot, key: &[u8], now_ms: u64) -> Option<Sighting> {
        let item = self.bytes.span(self.offset(slot))?.in_one_register();
        let parts = Parts::none(usize::from(self.fixed_len));
        let words = item.wide(0);
        if !self.unmoved.is_it(words, item, key, parts.key_at, now_ms) {
            return None;
        }
        let [first, word] = halves(words);
        Some(Sighting { head: Head::new(slot, first, word), parts, item })
    }

    /// The item in this slot if it has this key and is plain and small; `None` if it is not so, or may
    /// not be.
    #[inline(always)]
    pub(crate) fn sight_at(&self, slot: Slot, key: &[u8]) -> Option<Option<Sighting>> {
        let item = self.bytes.span(self.offset(slot))?;
        let head = Head::new(slot, item.u64(0), item.u64(8));
        let fixed_len = usize::from(self.fixed_len);
        let parts = head.parts(fixed_len, |at| item.u32(at), |at| item.u64(at))?;
        if head.key_len() != key.len() || !item.has(parts.key_at, key) {
            return Some(None);
        }
        let is_small = head.value_len() <= SMALL_LEN_MAX;
        is_small.then_some(Some(Sighting { head, parts, item }))
    }

    /// Looks for the item with this key, if it is plain and small; `None` for other items. Nothing of
    /// it may be believed before the sequence confirmed the moment at which the look began.
    pub(crate) fn sight(&self, hash: u64, key: &[u8]) -> Option<Option<Sighting>> {
        let mut at = self.bucket_at(hash);
        for _ in 0..CHAIN_MAX {
            let bucket = RacyBucket::at(&self.bytes, at)?;
            let mut matches = bucket.matching(hash);
            while matches != 0 {
                if let Some(found) = self.sight_at(bucket.slot(matches.trailing_zeros()), key)? {
                    return Some(Some(found));
                }
                matches &= matches - 1;
            }
            match bucket.overflow() {
                NIL => return Some(None),
                next => at = self.offset(next),
            }
        }
        None
    }
}

/// Where a bucket was a moment ago: for prefetching only.
#[derive(Clone, Copy, Default)]
pub(crate) struct BucketAt(usize);

/// What [`ShardView::glance`] saw. Not to be believed before the sequence confirmed it.
pub(crate) enum Glance {
    /// The item is in this slot, if it is there.
    At(Slot),
    Absent,
    /// It may be further on.
    Beyond,
}

/// An item as it seems to be, seen without the lock.
#[derive(Clone, Copy)]
pub(crate) struct Sighting {
    pub(crate) head: Head,
    pub(crate) parts: Parts,
    pub(crate) item: RacySpan,
}
