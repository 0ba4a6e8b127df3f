//! One key of a cache, as its clients are entitled to see it.

use porcupine_rs::Model;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read the item.
    Get,
    /// Write it whatever is there.
    Set(Vec<u8>),
    /// Write it if nothing is there.
    Add(Vec<u8>),
    /// Write it if something is there.
    Replace(Vec<u8>),
    /// Put bytes behind the value.
    Append(Vec<u8>),
    /// Put bytes before the value.
    Prepend(Vec<u8>),
    /// Write it if the version is still this one.
    CompareAndSet {
        /// The version the client saw.
        expected: u64,
        /// The new value.
        value: Vec<u8>,
    },
    /// Remove it.
    Delete,
    /// Give it a new deadline.
    Touch,
    /// Read it and give it a new deadline.
    GetAndTouch,
    /// Change a decimal number: up wrapping, down not below zero.
    Count {
        /// Which way.
        up: bool,
        /// By how much.
        delta: u64,
        /// The number that is written when nothing is there.
        create: Option<u64>,
    },
    /// Not a client's: every copy was lost and the loss was reported.
    Lose,
}

impl Operation {
    /// The bytes that prove that this operation happened, when it has such bytes.
    pub(crate) fn written(&self) -> Option<&[u8]> {
        match self {
            Self::Set(value)
            | Self::Add(value)
            | Self::Replace(value)
            | Self::Append(value)
            | Self::Prepend(value)
            | Self::CompareAndSet { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// What the client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The item, with its version when the protocol tells it.
    Value {
        /// Its bytes.
        value: Vec<u8>,
        /// Its version.
        version: Option<u64>,
    },
    /// There is no such item (a miss, not found, or not stored for want of an item).
    Absent,
    /// There is such an item already (an add).
    Present,
    /// The version is another one (a compare-and-set).
    Conflict,
    /// Written, with the new version when the protocol tells it.
    Stored {
        /// The version the write got.
        version: Option<u64>,
    },
    /// It has its new deadline; a touch is no write, so the version stays.
    Touched {
        /// The item's version, when the protocol tells it.
        version: Option<u64>,
    },
    /// The number after the change.
    Number {
        /// The new number.
        number: u64,
        /// The version the write got.
        version: Option<u64>,
    },
    /// The value is no decimal number.
    NotANumber,
    /// Removed.
    Deleted,
    /// No answer came: it happened at any moment after the call, or never.
    Unknown,
}

/// When an item ends, as seen from outside: node clocks differ, so it is a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline {
    /// From here on the item may be gone.
    pub earliest: i64,
    /// After this it must be gone.
    pub latest: i64,
}

/// One operation with its answer. Times are those of one clock that sees everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who asked.
    pub client: u32,
    /// When it was asked.
    pub called: i64,
    /// When the answer came; `i64::MAX` for [`Answer::Unknown`].
    pub returned: i64,
    /// What was asked.
    pub operation: Operation,
    /// The deadline that the item gets by a set, add, replace, compare-and-set or touch.
    pub deadline: Option<Deadline>,
    /// What was answered.
    pub answer: Answer,
}

/// What kind of cache it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Items may vanish at any moment (a cache that evicts).
    pub evicts: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) record: Record,
    pub(crate) rules: Rules,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Item {
    value: Vec<u8>,
    version: Option<u64>,
    deadline: Option<Deadline>,
}

/// One possible state of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Possible {
    item: Option<Item>,
    /// The highest version seen so far: versions rise, also over a delete.
    version_floor: u64,
}

#[derive(Clone)]
pub(crate) struct Key;

impl Model for Key {
    type State = Vec<Possible>;
    type Op = Step;
    type Metadata = ();

    fn init() -> Self::State {
        vec![Possible::default()]
    }

    fn step(state: &Self::State, step: &Step) -> (bool, Self::State) {
        if !crate::take_step() {
            return (false, Vec::new());
        }
        let mut next = Vec::with_capacity(state.len());
        for possible in state {
            for seen in views(possible, step) {
                next.extend(after(&seen, &step.record));
            }
            if step.record.answer == Answer::Unknown {
                next.push(possible.clone());
            }
        }
        next.sort_unstable();
        next.dedup();
        (!next.is_empty(), next)
    }
}

/// What the operation may find: the item, or nothing because it ended or was evicted.
fn views(possible: &Possible, step: &Step) -> Vec<Possible> {
    let gone = Possible { item: None, version_floor: possible.version_floor };
    let Some(item) = &possible.item else { return vec![gone] };
    let (may_be_gone, must_be_gone) = match item.deadline {
        Some(deadline) => {
            (step.record.returned >= deadline.earliest, step.record.called > deadline.latest)
        }
        None => (false, false),
    };
    match (must_be_gone, may_be_gone || step.rules.evicts) {
        (true, _) => vec![gone],
        (false, true) => vec![possible.clone(), gone],
        (false, false) => vec![possible.clone()],
    }
}

/// The state after the operation, if its answer fits what it found.
fn after(seen: &Possible, record: &Record) -> Option<Possible> {
    let unknown = record.answer == Answer::Unknown;
    let stay = |answer: &Answer| (unknown || record.answer == *answer).then(|| seen.clone());
    let write = |value: Vec<u8>, deadline| stored(seen, value, deadline, record);
    match (&record.operation, &seen.item) {
        (Operation::Get, Some(item)) => read(seen, item, record),
        (Operation::GetAndTouch, Some(item)) => {
            read(seen, &Item { deadline: record.deadline, ..item.clone() }, record)
        }
        (Operation::Lose, _) => Some(Possible { item: None, ..seen.clone() }),
        (Operation::Set(value), _) => write(value.clone(), record.deadline),
        (Operation::Add(value), None) => write(value.clone(), record.deadline),
        (Operation::Add(_), Some(_)) => stay(&Answer::Present),
        (Operation::Count { create: Some(number), .. }, None) => {
            counted(seen, *number, record.deadline, record)
        }
        (_, None) => stay(&Answer::Absent),
        (Operation::Replace(value), Some(_)) => write(value.clone(), record.deadline),
        (Operation::Append(tail), Some(item)) => {
            write([item.value.as_slice(), tail].concat(), item.deadline)
        }
        (Operation::Prepend(head), Some(item)) => {
            write([head, item.value.as_slice()].concat(), item.deadline)
        }
        (Operation::CompareAndSet { expected, value }, Some(item)) => {
            let matches = item.version.is_none_or(|version| version == *expected);
            let differs = item.version != Some(*expected);
            match &record.answer {
                Answer::Conflict => differs.then(|| seen.clone()),
                _ if matches => write(value.clone(), record.deadline),
                Answer::Unknown => Some(seen.clone()),
                _ => None,
            }
        }
        (Operation::Delete, Some(_)) => (unknown || record.answer == Answer::Deleted)
            .then(|| Possible { item: None, ..seen.clone() }),
        (Operation::Touch, Some(item)) => touched(seen, item, record),
        (Operation::Count { up, delta, .. }, Some(item)) => {
            let text = std::str::from_utf8(&item.value).ok();
            match text.and_then(|text| text.parse::<u64>().ok()) {
                Some(number) if *up => {
                    counted(seen, number.wrapping_add(*delta), item.deadline, record)
                }
                Some(number) => counted(seen, number.saturating_sub(*delta), item.deadline, record),
                None => stay(&Answer::NotANumber),
            }
        }
    }
}

/// A hit must show exactly the item; it also fixes a version that nobody was told before.
fn read(seen: &Possible, item: &Item, record: &Record) -> Option<Possible> {
    match &record.answer {
        Answer::Value { value, version } if *value == item.value => told(seen, item, *version),
        Answer::Unknown => told(seen, item, None),
        _ => None,
    }
}

fn touched(seen: &Possible, item: &Item, record: &Record) -> Option<Possible> {
    let item = Item { deadline: record.deadline, ..item.clone() };
    match record.answer {
        Answer::Touched { version } => told(seen, &item, version),
        Answer::Unknown => told(seen, &item, None),
        _ => None,
    }
}

/// The state with this item, whose version the client was told.
fn told(seen: &Possible, item: &Item, version: Option<u64>) -> Option<Possible> {
    let fits = match (item.version, version) {
        (Some(own), Some(told)) => own == told,
        (None, Some(told)) => told > seen.version_floor,
        (_, None) => true,
    };
    fits.then(|| Possible {
        item: Some(Item { version: version.or(item.version), ..item.clone() }),
        version_floor: version.map_or(seen.version_floor, |told| told.max(seen.version_floor)),
    })
}

/// The state after a write that took effect.
fn stored(
    seen: &Possible,
    value: Vec<u8>,
    deadline: Option<Deadline>,
    record: &Record,
) -> Option<Possible> {
    match record.answer {
        Answer::Unknown => written(seen, value, deadline, None),
        Answer::Stored { version } => written(seen, value, deadline, version),
        _ => None,
    }
}

/// The state after a count that came to `number`.
fn counted(
    seen: &Possible,
    number: u64,
    deadline: Option<Deadline>,
    record: &Record,
) -> Option<Possible> {
    let version = match &record.answer {
        Answer::Unknown => None,
        Answer::Number { number: told, version } if number == *told => *version,
        _ => return None,
    };
    written(seen, number.to_string().into_bytes(), deadline, version)
}

fn written(
    seen: &Possible,
    value: Vec<u8>,
    deadline: Option<Deadline>,
    version: Option<u64>,
) -> Option<Possible> {
    if version.is_some_and(|version| version <= seen.version_floor) {
        return None;
    }
    Some(Possible {
        item: Some(Item { value, version, deadline }),
        version_floor: version.unwrap_or(seen.version_floor),
    })
}
