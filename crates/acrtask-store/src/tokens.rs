//! Tokens of the API, as hashes, and whose identity tokens are exchanged for them.

use acrtask_api::admin::{Federation, Scope};

use crate::{Ms, Result, Store, StoreError};

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it is checked by.
    pub hash: Vec<u8>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Only tasks with this name, or, where it ends in `*`, with names that begin so.
    pub tasks: Option<String>,
    /// When it was made.
    pub created_at: Ms,
    /// When it ends.
    pub expires_at: Option<Ms>,
    /// When it was last used.
    pub last_used_at: Option<Ms>,
    /// The subject of the identity token that it was exchanged for.
    pub subject: Option<String>,
}

impl Store {
    /// A new token.
    pub async fn create_token(&self, token: &TokenRow) -> Result<()> {
        Err(StoreError::not_found(format!("token {}", token.id)))
    }

    /// A token that has not been revoked. Whether it has ended is for the caller to see.
    pub async fn token_by_id(&self, id: &str) -> Result<Option<TokenRow>> {
        Err(StoreError::not_found(format!("token {id}")))
    }

    /// All tokens that have not been revoked, the oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        Err(StoreError::not_found("list"))
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, id: &str) -> Result<()> {
        Err(StoreError::not_found(format!("token {id}")))
    }

    /// Writes down that a token was used.
    pub async fn touch_token(&self, id: &str, now: Ms) -> Result<()> {
        let _ = now;
        Err(StoreError::not_found(format!("token {id}")))
    }

    /// How many tokens were ever made, the revoked ones too.
    pub async fn count_tokens(&self) -> Result<u64> {
        Err(StoreError::not_found("list"))
    }

    /// Sets a federation.
    pub async fn put_federation(&self, federation: &Federation, now: Ms) -> Result<()> {
        let _ = now;
        Err(StoreError::not_found(format!(
            "federation {}",
            federation.name
        )))
    }

    /// All federations, by name.
    pub async fn federations(&self) -> Result<Vec<Federation>> {
        Err(StoreError::not_found("list"))
    }

    /// Removes a federation.
    pub async fn delete_federation(&self, name: &str) -> Result<()> {
        Err(StoreError::not_found(format!("federation {name}")))
    }
}
