//! Responses to challenges: the registry's password, or a token of a token server.
//!
//! Invariant: the value of a token does not exceed the value of the login that the user gave for
//! the registry.

use acrtask_model::Secret;
use reqwest::{
    StatusCode,
    header::{self, HeaderMap, HeaderValue},
};
use url::Url;

use super::{
    Call, Grant, MAX_TOKEN, MAX_TRIES, MAX_WAIT, Transport, UrlSource, basic_header,
    hosts::{authority, help_foreign, help_missing, help_refused, read_error_message},
    read_limited, retry_after,
    routes::Clients,
    sensitive_header, unreachable_error, wait_before_retry,
};
use crate::{
    challenge::{Challenge, RealmTrust, realm_trust},
    credentials::Credential,
    error::RegistryError,
    net,
};

impl Transport {
    /// Obtains a grant for the challenge in `headers`.
    pub(super) async fn authorize(
        &self,
        call: &Call<'_>,
        headers: &HeaderMap,
        url_source: UrlSource,
    ) -> Result<Grant, RegistryError> {
        let challenge = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let own = || self.find_credential(call, call.host);
        match challenge {
            None => Err(RegistryError::Invalid {
                attempt: call.attempt.clone(),
                reason: format!(
                    "{} requires an unsupported kind of authorization",
                    call.host
                ),
            }),
            Some(Challenge::Basic) => Ok(match own().await? {
                Some(Credential::Password { username, password }) => Grant {
                    header: Some(basic_header(&username, &password)),
                    help: help_refused(call.host),
                },
                Some(Credential::IdentityToken(_)) => Grant {
                    header: None,
                    help: format!(
                        "{} requires a password, but the Docker configuration has a token: give `--credential {}=USER:@FILE`",
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
                            "{} names a token server that is not a URL",
                            call.host
                        ))
                    })?;
                let clients = match realm.host_str() == call.url.host_str() {
                    true => &self.routes.named,
                    false => self.routes.clients_for(url_source)?,
                };
                net::check_literal(clients.policy, &realm)
                    .map_err(|error| unreachable_error(call, error))?;
                let realm_host = authority(&realm);
                let (credential, help) = match realm_trust(&call.url, &realm) {
                    RealmTrust::Registry => match own().await? {
                        None => (None, help_missing(call.host)),
                        credential => (credential, help_refused(call.host)),
                    },
                    // The registry receives the token. The token must not be worth more than the
                    // login for the registry.
                    RealmTrust::SameLoginOnly => {
                        let own = own().await?;
                        let theirs = self.find_credential(call, &realm_host).await?;
                        match own.filter(|own| theirs.is_some_and(|theirs| own.is_same(&theirs))) {
                            None => (None, help_foreign(call.host, &realm_host)),
                            credential => (credential, help_refused(&realm_host)),
                        }
                    }
                    RealmTrust::Untrusted => (
                        None,
                        format!(
                            "the token server of {}, {realm_host}, has no TLS, so acrtask sends it no password",
                            call.host
                        ),
                    ),
                };
                let mut scopes = call.scopes.clone();
                scopes.extend(scope.filter(|scope| !call.scopes.contains(scope)));
                let token = self
                    .request_token(clients, call, (realm, service, scopes), credential, &help)
                    .await?;
                Ok(Grant {
                    header: Some(Secret::new(format!("Bearer {}", token.expose()))),
                    help,
                })
            }
        }
    }

    async fn find_credential(
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

    /// Requests a token from a token server. Follows no redirect, because the request may contain a
    /// password.
    async fn request_token(
        &self,
        clients: &Clients,
        call: &Call<'_>,
        (realm, service, scopes): (Url, Option<String>, Vec<String>),
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
                    clients.direct.post(realm.clone()).form(&form)
                }
                other => {
                    let mut query: Vec<(String, String)> = service.clone().into_iter().collect();
                    query.extend(
                        scopes
                            .iter()
                            .map(|scope| ("scope".to_owned(), scope.clone())),
                    );
                    let request = clients.direct.get(realm.clone()).query(&query);
                    match other {
                        Some(Credential::Password { username, password }) => request.header(
                            header::AUTHORIZATION,
                            sensitive_header(&basic_header(username, password)),
                        ),
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
            wait_before_retry(tries, retry_after).await;
        };
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(RegistryError::Denied {
                    attempt: call.attempt.clone(),
                    host: realm_host,
                    message: read_error_message(response).await,
                    help: help.to_owned(),
                });
            }
            status => {
                return Err(RegistryError::Refused {
                    attempt: call.attempt.clone(),
                    host: realm_host,
                    status: status.as_u16(),
                    message: read_error_message(response).await,
                });
            }
        }
        #[derive(serde::Deserialize)]
        struct TokenResponse {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = read_limited(response, MAX_TOKEN, &call.attempt, &realm_host).await?;
        serde_json::from_slice::<TokenResponse>(&body)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| HeaderValue::from_str(token).is_ok())
            .map(Secret::new)
            .ok_or_else(|| RegistryError::Invalid {
                attempt: call.attempt.clone(),
                reason: format!("the token server {realm_host} responded without a token"),
            })
    }
}
