//! What goes wrong between us and a registry.

use std::time::Duration;

use crate::credentials::CredentialError;

/// A failed call. Each text says what was attempted on what; [`RegistryError::help`] what to do.
///
/// No variant holds the address of a redirected download: such addresses are often signed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No answer: no such host, nobody listens, no trust in its certificate, or silence.
    #[error("cannot {attempt}: {host} cannot be reached")]
    Unreachable {
        /// What was attempted on what.
        attempt: String,
        /// Who did not answer.
        host: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry, or its token server, refused: 401 or 403.
    #[error("cannot {attempt}: {host} denied access{}", detail(message))]
    Denied {
        /// What was attempted on what.
        attempt: String,
        /// Who refused.
        host: String,
        /// The registry's own words, or nothing.
        message: String,
        /// What to do about it.
        help: String,
    },
    /// No such repository, tag, manifest or blob: 404. Several registries say this of what one may not see.
    #[error("cannot {attempt}: {host} does not have it")]
    NotFound {
        /// What was attempted on what.
        attempt: String,
        /// Who does not have it.
        host: String,
    },
    /// 429, also after the waits that the registry asked for, or with a longer wait than was worth it.
    #[error("cannot {attempt}: {host} limits the rate of requests{}", after(*retry_after))]
    RateLimited {
        /// What was attempted on what.
        attempt: String,
        /// Who limits.
        host: String,
        /// The wait it asks for, if it says.
        retry_after: Option<Duration>,
    },
    /// Any other answer that is not success.
    #[error("cannot {attempt}: {host} answered {status}{}", detail(message))]
    Refused {
        /// What was attempted on what.
        attempt: String,
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, or nothing.
        message: String,
    },
    /// An answer that is not what the specification says, or does not have the digest it should.
    #[error("cannot {attempt}: {reason}")]
    Invalid {
        /// What was attempted on what.
        attempt: String,
        /// What is wrong.
        reason: String,
    },
    /// Bigger than what is read of such a thing.
    #[error("cannot {attempt}: it is bigger than the limit of {limit} bytes")]
    TooLarge {
        /// What was attempted on what.
        attempt: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The credential could not be looked up.
    #[error("cannot {attempt}")]
    Credentials {
        /// What was attempted on what.
        attempt: String,
        /// What went wrong.
        source: CredentialError,
    },
    /// The HTTP client cannot be made.
    #[error("cannot set up TLS")]
    Setup(#[source] reqwest::Error),
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn after(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!("; it asks to wait {} s", wait.as_secs())
    })
}

impl RegistryError {
    /// What to do about it, where something can be done.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, .. } => Some(format!(
                "check the name `{host}` and the network; a registry without TLS has to be named insecure, unless it is on this machine"
            )),
            Self::Denied { help, .. } => Some(help.clone()),
            Self::NotFound { host, .. } => Some(format!(
                "check the name and the tag; if it is private, give a credential for {host}"
            )),
            Self::RateLimited { host, .. } => Some(format!(
                "wait, or give a credential for {host}: most registries allow more to those who log in"
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

    /// Whether the registry said that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
