//! Trigger URLs, which start runs of one task, as hashes.

use acrtask_api::task::Task;
use sqlx::FromRow;

use crate::{Ms, Result, Store, StoreError, db::args, tasks::RawTask};

/// A URL that can only start runs of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerUrlRow {
    /// Id of the task.
    pub task_id: String,
    /// Id of the URL, which is part of it.
    pub id: String,
    /// Hash that verifies the rest of the URL.
    pub hash: Vec<u8>,
    /// Time of its creation.
    pub created_at: Ms,
    /// Principal that created it.
    pub created_by: Option<String>,
    /// Time of its last use.
    pub last_used_at: Option<Ms>,
    /// Number of calls that were rejected because of the rate limit.
    pub turned_away: u64,
    /// Time of the last rejected call.
    pub turned_away_at: Option<Ms>,
}

#[derive(Debug, FromRow)]
struct RawUrl {
    task_id: String,
    url_id: String,
    hash: Vec<u8>,
    url_created_at: i64,
    created_by: Option<String>,
    last_used_at: Option<i64>,
    turned_away: i64,
    turned_away_at: Option<i64>,
}

impl From<RawUrl> for TriggerUrlRow {
    fn from(raw: RawUrl) -> Self {
        Self {
            task_id: raw.task_id,
            id: raw.url_id,
            hash: raw.hash,
            created_at: raw.url_created_at,
            created_by: raw.created_by,
            last_used_at: raw.last_used_at,
            turned_away: raw.turned_away.unsigned_abs(),
            turned_away_at: raw.turned_away_at,
        }
    }
}

#[derive(Debug, FromRow)]
struct WithTask {
    #[sqlx(flatten)]
    url: RawUrl,
    #[sqlx(flatten)]
    task: RawTask,
}

/// Returns the columns of [`RawUrl`].
macro_rules! url_columns {
    () => {
        "u.task_id, u.id AS url_id, u.hash, u.created_at AS url_created_at, u.created_by, u.last_used_at, u.turned_away, \
         u.turned_away_at"
    };
}

impl Store {
    /// Sets the URL of a task. The previous URL becomes invalid.
    pub async fn put_trigger_url(&self, row: &TriggerUrlRow) -> Result<()> {
        self.db
            .exec(
                "INSERT INTO trigger_urls (task_id, id, hash, created_at, created_by, last_used_at, turned_away, turned_away_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (task_id) DO UPDATE SET id = excluded.id, \
                 hash = excluded.hash, created_at = excluded.created_at, created_by = excluded.created_by, \
                 last_used_at = excluded.last_used_at, turned_away = excluded.turned_away, \
                 turned_away_at = excluded.turned_away_at",
                args![
                    row.task_id.as_str(),
                    row.id.as_str(),
                    row.hash.as_slice(),
                    row.created_at,
                    row.created_by.as_deref(),
                    row.last_used_at,
                    row.turned_away,
                    row.turned_away_at,
                ],
            )
            .await
            .map(drop)
    }

    /// Returns the URL of a task.
    pub async fn trigger_url(&self, task_id: &str) -> Result<Option<TriggerUrlRow>> {
        let raw: Option<RawUrl> = self
            .db
            .fetch_optional(
                concat!(
                    "SELECT ",
                    url_columns!(),
                    " FROM trigger_urls u WHERE u.task_id = $1"
                ),
                args![task_id],
            )
            .await?;
        Ok(raw.map(TriggerUrlRow::from))
    }

    /// Returns the URL with this id, and its task.
    pub async fn trigger_url_by_id(&self, id: &str) -> Result<Option<(TriggerUrlRow, Task)>> {
        let raw: Option<WithTask> = self
            .db
            .fetch_optional(
                concat!(
                    "SELECT ",
                    url_columns!(),
                    ", t.id, t.definition, t.generation, t.source, t.base_tags, t.created_at, t.updated_at \
                     FROM trigger_urls u JOIN tasks t ON t.id = u.task_id WHERE u.id = $1"
                ),
                args![id],
            )
            .await?;
        raw.map(|raw| Ok((raw.url.into(), raw.task.try_into()?)))
            .transpose()
    }

    /// Stores the time of a URL's last use.
    pub async fn touch_trigger_url(&self, id: &str, now: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE trigger_urls SET last_used_at = $2 WHERE id = $1 AND COALESCE(last_used_at, 0) < $2",
                args![id, now],
            )
            .await
            .map(drop)
    }

    /// Adds `calls` calls of a URL that the rate limit rejected.
    pub async fn turn_away_trigger_url(&self, id: &str, calls: u64, now: Ms) -> Result<()> {
        self.db
            .exec(
                "UPDATE trigger_urls SET turned_away = turned_away + $2, turned_away_at = $3 WHERE id = $1",
                args![id, calls, now],
            )
            .await
            .map(drop)
    }

    /// Removes the URL of a task.
    pub async fn delete_trigger_url(&self, task_id: &str) -> Result<()> {
        let sql = "DELETE FROM trigger_urls WHERE task_id = $1";
        match self.db.exec(sql, args![task_id]).await? {
            0 => Err(StoreError::not_found("trigger URL of this task")),
            _ => Ok(()),
        }
    }
}
