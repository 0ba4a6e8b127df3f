//! Which partitions this node may read without asking anyone.
//!
//! The driver publishes, for each partition, until when the right lasts, and takes it back before
//! anything happens that ends it. A worker takes a ticket, reads the store, and shows the ticket
//! again before it uses what it read: a thread that was paused in between, while the lease ran out or
//! others wrote, is found out.
//!
//! A right is that of a primary that nobody else has to confirm, or that of a lease, which only
//! caches with leased reads use.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
};

use arc_swap::ArcSwap;
use kiln_cluster::{
    ids::{GroupKey, PartitionId, Place},
    placement::partition_of_hash,
    time::Mono,
};

/// Rights to the partitions of one group.
#[derive(Debug)]
pub(crate) struct GroupRights {
    partitions: Box<[Right]>,
    /// All of it was given to this node alone before the first request.
    whole: AtomicBool,
}

#[derive(Debug, Default)]
struct Right {
    /// Nanoseconds of the core's monotonic clock; 0 is no right.
    alone: AtomicU64,
    /// The same, for caches with leased reads.
    leased: AtomicU64,
    /// How often a right was taken back.
    ended: AtomicU32,
    /// Set by readers, taken by the driver: leases are renewed where they are used.
    used: AtomicBool,
}

impl GroupRights {
    fn new(partitions: u32) -> Self {
        let partitions = (0..partitions).map(|_| Right::default()).collect();
        Self { partitions, whole: AtomicBool::new(false) }
    }

    /// Whether workers may use the stores by themselves for as long as the node is alone. What is
    /// written before this node is the primary would be nobody's.
    #[inline]
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Relaxed)
    }

    pub(super) fn set_whole(&self, whole: bool) {
        self.whole.store(whole, Relaxed);
    }

    /// The right to read the partition of this hash, if there is one at `now`.
    #[inline]
    pub(crate) fn ticket(&self, hash: u64, leased: bool, now: Mono) -> Option<Ticket<'_>> {
        let partition = partition_of_hash(hash, self.partitions.len() as u32);
        let right = self.partitions.get(partition.0 as usize)?;
        let ended = right.ended.load(Acquire);
        let mut until = right.alone.load(Acquire);
        if leased {
            until = until.max(right.leased.load(Acquire));
        }
        if until <= now.0 {
            return None;
        }
        if !right.used.load(Relaxed) {
            right.used.store(true, Relaxed);
        }
        Some(Ticket { right, ended, until: Mono(until) })
    }

    fn set(&self, partition: PartitionId, alone: Mono, leased: Mono) {
        let Some(right) = self.partitions.get(partition.0 as usize) else { return };
        let falls = right.alone.load(Relaxed) > alone.0 || right.leased.load(Relaxed) > leased.0;
        right.alone.store(alone.0, Release);
        right.leased.store(leased.0, Release);
        if falls {
            right.ended.fetch_add(1, Release);
        }
    }
}

/// A right to read, as it was before the read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket<'a> {
    right: &'a Right,
    ended: u32,
    until: Mono,
}

impl Ticket<'_> {
    /// Whether what was read since may be used.
    #[inline]
    pub(crate) fn is_good(&self, now: Mono) -> bool {
        // The read of the store must not be seen after this look.
        fence(SeqCst);
        self.right.ended.load(Relaxed) == self.ended && now < self.until
    }
}

/// Rights to all groups.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    groups: ArcSwap<BTreeMap<GroupKey, Arc<GroupRights>>>,
}

impl Rights {
    /// Those of a group, made when it is asked for first.
    pub(super) fn of(&self, group: GroupKey, partitions: u32) -> Arc<GroupRights> {
        if let Some(known) = self.groups.load().get(&group) {
            return Arc::clone(known);
        }
        let mut groups = BTreeMap::clone(&self.groups.load());
        let rights = Arc::new(GroupRights::new(partitions));
        groups.insert(group, Arc::clone(&rights));
        self.groups.store(Arc::new(groups));
        rights
    }

    /// Gives or takes the rights to a partition.
    pub(super) fn set(&self, place: Place, alone: Mono, leased: Mono) {
        if let Some(rights) = self.groups.load().get(&place.group) {
            rights.set(place.partition, alone, leased);
        }
    }

    /// Partitions read since the last call.
    pub(super) fn take_used(&self, mut used: impl FnMut(Place)) {
        for (&group, rights) in self.groups.load().iter() {
            for (number, right) in (0..).zip(&rights.partitions) {
                if right.used.load(Relaxed) && right.used.swap(false, Relaxed) {
                    used(Place { group, partition: PartitionId(number) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_cluster::ids::Mode;

    use super::*;

    #[test]
    fn a_right_lasts_until_its_time_or_until_it_is_taken_back() {
        let group = GroupKey { mode: Mode::Strong, copies: 2 };
        let rights = Rights::default();
        let of = rights.of(group, 4);
        let place = Place { group, partition: PartitionId(3) };
        assert!(of.ticket(7, true, Mono(1)).is_none());
        rights.set(place, Mono(0), Mono(10));
        assert!(of.ticket(7, false, Mono(9)).is_none() && of.ticket(6, true, Mono(9)).is_none());
        let ticket = of.ticket(7, true, Mono(9)).expect("leased");
        assert!(ticket.is_good(Mono(9)) && !ticket.is_good(Mono(10)));
        let mut used = Vec::new();
        rights.take_used(|place| used.push(place));
        assert_eq!(used, [place]);
        rights.take_used(|_| panic!("taken already"));
        // Renewed, it goes on; taken back and given again, it is another right.
        rights.set(place, Mono(0), Mono(20));
        assert!(ticket.is_good(Mono(9)));
        rights.set(place, Mono(0), Mono(0));
        rights.set(place, Mono::MAX, Mono(0));
        assert!(!ticket.is_good(Mono(9)) && of.ticket(7, false, Mono(99)).is_some());
    }
}
