//! Federations: issuers and subjects whose identity tokens are exchanged for API tokens, and the
//! exchange.

use acrtask_api::admin::{ExchangeToken, Federation, NewToken, Problem, Scope};
use acrtask_api::forms::ShortName;
use acrtask_store::TokenRow;
use axum::{
    extract::{FromRequestParts, State},
    http::{StatusCode, request::Parts},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, Path},
    tokens,
};
use crate::{
    auth::{self, Authenticated, CredentialKind},
    oidc::{self, ExchangeError},
    serve::request_guard::{Guarded as _, RequestGuard},
    validate::{self, Problems},
};

/// Longest lifetime of an exchanged token, in seconds.
const MAX_TTL: u64 = 3600;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
        .routes(routes!(exchange))
}

/// Lists all federations.
#[utoipa::path(get, path = "/federations", tag = "federations", security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Federation>),
))]
async fn list(
    _by: Authenticated<auth::Admin>,
    State(api): State<Api>,
) -> Result<Json<Vec<Federation>>, ApiError> {
    Ok(Json(api.app.store.federations().await?))
}

/// Sets a federation: the accepted identity tokens and the rights of the issued tokens.
#[utoipa::path(put, path = "/federations/{name}", tag = "federations", request_body = Federation,
    params(("name" = ShortName, Path, description = "Name of the federation.")), security(("token" = ["admin"])), responses(
    (status = OK, body = Federation),
    (status = BAD_REQUEST, body = Problem),
))]
async fn put(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(input): Json<Federation>,
) -> Result<Json<Federation>, ApiError> {
    check_federation(&name, &input).into_result()?;
    let app = &api.app;
    app.store.put_federation(&input, app.clock.now_ms()).await?;
    tracing::info!(
        federation = name,
        issuer = input.issuer,
        subject = input.subject,
        by = by.caller.name,
        "set a federation"
    );
    Ok(Json(input))
}

fn check_federation(name: &str, input: &Federation) -> Problems {
    let mut problems = Problems::default();
    if input.name != name {
        problems.add_rule(format!(
            "`name` is `{}`, but the path has `{name}`",
            input.name
        ));
    }
    if let Err(reason) = validate::check_word(&input.name) {
        problems.add(format!("`name`: {reason}"));
    }
    if let Err(reason) = oidc::check_issuer(&input.issuer) {
        let problem = format!("`issuer`: {reason}");
        if input.issuer.starts_with("http://") || input.issuer.starts_with("https://") {
            problems.add_rule(problem);
        } else {
            problems.add(problem);
        }
    }
    if input.audience.trim().is_empty() {
        problems
            .add("`audience` is empty: write the audience (`aud`) of the tokens for this server");
    }
    validate::check_printable("audience", &input.audience, &mut problems);
    validate::check_printable("subject", &input.subject, &mut problems);
    if input.subject.chars().all(|c| c == '*') {
        problems.add(
            "`subject` accepts all subjects of the issuer: write a prefix of `sub`, as in `repo:org/app:*`",
        );
    }
    tokens::check_rights(&input.scopes, input.tasks.as_deref(), &mut problems);
    tokens::check_pools(&input.pools, input.tasks.as_deref(), &mut problems);
    if input.scopes.contains(&Scope::Admin) {
        problems.add_rule("`scopes` has `admin`, which no exchanged token may have");
    }
    if !(1..=MAX_TTL).contains(&input.ttl_secs) {
        problems.add(format!("`ttlSecs` must be 1 to {MAX_TTL}"));
    }
    problems
}

/// Removes a federation. Its issued tokens stay valid until they expire.
#[utoipa::path(delete, path = "/federations/{name}", tag = "federations",
    params(("name" = String, Path, description = "Name of the federation.")), security(("token" = ["admin"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
))]
async fn delete(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.app.store.delete_federation(&name).await?;
    tracing::info!(
        federation = name,
        by = by.caller.name,
        "removed a federation"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// Client address and guard of a request without a token.
struct Anonymous(std::net::IpAddr, Option<RequestGuard>);

impl FromRequestParts<Api> for Anonymous {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Self::Rejection> {
        let guard = parts.extensions.guard().cloned();
        Ok(Self(auth::client_address(&parts.extensions), guard))
    }
}

/// Exchanges the identity token of a CI job for a short-lived API token. Needs no token.
#[utoipa::path(post, path = "/auth/exchange", tag = "federations", request_body = ExchangeToken, responses(
    (status = CREATED, body = NewToken),
    (status = UNAUTHORIZED, body = Problem, description = "The identity token is wrong, or no federation accepts it."),
    (status = BAD_GATEWAY, body = Problem, description = "The issuer failed to provide its keys."),
    (status = TOO_MANY_REQUESTS, body = Problem),
))]
async fn exchange(
    Anonymous(address, guard): Anonymous,
    State(api): State<Api>,
    Json(input): Json<ExchangeToken>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let issued = exchange_identity(&api, address, guard, &input.token.0).await?;
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Exchanges an identity token for an API token.
pub(crate) async fn exchange_identity(
    api: &Api,
    address: std::net::IpAddr,
    guard: Option<RequestGuard>,
    token: &str,
) -> Result<NewToken, ApiError> {
    let app = &api.app;
    let now = app.clock.now_ms();
    let turn = app.limits.acquire_lookup(&[]).await;
    let federations = app.store.federations().await?;
    drop(turn);
    let granted = match api.issuers.verify(token, &federations, now).await {
        Ok(granted) => granted,
        Err(error @ ExchangeError::Issuer { .. }) => {
            tracing::warn!(
                error = acrtask_model::error_chain(&error),
                "an issuer of identity tokens failed"
            );
            return Err(ApiError::upstream(error.to_string()));
        }
        Err(error) => {
            tracing::info!(%error, "refused an identity token");
            let refusal = ApiError::unauthorized(error.to_string())
                .help("compare `iss`, `aud` and `sub` of the token with the federation");
            let kind = CredentialKind::Identity;
            return Err(app.limits.count_failure(kind, address, now, refusal));
        }
    };
    guard.mark_proven();
    let federation = granted.federation;
    let issued = auth::new_token();
    let ttl = federation.ttl_secs.clamp(1, MAX_TTL);
    let row = TokenRow {
        id: issued.id,
        name: granted.subject.chars().take(200).collect(),
        hash: issued.hash,
        scopes: federation
            .scopes
            .iter()
            .copied()
            .filter(|scope| *scope != Scope::Admin)
            .collect(),
        tasks: federation.tasks.clone(),
        created_at: now,
        expires_at: Some(now + i64::try_from(ttl * 1000).unwrap_or(i64::MAX)),
        last_used_at: None,
        subject: Some(granted.subject),
        issuer: Some(federation.issuer.clone()),
        pools: federation.pools.clone(),
    };
    app.store.create_token(&row).await?;
    app.limits.remember(&row.hash);
    tracing::info!(
        token = row.id,
        name = row.name,
        federation = federation.name,
        "exchanged an identity token"
    );
    Ok(NewToken {
        secret: issued.text,
        token: tokens::to_api(row),
    })
}

#[cfg(test)]
#[path = "federations_tests.rs"]
mod tests;
