//! Errors in the form of ARM.

use acrtask_arm::{FilterError, PathError, Refusal};
use acrtask_store::StoreError;
use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::api::ApiError;

/// A refused or failed request of the ARM API.
#[derive(Debug)]
pub(crate) struct ArmError {
    error: ApiError,
    /// Code of ARM. `None`: the code of the status.
    code: Option<&'static str>,
}

impl From<ApiError> for ArmError {
    fn from(error: ApiError) -> Self {
        Self { error, code: None }
    }
}

impl From<StoreError> for ArmError {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<Refusal> for ArmError {
    fn from(refusal: Refusal) -> Self {
        ApiError::invalid(refusal.to_string()).into()
    }
}

impl From<FilterError> for ArmError {
    fn from(error: FilterError) -> Self {
        ApiError::invalid(error.to_string()).into()
    }
}

impl From<PathError> for ArmError {
    fn from(error: PathError) -> Self {
        let message = error.to_string();
        let (error, code) = match error {
            PathError::UnknownSubscription(_) => {
                (ApiError::not_found(message), "SubscriptionNotFound")
            }
            PathError::UnknownGroup(_) => (ApiError::not_found(message), "ResourceGroupNotFound"),
            PathError::Unsupported(_) => (ApiError::not_found(message), "NotFound"),
            PathError::UnsupportedMethod(_) => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                let error = ApiError::with_code(status, "method-not-allowed", message);
                (error, "MethodNotAllowed")
            }
        };
        Self {
            error,
            code: Some(code),
        }
    }
}

/// Returns the code of ARM for a status.
fn code_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "AuthenticationFailed",
        StatusCode::FORBIDDEN => "AuthorizationFailed",
        StatusCode::NOT_FOUND => "ResourceNotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLarge",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        status if status.is_client_error() => "InvalidRequest",
        _ => "InternalServerError",
    }
}

impl ArmError {
    /// Returns `true` for a 404.
    pub(super) fn is_not_found(&self) -> bool {
        self.error.is_not_found()
    }

    /// Returns the message and the help as one text.
    pub(super) fn message(&self) -> String {
        let problem = self.error.problem();
        match &problem.help {
            Some(help) => format!("{}; {help}", problem.message),
            None => problem.message.clone(),
        }
    }

    /// Returns the status. ARM has no 422.
    pub(super) fn status(&self) -> StatusCode {
        match self.error.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        }
    }
}

impl IntoResponse for ArmError {
    fn into_response(self) -> Response {
        let status = self.status();
        let code = self.code.unwrap_or_else(|| code_of(status));
        let body = json!({"error": {"code": code, "message": self.message()}});
        let mut response = (status, Json(body)).into_response();
        // Azure's clients wait in silence if a quota names a time.
        let retry_after = self.error.retry_after();
        if let Some(seconds) = retry_after.filter(|_| self.error.problem().code != "quota") {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}
