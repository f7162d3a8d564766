//! Hints between servers. They save time, and all of them may be lost. PostgreSQL transports them
//! with NOTIFY. With SQLite there is only one server, so hints are neither sent nor received.

use std::{collections::VecDeque, time::Duration};

use acrtask_model::RunId;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::{
    Result, Store,
    db::{Db, with_timeout},
    to_json,
};

/// News that another server may want to read before its next poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Runs may be ready.
    Enqueued,
    /// The cancellation of this run was requested.
    Cancel(RunId),
    /// The log of this run has grown, or the run has finished.
    Log(RunId),
    /// Stored tasks have changed.
    Tasks,
}

/// Channel of the hints on PostgreSQL.
const CHANNEL: &str = "acrtask";
/// Largest payload of a notification. The limit of PostgreSQL is 8,000 bytes.
const PAYLOAD: usize = 7_900;

/// Receiver of the hints of all servers, including this one.
#[derive(Debug)]
pub struct Hints {
    listener: Option<PgListener>,
    pending: VecDeque<Hint>,
}

impl Hints {
    /// Returns the next hint. Never returns with SQLite, or while PostgreSQL is unreachable.
    /// Returns a hint after a reconnection, because others may have been lost.
    pub async fn next(&mut self) -> Hint {
        let Some(listener) = &mut self.listener else {
            return std::future::pending().await;
        };
        loop {
            if let Some(hint) = self.pending.pop_front() {
                return hint;
            }
            match listener.try_recv().await {
                Ok(Some(notification)) => {
                    // Ignores hints of other versions that this one does not know.
                    let hints: Vec<serde_json::Value> =
                        serde_json::from_str(notification.payload()).unwrap_or_default();
                    let parsed = hints
                        .into_iter()
                        .filter_map(|hint| serde_json::from_value(hint).ok());
                    self.pending.extend(parsed);
                }
                Ok(None) => return Hint::Enqueued,
                Err(error) => {
                    tracing::warn!(%error, "receiving no hints from other servers until the database is reachable again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Store {
    /// Starts to listen for hints.
    pub async fn listen_for_hints(&self) -> Result<Hints> {
        let listener = match &self.db {
            Db::Sqlite { .. } => None,
            Db::Postgres { options, .. } => {
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .max_lifetime(None)
                    .idle_timeout(None)
                    .connect_with((**options).clone())
                    .await?;
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(CHANNEL).await?;
                Some(listener)
            }
        };
        Ok(Hints {
            listener,
            pending: VecDeque::new(),
        })
    }

    /// Sends hints to all servers.
    pub async fn send_hints(&self, hints: &[Hint]) -> Result<()> {
        let Db::Postgres {
            pool,
            statement_timeout,
            ..
        } = &self.db
        else {
            return Ok(());
        };
        let mut payloads = Vec::new();
        let mut payload = String::new();
        for hint in hints {
            let text = to_json(hint)?;
            if payload.len() + text.len() + 2 > PAYLOAD {
                payloads.push(std::mem::take(&mut payload));
            }
            payload.push(if payload.is_empty() { '[' } else { ',' });
            payload += &text;
        }
        payloads.push(payload);
        payloads.retain(|payload| !payload.is_empty());
        if payloads.is_empty() {
            return Ok(());
        }
        for payload in &mut payloads {
            payload.push(']');
        }
        let notify =
            sqlx::query("SELECT pg_notify($1, payload) FROM UNNEST($2::text[]) AS payload")
                .bind(CHANNEL)
                .bind(payloads);
        with_timeout(*statement_timeout, notify.execute(pool))
            .await
            .map(drop)
    }
}
