//! How runs come in: the accepted trigger, the run and its concurrency group, in one transaction. And the conservation
//! law, which finds triggers that are accounted for by nothing.

use std::collections::{BTreeSet, HashMap};

use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    DEFAULT_POOL, Ms, NewRun, PRIORITY_MS, Result, RunRow, Store, StoreError,
    db::{Arg, Sql, Tx, args, one_of},
    groups::membership,
    lives::{self, Change},
    quotas::Admission,
    runs, to_json,
};

/// What came of a request for a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Enqueued {
    /// A new run.
    New(RunRow),
    /// The run of an earlier request with the same idempotency key.
    Existing(RunRow),
}

impl Enqueued {
    /// The run.
    pub fn row(&self) -> &RunRow {
        match self {
            Self::New(row) | Self::Existing(row) => row,
        }
    }

    /// The run.
    pub fn into_row(self) -> RunRow {
        match self {
            Self::New(row) | Self::Existing(row) => row,
        }
    }
}

/// An accepted trigger that nothing accounts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unaccounted {
    /// The trigger's id.
    pub trigger: String,
    /// Its run, where it names one.
    pub run: Option<RunId>,
    /// What is wrong, in one sentence.
    pub why: String,
}

const TRIGGER: Sql = Sql::of(
    "INSERT INTO triggers (id, kind, task, received_at, idempotency_key, run_id, delivery_id, place, detail) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (idempotency_key) DO NOTHING",
    "INSERT INTO triggers (id, kind, task, received_at, idempotency_key, run_id, delivery_id, place, detail) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::bigint[], \
     $9::text[]) ON CONFLICT (idempotency_key) DO NOTHING",
);

const RUN: Sql = Sql::of(
    "INSERT INTO runs (id, task_id, task_name, spec, queue, class_id, context_id, secrets, started_by, requested_by, rerun_of, \
     timeout_secs, traceparent, warm_key, max_attempts, group_name, group_max, order_key, created_at, held, lane, commit_id, \
     approval, notify, trust_domain, charged_to, pending_facts) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27)",
    "INSERT INTO runs (id, task_id, task_name, spec, queue, class_id, context_id, secrets, started_by, requested_by, rerun_of, \
     timeout_secs, traceparent, warm_key, max_attempts, group_name, group_max, order_key, created_at, held, lane, commit_id, \
     approval, notify, trust_domain, charged_to, pending_facts) \
     SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::bytea[], \
     $9::text[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::text[], $15::bigint[], $16::text[], \
     $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[], $21::text[], $22::text[], $23::text[], $24::bigint[], $25::text[], $26::text[], $27::text[])",
);

/// Its class: pool, platform, labels as JSON.
fn class(new: &NewRun) -> Result<(String, String, String)> {
    Ok((
        new.queue
            .pool
            .clone()
            .unwrap_or_else(|| DEFAULT_POOL.into()),
        new.platform.clone(),
        to_json(&new.queue.labels)?,
    ))
}

async fn class_id(tx: &mut Tx, (pool, platform, labels): &(String, String, String)) -> Result<i64> {
    for _ in 0..2 {
        let found: Option<(i64,)> = tx
            .row(
                "SELECT id FROM classes WHERE pool = $1 AND platform = $2 AND labels = $3",
                args![pool, platform, labels],
            )
            .await?;
        if let Some((id,)) = found {
            return Ok(id);
        }
        // Another server may be quicker, which is as well.
        tx.exec(
            "INSERT INTO classes (pool, platform, labels) VALUES ($1, $2, $3) ON CONFLICT (pool, platform, labels) DO NOTHING",
            args![pool, platform, labels],
        )
        .await?;
    }
    Err(StoreError::corrupt(
        "a class that was just made is not there",
    ))
}

fn trigger_row(new: &NewRun, now: Ms) -> Vec<Arg> {
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

fn run_row(new: &NewRun, class: i64, now: Ms) -> Result<Vec<Arg>> {
    let group = membership(new);
    let origin = &new.origin;
    let head_start = i64::from(new.queue.priority) * PRIORITY_MS;
    let pending_facts = match origin.needs_approval {
        true => Some(to_json(&new.spec.facts)?),
        false => None,
    };
    Ok(args![
        &new.id,
        new.task_id.as_deref(),
        new.task_name.as_deref(),
        to_json(&new.spec)?,
        to_json(&new.queue)?,
        class,
        new.context_id.as_deref(),
        new.secrets.clone(),
        new.trigger.as_str(),
        new.requested_by.as_deref(),
        new.rerun_of.as_ref().map(RunId::as_str),
        new.timeout_secs,
        new.traceparent.as_str(),
        new.warm_key.as_str(),
        new.max_attempts.max(1),
        group.as_ref().map(|group| group.key.as_str()),
        group.as_ref().map(|group| group.max),
        now - head_start,
        now,
        // Held until its group says that there is room, which it does in the same transaction.
        group.is_some(),
        origin.lane.as_deref(),
        origin.commit.as_deref(),
        origin.needs_approval.then_some("pending"),
        origin.notify,
        new.trust_domain.key(),
        origin.charged_to.as_deref(),
        pending_facts,
    ])
}

/// Writes its trigger. Gives the id of the run that an earlier trigger with the same key led to.
async fn accept(tx: &mut Tx, new: &NewRun, now: Ms) -> Result<Option<RunId>> {
    if tx.each(TRIGGER, vec![trigger_row(new, now)]).await? == 1 {
        return Ok(None);
    }
    let key = new.idempotency_key.as_deref();
    let earlier: Option<(Option<String>,)> = tx
        .row(
            "SELECT run_id FROM triggers WHERE idempotency_key = $1",
            args![key],
        )
        .await?;
    match earlier {
        Some((Some(run),)) => runs::id(run).map(Some),
        _ => Err(StoreError::conflict(
            "a trigger with this idempotency key was accepted before and led to no run",
        )),
    }
}

/// Cancels the runs that came before `new` in its group.
async fn supersede(tx: &mut Tx, group: &str, new: &NewRun, now: Ms) -> Result<()> {
    let members = lives::members(tx, group).await?;
    let mut changes: Vec<Change> = members.into_iter().map(Change::of).collect();
    let mut canceled = Vec::new();
    for change in &mut changes {
        // The reason is shown to whom the run is shown: it names no run of another task.
        let reason = if change.run.task == new.task_name {
            format!("superseded by {}", new.id)
        } else {
            "superseded by a newer run of its group".to_owned()
        };
        if change.run.life.cancel(&reason, now) {
            canceled.push(change.run.id.to_string());
        }
    }
    lives::save(tx, &changes, "canceled", now).await?;
    mark_superseded(tx, canceled, &new.id).await
}

/// Stores which run canceled these because it is newer.
pub(crate) async fn mark_superseded(tx: &mut Tx, runs: Vec<String>, by: &RunId) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let sql = one_of!("UPDATE runs SET superseded_by = $2 WHERE id", "$1", "");
    tx.exec(sql, args![runs, by]).await.map(drop)
}

/// Returns `true` if an earlier request had the idempotency key of this one.
async fn is_repeated(tx: &mut Tx, new: &NewRun) -> Result<bool> {
    let Some(key) = new.idempotency_key.as_deref() else {
        return Ok(false);
    };
    let sql = "SELECT id FROM triggers WHERE idempotency_key = $1";
    let earlier: Option<(String,)> = tx.row(sql, args![key]).await?;
    Ok(earlier.is_some())
}

async fn check_contexts(tx: &mut Tx, new: &[NewRun], now: Ms) -> Result<()> {
    let contexts: BTreeSet<&str> = new
        .iter()
        .filter_map(|new| new.context_id.as_deref())
        .collect();
    for id in contexts {
        // Written, not only read: the row stays until this transaction has ended.
        let there = tx
            .exec(
                "UPDATE contexts SET last_used_at = $2 WHERE id = $1 AND complete = 1",
                args![id, now],
            )
            .await?;
        if there == 0 {
            return Err(StoreError::not_found(format!(
                "context {id} that is complete"
            )));
        }
    }
    Ok(())
}

#[derive(Debug, FromRow)]
struct Lost {
    id: String,
    run_id: Option<String>,
    state: Option<String>,
}

impl Store {
    /// Stores a trigger and its run; `NotFound` where the context is not complete.
    pub async fn enqueue(&self, new: NewRun, now: Ms) -> Result<Enqueued> {
        let mut all = self.enqueue_many(vec![new], now).await?;
        all.pop()
            .ok_or_else(|| StoreError::corrupt("a run that was just stored is not there"))
    }

    /// The same for many, in one transaction.
    pub async fn enqueue_many(&self, new: Vec<NewRun>, now: Ms) -> Result<Vec<Enqueued>> {
        let mut tx = self.db.write().await?;
        let mut admission = Admission::load(&mut tx, new.iter(), now).await?;
        for one in &new {
            if let Err(exceeded) = admission.admit(one)
                && !is_repeated(&mut tx, one).await?
            {
                return Err(exceeded.into());
            }
        }
        let groups = new.iter().filter_map(membership);
        lives::lock_groups(&mut tx, groups.map(|group| group.key).collect()).await?;
        lives::lock_members(&mut tx, superseding(&new)).await?;
        let ids = insert(&mut tx, &new, now).await?;
        admission.store(&mut tx, now).await?;
        let wanted = ids.iter().map(|(id, _)| id.to_string()).collect();
        let rows = runs::find_all(&mut tx, wanted).await?;
        tx.commit().await?;
        ids.into_iter()
            .map(|(id, new)| {
                let row = rows.get(&id).cloned().ok_or_else(|| runs::missing(&id))?;
                Ok(if new {
                    Enqueued::New(row)
                } else {
                    Enqueued::Existing(row)
                })
            })
            .collect()
    }

    /// Triggers that are accounted for by nothing: the run is missing, or its deadline is past by more than `slack_ms`, or
    /// it is held though its group has room, or no run and no reason is written down. Ticks without a trigger too, and
    /// timers whose tick nobody has handled.
    pub async fn unaccounted(&self, now: Ms, slack_ms: i64) -> Result<Vec<Unaccounted>> {
        let rows: Vec<Lost> = self
            .db
            .rows(
                "SELECT t.id, t.run_id, r.state FROM triggers t LEFT JOIN runs r ON r.id = t.run_id \
                 WHERE t.suppressed_reason IS NULL AND t.received_at < $1 AND (r.id IS NULL \
                 OR (r.state IN ('leased', 'running') AND r.deadline < $1) \
                 OR (r.held = 1 AND (r.approval IS NULL OR r.approval <> 'pending') AND NOT EXISTS (SELECT 1 FROM runs o WHERE o.group_name = r.group_name \
                 AND o.state IN ('queued', 'leased', 'running') AND o.held = 0))) ORDER BY t.received_at, t.id",
                args![now - slack_ms],
            )
            .await?;
        let runs = rows.into_iter().map(|lost| {
            let why = match (&lost.run_id, lost.state.as_deref()) {
                (None, _) => "it led to no run, and no reason is written down".into(),
                (Some(run), None) => format!("its run {run} is missing"),
                (Some(run), Some("queued")) => {
                    format!("its run {run} is held, though its group has room")
                }
                (Some(run), Some(state)) => {
                    format!("its run {run} is {state}, though its deadline is past")
                }
            };
            Ok(Unaccounted {
                trigger: lost.id,
                run: lost.run_id.map(runs::id).transpose()?,
                why,
            })
        });
        let mut found: Vec<Unaccounted> = runs.collect::<Result<_>>()?;
        found.extend(self.unaccounted_ticks(now - slack_ms).await?);
        Ok(found)
    }
}

/// Returns the groups whose earlier runs are canceled by new ones.
pub(crate) fn superseding(new: &[NewRun]) -> BTreeSet<String> {
    new.iter()
        .filter_map(membership)
        .filter(|group| group.supersedes)
        .map(|group| group.key)
        .collect()
}

/// Writes triggers and runs, in order. The groups of the runs are locked, and the members of those that supersede. Gives
/// the run of each request, and whether it is new.
pub(crate) async fn insert(tx: &mut Tx, new: &[NewRun], now: Ms) -> Result<Vec<(RunId, bool)>> {
    check_contexts(tx, new, now).await?;
    let mut classes = HashMap::new();
    let mut ids = Vec::with_capacity(new.len());
    // Triggers and runs that nothing depends on are written together, in order.
    let mut plain = (Vec::new(), Vec::new());
    for new in new {
        let key = class(new)?;
        let class = match classes.get(&key) {
            Some(id) => *id,
            None => {
                let id = class_id(tx, &key).await?;
                classes.insert(key, id);
                id
            }
        };
        let group = membership(new);
        if group.is_none() && new.idempotency_key.is_none() {
            plain.0.push(trigger_row(new, now));
            plain.1.push(run_row(new, class, now)?);
            ids.push((new.id.clone(), true));
            continue;
        }
        flush(tx, &mut plain).await?;
        if let Some(earlier) = accept(tx, new, now).await? {
            ids.push((earlier, false));
            continue;
        }
        if let Some(group) = group.as_ref().filter(|group| group.supersedes) {
            supersede(tx, &group.key, new, now).await?;
        }
        tx.each(RUN, vec![run_row(new, class, now)?]).await?;
        if let Some(group) = &group {
            lives::release(tx, &group.key).await?;
        }
        ids.push((new.id.clone(), true));
    }
    flush(tx, &mut plain).await?;
    Ok(ids)
}

/// Writes one with all locks that it needs. Gives its run, and whether it is new.
pub(crate) async fn start(tx: &mut Tx, run: NewRun, now: Ms) -> Result<(RunId, bool)> {
    let new = [run];
    let group = membership(&new[0]).map(|group| group.key);
    lives::lock_groups(tx, group.into_iter().collect()).await?;
    lives::lock_members(tx, superseding(&new)).await?;
    let started = insert(tx, &new, now).await?.pop();
    started.ok_or_else(|| StoreError::corrupt("a run that was just stored is not there"))
}

async fn flush(tx: &mut Tx, (triggers, runs): &mut (Vec<Vec<Arg>>, Vec<Vec<Arg>>)) -> Result<()> {
    if !runs.is_empty() {
        tx.each(TRIGGER, std::mem::take(triggers)).await?;
        tx.each(RUN, std::mem::take(runs)).await?;
    }
    Ok(())
}
