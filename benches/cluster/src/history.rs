//! What all clients did to each key, and whether any order explains it.
//!
//! The judge searches histories of at most [`RECORDS_MAX`] operations, so keys are used for a while
//! and then replaced by fresh ones: a slot always has a key, and a key that has been asked often
//! enough is put aside. At the end of a cycle every key that was put aside is read once more, and
//! that read belongs to its history: an acknowledged write that is gone has then no order either.
//!
//! Cost: one uncontended lock for each operation; memory is bounded by the operations of one cycle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use kiln_linearizability::{
    Answer, Deadline, Operation, RECORDS_MAX, Record, Rules, Verdict, check,
};
use parking_lot::Mutex;

use crate::ask::Told;

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Values of which no two are alike.
    Register,
    /// A number.
    Counter,
}

/// One key and all that was asked of it.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) purpose: Use,
    /// Operations begun.
    begun: AtomicUsize,
    records: Mutex<Vec<Record>>,
}

/// The keys in use and those that were put aside.
#[derive(Debug)]
pub(crate) struct History {
    base: Instant,
    prefix: String,
    slots: Vec<Mutex<Arc<Key>>>,
    aside: Mutex<Vec<Arc<Key>>>,
    made: AtomicU64,
    /// Makes values unlike all others.
    marks: AtomicU64,
}

/// Where a request stands in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Called(i64);

impl History {
    pub(crate) fn new(prefix: &str, slots: usize) -> Self {
        let mut history = Self {
            base: Instant::now(),
            prefix: prefix.to_owned(),
            slots: Vec::new(),
            aside: Mutex::default(),
            made: AtomicU64::new(0),
            marks: AtomicU64::new(0),
        };
        history.slots = (0..slots.max(1)).map(|at| Mutex::new(history.fresh(at))).collect();
        history
    }

    /// The key of a slot, for the next operations of a client.
    pub(crate) fn key(&self, slot: usize) -> Arc<Key> {
        let at = slot % self.slots.len();
        let mut current = self.slots[at].lock();
        if current.begun.load(Relaxed) >= BEGUN_MAX {
            let used = std::mem::replace(&mut *current, self.fresh(at));
            self.aside.lock().push(used);
        }
        Arc::clone(&current)
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A value that nobody else writes.
    pub(crate) fn mark(&self, client: usize) -> Vec<u8> {
        format!("<{client}.{}>", self.marks.fetch_add(1, Relaxed)).into_bytes()
    }

    pub(crate) fn call(&self) -> Called {
        Called(self.now())
    }

    /// Writes down what became of a request. One that was not applied leaves no trace.
    pub(crate) fn note(
        &self,
        key: &Key,
        client: usize,
        called: Called,
        operation: Operation,
        told: &Told,
    ) {
        let (answer, returned) = match told {
            Told::Answer(answer) => (answer.clone(), self.now()),
            Told::Unknown(_) => (Answer::Unknown, i64::MAX),
            Told::NotApplied(_) => return,
        };
        key.begun.fetch_add(1, Relaxed);
        key.records.lock().push(Record {
            client: u32::try_from(client).unwrap_or(u32::MAX),
            called: called.0,
            returned,
            operation,
            deadline: None::<Deadline>,
            answer,
        });
    }

    /// Puts every key aside and hands out all that are. Nobody may be asking meanwhile.
    pub(crate) fn take(&self) -> Vec<Arc<Key>> {
        let mut taken = std::mem::take(&mut *self.aside.lock());
        for (at, slot) in self.slots.iter().enumerate() {
            let mut current = slot.lock();
            if current.begun.load(Relaxed) > 0 {
                taken.push(std::mem::replace(&mut *current, self.fresh(at)));
            }
        }
        taken
    }

    fn fresh(&self, slot: usize) -> Arc<Key> {
        let number = self.made.fetch_add(1, Relaxed);
        Arc::new(Key {
            name: format!("{}{slot}.{number}", self.prefix),
            purpose: if slot.is_multiple_of(2) { Use::Register } else { Use::Counter },
            begun: AtomicUsize::new(0),
            records: Mutex::default(),
        })
    }

    fn now(&self) -> i64 {
        i64::try_from(self.base.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

impl Key {
    /// Judges all that was asked of this key.
    pub(crate) fn judge(&self) -> Verdict {
        check(&self.records.lock(), Rules { evicts: false }, STEPS_MAX)
    }

    pub(crate) fn operations(&self) -> usize {
        self.records.lock().len()
    }

    /// For people who look for what went wrong.
    pub(crate) fn text(&self) -> String {
        let mut records = self.records.lock().clone();
        records.sort_by_key(|record| record.called);
        let line = |record: &Record| {
            let until = match record.returned {
                i64::MAX => "          -".to_owned(),
                returned => format!("{:11.6}", returned as f64 / 1e9),
            };
            let operation = shown(format!("{:?}", record.operation));
            let answer = shown(format!("{:?}", record.answer));
            let called = record.called as f64 / 1e9;
            format!("{called:11.6} {until}  client {:3}  {operation} -> {answer}\n", record.client)
        };
        records.iter().map(line).collect()
    }
}

/// Byte lists as text: values of trials are text.
fn shown(debug: String) -> String {
    let mut out = String::new();
    let mut rest = debug.as_str();
    while let Some((before, after)) = rest.split_once('[') {
        let Some((list, behind)) = after.split_once(']') else { break };
        let bytes: Option<Vec<u8>> =
            list.split(", ").map(|byte| byte.parse().ok()).collect::<Option<_>>();
        out.push_str(before);
        match bytes {
            Some(bytes) => out.push_str(&format!("{:?}", String::from_utf8_lossy(&bytes))),
            None => out.push_str(&format!("[{list}]")),
        }
        rest = behind;
    }
    out + rest
}

/// Leaves room for what is still under way when a key is put aside, and for the last read.
const BEGUN_MAX: usize = RECORDS_MAX - 60;

/// Steps of the search for each key.
const STEPS_MAX: u64 = 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn did(history: &History, key: &Key, operation: Operation, answer: Answer) {
        let called = history.call();
        history.note(key, 1, called, operation, &Told::Answer(answer));
    }

    #[test]
    fn a_write_that_is_gone_at_the_last_read_is_a_violation() {
        let history = History::new("t", 1);
        let key = history.key(0);
        did(&history, &key, Operation::Set(b"a".to_vec()), Answer::Stored { version: Some(1) });
        assert_eq!(key.judge(), Verdict::Linearizable);

        did(&history, &key, Operation::Get, Answer::Absent);

        assert_eq!(key.judge(), Verdict::Violation);
        assert!(key.text().contains("Set(\"a\") -> Stored"), "{}", key.text());
    }

    #[test]
    fn an_increment_done_twice_is_a_violation_and_an_unknown_one_is_not() {
        let count = || Operation::Count { up: true, delta: 1, create: Some(1) };
        let number = |number| Answer::Number { number, version: None };
        let history = History::new("t", 2);
        let key = history.key(1);
        assert_eq!(key.purpose, Use::Counter);
        did(&history, &key, count(), number(1));
        let called = history.call();
        history.note(&key, 1, called, count(), &Told::Unknown("lost".to_owned()));
        did(&history, &key, count(), number(3));
        assert_eq!(key.judge(), Verdict::Linearizable);

        did(&history, &key, count(), number(5));

        assert_eq!(key.judge(), Verdict::Violation);
    }

    #[test]
    fn a_key_is_replaced_before_its_history_is_too_long_to_judge() {
        let history = History::new("t", 1);
        let first = history.key(0);
        for _ in 0..BEGUN_MAX {
            did(&history, &first, Operation::Get, Answer::Absent);
        }
        assert_ne!(history.key(0).name, first.name);
        let taken = history.take();
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].operations(), taken[0].judge()), (BEGUN_MAX, Verdict::Linearizable));
    }

    #[test]
    fn what_was_not_applied_leaves_no_trace() {
        let history = History::new("t", 1);
        let key = history.key(0);
        let called = history.call();
        let told = Told::NotApplied("no".to_owned());
        history.note(&key, 1, called, Operation::Set(b"a".to_vec()), &told);
        assert_eq!(key.operations(), 0);
        assert!(history.take().is_empty());
    }
}
