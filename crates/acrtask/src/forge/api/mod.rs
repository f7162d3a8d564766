//! The APIs of GitHub, GitLab, Gitea, Forgejo, Bitbucket Cloud and Azure DevOps, as far as webhooks need them.
//!
//! All but Azure DevOps have one webhook for all events; what that has instead is in [`azure`].
//!
//! Invariants: the token goes to the forge's API alone, over TLS unless that is on this machine, and never along a
//! redirect. A webhook with our address that is there already is changed, so that asking twice makes no second one.

mod azure;
mod refusal;

use std::{path::Path, time::Duration};

use acrtask_model::Secret;
use acrtask_trigger::Provider;
use reqwest::{Method, RequestBuilder, redirect};
use serde_json::{Value, json};
use url::Url;

use super::{Repository, Wanted};
use crate::{
    client::{authorities, is_loopback},
    error::CliError,
};

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Webhooks of a repository that are looked at: forges allow far fewer.
const PAGES: u32 = 10;
const PAGE: u32 = 50;

/// The API of one forge, for one repository.
#[derive(Debug)]
pub(crate) struct Forge {
    http: reqwest::Client,
    api: Url,
    token: Secret,
    provider: Provider,
    /// The repository's, which may be another than the API's.
    host: String,
    path: String,
}

/// A webhook at the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entered {
    /// Its number or name there.
    pub(crate) id: String,
    /// What was done with it.
    pub(crate) did: Did,
}

/// What was done with a webhook at the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Did {
    /// It is new.
    Entered,
    /// It was there before.
    Changed,
    /// It was there before, and nothing had to be changed.
    Left,
}

impl Forge {
    /// The API of the repository's forge, at `api` or where it usually is.
    ///
    /// # Errors
    /// The forge has none that is known here, or would get the token in clear.
    pub(crate) fn new(
        repository: &Repository,
        token: Secret,
        api: Option<&Url>,
        ca: Option<&Path>,
    ) -> Result<Self, CliError> {
        let provider = repository.provider;
        let usual = usual_api(repository).ok_or_else(|| {
            CliError::usage(format!(
                "webhooks are not entered through the API of {provider}"
            ))
            .help("leave --token-file out: what to enter where is printed then")
        })?;
        let api = api.cloned().unwrap_or(usual);
        let local = is_loopback(&api);
        if api.scheme() != "https" && !local {
            return Err(
                CliError::usage(format!("{api} would get the token in clear"))
                    .help("name the API with https://"),
            );
        }
        acrtask_registry::install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
            .timeout(LIMIT)
            .redirect(redirect::Policy::none());
        if local {
            builder = builder.no_proxy();
        }
        if let Some(path) = ca {
            builder = builder.tls_certs_only(authorities(path)?);
        }
        let http = builder
            .build()
            .map_err(|error| CliError::unreachable("cannot set up HTTP").because(&error))?;
        Ok(Self {
            http,
            api,
            token,
            provider,
            host: repository.web.host_str().unwrap_or_default().to_owned(),
            path: repository.path.clone(),
        })
    }

    /// Whether the forge sends a delivery that starts nothing when it is asked to.
    pub(crate) fn has_ping(&self) -> bool {
        self.provider == Provider::GitHub
    }

    /// Whether the token sees the repository's webhooks.
    ///
    /// # Errors
    /// It does not, or the forge cannot be reached.
    pub(crate) async fn check(&self) -> Result<(), CliError> {
        if self.provider == Provider::AzureDevops {
            return azure::check(self).await;
        }
        self.ask(self.http.get(self.at(&[]))).await.map(drop)
    }

    /// Enters `url`. Without a secret only what is there already can be changed.
    ///
    /// # Errors
    /// The forge says no, cannot be reached, or has none and there is no secret for it.
    pub(crate) async fn enter(
        &self,
        url: &str,
        secret: Option<&Secret>,
        wanted: Wanted,
    ) -> Result<Entered, CliError> {
        if self.provider == Provider::AzureDevops {
            return azure::enter(self, url, secret, wanted).await;
        }
        let body = self.body(url, secret, wanted);
        if let Some(id) = self.find(url).await? {
            let method = match self.provider {
                Provider::GitLab | Provider::BitbucketCloud => Method::PUT,
                _ => Method::PATCH,
            };
            let at = self.at(&[&id]);
            self.ask(self.http.request(method, at).json(&body)).await?;
            let did = Did::Changed;
            return Ok(Entered { id, did });
        }
        if secret.is_none() {
            return Err(refusal::secret_unknown("the webhook"));
        }
        let made = self.ask(self.http.post(self.at(&[])).json(&body)).await?;
        let id = self.id(&made).ok_or_else(|| {
            CliError::unreachable(format!("{} does not say which webhook it made", self.api))
                .help("look at the address of --api")
        })?;
        let did = Did::Entered;
        Ok(Entered { id, did })
    }

    /// Asks the forge to send a ping.
    pub(crate) async fn ping(&self, id: &str) -> Result<(), CliError> {
        let at = self.at(&[id, "pings"]);
        self.ask(self.http.post(at)).await.map(drop)
    }

    /// The pings that the forge has sent, by its numbers of them, and the status that each was answered with. Where the
    /// forge does not tell, none.
    pub(crate) async fn pings(&self, id: &str) -> Vec<(u64, u16)> {
        let at = self.at(&[id, "deliveries"]);
        let Ok(found) = self.ask(self.http.get(at)).await else {
            return Vec::new();
        };
        let sent = found.as_array().cloned().unwrap_or_default().into_iter();
        sent.filter(|one| one["event"] == "ping")
            .filter_map(|one| {
                let status = u16::try_from(one["status_code"].as_u64()?).ok()?;
                Some((one["id"].as_u64()?, status))
            })
            .collect()
    }

    async fn find(&self, url: &str) -> Result<Option<String>, CliError> {
        for page in 1..=PAGES {
            let mut at = self.at(&[]);
            at.query_pairs_mut()
                .append_pair("page", &page.to_string())
                .append_pair("per_page", &PAGE.to_string())
                .append_pair("pagelen", &PAGE.to_string())
                .append_pair("limit", &PAGE.to_string());
            let found = self.ask(self.http.get(at)).await?;
            let found = match self.provider {
                Provider::BitbucketCloud => &found["values"],
                _ => &found,
            };
            let found = found.as_array().cloned().unwrap_or_default();
            let ours = found.iter().find(|hook| {
                let there = match self.provider {
                    Provider::GitLab | Provider::BitbucketCloud => &hook["url"],
                    _ => &hook["config"]["url"],
                };
                there.as_str() == Some(url)
            });
            if let Some(id) = ours.and_then(|hook| self.id(hook)) {
                return Ok(Some(id));
            }
            if found.len() < PAGE as usize {
                break;
            }
        }
        Ok(None)
    }

    /// How the forge names a webhook.
    fn id(&self, hook: &Value) -> Option<String> {
        match self.provider {
            Provider::BitbucketCloud => hook["uuid"].as_str().map(str::to_owned),
            _ => hook["id"].as_u64().map(|id| id.to_string()),
        }
    }

    fn body(&self, url: &str, secret: Option<&Secret>, wanted: Wanted) -> Value {
        let secret = secret.map(|secret| secret.expose());
        let mut body = match self.provider {
            Provider::GitLab => json!({
                "url": url, "push_events": true, "tag_push_events": wanted.tags,
                "merge_requests_events": wanted.pull_requests, "enable_ssl_verification": true
            }),
            Provider::GitHub => {
                let mut events = vec!["push"];
                events.extend(wanted.pull_requests.then_some("pull_request"));
                json!({ "name": "web", "active": true, "events": events })
            }
            // Tags are pushes there.
            Provider::BitbucketCloud => {
                let mut events = vec!["repo:push"];
                if wanted.pull_requests {
                    events.extend(["pullrequest:created", "pullrequest:updated"]);
                    events.extend(["pullrequest:fulfilled", "pullrequest:rejected"]);
                }
                json!({ "description": "acrtask", "url": url, "active": true, "events": events })
            }
            _ => {
                let mut events = vec!["push"];
                if wanted.pull_requests {
                    events.extend(["pull_request", "pull_request_sync"]);
                }
                json!({ "type": self.provider.name(), "active": true, "events": events })
            }
        };
        match (self.provider, secret) {
            (_, None) => {}
            (Provider::GitLab, Some(secret)) => body["token"] = secret.into(),
            // Without it there, the one that it has stays.
            (Provider::BitbucketCloud, Some(secret)) => body["secret"] = secret.into(),
            (Provider::GitHub, Some(secret)) => {
                body["config"] = json!({ "url": url, "content_type": "json", "secret": secret, "insecure_ssl": "0" });
            }
            (_, Some(secret)) => {
                body["config"] = json!({ "url": url, "content_type": "json", "secret": secret });
            }
        }
        body
    }

    /// The address of the repository's webhooks, or of something below.
    fn at(&self, below: &[&str]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            match self.provider {
                // One segment: the slashes in it are escaped.
                Provider::GitLab => path.extend(["projects", self.path.as_str()]),
                Provider::BitbucketCloud => path.push("repositories").extend(self.path.split('/')),
                _ => path.push("repos").extend(self.path.split('/')),
            };
            path.push("hooks").extend(below);
        }
        url
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let token = self.token.expose();
        let request = match self.provider {
            Provider::GitLab => request.header("PRIVATE-TOKEN", token),
            Provider::GitHub => request
                .bearer_auth(token)
                .header("Accept", "application/vnd.github+json")
                .header("X-GitHub-Api-Version", "2022-11-28"),
            // Those of people belong to a name, those of a repository or a workspace stand alone.
            Provider::BitbucketCloud => match token.split_once(':') {
                Some((name, token)) => request.basic_auth(name, Some(token)),
                None => request.bearer_auth(token),
            },
            // Those of Entra are JSON Web Tokens.
            Provider::AzureDevops if token.starts_with("eyJ") => request.bearer_auth(token),
            Provider::AzureDevops => request.basic_auth("", Some(token)),
            _ => request.header("Authorization", format!("token {token}")),
        };
        let lost = |error: reqwest::Error| {
            CliError::unreachable(format!("the API at {} cannot be reached", self.api))
                .because(&error.without_url())
                .help("name its address with --api, or leave --token-file out")
        };
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let text = answer.text().await.map_err(lost)?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() && !refusal::is_login_page(self.provider, status) {
            return Ok(value);
        }
        let what = format!("the webhooks of {}", self.path);
        Err(refusal::of(self.provider, &self.api, &what, status, &value))
    }
}

/// Where a forge's API usually is.
fn usual_api(repository: &Repository) -> Option<Url> {
    let path = match repository.provider {
        Provider::GitHub if repository.web.host_str() == Some("github.com") => {
            return Url::parse("https://api.github.com").ok();
        }
        Provider::GitHub => "api/v3",
        Provider::GitLab => "api/v4",
        Provider::Gitea | Provider::Forgejo => "api/v1",
        Provider::BitbucketCloud => return Url::parse("https://api.bitbucket.org/2.0").ok(),
        Provider::AzureDevops => return azure::usual_api(repository),
        Provider::BitbucketServer | Provider::Generic => return None,
    };
    Url::parse(&repository.page(path)).ok()
}
