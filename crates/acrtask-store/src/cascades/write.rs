//! Changes of cascades, and what their runs pushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::ImageResult;
use acrtask_model::RunId;

use super::rows::CascadeChange;
use crate::{
    Ms, NewRun, Result, Store,
    db::{Sql, Tx, args, one_of},
    enqueue,
    groups::membership,
    lives::{self, Change},
    runs, to_json,
};

const PUT_CASCADE: Sql = Sql::of(
    "INSERT INTO cascades (id, created_at, phase, follows, head, waits, holds, over_at, active) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, \
     follows = excluded.follows, head = excluded.head, waits = excluded.waits, holds = excluded.holds, \
     over_at = excluded.over_at, active = excluded.active",
    "INSERT INTO cascades (id, created_at, phase, follows, head, waits, holds, over_at, active) \
     SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], \
     $8::bigint[], $9::bigint[]) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, follows = excluded.follows, \
     head = excluded.head, waits = excluded.waits, holds = excluded.holds, over_at = excluded.over_at, \
     active = excluded.active",
);

const PUT_NODE: Sql = Sql::of(
    "INSERT INTO cascade_nodes (cascade_id, task, state, node) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (cascade_id, task) DO UPDATE SET state = excluded.state, node = excluded.node",
    "INSERT INTO cascade_nodes (cascade_id, task, state, node) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[]) \
     ON CONFLICT (cascade_id, task) DO UPDATE SET state = excluded.state, node = excluded.node",
);

const PUT_ATTEMPT: Sql = Sql::of(
    "INSERT INTO cascade_attempts (task, attempt) VALUES ($1, $2) \
     ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt",
    "INSERT INTO cascade_attempts (task, attempt) SELECT * FROM UNNEST($1::text[], $2::text[]) \
     ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt",
);

const PUT_RUN: Sql = Sql::of(
    "INSERT INTO cascade_runs (cascade_id, task, attempt, run_id, held, moved) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (cascade_id, task, attempt) DO NOTHING",
    "INSERT INTO cascade_runs (cascade_id, task, attempt, run_id, held, moved) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[]) \
     ON CONFLICT (cascade_id, task, attempt) DO NOTHING",
);

const SEE_RUN: Sql = Sql::of(
    "UPDATE cascade_runs SET seen = 1 WHERE cascade_id = $1 AND task = $2 AND attempt = $3",
    "UPDATE cascade_runs SET seen = 1 FROM UNNEST($1::bigint[], $2::text[], $3::bigint[]) AS n (cascade_id, task, attempt) \
     WHERE cascade_runs.cascade_id = n.cascade_id AND cascade_runs.task = n.task AND cascade_runs.attempt = n.attempt",
);

const PUT_IMAGE: Sql = Sql::of(
    "INSERT INTO cascade_images (cascade_id, name, task, run_id, before_digest, after_digest, state, at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (cascade_id, name) DO UPDATE SET task = excluded.task, \
     run_id = excluded.run_id, after_digest = excluded.after_digest, state = excluded.state, moving = 0, \
     at = excluded.at, error = NULL",
    "INSERT INTO cascade_images (cascade_id, name, task, run_id, before_digest, after_digest, state, at) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
     $8::bigint[]) ON CONFLICT (cascade_id, name) DO UPDATE SET task = excluded.task, run_id = excluded.run_id, \
     after_digest = excluded.after_digest, state = excluded.state, moving = 0, at = excluded.at, \
     error = NULL",
);

impl Store {
    /// Writes a change that was made from the version `expected`. False: another version is there, and nothing was written.
    pub async fn change_cascades(
        &self,
        expected: i64,
        change: &CascadeChange,
        now: Ms,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
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
            tx.each(SEE_RUN, seen).await?;
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
                row.waits,
                row.holds,
                row.over_at,
                row.active
            ]
        })
        .collect();
    if !cascades.is_empty() {
        tx.each(PUT_CASCADE, cascades).await?;
    }
    let nodes: Vec<_> = change
        .nodes
        .iter()
        .map(|row| args![row.cascade, &row.task, &row.state, &row.node])
        .collect();
    if !nodes.is_empty() {
        tx.each(PUT_NODE, nodes).await?;
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
        tx.each(PUT_ATTEMPT, put).await?;
    }
    if !forgotten.is_empty() {
        let sql = one_of!("DELETE FROM cascade_attempts WHERE task", "$1", "");
        tx.exec(sql, args![forgotten]).await?;
    }
    Ok(())
}

/// Starts and stops runs.
async fn write_runs(tx: &mut Tx, change: &CascadeChange, now: Ms) -> Result<()> {
    let mut stopping: Vec<(RunId, &str)> = Vec::new();
    for ((cascade, task, attempt), reason) in &change.cancels {
        let row: Option<(String,)> = tx
            .row(
                "SELECT run_id FROM cascade_runs WHERE cascade_id = $1 AND task = $2 AND attempt = $3",
                args![*cascade, task, *attempt],
            )
            .await?;
        if let Some((run,)) = row {
            stopping.push((runs::id(run)?, reason));
        }
    }
    let new: Vec<NewRun> = change.runs.iter().map(|start| start.run.clone()).collect();
    let ids: BTreeSet<&RunId> = stopping.iter().map(|(run, _)| run).collect();
    let mut groups = lives::groups_of(tx, &ids).await?;
    groups.extend(new.iter().filter_map(membership).map(|group| group.key));
    lives::lock_groups(tx, groups).await?;
    if !stopping.is_empty() {
        let mut changes: Vec<Change> = lives::lock_runs(tx, &ids)
            .await?
            .into_iter()
            .map(Change::of)
            .collect();
        for change in &mut changes {
            let why = stopping.iter().find(|(run, _)| *run == change.run.id);
            if let Some((_, reason)) = why {
                change.run.life.cancel(reason, now);
            }
        }
        lives::save(tx, &changes, "canceled", now).await?;
    }
    if new.is_empty() {
        return Ok(());
    }
    lives::lock_members(tx, enqueue::superseding(&new)).await?;
    let started = enqueue::insert(tx, &new, now).await?;
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
                start.held,
                moved
            ])
        })
        .collect::<Result<_>>()?;
    tx.each(PUT_RUN, rows).await?;
    Ok(())
}

/// The cascade of a run.
#[derive(Debug)]
pub(crate) struct Of {
    cascade: i64,
    task: String,
}

/// Which of these runs are those of cascades.
pub(crate) async fn of_runs(tx: &mut Tx, ids: Vec<String>) -> Result<HashMap<String, Of>> {
    let sql = one_of!(
        "SELECT run_id, cascade_id, task FROM cascade_runs WHERE run_id",
        "$1",
        ""
    );
    let rows: Vec<(String, i64, String)> = tx.rows(sql, args![ids]).await?;
    Ok(rows
        .into_iter()
        .map(|(run, cascade, task)| (run, Of { cascade, task }))
        .collect())
}

/// Writes down what a cascade's run pushed, by full name, before its images are recorded.
pub(crate) async fn pushed(
    tx: &mut Tx,
    of: &Of,
    run: &RunId,
    images: &BTreeMap<String, &ImageResult>,
    now: Ms,
) -> Result<()> {
    let names: Vec<String> = images.keys().cloned().collect();
    let sql = one_of!("SELECT name, digest FROM images WHERE name", "$1", "");
    let before: Vec<(String, String)> = tx.rows(sql, args![names]).await?;
    let before: HashMap<String, String> = before.into_iter().collect();
    let rows = images
        .iter()
        .map(|(name, image)| {
            args![
                of.cascade,
                name,
                &of.task,
                run,
                before.get(name).cloned(),
                image.digest.as_str(),
                if image.held { "held" } else { "moved" },
                now
            ]
        })
        .collect();
    tx.each(PUT_IMAGE, rows).await.map(drop)
}

/// Removes what has been over since before `before`, at most `limit` cascades.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<()> {
    tx.exec(
        "DELETE FROM cascades WHERE id IN (SELECT id FROM cascades WHERE active = 0 AND over_at < $1 \
         ORDER BY over_at LIMIT $2)",
        args![before, limit],
    )
    .await
    .map(drop)
}
