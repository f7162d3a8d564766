//! Events of a repository, as parsed from deliveries.
//!
//! Invariants, checked during parsing: a commit id consists of hexadecimal digits. The name of a
//! branch or a tag is valid for git, and no program can mistake it for an option.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Rejection, repository::Repository};

/// An event of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A branch moved, was created or was deleted.
    Push(Push),
    /// A tag moved, was created or was deleted.
    Tag(TagPush),
    /// A pull request changed.
    PullRequest(Box<PullRequest>),
    /// The sender tests the connection.
    Ping,
    /// A delivery that starts nothing.
    Declined {
        /// The reason, as a sentence.
        reason: String,
    },
}

impl Event {
    pub(crate) fn declined(reason: impl Into<String>) -> Self {
        Self::Declined {
            reason: reason.into(),
        }
    }

    /// Replaces the list of changed files by one that was looked up in the repository.
    ///
    /// With the full list, path filters of tasks decide by the files that really changed.
    #[must_use]
    pub fn with_files(mut self, files: Vec<String>) -> Self {
        match &mut self {
            Self::Push(push) => push.files = Some(files),
            Self::PullRequest(request) => request.files = Some(files),
            Self::Tag(_) | Self::Ping | Self::Declined { .. } => {}
        }
        self
    }

    /// Returns the repository of the event. For a pull request this is the target repository.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Push(push) => Some(&push.repository),
            Self::Tag(tag) => Some(&tag.repository),
            Self::PullRequest(request) => Some(&request.base_repository),
            Self::Ping | Self::Declined { .. } => None,
        }
    }
}

/// A branch that moved, was created or was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The repository of the branch.
    pub repository: Repository,
    /// The branch, without `refs/heads/`.
    pub branch: String,
    /// The commit before the push. `None` if the branch is new.
    pub before: Option<CommitId>,
    /// The commit after the push. `None` if the branch was deleted.
    pub after: Option<CommitId>,
    /// The pushed commits, oldest first, as far as the sender lists them.
    pub commits: Vec<Commit>,
    /// The message of the newest commit, if the sender sends it.
    pub message: Option<String>,
    /// The push removed commits from the branch. Not every sender reports that.
    pub forced: bool,
    /// The reason why `commits` may not list all changed files. `None` if they list all.
    pub incomplete: Option<String>,
    /// All changed files, if they were looked up in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}

impl Push {
    /// Returns the changed files. `None` if the list is not complete.
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

/// A commit with the files that it changed, as far as the sender lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The id, which the sender may have abbreviated.
    pub id: CommitId,
    /// The full commit message.
    pub message: String,
    /// Paths of the changed files, each with the kind of change.
    pub changes: Vec<(String, Change)>,
}

/// Kind of change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A new file.
    Added,
    /// A file with another content.
    Modified,
    /// A deleted file.
    Removed,
}

/// A tag that moved, was created or was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagPush {
    /// The repository of the tag.
    pub repository: Repository,
    /// The tag, without `refs/tags/`.
    pub tag: String,
    /// The tagged commit, or the tag object if the sender sends no commit. `None` if the tag was
    /// deleted.
    pub after: Option<CommitId>,
    /// The tag existed before.
    pub moved: bool,
    /// The message of the commit, if the sender sends it.
    pub message: Option<String>,
}

/// A change of a pull request (merge request).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// The number of the pull request in its repository.
    pub number: u64,
    /// Kind of the change.
    pub action: PullRequestAction,
    /// The title at the time of the event.
    pub title: String,
    /// The target repository.
    pub base_repository: Repository,
    /// The target branch.
    pub base_branch: String,
    /// The repository with the commits. `None` if it was deleted.
    pub head_repository: Option<Repository>,
    /// The branch with the commits.
    pub head_branch: String,
    /// The newest commit. `None` if its branch was deleted. Bitbucket Cloud sends only 12 digits.
    pub head: Option<CommitId>,
    /// The commits are in another repository, whose authors may lack the right to push to this one.
    pub from_fork: bool,
    /// All files that differ from the target branch, if they were looked up. No sender lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}

/// Kind of change of a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullRequestAction {
    /// The pull request was opened or reopened.
    Opened,
    /// The pull request has new commits or another target branch.
    Updated,
    /// The pull request was closed.
    Closed {
        /// The commits were merged.
        merged: bool,
    },
}

/// The id of a commit: 7 to 64 hexadecimal digits, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);

impl CommitId {
    /// Returns the digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns at most the first 12 digits, for display.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(12)]
    }

    /// Parses an id. `None` if all digits are zeros, by which forges denote a missing commit.
    pub(crate) fn parse_optional(text: &str) -> Result<Option<Self>, Rejection> {
        let id = Self::try_from(text.to_owned()).map_err(Rejection::not_understood)?;
        Ok((!id.0.bytes().all(|digit| digit == b'0')).then_some(id))
    }

    /// Parses an id that must denote a commit.
    pub(crate) fn parse_required(text: &str) -> Result<Self, Rejection> {
        Self::parse_optional(text)?
            .ok_or_else(|| Rejection::not_understood("the id of the commit has only zeros"))
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

/// A git ref, by kind.
pub(crate) enum Ref {
    Branch(String),
    Tag(String),
    /// Notes, reviews and other refs that forges keep.
    Other(String),
}

impl Ref {
    /// Parses a full ref like `refs/heads/NAME`.
    pub(crate) fn parse(text: &str) -> Result<Self, Rejection> {
        let full = parse_ref_name(text)?;
        Ok(if let Some(branch) = full.strip_prefix("refs/heads/") {
            Self::Branch(parse_ref_name(branch)?)
        } else if let Some(tag) = full.strip_prefix("refs/tags/") {
            Self::Tag(parse_ref_name(tag)?)
        } else {
            Self::Other(full)
        })
    }
}

/// Parses the name of a branch, with or without `refs/heads/`.
pub(crate) fn parse_branch(text: &str) -> Result<String, Rejection> {
    parse_ref_name(text.strip_prefix("refs/heads/").unwrap_or(text))
}

/// Parses the name of a branch, a tag or a ref by git's rules (`git check-ref-format`).
///
/// Refuses names that a program could mistake for an option.
pub(crate) fn parse_ref_name(text: &str) -> Result<String, Rejection> {
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
    fn invalid_ref_names_are_refused() {
        for good in [
            "main",
            "feature/a-b_c.d",
            "v1.0",
            "ünïcode",
            "a@b",
            "refs/heads/x",
            "#12",
        ] {
            assert!(parse_ref_name(good).is_ok(), "{good}");
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
            assert!(parse_ref_name(bad).is_err(), "{bad}");
        }
        assert!(Ref::parse("refs/heads/-x").is_err());
        assert!(parse_ref_name(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn commit_ids_are_hexadecimal() {
        let zeros = "0".repeat(40);
        assert_eq!(CommitId::parse_optional(&zeros).unwrap(), None);
        assert!(CommitId::parse_required(&zeros).is_err());
        assert_eq!(
            CommitId::parse_required("ABCDEF1").unwrap().as_str(),
            "abcdef1"
        );
        for bad in [
            "",
            "abc",
            "--help0",
            "refs/heads/main",
            "g234567",
            &"a".repeat(65),
        ] {
            assert!(CommitId::parse_optional(bad).is_err(), "{bad}");
        }
    }
}
