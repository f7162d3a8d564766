//! Clients for the webhook APIs of GitHub, GitLab, Gitea, Forgejo, Bitbucket Cloud and Azure
//! DevOps.
//!
//! All of them but Azure DevOps have one webhook for all events; [`azure`] handles its
//! subscriptions.
//!
//! Invariants: the token goes only to the forge's API, over TLS unless the API is on this machine,
//! and never along a redirect. An existing webhook with the same address is updated, so that a
//! repetition creates no second one.

mod azure;
mod refusal;

use std::{path::Path, time::Duration};

use acrtask_model::Secret;
use acrtask_trigger::Provider;
use reqwest::{Method, RequestBuilder, redirect};
use serde_json::{Value, json};
use url::Url;

use super::{Repository, WebhookEvents};
use crate::{
    client::{is_loopback, load_certificates},
    error::CliError,
};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of pages to search for a webhook; forges allow far fewer webhooks per repository.
const MAX_PAGES: u32 = 10;
/// Webhooks per page.
const PAGE: u32 = 50;

/// API of one forge, for one repository.
#[derive(Debug)]
pub(crate) struct Forge {
    http: reqwest::Client,
    api: Url,
    token: Secret,
    provider: Provider,
    /// Host of the repository, which may differ from that of the API.
    host: String,
    path: String,
}

/// Webhook at the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForgeEntry {
    /// Id or name at the forge.
    pub(crate) id: String,
    /// Effect of the last request.
    pub(crate) change: Change,
}

/// Effect of a request on a webhook at the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The webhook was created.
    Added,
    /// An existing webhook was updated.
    Updated,
    /// An existing webhook needed no change.
    Unchanged,
}

impl Forge {
    /// Creates a client for the repository's forge, at `api` or at its default address.
    ///
    /// # Errors
    /// Fails if the forge's API is not supported, or if the token would be sent unencrypted.
    pub(crate) fn new(
        repository: &Repository,
        token: Secret,
        api: Option<&Url>,
        ca: Option<&Path>,
    ) -> Result<Self, CliError> {
        let provider = repository.provider;
        let default = default_api(repository).ok_or_else(|| {
            CliError::usage(format!("the API of {provider} is not supported"))
                .help("remove --token-file to print the settings to enter at the forge")
        })?;
        let api = api.cloned().unwrap_or(default);
        let local = is_loopback(&api);
        if api.scheme() != "https" && !local {
            return Err(
                CliError::usage(format!("{api} would receive the token unencrypted"))
                    .help("write the API's address with https://"),
            );
        }
        acrtask_registry::install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("acrtask/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none());
        if local {
            builder = builder.no_proxy();
        }
        if let Some(path) = ca {
            builder = builder.tls_certs_only(load_certificates(path)?);
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

    /// Returns `true` if the forge can send a ping, which starts no run.
    pub(crate) fn has_ping(&self) -> bool {
        self.provider == Provider::GitHub
    }

    /// Checks that the token can read the repository's webhooks.
    ///
    /// # Errors
    /// Fails if it cannot, or if the forge is unreachable.
    pub(crate) async fn check(&self) -> Result<(), CliError> {
        if self.provider == Provider::AzureDevops {
            return azure::check(self).await;
        }
        self.send(self.http.get(self.endpoint(&[]))).await.map(drop)
    }

    /// Creates or updates the webhook for `url`. Without a secret, only an existing webhook can be
    /// updated.
    ///
    /// # Errors
    /// Fails if the forge rejects the request or is unreachable, or if a new webhook has no secret.
    pub(crate) async fn put_webhook(
        &self,
        url: &str,
        secret: Option<&Secret>,
        events: WebhookEvents,
    ) -> Result<ForgeEntry, CliError> {
        if self.provider == Provider::AzureDevops {
            return azure::put_subscriptions(self, url, secret, events).await;
        }
        let body = self.webhook_body(url, secret, events);
        if let Some(id) = self.find_webhook(url).await? {
            let method = match self.provider {
                Provider::GitLab | Provider::BitbucketCloud => Method::PUT,
                _ => Method::PATCH,
            };
            let at = self.endpoint(&[&id]);
            self.send(self.http.request(method, at).json(&body)).await?;
            let change = Change::Updated;
            return Ok(ForgeEntry { id, change });
        }
        if secret.is_none() {
            return Err(refusal::unknown_secret("the webhook"));
        }
        let created = self
            .send(self.http.post(self.endpoint(&[])).json(&body))
            .await?;
        let id = self.webhook_id(&created).ok_or_else(|| {
            CliError::unreachable(format!(
                "{} does not return the id of the new webhook",
                self.api
            ))
            .help("check the address of --api")
        })?;
        let change = Change::Added;
        Ok(ForgeEntry { id, change })
    }

    /// Requests a ping from the forge.
    pub(crate) async fn send_ping(&self, id: &str) -> Result<(), CliError> {
        let at = self.endpoint(&[id, "pings"]);
        self.send(self.http.post(at)).await.map(drop)
    }

    /// Returns the ids of the pings that the forge has sent, with the statuses of the responses.
    /// Empty if the forge does not list them.
    pub(crate) async fn sent_pings(&self, id: &str) -> Vec<(u64, u16)> {
        let at = self.endpoint(&[id, "deliveries"]);
        let Ok(found) = self.send(self.http.get(at)).await else {
            return Vec::new();
        };
        let sent = found.as_array().cloned().unwrap_or_default().into_iter();
        sent.filter(|delivery| delivery["event"] == "ping")
            .filter_map(|delivery| {
                let status = u16::try_from(delivery["status_code"].as_u64()?).ok()?;
                Some((delivery["id"].as_u64()?, status))
            })
            .collect()
    }

    async fn find_webhook(&self, url: &str) -> Result<Option<String>, CliError> {
        for page in 1..=MAX_PAGES {
            let mut at = self.endpoint(&[]);
            at.query_pairs_mut()
                .append_pair("page", &page.to_string())
                .append_pair("per_page", &PAGE.to_string())
                .append_pair("pagelen", &PAGE.to_string())
                .append_pair("limit", &PAGE.to_string());
            let found = self.send(self.http.get(at)).await?;
            let found = match self.provider {
                Provider::BitbucketCloud => &found["values"],
                _ => &found,
            };
            let found = found.as_array().cloned().unwrap_or_default();
            let own = found.iter().find(|hook| {
                let address = match self.provider {
                    Provider::GitLab | Provider::BitbucketCloud => &hook["url"],
                    _ => &hook["config"]["url"],
                };
                address.as_str() == Some(url)
            });
            if let Some(id) = own.and_then(|hook| self.webhook_id(hook)) {
                return Ok(Some(id));
            }
            if found.len() < PAGE as usize {
                break;
            }
        }
        Ok(None)
    }

    /// Returns the forge's id of a webhook.
    fn webhook_id(&self, hook: &Value) -> Option<String> {
        match self.provider {
            Provider::BitbucketCloud => hook["uuid"].as_str().map(str::to_owned),
            _ => hook["id"].as_u64().map(|id| id.to_string()),
        }
    }

    fn webhook_body(&self, url: &str, secret: Option<&Secret>, wanted: WebhookEvents) -> Value {
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
            // Bitbucket's pushes include tags.
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
            // Without this field, the webhook keeps its secret.
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

    /// Returns the address of the repository's webhooks, or of a resource below.
    fn endpoint(&self, below: &[&str]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            match self.provider {
                // One segment, so that the slashes in the path are escaped.
                Provider::GitLab => path.extend(["projects", self.path.as_str()]),
                Provider::BitbucketCloud => path.push("repositories").extend(self.path.split('/')),
                _ => path.push("repos").extend(self.path.split('/')),
            };
            path.push("hooks").extend(below);
        }
        url
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let token = self.token.expose();
        let request = match self.provider {
            Provider::GitLab => request.header("PRIVATE-TOKEN", token),
            Provider::GitHub => request
                .bearer_auth(token)
                .header("Accept", "application/vnd.github+json")
                .header("X-GitHub-Api-Version", "2022-11-28"),
            // A personal API token needs a user name; tokens of a repository or workspace do not.
            Provider::BitbucketCloud => match token.split_once(':') {
                Some((name, token)) => request.basic_auth(name, Some(token)),
                None => request.bearer_auth(token),
            },
            // Tokens of Microsoft Entra are JSON Web Tokens.
            Provider::AzureDevops if token.starts_with("eyJ") => request.bearer_auth(token),
            Provider::AzureDevops => request.basic_auth("", Some(token)),
            _ => request.header("Authorization", format!("token {token}")),
        };
        let unreachable = |error: reqwest::Error| {
            CliError::unreachable(format!("cannot reach the API at {}", self.api))
                .because(&error.without_url())
                .help("set its address with --api, or remove --token-file")
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() && !refusal::is_login_page(self.provider, status) {
            return Ok(value);
        }
        let what = format!("the webhooks of {}", self.path);
        Err(refusal::to_error(
            self.provider,
            &self.api,
            &what,
            status,
            &value,
        ))
    }
}

/// Returns the default address of a forge's API; `None` if it is not supported.
fn default_api(repository: &Repository) -> Option<Url> {
    let path = match repository.provider {
        Provider::GitHub if repository.web.host_str() == Some("github.com") => {
            return Url::parse("https://api.github.com").ok();
        }
        Provider::GitHub => "api/v3",
        Provider::GitLab => "api/v4",
        Provider::Gitea | Provider::Forgejo => "api/v1",
        Provider::BitbucketCloud => return Url::parse("https://api.bitbucket.org/2.0").ok(),
        Provider::AzureDevops => return azure::default_api(repository),
        Provider::BitbucketServer | Provider::Generic => return None,
    };
    Url::parse(&repository.web_page(path)).ok()
}
