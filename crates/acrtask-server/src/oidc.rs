//! Validation of identity tokens of CI systems with the keys of their issuers.
//!
//! Invariants:
//! * The server requests keys only from issuers that a federation names, over https (http on
//!   loopback).
//! * Only signatures with public keys are accepted, never HMAC or `none`.
//! * Issuer, audience, subject and times are all checked.
//! * Keys are cached for `KEEP_MS`. They are fetched once more if a token names a key that is not
//!   cached.
//! * An admin names issuers, so an issuer may have a private address. Keys on another host need a
//!   public address.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use acrtask_api::admin::Federation;
use acrtask_registry::net;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{Jwk, JwkSet, PublicKeyUse},
};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

/// Lifetime of cached keys, in milliseconds.
const KEEP_MS: i64 = 3_600_000;
/// Shortest interval between two fetches for missing keys, in milliseconds.
const REFETCH_MS: i64 = 30_000;
/// Shortest interval between two requests to an issuer that failed, in milliseconds.
const RETRY_MS: i64 = 5_000;
/// Largest response of an issuer, in bytes.
const MAX_RESPONSE: usize = 1 << 20;
/// Longest identity token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Tolerated clock difference, in seconds.
const LEEWAY: i64 = 30;
/// Timeout of one request to an issuer.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Reasons why an identity token is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The token is malformed, or its signature algorithm is not accepted.
    #[error("the identity token cannot be read: {0}")]
    Unreadable(String),
    /// No federation matches the issuer, audience and subject of the token.
    #[error("no federation accepts this identity token: {0}")]
    NoFederation(String),
    /// The signature is wrong, or the token is expired or not valid yet.
    #[error("the identity token is not valid: {0}")]
    Invalid(String),
    /// The issuer failed to provide its keys.
    #[error("the keys of {issuer} cannot be fetched: {reason}")]
    Issuer {
        /// URL of the issuer.
        issuer: String,
        /// Cause of the failure.
        reason: String,
    },
}

/// Result of a valid identity token.
#[derive(Debug)]
pub struct Granted {
    /// Federation that accepts the token.
    pub federation: Federation,
    /// Subject (`sub`) of the token.
    pub subject: String,
}

/// Claims that the server checks.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Audiences {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Cached keys and fetch state of one issuer.
#[derive(Debug, Default)]
struct IssuerState {
    /// Keys and the time of their fetch. Never locked during a request to the issuer.
    keys: Mutex<Option<(Arc<JwkSet>, i64)>>,
    /// Time and result of the last request. Locked during a request to the issuer.
    last_fetch: tokio::sync::Mutex<Option<(i64, Result<(), String>)>>,
}

impl IssuerState {
    /// Returns the key that a token names, if it is cached and not older than [`KEEP_MS`].
    fn cached_key(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: i64,
    ) -> Option<Result<DecodingKey, ExchangeError>> {
        let keys = self.keys.lock().expect("no panic while it is held").clone();
        let (set, fetched) = keys?;
        (now - fetched < KEEP_MS)
            .then(|| find_key(&set, kid, algorithm).map(decoding_key))
            .flatten()
    }

    /// Fetches the keys of the issuer, unless the last fetch was a moment ago.
    async fn refresh(&self, issuer: &str, now: i64) -> Result<(), String> {
        let mut last_fetch = self.last_fetch.lock().await;
        match &*last_fetch {
            Some((at, Err(reason))) if now - at < RETRY_MS => return Err(reason.clone()),
            Some((at, Ok(()))) if now - at < REFETCH_MS => return Ok(()),
            _ => {}
        }
        // If the fetch fails, the cached keys stay valid.
        let fetched = fetch_keys(issuer).await.map(|set| {
            let mut keys = self.keys.lock().expect("no panic while it is held");
            *keys = Some((Arc::new(set), now));
        });
        *last_fetch = Some((now, fetched.clone()));
        fetched
    }
}

/// Cached keys of all issuers. While an issuer responds, only tokens with an uncached key wait.
#[derive(Debug, Default)]
pub struct Issuers {
    states: Mutex<HashMap<String, Arc<IssuerState>>>,
}

/// Checks that the server may request keys from `issuer`.
///
/// # Errors
/// Returns a message that names the mistake.
pub fn check_issuer(issuer: &str) -> Result<Url, String> {
    let url = Url::parse(issuer).map_err(|error| format!("`{issuer}` is not a URL: {error}"))?;
    if !is_safe(&url) {
        return Err(format!("`{issuer}` must begin with `https://`"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(format!(
            "`{issuer}` has more than scheme, host and path: remove user, query and fragment"
        ));
    }
    Ok(url)
}

fn is_safe(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => url.host_str().is_some_and(net::is_loopback),
        _ => false,
    }
}

/// Returns `true` if `text` matches `pattern`, in which each `*` matches any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn is_public_key_signature(algorithm: Algorithm) -> bool {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => false,
        Algorithm::ES256
        | Algorithm::ES384
        | Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512
        | Algorithm::EdDSA => true,
    }
}

impl Issuers {
    /// Validates `token` and returns the federation that accepts it.
    ///
    /// # Errors
    /// Returns [`ExchangeError`] if the token is invalid or no federation accepts it.
    pub async fn verify(
        &self,
        token: &str,
        federations: &[Federation],
        now: i64,
    ) -> Result<Granted, ExchangeError> {
        let unreadable = |reason: &str| ExchangeError::Unreadable(reason.into());
        if token.len() > MAX_TOKEN {
            return Err(unreadable("it is too long"));
        }
        let header =
            jsonwebtoken::decode_header(token).map_err(|error| unreadable(&error.to_string()))?;
        if !is_public_key_signature(header.alg) {
            return Err(unreadable(
                "it is not signed with a public key; use an issuer that signs with RSA, ECDSA or EdDSA",
            ));
        }
        // These claims are not verified yet. They only select the issuer whose keys to fetch.
        let claimed = parse_claims(token, None)?;
        let named: Vec<&Federation> = federations
            .iter()
            .filter(|federation| federation.issuer == claimed.iss)
            .collect();
        if named.is_empty() {
            return Err(ExchangeError::NoFederation(format!(
                "none is for the issuer `{}`",
                sanitize(&claimed.iss)
            )));
        }
        let key = self
            .key_for(&claimed.iss, header.kid.as_deref(), header.alg, now)
            .await?;
        let claims = parse_claims(token, Some((&key, header.alg)))?;
        check_times(&claims, now)?;
        let for_us: Vec<&Federation> = named
            .into_iter()
            .filter(|federation| claims.aud.contains(&federation.audience))
            .collect();
        if for_us.is_empty() {
            return Err(ExchangeError::NoFederation(
                "it is for another audience".into(),
            ));
        }
        let accepting = for_us
            .into_iter()
            .find(|federation| matches(&federation.subject, &claims.sub));
        match accepting {
            Some(federation) => Ok(Granted {
                federation: federation.clone(),
                subject: claims.sub,
            }),
            None => Err(ExchangeError::NoFederation(format!(
                "none is for the subject `{}`",
                sanitize(&claims.sub)
            ))),
        }
    }

    /// Returns the key that a token names. Fetches the keys of the issuer if it is not cached.
    async fn key_for(
        &self,
        issuer: &str,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: i64,
    ) -> Result<DecodingKey, ExchangeError> {
        let state = self
            .states
            .lock()
            .expect("no panic while it is held")
            .entry(issuer.to_owned())
            .or_default()
            .clone();
        if let Some(key) = state.cached_key(kid, algorithm, now) {
            return key;
        }
        // A spawned task completes the fetch for the other waiting requests if this request is
        // canceled.
        let (fetching, url) = (state.clone(), issuer.to_owned());
        let refreshed = tokio::spawn(async move { fetching.refresh(&url, now).await }).await;
        let failed = |reason: String| ExchangeError::Issuer {
            issuer: issuer.to_owned(),
            reason,
        };
        refreshed
            .map_err(|error| failed(error.to_string()))?
            .map_err(failed)?;
        state
            .cached_key(kid, algorithm, now)
            .unwrap_or_else(|| Err(missing_key(kid)))
    }
}

fn missing_key(kid: Option<&str>) -> ExchangeError {
    ExchangeError::Invalid(match kid {
        Some(kid) => format!("its issuer has no key `{}` for it", sanitize(kid)),
        None => "it does not name the key (`kid`) that signed it".into(),
    })
}

/// Returns a part of a token for a message: without control characters, at most 200 characters.
fn sanitize(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Returns the key with the id `kid`. Without an id, returns the key only if exactly one fits.
fn find_key<'k>(set: &'k JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<&'k Jwk> {
    let mut candidates = set.keys.iter().filter(|key| {
        let common = &key.common;
        common
            .public_key_use
            .as_ref()
            .is_none_or(|of| *of == PublicKeyUse::Signature)
            && common
                .key_algorithm
                .is_none_or(|of| of.to_string() == format!("{algorithm:?}"))
    });
    match kid {
        Some(kid) => candidates.find(|key| key.common.key_id.as_deref() == Some(kid)),
        None => {
            let only = candidates.next();
            only.filter(|_| candidates.next().is_none())
        }
    }
}

fn decoding_key(key: &Jwk) -> Result<DecodingKey, ExchangeError> {
    DecodingKey::from_jwk(key)
        .map_err(|error| ExchangeError::Invalid(format!("its key cannot be used: {error}")))
}

/// Parses the claims of a token. Verifies the signature only if `key` is given.
fn parse_claims(
    token: &str,
    key: Option<(&DecodingKey, Algorithm)>,
) -> Result<Claims, ExchangeError> {
    let algorithm = key.map_or(Algorithm::RS256, |(_, algorithm)| algorithm);
    let mut validation = Validation::new(algorithm);
    // `check_times` and the caller check times and audiences, with the server's clock and each
    // federation.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match key {
        Some((key, _)) => jsonwebtoken::decode(token, key, &validation)
            .map(|data| data.claims)
            .map_err(|error| ExchangeError::Invalid(error.to_string())),
        None => {
            validation.insecure_disable_signature_validation();
            let no_key = DecodingKey::from_secret(&[]);
            jsonwebtoken::decode(token, &no_key, &validation)
                .map(|data| data.claims)
                .map_err(|error| ExchangeError::Unreadable(error.to_string()))
        }
    }
}

fn check_times(claims: &Claims, now: i64) -> Result<(), ExchangeError> {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let (now, leeway) = ((now / 1000) as f64, LEEWAY as f64);
    if claims.exp + leeway <= now {
        return Err(ExchangeError::Invalid("it has expired".into()));
    }
    if claims.nbf.is_some_and(|begin| begin - leeway > now) {
        return Err(ExchangeError::Invalid("it is not valid yet".into()));
    }
    Ok(())
}

/// Fetches the keys of an issuer through its discovery document.
async fn fetch_keys(issuer: &str) -> Result<JwkSet, String> {
    check_issuer(issuer)?;
    let client = net::client(net::AddressPolicy::Any, false).map_err(|error| error.to_string())?;
    let address = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let discovery: Discovery = get_json(&client, &address).await?;
    if discovery.issuer != issuer {
        return Err(format!(
            "its discovery document is that of `{}`",
            sanitize(&discovery.issuer)
        ));
    }
    let keys = Url::parse(&discovery.jwks_uri)
        .ok()
        .filter(is_safe)
        .ok_or("its `jwks_uri` does not begin with `https://`")?;
    // An admin named the issuer's host. The issuer may only name public hosts.
    let issuer_host = check_issuer(issuer)?.host_str().map(str::to_owned);
    let client = if keys.host_str() == issuer_host.as_deref() {
        client
    } else {
        let policy = net::AddressPolicy::PublicByProxy;
        net::check_literal(policy, &keys).map_err(|error| format!("its `jwks_uri`: {error}"))?;
        net::client(policy, false).map_err(|error| error.to_string())?
    };
    // Skip keys of unsupported types. They must not hide the other keys.
    let set: RawKeySet = get_json(&client, keys.as_str()).await?;
    Ok(JwkSet {
        keys: set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value(key).ok())
            .collect(),
    })
}

#[derive(Debug, Deserialize)]
struct RawKeySet {
    keys: Vec<serde_json::Value>,
}

async fn get_json<T: DeserializeOwned>(
    client: &reqwest::Client,
    address: &str,
) -> Result<T, String> {
    let failed = |error: reqwest::Error| acrtask_model::error_chain(&error.without_url());
    let mut response = client
        .get(address)
        .header("accept", "application/json")
        .timeout(TIMEOUT)
        .send()
        .await
        .map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("{address} returned {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err(format!("{address} returned more than {MAX_RESPONSE} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("{address} returned an unreadable response: {error}"))
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
pub(crate) mod tests;
