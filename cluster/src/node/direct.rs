//! Which partitions whoever shares the memory may read without asking the core.
//!
//! While this node is the serving primary of a partition, what its memory holds is what is confirmed:
//! effects are applied only when every copy that counts holds them. A read needs nothing more than
//! the certainty that nobody else serves meanwhile. That is so while no other copy must confirm, and
//! under a lease for caches that read by leases ([`DirectRight`]).
//!
//! A read of a key in a strong cache may be direct when all of this holds:
//! - it only looks: it gives no item a new end, creates none, and can be given no right to refill;
//! - the right was there before the item was looked up, and *after* that it is still the same and its
//!   time has not come. Only the second look makes it safe: a thread can be stopped for any time
//!   between any two instructions. What was read meanwhile must not be told if it fails;
//! - a hit: the item is not stale, and its end is further away than what passes between two
//!   publications of the clock to judge it by, [`Node::clock_ms`] (add the time since it was taken);
//! - a miss: the store, run on the clock that the core gives it, knows nothing of the key; and the
//!   generation of the right is not above the one that the asker has seen.
//!
//! Everything else goes through [`Node::handle`], which decides what the memory alone cannot: whether
//! an item whose end is near has ended while a request to prolong it is on its way, and whether
//! something that is not there was lost.
//!
//! A right ends with this node's service, and before anything that ends it is sent to anyone: the
//! driver publishes [`Node::direct_changes`] at the end of each turn *before* it carries out the
//! turn's actions. A lease ends by itself.

use std::collections::BTreeSet;

use super::{Base, Known, Node};
use crate::ids::{Generation, Place};
use crate::store::Store;
use crate::strong::Replica;
use crate::time::{Mono, Now};
use crate::topology::OnLoss;

/// Until when a partition may be read directly, on the monotonic clock of the driver. The default is
/// no right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectRight {
    /// Caches of any read mode: [`Mono::MAX`] while nobody else must confirm, else 0.
    pub alone_until: Mono,
    /// Caches that read by leases: the end of the lease; never before `alone_until`.
    pub leased_until: Mono,
    /// The generation of the data: a miss of one who has seen less goes through the core.
    pub generation: Generation,
}

impl<S: Store> Node<S> {
    /// All partitions that may be read directly.
    pub fn direct_reads(&self) -> impl Iterator<Item = (Place, DirectRight)> + '_ {
        let none = DirectRight::default();
        let rights = self.replicas.iter().map(|known| (known.place(), known.right));
        rights.filter(move |(_, right)| *right != none)
    }

    /// Rights that changed since the last call, each as it is now. To be called at the end of each
    /// turn, before its actions are carried out.
    pub fn direct_changes(&mut self) -> impl Iterator<Item = (Place, DirectRight)> + '_ {
        let Self { replicas, direct_changed, .. } = self;
        std::mem::take(direct_changed)
            .into_iter()
            .map(|place| (place, replicas.known(place).map_or_else(Default::default, |k| k.right)))
    }

    /// A partition was read directly since the last call: its lease is renewed with the next turn.
    /// To be called more often than leases last; twice as often is enough.
    pub fn used(&mut self, place: Place) {
        let Some(replica) = self.replicas.get(&place) else { return };
        if let Some((term, peers)) = replica.leased_by(self.base.me) {
            self.base.rounds.want(place, term, peers, true, Mono(0));
        }
    }

    /// The clock that ends of items are judged by. It goes on as `now` does until the next turn,
    /// which may lift it.
    pub fn clock_ms(&self, now: Now) -> u64 {
        self.base.clock.read(now)
    }
}

impl<S: Store> Base<S> {
    /// Notes what right there is after a turn of a partition.
    pub(super) fn note_right(&self, known: &mut Known, changed: &mut BTreeSet<Place>) {
        let right = self.right(&known.replica);
        if known.right != right {
            known.right = right;
            changed.insert(known.place());
        }
    }

    fn right(&self, replica: &Replica) -> DirectRight {
        let right = replica.direct_right(self.me);
        // What was cleared is still there for whoever looks into the memory.
        if right == DirectRight::default()
            || self.store.is_sweeping(replica.place())
            || self.is_blocked(replica)
        {
            return DirectRight::default();
        }
        right
    }

    /// Whether a cache of the partition's group refuses requests because data were lost.
    fn is_blocked(&self, replica: &Replica) -> bool {
        let group = replica.place().group;
        replica.has_unacknowledged_loss()
            && self
                .topology
                .caches
                .values()
                .any(|spec| spec.group() == group && spec.on_loss == OnLoss::Block)
    }
}
