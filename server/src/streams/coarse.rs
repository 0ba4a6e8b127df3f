//! Stored windows made into longer ones, for an answer: see [`kiln_stream::downsample`].

use std::fmt::Write;

use kiln_stream::{aggregate::Aggregate, downsample};

use super::{query::Row, render};

/// The window that these fill, which follow each other. Without a result where none of them has one.
pub(super) fn merged(aggregates: &[Aggregate], parts: &[Row]) -> Row {
    let start = parts.first().map_or(0, |row| row.start);
    let end = parts.last().map_or(0, |row| row.end);
    let known: Vec<_> = parts.iter().filter_map(Row::figures).collect();
    if known.is_empty() {
        return Row { start, end, text: None };
    }
    let figures: Vec<Vec<Option<f64>>> = known
        .iter()
        .map(|row| {
            let figure = |aggregate: &Aggregate| row.get(aggregate.name())?.as_f64();
            aggregates.iter().map(figure).collect()
        })
        .collect();
    let revision = known.iter().filter_map(|row| row.get("revision")?.as_u64()).sum::<u64>();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{{\"start\":{start},\"end\":{end},\"revision\":{revision},\"merged\":{}",
        known.len()
    );
    render::named_figures(
        &mut text,
        aggregates,
        downsample::merged(aggregates, &figures).into_iter(),
    );
    text.push('}');
    Row { start, end, text: Some(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(start: i64, text: Option<&str>) -> Row {
        Row { start, end: start + 10, text: text.map(str::to_owned) }
    }

    #[test]
    fn a_longer_window_weighs_its_parts_and_leaves_out_those_without_readings() {
        let aggregates = [Aggregate::Count, Aggregate::Mean, Aggregate::P95];
        let parts = [
            row(0, Some(r#"{"start":0,"end":10,"revision":1,"count":3,"mean":2.0,"p95":3.0}"#)),
            row(10, None),
            row(20, Some(r#"{"start":20,"end":30,"revision":0,"count":1,"mean":6.0,"p95":6.0}"#)),
        ];
        let merged = merged(&aggregates, &parts);
        let expected =
            r#"{"start":0,"end":30,"revision":1,"merged":2,"count":4,"mean":3,"p95":null}"#;
        assert_eq!(merged.text.unwrap(), expected);
        assert_eq!(super::merged(&aggregates, &parts[1..2]).text, None);
    }
}
