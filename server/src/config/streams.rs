//! Streams that a file asks for, as tables `[[streams]]` with a name and what
//! `PUT /v1/streams/{stream}` takes.
//!
//! They are made at start, as a client could make them later; one that is there already with the same
//! definition is as good as made.

use std::fmt::Write;

use kiln_stream::definition::Definition;
use toml::{Spanned, Value, de::DeValue};

use crate::streams::Stream;

/// The tables of all of them.
pub(super) const TABLE: &str = "streams";

/// What is wrong in a table, and where in the file.
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) reason: String,
}

/// Reads the tables of a file: names and definitions, in JSON.
pub(super) fn read(value: &Spanned<DeValue<'_>>) -> Result<Vec<(String, String)>, Vec<Wrong>> {
    let at = value.span().start;
    let wrong = |at, key: &str, reason: String| Wrong { at, key: key.to_owned(), reason };
    let DeValue::Array(tables) = value.get_ref() else {
        return Err(vec![wrong(at, TABLE, "expected tables [[streams]]".to_owned())]);
    };
    let (mut streams, mut all_wrong) = (Vec::<(String, String)>::new(), Vec::new());
    for table in tables {
        match one(table) {
            Ok((name, _)) if streams.iter().any(|(other, _)| *other == name) => {
                let reason = format!("there are two streams `{name}`");
                all_wrong.push(wrong(table.span().start, TABLE, reason));
            }
            Ok(stream) => streams.push(stream),
            Err((key, reason)) => all_wrong.push(wrong(table.span().start, &key, reason)),
        }
    }
    if all_wrong.is_empty() { Ok(streams) } else { Err(all_wrong) }
}

fn one(table: &Spanned<DeValue<'_>>) -> Result<(String, String), (String, String)> {
    let fail = |reason: String| (TABLE.to_owned(), reason);
    let Some(Value::Table(mut table)) = plain(table.get_ref()) else {
        return Err(fail("expected a table [[streams]]".to_owned()));
    };
    let Some(Value::String(name)) = table.remove("name") else {
        return Err(fail("a stream needs a `name`".to_owned()));
    };
    let of_stream = |reason: String| (format!("{TABLE}.{name}"), reason);
    let definition: Definition = Value::Table(table)
        .try_into()
        .map_err(|error: toml::de::Error| of_stream(error.message().replace('\n', ", ")))?;
    let text = serde_json::to_string(&definition).map_err(|error| of_stream(error.to_string()))?;
    Stream::plan_of(&text).map_err(|error| of_stream(error.to_string()))?;
    Ok((name, text))
}

/// The value without its place; `None` for a number that is out of range.
fn plain(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().ok()?),
        DeValue::Boolean(on) => Value::Boolean(*on),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(values) => {
            Value::Array(values.iter().map(|value| plain(value.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), plain(value.get_ref())?)))
                .collect::<Option<_>>()?,
        ),
    })
}

/// The tables as a file has them.
pub(super) fn render(streams: &[(String, String)], out: &mut String) {
    for (name, text) in streams {
        let Ok(definition) = serde_json::from_str::<Definition>(text) else { continue };
        let Ok(toml::Value::Table(table)) = toml::Value::try_from(&definition) else { continue };
        // Values only, each on a line: sub-tables would end the table of the stream. Writing to a
        // string cannot fail.
        let _ = writeln!(out, "\n[[{TABLE}]]\nname = {}", Value::String(name.clone()));
        for (key, value) in table {
            let _ = writeln!(out, "{key} = {value}");
        }
    }
}

/// The commented tables of the sample file.
pub(super) fn render_sample(out: &mut String) {
    out.push_str(
        "\n# ---- Streams ----\n\n\
         # Sensor readings to latest values and windows; all that a stream can be is in docs/streams.md,\n\
         # and sensors.toml beside this file is an example to run. One table for each.\n\
         #[[streams]]\n\
         #name = \"plant\"\n\
         #format = \"line\"\n\
         #windows = [{ tumbling = \"10s\" }]\n\
         #aggregates = [\"count\", \"mean\", \"std\"]\n",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(String, String)>, Vec<String>> {
        let table = toml::de::DeTable::parse(text).unwrap();
        let (_, value) = table.get_ref().iter().next().unwrap();
        read(value).map_err(|wrong| {
            wrong.into_iter().map(|wrong| format!("{}: {}", wrong.key, wrong.reason)).collect()
        })
    }

    #[test]
    fn what_is_rendered_is_read_as_the_same() {
        let text = "[[streams]]\nname = \"a\"\nwindows = [{ tumbling = \"10s\" }]\n\
                    latest = { cache = \"x\", memcached = true }\n\
                    detectors = [{ threshold = { above = 80.5 } }]\n[[streams]]\nname = \"b\"\n";
        let streams = read_text(text).unwrap();
        assert_eq!(streams.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let mut rendered = String::new();
        render(&streams, &mut rendered);
        assert_eq!(read_text(&rendered).unwrap(), streams);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("streams = 3", "streams: expected tables"),
            ("[[streams]]\nformat = \"csv\"", "streams: a stream needs a `name`"),
            ("[[streams]]\nname = \"a\"\nformt = \"csv\"", "streams.a: unknown field `formt`"),
            ("[[streams]]\nname = \"a\"\nwindows = [{}]", "streams.a: windows[0]: give exactly"),
            ("[[streams]]\nname = \"a\"\n[[streams]]\nname = \"a\"", "streams: there are two"),
        ] {
            let wrong = read_text(text).unwrap_err();
            assert!(wrong[0].starts_with(words), "{wrong:?}");
        }
    }
}
