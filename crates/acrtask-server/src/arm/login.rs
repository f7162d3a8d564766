//! Metadata of the cloud, and sign-in with a token or an identity token.

use acrtask_arm::{metadata_document, openid_document};
use axum::{
    Form, Json,
    extract::{OriginalUri, State, rejection::FormRejection},
    http::{Extensions, HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Arm, ArmError, find_parameter, host_of, parse_query};
use crate::{
    api::{ApiError, federations},
    auth,
    serve::request_guard::Guarded as _,
};

/// Lifetime of an access token for its client, in seconds. The client then signs in again with the
/// same secret.
const EXPIRES_IN: u64 = 3600;

/// Returns the addresses of the cloud. Needs no token.
pub(super) async fn metadata(
    State(arm): State<Arm>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Json<Value>, ArmError> {
    let host = host_of(arm.app(), &uri, &headers)?;
    let query = parse_query(&uri);
    let version = find_parameter(&query, "api-version").unwrap_or_default();
    Ok(Json(metadata_document(&host, version)))
}

/// Returns the OpenID configuration. Needs no token.
pub(super) async fn openid(
    State(arm): State<Arm>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Json<Value>, ArmError> {
    Ok(Json(openid_document(&host_of(arm.app(), &uri, &headers)?)))
}

/// Form of a request for an access token. Other members are ignored.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct TokenForm {
    grant_type: String,
    client_secret: Option<String>,
    client_assertion: Option<String>,
}

/// Exchanges a token, or the identity token of a CI job, for an access token.
///
/// The access token for an acrtask token is that token itself, so that its revocation and its
/// rights apply at once.
pub(super) async fn token(
    State(arm): State<Arm>,
    extensions: Extensions,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Response {
    let form = match form {
        Ok(Form(form)) => form,
        Err(error) => return refuse("invalid_request", error.status(), &error.body_text()),
    };
    if form.grant_type != "client_credentials" {
        return refuse(
            "unsupported_grant_type",
            StatusCode::BAD_REQUEST,
            "only `client_credentials` is supported: sign in with `az login --service-principal`",
        );
    }
    let granted = match (form.client_assertion, form.client_secret) {
        (Some(assertion), _) => exchange(&arm, &extensions, &assertion).await,
        (None, Some(secret)) => {
            let verified = auth::verify_token(arm.app(), &extensions, Some(&secret)).await;
            verified.map(|_| (secret, EXPIRES_IN))
        }
        (None, None) => Err(ApiError::unauthorized(
            "the request has neither `client_secret` nor `client_assertion`",
        )),
    };
    match granted {
        Ok((token, expires_in)) => Json(json!({
            "token_type": "Bearer",
            "expires_in": expires_in,
            "access_token": token,
        }))
        .into_response(),
        Err(error) => {
            let status = error.status();
            let code = match status {
                StatusCode::UNAUTHORIZED => "invalid_client",
                _ => "temporarily_unavailable",
            };
            refuse(code, status, &ArmError::from(error).message())
        }
    }
}

/// Exchanges an identity token. Returns the new token and its lifetime in seconds.
async fn exchange(
    arm: &Arm,
    extensions: &Extensions,
    assertion: &str,
) -> Result<(String, u64), ApiError> {
    let address = auth::client_address(extensions);
    let guard = extensions.guard().cloned();
    let issued = federations::exchange_identity(&arm.api, address, guard, assertion).await?;
    let now = arm.app().clock.now_ms();
    let expires_in = issued.token.expires_at.map_or(EXPIRES_IN, |end| {
        u64::try_from((end.as_millisecond() - now) / 1000).unwrap_or_default()
    });
    Ok((issued.secret.0, expires_in))
}

fn refuse(code: &str, status: StatusCode, message: &str) -> Response {
    let body = json!({"error": code, "error_description": message});
    (status, Json(body)).into_response()
}
