//! Quotas: what a task, the tasks of a prefix, and a token may take of a service.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a quota limits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum QuotaKind {
    /// Bytes of the log of one run. A run that reaches it ends as an error.
    LogBytesPerRun,
    /// Bytes of all stored logs.
    LogBytes,
    /// Runs that wait in the queue.
    QueuedRuns,
    /// Runs that are created within a minute.
    RunsPerMinute,
    /// Uploaded contexts.
    Contexts,
    /// Bytes of all uploaded contexts, those that an unfinished upload has promised among them.
    ContextBytes,
    /// Uploads that are not complete.
    UnfinishedContexts,
    /// Stored tasks.
    Tasks,
    /// Stored secrets of one task.
    Secrets,
}

impl QuotaKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::LogBytesPerRun,
        Self::LogBytes,
        Self::QueuedRuns,
        Self::RunsPerMinute,
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

    /// Returns the limit of each subject of this sort where no other one is set. `None`: no limit.
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
            (Self::Contexts, EachToken | Token(_)) => Some(5_000),
            (Self::ContextBytes, EachToken | Token(_)) => Some(200 * GIB),
            (Self::UnfinishedContexts, EachToken | Token(_)) => Some(50),
            (Self::Tasks, Tasks(pattern)) if pattern == "*" => Some(20_000),
            (Self::Tasks, Tasks(_)) => Some(1_000),
            (Self::Secrets, EachTask | Task(_)) => Some(200),
            _ => None,
        }
    }

    /// Returns `true` if a quota of this kind can be set for subjects of this sort.
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

/// Whose use a quota limits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum QuotaSubject {
    /// Each task, where it has no quota of its own: `task:*`.
    EachTask,
    /// One task: `task:NAME`.
    Task(String),
    /// All tasks whose names begin so, together: `tasks:team/*`.
    Tasks(String),
    /// Each token without the scope `admin`, where it has no quota of its own: `token:*`.
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
    /// Whose use is limited: `task:NAME`, `task:*`, `tasks:PREFIX*`, `token:ID`, `token:*`.
    #[schema(value_type = String)]
    pub subject: QuotaSubject,
    /// What is limited.
    pub kind: QuotaKind,
    /// The most that may be used.
    pub limit: u64,
    /// The present use. Absent for quotas of each task or token, and for those of one run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// The limit was set by an administrator.
    pub set: bool,
}

/// Sets a quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetQuota {
    /// As in [`Quota`].
    #[schema(value_type = String)]
    pub subject: QuotaSubject,
    /// What is limited.
    pub kind: QuotaKind,
    /// The most that may be used. Absent: the default limit again.
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
