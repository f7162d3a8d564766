//! Endpoint `POST /hooks/NAME`, which receives deliveries of forges and registries and starts runs.
//!
//! The endpoint asks for no token: each sender proves itself in its own way over the raw bytes.
//!
//! Invariants:
//! - The server trusts no part of a body before it has verified the proof.
//! - A 2xx response is sent only after the delivery and all its effects are committed.
//! - A refused delivery leaves one log line, and the last refusal of its kind with a count.
//! - A sender without a proof can occupy only a bounded number of bytes for a bounded time.

mod accept;
mod delivery_batcher;
mod evaluate;
mod image_loops;
mod index;
mod refusals;
mod sender;

use std::sync::Arc;

use acrtask_api::webhook::Receipt;
use acrtask_model::Secret;
use acrtask_store::{StoreError, WebhookRow};
use acrtask_trigger::{MAX_BODY, RegistryDelivery, RegistryEvent, Rejection, registry, webhook};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Extensions, HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

pub(crate) use accept::{Accepted, Source, accept, parse_stored_headers};
pub use delivery_batcher::DeliveryBatcher;
pub(crate) use evaluate::DeliveryContext;
pub use index::TaskIndex;
pub(crate) use index::TaskSnapshot;
pub use refusals::Refusals;
pub(crate) use sender::Sender;

use crate::{
    App,
    api::ApiError,
    auth::{self, CredentialKind},
    floor,
    serve::request_guard::{BodyRefusal, Guarded as _},
};

/// Capacity that is allocated for a body before its first byte arrives, in bytes.
const INITIAL_CAPACITY: usize = 64 << 10;
/// Size from which a body is verified and parsed on a blocking thread, in bytes.
const MIN_BLOCKING_SIZE: usize = 256 << 10;

/// Returns the associated data with which the secrets of a webhook are encrypted.
pub(crate) fn secrets_aad(name: &str) -> String {
    format!("webhook/{name}")
}

/// Decrypts the secrets of a webhook.
///
/// # Errors
/// If the secrets cannot be decrypted.
pub(crate) fn decrypt_secrets(app: &App, row: &WebhookRow) -> Result<Vec<Secret>, ApiError> {
    let opened = app.vault.open(&secrets_aad(&row.name), &row.secrets)?;
    let texts: Vec<String> = serde_json::from_str(opened.expose())
        .map_err(|_| ApiError::from(crate::vault::VaultError::Damaged))?;
    Ok(texts.into_iter().map(Secret::new).collect())
}

#[derive(Debug, Clone)]
struct Hooks {
    app: Arc<App>,
}

/// Returns the router of `/hooks/NAME`.
pub fn router(app: Arc<App>) -> Router {
    let hooks = Hooks { app: app.clone() };
    let router = Router::new()
        .route(
            "/hooks/{name}",
            post(deliver)
                .options(answer_handshake)
                .fallback(reject_method),
        )
        .with_state(hooks);
    floor::guard(router, app)
}

/// Responds to the `OPTIONS` request by which CloudEvents senders ask for permission to deliver.
async fn answer_handshake(headers: HeaderMap) -> Response {
    let origin = headers.get("webhook-request-origin").cloned();
    let allow = (header::ALLOW, header::HeaderValue::from_static("POST"));
    match origin {
        Some(origin) => (
            [
                (
                    header::HeaderName::from_static("webhook-allowed-origin"),
                    origin,
                ),
                allow,
            ],
            StatusCode::OK,
        )
            .into_response(),
        None => ([allow], StatusCode::NO_CONTENT).into_response(),
    }
}

async fn reject_method(method: Method) -> Response {
    let problem = ApiError::with_code(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("deliveries are sent with POST, not {method}"),
    );
    ([(header::ALLOW, "POST")], problem).into_response()
}

async fn deliver(
    State(hooks): State<Hooks>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let app = &hooks.app;
    let address = auth::client_address(request.extensions());
    let response = receive(&hooks, &name, request).await;
    match &response {
        Ok(_) => app.metrics.count_delivery("taken"),
        Err(error) => {
            app.metrics.count_delivery(match error.status().as_u16() {
                401 | 403 => "unproved",
                500.. => "failed",
                _ => "refused",
            });
            tracing::info!(
                webhook = name,
                status = error.status().as_u16(),
                why = error.problem().message,
                "refused a delivery"
            );
            // A sender can make up any number of names, so unknown names leave no refusal.
            if error.status() != StatusCode::NOT_FOUND {
                app.refusals.add(app, &name, error, address).await;
            }
        }
    }
    response
}

async fn receive(hooks: &Hooks, name: &str, request: Request) -> Result<Response, ApiError> {
    let app = &hooks.app;
    let turn = app.limits.acquire_lookup(&[]).await;
    let found = app.store.webhook(name).await;
    drop(turn);
    let row = match found {
        Err(StoreError::NotFound { .. }) => {
            return Err(ApiError::not_found("the webhook does not exist")
                .help("`acrtask webhook list` shows all webhooks"));
        }
        row => row?,
    };
    let sender: Sender = row.definition.provider.parse().map_err(|_| {
        ApiError::conflict("this server does not support the provider of the webhook")
            .help("set the provider of the webhook again")
    })?;
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let extensions = parts.extensions;
    extensions.allow_body(MAX_BODY);
    let limit = app.config.webhook_timeout;
    let reading = read_body(&extensions, &parts.headers, body);
    let body = tokio::time::timeout(limit, reading).await.map_err(|_| {
        ApiError::with_code(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("the body did not arrive within {} s", limit.as_secs()),
        )
    })??;
    let token = query_token(parts.uri.query());
    let secrets = decrypt_secrets(app, &row)?;
    let now = app.clock.now();
    let headers = parts.headers;
    let large = body.len() >= MIN_BLOCKING_SIZE;
    let (bytes, checked) = (body.clone(), headers.clone());
    let check = move || verify(sender, &checked, token.as_deref(), &bytes, &secrets, now);
    let source = if large {
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|error| ApiError::internal(&error))?
    } else {
        check()
    }
    .map_err(|rejection| {
        let refusal = rejection_problem(&rejection);
        if !matches!(refusal.status().as_u16(), 401 | 403) {
            return refusal;
        }
        let (kind, address) = (CredentialKind::Webhook, auth::client_address(&extensions));
        app.limits
            .count_failure(kind, address, app.clock.now_ms(), refusal)
    })?;
    extensions.mark_proven();
    let response = match &source {
        Source::Registry(RegistryDelivery {
            event: RegistryEvent::Handshake { answer: response },
            ..
        }) => Some(response.clone()),
        _ => None,
    };
    let accepted = accept(app, &row, sender, source, &headers, body, None).await?;
    if let Some(response) = response {
        return Ok(([(header::CONTENT_TYPE, "application/json")], response).into_response());
    }
    Ok(Json(accepted.to_receipt()).into_response())
}

fn verify(
    sender: Sender,
    headers: &HeaderMap,
    token: Option<&str>,
    body: &[u8],
    secrets: &[Secret],
    now: jiff::Timestamp,
) -> Result<Source, Rejection> {
    match sender {
        Sender::Forge(provider) => {
            webhook::verify_and_parse(provider, headers, body, secrets, now).map(Source::Forge)
        }
        Sender::Registry(source) => {
            registry::verify_and_parse(source, headers, token, body, secrets).map(Source::Registry)
        }
    }
}

/// Parses the stored body of a delivery whose proof was verified when the delivery arrived.
pub(crate) fn parse_stored_body(
    sender: Sender,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Source, Rejection> {
    match sender {
        Sender::Forge(provider) => {
            webhook::parse_verified(provider, headers, body).map(Source::Forge)
        }
        Sender::Registry(source) => {
            registry::parse_verified(source, headers, body).map(Source::Registry)
        }
    }
}

fn rejection_problem(rejection: &Rejection) -> ApiError {
    let status = match rejection {
        Rejection::WrongProof { .. } => 401,
        other => other.status(),
    };
    let code = match rejection {
        Rejection::TooLarge { .. } => "too-large",
        Rejection::NoSecret => "no-secret",
        Rejection::MissingProof { .. } | Rejection::WrongProof { .. } => "unproved",
        Rejection::Stale { .. } => "stale",
        _ => "invalid",
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    ApiError::with_code(status, code, rejection.to_string())
}

/// Accepts JSON and the form in which GitHub encodes JSON, before any byte of the body is read.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    let is_supported = kind == "application/json"
        || kind == "text/json"
        || kind == "application/x-www-form-urlencoded"
        || (kind.starts_with("application/") && kind.ends_with("+json"));
    if is_supported {
        return Ok(());
    }
    let given = if kind.is_empty() {
        "nothing".to_owned()
    } else {
        format!("`{}`", kind.escape_debug())
    };
    Err(ApiError::with_code(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "wrong-type",
        format!("the content type is {given}"),
    )
    .help("choose `application/json` at the sender"))
}

fn query_token(query: Option<&str>) -> Option<String> {
    url::form_urlencoded::parse(query?.as_bytes())
        .find(|(key, _)| key == "token")
        .map(|(_, value)| value.into_owned())
}

async fn read_body(
    extensions: &Extensions,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::too_large(format!(
            "the body is larger than {} MiB, the limit for a delivery",
            MAX_BODY >> 20
        ))
        .help("configure the sender to put fewer events into one delivery")
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let mut body = body;
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(INITIAL_CAPACITY));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| match extensions.refusal() {
            Some(BodyRefusal::TooLarge(_)) => too_large(),
            Some(refusal) => refusal.to_problem(),
            None => ApiError::invalid("the connection ended before the whole body arrived"),
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

impl Accepted {
    /// Returns the response for the sender.
    pub(crate) fn to_receipt(&self) -> Receipt {
        Receipt {
            delivery: self.id.clone(),
            duplicate: self.seen_before,
            runs: self.runs.clone(),
            note: self.note.clone(),
        }
    }
}

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod loops_tests;
#[cfg(test)]
mod prefix_tests;
#[cfg(test)]
mod same_ref_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
