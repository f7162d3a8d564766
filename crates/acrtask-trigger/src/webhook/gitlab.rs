//! GitLab: gitlab.com and own instances; webhooks of projects and groups, and system hooks.
//!
//! Source: GitLab's documentation, "Webhooks" and "Webhook events". A push lists at most 20 commits
//! and their total number. GitLab does not report a forced push: a branch that was rewound and has
//! new commits looks like a branch with only new commits.

use acrtask_model::Secret;
use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;

use super::{ParsedDelivery, github, incomplete_reason};
use crate::{
    Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository, TagPush,
    event::{self, Ref},
    json::{or_default, parse},
    signature,
};

pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
    now: Timestamp,
) -> Result<(), Rejection> {
    if headers.contains_key("webhook-signature") {
        return signature::verify_standard_webhook(secrets, headers, body, now).map(drop);
    }
    let token =
        signature::header_text(headers, "x-gitlab-token").ok_or(Rejection::MissingProof {
            missing: "the header `X-Gitlab-Token`",
            help: "set a signing token or a secret token in the webhook's settings",
        })?;
    if signature::matches_any_secret(secrets, token) {
        return Ok(());
    }
    Err(Rejection::WrongProof {
        what: "the token in `X-Gitlab-Token`",
    })
}

pub(super) fn parse_delivery(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<ParsedDelivery, Rejection> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(default)]
        object_kind: Option<String>,
        #[serde(default)]
        event_name: Option<String>,
    }
    let kind: Kind = parse(body)?;
    let kind = kind
        .object_kind
        .or(kind.event_name)
        .ok_or_else(|| Rejection::not_understood("missing field `object_kind`"))?;
    let event = match kind.as_str() {
        "push" | "tag_push" => parse::<PushBody>(body)?.into_event()?,
        "merge_request" => parse::<MergeRequestBody>(body)?.into_event()?,
        "repository_update" => {
            Event::declined("`repository_update` adds nothing to the `push` that is sent with it")
        }
        other => {
            let shown: String = other.chars().take(60).collect();
            Event::declined(format!("`{}` starts no run", shown.escape_debug()))
        }
    };
    // All attempts of one delivery have the same id, also the UUID of old servers.
    let id = [
        "webhook-id",
        "idempotency-key",
        "x-gitlab-webhook-uuid",
        "x-gitlab-event-uuid",
    ]
    .into_iter()
    .find_map(|name| signature::header_text(headers, name));
    Ok(ParsedDelivery {
        id: id.map(str::to_owned),
        kind,
        events: vec![event],
    })
}

#[derive(Deserialize)]
struct ProjectBody {
    path_with_namespace: String,
    #[serde(default)]
    git_http_url: Option<String>,
    #[serde(default)]
    git_ssh_url: Option<String>,
    #[serde(default)]
    default_branch: Option<String>,
}

impl From<ProjectBody> for Repository {
    fn from(body: ProjectBody) -> Self {
        Self::new(body.path_with_namespace)
            .with_urls([body.git_http_url, body.git_ssh_url])
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

#[derive(Deserialize)]
struct PushBody {
    r#ref: String,
    before: String,
    after: String,
    /// The commit. `after` of an annotated tag is the tag object.
    #[serde(default)]
    checkout_sha: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<CommitBody>,
    #[serde(default)]
    total_commits_count: Option<u64>,
    project: ProjectBody,
}

impl PushBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let before = CommitId::parse_optional(&self.before)?;
        let mut after = CommitId::parse_optional(&self.after)?;
        if let (Some(_), Some(commit)) = (&after, &self.checkout_sha) {
            after = CommitId::parse_optional(commit)?;
        }
        let repository = self.project.into();
        let commit = |body: CommitBody| {
            Ok(Commit {
                id: CommitId::parse_required(&body.id)?,
                message: body.message,
                changes: github::merge_changes(body.added, body.modified, body.removed),
            })
        };
        let commits: Vec<Commit> = self
            .commits
            .into_iter()
            .map(commit)
            .collect::<Result<_, Rejection>>()?;
        let newest = commits
            .iter()
            .find(|commit| Some(&commit.id) == after.as_ref());
        let message = newest
            .or(commits.last())
            .map(|commit| commit.message.clone());
        Ok(match Ref::parse(&self.r#ref)? {
            Ref::Tag(tag) => Event::Tag(TagPush {
                repository,
                tag,
                after,
                moved: before.is_some(),
                message,
            }),
            Ref::Branch(branch) => {
                let total = self.total_commits_count.unwrap_or(0);
                let named = commits.len();
                let incomplete = incomplete_reason(before.is_none(), false, named).or_else(|| {
                    (total > named as u64)
                        .then(|| format!("GitLab lists {named} of {total} commits"))
                });
                Event::Push(Push {
                    repository,
                    branch,
                    before,
                    after,
                    commits,
                    message,
                    forced: false,
                    incomplete,
                    files: None,
                })
            }
            Ref::Other(name) => Event::declined(format!("`{name}` is neither a branch nor a tag")),
        })
    }
}

#[derive(Deserialize)]
struct MergeRequestBody {
    object_attributes: Attributes,
    #[serde(default)]
    changes: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    #[serde(default)]
    target_branch: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Attributes {
    iid: u64,
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    title: String,
    source_branch: String,
    target_branch: String,
    #[serde(default)]
    source: Option<ProjectBody>,
    target: ProjectBody,
    #[serde(default)]
    last_commit: Option<LastCommit>,
    /// Present only if new commits were pushed.
    #[serde(default)]
    oldrev: Option<String>,
}

#[derive(Deserialize)]
struct LastCommit {
    id: String,
}

impl MergeRequestBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let retargeted = self
            .changes
            .is_some_and(|changes| changes.target_branch.is_some());
        let request = self.object_attributes;
        let action = match request.action.as_deref() {
            Some("open" | "reopen") => PullRequestAction::Opened,
            Some("update") if request.oldrev.is_some() || retargeted => PullRequestAction::Updated,
            Some("close") => PullRequestAction::Closed { merged: false },
            Some("merge") => PullRequestAction::Closed { merged: true },
            other => return Ok(github::declined_action(other.unwrap_or("no action"))),
        };
        let head = request
            .last_commit
            .map(|commit| CommitId::parse_required(&commit.id))
            .transpose()?;
        let base_repository: Repository = request.target.into();
        let head_repository: Option<Repository> = request.source.map(Into::into);
        let from_fork = github::is_fork(head_repository.as_ref(), &base_repository);
        Ok(Event::PullRequest(Box::new(PullRequest {
            number: request.iid,
            action,
            title: request.title,
            base_repository,
            base_branch: event::parse_branch(&request.target_branch)?,
            head_repository,
            head_branch: event::parse_branch(&request.source_branch)?,
            head,
            from_fork,
            files: None,
        })))
    }
}
