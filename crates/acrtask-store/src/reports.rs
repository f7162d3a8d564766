//! What runners say, and what the reaper finds when they say nothing. Each is decided by `transitions.rs` and written
//! guarded by state and attempt. A batch is one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{Sql, Tx, args, one_of, runs_by},
    images,
    lives::{self, Change, Living, RawLife, life_columns},
    quotas::{LogRoom, QuotaExceeded},
};

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
    /// The log has reached a quota: it ends with this mark, and the run as an error.
    LogFull {
        /// Where the mark begins in the log.
        offset: u64,
        /// Bytes of the mark.
        length: u32,
        /// The mark's blob.
        blob: String,
        /// Why.
        reason: String,
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
    /// A quota for logs has no room for the chunk.
    LogFull(Box<QuotaExceeded>),
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

const CHUNK: Sql = Sql::of(
    "INSERT INTO log_chunks (run_id, attempt, begins, length, blob) VALUES ($1, $2, $3, $4, $5)",
    "INSERT INTO log_chunks (run_id, attempt, begins, length, blob) \
     SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])",
);

impl Report {
    /// It may free a place of the run's group.
    fn may_free(&self) -> bool {
        matches!(
            self,
            Self::Finished { .. } | Self::Declined { .. } | Self::LogFull { .. }
        )
    }
}

#[derive(Debug, FromRow)]
struct Overdue {
    id: String,
    seq: i64,
    deadline: i64,
}

#[derive(Debug, FromRow)]
struct RawAttempt {
    attempt: i64,
    runner_id: String,
    runner_name: Option<String>,
    leased_at: i64,
    started_at: Option<i64>,
    ended_at: Option<i64>,
    outcome: Option<String>,
    log_length: i64,
    log_sha256: Option<String>,
}

impl Store {
    /// Writes down what runners say: one transaction, a verdict for each.
    pub async fn report(&self, batch: &[Reported], now: Ms, lease_ms: i64) -> Result<Vec<Verdict>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.write().await?;
        let freeing: BTreeSet<&RunId> = batch
            .iter()
            .filter(|said| said.report.may_free())
            .map(|said| &said.run)
            .collect();
        if tx.is_postgres() && !freeing.is_empty() {
            let groups = lives::groups_of(&mut tx, &freeing).await?;
            lives::lock_groups(&mut tx, groups).await?;
        }
        let ids = batch.iter().map(|said| &said.run).collect();
        let mut runs = lives::by_id(lives::lock_runs(&mut tx, &ids).await?);
        let mut room = log_room(&mut tx, batch, &runs).await?;
        let mut chunks = Vec::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        for said in batch {
            let Some(change) = runs.get_mut(&said.run) else {
                verdicts.push(Verdict::Refused {
                    reason: "there is no such run".into(),
                });
                continue;
            };
            let run = &mut change.run;
            let before = matches!(said.report, Report::LogChunk { .. }).then(|| run.life.clone());
            let life = &mut run.life;
            let mut heard = life.hear(said.attempt, &said.runner_id, &said.report, now, lease_ms);
            let chunk = heard.chunk.as_ref();
            let chunk = chunk.map(|chunk| (chunk.offset, u64::from(chunk.length)));
            if let (Some(before), Some((offset, length))) = (before, chunk) {
                let (task, charged_to) = (run.task.as_deref(), run.charged_to.as_deref());
                if let Err(full) = room.add(task, charged_to, offset, length) {
                    run.life = before;
                    heard.chunk = None;
                    heard.verdict = Verdict::LogFull(Box::new(full));
                }
            }
            if let Some(chunk) = heard.chunk {
                chunks.push(args![
                    &said.run,
                    chunk.attempt,
                    chunk.offset,
                    chunk.length,
                    chunk.blob
                ]);
            }
            verdicts.push(heard.verdict);
        }
        let changes: Vec<Change> = runs.into_values().collect();
        lives::save(&mut tx, &changes, "declined", now).await?;
        images::record(&mut tx, &changes, batch.iter().zip(&verdicts), now).await?;
        if !chunks.is_empty() {
            tx.each(CHUNK, chunks).await?;
        }
        room.store(&mut tx).await?;
        tx.commit().await?;
        Ok(verdicts)
    }

    /// Ends leases whose deadline is past, at most `limit`: their runs are queued again, or final. What cannot be ended is
    /// passed by, however much of it there is.
    pub async fn reap(&self, now: Ms, limit: u32) -> Result<Vec<Reaped>> {
        let mut reaped = Vec::new();
        let mut after = (i64::MIN, i64::MIN);
        loop {
            let page: Vec<Overdue> = self
                .db
                .rows(
                    runs_by!(
                        "runs_deadline",
                        "id, seq, deadline",
                        "state IN ('leased', 'running') AND deadline < $1 AND (deadline, seq) > ($2, $3) \
                         ORDER BY deadline, seq LIMIT $4"
                    ),
                    args![now, after.0, after.1, limit],
                )
                .await?;
            let Some(last) = page.last() else {
                return Ok(reaped);
            };
            after = (last.deadline, last.seq);
            let whole = page.len() < limit as usize;
            reaped.extend(self.reap_page(page, now).await?);
            if whole || reaped.len() >= limit as usize {
                return Ok(reaped);
            }
        }
    }

    async fn reap_page(&self, page: Vec<Overdue>, now: Ms) -> Result<Vec<Reaped>> {
        let mut tx = self.db.write().await?;
        let ids: Vec<String> = page.into_iter().map(|overdue| overdue.id).collect();
        if tx.is_postgres() {
            let sql = one_of!(
                "SELECT DISTINCT group_name FROM runs WHERE group_name IS NOT NULL AND id",
                "$1",
                ""
            );
            let groups: Vec<(String,)> = tx.rows(sql, args![ids.clone()]).await?;
            let groups = groups.into_iter().map(|(name,)| name).collect();
            lives::lock_groups(&mut tx, groups).await?;
        }
        let sql = one_of!(
            concat!("SELECT ", life_columns!(), " FROM runs WHERE id"),
            "$1",
            " ORDER BY id",
            lock "FOR UPDATE SKIP LOCKED"
        );
        let rows: Vec<RawLife> = tx.rows(sql, args![ids]).await?;
        let mut changes = Vec::new();
        for raw in rows {
            match Living::try_from(raw) {
                Ok(run) => changes.push(Change::of(run)),
                Err(error) => tracing::error!(%error, "a run that cannot be read is not reaped"),
            }
        }
        let runners = changes
            .iter()
            .filter_map(|change| change.run.life.runner_id.clone());
        let names = runner_names(&mut tx, runners.collect()).await?;
        let mut reaped = Vec::new();
        for Change { run, .. } in &mut changes {
            let (attempt, holder) = (run.life.attempt, run.life.runner_id.clone());
            let holder = holder.unwrap_or_default();
            let name = names.get(&holder).unwrap_or(&holder);
            // Between the page and the lock, it may have been renewed or have ended.
            if run.life.expire(name, now) {
                reaped.push(Reaped {
                    run: run.id.clone(),
                    attempt,
                    runner_id: holder,
                    to: run.life.state,
                    reason: run.life.reason.clone().unwrap_or_default(),
                });
            }
        }
        lives::save(&mut tx, &changes, "lost", now).await?;
        tx.commit().await?;
        Ok(reaped)
    }

    /// Releases held runs of groups that have room. Says how many.
    pub async fn release_groups(&self, now: Ms) -> Result<u64> {
        let groups: Vec<(String,)> = self
            .db
            .rows(
                runs_by!(
                    "runs_group",
                    "group_name",
                    "group_name IS NOT NULL AND state IN ('queued', 'leased', 'running') \
                     GROUP BY group_name HAVING SUM(CASE WHEN approval = 'pending' THEN 0 ELSE held END) > 0 AND SUM(1 - held) < MAX(group_max) ORDER BY group_name"
                ),
                args![],
            )
            .await?;
        let mut released = 0;
        for (group,) in groups {
            let mut tx = self.db.write().await?;
            lives::lock_groups(&mut tx, BTreeSet::from([group.clone()])).await?;
            let here = lives::release(&mut tx, &group).await?;
            tx.commit().await?;
            if here > 0 {
                tracing::warn!(
                    group,
                    released = here,
                    now,
                    "held runs of a group with room were left over"
                );
            }
            released += here;
        }
        Ok(released)
    }

    /// The attempts at a run, in order.
    pub async fn attempts(&self, run: &RunId) -> Result<Vec<AttemptRow>> {
        // What is stored of the current attempt's log is with the run until that attempt has ended.
        let rows: Vec<RawAttempt> = self
            .db
            .rows(
                "SELECT a.attempt, a.runner_id, n.name AS runner_name, a.leased_at, a.started_at, a.ended_at, a.outcome, \
                 CASE WHEN a.ended_at IS NULL AND r.attempt = a.attempt THEN r.log_length ELSE a.log_length END AS log_length, \
                 a.log_sha256 FROM attempts a JOIN runs r ON r.id = a.run_id LEFT JOIN runners n ON n.id = a.runner_id \
                 WHERE a.run_id = $1 ORDER BY a.attempt",
                args![run],
            )
            .await?;
        rows.into_iter()
            .map(|raw| {
                Ok(AttemptRow {
                    attempt: lives::small(raw.attempt)?,
                    runner_id: raw.runner_id,
                    runner_name: raw.runner_name,
                    leased_at: raw.leased_at,
                    started_at: raw.started_at,
                    ended_at: raw.ended_at,
                    outcome: raw.outcome,
                    log_length: lives::size(raw.log_length)?,
                    log_sha256: raw.log_sha256,
                })
            })
            .collect()
    }
}

/// Reads what the runs of a batch may still log.
async fn log_room(
    tx: &mut Tx,
    batch: &[Reported],
    runs: &BTreeMap<RunId, Change>,
) -> Result<LogRoom> {
    let logging: Vec<_> = batch
        .iter()
        .filter(|said| matches!(said.report, Report::LogChunk { .. }))
        .filter_map(|said| runs.get(&said.run))
        .map(|change| (change.run.task.as_deref(), change.run.charged_to.as_deref()))
        .collect();
    if logging.is_empty() {
        return Ok(LogRoom::default());
    }
    LogRoom::load(tx, &logging).await
}

async fn runner_names(tx: &mut Tx, ids: Vec<String>) -> Result<HashMap<String, String>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = one_of!("SELECT id, name FROM runners WHERE id", "$1", "");
    let rows: Vec<(String, String)> = tx.rows(sql, args![ids]).await?;
    Ok(rows.into_iter().collect())
}
