//! The in-memory store of Kiln: a byte ceiling, eviction, expiry and compare-and-set.
//!
//! ```text
//!   Store            hashes, chooses the shard, moves large values outside the lock
//!     ShardView      reads without the lock, of what changes nothing
//!     Shard          one lock: what happens to an item happens here
//!       Index        hash -> item address: linear hashing, one cache line a bucket
//!       Items        how an item lies in its slot
//!         Heap       slots in pages of 64 KiB, emptied and reused when sizes change
//!       Policy       which item leaves when there is no room
//!       Wheel        which item ends when
//!     Region         one mapping; its page pool is the ceiling
//! ```
//!
//! The crate is pure: it reads no clock and does no I/O. Callers bring `now` in Unix milliseconds,
//! which must not run backwards by more than they can bear items to live longer.
//!
//! ```
//! use kiln_engine::{GetOptions, Store, StoreConfig, WriteOptions};
//!
//! let store = Store::new(StoreConfig { memory: 16 << 20, ..StoreConfig::default() })?;
//! let hash = Store::hash(b"greeting");
//! store.write(b"greeting", hash, b"hello", &WriteOptions::default(), 1_000);
//! let length = store.get(b"greeting", hash, &GetOptions::default(), 1_001, |item, _| item.value_len);
//! assert_eq!(length, Some(5));
//! # Ok::<(), kiln_engine::StoreError>(())
//! ```

mod ahead;
mod directory;
mod extent;
mod flush;
mod hash;
mod heap;
mod index;
mod item;
mod ops;
pub mod policy;
mod racy;
mod region;
mod seqlock;
mod shard;
mod store;
mod tally;
mod vectored;
mod view;
mod wheel;

pub use ahead::Ahead;
pub use item::{KEY_LEN_MAX, VALUE_LEN_MAX};
pub use ops::{
    ArithmeticOptions, ArithmeticOutcome, DeleteOptions, DeleteOutcome, Direction, Expiry,
    GetOptions, ItemInfo, Refill, Stats, TouchOutcome, WriteMode, WriteOptions, WriteOutcome,
};
pub use store::{
    Appended, ClassUsage, Entry, MEMORY_MIN, PinnedValue, Reads, ScanPage, Store, StoreConfig,
    StoreError, Upkeep, Value,
};
pub use vectored::{Work, vectored};
