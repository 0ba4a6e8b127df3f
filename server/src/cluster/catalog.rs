//! The caches of the table, made on this node.
//!
//! The table says which caches there are and what they promise; each node makes the memory for
//! them. A node that has not the memory that a cache asks for gives what it can, and says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_cluster::{
    ids::{CacheId, GroupKey},
    store_engine::{EngineCache, EngineStore},
    topology::{CacheSpec, Eviction, ReadMode, Topology},
};
use kiln_engine::MEMORY_MIN;

use super::shared::Cluster;
use crate::{
    caches::{Cache, CacheSettings, ClusterCache, DEFAULT},
    node::Node,
};

/// The store of a cache, as the core uses it.
#[derive(Clone)]
pub(crate) struct StoreHandle(Arc<Cache>);

impl EngineCache for StoreHandle {
    fn store(&self) -> &kiln_engine::Store {
        &self.0.store
    }

    fn changed(&self, hash: u64) {
        self.0.trackers.changed(hash);
    }

    fn cleared(&self) {
        self.0.trackers.all_changed();
    }
}

/// Which caches of the table are there.
#[derive(Default)]
pub(super) struct Catalog {
    made: BTreeMap<CacheId, (String, CacheSpec)>,
    /// Groups that were met; the table never forgets one either.
    groups: BTreeSet<GroupKey>,
}

impl Catalog {
    /// Makes what the table has more, drops what it has no longer. Returns what people should know.
    pub(super) fn follow(
        &mut self,
        node: &Node,
        topology: &Topology,
        cluster: &Cluster,
        store: &mut EngineStore<StoreHandle>,
    ) -> Vec<String> {
        let now_ms = node.clock.now_ms();
        let mut said = Vec::new();
        store.set_partitions(topology.partitions);
        // The core forgets the items of dropped caches when it sees the table.
        self.made.retain(|id, (name, _)| {
            let stays = topology.cache(*id).is_some();
            if !stays && let Err(error) = node.caches.drop_cache(name, now_ms) {
                said.push(format!("cannot drop the cache `{name}` here: {error}"));
            }
            stays
        });
        let alone = topology.nodes.keys().all(|node| *node == cluster.me.node);
        for (group, states) in &topology.groups {
            let is_new = self.groups.insert(*group);
            if is_new || !cluster.is_open() {
                // Once clients are served it stays as it is: what went through the core once, goes
                // through it always.
                let whole = alone && states.iter().all(|state| state.primary == Some(cluster.me));
                cluster.rights.of(*group, topology.partitions).set_whole(whole);
            }
        }
        for (name, spec) in &topology.caches {
            if let Some((_, known)) = self.made.get_mut(&spec.id) {
                if known != spec {
                    said.extend(change(node, name, spec, known.memory));
                    known.clone_from(spec);
                }
                continue;
            }
            let cache = match self.make(node, name, spec, now_ms) {
                Ok((cache, remark)) => {
                    said.extend(remark);
                    cache
                }
                Err(error) => {
                    said.push(format!("cannot make the cache `{name}` here: {error}"));
                    continue;
                }
            };
            let group = spec.group();
            let rights = cluster.rights.of(group, topology.partitions);
            let leased = cache.live.leased();
            cache.join_cluster(ClusterCache { id: spec.id, group, rights, leased });
            if name == DEFAULT {
                // It was made before the table was known, which may say otherwise by now.
                said.extend(change(node, name, spec, spec.memory));
            }
            store.add_cache(spec.id, group, StoreHandle(cache));
            self.made.insert(spec.id, (name.clone(), spec.clone()));
        }
        let caches = node.caches.load();
        for cache in caches.iter() {
            let of = crate::streams::stream_of_state(&cache.settings.name);
            cache.reserve(of.is_some_and(|stream| topology.streams.contains_key(stream)));
        }
        said
    }

    fn make(
        &self,
        node: &Node,
        name: &str,
        spec: &CacheSpec,
        now_ms: u64,
    ) -> Result<(Arc<Cache>, Option<String>), String> {
        if name == DEFAULT {
            return Ok((Arc::clone(node.default_cache()), None));
        }
        let wish = CacheSettings::of_table(name, spec, node.value_len_max());
        match node.caches.create(wish.clone(), now_ms) {
            Ok((cache, _)) => Ok((cache, None)),
            Err(first) => {
                // A small node still holds its share of a large cache, as far as it goes.
                let memory = MEMORY_MIN.max(2 * wish.value_len_max);
                let made = node.caches.create(CacheSettings { memory, ..wish }, now_ms);
                let (cache, _) = made.map_err(|_| first.to_string())?;
                let remark = format!(
                    "the cache `{name}` gets {memory} bytes on this node, less than it asks for: \
                     {first}"
                );
                Ok((cache, Some(remark)))
            }
        }
    }
}

/// Gives a cache the settings of the table, as far as this node can. Memory only when the table's
/// changed: a node that could give less than was asked for is not asked again each time.
fn change(node: &Node, name: &str, spec: &CacheSpec, memory_before: u64) -> Option<String> {
    let now_ms = node.clock.now_ms();
    let cache = {
        let table = node.caches.load();
        Arc::clone(table.by_name(name)?.1)
    };
    let has = cache.settings_now().memory;
    let wish = CacheSettings::of_table(name, spec, node.value_len_max());
    let memory = if spec.memory == memory_before || spec.memory == 0 { has } else { wish.memory };
    let error = node.caches.change(&CacheSettings { memory, ..wish.clone() }, now_ms).err()?;
    let keeps = CacheSettings { memory: has, ..wish };
    if let Err(error) = node.caches.change(&keeps, now_ms) {
        return Some(format!("cannot change the cache `{name}` here: {error}"));
    }
    Some(format!("the cache `{name}` keeps its {has} bytes on this node: {error}"))
}

/// A cache of this node's settings, as the table describes it.
pub(crate) fn spec_of(settings: &CacheSettings) -> CacheSpec {
    use crate::caches::{Mode, Read};
    use kiln_cluster::{ids, topology::Acks};
    use kiln_engine::policy::PolicyKind;
    let eventual = settings.mode == Mode::Eventual;
    CacheSpec {
        id: CacheId(0),
        mode: if eventual { ids::Mode::Eventual } else { ids::Mode::Strong },
        copies: u8::try_from(settings.copies).unwrap_or(u8::MAX),
        min_in_sync: u8::try_from(settings.min_in_sync).unwrap_or(u8::MAX),
        read: match settings.read {
            Read::Any => ReadMode::Any,
            _ if eventual => ReadMode::Any,
            Read::Leased => ReadMode::Lease,
            Read::Primary => ReadMode::Confirm,
        },
        acks: Acks::One,
        eviction: match settings.eviction {
            PolicyKind::None => Eviction::Refuse,
            _ => Eviction::Evict,
        },
        on_loss: kiln_cluster::topology::OnLoss::Reset,
        value_len_max: u32::try_from(settings.value_len_max).unwrap_or(u32::MAX),
        default_ttl_ms: settings.default_ttl_ms,
        policy: settings.eviction.name().to_owned(),
        memory: settings.memory as u64,
    }
}
