//! Whether a task runs for what happened to its repository, with the reason as a sentence.
//!
//! [`TriggerRules::new`] reads a task's [`CommitTrigger`] once and tells every mistake in it; [`decide`] is then a
//! pure function of the rules and an event. Where it is not known which files changed (a new branch, a forced push,
//! more commits than the sender names, a pull request), a task with path filters runs, and the reason says so.
//!
//! Left out: whether the commit ran already. That, the server knows.

mod globs;
mod images;

use std::fmt;

use acrtask_api::task::{CommitEvent, CommitTrigger};
use serde::{Deserialize, Serialize};

use crate::{
    CommitId, Event, PullRequest, PullRequestAction, Push, Repository, RepositoryUrl, TagPush,
};
use globs::{Names, Paths};

pub use images::ImageRules;

/// What keeps a run from starting, where a task does not say it.
const SKIP_MESSAGES: [&str; 5] = [
    "[skip ci]",
    "[ci skip]",
    "[no ci]",
    "[skip acrtask]",
    "***NO_CI***",
];

/// The branches that count where neither the task nor its context names one, and the sender does not tell which is
/// the default.
const USUAL_BRANCHES: [&str; 2] = ["main", "master"];

/// A mistake in a commit trigger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {help}")]
pub struct RuleError {
    /// Where it is: `branches`, `paths.include` ...
    pub field: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub help: String,
}

/// When a task runs for what happens to its repository.
#[derive(Debug, Clone)]
pub struct TriggerRules {
    repository: RepositoryUrl,
    enabled: bool,
    branches: Branches,
    tags: Names,
    paths: Paths,
    push: bool,
    tag: bool,
    pull_request: bool,
    skip_messages: Vec<String>,
    newest_wins: bool,
}

/// Which branches count.
#[derive(Debug, Clone)]
enum Branches {
    /// Those that the task says.
    Named(Names),
    /// The one that its context names.
    OfContext(String),
    /// The repository's default branch.
    Default,
}

impl TriggerRules {
    /// Reads the trigger of a task with the context `context`. One that is off needs no rules, and may stand beside a
    /// context that is no repository.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(trigger: &CommitTrigger, context: Option<&str>) -> Result<Self, Vec<RuleError>> {
        let mut errors = Vec::new();
        let (address, reference) = split(context.unwrap_or_default());
        let repository = RepositoryUrl::parse(&address);
        if repository.is_none() {
            errors.push(RuleError {
                field: "context",
                reason: "runs at commits need a git repository with a host".into(),
                help: "write https://HOST/PATH.git#BRANCH, or take the commit trigger away".into(),
            });
        }
        let push = trigger.events.is_empty() || trigger.events.contains(&CommitEvent::Push);
        let tag = trigger.events.contains(&CommitEvent::Tag)
            || (trigger.events.is_empty() && !trigger.tags.is_empty());
        let pull_request = trigger.events.contains(&CommitEvent::PullRequest);
        if !tag && !trigger.tags.is_empty() {
            errors.push(RuleError {
                field: "tags",
                reason: "`events` has no `tag`, so these never count".into(),
                help: "add `tag` to `events`, or take `tags` away".into(),
            });
        }
        let mut names = |field, patterns: &[String]| {
            Names::new(patterns).unwrap_or_else(|(reason, help)| {
                errors.push(RuleError {
                    field,
                    reason,
                    help,
                });
                Names::default()
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
                        reason: format!("the context names `{bare}`, which is no branch"),
                        help: "say which branches count".into(),
                    });
                }
                Branches::OfContext(bare.to_owned())
            }
        };
        let paths = Paths::new(&trigger.paths).unwrap_or_else(|found| {
            errors.extend(found);
            Paths::default()
        });
        let skip_messages = match &trigger.skip_messages {
            None => SKIP_MESSAGES.map(str::to_lowercase).to_vec(),
            Some(own) => own.iter().map(|text| text.to_lowercase()).collect(),
        };
        if skip_messages.iter().any(|text| text.trim().is_empty()) {
            errors.push(RuleError {
                field: "skipMessages",
                reason: "an empty text is in every message".into(),
                help: "take it away; `[]` is for none".into(),
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

    /// The task's repository.
    pub fn repository(&self) -> &RepositoryUrl {
        &self.repository
    }

    /// Whether the event happened to the task's repository. If it did not, it is none of the task's business, and
    /// nothing has to be written down.
    pub fn concerns(&self, event: &Event) -> bool {
        event
            .repository()
            .is_some_and(|repository| repository.is(&self.repository))
    }

    fn skipped_by(&self, message: Option<&str>) -> Option<&str> {
        let message = message?.to_lowercase();
        self.skip_messages
            .iter()
            .find(|text| message.contains(text.as_str()))
            .map(String::as_str)
    }

    /// Why a branch does not count; nothing: it does.
    fn refuses_branch(&self, branch: &str, repository: &Repository) -> Option<String> {
        match (&self.branches, &repository.default_branch) {
            (Branches::Named(names), _) => {
                (!names.matches(branch)).then(|| format!("the branch `{branch}` is none of the task's ({names})"))
            }
            (Branches::OfContext(own), _) => {
                (own != branch).then(|| format!("the context names the branch `{own}`, not `{branch}`"))
            }
            (Branches::Default, Some(default)) => {
                (default != branch).then(|| format!("the default branch is `{default}`, not `{branch}`"))
            }
            (Branches::Default, None) => (!USUAL_BRANCHES.contains(&branch)).then(|| {
                format!("it is not known whether `{branch}` is the default branch; say which `branches` count")
            }),
        }
    }
}

/// Address and ref of a context: `URL#REF:FOLDER`.
fn split(context: &str) -> (String, Option<String>) {
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

/// What an event leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision")]
pub enum Decision {
    /// A run starts.
    Run {
        /// The commit to check out.
        commit: CommitId,
        /// What moved.
        lane: Lane,
        /// The runs of older commits in the lane are cancelled.
        newest_wins: bool,
        /// The commit is a stranger's: no secrets, no pushes, no shared cache, until a maintainer approves it.
        from_fork: bool,
        /// Why, as a sentence.
        reason: String,
    },
    /// A pull request was closed: its runs are cancelled.
    CancelPullRequest {
        /// Its number.
        number: u64,
        /// Why, as a sentence.
        reason: String,
    },
    /// Nothing starts.
    Suppressed {
        /// Why, as a sentence.
        reason: String,
    },
}

/// What moved; runs of one lane follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// A branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A pull request.
    PullRequest(u64),
}

impl fmt::Display for Lane {
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

/// Says what an event leads to for the task with these rules.
pub fn decide(rules: &TriggerRules, event: &Event) -> Decision {
    if let Some(repository) = event.repository()
        && !repository.is(&rules.repository)
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
        Event::Ping => suppressed("the sender only tried whether it is heard"),
        Event::Declined { reason } => suppressed(reason.clone()),
    }
}

fn decide_push(rules: &TriggerRules, push: &Push) -> Decision {
    let branch = &push.branch;
    if !rules.push {
        return suppressed("the task does not run for pushes to branches");
    }
    if let Some(reason) = rules.refuses_branch(branch, &push.repository) {
        return suppressed(reason);
    }
    let Some(commit) = &push.after else {
        return suppressed(format!("the branch `{branch}` was deleted"));
    };
    if let Some(text) = rules.skipped_by(push.message.as_deref()) {
        return suppressed(format!(
            "the message of commit {} has `{text}` in it",
            commit.short()
        ));
    }
    let unknown = push.incomplete.as_deref().unwrap_or_default();
    let files = match by_files(rules, push.paths(), unknown) {
        Ok(files) => files,
        Err(reason) => return suppressed(reason),
    };
    Decision::Run {
        commit: commit.clone(),
        lane: Lane::Branch(branch.clone()),
        newest_wins: rules.newest_wins,
        from_fork: false,
        reason: format!(
            "commit {} was pushed to the branch `{branch}`{files}",
            commit.short()
        ),
    }
}

/// Files are not looked at: a tag is a release of all of them.
fn decide_tag(rules: &TriggerRules, push: &TagPush) -> Decision {
    let tag = &push.tag;
    if !rules.tag {
        return suppressed("the task does not run for tags");
    }
    if !rules.tags.is_empty() && !rules.tags.matches(tag) {
        return suppressed(format!(
            "the tag `{tag}` is none of the task's ({})",
            rules.tags
        ));
    }
    let Some(commit) = &push.after else {
        return suppressed(format!("the tag `{tag}` was deleted"));
    };
    if let Some(text) = rules.skipped_by(push.message.as_deref()) {
        return suppressed(format!(
            "the message of commit {} has `{text}` in it",
            commit.short()
        ));
    }
    let happened = if push.moved { "moved to" } else { "made at" };
    Decision::Run {
        commit: commit.clone(),
        lane: Lane::Tag(tag.clone()),
        newest_wins: rules.newest_wins,
        from_fork: false,
        reason: format!("the tag `{tag}` was {happened} commit {}", commit.short()),
    }
}

fn decide_pull_request(rules: &TriggerRules, request: &PullRequest) -> Decision {
    let number = request.number;
    if !rules.pull_request {
        return suppressed("the task does not run for pull requests");
    }
    let happened = match request.action {
        // Whatever the rules say of it now, they may have said something else when it was opened.
        PullRequestAction::Closed { merged } => {
            let how = if merged { "merged" } else { "closed" };
            return Decision::CancelPullRequest {
                number,
                reason: format!("pull request {number} was {how}"),
            };
        }
        PullRequestAction::Opened => "was opened",
        PullRequestAction::Updated => "was updated",
    };
    if let Some(reason) = rules.refuses_branch(&request.base_branch, &request.base_repository) {
        return suppressed(format!(
            "pull request {number} asks to change another branch: {reason}"
        ));
    }
    let Some(commit) = &request.head else {
        return suppressed(format!("pull request {number} names no commit"));
    };
    if let Some(text) = rules.skipped_by(Some(&request.title)) {
        return suppressed(format!(
            "the title of pull request {number} has `{text}` in it"
        ));
    }
    let known = request.files.as_ref();
    let known = known.map(|files| files.iter().map(String::as_str).collect());
    let files = match by_files(rules, known, "no sender names those of a pull request") {
        Ok(files) => files,
        Err(reason) => return suppressed(reason),
    };
    let fork = if request.from_fork {
        "; it comes from another repository, so it is not trusted"
    } else {
        ""
    };
    Decision::Run {
        commit: commit.clone(),
        lane: Lane::PullRequest(number),
        newest_wins: rules.newest_wins,
        from_fork: request.from_fork,
        reason: format!(
            "pull request {number} {happened} with commit {}{files}{fork}",
            commit.short()
        ),
    }
}

/// What the path filters say: the end of the reason for a run, or the reason for none.
fn by_files(
    rules: &TriggerRules,
    paths: Option<Vec<&str>>,
    unknown: &str,
) -> Result<String, String> {
    if rules.paths.is_empty() {
        return Ok(String::new());
    }
    let Some(paths) = paths else {
        return Ok(not_known(unknown));
    };
    match paths.iter().find(|path| rules.paths.matches(path)) {
        Some(path) => Ok(format!(", and `{}` changed", path.escape_debug())),
        None => Err(format!(
            "none of the {} files that changed counts for the task ({})",
            paths.len(),
            rules.paths
        )),
    }
}

fn not_known(why: &str) -> String {
    format!(
        "; it runs whatever the path filters say, because not all files that changed are known: {why}"
    )
}

#[cfg(test)]
mod tests;
