//! What a timer has to do now.

use acrtask_api::task::MissedTicks;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Schedule;

/// A tick whose start is longer ago than this was missed.
pub const ON_TIME: SignedDuration = SignedDuration::from_mins(5);

/// Missed ticks are counted up to this.
pub const MOST_COUNTED: usize = 1000;

/// What a timer has to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Wait {
        /// When there is something to do; nothing: never.
        until: Option<Timestamp>,
    },
    /// Ticks have come.
    Ticks {
        /// The tick that starts a run, if one does.
        run: Option<Timestamp>,
        /// Older ticks that start none. Where `run` is there and the timer runs once for all, its run stands for them;
        /// else they are suppressed.
        missed: Option<Missed>,
        /// The newest tick of all of these: what to remember as handled.
        handled: Timestamp,
    },
}

/// Ticks that start no run of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The oldest.
    pub first: Timestamp,
    /// The newest.
    pub last: Timestamp,
    /// How many; [`MOST_COUNTED`] stands for that many or more.
    pub count: usize,
}

impl Schedule {
    /// Says what there is to do at `now`, where `handled` is the newest tick that was handled, or the time at which the
    /// timer was made or turned on.
    ///
    /// Any number of servers may ask. One of them writes down what it got, in one transaction that fails unless
    /// `handled` is still what it read, or that a run of (task, timer, tick) can only be made once in; the others then
    /// find nothing to do. A clock that goes backwards, or is behind, leads to waiting, never to a second tick.
    pub fn due(&self, handled: Timestamp, now: Timestamp) -> Due {
        let wait = || Due::Wait {
            until: self.next(handled).map(|tick| self.starts_at(tick)),
        };
        // What starts until now was scheduled until then.
        let Ok(until) = now.checked_sub(self.offset) else {
            return wait();
        };
        let Some(last) = self.last(handled, until) else {
            return wait();
        };
        let on_time = now.duration_since(self.starts_at(last)) <= ON_TIME;
        let run = (on_time || self.missed == MissedTicks::RunOnce).then_some(last);
        let before = if run.is_some() {
            last.checked_sub(SignedDuration::from_nanos(1))
                .unwrap_or(last)
        } else {
            last
        };
        let missed = self.ticks(handled, before, MOST_COUNTED);
        let missed = missed.first().map(|first| Missed {
            first: *first,
            last: self.last(handled, before).unwrap_or(*first),
            count: missed.len(),
        });
        Due::Ticks {
            run,
            missed,
            handled: last,
        }
    }

    /// The newest tick after `after` and not after `until`. Looks back in steps that grow, so that years without a
    /// server cost no more than days.
    fn last(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        const STEPS: [i64; 4] = [1, 24, 24 * 32, 24 * 366];
        for hours in STEPS {
            let from = until
                .checked_sub(SignedDuration::from_hours(hours))
                .unwrap_or(after);
            let from = from.max(after);
            let newest = self.ticks(from, until, usize::MAX).pop();
            if newest.is_some() || from == after {
                return newest;
            }
        }
        self.ticks(after, until, usize::MAX).pop()
    }
}
