//! Connection checks that the server makes for `acrtask doctor TASK`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Results of all checks for a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskProbe {
    /// Check of the git repository. Absent if the context of the task is not a git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Probe>,
    /// Checks of the registry and of each host that runs of the task receive a login for, except
    /// the git host.
    #[serde(default)]
    pub logins: Vec<Probe>,
}

/// Result of the check of one host. It contains no password or token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Host and port.
    pub host: String,
    /// Owner of the login that was used. Absent without a stored login for the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<ProbeLogin>,
    /// Result of the check.
    pub outcome: ProbeOutcome,
    /// Result as one sentence.
    pub message: String,
    /// Suggested solution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Seconds by which the host's clock is ahead of the server's. Absent if the host sends no
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_secs: Option<i64>,
}

/// Owner of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProbeLogin {
    /// Login of the task.
    Task,
    /// Login for all tasks of a prefix.
    Prefix,
    /// Login for all tasks.
    All,
}

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProbeOutcome {
    /// The host accepts the login.
    Works,
    /// The host requires no login.
    Open,
    /// The host requires a login, and none is stored.
    NoLogin,
    /// The host rejects the login, or the login lacks permission.
    Denied,
    /// The host has no such branch, tag or commit.
    Missing,
    /// The host does not respond.
    Unreachable,
    /// The configuration of the server forbids this host for everyone.
    Refused,
    /// The host has a private address, and the server may not connect to it. A runner may be
    /// allowed to.
    PrivateAddress,
    /// The host is not a registry.
    NoRegistry,
    /// The server could not make the check.
    NotTried,
}
