//! Client of a server: its API, uploads, and the live events of a run.
//!
//! Invariants: a token goes only to its own server, over TLS unless that server is on this machine
//! or the user allows plain HTTP, and never along a redirect. A request that could have an effect
//! twice is sent once. Other requests are retried as configured in [`retry`].

pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod retry;
pub(crate) mod sse;
pub(crate) mod upload;

use std::{path::Path, time::Duration};

use acrtask_api::{admin::Problem, run::Run};
use acrtask_model::Secret;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header, redirect};
use serde::{Serialize, de::DeserializeOwned};
use url::{Host, Url};

pub(crate) use self::error::ApiError;
use self::retry::Retry;

/// Timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum pause within a response. The server keeps event streams alive more often.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of an error response in bytes.
const MAX_PROBLEM: usize = 64 << 10;

/// Address of a server and the settings for the connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Base address without `/api/v1`.
    pub(crate) url: Url,
    /// Token; `None` before a login.
    pub(crate) token: Option<Secret>,
    /// File with the certificate authorities for the server; `None`: the system's.
    pub(crate) ca: Option<std::path::PathBuf>,
    /// Allows plain HTTP to a server on another machine.
    pub(crate) allow_plaintext: bool,
}

/// Client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
    retry: Retry,
}

/// Reasons why a client cannot be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The address is invalid.
    #[error("`{text}` is not the address of a server: {reason}")]
    Address {
        /// Address as typed, without a possible password.
        text: String,
        /// Reason.
        reason: String,
    },
    /// The token would go over the network unencrypted.
    #[error("{} is not on this machine, and http:// would expose the token on the network", display_url(.0))]
    Plaintext(Url),
    /// The certificate file is unreadable.
    #[error("cannot read the certificates in {path}")]
    Ca {
        /// Path of the file.
        path: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HTTP client cannot be created.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// Parses the address of a server: `https://HOST[:PORT]`; the default protocol is https.
pub(crate) fn server_url(text: &str) -> Result<Url, ConnectionError> {
    let refuse = |reason: &str| ConnectionError::Address {
        // The text before an `@` may be a password.
        text: text.rsplit('@').next().unwrap_or_default().to_owned(),
        reason: reason.into(),
    };
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&full).map_err(|error| refuse(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("the protocol must be https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("an address must not contain a login"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("an address must not contain `?` or `#`"));
    }
    // Normalizes the address, because tokens are stored by it.
    let path = url.path().trim_end_matches('/');
    let path = path
        .strip_suffix(acrtask_api::BASE)
        .unwrap_or(path)
        .to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Returns the address without a trailing slash, for output.
pub(crate) fn display_url(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

/// Returns `true` if `url` is on this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl Client {
    /// Creates a client for `connection`. It connects at its first request.
    pub(crate) fn new(connection: &Connection) -> Result<Self, ConnectionError> {
        acrtask_registry::install_crypto_provider();
        let url = &connection.url;
        let local = is_loopback(url);
        if url.scheme() == "http" && !local && !connection.allow_plaintext {
            return Err(ConnectionError::Plaintext(url.clone()));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(20))
            // TCP's window grows with the network path. HTTP/2 has a small one, because the server
            // limits its buffers.
            .http1_only()
            .redirect(redirect::Policy::none());
        if local {
            builder = builder.no_proxy();
        }
        if let Some(path) = &connection.ca {
            builder = builder.tls_certs_only(load_certificates(path)?);
        }
        Ok(Self {
            http: builder.build().map_err(ConnectionError::Http)?,
            base: url.clone(),
            token: connection.token.clone(),
            retry: Retry::default(),
        })
    }

    /// Returns the client with another retry policy.
    #[must_use]
    pub(crate) fn retrying(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Returns the server's base address.
    pub(crate) fn url(&self) -> &Url {
        &self.base
    }

    /// Returns the address of an API resource. Segments may contain any characters.
    fn endpoint(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(acrtask_api::BASE.trim_start_matches('/').split('/'))
                .extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut()
                .extend_pairs(query.iter().map(|(key, value)| (*key, value.as_str())));
        }
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends a request until it succeeds, and returns the response. Repeats it only if a repetition
    /// is safe.
    async fn send(
        &self,
        repeatable: bool,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, ApiError> {
        let mut backoff = self.retry.start();
        loop {
            let error = match build().send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => response_error(response).await,
                Err(error) => ApiError::unreachable(&self.base, error),
            };
            let Some(wait) = backoff.delay_after(&error, repeatable) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "retrying the request");
            tokio::time::sleep(wait).await;
        }
    }

    async fn parse_json<T: DeserializeOwned>(&self, response: Response) -> Result<T, ApiError> {
        let bytes = response
            .bytes()
            .await
            .map_err(|error| ApiError::unreachable(&self.base, error))?;
        serde_json::from_slice(&bytes).map_err(|source| ApiError::InvalidResponse {
            url: self.base.clone(),
            source,
        })
    }

    /// Gets a JSON resource.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ApiError> {
        let url = self.endpoint(segments, query);
        let response = self
            .send(true, || self.request(Method::GET, url.clone()))
            .await?;
        self.parse_json(response).await
    }

    /// Gets a text resource outside of the API, such as the metrics.
    pub(crate) async fn get_text(&self, name: &str) -> Result<String, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        let response = self
            .send(true, || self.http.request(Method::GET, url.clone()))
            .await?;
        let text = response.text().await;
        text.map_err(|error| ApiError::unreachable(&self.base, error))
    }

    /// Posts a new resource. Never repeats a request that may have arrived.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let url = self.endpoint(segments, &[]);
        let response = self
            .send(false, || self.request(Method::POST, url.clone()).json(body))
            .await?;
        self.parse_json(response).await
    }

    /// Starts a run. Repeats are safe, because the server recognizes the idempotency key.
    pub(crate) async fn start_run(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<Run, ApiError> {
        let url = self.endpoint(segments, &[]);
        let key = format!("{:032x}", rand::random::<u128>());
        let response = self
            .send(true, || {
                self.request(Method::POST, url.clone())
                    .header("Idempotency-Key", &key)
                    .json(body)
            })
            .await?;
        self.parse_json(response).await
    }

    /// Posts an idempotent request and discards the response.
    pub(crate) async fn post_discarding(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        let url = self.endpoint(segments, &[]);
        self.send(true, || self.request(Method::POST, url.clone()).json(body))
            .await?;
        Ok(())
    }

    /// Creates or replaces a resource and discards the response. `instead_of` is the generation to
    /// replace; any other generation is a conflict.
    pub(crate) async fn put(
        &self,
        segments: &[&str],
        instead_of: Option<i64>,
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        self.send_put(segments, instead_of, body).await.map(drop)
    }

    /// Creates or replaces a resource of any generation, and returns the response.
    pub(crate) async fn put_returning<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let response = self.send_put(segments, None, body).await?;
        self.parse_json(response).await
    }

    async fn send_put(
        &self,
        segments: &[&str],
        instead_of: Option<i64>,
        body: &impl Serialize,
    ) -> Result<reqwest::Response, ApiError> {
        let url = self.endpoint(segments, &[]);
        self.send(true, || {
            let request = self.request(Method::PUT, url.clone()).json(body);
            match instead_of {
                Some(generation) => request.header(header::IF_MATCH, format!("\"{generation}\"")),
                None => request,
            }
        })
        .await
    }

    /// Deletes a resource.
    pub(crate) async fn delete(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<(), ApiError> {
        let url = self.endpoint(segments, query);
        self.send(true, || self.request(Method::DELETE, url.clone()))
            .await?;
        Ok(())
    }

    /// Gets a resource that is not JSON, as a stream.
    pub(crate) async fn stream(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<Response, ApiError> {
        let url = self.endpoint(segments, query);
        self.send(true, || self.request(Method::GET, url.clone()))
            .await
    }
}

/// Loads the certificates in a PEM file.
pub(crate) fn load_certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ConnectionError> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| ConnectionError::Ca {
        path: path.display().to_string(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| fail(error.into()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| fail(error.into()))?;
    if found.is_empty() {
        return Err(fail("the file contains no certificate".into()));
    }
    Ok(found)
}

/// Converts an error response of the server.
async fn response_error(response: Response) -> ApiError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let url = response.url().clone();
    let text = read_problem(response).await;
    match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => ApiError::Refused {
            status,
            problem,
            retry_after,
        },
        Err(_) => ApiError::UnexpectedResponse {
            status,
            url,
            retry_after,
        },
    }
}

async fn read_problem(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_PROBLEM {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns `true` for a status after which the same request may succeed later.
fn is_transient(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

#[cfg(test)]
mod tests;
