//! What clients asked and what they were told, with the times of a clock that sees everything.

use kiln_cluster::effect::{ItemKey, Operation, Outcome, StoreMode, Ttl};
use kiln_cluster::ids::Place;

use crate::clock::WALL_START_MS;
use crate::queue::{MS, Time};

/// Names a call within one run.
pub type CallId = usize;

/// One operation of a client, over all its attempts.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asked.
    pub client: u32,
    /// Its request counter.
    pub counter: u64,
    /// The key.
    pub key: ItemKey,
    /// Where the key lies.
    pub place: Place,
    /// What was asked.
    pub operation: Operation,
    /// When the first attempt began.
    pub called: Time,
    /// When it ended; [`Time::MAX`] before, and for ever when it ended without certainty.
    pub returned: Time,
    /// How it ended.
    pub ending: Ending,
    /// The lowest reading that any node's wall clock had at the call, in milliseconds.
    pub clock_low_ms: u64,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    Open,
    /// With an answer.
    Answered(Outcome),
    /// Certainly without effect.
    NotApplied,
    /// Perhaps applied, perhaps later, perhaps never.
    Unknown,
}

impl Call {
    /// Whether it may take effect, or have taken effect, on the item.
    pub fn may_change(&self) -> bool {
        let refused = matches!(
            self.ending,
            Ending::NotApplied
                | Ending::Answered(
                    Outcome::NotFound
                        | Outcome::Lost(_)
                        | Outcome::NotStored
                        | Outcome::Exists
                        | Outcome::NotANumber
                        | Outcome::OutOfMemory
                )
        );
        !refused && !matches!(self.operation, Operation::Get { touch: None })
    }

    /// Whether an attempt of it may have taken effect, whatever it was told at last.
    pub fn may_have_changed(&self) -> bool {
        self.ending != Ending::NotApplied
            && !matches!(self.operation, Operation::Get { touch: None })
    }

    /// From when on the item may be gone because of this call, when it may.
    pub fn may_remove_from(&self, rules: &Rules) -> Option<Time> {
        if !self.may_change() {
            return None;
        }
        match &self.operation {
            Operation::Delete { .. } | Operation::Clear => Some(self.called),
            _ if self.ending == Ending::Answered(Outcome::TooLarge) => Some(self.called),
            _ => rules.window(self).map(|(earliest, _)| earliest),
        }
    }

    /// Whether it certainly left an item there that ends only by an operation.
    pub fn certainly_stored(&self, rules: &Rules) -> bool {
        let stored = matches!(self.ending, Ending::Answered(Outcome::Stored(_)));
        let store = matches!(self.operation, Operation::Store { .. });
        stored && store && !self.keeps_end() && rules.window(self).is_none()
    }

    /// Whether it leaves the item the end that it had.
    pub fn keeps_end(&self) -> bool {
        matches!(
            self.operation,
            Operation::Store { mode: StoreMode::Append | StoreMode::Prepend, .. }
                | Operation::Arithmetic { .. }
        )
    }

    /// The end that the operation asks for.
    fn ttl(&self) -> Option<Ttl> {
        match &self.operation {
            Operation::Get { touch } => *touch,
            Operation::Look { touch, vivify, .. } => touch.or(*vivify),
            Operation::Store { ttl, .. }
            | Operation::Amend { ttl, .. }
            | Operation::Touch { ttl } => Some(*ttl),
            Operation::Mark { ttl, .. } => *ttl,
            Operation::Arithmetic { create, touch, .. } => {
                (*touch).or(create.as_ref().map(|(ttl, _)| *ttl))
            }
            Operation::Delete { .. } | Operation::Clear => None,
        }
    }
}

/// What a cache of the run promises, as the judges need it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A miss is always a legal answer.
    pub evicts: bool,
    /// End of items that are written without one.
    pub default_ttl_ms: Option<u64>,
    /// How far any wall clock may be from the truth, drift included.
    pub clock_error_ms: u64,
    /// Copies that an acknowledged write must be on.
    pub min_in_sync: u8,
}

impl Rules {
    /// True times between which the end lies that a call gives its item: gone at the earliest from
    /// the first, gone for certain after the second. `None` when it gives no end.
    ///
    /// Two clock errors are possible on each side: one where the end is computed, one where it is
    /// judged.
    pub fn window(&self, call: &Call) -> Option<(Time, Time)> {
        let error = 2 * self.clock_error_ms * MS;
        let ttl_ms = match call.ttl()? {
            Ttl::Never => return None,
            Ttl::Default => self.default_ttl_ms?,
            Ttl::After(ms) => ms,
            Ttl::Expired => 0,
            Ttl::At(wall_ms) => {
                let at = wall_ms.saturating_sub(WALL_START_MS) * MS;
                return Some((at.saturating_sub(error), at + error));
            }
        };
        let latest = call.returned.saturating_add(ttl_ms * MS + error + MS);
        Some(((call.called + ttl_ms * MS).saturating_sub(error), latest))
    }
}
