//! One call to a registry: scheme, authorization, waiting, and what an answer means.

mod pace;
mod words;

use std::{collections::HashMap, sync::Mutex, time::Duration};

use acrtask_model::{ImageRef, Secret, reference::DOCKER_HUB};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use url::Url;

pub(crate) use self::pace::Pace;
use self::words::{authority, help_foreign, help_missing, help_refused, host_name, message};
use crate::{
    challenge::{Challenge, RealmTrust, realm_trust},
    client::Settings,
    credentials::{Credential, Credentials, canonical_host},
    error::RegistryError,
    net,
};

/// How often one call is tried in all, after 429, 502, 503, 504 or no connection.
const MAX_TRIES: u32 = 4;
/// First wait between two tries; doubled each time. A `Retry-After` takes its place.
const BACK_OFF: Duration = Duration::from_millis(250);
/// Longest `Retry-After` that is waited for; a longer one becomes an error.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How much of a token server's answer is read, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

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
}

impl Default for How<'_> {
    fn default() -> Self {
        Self {
            tries: MAX_TRIES,
            etag: None,
        }
    }
}

/// An `Authorization` header, and what to advise when it is not enough.
#[derive(Debug, Clone)]
struct Grant {
    header: Option<Secret>,
    help: String,
}

/// Sends calls.
#[derive(Debug)]
pub(crate) struct Transport {
    credentials: Credentials,
    settings: Settings,
    following: reqwest::Client,
    direct: reqwest::Client,
    /// The same without a limit on the wait for an answer.
    uploading: reqwest::Client,
    /// By registry and scopes. An expired token is found out by a 401, and replaced.
    grants: Mutex<HashMap<(String, String), Grant>>,
}

impl Transport {
    pub(crate) fn new(credentials: Credentials, settings: Settings) -> Result<Self, RegistryError> {
        let client = |follow| net::client(settings.addresses, follow).map_err(RegistryError::Setup);
        Ok(Self {
            following: client(true)?,
            direct: client(false)?,
            uploading: net::uploading_client(settings.addresses).map_err(RegistryError::Setup)?,
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
        let answer = self.direct.get(url.clone()).send().await;
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
        net::check_literal(self.settings.addresses, &call.url)
            .map_err(|error| unreachable(&call, error))?;
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
            let mut request = self.request(&mut call, grant.as_ref());
            if let Some(etag) = how.etag {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            let sent = match &call.body {
                Body::Stream(_, _, pace) => match pace.follow(request.send()).await {
                    Ok(sent) => sent,
                    Err(stalled) => return Err(unreachable(&call, stalled)),
                },
                Body::None | Body::Bytes(..) => request.send().await,
            };
            let response = match sent {
                Ok(response) => response,
                Err(error)
                    if error.is_connect()
                        && !last
                        && !error.is_builder()
                        && !is_forbidden(&error) =>
                {
                    wait(tries, None).await;
                    continue;
                }
                Err(error) => return Err(unreachable(&call, error.without_url())),
            };
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                StatusCode::NOT_MODIFIED if how.etag.is_some() => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked && !once => {
                    asked = true;
                    tries -= 1;
                    let fresh = self.authorize(&call, response.headers()).await?;
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

    fn request(&self, call: &mut Call<'_>, grant: Option<&Grant>) -> RequestBuilder {
        // Only what has no body is sent on to where a redirect leads.
        let client = match (&call.method, &call.body) {
            (&Method::GET | &Method::HEAD, _) => &self.following,
            (_, Body::Stream(..)) => &self.uploading,
            _ => &self.direct,
        };
        let mut request = client.request(call.method.clone(), call.url.clone());
        for accept in call.accept {
            request = request.header(header::ACCEPT, *accept);
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
        // A registry may send an upload to another host; that host does not get the credential.
        let own =
            Url::parse(&self.base(call.host)).is_ok_and(|base| base.origin() == call.url.origin());
        match grant.and_then(|grant| grant.header.as_ref()) {
            Some(value) if own => request.header(header::AUTHORIZATION, sensitive(value)),
            _ => request,
        }
    }

    /// Answers the challenge in `headers`.
    async fn authorize(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
    ) -> Result<Grant, RegistryError> {
        let challenge = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let own = || self.credential(call, call.host);
        match challenge {
            None => Err(RegistryError::Invalid {
                attempt: call.attempt.clone(),
                reason: format!(
                    "{} asks for authorization of a kind that is not known",
                    call.host
                ),
            }),
            Some(Challenge::Basic) => Ok(match own().await? {
                Some(Credential::Password { username, password }) => Grant {
                    header: Some(basic(&username, &password)),
                    help: help_refused(call.host),
                },
                Some(Credential::IdentityToken(_)) => Grant {
                    header: None,
                    help: format!(
                        "{} takes a password, and the Docker configuration has a token: give `--credential {}=USER:@FILE`",
                        call.host, call.host
                    ),
                },
                None => Grant {
                    header: None,
                    help: help_missing(call.host),
                },
            }),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let invalid = |reason: String| RegistryError::Invalid {
                    attempt: call.attempt.clone(),
                    reason,
                };
                let realm = Url::parse(&realm)
                    .ok()
                    .filter(|url| matches!(url.scheme(), "http" | "https"))
                    .ok_or_else(|| {
                        invalid(format!(
                            "{} names a token server that is not an address",
                            call.host
                        ))
                    })?;
                net::check_literal(self.settings.addresses, &realm)
                    .map_err(|error| unreachable(call, error))?;
                let realm_host = authority(&realm);
                let (credential, help) = match realm_trust(&call.url, &realm) {
                    RealmTrust::Registry => match own().await? {
                        None => (None, help_missing(call.host)),
                        credential => (credential, help_refused(call.host)),
                    },
                    RealmTrust::OwnOnly => match self.credential(call, &realm_host).await? {
                        None => (None, help_foreign(call.host, &realm_host)),
                        credential => (credential, help_refused(&realm_host)),
                    },
                    RealmTrust::Nobody => (
                        None,
                        format!(
                            "the token server of {}, {realm_host}, has no TLS, so that it is not given a password",
                            call.host
                        ),
                    ),
                };
                let mut scopes = call.scopes.clone();
                scopes.extend(scope.filter(|scope| !call.scopes.contains(scope)));
                let token = self
                    .token(call, realm, service, scopes, credential, &help)
                    .await?;
                Ok(Grant {
                    header: Some(Secret::new(format!("Bearer {}", token.expose()))),
                    help,
                })
            }
        }
    }

    async fn credential(
        &self,
        call: &Call<'_>,
        host: &str,
    ) -> Result<Option<Credential>, RegistryError> {
        self.credentials
            .for_host(host)
            .await
            .map_err(|source| RegistryError::Credentials {
                attempt: call.attempt.clone(),
                source,
            })
    }

    /// Asks a token server. No redirect is followed: the request may carry a password.
    async fn token(
        &self,
        call: &Call<'_>,
        realm: Url,
        service: Option<String>,
        scopes: Vec<String>,
        credential: Option<Credential>,
        help: &str,
    ) -> Result<Secret, RegistryError> {
        let realm_host = authority(&realm);
        let service = service.map(|service| ("service".to_owned(), service));
        let mut tries = 0;
        let response = loop {
            tries += 1;
            let request = match &credential {
                Some(Credential::IdentityToken(token)) => {
                    let mut form: Vec<(String, String)> = vec![
                        ("grant_type".into(), "refresh_token".into()),
                        ("client_id".into(), "acrtask".into()),
                        ("scope".into(), scopes.join(" ")),
                        ("refresh_token".into(), token.expose().into()),
                    ];
                    form.extend(service.clone());
                    self.direct.post(realm.clone()).form(&form)
                }
                other => {
                    let mut query: Vec<(String, String)> = service.clone().into_iter().collect();
                    query.extend(
                        scopes
                            .iter()
                            .map(|scope| ("scope".to_owned(), scope.clone())),
                    );
                    let request = self.direct.get(realm.clone()).query(&query);
                    match other {
                        Some(Credential::Password { username, password }) => request
                            .header(header::AUTHORIZATION, sensitive(&basic(username, password))),
                        _ => request,
                    }
                }
            };
            let response = request
                .send()
                .await
                .map_err(|error| RegistryError::Unreachable {
                    attempt: call.attempt.clone(),
                    host: realm_host.clone(),
                    source: Box::new(error.without_url()),
                })?;
            let retry_after = retry_after(response.headers());
            if response.status() != StatusCode::TOO_MANY_REQUESTS {
                break response;
            }
            if tries >= MAX_TRIES || retry_after.is_some_and(|wait| wait > MAX_WAIT) {
                return Err(RegistryError::RateLimited {
                    attempt: call.attempt.clone(),
                    host: realm_host,
                    retry_after,
                });
            }
            wait(tries, retry_after).await;
        };
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(RegistryError::Denied {
                    attempt: call.attempt.clone(),
                    host: realm_host,
                    message: message(response).await,
                    help: help.to_owned(),
                });
            }
            status => {
                return Err(RegistryError::Refused {
                    attempt: call.attempt.clone(),
                    host: realm_host,
                    status: status.as_u16(),
                    message: message(response).await,
                });
            }
        }
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = read_limited(response, MAX_TOKEN, &call.attempt, &realm_host).await?;
        serde_json::from_slice::<Answer>(&body)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| HeaderValue::from_str(token).is_ok())
            .map(Secret::new)
            .ok_or_else(|| RegistryError::Invalid {
                attempt: call.attempt.clone(),
                reason: format!("the token server {realm_host} answered without a token"),
            })
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_limited(
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

/// The seconds of `Retry-After`. A date there counts as nothing: its clock is not ours.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

async fn wait(tries: u32, asked: Option<Duration>) {
    tokio::time::sleep(asked.unwrap_or(BACK_OFF * 2u32.pow(tries.saturating_sub(1).min(8)))).await;
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
