//! Takes deliveries: their rows and all that they lead to, in one transaction, and those that have nothing to do with each
//! other in the same statements.
//!
//! Invariants: a delivery is stored once for each id that its sender gave it, and only that one time leads to anything;
//! what it leads to for each task that was looked at is a run, a run that there was already, or a reason why nothing.
//! Locks are taken in one order: bodies, lanes, groups, runs.

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
    lives::{self, Change},
    quotas::Admission,
    runs,
};

/// A delivery that is to be stored.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Its id.
    pub id: String,
    /// The webhook that it came to.
    pub webhook: String,
    /// The sender's id of it.
    pub sender_id: String,
    /// What kind of thing happened.
    pub kind: String,
    /// The repository that it happened to.
    pub repository: Option<String>,
    /// What happened, in one sentence.
    pub summary: String,
    /// Why no task was looked at.
    pub note: Option<String>,
    /// The delivery whose body this is.
    pub redelivery_of: Option<String>,
    /// The headers that matter, as JSON.
    pub headers: String,
    /// The watched base images that a registry reported as pushed.
    pub watches: Vec<String>,
    /// Bytes of the body.
    pub size: u64,
    /// SHA-256 of the body.
    pub sha256: String,
    /// The body.
    pub body: StoredBody,
    /// The age, in milliseconds, from which a delivery with the same body makes this one a replay. `None`: the
    /// sender's ids are protected, so that the same body under another id is another delivery.
    pub replay_age: Option<Ms>,
}

/// A task that a delivery was held against.
#[derive(Debug, Clone)]
pub struct Looked {
    /// The task's name.
    pub task: String,
    /// What kind of trigger it is.
    pub kind: String,
    /// Why, as a sentence.
    pub reason: String,
    /// What it leads to.
    pub leads_to: LeadsTo,
}

/// What a delivery leads to for a task.
#[derive(Debug, Clone)]
pub enum LeadsTo {
    /// A run.
    Run {
        /// The run; its origin's delivery and reason are filled in here.
        new: Box<NewRun>,
        /// Live runs of its lane are ended. If the run needs an approval, only those that need one too.
        newest_wins: bool,
        /// A live run of the same commit is joined if it is the newest run of the lane.
        may_join: bool,
        /// Whom the forge is told through, as JSON; nothing: it is not told.
        status: Option<String>,
    },
    /// The end of the live runs of a lane.
    Cancel {
        /// The lane.
        lane: String,
        /// Runs that it ends.
        ends: Ends,
    },
    /// Nothing.
    Nothing,
}

/// The live runs of a lane that a delivery ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// All of them.
    All,
    /// Those that wait for an approval: a stranger ends nothing that a maintainer let run.
    Unapproved,
}

const DELIVERY: Sql = Sql::of(
    "INSERT INTO deliveries (id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, \
     body, blob, received_at, watches) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
     ON CONFLICT (webhook, sender_id) DO NOTHING",
    "INSERT INTO deliveries (id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, size, sha256, \
     body, blob, received_at, watches) SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], \
     $7::text[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::bytea[], $13::text[], $14::bigint[], \
     $15::text[]) \
     ON CONFLICT (webhook, sender_id) DO NOTHING",
);

const OUTCOME: Sql = Sql::of(
    "INSERT INTO triggers (id, kind, task, received_at, run_id, joined, suppressed_reason, suppressed_at, delivery_id, place, \
     detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    "INSERT INTO triggers (id, kind, task, received_at, run_id, joined, suppressed_reason, suppressed_at, delivery_id, place, \
     detail) SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], \
     $8::bigint[], $9::text[], $10::bigint[], $11::text[])",
);

const STATUS: Sql = Sql::of(
    "INSERT INTO commit_statuses (run_id, target, next_at) VALUES ($1, $2, $3)",
    "INSERT INTO commit_statuses (run_id, target, next_at) SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[])",
);

/// A live run of a lane.
#[derive(Debug, FromRow)]
struct InLane {
    id: String,
    lane: String,
    commit_id: Option<String>,
    group_name: Option<String>,
    cancel_requested_at: Option<i64>,
    approval: Option<String>,
    newest: i64,
}

impl InLane {
    fn is_ended_by(&self, ends: Ends) -> bool {
        ends == Ends::All || self.approval.as_deref() == Some("pending")
    }
}

impl LeadsTo {
    fn lane(&self) -> Option<&str> {
        match self {
            Self::Run { new, .. } => new.origin.lane.as_deref(),
            Self::Cancel { lane, .. } => Some(lane),
            Self::Nothing => None,
        }
    }

    /// Whether it ends what is live in its lane.
    fn clears(&self) -> bool {
        match self {
            Self::Run { newest_wins, .. } => *newest_wins,
            Self::Cancel { .. } => true,
            Self::Nothing => false,
        }
    }
}

fn row(new: &NewDelivery, now: Ms) -> Vec<Arg> {
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

/// Writes the rows of those that did not come before; the ids of these.
async fn store(tx: &mut Tx, mut all: Vec<&NewDelivery>, now: Ms) -> Result<HashSet<String>> {
    // In one order, so that of two servers none waits for the other one's rows.
    all.sort_by_key(|delivery| (&delivery.webhook, &delivery.sender_id));
    let ids: Vec<String> = all.iter().map(|delivery| delivery.id.clone()).collect();
    let rows = all.into_iter().map(|delivery| row(delivery, now)).collect();
    if tx.each(DELIVERY, rows).await? == ids.len() as u64 {
        return Ok(ids.into_iter().collect());
    }
    let sql = one_of!("SELECT id FROM deliveries WHERE id", "$1", "");
    let stored: Vec<(String,)> = tx.rows(sql, args![ids]).await?;
    Ok(stored.into_iter().map(|(id,)| id).collect())
}

/// A webhook may have any number of deliveries: they are found by the body, and not in the order that they came in.
const SAME_BODY: Sql = Sql::of(
    "SELECT id FROM deliveries INDEXED BY deliveries_body \
     WHERE webhook = $1 AND sha256 = $2 AND id <> $3 AND received_at <= $5 AND redelivery_of IS NULL \
     ORDER BY received_at LIMIT $4",
    "SELECT id FROM deliveries \
     WHERE webhook = $1 AND sha256 = $2 AND id <> $3 AND received_at <= $5 AND redelivery_of IS NULL \
     ORDER BY received_at + 0 LIMIT $4",
);

/// Returns the delivery that `new` replays: one with the same body that is old enough, and not one of `later`.
async fn replayed(
    tx: &mut Tx,
    new: &NewDelivery,
    later: &HashSet<String>,
    now: Ms,
) -> Result<Option<String>> {
    let Some(age) = new.replay_age else {
        return Ok(None);
    };
    // Of those that came with the same body, at most so many are of `later`.
    let limit = later.len() as u64 + 1;
    let rows: Vec<(String,)> = tx
        .rows(
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

/// The delivery that came with the same id before.
async fn earlier(tx: &mut Tx, new: &NewDelivery) -> Result<String> {
    let row: Option<(String,)> = tx
        .row(
            "SELECT id FROM deliveries WHERE webhook = $1 AND sender_id = $2",
            args![new.webhook.as_str(), new.sender_id.as_str()],
        )
        .await?;
    row.map(|(id,)| id)
        .ok_or_else(|| StoreError::conflict("the delivery is being stored now"))
}

/// The live runs that a new one may join, and those of lanes that are cleared. A lane may have many runs that wait, which
/// are none of this delivery's business.
const LIVE: Sql = {
    macro_rules! columns {
        ($runs:literal) => {
            concat!(
                "SELECT id, lane, commit_id, group_name, cancel_requested_at, approval, \
                 CAST(CASE WHEN seq = (SELECT MAX(newer.seq) FROM runs newer WHERE newer.lane = runs.lane) \
                 THEN 1 ELSE 0 END AS BIGINT) AS newest FROM ",
                $runs,
                " WHERE lane IS NOT NULL AND state IN ('queued', 'leased', 'running') AND lane"
            )
        };
    }
    Sql::of(
        concat!(
            columns!("runs INDEXED BY runs_lane"),
            " IN (SELECT value FROM json_each($1)) AND commit_id IN (SELECT value FROM json_each($2)) UNION ",
            columns!("runs INDEXED BY runs_lane"),
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

async fn live(
    tx: &mut Tx,
    looked: &[&Looked],
    lanes: &BTreeSet<&str>,
    clearing: &HashSet<&str>,
) -> Result<Vec<InLane>> {
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let commits: BTreeSet<&str> = looked
        .iter()
        .copied()
        .filter_map(new_run)
        .filter_map(|new| new.origin.commit.as_deref())
        .collect();
    let texts = |names: &mut dyn Iterator<Item = &&str>| -> Vec<String> {
        names.map(|name| (*name).to_owned()).collect()
    };
    tx.rows(
        LIVE,
        args![
            texts(&mut lanes.iter()),
            texts(&mut commits.iter()),
            texts(&mut clearing.iter())
        ],
    )
    .await
}

/// Locks all that deliveries may change, and gives the live runs of their lanes, and those of them that may end.
async fn lock(tx: &mut Tx, looked: &[&Looked]) -> Result<(Vec<InLane>, Vec<lives::Living>)> {
    let lanes: BTreeSet<&str> = looked
        .iter()
        .filter_map(|one| one.leads_to.lane())
        .collect();
    lives::lock_groups(
        tx,
        lanes.iter().map(|lane| format!("lane {lane}")).collect(),
    )
    .await?;
    let clearing: HashSet<&str> = looked
        .iter()
        .filter(|one| one.leads_to.clears())
        .filter_map(|one| one.leads_to.lane())
        .collect();
    let live = live(tx, looked, &lanes, &clearing).await?;
    let ending: Vec<&InLane> = live
        .iter()
        .filter(|run| clearing.contains(run.lane.as_str()))
        .collect();
    let new: Vec<&NewRun> = looked.iter().copied().filter_map(new_run).collect();
    let groups = new
        .iter()
        .filter_map(|new| membership(new))
        .map(|group| group.key);
    let groups: BTreeSet<String> = groups
        .chain(ending.iter().filter_map(|run| run.group_name.clone()))
        .collect();
    lives::lock_groups(tx, groups).await?;
    let mut ids: BTreeSet<RunId> = BTreeSet::new();
    for run in &ending {
        ids.insert(runs::id(run.id.clone())?);
    }
    let superseding: Vec<String> = new
        .iter()
        .filter_map(|new| membership(new))
        .filter(|group| group.supersedes)
        .map(|group| group.key)
        .collect();
    if tx.is_postgres() && !superseding.is_empty() {
        let members: Vec<(String,)> = tx
            .rows(
                "SELECT id FROM runs WHERE group_name = ANY($1) AND state IN ('queued', 'leased', 'running')",
                args![superseding],
            )
            .await?;
        for (id,) in members {
            ids.insert(runs::id(id)?);
        }
    }
    let locked = if ids.is_empty() {
        Vec::new()
    } else {
        lives::lock_runs(tx, &ids.iter().collect()).await?
    };
    Ok((live, locked))
}

fn new_run(looked: &Looked) -> Option<&NewRun> {
    match &looked.leads_to {
        LeadsTo::Run { new, .. } => Some(new),
        _ => None,
    }
}

impl Store {
    /// Stores a delivery and all that it leads to, in one transaction. One that its sender sent before leads to nothing.
    pub async fn deliver(
        &self,
        delivery: NewDelivery,
        looked: Vec<Looked>,
        now: Ms,
    ) -> Result<Delivered> {
        let mut all = self.deliver_many(vec![(delivery, looked)], now).await?;
        all.pop()
            .ok_or_else(|| StoreError::corrupt("a delivery that was just stored is not there"))
    }

    /// The same for many, in one transaction: as if they had come one after the other.
    pub async fn deliver_many(
        &self,
        all: Vec<(NewDelivery, Vec<Looked>)>,
        now: Ms,
    ) -> Result<Vec<Delivered>> {
        let mut tx = self.db.write().await?;
        let stored = store(&mut tx, all.iter().map(|(one, _)| one).collect(), now).await?;
        let mut done: Vec<Option<Delivered>> = Vec::with_capacity(all.len());
        let mut new = Vec::new();
        for (place, (delivery, looked)) in all.into_iter().enumerate() {
            if stored.contains(&delivery.id) {
                done.push(None);
                new.push(Led {
                    place,
                    delivery,
                    looked,
                });
            } else {
                done.push(Some(Delivered::Seen(earlier(&mut tx, &delivery).await?)));
            }
        }
        let bodies = new.iter().filter(|one| one.may_be_replayed());
        lives::lock_groups(&mut tx, bodies.map(Led::body).collect()).await?;
        let runs = new.iter().flat_map(|one| &one.looked).filter_map(new_run);
        let mut admission = Admission::load(&mut tx, runs, now).await?;
        let rounds = rounds(new);
        if rounds.len() > 1 {
            let all = rounds.iter().flatten().flat_map(|one| &one.looked);
            lock(&mut tx, &all.collect::<Vec<_>>()).await?;
        }
        let mut later = stored;
        for round in rounds {
            for (place, delivered) in lead(&mut tx, round, &mut later, &mut admission, now).await? {
                done[place] = Some(delivered);
            }
        }
        admission.store(&mut tx, now).await?;
        tx.commit().await?;
        done.into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::corrupt("a delivery that was just stored led to nothing"))
    }
}

/// A delivery whose row is there, and what it leads to.
struct Led {
    /// Its place among all.
    place: usize,
    delivery: NewDelivery,
    looked: Vec<Looked>,
}

impl Led {
    /// Returns `true` if an earlier delivery with the same body matters.
    fn may_be_replayed(&self) -> bool {
        self.delivery.replay_age.is_some()
            && self
                .looked
                .iter()
                .any(|one| !matches!(one.leads_to, LeadsTo::Nothing))
    }

    fn body(&self) -> String {
        format!("body {} {}", self.delivery.webhook, self.delivery.sha256)
    }

    /// All by which one delivery can matter to another one.
    fn concerns(&self) -> HashSet<String> {
        let lanes = self.looked.iter().filter_map(|one| one.leads_to.lane());
        let new = self.looked.iter().filter_map(new_run);
        let groups = new.filter_map(membership);
        lanes
            .map(|lane| format!("lane {lane}"))
            .chain(groups.map(|group| format!("group {}", group.key)))
            .chain(self.may_be_replayed().then(|| self.body()))
            .collect()
    }
}

/// The deliveries in order, cut where one concerns what another one before it does.
fn rounds(all: Vec<Led>) -> Vec<Vec<Led>> {
    let mut rounds: Vec<Vec<Led>> = Vec::new();
    let mut taken = HashSet::new();
    for one in all {
        let concerns = one.concerns();
        match rounds.last_mut() {
            Some(round) if taken.is_disjoint(&concerns) => round.push(one),
            _ => {
                taken.clear();
                rounds.push(vec![one]);
            }
        }
        taken.extend(concerns);
    }
    rounds
}

/// Writes what deliveries lead to that do not concern each other. `later` are those that were stored in this transaction
/// and led to nothing yet.
async fn lead(
    tx: &mut Tx,
    round: Vec<Led>,
    later: &mut HashSet<String>,
    admission: &mut Admission,
    now: Ms,
) -> Result<Vec<(usize, Delivered)>> {
    let looked: Vec<&Looked> = round.iter().flat_map(|one| &one.looked).collect();
    let (live, locked) = lock(tx, &looked).await?;
    let in_lane: HashMap<&str, &InLane> = live.iter().map(|run| (run.id.as_str(), run)).collect();
    let mut plan = Plan::default();
    let mut done = Vec::with_capacity(round.len());
    for one in round {
        later.remove(&one.delivery.id);
        let replayed = if one.may_be_replayed() {
            replayed(tx, &one.delivery, later, now).await?
        } else {
            None
        };
        let Led {
            place,
            delivery,
            looked,
        } = one;
        let lanes: HashSet<String> = looked
            .iter()
            .filter_map(|one| one.leads_to.lane().map(str::to_owned))
            .collect();
        let outcomes = plan.add(
            &delivery,
            looked,
            &live,
            replayed.as_deref(),
            admission,
            now,
        );
        done.push((place, outcomes, lanes));
    }
    let mut canceled: Vec<(RunId, &str)> = Vec::new();
    let mut changes: Vec<Change> = locked.into_iter().map(Change::of).collect();
    for change in &mut changes {
        let id = &change.run.id;
        if let Some(run) = in_lane.get(id.as_str())
            && let Some((ends, reason)) = plan.ends.get(&run.lane)
            && run.is_ended_by(*ends)
            && change.run.life.cancel(reason, now)
        {
            canceled.push((id.clone(), &run.lane));
        }
    }
    lives::save(tx, &changes, "canceled", now).await?;
    for (lane, by) in &plan.newer {
        let older = canceled.iter().filter(|(_, canceled)| canceled == lane);
        let older = older.map(|(id, _)| id.to_string()).collect();
        enqueue::mark_superseded(tx, older, by).await?;
    }
    enqueue::insert(tx, &plan.new, now).await?;
    if !plan.triggers.is_empty() {
        tx.each(OUTCOME, plan.triggers).await?;
    }
    if !plan.statuses.is_empty() {
        tx.each(STATUS, plan.statuses).await?;
    }
    let delivered = done.into_iter().map(|(place, outcomes, lanes)| {
        let canceled = canceled.iter().filter(|(_, lane)| lanes.contains(*lane));
        let canceled = canceled.map(|(id, _)| id.clone()).collect();
        (place, Delivered::New { outcomes, canceled })
    });
    Ok(delivered.collect())
}
