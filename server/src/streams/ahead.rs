//! What is expected in the windows to come: see [`kiln_stream::fit::ahead`].

use std::fmt::Write;

use kiln_stream::fit;

use super::{
    query::{Forecast, Row},
    render,
};

/// 95 of 100 values lie within so many deviations of what is expected, if the model is right.
const BAND: f64 = 1.96;

/// A forecast from these windows as a JSON object; `null` where they determine none. `slide` is the time in
/// milliseconds from the start of a window to that of the next.
pub(super) fn forecast(rows: &[Row], asked: Forecast, slide: i64) -> String {
    let Forecast { figure, windows } = asked;
    let values: Vec<Option<f64>> =
        rows.iter().map(|row| row.figures()?.get(figure.name())?.as_f64()).collect();
    // Behind the last that is known: windows that are still open are not there yet.
    let Some(last) = values.iter().rposition(Option::is_some) else { return "null".to_owned() };
    let Some((model, expected)) = fit::ahead(&evenly(&values[..=last]), windows) else {
        return "null".to_owned();
    };
    let length = rows[last].end.saturating_sub(rows[last].start);
    let mut out = String::new();
    // Writing to a string cannot fail, and a model has a form in JSON.
    let _ = write!(
        out,
        "{{\"figure\":\"{}\",\"model\":{},\"windows\":[",
        figure.name(),
        serde_json::to_string(&model).unwrap_or_else(|_| "null".to_owned())
    );
    let mut start = rows[last].start;
    for (place, step) in expected.iter().enumerate() {
        start = start.saturating_add(slide);
        let comma = if place == 0 { "" } else { "," };
        let end = start.saturating_add(length);
        let _ = write!(out, "{comma}{{\"start\":{start},\"end\":{end},\"value\":");
        render::number(&mut out, step.value);
        out.push_str(",\"low\":");
        render::number(&mut out, step.value - BAND * step.deviation);
        out.push_str(",\"high\":");
        render::number(&mut out, step.value + BAND * step.deviation);
        out.push('}');
    }
    out.push_str("]}");
    out
}

/// The values from the first that is known, gaps on the line between those around: models take
/// values that are evenly spaced. The last is known.
fn evenly(values: &[Option<f64>]) -> Vec<f64> {
    let mut even: Vec<f64> = Vec::with_capacity(values.len());
    let mut gap = 0;
    for value in values {
        match (value, even.last().copied()) {
            (None, None) => {}
            (None, Some(_)) => gap += 1,
            (Some(value), before) => {
                let before = before.unwrap_or(*value);
                for step in 1..=gap {
                    even.push(before + (value - before) * f64::from(step) / f64::from(gap + 1));
                }
                gap = 0;
                even.push(*value);
            }
        }
    }
    even
}

#[cfg(test)]
mod tests {
    use kiln_stream::aggregate::Aggregate;

    use super::*;

    #[test]
    fn gaps_between_are_filled_and_those_before_are_left_out() {
        let values = [None, Some(1.0), None, None, Some(4.0), Some(5.0)];
        assert_eq!(evenly(&values), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(evenly(&[None, None]).is_empty());
    }

    #[test]
    fn the_forecast_goes_on_behind_the_last_window_that_is_known() {
        let wave = |i: i64| (i as f64 * 0.7).sin() + (i * i % 7) as f64 * 0.1;
        let mut rows: Vec<Row> = (0..60)
            .map(|i| Row {
                start: i * 10,
                end: i * 10 + 30,
                text: Some(format!(r#"{{"start":{},"mean":{}}}"#, i * 10, wave(i))),
            })
            .collect();
        rows.push(Row { start: 600, end: 630, text: None });
        let asked = Forecast { figure: Aggregate::Mean, windows: 3 };
        let told: serde_json::Value = serde_json::from_str(&forecast(&rows, asked, 10)).unwrap();
        assert_eq!(told["figure"], "mean");
        let windows = told["windows"].as_array().unwrap();
        let starts: Vec<_> = windows.iter().map(|window| window["start"].as_i64()).collect();
        assert_eq!(starts, [Some(600), Some(610), Some(620)]);
        for window in windows {
            assert_eq!(window["end"].as_i64(), window["start"].as_i64().map(|start| start + 30));
            let [low, value, high] = ["low", "value", "high"].map(|name| window[name].as_f64());
            assert!(low < value && value < high, "{window}");
        }
        assert_eq!(forecast(&rows[..5], asked, 10), "null");
        assert_eq!(forecast(&[], asked, 10), "null");
    }
}
