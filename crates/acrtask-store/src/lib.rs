//! State of the control plane in SQLite or PostgreSQL. No other crate uses sqlx.
//!
//! The crate has one interface, [`Store`], and one file per entity. Invariants:
//! - The database is the only queue. Nothing is kept in memory between two calls.
//! - The state and attempt of a run guard every change of it. Of two concurrent writers one wins,
//!   and the other gets a conflict.
//! - Callers pass times in, and the store saves them as milliseconds since 1970 in UTC. No query
//!   reads the clock of the database.
//! - Secrets arrive and leave encrypted. This crate does not have the key.
//! - The same tests pass on both databases.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod arm;
mod bases;
mod cascades;
mod context_blocks;
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
mod logs;
mod outbox;
mod promotions;
mod pushes;
mod queue;
mod quotas;
mod refusals;
mod registry_record;
mod reports;
mod retention;
mod run_state;
mod runners;
mod runs;
mod secrets;
mod sessions;
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

pub use arm::{ArmDocument, ArmKind};
pub use bases::{PollResult, WatchFilter, WatchRow};
pub use cascades::{
    BaseTag, CascadeChange, CascadeFilter, CascadeImageRow, CascadeNodeRow, CascadeRow,
    CascadeRunKey, CascadeRunRow, NewCascadeRun, StagedImage, StoredCascades,
};
pub use context_blocks::BlockRow;
pub use contexts::{ContextRow, Part};
pub use db::{check_database_exists, migrate_store, snapshot_sqlite};
pub use deliver::{CancelScope, NewDelivery, TriggerAction, TriggerDecision};
pub use deliveries::{Delivered, DeliveryFilter, DeliveryRow, OutcomeRow, StoredBody};
pub use enqueue::{Enqueued, UnaccountedTrigger};
pub use error::{Result, StoreError};
pub use groups::RunGroup;
pub use hints::{Hint, Hints};
pub use images::{ImageBaseRow, ImageBuildRow, ImageFilter, ImageRow};
pub use logs::{ChunkRow, LogState};
pub use outbox::{DeliveryResult, FailedNotification, OutboxEntry};
pub use promotions::PromotionRow;
pub use pushes::{PusherRow, ReportedPush};
pub use queue::{Candidate, Claim, Claimable, PRIORITY_MS, RunnerRequirement, TaskPatterns};
pub use quotas::QuotaExceeded;
pub use refusals::RefusalRow;
pub use reports::{AttemptReport, AttemptRow, ExpiredLease, Report, Verdict};
pub use retention::{Expired, INDEXED_LOG_BYTES};
pub use runners::{NewRunner, RunnerHello, RunnerRow, RunnerTokenRow};
pub use runs::{NewRun, Origin, RunFilter, RunRow};
pub use secrets::{CredentialRow, SecretRow};
pub use sessions::SessionRow;
pub use stale::StaleBaseRow;
pub use tags::{ProposalAction, ProposalKey, ProposalRow, TagListResult, TagListRow};
pub use tasks::TaskFilter;
pub use timers::{FiringAction, FiringRow, NewFiring, NewFirings, TimerCursor, TimerRow};
pub use tokens::TokenRow;
pub use trigger_urls::TriggerUrlRow;
pub use triggers::TriggerRow;
pub use waiting::{Blocker, CancelRequestRow, Position, QueueDepth, RunCounts};
pub use webhooks::WebhookRow;

/// Milliseconds since 1970 in UTC.
pub type Ms = i64;

/// Pool of runs and runners that do not name one.
pub const DEFAULT_POOL: &str = "default";

/// Database of a control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: db::Db,
}

impl Store {
    /// Opens `sqlite:PATH`, `sqlite::memory:` or `postgres://...` and brings its tables up to date.
    /// Several servers may open one database at the same time. Rejects a database of a newer
    /// program with [`StoreError::Newer`].
    pub async fn open(url: &str) -> Result<Self> {
        Ok(Self {
            db: db::Db::open(url).await?,
        })
    }

    /// Returns `true` if other servers may share the database.
    pub fn is_postgres(&self) -> bool {
        matches!(self.db, db::Db::Postgres { .. })
    }

    /// Closes the database. The SQLite file alone then contains all data. Later calls fail.
    pub async fn close(&self) -> Result<()> {
        self.db.close().await
    }

    /// Checks that the database responds.
    pub async fn ping(&self) -> Result<()> {
        self.db
            .fetch_all::<(i64,)>("SELECT CAST(1 AS BIGINT)", Vec::new())
            .await
            .map(drop)
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid {
        what: format!("the value cannot be serialized as JSON: {error}"),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(StoreError::corrupt)
}

/// Converts to a timestamp of the API. Clamps a time outside the calendar to its first or last one.
pub fn timestamp(ms: Ms) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}
