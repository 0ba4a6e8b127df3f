//! Hands the history of each strong key to the independent checker.

use kiln_cluster::effect::{Direction, Operation, Outcome, StoreMode};
use kiln_linearizability as lin;

use super::{Violation, name_of};
use crate::history::{Call, Ending, Rules};
use crate::queue::Time;

/// Steps of the search per key and history.
const STEPS_MAX: u64 = 300_000;

/// What the checker said about one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Linearizable.
    Fine,
    /// Too long or too hard to decide.
    Undecided,
}

/// Judges all calls on one key. `losses` are the times between which the loss of all copies took
/// effect: from the last copy's death until the next life served, or the end of the run.
pub fn judge(
    calls: &[&Call],
    losses: &[(Time, Time)],
    rules: &Rules,
) -> Result<Finding, Violation> {
    let mut records: Vec<lin::Record> =
        calls.iter().filter_map(|call| record(call, rules)).collect();
    records.extend(calls.iter().filter(|call| crosses(call, losses)).map(|call| lin::Record {
        returned: i64::MAX,
        answer: lin::Answer::Unknown,
        ..unanswered(call, rules)
    }));
    records.extend(losses.iter().map(|&(from, until)| lin::Record {
        client: u32::MAX,
        called: time(from),
        returned: time(until),
        operation: lin::Operation::Lose,
        deadline: None,
        answer: lin::Answer::Absent,
    }));
    let lin_rules = lin::Rules { evicts: rules.evicts };
    let mut verdict = lin::check(&records, lin_rules, STEPS_MAX);
    if verdict == lin::Verdict::Violation && !losses.is_empty() {
        records.extend(again_after(calls, losses, rules));
        verdict = lin::check(&records, lin_rules, STEPS_MAX);
    }
    match verdict {
        lin::Verdict::Linearizable => Ok(Finding::Fine),
        lin::Verdict::Undecided => Ok(Finding::Undecided),
        lin::Verdict::Violation => {
            let subject = calls.first().map_or_else(String::new, |call| name_of(&call.key));
            let finding = format!("no order explains {} operations", records.len());
            Err(Violation::new("linearizable", subject, finding))
        }
    }
}

/// Whether a call went on over a loss. The answers to its earlier attempts were lost with the data,
/// so the answer that it got at last may be its second.
fn crosses(call: &Call, losses: &[(Time, Time)]) -> bool {
    let over = |&(from, _): &(Time, Time)| call.called <= from && from <= call.returned;
    call.may_have_changed() && losses.iter().any(over)
}

/// Late repeats of calls from before a loss: the answers by which they would have been recognised
/// were lost as well, so each may take effect once more.
fn again_after(
    calls: &[&Call],
    losses: &[(Time, Time)],
    rules: &Rules,
) -> impl Iterator<Item = lin::Record> {
    let pairs = losses.iter().flat_map(|loss| calls.iter().map(move |call| (loss.0, call)));
    pairs.filter(|(lost_at, call)| call.may_have_changed() && call.called < *lost_at).map(
        |(lost_at, call)| {
            // A repeat that comes so late counts the end that it gives from when it is carried out.
            let repeat = Call { called: lost_at, returned: Time::MAX, ..Call::clone(call) };
            unanswered(&repeat, rules)
        },
    )
}

/// The record of a call; `None` when it certainly did nothing and saw nothing.
fn record(call: &Call, rules: &Rules) -> Option<lin::Record> {
    let answer = match &call.ending {
        Ending::NotApplied => return None,
        Ending::Open | Ending::Unknown => match call.operation {
            Operation::Get { touch: None } => return None,
            _ => lin::Answer::Unknown,
        },
        Ending::Answered(outcome) => answer(call, outcome)?,
    };
    let returned = match answer {
        lin::Answer::Unknown => i64::MAX,
        _ => time(call.returned),
    };
    Some(lin::Record { returned, answer, ..unanswered(call, rules) })
}

/// The record of a call without its answer.
fn unanswered(call: &Call, rules: &Rules) -> lin::Record {
    let deadline = rules
        .window(call)
        .map(|(earliest, latest)| lin::Deadline { earliest: time(earliest), latest: time(latest) });
    lin::Record {
        client: call.client,
        called: time(call.called),
        returned: i64::MAX,
        operation: operation(&call.operation),
        deadline,
        answer: lin::Answer::Unknown,
    }
}

fn time(at: Time) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

fn operation(operation: &Operation) -> lin::Operation {
    match operation {
        Operation::Get { touch: None } | Operation::Look { touch: None, .. } => lin::Operation::Get,
        Operation::Get { touch: Some(_) } | Operation::Look { .. } => lin::Operation::GetAndTouch,
        Operation::Store { value, compare: Some(version), .. }
        | Operation::Amend { value, compare: Some(version), .. } => {
            lin::Operation::CompareAndSet { expected: version.0, value: value.to_vec() }
        }
        Operation::Store { mode, value, .. } | Operation::Amend { mode, value, .. } => {
            let value = value.to_vec();
            match mode {
                StoreMode::Set => lin::Operation::Set(value),
                StoreMode::Add => lin::Operation::Add(value),
                StoreMode::Replace => lin::Operation::Replace(value),
                StoreMode::Append => lin::Operation::Append(value),
                StoreMode::Prepend => lin::Operation::Prepend(value),
            }
        }
        // The calls of a run mark nothing, and remove all of a partition only when all its keys are
        // judged by it.
        Operation::Delete { .. } | Operation::Mark { .. } | Operation::Clear => {
            lin::Operation::Delete
        }
        Operation::Touch { .. } => lin::Operation::Touch,
        Operation::Arithmetic { direction, delta, create, .. } => lin::Operation::Count {
            up: *direction == Direction::Increment,
            delta: *delta,
            create: create.as_ref().map(|&(_, number)| number),
        },
    }
}

fn answer(call: &Call, outcome: &Outcome) -> Option<lin::Answer> {
    Some(match outcome {
        Outcome::Hit(item) | Outcome::Won(item) => {
            lin::Answer::Value { value: item.value.to_vec(), version: Some(item.version.0) }
        }
        Outcome::NotFound => lin::Answer::Absent,
        Outcome::Lost(_) => return None,
        Outcome::Stored(version) => lin::Answer::Stored { version: Some(version.0) },
        Outcome::NotStored => match call.operation {
            Operation::Store { mode: StoreMode::Add, .. } => lin::Answer::Present,
            _ => lin::Answer::Absent,
        },
        Outcome::Exists => lin::Answer::Conflict,
        Outcome::Deleted => lin::Answer::Deleted,
        Outcome::Touched(version) => lin::Answer::Touched { version: Some(version.0) },
        Outcome::Number(number, version) => {
            lin::Answer::Number { number: *number, version: Some(version.0) }
        }
        Outcome::NotANumber => lin::Answer::NotANumber,
        // Nothing changed; nothing was seen.
        Outcome::OutOfMemory | Outcome::TooLarge => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kiln_cluster::effect::{Item, ItemKey, Ttl};
    use kiln_cluster::ids::{CacheId, GroupKey, Mode, PartitionId, Place, Version};

    use super::*;
    use crate::queue::SECOND;

    const RULES: Rules =
        Rules { evicts: false, default_ttl_ms: None, clock_error_ms: 100, min_in_sync: 1 };

    fn call(operation: Operation, called: Time, outcome: Outcome) -> Call {
        Call {
            client: 1,
            counter: called,
            key: ItemKey { cache: CacheId(1), key: Bytes::from_static(b"k") },
            place: Place {
                group: GroupKey { mode: Mode::Strong, copies: 2 },
                partition: PartitionId(0),
            },
            operation,
            called,
            returned: called + SECOND,
            ending: Ending::Answered(outcome),
            clock_low_ms: 0,
        }
    }

    /// A set that ends after three seconds, and a read of its value much later.
    fn seen_again() -> [Call; 2] {
        let value = Bytes::from_static(b"v");
        let set = Operation::Store {
            mode: StoreMode::Set,
            value: value.clone(),
            flags: 0,
            ttl: Ttl::After(3_000),
            compare: None,
        };
        let item =
            Item { value, version: Version(9), deadline_ms: Some(23_000), ..Item::default() };
        let get = Operation::Get { touch: None };
        [call(set, 0, Outcome::Stored(Version(1))), call(get, 20 * SECOND, Outcome::Hit(item))]
    }

    #[test]
    fn an_ended_value_may_come_again_by_a_late_repeat_after_a_loss() {
        let [set, get] = seen_again();
        let loss = (10 * SECOND, 11 * SECOND);
        assert_eq!(judge(&[&set, &get], &[loss], &RULES).ok(), Some(Finding::Fine));
    }

    #[test]
    fn without_a_loss_an_ended_value_does_not_come_again() {
        let [set, get] = seen_again();
        judge(&[&set, &get], &[], &RULES).unwrap_err();
        // A repeat comes after the loss that made it possible.
        let late = (30 * SECOND, 31 * SECOND);
        judge(&[&set, &get], &[late], &RULES).unwrap_err();
    }
}
