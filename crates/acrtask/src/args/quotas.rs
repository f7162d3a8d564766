//! Arguments of `acrtask quota`.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use clap::{Args, Subcommand};

use super::{
    control::ListArgs,
    server::{OutputArgs, ServerArgs},
    values,
};

/// `acrtask quota ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// List the default quotas, those of your token, and those that an administrator set
    List(ListArgs),
    /// Show the quotas of a task, and how much of them is used
    Show(ShowQuotaArgs),
    /// Set a quota
    #[command(after_long_help = "\
Examples:
  acrtask quota set task:app logBytesPerRun 10G
  acrtask quota set 'tasks:team/*' queuedRuns 5000    all tasks of the team together
  acrtask quota set 'task:*' runsPerMinute 60         each task that has no limit of its own
  acrtask quota set task:app runsPerMinute default    the default limit again")]
    Set(SetQuotaArgs),
}

/// `acrtask quota show`.
#[derive(Debug, Args)]
pub(crate) struct ShowQuotaArgs {
    /// The task
    #[arg(value_name = "TASK")]
    pub(crate) task: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask quota set`.
#[derive(Debug, Args)]
pub(crate) struct SetQuotaArgs {
    /// Whose quota: task:NAME, task:* for each task, tasks:PREFIX*, token:ID, or token:* for each token
    #[arg(value_name = "SUBJECT")]
    pub(crate) subject: QuotaSubject,
    /// Which quota: logBytesPerRun, logBytes, queuedRuns, runsPerMinute, pendingApprovals, pendingApprovalsPerMinute, contexts, contextBytes, unfinishedContexts, tasks, secrets
    #[arg(value_name = "QUOTA")]
    pub(crate) kind: QuotaKind,
    /// The limit: a number, of bytes also with K, M or G behind it, or `default`
    #[arg(value_name = "LIMIT", value_parser = limit)]
    pub(crate) limit: QuotaLimit,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Limit on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaLimit {
    /// The default limit.
    Default,
    /// A number.
    Of(u64),
}

fn limit(text: &str) -> Result<QuotaLimit, String> {
    match text {
        "default" => Ok(QuotaLimit::Default),
        "0" => Ok(QuotaLimit::Of(0)),
        text => values::size(text).map(QuotaLimit::Of),
    }
}
