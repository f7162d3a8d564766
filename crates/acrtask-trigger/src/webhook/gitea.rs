//! Gitea and its fork Forgejo, with the same payloads.
//!
//! Source: the documentation of Gitea and of Forgejo, "Webhooks". A push lists few commits (a
//! setting of the server) and their total number. Neither forge reports a forced push.

use acrtask_model::Secret;
use http::HeaderMap;
use serde::Deserialize;

use super::{ParsedDelivery, github, incomplete_reason};
use crate::{
    Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository, TagPush,
    event::{self, Ref},
    json::{self, or_default, parse},
    signature,
};

/// Header names of one of the two forges.
pub(super) struct Headers {
    signatures: &'static [&'static str],
    events: &'static [&'static str],
    deliveries: &'static [&'static str],
    missing: Rejection,
    no_event: Rejection,
}

pub(super) const GITEA: Headers = Headers {
    signatures: &["x-gitea-signature", "x-hub-signature-256"],
    events: &["x-gitea-event"],
    deliveries: &["x-gitea-delivery"],
    missing: Rejection::MissingProof {
        missing: "the header `X-Gitea-Signature`",
        help: "set a secret in the webhook's settings",
    },
    no_event: Rejection::MissingHeader {
        header: "X-Gitea-Event",
    },
};

pub(super) const FORGEJO: Headers = Headers {
    signatures: &[
        "x-forgejo-signature",
        "x-gitea-signature",
        "x-hub-signature-256",
    ],
    events: &["x-forgejo-event", "x-gitea-event"],
    deliveries: &["x-forgejo-delivery", "x-gitea-delivery"],
    missing: Rejection::MissingProof {
        missing: "the header `X-Forgejo-Signature`",
        help: "set a secret in the webhook's settings",
    },
    no_event: Rejection::MissingHeader {
        header: "X-Forgejo-Event",
    },
};

fn first_header<'h>(headers: &'h HeaderMap, names: &[&str]) -> Option<&'h str> {
    names
        .iter()
        .find_map(|name| signature::header_text(headers, name))
}

pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
    names: &Headers,
) -> Result<(), Rejection> {
    let signature = first_header(headers, names.signatures).ok_or(names.missing.clone())?;
    signature::verify_hex(secrets, body, signature, "the signature in the headers")
}

pub(super) fn parse_delivery(
    headers: &HeaderMap,
    body: &[u8],
    names: &Headers,
) -> Result<ParsedDelivery, Rejection> {
    let kind = first_header(headers, names.events).ok_or(names.no_event.clone())?;
    let body = github::json_payload(headers, body)?;
    let event = match kind {
        "push" => parse::<PushBody>(&body)?.into_event()?,
        "pull_request" | "pull_request_sync" => parse::<PullRequestBody>(&body)?.into_event()?,
        _ => {
            json::check_json(&body)?;
            event_without_commits(kind)
        }
    };
    Ok(ParsedDelivery {
        id: first_header(headers, names.deliveries).map(str::to_owned),
        kind: kind.to_owned(),
        events: vec![event],
    })
}

fn event_without_commits(kind: &str) -> Event {
    if kind == "create" {
        return Event::declined("`create` adds nothing to the `push` that is sent with it");
    }
    Event::declined(format!("`{}` starts no run", kind.escape_debug()))
}

#[derive(Deserialize)]
struct RepositoryBody {
    full_name: String,
    #[serde(default)]
    clone_url: Option<String>,
    #[serde(default)]
    ssh_url: Option<String>,
    #[serde(default)]
    default_branch: Option<String>,
}

impl From<RepositoryBody> for Repository {
    fn from(body: RepositoryBody) -> Self {
        Self::new(body.full_name)
            .with_urls([body.clone_url, body.ssh_url])
            .with_default_branch(body.default_branch)
    }
}

#[derive(Deserialize)]
struct CommitBody {
    id: String,
    #[serde(default)]
    message: String,
    // `null` if the server did not compute them: the changed files are unknown then.
    #[serde(default)]
    added: Option<Vec<String>>,
    #[serde(default)]
    modified: Option<Vec<String>>,
    #[serde(default)]
    removed: Option<Vec<String>>,
}

impl CommitBody {
    fn lists_files(&self) -> bool {
        self.added.is_some() || self.modified.is_some() || self.removed.is_some()
    }

    fn into_commit(self) -> Result<Commit, Rejection> {
        Ok(Commit {
            id: CommitId::parse_required(&self.id)?,
            message: self.message,
            changes: github::merge_changes(
                self.added.unwrap_or_default(),
                self.modified.unwrap_or_default(),
                self.removed.unwrap_or_default(),
            ),
        })
    }
}

#[derive(Deserialize)]
struct PushBody {
    r#ref: String,
    before: String,
    after: String,
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<CommitBody>,
    #[serde(default)]
    total_commits: Option<u64>,
    #[serde(default)]
    head_commit: Option<CommitBody>,
    repository: RepositoryBody,
}

impl PushBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let before = CommitId::parse_optional(&self.before)?;
        let after = CommitId::parse_optional(&self.after)?;
        let repository = self.repository.into();
        let head = self.head_commit.map(CommitBody::into_commit).transpose()?;
        let message = head.as_ref().map(|head| head.message.clone());
        let branch = match Ref::parse(&self.r#ref)? {
            Ref::Branch(branch) => branch,
            Ref::Tag(tag) => {
                let commit = head.map(|head| head.id);
                return Ok(Event::Tag(TagPush {
                    repository,
                    tag,
                    after: after.map(|after| commit.unwrap_or(after)),
                    moved: before.is_some(),
                    message,
                }));
            }
            Ref::Other(name) => {
                return Ok(Event::declined(format!(
                    "`{name}` is neither a branch nor a tag"
                )));
            }
        };
        let named = self.commits.len();
        let total = self.total_commits.unwrap_or(0);
        let incomplete = incomplete_reason(before.is_none(), false, named).or_else(|| {
            if total > named as u64 {
                Some(format!("the sender lists {named} of {total} commits"))
            } else if !self.commits.iter().all(CommitBody::lists_files) {
                Some("the sender does not list the files of each commit".into())
            } else {
                None
            }
        });
        // Gitea lists commits newest first.
        let mut commits: Vec<_> = self
            .commits
            .into_iter()
            .map(CommitBody::into_commit)
            .collect::<Result<_, _>>()?;
        commits.reverse();
        Ok(Event::Push(Push {
            repository,
            branch,
            before,
            after,
            commits,
            message,
            forced: false,
            incomplete,
            files: None,
        }))
    }
}

#[derive(Deserialize)]
struct PullRequestBody {
    action: String,
    number: u64,
    pull_request: PullRequestPart,
    #[serde(default)]
    changes: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    #[serde(default)]
    r#ref: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct PullRequestPart {
    #[serde(default)]
    title: String,
    #[serde(default, deserialize_with = "or_default")]
    merged: bool,
    head: Side,
    base: Side,
}

#[derive(Deserialize)]
struct Side {
    r#ref: String,
    sha: String,
    #[serde(default)]
    repo: Option<RepositoryBody>,
}

impl PullRequestBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let retargeted = self.changes.is_some_and(|changes| changes.r#ref.is_some());
        let action = match self.action.as_str() {
            "opened" | "reopened" => PullRequestAction::Opened,
            "synchronized" => PullRequestAction::Updated,
            "edited" if retargeted => PullRequestAction::Updated,
            "closed" => PullRequestAction::Closed {
                merged: self.pull_request.merged,
            },
            other => return Ok(github::declined_action(other)),
        };
        let PullRequestPart {
            title, head, base, ..
        } = self.pull_request;
        let base_repository: Repository = base
            .repo
            .ok_or_else(|| Rejection::not_understood("missing field `pull_request.base.repo`"))?
            .into();
        let head_repository: Option<Repository> = head.repo.map(Into::into);
        let from_fork = github::is_fork(head_repository.as_ref(), &base_repository);
        Ok(Event::PullRequest(Box::new(PullRequest {
            number: self.number,
            action,
            title,
            base_repository,
            base_branch: event::parse_branch(&base.r#ref)?,
            head_repository,
            head_branch: event::parse_branch(&head.r#ref)?,
            head: CommitId::parse_optional(&head.sha)?,
            from_fork,
            files: None,
        })))
    }
}
