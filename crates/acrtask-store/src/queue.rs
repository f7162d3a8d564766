//! How runs are handed out: classes that have ready runs, and the claim. The order within a class is `order_key` (the
//! moment of the request, less ten minutes for each level of priority) and then a sequence number: first come, first
//! served within a priority, and nothing starves.

use std::collections::BTreeMap;

use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Ms, Result, RunRow, Store, StoreError,
    db::{Sql, args},
    from_json,
    lives::{self, Living, RawLife, life_columns},
    runs,
};

/// The head start of one level of priority, in milliseconds.
pub const PRIORITY_MS: i64 = 600_000;

/// What a runner must have for a run. Runs refer to a class; a runner takes a set of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its id.
    pub id: i64,
    /// The pool of runners.
    pub pool: String,
    /// `linux/amd64` ...; empty: any.
    pub platform: String,
    /// Labels that a runner must have.
    pub labels: BTreeMap<String, String>,
}

/// A ready run that may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub id: RunId,
    /// Its class.
    pub class: i64,
    /// The name of its task.
    pub task: Option<String>,
    /// Runs with the same key are warm on the same runner.
    pub warm_key: String,
    /// Its place in the queue.
    pub order_key: i64,
}

/// Who takes which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// The runner.
    pub runner_id: String,
}

/// A class whose ready runs may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimable {
    /// The id of the class.
    pub class: i64,
    /// Only runs of tasks that one of these names or prefixes takes in. `None`: all runs of the class.
    pub tasks: Option<TaskPatterns>,
}

/// Names of tasks, and what names begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskPatterns {
    /// Whole names.
    pub names: Vec<String>,
    /// Prefixes.
    pub prefixes: Vec<String>,
}

impl From<i64> for Claimable {
    fn from(class: i64) -> Self {
        Self { class, tasks: None }
    }
}

macro_rules! ready {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            life_columns!(),
            " FROM runs WHERE class_id = $1 AND state = 'queued' AND held = 0 ",
            $condition,
            "ORDER BY order_key, seq LIMIT $2"
        )
    };
}

/// The head of a class, without what another server is giving away now.
const READY: Sql = Sql::of(ready!(""), concat!(ready!(""), " FOR UPDATE SKIP LOCKED"));

/// The same of some tasks alone.
const READY_OF_TASKS: Sql = Sql::of(
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
struct RawClass {
    id: i64,
    pool: String,
    platform: String,
    labels: String,
}

impl TryFrom<RawClass> for Class {
    type Error = StoreError;

    fn try_from(raw: RawClass) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            pool: raw.pool,
            platform: raw.platform,
            labels: from_json(&raw.labels)?,
        })
    }
}

impl Store {
    /// Classes that have ready runs now.
    pub async fn ready_classes(&self) -> Result<Vec<Class>> {
        // One look into the queue for each class: there are few.
        let rows: Vec<RawClass> = self
            .db
            .rows(
                "SELECT id, pool, platform, labels FROM classes WHERE (SELECT r.seq FROM runs r \
                 WHERE r.class_id = classes.id AND r.state = 'queued' AND r.held = 0 \
                 ORDER BY r.order_key, r.seq LIMIT 1) IS NOT NULL ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(Class::try_from).collect()
    }

    /// Every class that a run ever had.
    pub async fn classes(&self) -> Result<Vec<Class>> {
        let rows: Vec<RawClass> = self
            .db
            .rows(
                "SELECT id, pool, platform, labels FROM classes ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(Class::try_from).collect()
    }

    /// Gives the first `limit` ready runs of these classes to `place`, which says who takes which, and leases those for
    /// `lease_ms`; a runner has to accept within `accept_ms`. One transaction.
    pub async fn claim(
        &self,
        classes: &[impl Clone + Into<Claimable> + Sync],
        limit: u32,
        now: Ms,
        lease_ms: i64,
        accept_ms: i64,
        place: impl FnOnce(&[Candidate]) -> Vec<Claim> + Send,
    ) -> Result<Vec<RunRow>> {
        if classes.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let mut tx = self.db.write().await?;
        let mut ready = Vec::new();
        for class in classes {
            let Claimable { class, tasks } = class.clone().into();
            let raw: Vec<RawLife> = match tasks {
                None => tx.rows(READY, args![class, limit]).await?,
                Some(TaskPatterns { names, prefixes }) => {
                    tx.rows(READY_OF_TASKS, args![class, limit, names, prefixes])
                        .await?
                }
            };
            for raw in raw {
                ready.push(Living::try_from(raw)?);
            }
        }
        ready.sort_by_key(|run| (run.order_key, run.seq));
        ready.truncate(limit as usize);
        let candidates: Vec<Candidate> = ready
            .iter()
            .map(|run| Candidate {
                id: run.id.clone(),
                class: run.class,
                task: run.task.clone(),
                warm_key: run.warm_key.clone(),
                order_key: run.order_key,
            })
            .collect();
        let claims = if candidates.is_empty() {
            Vec::new()
        } else {
            place(&candidates)
        };
        let mut ready = lives::by_id(ready);
        let mut changes = Vec::new();
        for claim in claims {
            // What was not offered, or is given away twice, is not there.
            if let Some(mut change) = ready.remove(&claim.run)
                && change
                    .run
                    .life
                    .lease(&claim.runner_id, now, lease_ms, accept_ms)
            {
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        lives::save(&mut tx, &changes, "lost", now).await?;
        let ids = changes.iter().map(|change| change.run.id.to_string());
        let mut rows = runs::find_all(&mut tx, ids.collect()).await?;
        tx.commit().await?;
        Ok(changes
            .iter()
            .filter_map(|change| rows.remove(&change.run.id))
            .collect())
    }
}
