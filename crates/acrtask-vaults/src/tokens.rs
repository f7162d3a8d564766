//! The operator's tokens, cached until shortly before they expire.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use acrtask_model::Secret;
use tokio::sync::Mutex;

use crate::VaultError;

/// Time before the expiry at which a token is replaced.
const MARGIN: Duration = Duration::from_secs(60);
/// Maximum time for which a token is cached.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// A token with its lifetime, as an issuer sent it.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) token: Secret,
    /// `Duration::ZERO`: the token is not cached.
    pub(crate) lifetime: Duration,
}

#[derive(Debug)]
struct CachedToken {
    token: Secret,
    until: Instant,
}

/// Cached tokens by key. Only one caller at a time requests a new one, and the others wait for it.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    cached: Mutex<HashMap<String, CachedToken>>,
}

impl Tokens {
    /// Returns the cached token for `key`, or the one that `issue` requests.
    ///
    /// `refused` is a token that a vault did not accept, which is not returned again. It is
    /// replaced once for all secrets of a call, as `renewed` records. A vault sends the same
    /// response for a path that no token of the operator may read.
    pub(crate) async fn get(
        &self,
        key: &str,
        refused: Option<&Secret>,
        renewed: &AtomicBool,
        issue: impl Future<Output = Result<Issued, VaultError>>,
    ) -> Result<Secret, VaultError> {
        let mut cached = self.cached.lock().await;
        if let Some(found) = cached.get(key)
            && Instant::now() < found.until
            && refused.is_none_or(|refused| {
                refused.expose() != found.token.expose() || renewed.swap(true, Ordering::Relaxed)
            })
        {
            return Ok(found.token.clone());
        }
        cached.remove(key);
        let issued = issue.await?;
        let lifetime = issued.lifetime.min(MAX_AGE).saturating_sub(MARGIN);
        if !lifetime.is_zero() {
            cached.insert(
                key.to_owned(),
                CachedToken {
                    token: issued.token.clone(),
                    until: Instant::now() + lifetime,
                },
            );
        }
        Ok(issued.token)
    }
}
