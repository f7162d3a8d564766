//! Arguments of `acrtask runner`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    PathOrStdin,
    engine::{BuilderArgs, EngineArgs, VaultRuleArgs},
    server::{ListArgs, OutputArgs, ServerArgs, parse_ttl},
    telemetry::TelemetryArgs,
    values::{self, Pair},
};

/// Arguments of `acrtask runner`: those of a runner, or a subcommand that manages runners.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct RunnerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RunnerCommand>,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

impl RunnerArgs {
    /// Returns the arguments of a runner to start; `None` if a subcommand manages runners.
    pub(crate) fn start_args(&self) -> Option<&StartArgs> {
        match &self.command {
            None => Some(&self.start),
            Some(RunnerCommand::Start(args)) => Some(args),
            Some(_) => None,
        }
    }
}

/// Subcommands of `acrtask runner`.
#[derive(Debug, Subcommand)]
pub(crate) enum RunnerCommand {
    /// Run a runner of a server until SIGTERM
    #[command(after_long_help = START_EXAMPLES)]
    Start(Box<StartArgs>),
    /// List the runners
    List(ListArgs),
    /// Let a runner finish its runs and lease no new ones
    Drain(RunnerNameArgs),
    /// Let a drained runner lease runs again
    Resume(RunnerNameArgs),
    /// Delete a runner and invalidate its key
    Remove(RunnerNameArgs),
    /// Print a token that registers one runner
    #[command(after_long_help = "\
Examples:
  acrtask runner token --pool gpu --label zone=a --max-slots 4 --tasks 'team/*' > token
  acrtask runner start --server https://ci.example.com --token-file token   on the other machine")]
    Token(RunnerTokenArgs),
}

const START_EXAMPLES: &str = "\
Examples:
  acrtask runner start --server https://ci.example.com --token-file token
  acrtask runner start --server https://ci.example.com --slots 4
  acrtask runner start --server https://a.example.com,https://b.example.com   two servers, one PostgreSQL

The runner needs the token once, to obtain its own key, which it keeps in the state folder. On SIGTERM
it drains: its runs continue for at most --drain-timeout.";

/// Arguments of `acrtask runner start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Connect to this server: https://HOST[:PORT]; may be repeated for servers that share a
    /// database: the runner uses one of them, and another one if that fails
    #[arg(
        long,
        env = "ACRTASK_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) server: Vec<String>,

    /// Read the token of `acrtask runner token` from this file, `-` for standard input; needed only
    /// the first time [env: ACRTASK_RUNNER_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathOrStdin>,

    /// Name the runner [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Execute at most N runs at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,

    /// Require this pool; the server rejects any other [default: that of the registration token]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// Require this label; the server rejects any other; may be repeated [default: those of the
    /// registration token]
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,

    /// Keep the runner's key, and the logs not yet sent, in this folder [default:
    /// $XDG_STATE_HOME/acrtask/runner]
    #[arg(long, env = "ACRTASK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Trust these certificate authorities for the server (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Connect without TLS to a server on another machine; anyone on the network path can read the
    /// key
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,

    /// Let running runs continue for at most this time after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = values::parse_duration)]
    pub(crate) drain_timeout: std::time::Duration,

    /// Lease no run while the state folder has less free disk than this
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = values::parse_size_or_zero)]
    pub(crate) min_free_disk: u64,

    /// Remove images that runs pulled from registries after this time, or after an hour if the disk
    /// is nearly full
    #[arg(long, value_name = "TIME", default_value = "168h", value_parser = values::parse_duration)]
    pub(crate) keep_images: std::time::Duration,

    /// Remove build cache entries that no build used for this time, including those of other users
    /// of the builder [default: BuildKit decides]
    #[arg(long, value_name = "TIME", value_parser = values::parse_duration)]
    pub(crate) keep_build_cache: Option<std::time::Duration>,

    /// Limit the size of the build cache; the runner removes the least recently used entries first,
    /// including those of other users of the builder [default: BuildKit decides]
    #[arg(long, value_name = "SIZE", value_parser = values::parse_size)]
    pub(crate) build_cache_limit: Option<u64>,

    /// Allow contexts of runs at private addresses
    #[arg(long)]
    pub(crate) allow_private_addresses: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) vaults: VaultRuleArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// A runner's name.
#[derive(Debug, Args)]
pub(crate) struct RunnerNameArgs {
    /// The runner
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask runner token`.
#[derive(Debug, Args)]
pub(crate) struct RunnerTokenArgs {
    /// Put the runner into this pool [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// Allow this label, and no others; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,
    /// Allow at most N slots [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_slots: Option<u32>,
    /// Assign only runs of this task, or of tasks that match a prefix: 'team/*'
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// Let the token expire after this time: 10m, 1h30m, or a number of seconds [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    pub(crate) ttl: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
