//! How often addresses may fail and tokens may ask. In memory, bounded, and lost with it.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Mutex};

use crate::api::ApiError;

/// Failed authentications that an address may have, and how fast they are forgiven.
const FAILURES: Rate = Rate {
    burst: 20.0,
    per_second: 0.2,
};
/// Requests of one token.
const REQUESTS: Rate = Rate {
    burst: 5000.0,
    per_second: 1000.0,
};
/// Calls of one URL that starts runs.
const CALLS: Rate = Rate {
    burst: 60.0,
    per_second: 1.0,
};
/// Addresses, or tokens, that are counted at once.
const MAX_COUNTED: usize = 20_000;
/// What may be done how often: a bucket of `burst` that fills again.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: i64,
}

/// Buckets by key, of which no more than [`MAX_COUNTED`] are remembered.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    of: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            of: HashMap::new(),
        }
    }

    fn filled(rate: Rate, bucket: Bucket, now: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of minutes")]
        let passed = (now - bucket.at).max(0) as f64 / 1000.0;
        (bucket.left + passed * rate.per_second).min(rate.burst)
    }

    fn left(&self, key: &K, now: i64) -> f64 {
        self.of.get(key).map_or(self.rate.burst, |bucket| {
            Self::filled(self.rate, *bucket, now)
        })
    }

    fn take(&mut self, key: K, now: i64) {
        let left = (self.left(&key, now) - 1.0).max(0.0);
        if self.of.len() >= MAX_COUNTED && !self.of.contains_key(&key) {
            let rate = self.rate;
            self.of
                .retain(|_, bucket| Self::filled(rate, *bucket, now) < rate.burst);
            if self.of.len() >= MAX_COUNTED {
                self.of.clear();
            }
        }
        self.of.insert(key, Bucket { left, at: now });
    }

    /// Seconds until one may be taken again, at least 1.
    fn wait(&self, key: &K, now: i64) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and a few"
        )]
        let seconds = ((1.0 - self.left(key, now)) / self.rate.per_second)
            .ceil()
            .clamp(1.0, 3600.0) as u32;
        seconds
    }
}

/// Limits how often addresses fail and tokens ask. In memory, and lost with it.
#[derive(Debug)]
pub struct Limits {
    failures: Mutex<Buckets<IpAddr>>,
    requests: Mutex<Buckets<String>>,
    calls: Mutex<Buckets<String>>,
    /// Calls that were turned away and are not written down yet.
    turned_away: Mutex<HashMap<String, u64>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failures: Mutex::new(Buckets::new(FAILURES)),
            requests: Mutex::new(Buckets::new(REQUESTS)),
            calls: Mutex::new(Buckets::new(CALLS)),
            turned_away: Mutex::default(),
        }
    }
}

impl Limits {
    /// Refuses an address that has failed too often.
    ///
    /// # Errors
    /// 429.
    pub fn failures_left(&self, address: IpAddr, now: i64) -> Result<(), ApiError> {
        let failures = self.failures.lock().expect("no panic while it is held");
        if failures.left(&address, now) >= 1.0 {
            return Ok(());
        }
        Err(ApiError::too_many(
            "too many wrong tokens came from this address",
            failures.wait(&address, now),
        ))
    }

    /// Counts a failure.
    pub fn failed(&self, address: IpAddr, now: i64) {
        self.failures
            .lock()
            .expect("no panic while it is held")
            .take(address, now);
    }

    pub(super) fn request(&self, token: &str, now: i64) -> Result<(), ApiError> {
        let mut requests = self.requests.lock().expect("no panic while it is held");
        let key = token.to_owned();
        if requests.left(&key, now) < 1.0 {
            return Err(ApiError::too_many(
                "this token asks too often",
                requests.wait(&key, now),
            ));
        }
        requests.take(key, now);
        Ok(())
    }

    /// Counts a call of a URL that starts runs, or refuses it.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn call(&self, url: &str, now: i64) -> Result<(), ApiError> {
        let mut calls = self.calls.lock().expect("no panic while it is held");
        let key = url.to_owned();
        if calls.left(&key, now) < 1.0 {
            return Err(ApiError::too_many(
                "this URL is called too often",
                calls.wait(&key, now),
            ));
        }
        calls.take(key, now);
        Ok(())
    }

    /// Counts a call that was turned away. True: the first one that is not written down yet, for which the caller cares.
    pub(crate) fn turn_away(&self, url: &str) -> bool {
        let mut all = self.turned_away.lock().expect("no panic while it is held");
        let count = all.entry(url.to_owned()).or_default();
        *count += 1;
        *count == 1
    }

    /// How many were turned away that are to be written down now.
    pub(crate) fn turned_away(&self, url: &str) -> u64 {
        let mut all = self.turned_away.lock().expect("no panic while it is held");
        all.remove(url).unwrap_or_default()
    }

    /// Whether a token with this id was right lately.
    pub(super) fn is_known(&self, token: &str) -> bool {
        self.requests
            .lock()
            .expect("no panic while it is held")
            .of
            .contains_key(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn failures_are_forgiven_slowly() {
        let limits = Limits::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..20 {
            limits.failures_left(one, 0).unwrap();
            limits.failed(one, 0);
        }
        let refused = limits.failures_left(one, 0).unwrap_err();
        assert_eq!(refused.retry_after(), Some(5));
        limits.failures_left(other, 0).unwrap();
        limits.failures_left(one, 5000).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn what_is_counted_is_bounded(keys in proptest::collection::vec(0_u32.., 1..200)) {
            let mut buckets = Buckets::new(FAILURES);
            for extra in 0..u32::try_from(MAX_COUNTED).unwrap() {
                buckets.take(u64::from(extra) << 32, 0);
            }
            for key in keys {
                buckets.take(u64::from(key), 0);
                prop_assert!(buckets.of.len() <= MAX_COUNTED);
            }
        }
    }
}
