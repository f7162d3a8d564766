//! Waiting runs: queue positions, queue depth, counts, and cancellation requests.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{Sql, args, runs_by},
    run_state,
    runs::{missing_run, parse_run_id, task_conditions},
};

/// Position of a run in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Number of earlier ready runs with the same requirement.
    pub ahead: u64,
    /// Run of the concurrency group that blocks this one.
    pub behind: Option<Blocker>,
}

/// A run that blocks another run of its concurrency group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// First run of the group in queue order.
    pub run: RunId,
    /// Name of its task. A caller without access to the task must not see the run.
    pub task: Option<String>,
    /// Number of runs that occupy slots of the group.
    pub count: u64,
}

/// A cancellation request for a run that a runner leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequestRow {
    /// Id of the run.
    pub run: RunId,
    /// Attempt to cancel.
    pub attempt: u32,
    /// Runner that leases the run.
    pub runner_id: String,
    /// Reason of the request.
    pub reason: String,
}

/// Number of runs of a pool in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    /// Name of the pool.
    pub pool: String,
    /// Queued, leased or running.
    pub state: RunState,
    /// Number of runs.
    pub count: u64,
}

/// Numbers of live runs and of runs that failed lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunCounts {
    /// Queued runs.
    pub queued: u64,
    /// Leased and running runs.
    pub running: u64,
    /// Runs that failed, timed out or ended with an error.
    pub failed: u64,
}

#[derive(Debug, FromRow)]
struct RawCancel {
    id: String,
    attempt: i64,
    runner_id: String,
    cancel_reason: Option<String>,
}

#[derive(Debug, FromRow)]
struct QueueEntry {
    requirement_id: i64,
    queue_rank: i64,
    seq: i64,
    state: String,
    blocked: i64,
    group_name: Option<String>,
}

impl Store {
    /// Returns leased and running runs with a cancellation request.
    pub async fn cancel_requests(&self) -> Result<Vec<CancelRequestRow>> {
        let rows: Vec<RawCancel> = self
            .db
            .fetch_all(
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
                Ok(CancelRequestRow {
                    run: parse_run_id(raw.id)?,
                    attempt: run_state::to_u32(raw.attempt)?,
                    runner_id: raw.runner_id,
                    reason: raw.cancel_reason.unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Returns `true` if the cancellation of the run was requested.
    pub async fn is_cancel_requested(&self, id: &RunId) -> Result<bool> {
        let row: Option<(Option<i64>,)> = self
            .db
            .fetch_optional(
                "SELECT cancel_requested_at FROM runs WHERE id = $1",
                args![id],
            )
            .await?;
        let (at,) = row.ok_or_else(|| missing_run(id))?;
        Ok(at.is_some())
    }

    /// Returns the position of a run in the queue.
    pub async fn position(&self, id: &RunId) -> Result<Position> {
        let entry: Option<QueueEntry> = self
            .db
            .fetch_optional(
                "SELECT requirement_id, queue_rank, seq, state, CASE WHEN approval = 'pending' THEN 0 ELSE blocked END AS blocked, group_name \
                 FROM runs WHERE id = $1",
                args![id],
            )
            .await?;
        let entry = entry.ok_or_else(|| missing_run(id))?;
        let mut position = Position::default();
        if entry.state != RunState::Queued.as_str() {
            return Ok(position);
        }
        let ahead: Option<(i64,)> = self
            .db
            .fetch_optional(
                "SELECT COUNT(*) FROM runs WHERE requirement_id = $1 AND state = 'queued' AND blocked = 0 \
                 AND (queue_rank, seq) < ($2, $3)",
                args![entry.requirement_id, entry.queue_rank, entry.seq],
            )
            .await?;
        position.ahead = run_state::to_u64(ahead.map_or(0, |(count,)| count))?;
        if entry.blocked != 0 {
            let behind: Option<(String, Option<String>, i64)> = self
                .db
                .fetch_optional(
                    "SELECT id, task_name, COUNT(*) OVER () FROM runs WHERE group_name = $1 \
                     AND state IN ('queued', 'leased', 'running') AND blocked = 0 ORDER BY queue_rank, seq LIMIT 1",
                    args![entry.group_name],
                )
                .await?;
            if let Some((id, task, count)) = behind {
                position.behind = Some(Blocker {
                    run: parse_run_id(id)?,
                    task,
                    count: run_state::to_u64(count)?,
                });
            }
        }
        Ok(position)
    }

    /// Counts live runs, and failed runs that were created at `since` or later. `task` and
    /// `task_prefix` restrict the tasks as in [`crate::RunFilter`].
    pub async fn run_counts(
        &self,
        task: Option<&str>,
        task_prefix: Option<&str>,
        since: Ms,
    ) -> Result<RunCounts> {
        let mut args = args![since];
        let conditions = task_conditions(task, task_prefix, |value| {
            args.push(value);
            format!("${}", args.len())
        });
        let of_tasks: String = conditions
            .iter()
            .map(|condition| format!(" AND {condition}"))
            .collect();
        let sql = Sql::dynamic(format!(
            "SELECT state, COUNT(*) FROM runs WHERE state IN ('queued', 'leased', 'running'){of_tasks} GROUP BY state \
             UNION ALL SELECT state, COUNT(*) FROM runs \
             WHERE state IN ('failed', 'timed_out', 'error') AND created_at >= $1{of_tasks} GROUP BY state"
        ));
        let rows: Vec<(String, i64)> = self.db.fetch_all(sql, args).await?;
        let mut counts = RunCounts::default();
        for (state, count) in rows {
            let count = run_state::to_u64(count)?;
            match run_state::parse_state(&state)? {
                RunState::Queued => counts.queued += count,
                RunState::Leased | RunState::Running => counts.running += count,
                _ => counts.failed += count,
            }
        }
        Ok(counts)
    }

    /// Counts queued, leased and running runs per pool.
    pub async fn queue_depth(&self) -> Result<Vec<QueueDepth>> {
        let rows: Vec<(String, String, i64)> = self
            .db
            .fetch_all(
                "SELECT c.pool, r.state, COUNT(*) FROM runs r JOIN runner_requirements c ON c.id = r.requirement_id \
                 WHERE r.state IN ('queued', 'leased', 'running') GROUP BY c.pool, r.state ORDER BY c.pool, r.state",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(pool, state, count)| {
                Ok(QueueDepth {
                    pool,
                    state: run_state::parse_state(&state)?,
                    count: run_state::to_u64(count)?,
                })
            })
            .collect()
    }
}
