//! Requests that are one line about one key, or about none.

use super::*;

/// `delete <key> [<time>] [noreply]`; the time is of old, and ignored.
pub(super) fn delete<'a>(slot: &mut Op<'a>, line: Line<'a>, arguments: &'a [u8]) -> Step {
    let mut tokens = Tokens::new(arguments);
    let Some(key) = tokens.next() else {
        return reject(slot, BAD_FORMAT, line.len);
    };
    let noreply = noreply(line);
    if key.len() > KEY_LEN_MAX {
        return reject(slot, if noreply { b"" } else { BAD_FORMAT }, line.len);
    }
    let is_time = |token: &[u8]| parse_u64(token).is_some();
    let known = match (tokens.next(), tokens.next(), tokens.next()) {
        (None, ..) | (Some(b"noreply"), None, _) => true,
        (Some(time), None | Some(b"noreply"), None) => is_time(time),
        _ => false,
    };
    if !known {
        let error = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n";
        return reject(slot, if noreply { b"" } else { error }, line.len);
    }
    let bits = Bits::NONE.with_if(noreply, Bits::QUIET);
    let reply = Reply::new(Kind::Delete, key, key.len(), bits);
    op(slot, Op::Data { command: Command::Delete(Delete::plain(key)), reply }, line.len)
}

/// `incr <key> <delta> [noreply]`
pub(super) fn arithmetic<'a>(
    slot: &mut Op<'a>,
    line: Line<'a>,
    direction: Direction,
    arguments: &'a [u8],
) -> Step {
    let mut tokens = Tokens::new(arguments);
    let (Some(key), Some(delta)) = (tokens.next(), tokens.next()) else {
        return reject(slot, BAD_FORMAT, line.len);
    };
    let noreply = noreply(line);
    if key.len() > KEY_LEN_MAX {
        return reject(slot, if noreply { b"" } else { BAD_FORMAT }, line.len);
    }
    let Some(delta) = parse_u64(delta) else {
        let error = b"CLIENT_ERROR invalid numeric delta argument\r\n";
        return reject(slot, if noreply { b"" } else { error }, line.len);
    };
    let command = Command::Arithmetic(Arithmetic {
        key,
        direction,
        delta,
        compare: None,
        version: None,
        create: None,
        touch: None,
    });
    let bits = Bits::NONE.with_if(noreply, Bits::QUIET);
    let reply = Reply::new(Kind::Number, key, key.len(), bits);
    op(slot, Op::Data { command, reply }, line.len)
}

/// `touch <key> <exptime> [noreply]`
pub(super) fn touch<'a>(slot: &mut Op<'a>, line: Line<'a>, arguments: &'a [u8]) -> Step {
    let mut tokens = Tokens::new(arguments);
    let (Some(key), Some(exptime)) = (tokens.next(), tokens.next()) else {
        return reject(slot, BAD_FORMAT, line.len);
    };
    let noreply = noreply(line);
    if key.len() > KEY_LEN_MAX {
        return reject(slot, if noreply { b"" } else { BAD_FORMAT }, line.len);
    }
    let Some(seconds) = parse_seconds(exptime) else {
        return reject(slot, if noreply { b"" } else { BAD_EXPTIME }, line.len);
    };
    let bits = Bits::NONE.with_if(noreply, Bits::QUIET);
    let reply = Reply::new(Kind::Touch, key, key.len(), bits);
    let command = Command::Touch(Touch { key, ttl: ttl(seconds) });
    op(slot, Op::Data { command, reply }, line.len)
}

/// `stats [<what>]`
pub(super) fn stats<'a>(slot: &mut Op<'a>, line: Line<'a>, arguments: &'a [u8]) -> Step {
    let mut tokens = Tokens::new(arguments);
    let stats = match tokens.next() {
        None => Stats::General,
        Some(b"settings") => Stats::Settings,
        Some(b"items") => Stats::Items,
        Some(b"slabs") => Stats::Slabs,
        Some(b"sizes") => Stats::Sizes,
        Some(b"conns") => Stats::Connections,
        Some(b"reset") => Stats::Reset,
        Some(b"detail") => match tokens.next() {
            Some(b"on") => Stats::DetailOn,
            Some(b"off") => Stats::DetailOff,
            Some(b"dump") => Stats::DetailDump,
            _ => {
                return reject(slot, b"CLIENT_ERROR usage: stats detail on|off|dump\r\n", line.len);
            }
        },
        Some(b"cachedump") => match (tokens.next(), tokens.next()) {
            (Some(class), Some(limit)) => match (parse_u32(class), parse_u32(limit)) {
                (Some(class), Some(limit)) if class < SLAB_CLASSES_MAX => {
                    Stats::Cachedump { class, limit }
                }
                (Some(_), Some(_)) => {
                    return reject(slot, b"CLIENT_ERROR Illegal slab id\r\n", line.len);
                }
                _ => return reject(slot, BAD_FORMAT, line.len),
            },
            _ => return reject(slot, b"CLIENT_ERROR bad command line\r\n", line.len),
        },
        Some(_) => return reject(slot, lines::ERROR, line.len),
    };
    op(slot, Op::Stats(stats), line.len)
}

/// `me <key> [b]`
pub(super) fn meta_debug<'a>(
    slot: &mut Op<'a>,
    line: Line<'a>,
    arguments: &'a [u8],
    keys: &'a KeyScratch,
) -> Step {
    let mut tokens = Tokens::new(arguments);
    let Some(key) = tokens.next().filter(|key| key.len() <= KEY_LEN_MAX) else {
        return reject(slot, BAD_FORMAT, line.len);
    };
    let base64 = tokens.next() == Some(b"b");
    if base64 && !base64::is_valid(key) {
        return reject(slot, BAD_FORMAT, line.len);
    }
    let reply = DebugReply { key };
    match decoded(key, base64, keys) {
        Some(key) => op(slot, Op::MetaDebug { key, reply }, line.len),
        None => Parsed::ScratchFull,
    }
}

/// A meta request, complete: its key is decoded only now, so that a request that waits for its
/// value takes no room in the scratch memory.
#[inline]
pub(super) fn meta_data<'a>(
    slot: &mut Op<'a>,
    mut request: MetaRequest<'a>,
    len: usize,
    keys: &'a KeyScratch,
) -> Step {
    if request.base64 {
        let Some(key) = keys.decode(request.command.key()) else {
            return Parsed::ScratchFull;
        };
        request.command.set_key(key);
    }
    op(slot, Op::Data { command: request.command, reply: request.reply }, len)
}
