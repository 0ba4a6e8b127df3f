//! What became of a request, as it is kept for retries.
//!
//! Every entry of a log and every place of a window of answers has one, and a window is written at
//! another place for each write of its partition: so it is small, and holds no value. A read that
//! touched gives the value of the version that it saw, if that is still there.

use serde::{Deserialize, Serialize};

use crate::effect::{Item, Outcome};
use crate::ids::{Generation, Version};

/// An [`Outcome`] without values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Brief {
    /// As the outcome of this name.
    NotFound,
    /// As the outcome of this name.
    Lost(Generation),
    /// As the outcome of this name.
    Stored(Version),
    /// As the outcome of this name.
    NotStored,
    /// As the outcome of this name.
    Exists,
    /// As the outcome of this name.
    Deleted,
    /// The item of this version has its new end, or was seen.
    Touched(Version),
    /// The item of this version was seen, and the right to refill it given.
    Won(Version),
    /// As the outcome of this name.
    Number(u64, Version),
    /// As the outcome of this name.
    NotANumber,
    /// As the outcome of this name.
    TooLarge,
    /// As the outcome of this name.
    OutOfMemory,
}

impl From<&Outcome> for Brief {
    fn from(outcome: &Outcome) -> Self {
        match *outcome {
            Outcome::Hit(ref item) => Self::Touched(item.version),
            Outcome::Won(ref item) => Self::Won(item.version),
            Outcome::NotFound => Self::NotFound,
            Outcome::Lost(generation) => Self::Lost(generation),
            Outcome::Stored(version) => Self::Stored(version),
            Outcome::NotStored => Self::NotStored,
            Outcome::Exists => Self::Exists,
            Outcome::Deleted => Self::Deleted,
            Outcome::Touched(version) => Self::Touched(version),
            Outcome::Number(number, version) => Self::Number(number, version),
            Outcome::NotANumber => Self::NotANumber,
            Outcome::TooLarge => Self::TooLarge,
            Outcome::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl From<Brief> for Outcome {
    fn from(brief: Brief) -> Self {
        match brief {
            Brief::NotFound => Self::NotFound,
            Brief::Lost(generation) => Self::Lost(generation),
            Brief::Stored(version) => Self::Stored(version),
            Brief::NotStored => Self::NotStored,
            Brief::Exists => Self::Exists,
            Brief::Deleted => Self::Deleted,
            Brief::Touched(version) => Self::Touched(version),
            Brief::Won(version) => Self::Won(Item { version, ..Item::default() }),
            Brief::Number(number, version) => Self::Number(number, version),
            Brief::NotANumber => Self::NotANumber,
            Brief::TooLarge => Self::TooLarge,
            Brief::OutOfMemory => Self::OutOfMemory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_an_outcome_is_all_of_it_but_values() {
        let item = Item { version: Version(7), value: "value".into(), ..Item::default() };
        let bare = Item { version: Version(7), ..Item::default() };
        let cases = [
            (Outcome::Hit(item.clone()), Outcome::Touched(Version(7))),
            (Outcome::Won(item), Outcome::Won(bare)),
            (Outcome::Number(3, Version(9)), Outcome::Number(3, Version(9))),
            (Outcome::Stored(Version(2)), Outcome::Stored(Version(2))),
            (Outcome::Lost(Generation(4)), Outcome::Lost(Generation(4))),
        ];
        for (outcome, kept) in cases {
            assert_eq!(Outcome::from(Brief::from(&outcome)), kept);
        }
    }

    #[test]
    fn an_answer_with_its_number_takes_half_a_cache_line() {
        assert_eq!(size_of::<(u64, Brief)>(), 32);
    }
}
