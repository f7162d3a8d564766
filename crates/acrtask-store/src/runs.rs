//! Runs as rows: what a run is when it is asked for, and what is known of it later; one run, lists of runs, and why one
//! waits. How runs come in is in `enqueue.rs`, how they are handed out in `queue.rs`, how they go on in `reports.rs`.

use std::collections::{BTreeSet, HashMap};

use acrtask_api::{
    run::{Approval, Run, RunResult, RunSummary},
    spec::{Facts, RunSpec},
    task::QueueOptions,
};
use acrtask_model::{RunId, RunState, TrustDomain};
use sqlx::FromRow;

use crate::{
    Ms, Result, RunGroup, Store, StoreError,
    db::{Arg, Sql, Tx, args, one_of},
    from_json,
    lives::{self, Change},
    to_json,
};

/// A run that is asked for.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// The stored task that it is a run of.
    pub task_id: Option<String>,
    /// That task's name.
    pub task_name: Option<String>,
    /// What it is to do.
    pub spec: RunSpec,
    /// Where and when it may run, with all that the task and the defaults say.
    pub queue: QueueOptions,
    /// `linux/amd64` ...; empty: any.
    pub platform: String,
    /// The uploaded context that it needs.
    pub context_id: Option<String>,
    /// Encrypted: the values of its own secrets.
    pub secrets: Option<Vec<u8>>,
    /// What started it: `manual`, `rerun`, `task` ...
    pub trigger: String,
    /// Who asked for it.
    pub requested_by: Option<String>,
    /// The run that it repeats.
    pub rerun_of: Option<RunId>,
    /// A second request with the same key gets the first one's run.
    pub idempotency_key: Option<String>,
    /// Limit of the whole run.
    pub timeout_secs: Option<u64>,
    /// W3C traceparent; empty where nothing is traced.
    pub traceparent: String,
    /// Runs with the same key are warm on the same runner.
    pub warm_key: String,
    /// How often it may be lost with its runner before it is given up; at least 1.
    pub max_attempts: u32,
    /// What it comes from.
    pub origin: Origin,
    /// What it may share with other runs.
    pub trust_domain: TrustDomain,
}

/// What a run comes from, as far as that decides about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// What moved: runs of one lane are of the same task and the same branch, tag or pull request.
    pub lane: Option<String>,
    /// The commit.
    pub commit: Option<String>,
    /// The token, or the identity of another issuer, whose quotas the run counts against. `None`: only those of its task.
    pub charged_to: Option<String>,
    /// Runs of the lane take turns, unless the task has a concurrency group.
    pub one_at_a_time: bool,
    /// It may not begin before somebody has approved it.
    pub needs_approval: bool,
    /// Somebody wants to be told of its result.
    pub notify: bool,
    /// The delivery that it came with, and its place among what that delivery led to.
    pub delivery: Option<(String, u32)>,
    /// Why it was started, as a sentence.
    pub reason: Option<String>,
}

/// A run that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Its id.
    pub id: RunId,
    /// The stored task that it is a run of.
    pub task_id: Option<String>,
    /// That task's name when the run was asked for.
    pub task_name: Option<String>,
    /// What it is to do.
    pub spec: RunSpec,
    /// Where and when it may run.
    pub queue: QueueOptions,
    /// Its class: what a runner must have for it.
    pub class: i64,
    /// The pool of its class.
    pub pool: String,
    /// `linux/amd64` ...; empty: any.
    pub platform: String,
    /// The uploaded context that it needs.
    pub context_id: Option<String>,
    /// Encrypted: the values of its own secrets.
    pub secrets: Option<Vec<u8>>,
    /// What started it.
    pub trigger: String,
    /// Who asked for it.
    pub requested_by: Option<String>,
    /// The run that it repeats.
    pub rerun_of: Option<RunId>,
    /// Limit of the whole run.
    pub timeout_secs: Option<u64>,
    /// W3C traceparent; empty where nothing is traced.
    pub traceparent: String,
    /// Runs with the same key are warm on the same runner.
    pub warm_key: String,
    /// How often it may be lost with its runner.
    pub max_attempts: u32,
    /// How often it was lost with a runner that had accepted it.
    pub losses: u32,
    /// Where it stands.
    pub state: RunState,
    /// Why it ended as it did, or why it is queued again.
    pub reason: Option<String>,
    /// The group whose runs take turns.
    pub group: Option<RunGroup>,
    /// Queued, but not ready: its group has no room.
    pub held: bool,
    /// The attempt that counts, from 1; 0 while it has not been leased.
    pub attempt: u32,
    /// The runner that holds or held it.
    pub runner_id: Option<String>,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// When its lease ends.
    pub lease_until: Option<Ms>,
    /// When the reaper acts; always there for a leased or running one.
    pub deadline: Option<Ms>,
    /// Its place in the queue: the moment it was asked for, less the head start of its priority.
    pub order_key: i64,
    /// When it was asked for.
    pub created_at: Ms,
    /// When its current attempt was leased.
    pub leased_at: Option<Ms>,
    /// When its current attempt started.
    pub started_at: Option<Ms>,
    /// When it ended.
    pub finished_at: Option<Ms>,
    /// When somebody asked for its end.
    pub cancel_requested_at: Option<Ms>,
    /// What they said.
    pub cancel_reason: Option<String>,
    /// Bytes that are stored of the current attempt's log.
    pub log_length: u64,
    /// Of the whole log, once it is over: lower-case hexadecimal.
    pub log_sha256: Option<String>,
    /// What came of it.
    pub result: Option<RunResult>,
    /// What moved, where a commit started it.
    pub lane: Option<String>,
    /// The commit that started it.
    pub commit: Option<String>,
    /// Whether a stranger's commit was approved; nothing: it needs no approval.
    pub approval: Option<Approval>,
    /// Who approved it.
    pub approved_by: Option<String>,
    /// What it may share with other runs.
    pub trust_domain: TrustDomain,
    /// The run that canceled it because it is newer.
    pub superseded_by: Option<RunId>,
}

impl RunRow {
    /// As the API shows it.
    pub fn to_api(&self) -> Run {
        Run {
            id: self.id.clone(),
            task: self.task_name.clone(),
            state: self.state,
            reason: self.reason.clone(),
            trigger: self.trigger.clone(),
            requested_by: self.requested_by.clone(),
            rerun_of: self.rerun_of.clone(),
            attempt: self.attempt,
            runner: self.runner_name.clone().or_else(|| self.runner_id.clone()),
            queue: self.queue.clone(),
            spec: self.spec.clone(),
            created_at: crate::timestamp(self.created_at),
            started_at: self.started_at.map(crate::timestamp),
            finished_at: self.finished_at.map(crate::timestamp),
            cancel_requested: self.cancel_requested_at.is_some(),
            log_length: self.log_length,
            result: self.result.clone(),
            domain: self.trust_domain.to_string(),
            approval: self.approval,
            approved_by: self.approved_by.clone(),
            tick: None,
            cascade: None,
        }
    }
}

/// Which runs a list shows.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only these states; empty: all.
    pub states: Vec<RunState>,
    /// Only runs of the task with this name.
    pub task: Option<String>,
    /// Only runs of tasks whose names begin so.
    pub task_prefix: Option<String>,
    /// Only runs that were created at this time or later.
    pub since: Option<Ms>,
    /// Only runs that were created before this time.
    pub until: Option<Ms>,
    /// What an earlier page gave as its cursor.
    pub before: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// All of a run, with its class and its runner's name; to be followed by conditions.
macro_rules! select_runs {
    () => {
        "SELECT r.id, r.task_id, r.task_name, r.spec, r.queue, r.class_id, c.pool, c.platform, r.context_id, r.secrets, \
         r.started_by, r.requested_by, r.rerun_of, r.timeout_secs, r.traceparent, r.warm_key, r.max_attempts, r.losses, \
         r.state, r.reason, r.group_name, r.held, r.attempt, r.runner_id, n.name AS runner_name, r.lease_until, r.deadline, \
         r.order_key, r.created_at, r.leased_at, r.started_at, r.finished_at, r.cancel_requested_at, r.cancel_reason, \
         r.log_length, r.log_sha256, r.result, r.lane, r.commit_id, r.approval, r.approved_by, r.superseded_by, r.trust_domain \
         FROM runs r JOIN classes c ON c.id = r.class_id LEFT JOIN runners n ON n.id = r.runner_id "
    };
}

/// Columns of a list: none that may be large.
const SUMMARIES: &str = "SELECT r.id, r.task_name, r.queue, r.started_by, r.requested_by, r.rerun_of, r.state, r.reason, \
    r.attempt, r.runner_id, n.name AS runner_name, r.created_at, r.started_at, r.finished_at, r.cancel_requested_at, \
    r.log_length, r.approval, r.approved_by, CASE WHEN r.approval = 'pending' THEN r.pending_facts END AS facts \
    FROM runs r LEFT JOIN runners n ON n.id = r.runner_id ";

#[derive(Debug, FromRow)]
struct RawSummary {
    id: String,
    task_name: Option<String>,
    queue: String,
    started_by: String,
    requested_by: Option<String>,
    rerun_of: Option<String>,
    state: String,
    reason: Option<String>,
    attempt: i64,
    runner_id: Option<String>,
    runner_name: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    log_length: i64,
    approval: Option<String>,
    approved_by: Option<String>,
    facts: Option<String>,
}

impl TryFrom<RawSummary> for RunSummary {
    type Error = StoreError;

    fn try_from(raw: RawSummary) -> Result<Self> {
        let facts: Option<Facts> = raw.facts.as_deref().map(from_json).transpose()?;
        Ok(Self {
            revision: facts.and_then(|facts| facts.revision()),
            id: id(raw.id)?,
            task: raw.task_name,
            state: lives::state(&raw.state)?,
            reason: raw.reason,
            trigger: raw.started_by,
            requested_by: raw.requested_by,
            rerun_of: raw.rerun_of.map(id).transpose()?,
            attempt: lives::small(raw.attempt)?,
            runner: raw.runner_name.or(raw.runner_id),
            queue: from_json(&raw.queue)?,
            created_at: crate::timestamp(raw.created_at),
            started_at: raw.started_at.map(crate::timestamp),
            finished_at: raw.finished_at.map(crate::timestamp),
            cancel_requested: raw.cancel_requested_at.is_some(),
            log_length: lives::size(raw.log_length)?,
            approval: raw.approval.as_deref().map(approval).transpose()?,
            approved_by: raw.approved_by,
            cascade: None,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawRun {
    id: String,
    task_id: Option<String>,
    task_name: Option<String>,
    spec: String,
    queue: String,
    class_id: i64,
    pool: String,
    platform: String,
    context_id: Option<String>,
    secrets: Option<Vec<u8>>,
    started_by: String,
    requested_by: Option<String>,
    rerun_of: Option<String>,
    timeout_secs: Option<i64>,
    traceparent: String,
    warm_key: String,
    max_attempts: i64,
    losses: i64,
    state: String,
    reason: Option<String>,
    group_name: Option<String>,
    held: i64,
    attempt: i64,
    runner_id: Option<String>,
    runner_name: Option<String>,
    lease_until: Option<i64>,
    deadline: Option<i64>,
    order_key: i64,
    created_at: i64,
    leased_at: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    cancel_reason: Option<String>,
    log_length: i64,
    log_sha256: Option<String>,
    result: Option<String>,
    lane: Option<String>,
    commit_id: Option<String>,
    approval: Option<String>,
    approved_by: Option<String>,
    trust_domain: String,
    superseded_by: Option<String>,
}

impl TryFrom<RawRun> for RunRow {
    type Error = StoreError;

    fn try_from(raw: RawRun) -> Result<Self> {
        Ok(Self {
            spec: from_json(&raw.spec)?,
            queue: from_json(&raw.queue)?,
            result: raw.result.as_deref().map(from_json).transpose()?,
            id: id(raw.id)?,
            task_id: raw.task_id,
            task_name: raw.task_name,
            class: raw.class_id,
            pool: raw.pool,
            platform: raw.platform,
            context_id: raw.context_id,
            secrets: raw.secrets,
            trigger: raw.started_by,
            requested_by: raw.requested_by,
            rerun_of: raw.rerun_of.map(id).transpose()?,
            timeout_secs: raw.timeout_secs.map(lives::size).transpose()?,
            traceparent: raw.traceparent,
            warm_key: raw.warm_key,
            max_attempts: lives::small(raw.max_attempts)?,
            losses: lives::small(raw.losses)?,
            state: lives::state(&raw.state)?,
            reason: raw.reason,
            group: raw.group_name.as_deref().map(RunGroup::parse).transpose()?,
            superseded_by: raw.superseded_by.map(id).transpose()?,
            held: raw.held != 0,
            attempt: lives::small(raw.attempt)?,
            runner_id: raw.runner_id,
            runner_name: raw.runner_name,
            lease_until: raw.lease_until,
            deadline: raw.deadline,
            order_key: raw.order_key,
            created_at: raw.created_at,
            leased_at: raw.leased_at,
            started_at: raw.started_at,
            finished_at: raw.finished_at,
            cancel_requested_at: raw.cancel_requested_at,
            cancel_reason: raw.cancel_reason,
            log_length: lives::size(raw.log_length)?,
            log_sha256: raw.log_sha256,
            lane: raw.lane,
            commit: raw.commit_id,
            approval: raw.approval.as_deref().map(approval).transpose()?,
            approved_by: raw.approved_by,
            trust_domain: TrustDomain::parse(&raw.trust_domain).map_err(StoreError::corrupt)?,
        })
    }
}

fn approval(text: &str) -> Result<Approval> {
    match text {
        "pending" => Ok(Approval::Pending),
        "approved" => Ok(Approval::Approved),
        _ => Err(StoreError::corrupt(format!("approval `{text}`"))),
    }
}

/// An id as the database has it.
pub(crate) fn id(text: String) -> Result<RunId> {
    RunId::new(text).map_err(StoreError::corrupt)
}

/// A run inside a transaction.
pub(crate) async fn find(tx: &mut Tx, id: &RunId) -> Result<RunRow> {
    let raw: Option<RawRun> = tx
        .row(concat!(select_runs!(), "WHERE r.id = $1"), args![id])
        .await?;
    raw.ok_or_else(|| missing(id))?.try_into()
}

/// Runs inside a transaction, by id.
pub(crate) async fn find_all(tx: &mut Tx, ids: Vec<String>) -> Result<HashMap<RunId, RunRow>> {
    let sql = one_of!(concat!(select_runs!(), "WHERE r.id"), "$1", "");
    let rows: Vec<RawRun> = tx.rows(sql, args![ids]).await?;
    rows.into_iter()
        .map(|raw| {
            let row = RunRow::try_from(raw)?;
            Ok((row.id.clone(), row))
        })
        .collect()
}

pub(crate) fn missing(id: &RunId) -> StoreError {
    StoreError::not_found(format!("run {id}"))
}

/// The place of a run in lists: `CREATED_AT:ID`.
fn cursor(created_at: Ms, id: &RunId) -> String {
    format!("{created_at}:{id}")
}

fn parse_cursor(text: &str) -> Result<(i64, RunId)> {
    text.split_once(':')
        .and_then(|(at, id)| Some((at.parse().ok()?, RunId::new(id).ok()?)))
        .ok_or_else(|| StoreError::Invalid {
            what: format!("`{text}` is no cursor; give back what the page before gave as `next`"),
        })
}

/// The statement of one page. Each state has an index that has the order, so each is asked for its part of the page; but
/// in one statement, so that a run that goes from one state to another meanwhile is neither missed nor seen twice.
fn page(columns: &Sql, filter: &RunFilter) -> Result<(Sql, Vec<Arg>)> {
    let mut conditions = Vec::new();
    let mut args = args![i64::from(filter.limit) + 1];
    let mut parameter = |value: Arg| {
        args.push(value);
        format!("${}", args.len())
    };
    if let Some(task) = &filter.task {
        conditions.push(format!("task_name = {}", parameter(task.into())));
    }
    if let Some(prefix) = &filter.task_prefix {
        let (from, to) = (parameter(prefix.into()), parameter(beyond(prefix).into()));
        conditions.push(format!("task_name >= {from} AND task_name < {to}"));
    }
    for (time, operator) in [(filter.since, ">="), (filter.until, "<")] {
        conditions.extend(time.map(|at| format!("created_at {operator} {}", parameter(at.into()))));
    }
    if let Some(before) = &filter.before {
        let (at, id) = parse_cursor(before)?;
        let (at, id) = (parameter(at.into()), parameter((&id).into()));
        conditions.push(format!("(created_at, id) < ({at}, {id})"));
    }
    let states: Vec<String> = RunState::ALL
        .into_iter()
        .filter(|state| filter.states.contains(state))
        .map(|state| format!("state = '{}'", state.as_str()))
        .collect();
    let parts = if filter.states.is_empty() {
        vec!["1 = 1".to_owned()]
    } else {
        states
    };
    let parts: Vec<String> = parts
        .into_iter()
        .enumerate()
        .map(|(number, state)| {
            let conditions = std::iter::once(&state).chain(&conditions);
            let conditions = conditions.map(String::as_str).collect::<Vec<_>>();
            format!(
                "SELECT id FROM (SELECT id FROM runs WHERE {} ORDER BY created_at DESC, id DESC LIMIT $1) AS part{number}",
                conditions.join(" AND ")
            )
        })
        .collect();
    let rest = format!(
        "JOIN ({}) AS page ON page.id = r.id ORDER BY r.created_at DESC, r.id DESC LIMIT $1",
        parts.join(" UNION ALL ")
    );
    Ok((columns.with(&rest), args))
}

/// Cuts a page to its limit. Returns whether there is another one.
fn cut_page<T>(rows: &mut Vec<T>, filter: &RunFilter) -> bool {
    let limit = filter.limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}

/// What no text that begins with `prefix` reaches.
pub(crate) fn beyond(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

impl Store {
    /// One run.
    pub async fn run(&self, id: &RunId) -> Result<RunRow> {
        let raw: Option<RawRun> = self
            .db
            .row(concat!(select_runs!(), "WHERE r.id = $1"), args![id])
            .await?;
        raw.ok_or_else(|| missing(id))?.try_into()
    }

    /// A page of runs, newest first, and the cursor of the next one.
    pub async fn runs(&self, filter: RunFilter) -> Result<(Vec<RunRow>, Option<String>)> {
        let (sql, args) = page(&Sql::from(select_runs!()), &filter)?;
        let raw: Vec<RawRun> = self.db.rows(sql, args).await?;
        let rows: Result<Vec<RunRow>> = raw.into_iter().map(RunRow::try_from).collect();
        let mut rows = rows?;
        let more = cut_page(&mut rows, &filter);
        let next = rows.last().filter(|_| more);
        let next = next.map(|row| cursor(row.created_at, &row.id));
        Ok((rows, next))
    }

    /// Returns the same page without specs, results and secrets. The statement does not read these columns.
    pub async fn run_summaries(
        &self,
        filter: RunFilter,
    ) -> Result<(Vec<RunSummary>, Option<String>)> {
        let (sql, args) = page(&Sql::from(SUMMARIES), &filter)?;
        let mut raw: Vec<RawSummary> = self.db.rows(sql, args).await?;
        let more = cut_page(&mut raw, &filter);
        let last = raw.last().filter(|_| more);
        let last = last.map(|row| (row.created_at, row.id.clone()));
        let rows: Result<Vec<RunSummary>> = raw.into_iter().map(RunSummary::try_from).collect();
        let next = last.map(|(at, last)| Ok::<_, StoreError>(cursor(at, &id(last)?)));
        Ok((rows?, next.transpose()?))
    }

    /// Ends a queued run at once; of a leased or running one the runner is told. A final one is left alone. Gives the row
    /// after that.
    pub async fn request_cancel(&self, id: &RunId, reason: &str, now: Ms) -> Result<RunRow> {
        let mut tx = self.db.write().await?;
        let ids = BTreeSet::from([id]);
        let groups = lives::groups_of(&mut tx, &ids).await?;
        lives::lock_groups(&mut tx, groups).await?;
        let mut changes: Vec<Change> = lives::lock_runs(&mut tx, &ids)
            .await?
            .into_iter()
            .map(Change::of)
            .collect();
        for change in &mut changes {
            change.run.life.cancel(reason, now);
        }
        lives::save(&mut tx, &changes, "canceled", now).await?;
        let row = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Lets a run begin that waits for its approval; from now on it does what `spec` says. `Conflict` where it does not
    /// wait for that.
    pub async fn approve(&self, id: &RunId, spec: &RunSpec, by: &str, now: Ms) -> Result<RunRow> {
        let mut tx = self.db.write().await?;
        let groups = lives::groups_of(&mut tx, &BTreeSet::from([id])).await?;
        lives::lock_groups(&mut tx, groups.clone()).await?;
        let changed = tx
            .exec(
                "UPDATE runs SET approval = 'approved', approved_by = $2, approved_at = $3, spec = $4 \
                 WHERE id = $1 AND approval = 'pending' AND state = 'queued'",
                args![id, by, now, to_json(spec)?],
            )
            .await?;
        if changed == 0 {
            let row = find(&mut tx, id).await?;
            return Err(StoreError::conflict(match (row.approval, row.state) {
                (None, _) => format!("the run {id} needs no approval"),
                (Some(Approval::Approved), _) => format!("the run {id} is approved already"),
                (Some(Approval::Pending), state) => format!("the run {id} is over: {state}"),
            }));
        }
        for group in groups {
            lives::release(&mut tx, &group).await?;
        }
        let row = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }
}
