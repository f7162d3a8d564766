//! Arguments of `acrtask cascade`: cascading rebuilds after digest changes.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    PathOrStdin,
    server::{OutputArgs, ServerArgs},
};

/// Subcommands of `acrtask cascade`.
#[derive(Debug, Subcommand)]
pub(crate) enum CascadeCommand {
    /// Show what a new digest of a base would rebuild, in which order and for how long; start
    /// nothing
    #[command(after_long_help = PLAN_EXAMPLES)]
    Plan(PlanCascadeArgs),
    /// List cascades, the newest first
    #[command(after_long_help = "\
Examples:
  acrtask cascade list --active
  acrtask cascade list --task app            cascades that rebuild, or rebuilt, this task
  acrtask cascade list -o json | jq -r '.items[0].id'")]
    List(ListCascadesArgs),
    /// Show a cascade as a tree: built, waiting and stale images, with reasons; on a terminal,
    /// follow it until it is finished
    #[command(after_long_help = SHOW_EXAMPLES)]
    Show(ShowCascadeArgs),
    /// Pause a cascade: start no more runs; running ones continue
    Pause(CascadeIdArgs),
    /// Resume a paused cascade
    Resume(CascadeIdArgs),
    /// Approve a cascade that waits for approval
    #[command(after_long_help = "\
Examples:
  acrtask cascade show --no-follow 7         show what it would build, and from which digests
  acrtask cascade approve 7

`acrtask cascade settings` shows which tasks wait for an approval. One approval covers the whole
cascade, including changes that join it later.")]
    Approve(CascadeIdArgs),
    /// Cancel a cascade and its runs; its unbuilt images stay stale until the next digest change
    Cancel(CascadeIdArgs),
    /// Retry failed, skipped and canceled nodes with the current digests
    Retry(CascadeIdArgs),
    /// Set the tags of all staged images of a cascade, regardless of its tests
    Promote(CascadeIdArgs),
    /// Restore the previous digests of all tags that a cascade set, and discard its staged images
    #[command(after_long_help = ROLLBACK_EXAMPLES)]
    Rollback(CascadeIdArgs),
    /// Show or set the limits, quiet hours, approvals and promotion of cascades
    #[command(after_long_help = SETTINGS_EXAMPLES)]
    Settings(SettingsArgs),
}

const PLAN_EXAMPLES: &str = "\
Examples:
  acrtask cascade plan                       everything that is stale now
  acrtask cascade plan alpine:3.20           what this tag's current digest makes stale
  acrtask cascade plan alpine:3.20@sha256:...  what this digest would make stale
  acrtask cascade plan --all alpine:3.20     that, and everything that is stale for other reasons
  acrtask cascade plan alpine:3.20 -o dot | dot -Tsvg > plan.svg
  acrtask cascade plan alpine:3.20 -o json | jq -r '.nodes[].task'

Each task appears below the last task that it waits for. Its duration is estimated from its past runs.";

const SHOW_EXAMPLES: &str = "\
Examples:
  acrtask cascade show 7                     follow it on a terminal, print it once in a pipe
  acrtask cascade show --no-follow 7         print it once
  acrtask cascade show --follow 7 | cat      print a line for each change, until it is finished
  acrtask cascade show -o json 7 | jq -r '.nodes[] | select(.state == \"failed\") | .run'

Ctrl-C ends only the display, not the cascade.

Exit codes:
    0  the cascade was shown; with --follow: it finished, and everything is built
    1  with --follow: it finished, and something failed or stayed stale
    2  the cascade does not exist, or the usage is wrong
    3  the server could not be reached
  130  with --follow: a user canceled the cascade, or you pressed Ctrl-C";

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  acrtask cascade show --no-follow 7         see the last table for the previous digest of each tag
  acrtask cascade rollback 7

The cascade must be finished. A tag that did not exist before, or that was set again since, stays
unchanged, and the table shows that.";

const SETTINGS_EXAMPLES: &str = "\
Examples:
  acrtask cascade settings > cascades.yaml
  acrtask cascade settings set -f cascades.yaml

A settings file, all lines optional:
  settleSecs: 30              # collect changes for this long, then start one cascade
  parallel: 4                 # concurrent runs of one cascade
  parallelTotal: 8            # concurrent runs of all cascades
  retries: 1                  # retries of a failed run
  retryDelaySecs: 60
  retryFailedAfterSecs: 3600  # wait before a failed task is rebuilt; doubles each time
  priority: -5                # of its runs; manual runs have 0
  maxDeferrals: 3             # then a task is built with the current digests
  timezone: Europe/Berlin
  quietHours:                 # cascades start nothing in these hours
    - {from: '22:00', to: '06:00'}
  rules:                      # the longest matching prefix applies
    - {tasks: shop/, mode: approval}
    - {tasks: app/, mode: {canary: {first: [app/small]}}}
  promotion:                  # matching cascades set all their tags at once
    tasks: shop/
    tests: [shop/e2e, shop/web/smoke]   # TASK or TASK/STEP";

/// Forms of a cascade's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CascadePlanForm {
    /// A tree
    #[default]
    Text,
    /// JSON document
    Json,
    /// A graph for Graphviz
    Dot,
}

/// Arguments of `acrtask cascade plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanCascadeArgs {
    /// Plan for this base, REGISTRY/REPOSITORY:TAG, optionally with a future digest: ...@DIGEST
    /// [default: everything that is stale]
    #[arg(value_name = "REF[@DIGEST]")]
    pub(crate) reference: Option<String>,

    /// Include everything that is stale, not only the dependents of this base
    #[arg(long)]
    pub(crate) all: bool,

    /// Choose the form of the plan
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: CascadePlanForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask cascade list`.
#[derive(Debug, Args)]
pub(crate) struct ListCascadesArgs {
    /// Only cascades that are not finished
    #[arg(long)]
    pub(crate) active: bool,
    /// Only cascades that rebuild, or rebuilt, this task, or a task that matches `PREFIX*`
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Show at most N entries
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask cascade show`.
#[derive(Debug, Args)]
pub(crate) struct ShowCascadeArgs {
    /// The cascade
    #[arg(value_name = "ID")]
    pub(crate) id: u64,
    /// Follow the cascade until it is finished [default: on a terminal]
    #[arg(short, long, conflicts_with = "no_follow")]
    pub(crate) follow: bool,
    /// Print the cascade once
    #[arg(long)]
    pub(crate) no_follow: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of a command that needs only a cascade's id.
#[derive(Debug, Args)]
pub(crate) struct CascadeIdArgs {
    /// The cascade
    #[arg(value_name = "ID")]
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask cascade settings`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SettingsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SettingsCommand>,
    #[command(flatten)]
    pub(crate) show: ShowSettingsArgs,
}

/// Subcommands of `acrtask cascade settings`.
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Show the settings
    Show(ShowSettingsArgs),
    /// Replace all settings; lines missing in the file reset to their defaults
    #[command(after_long_help = SETTINGS_EXAMPLES)]
    Set(SetSettingsArgs),
}

/// Arguments of `acrtask cascade settings show`.
#[derive(Debug, Args)]
pub(crate) struct ShowSettingsArgs {
    /// Choose the form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: SettingsForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Forms of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum SettingsForm {
    /// A file for `settings set`
    #[default]
    Yaml,
    /// JSON document
    Json,
}

/// Arguments of `acrtask cascade settings set`.
#[derive(Debug, Args)]
pub(crate) struct SetSettingsArgs {
    /// Read the settings from this file, YAML or JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathOrStdin,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
