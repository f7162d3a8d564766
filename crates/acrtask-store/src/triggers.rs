//! Triggers of runs and their results. `enqueue.rs` stores triggers that lead to runs.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    run_state, runs,
};

/// A trigger and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerRow {
    /// Id of the trigger.
    pub id: String,
    /// `manual`, `timer`, `url` ...
    pub kind: String,
    /// Time of receipt.
    pub received_at: Ms,
    /// Id of its delivery, if any.
    pub delivery: Option<String>,
    /// Run that the trigger led to, and the state of that run if it still exists.
    pub run: Option<(RunId, Option<RunState>)>,
    /// The run existed before the trigger.
    pub joined: bool,
    /// Reason why the trigger led to no run.
    pub ignored: Option<String>,
    /// Reason why the trigger led to a run.
    pub detail: Option<String>,
    /// Timer of a firing.
    pub timer: Option<String>,
    /// Scheduled time of the firing.
    pub scheduled_at: Option<Ms>,
    /// Number of scheduled times that the firing covers.
    pub stands_for: Option<u64>,
}

#[derive(Debug, FromRow)]
struct RawTrigger {
    id: String,
    kind: String,
    received_at: i64,
    delivery_id: Option<String>,
    run_id: Option<String>,
    state: Option<String>,
    joined: i64,
    ignored_reason: Option<String>,
    detail: Option<String>,
    timer: Option<String>,
    scheduled_at: Option<i64>,
    stands_for: Option<i64>,
}

impl TryFrom<RawTrigger> for TriggerRow {
    type Error = StoreError;

    fn try_from(raw: RawTrigger) -> Result<Self> {
        let state = raw
            .state
            .as_deref()
            .map(run_state::parse_state)
            .transpose()?;
        Ok(Self {
            run: raw
                .run_id
                .map(|id| runs::parse_run_id(id).map(|id| (id, state)))
                .transpose()?,
            id: raw.id,
            kind: raw.kind,
            received_at: raw.received_at,
            delivery: raw.delivery_id,
            joined: raw.joined != 0,
            ignored: raw.ignored_reason,
            detail: raw.detail,
            timer: raw.timer,
            scheduled_at: raw.scheduled_at,
            stands_for: raw.stands_for.map(run_state::to_u64).transpose()?,
        })
    }
}

impl Store {
    /// Returns a page of the triggers of the task `task`, newest first, and the cursor of the next
    /// page.
    pub async fn triggers_of_task(
        &self,
        task: &str,
        before: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<TriggerRow>, Option<String>)> {
        let (at, id) = match before {
            None => (Ms::MAX, ""),
            Some(cursor) => cursor
                .split_once(':')
                .and_then(|(at, id)| Some((at.parse().ok()?, id)))
                .ok_or_else(|| StoreError::Invalid {
                    what: format!(
                        "`{cursor}` is not a cursor; pass the `next` value of the previous page"
                    ),
                })?,
        };
        let rows: Vec<RawTrigger> = self
            .db
            .fetch_all(
                "SELECT t.id, t.kind, t.received_at, t.delivery_id, t.run_id, r.state, t.joined, t.ignored_reason, \
                 t.detail, k.timer, k.scheduled_at, k.stands_for FROM triggers t LEFT JOIN runs r ON r.id = t.run_id \
                 LEFT JOIN timer_firings k ON k.trigger_id = t.id WHERE t.task = $1 AND (t.received_at, t.id) < ($2, $3) \
                 ORDER BY t.received_at DESC, t.id DESC LIMIT $4",
                args![task, at, id, i64::from(limit) + 1],
            )
            .await?;
        let rows: Result<Vec<TriggerRow>> = rows.into_iter().map(TriggerRow::try_from).collect();
        let mut rows = rows?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more);
        let next = next.map(|row| format!("{}:{}", row.received_at, row.id));
        Ok((rows, next))
    }

    /// Returns the trigger that started a run. `None` if it is unknown.
    pub async fn trigger_of_run(&self, run: &RunId) -> Result<Option<TriggerRow>> {
        let row: Option<RawTrigger> = self
            .db
            .fetch_optional(
                "SELECT t.id, t.kind, t.received_at, t.delivery_id, t.run_id, r.state, t.joined, t.ignored_reason, \
                 t.detail, k.timer, k.scheduled_at, k.stands_for FROM triggers t LEFT JOIN runs r ON r.id = t.run_id \
                 LEFT JOIN timer_firings k ON k.trigger_id = t.id WHERE t.run_id = $1 AND t.joined = 0 \
                 ORDER BY t.received_at, t.id LIMIT 1",
                args![run],
            )
            .await?;
        row.map(TriggerRow::try_from).transpose()
    }

    /// Stores an ignored trigger with its reason.
    pub async fn store_ignored_trigger(
        &self,
        id: &str,
        kind: &str,
        task: &str,
        reason: &str,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        insert_ignored_trigger(&mut tx, id, kind, task, reason, now).await?;
        tx.commit().await
    }
}

/// Stores an ignored trigger with its reason, within a transaction.
pub(crate) async fn insert_ignored_trigger(
    tx: &mut Tx,
    id: &str,
    kind: &str,
    task: &str,
    reason: &str,
    now: Ms,
) -> Result<()> {
    tx.exec(
        "INSERT INTO triggers (id, kind, task, received_at, ignored_reason, ignored_at) \
         VALUES ($1, $2, $3, $4, $5, $4)",
        args![id, kind, task, now, reason],
    )
    .await
    .map(drop)
}

/// Removes at most `limit` triggers without a delivery that were ignored before `before`, and their
/// firings. Returns their number.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<u64> {
    let ids: Vec<(String,)> = tx
        .fetch_all(
            "SELECT id FROM triggers WHERE ignored_at IS NOT NULL AND ignored_at < $1 AND delivery_id IS NULL \
             ORDER BY ignored_at LIMIT $2",
            args![before, limit],
        )
        .await?;
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    remove_firings(tx, ids.clone()).await?;
    tx.exec(
        one_of!("DELETE FROM triggers WHERE id", "$1", ""),
        args![ids],
    )
    .await
}

/// Removes the firings of these triggers.
pub(crate) async fn remove_firings(tx: &mut Tx, triggers: Vec<String>) -> Result<()> {
    tx.exec(
        one_of!("DELETE FROM timer_firings WHERE trigger_id", "$1", ""),
        args![triggers],
    )
    .await
    .map(drop)
}
