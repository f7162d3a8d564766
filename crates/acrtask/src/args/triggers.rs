//! Which commits start runs of a task: flags of `acrtask task create` and `update`.

use acrtask_api::task::CommitEvent;
use clap::{Args, ValueEnum};

use super::values;

/// The commit trigger of a task.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Triggers")]
pub(crate) struct CommitArgs {
    /// Run at commits to the context's repository: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no)]
    pub(crate) commit_trigger_enabled: Option<bool>,

    /// Run at pull requests too: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no)]
    pub(crate) pull_request_trigger_enabled: Option<bool>,

    /// Branches that count, as globs: `main`, `release/*`, `!wip/**`; may be repeated [default: the context's]
    ///
    /// Of a pull request it is the branch that it asks to change. What is given takes the place of what was there
    /// before, here and in the flags below; '' stands for nothing.
    #[arg(long, value_name = "GLOB")]
    pub(crate) branch: Vec<String>,

    /// Tags that count, as globs: `v*`; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) tag: Vec<String>,

    /// Files that count, as globs: `services/api/**`; may be repeated [default: all]
    #[arg(long, value_name = "GLOB")]
    pub(crate) path: Vec<String>,

    /// Files that never count, as globs: `docs/**`; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) ignore_path: Vec<String>,

    /// A newer commit of the same branch, tag or pull request cancels the runs of older ones: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) newest_wins: Option<bool>,

    /// A text in a commit's message that keeps a run from starting; may be repeated [default: [skip ci] and its like]
    #[arg(long, value_name = "TEXT")]
    pub(crate) skip_message: Vec<String>,

    /// What becomes of pull requests from other repositories
    #[arg(long, value_enum, ignore_case = true, value_name = "WHAT")]
    pub(crate) forks: Option<ForksArg>,
}

impl CommitArgs {
    /// Whether anything is said.
    pub(crate) fn given(&self) -> bool {
        self.commit_trigger_enabled.is_some()
            || self.pull_request_trigger_enabled.is_some()
            || self.newest_wins.is_some()
            || self.forks.is_some()
            || [
                &self.branch,
                &self.tag,
                &self.path,
                &self.ignore_path,
                &self.skip_message,
            ]
            .iter()
            .any(|list| !list.is_empty())
    }
}

/// `--forks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ForksArg {
    /// Each commit waits until somebody has approved it: `acrtask runs approve`
    Approve,
    /// They start nothing
    Ignore,
}

/// What an event is called.
pub(crate) fn event_name(event: CommitEvent) -> &'static str {
    match event {
        CommitEvent::Push => "pushes",
        CommitEvent::Tag => "tags",
        CommitEvent::PullRequest => "pull requests",
    }
}
