//! Arguments of `acrtask task`: stored tasks. The flags of `create` are those of the cloud service.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    LogFormArgs, PathOrStdin, RunOutput,
    commit_trigger::CommitArgs,
    server::{OutputArgs, QueueArgs, ServerArgs},
    task_file::GitArgs,
    timer::{TimerCommand, TriggerUrlCommand},
    values::{self, Pair, SecretPair, TokenSource},
};

/// Subcommands of `acrtask task`.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Store a task
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Change the given settings of a task
    #[command(after_long_help = UPDATE_EXAMPLES)]
    Update(Box<UpdateArgs>),
    /// Show a task
    Show(ShowTaskArgs),
    /// List the tasks
    List(ListTasksArgs),
    /// Delete a task; its runs and their logs stay
    Delete(TaskNameArgs),
    /// Start a run of a task and follow it
    #[command(after_long_help = "\
Examples:
  acrtask task run app
  acrtask task run app --set tag=v2 --no-push
  acrtask task run app --context .            use the files of this folder
  acrtask task run app --no-wait              print the run's id and exit

The output and the exit codes are those of `acrtask run`.")]
    Run(Box<RunTaskArgs>),
    /// Enable the triggers of a task
    Enable(TaskNameArgs),
    /// Disable the triggers of a task
    Disable(TaskNameArgs),
    /// Manage the timers that start runs of a task
    #[command(subcommand)]
    Timer(TimerCommand),
    /// Manage the URL that starts runs of a task and can do nothing else
    #[command(subcommand)]
    TriggerUrl(TriggerUrlCommand),
    /// Print one task or all tasks as a file for `acrtask task apply`
    Export(ExportArgs),
    /// Create and change tasks from files
    #[command(after_long_help = APPLY_EXAMPLES)]
    Apply(ApplyArgs),
}

const CREATE_EXAMPLES: &str = "\
Examples:
  acrtask task create -n app -c https://github.com/org/app.git#main -r reg.example.com \\
    -f acr-task.yaml --commit-trigger-enabled true
  acrtask task create -n api -c https://github.com/org/all.git#main:api -r reg.example.com \\
    --commit-trigger-enabled true --path 'api/**' --ignore-path '**/*.md' --newest-wins
  acrtask task create -n app-image -c https://github.com/org/app.git#main -r reg.example.com \\
    -t app:{{.Run.ID}} -f Dockerfile --arg GO=1.24
  acrtask task create -n nightly -c /dev/null --cmd 'reg.example.com/tools/check:1' \\
    --schedule 'night:0 3 * * *'
  GIT_PAT=... acrtask task create -n app -c https://github.com/org/private.git \\
    --git-access-token env:GIT_PAT

With --image, --file is the Dockerfile; otherwise it is the task file. The server stores the values of
secrets for this task alone and never shows them again.";

const UPDATE_EXAMPLES: &str = "\
Examples:
  acrtask task update app -c https://github.com/org/app.git#release
  acrtask task update app --set tag=v2 --unset old --timeout 1h
  acrtask task update app --schedule 'night:30 2 * * *' --unset-schedule t1";

const APPLY_EXAMPLES: &str = "\
Examples:
  acrtask task apply -f tasks/           apply every .yaml, .yml and .json file below the folder
  acrtask task apply -f app.yaml
  acrtask task export app | sed s/main/release/ | acrtask task apply -f -

A file contains one task, or several separated by `---`. `acrtask schema task` prints the JSON Schema of
a task. An error in one task does not prevent the others from being applied; the exit code is 2 then.";

/// Arguments of `acrtask task export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The task [default: all tasks]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A task's name.
#[derive(Debug, Clone, Args)]
pub(crate) struct NameArgs {
    /// The task
    #[arg(value_name = "NAME", required_unless_present = "named")]
    positional: Option<String>,

    /// The task, as an option
    #[arg(
        short = 'n',
        long = "name",
        value_name = "NAME",
        conflicts_with = "positional"
    )]
    named: Option<String>,
}

impl NameArgs {
    /// Returns the name from the argument or from `--name`.
    pub(crate) fn name(&self) -> &str {
        self.positional
            .as_deref()
            .or(self.named.as_deref())
            .unwrap_or_default()
    }
}

/// Arguments of a command that needs only a task's name.
#[derive(Debug, Args)]
pub(crate) struct TaskNameArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task show`.
#[derive(Debug, Args)]
pub(crate) struct ShowTaskArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task list`.
#[derive(Debug, Args)]
pub(crate) struct ListTasksArgs {
    /// Only tasks whose names start with this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) definition: DefinitionArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) definition: DefinitionArgs,

    /// Remove a value; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Task")]
    pub(crate) unset: Vec<String>,

    /// Remove a secret of the task; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Task")]
    pub(crate) unset_secret: Vec<String>,

    /// Remove a timer; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Triggers")]
    pub(crate) unset_schedule: Vec<String>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Definition of a task. Every flag is optional, so that `update` can share them.
#[derive(Debug, Args)]
pub(crate) struct DefinitionArgs {
    /// Take the files from a git URL (`URL#ref:folder`), a tarball's URL, `oci://REFERENCE`, or
    /// `/dev/null` for none
    #[arg(short, long, value_name = "URL", help_heading = "Task")]
    pub(crate) context: Option<String>,

    /// Use this task file in the context, or with --image this Dockerfile [default: acr-task.yaml;
    /// Dockerfile]
    #[arg(short, long, value_name = "PATH", help_heading = "Task")]
    pub(crate) file: Option<String>,

    /// Build and push this image instead of a task file; may be repeated
    #[arg(
        short = 't',
        long = "image",
        value_name = "IMAGE",
        conflicts_with = "cmd",
        help_heading = "Task"
    )]
    pub(crate) image: Vec<String>,

    /// Run IMAGE with ARGS instead of a task file
    #[arg(
        long,
        value_name = "IMAGE ARGS",
        conflicts_with = "file",
        help_heading = "Task"
    )]
    pub(crate) cmd: Option<String>,

    /// Describe the task in a few words
    #[arg(long, value_name = "TEXT", help_heading = "Task")]
    pub(crate) description: Option<String>,

    /// Use this registry for images without one: HOST[:PORT]
    #[arg(short, long, value_name = "HOST", help_heading = "Task")]
    pub(crate) registry: Option<String>,

    /// Set a value for `{{.Values.KEY}}`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) set: Vec<Pair>,

    /// Set a secret value, stored for this task alone; a KEY without a value takes it from the
    /// environment
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::parse_secret_pair, help_heading = "Task")]
    pub(crate) set_secret: Vec<SecretPair>,

    /// Read values from a YAML file; `--set` overrides them
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) values: Option<PathBuf>,

    /// Set an environment variable for every step that does not set it itself; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) env: Vec<Pair>,

    /// Set a build argument; requires --image; may be repeated
    #[arg(
        long,
        visible_alias = "build-arg",
        value_name = "NAME=VALUE",
        help_heading = "Build"
    )]
    pub(crate) arg: Vec<Pair>,

    /// Set a build argument with a secret value; a NAME without a value takes it from the
    /// environment
    #[arg(long, visible_alias = "secret-build-arg", value_name = "NAME[=VALUE]", value_parser = values::parse_secret_pair, help_heading = "Build")]
    pub(crate) secret_arg: Vec<SecretPair>,

    /// Stop at this stage of the Dockerfile; requires --image
    #[arg(long, value_name = "STAGE", help_heading = "Build")]
    pub(crate) target: Option<String>,

    /// Do not use the build cache: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Build")]
    pub(crate) no_cache: Option<bool>,

    /// Build and run for this platform: linux/amd64, linux/arm64 ...
    #[arg(long, value_name = "OS/ARCH", help_heading = "Run")]
    pub(crate) platform: Option<String>,

    /// Stop a run after this time: 90s, 10m, 1h30m, or a number of seconds
    #[arg(long, value_name = "TIME", value_parser = values::parse_duration, help_heading = "Run")]
    pub(crate) timeout: Option<std::time::Duration>,

    /// Enable or disable the triggers of the task
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "STATUS",
        help_heading = "Run"
    )]
    pub(crate) status: Option<TaskStatus>,

    /// Execute at most N runs of the task at once; the others wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run")]
    pub(crate) max_concurrent: Option<u32>,

    /// Cancel older runs of the task when a new one starts: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Run")]
    pub(crate) cancel_superseded: Option<bool>,

    /// Build, but push nothing: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, default_missing_value = "true", help_heading = "Run")]
    pub(crate) no_push: Option<bool>,

    /// Share a layer cache between the task's runs, stored in the registry beside the image: true
    /// or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, help_heading = "Run")]
    pub(crate) cache: Option<bool>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,

    /// Add a timer: five fields of cron in UTC, optionally with a name before them; may be repeated
    #[arg(long, value_name = "[NAME:]CRON", help_heading = "Triggers")]
    pub(crate) schedule: Vec<Schedule>,

    #[command(flatten)]
    pub(crate) commit: CommitArgs,

    /// Run when the digest of a base image changes: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, help_heading = "Triggers")]
    pub(crate) base_image_trigger_enabled: Option<bool>,

    /// Choose the base images that trigger runs
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "TYPE",
        help_heading = "Triggers"
    )]
    pub(crate) base_image_trigger_type: Option<BaseImages>,

    /// Read the token for the context's git host from env:NAME or @FILE; the server stores it for
    /// this task alone
    #[arg(long, value_name = "FROM", value_parser = values::parse_token_source, help_heading = "Task")]
    pub(crate) git_access_token: Option<TokenSource>,

    #[command(flatten)]
    pub(crate) unsupported: UnsupportedArgs,
}

/// Flags of the cloud service that acrtask does not support. They are parsed so that an error can
/// name the replacement.
#[derive(Debug, Args)]
pub(crate) struct UnsupportedArgs {
    #[arg(short = 'g', long, hide = true, value_name = "X")]
    resource_group: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    subscription: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    auth_mode: Option<String>,
    #[arg(long, hide = true, value_name = "X", num_args = 0..)]
    assign_identity: Option<Vec<String>>,
    #[arg(long, hide = true, value_name = "X")]
    agent_pool: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    cpu: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    log_template: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    base_image_trigger_name: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    source_trigger_name: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    update_trigger_endpoint: Option<String>,
}

impl UnsupportedArgs {
    /// Returns each flag that was given, with its replacement.
    pub(crate) fn given_flags(&self) -> Vec<(&'static str, &'static str)> {
        const NOWHERE: &str = "tasks belong to a server, not to a subscription; remove the flag";
        const LOGIN: &str =
            "set logins for registries with `acrtask credential set HOST`; remove the flag";
        const NAMES: &str = "only timers have names, other triggers do not; remove the flag";
        [
            ("--resource-group", self.resource_group.is_some(), NOWHERE),
            ("--subscription", self.subscription.is_some(), NOWHERE),
            ("--auth-mode", self.auth_mode.is_some(), LOGIN),
            ("--assign-identity", self.assign_identity.is_some(), LOGIN),
            (
                "--agent-pool",
                self.agent_pool.is_some(),
                "write `--pool NAME`",
            ),
            (
                "--cpu",
                self.cpu.is_some(),
                "the runner's machine determines the processors; choose runners with `--runner-label KEY=VALUE`",
            ),
            (
                "--log-template",
                self.log_template.is_some(),
                "read logs with `acrtask runs logs ID`; remove the flag",
            ),
            (
                "--base-image-trigger-name",
                self.base_image_trigger_name.is_some(),
                NAMES,
            ),
            (
                "--source-trigger-name",
                self.source_trigger_name.is_some(),
                NAMES,
            ),
            (
                "--update-trigger-endpoint",
                self.update_trigger_endpoint.is_some(),
                "triggers report to the server itself; remove the flag",
            ),
        ]
        .into_iter()
        .filter_map(|(flag, given, instead)| given.then_some((flag, instead)))
        .collect()
    }
}

/// Values of `--status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskStatus {
    /// Triggers start runs
    Enabled,
    /// Triggers start no runs
    Disabled,
}

/// Values of `--base-image-trigger-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BaseImages {
    /// Base images of the final stage
    Runtime,
    /// Base images of all build stages
    All,
    /// No base images
    None,
}

/// `[NAME:]CRON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Name of the timer; `None` if only the schedule was given.
    pub(crate) name: Option<String>,
    /// Five fields of cron.
    pub(crate) cron: String,
}

impl std::str::FromStr for Schedule {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // A field of cron never contains a colon.
        let (name, cron) = match text.split_once(':') {
            Some((name, cron)) => (Some(name.trim().to_owned()), cron.trim()),
            None => (None, text.trim()),
        };
        if cron.split_whitespace().count() != 5 || name.as_deref() == Some("") {
            return Err(
                "write five fields, optionally with a name before them: `0 3 * * *`, `night:0 3 * * *`".into(),
            );
        }
        Ok(Self {
            name,
            cron: cron.into(),
        })
    }
}

/// Arguments of `acrtask task run`.
#[derive(Debug, Args)]
pub(crate) struct RunTaskArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// Set a value that overrides the task's; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<Pair>,

    /// Set a secret value for this run alone; a KEY without a value takes it from the environment
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::parse_secret_pair)]
    pub(crate) set_secret: Vec<SecretPair>,

    /// Use these files instead of the task's own: a folder, a URL, `-` or `/dev/null`
    #[arg(short, long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,

    #[command(flatten)]
    pub(crate) git: GitArgs,

    /// Use another task file of the context
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<String>,

    /// Set the priority, -10 to 10, instead of the task's own
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-10..=10))]
    pub(crate) priority: Option<i32>,

    /// Build and test, but push nothing
    #[arg(long)]
    pub(crate) no_push: bool,

    /// Print the run's id and exit without waiting for the run
    #[arg(long, visible_alias = "detach")]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) form: LogFormArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

impl RunTaskArgs {
    /// Returns the form of the log.
    pub(crate) fn output(&self) -> RunOutput {
        self.form.output
    }
}

/// Arguments of `acrtask task apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Apply this file or folder, or `-` for standard input; may be repeated
    #[arg(short, long, required = true, value_name = "FILE")]
    pub(crate) file: Vec<PathOrStdin>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
