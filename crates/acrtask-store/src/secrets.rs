//! Secrets and credentials, encrypted by the caller. Their scope is the key of a [`TaskScope`].

use std::collections::HashSet;

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_model::{ScopeChain, TaskPattern, TaskScope};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    quotas,
};

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SecretRow {
    /// Key of a [`TaskScope`].
    pub scope: String,
    /// Name of the secret.
    pub name: String,
    /// Time of the last change.
    pub updated_at: Ms,
}

/// A credential of a registry or host.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct CredentialRow {
    /// Key of a [`TaskScope`].
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

/// Selects the columns of [`CredentialRow`].
macro_rules! select_credentials {
    () => {
        "SELECT scope, host, username, password, updated_at FROM credentials"
    };
}

/// Returns the scope of the login with which the base `b` of an image `i` of the task `t` is polled.
/// Uses the narrowest login for the registry.
macro_rules! login_scope {
    () => {
        "CASE WHEN EXISTS (SELECT 1 FROM credentials c WHERE c.scope = i.task_id AND c.host = b.registry) \
         THEN i.task_id ELSE COALESCE((SELECT c.scope FROM credentials c WHERE c.host = b.registry \
         AND c.prefix IS NOT NULL AND substr(t.name, 1, length(c.prefix)) = c.prefix \
         ORDER BY length(c.prefix) DESC LIMIT 1), '') END"
    };
}
pub(crate) use login_scope;

/// Returns an error if another secret or credential would exceed the quota of the task, or of the
/// pattern that limits the caller.
async fn check_secret_quota(tx: &mut Tx, scope: &str, limit: Option<&str>, now: Ms) -> Result<()> {
    let subject = match TaskScope::parse(scope) {
        TaskScope::All => None,
        TaskScope::Prefix(_) => limit.map(|limit| QuotaSubject::Tasks(limit.to_owned())),
        TaskScope::Task(id) => {
            let sql = "SELECT name FROM tasks WHERE id = $1";
            let task: Option<(String,)> = tx.fetch_optional(sql, args![id]).await?;
            task.map(|(name,)| QuotaSubject::Task(name))
        }
    };
    quotas::check_quota(tx, subject.as_slice(), QuotaKind::Secrets, 1, now).await
}

impl Store {
    /// Creates or replaces a secret. `limit` is the task limit of the caller, whose quota counts the
    /// secrets of prefixes.
    pub async fn put_secret(
        &self,
        scope: &str,
        name: &str,
        value: &[u8],
        limit: Option<&str>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let existing = "SELECT name FROM secrets WHERE scope = $1 AND name = $2";
        let existing: Option<(String,)> = tx.fetch_optional(existing, args![scope, name]).await?;
        if existing.is_none() {
            check_secret_quota(&mut tx, scope, limit, now).await?;
        }
        tx.exec(
            "INSERT INTO secrets (scope, name, value, updated_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (scope, name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
            args![scope, name, value, now],
        )
        .await?;
        tx.commit().await
    }

    /// Returns the scope and the encrypted value of the secret with the narrowest scope of `chain`.
    pub async fn secret(
        &self,
        chain: &ScopeChain,
        name: &str,
    ) -> Result<Option<(String, Vec<u8>)>> {
        let sql = one_of!(
            "SELECT scope, value FROM secrets WHERE name = $2 AND scope",
            "$1",
            ""
        );
        let args = args![chain.keys().to_vec(), name];
        let mut rows: Vec<(String, Vec<u8>)> = self.db.fetch_all(sql, args).await?;
        chain.sort(&mut rows, |(scope, _)| scope);
        Ok(rows.into_iter().next())
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

    /// Creates or replaces a credential. `limit` is that of [`Store::put_secret`].
    pub async fn put_credential(
        &self,
        scope: &str,
        host: &str,
        (username, password): (&str, &[u8]),
        limit: Option<&str>,
        now: Ms,
    ) -> Result<()> {
        let own = TaskScope::parse(scope);
        let prefix = own.pattern().map(TaskPattern::prefix);
        let mut tx = self.db.begin().await?;
        let existing = "SELECT host FROM credentials WHERE scope = $1 AND host = $2";
        let existing: Option<(String,)> = tx.fetch_optional(existing, args![scope, host]).await?;
        if existing.is_none() {
            check_secret_quota(&mut tx, scope, limit, now).await?;
        }
        tx.exec(
                "INSERT INTO credentials (scope, host, username, password, updated_at, prefix) VALUES ($1, $2, $3, $4, $5, $6) \
                 ON CONFLICT (scope, host) DO UPDATE SET username = excluded.username, password = excluded.password, \
                 updated_at = excluded.updated_at",
                args![scope, host, username, password, now, prefix],
            )
            .await?;
        tx.commit().await
    }

    /// Returns the credentials of a run: for each host the one with the narrowest scope of `chain`.
    /// They are sorted from the narrowest scope to the widest, then by host.
    pub async fn credentials_for(&self, chain: &ScopeChain) -> Result<Vec<CredentialRow>> {
        let sql = one_of!(
            concat!(select_credentials!(), " WHERE scope"),
            "$1",
            " ORDER BY host"
        );
        let args = args![chain.keys().to_vec()];
        let mut rows: Vec<CredentialRow> = self.db.fetch_all(sql, args).await?;
        chain.sort(&mut rows, |row| &row.scope);
        let mut hosts = HashSet::new();
        rows.retain(|row| hosts.insert(row.host.clone()));
        Ok(rows)
    }

    /// Returns the credentials of a scope, or of all scopes, by scope and host.
    pub async fn credentials(&self, scope: Option<&str>) -> Result<Vec<CredentialRow>> {
        let sql = concat!(
            select_credentials!(),
            " WHERE scope = COALESCE($1, scope) ORDER BY scope, host"
        );
        self.db.fetch_all(sql, args![scope]).await
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
