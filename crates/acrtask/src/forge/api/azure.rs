//! Azure DevOps: service hooks of the kind "Web Hooks".
//!
//! A subscription is for one kind of event of one repository; the organization lists those of all its projects. The
//! secret is the password of basic authentication, and nobody is told it again: what is there already can be replaced
//! with a new one, and is left alone without one. Subscriptions for events that a task does not want are left too, since
//! another task may, and the server declines what nobody wants.
//!
//! Source: Microsoft's documentation, "Service Hooks: Subscriptions" (7.1) and "Service hooks consumers".

use acrtask_model::Secret;
use serde_json::{Value, json};
use url::Url;

use super::{Did, Entered, Forge, refusal};
use crate::{
    error::CliError,
    forge::{Repository, Wanted},
};

/// The version of the API that is spoken.
const VERSION: &str = "7.1";
/// The name that goes with the secret; nobody looks at it.
const USER: &str = "acrtask";
/// What is subscribed to: commits and tags; then pull requests, whose end is an update of them.
const EVENTS: [&str; 3] = [
    "git.push",
    "git.pullrequest.created",
    "git.pullrequest.updated",
];

/// Where a repository is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// What stands before the project in the path: an organization or a collection.
    above: Vec<String>,
    project: String,
    name: String,
}

/// Reads `ORG/PROJECT/_git/NAME`, `ORG/_git/NAME`, where the project is called as the repository, and SSH's
/// `v3/ORG/PROJECT/NAME`. `host` may have the organization's name in it, which then is not in the path.
fn place(path: &str, host: &str) -> Option<Place> {
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .ok()?;
    let parts: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
    let of = |above: &[&str], project: &str, name: &str| {
        Some(Place {
            above: above.iter().map(|part| (*part).to_owned()).collect(),
            project: project.to_owned(),
            name: name.to_owned(),
        })
    };
    if let ["v3", org, project, name] = parts[..] {
        return of(&[org], project, name);
    }
    let at = parts
        .iter()
        .position(|part| *part == "_git" || *part == "_ssh")?;
    let (before, [_, name]) = parts.split_at(at) else {
        return None;
    };
    // The collection that every organization has may be named.
    let own_host = host.ends_with(".visualstudio.com");
    let collection = |part: &str| part.eq_ignore_ascii_case("DefaultCollection");
    match before {
        [] if own_host => of(&[], name, name),
        [project] if own_host && !collection(project) => of(&[], project, name),
        [.., last] if collection(last) => of(before, name, name),
        [above @ .., project] if !above.is_empty() => of(above, project, name),
        [_] => of(before, name, name),
        _ => None,
    }
}

/// The address of the organization or collection.
pub(super) fn usual_api(repository: &Repository) -> Option<Url> {
    let mut url = repository.web.clone();
    let place = place(&repository.path, url.host_str()?)?;
    url.path_segments_mut()
        .ok()?
        .pop_if_empty()
        .extend(place.above);
    Some(url)
}

/// The repository, as subscriptions name it.
struct Ids {
    project: String,
    repository: String,
}

/// Whether the token sees the repository and the subscriptions.
pub(super) async fn check(forge: &Forge) -> Result<(), CliError> {
    ids(forge).await?;
    subscriptions(forge).await.map(drop)
}

/// Subscribes to what is wanted; what is there is replaced where there is a new secret.
pub(super) async fn enter(
    forge: &Forge,
    url: &str,
    secret: Option<&Secret>,
    wanted: Wanted,
) -> Result<Entered, CliError> {
    let ids = ids(forge).await?;
    let there = subscriptions(forge).await?;
    let ours = |event: &str| {
        let ours = |one: &&Value| {
            one["eventType"] == event
                && one["consumerInputs"]["url"] == url
                && one["publisherInputs"]["repository"] == ids.repository.as_str()
        };
        there.iter().find(ours)
    };
    let mut entered = Entered {
        id: String::new(),
        did: Did::Entered,
    };
    for event in EVENTS {
        let old = ours(event);
        // One that another task wanted gets a new secret too.
        let needed = event == EVENTS[0] || wanted.pull_requests || old.is_some();
        if !needed {
            continue;
        }
        let id = old.and_then(|one| one["id"].as_str());
        let Some(secret) = secret else {
            let id = id
                .ok_or_else(|| refusal::secret_unknown(&format!("a subscription for `{event}`")))?;
            enabled(forge, event, old)?;
            entered.id = id.to_owned();
            entered.did = Did::Left;
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
                entered.did = Did::Changed;
                forge.http.put(at(forge, &["hooks", "subscriptions", id]))
            }
            None => forge.http.post(at(forge, &["hooks", "subscriptions"])),
        };
        let made = forge.ask(request.json(&body)).await?;
        entered.id = made["id"].as_str().unwrap_or_default().to_owned();
    }
    Ok(entered)
}

/// Whether a subscription tells of anything. On probation, where deliveries failed, it goes on trying.
fn enabled(forge: &Forge, event: &str, subscription: Option<&Value>) -> Result<(), CliError> {
    let status = subscription.and_then(|one| one["status"].as_str());
    match status {
        Some(status) if status.starts_with("disabled") => Err(CliError::usage(format!(
            "the subscription for `{event}` at {} is disabled ({status})",
            forge.api
        ))
        .help("enable it there, or enter it again with a new secret: `--new-secret`")),
        _ => Ok(()),
    }
}

async fn ids(forge: &Forge) -> Result<Ids, CliError> {
    let place = place(&forge.path, &forge.host).ok_or_else(|| {
        CliError::usage(format!("{} is no repository of Azure DevOps", forge.path))
            .help("the task's context is to be https://dev.azure.com/ORGANIZATION/PROJECT/_git/REPOSITORY")
    })?;
    let mut url = forge.api.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty()
            .extend([&place.project, "_apis", "git", "repositories", &place.name]);
    }
    url.query_pairs_mut().append_pair("api-version", VERSION);
    let found = forge.ask(forge.http.get(url)).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let ids = text(&found["id"]).zip(text(&found["project"]["id"]));
    let (repository, project) = ids.ok_or_else(|| {
        CliError::unreachable(format!(
            "{} does not say which repository {} is",
            forge.api, forge.path
        ))
        .help("look at the address of --api: https://dev.azure.com/ORGANIZATION")
    })?;
    Ok(Ids {
        project,
        repository,
    })
}

/// The web hooks of the organization.
async fn subscriptions(forge: &Forge) -> Result<Vec<Value>, CliError> {
    let mut url = at(forge, &["hooks", "subscriptions"]);
    url.query_pairs_mut()
        .append_pair("publisherId", "tfs")
        .append_pair("consumerId", "webHooks");
    let found = forge.ask(forge.http.get(url)).await?;
    Ok(found["value"].as_array().cloned().unwrap_or_default())
}

/// An address below the organization's `_apis`.
fn at(forge: &Forge, below: &[&str]) -> Url {
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
    fn where_a_repository_is() {
        let read = |context: &str| {
            let provider = Some(acrtask_trigger::Provider::AzureDevops);
            let repository = Repository::of(Some(context), provider).unwrap();
            let host = repository.web.host_str().unwrap();
            let place = place(&repository.path, host)?;
            let api = usual_api(&repository)?;
            Some(format!("{api} {} {}", place.project, place.name))
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
