//! What streams do on this node, a second's rates included.
//!
//! Cost: some twenty loads a stream and tick. Streams are bounded where they are made.

use std::collections::HashMap;

use super::{history::Figure, snapshot::Stream};
use crate::{node::Node, streams::FigureValues};

/// Counters of streams at the last look.
#[derive(Debug, Default)]
pub(super) struct StreamMeter {
    at_ms: u64,
    before: HashMap<u64, FigureValues>,
}

impl StreamMeter {
    /// All streams, by name. Rates are those since the last look.
    pub(super) fn look(&mut self, node: &Node, now_ms: u64) -> Vec<Stream> {
        let table = node.streams.registry.load();
        let seconds = now_ms.saturating_sub(self.at_ms) as f64 / 1_000.0;
        let mut now = HashMap::with_capacity(table.len());
        let streams = table.values().map(|stream| {
            let figures = stream.figures.read();
            let rates = Rates::between(self.before.get(&stream.id), &figures, seconds);
            now.insert(stream.id, figures);
            Stream {
                name: stream.name.to_string(),
                latest_cache: stream.latest_cache.to_string(),
                windows: stream.plan.window_names().to_vec(),
                sensors: figures.sensors,
                state_bytes: figures.state_bytes,
                lag_ms: stream.watermark().map(|watermark| now_ms as i64 - watermark),
                readings_per_s: rates.readings,
                results_per_s: rates.results,
                late_per_s: rates.late,
                rejected_per_s: rates.rejected,
                late: figures.late,
                rejected: figures.rejected,
                alarms: figures.alarms,
            }
        });
        let streams = streams.collect();
        (self.at_ms, self.before) = (now_ms, now);
        streams
    }
}

struct Rates {
    readings: Figure,
    results: Figure,
    late: Figure,
    rejected: Figure,
}

impl Rates {
    /// Not known for a stream that was not there at the last look.
    fn between(before: Option<&FigureValues>, now: &FigureValues, seconds: f64) -> Self {
        let rate = |of: fn(&FigureValues) -> u64| {
            let grown = before.map(|before| of(now).saturating_sub(of(before)) as f64);
            Figure(grown.filter(|_| seconds > 0.0).map_or(f64::NAN, |grown| grown / seconds))
        };
        Self {
            readings: rate(|figures| figures.accepted),
            results: rate(|figures| figures.results),
            late: rate(|figures| figures.late),
            rejected: rate(|figures| figures.rejected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_that_passed_and_unknown_at_first() {
        let was = FigureValues { accepted: 100, late: 4, ..FigureValues::default() };
        let now = FigureValues { accepted: 400, late: 5, results: 2, ..FigureValues::default() };
        let rates = Rates::between(Some(&was), &now, 2.0);
        assert_eq!((rates.readings.0, rates.late.0, rates.results.0), (150.0, 0.5, 1.0));
        assert!(Rates::between(None, &now, 2.0).readings.0.is_nan());
        assert!(Rates::between(Some(&was), &now, 0.0).readings.0.is_nan());
        // Counters of a stream never fall, but one that did would not make a rate negative.
        assert_eq!(Rates::between(Some(&now), &was, 1.0).readings.0, 0.0);
    }
}
