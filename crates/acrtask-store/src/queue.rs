//! Leasing of runs: runner requirements with ready runs, and claims.
//!
//! Runs with the same requirement are ordered by `queue_rank`, the creation time minus ten minutes
//! per priority level, and then by a sequence number. Within a priority the order is first come,
//! first served, and every run gets its turn.

use std::collections::BTreeMap;

use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Ms, Result, RunRow, Store, StoreError,
    db::{Sql, args},
    from_json,
    run_state::{self, LockedRun, RawRunState, run_state_columns},
    runs,
};

/// Head start of one priority level, in milliseconds.
pub const PRIORITY_MS: i64 = 600_000;

/// Requirements that a runner must meet. Runs refer to one; a runner can meet several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRequirement {
    /// Id of the requirement.
    pub id: i64,
    /// Pool of runners.
    pub pool: String,
    /// Platform such as `linux/amd64`. Empty: any.
    pub platform: String,
    /// Labels that a runner must have.
    pub labels: BTreeMap<String, String>,
}

/// A ready run that may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Id of the run.
    pub id: RunId,
    /// Id of its runner requirement.
    pub requirement_id: i64,
    /// Name of the task.
    pub task: Option<String>,
    /// Runs with the same key prefer the same runner, for its warm cache.
    pub affinity_key: String,
    /// Rank in the queue.
    pub queue_rank: i64,
}

/// Assignment of a run to a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Id of the run.
    pub run: RunId,
    /// Id of the runner.
    pub runner_id: String,
}

/// Runner requirement whose ready runs may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimable {
    /// Id of the requirement.
    pub requirement_id: i64,
    /// Only runs of matching tasks. `None`: all runs with the requirement.
    pub tasks: Option<TaskPatterns>,
}

/// Names and name prefixes of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskPatterns {
    /// Complete names.
    pub names: Vec<String>,
    /// Prefixes of names.
    pub prefixes: Vec<String>,
}

impl From<i64> for Claimable {
    fn from(requirement_id: i64) -> Self {
        Self {
            requirement_id,
            tasks: None,
        }
    }
}

macro_rules! ready {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            run_state_columns!(),
            " FROM runs WHERE requirement_id = $1 AND state = 'queued' AND blocked = 0 ",
            $condition,
            "ORDER BY queue_rank, seq LIMIT $2"
        )
    };
}

/// Selects the first runs with a requirement and skips those that another server is leasing.
const READY: Sql = Sql::new(ready!(""), concat!(ready!(""), " FOR UPDATE SKIP LOCKED"));

/// Selects them for matching tasks only.
const READY_OF_TASKS: Sql = Sql::new(
    ready!(
        "AND (task_name IN (SELECT value FROM json_each($3)) OR EXISTS (SELECT 1 FROM json_each($4) AS prefix \
         WHERE substr(task_name, 1, length(prefix.value)) = prefix.value)) "
    ),
    concat!(
        ready!(
            "AND (task_name = ANY($3) OR EXISTS (SELECT 1 FROM UNNEST($4::text[]) AS prefix \
             WHERE starts_with(task_name, prefix))) "
        ),
        " FOR UPDATE SKIP LOCKED"
    ),
);

#[derive(Debug, FromRow)]
struct RawRequirement {
    id: i64,
    pool: String,
    platform: String,
    labels: String,
}

impl TryFrom<RawRequirement> for RunnerRequirement {
    type Error = StoreError;

    fn try_from(raw: RawRequirement) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            pool: raw.pool,
            platform: raw.platform,
            labels: from_json(&raw.labels)?,
        })
    }
}

impl Store {
    /// Returns the requirements that have ready runs.
    pub async fn ready_requirements(&self) -> Result<Vec<RunnerRequirement>> {
        // One index lookup per requirement: there are few.
        let rows: Vec<RawRequirement> = self
            .db
            .fetch_all(
                "SELECT id, pool, platform, labels FROM runner_requirements WHERE (SELECT r.seq FROM runs r \
                 WHERE r.requirement_id = runner_requirements.id AND r.state = 'queued' AND r.blocked = 0 \
                 ORDER BY r.queue_rank, r.seq LIMIT 1) IS NOT NULL ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(RunnerRequirement::try_from).collect()
    }

    /// Returns every requirement that any run ever had.
    pub async fn runner_requirements(&self) -> Result<Vec<RunnerRequirement>> {
        let rows: Vec<RawRequirement> = self
            .db
            .fetch_all(
                "SELECT id, pool, platform, labels FROM runner_requirements ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(RunnerRequirement::try_from).collect()
    }

    /// Leases ready runs in one transaction. Passes the first `limit` ready runs with these
    /// requirements to `assign`, and leases the runs that it returns for `lease_ms`. Each runner
    /// must accept within `accept_ms`.
    pub async fn claim(
        &self,
        requirements: &[impl Clone + Into<Claimable> + Sync],
        limit: u32,
        now: Ms,
        lease_ms: i64,
        accept_ms: i64,
        assign: impl FnOnce(&[Candidate]) -> Vec<Claim> + Send,
    ) -> Result<Vec<RunRow>> {
        if requirements.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let mut tx = self.db.begin().await?;
        let mut ready = Vec::new();
        for claimable in requirements {
            let Claimable {
                requirement_id,
                tasks,
            } = claimable.clone().into();
            let raw: Vec<RawRunState> = match tasks {
                None => tx.fetch_all(READY, args![requirement_id, limit]).await?,
                Some(TaskPatterns { names, prefixes }) => {
                    tx.fetch_all(
                        READY_OF_TASKS,
                        args![requirement_id, limit, names, prefixes],
                    )
                    .await?
                }
            };
            for raw in raw {
                ready.push(LockedRun::try_from(raw)?);
            }
        }
        ready.sort_by_key(|run| (run.queue_rank, run.seq));
        ready.truncate(limit as usize);
        let candidates: Vec<Candidate> = ready
            .iter()
            .map(|run| Candidate {
                id: run.id.clone(),
                requirement_id: run.requirement_id,
                task: run.task.clone(),
                affinity_key: run.affinity_key.clone(),
                queue_rank: run.queue_rank,
            })
            .collect();
        let claims = if candidates.is_empty() {
            Vec::new()
        } else {
            assign(&candidates)
        };
        let mut ready = run_state::changes_by_id(ready);
        let mut changes = Vec::new();
        for claim in claims {
            // Ignores runs that were not offered, and the second claim of a run.
            if let Some(mut change) = ready.remove(&claim.run)
                && change
                    .run
                    .machine
                    .lease(&claim.runner_id, now, lease_ms, accept_ms)
            {
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        run_state::save_changes(&mut tx, &changes, "lost", now).await?;
        let ids = changes.iter().map(|change| change.run.id.to_string());
        let mut rows = runs::find_runs(&mut tx, ids.collect()).await?;
        tx.commit().await?;
        Ok(changes
            .iter()
            .filter_map(|change| rows.remove(&change.run.id))
            .collect())
    }
}
