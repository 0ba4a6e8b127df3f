//! The rules of the contract, one by one, on a single operator.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::sync::Arc;

use kiln_stream::detect::AlarmKind;
use kiln_stream::effects::{Effects, Outcome, Retraction};
use kiln_stream::operator::{Operator, Refused};
use kiln_stream::plan::Plan;
use kiln_stream::reading::{Batch, Reading};
use kiln_stream::record::{Producer, Record, SourceOffset};
use kiln_stream::snapshot::RestoreError;

fn operator(json: &str) -> Operator {
    Operator::new(Arc::new(Plan::new(serde_json::from_str(json).unwrap()).unwrap()))
}

fn batch(readings: &[(&str, i64, f64)]) -> Batch {
    let mut batch = Batch::new();
    for (sensor, time, value) in readings {
        let sensor = sensor.as_bytes();
        batch.push(Reading { sensor, time: *time, value: *value }).unwrap();
    }
    batch
}

/// A record of a producer without sequences.
fn from(id: &str, now: i64, readings: &[(&str, i64, f64)]) -> Record {
    let producer = Producer { id: id.to_owned(), ..Producer::default() };
    Record {
        now,
        producer: Some(Arc::new(producer)),
        offsets: Vec::new(),
        batch: batch(readings).into(),
    }
}

fn numbered(epoch: u64, sequence: u64, readings: &[(&str, i64, f64)]) -> Record {
    let mut record = from("p", 0, readings);
    let producer = record.producer.as_mut().unwrap();
    let producer = Arc::make_mut(producer);
    (producer.epoch, producer.sequence) = (epoch, Some(sequence));
    record
}

/// `sensor window start..end #revision: first figure`.
fn shown(operator: &Operator, effects: &Effects) -> Vec<String> {
    let names = operator.plan().window_names();
    effects
        .windows()
        .map(|w| {
            let figure = w.values().next().unwrap().map_or("null".to_owned(), |v| v.to_string());
            let sensor = String::from_utf8_lossy(operator.sensor_id(w.sensor));
            let name = &names[usize::from(w.window)];
            format!("{sensor} {name} {}..{} #{}: {figure}", w.start, w.end, w.revision)
        })
        .collect()
}

const TUMBLING: &str = r#"{"windows": [{"tumbling": "10ms"}], "aggregates": ["count", "var"],
    "watermark_delay": "0s", "allowed_lateness": "0s", "idle_timeout": "100ms"}"#;

#[test]
fn a_window_fires_when_the_watermark_reaches_its_end_and_takes_its_start_but_not_its_end() {
    let mut op = operator(TUMBLING);
    let effects = op.apply(&from("p", 0, &[("a", 0, 1.0), ("a", 9, 1.0), ("b", 5, 1.0)]));
    assert_eq!(shown(&op, &effects), [""; 0]);
    let effects = op.apply(&from("p", 0, &[("a", 10, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #0: 2", "b 10ms 0..10 #0: 1"]);
    let var: Vec<_> = effects.windows().map(|w| w.values().nth(1).unwrap()).collect();
    assert_eq!(var, [Some(0.0), None]);
}

#[test]
fn windows_align_to_the_epoch_before_it_too() {
    let mut op = operator(TUMBLING);
    op.apply(&from("p", 0, &[("a", -1, 1.0), ("a", -11, 1.0)]));
    let effects = op.apply(&from("p", 0, &[("a", 0, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms -10..0 #0: 1"]);
}

#[test]
fn a_late_reading_within_the_lateness_fires_again_and_one_beyond_it_is_counted() {
    let json = TUMBLING.replace(
        "\"allowed_lateness\": \"0s\"",
        "\"allowed_lateness\": \"5ms\", \"keep_late\": true",
    );
    let mut op = operator(&json);
    op.apply(&from("p", 0, &[("a", 3, 1.0)]));
    let effects = op.apply(&from("p", 0, &[("a", 10, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #0: 1"]);
    let effects = op.apply(&from("p", 0, &[("a", 4, 1.0), ("a", 5, 1.0), ("b", 6, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #1: 3", "b 10ms 0..10 #0: 1"]);
    op.apply(&from("p", 0, &[("a", 15, 1.0)]));
    let effects = op.apply(&from("p", 0, &[("a", 7, 8.0)]));
    assert_eq!((shown(&op, &effects), effects.late, effects.accepted), (vec![], 1, 1));
    assert_eq!((effects.late_readings[0].time, effects.late_readings[0].value), (7, 8.0));
    assert_eq!(op.totals().late_dropped, [1]);
}

#[test]
fn the_slowest_active_producer_holds_the_watermark_and_an_idle_one_does_not() {
    let mut op = operator(TUMBLING);
    op.apply(&from("slow", 0, &[("a", 5, 1.0)]));
    let effects = op.apply(&from("fast", 60, &[("a", 30, 1.0)]));
    assert_eq!((shown(&op, &effects), op.watermark()), (vec![], Some(5)));
    assert_eq!(op.next_tick(), Some(100));
    let effects = op.apply(&Record::tick(100));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #0: 1"]);
    assert!(!effects.flushed);
}

#[test]
fn when_all_are_silent_open_windows_are_given_out_once_and_what_comes_later_is_not_late() {
    let mut op = operator(TUMBLING);
    op.apply(&from("p", 0, &[("a", 5, 1.0)]));
    let effects = op.apply(&Record::tick(100));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #0: 1"]);
    assert!(effects.flushed);
    assert_eq!((op.next_tick(), op.totals().flushes), (None, 1));
    assert!(!op.apply(&Record::tick(500)).flushed);
    let effects = op.apply(&from("p", 600, &[("a", 6, 1.0)]));
    assert_eq!((shown(&op, &effects), effects.late), (vec![], 0));
    let effects = op.apply(&from("p", 600, &[("a", 12, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #1: 2"]);
    // Given out by a flush and unchanged since: not a second time.
    op.apply(&Record::tick(900));
    let effects = op.apply(&from("p", 901, &[("b", 30, 1.0)]));
    assert_eq!(shown(&op, &effects), [""; 0]);
}

#[test]
fn a_record_is_applied_once_and_an_earlier_life_of_its_producer_is_refused() {
    let mut op = operator(TUMBLING);
    let first = numbered(1, 7, &[("a", 1, 1.0), ("b", 1, 1.0)]);
    assert_eq!(op.apply(&first).outcome, Outcome::Applied);
    assert_eq!(op.apply(&first).outcome, Outcome::Duplicate { readings: 2 });
    // In flight together, arrived the other way round.
    assert_eq!(op.apply(&numbered(1, 9, &[("a", 2, 1.0)])).outcome, Outcome::Applied);
    assert_eq!(op.apply(&numbered(1, 8, &[("a", 3, 1.0)])).outcome, Outcome::Applied);
    assert_eq!(op.apply(&numbered(2, 0, &[("a", 4, 1.0)])).outcome, Outcome::Applied);
    let stale = op.apply(&numbered(1, 10, &[("a", 5, 1.0)]));
    assert_eq!(stale.outcome, Outcome::StaleEpoch { current: 2 });
    let effects = op.apply(&numbered(2, 1, &[("z", 10, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a 10ms 0..10 #0: 4", "b 10ms 0..10 #0: 1"]);
    let totals = op.totals();
    assert_eq!((totals.accepted, totals.duplicates, totals.refused), (6, 2, 1));
    assert_eq!(op.producer_position("p"), Some((2, Some(1))));
}

#[test]
fn source_offsets_move_with_the_data() {
    let mut op = operator(TUMBLING);
    let mut record = numbered(1, 1, &[("a", 1, 1.0)]);
    record.offsets.push(SourceOffset { source: "topic/0".to_owned(), offset: 42 });
    op.apply(&record);
    assert_eq!(op.offset("topic/0"), Some(42));
    let mut repeated = record.clone();
    repeated.offsets[0].offset = 41;
    op.apply(&repeated);
    assert_eq!(op.offset("topic/0"), Some(42));
}

#[test]
fn the_latest_value_is_that_of_the_greatest_time_or_of_the_last_arrival() {
    let readings = [("a", 5, 1.0), ("a", 3, 2.0), ("a", 5, 3.0), ("a", 4, 4.0)];
    for (json, expected) in [("{}", (5, 3.0)), (r#"{"latest": "arrival"}"#, (4, 4.0))] {
        let mut op = operator(json);
        let effects = op.apply(&from("p", 0, &readings));
        let latest: Vec<_> = effects.latest.iter().map(|l| (l.time, l.value)).collect();
        assert_eq!(latest, [expected]);
        assert_eq!(op.latest(b"a"), Some(expected));
        // Older than the latest: no news, except by arrival.
        let effects = op.apply(&from("p", 0, &[("a", 2, 9.0)]));
        assert_eq!(effects.latest.len(), usize::from(json != "{}"));
    }
}

#[test]
fn sessions_join_and_a_result_under_another_start_is_retracted() {
    let mut op = operator(
        r#"{"windows": [{"session": "10ms"}], "aggregates": ["count"], "watermark_delay": "0s", "allowed_lateness": "50ms"}"#,
    );
    let effects = op.apply(&from("p", 0, &[("a", 100, 1.0), ("a", 120, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a session-10ms 100..110 #0: 1"]);
    let effects = op.apply(&from("p", 0, &[("b", 140, 1.0)]));
    assert_eq!(shown(&op, &effects), ["a session-10ms 120..130 #0: 1"]);
    let effects = op.apply(&from("p", 0, &[("a", 110, 1.0)]));
    assert_eq!(effects.retractions, [Retraction { sensor: 0, window: 0, start: 120 }]);
    assert_eq!(shown(&op, &effects), ["a session-10ms 100..130 #1: 3"]);
}

#[test]
fn a_record_that_may_outgrow_the_room_is_refused_before_anything_changes() {
    let op = operator(TUMBLING);
    let record = from("p", 0, &[("a", 1, 1.0)]);
    let (digest, bytes) = (op.digest(), op.bytes());
    assert!(matches!(op.admit(&record, 100), Err(Refused::TooMuchState { room: 100, .. })));
    assert_eq!((op.digest(), op.bytes()), (digest, bytes));
    assert_eq!(op.admit(&record, 1 << 20), Ok(()));
}

#[test]
fn what_is_admitted_grows_the_state_by_no_more_than_was_asked_for() {
    let json = r#"{"windows": [{"tumbling": "10ms"}, {"count": 3}, {"session": "5ms"}],
        "aggregates": ["twa", "p99", "ewma", "mean"], "detectors": ["ewma_z", "ar", "missing"]}"#;
    let mut op = operator(json);
    let ids: Vec<String> = (0..700).map(|i| format!("sensor-with-a-long-name-{i}")).collect();
    for step in 0..60usize {
        let readings: Vec<_> = (0..50)
            .map(|i| {
                (ids[(step * 31 + i * 7) % ids.len()].as_str(), (step * 3 + i) as i64, i as f64)
            })
            .collect();
        let record = from("p", 0, &readings);
        // The least room that is enough, found from outside.
        let Err(Refused::TooMuchState { needed, .. }) = op.admit(&record, 0) else {
            panic!("no room admits nothing")
        };
        assert_eq!(op.admit(&record, needed), Ok(()));
        let (before, producers) = (op.bytes(), if step == 0 { 1 } else { 0 });
        op.apply(&record);
        op.check_invariants();
        assert!(op.bytes() <= before + needed + producers * 1024, "step {step}");
    }
}

#[test]
fn state_goes_back_when_windows_close_and_silent_sensors_are_forgotten() {
    let json = TUMBLING.replace("\"idle_timeout\"", "\"retention\": \"100ms\", \"idle_timeout\"");
    let mut op = operator(&json);
    let empty = op.bytes();
    let ids: Vec<String> = (0..1000).map(|i| format!("s{i}")).collect();
    for round in 0..3 {
        let readings: Vec<_> = ids.iter().map(|id| (id.as_str(), round, 1.0)).collect();
        op.apply(&from("p", 0, &readings));
    }
    assert!(op.bytes() > empty + 200_000);
    op.apply(&from("p", 0, &[("s5", 90, 1.0)]));
    op.apply(&from("p", 0, &[("s5", 150, 1.0)]));
    op.apply(&from("p", 0, &[("s5", 170, 1.0)]));
    assert_eq!((op.sensor_count(), op.totals().forgotten), (1, 999));
    assert_eq!(op.latest(b"s5"), Some((170, 1.0)));
    assert_eq!(op.latest(b"s6"), None);
    op.check_invariants();
}

#[test]
fn a_sensor_that_falls_silent_is_missing_until_it_is_heard_again() {
    let mut op = operator(r#"{"detectors": [{"missing": {"after": "50ms"}}]}"#);
    op.apply(&from("p", 0, &[("a", 1, 1.0), ("b", 1, 1.0)]));
    op.apply(&from("p", 40, &[("a", 2, 1.0)]));
    assert_eq!(op.next_tick(), Some(50));
    let kinds = |effects: &Effects| -> Vec<_> {
        effects.alarms.iter().map(|a| (a.sensor, a.kind)).collect()
    };
    assert_eq!(kinds(&op.apply(&Record::tick(50))), [(1, AlarmKind::Raised)]);
    assert_eq!(kinds(&op.apply(&Record::tick(60))), []);
    assert_eq!(kinds(&op.apply(&from("p", 70, &[("b", 3, 1.0)]))), [(1, AlarmKind::Cleared)]);
    assert_eq!(kinds(&op.apply(&Record::tick(90))), [(0, AlarmKind::Raised)]);
}

#[test]
fn detectors_and_fits_speak_through_the_effects() {
    let mut op = operator(
        r#"{"windows": [{"tumbling": "1s"}], "watermark_delay": "0s", "fits": [{"arma": [1, 0]}],
            "detectors": ["ewma_z", {"threshold": {"above": 50.0}}]}"#,
    );
    let value = |i: i64| if i == 600 { 90.0 } else { 10.0 + (i * 7919 % 101) as f64 / 101.0 };
    let readings: Vec<_> = (0..=1000).map(|i| ("a", i, value(i))).collect();
    let effects = op.apply(&from("p", 0, &readings));
    let at_spike: Vec<_> =
        effects.alarms.iter().filter(|a| a.time == 600).map(|a| (a.detector, a.kind)).collect();
    assert_eq!(at_spike, [(0, AlarmKind::Raised), (1, AlarmKind::Raised)]);
    assert_eq!(effects.fits.len(), 1);
    let model = effects.fits[0].model.as_ref().unwrap();
    assert_eq!((model.ar.len(), model.ma.len(), effects.fits[0].start), (1, 0, 0));
}

#[test]
fn a_snapshot_is_restored_whole_or_refused() {
    let mut op = operator(TUMBLING);
    op.apply(&numbered(1, 1, &[("a", 1, 1.0), ("b", 25, 2.0)]));
    let snapshot = op.snapshot();
    let restored = Operator::restore(Arc::clone(op.plan()), &snapshot).unwrap();
    assert_eq!((restored.digest(), restored.snapshot()), (op.digest(), snapshot.clone()));
    let other = operator(r#"{"windows": [{"tumbling": "20ms"}]}"#);
    let refused = Operator::restore(Arc::clone(other.plan()), &snapshot);
    assert!(matches!(refused, Err(RestoreError::OtherDefinition)));
    let mut newer = snapshot.clone();
    newer[0] += 1;
    let refused = Operator::restore(Arc::clone(op.plan()), &newer);
    assert!(matches!(refused, Err(RestoreError::Version { found: 2 })));
    for len in 0..snapshot.len() {
        assert!(Operator::restore(Arc::clone(op.plan()), &snapshot[..len]).is_err());
    }
    // Damaged: refused, or a state that still works.
    for at in 0..snapshot.len() {
        for bit in 0..8 {
            let mut damaged = snapshot.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(mut op) = Operator::restore(Arc::clone(op.plan()), &damaged) {
                op.apply(&numbered(1, 2, &[("a", 40, 1.0), ("c", 41, 1.0)]));
                op.apply(&Record::tick(1000));
                op.digest();
            }
        }
    }
}

#[test]
fn hostile_times_of_a_peer_break_nothing() {
    let mut op = operator(
        r#"{"windows": [{"hopping": "7d", "every": "1h"}, {"session": "3650d"}], "allowed_lateness": "3650d"}"#,
    );
    for extreme in [i64::MIN, i64::MAX] {
        let mut record =
            from("p", extreme, &[("a", 253_402_300_799_999, 1.0), ("a", -62_135_596_800_000, 1.0)]);
        Arc::make_mut(record.producer.as_mut().unwrap()).time_max = Some(extreme);
        op.apply(&record);
        op.apply(&Record::tick(extreme));
        op.check_invariants();
        op = Operator::restore(Arc::clone(op.plan()), &op.snapshot()).unwrap();
    }
}
