//! What the outside is told of runs: statuses of commits at forges, and notices of results.
//!
//! [`request`] says which request a forge wants, [`statuses`] sends them, [`notify`] tells people of results. Invariants: a
//! run never waits for any of it; what could not be told is tried again, longer and longer apart, and then given up with
//! the reason; a token goes to the host that it is for, over TLS or on this machine, and never along a redirect.

mod notify;
mod request;
mod statuses;

use std::time::Duration;

use acrtask_api::{task::Task, webhook::CommitStatuses};
use acrtask_registry::net;
use acrtask_store::{StoreError, Told};
use acrtask_trigger::{Event, Provider, RepositoryUrl};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{App, webhooks::Came};

pub(crate) use request::Word;

/// Things that are told at once.
const BATCH: u32 = 32;
/// Who has taken something to tell it has so long.
const TAKEN: Duration = Duration::from_secs(90);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// The pauses between tries; the last one is used again.
const PAUSES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(1800),
];
/// Tries before it is given up: about six hours.
const TRIES: u32 = 16;

/// Whom a forge is told through, as it was when the run was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    provider: Provider,
    /// The forge's API.
    #[serde(with = "as_text")]
    api: Url,
    /// Nobody named the API: it is the usual one of the repository's host.
    derived: bool,
    /// The repository's host, with its port.
    host: String,
    /// Its name at the forge.
    repository: String,
    /// The commit.
    commit: String,
    /// The name of the status.
    context: String,
    /// The task's id.
    task: String,
    /// The stored secret that holds the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl Target {
    /// Nothing where the webhook does not tell statuses, or the forge has none.
    pub(crate) fn new(
        came: Came<'_>,
        provider: Provider,
        event: &Event,
        task: &Task,
        commit: &str,
    ) -> Option<Self> {
        let CommitStatuses { api, token } = came.definition.statuses.clone()?;
        if provider == Provider::Generic {
            return None;
        }
        let repository = event.repository()?;
        let known = repository
            .urls
            .iter()
            .find_map(|url| RepositoryUrl::parse(url))?;
        let http = repository
            .urls
            .iter()
            .filter_map(|url| Url::parse(url).ok())
            .find(|url| matches!(url.scheme(), "https" | "http"));
        let shown = known.to_string();
        let host = shown.split('/').next().unwrap_or_default().to_owned();
        let derived = api.is_none();
        let api = match api {
            Some(api) => Url::parse(&api).ok()?,
            None => usual_api(provider, &host, known.path(), http.as_ref())?,
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

/// A URL as text.
mod as_text {
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

/// The API of a forge, by the repository's host.
fn usual_api(provider: Provider, host: &str, path: &str, http: Option<&Url>) -> Option<Url> {
    let origin = match http {
        Some(url) => format!(
            "{}://{}{}",
            url.scheme(),
            url.host_str()?,
            url.port().map_or(String::new(), |port| format!(":{port}"))
        ),
        // Known by its address for SSH alone, whose port says nothing of the API's.
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

/// Refuses an address that a secret would go to in clear.
fn check_secure(url: &Url) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => Ok(()),
        "http" if net::is_loopback(host) => Ok(()),
        _ => Err(format!(
            "{host} is not reached by https, and a token is not sent in clear"
        )),
    }
}

/// After a try that failed.
fn again(app: &App, attempts: u32, error: String) -> Told {
    if attempts + 1 >= TRIES {
        return Told::Never { error };
    }
    let pause = PAUSES[(attempts as usize).min(PAUSES.len() - 1)];
    Told::Again {
        error,
        at: app.clock.now_ms() + crate::recorder::millis(pause),
    }
}

/// Whether what was answered may be another answer later.
fn may_pass(status: http::StatusCode) -> bool {
    // A token may be set, and a repository may be shown to it, without anything here being changed.
    status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 404 | 408 | 409 | 425 | 429)
}

/// Returns the page of a run that a browser can open. The API asks for a token, so there is none yet.
fn page(_app: &App, _run: &acrtask_model::RunId) -> Option<String> {
    None
}

/// Tells forges and people, for ever.
pub(crate) async fn run(app: &App) -> Result<(), StoreError> {
    let clients = statuses::Clients::new();
    loop {
        let told = statuses::pass(app, &clients).await? + notify::pass(app, &clients).await?;
        if told == 0 {
            tokio::time::sleep(app.config.poll).await;
        }
    }
}

#[cfg(test)]
mod tests;
