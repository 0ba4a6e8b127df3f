//! `sensor1, 12` and `sensor1, 12, 1700000000000`: what a hand types and a socket prints.

use super::{LineError, Output, trim};
use crate::number;

pub(super) fn parse(line: &[u8], out: &mut Output<'_>) -> Result<(), LineError> {
    let (start, text) = trim(line);
    if text.is_empty() {
        return Ok(());
    }
    let Some(comma) = text.iter().position(|b| *b == b',') else {
        return Err(LineError::expected(start + text.len(), "a comma after the sensor id"));
    };
    let (_, sensor) = trim(&text[..comma]);
    let after = &text[comma + 1..];
    let (value, stamp) = match after.iter().position(|b| *b == b',') {
        None => (after, None),
        Some(comma) => (&after[..comma], Some(&after[comma + 1..])),
    };
    let (skip, digits) = trim(value);
    let value_at = start + comma + 1 + skip;
    let Some(number) = number::finite(digits) else {
        return Err(LineError::expected(value_at, "a number"));
    };
    let time = match stamp {
        None => out.arrival,
        Some(stamp) => {
            let (skip, digits) = trim(stamp);
            out.time(digits, start + comma + 1 + value.len() + 1 + skip)?
        }
    };
    out.push(sensor, time, number, start)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, read};
    use super::super::{BadLine, Format, Layout, Reason, Unit};
    use crate::reading::ReadingError;

    #[test]
    fn a_line_is_a_sensor_a_value_and_perhaps_a_time() {
        let (kept, report) =
            read(layout(Format::Line), "sensor1, 12\nsensor1,12.5,1700000000000\r\n\n  a b ,-1 \n");
        assert_eq!(kept, ["sensor1@7=12", "sensor1@1700000000000=12.5", "a b@7=-1"]);
        assert_eq!((report.accepted, report.rejected), (3, 0));
    }

    #[test]
    fn a_bad_line_is_reported_with_line_column_and_reason() {
        let (kept, report) = read(layout(Format::Line), "s1, 1\nfoo\ns1, x\ns1, 2, y\n,1\ns2, 2");
        assert_eq!(kept, ["s1@7=1", "s2@7=2"]);
        let bad = |line, column, reason| BadLine { line, column, reason };
        assert_eq!(
            report.first_bad,
            [
                bad(2, 4, Reason::Expected("a comma after the sensor id")),
                bad(3, 5, Reason::Expected("a number")),
                bad(4, 8, Reason::Expected("a time in whole milliseconds since 1970")),
                bad(5, 1, Reason::Reading(ReadingError::SensorEmpty)),
            ]
        );
    }

    #[test]
    fn the_unit_of_the_time_is_the_layouts() {
        for (unit, text, millis) in [
            (Unit::S, "1700000000", 1_700_000_000_000),
            (Unit::Us, "1700000000000001", 1_700_000_000_000),
            (Unit::Ns, "-1", -1),
            (Unit::Iso, "2014-07-01 00:30:00", 1_404_174_600_000i64),
        ] {
            let layout = Layout { unit: Some(unit), ..layout(Format::Line) };
            assert_eq!(read(layout, &format!("s, 1, {text}")).0, [format!("s@{millis}=1")]);
        }
    }
}
