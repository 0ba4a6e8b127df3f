//! Why a call failed, and what is true now.
//!
//! The first thing to know of a failed write is whether it may have happened, so that is the
//! outermost distinction of [`Error`]; everything else is in its [`Reason`]. Errors are cheap to
//! clone: one lost connection fails many calls with the same reason.

use std::{fmt, io, sync::Arc, time::Duration};

use kiln_protocol::native::{Effect, ErrorCode, Failure};

/// A call that failed. The variant says what may be assumed of the call's write.
///
/// A failed read has no effect whatever happened, so it is always [`NotApplied`](Self::NotApplied).
///
/// ```
/// # async fn example(cache: kiln_client::Cache) {
/// match cache.set("key", "value").await {
///     Ok(version) => println!("stored as version {version}"),
///     Err(error) if error.is_not_applied() => println!("safe to try again: {error}"),
///     Err(error) => println!("it may have been stored: {error}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum Error {
    /// Nothing was changed: the same call can be made again.
    NotApplied(Arc<Reason>),
    /// The write may have happened, or may still happen.
    Indeterminate(Arc<Reason>),
}

impl Error {
    pub(crate) fn not_applied(reason: Reason) -> Self {
        Self::NotApplied(Arc::new(reason))
    }

    pub(crate) fn new(effect: Effect, reason: impl Into<Arc<Reason>>) -> Self {
        match effect {
            Effect::NotApplied => Self::NotApplied(reason.into()),
            Effect::Indeterminate => Self::Indeterminate(reason.into()),
        }
    }

    pub(crate) fn node(address: &Arc<str>, failure: &Failure<'_>) -> Self {
        let reason = Reason::Node {
            address: address.clone(),
            code: failure.code,
            text: failure.text.into(),
            retry_after: failure.retry_after_ms.map(Duration::from_millis),
        };
        Self::new(failure.effect, reason)
    }

    /// The same failure of a call that changes nothing.
    pub(crate) fn of_a_read(self) -> Self {
        match self {
            Self::NotApplied(reason) | Self::Indeterminate(reason) => Self::NotApplied(reason),
        }
    }

    /// What went wrong.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::NotApplied(reason) | Self::Indeterminate(reason) => reason,
        }
    }

    /// Whether it is certain that nothing was changed.
    pub const fn is_not_applied(&self) -> bool {
        matches!(self, Self::NotApplied(_))
    }

    /// Whether the write may have happened.
    pub const fn is_indeterminate(&self) -> bool {
        matches!(self, Self::Indeterminate(_))
    }

    /// The node's error code, when a node refused the call.
    pub fn code(&self) -> Option<ErrorCode> {
        match self.reason() {
            Reason::Node { code, .. } | Reason::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// When another try makes sense, if the node said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.reason() {
            Reason::Node { retry_after, .. } => *retry_after,
            Reason::Unreachable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether the call ran out of time, here or on the node.
    pub fn is_deadline_exceeded(&self) -> bool {
        matches!(self.reason(), Reason::DeadlineExceeded { .. })
            || self.code() == Some(ErrorCode::DeadlineExceeded)
    }

    /// Whether no connection could be made, so that no node saw the call.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.reason(), Reason::Unreachable { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotApplied(reason) => reason.fmt(f),
            Self::Indeterminate(reason) => write!(f, "{reason}; the write may have happened"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The reason itself is what this displays.
        std::error::Error::source(self.reason())
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The last attempt to connect failed, and the next one is not due yet.
    #[error("cannot connect to {address}: {error}")]
    Unreachable {
        /// The node's address.
        address: Arc<str>,
        /// Why the attempt failed.
        #[source]
        error: Arc<io::Error>,
        /// When the next attempt is due.
        retry_after: Duration,
    },
    /// The node did not welcome this client.
    #[error("{address} refused the connection: {text} ({})", code.name())]
    Refused {
        /// The node's address.
        address: Arc<str>,
        /// The node's error.
        code: ErrorCode,
        /// The node's words.
        text: Box<str>,
    },
    /// The connection ended while the call was under way.
    #[error("the connection to {address} was lost: {error}")]
    Disconnected {
        /// The node's address.
        address: Arc<str>,
        /// How it ended.
        #[source]
        error: Arc<io::Error>,
    },
    /// The call ran out of time.
    #[error("no answer within {limit:?}, waiting for {waiting_for}")]
    DeadlineExceeded {
        /// The time the call had.
        limit: Duration,
        /// What had not come yet.
        waiting_for: WaitingFor,
    },
    /// A node answered with an error.
    #[error("{address}: {text} ({})", code.name())]
    Node {
        /// The node's address.
        address: Arc<str>,
        /// Which error.
        code: ErrorCode,
        /// The node's words.
        text: Box<str>,
        /// When another try makes sense.
        retry_after: Option<Duration>,
    },
    /// A node answered something that is no answer to the call.
    #[error("{address} sent {what}")]
    UnexpectedAnswer {
        /// The node's address.
        address: Arc<str>,
        /// What it sent.
        what: &'static str,
    },
    /// The call breaks a limit that the node announced, so it was not sent.
    #[error("{what} of {len} bytes is over the node's limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// A key must have at least one byte.
    #[error("a key must not be empty")]
    EmptyKey,
    /// A typed value could not be turned into bytes, or bytes into one.
    #[error("the value is not of the expected type: {0}")]
    Value(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A compressed value did not inflate.
    #[error("{address} sent a damaged compressed value")]
    DamagedValue {
        /// The node's address.
        address: Arc<str>,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// What a call was waiting for when it ran out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitingFor {
    /// A connection to the node.
    Connection,
    /// Room among the requests in flight.
    Room,
    /// The answer.
    Answer,
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "a connection",
            Self::Room => "room among the requests in flight",
            Self::Answer => "the answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whether_the_write_may_have_happened() {
        let address: Arc<str> = "n1:7311".into();
        let lost = |effect| {
            let error = Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
            Error::new(effect, Reason::Disconnected { address: address.clone(), error })
        };

        assert!(lost(Effect::NotApplied).is_not_applied());
        assert!(lost(Effect::Indeterminate).is_indeterminate());
        assert!(lost(Effect::Indeterminate).to_string().ends_with("the write may have happened"));
        assert!(lost(Effect::Indeterminate).of_a_read().is_not_applied());
    }

    #[test]
    fn the_cause_below_is_reachable() {
        let error = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let address = "n1:7311".into();
        let error = Error::not_applied(Reason::Unreachable {
            address,
            error,
            retry_after: Duration::from_millis(7),
        });

        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("connection refused"));
        assert!(error.is_unreachable());
        assert_eq!(error.retry_after(), Some(Duration::from_millis(7)));
    }

    #[test]
    fn a_refusal_of_a_node_carries_its_code_and_words() {
        let failure = Failure {
            code: ErrorCode::Busy,
            text: "too much in flight",
            effect: Effect::NotApplied,
            retry_after_ms: Some(20),
        };

        let error = Error::node(&"n1:7311".into(), &failure);

        assert_eq!(error.code(), Some(ErrorCode::Busy));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(20)));
        assert_eq!(error.to_string(), "n1:7311: too much in flight (busy)");
    }
}
