//! Whether a failed attempt is made again.
//!
//! The rule: a call is repeated when it is certain that nothing happened, or when doing it twice
//! is as good as once. That is so for reads, for writes that a node knows again by their number,
//! and for writes whose caller said so. Everything here is decided without clock or randomness.

use std::time::Duration;

use kiln_protocol::native::ErrorCode;

use crate::{Backoff, Error, Reason};

/// How calls are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most attempts, the first one counted. 1 never retries.
    pub attempts_max: u32,
    /// Delays between attempts, unless the node says when to come back.
    pub backoff: Backoff,
}

impl Default for RetryPolicy {
    /// Four attempts with delays that grow from 5 ms to 250 ms, all within the call's timeout.
    fn default() -> Self {
        let backoff = Backoff { first: Duration::from_millis(5), most: Duration::from_millis(250) };
        Self { attempts_max: 4, backoff }
    }
}

impl RetryPolicy {
    /// No second attempts.
    pub const NEVER: Self =
        Self { attempts_max: 1, backoff: Backoff { first: Duration::ZERO, most: Duration::ZERO } };

    /// How long to wait before the next attempt, after `attempt` attempts of which the last failed
    /// with `error`; `None` gives up. `repeatable`: doing it twice is as good as once.
    pub(crate) fn next(
        &self,
        error: &Error,
        repeatable: bool,
        attempt: u32,
        random: f64,
    ) -> Option<Duration> {
        let may = error.is_not_applied() || repeatable;
        if !may || attempt >= self.attempts_max || !can_pass(error) {
            return None;
        }
        let delay = self.backoff.delay(attempt, random);
        Some(error.retry_after().map_or(delay, |after| after.max(delay)))
    }
}

/// Whether another attempt can have another end.
fn can_pass(error: &Error) -> bool {
    match error.reason() {
        Reason::Unreachable { .. } | Reason::Disconnected { .. } => true,
        Reason::Node { code, .. } => matches!(
            code,
            ErrorCode::Busy
                | ErrorCode::NotOwner
                | ErrorCode::ShuttingDown
                | ErrorCode::NotEnoughCopies
        ),
        // Too many connections, perhaps: others end.
        Reason::Refused { code, .. } => {
            matches!(code, ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::LimitReached)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use kiln_protocol::native::Effect;

    use super::*;

    fn disconnected(effect: Effect) -> Error {
        let error = Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
        Error::new(effect, Reason::Disconnected { address: "n:1".into(), error })
    }

    fn refused(code: ErrorCode, retry_after: Option<Duration>) -> Error {
        Error::not_applied(Reason::Node {
            address: "n:1".into(),
            code,
            text: "no".into(),
            retry_after,
        })
    }

    fn tries_again(error: &Error, repeatable: bool) -> bool {
        RetryPolicy::default().next(error, repeatable, 1, 0.5).is_some()
    }

    #[test]
    fn a_write_that_may_have_happened_is_not_repeated() {
        assert!(!tries_again(&disconnected(Effect::Indeterminate), false));
        assert!(tries_again(&disconnected(Effect::NotApplied), false));
    }

    #[test]
    fn what_is_as_good_twice_as_once_is_repeated() {
        assert!(tries_again(&disconnected(Effect::Indeterminate), true));
    }

    #[test]
    fn what_would_fail_the_same_way_is_not_repeated() {
        for code in [ErrorCode::NotANumber, ErrorCode::ValueTooLarge, ErrorCode::Forbidden] {
            assert!(!tries_again(&refused(code, None), true), "{code:?}");
        }
        for code in [ErrorCode::Busy, ErrorCode::NotOwner, ErrorCode::ShuttingDown] {
            assert!(tries_again(&refused(code, None), false), "{code:?}");
        }
    }

    #[test]
    fn attempts_are_counted() {
        let policy = RetryPolicy { attempts_max: 3, ..RetryPolicy::default() };
        let next = |attempt| policy.next(&refused(ErrorCode::Busy, None), true, attempt, 0.5);

        assert!(next(1).is_some() && next(2).is_some());
        assert_eq!(next(3), None);
        let error = disconnected(Effect::NotApplied);
        assert_eq!(RetryPolicy::NEVER.next(&error, true, 1, 0.5), None);
    }

    #[test]
    fn a_node_that_says_when_is_not_asked_earlier() {
        let after = Duration::from_secs(1);
        let error = refused(ErrorCode::Busy, Some(after));

        assert_eq!(RetryPolicy::default().next(&error, true, 1, 0.0), Some(after));
    }
}
