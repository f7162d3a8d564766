//! What carries a run out, as the rest of the runner sees it. [`crate::engine`] is the real one.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use acrtask_api::spec::{Facts, RunSpec};
use acrtask_executor::Fence;
use acrtask_model::{Event, RunDomain, RunId, Secret};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Carries runs out.
pub(crate) trait Work: fmt::Debug + Send + Sync + 'static {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Whether a run could begin now; why not, in one sentence.
    fn check(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Carries a run out. What was sent to `events` when this returns is the run's log; the last event is
    /// `RunFinished` where the answer is [`Ended::Ran`], and is left to the caller otherwise.
    fn carry_out(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Ended>;
}

/// What a runner can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// `linux/amd64` ..., the engine's own first.
    pub(crate) platforms: Vec<String>,
    /// What engine and builder are and can do.
    pub(crate) features: BTreeMap<String, String>,
}

/// A login for a registry or a git host.
#[derive(Debug, Clone)]
pub(crate) struct Login {
    pub(crate) host: String,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// A run that is to be carried out.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: RunId,
    pub(crate) attempt: u32,
    pub(crate) domain: RunDomain,
    pub(crate) spec: RunSpec,
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// Name of the task that it may read vaults as.
    pub(crate) vault_task: Option<String>,
    pub(crate) logins: Vec<Login>,
    /// The files, where they were uploaded to the control plane: absolute, without links in the path.
    pub(crate) upload: Option<PathBuf>,
    /// Asked before each push.
    pub(crate) fence: Arc<dyn Fence>,
}

/// How carrying a run out ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ran, whatever came of it.
    Ran(Facts),
    /// Its task file was refused.
    Refused(Facts),
    /// Its task or context is wrong, so that another attempt would end the same way: the reason, in one sentence.
    Invalid(String),
    /// It could not begin: why, in one sentence.
    NotBegun(String),
}
