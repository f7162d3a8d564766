//! `POST /hooks/NAME`: what forges and registries send, and the runs that it starts.
//!
//! No token is asked for: each sender proves itself in its own way, over the raw bytes. Invariants: nothing of a body is
//! believed before that proof; what is answered with a 2xx is committed, with all that it leads to; of a delivery that is
//! refused nothing is kept but a line of the log and the last refusal of its kind, with a count; what a sender
//! without a proof can make the server hold is bounded in bytes and in time.

mod accept;
mod image_loops;
mod index;
mod look;
mod refusals;
mod sender;
mod together;

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

pub(crate) use accept::{Accepted, Source, accept, headers_of};
pub use index::Index;
pub(crate) use index::Tasks;
pub(crate) use look::Came;
pub use refusals::Refusals;
pub(crate) use sender::Sender;
pub use together::Together;

use crate::{
    App,
    api::ApiError,
    auth::{self, CredentialKind},
    floor,
    serve::request_guard::{BodyRefusal, Guarded as _},
};

/// Bytes that are set aside for a body before any of it has come.
const FIRST: usize = 64 << 10;
/// Bodies from this size on are read on a thread of their own.
const LARGE: usize = 256 << 10;

/// What the secrets of a webhook are encrypted for.
pub(crate) fn secrets_aad(name: &str) -> String {
    format!("webhook/{name}")
}

/// The secrets of a webhook.
///
/// # Errors
/// When they cannot be decrypted.
pub(crate) fn secrets(app: &App, row: &WebhookRow) -> Result<Vec<Secret>, ApiError> {
    let opened = app.vault.open(&secrets_aad(&row.name), &row.secrets)?;
    let texts: Vec<String> = serde_json::from_str(opened.expose())
        .map_err(|_| ApiError::from(crate::vault::VaultError::Damaged))?;
    Ok(texts.into_iter().map(Secret::new).collect())
}

#[derive(Debug, Clone)]
struct Hooks {
    app: Arc<App>,
}

/// `/hooks/NAME`.
pub fn router(app: Arc<App>) -> Router {
    let hooks = Hooks { app: app.clone() };
    let router = Router::new()
        .route(
            "/hooks/{name}",
            post(deliver).options(handshake).fallback(other_method),
        )
        .with_state(hooks);
    floor::guard(router, app)
}

/// CloudEvents asks by `OPTIONS` whether its deliveries are wanted.
async fn handshake(headers: HeaderMap) -> Response {
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

async fn other_method(method: Method) -> Response {
    let problem = ApiError::of(
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
    let address = auth::address(request.extensions());
    let answer = receive(&hooks, &name, request).await;
    match &answer {
        Ok(_) => app.metrics.delivery("taken"),
        Err(error) => {
            app.metrics.delivery(match error.status().as_u16() {
                401 | 403 => "unproved",
                500.. => "failed",
                _ => "refused",
            });
            tracing::info!(
                webhook = name,
                status = error.status().as_u16(),
                why = error.problem().message,
                "a delivery was not taken"
            );
            // Names that senders make up are not kept.
            if error.status() != StatusCode::NOT_FOUND {
                app.refusals.add(app, &name, error, address).await;
            }
        }
    }
    answer
}

async fn receive(hooks: &Hooks, name: &str, request: Request) -> Result<Response, ApiError> {
    let app = &hooks.app;
    let turn = app.limits.lookup(&[]).await;
    let found = app.store.webhook(name).await;
    drop(turn);
    let row = match found {
        Err(StoreError::NotFound { .. }) => {
            return Err(ApiError::not_found("there is no such webhook")
                .help("`acrtask webhook list` shows those that there are"));
        }
        row => row?,
    };
    let sender: Sender = row.definition.provider.parse().map_err(|_| {
        ApiError::conflict("the webhook has a sender that this server does not know")
            .help("set its provider again")
    })?;
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let extensions = parts.extensions;
    extensions.allow_body(MAX_BODY);
    let limit = app.config.webhook_timeout;
    let reading = read(&extensions, &parts.headers, body);
    let body = tokio::time::timeout(limit, reading).await.map_err(|_| {
        ApiError::of(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("the body did not come within {} s", limit.as_secs()),
        )
    })??;
    let token = query_token(parts.uri.query());
    let secrets = secrets(app, &row)?;
    let now = app.clock.now();
    let headers = parts.headers;
    let large = body.len() >= LARGE;
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
        let refusal = refused(&rejection);
        if !matches!(refusal.status().as_u16(), 401 | 403) {
            return refusal;
        }
        let (kind, address) = (CredentialKind::Webhook, auth::address(&extensions));
        app.limits.fail(kind, address, app.clock.now_ms(), refusal)
    })?;
    extensions.proved();
    let answer = match &source {
        Source::Registry(RegistryDelivery {
            event: RegistryEvent::Handshake { answer },
            ..
        }) => Some(answer.clone()),
        _ => None,
    };
    let accepted = accept(app, &row, sender, source, &headers, body, None).await?;
    if let Some(answer) = answer {
        return Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response());
    }
    Ok(Json(accepted.receipt()).into_response())
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

/// Reads a body that was kept.
pub(crate) fn read_kept(
    sender: Sender,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Source, Rejection> {
    match sender {
        Sender::Forge(provider) => webhook::read_proved(provider, headers, body).map(Source::Forge),
        Sender::Registry(source) => {
            registry::read_proved(source, headers, body).map(Source::Registry)
        }
    }
}

fn refused(rejection: &Rejection) -> ApiError {
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
    ApiError::of(status, code, rejection.to_string())
}

/// JSON, or GitHub's form that holds it. Others are refused before anything is read.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    let known = kind == "application/json"
        || kind == "text/json"
        || kind == "application/x-www-form-urlencoded"
        || (kind.starts_with("application/") && kind.ends_with("+json"));
    if known {
        return Ok(());
    }
    let given = if kind.is_empty() {
        "nothing".to_owned()
    } else {
        format!("`{}`", kind.escape_debug())
    };
    Err(ApiError::of(
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

async fn read(extensions: &Extensions, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::too_large(format!(
            "the body is larger than {} MiB, the most that a delivery may have",
            MAX_BODY >> 20
        ))
        .help("let the sender send fewer events at once")
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let mut body = body;
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(FIRST));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| match extensions.refusal() {
            Some(BodyRefusal::TooLarge(_)) => too_large(),
            Some(refusal) => refusal.to_problem(),
            None => ApiError::invalid("the body broke off"),
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
    /// What the sender is answered.
    pub(crate) fn receipt(&self) -> Receipt {
        Receipt {
            delivery: self.id.clone(),
            seen_before: self.seen_before,
            runs: self.runs.clone(),
            note: self.note.clone(),
        }
    }
}

#[cfg(test)]
mod lanes_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod loops_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
