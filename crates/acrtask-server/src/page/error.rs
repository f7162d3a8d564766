//! Refused requests as pages.

use acrtask_page::{Foreign, Frame, ProblemPage, Section, Template as _, encode_query};
use acrtask_store::StoreError;
use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
};

use crate::api::ApiError;

/// Reason why a page is not shown.
#[derive(Debug)]
pub(super) enum PageError {
    /// The request has no session. Contains the path to return to.
    NoSession(String),
    /// The request was refused or failed.
    Problem(ApiError),
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> Self {
        Self::Problem(error)
    }
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> Self {
        Self::Problem(error.into())
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NoSession(next) => {
                let target = format!("/sign-in?next={}", encode_query(&next));
                return Redirect::to(&target).into_response();
            }
            Self::Problem(error) => error,
        };
        let status = error.status();
        let page = ProblemPage {
            frame: Frame::new(title(status), Section::Other, None),
            message: Foreign::line(&error.problem().message),
            help: error.problem().help.as_ref().map(Foreign::line),
        };
        let Ok(text) = page.render() else {
            return status.into_response();
        };
        let mut response = (status, Html(text)).into_response();
        if let Some(seconds) = error.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::UNAUTHORIZED => "Sign-in failed",
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => "Invalid request",
        StatusCode::TOO_MANY_REQUESTS => "Too many requests",
        StatusCode::MISDIRECTED_REQUEST => "Unknown host name",
        _ => "The server failed",
    }
}
