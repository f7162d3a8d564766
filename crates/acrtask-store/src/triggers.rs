//! What was to start runs of a task, and what each of it led to. How triggers that lead to runs come in is in
//! `enqueue.rs`.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store, StoreError,
    db::{Tx, args, one_of},
    lives, runs,
};

/// A trigger, and what it led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerRow {
    /// Its id.
    pub id: String,
    /// `manual`, `timer`, `url` ...
    pub kind: String,
    /// When it came.
    pub received_at: Ms,
    /// The delivery that it came with.
    pub delivery: Option<String>,
    /// The run that it led to, and where that stands.
    pub run: Option<(RunId, Option<RunState>)>,
    /// The run was there already.
    pub joined: bool,
    /// Why it led to none.
    pub suppressed: Option<String>,
    /// Why it led to one.
    pub detail: Option<String>,
    /// The timer whose tick it was.
    pub timer: Option<String>,
    /// That tick's scheduled time.
    pub scheduled_at: Option<Ms>,
    /// How many ticks it stands for.
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
    suppressed_reason: Option<String>,
    detail: Option<String>,
    timer: Option<String>,
    scheduled_at: Option<i64>,
    stands_for: Option<i64>,
}

impl TryFrom<RawTrigger> for TriggerRow {
    type Error = StoreError;

    fn try_from(raw: RawTrigger) -> Result<Self> {
        let state = raw.state.as_deref().map(lives::state).transpose()?;
        Ok(Self {
            run: raw
                .run_id
                .map(|id| runs::id(id).map(|id| (id, state)))
                .transpose()?,
            id: raw.id,
            kind: raw.kind,
            received_at: raw.received_at,
            delivery: raw.delivery_id,
            joined: raw.joined != 0,
            suppressed: raw.suppressed_reason,
            detail: raw.detail,
            timer: raw.timer,
            scheduled_at: raw.scheduled_at,
            stands_for: raw.stands_for.map(lives::size).transpose()?,
        })
    }
}

impl Store {
    /// A page of what was to start runs of the task with this name, the newest first, and the cursor of the next one.
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
                        "`{cursor}` is no cursor; give back what the page before gave as `next`"
                    ),
                })?,
        };
        let rows: Vec<RawTrigger> = self
            .db
            .rows(
                "SELECT t.id, t.kind, t.received_at, t.delivery_id, t.run_id, r.state, t.joined, t.suppressed_reason, \
                 t.detail, k.timer, k.scheduled_at, k.stands_for FROM triggers t LEFT JOIN runs r ON r.id = t.run_id \
                 LEFT JOIN ticks k ON k.trigger_id = t.id WHERE t.task = $1 AND (t.received_at, t.id) < ($2, $3) \
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

    /// Writes down a trigger that starts nothing, and why.
    pub async fn suppress_trigger(
        &self,
        id: &str,
        kind: &str,
        task: &str,
        reason: &str,
        now: Ms,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
        suppress(&mut tx, id, kind, task, reason, now).await?;
        tx.commit().await
    }
}

/// Writes down a trigger that starts nothing, and why.
pub(crate) async fn suppress(
    tx: &mut Tx,
    id: &str,
    kind: &str,
    task: &str,
    reason: &str,
    now: Ms,
) -> Result<()> {
    tx.exec(
        "INSERT INTO triggers (id, kind, task, received_at, suppressed_reason, suppressed_at) \
         VALUES ($1, $2, $3, $4, $5, $4)",
        args![id, kind, task, now, reason],
    )
    .await
    .map(drop)
}

/// Removes triggers that came with no delivery and started nothing before `before`, `limit` at most, and their ticks.
/// Says how many.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<u64> {
    let ids: Vec<(String,)> = tx
        .rows(
            "SELECT id FROM triggers WHERE suppressed_at IS NOT NULL AND suppressed_at < $1 AND delivery_id IS NULL \
             ORDER BY suppressed_at LIMIT $2",
            args![before, limit],
        )
        .await?;
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    forget_ticks(tx, ids.clone()).await?;
    tx.exec(
        one_of!("DELETE FROM triggers WHERE id", "$1", ""),
        args![ids],
    )
    .await
}

/// Removes the ticks of these triggers.
pub(crate) async fn forget_ticks(tx: &mut Tx, triggers: Vec<String>) -> Result<()> {
    tx.exec(
        one_of!("DELETE FROM ticks WHERE trigger_id", "$1", ""),
        args![triggers],
    )
    .await
    .map(drop)
}
