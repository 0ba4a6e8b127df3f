//! What the copies of an eventual partition tell each other.
//!
//! Every message may be lost, repeated, late or overtaken: each can be taken in again without harm,
//! because a copy only ever keeps the greater write.

use serde::{Deserialize, Serialize};

use super::catalog::Position;
use crate::digest::{Floors, Root};
use crate::effect::{Item, ItemKey};
use crate::ids::Generation;
use crate::version::Write;

/// Bytes that a record counts for beside key and value.
pub const RECORD_OVERHEAD_BYTES: usize = 48;

/// One write of one key, whole: a copy that takes it needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The key.
    pub key: ItemKey,
    /// What it has from this write on.
    pub content: Content,
}

/// What a write leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// This item.
    Item(Item),
    /// Nothing: deleted, or an item whose end has come.
    Gone(Write),
}

impl Record {
    /// The identity of the write.
    pub fn write(&self) -> Write {
        match &self.content {
            Content::Item(item) => Write::of(item),
            Content::Gone(write) => *write,
        }
    }

    /// The item, if there is one.
    pub fn item(&self) -> Option<&Item> {
        match &self.content {
            Content::Item(item) => Some(item),
            Content::Gone(_) => None,
        }
    }

    /// What it counts for in chunks and bounds.
    pub fn bytes(&self) -> usize {
        let value = self.item().map_or(0, |item| item.value.len());
        self.key.key.len() + value + RECORD_OVERHEAD_BYTES
    }
}

/// One thing said about one partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventualMessage {
    /// The generation of the sender's copy. When all copies were lost, deletes were lost with them:
    /// what a copy of an earlier generation still holds must not come back.
    pub generation: Generation,
    /// What is said.
    pub say: Say,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Say {
    /// A write that the sender took. Answered by [`Say::Ack`].
    Write {
        /// The sender's number for it; 0 wants no answer.
        id: u64,
        /// The write.
        record: Record,
    },
    /// What became of a write here.
    Ack {
        /// The number it came with.
        id: u64,
        /// Whether this copy holds it, or a newer one.
        held: bool,
    },
    /// Items that the sender's store dropped to make room. A copy that has the same write drops it.
    Forget(Vec<(ItemKey, Write)>),
    /// What is known of a key? Answered by [`Say::Answer`].
    Ask {
        /// The sender's number for it.
        id: u64,
        /// The key.
        key: ItemKey,
        /// What the sender has: a value is only sent when it is newer.
        have: Option<Write>,
    },
    /// What is known of it here.
    Answer {
        /// The number asked with.
        id: u64,
        /// What was found.
        found: Found,
    },
    /// A step of fetching differences. Answered by [`Say::Given`].
    Pull {
        /// The sender's number for the session.
        session: u64,
        /// The step.
        step: Pull,
    },
    /// The answer to a step.
    Given {
        /// The session's number.
        session: u64,
        /// The answer.
        answer: Given,
    },
    /// The sender holds what the addressee may not have: it should pull soon.
    Nudge,
    /// Writes that were kept while no owner could be reached.
    Hints {
        /// The sender's number for the batch.
        id: u64,
        /// The writes.
        records: Vec<Record>,
    },
    /// These hints need not be kept any longer.
    HintsTaken {
        /// The number they came with.
        id: u64,
        /// Which.
        taken: Vec<(ItemKey, Write)>,
    },
}

/// What a copy knows of a key that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Something newer than the asker has.
    Newer(Record),
    /// The same.
    Same,
    /// Something older: the asker may send its own.
    Older,
    /// Nothing. What lies at or below the floors is dead.
    Nothing(Floors),
}

/// A step of one copy fetching from another what it lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pull {
    /// Do we differ?
    Compare {
        /// The asker's root.
        root: Root,
        /// They may well differ, the asker believes: the addressee should fetch soon, too.
        soon: bool,
    },
    /// What of these keys is newer with you, and what lies between them?
    Keys {
        /// Buckets that differ, a bit each.
        buckets: [u64; 4],
        /// Behind this position.
        after: Option<Position>,
        /// Up to this one; to the end if none.
        through: Option<Position>,
        /// All that the asker knows in between, in order.
        have: Vec<(Position, Write)>,
    },
    /// The asker has everything now.
    Done,
}

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Given {
    /// No difference.
    Same,
    /// The sums and floors of all buckets.
    Sums {
        /// Sums.
        sums: Vec<u64>,
        /// Floors.
        floors: Vec<Floors>,
    },
    /// What the asker lacks.
    Items {
        /// The `after` of the step that this answers.
        after: Option<Position>,
        /// Everything up to here was looked at; all that was asked for if none.
        through: Option<Position>,
        /// Newer than the asker's, or unknown to it.
        records: Vec<Record>,
        /// Of the asker's keys: unknown here, and not above the floor, hence dead.
        dead: Vec<(ItemKey, Write)>,
    },
    /// This node holds no copy.
    NoCopy,
}
