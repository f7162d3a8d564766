//! Errors of requests, and their messages.

use std::time::Duration;

use acrtask_api::admin::Problem;
use reqwest::StatusCode;
use url::Url;

use super::ConnectionError;
use crate::error::CliError;

/// Reasons why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The server rejected the request with a problem document.
    #[error("{}", problem.message)]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Problem document.
        problem: Problem,
        /// Value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The response is not from an acrtask server.
    #[error("{url} answered {status}, so it is not an acrtask server")]
    UnexpectedResponse {
        /// HTTP status.
        status: StatusCode,
        /// Address of the request.
        url: Url,
        /// Value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The connection failed or was interrupted.
    #[error("cannot reach the server at {}", super::display_url(url))]
    Unreachable {
        /// Address of the server.
        url: Url,
        /// Set if no part of the request reached the server.
        unsent: bool,
        /// Cause.
        #[source]
        source: reqwest::Error,
    },
    /// The server's certificate is not valid for its name, or its issuer is not trusted.
    #[error(
        "the certificate of the server at {} is not trusted",
        super::display_url(url)
    )]
    Untrusted {
        /// Address of the server.
        url: Url,
        /// Cause.
        #[source]
        source: rustls::Error,
    },
    /// A streamed response ended before its first byte.
    #[error(
        "the server at {} closed the event stream at once",
        super::display_url(url)
    )]
    EmptyStream {
        /// Address of the server.
        url: Url,
    },
    /// This version of the program cannot parse the response.
    #[error(
        "cannot parse the response of the server at {}",
        super::display_url(url)
    )]
    InvalidResponse {
        /// Address of the server.
        url: Url,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A local file for the upload is unreadable.
    #[error("cannot read the file to upload")]
    File(#[source] std::io::Error),
}

impl ApiError {
    /// Converts a failed request to the server at `url`.
    pub(super) fn unreachable(url: &Url, error: reqwest::Error) -> Self {
        if let Some(source) = certificate_error(&error) {
            return Self::Untrusted {
                url: url.clone(),
                source,
            };
        }
        Self::Unreachable {
            url: url.clone(),
            unsent: error.is_connect(),
            // The message already contains the address.
            source: error.without_url(),
        }
    }

    /// Returns the HTTP status; `None` without a response.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } | Self::UnexpectedResponse { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::EmptyStream { .. }
            | Self::InvalidResponse { .. }
            | Self::File(_) => None,
        }
    }

    /// Returns `true` if the server answered 404.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Returns the wait time that the server requests.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::UnexpectedResponse { retry_after, .. } => {
                *retry_after
            }
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::EmptyStream { .. }
            | Self::InvalidResponse { .. }
            | Self::File(_) => None,
        }
    }
}

/// Returns the certificate error among the causes of `error`, if there is one.
fn certificate_error(error: &reqwest::Error) -> Option<rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(found.clone());
        }
        // `source()` of an I/O error skips its inner error, so check that error explicitly.
        let inner = error.downcast_ref().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Refused {
                status, problem, ..
            } => {
                let shown = if status.is_server_error() || super::is_transient(status) {
                    Self::unreachable(message)
                } else {
                    Self::usage(message)
                };
                match problem.help {
                    Some(help) => shown.help(help),
                    None if status == StatusCode::UNAUTHORIZED => shown.help(
                        "log in again: `acrtask login URL`, or set a valid token in ACRTASK_TOKEN",
                    ),
                    None => shown,
                }
            }
            ApiError::EmptyStream { .. } => {
                Self::unreachable(message).help("check for a proxy that closes long responses")
            }
            ApiError::UnexpectedResponse { .. } => Self::unreachable(message)
                .help("check the address: `acrtask whoami` shows the current one"),
            ApiError::Unreachable { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("check that the server runs, or run on this machine with `--local`"),
            ApiError::Untrusted { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("trust the authority that issued it: `--ca FILE`"),
            ApiError::InvalidResponse { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("the server may be newer or older than this program: compare `acrtask whoami` and `acrtask --version`"),
            ApiError::File(source) => Self::usage(message).because(&source),
        }
    }
}

impl From<ConnectionError> for CliError {
    fn from(error: ConnectionError) -> Self {
        let shown = Self::usage(error.to_string());
        match &error {
            ConnectionError::Address { .. } => {
                shown.help("write https://HOST or https://HOST:PORT")
            }
            ConnectionError::Plaintext(_) => {
                shown.help("write https://, or add --allow-plaintext if you trust the network")
            }
            ConnectionError::Ca { source, .. } => shown.because(&**source),
            ConnectionError::Http(source) => shown.because(source),
        }
    }
}
