//! A step through this node's own copies of a cache, so that copies can be compared.
//!
//! The digest of an item covers all that a client could see of it. A partition's is the sum of its
//! items', so it does not matter in which order a store keeps them, nor how the walk is cut into
//! steps. The walk holds nothing between its steps; a partition that is written meanwhile may be
//! counted half before and half after, which whoever compares finds out by looking again.
//!
//! Cost: a step looks at some thousands of items or a megabyte of values, so it holds up the other
//! clients of its worker for no more than some milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use kiln_cluster::{ids::Member, placement::partition_of_hash};
use kiln_engine::{GetOptions, ItemInfo, Store, Value};
use kiln_protocol::native::admin::{
    DIGEST_ITEM_PARTITIONS_MAX, DIGEST_KEY_LEN_MAX, DigestRequest, Digests, ItemDigest,
    PartitionDigest,
};
use xxhash_rust::xxh3::Xxh3Default;

use crate::{caches::Cache, cluster::Cluster, node::Node};

/// Items looked at in one step, about.
const ITEMS_MAX: usize = 4_096;

/// Bytes of values looked at in one step, about.
const BYTES_MAX: usize = 1 << 20;

/// Items told in one step, about: so that an answer stays within any frame.
const TOLD_MAX: usize = 256;

/// Looks into the index in one step: where it is nearly empty, few items are seen in many.
const LOOKS_MAX: usize = 1_024;

/// Makes a step.
pub(in super::super) fn step(
    node: &Node,
    cache: &Cache,
    request: &DigestRequest,
) -> Result<Digests, &'static str> {
    if request.items
        && (request.partitions.is_empty() || request.partitions.len() > DIGEST_ITEM_PARTITIONS_MAX)
    {
        return Err("items are told of 1 to 64 named partitions");
    }
    let cluster = node.cluster.get().map(|cluster| &**cluster);
    let clock_ms = cache.clock_ms(node.clock.now_ms(), cluster);
    let scope = Scope::of(node, cluster, cache, request);
    Ok(walk(&cache.store, &scope, request, clock_ms))
}

/// Which partitions count.
struct Scope {
    partitions: u32,
    /// By partition.
    counts: Vec<bool>,
}

impl Scope {
    fn of(node: &Node, cluster: Option<&Cluster>, cache: &Cache, request: &DigestRequest) -> Self {
        let asked: BTreeSet<u32> = request.partitions.iter().copied().collect();
        let is_asked = |partition: u32| asked.is_empty() || asked.contains(&partition);
        let (partitions, counts) = match (cluster, cache.cluster()) {
            (Some(cluster), Some(known)) => {
                let topology = cluster.topology();
                let me: Member = cluster.me;
                let states = topology.groups.get(&known.group).map_or(&[][..], Vec::as_slice);
                let counts = (0..)
                    .zip(states)
                    .map(|(partition, state)| is_asked(partition) && state.in_sync.contains(&me));
                (topology.partitions, counts.collect())
            }
            _ => {
                let partitions = super::topology(node).partitions;
                (partitions, (0..partitions).map(is_asked).collect())
            }
        };
        Self { partitions: partitions.max(1), counts }
    }

    fn partition(&self, hash: u64) -> Option<u32> {
        let partition = partition_of_hash(hash, self.partitions).0;
        self.counts.get(partition as usize).is_some_and(|counts| *counts).then_some(partition)
    }
}

fn walk(store: &Store, scope: &Scope, request: &DigestRequest, clock_ms: u64) -> Digests {
    let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut items = Vec::new();
    let mut add = |partition: u32, hash: u64, key: &[u8], digest: u64| {
        let (count, sum) = sums.entry(partition).or_default();
        *count += 1;
        *sum = sum.wrapping_add(digest);
        if request.items {
            let key = key[..key.len().min(DIGEST_KEY_LEN_MAX)].to_vec();
            items.push(ItemDigest { partition, hash, key, digest });
        }
        if request.items { items.len() } else { 0 }
    };
    let mut cursor = request.cursor;
    let (mut seen, mut bytes, mut told) = (0, 0, 0);
    let mut in_pieces: Vec<(u32, u64, Vec<u8>)> = Vec::new();
    for _ in 0..LOOKS_MAX {
        let page = store.scan(cursor.unwrap_or(0), 1, clock_ms, |entry| {
            let hash = Store::hash(entry.key);
            let Some(partition) = scope.partition(hash) else { return };
            if ends_too_soon(&entry.info, request) {
                return;
            }
            bytes += entry.info.value_len;
            match entry.value {
                Some(value) => {
                    let digest = digest(entry.key, &entry.info, [value]);
                    told = add(partition, hash, entry.key, digest);
                }
                None => in_pieces.push((partition, hash, entry.key.to_vec())),
            }
        });
        for (partition, hash, key) in in_pieces.drain(..) {
            let options = GetOptions { no_bump: true, ..GetOptions::default() };
            let found = store.get(&key, hash, &options, clock_ms, |info, value| {
                (!ends_too_soon(info, request)).then(|| match value {
                    Value::Inline(bytes) => digest(&key, info, [bytes]),
                    Value::Large(pinned) => digest(&key, info, pinned.slices().iter().copied()),
                })
            });
            // Gone meanwhile: whoever compares looks again.
            if let Some(Some(digest)) = found {
                told = add(partition, hash, &key, digest);
            }
        }
        seen += page.seen;
        cursor = page.next;
        if cursor.is_none() || seen >= ITEMS_MAX || bytes >= BYTES_MAX || told >= TOLD_MAX {
            break;
        }
    }
    let partitions = sums
        .into_iter()
        .map(|(partition, (items, sum))| PartitionDigest { partition, items, sum })
        .collect();
    Digests { cursor, partitions, items }
}

fn ends_too_soon(info: &ItemInfo, request: &DigestRequest) -> bool {
    info.deadline_ms.is_some_and(|deadline| deadline < request.ends_after_ms)
}

fn digest<'a>(key: &[u8], info: &ItemInfo, value: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    hasher.update(&info.version.to_le_bytes());
    hasher.update(&info.flags.to_le_bytes());
    hasher.update(&info.deadline_ms.unwrap_or(0).to_le_bytes());
    for piece in value {
        hasher.update(piece);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use kiln_engine::{Expiry, StoreConfig, WriteOptions};

    use super::*;

    const NOW: u64 = 1_000;

    fn store() -> Store {
        Store::new(StoreConfig { memory: 32 << 20, ..StoreConfig::default() }).unwrap()
    }

    fn write(store: &Store, key: &str, value: &[u8], version: u64, expiry: Expiry) {
        let options =
            WriteOptions { version: Some(version), expiry, flags: 7, ..WriteOptions::default() };
        store.write(key.as_bytes(), Store::hash(key.as_bytes()), value, &options, NOW);
    }

    fn all(partitions: u32) -> Scope {
        Scope { partitions, counts: vec![true; partitions as usize] }
    }

    /// Walks to the end and adds up.
    fn total(store: &Store, scope: &Scope, request: &DigestRequest) -> BTreeMap<u32, (u64, u64)> {
        let mut request = request.clone();
        let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        loop {
            let digests = walk(store, scope, &request, NOW);
            for of in digests.partitions {
                let (items, sum) = sums.entry(of.partition).or_default();
                *items += of.items;
                *sum = sum.wrapping_add(of.sum);
            }
            request.cursor = digests.cursor;
            if request.cursor.is_none() {
                return sums;
            }
        }
    }

    #[test]
    fn copies_with_equal_items_have_equal_sums_in_whatever_order_they_were_written() {
        let (one, other) = (store(), store());
        let large = vec![b'x'; 100_000];
        let value = |number: u32| if number.is_multiple_of(500) { &large[..] } else { b"v" };
        for number in 0..20_000_u32 {
            write(&one, &format!("k{number}"), value(number), number.into(), Expiry::Never);
        }
        for number in (0..20_000_u32).rev() {
            write(&other, &format!("k{number}"), value(number), number.into(), Expiry::Never);
        }
        let request = DigestRequest::default();
        let expected = total(&one, &all(16), &request);
        assert_eq!(expected, total(&other, &all(16), &request));
        assert_eq!(expected.values().map(|(items, _)| items).sum::<u64>(), 20_000);

        // Any difference shows, and only in its partition.
        for (key, value, version, expiry) in [
            ("k7", &b"w"[..], 7, Expiry::Never),
            ("k7", b"v", 8, Expiry::Never),
            ("k7", b"v", 7, Expiry::At(9_000)),
        ] {
            write(&other, key, value, version, expiry);
            let found = total(&other, &all(16), &request);
            let partition = (Store::hash(key.as_bytes()) % 16) as u32;
            let differ: Vec<_> =
                expected.keys().filter(|p| expected[p] != found[p]).copied().collect();
            assert_eq!(differ, [partition]);
        }
    }

    #[test]
    fn only_partitions_that_count_and_items_that_last_are_seen() {
        let store = store();
        for number in 0..100 {
            write(&store, &format!("k{number}"), b"v", 1, Expiry::Never);
            write(&store, &format!("e{number}"), b"v", 1, Expiry::At(5_000));
        }
        let mut scope = all(4);
        scope.counts[2] = false;
        let lasting = DigestRequest { ends_after_ms: 5_001, ..DigestRequest::default() };
        let found = total(&store, &scope, &lasting);
        let counts = |key: &String| {
            let partition = Store::hash(key.as_bytes()) % 4;
            partition != 2
        };
        let expected = (0..100).map(|number| format!("k{number}")).filter(counts).count() as u64;
        assert_eq!(found.values().map(|(items, _)| items).sum::<u64>(), expected);
        assert!(!found.contains_key(&2));
    }

    #[test]
    fn items_are_told_with_the_digests_that_the_sums_are_made_of() {
        let store = store();
        for number in 0..2_000 {
            write(&store, &format!("k{number}"), b"v", number, Expiry::Never);
        }
        let mut request =
            DigestRequest { items: true, partitions: vec![1], ..DigestRequest::default() };
        let mut scope = all(4);
        scope.counts = vec![false, true, false, false];
        let expected = total(&store, &scope, &request)[&1];
        let (mut items, mut sum) = (0, 0_u64);
        loop {
            let digests = walk(&store, &scope, &request, NOW);
            assert!(digests.items.len() < 2 * TOLD_MAX);
            items += digests.items.len() as u64;
            sum = digests.items.iter().fold(sum, |sum, item| sum.wrapping_add(item.digest));
            request.cursor = digests.cursor;
            if request.cursor.is_none() {
                break;
            }
        }
        assert_eq!((items, sum), expected);
    }
}
