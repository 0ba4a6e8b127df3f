//! The InfluxDB line protocol: `measurement,tag=value field=1.5,other=3i 1700000000000000000`.
//!
//! A line becomes one reading per numeric or boolean field (a boolean counts 1 or 0; a string field
//! is no reading and is counted as skipped). The sensor is the series: measurement and tags, tags
//! sorted by key so that the order a client writes them in does not matter, and `.field` behind it
//! unless the field is called `value` or is the only one the layout asks for. A layout that names a
//! tag takes the tag's value as the sensor instead.
//!
//! Escapes: `\,` `\=` and `\ ` in names and tags, `\"` and `\\` in strings; any other backslash is
//! itself. A line end inside a string is not supported: it ends the line, and the line is refused.

use super::{LineError, Output, READINGS_PER_LINE_MAX, Reason, trim};
use crate::number;

/// Memory that is used again for each line.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    sensor: Vec<u8>,
    text: Vec<u8>,
}

pub(super) fn parse(
    line: &[u8],
    scratch: &mut Scratch,
    out: &mut Output<'_>,
) -> Result<(), LineError> {
    let (start, text) = trim(line);
    if text.is_empty() || text[0] == b'#' {
        return Ok(());
    }
    let mut cursor = Cursor { text, at: 0, base: start };
    let measurement = cursor.word(b", ");
    if measurement.is_empty() {
        return Err(cursor.expected("a measurement"));
    }
    let mut tags = Vec::new();
    while cursor.take(b',') {
        let key = cursor.word(b",= ");
        if key.is_empty() {
            return Err(cursor.expected("a tag name"));
        }
        if !cursor.take(b'=') {
            return Err(cursor.expected("= after the tag name"));
        }
        let value = cursor.word(b",= ");
        if value.is_empty() {
            return Err(cursor.expected("a tag value"));
        }
        tags.push((key, value));
    }
    // Which of the two would name the series?
    tags.sort_unstable();
    if tags.windows(2).any(|pair| unescaped(pair[0].0).eq(unescaped(pair[1].0))) {
        return Err(cursor.expected("each tag once"));
    }
    if !cursor.take(b' ') {
        return Err(cursor.expected("a space and fields"));
    }
    cursor.skip_spaces();
    let layout = out.layout;
    scratch.sensor.clear();
    match &layout.sensor {
        Some(tag) => {
            let is_tag = |(key, _): &&(&[u8], &[u8])| unescaped(key).eq(tag.bytes());
            let Some((_, value)) = tags.iter().find(is_tag) else {
                return Err(LineError { at: start, reason: Reason::FieldMissing(tag.clone()) });
            };
            scratch.sensor.extend(unescaped(value));
        }
        None => {
            scratch.sensor.extend(unescaped(measurement));
            for (key, value) in &tags {
                scratch.sensor.push(b',');
                scratch.sensor.extend(unescaped(key));
                scratch.sensor.push(b'=');
                scratch.sensor.extend(unescaped(value));
            }
        }
    }
    // The time comes behind the fields; until it is known the readings have the arrival's.
    let fields_at = cursor.at;
    let mut fields = 0;
    loop {
        fields += 1;
        if fields > READINGS_PER_LINE_MAX {
            return Err(LineError { at: start + cursor.at, reason: Reason::TooManyFields });
        }
        cursor.field()?;
        if !cursor.take(b',') {
            break;
        }
    }
    let fields_end = cursor.at;
    let time = cursor.time(out)?;
    let mut cursor = Cursor { text: &text[..fields_end], at: fields_at, base: start };
    let series_len = scratch.sensor.len();
    loop {
        let at = start + cursor.at;
        let (key, value) = cursor.field()?;
        scratch.text.clear();
        scratch.text.extend(unescaped(key));
        let wanted = layout.value.as_ref().is_none_or(|name| name.as_bytes() == scratch.text);
        match value {
            Value::Number(value) if wanted => {
                if layout.value.is_none() && scratch.text != b"value" {
                    scratch.sensor.push(b'.');
                    scratch.sensor.extend_from_slice(&scratch.text);
                }
                out.push(&scratch.sensor, time, value, at)?;
                scratch.sensor.truncate(series_len);
            }
            _ => out.skipped += 1,
        }
        if !cursor.take(b',') {
            return Ok(());
        }
    }
}

enum Value {
    Number(f64),
    Text,
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    /// Offset of `text` in the line.
    base: usize,
}

impl<'a> Cursor<'a> {
    fn expected(&self, what: &'static str) -> LineError {
        LineError::expected(self.base + self.at, what)
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn skip_spaces(&mut self) {
        while self.take(b' ') {}
    }

    /// Up to the first of `ends` that has no backslash before it.
    fn word(&mut self, ends: &[u8]) -> &'a [u8] {
        let start = self.at;
        while let Some(byte) = self.text.get(self.at) {
            if ends.contains(byte) {
                break;
            }
            let escape = *byte == b'\\' && self.text.get(self.at + 1).is_some_and(is_escapable);
            self.at += if escape { 2 } else { 1 };
        }
        &self.text[start..self.at]
    }

    fn field(&mut self) -> Result<(&'a [u8], Value), LineError> {
        let key = self.word(b",= ");
        if key.is_empty() {
            return Err(self.expected("a field name"));
        }
        if !self.take(b'=') {
            return Err(self.expected("= after the field name"));
        }
        if self.take(b'"') {
            self.string()?;
            return Ok((key, Value::Text));
        }
        let start = self.at;
        while self.text.get(self.at).is_some_and(|b| !matches!(b, b',' | b' ')) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        let value = match text {
            b"t" | b"T" | b"true" | b"True" | b"TRUE" => Some(1.0),
            b"f" | b"F" | b"false" | b"False" | b"FALSE" => Some(0.0),
            [digits @ .., b'i'] => number::integer(digits).map(|n| n as f64),
            [digits @ .., b'u'] => unsigned(digits),
            // Other formats allow a plus; InfluxDB never did.
            [b'+', ..] => None,
            _ => number::finite(text),
        };
        let expectation = "a number, an integer such as 3i, true, false or a quoted string";
        let value = value.ok_or(LineError::expected(self.base + start, expectation))?;
        Ok((key, Value::Number(value)))
    }

    /// The rest of a string whose opening quote is taken.
    fn string(&mut self) -> Result<(), LineError> {
        while let Some(byte) = self.text.get(self.at) {
            let escape = *byte == b'\\' && matches!(self.text.get(self.at + 1), Some(b'"' | b'\\'));
            self.at += if escape { 2 } else { 1 };
            if *byte == b'"' {
                return Ok(());
            }
        }
        Err(self.expected("a closing quote"))
    }

    /// What follows the fields: nothing, or a space and a time.
    fn time(&mut self, out: &Output<'_>) -> Result<i64, LineError> {
        if self.at == self.text.len() {
            return Ok(out.arrival);
        }
        if !self.take(b' ') {
            return Err(self.expected("a comma or a space"));
        }
        self.skip_spaces();
        out.time(&self.text[self.at..], self.base + self.at)
    }
}

fn unsigned(digits: &[u8]) -> Option<f64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse::<u64>().ok().map(|n| n as f64)
}

fn is_escapable(byte: &u8) -> bool {
    matches!(byte, b',' | b'=' | b' ')
}

fn unescaped(word: &[u8]) -> impl Iterator<Item = u8> {
    word.iter().enumerate().filter_map(|(i, byte)| {
        let escapes = *byte == b'\\' && word.get(i + 1).is_some_and(is_escapable);
        (!escapes).then_some(*byte)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, read};
    use super::super::{BadLine, Format, Layout, Reason, Unit};

    fn influx(unit: Unit) -> Layout {
        Layout { unit: Some(unit), ..layout(Format::Influx) }
    }

    #[test]
    fn every_numeric_field_is_a_reading_of_its_series() {
        let text = "weather,room=b,area=x temp=21.5,n=-3i,big=7u,on=T,off=false,note=\"a, b\\\" c=1\" 1700000000123456789\n";
        let (kept, report) = read(influx(Unit::Ns), text);
        assert_eq!(
            kept,
            [
                "weather,area=x,room=b.temp@1700000000123=21.5",
                "weather,area=x,room=b.n@1700000000123=-3",
                "weather,area=x,room=b.big@1700000000123=7",
                "weather,area=x,room=b.on@1700000000123=1",
                "weather,area=x,room=b.off@1700000000123=0",
            ]
        );
        assert_eq!((report.accepted, report.rejected, report.skipped_fields), (5, 0, 1));
    }

    #[test]
    fn escapes_are_undone_and_other_backslashes_stay() {
        let text = "a\\,b\\ c,k\\=1=v\\ 2,p=c:\\x value=1\n";
        assert_eq!(read(influx(Unit::Ns), text).0, ["a,b c,k=1=v 2,p=c:\\x@7=1"]);
    }

    #[test]
    fn the_precision_is_the_layouts_and_a_missing_time_is_the_arrival() {
        assert_eq!(read(influx(Unit::S), "m value=1 5").0, ["m@5000=1"]);
        assert_eq!(read(influx(Unit::S), "m value=1 ").0, ["m@7=1"]);
        assert_eq!(read(influx(Unit::M), "m value=1 2").0, ["m@120000=1"]);
        assert_eq!(read(influx(Unit::H), "m value=1 1").0, ["m@3600000=1"]);
    }

    #[test]
    fn a_tag_can_name_the_sensor_and_one_field_be_chosen() {
        let layout = Layout {
            sensor: Some("host".to_owned()),
            value: Some("idle".to_owned()),
            ..influx(Unit::Ms)
        };
        let (kept, report) = read(layout, "cpu,host=h1 idle=5,user=6 9\ncpu idle=1 9\n");
        assert_eq!(kept, ["h1@9=5"]);
        assert_eq!(report.skipped_fields, 1);
        assert_eq!(report.first_bad[0].reason, Reason::FieldMissing("host".to_owned()));
    }

    #[test]
    fn a_line_with_one_bad_field_gives_no_reading() {
        let text = "m a=1,b=x 5\nm\nm,t a=1\n,t=1 a=1\nm a=1 x\nm a=\"x\nm a=1b=2\nm a=99999999999999999999i\nm ok=1\nm a=+1\nm,t=1,u=2,t=1 a=1\n";
        let (kept, report) = read(influx(Unit::Ms), text);
        assert_eq!(kept, ["m.ok@7=1"]);
        let number = "a number, an integer such as 3i, true, false or a quoted string";
        let bad = |line, column, what| BadLine { line, column, reason: Reason::Expected(what) };
        assert_eq!(
            report.first_bad,
            [
                bad(1, 9, number),
                bad(2, 2, "a space and fields"),
                bad(3, 4, "= after the tag name"),
                bad(4, 1, "a measurement"),
                bad(5, 7, "a time in whole milliseconds since 1970"),
                bad(6, 7, "a closing quote"),
                bad(7, 5, number),
                bad(8, 5, number),
                bad(10, 5, number),
                bad(11, 14, "each tag once"),
            ]
        );
    }
}
