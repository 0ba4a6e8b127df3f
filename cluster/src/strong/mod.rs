//! Strong mode: single-key linearizability by one primary per partition and copies in sync.
//!
//! ```text
//!   replica       one partition on one node: its role, routing, timers
//!   primary       what only a primary keeps
//!   replication   a write's way at the primary: evaluate, send, advance, acknowledge
//!   follower      a write's way on the other copies; applying, on all
//!   reads         confirm rounds and leases
//!   failover      seal, longest tail, barrier
//!   handoff       filling a learner: snapshot, live stream, promotion
//!   intake        being filled
//! ```

mod failover;
mod follower;
mod handoff;
mod intake;
mod primary;
mod reads;
mod replica;
mod replication;

use serde::{Deserialize, Serialize};

use crate::answers::ClientAnswers;
use crate::effect::{Item, ItemKey};
use crate::ids::{ClientId, Generation, Seq, Term, TransferId, Version};
use crate::log::SharedEntry;

pub use replica::{PartitionRole, PartitionView, Replica};

/// What the copies of a strong partition tell each other. Each carries the term of the primary that
/// it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StrongMessage {
    /// Primary to copy: effects, and how far they are confirmed.
    Append {
        /// The primary's term.
        term: Term,
        /// Every copy that counts holds all up to here.
        stable: Seq,
        /// The partition's version by which the primary counts the addressee as a copy.
        version: u64,
        /// Answer even if there are no entries.
        probe: bool,
        /// Entries without gaps.
        entries: Vec<SharedEntry>,
    },
    /// Copy to primary: all up to here is in memory.
    Ack {
        /// The term followed.
        term: Term,
        /// The transfer of this term that brought the data; 0 if they were here before. Tells what
        /// was confirmed by a copy that has been emptied since.
        transfer: TransferId,
        /// The last entry held.
        have: Seq,
        /// No removal decided up to this version of the partition concerns the data held.
        version: u64,
        /// No room for more writes in a cache that refuses when full.
        full: bool,
    },
    /// Copy to primary: a later term is followed here.
    Refused {
        /// Which.
        term: Term,
    },
    /// Copy to primary: the beginning of this term was not heard.
    Unstarted {
        /// Which.
        term: Term,
    },
    /// New primary to copies: follow me, and say what you hold.
    Seal {
        /// The new term.
        term: Term,
    },
    /// Copy to new primary: what it holds beyond what it applied.
    Sealed {
        /// The new term.
        term: Term,
        /// The term in which its log was last made equal to a primary's.
        log_term: Term,
        /// Applied up to here.
        applied: Seq,
        /// What follows.
        entries: Vec<SharedEntry>,
    },
    /// New primary to copies: the log from here on is this.
    Start {
        /// The new term.
        term: Term,
        /// The partition's version by which the primary counts the addressee as a copy.
        version: u64,
        /// The generation of the data.
        generation: Generation,
        /// The log up to here is the copy's own.
        base: Seq,
        /// What follows; anything else beyond `base` never happened.
        entries: Vec<SharedEntry>,
    },
    /// Primary to learner: begin anew, with nothing.
    Fill {
        /// The primary's term.
        term: Term,
        /// The partition's version when this was decided.
        version: u64,
        /// The generation of the data.
        generation: Generation,
        /// Which transfer.
        transfer: TransferId,
        /// What happened up to here comes by chunks, what comes later by appends.
        base: Seq,
    },
    /// Learner to primary: ready for chunks and appends.
    Ready {
        /// The primary's term.
        term: Term,
        /// Which transfer.
        transfer: TransferId,
    },
    /// Primary to learner: a part of the snapshot.
    Chunk {
        /// The primary's term.
        term: Term,
        /// Which transfer.
        transfer: TransferId,
        /// Counts from 0.
        index: u64,
        /// The last one; effects up to this place may be contained already.
        last: Option<Seq>,
        /// Part of the window of answers.
        answers: Vec<(ClientId, ClientAnswers)>,
        /// Part of the items.
        items: Vec<(ItemKey, Item)>,
    },
    /// Learner to primary: chunks before this one are taken in.
    Taken {
        /// The primary's term.
        term: Term,
        /// Which transfer.
        transfer: TransferId,
        /// The next chunk.
        next: u64,
    },
    /// Former primary to its successor: it serves no longer, so no lease of its is in use.
    Yielded {
        /// The last term that it served.
        term: Term,
    },
    /// Primary to copies: these were evicted here. Not waited for.
    Evicted {
        /// The primary's term.
        term: Term,
        /// Which, up to which version.
        keys: Vec<(ItemKey, Version)>,
    },
}
