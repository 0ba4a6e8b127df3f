//! Is a recorded history of one key linearizable?
//!
//! The simulator has exact judges of its own that know Kiln's version numbers. This crate knows
//! nothing of Kiln: it takes what clients saw and searches for an order of single steps that
//! explains it, with the Wing-Gong-Lowe search of `porcupine-rs`. A mistake shared by the cluster
//! and its own judges therefore still shows here.
//!
//! What makes a cache different from a register, and how it is modelled:
//! - an operation without an answer may have happened at any later moment, or never;
//! - an item with a deadline may be gone from the earliest reading of that deadline on, and must be
//!   gone after the latest one (node clocks differ, so it is a window);
//! - in a cache that evicts, an item may vanish at any moment; no older item may come back;
//! - a version the client was not told is free until somebody sees it, and then it is fixed.
//!
//! The state of the search is therefore a *set* of possible items. Cost: near linear for histories
//! of a few clients; exponential in the answers that never came, so there is a budget of steps, and
//! running out of it is told apart from both verdicts. No wall clock: same history, same verdict.

mod model;

use std::cell::Cell;

use model::Key;
pub use model::{Answer, Deadline, Operation, Record, Rules};

/// The longest history of one key that is searched.
pub const RECORDS_MAX: usize = 300;

/// What the search found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some order of single steps explains every answer.
    Linearizable,
    /// No order does.
    Violation,
    /// The history is longer than [`RECORDS_MAX`], or the step budget ran out before an answer.
    Undecided,
}

/// Judges the history of one key. `steps_max` bounds the search; 200,000 steps take well under a
/// second.
pub fn check(records: &[Record], rules: Rules, steps_max: u64) -> Verdict {
    if records.len() > RECORDS_MAX {
        return Verdict::Undecided;
    }
    // Unanswered writes whose mark nobody ever saw are what makes the search explode. An order that
    // works without them also works with them put last, so leaving them out can only accept rightly.
    let seen = |record: &&Record| record.answer != Answer::Unknown || is_seen(record, records);
    let answered: Vec<&Record> = records.iter().filter(seen).collect();
    match search(&answered, rules, steps_max) {
        Verdict::Linearizable => Verdict::Linearizable,
        _ if answered.len() == records.len() => search(&answered, rules, steps_max),
        _ => search(&records.iter().collect::<Vec<_>>(), rules, steps_max),
    }
}

/// Whether an answer carries the bytes that the unanswered `record` would have written.
fn is_seen(record: &Record, records: &[Record]) -> bool {
    let Some(written) = record.operation.written() else { return true };
    records.iter().any(|other| match &other.answer {
        Answer::Value { value, .. } => value.windows(written.len().max(1)).any(|w| w == written),
        _ => false,
    })
}

thread_local! {
    /// Steps left to the search of this thread. The checker's model has no place for state of its
    /// own, and its time limit is a wall clock, which would make verdicts depend on the machine.
    static STEPS_LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Takes one step from the budget; false when it is used up.
fn take_step() -> bool {
    STEPS_LEFT.with(|left| {
        let steps = left.get();
        left.set(steps.saturating_sub(1));
        steps > 0
    })
}

fn search(records: &[&Record], rules: Rules, steps_max: u64) -> Verdict {
    let history: Vec<_> = records
        .iter()
        .map(|record| porcupine_rs::Operation::<Key> {
            client_id: Some(record.client),
            call_time: record.called,
            return_time: record.returned,
            op: model::Step { record: (*record).clone(), rules },
            metadata: None,
        })
        .collect();
    STEPS_LEFT.with(|left| left.set(steps_max));
    let linearizable = porcupine_rs::check_operations(&history);
    let exhausted = STEPS_LEFT.with(|left| left.get() == 0);
    match (linearizable, exhausted) {
        (true, _) => Verdict::Linearizable,
        (false, true) => Verdict::Undecided,
        (false, false) => Verdict::Violation,
    }
}
