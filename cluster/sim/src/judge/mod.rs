//! The judges: what must hold after every step, and after the heal.
//!
//! Each judge is a plain object that is told facts and answers with a [`Violation`] or not. None of
//! them asks a node what it thinks of itself where the promise is about what clients see. Each has
//! a test that hands it a forged bad history.

pub mod convergence;
pub mod eventual;
pub mod linear;
pub mod order;
pub mod primaries;

use std::fmt;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub rule: &'static str,
    /// The key or the partition it is about, as the event log writes it.
    pub subject: String,
    /// What was found.
    pub finding: String,
}

impl Violation {
    /// A broken promise.
    pub fn new(rule: &'static str, subject: impl fmt::Display, finding: String) -> Self {
        Self { rule, subject: subject.to_string(), finding }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.subject, self.finding)
    }
}

/// A key as the event log writes it.
pub fn name_of(key: &kiln_cluster::effect::ItemKey) -> String {
    format!("{:?}", key.key)
}
