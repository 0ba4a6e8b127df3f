//! The text protocols: memcached's classic and meta commands, and RESP.
//!
//! They differ in words only: a request is a line, for a set followed by data; a reply is a line,
//! for a hit followed by data and a fixed tail.

use std::borrow::Cow;

use super::{Asked, Item, Parsed, Reply, WireError, decimal};

pub(super) fn memcached_get(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"get ");
    item.key(output);
    output.extend_from_slice(END);
}

pub(super) fn memcached_set(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"set ");
    item.key(output);
    output.extend_from_slice(b" 0 0 ");
    data(item, output);
}

pub(super) fn meta_get(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"mg ");
    item.key(output);
    output.extend_from_slice(b" v\r\n");
}

pub(super) fn meta_set(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"ms ");
    item.key(output);
    output.push(b' ');
    data(item, output);
}

pub(super) fn redis_get(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$");
    decimal(item.key_len(), output);
    output.extend_from_slice(END);
    item.key(output);
    output.extend_from_slice(END);
}

pub(super) fn redis_set(item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$");
    decimal(item.key_len(), output);
    output.extend_from_slice(END);
    item.key(output);
    output.extend_from_slice(b"\r\n$");
    data(item, output);
}

/// The length of the value, the end of the line, the value and another end.
fn data(item: &Item<'_>, output: &mut Vec<u8>) {
    decimal(item.value_len(), output);
    output.extend_from_slice(END);
    item.value(output);
    output.extend_from_slice(END);
}

pub(super) fn memcached_reply(
    asked: Asked,
    input: &[u8],
    value_len_max: usize,
) -> Result<Parsed<Reply<'_>>, WireError> {
    reply(asked, input, value_len_max, |line| match asked {
        Asked::Set if line == b"STORED" => Line::Done(Reply::Stored),
        Asked::Get if line == b"END" => Line::Done(Reply::Miss),
        Asked::Get if line.starts_with(b"VALUE ") => Line::Data {
            len: line.split(|&b| b == b' ').nth(3).and_then(number),
            tail: b"\r\nEND\r\n",
        },
        _ if is_memcached_refusal(line) => Line::Done(Reply::Refused(Cow::Borrowed(line))),
        _ => Line::Wrong,
    })
}

pub(super) fn meta_reply(
    asked: Asked,
    input: &[u8],
    value_len_max: usize,
) -> Result<Parsed<Reply<'_>>, WireError> {
    reply(asked, input, value_len_max, |line| match asked {
        Asked::Set if line == b"HD" => Line::Done(Reply::Stored),
        Asked::Set if line == b"NS" => Line::Done(Reply::Refused(Cow::Borrowed(line))),
        Asked::Get if line == b"EN" => Line::Done(Reply::Miss),
        Asked::Get if line.starts_with(b"VA ") => {
            // Flags may follow that were not asked for: a won right to refill, a stale mark.
            Line::Data { len: line.split(|&b| b == b' ').nth(1).and_then(number), tail: END }
        }
        _ if is_memcached_refusal(line) => Line::Done(Reply::Refused(Cow::Borrowed(line))),
        _ => Line::Wrong,
    })
}

pub(super) fn redis_reply(
    asked: Asked,
    input: &[u8],
    value_len_max: usize,
) -> Result<Parsed<Reply<'_>>, WireError> {
    reply(asked, input, value_len_max, |line| match asked {
        Asked::Set if line == b"+OK" => Line::Done(Reply::Stored),
        Asked::Get if line == b"$-1" => Line::Done(Reply::Miss),
        Asked::Get if line.starts_with(b"$") => Line::Data { len: number(&line[1..]), tail: END },
        _ if line.starts_with(b"-") => Line::Done(Reply::Refused(Cow::Borrowed(line))),
        _ => Line::Wrong,
    })
}

/// What the first line of a reply means.
enum Line<'a> {
    Done(Reply<'a>),
    /// So many bytes follow, then `tail`; no length when it cannot be read.
    Data {
        len: Option<usize>,
        tail: &'static [u8],
    },
    Wrong,
}

fn reply<'a>(
    asked: Asked,
    input: &'a [u8],
    value_len_max: usize,
    read: impl FnOnce(&'a [u8]) -> Line<'a>,
) -> Result<Parsed<Reply<'a>>, WireError> {
    let Some(line_end) = memchr::memchr(b'\n', &input[..input.len().min(LINE_LEN_MAX)]) else {
        return if input.len() >= LINE_LEN_MAX {
            Err(WireError::LineTooLong { limit: LINE_LEN_MAX })
        } else {
            Ok(Parsed::NeedMore { at_least: input.len() + 1 })
        };
    };
    let consumed = line_end + 1;
    let line = input[..line_end].strip_suffix(b"\r").unwrap_or(&input[..line_end]);
    let (len, tail) = match read(line) {
        Line::Done(message) => return Ok(Parsed::Complete { message, consumed }),
        Line::Data { len: Some(len), tail } => (len, tail),
        Line::Data { len: None, .. } | Line::Wrong => {
            return Err(WireError::unexpected(line, asked));
        }
    };
    if len > value_len_max {
        return Err(WireError::ValueTooLong { len, limit: value_len_max });
    }
    let (data, end) = (consumed..consumed + len, consumed + len + tail.len());
    if input.len() < end {
        return Ok(Parsed::NeedMore { at_least: end });
    }
    if &input[data.end..end] != tail {
        return Err(WireError::unexpected(line, asked));
    }
    Ok(Parsed::Complete { message: Reply::Value(&input[data]), consumed: end })
}

fn is_memcached_refusal(line: &[u8]) -> bool {
    [&b"ERROR"[..], b"CLIENT_ERROR", b"SERVER_ERROR", b"NOT_STORED"]
        .iter()
        .any(|word| line.starts_with(word))
}

pub(super) fn number(digits: &[u8]) -> Option<usize> {
    let sane = (1..=DIGITS_MAX).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    sane.then(|| digits.iter().fold(0, |value, b| value * 10 + usize::from(b - b'0')))
}

const END: &[u8] = b"\r\n";

/// Longer than any line a text protocol sends in reply to a get or a set.
pub(super) const LINE_LEN_MAX: usize = 2048;

/// Far above the longest value, far below overflow.
const DIGITS_MAX: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Protocol;
    use super::*;
    use crate::keys::KeyShape;
    use crate::values::{SizeDist, Values};

    const LIMIT: usize = 1000;

    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Stored,
        Value(Vec<u8>),
        Miss,
        Refused,
    }

    fn parse(
        protocol: Protocol,
        asked: Asked,
        input: &[u8],
    ) -> Result<Parsed<Reply<'_>>, WireError> {
        match protocol {
            Protocol::Memcached => memcached_reply(asked, input, LIMIT),
            Protocol::Meta => meta_reply(asked, input, LIMIT),
            _ => redis_reply(asked, input, LIMIT),
        }
    }

    fn encode(protocol: Protocol, asked: Asked, reply: &Owned, out: &mut Vec<u8>) {
        let line = |data: &[u8]| match protocol {
            Protocol::Memcached => format!("VALUE some-key 0 {}\r\n", data.len()),
            Protocol::Meta => format!("VA {} W\r\n", data.len()),
            _ => format!("${}\r\n", data.len()),
        };
        let index = match protocol {
            Protocol::Memcached => 0,
            Protocol::Meta => 1,
            _ => 2,
        };
        match reply {
            Owned::Stored => {
                out.extend_from_slice([&b"STORED\r\n"[..], b"HD\r\n", b"+OK\r\n"][index])
            }
            Owned::Miss => out.extend_from_slice([&b"END\r\n"[..], b"EN\r\n", b"$-1\r\n"][index]),
            Owned::Refused => out.extend_from_slice(
                [&b"SERVER_ERROR no\r\n"[..], b"CLIENT_ERROR no\r\n", b"-ERR no\r\n"][index],
            ),
            Owned::Value(data) => {
                out.extend_from_slice(line(data).as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice([&b"\r\nEND\r\n"[..], b"\r\n", b"\r\n"][index]);
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
            Reply::Refused(_) | Reply::Notice => Owned::Refused,
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
        prop_oneof![Just(Protocol::Memcached), Just(Protocol::Meta), Just(Protocol::Redis)]
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
                    match parse(protocol, *asked, &have[start..]).unwrap() {
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
            if let Ok(Parsed::Complete { consumed, .. }) = parse(protocol, asked, &input) {
                prop_assert!(consumed <= input.len());
            }
        }
    }

    #[test]
    fn a_value_longer_than_any_stored_is_refused_before_it_is_buffered() {
        let reply = parse(Protocol::Redis, Asked::Get, b"$999999999\r\n");

        assert_eq!(reply, Err(WireError::ValueTooLong { len: 999_999_999, limit: LIMIT }));
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let reply = parse(Protocol::Memcached, Asked::Get, &[b'x'; LINE_LEN_MAX]);

        assert_eq!(reply, Err(WireError::LineTooLong { limit: LINE_LEN_MAX }));
    }

    #[test]
    fn a_reply_to_the_other_request_is_an_error() {
        assert!(parse(Protocol::Memcached, Asked::Get, b"STORED\r\n").is_err());
        assert!(parse(Protocol::Memcached, Asked::Set, b"END\r\n").is_err());
        assert!(parse(Protocol::Redis, Asked::Get, b"+OK\r\n").is_err());
        assert!(parse(Protocol::Redis, Asked::Set, b"$-1\r\n").is_err());
    }

    #[test]
    fn requests_are_spelt_as_each_protocol_wants_them() {
        let shape = KeyShape::new("abc:", 5, 10).unwrap();
        let values = Values::new(SizeDist::fixed(0).unwrap());
        let item = Item { number: 7, shape: &shape, values: &values };
        let spell = |get: fn(&Item<'_>, &mut Vec<u8>), set: fn(&Item<'_>, &mut Vec<u8>)| {
            let mut out = Vec::new();
            get(&item, &mut out);
            set(&item, &mut out);
            String::from_utf8(out).unwrap()
        };

        assert_eq!(spell(memcached_get, memcached_set), "get abc:7\r\nset abc:7 0 0 0\r\n\r\n");
        assert_eq!(spell(meta_get, meta_set), "mg abc:7 v\r\nms abc:7 0\r\n\r\n");
        assert_eq!(
            spell(redis_get, redis_set),
            "*2\r\n$3\r\nGET\r\n$5\r\nabc:7\r\n*3\r\n$3\r\nSET\r\n$5\r\nabc:7\r\n$0\r\n\r\n"
        );
    }
}
