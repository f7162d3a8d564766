//! What runners say, and what the reaper finds when they say nothing. Each is decided by `transitions.rs` and written
//! guarded by state and attempt. A batch is one transaction.

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};

use crate::{Ms, Result, Store, StoreError};

/// What a runner says about a run that it holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It has a slot for it.
    Accepted,
    /// It begins.
    Started,
    /// It cannot take it now: back to the queue.
    Declined {
        /// Why.
        reason: String,
    },
    /// It still works on it.
    Renewed,
    /// More of the log is in the blob store.
    LogChunk {
        /// Where it begins in the log.
        offset: u64,
        /// Bytes.
        length: u32,
        /// The blob's name.
        blob: String,
    },
    /// It is over.
    Finished {
        /// A final state.
        state: RunState,
        /// Why.
        reason: Option<String>,
        /// What came of it.
        result: Box<RunResult>,
        /// Bytes of the whole log.
        log_length: u64,
        /// Lower-case hexadecimal SHA-256 of the whole log.
        log_sha256: String,
    },
}

/// A report, with who says it about which attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Reported {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The runner.
    pub runner_id: String,
    /// What it says.
    pub report: Report,
}

/// What a report led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Written, or written before.
    Done,
    /// The attempt is not that runner's any more, or the report cannot be true.
    Refused {
        /// Why.
        reason: String,
    },
    /// The log does not fit: it is stored up to here.
    LogAt(u64),
}

/// A lease that the reaper ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaped {
    /// The run.
    pub run: RunId,
    /// The attempt that is over.
    pub attempt: u32,
    /// The runner that held it.
    pub runner_id: String,
    /// The run's state now: queued again, or final.
    pub to: RunState,
    /// Why.
    pub reason: String,
}

/// An attempt at a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its number, from 1.
    pub attempt: u32,
    /// The runner.
    pub runner_id: String,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// When it was leased.
    pub leased_at: Ms,
    /// When it started.
    pub started_at: Option<Ms>,
    /// When it ended.
    pub ended_at: Option<Ms>,
    /// How: a final state, `declined`, `lost`.
    pub outcome: Option<String>,
    /// Bytes of its log.
    pub log_length: u64,
    /// Of its whole log: lower-case hexadecimal.
    pub log_sha256: Option<String>,
}

impl Store {
    /// Writes down what runners say: one transaction, a verdict for each.
    pub async fn report(
        &self,
        batch: &[Reported],
        now: Ms,
        lease_ms: i64,
        accept_ms: i64,
    ) -> Result<Vec<Verdict>> {
        let _ = (batch, now, lease_ms, accept_ms);
        Err(StoreError::not_found("run"))
    }

    /// Ends leases whose deadline is past, at most `limit`: their runs are queued again, or final.
    pub async fn reap(&self, now: Ms, limit: u32) -> Result<Vec<Reaped>> {
        let _ = (now, limit);
        Err(StoreError::not_found("run"))
    }

    /// Releases held runs of groups that have room. Says how many.
    pub async fn release_groups(&self, now: Ms) -> Result<u64> {
        let _ = now;
        Err(StoreError::not_found("run"))
    }

    /// The attempts at a run, in order.
    pub async fn attempts(&self, run: &RunId) -> Result<Vec<AttemptRow>> {
        Err(StoreError::not_found(format!("run {run}")))
    }
}
