//! Sessions of browsers.
//!
//! The cookie contains a secret of 256 random bits, and the database its SHA-256. A session ends
//! after [`IDLE_MS`] without a request, after [`MAX_SESSION_MS`], or with its token.

use acrtask_api::run::SecretText;
use acrtask_store::{Ms, SessionRow, StoreError, TokenRow};
use axum::http::Extensions;

use super::{Caller, SECRET_CHARS, TOUCH_MS, admit, hash, random_secret};
use crate::{App, api::ApiError, serve::request_guard::Guarded as _};

/// Longest time between two requests of a session, in milliseconds: 12 hours.
pub(crate) const IDLE_MS: Ms = 12 * 3_600_000;
/// Longest time of a session, in milliseconds: 7 days.
pub(crate) const MAX_SESSION_MS: Ms = 7 * 24 * 3_600_000;

/// A valid session, and the caller of its token.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) caller: Caller,
    pub(crate) row: SessionRow,
}

/// Creates a session for a caller that has just sent its token. Returns the secret of the cookie.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub(crate) async fn create_session(app: &App, caller: &Caller) -> Result<SecretText, ApiError> {
    let secret = random_secret();
    let now = app.clock.now_ms();
    let row = SessionRow {
        hash: hash(&secret),
        token_id: caller.token_id.clone(),
        created_at: now,
        last_used_at: now,
        expires_at: now + MAX_SESSION_MS,
    };
    app.store.create_session(&row).await?;
    Ok(SecretText(secret))
}

/// Origin of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A user opened a page or sent a form.
    User,
    /// An open page requested updates. Such requests do not keep a session from ending.
    Update,
}

/// Returns the session with the secret of a cookie. `None` if it has ended or never existed.
///
/// # Errors
/// Returns 429 if the token is used too often, and an error if the database cannot be used.
pub(crate) async fn find_session(
    app: &App,
    extensions: &Extensions,
    secret: &str,
    origin: Use,
) -> Result<Option<Session>, ApiError> {
    if secret.len() != SECRET_CHARS {
        return Ok(None);
    }
    let hash = hash(secret);
    let now = app.clock.now_ms();
    let turn = app.limits.acquire_lookup(&hash).await;
    let found = read_session(app, &hash, now).await?;
    drop(turn);
    let Some((row, token)) = found else {
        app.limits.forget(&hash);
        return Ok(None);
    };
    app.limits.remember(&hash);
    extensions.mark_authenticated();
    if origin == Use::User && now - row.last_used_at >= TOUCH_MS {
        app.store.touch_session(&hash, now).await?;
    }
    let caller = admit(app, token, now).await?;
    Ok(Some(Session { caller, row }))
}

/// Returns a valid session and its valid token.
async fn read_session(
    app: &App,
    hash: &[u8],
    now: Ms,
) -> Result<Option<(SessionRow, TokenRow)>, StoreError> {
    let row = app.store.session(hash).await?;
    let row = row.filter(|row| row.expires_at > now && now - row.last_used_at < IDLE_MS);
    let Some(row) = row else { return Ok(None) };
    let token = app.store.token_by_id(&row.token_id).await?;
    let token = token.filter(|token| token.expires_at.is_none_or(|end| end > now));
    Ok(token.map(|token| (row, token)))
}

/// Returns `true` if a session and its token are still valid.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub(crate) async fn is_session_valid(app: &App, row: &SessionRow) -> Result<bool, StoreError> {
    let found = read_session(app, &row.hash, app.clock.now_ms()).await?;
    Ok(found.is_some())
}

/// Ends the session with the secret of a cookie.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub(crate) async fn end_session(app: &App, secret: &str) -> Result<(), ApiError> {
    let hash = hash(secret);
    app.limits.forget(&hash);
    app.store.delete_session(&hash).await?;
    Ok(())
}
