//! Request budget of a registry and login: a token bucket. Pure; the caller passes the time.
//!
//! Invariants:
//!
//! - The rate never exceeds the configured rate.
//! - A rate limit response stops all requests for the requested time and halves the rate. Later
//!   successful responses raise it again.
//! - A registry that reports its remaining requests never gets more of them in its window.

use std::time::{Duration, Instant};

use acrtask_registry::Allowance;

/// Burst after a pause, in seconds of the rate.
const BURST_SECS: f64 = 1.0;
/// Minimum rate in requests per second: one per minute.
const MIN_RATE: f64 = 1.0 / 60.0;
/// Factor that raises the rate after each successful response.
const RECOVERY_FACTOR: f64 = 1.05;
/// Delay if a rate limit response names none.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// Maximum delay accepted from a registry.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);

/// Token bucket of one registry and login.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Maximum rate in requests per second.
    max_rate: f64,
    rate: f64,
    tokens: f64,
    at: Instant,
    until: Option<Instant>,
    remaining: Option<u64>,
}

impl Budget {
    /// Creates a full bucket with at most `max_rate` requests per second.
    pub(crate) fn new(max_rate: f64, now: Instant) -> Self {
        let max_rate = max_rate.max(MIN_RATE);
        Self {
            max_rate,
            rate: max_rate,
            tokens: (max_rate * BURST_SECS).max(1.0),
            at: now,
            until: None,
            remaining: None,
        }
    }

    /// Takes one request. `Err` contains the delay until the next attempt.
    pub(crate) fn try_take(&mut self, now: Instant) -> Result<(), Duration> {
        if let Some(until) = self.until {
            if now < until {
                return Err(until - now);
            }
            self.until = None;
        }
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + filled).min((self.rate * BURST_SECS).max(1.0));
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }

    /// Records a response and the remaining requests that it reported.
    pub(crate) fn record_response(&mut self, now: Instant, allowance: Option<Allowance>) {
        let before = self.remaining;
        self.remaining = allowance.map(|allowance| allowance.remaining);
        let Some(Allowance { remaining, window }) = allowance else {
            self.rate = (self.rate * RECOVERY_FACTOR).min(self.max_rate);
            return;
        };
        let window = window.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        if remaining == 0 {
            self.until = Some(now + window);
            return;
        }
        // Some registries do not count this kind of request and always report the same number.
        if before.is_some_and(|before| remaining < before) {
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let left = remaining as f64 / window.as_secs_f64().max(1.0);
            self.rate = left.clamp(MIN_RATE, self.max_rate);
        } else {
            self.rate = (self.rate * RECOVERY_FACTOR).min(self.max_rate);
        }
    }

    /// Records a rate limit response. Returns the time without requests.
    pub(crate) fn record_rate_limit(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
    ) -> Duration {
        let wait = retry_after.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        // Concurrent requests are all refused at once. They count as one refusal.
        if self.until.is_none_or(|until| until <= now) {
            self.rate = (self.rate / 2.0).max(MIN_RATE);
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

    fn seconds_after(now: Instant, seconds: f64) -> Instant {
        now + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn rate_limit_stops_requests_and_halves_the_rate() {
        let now = Instant::now();
        let mut budget = Budget::new(10.0, now);
        for _ in 0..10 {
            assert_eq!(budget.try_take(now), Ok(()));
        }
        assert!(budget.try_take(now).is_err());
        assert_eq!(
            budget.record_rate_limit(now, Some(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        assert_eq!(
            budget.record_rate_limit(now, Some(Duration::from_secs(3))),
            Duration::from_secs(7),
            "a concurrent request"
        );
        assert_eq!(
            budget.try_take(seconds_after(now, 6.0)),
            Err(Duration::from_secs(1))
        );
        assert!(
            budget.try_take(seconds_after(now, 7.0)).is_err(),
            "it starts empty"
        );
        let taken = (0..100)
            .filter(|step| {
                budget
                    .try_take(seconds_after(now, 7.0 + f64::from(*step) / 10.0))
                    .is_ok()
            })
            .count();
        assert!((45..=50).contains(&taken), "half of the rate: {taken}");
        assert_eq!(budget.record_rate_limit(now, None), DEFAULT_WAIT);
    }

    #[test]
    fn reported_remaining_requests_limit_the_rate() {
        let now = Instant::now();
        let mut budget = Budget::new(10.0, now);
        let reported = |remaining| {
            Some(Allowance {
                remaining,
                window: Some(Duration::from_secs(100)),
            })
        };
        budget.record_response(now, reported(50));
        assert!(
            (budget.rate - 10.0).abs() < 0.01,
            "the registry may not count these"
        );
        budget.record_response(now, reported(49));
        assert!((budget.rate - 0.49).abs() < 0.01, "{}", budget.rate);
        budget.record_response(now, reported(0));
        assert_eq!(budget.try_take(now), Err(Duration::from_secs(100)));
        assert_eq!(budget.try_take(seconds_after(now, 100.0)), Ok(()));
    }

    proptest! {
        #[test]
        fn rate_is_never_exceeded(steps in prop::collection::vec((0u32..400, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut budget = Budget::new(5.0, start);
            let mut taken = 0u32;
            for (ms, good) in steps {
                now += Duration::from_millis(ms.into());
                if budget.try_take(now).is_ok() {
                    taken += 1;
                    if good { budget.record_response(now, None); } else { budget.record_rate_limit(now, Some(Duration::from_millis(50))); }
                }
            }
            let allowed = (now - start).as_secs_f64() * 5.0 + 5.0;
            prop_assert!(f64::from(taken) <= allowed + 0.001, "{taken} of {allowed}");
        }
    }
}
