//! Hints between servers: they save time and may all be lost. PostgreSQL carries them by NOTIFY; with SQLite there is no
//! other server, so none is sent and none comes.

use std::{collections::VecDeque, time::Duration};

use acrtask_model::RunId;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::{
    Result, Store,
    db::{Db, answered},
    to_json,
};

/// Something that another server may want to look at before its next poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Runs may be ready.
    Enqueued,
    /// Somebody wants this run to end.
    Cancel(RunId),
    /// The log of this run grew, or the run is over.
    Log(RunId),
    /// Stored tasks changed.
    Tasks,
}

/// Where hints go on PostgreSQL.
const CHANNEL: &str = "acrtask";
/// What one notification may hold is 8,000 bytes.
const PAYLOAD: usize = 7_900;

/// The hints of all servers, the own ones too.
#[derive(Debug)]
pub struct Hints {
    listener: Option<PgListener>,
    came: VecDeque<Hint>,
}

impl Hints {
    /// The next hint. With SQLite it never comes. While PostgreSQL cannot be reached none comes either; when it can be
    /// again, one does, because others may have been lost.
    pub async fn next(&mut self) -> Hint {
        let Some(listener) = &mut self.listener else {
            return std::future::pending().await;
        };
        loop {
            if let Some(hint) = self.came.pop_front() {
                return hint;
            }
            match listener.try_recv().await {
                Ok(Some(notification)) => {
                    // What another version sends and this one does not know is passed over.
                    let hints: Vec<serde_json::Value> =
                        serde_json::from_str(notification.payload()).unwrap_or_default();
                    let known = hints
                        .into_iter()
                        .filter_map(|hint| serde_json::from_value(hint).ok());
                    self.came.extend(known);
                }
                Ok(None) => return Hint::Enqueued,
                Err(error) => {
                    tracing::warn!(%error, "no hints from other servers until the database answers again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Store {
    /// Listens for hints from now on.
    pub async fn hints(&self) -> Result<Hints> {
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
            came: VecDeque::new(),
        })
    }

    /// Sends hints to all servers.
    pub async fn hint(&self, hints: &[Hint]) -> Result<()> {
        let Db::Postgres { pool, answer, .. } = &self.db else {
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
        answered(*answer, notify.execute(pool)).await.map(drop)
    }
}
