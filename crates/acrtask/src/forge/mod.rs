//! The forge of a repository: its kind, and the webhook settings for a server.
//!
//! [`Repository::from_context`] and [`setup_guide`] are pure; [`api`] configures the webhook
//! through the forge's own API.

pub(crate) mod api;

use acrtask_source::{ContextSpec, GitTransport};
use acrtask_trigger::{Provider, RepositoryUrl};
use serde::Serialize;
use url::Url;

use crate::error::CliError;

/// Repository at a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// Clone URL without a password.
    pub(crate) url: String,
    /// Address of the forge's web pages: `https://HOST`.
    pub(crate) web: Url,
    /// `owner/name`, without `.git`.
    pub(crate) path: String,
    /// Kind of the forge.
    pub(crate) provider: Provider,
}

impl Repository {
    /// Returns the repository of a context. `provider` is the kind of its forge, if the user gave
    /// it.
    ///
    /// # Errors
    /// Fails if the context is not a git repository, or if the kind of its forge is unknown.
    pub(crate) fn from_context(
        context: Option<&str>,
        provider: Option<Provider>,
    ) -> Result<Self, CliError> {
        let none = || {
            CliError::usage(
                "the task's context is not a git repository, so no forge can send its commits",
            )
            .help(
                "set one: `acrtask task update NAME --context https://HOST/REPOSITORY.git#BRANCH`",
            )
        };
        let spec = ContextSpec::parse(context.ok_or_else(none)?).map_err(|_| none())?;
        let ContextSpec::Git(git) = spec else {
            return Err(none());
        };
        if git.transport == GitTransport::File {
            return Err(none());
        }
        let (host, port, path) = split_url(&git.url).ok_or_else(none)?;
        // A port of SSH is not that of the web pages.
        let web = match git.transport {
            GitTransport::Http => format!("http://{host}{}", port_text(port)),
            GitTransport::Https => format!("https://{host}{}", port_text(port)),
            _ => format!("https://{}", web_host(&host)),
        };
        let provider = provider.or_else(|| guess_provider(&host)).ok_or_else(|| {
            CliError::usage(format!("the kind of the forge {host} is unknown"))
                .help("choose it: `--provider github`, gitlab, gitea, forgejo, bitbucket-server, azure-devops or generic")
        })?;
        Ok(Self {
            web: Url::parse(&web).map_err(|_| none())?,
            path: path.trim_end_matches(".git").to_owned(),
            url: git.url,
            provider,
        })
    }

    /// Returns `true` if `url` is another spelling of the repository.
    pub(crate) fn matches_url(&self, url: &str) -> bool {
        let own = RepositoryUrl::parse(&self.url);
        own.is_some() && own == RepositoryUrl::parse(url)
    }

    /// Returns a name for the repository's webhook.
    pub(crate) fn webhook_name(&self) -> String {
        let path = match RepositoryUrl::parse(&self.url) {
            Some(url) => url.path().to_owned(),
            None => self.path.to_lowercase(),
        };
        let name: String = path
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let name = name.trim_matches(['-', '.']);
        name.chars().take(60).collect()
    }

    fn web_page(&self, path: &str) -> String {
        format!("{}/{path}", self.web.as_str().trim_end_matches('/'))
    }
}

/// Splits a URL, or git's short form for SSH, into host, port and path.
fn split_url(url: &str) -> Option<(String, Option<u16>, String)> {
    let (host, port, path) = if url.contains("://") {
        let url = Url::parse(url).ok()?;
        (
            url.host_str()?.to_owned(),
            url.port(),
            url.path().to_owned(),
        )
    } else {
        let (before, path) = url.split_once(':')?;
        let host = before.rsplit_once('@').map_or(before, |(_, host)| host);
        (host.to_owned(), None, path.to_owned())
    };
    let path = path.trim_matches('/').to_owned();
    (!path.is_empty()).then_some((host, port, path))
}

fn port_text(port: Option<u16>) -> String {
    port.map(|port| format!(":{port}")).unwrap_or_default()
}

/// Returns the host of the web pages, which differs from the SSH host at some forges.
fn web_host(host: &str) -> &str {
    match host {
        "ssh.github.com" => "github.com",
        "altssh.gitlab.com" => "gitlab.com",
        "altssh.bitbucket.org" => "bitbucket.org",
        "ssh.dev.azure.com" | "vs-ssh.visualstudio.com" => "dev.azure.com",
        other => other,
    }
}

/// Guesses the kind of a forge from its host: large forges are known, others often have their kind
/// in the name.
fn guess_provider(host: &str) -> Option<Provider> {
    let host = web_host(host).to_lowercase();
    match host.as_str() {
        "github.com" => return Some(Provider::GitHub),
        "gitlab.com" => return Some(Provider::GitLab),
        "bitbucket.org" => return Some(Provider::BitbucketCloud),
        "codeberg.org" => return Some(Provider::Forgejo),
        "gitea.com" => return Some(Provider::Gitea),
        "dev.azure.com" => return Some(Provider::AzureDevops),
        _ if host.ends_with(".visualstudio.com") => return Some(Provider::AzureDevops),
        _ => {}
    }
    let named = [
        ("github", Provider::GitHub),
        ("gitlab", Provider::GitLab),
        ("forgejo", Provider::Forgejo),
        ("gitea", Provider::Gitea),
        ("bitbucket", Provider::BitbucketServer),
    ];
    named
        .into_iter()
        .find(|(name, _)| host.split(['.', '-']).any(|part| part == *name))
        .map(|(_, provider)| provider)
}

/// Events that the forge sends in addition to pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WebhookEvents {
    /// Tags.
    pub(crate) tags: bool,
    /// Pull requests.
    pub(crate) pull_requests: bool,
}

/// Instructions for the manual setup of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Guide {
    /// Address of the forge's settings page.
    pub(crate) page: String,
    /// Path to the form on that page.
    pub(crate) way: String,
    /// Fields of the form and their values.
    pub(crate) fields: Vec<(String, String)>,
}

/// Returns the instructions for a webhook of `repository` that sends deliveries to `url`.
pub(crate) fn setup_guide(
    repository: &Repository,
    url: &str,
    secret: Option<&str>,
    events: WebhookEvents,
) -> Guide {
    let secret = secret.unwrap_or("the secret of the webhook");
    let pick = |push: &str, tags: &str, requests: &str| {
        let mut names = vec![push];
        names.extend((events.tags && !tags.is_empty()).then_some(tags));
        names.extend(events.pull_requests.then_some(requests));
        names.join(", ")
    };
    let path = &repository.path;
    let (page, way, fields): (String, &str, Vec<(&str, String)>) = match repository.provider {
        Provider::GitHub => (
            repository.web_page(&format!("{path}/settings/hooks/new")),
            "Settings > Webhooks > Add webhook",
            vec![
                ("Payload URL", url.into()),
                ("Content type", "application/json".into()),
                ("Secret", secret.into()),
                ("SSL verification", "Enable".into()),
                (
                    "Events",
                    format!(
                        "Let me select individual events: {}",
                        pick("Pushes", "", "Pull requests")
                    ),
                ),
            ],
        ),
        Provider::GitLab => (
            repository.web_page(&format!("{path}/-/hooks")),
            "Settings > Webhooks > Add new webhook",
            vec![
                ("URL", url.into()),
                ("Secret token", secret.into()),
                (
                    "Trigger",
                    pick("Push events", "Tag push events", "Merge request events"),
                ),
                ("SSL verification", "Enable".into()),
            ],
        ),
        Provider::Gitea | Provider::Forgejo => (
            repository.web_page(&format!(
                "{path}/settings/hooks/{}/new",
                repository.provider.name()
            )),
            "Settings > Webhooks > Add webhook",
            vec![
                ("Target URL", url.into()),
                ("HTTP method", "POST".into()),
                ("POST content type", "application/json".into()),
                ("Secret", secret.into()),
                (
                    "Trigger on",
                    format!(
                        "Custom events: {}",
                        pick(
                            "Push",
                            "",
                            "Pull request: Modification, Pull request: Synchronized"
                        )
                    ),
                ),
                ("Active", "yes".into()),
            ],
        ),
        Provider::BitbucketCloud => (
            repository.web_page(&format!("{path}/admin/webhooks")),
            "Repository settings > Webhooks > Add webhook",
            vec![
                ("Title", "acrtask".into()),
                ("URL", url.into()),
                ("Secret", secret.into()),
                ("Status", "Active".into()),
                (
                    "Triggers",
                    pick(
                        "Repository: Push",
                        "",
                        "Pull Request: Created, Updated, Merged, Declined",
                    ),
                ),
            ],
        ),
        Provider::BitbucketServer => (
            repository.web_page(""),
            "the repository, Repository settings > Webhooks > Create webhook",
            vec![
                ("Name", "acrtask".into()),
                ("URL", url.into()),
                ("Secret", secret.into()),
                (
                    "Events",
                    pick(
                        "Repository: Push",
                        "",
                        "Pull Request: Opened, Source branch updated, Modified, Merged, Declined, Deleted",
                    ),
                ),
                ("Active", "yes".into()),
            ],
        ),
        Provider::AzureDevops => {
            // ORG/PROJECT/_git/NAME, or with SSH v3/ORG/PROJECT/NAME.
            let path = path.strip_prefix("v3/").unwrap_or(path);
            let project: Vec<&str> = path.split('/').take(2).collect();
            (
                repository.web_page(&format!("{}/_settings/serviceHooks", project.join("/"))),
                "Project settings > Service hooks > Create subscription > Web Hooks, once for each event",
                vec![
                    (
                        "Trigger on this type of event",
                        pick(
                            "Code pushed",
                            "",
                            "Pull request created, Pull request updated",
                        ),
                    ),
                    ("URL", url.into()),
                    ("Basic authentication username", "acrtask".into()),
                    ("Basic authentication password", secret.into()),
                    ("Resource details to send", "All".into()),
                ],
            )
        }
        Provider::Generic => (
            repository.web_page(path),
            "a program that receives the commits",
            vec![
                ("URL", url.into()),
                ("Content type", "application/json".into()),
                (
                    "Signature",
                    "Standard Webhooks: webhook-id, webhook-timestamp, webhook-signature".into(),
                ),
                ("Secret", secret.into()),
                (
                    "Body",
                    format!(
                        r#"{{"event":"push","repository":"{}","ref":"refs/heads/main","before":"...","after":"...","paths":["..."]}}"#,
                        repository.url
                    ),
                ),
            ],
        ),
    };
    Guide {
        page: page.trim_end_matches('/').to_owned(),
        way: way.into(),
        fields: fields
            .into_iter()
            .map(|(name, value)| (name.into(), value))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
