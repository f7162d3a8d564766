//! How runs are handed out: classes that have ready runs, and the claim. The order within a class is `order_key` (the
//! moment of the request, less ten minutes for each level of priority) and then a sequence number: first come, first
//! served within a priority, and nothing starves.

use std::collections::BTreeMap;

use acrtask_model::RunId;
use sqlx::FromRow;

use crate::{
    Ms, Result, RunRow, Store, StoreError,
    db::{Sql, args},
    from_json,
    lives::{self, Living, RawLife, life_columns},
    runs,
};

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

/// The head of a class, without what another server is giving away now.
const READY: Sql = {
    macro_rules! text {
        () => {
            concat!(
                "SELECT ",
                life_columns!(),
                " FROM runs WHERE class_id = $1 AND state = 'queued' AND held = 0 ORDER BY order_key, seq LIMIT $2"
            )
        };
    }
    Sql::of(text!(), concat!(text!(), " FOR UPDATE SKIP LOCKED"))
};

#[derive(Debug, FromRow)]
struct RawClass {
    id: i64,
    pool: String,
    platform: String,
    labels: String,
}

impl TryFrom<RawClass> for Class {
    type Error = StoreError;

    fn try_from(raw: RawClass) -> Result<Self> {
        Ok(Self {
            id: raw.id,
            pool: raw.pool,
            platform: raw.platform,
            labels: from_json(&raw.labels)?,
        })
    }
}

impl Store {
    /// Classes that have ready runs now.
    pub async fn ready_classes(&self) -> Result<Vec<Class>> {
        // One look into the queue for each class: there are few.
        let rows: Vec<RawClass> = self
            .db
            .rows(
                "SELECT id, pool, platform, labels FROM classes WHERE (SELECT r.seq FROM runs r \
                 WHERE r.class_id = classes.id AND r.state = 'queued' AND r.held = 0 \
                 ORDER BY r.order_key, r.seq LIMIT 1) IS NOT NULL ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(Class::try_from).collect()
    }

    /// Every class that a run ever had.
    pub async fn classes(&self) -> Result<Vec<Class>> {
        let rows: Vec<RawClass> = self
            .db
            .rows(
                "SELECT id, pool, platform, labels FROM classes ORDER BY id",
                args![],
            )
            .await?;
        rows.into_iter().map(Class::try_from).collect()
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
        if classes.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let mut tx = self.db.write().await?;
        let mut ready = Vec::new();
        for class in classes {
            let raw: Vec<RawLife> = tx.rows(READY, args![*class, limit]).await?;
            for raw in raw {
                ready.push(Living::try_from(raw)?);
            }
        }
        ready.sort_by_key(|run| (run.order_key, run.seq));
        ready.truncate(limit as usize);
        let candidates: Vec<Candidate> = ready
            .iter()
            .map(|run| Candidate {
                id: run.id.clone(),
                class: run.class,
                warm_key: run.warm_key.clone(),
                order_key: run.order_key,
            })
            .collect();
        let claims = if candidates.is_empty() {
            Vec::new()
        } else {
            place(&candidates)
        };
        let mut ready = lives::by_id(ready);
        let mut changes = Vec::new();
        for claim in claims {
            // What was not offered, or is given away twice, is not there.
            if let Some(mut change) = ready.remove(&claim.run)
                && change
                    .run
                    .life
                    .lease(&claim.runner_id, now, lease_ms, accept_ms)
            {
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        lives::save(&mut tx, &changes, "lost", now).await?;
        let ids = changes.iter().map(|change| change.run.id.to_string());
        let mut rows = runs::find_all(&mut tx, ids.collect()).await?;
        tx.commit().await?;
        Ok(changes
            .iter()
            .filter_map(|change| rows.remove(&change.run.id))
            .collect())
    }
}
