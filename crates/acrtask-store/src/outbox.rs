//! Outbox: commit statuses and result notifications to be sent.
//!
//! Invariants:
//! - The pending message is derived from the state of the run, so a state change writes nothing
//!   here.
//! - A result is stored after the message was sent. A message may be sent twice but is never lost.
//! - A server leases an entry before it sends the message, so that only one of several servers
//!   sends it.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{Sql, args, one_of},
    run_state, runs,
};

/// A leased message that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Id of the run.
    pub run: RunId,
    /// Index of the notification among those of the run. 0 for a commit status.
    pub place: u32,
    /// JSON of the target.
    pub target: String,
    /// Current state of the run.
    pub state: RunState,
    /// The run waits for an approval.
    pub pending: bool,
    /// Failed attempts since the last success.
    pub attempts: u32,
    next_at: Ms,
}

impl OutboxEntry {
    /// Returns the stored name of the status.
    fn status_name(&self) -> &'static str {
        match self.state {
            RunState::Queued if self.pending => "pending",
            RunState::Leased => "running",
            state => state.as_str(),
        }
    }
}

/// Result of sending a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryResult {
    /// The target has received the message.
    Delivered,
    /// The message will be sent again.
    Retry {
        /// Error of the last attempt.
        error: String,
        /// Time of the next attempt.
        at: Ms,
    },
    /// The message will not be sent again.
    GiveUp {
        /// Error of the last attempt.
        error: String,
    },
}

/// A notification or commit status that could not be sent, for diagnostics.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct FailedNotification {
    /// Id of the run.
    pub run_id: String,
    /// Number of attempts so far.
    pub attempts: i64,
    /// Error of the last attempt.
    pub last_error: String,
    /// 1 if it will not be sent again, otherwise 0.
    pub done: i64,
}

#[derive(Debug, FromRow)]
struct RawEntry {
    run_id: String,
    place: i64,
    target: String,
    state: String,
    pending: i64,
    attempts: i64,
    next_at: i64,
}

impl RawEntry {
    fn parse(self) -> Result<OutboxEntry> {
        Ok(OutboxEntry {
            run: runs::parse_run_id(self.run_id)?,
            place: run_state::to_u32(self.place)?,
            target: self.target,
            state: run_state::parse_state(&self.state)?,
            pending: self.pending != 0,
            attempts: run_state::to_u32(self.attempts)?,
            next_at: self.next_at,
        })
    }
}

/// Returns the SQL expression that is equivalent to [`OutboxEntry::status_name`].
macro_rules! status_name {
    () => {
        "CASE WHEN r.state = 'leased' THEN 'running' WHEN r.state = 'queued' AND r.approval = 'pending' THEN 'pending' \
         ELSE r.state END"
    };
}

const LEASE_STATUS: Sql = Sql::new(
    "UPDATE commit_statuses SET next_at = $3 WHERE run_id = $1 AND next_at = $2 AND done = 0",
    "UPDATE commit_statuses SET next_at = n.until FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) \
     AS n (run_id, was, until) WHERE commit_statuses.run_id = n.run_id AND next_at = n.was AND done = 0",
);

impl Store {
    /// Leases due commit statuses until `until`.
    pub async fn lease_statuses(&self, now: Ms, until: Ms, limit: u32) -> Result<Vec<OutboxEntry>> {
        let rows: Vec<RawEntry> = self
            .db
            .fetch_all(
                concat!(
                    "SELECT s.run_id, CAST(0 AS BIGINT) AS place, s.target, r.state, \
                     CAST(CASE WHEN r.approval = 'pending' THEN 1 ELSE 0 END AS BIGINT) AS pending, s.attempts, s.next_at \
                     FROM commit_statuses s JOIN runs r ON r.id = s.run_id WHERE s.done = 0 AND s.next_at <= $1 \
                     AND (s.sent IS NULL OR s.sent <> ",
                    status_name!(),
                    ") ORDER BY s.next_at, s.run_id LIMIT $2"
                ),
                args![now, limit],
            )
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(due);
        }
        let mut tx = self.db.begin().await?;
        for raw in rows {
            let one = raw.parse()?;
            let row = vec![args![&one.run, one.next_at, until]];
            if tx.exec_each(LEASE_STATUS, row).await? == 1 {
                due.push(one);
            }
        }
        tx.commit().await?;
        Ok(due)
    }

    /// Stores the results of sending commit statuses.
    pub async fn record_status_results(
        &self,
        results: Vec<(OutboxEntry, DeliveryResult)>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        for (due, result) in results {
            match result {
                DeliveryResult::Delivered => {
                    let done = due.state.is_final();
                    tx.exec(
                        "UPDATE commit_statuses SET sent = $2, done = $3, attempts = 0, next_at = $4, last_error = NULL \
                         WHERE run_id = $1",
                        args![&due.run, due.status_name(), done, now],
                    )
                    .await?;
                }
                DeliveryResult::Retry { error, at } => {
                    tx.exec(
                        "UPDATE commit_statuses SET attempts = attempts + 1, next_at = $2, last_error = $3 WHERE run_id = $1",
                        args![&due.run, at, error],
                    )
                    .await?;
                }
                DeliveryResult::GiveUp { error } => {
                    tx.exec(
                        "UPDATE commit_statuses SET attempts = attempts + 1, done = 1, last_error = $2 WHERE run_id = $1",
                        args![&due.run, error],
                    )
                    .await?;
                }
            }
        }
        tx.commit().await
    }

    /// Returns finished runs without notifications yet: id, task and state.
    pub async fn runs_to_notify(
        &self,
        limit: u32,
    ) -> Result<Vec<(RunId, Option<String>, RunState)>> {
        let rows: Vec<(String, Option<String>, String)> = self
            .db
            .fetch_all(
                "SELECT id, task_name, state FROM runs WHERE notify = 1 AND finished_at IS NOT NULL \
                 ORDER BY finished_at LIMIT $1",
                args![limit],
            )
            .await?;
        rows.into_iter()
            .map(|(id, task, state)| {
                Ok((
                    runs::parse_run_id(id)?,
                    task,
                    run_state::parse_state(&state)?,
                ))
            })
            .collect()
    }

    /// Adds notifications about the result of a run, one per target. A second call for the run has
    /// no effect.
    pub async fn add_notifications(
        &self,
        run: &RunId,
        targets: Vec<String>,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        let changed = tx
            .exec(
                "UPDATE runs SET notify = 0 WHERE id = $1 AND notify = 1",
                args![run],
            )
            .await?;
        if changed == 1 {
            for (place, target) in (0_u32..).zip(targets) {
                tx.exec(
                    "INSERT INTO notifications (run_id, place, target, next_at) VALUES ($1, $2, $3, $4)",
                    args![run, place, target, now],
                )
                .await?;
            }
        }
        tx.commit().await
    }

    /// Leases due notifications until `until`.
    pub async fn lease_notifications(
        &self,
        now: Ms,
        until: Ms,
        limit: u32,
    ) -> Result<Vec<OutboxEntry>> {
        let rows: Vec<RawEntry> = self
            .db
            .fetch_all(
                "SELECT n.run_id, n.place, n.target, r.state, CAST(0 AS BIGINT) AS pending, n.attempts, n.next_at \
                 FROM notifications n JOIN runs r ON r.id = n.run_id WHERE n.done = 0 AND n.next_at <= $1 \
                 ORDER BY n.next_at, n.run_id, n.place LIMIT $2",
                args![now, limit],
            )
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(due);
        }
        let mut tx = self.db.begin().await?;
        for raw in rows {
            let one = raw.parse()?;
            let leased = tx
                .exec(
                    "UPDATE notifications SET next_at = $4 WHERE run_id = $1 AND place = $2 AND next_at = $3 AND done = 0",
                    args![&one.run, one.place, one.next_at, until],
                )
                .await?;
            if leased == 1 {
                due.push(one);
            }
        }
        tx.commit().await?;
        Ok(due)
    }

    /// Stores the results of sending notifications.
    pub async fn record_notification_results(
        &self,
        results: Vec<(OutboxEntry, DeliveryResult)>,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        for (due, result) in results {
            let (done, error, at) = match result {
                DeliveryResult::Delivered => (true, None, due.next_at),
                DeliveryResult::GiveUp { error } => (true, Some(error), due.next_at),
                DeliveryResult::Retry { error, at } => (false, Some(error), at),
            };
            tx.exec(
                "UPDATE notifications SET done = $3, last_error = $4, next_at = $5, attempts = attempts + 1 \
                 WHERE run_id = $1 AND place = $2",
                args![&due.run, due.place, done, error, at],
            )
            .await?;
        }
        tx.commit().await
    }

    /// Returns the failed notifications of these runs.
    pub async fn failed_notifications(&self, ids: Vec<String>) -> Result<Vec<FailedNotification>> {
        let sql = one_of!(
            "SELECT run_id, attempts, last_error, done FROM notifications WHERE last_error IS NOT NULL AND run_id",
            "$1",
            " ORDER BY run_id, place"
        );
        self.db.fetch_all(sql, args![ids]).await
    }

    /// Returns the failed commit statuses of these runs.
    pub async fn failed_statuses(&self, ids: Vec<String>) -> Result<Vec<FailedNotification>> {
        let sql = one_of!(
            "SELECT run_id, attempts, last_error, done FROM commit_statuses WHERE last_error IS NOT NULL AND run_id",
            "$1",
            " ORDER BY run_id"
        );
        self.db.fetch_all(sql, args![ids]).await
    }
}
