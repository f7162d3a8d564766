//! The client of a control plane: its API, uploads, and the events of a run as they come.
//!
//! Invariants: a token goes to the one server that it is for, over TLS unless that server is on this machine (or the
//! user said otherwise), and never along a redirect; nothing is asked twice that could do something twice. What can
//! be asked again is, for as long as [`retry`] says.

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

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence of the server while an answer is read. Events are kept alive more often than that.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read of an error.
const LONGEST_PROBLEM: usize = 64 << 10;

/// A server, and what opens it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Its address, without `/api/v1`.
    pub(crate) url: Url,
    /// The token; nothing before it is known.
    pub(crate) token: Option<Secret>,
    /// A file with the authorities that it is trusted by.
    pub(crate) ca: Option<std::path::PathBuf>,
    /// It may be spoken to in clear wherever it is.
    pub(crate) allow_plaintext: bool,
}

/// Speaks to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
    retry: Retry,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The address is none.
    #[error("`{text}` is not the address of a server: {reason}")]
    Address {
        /// As it was given, without what might be secret.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// The token would go over the network in clear.
    #[error("{} is not on this machine, and http:// would show the token to everybody on the way", shown(.0))]
    Plaintext(Url),
    /// The authorities cannot be read.
    #[error("cannot read the certificates in {path}")]
    Ca {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// HTTP or TLS cannot be set up.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// Reads the address of a server: `https://HOST[:PORT]`, where a missing protocol is https.
pub(crate) fn server_url(text: &str) -> Result<Url, ConnectionError> {
    let refuse = |reason: &str| ConnectionError::Address {
        // What stands before an `@` may be a password.
        text: text.rsplit('@').next().unwrap_or_default().to_owned(),
        reason: reason.into(),
    };
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&whole).map_err(|error| refuse(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("servers are spoken to over https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("a login does not belong into an address"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("nothing may stand behind `?` or `#`"));
    }
    // One form for one server, because tokens are found by it.
    let path = url.path().trim_end_matches('/');
    let path = path
        .strip_suffix(acrtask_api::BASE)
        .unwrap_or(path)
        .to_owned();
    url.set_path(&path);
    Ok(url)
}

/// The address as people write it.
pub(crate) fn shown(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

/// Whether `url` is on this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl Client {
    /// A client for `connection`. Connects at its first request.
    pub(crate) fn new(connection: &Connection) -> Result<Self, ConnectionError> {
        acrtask_registry::install_crypto_provider();
        let url = &connection.url;
        let local = is_loopback(url);
        if url.scheme() == "http" && !local && !connection.allow_plaintext {
            return Err(ConnectionError::Plaintext(url.clone()));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .tcp_keepalive(Duration::from_secs(20))
            // The window of TCP grows with the way. That of HTTP/2 is small: the server bounds what waits for it.
            .http1_only()
            .redirect(redirect::Policy::none());
        if local {
            builder = builder.no_proxy();
        }
        if let Some(path) = &connection.ca {
            builder = builder.tls_certs_only(authorities(path)?);
        }
        Ok(Self {
            http: builder.build().map_err(ConnectionError::Http)?,
            base: url.clone(),
            token: connection.token.clone(),
            retry: Retry::default(),
        })
    }

    /// The same, trying again for as long as `retry` says.
    #[must_use]
    pub(crate) fn retrying(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The server's address.
    pub(crate) fn url(&self) -> &Url {
        &self.base
    }

    /// The address of something below the API. Each segment may hold anything.
    fn at(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
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

    /// Sends what `build` makes, again where that can do no harm; gives back an answer that is a success.
    async fn send(
        &self,
        repeatable: bool,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, ApiError> {
        let mut waits = self.retry.begin();
        loop {
            let error = match build().send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => refused(answer).await,
                Err(error) => ApiError::unreachable(&self.base, error),
            };
            let Some(wait) = waits.after(&error, repeatable) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, ApiError> {
        let bytes = answer
            .bytes()
            .await
            .map_err(|error| ApiError::unreachable(&self.base, error))?;
        serde_json::from_slice(&bytes).map_err(|source| ApiError::NotUnderstood {
            url: self.base.clone(),
            source,
        })
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ApiError> {
        let url = self.at(segments, query);
        let answer = self
            .send(true, || self.request(Method::GET, url.clone()))
            .await?;
        self.json(answer).await
    }

    /// Reads a text beside the API: what a server tells of its own working.
    pub(crate) async fn beside(&self, name: &str) -> Result<String, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        let answer = self
            .send(true, || self.http.request(Method::GET, url.clone()))
            .await?;
        let text = answer.text().await;
        text.map_err(|error| ApiError::unreachable(&self.base, error))
    }

    /// Makes something new: not repeated once it may have arrived.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let url = self.at(segments, &[]);
        let answer = self
            .send(false, || self.request(Method::POST, url.clone()).json(body))
            .await?;
        self.json(answer).await
    }

    /// Asks for a run. The server knows the same request when it comes again, so it may.
    pub(crate) async fn start(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<Run, ApiError> {
        let url = self.at(segments, &[]);
        let key = format!("{:032x}", rand::random::<u128>());
        let answer = self
            .send(true, || {
                self.request(Method::POST, url.clone())
                    .header("Idempotency-Key", &key)
                    .json(body)
            })
            .await?;
        self.json(answer).await
    }

    /// As [`Self::post`], for what may be asked twice and whose answer does not matter.
    pub(crate) async fn tell(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        let url = self.at(segments, &[]);
        self.send(true, || self.request(Method::POST, url.clone()).json(body))
            .await?;
        Ok(())
    }

    /// Puts something where nothing, or its former self, is. The answer does not matter. `instead_of` is the
    /// generation that it is to replace; another one is a conflict.
    pub(crate) async fn put(
        &self,
        segments: &[&str],
        instead_of: Option<i64>,
        body: &impl Serialize,
    ) -> Result<(), ApiError> {
        self.send_put(segments, instead_of, body).await.map(drop)
    }

    /// Puts a resource in any generation, and returns the answer.
    pub(crate) async fn set<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let answer = self.send_put(segments, None, body).await?;
        self.json(answer).await
    }

    async fn send_put(
        &self,
        segments: &[&str],
        instead_of: Option<i64>,
        body: &impl Serialize,
    ) -> Result<reqwest::Response, ApiError> {
        let url = self.at(segments, &[]);
        self.send(true, || {
            let request = self.request(Method::PUT, url.clone()).json(body);
            match instead_of {
                Some(generation) => request.header(header::IF_MATCH, format!("\"{generation}\"")),
                None => request,
            }
        })
        .await
    }

    /// Takes something away.
    pub(crate) async fn delete(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<(), ApiError> {
        let url = self.at(segments, query);
        self.send(true, || self.request(Method::DELETE, url.clone()))
            .await?;
        Ok(())
    }

    /// Reads something that is not JSON, as it comes.
    pub(crate) async fn stream(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<Response, ApiError> {
        let url = self.at(segments, query);
        self.send(true, || self.request(Method::GET, url.clone()))
            .await
    }
}

/// The certificates in a file.
pub(crate) fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, ConnectionError> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| ConnectionError::Ca {
        path: path.display().to_string(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| fail(error.into()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| fail(error.into()))?;
    if found.is_empty() {
        return Err(fail("there is no certificate in it".into()));
    }
    Ok(found)
}

/// What the server says of a request that it does not carry out.
async fn refused(answer: Response) -> ApiError {
    let status = answer.status();
    let retry_after = answer
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let url = answer.url().clone();
    let text = problem_text(answer).await;
    match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => ApiError::Refused {
            status,
            problem,
            retry_after,
        },
        Err(_) => ApiError::Strange {
            status,
            url,
            retry_after,
        },
    }
}

async fn problem_text(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LONGEST_PROBLEM {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a status says that the same request may do better later.
fn is_passing(status: StatusCode) -> bool {
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
