//! Tokens of the API, as hashes, and federations, whose identity tokens are exchanged for them.

use acrtask_api::admin::{Federation, Scope};

use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, from_json, run_state, to_json};

/// A stored token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Id of the token.
    pub id: String,
    /// Name for the user.
    pub name: String,
    /// Hash that verifies the token.
    pub hash: Vec<u8>,
    /// Allowed scopes.
    pub scopes: Vec<Scope>,
    /// Tasks that the token may access: a name, or a prefix followed by `*`. `None`: all tasks.
    pub tasks: Option<String>,
    /// Time of its creation.
    pub created_at: Ms,
    /// Time of its expiry. `None`: it does not expire.
    pub expires_at: Option<Ms>,
    /// Time of its last use.
    pub last_used_at: Option<Ms>,
    /// Subject of the identity token that it was exchanged for.
    pub subject: Option<String>,
    /// Issuer of that identity token.
    pub issuer: Option<String>,
    /// Pools that tasks may name in addition to the default one, if the token is limited to tasks.
    pub pools: Vec<String>,
}

/// Selects the columns of [`RawToken`].
macro_rules! select_tokens {
    () => {
        "SELECT id, name, hash, scopes, tasks, created_at, expires_at, last_used_at, subject, issuer, pools FROM tokens "
    };
}

#[derive(Debug, FromRow)]
struct RawToken {
    id: String,
    name: String,
    hash: Vec<u8>,
    scopes: String,
    tasks: Option<String>,
    created_at: i64,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    subject: Option<String>,
    issuer: Option<String>,
    pools: String,
}

impl TryFrom<RawToken> for TokenRow {
    type Error = StoreError;

    fn try_from(raw: RawToken) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            name: raw.name,
            hash: raw.hash,
            scopes: from_json(&raw.scopes)?,
            tasks: raw.tasks,
            created_at: raw.created_at,
            expires_at: raw.expires_at,
            last_used_at: raw.last_used_at,
            subject: raw.subject,
            issuer: raw.issuer,
            pools: from_json(&raw.pools)?,
        })
    }
}

impl Store {
    /// Creates a token.
    pub async fn create_token(&self, token: &TokenRow) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO tokens (id, name, hash, scopes, tasks, created_at, expires_at, last_used_at, subject, issuer, pools) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                args![
                    token.id.as_str(),
                    token.name.as_str(),
                    token.hash.as_slice(),
                    to_json(&token.scopes)?,
                    token.tasks.as_deref(),
                    token.created_at,
                    token.expires_at,
                    token.last_used_at,
                    token.subject.as_deref(),
                    token.issuer.as_deref(),
                    to_json(&token.pools)?,
                ],
            )
            .await
            .map(drop)
    }

    /// Returns a token that is not revoked. The caller checks its expiry.
    pub async fn token_by_id(&self, id: &str) -> Result<Option<TokenRow>> {
        let raw: Option<RawToken> = self
            .db
            .fetch_optional(
                concat!(select_tokens!(), "WHERE id = $1 AND revoked = 0"),
                args![id],
            )
            .await?;
        raw.map(TokenRow::try_from).transpose()
    }

    /// Returns all tokens that are not revoked, oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        let rows: Vec<RawToken> = self
            .db
            .fetch_all(
                concat!(
                    select_tokens!(),
                    "WHERE revoked = 0 ORDER BY created_at, id"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(TokenRow::try_from).collect()
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, id: &str) -> Result<()> {
        let sql = "UPDATE tokens SET revoked = 1 WHERE id = $1 AND revoked = 0";
        match self.db.exec(sql, args![id]).await? {
            0 => Err(StoreError::not_found(format!("token {id}"))),
            _ => Ok(()),
        }
    }

    /// Stores the time of a token's last use.
    pub async fn touch_token(&self, id: &str, now: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE tokens SET last_used_at = $2 WHERE id = $1 AND COALESCE(last_used_at, 0) < $2",
                args![id, now],
            )
            .await
            .map(drop)
    }

    /// Counts all tokens ever created, including revoked ones.
    pub async fn count_tokens(&self) -> Result<u64> {
        let count: Option<(i64,)> = self
            .db
            .fetch_optional("SELECT COUNT(*) FROM tokens", args![])
            .await?;
        run_state::to_u64(count.map_or(0, |(count,)| count))
    }

    /// Removes tokens that expired before `before` and that programs request in large numbers:
    /// exchanged tokens and registration tokens. Other tokens stay, as a record of their existence.
    pub async fn remove_expired_tokens(&self, before: Ms) -> Result<u64> {
        let mut tx = self.db.begin().await?;
        let exchanged = "DELETE FROM tokens WHERE subject IS NOT NULL AND expires_at < $1";
        let mut gone = tx.exec(exchanged, args![before]).await?;
        let registering = "DELETE FROM runner_tokens WHERE expires_at < $1";
        gone += tx.exec(registering, args![before]).await?;
        tx.commit().await?;
        Ok(gone)
    }

    /// Creates or replaces a federation.
    pub async fn put_federation(&self, federation: &Federation, now: Ms) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO federations (name, definition, updated_at) VALUES ($1, $2, $3) \
                 ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, updated_at = excluded.updated_at",
                args![federation.name.as_str(), to_json(federation)?, now],
            )
            .await
            .map(drop)
    }

    /// Returns all federations by name.
    pub async fn federations(&self) -> Result<Vec<Federation>> {
        let rows: Vec<(String,)> = self
            .db
            .fetch_all("SELECT definition FROM federations ORDER BY name", args![])
            .await?;
        rows.iter()
            .map(|(definition,)| from_json(definition))
            .collect()
    }

    /// Removes a federation.
    pub async fn delete_federation(&self, name: &str) -> Result<()> {
        let sql = "DELETE FROM federations WHERE name = $1";
        match self.db.exec(sql, args![name]).await? {
            0 => Err(StoreError::not_found(format!("federation {name}"))),
            _ => Ok(()),
        }
    }
}
