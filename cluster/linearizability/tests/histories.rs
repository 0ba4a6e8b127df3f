//! Hand-made histories: right ones that must be accepted and forged ones that must be refused.

use kiln_linearizability::{
    Answer, Deadline, Operation, RECORDS_MAX, Record, Rules, Verdict, check,
};

const STEPS_MAX: u64 = 200_000;
const STRICT: Rules = Rules { evicts: false };
const EVICTING: Rules = Rules { evicts: true };

const INCREMENT: Operation = Operation::Count { up: true, delta: 1, create: None };

fn record(called: i64, returned: i64, operation: Operation, answer: Answer) -> Record {
    let returned = if answer == Answer::Unknown { i64::MAX } else { returned };
    Record { client: 0, called, returned, operation, deadline: None, answer }
}

fn set(called: i64, returned: i64, value: &str, version: u64) -> Record {
    let stored = Answer::Stored { version: Some(version) };
    record(called, returned, Operation::Set(value.into()), stored)
}

fn hit(called: i64, returned: i64, value: &str, version: u64) -> Record {
    let answer = Answer::Value { value: value.into(), version: Some(version) };
    record(called, returned, Operation::Get, answer)
}

fn miss(called: i64, returned: i64) -> Record {
    record(called, returned, Operation::Get, Answer::Absent)
}

fn lost_set(called: i64, value: &str) -> Record {
    record(called, 0, Operation::Set(value.into()), Answer::Unknown)
}

fn until(mut record: Record, earliest: i64, latest: i64) -> Record {
    record.deadline = Some(Deadline { earliest, latest });
    record
}

#[track_caller]
fn accepted(rules: Rules, history: &[Record]) {
    assert_eq!(check(history, rules, STEPS_MAX), Verdict::Linearizable, "{history:#?}");
}

#[track_caller]
fn refused(rules: Rules, history: &[Record]) {
    assert_eq!(check(history, rules, STEPS_MAX), Verdict::Violation, "{history:#?}");
}

#[test]
fn overlapping_operations_may_take_effect_in_either_order() {
    accepted(STRICT, &[set(0, 100, "a", 1), hit(10, 20, "a", 1), miss(5, 15)]);
    accepted(STRICT, &[set(0, 100, "a", 2), set(0, 100, "b", 1), hit(200, 210, "a", 2)]);
}

#[test]
fn a_read_after_an_acknowledged_write_must_not_see_the_older_value() {
    refused(STRICT, &[set(0, 10, "a", 1), set(20, 30, "b", 2), hit(40, 50, "a", 1)]);
    refused(EVICTING, &[set(0, 10, "a", 1), set(20, 30, "b", 2), hit(40, 50, "a", 1)]);
}

#[test]
fn two_reads_in_sequence_must_not_go_back() {
    let history =
        [set(0, 10, "a", 1), set(20, 100, "b", 2), hit(30, 40, "b", 2), hit(50, 60, "a", 1)];
    refused(STRICT, &history);
    refused(EVICTING, &history);
}

#[test]
fn a_miss_of_a_stored_item_is_legal_only_where_items_are_evicted() {
    let history = [set(0, 10, "a", 1), miss(20, 30)];
    refused(STRICT, &history);
    accepted(EVICTING, &history);
}

#[test]
fn an_evicted_item_must_not_come_back() {
    let history = [set(0, 10, "a", 1), miss(20, 30), hit(40, 50, "a", 1)];
    refused(EVICTING, &history);
}

#[test]
fn an_unanswered_write_may_show_late_or_never() {
    accepted(STRICT, &[set(0, 10, "a", 1), lost_set(20, "b"), hit(500, 510, "a", 1)]);
    accepted(
        STRICT,
        &[set(0, 10, "a", 1), lost_set(20, "b"), hit(500, 510, "a", 1), hit(600, 610, "b", 2)],
    );
}

#[test]
fn an_unanswered_write_must_not_show_before_it_was_asked_or_twice() {
    refused(STRICT, &[set(0, 10, "a", 1), hit(12, 15, "b", 2), lost_set(20, "b")]);
    let twice = [lost_set(0, "b"), hit(10, 20, "b", 1), set(30, 40, "a", 2), hit(50, 60, "b", 1)];
    refused(STRICT, &twice);
}

#[test]
fn an_increment_counts_once() {
    let incr = |called, returned, number| {
        let answer = Answer::Number { number, version: None };
        record(called, returned, INCREMENT, answer)
    };
    accepted(STRICT, &[set(0, 1, "5", 1), incr(10, 20, 6), incr(10, 20, 7)]);
    refused(STRICT, &[set(0, 1, "5", 1), incr(10, 20, 6), incr(30, 40, 8)]);
    refused(STRICT, &[set(0, 1, "5", 1), incr(10, 20, 6), incr(30, 40, 6)]);
    let unanswered = record(5, 0, INCREMENT, Answer::Unknown);
    accepted(STRICT, &[set(0, 1, "5", 1), unanswered, incr(30, 40, 7)]);
}

#[test]
fn a_count_creates_what_is_not_there() {
    let count = |called, number| {
        let operation = Operation::Count { up: true, delta: 5, create: Some(1) };
        record(called, called + 5, operation, Answer::Number { number, version: None })
    };
    accepted(STRICT, &[count(0, 1), count(10, 6)]);
    refused(STRICT, &[count(0, 1), count(10, 1)]);
    accepted(EVICTING, &[count(0, 1), count(10, 1)]);
    refused(STRICT, &[count(0, 5)]);
}

#[test]
fn of_two_compare_and_sets_on_one_version_one_wins() {
    let cas = |called, expected, value: &str, answer| {
        let operation = Operation::CompareAndSet { expected, value: value.into() };
        record(called, called + 10, operation, answer)
    };
    let won = |version| Answer::Stored { version: Some(version) };
    accepted(
        STRICT,
        &[set(0, 1, "a", 1), cas(5, 1, "b", won(2)), cas(5, 1, "c", Answer::Conflict)],
    );
    refused(STRICT, &[set(0, 1, "a", 1), cas(5, 1, "b", won(2)), cas(5, 1, "c", won(3))]);
    refused(STRICT, &[set(0, 1, "a", 1), cas(5, 1, "b", Answer::Conflict)]);
}

#[test]
fn versions_must_rise_also_over_a_delete() {
    let delete = record(20, 30, Operation::Delete, Answer::Deleted);
    accepted(STRICT, &[set(0, 10, "a", 7), delete.clone(), set(40, 50, "b", 8)]);
    refused(STRICT, &[set(0, 10, "a", 7), delete, set(40, 50, "b", 7)]);
}

#[test]
fn a_deleted_item_must_not_be_seen() {
    let delete = record(20, 30, Operation::Delete, Answer::Deleted);
    refused(EVICTING, &[set(0, 10, "a", 1), delete, hit(40, 50, "a", 1)]);
}

#[test]
fn an_item_is_gone_after_its_deadline_and_there_before_it() {
    let item = until(set(0, 10, "a", 1), 100, 120);
    accepted(STRICT, &[item.clone(), hit(90, 95, "a", 1), miss(130, 140)]);
    accepted(STRICT, &[item.clone(), miss(101, 105), miss(110, 115)]);
    refused(STRICT, &[item.clone(), miss(50, 60)]);
    refused(STRICT, &[item.clone(), hit(121, 130, "a", 1)]);
    refused(STRICT, &[item, miss(101, 105), hit(106, 110, "a", 1)]);
}

#[test]
fn a_touch_moves_the_deadline_and_keeps_the_version() {
    let item = until(set(0, 10, "a", 1), 100, 120);
    let touch = |version| {
        let answer = Answer::Touched { version: Some(version) };
        until(record(50, 60, Operation::Touch, answer), 500, 520)
    };
    accepted(STRICT, &[item.clone(), touch(1), hit(200, 210, "a", 1), miss(530, 540)]);
    refused(STRICT, &[item.clone(), touch(1), miss(200, 210)]);
    refused(STRICT, &[item, touch(2), hit(200, 210, "a", 2)]);
}

#[test]
fn a_reported_loss_excuses_a_miss_and_nothing_older() {
    let lose = record(20, 30, Operation::Lose, Answer::Absent);
    accepted(STRICT, &[set(0, 10, "a", 1), lose.clone(), miss(40, 50)]);
    refused(STRICT, &[set(0, 10, "a", 1), lose, miss(40, 50), hit(60, 70, "a", 1)]);
}

#[test]
fn appends_are_all_there_in_some_order() {
    let append = |called, tail: &str| {
        let answer = Answer::Stored { version: None };
        record(called, called + 50, Operation::Append(tail.into()), answer)
    };
    accepted(STRICT, &[set(0, 1, "x", 1), append(5, "1"), append(6, "2"), hit(90, 91, "x21", 9)]);
    refused(STRICT, &[set(0, 1, "x", 1), append(5, "1"), append(6, "2"), hit(90, 91, "x2", 9)]);
}

#[test]
fn a_history_that_is_too_long_or_too_hard_is_undecided_not_accepted() {
    let long: Vec<Record> = (0..=RECORDS_MAX as i64).map(|at| miss(at * 10, at * 10 + 5)).collect();
    assert_eq!(check(&long, STRICT, STEPS_MAX), Verdict::Undecided);
    let pair = [set(0, 10, "a", 1), miss(20, 30)];
    assert_eq!(check(&pair, STRICT, 1), Verdict::Undecided);
}

#[test]
fn a_long_history_with_unanswered_writes_is_decided_within_the_budget() {
    let mut history = Vec::new();
    for turn in 0..100_i64 {
        let (at, value) = (turn * 100, format!("v{turn}"));
        history.push(set(at, at + 40, &value, turn as u64 + 1));
        history.push(hit(at + 50, at + 60, &value, turn as u64 + 1));
        if turn % 3 == 0 {
            history.push(lost_set(at + 10, &format!("u{turn}")));
        }
    }
    accepted(STRICT, &history);
    history.push(hit(20_000, 20_010, "v3", 4));
    assert_ne!(check(&history, STRICT, STEPS_MAX), Verdict::Linearizable);
}
