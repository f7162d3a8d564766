//! Deliveries of forges: verification of the sender, and the events of the body.
//!
//! Each forge has one file with two parts: verification of the raw bytes, and parsing of events.
//! An ignored event is an [`Event::Declined`] and not an error: the sender gets a 2xx, and a user
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

use crate::{Event, MAX_BODY, Rejection, signature};

/// Kind of forge that sends deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// GitHub and GitHub Enterprise: HMAC in `X-Hub-Signature-256`.
    GitHub,
    /// GitLab: a signature by Standard Webhooks, or the token in `X-Gitlab-Token`.
    GitLab,
    /// Gitea: HMAC in `X-Gitea-Signature` or `X-Hub-Signature-256`.
    Gitea,
    /// Forgejo: HMAC in `X-Forgejo-Signature`, or as for Gitea.
    Forgejo,
    /// Bitbucket Cloud: HMAC in `X-Hub-Signature`.
    BitbucketCloud,
    /// Bitbucket Server and Data Center: HMAC in `X-Hub-Signature`.
    BitbucketServer,
    /// Azure DevOps Services and Server: the password of basic authentication.
    AzureDevops,
    /// Any other sender: a signature by Standard Webhooks, and a body defined by this project.
    Generic,
}

impl Provider {
    /// All providers.
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

    /// Returns the name of the provider in URLs and settings.
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
                "no provider is named `{text}`; write one of {}",
                names.join(", ")
            )
        })
    }
}

/// A parsed delivery of a verified sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The sender's id, or a digest of kind and body if the sender sends none. Repetitions of one
    /// delivery have the same id.
    pub id: String,
    /// Kind of forge that sent the delivery.
    pub provider: Provider,
    /// The events in the sender's order. At least one.
    pub events: Vec<Event>,
    /// SHA-256 of the body. Most senders sign only the body, so a replay under another id has the
    /// same digest.
    pub body_sha256: String,
}

/// Result of parsing a verified body of a forge.
struct ParsedDelivery {
    /// The sender's id of the delivery.
    id: Option<String>,
    /// The kind of the delivery, as the sender names it.
    kind: String,
    events: Vec<Event>,
}

/// Verifies the sender of a delivery and parses its body. Any one of `secrets` suffices.
///
/// # Errors
/// [`Rejection`], which contains the HTTP status of the response.
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
    let secrets = signature::usable_secrets(secrets)?;
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
    parse_verified(provider, headers, body)
}

/// Parses a stored delivery whose sender was verified when it arrived.
///
/// # Errors
/// [`Rejection`] if the body is not the one that was accepted.
pub fn parse_verified(
    provider: Provider,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Delivery, Rejection> {
    let read = match provider {
        Provider::GitHub => github::parse_delivery(headers, body),
        Provider::GitLab => gitlab::parse_delivery(headers, body),
        Provider::Gitea => gitea::parse_delivery(headers, body, &gitea::GITEA),
        Provider::Forgejo => gitea::parse_delivery(headers, body, &gitea::FORGEJO),
        Provider::BitbucketCloud => bitbucket_cloud::parse_delivery(headers, body),
        Provider::BitbucketServer => bitbucket_server::parse_delivery(headers, body),
        Provider::AzureDevops => azure_devops::parse_delivery(body),
        Provider::Generic => {
            let id = signature::header_text(headers, "webhook-id").unwrap_or_default();
            generic::parse_delivery(id.to_owned(), body)
        }
    }?;
    let id = read
        .id
        .filter(|id| (1..=200).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic()));
    let id = id.unwrap_or_else(|| {
        let digest =
            signature::digest_parts(&[provider.name().as_bytes(), read.kind.as_bytes(), body]);
        format!("sha256:{digest}")
    });
    Ok(Delivery {
        id,
        provider,
        events: read.events,
        body_sha256: signature::sha256_hex(body),
    })
}

/// Returns why the commits of a push may not list all changed files, for every forge.
fn incomplete_reason(created: bool, forced: bool, commits: usize) -> Option<String> {
    if created {
        Some("the branch is new".into())
    } else if forced {
        Some("the forced push removed commits".into())
    } else if commits == 0 {
        Some("the sender lists no commits".into())
    } else {
        None
    }
}
