//! A step through a cache.
//!
//! A cursor is a place in the store's index, so that a scan holds nothing on the node between its
//! steps. What is there from the first step to the last is told at least once; what comes or goes
//! meanwhile, perhaps. A step is bounded in items told, in items looked at and in bytes; one that
//! finds little, because few keys have the prefix, ends with a cursor all the same.
//!
//! An answer stays within the longest frame: values that do not fit are left out, and the client
//! asks for those items by key.

use std::{mem, ops::Range, sync::Arc};

use kiln_engine::{GetOptions, ItemInfo, Store, Value};
use kiln_protocol::native::{Entry, ErrorCode, Failure, Scan, Value as WireValue, respond};

use crate::{
    caches::Cache,
    connection::Context,
    native::{batch::Scratch, gathered_len_max},
};

/// Items told in one step.
pub(super) const ITEMS_MAX: usize = 1_000;

/// Items looked at in one step, about.
const SEEN_MAX: usize = 8_192;

/// Looks into the index in one step: where it is nearly empty, few items are seen in many.
const LOOKS_MAX: usize = 1_024;

/// Bytes of keys and values after which a step ends.
const BYTES_MAX: usize = 256 * 1024;

/// What a page takes beside keys and values, at most: for each item, and for itself.
const ENTRY_OVERHEAD: usize = 64;
const PAGE_OVERHEAD: usize = 128;

/// Length of a cursor.
const CURSOR_LEN: usize = 14;

/// A page being gathered. Kept by a worker for its memory.
#[derive(Default)]
pub(super) struct Page {
    bytes: Vec<u8>,
    found: Vec<Found>,
    /// Bytes that keys and values may take, and [`ENTRY_OVERHEAD`] for each item.
    room: usize,
}

struct Found {
    key: Range<usize>,
    value: Option<Range<usize>>,
    info: ItemInfo,
}

/// Where a step begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// In the store.
    at: u64,
    /// Items there that were told before: long keys can fill a page from one place.
    skip: u16,
}

/// Makes a step and answers it.
pub(super) fn run(
    context: &Context<'_>,
    cache: &Arc<Cache>,
    id: u32,
    scan: &Scan<'_>,
    replies: &mut Vec<u8>,
    scratch: &mut Scratch,
) {
    let start = match scan.cursor.map(|cursor| decode(cache, cursor)) {
        None => Place::default(),
        Some(Some(place)) => place,
        Some(None) => {
            let text = "the cursor is of another cache, or was dropped with it";
            let failure = Failure::refused(ErrorCode::BadArgument, text);
            return respond::failure(replies, id, &failure);
        }
    };
    let page = &mut scratch.page;
    page.begin(gathered_len_max(context.node) - PAGE_OVERHEAD);
    let limit = (scan.limit as usize).clamp(1, ITEMS_MAX);
    let next = page.gather(&cache.store, start, limit, scan, context.now_ms);
    if scan.values {
        page.add_values(&cache.store, context.now_ms);
    }
    let cursor = next.map(|place| encode(cache, place));
    let Page { bytes, found, .. } = page;
    let entries = found.iter().map(|found| Entry {
        key: &bytes[found.key.clone()],
        version: found.info.version,
        flags: found.info.flags,
        ttl_ms: found.info.deadline_ms.map(|deadline| deadline.saturating_sub(context.now_ms)),
        value_len: found.info.value_len as u64,
        value: found.value.clone().map(|value| WireValue::Plain(&bytes[value])),
    });
    respond::page(replies, id, cursor.as_ref().map(<[u8; CURSOR_LEN]>::as_slice), entries);
}

impl Page {
    fn begin(&mut self, room: usize) {
        self.found.clear();
        self.bytes.clear();
        self.bytes.shrink_to(2 * BYTES_MAX);
        self.room = room;
    }

    /// Goes through the store until there is enough. Returns where to go on.
    fn gather(
        &mut self,
        store: &Store,
        start: Place,
        limit: usize,
        scan: &Scan<'_>,
        now_ms: u64,
    ) -> Option<Place> {
        let (mut place, mut seen) = (start, 0);
        for _ in 0..LOOKS_MAX {
            let before = (self.found.len(), self.bytes.len());
            let mut number = 0_u16;
            let mut full_at = None;
            let step = store.scan(place.at, 1, now_ms, |entry| {
                let index = number;
                number = number.saturating_add(1);
                if full_at.is_some() || index < place.skip || !entry.key.starts_with(scan.prefix) {
                    return;
                }
                if !self.add(entry.key, entry.info, entry.value.filter(|_| scan.values)) {
                    full_at = Some(index);
                }
            });
            if let Some(index) = full_at {
                if before.0 == 0 {
                    return Some(Place { at: place.at, skip: index });
                }
                self.found.truncate(before.0);
                self.bytes.truncate(before.1);
                return Some(place);
            }
            seen += step.seen;
            place = Place { at: step.next?, skip: 0 };
            if self.found.len() >= limit || seen >= SEEN_MAX || self.bytes.len() >= BYTES_MAX {
                break;
            }
        }
        Some(place)
    }

    /// Adds an item, with its value if that fits. False when not even its key does.
    fn add(&mut self, key: &[u8], info: ItemInfo, value: Option<&[u8]>) -> bool {
        if self.free() < ENTRY_OVERHEAD + key.len() {
            return false;
        }
        let key = self.push(key);
        self.found.push(Found { key, value: None, info });
        let fits = value.filter(|value| value.len() <= self.free());
        let value = fits.map(|value| self.push(value));
        if let Some(last) = self.found.last_mut() {
            last.value = value;
        }
        true
    }

    /// Bytes that may still be added.
    fn free(&self) -> usize {
        self.room.saturating_sub(self.bytes.len() + self.found.len() * ENTRY_OVERHEAD)
    }

    fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Adds values that are not in one piece, as far as there is room.
    fn add_values(&mut self, store: &Store, now_ms: u64) {
        let options = GetOptions { no_bump: true, ..GetOptions::default() };
        let mut all = mem::take(&mut self.found);
        self.room = self.room.saturating_sub(all.len() * ENTRY_OVERHEAD);
        for found in &mut all {
            if found.value.is_some() || found.info.value_len > self.free() {
                continue;
            }
            let key = self.bytes[found.key.clone()].to_vec();
            let read = store.get(&key, Store::hash(&key), &options, now_ms, |info, value| {
                // Written again meanwhile, it may have become longer.
                if info.value_len > self.free() {
                    return None;
                }
                let start = self.bytes.len();
                match value {
                    Value::Inline(bytes) => self.bytes.extend_from_slice(bytes),
                    Value::Large(pinned) => {
                        pinned
                            .slices()
                            .iter()
                            .for_each(|piece| self.bytes.extend_from_slice(piece));
                    }
                }
                Some((*info, start..self.bytes.len()))
            });
            // Deleted meanwhile, it is as if it were still there when the scan passed.
            if let Some(Some((info, value))) = read {
                found.info = info;
                found.value = Some(value);
            }
        }
        self.found = all;
    }
}

/// A cursor: the cache it belongs to, and the place in its store.
fn encode(cache: &Cache, place: Place) -> [u8; CURSOR_LEN] {
    let mut cursor = [0; CURSOR_LEN];
    cursor[..4].copy_from_slice(&cache.id.to_be_bytes());
    cursor[4..12].copy_from_slice(&place.at.to_be_bytes());
    cursor[12..].copy_from_slice(&place.skip.to_be_bytes());
    cursor
}

fn decode(cache: &Cache, cursor: &[u8]) -> Option<Place> {
    let (id, rest) = cursor.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let skip = u16::from_be_bytes(rest.try_into().ok()?);
    let place = Place { at: u64::from_be_bytes(*at), skip };
    (u32::from_be_bytes(*id) == cache.id).then_some(place)
}
