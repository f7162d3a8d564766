//! Deliveries of forges: who sent one, and what happened.
//!
//! One file a forge. Each has two parts: how the sender proves itself, over the raw bytes, and what its events mean.
//! An event that starts nothing is no error but a [`Event::Declined`], so that the sender gets a 2xx and a person
//! finds the reason.

mod azure_devops;
mod bitbucket_cloud;
mod bitbucket_server;
mod generic;
mod gitea;
pub(crate) mod github;
mod gitlab;

use std::fmt;

use acrtask_model::Secret;
use http::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Event, MAX_BODY, Rejection, proof};

/// Who sends deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// GitHub and GitHub Enterprise: HMAC in `X-Hub-Signature-256`.
    GitHub,
    /// GitLab: a signature after Standard Webhooks, or the token in `X-Gitlab-Token`.
    GitLab,
    /// Gitea: HMAC in `X-Gitea-Signature` or `X-Hub-Signature-256`.
    Gitea,
    /// Forgejo: HMAC in `X-Forgejo-Signature`, or as Gitea.
    Forgejo,
    /// Bitbucket Cloud: HMAC in `X-Hub-Signature`.
    BitbucketCloud,
    /// Bitbucket Server and Data Center: HMAC in `X-Hub-Signature`.
    BitbucketServer,
    /// Azure DevOps Services and Server: the password of basic authentication.
    AzureDevops,
    /// Anything else: a signature after Standard Webhooks, and a body of our own.
    Generic,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::GitHub,
        Self::GitLab,
        Self::Gitea,
        Self::Forgejo,
        Self::BitbucketCloud,
        Self::BitbucketServer,
        Self::AzureDevops,
        Self::Generic,
    ];

    /// Its name in URLs and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
            Self::BitbucketCloud => "bitbucket-cloud",
            Self::BitbucketServer => "bitbucket-server",
            Self::AzureDevops => "azure-devops",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|provider| provider.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|provider| provider.name()).collect();
            format!(
                "no provider is called `{text}`; there are {}",
                names.join(", ")
            )
        })
    }
}

/// A delivery of a sender that has proved itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The sender's id of it; where there is none, a digest of what it is and of its body. The same id: the same
    /// delivery, sent once more.
    pub id: String,
    /// Who sent it.
    pub provider: Provider,
    /// What happened, in the order that the sender tells it; at least one.
    pub events: Vec<Event>,
    /// SHA-256 of the body. Most senders sign only that: a delivery that comes again under another id has the same.
    pub body_sha256: String,
}

/// What a forge's file finds in a delivery that has proved itself.
struct Read {
    /// The sender's id of the delivery.
    id: Option<String>,
    /// What kind of delivery it is, in the sender's words.
    kind: String,
    events: Vec<Event>,
}

/// Checks who sent a delivery and reads it. `secrets` are those of this webhook: any of them suffices.
///
/// # Errors
/// [`Rejection`], which knows the HTTP status to answer with.
pub fn verify_and_parse(
    provider: Provider,
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[Secret],
    now: Timestamp,
) -> Result<Delivery, Rejection> {
    if body.len() > MAX_BODY {
        return Err(Rejection::TooLarge { size: body.len() });
    }
    let secrets = proof::usable(secrets)?;
    match provider {
        Provider::GitHub => github::verify(headers, body, &secrets),
        Provider::GitLab => gitlab::verify(headers, body, &secrets, now),
        Provider::Gitea => gitea::verify(headers, body, &secrets, &gitea::GITEA),
        Provider::Forgejo => gitea::verify(headers, body, &secrets, &gitea::FORGEJO),
        Provider::BitbucketCloud | Provider::BitbucketServer => {
            bitbucket_server::verify(headers, body, &secrets)
        }
        Provider::AzureDevops => azure_devops::verify(headers, &secrets),
        Provider::Generic => generic::verify(headers, body, &secrets, now).map(drop),
    }?;
    read_proved(provider, headers, body)
}

/// Reads a delivery whose sender proved itself when it came, and that was kept since.
///
/// # Errors
/// [`Rejection`], where the body is not what it was when it was taken.
pub fn read_proved(
    provider: Provider,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Delivery, Rejection> {
    let read = match provider {
        Provider::GitHub => github::read(headers, body),
        Provider::GitLab => gitlab::read(headers, body),
        Provider::Gitea => gitea::read(headers, body, &gitea::GITEA),
        Provider::Forgejo => gitea::read(headers, body, &gitea::FORGEJO),
        Provider::BitbucketCloud => bitbucket_cloud::read(headers, body),
        Provider::BitbucketServer => bitbucket_server::read(headers, body),
        Provider::AzureDevops => azure_devops::read(body),
        Provider::Generic => {
            let id = proof::header(headers, "webhook-id").unwrap_or_default();
            generic::read(id.to_owned(), body)
        }
    }?;
    let id = read
        .id
        .filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic()));
    let id = id.unwrap_or_else(|| {
        let digest = proof::digest_of(&[provider.name().as_bytes(), read.kind.as_bytes(), body]);
        format!("sha256:{digest}")
    });
    Ok(Delivery {
        id,
        provider,
        events: read.events,
        body_sha256: proof::sha256(body),
    })
}

/// Why the paths of a branch's commits may not be all that changed; what all forges have in common.
fn incomplete(created: bool, forced: bool, commits: usize) -> Option<String> {
    if created {
        Some("the branch is new".into())
    } else if forced {
        Some("the push was forced, so commits went away too".into())
    } else if commits == 0 {
        Some("the sender names no commits".into())
    } else {
        None
    }
}
