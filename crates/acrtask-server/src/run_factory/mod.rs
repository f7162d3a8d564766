//! Creation of runs from requests, tasks and triggers.
//!
//! Invariants:
//! * A stored run and its spec contain no secret value in plain text.
//! * The stored secrets of a run are selected and recorded when the run is created. Their values
//!   are loaded when the run is leased.
//! * All problems of a request are reported at once.
//!
//! Left out: the content of a task file in a context, which only the runner parses.

use acrtask_api::{
    spec::{ContextSource, RunSource, RunSpec},
    task::{Concurrency, QueueOptions, Task},
};
use acrtask_model::{ContributionSource, RunId, ScopeChain, TrustDomain};
use acrtask_store::{NewRun, Origin};
use rand::RngCore as _;

use crate::{
    App,
    validate::{self, Problems},
};

mod cache_name;
mod create;
mod rerun;
mod secrets;
pub(crate) mod trigger;

pub(crate) use self::cache_name::cache_name;

pub use create::{create_from_request, create_from_task};
pub(crate) use rerun::is_pinned_to_commit;
pub use rerun::rerun;
pub use secrets::{
    RunSecrets, credential_aad, find_missing_secrets, seal_secrets, secret_aad, unseal_secrets,
};
pub(crate) use secrets::{find_missing, list_missing, missing_secrets_message, scopes_of};

/// Returns a random id for a new run.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub fn new_run_id() -> RunId {
    RunId::from_random(rand::rng().next_u64())
}

/// Details of a request for a run that do not depend on its task.
#[derive(Debug, Clone, Default)]
pub struct RequestContext {
    /// Name of the requester.
    pub requested_by: Option<String>,
    /// Idempotency key. A second request with the same key returns the run of the first one.
    pub idempotency_key: Option<String>,
    /// Principal whose quotas count the run. `None`: only the quotas of its task count it.
    pub charged_to: Option<String>,
    /// W3C traceparent. Empty if the request is not traced.
    pub traceparent: String,
}

/// A new run with its unencrypted secrets, before it is stored.
#[derive(Debug)]
pub struct RunDraft {
    /// The run to store. [`RunDraft::seal`] adds its encrypted secrets.
    run: NewRun,
    /// Unencrypted secrets.
    secrets: RunSecrets,
}

impl RunDraft {
    pub(crate) fn secrets(&self) -> &RunSecrets {
        &self.secrets
    }

    /// Encrypts the secrets and returns the run to store.
    ///
    /// # Errors
    /// Returns an error if the secrets cannot be formatted as JSON, which does not happen for valid
    /// text.
    pub fn seal(mut self, app: &App) -> Result<NewRun, serde_json::Error> {
        self.run.secrets = seal_secrets(app, &self.run.id, &self.secrets)?;
        Ok(self.run)
    }

    /// Moves the run from its trust domain to that of a contribution to it from `source`.
    pub(crate) fn move_to_contribution(&mut self, source: ContributionSource) {
        let run = &mut self.run;
        run.trust_domain = run.trust_domain.clone().contribution(source);
        let name = run.task_name.as_deref().unwrap_or_default();
        run.affinity_key = run.trust_domain.affinity_key(name);
        trigger::restrict_cache(&mut run.spec, &run.trust_domain);
    }

    /// Returns the context of the run.
    pub(crate) fn context(&self) -> &ContextSource {
        &self.run.spec.context
    }

    /// Checks the size of the final spec, including the values of the request, the task and the
    /// trigger.
    ///
    /// # Errors
    /// Returns the problem if the spec is larger than the limit.
    pub(crate) fn check_size(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        validate::check_size("the spec of the run", &self.run.spec, &mut problems);
        problems.into_result()
    }

    /// Replaces the id of the run if `id` is given.
    #[must_use]
    pub fn with_id(mut self, id: Option<RunId>) -> Self {
        if let Some(id) = id {
            self.run.id = id;
        }
        self
    }

    /// Returns the name of the run's task.
    pub(crate) fn task_name(&self) -> Option<&str> {
        self.run.task_name.as_deref()
    }

    /// Returns the names of the stored secrets that the run needs.
    pub fn stored_secrets(&self) -> impl Iterator<Item = &str> {
        self.secrets.stored.values().map(String::as_str)
    }

    /// Returns the scopes of the stored secrets that the run may use.
    pub fn scopes(&self) -> ScopeChain {
        match (&self.run.task_id, &self.run.task_name) {
            (Some(id), Some(name)) => ScopeChain::of_task(id, name),
            _ => ScopeChain::shared(),
        }
    }
}

/// Returns the trust domain of the task's own code.
pub(crate) fn domain_of(app: &App, task: &Task) -> TrustDomain {
    app.config.trust.domain_of(&task.id, &task.definition.name)
}

#[expect(
    clippy::too_many_arguments,
    reason = "each of them decides, and none has a default"
)]
fn build_draft(
    app: &App,
    domain: TrustDomain,
    owner: Option<(String, String)>,
    spec: RunSpec,
    mut queue: QueueOptions,
    secrets: RunSecrets,
    trigger: &str,
    by: RequestContext,
) -> RunDraft {
    let (task_id, task_name) = owner.unzip();
    if let Some(Concurrency {
        group: group @ None,
        ..
    }) = &mut queue.concurrency
    {
        group.clone_from(&task_name);
    }
    let affinity_key = match &task_name {
        Some(name) => domain.affinity_key(name),
        None => domain.affinity_key(&format!(
            "{} {}",
            spec.variables.registry,
            context_key(&spec)
        )),
    };
    RunDraft {
        run: NewRun {
            id: new_run_id(),
            task_id,
            task_name,
            queue,
            platform: spec.platforms.first().cloned().unwrap_or_default(),
            context_id: match &spec.context {
                ContextSource::Upload { id } => Some(id.clone()),
                _ => None,
            },
            secrets: None,
            trigger: trigger.into(),
            requested_by: by.requested_by,
            rerun_of: None,
            idempotency_key: by.idempotency_key,
            timeout_secs: Some(
                spec.timeout_secs
                    .unwrap_or(app.config.run_timeout.as_secs()),
            ),
            traceparent: by.traceparent,
            affinity_key,
            max_attempts: app.config.max_attempts.max(1),
            origin: Origin {
                charged_to: by.charged_to,
                ..Origin::default()
            },
            trust_domain: domain,
            spec,
        },
        secrets,
    }
}

/// Returns the key that groups similar runs without a task, for their affinity to a runner. An
/// upload has a new id each time, so its built images represent it.
fn context_key(spec: &RunSpec) -> String {
    match (&spec.context, &spec.source) {
        (ContextSource::Url { url, .. }, _) => url.clone(),
        (_, RunSource::Build(build)) => build.images.join(" "),
        (_, RunSource::Cmd { line }) => line.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
