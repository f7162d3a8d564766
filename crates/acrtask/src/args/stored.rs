//! `acrtask task`: stored tasks. The flags of `create` are those that users of the cloud service know.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    HowForm, PathOrStdin, RunOutput,
    server::{OutputArgs, QueueArgs, ServerArgs},
    task::GitArgs,
    timers::{TimerCommand, TriggerUrlCommand},
    triggers::CommitArgs,
    values::{self, Pair, SecretPair, TokenFrom},
};

/// `acrtask task ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Store a task
    #[command(after_long_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Change some of a task; what is not named stays
    #[command(after_long_help = UPDATE_EXAMPLES)]
    Update(Box<UpdateArgs>),
    /// Show a task
    Show(ShowTaskArgs),
    /// List the tasks
    List(ListTasksArgs),
    /// Delete a task; its runs and their logs stay
    Delete(NamedArgs),
    /// Start a run of a task, and follow it
    #[command(after_long_help = "\
Examples:
  acrtask task run app
  acrtask task run app --set tag=v2 --no-push
  acrtask task run app --context .            with the files of this folder
  acrtask task run app --no-wait              prints the run's id

Output and exit codes are those of `acrtask run`.")]
    Run(Box<RunTaskArgs>),
    /// Let things start runs of a task again
    Enable(NamedArgs),
    /// Let nothing start runs of a task
    Disable(NamedArgs),
    /// Timers: runs of a task by the clock
    #[command(subcommand)]
    Timer(TimerCommand),
    /// The URL that starts runs of a task and can do nothing else
    #[command(subcommand)]
    TriggerUrl(TriggerUrlCommand),
    /// Print a task, or all of them, as the file that `acrtask task apply` takes
    Export(ExportArgs),
    /// Create and change tasks as files say
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

With --image, --file is the Dockerfile; otherwise it is the task file. Values of secrets are stored
on the server, for this task alone, and are shown to nobody again.";

const UPDATE_EXAMPLES: &str = "\
Examples:
  acrtask task update app -c https://github.com/org/app.git#release
  acrtask task update app --set tag=v2 --unset old --timeout 1h
  acrtask task update app --schedule 'night:30 2 * * *' --unset-schedule t1";

const APPLY_EXAMPLES: &str = "\
Examples:
  acrtask task apply -f tasks/           every .yaml, .yml and .json file below the folder
  acrtask task apply -f app.yaml
  acrtask task export app | sed s/main/release/ | acrtask task apply -f -

A file holds one task, or several behind `---`. `acrtask schema task` prints the JSON Schema of a
task. What is wrong with one task keeps none of the others from being applied; the exit code is 2
then.";

/// `acrtask task export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The task; all of them where none is named
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

    /// The same
    #[arg(
        short = 'n',
        long = "name",
        value_name = "NAME",
        conflicts_with = "positional"
    )]
    named: Option<String>,
}

impl NameArgs {
    /// The name, wherever it was given.
    pub(crate) fn name(&self) -> &str {
        self.positional
            .as_deref()
            .or(self.named.as_deref())
            .unwrap_or_default()
    }
}

/// A command that needs a task's name alone.
#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task show`.
#[derive(Debug, Args)]
pub(crate) struct ShowTaskArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task list`.
#[derive(Debug, Args)]
pub(crate) struct ListTasksArgs {
    /// Only tasks whose names begin so
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) what: DefinitionArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) what: DefinitionArgs,

    /// Take a value away; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Task")]
    pub(crate) unset: Vec<String>,

    /// Take a secret away from the task; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Task")]
    pub(crate) unset_secret: Vec<String>,

    /// Take a timer away; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Triggers")]
    pub(crate) unset_schedule: Vec<String>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What a task is. Every flag may be left out, so that `update` can share them.
#[derive(Debug, Args)]
pub(crate) struct DefinitionArgs {
    /// Where the files come from: a git URL (`URL#ref:folder`), a tarball's URL, `oci://REFERENCE`, or `/dev/null` for none
    #[arg(short, long, value_name = "URL", help_heading = "Task")]
    pub(crate) context: Option<String>,

    /// The task file in the context; with --image the Dockerfile [default: acr-task.yaml; Dockerfile]
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

    /// A few words about it
    #[arg(long, value_name = "TEXT", help_heading = "Task")]
    pub(crate) description: Option<String>,

    /// The registry that images without one belong to: HOST[:PORT]
    #[arg(short, long, value_name = "HOST", help_heading = "Task")]
    pub(crate) registry: Option<String>,

    /// A value for `{{.Values.KEY}}`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) set: Vec<Pair>,

    /// A secret value, stored for this task alone; a KEY alone takes its value from the environment
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::secret_pair, help_heading = "Task")]
    pub(crate) set_secret: Vec<SecretPair>,

    /// A YAML file with values; `--set` wins over it
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) values: Option<PathBuf>,

    /// A variable for every step that does not set it itself; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) env: Vec<Pair>,

    /// A build argument; needs --image; may be repeated
    #[arg(
        long,
        visible_alias = "build-arg",
        value_name = "NAME=VALUE",
        help_heading = "Build"
    )]
    pub(crate) arg: Vec<Pair>,

    /// A build argument with a secret value; a NAME alone takes the value from the environment
    #[arg(long, visible_alias = "secret-build-arg", value_name = "NAME[=VALUE]", value_parser = values::secret_pair, help_heading = "Build")]
    pub(crate) secret_arg: Vec<SecretPair>,

    /// Stop at this stage of the Dockerfile; needs --image
    #[arg(long, value_name = "STAGE", help_heading = "Build")]
    pub(crate) target: Option<String>,

    /// Use nothing of the cache: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Build")]
    pub(crate) no_cache: Option<bool>,

    /// The platform to build and run for: linux/amd64, linux/arm64 ...
    #[arg(long, value_name = "OS/ARCH", help_heading = "Run")]
    pub(crate) platform: Option<String>,

    /// Stop a run after this long: 90s, 10m, 1h30m, or a number of seconds
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Run")]
    pub(crate) timeout: Option<std::time::Duration>,

    /// Whether things may start runs of it
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "STATUS",
        help_heading = "Run"
    )]
    pub(crate) status: Option<TaskStatus>,

    /// Runs of the task that may run at once; others wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run")]
    pub(crate) max_concurrent: Option<u32>,

    /// A new run cancels those of the task that came before it: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Run")]
    pub(crate) cancel_superseded: Option<bool>,

    /// Build, and push nothing: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, default_missing_value = "true", help_heading = "Run")]
    pub(crate) no_push: Option<bool>,

    /// Share a layer cache between the task's runs, in the registry beside the image: true or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, help_heading = "Run")]
    pub(crate) cache: Option<bool>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) queue: QueueArgs,

    /// A timer: five fields of cron in UTC, with a name before it if it is to have one; may be repeated
    #[arg(long, value_name = "[NAME:]CRON", help_heading = "Triggers")]
    pub(crate) schedule: Vec<Schedule>,

    #[command(flatten)]
    pub(crate) commit: CommitArgs,

    /// Run when a base image changes: true or false
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, help_heading = "Triggers")]
    pub(crate) base_image_trigger_enabled: Option<bool>,

    /// Which base images count
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "TYPE",
        help_heading = "Triggers"
    )]
    pub(crate) base_image_trigger_type: Option<BaseImages>,

    /// The token for the context's git host, stored for this task alone: env:NAME or @FILE
    #[arg(long, value_name = "FROM", value_parser = values::token_from, help_heading = "Task")]
    pub(crate) git_access_token: Option<TokenFrom>,

    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
}

/// Flags of the cloud service that mean nothing here, or are something else. Taken so that they can be answered.
#[derive(Debug, Args)]
pub(crate) struct ForeignArgs {
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

impl ForeignArgs {
    /// Each flag that was given, with what replaces it.
    pub(crate) fn given(&self) -> Vec<(&'static str, &'static str)> {
        const NOWHERE: &str = "tasks belong to a server, not to a subscription; leave it out";
        const LOGIN: &str =
            "logins for registries are given with `acrtask credential set HOST`; leave it out";
        const NAMES: &str = "triggers of a task need no names but timers; leave it out";
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
                "a runner's machine is what it is; choose runners with `--runner-label KEY=VALUE`",
            ),
            (
                "--log-template",
                self.log_template.is_some(),
                "logs are read with `acrtask runs logs ID`; leave it out",
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
                "triggers report to the server itself; leave it out",
            ),
        ]
        .into_iter()
        .filter_map(|(flag, given, instead)| given.then_some((flag, instead)))
        .collect()
    }
}

/// `--status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskStatus {
    /// They may
    Enabled,
    /// They may not
    Disabled,
}

/// `--base-image-trigger-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BaseImages {
    /// What the image stands on
    Runtime,
    /// Those of build stages too
    All,
    /// None of them
    None,
}

/// `[NAME:]CRON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The timer's name, where one was given.
    pub(crate) name: Option<String>,
    /// Five fields.
    pub(crate) cron: String,
}

impl std::str::FromStr for Schedule {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // No field of cron holds a colon.
        let (name, cron) = match text.split_once(':') {
            Some((name, cron)) => (Some(name.trim().to_owned()), cron.trim()),
            None => (None, text.trim()),
        };
        if cron.split_whitespace().count() != 5 || name.as_deref() == Some("") {
            return Err(
                "write five fields, perhaps with a name before them: `0 3 * * *`, `night:0 3 * * *`".into(),
            );
        }
        Ok(Self {
            name,
            cron: cron.into(),
        })
    }
}

/// `acrtask task run`.
#[derive(Debug, Args)]
pub(crate) struct RunTaskArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// A value that wins over the task's; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<Pair>,

    /// A secret value of this run alone; a KEY alone takes its value from the environment
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::secret_pair)]
    pub(crate) set_secret: Vec<SecretPair>,

    /// Other files than the task's own: a folder, a URL, `-` or `/dev/null`
    #[arg(short, long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,

    #[command(flatten)]
    pub(crate) git: GitArgs,

    /// Another task file of the context
    #[arg(short, long, value_name = "PATH")]
    pub(crate) file: Option<String>,

    /// -10 to 10, instead of the task's own
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-10..=10))]
    pub(crate) priority: Option<i32>,

    /// Build and test, but push nothing
    #[arg(long)]
    pub(crate) no_push: bool,

    /// Print the run's id and do not wait for its end
    #[arg(long, visible_alias = "detach")]
    pub(crate) no_wait: bool,

    #[command(flatten)]
    pub(crate) form: HowForm,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

impl RunTaskArgs {
    /// The form of the log.
    pub(crate) fn output(&self) -> RunOutput {
        self.form.output
    }
}

/// `acrtask task apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file, a folder, or `-` for standard input; may be repeated
    #[arg(short, long, required = true, value_name = "FILE")]
    pub(crate) file: Vec<PathOrStdin>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
