//! Lengths of time as people write them: `500ms`, `10s`, `1h30m`, `7d`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in whole milliseconds, from 0 to ten years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// The longest span: ten years. Keeps all window arithmetic far from overflow.
    pub const MAX: Self = Self(10 * 366 * 86_400_000);

    /// A span of so many milliseconds, cut at [`Span::MAX`].
    pub const fn from_millis(millis: u64) -> Self {
        if millis > Self::MAX.0 { Self::MAX } else { Self(millis) }
    }

    /// Its milliseconds; at most ten years, so the sign is never lost.
    pub const fn millis(self) -> i64 {
        self.0 as i64
    }

    /// Reads `10s`, `1h30m`, `0s`. A bare number has no unit and is refused.
    pub fn parse(text: &str) -> Result<Self, SpanError> {
        let mut rest = text.as_bytes();
        let mut total = 0u64;
        if rest.is_empty() {
            return Err(SpanError::Form);
        }
        while !rest.is_empty() {
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            let units = rest[digits..].iter().take_while(|b| b.is_ascii_alphabetic()).count();
            let (number, unit) = (&rest[..digits], &rest[digits..digits + units]);
            let factor = UNITS.iter().find(|(name, _)| name.as_bytes() == unit);
            let (Some(number), Some((_, factor))) = (crate::number::integer(number), factor) else {
                return Err(SpanError::Form);
            };
            total = u64::try_from(number)
                .ok()
                .and_then(|n| n.checked_mul(*factor))
                .and_then(|n| n.checked_add(total))
                .filter(|n| *n <= Self::MAX.0)
                .ok_or(SpanError::TooLong)?;
            rest = &rest[digits + units..];
        }
        Ok(Self(total))
    }
}

/// Why a text is no span.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpanError {
    /// Not a whole number and a unit.
    #[error("expected a length of time such as 500ms, 10s, 5m, 24h or 7d")]
    Form,
    /// Longer than [`Span::MAX`].
    #[error("longer than ten years")]
    TooLong,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        // The largest unit that divides it: 90s stays 90s, 60s becomes 1m.
        let (name, factor) = UNITS
            .iter()
            .rev()
            .find(|(_, factor)| self.0.is_multiple_of(*factor))
            .unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a length of time such as \"500ms\", \"10s\", \"5m\", \"24h\" or \"7d\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Span::parse(text).map_err(|reason| match reason {
                    SpanError::Form => E::invalid_value(de::Unexpected::Str(text), &self),
                    SpanError::TooLong => E::custom(format_args!("\"{text}\" is {reason}")),
                })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_back() {
        for (text, millis, written) in [
            ("10s", 10_000, "10s"),
            ("1h30m", 5_400_000, "90m"),
            ("0s", 0, "0s"),
            ("60s", 60_000, "1m"),
            ("500ms", 500, "500ms"),
            ("7d", 604_800_000, "7d"),
        ] {
            let span = Span::parse(text).unwrap();
            assert_eq!((span.millis(), span.to_string()), (millis, written.to_owned()));
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in ["", "10", "s", "10 s", "-1s", "1.5s", "10x", "1s2"] {
            assert_eq!(Span::parse(text), Err(SpanError::Form), "{text}");
        }
        assert_eq!(Span::parse("4000d"), Err(SpanError::TooLong));
        assert_eq!(Span::parse("9223372036854775807d"), Err(SpanError::TooLong));
    }
}
