//! Commit triggers of a task: flags of `acrtask task create` and `update`.

use acrtask_api::task::CommitEvent;
use clap::{Args, ValueEnum};

use super::values;

/// The commit trigger of a task.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Triggers")]
pub(crate) struct CommitArgs {
    /// Run on commits to the context's repository: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool)]
    pub(crate) commit_trigger_enabled: Option<bool>,

    /// Run on pull requests: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool)]
    pub(crate) pull_request_trigger_enabled: Option<bool>,

    /// Run only for branches that match a glob: `main`, `release/*`, `!wip/**`; may be repeated
    /// [default: the context's]
    ///
    /// For a pull request, the glob must match the target branch. The globs given here replace all
    /// previous ones, as do those of the flags below; '' removes them.
    #[arg(long, value_name = "GLOB")]
    pub(crate) branch: Vec<String>,

    /// Run for tags that match a glob: `v*`; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) tag: Vec<String>,

    /// Run only if a changed file matches a glob: `services/api/**`; may be repeated [default: all
    /// files]
    #[arg(long, value_name = "GLOB")]
    pub(crate) path: Vec<String>,

    /// Ignore changed files that match a glob: `docs/**`; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) ignore_path: Vec<String>,

    /// Cancel the runs of older commits of the same branch, tag or pull request: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) newest_wins: Option<bool>,

    /// Start no run for commits whose message contains this text; may be repeated [default: [skip
    /// ci] and its variants]
    #[arg(long, value_name = "TEXT")]
    pub(crate) skip_message: Vec<String>,

    /// Choose the policy for pull requests from forks
    #[arg(long, value_enum, ignore_case = true, value_name = "WHAT")]
    pub(crate) forks: Option<ForksArg>,
}

impl CommitArgs {
    /// Returns `true` if at least one flag was given.
    pub(crate) fn any_given(&self) -> bool {
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

/// Values of `--forks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ForksArg {
    /// Each commit of a fork waits for an approval with `acrtask runs approve`
    Approve,
    /// Pull requests from forks start no runs
    Ignore,
}

/// Returns the plural name of an event for output.
pub(crate) fn event_name(event: CommitEvent) -> &'static str {
    match event {
        CommitEvent::Push => "pushes",
        CommitEvent::Tag => "tags",
        CommitEvent::PullRequest => "pull requests",
    }
}
