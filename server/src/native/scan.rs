//! A step through a cache.
//!
//! A cursor is a place in the store's index, so that a scan holds nothing on the node between its
//! steps. What is there from the first step to the last is told at least once; what comes or goes
//! meanwhile, perhaps. A step is bounded in items told, in items looked at and in bytes; one that
//! finds little, because few keys have the prefix, ends with a cursor all the same.
//!
//! An answer stays within the longest frame: values that do not fit are left out, and the client
//! asks for those items by key.

use std::{collections::BTreeMap, mem, ops::Range, sync::Arc};

use kiln_cluster::{
    ids::{GroupKey, Member, Mode},
    topology::Topology,
};
use kiln_engine::{GetOptions, ItemInfo, Store, Value};
use kiln_protocol::native::{Entry, ErrorCode, Failure, Scan, Value as WireValue, respond};

use crate::{
    caches::Cache,
    connection::Context,
    native::{batch::Scratch, gathered_len_max},
    node::Node,
};

/// Items told in one step.
pub(crate) const ITEMS_MAX: usize = 1_000;

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
const CURSOR_LEN: usize = 20;

/// A page being gathered. Kept by a worker for its memory.
#[derive(Default)]
pub(crate) struct Page {
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
    /// Items there that come before this in [`order`] were told: long keys can fill a page from
    /// one place.
    from: u64,
}

/// An order of keys that agrees with the store's walk: where places are split or joined, the items
/// of the earlier half come first. A count of items would be wrong as soon as one of them goes.
fn order(key: &[u8]) -> u64 {
    Store::hash(key).rotate_right(16).reverse_bits()
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
    let page = &mut scratch.page;
    let room = gathered_len_max(context.node) - PAGE_OVERHEAD;
    let lens = Lens::of(context.node, cache, context.now_ms);
    let Some(cursor) = step(cache, scan, page, room, &lens) else {
        let text = "the cursor is of another cache, or was dropped with it";
        let failure = Failure::refused(ErrorCode::BadArgument, text);
        return respond::failure(replies, id, &failure);
    };
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

/// Fills `page` with a step through a cache, of at most `room` bytes; the cache that `scan` names
/// is not looked at. Returns where to go on, or nothing when the cursor is not one of the cache.
pub(crate) fn step(
    cache: &Cache,
    scan: &Scan<'_>,
    page: &mut Page,
    room: usize,
    lens: &Lens,
) -> Option<Option<[u8; CURSOR_LEN]>> {
    let start = match scan.cursor {
        None => Place::default(),
        Some(cursor) => decode(cache, cursor)?,
    };
    page.begin(room);
    let limit = (scan.limit as usize).clamp(1, ITEMS_MAX);
    let next = page.gather(&cache.store, start, limit, scan, lens);
    if scan.values {
        page.add_values(&cache.store, lens);
    }
    Some(next.map(|place| encode(cache, place)))
}

/// An item of a page: where its key is, what is known of it, and where its value is.
pub(crate) type Item = (Range<usize>, ItemInfo, Option<Range<usize>>);

/// What of a store a scan shows: on a node of several, the items that it answers for. Copies of
/// what others answer for are shown by them.
pub(crate) struct Lens {
    /// The clock of the store.
    clock_ms: u64,
    now_ms: u64,
    /// Where items have to lie to be shown.
    part: Option<(Arc<Topology>, GroupKey, Member)>,
}

impl Lens {
    /// Everything.
    pub(crate) fn all(now_ms: u64) -> Self {
        Self { clock_ms: now_ms, now_ms, part: None }
    }

    /// What this node answers for.
    pub(crate) fn of(node: &Node, cache: &Cache, now_ms: u64) -> Self {
        let Some(cluster) = node.cluster.get() else { return Self::all(now_ms) };
        let alone = !cluster.gate().is_closed();
        if alone && cache.is_direct_alone() {
            return Self::all(now_ms);
        }
        let part = cache.cluster().filter(|_| !alone);
        let part = part.map(|known| (Arc::clone(&cluster.topology()), known.group, cluster.me));
        Self { clock_ms: cache.clock_ms(now_ms, Some(cluster)), now_ms, part }
    }

    /// The clock by which the store is read.
    pub(crate) fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// Whether an item is to be told.
    pub(crate) fn shows(&self, key: &[u8], info: &ItemInfo) -> bool {
        if info.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            return false;
        }
        self.part.as_ref().is_none_or(|(topology, group, me)| {
            let place = topology_place(topology, *group, key);
            let state = topology.partition(place);
            state.is_some_and(|state| match group.mode {
                Mode::Strong => state.primary == Some(*me),
                // All owners answer; the first of them is enough.
                Mode::Eventual => state.in_sync.first() == Some(me),
            })
        })
    }
}

fn topology_place(topology: &Topology, group: GroupKey, key: &[u8]) -> kiln_cluster::ids::Place {
    kiln_cluster::ids::Place { group, partition: topology.partition_of(key) }
}

impl Page {
    /// All bytes, and where in them key and value of each item are.
    pub(crate) fn into_items(self) -> (Vec<u8>, impl Iterator<Item = Item>) {
        let items = self.found.into_iter().map(|found| (found.key, found.info, found.value));
        (self.bytes, items)
    }

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
        lens: &Lens,
    ) -> Option<Place> {
        let (mut place, mut seen) = (start, 0);
        for _ in 0..LOOKS_MAX {
            let before = (self.found.len(), self.bytes.len());
            let mut full = false;
            let step = store.scan(place.at, 1, lens.clock_ms, |entry| {
                let told = place.from > 0 && order(entry.key) < place.from;
                let wanted = entry.key.starts_with(scan.prefix);
                if full || told || !wanted || !lens.shows(entry.key, &entry.info) {
                    return;
                }
                full = !self.add(entry.key, entry.info, entry.value.filter(|_| scan.values));
            });
            if full {
                self.found.truncate(before.0);
                self.bytes.truncate(before.1);
                if before.0 == 0 {
                    return self.gather_part(store, place, scan, lens);
                }
                return Some(place);
            }
            seen += step.seen;
            place = Place { at: step.next?, from: 0 };
            if self.found.len() >= limit || seen >= SEEN_MAX || self.bytes.len() >= BYTES_MAX {
                break;
            }
        }
        Some(place)
    }

    /// Gathers the first items of a place that does not fit into an empty page as a whole. Returns
    /// where to go on.
    fn gather_part(
        &mut self,
        store: &Store,
        place: Place,
        scan: &Scan<'_>,
        lens: &Lens,
    ) -> Option<Place> {
        let mut first: BTreeMap<(u64, Box<[u8]>), ItemInfo> = BTreeMap::new();
        let mut len = 0;
        let mut until = None;
        let step = store.scan(place.at, 1, lens.clock_ms, |entry| {
            let order = order(entry.key);
            let passed = order < place.from || until.is_some_and(|until| order >= until);
            let wanted = entry.key.starts_with(scan.prefix);
            if passed || !wanted || !lens.shows(entry.key, &entry.info) {
                return;
            }
            len += ENTRY_OVERHEAD + entry.key.len();
            first.insert((order, entry.key.into()), entry.info);
            while len > self.room
                && let Some(((order, key), _)) = first.pop_last()
            {
                len -= ENTRY_OVERHEAD + key.len();
                until = Some(order);
            }
        });
        for ((_, key), info) in &first {
            self.add(key, *info, None);
        }
        let Some(mut from) = until else {
            return step.next.map(|at| Place { at, from: 0 });
        };
        if from == place.from {
            // More keys of one and the same hash than fit into a page: only someone who wants to
            // be in the way has them, and then they must not keep the scan from its end.
            from = from.saturating_add(1);
        }
        Some(Place { at: place.at, from })
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
    fn add_values(&mut self, store: &Store, lens: &Lens) {
        let options = GetOptions { no_bump: true, ..GetOptions::default() };
        let mut all = mem::take(&mut self.found);
        self.room = self.room.saturating_sub(all.len() * ENTRY_OVERHEAD);
        for found in &mut all {
            if found.value.is_some() || found.info.value_len > self.free() {
                continue;
            }
            let key = self.bytes[found.key.clone()].to_vec();
            let hash = Store::hash(&key);
            let read = store.get(&key, hash, &options, lens.clock_ms, |info, value| {
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
    cursor[12..].copy_from_slice(&place.from.to_be_bytes());
    cursor
}

fn decode(cache: &Cache, cursor: &[u8]) -> Option<Place> {
    let (id, rest) = cursor.split_first_chunk()?;
    let (at, rest) = rest.split_first_chunk()?;
    let from = u64::from_be_bytes(rest.try_into().ok()?);
    let place = Place { at: u64::from_be_bytes(*at), from };
    (u32::from_be_bytes(*id) == cache.id).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_engine::{DeleteOptions, StoreConfig, WriteOptions};
    use kiln_protocol::native::CacheRef;
    use std::collections::BTreeSet;

    fn write(store: &Store, key: &str) {
        let key = key.as_bytes();
        store.write(key, Store::hash(key), b"v", &WriteOptions::default(), 1);
    }

    /// Goes through a store in pages of at most three items; `between` is given each page.
    fn scan_in_threes(store: &Store, mut between: impl FnMut(&[Vec<u8>])) -> BTreeSet<Vec<u8>> {
        let cache = CacheRef::Handle(0);
        let scan = Scan { cache, cursor: None, limit: 1, prefix: b"", values: true };
        let mut page = Page::default();
        let (mut place, mut told) = (Place::default(), BTreeSet::new());
        for _ in 0..100_000 {
            page.begin(3 * (ENTRY_OVERHEAD + 10));
            let next = page.gather(store, place, 1, &scan, &Lens::all(1));
            let keys: Vec<_> =
                page.found.iter().map(|found| page.bytes[found.key.clone()].to_vec()).collect();
            assert!(keys.len() <= 3);
            between(&keys);
            told.extend(keys);
            match next {
                Some(next) => place = next,
                None => return told,
            }
        }
        panic!("the scan does not end");
    }

    #[test]
    fn a_place_that_fills_several_pages_is_told_whole_while_items_go_and_come() {
        let config = StoreConfig { memory: 32 << 20, ..StoreConfig::default() };
        let store = Store::new(config).unwrap();
        // First many, so that places are joined as they go, and then split as others come.
        let keys: BTreeSet<Vec<u8>> =
            (0..30_000).map(|number| format!("k:{number:05}").into_bytes()).collect();
        for key in &keys {
            write(&store, std::str::from_utf8(key).unwrap());
        }
        let told = scan_in_threes(&store, |_| {});
        assert_eq!(told, keys);

        let told = scan_in_threes(&store, |page| {
            for key in page {
                store.delete(key, Store::hash(key), &DeleteOptions::default(), 1);
            }
        });
        assert_eq!(told, keys);

        for key in keys.iter().take(3_000) {
            write(&store, std::str::from_utf8(key).unwrap());
        }
        let mut number = 0;
        let told = scan_in_threes(&store, |page| {
            for key in page.iter().take(1) {
                store.delete(key, Store::hash(key), &DeleteOptions::default(), 1);
            }
            if number < 20_000 {
                (0..40).for_each(|_| {
                    number += 1;
                    write(&store, &format!("n:{number:05}"));
                });
            }
        });
        assert!(keys.iter().take(3_000).all(|key| told.contains(key)));
    }
}
