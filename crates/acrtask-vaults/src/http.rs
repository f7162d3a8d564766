//! Requests to vaults and token issuers: without redirects, with limits, with retries.

use std::{
    path::Path,
    sync::{OnceLock, atomic::AtomicBool},
    time::Duration,
};

use acrtask_model::error_chain;
use acrtask_registry::{AddressPolicy, net, retry_after};
use backon::{ExponentialBuilder, Retryable as _};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;

use crate::VaultError;

/// Maximum duration of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of attempts after the first one.
const RETRIES: usize = 3;
/// Delay before the second attempt. It doubles before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Maximum `Retry-After` that is respected by waiting. With a longer one, the request fails.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Maximum size of a response, in bytes.
const MAX_BODY: usize = 512 << 10;
/// Maximum length of a service's text in an error, in characters.
const MAX_QUOTE: usize = 300;

/// The HTTP clients of one call of [`crate::Vaults::read`].
#[derive(Debug, Default)]
pub(crate) struct Clients {
    azure: OnceLock<Client>,
    vault: OnceLock<Client>,
    /// Set after a token that was not accepted has been replaced.
    pub(crate) renewed: AtomicBool,
}

impl Clients {
    /// Returns the client for Azure.
    pub(crate) fn azure(&self) -> Result<&Client, VaultError> {
        get_or_build(&self.azure, None)
    }

    /// Returns the client for Vault. If `ca` is set, it trusts only the certificates in that PEM
    /// file.
    pub(crate) fn vault(&self, ca: Option<&Path>) -> Result<&Client, VaultError> {
        get_or_build(&self.vault, ca)
    }
}

fn get_or_build<'c>(
    cell: &'c OnceLock<Client>,
    ca: Option<&Path>,
) -> Result<&'c Client, VaultError> {
    if let Some(client) = cell.get() {
        return Ok(client);
    }
    let mut builder = net::builder(AddressPolicy::Any, false).timeout(REQUEST_TIMEOUT);
    if let Some(path) = ca {
        let failed = |error: &dyn std::error::Error| {
            VaultError::new(format!(
                "the certificates in {} (VAULT_CACERT) cannot be read: {}",
                path.display(),
                error_chain(error)
            ))
        };
        let pem = std::fs::read(path).map_err(|error| failed(&error))?;
        let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?;
        builder = builder.tls_certs_only(found);
    }
    let client = builder
        .build()
        .map_err(|error| VaultError::new(format!("TLS cannot be used: {}", error_chain(&error))))?;
    Ok(cell.get_or_init(|| client))
}

/// A response that no further attempt would change.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    body: Vec<u8>,
}

impl Reply {
    /// Parses the body. The error does not quote the body, which may be a secret.
    pub(crate) fn parse_json<T: DeserializeOwned>(&self, service: &str) -> Result<T, VaultError> {
        serde_json::from_slice(&self.body)
            .map_err(|_| VaultError::new(format!("{service} sent a response that cannot be read")))
    }

    /// Parses the body of an error. `None` if it has another form.
    pub(crate) fn parse_error<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Failure of one attempt.
struct Failure {
    error: VaultError,
    /// Set if another attempt may succeed.
    may_retry: bool,
    /// The delay that the service requests.
    wait: Option<Duration>,
}

/// Sends a request, and repeats it while `service` is unreachable, overloaded or failing.
///
/// # Errors
/// [`VaultError`] if no attempt receives a response, or the response is a redirect.
pub(crate) async fn send(
    service: &str,
    request: impl Fn() -> RequestBuilder,
) -> Result<Reply, VaultError> {
    let attempt = || send_once(service, request());
    attempt
        .retry(
            ExponentialBuilder::default()
                .with_min_delay(FIRST_WAIT)
                .with_max_times(RETRIES)
                .with_jitter(),
        )
        .when(|failure: &Failure| failure.may_retry)
        .adjust(|failure, planned| match (planned, failure.wait) {
            (Some(planned), Some(requested)) => {
                (requested <= MAX_WAIT).then(|| requested.max(planned))
            }
            (planned, _) => planned,
        })
        .notify(|failure, wait| {
            tracing::debug!(error = %failure.error, ?wait, "repeating a request to a vault");
        })
        .await
        .map_err(|failure| failure.error)
}

async fn send_once(service: &str, request: RequestBuilder) -> Result<Reply, Failure> {
    let broken = |error: reqwest::Error| Failure {
        error: VaultError::unreachable(format!(
            "{service} cannot be reached: {}",
            error_chain(&error.without_url())
        )),
        may_retry: true,
        wait: None,
    };
    let mut response = request.send().await.map_err(broken)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(Failure {
            error: VaultError::new(format!(
                "{service} redirects to another address, where no token is sent"
            )),
            may_retry: false,
            wait: None,
        });
    }
    if is_temporary(status) {
        return Err(Failure {
            error: VaultError::unreachable(format!("{service} responds with {status}")),
            may_retry: true,
            wait: retry_after(response.headers()),
        });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BODY {
            return Err(Failure {
                error: VaultError::new(format!(
                    "{service} sent a response of more than {} KiB",
                    MAX_BODY >> 10
                )),
                may_retry: false,
                wait: None,
            });
        }
    }
    Ok(Reply { status, body })
}

fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        )
}

/// Returns the first line of a service's text for an error, printable and shortened.
pub(crate) fn quote(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let printable = line.chars().filter(|c| !c.is_control());
    printable.take(MAX_QUOTE).collect()
}
