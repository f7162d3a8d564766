//! Extractors of request parts. Each refuses invalid input with a
//! [`Problem`](acrtask_api::admin::Problem).

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ApiError, BODY_LIMIT};
use crate::serve::request_guard::Guarded as _;

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_json_body(request, state).await?;
        parse_json(&body).map(Self)
    }
}

/// A JSON body that may be absent or `null`.
#[derive(Debug)]
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_json_body(request, state).await?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        let value: Option<T> = parse_json(&body)?;
        Ok(Self(value.unwrap_or_default()))
    }
}

async fn read_json_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    read_body(request, state, || {
        ApiError::too_large(format!(
            "the body is larger than {} MiB, the limit of a JSON body",
            BODY_LIMIT >> 20
        ))
        .help("upload files as a context: POST /api/v1/contexts")
    })
    .await
}

/// Reads a whole body. `too_large` creates the error that names the handler's limit.
pub(crate) async fn read_body<S: Send + Sync>(
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

pub(crate) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // serde also accepts an array for a struct. Every body of the API is an object.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::invalid(
            "the body is a JSON array: send an object",
        ));
    }
    serde_json::from_slice(body).or_else(|error| {
        // In JSON, `2.0` and `2` are the same number.
        let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
        let is_object = value.is_object();
        convert_whole_floats(&mut value);
        serde_json::from_value(value)
            .ok()
            .filter(|_| is_object)
            .ok_or_else(|| ApiError::invalid(format!("the body is invalid: {error}")))
    })
}

/// Replaces floating point numbers without a fraction by integers.
fn convert_whole_floats(value: &mut Value) {
    /// Largest integer range that floating point numbers represent exactly: 2^53.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let whole = number
                .as_f64()
                .filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT);
            if let Some(whole) = whole {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "it is a whole number below 2^53"
                )]
                let whole = whole as i64;
                *number = whole.into();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(convert_whole_floats),
        Value::Object(object) => object.values_mut().for_each(convert_whole_floats),
        _ => {}
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Parameters of the query.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// Parameters of the path.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|path: axum::extract::Path<T>| Self(path.0))
            .map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// Returns the text of a header. `None` if it is absent or empty.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(ApiError::invalid(format!(
            "the header `{name}` is not text"
        ))),
    }
}
