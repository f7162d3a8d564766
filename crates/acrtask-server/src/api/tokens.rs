//! Tokens: made, listed, revoked; and who the caller is.

use acrtask_api::admin::{CreateToken, Me, NewToken, Problem, Scope, Token};
use acrtask_store::TokenRow;
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
};
use crate::{
    auth::{self, By},
    submit::{Problems, check_printable},
};

/// The longest that a token may hold for, in seconds: ten years.
const MAX_TTL: u64 = 10 * 366 * 24 * 3600;
/// Longest name of a token, in characters.
const MAX_NAME: usize = 200;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(me))
        .routes(routes!(list, create))
        .routes(routes!(revoke))
}

pub(super) fn to_api(row: TokenRow) -> Token {
    Token {
        id: row.id,
        name: row.name,
        scopes: row.scopes,
        tasks: row.tasks,
        pools: row.pools,
        created_at: acrtask_store::timestamp(row.created_at),
        expires_at: row.expires_at.map(acrtask_store::timestamp),
        last_used_at: row.last_used_at.map(acrtask_store::timestamp),
    }
}

/// Who asks, and what they may do. Any token will do.
#[utoipa::path(get, path = "/me", tag = "tokens", security(("token" = [])), responses((status = OK, body = Me)))]
async fn me(by: By<auth::Anyone>, State(api): State<Api>) -> Json<Me> {
    let identity = api.app.identity.get();
    Json(Me {
        key: identity.map(|identity| identity.key.clone()),
        blobs: identity.and_then(|identity| identity.blobs.clone()),
        name: by.caller.name,
        scopes: by.caller.scopes,
        tasks: by.caller.tasks,
        server_version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// All tokens, without what they are checked by.
#[utoipa::path(get, path = "/tokens", tag = "tokens", security(("token" = ["admin"])), responses((status = OK, body = Vec<Token>)))]
async fn list(_by: By<auth::Admin>, State(api): State<Api>) -> Result<Json<Vec<Token>>, ApiError> {
    let rows = api.app.store.tokens().await?;
    Ok(Json(rows.into_iter().map(to_api).collect()))
}

/// What is wrong with what a token may do.
pub(super) fn check_rights(scopes: &[Scope], tasks: Option<&str>, problems: &mut Problems) {
    if scopes.is_empty() {
        problems.add("`scopes` is empty: a token that may do nothing is of no use");
    }
    let Some(tasks) = tasks else { return };
    check_pattern(tasks, problems);
    if scopes.contains(&Scope::Admin) {
        problems.add_rule("`tasks` limits nothing of what `admin` allows: leave out one of them");
    }
}

/// Checks a name of tasks, or a prefix with `*`.
pub(super) fn check_pattern(tasks: &str, problems: &mut Problems) {
    let name = tasks.strip_suffix('*').unwrap_or(tasks);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if tasks.is_empty() || tasks.len() > MAX_NAME || !name.chars().all(good) {
        problems.add(format!(
            "`tasks` is `{tasks}`: write the name of one task, or the beginning of several with `*` behind it"
        ));
    }
}

/// Checks the pools that the tasks of a limited token may name.
pub(super) fn check_pools(pools: &[String], tasks: Option<&str>, problems: &mut Problems) {
    if !pools.is_empty() && tasks.is_none() {
        problems.add_rule(
            "`pools` is for a token with `tasks`: one without a limit may name every pool",
        );
    }
    for pool in pools {
        if let Err(reason) = crate::submit::word(pool) {
            problems.add(format!("`pools`: {reason}"));
        }
    }
}

/// Makes a token. It is seen this once.
#[utoipa::path(post, path = "/tokens", tag = "tokens", request_body = CreateToken, security(("token" = ["admin"])), responses(
    (status = CREATED, body = NewToken),
    (status = BAD_REQUEST, body = Problem),
))]
async fn create(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Json(asked): Json<CreateToken>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let mut problems = Problems::default();
    if asked.name.trim().is_empty() || asked.name.chars().count() > MAX_NAME {
        problems.add(format!("`name` must have 1 to {MAX_NAME} characters"));
    }
    check_printable("name", &asked.name, &mut problems);
    check_rights(&asked.scopes, asked.tasks.as_deref(), &mut problems);
    check_pools(&asked.pools, asked.tasks.as_deref(), &mut problems);
    if asked
        .ttl_secs
        .is_some_and(|ttl| !(1..=MAX_TTL).contains(&ttl))
    {
        problems.add(
            "`ttlSecs` must be a second to ten years; leave it out for a token without an end",
        );
    }
    problems.into_result()?;
    let app = &api.app;
    let now = app.clock.now_ms();
    let minted = auth::mint();
    let row = TokenRow {
        id: minted.id,
        name: asked.name,
        hash: minted.hash,
        scopes: asked.scopes,
        tasks: asked.tasks,
        created_at: now,
        expires_at: asked
            .ttl_secs
            .map(|ttl| now.saturating_add(i64::try_from(ttl * 1000).unwrap_or(i64::MAX))),
        last_used_at: None,
        subject: None,
        issuer: None,
        pools: asked.pools,
    };
    app.store.create_token(&row).await?;
    tracing::info!(
        token = row.id,
        name = row.name,
        by = by.caller.name,
        "a token was made"
    );
    Ok((
        StatusCode::CREATED,
        Json(NewToken {
            secret: minted.text,
            token: to_api(row),
        }),
    ))
}

/// Revokes a token: it is worth nothing from now on.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "tokens", params(("id" = String, Path, description = "The token's id.")),
    security(("token" = ["admin"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It is the last one with the scope `admin` that does not expire."),
))]
async fn revoke(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let app = &api.app;
    let tokens = app.store.tokens().await?;
    if !tokens.iter().any(|token| token.id == id) {
        return Err(ApiError::not_found(format!("there is no token {id}")));
    }
    let is_lasting_admin =
        |token: &TokenRow| token.scopes.contains(&Scope::Admin) && token.expires_at.is_none();
    let revoked = tokens.iter().find(|token| token.id == id);
    let another = tokens
        .iter()
        .any(|token| token.id != id && is_lasting_admin(token));
    if revoked.is_some_and(is_lasting_admin) && !another {
        return Err(ApiError::conflict(
            "it is the last token with the scope `admin` that does not expire: without it, no new one \
             could be made",
        )
        .help("make another one without `ttlSecs` first"));
    }
    app.store.revoke_token(&id).await?;
    tracing::info!(token = id, by = by.caller.name, "a token was revoked");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
