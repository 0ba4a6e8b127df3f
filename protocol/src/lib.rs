//! Bytes to messages and back.
//!
//! Every front end of Kiln speaks the vocabulary of [`command`]; this crate turns protocol bytes
//! into it and its outcomes into bytes. It is sans-I/O: a parser gets a slice of what arrived and
//! says what is in it, an encoder appends to a buffer. There is no socket, no clock and no
//! allocation per request, so a batch of pipelined requests costs what its bytes cost to read.
//!
//! What always holds: messages borrow from the receive buffer; no length that a peer sends is
//! ever allocated; every splitting of a byte stream gives the same messages.

pub mod command;
pub mod memcached;
pub mod native;
pub mod peer;

/// What a parser makes of the bytes it was given.
///
/// A short buffer is normal, not an error: errors are messages of their own, because they have a
/// place in the order of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A message. The first `consumed` bytes of the input are done with once it is handled.
    Complete {
        /// The message.
        message: T,
        /// How many bytes of the input belong to it, or were skipped before it.
        consumed: usize,
    },
    /// Not a whole message yet.
    NeedMore {
        /// How long the input must be, after `consumed` bytes are dropped from its front, before
        /// another try can get further. Always more than there is now. A value still to come is
        /// counted whole, so a caller may grow its buffer to this at once.
        at_least: usize,
        /// How many bytes of the input are of no further use (a refused value is skipped so).
        consumed: usize,
    },
    /// The scratch memory is used up: handle the messages so far, clear it, and parse again.
    ScratchFull,
}
