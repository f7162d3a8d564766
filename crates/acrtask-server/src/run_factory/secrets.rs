//! Secrets and logins of runs: encryption, and lookups of stored secrets.

use std::collections::BTreeMap;

use acrtask_api::run::{RunCredential, SecretText};
use acrtask_model::{RunId, ScopeChain};
use acrtask_store::{RunRow, StoreError};
use serde::{Deserialize, Serialize};

use super::RunDraft;
use crate::{App, vault::VaultError};

/// Secret values and logins of a run, stored encrypted with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunSecrets {
    /// Secret values sent with the request.
    pub values: BTreeMap<String, SecretText>,
    /// Logins sent with the request.
    pub credentials: Vec<RunCredential>,
    /// Stored secrets of the run: name in the run to name in the secret store.
    pub stored: BTreeMap<String, String>,
}

impl RunSecrets {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Encrypts the secrets of a run. Returns `None` if it has none.
pub fn seal_secrets(
    app: &App,
    run: &RunId,
    secrets: &RunSecrets,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_vec(secrets)?;
    Ok(Some(app.vault.seal(&run_aad(run), &text)))
}

/// Decrypts the secrets of a run.
///
/// # Errors
/// Returns an error if the key is missing or the stored value is damaged.
pub fn unseal_secrets(app: &App, run: &RunRow) -> Result<RunSecrets, VaultError> {
    match &run.secrets {
        None => Ok(RunSecrets::default()),
        Some(sealed) => {
            let text = app.vault.open(&run_aad(&run.id), sealed)?;
            serde_json::from_str(text.expose()).map_err(|_| VaultError::Damaged)
        }
    }
}

fn run_aad(run: &RunId) -> String {
    format!("run/{run}")
}

/// Returns the `aad` of a stored secret. A scope is the key of a [`acrtask_model::TaskScope`]: an id without `/`, or
/// a text that ends with `*`, which names and hosts do not contain.
pub fn secret_aad(scope: &str, name: &str) -> String {
    format!("secret/{scope}/{name}")
}

/// Returns the `aad` of a stored login.
pub fn credential_aad(scope: &str, host: &str) -> String {
    format!("credential/{scope}/{host}")
}

/// Returns the names of the stored secrets that a run needs and that do not exist in its scopes.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub async fn find_missing_secrets(app: &App, draft: &RunDraft) -> Result<Vec<String>, StoreError> {
    find_missing(app, &draft.scopes(), draft.stored_secrets()).await
}

/// Returns the `names` without a stored secret in `scopes`.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub(crate) async fn find_missing<'n>(
    app: &App,
    scopes: &ScopeChain,
    names: impl Iterator<Item = &'n str>,
) -> Result<Vec<String>, StoreError> {
    let mut missing = Vec::new();
    for name in names {
        if app.store.secret(scopes, name).await?.is_none() {
            missing.push(name.to_owned());
        }
    }
    missing.dedup();
    Ok(missing)
}

/// Formats the message for missing stored secrets, with the command that sets the first one.
pub(crate) fn missing_secrets_message(missing: &[String], task: Option<&str>) -> String {
    let only = task.map_or(String::new(), |task| format!(" --task {task}"));
    format!(
        "{}; set it with `acrtask secret set {}{only}`",
        list_missing(missing),
        missing.first().map_or("NAME", String::as_str)
    )
}

/// Formats the names of missing secrets as a sentence.
pub(crate) fn list_missing(missing: &[String]) -> String {
    let names = missing.join("`, `");
    match missing {
        [_] => format!("the secret `{names}` is missing"),
        _ => format!("the secrets `{names}` are missing"),
    }
}

/// Returns the scopes of the task with this id. They contain no prefix if the task does not exist.
///
/// # Errors
/// Returns an error if the database cannot be used.
pub(crate) async fn scopes_of(app: &App, task_id: &str) -> Result<ScopeChain, StoreError> {
    let task = app.store.tasks_by_id(vec![task_id.to_owned()]).await?.pop();
    let name = task.map(|task| task.definition.name).unwrap_or_default();
    Ok(ScopeChain::of_task(task_id, &name))
}
