//! Quotas of logs: checked when a log chunk is stored, and released when logs are removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::quota::{QuotaKind, QuotaSubject};

use super::{
    Limits, QuotaExceeded,
    usage::{load_usage, stored_use},
};
use crate::{
    Result,
    db::{Sql, Tx, args, one_of},
};

/// Reads stored use, and locks its rows until the end of the transaction.
const STORED_LOCKED: Sql = Sql::new(
    stored_use!("IN (SELECT value FROM json_each($1))"),
    concat!(stored_use!("= ANY($1)"), " FOR UPDATE"),
);

const ADD_LOGGED: Sql = {
    macro_rules! conflict {
        () => {
            " ON CONFLICT (kind, subject) DO UPDATE SET used = quota_usage.used + excluded.used"
        };
    }
    Sql::new(
        concat!(
            "INSERT INTO quota_usage (kind, subject, used) VALUES ($1, $2, $3)",
            conflict!()
        ),
        concat!(
            "INSERT INTO quota_usage (kind, subject, used) \
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[])",
            conflict!()
        ),
    )
};

/// Log quotas and their use, for the runs of a batch of reports.
#[derive(Debug, Default)]
pub(crate) struct LogAllowance {
    limits: Limits,
    used: HashMap<QuotaSubject, u64>,
    added: BTreeMap<QuotaSubject, u64>,
}

/// Returns the subject whose stored logs a run adds to: its task, or its principal.
fn log_subject(task: Option<&str>, charged_to: Option<&str>) -> Option<QuotaSubject> {
    task.map(|task| QuotaSubject::Task(task.to_owned()))
        .or_else(|| charged_to.map(|by| QuotaSubject::Token(by.to_owned())))
}

impl LogAllowance {
    /// Loads the use of the quotas of these runs.
    pub(crate) async fn load(tx: &mut Tx, runs: &[(Option<&str>, Option<&str>)]) -> Result<Self> {
        let limits = Limits::load(tx).await?;
        let mut wanted = BTreeSet::new();
        for (task, charged_to) in runs {
            let own = log_subject(*task, *charged_to);
            let patterns = task
                .iter()
                .flat_map(|task| limits.patterns(QuotaKind::LogBytes, task));
            let subjects = own.into_iter().chain(patterns.cloned());
            wanted.extend(subjects.map(|subject| (subject, QuotaKind::LogBytes)));
        }
        // Two servers may receive logs of one task. Their transactions wait for each other here.
        let used = load_usage(tx, &limits, &wanted, STORED_LOCKED, 0).await?;
        let used = used.into_iter().map(|((subject, _), used)| (subject, used));
        let used = used.collect();
        Ok(Self {
            limits,
            used,
            added: BTreeMap::new(),
        })
    }

    /// Adds `length` bytes to the log of a run with `stored` bytes. Returns an error if a quota is
    /// exceeded.
    pub(crate) fn add(
        &mut self,
        task: Option<&str>,
        charged_to: Option<&str>,
        stored: u64,
        length: u64,
    ) -> Result<(), QuotaExceeded> {
        let Some(own) = log_subject(task, charged_to) else {
            return self.check(
                &QuotaSubject::EachTask,
                QuotaKind::LogBytesPerRun,
                stored,
                length,
            );
        };
        self.check(&own, QuotaKind::LogBytesPerRun, stored, length)?;
        let mut subjects = vec![own.clone()];
        subjects.extend(
            task.iter()
                .flat_map(|task| self.limits.patterns(QuotaKind::LogBytes, task))
                .cloned(),
        );
        for subject in &subjects {
            let used = self.used.get(subject).copied().unwrap_or_default();
            self.check(subject, QuotaKind::LogBytes, used, length)?;
        }
        for subject in subjects {
            *self.used.entry(subject).or_default() += length;
        }
        *self.added.entry(own).or_default() += length;
        Ok(())
    }

    fn check(
        &self,
        subject: &QuotaSubject,
        kind: QuotaKind,
        used: u64,
        more: u64,
    ) -> Result<(), QuotaExceeded> {
        match self.limits.limit(subject, kind) {
            Some(limit) if used.saturating_add(more) > limit => Err(QuotaExceeded {
                kind,
                subject: subject.clone(),
                limit,
                used,
            }),
            _ => Ok(()),
        }
    }

    /// Stores the added bytes. Writes rows in one order, after all other locks.
    pub(crate) async fn store(self, tx: &mut Tx) -> Result<()> {
        let rows = self
            .added
            .into_iter()
            .map(|(subject, bytes)| args![QuotaKind::LogBytes.name(), subject.to_string(), bytes]);
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            tx.exec_each(ADD_LOGGED, rows).await?;
        }
        Ok(())
    }
}

/// Returns the size of the stored logs of runs in bytes, by subject.
pub(crate) async fn logs_of_runs(
    tx: &mut Tx,
    runs: Vec<String>,
) -> Result<BTreeMap<QuotaSubject, i64>> {
    let rows: Vec<(Option<String>, Option<String>, i64)> = tx
        .fetch_all(
            one_of!(
                "SELECT r.task_name, r.charged_to, CAST(SUM(c.length) AS BIGINT) FROM log_chunks c \
                 JOIN runs r ON r.id = c.run_id WHERE r.id",
                "$1",
                " GROUP BY r.task_name, r.charged_to"
            ),
            args![runs],
        )
        .await?;
    let mut bytes: BTreeMap<QuotaSubject, i64> = BTreeMap::new();
    for (task, charged_to, length) in rows {
        if let Some(subject) = log_subject(task.as_deref(), charged_to.as_deref()) {
            *bytes.entry(subject).or_default() += length;
        }
    }
    Ok(bytes)
}

/// Subtracts the bytes of removed logs from the use. Call it after the transaction has acquired all
/// other locks.
pub(crate) async fn release_log_bytes(
    tx: &mut Tx,
    bytes: BTreeMap<QuotaSubject, i64>,
) -> Result<()> {
    for (subject, bytes) in bytes {
        tx.exec(
            "UPDATE quota_usage SET used = CASE WHEN used > $2 THEN used - $2 ELSE 0 END \
             WHERE kind = 'logBytes' AND subject = $1",
            args![subject.to_string(), bytes],
        )
        .await?;
    }
    Ok(())
}
