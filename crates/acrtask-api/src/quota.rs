//! Quotas: limits on the use of a server by a task, by all tasks of a prefix, or by a token.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::forms::QuotaSubjectText;

/// Kind of a quota: the resource that it limits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum QuotaKind {
    /// Log size of one run in bytes. A run that reaches the limit ends with state `error`.
    LogBytesPerRun,
    /// Total size of all stored logs in bytes.
    LogBytes,
    /// Number of queued runs. The quota of a task excludes runs that wait for approval.
    QueuedRuns,
    /// Number of runs created within one minute. The quota of a task excludes runs that wait for
    /// approval.
    RunsPerMinute,
    /// Number of runs of pull requests from forks that wait for approval.
    PendingApprovals,
    /// Number of runs of pull requests from forks created within one minute.
    PendingApprovalsPerMinute,
    /// Number of uploaded contexts.
    Contexts,
    /// Total size of all uploaded contexts in bytes. An unfinished upload counts with its full
    /// size.
    ContextBytes,
    /// Number of unfinished uploads.
    UnfinishedContexts,
    /// Number of stored tasks.
    Tasks,
    /// Number of stored secrets and logins of one task. For a prefix, those that are scoped to a
    /// prefix within it.
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

    /// Returns the limit that applies if none is set. `None` if the use is unlimited.
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
            (Self::Secrets, EachTask | Task(_) | Tasks(_)) => Some(200),
            _ => None,
        }
    }

    /// Returns `true` if `subject` can have a quota of this kind.
    pub fn applies_to(self, subject: &QuotaSubject) -> bool {
        match subject {
            QuotaSubject::Tasks(_) => matches!(
                self,
                Self::LogBytes
                    | Self::QueuedRuns
                    | Self::RunsPerMinute
                    | Self::Tasks
                    | Self::Secrets
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

/// Subject of a quota: a task, a group of tasks, or a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum QuotaSubject {
    /// Each task without a quota of its own: `task:*`.
    EachTask,
    /// Single task: `task:NAME`.
    Task(String),
    /// All tasks of a prefix in total: `tasks:team/*`.
    Tasks(String),
    /// Each token without the scope `admin` and without a quota of its own: `token:*`.
    EachToken,
    /// Single token, by its id: `token:ID`.
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

/// Quota and its current use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Subject: `task:NAME`, `task:*`, `tasks:PREFIX*`, `token:ID`, `token:*`.
    #[schema(value_type = String)]
    pub subject: QuotaSubject,
    /// Kind of the quota.
    pub kind: QuotaKind,
    /// Maximum use.
    pub limit: u64,
    /// Current use. Absent for quotas of each task, of each token, and of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// `true` if an administrator set the limit.
    pub set: bool,
}

/// Request to set a quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetQuota {
    /// Subject, as in [`Quota`].
    #[schema(value_type = QuotaSubjectText)]
    pub subject: QuotaSubject,
    /// Kind of the quota.
    pub kind: QuotaKind,
    /// Maximum use. If absent, the default limit applies again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_kinds_parse_their_display_form() {
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
