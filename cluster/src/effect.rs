//! What an operation does to an item, apart from where the item lies.
//!
//! The primary evaluates an operation against the item as it is and replicates the *effect*, which
//! holds all that a copy needs: copies never evaluate, so they cannot come to another result.

use bytes::Bytes;
pub use kiln_protocol::command::{Direction, StoreMode, Ttl};
use serde::{Deserialize, Serialize};

use crate::ids::{CacheId, Generation, Version};

/// What an item is marked with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Marks(u8);

impl Marks {
    /// No mark.
    pub const NONE: Self = Self(0);
    /// Invalidated; waits for a new value.
    pub const STALE: Self = Self(1);
    /// A reader was given the right to refill it.
    pub const TAKEN: Self = Self(2);

    /// As a number: one bit for each.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether this mark is among them.
    #[must_use]
    pub const fn has(self, mark: Self) -> bool {
        self.0 & mark.0 == mark.0
    }

    /// These and that.
    #[must_use]
    pub const fn with(self, mark: Self) -> Self {
        Self(self.0 | mark.0)
    }

    /// That, or none.
    #[must_use]
    pub const fn when(self, marked: bool) -> Self {
        if marked { self } else { Self::NONE }
    }
}

/// An item as copies hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The value.
    pub value: Bytes,
    /// The client's opaque bits.
    pub flags: u32,
    /// The write that made it.
    pub version: Version,
    /// When it ends, in milliseconds of the hybrid clock.
    pub deadline_ms: Option<u64>,
    /// Whether it wants a new value, and whether someone is at it.
    pub marks: Marks,
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
    /// It has another end and other marks. The version is that of the item, which stays.
    Touch {
        /// The item's version.
        version: Version,
        /// Its new end.
        deadline_ms: Option<u64>,
        /// Its new marks.
        marks: Marks,
    },
    /// All items of the cache in this partition that were written before are gone, whatever the key
    /// of the effect.
    Clear(Version),
}

impl Change {
    /// The version it leaves behind.
    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::Put(item) => item.version,
            Self::Remove(version) | Self::Clear(version) | Self::Touch { version, .. } => *version,
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

/// One operation on one key, owning its bytes.
///
/// The plain ones are most; what only few ask for has variants of its own ([`Look`](Self::Look),
/// [`Amend`](Self::Amend), [`Mark`](Self::Mark)), so that they stay small.
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
    /// Read, with what meta commands may ask besides.
    Look {
        /// The new end.
        touch: Option<Ttl>,
        /// When absent: create an empty item with this end, and give this reader the right to fill it.
        vivify: Option<Ttl>,
        /// With fewer milliseconds left, one reader gets the right to refill.
        recache_below_ms: Option<u64>,
        /// Not to be counted as a use.
        no_bump: bool,
        /// This reader can be given the right to refill.
        may_refill: bool,
    },
    /// Write a value, with what meta commands may ask besides.
    Amend {
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
        /// When the version compared is older than the item's: write all the same, keep the end, and
        /// mark the item stale.
        invalidate: bool,
        /// With append and prepend, when absent: create it with this end.
        vivify: Option<Ttl>,
    },
    /// Keep the item, marked stale or without its value, under a new version.
    Mark {
        /// Only if the item's version is this one.
        compare: Option<Version>,
        /// Mark it stale: the next reader who can gets the right to refill.
        invalidate: bool,
        /// With `invalidate`: its new end.
        ttl: Option<Ttl>,
        /// Drop its value and flags.
        keep_empty: bool,
    },
    /// Remove all items of the cache in the partition that the key is in; see
    /// [`key_in`](crate::placement::key_in).
    Clear,
}

impl Operation {
    /// Whether carrying it out once more, while its client still waits, leaves what once leaves.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        match self {
            Self::Store { mode, compare, .. } => *mode == StoreMode::Set && compare.is_none(),
            Self::Delete { compare } => compare.is_none(),
            Self::Touch { .. } | Self::Get { .. } => true,
            other => other.is_plain_read(),
        }
    }

    /// Whether it reads and can change nothing, whatever the item is like.
    #[must_use]
    pub fn is_plain_read(&self) -> bool {
        matches!(
            self,
            Self::Get { touch: None }
                | Self::Look {
                    touch: None,
                    vivify: None,
                    recache_below_ms: None,
                    may_refill: false,
                    ..
                }
        )
    }

    /// Whether reading counts as a use of the item.
    #[must_use]
    pub fn counts_as_use(&self) -> bool {
        !matches!(self, Self::Look { no_bump: true, .. })
    }
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A read found this.
    Hit(Item),
    /// A read found this, and its reader got the right to refill it.
    Won(Item),
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
    /// The item is gone, or marked as asked.
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
