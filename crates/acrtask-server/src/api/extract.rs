//! Parts of requests, each of which is refused with a [`Problem`](acrtask_api::admin::Problem) that says what is wrong.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{ApiError, BODY_LIMIT};
use crate::serve::request_guard::Guarded as _;

/// A JSON body.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = body(request, state).await?;
        parse(&body).map(Self)
    }
}

/// A JSON body that may be left out.
#[derive(Debug)]
pub(super) struct OptionalJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = body(request, state).await?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&body).map(Self)
    }
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    bytes(request, state, || {
        ApiError::too_large(format!(
            "the body is larger than {} MiB, the limit of a JSON body",
            BODY_LIMIT >> 20
        ))
        .help("files go up as a context: POST /api/v1/contexts")
    })
    .await
}

/// Reads a body whole. `too_large` names the limit of the handler.
pub(super) async fn bytes<S: Send + Sync>(
    request: Request,
    state: &S,
    too_large: impl FnOnce() -> ApiError,
) -> Result<Bytes, ApiError> {
    let guard = request.extensions().guard().cloned();
    let read = Bytes::from_request(request, state).await;
    read.map_err(|rejection| match (guard.refusal(), rejection.status()) {
        (Some(refusal), _) => refusal.to_problem(),
        (None, StatusCode::PAYLOAD_TOO_LARGE) => too_large(),
        (None, _) => ApiError::invalid(rejection.body_text()),
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body is not as it should be: {error}")))
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// What stands behind the `?`.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// What stands in the path.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|path: axum::extract::Path<T>| Self(path.0))
            .map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// A header as text; nothing where it is absent or empty.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(ApiError::invalid(format!(
            "the header `{name}` holds what is no text"
        ))),
    }
}
