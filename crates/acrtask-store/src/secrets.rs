//! Secrets and credentials, encrypted by the caller. Their scope is the id of a task. An empty
//! scope means all tasks.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    quotas,
};

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SecretRow {
    /// Id of a task. Empty: all tasks.
    pub scope: String,
    /// Name of the secret.
    pub name: String,
    /// Time of the last change.
    pub updated_at: Ms,
}

/// A credential of a registry or host.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct CredentialRow {
    /// Id of a task. Empty: all tasks.
    pub scope: String,
    /// Host and port.
    pub host: String,
    /// User name.
    pub username: String,
    /// Encrypted password.
    pub password: Vec<u8>,
    /// Time of the last change.
    pub updated_at: Ms,
}

/// Returns an error if another secret or credential would exceed the quota of the task.
async fn check_secret_quota(tx: &mut Tx, scope: &str, now: Ms) -> Result<()> {
    let sql = "SELECT name FROM tasks WHERE id = $1";
    let task: Option<(String,)> = tx.fetch_optional(sql, args![scope]).await?;
    match task {
        Some((task,)) => {
            let task = [QuotaSubject::Task(task)];
            quotas::check_quota(tx, &task, QuotaKind::Secrets, 1, now).await
        }
        None => Ok(()),
    }
}

impl Store {
    /// Creates or replaces a secret.
    pub async fn put_secret(&self, scope: &str, name: &str, value: &[u8], now: Ms) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let existing = "SELECT name FROM secrets WHERE scope = $1 AND name = $2";
        let existing: Option<(String,)> = tx.fetch_optional(existing, args![scope, name]).await?;
        if existing.is_none() {
            check_secret_quota(&mut tx, scope, now).await?;
        }
        tx.exec(
            "INSERT INTO secrets (scope, name, value, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (scope, name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            args![scope, name, value, now],
        )
        .await?;
        tx.commit().await
    }

    /// Returns the encrypted value of a secret.
    pub async fn secret(&self, scope: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let row: Option<(Vec<u8>,)> = self
            .db
            .fetch_optional(
                "SELECT value FROM secrets WHERE scope = $1 AND name = $2",
                args![scope, name],
            )
            .await?;
        Ok(row.map(|(value,)| value))
    }

    /// Returns the secrets of a scope, or of all scopes, by scope and name.
    pub async fn secrets(&self, scope: Option<&str>) -> Result<Vec<SecretRow>> {
        match scope {
            Some(scope) => self
                .db
                .fetch_all(
                    "SELECT scope, name, updated_at FROM secrets WHERE scope = $1 ORDER BY name",
                    args![scope],
                )
                .await,
            None => {
                self.db
                    .fetch_all(
                        "SELECT scope, name, updated_at FROM secrets ORDER BY scope, name",
                        args![],
                    )
                    .await
            }
        }
    }

    /// Removes a secret.
    pub async fn delete_secret(&self, scope: &str, name: &str) -> Result<()> {
        let sql = "DELETE FROM secrets WHERE scope = $1 AND name = $2";
        match self.db.exec(sql, args![scope, name]).await? {
            0 => Err(StoreError::not_found(format!("secret {name}"))),
            _ => Ok(()),
        }
    }

    /// Creates or replaces a credential.
    pub async fn put_credential(
        &self,
        scope: &str,
        host: &str,
        username: &str,
        password: &[u8],
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let existing = "SELECT host FROM credentials WHERE scope = $1 AND host = $2";
        let existing: Option<(String,)> = tx.fetch_optional(existing, args![scope, host]).await?;
        if existing.is_none() {
            check_secret_quota(&mut tx, scope, now).await?;
        }
        tx.exec(
                "INSERT INTO credentials (scope, host, username, password, updated_at) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (scope, host) DO UPDATE SET username = excluded.username, password = excluded.password, \
                 updated_at = excluded.updated_at",
                args![scope, host, username, password, now],
            )
            .await?;
        tx.commit().await
    }

    /// Returns the credentials of these scopes by scope and host.
    pub async fn credentials_for(&self, scopes: &[&str]) -> Result<Vec<CredentialRow>> {
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let sql = one_of!(
            "SELECT scope, host, username, password, updated_at FROM credentials WHERE scope",
            "$1",
            " ORDER BY scope, host"
        );
        self.db.fetch_all(sql, args![scopes]).await
    }

    /// Returns all credentials by scope and host.
    pub async fn credentials(&self) -> Result<Vec<CredentialRow>> {
        self.db
            .fetch_all(
                "SELECT scope, host, username, password, updated_at FROM credentials ORDER BY scope, host",
                args![],
            )
            .await
    }

    /// Removes a credential.
    pub async fn delete_credential(&self, scope: &str, host: &str) -> Result<()> {
        let sql = "DELETE FROM credentials WHERE scope = $1 AND host = $2";
        match self.db.exec(sql, args![scope, host]).await? {
            0 => Err(StoreError::not_found(format!("credential for {host}"))),
            _ => Ok(()),
        }
    }
}
