//! Results as text: what stands in caches, in answers and in events.

use std::fmt::Write;

use kiln_stream::{
    aggregate::Aggregate,
    effects::{Alarm, FitResult, WindowResult},
    plan::Plan,
};

/// The shortest decimal that reads back as the same number; always valid JSON, `12` for 12.0.
pub(super) fn number(out: &mut String, value: f64) {
    // Writing to a string cannot fail.
    let size = value.abs();
    let _ = if size != 0.0 && !(1e-7..1e17).contains(&size) {
        write!(out, "{value:e}")
    } else {
        write!(out, "{value}")
    };
}

/// Text as a JSON string; what is no UTF-8 is replaced.
pub(super) fn string(out: &mut String, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // A string always has a form in JSON.
    out.push_str(&serde_json::to_string(&text).unwrap_or_default());
}

/// The key of a result: `sensor/window/start`; a count window has its number in place of the start.
pub(super) fn key(out: &mut Vec<u8>, sensor: &[u8], window: &str, start: i64) {
    out.clear();
    out.extend_from_slice(sensor);
    out.push(b'/');
    out.extend_from_slice(window.as_bytes());
    out.push(b'/');
    out.extend_from_slice(start.to_string().as_bytes());
}

/// A window result as an object: `{"start": …, "end": …, "revision": 0, "count": …}`.
pub(super) fn window(out: &mut String, result: &WindowResult<'_>, aggregates: &[Aggregate]) {
    let _ = write!(
        out,
        "{{\"start\":{},\"end\":{},\"revision\":{}",
        result.start, result.end, result.revision
    );
    figures(out, result, aggregates);
    out.push('}');
}

/// The same as an event, which says of what.
pub(super) fn window_event(
    out: &mut String,
    sensor: &[u8],
    name: &str,
    result: &WindowResult<'_>,
    aggregates: &[Aggregate],
) {
    about(out, sensor);
    let _ = write!(
        out,
        ",\"window\":\"{name}\",\"start\":{},\"end\":{},\"revision\":{}",
        result.start, result.end, result.revision
    );
    figures(out, result, aggregates);
    out.push('}');
}

fn figures(out: &mut String, result: &WindowResult<'_>, aggregates: &[Aggregate]) {
    named_figures(out, aggregates, result.values());
}

/// Figures with their names, each behind a comma.
pub(super) fn named_figures(
    out: &mut String,
    aggregates: &[Aggregate],
    values: impl Iterator<Item = Option<f64>>,
) {
    for (aggregate, value) in aggregates.iter().zip(values) {
        let _ = write!(out, ",\"{}\":", aggregate.name());
        match value {
            Some(value) => number(out, value),
            None => out.push_str("null"),
        }
    }
}

/// An alarm as an event.
pub(super) fn alarm(out: &mut String, sensor: &[u8], plan: &Plan, alarm: &Alarm) {
    about(out, sensor);
    let kind = match alarm.kind {
        kiln_stream::detect::AlarmKind::Raised => "raised",
        kiln_stream::detect::AlarmKind::Cleared => "cleared",
    };
    let detector = plan.definition().detectors.get(usize::from(alarm.detector));
    let name = detector.map_or("", |detector| detector.name());
    let _ = write!(out, ",\"detector\":\"{name}\",\"kind\":\"{kind}\",\"time\":{}", alarm.time);
    out.push_str(",\"value\":");
    number(out, alarm.value);
    out.push_str(",\"expected\":");
    match alarm.expected.filter(|value| value.is_finite()) {
        Some(value) => number(out, value),
        None => out.push_str("null"),
    }
    out.push_str(",\"score\":");
    if alarm.score.is_finite() {
        number(out, alarm.score)
    } else {
        out.push_str("null")
    }
    out.push('}');
}

/// A fitted model as an object.
pub(super) fn fit(out: &mut String, sensor: &[u8], window: &str, fit: &FitResult) {
    about(out, sensor);
    let model = serde_json::to_string(&fit.model).unwrap_or_else(|_| "null".to_owned());
    let _ = write!(
        out,
        ",\"window\":\"{window}\",\"start\":{},\"fit\":{},\"model\":{model}}}",
        fit.start, fit.fit
    );
}

/// A reading as an event.
pub(super) fn reading(out: &mut String, sensor: &[u8], time: i64, value: f64) {
    about(out, sensor);
    let _ = write!(out, ",\"time\":{time},\"value\":");
    number(out, value);
    out.push('}');
}

fn about(out: &mut String, sensor: &[u8]) {
    out.push_str("{\"sensor\":");
    string(out, sensor);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_reads_back_as_the_same_and_is_valid_json(value: f64) {
            prop_assume!(value.is_finite());
            let mut text = String::new();
            number(&mut text, value);
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn whole_numbers_have_no_point_and_extremes_an_exponent() {
        for (value, expected) in [
            (12.0, "12"),
            (0.1, "0.1"),
            (-3.5, "-3.5"),
            (1e300, "1e300"),
            (0.0, "0"),
            (1e-9, "1e-9"),
        ] {
            let mut text = String::new();
            number(&mut text, value);
            assert_eq!(text, expected);
        }
    }
}
