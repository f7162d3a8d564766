//! Reports of runners, and expiry of leases without reports. `transitions.rs` decides; this module
//! writes, guarded by state and attempt. A batch is one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};
use sqlx::FromRow;

use crate::{
    Ms, Result, Store,
    db::{Sql, Tx, args, one_of, runs_by},
    images,
    quotas::{LogAllowance, QuotaExceeded},
    run_state::{self, Change, LockedRun, RawRunState, run_state_columns},
};

/// Report of a runner about a run that it leases.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// The runner has reserved a slot.
    Accepted,
    /// The run starts.
    Started,
    /// The runner cannot execute the run now. The run returns to the queue.
    Declined {
        /// Reason for the user.
        reason: String,
    },
    /// The runner still executes the run.
    Renewed,
    /// The blob store contains another part of the log.
    LogChunk {
        /// Position in the log, in bytes.
        offset: u64,
        /// Length in bytes.
        length: u32,
        /// Key of the blob.
        blob: String,
    },
    /// The log has reached a quota. It ends with this mark, and the run ends as an error.
    LogFull {
        /// Position of the mark in the log, in bytes.
        offset: u64,
        /// Length of the mark in bytes.
        length: u32,
        /// Key of the mark's blob.
        blob: String,
        /// Reason for the user.
        reason: String,
    },
    /// The run is finished.
    Finished {
        /// A final state.
        state: RunState,
        /// Reason of the state, if any.
        reason: Option<String>,
        /// Result of the run.
        result: Box<RunResult>,
        /// Length of the complete log in bytes.
        log_length: u64,
        /// Lower-case hexadecimal SHA-256 of the complete log.
        log_sha256: String,
    },
}

/// A report, with its attempt and runner.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptReport {
    /// Id of the run.
    pub run: RunId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Id of the runner.
    pub runner_id: String,
    /// Content of the report.
    pub report: Report,
}

/// Result of storing a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Stored, or stored earlier.
    Done,
    /// The runner does not lease that attempt, or the report contradicts the stored state.
    Refused {
        /// Reason for the runner.
        reason: String,
    },
    /// The offset does not match. The stored log ends here.
    LogAt(u64),
    /// A quota of logs does not allow the chunk.
    LogFull(Box<QuotaExceeded>),
}

/// A lease that the reaper ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredLease {
    /// Id of the run.
    pub run: RunId,
    /// Number of the ended attempt.
    pub attempt: u32,
    /// Id of the runner that leased the run.
    pub runner_id: String,
    /// New state of the run: queued again, or final.
    pub to: RunState,
    /// Reason of the new state.
    pub reason: String,
}

/// An attempt at a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Number, from 1.
    pub attempt: u32,
    /// Id of the runner.
    pub runner_id: String,
    /// Name of the runner.
    pub runner_name: Option<String>,
    /// Time of the lease.
    pub leased_at: Ms,
    /// Time of the start.
    pub started_at: Option<Ms>,
    /// Time of the end.
    pub ended_at: Option<Ms>,
    /// A final state, `declined` or `lost`. `None` until the attempt has ended.
    pub outcome: Option<String>,
    /// Length of its log in bytes.
    pub log_length: u64,
    /// Lower-case hexadecimal SHA-256 of its complete log.
    pub log_sha256: Option<String>,
}

const INSERT_CHUNK: Sql = Sql::new(
    "INSERT INTO log_chunks (run_id, attempt, offset_bytes, length, blob) VALUES ($1, $2, $3, $4, $5)",
    "INSERT INTO log_chunks (run_id, attempt, offset_bytes, length, blob) \
     SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])",
);

impl Report {
    /// Returns `true` if the report may free a slot of the run's group.
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
    /// Stores reports of runners in one transaction. Returns one verdict for each.
    pub async fn report(
        &self,
        batch: &[AttemptReport],
        now: Ms,
        lease_ms: i64,
    ) -> Result<Vec<Verdict>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.db.begin().await?;
        let freeing: BTreeSet<&RunId> = batch
            .iter()
            .filter(|received| received.report.may_free())
            .map(|received| &received.run)
            .collect();
        if tx.is_postgres() && !freeing.is_empty() {
            let groups = run_state::groups_of_runs(&mut tx, &freeing).await?;
            run_state::lock_groups(&mut tx, groups).await?;
        }
        let ids = batch.iter().map(|received| &received.run).collect();
        let mut runs = run_state::changes_by_id(run_state::lock_runs(&mut tx, &ids).await?);
        let mut allowance = load_log_allowance(&mut tx, batch, &runs).await?;
        let mut chunks = Vec::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        for received in batch {
            let Some(change) = runs.get_mut(&received.run) else {
                verdicts.push(Verdict::Refused {
                    reason: "the run does not exist".into(),
                });
                continue;
            };
            let run = &mut change.run;
            let before =
                matches!(received.report, Report::LogChunk { .. }).then(|| run.machine.clone());
            let machine = &mut run.machine;
            let mut outcome = machine.apply_report(
                received.attempt,
                &received.runner_id,
                &received.report,
                now,
                lease_ms,
            );
            let chunk = outcome.chunk.as_ref();
            let chunk = chunk.map(|chunk| (chunk.offset, u64::from(chunk.length)));
            if let (Some(before), Some((offset, length))) = (before, chunk) {
                let (task, charged_to) = (run.task.as_deref(), run.charged_to.as_deref());
                if let Err(full) = allowance.add(task, charged_to, offset, length) {
                    run.machine = before;
                    outcome.chunk = None;
                    outcome.verdict = Verdict::LogFull(Box::new(full));
                }
            }
            if let Some(chunk) = outcome.chunk {
                chunks.push(args![
                    &received.run,
                    chunk.attempt,
                    chunk.offset,
                    chunk.length,
                    chunk.blob
                ]);
            }
            verdicts.push(outcome.verdict);
        }
        let changes: Vec<Change> = runs.into_values().collect();
        run_state::save_changes(&mut tx, &changes, "declined", now).await?;
        images::record_images(&mut tx, &changes, batch.iter().zip(&verdicts), now).await?;
        if !chunks.is_empty() {
            tx.exec_each(INSERT_CHUNK, chunks).await?;
        }
        allowance.store(&mut tx).await?;
        tx.commit().await?;
        Ok(verdicts)
    }

    /// Ends at most `limit` leases whose deadline has passed. Their runs are queued again or final.
    /// Any number of unreadable runs is skipped.
    pub async fn expire_leases(&self, now: Ms, limit: u32) -> Result<Vec<ExpiredLease>> {
        let mut reaped = Vec::new();
        let mut after = (i64::MIN, i64::MIN);
        loop {
            let page: Vec<Overdue> = self
                .db
                .fetch_all(
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
            let is_last = page.len() < limit as usize;
            reaped.extend(self.expire_lease_page(page, now).await?);
            if is_last || reaped.len() >= limit as usize {
                return Ok(reaped);
            }
        }
    }

    async fn expire_lease_page(&self, page: Vec<Overdue>, now: Ms) -> Result<Vec<ExpiredLease>> {
        let mut tx = self.db.begin().await?;
        let ids: Vec<String> = page.into_iter().map(|overdue| overdue.id).collect();
        if tx.is_postgres() {
            let sql = one_of!(
                "SELECT DISTINCT group_name FROM runs WHERE group_name IS NOT NULL AND id",
                "$1",
                ""
            );
            let groups: Vec<(String,)> = tx.fetch_all(sql, args![ids.clone()]).await?;
            let groups = groups.into_iter().map(|(name,)| name).collect();
            run_state::lock_groups(&mut tx, groups).await?;
        }
        let sql = one_of!(
            concat!("SELECT ", run_state_columns!(), " FROM runs WHERE id"),
            "$1",
            " ORDER BY id",
            lock "FOR UPDATE SKIP LOCKED"
        );
        let rows: Vec<RawRunState> = tx.fetch_all(sql, args![ids]).await?;
        let mut changes = Vec::new();
        for raw in rows {
            match LockedRun::try_from(raw) {
                Ok(run) => changes.push(Change::new(run)),
                Err(error) => tracing::error!(%error, "skipping a run that cannot be read"),
            }
        }
        let runners = changes
            .iter()
            .filter_map(|change| change.run.machine.runner_id.clone());
        let names = runner_names(&mut tx, runners.collect()).await?;
        let mut reaped = Vec::new();
        for Change { run, .. } in &mut changes {
            let (attempt, holder) = (run.machine.attempt, run.machine.runner_id.clone());
            let holder = holder.unwrap_or_default();
            let name = names.get(&holder).unwrap_or(&holder);
            // A runner may have renewed or finished the run between the page and the lock.
            if run.machine.expire(name, now) {
                reaped.push(ExpiredLease {
                    run: run.id.clone(),
                    attempt,
                    runner_id: holder,
                    to: run.machine.state,
                    reason: run.machine.reason.clone().unwrap_or_default(),
                });
            }
        }
        run_state::save_changes(&mut tx, &changes, "lost", now).await?;
        tx.commit().await?;
        Ok(reaped)
    }

    /// Unblocks runs of groups with free slots. Returns their number.
    pub async fn release_blocked_runs(&self, now: Ms) -> Result<u64> {
        let groups: Vec<(String,)> = self
            .db
            .fetch_all(
                runs_by!(
                    "runs_group",
                    "group_name",
                    "group_name IS NOT NULL AND state IN ('queued', 'leased', 'running') \
                     GROUP BY group_name HAVING SUM(CASE WHEN approval = 'pending' THEN 0 ELSE blocked END) > 0 AND SUM(1 - blocked) < MAX(group_max) ORDER BY group_name"
                ),
                args![],
            )
            .await?;
        let mut released = 0;
        for (group,) in groups {
            let mut tx = self.db.begin().await?;
            run_state::lock_groups(&mut tx, BTreeSet::from([group.clone()])).await?;
            let here = run_state::release_blocked(&mut tx, &group).await?;
            tx.commit().await?;
            if here > 0 {
                tracing::warn!(
                    group,
                    released = here,
                    now,
                    "released blocked runs of a group that had free slots"
                );
            }
            released += here;
        }
        Ok(released)
    }

    /// Returns the attempts at a run, in order.
    pub async fn attempts(&self, run: &RunId) -> Result<Vec<AttemptRow>> {
        // Until an attempt has ended, the length of its log is stored with the run.
        let rows: Vec<RawAttempt> = self
            .db
            .fetch_all(
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
                    attempt: run_state::to_u32(raw.attempt)?,
                    runner_id: raw.runner_id,
                    runner_name: raw.runner_name,
                    leased_at: raw.leased_at,
                    started_at: raw.started_at,
                    ended_at: raw.ended_at,
                    outcome: raw.outcome,
                    log_length: run_state::to_u64(raw.log_length)?,
                    log_sha256: raw.log_sha256,
                })
            })
            .collect()
    }
}

/// Loads the remaining log quotas of the runs of a batch.
async fn load_log_allowance(
    tx: &mut Tx,
    batch: &[AttemptReport],
    runs: &BTreeMap<RunId, Change>,
) -> Result<LogAllowance> {
    let logging: Vec<_> = batch
        .iter()
        .filter(|received| matches!(received.report, Report::LogChunk { .. }))
        .filter_map(|received| runs.get(&received.run))
        .map(|change| (change.run.task.as_deref(), change.run.charged_to.as_deref()))
        .collect();
    if logging.is_empty() {
        return Ok(LogAllowance::default());
    }
    LogAllowance::load(tx, &logging).await
}

async fn runner_names(tx: &mut Tx, ids: Vec<String>) -> Result<HashMap<String, String>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = one_of!("SELECT id, name FROM runners WHERE id", "$1", "");
    let rows: Vec<(String, String)> = tx.fetch_all(sql, args![ids]).await?;
    Ok(rows.into_iter().collect())
}
