//! Quotas: limits of the use of a server by a task, by the tasks of a prefix, and by a token.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::QuotaOf;

/// Kind of a quota: the use that it limits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum QuotaKind {
    /// Bytes of the log of one run. A run that reaches the limit ends as an error.
    LogBytesPerRun,
    /// Bytes of all stored logs.
    LogBytes,
    /// Queued runs. Of a task: without those that wait for an approval.
    QueuedRuns,
    /// Runs created within a minute. Of a task: without those that wait for an approval.
    RunsPerMinute,
    /// Runs of pull requests from forks that wait for an approval.
    PendingApprovals,
    /// Runs of pull requests from forks created within a minute.
    PendingApprovalsPerMinute,
    /// Uploaded contexts.
    Contexts,
    /// Bytes of all uploaded contexts. An unfinished upload counts with its full size.
    ContextBytes,
    /// Unfinished uploads.
    UnfinishedContexts,
    /// Stored tasks.
    Tasks,
    /// Stored secrets and logins of one task.
    Secrets,
}

impl QuotaKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::LogBytesPerRun,
        Self::LogBytes,
        Self::QueuedRuns,
        Self::RunsPerMinute,
        Self::PendingApprovals,
        Self::PendingApprovalsPerMinute,
        Self::Contexts,
        Self::ContextBytes,
        Self::UnfinishedContexts,
        Self::Tasks,
        Self::Secrets,
    ];

    /// Returns the name in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogBytesPerRun => "logBytesPerRun",
            Self::LogBytes => "logBytes",
            Self::QueuedRuns => "queuedRuns",
            Self::RunsPerMinute => "runsPerMinute",
            Self::PendingApprovals => "pendingApprovals",
            Self::PendingApprovalsPerMinute => "pendingApprovalsPerMinute",
            Self::Contexts => "contexts",
            Self::ContextBytes => "contextBytes",
            Self::UnfinishedContexts => "unfinishedContexts",
            Self::Tasks => "tasks",
            Self::Secrets => "secrets",
        }
    }

    /// Returns `true` for quotas in bytes.
    pub fn is_bytes(self) -> bool {
        matches!(
            self,
            Self::LogBytesPerRun | Self::LogBytes | Self::ContextBytes
        )
    }

    /// Returns the limit of each subject of this sort if none is set. `None` if it has no limit.
    pub fn default_limit(self, subject: &QuotaSubject) -> Option<u64> {
        const GIB: u64 = 1 << 30;
        use QuotaSubject::{EachTask, EachToken, Task, Tasks, Token};
        match (self, subject) {
            (Self::LogBytesPerRun, EachTask | Task(_) | EachToken | Token(_)) => Some(4 * GIB),
            (Self::LogBytes, EachTask | Task(_) | EachToken | Token(_)) => Some(100 * GIB),
            (Self::QueuedRuns, EachTask | Task(_)) => Some(1_000),
            (Self::QueuedRuns, EachToken | Token(_)) => Some(1_000),
            (Self::RunsPerMinute, EachTask | Task(_)) => Some(600),
            (Self::RunsPerMinute, EachToken | Token(_)) => Some(600),
            (Self::PendingApprovals, EachTask | Task(_)) => Some(100),
            (Self::PendingApprovalsPerMinute, EachTask | Task(_)) => Some(100),
            (Self::Contexts, EachToken | Token(_)) => Some(5_000),
            (Self::ContextBytes, EachToken | Token(_)) => Some(200 * GIB),
            (Self::UnfinishedContexts, EachToken | Token(_)) => Some(50),
            (Self::Tasks, Tasks(pattern)) if pattern == "*" => Some(20_000),
            (Self::Tasks, Tasks(_)) => Some(1_000),
            (Self::Secrets, EachTask | Task(_)) => Some(200),
            _ => None,
        }
    }

    /// Returns `true` if subjects of this sort have a quota of this kind.
    pub fn fits(self, subject: &QuotaSubject) -> bool {
        match subject {
            QuotaSubject::Tasks(_) => matches!(
                self,
                Self::LogBytes | Self::QueuedRuns | Self::RunsPerMinute | Self::Tasks
            ),
            subject => self.default_limit(subject).is_some(),
        }
    }
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuotaKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("`{text}` is not a quota; there are {}", names.join(", "))
        })
    }
}

/// Subject of a quota: a task, tasks, or a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum QuotaSubject {
    /// Each task that has no quota of its own: `task:*`.
    EachTask,
    /// One task: `task:NAME`.
    Task(String),
    /// All tasks of a prefix together: `tasks:team/*`.
    Tasks(String),
    /// Each token without the scope `admin` that has no quota of its own: `token:*`.
    EachToken,
    /// One token, by its id: `token:ID`.
    Token(String),
}

impl fmt::Display for QuotaSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EachTask => f.write_str("task:*"),
            Self::Task(name) => write!(f, "task:{name}"),
            Self::Tasks(pattern) => write!(f, "tasks:{pattern}"),
            Self::EachToken => f.write_str("token:*"),
            Self::Token(id) => write!(f, "token:{id}"),
        }
    }
}

impl From<QuotaSubject> for String {
    fn from(subject: QuotaSubject) -> Self {
        subject.to_string()
    }
}

impl TryFrom<String> for QuotaSubject {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for QuotaSubject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let is_name = |name: &str| (1..=200).contains(&name.len()) && name.chars().all(good);
        match text.split_once(':') {
            Some(("task", "*")) => Ok(Self::EachTask),
            Some(("task", name)) if is_name(name) => Ok(Self::Task(name.to_owned())),
            Some(("tasks", "*")) => Ok(Self::Tasks("*".to_owned())),
            Some(("tasks", pattern)) if pattern.strip_suffix('*').is_some_and(is_name) => {
                Ok(Self::Tasks(pattern.to_owned()))
            }
            Some(("token", "*")) => Ok(Self::EachToken),
            Some(("token", id)) if is_name(id) => Ok(Self::Token(id.to_owned())),
            _ => Err(format!(
                "`{text}` has no quotas; write `task:NAME`, `task:*` for each task, `tasks:PREFIX*`, `token:ID`, or \
                 `token:*` for each token"
            )),
        }
    }
}

/// A quota and its use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Subject: `task:NAME`, `task:*`, `tasks:PREFIX*`, `token:ID`, `token:*`.
    #[schema(value_type = String)]
    pub subject: QuotaSubject,
    /// Kind of the quota.
    pub kind: QuotaKind,
    /// Largest allowed use.
    pub limit: u64,
    /// Present use. Absent for quotas of each task or token, and for those of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// An administrator set the limit.
    pub set: bool,
}

/// Request to set a quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetQuota {
    /// Subject, as in [`Quota`].
    #[schema(value_type = QuotaOf)]
    pub subject: QuotaSubject,
    /// Kind of the quota.
    pub kind: QuotaKind,
    /// Largest allowed use. If absent, the default limit applies again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_kinds_are_read_as_they_are_written() {
        for text in [
            "task:*",
            "task:team/app",
            "tasks:team/*",
            "tasks:*",
            "token:*",
            "token:ab12",
        ] {
            let subject: QuotaSubject = text.parse().unwrap();
            assert_eq!(subject.to_string(), text);
        }
        for text in [
            "",
            "task:",
            "task:a b",
            "tasks:team",
            "tasks:a*b",
            "user:x",
            "token:a*",
        ] {
            assert!(text.parse::<QuotaSubject>().is_err(), "{text}");
        }
        for kind in QuotaKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
