//! Secrets and credentials, encrypted by the caller. Their scope is a task's id, or empty for all tasks.

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    quotas,
};

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SecretRow {
    /// A task's id; empty: all tasks.
    pub scope: String,
    /// Its name.
    pub name: String,
    /// When it was last set.
    pub updated_at: Ms,
}

/// A login.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct CredentialRow {
    /// A task's id; empty: all tasks.
    pub scope: String,
    /// Host and port.
    pub host: String,
    /// The user.
    pub username: String,
    /// Encrypted.
    pub password: Vec<u8>,
    /// When it was last set.
    pub updated_at: Ms,
}

/// Refuses one more secret or login of a task whose quota is used up.
async fn need_secret(tx: &mut Tx, scope: &str, now: Ms) -> Result<()> {
    let sql = "SELECT name FROM tasks WHERE id = $1";
    let task: Option<(String,)> = tx.row(sql, args![scope]).await?;
    match task {
        Some((task,)) => {
            let task = [QuotaSubject::Task(task)];
            quotas::need(tx, &task, QuotaKind::Secrets, 1, now).await
        }
        None => Ok(()),
    }
}

impl Store {
    /// Sets a secret.
    pub async fn put_secret(&self, scope: &str, name: &str, value: &[u8], now: Ms) -> Result<()> {
        let mut tx = self.db.write().await?;
        let there = "SELECT name FROM secrets WHERE scope = $1 AND name = $2";
        let there: Option<(String,)> = tx.row(there, args![scope, name]).await?;
        if there.is_none() {
            need_secret(&mut tx, scope, now).await?;
        }
        tx.exec(
            "INSERT INTO secrets (scope, name, value, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (scope, name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            args![scope, name, value, now],
        )
        .await?;
        tx.commit().await
    }

    /// The encrypted value of a secret.
    pub async fn secret(&self, scope: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let row: Option<(Vec<u8>,)> = self
            .db
            .row(
                "SELECT value FROM secrets WHERE scope = $1 AND name = $2",
                args![scope, name],
            )
            .await?;
        Ok(row.map(|(value,)| value))
    }

    /// Secrets of a scope, or of all, by scope and name.
    pub async fn secrets(&self, scope: Option<&str>) -> Result<Vec<SecretRow>> {
        match scope {
            Some(scope) => self
                .db
                .rows(
                    "SELECT scope, name, updated_at FROM secrets WHERE scope = $1 ORDER BY name",
                    args![scope],
                )
                .await,
            None => {
                self.db
                    .rows(
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

    /// Sets a login.
    pub async fn put_credential(
        &self,
        scope: &str,
        host: &str,
        username: &str,
        password: &[u8],
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
        let there = "SELECT host FROM credentials WHERE scope = $1 AND host = $2";
        let there: Option<(String,)> = tx.row(there, args![scope, host]).await?;
        if there.is_none() {
            need_secret(&mut tx, scope, now).await?;
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

    /// The logins of these scopes, by scope and host.
    pub async fn credentials_for(&self, scopes: &[&str]) -> Result<Vec<CredentialRow>> {
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let sql = one_of!(
            "SELECT scope, host, username, password, updated_at FROM credentials WHERE scope",
            "$1",
            " ORDER BY scope, host"
        );
        self.db.rows(sql, args![scopes]).await
    }

    /// All logins, by scope and host.
    pub async fn credentials(&self) -> Result<Vec<CredentialRow>> {
        self.db
            .rows(
                "SELECT scope, host, username, password, updated_at FROM credentials ORDER BY scope, host",
                args![],
            )
            .await
    }

    /// Removes a login.
    pub async fn delete_credential(&self, scope: &str, host: &str) -> Result<()> {
        let sql = "DELETE FROM credentials WHERE scope = $1 AND host = $2";
        match self.db.exec(sql, args![scope, host]).await? {
            0 => Err(StoreError::not_found(format!("credential for {host}"))),
            _ => Ok(()),
        }
    }
}
