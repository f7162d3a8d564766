//! Bitbucket Server and Data Center, and the signature that Bitbucket Cloud shares.
//!
//! Source: Atlassian's documentation, "Event payload" and "Manage webhooks". One push may contain
//! several branches and tags. It lists no files and does not report force. Old servers send no URLs
//! for `git clone`: the names of project and repository identify the repository then.

use acrtask_model::Secret;
use http::HeaderMap;
use serde::Deserialize;

use super::{ParsedDelivery, github};
use crate::{
    CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository, TagPush,
    event::{self, Ref},
    json::{self, parse},
    signature,
};

pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
) -> Result<(), Rejection> {
    let signature =
        signature::header_text(headers, "x-hub-signature").ok_or(Rejection::MissingProof {
            missing: "the header `X-Hub-Signature`",
            help: "set a secret in the webhook's settings",
        })?;
    signature::verify_hex(
        secrets,
        body,
        signature,
        "the signature in `X-Hub-Signature`",
    )
}

/// Returns the kind of the event.
pub(super) fn event_kind(headers: &HeaderMap) -> Result<&str, Rejection> {
    signature::header_text(headers, "x-event-key").ok_or(Rejection::MissingHeader {
        header: "X-Event-Key",
    })
}

pub(super) fn parse_delivery(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<ParsedDelivery, Rejection> {
    let kind = event_kind(headers)?;
    let events = match kind {
        "diagnostics:ping" => {
            json::check_json(body)?;
            vec![Event::Ping]
        }
        "repo:refs_changed" => parse::<PushBody>(body)?.into_events()?,
        "pr:opened" | "pr:reopened" => parse_pull_request(body, PullRequestAction::Opened)?,
        "pr:from_ref_updated" | "pr:to_ref_updated" => {
            parse_pull_request(body, PullRequestAction::Updated)?
        }
        "pr:merged" => parse_pull_request(body, PullRequestAction::Closed { merged: true })?,
        "pr:declined" | "pr:deleted" => {
            parse_pull_request(body, PullRequestAction::Closed { merged: false })?
        }
        _ => {
            json::check_json(body)?;
            vec![Event::declined(format!(
                "`{}` starts no run",
                kind.escape_debug()
            ))]
        }
    };
    Ok(ParsedDelivery {
        id: signature::header_text(headers, "x-request-id").map(str::to_owned),
        kind: kind.to_owned(),
        events,
    })
}

#[derive(Deserialize)]
struct RepositoryBody {
    slug: String,
    project: ProjectBody,
    #[serde(default)]
    links: Option<Links>,
}

#[derive(Deserialize)]
struct ProjectBody {
    key: String,
}

#[derive(Deserialize)]
struct Links {
    #[serde(default)]
    clone: Option<Vec<Link>>,
}

#[derive(Deserialize)]
struct Link {
    href: String,
}

impl From<RepositoryBody> for Repository {
    fn from(body: RepositoryBody) -> Self {
        let links = body.links.and_then(|links| links.clone).unwrap_or_default();
        Self::new(format!("{}/{}", body.project.key, body.slug))
            .with_urls(links.into_iter().map(|link| Some(link.href)))
    }
}

#[derive(Deserialize)]
struct PushBody {
    repository: RepositoryBody,
    changes: Vec<ChangeBody>,
    #[serde(default, rename = "toCommit")]
    to_commit: Option<CommitBody>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChangeBody {
    r#ref: RefBody,
    from_hash: String,
    to_hash: String,
}

#[derive(Deserialize)]
struct RefBody {
    id: String,
}

#[derive(Deserialize)]
struct CommitBody {
    id: String,
    #[serde(default)]
    message: Option<String>,
}

impl PushBody {
    fn into_events(self) -> Result<Vec<Event>, Rejection> {
        if self.changes.is_empty() {
            return Ok(vec![Event::declined(
                "the push contains no branch and no tag",
            )]);
        }
        let repository: Repository = self.repository.into();
        let changes = self.changes.into_iter();
        changes
            .map(|change| {
                let repository = repository.clone();
                let before = CommitId::parse_optional(&change.from_hash)?;
                let after = CommitId::parse_optional(&change.to_hash)?;
                let newest = self.to_commit.as_ref().filter(|commit| {
                    after
                        .as_ref()
                        .is_some_and(|after| after.as_str() == commit.id)
                });
                let message = newest.and_then(|commit| commit.message.clone());
                Ok(match Ref::parse(&change.r#ref.id)? {
                    Ref::Branch(branch) => Event::Push(Push {
                        repository,
                        branch,
                        before,
                        after,
                        commits: Vec::new(),
                        message,
                        forced: false,
                        incomplete: Some("Bitbucket lists no files".into()),
                        files: None,
                    }),
                    Ref::Tag(tag) => Event::Tag(TagPush {
                        repository,
                        tag,
                        after,
                        moved: before.is_some(),
                        message,
                    }),
                    Ref::Other(name) => {
                        Event::declined(format!("`{name}` is neither a branch nor a tag"))
                    }
                })
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct PullRequestBody {
    #[serde(rename = "pullRequest")]
    pull_request: PullRequestPart,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullRequestPart {
    id: u64,
    #[serde(default)]
    title: String,
    from_ref: Side,
    to_ref: Side,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    id: String,
    latest_commit: String,
    repository: RepositoryBody,
}

fn parse_pull_request(body: &[u8], action: PullRequestAction) -> Result<Vec<Event>, Rejection> {
    let PullRequestPart {
        id,
        title,
        from_ref,
        to_ref,
    } = parse::<PullRequestBody>(body)?.pull_request;
    let base_repository: Repository = to_ref.repository.into();
    let head_repository: Repository = from_ref.repository.into();
    let from_fork = github::is_fork(Some(&head_repository), &base_repository);
    Ok(vec![Event::PullRequest(Box::new(PullRequest {
        number: id,
        action,
        title,
        base_repository,
        base_branch: event::parse_branch(&to_ref.id)?,
        head_repository: Some(head_repository),
        head_branch: event::parse_branch(&from_ref.id)?,
        head: CommitId::parse_optional(&from_ref.latest_commit)?,
        from_fork,
        files: None,
    }))])
}
