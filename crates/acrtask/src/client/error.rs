//! Why a request came to nothing, and how that is told.

use std::time::Duration;

use acrtask_api::admin::Problem;
use reqwest::StatusCode;
use url::Url;

use super::ConnectionError;
use crate::error::CliError;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The server said no, and why.
    #[error("{}", problem.message)]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        problem: Problem,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// Something that is no such server answered.
    #[error("{url} answered {status}, as a server of acrtask does not")]
    Strange {
        /// The status.
        status: StatusCode,
        /// What was asked.
        url: Url,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// There is no connection, or it was cut.
    #[error("the server at {} cannot be reached", super::shown(url))]
    Unreachable {
        /// The server.
        url: Url,
        /// Nothing of the request has reached it.
        unsent: bool,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Its certificate is not one of its name by an authority that is trusted here.
    #[error(
        "the certificate of the server at {} is not trusted",
        super::shown(url)
    )]
    Untrusted {
        /// The server.
        url: Url,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// An answer that should have gone on ended before anything came.
    #[error("the server at {} ended its answer at once", super::shown(url))]
    CutOff {
        /// The server.
        url: Url,
    },
    /// The answer is not what this version of the program knows.
    #[error("the answer of the server at {} is not understood", super::shown(url))]
    NotUnderstood {
        /// The server.
        url: Url,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file of this machine that is to be sent cannot be read.
    #[error("cannot read what is to be uploaded")]
    File(#[source] std::io::Error),
}

impl ApiError {
    /// A failed request to the server at `url`.
    pub(super) fn unreachable(url: &Url, error: reqwest::Error) -> Self {
        if let Some(source) = certificate(&error) {
            return Self::Untrusted {
                url: url.clone(),
                source,
            };
        }
        Self::Unreachable {
            url: url.clone(),
            unsent: error.is_connect(),
            // The address is told already, and may be long.
            source: error.without_url(),
        }
    }

    /// The status, where there was an answer.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } | Self::Strange { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::CutOff { .. }
            | Self::NotUnderstood { .. }
            | Self::File(_) => None,
        }
    }

    /// There is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// What the server asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::Strange { retry_after, .. } => *retry_after,
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::CutOff { .. }
            | Self::NotUnderstood { .. }
            | Self::File(_) => None,
        }
    }
}

/// What is wrong with the server's certificate, where that is the cause of `error`.
fn certificate(error: &reqwest::Error) -> Option<rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(found.clone());
        }
        // An I/O error gives what it holds not as its source, but as itself.
        let held = error.downcast_ref().and_then(std::io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held),
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
                let shown = if status.is_server_error() || super::is_passing(status) {
                    Self::unreachable(message)
                } else {
                    Self::usage(message)
                };
                match problem.help {
                    Some(help) => shown.help(help),
                    None if status == StatusCode::UNAUTHORIZED => shown.help(
                        "log in again: `acrtask login URL`, or give a token that holds in ACRTASK_TOKEN",
                    ),
                    None => shown,
                }
            }
            ApiError::CutOff { .. } => {
                Self::unreachable(message).help("see whether something in between cuts answers off")
            }
            ApiError::Strange { .. } => Self::unreachable(message)
                .help("look at the address: `acrtask whoami` shows which one is meant"),
            ApiError::Unreachable { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("see whether it runs, or stay on this machine with `--local`"),
            ApiError::Untrusted { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("name the authority that issued it: `--ca FILE`"),
            ApiError::NotUnderstood { source, .. } => Self::unreachable(message)
                .because(&source)
                .help("the server may be newer or older than this program: `acrtask whoami` and `acrtask --version` tell"),
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
                shown.help("write https://, or say --allow-plaintext where the network is your own")
            }
            ConnectionError::Ca { source, .. } => shown.because(&**source),
            ConnectionError::Http(source) => shown.because(source),
        }
    }
}
