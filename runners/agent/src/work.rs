//! Interface between the agent and the execution of runs. [`crate::engine`] implements it.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use acrtask_api::spec::{RunSpec, Variables};
use acrtask_executor::{Fence, Records};
use acrtask_model::{Event, RunDomain, RunId, Secret};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Execution of runs.
pub(crate) trait Work: fmt::Debug + Send + Sync + 'static {
    /// Returns the abilities of the engine and the builder.
    fn abilities(&self) -> Abilities;

    /// Checks that a run could begin now. Otherwise returns the reason as one sentence.
    fn check(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Executes a run and sends its log to `events`.
    ///
    /// The last event is `RunFinished` if this returns [`Ended::Ran`]. Otherwise the caller adds
    /// it.
    fn carry_out(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Ended>;
}

/// Abilities of a runner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Platforms like `linux/amd64`. The first is the engine's own.
    pub(crate) platforms: Vec<String>,
    /// Properties of the engine and the builder.
    pub(crate) features: BTreeMap<String, String>,
}

/// A login for a registry or a git host.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) host: String,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// A run to execute.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: RunId,
    pub(crate) attempt: u32,
    pub(crate) domain: RunDomain,
    pub(crate) spec: RunSpec,
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Name of the task as which the run may read vaults.
    pub(crate) vault_task: Option<String>,
    pub(crate) logins: Vec<Login>,
    /// Folder of the files that were uploaded to the control plane: absolute, without links.
    pub(crate) upload: Option<PathBuf>,
    /// Fence that permits each push.
    pub(crate) fence: Arc<dyn Fence>,
    /// The control plane's records of repositories.
    pub(crate) records: Arc<dyn Records>,
}

/// End of an execution.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The run was executed, with any result.
    Ran(Variables),
    /// The task file was refused.
    Refused(Variables),
    /// The task or the context is invalid, so a retry would fail too. The reason is one sentence.
    Invalid(String),
    /// The run could not begin. The reason is one sentence.
    NotBegun(String),
}
