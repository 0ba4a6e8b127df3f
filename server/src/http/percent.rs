//! Percent-encoding (RFC 3986) of any bytes: keys in paths, and names and values in queries.
//!
//! Always true: decoding what [`encode`] wrote gives the same bytes, and text that is not
//! well-formed is refused, never taken half.

use std::borrow::Cow;

/// Why text could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`%` must be followed by two hexadecimal digits")]
pub(super) struct BadPercent;

/// The bytes that a part of a path stands for.
pub(super) fn decode(text: &str) -> Result<Cow<'_, [u8]>, BadPercent> {
    let bytes = text.as_bytes();
    let Some(first) = bytes.iter().position(|b| *b == b'%') else {
        return Ok(Cow::Borrowed(bytes));
    };
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..first]);
    let mut rest = &bytes[first..];
    loop {
        match rest {
            [] => return Ok(Cow::Owned(decoded)),
            [b'%', high, low, after @ ..] => {
                decoded.push(digit(*high)? << 4 | digit(*low)?);
                rest = after;
            }
            [b'%', ..] => return Err(BadPercent),
            [byte, after @ ..] => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
}

/// The bytes that a part of a query stands for, where `+` is a space, as forms write it.
pub(super) fn decode_query(text: &str) -> Result<Cow<'_, [u8]>, BadPercent> {
    if !text.contains('+') {
        return decode(text);
    }
    Ok(Cow::Owned(decode(&text.replace('+', "%20"))?.into_owned()))
}

/// Text for one segment of a path that stands for these bytes.
pub(super) fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'.') {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    text
}

fn digit(byte: u8) -> Result<u8, BadPercent> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(BadPercent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_encoding_and_decoding(bytes: Vec<u8>) {
            let text = encode(&bytes);
            prop_assert!(!text.contains(['/', '?', '#', ' ']) && text.is_ascii());
            prop_assert_eq!(&*decode(&text).unwrap(), &bytes[..]);
            prop_assert_eq!(&*decode_query(&text).unwrap(), &bytes[..]);
        }

        #[test]
        fn any_text_is_decoded_or_refused(text: String) {
            if let Ok(bytes) = decode(&text) {
                prop_assert!(bytes.len() <= text.len());
            }
        }
    }

    #[test]
    fn half_an_escape_is_refused_and_nothing_is_guessed() {
        for bad in ["%", "a%", "%4", "%4g", "%g4", "%%41", "100%"] {
            assert_eq!(decode(bad), Err(BadPercent), "{bad}");
        }
        assert_eq!(&*decode("%2f%2F+").unwrap(), b"//+");
        assert_eq!(&*decode_query("a+b%2B").unwrap(), b"a b+");
    }
}
