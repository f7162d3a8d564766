//! One call to a registry: scheme, authorization, waiting, and what an answer means.

mod pace;
mod route;
mod token;
mod words;

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

pub(crate) use self::{pace::Pace, route::NamedBy};
use self::{
    route::{Clients, Routes, redirection},
    words::{help_missing, host_name, message},
};
use crate::{
    client::Settings,
    credentials::{Credentials, canonical_host},
    error::RegistryError,
    net,
};

/// How often one call is tried in all, after 429, 502, 503, 504 or no connection.
const MAX_TRIES: u32 = 4;
/// First wait between two tries; doubled each time. A longer `Retry-After` takes its place.
const BACK_OFF: Duration = Duration::from_millis(250);
/// Longest `Retry-After` that is waited for; a longer one becomes an error.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How much of a token server's answer is read, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Longest time in which a body that is kept in memory arrives.
pub(crate) const MEMORY_TIME: Duration = Duration::from_secs(120);

/// What is sent with a call.
pub(crate) enum Body {
    None,
    Bytes(&'static str, Bytes),
    /// Can be sent only once: such a call is not repeated.
    Stream(u64, reqwest::Body, Pace),
}

/// A call.
pub(crate) struct Call<'a> {
    /// What is attempted on what, for errors: `resolve docker.io/library/alpine:3`.
    pub(crate) attempt: String,
    /// The registry, as references name it.
    pub(crate) host: &'a str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// What has to be allowed: `repository:library/alpine:pull`.
    pub(crate) scopes: Vec<String>,
    pub(crate) accept: &'static [&'static str],
    pub(crate) body: Body,
}

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How<'a> {
    /// Tries in all, after 429, 502, 503, 504 or no connection.
    pub(crate) tries: u32,
    /// What the caller has already: where that is what there is, the answer is 304, which is a success then.
    pub(crate) etag: Option<&'a str>,
    /// The first byte to send, and how many.
    pub(crate) range: Option<(u64, u64)>,
    /// Who named the URL of the call.
    pub(crate) named_by: NamedBy,
}

impl Default for How<'_> {
    fn default() -> Self {
        Self {
            tries: MAX_TRIES,
            etag: None,
            range: None,
            named_by: NamedBy::Caller,
        }
    }
}

/// An `Authorization` header, and what to advise when it is not enough.
#[derive(Debug, Clone)]
struct Grant {
    header: Option<Secret>,
    help: String,
}

/// Why a request has no response.
enum SendError {
    Failed(reqwest::Error),
    /// A redirect, or what stands in its way.
    Refused(Box<dyn std::error::Error + Send + Sync>),
    Stalled(pace::Stalled),
    Setup(RegistryError),
}

impl From<RegistryError> for SendError {
    fn from(error: RegistryError) -> Self {
        Self::Setup(error)
    }
}

/// Sends calls.
#[derive(Debug)]
pub(crate) struct Transport {
    credentials: Credentials,
    settings: Settings,
    routes: Routes,
    /// By registry and scopes. An expired token is found out by a 401, and replaced.
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

    /// The address of `path` in the API of the registry that `reference` is in. `path` begins behind
    /// the repository: `manifests/latest`.
    pub(crate) fn url(&self, reference: &ImageRef, path: &str) -> Result<Url, RegistryError> {
        let text = format!(
            "{}v2/{}/{path}",
            self.base(reference.registry()),
            reference.repository()
        );
        Url::parse(&text).map_err(|error| RegistryError::Invalid {
            attempt: format!("address {reference}"),
            reason: error.to_string(),
        })
    }

    pub(crate) fn base(&self, host: &str) -> String {
        if host == DOCKER_HUB {
            return "https://registry-1.docker.io/".into();
        }
        let scheme = if self.is_plain(host) { "http" } else { "https" };
        format!("{scheme}://{host}/")
    }

    /// Whether a registry is spoken to without TLS.
    fn is_plain(&self, host: &str) -> bool {
        net::is_loopback(host_name(host))
            || self
                .settings
                .insecure
                .iter()
                .any(|name| canonical_host(name) == host)
    }

    /// One question without a login, whose answer may be anything. No redirect is followed.
    pub(crate) async fn ask_plainly(
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

    /// Sends `call` and gives back a successful response, its body unread.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Response, RegistryError> {
        self.send_so(call, How::default()).await
    }

    /// The same, in this way.
    pub(crate) async fn send_so(
        &self,
        mut call: Call<'_>,
        how: How<'_>,
    ) -> Result<Response, RegistryError> {
        let clients = self.clients(call.host, &call.url, how.named_by)?;
        net::check_literal(clients.policy, &call.url).map_err(|error| unreachable(&call, error))?;
        let key = (call.host.to_owned(), call.scopes.join(" "));
        let mut grant = self
            .grants
            .lock()
            .expect("no panic while it is held")
            .get(&key)
            .cloned();
        let mut asked = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let once = matches!(call.body, Body::Stream(..));
            let last = once || tries >= how.tries;
            let response = match self.dispatch(&mut call, grant.as_ref(), how).await {
                Ok(response) => response,
                Err(SendError::Refused(source)) => {
                    return Err(RegistryError::Unreachable {
                        attempt: call.attempt,
                        host: call.host.into(),
                        source,
                    });
                }
                Err(SendError::Stalled(stalled)) => return Err(unreachable(&call, stalled)),
                Err(SendError::Setup(error)) => return Err(error),
                Err(SendError::Failed(error))
                    if error.is_connect()
                        && !last
                        && !error.is_builder()
                        && !is_forbidden(&error) =>
                {
                    wait(tries, None).await;
                    continue;
                }
                Err(SendError::Failed(error)) => {
                    return Err(unreachable(&call, error.without_url()));
                }
            };
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                StatusCode::NOT_MODIFIED if how.etag.is_some() => return Ok(response),
                StatusCode::UNAUTHORIZED
                    if !asked && !once && self.is_own(call.host, response.url()) =>
                {
                    asked = true;
                    tries -= 1;
                    let named_by = NamedBy::Server(response.remote_addr());
                    let fresh = self.authorize(&call, response.headers(), named_by).await?;
                    self.grants
                        .lock()
                        .expect("no panic while it is held")
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
                        "the registry limits the rate"
                    );
                    wait(tries, retry_after).await;
                }
                StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
                    if !last =>
                {
                    wait(
                        tries,
                        retry_after(response.headers()).filter(|wait| *wait <= MAX_WAIT),
                    )
                    .await;
                }
                _ => return Err(failure(call, response, grant).await),
            }
        }
    }

    /// Sends one request, and the further ones that its redirects lead to.
    async fn dispatch(
        &self,
        call: &mut Call<'_>,
        grant: Option<&Grant>,
        how: How<'_>,
    ) -> Result<Response, SendError> {
        let mut url = call.url.clone();
        let mut named_by = how.named_by;
        let mut hops = 0;
        loop {
            let clients = self.clients(call.host, &url, named_by)?;
            let mut request = self.request(clients, call, &url, grant);
            if let Some(etag) = how.etag {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            if let Some((first, length)) = how.range {
                let last = first.saturating_add(length.saturating_sub(1));
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
            let sent = match &call.body {
                Body::Stream(_, _, pace) => pace
                    .follow(request.send())
                    .await
                    .map_err(SendError::Stalled)?,
                Body::None | Body::Bytes(..) => request.send().await,
            };
            let response = sent.map_err(SendError::Failed)?;
            // Only requests that cannot change anything are sent on.
            if !matches!(call.method, Method::GET | Method::HEAD) {
                return Ok(response);
            }
            let Some(next) = redirection(&response) else {
                return Ok(response);
            };
            hops += 1;
            named_by = NamedBy::Server(response.remote_addr());
            let policy = self.clients(call.host, &next, named_by)?.policy;
            net::check_hop(policy, hops, &url, &next)
                .map_err(|reason| SendError::Refused(reason.into()))?;
            url = next;
        }
    }

    /// Returns the connections for `url`.
    fn clients(&self, host: &str, url: &Url, named_by: NamedBy) -> Result<&Clients, RegistryError> {
        match self.is_own(host, url) {
            true => Ok(&self.routes.named),
            false => self.routes.to(named_by),
        }
    }

    /// Returns `true` if `url` has the scheme, host and port of the registry `host`.
    fn is_own(&self, host: &str, url: &Url) -> bool {
        Url::parse(&self.base(host)).is_ok_and(|base| base.origin() == url.origin())
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
        // One line: some registries read only the first.
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
        // A registry may send a client to another host; that host does not get the credential.
        match grant.and_then(|grant| grant.header.as_ref()) {
            Some(value) if self.is_own(call.host, url) => {
                request.header(header::AUTHORIZATION, sensitive(value))
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
        Err(_) => Err(too_slow(attempt, host)),
    }
}

/// The error for a body that does not arrive within [`MEMORY_TIME`].
pub(crate) fn too_slow(attempt: &str, host: &str) -> RegistryError {
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

fn unreachable(
    call: &Call<'_>,
    error: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    RegistryError::Unreachable {
        attempt: call.attempt.clone(),
        host: call.host.into(),
        source: Box::new(error),
    }
}

/// Whether the guard refused the address, which another try does not change.
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

async fn failure(call: Call<'_>, response: Response, grant: Option<Grant>) -> RegistryError {
    let status = response.status();
    let (attempt, host) = (call.attempt, call.host.to_owned());
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { attempt, host },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
            attempt,
            help: grant.map_or_else(|| help_missing(&host), |grant| grant.help),
            host,
            message: message(response).await,
        },
        _ => RegistryError::Refused {
            attempt,
            host,
            status: status.as_u16(),
            message: message(response).await,
        },
    }
}

/// Returns the wait that an answer asks for: seconds, or a date, which is compared with the answer's own.
///
/// Source: RFC 9110, section 10.2.3.
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

/// Waits before another try: as long as the server asks for, and at least the back-off.
async fn wait(tries: u32, asked: Option<Duration>) {
    let back_off = BACK_OFF * 2u32.pow(tries.saturating_sub(1).min(8));
    tokio::time::sleep(asked.unwrap_or_default().max(back_off)).await;
}

fn basic(username: &str, password: &Secret) -> Secret {
    Secret::new(format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{}", password.expose()))
    ))
}

fn sensitive(value: &Secret) -> HeaderValue {
    let mut header =
        HeaderValue::from_str(value.expose()).unwrap_or_else(|_| HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let asked = |headers: &[(&'static str, &'static str)]| {
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
            let found = asked(&[date, ("retry-after", value)]);
            assert_eq!(found, expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(asked(&[date]), None);
        let far = asked(&[("retry-after", "Fri, 01 Jan 2100 00:00:00 GMT")]);
        assert!(
            far > Some(MAX_WAIT),
            "the clock of this machine counts: {far:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_at_least_the_back_off() {
        let begun = tokio::time::Instant::now();
        wait(3, Some(Duration::ZERO)).await;
        assert_eq!(begun.elapsed(), BACK_OFF * 4);
        let begun = tokio::time::Instant::now();
        wait(1, Some(Duration::from_secs(2))).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn body_in_memory_ends_in_time() {
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
