//! The partitions of strong groups that this node has to do with, found by group and number: each
//! message and each request looks one up.
//!
//! Bounds: [`PARTITIONS_MAX`] for each group; a group has a word for each partition up to the highest
//! that was heard of.

use std::collections::BTreeMap;

use super::direct::DirectRight;
use crate::ids::{GroupKey, Place};
use crate::placement::PARTITIONS_MAX;
use crate::strong::Replica;
use crate::time::Mono;

/// A partition, and what the node notes about it.
#[derive(Debug)]
pub(super) struct Known {
    place: Place,
    pub(super) replica: Replica,
    /// When it is to be woken, as noted in the order of wakeups: never later than `due`.
    pub(super) wake_at: Option<Mono>,
    /// When it wants to be woken.
    pub(super) due: Option<Mono>,
    pub(super) right: DirectRight,
}

/// All partitions known, in order of places.
#[derive(Debug, Default)]
pub(super) struct Places {
    groups: BTreeMap<GroupKey, Vec<Option<Box<Known>>>>,
}

impl Places {
    pub(super) fn get(&self, place: &Place) -> Option<&Replica> {
        self.known(*place).map(|known| &known.replica)
    }

    pub(super) fn contains_key(&self, place: &Place) -> bool {
        self.known(*place).is_some()
    }

    pub(super) fn known(&self, place: Place) -> Option<&Known> {
        self.groups.get(&place.group)?.get(place.partition.0 as usize)?.as_deref()
    }

    pub(super) fn known_mut(&mut self, place: Place) -> Option<&mut Known> {
        self.groups.get_mut(&place.group)?.get_mut(place.partition.0 as usize)?.as_deref_mut()
    }

    /// A partition, as one of which nothing is known if it is new. `None` if no cluster has it.
    pub(super) fn meet(&mut self, place: Place) -> Option<&mut Known> {
        let number = place.partition.0 as usize;
        if place.partition.0 >= PARTITIONS_MAX {
            return None;
        }
        let partitions = self.groups.entry(place.group).or_default();
        if partitions.len() <= number {
            partitions.resize_with(number + 1, || None);
        }
        let new = || {
            let replica = Replica::new(place);
            let right = DirectRight::default();
            Box::new(Known { place, replica, wake_at: None, due: None, right })
        };
        Some(partitions.get_mut(number)?.get_or_insert_with(new))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.groups.values().flatten().flatten().map(|known| &**known)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Place> {
        self.iter().map(|known| known.place)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Replica> {
        self.iter().map(|known| &known.replica)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Place, &mut Replica)> {
        let all = self.groups.values_mut().flatten().flatten();
        all.map(|known| (known.place, &mut known.replica))
    }
}

impl Known {
    pub(super) fn place(&self) -> Place {
        self.place
    }
}
