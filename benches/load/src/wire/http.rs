//! HTTP/1.1 with keep-alive, as far as gets and puts of whole values need it.
//!
//! Bodies must come with a length: a server that sends chunks instead is refused, not half
//! understood. Requests may be pipelined; replies come in their order.

use std::borrow::Cow;

use super::text::number;
use super::{Asked, Item, Parsed, Reply, WireError, decimal};

pub(super) fn get(path: &str, host: &str, item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"GET ");
    output.extend_from_slice(path.as_bytes());
    item.key(output);
    version_and_host(host, output);
    output.extend_from_slice(b"\r\n");
}

pub(super) fn get_path(path: &str, host: &str, output: &mut Vec<u8>) {
    output.extend_from_slice(b"GET ");
    output.extend_from_slice(path.as_bytes());
    version_and_host(host, output);
    output.extend_from_slice(b"\r\n");
}

pub(super) fn put(path: &str, host: &str, item: &Item<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(b"PUT ");
    output.extend_from_slice(path.as_bytes());
    item.key(output);
    version_and_host(host, output);
    output.extend_from_slice(b"Content-Length: ");
    decimal(item.value_len(), output);
    output.extend_from_slice(b"\r\n\r\n");
    item.value(output);
}

fn version_and_host(host: &str, output: &mut Vec<u8>) {
    output.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    output.extend_from_slice(host.as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// `any_page` says that a page is asked for rather than a key, so "not found" is no miss.
pub(super) fn reply(
    asked: Asked,
    any_page: bool,
    input: &[u8],
    body_len_max: usize,
) -> Result<Parsed<Reply<'_>>, WireError> {
    let searched = &input[..input.len().min(HEAD_LEN_MAX)];
    let Some(head_len) = memchr::memmem::find(searched, b"\r\n\r\n").map(|at| at + 4) else {
        return if input.len() >= HEAD_LEN_MAX {
            Err(WireError::LineTooLong { limit: HEAD_LEN_MAX })
        } else {
            Ok(Parsed::NeedMore { at_least: input.len() + 1 })
        };
    };
    let head = &input[..head_len - 4];
    let status_line = head.split(|&b| b == b'\r').next().unwrap_or(head);
    let unexpected = || WireError::unexpected(status_line, asked);
    let status = status_line
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(number)
        .ok_or_else(unexpected)?;
    let body_len = match content_length(head) {
        Some(len) => len.ok_or_else(unexpected)?,
        None if status == 204 || status == 304 => 0,
        None => return Err(unexpected()),
    };
    if body_len > body_len_max {
        return Err(WireError::ValueTooLong { len: body_len, limit: body_len_max });
    }
    let end = head_len + body_len;
    if input.len() < end {
        return Ok(Parsed::NeedMore { at_least: end });
    }
    let message = match (asked, status) {
        (Asked::Get, 200) => Reply::Value(&input[head_len..end]),
        (Asked::Get, 404) if !any_page => Reply::Miss,
        (Asked::Set, 200 | 201 | 204) => Reply::Stored,
        _ => Reply::Refused(Cow::Borrowed(status_line)),
    };
    Ok(Parsed::Complete { message, consumed: end })
}

/// The header's value; `Some(None)` when it is there and no number.
fn content_length(head: &[u8]) -> Option<Option<usize>> {
    head.split(|&b| b == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = line.split_at(colon);
        name.eq_ignore_ascii_case(b"content-length").then(|| number(value[1..].trim_ascii()))
    })
}

/// Longer than the head of any reply.
pub(super) const HEAD_LEN_MAX: usize = 8 * 1024;

/// Longer than any problem document that explains a refusal.
pub(super) const PROBLEM_LEN_MAX: usize = 64 * 1024;

/// The longest page that can be asked for by its path.
pub(super) const PAGE_LEN_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const HIT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\netag: \"1\"\r\n\r\nhello";

    fn parse(asked: Asked, input: &[u8]) -> Result<Parsed<Reply<'_>>, WireError> {
        reply(asked, false, input, 1000)
    }

    #[test]
    fn a_reply_is_whole_only_with_its_last_byte() {
        for cut in 0..HIT.len() {
            let Ok(Parsed::NeedMore { at_least }) = parse(Asked::Get, &HIT[..cut]) else {
                panic!("{cut} bytes are no reply");
            };
            assert!(at_least > cut && at_least <= HIT.len());
        }
        let pipelined = [HIT, HIT].concat();
        let whole = Parsed::Complete { message: Reply::Value(b"hello"), consumed: HIT.len() };
        assert_eq!(parse(Asked::Get, &pipelined), Ok(whole));
    }

    #[test]
    fn statuses_are_told_apart_by_what_was_asked() {
        let said = |asked, status: &str| {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length:0\r\n\r\n");
            match parse(asked, text.as_bytes()).unwrap() {
                Parsed::Complete { message: Reply::Refused(words), .. } => {
                    String::from_utf8(words.into_owned()).unwrap()
                }
                Parsed::Complete { message, .. } => format!("{message:?}"),
                Parsed::NeedMore { .. } => panic!("the reply is whole"),
            }
        };
        assert_eq!(said(Asked::Get, "404 Not Found"), "Miss");
        assert_eq!(said(Asked::Set, "404 Not Found"), "HTTP/1.1 404 Not Found");
        assert_eq!(said(Asked::Set, "204 No Content"), "Stored");
        assert_eq!(said(Asked::Set, "201 Created"), "Stored");
        assert_eq!(said(Asked::Get, "503 Busy"), "HTTP/1.1 503 Busy");
    }

    #[test]
    fn a_body_without_a_length_or_with_a_huge_one_is_refused() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(matches!(parse(Asked::Get, chunked), Err(WireError::Unexpected { .. })));
        let huge = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n";
        let error = Err(WireError::ValueTooLong { len: 1001, limit: 1000 });
        assert_eq!(parse(Asked::Get, huge), error);
        let odd = b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n";
        assert!(matches!(parse(Asked::Get, odd), Err(WireError::Unexpected { .. })));
        let endless = [b'x'; HEAD_LEN_MAX];
        let error = Err(WireError::LineTooLong { limit: HEAD_LEN_MAX });
        assert_eq!(parse(Asked::Get, &endless), error);
    }
}
