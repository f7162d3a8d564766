//! Conversion of a run's specification ([`RunSpec`]) to a [`Plan`].
//!
//! The conversion finds and reads the task file, sets the run's variables, and refuses what the
//! operator does not allow. `acrtask run` on the user's own machine and the runner of a control
//! plane both use it.
//!
//! Invariants:
//! - Nothing is started and nothing is written. Only the run's files are read. The environment of
//!   this machine is read only for a task of the operator's own folder, and vaults as
//!   [`VaultSecrets`] allows.
//! - Git is called only if the task names one of its variables.
//! - Problems of the task file are data ([`Diagnostic`]). A [`JobError`] means that the file could
//!   not be read.
//!
//! Left out: fetching the files, which is `acrtask-source`, and executing the plan, which is
//! `acrtask-executor`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod build;
mod cache;
mod empty_context;
mod error;
mod find;
mod lookup;
mod permit;
mod pins;
mod platforms;
mod problems;
mod variables;

use std::{collections::BTreeMap, path::PathBuf};

use acrtask_api::spec::{RunSource, RunSpec, Variables};
use acrtask_executor::Allow;
use acrtask_model::{RunId, Secret, TrustDomain, mask::Patterns};
use acrtask_source::GitVariables;
use acrtask_spec::{Diagnostic, Resolution, RunVariables, TaskSource, plan::Plan};
use acrtask_vaults::{Access, Vaults};
use jiff::Timestamp;

pub use error::JobError;
pub use find::{TASK_FILES, read_source};
pub use problems::{diagnostics_from, file_problems};
pub use variables::this_architecture;

/// A run whose plan is requested.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Id of the run, for `{{.Run.ID}}` and the name of the workspace.
    pub id: &'a RunId,
    /// The trust domain, which decides what the run shares with others.
    pub trust: &'a TrustDomain,
    /// The specification of the run.
    pub spec: &'a RunSpec,
    /// The values of the names in `spec.secrets`.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// The run's files on this machine.
    pub files: Files,
    /// The name of the files in errors: `.`, a URL, `/dev/null`.
    pub context: String,
    /// Source of the variables that git provides.
    pub git: Git,
    /// Permissions from the operator of this machine.
    pub allow: Allow,
    /// Source of the secrets that the task file reads from vaults.
    pub vaults: VaultSecrets<'a>,
    /// The current time, which is the run's date unless its variables contain one.
    pub now: Timestamp,
}

/// Source of the values of secrets in vaults.
#[derive(Debug, Clone)]
pub enum VaultSecrets<'a> {
    /// Replaces each value by a placeholder and reads no vault. For plans that are only displayed.
    Placeholders,
    /// Reads the vaults.
    Read {
        /// The vaults, with the identity of the operator.
        vaults: &'a Vaults,
        /// Permissions of the run.
        access: Access,
    },
}

/// The files of a run on this machine. Absolute paths, without links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// A folder that the operator of this machine chose.
    OperatorFolder(PathBuf),
    /// A fetched or uploaded context. Its task file can read nothing of this machine.
    Fetched(PathBuf),
    /// No files.
    None,
}

/// Source of the variables that git provides.
#[derive(Debug, Clone)]
pub enum Git {
    /// The values from the fetch of the files.
    Fetched(GitVariables),
    /// The checkout in this folder. Git is called only if the task needs it.
    Folder(PathBuf),
}

/// The result of resolving a task, with or without errors.
#[derive(Debug)]
pub struct ResolvedTask {
    /// The text that the diagnostics refer to.
    pub source: TaskSource,
    /// The plan and the diagnostics.
    pub resolution: Resolution,
    /// Variables of the run, including those that were found.
    pub variables: Variables,
}

/// A run that is ready or refused.
#[derive(Debug)]
pub struct Prepared {
    /// The text that the diagnostics refer to.
    pub source: TaskSource,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// The plan to execute. `None` if one of the diagnostics is an error.
    ///
    /// The timeout is the shorter one of the task's and the run's own. The caller decides whether
    /// the run pushes: `RunRequest::no_push`.
    pub plan: Option<Plan>,
    /// Variables of the run, including those that were found.
    pub variables: Variables,
}

/// Finds, reads and resolves the task. `Resolution::for_plan` returns the diagnostics to display.
///
/// Blocks, and may download the sources of `alias: src:`. Do not call it on a thread of a runtime.
///
/// # Errors
///
/// [`JobError`] if the task cannot be read, its images cannot be built, or a vault is unreachable.
pub fn resolve_task(job: &Job<'_>) -> Result<ResolvedTask, JobError> {
    let source = match &job.spec.source {
        RunSource::Build(build) => return build::resolve_build(job, build),
        RunSource::DefaultFile => find::default_file(job)?,
        RunSource::File { path } => find::named_file(job, path)?,
        RunSource::Inline { name, text } => TaskSource {
            name: name.clone(),
            text: text.clone(),
        },
        // JSON strings are valid YAML.
        RunSource::Cmd { line } => TaskSource {
            name: "--cmd".into(),
            text: format!(
                "version: v1.1.0\nsteps:\n  - id: cmd\n    cmd: {}\n",
                serde_json::Value::from(line.as_str())
            ),
        },
    };
    let (facts, found) = variables::collect(job, &source.text);
    resolve_source(job, source, &facts, found)
}

fn resolve_source(
    job: &Job<'_>,
    source: TaskSource,
    facts: &RunVariables,
    found: Variables,
) -> Result<ResolvedTask, JobError> {
    let lookup = lookup::TaskLookup::new(job.files.clone(), job.vaults.clone());
    let resolution = acrtask_spec::resolve(&source, facts, &lookup);
    if let Some(reason) = lookup.unreachable() {
        let masked = Patterns::new(job.secrets.values()).mask(&reason);
        return Err(JobError::unreachable(masked));
    }
    Ok(ResolvedTask {
        source,
        resolution,
        variables: found,
    })
}

/// Resolves the task and prepares its plan for execution: permissions, platforms, secrets, pinned
/// bases, and the shared cache. Blocks like [`resolve_task`].
///
/// # Errors
///
/// As [`resolve_task`].
pub fn prepare(job: &Job<'_>) -> Result<Prepared, JobError> {
    let ResolvedTask {
        source,
        resolution,
        variables,
    } = resolve_task(job)?;
    let mut diagnostics = resolution.for_run();
    if let Some(plan) = &resolution.plan {
        diagnostics.extend(permit::find_refusals(&source, plan, job.allow));
        diagnostics.extend(empty_context::find_refusals(&source, plan, &job.files));
    }
    let refused = diagnostics.iter().any(Diagnostic::is_error);
    let mut plan = resolution.plan.filter(|_| !refused);
    if let Some(plan) = &mut plan {
        let spec = job.spec;
        platforms::set_platforms(plan, &spec.platforms);
        build::add_secret_variables(plan, &spec.build_secrets, job.secrets);
        diagnostics.extend(pins::apply_pins(plan, &spec.pins));
        cache::add_shared_cache(plan, &spec.cache, job.trust, &variables.registry);
        let limit = spec.timeout_secs.map(std::time::Duration::from_secs);
        plan.timeout = match (plan.timeout, limit) {
            (Some(own), Some(limit)) => Some(own.min(limit)),
            (own, limit) => own.or(limit),
        };
    }
    Ok(Prepared {
        source,
        diagnostics,
        plan,
        variables,
    })
}
