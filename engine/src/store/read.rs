//! Reading an item: without the lock where that is enough, else under it.
//!
//! ```text
//!   get_into --> seen, copied once into the caller's output, confirmed
//!      | undone
//!      v
//!     get    --> seen, copied aside, confirmed --> shown to the caller
//!      | a writer is at the shard, or the item wants more than a look
//!      v
//!   the lock --> shown to the caller where it lies, or pinned
//! ```
//!
//! Invariant: what a caller ends up with was true of the item at one moment, and a hit is counted
//! once, whichever way it was read in the end.
//!
//! Cost: without the lock, no store to memory that other threads read, unless the hit is to be
//! noted; then the shard's lock for the note.

use crate::heap::{NIL, Slot};
use crate::index::Lookup;
use crate::item::{Head, INLINE_LEN_MAX, KEY_LEN_MAX, Plain};
use crate::ops::{GetOptions, ItemInfo};
use crate::racy::{CopyBuffer, VectorCopy};
use crate::seqlock::Moment;
use crate::shard::{Full, Now};
use crate::store::large::PinnedValue;
use crate::store::{Locked, Store};
use crate::view::{Glance, ShardView, Sighting, ViewsByHash};

/// A value as a reader sees it.
pub enum Value<'a> {
    /// In one piece, perhaps under the shard's lock: copy it and return.
    Inline(&'a [u8]),
    /// Large: keep the handle and read without the lock.
    Large(PinnedValue),
}

/// What came of a read by [`Reads::get_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended<A> {
    /// The item is there. With what `begin` returned; if that is something, the value was appended.
    Hit(Option<A>),
    /// It is not.
    Miss,
    /// Nothing was appended, counted or found out: the item is large or wants more than a look, or
    /// somebody is writing to its shard. [`Store::get`] reads it.
    Undone,
}

impl Store {
    /// Reads an item. `read` may run under the shard's lock when the value is inline: it should copy
    /// what it needs and return. `None` is a miss.
    ///
    /// With a touch in `options` the item may have to move; when there is no room for that, it is
    /// read all the same and keeps its end. Without room to vivify, the read is a miss.
    ///
    /// `read` must not call the store: with an inline value it may run under the lock that this
    /// needs. With a large one no lock is held, so it may use the [`PinnedValue`], and drop it.
    #[inline(always)]
    pub fn get<R>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        read: impl FnOnce(&ItemInfo, Value<'_>) -> R,
    ) -> Option<R> {
        let now = self.begin(now_ms);
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return None;
        }
        let mut buffer = CopyBuffer::new();
        match self.find_unlocked(key, hash, options, now, &mut buffer) {
            Some(Some(item)) => Some(read(&item.info(now.s), Value::Inline(item.value))),
            Some(None) => None,
            None => {
                let mut hit = self.get_locked(key, hash, options, now)?;
                let info = hit.info;
                Some(read(&info, hit.value()))
            }
        }
    }

    /// Reads of a batch, one after the other: see [`Reads`].
    #[inline]
    pub fn reads(&self) -> Reads<'_> {
        self.reads_copied(VectorCopy::here())
    }

    /// Reads of a batch whose keys are announced: see [`ahead`](Self::ahead). What they read is there already;
    /// so nothing beyond it is asked for.
    #[inline]
    pub fn reads_announced(&self) -> Reads<'_> {
        self.reads_copied(None)
    }

    #[inline]
    fn reads_copied(&self, early: Option<VectorCopy>) -> Reads<'_> {
        Reads { store: self, views: self.inner.views.by_hash(), hits: 0, early }
    }

    /// What [`Reads::append_unlocked`] does, for an item that is not where most are, or not as most are, or
    /// to be noted. It may be in `slot`, if that is one.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "the rest of a function")]
    fn append_further<A>(
        &self,
        moment: Moment,
        slot: Slot,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        out: &mut Vec<u8>,
        begin: impl FnOnce(&ItemInfo, &mut Vec<u8>) -> Option<A>,
    ) -> Option<Appended<A>> {
        let view = self.view(hash);
        let near = if slot == NIL { None } else { view.sight_at(slot, key)? };
        let Some(seen) = (match near {
            Some(seen) => Some(seen),
            None => view.sight(hash, key)?,
        }) else {
            return view.sequence.is_still(moment).then(|| {
                self.inner.tally.miss();
                Appended::Miss
            });
        };
        let Sighting { head, parts, item } = seen;
        if parts.deadline <= now_ms || self.inner.flush_timer.is_due(now_ms) {
            return None;
        }
        let now = self.clock(now_ms);
        let begun = begin(&parts.info(head, now.s), out);
        let mut end = out.len();
        if begun.is_some() {
            let value_len = head.value_len();
            out.reserve(value_len);
            item.copy_to(parts.key_at + key.len(), value_len, out.spare_capacity_mut());
            end += value_len;
        }
        if !view.sequence.is_still(moment)
            || !self.count_hit(hash, head, options.no_bump, moment, now)
        {
            return None;
        }
        // SAFETY: the bytes behind the length so far have just been written, to spare capacity.
        unsafe { out.set_len(end) };
        Some(Appended::Hit(begun))
    }

    /// Finds an item without the lock, and takes that only to note the hit, if it has to be noted.
    /// `None` when all has to be done under the lock.
    #[inline(always)]
    fn find_unlocked<'b>(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
        buffer: &'b mut CopyBuffer,
    ) -> Option<Option<Plain<'b>>> {
        if !options.is_plain() {
            return None;
        }
        let view = self.view(hash);
        let moment = view.sequence.now()?;
        let Some(item) = view.find(moment, hash, key, buffer)? else {
            self.inner.tally.miss();
            return Some(None);
        };
        if item.deadline <= now.ms {
            return None;
        }
        self.count_hit(hash, item.head, options.no_bump, moment, now).then_some(Some(item))
    }

    /// Counts a hit on an item found at `moment`, and notes it if it has to be noted. False, with
    /// nothing done, when it had to be and the shard has changed since.
    #[inline(always)]
    fn count_hit(&self, hash: u64, head: Head, no_bump: bool, moment: Moment, now: Now) -> bool {
        let bits = head.bits();
        if no_bump || self.inner.policy.hit_bits(bits) == Some(bits) && head.is_noted(now.s, bits) {
            self.inner.tally.hit();
            return true;
        }
        self.note_hit(hash, head.slot(), moment, now)
    }

    /// Notes a hit on the plain item found in this slot at `moment`. False, with nothing done, when the
    /// shard has changed since.
    #[cold]
    #[inline(never)]
    fn note_hit(&self, hash: u64, slot: Slot, moment: Moment, now: Now) -> bool {
        let mut shard = self.shard(hash);
        let unchanged = shard.view.sequence.is_first_since(moment);
        if unchanged {
            let head = shard.items.head(slot);
            shard.note_plain_hit(head, hash, false, now);
        }
        unchanged
    }

    /// Reads an item under the lock: for reads that change it, and when a writer is at the shard.
    #[inline(never)]
    fn get_locked(
        &self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
    ) -> Option<LockedHit<'_>> {
        let mut shard = self.shard(hash);
        if options.is_plain() {
            match shard.find_plain(hash, key, now) {
                Lookup::Found(item) => {
                    let (head, info) = (item.head, item.info(now.s));
                    shard.note_plain_hit(head, hash, options.no_bump, now);
                    let slot = head.slot();
                    return Some(LockedHit { info, slot, shard: Some(shard), pinned: None });
                }
                Lookup::Absent => {
                    shard.note_plain_miss();
                    return None;
                }
                Lookup::Involved => {}
            }
        }
        let mut found = None;
        let shard = self.get_involved(shard, key, hash, options, now, &mut found);
        let (slot, info) = found?;
        if info.value_len <= INLINE_LEN_MAX {
            return Some(LockedHit { info, slot, shard: Some(shard), pinned: None });
        }
        drop(shard);
        Some(LockedHit { info, slot, shard: None, pinned: Some(self.pinned(hash, slot)) })
    }

    /// Finds an item for a read that may change it, and pins it when it is large. Returns the
    /// shard, locked.
    #[cold]
    fn get_involved<'a>(
        &'a self,
        mut shard: Locked<'a>,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now: Now,
        found: &mut Option<(Slot, ItemInfo)>,
    ) -> Locked<'a> {
        *found = match shard.get(hash, key, options, now) {
            Ok(found) => found,
            Err(Full) => {
                drop(shard);
                let placed = self.run(hash, now, |shard| shard.get(hash, key, options, now));
                shard = self.shard(hash);
                // Found once more, under this lock: as it is now, or else with its old end.
                let again = GetOptions { touch: None, vivify: None, ..*options };
                match placed {
                    Ok(None) => None,
                    _ => shard.get(hash, key, &again, now).unwrap_or(None),
                }
            }
        };
        if let Some((slot, info)) = found
            && info.value_len > INLINE_LEN_MAX
        {
            shard.pin(*slot);
        }
        shard
    }

    /// What is known of an item, without counting as a use and without its value.
    #[must_use]
    pub fn peek(&self, key: &[u8], hash: u64, now_ms: u64) -> Option<ItemInfo> {
        let now = self.begin(now_ms);
        self.shard(hash).peek(hash, key, now).map(|(_, info)| info)
    }
}

/// Reads of a batch by one thread, straight into an output: what most requests are. Statistics know of them
/// when it is dropped, or [`settle`](Self::settle)d.
///
/// Where the code that reads is compiled [`vectored`](crate::vectored), a read has more room before the
/// processor's own limits on what it begins ahead.
#[must_use]
pub struct Reads<'a> {
    store: &'a Store,
    views: ViewsByHash<'a>,
    /// Not counted yet. Misses are.
    hits: u64,
    /// Whether values are copied as if they were as long as most.
    early: Option<VectorCopy>,
}

impl Reads<'_> {
    /// Reads a small item straight into the caller's output: its value is copied once, from where it lies,
    /// without the lock. What is behind the output's length may be overwritten.
    ///
    /// `begin` is told of the item and appends what comes before the value; if it returns `None`, no
    /// value is wanted. It must do nothing else: it may have been in vain, and be told of an item that
    /// never was so. Then what it appended is taken off again with [`Appended::Undone`], and the item
    /// is to be read by [`Store::get`].
    #[inline(always)]
    pub fn get_into<A>(
        &mut self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        out: &mut Vec<u8>,
        begin: impl FnOnce(&ItemInfo, &mut Vec<u8>) -> Option<A>,
    ) -> Appended<A> {
        let len = out.len();
        let appended = self.append_unlocked(key, hash, options, now_ms, out, begin);
        appended.unwrap_or_else(|| {
            out.truncate(len);
            Appended::Undone
        })
    }

    /// As [`get_into`](Self::get_into) says. `None` when the lock is needed: then what was appended
    /// is void.
    #[inline(always)]
    fn append_unlocked<A>(
        &mut self,
        key: &[u8],
        hash: u64,
        options: &GetOptions,
        now_ms: u64,
        out: &mut Vec<u8>,
        begin: impl FnOnce(&ItemInfo, &mut Vec<u8>) -> Option<A>,
    ) -> Option<Appended<A>> {
        if !options.is_plain() {
            return None;
        }
        // First of all what has to be waited for.
        let view = self.views.of(hash);
        let moment = view.sequence.now_without_flush()?;
        let slot = match view.glance(hash) {
            Glance::At(slot) => slot,
            Glance::Absent if view.sequence.is_still(moment) => {
                self.store.inner.tally.miss();
                return Some(Appended::Miss);
            }
            _ => {
                return self
                    .store
                    .append_further(moment, NIL, key, hash, options, now_ms, out, begin);
            }
        };
        let Some(Sighting { head, parts, item }) = view.unmoved_at(slot, key, now_ms) else {
            return self.store.append_further(moment, slot, key, hash, options, now_ms, out, begin);
        };
        let begun = begin(&parts.info(head, self.store.clock(now_ms).s), out);
        let mut end = out.len();
        if begun.is_some() {
            // Room is made elsewhere: a call in the midst of this would cost more than itself.
            let spare = out.spare_capacity_mut();
            let at = parts.key_at + key.len();
            end += ShardView::copy_unmoved(item, at, spare, self.early)?;
        }
        if !view.sequence.is_still(moment) {
            return None;
        }
        self.hits += 1;
        // SAFETY: the bytes behind the length so far have just been written, to spare capacity.
        unsafe { out.set_len(end) };
        Some(Appended::Hit(begun))
    }

    /// Tells the statistics of the reads so far.
    // Not inlined: so the count is kept in memory, where counting is one instruction. In a register it would
    // drive out what a read needs.
    #[inline(never)]
    pub fn settle(&mut self) {
        let hits = std::mem::take(&mut self.hits);
        self.store.inner.tally.add(hits, 0);
    }
}

impl Drop for Reads<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.settle();
    }
}

impl std::fmt::Debug for Reads<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reads").field("hits", &self.hits).finish_non_exhaustive()
    }
}

/// An item found under the lock: with it while the value is inline, pinned otherwise.
struct LockedHit<'a> {
    info: ItemInfo,
    slot: Slot,
    shard: Option<Locked<'a>>,
    pinned: Option<PinnedValue>,
}

impl LockedHit<'_> {
    fn value(&mut self) -> Value<'_> {
        match (self.pinned.take(), &self.shard) {
            (Some(pinned), _) => Value::Large(pinned),
            (None, Some(shard)) => Value::Inline(shard.items.tail(self.slot)),
            (None, None) => Value::Inline(&[]),
        }
    }
}
