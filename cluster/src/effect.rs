//! What an operation does to an item, apart from where the item lies.
//!
//! The primary evaluates an operation against the item as it is and replicates the *effect*, which
//! holds all that a copy needs: copies never evaluate, so they cannot come to another result.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{CacheId, Generation, Version};

/// An item as copies hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The value.
    pub value: Bytes,
    /// The client's opaque bits.
    pub flags: u32,
    /// The write that made it.
    pub version: Version,
    /// When it ends, in milliseconds of the hybrid clock.
    pub deadline_ms: Option<u64>,
}

impl Item {
    /// Whether its end has come.
    #[must_use]
    pub fn is_over(&self, clock_ms: u64) -> bool {
        self.deadline_ms.is_some_and(|deadline| deadline <= clock_ms)
    }
}

/// A key of a cache: what an item is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemKey {
    /// The cache.
    pub cache: CacheId,
    /// The key in it.
    pub key: Bytes,
}

/// What happens to one item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It is this from now on.
    Put(Item),
    /// It is gone; the version is the remover's.
    Remove(Version),
    /// It has another end. The version is that of the item, which stays.
    Touch {
        /// The item's version.
        version: Version,
        /// Its new end.
        deadline_ms: Option<u64>,
    },
}

impl Change {
    /// The version it leaves behind.
    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::Put(item) => item.version,
            Self::Remove(version) | Self::Touch { version, .. } => *version,
        }
    }
}

/// What happens to which item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// Which.
    pub key: ItemKey,
    /// What.
    pub change: Change,
}

/// When an item ends, as the client asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ttl {
    /// As the cache has it for writes that name no end.
    Default,
    /// Not by itself.
    Never,
    /// Milliseconds from the moment the primary carries it out; always above zero.
    After(u64),
    /// Milliseconds since 1970-01-01 UTC.
    At(u64),
    /// Already over: the write takes effect and the item is gone at once.
    Expired,
}

/// Under which condition, and how, a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreMode {
    /// Whether or not the key exists.
    Set,
    /// Only when the key is absent.
    Add,
    /// Only when the key is present.
    Replace,
    /// Behind the present value; flags and end of the item stay.
    Append,
    /// Before the present value; flags and end of the item stay.
    Prepend,
}

/// Which way a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Add, wrapping at 2^64.
    Increment,
    /// Subtract, stopping at 0.
    Decrement,
}

/// One operation on one key, owning its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read, perhaps giving the item a new end.
    Get {
        /// The new end.
        touch: Option<Ttl>,
    },
    /// Write a value.
    Store {
        /// Condition and manner.
        mode: StoreMode,
        /// The value.
        value: Bytes,
        /// The client's opaque bits.
        flags: u32,
        /// The end of the item.
        ttl: Ttl,
        /// Write only if the item's version is this one.
        compare: Option<Version>,
    },
    /// Remove.
    Delete {
        /// Only if the item's version is this one.
        compare: Option<Version>,
    },
    /// Give the item a new end.
    Touch {
        /// The new end.
        ttl: Ttl,
    },
    /// Change a number kept as decimal text.
    Arithmetic {
        /// Which way.
        direction: Direction,
        /// By how much.
        delta: u64,
        /// Only if the item's version is this one.
        compare: Option<Version>,
        /// When absent: create it with this end and this number.
        create: Option<(Ttl, u64)>,
        /// New end of the item when it is there.
        touch: Option<Ttl>,
    },
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A read found this.
    Hit(Item),
    /// There is no item.
    NotFound,
    /// Whatever was asked, it met no item; and the partition lost its data since the asker last
    /// heard, so that whether there was one is unknown. Told once per asker, who then carries the
    /// new generation.
    Lost(Generation),
    /// Stored, as this version.
    Stored(Version),
    /// The condition of an add, replace, append or prepend was not met.
    NotStored,
    /// The version compared is not the item's.
    Exists,
    /// The item is gone.
    Deleted,
    /// The item of this version has its new end.
    Touched(Version),
    /// The number after the change.
    Number(u64, Version),
    /// Not a decimal number below 2^64.
    NotANumber,
    /// Over the limit for one item. After a set an older value of the key is gone.
    TooLarge,
    /// No room, and the policy is to refuse. Nothing changed.
    OutOfMemory,
}
