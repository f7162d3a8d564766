//! Delay before the next attempt: 100 ms, doubling up to 5 s.
//!
//! A random factor from one half to one spreads the delays, so that many runners do not return at
//! once. Pure, except that the caller passes the random number.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Counter of consecutive failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Resets the delay after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the delay after one more failure. `random` is from 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let longest = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Waits after one more failure.
    #[allow(clippy::disallowed_methods, reason = "delays are random")]
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next(rand::random())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_are_spread() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next(0.0).as_millis(), 2500);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
    }
}
