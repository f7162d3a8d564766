//! Arguments of `acrtask runs`.

use acrtask_model::RunId;
use clap::{Args, Subcommand, ValueEnum};

use super::{
    LogFormArgs,
    server::{OutputArgs, PeriodArgs, ServerArgs},
};

/// Subcommands of `acrtask runs`.
#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List runs, the newest first
    #[command(after_long_help = "\
Examples:
  acrtask runs list --state queued,running
  acrtask runs list --since 7d --state failed,error
  acrtask runs list --task app -o json | jq -r '.items[0].id'")]
    List(ListRunsArgs),
    /// Show a run: its steps, images and bases
    Show(RunIdArgs),
    /// Print the log of a run
    #[command(after_long_help = "\
Examples:
  acrtask runs logs ID                       in the form of `acrtask run`
  acrtask runs logs -f ID                    follow the run to its end; exits with the run's code
  acrtask runs logs -o json ID | jq .event")]
    Logs(LogsArgs),
    /// Request the cancellation of runs
    Cancel(CancelArgs),
    /// Start a run again with the same files, values and digests
    Rerun(RerunArgs),
    /// Show what a run waits for
    Why(RunIdArgs),
    /// Approve a run of a pull request from a fork: it gets the task's secrets and may push
    #[command(after_long_help = "\
Examples:
  acrtask runs show ID       show the run's commit
  acrtask runs approve ID

An approval covers that one commit. The next commit of the pull request waits again.")]
    Approve(ApproveArgs),
}

/// A run's id.
#[derive(Debug, Args)]
pub(crate) struct RunIdArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask runs list`.
#[derive(Debug, Args)]
pub(crate) struct ListRunsArgs {
    /// Only runs of this task
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Only runs in these states
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    pub(crate) state: Vec<StateArg>,
    #[command(flatten)]
    pub(crate) period: PeriodArgs,
    /// Show at most N entries
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// States of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateArg {
    /// Waiting for a runner
    Queued,
    /// Leased to a runner that has not started it yet
    Leased,
    /// Executing steps
    Running,
    /// Every step succeeded
    Succeeded,
    /// A step failed
    Failed,
    /// Canceled by a user or the server
    Canceled,
    /// Exceeded its timeout
    TimedOut,
    /// The engine or a registry failed
    Error,
}

/// Arguments of `acrtask runs logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    /// Follow the log until the run ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show the log of this attempt [default: the latest]
    #[arg(long, value_name = "N", conflicts_with = "follow", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
    #[command(flatten)]
    pub(crate) form: LogFormArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask runs cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The runs
    #[arg(required = true, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask runs rerun`.
#[derive(Debug, Args)]
pub(crate) struct RerunArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    /// Print the new run's id and exit without waiting for the run
    #[arg(long, visible_alias = "detach")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) form: LogFormArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask runs approve`.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The runs
    #[arg(required = true, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
