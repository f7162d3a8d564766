//! Azure DevOps Services and Server: service hooks of the kind "Web Hooks".
//!
//! Source: Microsoft's documentation, "Service hooks events". Deliveries are not signed: the
//! password of basic authentication is the secret, and the user name has no meaning. One push may
//! contain several refs, and lists no files.

use acrtask_model::Secret;
use http::HeaderMap;
use serde::Deserialize;

use super::ParsedDelivery;
use crate::{
    Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository, TagPush,
    event::{self, Ref},
    json::{or_default, parse},
    signature,
};

pub(super) fn verify(headers: &HeaderMap, secrets: &[&Secret]) -> Result<(), Rejection> {
    let password =
        signature::header_text(headers, "authorization").and_then(signature::basic_password);
    let password = password.ok_or(Rejection::MissingProof {
        missing: "the header `Authorization` with a password",
        help: "set a basic authentication password in the service hook",
    })?;
    if signature::matches_any_secret(secrets, &password) {
        return Ok(());
    }
    Err(Rejection::WrongProof {
        what: "the password",
    })
}

pub(super) fn parse_delivery(body: &[u8]) -> Result<ParsedDelivery, Rejection> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        event_type: String,
        #[serde(default)]
        id: Option<String>,
    }
    let Kind { event_type, id } = parse(body)?;
    let events = match event_type.as_str() {
        "git.push" => parse::<Hook<PushBody>>(body)?.resource.into_events()?,
        "git.pullrequest.created" | "git.pullrequest.updated" | "git.pullrequest.merged" => {
            vec![
                parse::<Hook<PullRequestBody>>(body)?
                    .resource
                    .into_event(&event_type)?,
            ]
        }
        other => {
            let shown: String = other.chars().take(60).collect();
            vec![Event::declined(format!(
                "`{}` starts no run",
                shown.escape_debug()
            ))]
        }
    };
    Ok(ParsedDelivery {
        id,
        kind: event_type,
        events,
    })
}

#[derive(Deserialize)]
struct Hook<T> {
    resource: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RepositoryBody {
    name: String,
    project: ProjectBody,
    #[serde(default)]
    remote_url: Option<String>,
    #[serde(default)]
    ssh_url: Option<String>,
    #[serde(default)]
    default_branch: Option<String>,
}

#[derive(Deserialize)]
struct ProjectBody {
    name: String,
}

impl From<RepositoryBody> for Repository {
    fn from(body: RepositoryBody) -> Self {
        Self::new(format!("{}/{}", body.project.name, body.name))
            .with_urls([body.remote_url, body.ssh_url])
            .with_default_branch(body.default_branch)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PushBody {
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<CommitBody>,
    ref_updates: Vec<RefUpdate>,
    repository: RepositoryBody,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CommitBody {
    commit_id: String,
    #[serde(default, deserialize_with = "or_default")]
    comment: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefUpdate {
    name: String,
    old_object_id: String,
    new_object_id: String,
}

impl PushBody {
    fn into_events(self) -> Result<Vec<Event>, Rejection> {
        if self.ref_updates.is_empty() {
            return Ok(vec![Event::declined(
                "the push contains no branch and no tag",
            )]);
        }
        let repository: Repository = self.repository.into();
        // The list is newest first and covers all refs, so it is used only for a push of one ref.
        let alone = self.ref_updates.len() == 1;
        let commit = |body: CommitBody| {
            Ok(Commit {
                id: CommitId::parse_required(&body.commit_id)?,
                message: body.comment,
                changes: Vec::new(),
            })
        };
        let commits: Vec<Commit> = self
            .commits
            .into_iter()
            .rev()
            .map(commit)
            .collect::<Result<_, Rejection>>()?;
        let event = |update: RefUpdate| {
            let before = CommitId::parse_optional(&update.old_object_id)?;
            let after = CommitId::parse_optional(&update.new_object_id)?;
            let newest = commits
                .iter()
                .find(|commit| Some(&commit.id) == after.as_ref());
            let message = newest.map(|commit| commit.message.clone());
            let repository = repository.clone();
            Ok(match Ref::parse(&update.name)? {
                Ref::Branch(branch) => Event::Push(Push {
                    repository,
                    branch,
                    before,
                    after,
                    commits: if alone { commits.clone() } else { Vec::new() },
                    message,
                    forced: false,
                    incomplete: Some("Azure DevOps lists no files".into()),
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
        };
        self.ref_updates.into_iter().map(event).collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullRequestBody {
    pull_request_id: u64,
    #[serde(default)]
    status: String,
    #[serde(default)]
    title: String,
    source_ref_name: String,
    target_ref_name: String,
    #[serde(default)]
    last_merge_source_commit: Option<CommitBody>,
    repository: RepositoryBody,
    #[serde(default)]
    fork_source: Option<Fork>,
}

#[derive(Deserialize)]
struct Fork {
    #[serde(default)]
    repository: Option<RepositoryBody>,
}

impl PullRequestBody {
    fn into_event(self, kind: &str) -> Result<Event, Rejection> {
        let action = match self.status.as_str() {
            "completed" => PullRequestAction::Closed { merged: true },
            "abandoned" => PullRequestAction::Closed { merged: false },
            _ if kind == "git.pullrequest.created" => PullRequestAction::Opened,
            _ if kind == "git.pullrequest.updated" => PullRequestAction::Updated,
            _ => {
                return Ok(Event::declined("a merge attempt adds no commits"));
            }
        };
        let base_repository: Repository = self.repository.into();
        let from_fork = self.fork_source.is_some();
        let head_repository = match self.fork_source {
            Some(fork) => fork.repository.map(Into::into),
            None => Some(base_repository.clone()),
        };
        let head = self.last_merge_source_commit;
        Ok(Event::PullRequest(Box::new(PullRequest {
            number: self.pull_request_id,
            action,
            title: self.title,
            base_repository,
            base_branch: event::parse_branch(&self.target_ref_name)?,
            head_repository,
            head_branch: event::parse_branch(&self.source_ref_name)?,
            head: head
                .map(|commit| CommitId::parse_required(&commit.commit_id))
                .transpose()?,
            from_fork,
            files: None,
        })))
    }
}
