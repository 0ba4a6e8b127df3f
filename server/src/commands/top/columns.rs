//! The columns of `kiln top`, in the order of their worth: those that do not fit are left out.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::figures::{CacheFigures, KeyFigure, NodeFigures, ProtocolFigures};
use crate::commands::output::{count, shown, size, span};

/// One column of a table: heading, width, and what it says of a row.
pub(super) struct Column<T> {
    pub(super) heading: &'static str,
    pub(super) width: u16,
    /// Set to the right.
    pub(super) number: bool,
    pub(super) text: Box<dyn Fn(&T) -> String>,
    /// What is wrong with the row, instead of its figures. Asked of the first column only.
    pub(super) wrong: fn(&T) -> Option<String>,
}

fn text<T>(heading: &'static str, width: u16, text: impl Fn(&T) -> String + 'static) -> Column<T> {
    Column { heading, width, number: false, text: Box::new(text), wrong: |_| None }
}

fn number<T>(
    heading: &'static str,
    width: u16,
    text: impl Fn(&T) -> String + 'static,
) -> Column<T> {
    Column { heading, width, number: true, text: Box::new(text), wrong: |_| None }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |percent| format!("{percent:.1}"))
}

pub(super) fn node_columns() -> Vec<Column<NodeFigures>> {
    // A node without figures has its reason where the figures would be.
    let figure = |heading, width, of: fn(&NodeFigures) -> String| {
        number(heading, width, move |node: &NodeFigures| match node.error {
            None => of(node),
            Some(_) => String::new(),
        })
    };
    let memory =
        |node: &NodeFigures| format!("{}/{}", size(node.memory_used), size(node.memory_limit));
    fn wrong(node: &NodeFigures) -> Option<String> {
        node.error.as_ref().map(|error| format!("{}: {error}", node.name))
    }
    vec![
        Column { wrong, ..text("NODE", 16, |node: &NodeFigures| node.name.clone()) },
        figure("OPS/S", 7, |node| count(node.operations_per_second)),
        figure("HIT%", 5, |node| percent(node.hit_percent)),
        figure("MEMORY", 21, memory),
        figure("EVICT/S", 7, |node| count(node.evictions_per_second)),
        figure("CONN", 5, |node| node.connections.to_string()),
        figure("CPU%", 5, |node| format!("{:.0}", node.cpu_percent)),
        figure("ITEMS", 7, |node| count(node.items as f64)),
        figure("IN/S", 10, |node| size(node.bytes_read_per_second as u64)),
        figure("OUT/S", 10, |node| size(node.bytes_written_per_second as u64)),
        figure("UP", 8, |node| span(node.uptime_seconds.saturating_mul(1000))),
        text("ADDRESS", 21, |node: &NodeFigures| node.address.clone()),
        text("VERSION", 20, |node: &NodeFigures| node.version.clone()),
    ]
}

pub(super) fn cache_columns() -> Vec<Column<CacheFigures>> {
    let memory =
        |cache: &CacheFigures| format!("{}/{}", size(cache.memory_used), size(cache.memory_limit));
    vec![
        text("CACHE", 16, |cache: &CacheFigures| cache.name.clone()),
        number("READS/S", 7, |cache: &CacheFigures| count(cache.reads_per_second)),
        number("HIT%", 5, |cache: &CacheFigures| percent(cache.hit_percent)),
        number("MEMORY", 21, memory),
        number("EVICT/S", 7, |cache: &CacheFigures| count(cache.evictions_per_second)),
        number("ITEMS", 6, |cache: &CacheFigures| count(cache.items as f64)),
        number("STORES/S", 8, |cache: &CacheFigures| count(cache.stores_per_second)),
        number("EXPIRED/S", 9, |cache: &CacheFigures| count(cache.expirations_per_second)),
    ]
}

pub(super) fn protocol_columns() -> Vec<Column<ProtocolFigures>> {
    fn latency(
        heading: &'static str,
        of: fn(&super::figures::Latency) -> f64,
    ) -> Column<ProtocolFigures> {
        number(heading, 10, move |protocol: &ProtocolFigures| {
            protocol
                .latency
                .as_ref()
                .map_or("-".to_owned(), |latency| format!("{:.0}", of(latency)))
        })
    }
    vec![
        text("PROTOCOL", 16, |protocol: &ProtocolFigures| protocol.protocol.clone()),
        number("OPS/S", 7, |protocol: &ProtocolFigures| count(protocol.operations_per_second)),
        latency("P50 US", |latency| latency.p50_us),
        latency("P99 US", |latency| latency.p99_us),
        latency("P99.9 US", |latency| latency.p999_us),
        latency("MAX US", |latency| latency.max_us),
    ]
}

pub(super) fn key_columns(
    heading: &'static str,
    amount: &'static str,
    width: u16,
    show: fn(u64) -> String,
) -> Vec<Column<KeyFigure>> {
    let rest = width.saturating_sub(10 + COLUMN_GAP).max(1);
    vec![
        text(heading, rest, move |key: &KeyFigure| {
            let name = shown(&key.key);
            match &*key.cache {
                "default" => elided(&name, rest),
                cache => elided(&format!("{cache}/{name}"), rest),
            }
        }),
        number(amount, 10, move |key: &KeyFigure| show(key.amount)),
    ]
}

/// A name without its middle when it is wider than this: keys differ at their ends.
fn elided(name: &str, width: u16) -> String {
    let width = usize::from(width);
    if name.width() <= width {
        return name.to_owned();
    }
    let half = width.saturating_sub(1) / 2;
    let within = |chars: &mut dyn Iterator<Item = char>| {
        let mut left = half;
        let fits = chars.take_while(|c| {
            let wide = c.width().unwrap_or(0);
            let fits = wide <= left;
            left = left.saturating_sub(wide);
            fits
        });
        fits.collect::<Vec<char>>()
    };
    let head: String = within(&mut name.chars()).into_iter().collect();
    let tail: String = within(&mut name.chars().rev()).into_iter().rev().collect();
    format!("{head}…{tail}")
}

/// Between two columns.
pub(super) const COLUMN_GAP: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_loses_its_middle_and_keeps_its_ends() {
        assert_eq!(elided("short", 5), "short");
        assert_eq!(elided("key:0000000000000042", 11), "key:0…00042");
        assert_eq!(elided("ключ:ключ:ключ", 7), "клю…люч");
        for width in 0..12 {
            assert!(elided("世界世界世界世界", width).width() <= usize::from(width).max(1));
        }
    }
}
