//! The memcached protocol, classic text and meta, as memcached 1.6 speaks it.
//!
//! ```text
//!   receive buffer --> Parser::parse --> Op --> (the store) --> Outcome --> Reply::encode --> send buffer
//! ```
//!
//! ```
//! use kiln_protocol::Parsed;
//! use kiln_protocol::command::{ItemMeta, Outcome};
//! use kiln_protocol::memcached::{KeyScratch, Limits, Op, Parser};
//!
//! let mut parser = Parser::new(Limits::default());
//! let keys = KeyScratch::new(64);
//! let input = b"get hello\r\nge";
//! let Parsed::Complete { message: Op::Data { command, reply }, consumed } =
//!     parser.parse(input, &keys)
//! else {
//!     panic!("a whole request")
//! };
//! assert_eq!((command.key(), &input[consumed..]), (&b"hello"[..], &b"ge"[..]));
//!
//! let mut out = Vec::new();
//! let item = ItemMeta { value_len: 5, ..ItemMeta::default() };
//! if let Some(tail) = reply.encode(&Outcome::Hit(item), &mut out) {
//!     out.extend_from_slice(b"world");
//!     out.extend_from_slice(tail);
//! }
//! assert_eq!(out, b"VALUE hello 0 5\r\nworld\r\nEND\r\n");
//! ```
//!
//! A [`Parser`] per connection takes one [`Op`] after the other from the receive buffer. An op
//! borrows from that buffer and is `Copy`, so a caller gathers the ops of one read, hashes and
//! prefetches all their keys, and only then runs them in order. The [`Reply`] beside each command
//! remembers how its client wants the answer, as a slice of the request line: the flags of a meta
//! command are read again while the answer is written, so nothing is kept for the many requests
//! that have none.
//!
//! What always holds:
//! - each request gives exactly one op, but for a retrieval of several keys, which gives one per
//!   key; the last of them carries the closing `END`, so an answer needs no op of its own;
//! - all keys of a retrieval are checked before the first is given out;
//! - a refused value is skipped, not read as commands;
//! - a parser holds a few words, whatever the peer sends.
//!
//! Where the memcached documentation and the program differ, the program's behaviour counts, with
//! these exceptions: `quit` with arguments and `delete` with unknown ones are errors, and
//! `verbosity noreply` has no answer (as in older memcached, and as memccapable wants it); client
//! flags and times that do not fit are refused rather than cut; a value whose length is known is
//! skipped whatever else is wrong with its line; an opaque may have the documented 32 bytes; the
//! key of a base64 request must be base64 throughout, and comes back as it was sent; `me` takes
//! `b` as documented; the line limit does not depend on how the bytes arrive; `R` always is a
//! remaining time; the flag `t` tells the time left after the command, wherever it stands; an
//! `md` with `x` and no `T` leaves the item's end alone; sub-commands are compared whole; the
//! modes of `ms` and `ma` may be in lower case.

mod base64;
mod meta;
mod number;
mod parser;
mod reply;
mod stats;
mod words;

pub use base64::KeyScratch;
pub use parser::Parser;
pub use reply::{DebugReply, Reply};
pub use stats::StatsWriter;

use crate::command::Command;

/// Longest key in bytes. A base64 key may have as many in its encoded form.
pub const KEY_LEN_MAX: usize = 250;

/// Longest request line in bytes, but for retrievals. What is longer closes the connection.
pub const LINE_LEN_MAX: usize = 2048;

/// Longest line of a retrieval in bytes: some four thousand keys of full length.
pub const RETRIEVAL_LINE_LEN_MAX: usize = 1 << 20;

/// Longest user name and password in bytes, with the space between.
pub const CREDENTIALS_LEN_MAX: usize = 16 * 1024;

/// Longest opaque token of a meta command in bytes.
pub const OPAQUE_LEN_MAX: usize = 32;

/// Most words on a meta command's line: name, key, length and flags.
pub const META_TOKENS_MAX: usize = 20;

/// Lines that a server writes for ops that carry no [`Reply`].
pub mod lines {
    /// Done.
    pub const OK: &[u8] = b"OK\r\n";
    /// The statistics are reset.
    pub const RESET: &[u8] = b"RESET\r\n";
    /// All that was asked for has been sent.
    pub const END: &[u8] = b"END\r\n";
    /// The answer to a meta no-op.
    pub const META_NOOP: &[u8] = b"MN\r\n";
    /// The credentials are good.
    pub const AUTHENTICATED: &[u8] = b"STORED\r\n";
    /// The credentials are not good.
    pub const AUTHENTICATION_FAILURE: &[u8] = b"CLIENT_ERROR authentication failure\r\n";
    /// The memory limit could not be changed.
    pub const MEMLIMIT_FAILED: &[u8] =
        b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n";
    /// One connection too many: sent at once, then the connection is closed.
    pub const TOO_MANY_CONNECTIONS: &[u8] = b"ERROR Too many open connections\r\n";
    /// Key listings are not allowed on this server.
    pub const CACHEDUMP_NOT_ALLOWED: &[u8] = b"CLIENT_ERROR stats cachedump not allowed\r\n";
    /// Statistics per prefix are not allowed on this server.
    pub const DETAIL_NOT_ALLOWED: &[u8] = b"CLIENT_ERROR stats detail not allowed\r\n";
    /// No such command, or not here.
    pub const ERROR: &[u8] = b"ERROR\r\n";
}

/// What a connection may ask for. Set when the connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value in bytes. A longer one is skipped and answered with an error, and the
    /// item's older value is deleted. Bounds what a caller has to buffer for one request.
    pub value_len_max: usize,
    /// Nothing but credentials is accepted until [`Parser::authenticated`] is called.
    pub auth_required: bool,
    /// `shutdown` is a command rather than an error.
    pub shutdown_enabled: bool,
    /// `flush_all` is a command rather than an error.
    pub flush_enabled: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value_len_max: 1 << 20,
            auth_required: false,
            shutdown_enabled: false,
            flush_enabled: true,
        }
    }
}

/// One request, or one key of a retrieval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// An operation on one key.
    Data {
        /// What to do.
        command: Command<'a>,
        /// How to answer.
        reply: Reply<'a>,
    },
    /// A value over the limit: it will be skipped. Delete the item if `delete`, then encode
    /// [`Outcome::TooLarge`](crate::command::Outcome::TooLarge).
    TooLarge {
        /// The key whose value was refused.
        key: &'a [u8],
        /// The older value must go, or a reader would take it for the one just sent.
        delete: bool,
        /// How to answer.
        reply: Reply<'a>,
    },
    /// Forget all items, now or later. Answer [`lines::OK`].
    FlushAll {
        /// From when on the items are gone.
        when: FlushTime,
        /// Do not answer.
        noreply: bool,
    },
    /// Say the version: [`write_version`].
    Version,
    /// Answer [`lines::META_NOOP`].
    MetaNoop,
    /// What is known of an item beside its value.
    MetaDebug {
        /// The key.
        key: &'a [u8],
        /// How to answer.
        reply: DebugReply<'a>,
    },
    /// Statistics.
    Stats(Stats),
    /// Set how much is logged. Answer [`lines::OK`].
    Verbosity {
        /// As memcached's count of `-v`.
        level: u32,
        /// Do not answer.
        noreply: bool,
    },
    /// Change the memory ceiling. Answer [`lines::OK`] or [`lines::MEMLIMIT_FAILED`].
    CacheMemlimit {
        /// The new ceiling.
        mebibytes: u32,
        /// Do not answer.
        noreply: bool,
    },
    /// Check these credentials (a user name, a space, a password), answer
    /// [`lines::AUTHENTICATED`] or [`lines::AUTHENTICATION_FAILURE`], and tell the parser before
    /// it is asked for the next op: a batch ends here.
    Authenticate {
        /// User name, space, password; at most [`CREDENTIALS_LEN_MAX`] bytes.
        credentials: &'a [u8],
    },
    /// End the process; no answer.
    Shutdown {
        /// Let the requests in flight finish.
        graceful: bool,
    },
    /// Close the connection once the earlier answers are out.
    Quit,
    /// A request that changes nothing here. Send the answer, which may be empty.
    Answer {
        /// The bytes to send.
        reply: &'static [u8],
    },
    /// A request that is not understood or not allowed.
    Reject {
        /// The bytes to send; empty when the client asked for none, or deserves none.
        reply: &'static [u8],
        /// Close the connection once the answers are out: what follows cannot be understood.
        close: bool,
    },
}

/// From when on a flush counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushTime {
    /// At once.
    Now,
    /// Milliseconds from now, above zero.
    After(u64),
    /// Milliseconds since 1970-01-01 UTC.
    At(u64),
}

/// Which statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    /// `stats`
    General,
    /// `stats settings`
    Settings,
    /// `stats items`
    Items,
    /// `stats slabs`
    Slabs,
    /// `stats sizes`
    Sizes,
    /// `stats conns`
    Connections,
    /// `stats reset`: answer [`lines::RESET`].
    Reset,
    /// `stats detail on`: answer [`lines::OK`] or [`lines::DETAIL_NOT_ALLOWED`].
    DetailOn,
    /// `stats detail off`: as above.
    DetailOff,
    /// `stats detail dump`: as above, or a listing.
    DetailDump,
    /// `stats cachedump`: answer a listing or [`lines::CACHEDUMP_NOT_ALLOWED`].
    Cachedump {
        /// Slab class, below 64.
        class: u32,
        /// Most keys to list; 0 for no limit but the server's own.
        limit: u32,
    },
}

/// Answers a [`Op::Version`]. Clients compare the numbers: give `major.minor.patch`.
pub fn write_version(version: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"VERSION ");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\r\n");
}
