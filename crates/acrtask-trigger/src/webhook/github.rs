//! GitHub and GitHub Enterprise.
//!
//! Source: GitHub's documentation, "Webhook events and payloads" and "Validating webhook
//! deliveries". A push lists at most 2,048 commits with 3,000 files each; old versions of GitHub
//! Enterprise list at most 20 commits.

use std::borrow::Cow;

use acrtask_model::Secret;
use http::HeaderMap;
use serde::Deserialize;

use super::{ParsedDelivery, incomplete_reason};
use crate::{
    Change, Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository,
    TagPush,
    event::{self, Ref},
    json::{self, or_default, parse},
    signature,
};

const MAX_COMMITS: usize = 2048;
const MAX_COMMITS_OF_ENTERPRISE: usize = 20;
const MAX_FILES: usize = 3000;

pub(crate) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
) -> Result<(), Rejection> {
    let signature =
        signature::header_text(headers, "x-hub-signature-256").ok_or(Rejection::MissingProof {
            missing: "the header `X-Hub-Signature-256`",
            help: "set a secret in the webhook's settings",
        })?;
    signature::verify_hex(
        secrets,
        body,
        signature,
        "the signature in `X-Hub-Signature-256`",
    )
}

pub(super) fn parse_delivery(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<ParsedDelivery, Rejection> {
    let kind =
        signature::header_text(headers, "x-github-event").ok_or(Rejection::MissingHeader {
            header: "X-GitHub-Event",
        })?;
    let body = json_payload(headers, body)?;
    let enterprise = headers.contains_key("x-github-enterprise-host");
    let event = match kind {
        "push" => parse::<PushBody>(&body)?.into_event(enterprise)?,
        "pull_request" => parse::<PullRequestBody>(&body)?.into_event()?,
        _ => {
            json::check_json(&body)?;
            event_without_commits(kind)
        }
    };
    Ok(ParsedDelivery {
        id: signature::header_text(headers, "x-github-delivery").map(str::to_owned),
        kind: kind.to_owned(),
        events: vec![event],
    })
}

fn event_without_commits(kind: &str) -> Event {
    match kind {
        "ping" => Event::Ping,
        "create" | "delete" => Event::declined(format!(
            "`{kind}` adds nothing to the `push` that is sent with it"
        )),
        "registry_package" | "package" => Event::declined(format!(
            "`{kind}` belongs to a webhook for registry pushes, not to one for commits"
        )),
        _ => Event::declined(format!("`{}` starts no run", kind.escape_debug())),
    }
}

/// Returns the JSON: the body, or the field `payload` of a form, by the settings of the webhook.
pub(crate) fn json_payload<'b>(
    headers: &HeaderMap,
    body: &'b [u8],
) -> Result<Cow<'b, [u8]>, Rejection> {
    let form = signature::header_text(headers, "content-type")
        .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
    if !form {
        return Ok(Cow::Borrowed(body));
    }
    let payload = url::form_urlencoded::parse(body).find(|(name, _)| name == "payload");
    let (_, payload) =
        payload.ok_or_else(|| Rejection::not_understood("the form has no field `payload`"))?;
    Ok(Cow::Owned(payload.into_owned().into_bytes()))
}

#[derive(Deserialize)]
struct RepositoryBody {
    full_name: String,
    #[serde(default)]
    clone_url: Option<String>,
    #[serde(default)]
    ssh_url: Option<String>,
    #[serde(default)]
    html_url: Option<String>,
    #[serde(default)]
    default_branch: Option<String>,
}

impl From<RepositoryBody> for Repository {
    fn from(body: RepositoryBody) -> Self {
        Self::new(body.full_name)
            .with_urls([body.clone_url.or(body.html_url), body.ssh_url])
            .with_default_branch(body.default_branch)
    }
}

#[derive(Deserialize)]
struct CommitBody {
    id: String,
    #[serde(default)]
    message: String,
    #[serde(default, deserialize_with = "or_default")]
    added: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    modified: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    removed: Vec<String>,
}

/// Merges the three lists of files of GitHub, GitLab and Gitea.
pub(super) fn merge_changes(
    added: Vec<String>,
    modified: Vec<String>,
    removed: Vec<String>,
) -> Vec<(String, Change)> {
    let with = |paths: Vec<String>, change| paths.into_iter().map(move |path| (path, change));
    with(added, Change::Added)
        .chain(with(modified, Change::Modified))
        .chain(with(removed, Change::Removed))
        .collect()
}

impl CommitBody {
    fn into_commit(self) -> Result<Commit, Rejection> {
        Ok(Commit {
            id: CommitId::parse_required(&self.id)?,
            message: self.message,
            changes: merge_changes(self.added, self.modified, self.removed),
        })
    }
}

#[derive(Deserialize)]
struct PushBody {
    r#ref: String,
    before: String,
    after: String,
    #[serde(default)]
    forced: bool,
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<CommitBody>,
    #[serde(default)]
    head_commit: Option<CommitBody>,
    repository: RepositoryBody,
}

impl PushBody {
    fn into_event(self, enterprise: bool) -> Result<Event, Rejection> {
        let before = CommitId::parse_optional(&self.before)?;
        let after = CommitId::parse_optional(&self.after)?;
        let repository = self.repository.into();
        let head = self.head_commit.map(CommitBody::into_commit).transpose()?;
        let message = head.as_ref().map(|head| head.message.clone());
        let branch = match Ref::parse(&self.r#ref)? {
            Ref::Branch(branch) => branch,
            Ref::Tag(tag) => {
                // `after` of an annotated tag is the tag object.
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
        let limit = if enterprise {
            MAX_COMMITS_OF_ENTERPRISE
        } else {
            MAX_COMMITS
        };
        let commits: Vec<_> = self
            .commits
            .into_iter()
            .map(CommitBody::into_commit)
            .collect::<Result<_, _>>()?;
        let incomplete =
            incomplete_reason(before.is_none(), self.forced, commits.len()).or_else(|| {
                if commits.len() >= limit {
                    Some(format!("GitHub lists at most {limit} commits"))
                } else if commits
                    .iter()
                    .any(|commit| commit.changes.len() >= MAX_FILES)
                {
                    Some(format!(
                        "GitHub lists at most {MAX_FILES} files of a commit"
                    ))
                } else {
                    None
                }
            });
        Ok(Event::Push(Push {
            repository,
            branch,
            before,
            after,
            commits,
            message,
            forced: self.forced,
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
    base: Option<serde::de::IgnoredAny>,
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
        let retargeted = self.changes.is_some_and(|changes| changes.base.is_some());
        let action = match self.action.as_str() {
            "opened" | "reopened" => PullRequestAction::Opened,
            "synchronize" => PullRequestAction::Updated,
            "edited" if retargeted => PullRequestAction::Updated,
            "closed" => PullRequestAction::Closed {
                merged: self.pull_request.merged,
            },
            other => return Ok(declined_action(other)),
        };
        let PullRequestPart {
            title, head, base, ..
        } = self.pull_request;
        let base_repository: Repository = base
            .repo
            .ok_or_else(|| Rejection::not_understood("missing field `pull_request.base.repo`"))?
            .into();
        let head_repository: Option<Repository> = head.repo.map(Into::into);
        let from_fork = is_fork(head_repository.as_ref(), &base_repository);
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

/// Returns `true` if the commits are in another repository or in a deleted one.
pub(super) fn is_fork(head: Option<&Repository>, base: &Repository) -> bool {
    head.is_none_or(|head| !head.full_name.eq_ignore_ascii_case(&base.full_name))
}

pub(super) fn declined_action(action: &str) -> Event {
    let shown: String = action.chars().take(60).collect();
    Event::declined(format!(
        "`{}` of a pull request adds no commits",
        shown.escape_debug()
    ))
}
