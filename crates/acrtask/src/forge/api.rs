//! The APIs of GitHub, GitLab, Gitea and Forgejo, as far as webhooks need them.
//!
//! Invariants: the token goes to the forge's API alone, over TLS unless that is on this machine, and never along a
//! redirect. A webhook with our address that is there already is changed, so that asking twice makes no second one.

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
    path: String,
}

/// A webhook at the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entered {
    /// Its number there.
    pub(crate) id: u64,
    /// It was there before.
    pub(crate) changed: bool,
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
        let body = self.body(url, secret, wanted);
        if let Some(id) = self.find(url).await? {
            let method = match self.provider {
                Provider::GitLab => Method::PUT,
                _ => Method::PATCH,
            };
            let at = self.at(&[&id.to_string()]);
            self.ask(self.http.request(method, at).json(&body)).await?;
            return Ok(Entered { id, changed: true });
        }
        if secret.is_none() {
            return Err(CliError::usage(
                "the forge does not have the webhook yet, and its secret is known to nobody any more",
            )
            .help("give it a new one: `--new-secret`"));
        }
        let made = self.ask(self.http.post(self.at(&[])).json(&body)).await?;
        let id = made["id"].as_u64().ok_or_else(|| {
            CliError::unreachable(format!("{} does not say which webhook it made", self.api))
                .help("look at the address of --api")
        })?;
        Ok(Entered { id, changed: false })
    }

    /// Asks the forge to send a ping.
    pub(crate) async fn ping(&self, id: u64) -> Result<(), CliError> {
        let at = self.at(&[&id.to_string(), "pings"]);
        self.ask(self.http.post(at)).await.map(drop)
    }

    /// The pings that the forge has sent, by its numbers of them, and the status that each was answered with. Where the
    /// forge does not tell, none.
    pub(crate) async fn pings(&self, id: u64) -> Vec<(u64, u16)> {
        let at = self.at(&[&id.to_string(), "deliveries"]);
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

    async fn find(&self, url: &str) -> Result<Option<u64>, CliError> {
        for page in 1..=PAGES {
            let mut at = self.at(&[]);
            at.query_pairs_mut()
                .append_pair("page", &page.to_string())
                .append_pair("per_page", &PAGE.to_string())
                .append_pair("limit", &PAGE.to_string());
            let found = self.ask(self.http.get(at)).await?;
            let found = found.as_array().cloned().unwrap_or_default();
            let ours = found.iter().find(|hook| {
                let there = match self.provider {
                    Provider::GitLab => &hook["url"],
                    _ => &hook["config"]["url"],
                };
                there.as_str() == Some(url)
            });
            if let Some(id) = ours.and_then(|hook| hook["id"].as_u64()) {
                return Ok(Some(id));
            }
            if found.len() < PAGE as usize {
                break;
            }
        }
        Ok(None)
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
        if status.is_success() {
            return Ok(value);
        }
        let said = value["message"]
            .as_str()
            .or_else(|| value["error"].as_str())
            .unwrap_or("it does not say why");
        let said: String = said.chars().take(300).collect();
        let message = format!(
            "{} answered {status} for the webhooks of {}: {said}",
            self.api, self.path
        );
        Err(match status.as_u16() {
            401 => CliError::usage(message).help("the token is wrong, or has expired"),
            403 | 404 => CliError::usage(message).help(
                "the token needs to manage webhooks of the repository: at GitHub `admin:repo_hook` or \"Webhooks: read and write\", at GitLab `api` as a maintainer, at Gitea and Forgejo `write:repository`",
            ),
            _ => CliError::unreachable(message),
        })
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
        Provider::BitbucketCloud
        | Provider::BitbucketServer
        | Provider::AzureDevops
        | Provider::Generic => return None,
    };
    Url::parse(&repository.page(path)).ok()
}
