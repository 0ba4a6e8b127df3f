//! The state of a partition as items of a replicated store: a ring of log entries and a snapshot.
//!
//! ```text
//!   record --> entry N --> slot N % RING        written before the record is applied
//!   state after entry S --> head                now and then: entries up to S may be overwritten
//!   new owner: head, then entries S + 1, S + 2, … as far as they follow each other
//! ```
//!
//! Decisions only; the caller carries writes and looks out. What makes it safe is that the store
//! compares versions: every slot and the head are written on condition that they are as this owner
//! last knew them, and are never deleted. Of two who believe that they own the partition, one finds
//! the slot changed, has written nothing, and must recover before it goes on. It does not matter then
//! whose table was old, nor how late a write arrives.
//!
//! Always true:
//! - entry N + 1 is written only after entry N is acknowledged, so the log has no holes;
//! - a slot is overwritten only when a published snapshot holds what its entry did;
//! - a log entry longer than an item lies in several slots, of which the last completes it: one that is
//!   not complete was never acknowledged, and is forgotten.
//!
//! A snapshot longer than an item lies in chunks that the head names. A marker says which chunks there
//! may be, so that those of an owner that died meanwhile are found and removed.

mod recovery;

pub use self::recovery::{Recovered, Recovery, Step};

use xxhash_rust::xxh3::xxh3_64;

use crate::record::Record;

/// Slots of a log. A snapshot is due when three quarters of them are used. Every partition comes to
/// hold so many entries: more would save snapshots and cost memory.
pub const RING: u64 = 32;
/// A log shorter than this asks for no snapshot, however small the state is.
pub const LOG_BYTES_MIN: usize = 64 << 10;
/// The most slots that one entry may take.
pub const PARTS_MAX: usize = RING as usize / 4 * 3;
/// Slots whose versions are looked up at once.
const LOOK_AHEAD: u64 = 16;
/// The version of the layout of items.
const LAYOUT: u8 = 1;
/// Kind, layout, whether more follows, number.
const ENTRY_HEAD: usize = 3 + 8;
/// Kind, layout, number, digest, set, chunks.
const HEAD_HEAD: usize = 2 + 8 + 8 + 8 + 4;
/// Kind, layout, twice set and chunks.
const MARKER_LEN: usize = 2 + 2 * 12;
/// The version of a slot that is known to be empty.
const ABSENT: u64 = 0;
/// The version of a slot that was not looked at yet.
const UNKNOWN: u64 = u64::MAX;

/// Which item of a partition's changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// The snapshot, or where it is.
    Head,
    /// Which chunks there may be.
    Marker,
    /// A slot of the log.
    Slot(u16),
    /// A part of a long snapshot.
    Chunk {
        /// Which snapshot: never used before.
        set: u64,
        /// Which part.
        index: u32,
    },
}

/// What an item must be for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Not there.
    Absent,
    /// Of this version.
    Version(u64),
    /// Anything.
    Any,
}

/// A write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Of which item.
    pub name: Name,
    /// On which condition.
    pub expected: Expected,
    /// What it shall be.
    pub value: Vec<u8>,
}

/// Why an entry cannot be written now.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// A snapshot must be published first.
    #[error("the log is full")]
    Full,
    /// It would take more slots than an entry may; it never fits.
    #[error("the record takes more than {PARTS_MAX} items")]
    TooLarge,
    /// See [`Changelog::unread`].
    #[error("slots were not looked at")]
    Unread,
}

/// The items are not those that this owner knows: another wrote. Recover.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("another owner wrote to the changelog")]
pub struct Torn;

/// Chunks of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set {
    id: u64,
    chunks: u32,
}

/// What the owner of a partition knows of its items.
#[derive(Clone, Debug)]
pub struct Changelog {
    /// The number of the next entry; the first is 1.
    next: u64,
    /// Entries up to here are in the snapshot.
    base: u64,
    /// Versions of slots.
    ring: Box<[u64]>,
    head: u64,
    marker: u64,
    published: Set,
    snapshot_len: usize,
    /// Bytes of entries since the snapshot.
    log_len: usize,
}

/// A snapshot on its way. To be written in this order, each step when the one before is done.
#[derive(Clone, Debug)]
pub struct Publication {
    /// First, if there is one.
    pub marker: Option<Write>,
    /// Then these, in any order.
    pub chunks: Vec<Write>,
    /// Then this: from now on the snapshot counts.
    pub head: Write,
    /// At last these are to be deleted.
    pub garbage: Vec<Name>,
    base: u64,
    set: Set,
    len: usize,
}

impl Changelog {
    /// That of a partition that has no items.
    pub fn vacant() -> Self {
        Self {
            next: 1,
            base: 0,
            ring: vec![ABSENT; RING as usize].into(),
            head: ABSENT,
            marker: ABSENT,
            published: Set::default(),
            snapshot_len: 0,
            log_len: 0,
        }
    }

    /// In place of one that is lent out.
    pub fn nothing() -> Self {
        Self { ring: Box::default(), ..Self::vacant() }
    }

    /// The number of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The bytes it keeps in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.ring.len() * size_of::<u64>()
    }

    /// Slots to look at before an entry of this length is written; empty if all are known.
    pub fn unread(&self, payload_len: usize, item_max: usize) -> Vec<Name> {
        let parts = parts_of(payload_len, item_max) as u64;
        let slots = |count: u64| (self.next..self.next + count.min(RING)).map(slot_of);
        if slots(parts).all(|slot| self.ring[usize::from(slot)] != UNKNOWN) {
            return Vec::new();
        }
        let ahead = slots(parts.max(LOOK_AHEAD));
        ahead.filter(|slot| self.ring[usize::from(*slot)] == UNKNOWN).map(Name::Slot).collect()
    }

    /// What a slot was found to hold.
    pub fn looked(&mut self, name: Name, found: Option<(u64, &[u8])>) -> Result<(), Torn> {
        let Name::Slot(slot) = name else { return Err(Torn) };
        let Some(place) = self.ring.get_mut(usize::from(slot)) else { return Err(Torn) };
        *place = match found {
            None => ABSENT,
            Some((version, value)) => {
                // A later entry is another owner's; what cannot be read is none.
                if Entry::read(value).is_some_and(|entry| entry.number >= self.next) {
                    return Err(Torn);
                }
                version
            }
        };
        Ok(())
    }

    /// The writes of the next entry: one after the other.
    pub fn entry(&self, payload: &[u8], item_max: usize) -> Result<Vec<Write>, Refused> {
        let parts = parts_of(payload.len(), item_max);
        if parts > PARTS_MAX {
            return Err(Refused::TooLarge);
        }
        if self.next + parts as u64 - 1 > self.base + RING {
            return Err(Refused::Full);
        }
        let part_max = item_max.saturating_sub(ENTRY_HEAD).max(1);
        let mut writes = Vec::with_capacity(parts);
        for part in 0..parts {
            let number = self.next + part as u64;
            let slot = slot_of(number);
            let expected = match self.ring[usize::from(slot)] {
                UNKNOWN => return Err(Refused::Unread),
                ABSENT => Expected::Absent,
                version => Expected::Version(version),
            };
            let from = (part * part_max).min(payload.len());
            let piece = &payload[from..payload.len().min(from + part_max)];
            let mut value = Vec::with_capacity(ENTRY_HEAD + piece.len());
            value.extend_from_slice(&[b'l', LAYOUT, u8::from(part + 1 < parts)]);
            value.extend_from_slice(&number.to_le_bytes());
            value.extend_from_slice(piece);
            writes.push(Write { name: Name::Slot(slot), expected, value });
        }
        Ok(writes)
    }

    /// The next write of an entry was done.
    pub fn appended(&mut self, version: u64, len: usize) {
        self.ring[usize::from(slot_of(self.next))] = version;
        self.next += 1;
        self.log_len += len;
    }

    /// Entries since the snapshot.
    pub fn len(&self) -> u64 {
        self.next - 1 - self.base
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a snapshot should be published: reading the log would take longer than reading that.
    pub fn wants_snapshot(&self) -> bool {
        let long = self.log_len > LOG_BYTES_MIN.max(self.snapshot_len);
        self.len() >= RING / 4 * 3 || (long && !self.is_empty())
    }

    /// A snapshot of the state after the last entry. `set` is a number never used before, and not 0.
    pub fn publish(&self, state: &[u8], set: u64, item_max: usize) -> Publication {
        let base = self.next - 1;
        let piece_max = item_max.max(1);
        let inline = HEAD_HEAD + state.len() <= item_max;
        let chunks = if inline { 0 } else { state.len().div_ceil(piece_max) as u32 };
        let set = if inline { Set::default() } else { Set { id: set, chunks } };
        let marker = (!inline).then(|| Write {
            name: Name::Marker,
            expected: expected(self.marker),
            value: marker(set, self.published),
        });
        let pieces = state.chunks(piece_max).zip(0..chunks);
        let chunks = pieces.map(|(piece, index)| Write {
            name: Name::Chunk { set: set.id, index },
            expected: Expected::Any,
            value: piece.to_vec(),
        });
        let chunks = chunks.collect();
        let mut value = Vec::with_capacity(HEAD_HEAD + if inline { state.len() } else { 0 });
        value.extend_from_slice(&[b'h', LAYOUT]);
        value.extend_from_slice(&base.to_le_bytes());
        value.extend_from_slice(&xxh3_64(state).to_le_bytes());
        value.extend_from_slice(&set.id.to_le_bytes());
        value.extend_from_slice(&set.chunks.to_le_bytes());
        if inline {
            value.extend_from_slice(state);
        }
        let head = Write { name: Name::Head, expected: expected(self.head), value };
        let garbage = names_of(self.published);
        Publication { marker, chunks, head, garbage, base, set, len: state.len() }
    }

    /// All of it was written.
    pub fn published(&mut self, done: &Publication, head: u64, marker: Option<u64>) {
        self.base = done.base;
        self.head = head;
        self.marker = marker.unwrap_or(self.marker);
        self.published = done.set;
        self.snapshot_len = done.len;
        self.log_len = 0;
    }
}

/// Records as the payload of an entry.
pub fn pack(records: &[&Record]) -> Vec<u8> {
    rmp_serde::to_vec(records).expect("records are plain data")
}

/// The records of an entry; `None` if it has none that this version can read.
pub fn unpack(payload: &[u8]) -> Option<Vec<Record>> {
    rmp_serde::from_slice(payload).ok()
}

/// A slot's value, read.
struct Entry<'a> {
    number: u64,
    more: bool,
    piece: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(value: &'a [u8]) -> Option<Self> {
        let (head, piece) = value.split_first_chunk::<ENTRY_HEAD>()?;
        let [b'l', LAYOUT, more, number @ ..] = *head else { return None };
        Some(Self { number: u64::from_le_bytes(number), more: more != 0, piece })
    }
}

fn slot_of(number: u64) -> u16 {
    (number % RING) as u16
}

fn parts_of(payload_len: usize, item_max: usize) -> usize {
    payload_len.div_ceil(item_max.saturating_sub(ENTRY_HEAD).max(1)).max(1)
}

fn expected(version: u64) -> Expected {
    if version == ABSENT { Expected::Absent } else { Expected::Version(version) }
}

fn marker(pending: Set, previous: Set) -> Vec<u8> {
    let mut value = vec![b'm', LAYOUT];
    for set in [pending, previous] {
        value.extend_from_slice(&set.id.to_le_bytes());
        value.extend_from_slice(&set.chunks.to_le_bytes());
    }
    value
}

fn names_of(set: Set) -> Vec<Name> {
    (0..set.chunks).map(|index| Name::Chunk { set: set.id, index }).collect()
}

#[cfg(test)]
mod tests;
