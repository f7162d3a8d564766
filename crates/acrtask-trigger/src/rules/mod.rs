//! Decision whether an event of a repository starts a run of a task, with a reason as a sentence.
//!
//! [`TriggerRules::new`] parses a task's [`CommitTrigger`] once and reports all its mistakes.
//! [`decide`] is a pure function of the rules and an event. The changed files may be unknown: for a
//! new branch, a forced push, more commits than the sender lists, or a pull request. A task with
//! path filters runs then, and the reason mentions it.
//!
//! Left out: the server knows whether the commit ran already.

mod glob;
mod globs;
mod images;

use std::fmt;

use acrtask_api::task::{CommitEvent, CommitTrigger};
use serde::{Deserialize, Serialize};

use crate::{
    CommitId, Event, PullRequest, PullRequestAction, Push, Repository, RepositoryUrl, TagPush,
};
use globs::{NamePatterns, PathPatterns, TooManySteps};

pub use images::ImageRules;

/// Texts in a commit message that prevent a run, unless the task lists its own.
const SKIP_MESSAGES: [&str; 5] = [
    "[skip ci]",
    "[ci skip]",
    "[no ci]",
    "[skip acrtask]",
    "***NO_CI***",
];

/// Branches that trigger a run if the task and its context name none and the default is unknown.
const COMMON_DEFAULT_BRANCHES: [&str; 2] = ["main", "master"];

/// A mistake in a trigger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {help}")]
pub struct RuleError {
    /// Path of the field: `branches`, `paths.include` ...
    pub field: &'static str,
    /// The mistake.
    pub reason: String,
    /// The correction.
    pub help: String,
}

/// Parsed commit trigger of a task.
#[derive(Debug, Clone)]
pub struct TriggerRules {
    repository: RepositoryUrl,
    enabled: bool,
    branches: Branches,
    tags: NamePatterns,
    paths: PathPatterns,
    push: bool,
    tag: bool,
    pull_request: bool,
    skip_messages: Vec<String>,
    newest_wins: bool,
}

/// The branches that trigger a run.
#[derive(Debug, Clone)]
enum Branches {
    /// The patterns of the task.
    Named(NamePatterns),
    /// The branch of the task's context.
    OfContext(String),
    /// The repository's default branch.
    Default,
}

impl TriggerRules {
    /// Parses the trigger of a task with the context `context`.
    ///
    /// The caller skips triggers that are off: their context need not be a repository.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(trigger: &CommitTrigger, context: Option<&str>) -> Result<Self, Vec<RuleError>> {
        let paths = &trigger.paths;
        let lists = [
            &*trigger.branches,
            &*trigger.tags,
            &*paths.include,
            &*paths.exclude,
        ];
        globs::check_total(&lists).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let (address, reference) = split_context(context.unwrap_or_default());
        let repository = RepositoryUrl::parse(&address);
        if repository.is_none() {
            errors.push(RuleError {
                field: "context",
                reason: "a commit trigger needs a git repository with a host".into(),
                help: "write https://HOST/PATH.git#BRANCH, or remove the commit trigger".into(),
            });
        }
        let push = trigger.events.is_empty() || trigger.events.contains(&CommitEvent::Push);
        let tag = trigger.events.contains(&CommitEvent::Tag)
            || (trigger.events.is_empty() && !trigger.tags.is_empty());
        let pull_request = trigger.events.contains(&CommitEvent::PullRequest);
        if !tag && !trigger.tags.is_empty() {
            errors.push(RuleError {
                field: "tags",
                reason: "`events` does not contain `tag`, so the tags have no effect".into(),
                help: "add `tag` to `events`, or remove `tags`".into(),
            });
        }
        let mut names = |field, patterns: &[String]| {
            NamePatterns::new(patterns).unwrap_or_else(|(reason, help)| {
                errors.push(RuleError {
                    field,
                    reason,
                    help,
                });
                NamePatterns::default()
            })
        };
        let named = names("branches", &trigger.branches);
        let tags = names("tags", &trigger.tags);
        let branches = match reference {
            _ if !trigger.branches.is_empty() => Branches::Named(named),
            None => Branches::Default,
            Some(reference) => {
                let bare = reference.strip_prefix("refs/heads/").unwrap_or(&reference);
                let is_commit = bare.len() >= 40 && bare.bytes().all(|c| c.is_ascii_hexdigit());
                if (push || pull_request) && (bare.starts_with("refs/") || is_commit) {
                    errors.push(RuleError {
                        field: "branches",
                        reason: format!("the context names `{bare}`, which is not a branch"),
                        help: "list the branches in `branches`".into(),
                    });
                }
                Branches::OfContext(bare.to_owned())
            }
        };
        let paths = PathPatterns::new(&trigger.paths).unwrap_or_else(|found| {
            errors.extend(found);
            PathPatterns::default()
        });
        let skip_messages = match &trigger.skip_messages {
            None => SKIP_MESSAGES.map(str::to_lowercase).to_vec(),
            Some(own) => own.iter().map(|text| text.to_lowercase()).collect(),
        };
        if skip_messages.iter().any(|text| text.trim().is_empty()) {
            errors.push(RuleError {
                field: "skipMessages",
                reason: "an empty text matches every message".into(),
                help: "remove it; write `[]` to allow every message".into(),
            });
        }
        match repository {
            Some(repository) if errors.is_empty() => Ok(Self {
                repository,
                enabled: trigger.enabled,
                branches,
                tags,
                paths,
                push,
                tag,
                pull_request,
                skip_messages,
                newest_wins: trigger.newest_wins,
            }),
            _ => Err(errors),
        }
    }

    /// Returns the task's repository.
    pub fn repository(&self) -> &RepositoryUrl {
        &self.repository
    }

    /// Returns `true` if the event belongs to the task's repository. Other events leave no
    /// decision.
    pub fn concerns(&self, event: &Event) -> bool {
        event
            .repository()
            .is_some_and(|repository| repository.matches_url(&self.repository))
    }

    fn find_skip_message(&self, message: Option<&str>) -> Option<&str> {
        let message = message?.to_lowercase();
        self.skip_messages
            .iter()
            .find(|text| message.contains(text.as_str()))
            .map(String::as_str)
    }

    /// Returns why a branch does not trigger a run. `None` if it does.
    fn branch_refusal(&self, branch: &str, repository: &Repository) -> Option<String> {
        match (&self.branches, &repository.default_branch) {
            (Branches::Named(names), _) => {
                (!names.matches(branch)).then(|| format!("the branch `{branch}` does not match the task's branches ({names})"))
            }
            (Branches::OfContext(own), _) => {
                (own != branch).then(|| format!("the context names the branch `{own}`, not `{branch}`"))
            }
            (Branches::Default, Some(default)) => {
                (default != branch).then(|| format!("the default branch is `{default}`, not `{branch}`"))
            }
            (Branches::Default, None) => (!COMMON_DEFAULT_BRANCHES.contains(&branch)).then(|| {
                format!("the default branch is unknown, and `{branch}` may not be it; list the branches in `branches`")
            }),
        }
    }
}

/// Splits a context `URL#REF:FOLDER` into address and ref.
fn split_context(context: &str) -> (String, Option<String>) {
    let (address, fragment) = context.split_once('#').unwrap_or((context, ""));
    let reference = fragment
        .split_once(':')
        .map_or(fragment, |(reference, _)| reference);
    let address = if address.starts_with("github.com/") {
        format!("https://{address}")
    } else {
        address.to_owned()
    };
    (
        address,
        (!reference.is_empty()).then(|| reference.to_owned()),
    )
}

/// Decision about an event for one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision")]
pub enum Decision {
    /// A run starts.
    Run {
        /// The commit to check out.
        commit: CommitId,
        /// The ref that moved.
        ref_key: RefKey,
        /// The run supersedes runs of older commits of the same ref key.
        newest_wins: bool,
        /// The commit is from a fork: it gets no secrets, no pushes and no shared cache before
        /// approval.
        from_fork: bool,
        /// The reason, as a sentence.
        reason: String,
    },
    /// A closed pull request: its runs are canceled.
    CancelPullRequest {
        /// Number of the pull request.
        number: u64,
        /// The reason, as a sentence.
        reason: String,
    },
    /// The event is ignored.
    Suppressed {
        /// The reason, as a sentence.
        reason: String,
    },
}

/// Identity of a moving ref. Runs with one ref key follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefKey {
    /// A branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A pull request.
    PullRequest(u64),
}

impl fmt::Display for RefKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Branch(branch) => write!(f, "refs/heads/{branch}"),
            Self::Tag(tag) => write!(f, "refs/tags/{tag}"),
            Self::PullRequest(number) => write!(f, "pull/{number}"),
        }
    }
}

fn suppressed(reason: impl Into<String>) -> Decision {
    Decision::Suppressed {
        reason: reason.into(),
    }
}

/// Decides what an event leads to for the task with these rules.
pub fn decide(rules: &TriggerRules, event: &Event) -> Decision {
    if let Some(repository) = event.repository()
        && !repository.matches_url(&rules.repository)
    {
        return suppressed(format!("the task's repository is {}", rules.repository));
    }
    if !rules.enabled {
        return suppressed("the commit trigger of the task is off");
    }
    match event {
        Event::Push(push) => decide_push(rules, push),
        Event::Tag(tag) => decide_tag(rules, tag),
        Event::PullRequest(request) => decide_pull_request(rules, request),
        Event::Ping => suppressed("the sender only tested the connection"),
        Event::Declined { reason } => suppressed(reason.clone()),
    }
}

fn decide_push(rules: &TriggerRules, push: &Push) -> Decision {
    let branch = &push.branch;
    if !rules.push {
        return suppressed("the task ignores pushes to branches");
    }
    if let Some(reason) = rules.branch_refusal(branch, &push.repository) {
        return suppressed(reason);
    }
    let Some(commit) = &push.after else {
        return suppressed(format!("the branch `{branch}` was deleted"));
    };
    if let Some(text) = rules.find_skip_message(push.message.as_deref()) {
        return suppressed(format!(
            "the message of commit {} contains `{text}`",
            commit.short()
        ));
    }
    let unknown = push.incomplete.as_deref().unwrap_or_default();
    let files = match check_paths(rules, push.paths(), unknown) {
        Ok(files) => files,
        Err(reason) => return suppressed(reason),
    };
    Decision::Run {
        commit: commit.clone(),
        ref_key: RefKey::Branch(branch.clone()),
        newest_wins: rules.newest_wins,
        from_fork: false,
        reason: format!(
            "commit {} was pushed to the branch `{branch}`{files}",
            commit.short()
        ),
    }
}

/// Decides about a tag. Path filters do not apply, because a tag releases all files.
fn decide_tag(rules: &TriggerRules, push: &TagPush) -> Decision {
    let tag = &push.tag;
    if !rules.tag {
        return suppressed("the task ignores tags");
    }
    if !rules.tags.is_empty() && !rules.tags.matches(tag) {
        return suppressed(format!(
            "the tag `{tag}` does not match the task's tags ({})",
            rules.tags
        ));
    }
    let Some(commit) = &push.after else {
        return suppressed(format!("the tag `{tag}` was deleted"));
    };
    if let Some(text) = rules.find_skip_message(push.message.as_deref()) {
        return suppressed(format!(
            "the message of commit {} contains `{text}`",
            commit.short()
        ));
    }
    let happened = if push.moved { "moved to" } else { "created at" };
    Decision::Run {
        commit: commit.clone(),
        ref_key: RefKey::Tag(tag.clone()),
        newest_wins: rules.newest_wins,
        from_fork: false,
        reason: format!("the tag `{tag}` was {happened} commit {}", commit.short()),
    }
}

fn decide_pull_request(rules: &TriggerRules, request: &PullRequest) -> Decision {
    let number = request.number;
    if !rules.pull_request {
        return suppressed("the task ignores pull requests");
    }
    let happened = match request.action {
        // The rules may have been different when the pull request was opened.
        PullRequestAction::Closed { merged } => {
            let outcome = if merged { "merged" } else { "closed" };
            return Decision::CancelPullRequest {
                number,
                reason: format!("pull request {number} was {outcome}"),
            };
        }
        PullRequestAction::Opened => "was opened",
        PullRequestAction::Updated => "was updated",
    };
    if let Some(reason) = rules.branch_refusal(&request.base_branch, &request.base_repository) {
        return suppressed(format!(
            "pull request {number} has another target branch: {reason}"
        ));
    }
    let Some(commit) = &request.head else {
        return suppressed(format!("pull request {number} contains no commit"));
    };
    if let Some(text) = rules.find_skip_message(Some(&request.title)) {
        return suppressed(format!(
            "the title of pull request {number} contains `{text}`"
        ));
    }
    let paths = request.files.as_ref();
    let paths = paths.map(|files| files.iter().map(String::as_str).collect());
    let files = match check_paths(rules, paths, "no sender lists the files of a pull request") {
        Ok(files) => files,
        Err(reason) => return suppressed(reason),
    };
    let fork = if request.from_fork {
        "; it is from another repository, so it is not trusted"
    } else {
        ""
    };
    Decision::Run {
        commit: commit.clone(),
        ref_key: RefKey::PullRequest(number),
        newest_wins: rules.newest_wins,
        from_fork: request.from_fork,
        reason: format!(
            "pull request {number} {happened} with commit {}{files}{fork}",
            commit.short()
        ),
    }
}

/// Applies the path filters. Returns the end of the reason for a run, or the reason to ignore the
/// event.
fn check_paths(
    rules: &TriggerRules,
    paths: Option<Vec<&str>>,
    unknown: &str,
) -> Result<String, String> {
    if rules.paths.is_empty() {
        return Ok(String::new());
    }
    let Some(paths) = paths else {
        return Ok(unknown_files_note(unknown));
    };
    match rules.paths.find(&paths) {
        Err(TooManySteps) => Ok(format!(
            "; the path filters do not apply, because matching the {} changed files takes too long",
            paths.len()
        )),
        Ok(Some(path)) => Ok(format!(", and `{}` changed", path.escape_debug())),
        Ok(None) => Err(format!(
            "none of the {} changed files matches the task's paths ({})",
            paths.len(),
            rules.paths
        )),
    }
}

fn unknown_files_note(why: &str) -> String {
    format!(
        "; the path filters do not apply, because the list of changed files is incomplete: {why}"
    )
}

#[cfg(test)]
mod tests;
