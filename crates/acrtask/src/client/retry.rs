//! When to ask again, and after how long. Pure but for the dice and the clock that is handed in.

use std::time::{Duration, Instant};

use super::{ApiError, is_passing};

/// Longest single wait.
const LONGEST: Duration = Duration::from_secs(10);

/// How long a request is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    /// From the first failure on.
    pub(crate) total: Duration,
    /// The first wait; each next one is twice as long.
    pub(crate) first: Duration,
}

impl Default for Retry {
    /// For a person who waits.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(8),
            first: Duration::from_millis(250),
        }
    }
}

impl Retry {
    /// For what is under way and must not end with a server that starts again.
    pub(crate) const PATIENT: Self = Self {
        total: Duration::from_secs(600),
        first: Duration::from_millis(250),
    };

    /// The waits of one request.
    pub(crate) fn begin(self) -> Waits {
        Waits {
            retry: self,
            since: None,
            next: self.first,
        }
    }
}

/// The waits of one request so far.
#[derive(Debug)]
pub(crate) struct Waits {
    retry: Retry,
    since: Option<Instant>,
    next: Duration,
}

impl Waits {
    /// How long to wait after `error`; nothing where asking again is of no use, or could do something twice.
    pub(crate) fn after(&mut self, error: &ApiError, repeatable: bool) -> Option<Duration> {
        let again = match error {
            ApiError::Unreachable { unsent, .. } => repeatable || *unsent,
            // A server that says this has done nothing.
            ApiError::Refused { status, .. } | ApiError::Strange { status, .. } => {
                is_passing(*status) && (repeatable || matches!(status.as_u16(), 429 | 503))
            }
            ApiError::Untrusted { .. }
            | ApiError::CutOff { .. }
            | ApiError::NotUnderstood { .. }
            | ApiError::File(_) => false,
        };
        if !again {
            return None;
        }
        self.next(error.retry_after())
    }

    /// How long to wait now, or as long as was `asked` for; nothing once it took too long.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let dice = 0.75 + 0.5 * rand::random::<f64>();
        let wait = asked.unwrap_or_else(|| self.next.mul_f64(dice));
        self.next = (self.next * 2).min(LONGEST);
        (since.elapsed() + wait <= self.retry.total).then_some(wait)
    }

    /// It went well: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.since = None;
        self.next = self.retry.first;
    }
}
