//! The one request vocabulary of every front end.
//!
//! Memcached, native and REST turn their bytes into a [`Command`] and get an [`Outcome`] back, so
//! that an operation has one meaning however it arrived, and one version number that is the
//! memcached CAS unique, the native version and the ETag alike.
//!
//! Commands borrow from the receive buffer: nothing is copied until the store takes the value.
//! Times are relative or absolute as the client gave them ([`Ttl`]); this crate has no clock.

use serde::{Deserialize, Serialize};

/// When an item ends, as the client asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ttl {
    /// As the cache has it for writes that name no end.
    Default,
    /// The item stays until it is evicted or deleted.
    Never,
    /// Milliseconds from the moment the command is executed; always above zero.
    After(u64),
    /// Milliseconds since 1970-01-01 UTC.
    At(u64),
    /// Already over: the write takes effect and the item is gone at once.
    Expired,
}

/// One operation on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Read an item, perhaps touching or creating it.
    Get(Get<'a>),
    /// Write a value.
    Store(Store<'a>),
    /// Remove an item or mark it stale.
    Delete(Delete<'a>),
    /// Add to or subtract from a decimal number.
    Arithmetic(Arithmetic<'a>),
    /// Give an item a new end without reading it.
    Touch(Touch<'a>),
}

impl<'a> Command<'a> {
    /// The key that decides where the command is executed.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Get(get) => get.key,
            Self::Store(store) => store.key,
            Self::Delete(delete) => delete.key,
            Self::Arithmetic(arithmetic) => arithmetic.key,
            Self::Touch(touch) => touch.key,
        }
    }

    /// Names another key: the bytes that an encoded key stands for.
    pub fn set_key(&mut self, key: &'a [u8]) {
        match self {
            Self::Get(get) => get.key = key,
            Self::Store(store) => store.key = key,
            Self::Delete(delete) => delete.key = key,
            Self::Arithmetic(arithmetic) => arithmetic.key = key,
            Self::Touch(touch) => touch.key = key,
        }
    }
}

/// Read an item. The default of each option leaves the item as it is but for its recency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Get<'a> {
    /// The key, as raw bytes.
    pub key: &'a [u8],
    /// New end of the item when it is hit.
    pub touch: Option<Ttl>,
    /// On a miss, create an empty item with this end and hand the caller the right to fill it.
    pub vivify: Option<Ttl>,
    /// On a hit with less than this many milliseconds left, hand one caller the right to refill.
    pub recache_below_ms: Option<u64>,
    /// Do not count this access as a use: no recency, no fetched mark.
    pub no_bump: bool,
    /// This reader can be told to refill the item. One that cannot must not be given the right:
    /// nobody would refill then.
    pub may_refill: bool,
    /// With `vivify`: give the created item this version rather than the next one of the store.
    pub version: Option<u64>,
}

impl<'a> Get<'a> {
    /// A plain read.
    pub const fn plain(key: &'a [u8]) -> Self {
        Self {
            key,
            touch: None,
            vivify: None,
            recache_below_ms: None,
            no_bump: false,
            may_refill: false,
            version: None,
        }
    }
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

/// Write a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store<'a> {
    /// The key, as raw bytes.
    pub key: &'a [u8],
    /// The value, whole.
    pub value: &'a [u8],
    /// Opaque bits kept with the value for the client.
    pub flags: u32,
    /// The end of the item.
    pub ttl: Ttl,
    /// Condition and manner of the write.
    pub mode: StoreMode,
    /// Write only if the item's version is this one.
    pub compare: Option<u64>,
    /// Give the item this version rather than the next one of the store.
    pub version: Option<u64>,
    /// With `compare`: when the given version is *older* than the item's, store all the same and
    /// mark the item stale.
    pub invalidate: bool,
    /// With append and prepend: create the item with this end when it is absent.
    pub vivify: Option<Ttl>,
}

impl<'a> Store<'a> {
    /// An unconditional write that never ends.
    pub const fn set(key: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            key,
            value,
            flags: 0,
            ttl: Ttl::Never,
            mode: StoreMode::Set,
            compare: None,
            version: None,
            invalidate: false,
            vivify: None,
        }
    }
}

/// Remove an item, or keep it and mark it stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The key, as raw bytes.
    pub key: &'a [u8],
    /// Act only if the item's version is this one.
    pub compare: Option<u64>,
    /// The version the item gets when it stays (`invalidate` or `keep_empty`).
    pub version: Option<u64>,
    /// Keep the item, marked stale, with a new version: the next reader wins the right to refill.
    pub invalidate: bool,
    /// With `invalidate`: the new end of the item.
    pub ttl: Option<Ttl>,
    /// Keep the item but drop its value and flags.
    pub keep_empty: bool,
}

impl<'a> Delete<'a> {
    /// A plain delete.
    pub const fn plain(key: &'a [u8]) -> Self {
        Self { key, compare: None, version: None, invalidate: false, ttl: None, keep_empty: false }
    }
}

/// Which way a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Add, wrapping at 2^64.
    Increment,
    /// Subtract, stopping at 0.
    Decrement,
}

/// Change a number kept as decimal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic<'a> {
    /// The key, as raw bytes.
    pub key: &'a [u8],
    /// Which way.
    pub direction: Direction,
    /// By how much.
    pub delta: u64,
    /// Act only if the item's version is this one.
    pub compare: Option<u64>,
    /// Give the item this version rather than the next one of the store.
    pub version: Option<u64>,
    /// When absent: create it with this end and this value (the delta is not applied).
    pub create: Option<(Ttl, u64)>,
    /// New end of the item when it was there.
    pub touch: Option<Ttl>,
}

/// Give an item a new end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch<'a> {
    /// The key, as raw bytes.
    pub key: &'a [u8],
    /// The new end.
    pub ttl: Ttl,
}

/// What a reader may do about an item that wants a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RefillRight {
    /// Nothing to do: the item is good.
    #[default]
    None,
    /// This reader won: it should compute the value and store it.
    Won,
    /// Another reader won earlier and is at it.
    Taken,
}

/// What is known of an item beside its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ItemMeta {
    /// Length of the value in bytes.
    pub value_len: usize,
    /// The client's opaque bits.
    pub flags: u32,
    /// Version: the CAS unique.
    pub version: u64,
    /// Milliseconds left, or `None` when the item does not end.
    pub ttl_ms: Option<u64>,
    /// Seconds since the item was last used, before this access.
    pub idle_s: u32,
    /// Whether it had been read before this access.
    pub fetched: bool,
    /// Whether it was invalidated and waits for a new value.
    pub stale: bool,
    /// Whether this reader should refill it.
    pub refill: RefillRight,
}

/// Why the cluster did not carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Another copy of the key is about to take over. Try again soon.
    NotReady,
    /// Too many requests wait already.
    Busy,
    /// Fewer copies are in sync than the cache asks for.
    TooFewCopies,
    /// The data were lost, and the cache waits for an operator.
    Blocked,
    /// Other nodes did not answer in time.
    TimedOut,
    /// The cache is no longer there.
    NoSuchCache,
    /// Replicated caches cannot do this.
    Unsupported,
}

impl Reason {
    /// For people: what is wrong, and what to do.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotReady => "not available now, another copy takes over; try again",
            Self::Busy => "too many requests wait; try again",
            Self::TooFewCopies => "too few copies are in sync for this cache; try again later",
            Self::Blocked => "data were lost and the cache waits for an operator to acknowledge it",
            Self::TimedOut => "other nodes did not answer in time; try again",
            Self::NoSuchCache => "the cache is no longer there",
            Self::Unsupported => "not possible in a replicated cache",
        }
    }

    /// Milliseconds after which another try makes sense, if it does.
    #[must_use]
    pub const fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::NotReady | Self::Busy | Self::TimedOut => Some(100),
            Self::TooFewCopies => Some(1_000),
            Self::Blocked | Self::NoSuchCache | Self::Unsupported => None,
        }
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A read found the item; the value travels beside this (it is never copied into an outcome).
    Hit(ItemMeta),
    /// The key is not there: a read missed, or a touch, delete, compare or arithmetic had no item.
    NotFound,
    /// The value is stored. Carries the new item as it is now.
    Stored(ItemMeta),
    /// The condition of an add, replace, append or prepend was not met.
    NotStored,
    /// The version compared does not match.
    Exists,
    /// The item is gone (or marked stale).
    Deleted,
    /// The item has its new end.
    Touched(ItemMeta),
    /// The number after the change, and the item that holds it.
    Number(u64, ItemMeta),
    /// Arithmetic on something that is not a decimal number of at most 20 digits.
    NotANumber,
    /// The value is over the store's item size limit. A store that was asked has dropped the older
    /// value of the key; the native protocol refuses before it asks.
    TooLarge,
    /// No room: the policy is to refuse, or nothing could be evicted. When the cache evicts, and the
    /// command was a set without a condition, the older value of the key is evicted.
    OutOfMemory,
    /// Not applied, now or later, on any copy: it may be sent again as it is.
    NotApplied(Reason),
    /// Perhaps applied, perhaps later, perhaps never: the node that had it failed.
    Indeterminate,
    /// It met no item, but every copy of its partition was lost since the asker last heard, so
    /// that whether there was one is unknown.
    Lost,
}
