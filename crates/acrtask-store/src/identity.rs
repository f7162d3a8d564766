//! Key and blob store that all servers of a database share.

use crate::{Result, Store, StoreError, db::args};

impl Store {
    /// Stores `value` under `name` unless a value exists, and returns the stored value.
    pub async fn claim_identity(&self, name: &str, value: &str) -> Result<String> {
        self.db
            .exec(
                "INSERT INTO identity (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                args![name, value],
            )
            .await?;
        let row: Option<(String,)> = self
            .db
            .fetch_optional("SELECT value FROM identity WHERE name = $1", args![name])
            .await?;
        row.map(|(value,)| value)
            .ok_or_else(|| StoreError::not_found(format!("recorded {name}")))
    }

    /// Stores `value` under `name` and replaces an existing value.
    pub async fn set_identity(&self, name: &str, value: &str) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO identity (name, value) VALUES ($1, $2) \
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                args![name, value],
            )
            .await
            .map(drop)
    }
}
