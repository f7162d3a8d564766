//! Changes of cascades, and images of their runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::ImageResult;
use acrtask_model::RunId;

use super::rows::CascadeChange;
use crate::{
    Ms, NewRun, Result, Store,
    db::{Sql, Tx, args, one_of},
    enqueue,
    groups::membership,
    run_state::{self, Change},
    runs, to_json,
};

const UPSERT_CASCADE: Sql = Sql::new(
    "INSERT INTO cascades (id, created_at, phase, follows, head, awaiting_approval, stages_images, finished_at, active) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, \
     follows = excluded.follows, head = excluded.head, awaiting_approval = excluded.awaiting_approval, stages_images = excluded.stages_images, \
     finished_at = excluded.finished_at, active = excluded.active",
    "INSERT INTO cascades (id, created_at, phase, follows, head, awaiting_approval, stages_images, finished_at, active) \
     SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], \
     $8::bigint[], $9::bigint[]) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, follows = excluded.follows, \
     head = excluded.head, awaiting_approval = excluded.awaiting_approval, stages_images = excluded.stages_images, finished_at = excluded.finished_at, \
     active = excluded.active",
);

const UPSERT_NODE: Sql = Sql::new(
    "INSERT INTO cascade_nodes (cascade_id, task, state, node) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (cascade_id, task) DO UPDATE SET state = excluded.state, node = excluded.node",
    "INSERT INTO cascade_nodes (cascade_id, task, state, node) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[]) \
     ON CONFLICT (cascade_id, task) DO UPDATE SET state = excluded.state, node = excluded.node",
);

const UPSERT_ATTEMPT: Sql = Sql::new(
    "INSERT INTO cascade_attempts (task, attempt) VALUES ($1, $2) \
     ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt",
    "INSERT INTO cascade_attempts (task, attempt) SELECT * FROM UNNEST($1::text[], $2::text[]) \
     ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt",
);

const INSERT_RUN: Sql = Sql::new(
    "INSERT INTO cascade_runs (cascade_id, task, attempt, run_id, push_by_digest, moved) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (cascade_id, task, attempt) DO NOTHING",
    "INSERT INTO cascade_runs (cascade_id, task, attempt, run_id, push_by_digest, moved) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[]) \
     ON CONFLICT (cascade_id, task, attempt) DO NOTHING",
);

const MARK_RUN_SEEN: Sql = Sql::new(
    "UPDATE cascade_runs SET seen = 1 WHERE cascade_id = $1 AND task = $2 AND attempt = $3",
    "UPDATE cascade_runs SET seen = 1 FROM UNNEST($1::bigint[], $2::text[], $3::bigint[]) AS n (cascade_id, task, attempt) \
     WHERE cascade_runs.cascade_id = n.cascade_id AND cascade_runs.task = n.task AND cascade_runs.attempt = n.attempt",
);

const UPSERT_IMAGE: Sql = Sql::new(
    "INSERT INTO cascade_images (cascade_id, name, task, run_id, before_digest, after_digest, state, changed_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (cascade_id, name) DO UPDATE SET task = excluded.task, \
     run_id = excluded.run_id, after_digest = excluded.after_digest, state = excluded.state, moving = 0, \
     changed_at = excluded.changed_at, error = NULL",
    "INSERT INTO cascade_images (cascade_id, name, task, run_id, before_digest, after_digest, state, changed_at) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
     $8::bigint[]) ON CONFLICT (cascade_id, name) DO UPDATE SET task = excluded.task, run_id = excluded.run_id, \
     after_digest = excluded.after_digest, state = excluded.state, moving = 0, changed_at = excluded.changed_at, \
     error = NULL",
);

impl Store {
    /// Writes a change that was computed from the version `expected`. Returns `false` and writes
    /// nothing if the current version differs.
    pub async fn change_cascades(
        &self,
        expected: i64,
        change: &CascadeChange,
        now: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.begin().await?;
        let won = tx
            .exec(
                "UPDATE cascade_state SET version = version + 1, next = $2, settings = COALESCE($3, settings) \
                 WHERE version = $1",
                args![expected, change.next, change.settings.clone()],
            )
            .await?;
        if won == 0 {
            return Ok(false);
        }
        write_state(&mut tx, change).await?;
        let seen: Vec<_> = change
            .seen
            .iter()
            .map(|(cascade, task, attempt)| args![*cascade, task, *attempt])
            .collect();
        if !seen.is_empty() {
            tx.exec_each(MARK_RUN_SEEN, seen).await?;
        }
        write_runs(&mut tx, change, now).await?;
        tx.commit().await?;
        Ok(true)
    }
}

async fn write_state(tx: &mut Tx, change: &CascadeChange) -> Result<()> {
    let cascades: Vec<_> = change
        .cascades
        .iter()
        .map(|row| {
            args![
                row.id,
                row.created_at,
                &row.phase,
                row.follows,
                &row.head,
                row.awaiting_approval,
                row.stages_images,
                row.finished_at,
                row.active
            ]
        })
        .collect();
    if !cascades.is_empty() {
        tx.exec_each(UPSERT_CASCADE, cascades).await?;
    }
    let nodes: Vec<_> = change
        .nodes
        .iter()
        .map(|row| args![row.cascade, &row.task, &row.state, &row.node])
        .collect();
    if !nodes.is_empty() {
        tx.exec_each(UPSERT_NODE, nodes).await?;
    }
    let mut put = Vec::new();
    let mut forgotten = Vec::new();
    for (task, attempt) in &change.attempts {
        match attempt {
            Some(attempt) => put.push(args![task, attempt]),
            None => forgotten.push(task.clone()),
        }
    }
    if !put.is_empty() {
        tx.exec_each(UPSERT_ATTEMPT, put).await?;
    }
    if !forgotten.is_empty() {
        let sql = one_of!("DELETE FROM cascade_attempts WHERE task", "$1", "");
        tx.exec(sql, args![forgotten]).await?;
    }
    Ok(())
}

/// Starts and cancels runs.
async fn write_runs(tx: &mut Tx, change: &CascadeChange, now: Ms) -> Result<()> {
    let mut stopping: Vec<(RunId, &str)> = Vec::new();
    for ((cascade, task, attempt), reason) in &change.cancels {
        let row: Option<(String,)> = tx
            .fetch_optional(
                "SELECT run_id FROM cascade_runs WHERE cascade_id = $1 AND task = $2 AND attempt = $3",
                args![*cascade, task, *attempt],
            )
            .await?;
        if let Some((run,)) = row {
            stopping.push((runs::parse_run_id(run)?, reason));
        }
    }
    let new: Vec<NewRun> = change.runs.iter().map(|start| start.run.clone()).collect();
    let ids: BTreeSet<&RunId> = stopping.iter().map(|(run, _)| run).collect();
    let mut groups = run_state::groups_of_runs(tx, &ids).await?;
    groups.extend(new.iter().filter_map(membership).map(|group| group.key));
    run_state::lock_groups(tx, groups).await?;
    if !stopping.is_empty() {
        let mut changes: Vec<Change> = run_state::lock_runs(tx, &ids)
            .await?
            .into_iter()
            .map(Change::new)
            .collect();
        for change in &mut changes {
            let why = stopping.iter().find(|(run, _)| *run == change.run.id);
            if let Some((_, reason)) = why {
                change.run.machine.cancel(reason, now);
            }
        }
        run_state::save_changes(tx, &changes, "canceled", now).await?;
    }
    if new.is_empty() {
        return Ok(());
    }
    run_state::lock_group_members(tx, enqueue::superseding_groups(&new)).await?;
    let started = enqueue::insert_runs(tx, &new, now).await?;
    let rows = change
        .runs
        .iter()
        .zip(started)
        .map(|(start, (run, _))| {
            let moved = to_json(&start.moved)?;
            Ok(args![
                start.cascade,
                &start.task,
                start.attempt,
                &run,
                start.push_by_digest,
                moved
            ])
        })
        .collect::<Result<_>>()?;
    tx.exec_each(INSERT_RUN, rows).await?;
    Ok(())
}

/// Node that a run belongs to.
#[derive(Debug)]
pub(crate) struct NodeKey {
    cascade: i64,
    task: String,
}

/// Returns the nodes of those runs that belong to cascades.
pub(crate) async fn nodes_of_runs(
    tx: &mut Tx,
    ids: Vec<String>,
) -> Result<HashMap<String, NodeKey>> {
    let sql = one_of!(
        "SELECT run_id, cascade_id, task FROM cascade_runs WHERE run_id",
        "$1",
        ""
    );
    let rows: Vec<(String, i64, String)> = tx.fetch_all(sql, args![ids]).await?;
    Ok(rows
        .into_iter()
        .map(|(run, cascade, task)| (run, NodeKey { cascade, task }))
        .collect())
}

/// Stores the images of a cascade's run by full name. Call it before the images themselves are
/// stored.
pub(crate) async fn record_pushed_images(
    tx: &mut Tx,
    node: &NodeKey,
    run: &RunId,
    images: &BTreeMap<String, &ImageResult>,
    now: Ms,
) -> Result<()> {
    let names: Vec<String> = images.keys().cloned().collect();
    let sql = one_of!("SELECT name, digest FROM images WHERE name", "$1", "");
    let before: Vec<(String, String)> = tx.fetch_all(sql, args![names]).await?;
    let before: HashMap<String, String> = before.into_iter().collect();
    let rows = images
        .iter()
        .map(|(name, image)| {
            args![
                node.cascade,
                name,
                &node.task,
                run,
                before.get(name).cloned(),
                image.digest.as_str(),
                if image.staged { "staged" } else { "promoted" },
                now
            ]
        })
        .collect();
    tx.exec_each(UPSERT_IMAGE, rows).await.map(drop)
}

/// Removes at most `limit` cascades that finished before `before`.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<()> {
    tx.exec(
        "DELETE FROM cascades WHERE id IN (SELECT id FROM cascades WHERE active = 0 AND finished_at < $1 \
         ORDER BY finished_at LIMIT $2)",
        args![before, limit],
    )
    .await
    .map(drop)
}
