//! Runs that may have pushed an image: possible causes of the pushes that registries report.
//!
//! A registry reports a push while the run is still running, so results alone are not enough.
//! Invariant: a run without a result counts only if it is running, and if a run of its task has
//! pushed to the same repository before.

use std::collections::{BTreeMap, HashMap};

use acrtask_api::{run::RunResult, spec::RunSpec};
use acrtask_model::{Digest, RunId};
use sqlx::FromRow;

use crate::{Ms, Result, Store, db::args, from_json, runs};

/// Longest time between the end of a run and the report of its pushes, in milliseconds.
const LATE_MS: Ms = 3600 * 1000;
/// Largest number of runs of one query.
const MAX_RUNS: u32 = 200;
/// Number of earlier runs of a task whose results determine its repositories.
const EARLIER_RUNS: u32 = 20;

/// An image push that a registry reported.
#[derive(Debug, Clone, Copy)]
pub struct ReportedPush<'p> {
    /// Path within the registry. The registry may use another host name for itself than runs do.
    pub repository: &'p str,
    /// Registry, repository and tag.
    pub name: &'p str,
    /// `None` if the registry did not send it.
    pub digest: Option<&'p Digest>,
}

impl ReportedPush<'_> {
    fn is_pushed_by(&self, result: &RunResult) -> bool {
        result.images.iter().any(|image| match self.digest {
            Some(digest) => {
                image.digest == *digest || image.platforms.values().any(|own| own == digest)
            }
            None => image.name == self.name,
        })
    }

    fn is_in_repository_of(&self, result: &RunResult) -> bool {
        let path = format!("/{}:", self.repository);
        result.images.iter().any(|image| image.name.contains(&path))
    }
}

/// A run that may have pushed an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PusherRow {
    /// Id of the run.
    pub id: RunId,
    /// Id of its task.
    pub task_id: String,
    /// Name of its task.
    pub task_name: String,
    /// Kind of the trigger, such as `registryPush`.
    pub trigger: String,
    /// Values that the run was started with.
    pub set: BTreeMap<String, String>,
    /// Time of its creation.
    pub created_at: Ms,
}

#[derive(Debug, FromRow)]
struct RawPusher {
    id: String,
    task_id: String,
    task_name: Option<String>,
    started_by: String,
    spec: String,
    result: Option<String>,
    created_at: i64,
}

impl TryFrom<RawPusher> for PusherRow {
    type Error = crate::StoreError;

    fn try_from(raw: RawPusher) -> Result<Self> {
        let spec: RunSpec = from_json(&raw.spec)?;
        Ok(Self {
            id: runs::parse_run_id(raw.id)?,
            task_id: raw.task_id,
            task_name: raw.task_name.unwrap_or_default(),
            trigger: raw.started_by,
            set: spec.set,
            created_at: raw.created_at,
        })
    }
}

/// Selects runs of one task, and runs that a registry push started.
macro_rules! select_pushers {
    ($conditions:literal) => {
        concat!(
            "SELECT id, task_id, task_name, started_by, spec, result, created_at FROM runs \
             WHERE task_id IS NOT NULL AND (task_id = $1 OR started_by = 'registryPush') AND created_at <= $2 AND ",
            $conditions
        )
    };
}

impl Store {
    /// Returns runs that may have pushed `push` by the time `at`: runs of the task `task_id`, and
    /// runs that a registry push started.
    pub async fn pushers(
        &self,
        task_id: &str,
        push: ReportedPush<'_>,
        at: Ms,
    ) -> Result<Vec<PusherRow>> {
        let text = push
            .digest
            .map_or_else(|| push.name.to_owned(), ToString::to_string);
        let finished: Vec<RawPusher> = self
            .db
            .fetch_all(
                select_pushers!(
                    "finished_at > $3 AND result LIKE $4 ORDER BY finished_at DESC LIMIT $5"
                ),
                args![
                    task_id,
                    at,
                    at.saturating_sub(LATE_MS),
                    format!("%{text}%"),
                    MAX_RUNS
                ],
            )
            .await?;
        let mut pushers = Vec::new();
        for raw in finished {
            let result: RunResult = raw
                .result
                .as_deref()
                .map_or(Ok(RunResult::default()), from_json)?;
            if push.is_pushed_by(&result) {
                pushers.push(raw.try_into()?);
            }
        }
        let live: Vec<RawPusher> = self
            .db
            .fetch_all(
                select_pushers!("state IN ('leased', 'running') ORDER BY seq LIMIT $3"),
                args![task_id, at, MAX_RUNS],
            )
            .await?;
        let mut has_pushed: HashMap<String, bool> = HashMap::new();
        for raw in live {
            let name = raw.task_name.clone().unwrap_or_default();
            let cached = has_pushed.get(&name).copied();
            let pushes = match cached {
                Some(pushes) => pushes,
                None => self.has_pushed_to_repository(&name, push).await?,
            };
            has_pushed.insert(name, pushes);
            if pushes {
                pushers.push(raw.try_into()?);
            }
        }
        Ok(pushers)
    }

    /// Returns `true` if one of the last runs of the task pushed to the repository of `push`.
    async fn has_pushed_to_repository(
        &self,
        task_name: &str,
        push: ReportedPush<'_>,
    ) -> Result<bool> {
        let rows: Vec<(Option<String>,)> = self
            .db
            .fetch_all(
                "SELECT result FROM runs WHERE task_name = $1 AND finished_at IS NOT NULL \
                 ORDER BY created_at DESC LIMIT $2",
                args![task_name, EARLIER_RUNS],
            )
            .await?;
        for (result,) in rows {
            let Some(result) = result else { continue };
            if push.is_in_repository_of(&from_json(&result)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
