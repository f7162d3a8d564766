//! Retry policy and backoff of requests. Pure except for randomness and the clock.

use std::time::{Duration, Instant};

use super::{ApiError, is_transient};

/// Maximum delay between two tries.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Retry policy of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Total time for retries, from the first failure on.
    pub(crate) total: Duration,
    /// First delay; each further delay doubles.
    pub(crate) first: Duration,
}

impl Default for Retry {
    /// Returns the policy for interactive commands.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(8),
            first: Duration::from_millis(250),
        }
    }
}

impl Retry {
    /// Policy for long operations that must survive a restart of the server.
    pub(crate) const PATIENT: Self = Self {
        total: Duration::from_secs(600),
        first: Duration::from_millis(250),
    };

    /// Starts the backoff of one request.
    pub(crate) fn start(self) -> Backoff {
        Backoff {
            retry: self,
            since: None,
            next: self.first,
        }
    }
}

/// Backoff state of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    retry: Retry,
    since: Option<Instant>,
    next: Duration,
}

impl Backoff {
    /// Returns the delay after `error`; `None` if a retry is useless or could have an effect twice.
    pub(crate) fn delay_after(&mut self, error: &ApiError, repeatable: bool) -> Option<Duration> {
        let retryable = match error {
            ApiError::Unreachable { unsent, .. } => repeatable || *unsent,
            // 429 and 503 mean that the server has not processed the request.
            ApiError::Refused { status, .. } | ApiError::UnexpectedResponse { status, .. } => {
                is_transient(*status) && (repeatable || matches!(status.as_u16(), 429 | 503))
            }
            ApiError::Untrusted { .. }
            | ApiError::EmptyStream { .. }
            | ApiError::InvalidResponse { .. }
            | ApiError::File(_) => false,
        };
        if !retryable {
            return None;
        }
        self.next_delay(error.retry_after())
    }

    /// Returns the next delay, or the `requested` one; `None` if the total time is used up.
    pub(crate) fn next_delay(&mut self, requested: Option<Duration>) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let jitter = 0.75 + 0.5 * rand::random::<f64>();
        let wait = requested.unwrap_or_else(|| self.next.mul_f64(jitter));
        self.next = (self.next * 2).min(MAX_DELAY);
        (since.elapsed() + wait <= self.retry.total).then_some(wait)
    }

    /// Resets the backoff after a success.
    pub(crate) fn reset(&mut self) {
        self.since = None;
        self.next = self.retry.first;
    }
}
