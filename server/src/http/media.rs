//! The content type of an item, kept in its flags.
//!
//! An item has no room for a content type beside its 32 flag bits, which every copy of it keeps
//! and every protocol shows. So the type is kept there: the high byte says that it is, the next one
//! which it is, and the low sixteen bits, which memcached clients use for themselves, stay 0.
//!
//! ```text
//!   0xC7  1..=127            0x0000   one of the types below; the value is the plain bytes
//!   0xC7  128 + its length   0x0000   another; it stands, as text, before the bytes of the value
//!   other bits                        flags of another client's making: application/octet-stream
//! ```
//!
//! Items without a type, or of `application/octet-stream`, have flags 0. What clients of other
//! protocols read is the plain value in all cases but that of another type: they see its text before
//! the value. Numbers once given to a type are never given to another: items outlive versions.

use axum::http::HeaderValue;

/// The high byte of flags that are a content type.
const MARK: u32 = 0xC7 << 24;
/// Set with the length of a type that stands before the value.
const SPELLED: u32 = 0x80;
/// Bytes of a type that is spelled out.
pub(super) const SPELLED_LEN_MAX: usize = 127;

/// What a value is when nobody said.
pub(super) const OCTETS: &str = "application/octet-stream";

/// Types that have a number: their place here, from 1. Only ever appended to.
const NUMBERED: &[&str] = &[
    "application/json",
    "text/plain",
    "text/plain; charset=utf-8",
    "text/html",
    "text/html; charset=utf-8",
    "text/css",
    "text/css; charset=utf-8",
    "text/csv",
    "text/csv; charset=utf-8",
    "text/xml",
    "text/xml; charset=utf-8",
    "text/javascript",
    "text/javascript; charset=utf-8",
    "text/markdown",
    "text/markdown; charset=utf-8",
    "text/calendar",
    "text/event-stream",
    "application/json; charset=utf-8",
    "application/ld+json",
    "application/geo+json",
    "application/problem+json",
    "application/x-ndjson",
    "application/jsonl",
    "application/hal+json",
    "application/vnd.api+json",
    "application/xml",
    "application/xml; charset=utf-8",
    "application/atom+xml",
    "application/rss+xml",
    "application/xhtml+xml",
    "application/soap+xml",
    "application/javascript",
    "application/yaml",
    "application/toml",
    "application/sql",
    "application/graphql",
    "application/x-www-form-urlencoded",
    "application/msgpack",
    "application/vnd.msgpack",
    "application/cbor",
    "application/protobuf",
    "application/x-protobuf",
    "application/avro",
    "application/vnd.apache.avro",
    "application/vnd.apache.parquet",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.arrow.file",
    "application/x-thrift",
    "application/java-serialized-object",
    "application/x-python-pickle",
    "application/pdf",
    "application/wasm",
    "application/gzip",
    "application/zip",
    "application/zstd",
    "application/x-tar",
    "application/x-7z-compressed",
    "application/jwt",
    "application/jose",
    "application/rtf",
    "application/vnd.sqlite3",
    "application/vnd.ms-excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "image/avif",
    "image/svg+xml",
    "image/x-icon",
    "image/bmp",
    "image/tiff",
    "image/heic",
    "audio/mpeg",
    "audio/ogg",
    "audio/wav",
    "audio/aac",
    "audio/flac",
    "audio/webm",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/mp2t",
    "application/vnd.apple.mpegurl",
    "application/dash+xml",
    "font/woff",
    "font/woff2",
    "font/ttf",
    "font/otf",
    "model/gltf-binary",
    "application/vnd.mapbox-vector-tile",
];

const _: () = assert!(NUMBERED.len() < SPELLED as usize);

/// How a content type is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept<'a> {
    /// The flags of the item.
    pub(super) flags: u32,
    /// What stands before the bytes of the value: the type itself, or nothing.
    pub(super) spelled: &'a str,
}

/// How to keep a content type; nothing when it is too long, or not one.
pub(super) fn keep(content_type: &str) -> Option<Kept<'_>> {
    let content_type = content_type.trim_matches([' ', '\t']);
    if !is_media_type(content_type) {
        return None;
    }
    if content_type.eq_ignore_ascii_case(OCTETS) {
        return Some(Kept { flags: 0, spelled: "" });
    }
    // Only what comes back letter for letter has a number, but for the case of letters.
    let number = NUMBERED.iter().position(|known| known.eq_ignore_ascii_case(content_type));
    match number {
        Some(place) => Some(Kept { flags: MARK | (place as u32 + 1) << 16, spelled: "" }),
        None if content_type.len() <= SPELLED_LEN_MAX => Some(Kept {
            flags: MARK | (SPELLED | content_type.len() as u32) << 16,
            spelled: content_type,
        }),
        None => None,
    }
}

/// Bytes before the value of an item with these flags, if it is `value_len` bytes long in all.
pub(super) fn spelled_len(flags: u32, value_len: usize) -> usize {
    match code(flags) {
        Some(code) if code & SPELLED != 0 => {
            let len = (code & !SPELLED) as usize;
            if len <= value_len { len } else { 0 }
        }
        _ => 0,
    }
}

/// The content type of an item with these flags; `spelled` is what stands before its value, of
/// [`spelled_len`]. Nothing when that is no content type: another client has written it.
pub(super) fn read(flags: u32, spelled: &[u8]) -> Option<HeaderValue> {
    match code(flags) {
        Some(code) if code & SPELLED != 0 => {
            let text = std::str::from_utf8(spelled).ok().filter(|text| is_media_type(text))?;
            HeaderValue::from_str(text).ok()
        }
        Some(code) => {
            let known = NUMBERED.get((code as usize).wrapping_sub(1));
            Some(HeaderValue::from_static(known.copied().unwrap_or(OCTETS)))
        }
        None => Some(HeaderValue::from_static(OCTETS)),
    }
}

/// The number in flags that are a content type.
fn code(flags: u32) -> Option<u32> {
    (flags & 0xFF00_FFFF == MARK).then_some(flags >> 16 & 0xFF).filter(|code| *code & 0x7F != 0)
}

/// Whether compressing a value of this type is not worth the time: it is compressed already.
pub(super) fn is_compressed(content_type: &HeaderValue) -> bool {
    let text = content_type.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let (kind, rest) = essence.split_once('/').unwrap_or_default();
    match kind {
        "image" => !matches!(rest, "svg+xml" | "bmp" | "x-icon" | "tiff"),
        "audio" | "video" => true,
        "font" => matches!(rest, "woff" | "woff2"),
        "application" => matches!(
            rest,
            "gzip"
                | "zip"
                | "zstd"
                | "x-7z-compressed"
                | "pdf"
                | "vnd.apache.parquet"
                | "vnd.openxmlformats-officedocument.spreadsheetml.sheet"
                | "vnd.openxmlformats-officedocument.wordprocessingml.document"
        ),
        _ => false,
    }
}

/// Whether text is `type/subtype`, perhaps with parameters, in characters that a header may have.
fn is_media_type(text: &str) -> bool {
    let token = |text: &str| {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"!#$&-^_.+%*'`|~".contains(&b);
        !text.is_empty() && text.bytes().all(valid)
    };
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let essence = essence.trim_end_matches([' ', '\t']).split_once('/');
    essence.is_some_and(|(kind, rest)| token(kind) && token(rest))
        && parameters.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn there_and_back(content_type: &str) -> Option<String> {
        let kept = keep(content_type)?;
        assert_eq!(spelled_len(kept.flags, 1_000), kept.spelled.len(), "{content_type}");
        assert_eq!(kept.flags & 0xFFFF, 0);
        Some(read(kept.flags, kept.spelled.as_bytes())?.to_str().unwrap().to_owned())
    }

    #[test]
    fn every_type_comes_back_as_it_was_given() {
        let rare =
            ["application/vnd.acme.order+json; version=2", "x/y", "text/plain; charset=koi8-r"];
        for content_type in NUMBERED.iter().copied().chain(rare).chain([OCTETS]) {
            assert_eq!(there_and_back(content_type).as_deref(), Some(content_type));
        }
        assert_eq!(NUMBERED.iter().collect::<BTreeSet<_>>().len(), NUMBERED.len());
    }

    #[test]
    fn numbers_stay_those_of_their_types() {
        for (content_type, number) in
            [("application/json", 1), ("application/pdf", 51), ("image/png", 65), ("font/otf", 90)]
        {
            assert_eq!(keep(content_type).unwrap().flags, MARK | number << 16, "{content_type}");
        }
    }

    #[test]
    fn what_is_no_content_type_is_refused() {
        let long = format!("application/{}", "x".repeat(116));
        assert!(keep(&long[..127]).is_some());
        for bad in ["", "text", "/plain", "text/", "text/pl ain", "text/plain;\u{7f}", &long] {
            assert_eq!(keep(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_flags_and_value_are_read_somehow(flags: u32, value: Vec<u8>) {
            for flags in [flags, MARK | flags & 0x00FF_0000] {
                let len = spelled_len(flags, value.len());
                prop_assert!(len <= value.len());
                let _ = read(flags, &value[..len]);
            }
        }
    }
}
