//! What can be typed: the flags of every command, parsed into types.
//!
//! Invariants: a value that may be a secret is parsed by a function that cannot fail, because clap
//! repeats a refused value in its message; its form is checked afterwards, by [`values`].

pub(crate) mod backup;
pub(crate) mod cascades;
pub(crate) mod control;
pub(crate) mod engine;
pub(crate) mod images;
pub(crate) mod quotas;
pub(crate) mod serve;
pub(crate) mod server;
pub(crate) mod stored;
pub(crate) mod task;
pub(crate) mod timers;
pub(crate) mod triggers;
pub(crate) mod values;
pub(crate) mod webhooks;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::quotas::QuotaCommand;
use self::{
    backup::{BackupArgs, MigrateStoreArgs, RestoreArgs},
    cascades::CascadeCommand,
    control::{CredentialCommand, RunnerArgs, RunsCommand, SchemaOf, SecretCommand, TokenCommand},
    engine::{BuilderArgs, EngineArgs, VaultArgs},
    images::{BaseCommand, ImagesCommand},
    serve::ServeArgs,
    server::{LoginArgs, LogoutArgs, RemoteArgs, WhoamiArgs},
    stored::TaskCommand,
    task::{FactArgs, GitArgs, TaskArgs},
    values::{BuildTag, Pair, SecretPair},
    webhooks::{DoctorArgs, WebhookCommand},
};

const EXIT_CODES: &str = "\
Exit codes:
    0  the run succeeded
    1  the run failed: a step failed
    2  the task file or the usage is wrong, or the server refused it; nothing was started
    3  the engine, a registry or the server could not be reached
  124  the run went past its timeout
  130  interrupted";

const ABOUT_OUTPUT: &str = "\
Output:
  The run's log is the data: it goes to standard output, in each form. What is wrong with a task
  file, and why a run did not succeed, go to standard error.
  text   on a terminal: builds folded, running steps redrawn; in a pipe: as plain
  plain  lines that begin with the step's id, without colour
  json   one event a line; docs/events.md has the schema";

/// Builds, tests and pushes container images as a task file says: on this machine's own engine, or on a server's runners.
#[derive(Debug, Parser)]
#[command(
    name = "acrtask",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 110,
    after_help = EXIT_CODES,
    after_long_help = format!("\
Examples:
  acrtask run                            the task of this folder
  acrtask run -r reg.example.com .       the same; its images go to reg.example.com
  acrtask plan -o json | jq '.steps[].id'
  acrtask build -t reg.example.com/app:1 .
  acrtask serve                          a server with a runner on this machine
  acrtask login https://ci.example.com   from now on `acrtask run` goes to this server
  acrtask runs list

{EXIT_CODES}")
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Colour the output
    ///
    /// `auto` colours a terminal, unless NO_COLOR is set.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        help_heading = "Global options"
    )]
    pub(crate) color: ColorWhen,

    /// What the program says about its own working, on standard error: error, warn, info, debug, trace, or a filter like `acrtask_buildkit=debug`
    #[arg(
        long,
        global = true,
        env = "ACRTASK_LOG",
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    pub(crate) log_level: Option<String>,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a task: build, test and push as its file says
    Run(Box<RunArgs>),
    /// Build one image and push it
    Build(Box<BuildArgs>),
    /// Show what a task would do, without an engine
    Plan(Box<PlanArgs>),
    /// Remember a server: `run` and `build` go there from now on
    Login(LoginArgs),
    /// Forget a server
    Logout(LogoutArgs),
    /// Show which server is meant, and what the token may do there
    Whoami(WhoamiArgs),
    /// Tasks that a server keeps
    #[command(subcommand)]
    Task(TaskCommand),
    /// Runs on a server
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Be a runner, or look after the runners of a server
    Runner(Box<RunnerArgs>),
    /// Be a server: the API, the queue, the logs, and a runner
    Serve(Box<ServeArgs>),
    /// Write one archive of a server's database, logs, contexts and key
    Backup(BackupArgs),
    /// Write the data of such an archive into an empty folder
    Restore(RestoreArgs),
    /// Copy a server's SQLite database into PostgreSQL
    MigrateStore(MigrateStoreArgs),
    /// What forges and registries tell a server, so that commits and pushes of images start runs
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Find out what is wrong with a server, or with what a task needs there
    Doctor(DoctorArgs),
    /// Secrets that a server keeps for tasks
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Logins for registries and git hosts that a server keeps for tasks
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Images that runs pushed, and what they stand on
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Base images that are watched because images stand on them
    #[command(subcommand)]
    Base(BaseCommand),
    /// What a new base image makes be built again: planned, followed and steered
    #[command(subcommand)]
    Cascade(CascadeCommand),
    /// What tasks and tokens may take of a server
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Tokens that open a server
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a JSON Schema, for editors
    #[command(after_help = "\
Examples:
  acrtask schema task > task.schema.json
  acrtask schema acr-task > acr-task.schema.json")]
    Schema {
        /// Of what
        #[arg(value_enum)]
        of: SchemaOf,
    },
    /// Print the completions for a shell
    #[command(after_help = "\
Examples:
  acrtask completions bash > /etc/bash_completion.d/acrtask
  acrtask completions fish > ~/.config/fish/completions/acrtask.fish
  acrtask completions zsh > \"${fpath[1]}/_acrtask\"")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether it runs until it is asked to end.
    pub(crate) fn is_long_lived(&self) -> bool {
        match self {
            Self::Serve(args) => !args.reset_admin_token,
            Self::Runner(args) => args.starts().is_some(),
            _ => false,
        }
    }
}

/// `acrtask run`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  acrtask run                                    acr-task.yaml of this folder
  acrtask run -r reg.example.com --set tag=v2 .  its images go to reg.example.com
  acrtask run https://github.com/org/repo.git#main:service
  acrtask run --cmd 'reg.example.com/app:1 --self-test' /dev/null
  acrtask run --watch --no-push --local          again at each change of the folder
  acrtask run --no-wait .                        on the server of `acrtask login`: prints the run's id
  acrtask run -o json | jq -r 'select(.event == \"image_pushed\") | .digest'

CONTEXT:
  FOLDER                 a folder; `.` where none is given
  URL#REF:FOLDER         a git repository: a branch, tag, commit or pull request, and a folder in it
  URL or FILE            a tarball
  oci://REFERENCE        an artifact in a registry
  -                      a tar on standard input
  /dev/null              nothing

SECRETS of the task file (`secrets: - id: ID`):
  keyvault: URL          Azure Key Vault, with AZURE_TENANT_ID, AZURE_CLIENT_ID, and
                         AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE
  vault: PATH#KEY        HashiCorp Vault at VAULT_ADDR, with VAULT_TOKEN, VAULT_ROLE_ID and
                         VAULT_SECRET_ID, or VAULT_JWT_FILE and VAULT_JWT_ROLE
  env: NAME, file: PATH  a variable, a file of the context
  --set-secret and --secret-file win over all of them

{ABOUT_OUTPUT}

{EXIT_CODES}"))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,

    /// Run IMAGE with ARGS as the only step, instead of a task file
    #[arg(
        long,
        value_name = "IMAGE ARGS",
        conflicts_with = "file",
        help_heading = "Task"
    )]
    pub(crate) cmd: Option<String>,

    /// Run again when the folder changes; a run that is under way is stopped, the newest state wins
    #[arg(long, conflicts_with = "cmd", help_heading = "Run")]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) how: HowArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) vaults: VaultArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
}

/// The form of the log of a run.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct HowForm {
    /// The form of the log
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: RunOutput,
}

/// How `run` and `build` carry a plan out.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct HowArgs {
    /// The platform to build and run for: linux/amd64, linux/arm64 ...
    ///
    /// A build line's own `--platform` wins.
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Stop the run after this long: 90s, 10m, 1h30m, or a number of seconds
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) timeout: Option<std::time::Duration>,

    /// Build and test, but push nothing
    #[arg(long)]
    pub(crate) no_push: bool,

    /// The form of the log
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: RunOutput,
}

/// The forms of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum RunOutput {
    /// Live on a terminal, plain lines in a pipe
    #[default]
    Text,
    /// One event a line
    Json,
    /// Lines that begin with the step's id
    Plain,
}

/// `acrtask build`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  acrtask build -t reg.example.com/app:1 .
  acrtask build -t app:1 -r reg.example.com .            the same
  acrtask build -t app:1 -r reg.example.com -f docker/Dockerfile --target test --no-push .
  NPM_TOKEN=... acrtask build -t reg.example.com/app:1 --secret-build-arg NPM_TOKEN .
  acrtask build -t reg.example.com/app:1 https://github.com/org/app.git#main

{ABOUT_OUTPUT}

{EXIT_CODES}"))]
pub(crate) struct BuildArgs {
    /// Folder, git URL, tarball, `oci://REFERENCE` or `-`: what to build from
    #[arg(default_value = ".")]
    pub(crate) context: String,

    /// The image's name; a name without a registry gets the one of --registry; may be repeated
    ///
    /// The values of a task file work in it: `-t 'app:{{.Run.ID}}'`, `-t '$Registry/app:$ID'`.
    #[arg(
        short = 't',
        long = "image",
        visible_alias = "tag",
        required = true,
        value_name = "IMAGE"
    )]
    pub(crate) tags: Vec<BuildTag>,

    /// The Dockerfile, relative to the current folder, else to the context; `-` for standard input [default: Dockerfile in the context]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<String>,

    /// A build argument; a NAME alone takes its value from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,

    /// A build argument with a secret value: masked in all output
    ///
    /// `--secret-build-arg NAME` takes the value from the environment, which keeps it out of the list of
    /// processes. A build argument can be read in the image's history: a Dockerfile of your own does
    /// better with `RUN --mount=type=secret` and --secret-file.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = values::secret_pair)]
    pub(crate) secret_build_arg: Vec<SecretPair>,

    /// A label of the image; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,

    /// Stop at this stage of the Dockerfile
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Use nothing of the cache
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// A file that the Dockerfile reads with `RUN --mount=type=secret,id=ID`
    #[arg(long, value_name = "ID=PATH")]
    pub(crate) secret_file: Vec<Pair>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) facts: FactArgs,
    #[command(flatten)]
    pub(crate) how: HowArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
}

/// `acrtask plan`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask plan                                the task of this folder, as a picture
  acrtask plan -r reg.example.com --set tag=v2 -o json
  acrtask plan -f - < task.yaml
  acrtask plan -f ci/release.yaml --commit $(git rev-parse HEAD) .

Nothing is started and no engine is needed. The plan is printed on standard output, what is wrong
with the file on standard error; with `-o json` a refused file also gives
{\"ok\":false,\"diagnostics\":[...]}. Secrets are masked in the picture. JSON is for programs: a secret
that the file puts into a line is in it. No vault is read: a placeholder takes the place of its secrets.

Exit codes:
    0  the file is a task
    2  the task file or the usage is wrong
    3  a context or an alias source could not be reached")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,

    /// The form of the plan
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: PlanOutput,
}

/// The forms of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum PlanOutput {
    /// A picture of the graph
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// A path that was typed, or `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathOrStdin {
    /// A file.
    Path(PathBuf),
    /// Standard input.
    Stdin,
}

impl std::str::FromStr for PathOrStdin {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "-" => Self::Stdin,
            path => Self::Path(path.into()),
        })
    }
}
