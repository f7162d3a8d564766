//! How many requests a registry gets with one login. Pure: the time is given.
//!
//! A bucket that fills at a rate. Invariants: the rate is never above the one that the operator allows; an answer that
//! asks to wait stops everything for that long and halves the rate, which grows back with answers that do not; a
//! registry that counts our requests gets no more than it says it has left for the rest of its window.

use std::time::{Duration, Instant};

use acrtask_registry::Allowance;

/// Requests that may be made at once after a pause, in seconds of the rate.
const BURST: f64 = 1.0;
/// The slowest rate, in requests a second: one in a minute.
const SLOWEST: f64 = 1.0 / 60.0;
/// How much of a rate comes back with each good answer.
const RECOVERY: f64 = 1.05;
/// The wait where a registry asks for one and does not say how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);

/// The budget of one registry and login.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Requests a second at most.
    most: f64,
    rate: f64,
    tokens: f64,
    at: Instant,
    until: Option<Instant>,
    remaining: Option<u64>,
}

impl Budget {
    /// A full one, of at most so many requests a second.
    pub(crate) fn new(most: f64, now: Instant) -> Self {
        let most = most.max(SLOWEST);
        Self {
            most,
            rate: most,
            tokens: (most * BURST).max(1.0),
            at: now,
            until: None,
            remaining: None,
        }
    }

    /// Takes a request out, or says how long to wait before asking again.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(until) = self.until {
            if now < until {
                return Err(until - now);
            }
            self.until = None;
        }
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + filled).min((self.rate * BURST).max(1.0));
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }

    /// The registry has answered, and may have said what it allows.
    pub(crate) fn answered(&mut self, now: Instant, allowance: Option<Allowance>) {
        let before = self.remaining;
        self.remaining = allowance.map(|said| said.remaining);
        let Some(Allowance { remaining, window }) = allowance else {
            self.rate = (self.rate * RECOVERY).min(self.most);
            return;
        };
        let window = window.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        if remaining == 0 {
            self.until = Some(now + window);
            return;
        }
        // Registries that do not count this kind of request say the same number for ever.
        if before.is_some_and(|before| remaining < before) {
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let left = remaining as f64 / window.as_secs_f64().max(1.0);
            self.rate = left.clamp(SLOWEST, self.most);
        } else {
            self.rate = (self.rate * RECOVERY).min(self.most);
        }
    }

    /// The registry asks to wait. Says for how long nothing is asked.
    pub(crate) fn refused(&mut self, now: Instant, retry_after: Option<Duration>) -> Duration {
        let wait = retry_after.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        // Those that were under way side by side are refused together, which is one refusal.
        if self.until.is_none_or(|until| until <= now) {
            self.rate = (self.rate / 2.0).max(SLOWEST);
        }
        let until = self.until.map_or(now + wait, |until| until.max(now + wait));
        self.tokens = 0.0;
        self.at = until;
        self.until = Some(until);
        until - now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn second(now: Instant, seconds: f64) -> Instant {
        now + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_registry_that_asks_to_wait_gets_nothing_and_then_less() {
        let now = Instant::now();
        let mut budget = Budget::new(10.0, now);
        for _ in 0..10 {
            assert_eq!(budget.take(now), Ok(()));
        }
        assert!(budget.take(now).is_err());
        assert_eq!(
            budget.refused(now, Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            budget.refused(now, Some(Duration::from_secs(3))),
            Duration::from_secs(7),
            "it was under way beside that"
        );
        assert_eq!(budget.take(second(now, 6.0)), Err(Duration::from_secs(1)));
        assert!(budget.take(second(now, 7.0)).is_err(), "it starts empty");
        let taken = (0..100)
            .filter(|step| {
                budget
                    .take(second(now, 7.0 + f64::from(*step) / 10.0))
                    .is_ok()
            })
            .count();
        assert!((45..=50).contains(&taken), "half of the rate: {taken}");
        assert_eq!(budget.refused(now, None), DEFAULT_WAIT);
    }

    #[test]
    fn a_registry_that_counts_gets_what_is_left() {
        let now = Instant::now();
        let mut budget = Budget::new(10.0, now);
        let said = |remaining| {
            Some(Allowance {
                remaining,
                window: Some(Duration::from_secs(100)),
            })
        };
        budget.answered(now, said(50));
        assert!((budget.rate - 10.0).abs() < 0.01, "it may not count these");
        budget.answered(now, said(49));
        assert!((budget.rate - 0.49).abs() < 0.01, "{}", budget.rate);
        budget.answered(now, said(0));
        assert_eq!(budget.take(now), Err(Duration::from_secs(100)));
        assert_eq!(budget.take(second(now, 100.0)), Ok(()));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate(steps in prop::collection::vec((0u32..400, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut budget = Budget::new(5.0, start);
            let mut taken = 0u32;
            for (ms, good) in steps {
                now += Duration::from_millis(ms.into());
                if budget.take(now).is_ok() {
                    taken += 1;
                    if good { budget.answered(now, None); } else { budget.refused(now, Some(Duration::from_millis(50))); }
                }
            }
            let most = (now - start).as_secs_f64() * 5.0 + 5.0;
            prop_assert!(f64::from(taken) <= most + 0.001, "{taken} of {most}");
        }
    }
}
