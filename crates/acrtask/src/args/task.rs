//! Which task, and the facts of the run that its templates see.

use clap::Args;
use jiff::Timestamp;

use super::{
    PathOrStdin,
    values::{self, Pair, SecretPair},
};
use acrtask_model::RunId;

/// The task: its file, its values, the run's facts.
#[derive(Debug, Clone, Args)]
pub(crate) struct TaskArgs {
    /// Where the files come from: a folder, a git URL, a tarball, `oci://REFERENCE`, `-`, or `/dev/null` for none
    #[arg(default_value = ".")]
    pub(crate) context: String,

    /// The task file, `-` for standard input [default: acr-task.yaml, then acb.yaml, in the context]
    #[arg(short, long, value_name = "FILE", help_heading = "Task")]
    pub(crate) file: Option<PathOrStdin>,

    /// A value for `{{.Values.KEY}}`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) set: Vec<Pair>,

    /// The same, masked in everything that is printed; a KEY alone takes its value from the environment
    ///
    /// `--set-secret KEY` keeps the value out of the list of processes.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::secret_pair, help_heading = "Task")]
    pub(crate) set_secret: Vec<SecretPair>,

    /// A YAML file with values; `--set` wins over it
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) values: Option<std::path::PathBuf>,

    /// The value of the secret ID of the task's `secrets`, and of a build's `--secret id=ID`; may be repeated
    #[arg(long, value_name = "ID=PATH", help_heading = "Task")]
    pub(crate) secret_file: Vec<Pair>,

    /// A variable for every step that does not set it itself; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Task")]
    pub(crate) env: Vec<Pair>,

    /// The image behind an image alias: acr, az, bash, curl, cssc; may be repeated
    #[arg(long, value_name = "ALIAS=IMAGE", help_heading = "Task")]
    pub(crate) alias_image: Vec<Pair>,

    #[command(flatten)]
    pub(crate) git: GitArgs,
    #[command(flatten)]
    pub(crate) facts: FactArgs,
}

/// Parts of a context that is a git repository.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GitArgs {
    /// Check out the submodules of a git repository, and theirs: true or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Context")]
    pub(crate) submodules: Option<bool>,

    /// Download the files that a git repository keeps in Git LFS: true or false [default: false]
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Context")]
    pub(crate) lfs: Option<bool>,
}

/// The run's facts: what `{{.Run.*}}` gives.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Facts of the run, {{.Run.*}} in the task")]
pub(crate) struct FactArgs {
    /// The registry that images without one belong to: HOST[:PORT]
    #[arg(short, long, env = "ACRTASK_REGISTRY", value_name = "HOST")]
    pub(crate) registry: Option<String>,

    /// The run's id [default: random]
    #[arg(long, value_name = "ID", value_parser = |text: &str| RunId::new(text))]
    pub(crate) id: Option<RunId>,

    /// The commit [default: from the context, where it is a git checkout]
    #[arg(long, value_name = "SHA")]
    pub(crate) commit: Option<String>,

    /// The branch [default: from the context]
    #[arg(long)]
    pub(crate) branch: Option<String>,

    /// The git tag [default: from the context]
    #[arg(long, value_name = "TAG")]
    pub(crate) git_tag: Option<String>,

    /// The repository's URL [default: from the context]
    #[arg(long, value_name = "URL")]
    pub(crate) repository: Option<String>,

    /// The time of the run: 2026-01-02T03:04:05Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) date: Option<Timestamp>,

    /// What triggered the run [default: Manual]
    #[arg(long, value_name = "WHAT")]
    pub(crate) triggered_by: Option<String>,

    /// The task's name
    #[arg(long, value_name = "NAME")]
    pub(crate) task_name: Option<String>,

    /// The operating system of the steps [default: linux]
    #[arg(long)]
    pub(crate) os: Option<String>,

    /// Its version
    #[arg(long, value_name = "VERSION")]
    pub(crate) os_version: Option<String>,

    /// The processor of the steps: amd64, arm64 ... [default: this machine's]
    #[arg(long, value_name = "ARCH")]
    pub(crate) architecture: Option<String>,

    /// What `{{.Run.SharedVolume}}` gives [default: a name made from the run's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) shared_volume: Option<String>,
}
