//! Takes deliveries: their rows and all that they lead to, in one transaction.
//!
//! Invariants: a delivery is stored once for each id that its sender gave it, and only that one time leads to anything;
//! what it leads to for each task that was looked at is a run, a run that there was already, or a reason why nothing.
//! Locks are taken in one order: bodies, lanes, groups, runs.

use std::collections::{BTreeSet, HashMap, HashSet};

use acrtask_api::webhook::OutcomeKind;
use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Delivered, Ms, NewRun, OutcomeRow, Result, Store, StoreError, StoredBody,
    db::{Arg, Sql, Tx, args},
    enqueue,
    lives::{self, Change},
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
    /// Bytes of the body.
    pub size: u64,
    /// SHA-256 of the body.
    pub sha256: String,
    /// The body.
    pub body: StoredBody,
    /// Its sender signs the body alone: the same body under another id is the same delivery.
    pub once_a_body: bool,
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
        /// Live runs of its lane are ended.
        newest_wins: bool,
        /// A live run of the same lane and commit stands for it.
        may_join: bool,
        /// Whom the forge is told through, as JSON; nothing: it is not told.
        status: Option<String>,
    },
    /// The end of the live runs of a lane.
    Cancel {
        /// The lane.
        lane: String,
    },
    /// Nothing.
    Nothing,
}

const DELIVERY: &str = "INSERT INTO deliveries (id, webhook, sender_id, kind, repository, summary, note, redelivery_of, headers, \
     size, sha256, body, blob, received_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
     ON CONFLICT (webhook, sender_id) DO NOTHING";

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
}

impl LeadsTo {
    fn lane(&self) -> Option<&str> {
        match self {
            Self::Run { new, .. } => new.origin.lane.as_deref(),
            Self::Cancel { lane } => Some(lane),
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

async fn store(tx: &mut Tx, new: &NewDelivery, now: Ms) -> Result<bool> {
    let (body, blob) = match &new.body {
        StoredBody::Inline(bytes) => (Some(bytes.clone()), None),
        StoredBody::Blob(key) => (None, Some(key.clone())),
    };
    let stored = tx
        .exec(
            DELIVERY,
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
            ],
        )
        .await?;
    Ok(stored == 1)
}

/// The delivery that brought the same body before; those of `later` did not.
async fn same_body(
    tx: &mut Tx,
    new: &NewDelivery,
    later: &HashSet<String>,
) -> Result<Option<String>> {
    // Of those that came with the same body, at most so many are of `later`.
    let limit = later.len() as u64 + 1;
    let rows: Vec<(String,)> = tx
        .rows(
            "SELECT id FROM deliveries WHERE webhook = $1 AND sha256 = $2 AND id <> $3 AND redelivery_of IS NULL \
             ORDER BY received_at LIMIT $4",
            args![
                new.webhook.as_str(),
                new.sha256.as_str(),
                new.id.as_str(),
                limit
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
        () => {
            "SELECT id, lane, commit_id, group_name, cancel_requested_at FROM runs \
             WHERE lane IS NOT NULL AND state IN ('queued', 'leased', 'running') AND lane"
        };
    }
    Sql::of(
        concat!(
            columns!(),
            " IN (SELECT value FROM json_each($1)) AND commit_id IN (SELECT value FROM json_each($2)) UNION ",
            columns!(),
            " IN (SELECT value FROM json_each($3)) ORDER BY id"
        ),
        concat!(
            columns!(),
            " = ANY($1) AND commit_id = ANY($2) UNION ",
            columns!(),
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
        .filter_map(|new| enqueue::group(new))
        .map(|(name, ..)| name.into_owned());
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
        .filter_map(|new| enqueue::group(new))
        .filter(|(.., supersedes)| *supersedes)
        .map(|(name, ..)| name.into_owned())
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

/// What is to be written beside the runs.
#[derive(Default)]
struct Plan {
    new: Vec<NewRun>,
    statuses: Vec<Vec<Arg>>,
    triggers: Vec<Vec<Arg>>,
    outcomes: Vec<OutcomeRow>,
    /// Lanes whose live runs end, and what ends them.
    ends: HashMap<String, String>,
}

impl Plan {
    fn of(
        delivery: &NewDelivery,
        looked: Vec<Looked>,
        live: &[InLane],
        same_body: Option<&str>,
        now: Ms,
    ) -> Self {
        let mut plan = Self::default();
        for (place, one) in (0_u32..).zip(looked) {
            let Looked {
                task,
                kind,
                mut reason,
                leads_to,
            } = one;
            let mut joined = None;
            let mut started = None;
            match leads_to {
                LeadsTo::Nothing => {}
                LeadsTo::Run { .. } | LeadsTo::Cancel { .. } if same_body.is_some() => {
                    reason = format!(
                        "the same body came before, as delivery {}; redeliver that one to run it again",
                        same_body.unwrap_or_default()
                    );
                }
                LeadsTo::Cancel { lane } => {
                    let ended: Vec<&str> = live
                        .iter()
                        .filter(|run| run.lane == lane)
                        .map(|run| run.id.as_str())
                        .collect();
                    reason = match ended.as_slice() {
                        [] => format!("{reason}, and no run of it was left"),
                        [one] => format!("{reason}, so its run {one} ends"),
                        ended => format!("{reason}, so its runs {} end", ended.join(", ")),
                    };
                    plan.ends.insert(lane, reason.clone());
                }
                LeadsTo::Run {
                    mut new,
                    newest_wins,
                    may_join,
                    status,
                } => {
                    joined = live
                        .iter()
                        .find(|run| {
                            may_join
                                && run.cancel_requested_at.is_none()
                                && Some(&run.lane) == new.origin.lane.as_ref()
                                && run.commit_id.is_some()
                                && run.commit_id == new.origin.commit
                        })
                        .map(|run| run.id.clone());
                    if joined.is_none() {
                        if let (true, Some(lane)) = (newest_wins, &new.origin.lane) {
                            plan.ends
                                .insert(lane.clone(), format!("superseded by {}", new.id));
                        }
                        if let Some(target) = status {
                            plan.statuses.push(args![&new.id, target, now]);
                        }
                        new.origin.delivery = Some((delivery.id.clone(), place));
                        new.origin.reason = Some(reason.clone());
                        started = Some(new.id.clone());
                        plan.new.push(*new);
                    }
                }
            }
            let run = started
                .clone()
                .or_else(|| joined.clone().and_then(|id| RunId::new(id).ok()));
            let trigger = match &started {
                Some(run) => run.to_string(),
                None => format!("{}/{place}", delivery.id),
            };
            if started.is_none() {
                let suppressed = run.is_none();
                plan.triggers.push(args![
                    trigger.as_str(),
                    kind.as_str(),
                    task.as_str(),
                    now,
                    run.as_ref().map(RunId::as_str),
                    !suppressed,
                    suppressed.then_some(reason.as_str()),
                    suppressed.then_some(now),
                    delivery.id.as_str(),
                    place,
                    (!suppressed).then_some(reason.as_str()),
                ]);
            }
            plan.outcomes.push(OutcomeRow {
                trigger,
                task,
                kind,
                received_at: now,
                delivery: Some(delivery.id.clone()),
                what: match (&started, &run) {
                    (Some(_), _) => OutcomeKind::Run,
                    (None, Some(_)) => OutcomeKind::Joined,
                    (None, None) => OutcomeKind::Suppressed,
                },
                run,
                reason,
            });
        }
        plan
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
        let mut delivered: Vec<Option<Delivered>> = all.iter().map(|_| None).collect();
        // In one order, so that of two servers none waits for the other one's rows.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|place| {
            let (delivery, _) = &all[*place];
            (&delivery.webhook, &delivery.sender_id)
        });
        for place in order {
            let (delivery, _) = &all[place];
            if !store(&mut tx, delivery, now).await? {
                delivered[place] = Some(Delivered::Seen(earlier(&mut tx, delivery).await?));
            }
        }
        let mut later = HashSet::new();
        let mut bodies = BTreeSet::new();
        let mut looked = Vec::new();
        for ((delivery, of_delivery), seen) in all.iter().zip(&delivered) {
            if seen.is_none() {
                later.insert(delivery.id.clone());
                if signs_something(delivery, of_delivery) {
                    bodies.insert(format!("body {} {}", delivery.webhook, delivery.sha256));
                }
                looked.extend(of_delivery);
            }
        }
        lives::lock_groups(&mut tx, bodies).await?;
        if all.len() > 1 {
            lock(&mut tx, &looked).await?;
        }
        drop(looked);
        let mut done = Vec::with_capacity(all.len());
        for ((delivery, looked), seen) in all.into_iter().zip(delivered) {
            later.remove(&delivery.id);
            done.push(match seen {
                Some(seen) => seen,
                None => lead(&mut tx, &delivery, looked, &later, now).await?,
            });
        }
        tx.commit().await?;
        Ok(done)
    }
}

/// Whether the same body under another id has to be looked for.
fn signs_something(delivery: &NewDelivery, looked: &[Looked]) -> bool {
    delivery.once_a_body
        && looked
            .iter()
            .any(|one| !matches!(one.leads_to, LeadsTo::Nothing))
}

/// Writes what a delivery leads to whose row is there. `later` are those that come after it in this transaction.
async fn lead(
    tx: &mut Tx,
    delivery: &NewDelivery,
    looked: Vec<Looked>,
    later: &HashSet<String>,
    now: Ms,
) -> Result<Delivered> {
    let same_body = if signs_something(delivery, &looked) {
        same_body(tx, delivery, later).await?
    } else {
        None
    };
    let (live, locked) = lock(tx, &looked.iter().collect::<Vec<_>>()).await?;
    let plan = Plan::of(delivery, looked, &live, same_body.as_deref(), now);
    let lane_of: HashMap<&str, &str> = live
        .iter()
        .map(|run| (run.id.as_str(), run.lane.as_str()))
        .collect();
    let mut canceled = Vec::new();
    let mut changes: Vec<Change> = locked.into_iter().map(Change::of).collect();
    for change in &mut changes {
        let id = &change.run.id;
        let lane = lane_of.get(id.as_str()).copied();
        if let Some(reason) = lane.and_then(|lane| plan.ends.get(lane))
            && change.run.life.cancel(reason, now)
        {
            canceled.push(id.clone());
        }
    }
    lives::save(tx, &changes, "canceled", now).await?;
    enqueue::insert(tx, &plan.new, now).await?;
    if !plan.triggers.is_empty() {
        tx.each(OUTCOME, plan.triggers).await?;
    }
    if !plan.statuses.is_empty() {
        tx.each(STATUS, plan.statuses).await?;
    }
    Ok(Delivered::New {
        outcomes: plan.outcomes,
        canceled,
    })
}
