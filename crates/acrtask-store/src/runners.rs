//! Runners and the one-use tokens that register them. A removed runner stays as a row, so that its runs keep its name.

use std::collections::BTreeMap;

use crate::{Ms, Result, Store, StoreError};

/// A token that registers one runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerTokenRow {
    /// Its id.
    pub id: String,
    /// What it is checked by.
    pub hash: Vec<u8>,
    /// The pool that the runner will be in.
    pub pool: Option<String>,
    /// Labels that the runner will have whatever it says.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Ms,
    /// When it ends.
    pub expires_at: Ms,
}

/// A runner that registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRunner {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its key is checked by.
    pub key_hash: Vec<u8>,
}

/// What a runner says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloFacts {
    /// Its pool: what its token said, else what it says, else `default`; decided by the caller.
    pub pool: String,
    /// Its labels, those of its token among them; decided by the caller.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
}

/// A runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRow {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What its key is checked by.
    pub key_hash: Vec<u8>,
    /// The pool that its registration token said.
    pub token_pool: Option<String>,
    /// The labels that its registration token said.
    pub token_labels: BTreeMap<String, String>,
    /// Its pool.
    pub pool: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64` ...
    pub platforms: Vec<String>,
    /// Runs that it carries out at once.
    pub slots: u32,
    /// Runs that it holds now.
    pub busy: u32,
    /// What its engine and builder are, and can do.
    pub features: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// It takes nothing new.
    pub draining: bool,
    /// Bytes that are free where it keeps its files.
    pub free_disk: u64,
    /// When it was last heard of.
    pub last_seen_at: Option<Ms>,
    /// The server that it was last connected to.
    pub server_id: Option<String>,
    /// When it registered.
    pub registered_at: Ms,
    /// When it was removed.
    pub removed_at: Option<Ms>,
}

impl Store {
    /// A new registration token.
    pub async fn create_runner_token(&self, token: &RunnerTokenRow) -> Result<()> {
        Err(StoreError::not_found(format!("runner token {}", token.id)))
    }

    /// A registration token that has not been used; whether it has ended is checked again by `register_runner`.
    pub async fn runner_token(&self, id: &str) -> Result<Option<RunnerTokenRow>> {
        Err(StoreError::not_found(format!("runner token {id}")))
    }

    /// Registers a runner and uses its token up: `NotFound` where the token is used or has ended, `Conflict` where a
    /// runner that has not been removed has the name.
    pub async fn register_runner(
        &self,
        token_id: &str,
        runner: &NewRunner,
        now: Ms,
    ) -> Result<RunnerRow> {
        let _ = (runner, now);
        Err(StoreError::not_found(format!("runner token {token_id}")))
    }

    /// A runner, a removed one too.
    pub async fn runner_by_id(&self, id: &str) -> Result<Option<RunnerRow>> {
        Err(StoreError::not_found(format!("runner {id}")))
    }

    /// A runner that has not been removed, by name.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<RunnerRow>> {
        Err(StoreError::not_found(format!("runner {name}")))
    }

    /// All runners that have not been removed, by name.
    pub async fn runners(&self) -> Result<Vec<RunnerRow>> {
        Err(StoreError::not_found("list"))
    }

    /// A runner has connected to this server.
    pub async fn runner_hello(
        &self,
        id: &str,
        facts: &HelloFacts,
        server_id: &str,
        now: Ms,
    ) -> Result<()> {
        let _ = (facts, server_id, now);
        Err(StoreError::not_found(format!("runner {id}")))
    }

    /// These runners were heard of, with their free disks.
    pub async fn runners_seen(&self, seen: &[(String, u64)], now: Ms) -> Result<()> {
        let _ = (seen, now);
        Err(StoreError::not_found("list"))
    }

    /// Whether a runner takes nothing new.
    pub async fn set_draining(&self, id: &str, draining: bool) -> Result<()> {
        let _ = draining;
        Err(StoreError::not_found(format!("runner {id}")))
    }

    /// Removes a runner: its key is worth nothing from now on, and its name is free.
    pub async fn remove_runner(&self, id: &str, now: Ms) -> Result<()> {
        let _ = now;
        Err(StoreError::not_found(format!("runner {id}")))
    }
}
