//! Kiln's own protocol: MessagePack in length-prefixed frames.
//!
//! `docs/protocol.md` is the specification; this module is its codec and does no I/O.
//!
//! ```text
//!   frame     u32 big-endian length of the body, body
//!   request   [op, id, ...]     id 0: nobody waits for an answer
//!   response  [kind, id, ...]   in any order; id 0: a push that nobody asked for
//! ```
//!
//! Two kinds of operations, for two kinds of cost. Operations on items are read by hand
//! ([`Request::decode`]), borrow key and value from the frame and become the same
//! [`Command`](crate::command::Command) as on every other front end. What is rare (hello,
//! administration, topology) is a serde structure in a MessagePack map ([`admin`]).
//!
//! What always holds: a decoder allocates nothing for operations on items, and for the others no
//! more than a small multiple of the frame; elements behind the known ones and unknown options are
//! skipped; nesting is bounded; no length in a message is believed before the bytes are there.

pub mod admin;
mod error;
mod frame;
mod list;
mod numbered;
mod request;
mod response;
pub mod streams;
mod value;
mod wire;

pub use error::{Effect, ErrorCode, Failure};
pub use frame::{FRAME_HEAD_LEN, FrameError, Frames, begin_frame, end_frame, end_frame_before};
pub use list::List;
pub use request::{
    Body, CacheRef, Data, Ingest, Item, ItemHead, Items, Op, Producer, Reading, Readings, Refused,
    Request, Scan, Want, encode,
};
pub use response::{
    Entries, Entry, Extra, HitHead, Invalidated, Kind, Live, Old, Push, Response, Results, Slots,
    respond,
};
pub use value::{CompressError, Value, compress, inflate};
pub use wire::Malformed;

/// The protocol version this codec speaks.
pub const VERSION: u32 = 1;

/// Stands in every hello, so that a stray connection of another protocol is told apart.
pub const MAGIC: &str = "kiln";

/// The handle of the cache named `default`, which every connection has without opening it.
pub const DEFAULT_CACHE: u32 = 0;

/// The longest frame body that is accepted before hello, in bytes.
pub const HELLO_FRAME_MAX: usize = 64 * 1024;

/// Longest key in bytes.
pub const KEY_LEN_MAX: usize = 32_000;

/// What a frame may hold beside its largest value: key, options and heads, in bytes.
pub const FRAME_OVERHEAD_MAX: usize = 64 * 1024;

/// Longest cursor of a scan, in bytes.
pub const CURSOR_LEN_MAX: usize = 64;

/// Slots that keys fall into for invalidation: the low bits of a key's hash.
pub const INVALIDATION_SLOTS: u32 = 1 << 16;
