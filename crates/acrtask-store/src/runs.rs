//! Runs as rows: what a run is when it is asked for, and what is known of it later; one run, lists of runs, and why one
//! waits. How runs come in is in `enqueue.rs`, how they are handed out in `queue.rs`, how they go on in `reports.rs`.

use acrtask_api::{
    run::{Run, RunResult},
    spec::RunSpec,
    task::QueueOptions,
};
use acrtask_model::{RunId, RunState};

use crate::{Ms, Result, Store, StoreError};

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
    pub group: Option<String>,
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
    /// What an earlier page gave as its cursor.
    pub before: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// Where a run stands in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// Ready runs of its class that come before it.
    pub ahead: u64,
    /// The run that its group waits for.
    pub behind: Option<RunId>,
}

/// A run that somebody wants to end, and the runner that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRow {
    /// The run.
    pub run: RunId,
    /// The attempt that is to end.
    pub attempt: u32,
    /// The runner that holds it.
    pub runner_id: String,
    /// Why.
    pub reason: String,
}

/// Runs of a pool that are in one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    /// The pool.
    pub pool: String,
    /// Queued, leased or running.
    pub state: RunState,
    /// How many.
    pub count: u64,
}

impl Store {
    /// One run.
    pub async fn run(&self, id: &RunId) -> Result<RunRow> {
        Err(StoreError::not_found(format!("run {id}")))
    }

    /// A page of runs, newest first, and the cursor of the next one.
    pub async fn runs(&self, filter: RunFilter) -> Result<(Vec<RunRow>, Option<String>)> {
        let _ = filter;
        Err(StoreError::not_found("list"))
    }

    /// Ends a queued run at once; of a leased or running one the runner is told. A final one is left alone. Gives the row
    /// after that.
    pub async fn request_cancel(&self, id: &RunId, reason: &str, now: Ms) -> Result<RunRow> {
        let _ = (reason, now);
        Err(StoreError::not_found(format!("run {id}")))
    }

    /// Leased and running runs that somebody wants to end.
    pub async fn cancels(&self) -> Result<Vec<CancelRow>> {
        Err(StoreError::not_found("list"))
    }

    /// Where a run stands in the queue.
    pub async fn position(&self, id: &RunId) -> Result<Position> {
        Err(StoreError::not_found(format!("run {id}")))
    }

    /// How many runs are queued, leased and running in each pool.
    pub async fn queue_depth(&self) -> Result<Vec<Depth>> {
        Err(StoreError::not_found("list"))
    }
}
