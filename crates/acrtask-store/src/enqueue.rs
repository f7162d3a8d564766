//! Adds runs: trigger, run and concurrency group in one transaction. Also audits triggers that led
//! neither to a run nor to a reason.

use std::collections::{BTreeSet, HashMap};

use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    DEFAULT_POOL, Ms, NewRun, PRIORITY_MS, Result, RunRow, Store, StoreError,
    db::{Arg, Sql, Tx, args, one_of},
    groups::membership,
    quotas::Admission,
    run_state::{self, Change},
    runs, to_json,
};

/// Result of a request for a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Enqueued {
    /// The request created the run.
    New(RunRow),
    /// An earlier request with the same idempotency key created the run.
    Existing(RunRow),
}

impl Enqueued {
    /// Returns the run.
    pub fn row(&self) -> &RunRow {
        match self {
            Self::New(row) | Self::Existing(row) => row,
        }
    }

    /// Returns the run.
    pub fn into_row(self) -> RunRow {
        match self {
            Self::New(row) | Self::Existing(row) => row,
        }
    }
}

/// An accepted trigger whose result is missing or overdue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnaccountedTrigger {
    /// Id of the trigger.
    pub trigger: String,
    /// Run of the trigger, if it names one.
    pub run: Option<RunId>,
    /// Description of the problem, in one sentence.
    pub why: String,
}

const INSERT_TRIGGER: Sql = Sql::new(
    "INSERT INTO triggers (id, kind, task, received_at, idempotency_key, run_id, delivery_id, place, detail) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (idempotency_key) DO NOTHING",
    "INSERT INTO triggers (id, kind, task, received_at, idempotency_key, run_id, delivery_id, place, detail) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::bigint[], \
     $9::text[]) ON CONFLICT (idempotency_key) DO NOTHING",
);

const INSERT_RUN: Sql = Sql::new(
    "INSERT INTO runs (id, task_id, task_name, spec, queue, requirement_id, context_id, secrets, started_by, requested_by, rerun_of, \
     timeout_secs, traceparent, affinity_key, max_attempts, group_name, group_max, queue_rank, created_at, blocked, ref_key, commit_id, \
     approval, notify, trust_domain, charged_to, pending_variables) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)",
    "INSERT INTO runs (id, task_id, task_name, spec, queue, requirement_id, context_id, secrets, started_by, requested_by, rerun_of, \
     timeout_secs, traceparent, affinity_key, max_attempts, group_name, group_max, queue_rank, created_at, blocked, ref_key, commit_id, \
     approval, notify, trust_domain, charged_to, pending_variables) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::bytea[], \
     $9::text[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::text[], $15::bigint[], $16::text[], \
     $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[], $21::text[], $22::text[], $23::text[], $24::bigint[], $25::text[], $26::text[], $27::text[])",
);

/// Returns the runner requirement: pool, platform, and labels as JSON.
fn requirement_key(new: &NewRun) -> Result<(String, String, String)> {
    Ok((
        new.queue
            .pool
            .clone()
            .unwrap_or_else(|| DEFAULT_POOL.into()),
        new.platform.clone(),
        to_json(&new.queue.labels)?,
    ))
}

async fn find_or_insert_requirement(
    tx: &mut Tx,
    (pool, platform, labels): &(String, String, String),
) -> Result<i64> {
    for _ in 0..2 {
        let found: Option<(i64,)> = tx
            .fetch_optional(
                "SELECT id FROM runner_requirements WHERE pool = $1 AND platform = $2 AND labels = $3",
                args![pool, platform, labels],
            )
            .await?;
        if let Some((id,)) = found {
            return Ok(id);
        }
        // Another server may have inserted the row meanwhile.
        tx.exec(
            "INSERT INTO runner_requirements (pool, platform, labels) VALUES ($1, $2, $3) ON CONFLICT (pool, platform, labels) DO NOTHING",
            args![pool, platform, labels],
        )
        .await?;
    }
    Err(StoreError::corrupt(
        "a runner requirement that was just inserted is missing",
    ))
}

fn trigger_args(new: &NewRun, now: Ms) -> Vec<Arg> {
    args![
        &new.id,
        new.trigger.as_str(),
        new.task_name.as_deref(),
        now,
        new.idempotency_key.as_deref(),
        &new.id,
        new.origin.delivery.as_ref().map(|(id, _)| id.as_str()),
        new.origin.delivery.as_ref().map(|(_, place)| *place),
        new.origin.reason.as_deref(),
    ]
}

fn run_args(new: &NewRun, requirement_id: i64, now: Ms) -> Result<Vec<Arg>> {
    let group = membership(new);
    let origin = &new.origin;
    let head_start = i64::from(new.queue.priority) * PRIORITY_MS;
    let pending_variables = match origin.needs_approval {
        true => Some(to_json(&new.spec.variables)?),
        false => None,
    };
    Ok(args![
        &new.id,
        new.task_id.as_deref(),
        new.task_name.as_deref(),
        to_json(&new.spec)?,
        to_json(&new.queue)?,
        requirement_id,
        new.context_id.as_deref(),
        new.secrets.clone(),
        new.trigger.as_str(),
        new.requested_by.as_deref(),
        new.rerun_of.as_ref().map(RunId::as_str),
        new.timeout_secs,
        new.traceparent.as_str(),
        new.affinity_key.as_str(),
        new.max_attempts.max(1),
        group.as_ref().map(|group| group.key.as_str()),
        group.as_ref().map(|group| group.max),
        now - head_start,
        now,
        // Blocked until `release_blocked` finds a free slot, within the same transaction.
        group.is_some(),
        origin.ref_key.as_deref(),
        origin.commit.as_deref(),
        origin.needs_approval.then_some("pending"),
        origin.notify,
        new.trust_domain.key(),
        origin.charged_to.as_deref(),
        pending_variables,
    ])
}

/// Stores the trigger. Returns the run of an earlier trigger with the same key.
async fn insert_trigger(tx: &mut Tx, new: &NewRun, now: Ms) -> Result<Option<RunId>> {
    if tx
        .exec_each(INSERT_TRIGGER, vec![trigger_args(new, now)])
        .await?
        == 1
    {
        return Ok(None);
    }
    let key = new.idempotency_key.as_deref();
    let earlier: Option<(Option<String>,)> = tx
        .fetch_optional(
            "SELECT run_id FROM triggers WHERE idempotency_key = $1",
            args![key],
        )
        .await?;
    match earlier {
        Some((Some(run),)) => runs::parse_run_id(run).map(Some),
        _ => Err(StoreError::conflict(
            "a trigger with this idempotency key was accepted before and led to no run",
        )),
    }
}

/// Cancels the earlier runs of the group of `new`.
async fn supersede(tx: &mut Tx, group: &str, new: &NewRun, now: Ms) -> Result<()> {
    let members = run_state::live_group_members(tx, group).await?;
    let mut changes: Vec<Change> = members.into_iter().map(Change::new).collect();
    let mut canceled = Vec::new();
    for change in &mut changes {
        // Every reader of the run sees the reason, so it must not name a run of another task.
        let reason = if change.run.task == new.task_name {
            format!("superseded by {}", new.id)
        } else {
            "superseded by a newer run of its group".to_owned()
        };
        if change.run.machine.cancel(&reason, now) {
            canceled.push(change.run.id.to_string());
        }
    }
    run_state::save_changes(tx, &changes, "canceled", now).await?;
    mark_superseded(tx, canceled, &new.id).await
}

/// Stores which newer run superseded these runs.
pub(crate) async fn mark_superseded(tx: &mut Tx, runs: Vec<String>, by: &RunId) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let sql = one_of!("UPDATE runs SET superseded_by = $2 WHERE id", "$1", "");
    tx.exec(sql, args![runs, by]).await.map(drop)
}

/// Returns `true` if an earlier request had the same idempotency key.
async fn is_repeated(tx: &mut Tx, new: &NewRun) -> Result<bool> {
    let Some(key) = new.idempotency_key.as_deref() else {
        return Ok(false);
    };
    let sql = "SELECT id FROM triggers WHERE idempotency_key = $1";
    let earlier: Option<(String,)> = tx.fetch_optional(sql, args![key]).await?;
    Ok(earlier.is_some())
}

async fn lock_contexts(tx: &mut Tx, new: &[NewRun], now: Ms) -> Result<()> {
    let contexts: BTreeSet<&str> = new
        .iter()
        .filter_map(|new| new.context_id.as_deref())
        .collect();
    for id in contexts {
        // The update locks the row until the end of the transaction.
        let updated = tx
            .exec(
                "UPDATE contexts SET last_used_at = $2 WHERE id = $1 AND complete = 1",
                args![id, now],
            )
            .await?;
        if updated == 0 {
            return Err(StoreError::not_found(format!(
                "context {id} that is complete"
            )));
        }
    }
    Ok(())
}

#[derive(Debug, FromRow)]
struct SuspectTrigger {
    id: String,
    run_id: Option<String>,
    state: Option<String>,
}

impl Store {
    /// Stores a trigger and its run. Fails with `NotFound` if the context is incomplete.
    pub async fn enqueue(&self, new: NewRun, now: Ms) -> Result<Enqueued> {
        let mut all = self.enqueue_many(vec![new], now).await?;
        all.pop()
            .ok_or_else(|| StoreError::corrupt("a run that was just stored is missing"))
    }

    /// Stores triggers and runs as [`Store::enqueue`] does, in one transaction.
    pub async fn enqueue_many(&self, new: Vec<NewRun>, now: Ms) -> Result<Vec<Enqueued>> {
        let mut tx = self.db.begin().await?;
        let mut admission = Admission::load(&mut tx, new.iter(), now).await?;
        for one in &new {
            if let Err(exceeded) = admission.admit(one)
                && !is_repeated(&mut tx, one).await?
            {
                return Err(exceeded.into());
            }
        }
        let groups = new.iter().filter_map(membership);
        run_state::lock_groups(&mut tx, groups.map(|group| group.key).collect()).await?;
        run_state::lock_group_members(&mut tx, superseding_groups(&new)).await?;
        let ids = insert_runs(&mut tx, &new, now).await?;
        admission.store(&mut tx, now).await?;
        let wanted = ids.iter().map(|(id, _)| id.to_string()).collect();
        let rows = runs::find_runs(&mut tx, wanted).await?;
        tx.commit().await?;
        ids.into_iter()
            .map(|(id, new)| {
                let row = rows
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| runs::missing_run(&id))?;
                Ok(if new {
                    Enqueued::New(row)
                } else {
                    Enqueued::Existing(row)
                })
            })
            .collect()
    }

    /// Returns triggers without a proper result. Their run is missing, overdue by more than
    /// `slack_ms`, or blocked in a group with a free slot; or neither a run nor a reason is stored.
    /// Includes firings without a trigger, and timers with an overdue firing.
    pub async fn unaccounted_triggers(
        &self,
        now: Ms,
        slack_ms: i64,
    ) -> Result<Vec<UnaccountedTrigger>> {
        let rows: Vec<SuspectTrigger> = self
            .db
            .fetch_all(
                "SELECT t.id, t.run_id, r.state FROM triggers t LEFT JOIN runs r ON r.id = t.run_id \
                 WHERE t.ignored_reason IS NULL AND t.received_at < $1 AND (r.id IS NULL \
                 OR (r.state IN ('leased', 'running') AND r.deadline < $1) \
                 OR (r.blocked = 1 AND (r.approval IS NULL OR r.approval <> 'pending') AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.group_name = r.group_name \
                 AND o.state IN ('queued', 'leased', 'running') AND o.blocked = 0))) ORDER BY t.received_at, t.id",
                args![now - slack_ms],
            )
            .await?;
        let runs = rows.into_iter().map(|lost| {
            let why = match (&lost.run_id, lost.state.as_deref()) {
                (None, _) => "it led to no run, and no reason is stored".into(),
                (Some(run), None) => format!("its run {run} is missing"),
                (Some(run), Some("queued")) => {
                    format!("its run {run} is blocked although its group has a free slot")
                }
                (Some(run), Some(state)) => {
                    format!("its run {run} is {state} although its deadline has passed")
                }
            };
            Ok(UnaccountedTrigger {
                trigger: lost.id,
                run: lost.run_id.map(runs::parse_run_id).transpose()?,
                why,
            })
        });
        let mut found: Vec<UnaccountedTrigger> = runs.collect::<Result<_>>()?;
        found.extend(self.unaccounted_firings(now - slack_ms).await?);
        Ok(found)
    }
}

/// Returns the groups in which new runs supersede earlier ones.
pub(crate) fn superseding_groups(new: &[NewRun]) -> BTreeSet<String> {
    new.iter()
        .filter_map(membership)
        .filter(|group| group.supersedes)
        .map(|group| group.key)
        .collect()
}

/// Stores triggers and runs, in order. The caller has locked the groups of the runs, and the
/// members of superseding groups. Returns the run of each request, and `true` if it is new.
pub(crate) async fn insert_runs(
    tx: &mut Tx,
    new: &[NewRun],
    now: Ms,
) -> Result<Vec<(RunId, bool)>> {
    lock_contexts(tx, new, now).await?;
    let mut requirements = HashMap::new();
    let mut ids = Vec::with_capacity(new.len());
    // Independent triggers and runs are written together, in order.
    let mut independent = (Vec::new(), Vec::new());
    for new in new {
        let key = requirement_key(new)?;
        let requirement_id = match requirements.get(&key) {
            Some(id) => *id,
            None => {
                let id = find_or_insert_requirement(tx, &key).await?;
                requirements.insert(key, id);
                id
            }
        };
        let group = membership(new);
        if group.is_none() && new.idempotency_key.is_none() {
            independent.0.push(trigger_args(new, now));
            independent.1.push(run_args(new, requirement_id, now)?);
            ids.push((new.id.clone(), true));
            continue;
        }
        flush_rows(tx, &mut independent).await?;
        if let Some(earlier) = insert_trigger(tx, new, now).await? {
            ids.push((earlier, false));
            continue;
        }
        if let Some(group) = group.as_ref().filter(|group| group.supersedes) {
            supersede(tx, &group.key, new, now).await?;
        }
        tx.exec_each(INSERT_RUN, vec![run_args(new, requirement_id, now)?])
            .await?;
        if let Some(group) = &group {
            run_state::release_blocked(tx, &group.key).await?;
        }
        ids.push((new.id.clone(), true));
    }
    flush_rows(tx, &mut independent).await?;
    Ok(ids)
}

/// Stores one run and acquires all locks that it needs. Returns its id, and `true` if it is new.
pub(crate) async fn insert_locked_run(tx: &mut Tx, run: NewRun, now: Ms) -> Result<(RunId, bool)> {
    let new = [run];
    let group = membership(&new[0]).map(|group| group.key);
    run_state::lock_groups(tx, group.into_iter().collect()).await?;
    run_state::lock_group_members(tx, superseding_groups(&new)).await?;
    let started = insert_runs(tx, &new, now).await?.pop();
    started.ok_or_else(|| StoreError::corrupt("a run that was just stored is missing"))
}

async fn flush_rows(
    tx: &mut Tx,
    (triggers, runs): &mut (Vec<Vec<Arg>>, Vec<Vec<Arg>>),
) -> Result<()> {
    if !runs.is_empty() {
        tx.exec_each(INSERT_TRIGGER, std::mem::take(triggers))
            .await?;
        tx.exec_each(INSERT_RUN, std::mem::take(runs)).await?;
    }
    Ok(())
}
