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
  acrtask runs logs -o json ID | jq .event
  acrtask runs logs ID --step test --tail 50
  acrtask runs logs ID --grep 'error:'       lines with this text, each with its address
  acrtask runs logs ID --around test:1204    the lines around an address

`--step`, `--grep`, `--tail` and `--around` let the server select lines, so that the size of the log
does not matter. With -o json they print one JSON object a line: step, number, time, text.")]
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
    pub(crate) lines: LinesArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Selection of lines of a log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lines")]
pub(crate) struct LinesArgs {
    /// Print only lines of this step
    #[arg(long, value_name = "NAME", conflicts_with = "follow")]
    pub(crate) step: Option<String>,
    /// Print only lines that contain this text, each with its address STEP:NUMBER
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["follow", "tail", "around"], value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) grep: Option<String>,
    /// Ignore upper and lower case of the text of --grep
    #[arg(short, long, requires = "grep")]
    pub(crate) ignore_case: bool,
    /// Use the text of --grep as a regular expression
    #[arg(long, requires = "grep")]
    pub(crate) regex: bool,
    /// Print only the last N lines
    #[arg(long, value_name = "N", conflicts_with_all = ["follow", "around"], value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) tail: Option<u64>,
    /// Print the lines around this one; with --step, only those of its step
    #[arg(long, value_name = "STEP:NUMBER", conflicts_with = "follow")]
    pub(crate) around: Option<String>,
}

impl LinesArgs {
    /// Returns `true` if the server selects the lines.
    pub(crate) fn selects(&self) -> bool {
        self.step.is_some() || self.grep.is_some() || self.tail.is_some() || self.around.is_some()
    }
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
