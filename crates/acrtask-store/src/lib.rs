//! What the control plane knows, in SQLite or PostgreSQL; the only user of sqlx.
//!
//! One interface, [`Store`], and one file an entity. Invariants:
//! - The database is the only queue; nothing is kept in memory between two calls.
//! - Every change of a run is guarded by its state and attempt, so that of two writers one wins and the other is told.
//! - Times are given by the caller and stored as milliseconds since 1970 in UTC; no query asks the database's clock.
//! - A secret comes in and goes out encrypted; nothing here has the key.
//! - The same tests pass on both databases.

mod bases;
mod cascades;
mod contexts;
mod db;
mod deliver;
mod deliveries;
mod enqueue;
mod error;
mod groups;
mod hints;
mod identity;
mod images;
mod lives;
mod logs;
mod outbox;
mod promotions;
mod pushes;
mod queue;
mod quotas;
mod refusals;
mod reports;
mod retention;
mod runners;
mod runs;
mod secrets;
mod stale;
mod tags;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod timers;
mod tokens;
mod transitions;
mod trigger_urls;
mod triggers;
mod waiting;
mod webhooks;

pub use bases::{Seen, WatchFilter, WatchRow};
pub use cascades::{
    BaseTag, CascadeChange, CascadeFilter, CascadeImageRow, CascadeNodeRow, CascadeRow,
    CascadeRunKey, CascadeRunRow, HeldImage, NewCascadeRun, StoredCascades,
};
pub use contexts::{ContextRow, Part};
pub use db::{check_database_exists, migrate_store, snapshot_sqlite};
pub use deliver::{Ends, LeadsTo, Looked, NewDelivery};
pub use deliveries::{Delivered, DeliveryFilter, DeliveryRow, OutcomeRow, StoredBody};
pub use enqueue::{Enqueued, Unaccounted};
pub use error::{Result, StoreError};
pub use groups::RunGroup;
pub use hints::{Hint, Hints};
pub use images::{ImageBaseRow, ImageBuildRow, ImageFilter, ImageRow};
pub use logs::{ChunkRow, LogState};
pub use outbox::{Due, Told, Untold};
pub use promotions::PromotionRow;
pub use pushes::{PusherRow, ReportedPush};
pub use queue::{Candidate, Claim, Claimable, Class, PRIORITY_MS, TaskPatterns};
pub use quotas::QuotaExceeded;
pub use refusals::RefusalRow;
pub use reports::{AttemptRow, Reaped, Report, Reported, Verdict};
pub use retention::Expired;
pub use runners::{HelloFacts, NewRunner, RunnerRow, RunnerTokenRow};
pub use runs::{NewRun, Origin, RunFilter, RunRow};
pub use secrets::{CredentialRow, SecretRow};
pub use stale::Moved;
pub use tags::{Listed, ProposalKey, ProposalRow, TagListRow, Try};
pub use tasks::TaskFilter;
pub use timers::{NewTick, NewTicks, TickLeadsTo, TickRow, TimerPlace, TimerRow};
pub use tokens::TokenRow;
pub use trigger_urls::TriggerUrlRow;
pub use triggers::TriggerRow;
pub use waiting::{Blocker, CancelRow, Depth, Position};
pub use webhooks::WebhookRow;

/// Milliseconds since 1970 in UTC.
pub type Ms = i64;

/// The pool of runs and runners that name none.
pub const DEFAULT_POOL: &str = "default";

/// The database of a control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: db::Db,
}

impl Store {
    /// Opens `sqlite:PATH`, `sqlite::memory:` or `postgres://...` and brings its tables up to date. Several servers may do
    /// so at once. A database that a newer program made is refused.
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self {
            db: db::Db::open(url).await?,
        })
    }

    /// Whether other servers may share it.
    pub fn is_postgres(&self) -> bool {
        matches!(self.db, db::Db::Postgres { .. })
    }

    /// Closes the database. A SQLite file alone then holds all data. No other call succeeds afterwards.
    pub async fn close(&self) -> Result<()> {
        self.db.close().await
    }

    /// Asks the database for nothing, to see that it answers.
    pub async fn ping(&self) -> Result<()> {
        self.db
            .rows::<(i64,)>("SELECT CAST(1 AS BIGINT)", Vec::new())
            .await
            .map(drop)
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid {
        what: format!("it cannot be written as JSON: {error}"),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(StoreError::corrupt)
}

/// As the API has it; a time that no calendar holds becomes the nearest one that it does.
pub fn timestamp(ms: Ms) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}
