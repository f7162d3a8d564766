//! Flags for a task file, its values and the run variables that its templates read.

use clap::Args;
use jiff::Timestamp;

use super::{
    PathOrStdin,
    values::{self, Pair, SecretPair},
};
use acrtask_model::RunId;

/// Context, task file, values and run variables.
#[derive(Debug, Clone, Args)]
pub(crate) struct TaskArgs {
    /// Take the files from a folder, a git URL, a tarball, `oci://REFERENCE`, `-` (a tar on
    /// standard input), or `/dev/null` for none
    #[arg(default_value = ".")]
    pub(crate) context: String,

    /// Use this task file, `-` for standard input [default: acr-task.yaml, then acb.yaml, in the
    /// context]
    #[arg(short, long, value_name = "FILE", help_heading = "Task")]
    pub(crate) file: Option<PathOrStdin>,

    /// Set a value for `{{.Values.KEY}}`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) set: Vec<Pair>,

    /// Set a secret value, masked in all output; a KEY without a value takes it from the
    /// environment
    ///
    /// `--set-secret KEY` keeps the value out of the list of processes.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::parse_secret_pair, help_heading = "Task")]
    pub(crate) set_secret: Vec<SecretPair>,

    /// Read values from a YAML file; `--set` overrides them
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) values: Option<std::path::PathBuf>,

    /// Read the value of the secret ID from this file, for the task's `secrets` and a build's
    /// `--secret id=ID`; may be repeated
    #[arg(long, value_name = "ID=PATH", help_heading = "Task")]
    pub(crate) secret_file: Vec<Pair>,

    /// Set an environment variable for every step that does not set it itself; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) env: Vec<Pair>,

    /// Set the image of an image alias: acr, az, bash, curl, cssc; may be repeated
    #[arg(long, value_name = "ALIAS=IMAGE", help_heading = "Task")]
    pub(crate) alias_image: Vec<Pair>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) variables: RunVariableArgs,
}

/// Optional parts of a git context.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GitArgs {
    /// Check out the submodules of a git repository, recursively: true or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Context")]
    pub(crate) submodules: Option<bool>,

    /// Download the Git LFS files of a git repository: true or false [default: false]
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Context")]
    pub(crate) lfs: Option<bool>,
}

/// Run variables: the values of `{{.Run.*}}`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Run variables, {{.Run.*}} in the task")]
pub(crate) struct RunVariableArgs {
    /// Use this registry for images without one: HOST[:PORT]
    #[arg(short, long, env = "ACRTASK_REGISTRY", value_name = "HOST")]
    pub(crate) registry: Option<String>,

    /// Set the run's id [default: random]
    #[arg(long, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: Option<RunId>,

    /// Set the commit [default: from a git context]
    #[arg(long, value_name = "SHA")]
    pub(crate) commit: Option<String>,

    /// Set the branch [default: from the context]
    #[arg(long)]
    pub(crate) branch: Option<String>,

    /// Set the git tag [default: from the context]
    #[arg(long, value_name = "TAG")]
    pub(crate) git_tag: Option<String>,

    /// Set the repository's URL [default: from the context]
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Option<String>,

    /// Set the time of the run: 2026-01-02T03:04:05Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) date: Option<Timestamp>,

    /// Set the trigger of the run [default: Manual]
    #[arg(long, value_name = "WHAT")]
    pub(crate) triggered_by: Option<String>,

    /// Set the task's name
    #[arg(long, value_name = "NAME")]
    pub(crate) task_name: Option<String>,

    /// Set the operating system of the steps [default: linux]
    #[arg(long)]
    pub(crate) os: Option<String>,

    /// Set the version of the operating system
    #[arg(long, value_name = "VERSION")]
    pub(crate) os_version: Option<String>,

    /// Set the processor architecture of the steps: amd64, arm64 ... [default: this machine's]
    #[arg(long, value_name = "ARCH")]
    pub(crate) architecture: Option<String>,

    /// Set the value of `{{.Run.SharedVolume}}` [default: a name derived from the run's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) shared_volume: Option<String>,
}
