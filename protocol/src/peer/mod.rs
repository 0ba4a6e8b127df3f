//! What nodes put on the wire between each other: checked frames that carry opaque bodies.
//!
//! The replication core decides what is said and the server who is spoken to; here is only how
//! bytes are told apart and how damage is noticed. TCP's checksum misses about one damaged segment
//! in 65,536, and a copy that applied one would differ from the others for good.
//!
//! ```text
//!   stream   preface (8 bytes, both ways), then frames
//!   frame    length u32 | kind u8 | detail u8 | flags u8 | 0 | number u32 | head check u32 |
//!            body check u64 | body                                          (all big-endian)
//!   batch    a body of records: (length u32, bytes) and again; the bytes as in `record.rs`
//! ```
//!
//! What always holds:
//! - no byte of a body is handed out before the checksum over head and body was right;
//! - the head has a check of its own, so a damaged length is noticed before anything waits for it
//!   or makes room for it;
//! - what a frame inflates to is bounded by [`INFLATED_LEN_MAX`] and checked before it is allocated;
//! - every splitting of a stream gives the same frames.
//!
//! Cost: one hash over the body each way (about 0.1 ns per byte), and for bodies between
//! 16 KiB and 1 MiB an attempt to compress them.

mod batch;
mod frame;
mod pack;
mod preface;
mod record;

pub use batch::{Malformed, RECORD_HEAD_LEN, Records, begin_record, end_record};
pub use frame::{BODY_LEN_MAX, Frame, FrameError, FrameKind, Frames, HEAD_LEN, Label, begin, seal};
pub use pack::{INFLATED_LEN_MAX, Packer};
pub use preface::{NotKiln, PREFACE_LEN, VERSION, preface, read_preface};
pub use record::{Unreadable, Unwritable, read_record, write_record};
