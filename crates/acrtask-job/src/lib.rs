//! From what a run is to do ([`RunSpec`]) to what is carried out ([`Plan`]): its task file is found and read, its
//! facts are filled in, and what the operator does not allow is refused. `acrtask run` on one's own machine and the
//! runner of a control plane go this one way.
//!
//! Invariants:
//! - Nothing is started and nothing is written. What is read is inside the run's files; the environment of this
//!   machine only for a task of the operator's own folder; vaults as [`VaultSecrets`] allows.
//! - Git is asked only where the task names one of its facts.
//! - What is wrong with the task file is data ([`Diagnostic`]); a [`JobError`] is all that keeps one from reading it.
//!
//! Left out: fetching the files, which is `acrtask-source`, and carrying the plan out, which is `acrtask-executor`.

mod build;
mod cache;
mod empty;
mod error;
mod facts;
mod find;
mod lookup;
mod permit;
mod pins;
mod platforms;
mod problems;

use std::{collections::BTreeMap, path::PathBuf};

use acrtask_api::spec::{Facts, RunSpec, Work};
use acrtask_executor::Allow;
use acrtask_model::{RunId, Secret, TrustDomain, mask::Patterns};
use acrtask_source::GitFacts;
use acrtask_spec::{Diagnostic, Resolution, RunFacts, TaskSource, plan::Plan};
use acrtask_vaults::{Access, Vaults};
use jiff::Timestamp;

pub use error::JobError;
pub use facts::this_architecture;
pub use find::{TASK_FILES, read_source};
pub use problems::{diagnostics_from, file_problems};

/// A run that is to be understood.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Its id.
    pub id: &'a RunId,
    /// What it may share with other runs.
    pub trust: &'a TrustDomain,
    /// What it is to do.
    pub spec: &'a RunSpec,
    /// The values of the names in `spec.secrets`.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// Its files on this machine.
    pub files: Files,
    /// What errors call its files: `.`, a URL, `/dev/null`.
    pub context: String,
    /// What git knows of its files.
    pub git: Git,
    /// What the operator of this machine allows.
    pub allow: Allow,
    /// Secrets that its task file names and a vault keeps.
    pub vaults: VaultSecrets<'a>,
    /// The time now: that of the run where its facts name none.
    pub now: Timestamp,
}

/// Source of the values of secrets that a vault keeps.
#[derive(Debug, Clone)]
pub enum VaultSecrets<'a> {
    /// No vault is read: a placeholder takes the place of each value. For plans that are only shown.
    Placeholders,
    /// The vaults are read.
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
    /// A folder that the operator of this machine named.
    OfTheOperator(PathBuf),
    /// A context that was fetched or uploaded: its task file reads nothing of this machine.
    FromElsewhere(PathBuf),
    /// None.
    None,
}

/// What git knows of a run's files.
#[derive(Debug, Clone)]
pub enum Git {
    /// This, as it was fetched.
    Known(GitFacts),
    /// What a checkout in this folder says; it is asked only where the task needs it.
    OfFolder(PathBuf),
}

/// A run that was understood, whatever came of it.
#[derive(Debug)]
pub struct Understood {
    /// The text that the diagnostics are about.
    pub source: TaskSource,
    /// The plan and what was found.
    pub resolution: Resolution,
    /// The facts of the run, the found ones among them.
    pub facts: Facts,
}

/// A run that is ready, or refused.
#[derive(Debug)]
pub struct Prepared {
    /// The text that the diagnostics are about.
    pub source: TaskSource,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// What to carry out; nothing where one of the diagnostics is an error. Its timeout is the shorter one of the
    /// task's and the run's own. Whether it pushes is still the caller's to say: `RunRequest::no_push`.
    pub plan: Option<Plan>,
    /// The facts of the run, the found ones among them.
    pub facts: Facts,
}

/// Finds the task and reads it; what to show of it is `Resolution::for_plan`. Blocks, and may download what
/// `alias: src:` names: not for a thread of a runtime.
///
/// # Errors
///
/// [`JobError`] if the task cannot be read, its images cannot be built, or a vault cannot be reached.
pub fn understand(job: &Job<'_>) -> Result<Understood, JobError> {
    let source = match &job.spec.work {
        Work::Build(build) => return build::understand(job, build),
        Work::Usual => find::usual(job)?,
        Work::File { path } => find::named(job, path)?,
        Work::Text { name, text } => TaskSource {
            name: name.clone(),
            text: text.clone(),
        },
        // JSON's texts are YAML's as well.
        Work::Cmd { line } => TaskSource {
            name: "--cmd".into(),
            text: format!(
                "version: v1.1.0\nsteps:\n  - id: cmd\n    cmd: {}\n",
                serde_json::Value::from(line.as_str())
            ),
        },
    };
    let (facts, found) = facts::of(job, &source.text);
    resolve(job, source, &facts, found)
}

fn resolve(
    job: &Job<'_>,
    source: TaskSource,
    facts: &RunFacts,
    found: Facts,
) -> Result<Understood, JobError> {
    let outside = lookup::Outside::new(job.files.clone(), job.vaults.clone());
    let resolution = acrtask_spec::resolve(&source, facts, &outside);
    if let Some(reason) = outside.unreachable() {
        let masked = Patterns::new(job.secrets.values()).mask(&reason);
        return Err(JobError::unreachable(masked));
    }
    Ok(Understood {
        source,
        resolution,
        facts: found,
    })
}

/// [`understand`], and everything that is between a plan and its run: permissions, platforms, secrets, pinned bases,
/// the shared cache. Blocks as that does.
///
/// # Errors
///
/// As [`understand`].
pub fn prepare(job: &Job<'_>) -> Result<Prepared, JobError> {
    let Understood {
        source,
        resolution,
        facts,
    } = understand(job)?;
    let mut diagnostics = resolution.for_run();
    if let Some(plan) = &resolution.plan {
        diagnostics.extend(permit::refusals(&source, plan, job.allow));
        diagnostics.extend(empty::refusals(&source, plan, &job.files));
    }
    let refused = diagnostics.iter().any(Diagnostic::is_error);
    let mut plan = resolution.plan.filter(|_| !refused);
    if let Some(plan) = &mut plan {
        let spec = job.spec;
        platforms::set(plan, &spec.platforms);
        build::give_secrets(plan, &spec.build_secrets, job.secrets);
        diagnostics.extend(pins::apply(plan, &spec.pins));
        cache::share(plan, &spec.cache, job.trust, &facts.registry);
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
        facts,
    })
}
