//! Which entry leaves when there is no room: the eviction policies.
//!
//! A policy keeps its order in words that live in the entries themselves (two links and a few
//! bits), so it costs no table of its own but for what it remembers of the departed. It reaches
//! those words through [`Nodes`], which the store implements over item headers and the hit ratio
//! bench over plain vectors: one code for both, so the bench measures what runs.

mod adaptive;
mod ghosts;
mod lfu;
mod lru;
mod queue;
pub mod simulation;
mod untracked;

pub use adaptive::Adaptive;
pub use lfu::Lfu;
pub use lru::Lru;
pub use untracked::Untracked;

use std::fmt;
use std::str::FromStr;

/// Handle of an entry: the store's item address, or an index in a simulation. Never 0.
pub type Slot = u32;

/// No entry.
pub const NIL: Slot = 0;

/// The words that a policy keeps in each entry. All calls are O(1) and infallible for live slots.
///
/// A fresh entry's words are unspecified: `on_insert` writes all that the policy reads later.
pub trait Nodes {
    /// The entry before this one in its queue, or [`NIL`].
    fn prev(&self, slot: Slot) -> Slot;
    /// The entry after this one in its queue, or [`NIL`].
    fn next(&self, slot: Slot) -> Slot;
    /// Sets [`prev`](Self::prev).
    fn set_prev(&mut self, slot: Slot, to: Slot);
    /// Sets [`next`](Self::next).
    fn set_next(&mut self, slot: Slot, to: Slot);
    /// Six bits (0..=63) of the policy's own.
    fn bits(&self, slot: Slot) -> u8;
    /// Sets [`bits`](Self::bits); only the low six bits are kept.
    fn set_bits(&mut self, slot: Slot, bits: u8);
    /// A further word, there only for policies with [`needs_extra`](PolicyKind::needs_extra).
    fn extra(&self, slot: Slot) -> u32;
    /// Sets [`extra`](Self::extra).
    fn set_extra(&mut self, slot: Slot, extra: u32);
    /// Bytes charged for the entry (1 in a simulation of equal sizes). Constant for a live entry.
    fn weight(&self, slot: Slot) -> u32;
    /// The 64-bit hash of the entry's key. Costs a hash of the key: for evictions, not for hits.
    fn hash(&self, slot: Slot) -> u64;
}

/// An eviction policy over one shard.
///
/// Called with the shard locked, so it touches only its own memory and the entries', and never
/// blocks.
pub trait EvictionPolicy {
    /// An entry came in; `hash` is its key's.
    fn on_insert<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, hash: u64);
    /// An entry was used. `hash` is its key's.
    fn on_hit<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, hash: u64);
    /// The bits that a use leaves an entry with, for a policy whose hit changes nothing but its
    /// own [`bits`](Nodes::bits): the store then writes them with what it notes itself, in place
    /// of [`on_hit`](Self::on_hit). `None`: call `on_hit`.
    #[inline]
    fn hit_bits(_bits: u8) -> Option<u8>
    where
        Self: Sized,
    {
        None
    }
    /// An entry leaves for another reason than eviction: deleted, expired, replaced.
    fn on_remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot);
    /// An entry took the place of another: `new` holds a copy of all words of `old`, and both
    /// are readable during the call. Queue order stays as it was.
    fn on_move<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot);
    /// Chooses the next entry to drop, takes it out of the queues, and remembers it if the policy
    /// does so. `None` when the policy tracks nothing.
    fn evict<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot>;
    /// Bytes the policy itself holds on the heap (queues of the departed, sketches): counted
    /// against the ceiling.
    fn heap_bytes(&self) -> usize;
}

/// The policies by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// `adaptive`: scan resistant, learns how the keys are used.
    #[default]
    Adaptive,
    /// `lru`: the entry unused for longest leaves.
    Lru,
    /// `lfu`: the entry used least leaves; uses age.
    Lfu,
    /// `none`: nothing leaves, a write that finds no room is refused.
    None,
}

impl PolicyKind {
    /// Every kind, the default first.
    pub const ALL: [Self; 4] = [Self::Adaptive, Self::Lru, Self::Lfu, Self::None];

    /// What a cache gets that names no policy.
    pub const DEFAULT: Self = Self::Adaptive;

    /// The name in flags, files and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::None => "none",
        }
    }

    /// Whether the policy keeps a word in [`Nodes::extra`]: entries then are 4 bytes larger.
    pub const fn needs_extra(self) -> bool {
        matches!(self, Self::Lfu)
    }

    /// See [`EvictionPolicy::hit_bits`].
    #[inline]
    pub fn hit_bits(self, bits: u8) -> Option<u8> {
        match self {
            Self::Adaptive => Adaptive::hit_bits(bits),
            Self::Lru => Lru::hit_bits(bits),
            Self::Lfu => Lfu::hit_bits(bits),
            Self::None => Untracked::hit_bits(bits),
        }
    }

    /// Which bits a hit leaves as they are, and all else of the entry. Of a policy whose bits of that
    /// kind have no pattern, none.
    pub(crate) fn settled(self) -> Settled {
        let is_settled = |bits: u8| self.hit_bits(bits) == Some(bits);
        let (all, any) = (0..64)
            .filter(|&bits| is_settled(bits))
            .fold((63, 0), |(all, any), bits| (all & bits, any | bits));
        let settled = Settled { mask: !(all ^ any) & 63, value: all };
        let fits = (0..64).all(|bits| settled.holds(bits) == is_settled(bits));
        if fits { settled } else { Settled::NONE }
    }
}

/// A pattern of an entry's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) mask: u8,
    pub(crate) value: u8,
}

impl Settled {
    const NONE: Self = Self { mask: 0, value: 63 };

    fn holds(self, bits: u8) -> bool {
        bits & self.mask == self.value
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| UnknownPolicy { name: name.to_owned() })
    }
}

/// The name is none of [`PolicyKind::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown eviction policy `{name}`: use `adaptive`, `lru`, `lfu` or `none`")]
pub struct UnknownPolicy {
    /// What was given.
    pub name: String,
}

/// One shard's policy, whichever it is: a `match` instead of a virtual call on every hit.
#[derive(Debug)]
pub enum Policy {
    /// See [`PolicyKind::Adaptive`].
    Adaptive(Adaptive),
    /// See [`PolicyKind::Lru`].
    Lru(Lru),
    /// See [`PolicyKind::Lfu`].
    Lfu(Lfu),
    /// See [`PolicyKind::None`].
    None(Untracked),
}

impl Policy {
    /// An empty policy.
    pub fn new(kind: PolicyKind) -> Self {
        match kind {
            PolicyKind::Adaptive => Self::Adaptive(Adaptive::default()),
            PolicyKind::Lru => Self::Lru(Lru::default()),
            PolicyKind::Lfu => Self::Lfu(Lfu::default()),
            PolicyKind::None => Self::None(Untracked),
        }
    }

    /// Which one it is.
    pub fn kind(&self) -> PolicyKind {
        match self {
            Self::Adaptive(_) => PolicyKind::Adaptive,
            Self::Lru(_) => PolicyKind::Lru,
            Self::Lfu(_) => PolicyKind::Lfu,
            Self::None(_) => PolicyKind::None,
        }
    }
}

/// The same call on whichever policy it is.
macro_rules! each {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Policy::Adaptive($policy) => $call,
            Policy::Lru($policy) => $call,
            Policy::Lfu($policy) => $call,
            Policy::None($policy) => $call,
        }
    };
}

impl EvictionPolicy for Policy {
    fn on_insert<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, hash: u64) {
        each!(self, policy => policy.on_insert(nodes, slot, hash));
    }

    #[inline]
    fn on_hit<N: Nodes>(&mut self, nodes: &mut N, slot: Slot, hash: u64) {
        each!(self, policy => policy.on_hit(nodes, slot, hash));
    }

    fn on_remove<N: Nodes>(&mut self, nodes: &mut N, slot: Slot) {
        each!(self, policy => policy.on_remove(nodes, slot));
    }

    fn on_move<N: Nodes>(&mut self, nodes: &mut N, old: Slot, new: Slot) {
        each!(self, policy => policy.on_move(nodes, old, new));
    }

    fn evict<N: Nodes>(&mut self, nodes: &mut N) -> Option<Slot> {
        each!(self, policy => policy.evict(nodes))
    }

    fn heap_bytes(&self) -> usize {
        each!(self, policy => policy.heap_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::simulation::Entries;
    use super::*;

    #[test]
    fn the_pattern_of_settled_bits_holds_for_those_that_a_hit_leaves_as_they_are_and_no_others() {
        for kind in PolicyKind::ALL {
            for bits in 0..64 {
                let settled = kind.hit_bits(bits) == Some(bits);
                assert_eq!(kind.settled().holds(bits), settled, "{kind}, bits {bits}");
                assert!(!Settled::NONE.holds(bits));
            }
        }
    }

    #[test]
    fn hit_bits_are_all_that_a_hit_changes_where_a_policy_tells_them() {
        let told = PolicyKind::ALL.map(|kind| {
            let (mut policy, mut entries) = (Policy::new(kind), Entries::default());
            for slot in 1..=3 {
                entries.put(slot, u64::from(slot), 1);
                policy.on_insert(&mut entries, slot, u64::from(slot));
            }
            let links =
                |entries: &Entries| [1, 2, 3].map(|at| (entries.prev(at), entries.next(at)));
            (0..64).all(|bits| {
                let Some(after) = kind.hit_bits(bits) else { return false };
                let before = links(&entries);
                entries.set_bits(2, bits);
                policy.on_hit(&mut entries, 2, 2);
                assert_eq!(entries.bits(2), after, "{kind}, bits {bits}");
                assert_eq!(links(&entries), before, "{kind}, bits {bits}");
                true
            })
        });
        assert_eq!(told, [true, false, false, true], "of {:?}", PolicyKind::ALL);
    }
}
