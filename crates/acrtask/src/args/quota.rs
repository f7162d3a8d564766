//! Arguments of `acrtask quota`.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use clap::{Args, Subcommand};

use super::{
    server::{ListArgs, OutputArgs, ServerArgs},
    values,
};

/// Subcommands of `acrtask quota`.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// List the default quotas, those of your token, and those that an administrator set
    List(ListArgs),
    /// Show the quotas of a task and their usage
    Show(ShowQuotaArgs),
    /// Set a quota
    #[command(after_long_help = "\
Examples:
  acrtask quota set task:app logBytesPerRun 10G
  acrtask quota set 'tasks:team/*' queuedRuns 5000    limit the sum of all tasks of the team
  acrtask quota set 'task:*' runsPerMinute 60         limit each task without its own limit
  acrtask quota set task:app runsPerMinute default    restore the default limit")]
    Set(SetQuotaArgs),
}

/// Arguments of `acrtask quota show`.
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

/// Arguments of `acrtask quota set`.
#[derive(Debug, Args)]
pub(crate) struct SetQuotaArgs {
    /// The subject: task:NAME, task:* for each task, tasks:PREFIX*, token:ID, or token:* for each
    /// token
    #[arg(value_name = "SUBJECT")]
    pub(crate) subject: QuotaSubject,
    /// The quota: logBytesPerRun, logBytes, queuedRuns, runsPerMinute, pendingApprovals,
    /// pendingApprovalsPerMinute, contexts, contextBytes, unfinishedContexts, tasks, secrets
    #[arg(value_name = "QUOTA")]
    pub(crate) kind: QuotaKind,
    /// The limit: a number, for bytes optionally with K, M or G after it, or `default`
    #[arg(value_name = "LIMIT", value_parser = parse_limit)]
    pub(crate) limit: QuotaLimit,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Limit argument of `acrtask quota set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaLimit {
    /// The default limit.
    Default,
    /// This number.
    Of(u64),
}

fn parse_limit(text: &str) -> Result<QuotaLimit, String> {
    match text {
        "default" => Ok(QuotaLimit::Default),
        "0" => Ok(QuotaLimit::Of(0)),
        text => values::parse_size(text).map(QuotaLimit::Of),
    }
}
