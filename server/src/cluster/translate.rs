//! Between what front ends say and what the replication core says.

use bytes::Bytes;
use kiln_cluster::{
    effect::{self, Item, Marks, Operation},
    ids::Version,
    node::{Refusal, Reply},
};
use kiln_engine::Value;
use kiln_protocol::command::{
    Arithmetic, Command, Delete, Get, ItemMeta, Outcome, Reason, RefillRight, Store,
};

use crate::execute::Sink;

/// What came of a request, with the value of a hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// The value, when it is a hit.
    pub(crate) value: Bytes,
}

impl Answer {
    /// Tells a client.
    pub(crate) fn tell(self, sink: impl Sink) {
        match self.outcome {
            Outcome::Hit(item) => sink.hit(&item, Value::Inline(&self.value)),
            outcome => sink.outcome(&outcome),
        }
    }
}

/// A command as the core evaluates it. Owns its bytes, because it outlives the batch.
pub(crate) fn operation(command: &Command<'_>) -> Result<Operation, Reason> {
    let version = |version: Option<u64>| version.map(Version);
    // A version of the client's own choice would break the order that copies rely on.
    let chosen = match *command {
        Command::Get(get) => get.version,
        Command::Store(store) => store.version,
        Command::Delete(delete) => delete.version,
        Command::Arithmetic(arithmetic) => arithmetic.version,
        Command::Touch(_) => None,
    };
    if chosen.is_some() {
        return Err(Reason::Unsupported);
    }
    Ok(match *command {
        Command::Get(get) => {
            let Get { touch, vivify, recache_below_ms, no_bump, may_refill, .. } = get;
            let plain = vivify.is_none() && recache_below_ms.is_none() && !no_bump && !may_refill;
            if plain {
                Operation::Get { touch }
            } else {
                Operation::Look { touch, vivify, recache_below_ms, no_bump, may_refill }
            }
        }
        Command::Store(store) => {
            let Store { mode, flags, ttl, invalidate, vivify, .. } = store;
            let value = Bytes::copy_from_slice(store.value);
            let compare = version(store.compare);
            if invalidate || vivify.is_some() {
                Operation::Amend { mode, value, flags, ttl, compare, invalidate, vivify }
            } else {
                Operation::Store { mode, value, flags, ttl, compare }
            }
        }
        Command::Delete(delete) => {
            let Delete { invalidate, ttl, keep_empty, .. } = delete;
            let compare = version(delete.compare);
            if invalidate || ttl.is_some() || keep_empty {
                Operation::Mark { compare, invalidate, ttl, keep_empty }
            } else {
                Operation::Delete { compare }
            }
        }
        Command::Touch(touch) => Operation::Touch { ttl: touch.ttl },
        Command::Arithmetic(arithmetic) => {
            let Arithmetic { direction, delta, create, touch, .. } = arithmetic;
            let compare = version(arithmetic.compare);
            Operation::Arithmetic { direction, delta, compare, create, touch }
        }
    })
}

/// A reply of the core as front ends know it. `sent` is the command that it answers.
pub(crate) fn answer(reply: Reply, sent: &Command<'_>, now_ms: u64) -> Answer {
    let plain = |outcome| Answer { outcome, value: Bytes::new() };
    let at = |version: Version, value_len| ItemMeta {
        value_len,
        version: version.0,
        ..ItemMeta::default()
    };
    let sent_len = match sent {
        Command::Store(store) => store.value.len(),
        _ => 0,
    };
    let outcome = match reply {
        Reply::Done(outcome) => outcome,
        Reply::NotApplied(Refusal::OutOfMemory) => return plain(Outcome::OutOfMemory),
        Reply::NotApplied(refusal) => return plain(Outcome::NotApplied(reason(refusal))),
        Reply::Indeterminate => return plain(Outcome::Indeterminate),
    };
    plain(match outcome {
        effect::Outcome::Hit(item) => {
            let outcome = Outcome::Hit(meta(&item, now_ms));
            return Answer { outcome, value: item.value };
        }
        effect::Outcome::Won(item) => {
            let meta = ItemMeta { refill: RefillRight::Won, ..meta(&item, now_ms) };
            return Answer { outcome: Outcome::Hit(meta), value: item.value };
        }
        effect::Outcome::NotFound => Outcome::NotFound,
        effect::Outcome::Lost(_) => Outcome::Lost,
        effect::Outcome::Stored(version) => Outcome::Stored(at(version, sent_len)),
        effect::Outcome::NotStored => Outcome::NotStored,
        effect::Outcome::Exists => Outcome::Exists,
        effect::Outcome::Deleted => Outcome::Deleted,
        effect::Outcome::Touched(version) => Outcome::Touched(at(version, 0)),
        effect::Outcome::Number(number, version) => {
            let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
            Outcome::Number(number, at(version, digits))
        }
        effect::Outcome::NotANumber => Outcome::NotANumber,
        effect::Outcome::TooLarge => Outcome::TooLarge,
        effect::Outcome::OutOfMemory => Outcome::OutOfMemory,
    })
}

/// An item as protocols describe it.
fn meta(item: &Item, now_ms: u64) -> ItemMeta {
    ItemMeta {
        value_len: item.value.len(),
        flags: item.flags,
        version: item.version.0,
        ttl_ms: item.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms)),
        stale: item.marks.has(Marks::STALE),
        refill: match item.marks.has(Marks::TAKEN) {
            true => RefillRight::Taken,
            false => RefillRight::None,
        },
        ..ItemMeta::default()
    }
}

fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NotPrimary(_) | Refusal::NotReady => Reason::NotReady,
        Refusal::Busy => Reason::Busy,
        Refusal::TooFewInSync { .. } => Reason::TooFewCopies,
        Refusal::Blocked(_) => Reason::Blocked,
        Refusal::NoSuchCache => Reason::NoSuchCache,
        Refusal::TimedOut => Reason::TimedOut,
        Refusal::Unsupported => Reason::Unsupported,
        // Told apart above; and what later versions add is nothing that can be promised.
        _ => Reason::NotReady,
    }
}
