//! Large values, held while their readers go through them.
//!
//! Cost: the shard's lock when a value is pinned, looked through and let go; none for its bytes.

use std::sync::Arc;

use crate::heap::{CHUNK_LEN, Slot};
use crate::store::{Inner, Store};

/// A large value held for reading: its memory stays as it is until the handle is dropped, even if
/// the item is overwritten, evicted or deleted meanwhile. Holding many for long keeps memory from
/// other items, so pass them on and drop them.
pub struct PinnedValue {
    inner: Arc<Inner>,
    shard: usize,
    slot: Slot,
}

impl PinnedValue {
    /// The value's bytes, in order, in pieces of at most 16 KiB.
    #[must_use]
    #[inline(never)]
    pub fn slices(&self) -> Vec<&[u8]> {
        let shard = self.inner.lock(self.shard);
        let items = &shard.items;
        let (tail_at, tail_len) = items.tail_span(self.slot);
        let spans = (0..items.chunk_count(self.slot))
            .map(|index| (items.heap.offset(items.chunk(self.slot, index)), CHUNK_LEN))
            .chain((tail_len > 0).then_some((tail_at, tail_len)));
        spans
            .map(|(at, len)| {
                let pointer = items.heap.pointer(at);
                // SAFETY: the item is pinned, so slot and chunks are not moved, freed or written
                // while `self` lives (large items are never rewritten in place), and `self` keeps
                // the region mapped. Only the pin count changes, which lies outside these spans.
                unsafe { std::slice::from_raw_parts(pointer.cast_const(), len) }
            })
            .collect()
    }
}

impl Drop for PinnedValue {
    // Not inlined: every reader of a value has it on its way, few ever come by.
    #[inline(never)]
    fn drop(&mut self) {
        self.inner.lock(self.shard).unpin(self.slot);
    }
}

impl std::fmt::Debug for PinnedValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedValue").finish_non_exhaustive()
    }
}

impl Store {
    /// The value of an item that its shard has pinned for this.
    pub(super) fn pinned(&self, hash: u64, slot: Slot) -> PinnedValue {
        PinnedValue { inner: Arc::clone(&self.inner), shard: self.shard_number(hash), slot }
    }
}
