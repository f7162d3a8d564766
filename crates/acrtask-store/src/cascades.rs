//! Cascades: their state, their runs, and the images of these runs.
//!
//! The crate `acrtask-cascade` defines the JSON of a cascade and its nodes, which this module does
//! not read.
//!
//! Invariants:
//! - A change is one transaction, guarded by the version that it was computed from. It includes the
//!   runs to start and to cancel, so that of two servers one wins completely.
//! - A run of (cascade, task, attempt) is stored once.
//! - The images of a cascade's run are stored with the end of that run.
//!
//! Left out: decisions, which `acrtask-server` makes, and tag changes (`promotions.rs`).

mod rows;
mod write;

use std::{collections::HashMap, fmt::Write as _};

use acrtask_api::{cascade::CascadeOfRun, run::RunResult};
use acrtask_model::RunId;

pub use self::rows::{
    BaseTag, CascadeChange, CascadeFilter, CascadeImageRow, CascadeNodeRow, CascadeRow,
    CascadeRunKey, CascadeRunRow, NewCascadeRun, StagedImage, StoredCascades,
};
use self::rows::{RawCascade, RawImage, RawRun, cascade_columns, parse_node, select_runs};
pub(crate) use self::write::{expire, nodes_of_runs, record_pushed_images};
use crate::{
    Result, Store, StoreError,
    db::{Arg, Sql, args, one_of},
    from_json,
    images::{self, digest},
    run_state, runs,
};

impl Store {
    /// Returns the version of the state. State that was loaded with this version is up to date.
    pub async fn cascade_version(&self) -> Result<i64> {
        let row: Option<(i64,)> = self
            .db
            .fetch_optional("SELECT version FROM cascade_state", args![])
            .await?;
        row.map(|(version,)| version)
            .ok_or_else(|| StoreError::corrupt("the state of cascades is missing"))
    }

    /// Returns the JSON of the settings, if any are stored.
    pub async fn cascade_settings(&self) -> Result<Option<String>> {
        let row: Option<(Option<String>,)> = self
            .db
            .fetch_optional("SELECT settings FROM cascade_state", args![])
            .await?;
        Ok(row.and_then(|(settings,)| settings))
    }

    /// Loads everything that may still change, as of one version.
    pub async fn load_cascades(&self) -> Result<StoredCascades> {
        loop {
            let state: Option<(i64, i64, Option<String>)> = self
                .db
                .fetch_optional("SELECT version, next, settings FROM cascade_state", args![])
                .await?;
            let (version, next, settings) =
                state.ok_or_else(|| StoreError::corrupt("the state of cascades is missing"))?;
            let cascades: Vec<RawCascade> = self
                .db
                .fetch_all(
                    concat!(
                        "SELECT ",
                        cascade_columns!(),
                        " FROM cascades WHERE active = 1 ORDER BY id"
                    ),
                    args![],
                )
                .await?;
            let nodes: Vec<(i64, String, String, String)> = self
                .db
                .fetch_all(
                    "SELECT n.cascade_id, n.task, n.state, n.node FROM cascade_nodes n \
                     JOIN cascades c ON c.id = n.cascade_id WHERE c.active = 1",
                    args![],
                )
                .await?;
            let attempts: Vec<(String, String)> = self
                .db
                .fetch_all("SELECT task, attempt FROM cascade_attempts", args![])
                .await?;
            // Every change increments the version. If it differs, the rows belong to several
            // versions.
            if self.cascade_version().await? == version {
                return Ok(StoredCascades {
                    version,
                    next: run_state::to_u64(next)?,
                    settings,
                    cascades: cascades
                        .into_iter()
                        .map(CascadeRow::try_from)
                        .collect::<Result<_>>()?,
                    nodes: nodes.into_iter().map(parse_node).collect::<Result<_>>()?,
                    attempts,
                });
            }
        }
    }

    /// Returns runs whose ends their cascades have not handled yet, with the results of finished
    /// runs.
    pub async fn open_cascade_runs(&self) -> Result<Vec<CascadeRunRow>> {
        let rows: Vec<RawRun> = self
            .db
            .fetch_all(
                concat!(
                    select_runs!("r.result"),
                    "WHERE c.seen = 0 ORDER BY c.cascade_id, c.task, c.attempt"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(CascadeRunRow::try_from).collect()
    }

    /// Returns cascades, newest first.
    pub async fn cascades(&self, filter: CascadeFilter) -> Result<Vec<CascadeRow>> {
        let mut args = args![filter.before.unwrap_or(i64::MAX.unsigned_abs())];
        let mut text = concat!(
            "SELECT ",
            cascade_columns!(),
            " FROM cascades WHERE id < $1"
        )
        .to_owned();
        if filter.open {
            text += " AND active = 1 AND phase <> 'finished'";
        }
        args.push(Arg::from(filter.limit));
        let node =
            "EXISTS (SELECT 1 FROM cascade_nodes n WHERE n.cascade_id = cascades.id AND n.task";
        if let Some(task) = &filter.task {
            args.push(task.into());
            let _ = write!(text, " AND {node} = ${})", args.len());
        }
        if let Some(prefix) = &filter.task_prefix {
            args.extend([prefix.into(), runs::upper_bound(prefix).into()]);
            let (from, to) = (args.len() - 1, args.len());
            let _ = write!(text, " AND {node} >= ${from} AND n.task < ${to})");
        }
        text += " ORDER BY id DESC LIMIT $2";
        let rows: Vec<RawCascade> = self.db.fetch_all(Sql::dynamic(text), args).await?;
        rows.into_iter().map(CascadeRow::try_from).collect()
    }

    /// Returns one cascade.
    pub async fn cascade(&self, id: u64) -> Result<CascadeRow> {
        let raw: Option<RawCascade> = self
            .db
            .fetch_optional(
                concat!(
                    "SELECT ",
                    cascade_columns!(),
                    " FROM cascades WHERE id = $1"
                ),
                args![id],
            )
            .await?;
        raw.ok_or_else(|| StoreError::not_found(format!("cascade {id}")))?
            .try_into()
    }

    /// Returns the nodes of a cascade by task name.
    pub async fn cascade_nodes(&self, id: u64) -> Result<Vec<CascadeNodeRow>> {
        let rows: Vec<(i64, String, String, String)> = self
            .db
            .fetch_all(
                "SELECT cascade_id, task, state, node FROM cascade_nodes WHERE cascade_id = $1 ORDER BY task",
                args![id],
            )
            .await?;
        rows.into_iter().map(parse_node).collect()
    }

    /// Returns the newest cascade with a node for a task.
    pub async fn cascade_of_task(&self, task: &str) -> Result<Option<u64>> {
        let row: Option<(i64,)> = self
            .db
            .fetch_optional(
                "SELECT c.id FROM cascades c JOIN cascade_nodes n ON n.cascade_id = c.id AND n.task = $1 \
                 ORDER BY c.id DESC LIMIT 1",
                args![task],
            )
            .await?;
        row.map(|(id,)| run_state::to_u64(id)).transpose()
    }

    /// Counts the nodes of these cascades by state: cascade, state, number.
    pub async fn cascade_node_counts(&self, ids: Vec<u64>) -> Result<Vec<(u64, String, u64)>> {
        let ids: Vec<i64> = ids
            .into_iter()
            .filter_map(|id| i64::try_from(id).ok())
            .collect();
        let sql = one_of!(
            "SELECT cascade_id, state, COUNT(*) FROM cascade_nodes WHERE cascade_id",
            "$1",
            " GROUP BY cascade_id, state ORDER BY cascade_id, state"
        );
        let rows: Vec<(i64, String, i64)> = self.db.fetch_all(sql, args![ids]).await?;
        rows.into_iter()
            .map(|(id, state, count)| {
                Ok((run_state::to_u64(id)?, state, run_state::to_u64(count)?))
            })
            .collect()
    }

    /// Returns the runs of a cascade by task and attempt, without their results.
    pub async fn cascade_runs(&self, id: u64) -> Result<Vec<CascadeRunRow>> {
        let rows: Vec<RawRun> = self
            .db
            .fetch_all(
                concat!(
                    select_runs!("CAST(NULL AS TEXT)"),
                    "WHERE c.cascade_id = $1 ORDER BY c.task, c.attempt"
                ),
                args![id],
            )
            .await?;
        rows.into_iter().map(CascadeRunRow::try_from).collect()
    }

    /// Returns the cascades of these runs by run. Omits runs without a cascade.
    pub async fn cascades_of_runs(&self, ids: &[RunId]) -> Result<HashMap<RunId, CascadeOfRun>> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let sql = one_of!(
            "SELECT run_id, cascade_id, attempt, moved FROM cascade_runs WHERE run_id",
            "$1",
            ""
        );
        let rows: Vec<(String, i64, i64, Option<String>)> =
            self.db.fetch_all(sql, args![ids]).await?;
        rows.into_iter()
            .map(|(run, cascade, attempt, moved)| {
                let of = CascadeOfRun {
                    id: run_state::to_u64(cascade)?,
                    attempt: run_state::to_u32(attempt)?,
                    changes: moved.as_deref().map_or(Ok(Vec::new()), from_json)?,
                };
                Ok((runs::parse_run_id(run)?, of))
            })
            .collect()
    }

    /// Returns the images of a cascade by name.
    pub async fn cascade_images(&self, id: u64) -> Result<Vec<CascadeImageRow>> {
        let rows: Vec<RawImage> = self
            .db
            .fetch_all(
                "SELECT cascade_id, name, task, run_id, before_digest, after_digest, state, changed_at, error FROM cascade_images \
                 WHERE cascade_id = $1 ORDER BY name",
                args![id],
            )
            .await?;
        rows.into_iter().map(CascadeImageRow::try_from).collect()
    }

    /// Returns the durations of the newest runs of a cascade's tasks that pushed images, in
    /// milliseconds by task name.
    pub async fn cascade_run_times(&self, id: u64) -> Result<HashMap<String, i64>> {
        let rows: Vec<(String, i64)> = self
            .db
            .fetch_all(
                "SELECT t.name, MAX(i.run_ms) FROM cascade_nodes n JOIN tasks t ON t.name = n.task \
                 JOIN images i ON i.task_id = t.id AND i.newest = 1 WHERE n.cascade_id = $1 AND i.run_ms IS NOT NULL \
                 GROUP BY t.name",
                args![id],
            )
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Returns the staged images by cascade and name, in ascending order of cascades. Omits images
    /// whose run does not exist anymore.
    pub async fn staged_images(&self) -> Result<Vec<StagedImage>> {
        let rows: Vec<(i64, String, String, String, i64, String)> = self
            .db
            .fetch_all(
                "SELECT h.cascade_id, h.name, h.task, h.after_digest, h.changed_at, r.result FROM cascade_images h \
                 JOIN runs r ON r.id = h.run_id WHERE h.state = 'staged' AND r.result IS NOT NULL \
                 ORDER BY h.cascade_id, h.name",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(cascade, name, task, after, pushed_at, result)| {
                let result: RunResult = from_json(&result)?;
                Ok(StagedImage {
                    bases: images::bases_of_name(&result, &name),
                    cascade: run_state::to_u64(cascade)?,
                    name,
                    task,
                    digest: digest(&after)?,
                    pushed_at,
                })
            })
            .collect()
    }

    /// Returns watched tags with a known digest, one for each login.
    pub async fn base_tags(&self) -> Result<Vec<BaseTag>> {
        let rows: Vec<(String, String, i64, Option<i64>)> = self
            .db
            .fetch_all(
                "SELECT name, digest, COALESCE(checked_at, 0), changed_at FROM base_watches WHERE digest IS NOT NULL \
                 AND status NOT IN ('vanished', 'denied') ORDER BY name, scope",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, text, checked_at, changed_at)| {
                Ok(BaseTag {
                    name,
                    digest: digest(&text)?,
                    checked_at,
                    changed_at,
                })
            })
            .collect()
    }

    /// Counts active cascades by phase, and the nodes of unfinished cascades by state.
    pub async fn cascade_counts(&self) -> Result<(Vec<(String, i64)>, Vec<(String, i64)>)> {
        let phases = self
            .db
            .fetch_all(
                "SELECT phase, COUNT(*) FROM cascades WHERE active = 1 GROUP BY phase",
                args![],
            )
            .await?;
        let nodes = self
            .db
            .fetch_all(
                "SELECT n.state, COUNT(*) FROM cascade_nodes n JOIN cascades c ON c.id = n.cascade_id \
                 WHERE c.active = 1 AND c.phase <> 'finished' GROUP BY n.state",
                args![],
            )
            .await?;
        Ok((phases, nodes))
    }
}
