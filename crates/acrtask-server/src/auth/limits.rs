//! Limits of wrong credentials, of requests per token, and of lookups of credentials that are not known yet.
//!
//! Invariants: a credential is looked up before anything is counted, so that a valid one always passes; wrong
//! ones are counted by kind and address, and only change the answer; lookups for unknown credentials run a
//! few at a time, those that were valid a moment ago do not wait for them. In memory, bounded, and lost with it.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Mutex,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::ApiError;

/// Wrong credentials of one kind that an address may send, and how fast they are forgiven.
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
/// Lookups at once of credentials that are not known to be valid. The database has 4 readers or more.
const LOOKUPS: usize = 3;

/// A kind of credential. Failures with one kind do not count for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CredentialKind {
    /// A token of the API.
    Token,
    /// An identity token of a CI job.
    Identity,
    /// The URL of a task.
    TriggerUrl,
    /// The key of a runner, or what registers one.
    RunnerKey,
    /// The signature of a delivery.
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
pub(crate) struct Limits {
    failures: Mutex<Buckets<(CredentialKind, IpAddr)>>,
    requests: Mutex<Buckets<String>>,
    calls: Mutex<Buckets<String>>,
    /// Calls that were turned away and are not written down yet.
    turned_away: Mutex<HashMap<String, u64>>,
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
            turned_away: Mutex::default(),
            valid: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
        }
    }
}

impl Limits {
    /// Counts a wrong credential. Returns the answer: `refusal`, or 429 once the address has sent too many.
    pub(crate) fn fail(
        &self,
        kind: CredentialKind,
        address: IpAddr,
        now: i64,
        refusal: ApiError,
    ) -> ApiError {
        let mut failures = self.failures.lock().expect("no panic while it is held");
        let key = (kind, address);
        if failures.left(&key, now) < 1.0 {
            let message = format!("too many {} came from this address", kind.plural());
            return ApiError::too_many(message, failures.wait(&key, now));
        }
        failures.take(key, now);
        refusal
    }

    /// Waits for a turn to look a credential up. Returns at once for one that was valid at its last use.
    pub(crate) async fn lookup(&self, hash: &[u8]) -> Option<SemaphorePermit<'_>> {
        if self.recognizes(hash) {
            return None;
        }
        self.lookups.acquire().await.ok()
    }

    /// Returns whether the credential with this hash was valid at its last use.
    fn recognizes(&self, hash: &[u8]) -> bool {
        self.valid
            .lock()
            .expect("no panic while it is held")
            .contains(hash)
    }

    /// Returns whether `Authorization` has a token or key that was valid at its last use.
    pub(crate) fn recognizes_header(&self, headers: &http::HeaderMap) -> bool {
        let Some(text) = super::bearer(headers) else {
            return false;
        };
        match super::parse(text) {
            Some((_, hash)) => self.recognizes(&hash),
            None => crate::runners::key_hash(text).is_some_and(|hash| self.recognizes(&hash)),
        }
    }

    /// Notes that the credential with this hash is valid.
    pub(crate) fn remember(&self, hash: &[u8]) {
        let mut valid = self.valid.lock().expect("no panic while it is held");
        if valid.len() >= MAX_COUNTED {
            valid.clear();
        }
        valid.insert(hash.to_vec());
    }

    /// Notes that the credential with this hash is not valid any more.
    pub(crate) fn forget(&self, hash: &[u8]) {
        self.valid
            .lock()
            .expect("no panic while it is held")
            .remove(hash);
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
            let refusal = limits.fail(kind, address, now, ApiError::unauthorized("wrong"));
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
    async fn credentials_that_were_valid_wait_for_no_lookup() {
        let limits = Limits::default();
        let mut turns = Vec::new();
        for number in 0..LOOKUPS {
            turns.push(limits.lookup(&[u8::try_from(number).unwrap()]).await);
        }
        let waits = std::time::Duration::from_millis(20);
        let unknown = tokio::time::timeout(waits, limits.lookup(b"unknown")).await;
        assert!(unknown.is_err());
        limits.remember(b"valid");
        assert!(limits.lookup(b"valid").await.is_none());
        limits.forget(b"valid");
        let forgotten = tokio::time::timeout(waits, limits.lookup(b"valid")).await;
        assert!(forgotten.is_err());
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
