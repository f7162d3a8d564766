//! What a server finds where a task's files and images are: `acrtask doctor TASK` asks for it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the server found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskProbe {
    /// The git repository; nothing where the task's files come from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Probe>,
    /// The task's registry, and each host that runs of the task are given a login for, but the repository's.
    #[serde(default)]
    pub logins: Vec<Probe>,
}

/// What the server found at one host. No password and no token is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Host and port.
    pub host: String,
    /// Whose login was used; nothing: there is none for the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<ProbeLogin>,
    /// What came of it.
    pub outcome: ProbeOutcome,
    /// The same in one sentence.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Seconds that the host's clock is before the server's; nothing where the host does not say what time it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead: Option<i64>,
}

/// Whose login it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProbeLogin {
    /// The task's own.
    Task,
    /// That of all tasks.
    All,
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProbeOutcome {
    /// The login holds.
    Works,
    /// Nobody asks for a login.
    Open,
    /// A login is asked for, and there is none.
    NoLogin,
    /// The login is not taken, or does not allow it.
    Denied,
    /// The host has no such branch, tag or commit.
    Missing,
    /// The host does not answer.
    Unreachable,
    /// A rule of ours is against it, for everybody.
    Refused,
    /// The host is at an address that the server may not connect to. A runner may.
    PrivateAddress,
    /// No registry is there.
    NoRegistry,
    /// It could not be tried.
    NotTried,
}
