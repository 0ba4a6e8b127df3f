//! Window results against the plainest possible computation: every window keeps all its readings and
//! figures are worked out from them anew. Random readings out of order in random batches, with and
//! without lateness; beside that a second copy and one restored from snapshots, which must stay equal.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_stream::aggregate::Aggregate;
use kiln_stream::definition::Definition;
use kiln_stream::effects::Effects;
use kiln_stream::operator::Operator;
use kiln_stream::plan::Plan;
use kiln_stream::reading::{Batch, Reading};
use kiln_stream::record::{Producer, Record};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Input {
    sensor: u8,
    time: i64,
    value: f64,
}

/// Sensor, window, start (of count windows: the number).
type Key = (u8, usize, i64);

#[derive(Clone, Debug)]
struct Row {
    end: i64,
    revision: u32,
    figures: Vec<Option<f64>>,
}

/// A window with all its readings, in order of arrival.
#[derive(Clone, Debug, Default)]
struct Group {
    start: i64,
    end: i64,
    readings: Vec<Input>,
    /// Revision and number of readings when it was given out last.
    given: Option<(u32, usize)>,
}

struct Model {
    definition: Definition,
    watermark: i64,
    time_max: i64,
    timed: BTreeMap<Key, Group>,
    sessions: BTreeMap<(u8, usize), Vec<Group>>,
    counts: BTreeMap<(u8, usize), (i64, Vec<Input>)>,
    late_dropped: Vec<u64>,
    late: u64,
    retractions: Vec<Key>,
}

const NEVER: i64 = i64::MIN / 2;

impl Model {
    fn new(definition: Definition) -> Self {
        Self {
            late_dropped: vec![0; definition.windows.len()],
            definition,
            watermark: NEVER,
            time_max: NEVER,
            timed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            counts: BTreeMap::new(),
            late: 0,
            retractions: Vec::new(),
        }
    }

    fn is_over(&self, end: i64) -> bool {
        end + self.definition.allowed_lateness.millis() <= self.watermark
    }

    fn apply(&mut self, batch: &[Input]) -> BTreeMap<Key, Row> {
        let mut given = BTreeMap::new();
        self.retractions.clear();
        for reading in batch {
            let mut late = false;
            for (at, window) in self.definition.windows.clone().iter().enumerate() {
                let key = (reading.sensor, at);
                let millis = |span: Option<kiln_stream::span::Span>| span.map(|s| s.millis());
                let taken = if let Some(len) = window.count {
                    self.take_counted(key, len as usize, reading, &mut given);
                    true
                } else if let Some(gap) = millis(window.session) {
                    self.take_session(key, gap, reading)
                } else {
                    let size = millis(window.tumbling).or(millis(window.hopping)).unwrap();
                    let slide = millis(window.every).unwrap_or(size);
                    self.take_timed(key, size, slide, millis(window.offset).unwrap_or(0), reading)
                };
                if !taken {
                    late = true;
                    self.late_dropped[at] += 1;
                }
            }
            self.late += u64::from(late);
            self.time_max = self.time_max.max(reading.time);
        }
        let watermark = self.time_max - self.definition.watermark_delay.millis();
        self.watermark = self.watermark.max(watermark);
        let all_sessions = self.sessions.iter_mut().flat_map(|((sensor, at), groups)| {
            groups.iter_mut().map(|group| ((*sensor, *at, group.start), group))
        });
        for (key, group) in self.timed.iter_mut().map(|(k, g)| (*k, g)).chain(all_sessions) {
            let changed = group.given.is_none_or(|(_, count)| count != group.readings.len());
            if group.end > self.watermark || !changed {
                continue;
            }
            let revision = group.given.map_or(0, |(revision, _)| revision + 1);
            group.given = Some((revision, group.readings.len()));
            let figures = figures(&self.definition, group.end, &group.readings);
            given.insert(key, Row { end: group.end, revision, figures });
        }
        let lateness = self.definition.allowed_lateness.millis();
        for sessions in self.sessions.values_mut() {
            sessions.retain(|session| session.end + lateness > self.watermark);
        }
        given
    }

    fn take_timed(
        &mut self,
        key: (u8, usize),
        size: i64,
        slide: i64,
        offset: i64,
        r: &Input,
    ) -> bool {
        let mut taken = false;
        for start in r.time - size + 1..=r.time {
            if (start - offset).rem_euclid(slide) != 0 || self.is_over(start + size) {
                continue;
            }
            taken = true;
            let group = self.timed.entry((key.0, key.1, start)).or_default();
            (group.start, group.end) = (start, start + size);
            group.readings.push(r.clone());
        }
        taken
    }

    fn take_session(&mut self, key: (u8, usize), gap: i64, reading: &Input) -> bool {
        let sessions = self.sessions.entry(key).or_default();
        let mut joined = Group {
            start: reading.time,
            end: reading.time + gap,
            readings: Vec::new(),
            given: None,
        };
        let touches = |s: &Group| s.start <= reading.time + gap && reading.time <= s.end;
        let touching: Vec<Group> = sessions.iter().filter(|s| touches(s)).cloned().collect();
        for session in &touching {
            joined.start = joined.start.min(session.start);
            joined.end = joined.end.max(session.end);
        }
        if joined.end + self.definition.allowed_lateness.millis() <= self.watermark {
            return false;
        }
        for session in touching {
            joined.readings.extend(session.readings);
            if let Some((revision, count)) = session.given {
                if session.start != joined.start {
                    self.retractions.push((key.0, key.1, session.start));
                }
                let (highest, counted) = joined.given.unwrap_or((0, 0));
                joined.given = Some((highest.max(revision), counted + count));
            }
        }
        joined.readings.push(reading.clone());
        sessions.retain(|s| !touches(s));
        sessions.push(joined);
        true
    }

    fn take_counted(
        &mut self,
        key: (u8, usize),
        len: usize,
        reading: &Input,
        given: &mut BTreeMap<Key, Row>,
    ) {
        let (number, readings) = self.counts.entry(key).or_default();
        readings.push(reading.clone());
        if readings.len() == len {
            let end = readings.iter().map(|r| r.time).max().unwrap() + 1;
            let figures = figures(&self.definition, end, readings);
            given.insert((key.0, key.1, *number), Row { end, revision: 0, figures });
            readings.clear();
            *number += 1;
        }
    }
}

fn figures(definition: &Definition, end: i64, readings: &[Input]) -> Vec<Option<f64>> {
    let n = readings.len() as f64;
    let values: Vec<f64> = readings.iter().map(|r| r.value).collect();
    let mean = values.iter().sum::<f64>() / n;
    let m2: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    let mut by_time: Vec<&Input> = readings.iter().collect();
    by_time.sort_by_key(|r| r.time);
    let (first, last) = (by_time[0], by_time[by_time.len() - 1]);
    let mut ordered = values.clone();
    ordered.sort_by(f64::total_cmp);
    let (least, greatest) = (ordered[0], ordered[ordered.len() - 1]);
    let sample = |v: f64| (readings.len() > 1).then_some(v);
    let until = by_time[1..].iter().map(|r| r.time).chain([end]);
    let area: f64 = by_time.iter().zip(until).map(|(r, u)| r.value * (u - r.time) as f64).sum();
    let half_life = definition.ewma_half_life.millis() as f64;
    let weight = |r: &Input| 0.5f64.powf((last.time - r.time) as f64 / half_life);
    let weighted: f64 = readings.iter().map(|r| r.value * weight(r)).sum();
    let delta = last.value - first.value;
    let figure = |aggregate: &Aggregate| match aggregate {
        Aggregate::Count => Some(n),
        Aggregate::Sum => Some(values.iter().sum()),
        Aggregate::Min => Some(least),
        Aggregate::Max => Some(greatest),
        Aggregate::Range => Some(greatest - least),
        Aggregate::First => Some(first.value),
        Aggregate::Last => Some(last.value),
        Aggregate::Mean => Some(mean),
        Aggregate::Var => sample(m2 / (n - 1.0)),
        Aggregate::Std => sample((m2 / (n - 1.0)).sqrt()),
        Aggregate::VarPop => Some(m2 / n),
        Aggregate::StdPop => Some((m2 / n).sqrt()),
        Aggregate::Delta => Some(delta),
        Aggregate::Rate => {
            (last.time > first.time).then(|| delta * 1000.0 / (last.time - first.time) as f64)
        }
        Aggregate::Ewma => Some(weighted / readings.iter().map(weight).sum::<f64>()),
        Aggregate::Twa => Some(area / (end - first.time) as f64),
        Aggregate::P50 => Some(ordered[(0.50 * (n - 1.0)) as usize]),
        Aggregate::P95 => Some(ordered[(0.95 * (n - 1.0)) as usize]),
        Aggregate::P99 => Some(ordered[(0.99 * (n - 1.0)) as usize]),
    };
    definition.aggregates.iter().map(figure).collect()
}

fn rows(operator: &Operator, plan: &Plan, effects: &Effects) -> BTreeMap<Key, Row> {
    let mut rows = BTreeMap::new();
    for result in effects.windows() {
        let at = usize::from(result.window);
        let is_count = plan.definition().windows[at].count.is_some();
        let start = if is_count { result.ordinal as i64 } else { result.start };
        let key = (operator.sensor_id(result.sensor)[0] - b'a', at, start);
        let row =
            Row { end: result.end, revision: result.revision, figures: result.values().collect() };
        assert!(rows.insert(key, row).is_none(), "{key:?} is given out twice by one record");
    }
    rows
}

fn definition(lateness: i64, delay: i64) -> Definition {
    let names: Vec<_> = Aggregate::ALL.iter().map(|a| format!("\"{}\"", a.name())).collect();
    serde_json::from_str(&format!(
        r#"{{"windows": [{{"tumbling": "10ms"}}, {{"hopping": "30ms", "every": "10ms", "offset": "4ms"}},
            {{"hopping": "25ms", "every": "10ms"}}, {{"count": 3}}, {{"session": "7ms"}}],
            "aggregates": [{}], "allowed_lateness": "{lateness}ms", "watermark_delay": "{delay}ms",
            "ewma_half_life": "20ms", "keep_late": true}}"#,
        names.join(",")
    ))
    .unwrap()
}

fn record(sequence: u64, inputs: &[Input]) -> Record {
    let mut batch = Batch::new();
    for input in inputs {
        let sensor = [b'a' + input.sensor];
        batch.push(Reading { sensor: &sensor, time: input.time, value: input.value }).unwrap();
    }
    let producer = Producer {
        id: "p".to_owned(),
        epoch: 1,
        sequence: Some(sequence),
        time_max: batch.time_max(),
    };
    Record {
        now: sequence as i64,
        producer: Some(Arc::new(producer)),
        offsets: Vec::new(),
        batch: batch.into(),
    }
}

/// Batches whose times wander forward, some readings far behind.
fn batches() -> impl Strategy<Value = Vec<Vec<Input>>> {
    let reading = (0u8..3, -60i64..15, -100.0..100.0f64, 0u8..4);
    prop::collection::vec((prop::collection::vec(reading, 0..10), 0i64..20), 1..25).prop_map(
        |batches| {
            let mut clock = 0;
            batches
                .into_iter()
                .map(|(batch, step)| {
                    clock += step;
                    let place = |(sensor, back, value, far): (u8, i64, f64, u8)| {
                        let back = if far == 0 { back } else { back / 6 };
                        Input { sensor, time: clock + back, value }
                    };
                    batch.into_iter().map(place).collect()
                })
                .collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn window_results_equal_brute_force_and_copies_stay_equal(
        batches in batches(),
        lateness in prop::sample::select(vec![0i64, 12, 40]),
        delay in prop::sample::select(vec![0i64, 8, 30]),
        restore_each in 1usize..6,
    ) {
        let definition = definition(lateness, delay);
        let plan = Arc::new(Plan::new(definition.clone()).unwrap());
        let mut model = Model::new(definition);
        let mut operator = Operator::new(Arc::clone(&plan));
        let mut copy = Operator::new(Arc::clone(&plan));
        for (i, batch) in batches.iter().enumerate() {
            let record = record(i as u64, batch);
            let effects = operator.apply(&record);
            operator.check_invariants();
            // Repeated, it changes nothing.
            let digest = operator.digest();
            let repeated = operator.apply(&record);
            prop_assert_eq!(repeated.windows().len() + repeated.latest.len(), 0);
            prop_assert_eq!(operator.totals().duplicates, batches[..=i].iter().map(|b| b.len() as u64).sum::<u64>());

            let travelled = rmp_serde::from_slice(&rmp_serde::to_vec(&record).unwrap()).unwrap();
            prop_assert_eq!(&copy.apply(&travelled), &effects);
            prop_assert_eq!(copy.digest(), digest);
            copy.apply(&travelled);
            if i % restore_each == 0 {
                copy = Operator::restore(Arc::clone(&plan), &copy.snapshot()).unwrap();
            }

            let expected = model.apply(batch);
            let found = rows(&operator, &plan, &effects);
            prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (key, expected) in expected {
                let found = &found[&key];
                prop_assert_eq!((found.end, found.revision), (expected.end, expected.revision), "{:?}", key);
                for (i, (f, e)) in found.figures.iter().zip(&expected.figures).enumerate() {
                    let aggregate = Aggregate::ALL[i];
                    let sketched = matches!(aggregate, Aggregate::P50 | Aggregate::P95 | Aggregate::P99);
                    let within = if sketched { 0.011 } else { 1e-9 };
                    let close = match (f, e) {
                        (Some(f), Some(e)) => (f - e).abs() <= within * e.abs().max(1.0) + 1e-9,
                        (f, e) => f == e,
                    };
                    prop_assert!(close, "{:?} {:?} found {:?} expected {:?}", key, aggregate, f, e);
                }
            }
            let retracted: Vec<_> = effects.retractions.iter().map(|r| {
                (operator.sensor_id(r.sensor)[0] - b'a', usize::from(r.window), r.start)
            }).collect();
            prop_assert_eq!(&retracted, &model.retractions);
            prop_assert_eq!(&operator.totals().late_dropped, &model.late_dropped);
            prop_assert_eq!(operator.totals().late, model.late);
            prop_assert_eq!(effects.late as usize, effects.late_readings.len());
        }
        for sensor in 0..3u8 {
            let readings = batches.iter().flatten().filter(|r| r.sensor == sensor);
            let latest = readings.max_by_key(|r| r.time).map(|r| (r.time, r.value));
            prop_assert_eq!(operator.latest(&[b'a' + sensor]), latest);
        }
    }
}
