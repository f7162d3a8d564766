//! Stores deliveries and the decisions about them in one transaction. Independent deliveries share
//! statements.
//!
//! Invariants:
//! - A delivery is stored once per sender id, and only the first copy has an effect.
//! - A decision about a task starts a run, joins an existing run, cancels runs, or ignores the
//!   trigger with a reason.
//! - Locks are acquired in one order: bodies, refs, groups, runs.

mod plan;

use std::collections::{BTreeSet, HashMap, HashSet};

use acrtask_model::RunId;
use sqlx::FromRow;

use self::plan::Plan;
use crate::{
    Delivered, Ms, NewRun, Result, Store, StoreError, StoredBody,
    db::{Arg, Sql, Tx, args, one_of},
    enqueue,
    groups::membership,
    quotas::Admission,
    run_state::{self, Change},
    runs,
};

/// A delivery to be stored.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Id of the delivery.
    pub id: String,
    /// Webhook that received it.
    pub webhook: String,
    /// Id that the sender assigned.
    pub sender_id: String,
    /// Kind of the event.
    pub kind: String,
    /// Repository of the event.
    pub repository: Option<String>,
    /// Summary of the event, in one sentence.
    pub summary: String,
    /// Reason why the delivery was not evaluated for any task.
    pub note: Option<String>,
    /// Delivery that this one repeats.
    pub redelivery_of: Option<String>,
    /// JSON of the stored headers.
    pub headers: String,
    /// Watched base images that a registry reported as pushed.
    pub watches: Vec<String>,
    /// Size of the body in bytes.
    pub size: u64,
    /// SHA-256 of the body.
    pub sha256: String,
    /// Body, or its location.
    pub body: StoredBody,
    /// Minimum age in milliseconds of a delivery with the same body that makes this one a replay.
    /// `None`: the sender's ids are authenticated, so the same body under another id is another
    /// delivery.
    pub replay_age: Option<Ms>,
}

/// Decision about one task for which a delivery was evaluated.
#[derive(Debug, Clone)]
pub struct TriggerDecision {
    /// Name of the task.
    pub task: String,
    /// Kind of the trigger.
    pub kind: String,
    /// Sentence with the reason.
    pub reason: String,
    /// Effect of the decision.
    pub action: TriggerAction,
}

/// Effect of a delivery on one task.
#[derive(Debug, Clone)]
pub enum TriggerAction {
    /// Starts a run, or joins an existing one.
    Run {
        /// The run. The store fills in the delivery and the reason of its origin.
        new: Box<NewRun>,
        /// Cancels the live runs of the same ref. If the run needs an approval, cancels only those
        /// that need one too.
        newest_wins: bool,
        /// Joins a live run of the same commit if that is the newest run of the ref.
        may_join: bool,
        /// JSON of the target of the commit status. `None`: no commit status is sent.
        status: Option<String>,
    },
    /// Cancels live runs of a ref.
    Cancel {
        /// Ref of the runs.
        ref_key: String,
        /// Runs to cancel.
        scope: CancelScope,
    },
    /// Has no effect.
    Ignore,
}

/// Live runs of a ref that a delivery cancels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelScope {
    /// All of them.
    All,
    /// Only those that wait for an approval. A fork cannot cancel a run that a maintainer approved.
    Unapproved,
}

const INSERT_DELIVERY: Sql = Sql::new(
    "INSERT INTO deliveries (id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, \
     body, blob, received_at, watches) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
     ON CONFLICT (webhook, sender_id) DO NOTHING",
    "INSERT INTO deliveries (id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, \
     body, blob, received_at, watches) SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], \
     $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::bytea[], $13::text[], $14::bigint[], \
     $15::text[]) \
     ON CONFLICT (webhook, sender_id) DO NOTHING",
);

const INSERT_OUTCOME: Sql = Sql::new(
    "INSERT INTO triggers (id, kind, task, received_at, run_id, joined, ignored_reason, ignored_at, delivery_id, place, \
     detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    "INSERT INTO triggers (id, kind, task, received_at, run_id, joined, ignored_reason, ignored_at, delivery_id, place, \
     detail) SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], \
     $8::bigint[], $9::text[], $10::bigint[], $11::text[])",
);

const INSERT_STATUS: Sql = Sql::new(
    "INSERT INTO commit_statuses (run_id, target, next_at) VALUES ($1, $2, $3)",
    "INSERT INTO commit_statuses (run_id, target, next_at) SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[])",
);

/// A live run of a ref.
#[derive(Debug, FromRow)]
struct RefRun {
    id: String,
    ref_key: String,
    commit_id: Option<String>,
    group_name: Option<String>,
    cancel_requested_at: Option<i64>,
    approval: Option<String>,
    newest: i64,
}

impl RefRun {
    fn is_canceled_by(&self, scope: CancelScope) -> bool {
        scope == CancelScope::All || self.approval.as_deref() == Some("pending")
    }
}

impl TriggerAction {
    fn ref_key(&self) -> Option<&str> {
        match self {
            Self::Run { new, .. } => new.origin.ref_key.as_deref(),
            Self::Cancel { ref_key, .. } => Some(ref_key),
            Self::Ignore => None,
        }
    }

    /// Returns `true` if the action cancels live runs of its ref.
    fn cancels_live_runs(&self) -> bool {
        match self {
            Self::Run { newest_wins, .. } => *newest_wins,
            Self::Cancel { .. } => true,
            Self::Ignore => false,
        }
    }
}

fn delivery_args(new: &NewDelivery, now: Ms) -> Vec<Arg> {
    let (body, blob) = match &new.body {
        StoredBody::Inline(bytes) => (Some(bytes.clone()), None),
        StoredBody::Blob(key) => (None, Some(key.clone())),
    };
    args![
        new.id.as_str(),
        new.webhook.as_str(),
        new.sender_id.as_str(),
        new.kind.as_str(),
        new.repository.as_deref(),
        new.summary.as_str(),
        new.note.as_deref(),
        new.redelivery_of.as_deref(),
        new.headers.as_str(),
        new.size,
        new.sha256.as_str(),
        body,
        blob,
        now,
        serde_json::Value::from(new.watches.clone()).to_string(),
    ]
}

/// Stores the rows of new deliveries. Returns their ids.
async fn store_deliveries(
    tx: &mut Tx,
    mut all: Vec<&NewDelivery>,
    now: Ms,
) -> Result<HashSet<String>> {
    // A fixed order prevents two servers from waiting for each other's rows.
    all.sort_by_key(|delivery| (&delivery.webhook, &delivery.sender_id));
    let ids: Vec<String> = all.iter().map(|delivery| delivery.id.clone()).collect();
    let rows = all
        .into_iter()
        .map(|delivery| delivery_args(delivery, now))
        .collect();
    if tx.exec_each(INSERT_DELIVERY, rows).await? == ids.len() as u64 {
        return Ok(ids.into_iter().collect());
    }
    let sql = one_of!("SELECT id FROM deliveries WHERE id", "$1", "");
    let stored: Vec<(String,)> = tx.fetch_all(sql, args![ids]).await?;
    Ok(stored.into_iter().map(|(id,)| id).collect())
}

/// A webhook may have any number of deliveries. The statement finds them by their body, and not in
/// order of receipt.
const SAME_BODY: Sql = Sql::new(
    "SELECT id FROM deliveries INDEXED BY deliveries_body \
     WHERE webhook = $1 AND sha256 = $2 AND id <> $3 AND received_at <= $5 AND redelivery_of IS NULL \
     ORDER BY received_at LIMIT $4",
    "SELECT id FROM deliveries \
     WHERE webhook = $1 AND sha256 = $2 AND id <> $3 AND received_at <= $5 AND redelivery_of IS NULL \
     ORDER BY received_at + 0 LIMIT $4",
);

/// Returns the delivery that `new` replays: one with the same body that is old enough and not in
/// `later`.
async fn find_replayed(
    tx: &mut Tx,
    new: &NewDelivery,
    later: &HashSet<String>,
    now: Ms,
) -> Result<Option<String>> {
    let Some(age) = new.replay_age else {
        return Ok(None);
    };
    // At most `later.len()` of the deliveries with this body are in `later`.
    let limit = later.len() as u64 + 1;
    let rows: Vec<(String,)> = tx
        .fetch_all(
            SAME_BODY,
            args![
                new.webhook.as_str(),
                new.sha256.as_str(),
                new.id.as_str(),
                limit,
                now.saturating_sub(age)
            ],
        )
        .await?;
    let mut before = rows.into_iter().map(|(id,)| id);
    Ok(before.find(|id| !later.contains(id)))
}

/// Returns the delivery that was stored with the same sender id.
async fn find_earlier(tx: &mut Tx, new: &NewDelivery) -> Result<String> {
    let row: Option<(String,)> = tx
        .fetch_optional(
            "SELECT id FROM deliveries WHERE webhook = $1 AND sender_id = $2",
            args![new.webhook.as_str(), new.sender_id.as_str()],
        )
        .await?;
    row.map(|(id,)| id)
        .ok_or_else(|| StoreError::conflict("the delivery is being stored now"))
}

/// Selects live runs that a new run may join, and live runs of refs with cancellations. Any number
/// of other runs may wait for the same ref; the statement skips them.
const LIVE: Sql = {
    macro_rules! columns {
        ($runs:literal) => {
            concat!(
                "SELECT id, ref_key, commit_id, group_name, cancel_requested_at, approval, \
                 CAST(CASE WHEN seq = (SELECT MAX(newer.seq) FROM runs newer WHERE newer.ref_key = runs.ref_key) \
                 THEN 1 ELSE 0 END AS BIGINT) AS newest FROM ",
                $runs,
                " WHERE ref_key IS NOT NULL AND state IN ('queued', 'leased', 'running') AND ref_key"
            )
        };
    }
    Sql::new(
        concat!(
            columns!("runs INDEXED BY runs_ref"),
            " IN (SELECT value FROM json_each($1)) AND commit_id IN (SELECT value FROM json_each($2)) UNION ",
            columns!("runs INDEXED BY runs_ref"),
            " IN (SELECT value FROM json_each($3)) ORDER BY id"
        ),
        concat!(
            columns!("runs"),
            " = ANY($1) AND commit_id = ANY($2) UNION ",
            columns!("runs"),
            " = ANY($3) ORDER BY id"
        ),
    )
};

async fn find_live_runs(
    tx: &mut Tx,
    decisions: &[&TriggerDecision],
    ref_keys: &BTreeSet<&str>,
    canceling: &HashSet<&str>,
) -> Result<Vec<RefRun>> {
    if ref_keys.is_empty() {
        return Ok(Vec::new());
    }
    let commits: BTreeSet<&str> = decisions
        .iter()
        .copied()
        .filter_map(new_run)
        .filter_map(|new| new.origin.commit.as_deref())
        .collect();
    let texts = |names: &mut dyn Iterator<Item = &&str>| -> Vec<String> {
        names.map(|name| (*name).to_owned()).collect()
    };
    tx.fetch_all(
        LIVE,
        args![
            texts(&mut ref_keys.iter()),
            texts(&mut commits.iter()),
            texts(&mut canceling.iter())
        ],
    )
    .await
}

/// Locks all runs that the deliveries may change. Returns the live runs of their refs, and the
/// locked runs.
async fn lock_affected_runs(
    tx: &mut Tx,
    decisions: &[&TriggerDecision],
) -> Result<(Vec<RefRun>, Vec<run_state::LockedRun>)> {
    let ref_keys: BTreeSet<&str> = decisions
        .iter()
        .filter_map(|one| one.action.ref_key())
        .collect();
    run_state::lock_groups(
        tx,
        ref_keys
            .iter()
            .map(|ref_key| format!("ref_key {ref_key}"))
            .collect(),
    )
    .await?;
    let canceling: HashSet<&str> = decisions
        .iter()
        .filter(|one| one.action.cancels_live_runs())
        .filter_map(|one| one.action.ref_key())
        .collect();
    let live = find_live_runs(tx, decisions, &ref_keys, &canceling).await?;
    let to_cancel: Vec<&RefRun> = live
        .iter()
        .filter(|run| canceling.contains(run.ref_key.as_str()))
        .collect();
    let new: Vec<&NewRun> = decisions.iter().copied().filter_map(new_run).collect();
    let groups = new
        .iter()
        .filter_map(|new| membership(new))
        .map(|group| group.key);
    let groups: BTreeSet<String> = groups
        .chain(to_cancel.iter().filter_map(|run| run.group_name.clone()))
        .collect();
    run_state::lock_groups(tx, groups).await?;
    let mut ids: BTreeSet<RunId> = BTreeSet::new();
    for run in &to_cancel {
        ids.insert(runs::parse_run_id(run.id.clone())?);
    }
    let superseding: Vec<String> = new
        .iter()
        .filter_map(|new| membership(new))
        .filter(|group| group.supersedes)
        .map(|group| group.key)
        .collect();
    if tx.is_postgres() && !superseding.is_empty() {
        let members: Vec<(String,)> = tx
            .fetch_all(
                "SELECT id FROM runs WHERE group_name = ANY($1) AND state IN ('queued', 'leased', 'running')",
                args![superseding],
            )
            .await?;
        for (id,) in members {
            ids.insert(runs::parse_run_id(id)?);
        }
    }
    let locked = if ids.is_empty() {
        Vec::new()
    } else {
        run_state::lock_runs(tx, &ids.iter().collect()).await?
    };
    Ok((live, locked))
}

fn new_run(decision: &TriggerDecision) -> Option<&NewRun> {
    match &decision.action {
        TriggerAction::Run { new, .. } => Some(new),
        _ => None,
    }
}

impl Store {
    /// Stores a delivery and its effects in one transaction. A repeated delivery has no effect.
    pub async fn record_delivery(
        &self,
        delivery: NewDelivery,
        decisions: Vec<TriggerDecision>,
        now: Ms,
    ) -> Result<Delivered> {
        let mut all = self
            .record_deliveries(vec![(delivery, decisions)], now)
            .await?;
        all.pop()
            .ok_or_else(|| StoreError::corrupt("a delivery that was just stored is missing"))
    }

    /// Stores deliveries as [`Store::record_delivery`] does, in one transaction. The result is the
    /// same as for one delivery after the other.
    pub async fn record_deliveries(
        &self,
        all: Vec<(NewDelivery, Vec<TriggerDecision>)>,
        now: Ms,
    ) -> Result<Vec<Delivered>> {
        let mut tx = self.db.begin().await?;
        let stored =
            store_deliveries(&mut tx, all.iter().map(|(one, _)| one).collect(), now).await?;
        let mut done: Vec<Option<Delivered>> = Vec::with_capacity(all.len());
        let mut new = Vec::new();
        for (index, (delivery, decisions)) in all.into_iter().enumerate() {
            if stored.contains(&delivery.id) {
                done.push(None);
                new.push(StoredDelivery {
                    index,
                    delivery,
                    decisions,
                });
            } else {
                done.push(Some(Delivered::Duplicate(
                    find_earlier(&mut tx, &delivery).await?,
                )));
            }
        }
        let bodies = new.iter().filter(|one| one.may_be_replayed());
        run_state::lock_groups(&mut tx, bodies.map(StoredDelivery::body_key).collect()).await?;
        let runs = new
            .iter()
            .flat_map(|one| &one.decisions)
            .filter_map(new_run);
        let mut admission = Admission::load(&mut tx, runs, now).await?;
        let rounds = split_into_rounds(new);
        if rounds.len() > 1 {
            let all = rounds.iter().flatten().flat_map(|one| &one.decisions);
            lock_affected_runs(&mut tx, &all.collect::<Vec<_>>()).await?;
        }
        let mut later = stored;
        for round in rounds {
            for (index, delivered) in
                write_effects(&mut tx, round, &mut later, &mut admission, now).await?
            {
                done[index] = Some(delivered);
            }
        }
        admission.store(&mut tx, now).await?;
        tx.commit().await?;
        done.into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::corrupt("a delivery that was just stored has no result"))
    }
}

/// A delivery whose row is stored, and the decisions about it.
struct StoredDelivery {
    /// Index in the batch.
    index: usize,
    delivery: NewDelivery,
    decisions: Vec<TriggerDecision>,
}

impl StoredDelivery {
    /// Returns `true` if an earlier delivery with the same body matters.
    fn may_be_replayed(&self) -> bool {
        self.delivery.replay_age.is_some()
            && self
                .decisions
                .iter()
                .any(|one| !matches!(one.action, TriggerAction::Ignore))
    }

    fn body_key(&self) -> String {
        format!("body {} {}", self.delivery.webhook, self.delivery.sha256)
    }

    /// Returns the keys by which two deliveries can conflict.
    fn conflict_keys(&self) -> HashSet<String> {
        let ref_keys = self.decisions.iter().filter_map(|one| one.action.ref_key());
        let new = self.decisions.iter().filter_map(new_run);
        let groups = new.filter_map(membership);
        ref_keys
            .map(|ref_key| format!("ref_key {ref_key}"))
            .chain(groups.map(|group| format!("group {}", group.key)))
            .chain(self.may_be_replayed().then(|| self.body_key()))
            .collect()
    }
}

/// Splits the deliveries, in order, before each one that conflicts with the current round.
fn split_into_rounds(all: Vec<StoredDelivery>) -> Vec<Vec<StoredDelivery>> {
    let mut rounds: Vec<Vec<StoredDelivery>> = Vec::new();
    let mut taken = HashSet::new();
    for one in all {
        let keys = one.conflict_keys();
        match rounds.last_mut() {
            Some(round) if taken.is_disjoint(&keys) => round.push(one),
            _ => {
                taken.clear();
                rounds.push(vec![one]);
            }
        }
        taken.extend(keys);
    }
    rounds
}

/// Writes the effects of deliveries that do not conflict. `later` contains the deliveries of this
/// transaction whose effects are not written yet.
async fn write_effects(
    tx: &mut Tx,
    round: Vec<StoredDelivery>,
    later: &mut HashSet<String>,
    admission: &mut Admission,
    now: Ms,
) -> Result<Vec<(usize, Delivered)>> {
    let decisions: Vec<&TriggerDecision> = round.iter().flat_map(|one| &one.decisions).collect();
    let (live, locked) = lock_affected_runs(tx, &decisions).await?;
    let ref_runs: HashMap<&str, &RefRun> = live.iter().map(|run| (run.id.as_str(), run)).collect();
    let mut plan = Plan::default();
    let mut done = Vec::with_capacity(round.len());
    for one in round {
        later.remove(&one.delivery.id);
        let replayed = if one.may_be_replayed() {
            find_replayed(tx, &one.delivery, later, now).await?
        } else {
            None
        };
        let StoredDelivery {
            index,
            delivery,
            decisions,
        } = one;
        let ref_keys: HashSet<String> = decisions
            .iter()
            .filter_map(|one| one.action.ref_key().map(str::to_owned))
            .collect();
        let outcomes = plan.add(
            &delivery,
            decisions,
            &live,
            replayed.as_deref(),
            admission,
            now,
        );
        done.push((index, outcomes, ref_keys));
    }
    let mut canceled: Vec<(RunId, &str)> = Vec::new();
    let mut changes: Vec<Change> = locked.into_iter().map(Change::new).collect();
    for change in &mut changes {
        let id = &change.run.id;
        if let Some(run) = ref_runs.get(id.as_str())
            && let Some((scope, reason)) = plan.cancellations.get(&run.ref_key)
            && run.is_canceled_by(*scope)
            && change.run.machine.cancel(reason, now)
        {
            canceled.push((id.clone(), &run.ref_key));
        }
    }
    run_state::save_changes(tx, &changes, "canceled", now).await?;
    for (ref_key, by) in &plan.newer {
        let older = canceled.iter().filter(|(_, canceled)| canceled == ref_key);
        let older = older.map(|(id, _)| id.to_string()).collect();
        enqueue::mark_superseded(tx, older, by).await?;
    }
    enqueue::insert_runs(tx, &plan.new, now).await?;
    if !plan.triggers.is_empty() {
        tx.exec_each(INSERT_OUTCOME, plan.triggers).await?;
    }
    if !plan.statuses.is_empty() {
        tx.exec_each(INSERT_STATUS, plan.statuses).await?;
    }
    let delivered = done.into_iter().map(|(index, outcomes, ref_keys)| {
        let canceled = canceled
            .iter()
            .filter(|(_, ref_key)| ref_keys.contains(*ref_key));
        let canceled = canceled.map(|(id, _)| id.clone()).collect();
        (index, Delivered::New { outcomes, canceled })
    });
    Ok(delivered.collect())
}
