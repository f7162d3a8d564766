//! Calls to a registry: scheme, authorization, retries, and errors from responses.

mod hosts;
mod routes;
mod token;
mod upload_progress;

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use acrtask_model::{ImageRef, Secret, reference::DOCKER_HUB};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use url::Url;

use self::{
    hosts::{help_missing, host_name, read_error_message},
    routes::{Clients, Routes, redirect_target},
};
pub(crate) use self::{routes::UrlSource, upload_progress::UploadProgress};
use crate::{
    client::Settings,
    credentials::{Credentials, canonical_host},
    error::RegistryError,
    net,
};

/// Maximum number of tries of one call, after 429, 502, 503, 504 or a failed connection.
const MAX_TRIES: u32 = 4;
/// Wait before the first retry. It doubles with each retry. A longer `Retry-After` replaces it.
const BACK_OFF: Duration = Duration::from_millis(250);
/// Maximum `Retry-After`. The call fails if the registry requests a longer wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Maximum size of a token server's response, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Maximum time to read a body into memory.
pub(crate) const MEMORY_TIME: Duration = Duration::from_secs(120);

/// Body of a call.
pub(crate) enum Body {
    None,
    Bytes(&'static str, Bytes),
    /// Stream that can be sent only once. The transport does not retry such a call.
    Stream(u64, reqwest::Body, UploadProgress),
}

/// Call to a registry.
pub(crate) struct Call<'a> {
    /// Attempted operation and its target, for errors: `resolve docker.io/library/alpine:3`.
    pub(crate) attempt: String,
    /// Host of the registry, as references name it.
    pub(crate) host: &'a str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Scopes that the call requires: `repository:library/alpine:pull`.
    pub(crate) scopes: Vec<String>,
    pub(crate) accept: &'static [&'static str],
    pub(crate) body: Body,
}

/// Options of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestOptions<'a> {
    /// Maximum number of tries, after 429, 502, 503, 504 or a failed connection.
    pub(crate) tries: u32,
    /// ETag of the caller's manifest. Status 304 then counts as a success.
    pub(crate) etag: Option<&'a str>,
    /// Offset of the first byte, and number of bytes.
    pub(crate) range: Option<(u64, u64)>,
    /// Source of the URL of the call.
    pub(crate) url_source: UrlSource,
}

impl Default for RequestOptions<'_> {
    fn default() -> Self {
        Self {
            tries: MAX_TRIES,
            etag: None,
            range: None,
            url_source: UrlSource::Caller,
        }
    }
}

/// `Authorization` header, and the advice for the user if access is still denied.
#[derive(Debug, Clone)]
struct Grant {
    header: Option<Secret>,
    help: String,
}

/// Failure to receive a response.
enum SendError {
    Failed(reqwest::Error),
    /// The transport refused a redirect.
    Refused(Box<dyn std::error::Error + Send + Sync>),
    Stalled(upload_progress::Stalled),
    Setup(RegistryError),
}

impl From<RegistryError> for SendError {
    fn from(error: RegistryError) -> Self {
        Self::Setup(error)
    }
}

/// Sender of calls to registries.
#[derive(Debug)]
pub(crate) struct Transport {
    credentials: Credentials,
    settings: Settings,
    routes: Routes,
    /// Grants by registry and scopes. A 401 shows that a token is expired; the transport then
    /// replaces it.
    grants: Mutex<HashMap<(String, String), Grant>>,
}

impl Transport {
    pub(crate) fn new(credentials: Credentials, settings: Settings) -> Result<Self, RegistryError> {
        Ok(Self {
            routes: Routes::new(settings.addresses)?,
            credentials,
            settings,
            grants: Mutex::default(),
        })
    }

    /// Returns the URL of `path` in the API of the registry of `reference`. `path` is relative to
    /// the repository: `manifests/latest`.
    pub(crate) fn url(&self, reference: &ImageRef, path: &str) -> Result<Url, RegistryError> {
        let text = format!(
            "{}v2/{}/{path}",
            self.base_url(reference.registry()),
            reference.repository()
        );
        Url::parse(&text).map_err(|error| RegistryError::Invalid {
            attempt: format!("address {reference}"),
            reason: error.to_string(),
        })
    }

    pub(crate) fn base_url(&self, host: &str) -> String {
        if host == DOCKER_HUB {
            return "https://registry-1.docker.io/".into();
        }
        let scheme = if self.uses_plain_http(host) {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{host}/")
    }

    /// Returns `true` if the client contacts the registry without TLS.
    fn uses_plain_http(&self, host: &str) -> bool {
        net::is_loopback(host_name(host))
            || self
                .settings
                .insecure
                .iter()
                .any(|name| canonical_host(name) == host)
    }

    /// Sends a GET request without a login, and returns any response. Follows no redirect.
    pub(crate) async fn get_anonymously(
        &self,
        url: &Url,
        host: &str,
        attempt: &str,
    ) -> Result<Response, RegistryError> {
        let failed = |source| RegistryError::Unreachable {
            attempt: attempt.to_owned(),
            host: host.to_owned(),
            source,
        };
        net::check_literal(self.settings.addresses, url).map_err(|error| failed(error.into()))?;
        let answer = self.routes.named.direct.get(url.clone()).send().await;
        answer.map_err(|error| failed(error.without_url().into()))
    }

    /// Sends `call` and returns a successful response with an unread body.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Response, RegistryError> {
        self.send_with(call, RequestOptions::default()).await
    }

    /// Sends `call` with `options`.
    pub(crate) async fn send_with(
        &self,
        mut call: Call<'_>,
        options: RequestOptions<'_>,
    ) -> Result<Response, RegistryError> {
        let clients = self.clients(call.host, &call.url, options.url_source)?;
        net::check_literal(clients.policy, &call.url)
            .map_err(|error| unreachable_error(&call, error))?;
        let key = (call.host.to_owned(), call.scopes.join(" "));
        let mut grant = self
            .grants
            .lock()
            .expect("no holder of the lock panics")
            .get(&key)
            .cloned();
        let mut authorized = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let once = matches!(call.body, Body::Stream(..));
            let last = once || tries >= options.tries;
            let response = match self.dispatch(&mut call, grant.as_ref(), options).await {
                Ok(response) => response,
                Err(SendError::Refused(source)) => {
                    return Err(RegistryError::Unreachable {
                        attempt: call.attempt,
                        host: call.host.into(),
                        source,
                    });
                }
                Err(SendError::Stalled(stalled)) => return Err(unreachable_error(&call, stalled)),
                Err(SendError::Setup(error)) => return Err(error),
                Err(SendError::Failed(error))
                    if error.is_connect()
                        && !last
                        && !error.is_builder()
                        && !is_forbidden(&error) =>
                {
                    wait_before_retry(tries, None).await;
                    continue;
                }
                Err(SendError::Failed(error)) => {
                    return Err(unreachable_error(&call, error.without_url()));
                }
            };
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                StatusCode::NOT_MODIFIED if options.etag.is_some() => return Ok(response),
                StatusCode::UNAUTHORIZED
                    if !authorized && !once && self.is_registry_url(call.host, response.url()) =>
                {
                    authorized = true;
                    tries -= 1;
                    let url_source = UrlSource::Server(response.remote_addr());
                    let fresh = self
                        .authorize(&call, response.headers(), url_source)
                        .await?;
                    self.grants
                        .lock()
                        .expect("no holder of the lock panics")
                        .insert(key.clone(), fresh.clone());
                    grant = Some(fresh);
                }
                StatusCode::TOO_MANY_REQUESTS => {
                    let retry_after = retry_after(response.headers());
                    if last || retry_after.is_some_and(|wait| wait > MAX_WAIT) {
                        return Err(RegistryError::RateLimited {
                            attempt: call.attempt,
                            host: call.host.into(),
                            retry_after,
                        });
                    }
                    tracing::debug!(
                        host = call.host,
                        ?retry_after,
                        "waiting as the registry limits requests"
                    );
                    wait_before_retry(tries, retry_after).await;
                }
                StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
                    if !last =>
                {
                    wait_before_retry(
                        tries,
                        retry_after(response.headers()).filter(|wait| *wait <= MAX_WAIT),
                    )
                    .await;
                }
                _ => return Err(error_from_response(call, response, grant).await),
            }
        }
    }

    /// Sends one request and follows its redirects.
    async fn dispatch(
        &self,
        call: &mut Call<'_>,
        grant: Option<&Grant>,
        options: RequestOptions<'_>,
    ) -> Result<Response, SendError> {
        let mut url = call.url.clone();
        let mut url_source = options.url_source;
        let mut hops = 0;
        loop {
            let clients = self.clients(call.host, &url, url_source)?;
            let mut request = self.request(clients, call, &url, grant);
            if let Some(etag) = options.etag {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            if let Some((first, length)) = options.range {
                let last = first.saturating_add(length.saturating_sub(1));
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
            let sent = match &call.body {
                Body::Stream(_, _, progress) => progress
                    .await_response(request.send())
                    .await
                    .map_err(SendError::Stalled)?,
                Body::None | Body::Bytes(..) => request.send().await,
            };
            let response = sent.map_err(SendError::Failed)?;
            // The transport follows redirects only for requests that cannot change anything.
            if !matches!(call.method, Method::GET | Method::HEAD) {
                return Ok(response);
            }
            let Some(next) = redirect_target(&response) else {
                return Ok(response);
            };
            hops += 1;
            url_source = UrlSource::Server(response.remote_addr());
            let policy = self.clients(call.host, &next, url_source)?.policy;
            net::check_hop(policy, hops, &url, &next)
                .map_err(|reason| SendError::Refused(reason.into()))?;
            url = next;
        }
    }

    /// Returns the clients that may connect to `url`.
    fn clients(
        &self,
        host: &str,
        url: &Url,
        url_source: UrlSource,
    ) -> Result<&Clients, RegistryError> {
        match self.is_registry_url(host, url) {
            true => Ok(&self.routes.named),
            false => self.routes.clients_for(url_source),
        }
    }

    /// Returns `true` if `url` has the scheme, host and port of the registry `host`.
    fn is_registry_url(&self, host: &str, url: &Url) -> bool {
        Url::parse(&self.base_url(host)).is_ok_and(|base_url| base_url.origin() == url.origin())
    }

    fn request(
        &self,
        clients: &Clients,
        call: &mut Call<'_>,
        url: &Url,
        grant: Option<&Grant>,
    ) -> RequestBuilder {
        let client = match &call.body {
            Body::Stream(..) => &clients.uploading,
            Body::None | Body::Bytes(..) => &clients.direct,
        };
        let mut request = client.request(call.method.clone(), url.clone());
        // Some registries read only the first header line.
        if !call.accept.is_empty() {
            request = request.header(header::ACCEPT, call.accept.join(", "));
        }
        request = match &mut call.body {
            Body::None => request,
            Body::Bytes(media_type, bytes) => request
                .header(header::CONTENT_TYPE, *media_type)
                .body(bytes.clone()),
            Body::Stream(size, body, _) => request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, *size)
                .body(std::mem::take(body)),
        };
        // A registry may redirect to another host. That host does not receive the credential.
        match grant.and_then(|grant| grant.header.as_ref()) {
            Some(value) if self.is_registry_url(call.host, url) => {
                request.header(header::AUTHORIZATION, sensitive_header(value))
            }
            _ => request,
        }
    }
}

/// Reads a body of at most `limit` bytes within [`MEMORY_TIME`].
pub(crate) async fn read_limited(
    response: Response,
    limit: u64,
    attempt: &str,
    host: &str,
) -> Result<Bytes, RegistryError> {
    let reading = read_all(response, limit, attempt, host);
    match tokio::time::timeout(MEMORY_TIME, reading).await {
        Ok(body) => body,
        Err(_) => Err(timeout_error(attempt, host)),
    }
}

/// Returns the error for a body that does not arrive within [`MEMORY_TIME`].
pub(crate) fn timeout_error(attempt: &str, host: &str) -> RegistryError {
    let reason = format!("the body did not arrive within {} s", MEMORY_TIME.as_secs());
    RegistryError::Unreachable {
        attempt: attempt.into(),
        host: host.into(),
        source: reason.into(),
    }
}

async fn read_all(
    mut response: Response,
    limit: u64,
    attempt: &str,
    host: &str,
) -> Result<Bytes, RegistryError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if (body.len() + chunk.len()) as u64 > limit => {
                return Err(RegistryError::TooLarge {
                    attempt: attempt.into(),
                    limit,
                });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.into()),
            Err(error) => {
                return Err(RegistryError::Unreachable {
                    attempt: attempt.into(),
                    host: host.into(),
                    source: Box::new(error.without_url()),
                });
            }
        }
    }
}

fn unreachable_error(
    call: &Call<'_>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    RegistryError::Unreachable {
        attempt: call.attempt.clone(),
        host: call.host.into(),
        source: Box::new(error),
    }
}

/// Returns `true` if the guard refused the address. A retry does not change this.
fn is_forbidden(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<net::ForbiddenAddress>() {
            return true;
        }
        source = error.source();
    }
    false
}

async fn error_from_response(
    call: Call<'_>,
    response: Response,
    grant: Option<Grant>,
) -> RegistryError {
    let status = response.status();
    let (attempt, host) = (call.attempt, call.host.to_owned());
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { attempt, host },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
            attempt,
            help: grant.map_or_else(|| help_missing(&host), |grant| grant.help),
            host,
            message: read_error_message(response).await,
        },
        _ => RegistryError::Refused {
            attempt,
            host,
            status: status.as_u16(),
            message: read_error_message(response).await,
        },
    }
}

/// Returns the wait that a response requests: seconds, or a date relative to the response's `Date`.
///
/// Source: RFC 9110, section 10.2.3.
#[allow(
    clippy::disallowed_methods,
    reason = "the boundary to the pure code that takes the time"
)]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = headers
        .get(header::DATE)
        .and_then(|date| date.to_str().ok());
    let now = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    let now = now.unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Waits before a retry: the requested time, but at least the back-off.
async fn wait_before_retry(tries: u32, requested: Option<Duration>) {
    let back_off = BACK_OFF * 2u32.pow(tries.saturating_sub(1).min(8));
    tokio::time::sleep(requested.unwrap_or_default().max(back_off)).await;
}

fn basic_header(username: &str, password: &Secret) -> Secret {
    Secret::new(format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{}", password.expose()))
    ))
}

fn sensitive_header(value: &Secret) -> HeaderValue {
    let mut header =
        HeaderValue::from_str(value.expose()).unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_parses_seconds_and_dates() {
        let requested = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            retry_after(&headers.collect())
        };
        let date = ("date", "Sun, 29 Nov 2026 20:00:00 GMT");
        for (value, expected) in [
            ("30", Some(30)),
            (" 0 ", Some(0)),
            ("Sun, 29 Nov 2026 20:00:30 GMT", Some(30)),
            ("Sunday, 29-Nov-26 20:00:30 GMT", Some(30)),
            ("Sun, 29 Nov 2026 19:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let found = requested(&[date, ("retry-after", value)]);
            assert_eq!(found, expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(requested(&[date]), None);
        let far = requested(&[("retry-after", "Fri, 01 Jan 2100 00:00:00 GMT")]);
        assert!(far > Some(MAX_WAIT), "uses the local clock: {far:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn wait_before_retry_lasts_at_least_the_back_off() {
        let begun = tokio::time::Instant::now();
        wait_before_retry(3, Some(Duration::ZERO)).await;
        assert_eq!(begun.elapsed(), BACK_OFF * 4);
        let begun = tokio::time::Instant::now();
        wait_before_retry(1, Some(Duration::from_secs(2))).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn read_limited_fails_on_a_slow_body() {
        let slow = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        let response = http::Response::new(reqwest::Body::wrap_stream(slow));
        let begun = tokio::time::Instant::now();
        let error = read_limited(response.into(), 1 << 20, "read", "r.example").await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, RegistryError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(begun.elapsed() <= MEMORY_TIME + Duration::from_secs(1));
    }
}
