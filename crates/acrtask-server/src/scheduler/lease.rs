//! Payload of a lease: the run spec, and the values of the secrets and logins that the run may use.

use std::collections::BTreeMap;

use acrtask_api::{
    run::{Approval, RunCredential, SecretText},
    spec::RunSpec,
};
use acrtask_model::{ContributionSource, ScopeChain, Secret, TrustDomain};
use acrtask_store::{RunRow, StoreError};

use crate::{
    App,
    run_factory::{credential_aad, secret_aad, trigger, unseal_secrets},
    vault::VaultError,
};

/// Payload of a lease, in addition to the run's id and attempt.
#[derive(Debug)]
pub struct LeasePayload {
    /// The run's [`RunSpec`] as JSON.
    pub spec_json: String,
    /// Values of the secrets that the spec names.
    pub secrets: BTreeMap<String, Secret>,
    /// Logins for registries and git hosts, at most one per host.
    pub credentials: Vec<RunCredential>,
    /// Name of the task whose vault access the run has. `None` if it may read no vaults.
    pub vault_task: Option<String>,
}

/// Reason that ends a run whose task was renamed after the run was created.
pub(crate) const RENAMED: &str =
    "the task was renamed after this run was made; start it by its new name: `acrtask task run`";

/// Reasons why a run cannot be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A retry cannot succeed. The run ends as an error with this reason.
    #[error("{0}")]
    Permanent(String),
    /// The lease is returned and the run stays queued.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
}

/// Collects the payload of `run`: its spec, and the secrets and logins of the run, of its task, of
/// prefixes of the task's name and of all tasks.
///
/// # Errors
/// Returns [`LeaseError::Permanent`] if a secret is missing or cannot be decrypted.
pub async fn load_lease_payload(app: &App, run: &RunRow) -> Result<LeasePayload, LeaseError> {
    let permanent = |what: &str, error: &VaultError| {
        LeaseError::Permanent(format!("cannot use {what} of the run: {error}"))
    };
    // The scheduler does not lease a run that awaits approval. This second check sends neither
    // secrets nor logins.
    if run.approval == Some(Approval::Pending) {
        let spec = trigger::restrict_unapproved(&run.spec, &run.trust_domain);
        return Ok(LeasePayload {
            spec_json: format_spec(&spec)?,
            secrets: BTreeMap::new(),
            credentials: Vec::new(),
            vault_task: None,
        });
    }
    let own = unseal_secrets(app, run).map_err(|error| permanent("the secrets", &error))?;
    let task_id = run.task_id.as_deref();
    let task = match task_id {
        Some(id) => app.store.tasks_by_id(vec![id.to_owned()]).await?.pop(),
        None => None,
    };
    // Token limits compare names, but logins and caches belong to the id of a task.
    if let Some(task) = &task
        && run.task_name.as_ref() != Some(&task.definition.name)
    {
        return Err(LeaseError::Permanent(RENAMED.to_owned()));
    }
    // The author of the files could read what belongs to the task. A task may have got its secrets
    // and logins after the run was created.
    let is_trusted = !has_files_of_starter(&run.trust_domain);
    if !is_trusted && task_id.is_some() && !own.stored.is_empty() {
        return Err(LeaseError::Permanent(
            "the run has files of its starter, and its task has secrets; start it with the files of the task"
                .to_owned(),
        ));
    }
    let scopes = match &task {
        Some(task) if is_trusted => ScopeChain::of_task(&task.id, &task.definition.name),
        _ => ScopeChain::shared(),
    };
    let mut secrets: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, stored) in &own.stored {
        let Some((scope, sealed)) = app.store.secret(&scopes, stored).await? else {
            let task = run.task_name.as_deref();
            let only = task.map_or(String::new(), |task| format!(" --task {task}"));
            return Err(LeaseError::Permanent(format!(
                "the secret `{stored}` no longer exists; set it with `acrtask secret set {stored}{only}` and run it again"
            )));
        };
        let value = app
            .vault
            .open(&secret_aad(&scope, stored), &sealed)
            .map_err(|error| permanent(&format!("the secret `{stored}`"), &error))?;
        secrets.insert(name.clone(), value);
    }
    for (name, value) in own.values {
        secrets.insert(name, Secret::new(value.0));
    }
    // The narrowest scope wins: the run, then its task, then prefixes, then all tasks.
    let mut credentials = own.credentials;
    for row in app.store.credentials_for(&scopes).await? {
        if credentials.iter().any(|login| login.host == row.host) {
            continue;
        }
        let password = app
            .vault
            .open(&credential_aad(&row.scope, &row.host), &row.password)
            .map_err(|error| permanent(&format!("the login for {}", row.host), &error))?;
        credentials.push(RunCredential {
            host: row.host,
            username: row.username,
            password: SecretText(password.expose().to_owned()),
        });
    }
    Ok(LeasePayload {
        spec_json: format_spec(&run.spec)?,
        secrets,
        credentials,
        vault_task: vault_task(run).filter(|_| task.is_some()),
    })
}

/// Returns `true` if the run executes files of a principal that may not write its task.
fn has_files_of_starter(domain: &TrustDomain) -> bool {
    match domain {
        TrustDomain::Contribution { of, source } => {
            matches!(source, ContributionSource::Files { .. }) || has_files_of_starter(of)
        }
        TrustDomain::Local
        | TrustDomain::Task { .. }
        | TrustDomain::Prefix { .. }
        | TrustDomain::Principal { .. } => false,
    }
}

/// Returns the name of the task whose vault access `run` has.
///
/// Only trusted code reads vaults: the code of the task, and a fork's commit after its approval. A
/// run with files or secrets of a starter without `write` is neither.
fn vault_task(run: &RunRow) -> Option<String> {
    let is_own = match &run.trust_domain {
        TrustDomain::Task { .. } | TrustDomain::Prefix { .. } => true,
        TrustDomain::Contribution { .. } => run.approval == Some(Approval::Approved),
        TrustDomain::Local | TrustDomain::Principal { .. } => false,
    };
    run.task_name.clone().filter(|_| is_own)
}

fn format_spec(spec: &RunSpec) -> Result<String, LeaseError> {
    serde_json::to_string(spec)
        .map_err(|error| LeaseError::Permanent(format!("cannot format the spec: {error}")))
}
