//! `acrtask cascade`: what a new base image makes be built again.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    PathOrStdin,
    server::{OutputArgs, ServerArgs},
};

/// `acrtask cascade ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CascadeCommand {
    /// Show what a new digest of a base would build again, in which order and how long that takes; nothing is started
    #[command(after_long_help = PLAN_EXAMPLES)]
    Plan(PlanCascadeArgs),
    /// List cascades, the newest first
    #[command(after_long_help = "\
Examples:
  acrtask cascade list --active
  acrtask cascade list --task app            those that have, or had, something to do with it
  acrtask cascade list -o json | jq -r '.items[0].id'")]
    List(ListCascadesArgs),
    /// Show a cascade as a tree: what was built, what waits or is stale, and why; on a terminal until it is over
    #[command(after_long_help = SHOW_EXAMPLES)]
    Show(ShowCascadeArgs),
    /// Start nothing more of a cascade; what runs goes on
    Pause(CascadeArgs),
    /// Go on with a paused cascade
    Resume(CascadeArgs),
    /// Agree to a cascade that waits for somebody's consent
    #[command(after_long_help = "\
Examples:
  acrtask cascade show --no-follow 7         what it would build, and on which digests
  acrtask cascade approve 7

Which tasks wait for consent is said by `acrtask cascade settings`. One consent is for all of the
cascade, also for what joins it.")]
    Approve(CascadeArgs),
    /// Stop a cascade: its runs are canceled, and what it would have built stays stale until another digest comes
    Cancel(CascadeArgs),
    /// Try again what failed, was left behind or was canceled, with the digests of now
    Retry(CascadeArgs),
    /// Move the tags of everything that a cascade holds back, whatever its tests say
    Promote(CascadeArgs),
    /// Put back, under all tags that a cascade moved, what they held before it; what it still holds back is given up
    #[command(after_long_help = ROLLBACK_EXAMPLES)]
    Rollback(CascadeArgs),
    /// Show or set how cascades are carried out: limits, quiet hours, consent, promotion
    #[command(after_long_help = SETTINGS_EXAMPLES)]
    Settings(SettingsArgs),
}

const PLAN_EXAMPLES: &str = "\
Examples:
  acrtask cascade plan                       all that is stale now
  acrtask cascade plan alpine:3.20           what the digest that this tag has now makes stale
  acrtask cascade plan alpine:3.20@sha256:...  what this digest would
  acrtask cascade plan --all alpine:3.20     that, and all that is stale for other reasons
  acrtask cascade plan alpine:3.20 -o dot | dot -Tsvg > plan.svg
  acrtask cascade plan alpine:3.20 -o json | jq -r '.nodes[].task'

A task stands below the last one that it waits for. Its time is that of its past runs.";

const SHOW_EXAMPLES: &str = "\
Examples:
  acrtask cascade show 7                     live on a terminal, once in a pipe
  acrtask cascade show --no-follow 7         once
  acrtask cascade show --follow 7 | cat      a line for each change, until it is over
  acrtask cascade show -o json 7 | jq -r '.nodes[] | select(.state == \"failed\") | .run'

Leaving with Ctrl-C leaves the cascade alone.

Exit codes:
    0  it was shown; with --follow: it is over, and everything is built
    1  with --follow: it is over, and something failed or was left stale
    2  there is no such cascade, or the usage is wrong
    3  the server could not be reached
  130  with --follow: somebody canceled the cascade, or Ctrl-C";

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  acrtask cascade show --no-follow 7         the last table: what each tag held before
  acrtask cascade rollback 7

The cascade has to be over. A tag that did not exist before, or that somebody has moved since, is left
as it is, and the table says so.";

const SETTINGS_EXAMPLES: &str = "\
Examples:
  acrtask cascade settings > cascades.yaml
  acrtask cascade settings set -f cascades.yaml

A settings file, each line of which may be left out:
  settleSecs: 30           # changes within so many seconds make one cascade
  parallel: 4              # runs of one cascade side by side
  parallelTotal: 8         # runs of all cascades side by side
  retries: 1               # how often a failed run is tried again
  retryDelaySecs: 60
  healSecs: 3600           # what failed even so is tried again then, and ever more rarely
  priority: -5             # of its runs; those that people start have 0
  patience: 3              # how often a task is moved to a later cascade before it is built anyway
  timeZone: Europe/Berlin
  quiet:                   # nothing is started then
    - {from: '22:00', to: '06:00'}
  rules:                   # the longest that fits a task's name holds
    - {tasks: shop/, mode: approval}
    - {tasks: app/, mode: {canary: {first: [app/small]}}}
  promotion:               # such cascades move all their tags together
    tasks: shop/
    tests: [shop/e2e, shop/web/smoke]   # TASK or TASK/STEP";

/// The forms of a plan of a cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CascadePlanForm {
    /// A tree
    #[default]
    Text,
    /// One JSON document
    Json,
    /// A graph for graphviz
    Dot,
}

/// `acrtask cascade plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanCascadeArgs {
    /// The base that moves: REGISTRY/REPOSITORY:TAG, or with the digest that it would have: ...@DIGEST [default: all that is stale]
    #[arg(value_name = "REF[@DIGEST]")]
    pub(crate) reference: Option<String>,

    /// All that is stale, not only what stands on this base
    #[arg(long)]
    pub(crate) all: bool,

    /// The form of the plan
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: CascadePlanForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask cascade list`.
#[derive(Debug, Args)]
pub(crate) struct ListCascadesArgs {
    /// Only those that are not over
    #[arg(long)]
    pub(crate) active: bool,
    /// Only those that have, or had, something to do with this task; `PREFIX*`: with one whose name begins so
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask cascade show`.
#[derive(Debug, Args)]
pub(crate) struct ShowCascadeArgs {
    /// The cascade
    #[arg(value_name = "ID")]
    pub(crate) id: u64,
    /// Go on until it is over [default: on a terminal]
    #[arg(short, long, conflicts_with = "no_follow")]
    pub(crate) follow: bool,
    /// Show it once
    #[arg(long)]
    pub(crate) no_follow: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A cascade.
#[derive(Debug, Args)]
pub(crate) struct CascadeArgs {
    /// The cascade
    #[arg(value_name = "ID")]
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask cascade settings`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SettingsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SettingsCommand>,
    #[command(flatten)]
    pub(crate) show: ShowSettingsArgs,
}

/// `acrtask cascade settings ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Show them
    Show(ShowSettingsArgs),
    /// Set all of them: what the file leaves out is as it is by default
    #[command(after_long_help = SETTINGS_EXAMPLES)]
    Set(SetSettingsArgs),
}

/// `acrtask cascade settings show`.
#[derive(Debug, Args)]
pub(crate) struct ShowSettingsArgs {
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: SettingsForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The forms of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum SettingsForm {
    /// A file for `settings set`
    #[default]
    Yaml,
    /// One JSON document
    Json,
}

/// `acrtask cascade settings set`.
#[derive(Debug, Args)]
pub(crate) struct SetSettingsArgs {
    /// The file, YAML or JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathOrStdin,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
