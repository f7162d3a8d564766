//! Identity tokens of CI systems: found out whose they are, and checked with the issuer's own keys.
//!
//! Invariants: only an issuer that a federation names is ever asked, over https (http on loopback); only signatures of public
//! keys count, never HMAC or none; issuer, audience, subject and times are all checked; keys are kept for a while, and
//! asked for again once where a token names a key that is not among them. An admin names issuers, so private addresses
//! are allowed for them; an address of keys on another host has to be public.

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

/// How long keys are kept, in milliseconds.
const KEEP_MS: i64 = 3_600_000;
/// How soon keys are asked for again because of a key that is not among them, in milliseconds.
const REFETCH_MS: i64 = 30_000;
/// How soon an issuer that did not answer is asked again, in milliseconds.
const RETRY_MS: i64 = 5_000;
/// Largest answer of an issuer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest identity token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// How far clocks may differ, in seconds.
const LEEWAY: i64 = 30;
/// How long an issuer may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Why an identity token is not exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It is no token, or is signed in a way that proves nothing.
    #[error("the identity token cannot be read: {0}")]
    Unreadable(String),
    /// Nobody named its issuer, or it is for or about somebody else.
    #[error("no federation takes this identity token: {0}")]
    NoFederation(String),
    /// Its signature or its time is wrong.
    #[error("the identity token is not valid: {0}")]
    Invalid(String),
    /// The issuer did not answer as it should.
    #[error("the keys of {issuer} cannot be fetched: {reason}")]
    Issuer {
        /// The issuer.
        issuer: String,
        /// Why.
        reason: String,
    },
}

/// What an identity token is worth.
#[derive(Debug)]
pub struct Granted {
    /// The federation that takes it.
    pub federation: Federation,
    /// Whom it is about.
    pub subject: String,
}

/// The claims that count.
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
    fn has(&self, audience: &str) -> bool {
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

/// What is known of an issuer.
#[derive(Debug, Default)]
struct Known {
    /// Its keys, and when they were fetched. Never locked while the issuer is asked.
    keys: Mutex<Option<(Arc<JwkSet>, i64)>>,
    /// When it was asked last, and why it did not answer then. Locked while it is asked.
    asked: tokio::sync::Mutex<Option<(i64, Result<(), String>)>>,
}

impl Known {
    /// Returns the key that a token names, if it is among those that were fetched lately.
    fn key(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: i64,
    ) -> Option<Result<DecodingKey, ExchangeError>> {
        let keys = self.keys.lock().expect("no panic while it is held").clone();
        let (set, fetched) = keys?;
        (now - fetched < KEEP_MS)
            .then(|| pick(&set, kid, algorithm).map(decoding_key))
            .flatten()
    }

    /// Asks the issuer for its keys, unless that was done a moment ago.
    async fn refresh(&self, issuer: &str, now: i64) -> Result<(), String> {
        let mut asked = self.asked.lock().await;
        match &*asked {
            Some((at, Err(reason))) if now - at < RETRY_MS => return Err(reason.clone()),
            Some((at, Ok(()))) if now - at < REFETCH_MS => return Ok(()),
            _ => {}
        }
        // Keys that it gave before still hold where it does not answer.
        let fetched = fetch(issuer).await.map(|set| {
            let mut keys = self.keys.lock().expect("no panic while it is held");
            *keys = Some((Arc::new(set), now));
        });
        *asked = Some((now, fetched.clone()));
        fetched
    }
}

/// The keys of issuers, as they were fetched lately. While one is asked, others wait only for keys that are new.
#[derive(Debug, Default)]
pub struct Issuers {
    known: Mutex<HashMap<String, Arc<Known>>>,
}

/// Whether `issuer` may be asked for keys.
///
/// # Errors
/// What to write instead.
pub fn check_issuer(issuer: &str) -> Result<Url, String> {
    let url = Url::parse(issuer).map_err(|error| format!("`{issuer}` is no URL: {error}"))?;
    if !is_safe(&url) {
        return Err(format!("`{issuer}` must begin with `https://`"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(format!("`{issuer}` holds more than scheme, host and path"));
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

/// Whether `text` has the form of `pattern`, in which each `*` stands for anything.
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
    /// Checks `token` and finds the federation that takes it.
    ///
    /// # Errors
    /// [`ExchangeError`].
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
                "it is not signed with a public key, so it proves nothing",
            ));
        }
        // Not believed yet: it only says whose keys to ask for, among those that an admin named.
        let claimed = claims(token, None)?;
        let named: Vec<&Federation> = federations
            .iter()
            .filter(|federation| federation.issuer == claimed.iss)
            .collect();
        if named.is_empty() {
            return Err(ExchangeError::NoFederation(format!(
                "none is for the issuer `{}`",
                shown(&claimed.iss)
            )));
        }
        let key = self
            .key(&claimed.iss, header.kid.as_deref(), header.alg, now)
            .await?;
        let claims = claims(token, Some((&key, header.alg)))?;
        check_times(&claims, now)?;
        let for_us: Vec<&Federation> = named
            .into_iter()
            .filter(|federation| claims.aud.has(&federation.audience))
            .collect();
        if for_us.is_empty() {
            return Err(ExchangeError::NoFederation(
                "it is for another audience".into(),
            ));
        }
        let taken = for_us
            .into_iter()
            .find(|federation| matches(&federation.subject, &claims.sub));
        match taken {
            Some(federation) => Ok(Granted {
                federation: federation.clone(),
                subject: claims.sub,
            }),
            None => Err(ExchangeError::NoFederation(format!(
                "none is for the subject `{}`",
                shown(&claims.sub)
            ))),
        }
    }

    /// The key that a token names. Where it is not known, the issuer is asked once.
    async fn key(
        &self,
        issuer: &str,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: i64,
    ) -> Result<DecodingKey, ExchangeError> {
        let known = self
            .known
            .lock()
            .expect("no panic while it is held")
            .entry(issuer.to_owned())
            .or_default()
            .clone();
        if let Some(key) = known.key(kid, algorithm, now) {
            return key;
        }
        // A task of its own: a request that ends early leaves the answer to those that wait for it.
        let (asked, of) = (known.clone(), issuer.to_owned());
        let refreshed = tokio::spawn(async move { asked.refresh(&of, now).await }).await;
        let failed = |reason: String| ExchangeError::Issuer {
            issuer: issuer.to_owned(),
            reason,
        };
        refreshed
            .map_err(|error| failed(error.to_string()))?
            .map_err(failed)?;
        known
            .key(kid, algorithm, now)
            .unwrap_or_else(|| Err(unknown_key(kid)))
    }
}

fn unknown_key(kid: Option<&str>) -> ExchangeError {
    ExchangeError::Invalid(match kid {
        Some(kid) => format!("its issuer has no key `{}` for it", shown(kid)),
        None => "it does not say which key it is signed with".into(),
    })
}

/// A part of a token as it may stand in a message.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The key with this id; without an id, the only one that can be meant.
fn pick<'k>(set: &'k JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<&'k Jwk> {
    let mut fitting = set.keys.iter().filter(|key| {
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
        Some(kid) => fitting.find(|key| key.common.key_id.as_deref() == Some(kid)),
        None => {
            let only = fitting.next();
            only.filter(|_| fitting.next().is_none())
        }
    }
}

fn decoding_key(key: &Jwk) -> Result<DecodingKey, ExchangeError> {
    DecodingKey::from_jwk(key)
        .map_err(|error| ExchangeError::Invalid(format!("its key cannot be used: {error}")))
}

/// The claims of a token; believed only with a key.
fn claims(token: &str, key: Option<(&DecodingKey, Algorithm)>) -> Result<Claims, ExchangeError> {
    let algorithm = key.map_or(Algorithm::RS256, |(_, algorithm)| algorithm);
    let mut validation = Validation::new(algorithm);
    // Times and audiences are checked by ourselves: with our own clock, and against each federation.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match key {
        Some((key, _)) => jsonwebtoken::decode(token, key, &validation)
            .map(|data| data.claims)
            .map_err(|error| ExchangeError::Invalid(error.to_string())),
        None => {
            validation.insecure_disable_signature_validation();
            let nothing = DecodingKey::from_secret(&[]);
            jsonwebtoken::decode(token, &nothing, &validation)
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
        return Err(ExchangeError::Invalid("it does not hold yet".into()));
    }
    Ok(())
}

/// The keys of an issuer, by its discovery document.
async fn fetch(issuer: &str) -> Result<JwkSet, String> {
    check_issuer(issuer)?;
    let client = net::client(net::AddressPolicy::Any, false).map_err(|error| error.to_string())?;
    let address = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let discovery: Discovery = get(&client, &address).await?;
    if discovery.issuer != issuer {
        return Err(format!(
            "its discovery document is that of `{}`",
            shown(&discovery.issuer)
        ));
    }
    let keys = Url::parse(&discovery.jwks_uri)
        .ok()
        .filter(is_safe)
        .ok_or("its `jwks_uri` does not begin with `https://`")?;
    // An admin named the issuer's host; a host that the issuer names has to be public.
    let issuer_host = check_issuer(issuer)?.host_str().map(str::to_owned);
    let client = if keys.host_str() == issuer_host.as_deref() {
        client
    } else {
        let policy = net::AddressPolicy::PublicByProxy;
        net::check_literal(policy, &keys).map_err(|error| format!("its `jwks_uri`: {error}"))?;
        net::client(policy, false).map_err(|error| error.to_string())?
    };
    // A key of a kind that is not known here must not hide the others.
    let set: RawKeys = get(&client, keys.as_str()).await?;
    Ok(JwkSet {
        keys: set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value(key).ok())
            .collect(),
    })
}

#[derive(Debug, Deserialize)]
struct RawKeys {
    keys: Vec<serde_json::Value>,
}

async fn get<T: DeserializeOwned>(client: &reqwest::Client, address: &str) -> Result<T, String> {
    let failed = |error: reqwest::Error| acrtask_model::chain(&error.without_url());
    let mut response = client
        .get(address)
        .header("accept", "application/json")
        .timeout(TIMEOUT)
        .send()
        .await
        .map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("{address} answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("{address} answered more than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("{address} answered what cannot be read: {error}"))
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
pub(crate) mod tests;
