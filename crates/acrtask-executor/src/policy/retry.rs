//! The decision to retry a failed attempt. Pure.

use std::time::Duration;

use super::Attempt;

/// `retries`, `retryDelay` and `retryOnErrors` of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Number of attempts after the first one.
    pub(crate) retries: u32,
    /// Delay between attempts.
    pub(crate) delay: Duration,
    /// Retries only if the output contained one of the texts.
    pub(crate) only_on_match: bool,
}

impl Retry {
    /// Returns the delay before the next attempt. `None` if attempt number `attempt`, from 1, was
    /// the last one. `matched` is set if the output of this attempt contained one of
    /// `retryOnErrors`.
    pub(crate) fn next_delay(
        &self,
        attempt: u32,
        ended: &Attempt,
        matched: bool,
    ) -> Option<Duration> {
        let failed = matches!(ended, Attempt::Failed { .. } | Attempt::TimedOut { .. });
        let wanted = !self.only_on_match || matched;
        (failed && wanted && attempt <= self.retries).then_some(self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_depends_on_attempt_result_and_match() {
        let retry = |only_on_match| Retry {
            retries: 2,
            delay: Duration::from_secs(5),
            only_on_match,
        };
        let failed = Attempt::failed("x");
        let late = Attempt::TimedOut { after_secs: 1 };
        let again = Some(Duration::from_secs(5));
        for (only, attempt, ended, matched, expected) in [
            (false, 1, &failed, false, again),
            (false, 2, &late, false, again),
            (false, 3, &failed, false, None),
            (true, 1, &failed, false, None),
            (true, 1, &failed, true, again),
            (false, 1, &Attempt::Succeeded, true, None),
            (false, 1, &Attempt::Stopped, true, None),
        ] {
            assert_eq!(retry(only).next_delay(attempt, ended, matched), expected);
        }
    }
}
