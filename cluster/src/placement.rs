//! Which nodes should hold each partition, and which of them should be its primary.
//!
//! Only the controller computes this; the result is data in the topology, so that nodes cannot
//! disagree and the request path is an array lookup. Weighted rendezvous hashing says which nodes
//! a partition *prefers*; three things then bend it: no node may exceed its share by more than
//! about 5 %, copies stay in distinct zones, and what is already placed well stays where it is.
//!
//! ```text
//!   weights, zones --> shares --> cap and floor of each node
//!   present table  --> keep what may stay --> fill gaps --> lift the underfull --> relieve the overfull
//!                                    ^ in rendezvous order       ^ by shortest chains of moves
//! ```
//!
//! Always true of the result:
//! - the owners of a partition are distinct, and there are `min(copies, usable nodes)` of them;
//! - no zone holds more copies of one partition than it must: one, if there are enough zones;
//! - no node holds more than `1.05 * share + 1`, where its share is its part by weight of what
//!   zones and distinct owners let it hold;
//! - the first owner is the preferred primary; primaries are spread by weight too.
//!
//! Cost: one hash and one logarithm for each (partition, node), and a sort for each partition.
//! 100 nodes and 1,024 partitions take a few milliseconds (`tests/placement.rs` prints it).

mod chains;
mod shares;

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
};

use rendezvous_hash::{Capacity, Node, NodeHasher, RendezvousNodes, WeightedNode};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use self::{
    chains::{Board, Move, lift, relieve},
    shares::{Bounds, Occasion, zone_limit},
};
use crate::ids::{NodeId, PartitionId};

/// Names the functions that map keys to partitions and partitions to nodes. A topology carries it,
/// and a node that knows another one refuses to serve instead of looking in the wrong place.
pub const HASH_ID: u32 = 1;

/// Most nodes that can hold items: positions are kept as `u16`.
pub const NODES_MAX: usize = 4_096;

/// Most copies of one partition.
pub const COPIES_MAX: usize = 8;

/// Most partitions of a cluster.
pub const PARTITIONS_MAX: u32 = 65_536;

/// The partition of a key: `xxh3_64(key) % partitions`.
///
/// `partitions` is fixed when a cluster is made; zero is taken for one.
pub fn partition_of(key: &[u8], partitions: u32) -> PartitionId {
    partition_of_hash(xxh3_64(key), partitions)
}

/// The same for a key whose hash is known.
#[inline]
pub fn partition_of_hash(hash: u64, partitions: u32) -> PartitionId {
    PartitionId((hash % u64::from(partitions.max(1))) as u32)
}

/// Some key of each partition, in order; see [`key_in`].
///
/// Cost: as many hashes as there are partitions, times the logarithm of that.
pub fn keys_of_all(partitions: u32) -> Vec<[u8; 4]> {
    let mut keys = vec![None; partitions as usize];
    let mut missing = keys.len();
    for key in (0..u32::MAX).map(u32::to_le_bytes) {
        if missing == 0 {
            break;
        }
        let place = partition_of(&key, partitions).0 as usize;
        if let Some(slot) = keys.get_mut(place)
            && slot.is_none()
        {
            *slot = Some(key);
            missing -= 1;
        }
    }
    keys.into_iter().flatten().collect()
}

/// Some key of a partition: for requests that concern a whole one. `None` if there is no such
/// partition.
///
/// Cost: as many hashes as there are partitions, on average.
pub fn key_in(partition: PartitionId, partitions: u32) -> Option<[u8; 4]> {
    (0..u32::MAX)
        .take_while(|_| partition.0 < partitions)
        .map(u32::to_le_bytes)
        .find(|key| partition_of(key, partitions) == partition)
}

/// A node that may hold items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who it is.
    pub node: NodeId,
    /// Its part of the whole, relative to the other nodes, in thousandths. Zero holds nothing.
    pub weight_milli: u32,
    /// Where it stands. Nodes that name no zone are taken to stand in one zone together: nothing
    /// says that they are apart.
    pub zone: &'a str,
}

/// A wish that no table can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// Nothing was computed.
    #[error("{given} nodes, at most {NODES_MAX} can hold items")]
    TooManyNodes {
        /// Nodes with a weight above zero.
        given: usize,
    },
    /// Nothing was computed.
    #[error("{given} copies, between 1 and {COPIES_MAX} are possible")]
    Copies {
        /// Copies wished for.
        given: usize,
    },
    /// Nothing was computed.
    #[error("{given} partitions, between 1 and {PARTITIONS_MAX} are possible")]
    Partitions {
        /// Partitions wished for.
        given: u32,
    },
}

/// A table of owners: for each partition its nodes, the preferred primary first.
///
/// `present` is the table as it is, in the same form: empty, or one entry for each partition.
/// Owners in it that are still candidates stay, unless a bound forces them away.
pub fn place(
    candidates: &[Candidate<'_>],
    partitions: u32,
    copies: usize,
    present: &[Vec<NodeId>],
) -> Result<Vec<Vec<NodeId>>, PlacementError> {
    if !(1..=COPIES_MAX).contains(&copies) {
        return Err(PlacementError::Copies { given: copies });
    }
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(PlacementError::Partitions { given: partitions });
    }
    // By node, so that neither order nor repetition in the input can matter.
    let usable: BTreeMap<NodeId, &Candidate<'_>> = candidates
        .iter()
        .filter(|candidate| candidate.weight_milli > 0)
        .map(|candidate| (candidate.node, candidate))
        .collect();
    if usable.len() > NODES_MAX {
        return Err(PlacementError::TooManyNodes { given: usable.len() });
    }
    if usable.is_empty() {
        return Ok(vec![Vec::new(); partitions as usize]);
    }
    let nodes: Vec<&Candidate<'_>> = usable.into_values().collect();
    let preference = Preference::new(&nodes, partitions);
    let is_known = |owner: &NodeId| nodes.binary_search_by_key(owner, |node| node.node).is_ok();
    let occasion = match present.is_empty() {
        true => Occasion::First,
        false if present.iter().flatten().all(is_known) => Occasion::Change,
        false => Occasion::Loss,
    };
    let copies = copies.min(nodes.len());
    let mut copies = Copies::new(&nodes, partitions, copies, &preference, occasion);
    copies.keep(present);
    copies.fill(occasion != Occasion::First);
    // First with what has to find a place anyway, and only then with what lies well.
    copies.only_new = true;
    relieve(&mut copies);
    lift(&mut copies);
    copies.only_new = false;
    lift(&mut copies);
    relieve(&mut copies);
    let mut primaries = Primaries::new(&nodes, copies, occasion);
    primaries.choose(present);
    relieve(&mut primaries);
    lift(&mut primaries);
    Ok(primaries.into_table())
}

/// The share of each candidate that [`place`] steers by, in copies: its part by weight of all
/// copies, as far as zones and distinct owners let it hold them.
pub fn shares(
    candidates: &[Candidate<'_>],
    partitions: u32,
    copies: usize,
) -> BTreeMap<NodeId, f64> {
    let nodes: Vec<&Candidate<'_>> = candidates.iter().filter(|c| c.weight_milli > 0).collect();
    let zones = zone_numbers(&nodes);
    let copies = copies.min(nodes.len());
    let limit = zone_limit(&zones, copies);
    let weights: Vec<u32> = nodes.iter().map(|node| node.weight_milli).collect();
    let shares = shares::of_copies(&weights, &zones, limit, partitions, copies);
    nodes.iter().map(|node| node.node).zip(shares).collect()
}

/// Our own hash for the rendezvous: it must give the same values in every build for ever, which
/// the crate's default does not promise. `xxh3_64` of the partition's number, eight bytes little
/// endian, seeded with `xxh3_64` of the node's number in the same form.
#[derive(Clone, Copy, Debug, Default)]
pub struct StableNodeHasher;

impl NodeHasher<u64> for StableNodeHasher {
    fn hash<T: Hash>(&self, node: &u64, item: &T) -> u64 {
        let mut hasher = StableHasher { state: xxh3_64(&node.to_le_bytes()) };
        item.hash(&mut hasher);
        hasher.finish()
    }
}

/// Chains `xxh3_64` over what is written, integers as little endian on every machine.
struct StableHasher {
    state: u64,
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.state = xxh3_64_with_seed(bytes, self.state);
    }

    fn write_u64(&mut self, value: u64) {
        self.write(&value.to_le_bytes());
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

/// A node that knows its position, so that it need not be looked up in the sorted result.
struct Numbered {
    id: u64,
    index: u16,
}

impl Node for Numbered {
    type NodeId = u64;
    type HashCode = u64;

    fn node_id(&self) -> &u64 {
        &self.id
    }

    fn hash_code<H: NodeHasher<u64>, U: Hash>(&self, hasher: &H, item: &U) -> u64 {
        hasher.hash(&self.id, item)
    }
}

/// For each partition the nodes from best to worst, and the rank of each node.
struct Preference {
    nodes: usize,
    order: Vec<u16>,
    rank: Vec<u16>,
}

impl Preference {
    fn new(nodes: &[&Candidate<'_>], partitions: u32) -> Self {
        let mut rendezvous = RendezvousNodes::new(StableNodeHasher);
        for (index, node) in nodes.iter().enumerate() {
            // A weight above zero is a normal, positive number: it is never left out here.
            if let Some(capacity) = Capacity::new(f64::from(node.weight_milli)) {
                let numbered = Numbered { id: node.node.0, index: index as u16 };
                rendezvous.insert(WeightedNode::new(numbered, capacity));
            }
        }
        let cells = partitions as usize * nodes.len();
        let (mut order, mut rank) = (Vec::with_capacity(cells), vec![0; cells]);
        for partition in 0..partitions as usize {
            let best_first = rendezvous.calc_candidates(&(partition as u64));
            for (place, node) in best_first.enumerate() {
                let index = node.node.index;
                order.push(index);
                rank[partition * nodes.len() + usize::from(index)] = place as u16;
            }
        }
        Self { nodes: nodes.len(), order, rank }
    }

    fn best_first(&self, partition: usize) -> &[u16] {
        &self.order[partition * self.nodes..][..self.nodes]
    }

    fn rank(&self, partition: usize, node: u16) -> u16 {
        self.rank[partition * self.nodes + usize::from(node)]
    }
}

/// Stands where an owner is still to be found.
const VACANT: u16 = u16::MAX;

/// Who holds a copy, while that is being decided.
struct Copies<'a> {
    ids: Vec<NodeId>,
    zones: Vec<u16>,
    zone_limit: usize,
    copies: usize,
    partitions: usize,
    preference: &'a Preference,
    /// `copies` slots for each partition.
    slots: Vec<u16>,
    /// Who stood in the slots before: to come back moves nothing.
    before: Vec<u16>,
    /// Slots that were filled just now: to change these again moves nothing.
    is_new: Vec<bool>,
    /// Whether only such slots may change hands.
    only_new: bool,
    bounds: Bounds,
    held: Vec<u32>,
}

impl<'a> Copies<'a> {
    fn new(
        nodes: &[&Candidate<'_>],
        partitions: u32,
        copies: usize,
        preference: &'a Preference,
        occasion: Occasion,
    ) -> Self {
        let zones = zone_numbers(nodes);
        let zone_limit = zone_limit(&zones, copies);
        let weights: Vec<u32> = nodes.iter().map(|node| node.weight_milli).collect();
        let shares = shares::of_copies(&weights, &zones, zone_limit, partitions, copies);
        Self {
            ids: nodes.iter().map(|node| node.node).collect(),
            zones,
            zone_limit,
            copies,
            partitions: partitions as usize,
            preference,
            slots: vec![VACANT; partitions as usize * copies],
            before: vec![VACANT; partitions as usize * copies],
            is_new: vec![true; partitions as usize * copies],
            only_new: false,
            bounds: Bounds::new(shares, partitions, occasion),
            held: vec![0; nodes.len()],
        }
    }

    fn owners(&self, partition: usize) -> &[u16] {
        &self.slots[partition * self.copies..][..self.copies]
    }

    /// Whether `to` may stand in `slot` in place of whoever stands there.
    fn may_take(&self, partition: usize, slot: usize, to: u16) -> bool {
        let mut in_zone = 0;
        for (other, &owner) in self.owners(partition).iter().enumerate() {
            if owner == to {
                return false;
            }
            let counts = other != slot && owner != VACANT;
            if counts && self.zones[usize::from(owner)] == self.zones[usize::from(to)] {
                in_zone += 1;
            }
        }
        in_zone < self.zone_limit
    }

    fn is_fixed(&self, index: usize) -> bool {
        self.only_new && !self.is_new[index]
    }

    /// Takes over the owners of `present` that are still candidates and break no zone rule.
    fn keep(&mut self, present: &[Vec<NodeId>]) {
        for (partition, owners) in present.iter().enumerate().take(self.partitions) {
            let mut slot = 0;
            for owner in owners {
                let Ok(node) = self.ids.binary_search(owner) else { continue };
                if slot < self.copies && self.may_take(partition, slot, node as u16) {
                    self.slots[partition * self.copies + slot] = node as u16;
                    self.before[partition * self.copies + slot] = node as u16;
                    self.is_new[partition * self.copies + slot] = false;
                    self.held[node] += 1;
                    slot += 1;
                }
            }
        }
    }

    /// Gives each vacant slot to the node that the partition prefers among those with room.
    ///
    /// Where a table exists, nodes below their floor come first: then a lost node's copies repair
    /// the balance, and nothing that it did not hold has to move for it.
    fn fill(&mut self, underfull_first: bool) {
        for partition in 0..self.partitions {
            for slot in 0..self.copies {
                if self.owners(partition)[slot] != VACANT {
                    continue;
                }
                let preference = self.preference;
                let find = |limit: &[u32]| {
                    preference.best_first(partition).iter().copied().find(|&node| {
                        self.held[usize::from(node)] < limit[usize::from(node)]
                            && self.may_take(partition, slot, node)
                    })
                };
                let underfull = if underfull_first { find(&self.bounds.lean) } else { None };
                if let Some(to) = underfull.or_else(|| find(&self.bounds.room)) {
                    self.apply(Move { partition: partition as u32, slot: slot as u8, to });
                }
            }
        }
    }
}

impl Board for Copies<'_> {
    fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    fn held(&self) -> &[u32] {
        &self.held
    }

    fn holder(&self, of: Move) -> Option<u16> {
        let owner = self.owners(of.partition as usize)[usize::from(of.slot)];
        (owner != VACANT).then_some(owner)
    }

    fn may(&self, of: Move) -> bool {
        self.may_take(of.partition as usize, usize::from(of.slot), of.to)
    }

    fn rank(&self, of: Move) -> u16 {
        self.preference.rank(of.partition as usize, of.to)
    }

    fn is_return(&self, of: Move) -> bool {
        self.before[of.partition as usize * self.copies..][..self.copies].contains(&of.to)
    }

    fn moves_from(&self, from: Option<u16>, visit: &mut dyn FnMut(Move)) {
        let wanted = from.unwrap_or(VACANT);
        for (index, &owner) in self.slots.iter().enumerate() {
            if owner != wanted || self.is_fixed(index) {
                continue;
            }
            let (partition, slot) = (index / self.copies, index % self.copies);
            for to in 0..self.ids.len() as u16 {
                if self.may_take(partition, slot, to) {
                    visit(Move { partition: partition as u32, slot: slot as u8, to });
                }
            }
        }
    }

    fn moves_into(&self, to: u16, visit: &mut dyn FnMut(Move)) {
        for index in 0..self.slots.len() {
            let (partition, slot) = (index / self.copies, index % self.copies);
            if !self.is_fixed(index) && self.may_take(partition, slot, to) {
                visit(Move { partition: partition as u32, slot: slot as u8, to });
            }
        }
    }

    fn vacant(&self) -> bool {
        self.slots.contains(&VACANT)
    }

    fn apply(&mut self, to_do: Move) {
        let index = to_do.partition as usize * self.copies + usize::from(to_do.slot);
        if let Some(from) = self.holder(to_do) {
            self.held[usize::from(from)] -= 1;
        }
        self.slots[index] = to_do.to;
        self.held[usize::from(to_do.to)] += 1;
    }
}

/// Which owner comes first, while that is being decided. Who owns what is settled by now.
struct Primaries<'a> {
    copies: Copies<'a>,
    /// The slot of each partition's primary.
    slot: Vec<u8>,
    bounds: Bounds,
    held: Vec<u32>,
}

impl<'a> Primaries<'a> {
    fn new(nodes: &[&Candidate<'_>], copies: Copies<'a>, occasion: Occasion) -> Self {
        let weights: Vec<u32> = nodes.iter().map(|node| node.weight_milli).collect();
        let shares = shares::of_primaries(&weights, &copies.held, copies.partitions as u32);
        Self {
            slot: vec![0; copies.partitions],
            bounds: Bounds::new(shares, copies.partitions as u32, occasion),
            held: vec![0; nodes.len()],
            copies,
        }
    }

    /// Present primaries stay; a partition without one takes the owner that it prefers among those
    /// with room.
    fn choose(&mut self, present: &[Vec<NodeId>]) {
        let mut without = Vec::new();
        for partition in 0..self.copies.partitions {
            let owners = self.copies.owners(partition);
            let first = present.get(partition).and_then(|owners| owners.first());
            let kept = first
                .and_then(|id| self.copies.ids.binary_search(id).ok())
                .and_then(|node| owners.iter().position(|&owner| usize::from(owner) == node));
            match kept {
                Some(slot) => self.set(partition, slot),
                None => without.push(partition),
            }
        }
        for partition in without {
            let owners = self.copies.owners(partition);
            let best =
                (0..owners.len()).filter(|&slot| owners[slot] != VACANT).min_by_key(|&slot| {
                    let node = usize::from(owners[slot]);
                    let full = self.held[node] >= self.bounds.room[node];
                    (full, self.copies.preference.rank(partition, owners[slot]))
                });
            if let Some(slot) = best {
                self.set(partition, slot);
            }
        }
    }

    fn set(&mut self, partition: usize, slot: usize) {
        self.slot[partition] = slot as u8;
        let owner = self.copies.owners(partition)[slot];
        self.held[usize::from(owner)] += 1;
    }

    /// The primary first, the others in the order the partition prefers them: that is also the
    /// order in which they would replace it.
    fn into_table(self) -> Vec<Vec<NodeId>> {
        let copies = &self.copies;
        (0..copies.partitions)
            .map(|partition| {
                let primary = copies.owners(partition)[usize::from(self.slot[partition])];
                let mut owners: Vec<u16> = copies.owners(partition).to_vec();
                owners.retain(|&owner| owner != VACANT);
                owners.sort_by_key(|&owner| {
                    (owner != primary, copies.preference.rank(partition, owner))
                });
                owners.into_iter().map(|owner| copies.ids[usize::from(owner)]).collect()
            })
            .collect()
    }
}

impl Board for Primaries<'_> {
    fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    fn held(&self) -> &[u32] {
        &self.held
    }

    fn holder(&self, of: Move) -> Option<u16> {
        let owners = self.copies.owners(of.partition as usize);
        let owner = owners[usize::from(self.slot[of.partition as usize])];
        (owner != VACANT).then_some(owner)
    }

    fn may(&self, of: Move) -> bool {
        self.holder(of) != Some(of.to)
            && self.copies.owners(of.partition as usize)[usize::from(of.slot)] == of.to
    }

    fn rank(&self, of: Move) -> u16 {
        self.copies.preference.rank(of.partition as usize, of.to)
    }

    fn is_return(&self, _: Move) -> bool {
        false
    }

    fn moves_from(&self, from: Option<u16>, visit: &mut dyn FnMut(Move)) {
        let Some(from) = from else { return };
        for partition in 0..self.copies.partitions {
            let owners = self.copies.owners(partition);
            if owners[usize::from(self.slot[partition])] != from {
                continue;
            }
            for (slot, &to) in owners.iter().enumerate() {
                if to != from && to != VACANT {
                    visit(Move { partition: partition as u32, slot: slot as u8, to });
                }
            }
        }
    }

    fn moves_into(&self, to: u16, visit: &mut dyn FnMut(Move)) {
        for partition in 0..self.copies.partitions {
            let owners = self.copies.owners(partition);
            let slot = owners.iter().position(|&owner| owner == to);
            if let Some(slot) = slot.filter(|&slot| slot != usize::from(self.slot[partition])) {
                visit(Move { partition: partition as u32, slot: slot as u8, to });
            }
        }
    }

    fn vacant(&self) -> bool {
        false
    }

    fn apply(&mut self, to_do: Move) {
        if let Some(from) = self.holder(to_do) {
            self.held[usize::from(from)] -= 1;
        }
        self.slot[to_do.partition as usize] = to_do.slot;
        self.held[usize::from(to_do.to)] += 1;
    }
}

/// A number for each node's zone.
fn zone_numbers(nodes: &[&Candidate<'_>]) -> Vec<u16> {
    let mut numbers = BTreeMap::new();
    nodes
        .iter()
        .map(|node| {
            let next = numbers.len() as u16;
            *numbers.entry(node.zone).or_insert(next)
        })
        .collect()
}
