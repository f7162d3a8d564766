//! Bitbucket Cloud. Signatures are those of Bitbucket Server; the payloads differ.
//!
//! Source: Atlassian's documentation, "Event payloads". One push may contain several branches and
//! tags. It lists at most five commits of each, and no files.

use http::HeaderMap;
use serde::Deserialize;

use super::{ParsedDelivery, bitbucket_server::event_kind, github};
use crate::{
    Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository, TagPush,
    event,
    json::{self, or_default, parse},
    signature,
};

pub(super) fn parse_delivery(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<ParsedDelivery, Rejection> {
    let kind = event_kind(headers)?;
    let events = match kind {
        "repo:push" => parse::<PushBody>(body)?.into_events()?,
        "pullrequest:created" => parse_pull_request(body, PullRequestAction::Opened)?,
        "pullrequest:updated" => parse_pull_request(body, PullRequestAction::Updated)?,
        "pullrequest:fulfilled" => {
            parse_pull_request(body, PullRequestAction::Closed { merged: true })?
        }
        "pullrequest:rejected" => {
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
        id: signature::header_text(headers, "x-request-uuid").map(str::to_owned),
        kind: kind.to_owned(),
        events,
    })
}

#[derive(Deserialize)]
struct RepositoryBody {
    full_name: String,
    #[serde(default)]
    mainbranch: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl From<RepositoryBody> for Repository {
    fn from(body: RepositoryBody) -> Self {
        // There is one Bitbucket Cloud, and its deliveries contain no URLs for `git clone`.
        let urls = [
            format!("https://bitbucket.org/{}.git", body.full_name),
            format!("git@bitbucket.org:{}.git", body.full_name),
        ];
        Self::new(body.full_name)
            .with_urls(urls.map(Some))
            .with_default_branch(body.mainbranch.map(|branch| branch.name))
    }
}

#[derive(Deserialize)]
struct PushBody {
    push: Changes,
    repository: RepositoryBody,
}

#[derive(Deserialize)]
struct Changes {
    changes: Vec<ChangeBody>,
}

#[derive(Deserialize)]
struct ChangeBody {
    #[serde(default)]
    new: Option<RefBody>,
    #[serde(default)]
    old: Option<RefBody>,
    #[serde(default, deserialize_with = "or_default")]
    forced: bool,
    #[serde(default, deserialize_with = "or_default")]
    commits: Vec<CommitBody>,
}

#[derive(Deserialize)]
struct RefBody {
    r#type: String,
    name: String,
    #[serde(default)]
    target: Option<CommitBody>,
}

#[derive(Deserialize)]
struct CommitBody {
    hash: String,
    #[serde(default, deserialize_with = "or_default")]
    message: String,
}

impl PushBody {
    fn into_events(self) -> Result<Vec<Event>, Rejection> {
        if self.push.changes.is_empty() {
            return Ok(vec![Event::declined(
                "the push contains no branch and no tag",
            )]);
        }
        let repository: Repository = self.repository.into();
        let changes = self.push.changes.into_iter();
        changes
            .map(|change| change.into_event(repository.clone()))
            .collect()
    }
}

impl ChangeBody {
    fn into_event(self, repository: Repository) -> Result<Event, Rejection> {
        let Some(either) = self.new.as_ref().or(self.old.as_ref()) else {
            return Ok(Event::declined("the push contains no branch and no tag"));
        };
        let (kind, name) = (either.r#type.clone(), event::parse_ref_name(&either.name)?);
        let moved = self.old.is_some();
        let gone = self.new.is_none();
        let before = target_of(self.old)?.map(|(commit, _)| commit);
        let (after, message) = target_of(self.new)?.unzip();
        if after.is_none() && !gone {
            return Err(Rejection::not_understood("missing field `new.target`"));
        }
        match kind.as_str() {
            "tag" | "annotated_tag" => Ok(Event::Tag(TagPush {
                repository,
                tag: name,
                after,
                moved,
                message,
            })),
            "branch" | "named_branch" => {
                let commit = |body: CommitBody| {
                    Ok(Commit {
                        id: CommitId::parse_required(&body.hash)?,
                        message: body.message,
                        changes: Vec::new(),
                    })
                };
                // Bitbucket lists commits newest first.
                let commits = self.commits.into_iter().rev().map(commit);
                Ok(Event::Push(Push {
                    repository,
                    branch: name,
                    before,
                    after,
                    commits: commits.collect::<Result<_, Rejection>>()?,
                    message,
                    forced: self.forced,
                    incomplete: Some("Bitbucket lists no files".into()),
                    files: None,
                }))
            }
            other => Ok(Event::declined(format!(
                "`{}` is neither a branch nor a tag",
                other.escape_debug()
            ))),
        }
    }
}

/// Returns the commit that a ref points to, with its message.
fn target_of(side: Option<RefBody>) -> Result<Option<(CommitId, String)>, Rejection> {
    let Some(target) = side.and_then(|side| side.target) else {
        return Ok(None);
    };
    Ok(Some((
        CommitId::parse_required(&target.hash)?,
        target.message,
    )))
}

#[derive(Deserialize)]
struct PullRequestBody {
    pullrequest: PullRequestPart,
    repository: RepositoryBody,
}

#[derive(Deserialize)]
struct PullRequestPart {
    id: u64,
    #[serde(default)]
    title: String,
    source: Side,
    destination: Side,
}

#[derive(Deserialize)]
struct Side {
    branch: Named,
    #[serde(default)]
    commit: Option<CommitBody>,
    #[serde(default)]
    repository: Option<RepositoryBody>,
}

fn parse_pull_request(body: &[u8], action: PullRequestAction) -> Result<Vec<Event>, Rejection> {
    let body: PullRequestBody = parse(body)?;
    let PullRequestPart {
        id,
        title,
        source,
        destination,
    } = body.pullrequest;
    let base_repository: Repository = body.repository.into();
    let head_repository: Option<Repository> = source.repository.map(Into::into);
    let from_fork = github::is_fork(head_repository.as_ref(), &base_repository);
    let head = source
        .commit
        .map(|commit| CommitId::parse_required(&commit.hash))
        .transpose()?;
    Ok(vec![Event::PullRequest(Box::new(PullRequest {
        number: id,
        action,
        title,
        base_repository,
        base_branch: event::parse_branch(&destination.branch.name)?,
        head_repository,
        head_branch: event::parse_branch(&source.branch.name)?,
        head,
        from_fork,
        files: None,
    }))])
}
