//! Azure DevOps: service hooks of the kind "Web Hooks".
//!
//! A subscription is for one kind of event of one repository; the organization lists those of all
//! its projects. The secret is the password of basic authentication, which the API never returns.
//! With a new secret, existing subscriptions are replaced; otherwise they stay unchanged.
//! Subscriptions for events that a task does not need stay too, because another task may need them,
//! and the server ignores unneeded events.
//!
//! Source: Microsoft's documentation, "Service Hooks: Subscriptions" (7.1) and "Service hooks
//! consumers".

use acrtask_model::Secret;
use serde_json::{Value, json};
use url::Url;

use super::{Change, Forge, ForgeEntry, refusal};
use crate::{
    error::CliError,
    forge::{Repository, WebhookEvents},
};

/// Version of the API.
const VERSION: &str = "7.1";
/// User name that accompanies the secret; the server ignores it.
const USER: &str = "acrtask";
/// Event types: commits and tags, then pull requests. The end of a pull request is an update.
const EVENTS: [&str; 3] = [
    "git.push",
    "git.pullrequest.created",
    "git.pullrequest.updated",
];

/// Location of a repository.
#[derive(Debug, PartialEq, Eq)]
struct RepositoryPath {
    /// Path segments before the project: an organization or a collection.
    above: Vec<String>,
    project: String,
    name: String,
}

/// Parses `ORG/PROJECT/_git/NAME`, `ORG/_git/NAME` for a project with the repository's name, and
/// SSH's `v3/ORG/PROJECT/NAME`. The organization may be part of `host` instead of the path.
fn parse_path(path: &str, host: &str) -> Option<RepositoryPath> {
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .ok()?;
    let parts: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
    let found = |above: &[&str], project: &str, name: &str| {
        Some(RepositoryPath {
            above: above.iter().map(|part| (*part).to_owned()).collect(),
            project: project.to_owned(),
            name: name.to_owned(),
        })
    };
    if let ["v3", org, project, name] = parts[..] {
        return found(&[org], project, name);
    }
    let at = parts
        .iter()
        .position(|part| *part == "_git" || *part == "_ssh")?;
    let (before, [_, name]) = parts.split_at(at) else {
        return None;
    };
    // The path may contain the name of the default collection.
    let own_host = host.ends_with(".visualstudio.com");
    let collection = |part: &str| part.eq_ignore_ascii_case("DefaultCollection");
    match before {
        [] if own_host => found(&[], name, name),
        [project] if own_host && !collection(project) => found(&[], project, name),
        [.., last] if collection(last) => found(before, name, name),
        [above @ .., project] if !above.is_empty() => found(above, project, name),
        [_] => found(before, name, name),
        _ => None,
    }
}

/// Returns the address of the organization or collection.
pub(super) fn default_api(repository: &Repository) -> Option<Url> {
    let mut url = repository.web.clone();
    let path = parse_path(&repository.path, url.host_str()?)?;
    url.path_segments_mut()
        .ok()?
        .pop_if_empty()
        .extend(path.above);
    Some(url)
}

/// Ids of a repository in subscriptions.
struct RepositoryIds {
    project: String,
    repository: String,
}

/// Checks that the token can read the repository and the subscriptions.
pub(super) async fn check(forge: &Forge) -> Result<(), CliError> {
    fetch_ids(forge).await?;
    fetch_subscriptions(forge).await.map(drop)
}

/// Creates the missing subscriptions. With a new secret, replaces the existing ones.
pub(super) async fn put_subscriptions(
    forge: &Forge,
    url: &str,
    secret: Option<&Secret>,
    events: WebhookEvents,
) -> Result<ForgeEntry, CliError> {
    let ids = fetch_ids(forge).await?;
    let existing = fetch_subscriptions(forge).await?;
    let find_own = |event: &str| {
        let is_own = |subscription: &&Value| {
            subscription["eventType"] == event
                && subscription["consumerInputs"]["url"] == url
                && subscription["publisherInputs"]["repository"] == ids.repository.as_str()
        };
        existing.iter().find(is_own)
    };
    let mut entry = ForgeEntry {
        id: String::new(),
        change: Change::Added,
    };
    for event in EVENTS {
        let old = find_own(event);
        // A subscription for another task's events also needs the new secret.
        let needed = event == EVENTS[0] || events.pull_requests || old.is_some();
        if !needed {
            continue;
        }
        let id = old.and_then(|subscription| subscription["id"].as_str());
        let Some(secret) = secret else {
            let id = id
                .ok_or_else(|| refusal::unknown_secret(&format!("a subscription for `{event}`")))?;
            check_enabled(forge, event, old)?;
            entry.id = id.to_owned();
            entry.change = Change::Unchanged;
            continue;
        };
        let body = json!({
            "publisherId": "tfs", "eventType": event, "resourceVersion": "1.0",
            "consumerId": "webHooks", "consumerActionId": "httpRequest", "status": "enabled",
            "publisherInputs": { "projectId": ids.project, "repository": ids.repository },
            "consumerInputs": {
                "url": url, "resourceDetailsToSend": "all",
                "basicAuthUsername": USER, "basicAuthPassword": secret.expose(),
            },
        });
        let request = match id {
            Some(id) => {
                entry.change = Change::Updated;
                forge
                    .http
                    .put(endpoint(forge, &["hooks", "subscriptions", id]))
            }
            None => forge
                .http
                .post(endpoint(forge, &["hooks", "subscriptions"])),
        };
        let created = forge.send(request.json(&body)).await?;
        entry.id = created["id"].as_str().unwrap_or_default().to_owned();
    }
    Ok(entry)
}

/// Fails if a subscription is disabled. One on probation after failed deliveries still sends
/// events.
fn check_enabled(forge: &Forge, event: &str, subscription: Option<&Value>) -> Result<(), CliError> {
    let status = subscription.and_then(|subscription| subscription["status"].as_str());
    match status {
        Some(status) if status.starts_with("disabled") => Err(CliError::usage(format!(
            "the subscription for `{event}` at {} is disabled ({status})",
            forge.api
        ))
        .help("enable it there, or replace it with a new secret: `--new-secret`")),
        _ => Ok(()),
    }
}

async fn fetch_ids(forge: &Forge) -> Result<RepositoryIds, CliError> {
    let path = parse_path(&forge.path, &forge.host).ok_or_else(|| {
        CliError::usage(format!(
            "{} is not a repository of Azure DevOps",
            forge.path
        ))
        .help(
            "the task's context must be https://dev.azure.com/ORGANIZATION/PROJECT/_git/REPOSITORY",
        )
    })?;
    let mut url = forge.api.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments
            .pop_if_empty()
            .extend([&path.project, "_apis", "git", "repositories", &path.name]);
    }
    url.query_pairs_mut().append_pair("api-version", VERSION);
    let found = forge.send(forge.http.get(url)).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let ids = text(&found["id"]).zip(text(&found["project"]["id"]));
    let (repository, project) = ids.ok_or_else(|| {
        CliError::unreachable(format!(
            "{} does not return the id of the repository {}",
            forge.api, forge.path
        ))
        .help("check the address of --api: https://dev.azure.com/ORGANIZATION")
    })?;
    Ok(RepositoryIds {
        project,
        repository,
    })
}

/// Fetches the web hook subscriptions of the organization.
async fn fetch_subscriptions(forge: &Forge) -> Result<Vec<Value>, CliError> {
    let mut url = endpoint(forge, &["hooks", "subscriptions"]);
    url.query_pairs_mut()
        .append_pair("publisherId", "tfs")
        .append_pair("consumerId", "webHooks");
    let found = forge.send(forge.http.get(url)).await?;
    Ok(found["value"].as_array().cloned().unwrap_or_default())
}

/// Returns an address below the organization's `_apis`.
fn endpoint(forge: &Forge, below: &[&str]) -> Url {
    let mut url = forge.api.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push("_apis").extend(below);
    }
    url.query_pairs_mut().append_pair("api-version", VERSION);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_path_and_api_are_parsed_from_the_context() {
        let read = |context: &str| {
            let provider = Some(acrtask_trigger::Provider::AzureDevops);
            let repository = Repository::from_context(Some(context), provider).unwrap();
            let host = repository.web.host_str().unwrap();
            let path = parse_path(&repository.path, host)?;
            let api = default_api(&repository)?;
            Some(format!("{api} {} {}", path.project, path.name))
        };
        for (context, expected) in [
            (
                "https://me@dev.azure.com/fabrikam/Web%20Site/_git/Shop",
                "https://dev.azure.com/fabrikam Web Site Shop",
            ),
            (
                "https://dev.azure.com/fabrikam/_git/Web",
                "https://dev.azure.com/fabrikam Web Web",
            ),
            (
                "git@ssh.dev.azure.com:v3/fabrikam/Web/Shop",
                "https://dev.azure.com/fabrikam Web Shop",
            ),
            (
                "https://fabrikam.visualstudio.com/Web/_git/Shop",
                "https://fabrikam.visualstudio.com/ Web Shop",
            ),
            (
                "https://fabrikam.visualstudio.com/DefaultCollection/Web/_git/Shop",
                "https://fabrikam.visualstudio.com/DefaultCollection Web Shop",
            ),
            (
                "https://fabrikam.visualstudio.com/_git/Web",
                "https://fabrikam.visualstudio.com/ Web Web",
            ),
            (
                "https://fabrikam.visualstudio.com/DefaultCollection/_git/Web",
                "https://fabrikam.visualstudio.com/DefaultCollection Web Web",
            ),
            (
                "https://tfs.example.com:8080/tfs/Main/Web/_git/Shop",
                "https://tfs.example.com:8080/tfs/Main Web Shop",
            ),
            (
                "https://tfs.example.com/tfs/DefaultCollection/_git/Web",
                "https://tfs.example.com/tfs/DefaultCollection Web Web",
            ),
        ] {
            assert_eq!(read(context).as_deref(), Some(expected), "{context}");
        }
        for context in [
            "https://dev.azure.com/fabrikam/Web.git",
            "https://dev.azure.com/fabrikam/Web/_git/Shop/more",
            "https://dev.azure.com/_git/Shop",
        ] {
            assert_eq!(read(context), None, "{context}");
        }
    }
}
