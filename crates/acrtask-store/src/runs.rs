//! Runs as rows: requested runs, stored runs, and lists of runs. `enqueue.rs` adds runs, `queue.rs`
//! leases them, and `reports.rs` changes their states.

use std::collections::{BTreeSet, HashMap};

use acrtask_api::{
    run::{Approval, Run, RunResult, RunSummary},
    spec::{RunSpec, Variables},
    task::QueueOptions,
};
use acrtask_model::{RunId, RunState, TrustDomain};
use sqlx::FromRow;

use crate::{
    Ms, Result, RunGroup, Store, StoreError,
    db::{Arg, Sql, Tx, args, one_of},
    from_json,
    run_state::{self, Change},
    to_json,
};

/// A requested run.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Id of the run.
    pub id: RunId,
    /// Id of the stored task.
    pub task_id: Option<String>,
    /// Name of the stored task.
    pub task_name: Option<String>,
    /// Task file, variables and options of the run.
    pub spec: RunSpec,
    /// Queue options, complete with the defaults of the task and the server.
    pub queue: QueueOptions,
    /// Platform such as `linux/amd64`. Empty: any.
    pub platform: String,
    /// Uploaded context that the run needs.
    pub context_id: Option<String>,
    /// Encrypted values of the run's own secrets.
    pub secrets: Option<Vec<u8>>,
    /// Kind of the trigger: `manual`, `rerun`, `task` ...
    pub trigger: String,
    /// Principal that requested the run.
    pub requested_by: Option<String>,
    /// Run that this one repeats.
    pub rerun_of: Option<RunId>,
    /// A second request with the same key gets the run of the first one.
    pub idempotency_key: Option<String>,
    /// Timeout of the whole run.
    pub timeout_secs: Option<u64>,
    /// W3C traceparent. Empty if tracing is off.
    pub traceparent: String,
    /// Runs with the same key prefer the same runner, for its warm cache.
    pub affinity_key: String,
    /// Number of attempts that may be lost with their runner before the run fails; at least 1.
    pub max_attempts: u32,
    /// Source of the run.
    pub origin: Origin,
    /// Boundary within which the run may share caches with other runs.
    pub trust_domain: TrustDomain,
}

/// Source of a run, as far as scheduling depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Task and branch, tag or pull request of the run.
    pub ref_key: Option<String>,
    /// Commit id.
    pub commit: Option<String>,
    /// Token, or identity of another issuer, whose quotas the run counts against. `None`: only the
    /// quotas of its task apply.
    pub charged_to: Option<String>,
    /// Executes runs of the same ref one at a time, unless the task has a concurrency group.
    pub one_at_a_time: bool,
    /// Blocks the run until an approval.
    pub needs_approval: bool,
    /// Sends notifications about the result.
    pub notify: bool,
    /// Delivery that started the run, and index of the decision within the delivery.
    pub delivery: Option<(String, u32)>,
    /// Sentence that explains why the run was started.
    pub reason: Option<String>,
}

/// A stored run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Id of the run.
    pub id: RunId,
    /// Id of the stored task.
    pub task_id: Option<String>,
    /// Name of the task at the time of the request.
    pub task_name: Option<String>,
    /// Task file, variables and options of the run.
    pub spec: RunSpec,
    /// Queue options of the run.
    pub queue: QueueOptions,
    /// Id of its runner requirement.
    pub requirement_id: i64,
    /// Pool of the runner requirement.
    pub pool: String,
    /// Platform such as `linux/amd64`. Empty: any.
    pub platform: String,
    /// Uploaded context that the run needs.
    pub context_id: Option<String>,
    /// Encrypted values of the run's own secrets.
    pub secrets: Option<Vec<u8>>,
    /// Kind of the trigger.
    pub trigger: String,
    /// Principal that requested the run.
    pub requested_by: Option<String>,
    /// Run that this one repeats.
    pub rerun_of: Option<RunId>,
    /// Timeout of the whole run.
    pub timeout_secs: Option<u64>,
    /// W3C traceparent. Empty if tracing is off.
    pub traceparent: String,
    /// Runs with the same key prefer the same runner, for its warm cache.
    pub affinity_key: String,
    /// Number of attempts that may be lost with their runner.
    pub max_attempts: u32,
    /// Number of attempts that were lost after the runner had accepted them.
    pub lost_attempts: u32,
    /// Current state.
    pub state: RunState,
    /// Reason of a final state, or of the return to the queue.
    pub reason: Option<String>,
    /// Concurrency group.
    pub group: Option<RunGroup>,
    /// Queued, but not ready: the concurrency group has no free slot.
    pub blocked: bool,
    /// Current attempt, from 1. 0 before the first lease.
    pub attempt: u32,
    /// Runner of the current or last lease.
    pub runner_id: Option<String>,
    /// Name of that runner.
    pub runner_name: Option<String>,
    /// End of the lease.
    pub lease_until: Option<Ms>,
    /// Time at which the reaper acts. Always set for leased and running runs.
    pub deadline: Option<Ms>,
    /// Rank in the queue: creation time minus the head start of the priority, in milliseconds.
    pub queue_rank: i64,
    /// Time of the request.
    pub created_at: Ms,
    /// Time at which the current attempt was leased.
    pub leased_at: Option<Ms>,
    /// Time at which the current attempt started.
    pub started_at: Option<Ms>,
    /// Time of the end.
    pub finished_at: Option<Ms>,
    /// Time of the cancellation request.
    pub cancel_requested_at: Option<Ms>,
    /// Reason of the cancellation request.
    pub cancel_reason: Option<String>,
    /// Stored bytes of the current attempt's log.
    pub log_length: u64,
    /// Lower-case hexadecimal SHA-256 of the complete log. `None` until the run has finished.
    pub log_sha256: Option<String>,
    /// Result of the run.
    pub result: Option<RunResult>,
    /// Task and branch, tag or pull request of a run that a commit started.
    pub ref_key: Option<String>,
    /// Commit that started the run.
    pub commit: Option<String>,
    /// Approval of a commit from a fork. `None`: no approval is needed.
    pub approval: Option<Approval>,
    /// Principal that approved the run.
    pub approved_by: Option<String>,
    /// Boundary within which the run may share caches with other runs.
    pub trust_domain: TrustDomain,
    /// Newer run that superseded this one.
    pub superseded_by: Option<RunId>,
}

impl RunRow {
    /// Converts to the representation of the API.
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
            firing: None,
            cascade: None,
        }
    }
}

/// Filter of a list of runs.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only these states. Empty: all states.
    pub states: Vec<RunState>,
    /// Only runs of the task with this name.
    pub task: Option<String>,
    /// Only runs of tasks whose names start with this prefix.
    pub task_prefix: Option<String>,
    /// Only runs that were created at this time or later.
    pub since: Option<Ms>,
    /// Only runs that were created before this time.
    pub until: Option<Ms>,
    /// Cursor from the previous page.
    pub before: Option<String>,
    /// At most this number of runs.
    pub limit: u32,
}

/// Selects all columns of runs, with their runner requirements and runner names. The caller appends
/// conditions.
macro_rules! select_runs {
    () => {
        "SELECT r.id, r.task_id, r.task_name, r.spec, r.queue, r.requirement_id, c.pool, c.platform, r.context_id, r.secrets, \
         r.started_by, r.requested_by, r.rerun_of, r.timeout_secs, r.traceparent, r.affinity_key, r.max_attempts, r.lost_attempts, \
         r.state, r.reason, r.group_name, r.blocked, r.attempt, r.runner_id, n.name AS runner_name, r.lease_until, r.deadline, \
         r.queue_rank, r.created_at, r.leased_at, r.started_at, r.finished_at, r.cancel_requested_at, r.cancel_reason, \
         r.log_length, r.log_sha256, r.result, r.ref_key, r.commit_id, r.approval, r.approved_by, r.superseded_by, r.trust_domain \
         FROM runs r JOIN runner_requirements c ON c.id = r.requirement_id LEFT JOIN runners n ON n.id = r.runner_id "
    };
}

/// Columns of a list, without those that may be large.
const SUMMARIES: &str = "SELECT r.id, r.task_name, r.queue, r.started_by, r.requested_by, r.rerun_of, r.state, r.reason, \
    r.attempt, r.runner_id, n.name AS runner_name, r.created_at, r.started_at, r.finished_at, r.cancel_requested_at, \
    r.log_length, r.approval, r.approved_by, CASE WHEN r.approval = 'pending' THEN r.pending_variables END AS variables \
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
    variables: Option<String>,
}

impl TryFrom<RawSummary> for RunSummary {
    type Error = StoreError;

    fn try_from(raw: RawSummary) -> Result<Self> {
        let variables: Option<Variables> = raw.variables.as_deref().map(from_json).transpose()?;
        Ok(Self {
            revision: variables.and_then(|variables| variables.revision()),
            id: parse_run_id(raw.id)?,
            task: raw.task_name,
            state: run_state::parse_state(&raw.state)?,
            reason: raw.reason,
            trigger: raw.started_by,
            requested_by: raw.requested_by,
            rerun_of: raw.rerun_of.map(parse_run_id).transpose()?,
            attempt: run_state::to_u32(raw.attempt)?,
            runner: raw.runner_name.or(raw.runner_id),
            queue: from_json(&raw.queue)?,
            created_at: crate::timestamp(raw.created_at),
            started_at: raw.started_at.map(crate::timestamp),
            finished_at: raw.finished_at.map(crate::timestamp),
            cancel_requested: raw.cancel_requested_at.is_some(),
            log_length: run_state::to_u64(raw.log_length)?,
            approval: raw.approval.as_deref().map(parse_approval).transpose()?,
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
    requirement_id: i64,
    pool: String,
    platform: String,
    context_id: Option<String>,
    secrets: Option<Vec<u8>>,
    started_by: String,
    requested_by: Option<String>,
    rerun_of: Option<String>,
    timeout_secs: Option<i64>,
    traceparent: String,
    affinity_key: String,
    max_attempts: i64,
    lost_attempts: i64,
    state: String,
    reason: Option<String>,
    group_name: Option<String>,
    blocked: i64,
    attempt: i64,
    runner_id: Option<String>,
    runner_name: Option<String>,
    lease_until: Option<i64>,
    deadline: Option<i64>,
    queue_rank: i64,
    created_at: i64,
    leased_at: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    cancel_reason: Option<String>,
    log_length: i64,
    log_sha256: Option<String>,
    result: Option<String>,
    ref_key: Option<String>,
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
            id: parse_run_id(raw.id)?,
            task_id: raw.task_id,
            task_name: raw.task_name,
            requirement_id: raw.requirement_id,
            pool: raw.pool,
            platform: raw.platform,
            context_id: raw.context_id,
            secrets: raw.secrets,
            trigger: raw.started_by,
            requested_by: raw.requested_by,
            rerun_of: raw.rerun_of.map(parse_run_id).transpose()?,
            timeout_secs: raw.timeout_secs.map(run_state::to_u64).transpose()?,
            traceparent: raw.traceparent,
            affinity_key: raw.affinity_key,
            max_attempts: run_state::to_u32(raw.max_attempts)?,
            lost_attempts: run_state::to_u32(raw.lost_attempts)?,
            state: run_state::parse_state(&raw.state)?,
            reason: raw.reason,
            group: raw.group_name.as_deref().map(RunGroup::parse).transpose()?,
            superseded_by: raw.superseded_by.map(parse_run_id).transpose()?,
            blocked: raw.blocked != 0,
            attempt: run_state::to_u32(raw.attempt)?,
            runner_id: raw.runner_id,
            runner_name: raw.runner_name,
            lease_until: raw.lease_until,
            deadline: raw.deadline,
            queue_rank: raw.queue_rank,
            created_at: raw.created_at,
            leased_at: raw.leased_at,
            started_at: raw.started_at,
            finished_at: raw.finished_at,
            cancel_requested_at: raw.cancel_requested_at,
            cancel_reason: raw.cancel_reason,
            log_length: run_state::to_u64(raw.log_length)?,
            log_sha256: raw.log_sha256,
            ref_key: raw.ref_key,
            commit: raw.commit_id,
            approval: raw.approval.as_deref().map(parse_approval).transpose()?,
            approved_by: raw.approved_by,
            trust_domain: TrustDomain::parse(&raw.trust_domain).map_err(StoreError::corrupt)?,
        })
    }
}

fn parse_approval(text: &str) -> Result<Approval> {
    match text {
        "pending" => Ok(Approval::Pending),
        "approved" => Ok(Approval::Approved),
        _ => Err(StoreError::corrupt(format!("approval `{text}`"))),
    }
}

/// Parses a stored run id.
pub(crate) fn parse_run_id(text: String) -> Result<RunId> {
    RunId::new(text).map_err(StoreError::corrupt)
}

/// Reads a run within a transaction.
pub(crate) async fn find_run(tx: &mut Tx, id: &RunId) -> Result<RunRow> {
    let raw: Option<RawRun> = tx
        .fetch_optional(concat!(select_runs!(), "WHERE r.id = $1"), args![id])
        .await?;
    raw.ok_or_else(|| missing_run(id))?.try_into()
}

/// Reads runs within a transaction, by id.
pub(crate) async fn find_runs(tx: &mut Tx, ids: Vec<String>) -> Result<HashMap<RunId, RunRow>> {
    let sql = one_of!(concat!(select_runs!(), "WHERE r.id"), "$1", "");
    let rows: Vec<RawRun> = tx.fetch_all(sql, args![ids]).await?;
    rows.into_iter()
        .map(|raw| {
            let row = RunRow::try_from(raw)?;
            Ok((row.id.clone(), row))
        })
        .collect()
}

pub(crate) fn missing_run(id: &RunId) -> StoreError {
    StoreError::not_found(format!("run {id}"))
}

/// Returns the cursor of a run in lists: `CREATED_AT:ID`.
fn format_cursor(created_at: Ms, id: &RunId) -> String {
    format!("{created_at}:{id}")
}

fn parse_cursor(text: &str) -> Result<(i64, RunId)> {
    text.split_once(':')
        .and_then(|(at, id)| Some((at.parse().ok()?, RunId::new(id).ok()?)))
        .ok_or_else(|| StoreError::Invalid {
            what: format!("`{text}` is not a cursor; pass the `next` value of the previous page"),
        })
}

/// Builds the conditions for the task's name. `parameter` adds an argument and returns its
/// placeholder.
pub(crate) fn task_conditions(
    task: Option<&str>,
    prefix: Option<&str>,
    mut parameter: impl FnMut(Arg) -> String,
) -> Vec<String> {
    let mut conditions = Vec::new();
    if let Some(task) = task {
        conditions.push(format!("task_name = {}", parameter(task.into())));
    }
    if let Some(prefix) = prefix {
        let (from, to) = (
            parameter(prefix.into()),
            parameter(upper_bound(prefix).into()),
        );
        conditions.push(format!("task_name >= {from} AND task_name < {to}"));
    }
    conditions
}

/// Builds the statement of one page.
///
/// Each state has an index in list order, so the statement reads a partial page per state. It is
/// one statement, so that a run whose state changes meanwhile is neither missed nor listed twice.
fn page_statement(columns: &Sql, filter: &RunFilter) -> Result<(Sql, Vec<Arg>)> {
    let mut conditions = Vec::new();
    let mut args = args![i64::from(filter.limit) + 1];
    let mut parameter = |value: Arg| {
        args.push(value);
        format!("${}", args.len())
    };
    let (task, prefix) = (filter.task.as_deref(), filter.task_prefix.as_deref());
    conditions.extend(task_conditions(task, prefix, &mut parameter));
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
    Ok((columns.append(&rest), args))
}

/// Cuts a page to its limit. Returns `true` if another page follows.
fn cut_page<T>(rows: &mut Vec<T>, filter: &RunFilter) -> bool {
    let limit = filter.limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}

/// Returns a text that sorts after every text that starts with `prefix`.
pub(crate) fn upper_bound(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

impl Store {
    /// Returns one run.
    pub async fn run(&self, id: &RunId) -> Result<RunRow> {
        let raw: Option<RawRun> = self
            .db
            .fetch_optional(concat!(select_runs!(), "WHERE r.id = $1"), args![id])
            .await?;
        raw.ok_or_else(|| missing_run(id))?.try_into()
    }

    /// Returns a page of runs, newest first, and the cursor of the next page.
    pub async fn runs(&self, filter: RunFilter) -> Result<(Vec<RunRow>, Option<String>)> {
        let (sql, args) = page_statement(&Sql::from(select_runs!()), &filter)?;
        let raw: Vec<RawRun> = self.db.fetch_all(sql, args).await?;
        let rows: Result<Vec<RunRow>> = raw.into_iter().map(RunRow::try_from).collect();
        let mut rows = rows?;
        let more = cut_page(&mut rows, &filter);
        let next = rows.last().filter(|_| more);
        let next = next.map(|row| format_cursor(row.created_at, &row.id));
        Ok((rows, next))
    }

    /// Returns the same page without specs, results and secrets. The statement does not read these
    /// columns.
    pub async fn run_summaries(
        &self,
        filter: RunFilter,
    ) -> Result<(Vec<RunSummary>, Option<String>)> {
        let (sql, args) = page_statement(&Sql::from(SUMMARIES), &filter)?;
        let mut raw: Vec<RawSummary> = self.db.fetch_all(sql, args).await?;
        let more = cut_page(&mut raw, &filter);
        let last = raw.last().filter(|_| more);
        let last = last.map(|row| (row.created_at, row.id.clone()));
        let rows: Result<Vec<RunSummary>> = raw.into_iter().map(RunSummary::try_from).collect();
        let next =
            last.map(|(at, last)| Ok::<_, StoreError>(format_cursor(at, &parse_run_id(last)?)));
        Ok((rows?, next.transpose()?))
    }

    /// Cancels a queued run immediately, and requests the cancellation of a leased or running one.
    /// Leaves a final run unchanged. Returns the resulting row.
    pub async fn request_cancel(&self, id: &RunId, reason: &str, now: Ms) -> Result<RunRow> {
        let mut tx = self.db.begin().await?;
        let ids = BTreeSet::from([id]);
        let groups = run_state::groups_of_runs(&mut tx, &ids).await?;
        run_state::lock_groups(&mut tx, groups).await?;
        let mut changes: Vec<Change> = run_state::lock_runs(&mut tx, &ids)
            .await?
            .into_iter()
            .map(Change::new)
            .collect();
        for change in &mut changes {
            change.run.machine.cancel(reason, now);
        }
        run_state::save_changes(&mut tx, &changes, "canceled", now).await?;
        let row = find_run(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Approves a run and replaces its spec with `spec`. Fails with `Conflict` if the run does not
    /// wait for an approval.
    pub async fn approve(&self, id: &RunId, spec: &RunSpec, by: &str, now: Ms) -> Result<RunRow> {
        let mut tx = self.db.begin().await?;
        let groups = run_state::groups_of_runs(&mut tx, &BTreeSet::from([id])).await?;
        run_state::lock_groups(&mut tx, groups.clone()).await?;
        let changed = tx
            .exec(
                "UPDATE runs SET approval = 'approved', approved_by = $2, approved_at = $3, spec = $4 \
                 WHERE id = $1 AND approval = 'pending' AND state = 'queued'",
                args![id, by, now, to_json(spec)?],
            )
            .await?;
        if changed == 0 {
            let row = find_run(&mut tx, id).await?;
            return Err(StoreError::conflict(match (row.approval, row.state) {
                (None, _) => format!("the run {id} needs no approval"),
                (Some(Approval::Approved), _) => format!("the run {id} is approved already"),
                (Some(Approval::Pending), state) => format!("the run {id} has finished: {state}"),
            }));
        }
        for group in groups {
            run_state::release_blocked(&mut tx, &group).await?;
        }
        let row = find_run(&mut tx, id).await?;
        tx.commit().await?;
        Ok(row)
    }
}
