//! Who asks, and what they may do.
//!
//! A token is `acrt_ID_SECRET`; only the SHA-256 of the secret, which is 256 random bits, is stored, and it is compared in
//! constant time. Handlers of the API ask for a [`By`] with the scope that they need as their first argument, so that
//! nothing else of a request is looked at before. Invariants: `admin` includes `write`, `write` includes `run`,
//! and `run` includes `read`; a token that is limited to tasks sees nothing of other tasks, nor of runs that belong to none. Left out: sessions of
//! people.

use std::{marker::PhantomData, net::IpAddr};

use acrtask_api::{admin::Scope, run::SecretText};
use acrtask_model::Principal;
use acrtask_store::{DEFAULT_POOL, Ms, Store, StoreError, TokenRow};
use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, HeaderMap, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

use crate::{
    App,
    api::{Api, ApiError},
    serve::request_guard::Guarded as _,
};

mod limits;

pub(crate) use limits::{CredentialKind, Limits};

/// How stale `lastUsedAt` may be, in milliseconds.
const TOUCH_MS: i64 = 60_000;

/// What every token begins with.
const PREFIX: &str = "acrt_";

/// A token that was made just now.
#[derive(Debug)]
pub struct Minted {
    /// All of it, for whoever asked for it.
    pub text: SecretText,
    /// Its id.
    pub id: String,
    /// What is stored to check it by.
    pub hash: Vec<u8>,
}

/// Makes a token.
pub fn mint() -> Minted {
    let id = random_id();
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    let secret = URL_SAFE_NO_PAD.encode(secret);
    Minted {
        hash: hash(&secret),
        text: SecretText(format!("{PREFIX}{id}_{secret}")),
        id,
    }
}

/// The id and the hash of a token's text, or nothing where it is no token.
pub fn parse(text: &str) -> Option<(&str, Vec<u8>)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (!id.is_empty() && id.len() <= 40 && id.bytes().all(good) && secret.len() == 43)
        .then(|| (id, hash(secret)))
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// Compares without telling by its duration where the difference is.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// A new id: 80 random bits in 16 characters.
pub fn random_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0_u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// Which tasks a token may touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum TaskLimit {
    /// All, and runs that belong to none.
    #[default]
    All,
    /// The one with this name.
    Exact(String),
    /// Those whose names begin so.
    Prefix(String),
}

impl TaskLimit {
    /// From a token's `tasks`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None => Self::All,
            Some(text) => match text.strip_suffix('*') {
                Some(prefix) => Self::Prefix(prefix.to_owned()),
                None => Self::Exact(text.to_owned()),
            },
        }
    }

    /// The one name, and what names begin with: how lists are filtered.
    pub fn into_names(self) -> (Option<String>, Option<String>) {
        match self {
            Self::All => (None, None),
            Self::Exact(name) => (Some(name), None),
            Self::Prefix(prefix) => (None, Some(prefix)),
        }
    }

    /// Returns `true` if there are names of tasks that both limits allow.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => true,
            (Self::Exact(name), limit) | (limit, Self::Exact(name)) => limit.allows(Some(name)),
            (Self::Prefix(one), Self::Prefix(other)) => {
                one.starts_with(other.as_str()) || other.starts_with(one.as_str())
            }
        }
    }

    /// Whether it takes in `task`; nothing stands for what belongs to no task.
    pub fn allows(&self, task: Option<&str>) -> bool {
        match (self, task) {
            (Self::All, _) => true,
            (_, None) => false,
            (Self::Exact(name), Some(task)) => name == task,
            (Self::Prefix(prefix), Some(task)) => task.starts_with(prefix.as_str()),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's id.
    pub token_id: String,
    /// Its name.
    pub name: String,
    /// Owner of what the caller uploads and starts.
    pub principal: Principal,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Which tasks it may touch, as the token says it.
    pub tasks: Option<String>,
    /// The same, parsed.
    pub limit: TaskLimit,
    /// The pools that its tasks may name beside the default one, where it has a limit.
    pub pools: Vec<String>,
}

impl Caller {
    fn new(row: TokenRow) -> Self {
        Self {
            limit: TaskLimit::parse(row.tasks.as_deref()),
            principal: match (row.issuer, row.subject) {
                (Some(issuer), Some(subject)) => Principal::Federation { issuer, subject },
                _ => Principal::Token { id: row.id.clone() },
            },
            token_id: row.id,
            name: row.name,
            scopes: row.scopes,
            tasks: row.tasks,
            pools: row.pools,
        }
    }

    /// Returns the identity whose quotas count what the caller stores. `None` for administrators, who set the quotas.
    pub fn charged_to(&self) -> Option<String> {
        if self.has(Scope::Admin) {
            return None;
        }
        Some(match &self.principal {
            Principal::Token { id } => id.clone(),
            Principal::Federation { issuer, subject } => format!("{issuer} {subject}"),
        })
    }

    /// Whether it may do what needs `scope`.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|own| own.includes(scope))
    }

    /// Refuses what needs `scope` to a caller without it.
    ///
    /// # Errors
    /// 403.
    pub fn need(&self, scope: Scope) -> Result<(), ApiError> {
        if self.has(scope) {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "the token `{}` has not the scope `{}`",
            self.name,
            scope_name(scope)
        ))
        .help(format!(
            "use a token with it: `acrtask token create --scope {}`",
            scope_name(scope)
        )))
    }

    /// Refuses to create or change what belongs to `task`.
    ///
    /// # Errors
    /// 403.
    pub fn need_task(&self, task: Option<&str>) -> Result<(), ApiError> {
        if self.limit.allows(task) {
            return Ok(());
        }
        let limit = self.tasks.as_deref().unwrap_or_default();
        Err(ApiError::forbidden(match task {
            Some(task) => format!(
                "the token `{}` is for the tasks `{limit}`, and `{task}` is none of them",
                self.name
            ),
            None => format!(
                "the token `{}` is for the tasks `{limit}`, and this belongs to no task",
                self.name
            ),
        })
        .help("use a token without a limit to tasks"))
    }

    /// Returns `true` if its tasks may name `pool`.
    pub(crate) fn may_use_pool(&self, pool: &str) -> bool {
        self.tasks.is_none()
            || pool == DEFAULT_POOL
            || self.pools.iter().any(|allowed| allowed == pool)
    }

    /// Whether it may see what belongs to `task`. What it may not see does not exist for it.
    pub fn sees(&self, task: Option<&str>) -> bool {
        self.limit.allows(task)
    }
}

/// A scope as it is written.
pub fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Run => "run",
        Scope::Write => "write",
        Scope::Admin => "admin",
    }
}

/// A scope as a type.
pub trait Needs: Send + Sync + 'static {
    /// The scope; nothing where any token will do.
    const SCOPE: Option<Scope>;
}

/// Any token will do.
#[derive(Debug)]
pub struct Anyone;
/// Needs `read`.
#[derive(Debug)]
pub struct Read;
/// Needs `run`.
#[derive(Debug)]
pub struct Run;
/// Needs `write`.
#[derive(Debug)]
pub struct Write;
/// Needs `admin`.
#[derive(Debug)]
pub struct Admin;

impl Needs for Anyone {
    const SCOPE: Option<Scope> = None;
}
impl Needs for Read {
    const SCOPE: Option<Scope> = Some(Scope::Read);
}
impl Needs for Run {
    const SCOPE: Option<Scope> = Some(Scope::Run);
}
impl Needs for Write {
    const SCOPE: Option<Scope> = Some(Scope::Write);
}
impl Needs for Admin {
    const SCOPE: Option<Scope> = Some(Scope::Admin);
}

/// The caller of a handler that needs the scope `S`.
#[derive(Debug)]
pub struct By<S> {
    /// Who it is.
    pub caller: Caller,
    scope: PhantomData<S>,
}

impl<S: Needs> FromRequestParts<Api> for By<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let caller = authenticate(api, parts).await?;
        if let Some(scope) = S::SCOPE {
            caller.need(scope)?;
        }
        Ok(Self {
            caller,
            scope: PhantomData,
        })
    }
}

/// The address that a request is counted under, as the listener found it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// Returns the address that a request is counted under. All requests without one count as one address.
pub(crate) fn address(extensions: &Extensions) -> IpAddr {
    let of_listener = extensions.get().map(|ClientAddress(address)| *address);
    of_listener.unwrap_or_else(|| {
        extensions
            .get::<ConnectInfo<std::net::SocketAddr>>()
            .map_or(IpAddr::from([0, 0, 0, 0]), |info| network_of(info.0.ip()))
    })
}

/// Returns the IPv4 address, or the /64 of an IPv6 address: one client has a whole one.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Returns the token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, text) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
}

async fn authenticate(api: &Api, parts: &Parts) -> Result<Caller, ApiError> {
    let app = &api.app;
    let now = app.clock.now_ms();
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        return Err(ApiError::unauthorized("this needs a token")
            .help("send `Authorization: Bearer TOKEN`; `acrtask login` does"));
    }
    let failed = || {
        let refusal = ApiError::unauthorized("the token is wrong, expired or revoked")
            .help("ask for a new one, and give it to `acrtask login`");
        let address = address(&parts.extensions);
        app.limits
            .fail(CredentialKind::Token, address, now, refusal)
    };
    let Some((id, hash)) = bearer(&parts.headers).and_then(parse) else {
        return Err(failed());
    };
    let turn = app.limits.lookup(&hash).await;
    let row = app.store.token_by_id(id).await?;
    drop(turn);
    let valid =
        row.filter(|row| same(&row.hash, &hash) && row.expires_at.is_none_or(|end| end > now));
    let Some(row) = valid else {
        app.limits.forget(&hash);
        return Err(failed());
    };
    app.limits.remember(&hash);
    parts.extensions.authenticated();
    app.limits.request(&row.id, now)?;
    if row.last_used_at.is_none_or(|last| now - last >= TOUCH_MS) {
        // Nothing depends on it: a request is not refused for it.
        if let Err(error) = app.store.touch_token(&row.id, now).await {
            tracing::warn!(token = row.id, %error, "cannot note when a token was used");
        }
    }
    Ok(Caller::new(row))
}

/// Makes the first admin token, where there is no token at all.
///
/// # Errors
/// When the database cannot be used.
pub async fn bootstrap(app: &App) -> Result<Option<SecretText>, StoreError> {
    if app.store.count_tokens().await? > 0 {
        return Ok(None);
    }
    new_admin_token(&app.store, "admin", app.clock.now_ms())
        .await
        .map(Some)
}

/// Makes a token with the scope `admin` that never expires.
///
/// # Errors
/// When the database cannot be used.
pub async fn new_admin_token(store: &Store, name: &str, now: Ms) -> Result<SecretText, StoreError> {
    let minted = mint();
    store
        .create_token(&TokenRow {
            id: minted.id,
            name: name.into(),
            hash: minted.hash,
            scopes: vec![Scope::Admin],
            tasks: None,
            created_at: now,
            expires_at: None,
            last_used_at: None,
            subject: None,
            issuer: None,
            pools: Vec::new(),
        })
        .await?;
    Ok(minted.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_they_say() {
        let minted = mint();
        let (id, hash) = parse(&minted.text.0).unwrap();
        assert_eq!(id, minted.id);
        assert!(same(&hash, &minted.hash));
        assert!(!same(&hash, &mint().hash));
        for wrong in [
            "",
            "acrt_",
            "acrt__x",
            "acrt_abc_short",
            "acrt_A_0123456789012345678901234567890123456789012",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
        assert_eq!(format!("{:?}", minted.text), "[secret]");
    }

    #[test]
    fn limits_overlap_if_a_task_is_in_both() {
        for (one, other, overlap) in [
            (None, Some("a"), true),
            (Some("a"), Some("a"), true),
            (Some("a"), Some("b"), false),
            (Some("team/*"), Some("team/app"), true),
            (Some("team/*"), Some("prod/app"), false),
            (Some("team/*"), Some("team/web/*"), true),
            (Some("team/*"), Some("prod/*"), false),
        ] {
            let (one, other) = (TaskLimit::parse(one), TaskLimit::parse(other));
            assert_eq!(one.overlaps(&other), overlap, "{one:?} {other:?}");
            assert_eq!(other.overlaps(&one), overlap, "{other:?} {one:?}");
        }
    }

    #[test]
    fn a_limit_takes_in_what_it_says() {
        for (limit, task, allowed) in [
            (None, Some("a"), true),
            (None, None, true),
            (Some("a"), Some("a"), true),
            (Some("a"), Some("ab"), false),
            (Some("a"), None, false),
            (Some("team/*"), Some("team/app"), true),
            (Some("team/*"), Some("team"), false),
            (Some("team/*"), Some("other/team/app"), false),
            (Some("*"), Some("x"), true),
            (Some("*"), None, false),
        ] {
            assert_eq!(
                TaskLimit::parse(limit).allows(task),
                allowed,
                "{limit:?} {task:?}"
            );
        }
    }
}
