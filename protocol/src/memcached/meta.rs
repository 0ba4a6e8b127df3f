//! The flags of the meta commands.
//!
//! One pass over the flags fills a [`Flags`]; each command then takes what it knows and ignores
//! the rest, as memcached does: any known flag is accepted on any command. The order in which
//! errors win is memcached's too: an unknown or repeated flag ends the pass, a flag with a bad
//! token does not, and the last such error is the one told.

use crate::command::{Arithmetic, Command, Delete, Direction, Get, Store, StoreMode, Ttl};
use crate::memcached::number::{parse_seconds, parse_u32, parse_u64, ttl};
use crate::memcached::parser::BAD_FORMAT;
use crate::memcached::reply::{Bits, Kind, Reply};
use crate::memcached::words::Tokens;
use crate::memcached::{KEY_LEN_MAX, META_TOKENS_MAX, OPAQUE_LEN_MAX, base64};

/// A meta command's line from the key on.
#[derive(Clone, Copy)]
pub(super) struct MetaLine<'a> {
    text: &'a [u8],
    pub(super) key: &'a [u8],
}

impl<'a> MetaLine<'a> {
    /// What follows the command's name. `None` without a key.
    pub(super) fn new(arguments: &'a [u8]) -> Option<Self> {
        let mut tokens = Tokens::new(arguments);
        let text = tokens.rest();
        tokens.next().map(|key| Self { text, key })
    }

    fn after_key(&self) -> Tokens<'a> {
        Tokens::new(&self.text[self.key.len()..])
    }

    fn reply(&self, kind: Kind, bits: Bits) -> Reply<'a> {
        Reply::new(kind, self.text, self.key.len(), bits)
    }
}

/// A request whose flags are good. Its key is not decoded yet.
pub(super) struct MetaRequest<'a> {
    pub(super) command: Command<'a>,
    pub(super) reply: Reply<'a>,
    /// The key is base64, and valid.
    pub(super) base64: bool,
}

impl<'a> MetaRequest<'a> {
    /// A `mg` with none but the flags that most have. `None` for all others, right or wrong:
    /// [`get`](Self::get) then looks at them properly. What this gives, that gives too.
    #[inline]
    pub(super) fn plain_get(line: MetaLine<'a>) -> Option<(Get<'a>, Reply<'a>)> {
        let mut seen = 0u64;
        for token in line.after_key() {
            // One letter each, or an opaque; a letter twice is an error.
            let known = match token {
                [_] => PLAIN_FLAGS,
                [b'O', opaque @ ..] if opaque.len() <= OPAQUE_LEN_MAX => flag_bit(b'O'),
                _ => return None,
            };
            let bit = flag_bit(token[0]) & known & !seen;
            if bit == 0 {
                return None;
            }
            seen |= bit;
        }
        if line.key.len() > KEY_LEN_MAX {
            return None;
        }
        let bits = Bits::NONE
            .with_if(seen & flag_bit(b'v') != 0, Bits::VALUE)
            .with_if(seen & flag_bit(b'q') != 0, Bits::QUIET)
            .with_if(seen & ECHO_FLAGS != 0, Bits::ECHO);
        let no_bump = seen & flag_bit(b'u') != 0;
        let get = Get { no_bump, may_refill: true, ..Get::plain(line.key) };
        Some((get, line.reply(Kind::MetaGet, bits)))
    }

    /// `mg <key> <flags>*`
    pub(super) fn get(line: MetaLine<'a>) -> Result<Self, &'static [u8]> {
        let flags = Flags::parse(line, line.after_key(), 2)?;
        let command = Command::Get(Get {
            key: line.key,
            touch: flags.ttl,
            vivify: flags.vivify,
            recache_below_ms: flags.recache_below_ms,
            no_bump: flags.no_bump,
            may_refill: true,
            version: flags.version,
        });
        let bits = flags.bits().with_if(flags.compare.is_some(), Bits::COMPARE);
        Ok(Self { command, reply: line.reply(Kind::MetaGet, bits), base64: flags.base64 })
    }

    /// `ms <key> <datalen> <flags>*`, the value still to come.
    pub(super) fn set(line: MetaLine<'a>) -> Result<Self, &'static [u8]> {
        let mut tokens = line.after_key();
        tokens.next();
        let flags = Flags::parse(line, tokens, 3)?;
        let mode = match flags.mode {
            None | Some(b'S' | b's') => StoreMode::Set,
            Some(b'E' | b'e') => StoreMode::Add,
            Some(b'A' | b'a') => StoreMode::Append,
            Some(b'P' | b'p') => StoreMode::Prepend,
            Some(b'R' | b'r') => StoreMode::Replace,
            Some(_) => return Err(b"CLIENT_ERROR invalid mode for ms M token\r\n"),
        };
        let concat = matches!(mode, StoreMode::Append | StoreMode::Prepend);
        let (mode, compare) = match mode {
            // A replace that compares is a set that compares: both need the item.
            StoreMode::Set | StoreMode::Replace if flags.compare.is_some() => {
                (StoreMode::Set, flags.compare)
            }
            // No item has version 0, so there it means "do not compare".
            _ if concat => (mode, flags.compare.filter(|&version| version != 0)),
            _ => (mode, None),
        };
        let command = Command::Store(Store {
            key: line.key,
            value: b"",
            flags: flags.client_flags,
            ttl: flags.ttl.unwrap_or(Ttl::Never),
            mode,
            compare,
            version: flags.version,
            invalidate: flags.invalidate && mode == StoreMode::Set && compare.is_some(),
            vivify: flags.vivify.filter(|_| concat),
        });
        let kind = if concat { Kind::MetaConcat } else { Kind::MetaSet };
        Ok(Self { command, reply: line.reply(kind, flags.bits()), base64: flags.base64 })
    }

    /// `md <key> <flags>*`
    pub(super) fn delete(line: MetaLine<'a>) -> Result<Self, &'static [u8]> {
        let flags = Flags::parse(line, line.after_key(), 2)?;
        let command = Command::Delete(Delete {
            key: line.key,
            compare: flags.compare,
            version: flags.version,
            invalidate: flags.invalidate,
            ttl: flags.ttl.filter(|_| flags.invalidate || flags.keep_empty),
            keep_empty: flags.keep_empty,
        });
        let reply = line.reply(Kind::MetaDelete, flags.bits());
        Ok(Self { command, reply, base64: flags.base64 })
    }

    /// `ma <key> <flags>*`
    pub(super) fn arithmetic(line: MetaLine<'a>) -> Result<Self, &'static [u8]> {
        let flags = Flags::parse(line, line.after_key(), 2).map_err(|error| {
            // This command tells all errors of its flags alike.
            if error == OPAQUE_TOO_LONG || has_bad_character(line.after_key()) {
                error
            } else {
                b"CLIENT_ERROR invalid or duplicate flag\r\n"
            }
        })?;
        let direction = match flags.mode {
            None | Some(b'I' | b'i' | b'+') => Direction::Increment,
            Some(b'D' | b'd' | b'-') => Direction::Decrement,
            Some(_) => return Err(b"CLIENT_ERROR invalid mode for ma M token\r\n"),
        };
        let command = Command::Arithmetic(Arithmetic {
            key: line.key,
            direction,
            delta: flags.delta,
            compare: flags.compare.filter(|&version| version != 0),
            version: flags.version,
            create: flags.vivify.map(|ttl| (ttl, flags.initial)),
            touch: flags.ttl,
        });
        let reply = line.reply(Kind::MetaArithmetic, flags.bits());
        Ok(Self { command, reply, base64: flags.base64 })
    }
}

/// All that flags can say.
struct Flags {
    base64: bool,
    quiet: bool,
    value: bool,
    echo: bool,
    no_bump: bool,
    invalidate: bool,
    keep_empty: bool,
    mode: Option<u8>,
    client_flags: u32,
    ttl: Option<Ttl>,
    vivify: Option<Ttl>,
    recache_below_ms: Option<u64>,
    compare: Option<u64>,
    version: Option<u64>,
    delta: u64,
    initial: u64,
}

impl Flags {
    /// `before` is the number of words before the flags.
    fn parse(
        line: MetaLine<'_>,
        mut tokens: Tokens<'_>,
        before: usize,
    ) -> Result<Self, &'static [u8]> {
        Self::parse_in_order(line, tokens, before).map_err(|error| {
            // Some errors win over those that come before them on the line.
            if has_bad_character(tokens) || line.key.len() > KEY_LEN_MAX {
                BAD_FORMAT
            } else if tokens.nth(META_TOKENS_MAX - before).is_some() {
                TOO_MANY
            } else {
                error
            }
        })
    }

    #[inline]
    fn parse_in_order(
        line: MetaLine<'_>,
        tokens: Tokens<'_>,
        before: usize,
    ) -> Result<Self, &'static [u8]> {
        let mut flags = Self {
            base64: false,
            quiet: false,
            value: false,
            echo: false,
            no_bump: false,
            invalidate: false,
            keep_empty: false,
            mode: None,
            client_flags: 0,
            ttl: None,
            vivify: None,
            recache_below_ms: None,
            compare: None,
            version: None,
            delta: 1,
            initial: 0,
        };
        if line.key.len() > KEY_LEN_MAX {
            return Err(BAD_FORMAT);
        }
        let mut seen = 0u128;
        let mut error: Option<&'static [u8]> = None;
        let mut opaque_too_long = false;

        for (index, token) in tokens.enumerate() {
            if index + before >= META_TOKENS_MAX {
                return Err(TOO_MANY);
            }
            let (flag, argument) = (token[0], &token[1..]);
            if !may_begin_flag(flag) {
                return Err(BAD_FORMAT);
            }
            let bit = 1u128 << flag;
            if seen & bit != 0 {
                return Err(b"CLIENT_ERROR duplicate flag\r\n");
            }
            seen |= bit;
            match flag {
                b'v' => flags.value = true,
                b'k' | b's' | b't' | b'c' | b'f' | b'l' | b'h' => flags.echo = true,
                b'q' => flags.quiet = true,
                b'O' => {
                    flags.echo = true;
                    opaque_too_long = argument.len() > OPAQUE_LEN_MAX;
                }
                b'b' => {
                    flags.base64 = true;
                    if !base64::is_valid(line.key) {
                        error = Some(b"CLIENT_ERROR error decoding key\r\n");
                    }
                }
                b'u' => flags.no_bump = true,
                b'x' => flags.keep_empty = true,
                b'I' => flags.invalidate = true,
                // For proxies on the way.
                b'P' | b'L' => {}
                b'T' => match parse_seconds(argument) {
                    Some(seconds) => flags.ttl = Some(ttl(seconds)),
                    None => error = Some(BAD_TOKEN),
                },
                b'N' => match parse_seconds(argument) {
                    Some(seconds) => flags.vivify = Some(ttl(seconds)),
                    None => error = Some(BAD_TOKEN),
                },
                b'R' => match parse_seconds(argument) {
                    Some(seconds) => {
                        flags.recache_below_ms =
                            u64::try_from(seconds).ok().filter(|&s| s > 0).map(|s| s * 1000);
                    }
                    None => error = Some(BAD_TOKEN),
                },
                b'C' => match parse_u64(argument) {
                    Some(version) => flags.compare = Some(version),
                    None => error = Some(BAD_TOKEN),
                },
                b'E' => match parse_u64(argument) {
                    // Version 0 is none: the store then takes its next.
                    Some(version) => flags.version = Some(version).filter(|&v| v != 0),
                    None => error = Some(BAD_TOKEN),
                },
                b'F' => match parse_u32(argument) {
                    Some(client_flags) => flags.client_flags = client_flags,
                    None => error = Some(error.unwrap_or(BAD_FORMAT)),
                },
                b'M' => flags.mode = Some(argument.first().copied().unwrap_or(0)),
                b'J' => match parse_u64(argument) {
                    Some(initial) => flags.initial = initial,
                    None => error = Some(b"CLIENT_ERROR invalid numeric initial value\r\n"),
                },
                b'D' => match parse_u64(argument) {
                    Some(delta) => flags.delta = delta,
                    None => error = Some(b"CLIENT_ERROR invalid numeric delta value\r\n"),
                },
                _ => return Err(b"CLIENT_ERROR invalid flag\r\n"),
            }
        }
        match error {
            Some(error) => Err(error),
            None if opaque_too_long => Err(OPAQUE_TOO_LONG),
            None => Ok(flags),
        }
    }

    fn bits(&self) -> Bits {
        Bits::NONE
            .with_if(self.quiet, Bits::QUIET)
            .with_if(self.value, Bits::VALUE)
            .with_if(self.base64, Bits::BASE64)
            .with_if(self.echo, Bits::ECHO)
    }
}

/// What memcached's tokenizer takes for the beginning of a flag: the letters, the characters
/// between upper and lower case, and the digits.
const fn may_begin_flag(byte: u8) -> bool {
    matches!(byte, b'A'..=b'z' | b'0'..=b'9')
}

/// Flags that begin with a letter as a set; other bytes are in no set.
const fn flag_bit(flag: u8) -> u64 {
    match flag {
        b'A'..=b'z' => 1 << (flag - b'A'),
        _ => 0,
    }
}

const fn flag_set(flags: &[u8]) -> u64 {
    let (mut set, mut index) = (0, 0);
    while index < flags.len() {
        set |= flag_bit(flags[index]);
        index += 1;
    }
    set
}

/// Flags of a read that are one letter and mean no more than it.
const PLAIN_FLAGS: u64 = flag_set(b"vqukstcflh");
/// Flags that may ask for something in the answer. A `PLAIN_FLAGS` read has at most eleven, so
/// it cannot have too many.
const ECHO_FLAGS: u64 = flag_set(b"kstcflhO");
const _: () = assert!((PLAIN_FLAGS.count_ones() as usize) < META_TOKENS_MAX - 2);

/// Within the words that memcached's tokenizer looks at.
fn has_bad_character(tokens: Tokens<'_>) -> bool {
    tokens.take(META_TOKENS_MAX).any(|token| !may_begin_flag(token[0]))
}

const TOO_MANY: &[u8] = b"CLIENT_ERROR options flags are too long\r\n";
const BAD_TOKEN: &[u8] = b"CLIENT_ERROR bad token in command line format\r\n";
const OPAQUE_TOO_LONG: &[u8] = b"CLIENT_ERROR opaque token too long\r\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_get_is_what_the_general_way_makes_of_it(
            flags in prop::collection::vec("[vqukstcflhOTbNo]|O[a-z]{0,40}", 0..14),
        ) {
            let arguments = format!(" key {}", flags.join(" "));
            let line = MetaLine::new(arguments.as_bytes()).unwrap();
            let general = MetaRequest::get(line).map(|r| (r.command, r.reply, r.base64));
            if let Some((get, reply)) = MetaRequest::plain_get(line) {
                prop_assert_eq!(general, Ok((Command::Get(get), reply, false)));
            } else {
                let plain = flags.iter().all(|flag| "vqukstcflh".contains(flag.as_str()));
                prop_assert!(!plain || general.is_err());
            }
        }
    }
}
