//! Authentication and authorization of API callers.
//!
//! A token is `acrt_ID_SECRET`. The secret has 256 random bits. The server stores only its SHA-256
//! and compares it in constant time. API handlers take an [`Authenticated`] with the required scope
//! as their first argument, so that no other part of a request is parsed before.
//!
//! Invariants:
//! * `admin` includes `write`, `write` includes `run`, and `run` includes `read`.
//! * A token with a task limit sees no other tasks and no runs without a task.
//! * A session of a browser has exactly the rights of its token, checked for every request. It
//!   authenticates pages only; the API accepts tokens only.

use std::{marker::PhantomData, net::IpAddr};

use acrtask_api::{admin::Scope, run::SecretText};
use acrtask_model::{Principal, TaskPattern};
use acrtask_store::{DEFAULT_POOL, Ms, Store, StoreError, TokenRow};
use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, HeaderMap, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    App,
    api::{Api, ApiError},
    serve::request_guard::Guarded as _,
};

mod limits;
mod sessions;

pub(crate) use limits::{CredentialKind, Limits};
pub(crate) use sessions::{
    IDLE_MS, MAX_SESSION_MS, Use, create_session, end_session, find_session, is_session_valid,
};

/// Longest delay of updates to `lastUsedAt`, in milliseconds.
const TOUCH_MS: i64 = 60_000;

/// Prefix of every token.
const PREFIX: &str = "acrt_";

/// A new token.
#[derive(Debug)]
pub struct NewToken {
    /// Full text of the token. The server does not store it.
    pub text: SecretText,
    /// Id of the token.
    pub id: String,
    /// SHA-256 of the secret, stored to verify the token.
    pub hash: Vec<u8>,
}

/// Creates a token with a random id and secret.
pub fn new_token() -> NewToken {
    let id = random_id();
    let secret = random_secret();
    NewToken {
        hash: hash(&secret),
        text: SecretText(format!("{PREFIX}{id}_{secret}")),
        id,
    }
}

/// Returns the id and the hash of a token. `None` if `text` is not a token.
pub fn parse_token(text: &str) -> Option<(&str, Vec<u8>)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (!id.is_empty() && id.len() <= 40 && id.bytes().all(good) && secret.len() == SECRET_CHARS)
        .then(|| (id, hash(secret)))
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// Length of the output of [`random_secret`], in characters.
const SECRET_CHARS: usize = 43;

/// Returns a random secret: 256 random bits in URL-safe base64.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub(crate) fn random_secret() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns a random id: 80 random bits in 16 characters.
pub fn random_id() -> String {
    random_characters::<16>()
}

/// Returns `N` random lower-case letters and digits with 5 random bits each.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub(crate) fn random_characters<const N: usize>() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0_u8; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// Tasks that a token may access.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum TaskLimit {
    /// All tasks, and runs without a task.
    #[default]
    All,
    /// The task with this name.
    Exact(String),
    /// Tasks whose names begin with this text.
    Prefix(String),
}

impl TaskLimit {
    /// Parses the `tasks` of a token.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None => Self::All,
            Some(text) => match text.strip_suffix('*') {
                Some(prefix) => Self::Prefix(prefix.to_owned()),
                None => Self::Exact(text.to_owned()),
            },
        }
    }

    /// Returns the exact name and the name prefix to filter lists by.
    pub fn into_names(self) -> (Option<String>, Option<String>) {
        match self {
            Self::All => (None, None),
            Self::Exact(name) => (Some(name), None),
            Self::Prefix(prefix) => (None, Some(prefix)),
        }
    }

    /// Returns `true` if the limit includes all names that `pattern` matches.
    pub(crate) fn includes(&self, pattern: &TaskPattern) -> bool {
        match self {
            Self::All => true,
            Self::Exact(_) => false,
            Self::Prefix(prefix) => pattern.prefix().starts_with(prefix.as_str()),
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

    /// Returns `true` if the limit includes `task`. `None` means a run without a task.
    pub fn allows(&self, task: Option<&str>) -> bool {
        match (self, task) {
            (Self::All, _) => true,
            (_, None) => false,
            (Self::Exact(name), Some(task)) => name == task,
            (Self::Prefix(prefix), Some(task)) => task.starts_with(prefix.as_str()),
        }
    }
}

/// An authenticated API caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Id of the token.
    pub token_id: String,
    /// Name of the token.
    pub name: String,
    /// Principal that owns the caller's uploads and runs.
    pub principal: Principal,
    /// Scopes of the token.
    pub scopes: Vec<Scope>,
    /// Task limit of the token, as text. `None` if it has no limit.
    pub tasks: Option<String>,
    /// Parsed task limit.
    pub limit: TaskLimit,
    /// Pools that tasks of a caller with a task limit may use, beside the default pool.
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

    /// Returns the identity whose quotas count what the caller stores. `None` for an admin.
    pub fn charged_to(&self) -> Option<String> {
        if self.has_scope(Scope::Admin) {
            return None;
        }
        Some(match &self.principal {
            Principal::Token { id } => id.clone(),
            Principal::Federation { issuer, subject } => format!("{issuer} {subject}"),
        })
    }

    /// Returns `true` if the caller has `scope`, or a scope that includes it.
    pub fn has_scope(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|own| own.includes(scope))
    }

    /// Refuses a caller without `scope`.
    ///
    /// # Errors
    /// Returns 403.
    pub fn require_scope(&self, scope: Scope) -> Result<(), ApiError> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "the token `{}` lacks the scope `{}`",
            self.name,
            scope_name(scope)
        ))
        .help(format!(
            "use a token with it: `acrtask token create --scope {}`",
            scope_name(scope)
        )))
    }

    /// Refuses a caller whose task limit excludes `task`.
    ///
    /// # Errors
    /// Returns 403.
    pub fn require_task(&self, task: Option<&str>) -> Result<(), ApiError> {
        if self.limit.allows(task) {
            return Ok(());
        }
        let limit = self.tasks.as_deref().unwrap_or_default();
        Err(ApiError::forbidden(match task {
            Some(task) => format!(
                "the token `{}` is limited to the tasks `{limit}`, which exclude `{task}`",
                self.name
            ),
            None => format!(
                "the token `{}` is limited to the tasks `{limit}`, and this has no task",
                self.name
            ),
        })
        .help(match &self.limit {
            TaskLimit::Prefix(_) if task.is_none() => {
                "use a token without a limit to tasks; secrets, logins and webhooks accept the prefix of the token as `tasks`, on the command line `--prefix`"
            }
            _ => "use a token without a limit to tasks",
        }))
    }

    /// Refuses a caller whose task limit excludes a task that `pattern` matches.
    ///
    /// # Errors
    /// Returns 403.
    pub(crate) fn require_pattern(&self, pattern: &TaskPattern) -> Result<(), ApiError> {
        if self.limit.includes(pattern) {
            return Ok(());
        }
        let limit = self.tasks.as_deref().unwrap_or_default();
        Err(ApiError::forbidden(format!(
            "the token `{}` is limited to the tasks `{limit}`, and `{pattern}` includes others",
            self.name
        ))
        .help("write a prefix within the limit of the token"))
    }

    /// Returns `true` if the caller's tasks may use `pool`.
    pub(crate) fn may_use_pool(&self, pool: &str) -> bool {
        self.tasks.is_none()
            || pool == DEFAULT_POOL
            || self.pools.iter().any(|allowed| allowed == pool)
    }

    /// Returns `true` if the caller may see `task`. Handlers report a hidden task as missing.
    pub fn may_see(&self, task: Option<&str>) -> bool {
        self.limit.allows(task)
    }
}

/// Returns the name of a scope in JSON and on the command line.
pub fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Run => "run",
        Scope::Write => "write",
        Scope::Admin => "admin",
    }
}

/// Type-level scope that a handler requires.
pub trait RequiredScope: Send + Sync + 'static {
    /// Required scope. `None` if any valid token is accepted.
    const SCOPE: Option<Scope>;
}

/// Accepts any valid token.
#[derive(Debug)]
pub struct Anyone;
/// Requires `read`.
#[derive(Debug)]
pub struct Read;
/// Requires `run`.
#[derive(Debug)]
pub struct Run;
/// Requires `write`.
#[derive(Debug)]
pub struct Write;
/// Requires `admin`.
#[derive(Debug)]
pub struct Admin;

impl RequiredScope for Anyone {
    const SCOPE: Option<Scope> = None;
}
impl RequiredScope for Read {
    const SCOPE: Option<Scope> = Some(Scope::Read);
}
impl RequiredScope for Run {
    const SCOPE: Option<Scope> = Some(Scope::Run);
}
impl RequiredScope for Write {
    const SCOPE: Option<Scope> = Some(Scope::Write);
}
impl RequiredScope for Admin {
    const SCOPE: Option<Scope> = Some(Scope::Admin);
}

/// Caller that was authenticated and has the scope `S`.
#[derive(Debug)]
pub struct Authenticated<S> {
    /// Authenticated caller.
    pub caller: Caller,
    scope: PhantomData<S>,
}

impl<S: RequiredScope> FromRequestParts<Api> for Authenticated<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let caller = authenticate_caller(api, parts).await?;
        if let Some(scope) = S::SCOPE {
            caller.require_scope(scope)?;
        }
        Ok(Self {
            caller,
            scope: PhantomData,
        })
    }
}

/// Client address that limits count a request under, as determined by the listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// Returns the client address that limits count a request under. Requests without an address all
/// count as 0.0.0.0.
pub(crate) fn client_address(extensions: &Extensions) -> IpAddr {
    let of_listener = extensions.get().map(|ClientAddress(address)| *address);
    of_listener.unwrap_or_else(|| {
        extensions
            .get::<ConnectInfo<std::net::SocketAddr>>()
            .map_or(IpAddr::from([0, 0, 0, 0]), |info| network_of(info.0.ip()))
    })
}

/// Returns the IPv4 address, or the /64 network of an IPv6 address, which one client owns.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Returns the token of an `Authorization: Bearer` header.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, text) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
}

/// Returns the caller of a request.
///
/// # Errors
/// Returns 401 without a valid token, and 429 beyond a limit.
pub(crate) async fn authenticate_caller(api: &Api, parts: &Parts) -> Result<Caller, ApiError> {
    let app = &api.app;
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        return Err(ApiError::unauthorized("this request needs a token")
            .help("send `Authorization: Bearer TOKEN`; `acrtask login` does"));
    }
    verify_token(app, &parts.extensions, bearer_token(&parts.headers)).await
}

/// Returns the caller with the token `text`. Counts failures and requests.
///
/// # Errors
/// Returns 401 if the token is not valid, and 429 beyond a limit.
pub(crate) async fn verify_token(
    app: &App,
    extensions: &Extensions,
    text: Option<&str>,
) -> Result<Caller, ApiError> {
    let now = app.clock.now_ms();
    let failed = || {
        let refusal = ApiError::unauthorized("the token is wrong, expired or revoked")
            .help("create a new token and run `acrtask login` with it");
        let address = client_address(extensions);
        app.limits
            .count_failure(CredentialKind::Token, address, now, refusal)
    };
    let Some((id, hash)) = text.and_then(parse_token) else {
        return Err(failed());
    };
    let turn = app.limits.acquire_lookup(&hash).await;
    let row = app.store.token_by_id(id).await?;
    drop(turn);
    let valid = row.filter(|row| {
        bool::from(row.hash.ct_eq(&hash)) && row.expires_at.is_none_or(|end| end > now)
    });
    let Some(row) = valid else {
        app.limits.forget(&hash);
        return Err(failed());
    };
    app.limits.remember(&hash);
    extensions.mark_authenticated();
    admit(app, row, now).await
}

/// Counts a request with a valid token and returns its caller.
async fn admit(app: &App, row: TokenRow, now: Ms) -> Result<Caller, ApiError> {
    app.limits.count_request(&row.id, now)?;
    if row.last_used_at.is_none_or(|last| now - last >= TOUCH_MS) {
        // A failed update of `lastUsedAt` does not fail the request.
        if let Err(error) = app.store.touch_token(&row.id, now).await {
            tracing::warn!(token = row.id, %error, "cannot record the last use of a token");
        }
    }
    Ok(Caller::new(row))
}

/// Creates the first admin token. Returns `None` if the database already has a token.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub async fn create_first_token(app: &App) -> Result<Option<SecretText>, StoreError> {
    if app.store.count_tokens().await? > 0 {
        return Ok(None);
    }
    create_admin_token(&app.store, "admin", app.clock.now_ms())
        .await
        .map(Some)
}

/// Creates a token with the scope `admin` that does not expire.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub async fn create_admin_token(
    store: &Store,
    name: &str,
    now: Ms,
) -> Result<SecretText, StoreError> {
    let token = new_token();
    store
        .create_token(&TokenRow {
            id: token.id,
            name: name.into(),
            hash: token.hash,
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
    Ok(token.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_token_has_the_id_and_hash_of_the_new_one() {
        let token = new_token();
        let (id, hash) = parse_token(&token.text.0).unwrap();
        assert_eq!(id, token.id);
        assert!(bool::from(hash.ct_eq(&token.hash)));
        assert!(!bool::from(hash.ct_eq(&new_token().hash)));
        for wrong in [
            "",
            "acrt_",
            "acrt__x",
            "acrt_abc_short",
            "acrt_A_0123456789012345678901234567890123456789012",
        ] {
            assert!(parse_token(wrong).is_none(), "{wrong}");
        }
        assert_eq!(format!("{:?}", token.text), "[secret]");
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
    fn task_limit_allows_the_named_tasks() {
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
