//! The two protocols, as far as a generator of gets and sets needs them.
//!
//! Both are parsed against what was asked, since a reply alone does not say which request it
//! belongs to. A reply that is not there yet is [`Parsed::NeedMore`]; one that can never become
//! right is a [`WireError`], after which the connection's replies can no longer be told apart.

use std::io::Write;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The classic text protocol of memcached.
    Memcached,
    /// RESP2, as Redis and Valkey speak it.
    Redis,
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
    Refused(&'a [u8]),
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

/// The reply cannot be one to what was asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// A line that does not end.
    #[error("a reply line is longer than {LINE_LEN_MAX} bytes")]
    LineTooLong,
    /// A value longer than any that was stored.
    #[error("a value of {len} bytes came, the longest stored is {limit}")]
    ValueTooLong {
        /// The length the server announced.
        len: usize,
        /// The longest the generator would store.
        limit: usize,
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

/// Appends a read of `key`.
pub fn write_get(
    protocol: Protocol,
    key: impl FnOnce(&mut Vec<u8>),
    key_len: usize,
    output: &mut Vec<u8>,
) {
    match protocol {
        Protocol::Memcached => output.extend_from_slice(b"get "),
        Protocol::Redis => {
            output.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
            bulk_len(key_len, output);
        }
    }
    key(output);
    output.extend_from_slice(b"\r\n");
}

/// Appends a write of `value` under `key`.
pub fn write_set(
    protocol: Protocol,
    key: impl FnOnce(&mut Vec<u8>),
    key_len: usize,
    value: impl FnOnce(&mut Vec<u8>),
    value_len: usize,
    output: &mut Vec<u8>,
) {
    match protocol {
        Protocol::Memcached => {
            output.extend_from_slice(b"set ");
            key(output);
            output.extend_from_slice(b" 0 0 ");
            decimal(value_len, output);
        }
        Protocol::Redis => {
            output.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
            bulk_len(key_len, output);
            key(output);
            output.extend_from_slice(b"\r\n$");
            decimal(value_len, output);
        }
    }
    output.extend_from_slice(b"\r\n");
    value(output);
    output.extend_from_slice(b"\r\n");
}

fn bulk_len(len: usize, output: &mut Vec<u8>) {
    output.push(b'$');
    decimal(len, output);
    output.extend_from_slice(b"\r\n");
}

fn decimal(number: usize, output: &mut Vec<u8>) {
    write!(output, "{number}").expect("writing to a vector cannot fail");
}

/// Reads the reply to `asked` at the start of `input`.
///
/// # Errors
/// When no continuation of `input` could be such a reply.
pub fn parse_reply(
    protocol: Protocol,
    asked: Asked,
    input: &[u8],
    value_len_max: usize,
) -> Result<Parsed<Reply<'_>>, WireError> {
    let Some(line_end) = memchr::memchr(b'\n', &input[..input.len().min(LINE_LEN_MAX)]) else {
        return if input.len() >= LINE_LEN_MAX {
            Err(WireError::LineTooLong)
        } else {
            Ok(Parsed::NeedMore { at_least: input.len() + 1 })
        };
    };
    let consumed = line_end + 1;
    let line = input[..line_end].strip_suffix(b"\r").unwrap_or(&input[..line_end]);
    let unexpected = || WireError::Unexpected {
        line: String::from_utf8_lossy(&line[..line.len().min(LINE_SHOWN_MAX)]).into_owned(),
        asked,
    };
    let done = |message| Ok(Parsed::Complete { message, consumed });
    let (len, tail): (_, &[u8]) = match (protocol, asked) {
        (Protocol::Memcached, Asked::Set) if line == b"STORED" => return done(Reply::Stored),
        (Protocol::Memcached, Asked::Get) if line == b"END" => return done(Reply::Miss),
        (Protocol::Memcached, Asked::Get) if line.starts_with(b"VALUE ") => {
            (line.split(|&b| b == b' ').nth(3).and_then(number), b"\r\nEND\r\n")
        }
        (Protocol::Memcached, _) if is_memcached_refusal(line) => {
            return done(Reply::Refused(line));
        }
        (Protocol::Redis, Asked::Set) if line == b"+OK" => return done(Reply::Stored),
        (Protocol::Redis, Asked::Get) if line == b"$-1" => return done(Reply::Miss),
        (Protocol::Redis, Asked::Get) if line.starts_with(b"$") => (number(&line[1..]), b"\r\n"),
        (Protocol::Redis, _) if line.starts_with(b"-") => return done(Reply::Refused(line)),
        _ => return Err(unexpected()),
    };
    let len = len.ok_or_else(unexpected)?;
    if len > value_len_max {
        return Err(WireError::ValueTooLong { len, limit: value_len_max });
    }
    let (data, end) = (consumed..consumed + len, consumed + len + tail.len());
    if input.len() < end {
        return Ok(Parsed::NeedMore { at_least: end });
    }
    if &input[data.end..end] != tail {
        return Err(unexpected());
    }
    Ok(Parsed::Complete { message: Reply::Value(&input[data]), consumed: end })
}

fn is_memcached_refusal(line: &[u8]) -> bool {
    [&b"ERROR"[..], b"CLIENT_ERROR", b"SERVER_ERROR", b"NOT_STORED"]
        .iter()
        .any(|word| line.starts_with(word))
}

fn number(digits: &[u8]) -> Option<usize> {
    let sane = (1..=DIGITS_MAX).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    sane.then(|| digits.iter().fold(0, |value, b| value * 10 + usize::from(b - b'0')))
}

/// Longer than any line either protocol sends in reply to a get or a set.
pub(crate) const LINE_LEN_MAX: usize = 2048;

const LINE_SHOWN_MAX: usize = 120;

/// Far above the longest value, far below overflow.
const DIGITS_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1000;

    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Stored,
        Value(Vec<u8>),
        Miss,
        Refused,
    }

    fn encode(protocol: Protocol, asked: Asked, reply: &Owned, out: &mut Vec<u8>) {
        match (protocol, reply) {
            (Protocol::Memcached, Owned::Stored) => out.extend_from_slice(b"STORED\r\n"),
            (Protocol::Memcached, Owned::Miss) => out.extend_from_slice(b"END\r\n"),
            (Protocol::Memcached, Owned::Refused) => out.extend_from_slice(b"SERVER_ERROR no\r\n"),
            (Protocol::Memcached, Owned::Value(data)) => {
                out.extend_from_slice(format!("VALUE some-key 0 {}\r\n", data.len()).as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\nEND\r\n");
            }
            (Protocol::Redis, Owned::Stored) => out.extend_from_slice(b"+OK\r\n"),
            (Protocol::Redis, Owned::Miss) => out.extend_from_slice(b"$-1\r\n"),
            (Protocol::Redis, Owned::Refused) => out.extend_from_slice(b"-ERR no\r\n"),
            (Protocol::Redis, Owned::Value(data)) => {
                out.extend_from_slice(format!("${}\r\n", data.len()).as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
        }
        assert!(matches!(
            (asked, reply),
            (Asked::Set, Owned::Stored | Owned::Refused) | (Asked::Get, _)
        ));
    }

    fn owned(reply: &Reply<'_>) -> Owned {
        match reply {
            Reply::Stored => Owned::Stored,
            Reply::Value(data) => Owned::Value(data.to_vec()),
            Reply::Miss => Owned::Miss,
            Reply::Refused(_) => Owned::Refused,
        }
    }

    fn reply() -> impl Strategy<Value = (Asked, Owned)> {
        prop_oneof![
            Just((Asked::Set, Owned::Stored)),
            Just((Asked::Set, Owned::Refused)),
            Just((Asked::Get, Owned::Miss)),
            Just((Asked::Get, Owned::Refused)),
            prop::collection::vec(any::<u8>(), 0..200)
                .prop_map(|data| (Asked::Get, Owned::Value(data))),
        ]
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Memcached), Just(Protocol::Redis)]
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_replies(
            protocol in protocol(),
            replies in prop::collection::vec(reply(), 1..12),
            mut cuts in prop::collection::vec(0usize..1500, 0..30),
        ) {
            let mut stream = Vec::new();
            for (asked, reply) in &replies {
                encode(protocol, *asked, reply, &mut stream);
            }
            cuts.sort_unstable();
            cuts.push(stream.len());
            let mut waiting = replies.iter();
            let mut next = waiting.next();
            let (mut start, mut needed) = (0, 0);
            for cut in cuts {
                let have = &stream[..cut.clamp(start, stream.len())];
                while let Some((asked, expected)) = next {
                    match parse_reply(protocol, *asked, &have[start..], LIMIT).unwrap() {
                        Parsed::Complete { message, consumed } => {
                            prop_assert!(consumed >= needed, "at_least was too much");
                            prop_assert_eq!(&owned(&message), expected);
                            start += consumed;
                            needed = 0;
                            next = waiting.next();
                        }
                        Parsed::NeedMore { at_least } => {
                            prop_assert!(at_least > have.len() - start);
                            needed = at_least;
                            break;
                        }
                    }
                }
            }
            prop_assert!(next.is_none() && start == stream.len());
        }

        #[test]
        fn no_bytes_a_server_sends_make_the_parser_panic(
            protocol in protocol(),
            get in any::<bool>(),
            start in prop_oneof![Just(""), Just("VALUE k 0 "), Just("$"), Just("STORED\r"), Just("-")],
            rest in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let input = [start.as_bytes(), &rest].concat();
            let asked = if get { Asked::Get } else { Asked::Set };
            if let Ok(Parsed::Complete { consumed, .. }) = parse_reply(protocol, asked, &input, LIMIT) {
                prop_assert!(consumed <= input.len());
            }
        }
    }

    #[test]
    fn a_value_longer_than_any_stored_is_refused_before_it_is_buffered() {
        let reply = parse_reply(Protocol::Redis, Asked::Get, b"$999999999\r\n", LIMIT);

        assert_eq!(reply, Err(WireError::ValueTooLong { len: 999_999_999, limit: LIMIT }));
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let reply = parse_reply(Protocol::Memcached, Asked::Get, &[b'x'; LINE_LEN_MAX], LIMIT);

        assert_eq!(reply, Err(WireError::LineTooLong));
    }

    #[test]
    fn a_reply_to_the_other_request_is_an_error() {
        assert!(parse_reply(Protocol::Memcached, Asked::Get, b"STORED\r\n", LIMIT).is_err());
        assert!(parse_reply(Protocol::Memcached, Asked::Set, b"END\r\n", LIMIT).is_err());
        assert!(parse_reply(Protocol::Redis, Asked::Get, b"+OK\r\n", LIMIT).is_err());
        assert!(parse_reply(Protocol::Redis, Asked::Set, b"$-1\r\n", LIMIT).is_err());
    }

    #[test]
    fn requests_are_spelt_as_each_protocol_wants_them() {
        let spell = |protocol| {
            let mut out = Vec::new();
            write_get(protocol, |out| out.extend_from_slice(b"abc"), 3, &mut out);
            let value = |out: &mut Vec<u8>| out.extend_from_slice(b"hello");
            write_set(protocol, |out| out.extend_from_slice(b"abc"), 3, value, 5, &mut out);
            String::from_utf8(out).unwrap()
        };

        assert_eq!(spell(Protocol::Memcached), "get abc\r\nset abc 0 0 5\r\nhello\r\n");
        assert_eq!(
            spell(Protocol::Redis),
            "*2\r\n$3\r\nGET\r\n$3\r\nabc\r\n*3\r\n$3\r\nSET\r\n$3\r\nabc\r\n$5\r\nhello\r\n"
        );
    }
}
