//! Where an item is, by the hash of its key: linear hashing over buckets of one cache line.
//!
//! A bucket holds twelve entries, each a tag of 8 hash bits and a 32-bit item address, so a lookup
//! costs one cache miss for the bucket and one for the item, and a miss in the cache almost always
//! only the first. Linear hashing (Litwin, 1980) grows by splitting one bucket at a time: there is
//! no moment at which the table is rebuilt, and no second table beside the first.
//!
//! Hash bits: 0..10 are the partition's, 16..48 choose the bucket, 48..56 the shard; they
//! do not overlap, so that a node that holds some partitions only still fills its buckets evenly. The
//! tag is 4..12: a walk over the items of one partition passes nearly all others by without a look at
//! them, and a node that holds only few partitions still has tags that differ.
//!
//! ```text
//!   bucket, 64 bytes:  tag u8 x 12 | overflow slot u32 | item slot u32 x 12
//! ```
//!
//! Invariants:
//! - in a chain of buckets all but the last are full, and no overflow bucket is empty;
//! - an unused entry has tag 0 and slot 0; used tags are never 0.
//!
//! Cost: 64 bytes for 8 items on average where it is in balance, about 9 bytes an item with
//! overflow buckets; a split moves about 8 entries and hashes their keys. Buckets still to be split
//! in a round are up to twice as full as those already split, so 4 % of the items are in overflow
//! buckets, at most 6 %: each costs a cache miss more, and a branch foretold wrongly while the
//! processor waits for another. With 7 items to a bucket they are 2.5 %, for a byte an item more:
//! then an item of 130 bytes may take more than 40 beyond those.

use std::sync::atomic::AtomicUsize;

use crate::directory::Directory;
use crate::extent::Extent;
use crate::heap::{BUCKET_LEN, NIL, Slot};
use crate::item::{Items, Plain};
use crate::racy::{RacyBytes, RacySpan};
use crate::region::{PAGE_LEN, PageId};

const WAYS: usize = 12;
pub(crate) const BUCKETS_PER_PAGE: usize = PAGE_LEN / BUCKET_LEN;
const LEVEL_MIN: u32 = BUCKETS_PER_PAGE.trailing_zeros();
/// A bucket is split when there are more items than this a bucket on average …
const LOAD_MAX: usize = 8;
/// … and merged when there are fewer than this.
const LOAD_MIN: usize = 4;

#[inline]
fn tag(hash: u64) -> u8 {
    let bits = (hash >> TAG_SHIFT) as u8;
    // The larger of it and 1, in fewer instructions.
    bits + u8::from(bits == 0)
}

/// The tag is the byte of the hash from this bit on …
const TAG_SHIFT: u32 = 4;
/// … of which so many are the partition's.
const TAG_LOW_BITS: u32 = 6;

/// The hashes that leave a remainder when they are divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residue {
    modulus: u64,
    remainder: u64,
    /// Bits of the tag that the remainder decides, and what they are then.
    mask: u8,
    low: u8,
}

impl Residue {
    pub(crate) fn new(modulus: u64, remainder: u64) -> Self {
        let modulus = modulus.max(1);
        // A power of two that divides the modulus leaves the same of hash and remainder.
        let bits = modulus.trailing_zeros().saturating_sub(TAG_SHIFT).min(TAG_LOW_BITS);
        let mask = ((1_u32 << bits) - 1) as u8;
        Self { modulus, remainder, mask, low: (remainder >> TAG_SHIFT) as u8 & mask }
    }

    pub(crate) fn holds(self, hash: u64) -> bool {
        hash % self.modulus == self.remainder
    }

    /// Whether a hash with this tag may be one. What would be tag 0 is kept as 1.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn may_hold(self, tag: u8) -> bool {
        tag & self.mask == self.low || (tag == 1 && self.low == 0)
    }
}

/// Where in a bucket are the tags, the overflow slot and the item slots.
const OVERFLOW_AT: usize = WAYS;
const ENTRIES_AT: usize = 16;

/// A bucket in memory that may be changing: what readers without the lock see of it.
pub(crate) struct RacyBucket {
    span: RacySpan,
    /// The tags, and the overflow slot behind them.
    first: [u8; 16],
}

impl RacyBucket {
    /// The bucket at an offset, if that is inside the region.
    #[inline(always)]
    pub(crate) fn at(bytes: &RacyBytes, offset: usize) -> Option<Self> {
        bytes.span(offset).map(Self::new)
    }

    #[inline(always)]
    pub(crate) fn new(span: RacySpan) -> Self {
        Self { span, first: span.sixteen(0) }
    }

    /// Bit i is set where the tag of entry i is that of the hash.
    #[inline(always)]
    pub(crate) fn matching(&self, hash: u64) -> u32 {
        self.matching_loosely(hash) & ((1 << WAYS) - 1)
    }

    /// The same, and perhaps bits beyond, for whoever looks at the lowest bit only and finds out whether
    /// it was right: what would be an entry there, is nonsense.
    #[inline(always)]
    pub(crate) fn matching_loosely(&self, hash: u64) -> u32 {
        matching_hash(&self.first, hash)
    }

    #[inline(always)]
    pub(crate) fn slot(&self, way: u32) -> Slot {
        self.span.u32(ENTRIES_AT + 4 * way as usize)
    }

    #[inline(always)]
    pub(crate) fn overflow(&self) -> Slot {
        self.span.u32(OVERFLOW_AT)
    }
}

/// The index of one shard. Its buckets live in the shard's heap.
pub(crate) struct Index {
    /// Page of each run of buckets.
    pages: Directory,
    /// There are `1 << level` buckets before the round of splits under way …
    level: u32,
    /// … of which this many have been split.
    split: usize,
    len: usize,
    scratch: Vec<(Slot, u64)>,
    spare: Vec<Slot>,
}

/// What a plain lookup finds.
pub(crate) enum Lookup<'a> {
    Found(Plain<'a>),
    Absent,
    /// An item that is not plain, which may be the one: to be looked up with [`Index::find`].
    Involved,
}

/// There was no memory for a bucket: make room and try again.
#[derive(Debug)]
pub(crate) struct NoRoom;

impl Index {
    /// An index without buckets: [`open`](Self::open) gives it its first page.
    pub(crate) fn new() -> Self {
        Self {
            pages: Directory::new(),
            level: LEVEL_MIN,
            split: 0,
            len: 0,
            scratch: Vec::new(),
            spare: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.pages.len() > 0
    }

    /// Takes the first page of buckets.
    pub(crate) fn open(&mut self, items: &mut Items) -> Result<(), NoRoom> {
        let page = items.heap.take_raw_page().ok_or(NoRoom)?;
        items.heap.bytes_mut(page as usize * PAGE_LEN, PAGE_LEN).fill(0);
        self.pages.push(page);
        Ok(())
    }

    /// Forgets everything; the pages are the caller's to give back.
    pub(crate) fn clear(&mut self) -> Vec<PageId> {
        self.level = LEVEL_MIN;
        self.split = 0;
        self.len = 0;
        self.pages.take()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn buckets(&self) -> usize {
        (1 << self.level) + self.split
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn table_bytes(&self) -> usize {
        self.pages.table_bytes() + self.scratch.capacity() * 16 + self.spare.capacity() * 4
    }

    /// How large the table is, and its directory's entries: for readers without the lock.
    #[inline]
    pub(crate) fn published(&self) -> (Extent, *mut AtomicUsize) {
        let extent = if self.is_open() { self.extent() } else { Extent::CLOSED };
        (extent, self.pages.entries())
    }

    #[inline]
    fn extent(&self) -> Extent {
        Extent::new(self.level, self.split)
    }

    #[inline]
    fn number(&self, hash: u64) -> usize {
        self.extent().number(hash)
    }

    #[inline]
    fn at(&self, bucket: usize) -> usize {
        let page = self.pages.get(bucket / BUCKETS_PER_PAGE);
        page as usize * PAGE_LEN + bucket % BUCKETS_PER_PAGE * BUCKET_LEN
    }

    /// The item with this key as most reads want it: bucket and head are read once each.
    #[inline(always)]
    pub(crate) fn find_plain<'a>(&self, items: &'a Items, hash: u64, key: &[u8]) -> Lookup<'a> {
        if !self.is_open() {
            return Lookup::Absent;
        }
        let tag = tag(hash);
        let mut at = self.at(self.number(hash));
        loop {
            let bucket = items.heap.bytes(at, BUCKET_LEN);
            let mut matches = matching(bucket, tag);
            while matches != 0 {
                let slot = entry_of(bucket, matches.trailing_zeros() as usize);
                prefetch_item(items, slot);
                match items.plain(slot) {
                    Some((item, other)) if other == key => return Lookup::Found(item),
                    Some(_) => matches &= matches - 1,
                    None => return Lookup::Involved,
                }
            }
            match overflow(items, at) {
                NIL => return Lookup::Absent,
                next => at = items.heap.offset(next),
            }
        }
    }

    /// The item with this key.
    pub(crate) fn find(&self, items: &Items, hash: u64, key: &[u8]) -> Option<Slot> {
        if !self.is_open() {
            return None;
        }
        let tag = tag(hash);
        let mut at = self.at(self.number(hash));
        loop {
            let mut matches = matching(items.heap.bytes(at, BUCKET_LEN), tag);
            while matches != 0 {
                let slot = entry(items, at, matches.trailing_zeros() as usize);
                // Most likely the one: its lines are fetched together rather than as they are met.
                prefetch_item(items, slot);
                if items.key(slot) == key {
                    return Some(slot);
                }
                matches &= matches - 1;
            }
            match overflow(items, at) {
                NIL => return None,
                next => at = items.heap.offset(next),
            }
        }
    }

    /// Adds an entry for an item whose key is not there.
    pub(crate) fn insert(
        &mut self,
        items: &mut Items,
        hash: u64,
        slot: Slot,
    ) -> Result<(), NoRoom> {
        let at = self.at(self.number(hash));
        append(items, at, tag(hash), slot, &mut self.spare)?;
        self.len += 1;
        Ok(())
    }

    /// Removes the entry of this item. False when there is none.
    pub(crate) fn remove(&mut self, items: &mut Items, hash: u64, slot: Slot) -> bool {
        let Some((hole_at, hole)) = self.position(items, hash, slot) else { return false };
        // The last entry of the chain fills the hole.
        let mut before = None;
        let mut at = hole_at;
        while let next @ 1.. = overflow(items, at) {
            before = Some(at);
            at = items.heap.offset(next);
        }
        let last = used(items, at) - 1;
        let moved = (items.heap.bytes(at, WAYS)[last], entry(items, at, last));
        set_entry(items, hole_at, hole, moved.0, moved.1);
        set_entry(items, at, last, 0, NIL);
        if last == 0 {
            let head = self.at(self.number(hash));
            if at != head {
                let before = before.unwrap_or_else(|| previous(items, head, at));
                let empty = overflow(items, before);
                set_overflow(items, before, NIL);
                items.heap.free_slot(empty);
            }
        }
        self.len -= 1;
        true
    }

    /// Points the entry of an item to its new address.
    pub(crate) fn replace(&mut self, items: &mut Items, hash: u64, old: Slot, new: Slot) -> bool {
        let Some((at, way)) = self.position(items, hash, old) else { return false };
        set_entry(items, at, way, tag(hash), new);
        true
    }

    fn position(&self, items: &Items, hash: u64, slot: Slot) -> Option<(usize, usize)> {
        if !self.is_open() {
            return None;
        }
        let mut at = self.at(self.number(hash));
        loop {
            if let Some(way) = (0..WAYS).find(|&way| entry(items, at, way) == slot) {
                return Some((at, way));
            }
            match overflow(items, at) {
                NIL => return None,
                next => at = items.heap.offset(next),
            }
        }
    }

    /// Whether there are more items than buckets can hold well.
    pub(crate) fn wants_growth(&self) -> bool {
        self.len > self.buckets() * LOAD_MAX
    }

    /// Whether there are far more buckets than items need.
    pub(crate) fn wants_shrinking(&self) -> bool {
        self.buckets() > BUCKETS_PER_PAGE && self.len < self.buckets() * LOAD_MIN
    }

    /// Splits one bucket.
    pub(crate) fn grow(&mut self, items: &mut Items) -> Result<(), NoRoom> {
        let new = self.buckets();
        if new / BUCKETS_PER_PAGE == self.pages.len() {
            self.pages.push(items.heap.take_raw_page().ok_or(NoRoom)?);
        }
        let new_at = self.at(new);
        items.heap.bytes_mut(new_at, BUCKET_LEN).fill(0);
        self.collect(items, self.split);
        self.split += 1;
        if self.split == 1 << self.level {
            self.level += 1;
            self.split = 0;
        }
        self.put_back(items);
        Ok(())
    }

    /// Merges the last bucket into the one it was split from.
    pub(crate) fn shrink(&mut self, items: &mut Items) -> Result<(), NoRoom> {
        if self.buckets() <= BUCKETS_PER_PAGE {
            return Ok(());
        }
        let (level, split) = if self.split == 0 {
            (self.level - 1, (1 << (self.level - 1)) - 1)
        } else {
            (self.level, self.split - 1)
        };
        let last = self.buckets() - 1;
        // One bucket fewer at the head, so at most one more in overflow: if it is needed, have it
        // before the entries are in nobody's hands.
        let (entries, buckets) = [last, split]
            .map(|bucket| self.chain(items, bucket))
            .into_iter()
            .fold((0, 0), |sum, chain| (sum.0 + chain.0, sum.1 + chain.1));
        let spare = if entries > WAYS * (buckets - 1) { Some(take_bucket(items)?) } else { None };
        self.collect(items, last);
        self.collect(items, split);
        self.spare.extend(spare);
        self.level = level;
        self.split = split;
        self.put_back(items);
        if last.is_multiple_of(BUCKETS_PER_PAGE)
            && let Some(page) = self.pages.pop()
        {
            items.heap.give_raw_page(page);
        }
        Ok(())
    }

    /// Entries and buckets of a chain.
    fn chain(&self, items: &Items, bucket: usize) -> (usize, usize) {
        let (mut entries, mut buckets) = (0, 1);
        let mut at = self.at(bucket);
        loop {
            entries += used(items, at);
            match overflow(items, at) {
                NIL => return (entries, buckets),
                next => at = items.heap.offset(next),
            }
            buckets += 1;
        }
    }

    /// Takes all entries out of a chain into `scratch`, and its overflow buckets into `spare`.
    fn collect(&mut self, items: &mut Items, bucket: usize) {
        let head = self.at(bucket);
        let first = self.scratch.len();
        let mut at = head;
        loop {
            for way in 0..used(items, at) {
                let slot = entry(items, at, way);
                prefetch(items.heap.pointer(items.heap.offset(slot)));
                self.scratch.push((slot, 0));
            }
            match overflow(items, at) {
                NIL => break,
                next => {
                    self.spare.push(next);
                    at = items.heap.offset(next);
                }
            }
        }
        for (slot, hash) in &mut self.scratch[first..] {
            *hash = items.key_hash(*slot);
        }
        items.heap.bytes_mut(head, BUCKET_LEN).fill(0);
    }

    /// Puts the entries collected where they belong now; buckets left over are freed.
    fn put_back(&mut self, items: &mut Items) {
        while let Some((slot, hash)) = self.scratch.pop() {
            let at = self.at(self.number(hash));
            // Splitting n entries over two heads takes no more overflow buckets than there were,
            // and merging has one in reserve, so `spare` suffices.
            let put = append(items, at, tag(hash), slot, &mut self.spare);
            debug_assert!(put.is_ok());
        }
        while let Some(bucket) = self.spare.pop() {
            items.heap.free_slot(bucket);
        }
    }

    /// Calls `visit` for each item in the bucket that `cursor` stands at; returns where to go on,
    /// or `None` at the end. Items there from beginning to end of a walk are visited at least
    /// once, whatever splits and merges happen between the steps: the cursor counts in reversed
    /// bits, so that the halves of a split bucket are neighbours in the walk.
    pub(crate) fn walk(
        &self,
        items: &Items,
        cursor: u32,
        mut visit: impl FnMut(Slot),
    ) -> Option<u32> {
        if !self.is_open() {
            return None;
        }
        let hash = u64::from(cursor) << 16;
        let number = self.number(hash);
        let mut at = self.at(number);
        loop {
            for way in 0..used(items, at) {
                visit(entry(items, at, way));
            }
            match overflow(items, at) {
                NIL => break,
                next => at = items.heap.offset(next),
            }
        }
        self.after(cursor)
    }

    /// The cursor of the next bucket in a walk.
    fn after(&self, cursor: u32) -> Option<u32> {
        let low = cursor as usize & ((1 << self.level) - 1);
        let bits = self.level + u32::from(low < self.split);
        let step = (cursor | u32::MAX.checked_shl(bits).unwrap_or(0)).reverse_bits();
        step.checked_add(1).map(u32::reverse_bits)
    }

    /// Walks over up to `buckets_max` buckets and puts those items into `found` whose tag may be of
    /// `wanted`: buckets and items are asked for before they are needed, as the walk jumps about.
    /// Returns where to go on.
    pub(crate) fn walk_part(
        &self,
        items: &Items,
        cursor: u32,
        buckets_max: usize,
        wanted: Residue,
        found: &mut Vec<Slot>,
    ) -> Option<u32> {
        /// Buckets asked for ahead: enough to hide the memory's delay.
        const AHEAD: usize = 12;
        if !self.is_open() {
            return None;
        }
        let head = |cursor: u32| self.at(self.number(u64::from(cursor) << 16));
        let mut next = Some(cursor);
        let mut ahead = Some(cursor);
        for done in 0..buckets_max + AHEAD {
            if let Some(cursor) = ahead {
                prefetch(items.heap.pointer(head(cursor)));
                ahead = self.after(cursor);
            }
            if done < AHEAD {
                continue;
            }
            let Some(cursor) = next else { break };
            let mut at = head(cursor);
            loop {
                let bucket = items.heap.bytes(at, BUCKET_LEN);
                let mut matches = matching_part(bucket, wanted);
                while matches != 0 {
                    let slot = entry_of(bucket, matches.trailing_zeros() as usize);
                    prefetch_item(items, slot);
                    found.push(slot);
                    matches &= matches - 1;
                }
                match overflow(items, at) {
                    NIL => break,
                    next => at = items.heap.offset(next),
                }
            }
            next = self.after(cursor);
        }
        next
    }
}

/// Bit i is set where tag i may be of a hash that is wanted.
#[inline]
fn matching_part(bucket: &[u8], wanted: Residue) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_and_si128, _mm_andnot_si128, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8,
            _mm_or_si128, _mm_set1_epi8, _mm_setzero_si128,
        };
        assert!(bucket.len() >= 16, "a bucket is 64 bytes");
        // What would be tag 0 is kept as 1.
        let also = if wanted.low == 0 { 1 } else { wanted.low };
        let all = |byte: u8| {
            // SAFETY: SSE2 is part of x86_64.
            unsafe { _mm_set1_epi8(byte.cast_signed()) }
        };
        // SAFETY: SSE2 is part of x86_64, and 16 bytes are there to load.
        let may = unsafe {
            let tags = _mm_loadu_si128(bucket.as_ptr().cast());
            let same = _mm_cmpeq_epi8(_mm_and_si128(tags, all(wanted.mask)), all(wanted.low));
            let same = _mm_or_si128(same, _mm_cmpeq_epi8(tags, all(also)));
            let empty = _mm_cmpeq_epi8(tags, _mm_setzero_si128());
            _mm_movemask_epi8(_mm_andnot_si128(empty, same))
        };
        may.cast_unsigned() & ((1 << WAYS) - 1)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        matching_part_plain(bucket, wanted)
    }
}

/// The same, one by one.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn matching_part_plain(bucket: &[u8], wanted: Residue) -> u32 {
    bucket[..WAYS]
        .iter()
        .enumerate()
        .fold(0, |bits, (way, &tag)| bits | (u32::from(tag != 0 && wanted.may_hold(tag)) << way))
}

/// Bit i is set where tag i matches.
#[inline]
fn matching(bucket: &[u8], tag: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi32,
        };
        assert!(bucket.len() >= 16, "a bucket is 64 bytes");
        // SAFETY: SSE2 is part of x86_64, and 16 bytes are there to load.
        let equal = unsafe {
            let tags = _mm_loadu_si128(bucket.as_ptr().cast());
            // Four copies by a multiplication: with bytes it would be one instruction more.
            let wanted = _mm_set1_epi32((u32::from(tag) * 0x0101_0101).cast_signed());
            _mm_movemask_epi8(_mm_cmpeq_epi8(tags, wanted))
        };
        equal.cast_unsigned() & ((1 << WAYS) - 1)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        bucket[..WAYS]
            .iter()
            .enumerate()
            .fold(0, |bits, (way, &other)| bits | (u32::from(other == tag) << way))
    }
}

/// The same with the tag of a hash, which needs not leave the vector registers; with bits beyond the tags.
#[inline(always)]
fn matching_hash(bucket: &[u8; 16], hash: u64) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_cmpeq_epi8, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_max_epu8, _mm_movemask_epi8,
            _mm_set1_epi8, _mm_shuffle_epi32, _mm_shufflelo_epi16, _mm_unpacklo_epi8,
        };
        // SAFETY: SSE2 is part of x86_64, and 16 bytes are there to load.
        let equal = unsafe {
            let tags = _mm_loadu_si128(bucket.as_ptr().cast());
            let tag = _mm_cvtsi32_si128(((hash >> TAG_SHIFT) as u32).cast_signed());
            let pair = _mm_unpacklo_epi8(tag, tag);
            let wanted = _mm_shuffle_epi32::<0>(_mm_shufflelo_epi16::<0>(pair));
            _mm_movemask_epi8(_mm_cmpeq_epi8(tags, _mm_max_epu8(wanted, _mm_set1_epi8(1))))
        };
        equal.cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        matching(bucket, tag(hash))
    }
}

/// Asks for a cache line that is about to be read. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch(pointer: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Asks for a cache line that is to be read after some others. It goes to the second cache: the
/// first can wait for fewer lines at a time, and work that goes on meanwhile needs some of them.
#[inline(always)]
pub(crate) fn prefetch_early(pointer: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch`.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Lines of an item's head, its key and a small value. More would be in vain for small items, and
/// take the place of others in the caches; the processor follows a longer value by itself.
pub(crate) const ITEM_LINES: usize = 3;

/// Where such an item ends at about.
pub(crate) const ITEM_END: usize = ITEM_LINES * 64 - 40;

/// Asks for these lines of an item that is about to be read.
#[inline]
fn prefetch_item(items: &Items, slot: Slot) {
    let item = items.heap.pointer(items.heap.offset(slot));
    for line in 0..ITEM_LINES {
        prefetch(item.wrapping_add(line * 64));
    }
}

/// The same of a bucket at hand.
#[inline]
fn entry_of(bucket: &[u8], way: usize) -> Slot {
    let (entries, _) = bucket[ENTRIES_AT..].as_chunks();
    Slot::from_ne_bytes(entries[way])
}

fn entry(items: &Items, at: usize, way: usize) -> Slot {
    items.heap.read_u32(at + ENTRIES_AT + 4 * way)
}

fn set_entry(items: &mut Items, at: usize, way: usize, tag: u8, slot: Slot) {
    items.heap.bytes_mut(at, WAYS)[way] = tag;
    items.heap.write_u32(at + ENTRIES_AT + 4 * way, slot);
}

fn overflow(items: &Items, at: usize) -> Slot {
    items.heap.read_u32(at + OVERFLOW_AT)
}

fn set_overflow(items: &mut Items, at: usize, slot: Slot) {
    items.heap.write_u32(at + OVERFLOW_AT, slot);
}

/// Entries in use: they come first in a bucket.
fn used(items: &Items, at: usize) -> usize {
    items.heap.bytes(at, WAYS).iter().position(|&tag| tag == 0).unwrap_or(WAYS)
}

/// The bucket before `target` in the chain from `head`.
fn previous(items: &Items, head: usize, target: usize) -> usize {
    let mut at = head;
    loop {
        let next = items.heap.offset(overflow(items, at));
        if next == target || next == 0 {
            return at;
        }
        at = next;
    }
}

fn take_bucket(items: &mut Items) -> Result<Slot, NoRoom> {
    let class = items.heap.bucket_class();
    if let Some(slot) = items.heap.take_slot(class) {
        return Ok(slot);
    }
    if !items.heap.add_page(class) {
        return Err(NoRoom);
    }
    items.heap.take_slot(class).ok_or(NoRoom)
}

fn append(
    items: &mut Items,
    head: usize,
    tag: u8,
    slot: Slot,
    spare: &mut Vec<Slot>,
) -> Result<(), NoRoom> {
    let mut at = head;
    loop {
        let used = used(items, at);
        if used < WAYS {
            set_entry(items, at, used, tag, slot);
            return Ok(());
        }
        at = match overflow(items, at) {
            NIL => {
                let bucket = match spare.pop() {
                    Some(bucket) => bucket,
                    None => take_bucket(items)?,
                };
                let next = items.heap.offset(bucket);
                items.heap.bytes_mut(next, BUCKET_LEN).fill(0);
                set_overflow(items, at, bucket);
                next
            }
            next => items.heap.offset(next),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_a_hash_matches_where_that_tag_is() {
        let mut bucket = [0_u8; 16];
        for hash in (0..1_u64 << 14).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | n << 4) {
            for (way, tag) in bucket.iter_mut().enumerate() {
                *tag = ((hash >> 4) as u8).wrapping_add((way % 3) as u8);
            }
            let matches = matching_hash(&bucket, hash) & ((1 << WAYS) - 1);
            assert_eq!(matches, matching(&bucket, tag(hash)), "{hash:x}");
            assert_ne!(matches, (1 << WAYS) - 1);
        }
    }

    #[test]
    fn tags_looked_at_together_match_as_one_by_one() {
        let mut bucket = [0_u8; BUCKET_LEN];
        for modulus in [1, 3, 2, 64, 96, 1_024] {
            for remainder in (0..modulus).step_by(7) {
                let wanted = Residue::new(modulus, remainder);
                for first in 0..=u8::MAX {
                    for (way, tag) in bucket[..16].iter_mut().enumerate() {
                        *tag = first.wrapping_add(way as u8 * 5);
                    }
                    let together = matching_part(&bucket, wanted);
                    assert_eq!(together, matching_part_plain(&bucket, wanted));
                }
            }
        }
    }
}
