//! Errors of calls to registries.

use std::time::Duration;

use crate::credentials::CredentialError;

/// Error of a failed call. Each text names the attempt and its target; [`RegistryError::help`]
/// names what to do about it.
///
/// No variant contains the address of a redirected download, because such addresses are often
/// signed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The server sent no response: unknown host, refused connection, untrusted certificate, or
    /// silence.
    #[error("cannot {attempt}: {host} cannot be reached")]
    Unreachable {
        /// Attempted operation and its target.
        attempt: String,
        /// Host without a response.
        host: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry or its token server denied access: 401 or 403.
    #[error("cannot {attempt}: {host} denied access{}", error_detail(message))]
    Denied {
        /// Attempted operation and its target.
        attempt: String,
        /// Host that denied access.
        host: String,
        /// Message of the registry. Empty if there is none.
        message: String,
        /// Advice to the user.
        help: String,
    },
    /// The repository, tag, manifest or blob does not exist: 404. Several registries send this
    /// status if access is denied.
    #[error("cannot {attempt}: {host} does not have it")]
    NotFound {
        /// Attempted operation and its target.
        attempt: String,
        /// Host without the object.
        host: String,
    },
    /// The registry limits requests: 429. The client waited as requested, or the requested wait is
    /// too long.
    #[error("cannot {attempt}: {host} limits the rate of requests{}", retry_hint(*retry_after))]
    RateLimited {
        /// Attempted operation and its target.
        attempt: String,
        /// Host that limits requests.
        host: String,
        /// Requested wait. `None` if the response has none.
        retry_after: Option<Duration>,
    },
    /// Any other response that is not a success.
    #[error(
        "cannot {attempt}: {host} responded with {status}{}",
        error_detail(message)
    )]
    Refused {
        /// Attempted operation and its target.
        attempt: String,
        /// Host that sent the response.
        host: String,
        /// HTTP status.
        status: u16,
        /// Message of the registry. Empty if there is none.
        message: String,
    },
    /// A response does not follow the specification, or has another digest than expected.
    #[error("cannot {attempt}: {reason}")]
    Invalid {
        /// Attempted operation and its target.
        attempt: String,
        /// Description of the problem.
        reason: String,
    },
    /// The content exceeds its size limit.
    #[error("cannot {attempt}: it is bigger than the limit of {limit} bytes")]
    TooLarge {
        /// Attempted operation and its target.
        attempt: String,
        /// Limit in bytes.
        limit: u64,
    },
    /// The lookup of the credential failed.
    #[error("cannot {attempt}")]
    Credentials {
        /// Attempted operation and its target.
        attempt: String,
        /// Cause.
        source: CredentialError,
    },
    /// The HTTP client cannot be created.
    #[error("cannot set up TLS")]
    Setup(#[source] reqwest::Error),
}

fn error_detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn retry_hint(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!("; it requests a wait of {} s", wait.as_secs())
    })
}

impl RegistryError {
    /// Returns advice to the user. `None` if the user can do nothing about the error.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, .. } => Some(format!(
                "check the name `{host}` and the network; declare a registry without TLS as insecure, unless it is on this machine"
            )),
            Self::Denied { help, .. } => Some(help.clone()),
            Self::NotFound { host, .. } => Some(format!(
                "check the name and the tag; if it is private, give a credential for {host}"
            )),
            Self::RateLimited { host, .. } => Some(format!(
                "wait, or give a credential for {host}: most registries allow more requests after a login"
            )),
            Self::Credentials { .. } => Some(
                "repair the Docker configuration, or give `--credential HOST=USER:@FILE`".into(),
            ),
            Self::Refused { .. }
            | Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::Setup(_) => None,
        }
    }

    /// Returns `true` if the registry does not have the object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
