//! API tokens: create, list and revoke them, and the caller's own rights.

use acrtask_api::admin::{CreateToken, Me, NewToken, Problem, Scope, Token};
use acrtask_store::TokenRow;
use axum::{extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
};
use crate::{
    auth::{self, Authenticated},
    validate::{Problems, check_printable},
};

/// Longest lifetime of a token, in seconds: ten years.
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

/// Returns the name and rights of the caller. Accepts any valid token.
#[utoipa::path(get, path = "/me", tag = "tokens", security(("token" = [])), responses((status = OK, body = Me)))]
async fn me(by: Authenticated<auth::Anyone>, State(api): State<Api>) -> Json<Me> {
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

/// Lists all tokens without their secrets.
#[utoipa::path(get, path = "/tokens", tag = "tokens", security(("token" = ["admin"])), responses((status = OK, body = Vec<Token>)))]
async fn list(
    _by: Authenticated<auth::Admin>,
    State(api): State<Api>,
) -> Result<Json<Vec<Token>>, ApiError> {
    let rows = api.app.store.tokens().await?;
    Ok(Json(rows.into_iter().map(to_api).collect()))
}

/// Checks the scopes and the task limit of a token.
pub(super) fn check_rights(scopes: &[Scope], tasks: Option<&str>, problems: &mut Problems) {
    if scopes.is_empty() {
        problems.add("`scopes` is empty: write at least one scope");
    }
    let Some(tasks) = tasks else { return };
    check_pattern(tasks, problems);
    if scopes.contains(&Scope::Admin) {
        problems.add_rule("`tasks` does not limit the scope `admin`: leave out one of them");
    }
}

/// Checks a task limit: a task name, or a prefix with `*`.
pub(super) fn check_pattern(tasks: &str, problems: &mut Problems) {
    let name = tasks.strip_suffix('*').unwrap_or(tasks);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if tasks.is_empty() || tasks.len() > MAX_NAME || !name.chars().all(good) {
        problems.add(format!(
            "`tasks` is `{tasks}`: write the name of one task, or a prefix followed by `*`"
        ));
    }
}

/// Checks the pools that tasks of a token with a task limit may use.
pub(super) fn check_pools(pools: &[String], tasks: Option<&str>, problems: &mut Problems) {
    if !pools.is_empty() && tasks.is_none() {
        problems.add_rule("`pools` needs `tasks`: a token without a task limit may use every pool");
    }
    for pool in pools {
        if let Err(reason) = crate::validate::check_word(pool) {
            problems.add(format!("`pools`: {reason}"));
        }
    }
}

/// Creates a token. Only this response contains its secret.
#[utoipa::path(post, path = "/tokens", tag = "tokens", request_body = CreateToken, security(("token" = ["admin"])), responses(
    (status = CREATED, body = NewToken),
    (status = BAD_REQUEST, body = Problem),
))]
async fn create(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Json(input): Json<CreateToken>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let mut problems = Problems::default();
    if input.name.trim().is_empty() || input.name.chars().count() > MAX_NAME {
        problems.add(format!("`name` must have 1 to {MAX_NAME} characters"));
    }
    check_printable("name", &input.name, &mut problems);
    check_rights(&input.scopes, input.tasks.as_deref(), &mut problems);
    check_pools(&input.pools, input.tasks.as_deref(), &mut problems);
    if input
        .ttl_secs
        .is_some_and(|ttl| !(1..=MAX_TTL).contains(&ttl))
    {
        problems.add(
            "`ttlSecs` must be 1 second to 10 years; leave it out for a token that does not expire",
        );
    }
    problems.into_result()?;
    let app = &api.app;
    let now = app.clock.now_ms();
    let token = auth::new_token();
    let row = TokenRow {
        id: token.id,
        name: input.name,
        hash: token.hash,
        scopes: input.scopes,
        tasks: input.tasks,
        created_at: now,
        expires_at: input
            .ttl_secs
            .map(|ttl| now.saturating_add(i64::try_from(ttl * 1000).unwrap_or(i64::MAX))),
        last_used_at: None,
        subject: None,
        issuer: None,
        pools: input.pools,
    };
    app.store.create_token(&row).await?;
    tracing::info!(
        token = row.id,
        name = row.name,
        by = by.caller.name,
        "created a token"
    );
    Ok((
        StatusCode::CREATED,
        Json(NewToken {
            secret: token.text,
            token: to_api(row),
        }),
    ))
}

/// Revokes a token. It is invalid from now on.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "tokens", params(("id" = String, Path, description = "Id of the token.")),
    security(("token" = ["admin"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The token is the last one with the scope `admin` that does not expire."),
))]
async fn revoke(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let app = &api.app;
    let tokens = app.store.tokens().await?;
    if !tokens.iter().any(|token| token.id == id) {
        return Err(ApiError::not_found(format!(
            "the token {id} does not exist"
        )));
    }
    let is_lasting_admin =
        |token: &TokenRow| token.scopes.contains(&Scope::Admin) && token.expires_at.is_none();
    let revoked = tokens.iter().find(|token| token.id == id);
    let another = tokens
        .iter()
        .any(|token| token.id != id && is_lasting_admin(token));
    if revoked.is_some_and(is_lasting_admin) && !another {
        return Err(ApiError::conflict(
            "it is the last token with the scope `admin` that does not expire: without it, no further token \
             could be created",
        )
        .help("create another one without `ttlSecs` first"));
    }
    app.store.revoke_token(&id).await?;
    tracing::info!(token = id, by = by.caller.name, "revoked a token");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
