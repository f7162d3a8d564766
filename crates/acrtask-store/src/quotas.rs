//! Quotas: limits, use, and the decision whether something more may be stored.
//!
//! Invariants: a decision and what it allows are in one transaction; transactions that may use the same quota wait for each
//! other, on PostgreSQL by advisory locks that are taken before all other locks. Counting is bounded by the limit: no more
//! rows are read than may be there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::quota::{Quota, QuotaKind, QuotaSubject};
use acrtask_model::Principal;
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError,
    db::{Sql, Tx, args},
    lives,
    runs::beyond,
};

/// The period of [`QuotaKind::RunsPerMinute`], in milliseconds.
const MINUTE: Ms = 60_000;

/// A refusal because of a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the quota {kind} of {subject} is {limit}, and {used} are used")]
pub struct QuotaExceeded {
    /// What is limited.
    pub kind: QuotaKind,
    /// Whose use is limited.
    pub subject: QuotaSubject,
    /// The most that may be used.
    pub limit: u64,
    /// The present use.
    pub used: u64,
}

impl QuotaExceeded {
    /// Returns how an administrator raises the quota.
    pub fn help(&self) -> String {
        let until = match self.kind {
            QuotaKind::RunsPerMinute => "try again in a minute",
            QuotaKind::QueuedRuns => "wait until runs have started, or cancel some",
            QuotaKind::UnfinishedContexts => "finish uploads, or wait a day until they expire",
            QuotaKind::Contexts | QuotaKind::ContextBytes | QuotaKind::LogBytes => {
                "wait until old ones expire (`acrtask serve --retention`)"
            }
            QuotaKind::LogBytesPerRun => "let its steps print less",
            QuotaKind::Tasks | QuotaKind::Secrets => "delete some",
        };
        format!(
            "{until}, or let an administrator raise it: `acrtask quota set {} {} LIMIT`",
            self.subject, self.kind
        )
    }
}

/// The limits that an administrator set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits(BTreeMap<(QuotaSubject, QuotaKind), u64>);

#[derive(Debug, FromRow)]
struct RawLimit {
    subject: String,
    kind: String,
    value: i64,
}

const LIMITS: &str = "SELECT subject, kind, value FROM quotas";

impl Limits {
    fn new(rows: Vec<RawLimit>) -> Result<Self> {
        let rows = rows.into_iter().map(|raw| {
            let subject: QuotaSubject = raw.subject.parse().map_err(StoreError::corrupt)?;
            let kind: QuotaKind = raw.kind.parse().map_err(StoreError::corrupt)?;
            Ok(((subject, kind), lives::size(raw.value)?))
        });
        rows.collect::<Result<_>>().map(Self)
    }

    pub(crate) async fn load(tx: &mut Tx) -> Result<Self> {
        Self::new(tx.rows(LIMITS, args![]).await?)
    }

    /// Returns the limit of a subject: its own, that of each of its sort, the default one. `None`: no limit.
    fn of(&self, subject: &QuotaSubject, kind: QuotaKind) -> Option<u64> {
        let each = match subject {
            QuotaSubject::Task(_) => Some(QuotaSubject::EachTask),
            QuotaSubject::Token(_) => Some(QuotaSubject::EachToken),
            _ => None,
        };
        let set = |subject: &QuotaSubject| self.0.get(&(subject.clone(), kind)).copied();
        set(subject)
            .or_else(|| set(&each?))
            .or_else(|| kind.default_limit(subject))
    }

    /// Returns the patterns that have a quota of this kind and match the task.
    fn patterns<'a>(
        &'a self,
        kind: QuotaKind,
        task: &'a str,
    ) -> impl Iterator<Item = &'a QuotaSubject> {
        self.0.keys().filter_map(move |(subject, of)| {
            let QuotaSubject::Tasks(pattern) = subject else {
                return None;
            };
            (*of == kind && matches(pattern, task)).then_some(subject)
        })
    }
}

fn matches(pattern: &str, task: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => task.starts_with(prefix),
        None => task == pattern,
    }
}

/// The subjects whose quotas a new run counts against: its task, its patterns, its principal.
fn subjects(
    limits: &Limits,
    kind: QuotaKind,
    task: Option<&str>,
    by: Option<&str>,
) -> Vec<QuotaSubject> {
    let mut subjects = Vec::new();
    if let Some(task) = task {
        subjects.push(QuotaSubject::Task(task.to_owned()));
        subjects.extend(limits.patterns(kind, task).cloned());
    }
    subjects.extend(by.map(|by| QuotaSubject::Token(by.to_owned())));
    subjects
}

/// What of its quotas is left to the runs of a transaction.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    limits: Limits,
    used: HashMap<(QuotaSubject, QuotaKind), u64>,
    /// Runs that were admitted, by subject.
    admitted: BTreeMap<QuotaSubject, u64>,
}

const KINDS: [QuotaKind; 3] = [
    QuotaKind::RunsPerMinute,
    QuotaKind::QueuedRuns,
    QuotaKind::LogBytes,
];

impl Admission {
    /// Reads what the subjects of these runs use. To be called before any other lock is taken.
    pub(crate) async fn load<'n>(
        tx: &mut Tx,
        new: impl Iterator<Item = &'n NewRun>,
        now: Ms,
    ) -> Result<Self> {
        let limits = Limits::load(tx).await?;
        let mut wanted = BTreeSet::new();
        for new in new {
            for kind in KINDS {
                let of = subjects(
                    &limits,
                    kind,
                    new.task_name.as_deref(),
                    new.origin.charged_to.as_deref(),
                );
                wanted.extend(of.into_iter().map(|subject| (subject, kind)));
            }
        }
        lock(tx, wanted.iter().map(|(subject, _)| subject)).await?;
        let used = used(tx, &limits, &wanted, STORED, now).await?;
        Ok(Self {
            limits,
            used,
            admitted: BTreeMap::new(),
        })
    }

    /// Counts a new run, unless one of its quotas is used up.
    pub(crate) fn admit(&mut self, new: &NewRun) -> Result<(), QuotaExceeded> {
        let task = new.task_name.as_deref();
        let by = new.origin.charged_to.as_deref();
        for kind in KINDS {
            for subject in subjects(&self.limits, kind, task, by) {
                let Some(limit) = self.limits.of(&subject, kind) else {
                    continue;
                };
                let used = self.used.get(&(subject.clone(), kind)).copied();
                let used = used.unwrap_or_default();
                if used >= limit {
                    return Err(QuotaExceeded {
                        kind,
                        subject,
                        limit,
                        used,
                    });
                }
            }
        }
        for kind in [QuotaKind::RunsPerMinute, QuotaKind::QueuedRuns] {
            for subject in subjects(&self.limits, kind, task, by) {
                if kind == QuotaKind::RunsPerMinute {
                    *self.admitted.entry(subject.clone()).or_default() += 1;
                }
                *self.used.entry((subject, kind)).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Stores how many runs were created.
    pub(crate) async fn store(self, tx: &mut Tx, now: Ms) -> Result<()> {
        let since = now - now.rem_euclid(MINUTE);
        let rows = self.admitted.into_iter().map(|(subject, count)| {
            args![
                QuotaKind::RunsPerMinute.name(),
                subject.to_string(),
                since,
                count
            ]
        });
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            tx.each(CREATED, rows).await?;
        }
        Ok(())
    }
}

macro_rules! stored_use {
    ($in:literal) => {
        concat!(
            "SELECT kind, subject, since, used FROM quota_usage \
             WHERE kind IN ('runsPerMinute', 'logBytes') AND subject ",
            $in,
            " ORDER BY kind, subject"
        )
    };
}

mod logs;

pub(crate) use logs::{LogRoom, give_back, logs_of_runs};

const STORED: Sql = Sql::of(
    stored_use!("IN (SELECT value FROM json_each($1))"),
    stored_use!("= ANY($1)"),
);

/// Reads the use of all that is wanted and has a limit: one statement for each way of counting, however many tasks there
/// are.
async fn used(
    tx: &mut Tx,
    limits: &Limits,
    wanted: &BTreeSet<(QuotaSubject, QuotaKind)>,
    stored_use: Sql,
    now: Ms,
) -> Result<HashMap<(QuotaSubject, QuotaKind), u64>> {
    let mut used = HashMap::new();
    let (mut tasks, mut charged) = (Vec::new(), Vec::new());
    let mut stored: BTreeMap<String, &QuotaSubject> = BTreeMap::new();
    for (subject, kind) in wanted {
        let Some(limit) = limits.of(subject, *kind) else {
            continue;
        };
        match (kind, subject) {
            (QuotaKind::QueuedRuns, QuotaSubject::Task(name)) => tasks.push(name.clone()),
            (QuotaKind::QueuedRuns, QuotaSubject::Token(by)) => charged.push(by.clone()),
            (QuotaKind::QueuedRuns | QuotaKind::LogBytes, QuotaSubject::Tasks(_)) => {
                let count = usage(tx, subject, *kind, Some(limit), now).await?;
                used.insert((subject.clone(), *kind), count);
            }
            _ => {
                stored.insert(subject.to_string(), subject);
            }
        }
    }
    if !tasks.is_empty() {
        let rows: Vec<(String, i64)> = tx.rows(QUEUED_OF_TASKS, args![tasks]).await?;
        for (name, count) in rows {
            let subject = QuotaSubject::Task(name);
            used.insert((subject, QuotaKind::QueuedRuns), lives::size(count)?);
        }
    }
    if !charged.is_empty() {
        let rows: Vec<(String, i64)> = tx.rows(QUEUED_OF_CHARGED, args![charged]).await?;
        for (name, count) in rows {
            let subject = QuotaSubject::Token(name);
            used.insert((subject, QuotaKind::QueuedRuns), lives::size(count)?);
        }
    }
    if !stored.is_empty() {
        let names: Vec<String> = stored.keys().cloned().collect();
        let window = now - now.rem_euclid(MINUTE);
        let rows: Vec<(String, String, i64, i64)> = tx.rows(stored_use, args![names]).await?;
        for (kind, name, since, count) in rows {
            let kind: QuotaKind = kind.parse().map_err(StoreError::corrupt)?;
            let is_past = kind == QuotaKind::RunsPerMinute && since != window;
            if let Some(subject) = stored.get(&name).filter(|_| !is_past) {
                used.insert(((*subject).clone(), kind), lives::size(count)?);
            }
        }
    }
    Ok(used)
}

macro_rules! count_queued_of {
    ($column:literal, $index:literal) => {
        Sql::of(
            concat!(
                "SELECT ",
                $column,
                ", COUNT(*) FROM runs INDEXED BY ",
                $index,
                " WHERE state = 'queued' AND ",
                $column,
                " IN (SELECT value FROM json_each($1)) GROUP BY ",
                $column
            ),
            concat!(
                "SELECT ",
                $column,
                ", COUNT(*) FROM runs WHERE state = 'queued' AND ",
                $column,
                " = ANY($1) GROUP BY ",
                $column
            ),
        )
    };
}

const QUEUED_OF_TASKS: Sql = count_queued_of!("task_name", "runs_queued_task");
const QUEUED_OF_CHARGED: Sql = count_queued_of!("charged_to", "runs_queued_charged");

const CREATED: Sql = {
    macro_rules! conflict {
        () => {
            " ON CONFLICT (kind, subject) DO UPDATE SET since = excluded.since, \
             used = CASE WHEN quota_usage.since = excluded.since THEN quota_usage.used ELSE 0 END + excluded.used"
        };
    }
    Sql::of(
        concat!(
            "INSERT INTO quota_usage (kind, subject, since, used) VALUES ($1, $2, $3, $4)",
            conflict!()
        ),
        concat!(
            "INSERT INTO quota_usage (kind, subject, since, used) \
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[], $4::bigint[])",
            conflict!()
        ),
    )
};

/// Waits for other transactions that may use quotas of these subjects.
async fn lock<'s>(tx: &mut Tx, subjects: impl Iterator<Item = &'s QuotaSubject>) -> Result<()> {
    let names = subjects.map(|subject| format!("quota {subject}")).collect();
    lives::lock_groups(tx, names).await
}

macro_rules! count_queued {
    ($index:literal, $conditions:literal) => {
        Sql::of(
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

/// Returns the owner of contexts for an identity that is charged: an id of a token, or an issuer and a subject.
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

/// Reads the use of a subject. Counts no further than `limit`.
async fn usage(
    tx: &mut Tx,
    subject: &QuotaSubject,
    kind: QuotaKind,
    limit: Option<u64>,
    now: Ms,
) -> Result<u64> {
    let most = limit.unwrap_or(u64::MAX).min(i64::MAX.unsigned_abs());
    let name = subject.to_string();
    let count: Option<(i64,)> = match (kind, subject) {
        (QuotaKind::RunsPerMinute, _) => {
            let since = now - now.rem_euclid(MINUTE);
            tx.row(
                "SELECT used FROM quota_usage WHERE kind = 'runsPerMinute' AND subject = $1 AND since = $2",
                args![name, since],
            )
            .await?
        }
        (QuotaKind::LogBytes, QuotaSubject::Tasks(pattern)) => {
            let prefix = format!("task:{}", pattern.trim_end_matches('*'));
            tx.row(
                "SELECT CAST(COALESCE(SUM(used), 0) AS BIGINT) FROM quota_usage WHERE kind = 'logBytes' \
                 AND subject >= $1 AND subject < $2",
                args![prefix.as_str(), beyond(&prefix)],
            )
            .await?
        }
        (QuotaKind::LogBytes, _) => {
            tx.row(
                "SELECT used FROM quota_usage WHERE kind = 'logBytes' AND subject = $1",
                args![name],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Task(task)) => {
            tx.row(
                count_queued!("runs_queued_task", "task_name = $1 AND state = 'queued' LIMIT $2"),
                args![task, most],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Tasks(pattern)) => {
            let prefix = pattern.trim_end_matches('*');
            tx.row(
                count_queued!("runs_queued_task", "task_name >= $1 AND task_name < $2 \
                 AND state = 'queued' LIMIT $3"),
                args![prefix, beyond(prefix), most],
            )
            .await?
        }
        (QuotaKind::QueuedRuns, QuotaSubject::Token(by)) => {
            tx.row(
                count_queued!("runs_queued_charged", "charged_to = $1 AND state = 'queued' LIMIT $2"),
                args![by, most],
            )
            .await?
        }
        (QuotaKind::Contexts, QuotaSubject::Token(by)) => {
            tx.row(
                "SELECT COUNT(*) FROM (SELECT 1 FROM contexts WHERE owner = $1 LIMIT $2) AS found",
                args![owner_key(by), most],
            )
            .await?
        }
        (QuotaKind::ContextBytes, QuotaSubject::Token(by)) => {
            tx.row(
                "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM contexts WHERE owner = $1",
                args![owner_key(by)],
            )
            .await?
        }
        (QuotaKind::UnfinishedContexts, QuotaSubject::Token(by)) => {
            tx.row(
                "SELECT COUNT(*) FROM (SELECT 1 FROM contexts WHERE owner = $1 AND complete = 0 LIMIT $2) AS found",
                args![owner_key(by), most],
            )
            .await?
        }
        (QuotaKind::Tasks, QuotaSubject::Tasks(pattern)) => {
            let prefix = pattern.trim_end_matches('*');
            tx.row(
                "SELECT COUNT(*) FROM (SELECT 1 FROM tasks WHERE name >= $1 AND name < $2 LIMIT $3) AS found",
                args![prefix, beyond(prefix), most],
            )
            .await?
        }
        (QuotaKind::Secrets, QuotaSubject::Task(task)) => {
            tx.row(
                "SELECT COUNT(*) FROM secrets s JOIN tasks t ON t.id = s.scope WHERE t.name = $1",
                args![task],
            )
            .await?
        }
        _ => None,
    };
    lives::size(count.map_or(0, |(count,)| count))
}

/// Refuses `more` of `kind` where one of the subjects has not that much left. The subjects are locked until the end of
/// the transaction.
pub(crate) async fn need(
    tx: &mut Tx,
    subjects: &[QuotaSubject],
    kind: QuotaKind,
    more: u64,
    now: Ms,
) -> Result<()> {
    lock(tx, subjects.iter()).await?;
    let limits = Limits::load(tx).await?;
    for subject in subjects {
        let Some(limit) = limits.of(subject, kind) else {
            continue;
        };
        let used = usage(tx, subject, kind, Some(limit), now).await?;
        if used.saturating_add(more) > limit {
            return Err(QuotaExceeded {
                kind,
                subject: subject.clone(),
                limit,
                used,
            }
            .into());
        }
    }
    Ok(())
}

impl Store {
    /// Sets the limit of a subject. `None`: the default one again.
    pub async fn set_quota(
        &self,
        subject: &QuotaSubject,
        kind: QuotaKind,
        limit: Option<u64>,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
        tx.exec(
            "DELETE FROM quotas WHERE subject = $1 AND kind = $2",
            args![subject.to_string(), kind.name()],
        )
        .await?;
        if let Some(limit) = limit {
            tx.exec(
                "INSERT INTO quotas (subject, kind, value) VALUES ($1, $2, $3)",
                args![subject.to_string(), kind.name(), limit],
            )
            .await?;
        }
        tx.commit().await
    }

    /// Returns the quotas of these subjects with their use, and all quotas that were set.
    pub async fn quotas(&self, subjects: &[QuotaSubject], now: Ms) -> Result<Vec<Quota>> {
        let mut tx = self.db.write().await?;
        let limits = Limits::load(&mut tx).await?;
        let mut wanted: BTreeSet<(QuotaSubject, QuotaKind)> = limits.0.keys().cloned().collect();
        for subject in subjects {
            for kind in QuotaKind::ALL {
                if limits.of(subject, kind).is_some() {
                    wanted.insert((subject.clone(), kind));
                }
            }
        }
        let mut quotas = Vec::new();
        for (subject, kind) in wanted {
            let Some(limit) = limits.of(&subject, kind) else {
                continue;
            };
            let is_each = matches!(subject, QuotaSubject::EachTask | QuotaSubject::EachToken);
            let used = if is_each || kind == QuotaKind::LogBytesPerRun {
                None
            } else {
                Some(usage(&mut tx, &subject, kind, None, now).await?)
            };
            quotas.push(Quota {
                set: limits.0.contains_key(&(subject.clone(), kind)),
                subject,
                kind,
                limit,
                used,
            });
        }
        Ok(quotas)
    }
}
