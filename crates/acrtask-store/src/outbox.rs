//! What the outside is told of runs: statuses of commits at forges, and notices of results.
//!
//! Invariants: what is to be told is derived from where the run stands, so that nothing has to be written down when a
//! run moves; what was told is written down after it was told, so that it may be told twice, and is never left out. Who
//! tells takes a row first, for some time, so that of several servers one does.

use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{Sql, args, one_of},
    lives, runs,
};

/// Something that is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The run.
    pub run: RunId,
    /// Which of the run's notices; 0 for the status of its commit.
    pub place: u32,
    /// Whom, as JSON.
    pub target: String,
    /// Where the run stands.
    pub state: RunState,
    /// It waits for an approval.
    pub pending: bool,
    /// Tries that failed since it was last told something.
    pub attempts: u32,
    next_at: Ms,
}

impl Due {
    /// What is told, in one word.
    fn word(&self) -> &'static str {
        match self.state {
            RunState::Queued if self.pending => "pending",
            RunState::Leased => "running",
            state => state.as_str(),
        }
    }
}

/// How telling went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is known now.
    Yes,
    /// Not yet; again at this time.
    Again {
        /// Why not.
        error: String,
        /// When.
        at: Ms,
    },
    /// It never will be.
    Never {
        /// Why not.
        error: String,
    },
}

/// A notice that could not be given, or a status that could not be set, for those who look for the reason.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Untold {
    /// The run.
    pub run_id: String,
    /// Tries so far.
    pub attempts: i64,
    /// Why not.
    pub last_error: String,
    /// It is not tried again.
    pub over: i64,
}

#[derive(Debug, FromRow)]
struct RawDue {
    run_id: String,
    place: i64,
    target: String,
    state: String,
    pending: i64,
    attempts: i64,
    next_at: i64,
}

impl RawDue {
    fn parsed(self) -> Result<Due> {
        Ok(Due {
            run: runs::id(self.run_id)?,
            place: lives::small(self.place)?,
            target: self.target,
            state: lives::state(&self.state)?,
            pending: self.pending != 0,
            attempts: lives::small(self.attempts)?,
            next_at: self.next_at,
        })
    }
}

/// What a status says, in SQL; as [`Due::word`] has it.
macro_rules! word {
    () => {
        "CASE WHEN r.state = 'leased' THEN 'running' WHEN r.state = 'queued' AND r.approval = 'pending' THEN 'pending' \
         ELSE r.state END"
    };
}

const TAKE_STATUS: Sql = Sql::of(
    "UPDATE commit_statuses SET next_at = $3 WHERE run_id = $1 AND next_at = $2 AND over = 0",
    "UPDATE commit_statuses SET next_at = n.until FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) \
     AS n (run_id, was, until) WHERE commit_statuses.run_id = n.run_id AND next_at = n.was AND over = 0",
);

impl Store {
    /// Statuses that are to be sent, taken until `until` by who asks.
    pub async fn take_statuses(&self, now: Ms, until: Ms, limit: u32) -> Result<Vec<Due>> {
        let rows: Vec<RawDue> = self
            .db
            .rows(
                concat!(
                    "SELECT s.run_id, CAST(0 AS BIGINT) AS place, s.target, r.state, \
                     CAST(CASE WHEN r.approval = 'pending' THEN 1 ELSE 0 END AS BIGINT) AS pending, s.attempts, s.next_at \
                     FROM commit_statuses s JOIN runs r ON r.id = s.run_id WHERE s.over = 0 AND s.next_at <= $1 \
                     AND (s.sent IS NULL OR s.sent <> ",
                    word!(),
                    ") ORDER BY s.next_at, s.run_id LIMIT $2"
                ),
                args![now, limit],
            )
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(due);
        }
        let mut tx = self.db.write().await?;
        for raw in rows {
            let one = raw.parsed()?;
            let row = vec![args![&one.run, one.next_at, until]];
            if tx.each(TAKE_STATUS, row).await? == 1 {
                due.push(one);
            }
        }
        tx.commit().await?;
        Ok(due)
    }

    /// Writes down how sending statuses went.
    pub async fn settle_statuses(&self, told: Vec<(Due, Told)>, now: Ms) -> Result<()> {
        let mut tx = self.db.write().await?;
        for (due, told) in told {
            match told {
                Told::Yes => {
                    let over = due.state.is_final();
                    tx.exec(
                        "UPDATE commit_statuses SET sent = $2, over = $3, attempts = 0, next_at = $4, last_error = NULL \
                         WHERE run_id = $1",
                        args![&due.run, due.word(), over, now],
                    )
                    .await?;
                }
                Told::Again { error, at } => {
                    tx.exec(
                        "UPDATE commit_statuses SET attempts = attempts + 1, next_at = $2, last_error = $3 WHERE run_id = $1",
                        args![&due.run, at, error],
                    )
                    .await?;
                }
                Told::Never { error } => {
                    tx.exec(
                        "UPDATE commit_statuses SET attempts = attempts + 1, over = 1, last_error = $2 WHERE run_id = $1",
                        args![&due.run, error],
                    )
                    .await?;
                }
            }
        }
        tx.commit().await
    }

    /// Runs that are over and whose result nobody was told of yet: id, task and state.
    pub async fn unnoticed(&self, limit: u32) -> Result<Vec<(RunId, Option<String>, RunState)>> {
        let rows: Vec<(String, Option<String>, String)> = self
            .db
            .rows(
                "SELECT id, task_name, state FROM runs WHERE notify = 1 AND finished_at IS NOT NULL \
                 ORDER BY finished_at LIMIT $1",
                args![limit],
            )
            .await?;
        rows.into_iter()
            .map(|(id, task, state)| Ok((runs::id(id)?, task, lives::state(&state)?)))
            .collect()
    }

    /// Writes down whom to tell of the result of a run. The second time it does nothing.
    pub async fn add_notices(&self, run: &RunId, targets: Vec<String>, now: Ms) -> Result<()> {
        let mut tx = self.db.write().await?;
        let mine = tx
            .exec(
                "UPDATE runs SET notify = 0 WHERE id = $1 AND notify = 1",
                args![run],
            )
            .await?;
        if mine == 1 {
            for (place, target) in (0_u32..).zip(targets) {
                tx.exec(
                    "INSERT INTO notices (run_id, place, target, next_at) VALUES ($1, $2, $3, $4)",
                    args![run, place, target, now],
                )
                .await?;
            }
        }
        tx.commit().await
    }

    /// Notices that are to be given, taken until `until` by who asks.
    pub async fn take_notices(&self, now: Ms, until: Ms, limit: u32) -> Result<Vec<Due>> {
        let rows: Vec<RawDue> = self
            .db
            .rows(
                "SELECT n.run_id, n.place, n.target, r.state, CAST(0 AS BIGINT) AS pending, n.attempts, n.next_at \
                 FROM notices n JOIN runs r ON r.id = n.run_id WHERE n.over = 0 AND n.next_at <= $1 \
                 ORDER BY n.next_at, n.run_id, n.place LIMIT $2",
                args![now, limit],
            )
            .await?;
        let mut due = Vec::with_capacity(rows.len());
        if rows.is_empty() {
            return Ok(due);
        }
        let mut tx = self.db.write().await?;
        for raw in rows {
            let one = raw.parsed()?;
            let taken = tx
                .exec(
                    "UPDATE notices SET next_at = $4 WHERE run_id = $1 AND place = $2 AND next_at = $3 AND over = 0",
                    args![&one.run, one.place, one.next_at, until],
                )
                .await?;
            if taken == 1 {
                due.push(one);
            }
        }
        tx.commit().await?;
        Ok(due)
    }

    /// Writes down how giving notices went.
    pub async fn settle_notices(&self, told: Vec<(Due, Told)>) -> Result<()> {
        let mut tx = self.db.write().await?;
        for (due, told) in told {
            let (over, error, at) = match told {
                Told::Yes => (true, None, due.next_at),
                Told::Never { error } => (true, Some(error), due.next_at),
                Told::Again { error, at } => (false, Some(error), at),
            };
            tx.exec(
                "UPDATE notices SET over = $3, last_error = $4, next_at = $5, attempts = attempts + 1 \
                 WHERE run_id = $1 AND place = $2",
                args![&due.run, due.place, over, error, at],
            )
            .await?;
        }
        tx.commit().await
    }

    /// What could not be told of these runs to people.
    pub async fn untold_notices(&self, ids: Vec<String>) -> Result<Vec<Untold>> {
        let sql = one_of!(
            "SELECT run_id, attempts, last_error, over FROM notices WHERE last_error IS NOT NULL AND run_id",
            "$1",
            " ORDER BY run_id, place"
        );
        self.db.rows(sql, args![ids]).await
    }

    /// What could not be told of these runs to forges.
    pub async fn untold_statuses(&self, ids: Vec<String>) -> Result<Vec<Untold>> {
        let sql = one_of!(
            "SELECT run_id, attempts, last_error, over FROM commit_statuses WHERE last_error IS NOT NULL AND run_id",
            "$1",
            " ORDER BY run_id"
        );
        self.db.rows(sql, args![ids]).await
    }
}
