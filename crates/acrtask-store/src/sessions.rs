//! Sessions of browsers. A session is created with a token and has exactly its rights.

use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{args, locked},
};

/// Maximum number of sessions per token.
const MAX_SESSIONS: u32 = 20;

/// A stored session.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct SessionRow {
    /// SHA-256 of the secret in the cookie.
    pub hash: Vec<u8>,
    /// Token that the session was created with.
    pub token_id: String,
    /// Time of the sign-in.
    pub created_at: Ms,
    /// Time of the last request, rounded to one minute.
    pub last_used_at: Ms,
    /// End of the session at the latest.
    pub expires_at: Ms,
}

impl Store {
    /// Creates a session. Ends the oldest sessions of its token, so that at most [`MAX_SESSIONS`]
    /// remain.
    pub async fn create_session(&self, session: &SessionRow) -> Result<()> {
        let token = session.token_id.as_str();
        let mut tx = self.db.begin().await?;
        let _: Option<(String,)> = tx
            .fetch_optional(locked!("SELECT id FROM tokens WHERE id = $1"), args![token])
            .await?;
        tx.exec(
            "DELETE FROM sessions WHERE token_id = $1 AND hash NOT IN ( \
                 SELECT hash FROM sessions WHERE token_id = $1 \
                 ORDER BY created_at DESC, hash LIMIT $2)",
            args![token, MAX_SESSIONS - 1],
        )
        .await?;
        tx.exec(
            "INSERT INTO sessions (hash, token_id, created_at, last_used_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
            args![
                session.hash.as_slice(),
                token,
                session.created_at,
                session.last_used_at,
                session.expires_at,
            ],
        )
        .await?;
        tx.commit().await
    }

    /// Returns the session with this hash. The caller checks its times and its token.
    pub async fn session(&self, hash: &[u8]) -> Result<Option<SessionRow>> {
        self.db
            .fetch_optional(
                "SELECT hash, token_id, created_at, last_used_at, expires_at FROM sessions WHERE hash = $1",
                args![hash],
            )
            .await
    }

    /// Stores the time of the last request of a session.
    pub async fn touch_session(&self, hash: &[u8], now: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE sessions SET last_used_at = $2 WHERE hash = $1 AND last_used_at < $2",
                args![hash, now],
            )
            .await
            .map(drop)
    }

    /// Ends a session. Does nothing if it does not exist.
    pub async fn delete_session(&self, hash: &[u8]) -> Result<()> {
        self.db
            .exec("DELETE FROM sessions WHERE hash = $1", args![hash])
            .await
            .map(drop)
    }

    /// Removes sessions that expired before `now`, had their last request before `idle`, or whose
    /// token is revoked.
    pub async fn remove_ended_sessions(&self, now: Ms, idle: Ms) -> Result<u64> {
        self.db
            .exec(
                "DELETE FROM sessions WHERE expires_at <= $1 OR last_used_at < $2 \
                 OR token_id IN (SELECT id FROM tokens WHERE revoked = 1)",
                args![now, idle],
            )
            .await
    }
}
