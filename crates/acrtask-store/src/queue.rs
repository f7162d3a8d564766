//! How runs are handed out: classes that have ready runs, and the claim. The order within a class is `order_key` (the
//! moment of the request, less ten minutes for each level of priority) and then a sequence number: first come, first
//! served within a priority, and nothing starves.

use std::collections::BTreeMap;

use acrtask_model::RunId;

use crate::{Ms, Result, RunRow, Store, StoreError};

/// The head start of one level of priority, in milliseconds.
pub const PRIORITY_MS: i64 = 600_000;

/// What a runner must have for a run. Runs refer to a class; a runner takes a set of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its id.
    pub id: i64,
    /// The pool of runners.
    pub pool: String,
    /// `linux/amd64` ...; empty: any.
    pub platform: String,
    /// Labels that a runner must have.
    pub labels: BTreeMap<String, String>,
}

/// A ready run that may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub id: RunId,
    /// Its class.
    pub class: i64,
    /// Runs with the same key are warm on the same runner.
    pub warm_key: String,
    /// Its place in the queue.
    pub order_key: i64,
}

/// Who takes which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// The runner.
    pub runner_id: String,
}

impl Store {
    /// Classes that have ready runs now.
    pub async fn ready_classes(&self) -> Result<Vec<Class>> {
        Err(StoreError::not_found("list"))
    }

    /// Every class that a run ever had.
    pub async fn classes(&self) -> Result<Vec<Class>> {
        Err(StoreError::not_found("list"))
    }

    /// Gives the first `limit` ready runs of these classes to `place`, which says who takes which, and leases those for
    /// `lease_ms`; a runner has to accept within `accept_ms`. One transaction.
    pub async fn claim(
        &self,
        classes: &[i64],
        limit: u32,
        now: Ms,
        lease_ms: i64,
        accept_ms: i64,
        place: impl FnOnce(&[Candidate]) -> Vec<Claim> + Send,
    ) -> Result<Vec<RunRow>> {
        let _ = (classes, limit, now, lease_ms, accept_ms, place);
        Err(StoreError::not_found("list"))
    }
}
