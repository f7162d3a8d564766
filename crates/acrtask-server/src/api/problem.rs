//! Errors of requests: a status, and a [`Problem`] with the mistake and its correction.

use acrtask_api::admin::Problem;
use acrtask_store::StoreError;
use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{blobs::BlobError, logs::LogError, vault::VaultError};

/// A refused or failed request.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    problem: Problem,
    retry_after: Option<u32>,
}

impl ApiError {
    /// Creates an error with a status and code that no other constructor has.
    pub(crate) fn with_code(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
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

    /// Creates a 400: the request has an invalid form.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// Creates a 401: the caller is not authenticated.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// Creates a 403: the caller lacks the right.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// Creates a 404: the resource does not exist, or is hidden from the caller.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }

    /// Creates a 409: the state of the resource does not allow the request.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// Creates a 413: the request exceeds a limit, which the message names.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
    }

    /// Creates a 422: an upload is complete but does not have the announced digest.
    pub fn mismatch(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "mismatch", message)
    }

    /// Creates a 422: each value has its form, but the request violates a rule.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    /// Creates a 429 with the seconds to wait.
    pub fn too_many(message: impl Into<String>, seconds: u32) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many", message)
        }
    }

    /// Creates a 503: the server is temporarily unable to handle the request.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
        }
    }

    /// Creates a 507: the server has too little free disk.
    pub fn disk_full(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(60),
            ..Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-room", message)
        }
        .help("free disk space on the server, or start it with a smaller --min-free-disk")
    }

    /// Creates a 502: another host failed.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream", message)
    }

    /// Creates a 500. Logs the error, which the caller does not see.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = acrtask_model::error_chain(error), "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed",
        )
        .help("see the log of the server")
    }

    /// Returns `true` for a 404.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Adds help: what to write or do instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.problem.help = Some(help.into());
        self
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the code, message and help.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Returns the seconds after which to retry.
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
            StoreError::NotFound { what } => Self::not_found(format!("{what} does not exist")),
            StoreError::Conflict { what } => Self::conflict(what.clone()),
            StoreError::Invalid { what } => Self::unprocessable(what.clone()),
            StoreError::Quota(exceeded) => Self {
                retry_after: Some(60),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "quota", exceeded.to_string())
            }
            .help(exceeded.help()),
            StoreError::Unavailable(_) => {
                tracing::warn!(
                    error = acrtask_model::error_chain(&error),
                    "cannot reach the database"
                );
                Self::unavailable("the database is unreachable; send the request again")
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
                    error = acrtask_model::error_chain(&error),
                    "cannot read or write a blob"
                );
                Self::unavailable("the blob store is unreachable; send the request again")
            }
            BlobError::NotFound(_) | BlobError::TooLarge { .. } | BlobError::Setup { .. } => {
                Self::internal(&error)
            }
            BlobError::Input(cause) => Self::invalid(format!(
                "the body was interrupted: {}",
                acrtask_model::error_chain(cause)
            )),
        }
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Store(error) => error.into(),
            LogError::Blob(error) => error.into(),
            LogError::Damaged { .. } => Self::internal(&error),
        }
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        Self::internal(&error)
    }
}

/// Returns the response to a request for an unknown path.
pub(super) async fn path_not_found(uri: axum::http::Uri) -> ApiError {
    ApiError::not_found(format!("the path {} does not exist", uri.path()))
        .help("/api/v1/openapi.json lists all paths; write a `/` inside a name as `%2F`")
}

/// Returns the response to a request with an unsupported method.
pub(super) async fn method_not_allowed(
    method: axum::http::Method,
    uri: axum::http::Uri,
) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{} does not support {method}", uri.path()),
    )
}
