//! Items and what became of writes, as callers see them.

use std::time::Duration;

use bytes::Bytes;
use kiln_protocol::command::{RefillRight, Ttl};

use crate::{
    Error,
    answer::{Hit, OldItem},
    connection::Peer,
};

/// An item that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// The value; empty where it was not asked for.
    pub value: Bytes,
    /// The version: another one whenever the item is written.
    pub version: u64,
    /// The writer's own bits.
    pub flags: u32,
    /// How long the item still lived when it was read; `None` has no end.
    pub ttl: Option<Duration>,
    /// The item was invalidated: the value is an old one that waits for its successor.
    pub stale: bool,
}

impl Item {
    pub(crate) fn from_hit(hit: Hit, peer: &Peer) -> Result<Self, Error> {
        Ok(Self {
            value: match hit.value {
                Some(value) => value.into_bytes(peer)?,
                None => Bytes::new(),
            },
            version: hit.version,
            flags: hit.flags,
            ttl: hit.ttl_ms.map(Duration::from_millis),
            stale: hit.extra.stale,
        })
    }

    pub(crate) fn from_old(old: OldItem, peer: &Peer) -> Result<Self, Error> {
        let value = old.value.into_bytes(peer)?;
        Ok(Self { value, version: old.version, flags: old.flags, ttl: None, stale: false })
    }
}

/// An item that was looked at closely. See [`Cache::look`](crate::Cache::look).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Look {
    /// The item.
    pub item: Item,
    /// Length of the value in bytes, also where the value was not asked for.
    pub value_len: u64,
    /// Whether this reader should compute the value anew.
    pub refill: Refill,
}

/// Whether a reader should compute a value anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refill {
    /// No: the item is good.
    #[default]
    NotNeeded,
    /// Yes: this reader, and no other.
    Mine,
    /// Another reader is at it.
    Others,
}

impl From<RefillRight> for Refill {
    fn from(right: RefillRight) -> Self {
        match right {
            RefillRight::None => Self::NotNeeded,
            RefillRight::Won => Self::Mine,
            RefillRight::Taken => Self::Others,
        }
    }
}

/// What became of a write that had a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the condition may not have been met"]
pub enum Written {
    /// The value is stored.
    Stored {
        /// The item's version now.
        version: u64,
    },
    /// The key was present, and should not have been, or the other way round.
    NotStored,
    /// The item has another version than the one compared.
    Conflict,
    /// There is no item whose version could be compared.
    NotFound,
}

impl Written {
    /// The new version, when the value is stored.
    pub const fn version(self) -> Option<u64> {
        match self {
            Self::Stored { version } => Some(version),
            _ => None,
        }
    }

    /// Whether the value is stored.
    pub const fn is_stored(self) -> bool {
        matches!(self, Self::Stored { .. })
    }
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// The item is gone.
    Deleted,
    /// There was none.
    NotFound,
    /// The item has another version than the one compared.
    Conflict,
}

/// What became of an increment or decrement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The number after the change.
    Number {
        /// The number.
        number: u64,
        /// The item's version now.
        version: u64,
    },
    /// There is no item, and none was to be made.
    NotFound,
    /// The item has another version than the one compared.
    Conflict,
}

impl Counted {
    /// The number, when there is one.
    pub const fn number(self) -> Option<u64> {
        match self {
            Self::Number { number, .. } => Some(number),
            _ => None,
        }
    }
}

/// How long an item lives.
///
/// A `Duration` or an `Option<Duration>` is one, too: `None` never ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// As long as the cache's setting says.
    #[default]
    CacheDefault,
    /// Until it is deleted or evicted.
    Never,
    /// For this long from when the node handles the request, in whole milliseconds, rounded up.
    After(Duration),
    /// Until this moment, in milliseconds since 1970-01-01 UTC.
    AtUnixMs(u64),
}

impl From<Duration> for Expiry {
    fn from(after: Duration) -> Self {
        Self::After(after)
    }
}

impl From<Option<Duration>> for Expiry {
    fn from(after: Option<Duration>) -> Self {
        after.map_or(Self::Never, Self::After)
    }
}

impl Expiry {
    pub(crate) fn to_ttl(self) -> Ttl {
        match self {
            Self::CacheDefault => Ttl::Default,
            Self::Never => Ttl::Never,
            Self::After(Duration::ZERO) => Ttl::Expired,
            Self::After(after) => {
                let ms = after.as_nanos().div_ceil(1_000_000);
                Ttl::After(u64::try_from(ms).unwrap_or(u64::MAX).min(i64::MAX as u64))
            }
            Self::AtUnixMs(0) => Ttl::Expired,
            Self::AtUnixMs(ms) => Ttl::At(ms.min(i64::MAX as u64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_never_rounded_down_to_less() {
        let ttl = |expiry: Expiry| expiry.to_ttl();

        assert_eq!(ttl(Duration::from_micros(1).into()), Ttl::After(1));
        assert_eq!(ttl(Duration::from_micros(1_001).into()), Ttl::After(2));
        assert_eq!(ttl(Duration::ZERO.into()), Ttl::Expired);
        assert_eq!(ttl(Duration::MAX.into()), Ttl::After(i64::MAX as u64));
        assert_eq!(ttl(None.into()), Ttl::Never);
        assert_eq!(ttl(Expiry::default()), Ttl::Default);
    }
}
