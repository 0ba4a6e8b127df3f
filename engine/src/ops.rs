//! What is asked of a store and what it answers.
//!
//! All times are Unix milliseconds that the caller brings; the engine reads no clock.

/// When an item ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Expiry {
    /// Not by itself.
    #[default]
    Never,
    /// At this many Unix milliseconds; a time not after `now` means at once.
    At(u64),
}

impl Expiry {
    /// A time that is past counts from now on: it says nothing about how late anyone was.
    pub(crate) fn deadline(self, now_ms: u64) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::At(at) => Some(at.max(now_ms).min(u64::MAX - 1)),
        }
    }

    pub(crate) fn is_over(self, now_ms: u64) -> bool {
        matches!(self, Self::At(at) if at <= now_ms)
    }
}

/// How a read treats the item. The default counts as a use and changes nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// New end of the item when it is hit.
    pub touch: Option<Expiry>,
    /// On a miss, create an empty item with this end; this reader gets the right to fill it.
    pub vivify: Option<Expiry>,
    /// On a hit with less than this many milliseconds left, before any touch, give one reader the
    /// right to refill.
    pub recache_below_ms: Option<u64>,
    /// Do not count as a use.
    pub no_bump: bool,
    /// This reader can be given the right to refill a stale item, or one that is about to end.
    pub may_refill: bool,
    /// With `vivify`: give the item this version rather than the store's next.
    pub version: Option<u64>,
}

impl GetOptions {
    /// Of a read that asks for nothing but what is there. As a constant, it is never written out
    /// anew for each read.
    pub const PLAIN: Self = Self {
        touch: None,
        vivify: None,
        recache_below_ms: None,
        no_bump: false,
        may_refill: false,
        version: None,
    };

    /// Whether a read asks for nothing but what is there.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.touch.is_none() && self.vivify.is_none() && self.recache_below_ms.is_none()
    }
}

/// Under which condition, and how, a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// Whether or not the key exists.
    #[default]
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

/// How a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Condition and manner.
    pub mode: WriteMode,
    /// Opaque bits kept for the client.
    pub flags: u32,
    /// The end of the item.
    pub expiry: Expiry,
    /// Write only if the item's version is this one.
    pub compare: Option<u64>,
    /// Give the item this version rather than the store's next.
    pub version: Option<u64>,
    /// When `compare` is *older* than the item: store all the same, keep the item's end, and mark
    /// it stale.
    pub invalidate: bool,
    /// With append and prepend: create the item with this end when it is absent.
    pub vivify: Option<Expiry>,
    /// Mark it as waiting for a new value: for copies of an item that is so marked elsewhere.
    pub stale: bool,
    /// Mark it as being refilled by a reader: the same.
    pub granted: bool,
}

/// How an item is removed or marked. The default removes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Act only if the item's version is this one.
    pub compare: Option<u64>,
    /// Version of the item where it stays.
    pub version: Option<u64>,
    /// Keep the item, marked stale; the next reader gets the right to refill.
    pub invalidate: bool,
    /// With `invalidate`: new end of the item.
    pub expiry: Option<Expiry>,
    /// Keep the item, without its value and flags.
    pub keep_empty: bool,
}

/// Which way a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Add, wrapping at 2^64.
    Increment,
    /// Subtract, stopping at 0.
    Decrement,
}

/// How a number is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArithmeticOptions {
    /// Which way.
    pub direction: Direction,
    /// By how much.
    pub delta: u64,
    /// Act only if the item's version is this one.
    pub compare: Option<u64>,
    /// Give the item this version rather than the store's next.
    pub version: Option<u64>,
    /// When absent: create it with this end and this number, without the delta.
    pub create: Option<(Expiry, u64)>,
    /// New end of the item when it is there.
    pub touch: Option<Expiry>,
}

/// What a reader may do about an item that wants a new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refill {
    /// Nothing: the item is good.
    #[default]
    None,
    /// Compute the value and store it; no other reader will be told so.
    Won,
    /// Another reader is at it.
    Taken,
}

/// An item beside its key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemInfo {
    /// Length of the value in bytes.
    pub value_len: usize,
    /// The client's opaque bits.
    pub flags: u32,
    /// Rises with each write of the store.
    pub version: u64,
    /// Unix milliseconds at which it ends.
    pub deadline_ms: Option<u64>,
    /// Seconds since the last use, before this one. Up to a minute too many: of an item used all the
    /// time, one use a minute is noted.
    pub idle_s: u32,
    /// Whether it had been read since it was stored, before this.
    pub fetched: bool,
    /// Whether it was invalidated and waits for a new value.
    pub stale: bool,
    /// Whether this reader should refill it.
    pub refill: Refill,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Stored; the item as it is now.
    Stored(ItemInfo),
    /// The condition of the mode is not met. Nothing changed.
    NotStored,
    /// The version compared is not the item's. Nothing changed.
    Exists,
    /// A version was compared and there is no item. Nothing changed.
    NotFound,
    /// Over the item size limit, and then an older value of the key is gone after a set; or over
    /// half of the store's memory, and then nothing changed.
    TooLarge,
    /// No room could be made. After a set without a condition an older value of the key is gone,
    /// unless the policy is to keep everything.
    OutOfMemory,
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// Removed, marked or emptied, as asked. An item that had to move to be marked, and for which
    /// there was no room, was removed.
    Deleted,
    /// There is no item.
    NotFound,
    /// The version compared is not the item's. Nothing changed.
    Exists,
}

/// What became of a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TouchOutcome {
    /// The item has its new end.
    Touched(ItemInfo),
    /// There is no item.
    NotFound,
    /// The item had to move to get an end, and there was no room. It is unchanged.
    OutOfMemory,
}

/// What became of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArithmeticOutcome {
    /// The number after the change.
    Number(u64, ItemInfo),
    /// There is no item and none was to be created.
    NotFound,
    /// The version compared is not the item's. Nothing changed.
    Exists,
    /// The value is not a decimal number below 2^64. Nothing changed.
    NotANumber,
    /// No room could be made. Nothing changed.
    OutOfMemory,
}

/// Counters and gauges of a store, or of one shard. Counters run from the start of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads that found an item.
    pub get_hits: u64,
    /// Reads that found none.
    pub get_misses: u64,
    /// Of those, the item had just ended.
    pub get_expired: u64,
    /// Writes asked for, of any mode.
    pub writes: u64,
    /// Touches (alone or with a read) that found an item.
    pub touch_hits: u64,
    /// Touches that found none.
    pub touch_misses: u64,
    /// Deletes that found an item.
    pub delete_hits: u64,
    /// Deletes that found none.
    pub delete_misses: u64,
    /// Increments that found an item.
    pub incr_hits: u64,
    /// Increments that found none.
    pub incr_misses: u64,
    /// Decrements that found an item.
    pub decr_hits: u64,
    /// Decrements that found none.
    pub decr_misses: u64,
    /// Compared writes whose version was the item's.
    pub cas_hits: u64,
    /// Compared writes with no item.
    pub cas_misses: u64,
    /// Compared writes whose version was another.
    pub cas_badval: u64,
    /// Flushes.
    pub flushes: u64,
    /// Items dropped by the policy for want of room.
    pub evictions: u64,
    /// Of those, never read since they were stored.
    pub evicted_unfetched: u64,
    /// Seconds since the last use of the item evicted last.
    pub evicted_idle_s: u64,
    /// Items whose end came, whether found by a read or by the wheel.
    pub expirations: u64,
    /// Of those, never read since they were stored.
    pub expired_unfetched: u64,
    /// Milliseconds between the end of items and their removal, summed.
    pub expiry_lag_ms_sum: u64,
    /// The greatest such.
    pub expiry_lag_ms_max: u64,
    /// Writes refused as over the size limit.
    pub too_large: u64,
    /// Writes refused for want of room.
    pub no_memory: u64,
    /// Items moved to empty a page for another size.
    pub moved: u64,
    /// Items stored since the start.
    pub total_items: u64,
    /// Items now.
    pub items: u64,
    /// Items now that have an end.
    pub items_with_ttl: u64,
    /// Bytes in the slots of items now, large values included.
    pub item_bytes: u64,
    /// Bytes of index pages now.
    pub index_bytes: u64,
    /// Bytes of pages taken from the region now, of whatever use.
    pub page_bytes: u64,
    /// Bytes on the heap beside the pages now: policy memory and tables.
    pub heap_bytes: u64,
    /// Large values being written to slow readers after they were removed: memory not yet free.
    pub zombies: u64,
}

impl Stats {
    /// Adds another's counters and gauges; greatest and latest values take the greater.
    pub fn add(&mut self, other: &Self) {
        let Self {
            get_hits,
            get_misses,
            get_expired,
            writes,
            touch_hits,
            touch_misses,
            delete_hits,
            delete_misses,
            incr_hits,
            incr_misses,
            decr_hits,
            decr_misses,
            cas_hits,
            cas_misses,
            cas_badval,
            flushes,
            evictions,
            evicted_unfetched,
            evicted_idle_s,
            expirations,
            expired_unfetched,
            expiry_lag_ms_sum,
            expiry_lag_ms_max,
            too_large,
            no_memory,
            moved,
            total_items,
            items,
            items_with_ttl,
            item_bytes,
            index_bytes,
            page_bytes,
            heap_bytes,
            zombies,
        } = other;
        self.get_hits += get_hits;
        self.get_misses += get_misses;
        self.get_expired += get_expired;
        self.writes += writes;
        self.touch_hits += touch_hits;
        self.touch_misses += touch_misses;
        self.delete_hits += delete_hits;
        self.delete_misses += delete_misses;
        self.incr_hits += incr_hits;
        self.incr_misses += incr_misses;
        self.decr_hits += decr_hits;
        self.decr_misses += decr_misses;
        self.cas_hits += cas_hits;
        self.cas_misses += cas_misses;
        self.cas_badval += cas_badval;
        self.flushes = self.flushes.max(*flushes);
        self.evictions += evictions;
        self.evicted_unfetched += evicted_unfetched;
        self.evicted_idle_s = self.evicted_idle_s.max(*evicted_idle_s);
        self.expirations += expirations;
        self.expired_unfetched += expired_unfetched;
        self.expiry_lag_ms_sum += expiry_lag_ms_sum;
        self.expiry_lag_ms_max = self.expiry_lag_ms_max.max(*expiry_lag_ms_max);
        self.too_large += too_large;
        self.no_memory += no_memory;
        self.moved += moved;
        self.total_items += total_items;
        self.items += items;
        self.items_with_ttl += items_with_ttl;
        self.item_bytes += item_bytes;
        self.index_bytes += index_bytes;
        self.page_bytes += page_bytes;
        self.heap_bytes += heap_bytes;
        self.zombies += zombies;
    }
}
