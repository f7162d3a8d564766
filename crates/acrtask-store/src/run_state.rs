//! Reads and writes the states of runs. Only this module changes the state columns of `runs`.
//!
//! Reading locks the rows. Writing is guarded by the state and attempt that were read. It also
//! writes the consequences of a change: the rows of attempts, and the next run of a group with a
//! free slot.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Result, StoreError,
    db::{Sql, Tx, args, one_of},
    transitions::RunStateMachine,
};

/// Returns the columns of [`RawRunState`].
macro_rules! run_state_columns {
    () => {
        "id, seq, queue_rank, requirement_id, affinity_key, task_name, charged_to, group_name, timeout_secs, max_attempts, state, blocked, reason, attempt, lost_attempts, \
         runner_id, lease_until, accept_by, run_until, leased_at, started_at, finished_at, cancel_requested_at, cancel_reason, \
         log_length, log_sha256, result"
    };
}
pub(crate) use run_state_columns;

#[derive(Debug, FromRow)]
pub(crate) struct RawRunState {
    id: String,
    seq: i64,
    queue_rank: i64,
    requirement_id: i64,
    affinity_key: String,
    task_name: Option<String>,
    charged_to: Option<String>,
    group_name: Option<String>,
    timeout_secs: Option<i64>,
    max_attempts: i64,
    state: String,
    blocked: i64,
    reason: Option<String>,
    attempt: i64,
    lost_attempts: i64,
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

/// A run that is locked until the end of the transaction, with its state machine.
#[derive(Debug, Clone)]
pub(crate) struct LockedRun {
    pub(crate) id: RunId,
    pub(crate) seq: i64,
    pub(crate) queue_rank: i64,
    pub(crate) requirement_id: i64,
    pub(crate) affinity_key: String,
    /// Name of the task.
    pub(crate) task: Option<String>,
    /// Principal whose quotas the run counts against, in addition to those of its task.
    pub(crate) charged_to: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) machine: RunStateMachine,
}

impl TryFrom<RawRunState> for LockedRun {
    type Error = StoreError;

    fn try_from(raw: RawRunState) -> Result<Self> {
        let id = RunId::new(raw.id).map_err(StoreError::corrupt)?;
        let state = parse_state(&raw.state)?;
        Ok(Self {
            id,
            seq: raw.seq,
            queue_rank: raw.queue_rank,
            requirement_id: raw.requirement_id,
            affinity_key: raw.affinity_key,
            task: raw.task_name,
            charged_to: raw.charged_to,
            group: raw.group_name,
            machine: RunStateMachine {
                state,
                blocked: raw.blocked != 0,
                reason: raw.reason,
                attempt: to_u32(raw.attempt)?,
                lost_attempts: to_u32(raw.lost_attempts)?,
                max_attempts: to_u32(raw.max_attempts)?,
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
                log_length: to_u64(raw.log_length)?,
                log_sha256: raw.log_sha256,
                result: raw.result,
            },
        })
    }
}

pub(crate) fn parse_state(text: &str) -> Result<RunState> {
    RunState::parse(text)
        .ok_or_else(|| StoreError::corrupt(format_args!("a run cannot be `{text}`")))
}

pub(crate) fn to_u32(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(StoreError::corrupt)
}

pub(crate) fn to_u64(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(StoreError::corrupt)
}

/// Returns the existing runs with these ids, locked until the end of the transaction.
pub(crate) async fn lock_runs(tx: &mut Tx, ids: &BTreeSet<&RunId>) -> Result<Vec<LockedRun>> {
    let ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    let sql = one_of!(
        concat!("SELECT ", run_state_columns!(), " FROM runs WHERE id"),
        "$1",
        " ORDER BY id",
        lock "FOR UPDATE"
    );
    let rows: Vec<RawRunState> = tx.fetch_all(sql, args![ids]).await?;
    rows.into_iter().map(LockedRun::try_from).collect()
}

/// Waits until no other transaction assigns slots of these groups. Call it before rows are locked.
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

/// Returns the concurrency groups of these runs.
pub(crate) async fn groups_of_runs(
    tx: &mut Tx,
    ids: &BTreeSet<&RunId>,
) -> Result<BTreeSet<String>> {
    let ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    let sql = one_of!(
        "SELECT DISTINCT group_name FROM runs WHERE group_name IS NOT NULL AND id",
        "$1",
        ""
    );
    let rows: Vec<(String,)> = tx.fetch_all(sql, args![ids]).await?;
    Ok(rows.into_iter().map(|(name,)| name).collect())
}

/// Locks the runs of these groups that are not final, in one order. A transaction that waits for a
/// run has locked only earlier runs, so that no two wait for each other.
pub(crate) async fn lock_group_members(tx: &mut Tx, groups: BTreeSet<String>) -> Result<()> {
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

/// Returns the runs of a group that are not final. The caller has locked them.
pub(crate) async fn live_group_members(tx: &mut Tx, group: &str) -> Result<Vec<LockedRun>> {
    let sql = concat!(
        "SELECT ",
        run_state_columns!(),
        " FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') ORDER BY id"
    );
    let rows: Vec<RawRunState> = tx.fetch_all(sql, args![group]).await?;
    rows.into_iter().map(LockedRun::try_from).collect()
}

/// A run, and its state before the change.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) run: LockedRun,
    pub(crate) before: RunStateMachine,
}

impl Change {
    pub(crate) fn new(run: LockedRun) -> Self {
        Self {
            before: run.machine.clone(),
            run,
        }
    }

    fn is_change(&self) -> bool {
        self.before != self.run.machine
    }
}

const UPDATE: Sql = Sql::new(
    "UPDATE runs SET state = $4, blocked = $5, reason = $6, attempt = $7, lost_attempts = $8, runner_id = $9, lease_until = $10, \
     accept_by = $11, run_until = $12, deadline = $13, leased_at = $14, started_at = $15, finished_at = $16, \
     cancel_requested_at = $17, cancel_reason = $18, log_length = $19, log_sha256 = $20, result = $21 \
     WHERE id = $1 AND state = $2 AND attempt = $3",
    "UPDATE runs SET state = n.state, blocked = n.blocked, reason = n.reason, attempt = n.attempt, lost_attempts = n.lost_attempts, \
     runner_id = n.runner_id, lease_until = n.lease_until, accept_by = n.accept_by, run_until = n.run_until, \
     deadline = n.deadline, leased_at = n.leased_at, started_at = n.started_at, finished_at = n.finished_at, \
     cancel_requested_at = n.cancel_requested_at, cancel_reason = n.cancel_reason, log_length = n.log_length, \
     log_sha256 = n.log_sha256, result = n.result \
     FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::bigint[], \
     $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], \
     $17::bigint[], $18::text[], $19::bigint[], $20::text[], $21::text[]) \
     AS n (id, was_state, was_attempt, state, blocked, reason, attempt, lost_attempts, runner_id, lease_until, accept_by, run_until, \
     deadline, leased_at, started_at, finished_at, cancel_requested_at, cancel_reason, log_length, log_sha256, result) \
     WHERE runs.id = n.id AND runs.state = n.was_state AND runs.attempt = n.was_attempt",
);

const BEGIN_ATTEMPT: Sql = Sql::new(
    "INSERT INTO attempts (run_id, attempt, runner_id, leased_at) VALUES ($1, $2, $3, $4)",
    "INSERT INTO attempts (run_id, attempt, runner_id, leased_at) \
     SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::text[], $4::bigint[])",
);

const CHANGE_ATTEMPT: Sql = Sql::new(
    "UPDATE attempts SET started_at = COALESCE($3, started_at), ended_at = $4, outcome = $5, log_length = $6, \
     log_sha256 = $7 WHERE run_id = $1 AND attempt = $2",
    "UPDATE attempts SET started_at = COALESCE(n.started_at, attempts.started_at), ended_at = n.ended_at, \
     outcome = n.outcome, log_length = n.log_length, log_sha256 = n.log_sha256 \
     FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::text[]) \
     AS n (run_id, attempt, started_at, ended_at, outcome, log_length, log_sha256) \
     WHERE attempts.run_id = n.run_id AND attempts.attempt = n.attempt",
);

/// Writes the changes and their consequences. `requeued` is the outcome of an attempt whose run is
/// queued again. The caller has locked the groups of all runs whose change may free a slot.
pub(crate) async fn save_changes(
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
    let rows = changes.iter().map(|change| update_args(change)).collect();
    if tx.exec_each(UPDATE, rows).await? != expected {
        return Err(StoreError::conflict("a run was changed meanwhile"));
    }
    let begun: Vec<_> = changes
        .iter()
        .filter(|change| change.run.machine.attempt > change.before.attempt)
        .map(|Change { run, .. }| {
            args![
                &run.id,
                run.machine.attempt,
                run.machine.runner_id.clone(),
                run.machine.leased_at
            ]
        })
        .collect();
    if !begun.is_empty() {
        tx.exec_each(BEGIN_ATTEMPT, begun).await?;
    }
    let changed: Vec<_> = changes
        .iter()
        .filter_map(|change| attempt_args(change, requeued, now))
        .collect();
    if !changed.is_empty() {
        tx.exec_each(CHANGE_ATTEMPT, changed).await?;
    }
    let freed: BTreeSet<&str> = changes
        .iter()
        .filter(|change| {
            change.before.occupies_group_slot() && !change.run.machine.occupies_group_slot()
        })
        .filter_map(|change| change.run.group.as_deref())
        .collect();
    for group in freed {
        release_blocked(tx, group).await?;
    }
    Ok(())
}

fn update_args(change: &Change) -> Vec<crate::db::Arg> {
    let Change { run, before } = change;
    let machine = run.machine.clone();
    args![
        &run.id,
        before.state.as_str(),
        before.attempt,
        machine.state.as_str(),
        machine.blocked,
        machine.reason.clone(),
        machine.attempt,
        machine.lost_attempts,
        machine.runner_id.clone(),
        machine.lease_until,
        machine.accept_by,
        machine.run_until,
        machine.deadline(),
        machine.leased_at,
        machine.started_at,
        machine.finished_at,
        machine.cancel_requested_at,
        machine.cancel_reason.clone(),
        machine.log_length,
        machine.log_sha256.clone(),
        machine.result.clone(),
    ]
}

fn attempt_args(change: &Change, requeued: &str, now: crate::Ms) -> Option<Vec<crate::db::Arg>> {
    let Change { run, before } = change;
    let machine = &run.machine;
    let started = machine
        .started_at
        .filter(|at| before.started_at != Some(*at));
    let ended = before.is_leased() && !machine.is_leased();
    if started.is_none() && !ended {
        return None;
    }
    let outcome = ended.then(|| {
        if machine.state.is_final() {
            machine.state.as_str()
        } else {
            requeued
        }
    });
    Some(args![
        &run.id,
        machine.attempt,
        started,
        ended.then_some(now),
        outcome,
        machine.log_length,
        machine.log_sha256.clone(),
    ])
}

#[derive(Debug, FromRow)]
struct BlockedRun {
    id: String,
    group_max: i64,
}

/// Unblocks runs of a group while it has free slots, except those that wait for an approval.
/// Returns their number. The caller has locked the group.
pub(crate) async fn release_blocked(tx: &mut Tx, group: &str) -> Result<u64> {
    let count: Option<(i64,)> = tx
        .fetch_optional(
            "SELECT COUNT(*) FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') AND blocked = 0",
            args![group],
        )
        .await?;
    let taken = count.map_or(0, |(count,)| count);
    let mut released = 0;
    loop {
        let next: Option<BlockedRun> = tx
            .fetch_optional(
                "SELECT id, group_max FROM runs WHERE group_name = $1 AND state IN ('queued', 'leased', 'running') \
                 AND blocked = 1 AND (approval IS NULL OR approval <> 'pending') ORDER BY queue_rank, seq LIMIT 1",
                args![group],
            )
            .await?;
        match next {
            Some(next) if taken + released < next.group_max => {
                released += i64::try_from(
                    tx.exec(
                        "UPDATE runs SET blocked = 0 WHERE id = $1 AND state = 'queued' AND blocked = 1",
                        args![next.id],
                    )
                    .await?,
                )
                .unwrap_or(0);
            }
            _ => return to_u64(released),
        }
    }
}

/// Wraps runs in [`Change`]s, indexed by id.
pub(crate) fn changes_by_id(runs: Vec<LockedRun>) -> BTreeMap<RunId, Change> {
    runs.into_iter()
        .map(|run| (run.id.clone(), Change::new(run)))
        .collect()
}
