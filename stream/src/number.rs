//! Decimal text to numbers, fast for the short decimals that sensors send.
//!
//! Always the same result as the standard library: a decimal of at most 15 digits and a power of
//! ten up to 22 are both exact in a double, so one division rounds once. Everything else takes the
//! standard library's path. Never an infinity, never NaN: a reading is a finite number.

/// Parses a finite decimal number. `None` for anything else, `inf` and `nan` included.
#[inline]
pub(crate) fn finite(text: &[u8]) -> Option<f64> {
    match short_decimal(text) {
        Some(value) => Some(value),
        None => finite_slow(text),
    }
}

#[inline]
fn short_decimal(text: &[u8]) -> Option<f64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || digits.len() > SHORT_LEN_MAX {
        return None;
    }
    let mut mantissa = 0u64;
    let mut point = None;
    for (i, &byte) in digits.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            mantissa = mantissa * 10 + u64::from(digit);
        } else if byte == b'.' && point.is_none() {
            point = Some(i);
        } else {
            return None;
        }
    }
    let value = match point {
        None => mantissa as f64,
        // A lone point, or one at either end, goes to the strict path.
        Some(at) if at == 0 || at + 1 == digits.len() => return None,
        Some(at) => mantissa as f64 / POWERS[digits.len() - at - 1],
    };
    Some(if negative { -value } else { value })
}

#[cold]
fn finite_slow(text: &[u8]) -> Option<f64> {
    // The standard library also takes words; a number here starts like one.
    if !text.iter().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E')) {
        return None;
    }
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// Parses a signed decimal integer.
#[inline]
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut value = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Nineteen digits stay below 10^19, which fits.
        value = value * 10 + u64::from(digit);
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// Fifteen digits and a point: below 2^53, so the mantissa is exact.
const SHORT_LEN_MAX: usize = 15;

const POWERS: [f64; 16] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_points_and_nothing_are_not_numbers() {
        for text in ["", "-", ".", "5.", ".5.", "nan", "inf", "-inf", "1e999", "1x", "0x10", "--1"]
        {
            // The standard library takes `5.`; so do we, by its own path.
            let expected = text.parse::<f64>().ok().filter(|v| v.is_finite() && text != "nan");
            assert_eq!(finite(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn integers_stop_at_the_bounds_of_64_bits() {
        assert_eq!(integer(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"9223372036854775808"), None);
        assert_eq!(integer(b"99999999999999999999"), None);
        assert_eq!(integer(b""), None);
        assert_eq!(integer(b"1.5"), None);
    }

    proptest! {
        #[test]
        fn a_decimal_equals_the_standard_librarys(text in "-?[0-9]{1,17}(\\.[0-9]{1,12})?") {
            prop_assert_eq!(finite(text.as_bytes()).map(f64::to_bits), text.parse::<f64>().ok().map(f64::to_bits));
        }

        #[test]
        fn any_number_survives_being_written(value in proptest::num::f64::NORMAL) {
            prop_assert_eq!(finite(value.to_string().as_bytes()).map(f64::to_bits), Some(value.to_bits()));
        }
    }
}
