//! The names of things: small numbers, each with a type of its own, so that none is taken for
//! another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A node, across restarts.
    NodeId(u64)
}
number! {
    /// One process start of a node: random, never used again.
    Incarnation(u64)
}
number! {
    /// A cluster. Two clusters never exchange data, however addresses are reused.
    ClusterId(u64)
}
number! {
    /// A partition within a placement group: `hash(key) % partitions`.
    PartitionId(u32)
}
number! {
    /// A named cache. Never used again after the cache is dropped.
    CacheId(u32)
}
number! {
    /// Rises with each change of a partition's primary.
    Term(u64)
}
number! {
    /// Place of an effect in the log of a partition. Rises by one, over all terms.
    Seq(u64)
}
number! {
    /// Version of the whole topology: the number of commands committed.
    Epoch(u64)
}
number! {
    /// How often the data of a partition were provably lost.
    Generation(u64)
}
number! {
    /// One number per write of an item: the CAS unique and the ETag. In strong mode it rises with
    /// each write of a partition; in eventual mode it is a packed hybrid logical clock.
    Version(u64)
}
number! {
    /// A client, or a node that asks on behalf of clients that have no name: random.
    ClientId(u64)
}
number! {
    /// Names a request between the node and whoever drives it.
    Token(u64)
}
number! {
    /// A snapshot transfer to one learner; unique within the primary's incarnation.
    TransferId(u64)
}

/// One life of a node. A node that restarts is another member.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.node, self.incarnation.0)
    }
}

/// What a cache promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Linearizable per key.
    Strong,
    /// Available on any side of a cut; last writer wins.
    Eventual,
}

/// A placement group: the caches that share one partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupKey {
    /// What its caches promise.
    pub mode: Mode,
    /// Copies of each partition.
    pub copies: u8,
}

/// One partition of one placement group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The group.
    pub group: GroupKey,
    /// The partition in it.
    pub partition: PartitionId,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.group.mode {
            Mode::Strong => "strong",
            Mode::Eventual => "eventual",
        };
        write!(f, "{mode}/{}/{}", self.group.copies, self.partition)
    }
}

/// Names a request of a client for good: a retry carries the same one and is answered from the
/// window of answers if the first attempt took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// Rises with each request of that client.
    pub counter: u64,
}
