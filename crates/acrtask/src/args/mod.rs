//! Command line arguments: the flags of every command, parsed into types.
//!
//! Invariant: the parser of a value that may be a secret cannot fail, because clap repeats a
//! rejected value in its message. [`values`] checks the form of such a value later.

pub(crate) mod backup;
pub(crate) mod base;
pub(crate) mod cascade;
pub(crate) mod catalog;
pub(crate) mod commit_trigger;
pub(crate) mod credential;
pub(crate) mod doctor;
pub(crate) mod engine;
pub(crate) mod image;
pub(crate) mod quota;
pub(crate) mod registry;
pub(crate) mod runner;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod server;
pub(crate) mod task;
pub(crate) mod task_file;
pub(crate) mod telemetry;
pub(crate) mod timer;
pub(crate) mod token;
pub(crate) mod values;
pub(crate) mod webhook;

#[cfg(test)]
mod reference_tests;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::{
    backup::{BackupArgs, MigrateStoreArgs, RestoreArgs},
    base::BaseCommand,
    cascade::CascadeCommand,
    catalog::CatalogCommand,
    credential::CredentialCommand,
    doctor::DoctorArgs,
    engine::{BuilderArgs, EngineArgs, VaultArgs},
    image::ImageCommand,
    quota::QuotaCommand,
    registry::RegistryCommand,
    runner::RunnerArgs,
    runs::RunsCommand,
    schema::SchemaKind,
    secret::SecretCommand,
    serve::ServeArgs,
    server::{LoginArgs, LogoutArgs, RemoteArgs, WhoamiArgs},
    task::TaskCommand,
    task_file::{GitArgs, RunVariableArgs, TaskArgs},
    token::TokenCommand,
    values::{BuildTag, Pair, SecretPair},
    webhook::WebhookCommand,
};

const EXIT_CODES: &str = "\
Exit codes:
    0  the run succeeded
    1  the run failed: a step failed
    2  the task file or the usage is wrong, or the server rejected it; nothing was started
    3  the engine, a registry or the server could not be reached
  124  the run exceeded its timeout
  130  interrupted";

const ABOUT_OUTPUT: &str = "\
Output:
  The run's log is the data: acrtask writes it to standard output, in each form. Problems in a task
  file, and the reason why a run did not succeed, go to standard error.
  text   on a terminal: finished builds collapsed, running steps redrawn; in a pipe: as plain
  plain  lines that begin with the step's id, without colour
  json   one event a line; docs/events.md has the schema";

/// Build, test and push container images from a task file, on this machine's engine or on a
/// server's runners.
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
  acrtask run                            run the task in this folder
  acrtask run -r reg.example.com .       the same, and push its images to reg.example.com
  acrtask plan -o json | jq '.steps[].id'
  acrtask build -t reg.example.com/app:1 .
  acrtask serve                          start a server with a runner on this machine
  acrtask login https://ci.example.com   use this server for `acrtask run` from now on
  acrtask runs list

{EXIT_CODES}")
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command accepts.
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

    /// Set the level of the program's own log on standard error: error, warn, info, debug, trace,
    /// or a filter like `acrtask_buildkit=debug`
    #[arg(
        long,
        global = true,
        env = "ACRTASK_LOG",
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    pub(crate) log_level: Option<String>,
}

/// Conditions for colored output.
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

/// The commands of the program.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a task: build, test and push as its file defines
    Run(Box<RunArgs>),
    /// Build one image and push it
    Build(Box<BuildArgs>),
    /// Show what a task would do, without an engine
    Plan(Box<PlanArgs>),
    /// Store the login for a server; `run` and `build` use this server from now on
    Login(LoginArgs),
    /// Delete the stored login for a server
    Logout(LogoutArgs),
    /// Show the current server and what your token may do there
    Whoami(WhoamiArgs),
    /// Manage the tasks that a server stores
    #[command(subcommand)]
    Task(TaskCommand),
    /// List, follow, cancel and approve runs on a server
    #[command(subcommand)]
    Runs(RunsCommand),
    /// Run or manage build runners
    Runner(Box<RunnerArgs>),
    /// Run a server: the API, the queue, the logs, and a runner
    Serve(Box<ServeArgs>),
    /// Write one archive of a server's database, logs, contexts and key
    Backup(BackupArgs),
    /// Restore an archive of `acrtask backup` into an empty folder
    Restore(RestoreArgs),
    /// Copy a server's SQLite database into PostgreSQL
    MigrateStore(MigrateStoreArgs),
    /// Manage webhooks: forges and registries send events to a server, and these start runs
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Find problems of a server, or of what a task needs there
    Doctor(DoctorArgs),
    /// Manage the secrets that a server stores for tasks
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Manage the logins for registries and git hosts that a server stores for tasks
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Show the images that runs pushed and the bases they were built from
    #[command(subcommand, alias = "images")]
    Image(ImageCommand),
    /// List tags and delete old images at a registry, with your own login
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// Add ready-made tasks to a server, such as a nightly purge of its registry
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Manage the base images that a server watches
    #[command(subcommand)]
    Base(BaseCommand),
    /// Plan, follow and control cascading rebuilds
    #[command(subcommand)]
    Cascade(CascadeCommand),
    /// Limit the resources that tasks and tokens may use on a server
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Manage the API tokens of a server
    #[command(subcommand)]
    Token(TokenCommand),
    /// Explain a diagnostic of a file, such as `unknown-key`
    ///
    /// A diagnostic begins with `error[CODE]` or `warning[CODE]`. Without CODE, the command lists
    /// all codes.
    Explain {
        /// The text in brackets
        #[arg(value_name = "CODE", value_parser = schema::diagnostic_codes())]
        code: Option<acrtask_spec::Code>,
    },
    /// Print a JSON Schema for editors
    #[command(after_help = "\
Examples:
  acrtask schema task > task.schema.json
  acrtask schema acr-task > acr-task.schema.json")]
    Schema {
        /// The file format
        #[arg(value_enum)]
        of: SchemaKind,
    },
    /// Print the completion script for a shell
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
    /// Returns `true` if the command runs until a signal stops it.
    pub(crate) fn is_long_lived(&self) -> bool {
        match self {
            Self::Serve(args) => !args.reset_admin_token,
            Self::Runner(args) => args.start_args().is_some(),
            _ => false,
        }
    }
}

/// Arguments of `acrtask run`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  acrtask run                                    run acr-task.yaml of this folder
  acrtask run -r reg.example.com --set tag=v2 .  push its images to reg.example.com
  acrtask run https://github.com/org/repo.git#main:service
  acrtask run --cmd 'reg.example.com/app:1 --self-test' /dev/null
  acrtask run --watch --no-push --local          run again after each change in the folder
  acrtask run --no-wait .                        queue it on the server of `acrtask login`, print its id
  acrtask run -o json | jq -r 'select(.event == \"image_pushed\") | .digest'

CONTEXT:
  FOLDER                 a folder; `.` by default
  URL#REF:FOLDER         a git repository: a branch, tag, commit or pull request, and a folder in it
  URL or FILE            a tarball
  oci://REFERENCE        an artifact in a registry
  -                      a tar on standard input
  /dev/null              no files

SECRETS of the task file (`secrets: - id: ID`):
  keyvault: URL          Azure Key Vault, with AZURE_TENANT_ID, AZURE_CLIENT_ID, and
                         AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE
  vault: PATH#KEY        HashiCorp Vault at VAULT_ADDR, with VAULT_TOKEN, VAULT_ROLE_ID and
                         VAULT_SECRET_ID, or VAULT_JWT_FILE and VAULT_JWT_ROLE
  env: NAME, file: PATH  an environment variable, a file of the context
  --set-secret and --secret-file override all of them

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

    /// Run again when the folder changes; stop a running run and start with the newest files
    #[arg(long, conflicts_with = "cmd", help_heading = "Run")]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) vaults: VaultArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
}

/// `--output` of commands that print the log of a run.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LogFormArgs {
    /// Choose the form of the log
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: RunOutput,
}

/// Flags that control how `run` and `build` execute a plan.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct ExecutionArgs {
    /// Build and run for this platform: linux/amd64, linux/arm64 ...
    ///
    /// `--platform` in a build line overrides it.
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Stop the run after this time: 90s, 10m, 1h30m, or a number of seconds
    #[arg(long, value_name = "TIME", value_parser = values::parse_duration)]
    pub(crate) timeout: Option<std::time::Duration>,

    /// Build and test, but push nothing
    #[arg(long)]
    pub(crate) no_push: bool,

    /// Choose the form of the log
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: RunOutput,
}

/// Forms of a run's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum RunOutput {
    /// Live view on a terminal, plain lines in a pipe
    #[default]
    Text,
    /// JSON with one event per line
    Json,
    /// Lines that begin with the step's id
    Plain,
}

/// Arguments of `acrtask build`.
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
    /// Build from this folder, git URL, tarball, `oci://REFERENCE`, or `-` for standard input
    #[arg(default_value = ".")]
    pub(crate) context: String,

    /// Name the image; a name without a registry gets the one of --registry; may be repeated
    ///
    /// Templates of a task file work here too: `-t 'app:{{.Run.ID}}'`, `-t '$Registry/app:$ID'`.
    #[arg(
        short = 't',
        long = "image",
        visible_alias = "tag",
        required = true,
        value_name = "IMAGE"
    )]
    pub(crate) tags: Vec<BuildTag>,

    /// Use this Dockerfile, relative to the current folder or else to the context; `-` for standard
    /// input [default: Dockerfile in the context]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<String>,

    /// Set a build argument; a NAME without a value takes it from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,

    /// Set a build argument with a secret value, which is masked in all output
    ///
    /// `--secret-build-arg NAME` takes the value from the environment, which keeps it out of the
    /// list of processes. Build arguments remain readable in the image's history. In your own
    /// Dockerfile, prefer `RUN --mount=type=secret` with --secret-file.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = values::parse_secret_pair)]
    pub(crate) secret_build_arg: Vec<SecretPair>,

    /// Set a label of the image; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<Pair>,

    /// Stop at this stage of the Dockerfile
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Do not use the build cache
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Provide a file to `RUN --mount=type=secret,id=ID` of the Dockerfile
    #[arg(long, value_name = "ID=PATH")]
    pub(crate) secret_file: Vec<Pair>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) variables: RunVariableArgs,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) builder: BuilderArgs,
}

/// Arguments of `acrtask plan`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask plan                                show the task of this folder as a graph
  acrtask plan -r reg.example.com --set tag=v2 -o json
  acrtask plan -f - < task.yaml
  acrtask plan -f ci/release.yaml --commit $(git rev-parse HEAD) .

`plan` starts nothing and needs no engine. It prints the plan on standard output and the problems of
the file on standard error. With `-o json`, a rejected file also prints
{\"ok\":false,\"diagnostics\":[...]}. The graph masks secrets. The JSON is for programs: it contains a
secret that the file puts into a line. `plan` reads no vault: placeholders replace its secrets.

Exit codes:
    0  the file is a valid task file
    2  the task file or the usage is wrong
    3  a context or an alias source could not be reached")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) task: TaskArgs,

    /// Choose the form of the plan
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: PlanOutput,
}

/// Forms of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum PlanOutput {
    /// A drawing of the graph
    #[default]
    Text,
    /// JSON object
    Json,
}

/// A path argument, or `-` for standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathOrStdin {
    /// A path to a file.
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
