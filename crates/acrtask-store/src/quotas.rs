//! Quotas: limits, use, and admission.
//!
//! Invariants:
//! - A decision and the rows that it admits are in one transaction.
//! - Transactions that may use the same quota wait for each other, on PostgreSQL through advisory
//!   locks. They acquire these locks before all others.
//! - Counting reads at most as many rows as the limit.
//! - A run that waits for an approval uses no quota of its task that other runs use.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::quota::{Quota, QuotaKind, QuotaSubject};
use sqlx::FromRow;

use crate::{
    Ms, NewRun, Result, Store, StoreError,
    db::{Sql, Tx, args},
    run_state,
};

mod logs;
mod usage;

pub(crate) use logs::{LogAllowance, logs_of_runs, release_log_bytes};
use usage::{STORED, count_usage, load_usage};

/// Period of the per-minute quotas, in milliseconds.
const MINUTE: Ms = 60_000;

/// Smallest size that a context counts with, in bytes: a block of a file system. Only the last part
/// of a context can be smaller.
pub(crate) const MIN_CONTEXT: u64 = 4 << 10;

/// Returns `true` for per-minute quotas.
fn is_rate(kind: QuotaKind) -> bool {
    matches!(
        kind,
        QuotaKind::RunsPerMinute | QuotaKind::PendingApprovalsPerMinute
    )
}

/// A rejection because of a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the quota {kind} of {subject} is {limit}, and {used} are used")]
pub struct QuotaExceeded {
    /// Kind of the quota.
    pub kind: QuotaKind,
    /// Subject of the quota.
    pub subject: QuotaSubject,
    /// Largest allowed use.
    pub limit: u64,
    /// Current use.
    pub used: u64,
}

impl QuotaExceeded {
    /// Returns advice for the user, including the command that raises the quota.
    pub fn help(&self) -> String {
        let until = match self.kind {
            QuotaKind::RunsPerMinute | QuotaKind::PendingApprovalsPerMinute => {
                "try again in a minute"
            }
            QuotaKind::QueuedRuns => "wait until runs have started, or cancel some",
            QuotaKind::PendingApprovals => "approve or cancel runs that wait for an approval",
            QuotaKind::UnfinishedContexts => "finish uploads, or wait a day until they expire",
            QuotaKind::Contexts | QuotaKind::ContextBytes | QuotaKind::LogBytes => {
                "wait until old ones expire (`acrtask serve --retention`)"
            }
            QuotaKind::LogBytesPerRun => "let the steps print less",
            QuotaKind::Tasks | QuotaKind::Secrets => "delete some",
        };
        format!(
            "{until}, or let an administrator raise it: `acrtask quota set {} {} LIMIT`",
            self.subject, self.kind
        )
    }
}

/// Limits that administrators set.
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
            Ok(((subject, kind), run_state::to_u64(raw.value)?))
        });
        rows.collect::<Result<_>>().map(Self)
    }

    pub(crate) async fn load(tx: &mut Tx) -> Result<Self> {
        Self::new(tx.fetch_all(LIMITS, args![]).await?)
    }

    /// Returns the limit of a subject: its own, the one for each subject of its kind, or the
    /// default. `None`: unlimited.
    fn limit(&self, subject: &QuotaSubject, kind: QuotaKind) -> Option<u64> {
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

/// Returns the quotas that a new run counts against: of its task, of patterns that match the task,
/// and of its principal.
///
/// A run that waits for an approval was caused by an author without rights to the task. It counts
/// against separate quotas of the task, so that it blocks no other run of the task.
fn quotas_of(limits: &Limits, new: &NewRun) -> Vec<(QuotaSubject, QuotaKind)> {
    let (created, queued) = if new.origin.needs_approval {
        (
            QuotaKind::PendingApprovalsPerMinute,
            QuotaKind::PendingApprovals,
        )
    } else {
        (QuotaKind::RunsPerMinute, QuotaKind::QueuedRuns)
    };
    let kinds = [
        (created, QuotaKind::RunsPerMinute),
        (queued, QuotaKind::QueuedRuns),
        (QuotaKind::LogBytes, QuotaKind::LogBytes),
    ];
    let mut quotas = Vec::new();
    for (of_task, of_token) in kinds {
        if let Some(task) = &new.task_name {
            quotas.push((QuotaSubject::Task(task.clone()), of_task));
            let patterns = limits.patterns(of_task, task).cloned();
            quotas.extend(patterns.map(|pattern| (pattern, of_task)));
        }
        let token = new.origin.charged_to.clone().map(QuotaSubject::Token);
        quotas.extend(token.map(|token| (token, of_token)));
    }
    quotas
}

/// Quotas and their use for the runs of a transaction.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    limits: Limits,
    used: HashMap<(QuotaSubject, QuotaKind), u64>,
    /// Number of admitted runs per per-minute quota.
    admitted: BTreeMap<(QuotaKind, QuotaSubject), u64>,
}

impl Admission {
    /// Loads the use of the quotas of these runs. Call it before the transaction acquires any other
    /// lock.
    pub(crate) async fn load<'n>(
        tx: &mut Tx,
        new: impl Iterator<Item = &'n NewRun>,
        now: Ms,
    ) -> Result<Self> {
        let limits = Limits::load(tx).await?;
        let mut wanted = BTreeSet::new();
        for new in new {
            wanted.extend(quotas_of(&limits, new));
        }
        lock_subjects(tx, wanted.iter().map(|(subject, _)| subject)).await?;
        let used = load_usage(tx, &limits, &wanted, STORED, now).await?;
        Ok(Self {
            limits,
            used,
            admitted: BTreeMap::new(),
        })
    }

    /// Counts a new run. Returns an error if one of its quotas is exceeded.
    pub(crate) fn admit(&mut self, new: &NewRun) -> Result<(), QuotaExceeded> {
        let quotas = quotas_of(&self.limits, new);
        for (subject, kind) in &quotas {
            let Some(limit) = self.limits.limit(subject, *kind) else {
                continue;
            };
            let used = self.used.get(&(subject.clone(), *kind)).copied();
            let used = used.unwrap_or_default();
            if used >= limit {
                return Err(QuotaExceeded {
                    kind: *kind,
                    subject: subject.clone(),
                    limit,
                    used,
                });
            }
        }
        for (subject, kind) in quotas {
            if kind == QuotaKind::LogBytes {
                continue;
            }
            if is_rate(kind) {
                *self.admitted.entry((kind, subject.clone())).or_default() += 1;
            }
            *self.used.entry((subject, kind)).or_default() += 1;
        }
        Ok(())
    }

    /// Stores the number of admitted runs.
    pub(crate) async fn store(self, tx: &mut Tx, now: Ms) -> Result<()> {
        let since = now - now.rem_euclid(MINUTE);
        let rows = self
            .admitted
            .into_iter()
            .map(|((kind, subject), count)| args![kind.name(), subject.to_string(), since, count]);
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            tx.exec_each(ADD_ADMITTED, rows).await?;
        }
        Ok(())
    }
}

const ADD_ADMITTED: Sql = {
    macro_rules! conflict {
        () => {
            " ON CONFLICT (kind, subject) DO UPDATE SET since = excluded.since, \
             used = CASE WHEN quota_usage.since = excluded.since THEN quota_usage.used ELSE 0 END + excluded.used"
        };
    }
    Sql::new(
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
async fn lock_subjects<'s>(
    tx: &mut Tx,
    subjects: impl Iterator<Item = &'s QuotaSubject>,
) -> Result<()> {
    let names = subjects.map(|subject| format!("quota {subject}")).collect();
    run_state::lock_groups(tx, names).await
}

/// Returns an error if `more` of `kind` would exceed the quota of a subject. Locks the subjects
/// until the end of the transaction.
pub(crate) async fn check_quota(
    tx: &mut Tx,
    subjects: &[QuotaSubject],
    kind: QuotaKind,
    more: u64,
    now: Ms,
) -> Result<()> {
    lock_subjects(tx, subjects.iter()).await?;
    let limits = Limits::load(tx).await?;
    for subject in subjects {
        let Some(limit) = limits.limit(subject, kind) else {
            continue;
        };
        let used = count_usage(tx, subject, kind, Some(limit), now).await?;
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
    /// Sets the limit of a subject. `None` restores the default limit.
    pub async fn set_quota(
        &self,
        subject: &QuotaSubject,
        kind: QuotaKind,
        limit: Option<u64>,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
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

    /// Returns the quotas of these subjects and all quotas that administrators set, with their use.
    pub async fn quotas(&self, subjects: &[QuotaSubject], now: Ms) -> Result<Vec<Quota>> {
        let mut tx = self.db.begin().await?;
        let limits = Limits::load(&mut tx).await?;
        let mut wanted: BTreeSet<(QuotaSubject, QuotaKind)> = limits.0.keys().cloned().collect();
        for subject in subjects {
            for kind in QuotaKind::ALL {
                if limits.limit(subject, kind).is_some() {
                    wanted.insert((subject.clone(), kind));
                }
            }
        }
        let mut quotas = Vec::new();
        for (subject, kind) in wanted {
            let Some(limit) = limits.limit(&subject, kind) else {
                continue;
            };
            let is_each = matches!(subject, QuotaSubject::EachTask | QuotaSubject::EachToken);
            let used = if is_each || kind == QuotaKind::LogBytesPerRun {
                None
            } else {
                Some(count_usage(&mut tx, &subject, kind, None, now).await?)
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
