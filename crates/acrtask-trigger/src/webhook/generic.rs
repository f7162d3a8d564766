//! Any other sender: a body defined here, signed by the Standard Webhooks specification.
//!
//! The signature covers the id and the time of the delivery and the raw bytes. A delivery can
//! therefore be repeated neither later nor under another id. The body is in camelCase, and unknown
//! keys are refused:
//!
//! ```json
//! {"event": "push", "repository": "https://git.example.com/team/app.git", "ref": "refs/heads/main",
//!  "before": "…", "after": "…", "message": "…", "paths": ["src/main.rs"]}
//! {"event": "pullRequest", "action": "opened", "number": 7, "title": "…", "repository": "…", "base": "main",
//!  "headRepository": "…", "head": "fix", "commit": "…"}
//! {"event": "ping"}
//! ```
//!
//! Without `before` the ref is new, without `after` it was deleted. Without `paths` the changed
//! files are unknown.

use acrtask_model::Secret;
use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;

use super::{ParsedDelivery, github};
use crate::{
    Change, Commit, CommitId, Event, PullRequest, PullRequestAction, Push, Rejection, Repository,
    RepositoryUrl, TagPush,
    event::{self, Ref},
    json::parse,
    signature,
};

pub(super) fn verify(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[&Secret],
    now: Timestamp,
) -> Result<String, Rejection> {
    signature::verify_standard_webhook(secrets, headers, body, now)
}

pub(super) fn parse_delivery(id: String, body: &[u8]) -> Result<ParsedDelivery, Rejection> {
    let (kind, event) = match parse::<Body>(body)? {
        Body::Ping {} => ("ping", Event::Ping),
        Body::Push(push) => ("push", push.into_event()?),
        Body::PullRequest(request) => ("pullRequest", request.into_event()?),
    };
    Ok(ParsedDelivery {
        id: Some(id),
        kind: kind.into(),
        events: vec![event],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
enum Body {
    Push(PushBody),
    PullRequest(PullRequestBody),
    Ping {},
}

fn parse_repository(url: &str) -> Result<Repository, Rejection> {
    let parsed = RepositoryUrl::parse(url).ok_or_else(|| {
        Rejection::not_understood(
            "`repository` is a URL for `git clone`, like https://git.example.com/team/app.git",
        )
    })?;
    Ok(Repository::new(parsed.path()).with_urls([Some(url)]))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PushBody {
    repository: String,
    r#ref: String,
    #[serde(default)]
    before: Option<String>,
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    forced: bool,
    #[serde(default)]
    default_branch: Option<String>,
    #[serde(default)]
    paths: Option<Vec<String>>,
}

impl PushBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let read =
            |text: Option<String>| text.map_or(Ok(None), |text| CommitId::parse_optional(&text));
        let before = read(self.before)?;
        let after = read(self.after)?;
        if before.is_none() && after.is_none() {
            return Err(Rejection::not_understood(
                "`before` and `after` are both missing; set one of them to a commit",
            ));
        }
        let repository =
            parse_repository(&self.repository)?.with_default_branch(self.default_branch);
        let message = self.message;
        Ok(match Ref::parse(&self.r#ref)? {
            Ref::Tag(tag) => Event::Tag(TagPush {
                repository,
                tag,
                after,
                moved: before.is_some(),
                message,
            }),
            Ref::Branch(branch) => {
                let mut incomplete = None;
                let mut names = Vec::new();
                match self.paths {
                    None => incomplete = Some("the sender lists no files".to_owned()),
                    Some(paths) => {
                        for path in paths {
                            match parse_file_name(&path) {
                                Some(name) => names.push(name),
                                None => {
                                    let shown = path.escape_debug();
                                    incomplete = Some(format!("`{shown}` does not name a file"));
                                }
                            }
                        }
                    }
                }
                let changes = names.into_iter();
                let commit = after.clone().map(|id| Commit {
                    id,
                    message: message.clone().unwrap_or_default(),
                    changes: changes.map(|path| (path, Change::Modified)).collect(),
                });
                Event::Push(Push {
                    repository,
                    branch,
                    before,
                    after,
                    commits: commit.into_iter().collect(),
                    message,
                    forced: self.forced,
                    incomplete,
                    files: None,
                })
            }
            Ref::Other(_) => {
                return Err(Rejection::not_understood(
                    "`ref` is `refs/heads/BRANCH` or `refs/tags/TAG`",
                ));
            }
        })
    }
}

/// Returns the path of a changed file relative to the repository. `None` if `text` is not a path.
///
/// Removes `./`, and the quotes and escapes that git puts around unusual names
/// (`"docs/\303\234.md"`).
///
/// Source: `core.quotePath` in git-config(1).
fn parse_file_name(text: &str) -> Option<String> {
    let name = match text.strip_prefix('"') {
        Some(rest) => unquote_name(rest.strip_suffix('"')?)?,
        None => text.to_owned(),
    };
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Resolves git's escapes. `None` if an escape is incomplete or the result is not UTF-8.
fn unquote_name(quoted: &str) -> Option<String> {
    let mut bytes = quoted.bytes();
    let mut name = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            name.push(byte);
            continue;
        }
        name.push(match bytes.next()? {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            escaped @ (b'"' | b'\\') => escaped,
            first @ b'0'..=b'3' => {
                let digit = |byte: u8| matches!(byte, b'0'..=b'7').then_some(byte - b'0');
                let (second, third) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                (first - b'0') * 64 + second * 8 + third
            }
            _ => return None,
        });
    }
    String::from_utf8(name).ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    Opened,
    Updated,
    Closed,
    Merged,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PullRequestBody {
    action: Action,
    number: u64,
    #[serde(default)]
    title: String,
    repository: String,
    base: String,
    #[serde(default)]
    head_repository: Option<String>,
    head: String,
    #[serde(default)]
    commit: Option<String>,
}

impl PullRequestBody {
    fn into_event(self) -> Result<Event, Rejection> {
        let base_repository = parse_repository(&self.repository)?;
        let head_repository = self
            .head_repository
            .as_deref()
            .map(parse_repository)
            .transpose()?;
        let head_repository = head_repository.unwrap_or_else(|| base_repository.clone());
        let same = match &self.head_repository {
            Some(url) => RepositoryUrl::parse(url) == RepositoryUrl::parse(&self.repository),
            None => true,
        };
        let from_fork = !same || github::is_fork(Some(&head_repository), &base_repository);
        Ok(Event::PullRequest(Box::new(PullRequest {
            number: self.number,
            action: match self.action {
                Action::Opened => PullRequestAction::Opened,
                Action::Updated => PullRequestAction::Updated,
                Action::Closed => PullRequestAction::Closed { merged: false },
                Action::Merged => PullRequestAction::Closed { merged: true },
            },
            title: self.title,
            base_repository,
            base_branch: event::parse_branch(&self.base)?,
            head_repository: Some(head_repository),
            head_branch: event::parse_branch(&self.head)?,
            head: self
                .commit
                .map_or(Ok(None), |commit| CommitId::parse_optional(&commit))?,
            from_fork,
            files: None,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_normalized() {
        for (text, expected) in [
            ("src/main.rs", Some("src/main.rs")),
            ("./docs/x.md", Some("docs/x.md")),
            (".//docs//x.md", Some("docs/x.md")),
            ("/docs/x.md", Some("docs/x.md")),
            ("a/../docs/x.md", Some("docs/x.md")),
            (r#""docs/\303\234.md""#, Some("docs/Ü.md")),
            (r#""a \"b\"\t\\""#, Some("a \"b\"\t\\")),
            (r#""docs/\303.md""#, None),
            (r#""docs/\4.md""#, None),
            (r#""docs"#, None),
            ("../x", None),
            ("./", None),
            ("", None),
        ] {
            assert_eq!(parse_file_name(text).as_deref(), expected, "{text}");
        }
    }
}
