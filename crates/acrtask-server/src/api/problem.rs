//! A refused request: a status, and a [`Problem`] that says what to do instead.

use acrtask_api::admin::Problem;
use acrtask_store::StoreError;
use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{blobs::BlobError, vault::VaultError};

/// Why a request is refused.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    problem: Problem,
    retry_after: Option<u32>,
}

impl ApiError {
    /// With a status and a code that no other function here gives.
    pub(crate) fn of(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self::new(status, code, message)
    }

    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            problem: Problem {
                code: code.into(),
                message: message.into(),
                help: None,
            },
            retry_after: None,
        }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 401: who asks is not known.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 403: who asks may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404: it does not exist, or not for who asks.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }

    /// 409: it is not so that this could be done.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 413: more than a declared limit, which the message names.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
    }

    /// 422: it came whole and is not what it should be.
    pub fn mismatch(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "mismatch", message)
    }

    /// 422: each value has its form, and a rule that no schema can express is broken.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    /// 429: later.
    pub fn too_many(message: impl Into<String>, seconds: u32) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message)
        }
    }

    /// 503: later, and it is not the caller's fault.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
        }
    }

    /// 507: the server has too little room.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(60),
            ..Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-room", message)
        }
        .help("free some disk of the server, or start it with another --min-free-disk")
    }

    /// 502: somebody whom we had to ask did not answer as they should.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream", message)
    }

    /// 500: ours; what it is goes to the log, and not to the caller.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = acrtask_model::chain(error), "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed",
        )
        .help("its log says why")
    }

    /// Returns `true` for a 404.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// With what to do instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.problem.help = Some(help.into());
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Seconds after which to ask again.
    pub fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { what } => Self::not_found(format!("there is no {what}")),
            StoreError::Conflict { what } => Self::conflict(what.clone()),
            StoreError::Invalid { what } => Self::unprocessable(what.clone()),
            StoreError::Quota(exceeded) => Self {
                retry_after: Some(60),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "quota", exceeded.to_string())
            }
            .help(exceeded.help()),
            StoreError::Unavailable(_) => {
                tracing::warn!(
                    error = acrtask_model::chain(&error),
                    "the database cannot be reached"
                );
                Self::unavailable("the database cannot be reached now")
            }
            _ => Self::internal(&error),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::Failed { .. } => {
                tracing::warn!(
                    error = acrtask_model::chain(&error),
                    "a blob cannot be written or read"
                );
                Self::unavailable("the place for logs and contexts cannot be reached now")
            }
            BlobError::NotFound(_) | BlobError::TooLarge { .. } | BlobError::Setup { .. } => {
                Self::internal(&error)
            }
            BlobError::Input(cause) => Self::invalid(format!(
                "the body broke off: {}",
                acrtask_model::chain(cause)
            )),
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        Self::internal(&error)
    }
}

/// What is asked for where nothing is.
pub(super) async fn no_route(uri: axum::http::Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}", uri.path()))
        .help("/api/v1/openapi.json says what there is; a `/` inside a name is written `%2F`")
}

/// What is asked with another method than there is.
pub(super) async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{} does not take {method}", uri.path()),
    )
}
