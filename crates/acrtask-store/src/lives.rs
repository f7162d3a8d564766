//! Where runs stand, read and written: the only file that changes what the life of a run changes. Reading locks the
//! rows; writing is guarded by the state and attempt that were read, and does all that follows from a change: the rows of
//! attempts, and the next run of a group that has room.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Result, StoreError,
    db::{Sql, Tx, args, one_of},
    transitions::Life,
};

/// The columns of [`RawLife`].
macro_rules! life_columns {
    () => {
        "id, seq, order_key, class_id, warm_key, task_name, charged_to, group_name, timeout_secs, max_attempts, state, held, reason, attempt, losses, \
         runner_id, lease_until, accept_by, run_until, leased_at, started_at, finished_at, cancel_requested_at, cancel_reason, \
         log_length, log_sha256, result"
    };
}
pub(crate) use life_columns;

#[derive(Debug, FromRow)]
pub(crate) struct RawLife {
    id: String,
    seq: i64,
    order_key: i64,
    class_id: i64,
    warm_key: String,
    task_name: Option<String>,
    charged_to: Option<String>,
    group_name: Option<String>,
    timeout_secs: Option<i64>,
    max_attempts: i64,
    state: String,
    held: i64,
    reason: Option<String>,
    attempt: i64,
    losses: i64,
    runner_id: Option<String>,
    lease_until: Option<i64>,
    accept_by: Option<i64>,
    run_until: Option<i64>,
    leased_at: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    cancel_reason: Option<String>,
    log_length: i64,
    log_sha256: Option<String>,
    result: Option<String>,
}

/// A run, as far as its life needs it.
#[derive(Debug, Clone)]
pub(crate) struct Living {
    pub(crate) id: RunId,
    pub(crate) seq: i64,
    pub(crate) order_key: i64,
    pub(crate) class: i64,
    pub(crate) warm_key: String,
    /// The name of its task.
    pub(crate) task: Option<String>,
    /// Whose quotas it counts against beside those of its task.
    pub(crate) charged_to: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) life: Life,
}

impl TryFrom<RawLife> for Living {
    type Error = StoreError;

    fn try_from(raw: RawLife) -> Result<Self> {
        let id = RunId::new(raw.id).map_err(StoreError::corrupt)?;
        let state = state(&raw.state)?;
        Ok(Self {
            id,
            seq: raw.seq,
            order_key: raw.order_key,
            class: raw.class_id,
            warm_key: raw.warm_key,
            task: raw.task_name,
            charged_to: raw.charged_to,
            group: raw.group_name,
            life: Life {
                state,
                held: raw.held != 0,
                reason: raw.reason,
                attempt: small(raw.attempt)?,
                losses: small(raw.losses)?,
                max_attempts: small(raw.max_attempts)?,
                timeout_ms: raw.timeout_secs.map(|secs| secs.saturating_mul(1000)),
                runner_id: raw.runner_id,
                lease_until: raw.lease_until,
                accept_by: raw.accept_by,
                run_until: raw.run_until,
                leased_at: raw.leased_at,
                started_at: raw.started_at,
                finished_at: raw.finished_at,
                cancel_requested_at: raw.cancel_requested_at,
                cancel_reason: raw.cancel_reason,
                log_length: size(raw.log_length)?,
                log_sha256: raw.log_sha256,
                result: raw.result,
            },
        })
    }
}

pub(crate) fn state(text: &str) -> Result<RunState> {
    RunState::parse(text)
        .ok_or_else(|| StoreError::corrupt(format_args!("a run cannot be `{text}`")))
}

pub(crate) fn small(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(StoreError::corrupt)
}

pub(crate) fn size(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(StoreError::corrupt)
}

/// The runs with these ids that there are, locked until the end of the transaction.
pub(crate) async fn lock_runs(tx: &mut Tx, ids: &BTreeSet<&RunId>) -> Result<Vec<Living>> {
    let ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    let sql = one_of!(
        concat!("SELECT ", life_columns!(), " FROM runs WHERE id"),
        "$1",
        " ORDER BY id",
        lock "FOR UPDATE"
    );
    let rows: Vec<RawLife> = tx.rows(sql, args![ids]).await?;
    rows.into_iter().map(Living::try_from).collect()
}

/// Waits until no other transaction decides who of these groups may run. Taken before rows are locked.
pub(crate) async fn lock_groups(tx: &mut Tx, groups: BTreeSet<String>) -> Result<()> {
    if tx.is_postgres() && !groups.is_empty() {
        let groups: Vec<String> = groups.into_iter().collect();
        tx.exec(
            "SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM UNNEST($1::text[]) AS name",
            args![groups],
        )
        .await?;
    }
    Ok(())
}

/// The groups of these runs.
pub(crate) async fn groups_of(tx: &mut Tx, ids: &BTreeSet<&RunId>) -> Result<BTreeSet<String>> {
    let ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    let sql = one_of!(
        "SELECT DISTINCT group_name FROM runs WHERE group_name IS NOT NULL AND id",
        "$1",
        ""
    );
    let rows: Vec<(String,)> = tx.rows(sql, args![ids]).await?;
    Ok(rows.into_iter().map(|(name,)| name).collect())
}

/// Locks the runs of these groups that are not final, all of them in one order: whoever waits for a run holds only runs
/// before it, so that no two wait for each other.
pub(crate) async fn lock_members(tx: &mut Tx, groups: BTreeSet<String>) -> Result<()> {
    if tx.is_postgres() && !groups.is_empty() {
        let groups: Vec<String> = groups.into_iter().collect();
        tx.exec(
            "SELECT id FROM runs WHERE group_name = ANY($1) AND state IN ('queued', 'leased', 'running') \
             ORDER BY id FOR UPDATE",
            args![groups],
        )
        .await?;
    }
    Ok(())
}

/// The runs of a group that are not final; they are locked.
pub(crate) async fn members(tx: &mut Tx, group: &str) -> Result<Vec<Living>> {
    let sql = concat!(
        "SELECT ",
        life_columns!(),
        " FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') ORDER BY id"
    );
    let rows: Vec<RawLife> = tx.rows(sql, args![group]).await?;
    rows.into_iter().map(Living::try_from).collect()
}

/// A run before and after.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) run: Living,
    pub(crate) before: Life,
}

impl Change {
    pub(crate) fn of(run: Living) -> Self {
        Self {
            before: run.life.clone(),
            run,
        }
    }

    fn is_change(&self) -> bool {
        self.before != self.run.life
    }
}

const UPDATE: Sql = Sql::of(
    "UPDATE runs SET state = $4, held = $5, reason = $6, attempt = $7, losses = $8, runner_id = $9, lease_until = $10, \
     accept_by = $11, run_until = $12, deadline = $13, leased_at = $14, started_at = $15, finished_at = $16, \
     cancel_requested_at = $17, cancel_reason = $18, log_length = $19, log_sha256 = $20, result = $21 \
     WHERE id = $1 AND state = $2 AND attempt = $3",
    "UPDATE runs SET state = n.state, held = n.held, reason = n.reason, attempt = n.attempt, losses = n.losses, \
     runner_id = n.runner_id, lease_until = n.lease_until, accept_by = n.accept_by, run_until = n.run_until, \
     deadline = n.deadline, leased_at = n.leased_at, started_at = n.started_at, finished_at = n.finished_at, \
     cancel_requested_at = n.cancel_requested_at, cancel_reason = n.cancel_reason, log_length = n.log_length, \
     log_sha256 = n.log_sha256, result = n.result \
     FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::bigint[], \
     $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], \
     $17::bigint[], $18::text[], $19::bigint[], $20::text[], $21::text[]) \
     AS n (id, was_state, was_attempt, state, held, reason, attempt, losses, runner_id, lease_until, accept_by, run_until, \
     deadline, leased_at, started_at, finished_at, cancel_requested_at, cancel_reason, log_length, log_sha256, result) \
     WHERE runs.id = n.id AND runs.state = n.was_state AND runs.attempt = n.was_attempt",
);

const BEGIN_ATTEMPT: Sql = Sql::of(
    "INSERT INTO attempts (run_id, attempt, runner_id, leased_at) VALUES ($1, $2, $3, $4)",
    "INSERT INTO attempts (run_id, attempt, runner_id, leased_at) \
     SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::text[], $4::bigint[])",
);

const CHANGE_ATTEMPT: Sql = Sql::of(
    "UPDATE attempts SET started_at = COALESCE($3, started_at), ended_at = $4, outcome = $5, log_length = $6, \
     log_sha256 = $7 WHERE run_id = $1 AND attempt = $2",
    "UPDATE attempts SET started_at = COALESCE(n.started_at, attempts.started_at), ended_at = n.ended_at, \
     outcome = n.outcome, log_length = n.log_length, log_sha256 = n.log_sha256 \
     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::text[]) \
     AS n (run_id, attempt, started_at, ended_at, outcome, log_length, log_sha256) \
     WHERE attempts.run_id = n.run_id AND attempts.attempt = n.attempt",
);

/// Writes what has changed, and all that follows from it. `requeued` is what an attempt came to whose run is queued
/// again. The groups of the runs must be locked where a change may free a place.
pub(crate) async fn save(
    tx: &mut Tx,
    changes: &[Change],
    requeued: &str,
    now: crate::Ms,
) -> Result<()> {
    let changes: Vec<&Change> = changes.iter().filter(|change| change.is_change()).collect();
    if changes.is_empty() {
        return Ok(());
    }
    let expected = changes.len() as u64;
    let rows = changes.iter().map(|change| row(change)).collect();
    if tx.each(UPDATE, rows).await? != expected {
        return Err(StoreError::conflict("a run was changed meanwhile"));
    }
    let begun: Vec<_> = changes
        .iter()
        .filter(|change| change.run.life.attempt > change.before.attempt)
        .map(|Change { run, .. }| {
            args![
                &run.id,
                run.life.attempt,
                run.life.runner_id.clone(),
                run.life.leased_at
            ]
        })
        .collect();
    if !begun.is_empty() {
        tx.each(BEGIN_ATTEMPT, begun).await?;
    }
    let changed: Vec<_> = changes
        .iter()
        .filter_map(|change| attempt_row(change, requeued, now))
        .collect();
    if !changed.is_empty() {
        tx.each(CHANGE_ATTEMPT, changed).await?;
    }
    let freed: BTreeSet<&str> = changes
        .iter()
        .filter(|change| change.before.takes_place() && !change.run.life.takes_place())
        .filter_map(|change| change.run.group.as_deref())
        .collect();
    for group in freed {
        release(tx, group).await?;
    }
    Ok(())
}

fn row(change: &Change) -> Vec<crate::db::Arg> {
    let Change { run, before } = change;
    let life = run.life.clone();
    args![
        &run.id,
        before.state.as_str(),
        before.attempt,
        life.state.as_str(),
        life.held,
        life.reason.clone(),
        life.attempt,
        life.losses,
        life.runner_id.clone(),
        life.lease_until,
        life.accept_by,
        life.run_until,
        life.deadline(),
        life.leased_at,
        life.started_at,
        life.finished_at,
        life.cancel_requested_at,
        life.cancel_reason.clone(),
        life.log_length,
        life.log_sha256.clone(),
        life.result.clone(),
    ]
}

fn attempt_row(change: &Change, requeued: &str, now: crate::Ms) -> Option<Vec<crate::db::Arg>> {
    let Change { run, before } = change;
    let life = &run.life;
    let started = life.started_at.filter(|at| before.started_at != Some(*at));
    let ended = before.is_leased() && !life.is_leased();
    if started.is_none() && !ended {
        return None;
    }
    let outcome = ended.then(|| {
        if life.state.is_final() {
            life.state.as_str()
        } else {
            requeued
        }
    });
    Some(args![
        &run.id,
        life.attempt,
        started,
        ended.then_some(now),
        outcome,
        life.log_length,
        life.log_sha256.clone(),
    ])
}

#[derive(Debug, FromRow)]
struct Next {
    id: String,
    group_max: i64,
}

/// Lets held runs of a group go as long as there is room, but none that waits for its approval. Says how many. The group
/// is locked.
pub(crate) async fn release(tx: &mut Tx, group: &str) -> Result<u64> {
    let count: Option<(i64,)> = tx
        .row(
            "SELECT COUNT(*) FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') AND held = 0",
            args![group],
        )
        .await?;
    let taken = count.map_or(0, |(count,)| count);
    let mut released = 0;
    loop {
        let next: Option<Next> = tx
            .row(
                "SELECT id, group_max FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') \
                 AND held = 1 AND (approval IS NULL OR approval <> 'pending') ORDER BY order_key, seq LIMIT 1",
                args![group],
            )
            .await?;
        match next {
            Some(next) if taken + released < next.group_max => {
                released += i64::try_from(
                    tx.exec(
                        "UPDATE runs SET held = 0 WHERE id = $1 AND state = 'queued' AND held = 1",
                        args![next.id],
                    )
                    .await?,
                )
                .unwrap_or(0);
            }
            _ => return size(released),
        }
    }
}

/// By id, for those who find runs again.
pub(crate) fn by_id(runs: Vec<Living>) -> BTreeMap<RunId, Change> {
    runs.into_iter()
        .map(|run| (run.id.clone(), Change::of(run)))
        .collect()
}
