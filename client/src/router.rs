//! Which node a key's operation goes to.
//!
//! The cluster says who owns which partition, and a key's partition is the XXH3-64 of the key
//! modulo their number, so a request goes straight to a node that can answer it. A table that is
//! out of date costs an answer `not-owner` and a look at a new table, never a wrong result.
//!
//! Cost: a hash of the key and two lookups; in a cluster of one node nothing.

use std::collections::HashMap;

use kiln_cluster::placement::partition_of;
use kiln_protocol::native::admin::TopologyView;

/// Owners by cache and key.
#[derive(Debug, Default)]
pub(crate) struct Router {
    partitions: u32,
    /// For each group and partition the owners, primary first.
    groups: Vec<Vec<Vec<u32>>>,
    caches: HashMap<String, CacheRoute>,
}

#[derive(Clone, Copy, Debug)]
struct CacheRoute {
    group: usize,
    any_copy_reads: bool,
}

/// Where a request can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// Not known: any node says where, or passes it on.
    Any,
    /// To this node.
    One(u32),
    /// To whichever of these nodes has least to do.
    Spread(&'a [u32]),
}

/// Most partitions that a table is believed to have.
const PARTITIONS_MAX: u32 = 1 << 16;

impl Router {
    /// Takes the table of a topology; whatever does not fit together in it routes to any node.
    pub(crate) fn new(topology: TopologyView) -> Self {
        let TopologyView { partitions, nodes, groups, caches, .. } = topology;
        let partitions = if partitions <= PARTITIONS_MAX { partitions } else { 0 };
        let nodes = nodes.len();
        let mut groups: Vec<_> = groups.into_iter().map(|group| group.owners).collect();
        for owners in groups.iter_mut().flatten() {
            owners.retain(|owner| (*owner as usize) < nodes);
        }
        let caches = caches.into_iter().map(|cache| {
            let any_copy_reads = cache.read == "any" || cache.read == "quorum";
            (cache.name, CacheRoute { group: cache.group as usize, any_copy_reads })
        });
        Self { partitions, groups, caches: caches.collect() }
    }

    /// Where a request for `key` goes. `reads`: it changes nothing.
    pub(crate) fn route(&self, cache: &str, key: &[u8], reads: bool) -> Route<'_> {
        if self.partitions == 0 {
            return Route::Any;
        }
        let Some(cache) = self.caches.get(cache) else {
            return Route::Any;
        };
        let partition = partition_of(key, self.partitions).0 as usize;
        let owners = self.groups.get(cache.group).and_then(|group| group.get(partition));
        match owners.map(Vec::as_slice) {
            None | Some([]) => Route::Any,
            Some([owner]) => Route::One(*owner),
            Some(owners) if reads && cache.any_copy_reads => Route::Spread(owners),
            Some([primary, ..]) => Route::One(*primary),
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_protocol::native::admin::{CacheView, GroupView, NodeView};
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    /// Two nodes; "both" has a copy on each, "one" has one copy, on the second for odd partitions.
    fn topology() -> TopologyView {
        let cache = |name: &str, group, read: &str| CacheView {
            name: name.to_owned(),
            group,
            read: read.to_owned(),
        };
        let owners = |of: fn(u32) -> Vec<u32>| (0..8).map(of).collect();
        TopologyView {
            epoch: 1,
            partitions: 8,
            nodes: vec![NodeView::default(), NodeView::default()],
            groups: vec![
                GroupView { owners: owners(|p| vec![p % 2, 1 - p % 2]), ..GroupView::default() },
                GroupView { owners: owners(|p| vec![p % 2]), ..GroupView::default() },
                GroupView { owners: owners(|_| vec![7]), ..GroupView::default() },
                GroupView { owners: vec![vec![0]], ..GroupView::default() },
            ],
            caches: vec![
                cache("both", 0, "any"),
                cache("primary", 0, "primary"),
                cache("one", 1, "any"),
                cache("nobody", 2, "any"),
                cache("short", 3, "any"),
                cache("groupless", 9, "any"),
            ],
            ..TopologyView::default()
        }
    }

    #[test]
    fn a_write_goes_to_the_primary_of_the_keys_partition() {
        let router = Router::new(topology());
        for key in [b"a".as_slice(), b"b", b"some longer key"] {
            let owner = (xxh3_64(key) % 8 % 2) as u32;
            assert_eq!(router.route("both", key, false), Route::One(owner));
            assert_eq!(router.route("one", key, false), Route::One(owner));
        }
    }

    #[test]
    fn reads_spread_over_the_copies_where_the_cache_allows_it() {
        let router = Router::new(topology());
        let primary = (xxh3_64(b"k") % 8 % 2) as u32;

        assert_eq!(router.route("both", b"k", true), Route::Spread(&[primary, 1 - primary]));
        assert_eq!(router.route("primary", b"k", true), Route::One(primary));
        assert_eq!(router.route("one", b"k", true), Route::One(primary));
    }

    #[test]
    fn what_the_table_does_not_say_goes_to_any_node() {
        let router = Router::new(topology());
        for cache in ["unknown", "nobody", "groupless"] {
            assert_eq!(router.route(cache, b"k", false), Route::Any, "{cache}");
        }
        assert_eq!(Router::default().route("both", b"k", true), Route::Any);
        let missing =
            (0..100_u32).map(|n| n.to_be_bytes()).find(|key| !xxh3_64(key).is_multiple_of(8));
        assert_eq!(router.route("short", &missing.unwrap(), false), Route::Any);
    }

    #[test]
    fn the_hash_of_a_key_is_the_one_that_the_protocol_names() {
        // XXH3-64 with seed 0 of the empty input, from the reference implementation.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
    }
}
