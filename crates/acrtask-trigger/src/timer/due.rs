//! Due work of a timer.

use acrtask_api::task::MissedFirings;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Schedule;

/// Maximum delay of a firing on time. A firing with an older start is missed.
pub const ON_TIME: SignedDuration = SignedDuration::from_mins(5);

/// Maximum count of missed firings.
pub const MAX_COUNTED: usize = 1000;

/// Due work of a timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// No firing is due.
    Wait {
        /// Time of the next start. `None` if there is none.
        until: Option<Timestamp>,
    },
    /// At least one firing is due.
    Firings {
        /// The firing that starts a run. `None` if none does.
        run: Option<Timestamp>,
        /// Older firings that start no run of their own. If the timer runs once for all missed
        /// firings, `run` replaces them; otherwise they are suppressed.
        missed: Option<Missed>,
        /// The newest of these firings, which the caller stores as handled.
        handled: Timestamp,
    },
}

/// Firings that start no run of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The oldest firing.
    pub first: Timestamp,
    /// The newest firing.
    pub last: Timestamp,
    /// Number of firings. [`MAX_COUNTED`] means that many or more.
    pub count: usize,
}

impl Schedule {
    /// Returns the due work at `now`.
    ///
    /// `handled` is the newest handled firing, or the time at which the timer was created or
    /// enabled.
    ///
    /// Any number of servers may call this. One server stores its result in a transaction that
    /// fails if `handled` has changed or a run of (task, timer, firing) exists; the other servers
    /// then find no work. A clock that is behind or jumps back causes waiting, never a second
    /// firing.
    pub fn due(&self, handled: Timestamp, now: Timestamp) -> Due {
        let wait = || Due::Wait {
            until: self.next(handled).map(|firing| self.starts_at(firing)),
        };
        // Firings up to `until` have their start up to `now`.
        let Ok(until) = now.checked_sub(self.offset) else {
            return wait();
        };
        let Some(last) = self.newest_firing(handled, until) else {
            return wait();
        };
        let on_time = now.duration_since(self.starts_at(last)) <= ON_TIME;
        let run = (on_time || self.missed == MissedFirings::RunOnce).then_some(last);
        let before = if run.is_some() {
            last.checked_sub(SignedDuration::from_nanos(1))
                .unwrap_or(last)
        } else {
            last
        };
        let missed = self.firings(handled, before, MAX_COUNTED);
        let missed = missed.first().map(|first| Missed {
            first: *first,
            last: self.newest_firing(handled, before).unwrap_or(*first),
            count: missed.len(),
        });
        Due::Firings {
            run,
            missed,
            handled: last,
        }
    }

    /// Returns the newest firing after `after` up to and including `until`.
    ///
    /// The search uses growing steps, so that an outage of years costs no more than one of days.
    fn newest_firing(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        const STEPS: [i64; 4] = [1, 24, 24 * 32, 24 * 366];
        for hours in STEPS {
            let from = until
                .checked_sub(SignedDuration::from_hours(hours))
                .unwrap_or(after);
            let from = from.max(after);
            let newest = self.firings(from, until, usize::MAX).pop();
            if newest.is_some() || from == after {
                return newest;
            }
        }
        self.firings(after, until, usize::MAX).pop()
    }
}
