//! What a delivery says happened to a repository.
//!
//! Invariants: a commit is hexadecimal digits, and a name of a branch or a tag is one that git would take and that
//! no program takes for an option; both are checked when a delivery is read.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Rejection, repository::Repository};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A branch moved, came or went.
    Push(Push),
    /// A tag moved, came or went.
    Tag(TagPush),
    /// A pull request changed.
    PullRequest(Box<PullRequest>),
    /// The sender only tries whether it is heard.
    Ping,
    /// Something that starts nothing.
    Declined {
        /// Why, as a sentence.
        reason: String,
    },
}

impl Event {
    pub(crate) fn declined(reason: impl Into<String>) -> Self {
        Self::Declined {
            reason: reason.into(),
        }
    }

    /// The same with the files that changed, for whoever looked them up in the repository: where a task has path
    /// filters and the sender does not tell them all, the decision is then by what really changed.
    #[must_use]
    pub fn with_files(mut self, files: Vec<String>) -> Self {
        match &mut self {
            Self::Push(push) => push.files = Some(files),
            Self::PullRequest(request) => request.files = Some(files),
            Self::Tag(_) | Self::Ping | Self::Declined { .. } => {}
        }
        self
    }

    /// The repository that it happened to. Of a pull request: the one that is asked to change.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Push(push) => Some(&push.repository),
            Self::Tag(tag) => Some(&tag.repository),
            Self::PullRequest(request) => Some(&request.base_repository),
            Self::Ping | Self::Declined { .. } => None,
        }
    }
}

/// A branch moved, came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Where.
    pub repository: Repository,
    /// The branch, without `refs/heads/`.
    pub branch: String,
    /// Where it pointed before; nothing: it is new.
    pub before: Option<CommitId>,
    /// Where it points now; nothing: it was deleted.
    pub after: Option<CommitId>,
    /// The commits that came, oldest first, as far as the sender tells.
    pub commits: Vec<Commit>,
    /// The message of the newest commit, where the sender tells it.
    pub message: Option<String>,
    /// Commits went away. Not every sender tells.
    pub forced: bool,
    /// Why the paths of `commits` may not be all that changed; nothing: they are.
    pub incomplete: Option<String>,
    /// All files that changed, where somebody looked them up in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}

impl Push {
    /// The files that changed; nothing where not all are known.
    pub fn paths(&self) -> Option<Vec<&str>> {
        if let Some(files) = &self.files {
            return Some(files.iter().map(String::as_str).collect());
        }
        self.incomplete.is_none().then(|| {
            self.commits
                .iter()
                .flat_map(|commit| &commit.changes)
                .map(|(path, _)| path.as_str())
                .collect()
        })
    }
}

/// A commit, and the files that it changed, as far as the sender tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its id.
    pub id: CommitId,
    /// Its message.
    pub message: String,
    /// The files that it changed: path and what happened to it.
    pub changes: Vec<(String, Change)>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is another.
    Modified,
    /// It is gone.
    Removed,
}

/// A tag moved, came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagPush {
    /// Where.
    pub repository: Repository,
    /// The tag, without `refs/tags/`.
    pub tag: String,
    /// The commit, or the tag object where the sender does not tell the commit; nothing: it was deleted.
    pub after: Option<CommitId>,
    /// It was there before.
    pub moved: bool,
    /// The message of the commit, where the sender tells it.
    pub message: Option<String>,
}

/// A pull request (merge request) changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// Its number in the repository.
    pub number: u64,
    /// What happened to it.
    pub action: PullRequestAction,
    /// Its title.
    pub title: String,
    /// The repository that is asked to change.
    pub base_repository: Repository,
    /// The branch that is asked to change.
    pub base_branch: String,
    /// Where the commits are; nothing: that repository is gone.
    pub head_repository: Option<Repository>,
    /// The branch with the commits.
    pub head_branch: String,
    /// The newest commit; nothing, where its branch is gone. Bitbucket Cloud tells its first 12 digits only.
    pub head: Option<CommitId>,
    /// The commits come from another repository, whose people need not be allowed to change this one.
    pub from_fork: bool,
    /// All files that differ from the base, where somebody looked them up in the repository. No sender tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}

/// What happened to a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullRequestAction {
    /// It was opened, or opened again.
    Opened,
    /// It has new commits, or asks to change another branch.
    Updated,
    /// It was closed.
    Closed {
        /// Its commits were taken.
        merged: bool,
    },
}

/// The id of a commit: 7 to 64 hexadecimal digits, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, for a person.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(12)]
    }

    /// Reads an id; one of zeros only, which stands for no commit, is nothing.
    pub(crate) fn read(text: &str) -> Result<Option<Self>, Rejection> {
        let id = Self::try_from(text.to_owned()).map_err(Rejection::not_understood)?;
        Ok((!id.0.bytes().all(|digit| digit == b'0')).then_some(id))
    }

    /// Reads an id that has to be one.
    pub(crate) fn need(text: &str) -> Result<Self, Rejection> {
        Self::read(text)?.ok_or_else(|| Rejection::not_understood("there is no commit, only zeros"))
    }
}

impl TryFrom<String> for CommitId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if (7..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(format!("`{}` is not a commit's id", text.escape_debug()))
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A ref that can start something.
pub(crate) enum Ref {
    Branch(String),
    Tag(String),
    /// Notes, reviews and whatever else forges keep.
    Other(String),
}

impl Ref {
    /// Reads `refs/heads/NAME` and the like.
    pub(crate) fn read(text: &str) -> Result<Self, Rejection> {
        let full = name(text)?;
        Ok(if let Some(branch) = full.strip_prefix("refs/heads/") {
            Self::Branch(name(branch)?)
        } else if let Some(tag) = full.strip_prefix("refs/tags/") {
            Self::Tag(name(tag)?)
        } else {
            Self::Other(full)
        })
    }
}

/// Reads a branch's name, with or without `refs/heads/`.
pub(crate) fn branch(text: &str) -> Result<String, Rejection> {
    name(text.strip_prefix("refs/heads/").unwrap_or(text))
}

/// Checks a name of a branch, a tag or a ref after git's own rules (`git check-ref-format`), and that no program
/// can take it for an option.
pub(crate) fn name(text: &str) -> Result<String, Rejection> {
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    let bad_char = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let bad = text.len() > 1024
        || text.starts_with('-')
        || text.ends_with('.')
        || text == "@"
        || text.contains("..")
        || text.contains("@{")
        || text.contains(bad_char)
        || text.split('/').any(bad_part);
    if bad {
        let shown: String = text.chars().take(100).collect();
        return Err(Rejection::not_understood(format!(
            "`{}` is not a name of a branch or a tag",
            shown.escape_debug()
        )));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_would_not_take_are_refused() {
        for good in [
            "main",
            "feature/a-b_c.d",
            "v1.0",
            "ünïcode",
            "a@b",
            "refs/heads/x",
            "#12",
        ] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a\nb",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "@",
            "a@{1}",
            "a.",
        ] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(Ref::read("refs/heads/-x").is_err());
        assert!(name(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn commits_are_hexadecimal() {
        let zeros = "0".repeat(40);
        assert_eq!(CommitId::read(&zeros).unwrap(), None);
        assert!(CommitId::need(&zeros).is_err());
        assert_eq!(CommitId::need("ABCDEF1").unwrap().as_str(), "abcdef1");
        for bad in [
            "",
            "abc",
            "--help0",
            "refs/heads/main",
            "g234567",
            &"a".repeat(65),
        ] {
            assert!(CommitId::read(bad).is_err(), "{bad}");
        }
    }
}
