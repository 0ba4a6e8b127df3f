//! What metrics and judges may look at.

use std::sync::Arc;

use super::Node;
use crate::effect::{Item, ItemKey};
use crate::eventual::Eventual;
use crate::ids::{Member, Mode, Place, Version};
use crate::membership::Membership;
use crate::store::{Cursor, Store};
use crate::strong::PartitionView;
use crate::topology::Topology;

/// The newest state of a key in one memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The write or removal that made it so.
    pub version: Version,
    /// The item, unless it was removed.
    pub item: Option<Item>,
}

impl<S: Store> Node<S> {
    /// Who this is.
    pub fn me(&self) -> Member {
        self.base.me
    }

    /// The newest topology known here.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.base.topology
    }

    /// The memory.
    pub fn store(&self) -> &S {
        &self.base.store
    }

    /// The memory, for whoever adds caches to it: before the table that names them is handed in.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.base.store
    }

    /// Who is alive, as seen from here.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The eventual partitions.
    pub fn eventual(&self) -> &Eventual {
        &self.eventual
    }

    /// Where a key lies, if its cache is known.
    pub fn place_of(&self, key: &ItemKey) -> Option<Place> {
        let spec = self.base.topology.cache(key.cache)?;
        let partition = self.base.topology.partition_of(&key.key);
        Some(Place { group: spec.group(), partition })
    }

    /// The newest that this node holds of a key, confirmed or not; `None` where it knows nothing.
    pub fn held(&self, key: &ItemKey) -> Option<Held> {
        let place = self.place_of(key)?;
        match place.group.mode {
            Mode::Strong => {
                let (version, item) = self.replicas.get(&place)?.newest(&self.base.store, key);
                (version > Version(0)).then_some(Held { version, item })
            }
            Mode::Eventual => {
                let known = self.eventual.held(place, key)?;
                let item = known.live.then(|| self.base.store.read(place, key, false, 0)).flatten();
                Some(Held { version: known.version, item })
            }
        }
    }

    /// All that this node holds of a partition and has applied, in order of keys. With tombstones
    /// in eventual mode.
    pub fn copy_of(&self, place: Place) -> Vec<(ItemKey, Held)> {
        let mut copy = Vec::new();
        match place.group.mode {
            Mode::Strong => {
                let mut cursor = Some(Cursor::Start);
                while let Some(at) = cursor {
                    cursor = self.base.store.scan(place, at, 1_024, 1 << 20, &mut |key, item| {
                        copy.push((key.clone(), Held { version: item.version, item: Some(item) }));
                    });
                }
            }
            Mode::Eventual => copy.extend(self.eventual.keys(place).map(|(key, known)| {
                let item = known.live.then(|| self.base.store.read(place, key, false, 0)).flatten();
                (key.clone(), Held { version: known.version, item })
            })),
        }
        copy.sort_by(|(one, _), (other, _)| one.cmp(other));
        copy.dedup_by(|(one, _), (other, _)| one == other);
        copy
    }

    /// A look at a partition of strong mode.
    pub fn view(&self, place: Place) -> Option<PartitionView> {
        self.replicas.get(&place).map(|replica| replica.view(self.base.me))
    }
}
