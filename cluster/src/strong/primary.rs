//! What only a primary keeps.

use std::collections::{BTreeMap, VecDeque};

use crate::answers::ClientAnswers;
use crate::context::Asker;
use crate::effect::{Item, ItemKey};
use crate::few::Few;
use crate::ids::{CacheId, ClientId, Member, RequestId, Seq, Term, TransferId, Version};
use crate::log::SharedEntry;
use crate::node::Request;
use crate::store::Cursor;
use crate::time::{Mono, Now};

use super::StrongMessage;

/// How far a primary has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// It granted a lease to its predecessor, which may still answer reads.
    Leased,
    /// The other copies say what they hold.
    Sealing(BTreeMap<Member, Sealed>),
    /// Its log goes to the other copies; it serves when they all hold the barrier.
    Starting {
        /// The barrier's place.
        barrier: Seq,
    },
    /// It serves.
    Serving,
}

/// What a sealed copy holds.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) log_term: Term,
    pub(super) applied: Seq,
    pub(super) entries: Vec<SharedEntry>,
}

impl Sealed {
    pub(super) fn last(&self) -> Seq {
        Seq(self.applied.0 + self.entries.len() as u64)
    }
}

/// A read that waits for a confirm round.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) asker: Asker,
    pub(super) request: Request,
    pub(super) deadline: Mono,
    /// The first round that speaks for it.
    pub(super) round: u64,
}

/// The state of a partition as far as only its primary needs it.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) phase: Phase,
    /// Versions given in this term.
    pub(super) counter: u64,
    /// The other copies, learners included.
    pub(super) peers: Few<Member, Peer>,
    /// Promotions that were decided on: these copies are waited for. With the version that the
    /// newest proposal names, once there is one.
    pub(super) promoting: BTreeMap<Member, Promotion>,
    /// The newest unconfirmed state of each key that has one.
    pub(super) latest: BTreeMap<ItemKey, (Seq, Option<Item>)>,
    /// The newest unconfirmed removal of all items, of each cache that has one.
    pub(super) cleared: BTreeMap<CacheId, (Seq, Version)>,
    /// Requests whose effects are not confirmed.
    pub(super) pending_ids: BTreeMap<RequestId, Seq>,
    pub(super) reads: VecDeque<Read>,
    /// Reads that are confirmed, with the clock that judges them, but wait for an entry.
    pub(super) blocked: BTreeMap<Seq, Vec<(Read, u64)>>,
    /// No answer was judged by a later clock than this.
    pub(super) judged_ms: u64,
    /// When a round must be asked for again.
    pub(super) round_retry: Option<Mono>,
    /// When confirmed places and evictions are told to quiet copies.
    pub(super) tell_at: Option<Mono>,
    /// Bytes of effects applied here since copies were last told what is confirmed.
    pub(super) untold_bytes: usize,
    pub(super) evictions: Vec<(ItemKey, Version)>,
}

impl Primary {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            counter: 0,
            peers: Few::default(),
            promoting: BTreeMap::new(),
            latest: BTreeMap::new(),
            cleared: BTreeMap::new(),
            pending_ids: BTreeMap::new(),
            reads: VecDeque::new(),
            blocked: BTreeMap::new(),
            judged_ms: 0,
            round_retry: None,
            tell_at: None,
            untold_bytes: 0,
            evictions: Vec::new(),
        }
    }

    pub(super) fn serves(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// Asks for confirmed places to be told by `at` if nothing else goes out before.
    pub(super) fn tell_by(&mut self, at: Mono) {
        self.tell_at = Some(self.tell_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// A promotion that was decided on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promotion {
    /// The hybrid clock when the learner began to count: it must have heard of it before it can be
    /// made primary by anyone.
    pub(super) clock_ms: u64,
    /// The version that the newest proposal was decided on.
    pub(super) proposed: Option<u64>,
    /// When to propose again.
    pub(super) again_at: Mono,
}

/// What another copy says that it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) term: Term,
    pub(super) transfer: TransferId,
    pub(super) have: Seq,
    pub(super) version: u64,
    pub(super) full: bool,
    /// The hybrid clock of its message.
    pub(super) clock_ms: u64,
}

/// Another copy, as its primary sees it.
#[derive(Debug)]
pub(super) struct Peer {
    /// It takes entries of this term.
    pub(super) started: bool,
    /// The transfer of this term that brought its data; 0 if it had them before.
    pub(super) source: TransferId,
    /// All up to here is in its memory.
    pub(super) acked: Seq,
    /// Sent up to here.
    pub(super) sent: Seq,
    /// Told that all up to here is confirmed.
    pub(super) told: Seq,
    /// When to send again what it has not confirmed; `None` while it owes nothing.
    pub(super) resend_at: Option<Mono>,
    /// Since when it owes something without getting on.
    pub(super) owes_since: Mono,
    /// It keeps its data whatever removal was decided up to this version.
    pub(super) version: u64,
    /// It has no room for more writes.
    pub(super) full: bool,
    /// The latest hybrid clock heard from it.
    pub(super) clock_ms: u64,
    /// Its lease, and what it heard of the clock with it.
    pub(super) lease: Lease,
    /// The removal proposed, by version, and when to propose it again.
    pub(super) removal: Option<(u64, Mono)>,
    /// It is being filled.
    pub(super) transfer: Option<Box<Transfer>>,
}

/// A lease that a copy granted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lease {
    pub(super) until: Mono,
    pub(super) sent_at: Mono,
    pub(super) clock_ms: u64,
}

impl Lease {
    /// What the clock may be said to be under this lease: the grantor will be past it when it
    /// takes over.
    pub(super) fn clock_ms(&self, now: Now) -> u64 {
        self.clock_ms.saturating_add(now.mono.since_ms(self.sent_at))
    }
}

impl Peer {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            started: false,
            source: TransferId(0),
            acked: Seq(0),
            sent: Seq(0),
            told: Seq(0),
            resend_at: None,
            owes_since: now,
            version: 0,
            full: false,
            clock_ms: 0,
            lease: Lease::default(),
            removal: None,
            transfer: None,
        }
    }

    /// It owes an answer from now on.
    pub(super) fn owe(&mut self, now: Mono, resend_after_ms: u64) {
        if self.resend_at.is_none() {
            self.owes_since = now;
        }
        self.resend_at = Some(now.after_ms(resend_after_ms));
    }

    /// It holds all of the snapshot.
    pub(super) fn is_filled(&self) -> bool {
        self.transfer.as_ref().is_none_or(|transfer| transfer.stage == Stage::Done)
    }
}

/// How far the filling of a learner has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for a slot.
    Waiting,
    /// The learner is asked to drop what it has.
    Asked,
    /// Chunks flow.
    Flowing,
    /// The learner holds all of it.
    Done,
}

/// Filling a learner.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: TransferId,
    pub(super) stage: Stage,
    pub(super) base: Seq,
    /// The window of answers, as far as it is not sent.
    pub(super) answers: Vec<(ClientId, ClientAnswers)>,
    /// Where reading goes on; `None` when all is read.
    pub(super) cursor: Option<Cursor>,
    /// The next chunk's index.
    pub(super) next: u64,
    /// Chunks not confirmed, in order, with their sizes.
    pub(super) flying: VecDeque<(u64, usize, StrongMessage)>,
    /// When to act again: ask again, send again, or when bandwidth allows.
    pub(super) act_at: Mono,
    /// When unconfirmed chunks are sent again.
    pub(super) resend_at: Mono,
    /// Bytes confirmed.
    pub(super) bytes: u64,
}

impl Transfer {
    pub(super) fn waiting(now: Mono) -> Box<Self> {
        Box::new(Self {
            id: TransferId(0),
            stage: Stage::Waiting,
            base: Seq(0),
            answers: Vec::new(),
            cursor: None,
            next: 0,
            flying: VecDeque::new(),
            act_at: now,
            resend_at: now,
            bytes: 0,
        })
    }
}
