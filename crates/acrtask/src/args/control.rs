//! `acrtask runs`, `runner`, `secret`, `credential`, `token`, `schema`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    HowForm, PathOrStdin,
    engine::{BuilderArgs, EngineArgs, VaultRuleArgs},
    server::{OutputArgs, PeriodArgs, ServerArgs, ValueFrom, ttl},
    values::{self, Pair},
    webhooks::ApproveArgs,
};
use acrtask_model::RunId;

/// `acrtask runs ...`.
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
    Show(OneRunArgs),
    /// Print the log of a run
    #[command(after_long_help = "\
Examples:
  acrtask runs logs ID                       as `acrtask run` showed it
  acrtask runs logs -f ID                    goes on until the run ends; the exit code is the run's
  acrtask runs logs -o json ID | jq .event")]
    Logs(LogsArgs),
    /// Ask a run to stop
    Cancel(CancelArgs),
    /// Start the same run again: the same files, values and digests
    Rerun(RerunArgs),
    /// Say what a run waits for
    Why(OneRunArgs),
    /// Let a run of a stranger's commit begin: it gets the task's secrets, and may push
    #[command(after_long_help = "\
Examples:
  acrtask runs show ID       the commit that it is a run of
  acrtask runs approve ID

What is approved is that one commit. The next one of the same pull request waits again.")]
    Approve(ApproveArgs),
}

/// A run's id.
#[derive(Debug, Args)]
pub(crate) struct OneRunArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask runs list`.
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
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The states of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateArg {
    /// Waits for a runner
    Queued,
    /// Handed to a runner that has not begun yet
    Leased,
    /// Steps are running
    Running,
    /// Every step finished well
    Succeeded,
    /// A step failed
    Failed,
    /// Stopped by a person or the server
    Canceled,
    /// Went past its timeout
    TimedOut,
    /// Its engine or a registry failed
    Error,
}

/// `acrtask runs logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    /// Go on until the run ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The log of this attempt [default: the one that counts]
    #[arg(long, value_name = "N", conflicts_with = "follow", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) attempt: Option<u32>,
    #[command(flatten)]
    pub(crate) form: HowForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask runs cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The runs
    #[arg(required = true, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask runs rerun`.
#[derive(Debug, Args)]
pub(crate) struct RerunArgs {
    /// The run
    #[arg(value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: RunId,
    /// Print the new run's id and do not wait for its end
    #[arg(long, visible_alias = "detach")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) form: HowForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask runner`: the runner itself, or a word about runners.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(crate) struct RunnerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RunnerCommand>,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

impl RunnerArgs {
    /// How to be a runner, where that is what is asked for.
    pub(crate) fn starts(&self) -> Option<&StartArgs> {
        match &self.command {
            None => Some(&self.start),
            Some(RunnerCommand::Start(args)) => Some(args),
            Some(_) => None,
        }
    }
}

/// `acrtask runner ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum RunnerCommand {
    /// Be a runner of a server, until SIGTERM
    #[command(after_long_help = START_EXAMPLES)]
    Start(Box<StartArgs>),
    /// List the runners
    List(ListArgs),
    /// Let a runner finish what it holds and take nothing new
    Drain(RunnerNameArgs),
    /// Let a drained runner take runs again
    Resume(RunnerNameArgs),
    /// Forget a runner: its key is worth nothing any more
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

The token is needed once: the runner gets a key of its own for it, which stands in the state folder.
SIGTERM drains: the runs that it holds go on for as long as --drain-timeout says.";

/// `acrtask runner start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The server: https://HOST[:PORT]. May be repeated for servers that share a database: one is used at a time, and the next one when it is gone
    #[arg(
        long,
        env = "ACRTASK_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) server: Vec<String>,

    /// The file with the token of `acrtask runner token`, `-` for standard input; needed the first time [env: ACRTASK_RUNNER_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathOrStdin>,

    /// Its name [default: this machine's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Runs that it carries out at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,

    /// Expected pool; the server refuses another one [default: that of the registration token]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// Expected label, repeatable; the server refuses others [default: those of the registration token]
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,

    /// Where it keeps its key and the logs that the server does not have yet [default: $XDG_STATE_HOME/acrtask/runner]
    #[arg(long, env = "ACRTASK_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Certificates of the authorities that the server is trusted by (PEM) [default: the system's]
    #[arg(long, env = "ACRTASK_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Speak to a server that is not on this machine without TLS: everybody on the way can read the key
    #[arg(long, env = "ACRTASK_ALLOW_PLAINTEXT", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) allow_plaintext: bool,

    /// How long the runs that it holds may go on after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = values::duration)]
    pub(crate) drain_timeout: std::time::Duration,

    /// Take no run while less than this is free in the state folder
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = values::size_or_none)]
    pub(crate) min_free_disk: u64,

    /// Remove images that runs pulled from registries after this time; after an hour where the disk is nearly full
    #[arg(long, value_name = "TIME", default_value = "168h", value_parser = values::duration)]
    pub(crate) keep_images: std::time::Duration,

    /// Remove entries of the build cache that no build used for this time, also those of other users of the builder [default: BuildKit decides]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) keep_build_cache: Option<std::time::Duration>,

    /// Remove entries of the build cache above this size, those unused for longest first, also those of other users of the builder [default: BuildKit decides]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) build_cache_limit: Option<u64>,

    /// Let the contexts of runs be at private addresses
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

/// What the long-lived commands tell of their working.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryArgs {
    /// The form of the program's own log, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) log_format: LogFormat,

    /// Where traces go: an OTLP endpoint over gRPC, http://HOST:4317 [default: none]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
}

/// The forms of the program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// A list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
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

/// `acrtask runner token`.
#[derive(Debug, Args)]
pub(crate) struct RunnerTokenArgs {
    /// The pool that the runner will be in [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// A label of the runner, which can have no others; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,
    /// Most slots of the runner [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_slots: Option<u32>,
    /// Give the runner only runs of this task, or, with `*` at the end, of tasks whose names begin so
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// How long the token holds: 10m, 1h30m, or a number of seconds [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask secret ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret
    #[command(after_long_help = "\
Examples:
  acrtask secret set NPM_TOKEN < token
  acrtask secret set NPM_TOKEN --task app --from-env NPM_TOKEN

A value is never taken from the command line, where every process of the machine could read it.")]
    Set(SetSecretArgs),
    /// List the names of secrets
    List(ListArgs),
    /// Delete a secret
    Delete(SecretNameArgs),
}

/// `acrtask secret set`.
#[derive(Debug, Args)]
pub(crate) struct SetSecretArgs {
    /// Its name
    pub(crate) name: String,
    /// The task that alone may use it [default: every task that names it]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) from: ValueFrom,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask secret delete`, `acrtask credential delete`.
#[derive(Debug, Args)]
pub(crate) struct SecretNameArgs {
    /// Its name; of a credential, the host
    pub(crate) name: String,
    /// The one that this task alone may use
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask credential ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Set the login for a registry or a git host
    #[command(after_long_help = "\
Examples:
  acrtask credential set reg.example.com --username ci < password
  acrtask credential set github.com --username x-access-token --from-env GIT_PAT --task app
  acrtask credential set git.example.com --username git --known-hosts git.known_hosts < id_ed25519")]
    Set(SetCredentialArgs),
    /// List the hosts that there are logins for
    List(ListArgs),
    /// Delete a login
    Delete(SecretNameArgs),
}

/// `acrtask credential set`.
#[derive(Debug, Args)]
pub(crate) struct SetCredentialArgs {
    /// Host and port
    pub(crate) host: String,
    /// The user
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: String,
    /// The task that alone may use it [default: every task]
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Where the password is the private key for git over ssh: the host's own keys, as `ssh-keyscan HOST` prints them.
    /// Compare them with what the host publishes. Those of the large forges are known
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) from: ValueFrom,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask token ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is printed once, on standard output
    #[command(after_long_help = "\
Examples:
  acrtask token create laptop --scope run > token
  acrtask token create deploy --scope run --tasks 'deploy/*' --ttl 720h")]
    Create(CreateTokenArgs),
    /// List the tokens
    List(ListArgs),
    /// End a token
    Revoke(TokenIdArgs),
    /// Whose identity tokens are exchanged for tokens of the server
    #[command(subcommand)]
    Federate(FederateCommand),
}

/// `acrtask token create`.
#[derive(Debug, Args)]
pub(crate) struct CreateTokenArgs {
    /// What it is for
    pub(crate) name: String,
    /// What it may do; may be repeated
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    pub(crate) scope: Vec<ScopeArg>,
    /// Only this task, or, with `*` at the end, tasks whose names begin so
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// A pool that its tasks may use beside the default one; may be repeated
    #[arg(long, value_name = "NAME", requires = "tasks")]
    pub(crate) pool: Vec<String>,
    /// How long it holds: 12h, 720h, or a number of seconds [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeArg {
    /// See tasks, runs, logs and runners
    Read,
    /// Start, cancel and rerun, and all of `read`
    Run,
    /// Create, change and delete tasks, secrets and credentials, and all of `run`
    Write,
    /// Everything
    Admin,
}

/// `acrtask token revoke`.
#[derive(Debug, Args)]
pub(crate) struct TokenIdArgs {
    /// Its id, as `acrtask token list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask token federate ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum FederateCommand {
    /// Trust an issuer's tokens for some subjects
    #[command(after_long_help = "\
Examples:
  acrtask token federate create github --issuer https://token.actions.githubusercontent.com \\
    --audience https://ci.example.com --subject 'repo:org/app:ref:refs/heads/*' --scope run --tasks 'app/*'")]
    Create(FederationArgs),
    /// List them
    List(ListArgs),
    /// Trust it no longer
    Delete(FederationNameArgs),
}

/// `acrtask token federate create`.
#[derive(Debug, Args)]
pub(crate) struct FederationArgs {
    /// Its name
    pub(crate) name: String,
    /// The issuer, exactly as `iss` has it
    #[arg(long, value_name = "URL")]
    pub(crate) issuer: String,
    /// What `aud` must hold
    #[arg(long, value_name = "TEXT")]
    pub(crate) audience: String,
    /// What `sub` must be; `*` stands for anything
    #[arg(long, value_name = "PATTERN")]
    pub(crate) subject: String,
    /// What the tokens may do; may be repeated
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    pub(crate) scope: Vec<ScopeArg>,
    /// Only this task, or, with `*` at the end, tasks whose names begin so
    #[arg(long, value_name = "NAME")]
    pub(crate) tasks: Option<String>,
    /// A pool that their tasks may use beside the default one; may be repeated
    #[arg(long, value_name = "NAME", requires = "tasks")]
    pub(crate) pool: Vec<String>,
    /// How long the tokens hold; at most an hour
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = ttl)]
    pub(crate) ttl: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A federation's name.
#[derive(Debug, Args)]
pub(crate) struct FederationNameArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask schema`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaOf {
    /// A stored task: the files of `acrtask task apply`
    Task,
    /// A task file: acr-task.yaml
    AcrTask,
}
