//! Who is to be told when items of a cache change.
//!
//! A client that keeps values near itself reads them *tracked*. Keys fall into 2^16 slots by their
//! hash; each slot has a bit for each of up to 64 connections. A tracked read sets its bit before
//! it looks at the store; a write, after it changed the store, clears the bits of its slot and puts
//! a note into the mailboxes of those connections. Two keys of one slot cost a needless note, never
//! a missing one.
//!
//! Why no note is missed: bit and store are on both sides accessed in opposite order with a full
//! fence between, so a read that saw the old value has its bit seen by the write. And because a
//! writer holds the slot's lock until the notes are in the mailboxes, a second writer that finds
//! the bits cleared knows that they are there before its own client is answered.
//!
//! Cost: for a write on a cache that nobody tracks, one relaxed load.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence},
};

use kiln_protocol::native::INVALIDATION_SLOTS;
use parking_lot::{Mutex, RwLock};

use crate::mailbox::Mailbox;

/// Connections that can track a cache: as many as a word has bits.
const CONNECTIONS_MAX: usize = 64;

/// Locks over all slots: more than threads that write at a time.
const STRIPES: usize = 64;

/// Why reads of a connection cannot be tracked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrackError {
    #[error("{CONNECTIONS_MAX} connections track this cache already")]
    TooMany,
    #[error("the cache `default` cannot spare the memory for tracking")]
    NoMemory,
    #[error("the cache was dropped")]
    Dropped,
}

#[derive(Default)]
#[repr(align(64))]
struct Stripe(Mutex<()>);

/// The connections that track a cache.
pub(crate) struct Trackers {
    cache: u32,
    /// Connections now.
    count: AtomicU32,
    slots: OnceLock<Box<[AtomicU64]>>,
    stripes: [Stripe; STRIPES],
    mailboxes: RwLock<[Option<Arc<Mailbox>>; CONNECTIONS_MAX]>,
}

/// The right of a connection to track a cache; given back when it is dropped.
pub(crate) struct Tracker {
    trackers: Weak<Trackers>,
    place: usize,
}

impl Trackers {
    /// Bytes that tracking a cache costs once.
    pub(crate) const MEMORY: usize = INVALIDATION_SLOTS as usize * size_of::<AtomicU64>();

    pub(super) fn new(cache: u32) -> Self {
        Self {
            cache,
            count: AtomicU32::new(0),
            slots: OnceLock::new(),
            stripes: std::array::from_fn(|_| Stripe::default()),
            mailboxes: RwLock::new([const { None }; CONNECTIONS_MAX]),
        }
    }

    /// Whether the memory is there.
    pub(super) fn is_enabled(&self) -> bool {
        self.slots.get().is_some()
    }

    /// Takes the memory.
    pub(super) fn enable(&self) {
        self.slots.get_or_init(|| (0..INVALIDATION_SLOTS).map(|_| AtomicU64::new(0)).collect());
    }

    /// Lets a connection track the cache. `settle` must pass through all locks of the store's
    /// shards: a write that was under way without a look at the trackers is then done.
    pub(crate) fn join(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox>,
        settle: impl FnOnce(),
    ) -> Result<Tracker, TrackError> {
        {
            let mut mailboxes = self.mailboxes.write();
            let place = mailboxes.iter().position(Option::is_none).ok_or(TrackError::TooMany)?;
            mailboxes[place] = Some(Arc::clone(mailbox));
            self.count.fetch_add(1, SeqCst);
            drop(mailboxes);
            settle();
            Ok(Tracker { trackers: Arc::downgrade(self), place })
        }
    }

    /// A key of this hash was written. Call it after the store was changed and before anyone is
    /// told so.
    #[inline]
    pub(crate) fn changed(&self, hash: u64) {
        if self.count.load(Relaxed) != 0 {
            self.tell(hash);
        }
    }

    #[cold]
    fn tell(&self, hash: u64) {
        let Some(slots) = self.slots.get() else { return };
        let slot = slot(hash);
        let _stripe = self.stripes[slot as usize % STRIPES].0.lock();
        fence(SeqCst);
        let mut bits = slots[slot as usize].swap(0, SeqCst);
        if bits == 0 {
            return;
        }
        let mailboxes = self.mailboxes.read();
        while bits != 0 {
            let place = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            // One that left in the meantime keeps nothing any more.
            if let Some(mailbox) = &mailboxes[place] {
                mailbox.invalidate(self.cache, slot);
            }
        }
    }

    /// Every item may have changed.
    pub(crate) fn all_changed(&self) {
        if self.count.load(SeqCst) != 0 {
            let mailboxes = self.mailboxes.read();
            mailboxes.iter().flatten().for_each(|mailbox| mailbox.invalidate_all(self.cache));
        }
    }
}

impl Tracker {
    /// The next write of a key of this hash will be told. Call it before the store is read.
    #[inline]
    pub(crate) fn track(&self, trackers: &Trackers, hash: u64) {
        if let Some(slots) = trackers.slots.get() {
            let bit = 1 << self.place;
            let slot = &slots[slot(hash) as usize];
            // Most keys that are read are read again, and a locked instruction costs more.
            if slot.load(SeqCst) & bit == 0 {
                slot.fetch_or(bit, SeqCst);
            }
            fence(SeqCst);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if let Some(trackers) = self.trackers.upgrade() {
            trackers.mailboxes.write()[self.place] = None;
            trackers.count.fetch_sub(1, SeqCst);
        }
    }
}

/// The slot of a key: the low 16 bits of its hash, XXH3-64.
fn slot(hash: u64) -> u32 {
    hash as u32 & (INVALIDATION_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Note;

    fn joined(trackers: &Arc<Trackers>) -> (Arc<Mailbox>, Tracker) {
        let mailbox = Arc::new(Mailbox::default());
        let tracker = trackers.join(&mailbox, || {}).unwrap();
        (mailbox, tracker)
    }

    fn trackers() -> Arc<Trackers> {
        let trackers = Arc::new(Trackers::new(7));
        trackers.enable();
        trackers
    }

    #[test]
    fn a_write_is_told_once_to_those_who_track_its_slot() {
        let trackers = trackers();
        let (first, first_tracker) = joined(&trackers);
        let (second, _second_tracker) = joined(&trackers);
        first_tracker.track(&trackers, 0xABC0_0005);

        trackers.changed(0x0005);
        trackers.changed(0x0005);

        assert_eq!(first.take(), [Note::Slots { cache: 7, slots: vec![5] }]);
        assert_eq!(second.take(), []);
    }

    #[test]
    fn a_flush_is_told_to_all_who_track_anything() {
        let trackers = trackers();
        let (mailbox, _tracker) = joined(&trackers);
        trackers.all_changed();
        assert_eq!(mailbox.take(), [Note::All { cache: 7 }]);
    }

    #[test]
    fn the_place_of_a_connection_that_left_is_free_again() {
        let trackers = trackers();
        let joined: Vec<_> = (0..CONNECTIONS_MAX).map(|_| joined(&trackers)).collect();
        let mailbox = Arc::new(Mailbox::default());
        assert!(matches!(trackers.join(&mailbox, || {}), Err(TrackError::TooMany)));
        drop(joined);
        let tracker = trackers.join(&mailbox, || {}).unwrap();
        tracker.track(&trackers, 9);
        trackers.changed(9);
        assert_eq!(mailbox.take().len(), 1);
    }
}
