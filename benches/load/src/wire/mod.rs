//! The protocols, as far as a generator of gets and sets needs them.
//!
//! Text protocols are parsed against what was asked, since a reply alone does not say which request
//! it belongs to; native answers carry the number of their request and may come in any order. A
//! reply that is not there yet is [`Parsed::NeedMore`]; one that can never become right is a
//! [`WireError`], after which the connection's replies can no longer be told apart.

mod http;
mod native;
mod text;

use crate::keys::KeyShape;
use crate::run::Plan;
use crate::values::Values;

pub(crate) use native::handshake;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The classic text protocol of memcached.
    Memcached,
    /// The meta commands of memcached.
    Meta,
    /// Kiln's own binary protocol.
    Native,
    /// HTTP/1.1: GET and PUT of /v1/caches/CACHE/keys/KEY, or GET of one path.
    Http,
    /// RESP2, as Redis and Valkey speak it.
    Redis,
    /// Whatever is sent comes back: what the loopback alone costs.
    #[value(skip)]
    Echo,
}

impl Protocol {
    /// Where a Kiln node listens for it unless told otherwise; where the echo is decided later.
    #[must_use]
    pub fn address_default(self) -> &'static str {
        match self {
            Self::Memcached | Self::Meta => "127.0.0.1:11211",
            Self::Native => "127.0.0.1:7311",
            Self::Http => "127.0.0.1:7380",
            Self::Redis => "127.0.0.1:6379",
            Self::Echo => "127.0.0.1:0",
        }
    }

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memcached => "memcached",
            Self::Meta => "meta",
            Self::Native => "native",
            Self::Http => "http",
            Self::Redis => "redis",
            Self::Echo => "echo",
        }
    }
}

/// What a reply must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A read of one key.
    Get,
    /// A write of one key.
    Set,
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The write was done.
    Stored,
    /// The read found these bytes.
    Value(&'a [u8]),
    /// The read found nothing.
    Miss,
    /// The server refused, in these words.
    Refused(std::borrow::Cow<'a, [u8]>),
    /// The server says something of its own accord: no reply to anything.
    Notice,
}

/// A reply, and the number of the request that it answers where the protocol has numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The reply.
    pub reply: Reply<'a>,
    /// Its request; `None` means the oldest that waits.
    pub id: Option<u32>,
}

/// A message, or how far it is from complete.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The message and the bytes it took.
    Complete {
        /// What was read.
        message: T,
        /// How many bytes it was.
        consumed: usize,
    },
    /// The message needs at least this many bytes from its start.
    NeedMore {
        /// Always more than were given.
        at_least: usize,
    },
}

impl<T> Parsed<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Parsed<U> {
        match self {
            Self::Complete { message, consumed } => {
                Parsed::Complete { message: change(message), consumed }
            }
            Self::NeedMore { at_least } => Parsed::NeedMore { at_least },
        }
    }
}

/// The reply cannot be one to what was asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// A line, or the head of an HTTP reply, that does not end.
    #[error("a reply line is longer than {limit} bytes")]
    LineTooLong {
        /// The longest there may be.
        limit: usize,
    },
    /// A value longer than any that was stored.
    #[error("a value of {len} bytes came, the longest stored is {limit}")]
    ValueTooLong {
        /// The length the server announced.
        len: usize,
        /// The longest the generator would store.
        limit: usize,
    },
    /// A native frame that is none, or longer than any answer.
    #[error("not an answer of the native protocol: {reason}")]
    Frame {
        /// What is wrong with it.
        reason: String,
    },
    /// A native answer to a request that does not wait.
    #[error("an answer came for request {id}, which does not wait for one")]
    UnknownId {
        /// The number the server gave.
        id: u32,
    },
    /// Something else.
    #[error("`{line}` does not answer a {asked:?}")]
    Unexpected {
        /// The start of what came.
        line: String,
        /// What was waited for.
        asked: Asked,
    },
}

impl WireError {
    pub(crate) fn unexpected(line: &[u8], asked: Asked) -> Self {
        let shown = &line[..line.len().min(LINE_SHOWN_MAX)];
        Self::Unexpected { line: String::from_utf8_lossy(shown).into_owned(), asked }
    }
}

/// Spells requests and reads replies for one run.
#[derive(Debug)]
pub(crate) struct Wire<'a> {
    protocol: Protocol,
    shape: &'a KeyShape,
    values: &'a Values,
    /// HTTP: what comes before the key in each request line, or the whole path.
    path: String,
    /// HTTP: the path has no key behind it, and only gets are sent.
    path_is_whole: bool,
    host: String,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(plan: &Plan, shape: &'a KeyShape, values: &'a Values) -> Self {
        let keys = || format!("/v1/caches/{}/keys/", plan.cache);
        Self {
            protocol: plan.protocol,
            shape,
            values,
            path: plan.http_path.clone().unwrap_or_else(keys),
            path_is_whole: plan.http_path.is_some(),
            host: plan.target.to_string(),
        }
    }

    /// Appends a request. `scratch` is for this function alone.
    pub(crate) fn encode(&self, ask: Ask, scratch: &mut Vec<u8>, output: &mut Vec<u8>) {
        let item = Item { number: ask.number, shape: self.shape, values: self.values };
        match (self.protocol, ask.asked) {
            (Protocol::Memcached, Asked::Get) => text::memcached_get(&item, output),
            (Protocol::Memcached, Asked::Set) => text::memcached_set(&item, output),
            (Protocol::Meta, Asked::Get) => text::meta_get(&item, output),
            (Protocol::Meta, Asked::Set) => text::meta_set(&item, output),
            (Protocol::Redis, Asked::Get) => text::redis_get(&item, output),
            (Protocol::Redis, Asked::Set) => text::redis_set(&item, output),
            (Protocol::Native, asked) => {
                native::request(asked, ask.cache, ask.id, &item, scratch, output);
            }
            (Protocol::Http, _) if self.path_is_whole => {
                http::get_path(&self.path, &self.host, output);
            }
            (Protocol::Http, Asked::Get) => http::get(&self.path, &self.host, &item, output),
            (Protocol::Http, Asked::Set) => http::put(&self.path, &self.host, &item, output),
            (Protocol::Echo, _) => {
                // As long as a small get, so that what comes back is one packet as well.
                item.key(output);
                output.push(b'\n');
            }
        }
    }

    /// Reads the reply at the start of `input`; `asked` is what the oldest request asked for.
    pub(crate) fn parse<'i>(
        &self,
        asked: Asked,
        input: &'i [u8],
    ) -> Result<Parsed<Answer<'i>>, WireError> {
        let value_len_max = self.values.len_max();
        let in_order = |reply| Answer { reply, id: None };
        Ok(match self.protocol {
            Protocol::Memcached => {
                text::memcached_reply(asked, input, value_len_max)?.map(in_order)
            }
            Protocol::Meta => text::meta_reply(asked, input, value_len_max)?.map(in_order),
            Protocol::Redis => text::redis_reply(asked, input, value_len_max)?.map(in_order),
            Protocol::Native => native::answer(input, self.reply_len_max())?,
            Protocol::Http => {
                let body_len_max = self.reply_len_max() - http::HEAD_LEN_MAX;
                http::reply(asked, self.path_is_whole, input, body_len_max)?.map(in_order)
            }
            Protocol::Echo => echo(self.shape.key_len() + 1, input)?.map(in_order),
        })
    }

    /// No reply is longer than this; what is has been refused before.
    pub(crate) fn reply_len_max(&self) -> usize {
        let value_len_max = self.values.len_max();
        match self.protocol {
            Protocol::Http if self.path_is_whole => http::HEAD_LEN_MAX + http::PAGE_LEN_MAX,
            Protocol::Http => http::HEAD_LEN_MAX + value_len_max.max(http::PROBLEM_LEN_MAX),
            Protocol::Native => value_len_max + native::OVERHEAD_MAX,
            Protocol::Echo => self.shape.key_len() + 1,
            Protocol::Memcached | Protocol::Meta | Protocol::Redis => {
                text::LINE_LEN_MAX + value_len_max + text::LINE_LEN_MAX
            }
        }
    }
}

fn echo(len: usize, input: &[u8]) -> Result<Parsed<Reply<'_>>, WireError> {
    if input.len() < len {
        return Ok(Parsed::NeedMore { at_least: len });
    }
    match &input[..len] {
        [value @ .., b'\n'] => Ok(Parsed::Complete { message: Reply::Value(value), consumed: len }),
        other => Err(WireError::unexpected(other, Asked::Get)),
    }
}

/// What is to be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) asked: Asked,
    /// The key's number.
    pub(crate) number: u32,
    /// Native: the number of the request.
    pub(crate) id: u32,
    /// Native: the handle of the cache.
    pub(crate) cache: u32,
}

/// A key and its value, as the requests spell them.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) number: u32,
    pub(crate) shape: &'a KeyShape,
    pub(crate) values: &'a Values,
}

impl Item<'_> {
    fn key(&self, output: &mut Vec<u8>) {
        self.shape.write(self.number, output);
    }

    fn key_len(&self) -> usize {
        self.shape.key_len()
    }

    fn value(&self, output: &mut Vec<u8>) {
        self.values.write(self.number, output);
    }

    fn value_len(&self) -> usize {
        self.values.len_of(self.number)
    }
}

fn decimal(number: usize, output: &mut Vec<u8>) {
    use std::io::Write;
    write!(output, "{number}").expect("writing to a vector cannot fail");
}

/// How much of an unexpected reply is quoted.
const LINE_SHOWN_MAX: usize = 120;
