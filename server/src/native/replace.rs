//! Writes and deletes that hand back what they replaced.
//!
//! The store does not give the old value away with a write, so it is read first, and the write is
//! made to depend on the version that was read. When another write came between, both are done
//! again, a bounded number of times; whatever the client is told is thus true at one moment.

use kiln_engine::{GetOptions, Value};
use kiln_protocol::{
    command::{Command, Delete, Outcome, Store, StoreMode},
    native::{
        ErrorCode, Failure, Old, Value as WireValue,
        respond::{self, element},
    },
};

use crate::{
    caches::Cache,
    connection::Context,
    execute::{Sink, execute},
    native::{busy, item::Answer},
};

/// Tries before the client is told that the key is too busy.
const ATTEMPTS_MAX: usize = 32;

/// An item as it was.
struct Was {
    version: u64,
    flags: u32,
    value: Vec<u8>,
}

/// Runs a write or delete and answers it with what it replaced.
pub(super) fn run(
    context: &Context<'_>,
    cache: &Cache,
    command: &Command<'_>,
    hash: u64,
    answer: Answer,
    replies: &mut Vec<u8>,
) {
    let invalidates = match command {
        Command::Store(write) => write.invalidate,
        _ => false,
    };
    if invalidates {
        let text = "return_old and invalidate do not go together";
        return answer.failure(&Failure::refused(ErrorCode::BadArgument, text), replies);
    }
    for _ in 0..ATTEMPTS_MAX {
        let was = read(cache, command.key(), hash, context.now_ms);
        let (command, conditional) =
            match depending_on(command, was.as_ref(), cache.store.value_len_max()) {
                Step::Run { command, conditional } => (command, conditional),
                Step::Answer(outcome) => return answer.outcome(&outcome, replies),
            };
        if let (Some(was), Answer::Element { room }) = (&was, answer)
            && was.value.len() > room
        {
            let failure = busy("the answer to the batch is full; ask for this item alone");
            return answer.failure(&failure, replies);
        }
        let outcome = outcome(cache, &command, hash, context.now_ms);
        if !(conditional && is_conflict(&command, &outcome)) {
            return tell(&outcome, was.as_ref(), answer, replies);
        }
    }
    answer.failure(&busy("others write this key all the time; try again"), replies);
}

/// What follows from what was read.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    /// The command made to depend on what was read; `conditional` when it is to be done again if
    /// that has changed.
    Run { command: Command<'a>, conditional: bool },
    /// Nothing is to be done, as was true when the item was read. To run the command all the same
    /// could do something after all, and to something else than what was read.
    Answer(Outcome),
}

fn depending_on<'a>(command: &Command<'a>, was: Option<&Was>, value_len_max: usize) -> Step<'a> {
    let mut command = *command;
    let mut conditional = true;
    match (&mut command, was) {
        // A condition of the client's own. When it fails only later, that is the answer as well.
        (Command::Store(Store { compare: Some(compare), .. }), was)
        | (Command::Delete(Delete { compare: Some(compare), .. }), was)
            if was.is_none_or(|was| was.version != *compare) =>
        {
            return Step::Answer(was.map_or(Outcome::NotFound, |_| Outcome::Exists));
        }
        (Command::Store(write), Some(was)) => {
            let extends = matches!(write.mode, StoreMode::Append | StoreMode::Prepend);
            let grows_too_large = extends && was.value.len() + write.value.len() > value_len_max;
            if write.mode == StoreMode::Add || grows_too_large {
                return Step::Answer(Outcome::NotStored);
            }
            conditional = write.compare.is_none();
            write.compare = Some(was.version);
        }
        (Command::Store(write), None) => match (write.mode, write.vivify) {
            (StoreMode::Set, _) => write.mode = StoreMode::Add,
            (StoreMode::Append | StoreMode::Prepend, Some(ttl)) => {
                write.mode = StoreMode::Add;
                write.ttl = ttl;
                write.vivify = None;
            }
            // Not stored, it is answered so.
            (StoreMode::Add, _) => conditional = false,
            (StoreMode::Replace | StoreMode::Append | StoreMode::Prepend, _) => {
                return Step::Answer(Outcome::NotStored);
            }
        },
        (Command::Delete(delete), Some(was)) => {
            conditional = delete.compare.is_none();
            delete.compare = Some(was.version);
        }
        (Command::Delete(_), None) => return Step::Answer(Outcome::NotFound),
        // These answer with numbers and versions, which tell as much.
        (Command::Get(_) | Command::Arithmetic(_) | Command::Touch(_), _) => conditional = false,
    }
    Step::Run { command, conditional }
}

/// Whether another write came between the read and this command.
fn is_conflict(command: &Command<'_>, outcome: &Outcome) -> bool {
    match command {
        // Made to depend on the absence.
        Command::Store(write) if write.compare.is_none() => *outcome == Outcome::NotStored,
        _ => matches!(outcome, Outcome::Exists | Outcome::NotFound),
    }
}

fn read(cache: &Cache, key: &[u8], hash: u64, now_ms: u64) -> Option<Was> {
    let options = GetOptions { no_bump: true, ..GetOptions::default() };
    cache.store.get(key, hash, &options, now_ms, |info, value| Was {
        version: info.version,
        flags: info.flags,
        value: match value {
            Value::Inline(bytes) => bytes.to_vec(),
            Value::Large(pinned) => pinned.slices().concat(),
        },
    })
}

fn outcome(cache: &Cache, command: &Command<'_>, hash: u64, now_ms: u64) -> Outcome {
    struct Keep<'a>(&'a mut Outcome);
    impl Sink for Keep<'_> {
        fn hit(self, item: &kiln_protocol::command::ItemMeta, _: Value<'_>) {
            *self.0 = Outcome::Hit(*item);
        }
        fn outcome(self, outcome: &Outcome) {
            *self.0 = *outcome;
        }
    }
    let mut outcome = Outcome::NotFound;
    execute(cache, command, hash, now_ms, Keep(&mut outcome));
    outcome
}

fn tell(outcome: &Outcome, was: Option<&Was>, answer: Answer, replies: &mut Vec<u8>) {
    let old = was.map(|was| Old {
        version: was.version,
        flags: was.flags,
        value: WireValue::Plain(&was.value),
    });
    match answer {
        Answer::Frame { id } => respond::outcome(replies, id, outcome, old),
        Answer::Element { .. } => element::outcome(replies, outcome, old),
        Answer::None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_protocol::command::Ttl;

    const VALUE_LEN_MAX: usize = 10;

    fn was(version: u64, len: usize) -> Was {
        Was { version, flags: 0, value: vec![b'x'; len] }
    }

    fn store(mode: StoreMode, compare: Option<u64>) -> Command<'static> {
        Command::Store(Store { mode, compare, ..Store::set(b"k", b"v") })
    }

    fn delete(compare: Option<u64>) -> Command<'static> {
        Command::Delete(Delete { compare, ..Delete::plain(b"k") })
    }

    fn step<'a>(command: &Command<'a>, was: Option<&Was>) -> Step<'a> {
        depending_on(command, was, VALUE_LEN_MAX)
    }

    fn run(command: Command<'_>, conditional: bool) -> Step<'_> {
        Step::Run { command, conditional }
    }

    #[test]
    fn a_write_depends_on_what_was_read() {
        let was = was(7, 1);
        for mode in [StoreMode::Set, StoreMode::Replace, StoreMode::Append, StoreMode::Prepend] {
            let expected = run(store(mode, Some(7)), true);
            assert_eq!(step(&store(mode, None), Some(&was)), expected);
        }
        let expected = run(store(StoreMode::Add, None), true);
        assert_eq!(step(&store(StoreMode::Set, None), None), expected);
        assert_eq!(step(&delete(None), Some(&was)), run(delete(Some(7)), true));
    }

    #[test]
    fn what_does_nothing_to_what_was_read_is_not_run() {
        let was = was(7, 1);
        let answer = |outcome| Step::Answer(outcome);
        let not_stored = || answer(Outcome::NotStored);
        assert_eq!(step(&store(StoreMode::Add, None), Some(&was)), not_stored());
        assert_eq!(step(&store(StoreMode::Add, Some(7)), Some(&was)), not_stored());
        for mode in [StoreMode::Replace, StoreMode::Append, StoreMode::Prepend] {
            assert_eq!(step(&store(mode, None), None), not_stored());
        }
        assert_eq!(step(&delete(None), None), answer(Outcome::NotFound));
    }

    #[test]
    fn a_condition_of_the_client_is_never_replaced() {
        let was = was(7, 1);
        for command in [store(StoreMode::Set, Some(7)), delete(Some(7))] {
            assert_eq!(step(&command, Some(&was)), run(command, false));
            assert_eq!(step(&command, None), Step::Answer(Outcome::NotFound));
        }
        for command in [store(StoreMode::Set, Some(8)), delete(Some(6))] {
            assert_eq!(step(&command, Some(&was)), Step::Answer(Outcome::Exists));
        }
        // Whether it is there is all that this one asks.
        let add = store(StoreMode::Add, None);
        assert_eq!(step(&add, None), run(add, false));
    }

    #[test]
    fn an_append_that_creates_depends_on_the_absence() {
        let vivify = Some(Ttl::After(5));
        let append =
            Command::Store(Store { mode: StoreMode::Append, vivify, ..Store::set(b"k", b"v") });
        let add = Store { mode: StoreMode::Add, ttl: Ttl::After(5), ..Store::set(b"k", b"v") };
        assert_eq!(step(&append, None), run(Command::Store(add), true));
    }

    #[test]
    fn a_value_that_would_grow_too_large_is_refused_at_once() {
        let append = store(StoreMode::Append, None);
        assert!(matches!(step(&append, Some(&was(7, VALUE_LEN_MAX - 1))), Step::Run { .. }));
        let refused = step(&append, Some(&was(7, VALUE_LEN_MAX)));
        assert_eq!(refused, Step::Answer(Outcome::NotStored));
        // Should the store refuse it for another reason, that is no conflict either.
        let compared = store(StoreMode::Append, Some(7));
        assert!(!is_conflict(&compared, &Outcome::NotStored));
        assert!(is_conflict(&compared, &Outcome::Exists));
        assert!(is_conflict(&store(StoreMode::Add, None), &Outcome::NotStored));
    }
}
