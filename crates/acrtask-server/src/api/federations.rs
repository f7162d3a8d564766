//! Whose identity tokens are exchanged for tokens of ours, and the exchange.

use acrtask_api::forms::Word;
use acrtask_api::{
    admin::{ExchangeToken, Federation, NewToken, Problem, Scope},
    run::SecretText,
};
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
    auth::{self, By, CredentialKind},
    oidc::{self, ExchangeError},
    serve::request_guard::{Guarded as _, RequestGuard},
    submit::{self, Problems},
};

/// The longest that an exchanged token may hold for, in seconds.
const MAX_TTL: u64 = 3600;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, delete))
        .routes(routes!(exchange))
}

/// All federations.
#[utoipa::path(get, path = "/federations", tag = "federations", security(("token" = ["admin"])), responses(
    (status = OK, body = Vec<Federation>),
))]
async fn list(
    _by: By<auth::Admin>,
    State(api): State<Api>,
) -> Result<Json<Vec<Federation>>, ApiError> {
    Ok(Json(api.app.store.federations().await?))
}

/// Sets a federation: whose identity tokens are exchanged, and for what.
#[utoipa::path(put, path = "/federations/{name}", tag = "federations", request_body = Federation,
    params(("name" = Word, Path, description = "Its name.")), security(("token" = ["admin"])), responses(
    (status = OK, body = Federation),
    (status = BAD_REQUEST, body = Problem),
))]
async fn put(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
    Json(asked): Json<Federation>,
) -> Result<Json<Federation>, ApiError> {
    check(&name, &asked).into_result()?;
    let app = &api.app;
    app.store.put_federation(&asked, app.clock.now_ms()).await?;
    tracing::info!(
        federation = name,
        issuer = asked.issuer,
        subject = asked.subject,
        by = by.caller.name,
        "a federation was set"
    );
    Ok(Json(asked))
}

fn check(name: &str, asked: &Federation) -> Problems {
    let mut problems = Problems::default();
    if asked.name != name {
        problems.add_rule(format!(
            "`name` is `{}`, and the path says `{name}`",
            asked.name
        ));
    }
    if let Err(reason) = submit::word(&asked.name) {
        problems.add(format!("`name`: {reason}"));
    }
    if let Err(reason) = oidc::check_issuer(&asked.issuer) {
        let problem = format!("`issuer`: {reason}");
        if asked.issuer.starts_with("http://") || asked.issuer.starts_with("https://") {
            problems.add_rule(problem);
        } else {
            problems.add(problem);
        }
    }
    if asked.audience.trim().is_empty() {
        problems.add("`audience` is empty: a token for anybody else would do");
    }
    submit::check_printable("audience", &asked.audience, &mut problems);
    submit::check_printable("subject", &asked.subject, &mut problems);
    if asked.subject.chars().all(|c| c == '*') {
        problems.add(
            "`subject` would let in everybody whom the issuer knows: write what `sub` begins with, as in `repo:org/app:*`",
        );
    }
    tokens::check_rights(&asked.scopes, asked.tasks.as_deref(), &mut problems);
    tokens::check_pools(&asked.pools, asked.tasks.as_deref(), &mut problems);
    if asked.scopes.contains(&Scope::Admin) {
        problems.add_rule("`scopes` has `admin`, which no exchanged token may have");
    }
    if !(1..=MAX_TTL).contains(&asked.ttl_secs) {
        problems.add(format!("`ttlSecs` must be 1 to {MAX_TTL}"));
    }
    problems
}

/// Removes a federation. Tokens that were given out hold until their end.
#[utoipa::path(delete, path = "/federations/{name}", tag = "federations",
    params(("name" = String, Path, description = "Its name.")), security(("token" = ["admin"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
))]
async fn delete(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.app.store.delete_federation(&name).await?;
    tracing::info!(
        federation = name,
        by = by.caller.name,
        "a federation was removed"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// The address of a request without a token, and its guard.
struct Anonymous(std::net::IpAddr, Option<RequestGuard>);

impl FromRequestParts<Api> for Anonymous {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Self::Rejection> {
        let guard = parts.extensions.guard().cloned();
        Ok(Self(auth::address(&parts.extensions), guard))
    }
}

/// Exchanges the identity token of a CI job for a token of ours that holds for a short time. Needs no token.
#[utoipa::path(post, path = "/auth/exchange", tag = "federations", request_body = ExchangeToken, responses(
    (status = CREATED, body = NewToken),
    (status = UNAUTHORIZED, body = Problem, description = "The identity token is wrong, or no federation takes it."),
    (status = BAD_GATEWAY, body = Problem, description = "The issuer did not answer as it should."),
    (status = TOO_MANY_REQUESTS, body = Problem),
))]
async fn exchange(
    Anonymous(address, guard): Anonymous,
    State(api): State<Api>,
    Json(asked): Json<ExchangeToken>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let app = &api.app;
    let now = app.clock.now_ms();
    let turn = app.limits.lookup(&[]).await;
    let federations = app.store.federations().await?;
    drop(turn);
    let SecretText(token) = asked.token;
    let granted = match api.issuers.verify(&token, &federations, now).await {
        Ok(granted) => granted,
        Err(error @ ExchangeError::Issuer { .. }) => {
            tracing::warn!(
                error = acrtask_model::chain(&error),
                "an issuer of identity tokens did not answer as it should"
            );
            return Err(ApiError::upstream(error.to_string()));
        }
        Err(error) => {
            tracing::info!(%error, "an identity token was refused");
            let refusal = ApiError::unauthorized(error.to_string())
                .help("compare `iss`, `aud` and `sub` of the token with the federation");
            let kind = CredentialKind::Identity;
            return Err(app.limits.fail(kind, address, now, refusal));
        }
    };
    guard.proved();
    let federation = granted.federation;
    let minted = auth::mint();
    let ttl = federation.ttl_secs.clamp(1, MAX_TTL);
    let row = TokenRow {
        id: minted.id,
        name: granted.subject.chars().take(200).collect(),
        hash: minted.hash,
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
        "an identity token was exchanged"
    );
    Ok((
        StatusCode::CREATED,
        Json(NewToken {
            secret: minted.text,
            token: tokens::to_api(row),
        }),
    ))
}

#[cfg(test)]
#[path = "federations_tests.rs"]
mod tests;
