//! Use of quotas: counted through indexes where possible, and stored otherwise.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::quota::{QuotaKind, QuotaSubject};
use acrtask_model::Principal;

use super::{Limits, MIN_CONTEXT, MINUTE, is_rate};
use crate::{
    Ms, Result, StoreError,
    db::{Sql, Tx, args},
    run_state,
    runs::upper_bound,
};

/// Selects the stored use of a list of subjects.
macro_rules! stored_use {
    ($in:literal) => {
        concat!(
            "SELECT kind, subject, since, used FROM quota_usage \
             WHERE kind IN ('runsPerMinute', 'pendingApprovalsPerMinute', 'logBytes') AND subject ",
            $in,
            " ORDER BY kind, subject"
        )
    };
}

pub(super) use stored_use;

pub(super) const STORED: Sql = Sql::new(
    stored_use!("IN (SELECT value FROM json_each($1))"),
    stored_use!("= ANY($1)"),
);

/// Loads the use of the wanted quotas that have a limit, with one statement per way of counting.
pub(super) async fn load_usage(
    tx: &mut Tx,
    limits: &Limits,
    wanted: &BTreeSet<(QuotaSubject, QuotaKind)>,
    stored_use: Sql,
    now: Ms,
) -> Result<HashMap<(QuotaSubject, QuotaKind), u64>> {
    let mut used = HashMap::new();
    let (mut tasks, mut pending, mut charged) = (Vec::new(), Vec::new(), Vec::new());
    let mut stored: BTreeMap<String, &QuotaSubject> = BTreeMap::new();
    for (subject, kind) in wanted {
        let Some(limit) = limits.limit(subject, *kind) else {
            continue;
        };
        match (kind, subject) {
            (QuotaKind::QueuedRuns, QuotaSubject::Task(name)) => tasks.push(name.clone()),
            (QuotaKind::PendingApprovals, QuotaSubject::Task(name)) => pending.push(name.clone()),
            (QuotaKind::QueuedRuns, QuotaSubject::Token(by)) => charged.push(by.clone()),
            (QuotaKind::QueuedRuns | QuotaKind::LogBytes, QuotaSubject::Tasks(_)) => {
                let count = count_usage(tx, subject, *kind, Some(limit), now).await?;
                used.insert((subject.clone(), *kind), count);
            }
            _ => {
                stored.insert(subject.to_string(), subject);
            }
        }
    }
    let of_task: fn(String) -> QuotaSubject = QuotaSubject::Task;
    let counts = [
        (QuotaKind::QueuedRuns, QUEUED_OF_TASKS, of_task, tasks),
        (
            QuotaKind::PendingApprovals,
            PENDING_OF_TASKS,
            of_task,
            pending,
        ),
        (
            QuotaKind::QueuedRuns,
            QUEUED_OF_CHARGED,
            QuotaSubject::Token,
            charged,
        ),
    ];
    for (kind, sql, subject, names) in counts {
        if names.is_empty() {
            continue;
        }
        let rows: Vec<(String, i64)> = tx.fetch_all(sql, args![names]).await?;
        for (name, count) in rows {
            used.insert((subject(name), kind), run_state::to_u64(count)?);
        }
    }
    if !stored.is_empty() {
        let names: Vec<String> = stored.keys().cloned().collect();
        let window = now - now.rem_euclid(MINUTE);
        let rows: Vec<(String, String, i64, i64)> = tx.fetch_all(stored_use, args![names]).await?;
        for (kind, name, since, count) in rows {
            let kind: QuotaKind = kind.parse().map_err(StoreError::corrupt)?;
            let is_past = is_rate(kind) && since != window;
            if let Some(subject) = stored.get(&name).filter(|_| !is_past) {
                used.insert(((*subject).clone(), kind), run_state::to_u64(count)?);
            }
        }
    }
    Ok(used)
}

macro_rules! count_queued_of {
    ($column:literal, $index:literal, $condition:literal) => {
        Sql::new(
            concat!(
                "SELECT ",
                $column,
                ", COUNT(*) FROM runs INDEXED BY ",
                $index,
                " WHERE state = 'queued' AND ",
                $condition,
                $column,
                " IN (SELECT value FROM json_each($1)) GROUP BY ",
                $column
            ),
            concat!(
                "SELECT ",
                $column,
                ", COUNT(*) FROM runs WHERE state = 'queued' AND ",
                $condition,
                $column,
                " = ANY($1) GROUP BY ",
                $column
            ),
        )
    };
}

const QUEUED_OF_TASKS: Sql = count_queued_of!(
    "task_name",
    "runs_queued_task",
    "(approval IS NULL OR approval <> 'pending') AND "
);
const PENDING_OF_TASKS: Sql =
    count_queued_of!("task_name", "runs_queued_task", "approval = 'pending' AND ");
const QUEUED_OF_CHARGED: Sql = count_queued_of!("charged_to", "runs_queued_charged", "");

macro_rules! count_queued {
    ($index:literal, $conditions:literal) => {
        Sql::new(
            concat!(
                "SELECT COUNT(*) FROM (SELECT 1 FROM runs INDEXED BY ",
                $index,
                " WHERE ",
                $conditions,
                ") AS found"
            ),
            concat!(
                "SELECT COUNT(*) FROM (SELECT 1 FROM runs WHERE ",
                $conditions,
                ") AS found"
            ),
        )
    };
}

/// Returns the context owner of a charged identity, which is a token id, or an issuer and a
/// subject.
fn owner_key(charged_to: &str) -> String {
    match charged_to.split_once(' ') {
        Some((issuer, subject)) => Principal::Federation {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
        },
        None => Principal::Token {
            id: charged_to.to_owned(),
        },
    }
    .key()
}

/// Loads the use of a quota. Counts at most up to `limit`.
pub(super) async fn count_usage(
    tx: &mut Tx,
    subject: &QuotaSubject,
    kind: QuotaKind,
    limit: Option<u64>,
    now: Ms,
) -> Result<u64> {
    let most = limit.unwrap_or(u64::MAX).min(i64::MAX.unsigned_abs());
    let name = subject.to_string();
    let count: Option<(i64,)> = match (kind, subject) {
        (kind, _) if is_rate(kind) => {
            let since = now - now.rem_euclid(MINUTE);
            tx.fetch_optional(
                "SELECT used FROM quota_usage WHERE kind = $3 AND subject = $1 AND since = $2",
                args![name, since, kind.name()],
            )
            .await?
        }
        (QuotaKind::LogBytes, QuotaSubject::Tasks(pattern)) => {
            let prefix = format!("task:{}", pattern.trim_end_matches('*'));
            tx.fetch_optional(
                "SELECT CAST(COALESCE(SUM(used), 0) AS BIGINT) FROM quota_usage WHERE kind = 'logBytes' \
                 AND subject >= $1 AND subject < $2",
                args![prefix.as_str(), upper_bound(&prefix)],
            )
            .await?
        }
        (QuotaKind::LogBytes, _) => {
            tx.fetch_optional(
                "SELECT used FROM quota_usage WHERE kind = 'logBytes' AND subject = $1",
                args![name],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Task(task)) => {
            tx.fetch_optional(
                count_queued!(
                    "runs_queued_task",
                    "task_name = $1 AND state = 'queued' \
                     AND (approval IS NULL OR approval <> 'pending') LIMIT $2"
                ),
                args![task, most],
            )
            .await?
        }
        (QuotaKind::PendingApprovals, QuotaSubject::Task(task)) => {
            tx.fetch_optional(
                count_queued!(
                    "runs_queued_task",
                    "task_name = $1 AND state = 'queued' AND approval = 'pending' LIMIT $2"
                ),
                args![task, most],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Tasks(pattern)) => {
            let prefix = pattern.trim_end_matches('*');
            tx.fetch_optional(
                count_queued!("runs_queued_task", "task_name >= $1 AND task_name < $2 \
                 AND state = 'queued' AND (approval IS NULL OR approval <> 'pending') LIMIT $3"),
                args![prefix, upper_bound(prefix), most],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Token(by)) => {
            tx.fetch_optional(
                count_queued!("runs_queued_charged", "charged_to = $1 AND state = 'queued' LIMIT $2"),
                args![by, most],
            )
            .await?
        }
        (QuotaKind::Contexts, QuotaSubject::Token(by)) => {
            tx.fetch_optional(
                "SELECT COUNT(*) FROM (SELECT 1 FROM contexts WHERE owner = $1 LIMIT $2) AS found",
                args![owner_key(by), most],
            )
            .await?
        }
        (QuotaKind::ContextBytes, QuotaSubject::Token(by)) => {
            tx.fetch_optional(
                "SELECT CAST(COALESCE(SUM(CASE WHEN size < $2 THEN $2 ELSE size END), 0) AS BIGINT) \
                 FROM contexts WHERE owner = $1",
                args![owner_key(by), MIN_CONTEXT],
            )
            .await?
        }
        (QuotaKind::UnfinishedContexts, QuotaSubject::Token(by)) => {
            tx.fetch_optional(
                "SELECT COUNT(*) FROM (SELECT 1 FROM contexts WHERE owner = $1 AND complete = 0 LIMIT $2) AS found",
                args![owner_key(by), most],
            )
            .await?
        }
        (QuotaKind::Tasks, QuotaSubject::Tasks(pattern)) => {
            let prefix = pattern.trim_end_matches('*');
            tx.fetch_optional(
                "SELECT COUNT(*) FROM (SELECT 1 FROM tasks WHERE name >= $1 AND name < $2 LIMIT $3) AS found",
                args![prefix, upper_bound(prefix), most],
            )
            .await?
        }
        (QuotaKind::Secrets, QuotaSubject::Task(task)) => {
            tx.fetch_optional(
                "SELECT (SELECT COUNT(*) FROM secrets s WHERE s.scope = t.id) \
                 + (SELECT COUNT(*) FROM credentials c WHERE c.scope = t.id) FROM tasks t WHERE t.name = $1",
                args![task],
            )
            .await?
        }
        (QuotaKind::Secrets, QuotaSubject::Tasks(pattern)) => {
            let prefix = pattern.trim_end_matches('*');
            tx.fetch_optional(
                "SELECT COUNT(*) FROM (SELECT scope FROM secrets UNION ALL SELECT scope FROM credentials) AS stored \
                 WHERE substr(scope, 1, length($1)) = $1 AND scope LIKE '%*'",
                args![prefix],
            )
            .await?
        }
        _ => None,
    };
    run_state::to_u64(count.map_or(0, |(count,)| count))
}
