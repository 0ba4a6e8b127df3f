//! How long to wait between attempts.
//!
//! Exponential with full jitter: many clients that lost the same node come back spread over the
//! whole delay instead of together at its end. Randomness is an argument.

use std::time::Duration;

/// Delays that double from `first` to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub first: Duration,
    /// Upper bound of all delays.
    pub most: Duration,
}

impl Backoff {
    /// The delay before attempt `attempt + 1`, when `attempt` attempts have failed, counted from 1.
    /// `random` is from 0 to 1.
    ///
    /// Never less than an eighth of the bound, so that a lucky number is no busy loop.
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let bound = self.first.saturating_mul(doubled).min(self.most);
        bound.mul_f64(0.125 + 0.875 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_millis(8), most: Duration::from_millis(100) };

    #[test]
    fn delays_double_up_to_their_bound() {
        let longest = |attempt| BACKOFF.delay(attempt, 1.0).as_millis();

        assert_eq!([1, 2, 3, 4].map(longest), [8, 16, 32, 64]);
        assert_eq!([5, 6, 40, u32::MAX].map(longest), [100; 4]);
    }

    #[test]
    fn jitter_spreads_over_nearly_the_whole_delay_but_never_to_nothing() {
        assert_eq!(BACKOFF.delay(1, 0.0), Duration::from_millis(1));
        assert!(BACKOFF.delay(1, 0.5) < Duration::from_millis(5));
        assert_eq!(BACKOFF.delay(1, 7.0), Duration::from_millis(8));
    }
}
