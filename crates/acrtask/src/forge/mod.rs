//! The forge of a repository: which one it is, and what is entered there so that it tells a server of commits.
//!
//! [`Repository::of`] and [`guide`] are pure; [`api`] enters it through the forge's own API.

pub(crate) mod api;

use acrtask_source::{ContextSpec, GitTransport};
use acrtask_trigger::{Provider, RepositoryUrl};
use serde::Serialize;
use url::Url;

use crate::error::CliError;

/// A repository at a forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// As it is cloned, without a password.
    pub(crate) url: String,
    /// Where the forge's pages are: `https://HOST`.
    pub(crate) web: Url,
    /// `owner/name`, without `.git`.
    pub(crate) path: String,
    /// What the forge is.
    pub(crate) provider: Provider,
}

impl Repository {
    /// The repository that a context names. `provider` is what the user says that its host is.
    ///
    /// # Errors
    /// It names none, or one whose forge is not known.
    pub(crate) fn of(context: Option<&str>, provider: Option<Provider>) -> Result<Self, CliError> {
        let none = || {
            CliError::usage("the task's files come from no git repository, so no forge tells of it")
                .help("give it one: `acrtask task update NAME --context https://HOST/REPOSITORY.git#BRANCH`")
        };
        let spec = ContextSpec::parse(context.ok_or_else(none)?).map_err(|_| none())?;
        let ContextSpec::Git(git) = spec else {
            return Err(none());
        };
        if git.transport == GitTransport::File {
            return Err(none());
        }
        let (host, port, path) = split(&git.url).ok_or_else(none)?;
        // SSH has a port of its own.
        let web = match git.transport {
            GitTransport::Http => format!("http://{host}{}", port_text(port)),
            GitTransport::Https => format!("https://{host}{}", port_text(port)),
            _ => format!("https://{}", host_of_pages(&host)),
        };
        let provider = provider.or_else(|| guess(&host)).ok_or_else(|| {
            CliError::usage(format!("it is not known what kind of forge {host} is"))
                .help("say it: `--provider github`, gitlab, gitea, forgejo, bitbucket-server, azure-devops or generic")
        })?;
        Ok(Self {
            web: Url::parse(&web).map_err(|_| none())?,
            path: path.trim_end_matches(".git").to_owned(),
            url: git.url,
            provider,
        })
    }

    /// Whether `url` is another spelling of it.
    pub(crate) fn is(&self, url: &str) -> bool {
        let own = RepositoryUrl::parse(&self.url);
        own.is_some() && own == RepositoryUrl::parse(url)
    }

    /// A name for its webhook.
    pub(crate) fn name(&self) -> String {
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

    fn page(&self, path: &str) -> String {
        format!("{}/{path}", self.web.as_str().trim_end_matches('/'))
    }
}

/// Host, port and path of a URL, or of git's short form for SSH.
fn split(url: &str) -> Option<(String, Option<u16>, String)> {
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

/// Some forges have other hosts for SSH than for people.
fn host_of_pages(host: &str) -> &str {
    match host {
        "ssh.github.com" => "github.com",
        "altssh.gitlab.com" => "gitlab.com",
        "altssh.bitbucket.org" => "bitbucket.org",
        "ssh.dev.azure.com" | "vs-ssh.visualstudio.com" => "dev.azure.com",
        other => other,
    }
}

/// What a host is: the large ones are known, others often say it in their names.
fn guess(host: &str) -> Option<Provider> {
    let host = host_of_pages(host).to_lowercase();
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

/// What the forge is to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Tags, beside commits.
    pub(crate) tags: bool,
    /// Pull requests, beside commits.
    pub(crate) pull_requests: bool,
}

/// What to enter where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Guide {
    /// The forge's page for it.
    pub(crate) page: String,
    /// How to come to the right form there.
    pub(crate) way: String,
    /// Each field of the form, and what goes into it.
    pub(crate) fields: Vec<(String, String)>,
}

/// What to enter at the forge of `repository` so that it sends deliveries to `url`.
pub(crate) fn guide(
    repository: &Repository,
    url: &str,
    secret: Option<&str>,
    wanted: Wanted,
) -> Guide {
    let secret = secret.unwrap_or("the one that the webhook was made with");
    let pick = |push: &str, tags: &str, requests: &str| {
        let mut words = vec![push];
        words.extend((wanted.tags && !tags.is_empty()).then_some(tags));
        words.extend(wanted.pull_requests.then_some(requests));
        words.join(", ")
    };
    let path = &repository.path;
    let (page, way, fields): (String, &str, Vec<(&str, String)>) = match repository.provider {
        Provider::GitHub => (
            repository.page(&format!("{path}/settings/hooks/new")),
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
            repository.page(&format!("{path}/-/hooks")),
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
            repository.page(&format!(
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
            repository.page(&format!("{path}/admin/webhooks")),
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
            repository.page(""),
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
            // ORG/PROJECT/_git/NAME; by SSH v3/ORG/PROJECT/NAME.
            let path = path.strip_prefix("v3/").unwrap_or(path);
            let project: Vec<&str> = path.split('/').take(2).collect();
            (
                repository.page(&format!("{}/_settings/serviceHooks", project.join("/"))),
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
            repository.page(path),
            "whatever knows of commits there",
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
