//! Comma-separated columns (RFC 4180), one record per line.
//!
//! A quoted field may hold commas and doubled quotes but no line end: a reading has no use for one,
//! and without them every line end is a safe place to start again after damage.

use std::borrow::Cow;

use super::{Layout, LineError, Output, Reason, trim};
use crate::number;

/// Which column holds what; known from the definition or from the first line.
#[derive(Debug)]
pub(super) struct Header(Option<Columns>);

#[derive(Clone, Copy, Debug)]
struct Columns {
    sensor: usize,
    value: usize,
    /// `None`: the time of arrival.
    time: Option<usize>,
}

impl Header {
    pub(super) fn new(layout: &Layout) -> Self {
        let names = layout.columns.iter().map(String::as_bytes);
        Self(if layout.columns.is_empty() { None } else { Columns::find(layout, names).ok() })
    }
}

impl Columns {
    fn find<'n>(
        layout: &Layout,
        names: impl Iterator<Item = &'n [u8]> + Clone,
    ) -> Result<Self, String> {
        let at = |wanted: &str| {
            let found = names.clone().position(|n| n.eq_ignore_ascii_case(wanted.as_bytes()));
            found.ok_or_else(|| wanted.to_owned())
        };
        let sensor = layout.sensor.as_deref().unwrap_or("sensor");
        let value = layout.value.as_deref().unwrap_or("value");
        let time = match at(&layout.time) {
            _ if layout.unit.is_none() => None,
            Err(_) if !layout.time_required => None,
            found => Some(found?),
        };
        Ok(Self { sensor: at(sensor)?, value: at(value)?, time })
    }
}

pub(super) fn parse(
    line: &[u8],
    header: &mut Header,
    out: &mut Output<'_>,
) -> Result<(), LineError> {
    if trim(line).1.is_empty() {
        return Ok(());
    }
    let Some(columns) = header.0 else {
        let fields = fields(line).collect::<Result<Vec<_>, _>>()?;
        let names = fields.iter().map(|(_, field)| field.as_ref());
        let found = Columns::find(out.layout, names)
            .map_err(|name| LineError { at: 0, reason: Reason::FieldMissing(name) })?;
        header.0 = Some(found);
        return Ok(());
    };
    let (mut sensor, mut value, mut time) = (None, None, None);
    let last = columns.sensor.max(columns.value).max(columns.time.unwrap_or(0));
    for (i, field) in fields(line).take(last + 1).enumerate() {
        let (at, text) = field?;
        if i == columns.value {
            value = Some(number::finite(&text).ok_or(LineError::expected(at, "a number"))?);
        }
        if Some(i) == columns.time {
            time = Some(out.time(&text, at)?);
        }
        if i == columns.sensor {
            sensor = Some((at, text));
        }
    }
    let time = if columns.time.is_none() { Some(out.arrival) } else { time };
    let (Some((at, sensor)), Some(value), Some(time)) = (sensor, value, time) else {
        return Err(LineError::expected(line.len(), "more columns"));
    };
    out.push(&sensor, time, value, at)
}

/// The fields of a line, each with its offset, quotes removed.
fn fields(line: &[u8]) -> impl Iterator<Item = Result<(usize, Cow<'_, [u8]>), LineError>> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let rest = &line[start..];
        let (skip, _) = trim(rest);
        if rest.get(skip) == Some(&b'"') {
            let (field, end) = match quoted(line, start + skip) {
                Ok(found) => found,
                Err(error) => {
                    next = None;
                    return Some(Err(error));
                }
            };
            next = (line.get(end) == Some(&b',')).then_some(end + 1);
            return Some(Ok((start + skip, field)));
        }
        let end = memchr::memchr(b',', rest);
        next = end.map(|end| start + end + 1);
        let (skip, field) = trim(&rest[..end.unwrap_or(rest.len())]);
        Some(Ok((start + skip, Cow::Borrowed(field))))
    })
}

/// The quoted field that opens at `open`, and the offset of the comma or line end after it.
fn quoted(line: &[u8], open: usize) -> Result<(Cow<'_, [u8]>, usize), LineError> {
    let mut text = Cow::Borrowed(&line[open + 1..open + 1]);
    let mut from = open + 1;
    loop {
        let Some(quote) = memchr::memchr(b'"', &line[from..]).map(|q| from + q) else {
            return Err(LineError::expected(line.len(), "a closing quote"));
        };
        if text.is_empty() {
            text = Cow::Borrowed(&line[from..quote]);
        } else {
            text.to_mut().extend_from_slice(&line[from..quote]);
        }
        if line.get(quote + 1) != Some(&b'"') {
            let (skip, rest) = trim(&line[quote + 1..]);
            let after = quote + 1 + skip;
            return match rest.first() {
                None => Ok((text, line.len())),
                Some(b',') => Ok((text, after)),
                Some(_) => Err(LineError::expected(after, "a comma after the closing quote")),
            };
        }
        text.to_mut().push(b'"');
        from = quote + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, read};
    use super::super::{BadLine, Format, Layout, Reason, Unit};

    #[test]
    fn the_first_line_names_the_columns() {
        let text = "Value,time,unit,sensor\n1.5,10,C,a\n 2 , 20 ,C, \"b, \"\"x\"\"\" \r\n";
        let (kept, report) = read(layout(Format::Csv), text);
        assert_eq!(kept, ["a@10=1.5", "b, \"x\"@20=2"]);
        assert_eq!((report.accepted, report.rejected), (2, 0));
    }

    #[test]
    fn columns_can_be_named_by_the_definition() {
        let layout = Layout {
            columns: ["when", "id", "celsius"].map(str::to_owned).to_vec(),
            sensor: Some("id".to_owned()),
            value: Some("celsius".to_owned()),
            time: "when".to_owned(),
            time_required: true,
            unit: Some(Unit::Iso),
            ..layout(Format::Csv)
        };
        assert_eq!(read(layout, "1970-01-01 00:00:01,a,4\n").0, ["a@1000=4"]);
    }

    #[test]
    fn bad_records_are_reported_where_they_break() {
        let text = "sensor,value,time\na,x,1\na,1\n\"a,1,1\n\"a\"b,1,1\na,1,z\n\"\"\"\",1,1\n";
        let (kept, report) = read(layout(Format::Csv), text);
        assert_eq!(kept, ["\"@1=1"]);
        let bad = |line, column, what| BadLine { line, column, reason: Reason::Expected(what) };
        assert_eq!(
            report.first_bad,
            [
                bad(2, 3, "a number"),
                bad(3, 4, "more columns"),
                bad(4, 7, "a closing quote"),
                bad(5, 4, "a comma after the closing quote"),
                bad(6, 5, "a time in whole milliseconds since 1970"),
            ]
        );
    }

    #[test]
    fn a_header_without_the_needed_columns_is_refused() {
        let (kept, report) = read(layout(Format::Csv), "a,b\n");
        assert_eq!(kept, [""; 0]);
        assert_eq!(report.first_bad[0].reason, Reason::FieldMissing("sensor".to_owned()));
    }
}
