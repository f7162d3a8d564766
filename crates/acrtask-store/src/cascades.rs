//! Cascades: their state, the runs that they started, and what these pushed.
//!
//! What a cascade and its nodes are is JSON of the crate `acrtask-cascade`, which nothing here reads. Invariants: each
//! change is one transaction, guarded by the version of the state that it was made from, with the runs that it starts and
//! stops, so that of two servers one wins and nothing is half done; a run of (cascade, task, attempt) is written down once;
//! what a cascade's run pushed is written down with the end of that run. Left out: what is to be done, which
//! `acrtask-server` decides, and moving tags (`promotions.rs`).

mod rows;
mod write;

use std::{collections::HashMap, fmt::Write as _};

use acrtask_api::{cascade::CascadeOfRun, run::RunResult};
use acrtask_model::RunId;

pub use self::rows::{
    BaseTag, CascadeChange, CascadeFilter, CascadeImageRow, CascadeNodeRow, CascadeRow,
    CascadeRunKey, CascadeRunRow, HeldImage, NewCascadeRun, StoredCascades,
};
use self::rows::{RawCascade, RawImage, RawRun, cascade_columns, node, select_runs};
pub(crate) use self::write::{expire, of_runs, pushed};
use crate::{
    Result, Store, StoreError,
    db::{Arg, Sql, args, one_of},
    from_json,
    images::{self, digest},
    lives, runs,
};

impl Store {
    /// The version of the state: what was loaded with it is as it is now.
    pub async fn cascade_version(&self) -> Result<i64> {
        let row: Option<(i64,)> = self
            .db
            .row("SELECT version FROM cascade_state", args![])
            .await?;
        row.map(|(version,)| version)
            .ok_or_else(|| StoreError::corrupt("the state of cascades is missing"))
    }

    /// The settings of cascades as JSON, if any were stored.
    pub async fn cascade_settings(&self) -> Result<Option<String>> {
        let row: Option<(Option<String>,)> = self
            .db
            .row("SELECT settings FROM cascade_state", args![])
            .await?;
        Ok(row.and_then(|(settings,)| settings))
    }

    /// All that may still change, as of one version.
    pub async fn load_cascades(&self) -> Result<StoredCascades> {
        loop {
            let state: Option<(i64, i64, Option<String>)> = self
                .db
                .row("SELECT version, next, settings FROM cascade_state", args![])
                .await?;
            let (version, next, settings) =
                state.ok_or_else(|| StoreError::corrupt("the state of cascades is missing"))?;
            let cascades: Vec<RawCascade> = self
                .db
                .rows(
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
                .rows(
                    "SELECT n.cascade_id, n.task, n.state, n.node FROM cascade_nodes n \
                     JOIN cascades c ON c.id = n.cascade_id WHERE c.active = 1",
                    args![],
                )
                .await?;
            let attempts: Vec<(String, String)> = self
                .db
                .rows("SELECT task, attempt FROM cascade_attempts", args![])
                .await?;
            // Each change counts up; where it did meanwhile, these are of two versions.
            if self.cascade_version().await? == version {
                return Ok(StoredCascades {
                    version,
                    next: lives::size(next)?,
                    settings,
                    cascades: cascades
                        .into_iter()
                        .map(CascadeRow::try_from)
                        .collect::<Result<_>>()?,
                    nodes: nodes.into_iter().map(node).collect::<Result<_>>()?,
                    attempts,
                });
            }
        }
    }

    /// Runs whose ends no cascade has taken yet, with what came of those that are over.
    pub async fn open_cascade_runs(&self) -> Result<Vec<CascadeRunRow>> {
        let rows: Vec<RawRun> = self
            .db
            .rows(
                concat!(
                    select_runs!("r.result"),
                    "WHERE c.seen = 0 ORDER BY c.cascade_id, c.task, c.attempt"
                ),
                args![],
            )
            .await?;
        rows.into_iter().map(CascadeRunRow::try_from).collect()
    }

    /// Cascades, the newest first.
    pub async fn cascades(&self, filter: CascadeFilter) -> Result<Vec<CascadeRow>> {
        let mut args = args![filter.before.unwrap_or(i64::MAX.unsigned_abs())];
        let mut text = concat!(
            "SELECT ",
            cascade_columns!(),
            " FROM cascades WHERE id < $1"
        )
        .to_owned();
        if filter.open {
            text += " AND active = 1 AND phase <> 'over'";
        }
        args.push(Arg::from(filter.limit));
        let node =
            "EXISTS (SELECT 1 FROM cascade_nodes n WHERE n.cascade_id = cascades.id AND n.task";
        if let Some(task) = &filter.task {
            args.push(task.into());
            let _ = write!(text, " AND {node} = ${})", args.len());
        }
        if let Some(prefix) = &filter.task_prefix {
            args.extend([prefix.into(), runs::beyond(prefix).into()]);
            let (from, to) = (args.len() - 1, args.len());
            let _ = write!(text, " AND {node} >= ${from} AND n.task < ${to})");
        }
        text += " ORDER BY id DESC LIMIT $2";
        let rows: Vec<RawCascade> = self.db.rows(Sql::built(text), args).await?;
        rows.into_iter().map(CascadeRow::try_from).collect()
    }

    /// One cascade.
    pub async fn cascade(&self, id: u64) -> Result<CascadeRow> {
        let raw: Option<RawCascade> = self
            .db
            .row(
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

    /// The tasks of a cascade, by name.
    pub async fn cascade_nodes(&self, id: u64) -> Result<Vec<CascadeNodeRow>> {
        let rows: Vec<(i64, String, String, String)> = self
            .db
            .rows(
                "SELECT cascade_id, task, state, node FROM cascade_nodes WHERE cascade_id = $1 ORDER BY task",
                args![id],
            )
            .await?;
        rows.into_iter().map(node).collect()
    }

    /// The newest cascade that has, or had, something to do with a task.
    pub async fn cascade_of_task(&self, task: &str) -> Result<Option<u64>> {
        let row: Option<(i64,)> = self
            .db
            .row(
                "SELECT c.id FROM cascades c JOIN cascade_nodes n ON n.cascade_id = c.id AND n.task = $1 \
                 ORDER BY c.id DESC LIMIT 1",
                args![task],
            )
            .await?;
        row.map(|(id,)| lives::size(id)).transpose()
    }

    /// How many tasks of these cascades stand where: number, state, tasks.
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
        let rows: Vec<(i64, String, i64)> = self.db.rows(sql, args![ids]).await?;
        rows.into_iter()
            .map(|(id, state, count)| Ok((lives::size(id)?, state, lives::size(count)?)))
            .collect()
    }

    /// The runs of a cascade, by task and attempt, without what came of them.
    pub async fn cascade_runs(&self, id: u64) -> Result<Vec<CascadeRunRow>> {
        let rows: Vec<RawRun> = self
            .db
            .rows(
                concat!(
                    select_runs!("CAST(NULL AS TEXT)"),
                    "WHERE c.cascade_id = $1 ORDER BY c.task, c.attempt"
                ),
                args![id],
            )
            .await?;
        rows.into_iter().map(CascadeRunRow::try_from).collect()
    }

    /// The cascades that started these runs, by run; runs that none started are left out.
    pub async fn cascades_of_runs(&self, ids: &[RunId]) -> Result<HashMap<RunId, CascadeOfRun>> {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let sql = one_of!(
            "SELECT run_id, cascade_id, attempt, moved FROM cascade_runs WHERE run_id",
            "$1",
            ""
        );
        let rows: Vec<(String, i64, i64, Option<String>)> = self.db.rows(sql, args![ids]).await?;
        rows.into_iter()
            .map(|(run, cascade, attempt, moved)| {
                let of = CascadeOfRun {
                    id: lives::size(cascade)?,
                    attempt: lives::small(attempt)?,
                    moved: moved.as_deref().map_or(Ok(Vec::new()), from_json)?,
                };
                Ok((runs::id(run)?, of))
            })
            .collect()
    }

    /// What a cascade pushed, by name.
    pub async fn cascade_images(&self, id: u64) -> Result<Vec<CascadeImageRow>> {
        let rows: Vec<RawImage> = self
            .db
            .rows(
                "SELECT cascade_id, name, task, run_id, before_digest, after_digest, state, at, error FROM cascade_images \
                 WHERE cascade_id = $1 ORDER BY name",
                args![id],
            )
            .await?;
        rows.into_iter().map(CascadeImageRow::try_from).collect()
    }

    /// How long the newest runs of the tasks of a cascade took that pushed images, in milliseconds, by name.
    pub async fn cascade_run_times(&self, id: u64) -> Result<HashMap<String, i64>> {
        let rows: Vec<(String, i64)> = self
            .db
            .rows(
                "SELECT t.name, MAX(i.run_ms) FROM cascade_nodes n JOIN tasks t ON t.name = n.task \
                 JOIN images i ON i.task_id = t.id AND i.newest = 1 WHERE n.cascade_id = $1 AND i.run_ms IS NOT NULL \
                 GROUP BY t.name",
                args![id],
            )
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// Images that are held back, by cascade and name, the newest cascade last. One whose run is gone is left out.
    pub async fn held_images(&self) -> Result<Vec<HeldImage>> {
        let rows: Vec<(i64, String, String, String, i64, String)> = self
            .db
            .rows(
                "SELECT h.cascade_id, h.name, h.task, h.after_digest, h.at, r.result FROM cascade_images h \
                 JOIN runs r ON r.id = h.run_id WHERE h.state = 'held' AND r.result IS NOT NULL \
                 ORDER BY h.cascade_id, h.name",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(cascade, name, task, after, at, result)| {
                let result: RunResult = from_json(&result)?;
                Ok(HeldImage {
                    bases: images::bases_under(&result, &name),
                    cascade: lives::size(cascade)?,
                    name,
                    task,
                    digest: digest(&after)?,
                    at,
                })
            })
            .collect()
    }

    /// Watched tags whose digests are known: one for each login.
    pub async fn base_tags(&self) -> Result<Vec<BaseTag>> {
        let rows: Vec<(String, String, i64, Option<i64>)> = self
            .db
            .rows(
                "SELECT name, digest, COALESCE(checked_at, 0), changed_at FROM base_watches WHERE digest IS NOT NULL \
                 AND status NOT IN ('vanished', 'denied') ORDER BY name, scope",
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|(name, text, checked_at, moved_at)| {
                Ok(BaseTag {
                    name,
                    digest: digest(&text)?,
                    checked_at,
                    moved_at,
                })
            })
            .collect()
    }

    /// How many active cascades there are by phase, and how many tasks of those that are not over by state.
    pub async fn cascade_counts(&self) -> Result<(Vec<(String, i64)>, Vec<(String, i64)>)> {
        let phases = self
            .db
            .rows(
                "SELECT phase, COUNT(*) FROM cascades WHERE active = 1 GROUP BY phase",
                args![],
            )
            .await?;
        let nodes = self
            .db
            .rows(
                "SELECT n.state, COUNT(*) FROM cascade_nodes n JOIN cascades c ON c.id = n.cascade_id \
                 WHERE c.active = 1 AND c.phase <> 'over' GROUP BY n.state",
                args![],
            )
            .await?;
        Ok((phases, nodes))
    }
}
