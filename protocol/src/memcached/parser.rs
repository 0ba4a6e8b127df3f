//! Bytes to ops.
//!
//! A request line is found, cut into words and checked in one go; a parser keeps state only where
//! a request is longer than what one call can give out: a retrieval of several keys, a refused
//! value that is being skipped, and how far an unfinished line has been searched already (so that
//! a line that comes byte by byte is searched once, not once per byte).
//!
//! What always holds:
//! - `consumed` never exceeds the input, and each call consumes something or asks for more;
//! - the ops depend on the bytes alone, not on how they were split over calls;
//! - after an op that ends the connection nothing more is parsed.
//!
//! Cost: a `get` of one key is two vector searches and a few compares; see
//! `tests/parse_speed.rs`.

mod single;

use crate::Parsed;
use crate::command::{Arithmetic, Command, Delete, Direction, Get, Store, StoreMode, Touch, Ttl};
use crate::memcached::base64::{self, KeyScratch};
use crate::memcached::meta::{MetaLine, MetaRequest};
use crate::memcached::number::{flush_time, parse_i64, parse_seconds, parse_u32, parse_u64, ttl};
use crate::memcached::reply::{Bits, DebugReply, Kind, Reply};
use crate::memcached::{
    CREDENTIALS_LEN_MAX, KEY_LEN_MAX, LINE_LEN_MAX, Limits, Op, RETRIEVAL_LINE_LEN_MAX, Stats,
    lines,
    words::{Tokens, is_blank, word_len},
};

/// Takes one connection's requests from its receive buffer.
#[derive(Clone, Debug)]
pub struct Parser {
    limits: Limits,
    /// Nothing but credentials until they are found good.
    auth_pending: bool,
    /// An op that ends the connection was given out.
    closed: bool,
    /// Bytes of a refused value still to be skipped.
    skip: usize,
    /// How many bytes of the unfinished line at the front of the input hold no line end.
    searched: usize,
    /// The retrieval whose keys are being given out.
    retrieval: Option<Retrieval>,
}

impl Parser {
    /// For a connection that was just accepted.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            auth_pending: limits.auth_required,
            closed: false,
            skip: 0,
            searched: 0,
            retrieval: None,
        }
    }

    /// The client's credentials are good: from now on it may use all commands.
    pub fn authenticated(&mut self) {
        self.auth_pending = false;
    }

    /// The next op in `input`, which must begin where the last call stopped: the caller drops
    /// what was consumed and keeps the rest, with more behind it.
    ///
    /// `keys` is needed for base64 keys only.
    pub fn parse<'a>(&mut self, input: &'a [u8], keys: &'a KeyScratch) -> Parsed<Op<'a>> {
        let mut slot = Op::Quit;
        match self.parse_into(&mut slot, input, keys) {
            Parsed::Complete { message: (), consumed } => {
                Parsed::Complete { message: slot, consumed }
            }
            Parsed::NeedMore { at_least, consumed } => Parsed::NeedMore { at_least, consumed },
            Parsed::ScratchFull => Parsed::ScratchFull,
        }
    }

    /// As [`parse`](Self::parse), but writes the op where the caller gathers them: copying an op
    /// that was just written takes longer than writing it. What `slot` holds when there is no op
    /// is unspecified.
    #[inline]
    pub fn parse_into<'a>(
        &mut self,
        slot: &mut Op<'a>,
        input: &'a [u8],
        keys: &'a KeyScratch,
    ) -> Parsed<()> {
        if self.is_plain()
            && let Some((key, consumed)) = single_get(input)
        {
            self.searched = 0;
            return op(slot, get(key, Bits::LAST), consumed);
        }
        self.parse_any(slot, input, keys)
    }

    /// Nothing but the input itself decides what comes next.
    fn is_plain(&self) -> bool {
        !self.auth_pending && !self.closed && self.skip == 0 && self.retrieval.is_none()
    }

    fn parse_any<'a>(&mut self, slot: &mut Op<'a>, input: &'a [u8], keys: &'a KeyScratch) -> Step {
        if self.closed {
            return Parsed::NeedMore { at_least: 1, consumed: input.len() };
        }
        if self.skip > 0 {
            return self.parse_behind_skipped(slot, input, keys);
        }
        if input.is_empty() {
            return Parsed::NeedMore { at_least: 1, consumed: 0 };
        }
        self.next(slot, input, keys)
    }

    /// Drops what is left of a refused value, and parses what follows it.
    #[cold]
    fn parse_behind_skipped<'a>(
        &mut self,
        slot: &mut Op<'a>,
        input: &'a [u8],
        keys: &'a KeyScratch,
    ) -> Step {
        let skipped = self.skip.min(input.len());
        self.skip -= skipped;
        if skipped == input.len() {
            return Parsed::NeedMore { at_least: 1, consumed: skipped };
        }
        let mut parsed = self.next(slot, &input[skipped..], keys);
        match &mut parsed {
            Parsed::Complete { consumed, .. } | Parsed::NeedMore { consumed, .. } => {
                *consumed += skipped;
            }
            // The same input comes again.
            Parsed::ScratchFull => self.skip = skipped,
        }
        parsed
    }

    /// The op at the front of `input`, which is not empty.
    fn next<'a>(&mut self, slot: &mut Op<'a>, input: &'a [u8], keys: &'a KeyScratch) -> Step {
        if let Some(retrieval) = self.retrieval {
            return self.next_key(slot, retrieval, input);
        }
        if input[0] == BINARY_MAGIC {
            return self.close(slot, 1);
        }
        let line = match self.line(input) {
            Found::Line(line) => line,
            Found::NotYet => return wait(input.len() + 1),
            Found::TooLong => return self.close(slot, 1),
        };
        if self.auth_pending {
            return self.credentials(slot, line, input);
        }
        if line.len < LINE_LEN_MIN {
            return reject(slot, BAD_FORMAT, line.len);
        }
        if let Some(arguments) = line.text.strip_prefix(b"mg ")
            && let Some((get, reply)) = MetaLine::new(arguments).and_then(MetaRequest::plain_get)
        {
            return op(slot, Op::Data { command: Command::Get(get), reply }, line.len);
        }
        let (name, arguments) = line.text.split_at(word_len(line.text));
        match name {
            b"get" => self.retrieval(slot, line, Retrieval::new(false, None), arguments, input),
            b"gets" => self.retrieval(slot, line, Retrieval::new(true, None), arguments, input),
            b"mg" => self.meta(slot, line, MetaRequest::get, arguments, keys),
            b"set" => self.storage(slot, line, StoreMode::Set, false, arguments, input),
            b"ms" => self.meta_set(slot, line, arguments, input, keys),
            b"md" => self.meta(slot, line, MetaRequest::delete, arguments, keys),
            b"ma" => self.meta(slot, line, MetaRequest::arithmetic, arguments, keys),
            b"mn" => op(slot, Op::MetaNoop, line.len),
            b"me" => single::meta_debug(slot, line, arguments, keys),
            b"gat" => self.get_and_touch(slot, line, false, arguments, input),
            b"gats" => self.get_and_touch(slot, line, true, arguments, input),
            b"add" => self.storage(slot, line, StoreMode::Add, false, arguments, input),
            b"replace" => self.storage(slot, line, StoreMode::Replace, false, arguments, input),
            b"append" => self.storage(slot, line, StoreMode::Append, false, arguments, input),
            b"prepend" => self.storage(slot, line, StoreMode::Prepend, false, arguments, input),
            b"cas" => self.storage(slot, line, StoreMode::Set, true, arguments, input),
            b"delete" => single::delete(slot, line, arguments),
            b"incr" => single::arithmetic(slot, line, Direction::Increment, arguments),
            b"decr" => single::arithmetic(slot, line, Direction::Decrement, arguments),
            b"touch" => single::touch(slot, line, arguments),
            b"stats" => single::stats(slot, line, arguments),
            b"version" => op(slot, Op::Version, line.len),
            b"quit" if is_blank(arguments) => {
                self.closed = true;
                op(slot, Op::Quit, line.len)
            }
            // These say no more than that, and never kept quiet about it.
            b"quit" => reject(slot, lines::ERROR, line.len),
            b"watch" => reject(slot, b"CLIENT_ERROR watch commands not allowed\r\n", line.len),
            _ => self.administration(slot, line),
        }
    }

    /// Finds the end of the line at the front of `input`.
    fn line<'a>(&mut self, input: &'a [u8]) -> Found<'a> {
        // Strangers may not make us keep long lines.
        let may_be_long = input.len() > LINE_LEN_MAX && !self.auth_pending;
        let len_max =
            if may_be_long && is_retrieval(input) { RETRIEVAL_LINE_LEN_MAX } else { LINE_LEN_MAX };
        let end = input.len().min(len_max + 1);
        let start = self.searched.min(end);
        match memchr::memchr(b'\n', &input[start..end]) {
            Some(at) => {
                let at = start + at;
                self.searched = 0;
                let text = &input[..at];
                Found::Line(Line { text: text.strip_suffix(b"\r").unwrap_or(text), len: at + 1 })
            }
            None if input.len() > len_max => Found::TooLong,
            None => {
                self.searched = end;
                Found::NotYet
            }
        }
    }

    /// The line will be looked at again when its value is there.
    fn wait_for_value(&mut self, line: Line<'_>, at_least: usize) -> Step {
        self.searched = line.len - 1;
        wait(at_least)
    }

    /// Closes the connection without a word, as memcached does where the peer speaks something
    /// else.
    fn close<'a>(&mut self, slot: &mut Op<'a>, len: usize) -> Step {
        self.closed = true;
        op(slot, Op::Reject { reply: b"", close: true }, len)
    }

    /// `get <key>*`: all keys are checked, then the first is given out.
    fn retrieval<'a>(
        &mut self,
        slot: &mut Op<'a>,
        line: Line<'a>,
        retrieval: Retrieval,
        keys: &'a [u8],
        input: &'a [u8],
    ) -> Step {
        let mut any = false;
        for key in Tokens::new(keys) {
            if key.len() > KEY_LEN_MAX {
                return reject(slot, BAD_FORMAT, line.len);
            }
            any = true;
        }
        if !any {
            return reject(slot, BAD_FORMAT, line.len);
        }
        let keys_at = line.text.len() - keys.len();
        let retrieval = Retrieval { left: line.len - keys_at, ..retrieval };
        let mut step = self.next_key(slot, retrieval, &input[keys_at..]);
        if let Parsed::Complete { consumed, .. } = &mut step {
            *consumed += keys_at;
        }
        step
    }

    /// `gat <exptime> <key>*`
    fn get_and_touch<'a>(
        &mut self,
        slot: &mut Op<'a>,
        line: Line<'a>,
        cas: bool,
        arguments: &'a [u8],
        input: &'a [u8],
    ) -> Step {
        let mut tokens = Tokens::new(arguments);
        let (Some(exptime), false) = (tokens.next(), is_blank(tokens.rest())) else {
            return reject(slot, BAD_FORMAT, line.len);
        };
        let Some(seconds) = parse_seconds(exptime) else {
            return reject(slot, BAD_EXPTIME, line.len);
        };
        self.retrieval(slot, line, Retrieval::new(cas, Some(ttl(seconds))), tokens.rest(), input)
    }

    /// Gives out the next key of a line whose keys are known to be good.
    fn next_key<'a>(&mut self, slot: &mut Op<'a>, retrieval: Retrieval, input: &'a [u8]) -> Step {
        // The whole line was there when its keys were checked.
        let Some(line) = input.get(..retrieval.left) else {
            return wait(retrieval.left);
        };
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let mut tokens = Tokens::new(text);
        let Some(key) = tokens.next() else {
            // Not reached: a key is left whenever there is a retrieval.
            self.retrieval = None;
            return op(slot, Op::Answer { reply: lines::END }, line.len());
        };
        let rest = tokens.rest();
        let (bits, len) = if rest.is_empty() {
            self.retrieval = None;
            (Bits::LAST, line.len())
        } else {
            let len = text.len() - rest.len();
            self.retrieval = Some(Retrieval { left: line.len() - len, ..retrieval });
            (Bits::NONE, len)
        };
        let command = Command::Get(Get { touch: retrieval.touch, ..Get::plain(key) });
        let bits = bits.with_if(retrieval.cas, Bits::CAS);
        op(slot, Op::Data { command, reply: Reply::new(Kind::Get, key, key.len(), bits) }, len)
    }

    /// `set <key> <flags> <exptime> <bytes> [noreply]`; `cas` has a version behind the length.
    fn storage<'a>(
        &mut self,
        slot: &mut Op<'a>,
        line: Line<'a>,
        mode: StoreMode,
        is_cas: bool,
        arguments: &'a [u8],
        input: &'a [u8],
    ) -> Step {
        let mut tokens = Tokens::new(arguments);
        let Some(head) = StorageHead::new(&mut tokens) else {
            return reject(slot, BAD_FORMAT, line.len);
        };
        let StorageHead { key, flags, exptime, value_len } = head;
        let noreply = noreply(line);
        let compare = if is_cas { tokens.next().and_then(parse_u64) } else { None };
        let (Some(flags), Some(seconds), true, true) = (
            parse_u32(flags),
            parse_i64(exptime),
            key.len() <= KEY_LEN_MAX,
            is_cas == compare.is_some(),
        ) else {
            return self.refuse(slot, BAD_FORMAT, line, value_len, noreply);
        };
        let kind = match mode {
            StoreMode::Append | StoreMode::Prepend => Kind::Concat,
            StoreMode::Set | StoreMode::Add | StoreMode::Replace => Kind::Store,
        };
        let bits = Bits::NONE.with_if(noreply, Bits::QUIET);
        let reply = Reply::new(kind, key, key.len(), bits);
        if value_len > self.limits.value_len_max {
            self.skip = value_len + 2;
            let delete = mode == StoreMode::Set && compare.is_none();
            return op(slot, Op::TooLarge { key, delete, reply }, line.len);
        }
        let value = match value(input, line.len, value_len) {
            Value::Whole(value) => value,
            Value::NotYet { at_least } => return self.wait_for_value(line, at_least),
            Value::NotTerminated => {
                let reply = if noreply { b"" } else { BAD_DATA_CHUNK };
                return reject(slot, reply, line.len + value_len + 2);
            }
        };
        let command = Command::Store(Store {
            flags,
            ttl: ttl(seconds),
            mode,
            compare,
            ..Store::set(key, value)
        });
        op(slot, Op::Data { command, reply }, line.len + value_len + 2)
    }

    /// Refuses a request line whose value is to be skipped.
    fn refuse<'a>(
        &mut self,
        slot: &mut Op<'a>,
        error: &'static [u8],
        line: Line<'a>,
        value_len: usize,
        noreply: bool,
    ) -> Step {
        self.skip = value_len + 2;
        reject(slot, if noreply { b"" } else { error }, line.len)
    }

    /// A meta command without a value.
    #[inline]
    fn meta<'a>(
        &self,
        slot: &mut Op<'a>,
        line: Line<'a>,
        parse: impl FnOnce(MetaLine<'a>) -> Result<MetaRequest<'a>, &'static [u8]>,
        arguments: &'a [u8],
        keys: &'a KeyScratch,
    ) -> Step {
        let Some(meta) = MetaLine::new(arguments) else {
            return reject(slot, BAD_FORMAT, line.len);
        };
        match parse(meta) {
            Ok(request) => single::meta_data(slot, request, line.len, keys),
            Err(error) => reject(slot, error, line.len),
        }
    }

    /// `ms <key> <datalen> <flags>*`
    fn meta_set<'a>(
        &mut self,
        slot: &mut Op<'a>,
        line: Line<'a>,
        arguments: &'a [u8],
        input: &'a [u8],
        keys: &'a KeyScratch,
    ) -> Step {
        let value_len = Tokens::new(arguments).nth(1).and_then(parse_value_len);
        let (Some(meta), Some(value_len)) = (MetaLine::new(arguments), value_len) else {
            return reject(slot, BAD_FORMAT, line.len);
        };
        let mut request = match MetaRequest::set(meta) {
            Ok(request) => request,
            Err(error) => return self.refuse(slot, error, line, value_len, false),
        };
        if value_len > self.limits.value_len_max {
            let Some(key) = decoded(request.command.key(), request.base64, keys) else {
                return Parsed::ScratchFull;
            };
            self.skip = value_len + 2;
            // In whatever mode: a meta set that fails leaves nothing old behind.
            return op(slot, Op::TooLarge { key, delete: true, reply: request.reply }, line.len);
        }
        let value = match value(input, line.len, value_len) {
            Value::Whole(value) => value,
            Value::NotYet { at_least } => return self.wait_for_value(line, at_least),
            // Told in quiet mode too.
            Value::NotTerminated => return reject(slot, BAD_DATA_CHUNK, line.len + value_len + 2),
        };
        if let Command::Store(store) = &mut request.command {
            store.value = value;
        }
        single::meta_data(slot, request, line.len + value_len + 2, keys)
    }

    /// What a client that has not shown its credentials may send: a `set` of them, on any key.
    fn credentials<'a>(&mut self, slot: &mut Op<'a>, line: Line<'a>, input: &'a [u8]) -> Step {
        if line.len <= AUTH_LINE_LEN_MIN {
            return self.close(slot, line.len);
        }
        let mut tokens = Tokens::new(line.text);
        let is_set = line.text.starts_with(b"set");
        let Some(len) = tokens.nth(4).and_then(parse_u32).filter(|_| is_set) else {
            return reject(slot, b"CLIENT_ERROR unauthenticated\r\n", line.len);
        };
        let len = len as usize;
        if len > CREDENTIALS_LEN_MAX {
            return reject(slot, b"CLIENT_ERROR auth token too long\r\n", line.len);
        }
        let credentials = match value(input, line.len, len) {
            Value::Whole(credentials) => credentials,
            Value::NotYet { at_least } => return self.wait_for_value(line, at_least),
            Value::NotTerminated => {
                let error = b"CLIENT_ERROR bad command line termination\r\n";
                return reject(slot, error, line.len + len + 2);
            }
        };
        if !credentials.contains(&b' ') {
            let error = b"CLIENT_ERROR bad authentication token format\r\n";
            return reject(slot, error, line.len + len + 2);
        }
        op(slot, Op::Authenticate { credentials }, line.len + len + 2)
    }

    /// The commands that are looked up last, and what is no command at all.
    #[cold]
    fn administration<'a>(&mut self, slot: &mut Op<'a>, line: Line<'a>) -> Step {
        let mut tokens = Tokens::new(line.text);
        let name = tokens.next().unwrap_or_default();
        let arguments = tokens.rest();
        let noreply = noreply(line);
        let answer = |reply| Op::Answer { reply: if noreply { b"" } else { reply } };
        let error = |reply| Op::Reject { reply: if noreply { b"" } else { reply }, close: false };
        let first = tokens.next();

        let message = match name {
            b"flush_all" if !self.limits.flush_enabled => {
                error(b"CLIENT_ERROR flush_all not allowed\r\n")
            }
            b"flush_all" => {
                let bare = Tokens::new(arguments).count() == usize::from(noreply);
                let seconds = if bare { Some(0) } else { first.and_then(parse_seconds) };
                match seconds {
                    Some(seconds) => Op::FlushAll { when: flush_time(seconds), noreply },
                    None => error(BAD_EXPTIME),
                }
            }
            // Without a level there is nothing to be quiet about.
            // Debian's memcached and memccapable take it for a request without an answer.
            b"verbosity" if first == Some(b"noreply") => Op::Answer { reply: b"" },
            b"verbosity" => match first.and_then(parse_u32) {
                Some(level) => Op::Verbosity { level, noreply },
                None => error(BAD_FORMAT),
            },
            b"cache_memlimit" => match first.and_then(parse_u32) {
                None => error(lines::ERROR),
                Some(mebibytes) if mebibytes < MEMLIMIT_MIN_MIB => {
                    error(b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n")
                }
                Some(mebibytes) if mebibytes > MEMLIMIT_MAX_MIB => {
                    error(b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n")
                }
                Some(mebibytes) => Op::CacheMemlimit { mebibytes, noreply },
            },
            b"shutdown" if !self.limits.shutdown_enabled => {
                error(b"SERVER_ERROR: shutdown not enabled\r\n")
            }
            b"shutdown" => match (first, tokens.next()) {
                (None, _) => Op::Shutdown { graceful: false },
                (Some(b"graceful"), None) => Op::Shutdown { graceful: true },
                _ => error(b"CLIENT_ERROR invalid shutdown mode\r\n"),
            },
            b"slabs" => match (first, tokens.next(), tokens.next(), tokens.next()) {
                (Some(b"reassign"), Some(_), Some(_), None) => {
                    error(b"CLIENT_ERROR slab reassignment disabled\r\n")
                }
                // There are no slabs to move; the setting is taken as memcached takes it.
                (Some(b"automove"), Some(mode), ..) => match parse_u32(mode) {
                    Some(0..=2) => answer(lines::OK),
                    Some(_) => error(lines::ERROR),
                    None => error(BAD_FORMAT),
                },
                _ => error(lines::ERROR),
            },
            b"lru_crawler" => match (first, tokens.next(), tokens.next()) {
                (Some(b"crawl" | b"metadump" | b"mgdump"), Some(_), None) => {
                    error(b"CLIENT_ERROR lru crawler disabled\r\n")
                }
                (Some(b"tocrawl"), Some(count), None) => match parse_u32(count) {
                    Some(_) => answer(lines::OK),
                    None => error(BAD_FORMAT),
                },
                (Some(b"sleep"), Some(micros), None) => match parse_u32(micros) {
                    Some(0..=1_000_000) => answer(lines::OK),
                    Some(_) => error(b"CLIENT_ERROR sleep must be one second or less\r\n"),
                    None => error(BAD_FORMAT),
                },
                (Some(b"enable"), None, _) => {
                    error(b"ERROR failed to start lru crawler thread\r\n")
                }
                (Some(b"disable"), None, _) => answer(lines::OK),
                _ => error(lines::ERROR),
            },
            // As memcached does, without a word.
            _ if is_http(line.text) => Op::Reject { reply: b"", close: true },
            _ => error(lines::ERROR),
        };
        self.closed = matches!(message, Op::Shutdown { .. } | Op::Reject { close: true, .. });
        op(slot, message, line.len)
    }
}

/// What the front of the input is.
type Step = Parsed<()>;

#[inline]
fn op<'a>(slot: &mut Op<'a>, message: Op<'a>, consumed: usize) -> Step {
    *slot = message;
    Parsed::Complete { message: (), consumed }
}

fn wait(at_least: usize) -> Step {
    Parsed::NeedMore { at_least, consumed: 0 }
}

/// What the search for a line end gave.
enum Found<'a> {
    Line(Line<'a>),
    NotYet,
    TooLong,
}

/// A request line.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// Without its end.
    text: &'a [u8],
    /// With its end.
    len: usize,
}

/// What all keys of a retrieval have in common.
#[derive(Clone, Copy, Debug)]
struct Retrieval {
    cas: bool,
    touch: Option<Ttl>,
    /// Bytes from the next key to the end of the line, with both.
    left: usize,
}

impl Retrieval {
    const fn new(cas: bool, touch: Option<Ttl>) -> Self {
        Self { cas, touch, left: 0 }
    }
}

/// The words that all storage commands begin with.
struct StorageHead<'a> {
    key: &'a [u8],
    flags: &'a [u8],
    exptime: &'a [u8],
    value_len: usize,
}

impl<'a> StorageHead<'a> {
    /// `None` when it is not even known how long the value is.
    #[inline]
    fn new(tokens: &mut Tokens<'a>) -> Option<Self> {
        let (key, flags, exptime) = (tokens.next()?, tokens.next()?, tokens.next()?);
        let value_len = parse_value_len(tokens.next()?)?;
        Some(Self { key, flags, exptime, value_len })
    }
}

enum Value<'a> {
    Whole(&'a [u8]),
    NotYet { at_least: usize },
    NotTerminated,
}

/// The value of `len` bytes behind the line, and its line end.
fn value(input: &[u8], line_len: usize, len: usize) -> Value<'_> {
    match input[line_len..].split_at_checked(len) {
        Some((value, [b'\r', b'\n', ..])) => Value::Whole(value),
        Some((_, [_, _, ..])) => Value::NotTerminated,
        _ => Value::NotYet { at_least: line_len + len + 2 },
    }
}

fn parse_value_len(token: &[u8]) -> Option<usize> {
    let len = parse_u32(token)?;
    (len <= VALUE_LEN_LIMIT).then_some(len as usize)
}

/// A `get` of one key, which is most of what a cache is asked: the key and the request's length.
#[inline]
fn single_get(input: &[u8]) -> Option<(&[u8], usize)> {
    let after_name = input.strip_prefix(b"get ")?;
    // Beyond this the key is too long; the general way says so.
    let window = &after_name[..after_name.len().min(KEY_LEN_MAX + 2)];
    let end = memchr::memchr2(b' ', b'\n', window)?;
    if window[end] == b' ' {
        return None;
    }
    let key = &window[..end];
    let key = key.strip_suffix(b"\r").unwrap_or(key);
    (!key.is_empty() && key.len() <= KEY_LEN_MAX).then_some((key, 4 + end + 1))
}

#[inline]
fn get(key: &[u8], bits: Bits) -> Op<'_> {
    let reply = Reply::new(Kind::Get, key, key.len(), bits);
    Op::Data { command: Command::Get(Get::plain(key)), reply }
}

fn decoded<'a>(key: &'a [u8], base64: bool, keys: &'a KeyScratch) -> Option<&'a [u8]> {
    if base64 { keys.decode(key) } else { Some(key) }
}

fn reject<'a>(slot: &mut Op<'a>, reply: &'static [u8], len: usize) -> Step {
    op(slot, Op::Reject { reply, close: false }, len)
}

/// Whether the last word of the line says so.
#[inline]
fn noreply(line: Line<'_>) -> bool {
    match line.text {
        [.., b'y'] => line.text.ends_with(b" noreply"),
        [.., b' '] => {
            let end = line.text.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last + 1);
            line.text[..end].ends_with(b" noreply")
        }
        _ => false,
    }
}

/// A line that may be longer than others. Decided by its first bytes, which are there when the
/// question comes up.
fn is_retrieval(input: &[u8]) -> bool {
    [&b"get "[..], b"gets ", b"gat ", b"gats "].iter().any(|name| input.starts_with(name))
}

/// A browser, or somebody who uses one against us: every later line would be read as a command.
fn is_http(line: &[u8]) -> bool {
    let mut tokens = Tokens::new(line);
    let method = tokens.next().unwrap_or_default();
    let target = tokens.rest();
    let last = line.rsplit(|&byte| byte == b' ').find(|token| !token.is_empty());
    let version = !is_blank(target) && last.is_some_and(|last| last.starts_with(b"HTTP/"));
    let known = matches!(
        method,
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"DELETE" | b"OPTIONS" | b"PATCH" | b"TRACE"
    );
    version || known && target.starts_with(b"/")
}

/// What is wrong with most lines that are wrong.
pub(super) const BAD_FORMAT: &[u8] = b"CLIENT_ERROR bad command line format\r\n";
const BAD_EXPTIME: &[u8] = b"CLIENT_ERROR invalid exptime argument\r\n";
const BAD_DATA_CHUNK: &[u8] = b"CLIENT_ERROR bad data chunk\r\n";

/// The first byte of the retired binary protocol.
const BINARY_MAGIC: u8 = 0x80;
/// No command is shorter, with its line end.
const LINE_LEN_MIN: usize = 4;
/// No line with credentials is this short: whoever sends one knows nothing of them.
const AUTH_LINE_LEN_MIN: usize = 6;
/// Above this memcached takes no length as one (a signed 32-bit number, with room for the end).
const VALUE_LEN_LIMIT: u32 = i32::MAX as u32 - 2;
const MEMLIMIT_MIN_MIB: u32 = 8;
const MEMLIMIT_MAX_MIB: u32 = 1_000_000_000;
/// Slab classes as memcached numbers them.
const SLAB_CLASSES_MAX: u32 = 64;
