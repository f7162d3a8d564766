//! What a runner is handed with a run: the spec, and the values of the secrets and logins that the run may have.

use std::collections::BTreeMap;

use acrtask_api::{
    run::{Approval, RunCredential, SecretText},
    spec::RunSpec,
};
use acrtask_model::{Secret, TrustDomain};
use acrtask_store::{RunRow, StoreError};

use super::{credential_aad, event, secret_aad, stored_secret, unseal};
use crate::{App, vault::VaultError};

/// What a runner is handed beside the run's id and attempt.
#[derive(Debug)]
pub struct LeasePayload {
    /// The run's [`RunSpec`].
    pub spec_json: String,
    /// Values of the names in its `secrets`.
    pub secrets: BTreeMap<String, Secret>,
    /// Logins for registries and git hosts, one for each host.
    pub credentials: Vec<RunCredential>,
    /// Name of the task that the run may read vaults as. `None`: it may read none.
    pub vault_task: Option<String>,
}

/// Reason of the refusal of a run whose task has another name by now.
pub(crate) const RENAMED: &str =
    "the task was renamed after this run was made; start it by its new name: `acrtask task run`";

/// Why a run cannot be handed to a runner.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It never can, as things are: the run ends as an error with this reason.
    #[error("{0}")]
    Hopeless(String),
    /// It cannot now: the lease is given back.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
}

/// What `run` is handed with: its spec, its own secrets and logins, those of its task, and those of all.
///
/// # Errors
/// [`LeaseError::Hopeless`] where a secret is missing or cannot be decrypted.
pub async fn lease_payload(app: &App, run: &RunRow) -> Result<LeasePayload, LeaseError> {
    let hopeless = |what: &str, error: &VaultError| {
        LeaseError::Hopeless(format!("{what} of the run cannot be used: {error}"))
    };
    // It is not handed out before somebody has approved it. Should it ever be, it gets nothing.
    if run.approval == Some(Approval::Pending) {
        let spec = event::untrusted(&run.spec, &run.trust_domain);
        return Ok(LeasePayload {
            spec_json: write_spec(&spec)?,
            secrets: BTreeMap::new(),
            credentials: Vec::new(),
            vault_task: None,
        });
    }
    let own = unseal(app, run).map_err(|error| hopeless("the secrets", &error))?;
    let task_id = run.task_id.as_deref();
    let task = match task_id {
        Some(id) => app.store.tasks_by_id(vec![id.to_owned()]).await?.pop(),
        None => None,
    };
    // The limits of tokens compare names, and logins and caches belong to the id.
    if let Some(task) = &task
        && run.task_name.as_ref() != Some(&task.definition.name)
    {
        return Err(LeaseError::Hopeless(RENAMED.to_owned()));
    }
    let mut secrets: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, stored) in &own.stored {
        let Some((scope, sealed)) = stored_secret(app, task_id, stored).await? else {
            let task = run.task_name.as_deref();
            let only = task.map_or(String::new(), |task| format!(" --task {task}"));
            return Err(LeaseError::Hopeless(format!(
                "the secret `{stored}` is not there any more; set it with `acrtask secret set {stored}{only}` and run it again"
            )));
        };
        let value = app
            .vault
            .open(&secret_aad(scope, stored), &sealed)
            .map_err(|error| hopeless(&format!("the secret `{stored}`"), &error))?;
        secrets.insert(name.clone(), value);
    }
    for (name, value) in own.values {
        secrets.insert(name, Secret::new(value.0));
    }
    // The nearest wins: the run's own, the task's, those of all.
    let mut credentials = own.credentials;
    let scopes: Vec<&str> = task_id.into_iter().chain([""]).collect();
    let mut rows = app.store.credentials_for(&scopes).await?;
    rows.sort_by_key(|row| row.scope.is_empty());
    for row in rows {
        if credentials.iter().any(|known| known.host == row.host) {
            continue;
        }
        let password = app
            .vault
            .open(&credential_aad(&row.scope, &row.host), &row.password)
            .map_err(|error| hopeless(&format!("the login for {}", row.host), &error))?;
        credentials.push(RunCredential {
            host: row.host,
            username: row.username,
            password: SecretText(password.expose().to_owned()),
        });
    }
    Ok(LeasePayload {
        spec_json: write_spec(&run.spec)?,
        secrets,
        credentials,
        vault_task: vault_task(run).filter(|_| task.is_some()),
    })
}

/// Returns the task that `run` may read vaults as.
///
/// Only code that someone vouches for reads them: the task's own, and a fork's commit that is approved. A run
/// to which a starter without `write` brought files or secrets has neither.
fn vault_task(run: &RunRow) -> Option<String> {
    let is_own = match &run.trust_domain {
        TrustDomain::Task { .. } | TrustDomain::Prefix { .. } => true,
        TrustDomain::Contribution { .. } => run.approval == Some(Approval::Approved),
        TrustDomain::Local | TrustDomain::Principal { .. } => false,
    };
    run.task_name.clone().filter(|_| is_own)
}

fn write_spec(spec: &RunSpec) -> Result<String, LeaseError> {
    serde_json::to_string(spec)
        .map_err(|error| LeaseError::Hopeless(format!("the spec cannot be written: {error}")))
}
