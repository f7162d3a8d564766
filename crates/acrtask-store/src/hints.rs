//! Hints between servers: they save time and may all be lost. PostgreSQL carries them by NOTIFY; with SQLite there is no
//! other server, so none is sent and none comes.

use acrtask_model::RunId;
use serde::{Deserialize, Serialize};

use crate::{Result, Store, StoreError};

/// Something that another server may want to look at before its next poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Runs may be ready.
    Enqueued,
    /// Somebody wants this run to end.
    Cancel(RunId),
    /// The log of this run grew, or the run is over.
    Log(RunId),
    /// Stored tasks changed.
    Tasks,
}

/// The hints of all servers, the own ones too.
#[derive(Debug)]
pub struct Hints(());

impl Hints {
    /// The next hint. With SQLite it never comes.
    pub async fn next(&mut self) -> Hint {
        std::future::pending().await
    }
}

impl Store {
    /// Listens for hints from now on.
    pub async fn hints(&self) -> Result<Hints> {
        Err(StoreError::not_found("hints"))
    }

    /// Sends hints to all servers.
    pub async fn hint(&self, hints: &[Hint]) -> Result<()> {
        let _ = hints;
        Err(StoreError::not_found("hints"))
    }
}
