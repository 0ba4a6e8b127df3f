//! Numbers and times as the protocol writes them.
//!
//! Digits only: no plus sign, no spaces, no other base. What does not fit the type is an error,
//! never cut.

use crate::command::Ttl;
use crate::memcached::FlushTime;

/// A decimal number.
pub(super) fn parse_u64(token: &[u8]) -> Option<u64> {
    if token.is_empty() || token.len() > DIGITS_MAX {
        return None;
    }
    // Nineteen digits cannot overflow: only longer tokens, which are rare, pay for the checks.
    let mut number = 0u64;
    if token.len() <= 19 {
        for &byte in token {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            number = number * 10 + u64::from(digit);
        }
        return Some(number);
    }
    for &byte in token {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}

/// A decimal number of 32 bits.
pub(super) fn parse_u32(token: &[u8]) -> Option<u32> {
    parse_u64(token).and_then(|number| u32::try_from(number).ok())
}

/// A decimal number that may be negative.
pub(super) fn parse_i64(token: &[u8]) -> Option<i64> {
    match token.strip_prefix(b"-") {
        Some(digits) => parse_u64(digits).and_then(|number| 0i64.checked_sub_unsigned(number)),
        None => parse_u64(token).and_then(|number| i64::try_from(number).ok()),
    }
}

/// A time in seconds as `touch`, `gat`, `flush_all` and the meta flags take it: 32 bits.
pub(super) fn parse_seconds(token: &[u8]) -> Option<i64> {
    parse_i64(token).filter(|seconds| i32::try_from(*seconds).is_ok())
}

/// The end of an item: nothing for 0, relative up to 30 days, a date above, over if negative.
pub(super) fn ttl(seconds: i64) -> Ttl {
    match u64::try_from(seconds) {
        Ok(0) => Ttl::Never,
        Ok(seconds) if seconds <= RELATIVE_MAX_S => Ttl::After(seconds * 1000),
        Ok(seconds) => Ttl::At(seconds.saturating_mul(1000)),
        Err(_) => Ttl::Expired,
    }
}

/// The time of a flush, read as [`ttl`] is; what is not above zero is now.
pub(super) fn flush_time(seconds: i64) -> FlushTime {
    match ttl(seconds) {
        Ttl::After(ms) => FlushTime::After(ms),
        Ttl::At(ms) => FlushTime::At(ms),
        Ttl::Default | Ttl::Never | Ttl::Expired => FlushTime::Now,
    }
}

/// A number above this many seconds is a date, not a duration: 30 days.
const RELATIVE_MAX_S: u64 = 60 * 60 * 24 * 30;

/// As many digits as 2^64 has, and some leading zeros.
const DIGITS_MAX: usize = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_and_fits_its_type() {
        assert_eq!(parse_u64(b"0"), Some(0));
        assert_eq!(parse_u64(b"0009223372036854775808"), Some(1 << 63));
        assert_eq!(parse_u64(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_u64(b"18446744073709551616"), None);
        assert_eq!(parse_u64(b"00000000000000000000001"), None);
        for wrong in [&b""[..], b"-1", b"+1", b"1x", b"x", b" 1", b"1 ", b"\xb2"] {
            assert_eq!(parse_u64(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_u32(b"4294967295"), Some(u32::MAX));
        assert_eq!(parse_u32(b"4294967296"), None);
    }

    #[test]
    fn a_signed_number_may_be_negative_and_no_more() {
        assert_eq!(parse_i64(b"-1"), Some(-1));
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_i64(b"-9223372036854775809"), None);
        assert_eq!(parse_i64(b"9223372036854775808"), None);
        assert_eq!(parse_i64(b"-"), None);
        assert_eq!(parse_i64(b"--1"), None);
        assert_eq!(parse_seconds(b"2147483647"), Some(2_147_483_647));
        assert_eq!(parse_seconds(b"2147483648"), None);
        assert_eq!(parse_seconds(b"-2147483648"), Some(-2_147_483_648));
    }

    #[test]
    fn thirty_days_are_relative_and_a_second_more_is_a_date() {
        assert_eq!(ttl(0), Ttl::Never);
        assert_eq!(ttl(-1), Ttl::Expired);
        assert_eq!(ttl(1), Ttl::After(1000));
        assert_eq!(ttl(2_592_000), Ttl::After(2_592_000_000));
        assert_eq!(ttl(2_592_001), Ttl::At(2_592_001_000));
        assert_eq!(ttl(i64::MAX), Ttl::At(u64::MAX));
    }

    #[test]
    fn a_flush_without_a_time_to_come_is_now() {
        assert_eq!(flush_time(0), FlushTime::Now);
        assert_eq!(flush_time(-5), FlushTime::Now);
        assert_eq!(flush_time(3), FlushTime::After(3000));
        assert_eq!(flush_time(2_000_000_000), FlushTime::At(2_000_000_000_000));
    }
}
