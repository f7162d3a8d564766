//! What waits: where a run stands in the queue, how much is in it, and which runs somebody wants to end.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Result, Store,
    db::{args, runs_by},
    lives,
    runs::{id as run_id, missing},
};

/// Where a run stands in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Ready runs of its class that come before it.
    pub ahead: u64,
    /// The run that its group waits for.
    pub behind: Option<Blocker>,
}

/// A run that another run of its group waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The first run of the group in the order of the queue.
    pub run: RunId,
    /// The name of its task. A caller that may not see the task may not see the run.
    pub task: Option<String>,
    /// Runs of the group that take its places.
    pub count: u64,
}

/// A run that somebody wants to end, and the runner that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRow {
    /// The run.
    pub run: RunId,
    /// The attempt that is to end.
    pub attempt: u32,
    /// The runner that holds it.
    pub runner_id: String,
    /// Why.
    pub reason: String,
}

/// Runs of a pool that are in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    /// The pool.
    pub pool: String,
    /// Queued, leased or running.
    pub state: RunState,
    /// How many.
    pub count: u64,
}

#[derive(Debug, FromRow)]
struct RawCancel {
    id: String,
    attempt: i64,
    runner_id: String,
    cancel_reason: Option<String>,
}

#[derive(Debug, FromRow)]
struct Place {
    class_id: i64,
    order_key: i64,
    seq: i64,
    state: String,
    held: i64,
    group_name: Option<String>,
}

impl Store {
    /// Leased and running runs that somebody wants to end.
    pub async fn cancels(&self) -> Result<Vec<CancelRow>> {
        let rows: Vec<RawCancel> = self
            .db
            .rows(
                runs_by!(
                    "runs_cancel",
                    "id, attempt, runner_id, cancel_reason",
                    "state IN ('leased', 'running') AND cancel_requested_at IS NOT NULL ORDER BY id"
                ),
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|raw| {
                Ok(CancelRow {
                    run: run_id(raw.id)?,
                    attempt: lives::small(raw.attempt)?,
                    runner_id: raw.runner_id,
                    reason: raw.cancel_reason.unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Whether somebody wants this run to end.
    pub async fn is_cancel_requested(&self, id: &RunId) -> Result<bool> {
        let row: Option<(Option<i64>,)> = self
            .db
            .row(
                "SELECT cancel_requested_at FROM runs WHERE id = $1",
                args![id],
            )
            .await?;
        let (at,) = row.ok_or_else(|| missing(id))?;
        Ok(at.is_some())
    }

    /// Where a run stands in the queue.
    pub async fn position(&self, id: &RunId) -> Result<Position> {
        let place: Option<Place> = self
            .db
            .row(
                "SELECT class_id, order_key, seq, state, CASE WHEN approval = 'pending' THEN 0 ELSE held END AS held, group_name \
                 FROM runs WHERE id = $1",
                args![id],
            )
            .await?;
        let place = place.ok_or_else(|| missing(id))?;
        let mut position = Position::default();
        if place.state != RunState::Queued.as_str() {
            return Ok(position);
        }
        let ahead: Option<(i64,)> = self
            .db
            .row(
                "SELECT COUNT(*) FROM runs WHERE class_id = $1 AND state = 'queued' AND held = 0 \
                 AND (order_key, seq) < ($2, $3)",
                args![place.class_id, place.order_key, place.seq],
            )
            .await?;
        position.ahead = lives::size(ahead.map_or(0, |(count,)| count))?;
        if place.held != 0 {
            let behind: Option<(String, Option<String>, i64)> = self
                .db
                .row(
                    "SELECT id, task_name, COUNT(*) OVER () FROM runs WHERE group_name = $1 \
                     AND state IN ('queued', 'leased', 'running') AND held = 0 ORDER BY order_key, seq LIMIT 1",
                    args![place.group_name],
                )
                .await?;
            if let Some((id, task, count)) = behind {
                position.behind = Some(Blocker {
                    run: run_id(id)?,
                    task,
                    count: lives::size(count)?,
                });
            }
        }
        Ok(position)
    }

    /// How many runs are queued, leased and running in each pool.
    pub async fn queue_depth(&self) -> Result<Vec<Depth>> {
        let rows: Vec<(String, String, i64)> = self
            .db
            .rows(
                "SELECT c.pool, r.state, COUNT(*) FROM runs r JOIN classes c ON c.id = r.class_id \
                 WHERE r.state IN ('queued', 'leased', 'running') GROUP BY c.pool, r.state ORDER BY c.pool, r.state",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(pool, state, count)| {
                Ok(Depth {
                    pool,
                    state: lives::state(&state)?,
                    count: lives::size(count)?,
                })
            })
            .collect()
    }
}
