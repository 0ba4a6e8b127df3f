//! Outcomes to bytes.
//!
//! A [`Reply`] is two words of borrowed request line and four bytes of what the parser saw in it.
//! Which flags a meta client wants back, and in which order, stays in the request line and is read
//! again when the answer is written: most requests want none, and then the line is not touched.
//!
//! What always holds:
//! - an answer is one line, and at most one value behind it; the value is copied by the caller,
//!   who has it (perhaps in pieces);
//! - `noreply` hides all answers of a classic command, `q` only the expected answer of a meta
//!   command, never an error;
//! - an outcome that the command cannot have is answered as an error, not with a panic.

use crate::command::{ItemMeta, Outcome, Reason, RefillRight};
use crate::memcached::lines;
use crate::memcached::words::Tokens;

/// How one command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The key as it was sent; for a meta command with all that followed it on the line.
    text: &'a [u8],
    key_len: u8,
    kind: Kind,
    bits: Bits,
}

impl<'a> Reply<'a> {
    pub(super) const fn new(kind: Kind, text: &'a [u8], key_len: usize, bits: Bits) -> Self {
        // The parser has refused keys of more than 250 bytes.
        Self { text, key_len: key_len as u8, kind, bits }
    }

    /// Whether the client wants no answer to a success. Errors of meta commands are sent even so.
    pub const fn is_quiet(&self) -> bool {
        self.bits.has(Bits::QUIET)
    }

    /// Whether a meta command asks.
    pub const fn is_meta(&self) -> bool {
        self.kind.is_meta()
    }

    /// Writes the answer to `outcome`, but for a value: when this returns some bytes, the value
    /// must follow, and those bytes after it.
    #[must_use = "the value and these bytes must follow"]
    pub fn encode(&self, outcome: &Outcome, out: &mut Vec<u8>) -> Option<&'static [u8]> {
        match outcome {
            Outcome::Hit(item) => return self.begin_hit(item, out),
            outcome if self.kind.is_meta() => self.encode_meta(outcome, out),
            outcome => self.encode_classic(outcome, out),
        }
        None
    }

    /// Writes what comes before the value of a hit, like [`encode`](Self::encode).
    #[inline]
    #[must_use = "the value and these bytes must follow"]
    pub fn begin_hit(&self, item: &ItemMeta, out: &mut Vec<u8>) -> Option<&'static [u8]> {
        match self.kind {
            Kind::Get => {
                out.reserve(self.text.len() + 72);
                out.extend_from_slice(b"VALUE ");
                out.extend_from_slice(self.text);
                out.push(b' ');
                write_number(u64::from(item.flags), out);
                out.push(b' ');
                write_number(item.value_len as u64, out);
                if self.bits.has(Bits::CAS) {
                    out.push(b' ');
                    write_number(item.version, out);
                }
                out.extend_from_slice(b"\r\n");
                Some(if self.bits.has(Bits::LAST) { b"\r\nEND\r\n" } else { b"\r\n" })
            }
            Kind::MetaGet => {
                let with_value = self.bits.has(Bits::VALUE)
                    && !(self.bits.has(Bits::COMPARE) && self.compare() == Some(item.version));
                if with_value {
                    out.extend_from_slice(b"VA ");
                    write_number(item.value_len as u64, out);
                } else {
                    out.extend_from_slice(b"HD");
                }
                if self.bits.has(Bits::ECHO) {
                    self.echo_flags(Some(item), out);
                }
                if item.refill == RefillRight::Taken {
                    out.extend_from_slice(b" Z");
                }
                if item.stale {
                    out.extend_from_slice(b" X");
                }
                if item.refill == RefillRight::Won {
                    out.extend_from_slice(b" W");
                }
                out.extend_from_slice(b"\r\n");
                with_value.then_some(b"\r\n")
            }
            _ => {
                self.error(UNHANDLED, out);
                None
            }
        }
    }

    /// Writes an error line instead of an outcome (line ending included), where this client
    /// would get one.
    pub fn error(&self, line: &'static [u8], out: &mut Vec<u8>) {
        if self.kind.is_meta() || !self.is_quiet() {
            out.extend_from_slice(line);
        }
    }

    fn encode_classic(&self, outcome: &Outcome, out: &mut Vec<u8>) {
        // A retrieval has no noreply; its misses are silent, but for the end of the last.
        if self.kind == Kind::Get {
            match outcome {
                // There is no word for a loss: to a cache's client it is a miss.
                Outcome::NotFound | Outcome::Lost => {
                    if self.bits.has(Bits::LAST) {
                        out.extend_from_slice(lines::END);
                    }
                }
                outcome => self.error(unavailable(outcome), out),
            }
            return;
        }
        if self.is_quiet() {
            return;
        }
        let line: &'static [u8] = match (self.kind, outcome) {
            (Kind::Number, Outcome::Number(number, _)) => {
                write_number(*number, out);
                b"\r\n"
            }
            (Kind::Number, Outcome::NotANumber) => NOT_A_NUMBER,
            (Kind::Number, Outcome::OutOfMemory) => OUT_OF_MEMORY,
            (Kind::Store | Kind::Concat, Outcome::Stored(_)) => b"STORED\r\n",
            (Kind::Store | Kind::Concat, Outcome::NotStored) => b"NOT_STORED\r\n",
            (Kind::Concat, Outcome::NotFound | Outcome::Lost) => b"NOT_STORED\r\n",
            (Kind::Store | Kind::Concat, Outcome::Exists) => b"EXISTS\r\n",
            (Kind::Store | Kind::Concat, Outcome::TooLarge) => TOO_LARGE,
            (Kind::Store | Kind::Concat, Outcome::OutOfMemory) => OUT_OF_MEMORY_STORING,
            (Kind::Delete, Outcome::Deleted) => b"DELETED\r\n",
            (Kind::Touch, Outcome::Touched(_)) => b"TOUCHED\r\n",
            (_, Outcome::NotFound | Outcome::Lost) => b"NOT_FOUND\r\n",
            (_, outcome) => unavailable(outcome),
        };
        out.extend_from_slice(line);
    }

    fn encode_meta(&self, outcome: &Outcome, out: &mut Vec<u8>) {
        // The status, the item if it can be told of, and whether `q` hides this answer.
        let (status, item, expected): (&[u8], Option<&ItemMeta>, bool) = match (self.kind, outcome)
        {
            // An item that could not be vivified for want of memory is a miss still.
            (Kind::MetaGet, Outcome::NotFound | Outcome::Lost | Outcome::OutOfMemory) => {
                (b"EN", None, true)
            }
            (Kind::MetaSet | Kind::MetaConcat, Outcome::Stored(item)) => (b"HD", Some(item), true),
            (Kind::MetaConcat, Outcome::NotFound | Outcome::Lost) => (b"NS", None, false),
            (Kind::MetaDelete, Outcome::Deleted) => (b"HD", None, true),
            (Kind::MetaArithmetic, Outcome::Number(number, item)) => {
                return self.encode_meta_number(*number, item, out);
            }
            (Kind::MetaArithmetic, Outcome::NotANumber) => return self.error(NOT_A_NUMBER, out),
            (Kind::MetaSet | Kind::MetaConcat, Outcome::TooLarge) => {
                return self.error(TOO_LARGE, out);
            }
            (Kind::MetaSet | Kind::MetaConcat, Outcome::OutOfMemory) => {
                return self.error(OUT_OF_MEMORY_STORING, out);
            }
            (Kind::MetaArithmetic | Kind::MetaDelete, Outcome::OutOfMemory) => {
                return self.error(OUT_OF_MEMORY, out);
            }
            (Kind::MetaGet, outcome) => return self.error(unavailable(outcome), out),
            (_, Outcome::NotFound | Outcome::Lost) => (b"NF", None, false),
            (_, Outcome::Exists) => (b"EX", None, false),
            (_, Outcome::NotStored) => (b"NS", None, false),
            (_, outcome) => return self.error(unavailable(outcome), out),
        };
        if expected && self.is_quiet() {
            return;
        }
        out.extend_from_slice(status);
        if self.bits.has(Bits::ECHO) {
            self.echo_flags(item, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    fn encode_meta_number(&self, number: u64, item: &ItemMeta, out: &mut Vec<u8>) {
        if self.is_quiet() {
            return;
        }
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        if self.bits.has(Bits::VALUE) {
            out.extend_from_slice(b"VA ");
            write_number(digits.len() as u64, out);
        } else {
            out.extend_from_slice(b"HD");
        }
        if self.bits.has(Bits::ECHO) {
            self.echo_flags(Some(item), out);
        }
        out.extend_from_slice(b"\r\n");
        if self.bits.has(Bits::VALUE) {
            out.extend_from_slice(digits);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Answers the flags that ask for something, in the order of the request.
    fn echo_flags(&self, item: Option<&ItemMeta>, out: &mut Vec<u8>) {
        let get = self.kind == Kind::MetaGet;
        let set = matches!(self.kind, Kind::MetaSet | Kind::MetaConcat);
        let arithmetic = self.kind == Kind::MetaArithmetic;

        for token in self.flags() {
            match (token[0], item) {
                (b'O', _) => {
                    out.push(b' ');
                    out.extend_from_slice(token);
                }
                (b'k', _) => {
                    out.extend_from_slice(b" k");
                    out.extend_from_slice(self.key());
                    if self.bits.has(Bits::BASE64) {
                        out.extend_from_slice(b" b");
                    }
                }
                (b'c', Some(item)) if get || set || arithmetic => {
                    write_flag(b'c', item.version, out);
                }
                // What was not stored has no version, and the size that was sent.
                (b'c', None) if set => write_flag(b'c', 0, out),
                (b's', Some(item)) if get || set => write_flag(b's', item.value_len as u64, out),
                (b's', None) if set => {
                    out.extend_from_slice(b" s");
                    out.extend_from_slice(self.value_len_token());
                }
                (b't', Some(item)) if get || arithmetic => match item.ttl_ms {
                    Some(ms) => write_flag(b't', ms.div_ceil(1000), out),
                    None => out.extend_from_slice(b" t-1"),
                },
                (b'f', Some(item)) if get => write_flag(b'f', u64::from(item.flags), out),
                (b'l', Some(item)) if get => write_flag(b'l', u64::from(item.idle_s), out),
                (b'h', Some(item)) if get => write_flag(b'h', u64::from(item.fetched), out),
                _ => {}
            }
        }
    }

    fn key(&self) -> &'a [u8] {
        &self.text[..usize::from(self.key_len)]
    }

    /// The flags of a meta command.
    fn flags(&self) -> Tokens<'a> {
        let mut tokens = Tokens::new(&self.text[usize::from(self.key_len)..]);
        if matches!(self.kind, Kind::MetaSet | Kind::MetaConcat) {
            tokens.next();
        }
        tokens
    }

    /// The length on the line of a meta set, without leading zeros.
    fn value_len_token(&self) -> &'a [u8] {
        let token = Tokens::new(&self.text[usize::from(self.key_len)..]).next().unwrap_or(b"0");
        let zeros = token.iter().take_while(|&&byte| byte == b'0').count();
        &token[zeros.min(token.len().saturating_sub(1))..]
    }

    /// The version with which a reader says it has the value already.
    fn compare(&self) -> Option<u64> {
        let token = self.flags().find(|token| token[0] == b'C')?;
        super::number::parse_u64(&token[1..])
    }
}

/// How a meta debug request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugReply<'a> {
    /// The key as it was sent.
    pub(super) key: &'a [u8],
}

impl DebugReply<'_> {
    /// Writes what is known of the item, and the bytes it takes in the store; or that it is not
    /// there.
    pub fn encode(&self, item: Option<(&ItemMeta, usize)>, out: &mut Vec<u8>) {
        let Some((item, size)) = item else {
            out.extend_from_slice(b"EN\r\n");
            return;
        };
        out.extend_from_slice(b"ME ");
        out.extend_from_slice(self.key);
        out.extend_from_slice(b" exp=");
        match item.ttl_ms {
            Some(ms) => write_number(ms.div_ceil(1000), out),
            None => out.extend_from_slice(b"-1"),
        }
        out.extend_from_slice(b" la=");
        write_number(u64::from(item.idle_s), out);
        out.extend_from_slice(b" cas=");
        write_number(item.version, out);
        out.extend_from_slice(if item.fetched { b" fetch=yes" } else { b" fetch=no" });
        // There are no slab classes: all items are in the first.
        out.extend_from_slice(b" cls=1 size=");
        write_number(size as u64, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// The family of answers a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Store,
    /// Append and prepend: an absent item is "not stored", not "not found".
    Concat,
    Delete,
    Touch,
    Number,
    MetaGet,
    MetaSet,
    MetaConcat,
    MetaDelete,
    MetaArithmetic,
}

impl Kind {
    const fn is_meta(self) -> bool {
        matches!(
            self,
            Self::MetaGet
                | Self::MetaSet
                | Self::MetaConcat
                | Self::MetaDelete
                | Self::MetaArithmetic
        )
    }
}

/// What the parser noted for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits(u8);

impl Bits {
    pub(super) const NONE: Self = Self(0);
    /// `noreply`, or the meta flag `q`.
    pub(super) const QUIET: Self = Self(1);
    /// A retrieval that gives versions.
    pub(super) const CAS: Self = Self(2);
    /// The last key of a retrieval.
    pub(super) const LAST: Self = Self(4);
    /// The meta flag `v`.
    pub(super) const VALUE: Self = Self(8);
    /// The meta flag `b`.
    pub(super) const BASE64: Self = Self(16);
    /// The meta flag `C` of a read.
    pub(super) const COMPARE: Self = Self(32);
    /// Some meta flag may want an answer.
    pub(super) const ECHO: Self = Self(64);

    pub(super) const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    pub(super) const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    pub(super) const fn with_if(self, condition: bool, bits: Self) -> Self {
        if condition { self.with(bits) } else { self }
    }
}

#[inline]
fn write_number(number: u64, out: &mut Vec<u8>) {
    // Client flags are 0 more often than not.
    if number < 10 {
        return out.push(b'0' + number as u8);
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_flag(flag: u8, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b' ', flag]);
    write_number(number, out);
}

const NOT_A_NUMBER: &[u8] = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
const TOO_LARGE: &[u8] = b"SERVER_ERROR object too large for cache\r\n";
const OUT_OF_MEMORY_STORING: &[u8] = b"SERVER_ERROR out of memory storing object\r\n";
const OUT_OF_MEMORY: &[u8] = b"SERVER_ERROR out of memory\r\n";
/// An outcome that the command cannot have.
/// What a client is told that the cluster could not serve.
fn unavailable(outcome: &Outcome) -> &'static [u8] {
    macro_rules! line {
        ($text:literal) => {
            concat!("SERVER_ERROR ", $text, "\r\n").as_bytes()
        };
    }
    match outcome {
        Outcome::NotApplied(reason) => match reason {
            Reason::NotReady => line!("not available now, another copy takes over; try again"),
            Reason::Busy => line!("too many requests wait; try again"),
            Reason::TooFewCopies => line!("too few copies are in sync; try again later"),
            Reason::Blocked => line!("data were lost; an operator must acknowledge it"),
            Reason::TimedOut => line!("other nodes did not answer in time; try again"),
            Reason::NoSuchCache => line!("the cache is no longer there"),
            Reason::Unsupported => line!("not possible in a replicated cache"),
        },
        Outcome::Indeterminate => line!("outcome unknown: the node of this key failed meanwhile"),
        _ => UNHANDLED,
    }
}

const UNHANDLED: &[u8] = b"SERVER_ERROR Unhandled storage type.\r\n";
