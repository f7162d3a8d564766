//! The Plan: a task that has been read, resolved and checked.
//!
//! Everything here is typed as the executor needs it. Invariants: step ids are unique; `after` names
//! steps of the same plan and has no cycle; defaults are filled in; no alias or template is left.

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
    /// `v1.0.0`, which is also meant where a file gives none.
    #[serde(rename = "v1.0.0")]
    V1_0_0,
    /// `v1.1.0`: adds aliases.
    #[serde(rename = "v1.1.0")]
    V1_1_0,
}

/// A task, ready to be executed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The version of the language that the file is written in.
    pub version: Version,
    /// The networks to create; never empty.
    pub networks: Vec<Network>,
    /// The volumes that steps mount, by name.
    pub volumes: Vec<Volume>,
    /// The registry credentials that the file itself declares. Always empty today: the language has no key
    /// for them, and the reference executor takes them from its command line alone.
    pub credentials: Vec<Credential>,
    /// The steps, in file order.
    pub steps: Vec<Step>,
    /// Values that must never be seen in output, from `secrets` and `--set-secret`.
    pub secrets: Vec<Secret>,
    /// The whole run's limit, where `--timeout` or the file gives one.
    pub timeout: Option<Duration>,
    /// Images that stand for others: where a build or a container would take the name, with its tag, it takes the
    /// digest. Empty but for a run that repeats another one. What the run itself builds under the name comes first.
    pub pins: BTreeMap<ImageRef, Digest>,
}

/// A network of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its name in the file; the executor's own name has the run's id before it.
    pub name: String,
    /// `bridge` where the file says nothing.
    pub driver: String,
    /// Whether it carries IPv6.
    pub ipv6: bool,
    /// The engine had it before the run; the run neither creates nor removes it.
    pub skip_creation: bool,
    /// Whether steps that name no network join this one.
    pub is_default: bool,
    /// Position of its first line in the file, from 1. `None` for the network that a file without any gets.
    #[serde(skip)]
    pub line: Option<usize>,
}

impl Network {
    /// Returns why only the operator of the machine can allow this network. `None` if the run creates a bridge of its
    /// own, which leads to no other container and no device of the machine.
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

    /// The help for [`Self::needs_operator`].
    pub const OPERATOR_HELP: &str = "declare it with its name alone, for a network of the run; an operator who trusts \
                                     this task allows it with `--allow host-network`";
}

/// A volume with files from secrets.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name: `[A-Za-z0-9_-]+`.
    pub name: String,
    /// File name to its content, decoded from base 64.
    pub files: BTreeMap<String, Secret>,
}

/// A credential that the task file declares for a registry.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Host and port.
    pub registry: String,
    /// User name.
    pub username: Secret,
    /// Password or token.
    pub password: Secret,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Unique in the plan.
    pub id: StepId,
    /// What it does.
    pub kind: StepKind,
    /// The steps that must have finished before it starts.
    pub after: Vec<StepId>,
    /// `KEY=VALUE` for its containers and `docker build`'s environment; the task's own merged in.
    pub env: Vec<String>,
    /// As written; joined to `/workspace` for cmd steps and to the context for build steps.
    pub working_directory: String,
    /// Keep the image's own working directory.
    pub disable_working_directory_override: bool,
    /// Limit of one attempt.
    pub timeout: Duration,
    /// Wait before the first attempt.
    pub start_delay: Duration,
    /// Attempts after the first one that failed.
    pub retries: u32,
    /// Wait between attempts.
    pub retry_delay: Duration,
    /// Retry only where the output contains one of these; empty: always.
    pub retry_on_errors: Vec<String>,
    /// Runs after the first one that succeeded.
    pub repeat: u32,
    /// A failure does not fail the run.
    pub ignore_errors: bool,
    /// The network that its container joins: the one the step names, else the task's default one. Nothing
    /// where the file declares networks and marks none of them as the default: then the engine's own.
    pub network: Option<String>,
    /// Position of the step's first line in the file, from 1.
    pub line: usize,
    /// Everything that only containers use.
    pub container: ContainerOptions,
}

impl Plan {
    /// Why steps cannot be run, each with its step. A run with one of these is refused before it starts; as
    /// diagnostics with their places they are in [`crate::Resolution::refusals`].
    pub fn refusals(&self) -> impl Iterator<Item = (&Step, &LineRefusal)> {
        self.steps
            .iter()
            .flat_map(|step| step.refusals().map(move |refused| (step, refused)))
    }
}

impl Step {
    /// Why this step cannot be run.
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

/// The kinds of steps.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `docker build` through BuildKit.
    Build(Box<BuildStep>),
    /// Containers.
    Cmd(Box<CmdStep>),
    /// Images to their registries.
    Push(PushStep),
}

/// A build step.
#[derive(Debug, Clone)]
pub struct BuildStep {
    /// The line, after aliases and templates.
    pub raw: String,
    /// Its words, understood. An `Err` says why `acrtask run` refuses it; `acrtask plan` still shows the step.
    pub line: Result<BuildLine, LineRefusal>,
    /// The step's registry cache, where `cache: enabled` or the run asks for one.
    pub cache: Option<StepCache>,
}

/// A cache of layers in a registry. One that cannot be read or written fails no build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCache {
    /// Where it is.
    pub reference: ImageRef,
    /// Whether the build's layers are added to it; else they are only taken from it.
    pub export: bool,
}

/// A cmd step.
#[derive(Debug, Clone)]
pub struct CmdStep {
    /// The line, after aliases and templates.
    pub raw: String,
    /// Its words, understood; as for [`BuildStep::line`].
    pub line: Result<CmdLine, LineRefusal>,
}

/// A push step.
#[derive(Debug, Clone)]
pub struct PushStep {
    /// The images with their tags, without duplicates, in file order. An `Err` for a name that is no reference.
    pub images: Vec<Result<ImageRef, LineRefusal>>,
    /// The names as the plan shows them.
    pub raw: Vec<String>,
}

/// Why a line cannot be run. The reference executor accepts the file, so the plan is shown, and a run is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineRefusal {
    /// What is wrong.
    pub message: String,
    /// Bytes of the raw line that it is about.
    pub span: std::ops::Range<usize>,
    /// What to write instead.
    pub help: Option<String>,
}

/// The settings of a step that reach only its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerOptions {
    /// Started, not waited for, stopped when the run ends.
    pub detach: bool,
    /// Not removed at the end of the run.
    pub keep: bool,
    /// Replaces the image's entry point.
    pub entry_point: Option<String>,
    /// User name or id.
    pub user: Option<String>,
    /// Published ports, as `docker run -p` takes them.
    pub ports: Vec<String>,
    /// Exposed ports.
    pub expose: Vec<String>,
    /// Asked for; refused unless the operator allowed it.
    pub privileged: bool,
    /// `default`, `process`, `hyperv`; only the first means something on Linux.
    pub isolation: Option<String>,
    /// Number of CPUs.
    pub cpus: Option<String>,
    /// Pull the image even where it is present.
    pub pull: bool,
    /// Attempts at pulling the image.
    pub download_retries: u32,
    /// Wait between those.
    pub download_retry_delay: Duration,
    /// Volume name and absolute path in the container.
    pub volume_mounts: Vec<VolumeMount>,
}

/// A volume mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// The volume.
    pub name: String,
    /// Where in the container.
    pub mount_path: String,
}
