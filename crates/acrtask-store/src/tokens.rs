//! Tokens of the API, as hashes, and whose identity tokens are exchanged for them.

use acrtask_api::admin::{Federation, Scope};

use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, from_json, lives, to_json};

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
    /// The issuer of that identity token.
    pub issuer: Option<String>,
    /// The pools that tasks may name beside the default one, where the token is limited to tasks.
    pub pools: Vec<String>,
}

/// The columns of [`RawToken`].
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
    /// A new token.
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

    /// A token that has not been revoked. Whether it has ended is for the caller to see.
    pub async fn token_by_id(&self, id: &str) -> Result<Option<TokenRow>> {
        let raw: Option<RawToken> = self
            .db
            .row(
                concat!(select_tokens!(), "WHERE id = $1 AND revoked = 0"),
                args![id],
            )
            .await?;
        raw.map(TokenRow::try_from).transpose()
    }

    /// All tokens that have not been revoked, the oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>> {
        let rows: Vec<RawToken> = self
            .db
            .rows(
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

    /// Writes down that a token was used.
    pub async fn touch_token(&self, id: &str, now: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE tokens SET last_used_at = $2 WHERE id = $1 AND COALESCE(last_used_at, 0) < $2",
                args![id, now],
            )
            .await
            .map(drop)
    }

    /// How many tokens were ever made, the revoked ones too.
    pub async fn count_tokens(&self) -> Result<u64> {
        let count: Option<(i64,)> = self.db.row("SELECT COUNT(*) FROM tokens", args![]).await?;
        lives::size(count.map_or(0, |(count,)| count))
    }

    /// Removes tokens that ended before `before` and that many programs ask for every day: those that identity tokens were
    /// exchanged for, and those that register runners. Others stay, so that it is known that there was one.
    pub async fn forget_tokens(&self, before: Ms) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let exchanged = "DELETE FROM tokens WHERE subject IS NOT NULL AND expires_at < $1";
        let mut gone = tx.exec(exchanged, args![before]).await?;
        let registering = "DELETE FROM runner_tokens WHERE expires_at < $1";
        gone += tx.exec(registering, args![before]).await?;
        tx.commit().await?;
        Ok(gone)
    }

    /// Sets a federation.
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

    /// All federations, by name.
    pub async fn federations(&self) -> Result<Vec<Federation>> {
        let rows: Vec<(String,)> = self
            .db
            .rows("SELECT definition FROM federations ORDER BY name", args![])
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
