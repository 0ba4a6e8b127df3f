//! Writes and deletes that hand back what they replaced.
//!
//! The store does not give the old value away with a write, so it is read first, and the write is
//! made to depend on the version that was read. When another write came between, both are done
//! again, a bounded number of times; whatever the client is told is thus true at one moment.

use kiln_engine::{GetOptions, Value};
use kiln_protocol::{
    command::{Command, Outcome, StoreMode},
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
        if let (Some(was), Answer::Element { room }) = (&was, answer)
            && was.value.len() > room
        {
            let failure = busy("the answer to the batch is full; ask for this item alone");
            return answer.failure(&failure, replies);
        }
        let Some((command, conditional)) = depending_on(command, was.as_ref()) else {
            return answer.outcome(&Outcome::NotFound, replies);
        };
        let outcome = outcome(cache, &command, hash, context.now_ms);
        match outcome {
            // Another write came between the read and this.
            Outcome::Exists | Outcome::NotFound | Outcome::NotStored if conditional => {}
            _ => return tell(&outcome, was.as_ref(), answer, replies),
        }
    }
    answer.failure(&busy("others write this key all the time; try again"), replies);
}

/// The command made to depend on what was read, and whether it now fails when that has changed.
/// `None` when there is nothing to do.
fn depending_on<'a>(command: &Command<'a>, was: Option<&Was>) -> Option<(Command<'a>, bool)> {
    let mut command = *command;
    let mut conditional = true;
    match (&mut command, was) {
        // A condition of the client's own that fails anyway.
        (Command::Store(write), was)
            if write.compare.is_some() && write.compare != was.map(|was| was.version) =>
        {
            conditional = false;
        }
        (Command::Store(write), _) if write.mode == StoreMode::Add => conditional = false,
        (Command::Store(write), Some(was)) => {
            // The client's own compare is this version: when it fails now, that is the answer.
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
            _ => conditional = false,
        },
        (Command::Delete(delete), Some(was)) => {
            if delete.compare.is_some_and(|compare| compare != was.version) {
                conditional = false;
            } else {
                conditional = delete.compare.is_none();
                delete.compare = Some(was.version);
            }
        }
        (Command::Delete(_), None) => return None,
        // These answer with numbers and versions, which tell as much.
        (Command::Get(_) | Command::Arithmetic(_) | Command::Touch(_), _) => conditional = false,
    }
    Some((command, conditional))
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
    use kiln_protocol::command::{Delete, Store, Ttl};

    fn was(version: u64) -> Was {
        Was { version, flags: 0, value: Vec::new() }
    }

    fn store(mode: StoreMode, compare: Option<u64>) -> Command<'static> {
        Command::Store(Store { mode, compare, ..Store::set(b"k", b"v") })
    }

    #[test]
    fn a_write_depends_on_the_version_that_was_read() {
        let (command, conditional) =
            depending_on(&store(StoreMode::Set, None), Some(&was(7))).unwrap();
        assert_eq!((command, conditional), (store(StoreMode::Set, Some(7)), true));
        let (command, conditional) = depending_on(&store(StoreMode::Set, None), None).unwrap();
        assert_eq!((command, conditional), (store(StoreMode::Add, None), true));
        let (command, conditional) =
            depending_on(&Command::Delete(Delete::plain(b"k")), Some(&was(7))).unwrap();
        let expected = Command::Delete(Delete { compare: Some(7), ..Delete::plain(b"k") });
        assert_eq!((command, conditional), (expected, true));
    }

    #[test]
    fn a_condition_of_the_client_is_never_replaced() {
        for compare in [7, 8] {
            let given = store(StoreMode::Set, Some(compare));
            assert_eq!(depending_on(&given, Some(&was(7))).unwrap(), (given, false));
        }
        let add = store(StoreMode::Add, None);
        assert_eq!(depending_on(&add, Some(&was(7))).unwrap(), (add, false));
    }

    #[test]
    fn an_append_that_creates_depends_on_the_absence() {
        let append = |vivify| {
            Command::Store(Store { mode: StoreMode::Append, vivify, ..Store::set(b"k", b"v") })
        };
        let (command, conditional) = depending_on(&append(Some(Ttl::After(5))), None).unwrap();
        let add = Store { mode: StoreMode::Add, ttl: Ttl::After(5), ..Store::set(b"k", b"v") };
        assert_eq!((command, conditional), (Command::Store(add), true));
        assert!(!depending_on(&append(None), None).unwrap().1);
        assert!(depending_on(&Command::Delete(Delete::plain(b"k")), None).is_none());
    }
}
