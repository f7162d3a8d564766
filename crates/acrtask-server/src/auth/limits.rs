//! Limits of wrong credentials, of requests per token, and of lookups of unverified credentials.
//!
//! Invariants:
//! * A credential is looked up before anything is counted, so that a valid one always passes.
//! * Wrong credentials are counted per kind and address. The count only changes the response.
//! * At most `LOOKUPS` unverified credentials are looked up at once. A credential that was valid at
//!   its last use does not wait.
//! * All counters are in memory, bounded, and lost at a restart.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Mutex,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::ApiError;

/// Wrong credentials of one kind that an address may send, and the rate at which they are forgiven.
const FAILURES: Rate = Rate {
    burst: 20.0,
    per_second: 0.2,
};
/// Requests with one token.
const REQUESTS: Rate = Rate {
    burst: 5000.0,
    per_second: 1000.0,
};
/// Calls of one trigger URL.
const CALLS: Rate = Rate {
    burst: 60.0,
    per_second: 1.0,
};
/// Most addresses or tokens that are counted at once.
const MAX_COUNTED: usize = 20_000;
/// Lookups at once of unverified credentials. The database has at least 4 readers.
const LOOKUPS: usize = 3;

/// A kind of credential. Failures with one kind do not count for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CredentialKind {
    /// A token of the API.
    Token,
    /// An identity token of a CI job.
    Identity,
    /// The trigger URL of a task.
    TriggerUrl,
    /// The key or registration token of a runner.
    RunnerKey,
    /// The signature of a webhook delivery.
    Webhook,
}

impl CredentialKind {
    fn plural(self) -> &'static str {
        match self {
            Self::Token => "wrong tokens",
            Self::Identity => "wrong identity tokens",
            Self::TriggerUrl => "wrong trigger URLs",
            Self::RunnerKey => "wrong runner keys",
            Self::Webhook => "deliveries with a wrong signature",
        }
    }
}

/// Rate of a token bucket: at most `burst` at once, refilled at `per_second`.
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

/// Token buckets by key, at most [`MAX_COUNTED`].
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    by_key: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            by_key: HashMap::new(),
        }
    }

    fn refilled(rate: Rate, bucket: Bucket, now: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of minutes")]
        let passed = (now - bucket.at).max(0) as f64 / 1000.0;
        (bucket.left + passed * rate.per_second).min(rate.burst)
    }

    fn tokens_left(&self, key: &K, now: i64) -> f64 {
        self.by_key.get(key).map_or(self.rate.burst, |bucket| {
            Self::refilled(self.rate, *bucket, now)
        })
    }

    fn take_token(&mut self, key: K, now: i64) {
        let left = (self.tokens_left(&key, now) - 1.0).max(0.0);
        if self.by_key.len() >= MAX_COUNTED && !self.by_key.contains_key(&key) {
            let rate = self.rate;
            self.by_key
                .retain(|_, bucket| Self::refilled(rate, *bucket, now) < rate.burst);
            if self.by_key.len() >= MAX_COUNTED {
                self.by_key.clear();
            }
        }
        self.by_key.insert(key, Bucket { left, at: now });
    }

    /// Returns the seconds until the bucket has a token again, at least 1.
    fn wait_secs(&self, key: &K, now: i64) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and a few"
        )]
        let seconds = ((1.0 - self.tokens_left(key, now)) / self.rate.per_second)
            .ceil()
            .clamp(1.0, 3600.0) as u32;
        seconds
    }
}

/// Counters that limit the failures of addresses and the requests of tokens.
#[derive(Debug)]
pub(crate) struct Limits {
    failures: Mutex<Buckets<(CredentialKind, IpAddr)>>,
    requests: Mutex<Buckets<String>>,
    calls: Mutex<Buckets<String>>,
    /// Rejected calls per trigger URL that are not stored yet.
    rejected_calls: Mutex<HashMap<String, u64>>,
    /// Hashes of tokens and keys that were valid at their last use.
    valid: Mutex<HashSet<Vec<u8>>>,
    lookups: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failures: Mutex::new(Buckets::new(FAILURES)),
            requests: Mutex::new(Buckets::new(REQUESTS)),
            calls: Mutex::new(Buckets::new(CALLS)),
            rejected_calls: Mutex::default(),
            valid: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
        }
    }
}

impl Limits {
    /// Counts a wrong credential. Returns the response: `refusal`, or 429 if the address has sent
    /// too many.
    pub(crate) fn count_failure(
        &self,
        kind: CredentialKind,
        address: IpAddr,
        now: i64,
        refusal: ApiError,
    ) -> ApiError {
        let mut failures = self.failures.lock().expect("no panic while it is held");
        let key = (kind, address);
        if failures.tokens_left(&key, now) < 1.0 {
            let message = format!("this address has sent too many {}", kind.plural());
            return ApiError::too_many(message, failures.wait_secs(&key, now));
        }
        failures.take_token(key, now);
        refusal
    }

    /// Acquires a permit to look up a credential. Returns `None` at once if it was valid at its
    /// last use.
    pub(crate) async fn acquire_lookup(&self, hash: &[u8]) -> Option<SemaphorePermit<'_>> {
        if self.recognizes(hash) {
            return None;
        }
        self.lookups.acquire().await.ok()
    }

    /// Returns `true` if the credential with this hash was valid at its last use.
    fn recognizes(&self, hash: &[u8]) -> bool {
        self.valid
            .lock()
            .expect("no panic while it is held")
            .contains(hash)
    }

    /// Returns `true` if `Authorization` has a token or key that was valid at its last use.
    pub(crate) fn recognizes_header(&self, headers: &http::HeaderMap) -> bool {
        let Some(text) = super::bearer_token(headers) else {
            return false;
        };
        match super::parse_token(text) {
            Some((_, hash)) => self.recognizes(&hash),
            None => crate::runners::hash_key(text).is_some_and(|hash| self.recognizes(&hash)),
        }
    }

    /// Records that the credential with this hash is valid.
    pub(crate) fn remember(&self, hash: &[u8]) {
        let mut valid = self.valid.lock().expect("no panic while it is held");
        if valid.len() >= MAX_COUNTED {
            valid.clear();
        }
        valid.insert(hash.to_vec());
    }

    /// Records that the credential with this hash became invalid.
    pub(crate) fn forget(&self, hash: &[u8]) {
        self.valid
            .lock()
            .expect("no panic while it is held")
            .remove(hash);
    }

    pub(super) fn count_request(&self, token: &str, now: i64) -> Result<(), ApiError> {
        let mut requests = self.requests.lock().expect("no panic while it is held");
        let key = token.to_owned();
        if requests.tokens_left(&key, now) < 1.0 {
            return Err(ApiError::too_many(
                "this token sends requests too often",
                requests.wait_secs(&key, now),
            ));
        }
        requests.take_token(key, now);
        Ok(())
    }

    /// Counts a call of a trigger URL.
    ///
    /// # Errors
    /// Returns 429 if the URL is called too often.
    pub(crate) fn count_call(&self, url: &str, now: i64) -> Result<(), ApiError> {
        let mut calls = self.calls.lock().expect("no panic while it is held");
        let key = url.to_owned();
        if calls.tokens_left(&key, now) < 1.0 {
            return Err(ApiError::too_many(
                "this URL is called too often",
                calls.wait_secs(&key, now),
            ));
        }
        calls.take_token(key, now);
        Ok(())
    }

    /// Counts a rejected call. Returns `true` if it is the first one since the last
    /// [`Self::take_rejected_calls`].
    pub(crate) fn count_rejected_call(&self, url: &str) -> bool {
        let mut all = self
            .rejected_calls
            .lock()
            .expect("no panic while it is held");
        let count = all.entry(url.to_owned()).or_default();
        *count += 1;
        *count == 1
    }

    /// Returns and resets the number of rejected calls of a trigger URL.
    pub(crate) fn take_rejected_calls(&self, url: &str) -> u64 {
        let mut all = self
            .rejected_calls
            .lock()
            .expect("no panic while it is held");
        all.remove(url).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn failures_are_counted_by_kind_and_address_and_forgiven_slowly() {
        let limits = Limits::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let fail = |kind, address, now| {
            let refusal = limits.count_failure(kind, address, now, ApiError::unauthorized("wrong"));
            (refusal.status().as_u16(), refusal.retry_after())
        };
        for _ in 0..20 {
            assert_eq!(fail(CredentialKind::Token, one, 0), (401, None));
        }
        assert_eq!(fail(CredentialKind::Token, one, 0), (429, Some(5)));
        assert_eq!(fail(CredentialKind::Token, other, 0), (401, None));
        assert_eq!(fail(CredentialKind::Webhook, one, 0), (401, None));
        assert_eq!(fail(CredentialKind::Token, one, 5000), (401, None));
    }

    #[tokio::test]
    async fn previously_valid_credentials_skip_the_lookup_queue() {
        let limits = Limits::default();
        let mut turns = Vec::new();
        for number in 0..LOOKUPS {
            turns.push(
                limits
                    .acquire_lookup(&[u8::try_from(number).unwrap()])
                    .await,
            );
        }
        let waits = std::time::Duration::from_millis(20);
        let unknown = tokio::time::timeout(waits, limits.acquire_lookup(b"unknown")).await;
        assert!(unknown.is_err());
        limits.remember(b"valid");
        assert!(limits.acquire_lookup(b"valid").await.is_none());
        limits.forget(b"valid");
        let forgotten = tokio::time::timeout(waits, limits.acquire_lookup(b"valid")).await;
        assert!(forgotten.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn number_of_buckets_is_bounded(keys in proptest::collection::vec(0_u32.., 1..200)) {
            let mut buckets = Buckets::new(FAILURES);
            for extra in 0..u32::try_from(MAX_COUNTED).unwrap() {
                buckets.take_token(u64::from(extra) << 32, 0);
            }
            for key in keys {
                buckets.take_token(u64::from(key), 0);
                prop_assert!(buckets.by_key.len() <= MAX_COUNTED);
            }
        }
    }
}
