//! The operator's tokens, kept until shortly before they expire.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use acrtask_model::Secret;
use tokio::sync::Mutex;

use crate::VaultError;

/// A token is replaced this long before it expires.
const MARGIN: Duration = Duration::from_secs(60);
/// Longest time for which a token is kept.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// A token with its lifetime, as an issuer sent it.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) token: Secret,
    /// `Duration::ZERO`: it is not kept.
    pub(crate) lifetime: Duration,
}

#[derive(Debug)]
struct Kept {
    token: Secret,
    until: Instant,
}

/// Tokens by what they are for. One caller at a time gets a new one, and the others wait for it.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    kept: Mutex<HashMap<String, Kept>>,
}

impl Tokens {
    /// Returns the token that is kept as `key`, or the one that `issue` gets.
    ///
    /// `refused`: a token that a vault did not accept, and so is not returned again. It is replaced once for all
    /// secrets of a reading, as `renewed` notes: a vault says the same of a path that no token of the operator may read.
    pub(crate) async fn get(
        &self,
        key: &str,
        refused: Option<&Secret>,
        renewed: &AtomicBool,
        issue: impl Future<Output = Result<Issued, VaultError>>,
    ) -> Result<Secret, VaultError> {
        let mut kept = self.kept.lock().await;
        if let Some(found) = kept.get(key)
            && Instant::now() < found.until
            && refused.is_none_or(|refused| {
                refused.expose() != found.token.expose() || renewed.swap(true, Ordering::Relaxed)
            })
        {
            return Ok(found.token.clone());
        }
        kept.remove(key);
        let issued = issue.await?;
        let lifetime = issued.lifetime.min(MAX_AGE).saturating_sub(MARGIN);
        if !lifetime.is_zero() {
            kept.insert(
                key.to_owned(),
                Kept {
                    token: issued.token.clone(),
                    until: Instant::now() + lifetime,
                },
            );
        }
        Ok(issued.token)
    }
}
