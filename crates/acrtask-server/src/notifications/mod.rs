//! Outgoing messages about runs: commit statuses at forges, and notifications of results.
//!
//! [`request`] builds the request of each forge, [`statuses`] sends it, and [`notify`] sends
//! notifications.
//!
//! Invariants:
//! - A run never waits for a message.
//! - A failed message is retried with growing pauses, and finally given up with the reason.
//! - A token goes only to its own host, over TLS or to this machine, and never along a redirect.

mod notify;
mod request;
mod statuses;

use std::time::Duration;

use acrtask_api::{task::Task, webhook::CommitStatuses};
use acrtask_registry::net;
use acrtask_store::{DeliveryResult, StoreError};
use acrtask_trigger::{Event, Provider, RepositoryUrl};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{App, webhooks::DeliveryContext};

pub(crate) use request::StatusPhase;

/// Maximum number of messages that one pass leases.
const MAX_BATCH: u32 = 32;
/// Duration for which a server leases a pending message.
const LEASE: Duration = Duration::from_secs(90);
/// Timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Pauses between attempts. Later attempts use the last pause.
const RETRY_DELAYS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1800),
];
/// Number of attempts until a message is given up, after about six hours.
const MAX_ATTEMPTS: u32 = 16;

/// Destination of a commit status, as configured when the run was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    provider: Provider,
    /// Base URL of the forge's API.
    #[serde(with = "url_text")]
    api: Url,
    /// `true` if the webhook names no API and the URL is the default for the repository's host.
    derived: bool,
    /// The repository's host, with its port.
    host: String,
    /// The repository's name at the forge.
    repository: String,
    commit: String,
    /// The name of the status.
    context: String,
    /// The task's id.
    task: String,
    /// The stored secret with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Target {
    /// Returns `None` if the webhook reports no statuses or the forge supports none.
    pub(crate) fn new(
        context: DeliveryContext<'_>,
        provider: Provider,
        event: &Event,
        task: &Task,
        commit: &str,
    ) -> Option<Self> {
        let CommitStatuses { api, token } = context.definition.statuses.clone()?;
        if provider == Provider::Generic {
            return None;
        }
        let repository = event.repository()?;
        let repository_url = repository
            .urls
            .iter()
            .find_map(|url| RepositoryUrl::parse(url))?;
        let http = repository
            .urls
            .iter()
            .filter_map(|url| Url::parse(url).ok())
            .find(|url| matches!(url.scheme(), "https" | "http"));
        let url = repository_url.to_string();
        let host = url.split('/').next().unwrap_or_default().to_owned();
        let derived = api.is_none();
        let api = match api {
            Some(api) => Url::parse(&api).ok()?,
            None => default_api(provider, &host, repository_url.path(), http.as_ref())?,
        };
        Some(Self {
            provider,
            api,
            derived,
            host,
            repository: repository.full_name.clone(),
            commit: commit.to_owned(),
            context: format!("acrtask/{}", task.definition.name),
            task: task.id.clone(),
            token,
        })
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Serialization of a URL as text.
mod url_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use url::Url;

    pub(super) fn serialize<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(url.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
        let text = String::deserialize(deserializer)?;
        Url::parse(&text).map_err(D::Error::custom)
    }
}

/// Returns the default API of a forge for the repository's host.
fn default_api(provider: Provider, host: &str, path: &str, http: Option<&Url>) -> Option<Url> {
    let origin = match http {
        Some(url) => format!(
            "{}://{}{}",
            url.scheme(),
            url.host_str()?,
            url.port().map_or(String::new(), |port| format!(":{port}"))
        ),
        // Only the SSH address is known; its port does not apply to the API.
        None => format!("https://{}", host.split(':').next().unwrap_or(host)),
    };
    let text = match provider {
        Provider::GitHub if host == "github.com" => "https://api.github.com".to_owned(),
        Provider::GitHub => format!("{origin}/api/v3"),
        Provider::GitLab => format!("{origin}/api/v4"),
        Provider::Gitea | Provider::Forgejo => format!("{origin}/api/v1"),
        Provider::BitbucketCloud => "https://api.bitbucket.org/2.0".to_owned(),
        Provider::BitbucketServer => origin,
        Provider::AzureDevops if host == "dev.azure.com" => {
            format!("https://dev.azure.com/{}", path.split('/').next()?)
        }
        Provider::AzureDevops | Provider::Generic => return None,
    };
    Url::parse(&text).ok()
}

/// Refuses a URL to which a secret would go unencrypted.
fn check_secure(url: &Url) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => Ok(()),
        "http" if net::is_loopback(host) => Ok(()),
        _ => Err(format!(
            "{host} is not reached over https, and a token is not sent unencrypted; write an https URL"
        )),
    }
}

/// Returns the result of a failed attempt: retry later, or give up.
fn retry_later(app: &App, attempts: u32, error: String) -> DeliveryResult {
    if attempts + 1 >= MAX_ATTEMPTS {
        return DeliveryResult::GiveUp { error };
    }
    let pause = RETRY_DELAYS[(attempts as usize).min(RETRY_DELAYS.len() - 1)];
    DeliveryResult::Retry {
        error,
        at: app.clock.now_ms() + crate::recorder::as_millis(pause),
    }
}

/// Returns `true` if a later attempt may get another response.
fn is_transient(status: http::StatusCode) -> bool {
    // The token or the permissions of the repository may change at the forge.
    status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 404 | 408 | 409 | 425 | 429)
}

/// Returns the URL of a run's page for browsers. `None`: the API requires a token, so no page
/// exists yet.
fn run_page(_app: &App, _run: &acrtask_model::RunId) -> Option<String> {
    None
}

/// Sends pending messages until the server stops.
pub(crate) async fn run_sender(app: &App) -> Result<(), StoreError> {
    let clients = statuses::Clients::new();
    loop {
        let sent =
            statuses::send_due(app, &clients).await? + notify::send_due(app, &clients).await?;
        if sent == 0 {
            tokio::time::sleep(app.config.poll).await;
        }
    }
}

#[cfg(test)]
mod tests;
