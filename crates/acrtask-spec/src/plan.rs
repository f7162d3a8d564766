//! The plan: a parsed, resolved and checked task.
//!
//! The types fit the executor. Invariants:
//! - Step ids are unique.
//! - `after` lists steps of the same plan and has no cycle.
//! - Defaults are set.
//! - Aliases and templates are replaced.

use std::{collections::BTreeMap, time::Duration};

use acrtask_model::{Digest, ImageRef, Secret, StepId};
use serde::Serialize;

use crate::{build_line::BuildLine, cmd_line::CmdLine};

/// A version of the task language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Version {
    /// `1.0-preview-1`.
    #[serde(rename = "1.0-preview-1")]
    Preview1,
    /// `v1.0.0`, the default of a file without a version.
    #[serde(rename = "v1.0.0")]
    V1_0_0,
    /// `v1.1.0`: adds aliases.
    #[serde(rename = "v1.1.0")]
    V1_1_0,
}

/// A task that is ready to be executed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Version of the task language.
    pub version: Version,
    /// Host of the run's registry. Empty if it has none.
    pub registry: String,
    /// Networks to create. Never empty.
    pub networks: Vec<Network>,
    /// Volumes that steps may mount.
    pub volumes: Vec<Volume>,
    /// Registry credentials that the file declares. Always empty, because the language has no key
    /// for them. The reference executor gets them from its command line only.
    pub credentials: Vec<Credential>,
    /// The steps, in file order.
    pub steps: Vec<Step>,
    /// Values to mask in all output, from `secrets` and `--set-secret`.
    pub secrets: Vec<Secret>,
    /// Limit of the whole run, from `--timeout` or the file. `None`: no such limit.
    pub timeout: Option<Duration>,
    /// Digests that replace images. A build or container that uses the name with this tag gets the
    /// digest instead. Images that the run itself builds under the name take precedence. Only
    /// filled for a run that repeats another one.
    pub pins: BTreeMap<ImageRef, Digest>,
}

/// A network of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Name in the file. The executor prefixes it with the run's id.
    pub name: String,
    /// Driver of the network, `bridge` by default.
    pub driver: String,
    /// `true` if the network carries IPv6.
    pub ipv6: bool,
    /// `true` if the network exists before the run, which neither creates nor removes it.
    pub skip_creation: bool,
    /// `true` if steps without a network join this one.
    pub is_default: bool,
    /// Line number of the declaration, from 1. `None` for the default network of a file without
    /// networks.
    #[serde(skip)]
    pub line: Option<usize>,
}

impl Network {
    /// Returns why only the operator of the machine can allow this network.
    ///
    /// `None` if the run creates a bridge of its own. It reaches no other container and no device
    /// of the machine.
    pub fn needs_operator(&self) -> Option<String> {
        let Self { name, driver, .. } = self;
        if self.skip_creation {
            return Some(format!(
                "the network `{name}` is declared with `skipCreation`: it is this machine's and not the run's"
            ));
        }
        (!matches!(driver.as_str(), "" | "bridge")).then(|| {
            format!(
                "the network `{name}` has the driver `{driver}`, which can reach devices of this machine"
            )
        })
    }

    /// Help for [`Self::needs_operator`].
    pub const OPERATOR_HELP: &str = "declare it with its name alone, for a network of the run; an operator who trusts \
                                     this task allows it with `--allow host-network`";
}

/// A volume with files from secrets.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Name of the volume: `[A-Za-z0-9_-]+`.
    pub name: String,
    /// Contents by file name, decoded from base 64.
    pub files: BTreeMap<String, Secret>,
}

/// A registry credential of the task file.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Host and port of the registry.
    pub registry: String,
    /// Name of the user.
    pub username: Secret,
    /// Password or token.
    pub password: Secret,
}

/// A step of a plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// Id, unique in the plan.
    pub id: StepId,
    /// Build, cmd or push, with its line.
    pub kind: StepKind,
    /// Steps that must finish before this one starts.
    pub after: Vec<StepId>,
    /// Variables for containers and `docker build`, as `KEY=VALUE`. Includes those of the task.
    pub env: Vec<String>,
    /// Working directory as written. Relative to `/workspace` for cmd steps, and to the context for
    /// build steps.
    pub working_directory: String,
    /// `true` to keep the image's own working directory.
    pub disable_working_directory_override: bool,
    /// Limit of one step attempt.
    pub timeout: Duration,
    /// Delay before the first step attempt.
    pub start_delay: Duration,
    /// Maximum number of further step attempts after a failed one.
    pub retries: u32,
    /// Delay between step attempts.
    pub retry_delay: Duration,
    /// Texts that the output must contain for a retry. Empty: always retry.
    pub retry_on_errors: Vec<String>,
    /// Number of further executions after a successful one.
    pub repeat: u32,
    /// `true` if a failure of the step does not fail the run.
    pub ignore_errors: bool,
    /// Network of the step's container: that of the step, or the task's default network.
    ///
    /// `None` if the file declares networks and none of them is the default. The engine then
    /// chooses.
    pub network: Option<String>,
    /// Line number of the step, from 1.
    pub line: usize,
    /// Settings for containers only.
    pub container: ContainerOptions,
}

impl Plan {
    /// Returns the refusals of all lines, each with its step. A run with a refusal does not start.
    /// [`crate::Resolution::refusals`] has them as diagnostics.
    pub fn refusals(&self) -> impl Iterator<Item = (&Step, &LineRefusal)> {
        self.steps
            .iter()
            .flat_map(|step| step.refusals().map(move |refused| (step, refused)))
    }
}

impl Step {
    /// Returns the refusals of this step's line.
    pub fn refusals(&self) -> impl Iterator<Item = &LineRefusal> {
        let (line, images) = match &self.kind {
            StepKind::Build(build) => (build.line.as_ref().err(), [].as_slice()),
            StepKind::Cmd(cmd) => (cmd.line.as_ref().err(), [].as_slice()),
            StepKind::Push(push) => (None, push.images.as_slice()),
        };
        line.into_iter()
            .chain(images.iter().filter_map(|image| image.as_ref().err()))
    }
}

/// The kinds of steps, with their lines.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// A `docker build` through BuildKit.
    Build(Box<BuildStep>),
    /// Containers of a cmd line.
    Cmd(Box<CmdStep>),
    /// A push of images to their registries.
    Push(PushStep),
}

/// A build step.
#[derive(Debug, Clone)]
pub struct BuildStep {
    /// The line, after aliases and templates.
    pub raw: String,
    /// The parsed line. For an `Err`, `acrtask run` refuses the run; `acrtask plan` still shows the
    /// step.
    pub line: Result<BuildLine, LineRefusal>,
    /// Registry cache of the step, if `cache: enabled` or the run requests one.
    pub cache: Option<StepCache>,
}

/// A layer cache in a registry. Errors of reading or writing it do not fail the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCache {
    /// Image reference of the cache.
    pub reference: ImageRef,
    /// `true` to write the build's layers to the cache. Otherwise it is only read.
    pub export: bool,
}

/// A cmd step.
#[derive(Debug, Clone)]
pub struct CmdStep {
    /// The line, after aliases and templates.
    pub raw: String,
    /// The parsed line, as in [`BuildStep::line`].
    pub line: Result<CmdLine, LineRefusal>,
}

/// A push step.
#[derive(Debug, Clone)]
pub struct PushStep {
    /// Images with their tags, without duplicates, in file order. An `Err` is an invalid reference.
    pub images: Vec<Result<ImageRef, LineRefusal>>,
    /// Names as the plan shows them.
    pub raw: Vec<String>,
}

/// Reason why a line cannot run. The reference executor accepts such a file, so the plan is shown
/// and only the run is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineRefusal {
    /// Description of the problem.
    pub message: String,
    /// Byte range of the raw line.
    pub span: std::ops::Range<usize>,
    /// Help: what to write instead.
    pub help: Option<String>,
}

/// Settings of a step for its container only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerOptions {
    /// `true` to start the container without waiting for it. The run stops it at its end.
    pub detach: bool,
    /// `true` to keep the container after the run.
    pub keep: bool,
    /// Replacement of the image's entry point.
    pub entry_point: Option<String>,
    /// User name or id.
    pub user: Option<String>,
    /// Published ports in the format of `docker run -p`.
    pub ports: Vec<String>,
    /// Exposed ports.
    pub expose: Vec<String>,
    /// `true` to request a privileged container. Refused unless the operator allows it.
    pub privileged: bool,
    /// `default`, `process` or `hyperv`. Only `default` has an effect on Linux.
    pub isolation: Option<String>,
    /// Number of CPUs.
    pub cpus: Option<String>,
    /// `true` to pull the image even if it is present.
    pub pull: bool,
    /// Maximum number of further attempts to pull the image.
    pub download_retries: u32,
    /// Delay between attempts to pull.
    pub download_retry_delay: Duration,
    /// Mounted volumes.
    pub volume_mounts: Vec<VolumeMount>,
}

/// A volume mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Absolute path in the container.
    pub mount_path: String,
}
