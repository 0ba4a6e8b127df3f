//! A sensor's windows as a chart in the terminal, what is expected after them, and the alarms in the
//! same time.

use hyper::Method;
use serde_json::Value;

use super::http::{HttpArgs, segment};
use crate::commands::{
    CommandError, EXIT_CODES,
    output::{self, Format, OutputArgs},
};

/// Draw a sensor's windows, and what is expected after them.
///
/// Each column is a window, `●` its figure; a column without a mark is a window without readings, and
/// `!` below it an alarm that was raised in it. `○` is expected, and 95 of 100 values between the `·`
/// above and below.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Plot {
    /// The stream.
    stream: String,
    /// The sensor.
    sensor: String,
    /// The window by name [default: the first of the stream].
    #[arg(long, value_name = "WINDOW")]
    window: Option<String>,
    /// The figure of each window.
    #[arg(long, value_name = "AGGREGATE", default_value = "mean")]
    figure: String,
    /// Windows, the last of them.
    #[arg(long, value_name = "N", default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..=400))]
    last: u32,
    /// Expected windows after the last; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=200))]
    forecast: u32,
    /// Windows of this length, such as 1m, made of the stored ones.
    #[arg(long, value_name = "LENGTH")]
    step: Option<String>,
    /// Windows before this time, in milliseconds since 1970 [default: now].
    #[arg(long, value_name = "TIME")]
    to: Option<i64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    http: HttpArgs,
}

/// Rows of a chart.
const HEIGHT: usize = 16;

impl Plot {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let mut http = self.http.open()?;
        let base = format!("/v1/streams/{}", segment(&self.stream));
        let sensor = segment(&self.sensor);
        let mut target = format!("{base}/sensors/{sensor}/windows?limit={}", self.last);
        if let Some(window) = &self.window {
            target.push_str(&format!("&window={}", segment(window)));
        }
        if let Some(to) = self.to {
            target.push_str(&format!("&to={to}"));
        }
        if let Some(step) = &self.step {
            target.push_str(&format!("&step={}", segment(step)));
        }
        let shown = http.must(Method::GET, &base, Vec::new()).await?;
        let is_grid =
            |window: &Value| !window["tumbling"].is_null() || !window["hopping"].is_null();
        let place = self.window.as_ref().and_then(|name| {
            shown["windows"].as_array()?.iter().position(|known| known == name.as_str())
        });
        if is_grid(&shown["definition"]["windows"][place.unwrap_or(0)]) {
            target.push_str("&fill=null");
            if self.forecast > 0 {
                let figure = segment(&self.figure);
                target.push_str(&format!("&forecast={}&figure={figure}", self.forecast));
            }
        }
        let found = http.must(Method::GET, &target, Vec::new()).await?;
        let alarms = format!("{base}/alarms?sensor={sensor}");
        let alarms = http.must(Method::GET, &alarms, Vec::new()).await?;
        if self.output.or(Format::Table) == Format::Json {
            let both = serde_json::json!({ "windows": found, "alarms": alarms["alarms"] });
            return output::print_json(&both);
        }
        let windows = found["windows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let points: Vec<Point> = windows
            .iter()
            .map(|window| Point {
                start: window["start"].as_i64().unwrap_or(0),
                end: window["end"].as_i64().unwrap_or(0),
                value: window[&self.figure].as_f64(),
            })
            .collect();
        if points.iter().all(|point| point.value.is_none()) {
            return Err(CommandError::Failed(format!(
                "no window of {} has the figure {} in this time",
                self.sensor, self.figure
            )));
        }
        let raised = alarms["alarms"].as_array().into_iter().flatten();
        let raised = raised.filter(|alarm| alarm["kind"] == "raised");
        let raised: Vec<i64> = raised.filter_map(|alarm| alarm["time"].as_i64()).collect();
        let expected: Vec<Expected> = found["forecast"]["windows"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|window| {
                let figure = |name: &str| window[name].as_f64();
                Some(Expected {
                    value: figure("value")?,
                    low: figure("low")?,
                    high: figure("high")?,
                })
            })
            .collect();
        let window = self.step.as_deref().or(found["window"].as_str()).unwrap_or_default();
        let title = format!("{} {} of {window} windows\n", self.sensor, self.figure);
        output::print(title + &chart(&points, &expected, &raised))
    }
}

/// A window on the chart.
struct Point {
    start: i64,
    end: i64,
    value: Option<f64>,
}

/// A window that is to come.
struct Expected {
    value: f64,
    low: f64,
    high: f64,
}

fn chart(points: &[Point], expected: &[Expected], raised: &[i64]) -> String {
    // The forecast stands behind the last window that is known.
    let known = points.iter().rposition(|point| point.value.is_some()).map_or(0, |last| last + 1);
    let points = if expected.is_empty() { points } else { &points[..known] };
    let bounds = expected.iter().flat_map(|window| [window.low, window.high]);
    let values = || points.iter().filter_map(|point| point.value).chain(bounds.clone());
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let row_of = |value: f64| {
        let part = ((value - low) / span * (HEIGHT - 1) as f64).round();
        HEIGHT - 1 - (part as usize).min(HEIGHT - 1)
    };
    let mut out = String::new();
    for row in 0..HEIGHT {
        let label = match row {
            0 => format!("{high:>12.4}"),
            _ if row == HEIGHT - 1 => format!("{low:>12.4}"),
            _ => " ".repeat(12),
        };
        out.push_str(&label);
        out.push_str(" │");
        let mut line = String::new();
        for point in points {
            let is_here = point.value.is_some_and(|value| row_of(value) == row);
            line.push(if is_here { '●' } else { ' ' });
        }
        for window in expected {
            let is_bound = row_of(window.low) == row || row_of(window.high) == row;
            line.push(match row_of(window.value) == row {
                true => '○',
                false if is_bound => '·',
                false => ' ',
            });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str(&format!("{:>12} └{}\n", "", "─".repeat(points.len() + expected.len())));
    let is_raised = |point: &Point| raised.iter().any(|at| (point.start..point.end).contains(at));
    if points.iter().any(is_raised) {
        let marks: String = points.iter().map(|p| if is_raised(p) { '!' } else { ' ' }).collect();
        out.push_str(&format!("{:>12}  {}\n", "alarms", marks.trim_end()));
    }
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        out.push_str(&format!(
            "{:>12}  from {} to {} (ms since 1970)\n",
            "", first.start, last.end
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highs_are_above_lows_gaps_stay_empty_and_alarms_stand_below_their_window() {
        let point = |i: i64, value| Point { start: i * 10, end: i * 10 + 10, value };
        let points =
            [point(0, Some(1.0)), point(1, None), point(2, Some(3.0)), point(3, Some(2.0))];
        let text = chart(&points, &[], &[25]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "      3.0000 │  ●");
        assert_eq!(lines[HEIGHT - 1], "      1.0000 │●");
        assert_eq!(lines[HEIGHT + 1], "      alarms    !");
        assert_eq!(text.matches('●').count(), 3);
        // A constant is a line and no division by zero.
        assert_eq!(chart(&[point(0, Some(5.0))], &[], &[]).matches('●').count(), 1);
    }

    #[test]
    fn what_is_expected_stands_behind_the_last_window_between_its_bounds() {
        let point = |i: i64, value| Point { start: i * 10, end: i * 10 + 10, value };
        let points = [point(0, Some(1.0)), point(1, Some(2.0)), point(2, None)];
        let expected = [Expected { value: 2.0, low: 1.0, high: 3.0 }];
        let text = chart(&points, &expected, &[]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "      3.0000 │  ·");
        assert_eq!(lines[HEIGHT - 1], "      1.0000 │● ·");
        assert_eq!(
            text.lines().find(|line| line.contains('○')).unwrap().trim_end(),
            "             │ ●○"
        );
        assert!(text.contains("└───\n"), "{text}");
    }
}
