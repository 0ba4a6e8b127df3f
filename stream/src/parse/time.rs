//! Event times as text: a count since 1970 in some unit, or a calendar date.

use serde::{Deserialize, Serialize};

use crate::number;

/// The unit of an event time in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds since 1970.
    Ns,
    /// Microseconds since 1970.
    Us,
    /// Milliseconds since 1970.
    #[default]
    Ms,
    /// Seconds since 1970.
    S,
    /// Minutes since 1970.
    M,
    /// Hours since 1970.
    H,
    /// `2014-07-01 00:30:00`, `2014-07-01T00:30:00.5Z`, `…+02:00`; without a zone it is UTC.
    Iso,
}

impl Unit {
    /// The text in milliseconds since 1970, finer units rounded down.
    #[inline]
    pub(crate) fn millis(self, text: &[u8]) -> Option<i64> {
        match self {
            Self::Iso => iso(text),
            _ => self.scale(number::integer(text)?),
        }
    }

    /// A count of this unit in milliseconds; `None` when it does not fit, and for `Iso`.
    #[inline]
    pub(crate) fn scale(self, count: i64) -> Option<i64> {
        match self {
            Self::Ns => Some(count.div_euclid(1_000_000)),
            Self::Us => Some(count.div_euclid(1_000)),
            Self::Ms => Some(count),
            Self::S => count.checked_mul(1_000),
            Self::M => count.checked_mul(60_000),
            Self::H => count.checked_mul(3_600_000),
            Self::Iso => None,
        }
    }

    pub(crate) fn expectation(self) -> &'static str {
        match self {
            Self::Ns => "a time in whole nanoseconds since 1970",
            Self::Us => "a time in whole microseconds since 1970",
            Self::Ms => "a time in whole milliseconds since 1970",
            Self::S => "a time in whole seconds since 1970",
            Self::M => "a time in whole minutes since 1970",
            Self::H => "a time in whole hours since 1970",
            Self::Iso => "a time such as 2014-07-01T00:30:00Z",
        }
    }
}

fn iso(text: &[u8]) -> Option<i64> {
    let number = |from: usize, len: usize| -> Option<i64> {
        let part = text.get(from..from + len)?;
        part.iter().all(u8::is_ascii_digit).then(|| number::integer(part))?
    };
    let is = |at: usize, allowed: &[u8]| text.get(at).is_some_and(|b| allowed.contains(b));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let marks = is(4, b"-") && is(7, b"-") && is(10, b"T t") && is(13, b":") && is(16, b":");
    // A leap second (60) counts as the first second of the next minute.
    let fits = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !marks || !fits {
        return None;
    }
    let mut rest = &text[19..];
    let mut millis = 0;
    if let [b'.', tail @ ..] = rest {
        let digits = tail.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        let digit = |i: usize| tail[..digits].get(i).map_or(0, |b| i64::from(b - b'0'));
        millis = digit(0) * 100 + digit(1) * 10 + digit(2);
        rest = &tail[digits..];
    }
    let zone_minutes = match rest {
        [] | [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), a, b, b':', c, d] => {
            let two = |a: &u8, b: &u8| number::integer(&[*a, *b]).filter(|n| *n >= 0);
            let minutes = two(a, b)? * 60 + two(c, d)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - zone_minutes * 60) * 1000 + millis)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar. The year is taken to begin in March, so that the leap
/// day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - DAYS_TO_1970
}

/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_times_are_read_with_fractions_and_zones() {
        for (text, millis) in [
            ("1970-01-01 00:00:00", 0),
            ("2014-07-01 00:30:00", 1_404_174_600_000),
            ("2000-02-29T12:00:00.5Z", 951_825_600_500),
            ("2024-12-31T23:59:59.999999+01:00", 1_735_685_999_999),
            ("1969-12-31T23:59:59Z", -1000),
        ] {
            assert_eq!(Unit::Iso.millis(text.as_bytes()), Some(millis), "{text}");
        }
    }

    #[test]
    fn every_day_of_the_calendar_follows_the_one_before() {
        let mut expected = days_since_1970(1899, 12, 31);
        for year in 1900..2105 {
            for month in 1..=12 {
                for day in 1..=days_in_month(year, month) {
                    expected += 1;
                    assert_eq!(days_since_1970(year, month, day), expected);
                }
            }
        }
        assert_eq!(days_since_1970(1970, 1, 1), 0);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "2014-07-01",
            "2014-13-01 00:00:00",
            "2023-02-29 00:00:00",
            "2014-07-01 24:00:00",
            "2014-07-01 00:00:00.",
            "2014-07-01 00:00:00+1:00",
            "2014/07/01 00:00:00",
            "+014-07-01 00:00:00",
        ] {
            assert_eq!(Unit::Iso.millis(text.as_bytes()), None, "{text}");
        }
    }
}
