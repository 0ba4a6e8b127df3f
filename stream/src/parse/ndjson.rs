//! One JSON object per line; fields that the layout does not name are skipped, whatever they hold.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::{LineError, Output, Reason, Unit, trim};

pub(super) fn parse(line: &[u8], out: &mut Output<'_>) -> Result<(), LineError> {
    let (start, text) = trim(line);
    if text.is_empty() {
        return Ok(());
    }
    let layout = out.layout;
    let names = Names {
        sensor: layout.sensor.as_deref().unwrap_or("sensor"),
        value: layout.value.as_deref().unwrap_or("value"),
        time: layout.unit.map(|unit| (layout.time.as_str(), unit)),
    };
    let mut json = serde_json::Deserializer::from_slice(text);
    let parts = names
        .deserialize(&mut json)
        .and_then(|parts| json.end().map(|()| parts))
        .map_err(|error| at_column(&error, start))?;
    let missing =
        |name: &str| LineError { at: start, reason: Reason::FieldMissing(name.to_owned()) };
    let sensor = parts.sensor.ok_or_else(|| missing(names.sensor))?;
    let value = parts.value.ok_or_else(|| missing(names.value))?;
    let time = match (names.time, parts.time) {
        (Some(_), Some(time)) => time,
        (Some((name, _)), None) if layout.time_required => return Err(missing(name)),
        (_, _) => out.arrival,
    };
    out.push(sensor.as_bytes(), time, value, start)
}

/// The JSON parser's message without its own "at line 1 column 5".
fn at_column(error: &serde_json::Error, start: usize) -> LineError {
    let text = error.to_string();
    let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
    LineError {
        at: start + error.column().saturating_sub(1),
        reason: Reason::Json(words.to_owned()),
    }
}

#[derive(Clone, Copy)]
struct Names<'n> {
    sensor: &'n str,
    value: &'n str,
    time: Option<(&'n str, Unit)>,
}

#[derive(Default)]
struct Parts<'de> {
    sensor: Option<Cow<'de, str>>,
    value: Option<f64>,
    time: Option<i64>,
}

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = Parts<'de>;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<Parts<'de>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = Parts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts<'de>, A::Error> {
        let mut parts = Parts::default();
        while let Some(Text(key)) = map.next_key()? {
            if key == self.sensor {
                parts.sensor = Some(map.next_value_seed(SensorId)?);
            } else if key == self.value {
                parts.value = Some(map.next_value()?);
            } else if let Some((_, unit)) = self.time.filter(|(name, _)| key == *name) {
                parts.time = Some(map.next_value_seed(Time(unit))?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(parts)
    }
}

/// A string, borrowed from the line unless it has escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> de::Deserialize<'de> for Text<'de> {
    fn deserialize<D: de::Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        json.deserialize_str(Borrow)
    }
}

/// A sensor is named by a string or a whole number.
struct SensorId;

impl<'de> DeserializeSeed<'de> for SensorId {
    type Value = Cow<'de, str>;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SensorId {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sensor id (a string or a whole number)")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Cow::Owned(number.to_string()))
    }
}

/// A time is a whole number of the unit, or a text that holds one or a date.
struct Time(Unit);

impl<'de> DeserializeSeed<'de> for Time {
    type Value = i64;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<i64, D::Error> {
        json.deserialize_any(self)
    }
}

impl Visitor<'_> for Time {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.expectation())
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> Result<i64, E> {
        self.0.scale(count).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(count), &self))
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<i64, E> {
        i64::try_from(count)
            .ok()
            .and_then(|count| self.0.scale(count))
            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(count), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
        self.0
            .millis(text.as_bytes())
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, read};
    use super::super::{Format, Layout, Reason, Unit};

    #[test]
    fn the_named_fields_are_taken_and_the_rest_is_skipped() {
        let text = concat!(
            "{\"sensor\":\"a\",\"value\":1.5,\"time\":10,\"more\":{\"value\":[1,{\"x\":null}]}}\n",
            "{\"time\":\"20\",\"value\":-2,\"sensor\":\"b\\u00e9\"}\n",
            "{\"sensor\":42,\"value\":3}\n\n"
        );
        let (kept, report) = read(layout(Format::Ndjson), text);
        assert_eq!(kept, ["a@10=1.5", "bé@20=-2", "42@7=3"]);
        assert_eq!(report.rejected, 0);
    }

    #[test]
    fn names_and_unit_come_from_the_layout() {
        let layout = Layout {
            sensor: Some("id".to_owned()),
            value: Some("t".to_owned()),
            time: "at".to_owned(),
            unit: Some(Unit::Iso),
            ..layout(Format::Ndjson)
        };
        let text = "{\"id\":\"a\",\"t\":4,\"at\":\"1970-01-01T00:00:02Z\"}";
        assert_eq!(read(layout, text).0, ["a@2000=4"]);
    }

    #[test]
    fn bad_objects_are_reported_with_their_column() {
        let text = "{\"sensor\":\"a\",\"value\":\"x\"}\n{\"value\":1}\n[1]\n{\"sensor\":\"a\",\"value\":1}x\n";
        let (kept, report) = read(layout(Format::Ndjson), text);
        assert_eq!(kept, [""; 0]);
        let bad = report.first_bad;
        assert_eq!((bad[0].line, bad[0].column), (1, 25));
        assert!(matches!(&bad[0].reason, Reason::Json(words) if words.contains("invalid type")));
        assert_eq!(bad[1].reason, Reason::FieldMissing("sensor".to_owned()));
        assert!(matches!(&bad[2].reason, Reason::Json(words) if words.contains("an object")));
        assert!(matches!(&bad[3].reason, Reason::Json(words) if words == "trailing characters"));
    }
}
